//! What comes with a request.

use super::failed::Failed;
use crate::core::record::MAX_VALUE_BYTES;
use axum::body::{Bytes, HttpBody};
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::http::StatusCode;
use std::time::Duration;

/// How long a body may take to arrive: the largest value at less than a megabit a second. Until then
/// nothing is done.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// All of a request's body of at most so many bytes, if it arrives in time.
pub(super) async fn body(mut request: Request, most: usize, limit: Duration) -> Result<Bytes, Failed> {
    if request.body().size_hint().lower() > most as u64 {
        return Err(too_large(most));
    }
    DefaultBodyLimit::max(most).apply(&mut request);
    let Ok(arrived) = tokio::time::timeout(limit, Bytes::from_request(request, &())).await else {
        let late = "the body did not arrive in time; nothing was done";
        return Err(Failed::new(StatusCode::REQUEST_TIMEOUT, late));
    };
    arrived.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(most),
        code => Failed::new(code, rejection.body_text()),
    })
}

/// More than a body may have here.
pub(super) fn too_large(most: usize) -> Failed {
    let message =
        format!("a body has at most {most} bytes here, and a value {MAX_VALUE_BYTES}; nothing was done");
    Failed::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_does_not_arrive_is_not_waited_for() {
        let never = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let late = runtime.block_on(async {
            let request = Request::new(axum::body::Body::from_stream(never));
            body(request, 5, Duration::from_millis(10)).await.unwrap_err()
        });
        assert_eq!(late.code, StatusCode::REQUEST_TIMEOUT);
    }

    #[test]
    fn a_body_that_is_announced_as_too_large_is_not_waited_for() {
        let arriving = |bytes: &'static str| Request::new(axum::body::Body::from(bytes));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let large = runtime.block_on(body(arriving("apples"), 5, Duration::ZERO)).unwrap_err();
        assert_eq!(large.code, StatusCode::PAYLOAD_TOO_LARGE);
        let whole = runtime.block_on(body(arriving("apple"), 5, Duration::from_secs(5))).unwrap();
        assert_eq!(whole, "apple");
    }
}
