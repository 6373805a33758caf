//! The cost of an idle agent: what passes that change nothing read and start, and their CPU time, wake-ups and memory.
//! This command compares the figures of two builds in one run:
//! `NATS_TLS_AGENT_SOAK=1 IDLE_AGENTS=/tmp/before:/tmp/after cargo test -p nats-tls-agent --test it -- idle:: --nocapture`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::cluster::Node;
use harness::nodes::Nodes;
use harness::process::cpu_time;
use harness::strace::{self, Recording, Use};
use harness::{eventually, soak, tools};
use tokio::time::sleep;

use crate::{AGENT, metric};

/// The variable with the paths of the agents to measure, separated by colons.
const AGENTS: &str = "IDLE_AGENTS";
const SOON: Duration = Duration::from_mins(1);

#[tokio::test]
async fn an_idle_agent_commits_reloads_and_logs_nothing() {
    let given = std::env::var_os(AGENTS);
    let agents: Vec<PathBuf> =
        given.map_or_else(|| vec![AGENT.into()], |paths| std::env::split_paths(&paths).collect());
    let (warm, seconds, many) = if soak::is_long() { (20, 60, 10_000) } else { (2, 3, 100) };
    for users in [0, many] {
        for agent in &agents {
            let idle = Idle::start(agent, users).await;
            sleep(Duration::from_secs(warm)).await;
            let before = idle.look_at_rest().await;
            // The sleep is the measured time.
            sleep(Duration::from_secs(seconds)).await;
            let after = idle.look().await;
            assert_eq!(after.unchanged, before.unchanged, "{} with {users} users", agent.display());
            let of = format!("idle: {} with {users} users, {seconds} s", agent.display());
            soak::figure(&format!("{of}: CPU in ms"), after.cpu - before.cpu);
            soak::figure(&format!("{of}: wake-ups"), after.wakeups.saturating_sub(before.wakeups));
            soak::figure(&format!("{of}: PSS in KiB"), after.pss);
            soak::figure(&format!("{of}: anonymous memory in KiB"), after.anonymous);
        }
    }
}

#[tokio::test]
async fn an_idle_agent_reads_proves_and_tries_nothing() {
    strace::present().unwrap_or_else(|failure| panic!("{}", failure.chain()));
    let mut nodes = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    let path = |name: &str| nodes.directory().join(name);
    let [trace, include, environment, template] = ["trace", "include.conf", "environment", "template"].map(path);
    std::fs::write(&include, "max_payload: $PAYLOAD\n").unwrap();
    std::fs::write(&environment, "PAYLOAD=1MB\n").unwrap();
    std::fs::copy("../templates/nats-server.conf.tera", &template).unwrap();
    nodes.configure().unwrap();
    nodes.set("nats.jetstream", "false").unwrap();
    nodes.set("nats.include", &format!("[\"{}\"]", include.display())).unwrap();
    nodes.set("nats.environment_file", &format!("\"{}\"", environment.display())).unwrap();
    nodes.set("nats.template", &format!("\"{}\"", template.display())).unwrap();
    let node = &mut nodes.nodes[0];
    node.agent.set_launcher(strace::watching(&trace));
    node.agent.start().unwrap();
    // Only the daemon is traced.
    node.agent.set_launcher(Vec::new());
    node.committed().await.unwrap();
    nodes.cluster.start_server(&mut nodes.nodes[0]).await.unwrap();
    let node = &nodes.nodes[0];
    node.healthy(SOON).await.unwrap();
    let sources = [&include, &environment, &template].map(Clone::clone);
    let is_read = |used: &Use| matches!(used, Use::Opened(file) if sources.contains(file));
    let is_run = |used: &Use| matches!(used, Use::Executed(_));
    let uses = || -> Vec<Use> {
        let all = Recording::read(&trace).unwrap().uses();
        all.into_iter().filter(|used| is_read(used) || is_run(used)).collect()
    };
    // The trace shows every source and the proofs of the first start.
    passes(node, 2).await;
    let settled = uses();
    for source in &sources {
        assert!(settled.contains(&Use::Opened(source.clone())), "{settled:?}");
    }
    assert!(settled.iter().filter(|used| is_run(used)).count() > 1, "{settled:?}");
    passes(node, 5).await;
    // Every tenth round of discovery reads the template, to know whether the template needs the tags of the instance.
    let idle = uses().split_off(settled.len());
    let others: Vec<_> = idle.iter().filter(|used| **used != Use::Opened(template.clone())).collect();
    assert!(others.is_empty() && idle.len() <= 2, "an idle pass reads or runs something: {idle:?}");
    // The same trace still shows a change.
    std::fs::write(&include, "max_payload: $PAYLOAD\nmax_connections: 1000\n").unwrap();
    let seen = eventually("the new include", SOON, async || {
        let new = uses().split_off(settled.len());
        if new.iter().any(is_read) && new.iter().any(is_run) { Ok(()) } else { Err(format!("{new:?}")) }
    });
    seen.await.unwrap();
}

