//! HTTP requests through a gateway and a responder in each language, while the group changes its CA, a node is replaced, all nodes
//! renew and each service restarts. The services connect by docs/clients.md and the files of `agent client run`. The nodes have one
//! name, and the services resolve the name to the addresses of the nodes.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the test's output shows the table, and what the test leaves out"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::eventually;
use harness::fleet::{Fleet, GROUP, Identity, SECRET as TRUST};
use harness::imds::{ImdsStub, InstanceFacts};
use harness::moto::REGION;
use harness::nats_server::monitor;
use harness::nodes::set;
use harness::process::{Process, tail};
use harness::rounds::{Rounds, render};
use harness::services::{Form, Service, environment_file, own_names_obstacle, python, with_hosts};
use nats_tls_agent::aws::AwsSettings;
use nats_tls_agent::clock::{Clock, rfc3339};
use nats_tls_agent::connection::secret::ConnectionSecret;
use nats_tls_agent::connection::{Document, DocumentStore as _};
use nats_tls_agent::x509::leaf::Leaf;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::AGENT;
use crate::client_libraries::responder;
use crate::rollover::is_served_by;

const DOCUMENT: &str = "nats/connection";
const SUBJECT: &str = "orders";
const SOON: Duration = Duration::from_mins(1);
/// The pause between two rounds leaves the machine to the cluster.
const PAUSE: Duration = Duration::from_millis(100);
/// The name of the nodes.
const NODES: &str = "nats.internal";
/// The name of the services in their certificate.
const NAME: &str = "services";
/// moto knows this template alone. Its certificates are for clients too.
const TEMPLATE: &str = "arn:aws:acm-pca:::template/EndEntityCertificate/V1";

/// A group, the files that `agent client run` keeps of its document, and the services that connect by these files.
struct World {
    fleet: Fleet,
    document: ConnectionSecret,
    home: tempfile::TempDir,
    keeper: Option<Process>,
    /// The leaves of the services, oldest first. Nothing without `client_auth = "mtls"`.
    leaves: Vec<String>,
    mtls: bool,
    /// Each with its language.
    responders: Vec<(&'static str, Service)>,
    /// The credentials of the test itself.
    _imds: ImdsStub,
}

impl World {
    async fn new(mtls: bool) -> Self {
        let mut fleet = Fleet::launch(Path::new(AGENT), 3, Identity::Given).await.unwrap();
        fleet.discovery = format!(
            "interval = \"300ms\"\n[rollover]\nclient_notice = \"0s\"\n[connection]\nsecret_id = \"{DOCUMENT}\""
        );
        fleet.node = format!("dns_names = [\"{NODES}\"]");
        if mtls {
            fleet.ask_for_certificates();
        }
        fleet.moto.put_secret(DOCUMENT, "{}").await.unwrap();
        let imds = ImdsStub::start(InstanceFacts::new("i-0", REGION, Ipv4Addr::LOCALHOST.into())).await.unwrap();
        let (endpoint, imds_endpoint) = (Some(fleet.moto.endpoint().to_owned()), Some(imds.endpoint()));
        let aws = AwsSettings { region: Some(REGION.into()), endpoint, imds_endpoint }.load().await;
        let (document, home) = (ConnectionSecret::new(&aws, DOCUMENT), tempfile::tempdir().unwrap());
        let (leaves, responders) = (Vec::new(), Vec::new());
        let mut world = Self { fleet, document, home, keeper: None, leaves, mtls, responders, _imds: imds };
        world.fleet.start_all().await.unwrap();
        world.fleet.converged().await.unwrap();
        let url = format!("tls://{NODES}:{}", world.fleet.nodes[0].node.client().port());
        world.document_where("the document", |document| document.url == url).await;
        world.resolve_names();
        world.keep_files().await;
        world
    }

    fn files(&self, name: &str) -> PathBuf {
        self.home.path().join("files/current").join(name)
    }

