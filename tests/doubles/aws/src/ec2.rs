//! Amazon EC2: the operation DescribeInstances.

use std::net::IpAddr;

use time::{Duration, OffsetDateTime};

use crate::ServiceError;
use crate::fleet::{Fleet, TERMINATED, page};

/// A terminated instance stays visible for about an hour
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/terminating-instances.html>).
const SHOWN_AFTER_ITS_END: Duration = Duration::hours(1);

/// An instance as DescribeInstances lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// `instanceId`.
    pub id: String,
    /// `instanceState`: `running` or `terminated`.
    pub state: &'static str,
    /// `privateIpAddress` or `ipv6Address`. A terminated instance has no address.
    pub address: Option<IpAddr>,
}

impl Fleet {
    /// DescribeInstances, by ids and by the filter `instance-id`. "If you specify an instance ID that is not valid, an
    /// error is returned". A filter omits unknown ids
    /// (<https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstances.html>). A new instance "might not
    /// have propagated" (<https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html>).
    ///
    /// # Errors
    /// `RequestLimitExceeded`, `InvalidInstanceID.NotFound`, `InvalidNextToken`.
    pub fn describe_instances(
        &mut self,
        ids: &[String],
        filter: Option<&[String]>,
        max_results: Option<usize>,
        next_token: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<(Vec<Described>, Option<String>), ServiceError> {
        if !self.describe_instances_quota.take(now) {
            return Err(ServiceError::new("RequestLimitExceeded", "Request limit exceeded."));
        }
        let seen = now - self.ec2_lag;
        let known = self.instances.values().filter(|instance| {
            let launched = instance.launched_at().is_some_and(|at| at <= seen);
            launched && instance.terminated_at().is_none_or(|at| seen < at + SHOWN_AFTER_ITS_END)
        });
        let known: Vec<_> = known.collect();
        if let Some(unknown) = ids.iter().find(|id| !known.iter().any(|instance| instance.id == **id)) {
            let what = format!("The instance ID '{unknown}' does not exist");
            return Err(ServiceError::new("InvalidInstanceID.NotFound", what));
        }
        let wanted = known.into_iter().filter(|instance| {
            (ids.is_empty() || ids.contains(&instance.id)) && filter.is_none_or(|some| some.contains(&instance.id))
        });
        let described = wanted.map(|instance| {
            let running = instance.state_at(seen) != Some(TERMINATED);
            Described {
                id: instance.id.clone(),
                state: if running { "running" } else { "terminated" },
                address: running.then_some(instance.address),
            }
        });
        page(described.collect(), self.ec2_paging, max_results.unwrap_or(1000), next_token, "InvalidNextToken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn fleet() -> Fleet {
        let mut fleet = Fleet::new("eu-west-1");
        for n in 1..=3 {
            fleet.launch("nats", &format!("i-{n}"), IpAddr::from([10, 0, 1, n]), "InService", NOW);
        }
        fleet
    }

    #[test]
    fn one_unknown_id_fails_the_whole_call_and_a_filter_leaves_it_out() {
        let mut fleet = fleet();
        let ids = ["i-1".to_owned(), "i-9".to_owned()];
        let error = fleet.describe_instances(&ids, None, None, None, NOW).unwrap_err();
        assert_eq!(error.code, "InvalidInstanceID.NotFound");
        let (found, _) = fleet.describe_instances(&[], Some(&ids), None, None, NOW).unwrap();
        assert_eq!(found, [Described { id: "i-1".into(), state: "running", address: Some([10, 0, 1, 1].into()) }]);
    }

    #[test]
    fn an_instance_is_seen_late_and_for_an_hour_after_its_end_without_an_address() {
        let mut fleet = fleet();
        fleet.ec2_lag = Duration::seconds(5);
        assert!(fleet.describe_instances(&[], None, None, None, NOW).unwrap().0.is_empty());
        fleet.terminate("i-1", NOW + Duration::minutes(1));
        let at = |minutes| NOW + Duration::minutes(minutes) + Duration::seconds(5);
        let (seen, _) = fleet.describe_instances(&[], None, None, None, at(2)).unwrap();
        assert_eq!((seen.len(), seen[0].state, seen[0].address), (3, "terminated", None));
        assert_eq!(fleet.describe_instances(&[], None, None, None, at(61)).unwrap().0.len(), 2);
        fleet.forget_terminated_before(at(60));
        assert!(fleet.instance("i-1").is_none() && fleet.instance("i-2").is_some());
    }

    #[test]
    fn a_bucket_of_a_hundred_calls_refills_with_twenty_a_second() {
        let mut fleet = fleet();
        let mut calls = |now| (0..200).filter(|_| fleet.describe_instances(&[], None, None, None, now).is_ok()).count();
        assert_eq!((calls(NOW), calls(NOW + Duration::seconds(1))), (100, 20));
    }
}
