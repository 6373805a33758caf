//! Tries settings in a throw-away nats-server, before the real one gets them.
//!
//! Two trials foretell the outcome: a start with the new settings, and a reload from the running settings to the new
//! settings. A start alone doesn't show what a reload refuses. A reload accepts some settings that a start doesn't
//! survive, such as JetStream in a cluster whose routes were taken out.
//!
//! A prediction takes about 160 ms and 15 MB. Most of the time is a wait for late ends. Trial and real server come to
//! the same verdict on every kind of change in tests/it/trial/kinds.rs, on nats-server 2.10.26, 2.12.8 and 2.15.1.

mod account_server;
mod child;
mod files;
mod said;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use tokio::net::TcpSocket;
use tokio::sync::Mutex;
use tokio::time::Instant;
use zeroize::Zeroizing;

use self::account_server::AccountServer;
use self::child::{Child, Next};
pub use self::files::sweep;
use self::files::{TrialDirectory, create_directory, outgrown, write_config};
use super::apart::{Consequence, HiddenFault, hidden_faults};
use crate::conf::tree::Map;
use crate::conf::trial::{Listener, Stage, Surroundings, endpoints, operators, store_without_limit};
use crate::conf::write;
use crate::state::durable;

/// The limit for one prediction. A start with 10,000 accounts, each with JetStream, takes 4 to 29 s on two cores,
/// depending on their load.
pub const TRIAL_TIMEOUT: Duration = Duration::from_mins(1);
/// How long a server is watched after its start. The route listener opens after "Server is ready", and a server whose
/// route port is taken ends 0.4 ms after that line.
const SETTLES_WITHIN: Duration = Duration::from_millis(30);
/// How long a server is watched after a reload.
const RELOAD_SETTLES_WITHIN: Duration = Duration::from_millis(50);
/// Ports for changed listeners. There are nine listeners at most.
const FREE_PORTS: usize = 9;
/// The largest operator JWT, in bytes.
const MAX_OPERATOR: u64 = 64 * 1024;
/// What becomes of a start with new settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The server starts.
    Starts,
    /// The server ends at its start.
    WontStart {
        /// nats-server's own words, one line of at most 1 KiB without secrets.
        said: String,
    },
}

/// What becomes of the running nats-server with new settings.
#[derive(Debug)]
pub enum Prediction {
    /// A start with the new settings works. No settings run, so no reload was tried.
    Starts,
    /// A reload applies the settings.
    Reloadable,
    /// A reload is refused, and a start applies the settings.
    NeedsRestart {
        /// nats-server's own words, one line of at most 1 KiB without secrets.
        said: String,
    },
    /// The server ends when it reloads.
    Kills {
        /// Why.
        said: String,
    },
    /// The server ends at its next start.
    WontStart {
        /// Why.
        said: String,
    },
    /// The trial itself failed, so it says nothing about the settings.
    Unknown(TrialTrouble),
}

/// Why a trial failed by itself.
#[derive(Debug, thiserror::Error)]
pub enum TrialTrouble {
    /// nats-server can't be started, for instance because there are too many processes.
    #[error("could not start {} for a trial of the settings", .server.display())]
    Spawn {
        /// The binary.
        server: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// A file of the trial can't be written, for instance because the disk is full.
    #[error("could not {action} {} for a trial of the settings; make room, or look at its permissions", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// No socket for the trial.
    #[error("could not open a socket for a trial of the settings")]
    Socket(#[source] io::Error),
    /// A system call on the child failed.
    #[error("could not {action} the nats-server of a trial")]
    Child {
        /// What was tried.
        action: &'static str,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The trial took too long.
    #[error(
        "a trial of the settings did not end within {} s; is the machine overloaded?", TRIAL_TIMEOUT.as_secs()
    )]
    Slow,
    /// The child logs without end.
    #[error("the nats-server of a trial logged more than 4 MiB; is nats.server a nats-server?")]
    Output,
    /// The child fills the disk.
    #[error("the nats-server of a trial wrote more than 256 MiB or 100,000 files; is nats.server a nats-server?")]
    Disk,
    /// The child lacks memory, disk space or file descriptors.
    #[error("the nats-server of a trial lacks memory, disk space or file descriptors: {said}")]
    Exhausted {
        /// nats-server's own words.
        said: String,
    },
    /// The child ended in an unusual way: by a signal, or without a failure.
    #[error("the nats-server of a trial ended with {status}: {said}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// The last line of its log.
        said: String,
    },
    /// The running settings don't start, so no reload can be tried.
    #[error("the running settings don't start any more, so a reload can't be tried: {said}")]
    RunningWontStart {
        /// nats-server's own words.
        said: String,
    },
}

