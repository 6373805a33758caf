//! Everything that the nodes of a fleet share: the time, AWS, each other, and the books that are kept of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nats_tls_agent::clock::Clock;
use nats_tls_agent::peers::dial::Dial;
use nats_tls_agent::x509::chain::{Chain, StoredChain};
use time::OffsetDateTime;

use crate::Tell;
use crate::cloud::{Caller, Cloud};
use crate::meters::{Reloads, Share};
use crate::server::{Loaded, NatsServer};

/// How many broken promises are told in full.
const TOLD: usize = 20;

pub(crate) struct World {
    pub(crate) clock: Clock,
    pub(crate) cloud: Arc<Cloud>,
    pub(crate) directory: PathBuf,
    pub(crate) tell: Tell,
    books: Mutex<Books>,
    interval: AtomicU64,
}

/// One node, as the others see it.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) cluster: usize,
    pub(crate) server: Arc<NatsServer>,
    /// The anchors of the last pass's status.
    pub(crate) anchors: BTreeSet<String>,
}

#[derive(Default)]
struct Books {
    phase: String,
    nodes: BTreeMap<SocketAddr, Seen>,
    reloads: BTreeMap<usize, Reloads>,
    figures: Counts,
    broken: Vec<String>,
}

/// What is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passes: u64,
    pub(crate) killed: u64,
    pub(crate) agent_restarts: u64,
    pub(crate) server_restarts: u64,
    pub(crate) replacements: u64,
    pub(crate) rollovers: u64,
    pub(crate) renewals_served: u64,
    pub(crate) reloads: u64,
    pub(crate) node_seconds: u64,
    pub(crate) least_left: Option<Duration>,
    pub(crate) most_files: usize,
    pub(crate) broken: u64,
    /// Loads in sight of a peer whose anchor was taken out of the bundle before the node was launched.
    pub(crate) came_too_late: u64,
}

impl World {
    pub(crate) fn new(clock: Clock, clusters: usize, directory: PathBuf, interval: Duration, tell: Tell) -> Arc<Self> {
        let cloud = Arc::new(Cloud::new(clock, clusters));
        let interval = AtomicU64::new(interval.as_secs());
        Arc::new(Self { clock, cloud, directory, tell, books: Mutex::default(), interval })
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `discovery.interval` of agents that start from now on.
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_secs(self.interval.load(Ordering::Relaxed))
    }

    pub(crate) fn set_interval(&self, interval: Duration) {
        self.interval.store(interval.as_secs(), Ordering::Relaxed);
    }

