//! `agent client`: what a service on another machine needs to connect, kept current from the connection document.
//!
//! ```text
//! document ─► usable ─► its CA verifies the servers ─► generation directory ─► one symlink swap ─► on_change
//! ```
//!
//! The last good files stay, whatever is wrong with a document.

mod certificate;
pub mod check;
mod files;
mod metrics;
mod on_change;
mod sources;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use prometheus_client::registry::Registry;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::task::JoinError;

use self::check::{Evidence, Finding, Presented, Scope};
pub use self::files::Files;
use self::files::Rendered;
use self::metrics::Telling;
use self::on_change::NotTold;
use self::sources::Sources;
use crate::aws::secret::SecretError;
use crate::clock::{Clock, rfc3339};
use crate::config::client::{ClientConfig, DocumentSource, Login};
use crate::connection::{Document, MAX_DOCUMENT, usable};
use crate::issue::journal::JournalError;
use crate::reason::{Code, Reason, Told};
use crate::reconcile::PassError;
use crate::schedule::{backoff, jittered};
use crate::state::durable::{self, FileError};
use crate::status::State;
use crate::x509::chain::StoredChain;

/// The first pause after a failure.
const SHORTEST_PAUSE: Duration = Duration::from_secs(5);
/// The largest number of servers that are dialled before a document comes into force.
const MOST_DIALLED: usize = 3;

