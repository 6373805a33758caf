//! A reload of nats-server, and the evidence of what became of it.
//!
//! A time-out is no refusal (invariant 16). While handshakes hang nobody can tell what nats-server does: with a hundred
//! clients whose passwords are bcrypt hashes a reload takes half a minute. Such a reload is under way, and the
//! next passes look at it. Meanwhile nothing is signalled, committed or taken back. Only an answer or a death rolls back.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;

use super::{CommitPoint, DeployError, Observation};
use crate::conf::cost::reload_costs;
use crate::conf::render::Rendered;
use crate::progress::{Progress, Step};
use crate::server::probe::{Port, Silence};
use crate::server::process::ProcessError;
use crate::server::standing::{Expected, Mismatch, Standing, has_loaded};
use crate::server::system::Answer;
use crate::server::{Asked, By, Load, Observed, ServerError};
use crate::status::LastReload;
use crate::x509::chain::StoredChain;

/// How long a pass waits for a reload. Measured: 5 to 10 ms; a loaded machine may take seconds.
pub(super) const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);
/// How long nats-server answers and has loaded nothing until a reload counts as refused.
const REFUSED_AFTER: Duration = Duration::from_secs(5);
/// nats-server's handler queues one signal and can lose the next, so the signal is repeated while nats-server answers.
const SIGNAL_AGAIN: Duration = Duration::from_secs(3);
/// When nats-server has noted every client that a reload disconnected.
const ALL_NOTED_AFTER: Duration = Duration::from_secs(1);
/// How long the disconnected clients of a reload are asked for. nats-server remembers a limited number of closed connections.
const COUNTED_WITHIN: Duration = Duration::from_mins(5);
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LONGEST_LOOK: Duration = Duration::from_millis(250);

/// What shows that nats-server reloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// The expectation is seen. Where no digest shows it, a load must be seen too.
    Expected,
    /// A load is seen, though the expectation was met before.
    Load,
}

/// A reload that nats-server was told to make, and that has not ended yet.
#[derive(Clone, Debug)]
pub(super) struct UnderWay {
    begun: Instant,
    /// When nats-server was told first.
    since: OffsetDateTime,
    pid: i32,
    expected: Expected,
    /// What was seen before the signal.
    before: Observed,
    proof: Proof,
    /// Since when each pass saw a server that answers and has not loaded what is expected.
    answers_since: Option<Instant>,
}

/// A confirmed reload, and the clients that it disconnected.
#[derive(Clone, Debug)]
pub(super) struct Confirmed {
    load: Load,
    /// The start of nats-server that made the reload. Empty: nats-server didn't say.
    server_id: String,
    disconnected: Option<u64>,
    /// Whether the clients were counted late enough.
    is_counted: bool,
}

/// What became of a reload that is under way.
pub(super) enum Watched {
    /// The reload has ended, or nats-server answers again. The pass goes on.
    Over,
    /// The reload is still under way.
    Still,
    /// nats-server ended.
    Ended(Mismatch),
}

/// What one look shows of a reload.
enum Look {
    /// nats-server serves what is expected, or doesn't run and was not signalled.
    Done(Standing),
    /// nats-server answers, and has not loaded what is expected.
    Answers(Mismatch),
    /// nats-server ended.
    Ended(Mismatch),
    /// A port is silent, so nobody can tell.
    Silent(Mismatch),
}

impl Look {
    fn of(expected: &Expected, proof: Proof, before: &Observed, observed: &Observed, signalled: Option<i32>) -> Self {
        let is_told = proof == Proof::Expected && expected.digest().is_some();
        let standing = expected.judge(observed).only_if(is_told || has_loaded(before, observed));
        match (standing, signalled) {
            (Standing::NoServer { why }, Some(pid)) => Self::Ended(Mismatch::Ended { pid, why }),
            (Standing::NotServed(mismatch), _) if is_silent(&mismatch) => Self::Silent(mismatch),
            (Standing::NotServed(mismatch), _) => Self::Answers(mismatch),
            (standing, _) => Self::Done(standing),
        }
    }
}

/// Whether nobody can tell what nats-server does. A handshake that fails at once is an answer.
fn is_silent(mismatch: &Mismatch) -> bool {
    matches!(
        mismatch,
        Mismatch::PortSilent { why: Silence::Hangs(_), .. }
            | Mismatch::PortSilent { port: Port::Client, why: Silence::Closed(_) }
    )
}

impl CommitPoint {
    /// Whether a handshake hangs although nats-server has loaded the committed text. Such a nats-server is busy, for example with the
    /// bcrypt passwords of clients that connect, and a reload would authenticate every client again.
    pub(crate) fn is_busy(&self, standing: &Standing, committed: &Rendered) -> Result<bool, DeployError> {
        let hangs = matches!(standing, Standing::NotServed(Mismatch::PortSilent { why: Silence::Hangs(_), .. }));
        Ok(hangs && self.running()?.as_ref() == Some(committed))
    }

