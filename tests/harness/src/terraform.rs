//! Terraform with a double of its AWS provider. The double has the provider's own schema, and never reaches AWS.
//!
//! Terraform attaches to the running double, as it does to a provider in a debugger
//! (<https://developer.hashicorp.com/terraform/plugin/debugging>). So Terraform installs nothing, and `terraform init` needs no
//! registry.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::process::{Process, tail};
use crate::{Failure, eventually, tools};

/// The double reads the schemas of some dozens of types at its start.
const START_TIMEOUT: Duration = Duration::from_mins(1);
const COMMAND_TIMEOUT: Duration = Duration::from_mins(2);

/// The double of `hashicorp/aws`, which is killed when dropped.
#[derive(Debug)]
pub struct AwsProvider {
    terraform: PathBuf,
    /// How Terraform finds the double.
    reattach: String,
    version: String,
    _process: Process,
    directory: tempfile::TempDir,
}

/// A configuration that Terraform has initialised.
#[derive(Debug)]
pub struct Configuration<'a> {
    provider: &'a AwsProvider,
    root: PathBuf,
    /// Terraform's own files, so that none lies beside the configuration.
    files: tempfile::TempDir,
}

/// A resource that Terraform has applied.
#[derive(Debug)]
pub struct Applied<'a> {
    /// The resource's type.
    pub type_name: &'a str,
    /// The resource's name.
    pub name: &'a str,
    /// The resource's number, where it has a count.
    pub index: Option<usize>,
    /// Its attributes that matter.
    pub attributes: Value,
}

/// What Terraform would do.
#[derive(Debug)]
pub struct Plan(Value);

impl AwsProvider {
    /// Starts the double with the types that the Terraform files below `sources` name.
    ///
    /// # Errors
    /// The tool is not installed, a type is not in the provider's schema, or the double isn't ready within a minute.
    pub async fn start(terraform: PathBuf, sources: &Path) -> Result<Self, Failure> {
        let directory =
            tempfile::tempdir().map_err(|error| Failure::new("no directory for the provider").because(error))?;
        let (socket, log) = (directory.path().join("socket"), directory.path().join("log"));
        let script = tools::workspace().join("tests/harness/terraform_provider/provider.py");
        let mut command = Command::new(tools::terraform_provider_python()?);
        // The checkout stays as it is.
        command.env("PYTHONDONTWRITEBYTECODE", "1").arg("-u").arg(script).arg(sources).arg(&socket);
        let mut process = Process::spawn("the AWS provider", &mut command, &log)?;
        let version = eventually("the AWS provider's start", START_TIMEOUT, async || {
            process.check_running().map_err(|ended| ended.to_string())?;
            let said = tail(&log, 20);
            let version = said.split_once("serves hashicorp/aws ").and_then(|(_, rest)| rest.split_once(':'));
            version.map(|(version, _)| version.to_owned()).ok_or(said)
        })
        .await?;
        let pid = process.pid().ok_or_else(|| Failure::new("the AWS provider has ended"))?;
        // The protocol of go-plugin (<https://github.com/hashicorp/go-plugin/blob/main/docs/internals.md>).
        let reattach = json!({ "registry.terraform.io/hashicorp/aws": {
            "Protocol": "grpc", "ProtocolVersion": 6, "Pid": pid, "Test": true,
            "Addr": { "Network": "unix", "String": socket },
        } });
        Ok(Self { terraform, reattach: reattach.to_string(), version, _process: process, directory })
    }

    /// The version of `hashicorp/aws` that has the schema.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Initialises a configuration.
    ///
    /// # Errors
    /// Terraform refuses the configuration.
    pub async fn open(&self, root: &Path) -> Result<Configuration<'_>, Failure> {
        let files = tempfile::tempdir_in(self.directory.path())
            .map_err(|error| Failure::new("no directory for Terraform").because(error))?;
        let configuration = Configuration { provider: self, root: root.to_path_buf(), files };
        configuration.run(&["init", "-backend=false", "-input=false"]).await?;
        Ok(configuration)
    }
}