    /// What happens now, for the reloads' books.
    pub(crate) fn begin_phase(&self, name: &str) {
        (self.tell)(name);
        name.clone_into(&mut self.books().phase);
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.books().figures);
    }

    pub(crate) fn counts(&self) -> Counts {
        self.books().figures.clone()
    }

    /// A promise that was not kept.
    pub(crate) fn broken(&self, what: &str) {
        let now = self.clock.now();
        let mut books = self.books();
        books.figures.broken += 1;
        if books.broken.len() < TOLD {
            books.broken.push(format!("{}: {what}", nats_tls_agent::clock::rfc3339(now)));
        }
    }

    pub(crate) fn take_broken(&self) -> Vec<String> {
        std::mem::take(&mut self.books().broken)
    }

    pub(crate) fn join(&self, address: SocketAddr, node: Seen) {
        self.books().nodes.insert(address, node);
    }

    /// A node that is gone answers nobody any more.
    pub(crate) fn leave(&self, address: SocketAddr) {
        let gone = self.books().nodes.remove(&address);
        if let Some(loaded) = gone.and_then(|gone| gone.server.loaded()) {
            self.check_alive(&loaded);
        }
    }

    pub(crate) fn note_anchors(&self, address: SocketAddr, anchors: BTreeSet<String>) {
        if let Some(node) = self.books().nodes.get_mut(&address) {
            node.anchors = anchors;
        }
    }

    /// Whether every node's agent holds this anchor, or, negated, whether none does.
    pub(crate) fn is_held_by_all(&self, anchor: &str) -> bool {
        self.books().nodes.values().all(|node| node.anchors.contains(anchor))
    }

    pub(crate) fn is_held_by_none(&self, anchor: &str) -> bool {
        self.books().nodes.values().all(|node| !node.anchors.contains(anchor))
    }

    /// Whether no server presents a leaf of this issuer any more.
    pub(crate) fn is_served_by_none(&self, issuer: &str) -> bool {
        let served = |node: &Seen| node.server.loaded().is_some_and(|loaded| loaded.leaf.issuer == issuer);
        !self.books().nodes.values().any(served)
    }

    /// A leaf that ended while it was served is what must never be.
    fn check_alive(&self, served: &Loaded) {
        if served.leaf.not_after <= self.clock.now() {
            let sans = served.leaf.sans.ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            self.broken(&format!("the certificate of {sans} expired at {} while it was served", served.leaf.not_after));
        }
    }

    /// A server loaded something, in place of what it had before.
    pub(crate) fn note_load(&self, caller: Caller, server: &NatsServer, before: Option<&Loaded>, loaded: &Loaded) {
        let now = self.clock.now();
        if let Some(before) = before {
            self.check_alive(before);
            if before.leaf.sha256 != loaded.leaf.sha256 {
                let left = Duration::try_from(before.leaf.not_after - now).unwrap_or_default();
                self.count(|counts| {
                    counts.renewals_served += 1;
                    counts.least_left = Some(counts.least_left.map_or(left, |least| least.min(left)));
                });
            }
        }
        self.check_alive(loaded);
        self.check_trust(caller, server, loaded);
    }

    /// Invariant 5: this server and each other one of its cluster can shake hands at any time. All chains here are a leaf
    /// right below its root.
    ///
    /// Nobody can give an anchor that the source no longer has to a node that was launched since: to take it from a peer
    /// would be to trust whoever answers there. Such pairs, of an operator in a hurry, are counted.
    fn check_trust(&self, caller: Caller, server: &NatsServer, loaded: &Loaded) {
        let peers: Vec<_> =
            self.books().nodes.values().filter(|node| node.cluster == caller.cluster).cloned().collect();
        for peer in peers {
            let Some(theirs) = peer.server.loaded() else { continue };
            for (server, one, other) in [(server, loaded, &*theirs), (&*peer.server, &*theirs, loaded)] {
                let issuer = &other.leaf.issuer;
                if one.bundle.anchors.iter().any(|anchor| anchor.subject == *issuer) {
                    continue;
                }
                if !server.has_held(issuer) && !self.cloud.is_trusted(issuer) {
                    self.count(|counts| counts.came_too_late += 1);
                    continue;
                }
                self.broken(&format!(
                    "invariant 5: node {} and a peer of its cluster no longer trust each other",
                    caller.number
                ));
            }
        }
    }

    pub(crate) fn note_reload(&self, caller: Caller) {
        let now = self.clock.now();
        let mut books = self.books();
        books.figures.reloads += 1;
        let size = books.nodes.values().filter(|node| node.cluster == caller.cluster).count();
        let phase = books.phase.clone();
        books.reloads.entry(caller.cluster).or_default().note(now, caller.number, size, &phase);
    }

    /// Every node's served leaf must be alive at the end too.
    pub(crate) fn check_all(&self) {
        let loaded: Vec<_> = self.books().nodes.values().map(|node| node.server.loaded()).collect();
        for served in loaded.iter().flatten() {
            self.check_alive(served);
        }
    }

    pub(crate) fn unserved(&self) -> usize {
        self.books().nodes.values().filter(|node| node.server.loaded().is_none()).count()
    }

    /// The worst share of one cluster in one window, by what happened then.
    pub(crate) fn worst_reloads(&self) -> BTreeMap<String, Share> {
        let mut worst = BTreeMap::<String, Share>::new();
        for reloads in self.books().reloads.values() {
            for (phase, share) in reloads.worst() {
                let known = worst.entry(phase.clone()).or_default();
                *known = known.worse(*share);
            }
        }
        worst
    }
}

#[async_trait]
impl Dial for World {
    async fn served_chains(&self, _ours: &StoredChain, peers: Vec<SocketAddr>) -> Vec<Option<Chain>> {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(2..10))).await;
        let books = self.books();
        let chain = |peer| Some(books.nodes.get(peer)?.server.loaded()?.chain.clone());
        peers.iter().map(chain).collect()
    }

    async fn answering(&self, peers: Vec<SocketAddr>) -> BTreeSet<SocketAddr> {
        if peers.is_empty() {
            return BTreeSet::new();
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(2..1000))).await;
        let books = self.books();
        let answers = |peer: &SocketAddr| books.nodes.get(peer).is_some_and(|node| node.server.loaded().is_some());
        peers.into_iter().filter(answers).collect()
    }
}

/// When a thing happens that happens once in `mean` on average.
pub(crate) fn next(rng: &mut fastrand::Rng, now: OffsetDateTime, mean: Duration) -> OffsetDateTime {
    let wait = mean.mul_f64(-(1.0 - rng.f64()).ln());
    now + wait.min(Duration::from_hours(24 * 3650))
}
