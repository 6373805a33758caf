//! The nats-server process. The agent finds it by its pid file, and signals only a recognised process (invariant 10).
//!
//! A pid file outlives its process, and another process may have the number by now. So the agent opens a pidfd before
//! it inspects the process, and the signal goes through the same pidfd. Where the number is reused in between, the
//! agent sees another program, or the signal reaches no process.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use time::OffsetDateTime;

use super::StartMark;
use super::arguments::Arguments;
use crate::state::durable::{self, FileError};

const MAX_PID_FILE: u64 = 64;
const MAX_COMMAND_LINE: u64 = 64 * 1024;
const MAX_STAT: u64 = 4 * 1024;

/// Our nats-server, pinned by a pidfd.
#[derive(Debug)]
pub(crate) struct NatsProcess {
    pub(crate) pid: i32,
    /// The arguments that it was started with.
    pub(crate) arguments: Arguments,
    /// The pid file that holds its pid.
    pub(crate) pid_file: PathBuf,
    pidfd: OwnedFd,
}

/// Why there is no process to signal.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// nats-server isn't running: there is no pid file, or the process has ended.
    #[error("nats-server isn't running ({0})")]
    Absent(String),
    /// The pid file names another process.
    #[error("{} names pid {pid}, which {reason}; it is not signalled. Check nats.pid_file and nats.config", .file.display())]
    Foreign {
        /// The pid file.
        file: PathBuf,
        /// The pid in the file.
        pid: i32,
        /// What the process is.
        reason: String,
    },
    /// The pid file holds no number.
    #[error("{} holds no pid; check nats.pid_file", .0.display())]
    NoNumber(PathBuf),
    /// The pid file can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The system shows nothing of the process.
    #[error(
        "the system hides nats-server's process (pid {pid}) from the agent, so it is not signalled and loads no new \
         certificate; set PrivateUsers=no in the unit of nats-server, and run both units as the same user"
    )]
    Hidden {
        /// The pid in the file.
        pid: i32,
    },
    /// A system call on the process failed.
    #[error("could not {action} pid {pid}; the agent must run as the user that nats-server runs as")]
    System {
        /// What was tried.
        action: &'static str,
        /// The process.
        pid: i32,
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
}

impl NatsProcess {
    /// Finds the process whose pid the file holds, where that process runs `server` and its command line names `config`.
    ///
    /// An argument may name another pid file (`-P`). Where `pid_file` names no live process, each process of this machine is
    /// looked at for such an argument.
    pub(crate) fn find(pid_file: &Path, server: &Path, config: &Path) -> Result<Self, ProcessError> {
        match Self::named_by(pid_file, server, config) {
            Err(ProcessError::Absent(why)) => Self::with_own_pid_file(server, config).ok_or(ProcessError::Absent(why)),
            found => found,
        }
    }

    /// The nats-server that an argument gave a pid file of its own. Its pid must stand in that file: before that a signal
    /// would kill the process.
    fn with_own_pid_file(server: &Path, config: &Path) -> Option<Self> {
        let own = |entry: std::fs::DirEntry| {
            let directory = entry.path();
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let executable = std::fs::read_link(directory.join("exe")).ok()?;
            // Most processes are another program, and their command lines are not read.
            let file_name = executable.file_name()?.as_bytes();
            if !file_name.starts_with(server.file_name()?.as_bytes()) && resolved(server)? != executable {
                return None;
            }
            let line = durable::read_if_there(&directory.join("cmdline"), MAX_COMMAND_LINE).ok()??;
            let working_directory = std::fs::read_link(directory.join("cwd")).ok()?;
            let pid_file = Arguments::of(&split_arguments(&line)).pid_file(&working_directory)?;
            Self::named_by(&pid_file, server, config).ok().filter(|found| found.pid == pid)
        };
        std::fs::read_dir("/proc").ok()?.filter_map(Result::ok).find_map(own)
    }

