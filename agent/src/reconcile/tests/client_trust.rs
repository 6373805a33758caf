//! A bundle of its own for what clients present.

use super::*;
use crate::x509::test_ca::Ca;

fn of_clients(ca: &Ca) -> TrustBundle {
    TrustBundle::parse(ca.pem.as_bytes(), "clients", "1").unwrap()
}

/// The subjects of the anchors of clients in the committed generation.
fn committed(bench: &Bench) -> Option<Vec<String>> {
    let generations = Generations::of(&bench.state());
    let generation = generations.load(generations.named_in(&bench.committed())?).unwrap();
    assert_eq!(bench.committed().contains("/clients.pem\""), generation.bundle.clients.is_some());
    Some(generation.bundle.clients?.anchors.into_iter().map(|anchor| anchor.subject).collect())
}

#[tokio::test(start_paused = true)]
async fn a_bundle_of_clients_fails_alone_and_the_last_one_stays_over_a_restart() {
    let mut bench = Bench::new().await;
    bench.interval = Duration::from_secs(30);
    let source = Arc::new(SettableTrust(Mutex::new(None)));
    bench.client_trust = Some(Arc::clone(&source));
    // Without an answer clients present what nodes present, and the node comes up.
    let mut agent = bench.agent();
    pass(&mut agent).await.outcome.unwrap();
    bench.server.start();
    let first = pass(&mut agent).await;
    assert_eq!((first.status.state, committed(&bench)), (State::Degraded, None), "{:?}", first.status);
    *source.0.lock().unwrap() = Some(of_clients(&Ca::root("one")));
    let until = bench.clock.now() + Duration::from_mins(2);
    let second = bench.live(&mut agent, until).await;
    assert_eq!(second.status.state, State::Healthy, "{:?}", second.status.reasons);
    assert_eq!(committed(&bench), Some(vec!["CN=one".to_owned()]));
    // A new process finds the bundle in the generation, also while its source is away and the leaf is renewed.
    *source.0.lock().unwrap() = None;
    bench.interval = Duration::from_hours(1);
    let mut agent = bench.agent();
    let until = bench.clock.now() + WEEK;
    let last = bench.live(&mut agent, until).await;
    assert_eq!(committed(&bench), Some(vec!["CN=one".to_owned()]));
    assert!(bench.paid_for() == 2 && last.status.state == State::Degraded, "{:?}", last.status);
    // Without `[trust.clients]` clients present what nodes present.
    bench.client_trust = None;
    let mut agent = bench.agent();
    let until = bench.clock.now() + Duration::from_mins(2);
    let last = bench.live(&mut agent, until).await;
    assert_eq!((committed(&bench), last.status.state), (None, State::Healthy), "{:?}", last.status.reasons);
}

#[tokio::test(start_paused = true)]
async fn no_client_presents_what_nodes_distrust_and_nodes_keep_what_clients_alone_distrust() {
    let mut bench = Bench::new().await;
    bench.interval = Duration::from_secs(30);
    let (one, two) = (Ca::root("one"), Ca::root("two"));
    let both = of_clients(&one).to_pem() + &two.pem;
    let both = TrustBundle::parse(both.as_bytes(), "clients", "2").unwrap();
    let source = Arc::new(SettableTrust(Mutex::new(Some(both.clone()))));
    bench.client_trust = Some(Arc::clone(&source));
    let mut agent = bench.serving().await;
    let nodes = bench.trust.0.lock().unwrap().clone().unwrap();
    *bench.trust.0.lock().unwrap() = Some(nodes.clone().without(&fingerprints(&of_clients(&one))).unwrap());
    let until = bench.clock.now() + Duration::from_mins(2);
    let status = bench.live(&mut agent, until).await.status;
    assert_eq!(committed(&bench), Some(vec!["CN=two".to_owned()]));
    assert!(status.nats.distrust.is_some(), "{status:?}");
    *bench.trust.0.lock().unwrap() = Some(nodes.clone());
    *source.0.lock().unwrap() = Some(both.without(&fingerprints(&nodes)).unwrap());
    let until = bench.clock.now() + Duration::from_mins(2);
    let status = bench.live(&mut agent, until).await.status;
    assert_eq!(serves_and_trusts(&bench, &nodes), (true, true));
    assert_eq!((status.state, bench.paid_for()), (State::Healthy, 1), "{:?}", status.reasons);
}

#[tokio::test(start_paused = true)]
async fn what_nodes_distrust_stays_away_from_clients_over_a_restart_while_the_source_is_away() {
    let mut bench = Bench::new().await;
    bench.interval = Duration::from_secs(30);
    let (one, two) = (Ca::root("one"), Ca::root("two"));
    let both = TrustBundle::parse(format!("{}{}", one.pem, two.pem).as_bytes(), "clients", "2").unwrap();
    bench.client_trust = Some(Arc::new(SettableTrust(Mutex::new(Some(both)))));
    let nodes = bench.trust.0.lock().unwrap().take().unwrap();
    *bench.trust.0.lock().unwrap() = Some(nodes.without(&fingerprints(&of_clients(&one))).unwrap());
    drop(bench.serving().await);
    assert_eq!(committed(&bench), Some(vec!["CN=two".to_owned()]));
    *bench.trust.0.lock().unwrap() = None;
    let mut agent = bench.agent();
    let until = bench.clock.now() + Duration::from_mins(2);
    bench.live(&mut agent, until).await;
    assert_eq!(committed(&bench), Some(vec!["CN=two".to_owned()]));
}
