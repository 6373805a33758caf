//! The alarms use existing metrics, are raised in time but not early, and each is raised by its fault itself.

mod recording;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use harness::nodes::{Nodes, set};
use harness::tools;
use nats_tls_agent::clock::Clock;
use nats_tls_agent::conf::render::BUILT_IN;
use nix::sys::signal::Signal;

use self::recording::{Recording, scraped};
use crate::operator::hold_nats_server;
use crate::{AGENT, jetstream};

const RULES: &str = include_str!("../../templates/prometheus/alerts.yaml");
const PLAYED: &str = include_str!("alerts.yaml");

/// The metrics that a text names.
fn metrics(text: &str) -> BTreeSet<&str> {
    let is_name = |character: char| character.is_ascii_lowercase() || character == '_';
    let words = text.split(|character| !is_name(character));
    words.filter(|word| word.starts_with("nats_tls_agent_") || word.starts_with("nats_tls_client_")).collect()
}

#[test]
fn an_alarm_is_of_a_metric_that_the_documents_list() {
    let mut listed = metrics(include_str!("../../docs/operations.md"));
    listed.extend(metrics(include_str!("../../docs/clients.md")));
    let used = metrics(RULES);
    assert!(used.len() >= 4 && used.is_subset(&listed), "{used:?} of {listed:?}");
}

/// Promtool, or a word about a test that ends without it. `cargo xtask setup` reports a missing promtool.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn promtool() -> Option<PathBuf> {
    let promtool = tools::promtool();
    if promtool.is_none() {
        eprintln!("SKIPPED: promtool isn't installed");
    }
    promtool
}

#[test]
fn prometheus_raises_each_alarm_in_time_and_none_for_what_passes() {
    let Some(promtool) = promtool() else { return };
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| {
        let file = directory.path().join(file);
        fs::create_dir_all(file.parent().unwrap_or(Path::new("/"))).unwrap();
        fs::write(file, text).unwrap();
    };
    write("tests/it/alerts.yaml", PLAYED);
    let play = |rules: &str| {
        write("templates/prometheus/alerts.yaml", rules);
        let output = std::process::Command::new(&promtool)
            .args(["test", "rules", "tests/it/alerts.yaml"])
            .current_dir(directory.path())
            .output()
            .unwrap();
        (output.status.success(), [output.stdout, output.stderr].concat())
    };
    let (passed, said) = play(RULES);
    assert!(passed, "{}", String::from_utf8_lossy(&said));
    for (from, to) in [
        ("state=\"failing\"", "state=\"failed\""),
        ("for: 2m", "for: 1m"),
        ("for: 2m", "for: 3m"),
        ("42 * 3600", "30 * 3600"),
        ("for: 1h", "for: 40m"),
        ("for: 5m", "for: 3m"),
        ("for: 5m", "for: 6m"),
        ("[20m]", "[9m]"),
        ("for: 30m", "for: 15m"),
        ("15 * 60", "13 * 60"),
        ("15 * 60", "17 * 60"),
        ("for: 10m", "for: 5m"),
        ("90 * 86400", "60 * 86400"),
        ("for: 15m", "for: 5m"),
        ("for: 3m", "for: 2m"),
        ("for: 3m", "for: 4m"),
        ("for: 40m", "for: 38m"),
        ("for: 40m", "for: 41m"),
        ("jetstream_ghost", "ghost"),
        ("degraded|failing", "failing"),
    ] {
        assert!(RULES.contains(from), "{from} is not in the rules");
        assert!(!play(&RULES.replacen(from, to, 1)).0, "the rules pass with {to} in place of {from}");
    }
}

const SOON: Duration = Duration::from_secs(30);

/// A node with short pauses between tries, and without processes.
fn impatient(count: u8, settings: &[(&str, &str)]) -> Nodes {
    let mut nodes = Nodes::new(AGENT, tools::NATS_SERVER, count).unwrap();
    if let Some((_, validity)) = settings.iter().find(|(key, _)| *key == "validity") {
        (*validity).clone_into(&mut nodes.cluster.validity);
    }
    nodes.configure().unwrap();
    for (key, value) in [("renewal.retry_min", "\"300ms\""), ("renewal.retry_max", "\"1s\"")].iter().chain(settings) {
        if *key != "validity" {
            nodes.set(key, value).unwrap();
        }
    }
    nodes
}

const SERVED: [&str; 2] = [
    "nats_tls_agent_served_not_after_timestamp_seconds{instance=\"n1\",listener=\"client\"}",
    "nats_tls_agent_served_not_after_timestamp_seconds{instance=\"n1\",listener=\"route\"}",
];
const FAILING: &str = "nats_tls_agent_state{instance=\"n1\",state=\"failing\"}";

