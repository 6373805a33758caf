//! The verification of a chain against the bundle.
//!
//! Both webpki and Go's verifier must accept a chain: nats-server is written in Go. Of an anchor Go also checks validity,
//! path length and usages (`crypto/x509`, `Certificate.Verify`). Below the anchor both check the same.

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use time::OffsetDateTime;
use webpki::{EndEntityCert, KeyUsage, RequiredEkuNotFoundContext, VerifiedPath};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ExtendedKeyUsage;

use super::bundle::{Anchor, TrustBundle, is_self_signed};
use crate::clock::rfc3339;
use crate::digest::sha256_hex;
use crate::issue::IssuedChain;
use crate::x509::chain::{Chain, ChainError, MAX_CERTIFICATES, StoredChain};
use crate::x509::csr::{PrivateKeyPem, public_key_der};
use crate::x509::der;
use crate::x509::leaf::{Leaf, LeafError};
use crate::x509::pem::{self, PemError};
use crate::x509::san::Sans;

/// The longest answer of an issuer, in bytes of PEM. Ten certificates with the largest keys are far shorter.
const MAX_ISSUED: usize = 256 * 1024;

/// Whose certificate is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A server's: routes need both usages.
    Server,
    /// A client's, which needs clientAuth alone.
    Client,
}

/// A key and a chain that the bundle in force accepts. Only [`TrustBundle::verify`] makes it, so a new generation holds
/// nothing unverified.
#[derive(Clone, Debug)]
pub struct VerifiedChain(StoredChain);

/// Why a chain is not accepted. The served certificate stays.
#[derive(Debug, thiserror::Error)]
pub enum RejectedChain {
    /// The answer is longer than any chain.
    #[error("the issuer returned {size} bytes, and at most {MAX_ISSUED} are read; ask it for this certificate again")]
    TooLarge {
        /// The bytes of leaf and chain.
        size: usize,
    },
    /// More certificates than in any chain.
    #[error(
        "the issuer returned {count} certificates, and at most {MAX_CERTIFICATES} are taken; check the CA's own chain"
    )]
    TooMany {
        /// The number of certificates.
        count: usize,
    },
    /// The PEM text is damaged.
    #[error("could not read the chain that the issuer returned; ask it for this certificate again")]
    Pem(#[source] PemError),
    /// There is no readable leaf.
    #[error("could not read the certificate that the issuer returned; ask it for this certificate again")]
    Leaf(#[source] LeafError),
    /// A certificate above the leaf is not X.509.
    #[error("certificate {number} of the chain that the issuer returned is not X.509 in DER; check the CA's own chain")]
    Intermediate {
        /// Counted from 1, the leaf included.
        number: usize,
    },
    /// The node's own key can't be read.
    #[error("could not read the public key back from our private key; renew with a new key")]
    Key(#[source] rcgen::Error),
    /// The certificate is for another key.
    #[error(
        "certificate {serial} is for another public key than ours; nothing of it is used: renew with a new key, and if it happens again look for who else uses this journal or this idempotency token"
    )]
    OtherKey {
        /// The leaf's serial number.
        serial: String,
    },
    /// The leaf lacks names of the CSR.
    #[error(
        "certificate {serial} lacks the names {missing}: it carries {}; use a certificate template that takes SANs from the CSR",
        or_none(carried)
    )]
    MissingSans {
        /// The leaf's serial number.
        serial: String,
        /// The names that the leaf lacks.
        missing: String,
        /// The names that the leaf carries.
        carried: String,
    },
    /// The leaf lacks a usage of the CSR. Routes need both (seen on nats-server 2.9.10 and 2.15.1).
    #[error(
        "certificate {serial} lacks the extended key usage {missing}; routes need serverAuth and clientAuth: use a certificate template that gives both, as EndEntityCertificate/V1 does"
    )]
    MissingUsage {
        /// The leaf's serial number.
        serial: String,
        /// `serverAuth`, `clientAuth` or both.
        missing: String,
    },
    /// The leaf's validity has not started.
    #[error(
        "certificate {serial} is valid from {}, and it is {} here; set this machine's clock, or the CA's", rfc3339(*not_before), rfc3339(*now)
    )]
    NotYetValid {
        /// The leaf's serial number.
        serial: String,
        /// Start of validity.
        not_before: OffsetDateTime,
        /// The wall-clock time.
        now: OffsetDateTime,
    },
    /// The leaf's validity has ended.
    #[error(
        "certificate {serial} was valid until {}, and it is {} here; renew, and if a new one is refused too set this machine's clock", rfc3339(*not_after), rfc3339(*now)
    )]
    Expired {
        /// The leaf's serial number.
        serial: String,
        /// End of validity.
        not_after: OffsetDateTime,
        /// The wall-clock time.
        now: OffsetDateTime,
    },
    /// The chain leads to a CA that is distrusted, and to no other anchor.
    #[error(
        "certificate {serial} chains to {ca:?} ({sha256}), which is distrusted; have `issuer.ca_arn` name a CA of the trust bundle: that holds {anchors}"
    )]
    Distrusted {
        /// The leaf's serial number.
        serial: String,
        /// The CA's subject.
        ca: String,
        /// The SHA-256 of the CA's certificate.
        sha256: String,
        /// The subjects of the anchors.
        anchors: String,
    },
    /// The chain is complete, and its root is not in the bundle.
    #[error(
        "certificate {serial} chains to {root:?}, which is not in the trust bundle: that holds {anchors}; add the root to the bundle of every node first, or correct `issuer.ca_arn`"
    )]
    UntrustedRoot {
        /// The leaf's serial number.
        serial: String,
        /// The root's subject.
        root: String,
        /// The subjects of the anchors.
        anchors: String,
    },
    /// The chain ends below the anchors of the bundle.
    #[error(
        "certificate {serial} chains up to {below:?}, and its issuer {missing:?} is neither an intermediate that the issuer returned nor in the trust bundle: that holds {anchors}; add {missing:?} to the chain of the CA, or to the bundle"
    )]
    MissingIntermediate {
        /// The leaf's serial number.
        serial: String,
        /// The subject of the chain's last certificate.
        below: String,
        /// The subject of the missing CA.
        missing: String,
        /// The subjects of the anchors.
        anchors: String,
    },
    /// A CA on the way to the anchor has a critical extension that webpki does not know.
    #[error(
        "certificate {serial} chains to the trust bundle through {ca:?}, which Rust clients refuse for its critical extension {extensions}; add the certificate of {ca:?} to the bundle of every node and client, or have that CA issued again without the extension"
    )]
    UnknownExtension {
        /// The leaf's serial number.
        serial: String,
        /// The CA's subject.
        ca: String,
        /// The names of the extensions.
        extensions: String,
    },
    /// The names make a path to an anchor, and a check on that path fails.
    #[error("certificate {serial} does not chain to the trust bundle: {reason}")]
    Path {
        /// The leaf's serial number.
        serial: String,
        /// What is wrong and what to do.
        reason: &'static str,
        /// The verifier's error.
        #[source]
        source: webpki::Error,
    },
}

