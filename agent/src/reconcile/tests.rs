//! Months of a node's life on virtual time.
//!
//! The reconciler, schedule, journal, acceptance and commit are real. The issuer, sources and nats-server are doubles.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::task::Poll;

use async_trait::async_trait;
use time::macros::datetime;

use super::*;
use crate::aws::secret::SecretError;
use crate::config::NatsConfig;
use crate::credential::CredentialVersion;
use crate::doubles::fake_server::{FakeServer, Pace, Witness, setting};
use crate::doubles::moody_issuer::{Mood, Moods, MoodyIssuer, SetMoods};
use crate::error::{RemoteError, RemoteErrorKind};
use crate::issue::journal::Journal;
use crate::issue::local::Local;
use crate::issue::{IssuedChain, Issuer};
use crate::peers::dial::{Network, Shown};
use crate::peers::{Peer, Sighting};
use crate::reconcile::commit_point::{CommitParts, DeployError};
use crate::schedule::earliest;
use crate::server::{Server, ServerError};
use crate::state::durable::fault::{Fault, plan};
use crate::state::generation::Generations;
use crate::status::State;
use crate::trust::{Distrusted, RejectedChain, TrustBundle, TrustError};
use crate::x509::chain::StoredChain;
use crate::x509::csr::KeyAlgorithm;
use crate::x509::san::Sans;

mod client_trust;
mod distrust;
mod reloads;
mod rollover;
mod time_steps;

const START: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);
const DAY: Duration = Duration::from_hours(24);
const WEEK: Duration = Duration::from_hours(7 * 24);
const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 1));

/// A trust source whose bundle a test sets or takes away. The first poll of an answer is pending, and a test can stop
/// the pass there.
struct SettableTrust(Mutex<Option<TrustBundle>>);

#[async_trait]
impl TrustSource for SettableTrust {
    async fn fetch(&self) -> Result<TrustBundle, TrustError> {
        tokio::task::yield_now().await;
        self.0.lock().unwrap().clone().ok_or_else(|| TrustError::Timeout { origin: "the double".into() })
    }
}

/// A peer source whose peers a test sets or takes away.
struct SettablePeers(Mutex<Option<Vec<Peer>>>, Mutex<Option<Arc<RemoteError>>>);

#[async_trait]
impl PeerSource for SettablePeers {
    async fn sight(&self) -> Result<Sighting, RemoteError> {
        tokio::task::yield_now().await;
        let away = || RemoteError::new(RemoteErrorKind::Unavailable, "DescribeAutoScalingGroups", "away", "wait");
        let peers = self.0.lock().unwrap().clone().ok_or_else(away)?;
        Ok(Sighting { peers, fault: self.1.lock().unwrap().clone(), ..Sighting::default() })
    }
}

