//! `agent doctor`: every precondition from here to the peers, each with a remedy. It asks and looks, issues nothing and
//! changes nothing.

use std::fmt::Write;
use std::process::ExitCode;

use serde::Serialize;

use super::{CommandError, Paint, print, print_json};
use crate::apply::chain_of;
use crate::apply::listeners::Listeners;
use crate::apply::probe::{Port, Prober};
use crate::apply::server::{NatsServer, Presence};
use crate::assemble::assemble;
use crate::clock::Clock;
use crate::config::Config;
use crate::discover::{PeerSet, Sighting};
use crate::generation::Generation;
use crate::identity::Node;
use crate::reconcile::{NO_CREDENTIAL, Parts};
use crate::render::Rendered;
use crate::trust::TrustBundle;

/// What came of one check.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    /// What was found; of a failure, also what to do.
    found: String,
}

impl Check {
    fn of<T, E: std::error::Error>(
        name: &'static str,
        result: &Result<T, E>,
        found: impl FnOnce(&T) -> String,
    ) -> Self {
        match result {
            Ok(value) => Self { name, verdict: Verdict::Ok, found: found(value) },
            Err(error) => Self { name, verdict: Verdict::Failed, found: chain_of(error) },
        }
    }

    fn warning(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warning, found: found.into() }
    }

    fn failed(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Failed, found: found.into() }
    }
}

