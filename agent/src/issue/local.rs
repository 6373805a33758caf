//! The embedded CA, for development and off AWS.
//!
//! The CA lives in a directory that several agents on one machine may share:
//!
//! ```text
//! ca.key             the CA's key, mode 0600, made first
//! ca.pem             the CA's certificate, made from the key before the CA signs anything
//! issued/TOKEN.pem   each leaf by its idempotency token, until the leaf has expired
//! .lock              held by the agent that writes
//! ```
//!
//! Every file appears complete, by a rename. A crash leaves at most a key without a certificate, and the next run makes
//! the certificate. A certificate without its key can't be repaired, so that state is an error.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, PublicKeyData, SerialNumber,
};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{CertificateHandle, IssueRequest, IssuedChain, Issuer};
use crate::clock::Clock;
use crate::digest::hex;
use crate::error::{RemoteError, RemoteErrorKind};
use crate::state::durable::{self, FileError};
use crate::state::lock::Lock;
use crate::x509::leaf::Leaf;

/// The lifetime of the CA.
const CA_LIFETIME: time::Duration = time::Duration::days(3653);

/// The distance of NotBefore into the past, for machines whose clocks differ.
const BACKDATED: time::Duration = time::Duration::seconds(60);

/// The largest CSR, in bytes: the limit of ACM PCA
/// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html>).
const MAX_CSR: usize = 32_768;

/// The largest file that the CA reads, in bytes. Real files have 1,000 to 3,000 bytes.
const MAX_FILE: u64 = 65_536;

/// How long a writer waits for another writer. Signing holds the lock for milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// What the CA does where its key or certificate is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Make,
    Report,
}

/// An issuer that signs with its own key, without a delay.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    directory: PathBuf,
    clock: Clock,
    missing: Missing,
}

impl Local {
    /// A CA in `directory`. The first use makes the directory and the CA.
    #[must_use]
    pub(crate) fn new(directory: PathBuf, clock: Clock) -> Self {
        Self { directory, clock, missing: Missing::Make }
    }

    /// The same CA for a command that changes nothing. It reads an existing CA, makes no CA and signs nothing.
    #[must_use]
    pub(crate) fn read_only(self) -> Self {
        Self { missing: Missing::Report, ..self }
    }

    /// Signs a CSR. A token that was signed before keeps its leaf.
    fn issue(&self, csr: &str, validity: Duration, now: OffsetDateTime, token: &str) -> Result<(), RemoteError> {
        let issued = self.issued(token)?;
        let csr = self.read_csr(csr)?;
        let _lock = self.lock()?;
        let ca = self.authority(now)?;
        if let Some(pem) = self.read(&issued)? {
            return self.check_same_key(&issued, &pem, &csr);
        }
        self.prune(now);
        let pem = self.sign(&ca, &csr, validity, now)?;
        // The lock makes the staged name ours alone. All tokens share the name, so the next leaf replaces a leaf that a
        // crash left behind.
        let staged = self.issued_directory().join(".new");
        durable::replace_through(&staged, &issued, pem.as_bytes(), 0o644).map_err(|error| self.file(error))
    }

    /// Checks the form and the signature of a CSR.
    fn read_csr(&self, csr: &str) -> Result<CertificateSigningRequestParams, RemoteError> {
        let refused = |reason: &str, source| {
            self.failed(RemoteErrorKind::Permanent, reason.to_owned(), "make a new key and CSR".to_owned(), source)
        };
        if csr.len() > MAX_CSR {
            return Err(refused("the CSR is longer than 32,768 bytes", None));
        }
        CertificateSigningRequestParams::from_pem(csr)
            .map_err(|error| refused("the CSR, or its signature, is not valid", Some(error.into())))
    }

