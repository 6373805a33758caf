//! Settings that nats-server ended with, or refused: not tried again until they change.

use std::path::{Path, PathBuf};

use crate::conf::digest::{UsedVariables, digest};
use crate::conf::tree::Map;
use crate::state::durable::{self, FileError, Secrecy};

/// The largest file in bytes: a digest.
const MAX_SIZE: u64 = 128;

/// The settings in quarantine, by their digest. They survive a restart of the agent.
pub(super) struct Quarantine {
    file: PathBuf,
    /// The digest covers passwords, so nobody else may read the digest and test guesses.
    mode: u32,
}

impl Quarantine {
    /// The quarantine of a state directory.
    pub(super) fn of(state: &Path) -> Self {
        Self { file: state.join("quarantine"), mode: Secrecy::of(state).file_mode() }
    }

    /// Whether exactly these settings are in quarantine.
    pub(super) fn holds(&self, settings: &Map) -> Result<bool, FileError> {
        let held = durable::read_if_there(&self.file, MAX_SIZE)?;
        Ok(held.is_some_and(|held| held == digest(settings, UsedVariables::Keep).as_bytes()))
    }

    /// Puts these settings into quarantine, in the place of any other settings.
    pub(super) fn put(&self, settings: &Map) -> Result<(), FileError> {
        durable::replace(&self.file, digest(settings, UsedVariables::Keep).as_bytes(), self.mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_held_until_others_take_their_place() {
        let state = tempfile::tempdir().unwrap();
        let settings = |text: &str| crate::conf::read(text, Path::new("/a.conf")).unwrap();
        let (bad, other) = (settings("log_file: /gone/a.log"), settings("log_file: /gone/b.log"));
        assert!(!Quarantine::of(state.path()).holds(&bad).unwrap());
        Quarantine::of(state.path()).put(&bad).unwrap();
        assert!(Quarantine::of(state.path()).holds(&bad).unwrap());
        assert!(!Quarantine::of(state.path()).holds(&other).unwrap());
    }
}
