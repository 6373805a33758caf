//! Issuance: the issuer seam, and the journal that makes every certificate paid for once (invariant 11).
//!
//! ```text
//! key + CSR ─► journal ─► prepare ─► journal ─► request ─► journal the certificate's ARN ─► collect ─► IssuedChain
//! ```
//!
//! Whatever happens between two of these steps, the next pass reads the journal and goes on from there: with the ARN it
//! collects, without it it repeats the same request with the same idempotency token.

pub mod acm_pca;
pub mod journal;
pub mod local;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use self::journal::{Entries, Journal, JournalError, Pending};
use crate::clock::Clock;
use crate::node::Node;
use crate::progress::{Progress, Step};
use crate::x509::csr::{Csr, CsrError, KeyAlgorithm};

/// How the issuer names a certificate that was requested: PCA's certificate ARN.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct CertificateHandle(pub String);

/// The issuer's answer, in PEM and not read yet. [`crate::trust::TrustBundle::verify`] reads it, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedChain {
    /// The leaf.
    pub leaf_pem: String,
    /// The CAs above the leaf, with or without the root.
    pub chain_pem: String,
}

/// What is asked of an issuer.
#[derive(Clone, Debug)]
pub struct IssueRequest<'a> {
    /// PKCS#10 in PEM.
    pub csr_pem: &'a str,
    /// How long the leaf is to live.
    pub validity: Duration,
    /// The wall-clock time of the request, the same for a repeated one.
    pub now: OffsetDateTime,
    /// What [`Issuer::prepare`] returned.
    pub signing_algorithm: &'a str,
    /// The same for a repeated request.
    pub idempotency_token: &'a str,
}

/// What an issuer's refusal means for the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IssueErrorKind {
    /// The certificate isn't there yet: ask again for the same one.
    InProgress,
    /// Too many requests: slow down.
    Throttled,
    /// A quota is used up: waiting alone may not help, more requests never do.
    Quota,
    /// The credentials don't allow it.
    Denied,
    /// The network, a time-out or the service failed: the same request may succeed later.
    Unavailable,
    /// The issuer knows no such certificate, or won't give it. It may not know it yet, so it is asked for again for a while.
    Absent,
    /// This request can never succeed, and neither can waiting for its certificate.
    Permanent,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
#[error("{call} on {issuer}: {reason}; {remedy}")]
pub struct IssueError {
    /// What it means for the next step.
    pub kind: IssueErrorKind,
    /// The call: `IssueCertificate`, `GetCertificate` …
    pub call: &'static str,
    /// Who was asked.
    pub issuer: String,
    /// What came back.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
    /// The cause below it, if there is one.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Who signs.
#[async_trait]
pub trait Issuer: Send + Sync {
    /// Which CA it is: no other knows the certificates that this one was asked for.
    fn name(&self) -> String;

    /// Looks whether the issuer can do what it will be asked for, and returns the signature algorithm that its requests
    /// name. That is kept with the request: a repeated one takes one call, which is then all that has to get through.
    async fn prepare(&self, validity: Duration) -> Result<String, IssueError>;

