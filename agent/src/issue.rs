//! Issuance: the issuer seam, and the journal through which every certificate is paid for once (invariant 11).
//!
//! ```text
//! key + CSR ─► journal ─► prepare ─► journal ─► request ─► journal the certificate's ARN ─► collect ─► IssuedChain
//! ```
//!
//! Whatever happens between two of these steps, the next pass reads the journal and goes on from there. With an ARN it
//! collects the certificate. Without an ARN it repeats the same request with the same idempotency token.

pub mod acm_pca;
pub mod journal;
pub(crate) mod local;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use time::OffsetDateTime;

pub use self::journal::CertificateHandle;
use self::journal::{Concluded, Entries, Journal, JournalError, Pending};
use crate::clock::{Clock, rfc3339};
use crate::error::{RemoteError, RemoteErrorKind};
use crate::node::Node;
use crate::progress::{Progress, Step};
use crate::state::durable;
use crate::x509::csr::{Csr, CsrError, KeyAlgorithm};
use crate::x509::leaf::Leaf;

/// What the issuer returned, not verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedChain {
    /// The leaf.
    pub leaf_pem: String,
    /// The CAs above the leaf, with or without the root.
    pub chain_pem: String,
}

/// What an issuer says of its CA.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// Why the CA issues nothing, and the remedy.
    pub obstacle: Option<String>,
    /// The longest validity that the CA issues.
    pub longest: Option<Duration>,
}

/// A request for a certificate.
#[derive(Clone, Debug)]
pub struct IssueRequest<'a> {
    /// PKCS#10 in PEM.
    pub csr_pem: &'a str,
    /// The validity of the leaf.
    pub validity: Duration,
    /// The wall-clock time of the request. A repeated request has the same time.
    pub now: OffsetDateTime,
    /// The return value of [`Issuer::prepare`].
    pub signing_algorithm: &'a str,
    /// A repeated request has the same token.
    pub idempotency_token: &'a str,
}

/// Who signs.
#[async_trait]
pub trait Issuer: Send + Sync {
    /// The name of the CA. No other CA knows the certificates that were requested from this CA.
    fn name(&self) -> String;

    /// Checks that the issuer can do what it will be asked for, and returns the signature algorithm of its requests. The
    /// journal keeps the algorithm, so that a repeated request takes a single call.
    async fn prepare(&self, validity: Duration) -> Result<String, RemoteError>;

    /// NotAfter of the CA's certificate, which no leaf may exceed. `None`: the issuer itself ends a leaf with its CA. The
    /// answer is fresh where the CA ends within twice the `validity` of a leaf.
    async fn issues_until(
        &self,
        _validity: Duration,
        _now: OffsetDateTime,
    ) -> Result<Option<OffsetDateTime>, RemoteError> {
        Ok(None)
    }

    /// What the issuer says of its CA beside the CA's certificate. `None`: the issuer says nothing. Only doctor asks.
    async fn describe(&self) -> Result<Option<Described>, RemoteError> {
        Ok(None)
    }

    /// Requests a certificate. The answer names the certificate, which may not exist yet.
    async fn request(&self, request: &IssueRequest<'_>) -> Result<CertificateHandle, RemoteError>;

    /// Fetches a requested certificate, or `None` while the issuer still signs. An error of the kind
    /// [`RemoteErrorKind::Absent`] may pass: the issuer may not know the certificate yet.
    async fn collect(&self, handle: &CertificateHandle) -> Result<Option<IssuedChain>, RemoteError>;

    /// The CA's own certificate and the chain above it, in PEM: the trust anchors of `trust.kind = "issuer"`.
    async fn ca_pem(&self) -> Result<String, RemoteError>;

    /// How many certificates a day may be requested beyond the certificates of the schedule. An accident costs no more.
    fn spare_issuances_a_day(&self) -> u32;
}

/// How long one pass waits for a certificate before it leaves the certificate to the next pass.
const COLLECT_TIMEOUT: Duration = Duration::from_mins(1);
/// How long PCA remembers a token, and answers a repeated request with the same certificate
/// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html>).
const TOKEN_HOLDS: Duration = Duration::from_mins(5);
/// How long an unknown or wrong certificate is collected again before another certificate is paid for. A wrong answer may
/// come from a proxy.
const GIVE_UP_AFTER: Duration = TOKEN_HOLDS;
/// The pause after a certificate that is never accepted.
const AFTER_GIVING_UP: Duration = Duration::from_mins(10);
/// The longest pause after several such certificates in a row.
const LONGEST_AFTER_GIVING_UP: Duration = Duration::from_hours(12);
/// PCA usually signs within some tens of milliseconds. The SDK's own waiter would begin at a second.
const FIRST_POLL: Duration = Duration::from_millis(40);
const LONGEST_POLL: Duration = Duration::from_secs(2);

/// The longest pause before a request is repeated. A lost answer may have named a certificate, and the same request names
/// it again without another payment while PCA remembers the token.
const REPEAT_WITHIN: Duration = Duration::from_mins(4);
/// The longest pause in the five minutes after an answer was lost, because most repeats may be refused.
const REPEAT_OFTEN: Duration = Duration::from_secs(15);

/// How long before its CA a leaf ends at the latest, so that a clock that is behind by less asks for nothing that PCA refuses.
const BEFORE_THE_CA: Duration = Duration::from_mins(1);
/// The shortest leaf that is worth its price.
const SHORTEST: Duration = Duration::from_mins(1);

/// A certificate that was issued for a key of ours, and not verified yet.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The key and the request.
    pub csr: Csr,
    /// The issuer's answer.
    pub chain: IssuedChain,
}

