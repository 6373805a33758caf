//! Records every system call by which a process changes a file or signals another process, with `strace(1)`. The same
//! process can then be killed or refused at any one of these calls.
//!
//! A [`Point`] is a call on a path, with its ordinal. strace counts only calls that touch the path (`-P`), separately
//! for each thread. A point is therefore the same in every run, whatever other threads do.
//!
//! strace injects `SIGKILL` and errors on entry to the call (`--inject`), and the call isn't made. A death at a point
//! is thus a death before the point's call and after the previous call. The process is the caller's own child (`-D`).
//! When strace is told to end, the process lives on without strace.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Failure, eventually};

/// Calls that change files or affect another process. `?` marks calls that some architectures lack.
const CALLS: &str = "?open,?creat,openat,write,writev,?pwrite64,ftruncate,fallocate,fsync,fdatasync,?rename,renameat,\
     ?renameat2,?link,linkat,?symlink,symlinkat,?unlink,unlinkat,?rmdir,?mkdir,mkdirat,?chmod,fchmod,fchmodat,\
     ?fchmodat2,?chown,?lchown,fchown,fchownat,?kill,?tgkill,pidfd_send_signal";
/// Calls that open a file, and may create it.
const OPENS: [&str; 3] = ["open", "creat", "openat"];
/// Calls that start a program.
const EXECUTIONS: [&str; 2] = ["execve", "?execveat"];
/// Calls that signal a process.
///
/// `kill` and `tgkill` are not among them: the agent signals nats-server by its pidfd, and only the child of a trial by its
/// pid.
const SIGNALS: [&str; 1] = ["pidfd_send_signal"];
/// The time in which strace writes its last lines, or detaches.
const SOON: Duration = Duration::from_secs(10);

/// A call of the traced process.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Call {
    thread: u32,
    name: String,
    paths: Vec<PathBuf>,
    /// Whether the call changes something.
    changes: bool,
    /// Whether the trace shows that the call failed.
    has_failed: bool,
    /// The requested mode, if the call creates something.
    mode: Option<u32>,
}

/// What a process does with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// The file is started as a program.
    Executed(PathBuf),
    /// The file is opened.
    Opened(PathBuf),
}

/// A recorded run.
#[derive(Clone, Debug)]
pub struct Recording {
    main: u32,
    calls: Vec<Call>,
}

/// A point in a run: a call on a path, with its ordinal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// The system call.
    pub call: String,
    /// The path that the call changes. A signal has an empty path.
    pub path: PathBuf,
    /// The ordinal among the calls of this name on this path, from 1.
    pub ordinal: u32,
    /// The calls that fail from this point on, for a fault that stays.
    since: Since,
}

/// For each call of the main thread, the ordinal from which the call fails. The fault thus begins at a point and stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Since {
    /// The calls that fail on a full disk. Calls that allocate nothing still succeed.
    full: Vec<(String, u32)>,
    /// The calls that fail on a read-only disk. Only reading still succeeds.
    read_only: Vec<(String, u32)>,
    /// The paths on which a full disk's calls are counted.
    paths: Vec<PathBuf>,
    /// The paths on which a read-only disk's calls are counted. Paths that are also read are left out.
    written: Vec<PathBuf>,
}

/// The effect at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The process is killed.
    Kill,
    /// This call alone fails, with `ENOSPC` or `EROFS`.
    Once(Errno),
    /// This call and every later call fail.
    From(Errno),
}

/// The error of a failing call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// The disk is full.
    Full,
    /// The file system is read-only.
    ReadOnly,
}

impl Errno {
    fn name(self) -> &'static str {
        match self {
            Self::Full => "ENOSPC",
            Self::ReadOnly => "EROFS",
        }
    }
}

impl std::fmt::Display for Effect {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kill => formatter.write_str("SIGKILL"),
            Self::Once(errno) => write!(formatter, "{} once", errno.name()),
            Self::From(errno) => write!(formatter, "{} from then on", errno.name()),
        }
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {} #{}", self.call, self.path.display(), self.ordinal)
    }
}

