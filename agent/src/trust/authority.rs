//! The judgement of a CA before it signs: whether clients and peers will accept its next leaf.
//!
//! The CA's certificate begins a path, as above a leaf. Names and signatures lead up to an anchor. RFC 5280, section 6.1.1,
//! takes an anchor for a name and a key, so any certificate with this name and key stands for the anchor. A root that was
//! issued again and a cross-signed CA are therefore found. The limits on the way are checked as [`TrustBundle::verify`] checks them.

use rcgen::{CertificateParams, CertificateSigningRequestParams, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, TrustAnchor};
use time::OffsetDateTime;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::certificate::X509Certificate;

use super::bundle::{TrustBundle, is_self_signed};
use super::verify::{is_for_both_usages, listed, may_sign, unix};
use crate::clock::rfc3339;
use crate::error::with_causes;
use crate::x509::chain::{Chain, MAX_CERTIFICATES};
use crate::x509::csr::{Csr, CsrError, KeyAlgorithm};
use crate::x509::der;
use crate::x509::leaf::Leaf;
use crate::x509::san::Sans;

/// The most signatures that a judgement verifies. webpki has the same limit for a path (`DEFAULT_MAX_SIGNATURE_CHECKS`).
const MAX_SIGNATURES: usize = 100;

/// Why the next leaf of a CA would be refused. Each names the CA certificate that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Objection {
    #[error("what the issuer gives as its CA is no chain of certificates: {reason}; import the CA's certificate again")]
    Unreadable { reason: String },
    #[error(
        "{subject} ended at {}; install a new certificate for this CA, or name another CA in issuer.ca_arn", rfc3339(*at)
    )]
    Ended { subject: String, at: OffsetDateTime },
    #[error("{subject} is valid from {}; set this machine's clock, or wait", rfc3339(*from))]
    NotYetValid { subject: String, from: OffsetDateTime },
    #[error("{subject} may not sign certificates (basicConstraints, keyUsage); have its certificate made anew")]
    SignsNothing { subject: String },
    #[error(
        "{subject} may only sign for {usages} (extendedKeyUsage), and routes need serverAuth and clientAuth; use a CA without \
         that limit"
    )]
    Usages { subject: String, usages: String },
    #[error(
        "{subject} allows {allowed} CAs below it (pathLenConstraint), and there are {below}; use a CA further up, or have this \
         CA issued again"
    )]
    TooDeep { subject: String, allowed: u32, below: usize },
    #[error(
        "{subject} does not permit {names} (nameConstraints), which the next certificate would name; use names that the \
         CA permits, with node.automatic_names = false for the instance's own, or another CA"
    )]
    Names { subject: String, names: String },
    #[error(
        "Rust clients refuse {subject} above a leaf for its critical extension {extensions}; add the certificate of {subject} to \
         the bundle of every node and client, or have that CA issued again without the extension"
    )]
    UnknownExtension { subject: String, extensions: String },
    #[error("the bundle has none of {subjects}, so no leaf of the issuer is accepted; add the CA to the bundle")]
    Unanchored { subjects: String },
}

impl TrustBundle {
    /// Judges a CA by its chain in PEM, the CA itself first, for a node with these names. Returns the earliest end of a
    /// certificate on the way.
    pub(crate) fn judge(&self, ca_pem: &str, sans: &Sans, now: OffsetDateTime) -> Result<OffsetDateTime, Objection> {
        let unreadable = |reason: String| Objection::Unreadable { reason };
        let chain = Chain::from_pem(ca_pem.as_bytes()).map_err(|error| unreadable(error.to_string()))?;
        let read = |der| der::read(der).map_err(|_| unreadable("it is not X.509 in DER".to_owned()));
        let ca = read(chain.leaf())?;
        let above: Vec<_> = chain.above().iter().map(|der| read(der)).collect::<Result<_, _>>()?;
        let anchors: Vec<_> = self.anchors.iter().filter_map(|anchor| der::read(&anchor.der).ok()).collect();
        let names = Names::of(sans).map_err(|error| unreadable(with_causes(&error)))?;
        let mut judge = Judge { above: &above, anchors: &anchors, names: &names, now, signatures: 0 };
        let mut met = None;
        // A cross-signed CA has several certificates, and a leaf fits each.
        for begin in std::iter::once(&ca).chain(above.iter().filter(|other| is_same_ca(other, &ca))) {
            match judge.climb(&[begin]) {
                Ok(end) => return Ok(end),
                Err(objection) => met = met.or(objection),
            }
        }
        let subjects = || std::iter::once(&ca).chain(&above).map(|ca| der::name(ca.subject())).collect::<Vec<_>>();
        Err(met.unwrap_or_else(|| Objection::Unanchored { subjects: subjects().join(", ") }))
    }

