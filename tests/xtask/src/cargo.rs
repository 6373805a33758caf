//! Runs cargo and the built programs of the workspace.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Failure;

/// The workspace's root.
pub(crate) fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_path_buf()
}

/// The directory where `cargo install` puts the missing tools.
pub(crate) fn install_root(tools: &Path) -> PathBuf {
    tools.join("cargo")
}

/// A cargo command in the workspace. Its `PATH` also has the subcommands that the set-up has fetched.
pub(crate) fn command<const N: usize>(arguments: [&str; N]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(workspace()).env("PATH", path());
    command
}

/// Builds programs of the workspace with these arguments of `cargo build`.
pub(crate) fn build<const N: usize>(what: &str, arguments: [&str; N]) -> Result<(), Failure> {
    println!("build: {what}");
    let status = command(["build", "--locked"]).args(arguments).status();
    let cannot = || Failure::new(format!("could not build {what}"));
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(cannot().because("see cargo's output above")),
        Err(error) => Err(cannot().because(error)),
    }
}

/// The command for a program that cargo has built beside this program.
pub(crate) fn built(name: &str) -> Result<Command, Failure> {
    let own = std::env::current_exe().map_err(|error| Failure::new("could not find this program").because(error))?;
    Ok(Command::new(own.with_file_name(name)))
}

/// Replaces this process by the program, which then gets the signals and sets the exit code. Returns only on failure.
pub(crate) fn become_it(program: &mut Command) -> Failure {
    let error = program.exec();
    Failure::new(format!("could not start {program:?}")).because(error)
}

fn path() -> OsString {
    let found = std::env::var_os("PATH").unwrap_or_default();
    let all = std::env::split_paths(&found).chain(crate::setup::subcommands());
    std::env::join_paths(all).unwrap_or(found)
}
