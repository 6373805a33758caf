//! `cargo xtask demo`: a cluster on loopback rotates its certificates and replaces a node, under counted traffic.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people at a terminal")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use harness::cluster::{Cluster, Node};
use harness::process::{asked_to_end, tail};
use harness::progress::{Progress, seconds};
use harness::traffic::{Tally, Traffic};
use harness::{Failure, eventually, table, tools};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

/// The rate of messages a second, for all publishers together.
const RATE: u32 = 2000;
/// The number of messages that must arrive before and after each event, so that the event lies amid traffic.
const AMID: u64 = 1000;
const SETTLE_WITHIN: Duration = Duration::from_secs(30);

#[derive(Parser)]
#[command(about = "The demo itself; cargo xtask demo builds all that it needs and starts it")]
struct Options {
    /// The number of nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=20))]
    nodes: u8,
    /// Leave the cluster up until Ctrl-C, and say how to connect
    #[arg(long)]
    keep: bool,
    /// The agent's binary; by default the binary beside this program
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    Box::pin(run(Options::parse())).await.unwrap_or_else(|failure| {
        eprintln!("error: {}", failure.chain());
        ExitCode::FAILURE
    })
}

/// Runs the demo, reports, and removes everything.
async fn run(options: Options) -> Result<ExitCode, Failure> {
    let agent = options.agent.map_or_else(built_agent, Ok)?;
    let mut stage = Stage::new(&agent)?;
    let outcome = tokio::select! {
        outcome = stage.play(options.nodes) => Some(outcome),
        () = asked_to_end() => None,
    };
    let code = match outcome {
        Some(Ok(report)) => {
            println!("\n{}", report.text());
            if options.keep {
                println!("\n{}", stage.how_to_connect(&agent)?);
                asked_to_end().await;
            }
            if report.lost() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Some(Err(failure)) => {
            eprintln!("\n{}\nerror: {}", stage.logs(), failure.chain());
            ExitCode::FAILURE
        }
        None => {
            eprintln!("\ninterrupted");
            ExitCode::from(130)
        }
    };
    stage.clear().await?;
    Ok(code)
}

fn built_agent() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().map_err(|error| Failure::new("could not find this program").because(error))?;
    let agent = own.with_file_name("agent");
    if agent.is_file() {
        Ok(agent)
    } else {
        Err(Failure::new(format!("{} is missing; run cargo xtask demo", agent.display())))
    }
}

/// The cluster, and the observations of it. The directory is dropped last.
struct Stage {
    nodes: Vec<Node>,
    killed: Vec<Node>,
    rows: Vec<Row>,
    cluster: Cluster,
    progress: Progress,
    directory: TempDir,
}

/// A node's row of the table.
struct Row {
    node: String,
    remark: String,
    first_serial: String,
    serial: String,
    rotations: Vec<Duration>,
    confirmed_by: String,
}

impl Stage {
    fn new(agent: &Path) -> Result<Self, Failure> {
        let parent = tools::workspace().join("target/demo");
        let directory = std::fs::create_dir_all(&parent)
            .and_then(|()| tempfile::Builder::new().prefix("run-").tempdir_in(&parent))
            .map_err(|error| {
                Failure::new(format!("could not make a directory in {}", parent.display())).because(error)
            })?;
        let cluster = Cluster::new(directory.path(), agent, &tools::nats_server(tools::NATS_SERVER)?)?;
        Ok(Self {
            nodes: Vec::new(),
            killed: Vec::new(),
            rows: Vec::new(),
            cluster,
            progress: Progress::on_standard_output(),
            directory,
        })
    }

