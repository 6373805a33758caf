//! Request rates: a token bucket, and counts of its decisions.

use time::OffsetDateTime;

/// A token bucket. Each call takes a token, and a call without a token is throttled.
///
/// EC2 documents its buckets, with capacity and refill rate
/// (<https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html>). Private CA documents a "quota for the
/// number of requests per second" for each action
/// (<https://docs.aws.amazon.com/privateca/latest/userguide/PcaLimits.html>). The model uses a bucket that holds the
/// quota of one second.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    capacity: f64,
    per_second: f64,
    tokens: f64,
    at: Option<OffsetDateTime>,
    accepted: u64,
    throttled: u64,
}

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub fn new(capacity: u32, per_second: u32) -> Self {
        let capacity = f64::from(capacity);
        Self { capacity, per_second: f64::from(per_second), tokens: capacity, at: None, accepted: 0, throttled: 0 }
    }

    /// A bucket that holds `rate` tokens, and refills with `rate` tokens a second.
    #[must_use]
    pub fn per_second(rate: u32) -> Self {
        Self::new(rate, rate)
    }

    /// Takes a token for a call at `now`. `false`: the call is throttled. A clock that runs backwards adds no tokens.
    pub fn take(&mut self, now: OffsetDateTime) -> bool {
        let passed = self.at.map_or(0.0, |at| (now - at).as_seconds_f64().max(0.0));
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
        self.tokens = (self.tokens + passed * self.per_second).min(self.capacity);
        let goes = self.tokens >= 1.0;
        if goes {
            self.tokens -= 1.0;
            self.accepted += 1;
        } else {
            self.throttled += 1;
        }
        goes
    }

    /// The number of accepted calls.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// The number of throttled calls.
    #[must_use]
    pub fn throttled(&self) -> u64 {
        self.throttled
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    #[test]
    fn a_second_of_calls_goes_through_at_once_and_then_one_for_each_token() {
        let mut bucket = TokenBucket::per_second(25);
        assert_eq!((0..100).filter(|_| bucket.take(NOW)).count(), 25);
        assert!(!bucket.take(NOW + Duration::milliseconds(39)));
        assert!(bucket.take(NOW + Duration::milliseconds(41)));
        assert_eq!((bucket.accepted(), bucket.throttled()), (26, 76));
    }

    #[test]
    fn over_any_time_the_rate_is_the_quota() {
        let mut bucket = TokenBucket::per_second(25);
        let passed = (0..10_000).filter(|n| bucket.take(NOW + Duration::milliseconds(*n))).count();
        assert!((270..=276).contains(&passed), "{passed}");
    }

    #[test]
    fn a_bucket_fills_to_its_capacity_only_and_not_by_a_clock_that_runs_backwards() {
        let mut bucket = TokenBucket::new(100, 20);
        assert_eq!((0..200).filter(|_| bucket.take(NOW)).count(), 100);
        assert!(!bucket.take(NOW - Duration::hours(1)));
        let later = NOW + Duration::hours(1);
        assert_eq!((0..200).filter(|_| bucket.take(later)).count(), 100);
    }
}
