//! What the last pass found: the status that operators and scripts read.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::node::Node;
use crate::peers::{Peer, PeerSet};
use crate::reason::{Reason, Told};
use crate::server::monitor::Routez;
use crate::server::probe::Port;
use crate::server::standing::Standing;
use crate::server::{Observed, Presence, Served};
use crate::state::generation::Generation;
use crate::trust::TrustBundle;

/// An anchor that ends within this time is worth a warning: a CA rollover takes preparation.
const ANCHOR_WARNING: time::Duration = time::Duration::days(365);

/// How the node is doing.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A valid certificate is served, and everything works.
    Healthy,
    /// A valid certificate is served, or ready for nats-server to start with, and something needs attention.
    Degraded,
    /// There is no valid certificate, or nats-server runs and serves none.
    Failing,
}

impl std::fmt::Display for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Failing => "failing",
        })
    }
}

/// The contract of `agent status --json`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Status {
    /// How the node is doing.
    pub state: State,
    /// Why it isn't healthy.
    pub reasons: Vec<Told>,
    /// What leaves it healthy and is worth knowing.
    pub warnings: Vec<Told>,
    /// Who it is.
    pub node: NodeStatus,
    /// The newest leaf.
    pub leaf: Option<LeafStatus>,
    /// What nats-server serves.
    pub served: Option<ServedStatus>,
    /// What it trusts.
    pub trust: Option<TrustStatus>,
    /// The cluster.
    pub peers: Vec<PeerStatus>,
    /// When the next leaf is due.
    pub renewal: RenewalStatus,
    /// The server.
    pub nats: NatsStatus,
}

/// Who the node is.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct NodeStatus {
    /// `server_name`.
    pub name: String,
    /// IP SANs, the one that peers dial first.
    pub addresses: Vec<IpAddr>,
    /// DNS SANs.
    pub dns_names: Vec<String>,
}

/// The newest leaf.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct LeafStatus {
    /// Hexadecimal.
    pub serial: String,
    /// Start of validity.
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    /// End of validity.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// Distinguished name.
    pub issuer: String,
    /// Names, then addresses.
    pub sans: Vec<String>,
    /// Hexadecimal.
    pub sha256: String,
    /// The generation that it is in.
    pub generation: u64,
}

/// What nats-server serves.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct ServedStatus {
    /// On the client port.
    pub client: Option<ServedLeaf>,
    /// On the route port.
    pub route: Option<ServedLeaf>,
    /// When it was last seen to be what was committed.
    #[serde(with = "time::serde::rfc3339::option")]
    pub confirmed_at: Option<OffsetDateTime>,
}

/// One port's leaf.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct ServedLeaf {
    /// Hexadecimal.
    pub sha256: String,
}

/// What the node trusts.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct TrustStatus {
    /// The anchors.
    pub anchors: Vec<AnchorStatus>,
    /// Where they came from.
    pub source: String,
    /// The source's version.
    pub version: String,
}

/// One anchor.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct AnchorStatus {
    /// Distinguished name.
    pub subject: String,
    /// Hexadecimal.
    pub sha256: String,
    /// When it ends.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
}

/// One server of the cluster, this one included.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct PeerStatus {
    /// Instance id, or the static peer as configured.
    pub id: String,
    /// Its route address.
    pub address: String,
    /// Its lifecycle state.
    pub state: String,
    /// Whether there is a route to it.
    pub route: RouteState,
}

/// Whether there is a route to a peer.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RouteState {
    /// There is; of this node itself: its nats-server runs.
    Up,
    /// There is none.
    Down,
    /// nats-server doesn't say, or not clearly enough.
    Unknown,
}

impl std::fmt::Display for RouteState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Unknown => "unknown",
        })
    }
}

/// When the next leaf is due.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct RenewalStatus {
    /// Then.
    #[serde(with = "time::serde::rfc3339::option")]
    pub next: Option<OffsetDateTime>,
    /// Failures in a row.
    pub attempts: u32,
    /// The last of them.
    pub last_error: Option<String>,
}

/// The server.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct NatsStatus {
    /// Its process.
    pub pid: Option<i32>,
    /// Its version.
    pub version: Option<String>,
    /// The digest of what it has loaded.
    pub config_digest: Option<String>,
}

