//! `agent probe`: requests between all pairs of real nodes, with a user, client certificates, and a node that is gone.

#![allow(clippy::print_stdout, reason = "the test's output shows the table")]

use std::time::Duration;

use harness::agent::Answer;
use harness::cluster::Node;
use harness::nodes::Nodes;
use harness::tools;
use serde_json::Value;

use crate::AGENT;

/// A run takes seconds, and a slow machine takes longer.
const WITHIN: Duration = Duration::from_mins(1);

async fn probe(node: &Node, arguments: &[&str]) -> Answer {
    node.agent.run(&[&["probe"][..], arguments].concat(), WITHIN).await.unwrap()
}

/// The pairs, by their names: the number of replies, and why some are missing.
fn pairs(report: &Value) -> Vec<(String, String, u64, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pairs = report["pairs"].as_array().unwrap().iter();
    pairs
        .map(|pair| (text(&pair["from"]), text(&pair["to"]), pair["replies"].as_u64().unwrap(), text(&pair["error"])))
        .collect()
}

#[tokio::test]
async fn requests_between_all_nodes_are_measured_and_a_node_that_is_gone_loses_its_own() {
    let mut nodes = Nodes::new(AGENT, tools::NATS_SERVER, 5).unwrap();
    nodes.cluster.client_mtls = true;
    nodes.configure().unwrap();
    nodes.set("nats.jetstream", "false").unwrap();
    let [include, password] = ["users.conf", "password"].map(|name| nodes.directory().join(name));
    let user = "user: probe, password: s3cret, permissions: { publish: \"load.>\", subscribe: \"load.>\" }";
    std::fs::write(&include, format!("authorization {{ users: [ {{ {user} }} ] }}\n")).unwrap();
    std::fs::write(&password, "s3cret\n").unwrap();
    nodes.set("nats.include", &format!("[\"{}\"]", include.display())).unwrap();
    nodes.boot().await.unwrap();
    let password = password.display().to_string();
    let user = ["--user", "probe", "--password-file", &password];
    let as_user = [&user[..], &["--prefix", "load.nodes"]].concat();
    let all = ["n1", "n2", "n3", "n4", "n5"];

    // Every pair in both directions, each reply counted once.
    let answer = probe(
        &nodes.nodes[0],
        &[&as_user[..], &["--json", "--requests", "50", "--rate", "2000", "--timeout", "1m"]].concat(),
    )
    .await;
    let report = answer.json().unwrap();
    assert_eq!((answer.code, &report["ok"]), (Some(0), &true.into()), "{report}");
    let each = all.iter().flat_map(|from| all.iter().map(move |to| (from, to))).filter(|(from, to)| from != to);
    let expected: Vec<_> = each.map(|(from, to)| ((*from).into(), (*to).into(), 50, String::new())).collect();
    assert_eq!(pairs(&report), expected);
    assert_eq!(
        (&report["requests"], &report["replies"], &report["success_rate"]),
        (&1000.into(), &1000.into(), &1.0.into())
    );
    // 1,000 requests at 2,000 a second, the last of them due after 499 ms.
    assert!(report["seconds"].as_f64().unwrap() > 0.45, "{report}");
    for node in report["nodes"].as_array().unwrap() {
        assert_eq!(node["replies"], 400, "{node}");
        assert!(node["messages_per_second"].as_f64().unwrap() > 0.0, "{node}");
    }
    for pair in report["pairs"].as_array().unwrap() {
        let times = ["min_ms", "p50_ms", "p99_ms", "max_ms"].map(|name| pair["latency"][name].as_f64().unwrap());
        assert!(times[0] > 0.0 && times.is_sorted(), "{pair}");
    }

    // A limit that no pair can keep, and a table without colours for a pipe.
    let answer = probe(&nodes.nodes[0], &[&as_user[..], &["--max-p99", "1us"]].concat()).await;
    assert_eq!(answer.code, Some(1), "{}", answer.stdout);
    assert!(answer.stdout.contains("pairs with a p99 above 0.00 ms: 20") && !answer.stdout.contains('\u{1b}'));
    assert_eq!(answer.stderr, "");
    println!("{}", answer.stdout.replace("  p99 too high", ""));

    // The words of nats-server tell who lacks a user or a permission.
    let answer = probe(&nodes.nodes[0], &["--json"]).await;
    assert_eq!(answer.code, Some(1));
    assert!(answer.stdout.contains("nats-server refuses this client"), "{}", answer.stdout);
    let named = nodes.nodes[..2].iter().flat_map(|node| ["--server".to_owned(), node.client().to_string()]);
    let named: Vec<_> = named.collect();
    let named: Vec<_> = named.iter().map(String::as_str).chain(user).collect();
    let answer = probe(&nodes.nodes[0], &named).await;
    assert_eq!(answer.code, Some(1));
    assert!(answer.stdout.contains("nats-server says: Permissions Violation for Publish"), "{}", answer.stdout);

    // A node that is gone loses the requests of its pairs, and no others. The daemon isn't needed.
    nodes.nodes[2].server.take().unwrap().kill().await.unwrap();
    nodes.nodes[0].agent.stop().await.unwrap();
    let answer =
        probe(&nodes.nodes[0], &[&as_user[..], &["--json", "--requests", "20", "--timeout", "1m"]].concat()).await;
    let report = answer.json().unwrap();
    assert_eq!((answer.code, &report["ok"]), (Some(1), &false.into()), "{report}");
    let (well, lost): (Vec<_>, Vec<_>) = pairs(&report).into_iter().partition(|(.., why)| why.is_empty());
    assert_eq!(well.iter().map(|(.., replies, _)| *replies).collect::<Vec<_>>(), [20; 12], "{report}");
    assert_eq!(lost.len(), 8, "{report}");
    assert!(lost.iter().all(|(.., replies, why)| *replies == 0 && why.contains("no connection to")), "{report}");
    assert_eq!((&report["requests"], &report["replies"]), (&400.into(), &240.into()));

    // Wrong usage ends with 2, and no argument takes a password.
    let missing = nodes.directory().join("missing").display().to_string();
    let many = "--server a:1 --server b:1 --server c:1 --server d:1 --requests 1000 --concurrency 1000";
    let large = many.replace("--requests 1000 --concurrency 1000", "--concurrency 100 --size 1048576");
    let wrong = [many.split(' ').collect(), large.split(' ').collect(), vec!["--creds", &missing]];
    for wrong in wrong.into_iter().chain([vec!["--password", "s3cret"]]) {
        let answer = probe(&nodes.nodes[0], &wrong).await;
        assert_eq!(answer.code, Some(2), "{wrong:?}: {} {}", answer.stdout, answer.stderr);
    }
}
