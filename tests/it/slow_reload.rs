//! Reloads that take long: nats-server authenticates every client anew, and a bcrypt password takes a tenth of a second.
//!
//! New handshakes hang meanwhile. The agent waits, signals once, and takes nothing back (invariant 16).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Client, ConnectOptions, Event};
use futures_util::future::join_all;
use harness::nats_server::NatsServer;
use harness::nodes::Nodes;
use harness::process::{cpu_time, tail};
use harness::{eventually, soak, tools};
use nats_tls_agent::digest::sha256_hex;
use nats_tls_agent::server::probe::{Port, Prober};
use tokio::time::Instant;

use crate::AGENT;

/// `secret` by bcrypt with cost 11.
const PASSWORD: &str = "$2b$11$abcdefghijklmnopqrstuuViuGI07N4McP9Kl.tD6XMEzyuvcY8LG";
/// The longest connection or renewal: nats-server is busy with bcrypt, and tests share the processors.
const PATIENCE: Duration = Duration::from_mins(4);

/// The settings of a node whose clients have a bcrypt password.
pub(crate) fn settings() -> String {
    format!(
        "\n[nats.settings.authorization]\ntimeout = 59\nusers = [{{ user = \"u\", password = \"{PASSWORD}\" }}]\n\
         [nats.settings.tls]\ntimeout = 59\n"
    )
}

/// A node whose clients have a bcrypt password. `system` is `nats.system`.
async fn node(version: &str, system: &str) -> Nodes {
    let mut nodes = Nodes::new(AGENT, version, 1).unwrap();
    nodes.configure().unwrap();
    nodes.set("nats.system", &format!("\"{system}\"")).unwrap();
    let config = nodes.nodes[0].agent.config();
    std::fs::write(config, std::fs::read_to_string(config).unwrap() + &settings()).unwrap();
    let booted = nodes.boot().await;
    booted.unwrap_or_else(|failure| panic!("{failure}\n{}", nodes.nodes[0].agent.log_tail(20)));
    nodes
}

/// Connected clients, and the number of times that any of them lost its connection.
pub(crate) async fn clients(nodes: &Nodes, count: usize) -> (Vec<Client>, Arc<AtomicUsize>) {
    let node = &nodes.nodes[0];
    let (url, ca) = (format!("tls://{}", node.client()), node.endpoint(false).unwrap().tls.unwrap().ca);
    let lost = Arc::new(AtomicUsize::new(0));
    let connect = || {
        let lost = Arc::clone(&lost);
        ConnectOptions::with_user_and_password("u".into(), "secret".into())
            .require_tls(true)
            .add_root_certificates(ca.clone())
            .connection_timeout(PATIENCE)
            .request_timeout(Some(PATIENCE))
            .event_callback(move |event| {
                lost.fetch_add(usize::from(matches!(event, Event::Disconnected)), Ordering::Relaxed);
                async {}
            })
            .connect(url.clone())
    };
    let connected = join_all((0..count).map(|_| connect())).await;
    let connected: Vec<Client> = connected.into_iter().map(Result::unwrap).collect();
    // async-nats doesn't wait for the end of a login, and nats-server answers after the login.
    let nobody = async |client: &Client| client.request("nobody", "".into()).await;
    for answer in join_all(connected.iter().map(nobody)).await {
        assert_eq!(answer.unwrap_err().kind(), RequestErrorKind::NoResponders);
    }
    (connected, lost)
}

/// Waits until nats-server has used half a second of CPU. Beside idle clients only a reload uses so much: bcrypt takes a tenth
/// of a second for each client. The agent logs a reload through the connection once the reload is over.
pub(crate) async fn computes(server: &NatsServer) {
    let computed = || cpu_time(server.pid().unwrap()).unwrap();
    let before = computed();
    eventually("the reload", PATIENCE, async || {
        let now = computed() - before;
        if now > 500 { Ok(()) } else { Err(format!("{now} ms of CPU")) }
    })
    .await
    .unwrap();
}

/// Notes the leaves that the client port shows in turn, until `is_over`.
async fn note_leaves(nodes: &Nodes, shown: &Mutex<Vec<String>>, is_over: &AtomicBool) {
    let (address, prober) = (nodes.nodes[0].client(), Prober::anonymous().unwrap());
    while !is_over.load(Ordering::Relaxed) {
        // A handshake that hangs shows nothing.
        let Ok(chain) = prober.served(&address.to_string(), Port::Client.opening()).await else { continue };
        note(shown, sha256_hex(chain.leaf()));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Notes a leaf that differs from the last leaf.
fn note(shown: &Mutex<Vec<String>>, leaf: String) {
    let mut shown = shown.lock().unwrap();
    if shown.last() != Some(&leaf) {
        shown.push(leaf);
    }
}

/// Waits until the port has shown `count` leaves in turn.
async fn shows(shown: &Mutex<Vec<String>>, count: usize) {
    eventually("the next leaf", PATIENCE, async || {
        let shown = shown.lock().unwrap();
        if shown.len() >= count { Ok(()) } else { Err(format!("{shown:?}")) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn invariant_16_renewals_beside_bcrypt_clients_are_each_confirmed_once_and_no_leaf_is_taken_back() {
    let is_long = soak::is_long();
    let (count, renewals) = if is_long { (150, 5) } else { (100, 1) };
    let versions = if is_long { &tools::NATS_SERVER_VERSIONS[..] } else { &[tools::NATS_SERVER] };
    for (version, system) in versions.iter().flat_map(|version| [(version, "auto"), (version, "off")]) {
        let nodes = node(version, system).await;
        let (clients, lost) = clients(&nodes, count).await;
        let (is_over, agent) = (AtomicBool::new(false), &nodes.nodes[0].agent);
        let shown = Mutex::new(Vec::new());
        // A start on a slow machine may need a reload.
        let at_boot = agent.log_tail(usize::MAX).matches("to reload").count();
        let renew = async {
            let mut longest = Duration::ZERO;
            for before in 1..=renewals {
                // A leaf that the next renewal replaces at once would never be seen.
                shows(&shown, before).await;
                let started = Instant::now();
                let answer = agent.run(&["renew", "--json"], PATIENCE).await.unwrap();
                longest = longest.max(started.elapsed());
                assert_eq!(answer.json().unwrap()["result"], "confirmed", "{answer:?}\n{}", agent.log_tail(40));
            }
            shows(&shown, renewals + 1).await;
            is_over.store(true, Ordering::Relaxed);
            longest
        };
        let (longest, ()) = tokio::join!(renew, note_leaves(&nodes, &shown, &is_over));
        let shown = shown.into_inner().unwrap();
        let log = agent.log_tail(usize::MAX);
        assert_eq!(log.matches("to reload").count(), at_boot + renewals, "{log}");
        assert!(!log.contains("rolled back"), "{log}");
        assert_eq!(log.matches("clients by bcrypt again").count(), renewals, "{log}");
        assert_eq!(shown.len(), renewals + 1, "{shown:?}");
        assert_eq!(lost.load(Ordering::Relaxed), 0, "{}", tail(&nodes.nodes[0].server_log(), 20));
        let name = format!(
            "longest of {renewals} renewals beside {count} bcrypt clients, nats-server {version}, system {system}"
        );
        soak::figure(&name, format!("{:.1} s", longest.as_secs_f64()));
        drop(clients);
    }
}
