//! A CA that leaked is distrusted, on real nats-servers.

#![allow(clippy::print_stdout, reason = "the test's output shows the figures")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectError, ConnectOptions};
use harness::cluster::{NAME as CLUSTER, Node};
use harness::loopback::free_ports;
use harness::nats_server::{Launch, NatsServer, monitor};
use harness::nodes::{Nodes, at, set};
use harness::{eventually, tools};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::time::Instant;

use crate::rollover::{Ca, is_served_by};
use crate::rotation::status_with;
use crate::{AGENT, metric};

/// The machine may be slow.
const SOON: Duration = Duration::from_mins(1);
/// What an operator is told: a CA that leaked is distrusted on every node within a minute.
const PROMISED: Duration = Duration::from_mins(1);

/// A cluster whose clients present certificates, the CA that leaks, and the CA that takes its place.
struct Leak {
    cluster: Nodes,
    leaked: Ca,
    new: Ca,
}

impl Leak {
    async fn boot(version: &str, count: u8, system: &str) -> Self {
        Self::boot_with(version, count, system, |_| String::new()).await
    }

    /// `lines` are the last lines of a node's agent.toml.
    async fn boot_with(version: &str, count: u8, system: &str, lines: impl Fn(&Node) -> String) -> Self {
        let mut cluster = Nodes::new(AGENT, version, count).unwrap();
        cluster.cluster.client_mtls = true;
        let leaked = Ca::make(&cluster.cluster.ca_directory(), "the leaked CA");
        let new = Ca::make(&cluster.directory().join("new-ca"), "the new CA");
        cluster.configure().unwrap();
        let bundle = cluster.directory().join("bundle.pem");
        std::fs::write(&bundle, format!("{}{}", leaked.pem, new.pem)).unwrap();
        for (key, value) in [
            ("discovery.interval", "\"100ms\""),
            ("rollover.client_notice", "\"0s\""),
            ("rollover.deadline", "\"7d\""),
            ("trust.kind", "\"file\""),
            ("trust.file", &format!("{:?}", bundle.display().to_string())),
            ("nats.system", &format!("{system:?}")),
        ] {
            cluster.set(key, value).unwrap();
        }
        for node in &cluster.nodes {
            let text = std::fs::read_to_string(node.agent.config()).unwrap() + &lines(node);
            std::fs::write(node.agent.config(), text).unwrap();
        }
        cluster.boot().await.unwrap();
        Self { cluster, leaked, new }
    }

    /// agent.toml of each node names the new CA.
    fn switch(&self) {
        let directory = self.cluster.directory().join("new-ca").display().to_string();
        for node in &self.cluster.nodes {
            set(node.agent.config(), "issuer.directory", &format!("{directory:?}")).unwrap();
            // A node that is down reads its agent.toml when it starts.
            let _down = node.agent.signal(Signal::SIGHUP);
        }
    }

    /// The bundle distrusts the leaked CA. Both CAs stay in the bundle.
    async fn distrust(&self) {
        let status = self.cluster.nodes[0].agent.status().await.unwrap();
        let mut anchors = status["trust"]["anchors"].as_array().unwrap().iter();
        let leaked = anchors.find(|anchor| at(anchor, "subject").contains("the leaked CA")).unwrap();
        let sha256 = at(leaked, "sha256");
        let text = format!("distrust: {sha256}\n{}{}", self.leaked.pem, self.new.pem);
        let bundle = self.cluster.directory().join("bundle.pem");
        std::fs::write(bundle.with_extension("new"), text).unwrap();
        std::fs::rename(bundle.with_extension("new"), bundle).unwrap();
    }

    /// Connects as a client with a certificate of a CA.
    async fn connect(&self, node: &Node, certificate: &(PathBuf, PathBuf)) -> Result<Client, ConnectError> {
        connect(node, &self.cluster.directory().join("bundle.pem"), certificate).await
    }
}

async fn connect(node: &Node, ca: &Path, (chain, key): &(PathBuf, PathBuf)) -> Result<Client, ConnectError> {
    let options = ConnectOptions::new().require_tls(true).ignore_discovered_servers();
    let options = options.add_root_certificates(ca.into()).add_client_certificate(chain.clone(), key.clone());
    options.connect(format!("tls://{}", node.client())).await
}

/// The bundle that the committed configuration names.
fn committed_bundle(node: &Node) -> String {
    let text = std::fs::read_to_string(node.nats_config()).unwrap();
    let line = text.lines().find(|line| line.contains("ca_file")).unwrap();
    std::fs::read_to_string(line.split('"').nth(1).unwrap()).unwrap()
}

