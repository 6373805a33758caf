//! AWS as the nodes of the fleet reach it.
//!
//! `aws-double` answers, with the semantics and the quotas of the services' documentation. A slow network with
//! outages lies before the double.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_double::pca::{CaSettings, IssueCertificate, Pca, TOKEN_LIFETIME, UsageMode, Validity};
use aws_double::secrets::{Content, Secrets};
use aws_double::{ServiceError, fleet::Fleet};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::error::ErrorMetadata;
use doubles::moody_issuer::{Call, Mood, Moods, Visit};
use nats_tls_agent::aws::{self, secret::SecretError};
use nats_tls_agent::clock::Clock;
use nats_tls_agent::error::{RemoteError, RemoteErrorKind};
use nats_tls_agent::issue::{CertificateHandle, IssueRequest, IssuedChain, Issuer};
use nats_tls_agent::peers::{Peer, PeerSource, Sighting};
use nats_tls_agent::trust::{TrustBundle, TrustError, TrustSource};
use time::OffsetDateTime;

use crate::meters::Calls;

/// The number of refused repeats of a request that makes a second payment unavoidable.
///
/// An agent finds a certificate with a lost ARN by repeating the request, as long as Private CA remembers the token.
pub const REPEATS: u32 = 15;

const REGION: &str = "eu-west-1";
const BUNDLE: &str = "nats/trust";
/// Where every node's routes listen.
pub(crate) const ROUTE_PORT: u16 = 6222;

/// A service that an outage can affect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Service {
    Pca,
    Secrets,
    AutoScaling,
}

/// A span of time in which services share a mood.
#[derive(Clone, Debug)]
pub(crate) struct Outage {
    /// The first moment of the outage.
    pub(crate) begin: OffsetDateTime,
    /// The first moment after the outage.
    pub(crate) end: OffsetDateTime,
    pub(crate) mood: Mood,
    pub(crate) services: Vec<Service>,
}

/// The AWS account of the fleet.
pub(crate) struct Cloud {
    pub(crate) clock: Clock,
    inside: Mutex<Inside>,
}

struct Inside {
    pca: Pca,
    secrets: Secrets,
    groups: Vec<Fleet>,
    /// The ARNs of the CAs, oldest first. The newest CA may not sign yet.
    authorities: Vec<String>,
    signing: usize,
    /// The numbers of the CAs whose certificates are in the bundle, and since when.
    trusted: BTreeMap<usize, OffsetDateTime>,
    outages: Vec<Outage>,
    /// Certificates whose ARN has reached no agent yet, by the token of their request.
    unheard: BTreeMap<String, Unheard>,
    /// Second payments for a key that no agent can avoid.
    unavoidable: usize,
    /// The calls that wait for an answer in this millisecond.
    arrivals: BTreeSet<Arrival>,
    calls: Calls,
}

/// A calling node. The number orders the calls of one millisecond.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) number: u64,
    pub(crate) cluster: usize,
}

