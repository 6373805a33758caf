//! `cargo xtask lab`: asks whether this machine can hold a lab, sets up, builds, and then becomes the lab itself.

use std::fs;
use std::process::ExitCode;

use crate::setup::{self, Job};
use crate::{Failure, both, cargo, package};

/// The exit code where no lab is possible. A failure has another exit code, so that CI can tell the two apart.
const SKIPPED: u8 = 3;

/// Provides the packages, builds what instances install, and becomes the lab itself.
pub(crate) fn run(keep: bool) -> Result<ExitCode, Failure> {
    if let Some(obstacle) = obstacle() {
        eprintln!("skipped: {obstacle}");
        return Ok(ExitCode::from(SKIPPED));
    }
    setup::provide(&[Job::Lab])?;
    // The whole workspace gives the dependencies the features of the tests' build, so that nothing is compiled twice.
    both(|| cargo::build("lab", ["--workspace", "--bin", "lab"]), setup::for_demo)?;
    let (first, upgrade) = (package::build(1)?, package::build(2)?);
    let mut lab = cargo::built("lab")?;
    lab.arg("--package").arg(first.deb).arg("--upgrade").arg(upgrade.deb);
    if keep {
        lab.arg("--keep");
    }
    Err(cargo::become_it(&mut lab))
}

/// Why no lab is possible on this machine, and what would help. A missing package is no obstacle: the set-up installs it.
pub(crate) fn obstacle() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !is_debian(&release) {
        return Some("the lab boots this machine's own release of Debian, and this is none".into());
    }
    if !setup::is_root() {
        return Some("the lab takes root, to make network namespaces and mounts; run it as root".into());
    }
    let can = package::can_unshare(&["--mount", "--net", "--pid", "--fork"]);
    (!can)
        .then(|| "the lab takes namespaces, which can't be made here, as in a container without that privilege".into())
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
