//! The monitoring port of nats-server, over plain HTTP on loopback or over TLS.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Response;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::probe::{Port, Prober};
use crate::conf::listeners::{Monitor, MonitorTls};
use crate::x509::chain::{Chain, StoredChain};

const TIMEOUT: Duration = Duration::from_secs(3);
/// `/varz` is a few kilobytes; `/routez` grows with the cluster.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// The fields of `/varz` that the agent reads.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Varz {
    /// nats-server's version.
    pub version: String,
    /// The id of the server. It changes with every start.
    pub server_id: String,
    /// When the configuration in force was loaded.
    #[serde(with = "time::serde::rfc3339")]
    pub config_load_time: OffsetDateTime,
    /// The digest that `-t` prints for the same configuration. Versions before 2.11 report no digest.
    #[serde(default)]
    pub config_digest: Option<String>,
    /// The clients that are connected.
    #[serde(default)]
    pub connections: u32,
    /// Until when the certificates hold that nats-server has loaded for its listeners.
    #[serde(flatten)]
    pub ends: Box<CertificateEnds>,
}

impl Varz {
    /// Whether both answers are of one start of nats-server, and of one load of its configuration and certificates.
    #[must_use]
    pub(crate) fn shows_the_same_load(&self, other: &Self) -> bool {
        let load = |varz: &Self| (varz.server_id.clone(), varz.config_load_time, varz.config_digest.clone());
        load(self) == load(other) && self.ends == other.ends
    }
}

/// The ends of the loaded certificates, in whole seconds. 2.11.12, 2.12.4, 2.14.0 and later versions report the ends.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct CertificateEnds {
    #[serde(default, rename = "tls_cert_not_after", deserialize_with = "readable_time")]
    client: Option<OffsetDateTime>,
    #[serde(default)]
    cluster: ListenerVarz,
    #[serde(default)]
    gateway: ListenerVarz,
    #[serde(default)]
    leaf: ListenerVarz,
    #[serde(default)]
    mqtt: ListenerVarz,
    #[serde(default)]
    websocket: ListenerVarz,
}

/// The fields of one listener in `/varz`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
struct ListenerVarz {
    /// A gateway has the name of its cluster.
    #[serde(default)]
    name: String,
    #[serde(default, deserialize_with = "readable_time")]
    tls_cert_not_after: Option<OffsetDateTime>,
}

impl CertificateEnds {
    /// Whether nats-server is a gateway between clusters.
    #[must_use]
    pub(crate) fn has_gateway(&self) -> bool {
        !self.gateway.name.is_empty()
    }

    /// Every listener has a certificate with this end.
    #[must_use]
    pub fn all(at: OffsetDateTime) -> Self {
        let listener = || ListenerVarz { tls_cert_not_after: Some(at), ..ListenerVarz::default() };
        Self {
            client: Some(at),
            cluster: listener(),
            gateway: listener(),
            leaf: listener(),
            mqtt: listener(),
            websocket: listener(),
        }
    }

    /// The end for one listener, where nats-server reports the end.
    #[must_use]
    pub fn at(&self, port: Port) -> Option<OffsetDateTime> {
        let listener = match port {
            // Monitoring has the certificate of clients.
            Port::Client | Port::Monitor => return self.client,
            Port::Route => &self.cluster,
            Port::Gateway => &self.gateway,
            Port::Leafnode => &self.leaf,
            Port::Mqtt => &self.mqtt,
            Port::Websocket => &self.websocket,
        };
        listener.tls_cert_not_after
    }
}

/// A time. A time that can't be read is no reason to lose the rest of the answer.
pub(super) fn readable_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<OffsetDateTime>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.and_then(|text| OffsetDateTime::parse(&text, &Rfc3339).ok()))
}

/// The fields of `/routez` that the agent reads.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Routez {
    /// One entry per connection. With route pooling each peer has several connections.
    #[serde(default)]
    pub routes: Vec<RouteConnection>,
}

