//! A bundle of its own for what clients present (`[trust.clients]`), on real nats-servers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectError, ConnectOptions};
use harness::cluster::Node;
use harness::nodes::{Nodes, at, set};
use harness::{eventually, tools};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use crate::AGENT;
use crate::doctor::{assert_check, diagnose};
use crate::rollover::Ca;
use crate::rotation::status_with;

/// The machine may be slow.
const SOON: Duration = Duration::from_mins(1);

/// Two nodes whose clients present certificates, and two CAs of clients.
struct Bench {
    cluster: Nodes,
    nodes: Ca,
    first: Ca,
    second: Ca,
}

impl Bench {
    async fn boot(version: &str) -> Self {
        let mut cluster = Nodes::new(AGENT, version, 2).unwrap();
        cluster.cluster.client_mtls = true;
        let nodes = Ca::make(&cluster.cluster.ca_directory(), "the CA of nodes");
        let first = Ca::make(&cluster.directory().join("first"), "the first CA of clients");
        let second = Ca::make(&cluster.directory().join("second"), "the second CA of clients");
        cluster.configure().unwrap();
        let bench = Self { cluster, nodes, first, second };
        bench.write(&bench.first.pem);
        let file = bench.bundle().display().to_string();
        bench.cluster.set("discovery.interval", "\"100ms\"").unwrap();
        bench.cluster.set("trust.clients", &format!("{{ kind = \"file\", file = {file:?} }}")).unwrap();
        for node in &bench.cluster.nodes {
            let tls = "tls = { certificate = \"node\", verify = true }";
            let websocket = format!("{{ websocket = {{ listen = \"{}\", {tls} }} }}", node.gateway());
            set(node.agent.config(), "nats.settings", &websocket).unwrap();
        }
        let Self { mut cluster, .. } = bench;
        cluster.boot().await.unwrap();
        Self { cluster, ..bench }
    }

    /// The bundle of clients.
    fn bundle(&self) -> PathBuf {
        self.cluster.directory().join("clients.pem")
    }

    fn write(&self, text: &str) {
        let new = self.bundle().with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.bundle()).unwrap();
    }

    /// A certificate of a client and its key.
    fn certificate(&self, ca: &Ca, name: &str) -> (PathBuf, PathBuf) {
        ca.client(&self.cluster.directory().join(name))
    }

    async fn connect(&self, node: &Node, (chain, key): &(PathBuf, PathBuf)) -> Result<Client, ConnectError> {
        let ca = self.cluster.cluster.ca_directory().join("ca.pem");
        let options = ConnectOptions::new().require_tls(true).ignore_discovered_servers();
        let options = options.add_root_certificates(ca).add_client_certificate(chain.clone(), key.clone());
        options.connect(format!("tls://{}", node.client())).await
    }

    /// Waits until a node refuses one certificate and accepts another certificate.
    async fn accepts_alone(&self, node: &Node, good: &(PathBuf, PathBuf), bad: &(PathBuf, PathBuf)) {
        eventually("the bundle of clients in force", SOON, async || {
            self.connect(node, good).await.map_err(|error| error.to_string())?;
            if self.connect(node, bad).await.is_err() { Ok(()) } else { Err("the other CA is accepted".to_owned()) }
        })
        .await
        .unwrap();
    }
}

/// Whether a route port talks to a peer with this certificate. nats-server sends its INFO to an accepted peer alone.
async fn route_talks_to(node: &Node, ca: &Path, chain: &Path, key: &Path) -> std::io::Result<()> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let chain = CertificateDer::pem_file_iter(chain).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let config = config.with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap();
    let handshake = async {
        let stream = tokio::net::TcpStream::connect(node.route()).await?;
        let name = ServerName::from(node.route().ip());
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?.read_u8().await
    };
    tokio::time::timeout(SOON, handshake).await?.map(drop)
}

/// The line by which a bundle distrusts a CA.
fn distrust(ca: &Ca) -> String {
    let der = CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap();
    format!("distrust: {}\n", nats_tls_agent::digest::sha256_hex(&der))
}

fn subjects(trust: &Value) -> Vec<&str> {
    trust["anchors"].as_array().unwrap().iter().map(|anchor| at(anchor, "subject")).collect()
}