    fn hosts(&self) -> PathBuf {
        self.home.path().join("hosts")
    }

    /// Makes the name of the nodes resolve to the addresses of the present nodes, for every service.
    fn resolve_names(&self) {
        let lines = self.fleet.nodes.iter().map(|member| format!("{} {NODES}\n", member.instance.address));
        std::fs::write(self.hosts(), lines.collect::<String>()).unwrap();
    }

    /// Starts `agent client run`, in the place of the process that runs. With `client_auth = "mtls"` the services get another
    /// certificate: each start asks the CA that signs now, and for another URI.
    async fn keep_files(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            keeper.stop(SOON).await.unwrap();
        }
        let certificate = format!(
            "[client.certificate]\nca_arn = \"{}\"\nname = \"{NAME}\"\ntemplate_arn = \"{TEMPLATE}\"\nuris = [\"spiffe://it/{}\"]\n",
            self.fleet.ca.arn,
            self.leaves.len()
        );
        let text = format!(
            "[connection]\nsecret_id = \"{DOCUMENT}\"\nregion = \"{REGION}\"\n[client]\ndirectory = \"{}\"\ninterval = \"1s\"\n{}",
            self.home.path().join("files").display(),
            if self.mtls { &certificate } else { "" }
        );
        let config = self.home.path().join("client.toml");
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(AGENT);
        command.args(["client", "run", "--config"]).arg(config).env("AWS_ENDPOINT_URL", self.fleet.moto.endpoint());
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        command.env("AWS_EC2_METADATA_DISABLED", "true").env("NO_COLOR", "1");
        let log = self.home.path().join("client.log");
        let mut command = with_hosts(&command, &self.hosts());
        self.keeper = Some(Process::spawn("agent client run", &mut command, &log).unwrap());
        let leaf = eventually("the files of the document", SOON, async || {
            let files = environment_file(&self.files("nats.env")).map_err(|_| tail(&log, 20))?;
            if !self.mtls {
                return Ok(files.iter().any(|(name, _)| name == "NATS_URL").then(String::new));
            }
            let pem = std::fs::read_to_string(self.files("cert.pem")).map_err(|_| tail(&log, 20))?;
            let leaf = Leaf::from_pem(&pem).unwrap().sha256;
            if self.leaves.contains(&leaf) { Err(tail(&log, 20)) } else { Ok(Some(leaf)) }
        });
        self.leaves.extend(leaf.await.unwrap().filter(|_| self.mtls));
    }

    async fn document_where(&self, what: &str, fits: impl Fn(&Document) -> bool) -> Document {
        let found = eventually(what, SOON, async || {
            let document = self.document.document().await.map_err(|error| error.to_string())?;
            if fits(&document) { Ok(document) } else { Err(format!("{document:?}")) }
        });
        found.await.unwrap()
    }

    /// Lets an hour pass since the last change of the document: the agents change it every ten minutes at most.
    async fn an_hour_after_the_last_change(&self) {
        let mut document = self.document.document().await.unwrap();
        document.changed_at = rfc3339(Clock::System.now() - time::Duration::hours(1));
        let token = format!("nats-tls-agent-{:048}", fastrand::u64(..));
        self.document.write(&serde_json::to_string(&document).unwrap(), &token).await.unwrap();
    }

    /// The files of the services hold these CAs.
    async fn files_hold(&self, cas: &[&str]) {
        eventually("the CAs in the files of the services", SOON, async || {
            let bundle = std::fs::read_to_string(self.files("ca.pem")).map_err(|error| error.to_string())?;
            let holds = cas.iter().all(|ca| bundle.contains(ca.trim()));
            if holds && bundle.matches("BEGIN").count() == cas.len() { Ok(()) } else { Err(bundle) }
        })
        .await
        .unwrap();
    }

    async fn responder(&self, language: &str) -> Option<Service> {
        let variables = environment_file(&self.files("nats.env")).unwrap();
        responder(language, self.home.path(), Form::Files, SUBJECT, &variables, Some(&self.hosts())).await
    }

