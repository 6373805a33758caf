use rcgen::{CertificateParams, DnType, PublicKeyData as _, SanType};
use time::macros::datetime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;

const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);

fn pca(settings: CaSettings) -> (Pca, String) {
    let mut pca = Pca::new("eu-west-1");
    let arn = pca.create_authority(settings, NOW).unwrap();
    (pca, arn)
}

fn root() -> (Pca, String) {
    pca(CaSettings::root("root"))
}

fn csr() -> (KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "n1");
    params.subject_alt_names =
        vec![SanType::DnsName("n1.nats.internal".try_into().unwrap()), SanType::IpAddress([10, 0, 1, 5].into())];
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    (key, pem)
}

fn asked<'a>(authority: &'a str, csr: &'a str) -> IssueCertificate<'a> {
    IssueCertificate {
        authority,
        csr,
        signing_algorithm: "SHA256WITHECDSA",
        template: Some("arn:aws:acm-pca:::template/EndEntityCertificate/V1"),
        validity: Validity::Days(7),
        not_before: None,
        token: Some("token"),
    }
}

fn der(pem: &str) -> Vec<u8> {
    x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents
}

fn collect(pca: &mut Pca, authority: &str, arn: &str) -> Collected {
    pca.get_certificate(authority, arn, NOW).unwrap()
}

#[test]
fn a_leaf_is_what_the_template_and_the_csr_say_and_nothing_else() {
    let (mut pca, ca) = root();
    let (key, csr) = csr();
    let arn = pca.issue_certificate(&asked(&ca, &csr), NOW).unwrap();
    assert!(arn.starts_with(&format!("{ca}/certificate/")), "{arn}");
    let collected = collect(&mut pca, &ca, &arn);
    let (leaf, authority) = (der(&collected.certificate), der(&collected.chain));
    let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
    let (_, authority) = X509Certificate::from_der(&authority).unwrap();
    leaf.verify_signature(Some(authority.public_key())).unwrap();
    assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
    assert_eq!(leaf.subject().to_string(), "CN=n1");
    assert_eq!(leaf.validity().not_before.timestamp(), (NOW - Duration::hours(1)).unix_timestamp());
    assert_eq!(leaf.validity().not_after.timestamp(), (NOW + Duration::days(7)).unix_timestamp());
    let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len();
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert_eq!((names, usage.server_auth, usage.client_auth, leaf.is_ca()), (2, true, true, false));
}

#[test]
fn a_subordinates_chain_goes_up_to_the_root() {
    let (mut pca, root) = root();
    let below = CaSettings { parent: Some(root.clone()), ..CaSettings::root("below") };
    let lifetime = Duration::days(365);
    let ca = pca.create_authority(CaSettings { lifetime, ..below }, NOW).unwrap();
    let arn = pca.issue_certificate(&asked(&ca, &csr().1), NOW).unwrap();
    let chain = collect(&mut pca, &ca, &arn).chain;
    let (own, above) = pca.get_certificate_authority_certificate(&ca, NOW).unwrap();
    let root_pem = pca.authority(&root).unwrap().pem().to_owned();
    assert_eq!((above.as_deref(), chain), (Some(root_pem.as_str()), format!("{own}{root_pem}")));
    assert_eq!(pca.get_certificate_authority_certificate(&root, NOW).unwrap(), (root_pem.clone(), None));
    let (own, root_pem) = (der(&own), der(&root_pem));
    let (_, own) = X509Certificate::from_der(&own).unwrap();
    own.verify_signature(Some(X509Certificate::from_der(&root_pem).unwrap().1.public_key())).unwrap();
}

#[test]
fn a_certificate_is_in_progress_until_its_time() {
    let (mut pca, ca) = root();
    pca.issuance_takes = Duration::seconds(2);
    let arn = pca.issue_certificate(&asked(&ca, &csr().1), NOW).unwrap();
    let early = pca.get_certificate(&ca, &arn, NOW + Duration::milliseconds(1999)).unwrap_err();
    assert_eq!(early.code, "RequestInProgressException");
    pca.get_certificate(&ca, &arn, NOW + Duration::seconds(2)).unwrap();
}