/// Makes every check. Exit code 1 if one failed; a warning is no failure.
pub async fn doctor(config: &Config, json: bool) -> Result<ExitCode, CommandError> {
    let assembled = assemble(config, Vec::new()).await;
    let mut checks = vec![Check::of("identity", &assembled, |parts| describe(&parts.node))];
    if let Ok(parts) = assembled {
        checks.extend(examine(config, &parts).await);
    }
    let healthy = checks.iter().all(|check| check.verdict != Verdict::Failed);
    if json {
        print_json(&serde_json::json!({ "healthy": healthy, "checks": checks }))?;
    } else {
        print(&table(&checks))?;
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn examine(config: &Config, parts: &Parts) -> Vec<Check> {
    let server = NatsServer::new(&config.nats);
    let (version, ca, bundle, sighting) =
        tokio::join!(server.version(), parts.issuance.issuer.ca_pem(), parts.trust.fetch(), parts.peers.sight());
    let mut checks = vec![
        Check::of("nats-server", &version, Clone::clone),
        Check::of("issuer", &ca, |_| "it gives its CA certificate".into()),
        Check::of("trust", &bundle, |bundle| format!("{} anchors from {}", bundle.anchors.len(), bundle.source)),
        Check::of("peers", &sighting, |seen| {
            seen.peers.iter().map(|peer| peer.id.as_str()).collect::<Vec<_>>().join(", ")
        }),
    ];
    if let (Ok(ca), Ok(bundle)) = (&ca, &bundle) {
        checks.push(issuer_is_trusted(ca, bundle));
    }
    if let Ok(seen) = &sighting {
        checks.extend(peers_are_whole(seen, &parts.node));
    }
    checks.push(match &parts.credential {
        None => Check::warning("credential", NO_CREDENTIAL),
        Some(source) => Check::of("credential", &source.fetch().await, |_| "routes must present it".into()),
    });
    checks.push(Check::of("journal", &parts.issuance.journal.load(), |entries| {
        let issued = entries.issued_in_a_day(Clock::System.now());
        let pending = if entries.pending.is_some() { ", one under way" } else { "" };
        format!("{issued} certificates in the last day{pending}")
    }));
    match parts.apply.parts().generations.newest() {
        Ok((Some(newest), damaged)) => {
            checks.extend(damaged.iter().map(|error| Check::failed("generation", chain_of(error))));
            checks.extend(serving(parts, &newest, sighting.ok()).await);
        }
        Ok((None, _)) => checks.push(Check::warning("generation", "none yet; `agent run` makes the first")),
        Err(error) => checks.push(Check::failed("generation", chain_of(&error))),
    }
    checks
}

fn describe(node: &Node) -> String {
    let region = node.region.as_deref().unwrap_or("no Region");
    format!("{} at {} in {region}", node.name, node.address)
}

fn issuer_is_trusted(ca: &str, bundle: &TrustBundle) -> Check {
    match TrustBundle::parse(ca.as_bytes(), "issuer", "") {
        Ok(chain) if chain.anchors.iter().any(|ca| bundle.anchors.contains(ca)) => Check {
            name: "issuer in trust",
            verdict: Verdict::Ok,
            found: "the bundle has the issuer's CA or one above it".into(),
        },
        Ok(chain) => {
            let subjects: Vec<_> = chain.anchors.iter().map(|ca| ca.subject.as_str()).collect();
            Check::failed(
                "issuer in trust",
                format!(
                    "the bundle has none of {}: what the issuer signs will not be accepted; add it",
                    subjects.join(", ")
                ),
            )
        }
        Err(error) => Check::failed("issuer in trust", chain_of(&error)),
    }
}

fn peers_are_whole(seen: &Sighting, node: &Node) -> Option<Check> {
    PeerSet::default().settle(seen, node, |_| false).kept.map(|kept| Check::failed("peers", kept))
}

async fn serving(parts: &Parts, newest: &Generation, seen: Option<Sighting>) -> Vec<Check> {
    let committed = parts.apply.committed().ok().flatten();
    let listeners = Listeners::of(committed.as_ref().map(Rendered::text), &parts.apply.parts().nats);
    let observed = parts.apply.parts().server.observe(&newest.chain, &listeners, None).await;
    let mut checks = vec![match &observed.presence {
        Presence::Running(pid) => Check { name: "process", verdict: Verdict::Ok, found: format!("pid {pid}") },
        Presence::Absent(why) => Check::failed("process", format!("nats-server isn't running: {why}; start it")),
        Presence::Foreign(why) => Check::failed("process", why.as_str()),
    }];
    for (name, served) in [("client port", &observed.client), ("route port", &observed.route)] {
        checks.push(match served {
            Ok(leaf) if *leaf == newest.chain.leaf.sha256 => {
                Check { name, verdict: Verdict::Ok, found: "serves the newest leaf".into() }
            }
            Ok(_) => Check::failed(name, "serves another leaf than the newest; see `agent status`"),
            Err(why) => Check::failed(name, why.as_str()),
        });
    }
    let others = seen.into_iter().flat_map(|seen| seen.peers).filter(|peer| peer.address.ip() != parts.node.address);
    for peer in others {
        checks.push(match Prober::presenting(&newest.chain) {
            Err(error) => Check::failed("peer", chain_of(&error)),
            Ok(prober) => match prober.served(peer.address, Port::Route).await {
                Err(error) => Check::failed("peer", format!("{}: {}", peer.id, chain_of(&error))),
                Ok(chain) if newest.bundle.chains(&chain, Clock::System.now()) => {
                    let found = format!("{} at {} serves a leaf that we trust", peer.id, peer.address);
                    Check { name: "peer", verdict: Verdict::Ok, found }
                }
                Ok(_) => Check::failed(
                    "peer",
                    format!(
                        "{} at {} serves a leaf that our bundle doesn't accept; compare both nodes' trust",
                        peer.id, peer.address
                    ),
                ),
            },
        });
    }
    checks
}

fn table(checks: &[Check]) -> String {
    let paint = Paint::stdout();
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    checks.iter().fold(String::new(), |mut text, check| {
        let mark = match check.verdict {
            Verdict::Ok => paint.green("ok     "),
            Verdict::Warning => paint.yellow("warning"),
            Verdict::Failed => paint.red("failed "),
        };
        let _infallible = writeln!(text, "{mark}  {:<width$}  {}", check.name, check.found);
        text
    })
}
