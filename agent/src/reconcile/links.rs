//! The servers that had a route to this node: a change of settings waits while such a server has none.

use std::collections::BTreeSet;

use time::OffsetDateTime;

/// What the passes of this process saw of the routes to other servers, by `server_name`.
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
    /// Takes in the servers that have a route now, and the ids of the other peers of the group. `None`: nats-server
    /// reports no routes, so nobody is known to be away.
    ///
    /// A server that left the group is forgotten. In an Auto Scaling group the names are the peers' ids. Elsewhere the
    /// group tells its size alone, so a server is away only while there are fewer servers than peers.
    pub(super) fn note(&mut self, now: Option<BTreeSet<String>>, peers: &BTreeSet<String>) {
        let Some(now) = now else { return self.away.clear() };
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
        names.map(str::to_owned).into()
    }

    #[test]
    fn a_server_is_away_once_it_lost_its_route_and_until_it_is_back_or_has_left_the_group() {
        let mut links = Links::default();
        let group = names(["i-1", "i-2", "i-3"]);
        links.note(Some(names(["i-1"])), &group);
        assert!(links.away().is_empty(), "i-2 and i-3 never had a route");
        links.note(Some(names(["i-1", "i-2"])), &group);
        links.note(Some(names(["i-1"])), &group);
        assert_eq!(links.away(), ["i-2"]);
        links.note(None, &group);
        assert!(links.away().is_empty());
        links.note(Some(names(["i-1"])), &group);
        assert_eq!(links.away(), ["i-2"]);
        links.note(Some(names(["i-1"])), &names(["i-1", "i-3"]));
        assert!(links.away().is_empty());
    }

    #[test]
    fn where_names_are_no_ids_a_server_is_away_while_there_are_fewer_servers_than_peers() {
        let mut links = Links::default();
        let peers = names(["10.0.0.2:6222", "10.0.0.3:6222"]);
        links.note(Some(names(["n2", "n3"])), &peers);
        links.note(Some(names(["n2"])), &peers);
        assert_eq!(links.away(), ["n3"]);
        links.note(Some(names(["n2", "n4"])), &peers);
        assert!(links.away().is_empty(), "n4 has taken n3's place");
        links.note(Some(names(["n2"])), &peers);
        assert_eq!(links.away(), ["n4"]);
        links.note(Some(names(["n2"])), &names(["10.0.0.2:6222"]));
        assert!(links.away().is_empty());
    }
}