    fn sign(
        &self,
        ca: &Authority,
        csr: &CertificateSigningRequestParams,
        validity: Duration,
        now: OffsetDateTime,
    ) -> Result<String, RemoteError> {
        let issuer = rcgen::Issuer::from_ca_cert_pem(&ca.pem, &ca.key).map_err(|error| self.crypto(error))?;
        let asked = time::Duration::try_from(validity).ok().and_then(|validity| now.checked_add(validity));
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name = csr.params.distinguished_name.clone();
        leaf.subject_alt_names.clone_from(&csr.params.subject_alt_names);
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if csr.public_key.algorithm() == &PKCS_RSA_SHA256 {
            leaf.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        }
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        leaf.use_authority_key_identifier_extension = true;
        leaf.not_before = now - BACKDATED;
        leaf.not_after = asked.map_or(ca.not_after, |asked| asked.min(ca.not_after));
        leaf.serial_number = Some(self.serial()?);
        let certificate = leaf.signed_by(&csr.public_key, &issuer).map_err(|error| self.crypto(error))?;
        Ok(certificate.pem())
    }

    /// Refuses a token that was used with another key.
    fn check_same_key(&self, file: &Path, pem: &str, csr: &CertificateSigningRequestParams) -> Result<(), RemoteError> {
        let stored = Leaf::from_pem(pem).ok().and_then(|leaf| leaf.public_key_der());
        if stored.is_some_and(|stored| stored == csr.public_key.subject_public_key_info()) {
            return Ok(());
        }
        Err(self.failed(
            RemoteErrorKind::Permanent,
            format!("{} was issued for the same idempotency token and another key", file.display()),
            "make a new key and CSR".to_owned(),
            None,
        ))
    }

    fn key_file(&self) -> PathBuf {
        self.directory.join("ca.key")
    }

    fn certificate_file(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    fn issued_directory(&self) -> PathBuf {
        self.directory.join("issued")
    }

    /// The CA on the disk, or `None` where the CA is not complete yet. The caller needs no lock.
    fn existing(&self, now: OffsetDateTime) -> Result<Option<Authority>, RemoteError> {
        let (key_file, certificate_file) = (self.key_file(), self.certificate_file());
        // The key is written first, so a crash never leaves a certificate without a key. This state is damage.
        let Some(pem) = self.read(&certificate_file)? else { return Ok(None) };
        let key = self.read(&key_file)?.ok_or_else(|| self.unusable(&key_file, None))?;
        let key = KeyPair::from_pem(&key).map_err(|error| self.unusable(&key_file, Some(error.into())))?;
        let certificate = Leaf::from_pem(&pem).map_err(|error| self.unusable(&certificate_file, Some(error.into())))?;
        if certificate.public_key_der().is_none_or(|public| public != key.subject_public_key_info()) {
            return Err(self.unusable(&key_file, None));
        }
        if certificate.not_after <= now {
            return Err(self.failed(
                RemoteErrorKind::Permanent,
                format!("the CA ended on {}", certificate.not_after.date()),
                format!("move {} away: a new CA is made in its place", self.directory.display()),
                None,
            ));
        }
        Ok(Some(Authority { pem: pem.to_string(), key, not_after: certificate.not_after }))
    }

    /// The CA, made where its key or certificate is missing. The caller holds the lock.
    fn authority(&self, now: OffsetDateTime) -> Result<Authority, RemoteError> {
        if let Some(existing) = self.existing(now)? {
            return Ok(existing);
        }
        let key_file = self.key_file();
        let key = if let Some(pem) = self.read(&key_file)? {
            KeyPair::from_pem(&pem).map_err(|error| self.unusable(&key_file, Some(error.into())))?
        } else {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| self.crypto(error))?;
            self.write(&key_file, 0o600, Zeroizing::new(key.serialize_pem()).as_bytes())?;
            key
        };
        let pem = self.make_certificate(&key, now)?;
        self.write(&self.certificate_file(), 0o644, pem.as_bytes())?;
        self.existing(now)?.ok_or_else(|| self.unusable(&self.certificate_file(), None))
    }

