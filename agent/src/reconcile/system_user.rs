//! The agent's user of the system account: its key, and whether the user may stand in the configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use time::OffsetDateTime;

use crate::conf::render::Rendered;
use crate::conf::system::{Obstacle, Others, Placement};
use crate::config::{NatsConfig, System};
use crate::reason::Reason;
use crate::server::system::{Fault, Link};
use crate::state::durable::FileError;
use crate::state::system_key::SystemKey;

/// How soon clients are looked at again that bar the user.
const CLIENTS_AGAIN: Duration = Duration::from_mins(10);

/// How soon a nats-server is asked again that gave no answer about its clients.
const UNKNOWN_AGAIN: Duration = Duration::from_mins(1);
/// How long a configuration with the user waits for the start of nats-server. The service manager starts nats-server right
/// after the first commit, and again after nats-server ends.
const START: Duration = Duration::from_secs(30);

/// What is known of the agent's user.
pub(super) struct SystemUser {
    is_wanted: bool,
    state: PathBuf,
    /// The public key, once it is known.
    key: Option<String>,
    clients: Clients,
    /// Since when a configuration with the user waits for the start of nats-server.
    waits_since: Option<OffsetDateTime>,
    /// Where the user stands, by the settings that were read last.
    placement: Option<Placement>,
}

/// What the connected clients say of a first user, which nobody but the agent needs.
enum Clients {
    /// Nobody has asked.
    Unasked,
    /// No client that is connected now would be refused.
    Pass,
    /// nats-server has run with the user.
    InForce,
    /// The obstacle stays until this time, when clients are looked at again.
    Bar(Obstacle, OffsetDateTime),
}

impl SystemUser {
    pub(super) fn of(nats: &NatsConfig, state: &Path) -> Self {
        Self {
            is_wanted: nats.system == System::Auto,
            state: state.to_owned(),
            key: None,
            clients: Clients::Unasked,
            waits_since: None,
            placement: None,
        }
    }

    /// The public key, where the key was made before. `None`: the agent has no such user.
    pub(super) fn key(&mut self) -> Result<Option<String>, FileError> {
        if self.is_wanted && self.key.is_none() {
            self.key = SystemKey::read(&self.state)?.map(|key| key.public().to_owned());
        }
        Ok(self.key.clone())
    }

    /// The public key, made where there is none. `None`: the agent wants no user.
    pub(super) fn key_or_new(&mut self) -> Result<Option<String>, FileError> {
        if self.is_wanted && self.key.is_none() {
            self.key = Some(SystemKey::read_or_make(&self.state)?.public().to_owned());
        }
        Ok(self.key.clone())
    }

    /// Whether the server is to be asked for an obstacle to a user that nobody but the agent needs. The question matters before
    /// the user is in force, and while nats-server doesn't run. `in_force` gives the committed text and the text that ran last,
    /// and is called only if needed.
    pub(super) fn asks_server(
        &mut self,
        now: OffsetDateTime,
        is_running: bool,
        in_force: impl FnOnce() -> [Option<Rendered>; 2],
    ) -> bool {
        if is_running {
            self.waits_since = None;
        }
        let depends_on_clients = match &self.placement {
            None | Some(Placement::Account { others: Others::AnonymousAlone, .. }) => true,
            Some(Placement::Nowhere(obstacle)) => obstacle.is_of_the_running_server(),
            Some(Placement::Account { others: Others::Unaffected, .. }) => false,
        };
        if !self.is_wanted || !depends_on_clients {
            self.clients = Clients::Unasked;
            return false;
        }
        match self.clients {
            Clients::InForce if is_running => return false,
            // A clock that was set back doesn't prolong the wait.
            Clients::Bar(_, until) if now < until && until < now + CLIENTS_AGAIN * 2 => return false,
            Clients::Unasked | Clients::Pass | Clients::InForce | Clients::Bar(..) => {}
        }
        if is_running && in_force().iter().all(|text| self.stands_in(text.as_ref())) {
            self.clients = Clients::InForce;
            return false;
        }
        true
    }

