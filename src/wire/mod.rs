//! The protocol: generated protobuf types, and their checked conversions to and from the core's.
//!
//! Nothing outside this layer reads raw protobuf fields of a layout, a record or an id: what comes
//! from outside is checked once, in [`convert`], and is a core value from then on.

/// `thrifty.location.v1`, generated.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod location {
    tonic::include_proto!("thrifty.location.v1");
}

/// `thrifty.store.v1`, generated.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod store {
    tonic::include_proto!("thrifty.store.v1");
}

pub mod bounded;
pub mod budget;
pub mod channel;
pub mod convert;
pub mod status;

/// The compiled protocol files, for the standard reflection service.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/thrifty.bin"));

/// The largest message that is sent or accepted: a value of 1 MiB with its key, or a layout, with
/// room to spare; gRPC's usual limit, so that every language's client can receive it.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// Requests that one connection of a client's to a node may have under way; the others wait with the
/// client, where they cost the node nothing. What a busy client needs, who can have more connections.
pub const MAX_STREAMS: u32 = 256;

/// What the requests on one connection of a client's to a store node, with their answers, may take of
/// the node's memory; what comes past that is refused.
pub const MAX_CONNECTION_BYTES: usize = 32 << 20;

/// What a request takes beside its message and the answer's: its stream, its headers, its task.
pub const REQUEST_BYTES: usize = 4 << 10;
