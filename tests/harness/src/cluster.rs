//! A cluster of nodes on loopback. Each node has its own address, as a host has, an agent and a nats-server. By default
//! the nodes share the embedded CA's directory and a static list of peers.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::agent::Agent;
use crate::loopback::Block;
use crate::nats_server::{Launch, NatsServer};
use crate::traffic::{ClientTls, Endpoint};
use crate::{Failure, eventually};

/// `nats.cluster_name` of every cluster.
pub const NAME: &str = "loopback";

/// A node's first pass signs a certificate and runs `nats-server -t`.
const COMMIT_WITHIN: Duration = Duration::from_mins(1);

/// The common properties of all nodes.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    agent: PathBuf,
    nats_server: PathBuf,
    /// The lifetime of a leaf, in the notation of `issuer.validity`.
    pub validity: String,
    /// Whether clients must present a certificate.
    pub client_mtls: bool,
    block: Block,
    /// A socket's path has 107 bytes at most (unix(7)), and the path of a clone may be long.
    sockets: TempDir,
}

impl Cluster {
    /// A cluster without nodes. Everything except its sockets is in `directory`.
    pub fn new(directory: &Path, agent: &Path, nats_server: &Path) -> Result<Self, Failure> {
        let sockets = tempfile::Builder::new()
            .prefix("nats-tls-agent-")
            .tempdir()
            .map_err(|error| Failure::new("could not make a directory for control sockets").because(error))?;
        Ok(Self {
            directory: directory.to_path_buf(),
            agent: agent.to_path_buf(),
            nats_server: nats_server.to_path_buf(),
            validity: "1h".into(),
            client_mtls: false,
            block: Block::reserve()?,
            sockets,
        })
    }

    /// The directory of the embedded CA.
    #[must_use]
    pub fn ca_directory(&self) -> PathBuf {
        self.directory.join("ca")
    }

    /// Makes node `n{number}`, counted from 1, with a directory, without processes and without an agent configuration.
    pub fn node(&self, number: u8) -> Result<Node, Failure> {
        self.node_at(&format!("n{number}"), self.block.host(number))
    }

    /// Makes a node with the given name and loopback address.
    pub fn node_at(&self, name: &str, address: Ipv4Addr) -> Result<Node, Failure> {
        let name = name.to_owned();
        let directory = self.directory.join(&name);
        std::fs::create_dir_all(&directory)
            .map_err(|error| Failure::new(format!("could not make {}", directory.display())).because(error))?;
        let agent = Agent::new(&self.agent, directory.join("agent.toml"), directory.join("agent.log"));
        Ok(Node {
            name,
            address,
            directory,
            agent,
            server: None,
            server_arguments: Vec::new(),
            ports: std::array::from_fn(|n| self.block.port(u16::try_from(n).unwrap_or(0))),
        })
    }

    /// Writes a node's `agent.toml` for these peers, which include the node itself.
    pub fn configure(&self, node: &Node, peers: &[&Node]) -> Result<(), Failure> {
        let config = self.config(node, peers.iter().map(|peer| peer.route().to_string()));
        write(node.agent.config(), &config)
    }

    /// Writes a node's `agent.toml`: the tables of `text`, and the paths and ports of this machine. Everything else has
    /// the agent's defaults.
    pub fn configure_with(&self, node: &Node, text: &str) -> Result<(), Failure> {
        let nats = if self.client_mtls { "client_auth = \"mtls\"\n" } else { "" };
        write(node.agent.config(), &format!("{text}\n{}", self.machine(node, nats)))
    }

    /// Starts nats-server on the configuration that the node's agent has committed.
    pub async fn start_server(&self, node: &mut Node) -> Result<(), Failure> {
        node.server = Some(NatsServer::start(node.launch(&self.nats_server)).await?);
        Ok(())
    }

