//! Texts for nats-server in secrets: settings (`nats.include = ["secret:NAME"]`), and the credentials of `nats.system`.
//!
//! The content of a secret is kept in a file of the state directory, which the configuration includes like any other
//! file. The file holds the last good content, and outlives the process. A content is good once it was committed.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use aws_config::SdkConfig;
use zeroize::Zeroizing;

use crate::aws::secret::{Secret, SecretError};
use crate::digest::sha256_hex;
use crate::state::durable::{self, FileError, Secrecy};

/// The beginning of an entry of `nats.include` that names a secret.
pub(crate) const PREFIX: &str = "secret:";

/// The largest content in bytes: the limit of Secrets Manager.
const MAX_SIZE: u64 = 65_536;

/// The file that keeps the content of a secret.
#[must_use]
pub(crate) fn file_of(state: &Path, secret_id: &str) -> PathBuf {
    let digest = sha256_hex(secret_id.as_bytes());
    directory(state).join(format!("{}.conf", &digest[..16]))
}

/// The file that keeps the credentials of a secret.
#[must_use]
pub(crate) fn credentials_of(state: &Path, secret_id: &str) -> PathBuf {
    file_of(state, secret_id).with_extension("creds")
}

/// The file of a new content, until the content was committed.
#[must_use]
pub(crate) fn candidate_of(file: &Path) -> PathBuf {
    file.with_extension("new")
}

fn directory(state: &Path) -> PathBuf {
    state.join("included")
}

/// Where the content of an included secret comes from.
#[async_trait]
pub trait IncludedSource: Send + Sync {
    /// Reads the current version.
    async fn fetch(&self) -> Result<Zeroizing<String>, SecretError>;

    /// What the content is for.
    fn purpose(&self) -> Purpose {
        Purpose::Settings
    }
}

/// What the content of a secret is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Settings, without which there is no configuration.
    Settings,
    /// Credentials of the system account, without which the agent does as well.
    System,
}

/// A secret of Secrets Manager with settings in nats-server's language.
pub struct IncludedSecret(Secret);

impl IncludedSecret {
    /// `id` is a name or an ARN.
    #[must_use]
    pub fn new(aws: &SdkConfig, id: &str) -> Self {
        Self(Secret::new(aws, id))
    }
}

#[async_trait]
impl IncludedSource for IncludedSecret {
    async fn fetch(&self) -> Result<Zeroizing<String>, SecretError> {
        let value = self.0.current().await?;
        let text = std::str::from_utf8(&value.content).map(|text| Zeroizing::new(text.to_owned()));
        text.map_err(|_| self.0.unfit(("is not UTF-8".into(), "store settings of nats-server as text".into())))
    }
}

/// A secret of Secrets Manager with credentials of a user of the system account.
pub struct SystemSecret(IncludedSecret);

impl SystemSecret {
    /// `id` is a name or an ARN.
    #[must_use]
    pub fn new(aws: &SdkConfig, id: &str) -> Self {
        Self(IncludedSecret::new(aws, id))
    }
}

#[async_trait]
impl IncludedSource for SystemSecret {
    async fn fetch(&self) -> Result<Zeroizing<String>, SecretError> {
        self.0.fetch().await
    }

    fn purpose(&self) -> Purpose {
        Purpose::System
    }
}

/// Whether the file holds exactly this content.
pub(crate) fn is_kept(file: &Path, content: &str) -> Result<bool, FileError> {
    let kept = durable::read_if_there(file, MAX_SIZE)?.map(Zeroizing::new);
    Ok(kept.is_some_and(|kept| *kept == content.as_bytes()))
}

/// Keeps the content. An equal content leaves the file unchanged, so the agent doesn't read the configuration again.
pub(crate) fn keep(file: &Path, content: &str, state: &Path, purpose: Purpose) -> Result<(), FileError> {
    if is_kept(file, content)? {
        return Ok(());
    }
    let secrecy = Secrecy::of(state);
    if let Some(directory) = file.parent() {
        durable::create_directory(directory, secrecy.directory_mode())?;
    }
    // nats-server reads no credentials of the agent.
    let mode = if purpose == Purpose::System { 0o600 } else { secrecy.file_mode() };
    durable::replace(file, content.as_bytes(), mode)
}

/// Removes the contents of all secrets but those that `files` keep: a secret that is no longer included leaves the disk.
pub(crate) fn forget_others(state: &Path, files: &[PathBuf]) -> Result<(), FileError> {
    let directory = directory(state);
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(FileError::on("list", &directory))?,
    };
    for entry in entries {
        let file = entry.map_err(FileError::on("list", &directory))?.path();
        if !files.contains(&file) {
            durable::remove_if_there(&file)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_of_a_secret_that_is_no_longer_included_leaves_the_disk() {
        let state = tempfile::tempdir().unwrap();
        forget_others(state.path(), &[]).unwrap();
        let (kept, gone) = (file_of(state.path(), "nats/accounts"), file_of(state.path(), "nats/other"));
        for file in [&kept, &gone] {
            keep(file, "a: 1", state.path(), Purpose::Settings).unwrap();
        }
        forget_others(state.path(), std::slice::from_ref(&kept)).unwrap();
        assert!(kept.exists() && !gone.exists());
        forget_others(state.path(), &[]).unwrap();
        assert!(!kept.exists());
    }

    #[test]
    fn a_content_is_kept_until_another_content_comes() {
        let state = tempfile::tempdir().unwrap();
        let file = file_of(state.path(), "nats/accounts");
        assert_ne!(file, file_of(state.path(), "nats/other"));
        keep(&file, "a: 1", state.path(), Purpose::Settings).unwrap();
        let before = std::fs::metadata(&file).unwrap().modified().unwrap();
        keep(&file, "a: 1", state.path(), Purpose::Settings).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), before);
        keep(&file, "a: 2", state.path(), Purpose::Settings).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "a: 2");
    }
}
