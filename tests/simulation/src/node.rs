//! The life of one node: an agent that restarts after every death, and a nats-server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};
use std::time::Duration;

use doubles::fake_server::{FakeServer, Loaded, Pace, Witness};
use doubles::moody_issuer::{Moods, MoodyIssuer};
use nats_tls_agent::config::{NatsConfig, RenewalConfig, RolloverConfig};
use nats_tls_agent::issue::journal::Journal;
use nats_tls_agent::issue::{Issuance, Issuer};
use nats_tls_agent::node::{Node as Identity, Placement};
use nats_tls_agent::peers::PeerSource;
use nats_tls_agent::peers::dial::Dial;
use nats_tls_agent::progress::Progress;
use nats_tls_agent::reconcile::commit_point::{CommitParts, CommitPoint};
use nats_tls_agent::reconcile::{Parts, Pass, PassRequest, Reconciler};
use nats_tls_agent::schedule::earliest;
use nats_tls_agent::server::Server;
use nats_tls_agent::server::standing::Standing;
use nats_tls_agent::state::generation::Generations;
use nats_tls_agent::trust::TrustSource;
use nats_tls_agent::x509::csr::KeyAlgorithm;
use nats_tls_agent::x509::san::Sans;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::cloud::{Access, Caller, PrivateCa, ROUTE_PORT};
use crate::world::{Seen, World, next};

/// The lifetime of a certificate.
pub const VALIDITY: Duration = Duration::from_hours(7 * 24);
/// The duration of a pass with an issuance, in milliseconds. A kill hits a random moment of a pass.
const PASS: u64 = 700;

/// How often a node is disturbed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disturbances {
    /// The share of passes that are killed at a random await. The share is ten times as high while a certificate is
    /// due.
    pub(crate) killed: f64,
    /// Mean time between restarts of the agent.
    pub(crate) agent_restart: Duration,
    /// Mean time between restarts of nats-server.
    pub(crate) server_restart: Duration,
}

/// An order to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// `agent renew`.
    Renew,
    /// `systemctl restart` of the agent.
    Restart,
}

/// A running node.
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) cluster: usize,
    pub(crate) orders: mpsc::UnboundedSender<Order>,
    address: SocketAddr,
    server: Arc<FakeServer>,
    directory: PathBuf,
    begun: tokio::time::Instant,
    tasks: [JoinHandle<()>; 2],
}

impl Node {
    /// Launches an instance into its group, and boots it a little later.
    pub(crate) fn launch(
        world: &Arc<World>,
        caller: Caller,
        seed: u64,
        disturbances: Disturbances,
        boot: Duration,
    ) -> std::io::Result<Self> {
        let id = format!("i-{:017x}", caller.number);
        let [_, a, b, c] = u32::try_from(caller.number).unwrap_or(u32::MAX).to_be_bytes();
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, a, b, c)), ROUTE_PORT);
        let directory = world.directory.join(&id);
        std::fs::create_dir_all(&directory)?;
        world.cloud.launch(caller.cluster, &id, address.ip());
        let witness = Box::new(Bookkeeper { world: Arc::clone(world), caller });
        let config = directory.join("nats-server.conf");
        let server = Arc::new(FakeServer::new(config, world.clock, Pace::Measured, witness));
        let shown = Seen {
            id: id.clone(),
            cluster: caller.cluster,
            server: Arc::clone(&server),
            anchors: std::collections::BTreeSet::new(),
            first_leaf: None,
        };
        world.join(address, shown);
        let (orders, told) = mpsc::unbounded_channel();
        let life = Life {
            world: Arc::clone(world),
            caller,
            id: id.clone(),
            address,
            directory: directory.clone(),
            server: Arc::clone(&server),
            disturbances,
            rng: fastrand::Rng::with_seed(seed ^ caller.number.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        };
        let seeded = |number, future| Seeded { seed: seed ^ (caller.number << 8) ^ number, future };
        let servers = life.server_restarts(boot);
        let tasks = [
            tokio::spawn(seeded(1, Box::pin(life.run(told, boot)) as Alive)),
            tokio::spawn(seeded(2, Box::pin(servers))),
        ];
        let begun = tokio::time::Instant::now();
        Ok(Self { id, cluster: caller.cluster, orders, address, server, directory, begun, tasks })
    }

    /// Removes the node from its group, stops the node, and removes its disk.
    pub(crate) async fn terminate(self, world: &World, leaving: Duration) {
        world.cloud.set_state(self.cluster, &self.id, "Terminating:Wait");
        tokio::time::sleep(leaving).await;
        self.stop(world);
        world.cloud.set_state(self.cluster, &self.id, "Terminated");
    }

    /// Ends the node's life, and counts its seconds and its files.
    pub(crate) fn stop(&self, world: &World) {
        for task in &self.tasks {
            task.abort();
        }
        world.leave(self.address);
        self.server.stop();
        let files = files_below(&self.directory);
        let lived = self.begun.elapsed().as_secs();
        world.count(|counts| {
            counts.node_seconds += lived;
            counts.most_files = counts.most_files.max(files);
        });
        let _gone = std::fs::remove_dir_all(&self.directory);
    }
}

