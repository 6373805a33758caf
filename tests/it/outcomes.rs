//! The result of a renewal while nats-server is full, throttled, recovering, frozen, dying or refusing. Each case runs with
//! and without the system connection. The long form runs every version.
//!
//! The agent buys one certificate, and nats-server serves the certificate in the end.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use harness::cluster::Node;
use harness::nodes::{Nodes, at};
use harness::process::{Process, tail};
use harness::{eventually, soak, tools};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::Instant;

use crate::AGENT;
use crate::rotation::status_with;
use crate::slow_reload;
use crate::system::connected;

const SOON: Duration = Duration::from_mins(1);
/// The limit until the new certificate is served.
const HEALED_WITHIN: Duration = Duration::from_mins(3);

/// What nats-server does while the agent renews.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Full,
    Throttled,
    /// JetStream recovers, so nats-server takes no client.
    Recovers,
    Frozen,
    /// nats-server ends between the commit and the reload.
    DiesBeforeReload,
    /// nats-server ends while it reloads. Clients with bcrypt passwords make the reload long.
    DiesInReload,
    /// An argument beside `-c` makes nats-server refuse reloads.
    Refuses,
}

const CASES: [Case; 7] = [
    Case::Full,
    Case::Throttled,
    Case::Recovers,
    Case::Frozen,
    Case::DiesBeforeReload,
    Case::DiesInReload,
    Case::Refuses,
];

/// A row of the table.
struct Row {
    /// The result of `agent renew`.
    outcome: String,
    took: Duration,
    rollbacks: usize,
    /// The state right after the renewal, and the state of nats-server.
    state: String,
    /// The time from the start of the renewal to the new leaf.
    served: Duration,
}

impl Case {
    fn settings(self) -> String {
        match self {
            Self::Full => "\n[nats.settings]\nmax_connections = 3\n".into(),
            Self::Throttled => "\n[nats.settings.tls]\nconnection_rate_limit = 1\n".into(),
            Self::DiesInReload => slow_reload::settings(),
            _ => String::new(),
        }
    }

    /// Makes the node, and brings nats-server into the case.
    async fn node(self, version: &str, system: &str) -> (Nodes, Vec<Client>) {
        let mut nodes = Nodes::new(AGENT, version, 1).unwrap();
        nodes.configure().unwrap();
        nodes.set("nats.system", &format!("\"{system}\"")).unwrap();
        if self != Self::Recovers {
            nodes.set("nats.jetstream", "false").unwrap();
        }
        nodes.set("renewal.retry_min", "\"1s\"").unwrap();
        nodes.set("renewal.retry_max", "\"5s\"").unwrap();
        let config = nodes.nodes[0].agent.config().to_owned();
        std::fs::write(&config, std::fs::read_to_string(&config).unwrap() + &self.settings()).unwrap();
        if self == Self::Refuses {
            nodes.nodes[0].server_arguments = vec!["--name".into(), "over".into()];
            nodes.nodes[0].agent.start().unwrap();
            nodes.nodes[0].committed().await.unwrap();
            nodes.cluster.start_server(&mut nodes.nodes[0]).await.unwrap();
            let is_seen = |status: &Value| status["reasons"].to_string().contains("arguments_refuse_reloads");
            status_with(&nodes.nodes[0], is_seen).await;
        } else {
            nodes.boot().await.unwrap();
        }
        let mut clients = Vec::new();
        if matches!(self, Self::Full | Self::DiesInReload) && system == "auto" {
            connected(&nodes.nodes[0]).await;
        }
        match self {
            Self::Full => {
                while let Ok(client) = connect(&nodes.nodes[0]).await {
                    clients.push(client);
                }
            }
            Self::DiesInReload => clients = slow_reload::clients(&nodes, 30).await.0,
            _ => {}
        }
        (nodes, clients)
    }

