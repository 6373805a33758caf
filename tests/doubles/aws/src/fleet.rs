//! Instances and their groups. The answers of Auto Scaling and EC2 depend on both, and each service has its own lag.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use time::{Duration, OffsetDateTime};

use crate::ServiceError;
use crate::quota::TokenBucket;

/// The division of lists into pages. A token means that another page follows, even if the page holds few records or
/// none (<https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_DescribeAutoScalingGroups.html>,
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstances.html>).
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    /// The largest number of records in a page, whatever the request asks for.
    pub at_most: usize,
    /// Whether the first page is empty.
    pub empty_first: bool,
}

impl Default for Paging {
    fn default() -> Self {
        Self { at_most: usize::MAX, empty_first: false }
    }
}

/// Instances and groups in one account and Region.
#[derive(Debug)]
pub struct Fleet {
    /// The lag of Auto Scaling's answers. The answers still lack a new instance, and still list a terminated instance.
    /// No page on Auto Scaling promises or bounds the lag. Auto Scaling launches and terminates through EC2, whose
    /// answers lag (<https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html>), so a client must
    /// expect the lag.
    pub autoscaling_lag: Duration,
    /// The lag of EC2's answers: "The Amazon EC2 API follows an eventual consistency model"
    /// (<https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html>).
    pub ec2_lag: Duration,
    /// Auto Scaling's pages.
    pub autoscaling_paging: Paging,
    /// EC2's pages.
    pub ec2_paging: Paging,
    /// The quota for DescribeInstances with a filter or paging: a bucket of 100, refilled with 20 a second
    /// (<https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html>). Auto Scaling documents no figures.
    pub describe_instances_quota: TokenBucket,
    pub(crate) region: String,
    pub(crate) groups: BTreeSet<String>,
    pub(crate) instances: BTreeMap<String, Instance>,
}

/// An instance, with its history.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The instance id, `i-…`.
    pub id: String,
    /// The primary private address.
    pub address: IpAddr,
    /// The group of the instance.
    pub group: String,
    /// The lifecycle states with their times. The first entry is the launch.
    history: Vec<(OffsetDateTime, String)>,
}

/// The state of an instance that Auto Scaling has terminated and no longer lists.
pub const TERMINATED: &str = "Terminated";

impl Instance {
    /// The lifecycle state at a time
    /// (<https://docs.aws.amazon.com/autoscaling/ec2/userguide/ec2-auto-scaling-lifecycle.html>). `None` before the
    /// launch.
    #[must_use]
    pub fn state_at(&self, at: OffsetDateTime) -> Option<&str> {
        let last = self.history.iter().rev().find(|(since, _)| *since <= at);
        last.map(|(_, state)| state.as_str())
    }

    /// The time of termination.
    pub(crate) fn terminated_at(&self) -> Option<OffsetDateTime> {
        self.history.iter().find(|(_, state)| state == TERMINATED).map(|(since, _)| *since)
    }

    pub(crate) fn launched_at(&self) -> Option<OffsetDateTime> {
        self.history.first().map(|(since, _)| *since)
    }
}

impl Fleet {
    /// A fleet without groups, and without lag.
    #[must_use]
    pub fn new(region: &str) -> Self {
        Self {
            autoscaling_lag: Duration::ZERO,
            ec2_lag: Duration::ZERO,
            autoscaling_paging: Paging::default(),
            ec2_paging: Paging::default(),
            describe_instances_quota: TokenBucket::new(100, 20),
            region: region.into(),
            groups: BTreeSet::new(),
            instances: BTreeMap::new(),
        }
    }

    /// Makes an empty group.
    pub fn create_group(&mut self, name: &str) {
        self.groups.insert(name.into());
    }

    /// Deletes a group. Its instances then belong to no group.
    pub fn delete_group(&mut self, name: &str) {
        self.groups.remove(name);
    }

    /// Launches an instance into a group, in this lifecycle state.
    pub fn launch(&mut self, group: &str, id: &str, address: IpAddr, state: &str, now: OffsetDateTime) {
        self.create_group(group);
        let history = vec![(now, state.to_owned())];
        self.instances.insert(id.into(), Instance { id: id.into(), address, group: group.into(), history });
    }

    /// Moves an instance to a lifecycle state. Any text is accepted, because AWS adds states.
    pub fn set_state(&mut self, id: &str, state: &str, now: OffsetDateTime) {
        if let Some(instance) = self.instances.get_mut(id) {
            instance.history.push((now, state.into()));
        }
    }

    /// Terminates an instance.
    pub fn terminate(&mut self, id: &str, now: OffsetDateTime) {
        self.set_state(id, TERMINATED, now);
    }

    /// Removes instances that were terminated before a time, to bound the memory of a long simulation.
    pub fn forget_terminated_before(&mut self, before: OffsetDateTime) {
        self.instances.retain(|_, instance| instance.terminated_at().is_none_or(|at| at >= before));
    }

    /// The instance with this id.
    #[must_use]
    pub fn instance(&self, id: &str) -> Option<&Instance> {
        self.instances.get(id)
    }
}

/// Cuts a page out of a list, and returns the token of the next page.
pub(crate) fn page<T>(
    items: Vec<T>,
    paging: Paging,
    asked: usize,
    token: Option<&str>,
    invalid: &'static str,
) -> Result<(Vec<T>, Option<String>), ServiceError> {
    let begin = match token {
        None if paging.empty_first => return Ok((Vec::new(), Some("from-0".into()))),
        None => 0,
        Some(token) => token
            .strip_prefix("from-")
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| ServiceError::new(invalid, "the token is not valid"))?,
    };
    let size = asked.min(paging.at_most).max(1);
    let more = items.len() > size.saturating_add(begin);
    let next = more.then(|| format!("from-{}", begin + size));
    Ok((items.into_iter().skip(begin).take(size).collect(), next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_hold_all_of_a_list_once_whatever_their_size() {
        for (at_most, empty_first) in [(1, false), (3, true), (100, true), (100, false)] {
            let (mut seen, mut token, mut pages) = (Vec::new(), None, 0);
            loop {
                let paging = Paging { at_most, empty_first };
                let (some, next) = page((0..10).collect(), paging, 50, token.as_deref(), "Invalid").unwrap();
                pages += 1;
                seen.extend(some);
                token = next;
                if token.is_none() {
                    break;
                }
            }
            assert_eq!(seen, (0..10).collect::<Vec<_>>());
            assert_eq!(pages, 10_usize.div_ceil(at_most) + usize::from(empty_first));
        }
        assert_eq!(page(vec![1], Paging::default(), 1, Some("x"), "Invalid").unwrap_err().code, "Invalid");
    }
}
