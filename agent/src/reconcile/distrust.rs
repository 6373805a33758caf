//! The CAs that somebody distrusts on this node alone. They outlive the process in `STATE/distrusted`.

use std::path::{Path, PathBuf};

use crate::state::durable::{self, FileError, Secrecy};
use crate::trust::distrust::{in_text, to_text};
use crate::trust::{Distrusted, Fingerprint};

/// The file, in the state directory: one `distrust: SHA256` a line. Other lines are comment.
const FILE: &str = "distrusted";
/// The largest file, in bytes.
const MAX_SIZE: u64 = 64 * 1024;

/// The CAs that this node distrusts by itself.
pub(super) struct OwnDistrust {
    path: PathBuf,
    state: PathBuf,
    known: Distrusted,
}

impl OwnDistrust {
    /// The CAs that an earlier process noted in a state directory. Nothing is read yet.
    pub(super) fn of(state: &Path) -> Self {
        Self { path: state.join(FILE), state: state.to_owned(), known: Distrusted::new() }
    }

    /// Reads the file again: a person may have changed it. After a failure the CAs that are known stay distrusted.
    pub(super) fn read(&mut self) -> Result<(), FileError> {
        let content = durable::read_if_there(&self.path, MAX_SIZE)?.unwrap_or_default();
        let of_entry = |error| FileError::on("read an entry of", &self.path)(std::io::Error::other(error));
        self.known = in_text(&content).map_err(of_entry)?;
        Ok(())
    }

    /// Distrusts these CAs too, from now on and after a restart.
    pub(super) fn add(&mut self, more: &[Fingerprint]) -> Result<(), FileError> {
        self.read()?;
        let known = self.known.iter().chain(more).cloned().collect();
        if known != self.known {
            durable::replace(&self.path, to_text(&known).as_bytes(), Secrecy::of(&self.state).file_mode())?;
            self.known = known;
        }
        Ok(())
    }

    /// The CAs.
    pub(super) fn known(&self) -> &Distrusted {
        &self.known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::with_causes;

    #[test]
    fn what_is_distrusted_outlives_the_process_and_a_mistake_in_the_file_takes_nothing_back() {
        let state = tempfile::tempdir().unwrap();
        let [one, two] = [1, 2].map(|number| format!("{number:064x}").parse::<Fingerprint>().unwrap());
        let mut own = OwnDistrust::of(state.path());
        own.read().unwrap();
        assert!(own.known().is_empty());
        own.add(std::slice::from_ref(&one)).unwrap();
        own.add(std::slice::from_ref(&two)).unwrap();
        let mut later = OwnDistrust::of(state.path());
        later.read().unwrap();
        assert_eq!(later.known().iter().cloned().collect::<Vec<_>>(), [one, two]);
        std::fs::write(state.path().join(FILE), "distrust: CN=old\n").unwrap();
        let error = with_causes(&later.read().unwrap_err());
        assert!(error.contains("distrusted") && error.contains("\"CN=old\""), "{error}");
        assert_eq!(later.known().len(), 2);
        std::fs::remove_file(state.path().join(FILE)).unwrap();
        later.read().unwrap();
        assert!(later.known().is_empty());
    }
}
