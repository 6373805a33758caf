//! Counters of calls and reloads.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use aws_double::ServiceError;
use time::OffsetDateTime;

/// The quota of IssueCertificate calls a second
/// (<https://docs.aws.amazon.com/general/latest/gr/pca.html>).
pub(crate) const ISSUE_QUOTA: u32 = 25;
/// The quota of GetCertificate calls a second, from the same page.
pub(crate) const GET_QUOTA: u32 = 75;
/// The quota of GetCertificateAuthorityCertificate calls a second, from the same page.
pub(crate) const AUTHORITY_QUOTA: u32 = 20;
/// Two seconds above a quota belong to the same episode if they are less than this many seconds apart.
const ONE_EPISODE: i64 = 60;
/// The window in which reloads of one cluster are counted together.
pub(crate) const RELOAD_WINDOW: Duration = Duration::from_secs(10);

/// Counts of calls, by the time at which they arrive at Private CA.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    /// Calls that Private CA throttled, or that an outage of any service throttled.
    pub(crate) throttled: u64,
    issue: Rate,
    get: Rate,
    authority: Rate,
}

impl Calls {
    pub(crate) fn note_issue(&mut self, now: OffsetDateTime, error: Option<&ServiceError>) {
        self.issue.note(now, ISSUE_QUOTA, error.is_none());
        self.throttled += u64::from(is_throttled(error));
    }

    pub(crate) fn note_get(&mut self, now: OffsetDateTime, error: Option<&ServiceError>) {
        self.get.note(now, GET_QUOTA, error.is_none());
        self.throttled += u64::from(is_throttled(error));
    }

    pub(crate) fn note_authority(&mut self, now: OffsetDateTime, error: Option<&ServiceError>) {
        self.authority.note(now, AUTHORITY_QUOTA, error.is_none());
        self.throttled += u64::from(is_throttled(error));
    }

    pub(crate) fn figures(&mut self) -> (Duration, u32, u32) {
        self.issue.end_second(ISSUE_QUOTA);
        self.get.end_second(GET_QUOTA);
        self.authority.end_second(AUTHORITY_QUOTA);
        let longest = self.issue.longest.max(self.get.longest).max(self.authority.longest);
        (
            Duration::from_secs(longest.unsigned_abs()),
            self.issue.worst_minute.max(self.issue.in_minute),
            self.issue.worst_second,
        )
    }
}

fn is_throttled(error: Option<&ServiceError>) -> bool {
    error.is_some_and(|error| error.code == "ThrottlingException")
}

/// Calls by the second.
#[derive(Debug, Default)]
struct Rate {
    second: i64,
    in_second: u32,
    worst_second: u32,
    minute: i64,
    in_minute: u32,
    /// The most accepted calls in a minute of the clock.
    worst_minute: u32,
    /// First and last second of the current episode above the quota.
    above: Option<(i64, i64)>,
    longest: i64,
}

impl Rate {
    fn note(&mut self, now: OffsetDateTime, quota: u32, passed: bool) {
        let second = now.unix_timestamp();
        if second != self.second {
            self.end_second(quota);
            (self.second, self.in_second) = (second, 0);
        }
        self.in_second += 1;
        if second / 60 != self.minute {
            self.worst_minute = self.worst_minute.max(self.in_minute);
            (self.minute, self.in_minute) = (second / 60, 0);
        }
        self.in_minute += u32::from(passed);
    }

    fn end_second(&mut self, quota: u32) {
        self.worst_second = self.worst_second.max(self.in_second);
        if self.in_second > quota {
            let begin = match self.above {
                Some((begin, last)) if self.second - last < ONE_EPISODE => begin,
                _ => self.second,
            };
            self.above = Some((begin, self.second));
            self.longest = self.longest.max(self.second - begin + 1);
        }
    }
}

/// Reloads of one cluster.
#[derive(Debug, Default)]
pub(crate) struct Reloads {
    recent: VecDeque<(OffsetDateTime, u64)>,
    worst: BTreeMap<String, Share>,
}

/// A part of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// The number of nodes in the part.
    pub nodes: usize,
    /// The number of nodes in the cluster.
    pub of: usize,
}

impl Share {
    /// The number of nodes that have their turn at the same time: a third, rounded up.
    #[must_use]
    pub fn turn(self) -> usize {
        self.of.div_ceil(3)
    }

    /// The larger of two shares, measured in turns. Two nodes of three are worse than two nodes of five.
    pub(crate) fn worse(self, other: Self) -> Self {
        if other.nodes * self.turn().max(1) > self.nodes * other.turn().max(1) { other } else { self }
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} of {}", self.nodes, self.of)
    }
}

impl Reloads {
    pub(crate) fn note(&mut self, now: OffsetDateTime, node: u64, cluster_size: usize, phase: &str) {
        self.recent.push_back((now, node));
        while self.recent.front().is_some_and(|(at, _)| *at + RELOAD_WINDOW <= now) {
            self.recent.pop_front();
        }
        let nodes = self.recent.iter().map(|(_, node)| node).collect::<BTreeSet<_>>().len();
        let share = Share { nodes, of: cluster_size };
        let worst = self.worst.entry(phase.to_owned()).or_default();
        *worst = worst.worse(share);
    }

    pub(crate) fn worst(&self) -> &BTreeMap<String, Share> {
        &self.worst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_above_the_quota_lasts_from_its_first_to_its_last_second_above() {
        let mut rate = Rate::default();
        let at = |second| OffsetDateTime::UNIX_EPOCH + Duration::from_secs(second);
        for second in [100, 107, 130, 400] {
            for _ in 0..26 {
                rate.note(at(second), 25, true);
            }
            rate.note(at(second + 1), 25, true);
        }
        rate.end_second(25);
        assert_eq!((rate.longest, rate.worst_second), (31, 26));
    }

    #[test]
    fn a_node_that_reloads_twice_is_one_of_its_cluster() {
        let mut reloads = Reloads::default();
        let at = |second| OffsetDateTime::UNIX_EPOCH + Duration::from_secs(second);
        for (second, node) in [(0, 1), (3, 1), (9, 2), (12, 3), (40, 4)] {
            reloads.note(at(second), node, 5, "calm");
        }
        assert_eq!(reloads.worst()["calm"], Share { nodes: 3, of: 5 });
    }
}