    async fn gateway(&self) -> (Service, SocketAddr) {
        let home = self.home.path().join(format!("gateway-{}", fastrand::u32(..)));
        std::fs::create_dir(&home).unwrap();
        let mut command = python(&home, Form::Files, "gateway.py").unwrap();
        command.args(["127.0.0.1", "0"]);
        let variables = environment_file(&self.files("nats.env")).unwrap();
        let command = with_hosts(&command, &self.hosts());
        let gateway = Service::start("gateway", command, &home, &variables).await.unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, gateway.port().unwrap()));
        (gateway, address)
    }

    async fn nodes_where(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        for member in &self.fleet.nodes {
            let seen = eventually(what, SOON, async || {
                let status = member.node.agent.status().await.map_err(|failure| failure.chain())?;
                if wanted(&status) { Ok(()) } else { Err(format!("{status:#}")) }
            });
            seen.await.unwrap();
        }
    }

    /// A change of the CA from its first step to its last.
    async fn roll_over(&mut self) {
        let new = self.fleet.moto.create_ca("the new CA", "GENERAL_PURPOSE").await.unwrap();
        let old = std::mem::replace(&mut self.fleet.ca, new.clone());
        self.an_hour_after_the_last_change().await;
        self.fleet.moto.put_secret(TRUST, &format!("{}\n{}\n", old.pem.trim(), new.pem.trim())).await.unwrap();
        self.files_hold(&[&old.pem, &new.pem]).await;
        self.nodes_where("both CAs", |status| status["trust"]["anchors"].as_array().map(Vec::len) == Some(2)).await;
        if self.mtls {
            self.keep_files().await;
        }
        for member in &self.fleet.nodes {
            set(member.node.agent.config(), "issuer.ca_arn", &format!("{:?}", new.arn)).unwrap();
            member.node.agent.signal(Signal::SIGHUP).unwrap();
        }
        self.nodes_where("leaves of the new CA", |status| is_served_by(status, "the new CA")).await;
        self.an_hour_after_the_last_change().await;
        self.fleet.moto.put_secret(TRUST, &new.pem).await.unwrap();
        self.nodes_where("the end of the change", |status| {
            status["trust"]["anchors"].as_array().map(Vec::len) == Some(1)
                && status["rollover"]["phase"] == "none"
                && status["state"] == "healthy"
        })
        .await;
        self.files_hold(&[&new.pem]).await;
    }

    /// The node to which the gateway is connected: the gateway alone waits for replies in Python.
    async fn node_of_the_gateway(&self) -> usize {
        for (index, member) in self.fleet.nodes.iter().enumerate() {
            let answer = monitor(member.node.monitor(), "/connz?subs=1").await.unwrap();
            let mut connections = answer["connections"].as_array().into_iter().flatten();
            if connections.any(|of| of["lang"] == "python3" && of["subscriptions_list"].to_string().contains("_INBOX"))
            {
                return index;
            }
        }
        panic!("the gateway is connected to no node")
    }

    /// Another instance joins, and the node of the gateway goes: in lame duck mode, or by the loss of its machine.
    async fn replace_a_node(&mut self, in_lame_duck_mode: bool) {
        let known: Vec<_> = self.fleet.nodes.iter().map(|member| member.instance.id.clone()).collect();
        let launched = self.fleet.moto.resize(GROUP, 4).await.unwrap();
        let new = launched.into_iter().find(|instance| !known.contains(&instance.id)).unwrap();
        self.fleet.add(new).await.unwrap();
        self.fleet.start(3).await.unwrap();
        self.fleet.converged().await.unwrap();
        self.resolve_names();
        let going = self.node_of_the_gateway().await;
        let id = self.fleet.nodes[going].instance.id.clone();
        self.fleet.moto.terminate(&id).await.unwrap();
        if in_lame_duck_mode {
            let server = self.fleet.nodes[going].node.server.take().unwrap();
            server.lame_duck().unwrap();
            server.ended(SOON).await.unwrap();
        }
        self.fleet.die(going).await.unwrap();
        self.fleet.converged().await.unwrap();
        self.resolve_names();
    }

    async fn renew_all(&mut self) {
        if self.mtls {
            self.keep_files().await;
        }
        for member in &self.fleet.nodes {
            assert_eq!(member.node.agent.renew().await.unwrap()["result"], "confirmed");
        }
    }

    /// Each service restarts, one after another, as by a rolling deployment: a gateway ends once another gateway has its requests.
    async fn restart_services(&mut self, gateway: Service, rounds: &mut Rounds) -> Service {
        if self.mtls {
            self.keep_files().await;
        }
        for (language, responder) in std::mem::take(&mut self.responders) {
            responder.stop().await.unwrap();
            let responder = self.responder(language).await.unwrap();
            self.responders.push((language, responder));
        }
        let (next, address) = self.gateway().await;
        rounds.move_to(address).await.unwrap();
        gateway.stop().await.unwrap();
        next
    }

    /// Whether each connection of the services presents the newest leaf.
    async fn present_the_newest_leaf(&self) {
        let mut presented = Vec::new();
        for member in &self.fleet.nodes {
            let answer = monitor(member.node.monitor(), "/connz?auth=1").await.unwrap();
            for connection in answer["connections"].as_array().unwrap() {
                let peer = &connection["tls_peer_certs"][0];
                if peer["subject"].to_string().contains(NAME) {
                    presented.push(peer["cert_sha256"].clone());
                }
            }
        }
        assert_eq!(presented, vec![json!(self.leaves.last().unwrap()); self.responders.len() + 1]);
    }
}

