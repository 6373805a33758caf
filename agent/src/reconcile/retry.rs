//! When something is tried next, and why it failed last.

use std::time::Duration;

use time::OffsetDateTime;

use crate::reason::Reason;
use crate::schedule::backoff;

/// The state of something that is tried again: its next time, its failures in a row, and the last reason.
#[derive(Clone, Debug)]
pub(super) struct Retry {
    /// The next try comes no earlier.
    pub(super) next: OffsetDateTime,
    /// When `next` was worked out.
    since: OffsetDateTime,
    /// Failures in a row.
    pub(super) failures: u32,
    /// Why the last try failed.
    pub(super) reason: Option<Reason>,
}

impl Retry {
    /// The first try comes at once.
    pub(super) fn at_once() -> Self {
        Self { next: OffsetDateTime::UNIX_EPOCH, since: OffsetDateTime::UNIX_EPOCH, failures: 0, reason: None }
    }

    pub(super) fn succeed(&mut self, now: OffsetDateTime, next: OffsetDateTime) {
        *self = Self { next, since: now, failures: 0, reason: None };
    }

    /// When the last try succeeded. `None`: none has succeeded, or a failure came since.
    pub(super) fn succeeded_at(&self) -> Option<OffsetDateTime> {
        (self.failures == 0 && self.since > OffsetDateTime::UNIX_EPOCH).then_some(self.since)
    }

    /// After a clock was set back, what waits for minutes would wait for hours or years. So the next try comes now.
    pub(super) fn heed_step_back(&mut self, now: OffsetDateTime) {
        if now < self.since {
            (self.since, self.next) = (now, self.next.min(now));
        }
    }

    /// Logs the reason, and puts the next try off: by `shortest` after the first failure, by `longest` at most.
    pub(super) fn fail(&mut self, now: OffsetDateTime, shortest: Duration, longest: Duration, reason: Reason) {
        tracing::warn!(code = reason.code().as_str(), "{reason}");
        self.failures = self.failures.saturating_add(1);
        self.since = now;
        self.next = now + backoff(self.failures, shortest, longest, fastrand::f64());
        self.reason = Some(reason);
    }
}
