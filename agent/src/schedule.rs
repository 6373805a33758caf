//! When the next pass or renewal is due, as pure functions of validity, failures and a seed.

use std::time::Duration;

use time::OffsetDateTime;

use crate::x509::leaf::Leaf;

/// The fleet's renewals are spread over this share of `renewal.at`, before `renewal.at` and never after. The lifetime
/// that remains at a renewal is therefore never less than documented.
const SPREAD: f64 = 0.1;

/// A bundle changes a few times in a CA's life, so its source is asked every tenth round of discovery.
pub(crate) const ROUNDS_PER_SECRET_POLL: u32 = 10;

/// How far an issuer may date NotBefore back. PCA dates it back by an hour
/// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html>, `ValidityNotBefore`).
const BACKDATED: Duration = Duration::from_hours(1);

/// When a leaf is due for renewal: at the share `at` of its lifetime, or earlier by up to a tenth of that. The hash of
/// `seed` (the node's name) decides how much earlier, so a fleet that booted together doesn't renew together.
///
/// A leaf counts by its own length, whatever `validity` is configured by now. Only where an hour makes a difference,
/// `validity` tells how much of the length lies before the issuance ([`BACKDATED`]). A short-lived leaf is therefore not due
/// the moment it is issued.
#[must_use]
pub fn due(leaf: &Leaf, validity: Duration, at: f64, seed: &str) -> OffsetDateTime {
    let length = Duration::try_from(leaf.not_after - leaf.not_before).unwrap_or_default();
    let lifetime = length.saturating_sub(BACKDATED).max(validity.min(length));
    leaf.not_after - lifetime.mul_f64(1.0 - at * (1.0 - SPREAD * share(seed)))
}

/// The shortest time between the issuance of a leaf and its renewal under [`due`].
#[must_use]
pub fn earliest(validity: Duration, at: f64) -> Duration {
    validity.mul_f64(at * (1.0 - SPREAD))
}

/// The pause after `failures` failures in a row, the first being 1. The pause doubles from `min` to `max`, and a random
/// part between half and whole of it is taken. `random` lies in 0..1.
#[must_use]
pub fn backoff(failures: u32, min: Duration, max: Duration, random: f64) -> Duration {
    let doubled = min.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(31)));
    doubled.min(max).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

/// An interval shortened by a random part of up to a fifth. It is never lengthened, so a change is seen within one
/// interval, as documented. `random` lies in 0..1.
#[must_use]
pub fn jittered(interval: Duration, random: f64) -> Duration {
    interval.mul_f64(0.8 + random.clamp(0.0, 1.0) / 5.0)
}

/// The number of turns that the nodes of a cluster are divided into.
const TURNS: u32 = 3;
/// Below this interval nodes take no turns. Whoever polls every second wants each change at once.
const SHORTEST_WITH_TURNS: Duration = Duration::from_secs(5);

/// The time in which every node has one turn, for nodes that poll in this interval: twice the interval, a minute at
/// most. The default interval of 30 s gives a minute. `None`: nodes take no turns.
#[must_use]
pub fn cycle(interval: Duration) -> Option<Duration> {
    (interval >= SHORTEST_WITH_TURNS).then(|| (interval * 2).min(Duration::from_mins(1)))
}

/// When the node with index `rank` in its cluster may change what its server has loaded. The answer is now within the
/// node's turn, else the beginning of its next turn.
///
/// All nodes of a cluster see some changes within one interval: another node, another bundle, AWS back again. No node
/// needs such a change within seconds. By the wall clock, a third of the nodes therefore changes at a time. A turn
/// lasts a sixth of the cycle, and a sixth lies between two turns. With a cycle of a minute, at most a third of the
/// nodes, rounded up, changes in the same ten seconds.
#[must_use]
pub fn turn(now: OffsetDateTime, rank: usize, cycle: Duration) -> OffsetDateTime {
    let millis = |duration: Duration| i128::try_from(duration.as_millis()).unwrap_or(i128::MAX).max(1);
    let (length, cycle) = (millis(cycle / (2 * TURNS)), millis(cycle));
    let begin = i128::try_from(rank % TURNS as usize).unwrap_or(0) * 2 * length;
    let passed = (now.unix_timestamp_nanos() / 1_000_000 - begin).rem_euclid(cycle);
    if passed < length {
        return now;
    }
    now + Duration::from_millis(u64::try_from(cycle - passed).unwrap_or(0))
}

