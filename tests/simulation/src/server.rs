//! nats-server as it was measured (2.15.1): it loads the committed file at a start and on SIGHUP, reports the digest of
//! what it has loaded, serves the leaf that the loaded file names, and says nothing when it isn't there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nats_tls_agent::conf::listeners::Listeners;
use nats_tls_agent::digest::sha256_hex;
use nats_tls_agent::server::monitor::Varz;
use nats_tls_agent::server::process::ProcessError;
use nats_tls_agent::server::{Observed, Presence, Served, Server, ServerError};
use nats_tls_agent::trust::TrustBundle;
use nats_tls_agent::x509::chain::{Chain, StoredChain};
use nats_tls_agent::x509::leaf::Leaf;
use time::OffsetDateTime;

use crate::cloud::Caller;
use crate::world::World;

/// Where the double's pid file would be.
const PID: i32 = 1;

/// One node's nats-server.
pub(crate) struct NatsServer {
    world: Arc<World>,
    caller: Caller,
    config: PathBuf,
    process: Mutex<Process>,
}

#[derive(Default)]
struct Process {
    starts: u64,
    loaded: Option<Arc<Loaded>>,
    load_time: Option<OffsetDateTime>,
    /// The anchors of every bundle that was ever loaded here.
    held: BTreeSet<String>,
}

/// What a server has in memory.
#[derive(Debug)]
pub(crate) struct Loaded {
    digest: String,
    pub(crate) leaf: Leaf,
    /// As shown in a handshake.
    pub(crate) chain: Chain,
    pub(crate) bundle: TrustBundle,
}

impl NatsServer {
    pub(crate) fn new(world: Arc<World>, caller: Caller, config: PathBuf) -> Self {
        Self { world, caller, config, process: Mutex::default() }
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn loaded(&self) -> Option<Arc<Loaded>> {
        self.process().loaded.clone()
    }

    /// Whether it ever trusted this anchor.
    pub(crate) fn has_held(&self, anchor: &str) -> bool {
        self.process().held.contains(anchor)
    }

    /// Starts with what is committed, if anything is.
    pub(crate) fn start(&self) {
        if self.process().loaded.is_some() || !self.config.exists() {
            return;
        }
        self.process().starts += 1;
        self.load("a start");
    }

    pub(crate) fn stop(&self) {
        self.process().loaded = None;
    }

    fn load(&self, why: &str) {
        match read(&self.config) {
            Ok(loaded) => {
                let loaded = Arc::new(loaded);
                let before = {
                    let mut process = self.process();
                    process.load_time = Some(self.world.clock.now());
                    process.held.extend(loaded.bundle.anchors.iter().map(|anchor| anchor.subject.clone()));
                    process.loaded.replace(Arc::clone(&loaded))
                };
                self.world.note_load(self.caller, self, before.as_deref(), &loaded);
            }
            Err(fault) => self.world.broken(&format!("invariant 2: {why} of node {}: {fault}", self.caller.number)),
        }
    }
}

/// Reads a configuration and the files that it names, as nats-server does.
fn read(config: &Path) -> Result<Loaded, String> {
    let text = std::fs::read_to_string(config).map_err(|error| error.to_string())?;
    let file = |name: &str| {
        let path = setting(&text, name).ok_or_else(|| format!("the configuration has no {name}"))?;
        std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))
    };
    let (cert, key, bundle) = (file("cert_file")?, file("key_file")?, file("ca_file")?);
    if !key.contains("PRIVATE KEY") {
        return Err("the key file holds no key".into());
    }
    let leaf = Leaf::from_pem(&cert).map_err(|error| error.to_string())?;
    let chain = Chain::from_pem(cert.as_bytes()).map_err(|error| error.to_string())?;
    let bundle = TrustBundle::parse(bundle.as_bytes(), "loaded", "1").map_err(|error| error.to_string())?;
    Ok(Loaded { digest: digest(&text), chain, leaf, bundle })
}

fn setting(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "))?;
    Some(value.trim_matches('"').to_owned())
}

fn digest(text: &str) -> String {
    format!("sha256:{}", sha256_hex(text.as_bytes()))
}

#[async_trait]
impl Server for NatsServer {
    async fn validate(&self, candidate: &Path) -> Result<Option<String>, ServerError> {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(3..20))).await;
        match std::fs::read_to_string(candidate) {
            Ok(text) if read(candidate).is_ok() => Ok(Some(digest(&text))),
            _ => Err(ServerError::Refused { message: "a file is missing or can't be read".into() }),
        }
    }

    fn find(&self, _at: &Listeners) -> Result<i32, ProcessError> {
        if self.loaded().is_some() { Ok(PID) } else { Err(ProcessError::Absent("it does not run".into())) }
    }

    async fn observe(&self, _ours: Option<&StoredChain>, _at: &Listeners, _last: Option<&Observed>) -> Observed {
        let process = self.process();
        let (Some(loaded), Some(load_time)) = (&process.loaded, process.load_time) else {
            return Observed::absent("it does not run".into());
        };
        let served = Served::of(loaded.chain.clone());
        Observed {
            presence: Presence::Running(PID),
            varz: Some(Varz {
                version: "2.15.1".into(),
                server_id: format!("start {}", process.starts),
                config_load_time: load_time,
                config_digest: Some(loaded.digest.clone()),
            }),
            routez: None,
            client: Ok(served.clone()),
            route: Ok(served),
            asked: tokio::time::Instant::now(),
        }
    }

    async fn reload(&self, _ours: &StoredChain, _at: &Listeners) -> Result<i32, ServerError> {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(2..10))).await;
        if self.loaded().is_none() {
            return Err(ProcessError::Absent("it does not run".into()).into());
        }
        self.world.note_reload(self.caller);
        self.load("a reload");
        Ok(PID)
    }
}