#[tokio::test]
async fn a_ca_of_clients_opens_the_client_port_and_no_route_port() {
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        let bench = Bench::boot(version).await;
        let first = bench.certificate(&bench.first, "client-1");
        let second = bench.certificate(&bench.second, "client-2");
        let ca = bench.cluster.cluster.ca_directory().join("ca.pem");
        for node in &bench.cluster.nodes {
            bench.connect(node, &first).await.unwrap();
            let refused = bench.connect(node, &second).await.unwrap_err().to_string();
            assert!(!refused.is_empty(), "{version}");
            let refused = route_talks_to(node, &ca, &first.0, &first.1).await.unwrap_err().to_string();
            assert!(refused.contains("UnknownCA") || refused.contains("BadCertificate"), "{version}: {refused}");
            let own = node.newest_generation().unwrap();
            route_talks_to(node, &ca, &own.join("cert.pem"), &own.join("key.pem")).await.unwrap();
            let text = std::fs::read_to_string(node.nats_config()).unwrap();
            let files: Vec<_> = text.lines().filter(|line| line.contains("ca_file")).collect();
            let of_clients = files.iter().filter(|line| line.contains("/clients.pem\"")).count();
            assert_eq!((files.len(), of_clients), (3, 2), "{version}: the client port and websocket: {files:?}");
            let status = node.agent.status().await.unwrap();
            assert_eq!(subjects(&status["trust"]), ["CN=the CA of nodes"], "{version}");
            assert_eq!(subjects(&status["trust"]["clients"]), ["CN=the first CA of clients"], "{version}");
        }
    });
    harness::join_all(runs).await;
}

#[tokio::test]
async fn a_bundle_of_clients_changes_and_distrusts_without_a_certificate_and_without_a_lost_route() {
    let bench = Bench::boot(tools::NATS_SERVER).await;
    let first = bench.certificate(&bench.first, "client-1");
    let second = bench.certificate(&bench.second, "client-2");
    let node = &bench.cluster.nodes[0];
    let before = node.healthy(SOON).await.unwrap();
    let open = bench.connect(node, &first).await.unwrap();
    // A bundle that can't be read changes nothing, and the text names it.
    bench.write("no CA yet\n");
    let status = status_with(node, |status| status["state"] == "degraded").await;
    assert!(status["reasons"].to_string().contains("clients.pem"), "{status:#}");
    bench.connect(node, &first).await.unwrap();
    bench.write(&bench.second.pem);
    bench.accepts_alone(node, &second, &first).await;
    assert_eq!(open.connection_state(), State::Connected, "a CA that is taken out closes nobody");
    let of_second = bench.connect(node, &second).await.unwrap();
    // What leaked is closed. A CA of nodes that the clients' bundle distrusts stays a CA of nodes.
    let distrusted = [&bench.second, &bench.nodes].map(distrust);
    bench.write(&format!("{}{}{}", distrusted.concat(), bench.first.pem, bench.second.pem));
    bench.accepts_alone(node, &first, &second).await;
    let status = status_with(node, |status| status["nats"]["distrust"].is_object()).await;
    assert_eq!(subjects(&status["trust"]), ["CN=the CA of nodes"], "{status:#}");
    eventually("the end of the client of the leaked CA", SOON, async || match of_second.connection_state() {
        State::Disconnected => Ok(()),
        state => Err(format!("{state}")),
    })
    .await
    .unwrap();
    // Where every CA of clients is distrusted, clients present what nodes present.
    bench.write(&format!("{}{}{}", distrusted.concat(), distrust(&bench.first), bench.first.pem));
    let own = node.newest_generation().unwrap();
    bench.accepts_alone(node, &(own.join("cert.pem"), own.join("key.pem")), &first).await;
    for (node, other) in bench.cluster.nodes.iter().zip(["n2", "n1"]) {
        node.meshed(&[other.to_owned()].into(), SOON).await.unwrap();
    }
    let after = node.healthy(SOON).await.unwrap();
    assert_eq!(at(&after, "leaf.serial"), at(&before, "leaf.serial"), "no certificate is paid for");
}

#[tokio::test]
async fn doctor_says_where_a_bundle_of_clients_has_no_use() {
    let mut cluster = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    let ca = Ca::make(&cluster.directory().join("clients"), "the CA of clients");
    let file = cluster.directory().join("clients.pem");
    std::fs::write(&file, &ca.pem).unwrap();
    cluster.configure().unwrap();
    cluster.set("trust.clients", &format!("{{ kind = \"file\", file = {file:?} }}")).unwrap();
    cluster.boot().await.unwrap();
    let node = &cluster.nodes[0];
    let check = "certificates of clients";
    assert_check(&diagnose(node).await.1, check, "warning", &["nats.client_auth"]);
    set(node.agent.config(), "nats.client_auth", "\"mtls\"").unwrap();
    let (_, checks) = diagnose(node).await;
    assert_check(&checks, "configuration", "warning", &["the next pass would change"]);
    assert!(!checks.contains_key(check), "{checks:?}");
}