/// Why a pass ends without a certificate.
#[derive(Debug, thiserror::Error)]
pub enum ObtainError {
    /// The key or the CSR could not be made.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The journal is not usable, so no certificate may be paid for.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The issuer refused or failed.
    #[error(transparent)]
    Issuer(#[from] RemoteError),
    /// The issuer still signs. The certificate is collected in a later pass.
    #[error(
        "{issuer} has not signed the certificate within {} s; it is asked for again", COLLECT_TIMEOUT.as_secs()
    )]
    InProgress {
        /// Who signs.
        issuer: String,
    },
    /// This instance waits in a warm pool.
    #[error(
        "this instance is in the warm pool of its group ({state}): no certificate is paid for until it goes into service, and \
         nothing is served"
    )]
    InWarmPool {
        /// The lifecycle state, such as `Warmed:Stopped`.
        state: String,
    },
    /// The CA's certificate has ended, or ends within [`SHORTEST`] and [`BEFORE_THE_CA`].
    #[error(
        "{issuer} ended at {}, and it is {} here: it signs nothing any more; install a new certificate for the CA, or name \
         another CA in ca_arn", rfc3339(*at), rfc3339(*now)
    )]
    IssuerEnded {
        /// Who signs.
        issuer: String,
        /// NotAfter of the CA.
        at: OffsetDateTime,
        /// The wall-clock time.
        now: OffsetDateTime,
    },
    /// A new certificate would end no later than the newest certificate, because both end with the CA.
    #[error(
        "{issuer} ends at {}, and the newest certificate ends with it, so a further certificate would be paid for in vain; \
         install a new certificate for the CA, or name another CA in ca_arn", rfc3339(*at)
    )]
    EndsWithIssuer {
        /// Who signs.
        issuer: String,
        /// NotAfter of the CA.
        at: OffsetDateTime,
    },
    /// The cap of issuances a day is reached.
    #[error(
        "{issued} certificates were issued in the last 24 hours, and the cap is {cap}: none is asked for until the \
         oldest is a day old; find out what asked for them, then, if it must be, remove {}", .journal.display()
    )]
    Capped {
        /// How many certificates were issued in the last day.
        issued: usize,
        /// How many may be issued in a day.
        cap: usize,
        /// The journal's file.
        journal: PathBuf,
    },
    /// The thread that makes the key ended early.
    #[error("the making of a key broke off; it is tried again")]
    BrokenOff(#[source] tokio::task::JoinError),
}

/// Issuance through the journal, the only way to a certificate.
pub struct Issuance {
    /// The CA that signs.
    pub issuer: Arc<dyn Issuer>,
    /// The issuance under way, and the times of the issuances in the last day.
    pub journal: Journal,
    /// The source of the time.
    pub clock: Clock,
    /// The validity of a leaf.
    pub validity: Duration,
    /// How soon the schedule may renew a leaf (`schedule::earliest`): the cap leaves room for that.
    pub renewed_after: Duration,
    /// The algorithm of the leaf's key.
    pub algorithm: KeyAlgorithm,
}

