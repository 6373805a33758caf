//! `[nats.settings]`, included files and variables: merged, owned, tried and rotated.

mod effects;
mod gateways;
mod mistakes;
mod operator_mode;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use harness::cluster::Node;
use harness::nats_server::NatsServer;
use harness::nodes::{Nodes, at, set};
use harness::process::tail;
use harness::{eventually, tools};
use nats_tls_agent::digest::sha256_hex;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::AGENT;
use crate::protection::{assert_settings_stay, in_force, renew};
use crate::rotation::{assert_nothing_lost, status_with, traffic, unhealthy};

const SOON: Duration = Duration::from_secs(20);

/// Nodes that are configured and not booted.
fn nodes(version: &str, count: u8) -> Nodes {
    let nodes = Nodes::new(AGENT, version, count).unwrap();
    nodes.configure().unwrap();
    nodes
}

/// Adds text to each node's agent.toml. `PORT0` to `PORT9` become free ports of the node.
fn append(nodes: &Nodes, text: &str) {
    for node in &nodes.nodes {
        let file = node.agent.config();
        let mut config = std::fs::read_to_string(file).unwrap();
        config.push_str(&with_ports(node, text));
        std::fs::write(file, config).unwrap();
    }
}

fn with_ports(node: &Node, text: &str) -> String {
    (0..10).fold(text.replace("ADDRESS", &node.address.to_string()), |text, number| {
        text.replace(&format!("PORT{number}"), &port(node, number).port().to_string())
    })
}

/// A free port of the node's own address. Nothing else listens at that address.
fn port(node: &Node, number: u16) -> SocketAddr {
    SocketAddr::new(node.address.into(), node.metrics().port() + 1 + number)
}

/// A TLS connection of a client that trusts the node's bundle.
async fn begin_tls(
    node: &Node,
    stream: TcpStream,
    versions: &[&'static SupportedProtocolVersion],
) -> std::io::Result<TlsStream<TcpStream>> {
    let ca = node.newest_generation().unwrap().join("ca.pem");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Waits until a listener serves this leaf, by its SHA-256. `greeting` says whether the listener sends a line before TLS.
async fn serves(node: &Node, address: SocketAddr, greeting: bool, leaf: &str) {
    let served = async || {
        let mut stream = BufReader::with_capacity(1, TcpStream::connect(address).await?);
        if greeting {
            stream.read_line(&mut String::new()).await?;
        }
        let stream = begin_tls(node, stream.into_inner(), rustls::ALL_VERSIONS).await?;
        Ok(sha256_hex(&stream.get_ref().1.peer_certificates().unwrap()[0]))
    };
    eventually("the listener's new leaf", SOON, async || {
        let served = served().await.map_err(|error: std::io::Error| format!("{address}: {error}"))?;
        if served == leaf { Ok(()) } else { Err(format!("{address} serves {served}, not {leaf}")) }
    })
    .await
    .unwrap();
}

/// The number of the leafnodes port. Of all ports in [`LISTENERS`] only this port sends a greeting.
const LEAFNODES: u16 = 3;
/// Every listener that nats-server has besides those of clients and routes, each with this node's certificate.
const LISTENERS: &str = r#"
[nats.settings]
server_tags = ["az:{{ node.name }}"]
websocket = { listen = "ADDRESS:PORT1", tls = { certificate = "node" } }
mqtt = { listen = "ADDRESS:PORT2", tls = { certificate = "node" } }
gateway = { name = "loopback", listen = "ADDRESS:PORT4", tls = { certificate = "node" } }
system_account = "SYS"
no_auth_user = "app"

[nats.settings.accounts.SYS]
users = [{ user = "sys", password = "pw" }]

[nats.settings.accounts.APP]
jetstream = "enabled"
users = [{ user = "app", password = "pw" }]

[nats.settings.leafnodes]
listen = "ADDRESS:PORT3"
tls = { certificate = "node" }
remotes = [{ url = "tls://ADDRESS:PORT9", account = "APP", tls = { certificate = "node" } }]
"#;

#[tokio::test]
async fn every_listener_of_settings_alone_serves_each_new_leaf_on_every_version() {
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        let mut nodes = nodes(version, 1);
        append(&nodes, LISTENERS);
        nodes.boot().await.unwrap();
        let node = &nodes.nodes[0];
        for _ in 0..4 {
            let renewed = node.agent.renew().await.unwrap();
            assert_eq!(renewed["result"], "confirmed", "{version}: {renewed}");
            let status = node.agent.status().await.unwrap();
            for number in 1..=4 {
                serves(node, port(node, number), number == LEAFNODES, at(&status, "leaf.sha256")).await;
            }
            for listener in ["client", "route", "websocket", "mqtt", "leafnode", "gateway"] {
                assert_eq!(status["served"][listener]["sha256"], status["leaf"]["sha256"], "{version}: {status}");
                assert_eq!(status["served"][listener]["not_after"], status["leaf"]["not_after"], "{version}: {status}");
            }
        }
        let committed = std::fs::read_to_string(node.nats_config()).unwrap();
        assert!(committed.contains("\"az:n1\"") && committed.contains("agent.toml"), "{committed}");

        // Each TLS block that is taken away is refused.
        let text = std::fs::read_to_string(node.agent.config()).unwrap();
        for (block, loss) in [
            ("websocket", "websocket-tls"),
            ("mqtt", "mqtt-tls"),
            ("gateway", "gateway-tls"),
            ("remotes", "leafnode-remote-tls"),
        ] {
            let bare: Vec<String> = text
                .lines()
                .map(|line| {
                    let instead =
                        if line.starts_with(block) { NO_TLS[usize::from(block == "websocket")] } else { OURS };
                    line.replace(OURS, instead)
                })
                .collect();
            std::fs::write(node.agent.config(), bare.join("\n")).unwrap();
            node.agent.signal(Signal::SIGHUP).unwrap();
            unhealthy(node, &format!("--allow-loss {loss}")).await;
            std::fs::write(node.agent.config(), &text).unwrap();
            node.agent.signal(Signal::SIGHUP).unwrap();
            node.healthy(SOON).await.unwrap();
        }
    });
    harness::join_all(runs).await;
}