    /// Whether a configuration has the user.
    pub(super) fn stands_in(&mut self, text: Option<&Rendered>) -> bool {
        let key = self.key().ok().flatten();
        key.zip(text).is_some_and(|(key, text)| text.text().contains(&key))
    }

    /// What stands in the way of the user while nats-server doesn't run. A configuration keeps its user for [`START`]. An
    /// argument such as `--user` may keep nats-server from starting beside the user.
    pub(super) fn obstacle_without_server(
        &mut self,
        committed: Option<&Rendered>,
        now: OffsetDateTime,
    ) -> Option<Obstacle> {
        let committed = committed?;
        if !self.stands_in(Some(committed)) {
            return Some(Obstacle::NotRunning);
        }
        let since = *self.waits_since.get_or_insert(now);
        (since + START < now).then_some(Obstacle::NotRunning)
    }

    /// Notes what of the running server stands in the way of a first user.
    pub(super) fn note_obstacle(&mut self, obstacle: Option<Obstacle>, now: OffsetDateTime) {
        self.clients = match obstacle {
            None => Clients::Pass,
            Some(Obstacle::NotRunning) => Clients::Bar(Obstacle::NotRunning, now),
            Some(Obstacle::ClientsUnknown) => Clients::Bar(Obstacle::ClientsUnknown, now + UNKNOWN_AGAIN),
            Some(obstacle) => Clients::Bar(obstacle, now + CLIENTS_AGAIN),
        };
    }

    /// What stands in the way of a user where nobody needs a user.
    pub(super) fn barred(&self) -> Option<Obstacle> {
        match self.clients {
            Clients::Pass | Clients::InForce => None,
            Clients::Bar(obstacle, _) => Some(obstacle),
            Clients::Unasked => Some(Obstacle::ClientsUnknown),
        }
    }

    pub(super) fn note_placement(&mut self, placement: Option<Placement>) {
        self.placement = placement;
    }

