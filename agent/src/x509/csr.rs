//! Key pair and CSR.
//!
//! Every issuance has a key of its own, made here and never sent anywhere: what leaves the node is the CSR.

use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, RsaKeySize, SanType,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::x509::san::Sans;

/// An X.520 common name is at most 64 characters (RFC 5280, appendix A.1, ub-common-name).
const MAX_COMMON_NAME: usize = 64;

/// The leaf's key.
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

/// A private key in PKCS#8 PEM, wiped from memory when dropped and never printed.
#[derive(Clone, Deserialize, Serialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct PrivateKeyPem(Zeroizing<String>);

impl PrivateKeyPem {
    /// Takes ownership of PEM text.
    #[must_use]
    pub fn new(pem: Zeroizing<String>) -> Self {
        Self(pem)
    }

    /// The PEM text, for the file that only nats-server reads and for signing.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for PrivateKeyPem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("PrivateKeyPem(…)")
    }
}

/// A key, and the request that has it signed.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Csr {
    /// The key.
    pub key: PrivateKeyPem,
    /// The key's algorithm.
    pub algorithm: KeyAlgorithm,
    /// The PKCS#10 request in PEM.
    pub pem: String,
    /// What the request asks to be named.
    pub sans: Sans,
}

/// Why no key or CSR could be made.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// The key could not be made.
    #[error("could not make a {algorithm} key")]
    Key {
        /// Of this algorithm.
        algorithm: KeyAlgorithm,
        /// What the crypto library said.
        #[source]
        source: rcgen::Error,
    },
    /// The request could not be made.
    #[error("could not make a CSR for {node}")]
    Request {
        /// For this node.
        node: String,
        /// What the crypto library said.
        #[source]
        source: rcgen::Error,
    },
}

impl Csr {
    /// Makes a fresh key and a CSR with the node's names and addresses, for both server and client use: routes need
    /// both usages. RSA takes up to seconds of CPU time: call it where blocking is allowed.
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
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let pem = params.serialize_request(&key).and_then(|csr| csr.pem()).map_err(request)?;
        let key = PrivateKeyPem::new(Zeroizing::new(key.serialize_pem()));
        Ok(Self { key, algorithm, pem, sans: sans.clone() })
    }

    /// The idempotency token: the CSR's hash, so that a repeated request is the same request and a new key is never
    /// answered with an old key's certificate. 1 to 36 characters
    /// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html>).
    #[must_use]
    pub fn idempotency_token(&self) -> String {
        let mut token = crate::digest::sha256_hex(self.pem.as_bytes());
        token.truncate(36);
        token
    }

    /// The public key as a `SubjectPublicKeyInfo` in DER, read back from the private key.
    pub fn public_key_der(&self) -> Result<Vec<u8>, CsrError> {
        public_key_der(&self.key).map_err(|source| CsrError::Key { algorithm: self.algorithm, source })
    }
}

/// The `SubjectPublicKeyInfo` in DER that belongs to a private key.
pub fn public_key_der(key: &PrivateKeyPem) -> Result<Vec<u8>, rcgen::Error> {
    use rcgen::PublicKeyData;
    Ok(KeyPair::from_pem(key.expose())?.subject_public_key_info())
}
