//! `cargo xtask deny`: fetches cargo-deny if it is missing, and runs its check by `deny.toml`.

use std::process::ExitCode;

use crate::{Failure, cargo, setup};

/// Replaces this process by the check.
pub(crate) fn run() -> Result<ExitCode, Failure> {
    setup::for_deny()?;
    // Duplicate crates are only warnings, so their long inclusion graphs stay hidden.
    let arguments = ["deny", "--locked", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"];
    Err(cargo::become_it(&mut cargo::command(arguments)))
}
