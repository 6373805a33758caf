//! Amazon EC2 Auto Scaling, as its documentation describes it.

use time::OffsetDateTime;

use crate::ServiceError;
use crate::fleet::{Fleet, TERMINATED, page};

/// A group, as DescribeAutoScalingGroups lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// `AutoScalingGroupName`.
    pub name: String,
    /// `Instances`.
    pub instances: Vec<Member>,
}

/// An instance of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// `InstanceId`.
    pub id: String,
    /// `AutoScalingGroupName`.
    pub group: String,
    /// `AvailabilityZone`.
    pub zone: String,
    /// `LifecycleState`.
    pub state: String,
}

impl Fleet {
    /// DescribeAutoScalingGroups. Returns the groups with these names, or all groups: 50 a page by default, 100 at
    /// most. Unknown names are omitted. A group lists its instances until they are terminated, without addresses
    /// (<https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_DescribeAutoScalingGroups.html>).
    ///
    /// # Errors
    /// `InvalidNextToken`, `ValidationError`.
    pub fn describe_auto_scaling_groups(
        &self,
        names: &[String],
        max_records: Option<usize>,
        next_token: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<(Vec<Group>, Option<String>), ServiceError> {
        let asked = records(max_records, 100)?;
        let groups = self.groups.iter().filter(|name| names.is_empty() || names.contains(name));
        let groups = groups.map(|name| Group { name: name.clone(), instances: self.members(name, now) });
        page(groups.collect(), self.autoscaling_paging, asked, next_token, "InvalidNextToken")
    }

    /// DescribeAutoScalingInstances. Returns these instances, or all instances, at most 50 a page. "If you specify an
    /// ID that does not exist, it is ignored with no error"
    /// (<https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_DescribeAutoScalingInstances.html>).
    ///
    /// # Errors
    /// `InvalidNextToken`, `ValidationError`.
    pub fn describe_auto_scaling_instances(
        &self,
        ids: &[String],
        max_records: Option<usize>,
        next_token: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<(Vec<Member>, Option<String>), ServiceError> {
        let asked = records(max_records, 50)?;
        let members = self.groups.iter().flat_map(|name| self.members(name, now));
        let members = members.filter(|member| ids.is_empty() || ids.contains(&member.id));
        page(members.collect(), self.autoscaling_paging, asked, next_token, "InvalidNextToken")
    }

    fn members(&self, group: &str, now: OffsetDateTime) -> Vec<Member> {
        let seen = now - self.autoscaling_lag;
        let members = self.instances.values().filter(|instance| instance.group == group);
        let members = members.filter_map(|instance| {
            let state = instance.state_at(seen).filter(|state| *state != TERMINATED)?;
            Some(Member {
                id: instance.id.clone(),
                group: group.into(),
                zone: format!("{}a", self.region),
                state: state.into(),
            })
        });
        members.collect()
    }
}

fn records(asked: Option<usize>, most: usize) -> Result<usize, ServiceError> {
    match asked {
        None => Ok(50),
        Some(asked) if (1..=most).contains(&asked) => Ok(asked),
        Some(asked) => {
            let what = format!("MaxRecords must be between 1 and {most}, not {asked}");
            Err(ServiceError::new("ValidationError", what))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use time::Duration;

    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn states(fleet: &Fleet, now: OffsetDateTime) -> Vec<String> {
        let (groups, _) = fleet.describe_auto_scaling_groups(&["nats".into()], None, None, now).unwrap();
        groups.into_iter().flat_map(|group| group.instances).map(|member| member.state).collect()
    }

    #[test]
    fn a_group_lists_its_instances_as_they_come_and_go_and_late_where_answers_lag() {
        let mut fleet = Fleet::new("eu-west-1");
        let second = |n| NOW + Duration::seconds(n);
        fleet.launch("nats", "i-1", IpAddr::from([10, 0, 1, 1]), "Pending", second(0));
        fleet.set_state("i-1", "InService", second(10));
        fleet.terminate("i-1", second(20));
        let seen = |fleet: &Fleet| [-1, 5, 15, 25].map(|at| states(fleet, second(at)).join(","));
        assert_eq!(seen(&fleet), ["", "Pending", "InService", ""]);
        fleet.autoscaling_lag = Duration::seconds(10);
        assert_eq!(seen(&fleet), ["", "", "Pending", "InService"]);
    }

    #[test]
    fn unknown_names_are_left_out_and_a_page_has_a_limit() {
        let mut fleet = Fleet::new("eu-west-1");
        for n in 0..60_u8 {
            fleet.launch(&format!("g{n}"), &format!("i-{n}"), IpAddr::from([10, 0, 1, n]), "InService", NOW);
        }
        let (some, token) = fleet.describe_auto_scaling_instances(&[], None, None, NOW).unwrap();
        assert_eq!((some.len(), token.as_deref()), (50, Some("from-50")));
        let (rest, token) = fleet.describe_auto_scaling_instances(&[], None, token.as_deref(), NOW).unwrap();
        assert_eq!((rest.len(), token), (10, None));
        let (known, _) = fleet.describe_auto_scaling_instances(&["i-7".into(), "i-x".into()], None, None, NOW).unwrap();
        assert_eq!((known.len(), known[0].group.as_str()), (1, "g7"));
        assert!(fleet.describe_auto_scaling_groups(&["x".into()], None, None, NOW).unwrap().0.is_empty());
        assert_eq!(fleet.describe_auto_scaling_groups(&[], Some(101), None, NOW).unwrap_err().code, "ValidationError");
    }
}
