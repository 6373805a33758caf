//! Cargo, as this build of it was started, and the workspace around it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's root.
pub(crate) fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_path_buf()
}

/// Where `cargo install` puts what the machine doesn't have.
pub(crate) fn install_root(tools: &Path) -> PathBuf {
    tools.join("cargo")
}

/// A cargo command in the workspace that also finds the subcommands under [`install_root`].
pub(crate) fn command<const N: usize>(arguments: [&str; N]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(workspace()).env("PATH", path());
    command
}

fn path() -> OsString {
    let found = std::env::var_os("PATH").unwrap_or_default();
    let installed = install_root(&crate::setup::directory()).join("bin");
    std::env::join_paths(std::env::split_paths(&found).chain([installed])).unwrap_or(found)
}
