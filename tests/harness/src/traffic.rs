//! Counted NATS traffic. Every message carries a number and its time of sending, so each lost, duplicate or late
//! message is noticed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, Subscriber};
use futures_util::StreamExt as _;
use hyper::body::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::{Failure, eventually};

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// The time from the first message to its first receipt. Interest must spread through the cluster in this time.
const INTEREST_WITHIN: Duration = Duration::from_secs(15);
/// How many looks that see no further message end the wait for more messages. The looks take ten seconds or more: a busy machine
/// stalls a server, or this process, for seconds.
const QUIET: u32 = 2_000;
/// The interval in which a publisher sends the messages that are due.
const TICK: Duration = Duration::from_millis(5);
/// The number of a message that only tests whether the subscriber receives.
const PROBE: u64 = u64::MAX;

/// A nats-server from a client's view.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The client listener. The client looks for its IP address among the SANs.
    pub address: SocketAddr,
    /// The servers that the client tries after it has lost this server. Without others the client waits for this
    /// server.
    pub others: Vec<SocketAddr>,
    /// The client's side of TLS. `None`: the server has no TLS.
    pub tls: Option<ClientTls>,
}

/// A client's side of TLS, in PEM files.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// The only anchors that the client trusts.
    pub ca: PathBuf,
    /// The chain and the key that the client presents.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// Running publishers and subscribers.
#[derive(Debug)]
pub struct Traffic {
    pairs: Vec<Pair>,
    stop: watch::Sender<bool>,
}

/// The counts so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Messages published.
    pub sent: u64,
    /// Different messages received.
    pub received: u64,
}

/// The result of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages published.
    pub sent: u64,
    /// Different messages received.
    pub received: u64,
    /// Messages received more than once.
    pub duplicates: u64,
    /// The number of connections that clients lost.
    pub disconnects: u64,
    /// The number of times that clients connected again.
    pub reconnects: u64,
    /// The times from publish to receipt.
    pub latency: Latency,
}

impl Tally {
    /// Messages that never arrived.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

/// The distribution of times from publish to receipt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// The median.
    pub p50: Duration,
    /// The 99th percentile.
    pub p99: Duration,
    /// The longest time.
    pub max: Duration,
}

#[derive(Debug)]
struct Pair {
    publisher: Connection,
    subscriber: Connection,
    sent: Arc<AtomicU64>,
    received: Arc<Mutex<Received>>,
    publishing: JoinHandle<Result<(), Failure>>,
    receiving: JoinHandle<()>,
}

impl Traffic {
    /// Starts a publisher on each pair's first server and a subscriber on its second server. `rate` is the number of
    /// messages a second for all pairs together. Returns once every subscriber receives from its publisher.
    pub async fn start(pairs: &[(Endpoint, Endpoint)], rate: u32) -> Result<Self, Failure> {
        let (stop, stopped) = watch::channel(false);
        let mut started = Self { pairs: Vec::new(), stop };
        let share = f64::from(rate) / f64::from(u32::try_from(pairs.len().max(1)).unwrap_or(1));
        for (index, (publisher, subscriber)) in pairs.iter().enumerate() {
            let subject = format!("counted.{index}");
            started.pairs.push(Pair::start(publisher, subscriber, subject, share, stopped.clone()).await?);
        }
        Ok(started)
    }

