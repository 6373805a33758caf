//! The status that operators and scripts read: the findings of the last pass.

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

/// An anchor that ends within this time makes a warning, because a CA rollover takes preparation.
const ANCHOR_WARNING: time::Duration = time::Duration::days(365);

/// The state of a node in one word.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A valid certificate is served, and everything works.
    Healthy,
    /// A valid certificate is served, or ready for nats-server to start with. Something else needs attention.
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

/// The status of a node. Its fields are the contract of `agent status --json`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Status {
    /// The state of the node.
    pub state: State,
    /// Why the node isn't healthy.
    pub reasons: Vec<Told>,
    /// Findings that need attention and leave the state as it is.
    pub warnings: Vec<Told>,
    /// The identity of the node.
    pub node: NodeStatus,
    /// The newest leaf.
    pub leaf: Option<LeafStatus>,
    /// What nats-server serves, if it runs.
    pub served: Option<ServedStatus>,
    /// The trust anchors of the node.
    pub trust: Option<TrustStatus>,
    /// The servers of the cluster, this node included.
    pub peers: Vec<PeerStatus>,
    /// When the next leaf is due, and the failures so far.
    pub renewal: RenewalStatus,
    /// The settings of nats-server.
    #[serde(default)]
    pub settings: SettingsStatus,
    /// The nats-server of the node.
    pub nats: NatsStatus,
}

/// The settings of nats-server: what is committed, what runs, what waits and why settings are refused.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct SettingsStatus {
    /// The digest of the committed configuration, `sha256:…`. nats-server before 2.11 has none.
    pub committed: Option<String>,
    /// The digest that the running nats-server reports.
    pub running: Option<String>,
    /// The names of the settings that wait for a restart of nats-server.
    pub waiting: Vec<String>,
    /// Why the wanted settings are not committed.
    pub refused: Option<Told>,
}

/// The identity of a node.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct NodeStatus {
    /// `server_name`.
    pub name: String,
    /// The IP SANs. The first address is the address that peers dial.
    pub addresses: Vec<IpAddr>,
    /// The DNS SANs.
    pub dns_names: Vec<String>,
}

/// The newest leaf.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct LeafStatus {
    /// The serial number, hexadecimal.
    pub serial: String,
    /// The start of validity.
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    /// The end of validity.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// The issuer's distinguished name.
    pub issuer: String,
    /// The SANs: DNS names, then addresses.
    pub sans: Vec<String>,
    /// SHA-256 of the leaf's DER, hexadecimal.
    pub sha256: String,
    /// The generation that holds the leaf.
    pub generation: u64,
}

/// What nats-server serves.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct ServedStatus {
    /// The leaf on the client port, if a certificate was seen.
    pub client: Option<ServedLeaf>,
    /// The leaf on the route port, if a certificate was seen.
    pub route: Option<ServedLeaf>,
    /// When the committed leaf was last seen served.
    #[serde(with = "time::serde::rfc3339::option")]
    pub confirmed_at: Option<OffsetDateTime>,
}

/// The leaf that a port serves.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct ServedLeaf {
    /// SHA-256 of the leaf's DER, hexadecimal.
    pub sha256: String,
}

/// The trust bundle in force.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct TrustStatus {
    /// The trust anchors of the bundle.
    pub anchors: Vec<AnchorStatus>,
    /// The source of the bundle.
    pub source: String,
    /// The version that the source gave the bundle.
    pub version: String,
}

/// A trust anchor.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct AnchorStatus {
    /// The distinguished name.
    pub subject: String,
    /// SHA-256 of the DER, hexadecimal.
    pub sha256: String,
    /// The end of validity.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
}

/// A server of the cluster. This node is a server of the cluster too.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct PeerStatus {
    /// The instance id, or the static peer as configured.
    pub id: String,
    /// The route address.
    pub address: String,
    /// The lifecycle state in the group, or `static` for a static peer.
    pub state: String,
    /// Whether there is a route to the peer.
    pub route: RouteState,
}

