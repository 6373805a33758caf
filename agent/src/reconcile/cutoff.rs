//! The end of connections that were made while a CA was trusted that is distrusted now.
//!
//! nats-server keeps what is connected when a reload takes a CA out of its bundle. What is left to do outlives the process, in the
//! file of last good answers.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Reconciler;
use crate::progress::{Progress, Step};
use crate::reason::Reason;
use crate::server::Cut;
use crate::server::monitor::Routez;
use crate::server::remotes::Remotes;
use crate::status::DistrustStatus;

/// The pause between two rounds of closing. The clients of one round connect anew in the pause.
const PAUSE: Duration = Duration::from_secs(1);

/// A TLS handshake that began before the reload may end after a round. The built-in template gives a handshake 5 seconds.
const HANDSHAKES: Duration = Duration::from_secs(10);

/// The connections that have to end.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub(crate) struct Unfinished {
    /// The subjects of the distrusted CAs.
    subjects: BTreeSet<String>,
    /// When nats-server loaded the bundle without these CAs. Older connections have to end.
    #[serde(with = "time::serde::rfc3339::option")]
    loaded: Option<OffsetDateTime>,
    /// The clients that were closed.
    closed: u64,
    /// Whether every client was closed that has to be.
    is_done_with_clients: bool,
    /// The leaf nodes that the looks right after the distrust found, and every later look too. `None`: no look has come yet.
    #[serde(default)]
    leaf_nodes: Option<BTreeSet<String>>,
    /// The id of the server that these leaf nodes are connected to.
    #[serde(default)]
    server: Option<String>,
}

/// The end of such connections, over the passes.
#[derive(Default)]
pub(super) struct Cutoff {
    unfinished: Option<Unfinished>,
    /// The other servers whose routes are older than the distrust.
    routes: BTreeSet<String>,
    /// The other clusters whose gateway connections are older than the distrust.
    gateways: BTreeSet<String>,
    /// The clients that are still open after the last round. `None`: nobody tells.
    open: Option<u64>,
    /// When the next round is due, while rounds succeed and are not over.
    next: Option<OffsetDateTime>,
    /// What the last distrust of this process cost.
    status: Option<DistrustStatus>,
}

/// What nats-server tells of its connections to other servers. `None`: it gives no answer.
struct Told<'a> {
    /// The id of the server.
    server: &'a str,
    routez: Option<&'a Routez>,
    remotes: Option<Remotes>,
}

impl Cutoff {
    /// What an earlier process left to do.
    pub(super) fn of(unfinished: Option<Unfinished>) -> Self {
        Self { unfinished, ..Self::default() }
    }

    /// Notes that these CAs are distrusted from now on.
    pub(super) fn note(&mut self, subjects: impl IntoIterator<Item = String>) {
        let unfinished = self.unfinished.get_or_insert_default();
        unfinished.subjects.extend(subjects);
        (unfinished.loaded, unfinished.is_done_with_clients) = (None, false);
        (unfinished.leaf_nodes, unfinished.server) = (None, None);
    }

    /// What the next process has to know.
    pub(super) fn unfinished(&self) -> Option<&Unfinished> {
        self.unfinished.as_ref()
    }

    /// When the next round is worth a pass.
    pub(super) fn times(&self) -> Option<OffsetDateTime> {
        self.next
    }

    /// The clients that were closed.
    pub(super) fn status(&self) -> Option<DistrustStatus> {
        self.status
    }

    /// What stays open.
    pub(super) fn warning(&self) -> Option<Reason> {
        let unfinished = self.unfinished.as_ref()?;
        unfinished.loaded?;
        let clients = !unfinished.is_done_with_clients && self.next.is_none();
        let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<String>>();
        let (routes, gateways) = (list(&self.routes), list(&self.gateways));
        let leaf_nodes = unfinished.leaf_nodes.as_ref().map(list).unwrap_or_default();
        let stays = clients || [&routes, &gateways, &leaf_nodes].iter().any(|names| !names.is_empty());
        stays.then(|| Reason::DistrustedStay {
            subjects: list(&unfinished.subjects),
            routes,
            gateways,
            leaf_nodes,
            clients: clients.then_some(self.open),
        })
    }

    /// The time before which a connection is too old. `loaded` is when nats-server loaded its configuration.
    fn begin(&mut self, loaded: OffsetDateTime) -> Option<OffsetDateTime> {
        Some(*self.unfinished.as_mut()?.loaded.get_or_insert(loaded))
    }

    fn wants_clients(&self) -> bool {
        self.unfinished.as_ref().is_some_and(|unfinished| !unfinished.is_done_with_clients)
    }

