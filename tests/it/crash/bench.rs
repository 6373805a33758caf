//! A node that meets one fault after the other, and the checks after each fault.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::cluster::Node;
use harness::nodes::Nodes;
use harness::strace::{self, Effect, Point, Recording};
use harness::{Failure, eventually, tools};
use nats_tls_agent::clock::Clock;
use nats_tls_agent::config::Config;
use nats_tls_agent::daemon::control::ask;
use nats_tls_agent::daemon::protocol::{Answer, Request};
use nats_tls_agent::issue::journal::Journal;
use nats_tls_agent::server::probe::{Port, Prober};
use nats_tls_agent::state::generation::{Generation, Generations};
use nats_tls_agent::status::{State, Status};
use nats_tls_agent::x509::leaf::Leaf;

use crate::AGENT;

const SOON: Duration = Duration::from_secs(30);
/// A node with this number of generations removes the oldest generation at a renewal.
const GENERATIONS: u64 = 4;

/// The files that other users may never read: the key, the journal with the next key, the credential of the routes.
const SECRETS: [&str; 3] = ["key.pem", "issuance.json", "nats-server.conf"];
/// The umask of the agent: other users get no access to a new file.
const UMASK: u32 = 0o007;

/// The work of the agent at the moment of the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scenario {
    /// Only `agent.toml` exists, and no nats-server runs.
    FirstBoot,
    /// nats-server serves, and an operator requests a renewal.
    Renewal,
}

/// The process that does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Process {
    /// `agent run`, which gets the request for a renewal through its socket.
    Daemon,
    /// `agent renew` without a daemon, under the lock.
    Alone,
}

/// A node and its scenario.
pub(super) struct Bench {
    nodes: Nodes,
    socket: PathBuf,
    scenario: Scenario,
    process: Process,
    traces: tempfile::TempDir,
    rounds: usize,
}

/// The result of a traced process.
struct Run {
    trace: PathBuf,
    /// The whole output of the process.
    said: String,
    is_refused: bool,
}

impl Bench {
    pub(super) async fn new(scenario: Scenario, process: Process) -> Result<Self, Failure> {
        let mut nodes = Nodes::new(AGENT, tools::NATS_SERVER, 1)?;
        nodes.configure()?;
        // Short pauses let the agent notice the end of a fault at once.
        nodes.set("renewal.retry_min", "\"100ms\"")?;
        nodes.set("renewal.retry_max", "\"200ms\"")?;
        let socket = Config::load(nodes.nodes[0].agent.config()).map_err(|error| Failure::new(error.to_string()))?;
        let traces = tempfile::tempdir().map_err(|error| Failure::new(error.to_string()))?;
        if scenario == Scenario::Renewal {
            // A reload by a signal is a point too. The first boot makes the key of the system account.
            nodes.set("nats.system", "\"off\"")?;
            nodes.boot().await?;
            for _ in 1..GENERATIONS {
                nodes.nodes[0].agent.renew().await?;
            }
            nodes.nodes[0].agent.kill().await?;
        }
        Ok(Self { nodes, socket: socket.control_socket, scenario, process, traces, rounds: 0 })
    }

    fn node(&self) -> &Node {
        &self.nodes.nodes[0]
    }

    fn node_mut(&mut self) -> &mut Node {
        &mut self.nodes.nodes[0]
    }

    fn generations(&self) -> Generations {
        Generations::of(&self.node().state_directory())
    }

    /// Every point of the scenario. The names of the points fit any node and any generation.
    pub(super) async fn points(&mut self) -> Result<Vec<Point>, String> {
        self.reset().await?;
        let names = self.names();
        let output = self.trace();
        let run = self.run(strace::recording(&output), output, None).await?;
        check(!run.is_refused, || format!("the recorded run failed: {}", run.said))?;
        if self.process == Process::Daemon {
            self.node_mut().agent.kill().await.map_err(chain)?;
        }
        strace::was_killed(&run.trace).await.map_err(chain)?;
        let log = self.node().agent.config().with_extension("log");
        let roots: Vec<PathBuf> = names[..4].iter().map(|(_, path)| path.clone()).collect();
        let roots: Vec<&Path> = roots.iter().map(PathBuf::as_path).collect();
        let recording = Recording::read(&run.trace).map_err(chain)?;
        let state = [&*names[0].1, &*names[1].1];
        let unflushed = recording.unflushed(&state, &[&log], &self.node().nats_config());
        check(unflushed.is_empty(), || format!("a power cut would lose {}", unflushed.join(", ")))?;
        is_private_from_creation_on(&recording, &state)?;
        let points = recording.points(&roots, &[&log]);
        self.heal().await?;
        Ok(points.iter().map(|point| point.renamed(|path| general(path, &names))).collect())
    }