    async fn run(self, version: &str, system: &str) -> Row {
        let (mut nodes, clients) = self.node(version, system).await;
        let issued = nodes.cluster.ca_directory().join("issued");
        let paid = || std::fs::read_dir(&issued).unwrap().count();
        let before = at(&nodes.nodes[0].agent.status().await.unwrap(), "leaf.sha256").to_owned();
        let committed = std::fs::read_to_string(nodes.nodes[0].nats_config()).unwrap();
        let (begun, mut recovery) = (Instant::now(), None);
        match self {
            Self::Recovers => {
                nodes.nodes[0].server.take().unwrap().kill().await.unwrap();
                recovery = Some(Recovery::begin(&nodes.nodes[0], version));
                status_with(&nodes.nodes[0], |status| status["nats"]["state"] == "starting").await;
            }
            // A server that is stopped loads nothing before it dies.
            Self::Frozen | Self::DiesBeforeReload => {
                nodes.nodes[0].server.as_ref().unwrap().signal(Signal::SIGSTOP).unwrap();
            }
            _ => {}
        }
        let agent = &nodes.nodes[0].agent;
        let renew = agent.run(&["renew", "--json"], HEALED_WITHIN);
        let meanwhile = async {
            let server = || nodes.nodes[0].server.as_ref().unwrap();
            match self {
                Self::DiesBeforeReload => {
                    eventually("the commit", SOON, async || {
                        let now = std::fs::read_to_string(nodes.nodes[0].nats_config()).unwrap();
                        if now == committed { Err("the previous text".to_owned()) } else { Ok(()) }
                    })
                    .await
                    .unwrap();
                }
                Self::DiesInReload => slow_reload::computes(server()).await,
                _ => return,
            }
            server().signal(Signal::SIGKILL).unwrap();
        };
        let (answer, ()) = tokio::join!(renew, meanwhile);
        let (answer, took) = (answer.unwrap(), begun.elapsed());
        let told = answer.json().unwrap();
        let code = told["error"]["code"].as_str().or(told["code"].as_str()).unwrap_or_default();
        if self == Self::DiesInReload {
            assert_eq!(answer.code, Some(1), "{answer:?}");
            assert!(answer.stdout.contains("ended when it was told to reload"), "{answer:?}");
        }
        let outcome = format!("{} {code}", told["result"].as_str().unwrap_or_default()).trim().to_owned();
        let status = agent.status().await.unwrap();
        let state = format!("{}, {}", at(&status, "state"), status["nats"]["state"].as_str().unwrap_or("absent"));
        self.end(&mut nodes, recovery.as_mut(), begun).await;
        let node = &nodes.nodes[0];
        let what = format!("{self:?} {version} {system}: the new leaf");
        let served = eventually(&what, HEALED_WITHIN, async || {
            let status = node.agent.status().await.map_err(|failure| failure.chain())?;
            let leaf = at(&status, "leaf.sha256");
            if status["state"] == "healthy" && at(&status, "served.route.sha256") == leaf && leaf != before {
                Ok(begun.elapsed())
            } else {
                Err(format!("{} {}\n{}", status["state"], status["reasons"], node.agent.log_tail(20)))
            }
        });
        let served = served.await.unwrap();
        if self == Self::DiesInReload {
            let status = node.healthy(HEALED_WITHIN).await.unwrap();
            assert_eq!(at(&status, "served.client.sha256"), at(&status, "leaf.sha256"), "{status}");
        }
        assert_eq!(paid(), 2, "{self:?} {version} {system}: {}", node.agent.log_tail(40));
        let rollbacks = node.agent.log_tail(usize::MAX).matches("rolled back: ").count();
        drop(clients);
        Row { outcome, took, rollbacks, state, served }
    }

    /// Ends what keeps nats-server from the new certificate.
    async fn end(self, nodes: &mut Nodes, recovery: Option<&mut Recovery>, begun: Instant) {
        let Nodes { nodes: all, cluster, .. } = nodes;
        let node = &mut all[0];
        match self {
            Self::Recovers | Self::Frozen => {
                // The case lasts this long.
                tokio::time::sleep_until(begun + Duration::from_secs(if soak::is_long() { 60 } else { 20 })).await;
                match recovery {
                    Some(recovery) => recovery.end(),
                    None => node.server.as_ref().unwrap().signal(Signal::SIGCONT).unwrap(),
                }
            }
            Self::DiesBeforeReload | Self::DiesInReload => {
                node.server.take().unwrap().kill().await.unwrap();
                cluster.start_server(node).await.unwrap();
            }
            Self::Refuses => {
                node.server.take().unwrap().stop().await.unwrap();
                node.server_arguments.clear();
                cluster.start_server(node).await.unwrap();
            }
            Self::Full | Self::Throttled => {}
        }
    }

