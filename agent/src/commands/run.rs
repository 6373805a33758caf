//! `agent run`: the daemon.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::CommandError;
use super::renew::renew_once;
use crate::config::{Config, RenewalConfig};
use crate::daemon::control::{Answer, ControlSocket, Job};
use crate::daemon::metrics;
use crate::daemon::systemd::Service;
use crate::error::with_causes;
use crate::progress::Progress;
use crate::reconcile::{Parts, Pass, Reconciler, Wanted};
use crate::schedule::backoff;
use crate::state::lock::Lock;
use crate::status::{State, Status};
use crate::wiring::{WiringError, wire, wire_to_inspect};

/// What is more than a clock that is corrected a little. The SDK keeps credentials, and the token for instance metadata, for
/// as long as the wall clock says: those that it got while that was ahead end long before.
const CLOCK_IS_SET_BACK: Duration = Duration::from_mins(1);

/// Runs until SIGTERM or SIGINT. SIGHUP reads the configuration again.
///
/// Stopping in the middle of a pass is safe: whatever it had begun is taken up by the next start, as after a crash.
pub async fn run(file: &Path, config: Config, allow_loss: Vec<String>) -> Result<ExitCode, CommandError> {
    let _lock = Lock::take(&config.state_directory)?;
    let metrics_port = metrics::bind(config.metrics_listen).await?;
    let control = ControlSocket::bind(&config.control_socket)?;
    let (status, watched) = watch::channel(None::<Status>);
    let (jobs, job) = mpsc::channel(1);
    tokio::spawn(metrics::serve(metrics_port, watched.clone()));
    tokio::spawn(control.serve(watched, jobs));
    let socket = config.control_socket.clone();
    let mut signals = Signals::new()?;
    let ended = tokio::select! {
        ended = keep(file, config, allow_loss, &mut signals.hang_up, job, status) => ended,
        _ = signals.terminate.recv() => Ok(()),
        _ = signals.interrupt.recv() => Ok(()),
    };
    tracing::info!("stopping");
    Service::stopping();
    let _gone = std::fs::remove_file(socket);
    ended.map(|()| ExitCode::SUCCESS)
}