    fn config(&self, node: &Node, peers: impl Iterator<Item = String>) -> String {
        let quoted_peers: Vec<String> = peers.map(|peer| quoted(&peer)).collect();
        let mut text = String::new();
        let mut line = |line: std::fmt::Arguments<'_>| {
            // Writing to a string can't fail.
            _ = writeln!(text, "{line}");
        };
        line(format_args!("[node]\nname = {}\naddresses = [\"{}\"]\n", quoted(&node.name), node.address));
        line(format_args!("[issuer]\nkind = \"local\"\ndirectory = {}", path(&self.ca_directory())));
        line(format_args!("validity = {}\n", quoted(&self.validity)));
        line(format_args!("[trust]\nkind = \"issuer\"\n"));
        line(format_args!(
            "[discovery]\nkind = \"static\"\npeers = [{}]\ninterval = \"500ms\"\n",
            quoted_peers.join(", ")
        ));
        let client_auth = if self.client_mtls { "mtls" } else { "tls" };
        text + &self.machine(node, &format!("cluster_name = \"{NAME}\"\nclient_auth = \"{client_auth}\"\n"))
    }

    /// The tables with ports, paths and JetStream's limits of this machine. `nats` holds more lines for the table
    /// `[nats]`.
    fn machine(&self, node: &Node, nats: &str) -> String {
        let store = path(&node.directory.join("jetstream"));
        let mut text = String::new();
        let mut line = |line: std::fmt::Arguments<'_>| {
            // Writing to a string can't fail.
            _ = writeln!(text, "{line}");
        };
        line(format_args!("[nats]\nserver = {}\nconfig = {}", path(&self.nats_server), path(&node.nats_config())));
        line(format_args!("listen = \"{}\"\ncluster_listen = \"{}\"", node.client(), node.route()));
        line(format_args!("monitor_listen = \"{}\"\npid_file = {}", node.monitor(), path(&node.pid_file())));
        line(format_args!("jetstream = {{ store_dir = {store}, max_mem = \"64MB\", max_file = \"256MB\" }}\n{nats}"));
        line(format_args!("[state]\ndirectory = {}\n", path(&node.state_directory())));
        line(format_args!("[control]\nsocket = {}\n", path(&self.sockets.path().join(format!("{}.sock", node.name)))));
        line(format_args!("[metrics]\nlisten = \"{}\"", node.metrics()));
        text
    }
}

/// A node: an agent and a nats-server at one address.
#[derive(Debug)]
pub struct Node {
    /// `server_name`.
    pub name: String,
    /// The node's own loopback address.
    pub address: Ipv4Addr,
    /// The agent.
    pub agent: Agent,
    /// The nats-server, once it is started.
    pub server: Option<NatsServer>,
    /// Arguments of the nats-server, after its configuration.
    pub server_arguments: Vec<String>,
    directory: PathBuf,
    ports: [u16; 5],
}

impl Node {
    /// The client listener.
    #[must_use]
    pub fn client(&self) -> SocketAddr {
        SocketAddr::from((self.address, self.ports[0]))
    }

    /// The route listener.
    #[must_use]
    pub fn route(&self) -> SocketAddr {
        SocketAddr::from((self.address, self.ports[1]))
    }

    /// The monitoring listener.
    #[must_use]
    pub fn monitor(&self) -> SocketAddr {
        SocketAddr::from((self.address, self.ports[2]))
    }

    /// The listener of the agent's metrics.
    #[must_use]
    pub fn metrics(&self) -> SocketAddr {
        SocketAddr::from((self.address, self.ports[3]))
    }

    /// The address for the node's gateway to AWS.
    #[must_use]
    pub fn gateway(&self) -> SocketAddr {
        SocketAddr::from((self.address, self.ports[4]))
    }

    /// The path of nats-server.conf. A rename to this path is the commit.
    #[must_use]
    pub fn nats_config(&self) -> PathBuf {
        self.directory.join("nats-server.conf")
    }

