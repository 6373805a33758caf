//! Checks `systemd/` with `systemd-analyze`. `cargo xtask lab` shows the effect of the units, on machines that boot.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use harness::tools::workspace;
use serde_json::Value;

const AGENT: &str = "nats-tls-agent.service";
const CLIENT: &str = "nats-tls-client.service";
/// The highest exposure, in tenths, that `systemd-analyze security` may report. The unit explains its causes.
const EXPOSURE: &str = "13";

/// The units at their installed paths, below a directory that stands for `/`. Returns `None` without systemd.
fn installed() -> Option<tempfile::TempDir> {
    let units = Path::new("/usr/lib/systemd/system");
    if Command::new("systemd-analyze").arg("--version").output().is_err() || !units.join("sysinit.target").exists() {
        return None;
    }
    let root = tempfile::tempdir().unwrap();
    let directory = |path: &str| {
        let directory = root.path().join(path);
        fs::create_dir_all(&directory).unwrap();
        directory
    };
    let (vendor, own) = (directory("usr/lib/systemd/system"), directory("etc/systemd/system"));
    let drop_ins = directory("etc/systemd/system/nats-server.service.d");
    for entry in fs::read_dir(units).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.extension().is_some_and(|extension| extension == "target") {
            fs::copy(&entry, vendor.join(entry.file_name().unwrap())).unwrap();
        }
    }
    let ours = workspace().join("systemd");
    for unit in [AGENT, CLIENT] {
        fs::copy(ours.join(unit), vendor.join(unit)).unwrap();
    }
    for (file, place) in [("nats-server.service", own), ("nats-server.service.d/50-nats-tls-agent.conf", drop_ins)] {
        let path = ours.join(file);
        fs::copy(&path, place.join(path.file_name().unwrap())).unwrap();
    }
    for program in ["bin/kill", "bin/systemctl", "usr/bin/agent", "usr/bin/nats-server"] {
        let path = directory(program.rsplit_once('/').unwrap().0).join(program.rsplit_once('/').unwrap().1);
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    Some(root)
}

fn systemd_analyze(root: &Path, arguments: &[&str]) -> Output {
    Command::new("systemd-analyze").args(arguments).arg("--root").arg(root).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let Some(root) = installed() else { return };
    let verified = || systemd_analyze(root.path(), &["verify", "--man=no", AGENT, CLIENT, "nats-server.service"]);
    let output = verified();
    assert!(output.status.success() && said(&output).is_empty(), "{}", said(&output));

    let unit = root.path().join("usr/lib/systemd/system").join(AGENT);
    let misspelt = fs::read_to_string(&unit).unwrap().replace("WatchdogSec", "WatchDogSeconds");
    fs::write(&unit, misspelt).unwrap();
    let output = verified();
    assert!(said(&output).contains("WatchDogSeconds"), "{}", said(&output));
}

/// Upstream's hardened unit sets `PrivateUsers=yes`, and the kernel then hides nats-server's process from the agent.
#[test]
fn the_drop_in_takes_nats_server_out_of_a_user_namespace() {
    let Some(root) = installed() else { return };
    let unit = root.path().join("etc/systemd/system/nats-server.service");
    let hardened = fs::read_to_string(&unit).unwrap().replace("[Service]\n", "[Service]\nPrivateUsers=yes\n");
    fs::write(&unit, hardened).unwrap();
    let is_private = || {
        let arguments = ["security", "--offline=true", "--json=short", "--no-pager", "nats-server.service"];
        let output = systemd_analyze(root.path(), &arguments);
        let checks: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
        let checks = checks.as_array().unwrap().iter();
        checks
            .filter(|check| check["json_field"] == "PrivateUsers")
            .map(|check| check["set"] == true)
            .collect::<Vec<_>>()
    };
    assert_eq!(is_private(), [false]);
    fs::remove_dir_all(root.path().join("etc/systemd/system/nats-server.service.d")).unwrap();
    assert_eq!(is_private(), [true]);
}

/// `nats-server -t` creates nats-server's own directories, as a start of nats-server does.
#[test]
fn what_nats_server_makes_when_it_checks_a_configuration_the_agents_unit_lets_it_make() {
    let directory = tempfile::tempdir().unwrap();
    let (config, accounts) = (directory.path().join("resolver.conf"), directory.path().join("accounts"));
    fs::write(&config, format!("resolver {{ type: full, dir: {:?} }}\n", accounts.to_str().unwrap())).unwrap();
    let server = harness::tools::nats_server(harness::tools::NATS_SERVER).unwrap();
    assert!(Command::new(server).arg("-t").arg("-c").arg(&config).output().unwrap().status.success());
    assert!(accounts.is_dir(), "nats-server -t no longer creates the directory, so the unit needn't allow it");

    let ours = |file: &str| fs::read_to_string(workspace().join("systemd").join(file)).unwrap();
    let unit = ours(AGENT);
    let home = unit.lines().find_map(|line| line.strip_prefix("ReadWritePaths=-")).unwrap();
    assert!(unit.contains("\nUser=nats\n") && ours("sysusers.conf").contains(home), "{home} is not nats-server's");
    assert!(ours("tmpfiles.conf").contains(&format!("d {home} 0750 nats nats")), "{home} may be missing");
}

#[test]
fn the_agents_units_are_exposed_by_no_more_than_they_explain() {
    let Some(root) = installed() else { return };
    for name in [AGENT, CLIENT] {
        let arguments = ["security", "--offline=true", "--threshold", EXPOSURE, "--no-pager", name];
        let exposure = || systemd_analyze(root.path(), &arguments);
        let output = exposure();
        assert!(output.status.success(), "{}", said(&output));

        let unit = root.path().join("usr/lib/systemd/system").join(name);
        let relaxed = fs::read_to_string(&unit).unwrap().replace("CapabilityBoundingSet=\n", "");
        fs::write(&unit, relaxed).unwrap();
        assert!(!exposure().status.success(), "{name}");
    }
}
