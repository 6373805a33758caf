//! The peers: the other servers of the cluster, and which of them stay in `routes`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::RemoteError;
use crate::node::Node;

pub mod addresses;
pub mod asg;
pub mod dial;
pub(crate) mod static_list;

/// How many peers one answer may name. Large groups have hundreds.
pub(crate) const MAX_PEERS: usize = 2000;

/// One server of the cluster.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Peer {
    /// Instance id, or `host:port` of a static peer.
    pub id: String,
    /// The address of its route port.
    pub address: SocketAddr,
    /// Its lifecycle state, or `static`.
    pub state: String,
}

/// What a source of peers saw.
#[derive(Clone, Debug, Default)]
pub struct Sighting {
    /// The peers with an address. This node is among them if the source knows it.
    pub peers: Vec<Peer>,
    /// The ids of peers whose address was not found.
    pub unresolved: Vec<String>,
    /// The group's name, if there is a group.
    pub group: Option<String>,
    /// Why the addresses of unresolved peers can't be asked for.
    pub fault: Option<Arc<RemoteError>>,
}

/// The peers in force, by address: `routes` is rendered from them. This node is one of them.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct PeerSet(pub BTreeMap<SocketAddr, Peer>);

/// Where peers come from.
#[async_trait]
pub trait PeerSource: Send + Sync {
    /// The peers that are there now.
    async fn sight(&self) -> Result<Sighting, RemoteError>;
}

/// What comes of a sighting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeersAfter {
    /// The peers in force from now on.
    pub(crate) peers: PeerSet,
    /// Where the peers in force differ from the sighting. Empty: nowhere.
    pub(crate) kept: Vec<Kept>,
}

/// Why the peers in force differ from a sighting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The sighting has no peer, so the last good set stays.
    NoPeers,
    /// The sighting has more peers than [`MAX_PEERS`], so the last good set stays.
    TooMany {
        /// Peers of the sighting.
        count: usize,
    },
    /// The sighting lacks this node, so the last good set stays.
    WithoutThisNode,
    /// A known peer has no address now, and keeps the address it had.
    AddressLost {
        /// The peer.
        id: String,
        /// Its last address.
        address: SocketAddr,
    },
    /// A peer left the group, and stays because it still answers.
    StillAnswers {
        /// The peer.
        id: String,
        /// Its address.
        address: SocketAddr,
    },
    /// A member of the group has no address yet.
    Unresolved {
        /// The member.
        id: String,
    },
}

impl std::fmt::Display for Kept {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoPeers => formatter.write_str("discovery returned no peer at all; the last good set stays"),
            Self::TooMany { count } => {
                write!(formatter, "discovery returned {count} peers, more than {MAX_PEERS}; the last good set stays")
            }
            Self::WithoutThisNode => formatter.write_str("discovery left this node out; the last good set stays"),
            Self::AddressLost { id, address } => write!(formatter, "{id} has no address now and keeps {address}"),
            Self::StillAnswers { id, address } => {
                write!(formatter, "{id} left the group and still answers at {address}")
            }
            Self::Unresolved { id } => {
                write!(formatter, "{id} is in the group, but its address could not be found yet")
            }
        }
    }
}