    /// The paths that differ between nodes and rounds. A longer path comes before a path that it contains.
    fn names(&self) -> Vec<(&'static str, PathBuf)> {
        let (node, generations) = (self.node(), self.node().state_directory().join("generations"));
        let next = self.generations().numbers().ok().and_then(|numbers| numbers.last().copied()).unwrap_or(0) + 1;
        let generation = |number: u64| generations.join(format!("{number:06}"));
        vec![
            ("STATE", node.state_directory()),
            ("CONFIG", node.nats_config().parent().map(Path::to_path_buf).unwrap_or_default()),
            ("CA", self.nodes.cluster.ca_directory()),
            ("RUN", self.socket.parent().map(Path::to_path_buf).unwrap_or_default()),
            ("NEW.partial", generation(next).with_extension("partial")),
            ("NEW", generation(next)),
            ("OLD", generation(next.saturating_sub(3))),
        ]
    }

    fn trace(&mut self) -> PathBuf {
        self.rounds += 1;
        self.traces.path().join(self.rounds.to_string())
    }

    /// Causes a single death or fault at a point, and checks the state before and after the recovery.
    pub(super) async fn round(&mut self, point: &Point, effect: Effect) -> Result<(), String> {
        self.reset().await?;
        let (issued, names) = (self.issued(), self.names());
        let point = point.renamed(|path| particular(path, &names));
        let output = self.trace();
        let run = self.run(strace::injecting(&output, &point, effect), output, Some(effect)).await?;
        if effect == Effect::Kill {
            check(strace::was_killed(&run.trace).await.map_err(chain)?, || {
                format!("the point was not reached: {}", run.said)
            })?;
        } else {
            check(strace::was_injected(&run.trace), || format!("the point was not reached: {}", run.said))?;
            self.is_said(&point, &run)?;
        }
        self.still_serves().await?;
        self.is_whole()?;
        if effect == Effect::Kill {
            self.restart_from_disk().await?;
        } else if self.process == Process::Daemon {
            self.heal_by_itself().await?;
        }
        self.heal().await?;
        self.is_paid_once(&issued)
    }

    /// Restores the state before the scenario, in which no agent runs.
    async fn reset(&mut self) -> Result<(), String> {
        if self.scenario == Scenario::FirstBoot {
            if let Some(server) = self.node_mut().server.take() {
                server.kill().await.map_err(chain)?;
            }
            let config = self.node().nats_config();
            for directory in [self.node().state_directory(), self.nodes.cluster.ca_directory()] {
                remove(std::fs::remove_dir_all(&directory), &directory)?;
            }
            for file in ["", ".candidate", ".running", ".running.new"] {
                let file = PathBuf::from(format!("{}{file}", config.display()));
                remove(std::fs::remove_file(&file), &file)?;
            }
            remove(std::fs::remove_file(&self.socket), &self.socket)?;
        }
        Ok(())
    }

