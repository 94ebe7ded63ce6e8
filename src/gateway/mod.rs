//! The store over plain HTTP, on the same port as gRPC.

pub mod json;
pub mod native;