impl Cloud {
    pub(crate) fn new(clock: Clock, clusters: usize) -> Self {
        let (mut pca, mut secrets, now) = (Pca::new(REGION), Secrets::new(REGION), clock.now());
        pca.issuance_takes = time::Duration::milliseconds(150);
        secrets.lag = time::Duration::seconds(2);
        let inside = Inside {
            pca,
            secrets,
            groups: (0..clusters).map(|_| Fleet::new(REGION)).collect(),
            authorities: Vec::new(),
            signing: 0,
            trusted: BTreeMap::new(),
            outages: Vec::new(),
            unheard: BTreeMap::new(),
            unavoidable: 0,
            arrivals: BTreeSet::new(),
            calls: Calls::default(),
        };
        let cloud = Self { clock, inside: Mutex::new(inside) };
        cloud.create_authority(now);
        cloud.trust(&[0], now - time::Duration::minutes(1));
        cloud
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces all outages, current outages included.
    pub(crate) fn plan(&self, outages: Vec<Outage>) {
        self.inside().outages = outages;
    }

    /// Makes another root CA in short-lived mode, and returns its number.
    pub(crate) fn create_authority(&self, now: OffsetDateTime) -> usize {
        let mut inside = self.inside();
        let number = inside.authorities.len();
        let settings =
            CaSettings { usage_mode: UsageMode::ShortLivedCertificate, ..CaSettings::root(&format!("root {number}")) };
        if let Ok(arn) = inside.pca.create_authority(settings, now) {
            inside.authorities.push(arn);
        }
        number
    }

    /// Makes this CA sign from now on.
    pub(crate) fn sign_with(&self, authority: usize) {
        self.inside().signing = authority;
    }

    /// Replaces the bundle with the certificates of these CAs.
    pub(crate) fn trust(&self, authorities: &[usize], now: OffsetDateTime) {
        let mut inside = self.inside();
        let arns = authorities.iter().filter_map(|number| inside.authorities.get(*number).cloned());
        let arns: Vec<_> = arns.collect();
        let text = arns.iter().filter_map(|arn| Some(inside.pca.authority(arn).ok()?.pem().to_owned())).collect();
        // `put` can't fail here: a secret may have 64 KiB, and the bundle has a few KiB.
        let _version = inside.secrets.put(BUNDLE, Content::Text(text), now);
        let before = std::mem::take(&mut inside.trusted);
        let since = |number: &usize| before.get(number).copied().unwrap_or(now);
        inside.trusted = authorities.iter().map(|number| (*number, since(number))).collect();
    }

    /// Since when the bundle holds the CA of this subject. `None`: the bundle does not hold the CA.
    pub(crate) fn trusted_since(&self, subject: &str) -> Option<OffsetDateTime> {
        self.inside().trusted.iter().find_map(|(authority, since)| (subject == root(*authority)).then_some(*since))
    }

    pub(crate) fn launch(&self, cluster: usize, id: &str, address: std::net::IpAddr) {
        let now = self.clock.now();
        if let Some(fleet) = self.inside().groups.get_mut(cluster) {
            fleet.forget_terminated_before(now - time::Duration::hours(2));
            fleet.launch(&group(cluster), id, address, "Pending", now);
        }
    }

    /// Puts an instance in service, unless its group gave the instance up during the boot.
    pub(crate) fn boot(&self, cluster: usize, id: &str) {
        let now = self.clock.now();
        if let Some(fleet) = self.inside().groups.get_mut(cluster)
            && fleet.instance(id).and_then(|instance| instance.state_at(now)) == Some("Pending")
        {
            fleet.set_state(id, "InService", now);
        }
    }

    pub(crate) fn set_state(&self, cluster: usize, id: &str, state: &str) {
        let now = self.clock.now();
        if let Some(fleet) = self.inside().groups.get_mut(cluster) {
            fleet.set_state(id, state, now);
        }
    }

    pub(crate) fn calls<T>(&self, read: impl FnOnce(&mut Calls) -> T) -> T {
        read(&mut self.inside().calls)
    }

    /// Counts the certificates paid for, the second payments for a key, and the unavoidable second payments.
    pub(crate) fn paid(&self) -> (usize, usize, usize) {
        let inside = self.inside();
        let keys: BTreeSet<_> = inside.pca.paid().iter().map(|paid| paid.key).collect();
        (inside.pca.paid().len(), inside.pca.paid().len() - keys.len(), inside.unavoidable)
    }

    /// Brings a call to a service. A refusal may take time.
    async fn visit(&self, mut rng: fastrand::Rng, service: Service) -> Visit {
        tokio::time::sleep(Duration::from_millis(rng.u64(5..60))).await;
        let mood = match self.inside().mood(service, self.clock.now()) {
            Some(Mood::Throttled) if rng.f64() >= 0.9 => None,
            mood => mood,
        };
        match mood {
            Some(Mood::Away) => tokio::time::sleep(Duration::from_millis(rng.u64(10..8_000))).await,
            Some(Mood::Throttled) => self.inside().calls.throttled += 1,
            _ => {}
        }
        Visit { mood, back: Duration::from_millis(rng.u64(5..60)) }
    }

    /// Answers a call that has arrived. The caller with the lowest number goes first within a millisecond. A run is
    /// thus the same in whatever order the runtime polls its tasks.
    async fn answer<T>(
        &self,
        caller: Caller,
        service: Service,
        answer: impl FnOnce(&mut Inside, OffsetDateTime) -> Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        let place = Place::take(self, (self.clock.now(), caller.number, service));
        tokio::time::sleep(Duration::from_millis(1)).await;
        while !place.is_first() {
            tokio::task::yield_now().await;
        }
        answer(&mut self.inside(), self.clock.now())
    }

    /// Makes a whole call: the way to the service, the answer or refusal, and the way back.
    async fn call<T>(
        &self,
        caller: Caller,
        rng: fastrand::Rng,
        service: Service,
        answer: impl FnOnce(&mut Inside, OffsetDateTime) -> Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        let visit = self.visit(rng, service).await;
        if let Some(refusal) = visit.mood.as_ref().and_then(Mood::refusal) {
            return Err(ServiceError::new(refusal.code, refusal.message));
        }
        let answer = self.answer(caller, service, answer).await;
        tokio::time::sleep(visit.back).await;
        answer
    }
}

impl Inside {
    /// Notes that a certificate was paid for, and that its ARN is on its way.
    fn note_paid(&mut self, token: &str, now: OffsetDateTime) {
        let before = self.unheard.insert(token.into(), Unheard { paid: now, repeats: 0, can_be_lost: false });
        self.unavoidable += usize::from(before.is_some_and(|unheard| unheard.repeats >= REPEATS));
    }

