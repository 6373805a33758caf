//! Faulty input of every kind: the message names the fault and the remedy, and the exit code follows the contract.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use harness::agent::Answer;
use harness::moto::{Moto, REGION};
use harness::nodes::{Nodes, set};
use harness::{eventually, tools};

use crate::AGENT;
use crate::protection::aws;

const SOON: Duration = Duration::from_secs(30);
const OTHER_CA: &str =
    "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/11111111-2222-3333-4444-555555555555";

/// A configured node without a process.
fn bench() -> Nodes {
    let cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    cluster.configure().unwrap();
    cluster
}

/// Runs a command and checks its end: this exit code, and a single line that contains these words.
async fn fails(cluster: &Nodes, command: &[&str], code: i32, words: &[&str]) -> Answer {
    let answer = cluster.nodes[0].agent.run(command, SOON).await.unwrap();
    let said = format!("{command:?}: exit {:?}, {}{}", answer.code, answer.stdout, answer.stderr);
    assert_eq!(answer.code, Some(code), "{said}");
    assert!(answer.stderr.starts_with("error: "), "{said}");
    assert_eq!(answer.stderr.trim_end().lines().count(), 1, "{said}");
    for word in words {
        assert!(answer.stderr.contains(word), "no {word:?} in {said}");
    }
    answer
}

fn quoted(path: &std::path::Path) -> String {
    format!("{:?}", path.display().to_string())
}

/// Configuration errors exit with 2, and name file, line, key and what to write.
#[tokio::test]
async fn a_wrong_configuration_is_named_by_file_line_and_key_with_what_to_write() {
    for (key, value, words) in [
        ("nats.lsiten", "\"0.0.0.0:4222\"", &["nats.lsiten", "unknown field", "`listen`"][..]),
        ("natz.listen", "\"0.0.0.0:4222\"", &["natz", "unknown field", "`nats`"]),
        ("nats.listen", "4222", &["nats.listen", "\"0.0.0.0:4222\""]),
        ("nats.listen", "\"4222\"", &["nats.listen", "\"0.0.0.0:4222\""]),
        ("nats.jetstream", "\"on\"", &["nats.jetstream", "true, false or a table"]),
        ("nats.client_auth", "\"mutual\"", &["nats.client_auth", "`mtls`"]),
        ("discovery.interval", "30", &["discovery.interval", "\"30s\""]),
        ("issuer.validity", "\"7 fortnights\"", &["issuer.validity", "\"7d\""]),
        ("issuer.validity", "\"1s\"", &["issuer.validity", "30s"]),
        ("issuer.key_algorithm", "\"dsa\"", &["issuer.key_algorithm", "ecdsa-p256"]),
        ("issuer.kind", "\"acm-pca\"", &["issuer.ca_arn", "is missing"]),
        ("trust.kind", "\"file\"", &["trust.file", "is missing"]),
        ("trust.kind", "\"secrets-manager\"", &["trust.secret_id", "is missing"]),
        ("nats.cluster_secret_id", "\"arn:aws:s3:::bucket\"", &["nats.cluster_secret_id", "not the ARN of a secret"]),
        ("renewal.at", "67", &["renewal.at", "between 0.1 and 0.95"]),
        ("nats.template", "\"nats.tera\"", &["nats.template", "nats.tera is not an absolute path"]),
        ("nats.include", "[\"auth.conf\"]", &["nats.include", "auth.conf is not an absolute path"]),
        ("state.directory", "\"state\"", &["state.directory", "not an absolute path"]),
        ("node.addresses", "[\"10.0.0.300\"]", &["node.addresses", "\"10.0.1.5\""]),
        ("discovery.peers", "[\"10.0.0.1\"]", &["discovery.peers", "host:port"]),
        ("metrics.listen", "\"127.0.0.1:0\"", &["metrics.listen", "port other than 0"]),
        ("control.socket", "=", &["extra `=`"]),
    ] {
        let cluster = bench();
        let file = cluster.nodes[0].agent.config();
        set(file, key, value).unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        let entry = format!("{} = {value}", key.split_once('.').unwrap().1);
        let line = 1 + text.lines().position(|line| line == entry).unwrap();
        let answer = fails(&cluster, &["status"], 2, words).await;
        // A missing key has no line. The error about an unknown table names the table's line.
        if !words.contains(&"is missing") && !key.starts_with("natz") {
            let place = format!("{}:{line}: ", file.display());
            assert!(answer.stderr.contains(&place), "no {place} in {}", answer.stderr);
        }
    }
    let cluster = bench();
    std::fs::remove_file(cluster.nodes[0].agent.config()).unwrap();
    for command in [&["status"][..], &["renew"], &["run"], &["doctor"], &["render"]] {
        fails(&cluster, command, 2, &["could not read the configuration", "agent.toml", "--config"]).await;
    }
}

