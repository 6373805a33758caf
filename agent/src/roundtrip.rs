//! Requests and replies between the nodes of a cluster, through TLS, as clients make them.
//!
//! Each node gets one connection, to its client port. A responder listens on each connection, and each connection sends
//! requests to the responders of all other nodes. So every request and every reply crosses one route.

pub mod latency;
pub mod login;
pub mod report;

mod connection;
mod exchange;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use self::connection::Connected;
pub use self::connection::{Access, AccessError};
use self::exchange::{Losses, Pace, Pair};
use self::latency::Latencies;
use self::report::{NodeReport, PairReport, Report};

/// The most nodes.
pub const MAX_NODES: usize = 200;
/// The most requests under way at the same time, of all pairs together. Each takes some kilobytes.
pub const MAX_UNDER_WAY: u64 = 10_000;
/// The most requests of one run, of all pairs together. Each time takes four bytes.
pub const MAX_REQUESTS: u64 = 10_000_000;
/// The most bytes of requests under way at the same time, of all pairs together. Clients and servers buffer each request and
/// each reply. nats-server ends a client whose buffer exceeds `max_pending`
/// (<https://docs.nats.io/reference/config/max_pending.md>), 64 MiB by default (`server/const.go`).
pub const MAX_BYTES_UNDER_WAY: u64 = 256 * MIB;
/// The most bytes of all requests of one run, so that a mistyped size doesn't fill the routes for hours.
pub const MAX_BYTES: u64 = 64 * 1024 * MIB;

const MIB: u64 = 1024 * 1024;

/// A node to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The name until nats-server says its own.
    pub name: String,
    /// `host:port` of the client listener.
    pub address: String,
}

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Requests of each pair.
    pub requests: u32,
    /// Requests of each pair that are under way at the same time.
    pub concurrency: u32,
    /// Requests a second, of all pairs together. `None`: as many as the cluster answers.
    pub rate: Option<u32>,
    /// Bytes of a request, and of its reply.
    pub size: u32,
    /// How long a request waits for its reply.
    pub timeout: Duration,
    /// The first tokens of every subject that the clients use.
    pub prefix: String,
}

/// Why a plan is not carried out.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// There is nobody to ask.
    #[error("no node is known; name the nodes with --server")]
    NoNodes,
    /// More nodes than one machine can connect to at the same time.
    #[error("{0} nodes are more than {MAX_NODES}; name some of them with --server")]
    Nodes(usize),
    /// More requests at the same time than memory should hold.
    #[error(
        "{0} requests at the same time are more than {MAX_UNDER_WAY}; lower --concurrency, which counts for each pair"
    )]
    UnderWay(u64),
    /// More times of requests than memory should hold.
    #[error("{0} requests are more than {MAX_REQUESTS}; lower --requests, which counts for each pair")]
    Requests(u64),
    /// More content at the same time than memory should hold.
    #[error(
        "{} MiB of requests at the same time are more than {}; lower --size or --concurrency, which counts for each pair",
        .0.div_ceil(MIB), MAX_BYTES_UNDER_WAY / MIB
    )]
    BytesUnderWay(u64),
    /// More content than the routes of a cluster should carry for a probe.
    #[error(
        "{} MiB of requests are more than {}; lower --size or --requests, which counts for each pair", .0.div_ceil(MIB),
        MAX_BYTES / MIB
    )]
    Bytes(u64),
}

/// The pairs of nodes: from each node to each other node. A node alone is a pair with itself.
fn pairs(nodes: usize) -> Vec<(usize, usize)> {
    let all = (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to)));
    all.filter(|(from, to)| nodes == 1 || from != to).collect()
}

impl Plan {
    /// The number of requests to this many nodes.
    ///
    /// # Errors
    /// The plan is beyond the bounds.
    pub fn total(&self, nodes: usize) -> Result<u64, PlanError> {
        match nodes {
            0 => return Err(PlanError::NoNodes),
            _ if nodes > MAX_NODES => return Err(PlanError::Nodes(nodes)),
            _ => {}
        }
        let pairs = pairs(nodes).len() as u64;
        let under_way = pairs * u64::from(self.concurrency.min(self.requests));
        if under_way > MAX_UNDER_WAY {
            return Err(PlanError::UnderWay(under_way));
        }
        let bytes_under_way = under_way * u64::from(self.size);
        if bytes_under_way > MAX_BYTES_UNDER_WAY {
            return Err(PlanError::BytesUnderWay(bytes_under_way));
        }
        let requests = pairs * u64::from(self.requests);
        if requests > MAX_REQUESTS {
            return Err(PlanError::Requests(requests));
        }
        let bytes = requests * u64::from(self.size);
        if bytes > MAX_BYTES { Err(PlanError::Bytes(bytes)) } else { Ok(requests) }
    }
}