/// One connection to a peer.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct RouteConnection {
    /// The peer's server id.
    pub remote_id: String,
    /// The peer's server name, from 2.10 on.
    #[serde(default)]
    pub remote_name: String,
    /// The address of the other end. Where this node dialled, it is the peer's route address.
    #[serde(default)]
    pub ip: Option<IpAddr>,
    /// When the connection was made.
    #[serde(default, deserialize_with = "readable_time")]
    pub start: Option<OffsetDateTime>,
}

impl Routez {
    /// The names of the peers with a connection older than `than`. A connection without a readable time counts.
    #[must_use]
    pub(crate) fn older(&self, than: OffsetDateTime) -> BTreeSet<String> {
        let older = self.routes.iter().filter(|route| route.start.is_none_or(|start| start < than));
        older.map(|route| route.remote_name.clone()).collect()
    }

    /// The name and the addresses of each peer, by server id.
    #[must_use]
    pub fn remotes(&self) -> BTreeMap<&str, (&str, BTreeSet<IpAddr>)> {
        let mut remotes = BTreeMap::<_, (&str, BTreeSet<IpAddr>)>::new();
        for route in &self.routes {
            let remote = remotes.entry(route.remote_id.as_str()).or_default();
            remote.0 = &route.remote_name;
            remote.1.extend(route.ip);
        }
        remotes
    }
}

/// Why the monitoring port gave no answer.
#[derive(Debug, thiserror::Error)]
#[error("no answer from {scheme}://{address}{path}")]
pub struct MonitorError {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The address of the monitoring port.
    pub address: SocketAddr,
    /// The path of the request.
    pub path: String,
    /// The cause.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

impl MonitorError {
    fn of(at: &Monitor, path: &str, source: Cause) -> Self {
        let scheme = if at.tls.is_some() { "https" } else { "http" };
        Self { scheme, address: at.address, path: path.to_owned(), source }
    }
}

/// Reads `/varz`. Over TLS the port must show the leaf of `ours`, or the leaf in the file that its configuration names.
pub async fn varz(at: &Monitor, ours: Option<&StoredChain>) -> Result<Varz, MonitorError> {
    get(at, ours, "/varz").await
}

/// Reads `/routez`, as [`varz`] reads `/varz`.
pub async fn routez(at: &Monitor, ours: Option<&StoredChain>) -> Result<Routez, MonitorError> {
    get(at, ours, "/routez").await
}

/// Reads any path of the monitoring port, as [`varz`] reads `/varz`.
pub(crate) async fn get<T: DeserializeOwned>(
    at: &Monitor,
    ours: Option<&StoredChain>,
    path: &str,
) -> Result<T, MonitorError> {
    let answer = tokio::time::timeout(TIMEOUT, fetch(at, ours, path)).await;
    let failed = |source| MonitorError::of(at, path, source);
    let bytes = answer.map_err(|elapsed| failed(elapsed.into()))?.map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}

/// Whether nats-server answers that something isn't available (503), as `/healthz` does.
pub(crate) async fn is_unavailable(at: &Monitor, ours: Option<&StoredChain>, path: &str) -> Result<bool, MonitorError> {
    let failed = |source| MonitorError::of(at, path, source);
    let answer = tokio::time::timeout(TIMEOUT, ask(at, ours, path)).await;
    let response = answer.map_err(|elapsed| failed(elapsed.into()))?.map_err(failed)?;
    Ok(response.status() == hyper::StatusCode::SERVICE_UNAVAILABLE)
}

async fn fetch(at: &Monitor, ours: Option<&StoredChain>, path: &str) -> Result<Bytes, Cause> {
    let response = ask(at, ours, path).await?;
    if !response.status().is_success() {
        return Err(format!("it answered {}", response.status()).into());
    }
    Ok(Limited::new(response.into_body(), MAX_ANSWER).collect().await?.to_bytes())
}

/// The head of an answer, whatever its status, with the body to read.
async fn ask(at: &Monitor, ours: Option<&StoredChain>, path: &str) -> Result<Response<Incoming>, Cause> {
    let Some(tls) = &at.tls else {
        return request(TcpStream::connect(at.address).await?, at.address, path).await;
    };
    let (stream, shown) = Prober::anonymous()?.connect(at.address).await?;
    if is_known(&shown, ours, tls) {
        request(stream, at.address, path).await
    } else {
        Err("it shows another certificate than nats-server was given".into())
    }
}

/// Whether a leaf is ours. Until a reload nats-server serves the leaf of the configuration that it runs.
fn is_known(shown: &Chain, ours: Option<&StoredChain>, tls: &MonitorTls) -> bool {
    let of_file = || {
        let pem = std::fs::read(tls.cert_file.as_ref()?).ok()?;
        Chain::from_pem(&pem).ok()
    };
    ours.is_some_and(|ours| ours.chain().leaf() == shown.leaf())
        || of_file().is_some_and(|of| of.leaf() == shown.leaf())
}

async fn request(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    address: SocketAddr,
    path: &str,
) -> Result<Response<Incoming>, Cause> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = hyper::Request::get(path).header("host", address.to_string()).body(Empty::<Bytes>::new())?;
    // The task ends once the sender is dropped. A time-out drops the sender too.
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::ServerConfig;
    use time::macros::datetime;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::x509::test_ca::{Ca, key};

