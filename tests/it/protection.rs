//! The protection of a running cluster: its configuration, bundle and pid file, and its defence against a second agent
//! and a stranger.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use harness::agent::Answer;
use harness::cluster::Node;
use harness::moto::{Moto, REGION};
use harness::nats_server::{Launch, NatsServer};
use harness::nodes::{Nodes, at, set};
use harness::process::tail;
use harness::{StreamExt as _, eventually, tools};
use nats_tls_agent::conf::render::BUILT_IN;
use nix::sys::signal::Signal;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use crate::AGENT;
use crate::rotation::{assert_nothing_lost, read_again, status_with, traffic, unhealthy};

const SOON: Duration = Duration::from_secs(20);
/// A roll-back waits for two reloads, and for each at most ten seconds. The second reload restores the previous
/// configuration.
const RENEW_WITHIN: Duration = Duration::from_mins(1);

async fn cluster(count: u8) -> Nodes {
    Nodes::start(AGENT, tools::NATS_SERVER, count).await.unwrap()
}

/// Sets a key, and makes the daemon read its configuration again.
fn change(node: &Node, key: &str, value: &str) {
    set(node.agent.config(), key, value).unwrap();
    node.agent.signal(Signal::SIGHUP).unwrap();
}

/// Writes the built-in template with one change, and makes the daemon use it.
fn change_template(node: &Node, cluster: &Nodes, from: &str, to: &str) {
    let text = BUILT_IN.replacen(from, to, 1);
    assert_ne!(text, BUILT_IN, "{from:?} is not in the template");
    let file = cluster.directory().join(format!("{}.tera", node.name));
    std::fs::write(&file, text).unwrap();
    change(node, "nats.template", &format!("{:?}", file.display().to_string()));
}

pub(crate) async fn renew(node: &Node, switches: &[&str]) -> Answer {
    node.agent.run(&[&["renew"], switches].concat(), RENEW_WITHIN).await.unwrap()
}

/// The committed text, the digest of the loaded configuration, and the served leaf.
pub(crate) async fn in_force(node: &Node) -> (String, String, String) {
    let status = node.agent.status().await.unwrap();
    let committed = std::fs::read_to_string(node.nats_config()).unwrap();
    (committed, at(&status, "nats.config_digest").to_owned(), at(&status, "served.client.sha256").to_owned())
}

/// Checks that the earlier settings are still in force, and that the newest certificate is served with them. The faulty
/// edit must not delay the certificate.
pub(crate) async fn assert_settings_stay(node: &Node, before: &(String, String, String)) {
    let settings = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.contains("/generations/")).map(ToOwned::to_owned).collect()
    };
    let status = node.agent.status().await.unwrap();
    assert_eq!(settings(&in_force(node).await.0), settings(&before.0));
    assert_eq!(at(&status, "served.client.sha256"), at(&status, "leaf.sha256"), "{status}");
    assert_ne!(at(&status, "served.client.sha256"), before.2, "{status}");
}

/// The part of the built-in template from `start` through the next `end`.
fn block(start: &str, end: &str) -> String {
    let from = BUILT_IN.find(start).unwrap();
    let length = BUILT_IN[from..].find(end).unwrap() + end.len();
    BUILT_IN[from..from + length].to_owned()
}

// === Invariant 12 ===

