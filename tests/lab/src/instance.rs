//! An instance: a machine that boots the image with systemd-nspawn.
//!
//! Its disk is the image with a separate layer above. The layer belongs to the instance like an EBS volume, so a reboot
//! keeps it.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::nats_server::{monitor_over, remote_names};
use harness::process::{Process, tail};
use harness::{Failure, eventually};
use nix::sys::signal::Signal;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::process::Command;

use crate::command::{run, run_in};
use crate::{cgroup, children, network};

/// The exit code by which systemd-nspawn with `--keep-unit` requests another start of the machine (`nspawn.c`).
const REBOOT: i32 = 133;
const LEADER_WITHIN: Duration = Duration::from_secs(20);
/// A node that shuts down first moves its clients to other nodes, for a minute at most. Everything else ends
/// afterwards.
const OFF_WITHIN: Duration = Duration::from_secs(200);
/// nats-server's monitoring listener, as the agent configures it.
const MONITOR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8222);
/// The port of clients.
const CLIENTS: u16 = 4222;

/// A machine and its disk.
pub(crate) struct Instance {
    /// The instance id `i-…`, which is also the name of the network namespace.
    pub(crate) id: String,
    pub(crate) address: Ipv4Addr,
    /// The time of the last boot.
    pub(crate) booted: OffsetDateTime,
    directory: PathBuf,
    machine: Option<Machine>,
}

/// The processes of a machine that is switched on.
struct Machine {
    nspawn: Process,
    /// The machine's first process, by its pid in the lab.
    leader: u32,
}

impl Instance {
    /// Makes a machine that is switched off: a fresh disk over the image, and a network cable.
    pub(crate) async fn prepare(number: u8, lab: &Path) -> Result<Self, Failure> {
        let id = id(number);
        let directory = lab.join("instances").join(&id);
        for part in ["upper", "work", "root"] {
            let path = directory.join(part);
            std::fs::create_dir_all(&path)
                .map_err(|error| Failure::new(format!("could not make {}", path.display())).because(error))?;
        }
        // Paths are relative, because a comma or colon in an absolute path would be read as part of the options.
        let options = format!("lowerdir=root,upperdir=instances/{id}/upper,workdir=instances/{id}/work");
        let target = format!("instances/{id}/root");
        run_in(lab, "mount", ["-t", "overlay", "overlay", "-o", &options, &target]).await?;
        network::attach(&id, number).await?;
        let (address, booted) = (network::address(number), now());
        Ok(Self { id, address, booted, directory, machine: None })
    }

    /// Switches the machine on.
    pub(crate) async fn boot(&mut self) -> Result<(), Failure> {
        let groups = cgroup::create(&self.id)?;
        let nspawn = [
            "systemd-nspawn",
            "--register=no",
            "--keep-unit",
            "--boot",
            "--settings=no",
            "--console=read-only",
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
        ];
        let mut command = Command::new("sh");
        command
            // The shell enters the control groups before systemd-nspawn starts, because systemd-nspawn makes more
            // groups below its own group.
            .args([
                "-c",
                "for group in $GROUPS_TO_ENTER; do echo $$ >\"$group/cgroup.procs\" || exit; done; exec \"$@\"",
                "sh",
            ])
            .args(nspawn)
            .arg(format!("--machine={}", self.id))
            .arg(format!("--network-namespace-path={}", network::path(&self.id)))
            .arg(format!("--directory={}", self.root().display()))
            .env(
                "GROUPS_TO_ENTER",
                groups.iter().map(|group| group.display().to_string()).collect::<Vec<_>>().join(" "),
            )
            .process_group(0);
        self.booted = now();
        let mut nspawn = Process::spawn(&self.id, &mut command, &self.console())?;
        let what = format!("the first process of {}", self.id);
        let leader = eventually(&what, LEADER_WITHIN, async || {
            if let Err(ended) = nspawn.check_running() {
                return Ok(Err(ended));
            }
            let pid = nspawn.pid().ok_or("it has ended")?;
            leader_of(pid).map(Ok).ok_or_else(|| format!("{pid} has no such child"))
        });
        let leader = leader.await??;
        self.machine = Some(Machine { nspawn, leader });
        Ok(())
    }

    /// Reboots the machine, as its operator or EC2's RebootInstances does, and starts the machine again once the
    /// machine is off.
    pub(crate) async fn reboot(&mut self) -> Result<(), Failure> {
        self.run(["systemctl", "--no-block", "reboot"]).await?;
        let machine = self.machine.take().ok_or_else(|| self.off())?;
        let ended = machine.nspawn.ended(OFF_WITHIN).await?;
        if ended.code() != Some(REBOOT) {
            return Err(Failure::new(format!("{} ended with {ended} in place of a reboot", self.id)));
        }
        self.boot().await
    }

