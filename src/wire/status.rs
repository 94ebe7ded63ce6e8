//! Errors as gRPC statuses, in the one way that every client can tell apart.
//!
//! The question that matters to a caller is whether anything was done. `UNAVAILABLE` with
//! `RetryInfo` means that nothing was, and `RESOURCE_EXHAUSTED` with it that there was too much to
//! do or too little room: sending it again at once would make that worse. An unknown outcome is `ABORTED` or `DEADLINE_EXCEEDED` with
//! `ErrorInfo` reason `OUTCOME_UNKNOWN`. Both details travel in the standard
//! `grpc-status-details-bin` trailer, as `google.rpc.Status`.

use super::store::Failure;
use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};

/// `google.rpc.Status` and the two details used of it, cut down to what is sent. The field numbers
/// are those of googleapis' `google/rpc/status.proto` and `error_details.proto`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
}

#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    delay: Option<Delay>,
}

#[derive(Clone, PartialEq, Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";
const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";
const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";

/// How long a client should wait before it sends a request again of which nothing was done.
const RETRY_DELAY_NANOS: i32 = 50_000_000;

fn with_detail(code: Code, message: String, type_url: &str, detail: &impl Message) -> Status {
    let any = Any { type_url: type_url.into(), value: detail.encode_to_vec() };
    let details = RpcStatus { code: code.into(), message: message.clone(), details: vec![any] };
    Status::with_details(code, message, Bytes::from(details.encode_to_vec()))
}

fn nothing(code: Code, message: String) -> Status {
    let info = RetryInfo { delay: Some(Delay { seconds: 0, nanos: RETRY_DELAY_NANOS }) };
    with_detail(code, message, RETRY_INFO, &info)
}

/// Nothing was done; anybody may send it again.
pub fn unavailable(message: impl Into<String>) -> Status {
    nothing(Code::Unavailable, message.into())
}

/// Nothing was done, for load or for want of room; it may be sent again later.
pub fn exhausted(message: impl Into<String>) -> Status {
    nothing(Code::ResourceExhausted, message.into())
}

/// It may have happened or not.
pub fn unknown(code: Code, message: impl Into<String>) -> Status {
    let info = ErrorInfo { reason: OUTCOME_UNKNOWN.into(), domain: "thrifty".into() };
    with_detail(code, message.into(), ERROR_INFO, &info)
}

/// What a failure says that came inside of an answer.
pub fn of_failure(failure: Failure) -> Status {
    let code = Code::from_i32(failure.code);
    match code {
        _ if failure.outcome_unknown => unknown(code, failure.message),
        Code::Unavailable => unavailable(failure.message),
        Code::ResourceExhausted => exhausted(failure.message),
        _ => Status::new(code, failure.message),
    }
}

fn detail<M: Message + Default>(status: &Status, type_url: &str) -> Option<M> {
    let details = RpcStatus::decode(status.details()).ok()?;
    let any = details.details.into_iter().find(|any| any.type_url == type_url)?;
    M::decode(&any.value[..]).ok()
}

/// Whether the server said that the outcome is unknown.
pub fn outcome_unknown(status: &Status) -> bool {
    detail::<ErrorInfo>(status, ERROR_INFO).is_some_and(|info| info.reason == OUTCOME_UNKNOWN)
}

/// Whether the server said that nothing was done.
pub fn nothing_done(status: &Status) -> bool {
    detail::<RetryInfo>(status, RETRY_INFO).is_some()
}

/// Whether something of this kind is behind a status.
fn caused_by<E: std::error::Error + 'static>(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<E>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether the request never left, because no connection could be made.
pub fn never_connected(status: &Status) -> bool {
    caused_by::<tonic::ConnectError>(status)
}

/// Whether this side gave up waiting.
pub fn ran_out_of_time(status: &Status) -> bool {
    caused_by::<tonic::TimeoutExpired>(status) || caused_by::<tokio::time::error::Elapsed>(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_kinds_can_be_told_apart() {
        let nothing = unavailable("no quorum");
        assert!(nothing_done(&nothing) && !outcome_unknown(&nothing));
        let shed = exhausted("too much to do");
        assert!(nothing_done(&shed) && shed.code() == Code::ResourceExhausted);
        let unknown = unknown(Code::Aborted, "lost a race");
        assert!(outcome_unknown(&unknown) && !nothing_done(&unknown));
        let other = Status::unavailable("connection reset");
        assert!(!outcome_unknown(&other) && !nothing_done(&other));
    }
}
