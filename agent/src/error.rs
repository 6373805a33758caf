//! The error of everything remote, and the text of an error with its causes.

/// What a remote error means for the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteErrorKind {
    /// Too many requests: slow down.
    Throttled,
    /// A quota is used up: repeating the request doesn't help.
    Quota,
    /// The credentials are missing or don't allow the request.
    Denied,
    /// The network or the service failed, or the answer can't be right: the same request may succeed later.
    Unavailable,
    /// The service doesn't know what was asked for, or withholds it. It may not know it yet.
    Absent,
    /// This request can never succeed.
    Permanent,
}

/// Why a request to something outside this process failed: a service of AWS, instance metadata, a name server, the
/// embedded CA.
#[derive(Debug, thiserror::Error)]
#[error("{attempt}: {reason}; {remedy}")]
pub struct RemoteError {
    /// What the error means for the next step.
    pub kind: RemoteErrorKind,
    /// What was tried, such as `acm-pca:IssueCertificate on arn:…`.
    pub attempt: String,
    /// The service's error code, if the service answered with one.
    pub code: Option<Box<str>>,
    /// What came back.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
    /// The cause. It never holds the answer itself, which may be a secret.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl RemoteError {
    /// An error without a code of the service and without a cause.
    pub fn new(
        kind: RemoteErrorKind,
        attempt: impl Into<String>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { kind, attempt: attempt.into(), code: None, reason: reason.into(), remedy: remedy.into(), source: None }
    }
}

/// An error and its causes in one line. Some causes are a drawing of many lines, which would tear a log apart.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = in_one_line(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = in_one_line(&error.to_string());
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

fn in_one_line(text: &str) -> String {
    let is_frame = |line: &&str| !line.chars().all(|character| "|^-_= ".contains(character));
    text.lines().map(str::trim).filter(is_frame).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::reconcile::commit_point::DeployError;
    use crate::state::durable::FileError;

    #[test]
    fn an_error_and_its_causes_are_one_line() {
        let cause = FileError::on("write", Path::new("/x"))(std::io::Error::other("on\n  |\n  fire"));
        assert_eq!(with_causes(&DeployError::File(cause)), "could not write /x: on; fire");
    }
}
