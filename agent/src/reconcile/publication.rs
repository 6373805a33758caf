//! The connection document: when this node reads it, and when this node writes it.
//!
//! The first node in service writes. Every other node looks, and takes over where the first node is away or doesn't write. A
//! visit to the secret runs beside the passes, so that a slow Secrets Manager holds up no certificate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::task::JoinHandle;

use super::deployment::Deployment;
use super::retry::Retry;
use super::sources::Sources;
use crate::aws::secret::SecretError;
use crate::clock::read_rfc3339;
use crate::config::{ClientAuth, RenewalConfig};
use crate::connection::{self, Content, Document, DocumentStore, Known, Stored};
use crate::node::Node;
use crate::reason::Reason;
use crate::schedule::jittered;
use crate::status::{ConnectionStatus, NodeStatus, PeerStatus, RouteState, routes};
use crate::trust::TrustBundle;

/// The shortest time between two changes. Secrets Manager deletes no version of the last 24 hours, and asks for no more than one
/// PutSecretValue every 10 minutes
/// (<https://docs.aws.amazon.com/secretsmanager/latest/APIReference/API_PutSecretValue.html>).
const PAUSE: Duration = Duration::from_mins(10);

/// How long a pass waits for a visit. A longer visit goes on, and a later pass takes its result.
const GRACE: Duration = Duration::from_secs(1);

/// How many intervals lie between two looks of a node that isn't first. Each look costs a call.
const ROUNDS_OF_OTHERS: u32 = 10;
/// How many looks the preceding node has for a change that is its part.
const LOOKS_OF_PATIENCE: u32 = 2;

/// The document's place, and what the configuration says of its content.
#[derive(Clone)]
pub struct Publication {
    /// Where the document is kept.
    pub store: Arc<dyn DocumentStore>,
    /// `connection.urls`.
    pub urls: Vec<String>,
    /// `node.dns_names`.
    pub names: Vec<String>,
}

/// What this node would write, and what it may.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// The bundle in force. The document drops an anchor at once that the bundle distrusts.
    bundle: TrustBundle,
    /// The name of the cluster.
    cluster: String,
    /// The URLs, at least one.
    urls: Vec<String>,
    /// Whether clients must present a certificate.
    needs_certificate: bool,
    /// How many nodes come before this node. `None`: this node isn't in service, or trusts less than the group.
    rank: Option<u32>,
    /// Whether the source of the bundle answered. An old bundle changes no document.
    is_fresh: bool,
}

/// What a node remembers from visit to visit.
#[derive(Clone, Debug, Default)]
struct Memory {
    /// The version that differs from what is wanted, and since when this node sees the difference.
    differs: Option<(String, OffsetDateTime)>,
    /// The last document that this node wrote in another node's place.
    stood_in_with: Option<String>,
    /// When this node last put a secret right that somebody had changed by hand.
    repaired_at: Option<OffsetDateTime>,
}

/// What a visit comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// The document is as it should be.
    Current,
    /// The document is to change, and not now.
    Later,
    /// The document is written.
    Write(Box<Document>),
    /// The document stays, although this node would write another document.
    Leave(Reason),
}

/// The result of a visit.
struct Visit {
    memory: Memory,
    document: Option<Document>,
    step: Step,
}

/// This node's part in keeping the document current.
pub(super) struct Publisher {
    publication: Publication,
    interval: Duration,
    longest: Duration,
    retry: Retry,
    memory: Memory,
    under_way: Option<JoinHandle<Result<Visit, SecretError>>>,
    /// The document that was seen or written last.
    document: Option<Document>,
    /// Why the document stays as it is.
    left: Option<Reason>,
}

impl Publisher {
    pub(super) fn new(publication: Publication, interval: Duration, renewal: &RenewalConfig) -> Self {
        let longest = renewal.retry_max.min(interval * ROUNDS_OF_OTHERS);
        let (retry, memory) = (Retry::at_once(), Memory::default());
        Self { publication, interval, longest, retry, memory, under_way: None, document: None, left: None }
    }