/// Fails if strace can't be run, and names the package to install.
pub fn present() -> Result<(), Failure> {
    let version = std::process::Command::new("strace").arg("--version").output();
    version.map(drop).map_err(|error| {
        Failure::new("could not run strace, which finds the crash points; install Debian's package strace")
            .because(error)
    })
}

/// The launcher that records all changes of a process in `output`.
#[must_use]
pub fn recording(output: &Path) -> Vec<String> {
    launcher(output, &format!("trace={CALLS}"))
}

/// The launcher that records in `output` every program that a process starts, and every file that it opens.
#[must_use]
pub fn watching(output: &Path) -> Vec<String> {
    launcher(
        output,
        &format!("trace=?openat2,{},{}", EXECUTIONS.join(","), OPENS.map(|call| format!("?{call}")).join(",")),
    )
}

/// The launcher that makes a process meet `effect` at `point`. The trace in `output` contains the counted calls.
#[must_use]
pub fn injecting(output: &Path, point: &Point, effect: Effect) -> Vec<String> {
    let at = |what: String| (vec![(point.call.clone(), format!("{what}:when={}", point.ordinal))], vec![&point.path]);
    let stays = |errno: Errno, calls: &[(String, u32)], paths| {
        let injected = |(call, first): &(String, u32)| (call.clone(), format!("error={}:when={first}+", errno.name()));
        (calls.iter().map(injected).collect(), paths)
    };
    let since = &point.since;
    let (injections, paths): (Vec<_>, Vec<&PathBuf>) = match effect {
        Effect::Kill => at("signal=SIGKILL".into()),
        Effect::Once(errno) => at(format!("error={}", errno.name())),
        Effect::From(Errno::Full) => stays(Errno::Full, &since.full, since.paths.iter().collect()),
        Effect::From(Errno::ReadOnly) => stays(Errno::ReadOnly, &since.read_only, since.written.iter().collect()),
    };
    let calls: Vec<&str> = injections.iter().map(|(call, _)| call.as_str()).collect();
    let mut arguments = launcher(output, &format!("trace={}", calls.join(",")));
    for path in paths.into_iter().filter(|path| !path.as_os_str().is_empty()) {
        arguments.extend(["-P".into(), path.display().to_string()]);
    }
    arguments.extend(injections.iter().map(|(call, what)| format!("--inject={call}:{what}")));
    arguments
}

/// The strace command line. `-b execve` detaches from the programs that the process starts. `-I1` lets [`release`] end
/// strace. The trace includes SIGKILL, because strace reports no death by a signal that isn't traced.
fn launcher(output: &Path, trace: &str) -> Vec<String> {
    let output = output.display().to_string();
    let arguments =
        ["strace", "-D", "-I1", "-f", "-b", "execve", "-q", "-y", "-e", "signal=SIGKILL", "-o", &output, "-e", trace];
    arguments.map(ToOwned::to_owned).to_vec()
}

/// Makes strace detach from a process, which continues undisturbed.
pub async fn release(pid: u32) -> Result<(), Failure> {
    let status = format!("/proc/{pid}/status");
    eventually("the detachment of strace", SOON, async || {
        let text = std::fs::read_to_string(&status).map_err(|error| format!("{status}: {error}"))?;
        let tracer = text.lines().find_map(|line| line.strip_prefix("TracerPid:")?.trim().parse().ok()).unwrap_or(0);
        if tracer == 0 {
            return Ok(());
        }
        // strace may have ended by itself meanwhile.
        let _gone = kill(Pid::from_raw(tracer), Signal::SIGTERM);
        Err(format!("strace is process {tracer}"))
    })
    .await
}

/// Waits until the trace of an ended process is complete. Returns whether `SIGKILL` ended the process.
pub async fn was_killed(output: &Path) -> Result<bool, Failure> {
    eventually("the end of the trace", SOON, async || {
        let text = std::fs::read_to_string(output).map_err(|error| error.to_string())?;
        // strace reports the main thread last.
        let main = text.lines().find_map(of_thread).map(|(main, _)| main);
        let ends = |how: &str| {
            let is_end = |(thread, rest): (u32, &str)| Some(thread) == main && rest.starts_with(&format!("+++ {how}"));
            text.lines().filter_map(of_thread).any(is_end)
        };
        if ends("killed by SIGKILL") {
            Ok(true)
        } else if ends("exited") || ends("killed") {
            Ok(false)
        } else {
            Err(text)
        }
    })
    .await
}

