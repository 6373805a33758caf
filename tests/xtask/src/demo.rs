//! `cargo xtask demo`: sets up and builds, and then becomes the demo itself.

use std::process::ExitCode;

use crate::{Failure, both, cargo, setup};

/// Fetches and builds at the same time.
pub(crate) fn run(nodes: u8, keep: bool) -> Result<ExitCode, Failure> {
    // The workspace's: their dependencies have the features that they have in the tests' build, and nothing is compiled twice.
    let programs = ["--workspace", "--bin", "agent", "--bin", "demo"];
    both(|| cargo::build("agent and demo", programs), setup::for_demo)?;
    let mut demo = cargo::built("demo")?;
    demo.arg("--nodes").arg(nodes.to_string());
    if keep {
        demo.arg("--keep");
    }
    Err(cargo::become_it(&mut demo))
}