    /// The counts so far.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.pairs.iter().fold(Progress::default(), |sum, pair| Progress {
            sent: sum.sent + pair.sent.load(Ordering::Relaxed),
            received: sum.received + lock(&pair.received).distinct,
        })
    }

    /// Stops the publishers, waits until nothing has arrived for three seconds, and counts.
    ///
    /// # Errors
    /// A publisher has failed.
    pub async fn stop(mut self) -> Result<Tally, Failure> {
        self.stop.send_replace(true);
        for pair in &mut self.pairs {
            (&mut pair.publishing).await.map_err(|error| Failure::new("a publisher broke").because(error))??;
        }
        self.settle().await;
        let mut tally = Tally::default();
        let mut latencies = Vec::new();
        for pair in &self.pairs {
            pair.receiving.abort();
            let received = lock(&pair.received);
            tally.sent += pair.sent.load(Ordering::Relaxed);
            tally.received += received.distinct;
            tally.duplicates += received.duplicates;
            latencies.extend_from_slice(&received.latencies);
            for connection in [&pair.publisher, &pair.subscriber] {
                tally.disconnects += connection.disconnects();
                tally.reconnects += connection.client.statistics().connects.load(Ordering::Relaxed).saturating_sub(1);
            }
        }
        latencies.sort_unstable();
        tally.latency = Latency {
            p50: percentile(&latencies, 50),
            p99: percentile(&latencies, 99),
            max: percentile(&latencies, 100),
        };
        Ok(tally)
    }

    async fn settle(&self) {
        let (mut seen, mut quiet) = (self.progress(), 0);
        while seen.received < seen.sent && quiet < QUIET {
            tokio::time::sleep(TICK).await;
            let now = self.progress();
            quiet = if now == seen { quiet + 1 } else { 0 };
            seen = now;
        }
    }
}

impl Pair {
    async fn start(
        publisher: &Endpoint,
        subscriber: &Endpoint,
        subject: String,
        rate: f64,
        stopped: watch::Receiver<bool>,
    ) -> Result<Self, Failure> {
        let (publisher, subscriber) = tokio::try_join!(Connection::open(publisher), Connection::open(subscriber))?;
        let subscription = subscriber
            .client
            .subscribe(subject.clone())
            .await
            .map_err(|error| Failure::new(format!("could not subscribe to {subject}")).because(error))?;
        let origin = Instant::now();
        let received = Arc::new(Mutex::new(Received::default()));
        let receiving = tokio::spawn(receive(subscription, origin, Arc::clone(&received)));
        let hears = eventually("a subscriber hears its publisher", INTEREST_WITHIN, async || {
            let probe = message(PROBE, Duration::ZERO);
            publisher.client.publish(subject.clone(), probe).await.map_err(|error| error.to_string())?;
            if lock(&received).probes > 0 { Ok(()) } else { Err("silence".to_owned()) }
        });
        hears.await?;
        let sent = Arc::new(AtomicU64::new(0));
        let publishing =
            tokio::spawn(publish(publisher.client.clone(), subject, rate, origin, Arc::clone(&sent), stopped));
        Ok(Self { publisher, subscriber, sent, received, publishing, receiving })
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.publishing.abort();
        self.receiving.abort();
    }
}

/// A client, and the number of times that it lost its server.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    disconnects: Arc<AtomicU64>,
}

impl Connection {
    /// The number of times that the client lost its server.
    pub(crate) fn disconnects(&self) -> u64 {
        self.disconnects.load(Ordering::Relaxed)
    }