/// Why the files of the service are not brought up to date. The last good files stay.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The secret can't be read, or holds no document.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A file can't be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Nothing names the Region of the secret.
    #[error(
        "the Region of the secret {0:?} is not known, and instance metadata names no Region; write connection.region, or the \
         ARN of the secret"
    )]
    WithoutRegion(String),
    /// The file of the document isn't there.
    #[error("there is no connection document {}; write it, or correct connection.file", .0.display())]
    Missing(PathBuf),
    /// The file holds no document.
    #[error("the file {} {what}; {remedy}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong. It never quotes the content.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// The bundle of the document can't be read.
    #[error(
        "the connection document holds no usable trust bundle under NATS_CA; the agents of the group correct the document"
    )]
    Bundle,
    /// A client with this document verifies none of the servers that answer.
    #[error("a client with this connection document verifies none of the servers that answer ({said}); {remedy}")]
    Unverified {
        /// What the first server showed.
        said: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// There is no new certificate of the service.
    #[error("no new certificate of the service")]
    Certificate(#[source] PassError),
    /// The journal of issuances can't be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// `on_change` failed.
    #[error(transparent)]
    NotTold(#[from] NotTold),
    /// The thread of file work ended early.
    #[error("the work on the files broke off; it is tried again")]
    BrokenOff(#[from] JoinError),
}

impl From<&ClientError> for Reason {
    fn from(error: &ClientError) -> Self {
        let (code, subject) = match error {
            ClientError::Secret(error) => return Self::connection(error),
            ClientError::File(error) => return error.into(),
            ClientError::Journal(error) => return error.into(),
            ClientError::Certificate(error) => return error.into(),
            ClientError::Missing(path) | ClientError::Content { path, .. } => {
                (Code::ConnectionInvalid, Some(path.display().to_string()))
            }
            ClientError::Bundle => (Code::ConnectionInvalid, None),
            ClientError::WithoutRegion(_) => (Code::ConnectionUnavailable, None),
            ClientError::Unverified { .. } => (Code::ClientCaRefused, None),
            ClientError::BrokenOff(_) => (Code::FileFailed, None),
            ClientError::NotTold(_) => (Code::ClientOnChange, None),
        };
        Self::failed(code, subject, error)
    }
}

/// What the last look came to, as `status.json` and `agent client fetch --json` show it.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct ClientStatus {
    /// Healthy: the files are those of the document. Degraded: the last good files stay. Failing: there are no files.
    pub state: State,
    /// Why the state isn't healthy.
    pub reasons: Vec<Told>,
    /// The directory of the files in force.
    pub files: Option<PathBuf>,
    /// When the document of the files changed.
    pub changed_at: Option<String>,
    /// When the document was last looked at.
    pub checked_at: String,
}

/// Keeps the files of one service current.
pub struct Client {
    config: ClientConfig,
    sources: Sources,
    files: Files,
    clock: Clock,
    failures: u32,
    telling: Telling,
}

impl Client {
    /// Asks nobody yet.
    #[must_use]
    pub fn new(config: &ClientConfig) -> Self {
        Self {
            config: config.clone(),
            sources: Sources::default(),
            files: Files::of(&config.directory),
            clock: Clock::System,
            failures: 0,
            telling: Telling::new(),
        }
    }

    /// The document as its source has it now.
    pub async fn document(&mut self) -> Result<Document, ClientError> {
        self.sources.set_up(&self.config, self.clock).await;
        let path = match (&self.config.source, &self.sources.secret) {
            (DocumentSource::File(path), _) => path.clone(),
            (DocumentSource::Secret(_), Some(secret)) => return Ok(secret.document().await?),
            (DocumentSource::Secret(id), None) => return Err(ClientError::WithoutRegion(id.clone())),
        };
        let file = path.clone();
        let bytes = self.on_disk(move |_| Ok(durable::read_if_there(&file, MAX_DOCUMENT as u64)?)).await?;
        let bytes = bytes.ok_or_else(|| ClientError::Missing(path.clone()))?;
        usable(&bytes).map_err(|(what, remedy)| ClientError::Content { path, what, remedy })
    }

    /// The document of the files in force.
    pub async fn last_good(&self) -> Option<Document> {
        self.on_disk(|files| Ok(files.document())).await.ok().flatten()
    }

    /// What Prometheus is told: the registry of one scrape, once there was a look.
    pub fn scraped(&self) -> impl Fn() -> Option<Registry> + Send + Sync + use<> {
        self.telling.scraped()
    }

    /// Does file work on a thread that may block: a disk that hangs holds up no signal and no scrape.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Files) -> Result<T, ClientError> + Send + 'static,
    ) -> Result<T, ClientError> {
        let files = self.files.clone();
        durable::blocking(move || work(&files)).await?
    }

    /// One look: the files are brought up to date, and the service is told.
    pub async fn look(&mut self) -> ClientStatus {
        let failed = self.bring_up_to_date().await;
        let reasons: Vec<_> = failed.iter().map(Reason::from).collect();
        self.failures = if reasons.is_empty() { 0 } else { self.failures.saturating_add(1) };
        for (error, reason) in failed.iter().zip(&reasons) {
            let code = reason.code().as_str();
            self.telling.count(error, code);
            tracing::warn!(code, "{reason}");
        }
        let in_force = self.on_disk(|files| Ok(files.in_force())).await.ok().flatten();
        let state = match (&in_force, reasons.is_empty()) {
            (None, _) => State::Failing,
            (Some(_), true) => State::Healthy,
            (Some(_), false) => State::Degraded,
        };
        let now = self.clock.now();
        let status = ClientStatus {
            state,
            reasons: reasons.iter().map(Told::from).collect(),
            files: in_force.is_some().then(|| self.files.current()),
            changed_at: in_force.as_ref().map(|files| files.document.changed_at.clone()),
            checked_at: rfc3339(now),
        };
        self.telling.tell(status.clone(), now, in_force);
        let told = status.clone();
        if let Err(error) = self.on_disk(move |files| Ok(files.write_status(&told)?)).await {
            let reason = Reason::from(&error);
            tracing::warn!(code = reason.code().as_str(), "{reason}");
        }
        status
    }

    /// When the next look is worth making.
    #[must_use]
    pub fn next(&self) -> OffsetDateTime {
        let ClientConfig { interval, .. } = self.config;
        let random = fastrand::f64();
        self.clock.now()
            + match self.failures {
                0 => jittered(interval, random),
                failures => backoff(failures, SHORTEST_PAUSE.min(interval), interval, random),
            }
    }

    /// The clock that looks go by.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Returns what failed. A document that fails holds up no renewal, and a certificate that fails holds up no document. Before
    /// the first document no certificate is paid for.
    async fn bring_up_to_date(&mut self) -> Vec<ClientError> {
        let mut failed = Vec::new();
        let document = match self.accepted_document().await {
            Ok(document) => Some(document),
            Err(error) => {
                failed.push(error);
                self.last_good().await
            }
        };
        let Some(document) = document else { return failed };
        let certificate = self.certificate().await;
        let is_safe = certificate.is_ok();
        let certificate = match certificate {
            Ok(certificate) => Ok(certificate),
            Err(error) => {
                failed.push(error);
                self.on_disk(|files| Ok(files.chain()?)).await
            }
        };
        // A generation without the certificate in force would take the certificate from the service.
        let Ok(certificate) = certificate else { return failed };
        failed.extend(self.put_in_force(document, certificate, is_safe).await.err());
        failed.extend(self.tell().await.err());
        failed
    }

    /// The document of its source. A document that takes a CA away passes [`Self::verifies_servers`] first. A
    /// document that only adds CAs takes nothing from the service, so a CA rollover waits for no server.
    async fn accepted_document(&mut self) -> Result<Document, ClientError> {
        let document = self.document().await?;
        if self.last_good().await.is_none_or(|before| !document.trusts_all_of(&before)) {
            self.verifies_servers(&document).await?;
        }
        Ok(document)
    }

    /// The certificate of the service, renewed where a renewal is due.
    async fn certificate(&self) -> Result<Option<StoredChain>, ClientError> {
        let Some(certificates) = self.sources.certificates.clone() else { return Ok(None) };
        let asked = Arc::clone(&certificates);
        let looked_at = move |files: &Files| {
            let current = files.chain()?;
            let is_wanted = asked.are_wanted(current.as_ref());
            Ok((current, is_wanted))
        };
        let (current, is_wanted) = self.on_disk(looked_at).await?;
        if !is_wanted {
            return Ok(current);
        }
        certificates.obtain(current.as_ref()).await.map(Some).map_err(ClientError::Certificate)
    }

    /// Writes the files where they differ. Once a certificate `is_safe` in a generation, the journal forgets the certificate.
    async fn put_in_force(
        &self,
        document: Document,
        chain: Option<StoredChain>,
        is_safe: bool,
    ) -> Result<(), ClientError> {
        let (login, certificates) = (self.config.login.clone(), self.sources.certificates.clone());
        let write = move |files: &Files| {
            let rendered = Rendered::of(&document, &login, chain.as_ref(), &files.current());
            if !files.are(&rendered) {
                let number = files.write(&rendered)?;
                tracing::info!("generation {number} of the files is in force");
            } else if certificates.is_none() {
                files.forget_keys()?;
            }
            match (certificates, chain.filter(|_| is_safe)) {
                (Some(certificates), Some(chain)) => Ok(certificates.note_written(chain.leaf())?),
                _ => Ok(()),
            }
        };
        self.on_disk(write).await
    }

    /// Tells the service of the files in force, where the service doesn't know them yet.
    async fn tell(&self) -> Result<(), ClientError> {
        let Some(on_change) = &self.config.on_change else { return Ok(()) };
        let Some(number) = self.on_disk(|files| Ok(files.untold()?)).await? else { return Ok(()) };
        on_change::tell(on_change, self.clock.now()).await?;
        self.on_disk(move |files| Ok(files.note_told(number)?)).await
    }

    /// Refuses a document by which a client verifies none of the servers that answer. Another CA signed the certificates of the
    /// servers, or the certificates lack the names of the URLs. Where no server answers, nothing speaks against the document.
    async fn verifies_servers(&self, document: &Document) -> Result<(), ClientError> {
        let presented = Presented::of(document, &Login::default()).map_err(|_| ClientError::Bundle)?;
        let urls = document.urls().take(MOST_DIALLED);
        let findings = join_all(urls.map(|url| check::check(url, &presented, Scope::Server))).await;
        judge(&findings)
    }
}

/// What the servers say about a document.
fn judge(findings: &[Finding]) -> Result<(), ClientError> {
    if findings.iter().any(|finding| finding.evidence() == Evidence::For) {
        return Ok(());
    }
    let against = findings.iter().find(|finding| finding.evidence() == Evidence::Against);
    against.map_or(Ok(()), |finding| {
        let remedy = finding.fault.map_or("see `agent client check`", check::Fault::remedy);
        Err(ClientError::Unverified { said: format!("{}: {}", finding.url, finding.found), remedy })
    })
}

#[cfg(test)]
mod tests {
    use super::check::Fault;
    use super::*;

    /// rustls verifies the chain before the name. A server refuses the client's certificate after the client has verified the
    /// server's certificate.
    #[test]
    fn a_document_is_refused_where_a_client_verifies_no_server_that_answers() {
        let findings = |faults: &[Option<Fault>]| -> Vec<_> {
            let finding = |fault: &Option<Fault>| Finding {
                url: "tls://a".into(),
                address: None,
                fault: *fault,
                found: "it".into(),
            };
            faults.iter().map(finding).collect()
        };
        for (accepted, faults) in [
            (true, &[None][..]),
            (true, &[Some(Fault::UnknownCa), None]),
            (true, &[Some(Fault::WrongName), None]),
            (true, &[Some(Fault::UnknownCa), Some(Fault::CertificateRequired)]),
            // Nothing speaks against the document: nobody answers, or a clock is off.
            (true, &[Some(Fault::NoAnswer), Some(Fault::NoResolve)]),
            (true, &[Some(Fault::NotYetValid), Some(Fault::Expired)]),
            (true, &[]),
            (false, &[Some(Fault::UnknownCa)]),
            (false, &[Some(Fault::WrongName)]),
            (false, &[Some(Fault::UnknownCa), Some(Fault::WrongName)]),
            (false, &[Some(Fault::NoAnswer), Some(Fault::WrongName), Some(Fault::Expired)]),
        ] {
            assert_eq!(judge(&findings(faults)).is_ok(), accepted, "{faults:?}");
        }
        let told = judge(&findings(&[Some(Fault::NoAnswer), Some(Fault::WrongName)])).unwrap_err().to_string();
        assert!(told.contains("(tls://a: it); dial a name of the certificate"), "{told}");
    }
}