/// A number in 0..1: constant for one text, and evenly distributed over texts.
fn share(seed: &str) -> f64 {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, seed.as_bytes());
    let number = digest.as_ref().iter().take(4).fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    f64::from(number) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::x509::san::Sans;

    const HOUR: Duration = Duration::from_hours(1);
    const WEEK: Duration = Duration::from_hours(7 * 24);

    fn leaf(not_before: OffsetDateTime, not_after: OffsetDateTime) -> Leaf {
        Leaf {
            der: Vec::new(),
            serial: "1".into(),
            issuer: String::new(),
            not_before,
            not_after,
            sans: Sans::default(),
            sha256: String::new(),
        }
    }

    #[test]
    fn a_backdated_leaf_is_not_due_when_it_is_issued() {
        let issued = OffsetDateTime::UNIX_EPOCH + WEEK;
        let minute = Duration::from_mins(1);
        let leaf = leaf(issued - HOUR, issued + minute);
        let due = due(&leaf, minute, 0.67, "i-1");
        assert!(due > issued + minute.mul_f64(0.6) && due < issued + minute.mul_f64(0.68), "{due}");
    }

    #[test]
    fn a_fleet_is_spread_evenly_over_a_tenth_before_the_point() {
        let issued = OffsetDateTime::UNIX_EPOCH + WEEK;
        let leaf = leaf(issued, issued + WEEK);
        let mut dues: Vec<_> = (0..1000).map(|node| due(&leaf, WEEK, 0.67, &format!("i-{node:017x}"))).collect();
        dues.sort_unstable();
        let window = WEEK.mul_f64(0.067);
        assert!(dues[0] >= issued + WEEK.mul_f64(0.603) && dues[999] <= issued + WEEK.mul_f64(0.67));
        for tenth in 0..10 {
            let from = issued + WEEK.mul_f64(0.603) + window.mul_f64(f64::from(tenth) / 10.0);
            let count = dues.iter().filter(|due| **due >= from && **due < from + window / 10).count();
            assert!((60..140).contains(&count), "{count} of 1000 in one tenth of the window");
        }
    }

    #[test]
    fn never_more_than_a_third_of_a_cluster_changes_in_the_same_ten_seconds() {
        let cycle = cycle(Duration::from_secs(30)).unwrap();
        for size in [1, 2, 3, 5, 100_usize] {
            // Each node sees the change at another moment within half a minute.
            let seen = |rank: usize| OffsetDateTime::UNIX_EPOCH + Duration::from_millis(rank as u64 * 7919 % 30_000);
            let mut at: Vec<_> = (0..size).map(|rank| turn(seen(rank), rank, cycle)).collect();
            at.sort_unstable();
            for first in &at {
                let together = at.iter().filter(|other| *other >= first && **other < *first + Duration::from_secs(10));
                assert!(together.count() <= size.div_ceil(3), "of {size}: {at:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_turn_comes_within_a_cycle_and_is_one(at in 0_u64..100_000_000, rank in 0_usize..2000, interval in 5_u64..10_000) {
            let (now, cycle) = (OffsetDateTime::UNIX_EPOCH + Duration::from_millis(at), cycle(Duration::from_secs(interval)).unwrap());
            let turn = super::turn(now, rank, cycle);
            prop_assert!(turn >= now && turn < now + cycle);
            prop_assert_eq!(super::turn(turn, rank, cycle), turn);
        }

        #[test]
        fn a_renewal_is_due_before_the_end_and_not_before_the_beginning(
            life in 30_u64..400_000_000, backdated in 0_u64..7200, validity in 30_u64..400_000_000, at in 0.1..0.95,
            seed in ".{0,20}",
        ) {
            let issued = OffsetDateTime::UNIX_EPOCH + WEEK;
            let leaf = leaf(issued - Duration::from_secs(backdated), issued + Duration::from_secs(life));
            let due = due(&leaf, Duration::from_secs(validity), at, &seed);
            prop_assert!(due < leaf.not_after && due >= leaf.not_before);
        }

        /// A node whose validity was changed since has the time for retries that its leaf was issued with.
        #[test]
        fn a_leaf_counts_by_its_own_length_whatever_validity_is_configured_by_now(
            life in 7200_u64..400_000_000, is_backdated: bool, validity in 30_u64..400_000_000, at in 0.1..0.95,
            seed in ".{0,20}",
        ) {
            let (issued, life) = (OffsetDateTime::UNIX_EPOCH + WEEK, Duration::from_secs(life));
            let leaf = leaf(issued - HOUR * u32::from(is_backdated), issued + life);
            let left = leaf.not_after - due(&leaf, Duration::from_secs(validity), at, &seed);
            prop_assert!(left >= life.saturating_sub(HOUR).mul_f64(1.0 - at), "{left}");
            prop_assert!(left <= (life + HOUR).mul_f64(1.0 - at * 0.9), "{left}");
        }

        #[test]
        fn a_backoff_stays_in_its_bounds(failures in 0_u32..u32::MAX, min in 1_u64..1000, more in 0_u64..100_000, random in 0.0..1.0) {
            let (min, max) = (Duration::from_millis(min), Duration::from_millis(min + more));
            let delay = backoff(failures, min, max, random);
            prop_assert!(delay >= min / 2 && delay <= max);
        }

        /// Invariant 8: of nodes that fail together, no two retry at the same moment.
        #[test]
        fn invariant_08_two_random_numbers_are_two_pauses(
            failures in 1_u32..40, seconds in 1_u64..1000, one in 0.0_f64..1.0, other in 0.0_f64..1.0,
        ) {
            prop_assume!((one - other).abs() > 1e-6);
            let (pause, order) = (Duration::from_secs(seconds), one.total_cmp(&other));
            let after = |random| backoff(failures, pause, pause * 100, random);
            prop_assert_eq!(after(one).cmp(&after(other)), order);
            prop_assert_eq!(jittered(pause, one).cmp(&jittered(pause, other)), order);
            // A pause is spread over half its length, and an interval over a fifth of its length.
            let seconds = |pause: Duration| pause.as_secs_f64();
            prop_assert!(seconds(after(1.0)) - seconds(after(0.0)) >= 0.49 * seconds(after(1.0)));
            prop_assert!(seconds(jittered(pause, 1.0)) - seconds(jittered(pause, 0.0)) >= 0.19 * seconds(pause));
        }
    }
}
