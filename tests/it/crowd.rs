//! Many clients on one node, while peers come and go and certificates are renewed. The long form has 5,000 clients.

use std::path::Path;
use std::time::Duration;

use harness::crowd::Crowd;
use harness::fleet::{Fleet, GROUP, Identity};
use harness::soak;
use harness::traffic::{Tally, Traffic};
use tokio::time::{Instant, sleep_until};

use crate::{AGENT, metric};

const RENEWALS: u64 = 5;
const RATE: u32 = 2000;
const LOADED: &str = "nats_tls_agent_reloads_total{outcome=\"loaded\"}";
const DISCONNECTED: &str = "nats_tls_agent_reload_disconnected_clients_total";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_loses_its_connection_over_a_new_peer_a_replaced_peer_and_renewals() {
    let count = if soak::is_long() { 5000 } else { 300 };
    let mut fleet = Fleet::launch(Path::new(AGENT), 3, Identity::Given).await.unwrap();
    fleet.start_all().await.unwrap();
    fleet.converged().await.unwrap();
    let crowd = Crowd::connect(&fleet.endpoint(0), count).await.unwrap();
    let metrics = fleet.nodes[0].node.metrics();
    let before = metric(metrics, LOADED).await.unwrap();

    let (traffic, begun) = (Traffic::start(&fleet.ring(2), RATE).await.unwrap(), Instant::now());
    let known: Vec<String> = fleet.nodes.iter().map(|member| member.instance.id.clone()).collect();
    join(&mut fleet, &known).await;
    let known: Vec<String> = fleet.nodes.iter().map(|member| member.instance.id.clone()).collect();
    fleet.moto.terminate(&known[2]).await.unwrap();
    fleet.die(2).await.unwrap();
    join(&mut fleet, &known).await;
    fleet.converged().await.unwrap();
    let for_peers = metric(metrics, LOADED).await.unwrap() - before;
    for _ in 0..RENEWALS {
        let renewed = fleet.nodes[0].node.agent.renew().await.unwrap();
        assert_eq!(renewed["result"], "confirmed", "{renewed}");
    }
    let (tally, span) = (traffic.stop().await.unwrap(), begun.elapsed());
    let for_renewals = metric(metrics, LOADED).await.unwrap() - before - for_peers;
    assert_eq!(for_renewals, RENEWALS);
    nothing_lost(&tally);
    assert_eq!(crowd.disconnects(), 0);
    assert_eq!(metric(metrics, DISCONNECTED).await, Some(0));
    let status = fleet.nodes[0].node.agent.status().await.unwrap();
    assert_eq!(status["nats"]["last_reload"]["disconnected"], 0, "{status}");

    // The same traffic for a while, beside which nothing is reloaded.
    let (quiet, begun) = (Traffic::start(&fleet.ring(2), RATE).await.unwrap(), Instant::now());
    sleep_until(begun + span.min(Duration::from_secs(if soak::is_long() { 60 } else { 3 }))).await;
    let quiet = quiet.stop().await.unwrap();
    nothing_lost(&quiet);
    soak::figure("crowd: clients of one node", count);
    soak::figure("crowd: reloads for a peer more and a peer replaced", for_peers);
    soak::figure("crowd: reloads for five renewals", for_renewals);
    soak::figure("crowd: connections lost", crowd.disconnects());
    soak::figure("crowd: p50 and p99 beside the reloads", format!("{:?} {:?}", tally.latency.p50, tally.latency.p99));
    soak::figure("crowd: p50 and p99 beside no reload", format!("{:?} {:?}", quiet.latency.p50, quiet.latency.p99));
    fleet.end().await.unwrap();
}

/// Grows the group to four nodes. `known` are the ids of the present nodes.
async fn join(fleet: &mut Fleet, known: &[String]) {
    let launched = fleet.moto.resize(GROUP, 4).await.unwrap();
    let new = launched.into_iter().find(|instance| !known.contains(&instance.id)).unwrap();
    fleet.add(new).await.unwrap();
    fleet.start(fleet.nodes.len() - 1).await.unwrap();
    fleet.converged().await.unwrap();
}

fn nothing_lost(tally: &Tally) {
    assert_eq!((tally.lost(), tally.duplicates, tally.disconnects, tally.reconnects), (0, 0, 0, 0), "{tally:?}");
}
