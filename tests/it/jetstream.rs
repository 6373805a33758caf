//! JetStream and its members: ghosts of replaced nodes, a majority at risk, no leader, and the runbook's remedies.

#![allow(clippy::print_stdout, reason = "the test's output shows the measurements")]

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::ConnectOptions;
use async_nats::jetstream::{self, stream};
use harness::cluster::Node;
use harness::nats_server::monitor;
use harness::nodes::Nodes;
use harness::{eventually, tools};
use nats_tls_agent::conf::render::BUILT_IN;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::AGENT;
use crate::doctor::{assert_check, diagnose};

const SOON: Duration = Duration::from_mins(1);
/// A request to a meta group without a leader gets no answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const PASSWORD: &str = "of the system account";

/// Three nodes with a user of the system account, and a stream of three replicas.
pub(crate) async fn three(version: &str) -> Nodes {
    let mut nodes = Nodes::new(AGENT, version, 3).unwrap();
    nodes.configure().unwrap();
    for node in &nodes.nodes {
        set_system_user(node);
    }
    nodes.boot().await.unwrap();
    let context = jetstream::new(client(&nodes.nodes[0], None).await);
    eventually("a stream of three replicas", SOON, async || {
        let wanted = stream::Config {
            name: "S".into(),
            subjects: vec!["s".into()],
            num_replicas: 3,
            ..stream::Config::default()
        };
        context.create_stream(wanted).await.map(drop).map_err(|error| error.to_string())
    })
    .await
    .unwrap();
    nodes
}

fn set_system_user(node: &Node) {
    let text = std::fs::read_to_string(node.agent.config()).unwrap();
    let user = format!("users = [ {{ user = \"sys\", password = \"{PASSWORD}\" }} ]");
    std::fs::write(node.agent.config(), format!("{text}\n[nats.settings.accounts.\"$SYS\"]\n{user}\n")).unwrap();
}

async fn client(node: &Node, user: Option<&str>) -> async_nats::Client {
    let ca = node.newest_generation().unwrap().join("ca.pem");
    let mut options = ConnectOptions::new().require_tls(true).add_root_certificates(ca);
    if let Some(user) = user {
        options = options.user_and_password(user.into(), PASSWORD.into());
    }
    options.connect(format!("tls://{}", node.client())).await.unwrap()
}

/// A request as the user of the system account, with the answer, if one comes in time.
async fn ask(node: &Node, subject: &'static str, request: Value) -> Option<Value> {
    let client = client(node, Some("sys")).await;
    let answer = tokio::time::timeout(ANSWER_WITHIN, client.request(subject, request.to_string().into())).await;
    serde_json::from_slice(&answer.ok()?.ok()?.payload).ok()
}

/// The request that the command in a warning sends: `nats server cluster peer-remove ID`.
async fn remove(node: &Node, warning: &str) -> Option<Value> {
    let id = warning.split("peer-remove ").nth(1).unwrap().split('`').next().unwrap();
    ask(node, "$JS.API.SERVER.REMOVE", json!({ "peer": "", "peer_id": id })).await
}

/// Whether JetStream acknowledges a message to the stream.
async fn is_acknowledged(node: &Node) -> bool {
    let context = jetstream::new(client(node, None).await);
    let publish = async { context.publish("s", "x".into()).await.ok()?.await.ok() };
    tokio::time::timeout(ANSWER_WITHIN, publish).await.ok().flatten().is_some()
}

async fn acknowledged(node: &Node) {
    eventually("an acknowledged message", SOON, async || {
        if is_acknowledged(node).await { Ok(()) } else { Err("none".to_owned()) }
    })
    .await
    .unwrap();
}

/// The index of the node that leads the meta group.
pub(crate) async fn leader(nodes: &Nodes) -> usize {
    let name = eventually("a meta leader", SOON, async || {
        let jsz = monitor(nodes.nodes[0].monitor(), "/jsz").await.map_err(|failure| failure.chain())?;
        jsz["meta_cluster"]["leader"].as_str().map(str::to_owned).ok_or_else(|| jsz.to_string())
    });
    let name = name.await.unwrap();
    nodes.nodes.iter().position(|node| node.name == name).unwrap()
}