/// One prediction at a time: a trial takes memory and a core.
static ONE: Mutex<()> = Mutex::const_new(());

/// Predicts what a commit of new settings does to the nats-server of this machine.
///
/// `running` are the settings that the server runs, `None` where no server runs. Relative paths of the settings belong to
/// `cwd`, the working directory of the real server; `None` is `/`, systemd's default. The trial's files lie below
/// `directory`, and are removed afterwards. `nats_pid` is the process of the real server, if any; through that process
/// the agent sees which files nats-server may write.
///
/// The settings must have passed `nats-server -t`. Takes at most [`TRIAL_TIMEOUT`] after a prediction that is under way.
/// Dropping the future ends the trial and leaves nothing behind.
pub async fn predict(
    server: &Path,
    running: Option<&Map>,
    new: &Map,
    directory: &Path,
    cwd: Option<&Path>,
    nats_pid: Option<i32>,
) -> Prediction {
    let _one = ONE.lock().await;
    let until = Instant::now() + TRIAL_TIMEOUT;
    let cwd = cwd.unwrap_or(Path::new("/"));
    let started = within(until, async {
        let trial = Trial::prepare(server, running, new, directory, cwd).await?;
        let verdict = trial.bounded(trial.start(new)).await?;
        Ok((trial, verdict))
    });
    // Where the running settings are unknown, the running server itself may use any of the wanted ports.
    let known = running.or(nats_pid.map(|_| new));
    let apart = tokio::time::timeout_at(until, apart(new, known, nats_pid, cwd));
    let (started, faults) = tokio::join!(started, apart);
    // A fault beside the trial is certain, even where the trial itself fails.
    let by_faults = by_faults(&faults.unwrap_or_default());
    let trial = match (started, by_faults) {
        (Ok((_, Verdict::WontStart { said })), _) => return Prediction::WontStart { said },
        (_, Some(prediction)) => return prediction,
        (Err(trouble), None) => return Prediction::Unknown(trouble),
        (Ok((trial, Verdict::Starts)), None) => trial,
    };
    match running {
        None => Prediction::Starts,
        Some(running) if running == new => Prediction::Reloadable,
        Some(running) => {
            within(until, trial.bounded(trial.reload(running, new))).await.unwrap_or_else(Prediction::Unknown)
        }
    }
}

async fn within<T>(until: Instant, trial: impl Future<Output = Result<T, TrialTrouble>>) -> Result<T, TrialTrouble> {
    tokio::time::timeout_at(until, trial).await.unwrap_or(Err(TrialTrouble::Slow))
}

/// The checks beside the trial. They resolve names and connect, so they run on a thread that may block.
async fn apart(new: &Map, running: Option<&Map>, nats_pid: Option<i32>, cwd: &Path) -> Vec<HiddenFault> {
    let (new, running, cwd) = (new.clone(), running.cloned(), cwd.to_owned());
    let checks = tokio::task::spawn_blocking(move || hidden_faults(&new, running.as_ref(), nats_pid, Some(&cwd)));
    checks.await.unwrap_or_default()
}

/// The outcome of faults that the rewriting hides.
fn by_faults(faults: &[HiddenFault]) -> Option<Prediction> {
    let of = |consequence| faults.iter().find(|fault| fault.consequence == consequence).map(ToString::to_string);
    for fault in faults.iter().filter(|fault| fault.consequence == Consequence::Complains) {
        tracing::warn!("{fault}");
    }
    match of(Consequence::Kills) {
        Some(said) => Some(Prediction::Kills { said }),
        None => of(Consequence::WontStart).map(|said| Prediction::WontStart { said }),
    }
}

/// One prediction. The directory is dropped last, after every child.
struct Trial<'a> {
    server: &'a Path,
    cwd: &'a Path,
    secrets: Vec<Zeroizing<String>>,
    account_server: AccountServer,
    surroundings: Surroundings,
    _hole: TcpSocket,
    directory: TrialDirectory,
}

