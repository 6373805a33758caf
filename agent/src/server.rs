//! The server seam: everything that the agent does to nats-server, and everything that the agent observes of
//! nats-server.

pub mod apart;
pub mod arguments;
mod clients;
mod inquiry;
pub mod jetstream;
pub mod monitor;
pub mod probe;
pub mod process;
pub mod remotes;
pub mod standing;
pub mod system;
pub mod trial;
mod verifier;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;
use zeroize::Zeroizing;

use self::arguments::Arguments;
use self::inquiry::Inquiry;
use self::jetstream::Look;
use self::monitor::{Routez, Varz};
use self::probe::{Opening, Port, ProbeError, Prober, Silence};
use self::process::{NatsProcess, ProcessError};
use self::remotes::Remotes;
use self::system::{Answer, Link, SystemConnection, SystemError};
use self::trial::{Prediction, predict};
use crate::clock::Clock;
use crate::conf::environment::Environment;
use crate::conf::listeners::{First, Listeners};
use crate::conf::loss::Certificate;
use crate::conf::reader;
use crate::conf::system::Obstacle;
use crate::conf::tree::{Map, Source};
use crate::conf::trial::Listener;
use crate::conf::write::{self, HIDDEN};
use crate::config::NatsConfig;
use crate::digest::sha256_hex;
use crate::error::with_causes;
use crate::x509::chain::{Chain, StoredChain};
use crate::x509::leaf::Leaf;

/// The oldest nats-server that the agent works with: 2.10 is the first version with pooled routes.
pub const OLDEST: (u32, u32) = (2, 10);

/// The limit for `nats-server -t`. The command takes milliseconds, and longer while the machine boots.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_OUTPUT: u64 = 64 * 1024;

/// Whether nats-server runs, by its pid file and its process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The agent has not observed nats-server yet.
    Unseen,
    /// nats-server doesn't run, as before its first start. The text says how the agent knows.
    Absent(String),
    /// nats-server runs with this pid.
    Running(i32),
    /// The pid file names another process, or can't be used.
    Foreign(String),
    /// The pid file names this pid, and the system hides the process from the agent.
    Hidden(i32),
}

/// How nats-server was started, and how its JetStream does.
#[derive(Clone, Debug, Default)]
pub struct Condition {
    /// The arguments beside `-c`.
    pub arguments: Arguments,
    /// What monitoring shows of JetStream.
    pub jetstream: Look,
}

/// When a reload began and ended, by the clock of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// When nats-server was told to reload.
    pub begun: OffsetDateTime,
    /// When nats-server had loaded the configuration.
    pub ended: OffsetDateTime,
}

/// A round of closing clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// The clients that were closed.
    pub closed: u64,
    /// The clients that have to be closed and are open.
    pub open: u64,
}

/// The chain that a port serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// SHA-256 of the leaf's DER, hexadecimal.
    pub sha256: String,
    /// The end of validity, where the leaf can be read.
    pub not_after: Option<OffsetDateTime>,
    /// The leaf and the CAs presented with it.
    pub chain: Chain,
}

impl Served {
    /// The chain of a handshake, with the digest of its leaf.
    #[must_use]
    pub fn of(chain: Chain) -> Self {
        let not_after = Leaf::parse(chain.leaf()).ok().map(|leaf| leaf.not_after);
        Self { sha256: sha256_hex(chain.leaf()), not_after, chain }
    }
}

/// What tells one start of nats-server from another: each start writes the pid file anew, before anything can fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartMark {
    /// The pid in the file.
    pub pid: i32,
    /// When the file was written, in nanoseconds since 1970.
    pub written: i128,
}

/// What a nats-server that runs is about.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It takes clients.
    Running,
    /// It takes no client yet, for instance while JetStream recovers.
    Starting,
    /// It took clients, and takes none any more.
    Draining,
    /// It loads a configuration, and new connections wait.
    Reloading,
    /// It has as many clients as it takes.
    Full,
}

/// A TLS listener beside the client and the route port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// `host:port`, as it was dialled.
    pub address: String,
    /// Whose certificate the listener is to serve.
    pub certificate: Certificate,
    /// What the listener serves, or why no certificate was seen.
    pub served: Result<Served, Silence>,
}

/// How long a handshake stays valid evidence while `/varz` reports no newer load.
const HANDSHAKE_STANDS: Duration = Duration::from_mins(5);