    /// What the document should say. `None`: this node doesn't know the whole of it yet.
    pub(super) fn wanted(
        &self,
        node: &Node,
        own: SocketAddr,
        sources: &Sources,
        deployment: &Deployment,
    ) -> Option<Wanted> {
        let nats = &deployment.commit_point.parts().nats;
        let observed = &deployment.seen().observed;
        let peers = routes(&NodeStatus::of(node), node.instance_id.as_ref(), sources.known_peers(), observed);
        let urls = self.urls(&peers, nats.listen.port());
        let bundle = sources.bundle().filter(|_| !urls.is_empty())?.clone();
        Some(Wanted {
            bundle,
            cluster: sources.cluster_name(nats),
            urls,
            needs_certificate: nats.client_auth == ClientAuth::Mtls,
            // What this node alone distrusts is no matter of the group's clients.
            rank: rank(&peers, own).filter(|_| !sources.goes_own_way()),
            is_fresh: sources.is_bundle_fresh(),
        })
    }

    /// The URLs that the configuration and the peers give.
    fn urls(&self, peers: &[PeerStatus], port: u16) -> Vec<String> {
        let nodes = peers.iter().filter(|peer| is_in_service(peer)).filter_map(|peer| peer.address.parse().ok());
        connection::urls(&self.publication.urls, &self.publication.names, &nodes.collect::<Vec<_>>(), port)
    }

    /// Visits the secret where a visit is due, and takes the result of a visit that has ended.
    pub(super) async fn attend(&mut self, wanted: Option<Wanted>, shortest: Duration, now: OffsetDateTime) {
        self.retry.heed_step_back(now);
        let interval = match wanted.as_ref().and_then(|wanted| wanted.rank) {
            Some(0) => self.interval,
            _ => self.interval * ROUNDS_OF_OTHERS,
        };
        if let (None, Some(wanted)) = (&self.under_way, wanted.filter(|_| now >= self.retry.next)) {
            let (store, memory) = (Arc::clone(&self.publication.store), self.memory.clone());
            let patience = self.interval * ROUNDS_OF_OTHERS * LOOKS_OF_PATIENCE;
            self.under_way = Some(tokio::spawn(async move { visit(&*store, &wanted, memory, patience, now).await }));
        }
        let Some(visit) = &mut self.under_way else { return };
        let Ok(ended) = tokio::time::timeout(GRACE, visit).await else { return };
        self.under_way = None;
        match ended {
            Ok(Ok(Visit { memory, document, step })) => {
                self.retry.succeed(now, now + jittered(interval, fastrand::f64()));
                (self.memory, self.document) = (memory, document.or(self.document.take()));
                self.left = if let Step::Leave(reason) = step { Some(reason) } else { None };
            }
            Ok(Err(error)) => self.retry.fail(now, shortest, self.longest, Reason::connection(&error)),
            // The visit broke off. The next pass would follow at once without a pause.
            Err(_) => self.retry.next = now + jittered(interval, fastrand::f64()),
        }
    }

    /// Why the document can't be kept current. No reason disturbs what this node serves.
    pub(super) fn warnings(&self) -> impl Iterator<Item = Reason> {
        self.retry.reason.clone().or_else(|| self.left.clone()).into_iter()
    }

    /// When the secret is worth another visit.
    pub(super) fn time(&self) -> Option<OffsetDateTime> {
        self.under_way.is_none().then_some(self.retry.next)
    }

    /// When the secret was last visited. `None`: the last visit failed, or there was no visit yet.
    pub(super) fn answered_at(&self) -> Option<OffsetDateTime> {
        self.retry.succeeded_at()
    }

    /// The document as the status shows it.
    pub(super) fn status(&self) -> Option<ConnectionStatus> {
        let document = self.document.as_ref()?;
        Some(ConnectionStatus {
            urls: document.urls().map(ToOwned::to_owned).collect(),
            changed_at: document.changed_at.clone(),
            trusts_from: document.trusts_from.clone(),
        })
    }
}

fn is_in_service(peer: &PeerStatus) -> bool {
    ["InService", "static"].contains(&peer.state.as_str())
}