#[tokio::test]
async fn invariant_12_a_template_without_tls_is_refused_and_what_was_serving_serves() {
    let cluster = cluster(2).await;
    let node = &cluster.nodes[0];
    let before = in_force(node).await;
    let traffic = traffic(&cluster, 500).await;
    change_template(node, &cluster, &block("\ntls {", "\n}\n"), "\n");
    let status = unhealthy(node, "--allow-loss tls").await;
    assert_eq!(status["state"], "degraded", "{status}");
    let refused = renew(node, &[]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let said = refused.stderr;
    assert!(
        said.contains("clients could connect without TLS") && said.contains("agent renew --allow-loss tls"),
        "{said}"
    );
    assert_settings_stay(node, &before).await;
    assert_nothing_lost(traffic).await;

    std::fs::remove_file(cluster.directory().join("n1.tera")).unwrap();
    cluster.configure().unwrap();
    node.agent.signal(Signal::SIGHUP).unwrap();
    node.healthy(SOON).await.unwrap();
}

#[tokio::test]
async fn invariant_12_jetstream_is_dropped_only_with_its_switch() {
    let cluster = cluster(2).await;
    let node = &cluster.nodes[0];
    let before = in_force(node).await;
    change(node, "nats.jetstream", "false");
    unhealthy(node, "--allow-loss jetstream").await;
    let refused = renew(node, &["--allow-loss", "tls"]).await;
    assert_eq!(refused.code, Some(1), "another switch is not enough: {refused:?}");
    assert!(refused.stderr.contains("JetStream would be switched off"), "{refused:?}");
    assert_settings_stay(node, &before).await;
    assert!(!tail(&node.server_log(), 100).contains(SHUTDOWN));

    let done = renew(node, &["--allow-loss", "jetstream"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(tail(&node.server_log(), 100).contains(SHUTDOWN));
    node.healthy(SOON).await.unwrap();
}

/// The tests read the server's log, because /varz keeps showing the earlier settings.
const SHUTDOWN: &str = "JetStream Shutdown";

#[tokio::test]
async fn invariant_12_a_cluster_is_renamed_only_with_its_switch() {
    let cluster = cluster(2).await;
    let node = &cluster.nodes[0];
    let before = in_force(node).await;
    change(node, "nats.cluster_name", "\"elsewhere\"");
    unhealthy(node, "--allow-loss cluster-name").await;
    let refused = renew(node, &[]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("would be renamed to \"elsewhere\""), "{refused:?}");
    assert_settings_stay(node, &before).await;
    node.meshed(&BTreeSet::from(["n2".to_owned()]), SOON).await.unwrap();

    let done = renew(node, &["--allow-loss", "cluster-name"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    // nats-server keeps showing the old name on /varz.
    assert!(tail(&node.server_log(), 100).contains("Cluster name updated to elsewhere"));
}

#[tokio::test]
async fn invariant_12_what_an_edited_include_takes_away_is_refused_and_a_restart_of_nats_server_serves_what_was_in_force()
 {
    let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    cluster.configure().unwrap();
    let include = cluster.directory().join("auth.conf");
    std::fs::write(&include, "accounts { A { users: [{ user: a, password: hunter2 }] } }\nno_auth_user: a\n").unwrap();
    cluster.set("nats.include", &format!("[{:?}]", include.display().to_string())).unwrap();
    cluster.boot().await.unwrap();
    let before = in_force(&cluster.nodes[0]).await;

    std::fs::write(&include, "max_payload: 2MB\n").unwrap();
    let status = unhealthy(&cluster.nodes[0], "--allow-loss authorization").await;
    assert_eq!(status["state"], "degraded", "{status}");
    assert_eq!(in_force(&cluster.nodes[0]).await, before);
    // The faulty edit doesn't delay the certificate, and a restart doesn't apply the loss.
    assert_eq!(renew(&cluster.nodes[0], &[]).await.code, Some(1));
    assert_settings_stay(&cluster.nodes[0], &before).await;
    cluster.nodes[0].server.take().unwrap().stop().await.unwrap();
    let Nodes { nodes, cluster: shared, .. } = &mut cluster;
    shared.start_server(&mut nodes[0]).await.unwrap();
    let node = &cluster.nodes[0];
    unhealthy(node, "--allow-loss authorization").await;
    assert_eq!(node.server.as_ref().unwrap().varz().await.unwrap()["max_payload"], 1 << 20);

    // The output of `agent render` names included files, and shows no secret.
    std::fs::write(&include, "accounts { A { users: [{ user: a, password: hunter2 }] } }\nno_auth_user: a\n# new\n")
        .unwrap();
    node.healthy(SOON).await.unwrap();
    let shown = node.agent.run(&["render"], SOON).await.unwrap();
    assert!(shown.stdout.contains("auth.conf") && !shown.stdout.contains("hunter2"), "{shown:?}");
    let done = renew(node, &[]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
}

#[tokio::test]
async fn a_server_whose_route_port_has_moved_is_healthy_once_it_was_restarted_and_keeps_getting_certificates() {
    let mut cluster = cluster(1).await;
    let moved = format!("{}:{}", cluster.nodes[0].address, cluster.nodes[0].metrics().port() + 1);
    change(&cluster.nodes[0], "nats.cluster_listen", &format!("\"{moved}\""));
    waiting(&cluster.nodes[0], "cluster.listen, cluster.routes").await;
    cluster.nodes[0].server.take().unwrap().stop().await.unwrap();
    let Nodes { nodes, cluster: shared, .. } = &mut cluster;
    shared.start_server(&mut nodes[0]).await.unwrap();
    let node = &cluster.nodes[0];
    status_with(node, |status| {
        status["state"] == "healthy" && !status["warnings"].to_string().contains("only at a start")
    })
    .await;
    assert_eq!(node.agent.renew().await.unwrap()["result"], "confirmed");
    node.healthy(SOON).await.unwrap();
    assert!(in_force(node).await.0.contains(&moved));
}

// === Invariant 3 ===

#[tokio::test]
async fn invariant_03_an_include_that_nats_server_refuses_is_never_committed_and_the_certificate_stays() {
    let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    cluster.configure().unwrap();
    let include = cluster.directory().join("auth.conf");
    std::fs::write(&include, "max_payload: 2MB\n").unwrap();
    cluster.set("nats.include", &format!("[{:?}]", include.display().to_string())).unwrap();
    cluster.boot().await.unwrap();
    let node = &cluster.nodes[0];
    let before = in_force(node).await;

    std::fs::write(&include, "max_payload: 2MB\nmax_payloadz: 7\n").unwrap();
    let refused = renew(node, &[]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("nats-server -t refuses") && refused.stderr.contains("max_payloadz"));
    let status = unhealthy(node, "max_payloadz").await;
    assert_eq!(status["state"], "degraded", "{status}");
    assert_settings_stay(node, &before).await;
    // A daemon that has read its configuration again doesn't know the earlier file. It still reports the true fault.
    let before = in_force(node).await;
    read_again(node).await;
    let status = unhealthy(node, "max_payloadz").await;
    assert!(!status["reasons"].to_string().contains("isn't running"), "{status}");
    assert_eq!(in_force(node).await, before);

    // The daemon finds the correction without a signal.
    std::fs::write(&include, "max_payload: 3MB\n").unwrap();
    let status = node.healthy(SOON).await.unwrap();
    assert_eq!(at(&status, "served.client.sha256"), at(&status, "leaf.sha256"));
    let varz = node.server.as_ref().unwrap().varz().await.unwrap();
    assert_eq!(varz["max_payload"], 3 << 20);
}

#[tokio::test]
async fn invariant_03_a_template_that_nats_server_refuses_or_that_does_not_render_is_never_committed() {
    let cluster = cluster(1).await;
    let node = &cluster.nodes[0];
    let before = in_force(node).await;
    for (to, reason) in [
        ("max_payload: 1MB\nmax_payloadz: 7", "max_payloadz"),
        ("max_payload: {{ size }}", "size"),
        ("max_payload: {% if %}", "does not parse"),
    ] {
        change_template(node, &cluster, "max_payload: 1MB", to);
        let status = unhealthy(node, reason).await;
        assert_eq!(status["state"], "degraded", "{status}");
        let refused = renew(node, &[]).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains(reason), "{refused:?}");
        assert_settings_stay(node, &before).await;
    }
    // A correct template of the user's own replaces the built-in template.
    change_template(node, &cluster, "max_connections: 65536", "max_connections: 123456");
    eventually("the template in force", SOON, async || {
        let varz = node.server.as_ref().unwrap().varz().await.map_err(|failure| failure.chain())?;
        if varz["max_connections"] == 123_456 { Ok(()) } else { Err(varz["max_connections"].to_string()) }
    })
    .await
    .unwrap();
    node.healthy(SOON).await.unwrap();
}

// === The trust bundle ===

/// A cluster whose trust source is a file with the embedded CA.
async fn cluster_with_bundle(count: u8) -> (Nodes, PathBuf, String) {
    let cluster = cluster(count).await;
    let bundle = cluster.directory().join("bundle.pem");
    let ca = std::fs::read_to_string(cluster.cluster.ca_directory().join("ca.pem")).unwrap();
    std::fs::write(&bundle, &ca).unwrap();
    for node in &cluster.nodes {
        set(node.agent.config(), "trust.kind", "\"file\"").unwrap();
        // The agent asks the trust source every ten intervals.
        set(node.agent.config(), "discovery.interval", "\"100ms\"").unwrap();
        change(node, "trust.file", &format!("{:?}", bundle.display().to_string()));
        status_with(node, |status| at(status, "trust.source") == bundle.display().to_string()).await;
    }
    (cluster, bundle, ca)
}

fn another_ca() -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "another CA");
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

#[tokio::test]
async fn invariant_12_a_bundle_with_one_corrupt_block_is_refused_naming_the_block() {
    let (cluster, bundle, ca) = cluster_with_bundle(1).await;
    let node = &cluster.nodes[0];
    let before = in_force(node).await;
    let corrupt = another_ca().replacen("MII", "M%I", 1);
    std::fs::write(&bundle, format!("{ca}{corrupt}")).unwrap();
    let status = unhealthy(node, "block 2").await;
    assert_eq!(status["state"], "degraded", "{status}");
    let said = status["reasons"].to_string();
    assert!(said.contains("bundle.pem") && said.contains("the bundle in force stays"), "{said}");
    assert_eq!(in_force(node).await, before);

    // The daemon accepts a bundle of two complete CAs without further action.
    std::fs::write(&bundle, format!("{ca}{}", another_ca())).unwrap();
    let status = node.healthy(SOON).await.unwrap();
    assert_eq!(status["trust"]["anchors"].as_array().map(Vec::len), Some(2), "{status}");
}

#[tokio::test]
async fn invariant_05_an_anchor_that_served_certificates_chain_to_stays_though_the_bundle_drops_it() {
    let (mut cluster, bundle, _ca) = cluster_with_bundle(2).await;
    std::fs::write(&bundle, another_ca()).unwrap();
    for node in &cluster.nodes {
        let status = status_with(node, |status| at(status, "trust.version").ends_with("+kept")).await;
        assert_eq!(status["trust"]["anchors"].as_array().map(Vec::len), Some(2), "{status}");
        let warnings = status["warnings"].to_string();
        assert!(warnings.contains("no longer holds") && warnings.contains("is kept"), "{warnings}");
        node.healthy(SOON).await.unwrap();
        assert_eq!(node.agent.renew().await.unwrap()["result"], "confirmed");
    }
    // A missing anchor would make new handshakes fail.
    let Nodes { nodes, cluster, .. } = &mut cluster;
    nodes[1].server.take().unwrap().stop().await.unwrap();
    cluster.start_server(&mut nodes[1]).await.unwrap();
    nodes[0].meshed(&BTreeSet::from(["n2".to_owned()]), SOON).await.unwrap();
}

// === Settings that can't be reloaded ===

/// Waits until the status is healthy and warns that a setting waits for a restart.
async fn waiting(node: &Node, setting: &str) -> serde_json::Value {
    let warning = format!("takes {setting} only at a start");
    status_with(node, |status| status["state"] == "healthy" && status["warnings"].to_string().contains(&warning)).await
}

#[tokio::test]
async fn a_setting_that_nats_server_refuses_to_reload_waits_for_its_restart_and_holds_back_no_certificate() {
    let mut cluster = cluster(2).await;
    let node = &cluster.nodes[0];
    let traffic = traffic(&cluster, 500).await;
    // `nats-server -t` accepts the change, but a reload refuses the change.
    change_template(node, &cluster, "lame_duck_duration: \"60s\"", "lame_duck_duration: \"90s\"");
    waiting(node, "lame_duck_duration").await;
    // The trial foretells the refusal, so nats-server is never asked.
    assert!(!tail(&node.server_log(), 400).contains("Failed to reload"));
    let before = in_force(node).await;
    let renewed = node.agent.renew().await.unwrap();
    assert_eq!(renewed["result"], "confirmed");
    let status = waiting(node, "lame_duck_duration").await;
    assert_eq!(at(&status, "served.client.sha256"), at(&status, "leaf.sha256"));
    assert_ne!(at(&status, "served.client.sha256"), before.2);
    assert!(in_force(node).await.0.contains("lame_duck_duration: \"90s\""), "the next start must find the new setting");
    assert_nothing_lost(traffic).await;

    cluster.nodes[0].server.take().unwrap().stop().await.unwrap();
    let Nodes { nodes, cluster, .. } = &mut cluster;
    cluster.start_server(&mut nodes[0]).await.unwrap();
    status_with(&nodes[0], |status| {
        status["state"] == "healthy" && !status["warnings"].to_string().contains("only at a start")
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_to_listen_elsewhere_is_looked_after_where_it_listens_until_its_restart() {
    let cluster = cluster(1).await;
    let node = &cluster.nodes[0];
    let moved = format!("{}:{}", node.address, node.metrics().port() + 1);
    change(node, "nats.listen", &format!("\"{moved}\""));
    waiting(node, "listen").await;
    let before = in_force(node).await;
    assert_eq!(node.agent.renew().await.unwrap()["result"], "confirmed");
    let after = in_force(node).await;
    assert_ne!(after.2, before.2);
    assert!(after.0.contains(&moved));

    // After the edit is undone, nothing waits for a restart.
    cluster.configure().unwrap();
    node.agent.signal(Signal::SIGHUP).unwrap();
    status_with(node, |status| {
        status["state"] == "healthy" && !status["warnings"].to_string().contains("only at a start")
    })
    .await;
    assert!(!in_force(node).await.0.contains(&moved));
}

// === Invariants 9 and 10 ===

#[tokio::test]
async fn invariant_10_a_pid_file_that_names_another_program_gets_nothing_signalled() {
    let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    cluster.configure().unwrap();
    let node = &mut cluster.nodes[0];
    let mut sleep = tokio::process::Command::new("sleep").arg("600").kill_on_drop(true).spawn().unwrap();
    let pid_file = node.nats_config().with_file_name("nats-server.pid");
    std::fs::write(&pid_file, sleep.id().unwrap().to_string()).unwrap();
    node.agent.start().unwrap();
    node.committed().await.unwrap();
    let status = unhealthy(node, "it is not signalled").await;
    let said = status["reasons"].to_string();
    assert!(said.contains("sleep") && said.contains("nats-server.pid") && said.contains("nats.pid_file"), "{said}");
    assert_eq!(status["state"], "failing", "nothing serves: {status}");
    let refused = renew(node, &[]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("it is not signalled"), "{refused:?}");
    assert!(sleep.try_wait().unwrap().is_none(), "a SIGHUP ended the program");

    // nats-server writes its own pid at its start, and the node becomes healthy.
    std::fs::remove_file(&pid_file).unwrap();
    cluster.cluster.start_server(&mut cluster.nodes[0]).await.unwrap();
    cluster.nodes[0].healthy(SOON).await.unwrap();
}

#[tokio::test]
async fn invariant_09_a_second_daemon_on_one_state_directory_is_refused_and_the_first_goes_on() {
    let cluster = cluster(1).await;
    let node = &cluster.nodes[0];
    let second = node.agent.run(&["run"], SOON).await.unwrap();
    assert_eq!(second.code, Some(1), "{second:?}");
    let said = second.stderr;
    assert!(said.contains("another agent is at work on") && said.contains("agent renew"), "{said}");
    assert_eq!(node.agent.renew().await.unwrap()["result"], "confirmed");
}

// === Invariant 13 ===

/// An uninvited nats-server with a client's certificate of the same CA and with the cluster's name.
async fn rogue(cluster: &Nodes) -> NatsServer {
    let directory = cluster.directory().join("rogue");
    std::fs::create_dir(&directory).unwrap();
    let ca = cluster.cluster.ca_directory();
    let ca_key = KeyPair::from_pem(&std::fs::read_to_string(ca.join("ca.key")).unwrap()).unwrap();
    let ca_pem = std::fs::read_to_string(ca.join("ca.pem")).unwrap();
    let mut client = CertificateParams::default();
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let leaf = client.signed_by(&key, &Issuer::from_ca_cert_pem(&ca_pem, ca_key).unwrap()).unwrap();
    let write = |name: &str, text: &str| {
        let file = directory.join(name);
        std::fs::write(&file, text).unwrap();
        file
    };
    let (cert_file, key_file) = (write("cert.pem", &leaf.pem()), write("key.pem", &key.serialize_pem()));
    let [cert_file, key_file, ca_file, pid] =
        [cert_file, key_file, ca.join("ca.pem"), directory.join("pid")].map(|path| path.display().to_string());
    let place = cluster.cluster.node(9).unwrap();
    let victim = cluster.nodes[0].route();
    let config = write(
        "nats-server.conf",
        &format!(
            "server_name: rogue\nlisten: \"{}\"\nhttp: \"{}\"\npid_file: {pid:?}\ncluster {{\n name: loopback\n \
             listen: \"{}\"\n tls {{ cert_file: {cert_file:?}, key_file: {key_file:?}, ca_file: {ca_file:?}, verify: true }}\n \
             routes: [\"nats-route://{victim}\"]\n}}\n",
            place.client(),
            place.monitor(),
            place.route(),
        ),
    );
    let launch = Launch {
        binary: tools::nats_server(tools::NATS_SERVER).unwrap(),
        config,
        pid_file: pid.into(),
        client: place.client(),
        monitor: place.monitor(),
        log: directory.join("log"),
        arguments: Vec::new(),
    };
    NatsServer::start(launch).await.unwrap()
}

/// The number of messages, out of `count` from one node to the other, that a subscriber on the rogue receives too. `is_in`: the
/// subscriber is expected to receive messages, and is waited for.
async fn overheard(cluster: &Nodes, rogue: &NatsServer, count: usize, is_in: bool) -> usize {
    let spy = async_nats::connect(rogue.launch().client.to_string()).await.unwrap();
    let mut heard = spy.subscribe("orders").await.unwrap();
    spy.flush().await.unwrap();
    let connect = async |node: &Node| {
        let tls = node.endpoint(false).unwrap().tls.unwrap();
        let options = async_nats::ConnectOptions::new().require_tls(true).add_root_certificates(tls.ca);
        options.connect(format!("tls://{}", node.client())).await.unwrap()
    };
    let (publisher, subscriber) = (connect(&cluster.nodes[0]).await, connect(&cluster.nodes[1]).await);
    let mut received = subscriber.subscribe("orders").await.unwrap();
    // The subscriber's interest needs time to spread through the cluster.
    let mut sent = 0;
    while tokio::time::timeout(Duration::from_millis(50), received.next()).await.is_err() {
        publisher.publish("orders", "probe".into()).await.unwrap();
        sent += 1;
        assert!(sent < 200, "the node's own subscriber receives nothing");
    }
    if is_in {
        // The interest of the spy spreads too.
        while tokio::time::timeout(Duration::from_millis(50), heard.next()).await.is_err() {
            publisher.publish("orders", "probe".into()).await.unwrap();
            sent += 1;
            assert!(sent < 200, "the spy receives nothing");
        }
    }
    for number in 0..count {
        publisher.publish("orders", number.to_string().into()).await.unwrap();
    }
    publisher.flush().await.unwrap();
    let last = (count - 1).to_string();
    while received.next().await.unwrap().payload != last.as_bytes() {}
    // The spy and the node's own subscriber are both one hop away, so a message reaches both at about the same time.
    let silence = if is_in { SOON } else { Duration::from_millis(500) };
    let mut overheard = 0;
    while let Ok(Some(message)) = tokio::time::timeout(silence, heard.next()).await {
        overheard += 1;
        if message.payload == last.as_bytes() {
            break;
        }
    }
    overheard
}

/// A cluster whose routes must present the credential in moto's secret.
async fn with_credential(moto: &Moto, count: u8) -> Nodes {
    put_credential(moto, "s3cr3t-of-routes").await;
    let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, count).unwrap();
    cluster.configure().unwrap();
    cluster.set("node.region", &format!("{REGION:?}")).unwrap();
    cluster.set("nats.cluster_secret_id", "\"nats/route\"").unwrap();
    for node in &mut cluster.nodes {
        for (name, value) in aws(moto) {
            node.agent.set_env(name, value);
        }
    }
    cluster.boot().await.unwrap();
    cluster
}

async fn put_credential(moto: &Moto, password: &str) {
    let secret = format!(r#"{{"username": "route", "password": {password:?}}}"#);
    moto.put_secret("nats/route", &secret).await.unwrap();
}

/// Routes are down while nodes change their credential one after the other (docs/operations.md, The cluster
/// credential). All nodes therefore change at the same time, which each node computes from the secret. A node that
/// boots before that time starts with the other nodes' credential.
#[tokio::test]
async fn a_new_credential_takes_over_on_every_node_at_one_time_and_the_cluster_is_whole_before_and_after() {
    let moto = Moto::start().await.unwrap();
    let mut cluster = with_credential(&moto, 3).await;
    let all: BTreeSet<_> = ["n1", "n2", "n3"].map(str::to_owned).into();
    let others = |node: &Node| all.iter().filter(|name| **name != node.name).cloned().collect();
    let has_new = |node: &Node| std::fs::read_to_string(node.nats_config()).unwrap().contains("an0ther-s3cr3t");
    // The credential takes over thirty intervals of half a second after its date. moto gives dates in whole seconds.
    let takes_over = tokio::time::Instant::now() + Duration::from_secs(14);
    put_credential(&moto, "an0ther-s3cr3t").await;
    for node in &cluster.nodes {
        status_with(node, |status| status["warnings"].to_string().contains("a new cluster credential takes over at"))
            .await;
    }
    // A node without stored answers, as on a first boot, starts with the other nodes' credential.
    cluster.nodes[2].agent.stop().await.unwrap();
    std::fs::remove_file(cluster.nodes[2].state_directory().join("last-good.json")).unwrap();
    cluster.nodes[2].agent.start().unwrap();
    for node in &cluster.nodes {
        node.healthy(SOON).await.unwrap();
        node.meshed(&others(node), SOON).await.unwrap();
    }
    let has_taken_over = cluster.nodes.iter().any(has_new);
    let is_too_late = tokio::time::Instant::now() >= takes_over;
    assert!(is_too_late || !has_taken_over, "a node uses the new credential too early");
    let mut taken = BTreeMap::new();
    eventually("the new credential on every node", Duration::from_mins(1), async || {
        for node in cluster.nodes.iter().filter(|node| has_new(node)) {
            taken.entry(node.name.clone()).or_insert_with(tokio::time::Instant::now);
        }
        if taken.len() == 3 { Ok(()) } else { Err(format!("{taken:?}")) }
    })
    .await
    .unwrap();
    assert!(taken.values().all(|at| *at >= takes_over), "{taken:?} before {takes_over:?}");
    for node in &cluster.nodes {
        node.meshed(&others(node), SOON).await.unwrap();
        node.healthy(SOON).await.unwrap();
        status_with(node, |status| !status["warnings"].to_string().contains("credential")).await;
    }
    println!("the cluster was complete {:?} after the first change", taken.values().min().unwrap().elapsed());
}

#[tokio::test]
async fn invariant_13_a_server_with_a_clients_certificate_and_no_credential_is_no_route_and_hears_nothing() {
    let moto = Moto::start().await.unwrap();
    let cluster = with_credential(&moto, 2).await;
    let status = cluster.nodes[0].healthy(SOON).await.unwrap();
    assert!(!status["warnings"].to_string().contains("credential"), "{status}");

    let rogue = rogue(&cluster).await;
    eventually("the rogue's refusal", SOON, async || {
        let log = tail(&cluster.nodes[0].server_log(), 20);
        if log.to_lowercase().contains("authentication error") { Ok(()) } else { Err(log) }
    })
    .await
    .unwrap();
    assert_eq!(overheard(&cluster, &rogue, 100, false).await, 0);
    assert!(rogue.routes().await.unwrap().is_empty());
    for (node, other) in [(0, "n2"), (1, "n1")] {
        cluster.nodes[node].meshed(&BTreeSet::from([other.to_owned()]), SOON).await.unwrap();
        cluster.nodes[node].healthy(SOON).await.unwrap();
    }
}

/// This test shows why the credential and the warning exist. It also shows that the previous test can fail.
#[tokio::test]
async fn without_a_credential_the_same_server_hears_every_word_and_the_status_warns_of_it() {
    let cluster = cluster(2).await;
    let status = cluster.nodes[0].healthy(SOON).await.unwrap();
    assert!(status["warnings"].to_string().contains("nats.cluster_secret_id"), "{status}");
    let rogue = rogue(&cluster).await;
    cluster.nodes[0].meshed(&BTreeSet::from(["n2".to_owned(), "rogue".to_owned()]), SOON).await.unwrap();
    assert!(overheard(&cluster, &rogue, 100, true).await >= 100);
}

/// The environment variables that make an agent call moto instead of AWS.
pub(crate) fn aws(moto: &Moto) -> [(&'static str, &str); 3] {
    [("AWS_ENDPOINT_URL", moto.endpoint()), ("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")]
}
