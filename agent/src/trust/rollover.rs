//! A change of the CA, judged by what servers show: who trusts which chain, and who still serves a leaf of the old CA.
//!
//! A route listener names the CAs that it accepts. So a node sees from outside whether a peer would accept a new leaf.

use std::collections::BTreeSet;

use time::OffsetDateTime;

use super::bundle::{Anchor, TrustBundle};
use crate::clock::rfc3339;
use crate::digest::sha256_hex;
use crate::x509::chain::Chain;
use crate::x509::der;
use crate::x509::leaf::Leaf;

/// How far a server is in a change of the CA.
#[derive(Clone, Copy, Debug, Default, serde::Deserialize, serde::Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RolloverPhase {
    /// No change is under way.
    #[default]
    None,
    /// The new CA is not trusted everywhere yet.
    Trusting,
    /// The new CA is trusted, and a leaf of the old CA is served.
    Switching,
    /// A leaf of the new CA is served, and the old anchor is still trusted.
    Settling,
}

impl std::fmt::Display for RolloverPhase {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::None => "none",
            Self::Trusting => "trusting",
            Self::Switching => "switching",
            Self::Settling => "settling",
        })
    }
}

/// What a leaf of a new issuer waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A peer doesn't trust the issuer.
    Peer {
        /// The peer.
        id: String,
        /// When the peer was last seen. `None`: it is not looked at yet.
        seen: Option<OffsetDateTime>,
    },
    /// Clients have notice until this time.
    Notice {
        /// `rollover.client_notice` after the bundle had the CA.
        until: OffsetDateTime,
    },
    /// Two CAs of the bundle have one name, so nobody can see who trusts the new CA.
    OneName {
        /// When every node should have read the bundle.
        until: OffsetDateTime,
    },
}

impl std::fmt::Display for Wait {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Peer { id, seen: None } => write!(formatter, "{id}, which is not looked at yet"),
            Self::Peer { id, seen: Some(at) } => {
                write!(formatter, "{id}, which did not trust it at {}", rfc3339(*at))
            }
            Self::Notice { until } => write!(formatter, "clients, which have notice until {}", rfc3339(*until)),
            Self::OneName { until } => {
                write!(formatter, "{}, because another CA of the bundle has the same name", rfc3339(*until))
            }
        }
    }
}

/// The distinguished names of CAs that a server accepts, each as SHA-256 of the name's DER.
#[derive(Clone, Debug, Default, serde::Deserialize, serde::Serialize, PartialEq, Eq)]
#[serde(transparent)]
pub(crate) struct AcceptedNames(BTreeSet<String>);

impl AcceptedNames {
    /// The names of a request for a certificate.
    pub(crate) fn of(names: &[Vec<u8>]) -> Self {
        Self(names.iter().map(|name| sha256_hex(name)).collect())
    }

    /// Whether the server named no CA. nats-server names none where it asks for no certificate.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the server accepts a CA of this anchor's name.
    pub(crate) fn has(&self, anchor: &Anchor) -> bool {
        anchor.name_digest().is_some_and(|name| self.0.contains(&name))
    }
}

impl Anchor {
    /// SHA-256 of the distinguished name's DER, hexadecimal.
    fn name_digest(&self) -> Option<String> {
        der::read(&self.der).ok().map(|certificate| sha256_hex(certificate.subject().as_raw()))
    }
}

/// The time at which a chain is verified: now, or the nearest moment of the leaf's validity. A leaf needs its anchor before
/// NotBefore and after NotAfter too, and this machine's clock may be wrong.
fn in_its_time(chain: &Chain, now: OffsetDateTime) -> OffsetDateTime {
    Leaf::parse(chain.leaf()).map_or(now, |leaf| now.min(leaf.not_after).max(leaf.not_before))
}

impl TrustBundle {
    /// Every anchor that alone suffices for a chain. A cross-signed CA has several.
    pub(crate) fn anchors_above(&self, chain: &Chain, now: OffsetDateTime) -> Vec<&Anchor> {
        let at = in_its_time(chain, now);
        let alone = |anchor: &Anchor| Self { anchors: vec![anchor.clone()], ..self.clone() };
        self.anchors.iter().filter(|anchor| alone(anchor).chains(chain, at)).collect()
    }

    /// The anchors that only `next` needs: a server that trusts the anchors of `current` alone refuses `next`. Empty: the
    /// issuer is not new.
    pub(crate) fn new_anchors(&self, next: &Chain, current: &Chain, now: OffsetDateTime) -> Vec<&Anchor> {
        let (above, known) = (self.anchors_above(next, now), self.anchors_above(current, now));
        if above.iter().any(|anchor| known.contains(anchor)) { Vec::new() } else { above }
    }

