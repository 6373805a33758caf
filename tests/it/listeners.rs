//! Listeners beside the client and the route port, and a client port that takes no further client.

use std::net::SocketAddr;
use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use harness::cluster::Node;
use harness::nodes::{Nodes, at};
use harness::process::tail;
use harness::{eventually, tools};
use nix::sys::signal::Signal;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::Value;

use crate::AGENT;
use crate::rotation::{errors, status_with};
use crate::system::connected;

const RENEWALS: usize = 3;
const SOON: Duration = Duration::from_secs(20);

/// A node with these lines in agent.toml, booted.
async fn node(version: &str, settings: &str) -> Nodes {
    let mut nodes = Nodes::new(AGENT, version, 1).unwrap();
    nodes.configure().unwrap();
    let config = nodes.nodes[0].agent.config();
    std::fs::write(config, std::fs::read_to_string(config).unwrap() + settings).unwrap();
    nodes.boot().await.unwrap();
    nodes
}

/// A free port of the node's own address.
fn port(node: &Node) -> SocketAddr {
    SocketAddr::new(node.address.into(), node.metrics().port() + 1)
}

async fn connect(node: &Node) -> Result<Client, async_nats::ConnectError> {
    let ca = node.endpoint(false).unwrap().tls.unwrap().ca;
    let options = ConnectOptions::new().require_tls(true).add_root_certificates(ca);
    options.connection_timeout(Duration::from_secs(10)).connect(format!("tls://{}", node.client())).await
}

/// Renews several times. Each renewal is confirmed, and the node stays healthy.
async fn renews(node: &Node) {
    for _ in 0..RENEWALS {
        let renewed = node.agent.renew().await.unwrap();
        assert_eq!(renewed["result"], "confirmed", "{renewed}\n{}", node.agent.log_tail(20));
        let status = node.agent.status().await.unwrap();
        assert_eq!(status["state"], "healthy", "{status}");
        assert_eq!(at(&status, "served.route.sha256"), at(&status, "leaf.sha256"), "{status}");
    }
}

/// The errors in nats-server's log since its first reload. Before the first reload the test itself dials the client port.
fn handshake_errors(node: &Node) -> Vec<String> {
    let log = tail(&node.server_log(), usize::MAX);
    let after_boot = log.find("Reloaded server configuration").unwrap_or_default();
    let log = &log[after_boot..];
    let handshakes = log.lines().filter(|line| line.to_lowercase().contains("handshake error"));
    errors(log).into_iter().chain(handshakes).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_full_server_is_healthy_and_takes_each_new_leaf() {
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        let mut nodes = Nodes::new(AGENT, version, 1).unwrap();
        nodes.configure().unwrap();
        let (config, mqtt) = (nodes.nodes[0].agent.config().to_owned(), port(&nodes.nodes[0]));
        // MQTT clients count too, and nats-server turns them away without a word. The agent's own connection is the third.
        let settings = format!(
            "\n[nats.settings]\nmax_connections = 3\nmqtt = {{ listen = \"{mqtt}\", tls = {{ certificate = \"node\" }} }}\n"
        );
        std::fs::write(&config, std::fs::read_to_string(&config).unwrap() + &settings).unwrap();
        nodes.boot().await.unwrap();
        let node = &nodes.nodes[0];
        connected(node).await;
        let _clients = (connect(node).await.unwrap(), connect(node).await.unwrap());
        connect(node).await.unwrap_err();
        renews(node).await;
        let is_full = |status: &Value| status["warnings"].to_string().contains("server_full");
        let status = status_with(node, is_full).await;
        assert_eq!(status["state"], "healthy", "{version}: {status}");
    });
    harness::join_all(runs).await;
}

#[tokio::test]
async fn the_agents_own_probes_stay_below_a_rate_limit_of_one_connection_a_second() {
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        let nodes = node(version, "\n[nats.settings.tls]\nconnection_rate_limit = 1\n").await;
        let node = &nodes.nodes[0];
        // The test's own connections of the boot count too, so the first renewal is left out.
        renews(node).await;
        // nats-server logs what it rejected once a second.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = tail(&node.server_log(), usize::MAX).len();
        renews(node).await;
        let log = tail(&node.server_log(), usize::MAX);
        assert!(!log[before..].contains("Rejected"), "{version}: {log}");
    });
    harness::join_all(runs).await;
}

