//! The starts of nats-server that were seen: whether it starts again and again, and whether it listens.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::server::probe::Silence;
use crate::server::standing::Standing;
use crate::server::{Observed, Phase, Presence, StartMark};

/// How many starts make a loop, where none of them comes to serve.
const LOOP: usize = 3;
/// How long a start counts.
const WITHIN: Duration = Duration::from_mins(5);

/// What the passes of this process saw of nats-server's starts.
#[derive(Default)]
pub(super) struct Starts {
    last: Option<StartMark>,
    /// The last start that served, or whose end was noted.
    settled: Option<StartMark>,
    /// When a start was seen to have ended without serving.
    ended: VecDeque<Instant>,
    /// The start whose client port was seen to answer.
    listened: Option<StartMark>,
}

impl Starts {
    /// Takes in what was seen of nats-server.
    pub(super) fn note(&mut self, observed: &Observed, standing: &Standing) {
        let mark = observed.start.as_ref();
        let answers = observed.client.as_ref().map_or_else(Silence::is_harmless, |_served| true);
        if answers && matches!(observed.presence, Presence::Running(_)) {
            self.listened = mark.cloned();
        }
        if standing.is_served() {
            self.ended.clear();
            self.settled = mark.cloned();
        }
        let is_first = self.last.is_none();
        // The start before has ended where another start wrote the pid file.
        if mark.is_some() && mark != self.last.as_ref() {
            self.note_end();
            self.last = mark.cloned();
        }
        let is_absent = matches!(observed.presence, Presence::Absent(_));
        if is_first && is_absent {
            // Nobody knows how the server ended that ran before this process of the agent.
            self.settled = mark.cloned();
        }
        if is_absent && mark.is_some() {
            self.note_end();
        }
        while self.ended.len() > LOOP || self.ended.front().is_some_and(|at| at.elapsed() > WITHIN) {
            self.ended.pop_front();
        }
    }

    /// Notes once that the last start has ended without serving.
    fn note_end(&mut self) {
        if self.last.is_some() && self.last != self.settled {
            self.ended.push_back(Instant::now());
            self.settled.clone_from(&self.last);
        }
    }

    /// Whether nats-server starts again and again and never serves.
    pub(super) fn are_a_loop(&self) -> bool {
        self.ended.len() >= LOOP
    }

    /// Forgets the starts, as after another configuration was put in place.
    pub(super) fn forget(&mut self) {
        self.ended.clear();
    }

    /// What nats-server is about. `None`: it doesn't run.
    pub(super) fn phase(&self, observed: &Observed, standing: &Standing) -> Option<Phase> {
        if !matches!(observed.presence, Presence::Running(_)) {
            return None;
        }
        let has_listened = self.listened.is_some() && self.listened == observed.start;
        Some(match (&observed.client, standing) {
            (_, Standing::Reloading { .. }) => Phase::Reloading,
            (Err(Silence::Full(_)), _) => Phase::Full,
            (Err(Silence::Closed(_) | Silence::Hangs(_)), _) if !has_listened => Phase::Starting,
            (Err(Silence::Closed(_)), _) => Phase::Draining,
            _ => Phase::Running,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(start: i64, client: Silence) -> Observed {
        Observed {
            presence: Presence::Running(1),
            start: Some(StartMark { pid: 1, written: i128::from(start) }),
            client: Err(client),
            ..Observed::absent(String::new())
        }
    }

    fn absent() -> (Observed, Standing) {
        (Observed::absent("gone".into()), Standing::NoServer { why: "gone".into() })
    }

    #[tokio::test(start_paused = true)]
    async fn three_starts_that_end_without_serving_are_a_loop_until_they_are_long_ago() {
        let mut starts = Starts::default();
        let (gone, no_server) = absent();
        for start in 0..3 {
            assert!(!starts.are_a_loop(), "{start}");
            let observed = observed(start, Silence::Closed("no".into()));
            starts.note(&observed, &no_server);
            let ended = Observed { start: observed.start, ..gone.clone() };
            starts.note(&ended, &no_server);
            starts.note(&ended, &no_server);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(starts.are_a_loop());
        tokio::time::sleep(WITHIN).await;
        starts.note(&gone, &no_server);
        assert!(!starts.are_a_loop());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_never_listened_starts_and_then_it_drains() {
        let mut starts = Starts::default();
        let (_, standing) = absent();
        let closed = || Silence::Closed("no".into());
        let phase = |starts: &mut Starts, start, client| {
            let observed = observed(start, client);
            starts.note(&observed, &standing);
            starts.phase(&observed, &standing)
        };
        assert_eq!(phase(&mut starts, 1, closed()), Some(Phase::Starting));
        assert_eq!(phase(&mut starts, 1, Silence::Full("full".into())), Some(Phase::Full));
        assert_eq!(phase(&mut starts, 1, closed()), Some(Phase::Draining));
        assert_eq!(phase(&mut starts, 1, Silence::Hangs("slow".into())), Some(Phase::Running));
        assert_eq!(phase(&mut starts, 2, closed()), Some(Phase::Starting));
        assert_eq!(starts.phase(&absent().0, &standing), None);
    }
}