    /// Runs the scenario under strace, to its end or to the end of the agent.
    async fn run(&mut self, launcher: Vec<String>, trace: PathBuf, effect: Option<Effect>) -> Result<Run, String> {
        let (socket, scenario, process) = (self.socket.clone(), self.scenario, self.process);
        let node = self.node_mut();
        let log = node.agent.config().with_extension("log");
        let before = std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
        node.agent.set_launcher(launcher);
        let (said, is_refused) = if process == Process::Alone {
            node.agent.set_env("RUST_LOG", "warn");
            let answer = node.agent.run(&["renew", "--json"], SOON).await.map_err(chain);
            node.agent.set_launcher(Vec::new());
            let answer = answer?;
            (answer.stdout + &answer.stderr, answer.code != Some(0))
        } else {
            node.agent.start().map_err(chain)?;
            node.agent.set_launcher(Vec::new());
            let ready = settled(node, &socket, &trace, effect).await?;
            let answer = match (ready, scenario) {
                (true, Scenario::Renewal) => {
                    let asked = ask(
                        &socket,
                        &Request::Renew { allow_loss: Vec::new(), distrust: Vec::new(), now: false },
                        |_| {},
                    )
                    .await;
                    Some(asked.map_err(|error| format!("{error}")))
                }
                (true, _) => None,
                (false, _) => Some(Err("the daemon has ended".into())),
            };
            if effect == Some(Effect::Kill) {
                node.agent.ended(SOON).await.map_err(chain)?;
            }
            let log = std::fs::read(&log).map_err(|error| error.to_string())?;
            let log = String::from_utf8_lossy(&log[usize::try_from(before).unwrap_or(0)..]).into_owned();
            let is_refused = matches!(&answer, Some(Ok(Answer::Refused(_)) | Err(_)));
            (format!("{log}\n{answer:?}"), is_refused)
        };
        Ok(Run { trace, said, is_refused })
    }

    /// Checks that the answer or the log names the file of the fault.
    fn is_said(&self, point: &Point, run: &Run) -> Result<(), String> {
        let (path, ca) = (point.path.display().to_string(), self.nodes.cluster.ca_directory().display().to_string());
        let file =
            [".new", ".partial", ".candidate"].iter().fold(path.as_str(), |path, end| path.trim_end_matches(end));
        let is_named = run.said.contains(file)
            || (path.starts_with(&ca) && run.said.contains(&ca))
            || (point.path.as_os_str().is_empty() && run.said.contains("signal"));
        check(is_named, || format!("neither the answer nor the log names {path}: {}", run.said))
    }

    /// Checks that nats-server runs and serves a known generation.
    async fn still_serves(&mut self) -> Result<(), String> {
        if self.scenario == Scenario::Renewal {
            self.node_mut().server.as_mut().ok_or("no server")?.check_running().map_err(chain)?;
            let served = self.served().await?;
            let known = self.generations().numbers().map_err(|error| error.to_string())?;
            let known = known.into_iter().filter_map(|number| self.generations().load(number).ok());
            check(known.into_iter().any(|generation| generation.chain.leaf().sha256 == served), || {
                format!("nats-server serves {served}, which belongs to no generation")
            })?;
        }
        Ok(())
    }

    /// Checks the files that the committed configuration names, and the files that a roll-back needs. Key, certificate
    /// and bundle must belong together in both.
    fn is_whole(&self) -> Result<Option<Generation>, String> {
        let config = self.node().nats_config();
        let running = PathBuf::from(format!("{}.running", config.display()));
        let named = |file: &Path| {
            let Ok(text) = std::fs::read_to_string(file) else { return Ok(None) };
            let number =
                self.generations().named_in(&text).ok_or(format!("{} names no generation: {text}", file.display()))?;
            let generation = self.generations().load(number).map_err(|error| format!("{error}"))?;
            let key =
                nats_tls_agent::x509::csr::public_key_der(generation.chain.key()).map_err(|error| error.to_string())?;
            let (_, certificate) =
                x509_parser::parse_x509_certificate(&generation.chain.leaf().der).map_err(|error| error.to_string())?;
            check(certificate.public_key().raw == key, || format!("key and certificate of {number} don't match"))?;
            let chains = generation.bundle.chains(generation.chain.chain(), Clock::System.now());
            check(chains, || format!("the certificate of {number} doesn't chain to its bundle"))?;
            Ok::<_, String>(Some(generation))
        };
        named(&running)?;
        named(&config)
    }

    /// Starts nats-server from the files that exist, as systemd does after a power cut.
    async fn restart_from_disk(&mut self) -> Result<(), String> {
        let Some(generation) = self.is_whole()? else {
            return check(self.scenario == Scenario::FirstBoot, || "the configuration is gone".into());
        };
        if let Some(server) = self.node_mut().server.take() {
            server.kill().await.map_err(chain)?;
        }
        self.start_server().await?;
        let served = self.served().await?;
        check(served == generation.chain.leaf().sha256, || {
            format!("nats-server serves {served} after a start, not the named certificate")
        })
    }

