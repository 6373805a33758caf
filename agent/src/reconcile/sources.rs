//! What the pass asks for: the trust bundle, the peers, the cluster credential. Each may fail alone.

mod included;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use self::included::Included;
use super::cutoff::Unfinished;
use super::distrust::OwnDistrust;
use super::last_good::{LastGood, LastGoodFile};
use super::pass::{PassError, Source};
use super::retry::Retry;
use super::rollover::{Rollover, View};
use crate::aws::secret::SecretError;
use crate::clock::Clock;
use crate::conf::reader::Contents;
use crate::conf::render::cluster_name_of;
use crate::config::{NatsConfig, RenewalConfig};
use crate::credential::takeover::Takeover;
use crate::credential::{ClusterCredential, CredentialSource, CredentialVersion};
use crate::error::RemoteError;
use crate::included::IncludedSource;
use crate::node::Node;
use crate::peers::dial::Dial;
use crate::peers::{Kept, Peer, PeerSet, PeerSource, Sighting};
use crate::reason::Reason;
use crate::schedule::{ROUNDS_PER_SECRET_POLL, jittered};
use crate::server::Observed;
use crate::state::generation::Generation;
use crate::trust::bundle::Anchor;
use crate::trust::{BundleError, Distrusted, Fingerprint, TrustBundle, TrustError, TrustSource};
use crate::x509::chain::StoredChain;

/// A CA that leaked is distrusted on every node within a minute of the change of the bundle, so the bundle's source is asked
/// this often, or in each round of discovery where rounds are rarer. That makes 58,000 calls of GetSecretValue a month, $0.29 a node
/// (<https://aws.amazon.com/secrets-manager/pricing/>: $0.05 for 10,000 calls).
const BUNDLE_POLL: Duration = Duration::from_secs(50);
/// After so many polls every node knows a new credential, and every node takes it over.
const POLLS_OF_NOTICE: u32 = 3;

/// How often a source is asked.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Pause after an answer.
    interval: Duration,
    /// Pause after the first failure.
    shortest: Duration,
    /// Longest pause after failures.
    longest: Duration,
}

/// A source that is asked again and again, with its last good answer.
pub(super) struct Polled<S: ?Sized, T> {
    source: Arc<S>,
    pace: Pace,
    pub(super) retry: Retry,
    last_good: T,
}

impl<S: ?Sized, T> Polled<S, T> {
    fn new(source: Arc<S>, pace: Pace, last_good: T) -> Self {
        Self { source, pace, retry: Retry::at_once(), last_good }
    }

    fn is_due(&self, now: OffsetDateTime) -> bool {
        now >= self.retry.next
    }

    /// Notes the answer's time or the failure, and passes the answer on.
    fn note<A, E>(
        &mut self,
        answer: Option<Result<A, E>>,
        now: OffsetDateTime,
        reason: impl FnOnce(&E) -> Reason,
    ) -> Option<A> {
        let Pace { interval, shortest, longest } = self.pace;
        match answer? {
            Ok(answer) => {
                self.retry.succeed(now, now + jittered(interval, fastrand::f64()));
                Some(answer)
            }
            Err(error) => {
                self.retry.fail(now, shortest, longest, reason(&error));
                None
            }
        }
    }
}

/// The peers in force, and the group that they are in.
pub(super) struct KnownPeers {
    set: PeerSet,
    group: Option<String>,
}

/// The credential in force, and the versions that its secret holds.
pub(super) struct KnownCredential {
    in_force: Option<ClusterCredential>,
    versions: Vec<CredentialVersion>,
}

/// The bundle of the source, and the bundle in force.
#[derive(Default)]
pub(super) struct KnownBundle {
    /// `None`: the source has not answered yet.
    fetched: Option<TrustBundle>,
    in_force: Option<TrustBundle>,
}

/// What the sources answered. `None` stands for a source that was not due.
pub(super) struct Answers {
    sighting: Option<Result<Sighting, RemoteError>>,
    bundle: Option<Result<TrustBundle, TrustError>>,
    client_bundle: Option<Result<TrustBundle, TrustError>>,
    credential: Option<Result<Vec<CredentialVersion>, SecretError>>,
    included: included::Answers,
}

