//! Generations: a key, a certificate and a bundle that belong together, immutable once they have a name.
//!
//! `STATE/generations/000042/{key.pem,cert.pem,ca.pem}`. The newest one is what is to be deployed; the one that the
//! committed nats-server.conf names is what is deployed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use zeroize::Zeroizing;

use crate::digest::sha256_hex;
use crate::state::durable::{self, FileError, Secrecy};
use crate::trust::{TrustBundle, VerifiedChain};
use crate::x509::csr::{PrivateKeyPem, public_key_der};
use crate::x509::leaf::Leaf;

/// The largest file of a generation that is read back.
const MAX_FILE: u64 = 1024 * 1024;

/// How many generations are kept beside those in use: what a roll-back could want.
const KEPT: usize = 3;

/// No node gets this far: a generation each second takes thirty thousand years.
const LAST: u64 = 1_000_000_000_000;

/// One generation, read back from the disk.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Counts from 1, for ever.
    pub number: u64,
    /// Key, leaf and intermediates.
    pub chain: VerifiedChain,
    /// The bundle that it was made with.
    pub bundle: TrustBundle,
    /// Where its files are.
    pub files: TlsFiles,
}

/// Absolute paths of one generation's files.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct TlsFiles {
    /// Leaf and intermediates.
    pub cert_file: PathBuf,
    /// Key.
    pub key_file: PathBuf,
    /// Trust bundle.
    pub ca_file: PathBuf,
}

/// The directory of all generations.
#[derive(Clone, Debug)]
pub struct Generations {
    directory: PathBuf,
    /// The digest of the key and the certificate that were last seen to belong together.
    known: Arc<Mutex<String>>,
}

