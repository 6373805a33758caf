//! The servers that had a route to this node: a change of settings waits while such a server has none, or fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use time::OffsetDateTime;

use crate::clock::rfc3339;
use crate::peers::Peer;
use crate::peers::dial::{Dial, Shown};
use crate::server::monitor::Routez;
use crate::x509::chain::StoredChain;
use crate::x509::leaf::Leaf;

/// What was seen of the routes to other servers, by `server_name`. The servers with a route are remembered by the next
/// process, because a change of agent.toml may come with a restart of the agent.
#[derive(Default)]
pub(super) struct Links {
    /// The servers that had a route at some time.
    seen: BTreeSet<String>,
    /// Of these the servers without a route now.
    away: Vec<String>,
    /// Since when this node has a route to none of its peers.
    alone_since: Option<OffsetDateTime>,
}

impl Links {
    /// The links of a process that remembers these servers.
    pub(super) fn of(seen: BTreeSet<String>) -> Self {
        Self { seen, ..Self::default() }
    }

    /// Takes in the servers that have a route now, and the ids of the other peers of the group. `None`: nats-server
    /// reports no routes, so nobody is known to be away.
    ///
    /// A server that left the group is forgotten. In an Auto Scaling group the names are the peers' ids. Elsewhere the
    /// group tells its size alone, so a server is away only while there are fewer servers than peers.
    pub(super) fn note(&mut self, now: Option<&Routez>, peers: &BTreeSet<String>) {
        let Some(now) = now else { return self.away.clear() };
        let now: BTreeSet<String> = now.remotes().values().map(|(name, _)| (*name).to_owned()).collect();
        self.seen.extend(now.iter().cloned());
        if self.seen.iter().any(|name| peers.contains(name)) {
            self.seen.retain(|name| peers.contains(name));
        } else if now.len() >= peers.len() {
            self.seen.clone_from(&now);
        }
        self.away = self.seen.difference(&now).cloned().collect();
    }

    /// Notes whether this node has a route to none of its peers.
    pub(super) fn note_alone(&mut self, is_alone: bool, now: OffsetDateTime) {
        self.alone_since = is_alone.then(|| self.alone_since.unwrap_or(now));
    }

    /// Since when this node has a route to none of its peers.
    pub(super) fn alone_since(&self) -> Option<OffsetDateTime> {
        self.alone_since
    }

    /// The servers that lost their routes.
    pub(super) fn away(&self) -> &[String] {
        &self.away
    }

    /// The servers that had a route at some time.
    pub(super) fn seen(&self) -> &BTreeSet<String> {
        &self.seen
    }
}

/// A peer for which a change of settings waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnfitPeer {
    /// The name of the server, or the id of the peer.
    pub id: String,
    /// What is wrong.
    pub why: Unfit,
}

/// What is wrong with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// The peer had a route, and has none.
    NoRoute,
    /// The route port of the peer completes no handshake, although a route is up.
    Silent,
    /// The certificate on the route port of the peer has ended.
    Expired {
        /// NotAfter.
        at: OffsetDateTime,
    },
}

impl fmt::Display for UnfitPeer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, why } = self;
        match why {
            Unfit::NoRoute => write!(formatter, "{id} has no route"),
            Unfit::Silent => write!(formatter, "{id} accepts no TLS on its route port"),
            Unfit::Expired { at } => write!(formatter, "{id} serves a certificate that ended at {}", rfc3339(*at)),
        }
    }
}

/// The other servers, when a change of settings is about to be made.
pub(super) struct Neighbours {
    away: Vec<String>,
    /// The peers that have a route, by their route ports.
    linked: BTreeMap<SocketAddr, String>,
    dial: Arc<dyn Dial>,
}

impl Neighbours {
    /// A peer is found among the routes by its id or by its address.
    pub(super) fn new(links: &Links, routez: Option<&Routez>, peers: &[Peer], dial: Arc<dyn Dial>) -> Self {
        let remotes = routez.map(Routez::remotes).unwrap_or_default();
        let is_linked =
            |peer: &&Peer| remotes.values().any(|(name, ips)| *name == peer.id || ips.contains(&peer.address.ip()));
        let linked = peers.iter().filter(is_linked).map(|peer| (peer.address, peer.id.clone())).collect();
        Self { away: links.away().to_vec(), linked, dial }
    }

    /// The peers for which a change waits. Each peer with a route is dialled: a route stays up when a certificate ends,
    /// and when the peer accepts no new connection.
    pub(super) async fn unfit(&self, ours: &StoredChain, now: OffsetDateTime) -> Vec<UnfitPeer> {
        let away = self.away.iter().map(|id| UnfitPeer { id: id.clone(), why: Unfit::NoRoute });
        let shown = self.dial.shown(ours, self.linked.keys().copied().collect()).await;
        let failing = shown.iter().filter_map(|(address, shown)| {
            let id = self.linked.get(address)?.clone();
            Some(UnfitPeer { id, why: fault(shown.as_ref(), now)? })
        });
        away.chain(failing).collect()
    }
}