/// A peer that died served a leaf of the leaked CA when it was seen last. In a rollover this peer would keep the anchor.
#[tokio::test]
async fn a_leaked_ca_is_distrusted_by_every_running_node_in_time_although_a_peer_is_dead() {
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        let mut leak = Leak::boot(version, 3, "auto").await;
        let directory = leak.cluster.directory().to_owned();
        let leaked = leak.leaked.client(&directory.join("leaked-client"));
        let good = leak.new.client(&directory.join("good-client"));
        let mut dead = leak.cluster.nodes.pop().unwrap();
        dead.server.take().unwrap().kill().await.unwrap();
        dead.agent.kill().await.unwrap();
        for node in &leak.cluster.nodes {
            leak.connect(node, &leaked).await.unwrap();
        }
        leak.switch();
        leak.distrust().await;
        let begun = Instant::now();
        for node in &leak.cluster.nodes {
            eventually("a node without the leaked CA", SOON, async || {
                let status = node.agent.status().await.unwrap();
                let trusts = committed_bundle(node).contains(leak.leaked.pem.trim());
                let refuses = leak.connect(node, &leaked).await.is_err();
                let is_done = is_served_by(&status, "the new CA") && refuses && !trusts;
                if is_done { Ok(()) } else { Err(format!("{version}: {status:#}")) }
            })
            .await
            .unwrap();
        }
        let took = begun.elapsed();
        println!("{version}: no node trusts the leaked CA after {:.1} s", took.as_secs_f64());
        assert!(took < PROMISED, "{version}: {took:?}");
        for node in &leak.cluster.nodes {
            leak.connect(node, &good).await.unwrap();
        }
        // The dead node comes back, and joins with a certificate of the new CA.
        let new = directory.join("new-ca").display().to_string();
        set(dead.agent.config(), "issuer.directory", &format!("{new:?}")).unwrap();
        dead.agent.start().unwrap();
        eventually("the new leaf of the dead node", SOON, async || {
            let status = dead.agent.status().await.map_err(|failure| failure.chain())?;
            let is_new = at(&status, "leaf.issuer").contains("the new CA");
            if is_new && !committed_bundle(&dead).contains(leak.leaked.pem.trim()) {
                Ok(())
            } else {
                Err(status.to_string())
            }
        })
        .await
        .unwrap();
        leak.cluster.cluster.start_server(&mut dead).await.unwrap();
        dead.meshed(&["n1", "n2"].map(str::to_owned).into(), SOON).await.unwrap();
        dead.healthy(SOON).await.unwrap();
    });
    harness::join_all(runs).await;
}

/// The text of a warning, or nothing.
fn warning<'a>(status: &'a Value, code: &str) -> &'a str {
    let mut warnings = status["warnings"].as_array().into_iter().flatten();
    warnings.find(|warning| warning["code"] == code).map_or("", |warning| at(warning, "text"))
}

#[tokio::test]
async fn clients_of_a_leaked_ca_are_closed_and_an_older_route_is_a_warning_until_nats_server_restarts() {
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        let mut leak = Leak::boot(version, 2, "auto").await;
        let directory = leak.cluster.directory().to_owned();
        let leaked =
            leak.connect(&leak.cluster.nodes[0], &leak.leaked.client(&directory.join("leaked"))).await.unwrap();
        let good = leak.connect(&leak.cluster.nodes[0], &leak.new.client(&directory.join("good"))).await.unwrap();
        leak.switch();
        leak.distrust().await;
        let begun = Instant::now();
        let is_closed = |status: &Value| status["nats"]["distrust"]["closed"] == 2;
        let status = status_with(&leak.cluster.nodes[0], is_closed).await;
        println!("{version}: the clients are closed after {:.1} s", begun.elapsed().as_secs_f64());
        assert!(warning(&status, "distrusted_stay").contains("routes of n2;"), "{version}: {status:#}");
        assert!(!warning(&status, "distrusted_stay").contains("clients"), "{version}: {status:#}");
        let name = "nats_tls_agent_distrusted_connections_closed_total";
        assert_eq!(metric(leak.cluster.nodes[0].metrics(), name).await, Some(2), "{version}");
        let log = leak.cluster.nodes[0].agent.log_tail(50);
        assert!(log.contains("clients closed that a distrusted CA may have let in: 2"), "{version}: {log}");
        eventually("the good client, connected anew", SOON, async || {
            let connects = good.statistics().connects.load(std::sync::atomic::Ordering::Relaxed);
            let is_back = connects > 1 && good.connection_state() == State::Connected;
            if is_back && leaked.connection_state() == State::Disconnected { Ok(()) } else { Err(connects.to_string()) }
        })
        .await
        .unwrap();
        // The certificate of the second node is of the leaked CA in its old routes too.
        let Nodes { nodes, cluster, .. } = &mut leak.cluster;
        for node in &*nodes {
            let has_loaded = |status: &Value| status["nats"]["distrust"].is_object();
            status_with(node, |status| is_served_by(status, "the new CA") && has_loaded(status)).await;
        }
        nodes[0].server.take().unwrap().stop().await.unwrap();
        cluster.start_server(&mut nodes[0]).await.unwrap();
        for node in &*nodes {
            status_with(node, |status| {
                status["state"] == "healthy"
                    && warning(status, "distrusted_stay").is_empty()
                    && status["rollover"]["phase"] == "none"
            })
            .await;
        }
        assert_eq!(metric(nodes[0].metrics(), name).await, Some(2), "{version}: a client was closed twice");
    });
    harness::join_all(runs).await;
}