async fn no_request_fails(mtls: bool) {
    if let Some(obstacle) = own_names_obstacle().await {
        eprintln!("SKIPPED: {obstacle}");
        return;
    }
    let mut world = World::new(mtls).await;
    for language in ["python", "rust", "javascript"] {
        match world.responder(language).await {
            Some(responder) => world.responders.push((language, responder)),
            None => eprintln!("SKIPPED: {language}: this machine has no Node.js, or cargo xtask setup found no npm"),
        }
    }
    let (gateway, address) = world.gateway().await;
    let mut health = Rounds::start(address, "/health", PAUSE);
    let mut events = vec![health.event("/health").await.unwrap()];
    drop(health);
    let mut rounds = Rounds::start(address, &format!("/{SUBJECT}"), PAUSE);
    events.push(rounds.event("nothing happens").await.unwrap());
    world.roll_over().await;
    events.push(rounds.event("the CA changes").await.unwrap());
    world.replace_a_node(!mtls).await;
    events.push(rounds.event("a node is replaced").await.unwrap());
    world.renew_all().await;
    events.push(rounds.event("all nodes renew").await.unwrap());
    let gateway = world.restart_services(gateway, &mut rounds).await;
    events.push(rounds.event("each service restarts").await.unwrap());
    drop(rounds);

    println!("{}", render(&events));
    for event in &events {
        assert!(event.is_good(), "{:?}", event.figures.each_ref().map(|figures| figures.failures.iter().take(3)));
    }
    if mtls {
        world.present_the_newest_leaf().await;
        assert_eq!(world.leaves.len(), 4, "one leaf, and three rotations");
    }
    for service in world.responders.into_iter().map(|(_, responder)| responder).chain([gateway]) {
        service.stop().await.unwrap();
    }
    world.keeper.take().unwrap().stop(SOON).await.unwrap();
    world.fleet.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_over_a_change_of_the_ca_a_replaced_node_renewals_and_restarts() {
    Box::pin(no_request_fails(false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_where_services_present_certificates_that_rotate_three_times() {
    Box::pin(no_request_fails(true)).await;
}
