//! Signs certificates: correct certificates as a CA signs them, and defective certificates for tests.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use super::{Authority, CaKey, CaSettings};

/// The defect of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The certificate is for another key than the CSR's.
    OtherKey,
    /// The certificate has no SAN.
    NoSan,
    /// The certificate lacks all SANs except the first.
    MissingSan,
    /// The certificate has no extended key usage. For TLS that means any usage.
    NoExtendedKeyUsage,
    /// The certificate is for servers only.
    ServerAuthOnly,
    /// The certificate has expired.
    Expired,
    /// The certificate is not valid yet.
    NotYetValid,
    /// An unknown CA with the same name as the requested CA has signed the certificate.
    OtherAuthority,
}

/// Makes a CA's key and its certificate in PEM.
pub(super) fn authority(
    settings: &CaSettings,
    parent: Option<&Authority>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
) -> Result<(Issuer<'static, KeyPair>, String), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, settings.common_name.as_str());
    params.is_ca = IsCa::Ca(parent.map_or(BasicConstraints::Unconstrained, |_| BasicConstraints::Constrained(0)));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = parent.is_some();
    (params.not_before, params.not_after) = (not_before, not_after);
    let key = KeyPair::generate_for(match settings.key {
        CaKey::Rsa2048 => &rcgen::PKCS_RSA_SHA256,
        CaKey::EcPrime256v1 => &rcgen::PKCS_ECDSA_P256_SHA256,
        CaKey::EcSecp384r1 => &rcgen::PKCS_ECDSA_P384_SHA384,
    })?;
    let certificate = match parent {
        Some(parent) => params.signed_by(&key, &parent.issuer)?,
        None => params.self_signed(&key)?,
    };
    Ok((Issuer::new(params, key), certificate.pem()))
}

/// Parses a CSR and verifies its signature.
pub(super) fn parse(csr: &str) -> Result<CertificateSigningRequestParams, rcgen::Error> {
    CertificateSigningRequestParams::from_pem(csr)
}

/// SHA-256 of the public key.
pub(super) fn key_digest(csr: &CertificateSigningRequestParams) -> [u8; 32] {
    let spki = csr.public_key.subject_public_key_info();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &spki);
    let mut key = [0; 32];
    key.copy_from_slice(digest.as_ref());
    key
}

/// The end of the ARN of the template for clients, which differs in the extended key usage: clientAuth alone.
pub(super) const OF_CLIENTS: &str = ":acm-pca:::template/EndEntityClientAuthCertificate/V1";

/// Signs a leaf by the template EndEntityCertificate/V1, or by the template of clients
/// (<https://docs.aws.amazon.com/privateca/latest/userguide/template-definitions.html>).
///
/// Subject, subject alternative names and public key come from the CSR. The rest of the CSR is ignored. The template
/// adds CA:FALSE, key usage digitalSignature and keyEncipherment, extended key usage serverAuth and clientAuth, and
/// both key identifiers.
pub(super) fn leaf(
    authority: &Authority,
    csr: &CertificateSigningRequestParams,
    serial: u64,
    (not_before, not_after): (OffsetDateTime, OffsetDateTime),
    template: Option<&str>,
    defect: Option<Defect>,
) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = csr.params.distinguished_name.clone();
    params.subject_alt_names.clone_from(&csr.params.subject_alt_names);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = match template {
        Some(template) if template.ends_with(OF_CLIENTS) => vec![ExtendedKeyUsagePurpose::ClientAuth],
        _ => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from(serial));
    (params.not_before, params.not_after) = (not_before, not_after);
    match defect {
        None | Some(Defect::OtherKey | Defect::OtherAuthority) => {}
        Some(Defect::NoSan) => params.subject_alt_names.clear(),
        Some(Defect::MissingSan) => params.subject_alt_names = params.subject_alt_names.split_off(1),
        Some(Defect::NoExtendedKeyUsage) => params.extended_key_usages.clear(),
        Some(Defect::ServerAuthOnly) => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
        Some(Defect::Expired) => params.not_after = params.not_before + Duration::minutes(30),
        Some(Defect::NotYetValid) => params.not_before = params.not_after - Duration::hours(1),
    }
    if defect == Some(Defect::OtherKey) {
        return Ok(params.signed_by(&KeyPair::generate()?, &authority.issuer)?.pem());
    }
    let csr = CertificateSigningRequestParams { params, public_key: csr.public_key.clone() };
    if defect == Some(Defect::OtherAuthority) {
        let settings = CaSettings { parent: None, ..authority.settings.clone() };
        let (stranger, _) = self::authority(&settings, None, authority.not_before, authority.not_after)?;
        return Ok(csr.signed_by(&stranger)?.pem());
    }
    Ok(csr.signed_by(&authority.issuer)?.pem())
}
