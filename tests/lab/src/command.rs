//! Runs programs of this machine to their end.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;

use harness::Failure;
use tokio::process::Command;

/// Runs a program. Returns its output if the program succeeded.
pub(crate) async fn run<S: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Result<String, Failure> {
    finish(Command::new(program).args(arguments)).await
}

/// Like [`run`], in a directory where the program's relative paths begin.
pub(crate) async fn run_in<S: AsRef<OsStr>>(
    directory: &Path,
    program: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Result<String, Failure> {
    finish(Command::new(program).args(arguments).current_dir(directory)).await
}

async fn finish(command: &mut Command) -> Result<String, Failure> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    let shown = || format!("{:?}", command.as_std());
    let output = output.map_err(|error| Failure::new(format!("could not start {}", shown())).because(error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    Err(Failure::new(format!("{} ended with {}: {}", shown(), output.status, said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_that_fails_says_what_it_said() {
        assert_eq!(run("echo", ["a", "b"]).await.unwrap(), "a b\n");
        let failure = run("sh", ["-c", "echo no bridge here >&2; exit 3"]).await.unwrap_err();
        assert!(failure.to_string().ends_with("no bridge here"), "{failure}");
        assert!(run("no-such-command-anywhere", [""; 0]).await.is_err());
    }
}
