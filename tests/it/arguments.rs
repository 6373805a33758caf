//! The arguments of nats-server beside `-c`: which of them refuse reloads, and what the agent makes of them.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use harness::loopback::Block;
use harness::nats_server::{Launch, NatsServer};
use harness::nodes::Nodes;
use harness::process::tail;
use harness::{eventually, tools};
use nats_tls_agent::conf::environment::Environment;
use nats_tls_agent::conf::reader;
use nats_tls_agent::conf::tree::Source;
use nats_tls_agent::server::arguments::{ArgumentFault, Arguments};
use nix::sys::signal::Signal;

use crate::AGENT;
use crate::doctor::{assert_check, diagnose};
use crate::rotation::status_with;

const SOON: Duration = Duration::from_secs(30);

/// Arguments, and whether a reload is refused for them. `{dir}` is a directory of the server. Each argument differs from the
/// configuration, or the configuration doesn't have it. `-js` isn't here: on 2.10 a reload waits for a meta leader then.
const TABLE: &[(&str, bool)] = &[
    ("", false),
    ("--name over", true),
    ("-n over", true),
    ("-server_name=over", true),
    ("--name n1", false),
    ("--name over --name n1", false),
    ("--log_size_limit 1000000", true),
    ("--tls --tlscert {cert} --tlskey {key}", true),
    ("--tlsverify --tlscert {cert} --tlskey {key} --tlscacert {cert}", true),
    ("--tls=false --tlscert {cert} --tlskey {key}", true),
    ("--tls=false", false),
    ("-p {free}", false),
    ("-a 127.0.0.1", false),
    ("-m {free}", false),
    ("-P {dir}/other.pid", false),
    ("-l {dir}/log", false),
    ("--client_advertise 127.0.0.1:1", false),
    ("--cluster nats://127.0.0.1:{free}", false),
    ("--cluster_name other", false),
    ("--cluster_advertise 127.0.0.1:1", false),
    ("--routes nats://127.0.0.1:{free}", false),
    ("--no_advertise", false),
    ("--connect_retries 3", false),
    ("--user u --pass p", false),
    ("--auth t", false),
    ("-D", false),
    ("-V", false),
    ("-VV", false),
    ("-DV", false),
    ("-DVV", false),
    ("-T=false", false),
    ("--logtime_utc", false),
    ("-r udp://127.0.0.1:9", false),
    ("--max_traced_msg_len 10", false),
    ("--ports_file_dir {dir}", false),
    ("--profile {free}", false),
];

