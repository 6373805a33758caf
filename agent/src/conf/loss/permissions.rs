//! What permissions close, and whether other permissions close as much.

use std::collections::BTreeSet;

use super::values::texts;
use crate::conf::tree::{Ambiguous, Entry, Map, Value};

/// More comparisons than this many are not made for one list. The lists then count as wider, unless their texts show
/// that they are not.
const MAX_COMPARISONS: usize = 1_000_000;
/// A subject with more tokens is compared by its text alone.
const MAX_TOKENS: usize = 64;
/// A token that no list can name. A wildcard stands for this token and for every other token.
const UNNAMED: &str = "";
/// The pattern of every subject.
const ALL: &str = ">";

/// What a user, a route or a leafnode remote may publish and receive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Permissions {
    publish: Subjects,
    subscribe: Subjects,
    /// Replies to received messages are allowed, whatever `publish` closes.
    responses: bool,
}

/// How permissions differ from the permissions before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// Everything that was closed stays closed.
    Kept,
    /// Some closed subjects would be open.
    Wider,
    /// Nothing would be closed, where some subjects were.
    Open,
}

/// The subjects of one direction. `allow` is `None` where every subject is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Subjects {
    allow: Option<Names>,
    deny: Names,
}

/// Subjects, and subjects that only concern a queue group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Names {
    plain: BTreeSet<String>,
    queues: BTreeSet<(String, String)>,
}

impl Permissions {
    pub(super) fn of(permissions: Option<&Entry>) -> Result<Self, Ambiguous> {
        let Some(map) = permissions.and_then(|entry| entry.value.as_map()) else { return Ok(Self::default()) };
        let mut publish = Subjects::of(map.find(&["pub", "publish", "import"])?)?;
        // With allowed responses nats-server closes every other subject, unless some subjects are allowed
        // (parseUserPermissions in server/opts.go).
        let responses = map.find(&["publish_allow_responses", "allow_responses"])?.map(|entry| &entry.value);
        let responses = matches!(responses, Some(Value::Bool(true) | Value::Map(_)));
        if responses {
            publish.allow.get_or_insert_default();
        }
        Ok(Self { publish, subscribe: Subjects::of(map.find(&["sub", "subscribe", "export"])?)?, responses })
    }

    /// The permissions of a leafnode remote, which has lists of closed subjects alone.
    pub(super) fn closing(publish: Option<&Entry>, subscribe: Option<&Entry>) -> Self {
        let closing = |deny| Subjects { allow: None, deny: Names::of(deny) };
        Self { publish: closing(publish), subscribe: closing(subscribe), responses: false }
    }

    /// How these permissions differ from those before.
    pub(super) fn change_from(&self, before: &Self) -> Change {
        if self == before {
            return Change::Kept;
        }
        let publish = self.publish.change_from(&before.publish);
        let answers_more = self.responses && !before.responses && before.publish.allow.is_some();
        let publish = publish.max(if answers_more { Change::Wider } else { Change::Kept });
        publish.max(self.subscribe.change_from(&before.subscribe))
    }
}

impl Subjects {
    fn of(entry: Option<&Entry>) -> Result<Self, Ambiguous> {
        Ok(match entry.map(|entry| &entry.value) {
            Some(Value::Map(map)) => Self { allow: allowed(map.find(&["allow"])?), deny: denied(map)? },
            _ => Self { allow: allowed(entry), deny: Names::default() },
        })
    }

    fn change_from(&self, before: &Self) -> Change {
        match (before.is_open(), self.is_open()) {
            (false, true) => Change::Open,
            (false, false) if self.reaches_beyond(before) => Change::Wider,
            (true, _) | (false, false) => Change::Kept,
        }
    }

    /// Whether every subject is open. Several patterns may allow every subject together.
    fn is_open(&self) -> bool {
        let allows_all = |allow: &Names| {
            allow.queues.is_empty() && are_within([&ALL.to_owned()], allow.plain.iter().map(String::as_str))
        };
        self.deny.is_empty() && self.allow.as_ref().is_none_or(allows_all)
    }

