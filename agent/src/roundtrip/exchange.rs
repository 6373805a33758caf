//! The requests of one pair of nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{Client, RequestErrorKind};
use bytes::Bytes;
use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Plan;
use super::connection::Connected;
use super::latency::Latencies;

/// How long the first reply may take. A new subscription spreads over the routes in milliseconds.
const FIRST_REPLY_WITHIN: Duration = Duration::from_secs(5);
/// The pause after a request that fails at once. A node that restarts is away for a second.
const PAUSE: Duration = Duration::from_millis(100);
/// A pair without a reply for this long, and for this number of requests, is given up.
const GIVEN_UP_AFTER: (Duration, u32) = (Duration::from_secs(10), 10);

/// Requests without a reply, by what became of them.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Losses {
    /// No reply came in time.
    pub timed_out: u32,
    /// Nobody listened, so far as the requester's node knew.
    pub no_responders: u32,
    /// The client failed.
    pub failed: u32,
    /// There was no connection, or the pair was given up.
    pub not_sent: u32,
    /// Why requests were not sent or failed, for a person.
    #[serde(skip)]
    pub why: Option<String>,
}

impl Losses {
    /// All requests of a pair, which were not sent for this reason.
    pub(super) fn of_all(requests: u32, why: String) -> Self {
        Self { not_sent: requests, why: Some(why), ..Self::default() }
    }

    /// The number of requests without a reply.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.timed_out + self.no_responders + self.failed + self.not_sent
    }

    fn add(&mut self, other: Self) {
        self.timed_out += other.timed_out;
        self.no_responders += other.no_responders;
        self.failed += other.failed;
        self.not_sent += other.not_sent;
        self.why = self.why.take().or(other.why);
    }
}

/// When requests fall due, for all pairs together.
pub(super) struct Pace {
    begun: Instant,
    rate: Option<u32>,
    next: AtomicU64,
}

impl Pace {
    pub(super) fn new(rate: Option<u32>) -> Self {
        Self { begun: Instant::now(), rate, next: AtomicU64::new(0) }
    }

    /// Waits until the next request is due. The times don't depend on replies, so a slow reply never lowers the rate for long.
    async fn due(&self) {
        if let Some(rate) = self.rate {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            sleep_until(self.begun + after(number, rate)).await;
        }
    }
}

/// When the request of this number is due, from the beginning.
fn after(number: u64, rate: u32) -> Duration {
    let rate = u64::from(rate.max(1));
    Duration::from_secs(number / rate) + Duration::from_nanos(number % rate * 1_000_000_000 / rate)
}

/// Two nodes: requests go into the cluster at one, and are answered at the other.
pub(super) struct Pair {
    client: Client,
    subject: String,
}

impl Pair {
    /// The pair, once a first request has its reply. The error is for a person.
    pub(super) async fn prepared(
        nodes: &[Result<Connected, String>],
        (from, to): (usize, usize),
        plan: &Plan,
    ) -> Result<Self, String> {
        let (from, to) = (nodes[from].as_ref().map_err(Clone::clone)?, nodes[to].as_ref().map_err(Clone::clone)?);
        let pair = Self { client: from.client.clone(), subject: to.subject.clone() };
        let deadline = Instant::now() + FIRST_REPLY_WITHIN.max(plan.timeout);
        loop {
            let why = match pair.ask(Bytes::new(), plan.timeout).await {
                Ok(()) => return Ok(pair),
                Err(loss) => loss.to_string(),
            };
            if Instant::now() >= deadline {
                let said = from.said().or(to.said()).map(|said| format!("; nats-server says: {said}"));
                return Err(format!("no first reply: {why}{}", said.unwrap_or_default()));
            }
            sleep(PAUSE).await;
        }
    }

    async fn ask(&self, payload: Bytes, within: Duration) -> Result<(), Loss> {
        match timeout(within, self.client.request(self.subject.clone(), payload)).await {
            Ok(Ok(_reply)) => Ok(()),
            Ok(Err(error)) => Err(match error.kind() {
                RequestErrorKind::NoResponders => Loss::NoResponders,
                RequestErrorKind::TimedOut => Loss::TimedOut,
                _ => Loss::Failed(crate::error::with_causes(&error)),
            }),
            Err(_elapsed) => Err(Loss::TimedOut),
        }
    }

