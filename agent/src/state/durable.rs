//! Files that are either the old one or the new one, whole, whatever moment the machine stops at.
//!
//! Every file is created with its final mode, written, flushed to the disk, and only then given its name. Between any two
//! of these steps stands a [`fault::point`], where tests stop the process or fill the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

/// For a file that is opened by its own name and may not exist: a symlink isn't followed to somebody else's, and a FIFO
/// isn't waited for.
pub const NO_DETOUR: i32 = OFlag::O_NOFOLLOW.union(OFlag::O_NONBLOCK).bits();

/// What was tried on a file, and where.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} {}", .path.display())]
pub struct FileError {
    /// What was tried.
    pub action: &'static str,
    /// On this path.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// An error's constructor for `map_err`.
    pub fn on(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

/// Who may read the secrets below a state directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrecy {
    /// The owner alone: files 0600, directories 0700.
    Owner,
    /// The group too: files 0640, directories 0750.
    Group,
}

impl Secrecy {
    /// The state directory's own mode decides: one that its group may enter shares the secrets with that group.
    #[must_use]
    pub fn of(state: &Path) -> Self {
        let shared = fs::metadata(state).is_ok_and(|metadata| metadata.permissions().mode() & 0o050 == 0o050);
        if shared { Self::Group } else { Self::Owner }
    }

    /// The mode of a file.
    #[must_use]
    pub fn file_mode(self) -> u32 {
        if self == Self::Group { 0o640 } else { 0o600 }
    }

    /// The mode of a directory.
    #[must_use]
    pub fn directory_mode(self) -> u32 {
        if self == Self::Group { 0o750 } else { 0o700 }
    }
}

/// The mode of a file, or of a directory, of which everyone may do any of `what` (`0o007`: anything).
#[must_use]
pub fn open_to_all(path: &Path, what: u32) -> Option<u32> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & what != 0).then_some(mode)
}

/// Replaces the file by one with these bytes and this mode.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let staged = staging_name(path);
    remove_if_there(&staged)?;
    create(&staged, bytes, mode)?;
    rename(&staged, path)
}

/// Creates a file that must not exist yet, with these bytes and this mode, and flushes it to the disk.
///
/// `O_EXCL` never follows a symlink, so nothing planted at the path is written through.
pub fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let open = |()| OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = fault::point().and_then(open).map_err(FileError::on("create", path))?;
    fault::point().and_then(|()| file.write_all(bytes)).map_err(FileError::on("write", path))?;
    fault::point().and_then(|()| file.sync_all()).map_err(FileError::on("flush", path))
}

/// Gives a file a second name in the same directory, in place of whatever had it.
pub fn link(from: &Path, to: &Path) -> Result<(), FileError> {
    let staged = staging_name(to);
    remove_if_there(&staged)?;
    fault::point().and_then(|()| fs::hard_link(from, &staged)).map_err(FileError::on("link a file to", &staged))?;
    rename(&staged, to)
}

/// Renames within a directory, and flushes the directory.
pub fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    fault::point().and_then(|()| fs::rename(from, to)).map_err(FileError::on("rename a file to", to))?;
    sync_parent(to)
}

/// Creates a directory, and those above it, with this mode where they are missing.
pub fn create_directory(path: &Path, mode: u32) -> Result<(), FileError> {
    let create = |()| fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    fault::point().and_then(create).map_err(FileError::on("create the directory", path))
}

/// Removes a file, and is content if it isn't there.
pub fn remove_if_there(path: &Path) -> Result<(), FileError> {
    match fault::point().and_then(|()| fs::remove_file(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::on("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes whatever has this name, a directory with all that is in it; a symlink, and not what it points to.
pub fn remove_all(path: &Path) -> Result<(), FileError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path).map_err(FileError::on("remove", path)),
        _ => remove_if_there(path),
    }
}

/// Reads a file of at most `limit` bytes, or nothing if it isn't there. Only a file: a pipe would be waited for, for ever.
pub fn read_if_there(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
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

/// Flushes the directory that holds `path`, so that its name survives a power cut.
pub fn sync_parent(path: &Path) -> Result<(), FileError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let flush = |()| File::open(parent).and_then(|directory| directory.sync_all());
    fault::point().and_then(flush).map_err(FileError::on("flush the directory", parent))
}

/// Where a test stops this process, as a crash would, or has the disk be full.
pub(crate) mod fault {
    use std::io;

    /// Nothing happens outside of tests.
    #[cfg(not(test))]
    #[expect(clippy::unnecessary_wraps, reason = "a test's fault is an error")]
    pub(super) fn point() -> io::Result<()> {
        Ok(())
    }

    /// What happens at a point.
    #[cfg(test)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Fault {
        /// The process ends: the panic unwinds to the test, and nothing after the point happens.
        Crash,
        /// `ENOSPC`, once.
        DiskFull,
    }

    #[cfg(test)]
    thread_local! {
        static PLAN: std::cell::Cell<Option<(u32, Fault)>> = const { std::cell::Cell::new(None) };
    }

    /// On this thread, passes `points` and makes the fault happen at the next. Returns what was left of an earlier plan.
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

/// The name under which a file is written before it gets its own.
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