    async fn start_server(&mut self) -> Result<(), String> {
        let Nodes { nodes, cluster, .. } = &mut self.nodes;
        cluster.start_server(&mut nodes[0]).await.map_err(chain)
    }

    /// The leaf that handshakes show on both ports. A server that has just started opens the ports one after the other, and a
    /// daemon may reload between the handshakes.
    async fn served(&self) -> Result<String, String> {
        eventually("one leaf on both ports", SOON, async || self.shown().await).await.map_err(chain)
    }

    async fn shown(&self) -> Result<String, String> {
        let (newest, _) = self.generations().newest().map_err(|error| error.to_string())?;
        let newest = newest.ok_or("there is no generation")?;
        let prober = Prober::presenting(&newest.chain).map_err(|error| error.to_string())?;
        let mut leaves = BTreeSet::new();
        for (address, port) in [(self.node().client(), Port::Client), (self.node().route(), Port::Route)] {
            let served =
                prober.served(&address.to_string(), port.opening()).await.map_err(|error| error.to_string())?;
            leaves.insert(nats_tls_agent::digest::sha256_hex(served.leaf()));
        }
        check(leaves.len() == 1, || format!("two leaves are served: {leaves:?}"))?;
        leaves.pop_first().ok_or("no leaf is served".into())
    }

    /// Ends the fault, and waits until a running daemon recovers without a restart.
    async fn heal_by_itself(&mut self) -> Result<(), String> {
        if self.node_mut().agent.check_running().is_err() {
            return Ok(());
        }
        let pid = self.node().agent.pid().ok_or("no daemon")?;
        strace::release(pid).await.map_err(chain)?;
        self.healthy().await?;
        self.node_mut().agent.kill().await.map(drop).map_err(chain)
    }

    /// Starts a daemon as systemd does, and waits until the node is healthy.
    async fn heal(&mut self) -> Result<(), String> {
        self.node_mut().agent.start().map_err(chain)?;
        self.healthy().await?;
        self.node_mut().agent.kill().await.map(drop).map_err(chain)
    }

    async fn healthy(&mut self) -> Result<(), String> {
        if self.node().server.is_none() {
            self.node_mut().committed().await.map_err(chain)?;
            self.start_server().await?;
        }
        let socket = self.socket.clone();
        let status = eventually("the node's health", SOON, async || match status(&socket).await {
            Some(status) if status.state == State::Healthy => Ok(status),
            Some(status) => Err(format!("{:?}", status.reasons)),
            None => Err("the daemon doesn't answer".into()),
        });
        let status =
            status.await.map_err(|failure| format!("{}\n{}", chain(failure), self.node().agent.log_tail(20)))?;
        let leaf = status.leaf.map(|leaf| leaf.sha256).unwrap_or_default();
        check(self.served().await? == leaf, || format!("{leaf} isn't served"))?;
        let named = self.is_whole()?.ok_or("there is no configuration")?;
        check(named.chain.leaf().sha256 == leaf, || "an older generation is named".into())
    }

    /// Checks that a renewal paid for one certificate at most, and a first boot for exactly one certificate. That
    /// certificate is served, and no partial generation is left.
    fn is_paid_once(&self, before: &BTreeSet<PathBuf>) -> Result<(), String> {
        let issued = self.issued();
        let new: Vec<&PathBuf> = issued.difference(before).collect();
        let enough = if self.scenario == Scenario::FirstBoot { 1..=1 } else { 0..=1 };
        check(enough.contains(&new.len()), || format!("{} certificates were paid for", new.len()))?;
        let named = self.is_whole()?.ok_or("there is no configuration")?;
        for file in new {
            let pem = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
            let leaf = Leaf::from_pem(&pem).map_err(|error| error.to_string())?;
            check(leaf.sha256 == named.chain.leaf().sha256, || "the paid certificate isn't served".into())?;
        }
        let journal = Journal::of(&self.node().state_directory()).load().map_err(|error| error.to_string())?;
        check(journal.pending.is_none(), || "the journal still holds a request".into())?;
        // A staged file may stay until the next staged file takes its name. Half a generation may not stay.
        let generations = self.node().state_directory().join("generations");
        for entry in std::fs::read_dir(&generations).map_err(|error| error.to_string())? {
            let name = entry.map_err(|error| error.to_string())?.file_name().to_string_lossy().into_owned();
            check(!name.ends_with(".partial"), || format!("{name} is left behind"))?;
        }
        Ok(())
    }

