//! AWS as the nodes of the fleet reach it: the double's semantics and quotas, behind a network that is slow, and now and
//! then away.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_double::pca::{CaSettings, IssueCertificate, Pca, UsageMode, Validity};
use aws_double::secrets::{Content, Secrets};
use aws_double::{ServiceError, fleet::Fleet};
use nats_tls_agent::clock::Clock;
use nats_tls_agent::discover::{DiscoverError, Peer, PeerSource, Sighting};
use nats_tls_agent::issue::{CertificateHandle, IssueError, IssueErrorKind, IssueRequest, IssuedChain, Issuer};
use nats_tls_agent::trust::{TrustBundle, TrustError, TrustSource};
use time::OffsetDateTime;

use crate::meters::Calls;

const REGION: &str = "eu-west-1";
const BUNDLE: &str = "nats/trust";
/// Where every node's routes listen.
pub(crate) const ROUTE_PORT: u16 = 6222;

/// What a call needs that an outage can take away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Service {
    /// Private CA.
    Pca,
    /// Secrets Manager.
    Secrets,
    /// Auto Scaling.
    AutoScaling,
}

/// How a service is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// It can't be reached, or answers 503.
    Away,
    /// A policy is wrong.
    Denied,
    /// Somebody else in the account uses up the quota.
    Throttled,
    /// Half of the certificates are issued without the answer that says so.
    Lossy,
}

/// A time at which services are away.
#[derive(Clone, Debug)]
pub(crate) struct Outage {
    /// Its first moment.
    pub(crate) begin: OffsetDateTime,
    /// Its end.
    pub(crate) end: OffsetDateTime,
    /// In which way.
    pub(crate) mood: Mood,
    /// Which services.
    pub(crate) services: Vec<Service>,
}

/// The one account of the fleet.
pub(crate) struct Cloud {
    pub(crate) clock: Clock,
    inside: Mutex<Inside>,
}

struct Inside {
    pca: Pca,
    secrets: Secrets,
    groups: Vec<Fleet>,
    /// CAs by their age; the last one may not sign yet.
    authorities: Vec<String>,
    signing: usize,
    /// CAs whose certificates are in the bundle.
    trusted: Vec<usize>,
    outages: Vec<Outage>,
    /// Who is at the door in this millisecond.
    arrivals: BTreeSet<Arrival>,
    calls: Calls,
}

