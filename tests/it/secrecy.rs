//! Invariant 1: secrets stay in the files that hold them, and no other user can read these files.

#![expect(clippy::print_stdout, reason = "the output names the checks that could not run")]

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::agent::{Agent, Answer};
use harness::eventually;
use harness::moto::{Moto, REGION};
use harness::nodes::{Nodes, set};
use harness::tools;
use nats_tls_agent::conf::render::BUILT_IN;
use nats_tls_agent::config::Config;
use nix::sys::signal::Signal;

use crate::AGENT;
use crate::protection::aws;
use crate::rotation::unhealthy;
use crate::state_directory::{STRANGER, as_user, give_to_stranger, idle};

const SOON: Duration = Duration::from_secs(20);
const PASSWORD: &str = "s3cr3t/of@routes";
/// The password as it appears in a route's URL.
const ENCODED: &str = "s3cr3t%2Fof%40routes";

/// A wrapper of nats-server that first records its arguments and environment, which other processes can see.
fn witness(directory: &Path, server: &Path) -> (PathBuf, PathBuf) {
    let (script, seen) = (directory.join("nats-server"), directory.join("seen"));
    let text = format!(
        "#!/bin/sh\n{{ tr '\\0' '\\n' < /proc/$$/cmdline; tr '\\0' '\\n' < /proc/$$/environ; }} >> {}\nexec {} \"$@\"\n",
        seen.display(),
        server.display()
    );
    executable(&script, &text);
    (script, seen)
}

fn executable(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// The lines of a PEM block's body.
fn body(pem: &str) -> Vec<String> {
    pem.lines().filter(|line| !line.starts_with("-----") && line.len() > 8).map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn invariant_01_neither_a_key_nor_the_password_is_in_any_log_output_argument_or_environment() {
    let moto = Moto::start().await.unwrap();
    let secret = serde_json::json!({"username": "route", "password": PASSWORD}).to_string();
    moto.put_secret("nats/route", &secret).await.unwrap();
    let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, 2).unwrap();
    cluster.configure().unwrap();
    cluster.set("node.region", &format!("{REGION:?}")).unwrap();
    cluster.set("nats.cluster_secret_id", "\"nats/route\"").unwrap();
    let (script, seen) = witness(cluster.directory(), &tools::nats_server(tools::NATS_SERVER).unwrap());
    cluster.set("nats.server", &format!("{:?}", script.display().to_string())).unwrap();
    for node in &mut cluster.nodes {
        node.agent.set_env("RUST_LOG", "trace");
        for (name, value) in aws(&moto) {
            node.agent.set_env(name, value);
        }
    }
    cluster.boot().await.unwrap();
    let node = &cluster.nodes[0];
    let mut secrets = Secrets::default();
    secrets.gather(&cluster);

    let mut said = Vec::new();
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["render"],
        &["render", "--diff"],
        &["doctor"],
        &["doctor", "--json"],
        &["renew"],
        &["renew", "--json"],
        &["run"],
        &["man"],
    ] {
        // `man` accepts no configuration, and reports that.
        said.push(node.agent.run(arguments, Duration::from_mins(1)).await.unwrap());
        secrets.gather(&cluster);
    }
    let committed = std::fs::read_to_string(node.nats_config()).unwrap();
    assert!(committed.contains(ENCODED), "the committed configuration lacks the password");
    assert!(said[2].stdout.contains("********"), "{:?}", said[2]);

    // Errors quote the faulty text: a template that misuses the password, an include, a broken journal.
    let template = cluster.directory().join("wrong.tera");
    std::fs::write(&template, "{{ cluster.credential.password }} }{\n\"{{ cluster.routes }}\" {{ tls.key }}").unwrap();
    set(node.agent.config(), "nats.template", &format!("{:?}", template.display().to_string())).unwrap();
    node.agent.signal(Signal::SIGHUP).unwrap();
    unhealthy(node, "does not render").await;
    let quoting = format!(
        "{BUILT_IN}\n\"{{{{ cluster.credential.password }}}}\": [{{% for route in cluster.routes %}} \"{{{{ route }}}}\",{{% endfor %}} ]\n"
    );
    std::fs::write(&template, quoting).unwrap();
    node.agent.signal(Signal::SIGHUP).unwrap();
    // The mask in the message shows that the message would otherwise contain the secret.
    unhealthy(node, "unknown field \\\"********\\\"").await;
    for arguments in [&["renew"][..], &["status", "--json"], &["doctor"], &["render", "--diff"]] {
        said.push(node.agent.run(arguments, Duration::from_mins(1)).await.unwrap());
        secrets.gather(&cluster);
    }
    let journal = node.state_directory().join("issuance.json");
    let broken = std::fs::read_to_string(&journal).unwrap().replacen('{', "{\"x\": ", 1);
    std::fs::write(&journal, &broken).unwrap();
    said.push(node.agent.run(&["renew"], SOON).await.unwrap());
    said.push(node.agent.run(&["doctor"], SOON).await.unwrap());

    for Answer { stdout, stderr, .. } in &said {
        secrets.assert_absent("an output", stdout);
        secrets.assert_absent("an error", stderr);
    }
    for node in &cluster.nodes {
        let log = node.agent.log_tail(usize::MAX);
        assert!(log.contains("TRACE") && log.len() > 10_000, "the log is too short or has no traces: {log}");
        secrets.assert_absent("a log", &log);
    }
    let seen = std::fs::read_to_string(seen).unwrap();
    // Nothing of the agent's environment reaches nats-server but PATH.
    assert!(seen.contains("-t") && seen.contains("PATH=") && !seen.contains("AWS_"), "{seen}");
    secrets.assert_absent("arguments and environment", &seen);
}

