//! The daemon's notifications to systemd (sd_notify(3)), through a socket like systemd's.

use std::path::Path;
use std::time::Duration;

use harness::cluster::Node;
use harness::nodes::{Nodes, set};
use harness::{eventually, tools};
use nix::sys::signal::Signal;
use tokio::net::UnixDatagram;

use crate::AGENT;

const SOON: Duration = Duration::from_secs(20);
const WATCHDOG: Duration = Duration::from_secs(3);

/// The service manager's end of the socket.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn new(path: &Path) -> Self {
        Self { socket: UnixDatagram::bind(path).unwrap(), heard: Vec::new() }
    }

    /// Waits for a notification with this beginning, and returns it. Earlier notifications are in `heard`.
    async fn hears(&mut self, beginning: &str) -> String {
        let heard = tokio::time::timeout(SOON, async {
            loop {
                let mut buffer = [0; 4096];
                let length = self.socket.recv(&mut buffer).await.unwrap();
                let text = String::from_utf8_lossy(&buffer[..length]).trim().to_owned();
                if text.starts_with(beginning) {
                    return text;
                }
                self.heard.push(text);
            }
        });
        heard.await.unwrap_or_else(|_| panic!("no {beginning} within {SOON:?}, but {:?}", self.heard))
    }
}

fn under_systemd(cluster: &mut Nodes) -> (Manager, Node) {
    let path = cluster.directory().join("notify");
    let mut node = cluster.nodes.remove(0);
    node.agent = node.agent.env("NOTIFY_SOCKET", &path.display().to_string());
    node.agent = node.agent.env("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string());
    (Manager::new(&path), node)
}

#[tokio::test]
async fn systemd_hears_of_the_first_commit_the_state_each_reload_and_the_end_and_that_the_loop_is_alive() {
    let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    cluster.configure().unwrap();
    let (mut manager, mut node) = under_systemd(&mut cluster);
    // Nothing is committed while this template is refused.
    let template = cluster.directory().join("template");
    std::fs::write(&template, "no such setting {").unwrap();
    set(node.agent.config(), "nats.template", &format!("\"{}\"", template.display())).unwrap();
    node.agent.start().unwrap();
    let status = manager.hears("STATUS=").await;
    assert!(status.contains("failing; certificate until ") && status.contains("generation 1"), "{status}");
    assert!(!node.nats_config().exists());
    // The loop sleeps longer than the watchdog's time-out, and still pings in time.
    manager.hears("WATCHDOG=1").await;
    manager.hears("WATCHDOG=1").await;
    // A request to read the configuration again doesn't make the daemon ready, because the configuration is still
    // faulty.
    node.agent.signal(Signal::SIGHUP).unwrap();
    manager.hears("RELOADING=1").await;
    manager.hears("WATCHDOG=1").await;
    assert!(!manager.heard.iter().any(|heard| heard.contains("READY")), "{:?}", manager.heard);

    let text = std::fs::read_to_string(node.agent.config()).unwrap();
    let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("template = ")).collect();
    std::fs::write(node.agent.config(), without.join("\n")).unwrap();
    node.agent.signal(Signal::SIGHUP).unwrap();
    let reloading = manager.hears("RELOADING=1").await;
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.hears("READY=1").await;
    node.committed().await.unwrap();
    cluster.cluster.start_server(&mut node).await.unwrap();
    manager.hears("STATUS=healthy").await;
    node.agent.stop().await.unwrap();
    manager.hears("STOPPING=1").await;
}

#[tokio::test]
async fn after_a_reboot_the_agent_is_ready_although_its_issuer_and_peers_are_away() {
    let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    cluster.configure().unwrap();
    let (mut manager, mut node) = under_systemd(&mut cluster);
    node.agent.start().unwrap();
    manager.hears("READY=1").await;
    assert!(node.nats_config().is_file(), "ready before the first commit");
    node.agent.kill().await.unwrap();

    // Instance metadata can't be reached, so the agent doesn't know its identity.
    let text = std::fs::read_to_string(node.agent.config()).unwrap();
    let (_, rest) = text.split_once("[issuer]").unwrap();
    std::fs::write(node.agent.config(), format!("[issuer]{rest}")).unwrap();
    manager.heard.clear();
    node.agent.start().unwrap();
    manager.hears("READY=1").await;
    let status = manager.hears("STATUS=").await;
    assert!(status.contains("certificate until "), "{status}");
    eventually("the fault in the status", SOON, async || {
        let status = node.agent.status().await.map_err(|failure| failure.chain())?;
        let reasons = status["reasons"].to_string();
        if status["state"] == "degraded" && reasons.contains("metadata") { Ok(()) } else { Err(reasons) }
    })
    .await
    .unwrap();
}
