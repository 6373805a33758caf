//! Months of a node's life on virtual time: the real reconciler, schedule, journal, acceptance and commit, between
//! doubles of the issuer's moods, the sources and nats-server.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::Poll;

use async_trait::async_trait;
use time::macros::datetime;

use super::*;
use crate::aws::secret::SecretError;
use crate::conf::listeners::Listeners;
use crate::config::NatsConfig;
use crate::digest::sha256_hex;
use crate::error::RemoteErrorKind;
use crate::issue::journal::Journal;
use crate::issue::local::Local;
use crate::issue::{CertificateHandle, IssueRequest, IssuedChain, Issuer};
use crate::peers::Peer;
use crate::peers::dial::Network;
use crate::reconcile::deployment::ApplyParts;
use crate::schedule::earliest;
use crate::server::monitor::Varz;
use crate::server::probe::ProbeError;
use crate::server::process::ProcessError;
use crate::server::{Observed, Presence, Served, Server, ServerError};
use crate::state::durable::fault::{Fault, plan};
use crate::state::generation::Generations;
use crate::status::State;
use crate::x509::chain::{Chain, StoredChain};
use crate::x509::csr::KeyAlgorithm;
use crate::x509::leaf::Leaf;
use crate::x509::san::Sans;

mod reloads;
mod time_steps;

const START: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);
const DAY: Duration = Duration::from_hours(24);
const WEEK: Duration = Duration::from_hours(7 * 24);
const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 1));

/// What the real ones ask takes its time, and a process that ends there has asked, or has no answer yet.
async fn on_the_way() {
    tokio::task::yield_now().await;
}

/// The embedded CA with the moods of ACM PCA: it refuses, is slow (`RequestInProgressException`, GetCertificate's API
/// page), or answers with what it should not.
struct MoodyIssuer {
    ca: Local,
    /// Its own clock.
    clock: Clock,
    refusals: Mutex<VecDeque<RemoteErrorKind>>,
    in_progress: AtomicU32,
    swap_leaf: Mutex<Option<IssuedChain>>,
    requests: AtomicU32,
    away: AtomicBool,
}

impl MoodyIssuer {
    fn error(kind: RemoteErrorKind) -> RemoteError {
        RemoteError::new(kind, "IssueCertificate on the double", "in a mood", "wait")
    }

    fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Issuer for MoodyIssuer {
    fn name(&self) -> String {
        self.ca.name()
    }

    async fn prepare(&self, validity: Duration) -> Result<String, RemoteError> {
        if self.away.load(Ordering::Relaxed) {
            return Err(Self::error(RemoteErrorKind::Unavailable));
        }
        on_the_way().await;
        self.ca.prepare(validity).await
    }

    async fn request(&self, request: &IssueRequest<'_>) -> Result<CertificateHandle, RemoteError> {
        if self.away.load(Ordering::Relaxed) {
            return Err(Self::error(RemoteErrorKind::Unavailable));
        }
        if let Some(kind) = self.refusals.lock().unwrap().pop_front() {
            return Err(Self::error(kind));
        }
        on_the_way().await;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let answer = self.ca.request(&IssueRequest { now: self.clock.now(), ..request.clone() }).await;
        on_the_way().await;
        answer
    }

    async fn collect(&self, handle: &CertificateHandle) -> Result<Option<IssuedChain>, RemoteError> {
        if self.away.load(Ordering::Relaxed) {
            return Err(Self::error(RemoteErrorKind::Unavailable));
        }
        on_the_way().await;
        let waits = self.in_progress.load(Ordering::Relaxed);
        if waits > 0 {
            self.in_progress.store(waits - 1, Ordering::Relaxed);
            return Ok(None);
        }
        let swapped = self.swap_leaf.lock().unwrap().take();
        match swapped {
            Some(other) => Ok(Some(other)),
            None => self.ca.collect(handle).await,
        }
    }

    async fn ca_pem(&self) -> Result<String, RemoteError> {
        self.ca.ca_pem().await
    }

    fn spare_issuances_a_day(&self) -> u32 {
        12
    }
}

/// A bundle that a test can change, or take away.
struct SettableTrust(Mutex<Option<TrustBundle>>);

#[async_trait]
impl TrustSource for SettableTrust {
    async fn fetch(&self) -> Result<TrustBundle, TrustError> {
        on_the_way().await;
        self.0.lock().unwrap().clone().ok_or_else(|| TrustError::Timeout { origin: "the double".into() })
    }
}

/// Peers that a test can change, or take away.
struct SettablePeers(Mutex<Option<Vec<Peer>>>);

#[async_trait]
impl PeerSource for SettablePeers {
    async fn sight(&self) -> Result<Sighting, RemoteError> {
        on_the_way().await;
        let peers = self.0.lock().unwrap().clone().ok_or_else(|| {
            RemoteError::new(RemoteErrorKind::Unavailable, "DescribeAutoScalingGroups", "away", "wait")
        })?;
        Ok(Sighting { peers, ..Sighting::default() })
    }
}

/// A secret's versions, which a test can change.
struct SettableCredential(Mutex<Vec<CredentialVersion>>);

#[async_trait]
impl CredentialSource for SettableCredential {
    async fn fetch(&self, _recently: OffsetDateTime) -> Result<Vec<CredentialVersion>, SecretError> {
        on_the_way().await;
        Ok(self.0.lock().unwrap().clone())
    }
}

/// nats-server 2.15.1 as NATS.md measured it: loads the committed file on SIGHUP and reports its digest, keeps what it
/// had when it refuses, serves the leaf that the loaded file names.
///
/// It refuses to load another `server_name` (§4 there), and gets another server id at each start.
struct FakeServer {
    config: PathBuf,
    loaded: Mutex<Option<String>>,
    starts: AtomicU32,
    loads: AtomicU32,
    reloads: AtomicU32,
    ignores: AtomicBool,
    refuses: AtomicBool,
    /// Ends when it is told to reload.
    dies: AtomicBool,
    /// Runs and accepts no client: it is starting, draining or frozen.
    is_deaf: AtomicBool,
    /// As before 2.11, which reports no digest.
    is_old: AtomicBool,
    /// Its monitoring port doesn't answer.
    is_mute: AtomicBool,
}

impl FakeServer {
    fn start(&self) {
        self.starts.fetch_add(1, Ordering::Relaxed);
        self.load(std::fs::read_to_string(&self.config).unwrap());
    }

    fn load(&self, text: String) {
        self.loads.fetch_add(1, Ordering::Relaxed);
        *self.loaded.lock().unwrap() = Some(text);
    }

    fn served(&self) -> Option<Leaf> {
        let loaded = self.loaded.lock().unwrap().clone()?;
        let file = setting(&loaded, "cert_file")?;
        Leaf::from_pem(&std::fs::read_to_string(file).unwrap()).ok()
    }

    fn digest_of(&self, text: &str) -> Option<String> {
        let is_old = self.is_old.load(Ordering::Relaxed);
        (!is_old).then(|| format!("sha256:{}", sha256_hex(text.as_bytes())))
    }

    fn reloads(&self) -> u32 {
        self.reloads.load(Ordering::Relaxed)
    }
}

fn setting(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "))?;
    Some(value.trim_matches('"').to_owned())
}

#[async_trait]
impl Server for FakeServer {
    async fn validate(&self, candidate: &Path) -> Result<Option<String>, ServerError> {
        let text = std::fs::read_to_string(candidate).unwrap();
        // As `-t` does (NATS.md §4): the files must be there, and belong together.
        for key in ["cert_file", "key_file", "ca_file"] {
            let file = setting(&text, key).unwrap();
            assert!(Path::new(&file).is_file(), "{file} is named and not there");
        }
        if self.refuses.load(Ordering::Relaxed) {
            return Err(ServerError::Refused { message: "in a mood".into() });
        }
        on_the_way().await;
        Ok(self.digest_of(&text))
    }

