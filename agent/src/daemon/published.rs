//! What the daemon tells of itself: the status that the last pass left, and the pass that is under way.

use time::OffsetDateTime;

use crate::progress::Step;
use crate::status::{PassStatus, Status};

/// What the control socket and the metrics port tell.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// The status that the last pass left, or that a look left before the first pass.
    pub status: Option<Status>,
    /// The pass that is under way.
    pub pass: Option<PassStatus>,
    /// When the last pass ended.
    pub last_pass: Option<OffsetDateTime>,
}

impl Published {
    /// The status with the pass that is under way.
    #[must_use]
    pub fn status_now(&self) -> Option<Status> {
        let status = self.status.clone()?;
        Some(Status { pass: self.pass.clone(), ..status })
    }

    pub(super) fn begin(&mut self, since: OffsetDateTime) {
        self.pass = Some(PassStatus { since, step: None });
    }

    pub(super) fn step(&mut self, step: Step) {
        if let Some(pass) = &mut self.pass {
            pass.step = Some(step);
        }
    }

    pub(super) fn end(&mut self, status: Status, at: OffsetDateTime) {
        *self = Self { status: Some(status), pass: None, last_pass: Some(at) };
    }
}
