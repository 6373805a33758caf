//! `cargo xtask demo`: sets up and builds, and then becomes the demo itself.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use crate::{Failure, both, cargo, setup};

/// Fetches and builds at the same time. The demo takes this process's place, so that signals and exit code are its own.
pub(crate) fn run(nodes: u8, keep: bool) -> Result<ExitCode, Failure> {
    both(build, setup::for_demo)?;
    let own = std::env::current_exe().map_err(|error| Failure::new("could not find this program").because(error))?;
    let mut demo = Command::new(own.with_file_name("demo"));
    demo.arg("--nodes").arg(nodes.to_string());
    if keep {
        demo.arg("--keep");
    }
    let error = demo.exec();
    Err(Failure::new(format!("could not start {demo:?}")).because(error))
}

/// Agent and harness in one go: their dependencies get the features that they have in the tests' build, and nothing is
/// compiled twice.
fn build() -> Result<(), Failure> {
    println!("build: agent and demo");
    let packages = ["build", "--locked", "--package", "nats-tls-agent", "--package", "harness"];
    let status = cargo::command(packages).args(["--bin", "agent", "--bin", "demo"]).status();
    let cannot = || Failure::new("could not build agent and demo");
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(cannot().because("see what cargo says above")),
        Err(error) => Err(cannot().because(error)),
    }
}