/// Whether an error was injected so far.
#[must_use]
pub fn was_injected(output: &Path) -> bool {
    std::fs::read_to_string(output).is_ok_and(|text| text.contains("(INJECTED)"))
}

/// Whether a path lies in the directory of a trial of settings. Nothing in that directory outlives the trial.
fn is_of_trial(path: &Path) -> bool {
    path.components().any(|component| component.as_os_str().to_string_lossy().starts_with("trial-"))
}

impl Recording {
    /// Reads a trace.
    pub fn read(output: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(output)
            .map_err(|error| Failure::new(format!("could not read {}", output.display())).because(error))?;
        let calls: Vec<Call> = text.lines().filter_map(Call::parse).collect();
        // A process's id is the id of its main thread.
        let main = text.lines().find_map(of_thread).map(|(main, _)| main);
        let main = main.ok_or_else(|| Failure::new(format!("{} is not a trace: {text}", output.display())))?;
        Ok(Self { main, calls })
    }

    /// Every change below `roots`, except to `others`, and every signal, in order. The number and work of threads other
    /// than the main thread vary between runs, so only the first call of each kind counts for them.
    #[must_use]
    pub fn points(&self, roots: &[&Path], others: &[&Path]) -> Vec<Point> {
        let is_ours = |path: &Path| {
            roots.iter().any(|root| path.starts_with(root)) && !others.contains(&path) && !is_of_trial(path)
        };
        let mut points = Vec::new();
        let mut elsewhere = BTreeSet::new();
        for (index, call) in self.calls.iter().enumerate().filter(|(_, call)| call.changes) {
            let is_signal = SIGNALS.contains(&call.name.as_str());
            let Some(path) = call.target().filter(|path| is_ours(path)).or(is_signal.then(PathBuf::new)) else {
                continue;
            };
            let touches = |other: &Call| is_signal || other.paths.contains(&path);
            let before = self.before(index, call.thread, |other| other.name == call.name && touches(other));
            if call.thread != self.main && (before > 0 || !elsewhere.insert((call.name.clone(), path.clone()))) {
                continue;
            }
            points.push(Point { call: call.name.clone(), path, ordinal: before + 1, since: Since::default() });
            if call.thread == self.main
                && !is_signal
                && let Some(point) = points.last_mut()
            {
                point.since = self.since(index, &is_ours);
            }
        }
        points
    }

    /// The data that a power cut would lose although it must be on the disk. One kind is a file that gets its name
    /// before its content is flushed. Another kind is a name that isn't flushed when `commit` gets its name, when a
    /// signal is sent, or at the end.
    #[must_use]
    pub fn unflushed(&self, roots: &[&Path], others: &[&Path], commit: &Path) -> Vec<String> {
        let is_ours = |path: &Path| {
            roots.iter().any(|root| path.starts_with(root)) && !others.contains(&path) && !is_of_trial(path)
        };
        let parent = |path: &Path| path.parent().map(Path::to_path_buf);
        let (mut files, mut directories) = (BTreeSet::<PathBuf>::new(), BTreeSet::<PathBuf>::new());
        let mut wrong = Vec::new();
        let done = |call: &&Call| call.thread == self.main && call.changes && !call.has_failed;
        for call in self.calls.iter().filter(done) {
            let paths: Vec<&PathBuf> = call.paths.iter().filter(|path| is_ours(path)).collect();
            match (call.name.as_str(), &paths[..]) {
                ("fsync" | "fdatasync", [path, ..]) => {
                    files.remove(*path);
                    directories.remove(*path);
                }
                ("write" | "writev" | "pwrite64" | "ftruncate", [path, ..]) => {
                    files.insert((*path).clone());
                }
                ("rename" | "renameat" | "renameat2", [from, to]) => {
                    let below = files.iter().chain(&directories).filter(|path| path.starts_with(from));
                    wrong.extend(below.map(|path| format!("{} when {} got its name", path.display(), to.display())));
                    if **to == commit {
                        let names = directories.iter().filter(|path| Some(*path) != parent(to).as_ref());
                        wrong.extend(names.map(|path| format!("{} at the commit", path.display())));
                    }
                    directories.extend([from, to].into_iter().filter_map(|path| parent(path)));
                }
                ("openat" | "open" | "creat" | "mkdir" | "mkdirat" | "link" | "linkat", [.., path]) => {
                    directories.extend(parent(path));
                }
                (name, _) if SIGNALS.contains(&name) => {
                    wrong.extend(directories.iter().map(|path| format!("{} at the signal", path.display())));
                }
                _ => {}
            }
        }
        wrong.extend(files.iter().chain(&directories).map(|path| format!("{} at the end", path.display())));
        wrong
    }

