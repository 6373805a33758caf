//! The real SDK calls the AWS double through the agent's own interfaces.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aws_double::Account;
use aws_double::fault::{Fault, Operation};
use aws_double::http::AwsDouble;
use aws_double::pca::{CaSettings, Defect, Status, UsageMode};
use aws_double::secrets::Content;
use harness::imds::{ImdsStub, InstanceFacts};
use nats_tls_agent::aws::AwsSettings;
use nats_tls_agent::config::{AddressLookup, CaArn};
use nats_tls_agent::error::{RemoteError, RemoteErrorKind};
use nats_tls_agent::issue::acm_pca::AcmPca;
use nats_tls_agent::issue::{CertificateHandle, IssueRequest, IssuedChain, Issuer};
use nats_tls_agent::node::Node;
use nats_tls_agent::peers::asg::Asg;
use nats_tls_agent::peers::{PeerSource, Sighting};
use nats_tls_agent::trust::sources::secrets_manager::SecretsManager;
use nats_tls_agent::trust::{TrustBundle, TrustSource as _};
use nats_tls_agent::x509::csr::{Csr, KeyAlgorithm};
use nats_tls_agent::x509::san::Sans;
use time::OffsetDateTime;

const REGION: &str = "eu-west-1";
const DAY: Duration = Duration::from_hours(24);

/// The double with a root CA and a secret, the settings of the clients, and the source of their credentials.
struct World {
    double: AwsDouble,
    ca: String,
    config: aws_config::SdkConfig,
    _imds: ImdsStub,
}

impl World {
    async fn start() -> Self {
        let double = AwsDouble::start(SocketAddr::from(([127, 0, 0, 1], 0)), Account::new(REGION)).await.unwrap();
        let ca = double.account(|aws, now| {
            let ca = aws.pca.create_authority(CaSettings::root("root"), now).unwrap();
            let pem = aws.pca.authority(&ca).unwrap().pem().to_owned();
            aws.secrets.put("trust", Content::Text(pem), now).unwrap();
            ca
        });
        let imds = ImdsStub::start(InstanceFacts::new(&id(1), REGION, address(1))).await.unwrap();
        let settings = AwsSettings {
            region: Some(REGION.into()),
            endpoint: Some(double.endpoint()),
            imds_endpoint: Some(imds.endpoint()),
        };
        Self { double, ca, config: settings.load().await, _imds: imds }
    }

    fn issuer(&self) -> AcmPca {
        AcmPca::new(&self.config, CaArn::try_from(self.ca.clone()).unwrap(), None)
    }

    fn asg(&self, group: Option<&str>) -> Asg {
        Asg::new(&self.config, node(), group.map(Into::into), AddressLookup::Ec2, 6222)
    }
}

fn id(number: u8) -> String {
    format!("i-{number:017x}")
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([10, 0, 1, number])
}

fn sans() -> Sans {
    Sans { ips: [address(1)].into(), ..Sans::default() }
}

fn node() -> Node {
    Node {
        name: id(1),
        instance_id: Some(id(1)),
        region: Some(REGION.into()),
        address: address(1),
        sans: sans(),
        further_addresses: [].into(),
        placement: nats_tls_agent::node::Placement::default(),
    }
}

fn now() -> OffsetDateTime {
    nats_tls_agent::clock::Clock::System.now()
}

fn csr() -> Csr {
    Csr::generate("n1", &sans(), KeyAlgorithm::EcdsaP256).unwrap()
}

async fn request(issuer: &AcmPca, csr: &Csr, validity: Duration) -> Result<CertificateHandle, RemoteError> {
    let idempotency_token = &csr.idempotency_token();
    let signing_algorithm = &issuer.prepare(validity).await?;
    let request = IssueRequest { csr_pem: &csr.pem, validity, now: now(), signing_algorithm, idempotency_token };
    issuer.request(&request).await
}

