//! The daemon renews by itself. It survives the end of its server, a faulty configuration and its own death.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use harness::cluster::Node;
use harness::nodes::{Nodes, at, set};
use harness::process::tail;
use harness::traffic::{Tally, Traffic};
use harness::{eventually, tools};
use nats_tls_agent::config::Config;
use nats_tls_agent::daemon::control::{ControlError, ask};
use nats_tls_agent::daemon::protocol::{Answer, Request};
use nats_tls_agent::issue::journal::Journal;
use nats_tls_agent::state::generation::Generations;
use nix::sys::signal::Signal;
use rcgen::PublicKeyData as _;
use serde_json::Value;
use tokio::time::Instant;

use crate::{AGENT, metric};

/// The minimum number of renewals on each node.
const ROTATIONS: usize = 5;
const CONFIRMED: &str = "nats_tls_agent_served_confirmed_timestamp_seconds";
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn certificates_of_a_minute_are_renewed_again_and_again_under_traffic_that_loses_nothing() {
    let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, 3).unwrap();
    // The earliest allowed value of `renewal.at` makes the leaf due every six seconds.
    cluster.cluster.validity = "1m".into();
    cluster.configure().unwrap();
    cluster.set("renewal.at", "0.1").unwrap();
    cluster.boot().await.unwrap();
    let before = servers(&cluster).await;
    let confirmed_at_first = metric(cluster.nodes[0].metrics(), CONFIRMED).await;
    assert!(confirmed_at_first.is_some());
    let traffic = traffic(&cluster, 2000).await;

    // The serial number and the confirmation time of each generation that a node's status shows.
    let mut seen = vec![BTreeMap::<u64, (String, String)>::new(); cluster.nodes.len()];
    let deadline = Instant::now() + Duration::from_mins(3);
    while seen.iter().any(|generations| generations.len() <= ROTATIONS) {
        assert!(Instant::now() < deadline, "{seen:?}");
        for (node, generations) in cluster.nodes.iter().zip(&mut seen) {
            let status = node.agent.status().await.unwrap();
            assert_eq!(status["state"], "healthy", "{}: {}", node.name, status["reasons"]);
            let leaf = at(&status, "leaf.sha256");
            assert_eq!((at(&status, "served.client.sha256"), at(&status, "served.route.sha256")), (leaf, leaf));
            let confirmed = at(&status, "served.confirmed_at").to_owned();
            assert!(!confirmed.is_empty());
            let generation = status["leaf"]["generation"].as_u64().unwrap();
            generations.entry(generation).or_insert((at(&status, "leaf.serial").to_owned(), confirmed));
            let told = metric(node.metrics(), "nats_tls_agent_leaf_generation").await;
            assert!(told.is_some_and(|told| told >= generation), "{told:?} of generation {generation}");
        }
    }
    assert_nothing_lost(traffic).await;
    for generations in &seen {
        let numbers: Vec<u64> = generations.keys().copied().collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "a generation is missing: {numbers:?}");
        let serials: BTreeSet<&String> = generations.values().map(|(serial, _)| serial).collect();
        assert_eq!(serials.len(), generations.len(), "{generations:?}");
    }
    let confirmed = metric(cluster.nodes[0].metrics(), CONFIRMED).await;
    assert!(confirmed > confirmed_at_first, "{confirmed:?} after {confirmed_at_first:?}");
    assert_eq!(servers(&cluster).await, before, "a server restarted, or a route reconnected");
    // Neither a renewal nor its confirming probes leave an error in nats-server's log.
    for node in &cluster.nodes {
        let log = tail(&node.server_log(), usize::MAX);
        let after_boot = log.find("Reloaded server configuration").unwrap_or_default();
        assert_eq!(errors(&log[after_boot..]), [""; 0], "{log}");
    }
}

