//! `cargo xtask test`: sets up, builds, and runs every test, with one exit code.

use std::path::Path;
use std::process::ExitCode;

use nix::sys::statfs::{self, TMPFS_MAGIC};
use nix::sys::statvfs::{self, FsFlags};

use crate::setup::{self, Job};
use crate::step::{conclude, step};
use crate::{Failure, both, cargo};

/// The room for the files of all tests, in bytes.
const ROOM: u64 = 4 << 30;

/// Runs all parts, or with arguments for nextest only the build and the tests. A failed build ends the run. After another
/// failed part, the next part still runs.
pub(crate) fn run(nextest: &[String]) -> Result<ExitCode, Failure> {
    // The packages come before the build, so a missing package ends the run at once.
    setup::provide(&[Job::Test])?;
    // A fetch mostly waits for the network, so it slows the build little.
    let build = || Ok(step("build", &mut cargo::command(["test", "--locked", "--workspace", "--no-run"])));
    let mut steps = vec![both(build, setup::for_tests)?];
    let mut tests = cargo::command(["nextest", "run", "--locked", "--workspace"]);
    if let Some(directory) = memory_for_files() {
        tests.env("TMPDIR", directory);
    }
    if !steps[0].passed {
        return Ok(conclude(&steps));
    }
    if nextest.is_empty() {
        // A check of the whole workspace keeps all other features. So cargo checks only the dependents of aws-sdk-ec2 again.
        let without_ec2 = ["check", "--locked", "--workspace", "--all-targets", "--no-default-features"];
        steps.push(step("check without ec2", &mut cargo::command(without_ec2)));
    }
    // The tests come last, so a run ends with their count.
    steps.push(step("tests", tests.args(nextest)));
    Ok(conclude(&steps))
}

/// A file system in memory for the tests' files. The agent flushes every file that it writes, so on a disk the tests would wait
/// for most of their time. `None`: `TMPDIR` is set, or there is no such file system with enough room for programs and streams.
fn memory_for_files() -> Option<&'static Path> {
    let directory = Path::new("/dev/shm");
    let is_in_memory = statfs::statfs(directory).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC);
    let has_room = statvfs::statvfs(directory).is_ok_and(|found| {
        let free = found.blocks_available().saturating_mul(found.fragment_size());
        free >= ROOM && !found.flags().contains(FsFlags::ST_NOEXEC)
    });
    (std::env::var_os("TMPDIR").is_none() && is_in_memory && has_room).then_some(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run leaves out `cargo test --doc`, which would take a minute and find no test.
    #[test]
    fn no_comment_holds_code_that_only_a_documentation_test_would_run() {
        let mut directories = ["agent", "tests"].map(|name| cargo::workspace().join(name)).to_vec();
        let mut fences = 0;
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    // The build directory of the fuzz targets holds third-party sources.
                    directories.extend((!path.ends_with("target")).then_some(path));
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    fences += fences_of(&path);
                }
            }
        }
        assert!(fences >= 4, "{fences} fences");
    }

    /// Counts the opening fences of code blocks, and checks that each block is text.
    fn fences_of(path: &Path) -> usize {
        let source = std::fs::read_to_string(path).unwrap();
        let comments = source.lines().filter_map(|line| line.trim().strip_prefix("//"));
        let fences = comments.filter_map(|comment| comment.trim_start_matches(['/', '!']).trim().strip_prefix("```"));
        let opening: Vec<&str> = fences.step_by(2).collect();
        assert!(opening.iter().all(|kind| *kind == "text"), "{}: {opening:?}", path.display());
        opening.len()
    }
}
