//! Fuzzes trust bundles and the verification of chains.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nats_tls_agent::issue::IssuedChain;
use nats_tls_agent::trust::TrustBundle;
use nats_tls_agent::x509::csr::{PrivateKeyPem, public_key_der};
use nats_tls_agent::x509::san::Sans;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::logged;

const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);
const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 5));

/// A valid chain: leaf, intermediate and root in DER, with the leaf's key. A process makes the chain once.
struct Sound {
    der: [Vec<u8>; 3],
    key: PrivateKeyPem,
    sans: Sans,
}

static SOUND: LazyLock<Sound> = LazyLock::new(|| {
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    };
    let [root_key, ca_key, leaf_key] = std::array::from_fn(|_| KeyPair::generate().unwrap());
    let (root, ca) = (authority("root"), authority("intermediate"));
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::IpAddress(OWN)];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    leaf.not_before = NOW - Duration::HOUR;
    leaf.not_after = NOW + Duration::WEEK;
    let root_der = root.self_signed(&root_key).unwrap().der().to_vec();
    let ca_der = ca.signed_by(&ca_key, &Issuer::new(root, root_key)).unwrap().der().to_vec();
    let leaf_der = leaf.signed_by(&leaf_key, &Issuer::new(ca, ca_key)).unwrap().der().to_vec();
    Sound {
        der: [leaf_der, ca_der, root_der],
        key: PrivateKeyPem::new(Zeroizing::new(leaf_key.serialize_pem())),
        sans: Sans { ips: [OWN].into(), ..Sans::default() },
    }
});

fn pem(der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Fuzzes an issuer's answer. If the first byte is even, the rest are edits of a valid chain, four bytes each. If the
/// first byte is odd, the rest is leaf, chain and bundle as text, with a NUL between the texts.
pub fn chain(input: &[u8]) {
    let Some((mode, rest)) = input.split_first() else { return };
    let (mut leaf_pem, mut chain_pem, mut bundle) = (String::new(), String::new(), String::new());
    if mode % 2 == 0 {
        let [leaf, ca, root] = edited(rest).map(|der| pem(&der));
        (leaf_pem, chain_pem, bundle) = match mode / 2 % 4 {
            0 => (leaf, ca, root),
            1 => (leaf, root.clone() + &ca, root),
            2 => (leaf + &ca, String::new(), root),
            _ => (leaf, String::new(), ca),
        };
    } else {
        let texts = [&mut leaf_pem, &mut chain_pem, &mut bundle];
        for (text, bytes) in texts.into_iter().zip(rest.split(|byte| *byte == 0)) {
            *text = String::from_utf8_lossy(bytes).into_owned();
        }
    }
    let sound_root = || TrustBundle::parse(pem(&SOUND.der[2]).as_bytes(), "sound", "1").unwrap();
    let bundle = TrustBundle::parse(bundle.as_bytes(), "fuzzed", "1").unwrap_or_else(|_| sound_root());
    match bundle.verify(&IssuedChain { leaf_pem, chain_pem }, &SOUND.key, &SOUND.sans, NOW) {
        Ok(verified) => {
            // The signed part of an accepted leaf is unchanged.
            let (_, leaf) = x509_parser::parse_x509_certificate(&verified.leaf().der).unwrap();
            let (_, sound) = x509_parser::parse_x509_certificate(&SOUND.der[0]).unwrap();
            assert_eq!(leaf.tbs_certificate.as_ref(), sound.tbs_certificate.as_ref());
            assert_eq!(leaf.public_key().raw, public_key_der(&SOUND.key).unwrap());
            assert!(bundle.chains(verified.chain(), NOW));
        }
        Err(rejected) => {
            logged(&rejected);
            assert!(!rest.is_empty() || mode % 2 != 0, "a sound chain is refused: {rejected}");
        }
    }
}

fn edited(edits: &[u8]) -> [Vec<u8>; 3] {
    let mut der = SOUND.der.clone();
    for edit in edits.chunks_exact(4).take(64) {
        let certificate = &mut der[usize::from(edit[0] % 3)];
        let at = usize::from(u16::from_be_bytes([edit[1], edit[2]])) % (certificate.len() + 1);
        match edit[0] / 3 % 4 {
            0 if at < certificate.len() => certificate[at] ^= edit[3],
            1 => certificate.insert(at, edit[3]),
            2 if at < certificate.len() => drop(certificate.remove(at)),
            _ => certificate.truncate(at.max(1)),
        }
    }
    der
}

/// Fuzzes a trust bundle in PEM. A parsed bundle that is written and parsed again gives the same anchors.
pub fn trust_bundle(input: &[u8]) {
    match TrustBundle::parse(input, "fuzzed", "1") {
        Ok(bundle) => {
            assert!(!bundle.anchors.is_empty());
            let again = TrustBundle::parse(bundle.to_pem().as_bytes(), "fuzzed", "1").unwrap();
            assert_eq!(again.anchors, bundle.anchors);
            assert_eq!(bundle.keeping(&again, |_| true).anchors, bundle.anchors);
        }
        Err(error) => logged(&error),
    }
}
