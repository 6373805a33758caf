//! A damaged state directory. The damage is a truncated or garbled file, a file of a newer agent or of another user, a
//! symlink, or a second agent. The served certificate stays in service in every case, and the agent reports the fault.

#![expect(clippy::print_stdout, reason = "the test's output shows the number of attempts")]

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::cluster::Node;
use harness::nodes::{Nodes, at, set};
use harness::tools;
use nats_tls_agent::clock::Clock;
use nats_tls_agent::issue::journal::{Journal, Pending};
use nats_tls_agent::x509::csr::{Csr, KeyAlgorithm};
use nats_tls_agent::x509::san::Sans;
use serde_json::Value;

use crate::AGENT;
use crate::rotation::{status_with, unhealthy};

const SOON: Duration = Duration::from_secs(20);
/// The distance in bytes between two places where the journal is cut.
const STEP: usize = 64;

/// A serving node whose agent retries almost immediately after a failure.
async fn serving() -> Nodes {
    let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    cluster.configure().unwrap();
    cluster.set("renewal.retry_min", "\"100ms\"").unwrap();
    cluster.set("renewal.retry_max", "\"200ms\"").unwrap();
    cluster.boot().await.unwrap();
    cluster
}

/// The number of certificates that the embedded CA has issued.
fn paid(cluster: &Nodes) -> usize {
    std::fs::read_dir(cluster.cluster.ca_directory().join("issued")).unwrap().count()
}

/// Every file below a directory except the lock, with its content and mode. A symlink is listed with its target.
fn contents(directory: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u32)> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            all.extend(contents(&path));
        } else if metadata.is_symlink() {
            all.insert(path.clone(), (std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(), 0));
        } else if !path.ends_with("lock") {
            all.insert(path.clone(), (std::fs::read(&path).unwrap(), metadata.permissions().mode()));
        }
    }
    all
}

fn is_healthy(status: &Value) -> bool {
    status["state"] == "healthy"
}

#[tokio::test]
async fn invariant_11_a_journal_cut_short_anywhere_is_refused_and_kept_and_nothing_is_paid_for() {
    let mut cluster = serving().await;
    let state = cluster.nodes[0].state_directory();
    cluster.nodes[0].agent.kill().await.unwrap();
    let journal = Journal::of(&state);
    let mut entries = journal.load().unwrap();
    let csr = Csr::generate("n1", &Sans::default(), KeyAlgorithm::EcdsaP256).unwrap();
    let secret = csr.key.expose().lines().nth(1).unwrap().to_owned();
    entries.pending = Some(Pending::of(csr, Clock::System.now()));
    journal.store(&entries).unwrap();
    let whole = std::fs::read(journal.path()).unwrap();
    let before = paid(&cluster);

    let mut cuts: Vec<Vec<u8>> = (0..whole.len()).step_by(STEP).map(|end| whole[..end].to_vec()).collect();
    cuts.push(whole[..whole.len() - 1].to_vec());
    cuts.extend([b"null".to_vec(), vec![0; 4096], vec![0xff; 4096], vec![b'['; 100_000]]);
    println!("the journal was cut and garbled in {} ways", cuts.len());
    assert!(cuts.len() > 12, "{} bytes", whole.len());
    for broken in &cuts {
        std::fs::write(journal.path(), broken).unwrap();
        let answer = cluster.nodes[0].agent.run(&["renew"], SOON).await.unwrap();
        assert_eq!(answer.code, Some(1), "{answer:?}");
        let named = answer.stderr.contains("issuance.json can't be read") && answer.stderr.contains("move it away");
        assert!(named && !answer.stderr.contains(&secret), "{answer:?}");
        assert_eq!(&std::fs::read(journal.path()).unwrap(), broken, "the agent changed the damaged journal");
        cluster.nodes[0].server.as_mut().unwrap().check_running().unwrap();
    }
    // The daemon reports the fault before it needs the journal, and the certificate stays in service. The node becomes
    // healthy once the file is moved away.
    let node = &mut cluster.nodes[0];
    node.agent.start().unwrap();
    let status = unhealthy(node, "issuance.json can't be read").await;
    assert_eq!(at(&status, "served.client.sha256"), at(&status, "leaf.sha256"), "{status}");
    std::fs::rename(journal.path(), state.join("issuance.json.broken")).unwrap();
    status_with(&cluster.nodes[0], is_healthy).await;
    assert_eq!(paid(&cluster), before);
}