fn files_below(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}

/// Records the actions of a node's server in the world's books.
struct Bookkeeper {
    world: Arc<World>,
    caller: Caller,
}

impl Witness for Bookkeeper {
    fn told_to_reload(&self) {
        self.world.note_reload(self.caller);
    }

    fn loaded(&self, server: &FakeServer, before: Option<&Loaded>, now: &Loaded) {
        self.world.note_load(self.caller, server, before, now);
    }

    fn found_broken(&self, reader: &'static str, fault: &str) {
        self.world.broken(&format!("invariant 2: {reader} of node {}: {fault}", self.caller.number));
    }
}

type Alive = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Life {
    world: Arc<World>,
    caller: Caller,
    id: String,
    address: SocketAddr,
    directory: PathBuf,
    server: Arc<FakeServer>,
    disturbances: Disturbances,
    rng: fastrand::Rng,
}

impl Life {
    /// Makes a new process of the agent, without the memory of an earlier process.
    fn agent(&mut self) -> Reconciler {
        let world = &self.world;
        let (caller, rng) = (self.caller, &mut self.rng);
        let mut access = || {
            let (cloud, rng) = (Arc::clone(&world.cloud), std::sync::Mutex::new(rng.fork()));
            Arc::new(Access { cloud, caller, rng, knows_authority: AtomicBool::new(false) })
        };
        let private_ca = access();
        let signer = Arc::new(PrivateCa(Arc::clone(&private_ca)));
        let (interval, default) = (world.interval(), RenewalConfig::default());
        Reconciler::new(Parts {
            node: Identity {
                name: self.id.clone(),
                instance_id: Some(self.id.clone()),
                region: None,
                address: self.address.ip(),
                sans: Sans { ips: [self.address.ip()].into(), ..Sans::default() },
                further_addresses: [].into(),
                placement: Placement::default(),
            },
            issuance: Issuance {
                issuer: Arc::new(MoodyIssuer::new(signer, world.clock, private_ca as Arc<dyn Moods>))
                    as Arc<dyn Issuer>,
                journal: Journal::of(&self.directory),
                clock: world.clock,
                validity: VALIDITY,
                renewed_after: earliest(VALIDITY, default.at),
                algorithm: KeyAlgorithm::EcdsaP256,
            },
            lifecycle: None,
            trust: access() as Arc<dyn TrustSource>,
            client_trust: None,
            peers: access() as Arc<dyn PeerSource>,
            dial: Arc::clone(world) as Arc<dyn Dial>,
            credential: None,
            included: Vec::new(),
            publication: None,
            commit_point: CommitPoint::new(CommitParts {
                server: Arc::clone(&self.server) as Arc<dyn Server>,
                nats: NatsConfig { config: self.directory.join("nats-server.conf"), ..NatsConfig::default() },
                clock: world.clock,
                generations: Generations::of(&self.directory),
                state: self.directory.clone(),
            }),
            clock: world.clock,
            rollover: RolloverConfig::default(),
            renewal: RenewalConfig { retry_max: default.retry_max.max(interval / 6), ..default },
            interval,
            allowed_losses: Vec::new(),
        })
    }