    fn stored() -> StoredChain {
        let (pair, key) = key();
        StoredChain::new(key, Chain::new(vec![Ca::root("root").leaf(&pair).der().clone()]).unwrap()).unwrap()
    }

    /// A monitoring port that serves this chain. It counts the requests that it reads.
    async fn serve(chain: &StoredChain) -> (SocketAddr, tokio::task::JoinHandle<usize>) {
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.chain().certificates().cloned().collect(), chain.key().to_der().unwrap())
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { return 0 };
            let read = stream.read(&mut [0; 1024]).await.unwrap_or_default();
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{\"routes\":[]}";
            let _gone = stream.write_all(answer.as_bytes()).await;
            let _end = stream.read(&mut [0]).await;
            read
        });
        (address, served)
    }

    #[tokio::test]
    async fn over_tls_only_a_port_with_our_leaf_or_the_committed_leaf_is_asked() {
        let (ours, other) = (stored(), stored());
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cert.pem");
        std::fs::write(&file, ours.chain().to_pem()).unwrap();
        for (presented, cert_file, is_asked) in [
            (Some(&ours), None, true),
            (Some(&other), Some(&file), true),
            (None, Some(&file), true),
            (Some(&other), None, false),
            (None, Some(&directory.path().join("gone.pem")), false),
        ] {
            let (address, served) = serve(&ours).await;
            let at = Monitor { address, tls: Some(MonitorTls { cert_file: cert_file.cloned() }) };
            let answer = routez(&at, presented).await;
            assert_eq!(answer.is_ok(), is_asked, "{answer:?}");
            drop(answer);
            assert_eq!(served.await.unwrap() > 0, is_asked);
        }
    }

    #[tokio::test]
    async fn a_port_without_tls_is_no_port_with_tls() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let plain = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _gone = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        });
        let at = Monitor { address, tls: Some(MonitorTls { cert_file: None }) };
        let error = varz(&at, Some(&stored())).await.unwrap_err();
        assert_eq!(error.to_string(), format!("no answer from https://{address}/varz"));
        plain.await.unwrap();
    }

    #[test]
    fn the_end_of_each_listeners_certificate_is_read_where_nats_server_reports_the_end() {
        let old = r#"{"version": "2.10.26", "server_id": "A", "config_load_time": "2026-03-01T12:00:00Z", "cluster": {"addr": "::"}"#;
        let read = |more: &str| serde_json::from_str::<Varz>(&format!("{old}{more}}}")).unwrap();
        assert_eq!(read("").ends.at(Port::Client), None);
        let end = r#""tls_cert_not_after": "2026-03-02T12:00:00Z""#;
        let new = read(&format!(r#", {end}, "leaf": {{{end}}}, "mqtt": {{"tls_cert_not_after": "soon"}}"#));
        let told = Some(datetime!(2026-03-02 12:00 UTC));
        let ends = [Port::Client, Port::Monitor, Port::Leafnode, Port::Mqtt, Port::Route].map(|port| new.ends.at(port));
        assert_eq!(ends, [told, told, told, None, None]);
    }
}
