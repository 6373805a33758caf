//! `client.on_change`: how a service hears of new files. Every way has a bound.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::process::Command;

use crate::config::client::{Action, OnChange};
use crate::state::durable::{self, FileError};

/// The largest pid file, in bytes.
const MAX_PID_FILE: u64 = 64;
/// The exit status of `systemctl is-active` for a unit that isn't active.
const NOT_ACTIVE: i32 = 3;

/// Why the service was not told of new files. The next look tries again.
#[derive(Debug, thiserror::Error)]
pub enum NotTold {
    /// The pid file can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The pid file holds no pid.
    #[error("{} holds no pid of a process, so on_change signals nobody; correct client.on_change.pid_file", .0.display())]
    NoPid(PathBuf),
    /// The signal was not sent.
    #[error("could not signal pid {pid} of on_change; run this agent as the user of the process, or as root")]
    Signal {
        /// The pid.
        pid: i32,
        /// The system's error.
        #[source]
        source: Errno,
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
}

/// Tells the service that there are new files.
pub(super) async fn tell(on_change: &OnChange) -> Result<(), NotTold> {
    match &on_change.action {
        Action::Signal { pid_file, signal } => send(pid_file, *signal),
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
fn send(pid_file: &Path, signal: Signal) -> Result<(), NotTold> {
    let Some(bytes) = durable::read_if_there(pid_file, MAX_PID_FILE)? else {
        tracing::info!("there is no {}, so nobody is told", pid_file.display());
        return Ok(());
    };
    let pid = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse::<i32>().ok());
    // A pid of 0 or below means many processes (kill(2)), and pid 1 is the init process.
    let pid = pid.filter(|pid| *pid > 1).ok_or_else(|| NotTold::NoPid(pid_file.to_owned()))?;
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(source) => Err(NotTold::Signal { pid, source }),
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
    let group = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    match tokio::time::timeout(limit, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(NotTold::Failed { program: named(), status }),
        Ok(Err(source)) => Err(NotTold::Start { program: named(), source }),
        Err(_) => {
            // A group that has just ended is no failure.
            let _gone = group.map(|group| killpg(group, Signal::SIGKILL));
            Err(NotTold::Slow { program: named(), limit })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(action: Action) -> Result<(), NotTold> {
        tell(&OnChange { action, timeout: Duration::from_secs(1) }).await
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
        assert!(matches!(told(command(&["sleep", "60"])).await, Err(NotTold::Slow { .. })));
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", file.display());
        assert!(matches!(told(command(&["sh", "-c", &script])).await, Err(NotTold::Slow { .. })));
        let child: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
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
    }
}
