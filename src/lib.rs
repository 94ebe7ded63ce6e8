//! thrifty: a distributed key-value store whose nodes own segments of an MD5 hash ring, over a
//! location service that any program can use by itself.
//!
//! The modules in reading order; each uses only those above it.

pub mod core;
pub mod storage;
pub mod replica;
#[cfg(feature = "client")]
pub mod wire;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "location")]
pub mod location;
#[cfg(feature = "store")]
pub mod store;
#[cfg(feature = "location")]
pub mod node;
