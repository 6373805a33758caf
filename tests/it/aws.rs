//! The AWS seams against moto, an IMDSv2 stub for each node, and scripted answers where moto lacks the semantics.

#![allow(clippy::unwrap_used, reason = "a failed fixture fails the test at its own line")]

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::imds::{Fault, ImdsStub, InstanceFacts};
use harness::moto::{Moto, REGION};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use nats_tls_agent::aws::AwsSettings;
use nats_tls_agent::config::{AddressLookup, CaArn, NodeConfig};
use nats_tls_agent::credential::ClusterCredential;
use nats_tls_agent::credential::secret::ClusterSecret;
use nats_tls_agent::error::{RemoteError, RemoteErrorKind};
use nats_tls_agent::issue::acm_pca::AcmPca;
use nats_tls_agent::issue::{CertificateHandle, IssueRequest, Issuer};
use nats_tls_agent::node::{Needs, Node, identify_through};
use nats_tls_agent::peers::PeerSource;
use nats_tls_agent::peers::asg::Asg;
use nats_tls_agent::trust::sources::secrets_manager::SecretsManager;
use nats_tls_agent::x509::csr::{Csr, KeyAlgorithm, public_key_der};
use nats_tls_agent::x509::san::{DnsName, Sans};
use time::OffsetDateTime;
use time::macros::datetime;
use tokio::net::TcpListener;

const ID: &str = "i-0123456789abcdef0";
const CA: &str = "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/11111111-2222-3333-4444-555555555555";
const NOW: OffsetDateTime = datetime!(2026-11-23 12:00 UTC);
const WEEK: Duration = Duration::from_hours(7 * 24);
const EVERYTHING: Needs = Needs { instance_id: true, region: true, zone: false, tags: BTreeSet::new() };

// === Identity ===

#[tokio::test]
async fn a_node_without_a_node_section_learns_everything_from_imdsv2() {
    let mut facts = InstanceFacts::new(ID, REGION, IpAddr::from([10, 0, 1, 5]));
    facts.addresses.extend(["10.0.1.6".parse::<IpAddr>().unwrap(), "2001:db8::5".parse().unwrap()]);
    facts.local_hostname = "nats-a.corp.example other.example".into();
    let imds = ImdsStub::start(facts).await.unwrap();
    let node = identify_through(&at_imds(&imds), &NodeConfig::default(), EVERYTHING).await.unwrap();
    assert_eq!(node.name, ID);
    assert_eq!((node.instance_id.as_deref(), node.region.as_deref()), (Some(ID), Some(REGION)));
    assert_eq!(node.address, IpAddr::from([10, 0, 1, 5]));
    assert_eq!(node.sans.ips.len(), 3);
    let names: Vec<&str> = node.sans.dns.iter().map(DnsName::as_str).collect();
    assert_eq!(
        names,
        [
            "i-0123456789abcdef0.eu-west-1.compute.internal",
            "ip-10-0-1-5.eu-west-1.compute.internal",
            "nats-a.corp.example"
        ]
    );
}

#[tokio::test]
async fn given_addresses_are_not_asked_for() {
    let imds = ImdsStub::start(InstanceFacts::new(ID, REGION, IpAddr::from([10, 0, 1, 5]))).await.unwrap();
    let config = NodeConfig { addresses: Some(vec![IpAddr::from([192, 0, 2, 7])]), ..NodeConfig::default() };
    let node = identify_through(&at_imds(&imds), &config, EVERYTHING).await.unwrap();
    assert_eq!(node.address, IpAddr::from([192, 0, 2, 7]));
    assert_eq!(node.sans.ips.len(), 1);
    assert!(imds.asked().iter().all(|path| !path.contains("ipv4")), "{:?}", imds.asked());
}

#[tokio::test]
async fn metadata_that_is_off_or_talks_nonsense_is_named_with_a_remedy() {
    let imds = ImdsStub::start(InstanceFacts::new(ID, REGION, IpAddr::from([10, 0, 1, 5]))).await.unwrap();
    for (fault, expected) in [
        (Fault::Disabled, "no session token"),
        (Fault::Status(404), "HTTP 404"),
        (Fault::Status(500), "HTTP 500"),
        (Fault::Answer("<html>captive portal</html>".into()), "which is not"),
        (Fault::Answer("x".repeat(9 * 1024 * 1024)), "no answer"),
    ] {
        imds.set_fault(Some(fault));
        let error = identify_through(&at_imds(&imds), &NodeConfig::default(), EVERYTHING).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("/latest/") && text.contains("node.addresses") && text.contains("hop limit"), "{text}");
        assert!(text.len() < 1000);
    }
}