    /// The subject and the end of the CA that signed the leaf of a chain, from the chain itself or from the bundle. Of several
    /// certificates of the CA the last end counts. `None`: the CA is in neither.
    ///
    /// Every pass asks, so signatures are verified only where two CAs have the name of the leaf's issuer.
    pub(crate) fn issuer_of(&self, chain: &Chain) -> Option<(String, OffsetDateTime)> {
        let leaf = der::read(chain.leaf()).ok()?;
        let above = chain.above().iter().map(AsRef::as_ref);
        let known = above.chain(self.anchors.iter().map(|anchor| anchor.der.as_slice()));
        let is_named = |ca: &X509Certificate<'_>| ca.subject().as_raw() == leaf.issuer().as_raw();
        let mut named: Vec<_> = known.filter_map(|der| der::read(der).ok()).filter(is_named).collect();
        if named.windows(2).any(|two| !is_same_ca(&two[0], &two[1])) {
            named.retain(|ca| signed(ca, &leaf));
        }
        let end = |ca: &X509Certificate<'_>| ca.validity().not_after.to_datetime();
        named.iter().max_by_key(|ca| end(ca)).map(|ca| (der::name(ca.subject()), end(ca)))
    }
}

/// One judgement.
struct Judge<'a> {
    above: &'a [X509Certificate<'a>],
    anchors: &'a [X509Certificate<'a>],
    names: &'a Names,
    now: OffsetDateTime,
    signatures: usize,
}

impl<'a> Judge<'a> {
    /// Goes up from the last certificate of a path that holds so far. Where no path holds, the error is the first objection that a
    /// path met, or `None` where no path leads to an anchor.
    fn climb(&mut self, path: &[&'a X509Certificate<'a>]) -> Result<OffsetDateTime, Option<Objection>>
    where
        Self: 'a,
    {
        let Some((last, below)) = path.split_last() else { return Err(None) };
        self.check(last, below.len()).map_err(Some)?;
        let mut met = None;
        let unknown = der::unknown_extensions(last);
        let (anchors, above) = (self.anchors, self.above);
        let ways = anchors.iter().map(|ca| (ca, true)).chain(above.iter().map(|ca| (ca, false)));
        for (ca, is_anchor) in ways {
            let answer = if is_anchor && is_same_ca(ca, last) {
                self.check(ca, below.len()).map_err(Some).map(|()| end(path.iter().copied().chain([ca])))
            } else if path.iter().any(|known| is_same_ca(known, ca)) || !self.is_signed_by(last, ca) {
                continue;
            } else if let Some(extensions) = unknown.clone() {
                Err(Some(Objection::UnknownExtension { subject: der::name(last.subject()), extensions }))
            } else if is_anchor {
                self.check(ca, path.len()).map_err(Some).map(|()| end(path.iter().copied().chain([ca])))
            } else if path.len() < MAX_CERTIFICATES {
                self.climb(&[path, &[ca]].concat())
            } else {
                continue;
            };
            match answer {
                Ok(end) => return Ok(end),
                Err(objection) => met = met.or(objection),
            }
        }
        Err(met)
    }

    fn is_signed_by(&mut self, below: &X509Certificate<'_>, ca: &X509Certificate<'_>) -> bool {
        if below.issuer().as_raw() != ca.subject().as_raw() || self.signatures >= MAX_SIGNATURES {
            return false;
        }
        self.signatures += 1;
        signed(ca, below)
    }