/// The errors in nats-server's log. A loaded nats-server may notice the end of a probe late, and then can't authenticate the probe
/// in a reload. The agent's pause between probe and reload makes that rare.
pub(crate) fn errors(log: &str) -> Vec<&str> {
    let is_of_a_probe = |line: &&str| {
        line.contains("Problem registering with account") || line.contains("authentication error - User \"nats-")
    };
    log.lines().filter(|line| line.contains("[ERR]")).filter(|line| !is_of_a_probe(line)).collect()
}

#[tokio::test]
async fn a_first_boot_commits_before_nats_server_runs_and_turns_healthy_by_itself_each_time_that_it_starts() {
    let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    cluster.configure().unwrap();
    let Nodes { nodes, cluster, .. } = &mut cluster;
    let node = &mut nodes[0];
    node.agent.start().unwrap();
    node.committed().await.unwrap();
    let status = unhealthy(node, "nats-server isn't running").await;
    assert_eq!(status["served"], Value::Null);
    let leaf = at(&status, "leaf.sha256").to_owned();
    assert!(!leaf.is_empty(), "{status}");

    for _start in 0..2 {
        cluster.start_server(node).await.unwrap();
        let pid = node.server.as_ref().unwrap().pid();
        let status = node.healthy(SOON).await.unwrap();
        assert_eq!(status["nats"]["pid"].as_u64(), pid.map(u64::from));
        assert_eq!(at(&status, "served.client.sha256"), leaf, "the server's start caused a new certificate");
        node.server.take().unwrap().kill().await.unwrap();
        unhealthy(node, "nats-server isn't running").await;
    }
    // The agent signals neither an absent server nor a server that doesn't listen yet.
    let log = tail(&node.server_log(), usize::MAX);
    let starts: Vec<_> = log.split("Starting nats-server").skip(1).collect();
    assert_eq!(starts.len(), 2, "{log}");
    for start in starts {
        let (before_it_listens, _) = start.split_once("Listening for client connections").unwrap();
        assert!(!["hangup", "Reload"].iter().any(|word| before_it_listens.contains(word)), "{log}");
    }
}

#[tokio::test]
async fn sighup_reads_agent_toml_again_and_one_that_is_wrong_changes_nothing() {
    let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, 2).unwrap();
    for node in &cluster.nodes {
        cluster.cluster.configure(node, &[node]).unwrap();
    }
    for node in &mut cluster.nodes {
        node.agent.start().unwrap();
        node.committed().await.unwrap();
        cluster.cluster.start_server(node).await.unwrap();
        node.healthy(SOON).await.unwrap();
    }
    let [first, second] = &cluster.nodes[..] else { panic!("the cluster doesn't have two nodes") };

    cluster.cluster.configure(first, &[first, second]).unwrap();
    first.agent.signal(Signal::SIGHUP).unwrap();
    first.meshed(&BTreeSet::from([second.name.clone()]), SOON).await.unwrap();
    let two = |status: &Value| status["state"] == "healthy" && status["peers"].as_array().map(Vec::len) == Some(2);
    let status = status_with(first, two).await;
    let (leaf, config) = (status["leaf"].clone(), std::fs::read(first.nats_config()).unwrap());

    set(first.agent.config(), "nats.cluster_nmae", "\"typo\"").unwrap();
    first.agent.signal(Signal::SIGHUP).unwrap();
    eventually("the refusal in the log", SOON, async || {
        let log = first.agent.log_tail(20);
        if log.contains("the configuration in force stays") && log.contains("cluster_nmae") { Ok(()) } else { Err(log) }
    })
    .await
    .unwrap();
    let seen = first.agent.status().await.unwrap_err();
    assert!(seen.to_string().contains("exit Some(2)"), "`agent status` reads the broken file too: {seen}");
    cluster.cluster.configure(first, &[first, second]).unwrap();
    // The status reports the earlier refusal until the daemon reads the corrected file.
    let status = unhealthy(first, "the configuration in force stays").await;
    assert_eq!((&status["state"], &status["leaf"]), (&Value::from("degraded"), &leaf), "{status}");
    first.agent.signal(Signal::SIGHUP).unwrap();
    assert_eq!(status_with(first, two).await["leaf"], leaf);
    assert_eq!(std::fs::read(first.nats_config()).unwrap(), config);
}