#[tokio::test]
async fn a_state_directory_of_a_newer_agent_is_refused_by_its_version_and_left_as_it_is() {
    let mut cluster = serving().await;
    cluster.nodes[0].agent.kill().await.unwrap();
    let state = cluster.nodes[0].state_directory();
    let newer = r#"{"version":2,"issuances":[{"certificate":"arn","key":"elsewhere"}]}"#;
    std::fs::write(state.join("issuance.json"), newer).unwrap();
    let (files, before) = (contents(&state), paid(&cluster));
    let answer = cluster.nodes[0].agent.run(&["renew"], SOON).await.unwrap();
    let says = |text: &str| text.contains("its version is 2, this agent's 1") && text.contains("issuance.json");
    assert!(answer.code == Some(1) && says(&answer.stderr), "{answer:?}");
    let node = &mut cluster.nodes[0];
    node.agent.start().unwrap();
    let status = unhealthy(node, "its version is 2, this agent's 1").await;
    assert_eq!(at(&status, "served.client.sha256"), at(&status, "leaf.sha256"), "{status}");
    let refused = node.agent.renew().await.unwrap_err();
    assert!(says(&refused.to_string()), "{refused}");
    assert_eq!((contents(&state), paid(&cluster)), (files, before));
}

/// Garbles one file at a time before the agent starts, and then requests a renewal.
#[tokio::test]
async fn garbage_in_any_file_of_the_state_is_told_or_replaced_and_a_renewal_makes_all_well() {
    let mut cluster = serving().await;
    for _ in 0..3 {
        cluster.nodes[0].agent.renew().await.unwrap();
    }
    cluster.nodes[0].agent.kill().await.unwrap();
    let (state, config) = (cluster.nodes[0].state_directory(), cluster.nodes[0].nats_config());
    let beside = |end: &str| PathBuf::from(format!("{}.{end}", config.display()));
    let generations = state.join("generations");
    let mut tried = 0;
    let mut files = vec![config.clone(), state.join("last-good.json"), state.join("last-good.json.new")];
    files.extend([state.join("system.nk"), state.join("system.nk.new")]);
    files.extend([state.join("issuance.json.new"), state.join("lock")]);
    files.extend([beside("running"), beside("running.new"), beside("candidate")]);
    files.extend(["000000", "+7", "000099", "18446744073709551615", "x"].map(|name| generations.join(name)));
    for name in ["key.pem", "cert.pem", "ca.pem", "source"] {
        files.push(Path::new("newest").join(name));
    }
    for file in &files {
        for garbage in [&b""[..], b"}{ \xff\x00 garbage"] {
            let node = &mut cluster.nodes[0];
            let newest = node.newest_generation().unwrap();
            let path = file.strip_prefix("newest").map_or(file.clone(), |name| newest.join(name));
            let what = format!("{} bytes in {}", garbage.len(), path.display());
            // The committed file and the loaded copy beside it may be links to one file. The test then garbles both.
            std::fs::write(&path, garbage).unwrap();
            node.agent.start().unwrap();
            // Before the daemon's first pass, `agent status` itself probes nats-server. The test needs the daemon's
            // view.
            let is_daemons = |status: &Value| {
                let mut reasons = status["reasons"].as_array().into_iter().flatten();
                !reasons.any(|reason| ["agent_not_running", "first_pass_under_way"].contains(&at(reason, "code")))
            };
            let is_served = |status: &Value| !at(status, "served.client.sha256").is_empty();
            let status = status_with(node, |status| is_served(status) && is_daemons(status)).await;
            let issued = paid(&cluster);
            let node = &mut cluster.nodes[0];
            node.agent.check_running().unwrap();
            node.server.as_mut().unwrap().check_running().unwrap();
            let renewed = node.agent.renew().await;
            let renewed = renewed.unwrap_or_else(|failure| panic!("{what}: {failure}\n{status}"));
            assert_eq!(renewed["result"], "confirmed", "{what}");
            status_with(node, is_healthy).await;
            // nats-server can start from the current files.
            node.agent.kill().await.unwrap();
            node.server.take().unwrap().kill().await.unwrap();
            cluster
                .cluster
                .start_server(&mut cluster.nodes[0])
                .await
                .unwrap_or_else(|failure| panic!("{what}: {failure}"));
            assert!(paid(&cluster) <= issued + 1, "{what}");
            // The agent itself may already have removed this file as an old generation.
            if path.starts_with(&generations) && !file.starts_with("newest") && path.exists() {
                std::fs::remove_file(&path).unwrap();
            }
            tried += 1;
        }
    }
    println!("garbage was written {tried} times to {} files", files.len());
}