    fn note_refused(&mut self, token: &str, now: OffsetDateTime) {
        if let Some(unheard) = self.unheard.get_mut(token) {
            unheard.repeats += u32::from(now < unheard.paid + TOKEN_LIFETIME);
        }
    }

    fn mood(&self, service: Service, now: OffsetDateTime) -> Option<Mood> {
        let is_on = |outage: &&Outage| outage.begin <= now && now < outage.end && outage.services.contains(&service);
        self.outages.iter().find(is_on).map(|outage| outage.mood.clone())
    }
}

/// A certificate whose ARN reached no agent yet.
struct Unheard {
    paid: OffsetDateTime,
    /// The number of repeats that were refused while Private CA remembered the token.
    repeats: u32,
    /// Whether the last request paid for the certificate while Private CA loses answers.
    can_be_lost: bool,
}

/// The time, the caller's number and the service of a call. A node has one call of each service at a time.
type Arrival = (OffsetDateTime, u64, Service);

/// A call's place in the order of its millisecond. Dropping the place frees it, even if the caller is killed.
struct Place<'a> {
    cloud: &'a Cloud,
    at: Arrival,
}

impl<'a> Place<'a> {
    fn take(cloud: &'a Cloud, at: Arrival) -> Self {
        cloud.inside().arrivals.insert(at);
        Self { cloud, at }
    }

    fn is_first(&self) -> bool {
        self.cloud.inside().arrivals.first() == Some(&self.at)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.cloud.inside().arrivals.remove(&self.at);
    }
}

/// A CA's subject.
pub(crate) fn root(authority: usize) -> String {
    format!("CN=root {authority}")
}

fn group(cluster: usize) -> String {
    format!("cluster-{cluster}")
}

/// One node's access to the account.
pub(crate) struct Access {
    pub(crate) cloud: Arc<Cloud>,
    pub(crate) caller: Caller,
    /// Random numbers of this access alone. The real time of making a key decides which call of a pass draws first.
    /// Shared numbers would therefore differ between runs.
    pub(crate) rng: Mutex<fastrand::Rng>,
    /// Whether the CA's certificate was read. The certificate says how the CA signs. `AcmPca` reads the certificate
    /// before a process's first request, and repeats a failed read. `AcmPca` skips the read if the journal has the
    /// answer.
    pub(crate) knows_authority: AtomicBool,
}

impl Access {
    fn draw(&self) -> fastrand::Rng {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).fork()
    }
}

const ISSUE: &str = "acm-pca:IssueCertificate";
const COLLECT: &str = "acm-pca:GetCertificate";
const CA_CERTIFICATE: &str = "acm-pca:GetCertificateAuthorityCertificate";