#[tokio::test]
async fn an_expired_certificate_that_somebody_else_keeps_on_a_listener_is_a_reason() {
    let directory = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::new(["localhost".to_owned()]).unwrap();
    parameters.not_before = date_time_ymd(2020, 1, 1);
    parameters.not_after = date_time_ymd(2021, 1, 1);
    let (cert_file, key_file) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    std::fs::write(&cert_file, parameters.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    let mut nodes = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    nodes.configure().unwrap();
    let node = &nodes.nodes[0];
    let settings = format!(
        "\n[nats.settings.websocket]\nlisten = \"{}\"\ntls = {{ cert_file = {cert_file:?}, key_file = {key_file:?} }}\n",
        port(node)
    );
    let text = std::fs::read_to_string(node.agent.config()).unwrap() + &settings;
    std::fs::write(node.agent.config(), text).unwrap();
    nodes.nodes[0].agent.start().unwrap();
    nodes.nodes[0].committed().await.unwrap();
    nodes.cluster.start_server(&mut nodes.nodes[0]).await.unwrap();
    let node = &nodes.nodes[0];
    let is_told = |status: &Value| status["reasons"].to_string().contains("listener_certificate_expired");
    let status = status_with(node, is_told).await;
    assert_eq!(status["state"], "degraded", "{status}");
    assert_eq!(at(&status, "served.websocket.not_after"), "2021-01-01T00:00:00Z", "{status}");
    assert_eq!(at(&status, "served.websocket.address"), port(node).to_string(), "{status}");
    // The listener is no matter of the agent's own certificate.
    assert_eq!(node.agent.renew().await.unwrap()["result"], "confirmed");
    let doctor = node.agent.run(&["doctor"], Duration::from_secs(30)).await.unwrap();
    assert!(doctor.stdout.contains("websocket port") && doctor.stdout.contains("expired at 2021-01-01"), "{doctor:?}");
}

/// nats-server takes `handshake_first` up by a reload, so neither the old nor the new text alone says who speaks first.
#[tokio::test]
async fn handshake_first_is_taken_up_and_given_up_on_client_and_leafnode_port_without_a_wait() {
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        let settings = "\n[nats.settings.tls]\nhandshake_first = false\n\n[nats.settings.leafnodes]\nlisten = \"LEAF\"\n\
                        tls = { certificate = \"node\", handshake_first = false }\n";
        let mut nodes = Nodes::new(AGENT, version, 1).unwrap();
        nodes.configure().unwrap();
        let config = nodes.nodes[0].agent.config().to_owned();
        let settings = settings.replace("LEAF", &port(&nodes.nodes[0]).to_string());
        let text = std::fs::read_to_string(&config).unwrap() + &settings;
        std::fs::write(&config, &text).unwrap();
        nodes.boot().await.unwrap();
        let node = &nodes.nodes[0];
        // A duration is how long nats-server waits for TLS before it greets.
        for first in ["true", "\"auto\"", "\"10s\"", "false"] {
            std::fs::write(&config, text.replace("handshake_first = false", &format!("handshake_first = {first}"))).unwrap();
            node.agent.signal(Signal::SIGHUP).unwrap();
            eventually("the new setting", SOON, async || {
                let committed = std::fs::read_to_string(node.nats_config()).unwrap();
                let written = format!("handshake_first: {first}\n");
                if committed.matches(&written).count() == 2 { Ok(()) } else { Err(committed) }
            })
            .await
            .unwrap();
            let before = at(&node.agent.status().await.unwrap(), "served.confirmed_at").to_owned();
            let is_served = |status: &Value| {
                let leaf = at(status, "leaf.sha256");
                let served = ["client", "route", "leafnode"].map(|port| at(status, &format!("served.{port}.sha256")));
                at(status, "served.confirmed_at") != before && status["state"] == "healthy" && served == [leaf; 3]
            };
            status_with(node, is_served).await;
            let renewed = node.agent.renew().await.unwrap();
            assert_eq!(renewed["result"], "confirmed", "{version} {first}: {renewed}");
        }
        let log = node.agent.log_tail(usize::MAX);
        assert!(!log.contains("reload_under_way"), "{version}: {log}");
        let errors = handshake_errors(node);
        assert!(errors.is_empty(), "{version}: {errors:?}\n{}\n{log}", tail(&node.server_log(), usize::MAX));
    });
    harness::join_all(runs).await;
}
