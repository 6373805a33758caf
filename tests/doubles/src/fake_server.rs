//! A double of nats-server 2.15.1, with the behaviour in docs/nats-server.md. The section numbers are from that page.
//!
//! - Only a start and a SIGHUP load the configuration and the files that the configuration names (§1).
//! - `-t` refuses a configuration if a named file is missing, holds no key, or holds an unreadable chain or bundle
//!   (§4).
//! - The server refuses a SIGHUP with another `server_name`, and keeps the loaded configuration (§4).
//! - `/varz` reports the digest that `-t` prints (§4): the digest of the settings. Versions before 2.11 have no digest.
//! - A trial foretells what the double itself does: another `server_name` needs a restart.
//! - `config_load_time` changes with each load, and the server's id changes with each start (§4).
//! - Every listener shows the leaf of the loaded configuration until the next load (§1).
//! - A server that accepts no client is starting or draining, and a signal could kill or hang it (§4 "Signals", §5).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nats_tls_agent::clock::Clock;
use nats_tls_agent::conf::digest::{UsedVariables, digest};
use nats_tls_agent::conf::effective::Sources;
use nats_tls_agent::conf::listeners::Listeners;
use nats_tls_agent::conf::render::Rendered;
use nats_tls_agent::conf::system::Obstacle;
use nats_tls_agent::conf::tree::Map;
use nats_tls_agent::server::monitor::{CertificateEnds, Routez, Varz};
use nats_tls_agent::server::probe::{ProbeError, Silence};
use nats_tls_agent::server::process::ProcessError;
use nats_tls_agent::server::system::Link;
use nats_tls_agent::server::trial::Prediction;
use nats_tls_agent::server::{Asked, By, Cut, Observed, Presence, Served, Server, ServerError, StartMark, Variables};
use nats_tls_agent::trust::TrustBundle;
use nats_tls_agent::x509::chain::{Chain, StoredChain};
use nats_tls_agent::x509::leaf::Leaf;
use time::OffsetDateTime;

/// The process id of every double.
const PID: i32 = 1;
/// Milliseconds that `nats-server -t` takes.
const VALIDATION: Range<u64> = 3..20;
/// Milliseconds from SIGHUP to the new certificate. The measured time is 7 ms.
const RELOAD: Range<u64> = 2..10;

/// The duration of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// The call takes no time, and yields before and after its work. A test can stop the caller at both points.
    Polled,
    /// The call takes as long as a real nats-server. The time comes from the thread's random numbers.
    Measured,
}

impl Pace {
    async fn begin(self, milliseconds: Range<u64>) {
        match self {
            Self::Polled => tokio::task::yield_now().await,
            Self::Measured => tokio::time::sleep(Duration::from_millis(fastrand::u64(milliseconds))).await,
        }
    }

    async fn end(self) {
        if self == Self::Polled {
            tokio::task::yield_now().await;
        }
    }
}

/// Receives the events of a server.
pub trait Witness: Send + Sync {
    /// The server was told to reload.
    fn told_to_reload(&self) {}

    /// The server loaded a configuration in place of `before`.
    fn loaded(&self, _server: &FakeServer, _before: Option<&Loaded>, _now: &Loaded) {}

    /// The server read a configuration that names a missing or unusable file (invariant 2).
    fn found_broken(&self, reader: &'static str, fault: &str);
}

/// The configuration and the files that a server has in memory.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration's text.
    pub text: String,
    /// The leaf of `cert_file`.
    pub leaf: Leaf,
    /// The chain that a handshake shows.
    pub chain: Chain,
    /// The anchors of `ca_file`.
    pub bundle: TrustBundle,
    /// The digest of the text, if the text can be read.
    digest: Option<String>,
}

