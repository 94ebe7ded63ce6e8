//! thrifty: a distributed key-value store whose nodes own segments of an MD5 hash ring, over a
//! location service that any program can use by itself.
//!
//! The modules in reading order; each uses only those above it (a test reads the `use` lines):
//!
//! - [`core`]: every decision, pure and synchronous
//! - [`storage`]: engines that keep records, and the few things that a node must remember
//! - [`replica`]: the guard that accepts or refuses requests for a node's copies
//! - `wire`: the protocol, and its checked conversions (feature `client`)
//! - `client`: finds a ring, learns its layout, goes straight to a key's owner (feature `client`)
//! - `cache`: commonly read keys where they are read (feature `cache`)
//! - `location`: who is in the ring (feature `location`)
//! - `store`: keys and values (feature `store`)
//! - `gateway`: the store over plain HTTP (feature `gateway`)
//! - `node`: all of it put together (feature `location`)
//! - `testing`: a ring inside of a test (feature `store`)

#[cfg(feature = "cache")]
pub mod cache;
#[cfg(feature = "client")]
pub mod client;
pub mod core;
#[cfg(any(feature = "fuzzing", all(test, feature = "gateway")))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "gateway")]
pub mod gateway;
#[cfg(feature = "location")]
pub mod location;
#[cfg(feature = "location")]
pub mod node;
pub mod replica;
pub mod storage;
#[cfg(feature = "store")]
pub mod store;
#[cfg(feature = "store")]
pub mod testing;
#[cfg(feature = "client")]
pub mod wire;

#[cfg(test)]
mod layers;