    fn make_certificate(&self, key: &KeyPair, now: OffsetDateTime) -> Result<String, RemoteError> {
        let serial = self.serial()?;
        let mut ca = CertificateParams::default();
        ca.distinguished_name = rcgen::DistinguishedName::new();
        let name = format!("nats-tls-agent local CA {}", hex(&serial.to_bytes()[..4]));
        ca.distinguished_name.push(DnType::CommonName, name);
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        ca.not_before = now - time::Duration::hours(1);
        ca.not_after = now + CA_LIFETIME;
        ca.serial_number = Some(serial);
        Ok(ca.self_signed(key).map_err(|error| self.crypto(error))?.pem())
    }

    /// A positive serial number of 127 bits, 126 of them random (RFC 5280, section 4.1.2.2, allows 20 octets).
    fn serial(&self) -> Result<SerialNumber, RemoteError> {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|error| self.crypto(error))?;
        bytes[0] = bytes[0] & 0x7f | 0x40;
        Ok(SerialNumber::from_slice(&bytes))
    }

    /// Removes expired leaves, as no journal asks for them any more. A leaf that can't be removed stays until the next time.
    fn prune(&self, now: OffsetDateTime) {
        let entries = std::fs::read_dir(self.issued_directory()).into_iter().flatten();
        for file in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let pem = self.read(&file).ok().flatten();
            if pem.and_then(|pem| Leaf::from_pem(&pem).ok()).is_some_and(|leaf| leaf.not_after < now)
                && let Err(error) = durable::remove_if_there(&file)
            {
                tracing::debug!("{error}: {}", error.source);
            }
        }
    }

    /// The file of a token's leaf. The token comes from the journal, so it is checked before it names a file.
    fn issued(&self, token: &str) -> Result<PathBuf, RemoteError> {
        let plain = token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if token.is_empty() || token.len() > 64 || !plain {
            return Err(self.failed(
                RemoteErrorKind::Permanent,
                format!("{token:?} is not the name of a certificate of this CA"),
                "make a new key and CSR".to_owned(),
                None,
            ));
        }
        Ok(self.issued_directory().join(format!("{token}.pem")))
    }

    /// Makes the directories, and waits until no other agent writes to the CA.
    fn lock(&self) -> Result<Lock, RemoteError> {
        if self.missing == Missing::Report {
            return Err(self.failed(
                RemoteErrorKind::Permanent,
                "this command only looks at the CA".to_owned(),
                "have `agent run` or `agent renew` use the CA".to_owned(),
                None,
            ));
        }
        self.make_directories().map_err(|error| self.file(error))?;
        let path = self.directory.join(".lock");
        let lock = Lock::wait(&path, LOCK_TIMEOUT).map_err(|error| self.file(error))?;
        lock.ok_or_else(|| {
            self.failed(
                RemoteErrorKind::Unavailable,
                format!("another process held {} for {} s", path.display(), LOCK_TIMEOUT.as_secs()),
                "it is tried again; find the process with `fuser` if this goes on".to_owned(),
                None,
            )
        })
    }

    fn make_directories(&self) -> Result<(), FileError> {
        let issued = self.issued_directory();
        if issued.is_dir() {
            return Ok(());
        }
        durable::create_directory(&issued, 0o700)?;
        // After a power cut that loses the directory, the next agent would make another CA.
        durable::sync_parent(&issued)?;
        durable::sync_parent(&self.directory)
    }

    /// The text of a file, or `None` where there is no file. The text is wiped when dropped, as the file may be the key.
    fn read(&self, path: &Path) -> Result<Option<Zeroizing<String>>, RemoteError> {
        let Some(bytes) = durable::read_if_there(path, MAX_FILE).map_err(|error| self.file(error))? else {
            return Ok(None);
        };
        let bytes = Zeroizing::new(bytes);
        let text = std::str::from_utf8(&bytes).map_err(|error| self.unusable(path, Some(error.into())))?;
        Ok(Some(Zeroizing::new(text.to_owned())))
    }

    /// Replaces a file of the CA itself. The caller holds the lock.
    fn write(&self, path: &Path, mode: u32, content: &[u8]) -> Result<(), RemoteError> {
        durable::replace(path, content, mode).map_err(|error| self.file(error))
    }

    fn failed(
        &self,
        kind: RemoteErrorKind,
        reason: String,
        remedy: String,
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    ) -> RemoteError {
        RemoteError { source, ..RemoteError::new(kind, format!("signing on {}", self.name()), reason, remedy) }
    }

    fn file(&self, error: FileError) -> RemoteError {
        let (kind, remedy) = match error.source.kind() {
            std::io::ErrorKind::PermissionDenied => {
                (RemoteErrorKind::Denied, "let the agent's user own `issuer.directory` and its files")
            }
            _ => (RemoteErrorKind::Unavailable, "it is tried again; check the disk and `issuer.directory`"),
        };
        self.failed(kind, error.to_string(), remedy.to_owned(), Some(error.source.into()))
    }

    fn crypto(&self, error: impl std::error::Error + Send + Sync + 'static) -> RemoteError {
        let reason = "the crypto library failed".to_owned();
        self.failed(RemoteErrorKind::Permanent, reason, "make a new key and CSR".to_owned(), Some(error.into()))
    }

    /// The error for files that don't make a CA.
    fn unusable(&self, path: &Path, source: Option<Box<dyn std::error::Error + Send + Sync>>) -> RemoteError {
        let reason = format!("{} is missing, damaged or not the other half of the CA", path.display());
        let remedy = format!(
            "restore ca.key and ca.pem from one backup, or move {} away: a new CA is made, which every node and client must then trust",
            self.directory.display()
        );
        self.failed(RemoteErrorKind::Permanent, reason, remedy, source)
    }

    /// Runs file and crypto work on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, RemoteError> + Send + 'static,
    ) -> Result<T, RemoteError> {
        let ca = self.clone();
        durable::blocking(move || work(&ca)).await.unwrap_or_else(|error| {
            let (reason, remedy) = ("the work was broken off".to_owned(), "it is tried again".to_owned());
            Err(self.failed(RemoteErrorKind::Unavailable, reason, remedy, Some(error.into())))
        })
    }
}