/// The seams that sources are made of.
pub(super) struct Seams {
    pub(super) trust: Arc<dyn TrustSource>,
    pub(super) client_trust: Option<Arc<dyn TrustSource>>,
    pub(super) peers: Arc<dyn PeerSource>,
    pub(super) dial: Arc<dyn Dial>,
    pub(super) credential: Option<Arc<dyn CredentialSource>>,
    pub(super) included: Vec<(PathBuf, Arc<dyn IncludedSource>)>,
}

/// The sources and what they last answered.
pub(super) struct Sources {
    clock: Clock,
    dial: Arc<dyn Dial>,
    pub(super) peers: Polled<dyn PeerSource, KnownPeers>,
    /// Where the peers in force differ from the last sighting.
    kept_peers: Vec<Kept>,
    /// Why the last sighting left peers out.
    left_out: Option<Reason>,
    trust: Polled<dyn TrustSource, KnownBundle>,
    /// The bundle for what clients present. `None`: clients have no bundle of their own.
    client_trust: Option<Polled<dyn TrustSource, Option<TrustBundle>>>,
    /// Subjects of the anchors that the source no longer has.
    kept_anchors: Vec<String>,
    /// The CAs that this node distrusts, whatever the source says.
    distrust: OwnDistrust,
    /// Why the CAs that this node distrusts can't be read, or would leave no anchor.
    distrust_fault: Option<Reason>,
    /// Whether this node distrusts a CA that the source has.
    goes_own_way: bool,
    /// How long after a credential's version was made the credential takes over.
    notice: Duration,
    pub(super) credential: Option<Polled<dyn CredentialSource, KnownCredential>>,
    included: Included,
    /// What the file of last good answers holds.
    remembered: LastGood,
    file: LastGoodFile,
}

impl Sources {
    /// Sources whose last good answers are those of an earlier process.
    pub(super) fn new(
        seams: Seams,
        clock: Clock,
        interval: Duration,
        renewal: &RenewalConfig,
        remembered: LastGood,
        state: &Path,
    ) -> Self {
        let RenewalConfig { retry_min: shortest, retry_max, .. } = *renewal;
        let poll = interval * ROUNDS_PER_SECRET_POLL;
        let discovery = Pace { interval, shortest, longest: retry_max.min(poll) };
        let secrets = Pace { interval: poll, shortest, longest: retry_max.min(poll) };
        let often = BUNDLE_POLL.max(interval).min(poll);
        let bundle = Pace { interval: often, shortest: shortest.min(often), longest: retry_max.min(often) };
        let known = KnownPeers { set: remembered.peers.clone(), group: remembered.group.clone() };
        let credential = seams.credential.map(|source| {
            let in_force = remembered.credential.clone();
            let versions = remembered.credential_versions.clone();
            Polled::new(source, secrets, KnownCredential { in_force, versions })
        });
        Self {
            clock,
            dial: seams.dial,
            peers: Polled::new(seams.peers, discovery, known),
            kept_peers: Vec::new(),
            left_out: None,
            trust: Polled::new(seams.trust, bundle, KnownBundle::default()),
            client_trust: seams.client_trust.map(|source| Polled::new(source, bundle, None)),
            kept_anchors: Vec::new(),
            distrust: OwnDistrust::of(state),
            distrust_fault: None,
            goes_own_way: false,
            notice: poll * POLLS_OF_NOTICE,
            credential,
            included: Included::new(seams.included, secrets, state),
            remembered,
            file: LastGoodFile::of(state),
        }
    }

    /// After the clock was set back, no source waits for a time that is far off.
    pub(super) fn heed_step_back(&mut self, now: OffsetDateTime) {
        self.peers.retry.heed_step_back(now);
        self.trust.retry.heed_step_back(now);
        if let Some(clients) = &mut self.client_trust {
            clients.retry.heed_step_back(now);
        }
        if let Some(credential) = &mut self.credential {
            credential.retry.heed_step_back(now);
        }
        self.included.heed_step_back(now);
    }

