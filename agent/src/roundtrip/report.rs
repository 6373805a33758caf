//! What a run of requests showed.

use std::time::Duration;

use serde::Serialize;

pub use super::exchange::Losses;
use super::latency::{Latencies, Summary};

/// A run of requests between all pairs.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How long the run took, without the connections before.
    pub seconds: f64,
    /// Requests of all pairs.
    pub requests: u64,
    /// Replies to all pairs.
    pub replies: u64,
    /// Replies for each request, 0 to 1.
    pub success_rate: f64,
    /// Replies a second.
    pub replies_per_second: f64,
    /// The times of all replies.
    pub latency: Option<Summary>,
    /// Each node, and what it carried.
    pub nodes: Vec<NodeReport>,
    /// Each pair of nodes, in both directions.
    pub pairs: Vec<PairReport>,
}

/// What one node carried.
#[derive(Clone, Debug, Serialize)]
pub struct NodeReport {
    /// `server_name`, or the peer's id where there is no connection.
    pub name: String,
    /// `host:port` of the client listener.
    pub address: String,
    /// Why there is no connection, or the last error that nats-server told the client.
    pub error: Option<String>,
    /// Requests with a reply that went through this node.
    pub replies: u64,
    /// Requests and replies a second that went through this node.
    pub messages_per_second: f64,
    /// Bytes a second of their content.
    pub bytes_per_second: f64,
}

/// The requests from one node to another.
#[derive(Clone, Debug, Serialize)]
pub struct PairReport {
    /// Where the requests go into the cluster.
    pub from: String,
    /// Where the requests are answered.
    pub to: String,
    /// Requests.
    pub requests: u32,
    /// Replies.
    pub replies: u64,
    /// Requests without a reply, by what became of them.
    pub lost: Losses,
    /// Why requests were not sent, or failed.
    pub error: Option<String>,
    /// The times of the replies.
    pub latency: Option<Summary>,
}

impl NodeReport {
    /// A request and its reply are two messages, and each goes through this node once.
    pub(super) fn new(
        name: String,
        address: String,
        error: Option<String>,
        replies: u64,
        size: u32,
        seconds: f64,
    ) -> Self {
        let messages_per_second = rate(replies * 2, seconds);
        let bytes_per_second = rate(replies * 2 * u64::from(size), seconds);
        Self { name, address, error, replies, messages_per_second, bytes_per_second }
    }
}

impl PairReport {
    pub(super) fn new(from: String, to: String, requests: u32, latencies: Latencies, lost: Losses) -> Self {
        let (replies, error) = (latencies.count(), lost.why.clone());
        Self { from, to, requests, replies, lost, error, latency: latencies.summary() }
    }

    /// Whether the 99th percentile is above this time.
    #[must_use]
    pub fn is_slower_than(&self, max: Duration) -> bool {
        self.latency.is_some_and(|latency| latency.p99 > max)
    }
}

impl Report {
    #[expect(clippy::cast_precision_loss, reason = "the bounds of a run are far below 2^52")]
    pub(super) fn new(seconds: f64, nodes: Vec<NodeReport>, pairs: Vec<PairReport>, all: Latencies) -> Self {
        let requests = pairs.iter().map(|pair| u64::from(pair.requests)).sum::<u64>();
        let replies = all.count();
        let success_rate = if requests == 0 { 0.0 } else { replies as f64 / requests as f64 };
        let replies_per_second = rate(replies, seconds);
        Self { seconds, requests, replies, success_rate, replies_per_second, latency: all.summary(), nodes, pairs }
    }

    /// The number of requests without a reply.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.requests - self.replies
    }

    /// The pairs whose 99th percentile is above this time.
    pub fn slower_than(&self, max: Duration) -> impl Iterator<Item = &PairReport> {
        self.pairs.iter().filter(move |pair| pair.is_slower_than(max))
    }
}

#[expect(clippy::cast_precision_loss, reason = "the bounds of a run are far below 2^52")]
fn rate(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}