/// The state of a warm pool that a test sets.
#[derive(Default)]
struct SettableLifecycle(Mutex<Option<&'static str>>);

#[async_trait]
impl Lifecycle for SettableLifecycle {
    async fn warm_pool(&self) -> Option<String> {
        self.0.lock().unwrap().map(ToOwned::to_owned)
    }
}

/// A credential source whose versions a test sets.
struct SettableCredential(Mutex<Vec<CredentialVersion>>);

#[async_trait]
impl CredentialSource for SettableCredential {
    async fn fetch(&self, _recently: OffsetDateTime) -> Result<Vec<CredentialVersion>, SecretError> {
        tokio::task::yield_now().await;
        Ok(self.0.lock().unwrap().clone())
    }
}

/// Fails the test where a reader finds an incomplete configuration. Tests of a single node allow none.
struct Strict;

impl Witness for Strict {
    fn found_broken(&self, reader: &'static str, fault: &str) {
        panic!("{reader} read a configuration that is incomplete: {fault}");
    }
}

/// The real network, where the peers in `answering` also count as answering, and the peers in `shown` show what a test sets.
#[derive(Default)]
struct SettableDial {
    answering: Mutex<BTreeSet<SocketAddr>>,
    shown: Mutex<BTreeMap<SocketAddr, Shown>>,
}

#[async_trait]
impl Dial for SettableDial {
    async fn shown(&self, ours: &StoredChain, peers: Vec<SocketAddr>) -> BTreeMap<SocketAddr, Option<Shown>> {
        let known = self.shown.lock().unwrap().clone();
        let (set, others): (Vec<_>, Vec<_>) = peers.into_iter().partition(|peer| known.contains_key(peer));
        let set = set.into_iter().map(|peer| (peer, known.get(&peer).cloned()));
        Network.shown(ours, others).await.into_iter().chain(set).collect()
    }

    async fn answering(&self, peers: Vec<SocketAddr>) -> BTreeSet<SocketAddr> {
        let (known, others) = {
            let answering = self.answering.lock().unwrap();
            peers.into_iter().partition::<Vec<_>, _>(|peer| answering.contains(peer))
        };
        known.into_iter().chain(Network.answering(others).await).collect()
    }
}

/// A node, and handles to everything around the node.
struct Bench {
    directory: tempfile::TempDir,
    clock: Clock,
    moods: Arc<SetMoods>,
    issuer: Arc<MoodyIssuer>,
    lifecycle: Arc<SettableLifecycle>,
    trust: Arc<SettableTrust>,
    client_trust: Option<Arc<SettableTrust>>,
    peers: Arc<SettablePeers>,
    dial: Arc<SettableDial>,
    server: Arc<FakeServer>,
    interval: Duration,
    validity: Duration,
    name: &'static str,
    template: Option<PathBuf>,
    rollover: RolloverConfig,
    algorithm: KeyAlgorithm,
}

impl Bench {
    async fn new() -> Self {
        let clock = Clock::steppable(START);
        Self::between(clock, clock).await
    }

    /// A node and an issuer, each with its own clock.
    async fn between(clock: Clock, issuers: Clock) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let moods = Arc::new(SetMoods::default());
        let signer = Arc::new(Local::new(directory.path().join("ca"), issuers));
        let issuer = Arc::new(MoodyIssuer::new(signer, issuers, Arc::clone(&moods) as Arc<dyn Moods>));
        let bundle = TrustBundle::parse(issuer.ca_pem().await.unwrap().as_bytes(), "double", "1").unwrap();
        let config = directory.path().join("state/nats-server.conf");
        let server = FakeServer::new(config, clock, Pace::Polled, Box::new(Strict));
        Self {
            clock,
            moods,
            issuer,
            lifecycle: Arc::default(),
            trust: Arc::new(SettableTrust(Mutex::new(Some(bundle)))),
            client_trust: None,
            peers: Arc::new(SettablePeers(Mutex::new(Some(peers(&[1, 2, 3]))), Mutex::default())),
            dial: Arc::default(),
            server: Arc::new(server),
            interval: Duration::from_mins(10),
            validity: WEEK,
            name: "i-1",
            template: None,
            rollover: RolloverConfig::default(),
            algorithm: KeyAlgorithm::EcdsaP256,
            directory,
        }
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// A new process of the agent, without the memory of an earlier process.
    fn agent(&self) -> Box<Reconciler> {
        self.agent_with(None)
    }

    fn agent_with(&self, credential: Option<Arc<dyn CredentialSource>>) -> Box<Reconciler> {
        std::fs::create_dir_all(self.state()).unwrap();
        Box::new(Reconciler::new(Parts {
            node: Node {
                name: self.name.into(),
                instance_id: Some("i-1".into()),
                region: None,
                address: OWN,
                sans: Sans { ips: [OWN].into(), ..Sans::default() },
                further_addresses: [].into(),
                placement: crate::node::Placement::default(),
            },
            issuance: Issuance {
                issuer: Arc::clone(&self.issuer) as Arc<dyn Issuer>,
                journal: Journal::of(&self.state()),
                clock: self.clock,
                validity: self.validity,
                renewed_after: earliest(self.validity, RenewalConfig::default().at),
                algorithm: self.algorithm,
            },
            lifecycle: Some(Arc::clone(&self.lifecycle) as Arc<dyn Lifecycle>),
            trust: Arc::clone(&self.trust) as Arc<dyn TrustSource>,
            client_trust: self.client_trust.clone().map(|source| source as Arc<dyn TrustSource>),
            peers: Arc::clone(&self.peers) as Arc<dyn PeerSource>,
            dial: Arc::clone(&self.dial) as Arc<dyn Dial>,
            credential,
            included: Vec::new(),
            publication: None,
            commit_point: CommitPoint::new(CommitParts {
                server: Arc::clone(&self.server) as Arc<dyn Server>,
                nats: NatsConfig {
                    config: self.server.config.clone(),
                    template: self.template.clone(),
                    ..NatsConfig::default()
                },
                clock: self.clock,
                generations: Generations::of(&self.state()),
                state: self.state(),
            }),
            clock: self.clock,
            renewal: RenewalConfig::default(),
            rollover: self.rollover,
            interval: self.interval,
            allowed_losses: Vec::new(),
        }))
    }

    /// A node after its first boot: the agent has committed, nats-server has started, and the agent saw the certificate
    /// served.
    async fn serving(&self) -> Box<Reconciler> {
        let mut agent = self.agent();
        let pass = agent.pass(&PassRequest::default(), &Progress::default()).await;
        assert!(matches!(pass.outcome, Ok(Standing::NoServer { .. })), "{:?}", pass.outcome);
        self.server.start();
        let pass = agent.pass(&PassRequest::default(), &Progress::default()).await;
        assert_eq!(pass.status.state, State::Healthy, "{:?}", pass.status.reasons);
        agent
    }

    /// Makes passes as the daemon does, until `until`, and returns the last pass.
    async fn live(&self, agent: &mut Reconciler, until: OffsetDateTime) -> Pass {
        loop {
            let pass = agent.pass(&PassRequest::default(), &Progress::default()).await;
            if pass.next >= until {
                self.clock.sleep_until(until).await;
                return pass;
            }
            self.clock.sleep_until(pass.next).await;
            let served = self.server.served().expect("a server that was started serves");
            assert!(served.not_after > self.clock.now(), "an expired leaf is served at {}", self.clock.now());
        }
    }

    /// The number of issued certificates. A request that is repeated with its token gets the same certificate.
    fn paid_for(&self) -> usize {
        std::fs::read_dir(self.directory.path().join("ca/issued")).unwrap().count()
    }

    fn committed(&self) -> String {
        std::fs::read_to_string(&self.server.config).unwrap()
    }
}

fn peers(numbers: &[u8]) -> Vec<Peer> {
    let peer = |number: &u8| Peer {
        id: format!("i-{number}"),
        // All but the node's own address are loopback addresses at which no process listens.
        address: if *number == 1 { (OWN, 6222).into() } else { ([127, 0, 0, *number], 1).into() },
        state: "InService".into(),
    };
    numbers.iter().map(peer).collect()
}

/// The reasons of a status as one text. Of the functions here only this function and [`warns`] read a reason.
fn reasons(status: &Status) -> String {
    status.reasons.iter().map(|told| told.text.as_str()).collect::<Vec<_>>().join(" ")
}

/// Whether any warning of a status contains this text.
fn warns(status: &Status, text: &str) -> bool {
    status.warnings.iter().any(|warning| warning.text.contains(text))
}

async fn pass(agent: &mut Reconciler) -> Pass {
    agent.pass(&PassRequest::default(), &Progress::default()).await
}

async fn renew(agent: &mut Reconciler) -> Pass {
    agent.pass(&PassRequest { renew: true, ..PassRequest::default() }, &Progress::default()).await
}

#[tokio::test(start_paused = true)]
async fn nothing_is_touched_or_signalled_where_nothing_changed() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    let inode = std::fs::metadata(&bench.server.config).unwrap().ino();
    bench.live(&mut agent, START + DAY).await;
    assert_eq!(std::fs::metadata(&bench.server.config).unwrap().ino(), inode);
    assert_eq!((bench.server.reloads(), bench.issuer.requests()), (0, 1));
    // A restart of the agent changes no file and sends no signal.
    bench.live(&mut bench.agent(), START + 2 * DAY).await;
    assert_eq!(std::fs::metadata(&bench.server.config).unwrap().ino(), inode);
    assert_eq!((bench.server.reloads(), bench.issuer.requests()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_quarter_of_weekly_certificates_is_renewed_in_time_and_never_in_a_loop() {
    let bench = Bench { interval: Duration::from_hours(3), ..Bench::new().await };
    let mut agent = bench.serving().await;
    let pass = bench.live(&mut agent, START + 90 * DAY).await;
    assert_eq!(pass.status.state, State::Healthy, "{:?}", pass.status.reasons);
    // A renewal is due every 4.2 to 4.7 days.
    assert!((19..=22).contains(&bench.issuer.requests()), "{} issued", bench.issuer.requests());
    assert_eq!(bench.server.reloads() + 1, bench.issuer.requests());
}

#[tokio::test(start_paused = true)]
async fn invariant_07_an_issuer_that_is_away_for_two_days_disturbs_nobody_and_nothing_is_done_by_hand() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    bench.live(&mut agent, START + 4 * DAY).await;
    bench.moods.is_away.store(true, Ordering::Relaxed);
    *bench.trust.0.lock().unwrap() = None;
    *bench.peers.0.lock().unwrap() = None;
    let pass = bench.live(&mut agent, START + 6 * DAY).await;
    assert_eq!(pass.status.state, State::Degraded);
    // The request is repeated every two to four minutes, while the issuer remembers the token of a lost answer.
    assert!(pass.status.renewal.attempts > 10 && pass.status.renewal.attempts < 1200, "{:?}", pass.status.renewal);
    assert!(reasons(&pass.status).contains("IssueCertificate"), "{:?}", pass.status.reasons);
    // A restart during the outage reads the peers and the bundle from the disk.
    let mut agent = bench.agent();
    let pass = bench.live(&mut agent, START + 6 * DAY + Duration::from_hours(1)).await;
    assert_eq!(pass.status.peers.len(), 3);
    assert_eq!(bench.server.reloads(), 0);
    bench.moods.is_away.store(false, Ordering::Relaxed);
    *bench.peers.0.lock().unwrap() = Some(peers(&[1, 2, 3]));
    *bench.trust.0.lock().unwrap() =
        Some(TrustBundle::parse(bench.issuer.ca_pem().await.unwrap().as_bytes(), "double", "1").unwrap());
    let pass = bench.live(&mut agent, START + 6 * DAY + Duration::from_hours(4)).await;
    assert_eq!(pass.status.state, State::Healthy, "{:?}", pass.status.reasons);
    assert_eq!(bench.issuer.requests(), 2);
}

/// A node whose routes present the old credential, and a new version of the credential.
///
/// The new version takes over a quarter of an hour after it was made, at a time that is no node's turn.
struct Successor {
    bench: Bench,
    source: Arc<SettableCredential>,
    takes_over: OffsetDateTime,
}

impl Successor {
    async fn serving() -> (Self, Box<Reconciler>) {
        let bench = Bench { interval: Duration::from_secs(30), ..Bench::new().await };
        let version = |password: &str, created| {
            let password = zeroize::Zeroizing::new(password.to_owned());
            CredentialVersion { credential: ClusterCredential { username: "route".into(), password }, created }
        };
        let old = version("the-old-one", START - DAY);
        let source = Arc::new(SettableCredential(Mutex::new(vec![old.clone()])));
        // The first of three nodes has its turn in the first ten seconds of a minute.
        let created = START + Duration::from_secs(90);
        let successor = Self { bench, source, takes_over: created + Duration::from_mins(15) };
        let mut agent = successor.agent();
        drop(pass(&mut agent).await);
        successor.bench.server.start();
        successor.bench.live(&mut agent, START + Duration::from_mins(1)).await;
        assert!(successor.holds("the-old-one"));
        *successor.source.0.lock().unwrap() = vec![old, version("the-new-one", created)];
        (successor, agent)
    }

    fn agent(&self) -> Box<Reconciler> {
        self.bench.agent_with(Some(Arc::clone(&self.source) as Arc<dyn CredentialSource>))
    }

    fn holds(&self, password: &str) -> bool {
        self.bench.server.loaded().unwrap().text.contains(password)
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_credential_takes_over_at_its_time_and_not_at_this_nodes_turn_though_its_source_is_away_by_then() {
    let (successor, mut agent) = Successor::serving().await;
    let Successor { bench, takes_over, .. } = &successor;
    let waiting = bench.live(&mut agent, START + Duration::from_mins(8)).await;
    assert!(warns(&waiting.status, "new cluster credential takes over at"));
    // The next process reads the new credential from the disk.
    let mut agent = successor.agent();
    agent.sources.credential.as_mut().unwrap().retry.next = *takes_over + DAY;
    bench.live(&mut agent, *takes_over - Duration::from_secs(1)).await;
    assert!(successor.holds("the-old-one") && !successor.holds("the-new-one"));
    let taken = bench.live(&mut agent, *takes_over + Duration::from_secs(1)).await;
    assert!(successor.holds("the-new-one") && !successor.holds("the-old-one"));
    assert_eq!((taken.status.state, bench.server.reloads()), (State::Healthy, 1), "{:?}", taken.status);
}

#[tokio::test(start_paused = true)]
async fn a_new_credential_whose_time_comes_during_a_pass_that_fails_takes_over_in_the_next_one_at_once() {
    let (successor, mut agent) = Successor::serving().await;
    let Successor { bench, takes_over, .. } = &successor;
    bench.live(&mut agent, *takes_over - Duration::from_secs(5)).await;
    bench.server.ignores.store(true, Ordering::Relaxed);
    let failed = renew(&mut agent).await;
    assert!(bench.clock.now() > *takes_over && failed.outcome.is_err(), "{:?}", failed.outcome);
    assert!(failed.next < bench.clock.now() + Duration::from_secs(1), "{}", failed.next);
    bench.server.ignores.store(false, Ordering::Relaxed);
    drop(pass(&mut agent).await);
    assert!(successor.holds("the-new-one"));
}

/// Drops a future at the first await where `crashes` returns true. Returns the output of a future that ends first.
async fn crashed<F: Future>(mut future: Pin<Box<F>>, mut crashes: impl FnMut() -> bool) -> Option<F::Output> {
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if crashes() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// Crashes at the await after `awaits` others. Threads write files meanwhile, so the number of an await differs from run to run. A test
/// of a certain await therefore names the condition.
fn crash_after(awaits: u32) -> impl FnMut(&Bench) -> bool {
    let mut left = awaits;
    move |_| {
        let is_last = left == 0;
        left = left.saturating_sub(1);
        is_last
    }
}

/// Crashes a renewal at the first await where `crashes` returns true, and starts the next process. Returns whether the renewal ended
/// before.
async fn crash_a_renewal(bench: &Bench, at: &str, mut crashes: impl FnMut(&Bench) -> bool) -> bool {
    let mut agent = bench.serving().await;
    bench.moods.in_progress.store(3, Ordering::Relaxed);
    let has_ended = crashed(Box::pin(renew(&mut agent)), || crashes(bench)).await.is_some();
    drop(agent);
    let mut agent = bench.agent();
    let pass = bench.live(&mut agent, bench.clock.now() + Duration::from_mins(10)).await;
    assert_eq!(pass.status.state, State::Healthy, "after a crash at {at}: {:?}", pass.status.reasons);
    assert!(bench.paid_for() <= 2, "{} paid for after a crash at {at}", bench.paid_for());
    let served = bench.server.served().unwrap();
    assert_eq!(Some(served.serial), pass.status.leaf.map(|leaf| leaf.serial), "after a crash at {at}");
    has_ended
}

#[tokio::test(start_paused = true)]
async fn invariant_11_a_crash_at_any_await_of_a_renewal_pays_for_one_certificate() {
    for awaits in 0.. {
        let bench = Bench::new().await;
        if crash_a_renewal(&bench, &format!("await {awaits}"), crash_after(awaits)).await {
            assert!(awaits > 15, "the renewal had only {awaits} awaits");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn invariant_11_a_crash_while_the_issuers_answer_is_on_its_way_pays_for_one_certificate() {
    let bench = Bench::new().await;
    let has_ended = crash_a_renewal(&bench, "the issuer's answer", |bench| bench.issuer.requests() == 2).await;
    assert!(!has_ended);
    assert_eq!((bench.paid_for(), bench.issuer.requests()), (2, 3), "the request is repeated with its token");
}

#[tokio::test(start_paused = true)]
async fn invariant_11_a_deployment_that_fails_is_tried_again_without_another_certificate() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    bench.server.refuses.store(true, Ordering::Relaxed);
    let before = bench.committed();
    let failed = renew(&mut agent).await;
    assert!(matches!(failed.outcome, Err(PassError::Deploy(_))), "{:?}", failed.outcome);
    bench.live(&mut agent, START + DAY).await;
    assert_eq!(bench.committed(), before, "what -t refuses is never committed");
    assert_eq!(bench.issuer.requests(), 2);
    bench.server.refuses.store(false, Ordering::Relaxed);
    let pass = bench.live(&mut agent, START + DAY + Duration::from_mins(30)).await;
    assert_eq!(pass.status.state, State::Healthy, "{:?}", pass.status.reasons);
    assert_eq!(bench.issuer.requests(), 2);
    assert_eq!(bench.server.served().map(|leaf| leaf.serial), pass.status.leaf.map(|leaf| leaf.serial));
}

#[tokio::test(start_paused = true)]
async fn a_reload_that_is_not_confirmed_is_rolled_back_and_said_so() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    let (before, serial) = (bench.committed(), bench.server.served().unwrap().serial);
    bench.server.ignores.store(true, Ordering::Relaxed);
    let rolled_back = renew(&mut agent).await;
    assert!(
        matches!(rolled_back.outcome, Err(PassError::Deploy(DeployError::RolledBack { confirmed: true, .. }))),
        "{:?}",
        rolled_back.outcome
    );
    assert_eq!((bench.committed(), bench.server.served().unwrap().serial), (before, serial));
    assert_eq!(rolled_back.status.state, State::Degraded);
    bench.server.ignores.store(false, Ordering::Relaxed);
    let pass = bench.live(&mut agent, START + DAY).await;
    assert_eq!((pass.status.state, bench.issuer.requests()), (State::Healthy, 2));
}

#[tokio::test(start_paused = true)]
async fn a_throttled_request_is_repeated_with_the_same_key_and_token() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    bench.moods.requests.lock().unwrap().extend([Mood::Throttled, Mood::Denied]);
    for _ in 0..2 {
        let refused = renew(&mut agent).await;
        assert!(matches!(refused.outcome, Err(PassError::Obtain(ObtainError::Issuer(_)))), "{:?}", refused.outcome);
    }
    let key = || agent.issuing.issuance.journal.load().unwrap().pending.map(|pending| pending.csr.key);
    let journalled = key().unwrap();
    let pass = renew(&mut agent).await;
    assert!(matches!(pass.outcome, Ok(Standing::Served(_))), "{:?}", pass.outcome);
    let (newest, _) = agent.deployment.commit_point.parts().generations.newest().unwrap();
    assert!(*newest.unwrap().chain.key() == journalled);
    assert_eq!(bench.issuer.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn invariant_04_a_leaf_for_another_key_is_never_deployed() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    let (newest, _) = agent.deployment.commit_point.parts().generations.newest().unwrap();
    let other = IssuedChain { leaf_pem: newest.unwrap().chain.chain().to_pem(), chain_pem: String::new() };
    *bench.moods.mistaken.lock().unwrap() = Some(other);
    let before = bench.committed();
    let rejected = renew(&mut agent).await;
    assert!(matches!(rejected.outcome, Err(PassError::Rejected(_))), "{:?}", rejected.outcome);
    assert_eq!(bench.committed(), before);
    let pass = renew(&mut agent).await;
    assert_eq!(pass.status.state, State::Healthy, "{:?}", pass.status.reasons);
    assert_eq!(bench.issuer.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn invariant_11_what_is_not_ours_is_collected_again_for_minutes_before_another_is_paid_for() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    let (newest, _) = agent.deployment.commit_point.parts().generations.newest().unwrap();
    let other = IssuedChain { leaf_pem: newest.unwrap().chain.chain().to_pem(), chain_pem: String::new() };
    let begin = bench.clock.now();
    *bench.moods.mistaken.lock().unwrap() = Some(other.clone());
    let rejected = renew(&mut agent).await;
    assert!(matches!(rejected.outcome, Err(PassError::Rejected(_))), "{:?}", rejected.outcome);
    while bench.issuer.requests() == 2 {
        *bench.moods.mistaken.lock().unwrap() = Some(other.clone());
        let pass = pass(&mut agent).await;
        bench.clock.sleep_until(pass.next).await;
    }
    let waited = bench.clock.now() - begin;
    assert!(waited >= time::Duration::minutes(5) && waited < time::Duration::hours(1), "{waited}");
}

#[tokio::test(start_paused = true)]
async fn invariant_11_while_no_certificate_is_ever_accepted_another_is_paid_for_more_and_more_rarely() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    let (newest, _) = agent.deployment.commit_point.parts().generations.newest().unwrap();
    let other = IssuedChain { leaf_pem: newest.unwrap().chain.chain().to_pem(), chain_pem: String::new() };
    let begin = bench.clock.now();
    *bench.moods.mistaken.lock().unwrap() = Some(other.clone());
    renew(&mut agent).await.outcome.unwrap_err();
    while bench.clock.now() < begin + DAY {
        *bench.moods.mistaken.lock().unwrap() = Some(other.clone());
        let pass = pass(&mut agent).await;
        assert!(reasons(&pass.status).contains("is for another public key"), "{:?}", pass.status.reasons);
        bench.clock.sleep_until(pass.next).await;
    }
    let paid = bench.issuer.requests() - 1;
    assert!((6..=10).contains(&paid), "{paid} certificates");
}

#[tokio::test(start_paused = true)]
async fn a_failed_issuance_is_tried_again_at_once_where_its_pause_ended_before_the_pass_did() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    bench.moods.requests.lock().unwrap().push_back(Mood::Away);
    renew(&mut agent).await.outcome.unwrap_err();
    agent.read_newest().unwrap();
    let over = agent.issuing.retry.next + Duration::from_secs(1);
    assert!(agent.next(over) < over + Duration::from_secs(1), "the leaf isn't due, and an interval is ten minutes");
}

#[tokio::test(start_paused = true)]
async fn invariant_11_a_leaf_that_the_bundle_does_not_accept_yet_is_kept_and_collected_again() {
    let bench = Bench::new().await;
    let ours = bench.trust.0.lock().unwrap().clone();
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Local::new(elsewhere.path().to_owned(), bench.clock).ca_pem().await.unwrap();
    *bench.trust.0.lock().unwrap() = Some(TrustBundle::parse(other.as_bytes(), "double", "0").unwrap());
    let mut agent = bench.agent();
    let rejected = pass(&mut agent).await;
    assert!(matches!(rejected.outcome, Err(PassError::Rejected(_))), "{:?}", rejected.outcome);
    assert!(!bench.server.config.exists());
    *bench.trust.0.lock().unwrap() = ours;
    while !bench.server.config.exists() {
        let pass = pass(&mut agent).await;
        bench.clock.sleep_until(pass.next).await;
    }
    assert_eq!(bench.issuer.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn invariant_11_a_cap_stops_what_nobody_foresaw() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    let mut refused = 0;
    for _ in 0..40 {
        let pass = renew(&mut agent).await;
        refused += u32::from(matches!(pass.outcome, Err(PassError::Obtain(ObtainError::Capped { .. }))));
    }
    assert_eq!(bench.issuer.requests() + refused, 41);
    assert_eq!(bench.issuer.requests(), 12);
    // A day later the cap allows the next certificate.
    bench.clock.sleep_until(START + DAY + Duration::from_hours(1)).await;
    let pass = renew(&mut agent).await;
    assert_eq!(pass.status.state, State::Healthy, "{:?}", pass.status.reasons);
}

#[tokio::test(start_paused = true)]
async fn invariant_06_no_answer_of_discovery_takes_a_route_away_that_it_should_not() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    let before = bench.committed();
    for answer in [None, Some(Vec::new()), Some(peers(&[2, 3]))] {
        *bench.peers.0.lock().unwrap() = answer;
        let pass = bench.live(&mut agent, bench.clock.now() + Duration::from_hours(2)).await;
        assert_eq!(bench.committed(), before);
        let told = |text| reasons(&pass.status).contains(text) || warns(&pass.status, text);
        assert!(told("away") || told("last good set stays"), "{:?}", pass.status);
    }
    *bench.peers.0.lock().unwrap() = Some(peers(&[1, 3, 4]));
    bench.live(&mut agent, bench.clock.now() + Duration::from_mins(20)).await;
    assert!(!bench.committed().contains("127.0.0.2:1\"") && bench.committed().contains("127.0.0.4:1\""));
    assert_eq!(bench.issuer.requests(), 1, "a change of peers is a new file on the same generation");
}

#[tokio::test(start_paused = true)]
async fn why_a_peer_is_left_out_is_a_warning_with_a_code() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    let denied = RemoteError::new(RemoteErrorKind::Denied, "ec2:DescribeInstances", "not allowed", "allow the call");
    *bench.peers.1.lock().unwrap() = Some(Arc::new(denied));
    let later = bench.clock.now() + Duration::from_mins(20);
    let pass = bench.live(&mut agent, later).await;
    let is_told = |pass: &Pass| pass.status.warnings.iter().any(|warning| warning.code == "discovery_denied");
    assert!(pass.status.state == State::Healthy && is_told(&pass), "{:?}", pass.status);
    *bench.peers.1.lock().unwrap() = None;
    let pass = bench.live(&mut agent, later + Duration::from_mins(20)).await;
    assert!(!is_told(&pass), "{:?}", pass.status.warnings);
}

#[tokio::test(start_paused = true)]
async fn invariant_06_a_peer_that_left_the_group_and_still_answers_keeps_its_route() {
    let bench = Bench::new().await;
    let alive = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut all = peers(&[1, 3]);
    all.push(Peer { id: "i-2".into(), address: alive.local_addr().unwrap(), state: "InService".into() });
    *bench.peers.0.lock().unwrap() = Some(all);
    let mut agent = bench.serving().await;
    *bench.peers.0.lock().unwrap() = Some(peers(&[1, 3]));
    let route = alive.local_addr().unwrap().to_string();
    // Real sockets answer in real time, and paused time doesn't wait for them.
    tokio::time::resume();
    agent.sources.peers.retry.next = OffsetDateTime::UNIX_EPOCH;
    let kept = pass(&mut agent).await;
    assert!(bench.committed().contains(&route));
    assert!(warns(&kept.status, "still answers"), "{:?}", kept.status.warnings);
    drop(alive);
    agent.sources.peers.retry.next = OffsetDateTime::UNIX_EPOCH;
    pass(&mut agent).await;
    assert!(!bench.committed().contains(&route));
}

#[tokio::test(start_paused = true)]
async fn invariant_05_an_anchor_that_a_served_leaf_needs_outlives_its_place_in_the_source() {
    let bench = Bench::new().await;
    *bench.peers.0.lock().unwrap() = Some(peers(&[1]));
    let mut agent = bench.serving().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Local::new(elsewhere.path().to_owned(), bench.clock).ca_pem().await.unwrap();
    *bench.trust.0.lock().unwrap() = Some(TrustBundle::parse(other.as_bytes(), "double", "2").unwrap());
    let pass = bench.live(&mut agent, START + Duration::from_hours(6)).await;
    let trust = pass.status.trust.as_ref().unwrap();
    assert_eq!(trust.anchors.len(), 2, "{trust:?}");
    assert!(warns(&pass.status, "no longer holds"), "{:?}", pass.status.warnings);
    assert_eq!(pass.status.state, State::Healthy, "{:?}", pass.status.reasons);
}

/// The bundle of a rollover: the CA in force and, in its place at the issuer, another CA.
async fn with_next_ca(bench: &Bench) -> (TrustBundle, TrustBundle) {
    let old = bench.issuer.ca_pem().await.unwrap();
    let ca = bench.directory.path().join("ca");
    std::fs::rename(&ca, ca.with_extension("old")).unwrap();
    let new = bench.issuer.ca_pem().await.unwrap();
    let parse = |text: &str| TrustBundle::parse(text.as_bytes(), "double", "2").unwrap();
    (parse(&old), parse(&format!("{old}{new}")))
}

fn fingerprints(bundle: &TrustBundle) -> Distrusted {
    bundle.anchors.iter().map(|anchor| anchor.sha256.parse().unwrap()).collect()
}

/// What a node serves, and whether it trusts a CA.
fn serves_and_trusts(bench: &Bench, ca: &TrustBundle) -> (bool, bool) {
    let loaded = bench.server.loaded().unwrap();
    let trusts = loaded.bundle.anchors.iter().any(|anchor| *anchor == ca.anchors[0]);
    (ca.chains(&loaded.chain, bench.clock.now()), trusts)
}

#[tokio::test(start_paused = true)]
async fn a_distrusted_ca_is_gone_within_a_minute_with_a_new_leaf_at_no_turn_and_though_no_peer_answers() {
    let mut bench = Bench::new().await;
    bench.interval = Duration::from_secs(30);
    let mut agent = bench.serving().await;
    let (old, both) = with_next_ca(&bench).await;
    *bench.trust.0.lock().unwrap() = Some(both.clone());
    bench.live(&mut agent, START + Duration::from_mins(6)).await;
    assert_eq!(serves_and_trusts(&bench, &old), (true, true));
    let reloads = bench.server.reloads();
    bench.server.to_close.store(3, Ordering::Relaxed);
    // No answer of a peer may say that the old CA is needed no longer, and the node has its turn in ten seconds of a minute.
    *bench.trust.0.lock().unwrap() = Some(both.without(&fingerprints(&old)).unwrap());
    let pass = bench.live(&mut agent, START + Duration::from_mins(7)).await;
    assert_eq!(serves_and_trusts(&bench, &old), (false, false), "{:?}", pass.status);
    assert_eq!(bench.server.reloads(), reloads + 1, "leaf and bundle come into force together");
    assert_eq!(pass.status.nats.distrust.map(|distrust| distrust.closed), Some(3), "{:?}", pass.status.warnings);
    assert_eq!(pass.status.state, State::Healthy, "{:?}", pass.status.reasons);
    assert_eq!(bench.issuer.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_distrusted_ca_goes_though_the_issuer_still_has_it_or_is_away_and_its_leaf_is_refused_by_name() {
    for is_away in [false, true] {
        let mut bench = Bench::new().await;
        bench.interval = Duration::from_secs(30);
        let mut agent = bench.serving().await;
        let elsewhere = tempfile::tempdir().unwrap();
        let other = Local::new(elsewhere.path().to_owned(), bench.clock).ca_pem().await.unwrap();
        let old = bench.trust.0.lock().unwrap().clone().unwrap();
        let both = old.to_pem() + &other;
        let both = TrustBundle::parse(both.as_bytes(), "double", "2").unwrap();
        *bench.trust.0.lock().unwrap() = Some(both.without(&fingerprints(&old)).unwrap());
        bench.moods.is_away.store(is_away, Ordering::Relaxed);
        let pass = bench.live(&mut agent, START + Duration::from_mins(2)).await;
        let (_, trusts) = serves_and_trusts(&bench, &old);
        assert!(!trusts, "{:?}", pass.status);
        let said = reasons(&pass.status);
        assert_ne!(pass.status.state, State::Healthy, "{said}");
        assert_eq!(said.contains("which is distrusted"), !is_away, "{said}");
        assert!(bench.issuer.requests() <= 2 || is_away, "{}", bench.issuer.requests());
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_distrusts_by_itself_while_the_source_is_away_and_after_a_restart() {
    let mut bench = Bench::new().await;
    bench.interval = Duration::from_secs(30);
    let mut agent = bench.serving().await;
    let (old, both) = with_next_ca(&bench).await;
    *bench.trust.0.lock().unwrap() = Some(both.clone());
    bench.live(&mut agent, START + Duration::from_mins(6)).await;
    *bench.trust.0.lock().unwrap() = None;
    let wanted =
        PassRequest { renew: true, distrust: fingerprints(&old).into_iter().collect(), ..PassRequest::default() };
    agent.pass(&wanted, &Progress::default()).await.outcome.unwrap();
    assert_eq!(serves_and_trusts(&bench, &old), (false, false));
    // The source still has the CA, and doesn't distrust it.
    *bench.trust.0.lock().unwrap() = Some(both);
    let mut agent = bench.agent();
    let pass = bench.live(&mut agent, START + Duration::from_mins(9)).await;
    assert_eq!(serves_and_trusts(&bench, &old), (false, false), "{:?}", pass.status);
    assert_eq!(pass.status.state, State::Healthy, "{:?}", pass.status.reasons);
}

#[tokio::test(start_paused = true)]
async fn distrust_that_leaves_no_anchor_changes_nothing_and_says_so() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    let old = bench.trust.0.lock().unwrap().clone().unwrap();
    let distrust: Vec<_> = fingerprints(&old).into_iter().collect();
    let wanted = PassRequest { renew: true, distrust, ..PassRequest::default() };
    let refused = agent.pass(&wanted, &Progress::default()).await;
    let reason = Reason::from(&refused.outcome.unwrap_err());
    assert_eq!(reason.code(), Code::NothingTrusted, "{reason}");
    assert_eq!(bench.paid_for(), 1);
    let pass = pass(&mut agent).await;
    assert_eq!(serves_and_trusts(&bench, &old), (true, true));
    assert_eq!(pass.status.state, State::Healthy, "{:?}", pass.status.reasons);
    // A file that a person has written does no harm either.
    let text = format!("distrust: {}\n", old.anchors[0].sha256);
    std::fs::write(bench.state().join("distrusted"), text).unwrap();
    let pass = bench.live(&mut agent, bench.clock.now() + Duration::from_mins(15)).await;
    assert_eq!(serves_and_trusts(&bench, &old), (true, true));
    assert!(reasons(&pass.status).contains("every CA of the bundle is distrusted"), "{:?}", pass.status.reasons);
}

#[tokio::test(start_paused = true)]
async fn a_leaf_that_expired_while_the_machine_slept_is_renewed_at_once() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    tokio::time::sleep(30 * DAY).await;
    let woken = pass(&mut agent).await;
    assert_eq!(woken.status.state, State::Healthy, "{:?}", woken.status.reasons);
    assert!(bench.server.served().unwrap().not_after > bench.clock.now());
}

#[tokio::test(start_paused = true)]
async fn a_setting_that_waits_for_a_restart_never_holds_back_a_certificate() {
    for is_old in [false, true] {
        let mut bench = Bench::new().await;
        bench.server.is_old.store(is_old, Ordering::Relaxed);
        // A short interval would make the weeks of this test slow.
        bench.interval = Duration::from_hours(2);
        Box::pin(a_setting_waits(&mut bench)).await;
    }
}

async fn a_setting_waits(bench: &mut Bench) {
    bench.serving().await;
    bench.name = "another";
    let mut agent = bench.agent();
    let changed = pass(&mut agent).await;
    assert!(matches!(changed.outcome, Ok(Standing::Served(_))), "{:?}", changed.outcome);
    let waits = |pass: &Pass| warns(&pass.status, "takes server_name only at a start");
    assert!(waits(&changed) && changed.status.state == State::Healthy, "{:?}", changed.status);
    assert_eq!(setting(&bench.committed(), "server_name").as_deref(), Some("another"));
    // Each renewal of these weeks is issued and served once, across a restart of the agent too.
    for days in [10, 20] {
        let serial = bench.server.served().unwrap().serial;
        let pass = bench.live(&mut agent, START + days * DAY).await;
        assert!(waits(&pass) && pass.status.state == State::Healthy, "{:?}", pass.status);
        assert_ne!(bench.server.served().unwrap().serial, serial);
        assert_eq!(setting(&bench.committed(), "server_name").as_deref(), Some("another"));
        agent = bench.agent();
    }
    assert!(bench.issuer.requests() <= 6, "{}", bench.issuer.requests());
    bench.server.start();
    let restarted = pass(&mut agent).await;
    assert!(!waits(&restarted) && restarted.status.state == State::Healthy, "{:?}", restarted.status);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_everyone_sees_waits_for_this_nodes_turn_and_a_renewal_that_is_asked_for_does_not() {
    let mut bench = Bench::new().await;
    bench.interval = Duration::from_secs(30);
    let mut agent = bench.serving().await;
    // The first node of a cluster has its turn in the first ten seconds of each minute. The time is half past a minute.
    bench.clock.sleep_until(START + Duration::from_secs(30)).await;
    *bench.peers.0.lock().unwrap() = Some(peers(&[1, 2, 3, 4]));
    let waits = pass(&mut agent).await;
    assert_eq!((bench.server.reloads(), waits.status.state), (0, State::Healthy), "{:?}", waits.status.reasons);
    assert!(!bench.committed().contains("127.0.0.4:1"));
    bench.live(&mut agent, START + Duration::from_secs(61)).await;
    assert!(bench.committed().contains("127.0.0.4:1"));
    assert_eq!(bench.server.reloads(), 1);

    bench.clock.sleep_until(START + Duration::from_secs(95)).await;
    *bench.peers.0.lock().unwrap() = Some(peers(&[1, 2, 3, 4, 5]));
    renew(&mut agent).await.outcome.unwrap();
    assert!(bench.committed().contains("127.0.0.5:1"));
    assert_eq!(bench.server.reloads(), 2);
}

/// Every cause of a reload has one pacing: a process that starts, a process that died before its signal, and another try.
#[tokio::test(start_paused = true)]
async fn a_change_waits_for_the_turn_after_a_restart_a_death_and_a_failure_too() {
    let mut bench = Bench::new().await;
    bench.interval = Duration::from_secs(30);
    let mut agent = bench.serving().await;
    let add = |bench: &Bench, numbers: &[u8]| *bench.peers.0.lock().unwrap() = Some(peers(numbers));
    let is_turn = |bench: &Bench| bench.clock.now().unix_timestamp().rem_euclid(60) < 10;

    // Another process finds the change.
    bench.clock.sleep_until(START + Duration::from_secs(30)).await;
    add(&bench, &[1, 2, 3, 4]);
    agent = {
        drop(agent);
        bench.agent()
    };
    drop(pass(&mut agent).await);
    assert_eq!(bench.server.reloads(), 0);
    bench.live(&mut agent, START + Duration::from_secs(75)).await;
    assert_eq!(bench.server.reloads(), 1);

    // A process died after its commit.
    add(&bench, &[1, 2, 3, 4, 5]);
    bench.server.is_deaf.store(true, Ordering::Relaxed);
    bench.clock.sleep_until(START + Duration::from_secs(121)).await;
    drop(pass(&mut agent).await.outcome.unwrap_err());
    bench.server.is_deaf.store(false, Ordering::Relaxed);
    bench.clock.sleep_until(START + Duration::from_secs(150)).await;
    agent = {
        drop(agent);
        bench.agent()
    };
    let waits = pass(&mut agent).await;
    assert_eq!((bench.server.reloads(), is_turn(&bench)), (1, false), "{:?}", waits.status);
    bench.live(&mut agent, START + Duration::from_secs(195)).await;
    assert_eq!(bench.server.reloads(), 2);

    // A reload is refused, and the tries after it come in turns.
    add(&bench, &[1, 2, 3, 4, 5, 6]);
    bench.server.ignores.store(true, Ordering::Relaxed);
    let mut tried = 0;
    for second in 200..600 {
        bench.clock.sleep_until(START + Duration::from_secs(second)).await;
        let (before, began_in_turn) = (bench.server.reloads(), is_turn(&bench));
        drop(pass(&mut agent).await);
        if bench.server.reloads() > before {
            assert!(began_in_turn, "a try at second {second}");
            tried += 1;
        }
    }
    assert!(tried > 2, "{tried} tries");
}

/// Runs a renewal with a fault at the given point of the disk. Returns `None` where the renewal has fewer points.
async fn renew_with(agent: Box<Reconciler>, points: u32, fault: Fault) -> Option<Result<(Box<Reconciler>, Pass), ()>> {
    pass_with(agent, PassRequest { renew: true, ..PassRequest::default() }, points, fault).await
}

/// Runs any pass with a fault at the given point of the disk.
async fn pass_with(
    agent: Box<Reconciler>,
    wanted: PassRequest,
    points: u32,
    fault: Fault,
) -> Option<Result<(Box<Reconciler>, Pass), ()>> {
    plan(Some((points, fault)));
    let pass = tokio::spawn(async move {
        let mut agent = agent;
        let pass = agent.pass(&wanted, &Progress::default()).await;
        (agent, pass)
    });
    let ended = pass.await.map_err(|crash| assert!(crash.is_panic(), "{crash}"));
    if plan(None).is_some() { None } else { Some(ended) }
}

/// Asserts that nats-server can start with the files on the disk (invariant 2).
fn assert_whole(bench: &Bench) {
    let generations = Generations::of(&bench.state());
    let number = generations.named_in(&bench.committed()).expect("the committed configuration names a generation");
    let generation = generations.load(number).unwrap();
    let ours = crate::x509::csr::public_key_der(generation.chain.key()).unwrap();
    let (_, certificate) = x509_parser::parse_x509_certificate(&generation.chain.leaf().der).unwrap();
    assert_eq!(certificate.public_key().raw, ours, "key and certificate of generation {number} don't match");
    assert!(generation.bundle.chains(generation.chain.chain(), bench.clock.now()));
}

#[tokio::test(start_paused = true)]
async fn invariant_02_a_crash_at_any_write_flush_or_rename_of_a_renewal_leaves_a_whole() {
    for points in 0.. {
        let bench = Bench::new().await;
        let agent = bench.serving().await;
        let Some(ended) = renew_with(agent, points, Fault::Crash).await else {
            assert!(points > 40, "only {points} points were passed");
            return;
        };
        assert!(ended.is_err(), "there was no crash at point {points}");
        assert_whole(&bench);
        // nats-server is restarted, and then the agent.
        bench.server.start();
        let pass = bench.live(&mut bench.agent(), bench.clock.now() + Duration::from_hours(1)).await;
        assert_eq!(pass.status.state, State::Healthy, "after a crash at point {points}: {:?}", pass.status.reasons);
        assert_whole(&bench);
        assert_eq!(
            bench.paid_for(),
            if bench.issuer.requests() == 1 { 1 } else { 2 },
            "after a crash at point {points}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn invariant_02_a_disk_that_is_full_at_any_point_of_a_renewal_leaves_a_whole_and_heals() {
    for points in 0.. {
        let bench = Bench::new().await;
        let agent = bench.serving().await;
        let Some(ended) = renew_with(agent, points, Fault::DiskFull).await else {
            assert!(points > 40, "only {points} points were passed");
            return;
        };
        let (mut agent, failed) = ended.expect("a full disk is no crash");
        assert_whole(&bench);
        assert!(failed.outcome.is_err() || failed.status.state == State::Healthy, "{:?}", failed.status);
        let pass = bench.live(&mut agent, bench.clock.now() + Duration::from_hours(1)).await;
        assert_eq!(pass.status.state, State::Healthy, "after a full disk at point {points}: {:?}", pass.status.reasons);
        assert_eq!(bench.paid_for(), 2, "after a full disk at point {points}");
    }
}

/// Every state of a warm pool, and the way out: the pool costs nothing, is no failure, and is over at once.
#[tokio::test(start_paused = true)]
async fn a_node_in_a_warm_pool_pays_for_nothing_and_proceeds_as_soon_as_it_is_out() {
    for state in ["Warmed:Pending:Wait", "Warmed:Running"] {
        let bench = Bench::new().await;
        *bench.lifecycle.0.lock().unwrap() = Some(state);
        let mut agent = bench.agent();
        for _ in 0..3 {
            let pass = agent.pass(&PassRequest::default(), &Progress::default()).await;
            let status = &pass.status;
            assert_eq!((status.state, status.reasons.len()), (State::Healthy, 0), "{:?}", status.reasons);
            assert_eq!(status.warnings[0].code, "in_warm_pool");
            assert!(status.warnings[0].text.contains(state), "{}", status.warnings[0]);
            assert_eq!((status.renewal.attempts, pass.issuance.is_none()), (0, true));
            assert!(pass.next <= bench.clock.now() + Duration::from_secs(5), "{}", pass.next);
            bench.clock.sleep_until(pass.next).await;
        }
        // Somebody who asks for a certificate learns why there is none.
        let renew = PassRequest { renew: true, ..PassRequest::default() };
        let refused = agent.pass(&renew, &Progress::default()).await.outcome.unwrap_err();
        assert_eq!(Reason::from(&refused).code(), Code::InWarmPool);
        assert_eq!(bench.issuer.requests(), 0);

        *bench.lifecycle.0.lock().unwrap() = None;
        let pass = agent.pass(&PassRequest::default(), &Progress::default()).await;
        assert!(matches!(pass.outcome, Ok(Standing::NoServer { .. })), "{:?}", pass.outcome);
        assert!(pass.status.warnings.iter().all(|warning| warning.code != "in_warm_pool"));
        assert_eq!(bench.paid_for(), 1);
    }
}

/// An instance that goes back into the pool keeps what it serves, and renews once it is out again.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_back_in_a_warm_pool_renews_nothing_there() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    *bench.lifecycle.0.lock().unwrap() = Some("Warmed:Running");
    let committed = bench.committed();
    bench.clock.sleep_until(START + WEEK + DAY).await;
    let pass = agent.pass(&PassRequest::default(), &Progress::default()).await;
    assert_eq!((pass.status.state, bench.paid_for()), (State::Healthy, 1), "{:?}", pass.status);
    assert_eq!(bench.committed(), committed);
    *bench.lifecycle.0.lock().unwrap() = None;
    agent.pass(&PassRequest::default(), &Progress::default()).await;
    assert_eq!(bench.issuer.requests(), 2);
}
