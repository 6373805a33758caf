//! A nats-server that runs for a trial only.
//!
//! # No child outlives its trial
//!
//! - The end of a trial and a dropped trial both kill the child's whole process group, and wait for the child.
//! - Where the agent itself is killed, systemd kills the rest of the unit's control group (`KillMode=control-group`, the
//!   default).
//! - Without systemd, a guard kills the group: a shell in the group that reads a pipe of the agent. The kernel closes
//!   the pipe when the agent ends, in whatever way, and the shell kills the group. Without a shell on the machine,
//!   [`super::sweep`] ends what is left at the agent's next start. SIGPIPE ends a child only at its next log line,
//!   which may never come.
//!
//! `PR_SET_PDEATHSIG` would need code between fork and exec, which is unsafe, and the workspace forbids unsafe code. The
//! signal is bound to the forking *thread* besides (prctl(2)), and tokio's threads come and go.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open,
    pidfd_send_signal, prlimit, waitid,
};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{ChildStderr, Command};
use tokio::time::Instant;

use super::TrialTrouble;
use super::said::is_crash;

/// The longest line that is kept, in bytes. The rest of a longer line is read and dropped.
const MAX_LINE: usize = 4 * 1024;
/// The largest log of one trial, in bytes. A trial logs a few kilobytes.
const MAX_OUTPUT: usize = 4 * 1024 * 1024;
/// How many lines are kept for the reason of an end.
const KEPT_LINES: usize = 64;
/// The limit for the writable memory of a child, in bytes. 10,000 accounts take 340 MB.
///
/// Go's soft limit, `GOMEMLIMIT`, stays unset: JetStream takes it for the memory of the machine, and refuses accounts that
/// reserve more (seen on 2.10.26, 2.12.8 and 2.15.1).
const MAX_MEMORY: u64 = 1024 * 1024 * 1024;
/// The limit for one file of a child, in bytes. The largest file of a trial has some kilobytes.
const MAX_FILE: u64 = 64 * 1024 * 1024;
/// The limit for the processor time of a child, in seconds.
const MAX_CPU: u64 = 120;
/// How long the log of an ended child stays open at most. A process that it left behind may hold the pipe.
const LOG_CLOSES_WITHIN: Duration = Duration::from_millis(200);
/// How often a silent child is looked at. The end of its log reveals most ends at once, but a process that the child
/// left behind may hold the log open.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often the agent looks at a child that is about to end.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// How long a killed child takes at most. The kernel needs a millisecond or two.
const DIES_WITHIN: Duration = Duration::from_millis(500);

/// A child with its log. Dropping it kills the child and everything in the child's process group.
pub(super) struct Child {
    process: tokio::process::Child,
    guard: Option<tokio::process::Child>,
    group: Pid,
    pidfd: OwnedFd,
    log: Log,
}

/// What a child does next.
pub(super) enum Next {
    /// It logs a line, without the time and the pid.
    Line(String),
    /// It has ended. Its log is read to the end.
    Ended(ExitStatus),
}