    /// Restarts nats-server at random times, as systemd does.
    fn server_restarts(&self, boot: Duration) -> impl Future<Output = ()> + Send + use<> {
        let (world, server, mut rng) = (Arc::clone(&self.world), Arc::clone(&self.server), self.rng.clone());
        let mean = self.disturbances.server_restart;
        async move {
            tokio::time::sleep(boot).await;
            loop {
                world.clock.sleep_until(next(&mut rng, world.clock.now(), mean)).await;
                if server.loaded().is_none() {
                    continue;
                }
                server.stop();
                world.count(|counts| counts.server_restarts += 1);
                tokio::time::sleep(Duration::from_millis(rng.u64(200..5_000))).await;
                start(&server);
            }
        }
    }

    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>, boot: Duration) {
        tokio::time::sleep(boot).await;
        self.world.cloud.boot(self.caller.cluster, &self.id);
        loop {
            Box::pin(self.process(&mut orders)).await;
            self.world.count(|counts| counts.agent_restarts += 1);
            tokio::time::sleep(Duration::from_millis(self.rng.u64(100..5_000))).await;
        }
    }

    /// Runs one process of the agent until a kill or an order to restart.
    async fn process(&mut self, orders: &mut mpsc::UnboundedReceiver<Order>) {
        let mut agent = self.agent();
        let clock = self.world.clock;
        let restart = next(&mut self.rng, clock.now(), self.disturbances.agent_restart);
        let mut wanted = PassRequest::default();
        let mut is_due = true;
        loop {
            let Some(pass) = self.pass(&mut agent, &wanted, is_due).await else { return };
            wanted = PassRequest::default();
            // A repeated attempt has the lower share of kills. Every pass of an outage is such an attempt, and more
            // kills there show nothing new.
            let renewal = &pass.status.renewal;
            is_due = renewal.next.is_some_and(|next| next <= pass.next) && renewal.attempts == 0;
            if matches!(pass.outcome, Ok(Standing::NoServer { .. })) {
                // nats-server starts late here, because its unit waits for a configuration.
                tokio::time::sleep(Duration::from_millis(50)).await;
                start(&self.server);
            }
            let until = pass.next.min(restart);
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(Order::Renew) => (wanted.renew, wanted.now) = (true, true),
                    Some(Order::Restart) | None => return,
                },
                () = clock.sleep_until(until) => {}
            }
            if clock.now() >= restart {
                return;
            }
        }
    }

    /// Runs one pass. `None`: the pass was killed at an await, as by `SIGKILL`.
    async fn pass(&mut self, agent: &mut Reconciler, wanted: &PassRequest, is_due: bool) -> Option<Pass> {
        self.world.count(|counts| counts.passes += 1);
        let share = self.disturbances.killed * if is_due { 10.0 } else { 1.0 };
        let progress = Progress::default();
        let passing = agent.pass(wanted, &progress);
        let pass = if self.rng.f64() < share {
            // The clock times the kill, because the number of awaits depends on the thread that makes the key. A pass
            // spends all its time in awaits, so the kill hits an await.
            let killed = tokio::time::sleep(Duration::from_millis(self.rng.u64(0..PASS)));
            tokio::select! {
                biased;
                () = killed => None,
                pass = passing => Some(pass),
            }
        } else {
            Some(passing.await)
        };
        match &pass {
            Some(pass) => {
                let anchors = pass.status.trust.iter().flat_map(|trust| &trust.anchors);
                self.world.note_anchors(self.address, anchors.map(|anchor| anchor.subject.clone()).collect());
            }
            None => self.world.count(|counts| counts.killed += 1),
        }
        pass
    }
}

/// Starts a stopped server if there is a configuration.
fn start(server: &FakeServer) {
    if server.loaded().is_none() && server.config.exists() {
        server.start();
    }
}

/// A task with random numbers of its own. A task thus draws the same numbers in whatever order the runtime polls the
/// tasks.
struct Seeded {
    seed: u64,
    future: Alive,
}

impl Future for Seeded {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        fastrand::seed(self.seed);
        let polled = self.future.as_mut().poll(context);
        self.seed = fastrand::get_seed();
        polled
    }
}