/// Sends every request of the plan, and waits for each reply. `done` counts the requests that have an outcome.
///
/// A node that can't be reached loses the requests of its pairs. The other pairs are measured all the same.
///
/// # Errors
/// The plan is beyond the bounds.
pub async fn measure(
    targets: &[Target],
    access: &Access,
    plan: &Plan,
    done: &Arc<AtomicU64>,
) -> Result<Report, PlanError> {
    plan.total(targets.len())?;
    // Nobody else on the cluster uses these subjects.
    let run: String = std::iter::repeat_with(fastrand::alphanumeric).take(16).collect();
    let subject = |index: usize| format!("{}.{run}.{index}", plan.prefix);
    let connecting = targets.iter().enumerate().map(|(at, target)| access.connect(target, subject(at), &plan.prefix));
    let nodes = join_all(connecting).await;
    let pairs = pairs(nodes.len());
    let prepared = pairs.iter().map(|(from, to)| Pair::prepared(&nodes, (*from, *to), plan));
    let prepared = join_all(prepared).await;
    let begun = Instant::now();
    let pace = Arc::new(Pace::new(plan.rate));
    // All requests share one content. A content for each would take gigabytes.
    let content = Bytes::from(vec![b'.'; usize::try_from(plan.size).unwrap_or_default()]);
    let running = prepared.into_iter().map(|pair| {
        let (pace, done, plan, content) = (Arc::clone(&pace), Arc::clone(done), plan.clone(), content.clone());
        async move {
            match pair {
                Ok(pair) => pair.exchange(&plan, content, &pace, &done).await,
                Err(why) => {
                    done.fetch_add(plan.requests.into(), Ordering::Relaxed);
                    (Latencies::default(), Losses::of_all(plan.requests, why))
                }
            }
        }
    });
    let exchanged = join_all(running).await;
    let seconds = begun.elapsed().as_secs_f64();
    let mut all = Latencies::default();
    let mut told = Vec::new();
    for ((from, to), (latencies, losses)) in pairs.iter().zip(exchanged) {
        all.extend(&latencies);
        let of = |index: &usize| name(&targets[*index], &nodes[*index]);
        told.push(PairReport::new(of(from), of(to), plan.requests, latencies, losses));
    }
    let nodes = targets.iter().zip(&nodes).enumerate().map(|(at, (target, node))| {
        // Two nodes may have the same name.
        let own = pairs.iter().zip(&told).filter(|((from, to), _)| *from == at || *to == at);
        let replies = own.map(|(_, pair)| pair.replies).sum();
        let error = node.as_ref().map_or_else(|error| Some(error.clone()), Connected::said);
        NodeReport::new(name(target, node), target.address.clone(), error, replies, plan.size, seconds)
    });
    let nodes = nodes.collect();
    Ok(Report::new(seconds, nodes, told, all))
}

/// The name that nats-server says, or the name in the list of nodes.
fn name(target: &Target, node: &Result<Connected, String>) -> String {
    node.as_ref().ok().map(Connected::name).filter(|name| !name.is_empty()).unwrap_or_else(|| target.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(requests: u32, concurrency: u32) -> Plan {
        let (timeout, prefix) = (Duration::from_secs(1), "_INBOX".to_owned());
        Plan { requests, concurrency, rate: None, size: 0, timeout, prefix }
    }

    #[test]
    fn every_node_asks_every_other_and_a_node_alone_asks_itself() {
        assert_eq!(pairs(3), [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]);
        assert_eq!((pairs(1), pairs(0)), (vec![(0, 0)], vec![]));
    }

    #[test]
    fn a_plan_has_bounds_whatever_the_number_of_nodes() {
        assert_eq!(plan(100, 10).total(5), Ok(2_000));
        assert_eq!(plan(100, 10).total(0), Err(PlanError::NoNodes));
        assert_eq!(plan(1, 1).total(201), Err(PlanError::Nodes(201)));
        assert_eq!(plan(1_000, 1_000).total(5), Err(PlanError::UnderWay(20_000)));
        // A pair never has more requests under way than it sends.
        assert_eq!(plan(1, 1_000).total(5), Ok(20));
        assert_eq!(plan(1_000_000, 10).total(5), Err(PlanError::Requests(20_000_000)));
        assert!(plan(u32::MAX, u32::MAX).total(200).is_err());
    }

    #[test]
    fn the_content_of_a_plan_has_bounds_too_and_the_words_name_the_option_to_lower() {
        let plan = |requests, concurrency, size| Plan { size, ..plan(requests, concurrency) };
        // 20 pairs with 10 requests of a mebibyte each.
        assert_eq!(plan(100, 10, 1_048_576).total(5), Ok(2_000));
        let told = plan(1_000, 13, 1_048_576).total(5).unwrap_err();
        assert_eq!(told, PlanError::BytesUnderWay(260 * MIB));
        assert!(
            told.to_string().starts_with("260 MiB of requests at the same time are more than 256; lower --size or")
        );
        let told = plan(4_000, 10, 1_048_576).total(5).unwrap_err();
        assert_eq!(told, PlanError::Bytes(80_000 * MIB));
        assert!(told.to_string().starts_with("80000 MiB of requests are more than 65536; lower --size or --requests"));
        for (requests, concurrency, size) in [(u32::MAX, 1, u32::MAX), (1, u32::MAX, u32::MAX)] {
            assert!(plan(requests, concurrency, size).total(200).is_err());
        }
    }
}