impl Loaded {
    /// Reads a configuration and the files that it names.
    fn read(config: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(config).map_err(|error| error.to_string())?;
        let file = |name: &str| {
            let path = setting(&text, name).ok_or_else(|| format!("the configuration has no {name}"))?;
            std::fs::read_to_string(&path).map_err(|error| format!("{name} {path}: {error}"))
        };
        let (cert, key, bundle) = (file("cert_file")?, file("key_file")?, file("ca_file")?);
        if !key.contains("PRIVATE KEY") {
            return Err("the key file holds no key".into());
        }
        let chain = Chain::from_pem(cert.as_bytes()).map_err(|error| error.to_string())?;
        let leaf = Leaf::parse(chain.leaf()).map_err(|error| error.to_string())?;
        let bundle = TrustBundle::parse(bundle.as_bytes(), "loaded", "1").map_err(|error| error.to_string())?;
        let digest = digest_of_text(&text, config);
        Ok(Self { text, leaf, chain, bundle, digest })
    }
}

fn digest_of_text(text: &str, config: &Path) -> Option<String> {
    let tree = Rendered::from_text(text.to_owned()).tree(config).ok()?;
    Some(digest(&tree, UsedVariables::Keep))
}

/// When a file got its name. A rename changes the time of the inode.
fn renamed_at(path: &Path) -> Option<OffsetDateTime> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    let nanoseconds = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()
}

/// The value of a setting that stands on a line of its own.
#[must_use]
pub fn setting(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "))?;
    Some(value.trim_matches('"').to_owned())
}

/// One node's nats-server.
pub struct FakeServer {
    /// The file of `-c`.
    pub config: PathBuf,
    /// Whether a reload loads nothing.
    pub ignores: AtomicBool,
    /// The clients with a certificate that the next round closes.
    pub to_close: AtomicU64,
    /// The outcome of a request through the system account, which loads nothing. `None`: there is no system account, so each
    /// request is a signal.
    pub system: Mutex<Option<Asked>>,
    /// Whether `-t` refuses every configuration.
    pub refuses: AtomicBool,
    /// Whether the process ends at a SIGHUP.
    pub dies: AtomicBool,
    /// Whether the process runs but accepts no client, because it starts, drains or hangs.
    pub is_deaf: AtomicBool,
    /// Seconds that a reload takes. Meanwhile handshakes and monitoring hang, as while nats-server authenticates each
    /// client with a bcrypt password anew (§11).
    pub reload_seconds: AtomicU64,
    /// The routes that monitoring reports, if it reports any.
    pub routez: Mutex<Option<Routez>>,
    /// Whether the process ends as it starts, after it wrote its pid file.
    pub ends_at_start: AtomicBool,
    /// Whether the version is below 2.11, which reports no digest.
    pub is_old: AtomicBool,
    /// Whether the monitoring port doesn't answer.
    pub is_mute: AtomicBool,
    clock: Clock,
    pace: Pace,
    witness: Box<dyn Witness>,
    process: Mutex<Process>,
    reloads: AtomicU32,
}

#[derive(Default)]
struct Process {
    starts: u64,
    loaded: Option<Arc<Loaded>>,
    load_time: Option<OffsetDateTime>,
    /// When the configuration's file got its name, for the last start.
    started: Option<OffsetDateTime>,
    /// A reload that is under way ends at this time.
    loads_at: Option<tokio::time::Instant>,
    /// The anchors of every bundle that any start or reload loaded.
    trusted: BTreeSet<String>,
}