async fn chain(issuer: &AcmPca, handle: &CertificateHandle) -> IssuedChain {
    harness::eventually("the certificate", Duration::from_secs(10), async || match issuer.collect(handle).await {
        Ok(Some(chain)) => Ok(chain),
        Ok(None) => Err("the CA has not signed yet".to_owned()),
        Err(error) => panic!("{error}"),
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_certificate_is_asked_for_waited_for_and_accepted_and_a_repeated_request_is_the_same_one() {
    let world = World::start().await;
    world.double.account(|aws, _| aws.pca.issuance_takes = time::Duration::seconds(3));
    let (issuer, csr) = (world.issuer(), csr());
    let began = tokio::time::Instant::now();
    let handle = request(&issuer, &csr, 2 * DAY).await.unwrap();
    let first = issuer.collect(&handle).await.unwrap();
    assert!(first.is_none() || began.elapsed() >= Duration::from_secs(3));
    assert_eq!(request(&issuer, &csr, 2 * DAY).await.unwrap(), handle);
    let collected = chain(&issuer, &handle).await;
    let bundle = TrustBundle::parse(issuer.ca_pem().await.unwrap().as_bytes(), "issuer", "1").unwrap();
    let verified = bundle.verify(&collected, &csr.key, &sans(), now()).unwrap();
    let life = verified.leaf().not_after - verified.leaf().not_before;
    assert_eq!(life, time::Duration::days(2) + time::Duration::hours(1));
    assert_eq!(world.double.certificates(), 1);
    let asked = world.double.calls(Operation::IssueCertificate);
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0].asked("IdempotencyToken"), Some(csr.idempotency_token()));
}

#[tokio::test]
async fn states_limits_and_quotas_of_the_ca_are_seen_as_what_they_are() {
    let world = World::start().await;
    let (issuer, csr) = (world.issuer(), csr());
    let set = |status| world.double.account(|aws, _| aws.pca.set_status(&world.ca, status).unwrap());
    for status in [Status::Disabled, Status::Deleted, Status::PendingCertificate] {
        set(status);
        let error = request(&issuer, &csr, DAY).await.unwrap_err();
        assert_eq!(error.kind, RemoteErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains(status.as_str()), "{error}");
    }
    set(Status::Active);
    let error = request(&issuer, &csr, 4000 * DAY).await.unwrap_err();
    assert_eq!(error.kind, RemoteErrorKind::Permanent, "{error}");
    request(&issuer, &csr, DAY).await.unwrap();
    world.double.account(|aws, _| aws.pca.quotas.issue_certificate = aws_double::quota::TokenBucket::new(0, 0));
    assert_eq!(request(&issuer, &csr, DAY).await.unwrap_err().kind, RemoteErrorKind::Throttled);
    world.double.account(|aws, _| aws.pca.certificates_per_ca = 0);
    world.double.account(|aws, _| aws.pca.quotas = aws_double::pca::Quotas::default());
    let fresh = Csr::generate("n2", &sans(), KeyAlgorithm::EcdsaP256).unwrap();
    assert_eq!(request(&issuer, &fresh, DAY).await.unwrap_err().kind, RemoteErrorKind::Quota);

    let short = CaSettings { usage_mode: UsageMode::ShortLivedCertificate, ..CaSettings::root("short") };
    let short = world.double.account(|aws, now| aws.pca.create_authority(short, now).unwrap());
    let issuer = AcmPca::new(&world.config, CaArn::try_from(short).unwrap(), None);
    let error = request(&issuer, &csr, 8 * DAY).await.unwrap_err();
    assert!(error.kind == RemoteErrorKind::Permanent && error.to_string().contains("7 days"), "{error}");
}

/// A new certificate of the CA has to be seen near the end of the old one, and a CA that ends in years costs one question.
#[tokio::test]
async fn the_end_of_the_ca_is_asked_for_once_and_again_only_where_it_is_near() {
    let world = World::start().await;
    let issuer = world.issuer();
    let asked = || world.double.calls(Operation::GetCertificateAuthorityCertificate).len();
    let ends = world.double.account(|aws, _| aws.pca.authority(&world.ca).unwrap().not_after());
    let ends = ends.replace_nanosecond(0).unwrap();
    for _ in 0..3 {
        assert_eq!(issuer.issues_until(7 * DAY, now()).await.unwrap(), Some(ends));
        issuer.prepare(7 * DAY).await.unwrap();
    }
    assert_eq!(asked(), 1);
    for _ in 0..2 {
        assert_eq!(issuer.issues_until(7 * DAY, ends - 13 * DAY).await.unwrap(), Some(ends));
    }
    assert_eq!(asked(), 3);
}

#[tokio::test]
async fn a_secrets_current_version_is_read_also_where_it_is_binary() {
    let world = World::start().await;
    let trust = SecretsManager::new(&world.config, "trust", None);
    let first = trust.stored().await.unwrap().pem;
    let put = |content| world.double.account(|aws, now| aws.secrets.put("trust", content, now).unwrap());
    let second = put(Content::Binary(first.content.to_vec()));
    let read = trust.stored().await.unwrap().pem;
    assert_eq!((read.version, *read.content == *first.content), (second, true));
    assert_ne!(read.content.len(), 0);
    let text = SecretsManager::new(&world.config, "absent", None).stored().await.err().unwrap().to_string();
    assert!(text.contains("ResourceNotFoundException"), "{text}");
}

#[tokio::test]
async fn a_group_is_found_paged_through_and_seen_late() {
    let world = World::start().await;
    world.double.account(|aws, now| {
        for number in 1..=5 {
            aws.fleet.launch("nats", &id(number), address(number), "InService", now);
        }
        aws.fleet.set_state(&id(5), "Terminating:Wait", now);
        let paging = aws_double::fleet::Paging { at_most: 1, empty_first: true };
        (aws.fleet.autoscaling_paging, aws.fleet.ec2_paging) = (paging, paging);
    });
    let asg = world.asg(Some("nats"));
    assert_eq!(numbers(&asg.sight().await.unwrap()), ([1, 2, 3, 4].into(), Vec::new()));
    assert!(world.double.calls(Operation::DescribeInstances).len() > 3);
    // The group knows an instance that EC2 doesn't know yet.
    world.double.account(|aws, now| {
        aws.fleet.ec2_lag = time::Duration::hours(1);
        aws.fleet.launch("nats", &id(6), address(6), "Pending", now);
        aws.fleet.autoscaling_paging.empty_first = false;
    });
    assert_eq!(numbers(&asg.sight().await.unwrap()), ([1, 2, 3, 4].into(), vec![id(6)]));
    world.double.account(|aws, _| aws.fleet.ec2_lag = time::Duration::ZERO);
    assert_eq!(numbers(&asg.sight().await.unwrap()), ([1, 2, 3, 4, 6].into(), Vec::new()));
    // Without a configured name, the agent asks for the group of this instance.
    assert_eq!(world.asg(None).sight().await.unwrap().group.as_deref(), Some("nats"));
}

#[tokio::test]
async fn the_nodes_of_several_groups_are_one_cluster() {
    let world = World::start().await;
    world.double.account(|aws, now| {
        for (group, number) in [("nats-a", 1), ("nats-a", 2), ("nats-b", 3), ("other", 4)] {
            aws.fleet.launch(group, &id(number), address(number), "InService", now);
        }
    });
    let names = ["nats-a", "nats-b"].map(ToOwned::to_owned);
    let seen = Asg::new(&world.config, node(), names, AddressLookup::Ec2, 6222).sight().await.unwrap();
    assert_eq!(numbers(&seen), ([1, 2, 3].into(), Vec::new()));
    assert_eq!(seen.group, None);
    let names = ["nats-a", "absent"].map(ToOwned::to_owned);
    let error = Asg::new(&world.config, node(), names, AddressLookup::Ec2, 6222).sight().await.unwrap_err();
    assert!(error.to_string().contains("\"absent\""), "{error}");
}

#[tokio::test]
async fn an_instance_that_is_attached_to_another_group_is_looked_up_again_and_otherwise_never() {
    let world = World::start().await;
    let launch = |group: &'static str, numbers: &'static [u8]| {
        world.double.account(|aws, now| {
            for number in numbers {
                aws.fleet.launch(group, &id(*number), address(*number), "InService", now);
            }
        });
    };
    let lookups = || world.double.calls(Operation::DescribeAutoScalingInstances).len();
    launch("old", &[1, 2]);
    let asg = world.asg(None);
    for _ in 0..3 {
        assert_eq!(numbers(&asg.sight().await.unwrap()), ([1, 2].into(), Vec::new()));
    }
    assert_eq!(lookups(), 1);
    // This instance is in no group for a while: the old group is the best that is known.
    world.double.account(|aws, now| aws.fleet.terminate(&id(1), now));
    let seen = asg.sight().await.unwrap();
    assert_eq!((seen.group.as_deref(), numbers(&seen).0), (Some("old"), [2].into()));
    launch("new", &[1, 3]);
    for _ in 0..3 {
        let seen = asg.sight().await.unwrap();
        assert_eq!((seen.group.as_deref(), numbers(&seen).0), (Some("new"), [1, 3].into()));
    }
    assert_eq!(lookups(), 3);
    // A group can be deleted once its instances are gone.
    launch("newest", &[1]);
    world.double.account(|aws, _| aws.fleet.delete_group("new"));
    assert_eq!(asg.sight().await.unwrap().group.as_deref(), Some("newest"));
}

fn numbers(seen: &Sighting) -> (std::collections::BTreeSet<u8>, Vec<String>) {
    let last = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => 0,
    };
    (seen.peers.iter().map(|peer| last(peer.address)).collect(), seen.unresolved.clone())
}

