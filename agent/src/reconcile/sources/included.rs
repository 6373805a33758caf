//! The included secrets: each is polled like the bundle, on its own back-off.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{Pace, Polled};
use crate::aws::secret::SecretError;
use crate::conf::reader::Contents;
use crate::error::with_causes;
use crate::included::{IncludedSource, forget_others, keep};
use crate::reason::Reason;

/// In the order of the included secrets. `None` stands for a secret that was not due.
pub(super) type Answers = Vec<Option<Result<Zeroizing<String>, SecretError>>>;

/// The included secrets, each with the file of its last good answer.
pub(super) struct Included {
    polled: Vec<(PathBuf, Polled<dyn IncludedSource, ()>)>,
    state: PathBuf,
    /// Whether the contents of secrets that are no longer included may still be on the disk.
    may_have_others: bool,
}

impl Included {
    pub(super) fn new(sources: Vec<(PathBuf, Arc<dyn IncludedSource>)>, pace: Pace, state: &Path) -> Self {
        let polled = sources.into_iter().map(|(file, source)| (file, Polled::new(source, pace, ()))).collect();
        Self { polled, state: state.to_owned(), may_have_others: true }
    }

    pub(super) fn heed_step_back(&mut self, now: OffsetDateTime) {
        for (_, polled) in &mut self.polled {
            polled.retry.heed_step_back(now);
        }
    }

    /// Asks for the secrets that are due, all at the same time. A secret whose file is gone is due.
    pub(super) async fn ask(&self, now: OffsetDateTime) -> Answers {
        let is_gone = |file: &Path, polled: &Polled<_, _>| polled.retry.reason.is_none() && !file.exists();
        let asked = self.polled.iter().map(|(file, polled)| async {
            if polled.is_due(now) || is_gone(file, polled) { Some(polled.source.fetch().await) } else { None }
        });
        futures_util::future::join_all(asked).await
    }

    /// Keeps the contents for this process and the next.
    pub(super) fn take(&mut self, answers: Answers, now: OffsetDateTime) {
        for ((file, polled), answer) in self.polled.iter_mut().zip(answers) {
            let kept = answer.map(|answer| {
                let content = answer.map_err(|error| Reason::included(&error))?;
                keep(file, &content, &self.state).map_err(|error| Reason::from(&error))
            });
            polled.note(kept, now, Reason::clone);
        }
        if std::mem::take(&mut self.may_have_others) {
            let files: Vec<&Path> = self.polled.iter().map(|(file, _)| file.as_path()).collect();
            if let Err(error) = forget_others(&self.state, &files) {
                tracing::warn!("the content of a secret that is no longer included stays: {}", with_causes(&error));
            }
        }
    }

    /// The contents that came, by the files that would keep them.
    pub(super) fn show(&mut self, answers: Answers, now: OffsetDateTime) -> Contents {
        let shown = self.polled.iter_mut().zip(answers).filter_map(|((file, polled), answer)| {
            let content = polled.note(answer, now, Reason::included)?;
            Some((file.clone(), content))
        });
        shown.collect()
    }

    /// Whether each secret has a content, of `fetched` or on the disk.
    pub(super) fn are_known(&self, fetched: &Contents) -> Result<(), Reason> {
        let is_unknown = |file: &PathBuf| !fetched.contains_key(file) && !file.exists();
        let mut unknown = self.polled.iter().filter(|(file, _)| is_unknown(file));
        unknown.find_map(|(_, polled)| polled.retry.reason.clone()).map_or(Ok(()), Err)
    }

    /// Why secrets were not read.
    pub(super) fn reasons(&self) -> impl Iterator<Item = Reason> {
        self.polled.iter().filter_map(|(_, polled)| polled.retry.reason.clone())
    }

    /// When the secret answered that has waited longest for an answer.
    pub(super) fn answered_at(&self) -> Option<OffsetDateTime> {
        let answers: Option<Vec<_>> = self.polled.iter().map(|(_, polled)| polled.retry.succeeded_at()).collect();
        answers?.into_iter().min()
    }

    /// When secrets are worth another question.
    pub(super) fn times(&self) -> impl Iterator<Item = OffsetDateTime> {
        self.polled.iter().map(|(_, polled)| polled.retry.next)
    }
}