/// One observation of nats-server from outside.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Whether nats-server runs.
    pub presence: Presence,
    /// When the process started, if it runs.
    pub started: Option<OffsetDateTime>,
    /// The last start that wrote the pid file.
    pub start: Option<StartMark>,
    /// The answer to `/varz`, if monitoring answers.
    pub varz: Option<Varz>,
    /// The answer to `/routez`, if monitoring answers.
    pub routez: Option<Routez>,
    /// What the client port serves, or why no certificate was seen.
    pub client: Result<Served, Silence>,
    /// What the route port serves, or why no certificate was seen.
    pub route: Result<Served, Silence>,
    /// What the other TLS listeners serve, or why no certificate was seen.
    pub others: BTreeMap<Port, Other>,
    /// When the two ports were probed.
    pub asked: Instant,
    /// The connection to the system account.
    pub system: Link,
}

impl Observed {
    /// The value before the first observation.
    #[must_use]
    pub fn unseen() -> Self {
        Self { presence: Presence::Unseen, ..Self::absent(String::new()) }
    }

    /// The observation of a nats-server that doesn't run.
    #[must_use]
    pub fn absent(why: String) -> Self {
        let none = || Err(Silence::NotRunning);
        Self {
            presence: Presence::Absent(why),
            started: None,
            start: None,
            varz: None,
            routez: None,
            client: none(),
            route: none(),
            others: BTreeMap::new(),
            asked: Instant::now(),
            system: Link::Unwanted,
        }
    }

    /// What the listeners serve with the agent's certificate, each that shows a certificate.
    pub(crate) fn each_served(&self) -> impl Iterator<Item = &Served> {
        let own = self.others.values().filter(|other| other.certificate == Certificate::Own);
        [&self.client, &self.route].into_iter().chain(own.map(|other| &other.served)).flatten()
    }

    /// Whether a port serves the leaf with this SHA-256.
    pub(crate) fn shows(&self, sha256: &str) -> bool {
        self.each_served().any(|served| served.sha256 == sha256)
    }

    /// The number of ports, of three, that answered as a nats-server does.
    pub(crate) fn ports_seen(&self) -> u8 {
        u8::from(self.client.is_ok()) + u8::from(self.route.is_ok()) + u8::from(self.varz.is_some())
    }

    /// Whether the last handshakes still show what the ports serve. The server and its loaded configuration must be the
    /// same, and the handshakes successful and recent. Each handshake writes a line or two to the log of nats-server.
    fn still_holds(&self, presence: &Presence, varz: Option<&Varz>) -> bool {
        self.may_hold(presence)
            && self.varz.as_ref().zip(varz).is_some_and(|(known, varz)| known.shows_the_same_load(varz))
    }

    /// Whether the last handshakes hold if nats-server has loaded nothing since.
    fn may_hold(&self, presence: &Presence) -> bool {
        self.presence == *presence
            && self.varz.is_some()
            && matches!(self.client, Ok(_) | Err(Silence::Full(_)))
            && self.route.is_ok()
            && self.others.values().all(|other| other.served.is_ok())
            && self.asked.elapsed() < HANDSHAKE_STANDS
    }
}

/// Why a call to nats-server failed.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The binary can't be started.
    #[error("could not run {} {arguments}; install nats-server, or set nats.server to its path", .server.display())]
    Spawn {
        /// The binary.
        server: PathBuf,
        /// The arguments.
        arguments: String,
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
    /// The binary did not end within the limit.
    #[error("{} {arguments} did not end within {} s", .server.display(), COMMAND_TIMEOUT.as_secs())]
    Slow {
        /// The binary.
        server: PathBuf,
        /// The arguments.
        arguments: String,
    },
    /// The binary is another program, or an old nats-server.
    #[error("{} is {found:?}; the agent needs nats-server {}.{} or later: install one, or set nats.server to its path", .server.display(), OLDEST.0, OLDEST.1)]
    Version {
        /// The binary.
        server: PathBuf,
        /// What `--version` printed.
        found: String,
    },
    /// `nats-server -t` refuses the configuration.
    #[error(
        "nats-server -t refuses the configuration, so it is not applied; correct nats.template, nats.include or the setting that it \
         names: {message}"
    )]
    Refused {
        /// The output of nats-server, without the time.
        message: String,
    },
    /// There is no process to signal, or the process is not ours.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The process is not ready for a signal.
    #[error(
        "nats-server (pid {pid}) doesn't listen on its client port {address}, so it is starting or draining, and a signal \
         now could kill or hang it; it is signalled when it listens"
    )]
    NotListening {
        /// The process.
        pid: i32,
        /// Its client port.
        address: SocketAddr,
        /// Why the probe failed.
        #[source]
        source: ProbeError,
    },
}

