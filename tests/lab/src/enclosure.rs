//! Where the lab runs: in mount, network and process namespaces of its own, by unshare(1).
//!
//! So nothing can be left behind. Whatever the lab dies of, with its first process die all others in there, and the kernel
//! takes mounts, interfaces and namespaces away. What there is beside that are files below the lab's directory and empty
//! control groups, which the next start removes.

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

/// Says to this program that it is inside.
pub(crate) const INSIDE: &str = "--inside";

const STARTED_WITHIN: Duration = Duration::from_secs(10);
const ENDED_WITHIN: Duration = Duration::from_mins(1);
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// Starts this program anew inside, waits until it has ended, and takes away what it left.
pub(crate) async fn run(lab: &Path) -> Result<ExitCode, Failure> {
    clear(lab).await?;
    let own = std::env::current_exe().map_err(|error| Failure::new("could not find this program").because(error))?;
    let mut inside = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(own)
        .args(std::env::args_os().skip(1))
        .arg(INSIDE)
        // Its end tells the lab to end, whether we asked for it or were killed.
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

/// Removes what no namespace takes with it, once the last process of a lab that was killed is gone.
async fn clear(lab: &Path) -> Result<(), Failure> {
    let gone = async || cgroup::clear().map_err(|failure| failure.chain());
    eventually("the end of an earlier lab", GONE_WITHIN, gone).await?;
    remove(&lab.join("instances"))
}

/// From inside: the lab's first process as the rest of the machine sees it, and what comes when the lab is to end.
pub(crate) struct Inside {
    /// For nsenter.
    pub(crate) pid: u32,
    lifeline: BufReader<pipe::Receiver>,
}

impl Inside {
    /// Arrives.
    pub(crate) async fn enter() -> Result<Self, Failure> {
        let cannot = || Failure::new("could not read what is said to the lab");
        let lifeline = std::io::stdin().as_fd().try_clone_to_owned().and_then(pipe::Receiver::from_owned_fd);
        let mut lifeline = BufReader::new(lifeline.map_err(|error| cannot().because(error))?);
        let mut line = String::new();
        lifeline.read_line(&mut line).await.map_err(|error| cannot().because(error))?;
        let pid = line.trim().parse();
        let pid =
            pid.map_err(|_| Failure::new(format!("{INSIDE} is for the lab itself; start it by cargo xtask lab")))?;
        // For network namespaces by name, and for what systemd-nspawn keeps under /run/systemd.
        command::run("mount", ["-t", "tmpfs", "-o", "mode=755", "lab", "/run"]).await?;
        Ok(Self { pid, lifeline })
    }

    /// Waits until the lab is to end: by Ctrl-C, by SIGTERM, or as whoever started it is gone.
    pub(crate) async fn asked_to_end(&mut self) {
        let mut nothing = [0];
        tokio::select! {
            _ = self.lifeline.read(&mut nothing) => {}
            () = asked_to_end() => {}
        }
    }
}
