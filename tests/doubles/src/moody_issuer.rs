//! An issuer that signs for real, and has the moods of AWS Private CA.
//!
//! Another issuer behind the moody issuer signs. The reconciler's tests use the embedded CA. The simulation uses the
//! double of Private CA, with its quotas and tokens. The moods follow Private CA's API pages:
//!
//! - GetCertificate answers `RequestInProgressException` until the certificate exists
//!   (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_GetCertificate.html>).
//! - Every call can be throttled or denied, or can find no service
//!   (<https://docs.aws.amazon.com/privateca/latest/APIReference/CommonErrors.html>).
//! - The answer to IssueCertificate can be lost after the certificate is paid for. The same request with the same token
//!   returns the same certificate for five minutes
//!   (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html>).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nats_tls_agent::clock::Clock;
use nats_tls_agent::error::{RemoteError, RemoteErrorKind};
use nats_tls_agent::issue::{CertificateHandle, IssueRequest, IssuedChain, Issuer};

/// A service's treatment of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mood {
    /// The service can't be reached, or answers 503.
    Away,
    /// A policy is wrong.
    Denied,
    /// Somebody else in the account uses up the quota.
    Throttled,
    /// Some certificates are issued, but the answer with their ARN is lost.
    Lossy,
    /// The certificate doesn't exist yet.
    InProgress,
    /// GetCertificate answers with this chain in place of the requested chain.
    Mistaken(IssuedChain),
}

/// A service's refusal, and its meaning for the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error's code on the wire.
    pub code: &'static str,
    /// The service's message.
    pub message: &'static str,
    /// The meaning for the agent's next step.
    pub kind: RemoteErrorKind,
}

/// The refusal that stands for a lost answer, for which the SDK waits in vain.
pub const LOST: Refusal =
    Refusal { code: "RequestTimeout", message: "the answer was lost", kind: RemoteErrorKind::Unavailable };

impl Mood {
    /// The refusal in this mood. `None`: the service accepts the call.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        let (code, message, kind) = match self {
            Self::Away => ("ServiceUnavailable", "away", RemoteErrorKind::Unavailable),
            Self::Denied => ("AccessDeniedException", "a policy is wrong", RemoteErrorKind::Denied),
            Self::Throttled => ("ThrottlingException", "Rate exceeded", RemoteErrorKind::Throttled),
            Self::InProgress | Self::Lossy | Self::Mistaken(_) => return None,
        };
        Some(Refusal { code, message, kind })
    }
}

/// A call of an issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`Issuer::prepare`].
    Prepare,
    /// [`Issuer::request`].
    Request,
    /// [`Issuer::collect`].
    Collect,
}

impl Call {
    /// The name that a refusal shows. Preparation counts as IssueCertificate, because most issuers make no call for
    /// preparation.
    fn name(self) -> &'static str {
        match self {
            Self::Prepare | Self::Request => "IssueCertificate",
            Self::Collect => "GetCertificate",
        }
    }
}

/// The mood and the delay that a call meets at the issuer.
#[derive(Clone, Debug, Default)]
pub struct Visit {
    /// The mood that the call meets, if any.
    pub mood: Option<Mood>,
    /// The duration of the answer's way back.
    pub back: Duration,
}

/// Decides the mood of the issuer for each call, and waits as long as the call is under way.
#[async_trait]
pub trait Moods: Send + Sync {
    /// Brings a call to the issuer.
    async fn there(&self, call: Call) -> Visit;

    /// Decides whether the answer to IssueCertificate is lost. The issuer reports every request here, answered or
    /// refused.
    async fn loses(&self, token: &str, is_answered: bool) -> bool;
}

/// An issuer with moods, in front of an issuer that signs.
pub struct MoodyIssuer {
    signer: Arc<dyn Issuer>,
    clock: Clock,
    moods: Arc<dyn Moods>,
    requests: AtomicU32,
}

impl MoodyIssuer {
    /// An issuer in front of `signer`. The signer uses the time of `clock`, because a CA has its own clock.
    #[must_use]
    pub fn new(signer: Arc<dyn Issuer>, clock: Clock, moods: Arc<dyn Moods>) -> Self {
        Self { signer, clock, moods, requests: AtomicU32::new(0) }
    }

