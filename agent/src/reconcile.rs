//! One idempotent pass through all of it: the only place that knows the order of the stages.
//!
//! A pass works out the whole desired state, compares it with what is in force, and changes what differs. A pass doesn't
//! know why it runs, so a timer, a signal, `agent renew` and a restart after a crash are the same thing. Nothing is
//! retried within a pass: the next pass is the retry.

pub mod commit_point;
mod condition;
mod configuring;
mod cutoff;
mod deployment;
mod distrust;
mod issuing;
mod last_good;
mod links;
mod pass;
mod publication;
mod quarantine;
mod report;
mod retry;
mod rollover;
mod sources;
mod starts;
mod system_user;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use self::commit_point::CommitPoint;
use self::condition::Watch;
use self::configuring::Configuring;
use self::cutoff::Cutoff;
use self::deployment::{Deployment, Order};
use self::issuing::Issuing;
use self::last_good::LastGoodFile;
use self::links::Links;
pub use self::pass::{PassError, PassRequest, Source};
pub use self::publication::Publication;
use self::publication::Publisher;
use self::rollover::{Rollover, View};
use self::sources::{Seams, Sources};
use crate::clock::Clock;
use crate::conf::loss::Loss;
use crate::conf::render::Rendered;
use crate::config::{RenewalConfig, RolloverConfig};
use crate::credential::{ClusterCredential, CredentialSource};
use crate::error::with_causes;
use crate::included::IncludedSource;
use crate::issue::{Issuance, Issued, ObtainError};
use crate::node::Node;
use crate::node::lifecycle::Lifecycle;
use crate::peers::PeerSource;
use crate::peers::dial::Dial;
use crate::progress::{Progress, Step};
use crate::reason::{Code, Reason};
use crate::server::Presence;
use crate::server::standing::{Mismatch, Standing};
use crate::state::durable::FileError;
use crate::state::generation::Generation;
use crate::status::{LeafStatus, NodeStatus, Status};
use crate::trust::TrustSource;

/// How long the end of a distrusted CA waits for a leaf of another CA. An issuer takes a second or two.
const DISTRUST_WAITS: Duration = Duration::from_secs(15);

/// The seams, and what is known of the node.
pub struct Parts {
    /// This node.
    pub node: Node,
    /// Who signs, through the journal.
    pub issuance: Issuance,
    /// Tells whether this instance is in a warm pool. `None`: it is in no Auto Scaling group.
    pub lifecycle: Option<Arc<dyn Lifecycle>>,
    /// Where the bundle comes from.
    pub trust: Arc<dyn TrustSource>,
    /// Where the bundle for what clients present comes from, if clients have a bundle of their own.
    pub client_trust: Option<Arc<dyn TrustSource>>,
    /// Where peers are seen.
    pub peers: Arc<dyn PeerSource>,
    /// How peers are dialled.
    pub dial: Arc<dyn Dial>,
    /// Where the cluster credential comes from, if routes must present a credential.
    pub credential: Option<Arc<dyn CredentialSource>>,
    /// The included secrets, each with the file that keeps its content.
    pub included: Vec<(PathBuf, Arc<dyn IncludedSource>)>,
    /// Where the connection document is kept, if the group keeps one.
    pub publication: Option<Publication>,
    /// nats-server and the commit point.
    pub commit_point: CommitPoint,
    /// The time.
    pub clock: Clock,
    /// `[renewal]`.
    pub renewal: RenewalConfig,
    /// `[rollover]`.
    pub rollover: RolloverConfig,
    /// `discovery.interval`.
    pub interval: Duration,
    /// Losses that the command line allows for as long as this process lives.
    pub allowed_losses: Vec<Loss>,
}

/// What a pass leaves behind.
#[derive(Debug)]
pub struct Pass {
    /// Everything that can be said of the node now.
    pub status: Status,
    /// Where the committed configuration stands, or why there is none.
    pub outcome: Result<Standing, PassError>,
    /// When the next pass is worth making.
    pub next: OffsetDateTime,
    /// What came of the issuance. `None`: the issuer was not asked.
    pub issuance: Option<Result<(), Code>>,
    /// When each source answered last. A source that fails is left out.
    pub answered: Vec<(Source, OffsetDateTime)>,
}

/// The stages, each with its own state, and the order between them.
pub struct Reconciler {
    node: Node,
    clock: Clock,
    renewal: RenewalConfig,
    interval: Duration,
    sources: Sources,
    issuing: Issuing,
    configuring: Configuring,
    deployment: Deployment,
    /// How nats-server was started, and how its JetStream does.
    watch: Watch,
    /// The newest generation. The key of the generation is in memory only while a pass needs the key.
    newest: Option<Generation>,
    /// What in the state directory can't be read, and what keeps this process from more than a look.
    damaged: Vec<Reason>,
    /// Why a changed agent.toml is not in force.
    not_in_force: Option<Reason>,
    /// What peers trust and serve, and what a leaf of a new CA waits for.
    rollover: Rollover,
    /// The connections that a distrusted CA may have let in.
    cutoff: Cutoff,
    /// This node's part in keeping the connection document current.
    publisher: Option<Publisher>,
}

