//! Reloads that fail: the signal is lost, late, deadly or reaches another process, or a roll-back is impossible.
//!
//! In each case the served certificate stays in service as long as its process lives, and the status shows the fault.
//! No second certificate is paid for. Once the server behaves, the paid certificate is served without help.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use async_nats::ConnectOptions;
use harness::agent::Answer;
use harness::cluster::Node;
use harness::front::{Front, Mood};
use harness::nodes::{Nodes, at, set};
use harness::process::tail;
use harness::{eventually, tools};
use nats_tls_agent::conf::render::BUILT_IN;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::rotation::{assert_nothing_lost, read_again, status_with, traffic, unhealthy};
use crate::{AGENT, metric};

const SOON: Duration = Duration::from_secs(20);
/// The agent waits ten seconds for the confirmation of a reload, and ten seconds for the reload of a roll-back.
const RENEW_WITHIN: Duration = Duration::from_mins(1);
/// The time until a waiting certificate is in force: a failing pass, and a pause of seconds before the next.
const HEALED_WITHIN: Duration = Duration::from_secs(90);

/// The state before and after: the committed text, the served leaf, and the number of paid certificates.
#[derive(Clone, Debug, PartialEq)]
struct InForce {
    committed: String,
    served: Value,
    issued: usize,
}

async fn in_force(nodes: &Nodes) -> InForce {
    let status = nodes.nodes[0].agent.status().await.unwrap();
    InForce { committed: committed(&nodes.nodes[0]), served: status["served"]["client"].clone(), issued: issued(nodes) }
}

fn committed(node: &Node) -> String {
    std::fs::read_to_string(node.nats_config()).unwrap()
}

fn issued(nodes: &Nodes) -> usize {
    std::fs::read_dir(nodes.cluster.ca_directory().join("issued")).unwrap().count()
}

/// A committed node with short pauses between retries and without its nats-server.
async fn committed_node() -> Nodes {
    let mut nodes = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    nodes.configure().unwrap();
    // These tests are about the signal. The system account has its own tests.
    nodes.set("nats.system", "\"off\"").unwrap();
    nodes.set("renewal.retry_min", "\"1s\"").unwrap();
    nodes.set("renewal.retry_max", "\"5s\"").unwrap();
    nodes.nodes[0].agent.start().unwrap();
    nodes.nodes[0].committed().await.unwrap();
    nodes
}

async fn serving_node() -> Nodes {
    let mut nodes = committed_node().await;
    nodes.cluster.start_server(&mut nodes.nodes[0]).await.unwrap();
    nodes.nodes[0].healthy(SOON).await.unwrap();
    nodes
}

/// A healthy node with its server behind a front.
async fn fronted_node() -> (Nodes, Front) {
    let nodes = committed_node().await;
    let server = tools::nats_server(tools::NATS_SERVER).unwrap();
    let front = Front::start(&nodes.nodes[0], &server).await.unwrap();
    // The pid file named the server behind for a moment.
    let pid = front.pid();
    status_with(&nodes.nodes[0], |status| status["nats"]["pid"].as_u64() == pid.map(u64::from)).await;
    nodes.nodes[0].healthy(SOON).await.unwrap();
    (nodes, front)
}

async fn renew(node: &Node) -> Answer {
    node.agent.run(&["renew"], RENEW_WITHIN).await.unwrap()
}

/// Requests a renewal, which must fail with these words.
async fn renewal_fails(node: &Node, words: &[&str]) -> String {
    let answer = renew(node).await;
    assert_eq!(answer.code, Some(1), "{answer:?}\n{}", node.agent.log_tail(20));
    for word in words {
        assert!(answer.stderr.contains(word), "no {word:?} in {}", answer.stderr);
    }
    answer.stderr
}

/// Waits until the newest certificate is in force. Exactly one certificate was paid for since `before`.
async fn heals_with_one_more(nodes: &Nodes, before: &InForce) {
    let node = &nodes.nodes[0];
    let status = node
        .healthy(HEALED_WITHIN)
        .await
        .unwrap_or_else(|failure| panic!("{failure}\n{}\n{}", node.agent.log_tail(40), tail(&node.server_log(), 20)));
    let served = at(&status, "served.client.sha256");
    assert_eq!((served, at(&status, "served.route.sha256")), (at(&status, "leaf.sha256"), served), "{status}");
    assert_ne!(status["served"]["client"], before.served, "{status}");
    assert_eq!(issued(nodes), before.issued + 1, "{}", node.agent.log_tail(40));
    assert_eq!(metric(node.metrics(), "nats_tls_agent_state{state=\"healthy\"}").await, Some(1));
}