/// Variables of the environment by their names.
pub type Variables = BTreeMap<String, Zeroizing<String>>;

/// The operations on nats-server that the agent needs.
#[async_trait]
pub trait Server: Send + Sync {
    /// Has the binary of the server check a configuration, and returns the digest that it prints (from 2.11 on). The
    /// binary's environment is `environment` alone.
    async fn validate(&self, candidate: &Path, environment: &Variables) -> Result<Option<String>, ServerError>;

    /// Tries the settings `new` in children of nats-server: a start, and a reload from the settings `running`.
    /// `running` is `None` where no settings run. `nats_pid` is the process of the running nats-server.
    async fn predict(&self, running: Option<&Map>, new: &Map, nats_pid: Option<i32>) -> Prediction;

    /// Observes the running server. Handshakes present `chain`; without a chain they present no certificate.
    ///
    /// The method never fails: a part that can't be observed holds the reason. While the
    /// handshakes of `last` are valid, the ports are not probed again.
    async fn observe(&self, chain: Option<&StoredChain>, at: &Listeners, last: Option<&Observed>) -> Observed;

    /// Looks at what changes seldom, in regular passes alone. `streams` says whether streams are looked at. `None`: JetStream isn't
    /// looked at.
    ///
    /// The method never fails: a part that can't be seen is left out.
    async fn condition(&self, _chain: Option<&StoredChain>, _at: &Listeners, _streams: Option<bool>) -> Condition {
        Condition::default()
    }

    /// The number of clients that a reload disconnected. `None`: nats-server gives no answer.
    async fn closed_by(&self, _chain: &StoredChain, _at: &Listeners, _load: &Load) -> Option<u64> {
        None
    }

    /// Closes clients that presented a certificate and were connected before `than`, a bounded number of them. `None`: nats-server
    /// tells of no client.
    async fn close_older(&self, _chain: &StoredChain, _at: &Listeners, _than: OffsetDateTime) -> Option<Cut> {
        None
    }

    /// The gateways with a connection from before `than`, and the leaf nodes that no command closes. `None`: nats-server gives no
    /// answer.
    async fn remotes(&self, _chain: &StoredChain, _at: &Listeners, _than: OffsetDateTime) -> Option<Remotes> {
        Some(Remotes::default())
    }

    /// What of the running server stands in the way of a first user, which nobody but the agent needs.
    async fn obstacle_to_a_user(&self, chain: Option<&StoredChain>, at: &Listeners) -> Option<Obstacle>;

    /// Tells the running server to read its configuration again. An answer says that the server is done.
    async fn reload(&self, by: By, chain: &StoredChain, at: &Listeners) -> Result<Asked, ServerError>;
}

/// How a server is told to read its configuration again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Through the system account where its connection is open, and by a signal otherwise.
    System,
    /// By a signal alone.
    Signal,
}

/// A server that was told to read its configuration again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The process.
    pub pid: i32,
    /// What the server answered. `None`: nobody answers a signal, or no answer came in time.
    pub answer: Option<Answer>,
}

/// The real nats-server of this machine.
pub struct NatsServer {
    binary: PathBuf,
    config: PathBuf,
    /// The state directory, in which trials are made.
    state: PathBuf,
    system: Option<SystemConnection>,
    /// When the client port was probed last.
    client_probed: Mutex<Option<Instant>>,
}

/// How long nats-server may take to notice that a probe has ended.
const PROBE_ENDS: Duration = Duration::from_millis(100);
/// The pause between two probes of a client port that is throttled. The least limit is one connection a second.
const THROTTLED: Duration = Duration::from_millis(1_100);

impl NatsServer {
    /// The nats-server that `[nats]` describes.
    #[must_use]
    pub fn new(nats: &NatsConfig, state: &Path) -> Self {
        Self {
            binary: nats.server.clone(),
            config: nats.config.clone(),
            state: state.to_owned(),
            system: SystemConnection::of(nats, state),
            client_probed: Mutex::default(),
        }
    }

