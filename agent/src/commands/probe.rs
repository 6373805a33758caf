//! `agent probe`: requests and replies through TLS between every pair of nodes, as a table.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{CommandError, status};
use crate::cli::ProbeArgs;
use crate::clock::Clock;
use crate::conf::listeners::Listeners;
use crate::config::Config;
use crate::output::{Paint, print, print_json};
use crate::roundtrip::latency::Summary;
use crate::roundtrip::login::Login;
use crate::roundtrip::report::{Losses, PairReport, Report};
use crate::roundtrip::{Access, AccessError, Plan, PlanError, Target, measure};
use crate::state::durable::FileError;
use crate::state::generation::Generations;
use crate::status::Status;
use crate::wiring::commit_point;

/// How often the progress is shown on a terminal.
const TICK: Duration = Duration::from_millis(200);

/// Why the nodes can't be probed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The plan is beyond the bounds.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// No client can be made.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The files of this node can't be read.
    #[error("this node's certificate and bundle can't be read; run this as root or as the daemon's user")]
    File(#[from] FileError),
    /// There is no bundle yet.
    #[error("there is no certificate yet; `agent run` makes the first")]
    NoGeneration,
}

impl ProbeError {
    /// Whether only other arguments mend the error.
    pub(super) fn is_of_usage(&self) -> bool {
        matches!(self, Self::Plan(_) | Self::Access(AccessError::Login(_)))
    }

    /// The stable code.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Plan(_) => "probe_beyond_bounds",
            Self::Access(AccessError::Login(_)) => "credentials_unusable",
            Self::Access(AccessError::Tls(_)) | Self::File(_) | Self::NoGeneration => "certificate_unusable",
        }
    }
}