    /// Asks for a certificate. The answer names it; it may not exist yet.
    async fn request(&self, request: &IssueRequest<'_>) -> Result<CertificateHandle, IssueError>;

    /// Fetches a certificate that was asked for. [`IssueErrorKind::InProgress`] until it exists.
    async fn collect(&self, handle: &CertificateHandle) -> Result<IssuedChain, IssueError>;

    /// The CA's own certificate, and the chain above it, in PEM: what `trust.kind = "issuer"` trusts.
    async fn ca_pem(&self) -> Result<String, IssueError>;

    /// How many certificates a day this issuer may be asked for beyond those that the schedule needs: what an accident
    /// may cost at most.
    fn spare_issuances_a_day(&self) -> u32;
}

/// How long one pass waits for a certificate before it leaves it to the next one.
const COLLECT_TIMEOUT: Duration = Duration::from_mins(1);
/// How long PCA remembers a token, and takes a repeated request for the same one
/// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html>).
const TOKEN_HOLDS: Duration = Duration::from_mins(5);
/// How long a certificate that the issuer doesn't know, or that isn't what was asked for, is collected again before
/// another one is paid for: a wrong answer may come from something on the way.
const GIVE_UP_AFTER: Duration = TOKEN_HOLDS;
/// PCA signs within some tens of milliseconds as a rule; the SDK's own waiter would begin at a second.
const FIRST_POLL: Duration = Duration::from_millis(40);
const LONGEST_POLL: Duration = Duration::from_secs(2);

/// The longest pause before a request is repeated: an answer that was lost may have been a certificate, which the same request
/// names without another payment for as long as PCA remembers its token.
const REPEAT_WITHIN: Duration = Duration::from_mins(4);
/// And for the five minutes after an answer was lost, as most repeats may be refused.
const REPEAT_OFTEN: Duration = Duration::from_secs(15);

/// A certificate that was issued for a key of ours, and not looked at yet.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The key and what was asked.
    pub csr: Csr,
    /// What came back.
    pub chain: IssuedChain,
}

/// Why a pass ends without a certificate.
#[derive(Debug, thiserror::Error)]
pub enum ObtainError {
    /// No key or request could be made.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The journal is not usable, so nothing may be paid for.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The issuer refused or failed.
    #[error(transparent)]
    Issuer(#[from] IssueError),
    /// The cap holds.
    #[error(
        "{issued} certificates were issued in the last 24 hours, and the cap is {cap}: none is asked for until the \
         oldest is a day old; find out what asked for them, then, if it must be, remove {}", .journal.display()
    )]
    Capped {
        /// How many.
        issued: usize,
        /// Of how many at most.
        cap: usize,
        /// The journal's file.
        journal: PathBuf,
    },
    /// A task of the runtime was cancelled: the agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

/// Issuance through the journal: the one way to a certificate.
pub struct Issuance {
    /// Who signs.
    pub issuer: Arc<dyn Issuer>,
    /// What is under way.
    pub journal: Journal,
    /// What the time is.
    pub clock: Clock,
    /// How long a leaf is to live.
    pub validity: Duration,
    /// How soon the schedule may renew it (`schedule::earliest`): the cap leaves that much.
    pub renewed_after: Duration,
    /// The leaf's key.
    pub algorithm: KeyAlgorithm,
}

impl Issuance {
    /// Resumes the issuance that is under way, or begins one. Call [`Issuance::settle`] when the certificate is safe in
    /// a generation, or when it can never be.
    pub async fn obtain(&self, node: &Node, progress: &Progress) -> Result<Issued, ObtainError> {
        let mut entries = self.journal.load()?;
        let now = self.clock.now();
        let issuer = self.issuer.name();
        let fits = |pending: &Pending| {
            // An agent that didn't note the issuer had this one, as far as can be told.
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
            let csr = tokio::task::spawn_blocking(move || Csr::generate(&name, &sans, algorithm))
                .await
                .map_err(|_cancelled| ObtainError::Stopping)??;
            progress.report(Step::KeyMade { algorithm: self.algorithm });
            Pending { issuer: Some(issuer), ..Pending::of(csr, now) }
        };
        let csr = pending.csr.clone();
        entries.pending = Some(pending.clone());
        let handle = match pending.handle.clone() {
            Some(handle) => handle,
            None => self.request(&mut entries, pending).await?,
        };
        progress.report(Step::Requested { handle: handle.0.clone() });
        let chain = self.collect(&mut entries, &handle).await?;
        Ok(Issued { csr, chain })
    }

    /// Forgets the issuance that is under way: its certificate is in a generation, or is good for nothing.
    pub fn settle(&self) -> Result<(), JournalError> {
        let mut entries = self.journal.load()?;
        entries.pending = None;
        self.journal.store(&entries)
    }

    /// Notes that the certificate of the issuance that is under way is valid from then only, where this machine's clock is
    /// behind: once that is set, it is still to be collected, not taken for one of long ago.
    pub fn note_valid_from(&self, time: OffsetDateTime) -> Result<(), JournalError> {
        let mut entries = self.journal.load()?;
        match &mut entries.pending {
            Some(pending) if pending.valid_from != Some(time) => pending.valid_from = Some(time),
            _ => return Ok(()),
        }
        self.journal.store(&entries)
    }

    /// Forgets the issuance that is under way, whose certificate isn't what was asked for, once it has been collected again
    /// for a while.
    pub fn give_up(&self) -> Result<(), JournalError> {
        if self.is_tried_enough(&self.journal.load()?) { self.settle() } else { Ok(()) }
    }

    fn is_tried_enough(&self, entries: &Entries) -> bool {
        let now = self.clock.now();
        entries.pending.as_ref().is_none_or(|pending| !is_within(GIVE_UP_AFTER, pending.begun, now))
    }

