//! Rounds of concurrent HTTP requests, as through a load balancer: 20 at once, and now and then 200 at once.
//!
//! Between two rounds no request is on its way, so the target changes as a load balancer changes it, without a lost request.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::{Failure, eventually, join_all, table};

/// The numbers of requests at once.
pub const AT_ONCE: [usize; 2] = [20, 200];
/// How many rounds of 20 come before each round of 200.
const SMALL_ROUNDS: usize = 4;
/// How long an HTTP client waits for an answer.
const WITHIN: Duration = Duration::from_secs(15);
const BODY_LIMIT: usize = 64 * 1024;
/// How many rounds of each size an event has at least.
const LEAST_ROUNDS: usize = 2;
const ROUNDS_WITHIN: Duration = Duration::from_mins(1);

/// What came of the requests of one size of round.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    rounds: usize,
    /// Requests.
    pub requests: usize,
    /// What came back in place of an answer.
    pub failures: Vec<String>,
    /// How often the gateway asked NATS again.
    pub asked_again: usize,
    latencies: Vec<Duration>,
}

impl Figures {
    /// The mean time of an answer.
    #[must_use]
    pub fn mean(&self) -> Duration {
        let count = u32::try_from(self.latencies.len()).unwrap_or(u32::MAX).max(1);
        self.latencies.iter().sum::<Duration>() / count
    }

    fn note(&mut self, took: Duration, answer: Result<usize, String>) {
        self.requests += 1;
        match answer {
            Ok(asked) => {
                self.asked_again += asked.saturating_sub(1);
                self.latencies.push(took);
            }
            Err(failure) => self.failures.push(failure),
        }
    }

    fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100);
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// The requests during one event, 20 at once and 200 at once.
#[derive(Clone, Debug)]
pub struct Event {
    name: String,
    took: Duration,
    /// In the order of [`AT_ONCE`].
    pub figures: [Figures; 2],
}

impl Event {
    /// Whether each request had its answer, and there were requests of both sizes.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.figures.iter().all(|figures| figures.failures.is_empty() && figures.rounds >= LEAST_ROUNDS)
    }
}

/// A table of events, with latencies in milliseconds.
#[must_use]
pub fn render(events: &[Event]) -> String {
    let head =
        ["event", "seconds", "at once", "requests", "failed", "asked again", "min", "mean", "p50", "p99", "max ms"];
    let rows: Vec<_> = events
        .iter()
        .flat_map(|event| event.figures.iter().zip(AT_ONCE).map(move |(figures, at_once)| (event, at_once, figures)))
        .map(|(event, at_once, figures)| {
            let millis = |duration: Duration| format!("{:.1}", duration.as_secs_f64() * 1000.0);
            [
                event.name.clone(),
                format!("{:.1}", event.took.as_secs_f64()),
                at_once.to_string(),
                figures.requests.to_string(),
                figures.failures.len().to_string(),
                figures.asked_again.to_string(),
                millis(figures.latencies.iter().min().copied().unwrap_or_default()),
                millis(figures.mean()),
                millis(figures.percentile(50)),
                millis(figures.percentile(99)),
                millis(figures.percentile(100)),
            ]
        })
        .collect();
    table::render(&head.map(String::from), &rows)
}

/// Rounds that go on until they are stopped.
#[derive(Debug)]
pub struct Rounds {
    target: watch::Sender<SocketAddr>,
    /// The target of the present round.
    asked: watch::Receiver<SocketAddr>,
    figures: Arc<Mutex<[Figures; 2]>>,
    /// The end of the event before.
    since: Instant,
    task: JoinHandle<()>,
}

impl Rounds {
    /// Asks for this path at a gateway, round after round. The pause between two rounds leaves the machine to the services.
    #[must_use]
    pub fn start(target: SocketAddr, path: &str, pause: Duration) -> Self {
        let (target, wanted) = watch::channel(target);
        let (asks, asked) = watch::channel(*wanted.borrow());
        let figures = Arc::<Mutex<[Figures; 2]>>::default();
        let task = tokio::spawn(go_round(path.to_owned(), pause, wanted, asks, Arc::clone(&figures)));
        Self { target, asked, figures, since: Instant::now(), task }
    }

    /// Sends the next rounds to another gateway. Returns once no request is on its way to the gateway before.
    pub async fn move_to(&mut self, target: SocketAddr) -> Result<(), Failure> {
        self.target.send_replace(target);
        let moved = tokio::time::timeout(ROUNDS_WITHIN, self.asked.wait_for(|asked| *asked == target)).await;
        let cannot = || Failure::new(format!("the requests did not move to {target}"));
        moved.map_err(|late| cannot().because(late))?.map(drop).map_err(|ended| cannot().because(ended))
    }

