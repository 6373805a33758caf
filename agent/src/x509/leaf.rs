//! A leaf's facts.

use std::net::IpAddr;

use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;

use super::der;
use super::pem::{self, PemError};
use crate::digest::{hex, sha256_hex};
use crate::x509::san::{DnsName, Sans};

/// A leaf's facts, read from the certificate itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// DER.
    pub der: Vec<u8>,
    /// Serial number, hexadecimal without leading zeros.
    pub serial: String,
    /// The issuer's distinguished name.
    pub issuer: String,
    /// Start of validity. PCA sets it an hour before issuance.
    pub not_before: OffsetDateTime,
    /// End of validity.
    pub not_after: OffsetDateTime,
    /// Names and addresses. Other kinds of SAN, and names that are no host names, are left out.
    pub sans: Sans,
    /// SHA-256 of the DER, hexadecimal.
    pub sha256: String,
}

/// Why a certificate can't be read.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// The PEM text is damaged.
    #[error("could not read the certificate's PEM text")]
    Pem(#[source] PemError),
    /// There is no certificate.
    #[error("there is no certificate in the PEM text; it needs a block \"-----BEGIN CERTIFICATE-----\"")]
    Empty,
    /// Not an X.509 certificate.
    #[error("what should be a certificate is not X.509 in DER, or more than one certificate; get it again")]
    Der,
}

impl Leaf {
    /// Reads a certificate in DER.
    pub fn parse(der: &[u8]) -> Result<Self, LeafError> {
        let certificate = der::read(der).map_err(|_| LeafError::Der)?;
        let mut sans = Sans::default();
        let names = certificate.subject_alternative_name().map_err(|_| LeafError::Der)?;
        for name in names.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::DNSName(text) => sans.dns.extend(DnsName::try_from((*text).to_owned()).ok()),
                GeneralName::IPAddress(octets) => sans.ips.extend(address(octets)),
                _ => {}
            }
        }
        let serial = hex(certificate.tbs_certificate.raw_serial());
        Ok(Self {
            der: der.to_owned(),
            serial: serial.trim_start_matches('0').to_owned(),
            issuer: der::name(certificate.issuer()),
            not_before: certificate.validity().not_before.to_datetime(),
            not_after: certificate.validity().not_after.to_datetime(),
            sans,
            sha256: sha256_hex(der),
        })
    }

    /// Its public key as a `SubjectPublicKeyInfo` in DER.
    #[must_use]
    pub fn public_key_der(&self) -> Option<Vec<u8>> {
        der::read(&self.der).ok().map(|certificate| certificate.public_key().raw.to_owned())
    }

    /// Reads the first certificate of PEM text; the whole text must be sound.
    pub fn from_pem(pem: &str) -> Result<Self, LeafError> {
        let blocks = pem::certificates(pem.as_bytes()).map_err(LeafError::Pem)?;
        Self::parse(&blocks.first().ok_or(LeafError::Empty)?.der)
    }
}

/// Four or sixteen octets (RFC 5280, section 4.2.1.6).
fn address(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}
