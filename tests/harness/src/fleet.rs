//! An Auto Scaling group in moto. A real nats-server and an agent run on the address of each instance.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{Cluster, Node};
use crate::gateway::Gateway;
use crate::imds::{ImdsStub, InstanceFacts};
use crate::moto::{Ca, Instance, Moto, REGION};
use crate::process::tail;
use crate::traffic::{ClientTls, Endpoint};
use crate::{Failure, eventually, tools};

/// The name of the group.
pub const GROUP: &str = "nats";
/// The name of the secret that holds the trust bundle.
pub const SECRET: &str = "nats-trust";

const CONVERGE_WITHIN: Duration = Duration::from_mins(1);
const LOG_LINES: usize = 15;

/// The source of a node's identity and credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// `[node]` and the environment.
    Given,
    /// Instance metadata only.
    Metadata,
}

/// AWS, the group and its nodes.
///
/// If a test panics, the ends of all logs are printed.
#[derive(Debug)]
pub struct Fleet {
    /// The instances that run.
    pub nodes: Vec<FleetNode>,
    /// The double of AWS.
    pub moto: Moto,
    /// The CA that signs.
    pub ca: Ca,
    /// More lines for `[node]`.
    pub node: String,
    /// More lines for `[issuer]`.
    pub issuer: String,
    /// The lines of `[discovery]`.
    pub discovery: String,
    /// The lines of `[renewal]`.
    pub renewal: String,
    identity: Identity,
    cluster: Cluster,
    ca_file: PathBuf,
    directory: TempDir,
}

/// An instance and its processes.
#[derive(Debug)]
pub struct FleetNode {
    /// The agent and the nats-server.
    pub node: Node,
    /// The instance in moto.
    pub instance: Instance,
    /// The gateway to AWS.
    pub gateway: Gateway,
    /// The metadata service, if the node's identity comes from metadata.
    pub imds: Option<ImdsStub>,
}

impl Fleet {
    /// Makes AWS with a CA and a trust bundle, and a group of `size` instances. Nothing runs on them yet.
    pub async fn launch(agent: &Path, size: usize, identity: Identity) -> Result<Self, Failure> {
        let directory = tempfile::tempdir().map_err(|error| Failure::new("no directory for a fleet").because(error))?;
        let cluster = Cluster::new(directory.path(), agent, &tools::nats_server(tools::NATS_SERVER)?)?;
        let moto = Moto::start().await?;
        let group = async {
            let ca = moto.create_ca("fleet", "GENERAL_PURPOSE").await?;
            moto.put_secret(SECRET, &ca.pem).await?;
            Ok::<_, Failure>(ca)
        };
        let (ca, instances) = tokio::try_join!(group, moto.launch(GROUP, size))?;
        let ca_file = directory.path().join("moto-ca.pem");
        std::fs::write(&ca_file, &ca.pem).map_err(|error| Failure::new("could not keep moto's CA").because(error))?;
        let mut fleet = Self {
            nodes: Vec::new(),
            moto,
            ca,
            node: String::new(),
            issuer: String::new(),
            discovery: "interval = \"1s\"".into(),
            renewal: String::new(),
            identity,
            cluster,
            ca_file,
            directory,
        };
        for instance in instances {
            fleet.add(instance).await?;
        }
        Ok(fleet)
    }

    /// Lets every node ask its clients for a certificate. Nodes that have started know nothing of it.
    pub fn ask_for_certificates(&mut self) {
        self.cluster.client_mtls = true;
    }

    /// Makes an instance a node. Nothing runs on the node yet.
    pub async fn add(&mut self, instance: Instance) -> Result<&mut FleetNode, Failure> {
        let IpAddr::V4(address) = instance.address else {
            return Err(Failure::new(format!("{} is not an IPv4 address", instance.address)));
        };
        let mut node = self.cluster.node_at(&instance.id, address)?;
        let gateway = Gateway::start(node.gateway(), self.moto.endpoint()).await?;
        node.agent = node.agent.env("AWS_ENDPOINT_URL", &gateway.endpoint());
        let imds = if self.identity == Identity::Metadata {
            let imds = ImdsStub::start(InstanceFacts::new(&instance.id, REGION, instance.address)).await?;
            node.agent.set_metadata(&imds.endpoint());
            Some(imds)
        } else {
            node.agent = node.agent.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
            None
        };
        self.nodes.push(FleetNode { node, instance, gateway, imds });
        self.nodes.last_mut().ok_or_else(|| Failure::new("the fleet has no node"))
    }

    /// Writes a node's configuration and starts its agent. After the agent's first commit, starts its nats-server.
    pub async fn start(&mut self, index: usize) -> Result<(), Failure> {
        self.boot(index)?;
        self.serve(index).await
    }

    /// Starts all nodes at the same time, as instances of one launch boot.
    pub async fn start_all(&mut self) -> Result<(), Failure> {
        for index in 0..self.nodes.len() {
            self.boot(index)?;
        }
        for index in 0..self.nodes.len() {
            self.serve(index).await?;
        }
        Ok(())
    }