    pub(crate) async fn open(endpoint: &Endpoint) -> Result<Self, Failure> {
        let disconnects = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&disconnects);
        let mut options = ConnectOptions::new()
            .connection_timeout(CONNECT_WITHIN)
            .ignore_discovered_servers()
            .retain_servers_order()
            // The capacity far exceeds the backlog of a stall of seconds, so this client drops no message.
            .subscription_capacity(1 << 20)
            .event_callback(move |event| {
                let counted = Arc::clone(&counted);
                async move {
                    if event == Event::Disconnected {
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        if let Some(tls) = &endpoint.tls {
            options = options.require_tls(true).add_root_certificates(tls.ca.clone());
            if let Some((chain, key)) = &tls.certificate {
                options = options.add_client_certificate(chain.clone(), key.clone());
            }
        }
        let scheme = if endpoint.tls.is_some() { "tls" } else { "nats" };
        let servers = std::iter::once(&endpoint.address).chain(&endpoint.others);
        let urls: Vec<_> = servers.map(|server| format!("{scheme}://{server}")).collect();
        let client = options
            .connect(&urls)
            .await
            .map_err(|error| Failure::new(format!("could not connect to {}", urls.join(", "))).because(error))?;
        Ok(Self { client, disconnects })
    }
}

async fn publish(
    client: Client,
    subject: String,
    rate: f64,
    origin: Instant,
    sent: Arc<AtomicU64>,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let cannot = || Failure::new(format!("could not publish to {subject}"));
    let started = Instant::now();
    let mut tick = tokio::time::interval(TICK);
    let mut next = 0;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = stopped.wait_for(|stopped| *stopped) => break,
        }
        while due(started.elapsed(), rate) > next {
            let payload = message(next, origin.elapsed());
            client.publish(subject.clone(), payload).await.map_err(|error| cannot().because(error))?;
            next += 1;
            sent.store(next, Ordering::Relaxed);
        }
    }
    match tokio::time::timeout(CONNECT_WITHIN, client.flush()).await {
        Ok(flushed) => flushed.map_err(|error| cannot().because(error)),
        Err(late) => Err(cannot().because(late)),
    }
}

/// The number of messages to be sent in this time.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "both are small and positive")]
fn due(elapsed: Duration, rate: f64) -> u64 {
    (elapsed.as_secs_f64() * rate) as u64
}

async fn receive(mut subscription: Subscriber, origin: Instant, received: Arc<Mutex<Received>>) {
    while let Some(message) = subscription.next().await {
        let now = origin.elapsed();
        if let Some((number, sent)) = parse(&message.payload) {
            lock(&received).note(number, now.saturating_sub(sent));
        }
    }
}

fn message(number: u64, sent: Duration) -> Bytes {
    let nanos = u64::try_from(sent.as_nanos()).unwrap_or(u64::MAX);
    Bytes::from([number.to_be_bytes(), nanos.to_be_bytes()].concat())
}

fn parse(payload: &[u8]) -> Option<(u64, Duration)> {
    let (number, sent) = payload.split_first_chunk()?;
    Some((u64::from_be_bytes(*number), Duration::from_nanos(u64::from_be_bytes(sent.try_into().ok()?))))
}

#[derive(Debug, Default)]
struct Received {
    seen: Vec<bool>,
    distinct: u64,
    duplicates: u64,
    probes: u64,
    latencies: Vec<Duration>,
}

impl Received {
    fn note(&mut self, number: u64, latency: Duration) {
        if number == PROBE {
            self.probes += 1;
            return;
        }
        let Ok(index) = usize::try_from(number) else { return };
        if index >= self.seen.len() {
            self.seen.resize(index + 1, false);
        }
        if std::mem::replace(&mut self.seen[index], true) {
            self.duplicates += 1;
        } else {
            self.distinct += 1;
            self.latencies.push(latency);
        }
    }
}

/// The nearest-rank percentile of sorted values. Without values it is zero.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// A poisoned lock stays usable, because the count of a thread that panicked is still correct.
fn lock(received: &Mutex<Received>) -> std::sync::MutexGuard<'_, Received> {
    received.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(values: impl IntoIterator<Item = u64>) -> Vec<Duration> {
        values.into_iter().map(Duration::from_millis).collect()
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let hundred = millis(1..=100);
        assert_eq!([50, 99, 100].map(|percent| percentile(&hundred, percent).as_millis()), [50, 99, 100]);
        let three = millis([1, 2, 9]);
        assert_eq!([50, 99, 100].map(|percent| percentile(&three, percent).as_millis()), [2, 9, 9]);
        assert_eq!(percentile(&millis([7]), 50).as_millis(), 7);
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }

    #[test]
    fn a_message_that_comes_twice_is_a_duplicate_and_one_that_is_missing_is_not_counted() {
        let mut received = Received::default();
        for number in [0, 3, 1, 3, PROBE] {
            received.note(number, Duration::ZERO);
        }
        assert_eq!((received.distinct, received.duplicates, received.probes), (3, 1, 1));
        assert_eq!(received.latencies.len(), 3);
    }

    #[test]
    fn a_message_says_its_number_and_time() {
        let sent = Duration::from_micros(1234);
        assert_eq!(parse(&message(7, sent)), Some((7, sent)));
        assert_eq!(parse(b"short"), None);
        assert_eq!(parse(&[0; 17]), None);
    }

    #[test]
    fn messages_fall_due_at_the_rate() {
        assert_eq!(due(Duration::from_millis(1500), 2000.0), 3000);
        assert_eq!(due(Duration::ZERO, 2000.0), 0);
    }
}