/// The number of steps in a renewal. The daemon dies after each step.
const STEPS: usize = 7;
/// The daemon also dies at each of these times after the request, in milliseconds.
const DELAYS: [u64; 10] = [0, 5, 10, 15, 20, 25, 30, 40, 50, 60];

#[tokio::test]
async fn invariant_02_and_11_a_daemon_killed_at_any_moment_of_a_renewal_leaves_a_whole_and_pays_for_one() {
    let mut cluster = Nodes::start(AGENT, tools::NATS_SERVER, 1).await.unwrap();
    let traffic = traffic(&cluster, 500).await;
    let ca = cluster.cluster.ca_directory();
    let node = &mut cluster.nodes[0];
    let config = Config::load(node.agent.config()).unwrap();
    let journal = Journal::of(&config.state_directory);
    let moments = (0..STEPS).map(Moment::Step).chain(DELAYS.map(|ms| Moment::After(Duration::from_millis(ms))));
    let (mut resumed, mut generation) = (0, 0);
    for moment in moments {
        let issued_before = issued(&ca);
        renew_and_kill(node, &config.control_socket, moment).await;
        let at_death = is_whole(node);
        assert!(at_death >= generation, "{moment:?}: generation {at_death} after {generation}");
        let pending = journal.load().unwrap().pending;
        let had_handle = pending.as_ref().is_some_and(|pending| pending.handle.is_some());
        resumed += usize::from(pending.is_some());

        node.agent.start().unwrap();
        let status = node.healthy(SOON).await.unwrap();
        let paid = issued(&ca) - issued_before;
        assert!(paid <= 1, "{moment:?}: {paid} certificates for one renewal");
        if pending.is_some() {
            // The restarted daemon resumes the same key and certificate, with or without an answer in the journal.
            assert_eq!(paid, 1, "{moment:?}, a certificate's handle in the journal: {had_handle}");
            assert!(node.agent.log_tail(usize::MAX).contains("resuming"), "{moment:?}");
        }
        generation = is_whole(node);
        assert_eq!(status["leaf"]["generation"].as_u64(), Some(generation), "{moment:?}");
        assert_eq!(at(&status, "served.client.sha256"), at(&status, "leaf.sha256"), "{moment:?}");
        assert!(journal.load().unwrap().pending.is_none(), "{moment:?}");
    }
    assert!(resumed >= 2, "only {resumed} deaths interrupted an issuance");
    assert_nothing_lost(traffic).await;
}

#[derive(Clone, Copy, Debug)]
enum Moment {
    Step(usize),
    After(Duration),
}

/// Requests a renewal from the daemon, and kills the daemon at `moment`. If the renewal ends first, the daemon dies at
/// the end of the renewal.
async fn renew_and_kill(node: &mut Node, socket: &Path, moment: Moment) {
    let request = Request::Renew { allow_loss: Vec::new(), distrust: Vec::new(), now: false };
    let kill = || node.agent.signal(Signal::SIGKILL).unwrap();
    let mut steps = 0;
    let asked = ask(socket, &request, |_step| {
        if matches!(moment, Moment::Step(at) if at == steps) {
            kill();
        }
        steps += 1;
    });
    match moment {
        Moment::Step(at) => {
            let answer = asked.await;
            // The daemon may have written its result before it is killed.
            let is_cut_off = matches!(answer, Ok(Answer::Renewed(_)) | Err(ControlError::Broken { .. }));
            assert!(is_cut_off && steps > at, "step {at} of {steps}: {answer:?}");
        }
        Moment::After(delay) => {
            let _cut_off = tokio::time::timeout(delay, asked).await;
            kill();
        }
    }
    node.agent.kill().await.unwrap();
}