    /// Whether the names of these anchors stand for other CAs too. Then names can't tell who trusts these anchors.
    pub(crate) fn shares_names(&self, anchors: &[&Anchor]) -> bool {
        let others = || self.anchors.iter().filter(|other| !anchors.contains(other));
        anchors.iter().all(|anchor| others().any(|other| other.name_digest() == anchor.name_digest()))
    }

    /// The anchors of `before` that this bundle lacks and one of these chains needs.
    pub(crate) fn needed_of<'a>(&self, before: &'a Self, chains: &[&Chain], now: OffsetDateTime) -> Vec<&'a Anchor> {
        let dropped = |anchor: &&Anchor| !self.anchors.contains(anchor);
        let needs = |anchor: &Anchor, chain: &Chain| {
            let at = in_its_time(chain, now);
            !self.chains(chain, at) && before.anchor_of(chain, at) == Some(anchor)
        };
        let dropped = before.anchors.iter().filter(dropped);
        dropped.filter(|anchor| chains.iter().any(|chain| needs(anchor, chain))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x509::test_ca::{Ca, NOW, key};

    fn bundle(cas: &[&Ca]) -> TrustBundle {
        let text: String = cas.iter().map(|ca| ca.pem.as_str()).collect();
        TrustBundle::parse(text.as_bytes(), "test", "1").unwrap()
    }

    fn chain(ca: &Ca) -> Chain {
        Chain::new(vec![ca.leaf(&key().0).der().clone()]).unwrap()
    }

    fn names(anchors: &[&Anchor]) -> Vec<String> {
        anchors.iter().map(|anchor| anchor.subject.clone()).collect()
    }

    #[test]
    fn an_issuer_is_new_where_the_old_anchor_does_not_suffice() {
        let (old, new) = (Ca::root("old"), Ca::root("new"));
        let both = bundle(&[&old, &new]);
        assert_eq!(names(&both.new_anchors(&chain(&new), &chain(&old), NOW)), ["CN=new"]);
        assert!(both.new_anchors(&chain(&old), &chain(&old), NOW).is_empty());
        // A sub-CA of a root that is trusted already is no new issuer.
        let below = old.below("below");
        let with_path = Chain::new(vec![below.leaf(&key().0).der().clone(), below.der.clone().into()]).unwrap();
        assert!(both.new_anchors(&with_path, &chain(&old), NOW).is_empty());
    }

    #[test]
    fn a_cross_signed_ca_is_new_only_without_the_cross_certificate() {
        let (old, new) = (Ca::root("old"), Ca::root("new"));
        let crossed = old.again(&new, |_| ());
        let leaf = new.leaf(&key().0);
        let both = bundle(&[&old, &new]);
        let served = Chain::new(vec![leaf.der().clone(), crossed.der.clone().into()]).unwrap();
        assert!(both.new_anchors(&served, &chain(&old), NOW).is_empty());
        let alone = Chain::new(vec![leaf.der().clone()]).unwrap();
        assert_eq!(names(&both.new_anchors(&alone, &chain(&old), NOW)), ["CN=new"]);
    }

    #[test]
    fn two_cas_of_one_name_can_not_be_told_apart() {
        let (old, new, other) = (Ca::root("same"), Ca::root("same"), Ca::root("other"));
        let all = bundle(&[&old, &new, &other]);
        assert!(all.shares_names(&[&all.anchors[1]]));
        assert!(!all.shares_names(&[&all.anchors[2]]));
        let raw = |ca: &Ca| der::read(&ca.der).ok().map(|read| read.subject().as_raw().to_vec()).unwrap();
        let accepted = AcceptedNames::of(&[raw(&old)]);
        assert!(accepted.has(&all.anchors[0]) && accepted.has(&all.anchors[1]) && !accepted.has(&all.anchors[2]));
    }

    #[test]
    fn invariant_05_an_anchor_is_needed_while_a_known_chain_has_no_other() {
        let (old, new, unused) = (Ca::root("old"), Ca::root("new"), Ca::root("unused"));
        let (before, after) = (bundle(&[&old, &unused, &new]), bundle(&[&new]));
        let (of_old, of_new) = (chain(&old), chain(&new));
        assert_eq!(names(&after.needed_of(&before, &[&of_old, &of_new], NOW)), ["CN=old"]);
        assert!(after.needed_of(&before, &[&of_new], NOW).is_empty());
        let expired = NOW + time::Duration::days(365 * 200);
        assert_eq!(names(&after.needed_of(&before, &[&of_old], expired)), ["CN=old"]);
    }
}