    fn find(&self, _at: &Listeners) -> Result<i32, ProcessError> {
        let is_running = self.loaded.lock().unwrap().is_some();
        if is_running { Ok(1) } else { Err(ProcessError::Absent("it was not started".into())) }
    }

    async fn observe(&self, _chain: Option<&StoredChain>, _at: &Listeners, _last: Option<&Observed>) -> Observed {
        let Some(loaded) = self.loaded.lock().unwrap().clone() else {
            return Observed::absent("it was not started".into());
        };
        on_the_way().await;
        let heard = !self.is_deaf.load(Ordering::Relaxed);
        let leaf = self.served().filter(|_| heard).ok_or_else(|| "no leaf".to_owned());
        let leaf = leaf.map(|leaf| Served::of(Chain::new(vec![leaf.der.into()]).unwrap()));
        Observed {
            presence: Presence::Running(1),
            varz: (!self.is_mute.load(Ordering::Relaxed)).then(|| Varz {
                version: "2.15.1".into(),
                server_id: format!("start {}", self.starts.load(Ordering::Relaxed)),
                config_load_time: START + Duration::from_secs(self.loads.load(Ordering::Relaxed).into()),
                config_digest: self.digest_of(&loaded),
            }),
            routez: None,
            client: leaf.clone(),
            route: leaf,
            asked: tokio::time::Instant::now(),
        }
    }

    async fn reload(&self, _chain: &StoredChain, _at: &Listeners) -> Result<i32, ServerError> {
        let Some(loaded) = self.loaded.lock().unwrap().clone() else {
            return Err(ProcessError::Absent("it was not started".into()).into());
        };
        if self.is_deaf.load(Ordering::Relaxed) {
            let address = ([127, 0, 0, 1], 4222).into();
            return Err(ServerError::NotListening { pid: 1, address, source: ProbeError::Slow { address } });
        }
        on_the_way().await;
        self.reloads.fetch_add(1, Ordering::Relaxed);
        if self.dies.load(Ordering::Relaxed) {
            *self.loaded.lock().unwrap() = None;
            return Ok(1);
        }
        let text = std::fs::read_to_string(&self.config).unwrap();
        if !self.ignores.load(Ordering::Relaxed) && setting(&loaded, "server_name") == setting(&text, "server_name") {
            self.load(text);
        }
        on_the_way().await;
        Ok(1)
    }
}

/// One node, and handles to everything around it.
struct Bench {
    directory: tempfile::TempDir,
    clock: Clock,
    issuer: Arc<MoodyIssuer>,
    trust: Arc<SettableTrust>,
    peers: Arc<SettablePeers>,
    server: Arc<FakeServer>,
    interval: Duration,
    validity: Duration,
    name: &'static str,
    template: Option<PathBuf>,
}

impl Bench {
    async fn new() -> Self {
        let clock = Clock::steppable(START);
        Self::between(clock, clock).await
    }

