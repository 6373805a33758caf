//! A child process with its output in a file. Dropping it kills the process.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::Failure;

/// Returns on Ctrl-C, or on the SIGTERM of a caller that no longer waits.
pub async fn asked_to_end() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => _ = terminate.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}

/// A running child process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the command with standard output and error appended to `log`, and without standard input. The child stays
    /// in the caller's process group, so a signal to the group reaches the child.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self, Failure> {
        let open = || {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(log)
                .map_err(|error| Failure::new(format!("could not open the log {}", log.display())).because(error))
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(open()?)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Failure::new(format!("could not start {name} ({command:?})")).because(error))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_path_buf() })
    }

    /// The process id, until the end is noticed.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The path of the output.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Fails if the process has ended, with the end of its log.
    pub fn check_running(&mut self) -> Result<(), Failure> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(Failure::new(format!("{} ended by itself ({status}):\n{}", self.name, tail(&self.log, 20))))
            }
            Err(error) => Err(Failure::new(format!("could not check {}", self.name)).because(error)),
        }
    }

    /// Sends a signal. The process is a child that isn't reaped yet, so its id can't belong to another process.
    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        let pid = self
            .pid()
            .and_then(|pid| Some(Pid::from_raw(i32::try_from(pid).ok()?)))
            .ok_or_else(|| Failure::new(format!("could not signal {}: it has ended", self.name)))?;
        kill(pid, signal)
            .map_err(|error| Failure::new(format!("could not send {signal:?} to {}", self.name)).because(error))
    }

    /// Sends SIGTERM, and waits for the end. A second signal would kill a Python program whose interpreter ends already.
    ///
    /// # Errors
    /// The process still runs after `within`. It is then killed.
    pub async fn stop(self, within: Duration) -> Result<ExitStatus, Failure> {
        if self.pid().is_some() {
            self.signal(Signal::SIGTERM)?;
        }
        self.ended(within).await
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The process still runs after `within`. It is then killed.
    pub async fn ended(mut self, within: Duration) -> Result<ExitStatus, Failure> {
        if let Ok(ended) = tokio::time::timeout(within, self.child.wait()).await {
            return self.status(ended);
        }
        let failure = format!("{} did not end within {within:?}; killed it:\n{}", self.name, tail(&self.log, 20));
        self.kill().await?;
        Err(Failure::new(failure))
    }

    /// Waits for the end, for so long at most.
    pub(crate) async fn ends(&mut self, within: Duration) {
        let _ended = tokio::time::timeout(within, self.child.wait()).await;
    }

    /// Sends SIGKILL, and waits for the end.
    pub async fn kill(mut self) -> Result<ExitStatus, Failure> {
        if self.pid().is_some() {
            self.signal(Signal::SIGKILL)?;
        }
        let ended = self.child.wait().await;
        self.status(ended)
    }

    fn status(&self, ended: std::io::Result<ExitStatus>) -> Result<ExitStatus, Failure> {
        ended.map_err(|error| Failure::new(format!("could not wait for {}", self.name)).because(error))
    }
}

/// The CPU time in ms of all threads of a process, ended threads included: the fields utime and stime of proc(5).
pub fn cpu_time(pid: u32) -> Result<u64, Failure> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path)
        .map_err(|error| Failure::new(format!("could not read {path}")).because(error))?;
    let (_, fields) = stat.rsplit_once(')').ok_or_else(|| Failure::new(format!("{path} has other fields")))?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>();
    // Linux shows 100 ticks in a second to programs on every architecture that the agent is built for.
    ticks.map(|ticks| ticks * 10).map_err(|error| Failure::new(format!("{path} has other fields")).because(error))
}

/// The last lines of a log, or the reason why the log can't be read.
#[must_use]
pub fn tail(log: &Path, lines: usize) -> String {
    match std::fs::read(log) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("({}: {error})", log.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &Path) -> Process {
        Process::spawn("a shell", Command::new("sh").args(["-c", script]), log).unwrap()
    }

    #[tokio::test]
    async fn a_process_that_ignores_sigterm_is_killed_and_reported() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let process = shell("trap '' TERM; echo ready; while :; do sleep 0.05; done", &log);
        crate::eventually("its trap", Duration::from_secs(5), async || {
            if tail(&log, 1) == "ready" { Ok(()) } else { Err(tail(&log, 1)) }
        })
        .await
        .unwrap();
        let failure = process.stop(Duration::from_millis(200)).await.unwrap_err();
        assert!(failure.to_string().contains("killed"), "{failure}");
    }

    #[tokio::test]
    async fn an_end_of_its_own_is_reported_with_the_end_of_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = shell("echo the last word; exit 3", &directory.path().join("log"));
        let failure = crate::eventually("its end", Duration::from_secs(5), async || match process.check_running() {
            Ok(()) => Err("runs".to_owned()),
            Err(failure) => Ok(failure),
        });
        assert!(failure.await.unwrap().to_string().contains("the last word"));
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        std::fs::write(&log, "one\ntwo\nthree\n").unwrap();
        assert_eq!(tail(&log, 2), "two\nthree");
        assert!(tail(&directory.path().join("none"), 2).contains("none"));
    }
}