impl Configuration<'_> {
    /// Checks the configuration against the provider's schema.
    ///
    /// # Errors
    /// Terraform's own words, in one line.
    pub async fn validate(&self) -> Result<(), Failure> {
        self.run(&["validate"]).await.map(drop)
    }

    /// Plans the configuration with values of its variables, from an empty state.
    ///
    /// # Errors
    /// Terraform's own words, in one line.
    pub async fn plan(&self, values: &[(&str, &str)]) -> Result<Plan, Failure> {
        self.plan_from(&[], values).await
    }

    /// Plans the configuration with values of its variables, where the applied resources exist already.
    ///
    /// # Errors
    /// Terraform's own words, in one line.
    pub async fn plan_from(&self, applied: &[Applied<'_>], values: &[(&str, &str)]) -> Result<Plan, Failure> {
        let (file, state) = (self.files.path().join("plan"), self.files.path().join("state"));
        let resources: Vec<Value> = applied.iter().map(Applied::state).collect();
        // The format of a state (<https://developer.hashicorp.com/terraform/language/state>), version 4.
        let text = json!({ "version": 4, "serial": 1, "lineage": "tests", "outputs": {}, "resources": resources });
        std::fs::write(&state, text.to_string())
            .map_err(|error| Failure::new("could not write a state").because(error))?;
        let file = file.display().to_string();
        let values = values.iter().map(|(name, value)| format!("-var={name}={value}"));
        let arguments = ["plan", "-input=false", "-lock=false", "-refresh=false"].map(ToOwned::to_owned);
        let files = [format!("-out={file}"), format!("-state={}", state.display())];
        let arguments: Vec<String> = arguments.into_iter().chain(files).chain(values).collect();
        self.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        let shown = self.run(&["show", "-json", &file]).await?;
        let plan = serde_json::from_slice(&shown.stdout);
        plan.map(Plan).map_err(|error| Failure::new("terraform show printed no JSON").because(error))
    }

    async fn run(&self, arguments: &[&str]) -> Result<Output, Failure> {
        let mut command = Command::new(&self.provider.terraform);
        command
            .arg(format!("-chdir={}", self.root.display()))
            .args(arguments)
            .args((arguments[0] != "show").then_some("-no-color"))
            .env("TF_CLI_CONFIG_FILE", "/dev/null")
            .env("CHECKPOINT_DISABLE", "1")
            .env("TF_DATA_DIR", self.files.path())
            .env("TF_REATTACH_PROVIDERS", &self.provider.reattach)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let what = || format!("terraform {} in {}", arguments[0], self.root.display());
        let output = tokio::time::timeout(COMMAND_TIMEOUT, command.output())
            .await
            .map_err(|_| Failure::new(format!("{} took too long", what())))?
            .map_err(|error| Failure::new(format!("could not run {}", what())).because(error))?;
        if output.status.success() {
            return Ok(output);
        }
        // Terraform draws a frame around messages and wraps their lines.
        let said = String::from_utf8_lossy(&output.stderr).replace(['│', '╷', '╵'], " ");
        let words: Vec<&str> = said.split_whitespace().collect();
        Err(Failure::new(format!("{}: {}", what(), words.join(" "))))
    }
}

impl Applied<'_> {
    fn state(&self) -> Value {
        let mut instance = json!({ "schema_version": 0, "attributes": self.attributes });
        if let Some(index) = self.index {
            instance["index_key"] = json!(index);
        }
        json!({
            "mode": "managed", "type": self.type_name, "name": self.name, "instances": [instance],
            "provider": "provider[\"registry.terraform.io/hashicorp/aws\"]",
        })
    }
}

impl Plan {
    /// What Terraform would do with a resource: `create`, `update`, `delete` or `no-op`.
    #[must_use]
    pub fn actions(&self, address: &str) -> &Value {
        &self.change(address)["actions"]
    }

    /// The addresses of what Terraform would make, sorted.
    #[must_use]
    pub fn made(&self) -> Vec<&str> {
        let changes = self.0["resource_changes"].as_array().into_iter().flatten();
        let made = changes.filter(|change| change["change"]["actions"] == json!(["create"]));
        let mut made: Vec<&str> = made.filter_map(|change| change["address"].as_str()).collect();
        made.sort_unstable();
        made
    }

    /// The planned attributes of a resource, without the attributes that are known after the apply.
    #[must_use]
    pub fn attributes(&self, address: &str) -> &Value {
        &self.change(address)["after"]
    }

    fn change(&self, address: &str) -> &Value {
        let changes = self.0["resource_changes"].as_array().into_iter().flatten();
        let mut named = changes.filter(|change| change["address"] == address);
        named.next().map_or(&Value::Null, |change| &change["change"])
    }
}