#[tokio::test]
async fn invariant_01_a_symlink_planted_anywhere_in_the_state_is_never_written_through() {
    let mut cluster = serving().await;
    cluster.nodes[0].agent.kill().await.unwrap();
    let (state, config) = (cluster.nodes[0].state_directory(), cluster.nodes[0].nats_config());
    let beside = |end: &str| PathBuf::from(format!("{}.{end}", config.display()));
    let theirs = cluster.directory().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    std::fs::write(theirs.join("file"), "theirs").unwrap();
    std::fs::set_permissions(theirs.join("file"), PermissionsExt::from_mode(0o644)).unwrap();
    let before = contents(&theirs);

    let mut places =
        ["lock", "issuance.json", "issuance.json.new", "last-good.json", "last-good.json.new", "generations"]
            .map(|name| state.join(name))
            .to_vec();
    places.extend([state.join("system.nk"), state.join("system.nk.new")]);
    places.extend([config.clone(), beside("candidate"), beside("running"), beside("running.new")]);
    places.extend([Path::new("next").to_path_buf(), Path::new("next.partial").to_path_buf()]);
    let mut refused = Vec::new();
    for place in &places {
        for target in [theirs.join("file"), theirs.join("absent"), theirs.clone()] {
            let node = &mut cluster.nodes[0];
            let newest = node.newest_generation().unwrap();
            let number: u64 = newest.file_name().unwrap().to_str().unwrap().parse().unwrap();
            let next = state.join(format!("generations/{:06}", number + 1));
            let path = match place.to_str().unwrap() {
                "next" => next,
                "next.partial" => next.with_extension("partial"),
                _ => place.clone(),
            };
            let aside = state.with_file_name("aside");
            let was_there = std::fs::rename(&path, &aside).is_ok();
            symlink(&target, &path).unwrap();
            let what = format!("{} to {}", path.display(), target.display());

            let answer = node.agent.run(&["renew"], SOON).await.unwrap();
            assert_eq!(contents(&theirs), before, "{what}: {answer:?}");
            if answer.code != Some(0) {
                let name = path.file_stem().unwrap().to_str().unwrap();
                assert!(answer.stderr.contains(name), "{what}: {answer:?}");
                refused.push(what.clone());
            }
            node.server.as_mut().unwrap().check_running().unwrap();
            // If the agent left the symlink in place, the test restores the original file.
            if std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_symlink()) {
                std::fs::remove_file(&path).unwrap();
                if was_there {
                    std::fs::rename(&aside, &path).unwrap();
                }
            }
            if let Err(error) = std::fs::remove_file(&aside) {
                assert!([std::io::ErrorKind::NotFound, std::io::ErrorKind::IsADirectory].contains(&error.kind()));
            }
            node.agent.start().unwrap();
            status_with(node, is_healthy).await;
            assert_eq!(contents(&theirs), before, "{what}");
            node.agent.kill().await.unwrap();
        }
    }
    println!("{} symlinks were planted; the agent refused these: {refused:#?}", places.len() * 3);
}

