//! `cargo xtask test`: everything, set-up included, with one exit code for all of it.

use std::process::ExitCode;

use crate::step::{conclude, step};
use crate::{Failure, both, cargo, setup};

/// Runs all parts, or with arguments for nextest its run alone. A part that fails doesn't keep the next ones from
/// running, except that nothing runs that couldn't be built.
pub(crate) fn run(nextest: &[String]) -> Result<ExitCode, Failure> {
    // Fetching is mostly waiting, so it costs the build little.
    let build = || Ok(step("build", &mut cargo::command(["test", "--locked", "--workspace", "--no-run"])));
    let mut steps = vec![both(build, setup::everything)?];
    let mut tests = cargo::command(["nextest", "run", "--locked", "--workspace"]);
    if !steps[0].passed {
        return Ok(conclude(&steps));
    }
    if nextest.is_empty() {
        // The whole workspace, so that only what lies above aws-sdk-ec2 is checked anew.
        let without_ec2 = ["check", "--locked", "--workspace", "--all-targets", "--no-default-features"];
        steps.push(step("check without ec2", &mut cargo::command(without_ec2)));
        steps.push(step("documentation", &mut cargo::command(["test", "--locked", "--workspace", "--doc"])));
    }
    // Last, so that its count is what a run ends with.
    steps.push(step("tests", tests.args(nextest)));
    Ok(conclude(&steps))
}