    /// Ends an event: waits for rounds of both sizes, and returns the figures since the event before.
    pub async fn event(&mut self, name: &str) -> Result<Event, Failure> {
        let rounds = || self.lock().each_ref().map(|figures| figures.rounds);
        let before = rounds();
        eventually("rounds of requests", ROUNDS_WITHIN, async || {
            let done = rounds().iter().zip(before).all(|(now, before)| *now >= before + LEAST_ROUNDS);
            if done { Ok(()) } else { Err(format!("{:?}, after {before:?}", rounds())) }
        })
        .await?;
        let (took, figures) = (self.since.elapsed(), std::mem::take(&mut *self.lock()));
        self.since = Instant::now();
        Ok(Event { name: name.to_owned(), took, figures })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, [Figures; 2]> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Connection = Option<SendRequest<Empty<Bytes>>>;

async fn go_round(
    path: String,
    pause: Duration,
    wanted: watch::Receiver<SocketAddr>,
    asks: watch::Sender<SocketAddr>,
    figures: Arc<Mutex<[Figures; 2]>>,
) {
    let mut connections: Vec<Connection> = Vec::new();
    connections.resize_with(AT_ONCE[1], || None);
    for round in 0.. {
        let target = *wanted.borrow();
        if *asks.borrow() != target {
            connections.fill_with(|| None);
            asks.send_replace(target);
        }
        let size = usize::from(round % (SMALL_ROUNDS + 1) == SMALL_ROUNDS);
        let requests = connections[..AT_ONCE[size]].iter_mut().map(async |connection| {
            let begun = Instant::now();
            let asked = tokio::time::timeout(WITHIN, ask(connection, target, &path)).await;
            let answer = asked.unwrap_or_else(|_| Err(format!("no answer within {WITHIN:?}")));
            if answer.is_err() {
                *connection = None;
            }
            (begun.elapsed(), answer)
        });
        let answers = join_all(requests).await;
        {
            let mut figures = figures.lock().unwrap_or_else(PoisonError::into_inner);
            let figures = &mut figures[size];
            figures.rounds += 1;
            for (took, answer) in answers {
                figures.note(took, answer);
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// One request over a connection that is kept. Returns how often the gateway asked NATS.
async fn ask(connection: &mut Connection, target: SocketAddr, path: &str) -> Result<usize, String> {
    let told = |error: hyper::Error| format!("{target}: {error:?}");
    let sender = if let Some(sender) = connection {
        sender
    } else {
        let stream = TcpStream::connect(target).await.map_err(|error| format!("{target}: {error}"))?;
        let (sender, task) = handshake(TokioIo::new(stream)).await.map_err(told)?;
        tokio::spawn(task);
        connection.insert(sender)
    };
    sender.ready().await.map_err(told)?;
    let request = Request::get(path).header(header::HOST, target.to_string()).body(Empty::new());
    let answer = sender.send_request(request.map_err(|error| error.to_string())?).await.map_err(told)?;
    let status = answer.status();
    let asked = answer.headers().get("x-asked").and_then(|asked| asked.to_str().ok()?.parse().ok());
    let body = Limited::new(answer.into_body(), BODY_LIMIT).collect().await.map_err(|error| error.to_string())?;
    match asked {
        Some(asked) if status.is_success() => Ok(asked),
        _ => Err(format!("{status}: {}", String::from_utf8_lossy(&body.to_bytes()))),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A gateway that answers each request of a connection with this head.
    async fn gateway(head: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 1024];
                    while stream.read(&mut request).await.is_ok_and(|count| count > 0) {
                        stream
                            .write_all(format!("HTTP/1.1 {head}\r\nContent-Length: 0\r\n\r\n").as_bytes())
                            .await
                            .unwrap();
                    }
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn each_event_has_its_requests_and_a_failed_request_is_counted() {
        let mut rounds = Rounds::start(gateway("200 -\r\nX-Asked: 2").await, "/x", Duration::ZERO);
        let good = rounds.event("good").await.unwrap();
        assert!(good.is_good());
        let [small, large] = &good.figures;
        assert!(small.requests >= 40 && large.requests >= 400 && small.asked_again == small.requests, "{small:?}");
        rounds.move_to(gateway("500 -\r\nX-Asked: 5").await).await.unwrap();
        let _between = rounds.event("between").await.unwrap();
        let bad = rounds.event("bad").await.unwrap();
        assert!(!bad.is_good() && bad.figures[0].failures.len() == bad.figures[0].requests, "{bad:?}");
        let table = render(&[good, bad]);
        assert!(table.lines().nth(2).unwrap().starts_with("good   "), "{table}");
    }

    #[test]
    fn percentiles_and_the_mean_are_of_answers() {
        let mut figures = Figures::default();
        for millis in 1..=100 {
            figures.note(Duration::from_millis(millis), Ok(1));
        }
        figures.note(Duration::from_secs(9), Err("500".into()));
        assert_eq!((figures.percentile(50).as_millis(), figures.percentile(99).as_millis()), (50, 99));
        assert_eq!((figures.mean().as_micros(), figures.requests), (50_500, 101));
    }
}
