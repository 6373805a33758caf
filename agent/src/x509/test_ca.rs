//! Certificates for tests.

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::x509::csr::PrivateKeyPem;
use crate::x509::san::{DnsName, Sans};

/// Every default certificate is valid now.
pub(crate) const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);

/// A CA with its key.
pub(crate) struct Ca {
    pub(crate) pem: String,
    pub(crate) der: Vec<u8>,
    params: CertificateParams,
    key: KeyPair,
}

impl Ca {
    pub(crate) fn root(name: &str) -> Self {
        Self::root_with(name, |_| ())
    }

    pub(crate) fn root_with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (params, key) = Self::params(name, change);
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), der: certificate.der().to_vec(), params, key }
    }

    pub(crate) fn below(&self, name: &str) -> Self {
        self.below_with(name, |_| ())
    }

    pub(crate) fn below_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (params, key) = Self::params(name, change);
        let certificate = params.signed_by(&key, &self.issuer()).unwrap();
        Self { pem: certificate.pem(), der: certificate.der().to_vec(), params, key }
    }

    /// This CA signs another certificate for the key of `ca`.
    pub(crate) fn again(&self, ca: &Self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = ca.params.clone();
        change(&mut params);
        let key = KeyPair::from_pem(&ca.key.serialize_pem()).unwrap();
        let certificate = params.signed_by(&key, &self.issuer()).unwrap();
        Self { pem: certificate.pem(), der: certificate.der().to_vec(), params, key }
    }

    fn params(name: &str, change: impl FnOnce(&mut CertificateParams)) -> (CertificateParams, KeyPair) {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = NOW - Duration::days(365);
        params.not_after = NOW + Duration::days(365);
        change(&mut params);
        (params, KeyPair::generate().unwrap())
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    /// A leaf for `key` with the names of [`sans`] and both usages.
    pub(crate) fn leaf(&self, key: &KeyPair) -> Certificate {
        self.leaf_with(key, |_| ())
    }

    pub(crate) fn leaf_with(&self, key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Certificate {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "node");
        params.subject_alt_names = vec![
            SanType::DnsName("n1.nats.internal".try_into().unwrap()),
            SanType::IpAddress([10, 0, 1, 5].into()),
            SanType::URI("spiffe://nats/n1".try_into().unwrap()),
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = NOW - Duration::hours(1);
        params.not_after = NOW + Duration::days(7);
        change(&mut params);
        params.signed_by(key, &self.issuer()).unwrap()
    }
}

/// One leaf's key, in both forms.
pub(crate) fn key() -> (KeyPair, PrivateKeyPem) {
    let key = KeyPair::generate().unwrap();
    let pem = PrivateKeyPem::new(Zeroizing::new(key.serialize_pem()));
    (key, pem)
}

/// The names and addresses that [`Ca::leaf`] carries.
pub(crate) fn sans() -> Sans {
    Sans {
        dns: [DnsName::try_from("n1.nats.internal".to_owned()).unwrap()].into(),
        ips: [[10, 0, 1, 5].into()].into(),
        ..Sans::default()
    }
}

/// A CA with critical policies (any policy), as some public roots have.
pub(crate) fn with_critical_policies(params: &mut CertificateParams) {
    let any = vec![0x30, 0x08, 0x30, 0x06, 0x06, 0x04, 0x55, 0x1d, 0x20, 0x00];
    let mut policies = CustomExtension::from_oid_content(&[2, 5, 29, 32], any);
    policies.set_criticality(true);
    params.custom_extensions.push(policies);
}
