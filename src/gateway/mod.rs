//! The store over plain HTTP: [`native`], on the same port as gRPC, told of in [`json`], and [`gate`], a
//! frontend of its own that holds no data and speaks the [`dialects`] of older stores.

mod body;
pub mod dialects;
mod failed;
pub mod gate;
pub mod json;
pub mod native;
mod pages;
