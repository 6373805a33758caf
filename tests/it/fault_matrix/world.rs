//! A node with every service that it calls.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use aws_double::Account;
use aws_double::http::AwsDouble;
use aws_double::pca::CaSettings;
use aws_double::secrets::Content;
use harness::cluster::{Cluster, Node};
use harness::front::Front;
use harness::imds::{ImdsStub, InstanceFacts};
use harness::nodes::set;
use harness::traffic::Traffic;
use harness::{Failure, eventually, tools};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::gate::{Gate, Gates};
use super::relay::Relay;
use super::{Met, SOON, Told, Trial, Trigger};
use crate::{AGENT, metric};

pub(super) const REGION: &str = "eu-west-1";
const GROUP: &str = "nats";
const SECRET: &str = "nats-trust";
/// The password of the routes' credential.
pub(super) const ROUTES: &str = "nats-routes";
const HEALTHY: &str = "nats_tls_agent_state{state=\"healthy\"}";
/// The number of this node's instance. The next number belongs to an absent peer, which a gate may replace.
pub(super) const OWN: u8 = 1;

/// What stands before the ports of nats-server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Ports {
    /// The agent reaches nats-server itself.
    #[default]
    Bare,
    /// The ports lie behind gates, and the agent calls nats-server through a wrapper.
    Gated,
    /// A relay takes the place of the gate before the client port.
    Relayed,
}

/// The properties of a trial's node.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    /// `[trust]`.
    pub(super) trust: &'static str,
    /// `discovery.addresses`.
    pub(super) addresses: &'static str,
    /// `issuer.validity`.
    pub(super) validity: &'static str,
    /// Routes need a credential, which is a second secret.
    pub(super) credential: bool,
    /// The trust bundle has roots of these names too. The node's own nats-server answers in the peer's place, behind a
    /// gate.
    pub(super) leaving: &'static [&'static str],
    /// What stands before nats-server.
    pub(super) ports: Ports,
    /// `nats.system`.
    pub(super) system: &'static str,
    /// The agent resolves names at the test's stub.
    pub(super) names: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            trust: "secret_id = \"nats-trust\"",
            addresses: "ec2",
            validity: "1h",
            credential: false,
            leaving: &[],
            ports: Ports::default(),
            system: "auto",
            names: false,
        }
    }
}

/// A node and the services that it calls.
pub(super) struct World {
    pub(super) double: AwsDouble,
    pub(super) imds: ImdsStub,
    pub(super) node: Node,
    pub(super) gates: Option<Gates>,
    /// The process before a nats-server behind gates.
    front: Option<Front>,
    pub(super) peer: Option<Gate>,
    pub(super) names: Option<super::names::Stub>,
    cluster: Cluster,
    ca: String,
    /// The CA's certificate, and the roots that leave the bundle, in their order.
    anchors: Vec<String>,
    last_peer: AtomicU8,
    // The directory is dropped last, because the processes above write to it.
    directory: TempDir,
}

impl World {
    pub(super) async fn new(setup: &Setup) -> Result<Self, String> {
        Self::make(setup).await.map_err(|failure| failure.chain())
    }

