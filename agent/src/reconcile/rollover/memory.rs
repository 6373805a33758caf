//! What was last seen of each peer, and since when each anchor is trusted. It outlives the process in `STATE/rollover.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::error::with_causes;
use crate::state::durable::{self, FileError, Secrecy};
use crate::trust::rollover::AcceptedNames;
use crate::x509::chain::Chain;

/// The largest file, in bytes. A chain and the names take some kilobytes for each peer.
const MAX_SIZE: u64 = 16 * 1024 * 1024;

/// What is remembered of a change of the CA.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default)]
pub(super) struct Memory {
    /// The node that this is the memory of. An image made of one node may become another node.
    pub(super) node: String,
    /// The last look at each peer.
    pub(super) peers: BTreeMap<SocketAddr, SeenPeer>,
    /// Since when each anchor is trusted, by the SHA-256 of the anchor.
    #[serde(with = "times")]
    pub(super) trusted: BTreeMap<String, OffsetDateTime>,
    /// The anchors that this node's own leaf has left, by their SHA-256.
    pub(super) left: BTreeSet<String>,
    /// The leaf of a new issuer that waits.
    pub(super) waiting: Option<Waiting>,
}

/// What a peer showed.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub(super) struct SeenPeer {
    /// The id of the peer. Another peer may take the address.
    pub(super) id: String,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) at: OffsetDateTime,
    #[serde(with = "pem")]
    pub(super) chain: Chain,
    pub(super) accepts: AcceptedNames,
}

/// A leaf of a new issuer that waits.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub(super) struct Waiting {
    /// The subjects of the anchors that the leaf needs.
    pub(super) issuer: String,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) since: OffsetDateTime,
    /// Somebody said that clients trust the issuer.
    #[serde(default)]
    pub(super) skips_notice: bool,
}

/// The file.
#[derive(Clone, Debug)]
pub(super) struct MemoryFile {
    path: PathBuf,
    state: PathBuf,
}

impl MemoryFile {
    pub(super) fn of(state: &Path) -> Self {
        Self { path: state.join("rollover.json"), state: state.to_owned() }
    }

    /// Reads the memory of this node. What can't be read is only seen again.
    pub(super) fn read(&self, node: &str) -> Memory {
        let bytes = durable::read_if_there(&self.path, MAX_SIZE).unwrap_or_else(|error| {
            tracing::warn!("{}", with_causes(&error));
            None
        });
        let read = bytes.and_then(|bytes| {
            let parsed = serde_json::from_slice::<Memory>(&bytes);
            if let Err(error) = &parsed {
                tracing::warn!("{} can't be read, so it is made anew: {error}", self.path.display());
            }
            parsed.ok()
        });
        read.filter(|memory| memory.node == node)
            .unwrap_or_else(|| Memory { node: node.to_owned(), ..Memory::default() })
    }

    /// Keeps the memory for the next process. A failure is logged, because this process goes on without the file.
    pub(super) fn write(&self, memory: &Memory) {
        let mode = Secrecy::of(&self.state).file_mode();
        let stored = serde_json::to_vec(memory)
            .map_err(|error| FileError::on("encode", &self.path)(error.into()))
            .and_then(|bytes| durable::replace(&self.path, &bytes, mode));
        if let Err(error) = stored {
            tracing::warn!("could not keep what peers showed: {}", with_causes(&error));
        }
    }
}

mod pem {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::x509::chain::Chain;

    pub(super) fn serialize<S: Serializer>(chain: &Chain, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&chain.to_pem())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Chain, D::Error> {
        let text = String::deserialize(deserializer)?;
        Chain::from_pem(text.as_bytes()).map_err(serde::de::Error::custom)
    }
}

mod times {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};
    use time::OffsetDateTime;

    pub(super) fn serialize<S: Serializer>(
        times: &BTreeMap<String, OffsetDateTime>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(times.iter().map(|(name, time)| (name, time.unix_timestamp())))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, OffsetDateTime>, D::Error> {
        let seconds = BTreeMap::<String, i64>::deserialize(deserializer)?;
        let time = |seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(serde::de::Error::custom);
        seconds.into_iter().map(|(name, seconds)| Ok((name, time(seconds)?))).collect()
    }
}