impl PeerSet {
    /// The route addresses, in order.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.keys().copied()
    }

    /// The peers of `self` that a sighting no longer shows. Each of them is dialled, to learn whether it still answers.
    #[must_use]
    pub(crate) fn missing_from(&self, seen: &Sighting) -> Vec<&Peer> {
        self.0.values().filter(|peer| !seen.peers.iter().any(|other| other.address == peer.address)).collect()
    }

    /// The peers in force after a sighting (invariant 6). A sighting that is empty or lacks this node changes nothing. A
    /// peer without an address keeps its last address. A peer that `answers` stays, whatever the source says.
    pub(crate) fn after(&self, seen: &Sighting, node: &Node, answers: impl Fn(&Peer) -> bool) -> PeersAfter {
        let keep = |kept| PeersAfter { peers: self.clone(), kept: vec![kept] };
        if seen.peers.is_empty() {
            return keep(Kept::NoPeers);
        }
        if seen.peers.len() > MAX_PEERS {
            return keep(Kept::TooMany { count: seen.peers.len() });
        }
        if !seen
            .peers
            .iter()
            .any(|peer| peer.address.ip() == node.address || Some(&peer.id) == node.instance_id.as_ref())
        {
            return keep(Kept::WithoutThisNode);
        }
        let mut peers: BTreeMap<_, _> = seen.peers.iter().map(|peer| (peer.address, peer.clone())).collect();
        let mut kept = Vec::new();
        for peer in self.missing_from(seen) {
            if seen.unresolved.contains(&peer.id) {
                kept.push(Kept::AddressLost { id: peer.id.clone(), address: peer.address });
                peers.insert(peer.address, peer.clone());
            } else if answers(peer) {
                kept.push(Kept::StillAnswers { id: peer.id.clone(), address: peer.address });
                peers.insert(peer.address, peer.clone());
            }
        }
        for id in &seen.unresolved {
            if !peers.values().any(|peer| peer.id == *id) {
                kept.push(Kept::Unresolved { id: id.clone() });
            }
        }
        PeersAfter { peers: Self(peers), kept }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::x509::san::Sans;

    fn peer(number: u8) -> Peer {
        Peer { id: format!("i-{number}"), address: ([10, 0, 0, number], 6222).into(), state: "InService".into() }
    }

    fn set(numbers: &[u8]) -> PeerSet {
        PeerSet(numbers.iter().map(|number| (peer(*number).address, peer(*number))).collect())
    }

    fn node() -> Node {
        let address = peer(1).address.ip();
        Node {
            name: "i-1".into(),
            instance_id: Some("i-1".into()),
            region: None,
            address,
            sans: Sans::default(),
            further_addresses: [].into(),
            placement: crate::node::Placement::default(),
        }
    }

    proptest! {
        #[test]
        fn invariant_06_a_peer_goes_only_when_a_whole_answer_lacks_it_and_it_is_silent(
            before in proptest::collection::btree_set(1_u8..12, 0..8),
            seen in proptest::collection::btree_set(1_u8..12, 0..8),
            unresolved in proptest::collection::btree_set(1_u8..12, 0..4),
            answering in proptest::collection::btree_set(1_u8..12, 0..8),
        ) {
            let before = set(&before.into_iter().collect::<Vec<_>>());
            let sighting = Sighting {
                peers: seen.difference(&unresolved).map(|number| peer(*number)).collect(),
                unresolved: unresolved.iter().map(|number| peer(*number).id).collect(),
                ..Sighting::default()
            };
            let answers = |peer: &Peer| answering.iter().any(|number| self::peer(*number).id == peer.id);
            let after = before.after(&sighting, &node(), answers);
            let is_whole = sighting.peers.iter().any(|peer| peer.id == "i-1");
            for gone in before.0.values().filter(|peer| !after.peers.0.contains_key(&peer.address)) {
                prop_assert!(is_whole && !answers(gone) && !sighting.unresolved.contains(&gone.id), "{gone:?} went");
                prop_assert!(!sighting.peers.contains(gone));
            }
            for come in after.peers.0.values().filter(|peer| !before.0.contains_key(&peer.address)) {
                prop_assert!(is_whole && sighting.peers.contains(come), "{come:?} came");
            }
            if is_whole {
                prop_assert!(sighting.peers.iter().all(|peer| after.peers.0.contains_key(&peer.address)));
            } else {
                prop_assert!(!after.kept.is_empty());
            }
        }
    }

    #[test]
    fn a_flood_of_peers_changes_nothing() {
        let before = set(&[1, 2]);
        let flood = (0..=2000_u16).map(|number| {
            let [high, low] = number.to_be_bytes();
            let address = ([10, 1, high, low], 6222).into();
            Peer { id: format!("i-{number}"), address, state: "InService".into() }
        });
        let sighting = Sighting { peers: flood.chain([peer(1)]).collect(), ..Sighting::default() };
        let after = before.after(&sighting, &node(), |_| false);
        assert_eq!(after.peers, before);
        assert_eq!(after.kept, [Kept::TooMany { count: 2002 }]);
    }
}