#[async_trait]
impl Issuer for Local {
    fn name(&self) -> String {
        format!("the local CA in {}", self.directory.display())
    }

    async fn prepare(&self, _validity: Duration) -> Result<String, RemoteError> {
        // The key of the CA is on P-256.
        Ok("SHA256WITHECDSA".into())
    }

    async fn request(&self, request: &IssueRequest<'_>) -> Result<CertificateHandle, RemoteError> {
        let (csr, token) = (request.csr_pem.to_owned(), request.idempotency_token.to_owned());
        let (validity, now) = (request.validity, request.now);
        self.blocking(move |ca| ca.issue(&csr, validity, now, &token).map(|()| CertificateHandle(token))).await
    }

    async fn collect(&self, handle: &CertificateHandle) -> Result<Option<IssuedChain>, RemoteError> {
        let issued = self.issued(&handle.0)?;
        self.blocking(move |ca| {
            let ca_file = ca.certificate_file();
            match (ca.read(&issued)?, ca.read(&ca_file)?) {
                (Some(leaf_pem), Some(chain_pem)) => {
                    Ok(Some(IssuedChain { leaf_pem: leaf_pem.to_string(), chain_pem: chain_pem.to_string() }))
                }
                (None, _) => Err(ca.failed(
                    RemoteErrorKind::Permanent,
                    format!("there is no {}; it has expired, or the directory is another one", issued.display()),
                    "make a new key and CSR".to_owned(),
                    None,
                )),
                (_, None) => Err(ca.unusable(&ca_file, None)),
            }
        })
        .await
    }

    async fn ca_pem(&self) -> Result<String, RemoteError> {
        let now = self.clock.now();
        self.blocking(move |ca| match (ca.existing(now)?, ca.missing) {
            (Some(existing), _) => Ok(existing.pem),
            (None, Missing::Make) => {
                let _lock = ca.lock()?;
                Ok(ca.authority(now)?.pem)
            }
            (None, Missing::Report) => Err(ca.failed(
                RemoteErrorKind::Absent,
                "there is no CA yet".to_owned(),
                "`agent run` makes it".to_owned(),
                None,
            )),
        })
        .await
    }

