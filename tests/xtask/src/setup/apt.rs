//! Runs apt-get, which downloads from the distribution's own repositories.

use std::process::Command;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

use super::finish;
use crate::Stopwatch;

/// How long another process may hold apt's locks, in seconds. A first boot's own upgrade takes about a minute.
const LOCK_WITHIN: u64 = 120;

/// apt-get's message about a lock that another process holds.
const HELD: &str = "Could not get lock";

/// Reads the lists of packages anew, at most once in this process. A fresh container has no lists.
pub(super) fn update() -> Result<(), String> {
    static UPDATED: OnceLock<Result<(), String>> = OnceLock::new();
    UPDATED.get_or_init(|| while_held(|| finish(apt_get().arg("update")))).clone()
}

/// Installs packages and what they depend on.
pub(super) fn install(packages: &[&str]) -> Result<(), String> {
    while_held(|| finish(apt_get().args(["--yes", "--no-install-recommends", "install"]).args(packages)))
}

/// The command with which a person installs the packages.
pub(super) fn install_by_hand(packages: &[&str]) -> String {
    format!("sudo apt-get install --no-install-recommends {}", packages.join(" "))
}

/// Downloads the packages' files into a directory, and installs nothing.
pub(super) fn download(packages: &[&str], directory: &std::path::Path) -> Result<(), String> {
    while_held(|| finish(apt_get().arg("download").args(packages).current_dir(directory)))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-qq", "--option", &format!("DPkg::Lock::Timeout={LOCK_WITHIN}")]);
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
    command
}

/// Repeats a command while another apt-get holds a lock. apt's own time-out covers only dpkg's lock. A held lock of the
/// lists or the archives is an error at once.
fn while_held(mut attempt: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    let watch = Stopwatch::start();
    loop {
        match attempt() {
            Err(said) if said.contains(HELD) && watch.read() < Duration::from_secs(LOCK_WITHIN) => {
                sleep(Duration::from_secs(1));
            }
            ended => return ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_is_waited_for_and_another_error_is_not() {
        let mut answers = vec![Ok(()), Err(format!("E: {HELD} /var/lib/apt/lists/lock."))];
        assert_eq!(while_held(|| answers.pop().unwrap()), Ok(()));
        assert!(answers.is_empty());
        let mut answers = vec![Ok(()), Err("E: Unable to locate package".to_owned())];
        assert!(while_held(|| answers.pop().unwrap()).is_err());
        assert_eq!(answers.len(), 1);
    }
}