/// The error code of GetCertificate while the CA still signs.
const IN_PROGRESS: &str = "RequestInProgressException";

/// The agent's error for a refusal that comes through the SDK.
fn refused(call: &str, error: &ServiceError) -> RemoteError {
    let meta = ErrorMetadata::builder().code(error.code).message(&error.message).build();
    let status = StatusCode::try_from(400).unwrap_or_else(|_error| unreachable!("400 is a status"));
    aws::refused(call, SdkError::service_error(meta, HttpResponse::new(status, SdkBody::empty())))
}

/// The agent's error for a refusal of Private CA. `issue::acm_pca` classifies the codes in the same way, and a test
/// compares both.
fn refused_by_pca(call: &str, error: &ServiceError) -> RemoteError {
    let refused = refused(call, error);
    let kind = match error.code {
        "RequestFailedException" => RemoteErrorKind::Permanent,
        "InvalidStateException" => RemoteErrorKind::Unavailable,
        _ if refused.kind == RemoteErrorKind::Permanent && call == COLLECT => RemoteErrorKind::Absent,
        _ => refused.kind,
    };
    RemoteError { kind, attempt: format!("{call} on the double"), ..refused }
}

/// Whether an instance in this state is a peer. `peers::asg` has the same rule, and a test compares both.
fn is_peer(lifecycle_state: &str) -> bool {
    matches!(lifecycle_state, "InService" | "Pending" | "Pending:Wait" | "Pending:Proceed")
}

/// Outages as a [`MoodyIssuer`](doubles::moody_issuer::MoodyIssuer) meets them.
#[async_trait]
impl Moods for Access {
    async fn there(&self, call: Call) -> Visit {
        if call == Call::Prepare && self.knows_authority.load(Ordering::Relaxed) {
            return Visit::default();
        }
        self.cloud.visit(self.draw(), Service::Pca).await
    }

    async fn loses(&self, token: &str, is_answered: bool) -> bool {
        if !is_answered {
            self.cloud.inside().note_refused(token, self.cloud.clock.now());
            return false;
        }
        let can_be_lost = self.cloud.inside().unheard.get(token).is_some_and(|unheard| unheard.can_be_lost);
        if can_be_lost && self.draw().f64() < 0.5 {
            // The certificate is paid for, and no agent knows its ARN. A repeat with the same token must return the
            // same certificate.
            tokio::time::sleep(Duration::from_secs(10)).await;
            return true;
        }
        self.cloud.inside().unheard.remove(token);
        false
    }
}

/// Private CA with its quotas and tokens, but without network and outages.
pub(crate) struct PrivateCa(pub(crate) Arc<Access>);

impl PrivateCa {
    async fn answer<T>(
        &self,
        answer: impl FnOnce(&mut Inside, OffsetDateTime) -> Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        self.0.cloud.answer(self.0.caller, Service::Pca, answer).await
    }
}

#[async_trait]
impl Issuer for PrivateCa {
    fn name(&self) -> String {
        "the double".into()
    }

    async fn prepare(&self, _validity: Duration) -> Result<String, RemoteError> {
        if !self.0.knows_authority.load(Ordering::Relaxed) {
            let read = |inside: &mut Inside, now| {
                let authority = inside.authorities[inside.signing].clone();
                let answer = inside.pca.get_certificate_authority_certificate(&authority, now);
                inside.calls.note_authority(now, answer.as_ref().err());
                answer
            };
            self.answer(read).await.map_err(|error| refused_by_pca(CA_CERTIFICATE, &error))?;
            self.0.knows_authority.store(true, Ordering::Relaxed);
        }
        Ok("SHA256WITHECDSA".into())
    }

