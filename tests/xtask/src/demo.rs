//! `cargo xtask demo`: sets up, builds, and then runs the demo in its own place.

use std::process::ExitCode;

use crate::setup::{self, Job};
use crate::{Failure, both, cargo};

/// Provides the packages, and then fetches and builds at the same time.
pub(crate) fn run(nodes: u8, keep: bool) -> Result<ExitCode, Failure> {
    setup::provide(&[Job::Demo])?;
    // A build of the whole workspace gives dependencies the features of the tests' build. So cargo compiles each once.
    let programs = ["--workspace", "--bin", "agent", "--bin", "demo"];
    both(|| cargo::build("agent and demo", programs), setup::for_demo)?;
    let mut demo = cargo::built("demo")?;
    demo.arg("--nodes").arg(nodes.to_string());
    if keep {
        demo.arg("--keep");
    }
    Err(cargo::become_it(&mut demo))
}