impl FakeServer {
    /// A server that doesn't run yet.
    #[must_use]
    pub fn new(config: PathBuf, clock: Clock, pace: Pace, witness: Box<dyn Witness>) -> Self {
        let off = || AtomicBool::new(false);
        Self {
            config,
            ignores: off(),
            to_close: AtomicU64::default(),
            system: Mutex::default(),
            refuses: off(),
            dies: off(),
            is_deaf: off(),
            is_old: off(),
            reload_seconds: AtomicU64::new(0),
            routez: Mutex::default(),
            ends_at_start: off(),
            is_mute: off(),
            clock,
            pace,
            witness,
            process: Mutex::default(),
            reloads: AtomicU32::new(0),
        }
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files that the running server has loaded. `None`: no server runs.
    #[must_use]
    pub fn loaded(&self) -> Option<Arc<Loaded>> {
        self.process().loaded.clone()
    }

    /// The leaf that the listeners show.
    #[must_use]
    pub fn served(&self) -> Option<Leaf> {
        self.loaded().map(|loaded| loaded.leaf.clone())
    }

    /// Whether any bundle that the server loaded holds this anchor.
    #[must_use]
    pub fn has_trusted(&self, anchor: &str) -> bool {
        self.process().trusted.contains(anchor)
    }

    /// The number of times that the server was told to reload.
    #[must_use]
    pub fn reloads(&self) -> u32 {
        self.reloads.load(Ordering::Relaxed)
    }

    /// Starts the server with the committed configuration. The start replaces a running server.
    pub fn start(&self) {
        let mut process = self.process();
        process.starts += 1;
        process.loads_at = None;
        process.started = renamed_at(&self.config).map(|renamed| renamed + Duration::from_nanos(1));
        if self.ends_at_start.load(Ordering::Relaxed) {
            process.loaded = None;
            return;
        }
        drop(process);
        if let Some(read) = self.read(&self.config, "a start") {
            self.load(read);
        }
    }

    /// Ends the server.
    pub fn stop(&self) {
        self.process().loaded = None;
    }

    fn read(&self, config: &Path, reader: &'static str) -> Option<Loaded> {
        Loaded::read(config).inspect_err(|fault| self.witness.found_broken(reader, fault)).ok()
    }

    fn load(&self, read: Loaded) {
        let now = Arc::new(read);
        let before = {
            let mut process = self.process();
            let time = self.clock.now();
            // Two loads fall in the same nanosecond under paused time only. The load times of a real server always
            // differ.
            let is_same = process.load_time == Some(time);
            process.load_time = Some(if is_same { time + Duration::from_nanos(1) } else { time });
            process.trusted.extend(now.bundle.anchors.iter().map(|anchor| anchor.subject.clone()));
            process.loaded.replace(Arc::clone(&now))
        };
        self.witness.loaded(self, before.as_deref(), &now);
    }

    /// Ends a reload whose time has come. Returns whether a reload is still under way.
    fn is_loading(&self) -> bool {
        let Some(at) = self.process().loads_at else { return false };
        if at > tokio::time::Instant::now() {
            return true;
        }
        self.process().loads_at = None;
        if let Some(read) = self.read(&self.config, "a reload") {
            self.load(read);
        }
        false
    }

    /// Versions before 2.11 report no end of a certificate.
    fn ends(&self, loaded: &Loaded) -> CertificateEnds {
        let is_old = self.is_old.load(Ordering::Relaxed);
        if is_old { CertificateEnds::default() } else { CertificateEnds::all(loaded.leaf.not_after) }
    }

    /// A version below 2.11 reports no digest.
    fn reported(&self, digest: Option<String>) -> Option<String> {
        digest.filter(|_| !self.is_old.load(Ordering::Relaxed))
    }
}

#[async_trait]
impl Server for FakeServer {
    async fn validate(&self, candidate: &Path, _environment: &Variables) -> Result<Option<String>, ServerError> {
        self.pace.begin(VALIDATION).await;
        let text = std::fs::read_to_string(candidate).unwrap_or_default();
        if text == Sources::wrapped("nats-server.conf.sources") {
            return Ok(self.reported(digest_of_text(&text, &self.config)));
        }
        let Some(read) = self.read(candidate, "-t") else {
            return Err(ServerError::Refused { message: "a file is missing or can't be read".into() });
        };
        if self.refuses.load(Ordering::Relaxed) {
            return Err(ServerError::Refused { message: "the double refuses every configuration".into() });
        }
        Ok(self.reported(read.digest))
    }

