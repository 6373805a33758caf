//! The built agent, as a daemon and as a single command.

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

/// The answer of one command.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The exit status. `None`: a signal ended the command.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Answer {
    /// Standard output, parsed as one JSON value.
    pub fn json(&self) -> Result<Value, Failure> {
        serde_json::from_str(self.stdout.trim()).map_err(|error| {
            Failure::new(format!(
                "the agent's answer (exit {:?}) is not JSON: {:?}, {}",
                self.code,
                self.stdout,
                self.stderr.trim()
            ))
            .because(error)
        })
    }
}

impl Agent {
    /// An agent without a process yet. A test passes `env!("CARGO_BIN_EXE_agent")` as its binary.
    pub fn new(binary: impl Into<PathBuf>, config: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Self {
        let environment = [
            // Outside EC2 nothing answers at the metadata address, and each request costs seconds.
            ("AWS_EC2_METADATA_DISABLED", "true"),
            // A node must not use the AWS settings of the person who runs the tests.
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

    /// Sets a variable for the daemon and every command. The last value of a name applies.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// [`Agent::env`] for an agent behind a reference.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Lets the agent ask instance metadata at this endpoint.
    pub fn set_metadata(&mut self, endpoint: &str) {
        self.set_env("AWS_EC2_METADATA_DISABLED", "false");
        self.set_env("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint);
    }

    /// Starts every later process through this program and its arguments, such as strace or setpriv. An empty launcher
    /// means a direct start.
    pub fn set_launcher(&mut self, launcher: Vec<String>) {
        self.launcher = launcher;
    }

    /// Sends a signal to the daemon. SIGHUP makes the daemon read its configuration again.
    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        self.daemon.as_ref().ok_or_else(|| Failure::new("the agent was not started"))?.signal(signal)
    }

    /// The path of the configuration file.
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

    /// Fails if the daemon isn't running. If the daemon ended by itself, the failure contains the end of its log.
    pub fn check_running(&mut self) -> Result<(), Failure> {
        self.daemon.as_mut().ok_or_else(|| Failure::new("the agent was not started"))?.check_running()
    }

    /// The daemon's process id, while the daemon runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().and_then(Process::pid)
    }

    /// Waits until the daemon ends by itself.
    pub async fn ended(&mut self, within: Duration) -> Result<ExitStatus, Failure> {
        self.take()?.ended(within).await
    }

    /// Sends SIGTERM, and waits for the end.
    pub async fn stop(&mut self) -> Result<ExitStatus, Failure> {
        self.take()?.stop(STOP_WITHIN).await
    }

    /// Sends SIGKILL, and waits for the end.
    pub async fn kill(&mut self) -> Result<ExitStatus, Failure> {
        self.take()?.kill().await
    }

    /// The output of `agent status --json`. The command exits with 1 if the state isn't healthy.
    ///
    /// # Errors
    /// The command has no status to tell.
    pub async fn status(&self) -> Result<Value, Failure> {
        let answer = self.run(&["status", "--json"], STATUS_WITHIN).await?;
        let status = answer.json()?;
        match status.get("error") {
            Some(error) => Err(Failure::new(format!("agent status ended with exit {:?}: {error}", answer.code))),
            None => Ok(status),
        }
    }

    /// The output of `agent renew --json`.
    ///
    /// # Errors
    /// The command exits with another code than 0. The failure contains its output.
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

    /// Runs one command to its end, with `--config` added.
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

/// Whether a variable of the tests' own environment must not reach an agent: AWS settings, and proxies, which can't
/// reach a loopback address.
fn is_strange(variable: &str) -> bool {
    variable.starts_with("AWS_") || variable.to_ascii_lowercase().ends_with("_proxy")
}