    /// Probes the listeners. A client port that nats-server throttles is spared where it was probed just now.
    async fn probe(&self, chain: Option<&StoredChain>, at: &Listeners) -> Probes {
        let spares = at.client_is_throttled && self.pause_of_client_port().is_some();
        if !spares {
            self.note_client_probe();
        }
        let probes = Probes::of(chain, at, spares).await;
        if !spares {
            self.note_client_probe();
        }
        probes
    }

    /// Notes a connection to the client port, at its begin and at its end: nats-server counts a connection when it takes the
    /// connection up, which may be late.
    fn note_client_probe(&self) {
        *self.client_probed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How long a throttled client port is left alone. `None`: it may be probed.
    fn pause_of_client_port(&self) -> Option<Duration> {
        let probed = (*self.client_probed.lock().unwrap_or_else(PoisonError::into_inner))?;
        THROTTLED.checked_sub(probed.elapsed()).filter(|pause| !pause.is_zero())
    }

    /// Waits until a throttled client port may be connected to, and counts a connection.
    async fn await_client_port(&self, at: &Listeners) {
        if let (true, Some(pause)) = (at.client_is_throttled, self.pause_of_client_port()) {
            tokio::time::sleep(pause).await;
        }
        self.note_client_probe();
    }

    /// The version of the binary. A version before [`OLDEST`] is an error.
    pub async fn version(&self) -> Result<String, ServerError> {
        let (_, output) = self.run(&["--version".as_ref()], &Variables::new()).await?;
        let found = output.trim().to_owned();
        let version = found.rsplit(['v', ' ']).next().unwrap_or_default();
        let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
        match (parts.next().flatten(), parts.next().flatten()) {
            (Some(major), Some(minor)) if found.starts_with("nats-server") && (major, minor) >= OLDEST => {
                Ok(version.to_owned())
            }
            _ => Err(ServerError::Version { server: self.binary.clone(), found }),
        }
    }

    /// Runs the binary. Its environment is `environment` and `PATH` alone, so that no other variable changes what a text means.
    async fn run(
        &self,
        arguments: &[&std::ffi::OsStr],
        environment: &Variables,
    ) -> Result<(bool, String), ServerError> {
        let shown = || arguments.iter().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let spawn = |source| ServerError::Spawn { server: self.binary.clone(), arguments: shown(), source };
        let mut child = tokio::process::Command::new(&self.binary)
            .args(arguments)
            .env_clear()
            // A script in the place of the binary looks programs up in `PATH`.
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(environment.iter().map(|(name, value)| (name, value.as_str())))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(spawn)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let finish = async {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            tokio::try_join!(
                async {
                    if let Some(pipe) = stdout { pipe.take(MAX_OUTPUT).read_to_end(&mut out).await } else { Ok(0) }
                },
                async {
                    if let Some(pipe) = stderr { pipe.take(MAX_OUTPUT).read_to_end(&mut err).await } else { Ok(0) }
                },
            )?;
            let status = child.wait().await?;
            out.extend_from_slice(&err);
            Ok((status.success(), String::from_utf8_lossy(&out).into_owned()))
        };
        tokio::time::timeout(COMMAND_TIMEOUT, finish)
            .await
            .map_err(|_elapsed| ServerError::Slow { server: self.binary.clone(), arguments: shown() })?
            .map_err(spawn)
    }
}

#[async_trait]
impl Server for NatsServer {
    async fn validate(&self, candidate: &Path, environment: &Variables) -> Result<Option<String>, ServerError> {
        self.version().await?;
        let arguments = ["-t".as_ref(), "-c".as_ref(), candidate.as_os_str()];
        let (accepted, output) = self.run(&arguments, environment).await?;
        if accepted {
            return Ok(digest_in(&output));
        }
        // nats-server quotes the text that it refuses, and that text may hold a secret.
        Err(ServerError::Refused { message: without_secrets(output.trim(), candidate, environment) })
    }

    async fn predict(&self, running: Option<&Map>, new: &Map, nats_pid: Option<i32>) -> Prediction {
        if let Err(error) = trial::sweep(&self.state) {
            tracing::warn!("could not remove what an earlier trial left in {}: {error}", self.state.display());
        }
        // Relative paths of the settings belong to the directory in which nats-server was started.
        let cwd = nats_pid.and_then(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).ok());
        predict(&self.binary, running, new, &self.state, cwd.as_deref(), nats_pid).await
    }