/// Why a generation can't be used.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// A file can't be written or read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is missing or isn't what it was written as.
    #[error("{} is damaged: {reason}; it is passed over, and a new generation is made", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Generations {
    /// The generations of a state directory.
    #[must_use]
    pub fn of(state: &Path) -> Self {
        Self { directory: state.join("generations"), known: Arc::default() }
    }

    /// The directory of a generation, or the one that it would have.
    pub(crate) fn directory_of(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:06}"))
    }

    /// Where the files of a generation are, or would be.
    #[must_use]
    pub fn files(&self, number: u64) -> TlsFiles {
        let directory = self.directory_of(number);
        TlsFiles {
            cert_file: directory.join("cert.pem"),
            key_file: directory.join("key.pem"),
            ca_file: directory.join("ca.pem"),
        }
    }

    /// The numbers of all complete generations, in order.
    pub fn numbers(&self) -> Result<Vec<u64>, FileError> {
        let mut numbers = Vec::new();
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(numbers),
            entries => entries.map_err(FileError::on("list", &self.directory))?,
        };
        for entry in entries {
            let entry = entry.map_err(FileError::on("list", &self.directory))?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.parse().ok());
            // What isn't written as one of ours, or is beyond any, is none.
            numbers.extend(
                number.filter(|number| *number < LAST && self.directory_of(*number).file_name() == Some(&name)),
            );
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The newest generation that can be read, and what is wrong with any newer one.
    pub fn newest(&self) -> Result<(Option<Generation>, Vec<GenerationError>), FileError> {
        let mut damaged = Vec::new();
        for number in self.numbers()?.into_iter().rev() {
            match self.load(number) {
                Ok(generation) => return Ok((Some(generation), damaged)),
                Err(error) => damaged.push(error),
            }
        }
        Ok((None, damaged))
    }

    /// Writes the next generation. It has its name only once every byte of it is on the disk.
    pub fn write(&self, chain: &VerifiedChain, bundle: &TrustBundle) -> Result<Generation, FileError> {
        let number = self.numbers()?.last().map_or(1, |last| last + 1);
        let files = self.files(number);
        let finished = self.directory_of(number);
        let partial = finished.with_extension("partial");
        durable::remove_all(&partial)?;
        let secrecy = Secrecy::of(self.directory.parent().unwrap_or(&self.directory));
        durable::create_directory(&self.directory, secrecy.directory_mode())?;
        // A key isn't written to wherever a symlink leads.
        let own = fs::symlink_metadata(&self.directory).map_err(FileError::on("look at", &self.directory))?;
        if !own.is_dir() {
            let reason = std::io::Error::new(std::io::ErrorKind::NotADirectory, "it is a symlink; remove it");
            return Err(FileError::on("write below", &self.directory)(reason));
        }
        durable::create_directory(&partial, secrecy.directory_mode())?;
        durable::create(&partial.join("key.pem"), chain.key.expose().as_bytes(), secrecy.file_mode())?;
        durable::create(&partial.join("cert.pem"), chain.cert_pem.as_bytes(), 0o644)?;
        durable::create(&partial.join("ca.pem"), bundle.to_pem().as_bytes(), 0o644)?;
        durable::create(&partial.join("source"), format!("{}\n{}\n", bundle.source, bundle.version).as_bytes(), 0o644)?;
        durable::sync_parent(&partial.join("key.pem"))?;
        durable::rename(&partial, &finished)?;
        Ok(Generation { number, chain: chain.clone(), bundle: bundle.clone(), files })
    }

    /// Reads one generation back.
    pub fn load(&self, number: u64) -> Result<Generation, GenerationError> {
        let files = self.files(number);
        let source = files.ca_file.with_file_name("source");
        let source = String::from_utf8_lossy(&read(&source)?).into_owned();
        let (source, version) = source.trim_end().split_once('\n').unwrap_or(("unknown", "unknown"));
        let damaged = |path: &Path, reason: String| GenerationError::Damaged { path: path.to_owned(), reason };
        let bundle = TrustBundle::parse(&read(&files.ca_file)?, source, version)
            .map_err(|error| damaged(&files.ca_file, error.to_string()))?;
        let cert_pem =
            String::from_utf8(read(&files.cert_file)?).map_err(|error| damaged(&files.cert_file, error.to_string()))?;
        let leaf = Leaf::from_pem(&cert_pem).map_err(|error| damaged(&files.cert_file, error.to_string()))?;
        let key = Zeroizing::new(read(&files.key_file)?);
        let key = std::str::from_utf8(&key)
            .map(|text| PrivateKeyPem::new(Zeroizing::new(text.to_owned())))
            .map_err(|error| damaged(&files.key_file, error.to_string()))?;
        if !self.belong_together(&key, &leaf) {
            return Err(damaged(&files.key_file, "it is not the certificate's key".into()));
        }
        Ok(Generation { number, chain: VerifiedChain { key, leaf, cert_pem }, bundle, files })
    }

    /// Whether it is the certificate's key. Once that was seen it isn't worked out again: this is asked in every pass.
    fn belong_together(&self, key: &PrivateKeyPem, leaf: &Leaf) -> bool {
        let pair = Zeroizing::new([key.expose().as_bytes(), &leaf.der].concat());
        let pair = sha256_hex(&pair);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if *known == pair {
            return true;
        }
        let belong = public_key_der(key).is_ok_and(|ours| leaf.public_key_der() == Some(ours));
        if belong {
            *known = pair;
        }
        belong
    }

    /// The generation that a configuration's text names, if it names one of these.
    #[must_use]
    pub fn named_in(&self, text: &str) -> Option<u64> {
        let directory = format!("{}/", self.directory.to_str()?);
        let after = &text[text.find(&directory)? + directory.len()..];
        after.split('/').next()?.parse().ok()
    }

    /// Removes what neither a configuration nor a roll-back could want any more.
    pub fn prune(&self, in_use: &[u64]) -> Result<(), FileError> {
        let numbers = self.numbers()?;
        let old = numbers.len().saturating_sub(KEPT);
        for number in numbers[..old].iter().filter(|number| !in_use.contains(number)) {
            durable::remove_all(&self.directory_of(*number))?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, GenerationError> {
    durable::read_if_there(path, MAX_FILE)?
        .ok_or_else(|| GenerationError::Damaged { path: path.to_owned(), reason: "it is missing".into() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::issue::local::Local;
    use crate::issue::{IssueRequest, Issuer};
    use crate::x509::csr::{Csr, KeyAlgorithm};
    use crate::x509::san::Sans;

    async fn chain_and_bundle(directory: &Path) -> (VerifiedChain, TrustBundle) {
        let clock = Clock::System;
        let ca = Local::new(directory.join("ca"), clock);
        let sans = Sans { ips: [[10, 0, 1, 5].into()].into(), ..Sans::default() };
        let csr = Csr::generate("n1", &sans, KeyAlgorithm::EcdsaP256).unwrap();
        let token = csr.idempotency_token();
        let (validity, now) = (Duration::from_hours(1), clock.now());
        let signing_algorithm = &ca.prepare(validity).await.unwrap();
        let request = IssueRequest { csr_pem: &csr.pem, validity, now, signing_algorithm, idempotency_token: &token };
        let issued = ca.collect(&ca.request(&request).await.unwrap()).await.unwrap().unwrap();
        let bundle = TrustBundle::parse(ca.ca_pem().await.unwrap().as_bytes(), "ca", "7").unwrap();
        (bundle.accept(&issued, &csr.key, &sans, clock.now()).unwrap(), bundle)
    }

    #[tokio::test]
    async fn a_damaged_generation_is_passed_over_and_named() {
        let state = tempfile::tempdir().unwrap();
        let (chain, bundle) = chain_and_bundle(state.path()).await;
        let generations = Generations::of(state.path());
        assert!(generations.newest().unwrap().0.is_none());
        let first = generations.write(&chain, &bundle).unwrap();
        let second = generations.write(&chain, &bundle).unwrap();
        let (newest, damaged) = generations.newest().unwrap();
        let newest = newest.unwrap();
        assert!(damaged.is_empty() && newest.number == second.number && newest.chain.key == chain.key);
        assert_eq!((&newest.chain.leaf, &newest.bundle), (&chain.leaf, &bundle));

        fs::write(&second.files.cert_file, "half a certif").unwrap();
        let passed_over = |file: &str| {
            let (newest, damaged) = generations.newest().unwrap();
            assert_eq!(newest.unwrap().number, first.number);
            assert!(damaged[0].to_string().contains(&format!("000002/{file} is damaged")), "{damaged:?}");
        };
        passed_over("cert.pem");
        fs::write(&second.files.cert_file, &chain.cert_pem).unwrap();
        // Nobody sees what is wrong with a key but nats-server, when it is started.
        let other = Csr::generate("n1", &Sans::default(), KeyAlgorithm::EcdsaP256).unwrap();
        for key in ["", "half a key", other.key.expose()] {
            fs::write(&second.files.key_file, key).unwrap();
            passed_over("key.pem");
        }
    }

    #[tokio::test]
    async fn what_is_named_and_the_newest_three_are_kept() {
        let state = tempfile::tempdir().unwrap();
        let (chain, bundle) = chain_and_bundle(state.path()).await;
        let generations = Generations::of(state.path());
        for _ in 0..6 {
            generations.write(&chain, &bundle).unwrap();
        }
        generations.prune(&[2]).unwrap();
        assert_eq!(generations.numbers().unwrap(), [2, 4, 5, 6]);
    }

    #[tokio::test]
    async fn the_state_directorys_group_decides_who_reads_a_key() {
        for (state_mode, key_mode) in [(0o700, 0o600), (0o750, 0o640)] {
            let state = tempfile::tempdir().unwrap();
            fs::set_permissions(state.path(), fs::Permissions::from_mode(state_mode)).unwrap();
            let (chain, bundle) = chain_and_bundle(state.path()).await;
            let written = Generations::of(state.path()).write(&chain, &bundle).unwrap();
            let mode = fs::metadata(written.files.key_file).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, key_mode);
        }
    }

    #[test]
    fn a_text_names_its_generation() {
        let generations = Generations::of(Path::new("/state"));
        let text = "cert_file: \"/state/generations/000041/cert.pem\"\nkey_file: \"/state/generations/000041/key.pem\"";
        assert_eq!(generations.named_in(text), Some(41));
        assert_eq!(generations.named_in("cert_file: /elsewhere/generations/000041/cert.pem"), None);
    }
}