/// The texts that must not appear anywhere.
#[derive(Default)]
struct Secrets(BTreeSet<String>);

impl Secrets {
    /// Adds every key that is on the disk now.
    fn gather(&mut self, cluster: &Nodes) {
        self.0.extend([PASSWORD.to_owned(), ENCODED.to_owned()]);
        for node in &cluster.nodes {
            for generation in std::fs::read_dir(node.state_directory().join("generations")).unwrap() {
                // A generation may be pruned in the meantime.
                if let Ok(key) = std::fs::read_to_string(generation.unwrap().path().join("key.pem")) {
                    self.0.extend(body(&key));
                }
            }
        }
    }

    fn assert_absent(&self, place: &str, text: &str) {
        assert!(self.0.len() >= 4, "{} secrets are too few", self.0.len());
        for secret in &self.0 {
            let Some(at) = text.find(secret.as_str()) else { continue };
            let line = text[..at].lines().count();
            panic!("line {line} of {place} holds a secret, {secret:?}");
        }
    }
}

/// The umask at the agent's start doesn't change the modes.
#[tokio::test]
async fn invariant_01_under_any_umask_no_file_is_the_worlds_and_no_secret_is_more_than_its_groups() {
    for umask in ["000", "022", "077"] {
        let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
        cluster.configure().unwrap();
        let lax = cluster.directory().join("agent");
        executable(&lax, &format!("#!/bin/sh\numask {umask}\nexec {AGENT} \"$@\"\n"));
        let socket = Config::load(cluster.nodes[0].agent.config()).unwrap().control_socket;
        let node = &mut cluster.nodes[0];
        let log = cluster.cluster.ca_directory().with_file_name("log");
        node.agent = Agent::new(&lax, node.agent.config(), log);
        cluster.boot().await.unwrap();
        let node = &cluster.nodes[0];
        node.agent.renew().await.unwrap();

        let mut files = Vec::new();
        walk(&node.state_directory(), &mut files);
        walk(&cluster.cluster.ca_directory(), &mut files);
        files.push(node.nats_config());
        let mut keys = 0;
        for file in files.iter().chain([&socket]) {
            let Ok(metadata) = std::fs::symlink_metadata(file) else { continue };
            let mode = metadata.permissions().mode() & 0o7777;
            let what = || format!("{} has mode {mode:o} under umask {umask}", file.display());
            assert_eq!(mode & 0o7007, 0, "{}", what());
            let name = file.file_name().unwrap().to_string_lossy();
            if metadata.is_dir() {
                assert!([0o700, 0o750].contains(&mode), "{}", what());
            } else if metadata.file_type().is_socket() {
                assert_eq!(mode, 0o660, "{}", what());
            } else if ["key.pem", "ca.key", "issuance.json", "nats-server.conf"].contains(&&*name) {
                keys += 1;
                assert!([0o600, 0o640].contains(&mode), "{}", what());
            } else {
                assert!([0o600, 0o640].contains(&mode), "{}", what());
            }
        }
        assert!(keys >= 5, "{files:?}");
        let journal = Config::load(node.agent.config()).unwrap().state_directory.join("issuance.json");
        assert!(files.contains(&journal), "{files:?}");
    }
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    files.push(directory.to_path_buf());
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() { walk(&entry.path(), files) } else { files.push(entry.path()) }
    }
}