    async fn observe(&self, chain: Option<&StoredChain>, at: &Listeners, last: Option<&Observed>) -> Observed {
        let (mut started, mut at) = (None, at.clone());
        let mut start = process::start_mark(&at.pid_file);
        let presence = match NatsProcess::find(&at.pid_file, &self.binary, &self.config) {
            Ok(process) => {
                started = process.started(Clock::System.now());
                start = process::start_mark(&process.pid_file).filter(|mark| mark.pid == process.pid);
                at = process.arguments.over(&at);
                Presence::Running(process.pid)
            }
            Err(ProcessError::Hidden { pid }) => Presence::Hidden(pid),
            Err(ProcessError::Absent(why)) => {
                let Probes { client, route, .. } = self.probe(chain, &at).await;
                let seen = match &client {
                    Ok(_) => "serves TLS: check nats.pid_file and nats.listen",
                    Err(Silence::Plain(_)) => "speaks NATS without TLS: check nats.pid_file and nats.listen",
                    Err(_) => return Observed { start, client, route, ..Observed::absent(why) },
                };
                Presence::Foreign(format!("{why}, and yet {} {seen}", at.client))
            }
            Err(error) => Presence::Foreign(with_causes(&error)),
        };
        let system = match (&presence, chain) {
            (Presence::Running(_), Some(chain)) => self.link(chain, &at).await,
            _ => Link::Unwanted,
        };
        let told = self.told_by_itself(system, chain, &at);
        let ((varz, routez, system), probes) = if let Some(last) = last.filter(|last| last.may_hold(&presence)) {
            let (varz, routez, system) = told.await;
            if last.still_holds(&presence, varz.as_ref()) {
                return Observed { started, start, varz, routez, system, ..last.clone() };
            }
            ((varz, routez, system), self.probe(chain, &at).await)
        } else {
            // A frozen nats-server answers nobody. Its time-outs pass at the same time.
            tokio::join!(told, self.probe(chain, &at))
        };
        let Probes { client, route, others } = probes;
        Observed { presence, started, start, varz, routez, client, route, others, asked: Instant::now(), system }
    }

    async fn condition(&self, chain: Option<&StoredChain>, at: &Listeners, streams: Option<bool>) -> Condition {
        let (arguments, at) = self.as_started(at);
        let Some(with_streams) = streams else { return Condition { arguments, jetstream: Look::Unanswered } };
        let jetstream = jetstream::look(self.inquiry(chain, &at), with_streams).await.unwrap_or_else(|error| {
            tracing::debug!("{}", with_causes(&error));
            Look::Unanswered
        });
        Condition { arguments, jetstream }
    }

    async fn closed_by(&self, chain: &StoredChain, at: &Listeners, load: &Load) -> Option<u64> {
        let (_, at) = self.as_started(at);
        let closed = clients::closed_by(self.inquiry(Some(chain), &at), load).await;
        closed.inspect_err(|error| tracing::debug!("{}", with_causes(error))).ok()
    }

    async fn close_older(&self, chain: &StoredChain, at: &Listeners, than: OffsetDateTime) -> Option<Cut> {
        let (_, at) = self.as_started(at);
        let cut = clients::close_older(self.inquiry(Some(chain), &at), than).await;
        cut.inspect_err(|error| tracing::debug!("{}", with_causes(error))).ok()
    }

    async fn remotes(&self, chain: &StoredChain, at: &Listeners, than: OffsetDateTime) -> Option<Remotes> {
        let (_, at) = self.as_started(at);
        let remotes = remotes::look(self.inquiry(Some(chain), &at), at.leaf_nodes, than).await;
        remotes.inspect_err(|error| tracing::debug!("{}", with_causes(error))).ok()
    }

    async fn obstacle_to_a_user(&self, chain: Option<&StoredChain>, at: &Listeners) -> Option<Obstacle> {
        let (arguments, at) = self.as_started(at);
        if arguments.name_a_user() {
            return Some(Obstacle::Arguments);
        }
        // The agent's own connection may still be open, and sends a user.
        match clients::send_users(Inquiry { system: None, ..self.inquiry(chain, &at) }).await {
            Ok(Some(false)) => None,
            Ok(Some(true)) => Some(Obstacle::ClientsSendUsers),
            Ok(None) => Some(Obstacle::ClientsUnknown),
            Err(error) => {
                tracing::debug!("{}", with_causes(&error));
                Some(Obstacle::ClientsUnknown)
            }
        }
    }

