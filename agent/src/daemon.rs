//! The daemon: pass after pass, with what comes between passes.
//!
//! A timer, SIGHUP and `agent renew` end the pause between two passes. The control socket and the metrics port are served
//! beside the loop, from the status that the last pass left.

pub mod control;
pub mod metrics;
pub mod protocol;
pub mod published;
pub(crate) mod renewal;
pub(crate) mod systemd;
pub mod tally;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::control::{ControlError, ControlSocket, Job};
use self::protocol::{Answer, Refusal};
use self::published::Published;
use self::renewal::Renewal;
use self::systemd::Systemd;
use self::tally::Tally;
use crate::conf::loss::Loss;
use crate::config::{Config, RenewalConfig};
use crate::exposition::{self, MetricsError};
use crate::node::IdentityError;
use crate::progress::{Progress, Step};
use crate::reason::{Reason, Told};
use crate::reconcile::{Pass, PassRequest, Reconciler};
use crate::schedule::{ROUNDS_PER_SECRET_POLL, backoff};
use crate::state::lock::{Lock, LockError};
use crate::status::{State, Status};
use crate::wiring::{has_changed, wire, wire_to_inspect};

/// A clock that is set back by more than a minute was wrong; a smaller step corrects drift. The SDK keeps credentials,
/// and the token for instance metadata, for as long as the wall clock says. AWS ends them earlier if the clock was
/// ahead when the SDK got them.
const CLOCK_IS_SET_BACK: Duration = Duration::from_mins(1);

/// Why the daemon can't run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Another agent is at work.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The control socket can't be served.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The metrics port can't be served.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The configuration names no node.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The system gives no signals.
    #[error("could not listen for signals")]
    Signals(#[source] std::io::Error),
}

