//! A CA that leaked is distrusted, on real nats-servers.

#![allow(clippy::print_stdout, reason = "the test's output shows the figures")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::{Client, ConnectError, ConnectOptions};
use harness::cluster::Node;
use harness::nodes::{Nodes, at, set};
use harness::{eventually, tools};
use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::AGENT;
use crate::rollover::{Ca, is_served_by};

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