#[tokio::test]
async fn an_arn_of_another_service_is_named_as_that() {
    let cluster = bench();
    let file = cluster.nodes[0].agent.config();
    let text = std::fs::read_to_string(file).unwrap();
    let text = text.replace("kind = \"local\"", "ca_arn = \"arn:aws:acm:eu-west-1:123456789012:certificate/1\"");
    let without_directory: Vec<&str> = text.lines().filter(|line| !line.contains("/ca\"")).collect();
    std::fs::write(file, without_directory.join("\n")).unwrap();
    fails(&cluster, &["run"], 2, &["issuer.ca_arn", "service \"acm\"", "AWS Private CA", "arn:aws:acm-pca:"]).await;
}

#[tokio::test]
async fn a_trust_bundle_that_is_missing_or_holds_no_certificate_is_named_with_its_file() {
    let cluster = bench();
    let file = cluster.nodes[0].agent.config();
    let bundle = cluster.directory().join("bundle.pem");
    set(file, "trust.kind", "\"file\"").unwrap();
    set(file, "trust.file", &quoted(&bundle)).unwrap();
    fails(&cluster, &["renew"], 1, &["bundle.pem", "trust.file", "No such file"]).await;
    let answer = fails(&cluster, &["renew", "--json"], 1, &["trust.file"]).await;
    let said: serde_json::Value = answer.json().unwrap();
    assert_eq!(said["result"], "failed");
    assert!(said["error"].as_str().unwrap().contains("bundle.pem"), "{said}");
    std::fs::write(&bundle, "the CA's certificate goes here\n").unwrap();
    fails(&cluster, &["renew"], 1, &["bundle.pem", "holds no certificate", "-----BEGIN CERTIFICATE-----"]).await;
    assert!(!cluster.nodes[0].nats_config().exists());
}

#[tokio::test]
async fn a_template_that_does_not_render_or_that_nats_server_refuses_is_named_with_its_line() {
    let cluster = bench();
    let file = cluster.nodes[0].agent.config();
    let template = cluster.directory().join("own.tera");
    std::fs::write(&template, "listen: \"{{ listen }}\"\nport: {{ prot }}\n").unwrap();
    set(file, "nats.template", &quoted(&template)).unwrap();
    for command in [&["renew"][..], &["render"]] {
        fails(&cluster, command, 1, &["own.tera does not render", "nats.template", "`prot`", ":2:"]).await;
    }
    std::fs::write(&template, "listen: \"{{ listen }}\"\nprot: 4222\n").unwrap();
    fails(
        &cluster,
        &["renew"],
        1,
        &["nats-server -t refuses", "own.tera (line 2 as rendered)", "unknown field \"prot\""],
    )
    .await;
    std::fs::write(&template, "listen: \"{{ listen }}\"\n").unwrap();
    fails(&cluster, &["renew"], 1, &["--allow-loss tls", "--allow-loss cluster-tls"]).await;
    assert!(!cluster.nodes[0].nats_config().exists(), "nothing was committed");
}

/// A missing file is not a configuration error. The unit doesn't restart a daemon after a configuration error, so
/// nobody would renew.
#[tokio::test]
async fn a_template_or_an_include_that_is_missing_is_named_and_keeps_no_daemon_away() {
    for (key, value, words) in [
        ("nats.template", "\"/nowhere/own.tera\"", ["/nowhere/own.tera", "No such file", "correct nats.template"]),
        ("nats.include", "[\"/nowhere/auth.conf\"]", ["/nowhere/auth.conf", "is not there", "correct its path"]),
    ] {
        let mut cluster = bench();
        set(cluster.nodes[0].agent.config(), key, value).unwrap();
        for command in ["renew", "render"] {
            fails(&cluster, &[command], 1, &words).await;
        }
        let doctor = cluster.nodes[0].agent.run(&["doctor"], SOON).await.unwrap();
        let is_told =
            |line: &str| line.starts_with("failed   configuration") && words.iter().all(|word| line.contains(word));
        assert!(doctor.code == Some(1) && doctor.stdout.lines().any(is_told), "{doctor:?}");
        cluster.nodes[0].agent.start().unwrap();
        let agent = &cluster.nodes[0].agent;
        let told = eventually("the reason", SOON, async || match agent.run(&["status"], SOON).await {
            Ok(status) if words.iter().all(|word| status.stdout.contains(word)) => Ok(status),
            other => Err(format!("{other:?}")),
        });
        assert_eq!(told.await.unwrap().code, Some(1));
    }
}