    /// The agent's state directory.
    #[must_use]
    pub fn state_directory(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// nats-server's log.
    #[must_use]
    pub fn server_log(&self) -> PathBuf {
        self.directory.join("nats-server.log")
    }

    /// The routes that the committed configuration names.
    pub fn rendered_routes(&self) -> Result<BTreeSet<SocketAddr>, Failure> {
        let config = self.nats_config();
        let text = std::fs::read_to_string(&config)
            .map_err(|error| Failure::new(format!("could not read {}", config.display())).because(error))?;
        let urls = text.split('"').filter_map(|part| part.strip_prefix("nats-route://"));
        let address = |url: &str| url.rsplit('@').next().unwrap_or(url).parse();
        let parsed: Result<_, _> = urls.map(address).collect();
        parsed
            .map_err(|error| Failure::new(format!("a route in {} is not an address", config.display())).because(error))
    }

    /// Waits until the agent has committed its first configuration, before any nats-server runs.
    pub async fn committed(&mut self) -> Result<(), Failure> {
        let config = self.nats_config();
        let agent = &mut self.agent;
        eventually(&format!("{}'s first commit", self.name), COMMIT_WITHIN, async || {
            if let Err(ended) = agent.check_running() {
                return Ok(Err(ended));
            }
            if config.is_file() { Ok(Ok(())) } else { Err(format!("no {}", config.display())) }
        })
        .await?
    }

    /// Waits until the agent reports the state healthy, and returns the status.
    pub async fn healthy(&self, within: Duration) -> Result<Value, Failure> {
        eventually(&format!("{} healthy", self.name), within, async || {
            let status = self.agent.status().await.map_err(|failure| failure.chain())?;
            if status["state"] == "healthy" {
                Ok(status)
            } else {
                Err(format!("{}: {}", status["state"], status["reasons"]))
            }
        })
        .await
    }

    /// Waits until nats-server has routes to exactly these servers.
    pub async fn meshed(&self, with: &BTreeSet<String>, within: Duration) -> Result<(), Failure> {
        let server = self.server.as_ref().ok_or_else(|| Failure::new(format!("{} has no nats-server", self.name)))?;
        eventually(&format!("{}'s routes", self.name), within, async || {
            let routes = server.routes().await.map_err(|failure| failure.chain())?;
            if routes == *with { Ok(()) } else { Err(format!("{routes:?} in place of {with:?}")) }
        })
        .await
    }

    /// The endpoint for a client: over TLS, with the bundle of the newest generation as its trust. If
    /// `with_certificate` is set, the client presents the node's own leaf.
    pub fn endpoint(&self, with_certificate: bool) -> Result<Endpoint, Failure> {
        let generation = self.newest_generation()?;
        let certificate = with_certificate.then(|| (generation.join("cert.pem"), generation.join("key.pem")));
        let tls = ClientTls { ca: generation.join("ca.pem"), certificate };
        Ok(Endpoint { address: self.client(), others: Vec::new(), tls: Some(tls) })
    }

    /// The directory of the newest generation. The names are numbers of equal width.
    pub fn newest_generation(&self) -> Result<PathBuf, Failure> {
        let generations = self.state_directory().join("generations");
        let cannot = || Failure::new(format!("could not find a generation in {}", generations.display()));
        let entries = std::fs::read_dir(&generations).map_err(|error| cannot().because(error))?;
        let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
        // An unfinished generation has a name that ends with `.partial`.
        let complete = paths.filter(|path| path.extension().is_none() && path.join("ca.pem").is_file());
        complete.max().ok_or_else(cannot)
    }

    /// The pid file.
    #[must_use]
    pub fn pid_file(&self) -> PathBuf {
        self.directory.join("nats-server.pid")
    }

    fn launch(&self, binary: &Path) -> Launch {
        Launch {
            binary: binary.to_path_buf(),
            config: self.nats_config(),
            pid_file: self.pid_file(),
            client: self.client(),
            monitor: self.monitor(),
            log: self.server_log(),
            arguments: self.server_arguments.clone(),
        }
    }
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text)
        .map_err(|error| Failure::new(format!("could not write {}", path.display())).because(error))
}

/// A TOML basic string. TOML knows all of JSON's escapes.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn path(path: &Path) -> String {
    quoted(&path.display().to_string())
}
