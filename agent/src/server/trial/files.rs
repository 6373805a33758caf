//! The files of a trial.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::TrialTrouble;
use crate::conf::tree::Map;
use crate::conf::trial::{Stage, rewrite};
use crate::conf::write;
use crate::server::process;

/// How often the files of a trial are measured.
const MEASURED_EVERY: Duration = Duration::from_millis(250);
/// The most that a trial may write, in bytes. A trial writes its settings and some 60 KB more.
const MAX_SIZE: u64 = 256 * 1024 * 1024;
/// The most files and directories of a trial. JetStream makes some for each account.
const MAX_FILES: u64 = 100_000;
/// The beginning of the name of each trial's directory. The pid of the agent follows.
const PREFIX: &str = "trial-";

/// Removes what trials of a killed agent left below a directory: their nats-servers and their files. Call it before the
/// first trial, while no other agent uses the directory.
pub fn sweep(directory: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let left: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .map(|entry| entry.path())
        .collect();
    if left.is_empty() {
        return Ok(());
    }
    process::end_those_that_run_in(&left)?;
    left.iter().try_for_each(|path| {
        // A killed server may make a last file.
        let removed = std::fs::remove_dir_all(path);
        removed.or_else(|_| {
            std::thread::sleep(Duration::from_millis(20));
            std::fs::remove_dir_all(path)
        })
    })
}

/// A directory that is removed with its content when it is dropped.
pub(super) struct TrialDirectory(PathBuf);

impl TrialDirectory {
    /// The directory has mode 0700: its files hold every secret of the settings.
    pub(super) fn create(below: &Path) -> Result<Self, TrialTrouble> {
        let path = below.join(format!("{PREFIX}{}", std::process::id()));
        _ = std::fs::remove_dir_all(&path);
        create_directory(&path)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TrialDirectory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(
                "could not remove {}, which holds settings; the next start tries again: {error}",
                self.0.display()
            );
        }
    }
}

pub(super) fn create_directory(path: &Path) -> Result<(), TrialTrouble> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(path);
    created.map_err(|source| TrialTrouble::File { action: "create", path: path.to_owned(), source })
}

/// Writes settings for a server under trial, in one step, because a server may read them. The settings needn't survive
/// a power cut, so nothing is flushed.
pub(super) fn write_config(config: &Path, stage: &mut Stage, settings: &Map) -> Result<(), TrialTrouble> {
    let text = write::text(&rewrite(settings, stage));
    stage.directories().try_for_each(create_directory)?;
    let staged = config.with_extension("new");
    let failed = |action| {
        let path = staged.clone();
        move |source| TrialTrouble::File { action, path, source }
    };
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged).map_err(failed("create"))?;
    file.write_all(text.as_bytes()).map_err(failed("write"))?;
    std::fs::rename(&staged, config).map_err(failed("rename"))
}

/// Waits until a directory holds more than a trial needs.
pub(super) async fn outgrown(directory: &Path) {
    loop {
        tokio::time::sleep(MEASURED_EVERY).await;
        let (mut size, mut files, mut rest) = (0, 0, vec![directory.to_owned()]);
        while let Some(directory) = rest.pop() {
            // A file may be gone by the time that it is looked at.
            for entry in std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok) {
                let Ok(metadata) = entry.metadata() else { continue };
                size += metadata.len();
                files += 1;
                if size > MAX_SIZE || files > MAX_FILES {
                    return;
                }
                if metadata.is_dir() {
                    rest.push(entry.path());
                }
            }
        }
    }
}