    async fn make(setup: &Setup) -> Result<Self, Failure> {
        let io = |error: std::io::Error| Failure::new("could not make a node").because(error);
        let directory = tempfile::tempdir().map_err(io)?;
        let server = tools::nats_server(tools::NATS_SERVER)?;
        let wrapper = directory.path().join("bin/nats-server");
        let agent = if setup.names { super::names::wrapper(directory.path(), AGENT)? } else { PathBuf::from(AGENT) };
        let cluster = Cluster::new(directory.path(), &agent, &server)?;
        let mut node = cluster.node(1)?;
        let double = AwsDouble::start(node.gateway(), Account::new(REGION)).await.map_err(io)?;
        let (ca, anchors) = double.account(|aws, now| {
            let mut root = |name| {
                let arn = aws.pca.create_authority(CaSettings::root(name), now).unwrap();
                let pem = aws.pca.authority(&arn).unwrap().pem().to_owned();
                (arn, pem)
            };
            let (ca, own) = root("matrix");
            let leaving = setup.leaving.iter().map(|name| root(name).1);
            let anchors: Vec<String> = [own].into_iter().chain(leaving).collect();
            aws.secrets.put(SECRET, Content::Text(anchors.concat()), now).unwrap();
            let credential = "{\"username\": \"route\", \"password\": \"of-the-matrix\"}";
            aws.secrets.put(ROUTES, Content::Text(credential.into()), now).unwrap();
            aws.fleet.launch(GROUP, &id(OWN), node.address.into(), "InService", now);
            aws.fleet.launch(GROUP, &id(OWN + 1), peer(node.address, OWN + 1), "InService", now);
            (ca, anchors)
        });
        let imds = ImdsStub::start(InstanceFacts::new(&id(OWN), REGION, node.address.into())).await?;
        node.agent.set_env("AWS_ENDPOINT_URL", &double.endpoint());
        node.agent.set_metadata(&imds.endpoint());
        let Setup { trust, addresses, validity, .. } = setup;
        let text = format!(
            "[issuer]\nca_arn = \"{ca}\"\nvalidity = \"{validity}\"\n[trust]\n{trust}\n[discovery]\naddresses = \"{addresses}\"\n\
             interval = \"200ms\"\n[renewal]\nretry_min = \"200ms\"\nretry_max = \"1s\"\n"
        );
        cluster.configure_with(&node, &text)?;
        set(node.agent.config(), "nats.jetstream", "false")?;
        // A hanging port counts as a reload that is under way, and a cell waits for the end of that.
        set(node.agent.config(), "nats.reload", "{ timeout = \"10s\" }")?;
        set(node.agent.config(), "nats.system", &format!("\"{}\"", setup.system))?;
        if setup.credential {
            set(node.agent.config(), "nats.cluster_secret_id", &format!("\"{ROUTES}\""))?;
        }
        let peer = if setup.leaving.is_empty() {
            None
        } else {
            let address = SocketAddr::new(peer(node.address, OWN + 1), node.route().port());
            Some(Gate::start(address, node.route()).await?)
        };
        let gates = match setup.ports {
            Ports::Bare => None,
            ports => Some(Gates::before(&mut node, &server, &wrapper, ports)?),
        };
        let names = if setup.names {
            super::names::configure(directory.path(), node.address)?;
            Some(super::names::Stub::start(node.address).await?)
        } else {
            None
        };
        let last_peer = AtomicU8::new(OWN + 1);
        Ok(Self { double, imds, node, gates, front: None, peer, names, cluster, ca, anchors, last_peer, directory })
    }

    /// The CA's ARN.
    pub(super) fn ca(&self) -> &str {
        &self.ca
    }

