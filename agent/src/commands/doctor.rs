//! `agent doctor`: every precondition from here to the peers, each with a remedy.
//!
//! Doctor reads and asks. It issues nothing and changes nothing. The checks that need no identity are made even where this
//! node's identity is unknown.

mod issuer;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::CommandError;
use crate::clock::{Clock, rfc3339};
use crate::conf::cost::reload_costs;
use crate::conf::listeners::{Listeners, asks_clients};
use crate::conf::loss::Certificate;
use crate::config::Config;
use crate::connection::usable;
use crate::daemon::control::{ControlError, ask};
use crate::daemon::protocol::{Answer, Request};
use crate::error::{RemoteErrorKind, with_causes};
use crate::included::Purpose;
use crate::issue::ObtainError;
use crate::node::Node;
use crate::node::lifecycle::Lifecycle;
use crate::output::{Paint, abbreviated, print, print_json};
use crate::peers::{Peer, PeerSet, Sighting};
use crate::reason::Reason;
use crate::reconcile::commit_point::CommitPoint;
use crate::reconcile::{Parts, Reconciler};
use crate::server::jetstream::{Look, Seen, Surroundings, Trouble};
use crate::server::probe::{Port, Prober, Silence};
use crate::server::standing::Mismatch;
use crate::server::system::{Fault, Link};
use crate::server::{Condition, NatsServer, Observed, Other, Presence, Served};
use crate::state::durable::FileError;
use crate::state::generation::Generation;
use crate::status::State;
use crate::trust::{TrustBundle, TrustError};
use crate::wiring::{commit_point, wire_to_look};
use crate::x509::chain::StoredChain;

/// How a check came out.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Grade {
    Ok,
    Warning,
    Failed,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
struct Check {
    name: &'static str,
    #[serde(rename = "verdict")]
    grade: Grade,
    /// What the check found, and the remedy where something is wrong.
    found: String,
}

impl Check {
    fn of<T, E: std::error::Error>(
        name: &'static str,
        result: &Result<T, E>,
        found: impl FnOnce(&T) -> String,
    ) -> Self {
        match result {
            Ok(value) => Self::ok(name, found(value)),
            Err(error) => Self::failed(name, with_causes(error)),
        }
    }

    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, grade: Grade::Ok, found: found.into() }
    }

    fn warning(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, grade: Grade::Warning, found: found.into() }
    }

    fn failed(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, grade: Grade::Failed, found: found.into() }
    }
}