/// What a status is made from.
#[derive(Clone, Debug)]
pub struct Findings {
    /// The time.
    pub now: OffsetDateTime,
    /// Who the node is.
    pub node: NodeStatus,
    /// Instance id, where there is one: peers are known by it.
    pub instance_id: Option<String>,
    /// The newest generation.
    pub generation: Option<Generation>,
    /// The bundle in force.
    pub bundle: Option<TrustBundle>,
    /// The peers in force.
    pub peers: PeerSet,
    /// What was seen of nats-server.
    pub observed: Observed,
    /// Where the committed configuration stands.
    pub standing: Standing,
    /// When it last was.
    pub confirmed_at: Option<OffsetDateTime>,
    /// When the next leaf is due, and what went wrong with it.
    pub renewal: RenewalStatus,
    /// What the stages report.
    pub faults: Vec<Reason>,
    /// What is worth knowing.
    pub warnings: Vec<Reason>,
}

impl Status {
    /// Sums the findings up. Pure.
    #[must_use]
    pub fn of(findings: Findings) -> Self {
        let Findings { now, observed, generation, bundle, .. } = &findings;
        let mut reasons = findings.faults.clone();
        let leaf = generation.as_ref().map(|generation| generation.chain.leaf());
        let expired = leaf.is_none_or(|leaf| leaf.not_after <= *now);
        match leaf {
            None => reasons.push(Reason::NoCertificate),
            Some(leaf) if expired => reasons.push(Reason::CertificateExpired { at: leaf.not_after }),
            Some(leaf) if leaf.not_before > *now => {
                reasons.push(Reason::CertificateNotYetValid { begins: leaf.not_before, now: *now });
            }
            Some(_) => {}
        }
        reasons.extend(not_served(&findings.standing, observed));
        let is_there = matches!(observed.presence, Presence::Running(_) | Presence::Foreign(_));
        let refused = refused(&findings);
        let unserved = is_there && (observed.client.is_err() || observed.route.is_err() || !refused.is_empty());
        reasons.extend(refused);
        let state = match (reasons.is_empty(), expired || unserved) {
            (true, _) => State::Healthy,
            (false, false) => State::Degraded,
            (false, true) => State::Failing,
        };
        let mut warnings = findings.warnings.clone();
        if let (Presence::Running(pid), None) = (&observed.presence, &observed.varz) {
            warnings.push(Reason::MonitoringSilent { pid: *pid });
        }
        for anchor in bundle.iter().flat_map(|bundle| &bundle.anchors) {
            let has_ended = anchor.not_after <= *now;
            if has_ended || anchor.not_after <= *now + ANCHOR_WARNING {
                let (subject, not_after) = (anchor.subject.clone(), anchor.not_after);
                warnings.push(Reason::Anchor { subject, not_after, has_ended });
            }
        }
        let peers = routes(&findings);
        let mut others = peers.iter().filter(|peer| !findings.node.is_own(peer)).peekable();
        if is_there && others.peek().is_some() && others.all(|peer| peer.route == RouteState::Down) {
            warnings.push(Reason::NoRoute);
        }
        let served = |port: &Result<Served, String>| {
            port.as_ref().ok().map(|served| ServedLeaf { sha256: served.sha256.clone() })
        };
        Self {
            state,
            reasons: told_once(&reasons),
            warnings: warnings.iter().map(Told::from).collect(),
            leaf: generation.as_ref().map(LeafStatus::of),
            served: is_there.then(|| ServedStatus {
                client: served(&observed.client),
                route: served(&observed.route),
                confirmed_at: findings.confirmed_at,
            }),
            trust: bundle.as_ref().map(TrustStatus::of),
            peers,
            nats: NatsStatus {
                pid: if let Presence::Running(pid) = observed.presence { Some(pid) } else { None },
                version: observed.varz.as_ref().map(|varz| varz.version.clone()),
                config_digest: observed.varz.as_ref().and_then(|varz| varz.config_digest.clone()),
            },
            node: findings.node,
            renewal: findings.renewal,
        }
    }
}

impl NodeStatus {
    /// What a node says of itself.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        let others = node.sans.ips.iter().copied().filter(|ip| *ip != node.address);
        Self {
            name: node.name.clone(),
            addresses: std::iter::once(node.address).chain(others).collect(),
            dns_names: node.sans.dns.iter().map(|name| name.as_str().to_owned()).collect(),
        }
    }

    /// Whether a peer is this node itself.
    #[must_use]
    pub fn is_own(&self, peer: &PeerStatus) -> bool {
        let at = |address: SocketAddr| self.addresses.contains(&address.ip());
        peer.id == self.name || peer.address.parse().is_ok_and(at)
    }
}

impl LeafStatus {
    /// What is said of a generation's leaf.
    #[must_use]
    pub fn of(generation: &Generation) -> Self {
        let leaf = generation.chain.leaf();
        let names = leaf.sans.dns.iter().map(|name| name.as_str().to_owned());
        Self {
            serial: leaf.serial.clone(),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            issuer: leaf.issuer.clone(),
            sans: names.chain(leaf.sans.ips.iter().map(ToString::to_string)).collect(),
            sha256: leaf.sha256.clone(),
            generation: generation.number,
        }
    }
}

