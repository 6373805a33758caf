//! How many calls to AWS this process has made, by call and outcome.
//!
//! The counts belong to the process. The SDK's clients are made anew with each configuration, and a counter that begins
//! anew would hide an outage.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use super::{classify, classify_credentials, credentials_error};
use crate::error::RemoteErrorKind;

/// The error code of GetCertificate while the CA still signs: the call itself succeeds.
pub(crate) const IN_PROGRESS: &str = "RequestInProgressException";

static CALLS: Mutex<Calls> = Mutex::new(Calls::new());

/// Numbers of calls. A call is written as IAM writes it, such as `acm-pca:IssueCertificate`.
pub(crate) type Calls = BTreeMap<(&'static str, CallOutcome), u64>;

/// The outcome of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CallOutcome {
    /// The service answered.
    Ok,
    /// The service throttles.
    Throttled,
    /// The credentials are missing or don't allow the call.
    Denied,
    /// The service refused or failed, or was not reached.
    Error,
    /// No answer came in time.
    Timeout,
}

impl CallOutcome {
    /// The value of the label `outcome`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Throttled => "throttled",
            Self::Denied => "denied",
            Self::Error => "error",
            Self::Timeout => "timeout",
        }
    }

    fn of<E: ProvideErrorMetadata + std::error::Error + 'static>(error: &SdkError<E, HttpResponse>) -> Self {
        match error {
            SdkError::TimeoutError(_) => Self::Timeout,
            SdkError::DispatchFailure(failure) if failure.is_timeout() => Self::Timeout,
            SdkError::ServiceError(answer) => {
                let code = answer.err().meta().code().unwrap_or_default();
                if code == IN_PROGRESS { Self::Ok } else { classify(answer.raw().status().as_u16(), code).into() }
            }
            error => credentials_error(error).map_or(Self::Error, |error| classify_credentials(error).0.into()),
        }
    }
}

impl From<RemoteErrorKind> for CallOutcome {
    fn from(kind: RemoteErrorKind) -> Self {
        match kind {
            RemoteErrorKind::Throttled => Self::Throttled,
            RemoteErrorKind::Denied => Self::Denied,
            _ => Self::Error,
        }
    }
}

/// Counts a call by its result, and passes the result on.
#[expect(clippy::result_large_err, reason = "the error of the SDK, which the caller turns into its own")]
pub(crate) fn counted<T, E>(
    call: &'static str,
    result: Result<T, SdkError<E, HttpResponse>>,
) -> Result<T, SdkError<E, HttpResponse>>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let outcome = result.as_ref().err().map_or(CallOutcome::Ok, CallOutcome::of);
    *CALLS.lock().unwrap_or_else(PoisonError::into_inner).entry((call, outcome)).or_default() += 1;
    result
}

/// The calls so far.
pub(crate) fn calls() -> Calls {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

#[cfg(test)]
mod tests {
    use aws_smithy_runtime_api::http::StatusCode;
    use aws_smithy_types::body::SdkBody;
    use aws_smithy_types::error::ErrorMetadata;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("an answer of the service")]
    struct Answered(ErrorMetadata);

    impl ProvideErrorMetadata for Answered {
        fn meta(&self) -> &ErrorMetadata {
            &self.0
        }
    }

    fn answered(status: u16, code: &str) -> SdkError<Answered, HttpResponse> {
        let status = StatusCode::try_from(status).unwrap();
        let error = Answered(ErrorMetadata::builder().code(code).build());
        SdkError::service_error(error, HttpResponse::new(status, SdkBody::empty()))
    }

    #[test]
    fn a_call_is_counted_by_what_came_of_it() {
        const CALL: &str = "test:Call";
        let results = [
            Ok(()),
            Err(answered(400, IN_PROGRESS)),
            Err(answered(400, "ThrottlingException")),
            Err(answered(400, "AccessDeniedException")),
            Err(answered(500, "InternalFailure")),
            Err(answered(400, "LimitExceededException")),
            Err(SdkError::timeout_error("late")),
        ];
        for result in results {
            let is_ok = result.is_ok();
            assert_eq!(counted(CALL, result).is_ok(), is_ok);
        }
        let counts = calls();
        let told = counts.iter().filter(|((call, _), _)| *call == CALL);
        let told: Vec<_> = told.map(|((_, outcome), count)| (outcome.as_str(), *count)).collect();
        assert_eq!(told, [("ok", 2), ("throttled", 1), ("denied", 1), ("error", 2), ("timeout", 1)]);
    }
}