    /// A SIGHUP kills nats-server in its first milliseconds, and a reload hangs 2.15.1 in lame duck mode. The client port is
    /// closed in both states, so the client port must be open before the reload.
    ///
    /// The system account is asked where its connection is open. A server that gives no answer in time was told all the
    /// same, so no signal follows at once.
    async fn reload(&self, by: By, chain: &StoredChain, at: &Listeners) -> Result<Asked, ServerError> {
        let process = NatsProcess::find(&at.pid_file, &self.binary, &self.config)?;
        let (pid, at) = (process.pid, process.arguments.over(at));
        self.await_client_port(&at).await;
        let probed = match Prober::presenting(chain) {
            Ok(prober) => prober.served(&at.client.to_string(), opening(Port::Client, at.client_first)).await,
            Err(error) => Err(error),
        };
        self.note_client_probe();
        if let Err(source @ (ProbeError::Connect { .. } | ProbeError::Slow { .. })) = probed {
            return Err(ServerError::NotListening { pid, address: at.client, source });
        }
        // A reload that meets the ended probe can't authenticate the probe, and leaves an error in nats-server's log.
        tokio::time::sleep(PROBE_ENDS).await;
        if let (By::System, Some(system)) = (by, &self.system)
            && system.is_up_at(at.client).await
        {
            match system.reload().await {
                Ok(answer) => {
                    let shown = |said: String| {
                        // The values of settings follow, and may be secrets.
                        let said = said.split_once(": old=").map_or(said.as_str(), |(said, _)| said);
                        without_secrets(said, &self.config, &Variables::new())
                    };
                    let answer = match answer {
                        Answer::Refused(said) => Answer::Refused(shown(said)),
                        Answer::Loaded => Answer::Loaded,
                    };
                    return Ok(Asked { pid, answer: Some(answer) });
                }
                // The user is of another account, so nobody was told.
                Err(SystemError::NoResponders { .. }) => {}
                Err(error) => {
                    tracing::debug!("{}", with_causes(&error));
                    return Ok(Asked { pid, answer: None });
                }
            }
        }
        process.hang_up()?;
        Ok(Asked { pid, answer: None })
    }
}

impl NatsServer {
    /// The arguments of the running server, and where it listens with them.
    fn as_started(&self, at: &Listeners) -> (Arguments, Listeners) {
        let found = NatsProcess::find(&at.pid_file, &self.binary, &self.config);
        let arguments = found.map(|process| process.arguments).unwrap_or_default();
        let at = arguments.over(at);
        (arguments, at)
    }

    fn inquiry<'a>(&'a self, ours: Option<&'a StoredChain>, at: &'a Listeners) -> Inquiry<'a> {
        Inquiry { system: self.system.as_ref(), monitor: &at.monitor, ours }
    }

    /// Keeps the connection to the system account open.
    async fn link(&self, chain: &StoredChain, at: &Listeners) -> Link {
        let Some(system) = &self.system else { return Link::Unwanted };
        let dials = system.would_dial(at.client).await;
        if dials {
            self.await_client_port(at).await;
        }
        let kept = system.keep(chain, at.client, at.client_first).await;
        if dials {
            self.note_client_probe();
        }
        match kept {
            Ok(()) => Link::Up,
            Err(error) => Link::down(&error),
        }
    }

    /// What the server tells of itself and of its routes: through the system account, or else by its monitoring port. A
    /// connection that gives no answer counts as down.
    async fn told_by_itself(
        &self,
        mut link: Link,
        chain: Option<&StoredChain>,
        at: &Listeners,
    ) -> (Option<Varz>, Option<Routez>, Link) {
        if let (Some(system), Link::Up) = (&self.system, &link) {
            match tokio::try_join!(system.varz(), system.routez()) {
                Ok((varz, routez)) => return (Some(varz), Some(routez), link),
                Err(error) => link = Link::down(&error),
            }
        }
        let (varz, routez) = tokio::join!(monitor::varz(&at.monitor, chain), monitor::routez(&at.monitor, chain));
        if let Err(error) = &varz {
            tracing::debug!("{}", with_causes(error));
        }
        (varz.ok(), routez.ok(), link)
    }
}

/// What the TLS listeners serve.
struct Probes {
    client: Result<Served, Silence>,
    route: Result<Served, Silence>,
    others: BTreeMap<Port, Other>,
}