    /// Whether an issuance was begun that has not been settled.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.journal.load().is_ok_and(|entries| entries.pending.is_some())
    }

    async fn request(&self, entries: &mut Entries, mut pending: Pending) -> Result<CertificateHandle, ObtainError> {
        let signing_algorithm = if let Some(known) = pending.signing_algorithm.clone() {
            known
        } else {
            self.journal.store(entries)?;
            match self.issuer.prepare(self.validity).await {
                Ok(algorithm) => pending.signing_algorithm.insert(algorithm).clone(),
                Err(error) => return Err(self.give_up_if_permanent(entries, error)?),
            }
        };
        let now = self.clock.now();
        let may_be_known = pending.unheard.is_some_and(|unheard| is_within(TOKEN_HOLDS, unheard, now));
        pending.unheard.get_or_insert(now);
        // What is repeated while the token holds is to be the same to the byte, its end too where that is asked for as a
        // time. Longer ago the token is forgotten, or the clock was another.
        let dated = pending.dated.filter(|dated| is_within(TOKEN_HOLDS, *dated, now)).unwrap_or(now);
        pending.dated = Some(dated);
        entries.pending = Some(pending.clone());
        self.journal.store(entries)?;
        let request = IssueRequest {
            csr_pem: &pending.csr.pem,
            validity: self.validity,
            now: dated,
            signing_algorithm: &signing_algorithm,
            idempotency_token: &pending.csr.idempotency_token(),
        };
        match self.issuer.request(&request).await {
            Ok(handle) => {
                entries.note_issued(self.clock.now());
                entries.pending = Some(Pending { handle: Some(handle.clone()), unheard: None, ..pending });
                self.journal.store(entries)?;
                Ok(handle)
            }
            Err(error) => {
                if error.kind != IssueErrorKind::Unavailable && !may_be_known {
                    entries.pending = Some(Pending { unheard: None, ..pending });
                    self.journal.store(entries)?;
                }
                Err(self.give_up_if_permanent(entries, error)?)
            }
        }
    }

