//! `cargo xtask test`: everything, set-up included, with one exit code for all of it.

use std::process::{Command, ExitCode};
use std::time::Duration;

use crate::{Failure, Stopwatch, both, cargo, seconds, setup};

/// One part and how it went.
struct Step {
    name: &'static str,
    passed: bool,
    took: Duration,
}

/// Runs all parts, or with arguments for nextest its run alone. A part that fails doesn't keep the next ones from
/// running, except that nothing runs that couldn't be built.
pub(crate) fn run(nextest: &[String]) -> Result<ExitCode, Failure> {
    // Fetching is mostly waiting, so it costs the build little.
    let build = || Ok(step("build", &mut cargo::command(["test", "--locked", "--workspace", "--no-run"])));
    let mut steps = vec![both(build, setup::everything)?];
    let mut tests = cargo::command(["nextest", "run", "--locked", "--workspace"]);
    if !steps[0].passed {
        println!("\n{}", summary(&steps));
        return Ok(ExitCode::FAILURE);
    }
    if nextest.is_empty() {
        // The whole workspace, so that only what lies above aws-sdk-ec2 is checked anew.
        let without_ec2 = ["check", "--locked", "--workspace", "--all-targets", "--no-default-features"];
        steps.push(step("check without ec2", &mut cargo::command(without_ec2)));
        steps.push(step("documentation", &mut cargo::command(["test", "--locked", "--workspace", "--doc"])));
    }
    // Last, so that its count is what a run ends with.
    steps.push(step("tests", tests.args(nextest)));
    println!("\n{}", summary(&steps));
    let passed = steps.iter().all(|step| step.passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn step(name: &'static str, command: &mut Command) -> Step {
    println!("\n== {name}");
    let watch = Stopwatch::start();
    let passed = match command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("error: could not run {command:?}: {error}");
            false
        }
    };
    Step { name, passed, took: watch.read() }
}

fn summary(steps: &[Step]) -> String {
    let line = |step: &Step| {
        format!("{:17}  {:6}  {:>8}", step.name, if step.passed { "ok" } else { "FAILED" }, seconds(step.took))
    };
    steps.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_shows_what_failed() {
        let took = Duration::from_millis(1250);
        let steps = [Step { name: "build", passed: true, took }, Step { name: "tests", passed: false, took }];
        let summary = summary(&steps);
        assert!(summary.contains("build              ok         1.2 s"), "{summary}");
        assert!(summary.contains("tests              FAILED"), "{summary}");
    }

    #[test]
    fn a_command_that_fails_or_is_missing_has_not_passed() {
        assert!(step("true", &mut Command::new("true")).passed);
        assert!(!step("false", &mut Command::new("false")).passed);
        assert!(!step("missing", &mut Command::new("no-such-command-anywhere")).passed);
    }
}