    /// Asks the sources that are due, all at the same time.
    pub(super) async fn ask(&self, now: OffsetDateTime) -> Answers {
        let (sighting, bundle, client_bundle, credential, included) = tokio::join!(
            async { if self.peers.is_due(now) { Some(self.peers.source.sight().await) } else { None } },
            async { if self.trust.is_due(now) { Some(self.trust.source.fetch().await) } else { None } },
            async {
                let polled = self.client_trust.as_ref().filter(|polled| polled.is_due(now))?;
                Some(polled.source.fetch().await)
            },
            async {
                let polled = self.credential.as_ref().filter(|polled| polled.is_due(now))?;
                Some(polled.source.fetch(now - self.notice).await)
            },
            self.included.ask(now),
        );
        Answers { sighting, bundle, client_bundle, credential, included }
    }

    /// Takes the answers in, and remembers them for the next process. Returns whether a new credential took over.
    ///
    /// The peers come first: the current peers are asked which anchors they still need.
    pub(super) async fn take(
        &mut self,
        answers: Answers,
        node: &Node,
        own: SocketAddr,
        newest: Option<&Generation>,
        observed: &Observed,
        rollover: &mut Rollover,
    ) -> bool {
        let Answers { sighting, bundle, client_bundle, credential, included } = answers;
        self.included.take(included, self.clock.now());
        self.take_peers(sighting, node).await;
        self.take_trust(bundle, own, newest, observed, rollover).await;
        self.take_client_trust(client_bundle, newest);
        let has_taken_over = self.take_credential(credential);
        let remembered = self.to_remember();
        if remembered != self.remembered {
            self.file.write(&remembered);
            self.remembered = remembered;
        }
        has_taken_over
    }

    /// Remembers the servers that had a route, and the connections that have to end, for the next process.
    pub(super) fn remember(&mut self, linked: &BTreeSet<String>, unfinished: Option<&Unfinished>) {
        if self.remembered.linked != *linked || self.remembered.unfinished.as_ref() != unfinished {
            self.remembered.linked.clone_from(linked);
            self.remembered.unfinished = unfinished.cloned();
            self.file.write(&self.remembered);
        }
    }

    /// The way to the peers' route ports.
    pub(super) fn dial(&self) -> Arc<dyn Dial> {
        Arc::clone(&self.dial)
    }

    /// Asks discovery, the credential's source and the included secrets, and remembers nothing. Returns the contents of the
    /// secrets that answered.
    pub(super) async fn preview(&mut self, node: &Node) -> Contents {
        let (notice, now) = (self.notice, self.clock.now());
        let (sighting, credential, included) = tokio::join!(
            self.peers.source.sight(),
            async { Some(self.credential.as_ref()?.source.fetch(now - notice).await) },
            self.included.ask(now),
        );
        self.take_peers(Some(sighting), node).await;
        self.take_credential(credential);
        self.included.show(included, now)
    }

    /// Why an included secret has no content: none of `fetched`, and no last good content.
    pub(super) fn included(&self, fetched: &Contents) -> Result<(), Reason> {
        self.included.are_known(fetched)
    }

    /// The included secrets.
    pub(super) fn secrets(&mut self) -> &mut Included {
        &mut self.included
    }

    /// Why new contents of included secrets are not committed.
    pub(super) fn included_refused(&self) -> Option<&Reason> {
        self.included.refused()
    }

    async fn take_peers(&mut self, sighting: Option<Result<Sighting, RemoteError>>, node: &Node) {
        let known = &self.peers.last_good.set;
        let after = match &sighting {
            Some(Ok(seen)) => {
                let missing = known.missing_from(seen);
                let answering = self.dial.answering(missing.into_iter().map(|peer| peer.address).collect()).await;
                Some(known.after(seen, node, |peer| answering.contains(&peer.address)))
            }
            Some(Err(_)) | None => None,
        };
        let seen = self.peers.note(sighting, self.clock.now(), Reason::discovery);
        if let (Some(seen), Some(after)) = (seen, after) {
            let known = &mut self.peers.last_good;
            self.kept_peers = after.kept;
            self.left_out = seen.fault.as_deref().map(Reason::discovery);
            known.set = after.peers;
            known.group = seen.group.or(known.group.take());
        }
    }