    /// Sends all requests of the pair. Returns the times of the replies, and the requests without a reply.
    pub(super) async fn exchange(
        self,
        plan: &Plan,
        content: Bytes,
        pace: &Arc<Pace>,
        done: &Arc<AtomicU64>,
    ) -> (Latencies, Losses) {
        let shared = Arc::new(Shared {
            pair: self,
            plan: plan.clone(),
            content,
            pace: Arc::clone(pace),
            done: Arc::clone(done),
            sent: AtomicU32::new(0),
            silence: Silence::new(),
        });
        let workers = (0..plan.concurrency.min(plan.requests)).map(|_| tokio::spawn(worker(Arc::clone(&shared))));
        let mut all = (Latencies::default(), Losses::default());
        for (latencies, losses) in join_all(workers).await.into_iter().flatten() {
            all.0.extend(&latencies);
            all.1.add(losses);
        }
        // A request that no worker took was given up.
        let accounted = u32::try_from(all.0.count()).unwrap_or(u32::MAX).saturating_add(all.1.total());
        let not_sent = plan.requests.saturating_sub(accounted);
        if not_sent > 0 {
            done.fetch_add(not_sent.into(), Ordering::Relaxed);
            let why = format!("given up after {} s without a reply", GIVEN_UP_AFTER.0.as_secs());
            all.1.add(Losses::of_all(not_sent, why));
        }
        all
    }
}

/// What the workers of one pair share.
struct Shared {
    pair: Pair,
    plan: Plan,
    /// The content of each request.
    content: Bytes,
    pace: Arc<Pace>,
    done: Arc<AtomicU64>,
    sent: AtomicU32,
    silence: Silence,
}

/// Sends one request after the other until all are sent, or the pair is given up.
async fn worker(shared: Arc<Shared>) -> (Latencies, Losses) {
    let plan = &shared.plan;
    let (mut latencies, mut losses) = (Latencies::default(), Losses::default());
    while !shared.silence.is_long() && shared.sent.fetch_add(1, Ordering::Relaxed) < plan.requests {
        shared.pace.due().await;
        let begun = Instant::now();
        let outcome = shared.pair.ask(shared.content.clone(), plan.timeout).await;
        let taken = begun.elapsed();
        shared.done.fetch_add(1, Ordering::Relaxed);
        shared.silence.note(outcome.is_ok());
        match outcome {
            Ok(()) => latencies.note(taken),
            Err(loss) => {
                let fails_at_once = loss != Loss::TimedOut;
                losses.add(loss.into());
                if fails_at_once {
                    sleep(PAUSE).await;
                }
            }
        }
    }
    (latencies, losses)
}

/// How long a pair has had no reply.
struct Silence {
    begun: Instant,
    /// Milliseconds from the beginning to the last reply.
    last: AtomicU64,
    /// Requests without a reply since then.
    losses: AtomicU32,
}

impl Silence {
    fn new() -> Self {
        Self { begun: Instant::now(), last: AtomicU64::new(0), losses: AtomicU32::new(0) }
    }

    fn note(&self, is_reply: bool) {
        if is_reply {
            let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.last.store(now, Ordering::Relaxed);
            self.losses.store(0, Ordering::Relaxed);
        } else {
            self.losses.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_long(&self) -> bool {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        let (time, losses) = GIVEN_UP_AFTER;
        self.losses.load(Ordering::Relaxed) >= losses && self.begun.elapsed().saturating_sub(last) >= time
    }
}

/// What became of one request without a reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Loss {
    #[error("no reply in time")]
    TimedOut,
    #[error("nobody listens")]
    NoResponders,
    #[error("{0}")]
    Failed(String),
}

impl From<Loss> for Losses {
    fn from(loss: Loss) -> Self {
        match loss {
            Loss::TimedOut => Self { timed_out: 1, ..Self::default() },
            Loss::NoResponders => Self { no_responders: 1, ..Self::default() },
            Loss::Failed(why) => Self { failed: 1, why: Some(why), ..Self::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_fall_due_at_the_rate() {
        assert_eq!(after(0, 1_000), Duration::ZERO);
        assert_eq!(after(1, 1_000), Duration::from_millis(1));
        assert_eq!(after(2_500, 1_000), Duration::from_millis(2_500));
        assert_eq!(after(7, 1), Duration::from_secs(7));
    }

    #[test]
    fn losses_are_counted_by_kind_and_the_first_reason_stays() {
        let mut losses = Losses::default();
        for loss in [Loss::TimedOut, Loss::NoResponders, Loss::Failed("first".into()), Loss::Failed("second".into())] {
            losses.add(loss.into());
        }
        losses.add(Losses::of_all(5, "third".into()));
        let expected = Losses { timed_out: 1, no_responders: 1, failed: 2, not_sent: 5, why: Some("first".into()) };
        assert_eq!((losses.total(), losses), (9, expected));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pair_is_given_up_after_a_long_silence_and_after_several_requests_alone() {
        let silence = Silence::new();
        tokio::time::advance(Duration::from_mins(1)).await;
        // At a low rate a minute may pass between two requests.
        (0..9).for_each(|_| silence.note(false));
        assert!(!silence.is_long());
        silence.note(false);
        assert!(silence.is_long());
        silence.note(true);
        (0..20).for_each(|_| silence.note(false));
        assert!(!silence.is_long());
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(silence.is_long());
    }
}