/// Who calls, for the order at the door.
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
            trusted: Vec::new(),
            outages: Vec::new(),
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

    pub(crate) fn plan(&self, outages: Vec<Outage>) {
        self.inside().outages = outages;
    }

    /// Another root CA in short-lived mode; its number.
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

    /// From now on this CA signs.
    pub(crate) fn sign_with(&self, authority: usize) {
        self.inside().signing = authority;
    }

    /// The bundle is these CAs' certificates from now on.
    pub(crate) fn trust(&self, authorities: &[usize], now: OffsetDateTime) {
        let mut inside = self.inside();
        let arns = authorities.iter().filter_map(|number| inside.authorities.get(*number).cloned());
        let arns: Vec<_> = arns.collect();
        let text = arns.iter().filter_map(|arn| Some(inside.pca.authority(arn).ok()?.pem().to_owned())).collect();
        // A few kilobytes are never too long for a secret.
        let _version = inside.secrets.put(BUNDLE, Content::Text(text), now);
        inside.trusted = authorities.to_vec();
    }

    /// Whether the bundle holds the CA of this subject.
    pub(crate) fn is_trusted(&self, subject: &str) -> bool {
        self.inside().trusted.iter().any(|authority| subject == root(*authority))
    }

    pub(crate) fn launch(&self, cluster: usize, id: &str, address: std::net::IpAddr) {
        let now = self.clock.now();
        if let Some(fleet) = self.inside().groups.get_mut(cluster) {
            fleet.forget_terminated_before(now - time::Duration::hours(2));
            fleet.launch(&group(cluster), id, address, "InService", now);
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

    /// How many certificates were paid for, and how many of them for a key that one was paid for before.
    pub(crate) fn paid(&self) -> (usize, usize) {
        let inside = self.inside();
        let keys: BTreeSet<_> = inside.pca.paid().iter().map(|paid| paid.key).collect();
        (inside.pca.paid().len(), inside.pca.paid().len() - keys.len())
    }

    /// One call: there and back again. Of those that arrive in the same millisecond the lowest number goes first, so that
    /// a run is the same however the runtime orders its tasks.
    async fn call<T>(
        &self,
        caller: Caller,
        mut rng: fastrand::Rng,
        service: Service,
        answer: impl FnOnce(&mut Inside, OffsetDateTime) -> Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        tokio::time::sleep(Duration::from_millis(rng.u64(5..60))).await;
        let arrived = self.clock.now();
        let mood = self.inside().mood(service, arrived);
        match mood {
            Some(Mood::Away) => {
                tokio::time::sleep(Duration::from_millis(rng.u64(10..8_000))).await;
                return Err(ServiceError::new("ServiceUnavailable", "away"));
            }
            Some(Mood::Denied) => return Err(ServiceError::new("AccessDeniedException", "a policy is wrong")),
            Some(Mood::Throttled) if rng.f64() < 0.9 => {
                self.inside().calls.throttled += 1;
                return Err(ServiceError::new("ThrottlingException", "Rate exceeded"));
            }
            _ => {}
        }
        let place = Place::take(self, (arrived, caller.number, service));
        tokio::time::sleep(Duration::from_millis(1)).await;
        while !place.is_first() {
            tokio::task::yield_now().await;
        }
        let now = self.clock.now();
        let answer = answer(&mut self.inside(), now);
        drop(place);
        tokio::time::sleep(Duration::from_millis(rng.u64(5..60))).await;
        answer
    }
}

impl Inside {
    fn mood(&self, service: Service, now: OffsetDateTime) -> Option<Mood> {
        let is_on = |outage: &&Outage| outage.begin <= now && now < outage.end && outage.services.contains(&service);
        self.outages.iter().find(is_on).map(|outage| outage.mood)
    }
}

/// When a call arrives, and whose it is: a node calls each service once at a time.
type Arrival = (OffsetDateTime, u64, Service);

/// A place in the queue at the door, given up when its owner is killed.
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

/// The account, as one node calls it.
pub(crate) struct Access {
    pub(crate) cloud: Arc<Cloud>,
    pub(crate) caller: Caller,
    /// Its own: how soon a key is made decides which of a pass's calls draws first.
    pub(crate) rng: Mutex<fastrand::Rng>,
}

impl Access {
    fn draw(&self) -> fastrand::Rng {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).fork()
    }
}

/// As `issue::acm_pca::classify` sorts the codes.
fn kind(code: &str) -> IssueErrorKind {
    match code {
        "RequestInProgressException" => IssueErrorKind::InProgress,
        "ThrottlingException" => IssueErrorKind::Throttled,
        "LimitExceededException" => IssueErrorKind::Quota,
        "AccessDeniedException" => IssueErrorKind::Denied,
        "InvalidStateException" | "ServiceUnavailable" | "RequestTimeout" | "InternalFailure" => {
            IssueErrorKind::Unavailable
        }
        _ => IssueErrorKind::Permanent,
    }
}

fn refused(call: &'static str, error: &ServiceError) -> IssueError {
    IssueError {
        kind: kind(error.code),
        call,
        issuer: "the double".into(),
        reason: error.to_string(),
        remedy: "it is tried again".into(),
        source: None,
    }
}

#[async_trait]
impl Issuer for Access {
    fn name(&self) -> String {
        "the double".into()
    }

