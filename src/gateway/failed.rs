//! How a request over plain HTTP ends that does not end well.

use crate::client::ClientError;
use crate::wire::status;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tonic::{Code, Status};

/// How a request ends that does not end well.
#[derive(Debug)]
pub(super) struct Failed {
    /// The status.
    pub(super) code: StatusCode,
    /// What went wrong and what helps, in a line.
    pub(super) message: String,
    /// Nothing was done, and it may be sent again later.
    pub(super) again: bool,
}

impl Failed {
    /// It would fail again.
    pub(super) fn new(code: StatusCode, message: impl Into<String>) -> Self {
        Failed { code, message: message.into(), again: false }
    }

    /// The request is wrong.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Failed::new(StatusCode::BAD_REQUEST, message)
    }

    /// Nothing was done; it may be sent again later.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Failed { again: true, ..Failed::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// The answer that says so, with this for a body.
    pub(super) fn answer(&self, body: impl IntoResponse) -> Response {
        let mut response = (self.code, body).into_response();
        if self.again {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        let again = status::nothing_done(&status);
        let code = match status.code() {
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::InvalidArgument => StatusCode::BAD_REQUEST,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unavailable if again => StatusCode::SERVICE_UNAVAILABLE,
            Code::Aborted | Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Failed { code, message: status.message().to_owned(), again }
    }
}

impl From<ClientError> for Failed {
    fn from(error: ClientError) -> Self {
        let (code, again) = match &error {
            ClientError::Invalid(_) => (StatusCode::BAD_REQUEST, false),
            ClientError::NoNode(_) | ClientError::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, true),
            ClientError::Exhausted(_) => (StatusCode::TOO_MANY_REQUESTS, true),
            ClientError::OutcomeUnknown(_) => (StatusCode::GATEWAY_TIMEOUT, false),
            ClientError::Refused(_) => (StatusCode::INTERNAL_SERVER_ERROR, false),
        };
        Failed { code, message: error.to_string(), again }
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        self.answer(format!("{}\n", self.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_done_is_to_be_sent_again() {
        let code = |status: Status| {
            let failed = Failed::from(status);
            (failed.code.as_u16(), failed.again)
        };
        assert_eq!(code(status::unavailable("no quorum")), (503, true));
        assert_eq!(code(Status::unavailable("a broken connection")), (500, false));
        assert_eq!(code(status::exhausted("too much")), (429, true));
        assert_eq!(code(status::unknown(Code::Aborted, "a race")), (504, false));
        assert_eq!(code(status::unknown(Code::DeadlineExceeded, "late")), (504, false));
        assert_eq!(code(Status::not_found("no such key")), (404, false));
        let code = |error: ClientError| {
            let failed = Failed::from(error);
            (failed.code.as_u16(), failed.again)
        };
        let message = String::new;
        assert_eq!(code(ClientError::NoNode(message())), (503, true));
        assert_eq!(code(ClientError::Unavailable(message())), (503, true));
        assert_eq!(code(ClientError::Exhausted(message())), (429, true));
        assert_eq!(code(ClientError::OutcomeUnknown(message())), (504, false));
        assert_eq!(code(ClientError::Invalid(message())), (400, false));
        let response = Failed::from(status::unavailable("no quorum")).into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
