//! `cargo xtask deny`: fetches cargo-deny where it is missing, and becomes its check by `deny.toml`.

use std::process::ExitCode;

use crate::{Failure, cargo, setup};

/// Becomes the check.
pub(crate) fn run() -> Result<ExitCode, Failure> {
    setup::for_deny()?;
    // Duplicates of a crate are warnings, and the graph above each is long.
    let arguments = ["deny", "--locked", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"];
    Err(cargo::become_it(&mut cargo::command(arguments)))
}