    /// The bundle in force: the fetched bundle, and every anchor of the bundle before that a served chain still needs
    /// (invariant 5).
    async fn take_trust(
        &mut self,
        fetched: Option<Result<TrustBundle, TrustError>>,
        own: SocketAddr,
        newest: Option<&Generation>,
        observed: &Observed,
        rollover: &mut Rollover,
    ) {
        self.distrust_fault = self.distrust.read().err().map(|error| (&error).into());
        let known = self.distrust.known();
        if let Some(bundle) = fetched.as_ref().and_then(|fetched| fetched.as_ref().ok()) {
            self.goes_own_way = bundle.has_any_of(known);
        } else if self.trust.last_good.fetched.as_ref().is_some_and(|bundle| bundle.has_any_of(known)) {
            self.goes_own_way = true;
        }
        let fetched = fetched.map(|fetched| fetched.and_then(|bundle| without(bundle, known)));
        if let Some(bundle) = self.trust.note(fetched, self.clock.now(), |error| error.into()) {
            self.trust.last_good.fetched = Some(bundle);
        }
        let KnownBundle { fetched, in_force } = &mut self.trust.last_good;
        // What this node distrusts by itself needs no answer of the source.
        for bundle in fetched.iter_mut().chain(in_force.iter_mut()) {
            match without(bundle.clone(), self.distrust.known()) {
                Ok(rest) => *bundle = rest,
                Err(error) => self.distrust_fault = Some((&error).into()),
            }
        }
        *in_force = match (&*fetched, newest) {
            (Some(fetched), Some(newest)) => {
                let served = observed.each_served().map(|served| &served.chain).collect();
                let view = View::of(&self.peers.last_good.set, own, newest, fetched, self.clock.now());
                let view = View { served, ..view };
                rollover.look(&view, self.dial.as_ref()).await;
                Some(rollover.keeping(&view))
            }
            (Some(fetched), None) => {
                rollover.note_first(fetched, self.clock.now());
                Some(fetched.clone())
            }
            (None, newest) => in_force.take().or_else(|| {
                let bundle = newest.map(|newest| newest.bundle.clone())?;
                Some(without(bundle.clone(), self.distrust.known()).unwrap_or(bundle))
            }),
        };
        let kept = |anchor: &&Anchor| !fetched.as_ref().is_none_or(|fetched| fetched.anchors.contains(anchor));
        let anchors = in_force.iter().flat_map(|bundle| &bundle.anchors);
        self.kept_anchors = anchors.filter(kept).map(|anchor| anchor.subject.clone()).collect();
    }

    /// Puts the bundle for what clients present beside the bundle in force. Until its source answers, the bundle of the newest
    /// generation stays.
    fn take_client_trust(&mut self, fetched: Option<Result<TrustBundle, TrustError>>, newest: Option<&Generation>) {
        let now = self.clock.now();
        // A leaked CA goes although no other CA of clients takes its place: clients may still present what nodes present.
        let fetched = fetched.map(|fetched| match fetched {
            Err(TrustError::Bundle { origin, source: BundleError::NothingTrusted { distrusted, .. } }) => {
                Ok(TrustBundle { distrusted, ..TrustBundle::of_no_client(&origin, "distrusted") })
            }
            fetched => fetched,
        });
        let clients = self.client_trust.as_mut().and_then(|polled| {
            if let Some(bundle) = polled.note(fetched, now, |error| error.into()) {
                polled.last_good = Some(bundle);
            }
            let before = || Some((**newest?.bundle.clients.as_ref()?).clone());
            polled.last_good.clone().or_else(before)
        });
        let in_force = &mut self.trust.last_good.in_force;
        *in_force = in_force.take().map(|bundle| bundle.with_clients(clients));
    }

    /// Whether clients have a bundle of their own.
    pub(super) fn has_clients_bundle(&self) -> bool {
        self.client_trust.is_some()
    }

