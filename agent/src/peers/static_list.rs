//! A static list of peers, for fleets without an Auto Scaling group and off AWS.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;

use super::{MAX_PEERS, Peer, PeerSource, Sighting};
use crate::config::HostPort;
use crate::error::RemoteError;
use crate::node::Node;

const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// The peers that `discovery.peers` names.
pub(crate) struct StaticList {
    /// The peers as configured.
    pub(crate) peers: Vec<HostPort>,
    /// This node, which need not be among them.
    pub(crate) node: Node,
    /// The port of this node's own route listener.
    pub(crate) port: u16,
}

#[async_trait]
impl PeerSource for StaticList {
    /// Looks every name up. A name that doesn't resolve is unresolved: the first node of a group boots before the others have
    /// an address.
    async fn sight(&self) -> Result<Sighting, RemoteError> {
        let mut look_ups = JoinSet::new();
        for peer in self.peers.iter().cloned() {
            look_ups.spawn(async move { (look_up(&peer).await, peer) });
        }
        let found = look_ups.join_all().await;
        Ok(self.seen(found))
    }
}

impl StaticList {
    /// The sighting, from the addresses of each name. One name may stand for several nodes.
    fn seen(&self, found: Vec<(Vec<SocketAddr>, HostPort)>) -> Sighting {
        let own = SocketAddr::new(self.node.address, self.port);
        let of = |id: String, address| Peer { id, address, state: "static".into() };
        let mut seen = Sighting::default();
        for (addresses, peer) in found {
            // A node with both families is one peer, and its IPv4 address is the peer's.
            let has_v4 = addresses.iter().any(SocketAddr::is_ipv4);
            let is_usable = |address: &SocketAddr| address.is_ipv4() == has_v4;
            // A further address of this node is no other server.
            let has_own = addresses.contains(&own);
            let is_second = |address: &SocketAddr| has_own && *address != own && self.node.has_address(&address.ip());
            let usable = addresses.iter().copied().filter(|address| is_usable(address) && !is_second(address));
            seen.peers.extend(usable.map(|address| of(peer.to_string(), address)));
            if addresses.is_empty() {
                seen.unresolved.push(peer.to_string());
            }
        }
        if !seen.peers.iter().any(|peer| peer.address == own) {
            seen.peers.push(of(own.to_string(), own));
        }
        seen
    }
}

async fn look_up(peer: &HostPort) -> Vec<SocketAddr> {
    let look_up = tokio::net::lookup_host((peer.host.as_str(), peer.port));
    let answer = tokio::time::timeout(LOOKUP_TIMEOUT, look_up).await;
    // One address above the limit suffices for `PeerSet::after` to refuse the sighting.
    let limit = MAX_PEERS + 1;
    answer.ok().and_then(Result::ok).map(|addresses| addresses.take(limit).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::node::Placement;
    use crate::peers::{Kept, PeerSet};
    use crate::x509::san::Sans;

    fn list() -> StaticList {
        let node = Node {
            name: "n1".into(),
            instance_id: None,
            region: None,
            address: IpAddr::from([10, 0, 0, 1]),
            further_addresses: [IpAddr::from([10, 0, 9, 1])].into(),
            sans: Sans::default(),
            placement: Placement::default(),
        };
        StaticList { peers: Vec::new(), node, port: 6222 }
    }

    fn name(text: &str) -> HostPort {
        HostPort::try_from(text.to_owned()).unwrap()
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn seen(found: &[&str]) -> Vec<String> {
        let seen = list().seen(vec![(addresses(found), name("n.example:6222"))]);
        seen.peers.iter().map(|peer| peer.address.to_string()).collect()
    }

    #[test]
    fn every_address_of_a_name_is_a_peer() {
        let three = ["10.0.0.3:6222", "10.0.0.1:6222", "10.0.0.2:6222"];
        assert_eq!(seen(&three), three);
        assert_eq!(seen(&["[fd00::1]:6222", "10.0.0.1:6222"]), ["10.0.0.1:6222"]);
        assert_eq!(seen(&["[fd00::1]:6222", "[fd00::2]:6222"])[..2], ["[fd00::1]:6222", "[fd00::2]:6222"]);
        assert_eq!(seen(&["10.0.9.1:6222", "10.0.0.1:6222"]), ["10.0.0.1:6222"]);
    }

    #[test]
    fn the_first_node_of_a_group_boots_while_no_other_name_resolves() {
        let list = list();
        let seen = list.seen(vec![(Vec::new(), name("n2.example:6222"))]);
        let after = PeerSet::default().after(&seen, &list.node, |_| false);
        assert_eq!(after.peers.addresses().collect::<Vec<_>>(), addresses(&["10.0.0.1:6222"]));
        assert_eq!(after.kept, [Kept::Unresolved { id: "n2.example:6222".into() }]);
        // The peers of a name that resolved before keep their addresses.
        let all = list.seen(vec![(addresses(&["10.0.0.2:6222", "10.0.0.3:6222"]), name("n2.example:6222"))]);
        let before = after.peers.after(&all, &list.node, |_| false).peers;
        let after = before.after(&seen, &list.node, |_| false);
        assert_eq!((after.peers.0.len(), after.kept.len()), (3, 2));
    }
}
