//! Wall clock and timers, under the tests' control.
//!
//! A certificate's life is wall-clock time, and a timer of the runtime stops while a machine is suspended. So what is
//! due is always asked of the wall clock, and no sleep is longer than [`LONGEST_NAP`] before it is asked again. Under a
//! virtual clock both follow tokio's paused time, and months pass in a second.

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
    },
}

impl Clock {
    /// A clock that follows the runtime's own (paused, in a test) from `start` on.
    #[must_use]
    pub fn starting_at(start: OffsetDateTime) -> Self {
        Self::Virtual { start, origin: tokio::time::Instant::now() }
    }

    /// The wall-clock time, UTC.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the system's clock")]
    pub fn now(&self) -> OffsetDateTime {
        match self {
            Self::System => OffsetDateTime::now_utc(),
            Self::Virtual { start, origin } => *start + origin.elapsed(),
        }
    }

    /// Returns once the wall clock has reached `deadline`, at most [`LONGEST_NAP`] late after a suspend or a step.
    pub async fn sleep_until(&self, deadline: OffsetDateTime) {
        while let Ok(left) = Duration::try_from(deadline - self.now())
            && !left.is_zero()
        {
            tokio::time::sleep(left.min(LONGEST_NAP)).await;
        }
    }
}

/// RFC 3339 in UTC, to the second.
#[must_use]
pub fn rfc3339(time: OffsetDateTime) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    time.to_offset(time::UtcOffset::UTC).format(format).unwrap_or_else(|_| time.to_string())
}
