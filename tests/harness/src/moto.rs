//! Moto, the AWS of the tests: real signatures, Auto Scaling groups and secrets, over AWS's own wire protocols.
//!
//! Moto ignores some semantics: every leaf lives 365 days, idempotency tokens are ignored, and no request is ever in
//! progress. Tests of those semantics script their own answers.

use std::fs::File;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;

use crate::process::tail;
use crate::{Failure, tools};

/// Moto listens once it has imported all of boto.
const START_TIMEOUT: Duration = Duration::from_mins(1);
const COMMAND_TIMEOUT: Duration = Duration::from_mins(1);

/// The Region of moto's resources.
pub const REGION: &str = "eu-west-1";

/// A running moto, which is killed when dropped.
#[derive(Debug)]
pub struct Moto {
    endpoint: String,
    /// One command at a time. `None`: nobody has read the answer to an earlier command.
    pipes: Mutex<Option<Pipes>>,
    _process: Child,
    _directory: tempfile::TempDir,
}

/// The pipes to `moto_fleet.py`.
#[derive(Debug)]
struct Pipes {
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

/// An instance of an Auto Scaling group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The instance id, `i-…`.
    pub id: String,
    /// The private address, which is a loopback address.
    pub address: IpAddr,
    /// The lifecycle state.
    pub state: String,
}

/// An active root CA.
#[derive(Clone, Debug)]
pub struct Ca {
    /// The CA's ARN.
    pub arn: String,
    /// The CA's certificate in PEM.
    pub pem: String,
}

/// One version of a secret.
#[derive(Clone, Debug)]
pub struct SecretVersion {
    /// The secret's ARN.
    pub arn: String,
    /// The `VersionId`.
    pub version: String,
}

