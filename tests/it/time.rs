//! The built agent on a machine whose wall clock jumps, and on a machine that sleeps. libfaketime replaces the wall
//! clock, but not the monotonic clock.
//!
//! nats-server and the clients keep the real time. A server's clock matters only when the server verifies a peer.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use harness::cluster::Node;
use harness::nodes::{Nodes, at};
use harness::process::tail;
use harness::{eventually, tools};
use nix::sys::signal::Signal;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;

use crate::AGENT;
use crate::rotation::{assert_nothing_lost, traffic, unhealthy};

/// The agent reads the wall clock at least every ten seconds.
const SOON: Duration = Duration::from_secs(40);
const DAY: Duration = Duration::from_hours(24);

/// A node whose agent has a settable clock.
struct Bench {
    nodes: Nodes,
    offset: PathBuf,
}

impl Bench {
    async fn start() -> Self {
        let mut nodes = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
        nodes.cluster.validity = "7d".into();
        nodes.configure().unwrap();
        let offset = nodes.directory().join("offset");
        std::fs::write(&offset, "+0").unwrap();
        let agent = &mut nodes.nodes[0].agent;
        for (name, value) in [
            ("LD_PRELOAD", libfaketime().to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", offset.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ] {
            agent.set_env(name, value);
        }
        nodes.boot().await.unwrap();
        Self { nodes, offset }
    }

    fn node(&self) -> &Node {
        &self.nodes.nodes[0]
    }

    /// Sets the agent's clock to the real time plus this offset, for example `+8d` or `-3h`.
    fn set_clock(&self, offset: &str) {
        let new = self.offset.with_extension("new");
        std::fs::write(&new, offset).unwrap();
        std::fs::rename(new, &self.offset).unwrap();
    }

    fn issued(&self) -> usize {
        std::fs::read_dir(self.nodes.cluster.ca_directory().join("issued")).unwrap().count()
    }

    /// Waits until the node is healthy and serves another leaf than `leaf`.
    async fn renewed_since(&self, leaf: &str) -> Value {
        eventually("the renewal", SOON, async || {
            let status = self.node().agent.status().await.map_err(|failure| failure.chain())?;
            let served = at(&status, "served.client.sha256");
            let is_well = status["state"] == "healthy" && served == at(&status, "leaf.sha256") && served != leaf;
            if is_well { Ok(status) } else { Err(status.to_string()) }
        })
        .await
        .unwrap_or_else(|failure| panic!("{failure}\n{}", self.node().agent.log_tail(20)))
    }

    /// Whether a client whose clock is this much ahead accepts the server's certificate.
    async fn accepts(&self, ahead: Duration) -> Result<(), String> {
        let ca = std::fs::read(self.nodes.cluster.ca_directory().join("ca.pem")).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&ca).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_details(provider, Arc::new(Ahead(ahead)))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut stream = TcpStream::connect(self.node().client()).await.unwrap();
        let mut greeting = String::new();
        BufReader::new(&mut stream).read_line(&mut greeting).await.unwrap();
        assert!(greeting.starts_with("INFO "), "{greeting}");
        let name = ServerName::IpAddress(std::net::IpAddr::from(self.node().address).into());
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect(name, stream).await.map(drop).map_err(|error| error.to_string())
    }
}

/// libfaketime's shared memory outlives a killed process. The drop therefore removes the files of this agent and of
/// every process that no longer exists.
impl Drop for Bench {
    fn drop(&mut self) {
        let own = self.node().agent.pid();
        for path in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten().map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let pid = name.strip_prefix("faketime_shm_").or_else(|| name.strip_prefix("sem.faketime_sem_"));
            let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
            if own == Some(pid) || !Path::new("/proc").join(pid.to_string()).exists() {
                drop(std::fs::remove_file(path));
            }
        }
    }
}

/// A client's clock, ahead of the real time.
#[derive(Debug)]
struct Ahead(Duration);

impl TimeProvider for Ahead {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) + self.0))
    }
}

