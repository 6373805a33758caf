//! When a new cluster credential takes over from the previous version: pure.
//!
//! A route listener knows one credential, so a node with the old credential has no route to a node with the new one.
//! If each node took the new version over when it sees it, the cluster would be split until the last node saw it. So every
//! node takes the new version over at the same time. Each node works that time out for itself: some rounds of polling after
//! the version was made, when every node has seen it.

use std::time::Duration;

use time::OffsetDateTime;

use super::{ClusterCredential, CredentialVersion};

/// Which version of a secret is in force, and when the next one takes over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Takeover<'a> {
    /// The credential in force. On a node without a credential the oldest version is in force, as on the nodes that ran
    /// before.
    pub(crate) in_force: Option<&'a ClusterCredential>,
    /// When the next version takes over.
    pub(crate) next: Option<OffsetDateTime>,
}

impl<'a> Takeover<'a> {
    /// `versions` stand oldest first. `held` is the credential that was in force last: no older version comes back after
    /// it, whatever the clock says. A version takes over `notice` after it was made.
    #[must_use]
    pub(crate) fn of(
        versions: &'a [CredentialVersion],
        held: Option<&'a ClusterCredential>,
        notice: Duration,
        now: OffsetDateTime,
    ) -> Self {
        let known = held.and_then(|held| versions.iter().rposition(|version| version.credential == *held));
        let newer = &versions[known.map_or(0, |known| known + 1)..];
        let takes_over =
            |version: &CredentialVersion| version.created.saturating_add(notice.try_into().unwrap_or_default());
        let taken = newer.iter().rposition(|version| takes_over(version) <= now);
        let taken = taken.or_else(|| (held.is_none() && !newer.is_empty()).then_some(0));
        let waiting = &newer[taken.map_or(0, |taken| taken + 1)..];
        Self { in_force: taken.map(|taken| &newer[taken].credential).or(held), next: waiting.first().map(takes_over) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;
    use zeroize::Zeroizing;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);
    const NOTICE: Duration = Duration::from_mins(15);

    fn credential(number: usize) -> ClusterCredential {
        ClusterCredential { username: "route".into(), password: Zeroizing::new(number.to_string()) }
    }

    /// Versions by number, and how many minutes ago each was made.
    fn versions(made: &[(usize, i64)]) -> Vec<CredentialVersion> {
        let version = |(number, ago): &(usize, i64)| CredentialVersion {
            credential: credential(*number),
            created: NOW - time::Duration::minutes(*ago),
        };
        made.iter().map(version).collect()
    }

    #[test]
    fn a_new_version_takes_over_when_every_node_has_seen_it_and_one_that_is_held_is_kept_until_then() {
        for (made, held, in_force, next) in [
            // A first boot: at once, whenever the only version was made.
            (&[(1, 600)][..], None, 1, None),
            (&[(1, 1)], None, 1, None),
            // A node that boots before the takeover takes what the others have.
            (&[(1, 600), (2, 5)], None, 1, Some(10)),
            (&[(1, 600), (2, 5)], Some(1), 1, Some(10)),
            (&[(1, 600), (2, 15)], Some(1), 2, None),
            (&[(1, 600), (2, 15)], None, 2, None),
            // A node that was away for long and knows neither version.
            (&[(2, 600), (3, 5)], Some(1), 2, Some(10)),
            // Two versions in a short time take over in turn.
            (&[(2, 10), (3, 5)], Some(1), 1, Some(5)),
            (&[(2, 16), (3, 11)], Some(1), 2, Some(4)),
            (&[(2, 20), (3, 15)], Some(2), 3, None),
            // The secret was deleted and made again, without a previous version.
            (&[(2, 5)], Some(1), 1, Some(10)),
            // A version that has taken over stays when the clock is set back.
            (&[(1, 600), (2, -60)], Some(2), 2, None),
            // This process has fetched nothing yet, and knows what the previous process held.
            (&[], Some(1), 1, None),
        ] {
            let (versions, held) = (versions(made), held.map(credential));
            let takeover = Takeover::of(&versions, held.as_ref(), NOTICE, NOW);
            assert_eq!(takeover.in_force, Some(&credential(in_force)), "{made:?} {held:?}");
            assert_eq!(takeover.next, next.map(|minutes| NOW + time::Duration::minutes(minutes)), "{made:?} {held:?}");
        }
        assert_eq!(Takeover::of(&[], None, NOTICE, NOW), Takeover { in_force: None, next: None });
        let never = CredentialVersion { credential: credential(2), created: datetime!(9999-12-31 23:59 UTC) };
        assert!(Takeover::of(&[never], Some(&credential(1)), NOTICE, NOW).next.is_some());
    }

    proptest! {
        /// Nodes of one cluster poll at any time, and the last node boots at any time.
        #[test]
        fn nodes_that_have_polled_within_the_notice_have_the_same_credential_at_every_moment(
            polls in proptest::collection::vec(proptest::collection::vec(1_i64..300, 40..60), 3), apart in 900_i64..2000,
            boots in 0_i64..4000,
        ) {
            let at = |second: i64| NOW + time::Duration::seconds(second);
            let made = |number: usize, second: i64| CredentialVersion { credential: credential(number), created: at(second) };
            let all = [made(1, -4000), made(2, 100), made(3, 100 + apart)];
            let seen = |second: i64| {
                let current = all.iter().rposition(|version| version.created <= at(second)).unwrap_or(0);
                all[current.saturating_sub(1)..=current].to_vec()
            };
            let mut nodes: Vec<_> = polls.iter().map(|pauses| (Vec::new(), None, 0, pauses.iter().cycle())).collect();
            for second in 0..4000 {
                let mut in_force = std::collections::BTreeSet::new();
                for (number, (versions, held, next, pauses)) in nodes.iter_mut().enumerate() {
                    if number == 2 && second < boots {
                        continue;
                    }
                    if second >= *next {
                        (*versions, *next) = (seen(second), second + pauses.next().copied().unwrap_or(1));
                    }
                    *held = Takeover::of(versions, held.as_ref(), NOTICE, at(second)).in_force.cloned();
                    in_force.extend(held.as_ref().map(|held: &ClusterCredential| held.password.to_string()));
                }
                prop_assert_eq!(in_force.len(), 1, "at second {}: {:?}", second, in_force);
            }
        }
    }
}