impl Issuance {
    /// Resumes the issuance under way, or begins an issuance. The caller ends the issuance when the certificate is safe
    /// in a generation, or is unusable. A certificate that the CA cuts short is worth its price only if it ends after
    /// `beyond`.
    pub(crate) async fn obtain(
        &self,
        node: &Node,
        beyond: Option<OffsetDateTime>,
        progress: &Progress,
    ) -> Result<Issued, ObtainError> {
        let mut entries = self.journal.load()?;
        let now = self.clock.now();
        let issuer = self.issuer.name();
        let fits = |pending: &Pending| {
            // Older agents noted no issuer. Their issuer counts as the present issuer.
            pending.issuer.as_ref().is_none_or(|asked| *asked == issuer)
                && pending.csr.sans == node.sans
                && pending.csr.algorithm == self.algorithm
                && pending.is_recent(self.validity / 2, now)
        };
        let pending = if let Some(pending) = entries.pending.take().filter(fits) {
            progress.report(Step::Resumed { handle: pending.handle.as_ref().map(|handle| handle.0.clone()) });
            pending
        } else {
            self.check_cap(&entries)?;
            let (name, sans, algorithm) = (node.name.clone(), node.sans.clone(), self.algorithm);
            let made = durable::blocking(move || Csr::generate(&name, &sans, algorithm)).await;
            let csr = made.map_err(ObtainError::BrokenOff)??;
            progress.report(Step::KeyMade { algorithm: self.algorithm });
            Pending { issuer: Some(issuer), ..Pending::of(csr, now) }
        };
        let csr = pending.csr.clone();
        entries.pending = Some(pending.clone());
        let handle = match pending.handle.clone() {
            Some(handle) => handle,
            None => self.request(&mut entries, pending, beyond).await?,
        };
        progress.report(Step::Requested { handle: handle.0.clone() });
        let chain = self.collect(&mut entries, &handle).await?;
        Ok(Issued { csr, chain })
    }

    /// Ends the issuance under way: its certificate is in a generation. Notes what the certificate was asked for.
    pub(crate) fn conclude(&self, leaf: &Leaf) -> Result<(), JournalError> {
        let mut entries = self.journal.load()?;
        entries.concluded = entries.pending.take().and_then(|pending| {
            let Pending { csr, issuer, validity, .. } = pending;
            let Csr { algorithm, sans, .. } = csr;
            Some(Concluded { leaf: leaf.sha256.clone(), issuer: issuer?, validity: validity?, algorithm, sans })
        });
        entries.given_up = 0;
        self.journal.store(&entries)
    }

    /// Whether a leaf is what agent.toml asks for now. A leaf of an older agent is: nobody noted what it was asked for.
    pub(crate) fn is_as_asked(&self, leaf: &Leaf, node: &Node) -> bool {
        let concluded = self.journal.load().ok().and_then(|entries| entries.concluded);
        concluded.filter(|known| known.leaf == leaf.sha256).is_none_or(|known| {
            known.issuer == self.issuer.name()
                && known.validity == in_millis(self.validity)
                && known.algorithm == self.algorithm
                && known.sans == node.sans
        })
    }

    /// Notes when the certificate of the issuance under way becomes valid, where this machine's clock is behind. Once
    /// the clock is set, this time shows that the issuance is recent, and the certificate is still collected.
    pub(crate) fn note_valid_from(&self, time: OffsetDateTime) -> Result<(), JournalError> {
        let mut entries = self.journal.load()?;
        match &mut entries.pending {
            Some(pending) if pending.valid_from != Some(time) => pending.valid_from = Some(time),
            _ => return Ok(()),
        }
        self.journal.store(&entries)
    }

    /// Forgets the issuance under way, once its wrong certificate has been collected again for [`GIVE_UP_AFTER`]. Returns the
    /// pause before another certificate is paid for. `None`: the certificate is collected again.
    ///
    /// The pause grows with the certificates in a row that are never accepted. A wrong template makes every certificate wrong, and
    /// the pause still leaves time before a leaf ends. A new process asks at once, because an operator may have corrected something.
    pub(crate) fn give_up(&self) -> Result<Option<Duration>, JournalError> {
        let mut entries = self.journal.load()?;
        if !self.is_tried_enough(&entries) {
            return Ok(None);
        }
        entries.pending = None;
        entries.given_up = entries.given_up.saturating_add(1);
        self.journal.store(&entries)?;
        let doubled = AFTER_GIVING_UP.saturating_mul(2_u32.saturating_pow((entries.given_up - 1).min(31)));
        Ok(Some(doubled.min(LONGEST_AFTER_GIVING_UP).min(self.validity / 10)))
    }

    fn is_tried_enough(&self, entries: &Entries) -> bool {
        let now = self.clock.now();
        // The issuer may have refused requests for long before it gave the handle.
        let since = |pending: &Pending| pending.named.unwrap_or(pending.begun);
        entries.pending.as_ref().is_none_or(|pending| !is_within(GIVE_UP_AFTER, since(pending), now))
    }

    /// Whether an issuance is under way: begun and not ended.
    #[must_use]
    pub(crate) fn is_under_way(&self) -> bool {
        self.journal.load().is_ok_and(|entries| entries.pending.is_some())
    }

