//! The key of the agent's user of the system account: made on the node, and never leaves it.

use std::path::Path;

use nkeys::{KeyPair, KeyPairType};
use zeroize::Zeroizing;

use super::durable::{self, FileError};

/// The file of the seed, in the state directory.
const FILE: &str = "system.nk";

/// A seed has 58 characters.
const MAX_SIZE: u64 = 256;

/// Nobody but the agent reads the seed, not even the group that reads nats-server's key.
const MODE: u32 = 0o600;

/// The key of the agent's user.
pub(crate) struct SystemKey {
    seed: Zeroizing<String>,
    public: String,
}

impl SystemKey {
    /// The key of a state directory. `None`: there is none yet, or the file holds no seed of a user.
    pub(crate) fn read(state: &Path) -> Result<Option<Self>, FileError> {
        let Some(bytes) = durable::read_if_there(&state.join(FILE), MAX_SIZE)?.map(Zeroizing::new) else {
            return Ok(None);
        };
        let seed = std::str::from_utf8(&bytes).map(|text| Zeroizing::new(text.trim().to_owned()));
        Ok(seed.ok().and_then(Self::of))
    }

    /// The key of a state directory, made where there is none. A damaged file gives way to a new key.
    pub(crate) fn read_or_make(state: &Path) -> Result<Self, FileError> {
        if let Some(known) = Self::read(state)? {
            return Ok(known);
        }
        let file = state.join(FILE);
        let cannot = || FileError::on("make a key for", &file)(std::io::Error::other("no key came of it"));
        let mut random = Zeroizing::new([0_u8; 32]);
        aws_lc_rs::rand::fill(random.as_mut_slice()).map_err(|_| cannot())?;
        let pair = KeyPair::new_from_raw(KeyPairType::User, *random).map_err(|_| cannot())?;
        let made = Self::of(Zeroizing::new(pair.seed().map_err(|_| cannot())?)).ok_or_else(cannot)?;
        durable::replace(&file, made.seed.as_bytes(), MODE)?;
        Ok(made)
    }

    fn of(seed: Zeroizing<String>) -> Option<Self> {
        let pair = KeyPair::from_seed(&seed).ok()?;
        let public = (pair.key_pair_type() == KeyPairType::User).then(|| pair.public_key())?;
        Some(Self { seed, public })
    }

    /// The public key: the user's name in nats-server's configuration.
    pub(crate) fn public(&self) -> &str {
        &self.public
    }

    /// The seed, for signing.
    pub(crate) fn seed(&self) -> &Zeroizing<String> {
        &self.seed
    }
}

impl std::fmt::Debug for SystemKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "SystemKey({})", self.public)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn invariant_01_the_seed_is_made_once_and_only_the_agent_reads_it() {
        let state = tempfile::tempdir().unwrap();
        // The group may read what nats-server needs, and the seed all the same not.
        std::fs::set_permissions(state.path(), std::fs::Permissions::from_mode(0o750)).unwrap();
        assert!(SystemKey::read(state.path()).unwrap().is_none());
        let made = SystemKey::read_or_make(state.path()).unwrap();
        assert!(made.public().starts_with('U') && made.public().len() == 56);
        let file = state.path().join(FILE);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(SystemKey::read_or_make(state.path()).unwrap().public(), made.public());
        assert!(!format!("{made:?}").contains(made.seed().as_str()));
        // No account's seed, and nothing else, is taken for a user's.
        for damaged in ["", "SAAGEVKZ", "x\u{0}y"] {
            std::fs::write(&file, damaged).unwrap();
            assert!(SystemKey::read(state.path()).unwrap().is_none(), "{damaged:?}");
        }
        assert_ne!(SystemKey::read_or_make(state.path()).unwrap().public(), made.public());
    }
}