    async fn play(&mut self, count: u8) -> Result<Report, Failure> {
        let begun = Instant::now();
        println!("\n{count} nodes, nats-server {}, embedded CA, mutual TLS between them", tools::NATS_SERVER);
        self.raise(count).await?;

        println!("\nRotation, with clients on every node");
        let traffic = self.traffic().await?;
        self.rotate(&traffic).await?;
        let rotation = self.stop(traffic).await?;

        // Clients of a dying machine may lose messages in flight. The demo shows that no other client does.
        println!("\nReplacement, with clients on every node but the one that dies");
        let doomed = self.nodes.pop().ok_or_else(|| Failure::new("there is no node to kill"))?;
        let traffic = self.traffic().await?;
        self.replace(doomed, count + 1, &traffic).await?;
        self.rotate(&traffic).await?;
        let replacement = self.stop(traffic).await?;
        Ok(Report { rows: std::mem::take(&mut self.rows), rotation, replacement, took: begun.elapsed() })
    }

    /// Raises nodes as on a new machine: nats-server can start only after the agent's first commit.
    async fn raise(&mut self, count: u8) -> Result<(), Failure> {
        self.nodes = (1..=count).map(|number| self.cluster.node(number)).collect::<Result<_, _>>()?;
        self.configure()?;
        let (progress, cluster, nodes) = (&self.progress, &self.cluster, &mut self.nodes);
        let commit = async {
            for node in &mut *nodes {
                node.agent.start()?;
            }
            for node in &mut *nodes {
                node.committed().await?;
            }
            Ok(())
        };
        progress.step("agents: key, certificate, bundle and configuration committed", String::new, commit).await?;
        let start = async {
            for node in &mut *nodes {
                cluster.start_server(node).await?;
            }
            meshed(nodes).await
        };
        progress.step("nats-servers: started, every node has routes with all others", String::new, start).await?;
        let rows = async {
            let mut rows = Vec::new();
            for node in &*nodes {
                rows.push(Row::new(node, &node.healthy(SETTLE_WITHIN).await?, String::new()));
            }
            Ok(rows)
        };
        self.rows = progress.step("agents: healthy", String::new, rows).await?;
        Ok(())
    }

    /// Runs `agent renew` on one node after the other.
    async fn rotate(&mut self, traffic: &Traffic) -> Result<(), Failure> {
        for node in &self.nodes {
            let row = self.rows.iter_mut().find(|row| row.node == node.name);
            let row = row.ok_or_else(|| Failure::new(format!("{} is not in the table", node.name)))?;
            amid(traffic).await?;
            self.progress.step(&format!("{}: agent renew", node.name), || count(traffic), row.renew(node)).await?;
        }
        self.progress.step("more messages with the new certificates", || count(traffic), amid(traffic)).await
    }

    /// Kills a node as a machine dies, and brings up a node under a new name and address.
    async fn replace(&mut self, mut doomed: Node, number: u8, traffic: &Traffic) -> Result<(), Failure> {
        let (progress, cluster) = (&self.progress, &self.cluster);
        let (name, nodes) = (doomed.name.clone(), &mut self.nodes);
        amid(traffic).await?;
        let kill = async {
            doomed.agent.kill().await?;
            if let Some(server) = doomed.server.take() {
                server.kill().await?;
            }
            self.killed.push(doomed);
            meshed(nodes).await
        };
        progress.step(&format!("{name}: kill -9 of nats-server and agent"), || count(traffic), kill).await?;
        if let Some(row) = self.rows.iter_mut().find(|row| row.node == name) {
            row.remark = "killed".into();
        }

        nodes.push(cluster.node(number)?);
        self.configure()?;
        let (progress, nodes) = (&self.progress, &mut self.nodes);
        let join = async {
            let (new, survivors) = nodes.split_last_mut().ok_or_else(|| Failure::new("no node is left"))?;
            new.agent.start()?;
            new.committed().await?;
            cluster.start_server(new).await?;
            // The agent reads a static list at its start. The nats-servers keep running.
            for node in survivors {
                node.agent.stop().await?;
                node.agent.start()?;
            }
            meshed(nodes).await?;
            for node in &*nodes {
                node.healthy(SETTLE_WITHIN).await?;
            }
            Ok(())
        };
        progress.step(&format!("n{number}: takes its place, all healthy"), || count(traffic), join).await?;
        if let Some(new) = self.nodes.last() {
            self.rows.push(Row::new(new, &new.agent.status().await?, format!("for {name}")));
        }
        Ok(())
    }