    /// A node and an issuer, each with a clock of its own.
    async fn between(clock: Clock, issuers: Clock) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let issuer = Arc::new(MoodyIssuer {
            ca: Local::new(directory.path().join("ca"), issuers),
            clock: issuers,
            refusals: Mutex::default(),
            in_progress: AtomicU32::new(0),
            swap_leaf: Mutex::default(),
            requests: AtomicU32::new(0),
            away: AtomicBool::new(false),
        });
        let bundle = TrustBundle::parse(issuer.ca_pem().await.unwrap().as_bytes(), "double", "1").unwrap();
        let config = directory.path().join("state/nats-server.conf");
        let server = FakeServer {
            config,
            loaded: Mutex::default(),
            starts: AtomicU32::new(0),
            loads: AtomicU32::new(0),
            reloads: AtomicU32::new(0),
            ignores: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            dies: AtomicBool::new(false),
            is_deaf: AtomicBool::new(false),
            is_old: AtomicBool::new(false),
            is_mute: AtomicBool::new(false),
        };
        Self {
            clock,
            issuer,
            trust: Arc::new(SettableTrust(Mutex::new(Some(bundle)))),
            peers: Arc::new(SettablePeers(Mutex::new(Some(peers(&[1, 2, 3]))))),
            server: Arc::new(server),
            interval: Duration::from_mins(10),
            validity: WEEK,
            name: "i-1",
            template: None,
            directory,
        }
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// A process of the agent: what an earlier one remembered in memory is gone.
    fn agent(&self) -> Reconciler {
        std::fs::create_dir_all(self.state()).unwrap();
        Reconciler::new(Parts {
            node: Node {
                name: self.name.into(),
                instance_id: Some("i-1".into()),
                region: None,
                address: OWN,
                sans: Sans { ips: [OWN].into(), ..Sans::default() },
            },
            issuance: Issuance {
                issuer: Arc::clone(&self.issuer) as Arc<dyn Issuer>,
                journal: Journal::of(&self.state()),
                clock: self.clock,
                validity: self.validity,
                renewed_after: earliest(self.validity, RenewalConfig::default().at),
                algorithm: KeyAlgorithm::EcdsaP256,
            },
            trust: Arc::clone(&self.trust) as Arc<dyn TrustSource>,
            peers: Arc::clone(&self.peers) as Arc<dyn PeerSource>,
            dial: Arc::new(Network),
            credential: None,
            apply: Apply::new(ApplyParts {
                server: Arc::clone(&self.server) as Arc<dyn Server>,
                nats: NatsConfig {
                    config: self.server.config.clone(),
                    template: self.template.clone(),
                    ..NatsConfig::default()
                },
                generations: Generations::of(&self.state()),
                state: self.state(),
            }),
            clock: self.clock,
            renewal: RenewalConfig::default(),
            interval: self.interval,
            allowed_losses: Vec::new(),
        })
    }

    /// A node that has come up: committed, server started, seen to be served.
    async fn serving(&self) -> Reconciler {
        let mut agent = self.agent();
        let pass = agent.pass(&Wanted::default(), &Progress::default()).await;
        assert!(matches!(pass.outcome, Ok(Verdict::NoServer(_))), "{:?}", pass.outcome);
        self.server.start();
        let pass = agent.pass(&Wanted::default(), &Progress::default()).await;
        assert_eq!(pass.status.state, State::Healthy, "{:?}", pass.status.reasons);
        agent
    }

    /// Pass after pass, as the daemon makes them, until `until`; the last one's findings.
    async fn live(&self, agent: &mut Reconciler, until: OffsetDateTime) -> Pass {
        loop {
            let pass = agent.pass(&Wanted::default(), &Progress::default()).await;
            if pass.next >= until {
                self.clock.sleep_until(until).await;
                return pass;
            }
            self.clock.sleep_until(pass.next).await;
            let served = self.server.served().expect("a server that was started serves");
            assert!(served.not_after > self.clock.now(), "an expired leaf is served at {}", self.clock.now());
        }
    }

    /// How many certificates were issued: a request that is repeated with its token is answered with the same one.
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
        // Documentation addresses beside our own: nobody answers there.
        address: if *number == 1 { (OWN, 6222).into() } else { ([127, 0, 0, *number], 1).into() },
        state: "InService".into(),
    };
    numbers.iter().map(peer).collect()
}

async fn pass(agent: &mut Reconciler) -> Pass {
    agent.pass(&Wanted::default(), &Progress::default()).await
}

async fn renew(agent: &mut Reconciler) -> Pass {
    agent.pass(&Wanted { renew: true, ..Wanted::default() }, &Progress::default()).await
}