#[tokio::test]
async fn every_fault_of_the_wire_is_an_error_that_names_the_call_and_is_over_when_it_is_over() {
    let mut world = World::start().await;
    world.double.account(|aws, now| aws.fleet.launch("nats", &id(1), address(1), "InService", now));
    let (issuer, trust, asg) =
        (world.issuer(), SecretsManager::new(&world.config, "trust", None), world.asg(Some("nats")));
    let ask = async || {
        [
            issuer.ca_pem().await.err().map(|error| error.to_string()),
            trust.stored().await.err().map(|error| error.to_string()),
            asg.sight().await.err().map(|error| error.to_string()),
        ]
    };
    let names = ["GetCertificateAuthorityCertificate", "GetSecretValue", "DescribeAutoScalingGroups"];
    let operations = [
        Operation::GetCertificateAuthorityCertificate,
        Operation::GetSecretValue,
        Operation::DescribeAutoScalingGroups,
    ];
    for (fault, word) in [
        (Fault::Error("SomethingNewException"), "SomethingNewException"),
        (Fault::Throttled, "Thrott"),
        (Fault::Denied, "AccessDenied"),
        (Fault::Status(500), "HTTP 500"),
        (Fault::Status(503), "HTTP 503"),
        (Fault::Reset, ""),
        (Fault::Truncated, ""),
        (Fault::Half, ""),
        (Fault::Huge, ""),
        (Fault::Html, ""),
        (Fault::Empty, ""),
    ] {
        for operation in operations {
            world.double.set_fault(operation, Some(fault.clone()));
        }
        for (answer, name) in ask().await.into_iter().zip(names) {
            let text = answer.unwrap_or_else(|| panic!("{fault:?} of {name} is no error"));
            assert!(text.contains(name) && text.contains(word), "{fault:?}: {text}");
        }
        for operation in operations {
            world.double.set_fault(operation, None);
        }
        assert_eq!(ask().await, [None, None, None], "after {fault:?}");
    }
    world.double.queue_faults(Operation::GetSecretValue, [Some(Fault::Throttled), None]);
    let second = [ask().await[1].is_some(), ask().await[1].is_some()];
    assert_eq!(second, [true, false]);
    world.double.cut().await;
    assert!(ask().await.iter().all(Option::is_some));
    world.double.restore().await.unwrap();
    assert_eq!(ask().await, [None, None, None]);
}