impl Probes {
    /// Probes every listener at the same time, each once. `spares`: all but the client port.
    async fn of(chain: Option<&StoredChain>, at: &Listeners, spares: bool) -> Self {
        let prober = match chain.map_or_else(Prober::anonymous, Prober::presenting) {
            Ok(prober) => prober,
            Err(error) => {
                let silence = Silence::from(&error);
                return Self { client: Err(silence.clone()), route: Err(silence), others: BTreeMap::new() };
            }
        };
        let probe = async |address: String, opening: Opening| {
            prober.served(&address, opening).await.map(Served::of).map_err(|error| Silence::from(&error))
        };
        let others = at.others.iter().filter_map(|other| {
            let port = port_of(other.listener)?;
            let opening = opening(port, other.first);
            Some(async move {
                let (address, certificate) = (other.address.clone(), other.certificate);
                (port, Other { served: probe(address.clone(), opening).await, address, certificate })
            })
        });
        let (client, route, others) = tokio::join!(
            async {
                let opening = opening(Port::Client, at.client_first);
                if spares { Err(Silence::Spared) } else { probe(at.client.to_string(), opening).await }
            },
            probe(at.route.to_string(), Port::Route.opening()),
            join_all(others)
        );
        let mut others: BTreeMap<_, Other> = others.into_iter().collect();
        // Without a word nats-server turns MQTT clients away by the same limit (`createMQTTClient` in server/mqtt.go).
        if let (Err(Silence::Full(said)), Some(mqtt)) = (&client, others.get_mut(&Port::Mqtt))
            && let Err(Silence::Failed(_)) = mqtt.served
        {
            mqtt.served = Err(Silence::Full(said.clone()));
        }
        Self { client, route, others }
    }
}

fn opening(port: Port, first: First) -> Opening {
    match (port, first) {
        (Port::Client | Port::Leafnode, First::Client | First::Fallback) => Opening::TlsThenGreeting,
        (Port::Client | Port::Leafnode, First::Either) => Opening::Either,
        (port, _) => port.opening(),
    }
}

/// The port of a listener that can have TLS.
pub(crate) fn port_of(listener: Listener) -> Option<Port> {
    match listener {
        Listener::Client => Some(Port::Client),
        Listener::Cluster => Some(Port::Route),
        Listener::Gateway => Some(Port::Gateway),
        Listener::Leafnodes => Some(Port::Leafnode),
        Listener::Websocket => Some(Port::Websocket),
        Listener::Mqtt => Some(Port::Mqtt),
        Listener::Https => Some(Port::Monitor),
        Listener::Http | Listener::Profiling => None,
    }
}

/// What nats-server said of a configuration, without the secrets of the configuration. Where the agent can't read the
/// configuration, the agent doesn't know the secrets, and shows nothing.
fn without_secrets(said: &str, candidate: &Path, environment: &Variables) -> String {
    let directory = candidate.parent().unwrap_or(Path::new("/"));
    let source = |file: &Path| Source::File(file.to_owned());
    let text = std::fs::read_to_string(candidate).map(Zeroizing::new).unwrap_or_default();
    let environment = Environment::of(environment);
    let read = reader::read(&text, Arc::new(source(candidate)), directory, &environment, &source);
    let Ok(read) = read else {
        return format!("run `nats-server -t -c {}` for its words, which may hold a secret", candidate.display());
    };
    let mut secrets = write::secrets(&read.map);
    // A word of one or two letters is no secret, and its removal would make the message unreadable.
    secrets.retain(|secret| secret.len() > 2);
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.iter().fold(said.to_owned(), |said, secret| said.replace(secret.as_str(), HIDDEN))
}

/// The digest in what `-t` prints: `… configuration file … is valid (sha256:…)` (2.11 and later).
fn digest_in(output: &str) -> Option<String> {
    let start = output.find("sha256:")?;
    let digest: String =
        output[start + "sha256:".len()..].chars().take_while(char::is_ascii_hexdigit).take(64).collect();
    (digest.len() == 64).then(|| format!("sha256:{digest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_digest_that_nats_server_prints() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let line = format!("nats-server: configuration file /etc/nats.conf is valid ({digest})\n");
        assert_eq!(digest_in(&line), Some(digest));
        assert_eq!(digest_in("nats-server: configuration file /etc/nats.conf is valid\n"), None);
        assert_eq!(digest_in("(sha256:0a)"), None);
    }
}
