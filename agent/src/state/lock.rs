//! One writer to a directory at a time: the lock that every writer takes first (invariant 9).
//!
//! The state directory has one writer for hours, the daemon, so a second writer is refused at once. The directory of the
//! embedded CA has a writer for milliseconds, so a second writer waits.

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::state::durable::{self, FileError};

/// The pause between two attempts on a lock that another process holds.
const PAUSE: Duration = Duration::from_millis(10);

/// A held lock. The system frees the lock when this value is dropped, and when the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Why the state directory can't be written to.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent holds the lock.
    #[error("another agent is at work on {}; stop that agent, or ask the daemon of a node with `agent renew` and `agent status`", .0.display())]
    Held(PathBuf),
    /// The state directory belongs to another user: nats-server could not read the files that this user would write.
    #[error(
        "{} belongs to uid {owner}, and this is uid {user}: files written now would have the wrong owner; run this as the \
         directory's owner, for instance with `runuser -u nats -- agent renew` on a node", .state.display()
    )]
    WrongUser {
        /// The state directory.
        state: PathBuf,
        /// The owner of the directory.
        owner: u32,
        /// The user of this process.
        user: u32,
    },
    /// The lock file can't be made.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Lock {
    /// Takes the lock of a state directory, or refuses at once where another process holds the lock.
    pub(crate) fn take(state: &Path) -> Result<Self, LockError> {
        durable::create_directory(state, 0o750)?;
        let owner = std::fs::metadata(state).map_err(FileError::on("look at", state))?.uid();
        let user = nix::unistd::geteuid().as_raw();
        if owner != user {
            return Err(LockError::WrongUser { state: state.to_owned(), owner, user });
        }
        Self::wait(&state.join("lock"), Duration::ZERO)?.ok_or_else(|| LockError::Held(state.to_owned()))
    }

    /// Takes the lock on this file. Where another process holds the lock, the call blocks for up to `limit`, and then
    /// returns `None`.
    pub(crate) fn wait(path: &Path, limit: Duration) -> Result<Option<Self>, FileError> {
        let file = durable::open_or_create(path, 0o600)?;
        for _ in 0..=limit.as_millis() / PAUSE.as_millis() {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Self { _file: file })),
                Err(TryLockError::WouldBlock) if limit.is_zero() => break,
                Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
                Err(TryLockError::Error(error)) => return Err(FileError::on("lock", path)(error)),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invariant_09_a_second_writer_is_refused_until_the_first_has_gone() {
        let state = tempfile::tempdir().unwrap();
        let first = Lock::take(state.path()).unwrap();
        assert!(matches!(Lock::take(state.path()), Err(LockError::Held(_))));
        drop(first);
        Lock::take(state.path()).unwrap();
    }

    #[test]
    fn invariant_08_a_writer_waits_for_another_one_and_not_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(".lock");
        let wait = |millis| Lock::wait(&path, Duration::from_millis(millis)).unwrap();
        let first = wait(0).unwrap();
        assert!(wait(30).is_none());
        let released = std::thread::spawn(move || {
            std::thread::sleep(PAUSE * 5);
            drop(first);
        });
        assert!(wait(60_000).is_some());
        released.join().unwrap();
    }
}