/// A launcher that allows core dumps as far as the machine allows them.
const AS_MUCH_AS_MAY_BE: [&str; 3] = ["sh", "-c", "ulimit -c $(ulimit -H -c); exec \"$0\" \"$@\""];

#[tokio::test]
async fn invariant_01_a_running_agent_leaves_no_core_dump() {
    let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    cluster.configure().unwrap();
    let node = &mut cluster.nodes[0];
    node.agent.set_launcher(AS_MUCH_AS_MAY_BE.map(ToOwned::to_owned).into());
    node.agent.start().unwrap();
    node.committed().await.unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", node.agent.pid().unwrap())).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().take(2).collect::<Vec<_>>(), ["0", "0"], "{limits}");

    node.agent.signal(Signal::SIGABRT).unwrap();
    let ended = node.agent.ended(SOON).await.unwrap();
    assert_eq!((ended.signal(), ended.core_dumped()), (Some(Signal::SIGABRT as i32), false), "{ended}");
    // The control shows whether another process leaves a core dump after the same signal.
    let mut other = std::process::Command::new(AS_MUCH_AS_MAY_BE[0]);
    other.args(&AS_MUCH_AS_MAY_BE[1..]).args(["sh", "-c", "kill -ABRT $$"]).current_dir(cluster.directory());
    let other = other.status().unwrap();
    assert_eq!(other.signal(), Some(Signal::SIGABRT as i32), "{other}");
    if !other.core_dumped() {
        println!("only the limits were checked: no process on this machine leaves a core dump");
    }
}

/// Even a process of the same user gets no access. The daemon also checks its callers, whatever the mode of the socket.
#[tokio::test]
async fn invariant_01_a_process_of_the_same_user_can_neither_trace_the_daemon_nor_read_its_memory() {
    let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    cluster.configure().unwrap();
    if !give_to_stranger(&mut cluster) {
        return;
    }
    let node = &mut cluster.nodes[0];
    idle(node).await;
    let daemon = node.agent.pid().unwrap();
    let as_same = |program: &[&str]| run_as(STRANGER, program);
    // The control reads an ordinary process of the same user.
    let mut other = as_command(STRANGER, &["sleep", "60"]).spawn().unwrap();
    let name = format!("/proc/{}/comm", other.id());
    let is_sleep = async || match std::fs::read_to_string(&name) {
        Ok(name) if name == "sleep\n" => Ok(()),
        other => Err(format!("it is still {other:?}")),
    };
    eventually("the other user's process", SOON, is_sleep).await.unwrap();
    for file in ["mem", "environ", "maps"] {
        let read = |pid: u32| as_same(&["head", "-c", "0", &format!("/proc/{pid}/{file}")]);
        let (theirs, ours) = (read(other.id()), read(daemon));
        assert!(theirs.status.success(), "{file}: {theirs:?}");
        let said = String::from_utf8_lossy(&ours.stderr);
        assert!(!ours.status.success() && said.contains("Permission denied"), "{file}: {ours:?}");
    }
    let traced = as_same(&["timeout", "5", "strace", "-p", &daemon.to_string()]);
    let said = String::from_utf8_lossy(&traced.stderr);
    assert!(!traced.status.success() && said.contains("Operation not permitted"), "{traced:?}");
    other.kill().unwrap();
    other.wait().unwrap();

    let socket = Config::load(node.agent.config()).unwrap().control_socket;
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o660);
    let config = node.agent.config().display().to_string();
    let binary = cluster.directory().join("bin/agent").display().to_string();
    let ask = |user: u32| {
        let answer = run_as(user, &[&binary, "renew", "--config", &config]);
        (answer.status.code(), String::from_utf8_lossy(&answer.stderr).into_owned())
    };
    let (code, said) = ask(STRANGER + 1);
    assert!(code == Some(1) && said.contains("could not connect"), "{said}");
    // If the mode is lost, the daemon still checks the caller's credentials.
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).unwrap();
    std::fs::set_permissions(socket.parent().unwrap(), PermissionsExt::from_mode(0o755)).unwrap();
    let (code, said) = ask(STRANGER + 1);
    let refusal = format!("uid {} (gid {}) may not ask this daemon", STRANGER + 1, STRANGER + 1);
    assert!(code == Some(1) && said.contains(&refusal), "{said}");
    assert_eq!(ask(STRANGER).0, Some(0), "the daemon refuses its own user");
}

