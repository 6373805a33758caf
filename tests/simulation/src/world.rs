//! Everything that the nodes of a fleet share: the time, AWS, the other nodes, and the books of the run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use doubles::fake_server::{FakeServer, Loaded};
use nats_tls_agent::clock::Clock;
use nats_tls_agent::peers::dial::{Dial, Shown};
use nats_tls_agent::server::monitor::{RouteConnection, Routez};
use nats_tls_agent::x509::chain::StoredChain;
use time::OffsetDateTime;

use crate::Tell;
use crate::cloud::{Caller, Cloud};
use crate::meters::{Reloads, Share};
use crate::scenario::AUTONOMY;

/// The number of broken promises that are shown in full.
const TOLD: usize = 20;

pub(crate) struct World {
    pub(crate) clock: Clock,
    pub(crate) cloud: Arc<Cloud>,
    pub(crate) directory: PathBuf,
    pub(crate) tell: Tell,
    books: Mutex<Books>,
    interval: AtomicU64,
    tells_routes: AtomicBool,
}

/// A node as the other nodes see it.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) id: String,
    pub(crate) cluster: usize,
    pub(crate) server: Arc<FakeServer>,
    /// The anchors of the last pass's status.
    pub(crate) anchors: BTreeSet<String>,
    /// The SHA-256 of the first leaf that the server loaded.
    pub(crate) first_leaf: Option<String>,
}

#[derive(Default)]
struct Books {
    phase: String,
    nodes: BTreeMap<SocketAddr, Seen>,
    reloads: BTreeMap<usize, Reloads>,
    figures: Counts,
    broken: Vec<String>,
}

/// The counts of a run.
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
    /// Loads beside a peer whose anchor left the bundle before the node was launched.
    pub(crate) came_too_late: u64,
    /// Loads after which a new node shows its first leaf, of a CA that a peer has not read yet.
    pub(crate) came_too_soon: u64,
}