    async fn request(&self, request: &IssueRequest<'_>) -> Result<CertificateHandle, RemoteError> {
        let token = request.idempotency_token;
        let validity = Validity::Days(i64::try_from(request.validity.as_secs() / 86_400).unwrap_or(7));
        let issue = |inside: &mut Inside, now| {
            let authority = inside.authorities[inside.signing].clone();
            let issue = IssueCertificate {
                authority: &authority,
                csr: request.csr_pem,
                signing_algorithm: request.signing_algorithm,
                template: None,
                validity,
                not_before: None,
                token: Some(token),
            };
            let paid = inside.pca.paid().len();
            let answer = inside.pca.issue_certificate(&issue, now);
            inside.calls.note_issue(now, answer.as_ref().err());
            let is_paid = inside.pca.paid().len() > paid;
            if is_paid {
                inside.note_paid(token, now);
            }
            let can_be_lost = is_paid && inside.mood(Service::Pca, now) == Some(Mood::Lossy);
            if let Some(unheard) = inside.unheard.get_mut(token) {
                unheard.can_be_lost = can_be_lost;
            }
            answer
        };
        self.answer(issue).await.map(CertificateHandle).map_err(|error| refused_by_pca(ISSUE, &error))
    }

    async fn collect(&self, handle: &CertificateHandle) -> Result<Option<IssuedChain>, RemoteError> {
        let collect = |inside: &mut Inside, now| {
            let authority = handle.0.split("/certificate/").next().unwrap_or_default().to_owned();
            let answer = inside.pca.get_certificate(&authority, &handle.0, now);
            inside.calls.note_get(now, answer.as_ref().err());
            answer
        };
        match self.answer(collect).await {
            Ok(chain) => Ok(Some(IssuedChain { leaf_pem: chain.certificate, chain_pem: chain.chain })),
            Err(error) if error.code == IN_PROGRESS => Ok(None),
            Err(error) => Err(refused_by_pca(COLLECT, &error)),
        }
    }

    async fn ca_pem(&self) -> Result<String, RemoteError> {
        Err(refused_by_pca(CA_CERTIFICATE, &ServiceError::new("AccessDeniedException", "not simulated")))
    }

    /// The same limit as in `AcmPca`.
    fn spare_issuances_a_day(&self) -> u32 {
        12
    }
}

#[async_trait]
impl TrustSource for Access {
    async fn fetch(&self) -> Result<TrustBundle, TrustError> {
        let read = |inside: &mut Inside, now| inside.secrets.get_secret_value(BUNDLE, None, Some("AWSCURRENT"), now);
        let value = self.cloud.call(self.caller, self.draw(), Service::Secrets, read).await.map_err(|error| {
            TrustError::Secret(SecretError::Fetch(refused("secretsmanager:GetSecretValue", &error)))
        })?;
        let text = match value.content {
            Content::Text(text) => text,
            Content::Binary(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        };
        TrustBundle::parse(text.as_bytes(), BUNDLE, &value.version)
            .map_err(|source| TrustError::Bundle { origin: BUNDLE.into(), source })
    }
}

#[async_trait]
impl PeerSource for Access {
    async fn sight(&self) -> Result<Sighting, RemoteError> {
        let cluster = self.caller.cluster;
        let describe = |inside: &mut Inside, now| {
            let fleet = &inside.groups[cluster];
            let (groups, _) = fleet.describe_auto_scaling_groups(&[group(cluster)], None, None, now)?;
            let members = groups.into_iter().flat_map(|group| group.instances);
            // The fleet's own addresses replace the look-up by `peers::addresses`.
            let members = members.filter(|member| is_peer(&member.state));
            let peer = |member: aws_double::autoscaling::Member| {
                let address = SocketAddr::new(fleet.instance(&member.id)?.address, ROUTE_PORT);
                Some(Peer { id: member.id, address, state: member.state })
            };
            Ok(members.filter_map(peer).collect::<Vec<_>>())
        };
        let answer = self.cloud.call(self.caller, self.draw(), Service::AutoScaling, describe).await;
        let peers = answer.map_err(|error| refused("autoscaling:DescribeAutoScalingGroups", &error))?;
        Ok(Sighting { peers, group: Some(group(cluster)), ..Sighting::default() })
    }
}

#[cfg(test)]
mod tests {
    use aws_config::{BehaviorVersion, Region, SdkConfig};
    use aws_credential_types::Credentials;
    use aws_credential_types::provider::SharedCredentialsProvider;
    use aws_double::Account;
    use aws_double::fault::{Fault, Operation};
    use aws_double::http::AwsDouble;
    use doubles::moody_issuer::LOST;
    use nats_tls_agent::config::{AddressLookup, CaArn};
    use nats_tls_agent::issue::acm_pca::AcmPca;
    use nats_tls_agent::node::Node;
    use nats_tls_agent::peers::asg::Asg;
    use nats_tls_agent::x509::san::Sans;

