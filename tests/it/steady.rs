//! An agent and its nats-server need no more memory, descriptors and files after many rotations, as over years.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use aws_double::Account;
use aws_double::http::AwsDouble;
use aws_double::pca::CaSettings;
use aws_double::secrets::Content;
use harness::cluster::{Cluster, Node};
use harness::imds::{ImdsStub, InstanceFacts};
use harness::nodes::set;
use harness::{eventually, soak, tools};
use nats_tls_agent::config::Config;
use nats_tls_agent::daemon::control::ask;
use nats_tls_agent::daemon::protocol::{Answer, RenewalResult, Request};

use crate::AGENT;

/// The number of rotations after which allocator, caches and connection pools no longer grow.
const WARM: usize = 20;
/// The allowed growth of an agent's memory in the long form, in KiB. The limit covers pages of the allocator, but no
/// growth with each rotation. The measured growth over 1,000 rotations is 136 KiB. A leak of 2 KiB per rotation exceeds
/// the limit.
const SLACK_OF_MANY: u64 = 1024;
/// The allowed growth of an agent's memory in the short form, in KiB. The growth consists almost entirely of the
/// allocator's pages.
const SLACK_OF_FEW: u64 = 4096;
/// The number of additional connections that the SDK's pools may keep. The pools grow if calls of two services
/// coincide.
const POOLED: usize = 4;
const SOON: Duration = Duration::from_secs(20);
const REGION: &str = "eu-west-1";
const INSTANCE: &str = "i-0123456789abcdef0";

#[tokio::test]
async fn rotations_leave_the_agents_memory_and_descriptors_and_the_files_on_disk_as_they_were() {
    let (rotations, slack) = if soak::is_long() { (1000, SLACK_OF_MANY) } else { (60, SLACK_OF_FEW) };
    let bench = Bench::start().await;
    let node = &bench.node;
    let socket = Config::load(node.agent.config()).unwrap().control_socket;

    rotate(&socket, WARM).await;
    let (before, server_before) = (Footprint::of(node), descriptors(server(node)));
    rotate(&socket, rotations - WARM).await;
    // A reload leaves descriptors open for a moment, for example the connections that confirmed the reload.
    let after = eventually("as many descriptors as before", SOON, async || {
        let (now, of_server) = (Footprint::of(node), descriptors(server(node)));
        if now.descriptors <= before.descriptors + POOLED && of_server <= server_before {
            Ok(now)
        } else {
            Err(format!("{now:?} and {of_server} of nats-server, but {before:?} and {server_before} before"))
        }
    });
    let after = after.await.unwrap();

    soak::figure("steady: rotations", rotations);
    soak::figure("steady: agent's RSS in KiB, at the start and at the end", format!("{} {}", before.rss, after.rss));
    let open = format!("{} {}", before.descriptors, after.descriptors);
    soak::figure("steady: agent's descriptors, at the start and at the end", open);
    soak::figure(
        "steady: nats-server's descriptors, at the start and at the end",
        format!("{server_before} {}", descriptors(server(node))),
    );
    assert!(after.rss < before.rss + slack, "{after:?} after {before:?}");
    assert_eq!(after.files, before.files, "files in the state directory");
    node.healthy(SOON).await.unwrap();
    assert!(bench.double.certificates() >= rotations, "{}", bench.double.certificates());
}

/// A node in a group of one, with a double of every AWS service. The SDK's part of a rotation must leave nothing behind
/// either.
struct Bench {
    node: Node,
    double: AwsDouble,
    _imds: ImdsStub,
    _cluster: Cluster,
    // The directory is dropped last, because the processes above write to it.
    _directory: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let server = tools::nats_server(tools::NATS_SERVER).unwrap();
        let cluster = Cluster::new(directory.path(), Path::new(AGENT), &server).unwrap();
        let mut node = cluster.node(1).unwrap();
        let address = IpAddr::from(node.address);
        let double = AwsDouble::start(node.gateway(), Account::new(REGION)).await.unwrap();
        let ca = double.account(|aws, now| {
            let ca = aws.pca.create_authority(CaSettings::root("steady"), now).unwrap();
            let pem = aws.pca.authority(&ca).unwrap().pem().to_owned();
            aws.secrets.put("nats-trust", Content::Text(pem), now).unwrap();
            aws.fleet.launch("nats", INSTANCE, address, "InService", now);
            ca
        });
        let imds = ImdsStub::start(InstanceFacts::new(INSTANCE, REGION, address)).await.unwrap();
        node.agent.set_env("AWS_ENDPOINT_URL", &double.endpoint());
        node.agent.set_metadata(&imds.endpoint());
        // With a longer validity, the cap would stop a thousand rotations in a day.
        let text = format!(
            "[issuer]\nca_arn = \"{ca}\"\nvalidity = \"2m\"\n[trust]\nsecret_id = \"nats-trust\"\n\
             [discovery]\naddresses = \"ec2\"\ninterval = \"200ms\"\n"
        );
        cluster.configure_with(&node, &text).unwrap();
        set(node.agent.config(), "nats.jetstream", "false").unwrap();
        node.agent.start().unwrap();
        node.committed().await.unwrap();
        cluster.start_server(&mut node).await.unwrap();
        node.healthy(SOON).await.unwrap();
        Self { node, double, _imds: imds, _cluster: cluster, _directory: directory }
    }
}

async fn rotate(socket: &Path, times: usize) {
    for _rotation in 0..times {
        let answer =
            ask(socket, &Request::Renew { allow_loss: Vec::new(), distrust: Vec::new(), now: false }, |_step| {})
                .await
                .unwrap();
        assert!(
            matches!(&answer, Answer::Renewed(renewed) if renewed.result == RenewalResult::Confirmed),
            "{answer:?}"
        );
    }
}

#[derive(Debug)]
struct Footprint {
    /// Resident memory in KiB.
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