    async fn request(
        &self,
        entries: &mut Entries,
        mut pending: Pending,
        beyond: Option<OffsetDateTime>,
    ) -> Result<CertificateHandle, ObtainError> {
        let signing_algorithm = if let Some(known) = pending.signing_algorithm.clone() {
            known
        } else {
            self.journal.store(entries)?;
            match self.prepare().await {
                Ok((algorithm, ends)) => {
                    pending.ca_ends = ends;
                    pending.signing_algorithm.insert(algorithm).clone()
                }
                Err(error) => return Err(self.give_up_if_permanent(entries, error)?),
            }
        };
        let now = self.clock.now();
        let may_be_known = pending.unheard.is_some_and(|unheard| is_within(TOKEN_HOLDS, unheard, now));
        // A request that is repeated while PCA remembers the token is the same to the byte. The end of validity may be
        // a time, so that time stays too. Later PCA has forgotten the token, and the request has the present time. So
        // has a request whose time lies far ahead because the clock was set back.
        let dated = pending.dated.filter(|dated| is_within(TOKEN_HOLDS, *dated, now)).unwrap_or(now);
        let validity = match self.fitted(pending.ca_ends, dated, beyond.filter(|_| !may_be_known)) {
            Ok(validity) => validity,
            Err(error) => {
                // The next try asks the issuer again: a new certificate of the CA may be installed by then.
                entries.pending = Some(Pending { signing_algorithm: None, ca_ends: None, ..pending });
                self.journal.store(entries)?;
                return Err(error);
            }
        };
        pending.unheard.get_or_insert(now);
        pending.dated = Some(dated);
        pending.validity = Some(in_millis(self.validity));
        entries.pending = Some(pending.clone());
        self.journal.store(entries)?;
        let request = IssueRequest {
            csr_pem: &pending.csr.pem,
            validity,
            now: dated,
            signing_algorithm: &signing_algorithm,
            idempotency_token: &pending.csr.idempotency_token(),
        };
        match self.issuer.request(&request).await {
            Ok(handle) => {
                let named = self.clock.now();
                entries.note_issued(named);
                entries.pending =
                    Some(Pending { handle: Some(handle.clone()), named: Some(named), unheard: None, ..pending });
                self.journal.store_or_keep(entries);
                Ok(handle)
            }
            Err(error) => {
                if error.kind != RemoteErrorKind::Unavailable && !may_be_known {
                    entries.pending = Some(Pending { unheard: None, ..pending });
                    self.journal.store(entries)?;
                }
                Err(self.give_up_if_permanent(entries, error)?)
            }
        }
    }

    /// The signature algorithm of a request, and the end of the CA.
    async fn prepare(&self) -> Result<(String, Option<OffsetDateTime>), RemoteError> {
        let ends = self.issuer.issues_until(self.validity, self.clock.now()).await?;
        Ok((self.issuer.prepare(self.validity).await?, ends))
    }

    /// The validity of a leaf that is requested at `dated` from a CA that ends at `ca_ends`. PCA refuses a leaf that would
    /// outlive its CA (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html>, `Validity`).
    fn fitted(
        &self,
        ca_ends: Option<OffsetDateTime>,
        dated: OffsetDateTime,
        beyond: Option<OffsetDateTime>,
    ) -> Result<Duration, ObtainError> {
        let Some(at) = ca_ends else { return Ok(self.validity) };
        let left = Duration::try_from(at - dated).unwrap_or_default().saturating_sub(BEFORE_THE_CA);
        if left >= self.validity {
            return Ok(self.validity);
        }
        let (issuer, left) = (self.issuer.name(), Duration::from_secs(left.as_secs()));
        if left < SHORTEST {
            return Err(ObtainError::IssuerEnded { issuer, at, now: dated });
        }
        if beyond.is_some_and(|beyond| dated + left <= beyond + BEFORE_THE_CA) {
            return Err(ObtainError::EndsWithIssuer { issuer, at });
        }
        Ok(left)
    }

    /// The longest pause after a failure. No pause is shorter than `shortest`.
    #[must_use]
    pub(crate) fn longest_pause(&self, shortest: Duration) -> Duration {
        let pending = self.journal.load().ok().and_then(|entries| entries.pending);
        let unheard = pending.and_then(|pending| pending.unheard);
        if unheard.is_some_and(|unheard| is_within(TOKEN_HOLDS, unheard, self.clock.now())) {
            shortest.clamp(REPEAT_OFTEN, REPEAT_WITHIN)
        } else {
            REPEAT_WITHIN
        }
    }

