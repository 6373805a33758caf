//! The commands on a node where something is missing, and their messages to the operator.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use harness::cluster::Node;
use harness::nodes::{Nodes, set};
use harness::{eventually, tools};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use crate::doctor::start_by_hand;
use crate::{AGENT, metric};

/// The time within which the agent gives up on instance metadata, after several requests.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(45);
const SOON: Duration = Duration::from_secs(30);

/// `agent doctor --json`: the verdict and the finding of the first check of this name.
async fn check(cluster: &Nodes, name: &str) -> (String, String) {
    let answer = cluster.nodes[0].agent.run(&["doctor", "--json"], SOON).await.unwrap().json().unwrap();
    let checks = answer["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name}: {answer}"));
    let text = |key: &str| check[key].as_str().unwrap().to_owned();
    (text("verdict"), text("found"))
}

/// Removes the node's address from its configuration. No instance metadata answers in its place.
fn hide_identity(cluster: &mut Nodes) {
    let agent = &mut cluster.nodes[0].agent;
    agent.set_env("AWS_EC2_METADATA_DISABLED", "false");
    agent.set_env("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1");
    let text = std::fs::read_to_string(agent.config()).unwrap();
    let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("addresses = ")).collect();
    std::fs::write(agent.config(), without.join("\n")).unwrap();
}

#[tokio::test]
async fn a_daemon_that_waits_for_instance_metadata_says_so_and_goes_on_with_the_keys_that_it_asks_for() {
    let mut cluster = Nodes::start(AGENT, tools::NATS_SERVER, 1).await.unwrap();
    let serial = cluster.nodes[0].healthy(SOON).await.unwrap()["leaf"]["serial"].clone();
    cluster.nodes[0].agent.stop().await.unwrap();
    hide_identity(&mut cluster);
    cluster.nodes[0].agent.start().unwrap();

    let node = &cluster.nodes[0];
    // Until the daemon listens, the first reason is that no daemon runs.
    let is_told = |status: &Value| match &status["reasons"].as_array().unwrap()[..] {
        [reason] => reason["code"] == "metadata_unavailable",
        _ => false,
    };
    let status = eventually("the reason", GIVEN_UP_WITHIN, async || match node.agent.status().await {
        Ok(status) if is_told(&status) => Ok(status),
        other => Err(format!("{other:?}")),
    });
    let status = status.await.unwrap();
    // The certificate is still valid and served. Only renewals have to wait.
    assert_eq!((&status["state"], &status["leaf"]["serial"]), (&"degraded".into(), &serial), "{status}");
    assert_eq!(metric(node.metrics(), "nats_tls_agent_state{state=\"degraded\"}").await, Some(1));

    let refused = node.agent.run(&["renew"], SOON).await.unwrap();
    assert!(refused.code == Some(1) && refused.stderr.contains("asked instance metadata"), "{refused:?}");

    set(node.agent.config(), "node.addresses", &format!("[\"{}\"]", node.address)).unwrap();
    node.agent.signal(Signal::SIGHUP).unwrap();
    assert_eq!(node.healthy(SOON).await.unwrap()["leaf"]["serial"], serial);
}

#[tokio::test]
async fn doctor_looks_at_all_that_needs_no_identity_where_there_is_none() {
    let mut cluster = Nodes::start(AGENT, tools::NATS_SERVER, 1).await.unwrap();
    hide_identity(&mut cluster);
    let answer = cluster.nodes[0].agent.run(&["doctor"], GIVEN_UP_WITHIN).await.unwrap();
    assert_eq!(answer.code, Some(1), "{answer:?}");
    let verdicts: Vec<_> = answer.stdout.lines().map(|line| line.split("  ").next().unwrap()).collect();
    assert_eq!(verdicts.iter().filter(|verdict| **verdict == "failed").count(), 1, "{}", answer.stdout);
    for found in ["nats-server", "state directory", "it runs and is healthy", "client port", "route port"] {
        assert!(answer.stdout.contains(found), "no {found:?}: {}", answer.stdout);
    }
}

