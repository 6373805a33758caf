//! JetStream's switch, and the store of its streams.

use std::fmt;
use std::path::PathBuf;

use super::values::{block, text};
use super::{Found, Loss};
use crate::conf::tree::{Ambiguous, Map, Value};
use crate::digest::sha256_hex;

/// Names of `key` in the `jetstream` block.
const KEY: [&str; 3] = ["key", "ek", "encryption_key"];
const PREVIOUS_KEY: [&str; 3] = ["prev_key", "prev_ek", "prev_encryption_key"];

/// Whether JetStream is on. A block enables JetStream, unless `enabled` in it is false.
pub(super) fn is_on(map: &Map) -> Result<bool, Ambiguous> {
    Ok(match map.find(&["jetstream"])?.map(|entry| &entry.value) {
        Some(Value::Bool(on)) => *on,
        Some(Value::Text(text)) => ["enabled", "enable"].contains(&text.to_lowercase().as_str()),
        Some(Value::Map(map)) => {
            let enabled = map.find(&["enabled", "enable"])?.map(|entry| &entry.value);
            matches!(enabled, None | Some(Value::Bool(true)))
        }
        _ => false,
    })
}

/// The digest of a secret, for comparison. `Debug` hides the digest, because the digest of a weak secret reveals the
/// secret.
#[derive(Clone, PartialEq, Eq)]
struct Fingerprint(String);

impl fmt::Debug for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("…")
    }
}

/// The directory and the key of JetStream's store. nats-server also starts with another directory or another key, but
/// without the streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Store {
    /// `None`: nats-server's default, below the directory for temporary files.
    directory: Option<PathBuf>,
    key: Option<Fingerprint>,
    previous_key: Option<Fingerprint>,
    /// The cipher is AES and not ChaCha20-Poly1305, the default.
    is_aes: bool,
    /// The file of a TPM's keys.
    tpm: Option<String>,
}

impl Store {
    /// The store of a configuration with JetStream on.
    pub(super) fn of(top: &Map) -> Result<Option<Self>, Ambiguous> {
        if !is_on(top)? {
            return Ok(None);
        }
        let jetstream = block(top, &["jetstream"])?;
        let tpm = block(&jetstream, &["tpm"])?;
        let directory = text(&jetstream, &["store_dir", "storedir", "store"])?;
        let directory = directory.or(text(top, &["store_dir", "storedir"])?).filter(|directory| !directory.is_empty());
        let secret = |names| {
            let secret = text(&jetstream, names)?.filter(|secret| !secret.is_empty());
            Ok(secret.map(|secret| Fingerprint(sha256_hex(secret.as_bytes()))))
        };
        let cipher = text(&jetstream, &["cipher"])?.or(text(&tpm, &["cipher"])?);
        Ok(Some(Self {
            // Collected from its components, a path has no trailing slash.
            directory: directory.map(|directory| PathBuf::from(directory).components().collect()),
            key: secret(&KEY)?,
            previous_key: secret(&PREVIOUS_KEY)?,
            is_aes: cipher.is_some_and(|cipher| cipher.eq_ignore_ascii_case("aes")),
            tpm: text(&tpm, &["keys_file"])?,
        }))
    }

    /// Whether this store can read what `before` encrypted. nats-server encrypts plain streams where a key is added. It
    /// tries `prev_key` where the key has changed (`decryptMeta` in server/jetstream.go).
    fn has_key_of(&self, before: &Self) -> bool {
        before.key.is_none() || self.key == before.key || self.key.is_some() && self.previous_key == before.key
    }
}

pub(super) fn compare(before: &Store, after: &Store, found: &mut Found) {
    let mut lost = |what: &str| {
        found.add(Loss::JetStreamStore, format!("JetStream would start {what}, and with none of its present streams"));
    };
    if before.directory != after.directory {
        lost("with another store_dir");
    }
    if !after.has_key_of(before) || before.tpm.is_some() && before.tpm != after.tpm {
        lost("without the key of its store");
    }
    if (before.key.is_some() || before.tpm.is_some()) && before.is_aes != after.is_aes {
        lost("with another cipher");
    }
}
