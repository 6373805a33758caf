//! The status that operators and scripts read: the findings of the last pass.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::conf::listeners::Listeners;
use crate::conf::loss::Certificate;
use crate::node::Node;
use crate::peers::{Peer, PeerSet};
use crate::progress::Step;
use crate::reason::{Code, Reason, Told};
use crate::server::monitor::Routez;
use crate::server::probe::{Port, Silence};
use crate::server::standing::Standing;
use crate::server::{Observed, Other, Phase, Presence, Served};
use crate::state::generation::Generation;
use crate::trust::TrustBundle;
use crate::trust::rollover::RolloverPhase;
use crate::x509::leaf::Leaf;

/// An anchor that ends within this time makes a warning, because a CA rollover takes preparation.
const ANCHOR_WARNING: time::Duration = time::Duration::days(365);

/// A certificate that somebody else keeps on a listener makes a warning within this time, and within the last third of its
/// lifetime.
const LISTENER_WARNING: time::Duration = time::Duration::days(7);

/// How long a node without any route is no failure: peers start at the same time, or are replaced.
const ALONE: time::Duration = time::Duration::minutes(10);

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
    /// Where a change of the CA stands.
    #[serde(default)]
    pub rollover: RolloverStatus,
    /// The servers of the cluster, this node included.
    pub peers: Vec<PeerStatus>,
    /// When the next leaf is due, and the failures so far.
    pub renewal: RenewalStatus,
    /// The settings of nats-server.
    #[serde(default)]
    pub settings: SettingsStatus,
    /// The nats-server of the node.
    pub nats: NatsStatus,
    /// The connection document, if this node keeps one current and has seen it.
    #[serde(default)]
    pub connection: Option<ConnectionStatus>,
    /// The pass that is under way, if any. Every other field is what the pass before found.
    #[serde(default)]
    pub pass: Option<PassStatus>,
}

/// A pass that is under way.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct PassStatus {
    /// When the pass began.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// The last step that the pass has completed, if any.
    #[serde(flatten)]
    pub step: Option<Step>,
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
    /// NotAfter of the issuer's CA certificate, where the chain or the bundle has the certificate.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub issuer_not_after: Option<OffsetDateTime>,
    /// The SANs: DNS names, then addresses.
    pub sans: Vec<String>,
    /// SHA-256 of the leaf's DER, hexadecimal.
    pub sha256: String,
    /// The generation that holds the leaf.
    pub generation: u64,
}

/// What nats-server serves.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct ServedStatus {
    /// The leaf on the client port, if a certificate was seen.
    pub client: Option<ServedLeaf>,
    /// The leaf on the route port, if a certificate was seen.
    pub route: Option<ServedLeaf>,
    /// The leaves on the other TLS listeners, each where a certificate was seen.
    #[serde(flatten)]
    pub others: BTreeMap<Port, ServedLeaf>,
    /// When the committed leaf was last seen served.
    #[serde(with = "time::serde::rfc3339::option")]
    pub confirmed_at: Option<OffsetDateTime>,
}

/// The leaf that a port serves.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct ServedLeaf {
    /// `host:port`, as the agent dials it.
    #[serde(default)]
    pub address: String,
    /// The end of validity, where the leaf can be read.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub not_after: Option<OffsetDateTime>,
    /// SHA-256 of the leaf's DER, hexadecimal.
    pub sha256: String,
}

impl ServedStatus {
    /// Each listener that showed a leaf.
    pub fn listeners(&self) -> impl Iterator<Item = (Port, &ServedLeaf)> {
        let seen = [(Port::Client, &self.client), (Port::Route, &self.route)];
        let seen = seen.into_iter().filter_map(|(listener, leaf)| Some((listener, leaf.as_ref()?)));
        seen.chain(self.others.iter().map(|(listener, leaf)| (*listener, leaf)))
    }
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
    /// The bundle for what clients present, beside these anchors. `None`: clients have no bundle of their own.
    #[serde(default)]
    pub clients: Option<Box<Self>>,
}

/// Where a change of the CA stands, as this node sees it.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct RolloverStatus {
    /// How far the cluster is.
    pub phase: RolloverPhase,
    /// What the next step waits for, in words.
    pub waits_for: Vec<String>,
    /// Since when a certificate of the new CA waits.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub since: Option<OffsetDateTime>,
    /// The subject of the new CA, while a certificate of it waits. Clients must trust the CA by then.
    #[serde(default)]
    pub issuer: Option<String>,
    /// Until when clients have notice of the new CA.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub clients_notice_until: Option<OffsetDateTime>,
    /// How far each peer is.
    #[serde(default)]
    pub peers: Vec<PeerPhase>,
}

