//! Files that are complete whenever the machine stops: either the old file or the new one.
//!
//! A file is created with its final mode, written, and flushed to the disk. After that the file gets its name. A
//! [`fault::point`] stands between any two of these steps: tests stop the process or fill the disk there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use time::OffsetDateTime;
use tokio::task::JoinError;

/// Flags for opening a file by its own name: a symlink there is not followed, and a FIFO there is not waited for.
const NO_DETOUR: i32 = OFlag::O_NOFOLLOW.union(OFlag::O_NONBLOCK).bits();

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} {}", .path.display())]
pub struct FileError {
    /// The attempted action.
    pub action: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// What the system answered.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// A function for `map_err` that makes this error.
    pub(crate) fn on(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

/// Who may read the secrets below a state directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Secrecy {
    /// Only the owner may read: files have mode 0600, directories 0700.
    Owner,
    /// The group may read too: files have mode 0640, directories 0750.
    Group,
}

impl Secrecy {
    /// The mode of the state directory decides: a directory that its group may enter shares the secrets with that group.
    #[must_use]
    pub(crate) fn of(state: &Path) -> Self {
        let shared = fs::metadata(state).is_ok_and(|metadata| metadata.permissions().mode() & 0o050 == 0o050);
        if shared { Self::Group } else { Self::Owner }
    }

    /// The mode of a file that holds a secret.
    #[must_use]
    pub(crate) fn file_mode(self) -> u32 {
        if self == Self::Group { 0o640 } else { 0o600 }
    }

    /// The mode of a directory that holds secrets.
    #[must_use]
    pub(crate) fn directory_mode(self) -> u32 {
        if self == Self::Group { 0o750 } else { 0o700 }
    }
}

/// The mode of a file or directory, where the mode grants all users a right in `what`. `0o007` stands for any right.
#[must_use]
pub(crate) fn open_to_all(path: &Path, what: u32) -> Option<u32> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & what != 0).then_some(mode)
}

/// Replaces a file by a new file with these bytes and this mode.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    replace_through(&staging_name(path), path, bytes, mode)
}

/// Replaces a file, and writes the new file under the name `staged` first. Both names are in the same directory.
///
/// A crash leaves at most the staged file behind, and the next call replaces that file.
pub(crate) fn replace_through(staged: &Path, path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    remove_if_there(staged)?;
    create(staged, bytes, mode)?;
    rename(staged, path)
}

/// Creates a file with these bytes and this mode, and flushes the file to the disk. A file with this name is an error.
///
/// `O_EXCL` never follows a symlink, so a symlink planted at the path is not written through.
pub(crate) fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let open = |()| OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = fault::point().and_then(open).map_err(FileError::on("create", path))?;
    fault::point().and_then(|()| file.write_all(bytes)).map_err(FileError::on("write", path))?;
    fault::point().and_then(|()| file.sync_all()).map_err(FileError::on("flush", path))
}

/// Opens a file, and creates the file empty where there is none.
pub(crate) fn open_or_create(path: &Path, mode: u32) -> Result<File, FileError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(mode).custom_flags(NO_DETOUR);
    fault::point().and_then(|()| options.open(path)).map_err(FileError::on("open", path))
}

/// Gives a file a second name in the same directory. A file that has this name already loses the name.
pub(crate) fn link(from: &Path, to: &Path) -> Result<(), FileError> {
    let staged = staging_name(to);
    remove_if_there(&staged)?;
    fault::point().and_then(|()| fs::hard_link(from, &staged)).map_err(FileError::on("link a file to", &staged))?;
    rename(&staged, to)
}

/// Renames a file within its directory, and flushes the directory.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    fault::point().and_then(|()| fs::rename(from, to)).map_err(FileError::on("rename a file to", to))?;
    sync_parent(to)
}

/// When a file got its name, by the wall clock: a rename changes the inode's time (`ctime`). `None`: there is no such
/// file, or it has a second name, whose link changed the time too.
pub(crate) fn renamed_at(path: &Path) -> Option<OffsetDateTime> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok().filter(|metadata| metadata.nlink() == 1)?;
    let nanoseconds = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()
}

/// Creates a directory and its missing parents with this mode.
pub(crate) fn create_directory(path: &Path, mode: u32) -> Result<(), FileError> {
    let create = |()| fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    fault::point().and_then(create).map_err(FileError::on("create the directory", path))
}