impl Reconciler {
    /// Takes the seams, and reads back the last good answers of an earlier process.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { node, clock, renewal, interval, .. } = parts;
        let commit = parts.commit_point.parts();
        let file = LastGoodFile::of(&commit.state);
        let own = node.instance_id.clone().unwrap_or_else(|| node.name.clone());
        let rollover = Rollover::of(&commit.state, &own, parts.rollover, interval);
        let remembered = file.read(own, commit.nats.cluster_secret_id.as_ref());
        let seams = Seams {
            trust: parts.trust,
            client_trust: parts.client_trust,
            peers: parts.peers,
            dial: parts.dial,
            credential: parts.credential,
            included: parts.included,
        };
        let links = Links::of(remembered.linked.clone());
        let cutoff = Cutoff::of(remembered.unfinished.clone());
        Self {
            sources: Sources::new(seams, clock, interval, &renewal, remembered, &commit.state),
            issuing: Issuing::new(parts.issuance, parts.lifecycle, clock, renewal),
            configuring: Configuring::of(&parts.commit_point),
            deployment: Deployment::new(parts.commit_point, clock, renewal, interval, parts.allowed_losses, links),
            node,
            clock,
            renewal,
            interval,
            watch: Watch::default(),
            newest: None,
            damaged: Vec::new(),
            not_in_force: None,
            rollover,
            cutoff,
            publisher: parts.publication.map(|publication| Publisher::new(publication, interval, &renewal)),
        }
    }

    /// One pass. Its failure is in the outcome and in the status; what was in force before stays in force.
    pub async fn pass(&mut self, wanted: &PassRequest, progress: &Progress) -> Pass {
        let outcome = self.reconcile(wanted, progress).await;
        self.deployment.note_outcome(&outcome);
        self.look_at_condition().await;
        Box::pin(self.cut_off(progress)).await;
        let now = self.clock.now();
        if let (Some(newest), Some(bundle)) = (&self.newest, self.sources.bundle()) {
            let fetched = self.sources.fetched_bundle().unwrap_or(bundle);
            let view = View::of(self.sources.known_peers(), self.own_route(), newest, fetched, now);
            self.rollover.note_phase(bundle, &view);
        }
        let own = self.own_route();
        if let Some(publisher) = &mut self.publisher {
            let wanted = publisher.wanted(&self.node, own, &self.sources, &self.deployment);
            publisher.attend(wanted, self.renewal.retry_min, now).await;
        }
        let (status, next) = (self.status(), self.next(now));
        self.deployment.links.note_alone(status.is_alone(), now);
        self.sources.remember(self.deployment.links.seen(), self.cutoff.unfinished());
        self.newest = None;
        let issuer = self.issuing.retry.succeeded_at().map(|at| (Source::Issuer, at));
        let published = self.publisher.as_ref().and_then(Publisher::answered_at).map(|at| (Source::Connection, at));
        let answered = self.sources.answered().chain(issuer).chain(published).collect();
        Pass { status, outcome, next, issuance: self.issuing.tried.take(), answered }
    }

    /// The newest leaf.
    #[must_use]
    pub(crate) fn leaf(&self) -> Option<LeafStatus> {
        let (newest, _) = self.deployment.commit_point.parts().generations.newest().ok()?;
        newest.as_ref().map(LeafStatus::of)
    }

    /// The cluster credential in force, once it is known.
    #[must_use]
    pub(crate) fn credential(&self) -> Option<&ClusterCredential> {
        self.sources.credential().ok().flatten()
    }

    /// This node.
    #[must_use]
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// The clock that passes go by.
    #[must_use]
    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// Notes why a changed agent.toml is not in force.
    pub(crate) fn note_not_in_force(&mut self, because: Reason) {
        self.not_in_force = Some(Reason::AgentConfigurationNotInForce { because: Box::new(because) });
    }

    /// Looks at this machine alone and changes nothing. `because` is why nothing more can be done.
    pub(crate) async fn inspect(&mut self, because: Vec<Reason>) -> Status {
        let observed = match self.read_newest() {
            Ok(()) => self.deployment.observe(self.newest.as_ref()).await,
            Err(error) => Err(error.into()),
        };
        self.deployment.show(observed.err().as_ref());
        self.look_at_condition().await;
        self.damaged.splice(0..0, because);
        self.status()
    }

    /// Reads the newest generation from the disk again: another process may have written it.
    fn read_newest(&mut self) -> Result<(), FileError> {
        let (newest, damaged) = self.deployment.commit_point.parts().generations.newest()?;
        self.newest = newest;
        self.damaged = damaged.iter().map(Reason::from).collect();
        // Without the journal nothing can be issued, and that is better known before a certificate is due.
        self.damaged.extend(self.issuing.issuance.journal.load().err().as_ref().map(Reason::from));
        Ok(())
    }

    /// The committed text, and the text that the next pass would commit. Asks neither issuer nor trust source, and changes
    /// nothing.
    pub(crate) async fn desired(&mut self) -> Result<(Option<Rendered>, Rendered), PassError> {
        self.configuring.preview(&self.node, &mut self.sources, &self.deployment.commit_point).await
    }

    async fn reconcile(&mut self, wanted: &PassRequest, progress: &Progress) -> Result<Standing, PassError> {
        let now = self.clock.now();
        self.sources.heed_step_back(now);
        self.issuing.retry.heed_step_back(now);
        self.deployment.heed_step_back(now);
        self.read_newest()?;
        if wanted.renew && self.newest.is_none() {
            self.refuse_foreign_server().await?;
        }
        if !wanted.distrust.is_empty() {
            self.sources.distrust(&wanted.distrust, self.newest.as_ref().map(|newest| &newest.bundle))?;
        }
        let obtain = self.wants_certificate(wanted.renew);
        let held = self.issuing.take_held(&self.node);
        let renewed = self.newest.as_ref().filter(|_| !wanted.renew);
        let (mut issued, answers) = tokio::join!(
            async {
                match held {
                    Some(held) => Some(Ok(held)),
                    None if obtain => Some(self.issuing.obtain(renewed, &self.node, progress).await),
                    None => None,
                }
            },
            self.sources.ask(now),
        );
        let (own, observed) = (self.own_route(), &self.deployment.seen().observed);
        let (newest, rollover) = (self.newest.as_ref(), &mut self.rollover);
        let has_taken_over = self.sources.take(answers, &self.node, own, newest, observed, rollover).await;
        let distrusted: Vec<_> =
            self.newest.iter().flat_map(|newest| self.sources.distrusted_of(&newest.bundle)).collect();
        let has_distrusted = !distrusted.is_empty();
        if has_distrusted {
            // The generation that still has the CAs is replaced next, so what is left to do is noted first.
            self.cutoff.note(distrusted);
            self.sources.remember(self.deployment.links.seen(), self.cutoff.unfinished());
        }
        if has_taken_over || has_distrusted {
            self.deployment.skip_turn();
        }
        // A bundle without the leaf's CA goes into force together with a leaf of another CA, unless the issuer is slow.
        if has_distrusted && issued.is_none() && self.wants_certificate(false) {
            let obtained = Box::pin(self.issuing.obtain(None, &self.node, progress));
            issued = tokio::time::timeout(DISTRUST_WAITS, obtained).await.ok();
        }
        let refused = match Box::pin(self.advance(issued, wanted, progress)).await {
            Ok(refused) => refused,
            Err(error) => {
                // The status shows beside the error what is served.
                if let Err(unseen) = self.deployment.observe(self.newest.as_ref()).await {
                    tracing::warn!("{}", with_causes(&unseen));
                }
                return Err(error);
            }
        };
        let standing = self.deploy(wanted, progress).await?;
        refused.map_or(Ok(standing), Err)
    }

    /// Whether the issuer is asked now.
    fn wants_certificate(&self, is_asked_for: bool) -> bool {
        let now = self.clock.now();
        let is_committed = |newest: &Generation| self.deployment.commit_point.names(newest.chain.leaf());
        let newest = self.newest.as_ref();
        let is_distrusted = newest.is_some_and(|newest| self.sources.has_banned(&newest.chain, now));
        self.issuing.is_wanted(newest, is_committed, is_asked_for, is_distrusted, &self.node, now)
    }

    /// Refuses a renewal while another process stands where nats-server should: the certificate would be paid for and
    /// not loaded.
    async fn refuse_foreign_server(&mut self) -> Result<(), PassError> {
        if let Err(error) = self.deployment.observe(self.newest.as_ref()).await {
            tracing::debug!("{}", with_causes(&error));
        }
        match &self.deployment.seen().observed.presence {
            Presence::Foreign(why) => Err(PassError::Waits(Reason::CommittedNotServed(Mismatch::Foreign(why.clone())))),
            Presence::Hidden(pid) => Err(PassError::Waits(Reason::CommittedNotServed(Mismatch::Hidden { pid: *pid }))),
            _ => Ok(()),
        }
    }

    /// Makes the generation to deploy, where there is a new chain or another bundle. Returns why there is no new chain
    /// although a new chain was wanted: the newest generation is deployed all the same.
    async fn advance(
        &mut self,
        issued: Option<Result<Issued, ObtainError>>,
        wanted: &PassRequest,
        progress: &Progress,
    ) -> Result<Option<PassError>, PassError> {
        let own = self.own_route();
        let (bundle, why) = (self.sources.bundle(), self.sources.trust_reason());
        let (mut verified, mut refused) = match self.issuing.take(issued, bundle, why, &self.node) {
            Ok(verified) => (verified, None),
            Err(error) => (None, Some(error)),
        };
        if let (Some(chain), Some(newest), Some(bundle)) = (&verified, &self.newest, bundle) {
            let (rollover, dial) = (&mut self.rollover, self.sources.dial());
            let fetched = self.sources.fetched_bundle().unwrap_or(bundle);
            let view = View::of(self.sources.known_peers(), own, newest, fetched, self.clock.now());
            if rollover.must_wait(chain.chain(), bundle, wanted.now, &view, dial.as_ref()).await {
                // A person who asks is told. Otherwise the status has the phase.
                refused = rollover.reason().filter(|_| wanted.renew).map(PassError::Waits);
                self.issuing.hold();
                verified = None;
            } else {
                rollover.note_switch(chain.chain(), newest.chain.chain(), bundle, view.now);
            }
        }
        let generations = &self.deployment.commit_point.parts().generations;
        match (verified, &self.newest, bundle) {
            (Some(chain), _, Some(bundle)) => {
                let generation = generations.write(&chain, bundle)?;
                self.issuing.note_written(chain.leaf())?;
                progress.report(Step::Issued { serial: chain.leaf().serial.clone(), generation: generation.number });
                self.newest = Some(generation);
            }
            (None, Some(newest), Some(bundle)) if !newest.bundle.has_anchors_of(bundle) => {
                self.newest = Some(generations.write_again(&newest.chain, bundle)?);
            }
            (_, Some(_), _) => {}
            (_, None, _) => {
                let why = self.issuing.retry.reason.as_ref().or(self.sources.trust_reason());
                let why = why.cloned().unwrap_or(Reason::NoCertificate);
                return Err(refused.unwrap_or(PassError::Waits(why)));
            }
        }
        Ok(refused)
    }

    async fn deploy(&mut self, wanted: &PassRequest, progress: &Progress) -> Result<Standing, PassError> {
        let own = self.own_route();
        let Some(generation) = &self.newest else {
            return Err(PassError::Waits(Reason::NoCertificate));
        };
        let (node, sources, deployment) = (&self.node, &mut self.sources, &mut self.deployment);
        let now = self.clock.now();
        Box::pin(self.configuring.look_for_obstacles(generation, deployment, now)).await;
        let nats = &deployment.commit_point.parts().nats;
        let configured = self.configuring.configure(nats, node, &generation.files, sources, wanted.renew);
        let order = Order {
            generation,
            configuration: configured.configuration,
            wanted,
            rank: sources.rank(own),
            others: sources.others(node),
            dial: sources.dial(),
            peers: sources.known_peers(),
            node: &NodeStatus::of(node),
            instance_id: node.instance_id.as_ref(),
        };
        let deployed = deployment.apply(order, progress).await;
        deployment.count_disconnected(&generation.chain, progress).await;
        if let Some(tried) = configured.tried {
            let is_committed = deployment.commit_point.committed().ok().flatten() == Some(tried);
            sources.secrets().note_deployed(is_committed, deployed.as_ref().err());
        }
        let standing = deployed?;
        // A person who asks is told. Otherwise the status has the reason.
        match configured.refused.filter(|_| wanted.renew) {
            Some(refused) => Err(refused),
            None => Ok(standing),
        }
    }

    fn own_route(&self) -> SocketAddr {
        SocketAddr::new(self.node.address, self.deployment.commit_point.parts().nats.cluster_listen.port())
    }

    /// When the next pass is worth making: the earliest time that a stage waits for, and never at once.
    fn next(&self, now: OffsetDateTime) -> OffsetDateTime {
        let newest = self.newest.as_ref();
        let mut times = vec![now + self.interval];
        times.extend(self.sources.times(now));
        times.extend(self.issuing.times(newest, &self.node));
        times.extend(self.deployment.times(now, newest.is_some()));
        times.extend(self.rollover.times(now));
        times.extend(self.cutoff.times());
        times.extend(self.publisher.as_ref().and_then(Publisher::time));
        let mut soonest = times.into_iter().min().unwrap_or(now);
        if let (None, Some(next)) = (newest, self.deployment.next_try()) {
            // The state directory can't be read, so an earlier pass could do nothing.
            soonest = soonest.max(next);
        }
        soonest.max(now + self.renewal.retry_min.min(Duration::from_millis(100)))
    }
}

#[cfg(test)]
mod tests;