impl TrustStatus {
    fn of(bundle: &TrustBundle) -> Self {
        let anchors = bundle.anchors.iter().map(|anchor| AnchorStatus {
            subject: anchor.subject.clone(),
            sha256: anchor.sha256.clone(),
            not_after: anchor.not_after,
        });
        Self { anchors: anchors.collect(), source: bundle.source.clone(), version: bundle.version.clone() }
    }
}

/// Why nats-server doesn't serve what is committed, if it doesn't.
fn not_served(standing: &Standing, observed: &Observed) -> Option<Reason> {
    match (standing, &observed.presence) {
        (Standing::NotServed(mismatch), _) => Some(Reason::CommittedNotServed(mismatch.clone())),
        (Standing::NoServer { why }, _) | (Standing::NothingCommitted, Presence::Absent(why)) => {
            Some(Reason::ServerNotRunning { why: why.clone() })
        }
        (Standing::Unseen, _) => Some(Reason::ServerNotLookedAt),
        (Standing::Served(_) | Standing::NothingCommitted, _) => None,
    }
}

/// The ports that serve another leaf than ours, which clients and peers refuse.
fn refused(findings: &Findings) -> Vec<Reason> {
    let Findings { now, observed, generation, bundle, .. } = findings;
    let (Some(generation), Some(bundle)) = (generation, bundle) else { return Vec::new() };
    let ports = [(Port::Client, &observed.client), (Port::Route, &observed.route)];
    let others = ports.into_iter().filter_map(|(port, served)| {
        let served = served.as_ref().ok().filter(|served| served.sha256 != generation.chain.leaf().sha256)?;
        let why = bundle.refusal(&served.chain, *now)?;
        Some(Reason::ServedCertificateRefused { port, why })
    });
    others.collect()
}

/// Each reason once: a reason that another reason tells among its causes says nothing more.
fn told_once(reasons: &[Reason]) -> Vec<Told> {
    let once = reasons.iter().enumerate().filter(|(index, reason)| {
        !reasons.iter().any(|other| other.tells(reason)) && !reasons[..*index].contains(reason)
    });
    once.map(|(_, reason)| reason.into()).collect()
}

/// Which peers nats-server has a route to. It names a remote by its server name, and by its address where this node
/// dialled. A remote of another name that dialled from another address can only be counted.
fn routes(findings: &Findings) -> Vec<PeerStatus> {
    let Findings { node, observed, .. } = findings;
    let peers = || findings.peers.0.values();
    let remotes = observed.routez.as_ref().map(Routez::remotes);
    let remotes = remotes.as_ref().map(|remotes| remotes.values().collect::<Vec<_>>());
    let names: BTreeSet<&str> = remotes.iter().flatten().map(|(name, _)| *name).collect();
    let addresses: BTreeSet<IpAddr> = remotes.iter().flatten().flat_map(|(_, ips)| ips.iter().copied()).collect();
    let is_self = |peer: &Peer| {
        let names_us = Some(&peer.id) == findings.instance_id.as_ref() || peer.id == node.name;
        names_us || node.addresses.contains(&peer.address.ip())
    };
    let is_seen = |peer: &Peer| names.contains(peer.id.as_str()) || addresses.contains(&peer.address.ip());
    let unseen = peers().filter(|peer| !is_self(peer) && !is_seen(peer)).count();

    let ids: BTreeSet<&str> = peers().map(|peer| peer.id.as_str()).collect();
    let ips: BTreeSet<IpAddr> = peers().map(|peer| peer.address.ip()).collect();
    // Whoever has an instance id for its name and is no peer has left the group, and is none of the unseen.
    let could_be_any =
        |name: &str, from: &BTreeSet<IpAddr>| !ids.contains(name) && from.is_disjoint(&ips) && !name.starts_with("i-");
    let uncertain = remotes.iter().flatten().filter(|(name, from)| could_be_any(name, from)).count();

    let route = |peer: &Peer| match (&remotes, &observed.presence) {
        (_, Presence::Running(_)) if is_self(peer) => RouteState::Up,
        _ if is_self(peer) => RouteState::Down,
        (Some(_), _) if is_seen(peer) || uncertain >= unseen => RouteState::Up,
        (Some(_), _) if uncertain == 0 => RouteState::Down,
        _ => RouteState::Unknown,
    };
    let statuses = peers().map(|peer| PeerStatus {
        id: peer.id.clone(),
        address: peer.address.to_string(),
        state: peer.state.clone(),
        route: route(peer),
    });
    statuses.collect()
}

#[cfg(test)]
mod tests;