/// Removes a file. A missing file is no error.
pub(crate) fn remove_if_there(path: &Path) -> Result<(), FileError> {
    match fault::point().and_then(|()| fs::remove_file(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::on("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a file, a directory with its content, or a symlink (the target of the symlink stays).
pub(crate) fn remove_all(path: &Path) -> Result<(), FileError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path).map_err(FileError::on("remove", path)),
        _ => remove_if_there(path),
    }
}

/// Reads a file of at most `limit` bytes, or returns `None` where there is no file. Only a regular file is read: a read
/// from a pipe could wait for ever.
pub(crate) fn read_if_there(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    let without_waiting = OFlag::O_NONBLOCK.bits();
    let file = match OpenOptions::new().read(true).custom_flags(without_waiting).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(FileError::on("open", path))?,
    };
    let metadata = file.metadata().map_err(FileError::on("look at", path))?;
    if !metadata.is_file() {
        return Err(FileError::on("read", path)(io::Error::new(io::ErrorKind::InvalidInput, "it is no file")));
    }
    let size = usize::try_from(metadata.len().min(limit)).unwrap_or_default();
    let mut bytes = Vec::with_capacity(size + 1);
    file.take(limit + 1).read_to_end(&mut bytes).map_err(FileError::on("read", path))?;
    if bytes.len() as u64 > limit {
        let large = io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {limit} bytes"));
        return Err(FileError::on("read", path)(large));
    }
    Ok(Some(bytes))
}

/// Flushes the directory that holds `path`, so that the name survives a power cut.
pub(crate) fn sync_parent(path: &Path) -> Result<(), FileError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let flush = |()| File::open(parent).and_then(|directory| directory.sync_all());
    fault::point().and_then(flush).map_err(FileError::on("flush the directory", parent))
}

/// Runs file work on a thread that may block. A planned fault moves to that thread with the work, and back.
#[cfg(not(test))]
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    tokio::task::spawn_blocking(work).await
}

/// `blocking` in tests: a planned crash in the work is a crash of the caller.
#[cfg(test)]
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    let planned = fault::plan(None);
    let work = move || {
        fault::plan(planned);
        (work(), fault::plan(None))
    };
    match tokio::task::spawn_blocking(work).await {
        Ok((value, left)) => {
            fault::plan(left);
            Ok(value)
        }
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(error),
    }
}

/// The points at which a test ends the process, as a crash would, or fills the disk.
pub(crate) mod fault {
    use std::io;

    /// Outside of tests nothing happens at a point.
    #[cfg(not(test))]
    #[expect(clippy::unnecessary_wraps, reason = "a test's fault is an error")]
    pub(super) fn point() -> io::Result<()> {
        Ok(())
    }

    /// What a test plans for a point.
    #[cfg(test)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Fault {
        /// The process ends. A panic unwinds to the test, and no code after the point runs.
        Crash,
        /// One call fails with `ENOSPC`.
        DiskFull,
    }

    #[cfg(test)]
    thread_local! {
        static PLAN: std::cell::Cell<Option<(u32, Fault)>> = const { std::cell::Cell::new(None) };
    }

    /// Plans a fault on this thread: `points` points pass, and the fault happens at the next. Returns the rest of the
    /// previous plan.
    #[cfg(test)]
    pub(crate) fn plan(next: Option<(u32, Fault)>) -> Option<(u32, Fault)> {
        PLAN.replace(next)
    }

    #[cfg(test)]
    pub(super) fn point() -> io::Result<()> {
        match PLAN.get() {
            None => Ok(()),
            Some((0, fault)) => {
                PLAN.set(None);
                assert!(fault != Fault::Crash, "the crash that was planned");
                Err(io::ErrorKind::StorageFull.into())
            }
            Some((left, fault)) => {
                PLAN.set(Some((left - 1, fault)));
                Ok(())
            }
        }
    }
}

/// The name under which a file is written first.
fn staging_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn replaces_whole_files_with_their_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        replace(&path, b"one", 0o600).unwrap();
        replace(&path, b"two", 0o600).unwrap();
        assert_eq!(read_if_there(&path, 3).unwrap().unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn refuses_to_read_more_than_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        replace(&path, b"four", 0o600).unwrap();
        assert!(read_if_there(&path, 3).is_err());
        assert!(read_if_there(&directory.path().join("absent"), 3).unwrap().is_none());
    }

    #[test]
    fn invariant_08_a_pipe_in_the_place_of_a_file_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = read_if_there(&path, 3).unwrap_err();
        assert!(error.source.to_string().contains("no file"), "{error:?}");
        assert!(read_if_there(directory.path(), 3).is_err());
    }

    #[test]
    fn does_not_write_through_a_planted_symlink() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        fs::write(&target, "theirs").unwrap();
        let path = directory.path().join("file");
        symlink(&target, staging_name(&path)).unwrap();
        symlink(&target, &path).unwrap();
        replace(&path, b"ours", 0o600).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"theirs");
        assert_eq!(fs::read(&path).unwrap(), b"ours");
    }
}
