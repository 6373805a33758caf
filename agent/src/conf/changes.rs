//! The settings that differ between two trees, each with its place. nats-server's words on a start name a setting or a
//! subject, and no line of a source.

use std::collections::BTreeSet;
use std::fmt;

use super::names::dotted;
use super::tree::{Entry, Map, Origin, Source, Value};

/// The most settings that are named.
const MAX_NAMED: usize = 5;
/// The most characters of a name.
const MAX_NAME: usize = 80;

/// The settings that change, at most [`MAX_NAMED`] of them. They reveal no value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    named: Vec<Changed>,
    has_more: bool,
}

/// A setting that changes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Changed {
    /// The dotted name, as in `authorization.users[3].permissions`.
    setting: String,
    /// The place of the new value. `None`: the setting is gone.
    origin: Option<Origin>,
}

impl Changes {
    /// The settings of `after` that differ from `before`. Without settings before, the settings that are not of the
    /// template.
    #[must_use]
    pub fn between(before: Option<&Map>, after: &Map) -> Self {
        let mut changes = Self::default();
        match before {
            Some(before) => changes.of_maps("", before, after),
            None => changes.of_persons("", after),
        }
        changes
    }

    /// Whether no setting changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    fn add(&mut self, setting: &str, origin: Option<&Origin>) {
        if self.named.len() == MAX_NAMED {
            self.has_more = true;
            return;
        }
        let setting = setting.chars().take(MAX_NAME).map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.named.push(Changed { setting, origin: origin.cloned() });
    }

    fn of_persons(&mut self, above: &str, map: &Map) {
        for (name, entry) in map.iter() {
            let name = dotted(above, name);
            match (&*entry.origin.source, &entry.value) {
                (Source::Template(_), Value::Map(map)) => self.of_persons(&name, map),
                (Source::Template(_), _) => {}
                _ => self.add(&name, Some(&entry.origin)),
            }
        }
    }

    fn of_maps(&mut self, above: &str, before: &Map, after: &Map) {
        let names: BTreeSet<&str> = before.iter().chain(after.iter()).map(|(name, _)| name).collect();
        for name in names {
            if self.has_more {
                return;
            }
            let dotted = dotted(above, name);
            match (before.get(name), after.get(name)) {
                (Some(before), Some(after)) => self.of_entries(&dotted, before, after),
                (_, after) => self.add(&dotted, after.map(|entry| &entry.origin)),
            }
        }
    }

    fn of_entries(&mut self, name: &str, before: &Entry, after: &Entry) {
        match (&before.value, &after.value) {
            (Value::Map(before), Value::Map(after)) => self.of_maps(name, before, after),
            (Value::Array(old), Value::Array(new)) => self.of_arrays(name, old, new, &after.origin),
            (old, new) if old == new => {}
            _ => self.add(name, Some(&after.origin)),
        }
    }

    /// Elements at the beginning and at the end of a list that stay the same are left out.
    fn of_arrays(&mut self, name: &str, before: &[Entry], after: &[Entry], origin: &Origin) {
        let start = before.iter().zip(after).take_while(|(old, new)| old == new).count();
        let (before, after) = (&before[start..], &after[start..]);
        let end = before.iter().rev().zip(after.iter().rev()).take_while(|(old, new)| old == new).count();
        let (before, after) = (&before[..before.len() - end], &after[..after.len() - end]);
        if after.is_empty() && !before.is_empty() {
            self.add(name, Some(origin));
        }
        for (index, new) in after.iter().enumerate() {
            if self.has_more {
                return;
            }
            let name = format!("{name}[{}]", start + index);
            match before.get(index).filter(|_| before.len() == after.len()) {
                Some(old) => self.of_entries(&name, old, new),
                None => self.add(&name, Some(&new.origin)),
            }
        }
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Changed { setting, origin }) in self.named.iter().enumerate() {
            formatter.write_str(if index == 0 { "" } else { ", " })?;
            match origin {
                Some(origin) => write!(formatter, "{origin} {setting}")?,
                None => write!(formatter, "{setting} (removed)")?,
            }
        }
        formatter.write_str(if self.has_more { ", and more" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Map {
        crate::conf::read(text, Path::new("/a.conf")).unwrap()
    }

    #[track_caller]
    fn assert_named(before: &str, after: &str, expected: &str) {
        assert_eq!(Changes::between(Some(&read(before)), &read(after)).to_string(), expected, "{before} -> {after}");
    }

    #[test]
    fn a_changed_setting_is_named_with_its_place_and_without_its_value() {
        for (before, after, expected) in [
            ("a: 1", "a: 1", ""),
            ("a: 1\nb: s3cret", "a: 2\nc: s3cret", "/a.conf:1 a, b (removed), /a.conf:2 c"),
            ("b { c: 1, d { e: 2 } }", "b {\n c: 1\n d {\n e: 3 } }", "/a.conf:4 b.d.e"),
            ("b { c: 1 }", "b: 1", "/a.conf:1 b"),
            ("u: [ { n: a, p: x }, { n: b } ]", "u: [\n{ n: a,\np: y }, { n: b } ]", "/a.conf:3 u[0].p"),
            ("u: [ 1, 2, 3 ]", "u: [ 1,\n2,\n9,\n3 ]", "/a.conf:3 u[2]"),
            ("u: [ 1, 2, 3 ]", "\nu: [ 1, 3 ]", "/a.conf:2 u"),
            (
                "",
                "a: 1\nb: 1\nc: 1\nd: 1\ne: 1\nf: 1",
                "/a.conf:1 a, /a.conf:2 b, /a.conf:3 c, /a.conf:4 d, /a.conf:5 e, and more",
            ),
        ] {
            assert_named(before, after, expected);
        }
    }

    #[test]
    fn before_the_first_commit_the_settings_of_a_person_are_named() {
        let template = Origin { source: Arc::new(Source::Template(None)), line: 1 };
        let mut tree = read("max_payload: 1\nwebsocket { port: 1 }");
        let cluster = read("name: c\n\npool_size: 2").into_iter().map(|(name, mut entry)| {
            if name == "name" {
                entry.origin = template.clone();
            }
            (name, entry)
        });
        let mut rendered = Map::default();
        cluster.for_each(|(name, entry)| drop(rendered.insert(name, entry)));
        tree.insert("cluster", Entry::new(Value::Map(rendered), template.clone()));
        tree.insert("listen", Entry::new(Value::text("x"), template));
        let named = Changes::between(None, &tree).to_string();
        assert_eq!(named, "/a.conf:3 cluster.pool_size, /a.conf:1 max_payload, /a.conf:2 websocket");
    }

    fn tree() -> impl Strategy<Value = Map> {
        let origin = || Origin { source: Arc::new(Source::Noted("x".into())), line: 0 };
        let leaf = (0_i64..3).prop_map(Value::Integer);
        let value = leaf.prop_recursive(4, 40, 5, move |inner| {
            let entry = inner.prop_map(move |value| Entry::new(value, origin()));
            prop_oneof![
                prop::collection::vec(entry.clone(), 0..5).prop_map(Value::Array),
                prop::collection::vec((prop::sample::select(vec!["a", "b", "c"]), entry), 0..4).prop_map(|entries| {
                    let mut map = Map::default();
                    for (name, entry) in entries {
                        map.insert(name, entry);
                    }
                    Value::Map(map)
                }),
            ]
        });
        value.prop_map(|value| value.as_map().cloned().unwrap_or_default())
    }

    proptest! {
        #[test]
        fn a_change_is_named_exactly_where_trees_differ(before in tree(), after in tree()) {
            let changes = Changes::between(Some(&before), &after);
            prop_assert_eq!(changes.is_empty(), before == after);
            prop_assert!(changes.named.len() <= MAX_NAMED);
        }
    }
}