#[tokio::test]
async fn a_port_or_a_socket_that_is_in_use_is_named() {
    let cluster = bench();
    let node = &cluster.nodes[0];
    let taken = TcpListener::bind(node.metrics()).unwrap();
    let address = node.metrics().to_string();
    fails(&cluster, &["run"], 1, &["metrics.listen", &address, "in use"]).await;
    drop(taken);
    let socket = cluster.directory().join("socket");
    std::fs::write(&socket, "somebody's file").unwrap();
    set(node.agent.config(), "control.socket", &quoted(&socket)).unwrap();
    fails(&cluster, &["run"], 1, &["control.socket", "socket"]).await;
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "somebody's file");
}

#[tokio::test]
async fn a_nats_server_that_is_missing_too_old_or_something_else_is_named_with_what_is_needed() {
    let cluster = bench();
    let file = cluster.nodes[0].agent.config();
    set(file, "nats.server", "\"/nowhere/nats-server\"").unwrap();
    fails(&cluster, &["renew"], 1, &["/nowhere/nats-server", "nats.server", "No such file"]).await;
    let server = cluster.directory().join("nats-server");
    set(file, "nats.server", &quoted(&server)).unwrap();
    for (version, needed) in [("nats-server: v2.9.10", "2.10 or later"), ("nginx version: 1.27", "2.10 or later")] {
        std::fs::write(&server, format!("#!/bin/sh\necho '{version}'\n")).unwrap();
        std::fs::set_permissions(&server, std::fs::Permissions::from_mode(0o755)).unwrap();
        fails(&cluster, &["renew"], 1, &["nats-server", version, needed, "nats.server"]).await;
        let doctor = cluster.nodes[0].agent.run(&["doctor"], SOON).await.unwrap();
        assert!(doctor.code == Some(1) && doctor.stdout.contains(version), "{doctor:?}");
    }
    std::fs::set_permissions(&server, std::fs::Permissions::from_mode(0o644)).unwrap();
    fails(&cluster, &["renew"], 1, &["Permission denied", "nats.server"]).await;
    assert!(!cluster.nodes[0].nats_config().exists());
}

#[tokio::test]
async fn instance_metadata_that_is_missing_ends_a_command_in_time_with_what_to_do() {
    let mut cluster = bench();
    let file = cluster.nodes[0].agent.config();
    let text = std::fs::read_to_string(file).unwrap();
    let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("addresses = ")).collect();
    std::fs::write(file, without.join("\n")).unwrap();
    let agent = &mut cluster.nodes[0].agent;
    agent.set_env("AWS_EC2_METADATA_DISABLED", "false");
    agent.set_env("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1");
    let words = ["instance metadata", "/latest/", "node.addresses"];
    // The commands end within the time limit of every command here.
    for command in ["renew", "render"] {
        fails(&cluster, &[command], 1, &words).await;
    }
    // `agent status` still prints a status.
    let status = cluster.nodes[0].agent.run(&["status"], SOON).await.unwrap();
    assert!(status.code == Some(1) && status.stdout.starts_with("state     failing"), "{status:?}");
    assert!(words.iter().all(|word| status.stdout.contains(word)), "{status:?}");
}

/// Moves the node to AWS Private CA, and removes the embedded CA's keys.
fn use_pca(cluster: &Nodes, ca_arn: &str, validity: &str) {
    let file = cluster.nodes[0].agent.config();
    let text = std::fs::read_to_string(file).unwrap();
    let text = text.replace("kind = \"local\"", &format!("ca_arn = {ca_arn:?}"));
    let text: Vec<&str> = text.lines().filter(|line| !line.contains("/ca\"")).collect();
    std::fs::write(file, text.join("\n")).unwrap();
    set(file, "issuer.validity", &format!("{validity:?}")).unwrap();
    set(file, "node.region", &format!("{REGION:?}")).unwrap();
}