/// How far a peer is in a change of the CA.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct PeerPhase {
    /// The id of the peer.
    pub id: String,
    /// The address of its route port.
    pub address: String,
    /// `None`: the peer was not seen yet.
    pub phase: Option<RolloverPhase>,
    /// When the peer was seen last.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub seen_at: Option<OffsetDateTime>,
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

/// The connection document, as this node last saw or wrote it.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct ConnectionStatus {
    /// The URLs for clients.
    pub urls: Vec<String>,
    /// When the document last changed, RFC 3339.
    pub changed_at: String,
    /// The SHA-256 of each anchor, and since when the document has the anchor, RFC 3339.
    pub trusts_from: BTreeMap<String, String>,
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
    /// What nats-server is about, if it runs.
    #[serde(default)]
    pub state: Option<Phase>,
    /// The last reload that this process of the agent confirmed.
    #[serde(default)]
    pub last_reload: Option<LastReload>,
    /// The last distrust that this process of the agent carried out.
    #[serde(default)]
    pub distrust: Option<DistrustStatus>,
}

/// A reload, and the number of clients that it disconnected.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct LastReload {
    /// When nats-server was told to reload.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// `None`: nats-server gave no answer.
    pub disconnected: Option<u64>,
}

/// The last distrust that this process of the agent carried out.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct DistrustStatus {
    /// When nats-server loaded the bundle without the CA.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// The clients with a certificate that were connected before, and that the agent closed.
    pub closed: u64,
}

/// What nats-server is about, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedPhase {
    /// What it is about.
    pub phase: Phase,
    /// Since when that is seen.
    pub since: OffsetDateTime,
    /// When a start or a drain becomes a failure.
    pub may_last_until: OffsetDateTime,
}

