//! The last good answers of discovery and of the cluster credential's source, the servers that had a route, and the connections that
//! have to end.
//!
//! They outlive the process in `STATE/last-good.json`, so a restart while AWS is away changes nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::cutoff::Unfinished;
use crate::credential::{ClusterCredential, CredentialVersion};
use crate::error::with_causes;
use crate::peers::PeerSet;
use crate::state::durable::{self, FileError, Secrecy};

/// The largest file of last good answers, in bytes.
const MAX_LAST_GOOD: u64 = 4 * 1024 * 1024;

/// What is remembered.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub(crate) struct LastGood {
    /// The peers in force.
    pub(crate) peers: PeerSet,
    /// The Auto Scaling group's name.
    pub(crate) group: Option<String>,
    /// The servers that had a route to this node.
    #[serde(default)]
    pub(crate) linked: BTreeSet<String>,
    /// The connections that a distrusted CA may have let in, and that have to end.
    #[serde(default)]
    pub(crate) unfinished: Option<Unfinished>,
    /// The cluster credential in force.
    pub(crate) credential: Option<ClusterCredential>,
    /// The versions that the credential's secret holds.
    #[serde(default)]
    pub(crate) credential_versions: Vec<CredentialVersion>,
    /// The secret that the credential came from. Under another configured secret the credential is worthless.
    pub(crate) credential_secret: Option<String>,
    /// The node that got these answers. An image made of one node may become another node.
    pub(crate) node: Option<String>,
}

/// The file of last good answers.
#[derive(Clone, Debug)]
pub(crate) struct LastGoodFile {
    path: PathBuf,
    state: PathBuf,
}

impl LastGoodFile {
    /// The file in a state directory.
    pub(crate) fn of(state: &Path) -> Self {
        Self { path: state.join("last-good.json"), state: state.to_owned() }
    }

    /// Reads the answers that belong to this node and this secret. Answers that can't be read are only asked for again.
    pub(crate) fn read(&self, node: String, secret: Option<&String>) -> LastGood {
        let bytes = durable::read_if_there(&self.path, MAX_LAST_GOOD).unwrap_or_else(|error| {
            tracing::warn!("{}", with_causes(&error));
            None
        });
        let read = bytes.map(Zeroizing::new).and_then(|bytes| {
            let parsed = serde_json::from_slice::<LastGood>(&bytes);
            // serde's own words may repeat a part of the content.
            if parsed.is_err() {
                tracing::warn!("{} can't be read, so it is made anew", self.path.display());
            }
            parsed.ok()
        });
        let is_ours = |last_good: &LastGood| last_good.node.as_ref().is_none_or(|of| *of == node);
        let mut last_good = read.filter(is_ours).unwrap_or_default();
        last_good.node = Some(node);
        if last_good.credential_secret.as_ref() != secret {
            last_good.credential = None;
            last_good.credential_versions.clear();
            last_good.credential_secret = secret.cloned();
        }
        last_good
    }

    /// Keeps the answers for the next process. A failure is logged, because this process goes on without the file.
    pub(crate) fn write(&self, last_good: &LastGood) {
        let mode = Secrecy::of(&self.state).file_mode();
        let stored = serde_json::to_vec(last_good)
            .map_err(|error| FileError::on("encode", &self.path)(error.into()))
            .map(Zeroizing::new)
            .and_then(|bytes| durable::replace(&self.path, &bytes, mode));
        if let Err(error) = stored {
            tracing::warn!("could not keep the last good peers: {}", with_causes(&error));
        }
    }
}