#[tokio::test]
async fn a_server_that_ignores_the_signal_is_rolled_back_serves_on_and_gets_the_same_certificate_later() {
    let (nodes, front) = fronted_node().await;
    let node = &nodes.nodes[0];
    let (before, traffic) = (in_force(&nodes).await, traffic(&nodes, 500).await);
    front.is(Mood::Ignores).unwrap();
    let said = renewal_fails(node, &["did not come to serve the new configuration within 10 s"]).await;
    assert!(said.contains("the previous one is back in place and served"), "{said}");
    assert!(said.contains("is kept as generation 2") && said.contains("without another issuance"), "{said}");
    let status = unhealthy(node, "the previous one is back in place and served").await;
    assert_eq!(status["state"], "degraded", "{status}");
    assert_eq!(metric(node.metrics(), "nats_tls_agent_state{state=\"degraded\"}").await, Some(1));
    assert!(node.agent.log_tail(50).contains("rolled back: "), "{}", node.agent.log_tail(50));
    assert_eq!(status["served"]["client"], before.served);
    assert_eq!(status["leaf"]["generation"], 2, "{status}");
    // The agent retries the deployment, and pays for no further certificate.
    eventually("another attempt", HEALED_WITHIN, async || {
        let rolled_back = node.agent.log_tail(usize::MAX).matches("rolled back: ").count();
        if rolled_back > 1 { Ok(()) } else { Err(rolled_back.to_string()) }
    })
    .await
    .unwrap();
    assert_eq!(issued(&nodes), before.issued + 1);
    front.is(Mood::Passes).unwrap();
    heals_with_one_more(&nodes, &before).await;
    assert_nothing_lost(traffic).await;
}

#[tokio::test]
async fn a_server_that_takes_thirty_seconds_serves_on_and_comes_to_serve_what_was_paid_for() {
    let (nodes, front) = fronted_node().await;
    let (before, traffic) = (in_force(&nodes).await, traffic(&nodes, 200).await);
    front.is(Mood::Dawdles).unwrap();
    renewal_fails(&nodes.nodes[0], &["within 10 s", "the previous one is back in place and served"]).await;
    assert_eq!(issued(&nodes), before.issued + 1);
    heals_with_one_more(&nodes, &before).await;
    assert_nothing_lost(traffic).await;
}

#[tokio::test]
async fn invariant_10_a_server_that_is_frozen_is_not_signalled_and_takes_the_certificate_when_it_thaws() {
    let nodes = serving_node().await;
    let node = &nodes.nodes[0];
    let (before, server) = (in_force(&nodes).await, node.server.as_ref().unwrap());
    // The first start may need a reload, where a slow machine shows nothing of it for a while.
    let reloads = || node.agent.log_tail(50).matches("to reload").count();
    let reloads_before = reloads();
    server.signal(Signal::SIGSTOP).unwrap();
    renewal_fails(node, &["doesn't listen on its client port", "it is signalled when it listens"]).await;
    let status = unhealthy(node, "no TLS handshake with").await;
    assert_eq!(status["state"], "failing", "nobody is served: {status}");
    assert_eq!(reloads(), reloads_before, "{}", node.agent.log_tail(50));
    server.signal(Signal::SIGCONT).unwrap();
    heals_with_one_more(&nodes, &before).await;
}

#[tokio::test]
async fn a_server_that_dies_of_the_signal_is_said_to_have_and_once_started_serves_the_new_certificate() {
    let (mut nodes, front) = fronted_node().await;
    let before = in_force(&nodes).await;
    let pid = front.pid().unwrap();
    front.is(Mood::Dies).unwrap();
    let died = format!("nats-server (pid {pid}) ended when it was told to reload, and none has taken its place");
    renewal_fails(&nodes.nodes[0], &[&died, "the previous one is back in place", "is kept as generation 2"]).await;
    let status = unhealthy(&nodes.nodes[0], "nats-server isn't running").await;
    assert_eq!(status["state"], "degraded", "a start would serve a valid certificate: {status}");
    drop(front);
    let Nodes { nodes: all, cluster, .. } = &mut nodes;
    cluster.start_server(&mut all[0]).await.unwrap();
    heals_with_one_more(&nodes, &before).await;
}