    fn configure(&self) -> Result<(), Failure> {
        let peers: Vec<&Node> = self.nodes.iter().collect();
        peers.iter().try_for_each(|node| self.cluster.configure(node, &peers))
    }

    /// Traffic from each node to the next.
    async fn traffic(&self) -> Result<Traffic, Failure> {
        let endpoints = self.nodes.iter().map(|node| node.endpoint(false)).collect::<Result<Vec<_>, _>>()?;
        let next = endpoints.iter().cycle().skip(1);
        let pairs: Vec<_> = endpoints.iter().cloned().zip(next.cloned()).collect();
        Traffic::start(&pairs, RATE).await
    }

    async fn stop(&self, traffic: Traffic) -> Result<Tally, Failure> {
        self.progress.step("last messages counted", String::new, traffic.stop()).await
    }

    fn how_to_connect(&self, agent: &Path) -> Result<String, Failure> {
        let of = |node: &Node| {
            let ca = node.newest_generation()?.join("ca.pem");
            Ok([
                format!("  {}", node.name),
                format!("    nats --server tls://{} --tlsca {} sub '>'", node.client(), ca.display()),
                format!("    {} status --config {}", agent.display(), node.agent.config().display()),
            ])
        };
        let lines = self.nodes.iter().map(of).collect::<Result<Vec<_>, Failure>>()?.concat();
        Ok(format!("{}\nThe cluster is still up. Ctrl-C ends the cluster and removes everything.", lines.join("\n")))
    }

    fn logs(&self) -> String {
        let of = |node: &Node| {
            let server = tail(&node.server_log(), 12);
            format!("== {}: agent\n{}\n== {}: nats-server\n{server}", node.name, node.agent.log_tail(12), node.name)
        };
        self.nodes.iter().chain(&self.killed).map(of).collect::<Vec<_>>().join("\n")
    }

    /// Kills the processes, and then removes the files they may be writing to.
    async fn clear(mut self) -> Result<(), Failure> {
        for node in &mut self.nodes {
            if node.agent.pid().is_some() {
                node.agent.kill().await?;
            }
            if let Some(server) = node.server.take() {
                server.kill().await?;
            }
        }
        let path = self.directory.path().display().to_string();
        self.directory.close().map_err(|error| Failure::new(format!("could not remove {path}")).because(error))
    }
}

impl Row {
    fn new(node: &Node, status: &Value, remark: String) -> Self {
        let serial = serial(status);
        let (node, first_serial) = (node.name.clone(), serial.clone());
        Self { node, remark, first_serial, serial, rotations: Vec::new(), confirmed_by: String::new() }
    }

    /// Rotates one certificate, and measures the time that the command's user sees.
    async fn renew(&mut self, node: &Node) -> Result<(), Failure> {
        let begun = Instant::now();
        let answer = node.agent.renew().await?;
        let took = begun.elapsed();
        if answer["result"].as_str().is_some_and(|result| result != "confirmed") {
            return Err(Failure::new(format!("{}: agent renew was not confirmed: {answer}", node.name)));
        }
        let now = serial(&node.healthy(SETTLE_WITHIN).await?);
        if now == self.serial {
            return Err(Failure::new(format!("{}: agent renew left serial {now} in place: {answer}", node.name)));
        }
        self.serial = now;
        self.rotations.push(took);
        self.confirmed_by = plain(&answer["confirmed_by"]);
        Ok(())
    }

    fn cells(&self) -> [String; 6] {
        let rotations: Vec<String> = self.rotations.iter().map(|took| took.as_millis().to_string()).collect();
        let (before, after) = (short(&self.first_serial), short(&self.serial));
        [self.node.clone(), self.remark.clone(), before, after, rotations.join(", "), self.confirmed_by.clone()]
    }
}

/// The results of the demo.
struct Report {
    rows: Vec<Row>,
    rotation: Tally,
    replacement: Tally,
    took: Duration,
}

impl Report {
    fn lost(&self) -> u64 {
        self.rotation.lost() + self.replacement.lost()
    }

