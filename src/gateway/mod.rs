//! The store over plain HTTP, on the same port as gRPC.

pub mod native;