/// Runs until SIGTERM or SIGINT. SIGHUP reads agent.toml again.
///
/// The next start takes up a pass that is cut off, as after a crash.
pub(crate) async fn run(file: PathBuf, config: Config, allowed_losses: Vec<Loss>) -> Result<(), DaemonError> {
    let _lock = Lock::take(&config.state_directory)?;
    let metrics_port = exposition::bind(config.metrics_listen).await?;
    // The socket's file is removed before the lock is free, because another daemon then makes its own.
    let (_socket, listener) = ControlSocket::bind(&config.control_socket)?;
    let (published, watched) = watch::channel(Published::default());
    let (jobs, job) = mpsc::channel(1);
    let tally = Arc::new(Tally::default());
    tokio::spawn(metrics::serve(metrics_port, watched.clone(), Arc::clone(&tally)));
    tokio::spawn(control::serve(listener, watched, jobs));
    let listen = |kind| signal(kind).map_err(DaemonError::Signals);
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let daemon = Daemon {
        file,
        config,
        allowed_losses,
        hang_up: listen(SignalKind::hangup())?,
        jobs: job,
        published,
        tally,
        waiting: Vec::new(),
        systemd: Systemd::of_environment(),
        pending: None,
        identified: Instant::now(),
        is_another: None,
    };
    let ended = tokio::select! {
        ended = daemon.keep() => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    tracing::info!("stopping");
    Systemd::stopping();
    ended
}

/// The loop, and what passes have in common.
struct Daemon {
    file: PathBuf,
    /// The configuration in force.
    config: Config,
    allowed_losses: Vec<Loss>,
    hang_up: Signal,
    jobs: mpsc::Receiver<Job>,
    published: watch::Sender<Published>,
    tally: Arc<Tally>,
    /// Who waits for the result of a renewal.
    waiting: Vec<Waiting>,
    systemd: Systemd,
    /// A configuration that waits for instance metadata.
    pending: Option<PendingConfiguration>,
    /// When instance metadata was last asked who this node is.
    identified: Instant,
    /// The answer, once it is there: no pass waits for instance metadata. Whether this node has changed.
    is_another: Option<JoinHandle<bool>>,
}

impl Daemon {
    /// Makes pass after pass, for ever.
    async fn keep(mut self) -> Result<(), DaemonError> {
        self.systemd.note_committed(&self.config.nats.config);
        let mut reconciler = self.first_reconciler().await?;
        let mut job = None::<Job>;
        let started = Instant::now();
        let mut began = reconciler.clock().now_seen_from(started);
        loop {
            let next = self.pass(&mut reconciler, job.take().filter(Job::is_awaited)).await;
            let clock = reconciler.clock();
            let mut is_reload = false;
            tokio::select! {
                () = self.systemd.sleep_until(&clock, next) => {}
                asked = self.jobs.recv() => job = asked,
                _ = self.hang_up.recv() => is_reload = true,
            }
            if is_reload {
                Systemd::reloading();
                self.read_again(&mut reconciler);
            }
            let begins = clock.now_seen_from(started);
            if begins < began - CLOCK_IS_SET_BACK && self.pending.is_none() {
                tracing::warn!("the clock was set back, so the credentials for AWS are fetched anew");
                self.pending = Some(PendingConfiguration::now(self.config.clone()));
            }
            began = begins;
            self.look_at_identity(&reconciler).await;
            self.apply_pending(&mut reconciler).await;
            if is_reload {
                self.systemd.reloaded();
            }
        }
    }

    /// Makes one pass, for the job if there is one, and returns when the next pass is due.
    async fn pass(&mut self, reconciler: &mut Reconciler, job: Option<Job>) -> OffsetDateTime {
        let before = self.published.borrow().status.clone();
        let clock = reconciler.clock();
        let started = Instant::now();
        self.published.send_modify(|published| published.begin(clock.now()));
        let (sender, steps) = mpsc::unbounded_channel();
        let relay = tokio::spawn(self.relay(steps, job.as_ref()));
        let progress = Progress::to(sender);
        let pass = if let Some(Job { wanted, answers }) = job {
            let (pass, renewal) = Renewal::begin(reconciler, before.as_ref(), wanted, progress).await;
            self.waiting.push(Waiting { renewal, answers, told_at: Instant::now() });
            pass
        } else {
            let pass = reconciler.pass(&PassRequest::default(), &progress).await;
            drop(progress);
            pass
        };
        // The result comes after the last step.
        let _cancelled = relay.await;
        self.tally.note(&pass, started.elapsed());
        log(before.as_ref(), &pass.status);
        self.systemd.note_committed(&self.config.nats.config);
        self.systemd.show(&pass.status, clock.now());
        self.published.send_modify(|published| published.end(pass.status.clone(), clock.now()));
        // Whoever gets an answer may ask for the status next, and the status is of this pass already.
        self.waiting.retain_mut(|asked| !asked.answer(&pass));
        pass.next
    }

    /// Passes the steps of a pass on: to the counters, to the status, and to whoever waits for a renewal.
    fn relay(&self, mut steps: mpsc::UnboundedReceiver<Step>, job: Option<&Job>) -> impl Future<Output = ()> + use<> {
        let (tally, published) = (Arc::clone(&self.tally), self.published.clone());
        let answers = self.waiting.iter().map(|asked| &asked.answers).chain(job.map(|job| &job.answers));
        let answers: Vec<_> = answers.cloned().collect();
        async move {
            while let Some(step) = steps.recv().await {
                tally.hear(&step);
                published.send_modify(|published| published.step(step.clone()));
                for client in &answers {
                    let _gone = client.send(Answer::Step(step.clone()));
                }
            }
        }
    }

    /// Waits for instance metadata without a limit: somebody would have to start a daemon that gave up.
    /// Meanwhile the status says why and shows what is served, jobs are refused, and a changed agent.toml is tried.
    async fn first_reconciler(&mut self) -> Result<Reconciler, IdentityError> {
        let mut failures = 0;
        loop {
            self.systemd.alive();
            let reason = match wire(&self.config, self.allowed_losses.clone()).await {
                Ok(parts) => return Ok(Reconciler::new(parts)),
                Err(error) if error.may_pass() => Reason::from(&error),
                Err(error) => return Err(error),
            };
            tracing::error!(code = reason.code().as_str(), "{reason}");
            let mut reconciler = Reconciler::new(wire_to_inspect(&self.config).await);
            let found = reconciler.inspect(vec![reason.clone()]).await;
            let clock = reconciler.clock();
            self.systemd.show(&found, clock.now());
            self.published.send_modify(|published| published.status = Some(found));
            failures += 1;
            let RenewalConfig { retry_min, retry_max, .. } = self.config.renewal;
            let pause = clock.now() + backoff(failures, retry_min, retry_max, fastrand::f64());
            let pause = self.systemd.sleep_until(&clock, pause);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    Some(job) = self.jobs.recv() => {
                        let _gone = job.answers.send(Answer::Refused(Refusal::Reason(Told::from(&reason))));
                    }
                    _ = self.hang_up.recv() => {
                        if let Ok(changed) = changed_configuration(&self.file, &self.config) {
                            self.config = changed;
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Reads agent.toml again. A usable configuration becomes the pending configuration. An unusable agent.toml ends
    /// the wait of an earlier pending configuration, and the configuration in force stays.
    fn read_again(&mut self, reconciler: &mut Reconciler) {
        self.pending = match changed_configuration(&self.file, &self.config) {
            Ok(changed) => Some(PendingConfiguration::now(changed)),
            Err(because) => {
                reconciler.note_not_in_force(because);
                None
            }
        };
    }

    /// Asks instance metadata again, every tenth round of discovery. A changed address or tag reaches names and settings as a
    /// changed agent.toml does.
    async fn look_at_identity(&mut self, reconciler: &Reconciler) {
        if let Some(answer) = self.is_another.take_if(|answer| answer.is_finished()) {
            if answer.await.unwrap_or(false) && self.pending.is_none() {
                tracing::info!("instance metadata describes this node anew");
                self.pending = Some(PendingConfiguration::now(self.config.clone()));
            }
            return;
        }
        let pause = self.config.discovery.interval * ROUNDS_PER_SECRET_POLL;
        if self.is_another.is_none() && self.pending.is_none() && self.identified.elapsed() >= pause {
            self.identified = Instant::now();
            let (config, node) = (self.config.clone(), reconciler.node().clone());
            self.is_another = Some(tokio::spawn(async move { has_changed(&config, &node).await }));
        }
    }

    /// Puts the pending configuration into force if its time has come and instance metadata answers.
    async fn apply_pending(&mut self, reconciler: &mut Reconciler) {
        let Some(pending) = self.pending.take_if(|pending| pending.next <= Instant::now()) else { return };
        match wire(&pending.config, self.allowed_losses.clone()).await {
            Ok(parts) => (self.config, *reconciler) = (pending.config, Reconciler::new(parts)),
            Err(error) => {
                let because = Reason::from(&error);
                log_not_in_force(&because);
                reconciler.note_not_in_force(because);
                self.pending = error.may_pass().then(|| pending.later(&self.config.renewal));
            }
        }
    }
}

/// A configuration that comes into force once instance metadata answers.
struct PendingConfiguration {
    config: Config,
    failures: u32,
    next: Instant,
}

impl PendingConfiguration {
    fn now(config: Config) -> Self {
        Self { config, failures: 0, next: Instant::now() }
    }

    /// The same configuration after another failure.
    fn later(self, renewal: &RenewalConfig) -> Self {
        let failures = self.failures + 1;
        let pause = backoff(failures, renewal.retry_min, renewal.retry_max, fastrand::f64());
        Self { failures, next: Instant::now() + pause, ..self }
    }
}

/// Somebody who waits for the result of a renewal.
struct Waiting {
    renewal: Renewal,
    answers: mpsc::UnboundedSender<Answer>,
    /// When the client last heard that the wait goes on.
    told_at: Instant,
}

/// How often a client hears that nats-server still loads the configuration.
const STILL_LOADS: Duration = Duration::from_secs(30);

impl Waiting {
    /// Answers if the result is clear, and returns whether it is.
    fn answer(&mut self, pass: &Pass) -> bool {
        let Some(result) = self.renewal.result(pass) else {
            if self.told_at.elapsed() >= STILL_LOADS {
                self.told_at = Instant::now();
                let _gone = self.answers.send(Answer::Step(Step::StillLoads));
            }
            return false;
        };
        let _gone = self.answers.send(match result {
            Ok(renewed) => Answer::Renewed(Box::new(renewed)),
            Err(refusal) => Answer::Refused(refusal),
        });
        true
    }
}

/// agent.toml as it is now, or why it can't be used.
fn changed_configuration(file: &std::path::Path, current: &Config) -> Result<Config, Reason> {
    let mut config = Config::load(file).map_err(|error| {
        let because = Reason::from(&error);
        log_not_in_force(&because);
        because
    })?;
    let fixed =
        |config: &Config| (config.state_directory.clone(), config.control_socket.clone(), config.metrics_listen);
    if fixed(&config) != fixed(current) {
        tracing::warn!("state.directory, control.socket and metrics.listen change only with a restart of the agent");
    }
    config.nats.keep_secrets_in(&current.state_directory);
    tracing::info!("read {} again", file.display());
    Ok(Config {
        state_directory: current.state_directory.clone(),
        control_socket: current.control_socket.clone(),
        metrics_listen: current.metrics_listen,
        ..config
    })
}

fn log_not_in_force(because: &Reason) {
    let reason = Reason::AgentConfigurationNotInForce { because: Box::new(because.clone()) };
    tracing::error!(code = reason.code().as_str(), "{reason}");
}

/// Logs the warnings and reasons that the pass before did not have, and a return to health.
fn log(before: Option<&Status>, now: &Status) {
    let is_new = |told: &Told, before: Option<&Vec<Told>>| {
        !before.into_iter().flatten().any(|before| before.identity == told.identity)
    };
    for warning in now.warnings.iter().filter(|warning| is_new(warning, before.map(|before| &before.warnings))) {
        tracing::warn!(code = warning.code, "{warning}");
    }
    let (state, is_same) = (now.state.to_string(), before.is_some_and(|before| before.state == now.state));
    if now.state == State::Healthy && !is_same {
        tracing::info!(state, "healthy");
    }
    let known = before.filter(|_| is_same).map(|before| &before.reasons);
    for reason in now.reasons.iter().filter(|reason| is_new(reason, known)) {
        if now.state == State::Failing {
            tracing::error!(state, code = reason.code, "failing: {reason}");
        } else {
            tracing::warn!(state, code = reason.code, "degraded: {reason}");
        }
    }
}
