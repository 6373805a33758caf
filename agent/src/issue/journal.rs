//! The journal: the issuance that is requested and not yet deployed, and the times of recent issuances.
//!
//! The journal is one file, and each write replaces the whole file. It holds the private key of the pending
//! certificate, so it is as secret as a key file.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::error::with_causes;
use crate::state::durable::{self, FileError, Secrecy};
use crate::x509::csr::{Csr, KeyAlgorithm};
use crate::x509::san::Sans;

const VERSION: u32 = 1;
const MAX_SIZE: u64 = 256 * 1024;
/// The largest number of remembered issuances. It exceeds the cap for every leaf that lives for some minutes.
const MAX_REMEMBERED: usize = 20_000;
const DAY: Duration = Duration::from_hours(24);

/// How the issuer names a certificate that was requested: PCA's certificate ARN.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct CertificateHandle(pub String);

/// The journal's file.
#[derive(Clone, Debug)]
pub struct Journal {
    path: PathBuf,
    /// What could not be written, as on a full disk. The entries have a certificate that is paid for.
    unwritten: Arc<Mutex<Option<Entries>>>,
}

/// The content of the journal. Fields of a newer agent are left out, so that a downgrade goes on.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Entries {
    version: u32,
    /// The pending issuance.
    pub pending: Option<Pending>,
    /// The times of issuance in the last day, in the order of issuance.
    #[serde(with = "timestamps")]
    issued: Vec<OffsetDateTime>,
    /// What the newest certificate was asked for. Journals of older agents lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concluded: Option<Concluded>,
    /// The number of certificates in a row that were paid for and are never accepted. Journals of older agents lack the number.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub given_up: u32,
}

/// What a certificate in a generation was asked for.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Concluded {
    /// SHA-256 of the leaf's DER, hexadecimal.
    pub leaf: String,
    /// The name of the issuer.
    pub issuer: String,
    /// The validity that was asked for, in milliseconds.
    pub validity: u64,
    /// The key's algorithm.
    pub algorithm: KeyAlgorithm,
    /// The names and addresses of the request.
    pub sans: Sans,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The field that a journal of every version has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// A pending issuance.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Pending {
    /// The key and the certificate request.
    pub csr: Csr,
    /// The name of the issuer. Journals of older agents lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The time at which the issuance began.
    #[serde(with = "time::serde::rfc3339")]
    pub begun: OffsetDateTime,
    /// The signature algorithm named in the request, once the issuer has given the algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_algorithm: Option<String>,
    /// The validity of the last request, in milliseconds. Journals of older agents lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validity: Option<u64>,
    /// NotAfter of the CA, where the issuer has given it with the algorithm. Journals of older agents lack it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub ca_ends: Option<OffsetDateTime>,
    /// The time given in the last request.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub dated: Option<OffsetDateTime>,
    /// The time of the first request without an answer. A refusal clears this field, unless the issuer may still know
    /// the request.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub unheard: Option<OffsetDateTime>,
    /// NotBefore of the certificate, where the certificate was refused because NotBefore lies ahead of this machine's
    /// clock. Once that clock is set, this time of the issuer's clock shows that the issuance is recent.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub valid_from: Option<OffsetDateTime>,
    /// The certificate's handle at the issuer, once the issuer has given the handle.
    pub handle: Option<CertificateHandle>,
    /// When the issuer gave the handle. Journals of older agents lack it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub named: Option<OffsetDateTime>,
}

/// Why the journal can't be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file can't be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A newer agent or another program wrote the file.
    #[error(
        "the journal {} can't be read ({reason}), so a certificate that was paid for may be lost with it; \
         if no newer agent wrote it, move it away and run `agent renew`", .path.display()
    )]
    Unreadable {
        /// The path of the journal.
        path: PathBuf,
        /// The fault in the file.
        reason: String,
    },
}