    /// The limits of one CA with a number of CAs below it.
    fn check(&self, ca: &X509Certificate<'_>, below: usize) -> Result<(), Objection> {
        let subject = der::name(ca.subject());
        let (from, at) = (ca.validity().not_before.to_datetime(), ca.validity().not_after.to_datetime());
        if at < self.now {
            return Err(Objection::Ended { subject, at });
        }
        if from > self.now {
            return Err(Objection::NotYetValid { subject, from });
        }
        let constraints = ca.basic_constraints().ok().flatten().map(|constraints| constraints.value);
        // A root of version 1 has no extensions, and the bundle takes it.
        let is_ca = constraints.map_or_else(|| is_self_signed(ca), |constraints| constraints.ca);
        if !is_ca || may_sign(ca.as_raw()).is_err() {
            return Err(Objection::SignsNothing { subject });
        }
        if !is_for_both_usages(ca) {
            return Err(Objection::Usages { subject, usages: usages(ca) });
        }
        let allowed = constraints.and_then(|constraints| constraints.path_len_constraint);
        if let Some(allowed) = allowed.filter(|allowed| u32::try_from(below).is_ok_and(|below| below > *allowed)) {
            return Err(Objection::TooDeep { subject, allowed, below });
        }
        match self.names.refused_by(ca) {
            Some(names) => Err(Objection::Names { subject, names }),
            None => Ok(()),
        }
    }
}

/// Whether two certificates are of one CA: one name and one key.
fn is_same_ca(one: &X509Certificate<'_>, other: &X509Certificate<'_>) -> bool {
    one.subject().as_raw() == other.subject().as_raw() && one.public_key().raw == other.public_key().raw
}

fn signed(ca: &X509Certificate<'_>, below: &X509Certificate<'_>) -> bool {
    below.issuer().as_raw() == ca.subject().as_raw() && below.verify_signature(Some(ca.public_key())).is_ok()
}

fn end<'a>(path: impl Iterator<Item = &'a X509Certificate<'a>>) -> OffsetDateTime {
    let ends = path.map(|ca| ca.validity().not_after.to_datetime());
    ends.min().unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// The usages that a CA signs for.
fn usages(ca: &X509Certificate<'_>) -> String {
    let usage = ca.extended_key_usage().ok().flatten().map(|usage| usage.value);
    let has = usage.map_or([false; 2], |usage| [usage.server_auth, usage.client_auth]);
    let names: Vec<&str> =
        ["serverAuth", "clientAuth"].into_iter().zip(has).filter(|(_, has)| *has).map(|(name, _)| name).collect();
    if names.is_empty() { "other usages".to_owned() } else { names.join(" and ") }
}

/// Leaves with the names of a node, to try the name constraints of a CA on. A CA of this process signs them, and webpki judges
/// them under that CA with the constraints of the CA in question.
struct Names {
    ca: CertificateDer<'static>,
    /// A leaf with every name, and a leaf for each name.
    all: CertificateDer<'static>,
    each: Vec<(Sans, CertificateDer<'static>)>,
}

impl Names {
    fn of(sans: &Sans) -> Result<Self, CsrError> {
        let failed = |source| CsrError::Request { node: "this node".to_owned(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).map_err(failed)?.der().clone();
        let issuer = rcgen::Issuer::new(params, key);
        let leaf = |sans: &Sans| {
            let csr = Csr::generate("node", sans, KeyAlgorithm::EcdsaP256)?;
            let csr = CertificateSigningRequestParams::from_pem(&csr.pem).map_err(failed)?;
            Ok(csr.signed_by(&issuer).map_err(failed)?.der().clone())
        };
        let dns = sans.dns.iter().map(|name| Sans { dns: [name.clone()].into(), ..Sans::default() });
        let ips = sans.ips.iter().map(|ip| Sans { ips: [*ip].into(), ..Sans::default() });
        let each = dns.chain(ips).map(|one| leaf(&one).map(|leaf| (one, leaf))).collect::<Result<_, _>>()?;
        Ok(Self { ca, all: leaf(sans)?, each })
    }

    /// The names that the constraints of a CA refuse.
    fn refused_by(&self, ca: &X509Certificate<'_>) -> Option<String> {
        let constrained = CertificateDer::from(ca.as_raw());
        let constraints = webpki::anchor_from_trusted_cert(&constrained).ok()?.name_constraints?;
        let ours = webpki::anchor_from_trusted_cert(&self.ca).ok()?;
        let anchor = TrustAnchor { name_constraints: Some(constraints), ..ours };
        if !is_refused(&self.all, &anchor) {
            return None;
        }
        let refused = self.each.iter().filter(|(_, leaf)| is_refused(leaf, &anchor)).map(|(sans, _)| listed(sans));
        let refused = refused.collect::<Vec<_>>().join(", ");
        Some(if refused.is_empty() { "this node's name".to_owned() } else { refused })
    }
}

fn is_refused(leaf: &CertificateDer<'_>, anchor: &TrustAnchor<'_>) -> bool {
    let (Ok(parsed), Ok(leaf)) = (Leaf::parse(leaf), EndEntityCert::try_from(leaf)) else { return true };
    let (anchors, time) = (std::slice::from_ref(anchor), unix(parsed.not_before));
    leaf.verify_for_usage(der::VERIFIED, anchors, &[], time, KeyUsage::server_auth(), None, None).is_err()
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CidrSubnet, ExtendedKeyUsagePurpose, GeneralSubtree, KeyUsagePurpose, NameConstraints,
    };
    use time::Duration;

