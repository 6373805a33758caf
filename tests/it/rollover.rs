//! A change of the CA on real nats-servers: the agents keep its order by themselves.

#![allow(clippy::print_stdout, reason = "the test's output shows the figures")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{ConnectErrorKind, ConnectOptions};
use harness::cluster::Node;
use harness::eventually;
use harness::nats_server::monitor;
use harness::nodes::{Nodes, at, set};
use harness::process::tail;
use harness::tools;
use harness::traffic::Traffic;
use nats_tls_agent::clock::Clock;
use nix::sys::signal::Signal;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use crate::AGENT;
use crate::rotation::assert_nothing_lost;

/// The machine may be slow, and a change takes several passes on each node.
const SOON: Duration = Duration::from_mins(1);

/// A cluster whose nodes read the trust bundle from a file of their own, and the two CAs of a change.
struct Change {
    cluster: Nodes,
    old: String,
    new: String,
    begun: Instant,
    /// The phases of each node, as they were seen.
    timeline: BTreeMap<String, Vec<(u128, String)>>,
}

impl Change {
    async fn new(count: u8, deadline: &str) -> Self {
        Self::with_notice(count, deadline, "0s").await
    }

    /// `notice` is how long clients are told of a new CA.
    async fn with_notice(count: u8, deadline: &str, notice: &str) -> Self {
        Self::of(count, deadline, notice, Ca::make).await
    }

    /// `make` makes the old CA and the new CA.
    async fn of(count: u8, deadline: &str, notice: &str, make: impl Fn(&Path, &str) -> Ca) -> Self {
        let cluster = Nodes::new(AGENT, tools::NATS_SERVER, count).unwrap();
        let old = make(&cluster.cluster.ca_directory(), "the old CA").pem;
        let new = make(&cluster.directory().join("new-ca"), "the new CA").pem;
        cluster.configure().unwrap();
        cluster.set("discovery.interval", "\"100ms\"").unwrap();
        cluster.set("rollover.client_notice", &format!("{notice:?}")).unwrap();
        cluster.set("rollover.deadline", deadline).unwrap();
        cluster.set("trust.kind", "\"file\"").unwrap();
        let change = Self { old, new, begun: Instant::now(), timeline: BTreeMap::new(), cluster };
        for node in 0..usize::from(count) {
            change.trust(node, &change.old.clone());
            let file = change.bundle(node).display().to_string();
            set(change.node(node).agent.config(), "trust.file", &format!("{file:?}")).unwrap();
        }
        let mut change = change;
        change.cluster.boot().await.unwrap();
        change.begun = Instant::now();
        change
    }

    fn node(&self, node: usize) -> &Node {
        &self.cluster.nodes[node]
    }

    fn bundle(&self, node: usize) -> PathBuf {
        self.cluster.directory().join(format!("bundle-{node}.pem"))
    }

    fn trust(&self, node: usize, bundle: &str) {
        std::fs::write(self.bundle(node), bundle).unwrap();
    }

    fn trust_both(&self, node: usize) {
        self.trust(node, &format!("{}{}", self.old, self.new));
    }

    /// agent.toml names the new CA.
    fn switch(&self, node: usize) {
        let directory = self.cluster.directory().join("new-ca").display().to_string();
        set(self.node(node).agent.config(), "issuer.directory", &format!("{directory:?}")).unwrap();
        // A node that is down reads its agent.toml when it starts.
        let _down = self.node(node).agent.signal(Signal::SIGHUP);
    }