    fn named_by(pid_file: &Path, server: &Path, config: &Path) -> Result<Self, ProcessError> {
        let absent = |what: String| ProcessError::Absent(what);
        let text = durable::read_if_there(pid_file, MAX_PID_FILE)?
            .ok_or_else(|| absent(format!("there is no {}", pid_file.display())))?;
        let pid = std::str::from_utf8(&text)
            .ok()
            .and_then(|text| text.trim().parse().ok().filter(|number| *number > 0))
            .and_then(Pid::from_raw)
            .ok_or_else(|| ProcessError::NoNumber(pid_file.to_owned()))?;
        let number = pid.as_raw_nonzero().get();
        let system = |action| move |source: std::io::Error| ProcessError::System { action, pid: number, source };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => {
                return Err(absent(format!("{} names pid {number}, which is gone", pid_file.display())));
            }
            opened => opened.map_err(|errno| system("pin")(errno.into()))?,
        };
        let directory = PathBuf::from(format!("/proc/{number}"));
        let executable = match std::fs::read_link(directory.join("exe")) {
            Err(error) if is_hidden(error.kind(), directory.exists(), rustix::process::test_kill_process(pid)) => {
                return Err(ProcessError::Hidden { pid: number });
            }
            // The process has exited and its parent hasn't asked for the exit status yet, or it exits at this moment.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(absent(format!("{} names pid {number}, which has exited", pid_file.display())));
            }
            link => link.map_err(system("look at the executable of"))?,
        };
        let arguments = durable::read_if_there(&directory.join("cmdline"), MAX_COMMAND_LINE)?.unwrap_or_default();
        let arguments = split_arguments(&arguments);
        recognise(&executable, &arguments, server, config).map_err(|reason| ProcessError::Foreign {
            file: pid_file.to_owned(),
            pid: number,
            reason,
        })?;
        Ok(Self { pid: number, arguments: Arguments::of(&arguments), pid_file: pid_file.to_owned(), pidfd })
    }

    /// When the process started by the wall clock.
    pub(crate) fn started(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        started(self.pid, now)
    }

    /// Tells nats-server to read its configuration again.
    pub(crate) fn hang_up(&self) -> Result<(), ProcessError> {
        match pidfd_send_signal(&self.pidfd, Signal::HUP) {
            Err(Errno::SRCH) => Err(ProcessError::Absent(format!("pid {} has just exited", self.pid))),
            sent => {
                sent.map_err(|errno| ProcessError::System { action: "signal", pid: self.pid, source: errno.into() })
            }
        }
    }
}

/// When a process started by the wall clock, to a hundredth of a second. Field 22 of `/proc/PID/stat` has the ticks since the
/// machine booted (proc(5)). `None`: the system shows no such process.
pub(crate) fn started(pid: i32, now: OffsetDateTime) -> Option<OffsetDateTime> {
    let stat = durable::read_if_there(Path::new(&format!("/proc/{pid}/stat")), MAX_STAT).ok()??;
    let since_boot = since_boot(&stat, sysconf(SysconfVar::CLK_TCK).ok()??)?;
    let uptime = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?);
    Some(now - uptime.checked_sub(since_boot)?)
}

/// The last start that wrote the pid file, whether or not its process lives.
pub(crate) fn start_mark(pid_file: &Path) -> Option<StartMark> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(pid_file).ok()?;
    let text = durable::read_if_there(pid_file, MAX_PID_FILE).ok()??;
    let pid = std::str::from_utf8(&text).ok()?.trim().parse().ok()?;
    let written = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    Some(StartMark { pid, written })
}

/// Kills every process whose configuration (`-c`) lies in one of these directories.
///
/// A killed agent leaves such processes. Each is pinned before its command line is read, so the signal reaches no other.
pub(crate) fn end_those_that_run_in(directories: &[PathBuf]) -> std::io::Result<()> {
    for entry in std::fs::read_dir("/proc")?.filter_map(Result::ok) {
        let number = entry.file_name().to_string_lossy().parse().ok().filter(|number| *number > 1);
        let Some(pid) = number.and_then(Pid::from_raw) else { continue };
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        // A process of another user may be hidden, and any process may end at this moment.
        let line = durable::read_if_there(&entry.path().join("cmdline"), MAX_COMMAND_LINE).ok().flatten();
        let arguments = split_arguments(&line.unwrap_or_default());
        let is_ours =
            |argument: &OsString| directories.iter().any(|directory| Path::new(argument).starts_with(directory));
        if arguments.iter().skip_while(|argument| *argument != "-c").nth(1).is_some_and(is_ours) {
            match pidfd_send_signal(&pidfd, Signal::KILL) {
                Err(Errno::SRCH) => {}
                sent => sent?,
            }
        }
    }
    Ok(())
}

