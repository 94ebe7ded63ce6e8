//! The store over plain HTTP: [`native`], on the same port as gRPC, told of in [`json`].

mod body;
mod failed;
pub mod json;
pub mod native;
mod pages;
