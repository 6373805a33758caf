//! The lab's enclosure: its own mount, network and process namespaces, made by unshare(1).
//!
//! The lab cleans up after any end. The kernel ends all other processes when the lab's first process ends, for any
//! reason. The kernel then removes mounts, interfaces and namespaces. Only files below the lab's directory and empty
//! control groups remain. The next start removes these files and groups.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use harness::process::asked_to_end;
use harness::{Failure, eventually};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use crate::image::remove;
use crate::{cgroup, children, command};

/// The option by which this program knows that it runs inside.
pub(crate) const INSIDE: &str = "--inside";

const STARTED_WITHIN: Duration = Duration::from_secs(10);
const ENDED_WITHIN: Duration = Duration::from_mins(1);
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// Starts this program again inside the enclosure, waits for its end, and removes its files and control groups.
pub(crate) async fn run(lab: &Path) -> Result<ExitCode, Failure> {
    clear(lab).await?;
    let own = std::env::current_exe().map_err(|error| Failure::new("could not find this program").because(error))?;
    let mut inside = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(own)
        .args(std::env::args_os().skip(1))
        .arg(INSIDE)
        // The end of this pipe ends the lab. The pipe ends on request, and also if this program is killed.
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Failure::new("could not start unshare").because(error))?;
    let ended = watch(&mut inside).await;
    clear(lab).await?;
    ended
}

async fn watch(inside: &mut Child) -> Result<ExitCode, Failure> {
    let cannot = |what: &str| Failure::new(format!("could not {what} the lab"));
    let mut lifeline = inside.stdin.take().ok_or_else(|| cannot("keep a line to"))?;
    let unshare = inside.id().ok_or_else(|| cannot("find the process of"))?;
    let pid = eventually("the lab's first process", STARTED_WITHIN, async || {
        children::of(unshare).next().map(|(pid, _)| pid).ok_or_else(|| "not yet".to_owned())
    });
    let pid = pid.await?;
    lifeline.write_all(format!("{pid}\n").as_bytes()).await.map_err(|error| cannot("write to").because(error))?;
    let status = tokio::select! {
        status = inside.wait() => status,
        () = asked_to_end() => {
            drop(lifeline);
            match tokio::time::timeout(ENDED_WITHIN, inside.wait()).await {
                Ok(status) => status,
                Err(late) => {
                    inside.kill().await.map_err(|error| cannot("kill").because(error))?;
                    return Err(cannot("end").because(late));
                }
            }
        }
    };
    let status = status.map_err(|error| cannot("wait for").because(error))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Removes the files and control groups of a lab, once the last process of a killed lab is gone.
async fn clear(lab: &Path) -> Result<(), Failure> {
    let gone = async || cgroup::clear().map_err(|failure| failure.chain());
    eventually("the end of an earlier lab", GONE_WITHIN, gone).await?;
    remove(&lab.join("instances"))
}

/// The view from inside: the pid of the lab's first process outside, and the pipe that signals the lab's end.
pub(crate) struct Inside {
    /// The pid for nsenter.
    pub(crate) pid: u32,
    lifeline: BufReader<pipe::Receiver>,
}

impl Inside {
    /// Reads the first process's pid from outside, and mounts `/run`.
    pub(crate) async fn enter() -> Result<Self, Failure> {
        let cannot = || Failure::new("could not read the standard input of the lab");
        let lifeline = std::io::stdin().as_fd().try_clone_to_owned().and_then(pipe::Receiver::from_owned_fd);
        let mut lifeline = BufReader::new(lifeline.map_err(|error| cannot().because(error))?);
        let mut line = String::new();
        lifeline.read_line(&mut line).await.map_err(|error| cannot().because(error))?;
        let pid = line.trim().parse();
        let pid = pid.map_err(|_| Failure::new(format!("{INSIDE} is for the lab itself; run cargo xtask lab")))?;
        // The mount is for named network namespaces, and for systemd-nspawn's files under /run/systemd.
        command::run("mount", ["-t", "tmpfs", "-o", "mode=755", "lab", "/run"]).await?;
        Ok(Self { pid, lifeline })
    }

    /// Waits for the end of the lab: Ctrl-C, SIGTERM, or the end of the process that started it.
    pub(crate) async fn asked_to_end(&mut self) {
        let mut nothing = [0];
        tokio::select! {
            _ = self.lifeline.read(&mut nothing) => {}
            () = asked_to_end() => {}
        }
    }
}
