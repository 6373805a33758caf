//! Generations: a key, a certificate and a bundle that belong together. A generation never changes once it has its name.
//!
//! The files are `STATE/generations/000042/{key.pem,cert.pem,ca.pem}`, and `clients.pem` with `[trust.clients]`. The newest
//! generation is to be deployed. The generation that the committed nats-server.conf names is deployed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::digest::sha256_hex;
use crate::state::durable::{self, FileError, Secrecy};
use crate::trust::{TrustBundle, VerifiedChain};
use crate::x509::chain::{Chain, StoredChain, StoredChainError};
use crate::x509::csr::PrivateKeyPem;

/// The largest file of a generation, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// How many of the newest generations stay for a roll-back, beside those in use.
const KEPT: usize = 3;

/// No node reaches this number: at a generation a second that takes thirty thousand years.
const LAST: u64 = 1_000_000_000_000;

/// A generation on the disk.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Counted from 1 and never used again.
    pub number: u64,
    /// Key, leaf and intermediates.
    pub chain: StoredChain,
    /// The bundle in force when the generation was written.
    pub bundle: TrustBundle,
    /// The paths that nats-server.conf names.
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
    /// Trust bundle for what clients present. Without `[trust.clients]` the path is `ca_file`.
    pub client_ca_file: PathBuf,
}

/// The trust bundle in a generation's directory.
const CA: &str = "ca.pem";
/// The bundle of `[trust.clients]` in a generation's directory, with the anchors of nodes too.
const CLIENTS: &str = "clients.pem";
/// The names of a generation's trust bundles.
pub(crate) const BUNDLES: [&str; 2] = [CA, CLIENTS];
/// The bundle of `[trust.clients]` as it came: source, version, and its anchors alone.
const CLIENTS_SOURCE: &str = "clients.source";
/// The largest file of anchors of clients and nodes, in bytes.
const MAX_CLIENTS: u64 = 2 * MAX_FILE + 4096;

impl TlsFiles {
    /// The files of a generation with a bundle for what clients present.
    pub(crate) fn with_clients(self) -> Self {
        Self { client_ca_file: self.ca_file.with_file_name(CLIENTS), ..self }
    }

    /// The trust bundle for a `tls` block. `block` is the outermost block that the `tls` block is in, or `tls` itself. Clients
    /// connect to the client port, and by websocket and MQTT. Servers connect to every other listener.
    pub(crate) fn ca_file_of(&self, block: &str) -> &Path {
        let is_of_clients = ["tls", "websocket", "mqtt"].iter().any(|known| block.eq_ignore_ascii_case(known));
        if is_of_clients { &self.client_ca_file } else { &self.ca_file }
    }
}

/// The directory of all generations.
#[derive(Clone, Debug)]
pub struct Generations {
    directory: PathBuf,
    /// The digest of the key and the certificate that were last seen to belong together. No key stays in memory.
    known: Arc<Mutex<String>>,
}

