//! The included secrets: each is polled like the bundle, on its own back-off.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{Pace, PassError, Polled};
use crate::aws::secret::SecretError;
use crate::conf::reader::Contents;
use crate::error::with_causes;
use crate::included::{IncludedSource, Purpose, candidate_of, forget_others, is_kept, keep};
use crate::reason::Reason;
use crate::server::system::Fault;
use crate::state::durable::{self, FileError};

/// In the order of the included secrets. `None` stands for a secret that was not due.
pub(super) type Answers = Vec<Option<Result<Zeroizing<String>, SecretError>>>;

/// The included secrets. The file of a secret holds its last good content: a content that was committed. A new content
/// has a file beside it until then, because nats-server reads it too.
pub(in crate::reconcile) struct Included {
    secrets: Vec<IncludedOne>,
    state: PathBuf,
    /// Whether the contents of secrets that are no longer included may still be on the disk.
    may_have_others: bool,
    /// Why the new contents can't be committed. They are tried again when a secret is read again, or on request.
    refused: Option<Reason>,
    /// Whether the new contents were tried since a secret was last read.
    is_tried: bool,
}

struct IncludedOne {
    file: PathBuf,
    polled: Polled<dyn IncludedSource, ()>,
}

impl IncludedOne {
    fn purpose(&self) -> Purpose {
        self.polled.source.purpose()
    }

    /// The file of a new content, where there is a new content.
    fn candidate(&self) -> Option<PathBuf> {
        Some(candidate_of(&self.file)).filter(|file| file.exists())
    }

    /// Keeps a content that differs from the last good content as the new content. Credentials are part of no
    /// configuration, so each content counts as good.
    fn take(&self, content: &str, state: &Path) -> Result<(), FileError> {
        if self.purpose() == Purpose::System {
            return keep(&self.file, content, state, Purpose::System);
        }
        let candidate = candidate_of(&self.file);
        if is_kept(&self.file, content)? {
            return durable::remove_if_there(&candidate);
        }
        keep(&candidate, content, state, Purpose::Settings)
    }
}

impl Included {
    pub(super) fn new(sources: Vec<(PathBuf, Arc<dyn IncludedSource>)>, pace: Pace, state: &Path) -> Self {
        let one = |(file, source)| IncludedOne { file, polled: Polled::new(source, pace, ()) };
        Self {
            secrets: sources.into_iter().map(one).collect(),
            state: state.to_owned(),
            may_have_others: true,
            refused: None,
            is_tried: false,
        }
    }

    pub(super) fn heed_step_back(&mut self, now: OffsetDateTime) {
        for secret in &mut self.secrets {
            secret.polled.retry.heed_step_back(now);
        }
    }

    /// Asks for the secrets that are due, all at the same time. A secret without any content is due.
    pub(super) async fn ask(&self, now: OffsetDateTime) -> Answers {
        let is_gone = |secret: &IncludedOne| {
            secret.polled.retry.reason.is_none() && secret.candidate().is_none() && !secret.file.exists()
        };
        let asked = self.secrets.iter().map(|secret| async {
            let is_due = secret.polled.is_due(now) || is_gone(secret);
            if is_due { Some(secret.polled.source.fetch().await) } else { None }
        });
        futures_util::future::join_all(asked).await
    }

    /// Keeps the contents for this process and the next.
    pub(super) fn take(&mut self, answers: Answers, now: OffsetDateTime) {
        for (secret, answer) in self.secrets.iter_mut().zip(answers) {
            let kept = answer.map(|answer| {
                let content = answer.map_err(|error| why(secret.purpose(), &error))?;
                secret.take(&content, &self.state).map_err(|error| Reason::from(&error))
            });
            if secret.polled.note(kept, now, Reason::clone).is_some() {
                self.is_tried = false;
            }
        }
        if self.secrets.iter().all(|secret| secret.candidate().is_none()) {
            self.refused = None;
        }
        if std::mem::take(&mut self.may_have_others) {
            let files = self.secrets.iter().flat_map(|secret| [secret.file.clone(), candidate_of(&secret.file)]);
            if let Err(error) = forget_others(&self.state, &files.collect::<Vec<_>>()) {
                tracing::warn!("the content of a secret that is no longer included stays: {}", with_causes(&error));
            }
        }
    }

