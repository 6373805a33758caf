//! `cargo xtask lab`: checks that this machine can hold a lab, sets up, builds, and then runs the lab in its own place.

use std::fs;
use std::process::ExitCode;

use crate::setup::{self, Job};
use crate::{Failure, both, cargo, package};

/// The exit code on a machine that can't hold a lab. A failure has another exit code, so CI can tell the two apart.
const SKIPPED: u8 = 3;

/// Provides the packages, builds what instances install, and replaces this process by the lab.
pub(crate) fn run(keep: bool) -> Result<ExitCode, Failure> {
    if let Some(obstacle) = obstacle() {
        eprintln!("skipped: {obstacle}");
        return Ok(ExitCode::from(SKIPPED));
    }
    setup::provide(&[Job::Lab])?;
    // A build of the whole workspace gives dependencies the features of the tests' build. So cargo compiles each once.
    both(|| cargo::build("lab", ["--workspace", "--bin", "lab"]), setup::for_lab)?;
    let [first, upgrade] = package::for_trial()?;
    let mut lab = cargo::built("lab")?;
    lab.arg("--package").arg(first.deb).arg("--upgrade").arg(upgrade.deb);
    if keep {
        lab.arg("--keep");
    }
    Err(cargo::become_it(&mut lab))
}

/// Why this machine can't hold a lab, and what would help. The set-up installs missing packages, so none is an obstacle.
pub(crate) fn obstacle() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !is_debian(&release) {
        return Some("the lab boots this machine's own release of Debian, and this machine doesn't run Debian".into());
    }
    if !setup::is_root() {
        return Some("the lab needs root to make network namespaces and mounts; run it as root".into());
    }
    let can = package::can_unshare(&["--mount", "--net", "--pid", "--fork"]);
    (!can).then(|| "the lab needs namespaces, and this machine or container lacks the privilege to make them".into())
}

fn is_debian(release: &str) -> bool {
    release.lines().any(|line| line == "ID=debian")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_is_told_from_what_is_like_it() {
        assert!(is_debian("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n"));
        assert!(!is_debian("ID=ubuntu\nID_LIKE=debian\n"));
    }
}
