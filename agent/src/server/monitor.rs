//! The monitoring port of nats-server, over plain HTTP on loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;

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
}

impl Routez {
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
#[error("no answer from http://{address}{path}")]
pub struct MonitorError {
    /// The address of the monitoring port.
    pub address: SocketAddr,
    /// The path of the request.
    pub path: &'static str,
    /// The cause.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Reads `/varz`.
pub async fn varz(address: SocketAddr) -> Result<Varz, MonitorError> {
    get(address, "/varz").await
}

/// Reads `/routez`.
pub async fn routez(address: SocketAddr) -> Result<Routez, MonitorError> {
    get(address, "/routez").await
}

/// Reads any path of the monitoring port.
pub(crate) async fn get<T: DeserializeOwned>(address: SocketAddr, path: &'static str) -> Result<T, MonitorError> {
    let failed = |source| MonitorError { address, path, source };
    let answer = tokio::time::timeout(TIMEOUT, fetch(address, path)).await;
    let bytes = answer.map_err(|elapsed| failed(elapsed.into()))?.map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}

/// Whether nats-server answers that something isn't available (503), as `/healthz` does.
pub(crate) async fn is_unavailable(address: SocketAddr, path: &'static str) -> Result<bool, MonitorError> {
    let failed = |source| MonitorError { address, path, source };
    let answer = tokio::time::timeout(TIMEOUT, ask(address, path)).await;
    let response = answer.map_err(|elapsed| failed(elapsed.into()))?.map_err(failed)?;
    Ok(response.status() == hyper::StatusCode::SERVICE_UNAVAILABLE)
}

async fn fetch(address: SocketAddr, path: &str) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    let response = ask(address, path).await?;
    if !response.status().is_success() {
        return Err(format!("it answered {}", response.status()).into());
    }
    Ok(Limited::new(response.into_body(), MAX_ANSWER).collect().await?.to_bytes())
}

/// The head of an answer, whatever its status, with the body to read.
async fn ask(
    address: SocketAddr,
    path: &str,
) -> Result<hyper::Response<hyper::body::Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = hyper::Request::get(path).header("host", address.to_string()).body(Empty::<Bytes>::new())?;
    // The task ends once the sender is dropped. A time-out drops the sender too.
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}