impl<'a> Trial<'a> {
    async fn prepare(
        server: &'a Path,
        running: Option<&Map>,
        new: &Map,
        below: &Path,
        cwd: &'a Path,
    ) -> Result<Self, TrialTrouble> {
        let directory = TrialDirectory::create(below)?;
        let (account_server, at) = AccountServer::bind().await.map_err(TrialTrouble::Socket)?;
        let (hole, hole_port) = bound(Ipv4Addr::UNSPECIFIED)?;
        // Open sockets make the numbers distinct. They are closed before a server can use a number.
        let free: Vec<_> = (0..FREE_PORTS).map(|_| bound(Ipv4Addr::LOCALHOST)).collect::<Result<_, _>>()?;
        let surroundings = Surroundings {
            directory: directory.path().to_owned(),
            hole: hole_port,
            account_server: at,
            free: free.iter().map(|(_, port)| *port).collect(),
            storage: None,
            operators: read_operators([Some(new), running], cwd),
        };
        let secrets = [Some(new), running].into_iter().flatten().flat_map(write::secrets).collect();
        Ok(Self { server, cwd, secrets, account_server, surroundings, _hole: hole, directory })
    }

    /// Runs a trial for as long as its files stay few and small. Meanwhile the stand-in answers for the account
    /// servers.
    async fn bounded<T>(&self, trial: impl Future<Output = Result<T, TrialTrouble>>) -> Result<T, TrialTrouble> {
        tokio::select! {
            tried = trial => tried,
            never = self.account_server.serve() => match never {},
            () = outgrown(self.directory.path()) => Err(TrialTrouble::Disk),
        }
    }

    /// Starts a server with the new settings.
    async fn start(&self, new: &Map) -> Result<Verdict, TrialTrouble> {
        let storage = store_without_limit(new).and_then(|store| self.free_storage(store));
        let mut running = self.spawn("new", new, storage)?;
        match running.ready(new).await? {
            None => running.child.kill().await.map(|_| Verdict::Starts),
            Some(status) => Ok(Verdict::WontStart { said: self.reason(&running, status)? }),
        }
    }

    /// Starts a server with the running settings, and has it reload the new ones.
    async fn reload(&self, settings: &Map, new: &Map) -> Result<Prediction, TrialTrouble> {
        // A limit that only one of the two trees sets is a change, which a reload refuses.
        let stores = store_without_limit(settings).zip(store_without_limit(new));
        let storage = stores.and_then(|(store, _)| self.free_storage(store));
        let mut running = self.spawn("running", settings, storage)?;
        if let Some(status) = running.ready(settings).await? {
            return Err(TrialTrouble::RunningWontStart { said: self.reason(&running, status)? });
        }
        running.write(new)?;
        running.child.forget();
        running.child.hang_up()?;
        match running.reloaded().await? {
            Reloaded::Ended(status) => Ok(Prediction::Kills { said: self.reason(&running, status)? }),
            Reloaded::Applied => running.child.kill().await.map(|_| Prediction::Reloadable),
            Reloaded::Refused(said) => {
                running.child.kill().await?;
                Ok(Prediction::NeedsRestart { said: self.told(&said, &running) })
            }
        }
    }

    /// Starts a server in a directory of its own.
    fn spawn(&self, name: &str, settings: &Map, storage: Option<i64>) -> Result<Running, TrialTrouble> {
        let directory = self.directory.path().join(name);
        create_directory(&directory)?;
        let config = directory.join("nats-server.conf");
        let mut stage = Stage::new(Surroundings { directory: directory.clone(), storage, ..self.surroundings.clone() });
        write_config(&config, &mut stage, settings)?;
        let child = Child::spawn(self.server, &config, &directory, self.cwd)?;
        Ok(Running { child, stage, config, ports: BTreeMap::new() })
    }

    /// The storage that nats-server takes where the settings don't limit it: three quarters of what is free on the disk
    /// (`server/jetstream.go`, `dynJetStreamConfig`). The disk of the trial may be another one, and accounts that reserve
    /// more are fatal up to 2.12.8.
    fn free_storage(&self, store: &str) -> Option<i64> {
        let store = self.cwd.join(store);
        let disk = store.ancestors().find_map(|there| statvfs(there).ok())?;
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        i64::try_from(free / 4 * 3).ok()
    }