    /// The programs that were started, and the files that were opened, in order. Calls that failed count too.
    #[must_use]
    pub fn uses(&self) -> Vec<Use> {
        let of = |call: &Call| {
            let is_start = call.name.starts_with("exec");
            // A program's arguments may be paths too, and `openat` may name its directory first.
            let path = if is_start { call.paths.first() } else { call.paths.last() };
            path.cloned().map(if is_start { Use::Executed } else { Use::Opened })
        };
        self.calls.iter().filter_map(of).collect()
    }

    /// The files created below `roots`, under their final names, each with the requested mode.
    #[must_use]
    pub fn created(&self, roots: &[&Path]) -> Vec<(PathBuf, u32)> {
        let mut created = Vec::<(PathBuf, u32)>::new();
        for call in self.calls.iter().filter(|call| !call.has_failed) {
            match (call.name.as_str(), call.mode, &call.paths[..]) {
                (_, Some(mode), [path, ..]) => created.push((path.clone(), mode)),
                ("rename" | "renameat" | "renameat2", _, [from, to]) => {
                    for (path, _) in &mut created {
                        let below = path.strip_prefix(from).map(Path::to_path_buf);
                        if let Ok(below) = below {
                            // A path joined with an empty path gets a trailing slash.
                            *path = if below.as_os_str().is_empty() { to.clone() } else { to.join(below) };
                        }
                    }
                }
                _ => {}
            }
        }
        created.retain(|(path, _)| roots.iter().any(|root| path.starts_with(root)));
        created
    }

    /// The calls that change the mode or owner of something below `roots`.
    #[must_use]
    pub fn reowned(&self, roots: &[&Path]) -> Vec<String> {
        let is_it = |call: &&Call| call.name.contains("chmod") || call.name.contains("chown");
        let is_below = |call: &Call| call.paths.iter().any(|path| roots.iter().any(|root| path.starts_with(root)));
        let calls = self.calls.iter().filter(is_it).filter(|call| is_below(call));
        calls.map(|call| format!("{} {:?}", call.name, call.paths)).collect()
    }

    fn before(&self, index: usize, thread: u32, is_it: impl Fn(&Call) -> bool) -> u32 {
        let counted = self.calls[..index].iter().filter(|call| call.thread == thread && is_it(call)).count();
        u32::try_from(counted).unwrap_or(u32::MAX)
    }