    use super::*;
    use crate::issue::IssuedChain;
    use crate::x509::test_ca::{Ca, NOW, key, sans, with_critical_policies};

    fn bundle(anchors: &[&Ca]) -> TrustBundle {
        let pem: String = anchors.iter().map(|ca| ca.pem.as_str()).collect();
        TrustBundle::parse(pem.as_bytes(), "test", "1").unwrap()
    }

    fn pem(chain: &[&Ca]) -> String {
        chain.iter().map(|ca| ca.pem.as_str()).collect()
    }

    /// Judges a CA, and has the CA sign a leaf: the judgement foretells the verification of the leaf.
    fn judge(anchors: &[&Ca], chain: &[&Ca]) -> Result<OffsetDateTime, Objection> {
        let judged = bundle(anchors).judge(&pem(chain), &sans(), NOW);
        let (pair, ours) = key();
        let issued = IssuedChain { leaf_pem: chain[0].leaf(&pair).pem(), chain_pem: pem(chain) };
        let verified = bundle(anchors).verify(&issued, &ours, &sans(), NOW);
        assert_eq!(judged.is_ok(), verified.is_ok(), "judged {judged:?}, verified {:?}", verified.err());
        judged
    }

    #[test]
    fn a_root_that_was_issued_again_and_a_cross_signed_ca_are_trusted() {
        let (root, other) = (Ca::root("root"), Ca::root("other"));
        let longer = root.again(&root, |params| params.not_after = NOW + Duration::days(3650));
        assert_ne!(root.der, longer.der);
        let sub = root.below("sub");
        for (anchors, chain) in [
            (vec![&root], vec![&root]),
            (vec![&longer], vec![&root]),
            (vec![&root], vec![&longer]),
            (vec![&longer], vec![&sub, &root]),
            (vec![&other, &root], vec![&sub]),
            (vec![&sub], vec![&sub]),
        ] {
            judge(&anchors, &chain).unwrap();
        }
        let crossed = other.again(&sub, |_| ());
        judge(&[&other], &[&sub, &root, &crossed]).unwrap();
        let crossed_root = other.again(&root, |_| ());
        judge(&[&other], &[&sub, &crossed_root]).unwrap();
        judge(&[&other], &[&sub, &root, &crossed_root]).unwrap();
        // The bundle has the cross-signed certificate alone.
        judge(&[&crossed], &[&sub, &root]).unwrap();
    }

    #[test]
    fn the_earliest_end_on_the_way_is_the_end_of_the_judgement() {
        let root = Ca::root("root");
        let sub = root.below_with("sub", |params| params.not_after = NOW + Duration::days(3));
        assert_eq!(judge(&[&root], &[&sub, &root]), Ok(NOW + Duration::days(3)));
    }