#[tokio::test]
async fn doctor_tells_a_change_that_waits_and_a_daemon_that_is_away() {
    let mut cluster = Nodes::start(AGENT, tools::NATS_SERVER, 1).await.unwrap();
    let ok = |found: &str| ("ok".to_owned(), found.to_owned());
    assert_eq!(check(&cluster, "daemon").await, ok("it runs and is healthy"));
    assert_eq!(check(&cluster, "configuration").await, ok("what is committed is what is wanted"));
    assert_eq!(check(&cluster, "trust").await, ok("1 anchor from issuer"));
    cluster.nodes[0].agent.stop().await.unwrap();
    set(cluster.nodes[0].agent.config(), "nats.client_auth", "\"mtls\"").unwrap();
    let (verdict, found) = check(&cluster, "daemon").await;
    assert!(verdict == "warning" && found.contains("start the agent"), "{verdict}: {found}");
    let (verdict, found) = check(&cluster, "configuration").await;
    assert!(verdict == "warning" && found.contains("agent render --diff"), "{verdict}: {found}");
    // Doctor changes nothing.
    let diff = cluster.nodes[0].agent.run(&["render", "--diff"], SOON).await.unwrap();
    assert!(diff.stdout.contains("verify"), "{diff:?}");
}

#[tokio::test]
async fn doctor_fails_with_a_daemon_that_fails_and_says_what_to_do_about_what_does_not_answer() {
    let mut cluster = Nodes::start(AGENT, tools::NATS_SERVER, 2).await.unwrap();
    cluster.nodes[1].server.take().unwrap().kill().await.unwrap();
    let (verdict, found) = check(&cluster, "peer").await;
    assert!(verdict == "failed" && found.contains("start its nats-server"), "{verdict}: {found}");
    cluster.nodes[0].server.take().unwrap().kill().await.unwrap();
    let (verdict, found) = check(&cluster, "route port").await;
    assert!(verdict == "failed" && found.contains("nats.cluster_listen"), "{verdict}: {found}");

    let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    cluster.configure().unwrap();
    set(cluster.nodes[0].agent.config(), "trust.kind", "\"file\"").unwrap();
    set(cluster.nodes[0].agent.config(), "trust.file", "\"/nowhere/bundle.pem\"").unwrap();
    cluster.nodes[0].agent.start().unwrap();
    let failed = eventually("the daemon's verdict", SOON, async || match check(&cluster, "daemon").await {
        (verdict, found) if verdict == "failed" => Ok(found),
        other => Err(format!("{other:?}")),
    });
    assert!(failed.await.unwrap().contains("it runs and is failing"));
}

