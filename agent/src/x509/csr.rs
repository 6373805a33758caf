//! Key pair and CSR.
//!
//! Every issuance has its own key. The key is made here and stays on the node: only the CSR leaves.

use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, PublicKeyData, RsaKeySize, SanType,
};
use rustls::pki_types::PrivateKeyDer;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::x509::pem;
use crate::x509::san::Sans;

/// An X.520 common name is at most 64 characters (RFC 5280, appendix A.1, ub-common-name).
const MAX_COMMON_NAME: usize = 64;

/// The algorithm of the leaf's key.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum KeyAlgorithm {
    /// NIST P-256.
    #[default]
    EcdsaP256,
    /// NIST P-384.
    EcdsaP384,
    /// RSA, 2048 bits.
    #[serde(rename = "rsa-2048")]
    Rsa2048,
    /// RSA, 3072 bits.
    #[serde(rename = "rsa-3072")]
    Rsa3072,
    /// RSA, 4096 bits.
    #[serde(rename = "rsa-4096")]
    Rsa4096,
}

impl std::fmt::Display for KeyAlgorithm {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::EcdsaP256 => "ecdsa-p256",
            Self::EcdsaP384 => "ecdsa-p384",
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa3072 => "rsa-3072",
            Self::Rsa4096 => "rsa-4096",
        })
    }
}

/// A private key, PKCS#8 in PEM. It is wiped from memory when dropped and never printed.
#[derive(Clone, Deserialize, Serialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct PrivateKeyPem(Zeroizing<String>);

impl PrivateKeyPem {
    /// Takes the text as it is; [`public_key_der`] tells whether it is a key.
    #[must_use]
    pub fn new(pem: Zeroizing<String>) -> Self {
        Self(pem)
    }

    /// The PEM text, for the file that nats-server reads.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The key in DER, for signing and for TLS; nothing where the text is damaged.
    pub(crate) fn to_der(&self) -> Option<PrivateKeyDer<'static>> {
        pem::private_key(&self.0).map(PrivateKeyDer::Pkcs8)
    }
}

impl std::fmt::Debug for PrivateKeyPem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("PrivateKeyPem(…)")
    }
}

/// A key and the request for its certificate.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Csr {
    /// Stays on the node.
    pub key: PrivateKeyPem,
    /// The key's algorithm.
    pub algorithm: KeyAlgorithm,
    /// PKCS#10 in PEM.
    pub pem: String,
    /// The names and addresses in the request.
    pub sans: Sans,
}

/// Why there is no key or CSR.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// The key could not be made.
    #[error("could not make a {algorithm} key")]
    Key {
        /// The key's algorithm.
        algorithm: KeyAlgorithm,
        /// The crypto library's error.
        #[source]
        source: rcgen::Error,
    },
    /// The request could not be made.
    #[error("could not make a CSR for {node}")]
    Request {
        /// The node's name.
        node: String,
        /// The crypto library's error.
        #[source]
        source: rcgen::Error,
    },
}

impl Csr {
    /// Makes a new key and a CSR with the node's names and addresses. The CSR asks for both usages, server and client:
    /// routes need both. An RSA key takes up to seconds of CPU time: call this where blocking is allowed.
    pub fn generate(name: &str, sans: &Sans, algorithm: KeyAlgorithm) -> Result<Self, CsrError> {
        let key = match algorithm {
            KeyAlgorithm::EcdsaP256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            KeyAlgorithm::EcdsaP384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
            KeyAlgorithm::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
            KeyAlgorithm::Rsa3072 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_3072),
            KeyAlgorithm::Rsa4096 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_4096),
        }
        .map_err(|source| CsrError::Key { algorithm, source })?;
        let request = |source| CsrError::Request { node: name.to_owned(), source };
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name.chars().take(MAX_COMMON_NAME).collect::<String>());
        for name in &sans.dns {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().map_err(request)?));
        }
        params.subject_alt_names.extend(sans.ips.iter().map(|ip| SanType::IpAddress(*ip)));
        for uri in &sans.uris {
            params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().map_err(request)?));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let pem = params.serialize_request(&key).and_then(|csr| csr.pem()).map_err(request)?;
        let key = PrivateKeyPem::new(Zeroizing::new(key.serialize_pem()));
        Ok(Self { key, algorithm, pem, sans: sans.clone() })
    }

    /// The CSR's hash. So a repeated request is the same request, and a new key never gets an old key's certificate. The
    /// service takes 1 to 36 characters
    /// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html>).
    #[must_use]
    pub fn idempotency_token(&self) -> String {
        let mut token = crate::digest::sha256_hex(self.pem.as_bytes());
        token.truncate(36);
        token
    }
}

/// The `SubjectPublicKeyInfo` in DER of a private key.
pub fn public_key_der(key: &PrivateKeyPem) -> Result<Vec<u8>, rcgen::Error> {
    let der = key.to_der().ok_or(rcgen::Error::CouldNotParseKeyPair)?;
    Ok(KeyPair::try_from(&der)?.subject_public_key_info())
}
