//! A change of the CA: what waits for what, and for how long.

use super::*;
use crate::reason::Code;
use crate::trust::rollover::RolloverPhase;
use crate::x509::chain::Chain;
use crate::x509::csr::Csr;

const HOUR: Duration = Duration::from_hours(1);
/// The bundle is read every 100 minutes.
const SOON: Duration = Duration::from_hours(2);

/// A node that serves a leaf of the old CA, with two peers, and the new CA.
struct Change {
    bench: Bench,
    old_ca: TrustBundle,
    new_ca: TrustBundle,
    both: TrustBundle,
}

impl Change {
    async fn new(change: impl FnOnce(&mut Bench)) -> (Self, Box<Reconciler>) {
        let mut bench = Bench::new().await;
        bench.interval = Duration::from_mins(10);
        change(&mut bench);
        let old_ca = ca_of(&bench.issuer).await;
        let signer = Arc::new(Local::new(bench.directory.path().join("new-ca"), bench.clock));
        let new = MoodyIssuer::new(signer, bench.clock, Arc::clone(&bench.moods) as Arc<dyn Moods>);
        let new_ca = ca_of(&new).await;
        let both = TrustBundle::parse((old_ca.to_pem() + &new_ca.to_pem()).as_bytes(), "double", "2").unwrap();
        let mut change = Self { bench, old_ca, new_ca, both };
        for peer in [2, 3] {
            change.show(peer, "ca", &change.old_ca).await;
        }
        let agent = change.bench.serving().await;
        change.bench.issuer = Arc::new(new);
        (change, agent)
    }

    /// A peer serves a leaf of the old or the new CA, and trusts these.
    async fn show(&self, peer: u8, directory: &str, trusts: &TrustBundle) {
        let signer = Local::new(self.bench.directory.path().join(directory), self.bench.clock);
        let sans = Sans { ips: [address(peer).ip()].into(), ..Sans::default() };
        let csr = Csr::generate("peer", &sans, KeyAlgorithm::EcdsaP256).unwrap();
        let request = crate::issue::IssueRequest {
            csr_pem: &csr.pem,
            validity: 52 * WEEK,
            now: self.bench.clock.now(),
            signing_algorithm: "",
            idempotency_token: &csr.idempotency_token(),
        };
        let handle = signer.request(&request).await.unwrap();
        let issued = signer.collect(&handle).await.unwrap().unwrap();
        let chain = Chain::from_pem(issued.leaf_pem.as_bytes()).unwrap();
        let shown = Shown { chain, accepts: trusts.names() };
        self.bench.dial.shown.lock().unwrap().insert(address(peer), shown);
    }

    fn trust(&self, bundle: &TrustBundle) {
        *self.bench.trust.0.lock().unwrap() = Some(bundle.clone());
    }

    /// The bundle gets both CAs, and later agent.toml names the new CA. Returns the agent that reads this agent.toml.
    async fn switched(&self, mut agent: Box<Reconciler>, after: Duration) -> Box<Reconciler> {
        self.trust(&self.both);
        self.live(&mut agent, after).await;
        self.bench.agent()
    }

    async fn live(&self, agent: &mut Reconciler, length: Duration) -> Pass {
        self.bench.live(agent, self.bench.clock.now() + length).await
    }

    /// Which CA signed the leaf that nats-server serves.
    fn served(&self) -> &'static str {
        let served = Chain::new(vec![self.bench.server.served().unwrap().der.into()]).unwrap();
        if self.old_ca.chains(&served, self.bench.clock.now()) { "old" } else { "new" }
    }

    /// How many certificates this node asked the new CA for.
    fn paid_for(&self) -> u32 {
        self.bench.issuer.requests()
    }
}

fn address(peer: u8) -> SocketAddr {
    peers(&[peer])[0].address
}

async fn ca_of(issuer: &MoodyIssuer) -> TrustBundle {
    TrustBundle::parse(issuer.ca_pem().await.unwrap().as_bytes(), "double", "1").unwrap()
}

fn has(pass: &Pass, code: Code) -> bool {
    pass.status.warnings.iter().any(|warning| warning.code == code.as_str())
}