#[tokio::test]
async fn a_server_that_is_replaced_by_the_signal_is_confirmed_under_its_new_pid() {
    let (nodes, front) = fronted_node().await;
    let (node, before) = (&nodes.nodes[0], in_force(&nodes).await);
    front.is(Mood::IsReplaced).unwrap();
    let renewed = renew(node).await;
    assert!(renewed.code == Some(0) && renewed.stdout.starts_with("confirmed"), "{renewed:?}");
    heals_with_one_more(&nodes, &before).await;
    let pid = node.agent.status().await.unwrap()["nats"]["pid"].as_u64();
    assert!(pid.is_some() && pid != front.pid().map(u64::from), "{pid:?}");
}

#[tokio::test]
async fn a_server_that_is_replaced_between_the_commit_and_the_signal_is_found_under_its_new_pid() {
    let mut nodes = serving_node().await;
    let before = in_force(&nodes).await;
    // A start on a slow machine may need a reload.
    let reloads = |node: &Node| node.agent.log_tail(usize::MAX).matches("to reload").count();
    let reloads_at_boot = reloads(&nodes.nodes[0]);
    // A stopped server doesn't answer the agent's probe, which leaves time to replace the server.
    nodes.nodes[0].server.as_ref().unwrap().signal(Signal::SIGSTOP).unwrap();
    let Nodes { nodes: all, cluster, .. } = &mut nodes;
    let node = &mut all[0];
    let renewing = tokio::spawn({
        let (agent, config) = (AGENT.to_owned(), node.agent.config().to_owned());
        async move {
            let mut command = tokio::process::Command::new(agent);
            command.args(["renew", "--json", "--config"]).arg(config).kill_on_drop(true);
            tokio::time::timeout(RENEW_WITHIN, command.output()).await.unwrap().unwrap()
        }
    });
    eventually("the commit", SOON, async || {
        if committed(node) == before.committed { Err("the previous text".to_owned()) } else { Ok(()) }
    })
    .await
    .unwrap();
    assert_eq!(reloads(node), reloads_at_boot, "the signal came first: {}", node.agent.log_tail(20));
    node.server.take().unwrap().kill().await.unwrap();
    cluster.start_server(node).await.unwrap();
    let pid = node.server.as_ref().unwrap().pid();
    let renewed = renewing.await.unwrap();
    assert!(renewed.status.success(), "{renewed:?}\n{}", node.agent.log_tail(20));
    heals_with_one_more(&nodes, &before).await;
    let status = nodes.nodes[0].agent.status().await.unwrap();
    assert_eq!(status["nats"]["pid"].as_u64(), pid.map(u64::from));
}

#[tokio::test]
async fn invariant_10_a_pid_file_that_comes_to_name_another_program_gets_nothing_signalled_and_the_server_serves_on() {
    let nodes = serving_node().await;
    let (node, before, traffic) = (&nodes.nodes[0], in_force(&nodes).await, traffic(&nodes, 500).await);
    let right = std::fs::read(node.pid_file()).unwrap();
    let hangups = || tail(&node.server_log(), usize::MAX).matches("hangup").count();
    let hangups_at_boot = hangups();
    // The process has another configuration, or is no nats-server at all.
    let server = tools::nats_server(tools::NATS_SERVER).unwrap();
    let other = nodes.directory().join("other.conf");
    std::fs::write(&other, format!("listen: \"{}\"", nodes.cluster.node(9).unwrap().client())).unwrap();
    let spawn = |command: &mut tokio::process::Command| {
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).kill_on_drop(true).spawn()
    };
    let mut strangers = [
        (spawn(tokio::process::Command::new("sleep").arg("600")).unwrap(), "sleep"),
        (spawn(tokio::process::Command::new(server).arg("-c").arg(&other)).unwrap(), "doesn't run with -c"),
    ];
    std::fs::write(node.pid_file(), strangers[0].0.id().unwrap().to_string()).unwrap();
    renewal_fails(node, &["it is not signalled", "sleep", "nats.pid_file", "is kept as generation 2"]).await;
    for (stranger, words) in &mut strangers {
        std::fs::write(node.pid_file(), stranger.id().unwrap().to_string()).unwrap();
        let status = unhealthy(node, words).await;
        assert!(status["reasons"].to_string().contains("it is not signalled"), "{status}");
        assert!(stranger.try_wait().unwrap().is_none(), "the agent signalled another program");
    }
    assert_eq!(hangups(), hangups_at_boot);
    std::fs::write(node.pid_file(), right).unwrap();
    heals_with_one_more(&nodes, &before).await;
    for (stranger, _) in &mut strangers {
        assert!(stranger.try_wait().unwrap().is_none(), "the agent signalled another program");
    }
    assert_nothing_lost(traffic).await;
}