/// The SDK reads an answer by its call, whatever content type the answer claims. A proxy that changes the content type
/// does no harm.
#[tokio::test]
async fn a_true_answer_under_a_wrong_content_type_is_read() {
    let world = World::start().await;
    world.double.account(|aws, now| aws.fleet.launch("nats", &id(1), address(1), "InService", now));
    for operation in [
        Operation::GetCertificateAuthorityCertificate,
        Operation::IssueCertificate,
        Operation::GetCertificate,
        Operation::GetSecretValue,
        Operation::DescribeAutoScalingInstances,
        Operation::DescribeAutoScalingGroups,
        Operation::DescribeInstances,
    ] {
        world.double.set_fault(operation, Some(Fault::ContentType));
    }
    let (issuer, csr) = (world.issuer(), csr());
    let collected = chain(&issuer, &request(&issuer, &csr, DAY).await.unwrap()).await;
    let bundle = SecretsManager::new(&world.config, "trust", None).fetch().await.unwrap();
    bundle.verify(&collected, &csr.key, &sans(), now()).unwrap();
    assert_eq!(numbers(&world.asg(None).sight().await.unwrap()), ([1].into(), Vec::new()));
}

#[tokio::test]
async fn a_certificate_with_a_defect_is_not_accepted_and_a_chain_in_any_order_is() {
    let world = World::start().await;
    let (issuer, csr) = (world.issuer(), csr());
    let handle = request(&issuer, &csr, DAY).await.unwrap();
    let bundle = TrustBundle::parse(issuer.ca_pem().await.unwrap().as_bytes(), "issuer", "1").unwrap();
    let collect = async |fault| {
        world.double.set_fault(Operation::GetCertificate, fault);
        issuer.collect(&handle).await
    };
    for defect in [
        Defect::OtherKey,
        Defect::NoSan,
        Defect::MissingSan,
        Defect::ServerAuthOnly,
        Defect::NoExtendedKeyUsage,
        Defect::Expired,
        Defect::NotYetValid,
        Defect::OtherAuthority,
    ] {
        let chain = collect(Some(Fault::Certificate(defect))).await.unwrap().unwrap();
        bundle.verify(&chain, &csr.key, &sans(), now()).expect_err(&format!("{defect:?}"));
    }
    assert!(collect(Some(Fault::ChainMissing)).await.unwrap_err().to_string().contains("GetCertificate"));
    for fault in [Some(Fault::ChainOutOfOrder), None] {
        bundle.verify(&collect(fault).await.unwrap().unwrap(), &csr.key, &sans(), now()).unwrap();
    }
    assert_eq!(world.double.certificates(), 1);
}