    /// Shuts the machine down as EC2 does: the power button, and then the operating system's own shutdown.
    pub(crate) async fn power_off(&mut self) -> Result<(), Failure> {
        let machine = self.machine.take().ok_or_else(|| self.off())?;
        machine.nspawn.signal(Signal::SIGTERM)?;
        let ended = machine.nspawn.ended(OFF_WITHIN).await?;
        if ended.success() {
            Ok(())
        } else {
            Err(Failure::new(format!("{} ended with {ended} in place of a power-off", self.id)))
        }
    }

    /// Cuts the power of the machine.
    pub(crate) async fn kill(&mut self) -> Result<(), Failure> {
        match self.machine.take() {
            Some(machine) => machine.nspawn.kill().await.map(drop),
            None => Ok(()),
        }
    }

    /// Runs a command inside, as root. Returns its output if the command succeeded.
    pub(crate) async fn run<const N: usize>(&self, command: [&str; N]) -> Result<String, Failure> {
        run("nsenter", self.enter()?.iter().map(String::as_str).chain(command)).await
    }

    /// The arguments of an nsenter into the machine.
    pub(crate) fn enter(&self) -> Result<[String; 3], Failure> {
        let machine = self.machine.as_ref().ok_or_else(|| self.off())?;
        Ok([format!("--target={}", machine.leader), "--all".into(), "--".into()])
    }

    /// The output of `agent status --json`, which exits with 1 if the node isn't healthy.
    pub(crate) async fn status(&self) -> Result<Value, Failure> {
        let text = self.run(["sh", "-c", "agent status --json || [ $? -eq 1 ]"]).await?;
        serde_json::from_str(&text)
            .map_err(|error| Failure::new(format!("{}: agent status is not JSON: {text}", self.id)).because(error))
    }

    /// The names of the servers to which this nats-server has routes.
    pub(crate) async fn routes(&self) -> Result<BTreeSet<String>, Failure> {
        let connected = network::connect(&self.id, MONITOR).await?;
        Ok(remote_names(&monitor_over(connected, "/routez").await?))
    }

    /// The journal of all boots, as JSON lines with these fields.
    pub(crate) async fn journal(&self, fields: &str) -> Result<String, Failure> {
        let directory = format!("--directory={}", self.root().join("var/log/journal").display());
        let fields = format!("--output-fields={fields}");
        run("journalctl", [directory.as_str(), "--quiet", "--no-pager", "--output=json", &fields]).await
    }

    /// The address of the client listener.
    pub(crate) fn clients(&self) -> SocketAddr {
        (self.address, CLIENTS).into()
    }

    /// The root of the disk.
    pub(crate) fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// The diagnostics of the instance, for a failure.
    pub(crate) async fn last_words(&self) -> String {
        let directory = format!("--directory={}", self.root().join("var/log/journal").display());
        let journal = run("journalctl", [directory.as_str(), "--quiet", "--no-pager", "--lines=60"]).await;
        let journal = journal.unwrap_or_else(|failure| failure.chain());
        format!("== {}: console\n{}\n== {}: journal\n{journal}", self.id, tail(&self.console(), 10), self.id)
    }

    fn console(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    fn off(&self) -> Failure {
        Failure::new(format!("{} is switched off", self.id))
    }
}

/// An instance id with 17 hexadecimal digits, as in EC2.
fn id(number: u8) -> String {
    format!("i-01ab{number:013x}")
}

/// The current time, from which timelines count.
#[expect(clippy::disallowed_methods, reason = "the journals have the machine's own time")]
pub(crate) fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// The first process of the machine that this systemd-nspawn runs.
fn leader_of(nspawn: u32) -> Option<u32> {
    children::of(nspawn).find(|(_, status)| is_leader(status)).map(|(pid, _)| pid)
}

/// Whether a child of systemd-nspawn has pid 1 in its namespace and is already systemd.
fn is_leader(status: &str) -> bool {
    children::last(status, "NSpid") == "1" && children::last(status, "Name") == "systemd"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_is_the_child_that_is_1_to_itself() {
        let status = |name: &str, own: &str| format!("Name:\t{name}\nPid:\t14\nPPid:\t11\nNSpid:\t14{own}\n");
        assert!(is_leader(&status("systemd", "\t1")));
        assert!(!is_leader(&status("systemd-nspawn", "")), "not in its namespace yet");
        assert!(!is_leader(&status("(sd-stubinit)", "\t1")), "not systemd yet");
    }

    #[test]
    fn an_instance_id_has_17_digits() {
        assert_eq!(id(1), "i-01ab0000000000001");
        assert_eq!(id(1).len(), 19);
    }
}