impl World {
    pub(crate) fn new(clock: Clock, clusters: usize, directory: PathBuf, interval: Duration, tell: Tell) -> Arc<Self> {
        let cloud = Arc::new(Cloud::new(clock, clusters));
        let interval = AtomicU64::new(interval.as_secs());
        Arc::new(Self {
            clock,
            cloud,
            directory,
            tell,
            books: Mutex::default(),
            interval,
            tells_routes: AtomicBool::new(false),
        })
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

    /// nats-servers report their routes from now on. Gossip connects all running servers of a cluster (docs/nats-server.md,
    /// section 3).
    pub(crate) fn tell_routes(&self) {
        self.tells_routes.store(true, Ordering::Relaxed);
    }

    fn spread_gossip(&self, cluster: usize) {
        if !self.tells_routes.load(Ordering::Relaxed) {
            return;
        }
        let books = self.books();
        let running: Vec<_> =
            books.nodes.iter().filter(|(_, node)| node.cluster == cluster && node.server.loaded().is_some()).collect();
        for (address, node) in &running {
            let others = running.iter().filter(|(other, _)| other != address);
            let route = |(other, seen): &(&SocketAddr, &Seen)| RouteConnection {
                remote_id: seen.id.clone(),
                remote_name: seen.id.clone(),
                ip: Some(other.ip()),
                start: None,
            };
            let routes = others.map(route).collect();
            *node.server.routez.lock().unwrap_or_else(PoisonError::into_inner) = Some(Routez { routes });
        }
    }

    /// Begins a phase. Reloads are counted by phase.
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

    /// Notes a broken promise.
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

    /// Removes a node. The node answers no peer from now on.
    pub(crate) fn leave(&self, address: SocketAddr) {
        let gone = self.books().nodes.remove(&address);
        let Some(gone) = gone else { return };
        if let Some(loaded) = gone.server.loaded() {
            self.check_alive(&loaded);
        }
        self.spread_gossip(gone.cluster);
    }

    pub(crate) fn note_anchors(&self, address: SocketAddr, anchors: BTreeSet<String>) {
        if let Some(node) = self.books().nodes.get_mut(&address) {
            node.anchors = anchors;
        }
    }

    /// Whether every node's agent holds this anchor.
    pub(crate) fn is_held_by_all(&self, anchor: &str) -> bool {
        self.books().nodes.values().all(|node| node.anchors.contains(anchor))
    }

    /// Whether no node's agent holds this anchor.
    pub(crate) fn is_held_by_none(&self, anchor: &str) -> bool {
        self.books().nodes.values().all(|node| !node.anchors.contains(anchor))
    }

    /// Whether no server shows a leaf of this issuer.
    pub(crate) fn is_served_by_none(&self, issuer: &str) -> bool {
        let served = |node: &Seen| node.server.loaded().is_some_and(|loaded| loaded.leaf.issuer == issuer);
        !self.books().nodes.values().any(served)
    }

    /// Notes a broken promise if a server shows an expired leaf.
    fn check_alive(&self, served: &Loaded) {
        if served.leaf.not_after <= self.clock.now() {
            let sans = served.leaf.sans.ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            self.broken(&format!("the certificate of {sans} expired at {} while it was served", served.leaf.not_after));
        }
    }

    /// Notes that a server loaded a configuration in place of `before`.
    pub(crate) fn note_load(&self, caller: Caller, server: &FakeServer, before: Option<&Loaded>, loaded: &Loaded) {
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
        self.note_first_leaf(server, loaded);
        self.check_trust(caller, server, loaded);
        self.spread_gossip(caller.cluster);
    }

    fn note_first_leaf(&self, server: &FakeServer, loaded: &Loaded) {
        let mut books = self.books();
        if let Some(node) = books.nodes.values_mut().find(|node| std::ptr::eq(Arc::as_ptr(&node.server), server)) {
            node.first_leaf.get_or_insert_with(|| loaded.leaf.sha256.clone());
        }
    }

    /// Checks invariant 5: this server and every other server of its cluster can shake hands at any time. Every chain
    /// here is a leaf directly below its root.
    ///
    /// A node can't get an anchor that left the source before the node's launch. A node that took anchors from peers
    /// would trust whoever answers there. An operator in a hurry makes such pairs, and these pairs are counted apart.
    ///
    /// A new node has no leaf but its first leaf. An operator who lets a new CA sign at once makes a first leaf that a peer
    /// can't accept before its next poll of the bundle. The new node loses no route to the peer, because it had none. These
    /// pairs are counted apart too, for two intervals and the longest outage after the bundle got the CA.
    fn check_trust(&self, caller: Caller, server: &FakeServer, loaded: &Loaded) {
        let peers: Vec<_> =
            self.books().nodes.values().filter(|node| node.cluster == caller.cluster).cloned().collect();
        // A node that has just left is in no book.
        let own = peers.iter().find(|node| std::ptr::eq(Arc::as_ptr(&node.server), server));
        let id = |node: Option<&Seen>| node.map_or("a node that left", |node| node.id.as_str()).to_owned();
        for peer in &peers {
            let Some(theirs) = peer.server.loaded() else { continue };
            for (server, one, bundle, other, leaf) in [
                (server, own, &loaded.bundle, Some(peer), &theirs.leaf),
                (&*peer.server, Some(peer), &theirs.bundle, own, &loaded.leaf),
            ] {
                let issuer = &leaf.issuer;
                if bundle.anchors.iter().any(|anchor| anchor.subject == *issuer) {
                    continue;
                }
                let (has_trusted, since) = (server.has_trusted(issuer), self.cloud.trusted_since(issuer));
                let is_first = other.is_some_and(|other| other.first_leaf.as_ref() == Some(&leaf.sha256));
                let has_read = one.is_some_and(|one| one.anchors.contains(issuer));
                match since {
                    None if !has_trusted => self.count(|counts| counts.came_too_late += 1),
                    Some(since)
                        if !has_trusted
                            && is_first
                            && !has_read
                            && self.clock.now() < since + AUTONOMY + self.interval() * 2 =>
                    {
                        self.count(|counts| counts.came_too_soon += 1);
                    }
                    _ => self.broken(&format!(
                        "invariant 5: {} shows a leaf of {issuer}, which {} does not trust, at a load of node {}",
                        id(other),
                        id(one),
                        caller.number
                    )),
                }
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

    /// Checks every served leaf at the end of the run.
    pub(crate) fn check_all(&self) {
        let loaded: Vec<_> = self.books().nodes.values().map(|node| node.server.loaded()).collect();
        for served in loaded.iter().flatten() {
            self.check_alive(served);
        }
    }

    pub(crate) fn unserved(&self) -> usize {
        self.books().nodes.values().filter(|node| node.server.loaded().is_none()).count()
    }

    /// The worst share of one cluster in one window, by phase.
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
    async fn shown(&self, _ours: &StoredChain, peers: Vec<SocketAddr>) -> BTreeMap<SocketAddr, Option<Shown>> {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(2..10))).await;
        let books = self.books();
        let shown = |peer: &SocketAddr| {
            let loaded = books.nodes.get(peer)?.server.loaded()?;
            Some(Shown { chain: loaded.chain.clone(), accepts: loaded.bundle.names() })
        };
        peers.into_iter().map(|peer| (peer, shown(&peer))).collect()
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

/// The next time of an event that happens once in `mean` on average.
pub(crate) fn next(rng: &mut fastrand::Rng, now: OffsetDateTime, mean: Duration) -> OffsetDateTime {
    let wait = mean.mul_f64(-(1.0 - rng.f64()).ln());
    now + wait.min(Duration::from_hours(24 * 3650))
}