/// Waits until the daemon has ended this many more passes.
async fn passes(node: &Node, more: u64) {
    let count = async || metric(node.metrics(), "nats_tls_agent_pass_duration_seconds_count").await;
    let before = count().await.unwrap_or_default();
    let ended = eventually("more passes", SOON, async || match count().await {
        Some(now) if now >= before + more => Ok(()),
        now => Err(format!("{before} passes, and now {now:?}")),
    });
    ended.await.unwrap();
}

/// A healthy node with one pass a second and this number of users.
struct Idle {
    nodes: Nodes,
}

#[derive(Debug)]
struct Look {
    /// In ms.
    cpu: u64,
    /// The number of times that a running thread began to wait. Threads that have ended don't count.
    wakeups: u64,
    /// In KiB, with the agent's share of pages that other processes map too.
    pss: u64,
    /// In KiB. Pages of the binary don't count.
    anonymous: u64,
    /// The generation, nats-server's process, the time of its last load, and the agent's log.
    unchanged: (PathBuf, Option<u32>, String, String),
}

impl Idle {
    async fn start(agent: &Path, users: usize) -> Self {
        let mut nodes = Nodes::new(agent, tools::NATS_SERVER, 1).unwrap();
        nodes.configure().unwrap();
        nodes.set("discovery.interval", "\"1s\"").unwrap();
        nodes.set("nats.jetstream", "false").unwrap();
        if users > 0 {
            let entries = (0..users).map(|number| format!("{{ user: u{number}, password: \"p{number}\" }}\n"));
            let path = nodes.directory().join("users.conf");
            std::fs::write(&path, format!("authorization {{ users = [\n{}] }}\n", entries.collect::<String>()))
                .unwrap();
            nodes.set("nats.include", &format!("[\"{}\"]", path.display())).unwrap();
        }
        let node = &mut nodes.nodes[0];
        node.agent.start().unwrap();
        node.committed().await.unwrap();
        nodes.cluster.start_server(&mut nodes.nodes[0]).await.unwrap();
        nodes.nodes[0].healthy(SOON).await.unwrap();
        Self { nodes }
    }

    /// A look once the log is quiet. After a start the agent still logs what it sees first.
    async fn look_at_rest(&self) -> Look {
        let mut before = self.look().await;
        for _ in 0..60 {
            sleep(Duration::from_secs(2)).await;
            let after = self.look().await;
            if after.unchanged == before.unchanged {
                return after;
            }
            before = after;
        }
        panic!("the agent is never idle: {before:?}");
    }

    async fn look(&self) -> Look {
        let node = &self.nodes.nodes[0];
        let server = node.server.as_ref().unwrap();
        let pid = node.agent.pid().unwrap();
        let load = server.varz().await.unwrap()["config_load_time"].to_string();
        let memory = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let of = |name: &str| -> u64 {
            let lines = memory.lines().filter_map(|line| line.strip_prefix(name));
            lines.map(|size| size.trim_end_matches("kB").trim().parse::<u64>().unwrap()).sum()
        };
        Look {
            cpu: cpu_time(pid).unwrap(),
            wakeups: wakeups(pid),
            pss: of("Pss:"),
            anonymous: of("Anonymous:"),
            unchanged: (node.newest_generation().unwrap(), server.pid(), load, node.agent.log_tail(20)),
        }
    }
}

/// The field voluntary_ctxt_switches of proc_pid_status(5), over all threads.
fn wakeups(pid: u32) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = threads.filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("status")).ok());
    let switches = |status: &str| {
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<u64>().ok())
    };
    status.map(|status| switches(&status).unwrap()).sum()
}