/// Checks that nats-server accepts the committed configuration, and that its key and certificate match. Returns the
/// number of the generation.
fn is_whole(node: &Node) -> u64 {
    let text = std::fs::read_to_string(node.nats_config()).unwrap();
    let launch = node.server.as_ref().unwrap().launch();
    let checked = std::process::Command::new(&launch.binary).arg("-t").arg("-c").arg(&launch.config).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let named = |key: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap();
        std::fs::read_to_string(line.trim_matches([':', ' ', '"'])).unwrap()
    };
    let key = rcgen::KeyPair::from_pem(&named("key_file")).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(named("cert_file").as_bytes()).unwrap();
    assert_eq!(pem.parse_x509().unwrap().public_key().raw, key.subject_public_key_info());
    assert!(named("ca_file").contains("BEGIN CERTIFICATE"));
    Generations::of(&node.state_directory()).named_in(&text).unwrap()
}

/// The number of certificates that the embedded CA has issued.
fn issued(ca: &Path) -> usize {
    std::fs::read_dir(ca.join("issued")).unwrap().count()
}

/// The servers' ids and the ids of their routes. Each start and each connection gets a new id.
async fn servers(cluster: &Nodes) -> Vec<(String, BTreeSet<u64>)> {
    let mut servers = Vec::new();
    for node in &cluster.nodes {
        let varz = node.server.as_ref().unwrap().varz().await.unwrap();
        let routing = harness::nats_server::monitor(node.monitor(), "/routez").await.unwrap();
        let routes = routing["routes"].as_array().unwrap().iter().filter_map(|route| route["rid"].as_u64());
        servers.push((at(&varz, "server_id").to_owned(), routes.collect()));
    }
    servers
}

/// Traffic from each node to the next.
pub(crate) async fn traffic(cluster: &Nodes, rate: u32) -> Traffic {
    let ends: Vec<_> = cluster.nodes.iter().map(|node| node.endpoint(false).unwrap()).collect();
    let pairs: Vec<_> = ends.iter().cloned().zip(ends.iter().cycle().skip(1).cloned()).collect();
    Traffic::start(&pairs, rate).await.unwrap()
}

pub(crate) async fn assert_nothing_lost(traffic: Traffic) -> Tally {
    let tally = traffic.stop().await.unwrap();
    assert!(tally.sent > 0, "no message was sent: {tally:?}");
    assert_eq!((tally.lost(), tally.duplicates, tally.disconnects, tally.reconnects), (0, 0, 0, 0), "{tally:?}");
    tally
}

/// Sends SIGHUP to the agent, and waits until the agent has read its configuration again.
pub(crate) async fn read_again(node: &Node) {
    node.agent.signal(Signal::SIGHUP).unwrap();
    eventually("the agent's new reading of its configuration", SOON, async || {
        let log = node.agent.log_tail(30);
        if log.contains("agent.toml again") { Ok(()) } else { Err(log) }
    })
    .await
    .unwrap();
}

/// Waits until a status fulfils `wanted`.
pub(crate) async fn status_with(node: &Node, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("{}'s status", node.name), SOON, async || {
        let status = node.agent.status().await.map_err(|failure| failure.chain())?;
        if wanted(&status) { Ok(status) } else { Err(status.to_string()) }
    })
    .await
    .unwrap()
}

/// Waits until the node is not healthy and its status contains `reason`.
pub(crate) async fn unhealthy(node: &Node, reason: &str) -> Value {
    eventually(&format!("{} to say {reason:?}", node.name), SOON, async || {
        let status = node.agent.status().await.map_err(|failure| failure.chain())?;
        let said = status["reasons"].to_string();
        if status["state"] != "healthy" && said.contains(reason) { Ok(status) } else { Err(said) }
    })
    .await
    .unwrap_or_else(|failure| panic!("{failure}\n{}", tail(&node.server_log(), 10)))
}