#[tokio::test]
async fn invariant_10_a_server_in_lame_duck_mode_is_not_signalled_and_its_next_start_serves_the_new_certificate() {
    let mut nodes = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    nodes.configure().unwrap();
    // With a client connected, the server stays in lame duck mode for at least this time.
    let text = BUILT_IN.replacen("lame_duck_grace_period: \"10s\"", "lame_duck_grace_period: \"50s\"", 1);
    assert_ne!(text, BUILT_IN);
    let template = nodes.directory().join("own.tera");
    std::fs::write(&template, text).unwrap();
    nodes.set("nats.template", &format!("{:?}", template.display().to_string())).unwrap();
    nodes.set("renewal.retry_min", "\"1s\"").unwrap();
    nodes.boot().await.unwrap();
    let (before, traffic) = (in_force(&nodes).await, traffic(&nodes, 50).await);
    let node = &mut nodes.nodes[0];
    node.server.as_ref().unwrap().lame_duck().unwrap();
    eventually("the closed listener", SOON, async || match tokio::net::TcpStream::connect(node.client()).await {
        Ok(_open) => Err("nats-server accepts clients".to_owned()),
        Err(_closed) => Ok(()),
    })
    .await
    .unwrap();
    renewal_fails(node, &["so it is starting or draining", "it is signalled when it listens"]).await;
    let status = unhealthy(node, "starting or draining").await;
    assert_eq!((&status["state"], &status["nats"]["state"]), (&"degraded".into(), &"draining".into()), "{status}");
    node.server.as_mut().unwrap().check_running().unwrap();
    let log = tail(&node.server_log(), usize::MAX);
    let since = log.find("lame duck").unwrap();
    assert!(!log[since..].contains("hangup"), "the agent signalled a draining server: {log}");
    node.server.take().unwrap().kill().await.unwrap();
    drop(traffic);
    nodes.cluster.start_server(&mut nodes.nodes[0]).await.unwrap();
    heals_with_one_more(&nodes, &before).await;
}

/// A nats-server for `-t` alone. It refuses a configuration that contains a certain text, like a server whose files are
/// lost.
fn refusing(nodes: &Nodes, text: &str) -> std::path::PathBuf {
    let directory = nodes.directory().join("refusing");
    std::fs::create_dir(&directory).unwrap();
    let (wrapper, server) = (directory.join("nats-server"), tools::nats_server(tools::NATS_SERVER).unwrap());
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = -t ] && [ -e {0}/on ] && grep -q {text} \"$3\"; then\n    echo \"$3: cannot be used\" >&2\n    \
         exit 1\nfi\nexec {1} \"$@\"\n",
        directory.display(),
        server.display()
    );
    std::fs::write(&wrapper, script).unwrap();
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
    wrapper
}

fn switch(wrapper: &Path, on: bool) {
    let switch = wrapper.with_file_name("on");
    if on { std::fs::write(switch, "").unwrap() } else { std::fs::remove_file(switch).unwrap() }
}

#[tokio::test]
async fn a_roll_back_that_nats_server_refuses_is_said_to_be_one_and_the_server_serves_on_with_what_it_has() {
    let (nodes, front) = fronted_node().await;
    let wrapper = refusing(&nodes, "generations/000001");
    let node = &nodes.nodes[0];
    set(node.agent.config(), "nats.server", &format!("{:?}", wrapper.display().to_string())).unwrap();
    read_again(node).await;
    node.healthy(SOON).await.unwrap();
    let (before, traffic) = (in_force(&nodes).await, traffic(&nodes, 500).await);
    front.is(Mood::Ignores).unwrap();
    switch(&wrapper, true);
    let words = [
        "did not come to serve the new configuration within 10 s",
        "the previous one can't be put back",
        "cannot be used",
    ];
    renewal_fails(node, &words).await;
    let status = unhealthy(node, "the previous one can't be put back").await;
    assert_eq!(status["state"], "degraded", "{status}");
    assert_eq!(status["served"]["client"], before.served, "{status}");
    // The committed configuration is complete and new, so any start of nats-server uses it.
    assert!(committed(node).contains("generations/000002"));
    assert_nothing_lost(traffic).await;
    front.is(Mood::Passes).unwrap();
    heals_with_one_more(&nodes, &before).await;
    switch(&wrapper, false);
}