#[tokio::test(start_paused = true)]
async fn a_leaf_of_a_new_ca_waits_for_notice_and_peers_is_paid_for_once_and_then_the_old_anchor_goes() {
    let (change, agent) = Change::new(|_| ()).await;
    let mut agent = Box::pin(change.switched(agent, SOON)).await;
    // agent.toml names the new CA: a leaf is issued at once, and waits.
    let asked = change.live(&mut agent, SOON).await;
    assert_eq!((change.served(), change.paid_for()), ("old", 1));
    assert_eq!((asked.status.state, asked.status.rollover.phase), (State::Healthy, RolloverPhase::Trusting));
    assert!(has(&asked, Code::RolloverWaits), "{:?}", asked.status.warnings);
    assert!(asked.status.rollover.clients_notice_until.is_some());
    // The notice is over, and the peers don't trust the new CA. A restart changes nothing.
    let pass = change.live(&mut agent, DAY).await;
    assert_eq!(change.served(), "old");
    let waits = pass.status.rollover.waits_for.join(" ");
    assert!(waits.contains("i-2") && waits.contains("i-3") && !waits.contains("clients"), "{waits}");
    let mut agent = change.bench.agent();
    change.show(2, "ca", &change.both).await;
    let pass = change.live(&mut agent, SOON).await;
    assert_eq!(change.served(), "old");
    let waits = pass.status.rollover.waits_for.join(" ");
    assert!(!waits.contains("i-2") && waits.contains("i-3"), "{waits}");
    // The last peer trusts the new CA.
    change.show(3, "ca", &change.both).await;
    let pass = change.live(&mut agent, SOON).await;
    assert_eq!((change.served(), change.paid_for()), ("new", 1));
    assert_eq!((pass.status.state, pass.status.rollover.phase), (State::Healthy, RolloverPhase::Switching));
    // The old CA leaves the secret, and stays in force for the peer that serves a leaf of it.
    change.show(2, "new-ca", &change.both).await;
    change.trust(&change.new_ca);
    let pass = change.live(&mut agent, SOON).await;
    assert_eq!(pass.status.trust.as_ref().unwrap().anchors.len(), 2);
    assert!(has(&pass, Code::AnchorsKept));
    change.show(3, "new-ca", &change.both).await;
    let pass = change.live(&mut agent, 2 * SOON).await;
    assert_eq!(pass.status.trust.as_ref().unwrap().anchors.len(), 1);
    assert_eq!(pass.status.rollover.phase, RolloverPhase::None, "{:?}", pass.status.rollover);
    assert_eq!((change.served(), change.paid_for()), ("new", 1));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_asked_for_says_what_it_waits_for_and_now_skips_the_notice_alone() {
    let (change, agent) = Change::new(|_| ()).await;
    let mut agent = Box::pin(change.switched(agent, SOON)).await;
    let refused = renew(&mut agent).await;
    let Err(error) = &refused.outcome else { panic!("{:?}", refused.outcome) };
    assert!(error.to_string().contains("clients, which have notice until"), "{error}");
    assert_eq!(refused.status.state, State::Healthy);
    let now = PassRequest { renew: true, now: true, ..PassRequest::default() };
    let refused = agent.pass(&now, &Progress::default()).await;
    let Err(error) = &refused.outcome else { panic!("{:?}", refused.outcome) };
    assert!(error.to_string().contains("i-2") && !error.to_string().contains("clients"), "{error}");
    for peer in [2, 3] {
        change.show(peer, "ca", &change.both).await;
    }
    // What was said of the notice holds for as long as the leaf waits.
    change.live(&mut agent, SOON).await;
    assert_eq!((change.served(), change.paid_for()), ("new", 1));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_with_now_is_served_at_once_where_every_peer_trusts_the_new_ca() {
    let (change, agent) = Change::new(|_| ()).await;
    for peer in [2, 3] {
        change.show(peer, "ca", &change.both).await;
    }
    let mut agent = Box::pin(change.switched(agent, SOON)).await;
    let now = PassRequest { renew: true, now: true, ..PassRequest::default() };
    let pass = agent.pass(&now, &Progress::default()).await;
    assert!(matches!(pass.outcome, Ok(Standing::Served(_))), "{:?}", pass.outcome);
    assert_eq!((change.served(), change.paid_for()), ("new", 1));
}

/// A peer that trusts the new CA at the beginning of the notice may have gone back by its end.
#[tokio::test(start_paused = true)]
async fn peers_are_looked_at_anew_when_the_notice_is_over() {
    let (change, agent) = Change::new(|_| ()).await;
    for peer in [2, 3] {
        change.show(peer, "ca", &change.both).await;
    }
    let mut agent = Box::pin(change.switched(agent, SOON)).await;
    change.live(&mut agent, SOON).await;
    change.show(3, "ca", &change.old_ca).await;
    change.live(&mut agent, DAY).await;
    assert_eq!(change.served(), "old");
    change.show(3, "ca", &change.both).await;
    change.live(&mut agent, SOON).await;
    assert_eq!(change.served(), "new");
}

#[tokio::test(start_paused = true)]
async fn the_certificate_wins_near_the_end_of_the_leaf_and_after_the_deadline() {
    for deadline in [2 * DAY, 50 * WEEK] {
        let (change, agent) = Change::new(|bench| {
            bench.rollover.deadline = deadline;
            bench.interval = Duration::from_mins(30);
        })
        .await;
        let mut agent = Box::pin(change.switched(agent, 6 * HOUR)).await;
        let pass = change.live(&mut agent, DAY + 18 * HOUR).await;
        assert_eq!((change.served(), pass.status.rollover.phase), ("old", RolloverPhase::Trusting));
        // The leaf lives for seven days, and its last tenth begins after 6.3 days.
        let length = if deadline == 2 * DAY { 7 * HOUR } else { DAY * 9 / 2 };
        let pass = change.live(&mut agent, length).await;
        assert_eq!(change.served(), "new", "with a deadline of {deadline:?}");
        assert!(has(&pass, Code::RolloverOverruled), "{:?}", pass.status.warnings);
        assert_eq!(pass.status.state, State::Healthy, "{:?}", pass.status.reasons);
        for peer in [2, 3] {
            change.show(peer, "ca", &change.both).await;
        }
        assert!(!has(&change.live(&mut agent, SOON).await, Code::RolloverOverruled));
    }
}

/// A peer that is away trusts what it last showed. A peer that was never there trusts nothing and holds back nothing.
#[tokio::test(start_paused = true)]
async fn a_peer_that_is_away_is_judged_by_what_it_last_showed_and_one_that_never_came_is_not_waited_for() {
    let (change, agent) = Change::new(|bench| bench.rollover.client_notice = Duration::ZERO).await;
    change.show(2, "ca", &change.both).await;
    let mut agent = Box::pin(change.switched(agent, SOON)).await;
    change.bench.dial.shown.lock().unwrap().remove(&address(3));
    change.live(&mut agent, DAY).await;
    assert_eq!(change.served(), "old", "i-3 trusted the old CA alone when it was last seen");
    *change.bench.peers.0.lock().unwrap() = Some(peers(&[1, 2, 4]));
    change.live(&mut agent, DAY / 2).await;
    assert_eq!(change.served(), "new", "i-3 has left the group, and i-4 never came");
}

/// Invariant 5: an anchor that left the source is kept for what a peer last showed, and for nothing else.
#[tokio::test(start_paused = true)]
async fn invariant_05_an_anchor_goes_though_a_peer_can_not_be_asked() {
    let (change, mut agent) = Change::new(|_| ()).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let third = Local::new(elsewhere.path().to_owned(), change.bench.clock).ca_pem().await.unwrap();
    let more = TrustBundle::parse((third + &change.old_ca.to_pem()).as_bytes(), "double", "2").unwrap();
    change.trust(&more);
    change.live(&mut agent, SOON).await;
    change.bench.dial.shown.lock().unwrap().clear();
    change.trust(&change.old_ca);
    let pass = change.live(&mut agent, SOON).await;
    assert_eq!(pass.status.trust.as_ref().unwrap().anchors.len(), 1, "{:?}", pass.status.warnings);
}

#[tokio::test(start_paused = true)]
async fn what_agent_toml_asks_for_is_issued_at_once_and_once() {
    let bench = Bench::new().await;
    bench.serving().await;
    let changes: [fn(&mut Bench); 3] = [
        |bench| bench.validity = DAY,
        |bench| bench.validity = 2 * WEEK,
        |bench| bench.algorithm = KeyAlgorithm::EcdsaP384,
    ];
    let mut bench = bench;
    for (number, change) in changes.into_iter().enumerate() {
        change(&mut bench);
        let mut agent = bench.agent();
        let until = bench.clock.now() + HOUR;
        let pass = bench.live(&mut agent, until).await;
        assert_eq!((pass.status.state, bench.issuer.requests() as usize), (State::Healthy, number + 2));
        // Another process finds everything as it is asked for.
        let until = bench.clock.now() + HOUR;
        bench.live(&mut bench.agent(), until).await;
        assert_eq!(bench.issuer.requests() as usize, number + 2);
    }
}