struct Signals {
    hang_up: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, CommandError> {
        let listen =
            |kind| signal(kind).map_err(|source| CommandError::System { action: "listen for signals", source });
        Ok(Self {
            hang_up: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }
}

/// Pass after pass, for ever.
async fn keep(
    file: &Path,
    mut config: Config,
    allow_loss: Vec<String>,
    hang_up: &mut Signal,
    mut jobs: mpsc::Receiver<Job>,
    status: watch::Sender<Option<Status>>,
) -> Result<(), CommandError> {
    let mut service = Service::of_environment();
    service.note_committed(&config.nats.config);
    let parts = patiently_assemble(file, &mut config, &allow_loss, hang_up, &mut jobs, &status, &mut service).await?;
    let mut reconciler = Reconciler::new(parts);
    let mut job = None::<Job>;
    let started = Instant::now();
    let mut began = reconciler.clock().now_seen_from(started);
    let mut unused = None::<Unused>;
    loop {
        let before = status.borrow().clone();
        let pass = match job.take() {
            Some(job) => serve(&mut reconciler, before.as_ref(), job).await,
            None => reconciler.pass(&Wanted::default(), &Progress::default()).await,
        };
        log(before.as_ref(), &pass);
        let (next, clock) = (pass.next, reconciler.clock());
        service.note_committed(&config.nats.config);
        service.show(&pass.status, clock.now());
        status.send_replace(Some(pass.status));
        let mut is_asked = false;
        tokio::select! {
            () = service.sleep_until(&clock, next) => {}
            asked = jobs.recv() => job = asked,
            _ = hang_up.recv() => {
                is_asked = true;
                service.reloading();
                match read_again(file, &config) {
                    Ok(changed) => unused = Some(Unused::now(changed)),
                    Err(why) => {
                        unused = None;
                        reconciler.note_unread(why);
                    }
                }
            }
        }
        let begins = clock.now_seen_from(started);
        if begins < began - CLOCK_IS_SET_BACK && unused.is_none() {
            tracing::warn!("the clock was set back, so the credentials for AWS are fetched anew");
            unused = Some(Unused::now(config.clone()));
        }
        began = begins;
        if let Some(waiting) = unused.take_if(|waiting| waiting.next <= Instant::now()) {
            match wire(&waiting.config, allow_loss.clone()).await {
                Ok(parts) => (config, reconciler) = (waiting.config, Reconciler::new(parts)),
                Err(error) => {
                    reconciler.note_unread(stays(&error));
                    unused = error.may_pass().then(|| waiting.later(&config.renewal));
                }
            }
        }
        if is_asked {
            service.reloaded();
        }
    }
}

/// A configuration that is to be put to use, which takes instance metadata.
struct Unused {
    config: Config,
    failures: u32,
    next: Instant,
}

impl Unused {
    fn now(config: Config) -> Self {
        Self { config, failures: 0, next: Instant::now() }
    }

    /// The same after one more failure.
    fn later(self, renewal: &RenewalConfig) -> Self {
        let failures = self.failures + 1;
        let pause = backoff(failures, renewal.retry_min, renewal.retry_max, fastrand::f64());
        Self { failures, next: Instant::now() + pause, ..self }
    }
}

/// Says that the configuration in force stays, and why.
fn stays(error: &dyn std::error::Error) -> String {
    let why = format!(
        "the configuration in force stays, as the one that was read last can't be used yet ({}); if it is to be corrected, \
         reload the agent thereafter",
        with_causes(error)
    );
    tracing::error!("{why}");
    why
}

async fn serve(reconciler: &mut Reconciler, before: Option<&Status>, job: Job) -> Pass {
    let (sender, mut steps) = mpsc::unbounded_channel();
    let answers = job.answers.clone();
    let relay = tokio::spawn(async move {
        while let Some(step) = steps.recv().await {
            let _gone = answers.send(Answer::Step(step));
        }
    });
    let (pass, renewed) = renew_once(reconciler, before, job.wanted, Progress::to(sender)).await;
    // The result comes after the last step.
    let _cancelled = relay.await;
    let _gone = job.answers.send(match renewed {
        Ok(renewed) => Answer::Renewed(Box::new(renewed)),
        Err(reason) => Answer::Refused(reason),
    });
    pass
}

/// The parts, however long instance metadata stays away: a daemon that gave up would have to be started by hand.
/// Meanwhile the status says why and shows what is served, jobs are refused, and a changed configuration is tried.
async fn patiently_assemble(
    file: &Path,
    config: &mut Config,
    allow_loss: &[String],
    hang_up: &mut Signal,
    jobs: &mut mpsc::Receiver<Job>,
    status: &watch::Sender<Option<Status>>,
    service: &mut Service,
) -> Result<Parts, WiringError> {
    let mut failures = 0;
    loop {
        service.alive();
        let why = match wire(config, allow_loss.to_vec()).await {
            Err(error) if error.may_pass() => with_causes(&error),
            assembled => return assembled,
        };
        tracing::error!("{why}");
        let mut reconciler = Reconciler::new(wire_to_inspect(config).await);
        let (found, clock) = (reconciler.inspect(why.clone()).await, reconciler.clock());
        service.show(&found, clock.now());
        status.send_replace(Some(found));
        failures += 1;
        let RenewalConfig { retry_min, retry_max, .. } = config.renewal;
        let pause = clock.now() + backoff(failures, retry_min, retry_max, fastrand::f64());
        let pause = service.sleep_until(&clock, pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                Some(job) = jobs.recv() => {
                    let _gone = job.answers.send(Answer::Refused(why.clone()));
                }
                _ = hang_up.recv() => {
                    if let Ok(changed) = read_again(file, config) {
                        *config = changed;
                        break;
                    }
                }
            }
        }
    }
}

/// The configuration as it is now, unless it can't be used: then the one in force stays.
fn read_again(file: &Path, current: &Config) -> Result<Config, String> {
    match Config::load(file) {
        Ok(config) => {
            let fixed = |config: &Config| {
                (config.state_directory.clone(), config.control_socket.clone(), config.metrics_listen)
            };
            if fixed(&config) != fixed(current) {
                tracing::warn!(
                    "state.directory, control.socket and metrics.listen change only with a restart of the agent"
                );
            }
            tracing::info!("read {} again", file.display());
            Ok(Config {
                state_directory: current.state_directory.clone(),
                control_socket: current.control_socket.clone(),
                metrics_listen: current.metrics_listen,
                ..config
            })
        }
        Err(error) => Err(stays(&error)),
    }
}

/// Says what changed since the pass before, and nothing else.
fn log(before: Option<&Status>, pass: &Pass) {
    let (state, reasons) = (pass.status.state, &pass.status.reasons);
    for warning in &pass.status.warnings {
        if before.is_none_or(|before| !before.warnings.contains(warning)) {
            tracing::warn!("{warning}");
        }
    }
    if before.is_some_and(|before| before.state == state && before.reasons == *reasons) {
        return;
    }
    let field = state.to_string();
    match state {
        State::Healthy => tracing::info!(state = field, "healthy"),
        State::Degraded => tracing::warn!(state = field, "degraded: {}", reasons.join("; ")),
        State::Failing => tracing::error!(state = field, "failing: {}", reasons.join("; ")),
    }
}
