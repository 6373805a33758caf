//! One idempotent pass through all of it: the only place that knows the order of the stages.
//!
//! A pass works out the whole desired state, compares it with what is in force, and changes what differs. It takes no
//! account of why it runs, so a timer, a signal, `agent renew` and a restart after a crash are the same thing. Nothing
//! is retried within a pass: the next one is the retry.

pub mod deployment;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::aws::secret::SecretError;
use crate::clock::{Clock, rfc3339};
use crate::conf::render::{RenderError, Rendered, Values, render};
use crate::config::RenewalConfig;
use crate::credential::takeover::Succession;
use crate::credential::{ClusterCredential, CredentialSource, CredentialVersion};
use crate::error::{RemoteError, with_causes};
use crate::issue::journal::JournalError;
use crate::issue::{Issuance, Issued, ObtainError};
use crate::node::Node;
use crate::peers::dial::Dial;
use crate::peers::{PeerSet, PeerSource, Sighting};
use crate::progress::{Progress, Step};
use crate::reconcile::deployment::{Apply, ApplyError, Desired, Verdict};
use crate::schedule::{backoff, cycle, due, jittered, turn};
use crate::state::durable::{self, FileError, Secrecy};
use crate::state::generation::{Generation, GenerationError, TlsFiles};
use crate::status::{Findings, LeafStatus, NodeStatus, RenewalStatus, Status};
use crate::trust::{RejectedChain, TrustBundle, TrustError, TrustSource, VerifiedChain};
use crate::x509::chain::Chain;
use crate::x509::leaf::Leaf;

/// A bundle changes a few times in a CA's life; the source is asked every tenth round of discovery.
const ROUNDS_PER_TRUST_POLL: u32 = 10;
/// After so many polls every node knows a new credential: then all take it over.
const POLLS_OF_NOTICE: u32 = 3;
/// How soon nats-server is looked at again while it doesn't serve what is committed.
const WATCH: Duration = Duration::from_secs(1);
/// The largest file of last good answers.
const MAX_LAST_GOOD: u64 = 4 * 1024 * 1024;

/// The seams, and what is known of the node.
pub struct Parts {
    /// This node.
    pub node: Node,
    /// Who signs, through the journal.
    pub issuance: Issuance,
    /// Where the bundle comes from.
    pub trust: Arc<dyn TrustSource>,
    /// Where peers are seen.
    pub peers: Arc<dyn PeerSource>,
    /// How they are dialled.
    pub dial: Arc<dyn Dial>,
    /// Where the cluster credential comes from, if routes must present one.
    pub credential: Option<Arc<dyn CredentialSource>>,
    /// nats-server and the commit point.
    pub apply: Apply,
    /// The time.
    pub clock: Clock,
    /// `[renewal]`.
    pub renewal: RenewalConfig,
    /// `discovery.interval`.
    pub interval: Duration,
    /// Losses that the command line allows for as long as this process lives.
    pub allowed_losses: Vec<String>,
}

/// What a pass is asked for beyond the ordinary.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct Wanted {
    /// A new certificate, whether or not one is due.
    pub renew: bool,
    /// Losses that are meant, by their names.
    #[serde(default)]
    pub allow_loss: Vec<String>,
}

