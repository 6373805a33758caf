//! Wall clock and timers, under the tests' control.
//!
//! A certificate's lifetime is wall-clock time, and the runtime's timers stop while a machine is suspended. The wall
//! clock alone therefore decides what is due. Every sleep reads it again after [`LONGEST_NAP`] at the latest.
//!
//! A wall clock can also be set back, by years. A sleep therefore never lasts longer, on the runtime's clock, than it
//! was meant to last.
//!
//! A virtual clock derives both times from tokio's paused time. Both times then stay together, and months pass in a
//! second.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use time::OffsetDateTime;

/// The longest sleep before the wall clock is read again. A wake-up after a suspend is late by this much at most.
const LONGEST_NAP: Duration = Duration::from_secs(10);

/// The source of the wall-clock time.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// The system's wall clock.
    System,
    /// A clock that read `start` when the runtime's clock read `origin`, and that follows the runtime's clock.
    Virtual {
        /// The wall-clock time at `origin`.
        start: OffsetDateTime,
        /// The runtime's time at `start`.
        origin: tokio::time::Instant,
        /// Seconds by which the clock was set forward since. `None`: the clock can't be set.
        stepped: Option<&'static AtomicI64>,
    },
}

impl Clock {
    /// A clock that starts at `start` and follows the runtime's clock (paused, in a test).
    #[must_use]
    pub fn starting_at(start: OffsetDateTime) -> Self {
        Self::Virtual { start, origin: tokio::time::Instant::now(), stepped: None }
    }

    /// Like [`Clock::starting_at`], and [`Clock::step`] can set the clock.
    #[cfg(test)]
    pub(crate) fn steppable(start: OffsetDateTime) -> Self {
        // A clock is copied freely. A test may leak these few bytes.
        let stepped = Box::leak(Box::default());
        Self::Virtual { start, origin: tokio::time::Instant::now(), stepped: Some(stepped) }
    }

    /// Sets a virtual clock forward or back. The runtime's clock is not affected.
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

    /// The wall-clock time at `then`, computed back from now at the pace of the runtime's clock. Each time that the
    /// wall clock is set back, the result for the same `then` gets earlier.
    #[must_use]
    pub fn now_seen_from(&self, then: tokio::time::Instant) -> OffsetDateTime {
        self.now() - then.elapsed()
    }

    /// Returns once the wall clock has reached `deadline`. After a suspend or a step forward it returns at most
    /// [`LONGEST_NAP`] late.
    ///
    /// It also returns once the time that was left at the call has passed on the runtime's clock. A wall clock that is
    /// set back by hours therefore doesn't prolong the sleep.
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

/// Formats a time as RFC 3339 in UTC, to the second.
#[must_use]
pub fn rfc3339(time: OffsetDateTime) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    time.to_offset(time::UtcOffset::UTC).format(format).unwrap_or_else(|_| time.to_string())
}

/// Reads a time in RFC 3339. `None`: the text is no such time.
#[must_use]
pub fn read_rfc3339(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: OffsetDateTime = time::macros::datetime!(2026-03-01 12:00 UTC);
    const MINUTE: Duration = Duration::from_mins(1);

    /// How long a sleep of a minute lasts if the clock is set by `step` in the middle of it.
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
