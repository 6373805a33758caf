//! What is counted from the start of the daemon: passes, reloads, roll-backs, deployments and issuances.
//!
//! A counter outlives the reconciler, which is made anew with each configuration.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::progress::Step;
use crate::reason::Code;
use crate::reconcile::commit_point::DeployError;
use crate::reconcile::{Pass, PassError, Source};
use crate::server::standing::Mismatch;

/// Counters by the label `outcome`.
pub(super) type ByOutcome = Family<[(&'static str, &'static str); 1], Counter>;

/// A pass that changes nothing takes milliseconds. An issuance, a trial or a slow reload takes seconds to minutes.
const PASS_SECONDS: [f64; 10] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0];
/// A reload takes 10 ms. With bcrypt users it takes half a minute and more.
const RELOAD_SECONDS: [f64; 11] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// The outcome of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reload {
    Loaded,
    Refused,
    Died,
    TimedOut,
}

impl Reload {
    const ALL: [Self; 4] = [Self::Loaded, Self::Refused, Self::Died, Self::TimedOut];

    fn as_str(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Refused => "refused",
            Self::Died => "died",
            Self::TimedOut => "timed_out",
        }
    }

    /// The outcome of a reload that was not confirmed, by the error of its pass.
    fn failed(outcome: &Result<impl Sized, PassError>) -> Self {
        match outcome {
            Err(PassError::Deploy(DeployError::ReloadTimedOut { .. })) => Self::TimedOut,
            Err(PassError::Deploy(
                DeployError::RolledBack { mismatch: Mismatch::Ended { .. }, .. }
                | DeployError::NotConfirmed { mismatch: Mismatch::Ended { .. } }
                | DeployError::NotRolledBack { mismatch: Mismatch::Ended { .. }, .. }
                | DeployError::Replaced { .. },
            )) => Self::Died,
            _ => Self::Refused,
        }
    }
}

/// The outcome of an issuance in one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Issuance {
    Issued,
    Pending,
    Failed,
}

impl Issuance {
    const ALL: [Self; 3] = [Self::Issued, Self::Pending, Self::Failed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Pending => "pending",
            Self::Failed => "failed",
        }
    }

    fn of(tried: Result<(), Code>) -> Self {
        match tried {
            Ok(()) => Self::Issued,
            Err(Code::IssuerInProgress | Code::CertificateWaitsForBundle) => Self::Pending,
            Err(_) => Self::Failed,
        }
    }
}

/// The counters and histograms of the daemon.
#[derive(Debug)]
pub struct Tally {
    pub(super) pass_seconds: Histogram,
    pub(super) reload_seconds: Histogram,
    pub(super) reloads: ByOutcome,
    pub(super) rollbacks: Counter,
    pub(super) disconnected: Counter,
    pub(super) closed: Counter,
    pub(super) deployments_failed: Counter,
    pub(super) issuances: ByOutcome,
    answered: Mutex<BTreeMap<Source, OffsetDateTime>>,
    /// The reloads that have no outcome yet.
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// When nats-server was told to make the last reload.
    begun: Option<Instant>,
    /// Reloads of this pass that were not confirmed.
    unconfirmed: u64,
}

impl Open {
    fn give_up(&mut self) {
        self.unconfirmed += u64::from(self.begun.take().is_some());
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            pass_seconds: Histogram::new(PASS_SECONDS),
            reload_seconds: Histogram::new(RELOAD_SECONDS),
            reloads: starting_at_zero(Reload::ALL.map(Reload::as_str)),
            rollbacks: Counter::default(),
            disconnected: Counter::default(),
            closed: Counter::default(),
            deployments_failed: Counter::default(),
            issuances: starting_at_zero(Issuance::ALL.map(Issuance::as_str)),
            answered: Mutex::default(),
            open: Mutex::default(),
        }
    }
}