    fn check(self, row: &Row, of: &str) {
        let Row { outcome, rollbacks, state, .. } = row;
        let told = format!("{of}: {outcome}, {state}, {rollbacks} roll-backs");
        match self {
            Self::Full => assert_eq!((&**outcome, *rollbacks, &**state), ("confirmed", 0, "healthy, full"), "{told}"),
            Self::Throttled => {
                assert!(outcome == "confirmed" && *rollbacks == 0 && state.starts_with("healthy"), "{told}");
            }
            Self::Recovers => assert!(*rollbacks == 0 && state.ends_with("starting"), "{told}"),
            Self::Frozen => {
                assert!(*rollbacks == 0 && outcome != "confirmed" && !state.starts_with("healthy"), "{told}");
            }
            Self::DiesBeforeReload => {
                assert!(*rollbacks <= 1 && outcome != "confirmed" && state.ends_with("absent"), "{told}");
            }
            Self::DiesInReload => {
                let expected = ("failed reload_rolled_back", 1, "degraded, absent");
                assert_eq!((&**outcome, *rollbacks, &**state), expected, "{told}");
            }
            Self::Refuses => {
                assert!(*rollbacks > 0 && outcome != "confirmed" && state.starts_with("degraded"), "{told}");
            }
        }
    }
}

/// A nats-server that waits in its recovery, because `meta.inf` of a stream is a FIFO.
struct Recovery {
    _server: Process,
    fifo: PathBuf,
    log: PathBuf,
}

impl Recovery {
    fn begin(node: &Node, version: &str) -> Self {
        let store = node.nats_config().with_file_name("jetstream");
        let stream = store.join("jetstream/$G/streams/SLOW");
        std::fs::create_dir_all(&stream).unwrap();
        let fifo = stream.join("meta.inf");
        mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let mut command = Command::new(tools::nats_server(version).unwrap());
        command.arg("-c").arg(node.nats_config());
        Self {
            _server: Process::spawn("nats-server", &mut command, &node.server_log()).unwrap(),
            fifo,
            log: node.server_log(),
        }
    }

    fn end(&self) {
        // A blocking open would hang if nats-server no longer reads.
        let written = OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&self.fifo);
        let log = tail(&self.log, 20);
        written.unwrap_or_else(|error| panic!("{error}: {log}"));
    }
}

async fn connect(node: &Node) -> Result<Client, async_nats::ConnectError> {
    let ca = node.endpoint(false).unwrap().tls.unwrap().ca;
    let options = ConnectOptions::new().require_tls(true).add_root_certificates(ca);
    options.connection_timeout(Duration::from_secs(10)).connect(format!("tls://{}", node.client())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_nats_server_does_one_certificate_is_paid_for_and_comes_to_be_served() {
    let versions = if soak::is_long() { &tools::NATS_SERVER_VERSIONS[..] } else { &[tools::NATS_SERVER] };
    for version in versions {
        let cases = ["auto", "off"].into_iter().flat_map(|system| CASES.map(|case| (case, system)));
        let rows = cases.map(|(case, system)| async move { (case, system, case.run(version, system).await) });
        for (case, system, row) in harness::join_all(rows).await {
            let of = format!("{case:?}, nats-server {version}, system {system}");
            let Row { outcome, took, rollbacks, state, served } = &row;
            let figure = format!(
                "{outcome} after {:.1} s, {rollbacks} roll-backs, {state}; served after {:.1} s",
                took.as_secs_f64(),
                served.as_secs_f64()
            );
            soak::figure(&format!("outcome: {of}"), figure);
            case.check(&row, &of);
        }
    }
}