/// Why clients and peers refuse a served certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The leaf is not X.509.
    Unreadable,
    /// NotAfter has passed.
    Expired {
        /// NotAfter.
        at: OffsetDateTime,
    },
    /// The chain leads to no anchor of the bundle in force.
    Unanchored {
        /// The leaf's issuer, a distinguished name.
        issuer: String,
    },
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable => formatter.write_str("it can't be read"),
            Self::Expired { at } => write!(formatter, "it expired at {}", rfc3339(*at)),
            Self::Unanchored { issuer } => {
                write!(formatter, "{issuer} signed it, and no anchor of the bundle in force is above that")
            }
        }
    }
}

impl VerifiedChain {
    /// The form in which a generation stores key and chain.
    pub(crate) fn stored(&self) -> &StoredChain {
        &self.0
    }

    /// The leaf, parsed.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        self.0.leaf()
    }

    /// Leaf and intermediates without the root, as nats-server serves them.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        self.0.chain()
    }
}

impl RejectedChain {
    /// Whether another bundle or a later time may accept the same chain. The chain is paid for, so it is then kept and
    /// verified again.
    pub(crate) fn may_pass_later(&self) -> bool {
        match self {
            // These faults lie in the leaf itself, so only another certificate helps.
            Self::Path { source, .. } => !matches!(
                source,
                webpki::Error::NameConstraintViolation
                    | webpki::Error::CaUsedAsEndEntity
                    | webpki::Error::UnsupportedCriticalExtension
            ),
            Self::NotYetValid { .. }
            | Self::Distrusted { .. }
            | Self::UntrustedRoot { .. }
            | Self::MissingIntermediate { .. }
            | Self::UnknownExtension { .. }
            | Self::TooLarge { .. }
            | Self::TooMany { .. }
            | Self::Pem(_)
            | Self::Intermediate { .. } => true,
            Self::Leaf(_)
            | Self::Key(_)
            | Self::OtherKey { .. }
            | Self::MissingSans { .. }
            | Self::MissingUsage { .. }
            | Self::Expired { .. } => false,
        }
    }
}

impl TrustBundle {
    /// Verifies an issuer's answer for a key and for the names of the CSR (invariant 4).
    ///
    /// The certificates above the leaf may come in any order, with others among them. The result holds the path to an
    /// anchor, in order, without the root. Every other CA above the leaf follows, such as a cross-signed CA: a client or a
    /// peer may have another anchor than this node. An intermediate stays in the result even where it is an anchor itself.
    pub fn verify(
        &self,
        issued: &IssuedChain,
        key: &PrivateKeyPem,
        sans: &Sans,
        now: OffsetDateTime,
    ) -> Result<VerifiedChain, RejectedChain> {
        self.verify_for(Role::Server, issued, key, sans, now)
    }

    /// As [`Self::verify`], for the usages of a role.
    pub(crate) fn verify_for(
        &self,
        role: Role,
        issued: &IssuedChain,
        key: &PrivateKeyPem,
        sans: &Sans,
        now: OffsetDateTime,
    ) -> Result<VerifiedChain, RejectedChain> {
        let issued = read(issued)?;
        let leaf = check_leaf(role, issued.leaf(), key, sans, now)?;
        let path = self
            .path_for(role, Anchor::is_root, &issued, now)
            .or_else(|_| self.path_for(role, |_| true, &issued, now))
            .map_err(|error| self.explain(&leaf, issued.above(), error))?;
        let anchor = Some(&path.anchor.der).filter(|_| !path.anchor.is_root());
        let mut served = vec![issued.leaf().clone()];
        served.extend(path.intermediates);
        served.extend(anchor.map(|anchor| anchor.clone().into()));
        add_other_ways(&mut served, issued.above(), now);
        // The check above proves that the leaf belongs to the key.
        let stored = StoredChain::known(key.clone(), Chain::new(served)?).map_err(RejectedChain::Leaf)?;
        Ok(VerifiedChain(stored))
    }

    /// Whether a chain leads to an anchor for both usages, server and client.
    #[must_use]
    pub fn chains(&self, chain: &Chain, now: OffsetDateTime) -> bool {
        self.anchor_of(chain, now).is_some()
    }

    /// Whether nobody accepts a chain any more, since its CA is distrusted. `now` may lie outside the leaf's time.
    pub(crate) fn has_banned(&self, chain: &StoredChain, now: OffsetDateTime) -> bool {
        let leaf = chain.leaf();
        let in_its_time = now.min(leaf.not_after).max(leaf.not_before);
        !self.distrusted.is_empty() && !self.chains(chain.chain(), in_its_time)
    }

    /// The anchor of a chain, for both usages.
    pub(crate) fn anchor_of(&self, chain: &Chain, now: OffsetDateTime) -> Option<&Anchor> {
        self.path(|_| true, chain, now).ok().map(|path| path.anchor)
    }