#[test]
fn a_token_is_one_certificate_for_five_minutes_and_is_paid_for_once() {
    let (mut pca, ca) = root();
    let (_, csr) = csr();
    let first = pca.issue_certificate(&asked(&ca, &csr), NOW).unwrap();
    let soon = NOW + TOKEN_LIFETIME - Duration::seconds(1);
    assert_eq!(pca.issue_certificate(&asked(&ca, &csr), soon).unwrap(), first);
    assert_eq!(pca.paid().len(), 1);
    let late = pca.issue_certificate(&asked(&ca, &csr), NOW + TOKEN_LIFETIME).unwrap();
    let unnamed = IssueCertificate { token: None, ..asked(&ca, &csr) };
    let other = pca.issue_certificate(&unnamed, NOW + TOKEN_LIFETIME).unwrap();
    assert!(late != first && other != late);
    let paid = pca.paid();
    assert_eq!((paid.len(), paid[0].key == paid[1].key, paid[2].token.as_deref()), (3, true, None));
}

#[test]
fn no_leaf_outlives_its_ca_or_the_seven_days_of_a_short_lived_one() {
    let short = CaSettings { usage_mode: UsageMode::ShortLivedCertificate, ..CaSettings::root("short") };
    let (mut pca, ca) = pca(CaSettings { lifetime: Duration::days(30), ..short });
    let (_, csr) = csr();
    let mut issue = |validity, now| {
        let request = IssueCertificate { validity, token: None, ..asked(&ca, &csr) };
        pca.issue_certificate(&request, now).map_err(|error| error.to_string())
    };
    issue(Validity::Days(7), NOW).unwrap();
    let error = issue(Validity::Days(8), NOW).unwrap_err();
    assert!(error.starts_with("ValidationException") && error.contains("7 days"), "{error}");
    let error = issue(Validity::Days(7), NOW + Duration::days(24)).unwrap_err();
    assert!(error.starts_with("ValidationException") && error.contains("authority validity"), "{error}");
    let end = (NOW + Duration::days(30)).unix_timestamp();
    issue(Validity::Absolute(end), NOW + Duration::days(24)).unwrap();
}

#[test]
fn only_an_active_ca_issues_and_one_without_a_certificate_shows_none() {
    let (mut pca, ca) = root();
    let (_, csr) = csr();
    let arn = pca.issue_certificate(&asked(&ca, &csr), NOW).unwrap();
    let later = NOW + Duration::days(4000);
    for (status, now, is_shown) in [
        (Status::PendingCertificate, NOW, false),
        (Status::Disabled, NOW, true),
        (Status::Active, later, true),
        (Status::Deleted, NOW, false),
    ] {
        pca.set_status(&ca, status).unwrap();
        let error = pca.issue_certificate(&IssueCertificate { token: None, ..asked(&ca, &csr) }, now).unwrap_err();
        assert_eq!(error.code, "InvalidStateException");
        assert_eq!(pca.get_certificate_authority_certificate(&ca, now).is_ok(), is_shown, "{status:?}");
        assert_eq!(pca.get_certificate(&ca, &arn, now).is_ok(), is_shown, "{status:?}");
    }
    pca.set_status(&ca, Status::Active).unwrap();
    assert_eq!(pca.describe_certificate_authority(&ca, later).unwrap().status(later).as_str(), "EXPIRED");
    assert_eq!(pca.authority("arn:x").unwrap_err().code, "ResourceNotFoundException");
}

#[test]
fn twenty_five_certificates_a_second_and_seventy_five_looks_are_the_quotas() {
    let (mut pca, ca) = root();
    let (_, csr) = csr();
    let answers: Vec<_> = (0..30).map(|_| pca.issue_certificate(&asked(&ca, &csr), NOW)).collect();
    let throttled = answers.iter().filter_map(|answer| answer.as_ref().err());
    assert!(throttled.clone().all(|error| error.code == "ThrottlingException"));
    assert_eq!(throttled.count(), 5);
    let arn = answers[0].clone().unwrap();
    assert_eq!((0..100).filter(|_| pca.get_certificate(&ca, &arn, NOW).is_ok()).count(), 75);
    assert!(pca.issue_certificate(&asked(&ca, &csr), NOW + Duration::seconds(1)).is_ok());
    assert_eq!(pca.quotas.issue_certificate.throttled(), 5);
    pca.certificates_per_ca = 1;
    let another = IssueCertificate { token: None, ..asked(&ca, &csr) };
    assert_eq!(pca.issue_certificate(&another, NOW).unwrap_err().code, "LimitExceededException");
}

