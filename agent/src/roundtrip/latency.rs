//! The distribution of the times from requests to their replies.

use std::time::Duration;

use serde::{Serialize, Serializer};

/// The times of replies, in whole microseconds. A request waits a minute at most, so 32 bits hold every time.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<u32>);

/// What operators look at. Each percentile is a time that occurred (nearest rank).
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
pub struct Summary {
    /// The shortest time.
    #[serde(rename = "min_ms", serialize_with = "milliseconds")]
    pub min: Duration,
    /// The mean time.
    #[serde(rename = "mean_ms", serialize_with = "milliseconds")]
    pub mean: Duration,
    /// The median.
    #[serde(rename = "p50_ms", serialize_with = "milliseconds")]
    pub p50: Duration,
    /// The 99th percentile.
    #[serde(rename = "p99_ms", serialize_with = "milliseconds")]
    pub p99: Duration,
    /// The longest time.
    #[serde(rename = "max_ms", serialize_with = "milliseconds")]
    pub max: Duration,
}

impl Latencies {
    /// Adds the time of one reply.
    pub fn note(&mut self, latency: Duration) {
        self.0.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }

    /// Adds all times of `others`.
    pub fn extend(&mut self, others: &Self) {
        self.0.extend_from_slice(&others.0);
    }

    /// The number of replies.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// The distribution. `None`: there was no reply.
    #[must_use]
    pub fn summary(mut self) -> Option<Summary> {
        self.0.sort_unstable();
        let sum: u64 = self.0.iter().copied().map(u64::from).sum();
        let mean = sum.checked_div(self.count())?;
        let rank = |percent: usize| {
            let rank = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
            self.0.get(rank).map(|micros| Duration::from_micros((*micros).into()))
        };
        let [min, p50, p99, max] = [0, 50, 99, 100].map(rank);
        Some(Summary { min: min?, mean: Duration::from_micros(mean), p50: p50?, p99: p99?, max: max? })
    }
}

fn milliseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(millis: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::default();
        millis.into_iter().for_each(|millis| latencies.note(Duration::from_millis(millis)));
        latencies
    }

    fn in_millis(summary: Summary) -> [u128; 5] {
        [summary.min, summary.mean, summary.p50, summary.p99, summary.max].map(|time| time.as_millis())
    }

    #[test]
    fn percentiles_are_times_that_occurred_in_whatever_order_the_replies_came() {
        assert_eq!(in_millis(of((1..=100).rev()).summary().unwrap()), [1, 50, 50, 99, 100]);
        assert_eq!(in_millis(of([9, 1, 2]).summary().unwrap()), [1, 4, 2, 9, 9]);
        assert_eq!(in_millis(of([7]).summary().unwrap()), [7; 5]);
        // Of 200 replies, the 99th percentile is slow only where three are slow.
        let slow = |count: usize| of(std::iter::repeat_n(1, 200 - count).chain(std::iter::repeat_n(50, count)));
        let p99 = [1, 2, 3].map(|count| slow(count).summary().unwrap().p99.as_millis());
        assert_eq!(p99, [1, 1, 50]);
        assert_eq!(of([]).summary(), None);
    }

    #[test]
    fn times_of_several_pairs_are_one_distribution() {
        let mut all = of([1, 2]);
        all.extend(&of([10]));
        assert_eq!((all.count(), in_millis(all.summary().unwrap())), (3, [1, 4, 2, 10, 10]));
    }

    #[test]
    fn times_are_told_in_milliseconds_with_microseconds_and_a_time_beyond_all_bounds_is_the_longest() {
        let mut latencies = Latencies::default();
        latencies.note(Duration::from_micros(1_234));
        let told = serde_json::to_value(latencies.clone().summary()).unwrap();
        assert_eq!(told["min_ms"], 1.234);
        assert_eq!(told["p99_ms"], 1.234);
        latencies.note(Duration::MAX);
        assert_eq!(latencies.summary().unwrap().max, Duration::from_micros(u32::MAX.into()));
    }
}