    /// Whether some subject is open here, and was closed before.
    fn reaches_beyond(&self, before: &Self) -> bool {
        let all = Names { plain: [ALL.to_owned()].into(), queues: BTreeSet::new() };
        let (now, then) = (self.allow.as_ref().unwrap_or(&all), before.allow.as_ref().unwrap_or(&all));
        // Open is what is allowed and not denied, so a denied subject need not have been allowed.
        let closed_or_open_before = then.plain.union(&self.deny.plain).map(String::as_str);
        !are_within(now.plain.difference(&then.plain), closed_or_open_before)
            || self.opens_denied(now, before)
            || self.opens_queues(now, then, before)
    }

    /// Whether a subject that was denied is allowed, and no longer denied.
    fn opens_denied(&self, now: &Names, before: &Self) -> bool {
        let removed: Vec<&String> = before.deny.plain.difference(&self.deny.plain).collect();
        if removed.len().saturating_mul(now.plain.len()) > MAX_COMPARISONS {
            return true;
        }
        let meets = removed
            .iter()
            .flat_map(|denied| now.plain.iter().filter_map(|allowed| meet(&tokens(allowed), &tokens(denied))));
        let meets: BTreeSet<String> = meets.collect();
        !are_within(&meets, self.deny.plain.iter().map(String::as_str))
    }

    /// Whether a queue group may do more. An allowed queue group closes its subject to all other groups.
    fn opens_queues(&self, now: &Names, then: &Names, before: &Self) -> bool {
        let is_among = |subject: &String, plain: &BTreeSet<String>| {
            are_within(std::iter::once(subject), plain.iter().map(String::as_str))
        };
        let is_new = |(subject, _): &&(String, String)| !(then.queues.is_empty() && is_among(subject, &then.plain));
        let has_queues = |subject: &String| now.queues.iter().any(|(other, _)| other == subject);
        let is_touched =
            |subject: &String| now.plain.iter().any(|plain| meet(&tokens(plain), &tokens(subject)).is_some());
        let is_free = |(subject, _): &&(String, String)| !has_queues(subject) && is_touched(subject);
        now.queues.difference(&then.queues).any(|queue| is_new(&queue))
            || then.queues.difference(&now.queues).any(|queue| is_free(&queue))
            || before.deny.queues.difference(&self.deny.queues).any(|(subject, _)| !is_among(subject, &self.deny.plain))
    }
}

impl Names {
    fn of(entry: Option<&Entry>) -> Self {
        let mut names = Self::default();
        for name in texts(entry) {
            match *name.split_whitespace().collect::<Vec<_>>() {
                [subject, queue] => drop(names.queues.insert((subject.to_owned(), queue.to_owned()))),
                _ => drop(names.plain.insert(name.to_owned())),
            }
        }
        names
    }

    fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.queues.is_empty()
    }
}

/// An empty list allows every subject, as no list does (seen on 2.10.26 and 2.15.1).
fn allowed(entry: Option<&Entry>) -> Option<Names> {
    let is_every = |names: &Names| names.is_empty() || names.queues.is_empty() && names.plain.contains(">");
    Some(Names::of(entry)).filter(|names| !is_every(names))
}

fn denied(map: &Map) -> Result<Names, Ambiguous> {
    Ok(Names::of(map.find(&["deny"])?))
}

/// Whether each subject of the patterns is a subject of one of the others.
pub(super) fn are_within<'a>(
    patterns: impl IntoIterator<Item = &'a String>,
    others: impl IntoIterator<Item = &'a str>,
) -> bool {
    let patterns: Vec<&str> = patterns.into_iter().map(String::as_str).collect();
    let others: Vec<Vec<&str>> = others.into_iter().map(tokens).collect();
    if patterns.len().saturating_mul(others.len()) > MAX_COMPARISONS {
        return false;
    }
    patterns.into_iter().all(|pattern| is_within(&tokens(pattern), &others))
}

pub(super) fn tokens(subject: &str) -> Vec<&str> {
    subject.split('.').collect()
}