/// The time from the boot of the machine to the start of a process.
fn since_boot(stat: &[u8], ticks_per_second: i64) -> Option<Duration> {
    // The second field is the name of the program in parentheses, and the name may hold blanks and parentheses.
    let after_name = &stat[stat.iter().rposition(|byte| *byte == b')')? + 1..];
    let ticks: u64 = std::str::from_utf8(after_name).ok()?.split_ascii_whitespace().nth(19)?.parse().ok()?;
    let per_second = u64::try_from(ticks_per_second).ok().filter(|ticks| *ticks > 0)?;
    Some(Duration::from_millis(ticks.checked_mul(1_000)? / per_second))
}

/// Whether the system hides a process whose executable can't be read. A user namespace (`PrivateUsers=`) or another user hides
/// it: its directory in /proc denies the look, or under `ProtectProc=invisible` isn't there although the process lives.
fn is_hidden(error: std::io::ErrorKind, has_directory: bool, signalled: Result<(), Errno>) -> bool {
    match error {
        std::io::ErrorKind::PermissionDenied => true,
        std::io::ErrorKind::NotFound => !has_directory && matches!(signalled, Ok(()) | Err(Errno::PERM)),
        _ => false,
    }
}

fn split_arguments(command_line: &[u8]) -> Vec<OsString> {
    command_line.split(|byte| *byte == 0).map(|argument| OsString::from_vec(argument.to_vec())).collect()
}

/// Whether a process is the nats-server that reads `config`. Its executable or its first argument has the name of
/// `server`, or `server` is a symlink to its executable. After an upgrade in place the executable of a running process
/// reads `… (deleted)` (proc(5)), and the process is still ours.
fn recognise(executable: &Path, arguments: &[OsString], server: &Path, config: &Path) -> Result<(), String> {
    let path = executable.as_os_str().as_bytes();
    let path = Path::new(OsStr::from_bytes(path.strip_suffix(b" (deleted)").unwrap_or(path)));
    let started_as = arguments.first().and_then(|argument| Path::new(argument).file_name());
    let is_named = server.file_name().is_some_and(|name| path.file_name() == Some(name) || started_as == Some(name));
    if !is_named && resolved(server).as_deref() != Some(path) {
        return Err(format!("runs {}, not {}", executable.display(), server.display()));
    }
    let names_config = arguments.iter().enumerate().any(|(index, argument)| {
        let argument = argument.to_string_lossy();
        let value = match argument.trim_start_matches('-') {
            "c" | "config" if argument.starts_with('-') => arguments.get(index + 1).map(PathBuf::from),
            flag => flag.strip_prefix("c=").or(flag.strip_prefix("config=")).map(PathBuf::from),
        };
        value.is_some_and(|value| value == config)
    });
    if names_config { Ok(()) } else { Err(format!("is a nats-server that doesn't run with -c {}", config.display())) }
}