/// The node dies with its machine. Another node takes its address, under another name.
pub(crate) async fn replace(nodes: &mut Nodes, index: usize, name: &str) -> String {
    let dead = &mut nodes.nodes[index];
    dead.server.take().unwrap().kill().await.unwrap();
    dead.agent.kill().await.unwrap();
    let (address, dead) = (dead.address, dead.name.clone());
    nodes.nodes[index] = nodes.cluster.node_at(name, address).unwrap();
    let peers: Vec<&Node> = nodes.nodes.iter().collect();
    nodes.cluster.configure(&nodes.nodes[index], &peers).unwrap();
    set_system_user(&nodes.nodes[index]);
    nodes.nodes[index].agent.start().unwrap();
    nodes.nodes[index].committed().await.unwrap();
    nodes.cluster.start_server(&mut nodes.nodes[index]).await.unwrap();
    let names: BTreeSet<String> = nodes.nodes.iter().map(|node| node.name.clone()).collect();
    for node in &nodes.nodes {
        let others = names.iter().filter(|name| **name != node.name).cloned().collect();
        node.meshed(&others, SOON).await.unwrap();
    }
    dead
}

/// What the statuses of all nodes say of JetStream: the codes and the texts, with each node's state.
async fn told_by(nodes: &Nodes) -> Vec<(String, String, String)> {
    let mut told = Vec::new();
    for node in &nodes.nodes {
        let status = node.agent.status().await.unwrap();
        let all = [&status["reasons"], &status["warnings"]].map(|list| list.as_array().unwrap().clone()).concat();
        told.extend(all.iter().map(|one| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (text(&status["state"]), text(&one["code"]), text(&one["text"]))
        }));
    }
    told
}

/// Waits until exactly these codes of JetStream are told, on whatever node.
pub(crate) async fn tells(nodes: &Nodes, codes: &[&str]) -> Vec<(String, String, String)> {
    let begun = Instant::now();
    let told = eventually(&format!("{codes:?}"), SOON, async || {
        let mut told = told_by(nodes).await;
        told.retain(|(_, code, _)| code.starts_with("jetstream") || code.starts_with("stream"));
        let found: BTreeSet<&str> = told.iter().map(|(_, code, _)| code.as_str()).collect();
        if found == codes.iter().copied().collect() { Ok(told) } else { Err(format!("{told:?}")) }
    })
    .await
    .unwrap();
    println!("after {:?}: {told:#?}", begun.elapsed());
    told
}

pub(crate) const GHOST: [&str; 2] = ["jetstream_ghost", "jetstream_majority_at_risk"];

