//! `cargo xtask demo`: sets up, builds, and then becomes the demo itself.

use std::process::ExitCode;

use crate::setup::{self, Job};
use crate::{Failure, both, cargo};

/// Provides the packages, and then fetches and builds at the same time.
pub(crate) fn run(nodes: u8, keep: bool) -> Result<ExitCode, Failure> {
    setup::provide(&[Job::Demo])?;
    // The whole workspace gives the dependencies the features of the tests' build, so that nothing is compiled twice.
    let programs = ["--workspace", "--bin", "agent", "--bin", "demo"];
    both(|| cargo::build("agent and demo", programs), setup::for_demo)?;
    let mut demo = cargo::built("demo")?;
    demo.arg("--nodes").arg(nodes.to_string());
    if keep {
        demo.arg("--keep");
    }
    Err(cargo::become_it(&mut demo))
}