/// Why a generation can't be used.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// The system can't write or read a file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is missing, or its content is not as written.
    #[error("{} is damaged: {reason}; it is passed over, and a new generation is made", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with the file.
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

    /// The paths of a generation, whether there is such a generation or not.
    #[must_use]
    pub(crate) fn files(&self, number: u64) -> TlsFiles {
        let directory = self.directory_of(number);
        TlsFiles {
            cert_file: directory.join("cert.pem"),
            key_file: directory.join("key.pem"),
            ca_file: directory.join(CA),
            client_ca_file: directory.join(CA),
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
            // A name in another form, `.partial` for instance, is no generation.
            numbers.extend(
                number.filter(|number| *number < LAST && self.directory_of(*number).file_name() == Some(&name)),
            );
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The newest generation that can be read, and the faults of all newer generations.
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

    /// The leaves of all generations that can be read. nats-server on this node serves one of them.
    pub(crate) fn leaves(&self) -> Vec<CertificateDer<'static>> {
        let numbers = self.numbers().unwrap_or_default();
        let chains = numbers.into_iter().filter_map(|number| {
            let text = read(&self.files(number).cert_file).ok()?;
            Chain::from_pem(&text).ok()
        });
        chains.map(|chain| chain.leaf().clone()).collect()
    }

    /// Writes the next generation from a new certificate.
    pub(crate) fn write(&self, chain: &VerifiedChain, bundle: &TrustBundle) -> Result<Generation, FileError> {
        self.write_again(chain.stored(), bundle)
    }

    /// Writes the next generation from the certificate of an earlier generation, with another bundle. The directory gets
    /// its name only once every byte in it is on the disk.
    pub(crate) fn write_again(&self, chain: &StoredChain, bundle: &TrustBundle) -> Result<Generation, FileError> {
        let number = self.numbers()?.last().map_or(1, |last| last + 1);
        let mut files = self.files(number);
        let finished = self.directory_of(number);
        let partial = finished.with_extension("partial");
        durable::remove_all(&partial)?;
        let secrecy = Secrecy::of(self.directory.parent().unwrap_or(&self.directory));
        durable::create_directory(&self.directory, secrecy.directory_mode())?;
        // No key goes where a symlink leads.
        let own = fs::symlink_metadata(&self.directory).map_err(FileError::on("look at", &self.directory))?;
        if !own.is_dir() {
            let reason = std::io::Error::new(std::io::ErrorKind::NotADirectory, "it is a symlink; remove it");
            return Err(FileError::on("write below", &self.directory)(reason));
        }
        durable::create_directory(&partial, secrecy.directory_mode())?;
        durable::create(&partial.join("key.pem"), chain.key().expose().as_bytes(), secrecy.file_mode())?;
        durable::create(&partial.join("cert.pem"), chain.chain().to_pem().as_bytes(), 0o644)?;
        durable::create(&partial.join(CA), bundle.to_pem().as_bytes(), 0o644)?;
        let source = format!("{}\n{}\n{}", bundle.source, bundle.version, bundle.distrust_lines());
        durable::create(&partial.join("source"), source.as_bytes(), 0o644)?;
        if let Some(clients) = &bundle.clients {
            let source = format!("{}\n{}\n{}", clients.source, clients.version, clients.to_pem());
            durable::create(&partial.join(CLIENTS), bundle.to_clients_pem().as_bytes(), 0o644)?;
            durable::create(&partial.join(CLIENTS_SOURCE), source.as_bytes(), 0o644)?;
            files = files.with_clients();
        }
        durable::sync_parent(&partial.join("key.pem"))?;
        durable::rename(&partial, &finished)?;
        Ok(Generation { number, chain: chain.clone(), bundle: bundle.clone(), files })
    }

    /// Reads a generation and checks that its key is the certificate's.
    pub fn load(&self, number: u64) -> Result<Generation, GenerationError> {
        let mut files = self.files(number);
        let source_file = files.ca_file.with_file_name("source");
        let text = String::from_utf8_lossy(&read(&source_file)?).into_owned();
        let mut lines = text.lines();
        let (source, version) = (lines.next().unwrap_or("unknown"), lines.next().unwrap_or("unknown"));
        let damaged = |path: &Path, reason: String| GenerationError::Damaged { path: path.to_owned(), reason };
        let bundle = TrustBundle::parse(&read(&files.ca_file)?, source, version)
            .map_err(|error| damaged(&files.ca_file, error.to_string()))?;
        // What nodes distrust stays distrusted for clients while the source of the bundle is away.
        let bundle = bundle.with_distrust_lines(&text).map_err(|error| damaged(&source_file, error.to_string()))?;
        let bundle = load_clients(&files, bundle)?;
        if bundle.clients.is_some() {
            files = files.with_clients();
        }
        let (cert, key) = (read(&files.cert_file)?, Zeroizing::new(read(&files.key_file)?));
        let digest = sha256_hex(&Zeroizing::new([&key[..], &[0], &cert].concat()));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let chain = Chain::from_pem(&cert).map_err(|error| damaged(&files.cert_file, error.to_string()))?;
        let key = std::str::from_utf8(&key)
            .map(|text| PrivateKeyPem::new(Zeroizing::new(text.to_owned())))
            .map_err(|error| damaged(&files.key_file, error.to_string()))?;
        let chain = if *known == digest {
            StoredChain::known(key, chain).map_err(Into::into)
        } else {
            StoredChain::new(key, chain)
        };
        let chain = chain.map_err(|error| match error {
            StoredChainError::Leaf(_) => damaged(&files.cert_file, error.to_string()),
            StoredChainError::OtherKey => damaged(&files.key_file, error.to_string()),
        })?;
        *known = digest;
        Ok(Generation { number, chain, bundle, files })
    }

    /// The generation that a configuration names, or nothing where it names files elsewhere.
    #[must_use]
    pub fn named_in(&self, text: &str) -> Option<u64> {
        let directory = format!("{}/", self.directory.to_str()?);
        let after = &text[text.find(&directory)? + directory.len()..];
        after.split('/').next()?.parse().ok()
    }

    /// The same file in the generation `number`. `None`: the path belongs to no generation. The bundle of nodes stands for a
    /// bundle of clients that the generation lacks.
    #[must_use]
    pub(crate) fn renumbered(&self, path: &str, number: u64) -> Option<String> {
        let (generation, file) = path.strip_prefix(self.directory.to_str()?)?.strip_prefix('/')?.split_once('/')?;
        generation.parse::<u64>().ok()?;
        let directory = self.directory_of(number);
        let file = if file == CLIENTS && !directory.join(CLIENTS).exists() { CA } else { file };
        Some(format!("{}/{file}", directory.to_str()?))
    }

    /// Removes every generation that is neither in use nor among the newest.
    pub(crate) fn prune(&self, in_use: &[u64]) -> Result<(), FileError> {
        let numbers = self.numbers()?;
        let old = numbers.len().saturating_sub(KEPT);
        for number in numbers[..old].iter().filter(|number| !in_use.contains(number)) {
            durable::remove_all(&self.directory_of(*number))?;
        }
        Ok(())
    }
}