/// Starts a nats-server with these arguments, changes a setting, sends SIGHUP, and returns whether the reload was refused by
/// nats-server, and whether the agent says so.
async fn refuses(version: &str, directory: &Path, arguments: &str) -> (bool, bool) {
    let block = Block::reserve().unwrap();
    std::fs::create_dir_all(directory).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(directory.join("cert.pem"), cert.pem()).unwrap();
    std::fs::write(directory.join("key.pem"), key.serialize_pem()).unwrap();
    let place = |name: &str| directory.join(name).display().to_string();
    let arguments = arguments
        .replace("{dir}", &directory.display().to_string())
        .replace("{free}", &block.port(5).to_string())
        .replace("{cert}", &place("cert.pem"))
        .replace("{key}", &place("key.pem"));
    let text = |max_payload: u32| {
        format!(
            "server_name: n1\nlisten: \"127.0.0.1:{}\"\nhttp: \"127.0.0.1:{}\"\npid_file: {:?}\nmax_payload: {max_payload}\n\
             cluster {{ name: c1, listen: \"127.0.0.1:{}\", routes: [\"nats-route://127.0.0.1:{}\"] }}\n\
             jetstream: disabled\ntls {{ cert_file: {:?}, key_file: {:?} }}\n",
            block.port(0),
            block.port(1),
            place("pid"),
            block.port(2),
            block.port(2),
            place("cert.pem"),
            place("key.pem"),
        )
    };
    let (config, log) = (directory.join("nats.conf"), directory.join("nats.log"));
    std::fs::write(&config, text(1_000_000)).unwrap();
    let words: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
    let moved = |flag: &str| words.iter().any(|word| word == flag);
    let address = |index| SocketAddr::from(([127, 0, 0, 1], block.port(index)));
    let launch = Launch {
        binary: tools::nats_server(version).unwrap(),
        config: config.clone(),
        pid_file: directory.join(if moved("-P") { "other.pid" } else { "pid" }),
        client: address(if moved("-p") { 5 } else { 0 }),
        monitor: address(1),
        log: log.clone(),
        arguments: words.clone(),
    };
    let server = NatsServer::start(launch).await.unwrap();
    std::fs::write(&config, text(2_000_000)).unwrap();
    server.reload().unwrap();
    let refused = eventually(&format!("a reload of {version} with {arguments:?}"), SOON, async || {
        let said = tail(&log, 200) + &std::fs::read_to_string(directory.join("log")).unwrap_or_default();
        match (said.contains("config reload not supported for"), said.contains("Reloaded server configuration")) {
            (true, _) => Ok(true),
            (_, true) => Ok(false),
            _ => Err(said),
        }
    })
    .await
    .unwrap();
    server.kill().await.unwrap();

    let source = |file: &Path| Source::File(file.to_owned());
    let environment = Environment::of(&std::collections::BTreeMap::new());
    let read = reader::read(&text(1), Arc::new(source(&config)), directory, &environment, &source).unwrap();
    let line: Vec<OsString> = ["nats-server", "-c", "nats.conf"].into_iter().map(Into::into).collect();
    let line = [line, words.into_iter().map(Into::into).collect()].concat();
    let faults = Arguments::of(&line).faults(|| read.map);
    (refused, faults.iter().any(|fault| matches!(fault, ArgumentFault::RefuseReloads(_))))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_server_refuses_reloads_for_the_arguments_of_which_the_agent_says_so_on_every_version() {
    let directory = tempfile::tempdir().unwrap();
    for version in tools::NATS_SERVER_VERSIONS {
        for (number, some) in TABLE.chunks(8).enumerate() {
            let tried = some.iter().enumerate().map(|(index, (arguments, expected))| {
                let place = directory.path().join(format!("{version}-{number}-{index}"));
                async move {
                    let found = refuses(version, &place, arguments).await;
                    assert_eq!(found, (*expected, *expected), "{version} with {arguments:?}");
                }
            });
            join_all(tried).await;
        }
    }
}

#[tokio::test]
async fn status_and_doctor_name_an_argument_that_refuses_reloads_and_find_what_arguments_set() {
    let mut nodes = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    nodes.configure().unwrap();
    // nats-server takes no account beside `--user`.
    nodes.set("nats.system", "\"off\"").unwrap();
    nodes.nodes[0].agent.start().unwrap();
    nodes.nodes[0].committed().await.unwrap();
    nodes.nodes[0].server_arguments = ["--name", "over", "-DV"].map(str::to_owned).to_vec();
    nodes.cluster.start_server(&mut nodes.nodes[0]).await.unwrap();
    let has = |status: &serde_json::Value, kind: &str, code: &str| {
        status[kind].as_array().is_some_and(|told| told.iter().any(|told| told["code"] == code))
    };
    let status = status_with(&nodes.nodes[0], |status| has(status, "reasons", "arguments_refuse_reloads")).await;
    assert_eq!(status["state"], "degraded", "{status}");
    let reasons = status["reasons"].to_string();
    assert!(reasons.contains("started with --name, and refuses every reload") && !reasons.contains("-DV"), "{status}");
    let (code, checks) = diagnose(&nodes.nodes[0]).await;
    assert_eq!(code, Some(1), "{checks:?}");
    assert_check(&checks, "arguments", "failed", &["--name", "ExecStart"]);

    // Another nats-server of the same configuration has its ports and its pid file from arguments. A secret among them is
    // shown nowhere.
    let launch = nodes.nodes[0].server.as_ref().unwrap().launch().clone();
    nodes.nodes[0].server.take().unwrap().stop().await.unwrap();
    let pid_file = nodes.directory().join("own.pid");
    let (client, monitor) = (moved(launch.client, 8), moved(launch.monitor, 9));
    let secret = "hunter2hunter2";
    let arguments = [
        format!("--pid={}", pid_file.display()),
        format!("-p={}", client.port()),
        "--http_port".into(),
        monitor.port().to_string(),
        "--user".into(),
        "u".into(),
        "--pass".into(),
        secret.into(),
    ];
    let launch = Launch { pid_file, client, monitor, arguments: arguments.to_vec(), ..launch };
    let server = NatsServer::start(launch).await.unwrap();
    let status = status_with(&nodes.nodes[0], |status| {
        status["state"] == "healthy" && has(status, "warnings", "arguments_replace_settings")
    })
    .await;
    assert_eq!(status["nats"]["pid"].as_u64(), server.pid().map(u64::from), "{status}");
    assert_eq!(status["nats"]["version"], tools::NATS_SERVER, "{status}");
    let warnings = status["warnings"].to_string();
    assert!(warnings.contains("--http_port, --pass, --pid, --user, -p"), "{warnings}");
    assert_eq!(nodes.nodes[0].agent.renew().await.unwrap()["result"], "confirmed");
    let (_, checks) = diagnose(&nodes.nodes[0]).await;
    assert_check(&checks, "arguments", "warning", &["--http_port"]);

    nodes.set("nats.system", "\"auto\"").unwrap();
    nodes.nodes[0].agent.signal(Signal::SIGHUP).unwrap();
    let status = status_with(&nodes.nodes[0], |status| has(status, "warnings", "system_user_nowhere")).await;
    assert!(status["warnings"].to_string().contains("--user, --pass or --auth"), "{status}");
    let committed = std::fs::read_to_string(nodes.nodes[0].nats_config()).unwrap();
    assert!(!committed.contains("nkey"), "nats-server would not start: {committed}");
    let told = format!("{status}{checks:?}{}", nodes.nodes[0].agent.log_tail(usize::MAX));
    assert!(!told.contains(secret), "{told}");
    server.kill().await.unwrap();
}

/// nats-server doesn't start with `--user` beside the account of the agent's user.
#[tokio::test]
async fn a_user_among_the_arguments_of_a_later_start_ends_the_crash_loop_within_a_minute() {
    let mut nodes = Nodes::start(AGENT, tools::NATS_SERVER, 1).await.unwrap();
    let node = &mut nodes.nodes[0];
    eventually("the agent's user", SOON, async || {
        let committed = std::fs::read_to_string(node.nats_config()).unwrap();
        let status = node.agent.status().await.map_err(|failure| failure.chain())?;
        if committed.contains("nkey") && status["state"] == "healthy" { Ok(()) } else { Err(committed) }
    })
    .await
    .unwrap();
    let launch = node.server.as_ref().unwrap().launch().clone();
    node.server.take().unwrap().stop().await.unwrap();
    let arguments = ["--user", "u", "--pass", "hunter2hunter2"].map(str::to_owned).to_vec();
    let launch = Launch { arguments, ..launch };
    // The service manager starts nats-server again and again.
    let started = eventually("a start with --user", Duration::from_mins(1), async || {
        NatsServer::start(launch.clone()).await.map_err(|failure| failure.chain())
    });
    let server = started.await.unwrap();
    let status = status_with(node, |status| status["warnings"].to_string().contains("system_user_nowhere")).await;
    assert!(status["warnings"].to_string().contains("--user, --pass or --auth"), "{status}");
    assert_eq!(node.agent.renew().await.unwrap()["result"], "confirmed");
    assert!(!std::fs::read_to_string(node.nats_config()).unwrap().contains("nkey"));
    server.kill().await.unwrap();
}

/// The same address with a port that no node of the block has.
fn moved(address: SocketAddr, by: u16) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port() + by)
}
