//! What a pass found, summed up for the status.

use std::net::SocketAddr;

use super::Reconciler;
use super::publication::Publisher;
use crate::reason::{Reason, Told};
use crate::state::durable;
use crate::status::{Findings, NodeStatus, Status};

impl Reconciler {
    pub(super) fn status(&self) -> Status {
        let now = self.clock.now();
        let generation = self.newest.clone();
        let mut faults = self.damaged.clone();
        faults.extend(self.not_in_force.clone());
        faults.extend(self.sources.reasons());
        faults.extend(self.deployment.reason());
        faults.extend(self.issuing.reason());
        faults.extend(self.watch.reasons(now));
        let mut warnings = self.sources.warnings(now);
        warnings.extend(self.rollover.warnings());
        warnings.extend(self.cutoff.warning());
        warnings.extend(self.issuing.warning(generation.as_ref(), now));
        warnings.extend(self.deployment.warning());
        warnings.extend(self.system_warning());
        warnings.extend(self.watch.warnings(now));
        warnings.extend(self.second_selves());
        warnings.extend(self.publisher.iter().flat_map(Publisher::warnings));
        warnings.extend(self.opened_to_all());
        let seen = self.deployment.seen();
        let mut settings = self.deployment.settings();
        settings.refused = settings.refused.or_else(|| self.sources.included_refused().map(Told::from));
        let status = Status::of(Findings {
            now,
            node: NodeStatus::of(&self.node),
            instance_id: self.node.instance_id.clone(),
            renewal: self.issuing.status(generation.as_ref(), &self.node),
            // The source's version may change while the anchors stay, and then there is no new generation.
            bundle: self.sources.bundle().or(generation.as_ref().map(|generation| &generation.bundle)).cloned(),
            generation,
            rollover: self.rollover.status(),
            peers: self.sources.known_peers().clone(),
            observed: seen.observed.clone(),
            listeners: seen.listeners.clone(),
            standing: seen.standing.clone(),
            confirmed_at: self.deployment.confirmed_at(),
            faults: faults.clone(),
            warnings,
            settings,
            phase: self.deployment.phase(),
            last_reload: self.deployment.commit_point.last_reload(),
            distrust: self.cutoff.status(),
            connection: self.publisher.as_ref().and_then(Publisher::status),
            is_crash_loop: self.deployment.is_crash_loop(),
            alone_since: self.deployment.links.alone_since(),
        });
        match &self.issuing.waits {
            Some(waits) => status.waiting(waits, &faults),
            None => status,
        }
    }

    /// Why reloads have no answer, although an answer is wanted.
    pub(crate) fn system_warning(&self) -> Option<Reason> {
        // A server that loads its configuration may give no answer meanwhile.
        if self.deployment.commit_point.is_under_way() {
            return None;
        }
        self.configuring.warning(&self.deployment.seen().observed.system)
    }

    /// The peers that are this node under another port: each is a second row of this node.
    fn second_selves(&self) -> impl Iterator<Item = Reason> {
        let own = self.own_route();
        let is_own = move |address: &SocketAddr| *address != own && self.node.has_address(&address.ip());
        let peers = self.sources.known_peers().0.iter().filter(move |(address, _)| is_own(address));
        peers.map(move |(_, peer)| Reason::PeerIsThisNode { peer: peer.id.clone(), port: own.port() })
    }

    /// The key and the state directory, where somebody has opened them to everyone.
    fn opened_to_all(&self) -> Vec<Reason> {
        let state = &self.deployment.commit_point.parts().state;
        let key = self.newest.as_ref().map(|newest| newest.files.key_file.clone());
        let key = key.and_then(|path| {
            let mode = durable::open_to_all(&path, 0o007)?;
            Some(Reason::KeyOpenToAll { path, mode })
        });
        let state = durable::open_to_all(state, 0o002).map(|mode| Reason::StateOpenToAll { path: state.clone(), mode });
        key.into_iter().chain(state).collect()
    }
}