    /// The files of new contents that are to be tried, by the files of the last good contents.
    pub(in crate::reconcile) fn candidates(&self, is_asked: bool) -> BTreeMap<PathBuf, PathBuf> {
        if self.is_tried && !is_asked && self.has_last_good() {
            return BTreeMap::new();
        }
        self.secrets.iter().filter_map(|secret| Some((secret.file.clone(), secret.candidate()?))).collect()
    }

    /// Whether each secret with settings has a last good content.
    pub(in crate::reconcile) fn has_last_good(&self) -> bool {
        self.of(Purpose::Settings).all(|secret| secret.file.exists())
    }

    /// The new contents can't be committed, so the last good contents stay in force.
    pub(in crate::reconcile) fn refuse(&mut self, why: Reason) {
        (self.refused, self.is_tried) = (Some(why), true);
    }

    /// Notes what came of the new contents. Contents that are committed are the last good contents from now on.
    pub(in crate::reconcile) fn note_deployed(&mut self, is_committed: bool, failed: Option<&PassError>) {
        match failed {
            Some(error @ PassError::Deploy(deploy)) if deploy.is_refusal() => self.refuse(error.into()),
            _ if is_committed => {
                if let Err(error) = self.adopt() {
                    tracing::warn!("the content of an included secret is not kept: {}", with_causes(&error));
                }
            }
            _ => {}
        }
    }

    fn adopt(&mut self) -> Result<(), FileError> {
        for secret in &self.secrets {
            if let Some(candidate) = secret.candidate() {
                durable::rename(&candidate, &secret.file)?;
            }
        }
        self.refused = None;
        Ok(())
    }

    /// Why the new contents are not committed.
    pub(super) fn refused(&self) -> Option<&Reason> {
        self.refused.as_ref()
    }

    /// The contents that came, by the files that would keep them.
    pub(super) fn show(&mut self, answers: Answers, now: OffsetDateTime) -> Contents {
        let shown = self.secrets.iter_mut().zip(answers).filter_map(|(secret, answer)| {
            let purpose = secret.purpose();
            let content = secret.polled.note(answer, now, |error| why(purpose, error))?;
            Some((secret.file.clone(), content))
        });
        shown.collect()
    }

    /// Whether each secret with settings has a content, of `contents` or on the disk.
    pub(super) fn are_known(&self, contents: &Contents) -> Result<(), Reason> {
        let is_unknown = |secret: &&IncludedOne| {
            !contents.contains_key(&secret.file) && !secret.file.exists() && secret.candidate().is_none()
        };
        let mut unknown = self.of(Purpose::Settings).filter(is_unknown);
        unknown.find_map(|secret| secret.polled.retry.reason.clone()).map_or(Ok(()), Err)
    }

    /// Why secrets with settings were not read, and why new contents are not committed.
    pub(super) fn reasons(&self) -> impl Iterator<Item = Reason> {
        let unread = self.of(Purpose::Settings).filter_map(|secret| secret.polled.retry.reason.clone());
        unread.chain(self.refused.clone())
    }

    /// Why the credentials of the system account were not read.
    pub(super) fn warnings(&self) -> impl Iterator<Item = Reason> {
        self.of(Purpose::System).filter_map(|secret| secret.polled.retry.reason.clone())
    }

    fn of(&self, purpose: Purpose) -> impl Iterator<Item = &IncludedOne> {
        self.secrets.iter().filter(move |secret| secret.purpose() == purpose)
    }