/// A counter that appears only with its first event hides this event from `increase` and `rate`.
fn starting_at_zero<const N: usize>(outcomes: [&'static str; N]) -> ByOutcome {
    let family = ByOutcome::default();
    for outcome in outcomes {
        drop(family.get_or_create(&[("outcome", outcome)]));
    }
    family
}

impl Tally {
    /// When each source answered last.
    pub(super) fn answered(&self) -> BTreeMap<Source, OffsetDateTime> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts a step of the pass that is under way.
    pub(super) fn hear(&self, step: &Step) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match step {
            Step::Signalled { .. } => {
                open.give_up();
                open.begun = Some(Instant::now());
            }
            Step::Confirmed { .. } => {
                if let Some(begun) = open.begun.take() {
                    self.reload_seconds.observe(begun.elapsed().as_secs_f64());
                    self.count_reloads(Reload::Loaded, 1);
                }
            }
            Step::RolledBack { .. } => {
                open.give_up();
                self.rollbacks.inc();
            }
            Step::Disconnected { clients } => drop(self.disconnected.inc_by(*clients)),
            Step::Closed { clients } => drop(self.closed.inc_by(*clients)),
            _ => {}
        }
    }

    /// Counts a pass that has ended.
    pub fn note(&self, pass: &Pass, took: Duration) {
        self.pass_seconds.observe(took.as_secs_f64());
        if let Some(tried) = pass.issuance {
            self.issuances.get_or_create(&[("outcome", Issuance::of(tried).as_str())]).inc();
        }
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).extend(pass.answered.iter().copied());
        let unconfirmed = self.close_reloads(pass);
        let failed = pass.outcome.as_ref().err().filter(|error| error.is_of_deployment());
        // A reload that timed out is the error of each later pass too.
        let is_told = Reload::failed(&pass.outcome) == Reload::TimedOut && unconfirmed == 0;
        if failed.is_some() && !is_told {
            self.deployments_failed.inc();
        }
    }

    /// Counts the reloads of the pass that were not confirmed, and returns their number. A reload under way stays open.
    fn close_reloads(&self, pass: &Pass) -> u64 {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if !pass.status.reasons.iter().any(|reason| reason.code == Code::ReloadUnderWay.as_str()) {
            open.give_up();
        }
        let unconfirmed = std::mem::take(&mut open.unconfirmed);
        self.count_reloads(Reload::failed(&pass.outcome), unconfirmed);
        unconfirmed
    }

    fn count_reloads(&self, outcome: Reload, count: u64) {
        self.reloads.get_or_create(&[("outcome", outcome.as_str())]).inc_by(count);
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::issue::ObtainError;
    use crate::reason::{Reason, Told};
    use crate::server::standing::{Evidence, Standing};
    use crate::status::{State, Status};

    const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);

    fn pass(outcome: Result<Standing, PassError>) -> Pass {
        let reasons = match &outcome {
            Ok(Standing::Reloading { since }) => vec![Told::from(&Reason::ReloadUnderWay { since: *since })],
            _ => Vec::new(),
        };
        let status = Status { reasons, ..Status::bare(State::Healthy) };
        Pass { status, outcome, next: NOW, issuance: None, answered: Vec::new() }
    }

    fn served() -> Standing {
        Standing::Served(Evidence::LeafAlone)
    }

    fn rolled_back(mismatch: Mismatch) -> Result<Standing, PassError> {
        Err(DeployError::RolledBack { mismatch, confirmed: true }.into())
    }

    fn timed_out() -> Result<Standing, PassError> {
        Err(DeployError::ReloadTimedOut { timeout: Duration::ZERO, mismatch: Mismatch::NothingLoaded }.into())
    }

    fn told() -> Step {
        Step::Signalled { pid: 1 }
    }

    fn confirmed() -> Step {
        Step::Confirmed { by: "the leaf".into() }
    }

    fn put_back() -> Step {
        Step::RolledBack { reason: "it ended".into() }
    }

    impl Tally {
        fn after(passes: impl IntoIterator<Item = (Vec<Step>, Result<Standing, PassError>)>) -> Self {
            let tally = Self::default();
            for (steps, outcome) in passes {
                for step in &steps {
                    tally.hear(step);
                }
                tally.note(&pass(outcome), Duration::from_secs(1));
            }
            tally
        }

        /// Loaded, refused, died, timed out, roll-backs, deployments failed.
        fn counts(&self) -> [u64; 6] {
            let [loaded, refused, died, timed_out] =
                Reload::ALL.map(|outcome| self.reloads.get_or_create(&[("outcome", outcome.as_str())]).get());
            [loaded, refused, died, timed_out, self.rollbacks.get(), self.deployments_failed.get()]
        }
    }

    #[test]
    fn each_reload_has_one_outcome() {
        let ended = || Mismatch::Ended { pid: 1, why: "its pid is gone".into() };
        let back = || vec![told(), put_back(), told(), confirmed()];
        let counts = |steps, outcome| Tally::after([(steps, outcome)]).counts();
        assert_eq!(counts(Vec::new(), Ok(served())), [0; 6]);
        assert_eq!(counts(vec![told(), confirmed()], Ok(served())), [1, 0, 0, 0, 0, 0]);
        // Nobody was told: nats-server was started meanwhile.
        assert_eq!(counts(vec![confirmed()], Ok(served())), [0; 6]);
        assert_eq!(counts(back(), rolled_back(Mismatch::NothingLoaded)), [1, 1, 0, 0, 1, 1]);
        assert_eq!(counts(back(), rolled_back(ended())), [1, 0, 1, 0, 1, 1]);
        // A refused reload is followed by one with the settings that run.
        assert_eq!(counts(vec![told(), told(), confirmed()], Ok(served())), [1, 1, 0, 0, 0, 0]);
        assert_eq!(counts(vec![told()], Err(PassError::Waits(Reason::NoCertificate))), [0, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn a_reload_under_way_is_counted_once_it_ends_or_is_given_up() {
        let reloading = || (vec![told()], Ok(Standing::Reloading { since: NOW }));
        let still = || (Vec::new(), Ok(Standing::Reloading { since: NOW }));
        assert_eq!(Tally::after([reloading(), still()]).counts(), [0; 6]);
        assert_eq!(
            Tally::after([reloading(), still(), (vec![confirmed()], Ok(served()))]).counts(),
            [1, 0, 0, 0, 0, 0]
        );
        let silent = || (Vec::new(), timed_out());
        assert_eq!(Tally::after([reloading(), silent(), silent(), silent()]).counts(), [0, 0, 0, 1, 0, 1]);
    }

    #[test]
    fn an_issuance_is_counted_by_its_outcome_and_is_no_deployment() {
        let tally = Tally::default();
        let tried = [None, Some(Ok(())), Some(Err(Code::IssuerInProgress)), Some(Err(Code::IssuerDenied))];
        for issuance in tried {
            let outcome = Err(ObtainError::InProgress { issuer: "CA".into() }.into());
            tally.note(&Pass { issuance, ..pass(outcome) }, Duration::ZERO);
        }
        let counts = Issuance::ALL.map(|of| tally.issuances.get_or_create(&[("outcome", of.as_str())]).get());
        assert_eq!((counts, tally.counts()), ([1, 1, 1], [0; 6]));
    }

    #[test]
    fn the_last_success_of_a_source_that_fails_stays() {
        let tally = Tally::default();
        tally.note(
            &Pass { answered: vec![(Source::Peers, NOW), (Source::Bundle, NOW)], ..pass(Ok(served())) },
            Duration::ZERO,
        );
        let later = NOW + Duration::from_secs(30);
        tally.note(&Pass { answered: vec![(Source::Peers, later)], ..pass(Ok(served())) }, Duration::ZERO);
        assert_eq!(tally.answered(), BTreeMap::from([(Source::Bundle, NOW), (Source::Peers, later)]));
    }
}