/// Thirty seconds stand for the seven days of a certificate. The CA's key is damaged, so the issuer refuses each renewal.
#[tokio::test]
async fn an_issuer_that_refuses_raises_the_alarm_for_the_served_certificate_and_then_for_the_failing_node() {
    let Some(promtool) = promtool() else { return };
    let mut nodes = impatient(1, &[("validity", "30s")]);
    nodes.boot().await.unwrap();
    let key = nodes.cluster.ca_directory().join("ca.key");
    let node = &nodes.nodes[0];
    let mut recording = Recording::stretched(7.0 * 86_400.0 / 30.0);
    recording.scrape(node).await;
    assert!(SERVED.iter().all(|series| recording.last(series).is_some()));
    recording.expect(&[], &["NatsTlsCertificateEndsSoon", "NatsTlsFailing", "NatsTlsDegraded"]);
    fs::write(&key, "no key").unwrap();
    let left = |recording: &Recording| SERVED.map(|series| recording.hours_to(series).unwrap_or(f64::MAX));
    recording
        .scrape_until(node, Duration::from_secs(50), |recording| left(recording).iter().all(|hours| *hours < 30.0))
        .await;
    recording.expect(&["NatsTlsCertificateEndsSoon", "NatsTlsDegraded"], &["NatsTlsFailing"]);
    recording.scrape_until(node, SOON, |recording| recording.last(FAILING) == Some(1.0)).await;
    let failing = recording.minute();
    let has_ended = |recording: &Recording| left(recording).iter().all(|hours| *hours < -8.0);
    recording.scrape_until(node, SOON, |recording| has_ended(recording) && recording.minute() >= failing + 3).await;
    recording.expect(&["NatsTlsCertificateEndsSoon", "NatsTlsFailing"], &[]);
    let failed = "nats_tls_agent_issuances_total{instance=\"n1\",outcome=\"failed\"}";
    assert!(recording.last(failed).is_some_and(|failed| failed > 1.0));
    recording.play(&promtool, RULES);
}

/// Half a second stands for a minute.
#[tokio::test]
async fn a_node_whose_peer_is_killed_raises_the_alarms_for_a_node_alone_and_for_a_route_that_is_down() {
    let Some(promtool) = promtool() else { return };
    let mut nodes = impatient(2, &[]);
    nodes.boot().await.unwrap();
    let (own, other) = nodes.nodes.split_at_mut(1);
    let (node, alarms) = (&own[0], ["NatsTlsAlone", "NatsTlsRouteDown"]);
    let mut recording = Recording::stretched(120.0);
    recording.scrape(node).await;
    recording.expect(&[], &alarms);
    drop(other[0].server.take());
    let down = "nats_tls_agent_routes{instance=\"n1\",state=\"down\"}";
    recording.scrape_until(node, SOON, |recording| recording.last(down) == Some(1.0)).await;
    let lost = recording.minute();
    recording.expect(&[], &alarms);
    recording.scrape_until(node, SOON, |recording| recording.minute() >= lost + 7).await;
    // A machine that stalls may make no scrape in the minutes between the two alarms.
    if recording.minute() < lost + 10 {
        recording.expect(&["NatsTlsAlone"], &["NatsTlsRouteDown", "NatsTlsCertificateEndsSoon"]);
    }
    recording.scrape_until(node, SOON, |recording| recording.minute() >= lost + 12).await;
    recording.expect(&alarms, &["NatsTlsNoPass"]);
    recording.play(&promtool, RULES);
}

/// Three tenths of a second stand for a minute.
#[tokio::test]
async fn settings_that_nats_server_refuses_raise_the_alarm_for_deployments_that_fail() {
    let Some(promtool) = promtool() else { return };
    let mut nodes = impatient(1, &[("renewal.retry_max", "\"300ms\"")]);
    nodes.boot().await.unwrap();
    let node = &nodes.nodes[0];
    let mut recording = Recording::stretched(200.0);
    recording.scrape(node).await;
    recording.expect(&[], &["NatsTlsDeploymentsFail"]);
    let template = nodes.directory().join("template");
    fs::write(&template, format!("{BUILT_IN}\nno_such_field: 1\n")).unwrap();
    set(node.agent.config(), "nats.template", &format!("\"{}\"", template.display())).unwrap();
    node.agent.signal(Signal::SIGHUP).unwrap();
    let failed = "nats_tls_agent_deployments_failed_total{instance=\"n1\"}";
    recording.scrape_until(node, SOON, |recording| recording.last(failed) > Some(0.0)).await;
    let first = recording.minute();
    recording.scrape_until(node, SOON, |recording| recording.minute() >= first + 45).await;
    recording.expect(&["NatsTlsDeploymentsFail"], &["NatsTlsNoPass", "NatsTlsFailing"]);
    recording.play(&promtool, RULES);
}