/// A nats-server of somebody else, with these lines in its configuration, on ports of its own.
async fn stranger(version: &str, directory: &Path, name: &str, lines: &str) -> NatsServer {
    let ports = free_ports(2).unwrap();
    let [client, monitor] = [0, 1].map(|index| SocketAddr::from((Ipv4Addr::LOCALHOST, ports.numbers()[index])));
    let path = |kind: &str| directory.join(format!("{name}.{kind}"));
    let (config, pid_file, log) = (path("conf"), path("pid"), path("log"));
    let text = format!(
        "server_name: {name}\nlisten: \"{client}\"\nhttp: \"{monitor}\"\npid_file: \"{}\"\n{lines}\n",
        pid_file.display()
    );
    std::fs::write(&config, text).unwrap();
    let binary = tools::nats_server(version).unwrap();
    NatsServer::start(Launch { binary, config, pid_file, client, monitor, log, arguments: Vec::new() }).await.unwrap()
}

/// nats-server 2.10 gives a leaf node no number, so nobody closes the connection. No version closes a gateway.
#[tokio::test]
async fn a_leaf_node_of_a_leaked_ca_is_closed_and_what_nobody_can_close_is_named() {
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        let ports = free_ports(2).unwrap();
        let listen = |node: &Node, index: usize| SocketAddr::new(node.address.into(), ports.numbers()[index]);
        let tls = "tls = { certificate = \"node\", verify = true }";
        let leak = Leak::boot_with(version, 1, "auto", |node| {
            format!(
                "\n[nats.settings]\nsystem_account = \"SYS\"\nno_auth_user = \"a\"\n\
                 accounts = {{ SYS = {{ users = [{{ user = \"s\", password = \"s\" }}] }}, \
                 APP = {{ users = [{{ user = \"a\", password = \"a\" }}] }} }}\nleafnodes = {{ listen = \"{}\", {tls} }}\n\
                 gateway = {{ name = \"{}\", listen = \"{}\", {tls} }}\n",
                listen(node, 0),
                CLUSTER,
                listen(node, 1)
            )
        })
        .await;
        let (node, directory) = (&leak.cluster.nodes[0], leak.cluster.directory());
        let bundle = directory.join("bundle.pem");
        let own = |name: &str| {
            let (chain, key) = leak.leaked.client(&directory.join(name));
            format!("tls {{ ca_file: {bundle:?}, cert_file: {chain:?}, key_file: {key:?} }}")
        };
        let remote = format!("leafnodes {{ remotes: [{{ url: \"tls://{}\", {} }}] }}", listen(node, 0), own("of-leaf"));
        let leaf_node = stranger(version, directory, "leaf", &remote).await;
        let far = format!(
            "gateway {{ name: far, listen: \"127.0.0.1:-1\", {}, gateways: [{{ name: {:?}, url: \"tls://{}\" }}] }}",
            own("of-far"),
            CLUSTER,
            listen(node, 1)
        );
        let far = stranger(version, directory, "far", &far).await;
        let connections = async || {
            let leafs = monitor(node.monitor(), "/leafz").await.unwrap()["leafnodes"].as_u64().unwrap();
            let gateways = monitor(node.monitor(), "/gatewayz").await.unwrap();
            (leafs, gateways["inbound_gateways"]["far"].as_array().map_or(0, Vec::len))
        };
        let has = async |what: &str, wanted: fn((u64, usize)) -> bool| {
            let seen = eventually(what, SOON, async || {
                let seen = connections().await;
                if wanted(seen) { Ok(()) } else { Err(format!("{version}: {seen:?}")) }
            });
            seen.await.unwrap();
        };
        has("leaf node and gateway", |(leafs, gateways)| leafs == 1 && gateways > 0).await;

        leak.switch();
        leak.distrust().await;
        let is_told = |status: &Value| warning(status, "distrusted_stay").contains("gateways of far;");
        let status = status_with(node, is_told).await;
        let names_the_leaf = warning(&status, "distrusted_stay").contains("leaf nodes leaf at ");
        assert_eq!(names_the_leaf, version.starts_with("2.10"), "{version}: {status:#}");
        if !names_the_leaf {
            // The far end dials again, and is refused.
            has("the end of the leaf node", |(leafs, _)| leafs == 0).await;
            status_with(node, |status| status["nats"]["distrust"]["closed"] == 1).await;
        }
        far.stop().await.unwrap();
        leaf_node.stop().await.unwrap();
        status_with(node, |status| status["state"] == "healthy" && warning(status, "distrusted_stay").is_empty()).await;
    });
    harness::join_all(runs).await;
}

#[tokio::test]
async fn without_the_system_account_clients_of_a_leaked_ca_stay_and_a_warning_says_so() {
    let leak = Leak::boot(tools::NATS_SERVER, 1, "off").await;
    let node = &leak.cluster.nodes[0];
    let client = leak.connect(node, &leak.leaked.client(&leak.cluster.directory().join("leaked"))).await.unwrap();
    leak.switch();
    leak.distrust().await;
    let status = status_with(node, |status| warning(status, "distrusted_stay").contains("clients (1)")).await;
    assert_eq!((&status["state"], client.connection_state()), (&"healthy".into(), State::Connected), "{status:#}");
}