impl Child {
    /// Starts the server with a configuration.
    pub(super) fn spawn(server: &Path, config: &Path, directory: &Path, cwd: &Path) -> Result<Self, TrialTrouble> {
        let failed = |source| TrialTrouble::Spawn { server: server.to_owned(), source };
        let mut command = Command::new(server);
        command.arg("-c").arg(config).current_dir(cwd).env_clear().env("TMPDIR", directory);
        // `creds: "~/…"` of a leaf node means the home directory of the user, and nats-server and the agent have the
        // same user.
        command.envs(std::env::var_os("HOME").map(|home| ("HOME", home)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // A group of its own: whatever the child starts is killed along with it.
        let mut child = command.process_group(0).kill_on_drop(true).spawn().map_err(failed)?;
        let gone = || failed(io::Error::other("the child has no process"));
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw).ok_or_else(gone)?;
        let stderr = child.stderr.take().ok_or_else(gone)?;
        limit(group);
        // Nobody has waited for the child yet, so no other process has its pid.
        let pidfd = pidfd_open(group, PidfdFlags::empty()).map_err(|errno| {
            _ = kill_process_group(group, Signal::KILL);
            failed(errno.into())
        })?;
        Ok(Self { process: child, guard: guard(group), group, pidfd, log: Log::of(stderr) })
    }

    /// The next line of the log, or the end of the child.
    pub(super) async fn next(&mut self) -> Result<Next, TrialTrouble> {
        loop {
            match tokio::time::timeout(LOOK_EVERY, self.log.line()).await {
                Ok(line) => match line? {
                    Some(line) => return Ok(Next::Line(line)),
                    None => break,
                },
                Err(_elapsed) if self.has_ended() => break,
                Err(_elapsed) => {}
            }
        }
        self.ended().await.map(Next::Ended)
    }

    /// Reads the rest of the log, and the status. A child that closes its log and runs on is killed.
    pub(super) async fn ended(&mut self) -> Result<ExitStatus, TrialTrouble> {
        let closes = Instant::now() + LOG_CLOSES_WITHIN;
        while let Ok(line) = tokio::time::timeout_at(closes, self.log.line()).await {
            if line?.is_none() {
                break;
            }
        }
        while !self.has_ended() && Instant::now() < closes {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.kill().await
    }

    /// Kills the child's process group, and waits for the child. A child that has ended keeps its status.
    pub(super) async fn kill(&mut self) -> Result<ExitStatus, TrialTrouble> {
        // The kill comes before the wait, because no other group has the number until then.
        _ = kill_process_group(self.group, Signal::KILL);
        if let Some(guard) = &mut self.guard {
            _ = guard.wait().await;
        }
        self.process.wait().await.map_err(|source| TrialTrouble::Child { action: "wait for", source })
    }

    /// Tells the child to read its configuration again.
    pub(super) fn hang_up(&self) -> Result<(), TrialTrouble> {
        pidfd_send_signal(&self.pidfd, Signal::HUP)
            .map_err(|errno| TrialTrouble::Child { action: "signal", source: errno.into() })
    }

    /// Whether the child has ended. The look is no wait, so the child keeps its pid.
    pub(super) fn has_ended(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        // An error means that there is no such child any more.
        !matches!(waitid(WaitId::PidFd(self.pidfd.as_fd()), look), Ok(None))
    }

    /// The last lines of the log, oldest first. The first line of a crash is always among them.
    pub(super) fn logged(&self) -> impl DoubleEndedIterator<Item = &str> + Clone {
        self.log.crash.iter().chain(&self.log.kept).map(String::as_str)
    }

    /// Forgets the lines so far.
    pub(super) fn forget(&mut self) {
        self.log.kept.clear();
    }
}

impl Drop for Child {
    /// The directory of the trial is removed next, so the child must be gone by then. The wait is short, and only a
    /// cancelled trial comes here with a child that runs.
    fn drop(&mut self) {
        if self.process.id().is_none() {
            return;
        }
        _ = kill_process_group(self.group, Signal::KILL);
        let mut left = Vec::from_iter(self.guard.as_mut());
        left.push(&mut self.process);
        let mut waited = Duration::ZERO;
        while waited < DIES_WITHIN {
            left.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
            if left.is_empty() {
                break;
            }
            std::thread::sleep(LOOK_AGAIN);
            waited += LOOK_AGAIN;
        }
    }
}

/// Starts a shell that kills the process group when the agent ends. It is in the group itself.
fn guard(group: Pid) -> Option<tokio::process::Child> {
    let mut shell = Command::new("/bin/sh");
    // The pid 0 means the caller's own process group (kill(2)), so a number that is reused is no danger.
    shell.args(["-c", "read -r _; kill -s KILL 0"]).current_dir("/").env_clear();
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = shell.process_group(group.as_raw_nonzero().get()).kill_on_drop(true).spawn();
    started.inspect_err(|error| tracing::debug!("could not start a guard of a trial: {error}")).ok()
}

/// Bounds what a child may take. A limit that the system refuses leaves the limits that the agent has itself.
///
/// The limits begin just after the start, because code before the exec would be unsafe. `RLIMIT_NPROC` counts all
/// processes of the user, nats-server's too, so the unit's `TasksMax=` bounds their number.
fn limit(child: Pid) {
    for (resource, most) in
        [(Resource::Data, MAX_MEMORY), (Resource::Fsize, MAX_FILE), (Resource::Cpu, MAX_CPU), (Resource::Core, 0)]
    {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        if let Err(error) = prlimit(Some(child), resource, limit) {
            tracing::debug!("could not set {resource:?} of a trial: {error}");
        }
    }
    // Where memory is short, the kernel kills the trial rather than nats-server.
    let file = format!("/proc/{}/oom_score_adj", child.as_raw_nonzero());
    if let Err(error) = std::fs::write(&file, "1000") {
        tracing::debug!("could not write {file}: {error}");
    }
}

/// The log of a child. The log is always read, because nats-server stops for ever at 64 KiB that nobody reads.
struct Log {
    stderr: BufReader<ChildStderr>,
    partial: Vec<u8>,
    total: usize,
    kept: VecDeque<String>,
    crash: Option<String>,
}

impl Log {
    fn of(stderr: ChildStderr) -> Self {
        let (partial, kept) = (Vec::new(), VecDeque::new());
        Self { stderr: BufReader::new(stderr), partial, total: 0, kept, crash: None }
    }

    /// The next line. `None` after the last. A cancelled call loses nothing.
    async fn line(&mut self) -> Result<Option<String>, TrialTrouble> {
        loop {
            let read = self.stderr.fill_buf().await;
            let bytes = read.map_err(|source| TrialTrouble::Child { action: "read the log of", source })?;
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(bytes.len(), |end| end + 1);
            let line = bytes.get(..end.unwrap_or(taken)).unwrap_or_default();
            let fits = line.len().min(MAX_LINE.saturating_sub(self.partial.len()));
            self.partial.extend_from_slice(line.get(..fits).unwrap_or_default());
            self.stderr.consume(taken);
            self.total += taken;
            if self.total > MAX_OUTPUT {
                return Err(TrialTrouble::Output);
            }
            let is_closed = taken == 0;
            if end.is_some() || (is_closed && !self.partial.is_empty()) {
                let line = without_prefix(&String::from_utf8_lossy(&std::mem::take(&mut self.partial))).to_owned();
                if self.crash.is_none() && is_crash(&line) {
                    self.crash = Some(line.clone());
                }
                if self.kept.len() == KEPT_LINES {
                    self.kept.pop_front();
                }
                self.kept.push_back(line.clone());
                return Ok(Some(line));
            }
            if is_closed {
                return Ok(None);
            }
        }
    }
}

/// A line of nats-server's log without `[pid] date time `, which `logtime` and `logtime_utc` change.
fn without_prefix(line: &str) -> &str {
    let line = line.trim_end();
    let rest = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    let rest = match rest {
        Some((pid, rest)) if pid.bytes().all(|byte| byte.is_ascii_digit()) => rest,
        _ => line,
    };
    let is_time = |word: &str| {
        word == "UTC"
            || word.bytes().all(|byte| byte.is_ascii_digit() || b"/:.".contains(&byte)) && word.contains(['/', ':'])
    };
    let mut rest = rest;
    while let Some((word, after)) = rest.split_once(' ') {
        if word.is_empty() || !is_time(word) {
            break;
        }
        rest = after;
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_told_without_its_time_and_pid() {
        for (line, told) in [
            ("[29720] 2026/11/29 02:43:32.201544 [FTL] Could not write pidfile", "[FTL] Could not write pidfile"),
            ("[7] [INF] Server is ready\r", "[INF] Server is ready"),
            ("[7] 2026/11/29 02:43:32.2 UTC [ERR] x", "[ERR] x"),
            ("2026/11/29 02:43:32 error opening file: open /l: denied", "error opening file: open /l: denied"),
            ("nats-server: 127.0.0.1:4222 is taken", "nats-server: 127.0.0.1:4222 is taken"),
            ("", ""),
        ] {
            assert_eq!(without_prefix(line), told);
        }
    }
}