    fn spare_issuances_a_day(&self) -> u32 {
        10_000
    }
}

/// The CA, ready to sign.
struct Authority {
    pem: String,
    key: KeyPair,
    not_after: OffsetDateTime,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use time::macros::datetime;

    use super::*;
    use crate::issue::journal::Journal;
    use crate::issue::{Issuance, Issued, ObtainError};
    use crate::node::Node;
    use crate::progress::Progress;
    use crate::schedule::earliest;
    use crate::state::durable::fault::{Fault, plan};
    use crate::trust::TrustBundle;
    use crate::x509::csr::{Csr, KeyAlgorithm};
    use crate::x509::san::{DnsName, Sans};

    const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);
    const DAY: Duration = Duration::from_hours(24);

    fn csr(algorithm: KeyAlgorithm) -> Csr {
        let sans = Sans {
            dns: [DnsName::try_from("n1.nats.internal".to_owned()).unwrap()].into(),
            ips: ["10.0.1.5".parse().unwrap(), "fd00::5".parse().unwrap()].into(),
            uris: ["spiffe://prod/n1".to_owned()].into(),
        };
        Csr::generate("n1", &sans, algorithm).unwrap()
    }

    fn ca(directory: &Path) -> Local {
        Local::new(directory.join("ca"), Clock::System)
    }

    fn asked<'a>(csr: &'a Csr, now: OffsetDateTime, idempotency_token: &'a str) -> IssueRequest<'a> {
        let signing_algorithm = "SHA256WITHECDSA";
        IssueRequest { csr_pem: &csr.pem, validity: DAY, now, signing_algorithm, idempotency_token }
    }

    async fn request(ca: &Local, csr: &Csr, now: OffsetDateTime) -> Result<CertificateHandle, RemoteError> {
        let token = csr.idempotency_token();
        ca.request(&asked(csr, now, &token)).await
    }

    async fn bundle(ca: &Local, now: OffsetDateTime) -> TrustBundle {
        let ca = Local::new(ca.directory.clone(), Clock::starting_at(now));
        TrustBundle::parse(ca.ca_pem().await.unwrap().as_bytes(), "issuer", "1").unwrap()
    }

    #[tokio::test]
    async fn signs_what_its_own_bundle_accepts_for_every_key_algorithm() {
        let directory = tempfile::tempdir().unwrap();
        let ca = ca(directory.path());
        let bundle = bundle(&ca, NOW).await;
        for algorithm in [KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP384, KeyAlgorithm::Rsa2048] {
            let csr = csr(algorithm);
            let handle = request(&ca, &csr, NOW).await.unwrap();
            let chain = ca.collect(&handle).await.unwrap().unwrap();
            let verified = bundle.verify(&chain, &csr.key, &csr.sans, NOW).unwrap();
            assert_eq!(verified.leaf().not_before, NOW - BACKDATED);
            assert_eq!(verified.leaf().not_after, NOW + DAY);
            assert_eq!(verified.leaf().sans, csr.sans);
            assert_eq!(verified.leaf().serial.len(), 32);
            let (_, certificate) = x509_parser::parse_x509_certificate(&verified.leaf().der).unwrap();
            let usage = certificate.key_usage().unwrap().unwrap().value;
            assert!(usage.digital_signature());
            assert_eq!(usage.key_encipherment(), algorithm == KeyAlgorithm::Rsa2048);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn agents_that_begin_at_once_share_one_ca() {
        let directory = tempfile::tempdir().unwrap();
        let first: Vec<_> = (0..8)
            .map(|_| {
                let ca = ca(directory.path());
                tokio::spawn(async move {
                    let csr = csr(KeyAlgorithm::EcdsaP256);
                    let handle = request(&ca, &csr, NOW).await.unwrap();
                    (ca.collect(&handle).await.unwrap().unwrap(), csr)
                })
            })
            .collect();
        let bundle = bundle(&ca(directory.path()), NOW).await;
        for task in first {
            let (chain, csr) = task.await.unwrap();
            bundle.verify(&chain, &csr.key, &csr.sans, NOW).unwrap();
        }
    }

    #[tokio::test]
    async fn invariant_11_the_same_token_gives_the_same_certificate_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let csr = csr(KeyAlgorithm::EcdsaP256);
        let handle = request(&ca(directory.path()), &csr, NOW).await.unwrap();
        let chain = ca(directory.path()).collect(&handle).await.unwrap();
        assert_eq!(request(&ca(directory.path()), &csr, NOW + BACKDATED).await.unwrap(), handle);
        assert_eq!(ca(directory.path()).collect(&handle).await.unwrap(), chain);
    }

    #[tokio::test]
    async fn a_token_of_another_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let ca = ca(directory.path());
        let (ours, other) = (csr(KeyAlgorithm::EcdsaP256), csr(KeyAlgorithm::EcdsaP256));
        let token = request(&ca, &ours, NOW).await.unwrap().0;
        let error = ca.request(&asked(&other, NOW, &token)).await.unwrap_err();
        assert_eq!(error.kind, RemoteErrorKind::Permanent);
        assert!(error.to_string().contains("another key"), "{error}");
    }

    #[tokio::test]
    async fn a_token_never_names_a_file_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let ca = ca(directory.path());
        let csr = csr(KeyAlgorithm::EcdsaP256);
        for token in ["", "../ca", "a/b", "a.pem", "a\0", &"a".repeat(65)] {
            assert_eq!(
                ca.request(&asked(&csr, NOW, token)).await.unwrap_err().kind,
                RemoteErrorKind::Permanent,
                "{token:?}"
            );
            let handle = CertificateHandle(token.to_owned());
            assert_eq!(ca.collect(&handle).await.unwrap_err().kind, RemoteErrorKind::Permanent, "{token:?}");
        }
        assert!(!ca.directory.exists());
    }

    #[tokio::test]
    async fn a_csr_with_a_wrong_signature_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut csr = csr(KeyAlgorithm::EcdsaP256);
        let other = self::csr(KeyAlgorithm::EcdsaP256);
        // The last line of the PEM body belongs to the signature.
        let body = |pem: &str| pem.lines().rev().nth(1).unwrap().to_owned();
        csr.pem = csr.pem.replace(&body(&csr.pem), &body(&other.pem));
        let error = request(&ca(directory.path()), &csr, NOW).await.unwrap_err();
        assert_eq!(error.kind, RemoteErrorKind::Permanent);
        assert!(error.to_string().contains("the CSR, or its signature, is not valid"), "{error}");
    }

    #[tokio::test]
    async fn a_crash_between_key_and_certificate_heals() {
        let directory = tempfile::tempdir().unwrap();
        let ca = ca(directory.path());
        ca.ca_pem().await.unwrap();
        let key = std::fs::read_to_string(ca.directory.join("ca.key")).unwrap();
        std::fs::remove_file(ca.directory.join("ca.pem")).unwrap();
        std::fs::write(ca.directory.join("ca.pem.new"), "half a certificate").unwrap();
        let bundle = bundle(&ca, NOW).await;
        assert_eq!(std::fs::read_to_string(ca.directory.join("ca.key")).unwrap(), key);
        let csr = csr(KeyAlgorithm::EcdsaP256);
        let chain = ca.collect(&request(&ca, &csr, NOW).await.unwrap()).await.unwrap().unwrap();
        bundle.verify(&chain, &csr.key, &csr.sans, NOW).unwrap();
    }

    #[tokio::test]
    async fn halves_that_do_not_match_are_an_error_that_names_the_file() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (ca, other) = (ca(one.path()), ca(two.path()));
        ca.ca_pem().await.unwrap();
        other.ca_pem().await.unwrap();
        let key = ca.directory.join("ca.key");
        std::fs::copy(other.directory.join("ca.key"), &key).unwrap();
        let error = ca.ca_pem().await.unwrap_err();
        assert_eq!(error.kind, RemoteErrorKind::Permanent);
        assert!(error.reason.contains(&key.display().to_string()), "{error}");
        std::fs::remove_file(&key).unwrap();
        assert!(ca.ca_pem().await.is_err(), "a certificate without its key must not be replaced silently");
        std::fs::write(&key, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
        assert!(!format!("{:?}", ca.ca_pem().await.unwrap_err()).contains("AAAA"));
    }

    #[tokio::test]
    async fn invariant_01_the_ca_key_is_readable_by_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let ca = ca(directory.path());
        ca.ca_pem().await.unwrap();
        let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(ca.directory.join("ca.key")), 0o600);
        assert_eq!(mode(ca.directory.clone()), 0o700);
    }

    #[tokio::test]
    async fn expired_certificates_are_pruned_and_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let ca = ca(directory.path());
        let old = request(&ca, &csr(KeyAlgorithm::EcdsaP256), NOW).await.unwrap();
        let live = request(&ca, &csr(KeyAlgorithm::EcdsaP256), NOW + DAY / 2).await.unwrap();
        request(&ca, &csr(KeyAlgorithm::EcdsaP256), NOW + DAY + DAY / 4).await.unwrap();
        assert_eq!(ca.collect(&old).await.unwrap_err().kind, RemoteErrorKind::Permanent);
        ca.collect(&live).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_leaf_never_outlives_the_ca_and_an_ended_ca_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let ca = ca(directory.path());
        let end = bundle(&ca, NOW).await.anchors[0].not_after;
        let handle = request(&ca, &csr(KeyAlgorithm::EcdsaP256), end - DAY / 2).await.unwrap();
        let leaf = Leaf::from_pem(&ca.collect(&handle).await.unwrap().unwrap().leaf_pem).unwrap();
        assert_eq!(leaf.not_after, end);
        let error = request(&ca, &csr(KeyAlgorithm::EcdsaP256), end).await.unwrap_err();
        assert!(error.to_string().contains("the CA ended on 2036-03-01"), "{error}");
    }

    #[tokio::test]
    async fn a_directory_that_can_not_be_made_is_an_error_with_its_cause() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca"), "a file").unwrap();
        let error = ca(directory.path()).ca_pem().await.unwrap_err();
        assert_eq!(error.kind, RemoteErrorKind::Unavailable);
        assert!(std::error::Error::source(&error).is_some());
        assert!(error.to_string().starts_with("signing on the local CA in "), "{error}");
    }

    #[tokio::test]
    async fn a_ca_that_is_only_looked_at_is_not_made() {
        let directory = tempfile::tempdir().unwrap();
        let (ca, look) = (ca(directory.path()), ca(directory.path()).read_only());
        let refused = |error: RemoteError| (error.kind, error.reason.contains("there is no CA yet"));
        assert_eq!(refused(look.ca_pem().await.unwrap_err()), (RemoteErrorKind::Absent, true));
        let error = request(&look, &csr(KeyAlgorithm::EcdsaP256), NOW).await.unwrap_err();
        assert_eq!(error.kind, RemoteErrorKind::Permanent);
        assert!(!ca.directory.exists());
        let pem = ca.ca_pem().await.unwrap();
        assert_eq!(look.ca_pem().await.unwrap(), pem);
        // A crash between the two files leaves this.
        std::fs::remove_file(ca.certificate_file()).unwrap();
        assert_eq!(refused(look.ca_pem().await.unwrap_err()), (RemoteErrorKind::Absent, true));
        assert!(!ca.certificate_file().exists());
    }

    /// A process of node `name`, with the state directory of that node and the CA in `directory`.
    fn process(directory: &Path, name: &str) -> Issuance {
        let state = directory.join(name);
        std::fs::create_dir_all(&state).unwrap();
        let (validity, algorithm, clock) = (DAY, KeyAlgorithm::EcdsaP256, Clock::System);
        let (issuer, journal) = (std::sync::Arc::new(ca(directory)), Journal::of(&state));
        Issuance { issuer, journal, clock, validity, renewed_after: earliest(validity, 0.67), algorithm }
    }

    async fn obtain(issuance: &Issuance) -> Result<Issued, ObtainError> {
        let address = [10, 0, 1, 5].into();
        let sans = Sans { ips: [address].into(), ..Sans::default() };
        let node = Node {
            name: "n1".into(),
            instance_id: None,
            region: None,
            address,
            sans,
            further_addresses: [].into(),
            placement: crate::node::Placement::default(),
        };
        issuance.obtain(&node, None, &Progress::default()).await
    }

    /// Makes a CA and issues a first certificate with a fault at one point. `None` where there are fewer points.
    async fn obtain_with(
        directory: &Path,
        points: u32,
        fault: Fault,
    ) -> Option<Result<Result<Issued, ObtainError>, ()>> {
        let issuance = process(directory, "n1");
        plan(Some((points, fault)));
        let ended = tokio::spawn(async move { obtain(&issuance).await }).await;
        let ended = ended.map_err(|crash| assert!(crash.is_panic(), "{crash}"));
        if plan(None).is_some() { None } else { Some(ended) }
    }

    /// Starts another process of this node, and a process of another node. Asserts that there is one CA, and that each
    /// node has one certificate.
    async fn assert_one_of_each(directory: &Path, point: &str) {
        let key = std::fs::read(directory.join("ca/ca.key")).ok();
        let issued = obtain(&process(directory, "n1")).await.unwrap();
        let other = obtain(&process(directory, "n2")).await.unwrap();
        let repeated = obtain(&process(directory, "n1")).await.unwrap();
        assert_eq!(repeated.chain, issued.chain, "{point}");
        assert_eq!(other.chain.chain_pem, issued.chain.chain_pem, "{point}");
        assert!(key.is_none_or(|key| std::fs::read(directory.join("ca/ca.key")).unwrap() == key), "{point}");
        let bundle = bundle(&ca(directory), Clock::System.now()).await;
        for Issued { csr, chain } in [&issued, &other] {
            bundle.verify(chain, &csr.key, &csr.sans, Clock::System.now()).unwrap();
        }
        let files = std::fs::read_dir(directory.join("ca/issued")).unwrap();
        let mut files: Vec<_> = files.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
        let mut expected = [issued.chain.leaf_pem, other.chain.leaf_pem];
        files.sort_unstable();
        expected.sort_unstable();
        assert_eq!(files, expected, "{point}");
    }

    #[tokio::test]
    async fn invariant_11_a_crash_at_any_point_of_a_first_issuance_leaves_one_ca_and_one_certificate() {
        for points in 0.. {
            let directory = tempfile::tempdir().unwrap();
            let Some(ended) = obtain_with(directory.path(), points, Fault::Crash).await else {
                assert!(points > 35, "only {points} points were passed");
                return;
            };
            assert!(ended.is_err(), "there was no crash at point {points}");
            assert_one_of_each(directory.path(), &format!("after a crash at point {points}")).await;
        }
    }

    #[tokio::test]
    async fn invariant_11_a_disk_that_is_full_at_any_point_of_a_first_issuance_costs_no_second_ca_or_certificate() {
        let mut went_on = 0;
        for points in 0.. {
            let directory = tempfile::tempdir().unwrap();
            let Some(ended) = obtain_with(directory.path(), points, Fault::DiskFull).await else {
                assert!(points > 35, "only {points} points were passed");
                // One write has the certificate's name, and the name is kept in memory.
                assert!((3..8).contains(&went_on), "{went_on} points didn't end the issuance");
                return;
            };
            match ended.expect("a full disk is no crash") {
                Ok(_) => went_on += 1,
                Err(error) => {
                    let told = crate::error::with_causes(&error);
                    assert!(told.contains(&directory.path().display().to_string()), "at point {points}: {told}");
                }
            }
            assert_one_of_each(directory.path(), &format!("after a full disk at point {points}")).await;
        }
    }
}