    /// Why reloads have no answer, although an answer is wanted.
    pub(super) fn warning(&self, link: &Link) -> Option<Reason> {
        match self.placement {
            // Other reasons say that nats-server doesn't run.
            Some(Placement::Nowhere(Obstacle::NotRunning)) => return None,
            Some(Placement::Nowhere(obstacle)) => return Some(Reason::SystemUserNowhere(obstacle)),
            Some(Placement::Account { .. }) | None => {}
        }
        match link {
            // The user comes into force with the next start or reload, and another reason says what waits.
            Link::Unwanted | Link::Up | Link::Down { fault: Fault::NotYet, .. } => None,
            Link::Down { fault, why } => Some(Reason::SystemSilent { fault: *fault, why: why.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(state: &Path) -> SystemUser {
        SystemUser::of(&NatsConfig::default(), state)
    }

    const OPEN: Placement = Placement::Nowhere(Obstacle::ClientsUnknown);

    #[test]
    fn clients_are_asked_only_while_the_answer_decides() {
        let state = tempfile::tempdir().unwrap();
        let (mut user, now) = (user(state.path()), OffsetDateTime::UNIX_EPOCH);
        let nothing = || [None, None];
        assert!(user.asks_server(now, true, nothing), "nobody knows the settings yet");
        assert_eq!(user.barred(), Some(Obstacle::ClientsUnknown));
        user.note_obstacle(Some(Obstacle::ClientsSendUsers), now);
        user.note_placement(Some(Placement::Nowhere(Obstacle::ClientsSendUsers)));
        assert_eq!(user.barred(), Some(Obstacle::ClientsSendUsers));
        assert!(!user.asks_server(now + CLIENTS_AGAIN / 2, true, nothing));
        assert!(user.asks_server(now + CLIENTS_AGAIN, true, nothing));
        assert!(user.asks_server(now - CLIENTS_AGAIN * 2, true, nothing), "the clock was set back");
        user.note_obstacle(None, now);
        assert_eq!(user.barred(), None);

        let key = user.key_or_new().unwrap().unwrap();
        let with = || [(), ()].map(|()| Some(Rendered::from_text(format!("nkey: {key}"))));
        assert!(!user.asks_server(now, true, with));
        assert_eq!(user.barred(), None);
        assert!(!user.asks_server(now, true, || panic!("the running text is read once")));

        user.note_placement(Some(Placement::Nowhere(Obstacle::Token)));
        assert!(!user.asks_server(now, true, || panic!("a token decides alone")));
        // The token goes in the same pass that reads the settings, so nobody was asked.
        assert_eq!(user.barred(), Some(Obstacle::ClientsUnknown));
        user.note_placement(Some(OPEN));
        assert!(user.asks_server(now, true, nothing));
    }

    #[test]
    fn without_nats_server_a_configuration_keeps_its_user_only_for_a_while() {
        let state = tempfile::tempdir().unwrap();
        let (mut user, now) = (user(state.path()), OffsetDateTime::UNIX_EPOCH);
        assert_eq!(user.obstacle_without_server(None, now), None);
        let key = user.key_or_new().unwrap().unwrap();
        let [with, without] = [format!("nkey: {key}"), "a: 1".into()].map(Rendered::from_text);
        assert_eq!(user.obstacle_without_server(Some(&without), now), Some(Obstacle::NotRunning));
        for (seconds, expected) in [(0, None), (30, None), (31, Some(Obstacle::NotRunning))] {
            let at = now + Duration::from_secs(seconds);
            assert_eq!(user.obstacle_without_server(Some(&with), at), expected, "{seconds} s");
        }
        user.note_obstacle(Some(Obstacle::NotRunning), now);
        assert!(user.asks_server(now, true, || [None, None]), "nats-server may run by now");
        user.note_placement(Some(Placement::Nowhere(Obstacle::NotRunning)));
        assert_eq!(user.warning(&Link::Unwanted), None);
    }

    #[test]
    fn a_user_in_force_goes_while_nats_server_does_not_come_up_and_comes_back_once_it_was_asked() {
        let state = tempfile::tempdir().unwrap();
        let (mut user, now) = (user(state.path()), OffsetDateTime::UNIX_EPOCH);
        let key = user.key_or_new().unwrap().unwrap();
        let [with, without] = [format!("nkey: {key}"), "a: 1".into()].map(|text| Some(Rendered::from_text(text)));
        user.note_placement(Some(Placement::Account { name: "$SYS".into(), others: Others::AnonymousAlone }));
        let in_force = || [with.clone(), with.clone()];
        assert!(!user.asks_server(now, true, in_force), "the user is in force");
        // Two stops: the second has a time of its own.
        for stopped in [now, now + START * 10] {
            for (seconds, barred) in [(0, None), (30, None), (31, Some(Obstacle::NotRunning))] {
                let at = stopped + Duration::from_secs(seconds);
                assert!(user.asks_server(at, false, in_force), "{seconds} s");
                let obstacle = user.obstacle_without_server(with.as_ref(), at);
                user.note_obstacle(obstacle, at);
                assert_eq!(user.barred(), barred, "{seconds} s");
            }
            let again = stopped + START * 5;
            // nats-server runs without the user, and is asked.
            assert!(user.asks_server(again, true, || [without.clone(), with.clone()]));
            user.note_obstacle(None, again);
            assert!(!user.asks_server(again, true, in_force), "the user is in force again");
        }
    }

    #[test]
    fn no_key_is_made_where_no_user_is_wanted() {
        let state = tempfile::tempdir().unwrap();
        let nats = NatsConfig { system: System::Off, ..NatsConfig::default() };
        let mut user = SystemUser::of(&nats, state.path());
        assert_eq!(user.key_or_new().unwrap(), None);
        assert!(!user.asks_server(OffsetDateTime::UNIX_EPOCH, true, || panic!("nothing is asked")));
        assert!(std::fs::read_dir(state.path()).unwrap().next().is_none());
    }
}