// === Issue ===

#[tokio::test]
async fn pca_issues_for_our_key_and_names_its_ca() {
    let aws = Aws::start().await;
    let ca = aws.moto.create_ca("nats", "GENERAL_PURPOSE").await.unwrap();
    let issuer = AcmPca::new(&aws.config().await, arn(&ca.arn), None);
    assert_eq!(issuer.ca_pem().await.unwrap().trim(), ca.pem.trim());
    let node = node(IpAddr::from([127, 0, 16, 9]));
    let csr = Csr::generate(&node.name, &node.sans, KeyAlgorithm::EcdsaP256).unwrap();
    let handle = ask(&issuer, &csr.pem, Duration::from_hours(1)).await.unwrap();
    assert!(handle.0.starts_with(&ca.arn));
    let chain = issuer.collect(&handle).await.unwrap().unwrap();
    assert_eq!(chain.chain_pem.trim(), ca.pem.trim());
    let (_, pem) = x509_parser::pem::parse_x509_pem(chain.leaf_pem.as_bytes()).unwrap();
    let leaf = pem.parse_x509().unwrap();
    assert_eq!(leaf.public_key().raw, public_key_der(&csr.key).unwrap());
}

#[tokio::test]
async fn a_short_lived_ca_is_refused_a_longer_validity_before_it_is_asked() {
    let aws = Aws::start().await;
    let ca = aws.moto.create_ca("short", "SHORT_LIVED_CERTIFICATE").await.unwrap();
    let issuer = AcmPca::new(&aws.config().await, arn(&ca.arn), None);
    let node = node(IpAddr::from([127, 0, 16, 9]));
    let csr = Csr::generate(&node.name, &node.sans, KeyAlgorithm::EcdsaP256).unwrap();
    ask(&issuer, &csr.pem, WEEK).await.unwrap();
    let error = ask(&issuer, &csr.pem, WEEK + Duration::from_mins(1)).await.unwrap_err();
    assert_eq!(error.kind, RemoteErrorKind::Permanent);
    let text = error.to_string();
    assert!(text.contains("short-lived") && text.contains("validity = \"7d\""), "{text}");
}

#[tokio::test]
async fn an_unknown_ca_is_an_error_of_the_call() {
    let aws = Aws::start().await;
    let issuer = AcmPca::new(&aws.config().await, arn(CA), None);
    let error = issuer.ca_pem().await.unwrap_err();
    assert!(error.to_string().starts_with("acm-pca:GetCertificateAuthorityCertificate on arn:aws:acm-pca:"), "{error}");
    let service = Scripted::start().await;
    service.script([self::error(400, "ResourceNotFoundException")]);
    let error = ask(&AcmPca::new(&service.config().await, arn(CA), None), "csr", WEEK).await.unwrap_err();
    assert_eq!(error.kind, RemoteErrorKind::Permanent);
    assert!(error.to_string().contains("check issuer.ca_arn"), "{error}");
}

/// The codes that `GetCertificate` and `IssueCertificate` document
/// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_GetCertificate.html>,
/// <https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html>) and the throttling of
/// <https://docs.aws.amazon.com/privateca/latest/userguide/PcaLimits.html>.
#[tokio::test]
async fn pca_errors_are_sorted_by_what_they_mean() {
    let service = Scripted::start().await;
    let issuer = AcmPca::new(&service.config().await, arn(CA), None);
    for (status, code, expected) in [
        (400, "RequestFailedException", RemoteErrorKind::Permanent),
        (400, "ResourceNotFoundException", RemoteErrorKind::Absent),
        (400, "InvalidStateException", RemoteErrorKind::Unavailable),
        (400, "LimitExceededException", RemoteErrorKind::Quota),
        (400, "ThrottlingException", RemoteErrorKind::Throttled),
        (400, "AccessDeniedException", RemoteErrorKind::Denied),
        (400, "ExpiredTokenException", RemoteErrorKind::Denied),
        (500, "InternalFailure", RemoteErrorKind::Unavailable),
    ] {
        service.script([error(status, code)]);
        let error = issuer.collect(&CertificateHandle(format!("{CA}/certificate/1"))).await.unwrap_err();
        assert_eq!(error.kind, expected, "{code}");
        let text = error.to_string();
        assert!(text.contains(code) && text.contains("the service's own words") && text.contains("req-42"), "{text}");
        let asked = service.asked();
        let calls = asked.iter().map(|(call, _)| call.trim_start_matches("ACMPrivateCA.")).collect::<Vec<_>>();
        // An answer that leaves out the CA's status is followed by the question for it.
        let status = (code == "InvalidStateException").then_some("DescribeCertificateAuthority");
        let expected: Vec<&str> = std::iter::once("GetCertificate").chain(status).collect();
        assert_eq!(calls, expected, "the SDK must not repeat {code}");
    }
    service.script([error(400, "RequestInProgressException")]);
    let collected = issuer.collect(&CertificateHandle(format!("{CA}/certificate/1"))).await;
    assert_eq!((collected.unwrap(), service.asked().len()), (None, 1));
}