    /// Removes the first `count` of the leaving roots from the trust bundle.
    pub(super) fn leave(&self, count: usize) {
        let left = self.anchors[..1].iter().chain(&self.anchors[1 + count..]).cloned().collect::<String>();
        self.double.account(|aws, now| aws.secrets.put(SECRET, Content::Text(left), now).unwrap());
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn gate(&self, of: fn(&Gates) -> &Gate) -> &Gate {
        of(self.gates.as_ref().unwrap())
    }

    pub(super) fn relay(&self) -> &Relay {
        self.gates.as_ref().unwrap().relay.as_ref().unwrap()
    }

    async fn start_server(&mut self) -> Result<(), Failure> {
        let Some(gates) = &mut self.gates else { return self.cluster.start_server(&mut self.node).await };
        gates.open().await?;
        self.front = Some(Front::start(&self.node, &tools::nats_server(tools::NATS_SERVER)?).await?);
        Ok(())
    }

    /// Boots the node while the fault holds, then ends the fault.
    pub(super) async fn boot(&mut self, trial: &Trial) -> Result<String, String> {
        (trial.switch)(self, true);
        self.node.agent.start().map_err(|failure| failure.chain())?;
        let word = match &trial.told {
            Told::Ill(words) => {
                let word = self.told_ill(words, 0).await?;
                let config = self.node.nats_config();
                if config.exists() {
                    return Err(format!("{} was written", config.display()));
                }
                word
            }
            told => self.told(told, 0).await?,
        };
        (trial.switch)(self, false);
        let recovered = async {
            self.node.committed().await?;
            self.start_server().await?;
            self.node.healthy(SOON).await
        };
        recovered.await.map_err(|failure| format!("no recovery: {}", failure.chain()))?;
        self.no_longer(&trial.told).await?;
        self.answers().await?;
        self.end_of_cell(0, 1)?;
        Ok(word)
    }

    /// Boots without a fault, and returns the traffic of a client that stays connected.
    pub(super) async fn serve(&mut self) -> Result<Traffic, String> {
        let booted = async {
            self.node.agent.start()?;
            self.node.committed().await?;
            self.start_server().await?;
            self.sees_front().await?;
            self.node.healthy(SOON).await?;
            let endpoint = self.node.endpoint(false)?;
            Traffic::start(&[(endpoint.clone(), endpoint)], 20).await
        };
        booted.await.map_err(|failure| format!("no boot: {}", failure.chain()))
    }

    /// Waits until the agent takes the front for nats-server. Before, the pid file named the server behind for a moment.
    async fn sees_front(&self) -> Result<(), Failure> {
        let Some(pid) = self.front.as_ref().and_then(Front::pid) else { return Ok(()) };
        eventually("the front in the status", SOON, async || {
            let status = self.node.agent.status().await.map_err(|failure| failure.chain())?;
            if status["nats"]["pid"] == pid { Ok(()) } else { Err(status["nats"].to_string()) }
        })
        .await
    }

    /// Injects a fault into a serving node, then ends the fault.
    pub(super) async fn serving(&mut self, trial: &Trial, trigger: Trigger) -> Result<String, String> {
        let before = self.node.agent.status().await.map_err(|failure| failure.chain())?;
        if let Some(relay) = self.gates.as_ref().and_then(|gates| gates.relay.as_ref()) {
            relay.connected(SOON).await?;
        }
        let (paid, said) = (self.double.certificates(), self.log().lines().count());
        (trial.switch)(self, true);
        let outcome = self.suffer(trial, trigger, said).await;
        (trial.switch)(self, false);
        let word = outcome?;
        self.node.healthy(SOON).await.map_err(|failure| format!("no recovery: {}", failure.chain()))?;
        self.no_longer(&trial.told).await?;
        self.answers().await?;
        if trigger.renews() {
            self.made_good(&before).await?;
        }
        self.end_of_cell(paid, usize::from(trigger.renews()))?;
        Ok(word)
    }

    /// Requests a renewal, and waits until the new certificate is served. The first answer may be a refusal.
    pub(super) async fn renewed(&mut self) -> Result<(), String> {
        let before = self.node.agent.status().await.map_err(|failure| failure.chain())?;
        self.pull(Trigger::Renew).await.map_err(|failure| failure.chain())?;
        self.made_good(&before).await
    }

    /// Waits until the node serves a new certificate.
    async fn made_good(&self, before: &Value) -> Result<(), String> {
        eventually("the late renewal", SOON, async || {
            let status = self.node.agent.status().await.map_err(|failure| failure.chain())?;
            let renewed = status["leaf"]["serial"] != before["leaf"]["serial"] && status["state"] == "healthy";
            if renewed { Ok(()) } else { Err(format!("{} {}", status["state"], status["reasons"])) }
        })
        .await
        .map_err(|failure| failure.chain())
    }

    async fn suffer(&mut self, trial: &Trial, trigger: Trigger, said: usize) -> Result<String, String> {
        let renewed = self.pull(trigger).await.map_err(|failure| failure.chain())?;
        let word = match &trial.told {
            Told::Ill(words) => self.told_ill(words, said).await?,
            told => {
                if renewed.is_some_and(|renewed| !renewed) {
                    return Err("agent renew failed".into());
                }
                self.told(told, said).await?
            }
        };
        let accepts = self.gates.as_ref().is_none_or(|gates| gates.client.is_open());
        if !trial.fault.contains("frozen") && accepts {
            self.answers().await.map_err(|why| format!("while the fault held: {why}"))?;
        }
        Ok(word)
    }

    /// Triggers the event. Returns whether a requested renewal succeeded, or `None` for another event.
    async fn pull(&mut self, trigger: Trigger) -> Result<Option<bool>, Failure> {
        match trigger {
            Trigger::Itself => {}
            Trigger::Renew | Trigger::RenewAnew => {
                if trigger == Trigger::RenewAnew {
                    self.node.agent.stop().await?;
                    self.node.agent.start()?;
                    eventually("the agent is healthy", SOON, async || {
                        let healthy = metric(self.node.metrics(), HEALTHY).await;
                        if healthy == Some(1) { Ok(()) } else { Err(format!("{healthy:?}")) }
                    })
                    .await?;
                }
                let answer = self.node.agent.run(&["renew", "--json"], 2 * SOON).await?;
                return Ok(Some(answer.code == Some(0)));
            }
            Trigger::Restart => {
                self.node.agent.stop().await?;
                self.node.agent.start()?;
            }
            Trigger::HangUp => self.node.agent.signal(Signal::SIGHUP)?,
            Trigger::NewPeer => {
                let number = self.last_peer.fetch_add(1, Ordering::Relaxed) + 1;
                self.double.account(|aws, now| {
                    aws.fleet.launch(GROUP, &id(number), peer(self.node.address, number), "InService", now);
                });
            }
        }
        Ok(None)
    }

    /// Checks that status, metric and log name the fault.
    async fn told_ill(&self, words: &[&str], said: usize) -> Result<String, String> {
        let told = eventually("the fault in the status", SOON, async || {
            let status = self.node.agent.status().await.map_err(|failure| failure.chain())?;
            let text = format!("{} {}", status["reasons"], status["renewal"]["last_error"]);
            if status["state"] != "healthy" && words.iter().all(|word| text.contains(word)) {
                Ok(status["state"].as_str().unwrap_or_default().to_owned())
            } else {
                Err(format!("{}: {text}", status["state"]))
            }
        });
        let word = told.await.map_err(|failure| failure.chain())?;
        eventually("the fault in the metric", Duration::from_secs(10), async || {
            match metric(self.node.metrics(), HEALTHY).await {
                Some(0) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await
        .map_err(|failure| failure.chain())?;
        self.is_logged(words, said).map(|()| word)
    }

    fn is_logged(&self, words: &[&str], said: usize) -> Result<(), String> {
        let log = self.log();
        let new: Vec<&str> = log.lines().skip(said).collect();
        if new.iter().any(|line| words.iter().all(|word| line.contains(word))) {
            Ok(())
        } else {
            Err(format!("no line of the log names {words:?}: {}", new.join("\n")))
        }
    }

    /// Checks that a warning ends with its cause.
    async fn no_longer(&self, told: &Told) -> Result<(), String> {
        if !matches!(told, Told::Warned(_)) {
            return Ok(());
        }
        let over = eventually("the end of the warning", SOON, async || {
            let status = self.node.agent.status().await.map_err(|failure| failure.chain())?;
            if told.is_in(&status) { Err(status["warnings"].to_string()) } else { Ok(()) }
        });
        over.await.map_err(|failure| failure.chain())
    }

    async fn told(&self, told: &Told, said: usize) -> Result<String, String> {
        // A first boot has no server yet, so the node can't be healthy.
        let healthy = |status: &Value| status["state"] == "healthy" || !self.has_server();
        eventually("the fault in the status", SOON, async || {
            let status = self.node.agent.status().await.map_err(|failure| failure.chain())?;
            if let Told::Nothing(met) = told
                && !self.has_met(met)
            {
                Err(format!("{met:?} was never met"))
            } else if healthy(&status) && told.is_in(&status) {
                Ok(())
            } else {
                Err(format!("{}: {}, {}", status["state"], status["reasons"], status["warnings"]))
            }
        })
        .await
        .map_err(|failure| failure.chain())?;
        if let Told::Warned(words) = told {
            self.is_logged(words, said)?;
        }
        Ok(match told {
            Told::Warned(_) => "warned",
            Told::Ill(_) | Told::Nothing(_) => "unharmed",
        }
        .into())
    }

    fn has_server(&self) -> bool {
        self.node.server.is_some() || self.front.is_some()
    }

    /// A node meets each fault in one trial only, so any recorded call with the fault counts.
    fn has_met(&self, met: &Met) -> bool {
        match met {
            Met::Answered(operation, fault) => {
                let calls = self.double.calls(*operation);
                calls.iter().any(|call| call.fault.as_ref() == Some(fault) && call.answer.is_some())
            }
            Met::Refused(operation, code) => {
                let calls = self.double.calls(*operation);
                calls.iter().any(|call| call.answer.as_ref().is_some_and(|(_, text)| text.contains(code)))
            }
            Met::Marked(mode) => self.gates.as_ref().is_some_and(|gates| gates.has_done(mode)),
            Met::Left(number) => {
                let body = |pem: &str| pem.lines().filter(|line| !line.starts_with('-')).collect::<String>();
                let newest = self.node.newest_generation().ok();
                let ca = newest.and_then(|newest| std::fs::read_to_string(newest.join("ca.pem")).ok());
                ca.is_some_and(|ca| !body(&ca).contains(&body(&self.anchors[*number])))
            }
        }
    }

    /// Checks that nats-server accepts a new client that trusts the newest generation's anchors.
    async fn answers(&self) -> Result<(), String> {
        let ca = self.node.newest_generation().map_err(|failure| failure.chain())?.join("ca.pem");
        let options = async_nats::ConnectOptions::new().require_tls(true).add_root_certificates(ca);
        let options = options.connection_timeout(Duration::from_secs(10)).ignore_discovered_servers();
        let url = format!("tls://{}", self.node.client());
        options.connect(&url).await.map_err(|error| format!("no new client: {error}"))?;
        Ok(())
    }

    fn end_of_cell(&mut self, before: usize, wanted: usize) -> Result<(), String> {
        self.node.agent.check_running().map_err(|failure| failure.chain())?;
        let paid = self.double.certificates() - before;
        if paid == wanted { Ok(()) } else { Err(format!("{paid} certificates were paid for, {wanted} wanted")) }
    }

    /// Ends the processes and waits for their end, because the next node may get the same ports.
    pub(super) async fn end(mut self) -> Result<(), String> {
        self.double.cut().await;
        let ended = async {
            if self.node.agent.pid().is_some() {
                self.node.agent.kill().await?;
            }
            if let Some(server) = self.node.server.take() {
                server.kill().await?;
            }
            if let Some(front) = self.front.take() {
                front.end().await?;
            }
            Ok::<_, Failure>(())
        };
        ended.await.map_err(|failure| failure.chain())?;
        if let Some(gates) = self.gates.take() {
            gates.end().await;
        }
        if let Some(peer) = self.peer.take() {
            peer.end().await;
        }
        if let Some(names) = self.names.take() {
            names.end().await;
        }
        Ok(())
    }

    pub(super) fn log(&self) -> String {
        self.node.agent.log_tail(100_000)
    }
}

impl Told {
    fn is_in(&self, status: &Value) -> bool {
        match self {
            Self::Warned(words) => words.iter().all(|word| status["warnings"].to_string().contains(word)),
            Self::Ill(_) | Self::Nothing(_) => true,
        }
    }
}

pub(super) fn id(number: u8) -> String {
    format!("i-{number:017x}")
}

/// The address of a peer in the node's own network, where nothing listens.
pub(super) fn peer(own: Ipv4Addr, number: u8) -> IpAddr {
    let [a, b, c, _] = own.octets();
    IpAddr::from([a, b, c, 100 + number])
}
