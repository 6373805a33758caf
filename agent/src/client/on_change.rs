//! `client.on_change`: how a service hears of new files. Every way has a bound.
//!
//! A pid file outlives its process, and another process may have the number by now. So a pidfd pins the process before its
//! start is compared with the time of the file, and the signal goes through the pidfd.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal, test_kill_process};
use time::OffsetDateTime;
use tokio::process::Command;

use crate::config::client::{Action, OnChange};
use crate::server::process::started;
use crate::state::durable::{self, FileError};

/// The largest pid file, in bytes.
const MAX_PID_FILE: u64 = 64;
/// The exit status of `systemctl is-active` for a unit that isn't active.
const NOT_ACTIVE: i32 = 3;
/// How long after the pid file was written its process may seem to have started. The start is computed by the present clock, which
/// may have been set since. A number is seldom used again within a minute.
const CLOCK_STEP: Duration = Duration::from_mins(1);

/// Why the service was not told of new files. The next look tries again.
#[derive(Debug, thiserror::Error)]
pub enum NotTold {
    /// The pid file can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The pid file holds no pid.
    #[error("{} holds no pid of a process, so on_change signals nobody; correct client.on_change.pid_file", .0.display())]
    NoPid(PathBuf),
    /// The process started after the pid file was written.
    #[error(
        "{} names pid {pid}, which started after the file was written: another process has the number of the service now, so \
         on_change signals nobody; restart the service, so that the service writes its pid", .file.display()
    )]
    Stale {
        /// The pid file.
        file: PathBuf,
        /// The pid in the file.
        pid: i32,
    },
    /// The system shows nothing of the process.
    #[error(
        "{} names pid {pid}, whose start the system hides, so on_change signals nobody; set ProtectProc=default in a drop-in \
         of this agent's unit, or use client.on_change.reload or command", .file.display()
    )]
    Hidden {
        /// The pid file.
        file: PathBuf,
        /// The pid in the file.
        pid: i32,
    },
    /// The signal was not sent.
    #[error("could not signal pid {pid} of on_change; run this agent as the user of the process, or as root")]
    Signal {
        /// The pid.
        pid: i32,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The program can't be started.
    #[error("could not start {program} of on_change; check the path and its mode")]
    Start {
        /// The program.
        program: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The program ended with a failure.
    #[error("{program} of on_change ended with {status}; the files are in place, and on_change is tried again")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// The program took too long, and was ended.
    #[error(
        "{program} of on_change did not end within {} s and was ended; raise client.on_change.timeout, or mend the \
         program", .limit.as_secs()
    )]
    Slow {
        /// The program.
        program: String,
        /// The limit.
        limit: Duration,
    },
    /// The thread that signals ended early.
    #[error("on_change broke off; it is tried again")]
    BrokenOff(#[from] tokio::task::JoinError),
}

/// Tells the service that there are new files.
pub(super) async fn tell(on_change: &OnChange, now: OffsetDateTime) -> Result<(), NotTold> {
    match &on_change.action {
        Action::Signal { pid_file, signal } => {
            let (pid_file, signal) = (pid_file.clone(), *signal);
            durable::blocking(move || send(&pid_file, signal, now)).await?
        }
        Action::Reload(unit) => reload(unit, on_change.timeout).await,
        Action::Command(command) => run(command, on_change.timeout).await,
    }
}

/// Reloads a systemd unit that is active. A unit that starts waits for this agent, and reads the new files then: a reload
/// would wait for that start. `systemctl is-active` ends with 3 for a unit that isn't active (systemctl(1), Exit status).
async fn reload(unit: &str, limit: Duration) -> Result<(), NotTold> {
    let systemctl =
        |words: &[&str]| ["systemctl"].iter().chain(words).map(|word| (*word).to_owned()).collect::<Vec<_>>();
    match run(&systemctl(&["is-active", "--quiet", unit]), limit).await {
        Ok(()) => run(&systemctl(&["reload", unit]), limit).await,
        Err(NotTold::Failed { status, .. }) if status.code() == Some(NOT_ACTIVE) => {
            tracing::info!("{unit} isn't active, so nobody is told");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Signals the process in the pid file. Without the file or the process nobody runs, and the next start reads the new files.
fn send(file: &Path, signal: Signal, now: OffsetDateTime) -> Result<(), NotTold> {
    // The time comes before the pid. A file that is written in between has a newer process, and the next look signals it.
    let written = std::fs::metadata(file).and_then(|metadata| metadata.modified());
    let Some((pid, pidfd)) = pinned(file)? else { return Ok(()) };
    let written = written.map_err(FileError::on("look at", file))?;
    let (named, number) = (file.to_owned(), pid.as_raw_nonzero().get());
    match started(number, now) {
        // A process that has ended meanwhile shows no start either.
        None if test_kill_process(pid) == Err(rustix::io::Errno::SRCH) => return Ok(()),
        None => return Err(NotTold::Hidden { file: named, pid: number }),
        Some(started) if SystemTime::from(started).duration_since(written).is_ok_and(|later| later > CLOCK_STEP) => {
            return Err(NotTold::Stale { file: named, pid: number });
        }
        Some(_) => {}
    }
    let unknown = || NotTold::Signal { pid: number, source: Errno::EINVAL.into() };
    let signal = rustix::process::Signal::from_named_raw(signal as i32).ok_or_else(unknown)?;
    match pidfd_send_signal(&pidfd, signal) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        sent => sent.map_err(|errno| NotTold::Signal { pid: number, source: errno.into() }),
    }
}

/// The process that the pid file names, pinned. `None`: nobody runs.
fn pinned(file: &Path) -> Result<Option<(rustix::process::Pid, OwnedFd)>, NotTold> {
    let Some(bytes) = durable::read_if_there(file, MAX_PID_FILE)? else {
        tracing::info!("there is no {}, so nobody is told", file.display());
        return Ok(None);
    };
    let pid = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse::<i32>().ok());
    // A pid of 0 or below means many processes (kill(2)), and pid 1 is the init process.
    let pid = pid.filter(|pid| *pid > 1).and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| NotTold::NoPid(file.to_owned()))?;
    match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => {
            let number = pid.as_raw_nonzero();
            tracing::info!("{} names pid {number}, which is gone, so nobody is told", file.display());
            Ok(None)
        }
        opened => {
            let opened =
                opened.map_err(|errno| NotTold::Signal { pid: pid.as_raw_nonzero().get(), source: errno.into() });
            Ok(Some((pid, opened?)))
        }
    }
}