    /// Distrusts these CAs on this node from now on. What would leave no anchor of `before` is refused, and not noted.
    pub(super) fn distrust(&mut self, more: &[Fingerprint], before: Option<&TrustBundle>) -> Result<(), PassError> {
        if let Some(before) = self.trust.last_good.in_force.as_ref().or(before) {
            let more = more.iter().cloned().collect();
            without(before.clone(), &more).map_err(|error| PassError::Waits((&error).into()))?;
        }
        self.distrust.add(more)?;
        let now = self.clock.now();
        self.trust.retry.next = self.trust.retry.next.min(now);
        Ok(())
    }

    /// Returns whether a credential took over from the credential before.
    fn take_credential(&mut self, fetched: Option<Result<Vec<CredentialVersion>, SecretError>>) -> bool {
        let now = self.clock.now();
        let Some(polled) = &mut self.credential else { return false };
        if let Some(versions) = polled.note(fetched, now, Reason::credential) {
            polled.last_good.versions = versions;
        }
        let in_force = self.takeover(now).and_then(|takeover| takeover.in_force.cloned());
        let Some(polled) = &mut self.credential else { return false };
        let has_taken_over = polled.last_good.in_force.is_some() && in_force != polled.last_good.in_force;
        polled.last_good.in_force = in_force;
        has_taken_over
    }