    fn since(&self, index: usize, is_ours: &impl Fn(&Path) -> bool) -> Since {
        let ours = || self.calls.iter().filter(|call| call.thread == self.main);
        let changed: BTreeSet<&PathBuf> =
            ours().filter(|call| call.changes).flat_map(|call| &call.paths).filter(|path| is_ours(path)).collect();
        let count = |path: &PathBuf, is_it: &dyn Fn(&Call) -> bool| {
            ours().filter(|call| call.paths.contains(path) && is_it(call)).count()
        };
        // A file that is opened only to be flushed doesn't count as read.
        let is_read = |path: &PathBuf| {
            let opened = count(path, &|call| OPENS.contains(&call.name.as_str()) && !call.changes);
            opened > count(path, &|call| call.name == "fsync")
        };
        let paths: Vec<PathBuf> = changed.into_iter().cloned().collect();
        let written: Vec<PathBuf> = paths.iter().filter(|path| !is_read(path)).cloned().collect();
        let names: BTreeSet<&str> = ours().filter(|call| call.changes).map(|call| call.name.as_str()).collect();
        let from = |names: &mut dyn Iterator<Item = &str>, on: &[PathBuf]| {
            let first = |name: &str| {
                self.before(index, self.main, |call| {
                    call.name == name && call.paths.iter().any(|path| on.contains(path))
                })
            };
            names.map(|name| (name.to_owned(), first(name) + 1)).collect()
        };
        let is_file = |name: &&&str| !SIGNALS.contains(*name);
        let allocates =
            |name: &&&str| is_file(name) && !OPENS.contains(*name) && !["unlink", "unlinkat"].contains(*name);
        Since {
            full: from(&mut names.iter().filter(allocates).copied(), &paths),
            read_only: from(&mut names.iter().filter(is_file).copied(), &written),
            paths,
            written,
        }
    }
}

impl Point {
    /// The first call of a name on a path. A fault that stays affects this call alone.
    #[must_use]
    pub fn first(call: &str, path: &Path) -> Self {
        let (calls, paths) = (vec![(call.to_owned(), 1)], vec![path.to_path_buf()]);
        let since = Since { full: calls.clone(), read_only: calls, paths: paths.clone(), written: paths };
        Self { call: call.to_owned(), path: path.to_path_buf(), ordinal: 1, since }
    }

    /// This point with renamed paths.
    #[must_use]
    pub fn renamed(&self, rename: impl Fn(&Path) -> PathBuf) -> Self {
        let all = |paths: &[PathBuf]| paths.iter().map(|path| rename(path)).collect();
        let since = &self.since;
        Self {
            path: rename(&self.path),
            since: Since { paths: all(&since.paths), written: all(&since.written), ..since.clone() },
            ..self.clone()
        }
    }

    /// Whether a fault can begin at this point and stay. Such a fault needs a point of the main thread, whose calls are
    /// counted.
    #[must_use]
    pub fn can_stay(&self, errno: Errno) -> bool {
        let calls = if errno == Errno::Full { &self.since.full } else { &self.since.read_only };
        let paths = if errno == Errno::Full { &self.since.paths } else { &self.since.written };
        calls.iter().any(|(call, _)| *call == self.call) && paths.contains(&self.path)
    }
}

/// The number of points for each call: `fsync 21, openat 12 …`.
#[must_use]
pub fn by_call(points: &[Point]) -> String {
    let names: BTreeSet<&str> = points.iter().map(|point| point.call.as_str()).collect();
    let mut text = String::new();
    for name in names {
        let separator = if text.is_empty() { "" } else { ", " };
        // Writing to a string can't fail.
        _ = write!(text, "{separator}{name} {}", points.iter().filter(|point| point.call == name).count());
    }
    text
}

impl Call {
    /// Parses a line of a trace. A call that another thread's line interrupts is read from its first line.
    fn parse(line: &str) -> Option<Self> {
        let (thread, rest) = of_thread(line)?;
        let (name, arguments) = rest.split_once('(')?;
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return None;
        }
        let creates = ["O_CREAT", "O_WRONLY", "O_RDWR", "O_TRUNC"].iter().any(|flag| arguments.contains(flag));
        Some(Self {
            thread,
            name: name.to_owned(),
            paths: paths(name, arguments),
            changes: !OPENS.contains(&name) || name == "creat" || creates,
            has_failed: arguments.contains(" = -1 E"),
            mode: mode(name, arguments),
        })
    }

    /// The path that the call changes. Of two paths, the staged or new path counts.
    fn target(&self) -> Option<PathBuf> {
        if self.name.starts_with("link") { self.paths.last().cloned() } else { self.paths.first().cloned() }
    }
}

