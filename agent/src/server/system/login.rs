//! Who the agent is in the system account.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_nats::ConnectOptions;
use zeroize::Zeroizing;

use super::SystemError;
use crate::state::durable;
use crate::state::system_key::SystemKey;

/// The largest file of credentials. A JWT with many permissions has some kilobytes.
const MAX_CREDENTIALS: u64 = 64 * 1024;
/// The largest configuration in bytes.
const MAX_CONFIGURATION: u64 = 16 * 1024 * 1024;

/// The user of the connection.
pub(super) enum Login {
    /// The agent's own user, by the key in the state directory. `config` is the committed configuration.
    Key { state: PathBuf, config: PathBuf },
    /// A user of this file: a JWT and a seed.
    Credentials(PathBuf),
}

impl Login {
    /// The options that present the user. The files are read anew for each connection.
    pub(super) fn options(&self) -> Result<ConnectOptions, SystemError> {
        match self {
            Self::Key { state, config } => {
                let key = SystemKey::read(state).map_err(file)?.ok_or(SystemError::NoKey)?;
                if !names(config, key.public())? {
                    // nats-server would refuse the user, and write a line about it into its log.
                    return Err(SystemError::NotInConfiguration);
                }
                Ok(ConnectOptions::with_nkey(key.seed().to_string()))
            }
            Self::Credentials(path) => {
                let bytes = durable::read_if_there(path, MAX_CREDENTIALS).map_err(file)?.map(Zeroizing::new);
                let bytes = bytes.ok_or_else(|| SystemError::NoCredentials(path.clone()))?;
                let text = std::str::from_utf8(&bytes).ok();
                let options = text.and_then(|text| ConnectOptions::with_credentials(text).ok());
                options.ok_or_else(|| SystemError::NotCredentials(path.clone()))
            }
        }
    }
}

fn file(error: durable::FileError) -> SystemError {
    SystemError::File(Arc::new(error))
}

/// Whether the configuration that nats-server was last seen to have loaded names the user. Before that the committed one
/// counts.
fn names(config: &Path, key: &str) -> Result<bool, SystemError> {
    let mut running = config.as_os_str().to_owned();
    running.push(".running");
    for path in [Path::new(&running), config] {
        if let Some(text) = durable::read_if_there(path, MAX_CONFIGURATION).map_err(file)?.map(Zeroizing::new) {
            return Ok(text.windows(key.len()).any(|part| part == key.as_bytes()));
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_user_connects_only_where_the_running_configuration_names_the_user() {
        let state = tempfile::tempdir().unwrap();
        let config = state.path().join("nats.conf");
        let login = Login::Key { state: state.path().to_owned(), config: config.clone() };
        assert!(matches!(login.options(), Err(SystemError::NoKey)));
        let key = SystemKey::read_or_make(state.path()).unwrap();
        assert!(matches!(login.options(), Err(SystemError::NotInConfiguration)));
        std::fs::write(&config, format!("nkey: \"{}\"", key.public())).unwrap();
        assert!(login.options().is_ok());
        // The committed text waits for a restart.
        std::fs::write(state.path().join("nats.conf.running"), "a: 1").unwrap();
        assert!(matches!(login.options(), Err(SystemError::NotInConfiguration)));
    }

    #[test]
    fn credentials_are_a_jwt_and_a_seed_and_no_error_names_what_the_file_holds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("system.creds");
        let login = Login::Credentials(path.clone());
        assert!(matches!(login.options(), Err(SystemError::NoCredentials(_))));
        let seed = SystemKey::read_or_make(directory.path()).unwrap().seed().to_string();
        let good = format!(
            "-----BEGIN NATS USER JWT-----\neyJ0.eyJq.AAAA\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        for (text, is_good) in [(good.as_str(), true), ("", false), (seed.as_str(), false), ("\u{0}", false)] {
            std::fs::write(&path, text).unwrap();
            match login.options() {
                Ok(_) => assert!(is_good),
                Err(error) => assert!(!is_good && !format!("{error} {error:?}").contains(&seed), "{error}"),
            }
        }
    }
}