/// The findings of a pass, from which the status is made.
#[derive(Clone, Debug)]
pub struct Findings {
    /// The settings of nats-server, without the digest that nats-server reports.
    pub settings: SettingsStatus,
    /// What nats-server is about. `None`: it doesn't run.
    pub phase: Option<TimedPhase>,
    /// The last confirmed reload.
    pub last_reload: Option<LastReload>,
    /// The last distrust.
    pub distrust: Option<DistrustStatus>,
    /// The connection document, where it was seen.
    pub connection: Option<ConnectionStatus>,
    /// Whether nats-server starts again and again and never serves.
    pub is_crash_loop: bool,
    /// Since when this node has a route to none of its peers.
    pub alone_since: Option<OffsetDateTime>,
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
    /// Where a change of the CA stands.
    pub rollover: RolloverStatus,
    /// The peers in force.
    pub peers: PeerSet,
    /// The last observation of nats-server.
    pub observed: Observed,
    /// Where nats-server was observed.
    pub listeners: Listeners,
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
    /// The status of a node that is out of service and waits: it serves nothing, and nobody expects it to. What its sources
    /// meet is worth knowing before it goes into service.
    pub(crate) fn waiting(self, waits: &Reason, faults: &[Reason]) -> Self {
        let told = std::iter::once(waits).chain(faults).map(Told::from);
        Self { state: State::Healthy, reasons: Vec::new(), warnings: told.chain(self.warnings).collect(), ..self }
    }

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
        let in_transition = transition(&findings);
        match &in_transition {
            Some(transition) => reasons.push(transition.clone()),
            None => reasons.extend(not_served(&findings.standing, observed)),
        }
        reasons.extend(findings.is_crash_loop.then_some(Reason::ServerCrashLoop));
        let is_there = matches!(observed.presence, Presence::Running(_) | Presence::Foreign(_) | Presence::Hidden(_));
        let refused = if is_there { refused(&findings) } else { Vec::new() };
        let is_served = findings.standing.is_served();
        let is_reloading = matches!(findings.standing, Standing::Reloading { .. });
        let is_silent = |port: &Result<Served, Silence>| port.as_ref().is_err_and(|silence| !silence.is_harmless());
        let unserved = is_there
            && !is_reloading
            && in_transition.is_none()
            && (is_silent(&observed.client) && !is_served || is_silent(&observed.route) || !refused.is_empty());
        reasons.extend(refused);
        if let (true, Err(why)) = (is_served && is_silent(&observed.client), &observed.client) {
            let address = findings.listeners.client.to_string();
            reasons.push(Reason::ListenerSilent { port: Port::Client, address, why: why.clone() });
        }
        let is_passing = is_reloading || in_transition.is_some();
        let amiss = others_amiss(&findings).into_iter();
        // A listener that is silent during a start or a reload is told by that reason.
        reasons.extend(amiss.filter(|reason| !is_passing || reason.code() != Code::ListenerSilent));
        let peers = routes(&findings.node, findings.instance_id.as_ref(), &findings.peers, observed);
        let is_alone = is_there && are_all_down(&findings.node, &peers);
        let is_long_alone = is_alone && findings.alone_since.is_some_and(|since| since + ALONE <= *now);
        reasons.extend(is_long_alone.then_some(Reason::NoRoute));
        let is_uncommitted = findings.standing == Standing::NothingCommitted;
        let fails = expired || unserved || is_uncommitted || findings.is_crash_loop || is_long_alone;
        let state = match (reasons.is_empty(), fails) {
            (true, _) => State::Healthy,
            (false, false) => State::Degraded,
            (false, true) => State::Failing,
        };
        let mut warnings = findings.warnings.clone();
        if let (Presence::Running(pid), None) = (&observed.presence, &observed.varz) {
            warnings.push(Reason::MonitoringSilent { pid: *pid });
        }
        for anchor in bundle.iter().flat_map(|bundle| bundle.anchors.iter().chain(bundle.client_anchors())) {
            let has_ended = anchor.not_after <= *now;
            if has_ended || anchor.not_after <= *now + ANCHOR_WARNING {
                let (subject, not_after) = (anchor.subject.clone(), anchor.not_after);
                warnings.push(Reason::Anchor { subject, not_after, has_ended });
            }
        }
        warnings.extend((is_alone && !is_long_alone).then_some(Reason::NoRoute));
        if let (true, Err(Silence::Full(said))) = (is_there, &observed.client) {
            warnings.push(Reason::ServerFull { said: said.clone() });
        }
        warnings.extend(others_end(&findings));
        let served = |address: String, port: &Result<Served, Silence>| {
            let Served { sha256, not_after, .. } = port.as_ref().ok()?;
            Some(ServedLeaf { address, not_after: *not_after, sha256: sha256.clone() })
        };
        let others = observed.others.iter();
        let others = others.filter_map(|(port, other)| Some((*port, served(other.address.clone(), &other.served)?)));
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
                client: served(findings.listeners.client.to_string(), &observed.client),
                route: served(findings.listeners.route.to_string(), &observed.route),
                others: others.collect(),
                confirmed_at: findings.confirmed_at,
            }),
            trust: bundle.as_ref().map(TrustStatus::of),
            rollover: findings.rollover.clone(),
            peers,
            nats: NatsStatus {
                pid: if let Presence::Running(pid) = observed.presence { Some(pid) } else { None },
                version: observed.varz.as_ref().map(|varz| varz.version.clone()),
                state: findings.phase.map(|phase| phase.phase),
                last_reload: findings.last_reload,
                distrust: findings.distrust,
                config_digest: observed.varz.as_ref().and_then(|varz| varz.config_digest.clone()),
            },
            node: findings.node,
            renewal: findings.renewal,
            connection: findings.connection,
            pass: None,
        }
    }
}

#[cfg(test)]
impl Status {
    /// A status that tells a state alone.
    pub(crate) fn bare(state: State) -> Self {
        Self {
            rollover: RolloverStatus::default(),
            state,
            reasons: Vec::new(),
            warnings: Vec::new(),
            node: NodeStatus::default(),
            leaf: None,
            served: None,
            trust: None,
            peers: Vec::new(),
            renewal: RenewalStatus::default(),
            settings: SettingsStatus::default(),
            nats: NatsStatus::default(),
            connection: None,
            pass: None,
        }
    }
}

impl Status {
    /// Whether nats-server runs and has a route to none of the other peers.
    #[must_use]
    pub(crate) fn is_alone(&self) -> bool {
        self.nats.pid.is_some() && are_all_down(&self.node, &self.peers)
    }
}

impl NodeStatus {
    /// The identity of a node, with the address that peers dial first.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        Self {
            name: node.name.clone(),
            addresses: std::iter::once(node.address).chain(node.further_addresses.iter().copied()).collect(),
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
            issuer_not_after: generation.bundle.issuer_of(generation.chain.chain()).map(|(_, at)| at),
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
        Self {
            anchors: anchors.collect(),
            source: bundle.source.clone(),
            version: bundle.version.clone(),
            clients: bundle.clients.as_deref().map(|clients| Box::new(Self::of(clients))),
        }
    }
}