    /// Why clients and peers with this bundle refuse a chain, or nothing. A leaf that is not valid yet is not refused: this
    /// machine's clock may be behind.
    pub(crate) fn refusal(&self, chain: &Chain, now: OffsetDateTime) -> Option<Refusal> {
        match Leaf::parse(chain.leaf()) {
            Err(_) => Some(Refusal::Unreadable),
            Ok(leaf) if leaf.not_after <= now => Some(Refusal::Expired { at: leaf.not_after }),
            Ok(leaf) if !self.chains(chain, now.max(leaf.not_before)) => {
                Some(Refusal::Unanchored { issuer: leaf.issuer })
            }
            Ok(_) => None,
        }
    }

    /// A path from the leaf to one of `these` anchors. It holds for both usages.
    fn path(
        &self,
        these: impl Fn(&Anchor) -> bool,
        chain: &Chain,
        now: OffsetDateTime,
    ) -> Result<Path<'_>, webpki::Error> {
        self.path_for(Role::Server, these, chain, now)
    }

    /// A path that holds for the usages of a role.
    fn path_for(
        &self,
        role: Role,
        these: impl Fn(&Anchor) -> bool,
        chain: &Chain,
        now: OffsetDateTime,
    ) -> Result<Path<'_>, webpki::Error> {
        let these: Vec<&Anchor> = self.anchors.iter().filter(|anchor| these(anchor)).collect();
        let leaf = EndEntityCert::try_from(chain.leaf())?;
        let roots: Vec<CertificateDer<'_>> = these.iter().map(|anchor| anchor.der.as_slice().into()).collect();
        let anchors: Vec<TrustAnchor<'_>> =
            roots.iter().map(webpki::anchor_from_trusted_cert).collect::<Result<_, _>>()?;
        let index = |path: &VerifiedPath<'_>| anchors.iter().position(|anchor| std::ptr::eq(anchor, path.anchor()));

        // webpki asks this of each path that it finds, and after a refusal it looks for another path.
        let holds = |path: &VerifiedPath<'_>| {
            let index = index(path).ok_or(webpki::Error::UnknownIssuer)?;
            go_accepts(path, these[index], now)?;
            let used: Vec<CertificateDer<'_>> = path.intermediate_certificates().map(webpki::Cert::der).collect();
            verify(&leaf, &anchors[index..=index], &used, now, KeyUsage::client_auth(), None).map(drop)
        };
        let usage = if role == Role::Server { KeyUsage::server_auth() } else { KeyUsage::client_auth() };
        // webpki would name a CA that it can't use in place of what is wrong with the path.
        let above: Vec<CertificateDer<'_>> =
            chain.above().iter().filter(|ca| !der::has_unknown_extension(ca)).cloned().collect();
        let path = verify(&leaf, &anchors, &above, now, usage, Some(&holds))?;
        let index = index(&path).ok_or(webpki::Error::UnknownIssuer)?;
        Ok(Path {
            intermediates: path.intermediate_certificates().map(|ca| ca.der().into_owned()).collect(),
            anchor: these[index],
        })
    }

    /// Says why there is no path.
    fn explain(&self, leaf: &Leaf, above: &[CertificateDer<'_>], error: webpki::Error) -> RejectedChain {
        let serial = leaf.serial.clone();
        if error != webpki::Error::UnknownIssuer {
            return RejectedChain::Path { serial, reason: reason(&error), source: error };
        }
        let anchors = self.anchors.iter().map(|anchor| format!("{:?}", anchor.subject)).collect::<Vec<_>>().join(", ");
        let above: Vec<X509Certificate<'_>> = above.iter().filter_map(|der| der::read(der).ok()).collect();
        let banned = above.iter().find(|ca| self.distrusts(&sha256_hex(ca.as_raw())));
        if let Some(ca) = banned {
            let (ca, sha256) = (der::name(ca.subject()), sha256_hex(ca.as_raw()));
            return RejectedChain::Distrusted { serial, ca, sha256, anchors };
        }
        let Ok(mut last) = der::read(&leaf.der) else { return RejectedChain::Leaf(LeafError::Der) };
        let is_below_an_anchor = |below: &X509Certificate<'_>| {
            let mut cas = self.anchors.iter().filter_map(|anchor| der::read(&anchor.der).ok());
            cas.any(|ca| ca.subject().as_raw() == below.issuer().as_raw())
        };
        let mut unknown = None;
        // Each step goes one certificate up. The bound ends a loop of names.
        for _ in 0..above.len() {
            let is_issuer = |cert: &&X509Certificate<'_>| cert.subject().as_raw() == last.issuer().as_raw();
            match above.iter().find(is_issuer) {
                Some(issuer) if last.subject().as_raw() != last.issuer().as_raw() => last = issuer.clone(),
                _ => break,
            }
            unknown = unknown.or_else(|| Some((der::name(last.subject()), der::unknown_extensions(&last)?)));
            if let Some((ca, extensions)) = unknown.take_if(|_| is_below_an_anchor(&last)) {
                return RejectedChain::UnknownExtension { serial, ca, extensions };
            }
        }
        if last.subject().as_raw() == last.issuer().as_raw() {
            return RejectedChain::UntrustedRoot { serial, root: der::name(last.subject()), anchors };
        }
        let (below, missing) = (der::name(last.subject()), der::name(last.issuer()));
        RejectedChain::MissingIntermediate { serial, below, missing, anchors }
    }
}

/// Adds every CA of `above` that signed a certificate of `served`, and the CAs above that CA. Self-signed CAs are left out,
/// because nobody trusts a root for being shown.
fn add_other_ways(served: &mut Vec<CertificateDer<'static>>, above: &[CertificateDer<'static>], now: OffsetDateTime) {
    let mut index = 0;
    while let Some(below) = served.get(index).cloned() {
        index += 1;
        let Ok(below) = der::read(&below) else { continue };
        for ca in above {
            let Ok(issuer) = der::read(ca) else { continue };
            let is_above = below.issuer().as_raw() == issuer.subject().as_raw()
                && !is_self_signed(&issuer)
                && is_for_both_usages(&issuer)
                && may_sign(ca).is_ok()
                && (issuer.validity().not_before.to_datetime()..issuer.validity().not_after.to_datetime())
                    .contains(&now)
                && below.verify_signature(Some(issuer.public_key())).is_ok();
            if is_above && !served.contains(ca) {
                served.push(ca.clone());
            }
        }
    }
}