/// PCA's words leave the status out. The remedy is the status's own where the role may ask for it.
#[tokio::test]
async fn a_ca_that_does_not_issue_is_told_by_its_status_where_the_role_may_ask() {
    let service = Scripted::start().await;
    let issuer = AcmPca::new(&service.config().await, arn(CA), None);
    let describe = |status: &str| ok(&serde_json::json!({"CertificateAuthority": {"Status": status}}));
    for (described, word) in [
        (describe("EXPIRED"), "import-certificate-authority-certificate"),
        (describe("DELETED"), "restore-certificate-authority"),
        (describe("DISABLED"), "--status ACTIVE"),
        (describe("FAILED"), "make another CA"),
        (describe("CREATING"), "being made"),
        (describe("PENDING_CERTIFICATE"), "get-certificate-authority-csr"),
        (describe("SOMETHING_NEW"), "must be ACTIVE"),
        (error(400, "AccessDeniedException"), "describe-certificate-authority shows"),
    ] {
        service.script([error(400, "InvalidStateException"), described]);
        let error = issuer.collect(&CertificateHandle(format!("{CA}/certificate/1"))).await.unwrap_err();
        assert_eq!(error.code.as_deref(), Some("InvalidStateException"));
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
}

#[tokio::test]
async fn a_request_carries_the_token_the_validity_and_the_algorithm_of_the_cas_key() {
    let service = Scripted::start().await;
    let issuer = AcmPca::new(&service.config().await, arn(CA), None);
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let ca = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
    let arn_only = serde_json::json!({"CertificateArn": format!("{CA}/certificate/1")});
    service.script([ok(&serde_json::json!({"Certificate": ca})), ok(&arn_only), ok(&arn_only)]);
    ask(&issuer, "csr", Duration::from_secs(90)).await.unwrap();
    ask(&issuer, "csr", WEEK).await.unwrap();
    let asked = service.asked();
    let calls: Vec<&str> = asked.iter().map(|(call, _)| call.as_str()).collect();
    // The CA's key never changes, so the issuer asks for the key once.
    let prefix = "ACMPrivateCA.";
    assert_eq!(
        calls,
        ["GetCertificateAuthorityCertificate", "IssueCertificate", "IssueCertificate"].map(|c| format!("{prefix}{c}"))
    );
    let first: serde_json::Value = serde_json::from_str(&asked[1].1).unwrap();
    assert_eq!(first["SigningAlgorithm"], "SHA384WITHECDSA");
    assert_eq!(first["IdempotencyToken"], "token-1");
    assert_eq!(first["TemplateArn"], "arn:aws:acm-pca:::template/EndEntityCertificate/V1");
    assert_eq!(first["Validity"], serde_json::json!({"Type": "ABSOLUTE", "Value": NOW.unix_timestamp() + 90}));
    let second: serde_json::Value = serde_json::from_str(&asked[2].1).unwrap();
    assert_eq!(second["Validity"], serde_json::json!({"Type": "DAYS", "Value": 7}));
}

#[tokio::test]
async fn invariant_08_an_answer_without_a_certificate_or_without_an_end_is_refused() {
    let service = Scripted::start().await;
    let issuer = AcmPca::new(&service.config().await, arn(CA), None);
    let handle = CertificateHandle(format!("{CA}/certificate/1"));
    for answer in [
        ok(&serde_json::json!({})),
        ok(&serde_json::json!({"Certificate": "", "CertificateChain": ""})),
        ok(&serde_json::json!({"Certificate": "-----BEGIN CERTIFICATE-----\nMIIB", "CertificateChain": ""})),
        ok(&serde_json::json!({"Certificate": "x".repeat(40_000), "CertificateChain": ""})),
        ok(&serde_json::json!({"Certificate": "x".repeat(9 * 1024 * 1024)})),
        (200, "{\"Certificate\": \"-----BEGIN".into()),
        (200, "<html></html>".into()),
        (404, "<html>not here</html>".into()),
    ] {
        service.script([answer]);
        let error = issuer.collect(&handle).await.unwrap_err();
        assert_eq!(error.kind, RemoteErrorKind::Unavailable, "{error}");
        assert!(error.to_string().len() < 1500);
    }
}

// === Trust and the cluster credential ===

const PEM: &str = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";

#[tokio::test]
async fn a_secret_is_read_as_string_binary_or_json_and_always_its_current_version() {
    let aws = Aws::start().await;
    let config = aws.config().await;
    let read = async |id: &str, key: Option<&str>| {
        let value = SecretsManager::new(&config, id, key.map(ToOwned::to_owned)).stored().await?.pem;
        Ok::<_, nats_tls_agent::aws::secret::SecretError>((
            String::from_utf8(value.content.to_vec()).unwrap(),
            value.version,
        ))
    };
    let first = aws.moto.put_secret("string", PEM).await.unwrap();
    assert_eq!(read("string", None).await.unwrap(), (PEM.to_owned(), first.version.clone()));
    assert_eq!(read(&first.arn, None).await.unwrap().1, first.version);
    let binary = aws.moto.put_binary_secret("binary", PEM.as_bytes()).await.unwrap();
    assert_eq!(read("binary", None).await.unwrap(), (PEM.to_owned(), binary.version));
    let json = serde_json::json!({"a": PEM, "b": "no"}).to_string();
    let json = aws.moto.put_secret("json", &json).await.unwrap();
    assert_eq!(read("json", Some("a")).await.unwrap(), (PEM.to_owned(), json.version.clone()));
    assert_eq!(read("json", None).await.unwrap(), (PEM.to_owned(), json.version));

    let other = PEM.replace("MA", "MB");
    let second = aws.moto.put_secret("string", &other).await.unwrap();
    assert_eq!(read("string", None).await.unwrap(), (other.clone(), second.version.clone()));
    // The label AWSCURRENT moves back and forth. The version with the label counts.
    aws.moto.make_current("string", &first.version).await.unwrap();
    assert_eq!(read("string", None).await.unwrap(), (PEM.to_owned(), first.version));
    aws.moto.make_current("string", &second.version).await.unwrap();
    assert_eq!(read("string", None).await.unwrap(), (other, second.version));
}

#[tokio::test]
async fn an_unknown_secret_is_named_with_call_and_remedy() {
    let aws = Aws::start().await;
    let text = SecretsManager::new(&aws.config().await, "absent", None).stored().await.err().unwrap().to_string();
    for part in ["\"absent\"", "secretsmanager:GetSecretValue", "ResourceNotFoundException", "check the secret's name"]
    {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn the_cluster_credential_is_read_whole_or_not_at_all() {
    let aws = Aws::start().await;
    aws.moto.put_secret("route", r#"{"username": "route", "password": "s3cret"}"#).await.unwrap();
    let secret = ClusterSecret::new(&aws.config().await, "route");
    let versions = async |recently| {
        let versions = secret.versions(recently).await.unwrap().into_iter().map(|version| version.credential);
        versions.map(|ClusterCredential { username, password }| (username, password.to_string())).collect::<Vec<_>>()
    };
    let (long_ago, now) = (OffsetDateTime::UNIX_EPOCH, nats_tls_agent::clock::Clock::System.now());
    let was = ("route".to_owned(), "s3cret".to_owned());
    assert_eq!(versions(long_ago).await, std::slice::from_ref(&was));
    aws.moto.put_secret("route", r#"{"username": "other", "password": "s3cret-2"}"#).await.unwrap();
    let is = ("other".to_owned(), "s3cret-2".to_owned());
    // The secret returns a recent version together with the previous version.
    assert_eq!(versions(long_ago).await, [was, is.clone()]);
    assert_eq!(versions(now + Duration::from_mins(1)).await, [is]);
    aws.moto.put_secret("route", r#"{"username": "route", "pass": "s3cret"}"#).await.unwrap();
    let error = secret.versions(OffsetDateTime::UNIX_EPOCH).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
}

/// A policy can restrict the stage (`secretsmanager:VersionStage`), and the key of an old version can be gone.
#[tokio::test]
async fn a_version_before_that_may_not_be_read_keeps_no_node_from_the_current_one_and_one_that_is_away_does() {
    let service = Scripted::start().await;
    let secret = ClusterSecret::new(&service.config().await, "route");
    let value = serde_json::json!({"username": "route", "password": "s3cret"}).to_string();
    let current = serde_json::json!({"SecretString": value, "VersionId": "2", "CreatedDate": 1_772_366_400});
    for (code, read) in [
        ("ResourceNotFoundException", true),
        ("AccessDeniedException", true),
        ("DecryptionFailure", true),
        ("ThrottlingException", false),
        ("InternalServiceError", false),
    ] {
        let status = if code == "InternalServiceError" { 500 } else { 400 };
        service.script([ok(&current), error(status, code)]);
        let versions = secret.versions(OffsetDateTime::UNIX_EPOCH).await;
        assert_eq!(versions.is_ok_and(|versions| versions.len() == 1), read, "{code}");
    }
}

/// Secrets Manager returns the same code for a call that no policy allows and for a KMS key that the caller may not
/// use.
#[tokio::test]
async fn a_denied_secret_names_the_call_and_the_key() {
    let service = Scripted::start().await;
    let secret = ClusterSecret::new(&service.config().await, "route");
    for code in ["AccessDeniedException", "DecryptionFailure"] {
        service.script([error(400, code)]);
        let denied = secret.versions(OffsetDateTime::UNIX_EPOCH).await.unwrap_err().to_string();
        assert!(denied.contains("kms:Decrypt on the secret's key"), "{denied}");
        let is_of_the_key_alone = code == "DecryptionFailure";
        assert_eq!(denied.contains("allow secretsmanager:GetSecretValue"), !is_of_the_key_alone, "{denied}");
    }
}

/// An unreadable answer holds a secret. The error must not hold the secret.
#[tokio::test]
async fn invariant_01_a_secret_in_a_broken_answer_stays_out_of_the_error() {
    let service = Scripted::start().await;
    service.script([(200, r#"{"SecretString": "s3cret", "VersionId": 7}"#.into())]);
    let error =
        ClusterSecret::new(&service.config().await, "route").versions(OffsetDateTime::UNIX_EPOCH).await.unwrap_err();
    assert!(error.to_string().contains("could not be read"), "{error}");
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
}

#[cfg(feature = "ec2")]
mod peers {
    use harness::moto::Instance;
    use nats_tls_agent::peers::addresses::Addresses;

    use super::*;

    #[tokio::test]
    async fn a_group_of_five_is_seen_with_its_addresses_and_four_after_one_is_gone() {
        let aws = Aws::start().await;
        let members = aws.moto.launch("nats", 5).await.unwrap();
        let own = Node { instance_id: Some(members[0].id.clone()), ..node(members[0].address) };
        for lookup in [AddressLookup::Ec2, AddressLookup::Auto] {
            let asg = Asg::new(&aws.config().await, own.clone(), None, lookup, 6222);
            let seen = asg.sight().await.unwrap();
            assert_eq!(seen.group.as_deref(), Some("nats"));
            assert!(seen.unresolved.is_empty());
            assert_eq!(addresses(&seen), expected(&members));
        }
        let asg = Asg::new(&aws.config().await, own, Some("nats".into()), AddressLookup::Ec2, 6222);
        assert_eq!(addresses(&asg.sight().await.unwrap()), expected(&members));
        aws.moto.terminate(&members[4].id).await.unwrap();
        aws.moto.standby("nats", &members[3].id).await.unwrap();
        assert_eq!(addresses(&asg.sight().await.unwrap()), expected(&members[..3]));
        let grown = aws.moto.resize("nats", 4).await.unwrap();
        let in_service: Vec<_> = grown.into_iter().filter(|member| member.state == "InService").collect();
        assert_eq!(addresses(&asg.sight().await.unwrap()), expected(&in_service));
    }

    #[tokio::test]
    async fn a_group_or_an_instance_that_nobody_knows_is_an_error_and_not_an_empty_answer() {
        let aws = Aws::start().await;
        let node = node(IpAddr::from([127, 0, 16, 9]));
        let config = aws.config().await;
        let unknown = Asg::new(&config, node.clone(), Some("absent".into()), AddressLookup::Ec2, 6222);
        let text = unknown.sight().await.unwrap_err().to_string();
        assert!(text.contains("\"absent\"") && text.contains("discovery.asg_name"), "{text}");
        let text = Asg::new(&config, node, None, AddressLookup::Ec2, 6222).sight().await.unwrap_err().to_string();
        assert!(text.contains(ID) && text.contains("discovery.asg_name"), "{text}");
    }

    #[tokio::test]
    async fn one_instance_that_ec2_does_not_know_hides_no_other() {
        let aws = Aws::start().await;
        let members = aws.moto.launch("nats", 2).await.unwrap();
        let addresses = Addresses::new(&aws.config().await, node(IpAddr::from([127, 0, 16, 9])), AddressLookup::Ec2);
        let ids = [&members[0].id, &members[1].id, "i-00000000000000000"];
        let found = addresses.find(&ids).await.unwrap();
        let expected = members.iter().map(|member| (member.id.clone(), member.address)).collect();
        assert_eq!(found, expected);
        // The lookup remembers found addresses. It forgets addresses that nobody asks for any more.
        drop(aws);
        assert_eq!(addresses.find(&ids[..1]).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn names_that_do_not_resolve_leave_peers_unresolved_but_never_this_node() {
        let aws = Aws::start().await;
        let members = aws.moto.launch("nats", 2).await.unwrap();
        let own = Node { instance_id: Some(members[0].id.clone()), ..node(members[0].address) };
        let asg = Asg::new(&aws.config().await, own, None, AddressLookup::Dns, 6222);
        let seen = asg.sight().await.unwrap();
        assert_eq!(addresses(&seen), expected(&members[..1]));
        assert_eq!(seen.unresolved, [members[1].id.clone()]);
    }

    fn addresses(seen: &nats_tls_agent::peers::Sighting) -> Vec<(String, SocketAddr)> {
        let mut list: Vec<_> = seen.peers.iter().map(|peer| (peer.id.clone(), peer.address)).collect();
        list.sort();
        list
    }

    fn expected(members: &[Instance]) -> Vec<(String, SocketAddr)> {
        let mut list: Vec<_> =
            members.iter().map(|member| (member.id.clone(), SocketAddr::new(member.address, 6222))).collect();
        list.sort();
        list
    }
}

/// Pages as `DescribeAutoScalingGroups` documents them: a short or empty page may have a next page
/// (<https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_DescribeAutoScalingGroups.html>).
#[tokio::test]
async fn pages_are_followed_over_an_empty_one_and_not_for_ever() {
    let service = Scripted::start().await;
    let own = Node { instance_id: Some(ID.into()), ..node(IpAddr::from([127, 0, 16, 9])) };
    let asg = Asg::new(&service.config().await, own.clone(), Some("nats".into()), AddressLookup::Dns, 6222);
    service.script([groups("", Some("next")), groups(&member(ID, "InService"), None)]);
    let seen = asg.sight().await.unwrap();
    assert_eq!(seen.peers.len(), 1);
    assert_eq!(seen.peers[0].address, SocketAddr::new(own.address, 6222));
    assert!(service.asked()[1].1.contains("NextToken=next"));

    service.script(std::iter::repeat_n(groups("", Some("again")), 100));
    let text = asg.sight().await.unwrap_err().to_string();
    assert!(text.contains("pages"), "{text}");
}

// === Failures of every service ===

#[tokio::test]
async fn no_credentials_names_the_instance_profile() {
    let service = Scripted::start().await;
    service.imds.change(|facts| facts.role = None);
    let error = AcmPca::new(&service.config().await, arn(CA), None).ca_pem().await.unwrap_err();
    assert_eq!(error.kind, RemoteErrorKind::Denied, "{error}");
    let text = error.to_string();
    assert!(text.contains("credentials") && text.contains("profile"), "{text}");
    assert!(service.asked().is_empty());
}

#[tokio::test]
async fn an_endpoint_that_nobody_listens_at_is_unavailable() {
    let service = Scripted::start().await;
    let settings = AwsSettings { endpoint: Some("http://127.0.0.1:9".into()), ..service.settings() };
    let error = AcmPca::new(&settings.load().await, arn(CA), None).ca_pem().await.unwrap_err();
    assert_eq!(error.kind, RemoteErrorKind::Unavailable);
    assert!(error.to_string().contains("could not reach the endpoint"), "{error}");
    assert!(error.source.is_some());
}

#[tokio::test]
async fn invariant_08_an_endpoint_that_never_answers_is_given_up() {
    let service = Scripted::start().await;
    let issuer = AcmPca::new(&service.config().await, arn(CA), None);
    // The first call fetches the credentials and opens a connection. The test can pause the clock after that call.
    service.script([error(500, "InternalFailure"), NEVER]);
    issuer.ca_pem().await.unwrap_err();
    tokio::time::pause();
    let begin = tokio::time::Instant::now();
    let error = issuer.ca_pem().await.unwrap_err();
    assert_eq!(error.kind, RemoteErrorKind::Unavailable);
    assert!(error.to_string().contains("in time"), "{error}");
    assert!(begin.elapsed() <= nats_tls_agent::aws::CALL_TIMEOUT, "{:?}", begin.elapsed());
    assert_eq!(service.asked().len(), 2);
}

// === The SDK's conventions ===

/// The environment belongs to a whole process, so the checked code runs in its own process.
async fn in_an_environment_of(variables: &[(&str, &str)], test: &str) {
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--ignored", "--nocapture"]).env_clear().envs(variables.iter().copied());
    let output = child.kill_on_drop(true).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn endpoints_region_and_proxy_come_from_the_environment_and_metadata_is_asked_directly() {
    let service = Scripted::start().await;
    service.script([ok(&serde_json::json!({"Certificate": PEM}))]);
    let variables = [
        ("AWS_ENDPOINT_URL", "http://aws.invalid"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &service.imds.endpoint()),
        ("AWS_REGION", "eu-central-1"),
        ("HTTP_PROXY", &service.endpoint),
        ("HOME", "/nonexistent"),
    ];
    in_an_environment_of(&variables, "aws::the_environment_names_endpoints").await;
    assert_eq!(service.asked().len(), 1);
    assert!(
        service.imds.asked().iter().any(|path| path.contains("security-credentials")),
        "{:?}",
        service.imds.asked()
    );
}

#[tokio::test]
#[ignore = "run by the test above in an environment of its own"]
async fn the_environment_names_endpoints() {
    let node = nats_tls_agent::node::identify(&NodeConfig::default(), EVERYTHING).await.unwrap();
    assert_eq!((node.name.as_str(), node.region.as_deref()), (ID, Some("eu-central-1")));
    let settings = AwsSettings { region: node.region, ..AwsSettings::default() };
    assert_eq!(AcmPca::new(&settings.load().await, arn(CA), None).ca_pem().await.unwrap(), PEM);
}

#[tokio::test]
async fn fips_endpoints_come_from_the_environment() {
    let variables = [("AWS_USE_FIPS_ENDPOINT", "true"), ("AWS_REGION", "us-east-1"), ("HOME", "/nonexistent")];
    in_an_environment_of(&variables, "aws::the_environment_asks_for_fips").await;
}

#[tokio::test]
#[ignore = "run by the test above in an environment of its own"]
async fn the_environment_asks_for_fips() {
    let config = AwsSettings::from_environment().load().await;
    assert_eq!(config.use_fips(), Some(true));
    assert_eq!(config.region().map(AsRef::as_ref), Some("us-east-1"));
}

// === The fixtures ===

/// moto, and the metadata of an instance, which supplies the credentials.
struct Aws {
    moto: Moto,
    imds: ImdsStub,
}

impl Aws {
    async fn start() -> Self {
        let imds = ImdsStub::start(InstanceFacts::new(ID, REGION, IpAddr::from([127, 0, 16, 9])));
        let (moto, imds) = tokio::join!(Moto::start(), imds);
        Self { moto: moto.unwrap(), imds: imds.unwrap() }
    }

    async fn config(&self) -> aws_config::SdkConfig {
        let endpoint = Some(self.moto.endpoint().to_owned());
        AwsSettings { region: Some(REGION.into()), endpoint, ..at_imds(&self.imds) }.load().await
    }
}

fn at_imds(imds: &ImdsStub) -> AwsSettings {
    AwsSettings { imds_endpoint: Some(imds.endpoint()), ..AwsSettings::default() }
}

/// A service that gives scripted answers in order, and records the requests.
struct Scripted {
    endpoint: String,
    imds: ImdsStub,
    state: Arc<Mutex<Script>>,
    _server: tokio::task::JoinSet<()>,
}

/// An HTTP status and a body.
type Answer = (u16, String);

/// Takes the request and stays silent.
const NEVER: Answer = (0, String::new());

#[derive(Default)]
struct Script {
    answers: VecDeque<Answer>,
    /// `X-Amz-Target` and the body of each request.
    asked: Vec<(String, String)>,
}

impl Scripted {
    async fn start() -> Self {
        let imds = ImdsStub::start(InstanceFacts::new(ID, REGION, IpAddr::from([127, 0, 16, 9]))).await.unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(Script::default()));
        let mut server = tokio::task::JoinSet::new();
        server.spawn(Self::serve(listener, Arc::clone(&state)));
        Self { endpoint, imds, state, _server: server }
    }

    async fn serve(listener: TcpListener, state: Arc<Mutex<Script>>) {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let state = Arc::clone(&state);
            connections.spawn(async move {
                let answer = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let state = Arc::clone(&state);
                    async move {
                        use http_body_util::BodyExt;
                        let target = request.headers().get("x-amz-target").map(|t| t.to_str().unwrap().to_owned());
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let scripted = {
                            let mut state = state.lock().unwrap();
                            state.asked.push((target.unwrap_or_default(), String::from_utf8(body.to_vec()).unwrap()));
                            state.answers.pop_front()
                        };
                        let (status, text) = scripted.unwrap_or((418, "no more answers".into()));
                        if status == NEVER.0 {
                            std::future::pending::<()>().await;
                        }
                        let mut answer = Response::new(Full::<Bytes>::from(text));
                        *answer.status_mut() = status.try_into().unwrap();
                        answer.headers_mut().insert("x-amzn-requestid", "req-42".parse().unwrap());
                        Ok::<_, Infallible>(answer)
                    }
                });
                drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await);
            });
        }
    }

    fn settings(&self) -> AwsSettings {
        AwsSettings { region: Some(REGION.into()), endpoint: Some(self.endpoint.clone()), ..at_imds(&self.imds) }
    }

    async fn config(&self) -> aws_config::SdkConfig {
        self.settings().load().await
    }

    /// Sets the next answers and clears the recorded requests.
    fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        *self.state.lock().unwrap() = Script { answers: answers.into_iter().collect(), asked: Vec::new() };
    }

    fn asked(&self) -> Vec<(String, String)> {
        self.state.lock().unwrap().asked.clone()
    }
}

fn ok(body: &serde_json::Value) -> Answer {
    (200, body.to_string())
}

/// An error of the protocol AWS JSON 1.1 (<https://smithy.io/2.0/aws/protocols/aws-json-1_1-protocol.html>).
fn error(status: u16, code: &str) -> Answer {
    (status, serde_json::json!({"__type": code, "message": "the service's own words"}).to_string())
}

fn groups(members: &str, next: Option<&str>) -> Answer {
    let group = if members.is_empty() {
        String::new()
    } else {
        format!(
            "<member><AutoScalingGroupName>nats</AutoScalingGroupName><MinSize>0</MinSize><MaxSize>9</MaxSize>\
             <DesiredCapacity>1</DesiredCapacity><DefaultCooldown>300</DefaultCooldown><AvailabilityZones/>\
             <HealthCheckType>EC2</HealthCheckType><CreatedTime>2026-01-01T00:00:00Z</CreatedTime>\
             <Instances>{members}</Instances></member>"
        )
    };
    let next = next.map(|token| format!("<NextToken>{token}</NextToken>")).unwrap_or_default();
    let body = format!(
        "<DescribeAutoScalingGroupsResponse xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\">\
         <DescribeAutoScalingGroupsResult><AutoScalingGroups>{group}</AutoScalingGroups>{next}\
         </DescribeAutoScalingGroupsResult></DescribeAutoScalingGroupsResponse>"
    );
    (200, body)
}

fn member(id: &str, state: &str) -> String {
    format!(
        "<member><InstanceId>{id}</InstanceId><LifecycleState>{state}</LifecycleState>\
         <AvailabilityZone>eu-west-1a</AvailabilityZone><HealthStatus>Healthy</HealthStatus>\
         <ProtectedFromScaleIn>false</ProtectedFromScaleIn></member>"
    )
}

fn arn(text: &str) -> CaArn {
    CaArn::try_from(text.to_owned()).unwrap()
}

fn node(address: IpAddr) -> Node {
    Node {
        name: ID.into(),
        instance_id: Some(ID.into()),
        region: Some(REGION.into()),
        address,
        sans: Sans { ips: [address].into(), ..Sans::default() },
        further_addresses: [].into(),
        placement: nats_tls_agent::node::Placement::default(),
    }
}

async fn ask(issuer: &AcmPca, csr_pem: &str, validity: Duration) -> Result<CertificateHandle, RemoteError> {
    let signing_algorithm = &issuer.prepare(validity).await?;
    let request = IssueRequest { csr_pem, validity, now: NOW, signing_algorithm, idempotency_token: "token-1" };
    issuer.request(&request).await
}
