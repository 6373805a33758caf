//! X.509 certificates in DER.

use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm};
use webpki::{EndEntityCert, aws_lc_rs as algorithms};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::objects::{oid_registry, oid2sn};
use x509_parser::oid_registry::Oid;
use x509_parser::x509::X509Name;

/// The signature algorithms that webpki and Go both verify. webpki's own list also has ML-DSA, which a nats-server built
/// before Go 1.27 can't verify.
pub(crate) static VERIFIED: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P256_SHA512,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ECDSA_P384_SHA512,
    algorithms::ECDSA_P521_SHA256,
    algorithms::ECDSA_P521_SHA384,
    algorithms::ECDSA_P521_SHA512,
    algorithms::ED25519,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
    algorithms::RSA_PKCS1_2048_8192_SHA256_ABSENT_PARAMS,
    algorithms::RSA_PKCS1_2048_8192_SHA384_ABSENT_PARAMS,
    algorithms::RSA_PKCS1_2048_8192_SHA512_ABSENT_PARAMS,
    algorithms::RSA_PKCS1_3072_8192_SHA384,
    algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// Outside extensions a name nests deepest: certificate, content, name, set, attribute, value. The value may nest
/// further.
const MAX_DEPTH: usize = 16;

/// Why bytes are not exactly one certificate.
pub(crate) enum DerFault {
    /// Not X.509 in DER.
    Unreadable,
    /// Bytes follow the certificate.
    Trailing { count: usize, subject: String },
}

/// Reads exactly one certificate.
pub(crate) fn read(der: &[u8]) -> Result<X509Certificate<'_>, DerFault> {
    let (rest, certificate) = x509_parser::parse_x509_certificate(der).map_err(|_| DerFault::Unreadable)?;
    if !well_formed(certificate.as_raw(), MAX_DEPTH) {
        return Err(DerFault::Unreadable);
    }
    if rest.is_empty() {
        Ok(certificate)
    } else {
        Err(DerFault::Trailing { count: rest.len(), subject: name(certificate.subject()) })
    }
}

/// Whether complete elements fill every constructed element exactly. x509-parser reads a truncated name as a shorter
/// name; Go rejects such a certificate.
fn well_formed(mut der: &[u8], depth: usize) -> bool {
    while let [tag, length, rest @ ..] = der {
        // DER allows only the shortest form of a length (X.690, section 10.1). Two bytes suffice here.
        let (length, rest) = match (*length, rest) {
            (short @ ..=0x7f, rest) => (usize::from(short), rest),
            (0x81, [length, rest @ ..]) if *length > 0x7f => (usize::from(*length), rest),
            (0x82, [high, low, rest @ ..]) if *high > 0 => (usize::from(u16::from_be_bytes([*high, *low])), rest),
            _ => return false,
        };
        let Some((content, rest)) = rest.split_at_checked(length) else { return false };
        let is_constructed = tag & 0x20 != 0;
        if is_constructed && !(depth > 0 && well_formed(content, depth - 1)) {
            return false;
        }
        der = rest;
    }
    der.is_empty()
}

/// Whether webpki refuses a certificate for a critical extension (RFC 5280, section 4.2). rustls refuses the certificate on a
/// path, and accepts the certificate as an anchor.
pub(crate) fn has_unknown_extension(der: &CertificateDer<'_>) -> bool {
    matches!(EndEntityCert::try_from(der), Err(webpki::Error::UnsupportedCriticalExtension))
}

/// The names of the extensions for which [`has_unknown_extension`] holds. `None`: there is no such extension.
pub(crate) fn unknown_extensions(certificate: &X509Certificate<'_>) -> Option<String> {
    if !has_unknown_extension(&certificate.as_raw().into()) {
        return None;
    }
    let names = certificate.extensions().iter().filter(|extension| extension.critical).filter(|extension| {
        !matches!(
            extension.parsed_extension(),
            ParsedExtension::BasicConstraints(_)
                | ParsedExtension::KeyUsage(_)
                | ParsedExtension::ExtendedKeyUsage(_)
                | ParsedExtension::NameConstraints(_)
                | ParsedExtension::SubjectAlternativeName(_)
                | ParsedExtension::CRLDistributionPoints(_)
        )
    });
    let name = |oid: &Oid<'_>| oid2sn(oid, oid_registry()).map_or_else(|_| oid.to_id_string(), str::to_owned);
    Some(names.map(|extension| name(&extension.oid)).collect::<Vec<_>>().join(", "))
}

/// A distinguished name on one line. Terminals and logs show it, so control characters are replaced.
pub(crate) fn name(name: &X509Name<'_>) -> String {
    name.to_string().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(512).collect()
}