#[tokio::test(start_paused = true)]
async fn nothing_is_touched_or_signalled_where_nothing_changed() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    let inode = std::fs::metadata(&bench.server.config).unwrap().ino();
    bench.live(&mut agent, START + DAY).await;
    assert_eq!(std::fs::metadata(&bench.server.config).unwrap().ino(), inode);
    assert_eq!((bench.server.reloads(), bench.issuer.requests()), (0, 1));
    // Nor does a restart of the agent touch anything.
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
    // Every 4.2 to 4.7 days.
    assert!((19..=22).contains(&bench.issuer.requests()), "{} issued", bench.issuer.requests());
    assert_eq!(bench.server.reloads() + 1, bench.issuer.requests());
}

#[tokio::test(start_paused = true)]
async fn invariant_07_an_issuer_that_is_away_for_two_days_disturbs_nobody_and_nothing_is_done_by_hand() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    bench.live(&mut agent, START + 4 * DAY).await;
    bench.issuer.away.store(true, Ordering::Relaxed);
    *bench.trust.0.lock().unwrap() = None;
    *bench.peers.0.lock().unwrap() = None;
    let pass = bench.live(&mut agent, START + 6 * DAY).await;
    assert_eq!(pass.status.state, State::Degraded);
    // Every two to four minutes, while the issuer would still know a request whose answer was lost.
    assert!(pass.status.renewal.attempts > 10 && pass.status.renewal.attempts < 1200, "{:?}", pass.status.renewal);
    assert!(pass.status.reasons.iter().any(|reason| reason.contains("IssueCertificate")), "{:?}", pass.status.reasons);
    // A restart in the middle of it knows the peers and the bundle from the disk.
    let mut agent = bench.agent();
    let pass = bench.live(&mut agent, START + 6 * DAY + Duration::from_hours(1)).await;
    assert_eq!(pass.status.peers.len(), 3);
    assert_eq!(bench.server.reloads(), 0);
    bench.issuer.away.store(false, Ordering::Relaxed);
    *bench.peers.0.lock().unwrap() = Some(peers(&[1, 2, 3]));
    *bench.trust.0.lock().unwrap() =
        Some(TrustBundle::parse(bench.issuer.ca_pem().await.unwrap().as_bytes(), "double", "1").unwrap());
    let pass = bench.live(&mut agent, START + 6 * DAY + Duration::from_hours(4)).await;
    assert_eq!(pass.status.state, State::Healthy, "{:?}", pass.status.reasons);
    assert_eq!(bench.issuer.requests(), 2);
}

/// A node whose routes present the old credential, and a new version of it that takes over, when nobody has a turn, a quarter
/// of an hour after it was made.
struct Successor {
    bench: Bench,
    source: Arc<SettableCredential>,
    takes_over: OffsetDateTime,
}