    async fn collect(&self, entries: &mut Entries, handle: &CertificateHandle) -> Result<IssuedChain, ObtainError> {
        let deadline = tokio::time::Instant::now() + COLLECT_TIMEOUT;
        let mut pause = FIRST_POLL;
        loop {
            match self.issuer.collect(handle).await {
                Ok(Some(chain)) => return Ok(chain),
                Ok(None) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
                    pause = (pause * 2).min(LONGEST_POLL);
                }
                Ok(None) => return Err(ObtainError::InProgress { issuer: self.issuer.name() }),
                Err(error) => return Err(self.give_up_if_permanent(entries, error)?),
            }
        }
    }

    /// Forgets an issuance that can never succeed, so that the next pass begins another issuance, under the cap. All
    /// other issuances are resumed.
    fn give_up_if_permanent(&self, entries: &mut Entries, error: RemoteError) -> Result<ObtainError, JournalError> {
        let is_over = match error.kind {
            RemoteErrorKind::Permanent => true,
            RemoteErrorKind::Absent => self.is_tried_enough(entries),
            _ => false,
        };
        if is_over {
            entries.pending = None;
            self.journal.store(entries)?;
        }
        Ok(error.into())
    }

    fn check_cap(&self, entries: &Entries) -> Result<(), ObtainError> {
        let cap = self.cap();
        let issued = entries.issued_in_a_day(self.clock.now());
        if issued < cap {
            return Ok(());
        }
        Err(ObtainError::Capped { issued, cap, journal: self.journal.path().to_owned() })
    }

    /// How many issuances a day the schedule needs on the node that renews earliest, and how many are to spare.
    fn cap(&self) -> usize {
        let scheduled = Duration::from_hours(24).as_millis() / self.renewed_after.as_millis().max(1);
        usize::try_from(scheduled).unwrap_or(usize::MAX).saturating_add(self.issuer.spare_issuances_a_day() as usize)
    }
}

fn in_millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