    /// Waits until the status of each of these nodes is as wanted, and notes the phases on the way.
    async fn until(&mut self, nodes: &[usize], what: &str, wanted: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + SOON;
        loop {
            let mut last = Value::Null;
            let mut is_so = true;
            for node in nodes {
                let node = &self.cluster.nodes[*node];
                let status = node.agent.status().await.unwrap();
                let phase = at(&status, "rollover.phase").to_owned();
                let seen = self.timeline.entry(node.name.clone()).or_default();
                if seen.last().is_none_or(|(_, last)| *last != phase) {
                    seen.push((self.begun.elapsed().as_millis(), phase));
                }
                if !wanted(&status) {
                    is_so = false;
                    last = status;
                }
            }
            if is_so {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {last:#}\n{}", self.told());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn told(&self) -> String {
        let phases = |seen: &[(u128, String)]| {
            seen.iter().map(|(at, phase)| format!("{phase} at {at} ms")).collect::<Vec<_>>().join(", ")
        };
        let lines = self.timeline.iter().map(|(node, seen)| format!("{node}: {}", phases(seen)));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The ids of the routes between the nodes that stay up. A route that is lost and made again has another id.
    async fn routes(&self, nodes: &[usize]) -> BTreeMap<String, BTreeSet<String>> {
        let names: BTreeSet<&str> = nodes.iter().map(|node| self.node(*node).name.as_str()).collect();
        let mut routes = BTreeMap::new();
        for node in nodes {
            let answer = monitor(self.node(*node).monitor(), "/routez").await.unwrap();
            let route = |route: &Value| {
                let name = route["remote_name"].as_str().filter(|name| names.contains(name))?;
                Some(format!("{name} {}", route["rid"]))
            };
            let ids = answer["routes"].as_array().into_iter().flatten().filter_map(route).collect();
            routes.insert(self.node(*node).name.clone(), ids);
        }
        routes
    }
}

/// A CA of a test, which signs certificates of clients too.
pub(crate) struct Ca {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// Makes a CA, and writes its certificate and its key as the embedded CA keeps them.
    pub(crate) fn make(directory: &Path, name: &str) -> Self {
        Self::signed(directory, name, |params, key| params.self_signed(key).unwrap())
    }

    /// Makes a CA below a root that is in no bundle.
    fn make_below(root: &Issuer<'_, KeyPair>, directory: &Path, name: &str) -> Self {
        Self::signed(directory, name, |params, key| params.signed_by(key, root).unwrap())
    }

    fn signed(directory: &Path, name: &str, sign: impl Fn(&CertificateParams, &KeyPair) -> Certificate) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = sign(&params, &key).pem();
        std::fs::create_dir_all(directory).unwrap();
        let mut private = std::fs::OpenOptions::new();
        let mut file = private.write(true).create_new(true).mode(0o600).open(directory.join("ca.key")).unwrap();
        std::io::Write::write_all(&mut file, key.serialize_pem().as_bytes()).unwrap();
        std::fs::write(directory.join("ca.pem"), &pem).unwrap();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Writes a client's certificate and its key into a directory.
    pub(crate) fn client(&self, directory: &Path) -> (PathBuf, PathBuf) {
        std::fs::create_dir_all(directory).unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let files = (directory.join("client.pem"), directory.join("client.key"));
        std::fs::write(&files.0, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }
}

pub(crate) fn is_served_by(status: &Value, ca: &str) -> bool {
    at(status, "leaf.issuer").contains(ca)
        && at(status, "served.client.sha256") == at(status, "leaf.sha256")
        && at(status, "served.route.sha256") == at(status, "leaf.sha256")
}

fn waits_for(status: &Value, peer: &str) -> bool {
    at(status, "rollover.phase") == "trusting" && status["rollover"]["waits_for"].to_string().contains(peer)
}

#[tokio::test]
async fn a_change_of_the_ca_keeps_its_order_and_loses_no_route_no_message_and_no_connection() {
    in_no_order(Change::new(5, "\"7d\"").await).await;
}

/// The bundles hold the subordinate CAs alone, so a leaf of the new CA chains to nothing in an old bundle.
#[tokio::test]
async fn a_change_of_a_subordinate_ca_keeps_its_order_and_loses_no_route_no_message_and_no_connection() {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    let root = Issuer::new(params, KeyPair::generate().unwrap());
    let make = |directory: &Path, name: &str| Ca::make_below(&root, directory, name);
    in_no_order(Change::of(5, "\"7d\"", "0s", make).await).await;
}

/// The nodes get the new CA in no order. One node's bundle is stale for a while, and one node is down.
async fn in_no_order(mut change: Change) {
    // Each node has seen each peer before a peer goes down.
    change
        .until(&[0, 1, 2, 3, 4], "a look at every peer", |status| {
            let peers = status["rollover"]["peers"].as_array().unwrap();
            peers.len() == 4 && peers.iter().all(|peer| peer["phase"] == "none")
        })
        .await;
    let up = [0, 1, 2, 3];
    let Nodes { nodes, .. } = &mut change.cluster;
    nodes[4].server.take().unwrap().stop().await.unwrap();
    nodes[4].agent.stop().await.unwrap();
    let ends: Vec<_> = up.iter().map(|node| change.node(*node).endpoint(false).unwrap()).collect();
    let pairs: Vec<_> = ends.iter().cloned().zip(ends.iter().cycle().skip(1).cloned()).collect();
    let traffic = Traffic::start(&pairs, 2000).await.unwrap();
    let routes = change.routes(&up).await;
    assert!(routes.values().all(|routes| routes.len() >= 3), "{routes:?}");

    // In no order: the issuer is changed before, with or after the bundle.
    change.switch(1);
    change.trust_both(2);
    change.switch(2);
    change.trust_both(0);
    change.trust_both(1);
    change.switch(0);
    change.until(&[0, 1, 2], "to wait for the stale node", |status| waits_for(status, &at_route(status, 4))).await;
    let of_old = |status: &Value| is_served_by(status, "the old CA");
    change.until(&[0, 1, 2], "to serve leaves of the old CA", of_old).await;
    change.trust_both(3);
    change
        .until(&[0, 1, 2], "to wait for the node that is down alone", |status| {
            waits_for(status, &at_route(status, 5)) && !waits_for(status, &at_route(status, 4))
        })
        .await;
    change.until(&[0, 1, 2, 3], "to serve leaves of the old CA", of_old).await;
    change.switch(3);
    change.trust_both(4);
    change.switch(4);
    let Nodes { nodes, cluster, .. } = &mut change.cluster;
    nodes[4].agent.start().unwrap();
    nodes[4].committed().await.unwrap();
    cluster.start_server(&mut nodes[4]).await.unwrap();

    let all = [0, 1, 2, 3, 4];
    change.until(&all, "to serve leaves of the new CA", |status| is_served_by(status, "the new CA")).await;
    // The old CA leaves the bundle of one node after the other.
    for node in [3, 0, 4, 1, 2] {
        change.trust(node, &change.new.clone());
    }
    change
        .until(&all, "the end of the change", |status| {
            status["trust"]["anchors"].as_array().map(Vec::len) == Some(1)
                && at(status, "rollover.phase") == "none"
                && status["state"] == "healthy"
        })
        .await;
    let after = change.routes(&up).await;
    let kept = |name: &str| routes[name].is_subset(&after[name]);
    assert!(routes.keys().all(|name| kept(name)), "routes lost: {routes:?} {after:?}");
    let tally = assert_nothing_lost(traffic).await;
    println!("{} messages, 0 lost; phases:\n{}", tally.sent, change.told());
    // A new handshake of any two nodes succeeds.
    let Nodes { nodes, cluster, .. } = &mut change.cluster;
    nodes[0].server.take().unwrap().stop().await.unwrap();
    cluster.start_server(&mut nodes[0]).await.unwrap();
    let others = ["n2", "n3", "n4", "n5"].map(str::to_owned).into();
    nodes[0].meshed(&others, SOON).await.unwrap();
}

/// Connects anew to one node after the other until `over`, and counts the connections. Each connection must succeed, by the
/// second try if a reload refuses the first.
async fn connecting_anew(nodes: Vec<SocketAddr>, ca: PathBuf, mut over: impl FnMut() -> bool) -> u64 {
    let mut connections = 0;
    for node in nodes.iter().cycle() {
        if over() {
            break;
        }
        let connect = || {
            let options = ConnectOptions::new().require_tls(true).ignore_discovered_servers();
            options.add_root_certificates(ca.clone()).connect(format!("tls://{node}"))
        };
        let mut client = connect().await;
        // For a moment of each reload nats-server has no user for anonymous clients (docs/nats-server.md, section 11).
        if client.as_ref().is_err_and(|error| error.kind() == ConnectErrorKind::AuthorizationViolation) {
            client = connect().await;
        }
        let client = match client {
            Ok(client) => client,
            // A machine that stalls may connect after the end.
            Err(_) if over() => break,
            Err(error) => panic!("connection {connections} to {node}: {error}"),
        };
        client.flush().await.unwrap();
        connections += 1;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(50..100))).await;
    }
    connections
}

/// Clients that know one CA alone connect anew all the time: with the old CA to the end of the notice, with the new CA from then on.
#[tokio::test]
async fn no_new_connection_of_a_client_fails_that_follows_the_notice_of_a_new_ca() {
    let mut change = Change::with_notice(3, "\"7d\"", "8s").await;
    let all = [0, 1, 2];
    let clients: Vec<_> = all.iter().map(|node| change.node(*node).client()).collect();
    let cas = [("old", &change.old), ("new", &change.new)].map(|(name, pem)| {
        let path = change.cluster.directory().join(format!("client-{name}.pem"));
        std::fs::write(&path, pem).unwrap();
        path
    });
    let [old, new] = cas;
    let until = Arc::new(Mutex::new(None::<OffsetDateTime>));
    let notice = Arc::clone(&until);
    let is_over = move || notice.lock().unwrap().is_some_and(|until| Clock::System.now() >= until);
    let before = tokio::spawn(connecting_anew(clients.clone(), old, is_over));
    for node in all {
        change.trust_both(node);
        change.switch(node);
    }
    change.until(&all, "the notice", |status| status["rollover"]["clients_notice_until"].is_string()).await;
    let mut ends = Vec::new();
    for node in all {
        let status = change.node(node).agent.status().await.unwrap();
        assert!(is_served_by(&status, "the old CA"), "{status:#}");
        ends.push(OffsetDateTime::parse(at(&status, "rollover.clients_notice_until"), &Rfc3339).unwrap());
    }
    // A client's time is over when the first node may change.
    *until.lock().unwrap() = ends.into_iter().min();
    let before = before.await.unwrap();
    change.until(&all, "to serve leaves of the new CA", |status| is_served_by(status, "the new CA")).await;
    for node in all {
        change.trust(node, &change.new.clone());
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let after = tokio::spawn(connecting_anew(clients, new, move || over.load(Ordering::Relaxed)));
    change
        .until(&all, "the end of the change", |status| {
            status["trust"]["anchors"].as_array().map(Vec::len) == Some(1) && at(status, "rollover.phase") == "none"
        })
        .await;
    is_over.store(true, Ordering::Relaxed);
    let after = after.await.unwrap();
    assert!(before > 20 && after > 0, "{before} {after}");
    println!(
        "connections with the old CA alone: {before}, with the new CA alone: {after}, 0 failed; phases:\n{}",
        change.told()
    );
}

/// The route address of a node, as a status of the cluster names a static peer.
fn at_route(status: &Value, number: u8) -> String {
    let ends = format!(".{number}:");
    let peers = status["peers"].as_array().into_iter().flatten();
    let mut ids = peers.map(|peer| at(peer, "id").to_owned());
    ids.find(|id| id.contains(&ends)).unwrap_or_else(|| format!("no peer at {ends}"))
}

/// What the order prevents: a node serves a leaf that a peer doesn't trust, and its next route to this peer is refused.
#[tokio::test]
async fn without_the_wait_a_stale_peer_refuses_the_next_route() {
    let mut change = Change::new(2, "\"0s\"").await;
    change.trust_both(0);
    change.switch(0);
    change.until(&[0], "to serve a leaf of the new CA", |status| is_served_by(status, "the new CA")).await;
    let status = change.node(0).agent.status().await.unwrap();
    assert!(status["warnings"].to_string().contains("rollover_overruled"), "{status}");
    let Nodes { nodes, cluster, .. } = &mut change.cluster;
    nodes[0].server.take().unwrap().stop().await.unwrap();
    cluster.start_server(&mut nodes[0]).await.unwrap();
    let log = nodes[1].server_log();
    eventually("the refusal", SOON, async || {
        let log = tail(&log, 100);
        if log.contains("unknown authority") { Ok(()) } else { Err(log) }
    })
    .await
    .unwrap();
    assert!(nodes[0].server.as_ref().unwrap().routes().await.unwrap().is_empty());
}