/// Whether a CA signs certificates of servers and of clients.
pub(super) fn is_for_both_usages(ca: &X509Certificate<'_>) -> bool {
    let usage = ca.extended_key_usage().ok();
    usage.is_some_and(|usage| {
        usage.is_none_or(|usage| usage.value.any || usage.value.server_auth && usage.value.client_auth)
    })
}

struct Path<'a> {
    /// From the leaf's issuer up, without the anchor.
    intermediates: Vec<CertificateDer<'static>>,
    anchor: &'a Anchor,
}

/// A check beside webpki's own.
type PathCheck<'a> = dyn Fn(&VerifiedPath<'_>) -> Result<(), webpki::Error> + 'a;

fn verify<'p>(
    leaf: &'p EndEntityCert<'p>,
    anchors: &'p [TrustAnchor<'p>],
    above: &'p [CertificateDer<'p>],
    now: OffsetDateTime,
    usage: KeyUsage,
    more: Option<&PathCheck<'_>>,
) -> Result<VerifiedPath<'p>, webpki::Error> {
    leaf.verify_for_usage(der::VERIFIED, anchors, above, unix(now), usage, None, more)
}

/// Reads the issuer's PEM. Its certificates stay in the issuer's order.
fn read(issued: &IssuedChain) -> Result<Chain, RejectedChain> {
    let size = issued.leaf_pem.len() + issued.chain_pem.len();
    if size > MAX_ISSUED {
        return Err(RejectedChain::TooLarge { size });
    }
    let mut blocks =
        pem::certificates(issued.leaf_pem.as_bytes()).map_err(|e| RejectedChain::Leaf(LeafError::Pem(e)))?;
    if blocks.is_empty() {
        return Err(RejectedChain::Leaf(LeafError::Empty));
    }
    blocks.extend(pem::certificates(issued.chain_pem.as_bytes()).map_err(RejectedChain::Pem)?);
    let chain = Chain::new(blocks.into_iter().map(|block| block.der.into()).collect())?;
    match chain.above().iter().position(|der| der::read(der).is_err()) {
        Some(index) => Err(RejectedChain::Intermediate { number: index + 2 }),
        None => Ok(chain),
    }
}

impl From<ChainError> for RejectedChain {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::Pem(error) => Self::Pem(error),
            ChainError::Empty => Self::Leaf(LeafError::Empty),
            ChainError::TooMany { count } => Self::TooMany { count },
        }
    }
}

/// The checks of a leaf that need no chain.
fn check_leaf(
    role: Role,
    der: &[u8],
    key: &PrivateKeyPem,
    sans: &Sans,
    now: OffsetDateTime,
) -> Result<Leaf, RejectedChain> {
    let leaf = Leaf::parse(der).map_err(RejectedChain::Leaf)?;
    let certificate = der::read(der).map_err(|_| RejectedChain::Leaf(LeafError::Der))?;
    let serial = leaf.serial.clone();
    if certificate.public_key().raw != public_key_der(key).map_err(RejectedChain::Key)? {
        return Err(RejectedChain::OtherKey { serial });
    }
    if !leaf.sans.cover(sans) {
        let (dns, ips) = (&sans.dns - &leaf.sans.dns, &sans.ips - &leaf.sans.ips);
        let missing = Sans { dns, ips, uris: &sans.uris - &leaf.sans.uris };
        return Err(RejectedChain::MissingSans { serial, missing: listed(&missing), carried: listed(&leaf.sans) });
    }
    let usage = certificate.extended_key_usage().map_err(|_| RejectedChain::Leaf(LeafError::Der))?;
    let has = |which: fn(&ExtendedKeyUsage<'_>) -> bool| usage.as_ref().is_some_and(|usage| which(usage.value));
    // Go accepts a certificate without the extension for any usage. The CSR asks for both usages, so their absence means
    // that the issuer uses another template than the operator meant.
    let missing: Vec<&str> = [
        ("serverAuth", role == Role::Client || has(|usage| usage.server_auth)),
        ("clientAuth", has(|usage| usage.client_auth)),
    ]
    .into_iter()
    .filter_map(|(name, there)| (!there).then_some(name))
    .collect();
    if !missing.is_empty() {
        return Err(RejectedChain::MissingUsage { serial, missing: missing.join(" and ") });
    }
    if now < leaf.not_before {
        return Err(RejectedChain::NotYetValid { serial, not_before: leaf.not_before, now });
    }
    if now >= leaf.not_after {
        return Err(RejectedChain::Expired { serial, not_after: leaf.not_after, now });
    }
    Ok(leaf)
}

/// The checks that Go's verifier makes and webpki doesn't, with webpki's errors. Go checks every CA's key usage, and of
/// the anchor also validity, path length and extended key usage.
fn go_accepts(path: &VerifiedPath<'_>, anchor: &Anchor, now: OffsetDateTime) -> Result<(), webpki::Error> {
    let mut intermediates = 0;
    for intermediate in path.intermediate_certificates() {
        may_sign(&intermediate.der())?;
        intermediates += 1;
    }
    may_sign(&anchor.der)?;
    let root = der::read(&anchor.der).map_err(|_| webpki::Error::BadDer)?;
    let (not_before, not_after) = (root.validity().not_before.to_datetime(), root.validity().not_after.to_datetime());
    if now < not_before {
        return Err(webpki::Error::CertNotValidYet { time: unix(now), not_before: unix(not_before) });
    }
    if now > not_after {
        return Err(webpki::Error::CertExpired { time: unix(now), not_after: unix(not_after) });
    }
    let constraints = root.basic_constraints().map_err(|_| webpki::Error::BadDer)?;
    if constraints.and_then(|value| value.value.path_len_constraint).is_some_and(|longest| intermediates > longest) {
        return Err(webpki::Error::PathLenConstraintViolated);
    }
    if !is_for_both_usages(&root) {
        let (required, present) = (KeyUsage::client_auth(), Vec::new());
        return Err(webpki::Error::RequiredEkuNotFoundContext(RequiredEkuNotFoundContext { required, present }));
    }
    Ok(())
}

/// A key usage extension must allow the signing of certificates (RFC 5280, section 4.2.1.3).
pub(super) fn may_sign(ca: &[u8]) -> Result<(), webpki::Error> {
    let ca = der::read(ca).map_err(|_| webpki::Error::BadDer)?;
    match ca.key_usage() {
        Ok(usage) if usage.as_ref().is_none_or(|usage| usage.value.key_cert_sign()) => Ok(()),
        _ => Err(webpki::Error::EndEntityUsedAsCa),
    }
}

/// What is wrong with a path and what to do. The leaf's own checks passed before.
fn reason(error: &webpki::Error) -> &'static str {
    match error {
        webpki::Error::CertExpired { .. } => {
            "a CA certificate on the way has expired; renew the CA and extend the bundle"
        }
        webpki::Error::CertNotValidYet { .. } => {
            "a CA certificate on the way is not valid yet; set this machine's clock, or wait"
        }
        webpki::Error::InvalidSignatureForPublicKey
        | webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            "a CA on the way has the right name and another key; the CA was made anew, so add its new certificate to the bundle of every node"
        }
        webpki::Error::UnsupportedSignatureAlgorithmContext(_) => {
            "it is signed with an algorithm that is not accepted; let the CA sign with SHA-256 or better"
        }
        webpki::Error::PathLenConstraintViolated => {
            "there are more CAs on the way than one of them allows (pathLenConstraint); have the certificate issued by a CA further up"
        }
        webpki::Error::NameConstraintViolation => {
            "a CA on the way does not permit these names (nameConstraints); use names that it permits"
        }
        webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension => {
            "a CA on the way is not for both server and client certificates (extendedKeyUsage); use a CA without that limit"
        }
        webpki::Error::EndEntityUsedAsCa => {
            "a certificate on the way is not a CA's, or its key usage lacks keyCertSign; have that CA certificate made anew"
        }
        webpki::Error::CaUsedAsEndEntity => {
            "it is itself a CA certificate; use a template for end entities, as EndEntityCertificate/V1 is"
        }
        webpki::Error::UnsupportedCriticalExtension => {
            "it has a critical extension that Rust clients do not know; use a template without that extension"
        }
        _ => "the verifier refuses it; have the certificate issued again, and check the CA's own chain",
    }
}

