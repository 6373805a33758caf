//! Wall clock and timers, under the tests' control.
//!
//! A certificate's life is wall-clock time, and a timer of the runtime stops while a machine is suspended. So what is
//! due is always asked of the wall clock, and no sleep is longer than [`LONGEST_NAP`] before it is asked again. A wall
//! clock can be set back too, by years, so no sleep outlasts on the runtime's clock what it was to last. Under a virtual
//! clock both follow tokio's paused time, which no suspend can part, and months pass in a second.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use time::OffsetDateTime;

/// The longest sleep before the wall clock is read again, and so how late a wake-up after a suspend can be.
const LONGEST_NAP: Duration = Duration::from_secs(10);

/// Where the time comes from.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// The system's wall clock.
    System,
    /// Began at `start` when the runtime's clock read `origin`, and follows it.
    Virtual {
        /// The wall-clock time at `origin`.
        start: OffsetDateTime,
        /// The runtime's time at `start`.
        origin: tokio::time::Instant,
        /// By how many seconds it was set forward since, if it can be set.
        stepped: Option<&'static AtomicI64>,
    },
}

impl Clock {
    /// A clock that follows the runtime's own (paused, in a test) from `start` on.
    #[must_use]
    pub fn starting_at(start: OffsetDateTime) -> Self {
        Self::Virtual { start, origin: tokio::time::Instant::now(), stepped: None }
    }

    /// The same, and it can be set with [`Clock::step`].
    #[cfg(test)]
    pub(crate) fn steppable(start: OffsetDateTime) -> Self {
        // A clock is copied freely; a test's few bytes may stay.
        let stepped = Box::leak(Box::default());
        Self::Virtual { start, origin: tokio::time::Instant::now(), stepped: Some(stepped) }
    }

    /// Sets a virtual clock forward, or back, while the runtime's goes on.
    #[cfg(test)]
    pub(crate) fn step(&self, by: time::Duration) {
        if let Self::Virtual { stepped: Some(stepped), .. } = self {
            stepped.fetch_add(by.whole_seconds(), Ordering::Relaxed);
        }
    }

    /// The wall-clock time, UTC.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the system's clock")]
    pub fn now(&self) -> OffsetDateTime {
        match self {
            Self::System => OffsetDateTime::now_utc(),
            Self::Virtual { start, origin, stepped } => {
                let stepped = stepped.map_or(0, |stepped| stepped.load(Ordering::Relaxed));
                *start + origin.elapsed() + time::Duration::seconds(stepped)
            }
        }
    }

    /// What the wall clock would have said at `then`, had it run as evenly as the runtime's since: less and less each time
    /// that it is set back.
    #[must_use]
    pub fn now_seen_from(&self, then: tokio::time::Instant) -> OffsetDateTime {
        self.now() - then.elapsed()
    }

    /// Returns once the wall clock has reached `deadline`, at most [`LONGEST_NAP`] late after a suspend or a step forward,
    /// and in any case when as much time has passed as was left at the beginning: a clock that is set back by hours in
    /// the meantime doesn't make it sleep for hours.
    pub async fn sleep_until(&self, deadline: OffsetDateTime) {
        let started = tokio::time::Instant::now();
        let patience = Duration::try_from(deadline - self.now()).unwrap_or_default();
        loop {
            let left = Duration::try_from(deadline - self.now()).unwrap_or_default();
            let left = left.min(patience.saturating_sub(started.elapsed()));
            if left.is_zero() {
                return;
            }
            let longest = if matches!(self, Self::Virtual { stepped: None, .. }) { left } else { LONGEST_NAP };
            tokio::time::sleep(left.min(longest)).await;
        }
    }
}

/// RFC 3339 in UTC, to the second.
#[must_use]
pub fn rfc3339(time: OffsetDateTime) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    time.to_offset(time::UtcOffset::UTC).format(format).unwrap_or_else(|_| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: OffsetDateTime = time::macros::datetime!(2026-03-01 12:00 UTC);
    const MINUTE: Duration = Duration::from_mins(1);

    /// For how long a sleep of a minute lasts if the clock is set by this much in the middle of it.
    async fn sleeps(step: time::Duration) -> Duration {
        let (clock, started) = (Clock::steppable(NOON), tokio::time::Instant::now());
        let sleep = tokio::spawn(async move { clock.sleep_until(NOON + MINUTE).await });
        tokio::time::sleep(MINUTE / 2).await;
        clock.step(step);
        sleep.await.unwrap();
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_lasts_as_long_as_it_was_to_though_the_clock_is_set_back() {
        for step in [time::Duration::ZERO, time::Duration::hours(-3), time::Duration::days(-3653)] {
            let slept = sleeps(step).await;
            assert!(slept >= MINUTE && slept < MINUTE + LONGEST_NAP, "{slept:?} after a step of {step}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_ends_within_a_nap_of_a_step_over_its_end() {
        for step in [time::Duration::hours(3), time::Duration::days(3653)] {
            let slept = sleeps(step).await;
            assert!(slept <= MINUTE / 2 + LONGEST_NAP, "{slept:?} after a step of {step}");
        }
    }
}