    fn takeover(&self, now: OffsetDateTime) -> Option<Takeover<'_>> {
        let KnownCredential { in_force, versions } = &self.credential.as_ref()?.last_good;
        Some(Takeover::of(versions, in_force.as_ref(), self.notice, now))
    }

    fn to_remember(&self) -> LastGood {
        let KnownPeers { set, group } = &self.peers.last_good;
        let credential = self.credential.as_ref().map(|polled| &polled.last_good);
        LastGood {
            peers: set.clone(),
            group: group.clone(),
            credential: credential.and_then(|known| known.in_force.clone()),
            credential_versions: credential.map(|known| known.versions.clone()).unwrap_or_default(),
            ..self.remembered.clone()
        }
    }

    /// The peers in force, or why there are none.
    pub(super) fn peers(&self) -> Result<&PeerSet, Reason> {
        let KnownPeers { set, .. } = &self.peers.last_good;
        if set.0.is_empty() {
            let because = self.peers.retry.reason.clone();
            let because = because.or_else(|| self.kept_peers.first().cloned().map(Reason::Kept));
            return Err(Reason::PeersUnknown { because: because.map(Box::new) });
        }
        Ok(set)
    }

    /// The peers in force, or none.
    pub(super) fn known_peers(&self) -> &PeerSet {
        &self.peers.last_good.set
    }

    /// How many peers come before this node in the order of addresses.
    pub(super) fn rank(&self, own: SocketAddr) -> usize {
        self.peers.last_good.set.0.range(..own).count()
    }

    /// The name of the cluster: the name of agent.toml, else the group's name.
    pub(super) fn cluster_name(&self, nats: &NatsConfig) -> String {
        let group = self.peers.last_good.group.as_deref();
        let name = nats.cluster_name.clone().or_else(|| group.map(cluster_name_of));
        name.unwrap_or_else(|| "nats".into())
    }

    /// The peers without this node.
    pub(super) fn others(&self, node: &Node) -> Vec<Peer> {
        let Node { name, instance_id, .. } = node;
        let is_own = |peer: &Peer| {
            peer.id == *name || Some(&peer.id) == instance_id.as_ref() || node.has_address(&peer.address.ip())
        };
        self.known_peers().0.values().filter(|peer| !is_own(peer)).cloned().collect()
    }

    /// The bundle in force.
    pub(super) fn bundle(&self) -> Option<&TrustBundle> {
        self.trust.last_good.in_force.as_ref()
    }

    /// The bundle of the source, once the source has answered.
    pub(super) fn fetched_bundle(&self) -> Option<&TrustBundle> {
        self.trust.last_good.fetched.as_ref()
    }

    /// Whether the source of the bundle answered this process, and answered its last question.
    pub(super) fn is_bundle_fresh(&self) -> bool {
        self.trust.retry.succeeded_at().is_some()
    }

    /// The subjects of the anchors of this bundle that are distrusted now.
    pub(super) fn distrusted_of(&self, before: &TrustBundle) -> Vec<String> {
        self.bundle().map(|in_force| in_force.distrusted_of(before)).unwrap_or_default()
    }

    /// Whether this node distrusts a CA that the source has.
    pub(super) fn goes_own_way(&self) -> bool {
        self.goes_own_way
    }

    /// Whether nobody accepts this chain any more, since its CA is distrusted.
    pub(super) fn has_banned(&self, chain: &StoredChain, now: OffsetDateTime) -> bool {
        self.bundle().is_some_and(|bundle| bundle.has_banned(chain, now))
    }

    /// Why the bundle was not read.
    pub(super) fn trust_reason(&self) -> Option<&Reason> {
        self.trust.retry.reason.as_ref()
    }

    /// The credential that routes must present: none where no source is configured.
    pub(super) fn credential(&self) -> Result<Option<&ClusterCredential>, Reason> {
        let Some(polled) = &self.credential else { return Ok(None) };
        let why = || polled.retry.reason.clone().unwrap_or(Reason::CredentialUnknown);
        polled.last_good.in_force.as_ref().map(Some).ok_or_else(why)
    }

    /// Why a source was not read.
    pub(super) fn reasons(&self) -> impl Iterator<Item = Reason> {
        let credential = self.credential.as_ref().and_then(|polled| polled.retry.reason.clone());
        let clients = self.client_trust.as_ref().and_then(|polled| polled.retry.reason.clone());
        [
            self.trust.retry.reason.clone(),
            clients,
            self.distrust_fault.clone(),
            credential,
            self.peers.retry.reason.clone(),
        ]
        .into_iter()
        .flatten()
        .chain(self.included.reasons())
    }

    /// What differs from the sources' answers, and what waits.
    pub(super) fn warnings(&self, now: OffsetDateTime) -> Vec<Reason> {
        let mut warnings: Vec<_> = self.kept_peers.iter().cloned().map(Reason::Kept).collect();
        warnings.extend(self.left_out.clone());
        if !self.kept_anchors.is_empty() {
            warnings.push(Reason::AnchorsKept { subjects: self.kept_anchors.clone() });
        }
        warnings.extend(self.included.warnings());
        match self.takeover(now) {
            None => warnings.push(Reason::CredentialMissing),
            Some(takeover) => warnings.extend(takeover.next.map(|at| Reason::CredentialTakesOver { at })),
        }
        warnings
    }

    /// When each source answered last. A source that fails is left out.
    pub(super) fn answered(&self) -> impl Iterator<Item = (Source, OffsetDateTime)> {
        let credential = self.credential.as_ref().and_then(|polled| polled.retry.succeeded_at());
        let clients = self.client_trust.as_ref().and_then(|polled| polled.retry.succeeded_at());
        let answered = [
            (Source::Bundle, self.trust.retry.succeeded_at()),
            (Source::ClientBundle, clients),
            (Source::Peers, self.peers.retry.succeeded_at()),
            (Source::Credential, credential),
            (Source::Included, self.included.answered_at()),
        ];
        answered.into_iter().filter_map(|(source, at)| Some((source, at?)))
    }

    /// When the sources are worth another question.
    pub(super) fn times(&self, now: OffsetDateTime) -> Vec<OffsetDateTime> {
        let mut times = vec![self.peers.retry.next, self.trust.retry.next];
        times.extend(self.client_trust.as_ref().map(|polled| polled.retry.next));
        times.extend(self.included.times());
        if let (Some(polled), Some(takeover)) = (&self.credential, self.takeover(now)) {
            times.push(polled.retry.next);
            // A credential whose time came after the last look takes over in the next pass.
            let is_over = takeover.in_force != polled.last_good.in_force.as_ref();
            times.extend(takeover.next.into_iter().chain(is_over.then_some(now)));
        }
        times
    }
}

/// The bundle without these CAs.
fn without(bundle: TrustBundle, distrusted: &Distrusted) -> Result<TrustBundle, TrustError> {
    let origin = bundle.source.clone();
    bundle.without(distrusted).map_err(|source| TrustError::Bundle { origin, source })
}