pub(super) fn listed(sans: &Sans) -> String {
    let names = sans.dns.iter().map(|name| name.as_str().to_owned());
    let names = names.chain(sans.ips.iter().map(ToString::to_string));
    names.chain(sans.uris.iter().cloned()).collect::<Vec<_>>().join(", ")
}

fn or_none(list: &str) -> &str {
    if list.is_empty() { "none" } else { list }
}

pub(super) fn unix(time: OffsetDateTime) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(time.unix_timestamp()).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
    };
    use time::Duration;

    use super::*;
    use crate::x509::test_ca::{Ca, NOW, key, sans, with_critical_policies};

    fn bundle(anchors: &[&Ca]) -> TrustBundle {
        let pem: String = anchors.iter().map(|ca| ca.pem.as_str()).collect();
        TrustBundle::parse(pem.as_bytes(), "file", "1").unwrap()
    }

    fn issued(leaf: &rcgen::Certificate, chain: &[&Ca]) -> IssuedChain {
        IssuedChain { leaf_pem: leaf.pem(), chain_pem: chain.iter().map(|ca| ca.pem.as_str()).collect() }
    }

    fn chain(certificates: &[&[u8]]) -> Chain {
        Chain::new(certificates.iter().map(|der| CertificateDer::from(der.to_vec())).collect()).unwrap()
    }

    #[test]
    fn invariant_11_a_leaf_whose_names_or_kind_are_refused_never_passes_later() {
        let constrained = Ca::root_with("root", |params| {
            let permitted_subtrees = vec![rcgen::GeneralSubtree::DnsName("elsewhere.example".into())];
            params.name_constraints =
                Some(rcgen::NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
        });
        let (pair, pem) = key();
        let leaf = constrained.leaf_with(&pair, |_| ());
        let names = bundle(&[&constrained]).verify(&issued(&leaf, &[]), &pem, &sans(), NOW).unwrap_err();
        let kind = altered(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)).unwrap_err();
        for rejected in [names, kind] {
            assert!(matches!(rejected, RejectedChain::Path { .. }) && !rejected.may_pass_later(), "{rejected}");
        }
        let other = RejectedChain::Path { serial: "1".into(), reason: "", source: webpki::Error::UnknownIssuer };
        assert!(other.may_pass_later());
    }

    /// Verifies a leaf that `change` altered, right below a trusted root.
    fn altered(change: impl FnOnce(&mut CertificateParams)) -> Result<VerifiedChain, RejectedChain> {
        let root = Ca::root("root");
        let (pair, pem) = key();
        let leaf = root.leaf_with(&pair, change);
        bundle(&[&root]).verify(&issued(&leaf, &[&root]), &pem, &sans(), NOW)
    }

    #[test]
    fn invariant_04_a_sound_chain_is_accepted_and_served_without_its_root() {
        let root = Ca::root("root");
        let upper = root.below("upper");
        let lower = upper.below("lower");
        let (pair, pem) = key();
        let leaf = lower.leaf(&pair);
        let chain = issued(&leaf, &[&lower, &upper, &root]);
        let verified = bundle(&[&root]).verify(&chain, &pem, &sans(), NOW).unwrap();
        assert_eq!(verified.chain().to_pem(), leaf.pem() + &lower.pem + &upper.pem);
        assert_eq!(verified.leaf().sans, Sans { uris: ["spiffe://nats/n1".to_owned()].into(), ..sans() });
        assert_eq!(verified.leaf().der, leaf.der().to_vec());
        assert_eq!(verified.leaf().issuer, "CN=lower");
    }

    #[test]
    fn invariant_04_a_chain_out_of_order_and_among_others_is_put_in_order() {
        let (root, other) = (Ca::root("root"), Ca::root("other"));
        let upper = root.below("upper");
        let lower = upper.below("lower");
        let (pair, pem) = key();
        let leaf = lower.leaf(&pair);
        let namesake = other.below("lower");
        let chain = issued(&leaf, &[&root, &other, &upper, &namesake, &lower, &upper]);
        let verified = bundle(&[&root]).verify(&chain, &pem, &sans(), NOW).unwrap();
        assert_eq!(verified.chain().to_pem(), leaf.pem() + &lower.pem + &upper.pem);
    }

    #[test]
    fn an_intermediate_is_served_although_it_is_an_anchor_as_a_client_may_trust_the_root_alone() {
        let root = Ca::root("root");
        let lower = root.below("lower");
        let (pair, pem) = key();
        let leaf = lower.leaf(&pair);
        for (anchors, chain) in [
            (vec![&lower, &root], vec![&lower, &root]),
            (vec![&lower], vec![&lower, &root]),
            (vec![&root, &lower], vec![]),
        ] {
            let verified = bundle(&anchors).verify(&issued(&leaf, &chain), &pem, &sans(), NOW).unwrap();
            assert_eq!(verified.chain().to_pem(), leaf.pem() + &lower.pem);
            assert!(bundle(&[&root]).chains(verified.chain(), NOW));
        }
    }

    #[test]
    fn a_client_or_a_peer_with_another_anchor_finds_its_way_through_the_served_chain() {
        // A cross-signed CA: the new root is an anchor here, and the old root elsewhere.
        let (old, new) = (Ca::root("old"), Ca::root("new"));
        let crossed = old.again(&new, |_| ());
        let lower = new.below("lower");
        let (pair, pem) = key();
        let leaf = lower.leaf(&pair);
        let chain = issued(&leaf, &[&lower, &crossed, &old]);
        for here in [&new, &old] {
            let verified = bundle(&[here]).verify(&chain, &pem, &sans(), NOW).unwrap();
            assert_eq!(verified.chain().to_pem(), leaf.pem() + &lower.pem + &crossed.pem);
            for there in [&new, &old, &lower] {
                assert!(bundle(&[there]).chains(verified.chain(), NOW));
            }
        }
        // Two sub-CAs are anchors here, and the root alone elsewhere.
        let upper = old.below("upper");
        let lower = upper.below("lower");
        let leaf = lower.leaf(&pair);
        let chain = issued(&leaf, &[&lower, &upper, &old]);
        let verified = bundle(&[&lower, &upper]).verify(&chain, &pem, &sans(), NOW).unwrap();
        assert_eq!(verified.chain().to_pem(), leaf.pem() + &lower.pem + &upper.pem);
        assert!(bundle(&[&old]).chains(verified.chain(), NOW));
    }

    #[test]
    fn invariant_05_the_anchor_that_a_served_chain_needs_is_the_nearest_one() {
        let root = Ca::root("root");
        let lower = root.below("lower");
        let served = chain(&[lower.leaf(&key().0).der(), &lower.der]);
        assert_eq!(bundle(&[&root, &lower]).anchor_of(&served, NOW).unwrap().subject, "CN=lower");
    }

    #[test]
    fn a_path_that_holds_for_one_usage_only_makes_room_for_one_that_holds_for_both() {
        let root = Ca::root("root");
        let lower = root.below("lower");
        let servers = root.again(&lower, |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
        let (pair, pem) = key();
        let leaf = lower.leaf(&pair);
        let verified = bundle(&[&root]).verify(&issued(&leaf, &[&servers, &lower]), &pem, &sans(), NOW).unwrap();
        assert_eq!(verified.chain().to_pem(), leaf.pem() + &lower.pem);
    }

    #[test]
    fn invariant_04_a_certificate_for_another_key_is_refused() {
        let root = Ca::root("root");
        let leaf = root.leaf(&key().0);
        let error = bundle(&[&root]).verify(&issued(&leaf, &[]), &key().1, &sans(), NOW).unwrap_err();
        assert!(matches!(error, RejectedChain::OtherKey { .. }), "{error}");
    }

    #[test]
    fn keys_of_every_algorithm_match_their_own_certificate() {
        let root = Ca::root("root");
        for pair in [
            KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
            KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap(),
        ] {
            let pem = PrivateKeyPem::new(zeroize::Zeroizing::new(pair.serialize_pem()));
            bundle(&[&root]).verify(&issued(&root.leaf(&pair), &[]), &pem, &sans(), NOW).unwrap();
        }
    }

    #[test]
    fn invariant_04_a_missing_san_is_refused_and_named() {
        let error = altered(|params| {
            params.subject_alt_names.remove(1);
        })
        .unwrap_err();
        assert!(
            error.to_string().contains("lacks the names 10.0.1.5: it carries n1.nats.internal, spiffe://nats/n1;"),
            "{error}"
        );
        let error = altered(|params| params.subject_alt_names.clear()).unwrap_err();
        assert!(error.to_string().contains("lacks the names n1.nats.internal, 10.0.1.5: it carries none;"), "{error}");
    }

    #[test]
    fn a_client_needs_client_auth_alone_and_every_uri_that_was_asked_for() {
        let root = Ca::root("root");
        let (pair, pem) = key();
        let of_client = |uri: &str, usage: ExtendedKeyUsagePurpose| {
            let leaf = root.leaf_with(&pair, |params| params.extended_key_usages = vec![usage]);
            let asked = Sans { uris: [uri.to_owned()].into(), ..Sans::default() };
            bundle(&[&root]).verify_for(Role::Client, &issued(&leaf, &[]), &pem, &asked, NOW)
        };
        let client = || ExtendedKeyUsagePurpose::ClientAuth;
        of_client("spiffe://nats/n1", client()).unwrap();
        let error = of_client("spiffe://nats/n2", client()).unwrap_err().to_string();
        assert!(error.contains("lacks the names spiffe://nats/n2"), "{error}");
        let error = of_client("spiffe://nats/n1", ExtendedKeyUsagePurpose::ServerAuth).unwrap_err().to_string();
        assert!(error.contains("lacks the extended key usage clientAuth"), "{error}");
    }

    #[test]
    fn names_are_compared_without_case_and_more_of_them_are_welcome() {
        altered(|params| {
            params.subject_alt_names[0] = SanType::DnsName("N1.NATS.internal".try_into().unwrap());
            params.subject_alt_names.push(SanType::DnsName("other".try_into().unwrap()));
        })
        .unwrap();
    }

    #[test]
    fn invariant_04_each_missing_usage_is_refused_and_named() {
        let (server, client) = (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
        for (usages, lacking) in [
            (vec![server], "clientAuth"),
            (vec![client], "serverAuth"),
            (vec![], "serverAuth and clientAuth"),
            (vec![ExtendedKeyUsagePurpose::Any], "serverAuth and clientAuth"),
        ] {
            match altered(|params| params.extended_key_usages = usages).unwrap_err() {
                RejectedChain::MissingUsage { missing, .. } => assert_eq!(missing, lacking),
                other => panic!("{other}"),
            }
        }
    }

    #[test]
    fn invariant_04_a_certificate_outside_its_validity_is_refused_with_both_times() {
        let error = altered(|params| params.not_before = NOW + Duration::seconds(1)).unwrap_err();
        assert!(matches!(error, RejectedChain::NotYetValid { .. }));
        assert!(error.to_string().contains("is valid from 2026-03-01T12:00:01Z, and it is 2026-03-01T12:00:00Z here"));
        let error = altered(|params| params.not_after = NOW).unwrap_err();
        assert!(matches!(error, RejectedChain::Expired { .. }), "{error}");
        altered(|params| (params.not_before, params.not_after) = (NOW, NOW + Duration::seconds(1))).unwrap();
    }

    #[test]
    fn invariant_04_a_chain_to_another_root_is_refused_although_it_is_whole() {
        let (ours, other) = (Ca::root("ours"), Ca::root("other"));
        let lower = other.below("lower");
        let (pair, pem) = key();
        let error =
            bundle(&[&ours]).verify(&issued(&lower.leaf(&pair), &[&lower, &other]), &pem, &sans(), NOW).unwrap_err();
        assert!(matches!(&error, RejectedChain::UntrustedRoot { root, .. } if root == "CN=other"), "{error}");
        assert!(error.to_string().contains("that holds \"CN=ours\""), "{error}");
    }

    #[test]
    fn invariant_04_another_ca_of_the_same_name_is_refused() {
        let (ours, other) = (Ca::root("root"), Ca::root("root"));
        let (pair, pem) = key();
        for chain in [vec![], vec![&other]] {
            let error = bundle(&[&ours]).verify(&issued(&other.leaf(&pair), &chain), &pem, &sans(), NOW).unwrap_err();
            assert!(matches!(error, RejectedChain::Path { .. }), "{error}");
            assert!(error.to_string().contains("the right name and another key"), "{error}");
        }
    }

    #[test]
    fn invariant_04_a_missing_intermediate_is_named() {
        let root = Ca::root("root");
        let upper = root.below("upper");
        let lower = upper.below("lower");
        let (pair, pem) = key();
        let error =
            bundle(&[&root]).verify(&issued(&lower.leaf(&pair), &[&root, &lower]), &pem, &sans(), NOW).unwrap_err();
        match &error {
            RejectedChain::MissingIntermediate { below, missing, .. } => {
                assert_eq!((below.as_str(), missing.as_str()), ("CN=lower", "CN=upper"));
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn invariant_04_what_go_would_refuse_is_refused_although_webpki_takes_it() {
        let refused = |root: &Ca, lower: &Ca, words: &str| {
            let (pair, pem) = key();
            let chain = issued(&lower.leaf(&pair), &[lower]);
            let error = bundle(&[root]).verify(&chain, &pem, &sans(), NOW).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        };
        let expired = Ca::root_with("expired", |params| params.not_after = NOW - Duration::days(1));
        refused(&expired, &expired.below("lower"), "has expired");
        let future = Ca::root_with("future", |params| params.not_before = NOW + Duration::days(1));
        refused(&future, &future.below("lower"), "is not valid yet");
        let short = Ca::root_with("short", |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
        refused(&short, &short.below("lower"), "pathLenConstraint");
        let servers = |params: &mut CertificateParams| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        };
        let limited = Ca::root_with("limited", servers);
        refused(&limited, &limited.below("lower"), "extendedKeyUsage");
        let root = Ca::root("root");
        refused(&root, &root.below_with("lower", servers), "extendedKeyUsage");
        let mute = |params: &mut CertificateParams| params.key_usages = vec![KeyUsagePurpose::CrlSign];
        refused(&root, &root.below_with("lower", mute), "keyCertSign");
        refused(&root, &root.below_with("lower", |params| params.not_after = NOW - Duration::days(1)), "has expired");
    }

    #[test]
    fn invariant_04_a_ca_with_an_extension_that_rust_clients_do_not_know_is_named_and_accepted_in_the_bundle() {
        let root = Ca::root("root");
        let policies = root.below_with("with policies", with_critical_policies);
        let lower = policies.below("lower");
        let (pair, pem) = key();
        let leaf = lower.leaf(&pair);
        let chain = issued(&leaf, &[&lower, &policies, &root]);
        let error = bundle(&[&root]).verify(&chain, &pem, &sans(), NOW).unwrap_err();
        assert!(error.may_pass_later(), "{error}");
        let words =
            "through \"CN=with policies\", which Rust clients refuse for its critical extension certificatePolicies;";
        assert!(error.to_string().contains(words), "{error}");
        for anchors in [vec![&root, &policies], vec![&policies]] {
            let verified = bundle(&anchors).verify(&chain, &pem, &sans(), NOW).unwrap();
            assert_eq!(verified.chain().to_pem(), leaf.pem() + &lower.pem + &policies.pem);
        }
    }

    #[test]
    fn an_unknown_extension_hides_no_other_fault_of_a_chain() {
        let (root, other) = (Ca::root("root"), Ca::root("other"));
        let policies = root.below_with("with policies", with_critical_policies);
        let lower = policies.below("lower");
        let (pair, pem) = key();
        let rejected = |anchors: &[&Ca], leaf: &rcgen::Certificate, above: &[&Ca]| {
            bundle(anchors).verify(&issued(leaf, above), &pem, &sans(), NOW).unwrap_err()
        };
        // The root is not in the bundle.
        let error = rejected(&[&other], &lower.leaf(&pair), &[&lower, &policies, &root]);
        assert!(matches!(error, RejectedChain::UntrustedRoot { .. }), "{error}");
        // The CA is an anchor, and the CA below is missing.
        let error = rejected(&[&root, &policies], &lower.leaf(&pair), &[&policies, &root]);
        assert!(
            matches!(&error, RejectedChain::MissingIntermediate { missing, .. } if missing == "CN=lower"),
            "{error}"
        );
        // The CA is beside the way.
        let error = rejected(&[&other], &root.leaf(&pair), &[&root, &policies]);
        assert!(matches!(error, RejectedChain::UntrustedRoot { .. }), "{error}");
        // The leaf itself has the extension.
        for ca in [&root, &lower] {
            let leaf = ca.leaf_with(&pair, with_critical_policies);
            let error = rejected(&[&root], &leaf, &[&lower, &policies, &root]);
            assert!(error.to_string().contains("it has a critical extension"), "{error}");
            assert!(!error.may_pass_later());
        }
    }

    #[test]
    fn a_ca_certificate_is_no_leaf() {
        let error = altered(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)).unwrap_err();
        assert!(error.to_string().contains("it is itself a CA certificate"), "{error}");
    }

    #[test]
    fn invariant_08_sizes_and_counts_are_bounded_and_junk_is_refused() {
        let root = Ca::root("root");
        let (pair, pem) = key();
        let leaf = root.leaf(&pair);
        let accept = |chain| bundle(&[&root]).verify(&chain, &pem, &sans(), NOW).unwrap_err();
        let with = |leaf_pem: String, chain_pem: String| accept(IssuedChain { leaf_pem, chain_pem });
        assert!(matches!(with(leaf.pem(), root.pem.repeat(10)), RejectedChain::TooMany { count: 11 }));
        assert!(matches!(with(leaf.pem(), "a".repeat(MAX_ISSUED)), RejectedChain::TooLarge { .. }));
        assert!(matches!(with(String::new(), root.pem.clone()), RejectedChain::Leaf(LeafError::Empty)));
        assert!(matches!(with("{}".into(), String::new()), RejectedChain::Leaf(LeafError::Empty)));
        assert!(matches!(with(pem::encode(b"junk"), root.pem.clone()), RejectedChain::Leaf(LeafError::Der)));
        assert!(matches!(with(leaf.pem(), pem::encode(b"junk")), RejectedChain::Intermediate { number: 2 }));
        assert!(matches!(with(leaf.pem(), root.pem[..200].to_owned()), RejectedChain::Pem(_)));
        assert!(matches!(with(leaf.pem()[..200].to_owned(), String::new()), RejectedChain::Leaf(LeafError::Pem(_))));
    }

    #[test]
    fn invariant_05_finds_the_anchor_that_a_served_chain_needs() {
        let (old, new) = (Ca::root("old"), Ca::root("new"));
        let lower = old.below("lower");
        let served = chain(&[lower.leaf(&key().0).der(), &lower.der]);
        let (before, after) = (bundle(&[&new, &old]), bundle(&[&new]));
        assert_eq!(before.anchor_of(&served, NOW).unwrap().subject, "CN=old");
        assert!(!after.chains(&served, NOW));
        let kept = after.keeping(&before, |anchor| before.anchor_of(&served, NOW) == Some(anchor));
        assert!(kept.chains(&served, NOW));
        assert!(!before.chains(&chain(&[served.leaf()]), NOW), "its intermediate is not served");
        assert!(!before.chains(&served, NOW + Duration::days(30)), "it has expired");
        assert!(!before.chains(&chain(&[b"junk"]), NOW));
    }

    #[test]
    fn a_served_certificate_is_refused_with_the_reason_and_not_for_a_clock_that_is_behind() {
        let root = Ca::root("root");
        let served = chain(&[root.leaf(&key().0).der()]);
        let (ours, others) = (bundle(&[&root]), bundle(&[&Ca::root("other")]));
        let refusal = |bundle: &TrustBundle, now| bundle.refusal(&served, now).map(|refusal| refusal.to_string());
        assert_eq!(refusal(&ours, NOW), None);
        assert_eq!(refusal(&ours, NOW - Duration::days(1)), None);
        assert_eq!(refusal(&ours, NOW + Duration::days(7)).unwrap(), "it expired at 2026-03-08T12:00:00Z");
        let foreign = refusal(&others, NOW).unwrap();
        assert_eq!(foreign, "CN=root signed it, and no anchor of the bundle in force is above that");
        assert_eq!(ours.refusal(&chain(&[b"junk"]), NOW), Some(Refusal::Unreadable));
    }

    proptest! {
        #[test]
        fn invariant_04_an_altered_leaf_is_never_accepted(position in any::<prop::sample::Index>(), bit in 0..8_u8) {
            static CASE: std::sync::LazyLock<(TrustBundle, PrivateKeyPem, Vec<u8>)> = std::sync::LazyLock::new(|| {
                let root = Ca::root("root");
                let (pair, pem) = key();
                (bundle(&[&root]), pem, root.leaf(&pair).der().to_vec())
            });
            let (bundle, key, der) = &*CASE;
            let mut altered = der.clone();
            altered[position.index(der.len())] ^= 1 << bit;
            let chain = |der: &[u8]| IssuedChain { leaf_pem: pem::encode(der), chain_pem: String::new() };
            prop_assert!(bundle.verify(&chain(der), key, &sans(), NOW).is_ok());
            prop_assert!(bundle.verify(&chain(&altered), key, &sans(), NOW).is_err());
        }
    }
}