    /// Notes a round. `None`: nobody tells which clients are connected.
    fn note_round(&mut self, cut: Option<Cut>, now: OffsetDateTime) {
        let Some(unfinished) = &mut self.unfinished else { return };
        let Cut { closed, open } = cut.unwrap_or_default();
        unfinished.closed = unfinished.closed.saturating_add(closed);
        let all_shook_hands = unfinished.loaded.map(|loaded| loaded + HANDSHAKES);
        let is_late = all_shook_hands.is_some_and(|at| now >= at);
        unfinished.is_done_with_clients = cut.is_some() && open == 0 && is_late;
        self.open = cut.map(|cut| cut.open);
        self.next = match cut {
            Some(Cut { open: 0, .. }) => all_shook_hands.filter(|_| !is_late),
            Some(Cut { closed: 1.., .. }) => Some(now + PAUSE),
            _ => None,
        };
        self.status = unfinished.loaded.map(|since| DistrustStatus { since, closed: unfinished.closed });
    }

    /// Notes the routes, gateways and leaf nodes that nats-server tells. The work ends once the last connection that is too old has
    /// ended.
    fn note_servers(&mut self, told: Told<'_>, than: OffsetDateTime, now: OffsetDateTime) {
        let Some(unfinished) = &mut self.unfinished else { return };
        let Told { server, routez, remotes } = told;
        let is_all_told = routez.is_some() && remotes.is_some();
        if let Some(routez) = routez {
            self.routes = routez.older(than);
        }
        if let Some(Remotes { gateways, leaf_nodes }) = remotes {
            self.gateways = gateways;
            let is_another_server = unfinished.server.get_or_insert_with(|| server.to_owned()) != server;
            let is_early = unfinished.leaf_nodes.is_none() || now < than + HANDSHAKES;
            let stay = unfinished.leaf_nodes.get_or_insert_default();
            if is_another_server {
                // A nats-server that was started since has no older connection.
                stay.clear();
            } else if is_early {
                stay.extend(leaf_nodes.iter().cloned());
            }
            stay.retain(|leaf_node| leaf_nodes.contains(leaf_node));
        }
        let are_leaf_nodes_gone = unfinished.leaf_nodes.as_ref().is_some_and(BTreeSet::is_empty);
        let are_gone = self.routes.is_empty() && self.gateways.is_empty() && are_leaf_nodes_gone;
        if is_all_told && are_gone && !self.wants_clients() {
            self.unfinished = None;
        }
    }
}

impl Reconciler {
    /// Closes clients that were connected before nats-server loaded the bundle without a distrusted CA.
    pub(super) async fn cut_off(&mut self, progress: &Progress) {
        if self.cutoff.unfinished().is_none() {
            return;
        }
        self.cutoff.next = None;
        let (Some(newest), now) = (&self.newest, self.clock.now()) else { return };
        let (seen, commit_point) = (self.deployment.seen(), &self.deployment.commit_point);
        let is_in_force = seen.standing.is_served()
            && commit_point.names_generation(newest.number)
            && self.sources.distrusted_of(&newest.bundle).is_empty();
        let Some(varz) = seen.observed.varz.as_ref().filter(|_| is_in_force) else { return };
        let Some(than) = self.cutoff.begin(varz.config_load_time) else { return };
        if self.cutoff.wants_clients() {
            let cut = commit_point.parts().server.close_older(&newest.chain, &seen.listeners, than).await;
            let closed = cut.map_or(0, |cut| cut.closed);
            if closed > 0 {
                progress.report(Step::Closed { clients: closed });
            }
            self.cutoff.note_round(cut, now);
        }
        let remotes = commit_point.parts().server.remotes(&newest.chain, &seen.listeners, than).await;
        let told = Told { server: &varz.server_id, routez: seen.observed.routez.as_ref(), remotes };
        self.cutoff.note_servers(told, than, now);
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::reason::Code;
    use crate::server::monitor::RouteConnection;

    const LOADED: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);

    fn routes(starts: &[OffsetDateTime]) -> Routez {
        let route = |start: &OffsetDateTime| RouteConnection {
            remote_id: "N2".into(),
            remote_name: "n2".into(),
            ip: None,
            start: Some(*start),
        };
        Routez { routes: starts.iter().map(route).collect() }
    }