    /// The longest pause after a failure, where none is to be shorter than `shortest`.
    #[must_use]
    pub fn longest_pause(&self, shortest: Duration) -> Duration {
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
                Ok(chain) => return Ok(chain),
                Err(error) if error.kind == IssueErrorKind::InProgress && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
                    pause = (pause * 2).min(LONGEST_POLL);
                }
                Err(error) => return Err(self.give_up_if_permanent(entries, error)?),
            }
        }
    }

    /// What can never succeed is forgotten, so that the next pass begins anew, under the cap; all else is resumed.
    fn give_up_if_permanent(&self, entries: &mut Entries, error: IssueError) -> Result<ObtainError, JournalError> {
        let is_over = match error.kind {
            IssueErrorKind::Permanent => true,
            IssueErrorKind::Absent => self.is_tried_enough(entries),
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

    /// What the schedule needs in a day of a node that renews as early as any, and what is to spare.
    fn cap(&self) -> usize {
        let scheduled = Duration::from_hours(24).as_millis() / self.renewed_after.as_millis().max(1);
        usize::try_from(scheduled).unwrap_or(usize::MAX).saturating_add(self.issuer.spare_issuances_a_day() as usize)
    }
}

/// Whether it was so short a time ago, or is so short a time ahead: the clock may have been set back meanwhile.
fn is_within(length: Duration, then: OffsetDateTime, now: OffsetDateTime) -> bool {
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
        Node { name: "n1".into(), instance_id: None, region: None, address, sans }
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
        let first = at("one").obtain(&node(), &Progress::default()).await.unwrap();
        let again = at("one").obtain(&node(), &Progress::default()).await.unwrap();
        assert_eq!(again.chain, first.chain);
        let other = at("two").obtain(&node(), &Progress::default()).await.unwrap();
        assert_eq!(other.chain.chain_pem, at("two").issuer.ca_pem().await.unwrap());
        assert!(other.csr.key != first.csr.key);
        // As an agent wrote it that noted no issuer.
        let mut entries = at("two").journal.load().unwrap();
        entries.pending.as_mut().unwrap().issuer = None;
        at("two").journal.store(&entries).unwrap();
        let resumed = at("two").obtain(&node(), &Progress::default()).await.unwrap();
        assert_eq!(resumed.chain, other.chain);
    }

    /// Notes the time and the token of each request, and answers none, or refuses it.
    #[derive(Default)]
    struct Away {
        prepared: AtomicU32,
        asked: Mutex<Vec<(OffsetDateTime, String)>>,
        refusal: Mutex<Option<IssueErrorKind>>,
        is_silent: AtomicBool,
    }

    fn away() -> IssueError {
        let (issuer, reason, remedy) = ("away".into(), "HTTP 503".into(), "wait".into());
        IssueError { kind: IssueErrorKind::Unavailable, call: "IssueCertificate", issuer, reason, remedy, source: None }
    }

    #[async_trait]
    impl Issuer for Away {
        fn name(&self) -> String {
            "away".into()
        }

        async fn prepare(&self, _: Duration) -> Result<String, IssueError> {
            self.prepared.fetch_add(1, Ordering::Relaxed);
            Ok("SHA256WITHECDSA".into())
        }

        async fn request(&self, request: &IssueRequest<'_>) -> Result<CertificateHandle, IssueError> {
            assert_eq!(request.signing_algorithm, "SHA256WITHECDSA");
            self.asked.lock().unwrap().push((request.now, request.idempotency_token.into()));
            if self.is_silent.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            let kind = self.refusal.lock().unwrap().unwrap_or(IssueErrorKind::Unavailable);
            Err(IssueError { kind, ..away() })
        }

        async fn collect(&self, _: &CertificateHandle) -> Result<IssuedChain, IssueError> {
            Err(away())
        }

        async fn ca_pem(&self) -> Result<String, IssueError> {
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
            issuance.obtain(&node(), &Progress::default()).await.unwrap_err();
        }
        let asked = issuer.asked.lock().unwrap();
        assert!(asked.iter().all(|(_, token)| *token == asked[0].1));
        assert_eq!((asked[1].0, asked[2].0), (asked[0].0, asked[0].0));
        // Of a request that old, or of another time, nothing may come but a life that is too short or too long.
        assert!(asked[3].0 >= NOW + Duration::from_mins(10), "{asked:?}");
        assert!(asked[4].0 < NOW - Duration::from_mins(19), "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn invariant_11_another_process_repeats_a_request_by_one_call() {
        let directory = tempfile::tempdir().unwrap();
        let issuer = Arc::new(Away::default());
        for _process in 0..3 {
            let issuance = issuance(directory.path(), Arc::clone(&issuer) as Arc<dyn Issuer>, Clock::starting_at(NOW));
            issuance.obtain(&node(), &Progress::default()).await.unwrap_err();
        }
        assert_eq!((issuer.prepared.load(Ordering::Relaxed), issuer.asked.lock().unwrap().len()), (1, 3));
    }

    /// Passes as the reconciler makes them, until `until`; what was asked in them.
    async fn fail_until(until: Duration, issuance: &Issuance, clock: Clock, asked: impl Fn() -> usize) -> usize {
        let (before, shortest) = (asked(), Duration::from_secs(5));
        for failures in 1.. {
            issuance.obtain(&node(), &Progress::default()).await.unwrap_err();
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
        // So long that the key is the same all the time.
        let validity = Duration::from_hours(24);
        let at = || {
            let issuer = Arc::clone(&issuer) as Arc<dyn Issuer>;
            Issuance { validity, ..issuance(directory.path(), issuer, clock) }
        };
        let minutes = |minutes| Duration::from_mins(minutes);
        let asked = || issuer.asked.lock().unwrap().len();
        // No answer at all, for an hour.
        let often = fail_until(minutes(5), &at(), clock, asked).await;
        let seldom = fail_until(minutes(60), &at(), clock, asked).await;
        assert!((20..50).contains(&often) && (14..40).contains(&seldom), "{often}, {seldom}");
        // Refused, and then the process ends while it waits for an answer.
        *issuer.refusal.lock().unwrap() = Some(IssueErrorKind::Throttled);
        let refused = fail_until(minutes(120), &at(), clock, asked).await;
        assert!((14..40).contains(&refused), "{refused}");
        issuer.is_silent.store(true, Ordering::Relaxed);
        let ended = tokio::time::timeout(Duration::from_secs(1), at().obtain(&node(), &Progress::default())).await;
        assert!(ended.is_err());
        issuer.is_silent.store(false, Ordering::Relaxed);
        let often = fail_until(minutes(130), &at(), clock, asked).await;
        assert!(often >= 20, "{often}");
    }
}
