//! `agent doctor` before the first generation: doctor changes nothing, and looks at the nats-server that runs already.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::cluster::Node;
use harness::nats_server::{Launch, NatsServer};
use harness::nodes::Nodes;
use harness::tools;
use nats_tls_agent::config::Config;

use crate::AGENT;

const SOON: Duration = Duration::from_secs(30);

/// The exit code, and the grade and the finding of each check by the check's name.
pub(crate) type Diagnosis = (Option<i32>, BTreeMap<String, (String, String)>);

pub(crate) async fn diagnose(node: &Node) -> Diagnosis {
    let answer = node.agent.run(&["doctor", "--json"], SOON).await.unwrap();
    let json = answer.json().unwrap();
    let text = |check: &serde_json::Value, key: &str| check[key].as_str().unwrap().to_owned();
    let checks = json["checks"].as_array().unwrap().iter();
    let checks = checks.map(|check| (text(check, "name"), (text(check, "verdict"), text(check, "found"))));
    (answer.code, checks.collect())
}

/// Fails if a check has another grade, or if its finding lacks one of these words.
pub(crate) fn assert_check(checks: &BTreeMap<String, (String, String)>, name: &str, grade: &str, words: &[&str]) {
    let (graded, found) = checks.get(name).unwrap_or_else(|| panic!("no {name}: {checks:?}"));
    assert_eq!(graded, grade, "{name}: {found}");
    for word in words {
        assert!(found.contains(word), "{name}: no {word:?} in {found:?}");
    }
}

/// Everything below a directory: names, modes, times of the last change, and content.
pub(crate) fn listing(directory: &Path) -> BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let metadata = std::fs::symlink_metadata(directory).unwrap();
    all.insert(directory.to_owned(), (metadata.mode(), metadata.ctime(), metadata.ctime_nsec(), Vec::new()));
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            all.extend(listing(&path));
        } else {
            let content = std::fs::read(&path).unwrap_or_default();
            all.insert(path, (metadata.mode(), metadata.ctime(), metadata.ctime_nsec(), content));
        }
    }
    all
}

#[tokio::test]
async fn doctor_changes_nothing_where_nothing_is_made_yet() {
    let cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    cluster.configure().unwrap();
    let node = &cluster.nodes[0];
    let run = Config::load(node.agent.config()).unwrap().control_socket.parent().unwrap().to_owned();
    for is_made in [false, true] {
        if is_made {
            std::fs::create_dir(node.state_directory()).unwrap();
            std::fs::create_dir(cluster.cluster.ca_directory()).unwrap();
        }
        let list = || (listing(cluster.directory()), listing(&run));
        let before = list();
        let (code, checks) = diagnose(node).await;
        assert_eq!(list(), before, "directories made before: {is_made}");
        assert_eq!(code, Some(0), "{checks:?}");
        for name in ["issuer", "trust", "generation"] {
            assert_check(&checks, name, "warning", &["none yet", "agent run"]);
        }
        assert_check(&checks, "process", "warning", &["isn't running", "there is no", "-c"]);
        assert_check(&checks, "client port", "warning", &[&node.client().to_string(), "nats.listen"]);
        assert_check(&checks, "route port", "warning", &[&node.route().to_string(), "nats.cluster_listen"]);
    }
}

/// A nats-server without TLS on the ports of the node, started by hand with `-c config`.
pub(crate) async fn start_by_hand(node: &Node, config: &Path) -> NatsServer {
    let text = format!(
        "listen: \"{}\"\nhttp: \"{}\"\npid_file: \"{}\"\ncluster {{ name: loopback, listen: \"{}\" }}\n",
        node.client(),
        node.monitor(),
        node.pid_file().display(),
        node.route()
    );
    std::fs::write(config, text).unwrap();
    let launch = Launch {
        binary: tools::nats_server(tools::NATS_SERVER).unwrap(),
        config: config.to_owned(),
        pid_file: node.pid_file(),
        client: node.client(),
        monitor: node.monitor(),
        log: node.server_log(),
        arguments: Vec::new(),
    };
    NatsServer::start(launch).await.unwrap()
}

#[tokio::test]
async fn doctor_names_a_server_that_was_started_by_hand_and_what_its_ports_show() {
    let cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    cluster.configure().unwrap();
    let node = &cluster.nodes[0];
    let expected = format!("-c {}", node.nats_config().display());
    let assert_plain = |checks: &BTreeMap<String, (String, String)>| {
        for (name, address) in [("client port", node.client()), ("route port", node.route())] {
            let words = [&*format!("{address} speaks NATS without TLS"), "agent run"];
            assert_check(checks, name, "warning", &words);
        }
    };

    let server = start_by_hand(node, &cluster.directory().join("other.conf")).await;
    let pid = server.pid().unwrap();
    let (code, checks) = diagnose(node).await;
    assert_eq!(code, Some(1), "{checks:?}");
    assert_check(&checks, "process", "failed", &[&format!("names pid {pid}"), "doesn't run with", &expected]);
    assert_plain(&checks);
    server.kill().await.unwrap();

    let server = start_by_hand(node, &node.nats_config()).await;
    let (code, checks) = diagnose(node).await;
    assert_eq!(code, Some(0), "{checks:?}");
    assert_check(&checks, "process", "ok", &[&format!("pid {}", server.pid().unwrap()), &expected]);
    assert_plain(&checks);

    std::fs::remove_file(node.pid_file()).unwrap();
    let (code, checks) = diagnose(node).await;
    assert_eq!(code, Some(1), "{checks:?}");
    assert_check(&checks, "process", "failed", &["there is no", "and yet", "speaks NATS without TLS", "nats.pid_file"]);
    assert_plain(&checks);
}

/// The route port asks for a client certificate, and doctor has none to present.
#[tokio::test]
async fn doctor_sees_the_leaf_of_a_server_without_a_generation_of_its_own() {
    let mut cluster = Nodes::start(AGENT, tools::NATS_SERVER, 1).await.unwrap();
    let status = cluster.nodes[0].healthy(SOON).await.unwrap();
    cluster.nodes[0].agent.stop().await.unwrap();
    let node = &cluster.nodes[0];
    let generations = node.state_directory().join("generations");
    std::fs::rename(&generations, generations.with_extension("away")).unwrap();
    let (code, checks) = diagnose(node).await;
    assert_eq!(code, Some(0), "{checks:?}");
    assert_check(&checks, "process", "ok", &["pid"]);
    let leaf = status["leaf"]["sha256"].as_str().unwrap();
    for name in ["client port", "route port"] {
        assert_check(&checks, name, "warning", &[leaf, "not of this agent"]);
    }
}