#[tokio::test]
async fn a_certificate_and_a_setting_that_waits_come_at_once_and_over_restarts_of_the_agent() {
    let mut nodes = serving_node().await;
    let before = in_force(&nodes).await;
    let traffic = traffic(&nodes, 500).await;
    let text = BUILT_IN.replacen("lame_duck_duration: \"60s\"", "lame_duck_duration: \"90s\"", 1);
    assert_ne!(text, BUILT_IN);
    let template = nodes.directory().join("own.tera");
    std::fs::write(&template, text).unwrap();
    nodes.nodes[0].agent.stop().await.unwrap();
    nodes.set("nats.template", &format!("{:?}", template.display().to_string())).unwrap();
    let renewed = nodes.nodes[0].agent.renew().await.unwrap();
    assert_eq!(renewed["result"], "confirmed", "{renewed}");
    let waits = |status: &Value| {
        status["state"] == "healthy"
            && status["warnings"].to_string().contains("takes lame_duck_duration only at a start")
    };
    for _restart in 0..2 {
        nodes.nodes[0].agent.start().unwrap();
        let status = status_with(&nodes.nodes[0], waits).await;
        assert_eq!(status["served"]["client"]["sha256"], status["leaf"]["sha256"], "{status}");
        assert_ne!(status["served"]["client"], before.served);
        assert!(committed(&nodes.nodes[0]).contains("lame_duck_duration: \"90s\""));
        nodes.nodes[0].agent.kill().await.unwrap();
    }
    assert_eq!(issued(&nodes), before.issued + 1);
    assert_nothing_lost(traffic).await;
    nodes.nodes[0].agent.start().unwrap();
    nodes.nodes[0].server.take().unwrap().stop().await.unwrap();
    let Nodes { nodes: all, cluster, .. } = &mut nodes;
    cluster.start_server(&mut all[0]).await.unwrap();
    status_with(&all[0], |status| status["state"] == "healthy" && !waits(status)).await;
}

#[tokio::test]
async fn the_clients_that_a_reload_disconnects_are_counted_in_the_log_the_status_and_the_metrics() {
    let runs = tools::NATS_SERVER_VERSIONS.into_iter().flat_map(|version| [(version, "auto"), (version, "off")]);
    let runs = runs.map(|(version, system)| async move {
        let mut nodes = Nodes::new(AGENT, version, 1).unwrap();
        nodes.configure().unwrap();
        let users = nodes.directory().join("users.conf");
        let write = |password: &str| {
            let text = format!(
                "authorization {{ users: [ {{ user: a, password: {password} }}, {{ user: b, password: stays }} ] }}"
            );
            std::fs::write(&users, text).unwrap();
        };
        write("first");
        for (key, value) in [("nats.system", system.to_owned()), ("nats.include", users.display().to_string())] {
            let value = if key == "nats.include" { format!("[{value:?}]") } else { format!("{value:?}") };
            nodes.set(key, &value).unwrap();
        }
        nodes.boot().await.unwrap();
        let node = &nodes.nodes[0];
        let connect = |user: &'static str, password: &'static str| {
            let ca = node.endpoint(false).unwrap().tls.unwrap().ca;
            let options = ConnectOptions::with_user_and_password(user.into(), password.into());
            options.require_tls(true).add_root_certificates(ca).connect(format!("tls://{}", node.client()))
        };
        let mut clients = Vec::new();
        for (user, password) in [("a", "first"), ("a", "first"), ("b", "stays")] {
            clients.push(connect(user, password).await.unwrap());
        }
        // The agent doesn't count connections younger than a login, so the connections must age.
        tokio::time::sleep(Duration::from_secs(6)).await;
        // The two clients with the old password are refused, and retry.
        write("second");
        let counted = |count: u64| move |status: &Value| status["nats"]["last_reload"]["disconnected"] == count;
        status_with(node, counted(2)).await;
        let name = "nats_tls_agent_reload_disconnected_clients_total";
        assert_eq!(metric(node.metrics(), name).await, Some(2), "{version} {system}");
        let log = node.agent.log_tail(50);
        assert!(log.contains("clients that the reload disconnected: 2"), "{version} {system}: {log}");

        renew(node).await;
        let status = status_with(node, counted(0)).await;
        assert!(status["nats"]["last_reload"]["since"].is_string(), "{version} {system}: {status}");
        assert_eq!(metric(node.metrics(), name).await, Some(2), "{version} {system}");

        // The user of the last client is gone.
        std::fs::write(&users, "authorization { users: [ { user: a, password: second } ] }").unwrap();
        status_with(node, counted(1)).await;
    });
    harness::join_all(runs).await;
}