/// The agent asks a monitoring port with TLS, before and after each rotation.
#[tokio::test]
async fn a_monitoring_port_with_tls_is_asked_and_serves_each_new_leaf_on_every_version() {
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        let mut nodes = nodes(version, 1);
        append(&nodes, &format!("[nats.settings]\nhttps = \"{}\"\n", nodes.nodes[0].monitor()));
        let Nodes { nodes, cluster, .. } = &mut nodes;
        let node = &mut nodes[0];
        node.agent.start().unwrap();
        node.committed().await.unwrap();
        cluster.start_server(node).await.unwrap();
        status_with(node, |status| status["state"] == "healthy" && status["nats"]["version"] == version).await;
        for _ in 0..4 {
            let renewed = node.agent.renew().await.unwrap();
            assert_eq!(renewed["result"], "confirmed", "{version}: {renewed}");
            let status = node.agent.status().await.unwrap();
            serves(node, node.monitor(), false, at(&status, "leaf.sha256")).await;
            assert!(!status["warnings"].to_string().contains("monitoring_silent"), "{version}: {status}");
            assert!(status["nats"]["version"].is_string(), "{version}: {status}");
            // From 2.11 on nats-server tells the digest of what it has loaded.
            assert_eq!(status["settings"]["running"], status["settings"]["committed"], "{version}: {status}");
        }
    });
    harness::join_all(runs).await;
}

const OURS: &str = ", tls = { certificate = \"node\" }";
/// What stands in the place of a TLS block. A websocket listener without TLS needs `no_tls`.
const NO_TLS: [&str; 2] = ["", ", no_tls = true"];