    fn text(&self) -> String {
        let head = ["node", "", "serial before", "serial after", "rotated in (ms)", "confirmed by"].map(String::from);
        let nodes = table::render(&head, &self.rows.iter().map(Row::cells).collect::<Vec<_>>());
        let head = ["messages", "sent", "received", "lost", "twice", "reconnects", "p50 ms", "p99 ms", "max ms"]
            .map(String::from);
        let messages =
            table::render(&head, &[tally("rotation", &self.rotation), tally("replacement", &self.replacement)]);
        let killed = self.rows.iter().find(|row| row.remark == "killed").map_or("the killed node", |row| &row.node);
        let verdict = if self.lost() == 0 { "No message was lost." } else { "MESSAGES WERE LOST." };
        format!(
            "{nodes}\n\n{messages}\n\n{verdict} No client of the second row was connected to {killed}; whoever is \
             connected to a machine that dies has to reconnect. The whole took {}.",
            seconds(self.took)
        )
    }
}

fn tally(name: &str, tally: &Tally) -> [String; 9] {
    let millis = |duration: Duration| format!("{:.2}", duration.as_secs_f64() * 1000.0);
    let counts = [tally.sent, tally.received, tally.lost(), tally.duplicates, tally.reconnects].map(|n| n.to_string());
    let [sent, received, lost, duplicates, reconnects] = counts;
    let [p50, p99, max] = [tally.latency.p50, tally.latency.p99, tally.latency.max].map(millis);
    [name.to_owned(), sent, received, lost, duplicates, reconnects, p50, p99, max]
}

/// Waits until each node has routes to all others.
async fn meshed(nodes: &[Node]) -> Result<(), Failure> {
    for node in nodes {
        let others: BTreeSet<String> =
            nodes.iter().map(|other| other.name.clone()).filter(|name| *name != node.name).collect();
        node.meshed(&others, SETTLE_WITHIN).await?;
    }
    Ok(())
}

/// Waits for another thousand messages.
async fn amid(traffic: &Traffic) -> Result<(), Failure> {
    let enough = traffic.progress().received + AMID;
    eventually("messages", SETTLE_WITHIN, async || match traffic.progress().received {
        received if received >= enough => Ok(()),
        received => Err(format!("{received} received of {enough}")),
    })
    .await
}

fn count(traffic: &Traffic) -> String {
    let progress = traffic.progress();
    format!("· {} sent, {} received", progress.sent, progress.received)
}

fn serial(status: &Value) -> String {
    plain(&status["leaf"]["serial"])
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The first 16 characters distinguish serials, and leave room for the rest of the line.
fn short(serial: &str) -> String {
    match serial.char_indices().nth(16) {
        Some((end, _)) => format!("{}…", &serial[..end]),
        None => serial.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(received: u64) -> Report {
        let row = |node: &str, remark: &str| Row {
            node: node.into(),
            remark: remark.into(),
            first_serial: "00112233445566778899".into(),
            serial: "ab".into(),
            rotations: vec![Duration::from_millis(212), Duration::from_millis(90)],
            confirmed_by: "digest".into(),
        };
        let rotation = Tally { sent: 10, received, ..Tally::default() };
        let (rows, took) = (vec![row("n1", ""), row("n3", "killed")], Duration::from_secs(9));
        Report { rows, rotation, replacement: Tally { sent: 5, received: 5, ..Tally::default() }, took }
    }

    #[test]
    fn the_report_shows_each_rotation_and_who_was_killed() {
        let text = report(10).text();
        assert!(text.contains("n1            0011223344556677…  ab            212, 90          digest"), "{text}");
        assert!(text.contains("No message was lost. No client of the second row was connected to n3;"), "{text}");
    }

    #[test]
    fn a_lost_message_is_said_aloud() {
        let report = report(9);
        assert_eq!(report.lost(), 1);
        assert!(report.text().contains("MESSAGES WERE LOST"));
    }

    #[test]
    fn a_long_serial_is_cut_and_a_short_one_is_not() {
        assert_eq!(short("0123456789abcdef0"), "0123456789abcdef…");
        assert_eq!(short("0123456789abcdef"), "0123456789abcdef");
    }
}