/// A pattern is within others where its examples are. An example has an unnamed token for each wildcard, and only a
/// wildcard accepts such a token. `>` has an example of each length up to a length that no other pattern names.
fn is_within(pattern: &[&str], others: &[Vec<&str>]) -> bool {
    let longest = others.iter().map(Vec::len).max().unwrap_or_default();
    if pattern.len() > MAX_TOKENS || longest > MAX_TOKENS {
        return others.iter().any(|other| other == pattern);
    }
    let accepts = |example: &[&str]| others.iter().any(|other| accepts(other, example));
    let named: Vec<&str> = pattern.iter().map(|token| if *token == "*" { UNNAMED } else { token }).collect();
    match named.split_last() {
        Some((&">", before)) => {
            let lengths = before.len() + 1..=longest.max(before.len()) + 1;
            lengths.into_iter().all(|length| {
                let mut example = before.to_vec();
                example.resize(length, UNNAMED);
                accepts(&example)
            })
        }
        _ => accepts(&named),
    }
}

/// Whether a pattern accepts a subject without wildcards.
fn accepts(pattern: &[&str], subject: &[&str]) -> bool {
    let is_open = pattern.last() == Some(&">");
    let before = pattern.len() - usize::from(is_open);
    let has_length = if is_open { subject.len() > before } else { subject.len() == before };
    has_length && pattern[..before].iter().zip(subject).all(|(token, named)| *token == "*" || token == named)
}