/// A tenth of a second stands for a minute. Only the meta leader knows which members are away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_gone_and_then_a_dead_meta_leader_raise_the_alarms_for_jetstream() {
    let Some(promtool) = promtool() else { return };
    let mut nodes = jetstream::three(tools::NATS_SERVER).await;
    let victim = (jetstream::leader(&nodes).await + 1) % 3;
    jetstream::replace(&mut nodes, victim, "n4").await;
    jetstream::tells(&nodes, &jetstream::GHOST).await;
    let leader = jetstream::leader(&nodes).await;
    let mut recording = Recording::stretched(600.0);
    recording.scrape_until(&nodes.nodes[leader], SOON, |recording| recording.minute() >= 15).await;
    // A machine that stalls may make no scrape before the alarm.
    if recording.minute() < 40 {
        recording.expect(&[], &["NatsTlsJetStreamAtRisk", "NatsTlsJetStreamDown"]);
    }
    recording.scrape_until(&nodes.nodes[leader], SOON, |recording| recording.minute() >= 45).await;
    recording.expect(&["NatsTlsJetStreamAtRisk"], &["NatsTlsJetStreamDown"]);
    recording.play(&promtool, RULES);

    jetstream::replace(&mut nodes, leader, "n5").await;
    jetstream::tells(&nodes, &["jetstream_without_leader"]).await;
    let survivor = &nodes.nodes[(0..3).find(|index| ![victim, leader].contains(index)).unwrap()];
    let without_leader = "nats_tls_agent_reasons{instance=\"n1\",code=\"jetstream_without_leader\"}";
    let mut recording = Recording::stretched(600.0);
    recording.scrape_until(survivor, SOON, |recording| recording.last(without_leader) == Some(1.0)).await;
    let lost = recording.minute();
    recording.scrape_until(survivor, SOON, |recording| recording.minute() >= lost + 6).await;
    recording.expect(&["NatsTlsJetStreamDown"], &["NatsTlsFailing"]);
    recording.play(&promtool, RULES);
}

/// A fifth of a second stands for a minute. The pass waits for a `nats-server -t` that doesn't end.
#[tokio::test]
async fn a_pass_that_does_not_end_and_an_agent_that_is_killed_raise_their_alarms() {
    let Some(promtool) = promtool() else { return };
    let mut nodes = impatient(1, &[]);
    let held = hold_nats_server(&nodes);
    nodes.nodes[0].agent.start().unwrap();
    nodes.nodes[0].committed().await.unwrap();
    let mut recording = Recording::stretched(300.0);
    let last = "nats_tls_agent_last_pass_timestamp_seconds{instance=\"n1\"}";
    recording.scrape_until(&nodes.nodes[0], SOON, |recording| recording.last(last).is_some()).await;
    recording.expect(&[], &["NatsTlsNoPass", "NatsTlsAgentDown"]);
    fs::write(&held, "").unwrap();
    nodes.nodes[0].agent.signal(Signal::SIGHUP).unwrap();
    let age = |recording: &Recording| recording.hours_to(last).map(|hours| -60.0 * hours);
    recording.scrape_until(&nodes.nodes[0], Duration::from_secs(15), |recording| age(recording) > Some(17.0)).await;
    recording.expect(&["NatsTlsNoPass"], &["NatsTlsAgentDown"]);
    fs::remove_file(&held).unwrap();
    recording.scrape_until(&nodes.nodes[0], SOON, |recording| age(recording).is_some_and(|age| age < 10.0)).await;
    recording.expect(&[], &["NatsTlsNoPass", "NatsTlsAgentDown"]);
    nodes.nodes[0].agent.kill().await.unwrap();
    recording.scrape(&nodes.nodes[0]).await;
    let killed = recording.minute();
    recording.scrape_until(&nodes.nodes[0], SOON, |recording| recording.minute() >= killed + 17).await;
    recording.expect(&["NatsTlsAgentDown"], &["NatsTlsNoPass"]);
    recording.play(&promtool, RULES);
}

#[tokio::test]
async fn an_anchor_that_ends_in_two_months_raises_its_alarm_and_promtool_accepts_both_formats() {
    let Some(promtool) = promtool() else { return };
    let nodes = impatient(1, &[]);
    let node = &nodes.nodes[0];
    let bundle = nodes.directory().join("bundle.pem");
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.not_after = Clock::System.now() + Duration::from_hours(60 * 24);
    fs::write(&bundle, ca.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()).unwrap();
    set(node.agent.config(), "trust.kind", "\"file\"").unwrap();
    set(node.agent.config(), "trust.file", &format!("\"{}\"", bundle.display())).unwrap();
    let mut nodes = nodes;
    nodes.nodes[0].agent.start().unwrap();
    let node = &nodes.nodes[0];
    let mut recording = Recording::stretched(1.0);
    let anchor = "nats_tls_agent_anchor_not_after_timestamp_seconds{instance=\"n1\"}";
    recording.scrape_until(node, SOON, |recording| recording.last(anchor).is_some()).await;
    recording.expect(&["NatsTlsAnchorEndsSoon"], &[]);
    recording.play(&promtool, RULES);

    let text = scraped(node.metrics(), "text/plain").await.unwrap();
    let openmetrics = scraped(node.metrics(), "application/openmetrics-text; version=1.0.0").await.unwrap();
    assert!(openmetrics.ends_with("# EOF\n") && !text.contains("# EOF"), "{openmetrics}");
    let mut check = std::process::Command::new(promtool);
    check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut check = check.spawn().unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let checked = check.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
    assert!(checked.status.success() && said.is_empty(), "{said}\n{text}");
}
