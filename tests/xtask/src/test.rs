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
    }
    // Last, so that its count is what a run ends with.
    steps.push(step("tests", tests.args(nextest)));
    Ok(conclude(&steps))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// `cargo test --doc` would take a minute to find nothing, and so isn't run.
    #[test]
    fn no_comment_holds_code_that_only_a_documentation_test_would_run() {
        let mut directories = ["agent", "tests"].map(|name| cargo::workspace().join(name)).to_vec();
        let mut fences = 0;
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    // What was built of the fuzz targets is none of ours.
                    directories.extend((!path.ends_with("target")).then_some(path));
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    fences += fences_of(&path);
                }
            }
        }
        assert!(fences >= 4, "{fences} fences");
    }

    /// How many there are, each of which must be text.
    fn fences_of(path: &Path) -> usize {
        let source = std::fs::read_to_string(path).unwrap();
        let comments = source.lines().filter_map(|line| line.trim().strip_prefix("//"));
        let fences = comments.filter_map(|comment| comment.trim_start_matches(['/', '!']).trim().strip_prefix("```"));
        let opening: Vec<&str> = fences.step_by(2).collect();
        assert!(opening.iter().all(|kind| *kind == "text"), "{}: {opening:?}", path.display());
        opening.len()
    }
}
