//! A static list of peers, for fleets without an Auto Scaling group and off AWS.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;

use super::{Peer, PeerSource, Sighting};
use crate::config::HostPort;
use crate::error::{RemoteError, RemoteErrorKind};

const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// The peers that `discovery.peers` names.
pub(crate) struct StaticList {
    /// The peers as configured.
    pub(crate) peers: Vec<HostPort>,
    /// This node's own route address, which need not be among them.
    pub(crate) own: SocketAddr,
}

#[async_trait]
impl PeerSource for StaticList {
    /// Looks every name up. The smallest of several addresses counts, so that the text of the route stays the same.
    async fn sight(&self) -> Result<Sighting, RemoteError> {
        let mut seen = Sighting::default();
        let mut look_ups = JoinSet::new();
        for peer in self.peers.iter().cloned() {
            look_ups.spawn(async move { (look_up(&peer).await, peer) });
        }
        while let Some(Ok((address, peer))) = look_ups.join_next().await {
            match address {
                Some(address) => seen.peers.push(Peer { id: peer.to_string(), address, state: "static".into() }),
                None => seen.unresolved.push(peer.to_string()),
            }
        }
        if !seen.peers.iter().any(|peer| peer.address == self.own) {
            seen.peers.push(Peer { id: self.own.to_string(), address: self.own, state: "static".into() });
        }
        if seen.peers.len() == 1 && !seen.unresolved.is_empty() {
            return Err(RemoteError::new(
                RemoteErrorKind::Unavailable,
                "looking up discovery.peers",
                format!("none of {} has an address", seen.unresolved.join(", ")),
                "check the names, and this host's resolver",
            ));
        }
        Ok(seen)
    }
}

async fn look_up(peer: &HostPort) -> Option<SocketAddr> {
    let look_up = tokio::net::lookup_host((peer.host.as_str(), peer.port));
    tokio::time::timeout(LOOKUP_TIMEOUT, look_up).await.ok()?.ok()?.min()
}