/// The executable file of `server`. A bare name is looked for in PATH.
fn resolved(server: &Path) -> Option<PathBuf> {
    if server.components().count() > 1 {
        return server.canonicalize().ok();
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(server))
        .find(|file| file.is_file())?
        .canonicalize()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn arguments(list: &[&str]) -> Vec<OsString> {
        list.iter().map(OsString::from).collect()
    }

    #[test]
    fn recognises_the_server_that_reads_our_configuration() {
        let (server, config) = (Path::new("nats-server"), Path::new("/etc/nats.conf"));
        for flags in [&["-c", "/etc/nats.conf"][..], &["--config", "/etc/nats.conf"], &["--config=/etc/nats.conf"]] {
            let line = arguments(&[&["nats-server"], flags].concat());
            assert_eq!(recognise(Path::new("/usr/bin/nats-server"), &line, server, config), Ok(()));
            assert_eq!(recognise(Path::new("/usr/bin/nats-server (deleted)"), &line, server, config), Ok(()));
            let line = arguments(&[&["sleep"], flags].concat());
            assert!(recognise(Path::new("/usr/bin/sleep"), &line, server, config).is_err());
        }
        let other = arguments(&["nats-server", "-c", "/etc/other.conf"]);
        assert!(recognise(Path::new("/usr/bin/nats-server"), &other, server, config).is_err());
    }

    #[test]
    fn recognises_a_server_behind_a_symlink_however_it_was_started() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().canonicalize().unwrap();
        let (link, versioned) = (directory.join("nats-server"), directory.join("nats-server-v2.12.8"));
        std::fs::write(&versioned, "").unwrap();
        std::os::unix::fs::symlink(&versioned, &link).unwrap();
        let config = Path::new("/etc/nats.conf");
        let started_as = |program: &Path| [&[program.into()], &*arguments(&["-c", "/etc/nats.conf"])].concat();
        assert_eq!(recognise(&versioned, &started_as(&versioned), &link, config), Ok(()));
        // The process runs an earlier version, to which the link pointed before.
        let before = directory.join("nats-server-v2.12.7");
        assert_eq!(recognise(&before, &started_as(&link), Path::new("nats-server"), config), Ok(()));
        assert!(recognise(&before, &started_as(&before), &link, config).is_err());
        assert!(recognise(&before, &[link.into()], Path::new("nats-server"), config).is_err());
    }

    #[test]
    fn invariant_10_a_stale_pid_file_that_points_to_another_program_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        std::fs::write(&pid_file, sleeper.id().to_string()).unwrap();
        let found = NatsProcess::find(&pid_file, Path::new("nats-server"), Path::new("/etc/nats.conf"));
        assert!(matches!(found, Err(ProcessError::Foreign { .. })), "{found:?}");
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        let found = NatsProcess::find(&pid_file, Path::new("nats-server"), Path::new("/etc/nats.conf"));
        assert!(matches!(found, Err(ProcessError::Absent(_))), "{found:?}");
    }

    #[test]
    fn the_start_of_a_process_is_told_by_the_wall_clock() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        std::fs::write(&pid_file, std::process::id().to_string()).unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let pidfd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
        let now = Clock::System.now();
        let started =
            NatsProcess { pid, pidfd, arguments: Arguments::default(), pid_file: PathBuf::new() }.started(now).unwrap();
        assert!(started <= now && now - started < time::Duration::hours(1), "{started}");
        let stat = |ticks: &str| format!("7 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 {ticks} 20");
        assert_eq!(since_boot(stat("250").as_bytes(), 100), Some(Duration::from_millis(2_500)));
        for (stat, ticks) in [(stat("x"), 100), (stat("250"), 0), (String::new(), 100), ("7 (a".into(), 100)] {
            assert_eq!(since_boot(stat.as_bytes(), ticks), None, "{stat}");
        }
    }

    #[test]
    fn a_server_that_exited_and_was_not_waited_for_is_absent() {
        use nix::sys::wait::{Id, WaitPidFlag, waitid};
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        let mut exited = std::process::Command::new("true").spawn().unwrap();
        std::fs::write(&pid_file, exited.id().to_string()).unwrap();
        let child = nix::unistd::Pid::from_raw(exited.id().try_into().unwrap());
        waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        let found = NatsProcess::find(&pid_file, Path::new("nats-server"), Path::new("/etc/nats.conf"));
        exited.wait().unwrap();
        assert!(matches!(found, Err(ProcessError::Absent(_))), "{found:?}");
    }

    #[test]
    fn a_process_that_the_system_hides_is_told_from_one_that_has_exited() {
        use std::io::ErrorKind::{NotFound, Other, PermissionDenied};
        assert!(is_hidden(PermissionDenied, true, Ok(())));
        assert!(is_hidden(NotFound, false, Ok(())) && is_hidden(NotFound, false, Err(Errno::PERM)));
        // An exited process keeps its directory until its parent asks for it, and then has neither.
        assert!(!is_hidden(NotFound, true, Ok(())) && !is_hidden(NotFound, false, Err(Errno::SRCH)));
        assert!(!is_hidden(Other, true, Ok(())));
        let told = ProcessError::Hidden { pid: 7 }.to_string();
        assert!(told.contains("PrivateUsers=no"), "{told}");
    }

    #[test]
    fn a_pid_file_without_a_number_is_an_error_and_none_at_all_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        let find = || NatsProcess::find(&pid_file, Path::new("nats-server"), Path::new("/etc/nats.conf"));
        assert!(matches!(find(), Err(ProcessError::Absent(_))));
        for text in ["", "-1", "0", "nats", "99999999999999"] {
            std::fs::write(&pid_file, text).unwrap();
            assert!(matches!(find(), Err(ProcessError::NoNumber(_))), "{text:?}");
        }
    }
}