/// The setting that once ended three nodes within six seconds: `nats-server -t` accepts it.
#[tokio::test]
async fn invariant_15_a_line_that_nats_server_would_die_of_ends_no_node_and_holds_back_no_certificate() {
    let mut nodes = nodes(tools::NATS_SERVER, 3);
    let include = nodes.directory().join("limits.conf");
    std::fs::write(&include, "max_subscriptions: 1000\n").unwrap();
    nodes.set("nats.include", &format!("[{:?}]", include.display().to_string())).unwrap();
    nodes.boot().await.unwrap();
    let traffic = traffic(&nodes, 500).await;
    let ends = AtomicUsize::new(0);
    let servers = nodes.nodes.iter_mut().map(|node| node.server.take().unwrap()).collect();
    let checked = async {
        std::fs::write(&include, "max_subscriptions: 1000\nlog_file: /no/such/directory/nats.log\n").unwrap();
        for node in &nodes.nodes {
            let status = unhealthy(node, "limits.conf:2").await;
            assert_eq!(status["state"], "degraded", "{status}");
            assert_eq!(status["settings"]["refused"]["code"], "settings_would_kill", "{status}");
        }
        // The certificate goes on with the settings that run.
        let node = &nodes.nodes[0];
        let before = in_force(node).await;
        assert_eq!(renew(node, &[]).await.code, Some(1));
        assert_settings_stay(node, &before).await;
        assert_nothing_lost(traffic).await;
        assert_eq!(ends.load(Ordering::Relaxed), 0, "{}", tail(&node.server_log(), 20));

        // A nats-server that ends for another reason comes back.
        let pid = node.agent.status().await.unwrap()["nats"]["pid"].clone();
        kill(Pid::from_raw(pid.as_i64().unwrap().try_into().unwrap()), Signal::SIGKILL).unwrap();
        let is_back = |status: &Value| {
            let served = at(status, "served.client.sha256");
            status["nats"]["pid"] != pid && !served.is_empty() && served == at(status, "leaf.sha256")
        };
        status_with(node, is_back).await;
        unhealthy(node, "limits.conf:2").await;
        std::fs::write(&include, "max_subscriptions: 2000\n").unwrap();
        for node in &nodes.nodes {
            node.healthy(SOON).await.unwrap();
            let log = tail(&node.server_log(), 400);
            assert!(!log.contains("no/such/directory"), "{log}");
        }
        assert_eq!(ends.load(Ordering::Relaxed), 1);
    };
    tokio::select! {
        () = restart_always(servers, &ends) => {}
        () = checked => {}
    }
}

