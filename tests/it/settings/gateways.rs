//! Two clusters that gateways join. `[nats.settings]` alone describes each gateway.

use std::collections::BTreeSet;

use harness::cluster::Node;
use harness::nats_server::monitor;
use harness::nodes::{Nodes, at};
use harness::process::tail;
use harness::traffic::Traffic;
use harness::{eventually, tools};
use nats_tls_agent::digest::sha256_hex;
use nats_tls_agent::server::probe::{Port, Prober};
use nats_tls_agent::state::generation::Generations;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{SOON, append, port};
use crate::AGENT;
use crate::protection::{assert_settings_stay, in_force, renew};
use crate::rotation::{assert_nothing_lost, errors, unhealthy};

/// The number of a node's gateway port.
const GATEWAY: u16 = 4;
const RENEWALS: usize = 4;
const NAMES: [&str; 2] = ["east", "west"];
const TLS: &str = "tls = { certificate = \"node\" }";

/// Two clusters that are configured and not booted. Each cluster has a gateway to the other.
fn clusters(version: &str, count: u8) -> [Nodes; 2] {
    let clusters = NAMES.map(|name| {
        let mut cluster = Nodes::new(AGENT, version, count).unwrap();
        // A gateway refuses a server that has its own server's name.
        for node in &mut cluster.nodes {
            node.name = format!("{name}-{}", node.name);
        }
        cluster.configure().unwrap();
        cluster.set("nats.cluster_name", &format!("{name:?}")).unwrap();
        cluster
    });
    // A gateway trusts the bundle of its own node, so both clusters need one CA.
    let ca = clusters[0].cluster.ca_directory();
    clusters[1].set("issuer.directory", &format!("{:?}", ca.display().to_string())).unwrap();
    for (here, there) in [(0, 1), (1, 0)] {
        let urls: Vec<_> =
            clusters[there].nodes.iter().map(|node| format!("\"nats://{}\"", port(node, GATEWAY))).collect();
        let (name, other, urls) = (NAMES[here], NAMES[there], urls.join(", "));
        append(
            &clusters[here],
            &format!(
                "[nats.settings.gateway]\nname = \"{name}\"\nlisten = \"ADDRESS:PORT{GATEWAY}\"\n\
                 {TLS}\n\n\
                 [[nats.settings.gateway.gateways]]\nname = \"{other}\"\nurls = [{urls}]\n{TLS}\n"
            ),
        );
    }
    clusters
}

/// The ids of each node's gateway connections, once every node of both clusters is connected. Each connection gets a new
/// id.
async fn joined(clusters: &[Nodes; 2]) -> Vec<BTreeSet<u64>> {
    let ids = eventually("the gateways", SOON, async || {
        let mut ids = Vec::new();
        for (cluster, other) in clusters.iter().zip([NAMES[1], NAMES[0]]) {
            let mut inbound = 0;
            for node in &cluster.nodes {
                let answer = monitor(node.monitor(), "/gatewayz").await.map_err(|failure| failure.chain())?;
                let id = |gateway: &Value| gateway["connection"]["cid"].as_u64();
                let outbound = id(&answer["outbound_gateways"][other]).ok_or_else(|| answer.to_string())?;
                let arrived = answer["inbound_gateways"][other].as_array().into_iter().flatten().filter_map(id);
                let arrived: Vec<_> = arrived.collect();
                inbound += arrived.len();
                ids.push(arrived.into_iter().chain([outbound]).collect());
            }
            // Each node of the other cluster chooses one of these nodes.
            if inbound != cluster.nodes.len() {
                return Err(format!("{inbound} gateways arrive from {other}"));
            }
        }
        Ok(ids)
    });
    ids.await.unwrap()
}

/// The leaf that a gateway listener serves. A probe without a certificate would leave an error in nats-server's log.
async fn served(node: &Node) -> String {
    let newest = Generations::of(&node.state_directory()).newest().unwrap().0.unwrap();
    let prober = Prober::presenting(&newest.chain).unwrap();
    sha256_hex(prober.served(&port(node, GATEWAY).to_string(), Port::Gateway.opening()).await.unwrap().leaf())
}

async fn renew_both_sides_of_a_gateway(version: &str, count: u8) {
    let mut clusters = clusters(version, count);
    for cluster in &mut clusters {
        cluster.boot().await.unwrap();
    }
    let before = joined(&clusters).await;
    let nodes: Vec<&Node> = clusters.iter().flat_map(|cluster| &cluster.nodes).collect();
    let logs: Vec<usize> = nodes.iter().map(|node| tail(&node.server_log(), usize::MAX).len()).collect();
    let [east, west] = clusters.each_ref().map(|cluster| cluster.nodes.last().unwrap().endpoint(false).unwrap());
    let traffic = Traffic::start(&[(east.clone(), west.clone()), (west, east)], 1000).await.unwrap();
    for _ in 0..RENEWALS {
        for node in &nodes {
            let renewed = node.agent.renew().await.unwrap();
            assert_eq!(renewed["result"], "confirmed", "{version}: {renewed}");
            assert_eq!(served(node).await, at(&node.agent.status().await.unwrap(), "leaf.sha256"), "{version}");
        }
    }
    assert_nothing_lost(traffic).await;
    assert_eq!(joined(&clusters).await, before, "{version}: a gateway connected again");
    for (node, log) in nodes.iter().zip(logs) {
        let since = &tail(&node.server_log(), usize::MAX)[log..];
        assert_eq!(errors(since), [""; 0], "{version}: {since}");
    }

    // Without `tls` in the remote's own block, the remote uses the gateway's block. So both blocks go.
    let node = nodes[0];
    let in_force = in_force(node).await;
    let text = std::fs::read_to_string(node.agent.config()).unwrap();
    std::fs::write(node.agent.config(), text.replace(TLS, "")).unwrap();
    node.agent.signal(Signal::SIGHUP).unwrap();
    unhealthy(node, "--allow-loss gateway-tls").await;
    unhealthy(node, "--allow-loss gateway-remote-tls").await;
    renew(node, &[]).await;
    assert_settings_stay(node, &in_force).await;
    std::fs::write(node.agent.config(), text).unwrap();
    node.agent.signal(Signal::SIGHUP).unwrap();
    node.healthy(SOON).await.unwrap();

    // The earlier connections began with the first leaves. A restart shows that the newest leaves join the clusters too.
    let Nodes { nodes, cluster, .. } = &mut clusters[1];
    nodes[0].server.take().unwrap().kill().await.unwrap();
    cluster.start_server(&mut nodes[0]).await.unwrap();
    joined(&clusters).await;
}

#[tokio::test]
async fn a_gateway_between_two_clusters_carries_every_message_while_both_sides_renew_on_every_version() {
    let [oldest, older, newest] = tools::NATS_SERVER_VERSIONS;
    // With two nodes each, the clusters tell each other more addresses than the settings have.
    tokio::join!(
        Box::pin(renew_both_sides_of_a_gateway(oldest, 1)),
        Box::pin(renew_both_sides_of_a_gateway(older, 1)),
        Box::pin(renew_both_sides_of_a_gateway(newest, 2)),
    );
}
