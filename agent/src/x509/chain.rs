//! Chains: DER inside. PEM stands at two edges only, the issuer's answer and a generation's files.

use rustls::pki_types::CertificateDer;

use super::csr::{PrivateKeyPem, public_key_der};
use super::leaf::{Leaf, LeafError};
use super::pem::{self, PemError};

/// The most certificates in a chain, the leaf and the root included. Go's TLS reads longer chains; no CA needs them.
pub(crate) const MAX_CERTIFICATES: usize = 10;

/// Certificates as a server presents them: the leaf, then the CAs above the leaf. Their content is not parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    leaf: CertificateDer<'static>,
    above: Vec<CertificateDer<'static>>,
}

/// Why certificates are not a chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The PEM text is damaged.
    #[error("could not read the certificates' PEM text: {0}")]
    Pem(PemError),
    /// There is no leaf.
    #[error("there is no certificate")]
    Empty,
    /// More certificates than any CA needs.
    #[error("there are {count} certificates, and a chain has at most {MAX_CERTIFICATES}")]
    TooMany {
        /// The number of certificates.
        count: usize,
    },
}

impl Chain {
    /// Takes the leaf first.
    pub(crate) fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, ChainError> {
        let count = certificates.len();
        if count > MAX_CERTIFICATES {
            return Err(ChainError::TooMany { count });
        }
        let mut certificates = certificates.into_iter();
        let leaf = certificates.next().ok_or(ChainError::Empty)?;
        Ok(Self { leaf, above: certificates.collect() })
    }

    /// Reads PEM text, leaf first. One damaged block refuses the whole text.
    pub fn from_pem(pem: &[u8]) -> Result<Self, ChainError> {
        let blocks = pem::certificates(pem).map_err(ChainError::Pem)?;
        Self::new(blocks.into_iter().map(|block| block.der.into()).collect())
    }

    /// The text of nats-server's `cert_file`.
    pub(crate) fn to_pem(&self) -> String {
        self.certificates().map(|der| pem::encode(der)).collect()
    }

    /// The certificate of the server itself.
    #[must_use]
    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.leaf
    }

    /// The CAs, in the order of the server.
    pub(crate) fn above(&self) -> &[CertificateDer<'static>] {
        &self.above
    }

    /// All certificates, leaf first.
    pub(crate) fn certificates(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        std::iter::once(&self.leaf).chain(&self.above)
    }
}

/// A private key and the chain of its certificate, as a generation stores them.
///
/// The key is the leaf's. Everything else was verified before the generation was written, by the bundle of that time.
#[derive(Clone, Debug)]
pub struct StoredChain {
    key: PrivateKeyPem,
    leaf: Leaf,
    chain: Chain,
}

/// Why a key and a chain can't be used together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoredChainError {
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// The key is another key, or can't be read.
    #[error("it is not the certificate's key")]
    OtherKey,
}

impl StoredChain {
    /// Takes a key and a chain that belong together.
    pub(crate) fn new(key: PrivateKeyPem, chain: Chain) -> Result<Self, StoredChainError> {
        let stored = Self::known(key, chain)?;
        let is_ours = public_key_der(&stored.key).is_ok_and(|ours| stored.leaf.public_key_der() == Some(ours));
        if is_ours { Ok(stored) } else { Err(StoredChainError::OtherKey) }
    }

    /// Takes a key and a chain that were seen to belong together before. Every pass reads them, and deriving a public key
    /// costs more than a digest.
    pub(crate) fn known(key: PrivateKeyPem, chain: Chain) -> Result<Self, LeafError> {
        let leaf = Leaf::parse(chain.leaf())?;
        Ok(Self { key, leaf, chain })
    }

    /// Takes a leaf that no CA signed.
    #[cfg(test)]
    pub(crate) fn made_up(leaf: Leaf) -> Self {
        let chain = Chain { leaf: leaf.der.clone().into(), above: Vec::new() };
        Self { key: PrivateKeyPem::new(zeroize::Zeroizing::default()), leaf, chain }
    }

    /// The leaf's private key.
    #[must_use]
    pub fn key(&self) -> &PrivateKeyPem {
        &self.key
    }

    /// The leaf, parsed.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// Leaf and intermediates without the root.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x509::test_ca::{Ca, key};

    #[test]
    fn a_chain_has_a_leaf_and_at_most_ten_certificates() {
        let der = |count| vec![CertificateDer::from(vec![1]); count];
        assert_eq!(Chain::new(der(0)), Err(ChainError::Empty));
        assert_eq!(Chain::new(der(10)).unwrap().above().len(), 9);
        assert_eq!(Chain::new(der(11)), Err(ChainError::TooMany { count: 11 }));
        assert_eq!(Chain::from_pem(b"# none\n"), Err(ChainError::Empty));
    }

    #[test]
    fn a_chain_is_written_and_read_back_leaf_first() {
        let ca = Ca::root("root");
        let leaf = ca.leaf(&key().0);
        let text = leaf.pem() + &ca.pem;
        let chain = Chain::from_pem(text.as_bytes()).unwrap();
        assert_eq!((chain.leaf(), chain.above()), (leaf.der(), &[ca.der.clone().into()][..]));
        assert_eq!(chain.to_pem(), text);
        assert!(matches!(Chain::from_pem(&text.as_bytes()[1..]), Err(ChainError::Pem(_))));
    }

    #[test]
    fn a_chain_is_stored_with_its_own_key_only() {
        let (pair, ours) = key();
        let chain = Chain::new(vec![Ca::root("root").leaf(&pair).der().clone()]).unwrap();
        let damaged = PrivateKeyPem::new(zeroize::Zeroizing::new("half a key".into()));
        for other in [key().1, damaged] {
            assert!(matches!(StoredChain::new(other, chain.clone()), Err(StoredChainError::OtherKey)));
        }
        let stored = StoredChain::new(ours, chain.clone()).unwrap();
        assert_eq!((stored.chain(), &stored.leaf().der[..]), (&chain, &chain.leaf()[..]));
        let junk = Chain::new(vec![b"junk"[..].into()]).unwrap();
        assert!(matches!(StoredChain::new(key().1, junk), Err(StoredChainError::Leaf(LeafError::Der))));
    }
}