/// The first pass of the daemon waits for a call that nobody answers.
#[tokio::test]
async fn a_status_is_given_before_the_first_pass_is_done_too() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    cluster.configure().unwrap();
    let agent = &mut cluster.nodes[0].agent;
    for (key, value) in
        [("trust.kind", "secrets-manager"), ("trust.secret_id", "nats/bundle"), ("node.region", "eu-west-1")]
    {
        set(agent.config(), key, &format!("{value:?}")).unwrap();
    }
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    for (name, value) in
        [("AWS_ENDPOINT_URL", &*endpoint), ("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")]
    {
        agent.set_env(name, value);
    }
    agent.start().unwrap();
    let status = eventually("the reason", SOON, async || match agent.status().await {
        Ok(status) if status["reasons"].to_string().contains("first pass isn't done yet") => Ok(status),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(status.await.unwrap()["state"], "failing");
}

#[tokio::test]
async fn a_renewal_that_could_not_be_deployed_says_that_its_certificate_is_kept() {
    let cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    cluster.configure().unwrap();
    let node = &cluster.nodes[0];
    node.agent.renew().await.unwrap();
    let template = cluster.directory().join("own.tera");
    std::fs::write(&template, "{{ nothing }}\n").unwrap();
    set(node.agent.config(), "nats.template", &format!("{:?}", template.display().to_string())).unwrap();
    let failed = node.agent.run(&["renew"], SOON).await.unwrap();
    assert!(failed.code == Some(1) && failed.stderr.contains("is kept as generation 2"), "{failed:?}");
}

/// No daemon has looked at nats-server, so each command looks. The agent pays for no certificate that it can't make
/// this server load.
#[tokio::test]
async fn status_and_renew_look_at_a_server_that_was_started_by_hand_before_the_first_certificate() {
    let cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    cluster.configure().unwrap();
    let node = &cluster.nodes[0];
    let codes = |status: &Value| {
        let reasons = status["reasons"].as_array().unwrap().iter();
        reasons.map(|reason| reason["code"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };

    let absent = node.agent.run(&["status", "--json"], SOON).await.unwrap().json().unwrap();
    assert_eq!(
        codes(&absent),
        ["agent_not_running", "no_certificate", "nothing_committed", "server_not_running"],
        "{absent}"
    );

    let server = start_by_hand(node, &cluster.directory().join("other.conf")).await;
    let status = node.agent.run(&["status", "--json"], SOON).await.unwrap().json().unwrap();
    assert_eq!(codes(&status), ["agent_not_running", "no_certificate", "committed_not_served"], "{status}");
    let expected = format!("-c {}", node.nats_config().display());
    assert!(status["reasons"][2]["text"].as_str().unwrap().contains(&expected), "{status}");

    let refused = node.agent.run(&["renew", "--json"], SOON).await.unwrap();
    let told = refused.json().unwrap();
    assert_eq!((refused.code, &told["code"]), (Some(1), &"committed_not_served".into()), "{refused:?}");
    assert!(told["error"].as_str().unwrap().contains(&expected), "{told}");
    assert!(!node.state_directory().join("generations").exists());
    let issued = std::fs::read_dir(cluster.cluster.ca_directory().join("issued"));
    assert_eq!(issued.map_or(0, Iterator::count), 0);

    // A server without a pid file shows itself on its port.
    std::fs::remove_file(node.pid_file()).unwrap();
    let refused = node.agent.run(&["renew", "--json"], SOON).await.unwrap();
    let told = refused.json().unwrap();
    assert_eq!((refused.code, &told["code"]), (Some(1), &"committed_not_served".into()), "{refused:?}");
    drop(server);
}

#[tokio::test]
async fn a_static_peer_that_is_this_node_under_another_port_is_a_warning() {
    let cluster = Nodes::start(AGENT, tools::NATS_SERVER, 1).await.unwrap();
    let node = &cluster.nodes[0];
    let warned = |status: &Value| {
        let warnings = status["warnings"].as_array().unwrap().iter();
        warnings.filter(|warning| warning["code"] == "peer_is_this_node").count()
    };
    assert_eq!(warned(&node.healthy(SOON).await.unwrap()), 0);
    let second = format!("{}:1", node.address);
    set(node.agent.config(), "discovery.peers", &format!("[\"{}\", \"{second}\"]", node.route())).unwrap();
    node.agent.signal(Signal::SIGHUP).unwrap();
    let status = eventually("the warning", SOON, async || {
        let status = node.agent.status().await.map_err(|failure| failure.chain())?;
        if warned(&status) == 1 && status["state"] == "healthy" { Ok(status) } else { Err(status.to_string()) }
    });
    assert!(status.await.unwrap()["warnings"].to_string().contains(&second));
}

/// Has the agent run nats-server's binary through a script. The script waits while the returned file is there, and so does a
/// pass that checks a configuration.
pub(crate) fn hold_nats_server(nodes: &Nodes) -> PathBuf {
    let (held, script) = (nodes.directory().join("held"), nodes.directory().join("nats-server"));
    let server = tools::nats_server(tools::NATS_SERVER).unwrap();
    let text = format!(
        "#!/bin/sh\nwhile [ -e '{}' ]; do sleep 0.02; done\nexec '{}' \"$@\"\n",
        held.display(),
        server.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    nodes.set("nats.server", &format!("\"{}\"", script.display())).unwrap();
    held
}

/// The socket of a node's control, as its configuration names it.
fn control_socket(node: &Node) -> String {
    let text = std::fs::read_to_string(node.agent.config()).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("socket = ")).unwrap();
    serde_json::from_str(line).unwrap()
}

/// The number of accepted connections of a socket, in unix(7)'s table: the path stands in each of their lines.
fn connections(socket: &str) -> usize {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let accepted = |line: &&str| line.ends_with(socket) && line.split_whitespace().nth(5) == Some("03");
    table.lines().filter(accepted).count()
}

#[tokio::test]
async fn status_tells_a_pass_under_way_and_a_renewal_whose_client_is_gone_is_not_made() {
    let mut nodes = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    nodes.configure().unwrap();
    let held = hold_nats_server(&nodes);
    nodes.nodes[0].agent.start().unwrap();
    nodes.nodes[0].committed().await.unwrap();
    let (node, issued) = (&nodes.nodes[0], nodes.cluster.ca_directory().join("issued"));
    let issued = || std::fs::read_dir(&issued).unwrap().count();
    let status = async || node.agent.status().await.map_err(|failure| failure.chain());
    let between = eventually("a status between two passes", SOON, async || match status().await? {
        status if status["pass"].is_null() && status["leaf"]["generation"] == 1 => Ok(()),
        other => Err(other.to_string()),
    });
    between.await.unwrap();
    assert_eq!(issued(), 1);

    // SIGHUP makes a pass that checks the committed configuration.
    std::fs::write(&held, "").unwrap();
    node.agent.signal(Signal::SIGHUP).unwrap();
    let during = eventually("a pass under way", SOON, async || match status().await? {
        status if status["pass"]["since"].is_string() => Ok(status),
        other => Err(other.to_string()),
    });
    let before = during.await.unwrap()["leaf"]["serial"].clone();
    let told = node.agent.run(&["status"], SOON).await.unwrap();
    assert!(told.stdout.contains("\npass      under way since "), "{}", told.stdout);

    let socket = control_socket(node);
    let mut client = tokio::process::Command::new(AGENT)
        .args(["renew", "--config"])
        .arg(node.agent.config())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let connected = eventually("the client's connection", SOON, async || match connections(&socket) {
        0 => Err("no connection".to_owned()),
        _ => Ok(()),
    });
    connected.await.unwrap();
    client.kill().await.unwrap();
    let mut request = UnixStream::connect(&socket).await.unwrap();
    request.write_all(b"{\"command\": \"renew\"}\n").await.unwrap();
    drop(request);
    let gone = eventually("the end of both connections", SOON, async || match connections(&socket) {
        0 => Ok(()),
        count => Err(count.to_string()),
    });
    gone.await.unwrap();
    assert!(status().await.unwrap()["pass"].is_object(), "the pass ended before the clients were gone");

    std::fs::remove_file(&held).unwrap();
    // The daemon takes one request after the other, so this renewal comes after what was asked before.
    let renewed = node.agent.renew().await.unwrap();
    assert_eq!((&renewed["old"]["serial"], &renewed["new"]["generation"]), (&before, &2.into()), "{renewed}");
    assert_eq!(issued(), 2, "{}", node.agent.log_tail(30));
}

#[tokio::test]
async fn with_json_an_error_is_json_too() {
    let nodes = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    nodes.configure().unwrap();
    let node = &nodes.nodes[0];
    set(node.agent.config(), "renewal.at", "7").unwrap();
    for command in ["status", "doctor", "renew"] {
        let answer = node.agent.run(&[command, "--json"], SOON).await.unwrap();
        let told = answer.json().unwrap();
        let error = if command == "renew" { &told } else { &told["error"] };
        let text = if command == "renew" { &told["error"] } else { &error["text"] };
        assert_eq!((answer.code, &error["code"]), (Some(2), &"agent_configuration_unusable".into()), "{answer:?}");
        assert!(text.as_str().unwrap().contains("renewal.at") && answer.stderr.contains("renewal.at"), "{answer:?}");
    }
    nodes.configure().unwrap();
    // Something listens on the socket, and it is no daemon.
    let listener = tokio::net::UnixListener::bind(control_socket(node)).unwrap();
    let asked =
        async { tokio::join!(node.agent.run(&["status", "--json"], SOON), async { drop(listener.accept().await) }) };
    let answer = asked.await.0.unwrap();
    assert_eq!(
        (answer.code, &answer.json().unwrap()["error"]["code"]),
        (Some(1), &"agent_silent".into()),
        "{answer:?}"
    );
}