/// A start or a drain that is no failure yet.
fn transition(findings: &Findings) -> Option<Reason> {
    let TimedPhase { phase, since, may_last_until } = findings.phase?;
    let is_committed = findings.standing != Standing::NothingCommitted;
    match phase {
        _ if !is_committed || may_last_until <= findings.now || findings.is_crash_loop => None,
        Phase::Starting => Some(Reason::ServerStarting { since }),
        Phase::Draining => Some(Reason::ServerDraining { since }),
        Phase::Running | Phase::Reloading | Phase::Full => None,
    }
}

/// Whether there are other peers, and a route to none.
fn are_all_down(node: &NodeStatus, peers: &[PeerStatus]) -> bool {
    let mut others = peers.iter().filter(|peer| !node.is_own(peer)).peekable();
    others.peek().is_some() && others.all(|peer| peer.route == RouteState::Down)
}

/// Why nats-server doesn't serve a committed configuration. No reason: it does.
fn not_served(standing: &Standing, observed: &Observed) -> Vec<Reason> {
    match (standing, &observed.presence) {
        (Standing::Served(_), _) => Vec::new(),
        (Standing::NotServed(mismatch), _) => vec![Reason::CommittedNotServed(mismatch.clone())],
        (Standing::Reloading { since }, _) => vec![Reason::ReloadUnderWay { since: *since }],
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
    let own = observed.others.iter().filter(|(_, other)| other.certificate == Certificate::Own);
    let ports = [(Port::Client, &observed.client), (Port::Route, &observed.route)].into_iter();
    let others = ports.chain(own.map(|(port, other)| (*port, &other.served))).filter_map(|(port, served)| {
        let served = served.as_ref().ok().filter(|served| served.sha256 != generation.chain.leaf().sha256)?;
        let why = bundle.refusal(&served.chain, *now)?;
        Some(Reason::ServedCertificateRefused { port, why })
    });
    others.collect()
}

/// What is amiss with listeners beside client and route port: silence, and an expired certificate that somebody else
/// keeps.
fn others_amiss(findings: &Findings) -> Vec<Reason> {
    let amiss = |(port, Other { address, certificate, served }): (&Port, &Other)| match served {
        Err(why) if why.is_harmless() => None,
        Err(why) => Some(Reason::ListenerSilent { port: *port, address: address.clone(), why: why.clone() }),
        Ok(Served { not_after: Some(at), .. }) if *certificate == Certificate::Foreign && *at <= findings.now => {
            Some(Reason::ListenerCertificateExpired { port: *port, address: address.clone(), at: *at })
        }
        Ok(_) => None,
    };
    findings.observed.others.iter().filter_map(amiss).collect()
}

/// The certificates of others that end soon. The agent renews none of them.
fn others_end(findings: &Findings) -> Vec<Reason> {
    let ends = |(port, other): (&Port, &Other)| {
        let served = other.served.as_ref().ok().filter(|_| other.certificate == Certificate::Foreign)?;
        let Leaf { not_before, not_after: at, .. } = Leaf::parse(served.chain.leaf()).ok()?;
        let left = at - findings.now;
        let is_soon = left > time::Duration::ZERO && left <= LISTENER_WARNING.min((at - not_before) / 3);
        is_soon.then(|| Reason::ListenerCertificateEnds { port: *port, address: other.address.clone(), at })
    };
    findings.observed.others.iter().filter_map(ends).collect()
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
pub(crate) fn routes(
    node: &NodeStatus,
    instance_id: Option<&String>,
    peers: &PeerSet,
    observed: &Observed,
) -> Vec<PeerStatus> {
    let peers = || peers.0.values();
    let remotes = observed.routez.as_ref().map(Routez::remotes);
    let remotes = remotes.as_ref().map(|remotes| remotes.values().collect::<Vec<_>>());
    let names: BTreeSet<&str> = remotes.iter().flatten().map(|(name, _)| *name).collect();
    let addresses: BTreeSet<IpAddr> = remotes.iter().flatten().flat_map(|(_, ips)| ips.iter().copied()).collect();
    let is_self = |peer: &Peer| {
        let names_us = Some(&peer.id) == instance_id || peer.id == node.name;
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