/// Why a pass ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// No certificate.
    #[error(transparent)]
    Obtain(#[from] ObtainError),
    /// The certificate that came isn't accepted.
    #[error("the issued certificate is not accepted")]
    Rejected(#[from] RejectedChain),
    /// The peers were never seen.
    #[error("the peers are not known yet: {0}")]
    Peers(String),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A generation.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// The template.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// The configuration isn't in force.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// There is an earlier failure, and it isn't time to try again.
    #[error("{0}")]
    Waiting(String),
}

/// When something is tried next, and what went wrong so far.
#[derive(Clone, Debug)]
struct Retry {
    next: OffsetDateTime,
    /// When `next` was worked out.
    since: OffsetDateTime,
    failures: u32,
    error: Option<String>,
}

impl Retry {
    fn at_once() -> Self {
        Self { next: OffsetDateTime::UNIX_EPOCH, since: OffsetDateTime::UNIX_EPOCH, failures: 0, error: None }
    }

    fn succeed(&mut self, now: OffsetDateTime, next: OffsetDateTime) {
        *self = Self { next, since: now, failures: 0, error: None };
    }

    /// A clock that was set back would put off for hours or years what was to come in minutes: that comes now.
    fn heed_a_step_back(&mut self, now: OffsetDateTime) {
        if now < self.since {
            (self.since, self.next) = (now, self.next.min(now));
        }
    }

    fn fail(&mut self, now: OffsetDateTime, renewal: &RenewalConfig, longest: Duration, error: String) {
        tracing::warn!("{error}");
        self.failures = self.failures.saturating_add(1);
        self.since = now;
        self.next = now + backoff(self.failures, renewal.retry_min, longest, fastrand::f64());
        self.error = Some(error);
    }
}

/// Answers that outlive this process, so that a restart while AWS is away changes nothing.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
struct LastGood {
    peers: PeerSet,
    group: Option<String>,
    /// The one in force.
    credential: Option<ClusterCredential>,
    /// What the secret holds.
    #[serde(default)]
    credential_versions: Vec<CredentialVersion>,
    /// The secret that the credential is from: with another one configured it is nobody's last good answer.
    credential_secret: Option<String>,
    /// Whose answers these are: an image that was made of one node may become another.
    node: Option<String>,
}

/// The reconciler: its parts, and what it remembers between passes.
pub struct Reconciler {
    parts: Parts,
    newest: Option<Generation>,
    last_good: LastGood,
    bundle: Option<TrustBundle>,
    discovery: Retry,
    trust: Retry,
    cluster_secret: Retry,
    issuing: Retry,
    deploying: Retry,
    /// Why a configuration that somebody changed is not the one in force.
    unread: Option<String>,
    /// The text that was refused before it was committed, if that is why nothing was deployed.
    refused: Option<Rendered>,
    /// What should be served could not be worked out when it was looked at last.
    is_blind: bool,
    /// Until when the leaf lives that this process saw served last, with nothing left to do.
    settled: Option<OffsetDateTime>,
    /// When what is to be deployed may be.
    turn: Option<OffsetDateTime>,
    /// What is to be deployed is a credential that every node takes over now, so it waits for no turn.
    hurries: bool,
    kept_peers: Option<String>,
    kept_anchors: Vec<String>,
    damaged: Vec<String>,
    confirmed_at: Option<OffsetDateTime>,
}

/// What a pass leaves behind.
#[derive(Debug)]
pub struct Pass {
    /// Everything that can be said of the node now.
    pub status: Status,
    /// Where the committed configuration stands, or why there is none.
    pub outcome: Result<Verdict, PassError>,
    /// When the next pass is worth making.
    pub next: OffsetDateTime,
}

impl PassError {
    /// Whether what failed is the way from a generation to a server that serves it: that is tried again at its own pace
    /// and never leads to an issuance.
    fn is_of_deployment(&self) -> bool {
        matches!(self, Self::Journal(_) | Self::File(_) | Self::Generation(_) | Self::Render(_) | Self::Apply(_))
    }
}

impl Reconciler {
    /// Takes its parts, and reads back the last good answers of an earlier process. Ones that can't be read are only
    /// asked for again.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let last_good = durable::read_if_there(&last_good_file(&parts), MAX_LAST_GOOD).unwrap_or_else(|error| {
            tracing::warn!("{}", with_causes(&error));
            None
        });
        let last_good = last_good.map(zeroize::Zeroizing::new).and_then(|bytes| {
            let parsed = serde_json::from_slice::<LastGood>(&bytes);
            // serde's own words may repeat a part of the content.
            if parsed.is_err() {
                tracing::warn!("{} can't be read, so it is made anew", last_good_file(&parts).display());
            }
            parsed.ok()
        });
        let own = Some(parts.node.instance_id.clone().unwrap_or_else(|| parts.node.name.clone()));
        let is_ours = |last_good: &LastGood| last_good.node.is_none() || last_good.node == own;
        let mut last_good = last_good.filter(is_ours).unwrap_or_default();
        last_good.node = own;
        let secret = &parts.apply.parts().nats.cluster_secret_id;
        if last_good.credential_secret != *secret {
            last_good.credential = None;
            last_good.credential_versions.clear();
            last_good.credential_secret.clone_from(secret);
        }
        Self {
            parts,
            newest: None,
            last_good,
            bundle: None,
            discovery: Retry::at_once(),
            trust: Retry::at_once(),
            cluster_secret: Retry::at_once(),
            issuing: Retry::at_once(),
            deploying: Retry::at_once(),
            unread: None,
            refused: None,
            is_blind: false,
            settled: None,
            turn: None,
            hurries: false,
            kept_peers: None,
            kept_anchors: Vec::new(),
            damaged: Vec::new(),
            confirmed_at: None,
        }
    }

    /// One pass. Whatever fails in it is in the outcome and in the status; what was in force before stays in force.
    pub async fn pass(&mut self, wanted: &Wanted, progress: &Progress) -> Pass {
        let outcome = self.reconcile(wanted, progress).await;
        let now = self.parts.clock.now();
        match &outcome {
            // One that waits for its turn has not been tried again.
            Ok(Verdict::Live { .. } | Verdict::NoServer(_)) if self.turn.is_some() => {}
            Ok(Verdict::Live { .. } | Verdict::NoServer(_)) => self.deploying.succeed(now, now),
            Err(error) if error.is_of_deployment() => {
                self.deploying.fail(now, &self.parts.renewal, self.parts.renewal.retry_max, with_causes(error));
            }
            // What keeps a certificate or an answer away is counted where it is met.
            Ok(Verdict::Other(_)) | Err(_) => {}
        }
        let (status, next) = (self.status(), self.next(now));
        // Its key is in memory only while a pass needs it.
        self.newest = None;
        Pass { status, outcome, next }
    }

    /// The newest leaf.
    #[must_use]
    pub fn leaf(&self) -> Option<LeafStatus> {
        let (newest, _) = self.parts.apply.parts().generations.newest().ok()?;
        newest.as_ref().map(LeafStatus::of)
    }

    /// The cluster credential, once it is known.
    #[must_use]
    pub fn credential(&self) -> Option<&ClusterCredential> {
        self.last_good.credential.as_ref()
    }

    /// The clock that passes go by.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.parts.clock
    }

    /// Notes why a configuration that somebody changed is not the one in force: that is no longer what they think.
    pub fn note_unread(&mut self, why: String) {
        self.unread = Some(why);
    }

    /// Looks, asks nobody outside this machine and changes nothing; `fault` is why that is all that can be done.
    pub async fn inspect(&mut self, fault: String) -> Status {
        let looked = match (self.read_newest(), self.newest.clone()) {
            (Err(error), _) => Err(with_causes(&error)),
            (Ok(()), Some(newest)) => self.parts.apply.look(&newest.chain).await.map_err(|error| with_causes(&error)),
            (Ok(()), None) => Ok(()),
        };
        self.deploying.error = looked.err();
        self.damaged.insert(0, fault);
        self.status()
    }

    /// The newest generation, read from the disk again: another process may have written it.
    fn read_newest(&mut self) -> Result<(), FileError> {
        let (newest, damaged) = self.parts.apply.parts().generations.newest()?;
        self.newest = newest;
        self.damaged = damaged.iter().map(|error| with_causes(error)).collect();
        // Without it nothing can be asked for, and that is better known before something must be.
        self.damaged.extend(self.parts.issuance.journal.load().err().map(|error| with_causes(&error)));
        Ok(())
    }

    /// What the next pass would commit, without asking the issuer or touching anything.
    pub async fn desired(&mut self) -> Result<(Option<Rendered>, Rendered), PassError> {
        let (newest, _) = self.parts.apply.parts().generations.newest()?;
        let (peers, credential) = tokio::join!(self.sight(), self.fetch_credential(self.parts.clock.now()));
        self.settle_peers(peers).await;
        self.take_credential(credential);
        self.let_credential_succeed(self.parts.clock.now());
        let files = newest.map_or_else(|| self.parts.apply.parts().generations.files(1), |generation| generation.files);
        Ok((self.parts.apply.committed()?, self.render(files)?))
    }

    async fn reconcile(&mut self, wanted: &Wanted, progress: &Progress) -> Result<Verdict, PassError> {
        let now = self.parts.clock.now();
        let Self { discovery, trust, cluster_secret, issuing, deploying, .. } = self;
        for retry in [discovery, trust, cluster_secret, issuing, deploying] {
            retry.heed_a_step_back(now);
        }
        self.read_newest()?;
        let obtain = self.is_certificate_wanted(wanted, now);

        // The three sources are asked at the same time; each may fail alone.
        let (issued, bundle, sighting, credential) = tokio::join!(
            async { if obtain { Some(self.parts.issuance.obtain(&self.parts.node, progress).await) } else { None } },
            self.fetch_trust(now),
            async { if now >= self.discovery.next { Some(self.sight().await) } else { None } },
            self.fetch_credential(now),
        );
        let known = self.last_good.clone();
        if let Some(sighting) = sighting {
            self.settle_peers(sighting).await;
        }
        // Which anchors are still needed the peers are asked: those that are there now.
        self.take_trust(bundle).await;
        self.take_credential(credential);
        self.let_credential_succeed(self.parts.clock.now());
        if self.last_good != known {
            self.remember();
        }
        let refused = match self.advance(issued, progress) {
            Ok(refused) => refused,
            Err(error) => {
                // What is served is served still, and the status is to show it beside the error.
                if let Some(newest) = self.newest.clone()
                    && let Err(unseen) = self.parts.apply.look(&newest.chain).await
                {
                    tracing::warn!("{}", with_causes(&unseen));
                }
                return Err(error);
            }
        };
        let verdict = self.deploy(wanted, progress).await?;
        refused.map_or(Ok(verdict), Err)
    }

    /// Whether the issuer is to be asked: there is an issuance to resume, the last one failed, one is due, or one was asked
    /// for and the newest certificate is in force. One that is not is what is wanted, and is paid for.
    fn is_certificate_wanted(&self, wanted: &Wanted, now: OffsetDateTime) -> bool {
        if now < self.issuing.next && !wanted.renew {
            return false;
        }
        let Some(newest) = &self.newest else { return true };
        if wanted.renew && self.parts.apply.names(newest.chain.leaf()) {
            return true;
        }
        let leaf = newest.chain.leaf();
        let resume = self.parts.issuance.is_under_way() || self.issuing.failures > 0;
        // One whose time comes only when its own life would be over was signed by a clock that was wrong, or this one is
        // wrong: then what is asked for waits in the journal until it is set.
        let is_of_another_time = leaf.not_before > now + self.parts.issuance.validity;
        resume || is_of_another_time || !leaf.sans.cover(&self.parts.node.sans) || now >= self.due(newest)
    }

    fn due(&self, generation: &Generation) -> OffsetDateTime {
        let Parts { issuance, renewal, node, .. } = &self.parts;
        due(generation.chain.leaf(), issuance.validity, renewal.at, &node.name)
    }

    async fn fetch_trust(&self, now: OffsetDateTime) -> Option<Result<TrustBundle, TrustError>> {
        if now < self.trust.next { None } else { Some(self.parts.trust.fetch().await) }
    }

    async fn sight(&self) -> Result<Sighting, RemoteError> {
        self.parts.peers.sight().await
    }

    async fn fetch_credential(&self, now: OffsetDateTime) -> Option<Result<Vec<CredentialVersion>, SecretError>> {
        let source = self.parts.credential.as_ref()?;
        if now < self.cluster_secret.next { None } else { Some(source.fetch(now - self.notice()).await) }
    }

    /// How long after it was made a new credential takes over.
    fn notice(&self) -> Duration {
        self.parts.interval * ROUNDS_PER_TRUST_POLL * POLLS_OF_NOTICE
    }

    /// How often the bundle and the credential are asked for, and how long a pause after failures is at most.
    fn poll(&self) -> (Duration, Duration) {
        let pause = self.parts.interval * ROUNDS_PER_TRUST_POLL;
        (pause, pause.min(self.parts.renewal.retry_max))
    }

    /// The bundle in force: the one that was fetched, and of the last one every anchor that a served chain still needs
    /// (invariant 5).
    async fn take_trust(&mut self, fetched: Option<Result<TrustBundle, TrustError>>) {
        let (pause, longest) = self.poll();
        let Parts { clock, renewal, .. } = &self.parts;
        match fetched {
            None => {}
            Some(Err(error)) => self.trust.fail(clock.now(), renewal, longest, with_causes(&error)),
            Some(Ok(bundle)) => {
                self.trust.succeed(clock.now(), clock.now() + jittered(pause, fastrand::f64()));
                let fetched = bundle.anchors.len();
                let bundle = match &self.newest {
                    Some(newest) => self.keep_needed_anchors(bundle, newest).await,
                    None => bundle,
                };
                self.kept_anchors = bundle.anchors[fetched..].iter().map(|anchor| anchor.subject.clone()).collect();
                self.bundle = Some(bundle);
            }
        }
        if self.bundle.is_none() {
            self.bundle = self.newest.as_ref().map(|newest| newest.bundle.clone());
        }
    }

    async fn keep_needed_anchors(&self, fetched: TrustBundle, newest: &Generation) -> TrustBundle {
        let known: BTreeSet<&str> = fetched.anchors.iter().map(|anchor| anchor.sha256.as_str()).collect();
        if newest.bundle.anchors.iter().all(|anchor| known.contains(anchor.sha256.as_str())) {
            return fetched;
        }
        let now = self.parts.clock.now();
        // Whether its time has come or is over is nothing to its anchor, and this machine's clock may be wrong.
        let in_its_time = |chain: &Chain| match Leaf::parse(chain.leaf()) {
            Ok(leaf) => now.min(leaf.not_after).max(leaf.not_before),
            Err(_) => now,
        };
        let observed = self.parts.apply.observed();
        let shown = [&observed.client, &observed.route].into_iter().filter_map(|port| port.as_ref().ok());
        let mut served: Vec<_> = shown.map(|served| served.chain.clone()).collect();
        served.push(newest.chain.chain().clone());
        let own = SocketAddr::new(self.parts.node.address, self.parts.apply.parts().nats.cluster_listen.port());
        let peers = self.last_good.peers.0.keys().copied().filter(|address| *address != own);
        let seen = self.parts.dial.served_chains(&newest.chain, peers.collect()).await;
        let unseen = seen.iter().any(Option::is_none);
        served.extend(seen.into_iter().flatten());
        fetched.keeping(&newest.bundle, |anchor| {
            let needs_it = |chain: &Chain| {
                let at = in_its_time(chain);
                !fetched.chains(chain, at) && newest.bundle.anchor_of(chain, at).is_some_and(|end| end == anchor)
            };
            // A peer that can't be asked may need any of them.
            unseen || served.iter().any(needs_it)
        })
    }

    async fn settle_peers(&mut self, sighting: Result<Sighting, RemoteError>) {
        let Parts { clock, renewal, interval, node, dial, .. } = &self.parts;
        let seen = match sighting {
            Ok(seen) => seen,
            Err(error) => {
                self.discovery.fail(clock.now(), renewal, renewal.retry_max.min(*interval * 10), with_causes(&error));
                return;
            }
        };
        let missing = self.last_good.peers.missing_from(&seen);
        let answering = dial.answering(missing.into_iter().map(|peer| peer.address).collect()).await;
        let settled = self.last_good.peers.settle(&seen, node, |peer| answering.contains(&peer.address));
        self.discovery.succeed(clock.now(), clock.now() + jittered(*interval, fastrand::f64()));
        self.kept_peers = settled.kept;
        self.last_good.peers = settled.peers;
        self.last_good.group = seen.group.or(self.last_good.group.take());
    }

    fn take_credential(&mut self, fetched: Option<Result<Vec<CredentialVersion>, SecretError>>) {
        let (pause, longest) = self.poll();
        let now = self.parts.clock.now();
        match fetched {
            None => {}
            Some(Ok(versions)) => {
                self.last_good.credential_versions = versions;
                self.cluster_secret.succeed(now, now + jittered(pause, fastrand::f64()));
            }
            Some(Err(error)) => self.cluster_secret.fail(now, &self.parts.renewal, longest, with_causes(&error)),
        }
    }

    fn succession(&self, now: OffsetDateTime) -> Succession<'_> {
        let LastGood { credential_versions, credential, .. } = &self.last_good;
        Succession::of(credential_versions, credential.as_ref(), self.notice(), now)
    }

    fn let_credential_succeed(&mut self, now: OffsetDateTime) {
        let in_force = self.succession(now).in_force.cloned();
        self.hurries |= self.last_good.credential.is_some() && in_force != self.last_good.credential;
        self.last_good.credential = in_force;
    }

    /// Keeps the last good answers for the next process. One that can't is not in the way of this one.
    fn remember(&self) {
        let mode = Secrecy::of(&self.parts.apply.parts().state).file_mode();
        let stored = serde_json::to_vec(&self.last_good)
            .map_err(|error| error.to_string())
            .map(zeroize::Zeroizing::new)
            .and_then(|bytes| {
                durable::replace(&last_good_file(&self.parts), &bytes, mode).map_err(|error| with_causes(&error))
            });
        if let Err(error) = stored {
            tracing::warn!("could not keep the last good peers: {error}");
        }
    }

    /// Makes the generation to deploy, where there is a new chain or another bundle. Returns why there is no new chain
    /// although one was wanted: what is there is deployed all the same.
    fn advance(
        &mut self,
        issued: Option<Result<Issued, ObtainError>>,
        progress: &Progress,
    ) -> Result<Option<PassError>, PassError> {
        let (accepted, refused) = match issued.map(|issued| self.accept(issued)).transpose() {
            Ok(accepted) => (accepted, None),
            Err(error) => {
                let Parts { clock, renewal, issuance, .. } = &self.parts;
                let longest = renewal.retry_max.min(issuance.longest_pause(renewal.retry_min));
                self.issuing.fail(clock.now(), renewal, longest, with_causes(&error));
                (None, Some(error))
            }
        };
        let generations = &self.parts.apply.parts().generations;
        match (accepted, &self.newest, &self.bundle) {
            (Some(chain), _, Some(bundle)) => {
                let generation = generations.write(&chain, bundle)?;
                self.parts.issuance.settle()?;
                // Should an issuer return leaves that are due at once, they are still asked for at a measured pace.
                let now = self.parts.clock.now();
                self.issuing.succeed(now, now + self.parts.issuance.validity / 10);
                progress.report(Step::Issued { serial: chain.leaf().serial.clone(), generation: generation.number });
                self.newest = Some(generation);
            }
            (None, Some(newest), Some(bundle)) if newest.bundle.anchors != bundle.anchors => {
                self.newest = Some(generations.write_again(&newest.chain, bundle)?);
            }
            (_, Some(_), _) => {}
            (_, None, _) => {
                let why = self.issuing.error.clone().or(self.trust.error.clone());
                let waiting = || PassError::Waiting(why.unwrap_or_else(|| "there is no certificate yet".into()));
                return Err(refused.unwrap_or_else(waiting));
            }
        }
        Ok(refused)
    }

    /// A certificate that isn't accepted stays in the journal and is collected again, as it is paid for. One that no bundle
    /// and no time would make acceptable is given up after a while, so that another can be asked for.
    fn accept(&self, issued: Result<Issued, ObtainError>) -> Result<VerifiedChain, PassError> {
        let issued = issued?;
        let Some(bundle) = &self.bundle else {
            let why = self.trust.error.clone().unwrap_or_default();
            return Err(PassError::Waiting(format!("the certificate waits for a trust bundle: {why}")));
        };
        let now = self.parts.clock.now();
        let accepted = bundle.verify(&issued.chain, &issued.csr.key, &self.parts.node.sans, now);
        match &accepted {
            Err(RejectedChain::NotYetValid { not_before, .. }) => {
                self.parts.issuance.note_valid_from(*not_before)?;
            }
            Err(rejected) if !rejected.may_pass_later() => self.parts.issuance.give_up()?,
            Ok(_) | Err(_) => {}
        }
        Ok(accepted?)
    }

    /// Brings the committed configuration, and then the server, to what is desired. Whatever comes of it, the status is to
    /// show what is served.
    async fn deploy(&mut self, wanted: &Wanted, progress: &Progress) -> Result<Verdict, PassError> {
        let Some(generation) = self.newest.clone() else {
            return Err(PassError::Waiting("there is no certificate yet".into()));
        };
        let now = self.parts.clock.now();
        let looked = self.parts.apply.look(&generation.chain).await;
        self.is_blind = looked.is_err();
        self.note_confirmed();
        let rendered = match self.render(generation.files.clone()) {
            Ok(rendered) => rendered,
            Err(error) => {
                let is_told = self.deploying.error.as_ref() == Some(&with_causes(&error));
                if *wanted == Wanted::default() && is_told && now < self.deploying.next {
                    return Err(PassError::Waiting(with_causes(&error)));
                }
                self.parts.apply.bring_certificate(&generation, progress).await;
                self.refused = Some(Rendered::from_text(zeroize::Zeroizing::default()));
                return Err(error);
            }
        };
        let is_committed = self.parts.apply.committed()?.as_ref() == Some(&rendered);
        match looked {
            // A committed file that says nothing, or that nats-server would not take, is mended by the next commit.
            Err(error) if !is_committed => tracing::warn!("{}", with_causes(&error)),
            looked => looked?,
        }
        let is_done = is_committed && !matches!(self.parts.apply.verdict(), Verdict::Other(_));
        if !is_done {
            // Once: what fails then is tried again at its own pace.
            let waits = *wanted == Wanted::default() && !std::mem::take(&mut self.hurries);
            if waits && self.waits_for_its_turn(now) {
                return Ok(self.parts.apply.verdict().clone());
            }
            // What was refused is worth another try as soon as it is another text.
            let is_mended = self.refused.as_ref().is_some_and(|refused| *refused != rendered);
            if waits && now < self.deploying.next && !is_mended {
                return match self.parts.apply.verdict() {
                    Verdict::Other(why) if is_committed => Ok(Verdict::Other(why.clone())),
                    _ => Err(PassError::Waiting(self.deploying.error.clone().unwrap_or_default())),
                };
            }
            let allowed_losses = &[&self.parts.allowed_losses[..], &wanted.allow_loss[..]].concat();
            let desired = Desired { rendered, generation: &generation, allowed_losses, now };
            let brought = self.parts.apply.bring(&desired, progress).await;
            let is_refused = brought.as_ref().is_err_and(ApplyError::is_refusal);
            self.refused = is_refused.then_some(desired.rendered);
            brought?;
            self.is_blind = false;
        }
        self.note_confirmed();
        self.parts.apply.settle()?;
        self.turn = None;
        self.settled = Some(generation.chain.leaf().not_after);
        Ok(self.parts.apply.verdict().clone())
    }

    /// Whether a change is left for this node's turn: the server serves what is committed, by a leaf that has time left,
    /// and a person who restarts the agent with other settings isn't waiting for them.
    fn waits_for_its_turn(&mut self, now: OffsetDateTime) -> bool {
        let Parts { interval, apply, node, .. } = &self.parts;
        let Some((cycle, settled)) = cycle(*interval).zip(self.settled) else { return false };
        if !matches!(apply.verdict(), Verdict::Live { .. }) || settled < now + cycle * 10 {
            return false;
        }
        let own = SocketAddr::new(node.address, apply.parts().nats.cluster_listen.port());
        let rank = self.last_good.peers.0.range(..own).count();
        // One further off than that is of a clock that was set back since.
        let known = self.turn.filter(|turn| *turn < now + cycle);
        now < *self.turn.insert(known.unwrap_or_else(|| turn(now, rank, cycle)))
    }

    fn note_confirmed(&mut self) {
        if matches!(self.parts.apply.verdict(), Verdict::Live { .. }) {
            self.confirmed_at = Some(self.parts.clock.now());
        }
    }

    fn render(&self, files: TlsFiles) -> Result<Rendered, PassError> {
        let Parts { apply, node, .. } = &self.parts;
        let nats = &apply.parts().nats;
        if self.last_good.peers.0.is_empty() {
            let why = self.discovery.error.clone().or(self.kept_peers.clone());
            return Err(PassError::Peers(why.unwrap_or_else(|| "discovery was not asked yet".into())));
        }
        if self.parts.credential.is_some() && self.last_good.credential.is_none() {
            let why = self.cluster_secret.error.clone();
            return Err(PassError::Waiting(
                why.unwrap_or_else(|| "the cluster credential was not asked for yet".into()),
            ));
        }
        let name = nats.cluster_name.as_deref().or(self.last_good.group.as_deref()).unwrap_or("nats");
        let credential = self.parts.credential.as_ref().and(self.last_good.credential.clone());
        let values = Values::new(nats, node, name, &self.last_good.peers, files, credential)?;
        Ok(render(nats.template.as_deref(), &values)?.with_includes(&nats.config)?)
    }

    fn status(&self) -> Status {
        let now = self.parts.clock.now();
        let generation = self.newest.clone();
        let mut faults = self.damaged.clone();
        faults.extend(self.unread.clone());
        faults.extend(self.trust.error.clone());
        faults.extend(self.cluster_secret.error.clone());
        faults.extend(self.discovery.error.clone());
        faults.extend(self.deploying.error.clone());
        let mut notes: Vec<_> = self.kept_peers.clone().into_iter().collect();
        if !self.kept_anchors.is_empty() {
            let anchors = self.kept_anchors.join(", ");
            notes.push(format!(
                "the trust bundle no longer holds {anchors}, which a certificate still served in the cluster chains to, so \
                 it is kept until none does"
            ));
        }
        let waiting = self.parts.apply.waiting_for_restart();
        if !waiting.is_empty() {
            let names = waiting.join(", ");
            notes.push(format!(
                "nats-server takes {names} only at a start: the change is committed and waits for its restart"
            ));
        }
        notes.extend(self.opened_to_all());
        match self.succession(now).next {
            _ if self.parts.credential.is_none() => notes.push(NO_CREDENTIAL.into()),
            Some(next) => notes.push(format!(
                "a new cluster credential takes over at {}, on every node at once; until then the one before is in force",
                rfc3339(next)
            )),
            None => {}
        }
        Status::of(Findings {
            now,
            node: NodeStatus::of(&self.parts.node),
            instance_id: self.parts.node.instance_id.clone(),
            renewal: RenewalStatus {
                next: generation.as_ref().map(|generation| self.due(generation).max(self.issuing.next)),
                attempts: self.issuing.failures,
                last_error: self.issuing.error.clone(),
            },
            // The source's version may change with the anchors as they are, and then there is no new generation.
            bundle: self.bundle.clone().or(generation.as_ref().map(|generation| generation.bundle.clone())),
            generation,
            peers: self.last_good.peers.clone(),
            observed: self.parts.apply.observed().clone(),
            verdict: self.parts.apply.verdict().clone(),
            confirmed_at: self.confirmed_at,
            faults,
            notes,
        })
    }

    /// What somebody has opened to everyone since it was made.
    fn opened_to_all(&self) -> Vec<String> {
        let state = &self.parts.apply.parts().state;
        let key = self.newest.as_ref().map(|newest| &newest.files.key_file);
        let key = key.and_then(|key| {
            let mode = durable::open_to_all(key, 0o007)?;
            let key = key.display();
            Some(format!(
                "{key} is open to everyone (mode {mode:o}): take that away, then run `agent renew` for another key"
            ))
        });
        let state = durable::open_to_all(state, 0o002).map(|mode| {
            format!(
                "everyone can write to {} (mode {mode:o}), and so to nats-server's keys: chmod o-w",
                state.display()
            )
        });
        key.into_iter().chain(state).collect()
    }

    /// When the next pass is worth making: the earliest of what is waited for, and never at once.
    fn next(&self, now: OffsetDateTime) -> OffsetDateTime {
        let mut times = vec![self.discovery.next, self.trust.next, now + self.parts.interval];
        if self.parts.credential.is_some() {
            times.push(self.cluster_secret.next);
            // One whose time has come since it was looked at takes over in the next pass.
            let succession = self.succession(now);
            let is_over = succession.in_force != self.last_good.credential.as_ref();
            times.extend(succession.next.into_iter().chain(is_over.then_some(now)));
        }
        // Whatever the rest of the pass took: a request whose answer was lost is to be repeated while PCA knows its token.
        times.extend((self.issuing.failures > 0).then_some(self.issuing.next));
        times.extend((self.deploying.failures > 0).then_some(self.deploying.next).filter(|next| *next > now));
        let due = self.newest.as_ref().map(|newest| self.due(newest));
        times.push(due.map_or(self.issuing.next, |due| due.max(self.issuing.next)));
        times.extend(self.turn.filter(|turn| *turn > now));
        // Without a certificate there is nothing that it could serve.
        if self.newest.is_some() && !self.is_blind && !matches!(self.parts.apply.verdict(), Verdict::Live { .. }) {
            times.push(now + WATCH.min(self.parts.interval));
        }
        let mut soonest = times.into_iter().min().unwrap_or(now);
        if self.newest.is_none() && self.deploying.failures > 0 {
            // The state directory can't be read, and nothing can be done before it can.
            soonest = soonest.max(self.deploying.next);
        }
        soonest.max(now + self.parts.renewal.retry_min.min(Duration::from_millis(100)))
    }
}

/// Without it, whoever holds a client certificate of the same CA can join as a server (invariant 13).
pub const NO_CREDENTIAL: &str = "routes need no cluster credential: anyone with a client certificate of this CA can join as a \
     server and read every account; set nats.cluster_secret_id";

fn last_good_file(parts: &Parts) -> PathBuf {
    parts.apply.parts().state.join("last-good.json")
}

#[cfg(test)]
mod tests;
