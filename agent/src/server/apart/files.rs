//! Whether nats-server may write a file or directory.
//!
//! The agent's own sandbox shows other rights than nats-server has: `ProtectSystem=strict` makes /var/log read-only to
//! the agent alone. nats-server's process shows nats-server's view under /proc/PID/root. The kernel hides that view
//! where nats-server has a capability that the agent lacks, such as CAP_NET_BIND_SERVICE (ptrace(2)).
//!
//! Without that view the agent's own view counts, because both processes have one user. A read-only mount is then no
//! fault: the kernel answers EROFS only after the mode bits allowed the write. A path that a private mount hides is no
//! fault either.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{AccessFlags, access};

use crate::state::durable;

/// The largest mount table, in bytes.
const MAX_MOUNTS: u64 = 1024 * 1024;

/// Why nats-server can't write a file or directory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
    /// A directory is missing that nats-server doesn't make.
    #[error("the directory {} isn't there; make it, or change the path", .0.display())]
    Missing(PathBuf),
    /// The user of nats-server has no right to write there.
    #[error("the user of nats-server may not write {}; change its owner or mode, or the path", .0.display())]
    Denied(PathBuf),
    /// The file system is read-only.
    #[error("{} is read-only for nats-server; see ReadWritePaths= of its unit, or change the path", .0.display())]
    ReadOnly(PathBuf),
    /// A directory is where a file is meant.
    #[error("{} is a directory; add the name of a file", .0.display())]
    IsDirectory(PathBuf),
    /// A file is where a directory is meant.
    #[error("{} is no directory; change the path", .0.display())]
    NoDirectory(PathBuf),
}

/// A view of the file system.
pub(super) struct View {
    /// nats-server's root directory, where the kernel shows it.
    root: Option<OwnedFd>,
    cwd: PathBuf,
}

impl View {
    /// The view of a process, or the agent's own.
    pub(super) fn through(pid: Option<i32>, cwd: Option<&Path>) -> Self {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = pid.and_then(|pid| open(format!("/proc/{pid}/root").as_str(), flags, Mode::empty()).ok());
        Self { root, cwd: cwd.unwrap_or(Path::new("/")).to_owned() }
    }

    /// Whether nats-server can open a file for writing, and make a missing file.
    pub(super) fn file(&self, path: &str) -> Result<(), FileFault> {
        let path = self.cwd.join(path);
        if is_kernels(&path) {
            return Ok(());
        }
        match self.open(&path) {
            Ok(file) if is_directory(&file) => Err(FileFault::IsDirectory(path)),
            Ok(file) => self.writable(&file, &path, AccessFlags::W_OK),
            Err(Errno::ENOENT) => self.existing(path.parent().unwrap_or(Path::new("/"))),
            Err(errno) => self.unless_hidden(&path, of_open(errno, &path)),
        }
    }

    /// Whether nats-server can make a directory with its missing parents, and write in it.
    pub(super) fn directory(&self, path: &str) -> Result<(), FileFault> {
        let path = self.cwd.join(path);
        let there = path.ancestors().find(|path| !matches!(self.open(path), Err(Errno::ENOENT)));
        self.existing(there.unwrap_or(Path::new("/")))
    }

    /// Whether nats-server can write in a directory that is there.
    pub(super) fn existing_directory(&self, path: &str) -> Result<(), FileFault> {
        self.existing(&self.cwd.join(path))
    }

    fn existing(&self, path: &Path) -> Result<(), FileFault> {
        if is_kernels(path) {
            return Ok(());
        }
        match self.open(path) {
            Ok(directory) if !is_directory(&directory) => Err(FileFault::NoDirectory(path.to_owned())),
            Ok(directory) => self.writable(&directory, path, AccessFlags::W_OK | AccessFlags::X_OK),
            Err(errno) => self.unless_hidden(path, of_open(errno, path)),
        }
    }

    /// Opens a path without reading or writing it. Below nats-server's root, links are followed as nats-server follows
    /// them.
    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        match &self.root {
            Some(root) => openat2(root, path, OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT)),
            None => openat2(AT_FDCWD, path, OpenHow::new().flags(flags)),
        }
    }

    fn writable(&self, file: &OwnedFd, path: &Path, rights: AccessFlags) -> Result<(), FileFault> {
        match access(format!("/proc/self/fd/{}", file.as_raw_fd()).as_str(), rights) {
            Err(Errno::EACCES | Errno::EPERM) => self.unless_hidden(path, Some(FileFault::Denied(path.to_owned()))),
            Err(Errno::EROFS) if self.root.is_some() => Err(FileFault::ReadOnly(path.to_owned())),
            _ => Ok(()),
        }
    }

    /// The fault, unless the agent's own sandbox may be its cause.
    fn unless_hidden(&self, path: &Path, fault: Option<FileFault>) -> Result<(), FileFault> {
        let fault = fault.filter(|_| self.root.is_some() || !is_hidden_by(&mounts(), path));
        fault.map_or(Ok(()), Err)
    }
}

