//! `cargo xtask lab`: looks whether this machine can, builds, and then becomes the lab itself.

use std::fs;
use std::process::ExitCode;

use crate::{Failure, both, cargo, package, setup};

/// The exit code of a lab that can't be here. A failure has another one, so that CI can tell.
const SKIPPED: u8 = 3;

/// The programs that the lab starts, each with the Debian package that has it.
const PROGRAMS: [(&str, &str); 6] = [
    ("debootstrap", "debootstrap"),
    ("systemd-nspawn", "systemd-container"),
    ("journalctl", "systemd"),
    ("ip", "iproute2"),
    ("dnsmasq", "dnsmasq-base"),
    ("nsenter", "util-linux"),
];

/// Builds what instances install, and becomes the lab itself.
pub(crate) fn run(keep: bool) -> Result<ExitCode, Failure> {
    if let Some(obstacle) = obstacle() {
        eprintln!("skipped: {obstacle}");
        return Ok(ExitCode::from(SKIPPED));
    }
    // With the features that its dependencies have in the tests' build, so that nothing is compiled twice.
    both(|| cargo::build("lab", ["--workspace", "--bin", "lab"]), setup::for_demo)?;
    let (first, upgrade) = (package::build(1)?, package::build(2)?);
    let mut lab = cargo::built("lab")?;
    lab.arg("--package").arg(first.deb).arg("--upgrade").arg(upgrade.deb);
    if keep {
        lab.arg("--keep");
    }
    Err(cargo::become_it(&mut lab))
}

/// Why there can be no lab on this machine, and what would help.
fn obstacle() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !is_debian(&release) {
        return Some("the lab boots this machine's own release of Debian, and this is none".into());
    }
    if !nix::unistd::geteuid().is_root() {
        return Some("the lab takes root, to make network namespaces and mounts; run it as root".into());
    }
    let missing: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| !setup::is_in_path(program)).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        return Some(format!("the lab needs what is missing here; apt-get install {}", missing.join(" ")));
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