/// Probes every pair of nodes and prints a row for each. The exit code is 1 where a reply is lost or a pair is too slow.
pub async fn probe(config: &Config, arguments: ProbeArgs, json: bool) -> Result<ExitCode, CommandError> {
    let listeners = listeners(config).map_err(ProbeError::from)?;
    let targets = if arguments.server.is_empty() {
        targets(&status::current(config).await?, listeners.client.port())
    } else {
        let named = arguments.server.iter();
        named.map(|server| Target { name: server.clone(), address: server.clone() }).collect()
    };
    let newest = Generations::of(&config.state_directory).newest().map_err(ProbeError::from)?.0;
    let newest = newest.ok_or(ProbeError::NoGeneration)?;
    let max_p99 = arguments.max_p99;
    let (plan, login) = split(arguments);
    let access = Access::new(&newest.bundle, &newest.chain, listeners.client_first, login).map_err(ProbeError::from)?;
    let total = plan.total(targets.len()).map_err(ProbeError::from)?;
    let done = Arc::new(AtomicU64::new(0));
    let measuring = measure(&targets, &access, &plan, &done);
    let report = with_progress(measuring, &done, total, json).await.map_err(ProbeError::from)?;
    let slow = max_p99.map_or(0, |max| report.slower_than(max).count());
    if json {
        let mut told = serde_json::to_value(&report).unwrap_or_default();
        told["ok"] = (report.lost() == 0 && slow == 0).into();
        told["max_p99_ms"] = max_p99.map(|max| max.as_secs_f64() * 1000.0).into();
        print_json(&told)?;
    } else {
        print(&describe(&report, max_p99, Paint::stdout()))?;
    }
    Ok(if report.lost() == 0 && slow == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where the nats-server of this node listens. The other nodes have the same port.
fn listeners(config: &Config) -> Result<Listeners, FileError> {
    let commit_point = commit_point(config, Clock::System);
    let text = commit_point.running()?.map_or_else(|| commit_point.committed(), |running| Ok(Some(running)))?;
    let tree = text.and_then(|text| text.tree(&config.nats.config).ok());
    Ok(Listeners::of(tree.as_ref(), &config.nats))
}

/// The client listeners of the peers. A peer's own address has the port of its route listener.
fn targets(status: &Status, port: u16) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    for peer in &status.peers {
        let name = if status.node.is_own(peer) { &status.node.name } else { &peer.id };
        let host = peer.address.rsplit_once(':').map_or(peer.address.as_str(), |(host, _)| host);
        let address = format!("{host}:{port}");
        // A node that is listed under two ports of routes is one node.
        if targets.iter().all(|target| target.address != address) {
            targets.push(Target { name: name.clone(), address });
        }
    }
    targets
}

fn split(arguments: ProbeArgs) -> (Plan, Login) {
    let ProbeArgs { requests, concurrency, rate, size, timeout, prefix, .. } = arguments;
    let login = match (arguments.user, arguments.password_file, arguments.token_file, arguments.creds, arguments.nkey) {
        (Some(user), Some(file), ..) => Login::Password { user, file },
        (_, _, Some(file), ..) => Login::Token(file),
        (_, _, _, Some(file), _) => Login::Credentials(file),
        (.., Some(file)) => Login::Nkey(file),
        _ => Login::Anonymous,
    };
    (Plan { requests, concurrency, rate, size, timeout, prefix }, login)
}

/// Shows how far the run is, where standard error is a terminal.
async fn with_progress<T>(running: impl Future<Output = T>, done: &AtomicU64, total: u64, json: bool) -> T {
    let is_shown = !json && std::io::stderr().is_terminal();
    let mut tick = tokio::time::interval(TICK);
    tokio::pin!(running);
    loop {
        tokio::select! {
            ended = &mut running => {
                if is_shown {
                    let _closed = write!(std::io::stderr(), "\r\u{1b}[K");
                }
                return ended;
            }
            _ = tick.tick(), if is_shown => {
                let _closed = write!(std::io::stderr(), "\r{} of {total} requests", done.load(Ordering::Relaxed));
            }
        }
    }
}

fn describe(report: &Report, max_p99: Option<Duration>, paint: Paint) -> String {
    let mut rows = vec![["from", "to", "replies", "min", "mean", "p50", "p99", "max"].map(str::to_owned)];
    rows.extend(report.pairs.iter().map(row));
    let mut notes: Vec<String> = report.pairs.iter().map(|pair| lost(&pair.lost)).collect();
    notes.insert(0, String::new());
    let mut text = String::new();
    for ((at, line), note) in columns(&rows, 2).into_iter().enumerate().zip(notes) {
        let pair = at.checked_sub(1).and_then(|at| report.pairs.get(at));
        let is_slow = pair.is_some_and(|pair| max_p99.is_some_and(|max| pair.is_slower_than(max)));
        let note = if is_slow { joined(&note, "p99 too high") } else { note };
        let note = if note.is_empty() { note } else { format!("  {}", paint.red(&note)) };
        let _infallible = writeln!(text, "{line}{note}");
    }
    let mut rows = vec![["node", "address", "messages/s", "KiB/s"].map(str::to_owned)];
    rows.extend(report.nodes.iter().map(|node| {
        let carried = [format!("{:.0}", node.messages_per_second), format!("{:.0}", node.bytes_per_second / 1024.0)];
        let [messages, bytes] = carried;
        [node.name.clone(), node.address.clone(), messages, bytes]
    }));
    let errors = std::iter::once(None).chain(report.nodes.iter().map(|node| node.error.as_deref()));
    text.push('\n');
    for (line, error) in columns(&rows, 2).into_iter().zip(errors) {
        let error = error.map(|error| format!("  {}", paint.red(error))).unwrap_or_default();
        let _infallible = writeln!(text, "{line}{error}");
    }
    let _infallible = writeln!(text, "\n{}", verdict(report, max_p99, paint));
    text
}

fn row(pair: &PairReport) -> [String; 8] {
    let replies = format!("{}/{}", pair.replies, pair.requests);
    let times = pair.latency.map(|Summary { min, mean, p50, p99, max }| [min, mean, p50, p99, max].map(milliseconds));
    let [min, mean, p50, p99, max] = times.unwrap_or_else(|| std::array::from_fn(|_| "-".to_owned()));
    [pair.from.clone(), pair.to.clone(), replies, min, mean, p50, p99, max]
}

/// What became of the requests without a reply.
fn lost(lost: &Losses) -> String {
    let counts = [
        (lost.timed_out, "timed out"),
        (lost.no_responders, "nobody listened"),
        (lost.failed, "failed"),
        (lost.not_sent, "not sent"),
    ];
    let counts = counts.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    let counts = counts.collect::<Vec<_>>().join(", ");
    lost.why.as_ref().map_or(counts.clone(), |why| format!("{counts}: {why}"))
}

fn verdict(report: &Report, max_p99: Option<Duration>, paint: Paint) -> String {
    let Report { requests, replies, seconds, replies_per_second, .. } = report;
    let told = format!("{replies} replies to {requests} requests in {seconds:.1} s, {replies_per_second:.0} a second");
    let told = report.latency.map_or(told.clone(), |all| format!("{told}, p99 {}", milliseconds(all.p99)));
    let slow = max_p99.map(|max| (report.slower_than(max).count(), max)).filter(|(slow, _)| *slow > 0);
    let mut wrong = String::new();
    if report.lost() > 0 {
        wrong = format!("replies lost: {}", report.lost());
    }
    if let Some((slow, max)) = slow {
        wrong = joined(&wrong, &format!("pairs with a p99 above {}: {slow}", milliseconds(max)));
    }
    if wrong.is_empty() { paint.green(&told) } else { format!("{told}\n{}", paint.red(&wrong)) }
}

fn joined(first: &str, second: &str) -> String {
    if first.is_empty() { second.to_owned() } else { format!("{first}; {second}") }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

/// Lines of aligned columns: the first `left` to the left, and numbers to the right.
fn columns<const N: usize>(rows: &[[String; N]], left: usize) -> Vec<String> {
    let widths: [usize; N] =
        std::array::from_fn(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or_default());
    let line = |row: &[String; N]| {
        let cells =
            row.iter().zip(widths).enumerate().map(|(at, (cell, width))| {
                if at < left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
        cells.collect::<Vec<_>>().join("  ")
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roundtrip::report::NodeReport;
    use crate::status::{NodeStatus, PeerStatus, RouteState, State};

    fn summary(p99: u64) -> Summary {
        let [min, mean, p50, p99, max] = [100, 250, 200, p99, 12_345].map(Duration::from_micros);
        Summary { min, mean, p50, p99, max }
    }

    fn report() -> Report {
        let pair = |from: &str, to: &str, replies: u64, lost: Losses, latency| PairReport {
            from: from.into(),
            to: to.into(),
            requests: 100,
            replies,
            error: lost.why.clone(),
            lost,
            latency,
        };
        let node = |name: &str, error: Option<&str>| NodeReport {
            name: name.into(),
            address: format!("10.0.1.{}:4222", &name[1..]),
            error: error.map(str::to_owned),
            replies: 200,
            messages_per_second: 1234.4,
            bytes_per_second: 20_480.0,
        };
        let gone = Losses { not_sent: 100, why: Some("no connection".into()), ..Losses::default() };
        let late = Losses { timed_out: 2, ..Losses::default() };
        Report {
            seconds: 0.5,
            requests: 300,
            replies: 198,
            success_rate: 0.66,
            replies_per_second: 396.0,
            latency: Some(summary(900)),
            nodes: vec![node("n1", None), node("n2", None), node("n10", Some("no connection"))],
            pairs: vec![
                pair("n1", "n2", 100, Losses::default(), Some(summary(900))),
                pair("n2", "n1", 98, late, Some(summary(2_000))),
                pair("n1", "n10", 0, gone, None),
            ],
        }
    }

    #[test]
    fn each_pair_and_each_node_has_a_row_and_a_pipe_gets_no_colour() {
        let told = describe(&report(), Some(Duration::from_millis(1)), Paint(false));
        let expected = "\
from  to   replies      min     mean      p50      p99       max
n1    n2   100/100  0.10 ms  0.25 ms  0.20 ms  0.90 ms  12.35 ms
n2    n1    98/100  0.10 ms  0.25 ms  0.20 ms  2.00 ms  12.35 ms  2 timed out; p99 too high
n1    n10    0/100        -        -        -        -         -  100 not sent: no connection

node  address         messages/s  KiB/s
n1    10.0.1.1:4222         1234     20
n2    10.0.1.2:4222         1234     20
n10   10.0.1.10:4222        1234     20  no connection

198 replies to 300 requests in 0.5 s, 396 a second, p99 0.90 ms
replies lost: 102; pairs with a p99 above 1.00 ms: 1
";
        assert_eq!(told, expected);
        let all_well = Report { replies: 300, ..report() };
        assert!(!describe(&all_well, None, Paint(false)).contains("lost:"));
    }

    #[test]
    fn the_targets_are_the_client_listeners_of_the_peers_each_once() {
        let peer = |id: &str, address: &str| PeerStatus {
            id: id.into(),
            address: address.into(),
            state: "InService".into(),
            route: RouteState::Up,
        };
        let node = NodeStatus { name: "n1".into(), addresses: vec!["10.0.1.1".parse().unwrap()], dns_names: vec![] };
        let peers = vec![peer("i-1", "10.0.1.1:6222"), peer("i-2", "[fd00::2]:6222"), peer("i-2", "[fd00::2]:6223")];
        let status = Status { node, peers, ..Status::bare(State::Healthy) };
        let told: Vec<_> = targets(&status, 4222).into_iter().map(|target| (target.name, target.address)).collect();
        let expected = [("n1", "10.0.1.1:4222"), ("i-2", "[fd00::2]:4222")];
        assert_eq!(told, expected.map(|(name, address)| (name.to_owned(), address.to_owned())));
    }
}