    /// Writes a node's configuration and starts its agent.
    pub fn boot(&mut self, index: usize) -> Result<(), Failure> {
        let text = self.config(&self.nodes[index].instance);
        let node = &mut self.nodes[index].node;
        self.cluster.configure_with(node, &text)?;
        node.agent.start()
    }

    /// Waits for a node's first commit and starts its nats-server.
    pub async fn serve(&mut self, index: usize) -> Result<(), Failure> {
        let node = &mut self.nodes[index].node;
        node.committed().await?;
        self.cluster.start_server(node).await
    }

    /// Simulates the loss of a node's machine: agent and nats-server are killed, and the node is removed here.
    pub async fn die(&mut self, index: usize) -> Result<(), Failure> {
        let mut dead = self.nodes.remove(index).node;
        dead.agent.kill().await?;
        if let Some(server) = dead.server.take() {
            server.kill().await?;
        }
        Ok(())
    }

    /// The route address of every node.
    #[must_use]
    pub fn routes(&self) -> BTreeSet<SocketAddr> {
        self.nodes.iter().map(|member| member.node.route()).collect()
    }

    /// Waits until each node is healthy, lists all nodes as peers with a route that is up, and renders exactly their
    /// addresses. Each nats-server must have routes to all others. Returns the statuses in the nodes' order.
    pub async fn converged(&self) -> Result<Vec<Value>, Failure> {
        let names: BTreeSet<String> = self.nodes.iter().map(|member| member.instance.id.clone()).collect();
        let mut statuses = Vec::new();
        for FleetNode { node, .. } in &self.nodes {
            let others = names.iter().filter(|name| **name != node.name).cloned().collect();
            node.meshed(&others, CONVERGE_WITHIN).await?;
            let what = format!("{} sees all up", node.name);
            let status = eventually(&what, CONVERGE_WITHIN, async || {
                let status = node.agent.status().await.map_err(|failure| failure.chain())?;
                let up: BTreeSet<String> = peers(&status, "up");
                let rendered = node.rendered_routes().map_err(|failure| failure.chain())?;
                if status["state"] == "healthy" && up == names && rendered == self.routes() {
                    Ok(status)
                } else {
                    Err(format!("{}, {}, {}, {rendered:?}", status["state"], status["reasons"], status["peers"]))
                }
            });
            statuses.push(status.await?);
        }
        Ok(statuses)
    }

    /// A client endpoint of a node. The client trusts moto's CA and nothing else.
    #[must_use]
    pub fn endpoint(&self, index: usize) -> Endpoint {
        let tls = ClientTls { ca: self.ca_file.clone(), certificate: None };
        Endpoint { address: self.nodes[index].node.client(), others: Vec::new(), tls: Some(tls) }
    }

    /// Pairs from each of the first `count` nodes to the next of them, in a ring.
    #[must_use]
    pub fn ring(&self, count: usize) -> Vec<(Endpoint, Endpoint)> {
        (0..count).map(|index| (self.endpoint(index), self.endpoint((index + 1) % count))).collect()
    }

    /// The number of paid certificates of all nodes.
    #[must_use]
    pub fn certificates(&self) -> usize {
        self.nodes.iter().map(|member| member.gateway.certificates()).sum()
    }

    /// Kills the processes, and then removes the files they may be writing to.
    pub async fn end(mut self) -> Result<(), Failure> {
        for FleetNode { node, .. } in &mut self.nodes {
            if node.agent.pid().is_some() {
                node.agent.kill().await?;
            }
            if let Some(server) = node.server.take() {
                server.kill().await?;
            }
        }
        Ok(())
    }

    fn config(&self, instance: &Instance) -> String {
        let (id, address) = (&instance.id, instance.address);
        let given = match self.identity {
            Identity::Given => {
                format!("instance_id = \"{id}\"\nregion = \"{REGION}\"\naddresses = [\"{address}\"]\n")
            }
            Identity::Metadata => String::new(),
        };
        let node = match (given.as_str(), self.node.as_str()) {
            ("", "") => String::new(),
            (given, more) => format!("[node]\n{given}{more}\n"),
        };
        let (ca, issuer, discovery, renewal) = (&self.ca.arn, &self.issuer, &self.discovery, &self.renewal);
        format!(
            "{node}[issuer]\nca_arn = \"{ca}\"\n{issuer}\n[trust]\nsecret_id = \"{SECRET}\"\n[discovery]\n{discovery}\n\
             [renewal]\n{renewal}\n"
        )
    }
}

impl Drop for Fleet {
    #[expect(clippy::print_stderr, reason = "a failed test shows nothing else of its processes")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            for FleetNode { node, .. } in &self.nodes {
                let (agent, server) = (node.agent.log_tail(LOG_LINES), tail(&node.server_log(), LOG_LINES));
                eprintln!("== {}: agent\n{agent}\n== {}: nats-server\n{server}", node.name, node.name);
            }
            eprintln!("in {}", self.directory.path().display());
        }
    }
}

/// The ids of the peers in a status whose route has this state.
#[must_use]
pub fn peers(status: &Value, route: &str) -> BTreeSet<String> {
    let peers = status["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let so = peers.iter().filter(|peer| peer["route"] == route);
    so.filter_map(|peer| Some(peer["id"].as_str()?.to_owned())).collect()
}
