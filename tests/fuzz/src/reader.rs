//! The reader of nats-server's language, compared with nats-server itself where a binary is named.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};

use nats_tls_agent::conf::digest::{UsedVariables, digest};
use nats_tls_agent::conf::effective::Sources;
use nats_tls_agent::conf::environment::Environment;
use nats_tls_agent::conf::reader::{ConfError, Read, read};
use nats_tls_agent::conf::tree::Source;

use crate::logged;

/// The variable that names a nats-server of 2.12.6 or later. Without the variable nothing is compared.
const NATS_SERVER: &str = "FUZZ_NATS_SERVER";
static BINARY: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os(NATS_SERVER).map(PathBuf::from));

/// Reads a text without includes. nats-server must read an accepted text as the same tree.
pub(crate) fn read_as_nats_server(text: &str) {
    match read_alone(text) {
        Err(error) => logged(&error),
        Ok(read) => {
            assert!(read.files.is_empty() && read.replaced.is_empty() && read.environment.is_empty());
            let ours = digest(&Sources::wrapped_tree(read.map.clone()), UsedVariables::Keep);
            assert!(digest(&read.map, UsedVariables::Drop).starts_with("sha256:"));
            if let Some(binary) = BINARY.as_deref() {
                assert_eq!(theirs(binary, text), Some(ours));
            }
        }
    }
}

fn read_alone(text: &str) -> Result<Read, ConfError> {
    let source = Arc::new(Source::Template(None));
    read(text, source, Path::new("/nowhere"), &Environment::default(), &|file| Source::File(file.to_owned()))
}

/// The digest that nats-server prints, or `None` where it refuses.
fn theirs(binary: &Path, text: &str) -> Option<String> {
    let directory = std::env::temp_dir().join(format!("nats-conf-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("FILE"), text).unwrap();
    std::fs::write(directory.join("wrapper"), Sources::wrapped("FILE")).unwrap();
    let output =
        Command::new(binary).args(["-t", "-c", "wrapper"]).current_dir(&directory).env_clear().output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let (digest, _) = said.split_once("(sha256:")?.1.split_once(')')?;
    Some(format!("sha256:{digest}")).filter(|_| output.status.success())
}