    #[test]
    fn a_ca_whose_leaf_would_be_refused_is_refused_with_its_name_and_a_remedy() {
        let day = Duration::days(1);
        let root = Ca::root("root");
        let below = |change: fn(&mut CertificateParams)| root.below_with("sub", change);
        let usages = below(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
        let names =
            |permitted, excluded| Some(NameConstraints { permitted_subtrees: permitted, excluded_subtrees: excluded });
        let dns = || GeneralSubtree::DnsName("corp.example".into());
        let subnet = || GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([10, 0, 0, 0], 8));
        let permitting = root.below_with("sub", |params| params.name_constraints = names(vec![dns()], Vec::new()));
        let excluding = root.below_with("sub", |params| params.name_constraints = names(Vec::new(), vec![subnet()]));
        let mute = below(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]);
        let shallow = Ca::root_with("root", |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
        let deep = shallow.below("sub");
        for (anchor, ca, words) in [
            (&root, &below(|params| params.not_after = NOW - Duration::seconds(1)), "ended at"),
            (&root, &below(|params| params.not_before = NOW + Duration::hours(1)), "valid from"),
            (&root, &usages, "only sign for serverAuth"),
            (&root, &permitting, "does not permit n1.nats.internal (nameConstraints)"),
            (&root, &excluding, "does not permit 10.0.1.5 (nameConstraints)"),
            (&root, &mute, "may not sign"),
            (&shallow, &deep, "allows 0 CAs below it"),
            (
                &root,
                &below(with_critical_policies),
                "refuse CN=sub above a leaf for its critical extension certificatePolicies;",
            ),
            (&Ca::root("another"), &deep, "none of CN=sub"),
            (&Ca::root("root"), &below(|_| ()), "none of CN=sub"),
        ] {
            let text = judge(&[anchor], &[ca]).unwrap_err().to_string();
            assert!(text.contains(words) && text.contains("; "), "{words}: {text}");
        }
        let ended = Ca::root_with("root", |params| params.not_after = NOW - day);
        let text = judge(&[&ended], &[&ended.below("sub")]).unwrap_err().to_string();
        assert!(text.contains("CN=root ended at"), "{text}");
        let nonsense = bundle(&[&root]).judge("<html>", &sans(), NOW).unwrap_err();
        assert!(matches!(nonsense, Objection::Unreadable { .. }), "{nonsense}");
    }

    #[test]
    fn a_ca_with_an_extension_that_rust_clients_do_not_know_passes_in_the_bundle() {
        let root = Ca::root("root");
        let policies = root.below_with("with policies", with_critical_policies);
        let sub = policies.below("sub");
        judge(&[&root], &[&sub, &policies, &root]).unwrap_err();
        judge(&[&root, &policies], &[&sub, &policies, &root]).unwrap();
        judge(&[&policies], &[&policies, &root]).unwrap();
        // Another certificate of the same CA makes a way without the extension.
        let plain = root.again(&policies, |params| params.custom_extensions.clear());
        judge(&[&root], &[&policies, &plain]).unwrap();
    }

    #[test]
    fn permitted_names_pass() {
        let root = Ca::root("root");
        let permitting = root.below_with("sub", |params| {
            let permitted_subtrees = vec![
                GeneralSubtree::DnsName("nats.internal".into()),
                GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([10, 0, 0, 0], 8)),
            ];
            params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
        });
        let judged = bundle(&[&root]).judge(&permitting.pem, &sans(), NOW);
        judged.unwrap();
    }

    #[test]
    fn names_in_a_circle_come_to_an_end() {
        let (one, two) = (Ca::root("one"), Ca::root("two"));
        let (crossed, back) = (two.again(&one, |_| ()), one.again(&two, |_| ()));
        judge(&[&Ca::root("three")], &[&crossed, &back, &one, &two]).unwrap_err();
    }

    #[test]
    fn the_issuer_of_a_leaf_is_found_by_its_key_where_names_are_equal() {
        let root = Ca::root("root");
        let sub = root.below_with("sub", |params| params.not_after = NOW + Duration::days(3));
        let twin = root.below("sub");
        let leaf = sub.leaf(&key().0);
        let chain = |above: &[&Ca]| {
            let above = above.iter().map(|ca| CertificateDer::from(ca.der.clone()));
            Chain::new(std::iter::once(leaf.der().clone()).chain(above).collect()).unwrap()
        };
        let expected = Some(("CN=sub".to_owned(), NOW + Duration::days(3)));
        assert_eq!(bundle(&[&root]).issuer_of(&chain(&[&sub])), expected);
        assert_eq!(bundle(&[&root]).issuer_of(&chain(&[&twin, &sub])), expected);
        assert_eq!(bundle(&[&sub]).issuer_of(&chain(&[])), expected);
        assert_eq!(bundle(&[&root]).issuer_of(&chain(&[])), None);
    }
}
