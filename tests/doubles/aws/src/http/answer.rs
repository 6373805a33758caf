//! Answers, complete and corrupted.

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::json;

use crate::ServiceError;
use crate::fault::{Fault, HUGE, Protocol};
use crate::wire::Body;

/// A proxy's login page.
const LOGIN: &str = "<html><body>Please log in to use the network.</body></html>";

/// The message about a signature that is older than five minutes.
const SIGNATURE_EXPIRED: &str =
    "Signature expired: 20260301T110000Z is now earlier than 20260301T115500Z (20260301T120000Z - 5 min.)";

/// An answer as it is sent.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) text: String,
    content_type: &'static str,
    /// The number of white-space bytes before the text.
    filling: usize,
    breaks_off: bool,
}

impl Answer {
    /// A successful answer.
    pub(super) fn of(protocol: Protocol, text: String) -> Self {
        let content_type = match protocol {
            Protocol::Json => "application/x-amz-json-1.1",
            Protocol::Query | Protocol::Ec2 => "text/xml",
        };
        Self { status: 200, text, content_type, filling: 0, breaks_off: false }
    }

    pub(super) fn status(status: u16) -> Self {
        let text = format!("<html><body>{status}</body></html>");
        Self { status, text, content_type: "text/html", filling: 0, breaks_off: false }
    }

    /// An error answer. The "Common Errors" pages give the status: 400, and 500 for `InternalFailure`
    /// (<https://docs.aws.amazon.com/privateca/latest/APIReference/CommonErrors.html>,
    /// <https://docs.aws.amazon.com/autoscaling/ec2/APIReference/CommonErrors.html>). EC2's documentation only says
    /// that client errors are in the 400 series and server errors in the 500 series
    /// (<https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>). AWS's SDK for Python expects
    /// RequestLimitExceeded with a 503 (`botocore/data/_retry.json`).
    pub(super) fn error(protocol: Protocol, error: &ServiceError) -> Self {
        let ServiceError { code, message } = error;
        let text = match protocol {
            Protocol::Json => json!({"__type": code, "message": message}).to_string(),
            Protocol::Query => format!(
                "<ErrorResponse xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\"><Error><Type>Sender</Type>\
                 <Code>{code}</Code><Message>{}</Message></Error><RequestId>double</RequestId></ErrorResponse>",
                escaped(message)
            ),
            Protocol::Ec2 => format!(
                "<Response><Errors><Error><Code>{code}</Code><Message>{}</Message></Error></Errors>\
                 <RequestID>double</RequestID></Response>",
                escaped(message)
            ),
        };
        let status = match *code {
            "RequestLimitExceeded" => 503,
            code if code.ends_with("Failure") => 500,
            _ => 400,
        };
        Self { status, ..Self::of(protocol, text) }
    }

    /// The answer of a fault that keeps the call from the service. `None` for every other fault.
    pub(super) fn in_place(protocol: Protocol, fault: &Fault) -> Option<Self> {
        let with = |code, words| Some(Self::error(protocol, &ServiceError::new(code, words)));
        let refused = |code| with(code, "refused by the script of faults");
        match (fault, protocol) {
            (Fault::Error(code), _) => refused(*code),
            (Fault::Throttled, Protocol::Json) => refused("ThrottlingException"),
            (Fault::Throttled, Protocol::Query) => refused("Throttling"),
            (Fault::Throttled, Protocol::Ec2) => refused("RequestLimitExceeded"),
            (Fault::Denied, Protocol::Json) => refused("AccessDeniedException"),
            (Fault::Denied, Protocol::Query) => refused("AccessDenied"),
            (Fault::Denied, Protocol::Ec2) => refused("UnauthorizedOperation"),
            (Fault::WrongClock, Protocol::Json) => with("InvalidSignatureException", SIGNATURE_EXPIRED),
            (Fault::WrongClock, Protocol::Query) => with("SignatureDoesNotMatch", SIGNATURE_EXPIRED),
            (Fault::WrongClock, Protocol::Ec2) => with("RequestExpired", "Request has expired."),
            (Fault::Status(status), _) => Some(Self::status(*status)),
            (Fault::Html, _) => Some(Self { text: LOGIN.into(), content_type: "text/html", ..Self::status(200) }),
            (Fault::Empty, _) => Some(Self::of(protocol, String::new())),
            _ => None,
        }
    }

    /// The answer with the fault applied.
    pub(super) fn spoilt(mut self, fault: Option<&Fault>) -> Self {
        match fault {
            Some(Fault::Truncated) => self.breaks_off = true,
            Some(Fault::Huge) => self.filling = HUGE,
            Some(Fault::ContentType) => self.content_type = "text/html",
            Some(Fault::Half) => {
                let half = (0..=self.text.len() / 2).rev().find(|at| self.text.is_char_boundary(*at));
                self.text.truncate(half.unwrap_or(0));
            }
            _ => {}
        }
        self
    }

    pub(super) fn respond(self) -> Response<Body> {
        let mut text = " ".repeat(self.filling);
        text.push_str(&self.text);
        let mut response = Body::respond(text, self.breaks_off);
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert("x-amzn-requestid", HeaderValue::from_static("double"));
        response
    }
}

/// Escapes text for XML.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
