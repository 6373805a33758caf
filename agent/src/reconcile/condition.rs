//! How nats-server was started, over the passes.

use std::time::Duration;

use time::OffsetDateTime;

use super::Reconciler;
use crate::reason::Reason;
use crate::server::arguments::ArgumentFault;
use crate::server::{Condition, Presence};

/// The share of an interval after which a pass is a regular pass, whatever its jitter.
const REGULAR: f64 = 0.9;

/// What the passes of this process saw.
#[derive(Default)]
pub(super) struct Watch {
    looked: Option<OffsetDateTime>,
    arguments: Vec<ArgumentFault>,
}

impl Watch {
    /// Whether a look is due. Passes follow each other within a second while nats-server doesn't serve what it should.
    fn is_due(&self, now: OffsetDateTime, interval: Duration) -> bool {
        self.looked.is_none_or(|looked| now < looked || now >= looked + interval.mul_f64(REGULAR))
    }

    /// Why the node isn't healthy.
    pub(super) fn reasons(&self) -> Vec<Reason> {
        self.told(true)
    }

    /// What is worth knowing.
    pub(super) fn warnings(&self) -> Vec<Reason> {
        self.told(false)
    }

    fn told(&self, failures: bool) -> Vec<Reason> {
        let arguments = self.arguments.iter().filter(|fault| fault.is_failure() == failures).cloned();
        arguments.map(Reason::Arguments).collect()
    }
}

impl Reconciler {
    /// Looks at how nats-server was started, once in an interval.
    pub(super) async fn look_at_condition(&mut self) {
        let (now, seen) = (self.clock.now(), self.deployment.seen());
        if !matches!(seen.observed.presence, Presence::Running(_)) {
            self.watch = Watch::default();
            return;
        }
        if !self.watch.is_due(now, self.interval) {
            return;
        }
        let commit = self.deployment.commit_point.parts();
        let Condition { arguments } = commit.server.condition(&seen.listeners).await;
        let committed = || {
            let text = self.deployment.commit_point.committed().ok().flatten();
            text.and_then(|text| text.tree(&commit.nats.config).ok()).unwrap_or_default()
        };
        let arguments = arguments.faults(committed);
        self.watch = Watch { looked: Some(now), arguments };
    }
}