    /// The certificates of the embedded CA. Each certificate is a payment.
    fn issued(&self) -> BTreeSet<PathBuf> {
        let entries = std::fs::read_dir(self.nodes.cluster.ca_directory().join("issued")).into_iter().flatten();
        let files = entries.flatten().map(|entry| entry.path());
        // A staged file is not a certificate yet.
        files.filter(|file| file.extension().is_some_and(|extension| extension == "pem")).collect()
    }
}

/// Invariant 1: every file has its final mode and owner from its creation on, and no secret ever had a wider mode.
fn is_private_from_creation_on(recording: &Recording, state: &[&Path]) -> Result<(), String> {
    let reowned = recording.reowned(state);
    check(reowned.is_empty(), || format!("modes or owners change later: {}", reowned.join(", ")))?;
    let created = recording.created(state);
    let known = |name: &str| created.iter().any(|(path, _)| path.ends_with(name));
    check(SECRETS.into_iter().all(known), || format!("not all of {SECRETS:?} were created: {created:?}"))?;
    for (path, asked) in &created {
        let is_secret = SECRETS.iter().any(|name| path.ends_with(name));
        check(!is_secret || asked & 0o137 == 0, || format!("{} was created with {asked:o}", path.display()))?;
        // Some staged files were removed again.
        let Ok(metadata) = std::fs::metadata(path) else { continue };
        let (mode, wanted) = (metadata.permissions().mode() & 0o7777, asked & !UMASK);
        check(mode == wanted, || format!("{} has mode {mode:o}, not {wanted:o}", path.display()))?;
    }
    Ok(())
}

/// Waits until a traced daemon has finished its first work. Returns `false` if the daemon has ended.
async fn settled(node: &mut Node, socket: &Path, trace: &Path, effect: Option<Effect>) -> Result<bool, String> {
    let ready = eventually("the traced daemon", SOON, async || {
        if node.agent.check_running().is_err() {
            return Ok(false);
        }
        if let Some(Effect::Once(_) | Effect::From(_)) = effect
            && strace::was_injected(trace)
            && status(socket).await.is_some_and(|status| status.state != State::Healthy)
        {
            return Ok(true);
        }
        let Some(status) = status(socket).await else { return Err("the daemon doesn't answer".into()) };
        // The daemon can't reach a better state without nats-server.
        let is_done = status.state == State::Healthy
            || node.server.is_none() && status.leaf.is_some() && node.nats_config().is_file();
        if is_done { Ok(true) } else { Err(format!("{:?}", status.reasons)) }
    });
    ready.await.map_err(|failure| format!("{}\n{}", chain(failure), node.agent.log_tail(20)))
}

async fn status(socket: &Path) -> Option<Status> {
    match ask(socket, &Request::Status, |_| {}).await {
        Ok(Answer::Status(status)) => Some(*status),
        _ => None,
    }
}

fn general(path: &Path, names: &[(&'static str, PathBuf)]) -> PathBuf {
    let longest =
        names.iter().filter(|(_, real)| path.starts_with(real)).max_by_key(|(_, real)| real.as_os_str().len());
    longest.map_or_else(
        || path.to_path_buf(),
        |(name, real)| Path::new(name).join(path.strip_prefix(real).unwrap_or(Path::new(""))),
    )
}

fn particular(path: &Path, names: &[(&'static str, PathBuf)]) -> PathBuf {
    let whole = names.iter().find_map(|(name, real)| Some(real.join(path.strip_prefix(name).ok()?)));
    let plain = |path: PathBuf| PathBuf::from(path.display().to_string().trim_end_matches('/'));
    whole.map_or_else(|| path.to_path_buf(), plain)
}

fn check(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn chain(failure: Failure) -> String {
    failure.chain()
}

fn remove(removed: std::io::Result<()>, path: &Path) -> Result<(), String> {
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {error}", path.display())),
        _ => Ok(()),
    }
}
