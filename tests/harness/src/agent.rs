//! The built agent, as a daemon and for one command.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::process::Command;

use crate::Failure;
use crate::process::{Process, tail};

const STOP_WITHIN: Duration = Duration::from_secs(15);
const STATUS_WITHIN: Duration = Duration::from_secs(15);
const RENEW_WITHIN: Duration = Duration::from_mins(1);

/// One node's agent: its binary and configuration, and the daemon while it runs.
#[derive(Debug)]
pub struct Agent {
    binary: PathBuf,
    config: PathBuf,
    log: PathBuf,
    environment: Vec<(String, String)>,
    launcher: Vec<String>,
    daemon: Option<Process>,
}

/// What one command answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Answer {
    /// Standard output as one JSON value.
    pub fn json(&self) -> Result<Value, Failure> {
        serde_json::from_str(self.stdout.trim()).map_err(|error| {
            Failure::new(format!(
                "the agent's answer (exit {:?}) is no JSON: {:?}, {}",
                self.code,
                self.stdout,
                self.stderr.trim()
            ))
            .because(error)
        })
    }
}

impl Agent {
    /// An agent that doesn't run yet. A test passes `env!("CARGO_BIN_EXE_agent")` as its binary.
    pub fn new(binary: impl Into<PathBuf>, config: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Self {
        let environment = [
            // Off EC2 nobody answers at the metadata address, and asking costs seconds.
            ("AWS_EC2_METADATA_DISABLED", "true"),
            // What whoever runs the tests has for AWS is no node's.
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
            ("NO_COLOR", "1"),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Self {
            binary: binary.into(),
            config: config.into(),
            log: log.into(),
            environment,
            launcher: Vec::new(),
            daemon: None,
        }
    }

    /// Sets a variable for the daemon and every command; the last value of a name counts.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// [`Agent::env`] for an agent that is part of something already.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Has every process from now on started by this program and its arguments, such as strace or setpriv; by nothing
    /// else where it is empty.
    pub fn set_launcher(&mut self, launcher: Vec<String>) {
        self.launcher = launcher;
    }

    /// Sends the daemon a signal: SIGHUP has it read its configuration again.
    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        self.daemon.as_ref().ok_or_else(|| Failure::new("the agent was not started"))?.signal(signal)
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The last lines of the daemon's log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    /// Starts `agent run`, and returns at once.
    pub fn start(&mut self) -> Result<(), Failure> {
        let mut command = self.command(&["run"]);
        self.daemon = Some(Process::spawn("the agent", &mut command, &self.log)?);
        Ok(())
    }

    /// Fails when the daemon isn't running, with the end of its log if it ended by itself.
    pub fn check_running(&mut self) -> Result<(), Failure> {
        self.daemon.as_mut().ok_or_else(|| Failure::new("the agent was not started"))?.check_running()
    }

    /// The daemon's process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().and_then(Process::pid)
    }

    /// Waits until the daemon ends by itself.
    pub async fn ended(&mut self, within: Duration) -> Result<ExitStatus, Failure> {
        self.take()?.ended(within).await
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&mut self) -> Result<ExitStatus, Failure> {
        self.take()?.stop(STOP_WITHIN).await
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(&mut self) -> Result<ExitStatus, Failure> {
        self.take()?.kill().await
    }

    /// `agent status --json`; its exit status is 1 where the state isn't healthy.
    pub async fn status(&self) -> Result<Value, Failure> {
        self.run(&["status", "--json"], STATUS_WITHIN).await?.json()
    }

    /// `agent renew --json`.
    ///
    /// # Errors
    /// When it doesn't exit with 0, with all that it said.
    pub async fn renew(&self) -> Result<Value, Failure> {
        let answer = self.run(&["renew", "--json"], RENEW_WITHIN).await?;
        if answer.code == Some(0) {
            answer.json()
        } else {
            let said = format!("{}\n{}", answer.stdout.trim(), answer.stderr.trim());
            let code = answer.code.map_or("a signal".to_owned(), |code| format!("exit status {code}"));
            Err(Failure::new(format!("agent renew ended with {code}: {}", said.trim())))
        }
    }

    /// Runs one command to its end; `--config` is added.
    pub async fn run(&self, arguments: &[&str], within: Duration) -> Result<Answer, Failure> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let ended = tokio::time::timeout(within, command.output())
            .await
            .map_err(|_| Failure::new(format!("agent {} did not end within {within:?}", arguments.join(" "))))?;
        let output = ended.map_err(|error| {
            Failure::new(format!("could not run {} {}", self.binary.display(), arguments.join(" "))).because(error)
        })?;
        Ok(Answer {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match self.launcher.split_first() {
            Some((program, before)) => {
                let mut command = Command::new(program);
                command.args(before).arg(&self.binary);
                command
            }
            None => Command::new(&self.binary),
        };
        command.args(arguments).arg("--config").arg(&self.config);
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_strange(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn take(&mut self) -> Result<Process, Failure> {
        self.daemon.take().ok_or_else(|| Failure::new("the agent was not started"))
    }
}

/// A variable that would reach an agent from the tests' own environment: AWS settings, and proxies, through which no
/// loopback address is found.
fn is_strange(variable: &str) -> bool {
    variable.starts_with("AWS_") || variable.to_ascii_lowercase().ends_with("_proxy")
}
