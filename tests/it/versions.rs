//! Every supported release line of nats-server, from the first commit to a renewal under traffic.

use std::time::Duration;

use harness::nodes::{Nodes, at};

use crate::AGENT;
use crate::rotation::{assert_nothing_lost, traffic};

const SOON: Duration = Duration::from_secs(20);

/// `/varz` reports a digest from 2.11 on. On older servers, the served leaf and the load time confirm a renewal.
#[tokio::test]
async fn nats_server_2_10_commits_starts_and_renews_under_traffic_confirmed_by_leaf_and_load_time() {
    let cluster = renewed("2.10.26", "our leaf on the client and route ports and a configuration loaded at").await;
    let status = cluster.nodes[0].healthy(SOON).await.unwrap();
    assert_eq!(status["nats"]["config_digest"], serde_json::Value::Null, "{status}");
}

#[tokio::test]
async fn nats_server_2_12_commits_starts_and_renews_under_traffic_confirmed_by_digest() {
    renewed("2.12.8", "digest sha256:").await;
}

#[tokio::test]
async fn nats_server_2_15_commits_starts_and_renews_under_traffic_confirmed_by_digest() {
    renewed("2.15.1", "digest sha256:").await;
}

async fn renewed(version: &str, confirmed_by: &str) -> Nodes {
    let cluster = Nodes::start(AGENT, version, 2).await.unwrap();
    let traffic = traffic(&cluster, 1000).await;
    for _round in 0..2 {
        for node in &cluster.nodes {
            let before = node.healthy(SOON).await.unwrap();
            let renewed = node.agent.renew().await.unwrap();
            assert_eq!(renewed["result"], "confirmed");
            assert!(at(&renewed, "confirmed_by").starts_with(confirmed_by), "{version}: {renewed}");
            assert!(renewed["seconds"].as_f64().unwrap() < 10.0, "{renewed}");
            let after = node.healthy(SOON).await.unwrap();
            assert_eq!(at(&renewed, "old.serial"), at(&before, "leaf.serial"));
            assert_eq!(at(&renewed, "new.serial"), at(&after, "leaf.serial"));
            assert_ne!(at(&before, "served.client.sha256"), at(&after, "served.client.sha256"));
            assert_eq!(at(&after, "served.client.sha256"), at(&after, "leaf.sha256"));
            assert_eq!(at(&after, "served.route.sha256"), at(&after, "leaf.sha256"));
            assert_eq!(at(&after, "nats.version"), version);
        }
    }
    assert_nothing_lost(traffic).await;
    cluster
}