/// How many nodes come before `own`. A node counts while it is in service and its route isn't down. `None`: this node isn't in
/// service.
fn rank(peers: &[PeerStatus], own: SocketAddr) -> Option<u32> {
    let address = |peer: &PeerStatus| peer.address.parse::<SocketAddr>().ok();
    let serving = || peers.iter().filter(|peer| is_in_service(peer));
    serving().find(|peer| address(peer) == Some(own))?;
    let is_before = |peer: &&PeerStatus| address(peer).is_some_and(|peer| peer < own) && peer.route != RouteState::Down;
    u32::try_from(serving().filter(is_before).count()).ok()
}

/// Reads the secret, and writes the secret where writing is this node's part.
async fn visit(
    store: &dyn DocumentStore,
    wanted: &Wanted,
    mut memory: Memory,
    patience: Duration,
    now: OffsetDateTime,
) -> Result<Visit, SecretError> {
    let stored = store.read().await?;
    let content = stored.as_ref().map(|stored| connection::read(&stored.content));
    let step = decide(stored.as_ref(), content.as_ref(), wanted, &mut memory, patience, now);
    let before = if let Some(Content::Document(before)) = content { Some(*before) } else { None };
    let Step::Write(document) = &step else { return Ok(Visit { memory, document: before, step }) };
    let version = stored.as_ref().map(|stored| stored.version.as_str());
    store.write(&document.to_json(), &document.token(version)).await?;
    tracing::info!("the connection document is written");
    if stored.as_ref().is_some_and(|stored| !stored.is_by_agent()) {
        memory.repaired_at = Some(now);
    }
    if wanted.rank != Some(0) {
        memory.stood_in_with = Some(document.token(None));
    }
    memory.differs = None;
    Ok(Visit { memory, document: Some((**document).clone()), step })
}

/// What a visit comes to. Only the first node takes an anchor out, except for a distrusted anchor.
fn decide(
    stored: Option<&Stored>,
    content: Option<&Content>,
    wanted: &Wanted,
    memory: &mut Memory,
    patience: Duration,
    now: OffsetDateTime,
) -> Step {
    let before = match content {
        Some(Content::Newer { version }) => return Step::Leave(Reason::ConnectionNewer { version: *version }),
        Some(Content::Document(before)) => Some(&**before),
        Some(Content::Other(_)) | None => None,
    };
    let Some(rank) = wanted.rank else { return Step::Later };
    let in_document = before.and_then(Document::bundle);
    let is_urgent =
        in_document.iter().flat_map(|bundle| &bundle.anchors).any(|anchor| wanted.bundle.distrusts(&anchor.sha256));
    let bundle = match in_document {
        Some(bundle) if rank > 0 => wanted.bundle.keeping(&bundle, |_| true),
        _ => wanted.bundle.clone(),
    };
    let (cluster, urls) = (wanted.cluster.as_str(), wanted.urls.clone());
    let known = Known { bundle: &bundle, cluster, urls, needs_certificate: wanted.needs_certificate };
    let document = Document::of(&known, before, now);
    if before.is_some_and(|before| *before == document || rank > 0 && !is_urgent && before.serves(&document)) {
        memory.differs = None;
        return Step::Current;
    }
    if stored.is_some() && !wanted.is_fresh {
        return Step::Later;
    }
    let version = stored.map(|stored| stored.version.clone()).unwrap_or_default();
    let since = match &memory.differs {
        Some((known, since)) if *known == version && *since <= now => *since,
        _ => now,
    };
    memory.differs = Some((version, since));
    if now < since + patience * rank {
        return Step::Later;
    }
    let is_by_hand = stored.is_some_and(|stored| !stored.is_by_agent());
    if rank > 0 && !is_by_hand && memory.stood_in_with.as_ref() == Some(&document.token(None)) {
        return Step::Leave(Reason::ConnectionDisputed);
    }
    let changed_at = before.and_then(|before| read_rfc3339(&before.changed_at)).filter(|_| !is_by_hand);
    let last = if is_by_hand { memory.repaired_at } else { changed_at };
    let is_too_soon = last.is_some_and(|last| last <= now && now < last + PAUSE);
    if is_too_soon && !is_urgent { Step::Later } else { Step::Write(Box::new(document)) }
}

#[cfg(test)]
mod tests;