#[tokio::test]
async fn invariant_09_of_two_agents_one_works_and_the_other_says_so() {
    let mut cluster = serving().await;
    let before = paid(&cluster);
    let busy = "another agent is at work on";
    // A second daemon starts, and then a renewal that can't find the first daemon's socket.
    let second = cluster.nodes[0].agent.run(&["run"], SOON).await.unwrap();
    assert!(second.code == Some(1) && second.stderr.contains(busy), "{second:?}");
    let config = cluster.nodes[0].agent.config().to_path_buf();
    let text = std::fs::read_to_string(&config).unwrap();
    set(&config, "control.socket", &format!("{:?}", cluster.directory().join("other.sock").display().to_string()))
        .unwrap();
    let alone = cluster.nodes[0].agent.run(&["renew"], SOON).await.unwrap();
    assert!(alone.code == Some(1) && alone.stderr.contains(busy), "{alone:?}");
    std::fs::write(&config, text).unwrap();
    assert_eq!(paid(&cluster), before);
    status_with(&cluster.nodes[0], is_healthy).await;

    // The daemon runs simultaneous renewals one after the other. Without a daemon, at least one renewal succeeds.
    let agent = &cluster.nodes[0].agent;
    let (one, other) = tokio::join!(agent.renew(), agent.renew());
    assert_eq!(
        (one.unwrap()["result"].clone(), other.unwrap()["result"].clone()),
        ("confirmed".into(), "confirmed".into())
    );
    assert_eq!(paid(&cluster), before + 2);
    cluster.nodes[0].agent.kill().await.unwrap();
    let agent = &cluster.nodes[0].agent;
    let run = || agent.run(&["renew"], SOON);
    let (a, b, c) = tokio::join!(run(), run(), run());
    let answers = [a.unwrap(), b.unwrap(), c.unwrap()];
    let done = answers.iter().filter(|answer| answer.code == Some(0)).count();
    assert!(done >= 1, "{answers:?}");
    assert!(answers.iter().all(|answer| answer.code == Some(0) || answer.stderr.contains(busy)), "{answers:?}");
    assert_eq!(paid(&cluster), before + 2 + done);
}

/// A user id that belongs to nobody on this machine.
pub(crate) const STRANGER: u32 = 64_901;

/// Gives a node to an unprivileged user, who then runs its agent. Copies the programs to a directory where that user
/// may run them. Returns `false` if the test isn't root and therefore can't become another user.
pub(crate) fn give_to_stranger(cluster: &mut Nodes) -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("not run: only root can run the agent as another user");
        return false;
    }
    let directory = cluster.directory().to_path_buf();
    let programs = directory.join("bin");
    std::fs::create_dir(&programs).unwrap();
    let server = programs.join("nats-server");
    std::fs::copy(AGENT, programs.join("agent")).unwrap();
    std::fs::copy(tools::nats_server(tools::NATS_SERVER).unwrap(), &server).unwrap();
    cluster.set("nats.server", &format!("{:?}", server.display().to_string())).unwrap();
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).unwrap();
    let node = &mut cluster.nodes[0];
    let config = nats_tls_agent::config::Config::load(node.agent.config()).unwrap();
    let own = |path: &Path| std::os::unix::fs::chown(path, Some(STRANGER), Some(STRANGER)).unwrap();
    std::fs::create_dir(cluster.cluster.ca_directory()).unwrap();
    own(&cluster.cluster.ca_directory());
    own(node.agent.config().parent().unwrap());
    own(config.control_socket.parent().unwrap());
    node.agent = harness::agent::Agent::new(
        programs.join("agent"),
        node.agent.config(),
        node.agent.config().with_extension("log"),
    );
    node.agent.set_launcher(as_user(STRANGER));
    true
}