impl Successor {
    async fn serving() -> (Self, Reconciler) {
        let bench = Bench { interval: Duration::from_secs(30), ..Bench::new().await };
        let version = |password: &str, created| {
            let password = zeroize::Zeroizing::new(password.to_owned());
            CredentialVersion { credential: ClusterCredential { username: "route".into(), password }, created }
        };
        let old = version("the-old-one", START - DAY);
        let source = Arc::new(SettableCredential(Mutex::new(vec![old.clone()])));
        // The first ten seconds of a minute are the turn of the first of three.
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

    fn agent(&self) -> Reconciler {
        let mut agent = self.bench.agent();
        agent.parts.credential = Some(Arc::clone(&self.source) as Arc<dyn CredentialSource>);
        agent
    }

    fn holds(&self, password: &str) -> bool {
        self.bench.server.loaded.lock().unwrap().as_ref().unwrap().contains(password)
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_credential_takes_over_at_its_time_and_not_at_this_nodes_turn_though_its_source_is_away_by_then() {
    let (successor, mut agent) = Successor::serving().await;
    let Successor { bench, takes_over, .. } = &successor;
    let waiting = bench.live(&mut agent, START + Duration::from_mins(8)).await;
    assert!(waiting.status.warnings.iter().any(|warning| warning.contains("new cluster credential takes over at")));
    // The next process knows it from the disk.
    let mut agent = successor.agent();
    agent.cluster_secret.next = *takes_over + DAY;
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

/// Polls a future so many times, each of which ends at an await, and drops it there, which is the crash. What it returned,
/// where it came to that.
async fn polled<F: Future>(mut future: std::pin::Pin<Box<F>>, polls: u32) -> Option<F::Output> {
    let mut left = polls;
    std::future::poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn invariant_11_a_crash_at_any_await_of_a_renewal_pays_for_one_certificate() {
    let mut has_repeated = false;
    for polls in 0.. {
        let bench = Bench::new().await;
        let mut agent = bench.serving().await;
        bench.issuer.in_progress.store(3, Ordering::Relaxed);
        let has_ended = polled(Box::pin(renew(&mut agent)), polls).await.is_some();
        drop(agent);
        let mut agent = bench.agent();
        let pass = bench.live(&mut agent, bench.clock.now() + Duration::from_mins(10)).await;
        assert_eq!(pass.status.state, State::Healthy, "after {polls} polls: {:?}", pass.status.reasons);
        assert!(bench.paid_for() <= 2, "{} paid for after a crash at await {polls}", bench.paid_for());
        has_repeated |= bench.paid_for() == 2 && bench.issuer.requests() > 2;
        let served = bench.server.served().unwrap();
        assert_eq!(Some(served.serial), pass.status.leaf.map(|leaf| leaf.serial), "after {polls} polls");
        if has_ended {
            assert!(polls > 15, "the renewal had only {polls} awaits");
            assert!(has_repeated, "no answer of the issuer was lost");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn invariant_11_a_deployment_that_fails_is_tried_again_without_another_certificate() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    bench.server.refuses.store(true, Ordering::Relaxed);
    let before = bench.committed();
    let failed = renew(&mut agent).await;
    assert!(matches!(failed.outcome, Err(PassError::Apply(_))), "{:?}", failed.outcome);
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
        matches!(rolled_back.outcome, Err(PassError::Apply(ApplyError::RolledBack { confirmed: true, .. }))),
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
    bench.issuer.refusals.lock().unwrap().extend([RemoteErrorKind::Throttled, RemoteErrorKind::Denied]);
    for _ in 0..2 {
        let refused = renew(&mut agent).await;
        assert!(matches!(refused.outcome, Err(PassError::Obtain(ObtainError::Issuer(_)))), "{:?}", refused.outcome);
    }
    let key = || agent.parts.issuance.journal.load().unwrap().pending.map(|pending| pending.csr.key);
    let journalled = key().unwrap();
    let pass = renew(&mut agent).await;
    assert!(matches!(pass.outcome, Ok(Verdict::Live { .. })), "{:?}", pass.outcome);
    let (newest, _) = agent.parts.apply.parts().generations.newest().unwrap();
    assert!(*newest.unwrap().chain.key() == journalled);
    assert_eq!(bench.issuer.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn invariant_04_a_leaf_for_another_key_is_never_deployed() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    let (newest, _) = agent.parts.apply.parts().generations.newest().unwrap();
    let other = IssuedChain { leaf_pem: newest.unwrap().chain.chain().to_pem(), chain_pem: String::new() };
    *bench.issuer.swap_leaf.lock().unwrap() = Some(other);
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
    let (newest, _) = agent.parts.apply.parts().generations.newest().unwrap();
    let other = IssuedChain { leaf_pem: newest.unwrap().chain.chain().to_pem(), chain_pem: String::new() };
    let begin = bench.clock.now();
    *bench.issuer.swap_leaf.lock().unwrap() = Some(other.clone());
    let rejected = renew(&mut agent).await;
    assert!(matches!(rejected.outcome, Err(PassError::Rejected(_))), "{:?}", rejected.outcome);
    while bench.issuer.requests() == 2 {
        *bench.issuer.swap_leaf.lock().unwrap() = Some(other.clone());
        let pass = pass(&mut agent).await;
        bench.clock.sleep_until(pass.next).await;
    }
    let waited = bench.clock.now() - begin;
    assert!(waited >= time::Duration::minutes(5) && waited < time::Duration::hours(1), "{waited}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_issuance_is_tried_again_at_once_where_its_pause_ended_before_the_pass_did() {
    let bench = Bench::new().await;
    let mut agent = bench.serving().await;
    bench.issuer.refusals.lock().unwrap().push_back(RemoteErrorKind::Unavailable);
    renew(&mut agent).await.outcome.unwrap_err();
    agent.read_newest().unwrap();
    let over = agent.issuing.next + Duration::from_secs(1);
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
    // A day later the way is free again.
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
        let told = [pass.status.reasons, pass.status.warnings].concat().join(" ");
        assert!(told.contains("away") || told.contains("last good set stays"), "{told}");
    }
    *bench.peers.0.lock().unwrap() = Some(peers(&[1, 3, 4]));
    bench.live(&mut agent, bench.clock.now() + Duration::from_mins(20)).await;
    assert!(!bench.committed().contains("127.0.0.2:1\"") && bench.committed().contains("127.0.0.4:1\""));
    assert_eq!(bench.issuer.requests(), 1, "a change of peers is a new file on the same generation");
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
    // Real sockets answer in real time, which paused time doesn't wait for.
    tokio::time::resume();
    agent.discovery.next = OffsetDateTime::UNIX_EPOCH;
    let kept = pass(&mut agent).await;
    assert!(bench.committed().contains(&route));
    assert!(kept.status.warnings.iter().any(|warning| warning.contains("still answers")), "{:?}", kept.status.warnings);
    drop(alive);
    agent.discovery.next = OffsetDateTime::UNIX_EPOCH;
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
    let trust = pass.status.trust.unwrap();
    assert_eq!(trust.anchors.len(), 2, "{trust:?}");
    assert!(
        pass.status.warnings.iter().any(|warning| warning.contains("no longer holds")),
        "{:?}",
        pass.status.warnings
    );
    assert_eq!(pass.status.state, State::Healthy, "{:?}", pass.status.reasons);
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
        // Weeks go by, and what happens in them happens every few days.
        bench.interval = Duration::from_hours(2);
        a_setting_waits(&mut bench).await;
    }
}

async fn a_setting_waits(bench: &mut Bench) {
    bench.serving().await;
    bench.name = "another";
    let mut agent = bench.agent();
    let changed = pass(&mut agent).await;
    assert!(matches!(changed.outcome, Ok(Verdict::Live { .. })), "{:?}", changed.outcome);
    let waits =
        |pass: &Pass| pass.status.warnings.iter().any(|warning| warning.contains("takes server_name only at a start"));
    assert!(waits(&changed) && changed.status.state == State::Healthy, "{:?}", changed.status);
    assert_eq!(setting(&bench.committed(), "server_name").as_deref(), Some("another"));
    // Weeks of renewals go through meanwhile, each of them once, over a restart of the agent too.
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
    // The first of its cluster has its turn in the first ten seconds of each minute, and it is half past.
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

/// Runs one renewal with a fault planned at the given point of the disk. `None` where there are fewer points.
async fn renew_with(agent: Reconciler, points: u32, fault: Fault) -> Option<Result<(Reconciler, Pass), ()>> {
    pass_with(agent, Wanted { renew: true, ..Wanted::default() }, points, fault).await
}

/// The same of a pass that may be an ordinary one.
async fn pass_with(
    agent: Reconciler,
    wanted: Wanted,
    points: u32,
    fault: Fault,
) -> Option<Result<(Reconciler, Pass), ()>> {
    plan(Some((points, fault)));
    let pass = tokio::spawn(async move {
        let mut agent = agent;
        let pass = agent.pass(&wanted, &Progress::default()).await;
        (agent, pass)
    });
    let ended = pass.await.map_err(|crash| assert!(crash.is_panic(), "{crash}"));
    if plan(None).is_some() { None } else { Some(ended) }
}

/// What stands on the disk is whole: nats-server would start with it.
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
        // Whoever restarts nats-server now, and the agent after it.
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