/// The pattern of the subjects that both patterns accept.
pub(super) fn meet(one: &[&str], other: &[&str]) -> Option<String> {
    let mut met: Vec<&str> = Vec::new();
    for index in 0.. {
        match (one.get(index), other.get(index)) {
            (None, None) => break,
            (Some(&">"), Some(_)) => {
                met.extend(&other[index..]);
                break;
            }
            (Some(_), Some(&">")) => {
                met.extend(&one[index..]);
                break;
            }
            (Some(&"*"), Some(token)) => met.push(token),
            (Some(token), Some(other)) if *other == "*" || token == other => met.push(token),
            _ => return None,
        }
    }
    Some(met.join("."))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn permissions(text: &str) -> Permissions {
        let tree = crate::conf::read(&format!("p {{ {text} }}"), Path::new("/a.conf")).unwrap();
        Permissions::of(tree.get("p")).unwrap()
    }

    fn change(before: &str, after: &str) -> Change {
        permissions(after).change_from(&permissions(before))
    }

    #[test]
    fn permissions_are_compared_by_the_subjects_that_they_close() {
        for (before, after, expected) in [
            ("publish: x", "pub { allow: [ x ] }", Change::Kept),
            ("publish: [ x, y ]", "publish: [ y, x ]", Change::Kept),
            ("publish: [ \"*\", \"*.>\" ]", "publish: \">\"", Change::Kept),
            ("publish: [ x, y ]", "publish: x", Change::Kept),
            ("publish: x", "publish: [ x, y ]", Change::Wider),
            ("publish: \"a.*\"", "publish: [ a.b, a.c ]", Change::Kept),
            ("publish: [ a.b, a.c ]", "publish: \"a.*\"", Change::Wider),
            ("publish: \"a.>\"", "publish: [ \"a.*\", \"a.*.>\" ]", Change::Kept),
            ("publish: [ \"a.*\", \"a.*.>\" ]", "publish: \"a.>\"", Change::Kept),
            ("publish: [ \"a.*\", \"a.*.*.>\" ]", "publish: \"a.>\"", Change::Wider),
            ("publish: \"a.>\"", "publish: a", Change::Wider),
            ("publish { deny: x }", "publish: y", Change::Kept),
            ("publish { deny: x }", "publish: x", Change::Wider),
            ("publish { deny: \"x.*\" }", "publish { deny: [ \"x.a\" ] }", Change::Wider),
            ("publish { deny: x.a }", "publish { deny: \"x.*\" }", Change::Kept),
            ("publish { allow: \"a.>\", deny: a.s }", "publish { allow: \"a.>\" }", Change::Wider),
            ("publish { allow: \"a.>\", deny: b }", "publish { allow: \"a.>\" }", Change::Kept),
            ("publish { allow: \"a.*\", deny: a.s }", "publish { allow: [ a.t, a.s ], deny: \"*.s\" }", Change::Kept),
            // nats-server takes an empty list for no list.
            ("publish: x", "publish: []", Change::Open),
            ("publish: x", "publish { allow: [] }", Change::Open),
            ("publish: x", "publish {}", Change::Open),
            ("publish: x", "publish: \">\"", Change::Open),
            ("publish: x, subscribe: y", "publish: x", Change::Open),
            ("publish: []", "publish: x", Change::Kept),
            ("allow_responses: true", "allow_responses: false", Change::Open),
            ("publish: [], allow_responses: true", "publish: []", Change::Open),
            ("publish: x", "publish: x, allow_responses: true", Change::Wider),
            ("publish: x, allow_responses: true", "publish: x", Change::Kept),
            ("publish { deny: x }", "publish { deny: x }, publish_allow_responses { max: 1 }", Change::Kept),
            ("sub: \"a q\"", "sub: [ \"a q\" ]", Change::Kept),
            ("sub: \"a q\"", "sub: a", Change::Wider),
            ("sub: a", "sub: \"a q\"", Change::Kept),
            ("sub: [ a, \"a q\" ]", "sub: a", Change::Wider),
            ("sub: [ a, \"a q\" ]", "sub: [ a, \"a r\" ]", Change::Wider),
            ("sub { deny: \"a q\" }", "sub { deny: a }", Change::Kept),
            ("sub { deny: [ \"a q\", b ] }", "sub { deny: b }", Change::Wider),
        ] {
            assert_eq!(change(before, after), expected, "{before} -> {after}");
        }
    }

    #[test]
    fn endless_lists_and_endless_subjects_take_no_time() {
        let list = |token: &str| (0..3000).map(|number| format!("a.{token}{number}")).collect::<Vec<_>>().join(", ");
        assert_eq!(
            change(&format!("publish: [ {} ]", list("x")), &format!("publish: [ {} ]", list("y"))),
            Change::Wider
        );
        let long = "a.".repeat(100_000);
        assert_eq!(change(&format!("publish: \"{long}b\""), &format!("publish: \"{long}>\"")), Change::Wider);
    }

    /// Subjects of few tokens, so that patterns meet.
    fn pattern() -> impl Strategy<Value = String> {
        let token = prop::sample::select(vec!["a", "b", "*"]);
        (prop::collection::vec(token, 1..4), any::<bool>()).prop_map(|(mut tokens, is_open)| {
            if is_open {
                tokens.push(">");
            }
            tokens.join(".")
        })
    }

    fn subjects() -> impl Strategy<Value = Subjects> {
        let names = |count| {
            prop::collection::btree_set(pattern(), count).prop_map(|plain| Names { plain, queues: BTreeSet::new() })
        };
        (prop::option::of(names(1..4)), names(0..3)).prop_map(|(allow, deny)| Subjects { allow, deny })
    }

    fn is_allowed(subjects: &Subjects, subject: &[&str]) -> bool {
        let among = |names: &Names| names.plain.iter().any(|pattern| accepts(&tokens(pattern), subject));
        subjects.allow.as_ref().is_none_or(among) && !among(&subjects.deny)
    }

    /// Every subject of up to six tokens of three, one of which no pattern names.
    fn every_subject() -> impl Iterator<Item = Vec<&'static str>> {
        (1..=6_u32).flat_map(|length| {
            (0..3_usize.pow(length))
                .map(move |number| (0..length).map(|place| ["a", "b", "c"][number / 3_usize.pow(place) % 3]).collect())
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn invariant_12_permissions_are_wider_exactly_where_a_subject_is_newly_open(
            before in subjects(),
            after in subjects(),
        ) {
            let is_wider = every_subject().any(|subject| is_allowed(&after, &subject) && !is_allowed(&before, &subject));
            prop_assert_eq!(after.change_from(&before) > Change::Kept, is_wider, "{:?} -> {:?}", before, after);
        }
    }
}