/// Whether `then` is less than `length` from `now`, on either side: the clock may have been set back.
pub(crate) fn is_within(length: Duration, then: OffsetDateTime, now: OffsetDateTime) -> bool {
    (now - then).unsigned_abs() < length
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use time::macros::datetime;

    use super::local::Local;
    use super::*;
    use crate::schedule::{backoff, due, earliest};
    use crate::x509::leaf::Leaf;
    use crate::x509::san::Sans;

    const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);

    fn node() -> Node {
        let address = [10, 0, 1, 5].into();
        let sans = Sans { ips: [address].into(), ..Sans::default() };
        Node {
            name: "n1".into(),
            instance_id: None,
            region: None,
            address,
            sans,
            further_addresses: [].into(),
            placement: crate::node::Placement::default(),
        }
    }

    fn issuance(state: &std::path::Path, issuer: Arc<dyn Issuer>, clock: Clock) -> Issuance {
        let journal = Journal::of(state);
        let (validity, algorithm) = (Duration::from_hours(1), KeyAlgorithm::EcdsaP256);
        Issuance { issuer, journal, clock, validity, renewed_after: earliest(validity, 0.67), algorithm }
    }

    #[tokio::test]
    async fn invariant_11_what_is_under_way_is_resumed_with_its_own_issuer_and_with_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::starting_at(NOW);
        let at = |ca: &str| {
            let issuer = Local::new(directory.path().join(ca), clock);
            issuance(directory.path(), Arc::new(issuer), clock)
        };
        let first = at("one").obtain(&node(), None, &Progress::default()).await.unwrap();
        let again = at("one").obtain(&node(), None, &Progress::default()).await.unwrap();
        assert_eq!(again.chain, first.chain);
        let other = at("two").obtain(&node(), None, &Progress::default()).await.unwrap();
        assert_eq!(other.chain.chain_pem, at("two").issuer.ca_pem().await.unwrap());
        assert!(other.csr.key != first.csr.key);
        // Agents before the `issuer` field wrote such a journal.
        let mut entries = at("two").journal.load().unwrap();
        entries.pending.as_mut().unwrap().issuer = None;
        at("two").journal.store(&entries).unwrap();
        let resumed = at("two").obtain(&node(), None, &Progress::default()).await.unwrap();
        assert_eq!(resumed.chain, other.chain);
    }

    /// An issuer that records the time and token of each request, and then refuses it or never answers.
    #[derive(Default)]
    struct Away {
        prepared: AtomicU32,
        asked: Mutex<Vec<(OffsetDateTime, String)>>,
        refusal: Mutex<Option<RemoteErrorKind>>,
        is_silent: AtomicBool,
    }

    fn away() -> RemoteError {
        RemoteError::new(RemoteErrorKind::Unavailable, "IssueCertificate on away", "HTTP 503", "wait")
    }

    #[async_trait]
    impl Issuer for Away {
        fn name(&self) -> String {
            "away".into()
        }

        async fn prepare(&self, _: Duration) -> Result<String, RemoteError> {
            self.prepared.fetch_add(1, Ordering::Relaxed);
            Ok("SHA256WITHECDSA".into())
        }

        async fn request(&self, request: &IssueRequest<'_>) -> Result<CertificateHandle, RemoteError> {
            assert_eq!(request.signing_algorithm, "SHA256WITHECDSA");
            self.asked.lock().unwrap().push((request.now, request.idempotency_token.into()));
            if self.is_silent.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            let kind = self.refusal.lock().unwrap().unwrap_or(RemoteErrorKind::Unavailable);
            Err(RemoteError { kind, ..away() })
        }

        async fn collect(&self, _: &CertificateHandle) -> Result<Option<IssuedChain>, RemoteError> {
            Err(away())
        }

        async fn ca_pem(&self) -> Result<String, RemoteError> {
            Err(away())
        }

        fn spare_issuances_a_day(&self) -> u32 {
            12
        }
    }

    #[test]
    fn the_cap_leaves_every_node_what_its_schedule_needs() {
        let mut issuance = issuance("unused".as_ref(), Arc::new(Away::default()), Clock::System);
        for (validity, at) in [(1, 0.3), (1, 0.67), (2, 0.1), (7 * 24, 0.67)] {
            issuance.validity = Duration::from_hours(validity);
            issuance.renewed_after = earliest(issuance.validity, at);
            let (serial, issuer, sha256) = (String::new(), String::new(), String::new());
            let not_after = NOW + issuance.validity;
            let leaf = Leaf { der: Vec::new(), serial, issuer, not_before: NOW, not_after, sans: node().sans, sha256 };
            let first = |seed: u32| due(&leaf, issuance.validity, at, &seed.to_string()) - NOW;
            let shortest = (0..200).map(first).min().unwrap();
            let needed = (time::Duration::DAY / shortest).ceil();
            let cap = f64::from(u32::try_from(issuance.cap()).unwrap());
            assert!((needed..=needed + 13.0).contains(&cap), "{validity} h, {at}: {cap}, and {needed} are needed");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn invariant_11_a_request_is_repeated_to_the_byte_for_as_long_as_its_token_holds() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::steppable(NOW);
        let issuer = Arc::new(Away::default());
        let issuance = issuance(directory.path(), Arc::clone(&issuer) as Arc<dyn Issuer>, clock);
        for minutes in [0, 2, 2, 6, -30] {
            clock.step(time::Duration::minutes(minutes));
            issuance.obtain(&node(), None, &Progress::default()).await.unwrap_err();
        }
        let asked = issuer.asked.lock().unwrap();
        assert!(asked.iter().all(|(_, token)| *token == asked[0].1));
        assert_eq!((asked[1].0, asked[2].0), (asked[0].0, asked[0].0));
        // The old request, or a request at another time, could only give a lifetime that is too short or too long.
        assert!(asked[3].0 >= NOW + Duration::from_mins(10), "{asked:?}");
        assert!(asked[4].0 < NOW - Duration::from_mins(19), "{asked:?}");
    }

    /// An issuer that refuses each request until a time. It doesn't know a certificate when it is asked for it first.
    struct Late {
        clock: Clock,
        from: OffsetDateTime,
        given: AtomicU32,
        asked: AtomicU32,
        /// Whether the disk is full as the handle arrives.
        fills_disk: bool,
    }

    #[async_trait]
    impl Issuer for Late {
        fn name(&self) -> String {
            "late".into()
        }

        async fn prepare(&self, _: Duration) -> Result<String, RemoteError> {
            Ok("SHA256WITHECDSA".into())
        }

        async fn request(&self, _: &IssueRequest<'_>) -> Result<CertificateHandle, RemoteError> {
            if self.clock.now() < self.from {
                return Err(RemoteError::new(RemoteErrorKind::Throttled, "IssueCertificate on late", "400", "wait"));
            }
            if self.fills_disk {
                durable::fault::plan(Some((0, durable::fault::Fault::DiskFull)));
            }
            let number = self.given.fetch_add(1, Ordering::Relaxed) + 1;
            Ok(CertificateHandle(format!("arn {number}")))
        }

        async fn collect(&self, handle: &CertificateHandle) -> Result<Option<IssuedChain>, RemoteError> {
            if self.asked.fetch_add(1, Ordering::Relaxed) == 0 {
                return Err(RemoteError::new(RemoteErrorKind::Absent, "GetCertificate on late", "400", "wait"));
            }
            Ok(Some(IssuedChain { leaf_pem: handle.0.clone(), chain_pem: String::new() }))
        }

        async fn ca_pem(&self) -> Result<String, RemoteError> {
            Err(away())
        }

        fn spare_issuances_a_day(&self) -> u32 {
            12
        }
    }

    #[tokio::test(start_paused = true)]
    async fn invariant_11_a_certificate_that_was_refused_for_long_and_is_unknown_at_first_is_collected_and_not_paid_again()
     {
        for minutes in [0, 6, 40] {
            let (directory, clock) = (tempfile::tempdir().unwrap(), Clock::starting_at(NOW));
            let from = NOW + Duration::from_mins(minutes);
            let late = Arc::new(Late { clock, from, given: 0.into(), asked: 0.into(), fills_disk: false });
            let issuance = issuance(directory.path(), Arc::clone(&late) as Arc<dyn Issuer>, clock);
            let mut tries = 0;
            let found = loop {
                match issuance.obtain(&node(), None, &Progress::default()).await {
                    Ok(found) => break found,
                    Err(_) => clock.sleep_until(clock.now() + Duration::from_secs(30)).await,
                }
                tries += 1;
                assert!(tries < 100);
            };
            assert_eq!((found.chain.leaf_pem.as_str(), late.given.load(Ordering::Relaxed)), ("arn 1", 1), "{minutes}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn invariant_11_a_certificate_whose_name_meets_a_full_disk_is_collected_and_not_paid_again() {
        let (directory, clock) = (tempfile::tempdir().unwrap(), Clock::starting_at(NOW));
        let late = Late { clock, from: NOW, given: 0.into(), asked: 0.into(), fills_disk: true };
        let late = Arc::new(late);
        let issuance = issuance(directory.path(), Arc::clone(&late) as Arc<dyn Issuer>, clock);
        issuance.obtain(&node(), None, &Progress::default()).await.unwrap_err();
        // PCA has forgotten the token by then.
        clock.sleep_until(NOW + Duration::from_mins(6)).await;
        let found = issuance.obtain(&node(), None, &Progress::default()).await.unwrap();
        assert_eq!((found.chain.leaf_pem.as_str(), late.given.load(Ordering::Relaxed)), ("arn 1", 1));
        let counted = |journal: &Journal| journal.load().unwrap().issued_in_a_day(clock.now());
        assert_eq!((counted(&issuance.journal), counted(&Journal::of(directory.path()))), (1, 0));
        issuance.note_valid_from(NOW).unwrap();
        assert_eq!(counted(&Journal::of(directory.path())), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn invariant_11_another_process_repeats_a_request_by_one_call() {
        let directory = tempfile::tempdir().unwrap();
        let issuer = Arc::new(Away::default());
        for _process in 0..3 {
            let issuance = issuance(directory.path(), Arc::clone(&issuer) as Arc<dyn Issuer>, Clock::starting_at(NOW));
            issuance.obtain(&node(), None, &Progress::default()).await.unwrap_err();
        }
        assert_eq!((issuer.prepared.load(Ordering::Relaxed), issuer.asked.lock().unwrap().len()), (1, 3));
    }

    /// Makes passes as the reconciler does, until `until`. Returns the number of requests in these passes.
    async fn fail_until(until: Duration, issuance: &Issuance, clock: Clock, asked: impl Fn() -> usize) -> usize {
        let (before, shortest) = (asked(), Duration::from_secs(5));
        for failures in 1.. {
            issuance.obtain(&node(), None, &Progress::default()).await.unwrap_err();
            let longest = Duration::from_mins(10).min(issuance.longest_pause(shortest));
            clock.sleep_until(clock.now() + backoff(failures, shortest, longest, fastrand::f64())).await;
            if clock.now() >= NOW + until {
                break;
            }
        }
        asked() - before
    }

    #[tokio::test(start_paused = true)]
    async fn invariant_11_a_request_whose_answer_was_lost_is_repeated_often_while_its_token_holds() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::starting_at(NOW);
        let issuer = Arc::new(Away::default());
        // The lifetime is so long that the key stays the same throughout.
        let validity = Duration::from_hours(24);
        let at = || {
            let issuer = Arc::clone(&issuer) as Arc<dyn Issuer>;
            Issuance { validity, ..issuance(directory.path(), issuer, clock) }
        };
        let minutes = |minutes| Duration::from_mins(minutes);
        let asked = || issuer.asked.lock().unwrap().len();
        // No answer for an hour.
        let often = fail_until(minutes(5), &at(), clock, asked).await;
        let seldom = fail_until(minutes(60), &at(), clock, asked).await;
        assert!((20..50).contains(&often) && (14..40).contains(&seldom), "{often}, {seldom}");
        // Refused, and then the process ends while it waits for an answer.
        *issuer.refusal.lock().unwrap() = Some(RemoteErrorKind::Throttled);
        let refused = fail_until(minutes(120), &at(), clock, asked).await;
        assert!((14..40).contains(&refused), "{refused}");
        issuer.is_silent.store(true, Ordering::Relaxed);
        let ended =
            tokio::time::timeout(Duration::from_secs(1), at().obtain(&node(), None, &Progress::default())).await;
        assert!(ended.is_err());
        issuer.is_silent.store(false, Ordering::Relaxed);
        let often = fail_until(minutes(130), &at(), clock, asked).await;
        assert!(often >= 20, "{often}");
    }

    /// An issuer whose CA ends, with the time and the validity of each request. `is_lost` loses each answer.
    struct Ending {
        ends: Mutex<OffsetDateTime>,
        asked: Mutex<Vec<(OffsetDateTime, Duration)>>,
        is_lost: AtomicBool,
    }

    #[async_trait]
    impl Issuer for Ending {
        fn name(&self) -> String {
            "the ending CA".into()
        }

        async fn prepare(&self, _: Duration) -> Result<String, RemoteError> {
            Ok("SHA256WITHECDSA".into())
        }

        async fn issues_until(&self, _: Duration, _: OffsetDateTime) -> Result<Option<OffsetDateTime>, RemoteError> {
            Ok(Some(*self.ends.lock().unwrap()))
        }

        async fn request(&self, request: &IssueRequest<'_>) -> Result<CertificateHandle, RemoteError> {
            self.asked.lock().unwrap().push((request.now, request.validity));
            if self.is_lost.load(Ordering::Relaxed) { Err(away()) } else { Ok(CertificateHandle("arn".into())) }
        }

        async fn collect(&self, _: &CertificateHandle) -> Result<Option<IssuedChain>, RemoteError> {
            Ok(Some(IssuedChain { leaf_pem: String::new(), chain_pem: String::new() }))
        }

        async fn ca_pem(&self) -> Result<String, RemoteError> {
            Err(away())
        }

        fn spare_issuances_a_day(&self) -> u32 {
            12
        }
    }

    /// What an issuer with a CA of so many minutes is asked for by a node that asks for leaves of an hour.
    async fn asked_of_a_ca_of(minutes: i64, beyond: Option<i64>) -> Result<Duration, ObtainError> {
        let directory = tempfile::tempdir().unwrap();
        let at = |minutes| NOW + time::Duration::minutes(minutes);
        let ends = Mutex::new(at(minutes));
        let issuer = Arc::new(Ending { ends, asked: Mutex::default(), is_lost: AtomicBool::new(false) });
        let issuance = issuance(directory.path(), Arc::clone(&issuer) as Arc<dyn Issuer>, Clock::starting_at(NOW));
        let obtained = issuance.obtain(&node(), beyond.map(at), &Progress::default()).await;
        let asked = issuer.asked.lock().unwrap().clone();
        assert_eq!(asked.len(), usize::from(obtained.is_ok()), "a request that is refused here is not sent");
        obtained.map(|_| asked[0].1)
    }

    #[tokio::test(start_paused = true)]
    async fn a_leaf_ends_before_its_ca_and_nothing_is_asked_for_that_the_ca_refuses_or_that_gains_nothing() {
        let minutes = Duration::from_mins;
        for (ca, beyond, expected) in [
            (6000, None, minutes(60)),
            (61, None, minutes(60)),
            (60, None, minutes(59)),
            (30, None, minutes(29)),
            (2, None, minutes(1)),
            (30, Some(20), minutes(29)),
            (6000, Some(5999), minutes(60)),
        ] {
            assert_eq!(asked_of_a_ca_of(ca, beyond).await.unwrap(), expected, "{ca} {beyond:?}");
        }
        for ca in [1, 0, -60] {
            let error = asked_of_a_ca_of(ca, None).await.unwrap_err();
            assert!(matches!(error, ObtainError::IssuerEnded { .. }), "{ca}: {error}");
            assert!(error.to_string().contains("another CA in ca_arn"), "{error}");
            assert_eq!(crate::reason::Reason::from(&error).code().as_str(), "issuer_ended");
        }
        let error = asked_of_a_ca_of(30, Some(29)).await.unwrap_err();
        assert!(matches!(error, ObtainError::EndsWithIssuer { .. }), "{error}");
        assert_eq!(crate::reason::Reason::from(&error).code().as_str(), "issuer_ends");
    }

    #[tokio::test(start_paused = true)]
    async fn invariant_11_a_request_that_its_ca_cuts_short_is_repeated_to_the_byte_and_a_new_ca_certificate_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let hour = time::Duration::HOUR;
        let (ends, is_lost) = (Mutex::new(NOW + hour / 2), AtomicBool::new(true));
        let issuer = Arc::new(Ending { ends, asked: Mutex::default(), is_lost });
        let at = |now| issuance(directory.path(), Arc::clone(&issuer) as Arc<dyn Issuer>, Clock::starting_at(now));
        let minute = |minutes| NOW + time::Duration::minutes(minutes);
        for now in [minute(0), minute(2)] {
            at(now).obtain(&node(), None, &Progress::default()).await.unwrap_err();
        }
        let first = (NOW, Duration::from_mins(29));
        assert_eq!(*issuer.asked.lock().unwrap(), [first, first]);
        // The CA has ended by its old certificate, and gets a new certificate.
        let ended = at(minute(40)).obtain(&node(), None, &Progress::default()).await.unwrap_err();
        assert!(matches!(ended, ObtainError::IssuerEnded { .. }), "{ended}");
        *issuer.ends.lock().unwrap() = NOW + hour * 100;
        at(minute(41)).obtain(&node(), None, &Progress::default()).await.unwrap_err();
        assert_eq!(issuer.asked.lock().unwrap().last(), Some(&(minute(41), Duration::from_hours(1))));
    }
}
