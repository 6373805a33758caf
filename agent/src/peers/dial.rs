//! The peers' route ports. The agent dials a peer before it drops the peer's route or an anchor, and where nats-server has no
//! route to the peer.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::server::probe::{Port, Prober};
use crate::x509::chain::{Chain, StoredChain};

/// The longest wait for a peer. The system sends a lost SYN again after one second and after three (RFC
/// 6298, section 2).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
/// The most peers dialled at the same time.
const DIALS: usize = 32;

/// What a route port shows in a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The chain of the server.
    pub chain: Chain,
    /// The distinguished names in DER of the CAs that the server accepts. Empty: the server names none.
    pub accepts: Vec<Vec<u8>>,
}

/// The way to the peers' route ports.
#[async_trait]
pub trait Dial: Send + Sync {
    /// What each peer shows on its route port, or nothing where no handshake succeeds. The dialler presents `ours`.
    async fn shown(&self, ours: &StoredChain, peers: Vec<SocketAddr>) -> BTreeMap<SocketAddr, Option<Shown>>;

    /// The peers that still accept a connection, and those that a fault of this machine keeps from being asked.
    async fn answering(&self, peers: Vec<SocketAddr>) -> BTreeSet<SocketAddr>;
}

/// The real network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Network;

#[async_trait]
impl Dial for Network {
    async fn shown(&self, ours: &StoredChain, peers: Vec<SocketAddr>) -> BTreeMap<SocketAddr, Option<Shown>> {
        let mut shown = peers.iter().map(|address| (*address, None)).collect::<BTreeMap<_, _>>();
        if let Ok(prober) = Prober::presenting(ours) {
            let dialled = concurrently(peers, move |address| {
                let prober = prober.clone();
                async move {
                    let shown = prober.shown(&address.to_string(), Port::Route.opening()).await.ok();
                    (address, shown.map(|(chain, accepts)| Shown { chain, accepts }))
                }
            });
            shown.extend(dialled.await);
        }
        shown
    }

    async fn answering(&self, peers: Vec<SocketAddr>) -> BTreeSet<SocketAddr> {
        let answers = concurrently(peers, |address| async move {
            let silent = match tokio::time::timeout(ANSWER_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(_answers)) => false,
                Ok(Err(error)) => {
                    matches!(
                        error.kind(),
                        ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::TimedOut
                    )
                }
                Err(_elapsed) => true,
            };
            (!silent).then_some(address)
        });
        answers.await.into_iter().flatten().collect()
    }
}

/// Runs a task for each address, [`DIALS`] at a time.
async fn concurrently<T, F>(addresses: Vec<SocketAddr>, task: impl Fn(SocketAddr) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let (mut running, mut results) = (JoinSet::new(), Vec::new());
    for address in addresses {
        if running.len() >= DIALS
            && let Some(Ok(result)) = running.join_next().await
        {
            results.push(result);
        }
        running.spawn(task(address));
    }
    while let Some(result) = running.join_next().await {
        results.extend(result);
    }
    results
}