/// What an errno of an open means. Another errno, such as a lack of memory, says nothing about the path.
fn of_open(errno: Errno, path: &Path) -> Option<FileFault> {
    match errno {
        Errno::ENOENT => Some(FileFault::Missing(path.to_owned())),
        Errno::ENOTDIR => Some(FileFault::NoDirectory(path.parent().unwrap_or(path).to_owned())),
        Errno::EACCES => Some(FileFault::Denied(path.to_owned())),
        _ => None,
    }
}

fn is_directory(file: &OwnedFd) -> bool {
    fstat(file).is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
}

/// Devices and the kernel's own files, such as /dev/stdout: each process sees its own. /dev/shm is a file system for everybody.
fn is_kernels(path: &Path) -> bool {
    let is_below = |directory: &&str| path.starts_with(directory);
    ["/dev", "/proc", "/sys"].iter().any(is_below) && !path.starts_with("/dev/shm")
}

fn mounts() -> String {
    let table = durable::read_if_there(Path::new("/proc/self/mountinfo"), MAX_MOUNTS).ok().flatten();
    String::from_utf8_lossy(&table.unwrap_or_default()).into_owned()
}

/// Whether a path lies on a mount that systemd made for this unit alone: `PrivateTmp=`, `ProtectHome=` or
/// `InaccessiblePaths=`. `mounts` has the form of /proc/self/mountinfo (proc(5)).
fn is_hidden_by(mounts: &str, path: &Path) -> bool {
    let covering = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        path.starts_with(point).then_some((point.len(), root))
    });
    // Of two mounts on one point, the later one covers the earlier one.
    let covering = covering.max_by_key(|(length, _)| *length);
    covering.is_some_and(|(_, root)| root.contains("/systemd-private-") || root.contains("/systemd/inaccessible/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> View {
        View::through(None, None)
    }

    #[test]
    fn a_file_needs_its_directory_and_a_store_makes_it() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(at("file"), "").unwrap();
        for view in [own(), View::through(i32::try_from(std::process::id()).ok(), None)] {
            assert_eq!(view.file(&at("file")), Ok(()));
            assert_eq!(view.file(&at("new")), Ok(()));
            assert_eq!(view.file(&at("none/new")), Err(FileFault::Missing(at("none").into())));
            assert_eq!(view.file(&at("file/new")), Err(FileFault::NoDirectory(at("file").into())));
            assert_eq!(
                view.file(directory.path().to_str().unwrap()),
                Err(FileFault::IsDirectory(directory.path().into()))
            );
            assert_eq!(view.directory(&at("a/b/c")), Ok(()));
            assert_eq!(view.directory(&at("file/c")), Err(FileFault::NoDirectory(at("file").into())));
            assert_eq!(view.existing_directory(&at("none")), Err(FileFault::Missing(at("none").into())));
            assert_eq!(view.file("/dev/stdout"), Ok(()));
        }
    }

    #[test]
    fn a_relative_path_belongs_to_the_working_directory() {
        let directory = tempfile::tempdir().unwrap();
        let view = View::through(None, Some(directory.path()));
        assert_eq!(view.file("log"), Ok(()));
        assert_eq!(view.file("none/log"), Err(FileFault::Missing(directory.path().join("none"))));
    }

    #[test]
    fn what_only_the_agents_sandbox_hides_is_no_fault() {
        let mounts = "36 35 98:0 / / ro - ext4 /dev/sda ro\n\
                      37 36 98:0 /tmp/systemd-private-1-nats-tls-agent.service-x/tmp /tmp rw - ext4 /dev/sda rw\n\
                      38 36 0:5 /systemd/inaccessible/dir /home ro - tmpfs tmpfs rw\n\
                      39 36 0:6 / /home/data rw - ext4 /dev/sdb rw\n";
        assert!(is_hidden_by(mounts, Path::new("/tmp/log")));
        assert!(is_hidden_by(mounts, Path::new("/home/nats/log")));
        assert!(!is_hidden_by(mounts, Path::new("/home/data/log")));
        assert!(!is_hidden_by(mounts, Path::new("/var/log/nats")));
        assert!(!is_hidden_by("", Path::new("/tmp/log")));
    }
}