    /// Has nats-server load what is committed, and notes a load that was seen.
    pub(super) async fn reload(
        &mut self,
        chain: &StoredChain,
        proof: Proof,
        seen: &mut Observation,
        progress: &Progress,
    ) -> Result<Standing, DeployError> {
        self.observe(Some(chain), seen).await?;
        if matches!(seen.standing, Standing::NoServer { .. } | Standing::NothingCommitted) {
            return Ok(seen.standing.clone());
        }
        let expected = self.expected()?;
        let before = seen.observed.clone();
        self.tell_costs(&before)?;
        let confirmed = Box::pin(self.signal_until_decided(&expected, chain, proof, seen, progress)).await;
        if confirmed.is_err() {
            // The last handshakes may be out of date, so the ports are probed again.
            seen.observed = Observed::unseen();
            self.observe(Some(chain), seen).await?;
        }
        let standing = confirmed?;
        if let Standing::NotServed(_) | Standing::Reloading { .. } = standing {
            return Ok(standing);
        }
        self.observe(Some(chain), seen).await?;
        self.note_reloaded(&expected, &before, seen)?;
        Ok(standing)
    }

    /// Says before a reload what the reload costs the clients.
    fn tell_costs(&self, observed: &Observed) -> Result<(), DeployError> {
        if let Some((varz, tree)) = observed.varz.as_ref().zip(self.committed()?.and_then(|text| self.tree_of(&text))) {
            for cost in reload_costs(&tree, varz.connections, &varz.version) {
                tracing::info!("{cost}");
            }
        }
        Ok(())
    }

