//! Runs and times the parts of a long command. The parts after a failed part still run.

use std::process::{Command, ExitCode};
use std::time::Duration;

use crate::{Stopwatch, seconds};

/// A part of a command, with its result and its duration.
pub(crate) struct Step {
    name: String,
    pub(crate) passed: bool,
    took: Duration,
}

/// Runs a part. A command that can't be started counts as failed.
pub(crate) fn step(name: &str, command: &mut Command) -> Step {
    println!("\n== {name}");
    let watch = Stopwatch::start();
    let passed = match command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("error: could not run {command:?}: {error}");
            false
        }
    };
    Step { name: name.to_owned(), passed, took: watch.read() }
}

/// Prints the table of all steps. Succeeds if every step has passed.
pub(crate) fn conclude(steps: &[Step]) -> ExitCode {
    println!("\n{}", summary(steps));
    if steps.iter().all(|step| step.passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn summary(steps: &[Step]) -> String {
    let width = steps.iter().map(|step| step.name.len()).max().unwrap_or_default();
    let line = |step: &Step| {
        format!("{:width$}  {:6}  {:>8}", step.name, if step.passed { "ok" } else { "FAILED" }, seconds(step.took))
    };
    steps.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_shows_what_failed() {
        let took = Duration::from_millis(1250);
        let step = |name: &str, passed| Step { name: name.into(), passed, took };
        let summary = summary(&[step("build", true), step("all tests", false)]);
        assert!(summary.contains("build      ok         1.2 s"), "{summary}");
        assert!(summary.contains("all tests  FAILED"), "{summary}");
    }

    #[test]
    fn a_command_that_fails_or_is_missing_has_not_passed() {
        assert!(step("true", &mut Command::new("true")).passed);
        assert!(!step("false", &mut Command::new("false")).passed);
        assert!(!step("missing", &mut Command::new("no-such-command-anywhere")).passed);
    }
}