/// The mode, which is the last argument of a call that creates.
fn mode(name: &str, arguments: &str) -> Option<u32> {
    let creates = name.starts_with("mkdir") || name == "creat" || arguments.contains("O_CREAT");
    let end = arguments.find(") ").or(arguments.find(" <unfinished"))?;
    let last = arguments[..end].rsplit(", ").next().filter(|_| creates)?;
    u32::from_str_radix(last, 8).ok()
}

/// A line's thread id and the rest of the line.
fn of_thread(line: &str) -> Option<(u32, &str)> {
    let (thread, rest) = line.split_once(' ')?;
    Some((thread.parse().ok()?, rest.trim_start()))
}

/// The absolute paths in a call's arguments, including those of descriptors (`11</path>`). The content of a `write` and
/// the directory behind `AT_FDCWD` don't count.
fn paths(name: &str, arguments: &str) -> Vec<PathBuf> {
    let mut rest = arguments;
    let mut found = Vec::new();
    let is_of_content = name.contains("write");
    while let Some(start) = rest.find(['<', '"']) {
        let (before, quoted) = (&rest[..start], &rest[start + 1..]);
        let is_descriptor = rest[start..].starts_with('<');
        let end = if is_descriptor {
            quoted.find(">,").or(quoted.find(">)")).or(quoted.find("> "))
        } else {
            quoted.find('"')
        };
        let Some(end) = end.or(quoted.find(['>', '"'])) else { break };
        if quoted.starts_with('/') && !before.ends_with("AT_FDCWD") && (is_descriptor || !is_of_content) {
            found.push(PathBuf::from(&quoted[..end]));
        }
        if is_of_content {
            break;
        }
        rest = &quoted[end + 1..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = r#"7     openat(AT_FDCWD</home>, "/s/a.new", O_WRONLY|O_CREAT|O_EXCL|O_CLOEXEC, 0640 <unfinished ...>
8 write(4<anon_inode:[eventfd]>, "\1\0\0\0\0\0\0\0", 8) = 8
7 <... openat resumed>) = 3</s/a.new>
7 write(3</s/a.new>, "see </s/b> and \"/s/c\"", 4) = 4
8 rename("/ca/x.new", "/ca/x") = 0
7 fsync(3</s/a.new>)                = 0
7 rename("/s/a.new", "/s/a")              = 0
7 openat(AT_FDCWD</home>, "/s", O_RDONLY|O_CLOEXEC) = 3</s>
7 fsync(3</s>) = 0
8 rename("/ca/x.new", "/ca/x") = 0
7 openat(AT_FDCWD</home>, "/s/a", O_RDONLY|O_CLOEXEC) = 3</s/a>
7 pidfd_send_signal(11<anon_inode:[pidfd]>, SIGHUP, NULL, 0) = 0
7 unlinkat(5</s/old>, "key.pem", 0) = 0
7 rename("/s/a.new", "/s/a")              = ?
7 linkat(AT_FDCWD</home>, "/s/a", AT_FDCWD</home>, "/s/b.new", 0) = 0
8 +++ killed by SIGKILL +++
7 +++ killed by SIGKILL +++
"#;

    fn trace() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("trace");
        std::fs::write(&output, TRACE).unwrap();
        (directory, output)
    }

    #[tokio::test]
    async fn a_trace_is_read_into_its_changes_each_with_its_number() {
        let (_directory, output) = trace();
        let recording = Recording::read(&output).unwrap();
        let points = recording.points(&[Path::new("/s"), Path::new("/ca")], &[]);
        let shown: Vec<String> = points.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "openat /s/a.new #1",
                "write /s/a.new #1",
                "rename /ca/x.new #1",
                "fsync /s/a.new #1",
                "rename /s/a.new #1",
                "fsync /s #1",
                "pidfd_send_signal  #1",
                "unlinkat /s/old #1",
                "rename /s/a.new #2",
                "linkat /s/b.new #1",
            ]
        );
        assert_eq!(by_call(&points[..5]), "fsync 1, openat 1, rename 2, write 1");
        assert!(was_killed(&output).await.unwrap() && !was_injected(&output));
    }

    #[test]
    fn what_is_opened_and_what_is_started_is_told_apart_also_where_the_call_fails() {
        let (_directory, output) = trace();
        let text = "7 execve(\"/bin/a\", [\"/bin/a\", \"-c\", \"/s/b\"], 0x7f /* 2 vars */) = 0\n\
                    8 openat(AT_FDCWD</home>, \"/s/b\", O_RDONLY|O_CLOEXEC) = 3</s/b>\n\
                    9 execve(\"/bin/none\", [\"none\"], 0x7f /* 2 vars */) = -1 ENOENT (No such file or directory)\n\
                    9 open(\"/s/none\", O_RDONLY <unfinished ...>\n";
        std::fs::write(&output, text).unwrap();
        let [started, opened] = [Use::Executed, Use::Opened];
        let expected = [(started, "/bin/a"), (opened, "/s/b"), (started, "/bin/none"), (opened, "/s/none")];
        let expected = expected.map(|(kind, path)| kind(PathBuf::from(path)));
        assert_eq!(Recording::read(&output).unwrap().uses(), expected);
    }

    #[test]
    fn what_a_power_cut_would_lose_is_found() {
        let (_directory, output) = trace();
        let recording = Recording::read(&output).unwrap();
        let lost = recording.unflushed(&[Path::new("/s")], &[], Path::new("/s/a"));
        assert_eq!(lost, ["/s at the end"]);
        std::fs::write(&output, TRACE.replace("fsync", "fcntl")).unwrap();
        let lost = Recording::read(&output).unwrap().unflushed(&[Path::new("/s")], &[], Path::new("/s/a"));
        assert_eq!(lost[..2], ["/s/a.new when /s/a got its name", "/s at the signal"]);
    }

    #[test]
    fn what_is_created_is_followed_to_its_last_name_and_a_change_of_its_mode_is_found() {
        let (_directory, output) = trace();
        let below = [Path::new("/s")];
        let recording = Recording::read(&output).unwrap();
        assert_eq!(recording.created(&below), [(PathBuf::from("/s/a"), 0o640)]);
        assert_eq!(recording.reowned(&below), Vec::<String>::new());
        let more = "7 mkdir(\"/s/1.partial\", 0700) = 0\n7 openat(AT_FDCWD</home>, \"/s/1.partial/key\", \
                    O_WRONLY|O_CREAT, 0600) = 3</s/1.partial/key>\n7 fchmod(3</s/1.partial/key>, 0666) = 0\n\
                    7 rename(\"/s/1.partial\", \"/s/1\") = 0\n7 chmod(\"/elsewhere\", 0666) = 0\n";
        std::fs::write(&output, more).unwrap();
        let recording = Recording::read(&output).unwrap();
        assert_eq!(recording.created(&below), [(PathBuf::from("/s/1"), 0o700), (PathBuf::from("/s/1/key"), 0o600)]);
        assert_eq!(recording.reowned(&below), ["fchmod [\"/s/1.partial/key\"]"]);
    }

    #[test]
    fn a_fault_that_stays_spares_what_is_read_and_a_full_disk_what_allocates_nothing() {
        let (_directory, output) = trace();
        let points = Recording::read(&output).unwrap().points(&[Path::new("/s")], &[]);
        let second = &points[7];
        assert_eq!(second.to_string(), "rename /s/a.new #2");
        let counts = |calls: &[(String, u32)]| calls.iter().map(|(call, n)| format!("{call} {n}")).collect::<Vec<_>>();
        assert_eq!(counts(&second.since.full), ["fsync 3", "linkat 1", "rename 2", "write 2"]);
        assert!(counts(&second.since.read_only).contains(&"openat 3".to_owned()), "{:?}", second.since);
        assert!(!second.since.written.contains(&PathBuf::from("/s/a")), "{:?}", second.since);
        assert!(
            second.can_stay(Errno::Full) && !points[0].can_stay(Errno::Full) && points[0].can_stay(Errno::ReadOnly)
        );
        let arguments = injecting(Path::new("/t"), second, Effect::From(Errno::Full)).join(" ");
        assert!(arguments.contains("--inject=rename:error=ENOSPC:when=2+"), "{arguments}");
    }
}