    /// Why a server ended, if its settings are the reason.
    fn reason(&self, running: &Running, status: ExitStatus) -> Result<String, TrialTrouble> {
        let Some(reason) = said::reason(&running.child.logged()) else {
            return Err(TrialTrouble::Ended { status, said: "nothing".to_owned() });
        };
        let said = self.told(reason, running);
        match status.code() {
            _ if said::is_shortage(reason) => Err(TrialTrouble::Exhausted { said }),
            // Go exits with 2 after a panic, and also after a fatal error such as a lack of memory.
            Some(1) => Ok(said),
            Some(2) if reason.starts_with("panic: ") => Ok(said),
            _ => Err(TrialTrouble::Ended { status, said }),
        }
    }

    fn told(&self, said: &str, running: &Running) -> String {
        said::told(said, &running.stage, &running.ports, &running.config, &self.secrets)
    }
}

/// The result of a reload.
enum Reloaded {
    Applied,
    Refused(String),
    Ended(ExitStatus),
}

/// A server under trial.
struct Running {
    child: Child,
    stage: Stage,
    config: PathBuf,
    /// The ports that the system chose, and those of the settings.
    ports: BTreeMap<String, String>,
}

impl Running {
    fn write(&mut self, settings: &Map) -> Result<(), TrialTrouble> {
        write_config(&self.config, &mut self.stage, settings)
    }

    /// Waits until the server serves, or has ended.
    ///
    /// "Server is ready" is logged on every version, with JetStream up. The route listener opens after it.
    async fn ready(&mut self, settings: &Map) -> Result<Option<ExitStatus>, TrialTrouble> {
        let mut is_ready = false;
        let mut has_routes = !endpoints(settings).iter().any(|endpoint| endpoint.listener == Listener::Cluster);
        loop {
            if is_ready && has_routes {
                return self.ended_within(SETTLES_WITHIN).await;
            }
            match self.child.next().await? {
                Next::Ended(status) => return Ok(Some(status)),
                Next::Line(line) => {
                    self.ports.extend(self.stage.chosen_port(&line));
                    is_ready |= line == "[INF] Server is ready";
                    has_routes |= line.starts_with("[INF] Listening for route connections");
                }
            }
        }
    }

    /// Waits for what the server says of a reload.
    async fn reloaded(&mut self) -> Result<Reloaded, TrialTrouble> {
        loop {
            match self.child.next().await? {
                Next::Ended(status) => return Ok(Reloaded::Ended(status)),
                // `[INF] Reloaded: name = value` comes before, for each setting. 2.11 and later add the digest.
                Next::Line(line) if line.starts_with("[INF] Reloaded server configuration") => break,
                Next::Line(line) => {
                    if let Some(said) = line.strip_prefix("[ERR] Failed to reload server configuration: ") {
                        return Ok(Reloaded::Refused(said.to_owned()));
                    }
                }
            }
        }
        let ended = self.ended_within(RELOAD_SETTLES_WITHIN).await?;
        Ok(ended.map_or(Reloaded::Applied, Reloaded::Ended))
    }

    /// Watches the server for a while.
    async fn ended_within(&mut self, limit: Duration) -> Result<Option<ExitStatus>, TrialTrouble> {
        let settled = Instant::now() + limit;
        while let Ok(next) = tokio::time::timeout_at(settled, self.child.next()).await {
            match next? {
                Next::Ended(status) => return Ok(Some(status)),
                Next::Line(line) => self.ports.extend(self.stage.chosen_port(&line)),
            }
        }
        // The time may be over while the log of an ended server is read.
        if self.child.has_ended() { self.child.ended().await.map(Some) } else { Ok(None) }
    }
}

/// A socket that is bound and doesn't listen: the port refuses connections, and nobody else can take it.
fn bound(address: Ipv4Addr) -> Result<(TcpSocket, u16), TrialTrouble> {
    let bind = || {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((address, 0)))?;
        let port = socket.local_addr()?.port();
        Ok((socket, port))
    };
    bind().map_err(TrialTrouble::Socket)
}

/// The contents of the files that `operator` names. A file that can't be read is left to nats-server.
fn read_operators(trees: [Option<&Map>; 2], cwd: &Path) -> BTreeMap<String, String> {
    let named = trees.into_iter().flatten().flat_map(operators);
    let read = named.filter_map(|name| {
        let bytes = durable::read_if_there(&cwd.join(name), MAX_OPERATOR).ok().flatten()?;
        Some((name.to_owned(), String::from_utf8_lossy(&bytes).into_owned()))
    });
    read.collect()
}