impl Moto {
    /// Starts moto on a free loopback port and waits until it listens.
    ///
    /// # Errors
    /// Moto is not installed, ends, or doesn't listen within a minute.
    pub async fn start() -> Result<Self, Failure> {
        let directory =
            tempfile::tempdir().map_err(|error| Failure::new("no directory for moto's log").because(error))?;
        let log = directory.path().join("moto.log");
        let errors = File::create(&log).map_err(|error| Failure::new("could not create moto's log").because(error))?;
        let mut process = Command::new(tools::moto_python()?)
            .arg(tools::workspace().join("tests/harness/moto_fleet.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Failure::new("could not start moto").because(error))?;
        let pipes = process.stdin.take().zip(process.stdout.take());
        let (commands, answers) = pipes.ok_or_else(|| Failure::new("moto has no pipes"))?;
        let mut pipes = Pipes { commands, answers: BufReader::new(answers).lines() };
        let endpoint = tokio::time::timeout(START_TIMEOUT, pipes.answers.next_line()).await;
        let endpoint = endpoint.ok().and_then(Result::ok).flatten();
        let endpoint = endpoint.and_then(|line| serde_json::from_str(&line).ok());
        let endpoint = endpoint.ok_or_else(|| Failure::new(format!("moto did not start:\n{}", tail(&log, 20))))?;
        Ok(Self { endpoint, pipes: Mutex::new(Some(pipes)), _process: process, _directory: directory })
    }

    /// The endpoint of every service, the value for `AWS_ENDPOINT_URL`.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Launches an Auto Scaling group of `size` instances with loopback addresses, all in service.
    pub async fn launch(&self, group: &str, size: usize) -> Result<Vec<Instance>, Failure> {
        instances(&self.run("launch", (group, size)).await?)
    }

    /// Sets the group's desired capacity. Moto starts and terminates instances immediately.
    pub async fn resize(&self, group: &str, size: usize) -> Result<Vec<Instance>, Failure> {
        instances(&self.run("resize", (group, size)).await?)
    }

    /// The group's instances.
    pub async fn instances(&self, group: &str) -> Result<Vec<Instance>, Failure> {
        instances(&self.run("instances", group).await?)
    }

    /// Terminates an instance without a replacement.
    pub async fn terminate(&self, instance: &str) -> Result<(), Failure> {
        self.run("terminate", instance).await.map(drop)
    }

    /// Puts an instance into Standby.
    pub async fn standby(&self, group: &str, instance: &str) -> Result<(), Failure> {
        self.run("standby", (group, instance)).await.map(drop)
    }

    /// Detaches instances from the group. They are neither terminated nor replaced.
    pub async fn detach(&self, group: &str, instances: &[&str]) -> Result<(), Failure> {
        self.run("detach", [&[group], instances].concat()).await.map(drop)
    }

    /// Attaches instances to the group.
    pub async fn attach(&self, group: &str, instances: &[&str]) -> Result<(), Failure> {
        self.run("attach", [&[group], instances].concat()).await.map(drop)
    }

    /// The PEM of an issued certificate.
    pub async fn certificate(&self, ca: &Ca, arn: &str) -> Result<String, Failure> {
        text(&self.run("certificate", (&ca.arn, arn)).await?, "pem")
    }

    /// Makes an active root CA. `usage_mode` is `GENERAL_PURPOSE` or `SHORT_LIVED_CERTIFICATE`.
    pub async fn create_ca(&self, name: &str, usage_mode: &str) -> Result<Ca, Failure> {
        let ca = self.run("create_ca", (name, usage_mode)).await?;
        Ok(Ca { arn: text(&ca, "arn")?, pem: text(&ca, "pem")? })
    }

    /// Makes a secret string the current version of a secret.
    pub async fn put_secret(&self, name: &str, content: &str) -> Result<SecretVersion, Failure> {
        self.put(name, content.as_bytes(), false).await
    }

    /// Makes binary content the current version of a secret.
    pub async fn put_binary_secret(&self, name: &str, content: &[u8]) -> Result<SecretVersion, Failure> {
        self.put(name, content, true).await
    }

    async fn put(&self, name: &str, content: &[u8], is_binary: bool) -> Result<SecretVersion, Failure> {
        let secret = self.run("put_secret", (name, STANDARD.encode(content), is_binary)).await?;
        Ok(SecretVersion { arn: text(&secret, "arn")?, version: text(&secret, "version")? })
    }

    /// Deletes a secret at once.
    pub async fn delete_secret(&self, name: &str) -> Result<(), Failure> {
        self.run("delete_secret", name).await.map(drop)
    }

    /// Moves `AWSCURRENT` to an older version.
    pub async fn make_current(&self, name: &str, version: &str) -> Result<(), Failure> {
        self.run("make_current", (name, version)).await.map(drop)
    }

    async fn run(&self, name: &str, arguments: impl Serialize) -> Result<Value, Failure> {
        let failed = |what: &str| Failure::new(format!("moto: {name}: {what}"));
        let mut command = vec![Value::from(name)];
        match serde_json::to_value(arguments) {
            Ok(Value::Array(arguments)) => command.extend(arguments),
            Ok(argument) => command.push(argument),
            Err(error) => return Err(failed("the arguments are no JSON").because(error)),
        }
        let line = Value::from(command).to_string() + "\n";
        let mut held = self.pipes.lock().await;
        let mut pipes = held.take().ok_or_else(|| failed("an earlier command got no answer"))?;
        let answered = async {
            pipes.commands.write_all(line.as_bytes()).await?;
            pipes.answers.next_line().await
        };
        let answer = tokio::time::timeout(COMMAND_TIMEOUT, answered)
            .await
            .map_err(|_| failed("took too long"))?
            .map_err(|error| failed("could not be asked").because(error))?
            .ok_or_else(|| failed("moto has ended"))?;
        *held = Some(pipes);
        let mut answer: Value =
            serde_json::from_str(&answer).map_err(|error| failed("answered no JSON").because(error))?;
        match answer.get("error").and_then(Value::as_str) {
            Some(error) => Err(failed(error)),
            None => Ok(answer["answer"].take()),
        }
    }
}

fn instances(list: &Value) -> Result<Vec<Instance>, Failure> {
    let parse = |instance: &Value| {
        let address = text(instance, "address")?;
        let address =
            address.parse().map_err(|error| Failure::new(format!("{address} is not an address")).because(error))?;
        Ok(Instance { id: text(instance, "id")?, address, state: text(instance, "state")? })
    };
    list.as_array().map_or(&[][..], Vec::as_slice).iter().map(parse).collect()
}

fn text(object: &Value, key: &str) -> Result<String, Failure> {
    object[key]
        .as_str()
        .map(ToOwned::to_owned)
        .ok_or_else(|| Failure::new(format!("no {key} in the output of moto_fleet.py")))
}
