//! Services that connect by nothing but the keys of the connection document. Their connection is the code of
//! docs/clients.md itself.
//!
//! The programs are in `tests/services`. Each imports a function or a variable that the page's code fills.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use crate::markdown::{blocks, section};
use crate::process::{Process, tail};
use crate::tools::{nats_js, nats_py, workspace};
use crate::{Failure, eventually};

/// A service connects before it is ready. An interpreter starts slowly on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(30);
const STOP_WITHIN: Duration = Duration::from_secs(15);

/// The two forms of each section of the page, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `NATS_CA` is the bundle, as in the document.
    Variables,
    /// `NATS_CA` is the path of the bundle, as in `nats.env`.
    Files,
}

/// The code blocks of a section of docs/clients.md.
pub fn fences(heading: &str, language: &str) -> Result<Vec<String>, Failure> {
    let page = workspace().join("docs/clients.md");
    let text = std::fs::read_to_string(&page)
        .map_err(|error| Failure::new(format!("could not read {}", page.display())).because(error))?;
    let section = section(&text, heading).ok_or_else(|| Failure::new(format!("docs/clients.md has no {heading:?}")))?;
    Ok(blocks(section, language))
}

fn fence(heading: &str, language: &str, form: Form) -> Result<String, Failure> {
    let found = fences(heading, language)?.into_iter().nth(form as usize);
    found.ok_or_else(|| Failure::new(format!("{heading:?} of docs/clients.md lacks its {form:?}")))
}

/// A Python program of `tests/services`, copied into a directory together with the page's connection.
pub fn python(directory: &Path, form: Form, program: &str) -> Result<Command, Failure> {
    let indented = |line: &str| if line.is_empty() { String::new() } else { format!("    {line}") };
    let fence = fence("## Python", "python", form)?;
    let fence: Vec<_> = fence.lines().map(indented).collect();
    let connection = format!(
        "import os\nimport ssl\n\nimport nats\n\n\nasync def connect():\n{}\n    return nc\n",
        fence.join("\n")
    );
    write(directory, "connection.py", &connection)?;
    let mut command = Command::new(nats_py()?);
    command.arg(copied(directory, program)?);
    Ok(command)
}

/// The JavaScript responder, copied into a directory together with the page's connection. `None`: this machine lacks Node.js
/// or the packages.
pub fn javascript(directory: &Path, form: Form) -> Result<Option<Command>, Failure> {
    let Some((node, modules)) = nats_js() else { return Ok(None) };
    let fence = fence("## JavaScript", "javascript", form)?;
    let connection = format!(
        "import process from \"node:process\";\nimport {{ connect }} from \"@nats-io/transport-node\";\n\n{fence}\n\nexport {{ nc }};\n"
    );
    write(directory, "connection.mjs", &connection)?;
    // Node.js looks for packages beside the program, and in the directories above.
    std::os::unix::fs::symlink(modules, directory.join("node_modules"))
        .map_err(|error| Failure::new("could not link the packages of Node.js").because(error))?;
    let mut command = Command::new(node);
    command.arg(copied(directory, "responder.mjs")?);
    Ok(Some(command))
}

fn copied(directory: &Path, program: &str) -> Result<PathBuf, Failure> {
    let copy = directory.join(program);
    std::fs::copy(workspace().join("tests/services").join(program), &copy)
        .map_err(|error| Failure::new(format!("could not copy {program}")).because(error))?;
    Ok(copy)
}

fn write(directory: &Path, name: &str, text: &str) -> Result<(), Failure> {
    let path = directory.join(name);
    std::fs::write(&path, text)
        .map_err(|error| Failure::new(format!("could not write {}", path.display())).because(error))
}

/// Lets a program resolve names by a hosts file of its own, in the place of `/etc/hosts`. The program runs in a mount namespace
/// (unshare(1)), with the same pid. Write the hosts file in place, because the namespace keeps the file's inode.
///
/// `env_clear`, `env_remove` and stdio of `program` are not taken over. The caller is root, see [`own_names_obstacle`].
#[must_use]
pub fn with_hosts(program: &Command, hosts: &Path) -> Command {
    let program = program.as_std();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]).arg(hosts);
    command.arg(program.get_program()).args(program.get_args());
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(directory) = program.get_current_dir() {
        command.current_dir(directory);
    }
    command
}

/// Why this machine can't run a program with [`with_hosts`].
pub async fn own_names_obstacle() -> Option<&'static str> {
    let tried = Command::new("unshare").args(["--mount", "mount", "--bind", "/etc/hosts", "/etc/hosts"]).output().await;
    let can = tried.is_ok_and(|output| output.status.success());
    (!can).then_some("only root can give a program names of its own, in a mount namespace")
}

/// The document's keys for variables, as ECS picks them.
#[must_use]
pub fn variables(document: &Value) -> Vec<(String, String)> {
    let keys = document.as_object().into_iter().flatten().filter(|(key, _)| key.starts_with("NATS_"));
    keys.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// The variables of a `nats.env`, as systemd's `EnvironmentFile=` reads it.
pub fn environment_file(path: &Path) -> Result<Vec<(String, String)>, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(format!("could not read {}", path.display())).because(error))?;
    let lines = text.lines().filter_map(|line| line.split_once('='));
    Ok(lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// A running service.
#[derive(Debug)]
pub struct Service {
    process: Process,
}

impl Service {
    /// Starts a service with these variables and no others, and waits until it is ready. `home` gets the log.
    ///
    /// # Errors
    /// The service ends, or isn't ready within half a minute. The failure contains the end of its log.
    pub async fn start(
        name: &str,
        mut command: Command,
        home: &Path,
        variables: &[(String, String)],
    ) -> Result<Self, Failure> {
        let log = home.join(format!("{name}.log"));
        let mut process = Process::spawn(name, command.env_clear().envs(variables.iter().cloned()), &log)?;
        eventually(&format!("{name} ready"), READY_WITHIN, async || {
            if let Err(ended) = process.check_running() {
                return Ok(Err(ended));
            }
            let said = tail(&log, usize::MAX);
            if said.lines().any(|line| line.starts_with("ready")) { Ok(Ok(())) } else { Err(said) }
        })
        .await??;
        Ok(Self { process })
    }

    /// The process id, until the end is noticed.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// The last lines of the output.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        tail(self.process.log(), lines)
    }

    /// The port in the line `ready on port`.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        let said = self.log_tail(usize::MAX);
        said.lines().rev().find_map(|line| line.strip_prefix("ready on port ")?.parse().ok())
    }

    /// Lets the service drain, by SIGTERM, and checks that it ends well.
    pub async fn stop(self) -> Result<(), Failure> {
        let log = self.process.log().to_owned();
        let ended = self.process.stop(STOP_WITHIN).await?;
        let failure = || Failure::new(format!("a service ended with {ended}:\n{}", tail(&log, 20)));
        if ended.success() { Ok(()) } else { Err(failure()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_library_that_a_test_runs_has_both_forms_on_the_page() {
        for (heading, language) in [("## Python", "python"), ("## JavaScript", "javascript")] {
            assert_eq!(fences(heading, language).unwrap().len(), 2, "{heading}");
        }
        assert!(fences("## Cobol", "cobol").is_err());
    }

    #[test]
    fn variables_are_the_documents_texts_in_capitals() {
        let document = serde_json::json!({"NATS_URL": "tls://a", "version": 1, "cluster": "c", "NATS_X": {}});
        assert_eq!(variables(&document), [("NATS_URL".to_owned(), "tls://a".to_owned())]);
    }
}