    /// The number of requests to the signer, repeated requests included.
    #[must_use]
    pub fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    async fn visit(&self, call: Call) -> Result<Visit, RemoteError> {
        let visit = self.moods.there(call).await;
        match visit.mood.as_ref().and_then(Mood::refusal) {
            Some(refusal) => Err(self.refused(call, refusal)),
            None => Ok(visit),
        }
    }

    fn refused(&self, call: Call, Refusal { message, kind, .. }: Refusal) -> RemoteError {
        RemoteError::new(kind, format!("{} on {}", call.name(), self.signer.name()), message, "wait")
    }

    async fn ask(&self, request: &IssueRequest<'_>) -> Result<CertificateHandle, RemoteError> {
        let visit = self.visit(Call::Request).await?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let answer = self.signer.request(&IssueRequest { now: self.clock.now(), ..request.clone() }).await;
        come_back(&visit).await;
        answer
    }
}

async fn come_back(visit: &Visit) {
    if !visit.back.is_zero() {
        tokio::time::sleep(visit.back).await;
    }
}

#[async_trait]
impl Issuer for MoodyIssuer {
    fn name(&self) -> String {
        self.signer.name()
    }

    async fn prepare(&self, validity: Duration) -> Result<String, RemoteError> {
        let visit = self.visit(Call::Prepare).await?;
        let answer = self.signer.prepare(validity).await;
        come_back(&visit).await;
        answer
    }

    async fn request(&self, request: &IssueRequest<'_>) -> Result<CertificateHandle, RemoteError> {
        let answer = self.ask(request).await;
        if self.moods.loses(request.idempotency_token, answer.is_ok()).await {
            return Err(self.refused(Call::Request, LOST));
        }
        answer
    }

    async fn collect(&self, handle: &CertificateHandle) -> Result<Option<IssuedChain>, RemoteError> {
        let visit = self.visit(Call::Collect).await?;
        let answer = match &visit.mood {
            Some(Mood::InProgress) => Ok(None),
            Some(Mood::Mistaken(chain)) => Ok(Some(chain.clone())),
            _ => self.signer.collect(handle).await,
        };
        come_back(&visit).await;
        answer
    }

    async fn ca_pem(&self) -> Result<String, RemoteError> {
        self.signer.ca_pem().await
    }

    /// The same limit as in `AcmPca`.
    fn spare_issuances_a_day(&self) -> u32 {
        12
    }
}

/// Moods that a test sets. Every call yields once on its way, and a test can stop the caller there.
#[derive(Debug, Default)]
pub struct SetMoods {
    /// Whether the issuer is away.
    pub is_away: AtomicBool,
    /// The moods of the next requests, a mood for each request.
    pub requests: Mutex<VecDeque<Mood>>,
    /// The number of later collections that find the certificate in progress.
    pub in_progress: AtomicU32,
    /// The chain that the next collection gets in place of the requested chain.
    pub mistaken: Mutex<Option<IssuedChain>>,
}

impl SetMoods {
    fn of_a_request(&self) -> Option<Mood> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn of_a_collection(&self) -> Option<Mood> {
        let waits = self.in_progress.load(Ordering::Relaxed);
        if waits > 0 {
            self.in_progress.store(waits - 1, Ordering::Relaxed);
            return Some(Mood::InProgress);
        }
        self.mistaken.lock().unwrap_or_else(PoisonError::into_inner).take().map(Mood::Mistaken)
    }
}

#[async_trait]
impl Moods for SetMoods {
    async fn there(&self, call: Call) -> Visit {
        tokio::task::yield_now().await;
        let mood = match call {
            _ if self.is_away.load(Ordering::Relaxed) => Some(Mood::Away),
            Call::Prepare => None,
            Call::Request => self.of_a_request(),
            Call::Collect => self.of_a_collection(),
        };
        Visit { mood, back: Duration::ZERO }
    }

    /// An answer is lost only if a test stops the caller at this yield.
    async fn loses(&self, _token: &str, _is_answered: bool) -> bool {
        tokio::task::yield_now().await;
        false
    }
}