impl Journal {
    /// The journal of a state directory.
    #[must_use]
    pub fn of(state: &Path) -> Self {
        Self { path: state.join("issuance.json"), unwritten: Arc::default() }
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the journal. A missing file is an empty journal. What could not be written takes the place of the file.
    pub fn load(&self) -> Result<Entries, JournalError> {
        if let Some(entries) = self.unwritten().clone() {
            return Ok(entries);
        }
        let Some(bytes) = durable::read_if_there(&self.path, MAX_SIZE)?.map(Zeroizing::new) else {
            let issued = Vec::new();
            return Ok(Entries { version: VERSION, pending: None, issued, concluded: None, given_up: 0 });
        };
        Entries::parse(&bytes).map_err(|reason| JournalError::Unreadable { path: self.path.clone(), reason })
    }

    /// Replaces the journal.
    pub fn store(&self, entries: &Entries) -> Result<(), JournalError> {
        let text = serde_json::to_vec(entries)
            .map(Zeroizing::new)
            .map_err(|error| JournalError::Unreadable { path: self.path.clone(), reason: error.to_string() })?;
        durable::replace(&self.path, &text, Secrecy::of(self.path.parent().unwrap_or(&self.path)).file_mode())?;
        *self.unwritten() = None;
        Ok(())
    }

    /// Replaces the journal, or keeps the entries in memory where the file can't be written. The next [`Self::store`] writes
    /// the entries.
    pub(super) fn store_or_keep(&self, entries: &Entries) {
        if let Err(error) = self.store(entries) {
            tracing::warn!("a certificate that is paid for is kept in memory: {}", with_causes(&error));
            *self.unwritten() = Some(entries.clone());
        }
    }

    fn unwritten(&self) -> MutexGuard<'_, Option<Entries>> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    /// A pending issuance that was not requested from the issuer yet.
    #[must_use]
    pub fn of(csr: Csr, begun: OffsetDateTime) -> Self {
        Self {
            csr,
            issuer: None,
            begun,
            signing_algorithm: None,
            validity: None,
            ca_ends: None,
            dated: None,
            unheard: None,
            valid_from: None,
            handle: None,
            named: None,
        }
    }

    /// Whether the issuance, its request or its certificate's lifetime began less than `within` ago. A journal or an issuer can
    /// name any time, so the sum saturates.
    #[must_use]
    pub fn is_recent(&self, within: Duration, now: OffsetDateTime) -> bool {
        let within = time::Duration::try_from(within).unwrap_or(time::Duration::MAX);
        let is_recent = |time: OffsetDateTime| time.saturating_add(within) > now;
        let since = [self.valid_from, self.named].into_iter().flatten();
        is_recent(self.begun) || since.filter(|time| *time <= now).any(is_recent)
    }
}

impl Entries {
    /// Parses a journal's text. The error says what is wrong, without quoting the text.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        // serde_json's message can quote the text around a fault, and that text may be a key.
        let place = |error: serde_json::Error| format!("line {}, column {}", error.line(), error.column());
        // In another version, every other field may differ.
        let Versioned { version } = serde_json::from_slice(text).map_err(place)?;
        if version != VERSION {
            return Err(format!("its version is {version}, this agent's {VERSION}"));
        }
        serde_json::from_slice(text).map_err(place)
    }

    /// Notes an issuance at `now`. The issuer has been paid for it.
    pub fn note_issued(&mut self, now: OffsetDateTime) {
        self.issued.retain(|at| is_of_the_day(*at, now));
        self.issued.push(now);
        let surplus = self.issued.len().saturating_sub(MAX_REMEMBERED);
        self.issued.drain(..surplus);
    }

    /// The number of certificates issued in the day up to `now`.
    #[must_use]
    pub fn issued_in_a_day(&self, now: OffsetDateTime) -> usize {
        self.issued.iter().filter(|at| is_of_the_day(**at, now)).count()
    }
}

/// A clock that is set back by hours doesn't free the cap, so times up to a day ahead count. A time further ahead came
/// from a wrong clock and must not hold the cap for years.
fn is_of_the_day(at: OffsetDateTime, now: OffsetDateTime) -> bool {
    at > now - DAY && at <= now + DAY
}

mod timestamps {
    use serde::{Deserialize, Deserializer, Serializer};
    use time::OffsetDateTime;