/// The process group of a program, which ends with this value.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        // A group that has just ended is no failure.
        let _gone = self.0.map(|group| killpg(group, Signal::SIGKILL));
    }
}

/// Runs a program without a shell. Its errors go to the log of this process, and its other output goes nowhere.
async fn run(command: &[String], limit: Duration) -> Result<(), NotTold> {
    let [program, arguments @ ..] = command else { return Ok(()) };
    let named = || program.clone();
    let mut child = Command::new(program);
    // The end of a group of its own ends the program's children too.
    child.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).process_group(0);
    let mut child = child.spawn().map_err(|source| NotTold::Start { program: named(), source })?;
    let mut group = Group(child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw));
    let ended = tokio::time::timeout(limit, child.wait()).await;
    if ended.is_ok() {
        // What the program has left to run is meant to run on, and the number of the group may be used again.
        group.0 = None;
    }
    match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(NotTold::Failed { program: named(), status }),
        Ok(Err(source)) => Err(NotTold::Start { program: named(), source }),
        Err(_) => Err(NotTold::Slow { program: named(), limit }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    async fn told(action: Action) -> Result<(), NotTold> {
        told_within(Duration::from_mins(1), action).await
    }

    async fn told_within(timeout: Duration, action: Action) -> Result<(), NotTold> {
        tell(&OnChange { action, timeout }, Clock::System.now()).await
    }

    fn command(words: &[&str]) -> Action {
        Action::Command(words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[tokio::test]
    async fn a_command_that_fails_hangs_or_is_not_there_says_so_in_time() {
        told(command(&["true"])).await.unwrap();
        assert!(matches!(told(command(&["false"])).await, Err(NotTold::Failed { .. })));
        assert!(matches!(told(command(&["/nowhere/app"])).await, Err(NotTold::Start { .. })));
        let began = tokio::time::Instant::now();
        let slow = told_within(Duration::from_secs(1), command(&["sleep", "60"])).await;
        assert!(matches!(slow, Err(NotTold::Slow { .. })));
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", file.display());
        let slow = told_within(Duration::from_secs(5), command(&["sh", "-c", &script])).await;
        assert!(matches!(slow, Err(NotTold::Slow { .. })));
        ends(std::fs::read_to_string(&file).unwrap().trim().parse().unwrap()).await;
    }

    async fn ends(child: i32) {
        // Whoever collects the orphan may leave it a zombie for a moment.
        let ended = || {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat"));
            stat.map_or(true, |stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
        };
        tokio::time::timeout(Duration::from_secs(30), async {
            while !ended() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn a_signal_goes_to_one_process_or_to_none() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("app.pid");
        let signal = || told(Action::Signal { pid_file: pid_file.clone(), signal: Signal::SIGTERM });
        signal().await.unwrap();
        for many in ["0", "-1", "1", "", "words"] {
            std::fs::write(&pid_file, many).unwrap();
            assert!(matches!(signal().await, Err(NotTold::NoPid(_))), "{many:?}");
        }
        let mut sleeper = Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
        std::fs::write(&pid_file, format!("{}\n", sleeper.id().unwrap())).unwrap();
        signal().await.unwrap();
        assert!(!sleeper.wait().await.unwrap().success());
        // The number is free again, so nobody runs.
        signal().await.unwrap();
    }

    #[tokio::test]
    async fn a_process_that_started_after_the_pid_file_was_written_is_another_process() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("app.pid");
        let mut other = Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
        std::fs::write(&pid_file, other.id().unwrap().to_string()).unwrap();
        let written = |ago| {
            let file = std::fs::File::options().write(true).open(&pid_file).unwrap();
            file.set_modified(SystemTime::from(Clock::System.now() - ago)).unwrap();
        };
        let signal = || told(Action::Signal { pid_file: pid_file.clone(), signal: Signal::SIGTERM });
        written(Duration::from_hours(1));
        let refused = signal().await.unwrap_err();
        assert!(matches!(refused, NotTold::Stale { .. }), "{refused}");
        assert!(refused.to_string().contains("on_change signals nobody"), "{refused}");
        assert!(other.try_wait().unwrap().is_none(), "the other process got the signal");
        // The clock was set forward by some seconds after the process wrote the file.
        written(Duration::from_secs(20));
        signal().await.unwrap();
        assert!(!other.wait().await.unwrap().success());
    }

    /// An agent that ends gives up on the answer, and nobody else would end the program's children.
    #[tokio::test]
    async fn a_command_that_is_given_up_ends_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let script = format!("sleep 60 & echo $! > {0}.new; mv {0}.new {0}; wait", file.display());
        let on_change = OnChange { action: command(&["sh", "-c", &script]), timeout: Duration::from_mins(1) };
        let telling = tell(&on_change, Clock::System.now());
        let begun = async {
            while !file.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            told = telling => panic!("{told:?} before the command began"),
            () = begun => {}
        }
        ends(std::fs::read_to_string(&file).unwrap().trim().parse().unwrap()).await;
    }
}