/// The launcher that runs a program as an unprivileged user.
pub(crate) fn as_user(uid: u32) -> Vec<String> {
    ["setpriv".to_owned(), format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".into()].to_vec()
}

/// Starts the agent without nats-server, and waits until it has nothing left to do.
pub(crate) async fn idle(node: &mut Node) {
    node.agent.start().unwrap();
    node.committed().await.unwrap();
    status_with(node, |status| status["reasons"].as_array().is_some_and(|reasons| reasons.len() == 1)).await;
}

#[tokio::test]
async fn a_state_of_another_user_or_that_can_not_be_read_is_told_with_the_file_and_whom_to_ask() {
    let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    cluster.configure().unwrap();
    if !give_to_stranger(&mut cluster) {
        return;
    }
    let state = cluster.nodes[0].state_directory();
    // root owns the whole directory.
    std::fs::create_dir(&state).unwrap();
    for command in ["run", "renew"] {
        let answer = cluster.nodes[0].agent.run(&[command], SOON).await.unwrap();
        assert_eq!(answer.code, Some(1), "{answer:?}");
        let told = ["belongs to uid 0", "this is uid 64901", "run this as the directory's owner"];
        assert!(told.iter().all(|words| answer.stderr.contains(words)), "{answer:?}");
    }
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0);
    std::fs::remove_dir(&state).unwrap();

    // root owns a single file.
    let node = &mut cluster.nodes[0];
    idle(node).await;
    let key = node.newest_generation().unwrap().join("key.pem");
    for (file, lock) in [(key, false), (state.join("issuance.json"), false), (state.join("lock"), true)] {
        cluster.nodes[0].agent.kill().await.unwrap();
        let (before, config) = (paid(&cluster), std::fs::read(cluster.nodes[0].nats_config()).unwrap());
        std::os::unix::fs::chown(&file, Some(0), Some(0)).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let node = &mut cluster.nodes[0];
        let name = file.file_name().unwrap().to_str().unwrap();
        if lock {
            let answer = node.agent.run(&["run"], SOON).await.unwrap();
            assert!(answer.code == Some(1) && answer.stderr.contains("Permission denied"), "{answer:?}");
            assert!(answer.stderr.contains(&file.display().to_string()), "{answer:?}");
        } else {
            node.agent.start().unwrap();
            unhealthy(node, name).await;
            let said = unhealthy(node, "Permission denied").await["reasons"].to_string();
            assert!(said.contains(name), "{said}");
        }
        if name != "key.pem" {
            assert_eq!(paid(&cluster), before, "{name}");
            assert_eq!(std::fs::read(cluster.nodes[0].nats_config()).unwrap(), config, "{name}");
        }
        // The node recovers without further help once the user owns the file again.
        std::os::unix::fs::chown(&file, Some(STRANGER), Some(STRANGER)).unwrap();
        let node = &mut cluster.nodes[0];
        if lock {
            node.agent.start().unwrap();
        }
        status_with(node, |status| status["reasons"].as_array().is_some_and(|reasons| reasons.len() == 1)).await;
    }
}

#[tokio::test]
async fn a_key_or_a_state_directory_that_was_opened_to_all_is_a_warning() {
    let cluster = serving().await;
    let node = &cluster.nodes[0];
    let key = node.newest_generation().unwrap().join("key.pem");
    for (path, mode) in [(key, 0o644), (node.state_directory(), 0o777)] {
        let before = std::fs::metadata(&path).unwrap().permissions();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let warned = |status: &Value| status["warnings"].to_string().contains(&path.display().to_string());
        let status = status_with(node, warned).await;
        assert!(is_healthy(&status), "{status}");
        std::fs::set_permissions(&path, before).unwrap();
        status_with(node, |status| !warned(status)).await;
    }
}