#[test]
fn what_the_api_would_refuse_is_refused_by_the_same_name() {
    let (mut pca, ca) = pca(CaSettings { key: CaKey::EcSecp384r1, ..CaSettings::root("p384") });
    let (_, csr) = csr();
    let good = IssueCertificate { signing_algorithm: "SHA384WITHECDSA", ..asked(&ca, &csr) };
    let long = "t".repeat(37);
    // The position of one character within the signature's base64.
    let at = csr.len() - 60;
    let forged = format!("{}{}{}", &csr[..at], if &csr[at..=at] == "A" { "B" } else { "A" }, &csr[at + 1..]);
    for (request, code) in [
        (IssueCertificate { csr: "nonsense", ..good }, "MalformedCSRException"),
        (IssueCertificate { csr: &forged, ..good }, "MalformedCSRException"),
        (IssueCertificate { signing_algorithm: "SHA256WITHRSA", ..good }, "InvalidArgsException"),
        (
            IssueCertificate { template: Some("arn:aws:acm-pca:::template/RootCACertificate/V1"), ..good },
            "InvalidArnException",
        ),
        (IssueCertificate { token: Some(&long), ..good }, "ValidationException"),
        (IssueCertificate { not_before: Some(i64::from(u32::MAX)), ..good }, "ValidationException"),
        (IssueCertificate { authority: "arn:aws:acm-pca:::x", ..good }, "ResourceNotFoundException"),
    ] {
        assert_eq!(pca.issue_certificate(&request, NOW).unwrap_err().code, code);
    }
    assert!(pca.paid().is_empty());
    let arn = pca.issue_certificate(&good, NOW).unwrap();
    assert_eq!(pca.get_certificate(&ca, &ca, NOW).unwrap_err().code, "ResourceNotFoundException");
    pca.get_certificate(&ca, &arn, NOW).unwrap();
}

#[test]
fn a_defective_certificate_has_its_defect_and_no_other() {
    let (mut pca, ca) = root();
    let (key, csr) = csr();
    let arn = pca.issue_certificate(&asked(&ca, &csr), NOW).unwrap();
    let authority = der(pca.authority(&ca).unwrap().pem());
    let (_, authority) = X509Certificate::from_der(&authority).unwrap();
    for defect in [
        Defect::OtherKey,
        Defect::NoSan,
        Defect::MissingSan,
        Defect::NoExtendedKeyUsage,
        Defect::ServerAuthOnly,
        Defect::Expired,
        Defect::NotYetValid,
        Defect::OtherAuthority,
    ] {
        let pem = der(&pca.defective(&arn, defect, NOW).unwrap());
        let (_, leaf) = X509Certificate::from_der(&pem).unwrap();
        let names = leaf.subject_alternative_name().unwrap().map_or(0, |names| names.value.general_names.len());
        let usage = leaf.extended_key_usage().unwrap().map(|usage| (usage.value.server_auth, usage.value.client_auth));
        let now = x509_parser::time::ASN1Time::from_timestamp(NOW.unix_timestamp()).unwrap();
        let (begin, end) = (leaf.validity().not_before, leaf.validity().not_after);
        let seen = [
            (leaf.public_key().raw != key.subject_public_key_info(), Defect::OtherKey),
            (names == 0, Defect::NoSan),
            (names == 1, Defect::MissingSan),
            (usage.is_none(), Defect::NoExtendedKeyUsage),
            (usage == Some((true, false)), Defect::ServerAuthOnly),
            (end < now, Defect::Expired),
            (begin > now, Defect::NotYetValid),
            (leaf.verify_signature(Some(authority.public_key())).is_err(), Defect::OtherAuthority),
        ];
        let found: Vec<_> = seen.into_iter().filter_map(|(is_so, what)| is_so.then_some(what)).collect();
        assert_eq!(found, [defect]);
    }
}