    async fn predict(&self, running: Option<&Map>, new: &Map, _nats_pid: Option<i32>) -> Prediction {
        let name = |tree: &Map| tree.get("server_name").and_then(|entry| entry.value.as_text().map(str::to_owned));
        match running {
            Some(running) if name(running) != name(new) => {
                Prediction::NeedsRestart { said: "config reload not supported for ServerName".into() }
            }
            Some(_) => Prediction::Reloadable,
            None => Prediction::Starts,
        }
    }

    async fn observe(&self, _chain: Option<&StoredChain>, _at: &Listeners, _last: Option<&Observed>) -> Observed {
        let is_loading = self.is_loading();
        let seen = {
            let process = self.process();
            process.loaded.clone().zip(process.load_time).map(|(loaded, time)| (loaded, time, process.starts))
        };
        let Some((loaded, config_load_time, starts)) = seen else {
            let starts = self.process().starts;
            let start = (starts > 0).then(|| StartMark { pid: PID, written: i128::from(starts) });
            return Observed { start, ..Observed::absent("it does not run".into()) };
        };
        self.pace.end().await;
        let served = if is_loading || self.is_deaf.load(Ordering::Relaxed) {
            Err(Silence::Hangs("no leaf".to_owned()))
        } else {
            Ok(Served::of(loaded.chain.clone()))
        };
        Observed {
            presence: Presence::Running(PID),
            started: self.process().started,
            start: Some(StartMark { pid: PID, written: i128::from(starts) }),
            varz: (!is_loading && !self.is_mute.load(Ordering::Relaxed)).then(|| Varz {
                version: "2.15.1".into(),
                server_id: format!("start {starts}"),
                config_load_time,
                config_digest: self.reported(loaded.digest.clone()),
                connections: 0,
                ends: self.ends(&loaded).into(),
            }),
            routez: self.routez.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            client: served.clone(),
            route: served,
            others: BTreeMap::new(),
            asked: tokio::time::Instant::now(),
            system: Link::Unwanted,
        }
    }

    async fn close_older(&self, _chain: &StoredChain, _at: &Listeners, _than: OffsetDateTime) -> Option<Cut> {
        Some(Cut { closed: self.to_close.swap(0, Ordering::Relaxed), open: 0 })
    }

    async fn obstacle_to_a_user(&self, _chain: Option<&StoredChain>, _at: &Listeners) -> Option<Obstacle> {
        None
    }

    async fn reload(&self, by: By, _chain: &StoredChain, _at: &Listeners) -> Result<Asked, ServerError> {
        self.pace.begin(RELOAD).await;
        let Some(loaded) = self.loaded() else {
            return Err(ProcessError::Absent("it does not run".into()).into());
        };
        if self.is_loading() || self.is_deaf.load(Ordering::Relaxed) {
            let address = SocketAddr::from(([127, 0, 0, 1], 4222));
            return Err(ServerError::NotListening {
                pid: PID,
                address,
                source: ProbeError::Slow { address: address.to_string() },
            });
        }
        let without_effect = self.system.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let (By::System, Some(asked)) = (by, without_effect) {
            self.pace.end().await;
            return Ok(asked);
        }
        self.reloads.fetch_add(1, Ordering::Relaxed);
        self.witness.told_to_reload();
        if self.dies.load(Ordering::Relaxed) {
            self.stop();
            return Ok(Asked { pid: PID, answer: None });
        }
        if !self.ignores.load(Ordering::Relaxed)
            && let Some(read) = self.read(&self.config, "a reload")
            && setting(&loaded.text, "server_name") == setting(&read.text, "server_name")
        {
            match self.reload_seconds.load(Ordering::Relaxed) {
                0 => self.load(read),
                seconds => {
                    self.process().loads_at = Some(tokio::time::Instant::now() + Duration::from_secs(seconds));
                }
            }
        }
        self.pace.end().await;
        Ok(Asked { pid: PID, answer: None })
    }
}