    use super::*;

    /// Every code that a call here can get, and the other codes of the API's pages.
    const CODES: [&str; 14] = [
        "AccessDeniedException",
        "InternalFailure",
        "InvalidArgsException",
        "InvalidArnException",
        "InvalidStateException",
        "LimitExceededException",
        "MalformedCSRException",
        "RequestFailedException",
        "RequestInProgressException",
        "RequestTimeout",
        "ResourceNotFoundException",
        "ServiceUnavailable",
        "ThrottlingException",
        "ValidationException",
    ];

    async fn double() -> (AwsDouble, SdkConfig) {
        let double = AwsDouble::start(SocketAddr::from(([127, 0, 0, 1], 0)), Account::new(REGION)).await.unwrap();
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .endpoint_url(double.endpoint())
            .retry_config(aws_config::retry::RetryConfig::disabled())
            .credentials_provider(SharedCredentialsProvider::new(Credentials::new("id", "key", None, None, "test")))
            .build();
        (double, config)
    }

    #[tokio::test]
    async fn each_refusal_is_what_the_agent_makes_of_it() {
        let (double, config) = double().await;
        let arn = format!("arn:aws:acm-pca:{REGION}:111122223333:certificate-authority/1");
        let issuer = AcmPca::new(&config, CaArn::try_from(arn).unwrap(), None);
        for code in CODES {
            let error = ServiceError::new(code, "");
            for operation in [Operation::GetCertificate, Operation::GetCertificateAuthorityCertificate] {
                double.set_fault(operation, Some(Fault::Error(code)));
            }
            match issuer.collect(&CertificateHandle("arn".into())).await {
                Ok(collected) => assert_eq!((collected, code), (None, IN_PROGRESS)),
                Err(theirs) => assert_eq!(refused_by_pca(COLLECT, &error).kind, theirs.kind, "{code}"),
            }
            let theirs = issuer.ca_pem().await.unwrap_err();
            assert_eq!(refused_by_pca(CA_CERTIFICATE, &error).kind, theirs.kind, "{code}");
        }
        let moods = [Mood::Away, Mood::Denied, Mood::Throttled];
        for refusal in moods.iter().filter_map(Mood::refusal).chain([LOST]) {
            assert!(CODES.contains(&refusal.code), "{refusal:?}");
            assert_eq!(refused_by_pca(COLLECT, &ServiceError::new(refusal.code, "")).kind, refusal.kind, "{refusal:?}");
        }
    }

    #[tokio::test]
    async fn who_is_a_peer_is_who_the_agent_takes_for_one() {
        let states = [
            "Pending",
            "Pending:Wait",
            "Pending:Proceed",
            "InService",
            "Standby",
            "EnteringStandby",
            "Terminating",
            "Terminating:Wait",
            "Terminating:Proceed",
            "Quarantined",
            "Detaching",
            "Detached",
            "Warmed:Pending",
            "Warmed:Running",
            "Warmed:Stopped",
        ];
        let (double, config) = double().await;
        double.account(|aws, now| {
            for state in states {
                aws.fleet.launch("group", state, [10, 0, 0, 1].into(), state, now);
            }
        });
        let address = [10, 0, 0, 1].into();
        let node = Node {
            name: "n".into(),
            instance_id: None,
            region: None,
            address,
            sans: Sans::default(),
            further_addresses: [].into(),
            placement: nats_tls_agent::node::Placement::default(),
        };
        let members = Asg::new(&config, node, None, AddressLookup::Dns, 6222).members("group").await.unwrap();
        let theirs: BTreeSet<_> = members.iter().map(|member| member.state.as_str()).collect();
        assert_eq!(states.into_iter().filter(|state| is_peer(state)).collect::<BTreeSet<_>>(), theirs);
    }
}
