//! What a leaf says.

use std::net::IpAddr;

use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;

use super::der;
use super::pem::{self, PemError};
use crate::digest::{hex, sha256_hex};
use crate::x509::san::{DnsName, Sans};

/// A parsed leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The certificate itself.
    pub der: Vec<u8>,
    /// Hexadecimal, without leading zeros.
    pub serial: String,
    /// The issuer's distinguished name.
    pub issuer: String,
    /// PCA sets it an hour before issuance.
    pub not_before: OffsetDateTime,
    /// End of validity.
    pub not_after: OffsetDateTime,
    /// Host names, addresses and URIs. Every other kind of SAN is left out.
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
    /// The text has no block.
    #[error("there is no certificate in the PEM text; it needs a block \"-----BEGIN CERTIFICATE-----\"")]
    Empty,
    /// Not an X.509 certificate.
    #[error("what should be a certificate is not X.509 in DER, or more than one certificate; get it again")]
    Der,
}

impl Leaf {
    /// Reads exactly one certificate.
    pub fn parse(der: &[u8]) -> Result<Self, LeafError> {
        let certificate = der::read(der).map_err(|_| LeafError::Der)?;
        let mut sans = Sans::default();
        let names = certificate.subject_alternative_name().map_err(|_| LeafError::Der)?;
        for name in names.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::DNSName(text) => sans.dns.extend(DnsName::try_from((*text).to_owned()).ok()),
                GeneralName::IPAddress(octets) => sans.ips.extend(address(octets)),
                GeneralName::URI(text) => sans.uris.extend([(*text).to_owned()]),
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

    /// The `SubjectPublicKeyInfo` in DER.
    pub(crate) fn public_key_der(&self) -> Option<Vec<u8>> {
        der::read(&self.der).ok().map(|certificate| certificate.public_key().raw.to_owned())
    }

    /// Reads the first certificate of PEM text. One damaged block refuses the whole text.
    pub fn from_pem(pem: &str) -> Result<Self, LeafError> {
        let blocks = pem::certificates(pem.as_bytes()).map_err(LeafError::Pem)?;
        Self::parse(&blocks.first().ok_or(LeafError::Empty)?.der)
    }
}

/// An address has four or sixteen octets (RFC 5280, section 4.2.1.6).
fn address(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}