/// Starts each nats-server again when it ends, as systemd does with `Restart=always`, and counts the ends.
async fn restart_always(mut servers: Vec<NatsServer>, ends: &AtomicUsize) {
    loop {
        for server in &mut servers {
            if server.check_running().is_err() {
                ends.fetch_add(1, Ordering::Relaxed);
                // With settings that don't start, the next start fails like this start.
                if let Ok(started) = NatsServer::start(server.launch().clone()).await {
                    *server = started;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_change_of_settings_waits_while_a_peer_that_had_a_route_has_none_and_no_certificate_waits() {
    let mut nodes = nodes(tools::NATS_SERVER, 3);
    let include = nodes.directory().join("limits.conf");
    std::fs::write(&include, "max_subscriptions: 1000\n").unwrap();
    nodes.set("nats.include", &format!("[{:?}]", include.display().to_string())).unwrap();
    // The end of the wait doesn't depend on the pause after a failure.
    nodes.set("renewal.retry_min", "\"1m\"").unwrap();
    nodes.boot().await.unwrap();
    // Only a peer whose route was seen can be missed.
    see_routes(&nodes.nodes).await;
    nodes.nodes[2].server.take().unwrap().stop().await.unwrap();
    for node in &nodes.nodes[..2] {
        let other = if node.name == "n1" { "n2" } else { "n1" };
        node.meshed(&[other.to_owned()].into(), SOON).await.unwrap();
    }
    see_routes(&nodes.nodes[..2]).await;
    std::fs::write(&include, "max_subscriptions: 2000\n").unwrap();
    for node in &nodes.nodes[..2] {
        let waits = unhealthy(node, "settings_wait_for_peer").await;
        assert_eq!(waits["settings"]["refused"]["code"], "settings_wait_for_peer", "{waits}");
    }
    let node = &nodes.nodes[0];
    let committed = |node: &Node| std::fs::read_to_string(node.nats_config()).unwrap();
    assert!(committed(node).contains("max_subscriptions: 1000\n"), "{}", committed(node));
    // An agent that starts anew, or reads agent.toml anew, remembers the peer.
    let other = &nodes.nodes[1];
    other.agent.signal(Signal::SIGHUP).unwrap();
    let confirmed = other.agent.status().await.unwrap()["served"]["confirmed_at"].clone();
    status_with(other, |status| status["served"]["confirmed_at"] != confirmed).await;
    unhealthy(other, "settings_wait_for_peer").await;
    assert!(committed(other).contains("max_subscriptions: 1000\n"), "{}", committed(other));
    // A person may decide otherwise.
    assert_eq!(node.agent.renew().await.unwrap()["result"], "confirmed");
    assert!(committed(node).contains("max_subscriptions: 2000\n"), "{}", committed(node));

    let Nodes { nodes, cluster, .. } = &mut nodes;
    cluster.start_server(&mut nodes[2]).await.unwrap();
    for node in &*nodes {
        node.healthy(SOON).await.unwrap();
        assert!(committed(node).contains("max_subscriptions: 2000\n"), "{}", committed(node));
    }
}

/// Waits until each agent has seen the routes as they are now. A pass that is under way may have seen earlier routes.
async fn see_routes(nodes: &[Node]) {
    for _pass in 0..2 {
        for node in nodes {
            let before = node.agent.status().await.unwrap()["served"]["confirmed_at"].clone();
            status_with(node, |status| status["served"]["confirmed_at"] != before).await;
        }
    }
}

#[tokio::test]
async fn invariant_17_what_the_agent_owns_is_refused_from_an_include_and_from_a_setting() {
    let mut nodes = nodes(tools::NATS_SERVER, 1);
    let include = nodes.directory().join("extra.conf");
    std::fs::write(&include, "max_subscriptions: 1000\n").unwrap();
    nodes.set("nats.include", &format!("[{:?}]", include.display().to_string())).unwrap();
    nodes.boot().await.unwrap();
    let node = &nodes.nodes[0];
    let before = std::fs::read_to_string(node.nats_config()).unwrap();
    for (text, said) in [
        ("\nserver_name: other\n", ["extra.conf:2", "write node.name"]),
        ("port: 4333\n", ["extra.conf:1", "are one setting"]),
        ("pid_file: /run/other.pid\n", ["extra.conf:1", "write nats.pid_file"]),
        ("cluster { no_advertise: true }\n", ["extra.conf:1", "[nats.settings.cluster]"]),
        ("max_connections: 5\nmax_conn: 6\n", ["extra.conf", "are one setting"]),
        ("max_payload: $NOWHERE\n", ["extra.conf:1", "nats.environment_file"]),
        ("max_payload: [1, 2]\n", ["extra.conf:1", "write a blank or a new line"]),
        ("include *.conf\n", ["extra.conf:1", "an include of a pattern"]),
    ] {
        std::fs::write(&include, text).unwrap();
        status_with(node, |status| said.iter().all(|said| status["reasons"].to_string().contains(said))).await;
        assert_eq!(std::fs::read_to_string(node.nats_config()).unwrap(), before, "{text}");
    }
    std::fs::write(&include, "max_subscriptions: 1000\n").unwrap();
    node.healthy(SOON).await.unwrap();
    set(node.agent.config(), "nats.settings.cluster.name", "\"other\"").unwrap();
    node.agent.signal(Signal::SIGHUP).unwrap();
    let status = unhealthy(node, "nats.cluster_name").await;
    assert!(status["reasons"].to_string().contains("agent.toml:"), "{status}");
}

#[tokio::test]
async fn a_variable_is_resolved_at_the_commit_and_followed_when_its_file_changes() {
    let mut nodes = nodes(tools::NATS_SERVER, 1);
    let directory = nodes.directory().to_owned();
    let (include, variables) = (directory.join("limits.conf"), directory.join("environment"));
    std::fs::write(&include, "max_subscriptions: $LIMIT\nauthorization { users: [ { user: a, password: $WORD } ] }\n")
        .unwrap();
    std::fs::write(&variables, "# limits\nLIMIT=1234\nWORD='\"s3cret 1\"'\n").unwrap();
    nodes.set("nats.include", &format!("[{:?}]", include.display().to_string())).unwrap();
    nodes.set("nats.environment_file", &format!("{:?}", variables.display().to_string())).unwrap();
    nodes.boot().await.unwrap();
    let node = &nodes.nodes[0];
    let committed = std::fs::read_to_string(node.nats_config()).unwrap();
    assert!(committed.contains("max_subscriptions: 1234\n") && committed.contains("password: \"s3cret 1\""));
    assert!(!committed.contains(": $"), "{committed}");
    let shown = node.agent.run(&["render"], SOON).await.unwrap();
    assert!(shown.stdout.contains("limits.conf") && !shown.stdout.contains("s3cret"), "{shown:?}");

    std::fs::write(&variables, "LIMIT=4321\nWORD=other\n").unwrap();
    eventually("the new variable", SOON, || async {
        let committed = std::fs::read_to_string(node.nats_config()).unwrap();
        if committed.contains("max_subscriptions: 4321\n") { Ok(()) } else { Err(committed) }
    })
    .await
    .unwrap();
    node.healthy(SOON).await.unwrap();
}
