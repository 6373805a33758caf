//! One writer: the lock that the daemon and the manual commands share (invariant 9).

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::state::durable::{self, FileError};

/// Held for as long as it lives; the system frees it when the process ends, however it ends.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// Why the state directory can't be written to.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has it.
    #[error("another agent is at work on {}; stop it, or ask it with `agent renew` and `agent status`", .0.display())]
    Held(PathBuf),
    /// What this user writes there, nats-server could not read.
    #[error(
        "{} belongs to uid {owner}, and this is uid {user}: files written now would have the wrong owner; run this as the \
         user that the daemon runs as, for instance with `runuser -u nats -- agent renew`", .state.display()
    )]
    WrongUser {
        /// The state directory.
        state: PathBuf,
        /// Its owner.
        owner: u32,
        /// This process's user.
        user: u32,
    },
    /// The lock file can't be made.
    #[error(transparent)]
    File(#[from] FileError),
}

impl StateLock {
    /// Takes the lock of a state directory, or says at once that another process has it.
    pub fn take(state: &Path) -> Result<Self, LockError> {
        durable::create_directory(state, 0o750)?;
        let owner = std::fs::metadata(state).map_err(FileError::on("look at", state))?.uid();
        let user = nix::unistd::geteuid().as_raw();
        if owner != user {
            return Err(LockError::WrongUser { state: state.to_owned(), owner, user });
        }
        let path = state.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(durable::NO_DETOUR)
            .open(&path)
            .map_err(FileError::on("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(LockError::Held(state.to_owned())),
            Err(TryLockError::Error(error)) => Err(FileError::on("lock", &path)(error).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invariant_09_a_second_writer_is_refused_until_the_first_has_gone() {
        let state = tempfile::tempdir().unwrap();
        let first = StateLock::take(state.path()).unwrap();
        assert!(matches!(StateLock::take(state.path()), Err(LockError::Held(_))));
        drop(first);
        StateLock::take(state.path()).unwrap();
    }
}
