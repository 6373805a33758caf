//! The other servers of the cluster, as they can be seen from here: what would be dropped is dialled first.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::server::probe::{Port, Prober};
use crate::trust::VerifiedChain;

/// How long a peer that left the group may take to show that it still answers: time for a SYN that is lost to be sent again,
/// after one second and after three (RFC 6298, section 2).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
/// How many peers are dialled at the same time.
const DIALS: usize = 32;

/// The way to the peers' route ports.
#[async_trait]
pub trait Dial: Send + Sync {
    /// The chains that these servers show on their route ports, each leaf first in DER; nothing for one that shows none.
    /// `ours` is presented to them.
    async fn served_chains(&self, ours: &VerifiedChain, peers: Vec<SocketAddr>) -> Vec<Option<Vec<Vec<u8>>>>;

    /// Which of these peers still accept a connection, or can't be asked for a reason that is this machine's own.
    async fn answering(&self, peers: Vec<SocketAddr>) -> BTreeSet<SocketAddr>;
}

/// The real network.
#[derive(Clone, Copy, Debug)]
pub struct Network;

#[async_trait]
impl Dial for Network {
    async fn served_chains(&self, ours: &VerifiedChain, peers: Vec<SocketAddr>) -> Vec<Option<Vec<Vec<u8>>>> {
        let Ok(prober) = Prober::presenting(Some(ours)) else { return vec![None] };
        concurrently(peers, move |address| {
            let prober = prober.clone();
            async move { prober.served(address, Port::Route).await.ok() }
        })
        .await
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
