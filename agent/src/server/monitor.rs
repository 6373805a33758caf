//! nats-server's monitoring port: what it says about itself. Over plain HTTP on loopback.

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

/// Of `/varz`, what the agent reads.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Varz {
    /// nats-server's version.
    pub version: String,
    /// Changes with every start.
    pub server_id: String,
    /// When the configuration in force was loaded.
    #[serde(with = "time::serde::rfc3339")]
    pub config_load_time: OffsetDateTime,
    /// The digest that `-t` prints of the same configuration; from 2.11 on.
    #[serde(default)]
    pub config_digest: Option<String>,
}

/// Of `/routez`, what the agent reads.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Routez {
    /// One entry a connection: with route pooling several to each peer.
    #[serde(default)]
    pub routes: Vec<RouteConnection>,
}

/// One connection to a peer.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct RouteConnection {
    /// The peer's server id.
    pub remote_id: String,
    /// The peer's server name; from 2.10 on.
    #[serde(default)]
    pub remote_name: String,
    /// The other end's address, which is the peer's route address where this node dialled.
    #[serde(default)]
    pub ip: Option<IpAddr>,
}

impl Routez {
    /// The distinct peers: server id to name and addresses.
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
    /// Who was asked.
    pub address: SocketAddr,
    /// For what.
    pub path: &'static str,
    /// What went wrong.
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

async fn get<T: DeserializeOwned>(address: SocketAddr, path: &'static str) -> Result<T, MonitorError> {
    let failed = |source| MonitorError { address, path, source };
    let answer = tokio::time::timeout(TIMEOUT, fetch(address, path)).await;
    let bytes = answer.map_err(|elapsed| failed(elapsed.into()))?.map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}

async fn fetch(address: SocketAddr, path: &str) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = hyper::Request::get(path).header("host", address.to_string()).body(Empty::<Bytes>::new())?;
    // Ends by itself once the sender is dropped, at the time-out too.
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    if !response.status().is_success() {
        return Err(format!("it answered {}", response.status()).into());
    }
    Ok(Limited::new(response.into_body(), MAX_ANSWER).collect().await?.to_bytes())
}
