//! Moto, the AWS of the tests: real signatures, Auto Scaling groups and secrets, over AWS's own wire protocols.
//!
//! Moto ignores some semantics: every leaf lives 365 days, idempotency tokens are ignored, and no request is ever in
//! progress. Tests of those semantics script their own answers.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::process::{Process, tail};
use crate::{Failure, eventually, tools};

/// Moto answers first after it has imported all of boto.
const START_TIMEOUT: Duration = Duration::from_mins(1);
const COMMAND_TIMEOUT: Duration = Duration::from_mins(1);

/// The Region of moto's resources.
pub const REGION: &str = "eu-west-1";

/// A running moto, which is killed when dropped.
#[derive(Debug)]
pub struct Moto {
    endpoint: String,
    python: PathBuf,
    _process: Process,
    _directory: tempfile::TempDir,
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
    /// Starts moto on a free loopback port and waits until it answers.
    ///
    /// # Errors
    /// Moto is not installed, ends, or doesn't answer within a minute.
    pub async fn start() -> Result<Self, Failure> {
        let python = tools::moto_python()?;
        let directory =
            tempfile::tempdir().map_err(|error| Failure::new("no directory for moto's log").because(error))?;
        let log = directory.path().join("moto.log");
        let mut process = Process::spawn("moto", Command::new(&python).arg("-u").arg(script()).arg("serve"), &log)?;
        let endpoint = eventually("moto's start", START_TIMEOUT, async || {
            if let Err(ended) = process.check_running() {
                return Err(ended.to_string());
            }
            let text = tail(&log, 20);
            let url = text.split_whitespace().find_map(|word| word.strip_prefix("http://127.0.0.1:"));
            let port: u16 = url.and_then(|port| port.parse().ok()).ok_or(text.clone())?;
            // Werkzeug announces the port once it listens.
            let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
            tokio::net::TcpStream::connect(address).await.map_err(|error| error.to_string())?;
            Ok(format!("http://{address}"))
        })
        .await?;
        Ok(Self { endpoint, python, _process: process, _directory: directory })
    }

    /// The endpoint of every service, the value for `AWS_ENDPOINT_URL`.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Launches an Auto Scaling group of `size` instances with loopback addresses, all in service.
    pub async fn launch(&self, group: &str, size: usize) -> Result<Vec<Instance>, Failure> {
        instances(&self.run(&["launch", group, &size.to_string()], b"").await?)
    }

    /// Sets the group's desired capacity. Moto starts and terminates instances immediately.
    pub async fn resize(&self, group: &str, size: usize) -> Result<Vec<Instance>, Failure> {
        instances(&self.run(&["resize", group, &size.to_string()], b"").await?)
    }

    /// The group's instances.
    pub async fn instances(&self, group: &str) -> Result<Vec<Instance>, Failure> {
        instances(&self.run(&["instances", group], b"").await?)
    }

    /// Terminates an instance without a replacement.
    pub async fn terminate(&self, instance: &str) -> Result<(), Failure> {
        self.run(&["terminate", instance], b"").await.map(drop)
    }

    /// Puts an instance into Standby.
    pub async fn standby(&self, group: &str, instance: &str) -> Result<(), Failure> {
        self.run(&["standby", group, instance], b"").await.map(drop)
    }

    /// Detaches instances from the group. They are neither terminated nor replaced.
    pub async fn detach(&self, group: &str, instances: &[&str]) -> Result<(), Failure> {
        self.run(&[&["detach", group], instances].concat(), b"").await.map(drop)
    }

    /// Attaches instances to the group.
    pub async fn attach(&self, group: &str, instances: &[&str]) -> Result<(), Failure> {
        self.run(&[&["attach", group], instances].concat(), b"").await.map(drop)
    }

    /// The PEM of an issued certificate.
    pub async fn certificate(&self, ca: &Ca, arn: &str) -> Result<String, Failure> {
        text(&self.run(&["certificate", &ca.arn, arn], b"").await?, "pem")
    }

    /// Makes an active root CA. `usage_mode` is `GENERAL_PURPOSE` or `SHORT_LIVED_CERTIFICATE`.
    pub async fn create_ca(&self, name: &str, usage_mode: &str) -> Result<Ca, Failure> {
        let ca = self.run(&["create-ca", name, "--usage-mode", usage_mode], b"").await?;
        Ok(Ca { arn: text(&ca, "arn")?, pem: text(&ca, "pem")? })
    }

    /// Makes a secret string the current version of a secret.
    pub async fn put_secret(&self, name: &str, content: &str) -> Result<SecretVersion, Failure> {
        let secret = self.run(&["put-secret", name], content.as_bytes()).await?;
        Ok(SecretVersion { arn: text(&secret, "arn")?, version: text(&secret, "version")? })
    }

    /// Makes binary content the current version of a secret.
    pub async fn put_binary_secret(&self, name: &str, content: &[u8]) -> Result<SecretVersion, Failure> {
        let secret = self.run(&["put-secret", name, "--binary"], content).await?;
        Ok(SecretVersion { arn: text(&secret, "arn")?, version: text(&secret, "version")? })
    }

    /// Deletes a secret at once.
    pub async fn delete_secret(&self, name: &str) -> Result<(), Failure> {
        self.run(&["delete-secret", name], b"").await.map(drop)
    }

    /// Moves `AWSCURRENT` to an older version.
    pub async fn make_current(&self, name: &str, version: &str) -> Result<(), Failure> {
        self.run(&["make-current", name, version], b"").await.map(drop)
    }

    async fn run(&self, command: &[&str], input: &[u8]) -> Result<Value, Failure> {
        let failed = |what: &str| Failure::new(format!("moto: {}: {what}", command.join(" ")));
        let mut child = Command::new(&self.python)
            .arg(script())
            .args(["--endpoint", &self.endpoint, "--region", REGION])
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed("could not start").because(error))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input).await.map_err(|error| failed("took no input").because(error))?;
        }
        let output = tokio::time::timeout(COMMAND_TIMEOUT, child.wait_with_output())
            .await
            .map_err(|_| failed("took too long"))?
            .map_err(|error| failed("could not be waited for").because(error))?;
        if !output.status.success() {
            return Err(failed(&String::from_utf8_lossy(&output.stderr)));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| failed("printed no JSON").because(error))
    }
}

fn script() -> PathBuf {
    tools::workspace().join("tests/harness/moto_fleet.py")
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