/// Adds the bundle of `[trust.clients]`, where the generation has such a bundle. nats-server skips a corrupt block, so what it
/// reads is compared byte by byte.
fn load_clients(files: &TlsFiles, bundle: TrustBundle) -> Result<TrustBundle, GenerationError> {
    let (path, source) = (files.ca_file.with_file_name(CLIENTS), files.ca_file.with_file_name(CLIENTS_SOURCE));
    let damaged = |path: &Path, reason: String| GenerationError::Damaged { path: path.to_owned(), reason };
    // One file without the other is a loss: without the bundle nats-server would not start on the configuration that names it.
    let (read_by_server, text) =
        match (durable::read_if_there(&path, MAX_CLIENTS)?, durable::read_if_there(&source, MAX_CLIENTS)?) {
            (None, None) => return Ok(bundle),
            (Some(read_by_server), Some(text)) => (read_by_server, text),
            (None, Some(_)) => return Err(damaged(&path, "it is missing".into())),
            (Some(_), None) => return Err(damaged(&source, "it is missing".into())),
        };
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut parts = text.splitn(3, '\n');
    let (Some(of), Some(version), Some(pem)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(damaged(&source, "it has fewer than three lines".into()));
    };
    let clients = if pem.is_empty() {
        // Distrust may leave no CA of clients.
        TrustBundle::of_no_client(of, version)
    } else {
        TrustBundle::parse(pem.as_bytes(), of, version).map_err(|error| damaged(&source, error.to_string()))?
    };
    let bundle = bundle.with_clients(Some(clients));
    if bundle.to_clients_pem().as_bytes() == read_by_server {
        Ok(bundle)
    } else {
        Err(damaged(&path, "its content is not as written".into()))
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
    use crate::trust::Distrusted;
    use crate::x509::csr::{Csr, KeyAlgorithm};
    use crate::x509::san::Sans;
    use crate::x509::test_ca::Ca;

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
        (bundle.verify(&issued, &csr.key, &sans, clock.now()).unwrap(), bundle)
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
        assert!(damaged.is_empty() && newest.number == second.number && newest.chain.key() == chain.stored().key());
        assert_eq!((newest.chain.leaf(), &newest.bundle), (chain.leaf(), &bundle));

        fs::write(&second.files.cert_file, "half a certif").unwrap();
        let passed_over = |file: &str| {
            let (newest, damaged) = generations.newest().unwrap();
            assert_eq!(newest.unwrap().number, first.number);
            assert!(damaged[0].to_string().contains(&format!("000002/{file} is damaged")), "{damaged:?}");
        };
        passed_over("cert.pem");
        fs::write(&second.files.cert_file, chain.chain().to_pem()).unwrap();
        // Otherwise only nats-server would find a fault in a key, at its start.
        let other = Csr::generate("n1", &Sans::default(), KeyAlgorithm::EcdsaP256).unwrap();
        for key in ["", "half a key", other.key.expose()] {
            fs::write(&second.files.key_file, key).unwrap();
            passed_over("key.pem");
        }
    }

    #[tokio::test]
    async fn a_bundle_of_clients_is_written_beside_the_bundle_of_nodes_and_read_back() {
        let state = tempfile::tempdir().unwrap();
        let (chain, bundle) = chain_and_bundle(state.path()).await;
        let generations = Generations::of(state.path());
        let plain = generations.write(&chain, &bundle).unwrap();
        assert_eq!(plain.files.client_ca_file, plain.files.ca_file);
        let of_clients = TrustBundle::parse(Ca::root("clients").pem.as_bytes(), "nats/clients", "3").unwrap();
        let both = bundle.clone().with_clients(Some(of_clients.clone()));
        let written = generations.write(&chain, &both).unwrap();
        let loaded = generations.load(written.number).unwrap();
        assert_eq!((&loaded.bundle, &loaded.files), (&both, &written.files));
        let pem = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(pem(&loaded.files.ca_file), bundle.to_pem(), "a CA of clients is none of nodes");
        assert_eq!(pem(&loaded.files.client_ca_file), format!("{}{}", of_clients.to_pem(), bundle.to_pem()));
        // The generation before has no such bundle, so the bundle of nodes stands for it.
        let named = loaded.files.client_ca_file.to_str().unwrap();
        assert_eq!(generations.renumbered(named, plain.number).unwrap(), plain.files.ca_file.to_str().unwrap());
        assert_eq!(generations.renumbered(named, written.number).unwrap(), named);
        // What nodes distrust may be every CA of clients.
        let every: Distrusted = of_clients.anchors.iter().map(|anchor| anchor.sha256.parse().unwrap()).collect();
        let none = both.clone().without(&every).unwrap();
        let emptied = generations.write(&chain, &none).unwrap();
        let reread = generations.load(emptied.number).unwrap();
        assert!(reread.bundle.has_anchors_of(&none) && reread.files == emptied.files);
        assert_eq!(pem(&reread.files.client_ca_file), bundle.to_pem());
        for damage in ["clients.pem", "clients.source"] {
            let path = loaded.files.ca_file.with_file_name(damage);
            let before = pem(&path);
            fs::write(&path, before.replacen("MII", "MIJ", 1)).unwrap();
            assert!(generations.load(written.number).unwrap_err().to_string().contains(damage));
            fs::remove_file(&path).unwrap();
            assert!(generations.load(written.number).unwrap_err().to_string().contains(damage));
            fs::write(&path, before).unwrap();
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
