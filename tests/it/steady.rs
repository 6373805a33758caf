//! What years add up to: memory, descriptors and files of an agent and its nats-server after many rotations.

use std::path::Path;
use std::time::Duration;

use harness::cluster::Node;
use harness::nodes::Nodes;
use harness::{eventually, soak, tools};
use nats_tls_agent::config::Config;
use nats_tls_agent::control::{Answer, Request, ask};

use crate::AGENT;

/// Until allocator, caches and connection pools have what they keep.
const WARM: usize = 20;
/// What an agent's memory may differ by, in KiB: the allocator's pages, not a rotation's.
const SLACK: u64 = 4096;
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn rotations_leave_the_agents_memory_and_descriptors_and_the_files_on_disk_as_they_were() {
    let rotations = if soak::is_long() { 1000 } else { 60 };
    let cluster = Nodes::start(AGENT, tools::NATS_SERVER, 1).await.unwrap();
    let node = &cluster.nodes[0];
    let socket = Config::load(node.agent.config()).unwrap().control_socket;

    rotate(&socket, WARM).await;
    let (before, server_before) = (Footprint::of(node), descriptors(server(node)));
    rotate(&socket, rotations - WARM).await;
    // What a reload leaves open for a moment, as the connections that it was confirmed through.
    let after = eventually("as many descriptors as before", SOON, async || {
        let (now, of_server) = (Footprint::of(node), descriptors(server(node)));
        if now.descriptors == before.descriptors && of_server == server_before {
            Ok(now)
        } else {
            Err(format!("{now:?} and {of_server} of nats-server in place of {before:?} and {server_before}"))
        }
    });
    let after = after.await.unwrap();

    soak::figure("steady: rotations", rotations);
    soak::figure("steady: agent's RSS in KiB, at the start and at the end", format!("{} {}", before.rss, after.rss));
    let open = format!("{} {}", before.descriptors, after.descriptors);
    soak::figure("steady: agent's descriptors, at the start and at the end", open);
    soak::figure(
        "steady: nats-server's descriptors, at the start and at the end",
        format!("{server_before} {server_before}"),
    );
    assert!(after.rss < before.rss + SLACK, "{after:?} after {before:?}");
    assert_eq!(after.files, before.files, "files in the state directory");
    node.healthy(SOON).await.unwrap();
}

async fn rotate(socket: &Path, times: usize) {
    for _rotation in 0..times {
        let answer = ask(socket, &Request::Renew { allow_loss: Vec::new() }, |_step| {}).await.unwrap();
        assert!(matches!(&answer, Answer::Renewed(renewed) if renewed.result == "confirmed"), "{answer:?}");
    }
}

#[derive(Debug)]
struct Footprint {
    /// KiB.
    rss: u64,
    descriptors: usize,
    files: usize,
}

impl Footprint {
    fn of(node: &Node) -> Self {
        let pid = node.agent.pid().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let rss = line.trim_end_matches("kB").trim().parse().unwrap();
        Self { rss, descriptors: descriptors(pid), files: files(&node.state_directory()) }
    }
}

fn server(node: &Node) -> u32 {
    node.server.as_ref().unwrap().pid().unwrap()
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn files(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}