/// Makes every check. The exit code is 1 where a check failed; a warning is no failure.
pub async fn doctor(config: &Config, json: bool) -> Result<ExitCode, CommandError> {
    let mut commit_point = commit_point(config, Clock::System);
    let server = NatsServer::new(&config.nats, &config.state_directory);
    let (assembled, daemon, version) = tokio::join!(wire_to_look(config), daemon(config), server.version());
    let mut checks = vec![
        Check::of("identity", &assembled, |parts| describe(&parts.node)),
        Check::of("nats-server", &version, Clone::clone),
        state_directory(&config.state_directory),
        daemon,
    ];
    let newest = match commit_point.parts().generations.newest() {
        Ok((newest, damaged)) => {
            checks.extend(damaged.iter().map(|error| Check::failed("generation", with_causes(error))));
            newest
        }
        Err(error) => {
            checks.push(Check::failed("generation", with_causes(&error)));
            None
        }
    };
    let sources = match assembled {
        Ok(parts) => Box::pin(sources(parts, newest.as_ref())).await,
        Err(_) => Sources::default(),
    };
    checks.extend(sources.checks);
    checks.push(match &newest {
        Some(newest) => certificate(newest, Clock::System.now()),
        None => Check::warning("generation", NO_GENERATION),
    });
    checks.extend(serving(&mut commit_point, newest.as_ref(), sources.others).await);
    checks.extend(sources.peers);
    let healthy = checks.iter().all(|check| check.grade != Grade::Failed);
    if json {
        print_json(&serde_json::json!({ "healthy": healthy, "checks": checks }))?;
    } else {
        print(&abbreviated(&table(&checks)))?;
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The finding before the first generation.
const NO_GENERATION: &str = "none yet; `agent run` makes the first";

/// The owner of the state directory decides whether nats-server can read the files there.
fn state_directory(state: &Path) -> Check {
    let name = "state directory";
    let user = nix::unistd::geteuid().as_raw();
    match std::fs::metadata(state).map(|metadata| metadata.uid()) {
        Ok(owner) if owner == user || user == 0 => Check::ok(name, format!("{}, of uid {owner}", state.display())),
        Ok(owner) => {
            let found = format!("{} belongs to uid {owner}, and this is uid {user}", state.display());
            Check::warning(name, format!("{found}: run commands as the user that the daemon runs as"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Check::warning(name, format!("there is no {} yet; `agent run` makes this directory", state.display()))
        }
        Err(error) => Check::failed(name, with_causes(&FileError::on("look at", state)(error))),
    }
}

async fn daemon(config: &Config) -> Check {
    let name = "daemon";
    match ask(&config.control_socket, &Request::Status, |_| {}).await {
        Ok(Answer::Status(status)) if status.state == State::Healthy => Check::ok(name, "it runs and is healthy"),
        Ok(Answer::Status(status)) => {
            let found = format!("it runs and is {}; `agent status` says why", status.state);
            if status.state == State::Failing { Check::failed(name, found) } else { Check::warning(name, found) }
        }
        Ok(Answer::NoPassYet { .. }) => Check::warning(name, Reason::FirstPassUnderWay.to_string()),
        Ok(Answer::Refused(refusal)) => Check::warning(name, refusal.to_string()),
        Ok(_) => Check::warning(name, "its answer belongs to another request"),
        Err(ControlError::NoDaemon { path, .. }) => {
            Check::warning(name, format!("nothing listens on {}, so nobody renews; start the agent", path.display()))
        }
        Err(error) => Check::warning(name, with_causes(&error)),
    }
}

fn is_readable(name: &'static str, bundle: &Result<TrustBundle, TrustError>) -> Check {
    match bundle {
        Err(TrustError::Issuer { source }) if source.kind == RemoteErrorKind::Absent => Check::warning(name, NO_CA),
        bundle => Check::of(name, bundle, |bundle| {
            format!("{} from {}", counted(bundle.anchors.len(), "anchor"), bundle.source)
        }),
    }
}

/// The checks that need this node's identity.
#[derive(Default)]
struct Sources {
    checks: Vec<Check>,
    peers: Vec<Check>,
    /// The ids of the other nodes, if discovery answers.
    others: Option<BTreeSet<String>>,
}

async fn sources(parts: Parts, newest: Option<&Generation>) -> Sources {
    let (ca, bundle, client_bundle, sighting, pool) = tokio::join!(
        parts.issuance.issuer.ca_pem(),
        parts.trust.fetch(),
        async { Some(parts.client_trust.as_ref()?.fetch().await) },
        parts.peers.sight(),
        warm_pool(parts.lifecycle.as_deref()),
    );
    let waits = pool.is_some();
    let mut checks: Vec<Check> = pool.into_iter().collect();
    checks.extend([issuer::issues(&parts.issuance, &ca).await, is_readable("trust", &bundle)]);
    checks.extend(client_bundle.map(|bundle| is_readable("trust of clients", &bundle)));
    checks.extend([Check::of("peers", &sighting, |seen| {
        seen.peers.iter().map(|peer| peer.id.as_str()).collect::<Vec<_>>().join(", ")
    })]);
    if let (Ok(ca), Ok(bundle)) = (&ca, &bundle) {
        checks.push(issuer::is_trusted(ca, bundle, &parts.node, parts.issuance.validity, Clock::System.now()));
    }
    if let Ok(seen) = &sighting {
        checks.extend(peers_are_whole(seen, &parts.node, waits));
    }
    checks.push(match &parts.credential {
        None => Check::warning("credential", Reason::CredentialMissing.to_string()),
        Some(source) => Check::of("credential", &source.fetch(OffsetDateTime::UNIX_EPOCH).await, |_| {
            "routes must present the credential of the secret".into()
        }),
    });
    checks.extend(included(&parts).await);
    checks.extend(connection(&parts, bundle.as_ref().ok()).await);
    checks.push(Check::of("journal", &parts.issuance.journal.load(), |entries| {
        let issued = entries.issued_in_a_day(Clock::System.now());
        let pending = if entries.pending.is_some() { ", one under way" } else { "" };
        format!("{} in the last day{pending}", counted(issued, "certificate"))
    }));
    let is_sighted = sighting.is_ok();
    let others = sighting.into_iter().flat_map(|seen| seen.peers);
    let others: Vec<Peer> = others.filter(|peer| peer.address.ip() != parts.node.address).collect();
    let ids = is_sighted.then(|| others.iter().map(|peer| peer.id.clone()).collect());
    let peers = match newest {
        Some(newest) => dial(newest, others).await,
        None => Vec::new(),
    };
    checks.extend(Box::pin(configuration(parts)).await);
    Sources { checks, peers, others: ids }
}

/// Whether each included secret can be read. The last good content hides a secret that can't, until the next node boots.
async fn included(parts: &Parts) -> Vec<Check> {
    let ids = &parts.commit_point.parts().nats.included_secrets;
    let asked = parts.included.iter().map(|(file, source)| async {
        let fetched = source.fetch().await;
        match source.purpose() {
            Purpose::Settings => {
                let id = ids.get(file).map_or("", String::as_str);
                Check::of("included secret", &fetched, |content| format!("secret:{id}, {} bytes", content.len()))
            }
            Purpose::System => match fetched {
                Ok(_) => Check::ok(SYSTEM, "its credentials can be read"),
                Err(error) => Check::warning(SYSTEM, with_causes(&error)),
            },
        }
    });
    futures_util::future::join_all(asked).await
}

/// Whether the connection document can be read, and has what the bundle has. Nothing but a write shows whether this node may
/// write.
async fn connection(parts: &Parts, bundle: Option<&TrustBundle>) -> Option<Check> {
    let name = "connection";
    let stored = match parts.publication.as_ref()?.store.read().await {
        Ok(Some(stored)) => stored,
        Ok(None) => {
            let remedy =
                "make the secret of connection.secret_id; the daemon writes its content, and reports where it may not";
            return Some(Check::warning(name, format!("there is no document yet, or no such secret: {remedy}")));
        }
        Err(error) => return Some(Check::warning(name, with_causes(&error))),
    };
    let document = match usable(&stored.content) {
        Ok(document) => document,
        Err((what, remedy)) => return Some(Check::warning(name, format!("the secret {what}; {remedy}"))),
    };
    let told = document.bundle().map(|bundle| bundle.anchors).unwrap_or_default();
    let lacking = bundle.into_iter().flat_map(|bundle| &bundle.anchors).filter(|anchor| !told.contains(anchor));
    let lacking: Vec<_> = lacking.map(|anchor| anchor.subject.as_str()).collect();
    if !lacking.is_empty() {
        let found = format!("the document lacks {} of the trust bundle", lacking.join(", "));
        return Some(Check::warning(name, format!("{found}; the first node in service writes it within an interval")));
    }
    let address = |url: &str| url.strip_prefix("tls://").and_then(|at| at.parse::<SocketAddr>().ok());
    if document.urls().any(|url| address(url).is_some()) {
        let remedy = "give the nodes a name in node.dns_names, or names in connection.urls";
        let found = "the document holds addresses, and nats.js verifies no address";
        return Some(Check::warning(name, format!("{found}; {remedy}")));
    }
    let urls = counted(document.urls().count(), "URL");
    let found = format!("{urls} and {}, changed at {}", counted(told.len(), "anchor"), document.changed_at);
    Some(Check::ok(name, format!("{found}; whether this node may write shows only at a write")))
}

/// The embedded CA before the first `agent run`.
const NO_CA: &str = "none yet; `agent run` makes the embedded CA";

/// Whether the next pass would change the committed configuration, and why the agent's user stands nowhere in the configuration.
/// Also whether the configuration uses the bundle for clients.
async fn configuration(parts: Parts) -> Vec<Check> {
    let name = "configuration";
    let has_clients_bundle = parts.client_trust.is_some();
    let nats_config = parts.commit_point.parts().nats.config.clone();
    let mut reconciler = Reconciler::new(parts);
    let desired = reconciler.desired().await;
    let tree = desired.as_ref().ok().and_then(|(_, desired)| desired.tree(&nats_config).ok());
    let is_unused = has_clients_bundle && tree.is_some_and(|tree| !asks_clients(&tree));
    let unused = is_unused.then(|| {
        let remedy = "set nats.client_auth = \"mtls\", or verify = true in the tls of websocket or mqtt";
        Check::warning("certificates of clients", format!("no listener asks clients for a certificate; {remedy}"))
    });
    let check = match desired {
        Ok((Some(committed), desired)) if committed == desired => {
            Check::ok(name, "what is committed is what is wanted")
        }
        Ok((Some(_), _)) => {
            Check::warning(name, "the next pass would change what is committed; `agent render --diff` shows how")
        }
        Ok((None, _)) => Check::warning(name, "none is committed yet; `agent run` does"),
        Err(error) => Check::failed(name, with_causes(&error)),
    };
    let nowhere = reconciler.system_warning().map(|reason| Check::warning(SYSTEM, reason.to_string()));
    [check].into_iter().chain(nowhere).chain(unused).collect()
}

const SYSTEM: &str = "system account";

/// Whether nats-server answers through its system account. `None`: no connection is wanted, or another check says why there
/// is none.
fn system(link: &Link) -> Option<Check> {
    match link {
        Link::Unwanted => None,
        Link::Up => Some(Check::ok(SYSTEM, "nats-server answers through it")),
        Link::Down { fault: Fault::NotYet, why } => Some(Check::warning(SYSTEM, why.clone())),
        Link::Down { fault, why } => {
            let reason = Reason::SystemSilent { fault: *fault, why: why.clone() };
            Some(Check::warning(SYSTEM, reason.to_string()))
        }
    }
}

fn describe(node: &Node) -> String {
    let region = node.region.as_ref().map(|region| format!(" in {region}")).unwrap_or_default();
    format!("{} at {}{region}", node.name, node.address)
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Why nothing comes up, where this instance waits in a warm pool.
async fn warm_pool(lifecycle: Option<&dyn Lifecycle>) -> Option<Check> {
    let state = lifecycle?.warm_pool().await?;
    Some(Check::warning("lifecycle", ObtainError::InWarmPool { state }.to_string()))
}

/// Discovery leaves out an instance that waits in a warm pool.
fn peers_are_whole(seen: &Sighting, node: &Node, waits: bool) -> Vec<Check> {
    let kept = PeerSet::default().after(seen, node, |_| false).kept;
    let graded = if waits { Check::warning } else { Check::failed };
    kept.into_iter().map(|kept| graded("peers", kept.to_string())).collect()
}

/// Whether clients and peers accept the newest certificate.
fn certificate(newest: &Generation, now: OffsetDateTime) -> Check {
    let name = "certificate";
    let leaf = newest.chain.leaf();
    let begin = rfc3339(leaf.not_before);
    match newest.bundle.refusal(newest.chain.chain(), now) {
        Some(why) => Check::failed(name, format!("clients and peers refuse the newest certificate: {why}; {RENEW}")),
        None if leaf.not_before > now => Check::failed(
            name,
            format!("valid from {begin}, and the time here is {}: set this machine's clock", rfc3339(now)),
        ),
        None => Check::ok(name, format!("generation {}, expires {}", newest.number, rfc3339(leaf.not_after))),
    }
}

/// The remedy where clients and peers refuse the certificate.
const RENEW: &str = "run `agent renew`, which says what keeps a new certificate away";

/// The nats-server process and what its ports serve. Before the first generation it is normal that no server runs and that
/// no port has TLS, so that is a warning.
async fn serving(
    commit_point: &mut CommitPoint,
    newest: Option<&Generation>,
    others: Option<BTreeSet<String>>,
) -> Vec<Check> {
    let mut seen = commit_point.unseen();
    // A separate line reports a committed file that can't be checked. The rest of the observation counts all the same.
    let _unknown = commit_point.observe(newest.map(|newest| &newest.chain), &mut seen).await;
    let (observed, listeners) = (seen.observed, seen.listeners);
    let config = commit_point.parts().nats.config.display();
    let process = match (&observed.presence, newest) {
        (Presence::Running(pid), _) => Check::ok("process", format!("pid {pid} runs with -c {config}")),
        (Presence::Absent(why), Some(_)) => {
            Check::failed("process", format!("nats-server isn't running: {why}; start nats-server"))
        }
        (Presence::Absent(why), None) => Check::warning(
            "process",
            format!(
                "nats-server isn't running: {why}; when `agent run` has written {config}, start nats-server -c {config}"
            ),
        ),
        (Presence::Foreign(why), _) => Check::failed("process", why.as_str()),
        (Presence::Hidden(pid), _) => Check::failed("process", Mismatch::Hidden { pid: *pid }.to_string()),
        (Presence::Unseen, _) => Check::warning("process", Reason::ServerNotLookedAt.to_string()),
    };
    let now = Clock::System.now();
    let mut checks = vec![
        process,
        port("client port", "nats.listen", &observed.client, newest, now),
        port("route port", "nats.cluster_listen", &observed.route, newest, now),
    ];
    checks.extend(system(&observed.system));
    checks.extend(observed.others.iter().map(|(listener, other)| other_port(*listener, other, newest, now)));
    if matches!(observed.presence, Presence::Running(_)) {
        let chain = newest.map(|newest| &newest.chain);
        checks.extend(condition(commit_point, chain, &observed, &listeners, others).await);
    }
    checks
}

/// How nats-server was started, and how its JetStream does now. Without an answer of discovery nobody knows who is missing.
async fn condition(
    commit_point: &CommitPoint,
    chain: Option<&StoredChain>,
    observed: &Observed,
    listeners: &Listeners,
    others: Option<BTreeSet<String>>,
) -> Vec<Check> {
    let parts = commit_point.parts();
    let Condition { arguments, jetstream } = parts.server.condition(chain, listeners, Some(true)).await;
    let committed = || {
        let text = commit_point.committed().ok().flatten();
        text.and_then(|text| text.tree(&parts.nats.config).ok()).unwrap_or_default()
    };
    let graded = |name, is_failure: bool, found: String| {
        if is_failure { Check::failed(name, found) } else { Check::warning(name, found) }
    };
    let faults = arguments.faults(committed).into_iter();
    let mut checks: Vec<Check> =
        faults.map(|fault| graded("arguments", fault.is_failure(), fault.to_string())).collect();
    if let Some(varz) = &observed.varz {
        let costs = reload_costs(&committed(), varz.connections, &varz.version);
        checks.extend(costs.iter().map(|cost| Check::warning("reload", cost.to_string())));
    }
    if let (Look::Seen(mut seen), Some(others), Some(_)) = (jetstream, others, &observed.routez) {
        let mut troubles = troubles(&seen, observed, &others);
        let since = Instant::now();
        // After a start, or a death of the leader, JetStream elects a leader. The election is no trouble.
        while troubles.iter().any(passes) && since.elapsed() < ELECTED_WITHIN {
            tokio::time::sleep(LOOK_AGAIN).await;
            let observed = parts.server.observe(chain, listeners, Some(observed)).await;
            if let Look::Seen(again) = parts.server.condition(chain, listeners, Some(true)).await.jetstream {
                seen = again;
                troubles = self::troubles(&seen, &observed, &others);
            }
        }
        if troubles.is_empty() {
            checks.push(Check::ok("jetstream", format!("its meta leader is {}", seen.meta.leader)));
        }
        let told = |trouble: Trouble| graded("jetstream", trouble.is_failure(), trouble.to_string());
        checks.extend(troubles.into_iter().map(told));
    }
    checks
}

/// How long JetStream may take to elect a leader.
const ELECTED_WITHIN: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Whether an election may end the trouble.
fn passes(trouble: &Trouble) -> bool {
    trouble.is_failure() || *trouble == Trouble::Recovering
}

fn troubles(seen: &Seen, observed: &Observed, others: &BTreeSet<String>) -> Vec<Trouble> {
    let knows_all = observed.varz.as_ref().is_some_and(|varz| !varz.ends.has_gateway());
    let remotes = observed.routez.as_ref().map(|routez| routez.remotes()).unwrap_or_default();
    let routes = remotes.values().map(|(name, _)| (*name).to_owned()).collect();
    seen.troubles(&Surroundings { knows_all, routes, others: others.clone() })
}

fn other_port(listener: Port, other: &Other, newest: Option<&Generation>, now: OffsetDateTime) -> Check {
    let name = match listener {
        Port::Client => "client port",
        Port::Route => "route port",
        Port::Gateway => "gateway port",
        Port::Leafnode => "leafnode port",
        Port::Websocket => "websocket port",
        Port::Mqtt => "mqtt port",
        Port::Monitor => "monitor port",
    };
    let key = format!("the listener's address, {},", other.address);
    match (&other.served, other.certificate) {
        (served, Certificate::Own) => port(name, &key, served, newest, now),
        (Err(why), Certificate::Foreign) => Check::failed(name, format!("{why}; see whether {key} is right")),
        (Ok(served), Certificate::Foreign) => match served.not_after {
            Some(at) if at <= now => Check::failed(
                name,
                format!(
                    "serves a certificate of somebody else that expired at {}; replace the certificate",
                    rfc3339(at)
                ),
            ),
            _ => Check::ok(name, "serves a certificate that somebody else keeps"),
        },
    }
}

fn port(
    name: &'static str,
    key: &str,
    served: &Result<Served, Silence>,
    newest: Option<&Generation>,
    now: OffsetDateTime,
) -> Check {
    match (served, newest) {
        (Ok(served), Some(newest)) => match newest.bundle.refusal(&served.chain, now) {
            Some(why) => {
                Check::failed(name, format!("serves a certificate that clients and peers refuse: {why}; {RENEW}"))
            }
            None if served.sha256 == newest.chain.leaf().sha256 => Check::ok(name, "serves the newest leaf"),
            None => Check::failed(
                name,
                "serves another leaf than the newest; the daemon deploys the newest without another issuance, and its \
                 log says what keeps it from that",
            ),
        },
        (Ok(served), None) => Check::warning(
            name,
            format!("serves the leaf sha256:{}, which is not of this agent; `agent run` replaces it", served.sha256),
        ),
        (Err(why), Some(_)) => {
            Check::failed(name, format!("{why}; start nats-server, look at its log, and see whether {key} is right"))
        }
        (Err(why), None) => {
            Check::warning(name, format!("{why}; `agent run` writes a configuration with TLS on this port, {key}"))
        }
    }
}

/// Dials all peers at the same time: a peer that is away takes the whole time of a probe.
async fn dial(newest: &Generation, peers: Vec<Peer>) -> Vec<Check> {
    let prober = match Prober::presenting(&newest.chain) {
        Ok(prober) => prober,
        Err(error) => return vec![Check::failed("peer", with_causes(&error))],
    };
    let mut dials = JoinSet::new();
    for (index, Peer { id, address, .. }) in peers.into_iter().enumerate() {
        let who = if id == address.to_string() { id } else { format!("{id} at {address}") };
        let prober = prober.clone();
        dials.spawn(async move { (index, who, prober.served(&address.to_string(), Port::Route.opening()).await) });
    }
    let mut dialled = dials.join_all().await;
    dialled.sort_by_key(|(index, ..)| *index);
    let checks = dialled.into_iter().map(|(_, who, served)| match served {
        Err(error) => {
            let remedy = "start its nats-server, and let the security group pass the route port between the nodes";
            Check::failed("peer", format!("{who}: {}; {remedy}", with_causes(&error)))
        }
        Ok(chain) if newest.bundle.chains(&chain, Clock::System.now()) => {
            Check::ok("peer", format!("{who} serves a leaf that we trust"))
        }
        Ok(_) => {
            let found = format!("{who} serves a leaf that our bundle doesn't accept; compare both nodes' trust");
            Check::failed("peer", found)
        }
    });
    checks.collect()
}

fn table(checks: &[Check]) -> String {
    let paint = Paint::stdout();
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    checks.iter().fold(String::new(), |mut text, check| {
        let mark = match check.grade {
            Grade::Ok => paint.green("ok     "),
            Grade::Warning => paint.yellow("warning"),
            Grade::Failed => paint.red("failed "),
        };
        let _infallible = writeln!(text, "{mark}  {:<width$}  {}", check.name, check.found);
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issue::IssuedChain;
    use crate::x509::test_ca::{Ca, NOW, key, sans};

    #[test]
    fn a_certificate_that_clients_refuse_is_a_failure_whoever_else_is_content() {
        let (ca, other, (pair, key)) = (Ca::root("ca"), Ca::root("other"), key());
        let bundle = |ca: &Ca| TrustBundle::parse(ca.pem.as_bytes(), "file", "1").unwrap();
        let issued = IssuedChain { leaf_pem: ca.leaf(&pair).pem(), chain_pem: String::new() };
        let chain = bundle(&ca).verify(&issued, &key, &sans(), NOW).unwrap().stored().clone();
        let files = crate::state::generation::Generations::of(Path::new("/state")).files(7);
        let newest = Generation { number: 7, chain, bundle: bundle(&ca), files };
        let grade = |newest: &Generation, days| {
            let check = certificate(newest, NOW + time::Duration::days(days));
            (check.grade, check.found)
        };
        let (good, found) = grade(&newest, 0);
        assert!(good == Grade::Ok && found == "generation 7, expires 2026-03-08T12:00:00Z", "{found}");
        for (days, words) in
            [(8, "expired at 2026-03-08T12:00:00Z; run `agent renew`"), (-1, "set this machine's clock")]
        {
            let (bad, found) = grade(&newest, days);
            assert!(bad == Grade::Failed && found.contains(words), "{found}");
        }
        let (bad, found) = grade(&Generation { bundle: bundle(&other), ..newest }, 0);
        assert!(bad == Grade::Failed && found.contains("no anchor of the bundle"), "{found}");
    }
}