/// The library in Debian's package `libfaketime`. Its path contains the machine's architecture.
pub(crate) fn libfaketime() -> PathBuf {
    let architectures = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let mut found = architectures.map(|directory| directory.join("faketime/libfaketimeMT.so.1"));
    let found = found.find(|library: &PathBuf| Path::is_file(library));
    found.unwrap_or_else(|| panic!("install Debian's package libfaketime, as `cargo xtask setup` does"))
}

#[tokio::test]
async fn a_step_over_the_certificates_end_has_it_renewed_within_seconds_and_clients_of_that_time_connect() {
    let bench = Bench::start().await;
    let before = bench.node().healthy(SOON).await.unwrap();
    bench.accepts(Duration::ZERO).await.unwrap();
    let refused = bench.accepts(8 * DAY).await.unwrap_err();
    assert!(refused.contains("xpired"), "{refused}");
    let issued = bench.issued();
    bench.set_clock("+8d");
    let after = bench.renewed_since(at(&before, "leaf.sha256")).await;
    bench.accepts(8 * DAY).await.unwrap();
    assert!(at(&after, "leaf.not_before") > at(&before, "leaf.not_after"), "{after}");
    // The CA removes expired certificates from its directory, so the count need not grow.
    assert!(bench.issued() <= issued + 1 && after["leaf"]["generation"] == 2, "{after}");
}

#[tokio::test]
async fn a_step_back_of_three_hours_is_told_and_tears_nothing_down() {
    let bench = Bench::start().await;
    let node = bench.node();
    let before = node.agent.renew().await.unwrap();
    let traffic = traffic(&bench.nodes, 500).await;
    let (committed, issued) = (std::fs::read(node.nats_config()).unwrap(), bench.issued());
    let reloads = || tail(&node.server_log(), usize::MAX).matches("Reloaded server").count();
    let reloads_before = reloads();
    bench.set_clock("-3h");
    let status = unhealthy(node, "the certificate is valid from").await;
    assert_eq!(status["state"], "degraded", "{status}");
    assert!(status["reasons"].to_string().contains("set this machine's clock"), "{status}");
    // The agent continues its passes every half second, and no pass changes anything. The first status with the reason
    // may still show the confirmation of a pass before the step, which is later by the clock.
    let confirmed = |status: &Value| at(status, "served.confirmed_at").to_owned();
    let mut seen = BTreeSet::from([confirmed(&status)]);
    eventually("further passes", SOON, async || {
        let status = node.agent.status().await.map_err(|failure| failure.chain())?;
        seen.insert(confirmed(&status));
        if seen.len() > 3 { Ok(()) } else { Err(status.to_string()) }
    })
    .await
    .unwrap();
    assert_eq!((std::fs::read(node.nats_config()).unwrap(), bench.issued()), (committed, issued));
    assert_eq!(reloads(), reloads_before);
    assert_nothing_lost(traffic).await;
    bench.set_clock("+0");
    let status = node.healthy(SOON).await.unwrap();
    assert_eq!(at(&status, "leaf.serial"), at(&before, "new.serial"));
    assert_eq!(bench.issued(), issued);
}

#[tokio::test]
async fn an_agent_that_slept_over_the_renewal_or_over_the_end_renews_once_when_it_wakes() {
    let bench = Bench::start().await;
    let mut status = bench.node().healthy(SOON).await.unwrap();
    // Six of the seven days pass first, and two weeks pass after that.
    for (generation, (offset, ahead)) in [(2, ("+6d", 6 * DAY)), (3, ("+20d", 20 * DAY))] {
        bench.node().agent.signal(Signal::SIGSTOP).unwrap();
        bench.set_clock(offset);
        bench.node().agent.signal(Signal::SIGCONT).unwrap();
        status = bench.renewed_since(at(&status, "leaf.sha256")).await;
        assert_eq!(status["leaf"]["generation"], generation, "{status}");
        bench.accepts(ahead).await.unwrap();
    }
}