    /// When the secret answered that has waited longest for an answer.
    pub(super) fn answered_at(&self) -> Option<OffsetDateTime> {
        let answers: Option<Vec<_>> = self.secrets.iter().map(|secret| secret.polled.retry.succeeded_at()).collect();
        answers?.into_iter().min()
    }

    /// When secrets are worth another question.
    pub(super) fn times(&self) -> impl Iterator<Item = OffsetDateTime> {
        self.secrets.iter().map(|secret| secret.polled.retry.next)
    }
}

/// Why a secret was not read. The agent does without credentials of the system account.
fn why(purpose: Purpose, error: &SecretError) -> Reason {
    match purpose {
        Purpose::Settings => Reason::included(error),
        Purpose::System => Reason::SystemSilent { fault: Fault::Credentials, why: with_causes(error) },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_trait::async_trait;

    use super::*;
    use crate::included::file_of;
    use crate::reason::Code;

    struct Never;

    #[async_trait]
    impl IncludedSource for Never {
        async fn fetch(&self) -> Result<Zeroizing<String>, SecretError> {
            std::future::pending().await
        }
    }

    struct Bench {
        state: tempfile::TempDir,
        included: Included,
        file: PathBuf,
    }

    impl Bench {
        fn new() -> Self {
            let state = tempfile::tempdir().unwrap();
            let file = file_of(state.path(), "nats/accounts");
            let second = Duration::from_secs(1);
            let pace = Pace { interval: second, shortest: second, longest: second };
            let included = Included::new(vec![(file.clone(), Arc::new(Never))], pace, state.path());
            Self { state, included, file }
        }

        fn comes(&mut self, content: &str) {
            let now = OffsetDateTime::UNIX_EPOCH;
            self.included.take(vec![Some(Ok(Zeroizing::new(content.to_owned())))], now);
        }

        fn on_disk(&self) -> Option<String> {
            std::fs::read_to_string(&self.file).ok()
        }

        fn candidate(&self, is_asked: bool) -> Option<String> {
            let file = self.included.candidates(is_asked).into_values().next();
            file.and_then(|file| std::fs::read_to_string(file).ok())
        }
    }

    fn refusal() -> Reason {
        Reason::Failed { code: Code::SettingsRefused, subject: None, text: "refused".into() }
    }

    #[test]
    fn a_content_reaches_the_disk_once_it_is_committed_and_a_refused_content_never() {
        let mut bench = Bench::new();
        bench.comes("a: 1");
        assert!(bench.on_disk().is_none() && bench.candidate(false).as_deref() == Some("a: 1"));
        bench.included.adopt().unwrap();
        assert_eq!((bench.on_disk().as_deref(), bench.candidate(false)), (Some("a: 1"), None));

        bench.comes("a: [");
        bench.included.refuse(refusal());
        assert_eq!((bench.on_disk().as_deref(), bench.candidate(false)), (Some("a: 1"), None));
        assert_eq!(bench.candidate(true).as_deref(), Some("a: ["), "a person asks");
        assert_eq!(bench.included.reasons().collect::<Vec<_>>(), [refusal()]);
        // The secret is read again, perhaps after somebody has mended another setting.
        bench.comes("a: [");
        assert_eq!(bench.candidate(false).as_deref(), Some("a: ["));
        assert_eq!(bench.included.refused(), Some(&refusal()), "the reason stays until the content is good");
        bench.comes("a: 1");
        assert_eq!((bench.candidate(true), bench.included.refused()), (None, None));

        bench.comes("a: 2");
        bench.included.adopt().unwrap();
        assert_eq!((bench.on_disk().as_deref(), bench.included.refused()), (Some("a: 2"), None));
        assert!(bench.state.path().exists());
    }

    #[test]
    fn without_a_last_good_content_a_refused_content_is_tried_in_each_pass() {
        let mut bench = Bench::new();
        bench.comes("a: [");
        bench.included.refuse(refusal());
        assert!(bench.on_disk().is_none() && bench.candidate(false).is_some());
    }
}