    fn told(routez: Option<&Routez>, remotes: Option<Remotes>) -> Told<'_> {
        Told { server: "N1", routez, remotes }
    }

    fn remotes(gateways: &[&str], leaf_nodes: &[&str]) -> Remotes {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Remotes { gateways: set(gateways), leaf_nodes: set(leaf_nodes) }
    }

    #[test]
    fn gateways_and_leaf_nodes_of_before_are_told_until_they_are_gone_also_by_a_later_process() {
        let (none, late) = (routes(&[]), LOADED + HANDSHAKES);
        let text = |cutoff: &Cutoff| cutoff.warning().map_or_else(String::new, |warning| warning.to_string());
        let mut cutoff = Cutoff::default();
        cutoff.note(["CN=old".to_owned()]);
        cutoff.begin(LOADED);
        cutoff.note_round(Some(Cut::default()), late);
        cutoff.note_servers(told(Some(&none), None), LOADED, LOADED);
        assert!(cutoff.unfinished().is_some() && text(&cutoff).is_empty(), "nobody told of gateways and leaf nodes");
        cutoff.note_servers(told(Some(&none), Some(remotes(&["far"], &["a at 10.0.0.1:7"]))), LOADED, LOADED);
        assert!(text(&cutoff).contains(" gateways of far; leaf nodes a at 10.0.0.1:7;"), "{}", text(&cutoff));
        // A handshake may have begun before.
        let both = ["a at 10.0.0.1:7", "b at 10.0.0.2:7"];
        cutoff.note_servers(told(Some(&none), Some(remotes(&[], &both))), LOADED, LOADED + PAUSE);
        assert!(text(&cutoff).contains("10.0.0.2:7") && !text(&cutoff).contains("far"), "{}", text(&cutoff));

        let mut later = Cutoff::of(cutoff.unfinished().cloned());
        assert!(text(&later).contains("10.0.0.1:7"), "{}", text(&later));
        later.note_servers(
            told(Some(&none), Some(remotes(&[], &["a at 10.0.0.1:7", "c at 10.0.0.3:7"]))),
            LOADED,
            late,
        );
        assert!(!text(&later).contains("10.0.0.2:7") && !text(&later).contains("10.0.0.3:7"), "{}", text(&later));
        let mut restarted = Cutoff::of(later.unfinished().cloned());
        let same = Some(remotes(&[], &["a at 10.0.0.1:7"]));
        restarted.note_servers(Told { server: "N2", routez: Some(&none), remotes: same }, LOADED, late);
        assert!(restarted.unfinished().is_none(), "a dialled leaf node has the same address after a restart");
        later.note_servers(told(Some(&none), Some(remotes(&[], &["c at 10.0.0.3:7"]))), LOADED, late);
        assert!(later.unfinished().is_none() && text(&later).is_empty());
    }

    #[test]
    fn clients_are_closed_in_rounds_and_an_older_route_is_told_until_it_is_made_anew() {
        let mut cutoff = Cutoff::default();
        assert!(cutoff.begin(LOADED).is_none() && cutoff.warning().is_none());
        cutoff.note(["CN=old".to_owned()]);
        assert!(cutoff.warning().is_none(), "nats-server has not loaded the bundle yet");
        assert_eq!(cutoff.begin(LOADED), Some(LOADED));
        assert_eq!(cutoff.begin(LOADED + PAUSE), Some(LOADED), "a later reload moves nothing");
        cutoff.note_round(Some(Cut { closed: 256, open: 44 }), LOADED);
        assert_eq!((cutoff.times(), cutoff.warning()), (Some(LOADED + PAUSE), None));
        let mut later = Cutoff::of(cutoff.unfinished().cloned());
        assert!(later.wants_clients());
        later.note_round(Some(Cut { closed: 44, open: 0 }), LOADED + PAUSE);
        assert_eq!(later.status(), Some(DistrustStatus { since: LOADED, closed: 300 }));
        assert!(later.wants_clients() && later.times() == Some(LOADED + HANDSHAKES), "a handshake may be under way");
        later.note_round(Some(Cut { closed: 1, open: 0 }), LOADED + HANDSHAKES);
        assert!(!later.wants_clients() && later.times().is_none());
        later.note_servers(
            told(Some(&routes(&[LOADED + PAUSE, LOADED - PAUSE])), Some(Remotes::default())),
            LOADED,
            LOADED,
        );
        let warning = later.warning().unwrap();
        assert_eq!(warning.code(), Code::DistrustedStay);
        assert!(warning.to_string().contains("n2") && !warning.to_string().contains("client"), "{warning}");
        later.note_servers(told(None, Some(Remotes::default())), LOADED, LOADED);
        assert!(later.warning().is_some(), "nobody told of the routes");
        later.note_servers(told(Some(&routes(&[LOADED + PAUSE])), Some(Remotes::default())), LOADED, LOADED);
        assert!(later.warning().is_none() && later.unfinished().is_none());
        assert!(later.status().is_some());
    }

    #[test]
    fn clients_that_nobody_closes_are_told() {
        let mut cutoff = Cutoff::default();
        cutoff.note(["CN=old".to_owned()]);
        cutoff.begin(LOADED);
        for (cut, words) in [(None, "clients"), (Some(Cut { closed: 0, open: 7 }), "clients (7)")] {
            cutoff.note_round(cut, LOADED);
            cutoff.note_servers(told(Some(&routes(&[])), Some(Remotes::default())), LOADED, LOADED);
            let warning = cutoff.warning().unwrap().to_string();
            assert!(warning.contains(words) && cutoff.times().is_none(), "{warning}");
        }
    }
}
