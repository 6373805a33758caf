//! What a node's metrics were over time, for promtool to play against the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use harness::cluster::Node;
use nats_tls_agent::clock::Clock;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

/// What must fire and what must not, at a minute.
struct Expected {
    minute: u32,
    firing: Vec<&'static str>,
    silent: Vec<&'static str>,
}

/// The metrics of one node, as Prometheus would have stored them. The time since the first scrape is stretched, so that
/// seconds show what takes days. The Unix times in the metrics are stretched alike.
pub(super) struct Recording {
    began: OffsetDateTime,
    clock: Instant,
    stretch: f64,
    /// The scrapes, each with its minute.
    scrapes: Vec<(u32, BTreeMap<String, f64>)>,
    expected: Vec<Expected>,
}

impl Recording {
    pub(super) fn stretched(stretch: f64) -> Self {
        let (began, clock) = (Clock::System.now(), Instant::now());
        Self { began, clock, stretch, scrapes: Vec::new(), expected: Vec::new() }
    }

    /// A Unix time, in seconds of the recording.
    fn at(&self, unix: f64) -> f64 {
        (unix - (self.began - OffsetDateTime::UNIX_EPOCH).as_seconds_f64()) * self.stretch
    }

    pub(super) async fn scrape(&mut self, node: &Node) {
        let text = scraped(node.metrics(), "text/plain").await;
        if self.scrapes.is_empty() {
            (self.began, self.clock) = (Clock::System.now(), Instant::now());
        }
        let minute = u32::try_from(self.clock.elapsed().mul_f64(self.stretch).as_secs() / 60).unwrap();
        // What is expected of a minute is expected of the last scrape before.
        let minute = minute.max(self.expected.last().map_or(0, |expected| expected.minute + 1));
        let up = f64::from(u8::from(text.is_some()));
        let mut samples = BTreeMap::from([("up{job=\"nats-tls-agent\",instance=\"n1\"}".to_owned(), up)]);
        for line in text.unwrap_or_default().lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let comma = if labels == "}" { "" } else { "," };
            let value = value.parse().unwrap();
            let value = if name.ends_with("_timestamp_seconds") { self.at(value) } else { value };
            samples.insert(format!("{name}{{instance=\"n1\"{comma}{labels}"), value);
        }
        self.scrapes.push((minute, samples));
    }

    /// Scrapes every 250 ms until `done` holds of the last scrape.
    pub(super) async fn scrape_until(&mut self, node: &Node, within: Duration, mut done: impl FnMut(&Self) -> bool) {
        let began = Instant::now();
        loop {
            self.scrape(node).await;
            if done(self) {
                return;
            }
            assert!(began.elapsed() < within, "{:?}\n{}", self.scrapes.last(), node.agent.log_tail(30));
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// The last value of a series.
    pub(super) fn last(&self, series: &str) -> Option<f64> {
        self.scrapes.last()?.1.get(series).copied()
    }

    /// The minute of the last scrape.
    pub(super) fn minute(&self) -> u32 {
        self.scrapes.last().map_or(0, |(minute, _)| *minute)
    }

    /// The hours from the last scrape to the time that a series tells.
    pub(super) fn hours_to(&self, series: &str) -> Option<f64> {
        Some(self.last(series)? / 3600.0 - f64::from(self.minute()) / 60.0)
    }

    /// Expects these alarms at the last scrape, and not those.
    pub(super) fn expect(&mut self, firing: &[&'static str], silent: &[&'static str]) {
        self.expected.push(Expected { minute: self.minute(), firing: firing.to_vec(), silent: silent.to_vec() });
    }

    /// Each scrape stands until the next, because Prometheus scrapes more often than a test.
    fn series(&self) -> String {
        let names: BTreeSet<&String> = self.scrapes.iter().flat_map(|(_, samples)| samples.keys()).collect();
        let mut text = String::new();
        for name in names {
            let mut values = String::new();
            for (number, (minute, samples)) in self.scrapes.iter().enumerate() {
                let next = self.scrapes.get(number + 1).map_or(minute + 3, |(next, _)| *next);
                // Of the scrapes in one minute the last stands.
                let Some(more) = (next - minute).checked_sub(1) else { continue };
                match samples.get(name) {
                    Some(value) => write!(values, "{value}x{more} ").unwrap(),
                    None => write!(values, "_x{} ", more + 1).unwrap(),
                }
            }
            writeln!(text, "      - {{series: '{name}', values: '{}'}}", values.trim()).unwrap();
        }
        text
    }

    fn cases(&self) -> String {
        let mut text = String::new();
        for Expected { minute, firing, silent } in &self.expected {
            let names = [&firing[..], silent].concat().join("|");
            let expression = format!("ALERTS{{alertstate=\"firing\",alertname=~\"{names}\"}}");
            writeln!(text, "      - expr: 'group by (alertname) ({expression})'").unwrap();
            writeln!(text, "        eval_time: {minute}m\n        exp_samples:").unwrap();
            for name in firing {
                writeln!(text, "          - {{labels: '{{alertname=\"{name}\"}}', value: 1}}").unwrap();
            }
        }
        text
    }

    /// Has promtool play the recording against the rules.
    pub(super) fn play(&self, promtool: &Path, rules: &str) {
        assert_eq!(self.scrapes.first().map(|(minute, _)| *minute), Some(0));
        let text = format!(
            "rule_files: [rules.yaml]\nevaluation_interval: 1m\ntests:\n  - interval: 1m\n    input_series:\n{}    \
             promql_expr_test:\n{}",
            self.series(),
            self.cases()
        );
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("rules.yaml"), rules).unwrap();
        std::fs::write(directory.path().join("recording.yaml"), &text).unwrap();
        let mut command = std::process::Command::new(promtool);
        let played = command.args(["test", "rules", "recording.yaml"]).current_dir(directory.path()).output().unwrap();
        let said = [played.stdout, played.stderr].concat();
        assert!(played.status.success(), "{}\n{text}", String::from_utf8_lossy(&said));
    }
}

/// The body of the answer on `/metrics`, or `None` where nothing answers with success.
pub(super) async fn scraped(address: SocketAddr, accept: &str) -> Option<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.0 200").then(|| body.to_owned())
}
