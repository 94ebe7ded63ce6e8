//! Every decision of the system, as plain values and functions.
//!
//! The invariants of this layer are absences: no clock, no randomness, no I/O, no async, no
//! threads. Time and random numbers come in as arguments; what should happen comes out as
//! values, and a thin shell (the real one in [`location`](crate) and `store`, or the simulator)
//! makes it happen. That is why all of it can be run a hundred thousand times from a seed.
//!
//! Clippy's disallowed lists guard this: see `clippy.toml`, denied here and allowed elsewhere.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod ballot;
pub mod clock;
pub mod collection;
pub mod digest;
pub mod latency;
pub mod layout;
pub mod membership;
pub mod mutants;
pub mod node;
pub mod placement;
pub mod quorum;
pub mod read;
pub mod record;
pub mod replica_request;
pub mod scan;
pub mod token;
pub mod transition;
pub mod ttl;
pub mod write;
