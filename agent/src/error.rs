//! How an error is told.

/// STUB
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteErrorKind {
    Throttled,
    Quota,
    Denied,
    Unavailable,
    Absent,
    Permanent,
}

/// An error and its causes in one line. Some causes come as a drawing of many lines, which a log would tear apart.
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