#[tokio::test]
async fn credentials_that_are_missing_are_named_with_the_call_that_needs_them() {
    let mut cluster = bench();
    use_pca(&cluster, OTHER_CA, "7d");
    let agent = &mut cluster.nodes[0].agent;
    for (name, value) in [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
        ("AWS_CONFIG_FILE", "/nowhere"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/nowhere"),
        ("HOME", "/nowhere"),
    ] {
        agent.set_env(name, value);
    }
    fails(&cluster, &["renew"], 1, &["acm-pca:", OTHER_CA, "credentials", "role"]).await;
    let agent = &mut cluster.nodes[0].agent;
    agent.set_env("AWS_ACCESS_KEY_ID", "test");
    agent.set_env("AWS_SECRET_ACCESS_KEY", "test");
    fails(&cluster, &["renew"], 1, &["acm-pca:", OTHER_CA, "connect"]).await;
}

#[tokio::test]
async fn more_than_seven_days_of_a_short_lived_ca_are_refused_with_what_to_write() {
    let moto = Moto::start().await.unwrap();
    let ca = moto.create_ca("short", "SHORT_LIVED_CERTIFICATE").await.unwrap();
    let mut cluster = bench();
    use_pca(&cluster, &ca.arn, "8d");
    for (name, value) in aws(&moto) {
        cluster.nodes[0].agent.set_env(name, value);
    }
    fails(&cluster, &["renew"], 1, &["short-lived", &ca.arn, "validity = \"7d\""]).await;
    set(cluster.nodes[0].agent.config(), "issuer.validity", "\"7d\"").unwrap();
    let renewed = cluster.nodes[0].agent.renew().await.unwrap();
    assert_eq!(renewed["result"], "committed", "{renewed}");
}

// === The command line ===

async fn agent(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = tokio::process::Command::new(AGENT);
    let output = command.args(arguments).envs(environment.iter().copied()).output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn help_completions_and_the_manual_page_name_every_command() {
    let commands = ["run", "renew", "status", "doctor", "render", "completions", "man"];
    for arguments in
        [&["--help"][..], &["man"], &["completions", "bash"], &["completions", "zsh"], &["completions", "fish"]]
    {
        let (code, stdout, stderr) = agent(arguments, &[]).await;
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{arguments:?}");
        for command in commands {
            assert!(stdout.contains(command), "{arguments:?} doesn't name {command}");
        }
        assert!(stdout.contains("allow-loss") || arguments == ["--help"] || arguments == ["man"], "{arguments:?}");
    }
    for command in commands {
        let (code, page, stderr) = agent(&["man", command], &[]).await;
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{command}");
        assert!(page.contains(&format!(".TH agent-{command} 1")) && page.contains("\\fBagent "), "{page}");
    }
    let (_, help, _) = agent(&["--help"], &[]).await;
    assert!(help.contains("Exit codes: 0") && !help.contains('\u{1b}'), "{help}");
    for arguments in
        [&[][..], &["renwe"], &["renew", "--jsno"], &["renew", "--allow-loss", "everything"], &["man", "renwe"]]
    {
        let (code, _, stderr) = agent(arguments, &[]).await;
        assert_eq!(code, Some(2), "{arguments:?}: {stderr}");
        assert!(!stderr.is_empty() && !stderr.contains('\u{1b}'), "{stderr}");
    }
}

#[tokio::test]
async fn what_is_piped_is_plain_and_a_diff_shows_only_what_differs() {
    let cluster = Nodes::start(AGENT, tools::NATS_SERVER, 1).await.unwrap();
    let config = cluster.nodes[0].agent.config().to_str().unwrap();
    for command in [&["status"][..], &["doctor"], &["render"], &["render", "--diff"], &["renew"], &["renew", "--json"]]
    {
        for environment in [&[][..], &[("NO_COLOR", "1")], &[("CLICOLOR_FORCE", "1"), ("TERM", "xterm-256color")]] {
            let metadata = [environment, &[("AWS_EC2_METADATA_DISABLED", "true")]].concat();
            let (code, stdout, stderr) = agent(&[command, &["--config", config]].concat(), &metadata).await;
            assert_eq!(code, Some(0), "{command:?}: {stdout}{stderr}");
            assert!(!stdout.contains('\u{1b}') && !stderr.contains('\u{1b}'), "{command:?}: {stdout}{stderr}");
            assert_eq!(stdout.is_empty(), command == ["render", "--diff"], "{command:?}: {stdout}");
        }
    }
    // The new configuration differs in one setting, and the output shows that difference.
    set(cluster.nodes[0].agent.config(), "nats.jetstream", "false").unwrap();
    let (_, diff, _) = agent(&["render", "--diff", "--config", config], &[]).await;
    assert!(diff.contains("+jetstream: \"disabled\"") && diff.contains("-jetstream {"), "{diff}");
}