fn as_command(user: u32, program: &[&str]) -> std::process::Command {
    let launcher = as_user(user);
    let mut command = std::process::Command::new(&launcher[0]);
    command.args(&launcher[1..]).args(program);
    command
}

fn run_as(user: u32, program: &[&str]) -> std::process::Output {
    as_command(user, program).output().unwrap()
}

/// The mappings of a process's memory that contain given bytes, with the surroundings of the first occurrence.
fn found_in(pid: u32, needles: &[(String, Vec<u8>)]) -> Option<Vec<String>> {
    use std::os::unix::fs::FileExt as _;
    if !nix::unistd::geteuid().is_root() {
        println!("not run: only root may look into the daemon's memory");
        return None;
    }
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut begins = vec![[false; 256]; 256];
    for (_, needle) in needles {
        begins[usize::from(needle[0])][usize::from(needle[1])] = true;
    }
    let mut found = Vec::new();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw"))) {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        // A mapping may disappear in the meantime.
        if memory.read_exact_at(&mut bytes, start).is_err() {
            continue;
        }
        for at in
            (0..bytes.len().saturating_sub(1)).filter(|at| begins[usize::from(bytes[*at])][usize::from(bytes[*at + 1])])
        {
            for (name, needle) in needles.iter().filter(|(_, needle)| bytes[at..].starts_with(needle)) {
                let around = &bytes[at.saturating_sub(24)..(at + needle.len() + 24).min(bytes.len())];
                let shown = String::from_utf8_lossy(around).replace(|c: char| !c.is_ascii_graphic(), ".");
                let place = line.split_whitespace().nth(5).unwrap_or("anonymous");
                found.push(format!("{name} in {place} at {:x}: {shown}", start + at as u64));
            }
        }
    }
    Some(found)
}

/// The forms of a key in memory: its scalar, and each whole line of its PEM body.
fn needles(what: &str, key: &str) -> Vec<(String, Vec<u8>)> {
    let lines = body(key);
    let der = x509_parser::pem::parse_x509_pem(key.as_bytes()).unwrap().1.contents;
    // RFC 5915: SEQUENCE, version 1, an OCTET STRING of 32 bytes.
    let scalar = der.windows(5).position(|window| window == [2, 1, 1, 4, 32]).map(|at| at + 5).unwrap();
    let mut needles = vec![(format!("{what}'s scalar"), der[scalar..scalar + 32].to_vec())];
    needles
        .extend(lines.into_iter().enumerate().map(|(n, line)| (format!("{what}'s line {}", n + 1), line.into_bytes())));
    needles
}

#[tokio::test]
async fn invariant_01_no_key_is_in_the_daemons_memory_once_a_rotation_has_settled() {
    let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    cluster.configure().unwrap();
    // The long interval prevents a pass during the search.
    cluster.set("discovery.interval", "\"10m\"").unwrap();
    cluster.boot().await.unwrap();
    let node = &mut cluster.nodes[0];
    let mut keys = Vec::new();
    for rotation in 0..4 {
        if rotation > 0 {
            node.agent.renew().await.unwrap();
        }
        let key = std::fs::read_to_string(node.newest_generation().unwrap().join("key.pem")).unwrap();
        keys.extend(needles(&format!("key {rotation}"), &key));
    }
    let pid = node.agent.pid().unwrap();
    let Some(seen) = found_in(pid, &keys) else { return };
    assert!(seen.is_empty(), "{} copies:\n{}", seen.len(), seen.join("\n"));
    // The control shows that the search finds existing bytes.
    let cluster_name = ("the cluster's name".to_owned(), b"loopback".to_vec());
    assert!(found_in(pid, &[cluster_name]).is_some_and(|found| !found.is_empty()));
}