/// The first death with a replacement, and the remedy of the warning, followed to the letter.
async fn first_death(nodes: &mut Nodes, replacement: &str) {
    let victim = (leader(nodes).await + 1) % 3;
    let dead = replace(nodes, victim, replacement).await;
    let told = tells(nodes, &GHOST).await;
    assert!(told.iter().all(|(state, ..)| state == "healthy"), "a ghost is a warning: {told:?}");
    let (_, _, ghost) = told.iter().find(|(_, code, _)| code == "jetstream_ghost").unwrap();
    assert!(ghost.contains(&dead) && ghost.contains("as a user of the system account"), "{ghost}");
    acknowledged(&nodes.nodes[0]).await;

    let asked = Instant::now();
    // Only a meta leader answers, and a busy machine may have none for a moment.
    let removed = eventually("the removal", SOON, async || match remove(&nodes.nodes[0], ghost).await {
        Some(answer) if answer["success"] == true => Ok(()),
        other => Err(format!("{other:?}")),
    });
    removed.await.unwrap();
    println!("the ghost was removed in {:?}", asked.elapsed());
    tells(nodes, &[]).await;
    for node in &nodes.nodes {
        node.healthy(SOON).await.unwrap();
    }
    acknowledged(&nodes.nodes[0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_node_is_named_as_a_ghost_until_the_runbooks_remedy_and_the_second_death_ends_jetstream() {
    let mut nodes = three(tools::NATS_SERVER).await;
    first_death(&mut nodes, "n4").await;

    // Nobody removes the next ghost, and then the meta leader dies.
    let victim = (leader(&nodes).await + 1) % 3;
    let first = replace(&mut nodes, victim, "n5").await;
    tells(&nodes, &GHOST).await;
    let at = leader(&nodes).await;
    replace(&mut nodes, at, "n6").await;
    tells(&nodes, &["jetstream_without_leader"]).await;
    let told = eventually("each node to say so", SOON, async || {
        let mut told = told_by(&nodes).await;
        told.retain(|(_, code, _)| code == "jetstream_without_leader");
        if told.len() == 3 { Ok(told) } else { Err(format!("{told:?}")) }
    })
    .await
    .unwrap();
    assert!(told.iter().all(|(state, ..)| state == "degraded"), "{told:?}");
    assert!(!is_acknowledged(&nodes.nodes[0]).await);
    let (_, checks) = diagnose(&nodes.nodes[0]).await;
    assert_check(&checks, "jetstream", "failed", &["no meta leader"]);
    let removed = ask(&nodes.nodes[0], "$JS.API.SERVER.REMOVE", json!({ "peer": first })).await;
    assert_eq!(removed, None, "a meta group without a leader removes nobody");

    // The remedy from 2.15 on: the servers that are left lower the majority, and their leader removes the dead.
    let survivors: Vec<usize> = (0..3).filter(|index| nodes.nodes[*index].name != "n6").collect();
    for index in survivors {
        let answer = ask(&nodes.nodes[index], "$JS.API.META.RESCUE", json!({ "quorum_needed": 2 })).await;
        println!("rescue: {answer:?}");
    }
    tells(&nodes, &["jetstream_ghost", "stream_without_leader", "jetstream_majority_at_risk"]).await;
    // The new leader may not know the name of a member that died before its own start. The message has the peer id.
    eventually("the removal of both", SOON, async || {
        let all = told_by(&nodes).await;
        let Some((.., ghost)) = all.iter().find(|(_, code, _)| code == "jetstream_ghost") else { return Ok(()) };
        let answer = remove(&nodes.nodes[0], ghost).await;
        Err(format!("{answer:?}"))
    })
    .await
    .unwrap();
    tells(&nodes, &[]).await;
    acknowledged(&nodes.nodes[0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_node_is_named_as_a_ghost_on_every_version() {
    for version in tools::NATS_SERVER_VERSIONS.into_iter().filter(|version| *version != tools::NATS_SERVER) {
        let mut nodes = three(version).await;
        first_death(&mut nodes, "n4").await;
    }
}

#[tokio::test]
async fn a_node_alone_says_that_jetstream_needs_another() {
    let nodes = Nodes::start(AGENT, tools::NATS_SERVER, 1).await.unwrap();
    let told = tells(&nodes, &["jetstream_alone"]).await;
    assert_eq!((told[0].0.as_str(), told[0].2.contains("needs two nodes")), ("healthy", true), "{told:?}");
    let (code, checks) = diagnose(&nodes.nodes[0]).await;
    assert_eq!(code, Some(0), "{checks:?}");
    assert_check(&checks, "jetstream", "warning", &["nats.jetstream = false"]);
}

#[tokio::test]
async fn without_monitoring_jetstream_is_asked_through_the_system_account_on_every_version() {
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        let mut nodes = Nodes::new(AGENT, version, 1).unwrap();
        nodes.configure().unwrap();
        set_system_user(&nodes.nodes[0]);
        let template = nodes.directory().join("own.tera");
        let text = BUILT_IN.replacen("http: \"{{ monitor_listen }}\"\n", "", 1);
        assert_ne!(text, BUILT_IN);
        std::fs::write(&template, text).unwrap();
        nodes.set("nats.template", &format!("{:?}", template.display().to_string())).unwrap();
        nodes.nodes[0].agent.start().unwrap();
        nodes.nodes[0].committed().await.unwrap();
        nodes.cluster.start_server(&mut nodes.nodes[0]).await.unwrap();
        let told = tells(&nodes, &["jetstream_alone"]).await;
        assert_eq!(told[0].0.as_str(), "healthy", "{version}: {told:?}");
    });
    harness::join_all(runs).await;
}