/// Whether a peer fails, by the chain on its route port. A leaf that can't be read is no proof of a failure.
fn fault(shown: Option<&Shown>, now: OffsetDateTime) -> Option<Unfit> {
    let Some(Shown { chain, .. }) = shown else { return Some(Unfit::Silent) };
    let leaf = Leaf::parse(chain.leaf()).ok().filter(|leaf| leaf.not_after <= now)?;
    Some(Unfit::Expired { at: leaf.not_after })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use async_trait::async_trait;
    use time::macros::datetime;

    use super::*;
    use crate::server::monitor::RouteConnection;
    use crate::x509::chain::Chain;
    use crate::x509::test_ca::{Ca, key};

    fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
        names.map(str::to_owned).into()
    }

    fn routes<const N: usize>(names: [&str; N]) -> Routez {
        let route =
            |name: &str| RouteConnection { remote_id: name.into(), remote_name: name.into(), ip: None, start: None };
        Routez { routes: names.map(route).into() }
    }

    #[test]
    fn a_server_is_away_once_it_lost_its_route_and_until_it_is_back_or_has_left_the_group() {
        let mut links = Links::default();
        let group = names(["i-1", "i-2", "i-3"]);
        links.note(Some(&routes(["i-1"])), &group);
        assert!(links.away().is_empty(), "i-2 and i-3 never had a route");
        links.note(Some(&routes(["i-1", "i-2"])), &group);
        links.note(Some(&routes(["i-1"])), &group);
        assert_eq!(links.away(), ["i-2"]);
        links.note(None, &group);
        assert!(links.away().is_empty());
        links.note(Some(&routes(["i-1"])), &group);
        assert_eq!(links.away(), ["i-2"]);
        links.note(Some(&routes(["i-1"])), &names(["i-1", "i-3"]));
        assert!(links.away().is_empty());
    }

    #[test]
    fn where_names_are_no_ids_a_server_is_away_while_there_are_fewer_servers_than_peers() {
        let mut links = Links::default();
        let peers = names(["10.0.0.2:6222", "10.0.0.3:6222"]);
        links.note(Some(&routes(["n2", "n3"])), &peers);
        links.note(Some(&routes(["n2"])), &peers);
        assert_eq!(links.away(), ["n3"]);
        links.note(Some(&routes(["n2", "n4"])), &peers);
        assert!(links.away().is_empty(), "n4 has taken n3's place");
        links.note(Some(&routes(["n2"])), &peers);
        assert_eq!(links.away(), ["n4"]);
        links.note(Some(&routes(["n2"])), &names(["10.0.0.2:6222"]));
        assert!(links.away().is_empty());
    }

    #[test]
    fn a_server_that_an_earlier_process_saw_is_away_at_the_first_look() {
        let mut earlier = Links::default();
        let group = names(["i-1", "i-2"]);
        earlier.note(Some(&routes(["i-1", "i-2"])), &group);
        let mut links = Links::of(earlier.seen().clone());
        assert!(links.away().is_empty());
        links.note(Some(&routes(["i-1"])), &group);
        assert_eq!(links.away(), ["i-2"]);
    }

    /// Shows these chains, and refuses a dial of any other address.
    struct Showing(BTreeMap<SocketAddr, Option<Shown>>);

    #[async_trait]
    impl Dial for Showing {
        async fn shown(&self, _ours: &StoredChain, peers: Vec<SocketAddr>) -> BTreeMap<SocketAddr, Option<Shown>> {
            peers
                .into_iter()
                .map(|address| (address, self.0.get(&address).expect("a peer with a route").clone()))
                .collect()
        }

        async fn answering(&self, _peers: Vec<SocketAddr>) -> BTreeSet<SocketAddr> {
            BTreeSet::new()
        }
    }

    #[tokio::test]
    async fn a_peer_with_a_route_fails_where_it_accepts_no_handshake_or_its_certificate_has_ended() {
        let (pair, key) = key();
        let chain = Chain::new(vec![Ca::root("root").leaf(&pair).der().clone()]).unwrap();
        let until = Leaf::parse(chain.leaf()).unwrap().not_after;
        let ours = StoredChain::new(key, chain.clone()).unwrap();
        let address = |last| SocketAddr::from((Ipv4Addr::new(10, 0, 0, last), 6222));
        let peer = |last| Peer { id: format!("i-{last}"), address: address(last), state: "InService".into() };
        let peers = [peer(1), peer(2), peer(3), peer(4)];
        // Of the routes the first tells an id, the second an address alone. The others have none.
        let mut routez = routes(["i-1", "n2"]);
        routez.routes[1].ip = Some(address(2).ip());
        let mut links = Links::of(names(["i-1", "i-3"]));
        links.note(Some(&routez), &names(["i-1", "i-2", "i-3", "i-4"]));
        let with_chain = |chain: Option<&Chain>| Some(Shown { chain: chain?.clone(), accepts: Vec::new() });
        let unfit = async |shown: [Option<&Chain>; 2], now| {
            let shown = [1, 2].map(address).into_iter().zip(shown.map(with_chain)).collect();
            let neighbours = Neighbours::new(&links, Some(&routez), &peers, Arc::new(Showing(shown)));
            neighbours.unfit(&ours, now).await
        };
        let is = |id: &str, why| UnfitPeer { id: id.into(), why };
        let no_route = is("i-3", Unfit::NoRoute);
        let now = datetime!(1990-01-01 0:00 UTC);
        assert_eq!(unfit([Some(&chain), Some(&chain)], now).await, std::slice::from_ref(&no_route));
        assert_eq!(unfit([Some(&chain), None], now).await, [no_route.clone(), is("i-2", Unfit::Silent)]);
        let expired = Unfit::Expired { at: until };
        assert_eq!(
            unfit([Some(&chain), Some(&chain)], until).await,
            [no_route, is("i-1", expired), is("i-2", expired)]
        );
    }
}