    async fn request(&self, request: &IssueRequest<'_>) -> Result<CertificateHandle, IssueError> {
        let validity = Validity::Days(i64::try_from(request.validity.as_secs() / 86_400).unwrap_or(7));
        let issue = |inside: &mut Inside, now| {
            let authority = inside.authorities[inside.signing].clone();
            let issue = IssueCertificate {
                authority: &authority,
                csr: request.csr_pem,
                signing_algorithm: "SHA256WITHECDSA",
                template: None,
                validity,
                not_before: None,
                token: Some(request.idempotency_token),
            };
            let paid = inside.pca.paid().len();
            let answer = inside.pca.issue_certificate(&issue, now);
            inside.calls.note_issue(now, answer.as_ref().err());
            let is_lossy = inside.mood(Service::Pca, now) == Some(Mood::Lossy) && inside.pca.paid().len() > paid;
            Ok((answer?, is_lossy))
        };
        let answer = self.cloud.call(self.caller, self.draw(), Service::Pca, issue).await;
        if let Ok((_, true)) = &answer
            && self.draw().f64() < 0.5
        {
            // Paid for, and nobody knows: the same token is to bring the same certificate.
            tokio::time::sleep(Duration::from_secs(10)).await;
            return Err(refused("IssueCertificate", &ServiceError::new("RequestTimeout", "the answer was lost")));
        }
        answer.map(|(arn, _)| CertificateHandle(arn)).map_err(|error| refused("IssueCertificate", &error))
    }

    async fn collect(&self, handle: &CertificateHandle) -> Result<IssuedChain, IssueError> {
        let collect = |inside: &mut Inside, now| {
            let authority = handle.0.split("/certificate/").next().unwrap_or_default().to_owned();
            let answer = inside.pca.get_certificate(&authority, &handle.0, now);
            inside.calls.note_get(now, answer.as_ref().err());
            answer
        };
        let answer = self.cloud.call(self.caller, self.draw(), Service::Pca, collect).await;
        let chain = answer.map_err(|error| refused("GetCertificate", &error))?;
        Ok(IssuedChain { leaf_pem: chain.certificate, chain_pem: chain.chain })
    }

    async fn ca_pem(&self) -> Result<String, IssueError> {
        Err(refused("GetCertificateAuthorityCertificate", &ServiceError::new("AccessDeniedException", "not asked")))
    }

    fn spare_issuances_a_day(&self) -> u32 {
        12
    }
}

#[async_trait]
impl TrustSource for Access {
    async fn fetch(&self) -> Result<TrustBundle, TrustError> {
        let read = |inside: &mut Inside, now| inside.secrets.get_secret_value(BUNDLE, None, Some("AWSCURRENT"), now);
        let away = || TrustError::Timeout { origin: BUNDLE.into() };
        let value = self.cloud.call(self.caller, self.draw(), Service::Secrets, read).await.map_err(|_error| away())?;
        let Content::Text(text) = value.content else { return Err(away()) };
        TrustBundle::parse(text.as_bytes(), BUNDLE, &value.version)
            .map_err(|source| TrustError::Bundle { origin: BUNDLE.into(), source })
    }
}

#[async_trait]
impl PeerSource for Access {
    async fn sight(&self) -> Result<Sighting, DiscoverError> {
        let cluster = self.caller.cluster;
        let describe = |inside: &mut Inside, now| {
            let fleet = &inside.groups[cluster];
            let (groups, _) = fleet.describe_auto_scaling_groups(&[group(cluster)], None, None, now)?;
            let members = groups.into_iter().flat_map(|group| group.instances);
            // The states that `discover::asg` takes for a peer's; the addresses are its look-up's.
            let members = members.filter(|member| member.state == "InService");
            let peer = |member: aws_double::autoscaling::Member| {
                let address = SocketAddr::new(fleet.instance(&member.id)?.address, ROUTE_PORT);
                Some(Peer { id: member.id, address, state: member.state })
            };
            Ok(members.filter_map(peer).collect::<Vec<_>>())
        };
        let peers =
            self.cloud.call(self.caller, self.draw(), Service::AutoScaling, describe).await.map_err(|error| {
                DiscoverError {
                    attempt: "autoscaling:DescribeAutoScalingGroups".into(),
                    reason: error.to_string(),
                    remedy: "it is tried again".into(),
                    source: None,
                }
            })?;
        Ok(Sighting { peers, unresolved: Vec::new(), group: Some(group(cluster)) })
    }
}