    async fn signal_until_decided(
        &mut self,
        expected: &Expected,
        chain: &StoredChain,
        proof: Proof,
        seen: &mut Observation,
        progress: &Progress,
    ) -> Result<Standing, DeployError> {
        let Observation { listeners, observed: before, .. } = seen.clone();
        let (server, listeners, before) = (self.parts.server.clone(), &listeners, &before);
        let (begun, since) = (Instant::now(), self.parts.clock.now());
        let mut signalled = None::<(i32, Instant)>;
        let mut not_listening = None::<ServerError>;
        // Since when each look showed a server that answers and has not loaded what is expected.
        let mut answers_since = None::<Instant>;
        let mut pause = FIRST_LOOK;
        loop {
            // A reload takes effect in steps, so an answer right after a silence doesn't show a lost signal.
            let is_lost = |at: Instant| answers_since.is_some_and(|since| since.max(at).elapsed() >= SIGNAL_AGAIN);
            if signalled.is_none_or(|(_, at)| is_lost(at)) {
                // The system account may lose a request or lie about it, so a repetition goes another way.
                let by = if signalled.is_none() { By::System } else { By::Signal };
                match server.reload(by, chain, listeners).await {
                    Ok(Asked { pid, answer }) => {
                        if signalled.is_none() {
                            progress.report(Step::Signalled { pid });
                        }
                        signalled = Some((pid, Instant::now()));
                        // What is loaded shows in the next look.
                        if let Some(Answer::Refused(said)) = answer {
                            return Ok(Standing::NotServed(Mismatch::Refused { said }));
                        }
                    }
                    // A nats-server that starts reads what is committed, and is signalled once it listens. A nats-server
                    // that drains is left in peace.
                    Err(error @ ServerError::NotListening { .. }) => not_listening = Some(error),
                    Err(ServerError::Process(ProcessError::Absent(why))) if signalled.is_none() => {
                        return Ok(Standing::NoServer { why });
                    }
                    // A nats-server that was there may be replaced this very moment.
                    Err(ServerError::Process(ProcessError::Absent(_))) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_LOOK);
            let observed = server.observe(Some(chain), listeners, None).await;
            self.note_shown(&observed, expected);
            let pid = signalled.map(|(pid, _)| pid);
            let is_late = begun.elapsed() >= CONFIRM_TIMEOUT;
            match (Look::of(expected, proof, before, &observed, pid), pid) {
                (Look::Done(standing), pid) => {
                    if let Standing::Served(evidence) = &standing {
                        if pid.is_some() {
                            self.note_confirmed_load(since, &observed);
                        }
                        progress.report(Step::Confirmed { by: evidence.to_string() });
                    }
                    return Ok(standing);
                }
                (Look::Answers(mismatch), Some(_)) => {
                    let since = *answers_since.get_or_insert_with(Instant::now);
                    if is_late && since.elapsed() >= REFUSED_AFTER {
                        return Ok(Standing::NotServed(mismatch));
                    }
                }
                (Look::Ended(mismatch), _) if is_late => return Ok(Standing::NotServed(mismatch)),
                (Look::Silent(_), Some(pid)) if is_late => {
                    let (expected, before) = (expected.clone(), before.clone());
                    self.under_way = Some(UnderWay { begun, since, pid, expected, before, proof, answers_since: None });
                    seen.observed = observed;
                    seen.standing = Standing::Reloading { since };
                    return Ok(seen.standing.clone());
                }
                (Look::Ended(_), _) | (Look::Silent(_), Some(_)) => answers_since = None,
                // A nats-server that was never signalled has refused nothing. Its next start finds the new configuration.
                (Look::Answers(mismatch) | Look::Silent(mismatch), None) if is_late => {
                    return not_listening.map_or(Ok(Standing::NotServed(mismatch)), |error| Err(error.into()));
                }
                (Look::Answers(_) | Look::Silent(_), None) => {}
            }
        }
    }

    /// Counts the clients that the last reload disconnected: at once, and again once nats-server has noted all of them.
    pub(crate) async fn count_disconnected(&mut self, chain: &StoredChain, seen: &Observation, progress: &Progress) {
        let Some(Confirmed { load, server_id, disconnected, is_counted }) = &mut self.confirmed else { return };
        let since = self.parts.clock.now() - load.ended;
        let varz = seen.observed.varz.as_ref();
        // Another start of nats-server remembers none of these clients.
        if *is_counted || since > COUNTED_WITHIN || varz.is_none_or(|varz| varz.server_id != *server_id) {
            return;
        }
        let Some(clients) = self.parts.server.closed_by(chain, &seen.listeners, load).await else { return };
        *is_counted = since > ALL_NOTED_AFTER;
        let known = disconnected.unwrap_or_default();
        *disconnected = Some(clients.max(known));
        if clients > known {
            progress.report(Step::Disconnected { clients: clients - known });
        }
    }

    /// Notes a reload that nats-server was told to make, and that is confirmed.
    fn note_confirmed_load(&mut self, begun: OffsetDateTime, observed: &Observed) {
        let ended = observed.varz.as_ref().map(|varz| varz.config_load_time).filter(|time| *time >= begun);
        let load = Load { begun, ended: ended.unwrap_or_else(|| self.parts.clock.now()) };
        let server_id = observed.varz.as_ref().map(|varz| varz.server_id.clone()).unwrap_or_default();
        self.confirmed = Some(Confirmed { load, server_id, disconnected: None, is_counted: false });
    }

    /// The last confirmed reload.
    pub(crate) fn last_reload(&self) -> Option<LastReload> {
        let Confirmed { load, disconnected, .. } = self.confirmed.as_ref()?;
        Some(LastReload { since: load.begun, disconnected: *disconnected })
    }

    /// Whether a reload is under way.
    #[must_use]
    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// What the observation `seen` shows of a reload that is under way.
    pub(super) fn watch(&mut self, seen: &mut Observation, progress: &Progress) -> Result<Watched, DeployError> {
        let Some(under_way) = self.under_way.clone() else { return Ok(Watched::Over) };
        let UnderWay { begun, since, pid, expected, before, proof, answers_since } = under_way;
        match Look::of(&expected, proof, &before, &seen.observed, Some(pid)) {
            Look::Done(standing) => {
                self.under_way = None;
                if let Standing::Served(evidence) = &standing {
                    self.note_confirmed_load(since, &seen.observed);
                    progress.report(Step::Confirmed { by: evidence.to_string() });
                }
                self.note_reloaded(&expected, &before, seen)?;
                Ok(Watched::Over)
            }
            // The reload may still end by itself, so nothing is signalled.
            Look::Silent(mismatch) if begun.elapsed() >= self.parts.nats.reload.timeout => {
                Err(DeployError::ReloadTimedOut { timeout: self.parts.nats.reload.timeout, mismatch })
            }
            // An answer in between may come from a reload that takes effect in steps.
            Look::Answers(_) if answers_since.is_some_and(|since| since.elapsed() >= REFUSED_AFTER) => {
                self.under_way = None;
                Ok(Watched::Over)
            }
            look @ (Look::Silent(_) | Look::Answers(_)) => {
                let answers_since = match look {
                    Look::Answers(_) => answers_since.or_else(|| Some(Instant::now())),
                    _ => None,
                };
                self.under_way = self.under_way.take().map(|under_way| UnderWay { answers_since, ..under_way });
                seen.standing = Standing::Reloading { since };
                Ok(Watched::Still)
            }
            Look::Ended(mismatch) => {
                self.under_way = None;
                Ok(Watched::Ended(mismatch))
            }
        }
    }

    /// The standing of a reload that is under way, in the place of a silent port.
    pub(super) fn standing_under_way(&self, standing: Standing) -> Standing {
        match (&self.under_way, &standing) {
            (Some(UnderWay { begun, since, .. }), Standing::NotServed(mismatch))
                if is_silent(mismatch) && begun.elapsed() < self.parts.nats.reload.timeout =>
            {
                Standing::Reloading { since: *since }
            }
            _ => standing,
        }
    }

    fn note_reloaded(&mut self, expected: &Expected, before: &Observed, seen: &Observation) -> Result<(), DeployError> {
        self.waiting = None;
        self.deferred = None;
        if seen.standing.is_served() && expected.came_to_be_served(before, &seen.observed) {
            self.note_running()?;
        }
        Ok(())
    }
}