    pub(super) fn serialize<S: Serializer>(times: &[OffsetDateTime], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(times.iter().map(|time| time.unix_timestamp()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<OffsetDateTime>, D::Error> {
        Vec::<i64>::deserialize(deserializer)?
            .into_iter()
            .map(|seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(serde::de::Error::custom))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x509::csr::KeyAlgorithm;
    use crate::x509::san::Sans;

    const NOW: OffsetDateTime = time::macros::datetime!(2026-03-01 12:00 UTC);

    fn journal() -> (tempfile::TempDir, Journal) {
        let state = tempfile::tempdir().unwrap();
        let journal = Journal::of(state.path());
        (state, journal)
    }

    #[test]
    fn what_is_under_way_is_read_back_with_its_key_and_its_name() {
        let (_state, journal) = journal();
        let mut entries = journal.load().unwrap();
        assert!(entries.pending.is_none());
        let csr = Csr::generate("n1", &Sans::default(), KeyAlgorithm::EcdsaP256).unwrap();
        let handle = Some(CertificateHandle("arn".into()));
        entries.pending = Some(Pending { handle: handle.clone(), ..Pending::of(csr.clone(), NOW) });
        journal.store(&entries).unwrap();
        let read = journal.load().unwrap().pending.unwrap();
        assert!(read.csr.key == csr.key && read.csr.idempotency_token() == csr.idempotency_token());
        assert_eq!((read.handle, read.begun), (handle, NOW));
    }

    /// The fields that agents came to note, the oldest first.
    const NOTED: [&str; 6] = ["signing_algorithm", "issuer", "dated", "unheard", "valid_from", "named"];

    #[test]
    fn a_journal_is_read_by_agents_before_and_after_the_agent_that_wrote_it() {
        let (_state, journal) = journal();
        let mut entries = journal.load().unwrap();
        let csr = Csr::generate("n1", &Sans::default(), KeyAlgorithm::EcdsaP256).unwrap();
        let all = Pending {
            handle: Some(CertificateHandle("arn".into())),
            issuer: Some("CA".into()),
            signing_algorithm: Some("SHA256WITHECDSA".into()),
            dated: Some(NOW),
            unheard: Some(NOW),
            valid_from: Some(NOW),
            named: Some(NOW),
            ..Pending::of(csr, NOW)
        };
        entries.pending = Some(all);
        entries.given_up = 3;
        let mut written = serde_json::to_value(&entries).unwrap();
        written["later"] = "s3cret".into();
        written["pending"]["later"] = 7.into();
        for noted in (0..=NOTED.len()).rev() {
            let read = Entries::parse(written.to_string().as_bytes()).unwrap();
            let pending = read.pending.unwrap();
            assert_eq!(pending.handle, Some(CertificateHandle("arn".into())), "{noted} fields");
            assert_eq!(pending.issuer.is_some(), noted > 1, "{noted} fields");
            if let Some(field) = noted.checked_sub(1).map(|last| NOTED[last]) {
                assert!(written["pending"].as_object_mut().unwrap().remove(field).is_some(), "{field}");
            }
        }
        assert_eq!(Entries::parse(written.to_string().as_bytes()).unwrap().given_up, 3);
        assert!(written.as_object_mut().unwrap().remove("given_up").is_some());
        assert_eq!(Entries::parse(written.to_string().as_bytes()).unwrap().given_up, 0);
        // What an agent has not to note stays out of the file.
        let csr = Csr::generate("n1", &Sans::default(), KeyAlgorithm::EcdsaP256).unwrap();
        let text = serde_json::to_string(&Pending::of(csr, NOW)).unwrap();
        assert!(NOTED.iter().all(|field| !text.contains(field)), "{text}");
    }

    #[test]
    fn what_is_under_way_is_recent_by_this_clock_or_by_the_issuers_once_it_has_come() {
        let csr = Csr::generate("n1", &Sans::default(), KeyAlgorithm::EcdsaP256).unwrap();
        let (hour, ends) = (time::Duration::HOUR, time::macros::datetime!(9999-12-31 23:59:59 UTC));
        for (begun, valid_from, recent) in [
            (NOW - hour / 2, None, true),
            (NOW - hour, None, false),
            (NOW - 100 * hour, Some(NOW - hour / 2), true),
            (NOW - 100 * hour, Some(NOW - 2 * hour), false),
            // A nonsensical time must not delay the issuance for ever, and the addition accepts any time.
            (NOW - 100 * hour, Some(NOW + hour), false),
            (NOW - 100 * hour, Some(ends), false),
            (ends, Some(ends), true),
        ] {
            let pending = Pending { valid_from, ..Pending::of(csr.clone(), begun) };
            assert_eq!(pending.is_recent(Duration::from_hours(1), NOW), recent, "{begun} {valid_from:?}");
        }
    }

    #[test]
    fn issuances_of_the_last_day_are_counted_and_older_ones_forgotten() {
        let (_state, journal) = journal();
        let mut entries = journal.load().unwrap();
        for hours in [0, 10, 20, 30] {
            entries.note_issued(NOW + Duration::from_hours(hours));
        }
        journal.store(&entries).unwrap();
        let entries = journal.load().unwrap();
        assert_eq!(entries.issued_in_a_day(NOW + Duration::from_hours(30)), 3);
        assert_eq!(entries.issued_in_a_day(NOW + Duration::from_hours(60)), 0);
    }

    #[test]
    fn invariant_11_a_clock_that_is_set_back_by_hours_frees_no_cap_and_one_that_was_years_ahead_holds_none() {
        let (_state, journal) = journal();
        let mut entries = journal.load().unwrap();
        for ahead in [Duration::from_hours(3), 3650 * DAY] {
            entries.note_issued(NOW + ahead);
        }
        assert_eq!(entries.issued_in_a_day(NOW), 0, "what was issued before the step of ten years is forgotten");
        entries.note_issued(NOW + Duration::from_hours(3));
        assert_eq!(entries.issued_in_a_day(NOW), 1);
        entries.note_issued(NOW);
        assert_eq!(entries.issued_in_a_day(NOW), 2);
    }

    #[test]
    fn a_journal_of_a_newer_agent_or_of_something_else_is_refused_and_its_text_not_repeated() {
        let (state, journal) = journal();
        for text in [
            r#"{"version":2,"pending":null,"issued":[]}"#,
            r#"{"version":2,"issuances":["s3cret"]}"#,
            "{\"version\":1,\"pending\":{\"key\":\"s3cret\"",
            "s3cret",
            "",
        ] {
            std::fs::write(state.path().join("issuance.json"), text).unwrap();
            let error = journal.load().unwrap_err();
            assert!(matches!(error, JournalError::Unreadable { .. }), "{error:?}");
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}") {
            let (state, journal) = journal();
            std::fs::write(state.path().join("issuance.json"), text).unwrap();
            let _refused = journal.load();
        }
    }
}