/// Whether there is a route to a peer.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RouteState {
    /// There is a route. For this node itself: its nats-server runs.
    Up,
    /// There is no route. For this node itself: its nats-server doesn't run.
    Down,
    /// nats-server reports nothing, or too little to decide.
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

/// When the next leaf is due, and the failures so far.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct RenewalStatus {
    /// When the next leaf is due.
    #[serde(with = "time::serde::rfc3339::option")]
    pub next: Option<OffsetDateTime>,
    /// The number of failures in a row.
    pub attempts: u32,
    /// The last failure.
    pub last_error: Option<String>,
}

/// The nats-server of a node.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct NatsStatus {
    /// The pid of the process, if it runs.
    pub pid: Option<i32>,
    /// The version, as the monitoring port reports it.
    pub version: Option<String>,
    /// The digest of the loaded configuration, from nats-server 2.11 on.
    pub config_digest: Option<String>,
}

/// The findings of a pass, from which the status is made.
#[derive(Clone, Debug)]
pub struct Findings {
    /// The settings of nats-server, without the digest that nats-server reports.
    pub settings: SettingsStatus,
    /// The time of the pass.
    pub now: OffsetDateTime,
    /// The identity of the node.
    pub node: NodeStatus,
    /// The instance id of a node on EC2. Discovery on EC2 names peers by their instance ids.
    pub instance_id: Option<String>,
    /// The newest generation.
    pub generation: Option<Generation>,
    /// The bundle in force.
    pub bundle: Option<TrustBundle>,
    /// The peers in force.
    pub peers: PeerSet,
    /// The last observation of nats-server.
    pub observed: Observed,
    /// Whether nats-server serves the committed configuration.
    pub standing: Standing,
    /// When nats-server was last seen to serve the committed configuration.
    pub confirmed_at: Option<OffsetDateTime>,
    /// When the next leaf is due, and the failures so far.
    pub renewal: RenewalStatus,
    /// The failures that the stages report.
    pub faults: Vec<Reason>,
    /// The warnings that the stages report.
    pub warnings: Vec<Reason>,
}

impl Status {
    /// The status that follows from the findings. The function is pure.
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
        let is_there = matches!(observed.presence, Presence::Running(_) | Presence::Foreign(_) | Presence::Hidden(_));
        let refused = if is_there { refused(&findings) } else { Vec::new() };
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
            settings: SettingsStatus {
                running: observed.varz.as_ref().and_then(|varz| varz.config_digest.clone()),
                ..findings.settings.clone()
            },
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
    /// The identity of a node, with the address that peers dial first.
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
    /// The leaf of a generation.
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

/// Why nats-server doesn't serve a committed configuration. No reason: it does.
fn not_served(standing: &Standing, observed: &Observed) -> Vec<Reason> {
    match (standing, &observed.presence) {
        (Standing::Served(_), _) => Vec::new(),
        (Standing::NotServed(mismatch), _) => vec![Reason::CommittedNotServed(mismatch.clone())],
        (Standing::NoServer { why }, _) => vec![Reason::ServerNotRunning { why: why.clone() }],
        (Standing::NothingCommitted, Presence::Absent(why)) => {
            vec![Reason::NothingCommitted, Reason::ServerNotRunning { why: why.clone() }]
        }
        (Standing::NothingCommitted, _) => vec![Reason::NothingCommitted],
        (Standing::Unseen, _) => vec![Reason::ServerNotLookedAt],
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

/// Each reason once. A reason that another reason names among its causes is left out.
fn told_once(reasons: &[Reason]) -> Vec<Told> {
    let once = reasons.iter().enumerate().filter(|(index, reason)| {
        let is_before = reasons[..*index].iter().any(|before| before.identity() == reason.identity());
        !is_before && !reasons.iter().any(|other| other.tells(reason))
    });
    once.map(|(_, reason)| reason.into()).collect()
}

/// The peers, each with whether nats-server has a route to it. nats-server reports the server name of a remote, and the
/// peer's route address where this node dialled. Any other remote can't be matched to a peer, and is counted.
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
    // A remote that is named by an instance id, and is no peer, has left the group. So the remote can't be an unseen peer.
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
