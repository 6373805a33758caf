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

/// What is known of the agent's user.
pub(super) struct SystemUser {
    is_wanted: bool,
    state: PathBuf,
    /// The public key, once it is known.
    key: Option<String>,
    clients: Clients,
    /// Where the user stands, by the settings that were read last.
    placement: Option<Placement>,
}

/// What the connected clients say of a first user, which nobody but the agent needs.
enum Clients {
    /// Nobody has asked.
    Unasked,
    /// No client that is connected now would be refused.
    Pass,
    /// The user is committed.
    Committed,
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

    /// Whether the connected clients are to be asked, before a first user is committed. `committed` is called only where
    /// the answer depends on the committed configuration.
    pub(super) fn asks_clients(&mut self, now: OffsetDateTime, committed: impl FnOnce() -> Option<Rendered>) -> bool {
        let depends_on_clients = match &self.placement {
            None | Some(Placement::Account { others: Others::AnonymousAlone, .. }) => true,
            Some(Placement::Nowhere(obstacle)) => {
                matches!(obstacle, Obstacle::ClientsSendUsers | Obstacle::ClientsUnknown)
            }
            Some(Placement::Account { others: Others::Unaffected, .. }) => false,
        };
        if !self.is_wanted || !depends_on_clients {
            self.clients = Clients::Unasked;
            return false;
        }
        match self.clients {
            Clients::Committed => return false,
            // A clock that was set back doesn't prolong the wait.
            Clients::Bar(_, until) if now < until && until < now + CLIENTS_AGAIN * 2 => return false,
            Clients::Unasked | Clients::Pass | Clients::Bar(..) => {}
        }
        let key = self.key().ok().flatten();
        if key.zip(committed()).is_some_and(|(key, committed)| committed.text().contains(&key)) {
            self.clients = Clients::Committed;
            return false;
        }
        true
    }

    /// Whether a connected client sends a user or a token that nobody asks for. `None`: nobody knows.
    pub(super) fn note_clients(&mut self, send_users: Option<bool>, now: OffsetDateTime) {
        let until = now + CLIENTS_AGAIN;
        self.clients = match send_users {
            Some(false) => Clients::Pass,
            Some(true) => Clients::Bar(Obstacle::ClientsSendUsers, until),
            None => Clients::Bar(Obstacle::ClientsUnknown, until),
        };
    }

    /// What stands in the way of a user where nobody needs a user.
    pub(super) fn barred(&self) -> Option<Obstacle> {
        match self.clients {
            Clients::Pass | Clients::Committed => None,
            Clients::Bar(obstacle, _) => Some(obstacle),
            Clients::Unasked => Some(Obstacle::ClientsUnknown),
        }
    }

    pub(super) fn note_placement(&mut self, placement: Option<Placement>) {
        self.placement = placement;
    }

    /// Why reloads have no answer, although an answer is wanted.
    pub(super) fn warning(&self, link: &Link) -> Option<Reason> {
        if let Some(Placement::Nowhere(obstacle)) = self.placement {
            return Some(Reason::SystemUserNowhere(obstacle));
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
        let nothing = || None;
        assert!(user.asks_clients(now, nothing), "nobody knows the settings yet");
        assert_eq!(user.barred(), Some(Obstacle::ClientsUnknown));
        user.note_clients(Some(true), now);
        user.note_placement(Some(Placement::Nowhere(Obstacle::ClientsSendUsers)));
        assert_eq!(user.barred(), Some(Obstacle::ClientsSendUsers));
        assert!(!user.asks_clients(now + CLIENTS_AGAIN / 2, nothing));
        assert!(user.asks_clients(now + CLIENTS_AGAIN, nothing));
        assert!(user.asks_clients(now - CLIENTS_AGAIN * 2, nothing), "the clock was set back");
        user.note_clients(Some(false), now);
        assert_eq!(user.barred(), None);

        let key = user.key_or_new().unwrap().unwrap();
        let committed = || Some(Rendered::from_text(format!("nkey: {key}")));
        assert!(!user.asks_clients(now, committed));
        assert_eq!(user.barred(), None);
        assert!(!user.asks_clients(now, || panic!("the committed text is read once")));

        user.note_placement(Some(Placement::Nowhere(Obstacle::Token)));
        assert!(!user.asks_clients(now, || panic!("a token decides alone")));
        // The token goes in the same pass that reads the settings, so nobody was asked.
        assert_eq!(user.barred(), Some(Obstacle::ClientsUnknown));
        user.note_placement(Some(OPEN));
        assert!(user.asks_clients(now, nothing));
    }

    #[test]
    fn no_key_is_made_where_no_user_is_wanted() {
        let state = tempfile::tempdir().unwrap();
        let nats = NatsConfig { system: System::Off, ..NatsConfig::default() };
        let mut user = SystemUser::of(&nats, state.path());
        assert_eq!(user.key_or_new().unwrap(), None);
        assert!(!user.asks_clients(OffsetDateTime::UNIX_EPOCH, || panic!("nothing is asked")));
        assert!(std::fs::read_dir(state.path()).unwrap().next().is_none());
    }
}
