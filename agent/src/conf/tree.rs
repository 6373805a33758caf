//! nats-server's settings as a tree of values, each with the place that it comes from.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use zeroize::Zeroizing;

/// The most names of settings that a message lists.
const MAX_NAMES: usize = 20;

/// What settings were read from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The rendered template. `None`: the built-in template.
    Template(Option<PathBuf>),
    /// An included file of nats-server's language.
    File(PathBuf),
    /// A committed configuration, whose values come from any source.
    Committed(PathBuf),
    /// The source that a comment of the committed configuration names.
    Noted(String),
    /// A secret of Secrets Manager that is included, by its name or ARN.
    Secret(String),
    /// `[nats.settings]` of this agent.toml.
    Settings(PathBuf),
    /// A variable of the environment, by its name.
    Environment(String),
    /// The agent itself: its user of the system account.
    Agent,
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Template(None) => formatter.write_str("the built-in template"),
            Self::Template(Some(file)) | Self::File(file) | Self::Committed(file) | Self::Settings(file) => {
                write!(formatter, "{}", file.display())
            }
            Self::Noted(source) => formatter.write_str(source),
            Self::Secret(id) => write!(formatter, "secret:{id}"),
            Self::Environment(name) => write!(formatter, "${name}"),
            Self::Agent => formatter.write_str("nats-tls-agent (nats.system)"),
        }
    }
}

/// The place of a value: the source, and the line in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// What the value was read from.
    pub source: Arc<Source>,
    /// The line, counted from 1. 0 where the source has no lines.
    pub line: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&*self.source, self.line) {
            (source, 0) => write!(formatter, "{source}"),
            // The lines of a rendered text are not those of its template.
            (source @ Source::Template(_), line) => write!(formatter, "{source} (line {line} as rendered)"),
            (source, line) => write!(formatter, "{source}:{line}"),
        }
    }
}

/// A value of nats-server's language, with every variable resolved.
#[derive(Clone)]
pub enum Value {
    /// A string.
    Text(Zeroizing<String>),
    /// An unquoted `true`, `yes`, `on`, `false`, `no` or `off`.
    Bool(bool),
    /// An integer, with its unit applied.
    Integer(i64),
    /// A number with a fraction.
    Float(f64),
    /// A date as written, `YYYY-MM-DDTHH:MM:SSZ`.
    Date(String),
    /// `[ … ]`.
    Array(Vec<Entry>),
    /// `{ … }`.
    Map(Map),
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(one), Self::Text(other)) => one == other,
            (Self::Bool(one), Self::Bool(other)) => one == other,
            (Self::Integer(one), Self::Integer(other)) => one == other,
            (Self::Float(one), Self::Float(other)) => one.to_bits() == other.to_bits(),
            (Self::Date(one), Self::Date(other)) => one == other,
            (Self::Array(one), Self::Array(other)) => one == other,
            (Self::Map(one), Self::Map(other)) => one == other,
            _ => false,
        }
    }
}

impl Eq for Value {}

/// The kinds of values alone: a text may be a password.
impl fmt::Debug for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => formatter.write_str("Text(…)"),
            Self::Bool(on) => write!(formatter, "Bool({on})"),
            Self::Integer(_) => formatter.write_str("Integer(…)"),
            Self::Float(_) => formatter.write_str("Float(…)"),
            Self::Date(_) => formatter.write_str("Date(…)"),
            Self::Array(values) => formatter.debug_list().entries(values).finish(),
            Self::Map(map) => map.fmt(formatter),
        }
    }
}

impl Value {
    /// A string.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(Zeroizing::new(text.into()))
    }

    /// The text of a [`Value::Text`].
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The map of a [`Value::Map`].
    #[must_use]
    pub fn as_map(&self) -> Option<&Map> {
        if let Self::Map(map) = self { Some(map) } else { None }
    }

    /// The values of a [`Value::Array`].
    #[must_use]
    pub fn as_array(&self) -> Option<&[Entry]> {
        if let Self::Array(values) = self { Some(values) } else { None }
    }
}

/// A value and the place that it comes from. Two entries are equal where their values are.
#[derive(Clone)]
pub struct Entry {
    /// The value.
    pub value: Value,
    /// The place that the value comes from.
    pub origin: Origin,
    /// A `$name` in the same text stands for this value. nats-server up to 2.12.5 takes such a setting out of the tree.
    pub is_used_variable: bool,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Eq for Entry {}

impl fmt::Debug for Entry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(formatter)
    }
}

impl Entry {
    /// A value that no variable refers to.
    #[must_use]
    pub fn new(value: Value, origin: Origin) -> Self {
        Self { value, origin, is_used_variable: false }
    }
}

/// Settings by name, sorted by the bytes of their names as Go's JSON is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Map(BTreeMap<String, Entry>);

impl fmt::Debug for Map {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// One setting appears under two names, and nats-server applies either one last.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{one:?} ({one_origin}) and {other:?} ({other_origin}) are one setting to nats-server, which applies either one last; \
     remove one of them"
)]
pub struct Ambiguous {
    /// The first name.
    pub one: String,
    /// Where the first name stands.
    pub one_origin: Origin,
    /// The second name.
    pub other: String,
    /// Where the second name stands.
    pub other_origin: Origin,
}

impl IntoIterator for Map {
    type Item = (String, Entry);
    type IntoIter = std::collections::btree_map::IntoIter<String, Entry>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Map {
    /// The entries by their names as written, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.0.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// The entries, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Entry)> {
        self.0.iter_mut().map(|(name, entry)| (name.as_str(), entry))
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entry of exactly this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.0.get(name)
    }

    /// The entry of exactly this name, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Entry> {
        self.0.get_mut(name)
    }

    /// Puts an entry in, and returns the entry that it replaces.
    pub fn insert(&mut self, name: impl Into<String>, entry: Entry) -> Option<Entry> {
        self.0.insert(name.into(), entry)
    }

    /// Takes the entry of exactly this name out.
    pub fn remove(&mut self, name: &str) -> Option<Entry> {
        self.0.remove(name)
    }

    /// The dotted names of the settings that differ between two trees, at most [`MAX_NAMES`] of them. The names reveal
    /// no value.
    #[must_use]
    pub fn differing(&self, other: &Self) -> Vec<String> {
        let mut names = Vec::new();
        self.collect_differing(other, "", &mut names);
        names.truncate(MAX_NAMES);
        names
    }

    fn collect_differing(&self, other: &Self, above: &str, names: &mut Vec<String>) {
        let all: BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        for name in all {
            if names.len() > MAX_NAMES {
                return;
            }
            let dotted = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
            match (self.0.get(name).map(|entry| &entry.value), other.0.get(name).map(|entry| &entry.value)) {
                (Some(Value::Map(one)), Some(Value::Map(other))) => one.collect_differing(other, &dotted, names),
                (one, other) if one == other => {}
                _ => names.push(dotted),
            }
        }
    }

    /// The dotted name of the setting at a line of its text. The line of a block is the line of its name.
    #[must_use]
    pub fn at_line(&self, line: usize) -> Option<String> {
        self.0.iter().find_map(|(name, entry)| {
            let inner = entry.value.as_map().and_then(|map| map.at_line(line));
            let inner = inner.map(|inner| format!("{name}.{inner}"));
            inner.or_else(|| (entry.origin.line == line).then(|| name.clone()))
        })
    }

    /// The entry of a dotted name.
    #[must_use]
    pub fn at(&self, name: &str) -> Option<&Entry> {
        self.0.get(name).or_else(|| {
            let mut dots = name.match_indices('.').map(|(at, _)| (&name[..at], &name[at + 1..]));
            dots.find_map(|(block, rest)| self.0.get(block)?.value.as_map()?.at(rest))
        })
    }

    /// The entry under any of these names, which must be in lower case. nats-server ignores the case of names. Two
    /// names for one setting are an error, because nats-server applies either of them last.
    pub fn find(&self, names: &[&str]) -> Result<Option<&Entry>, Ambiguous> {
        let mut found = self.0.iter().filter(|(name, _)| names.contains(&&*lower(name)));
        match (found.next(), found.next()) {
            (Some((one, first)), Some((other, second))) => Err(Ambiguous {
                one: one.clone(),
                one_origin: first.origin.clone(),
                other: other.clone(),
                other_origin: second.origin.clone(),
            }),
            (first, _) => Ok(first.map(|(_, entry)| entry)),
        }
    }
}

/// A name in lower case, as Go's `strings.ToLower` gives it for every name that nats-server knows. Rust gives two
/// characters for `İ`, and Go gives one.
#[must_use]
pub fn lower(name: &str) -> Cow<'_, str> {
    if name.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase()) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(name.replace('İ', "i").to_lowercase())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::conf::read as tree;

    #[test]
    fn the_settings_that_differ_are_named_without_their_values() {
        let read = |text| tree(text, Path::new("/a.conf")).unwrap();
        let before = read("a: 1\nb { c: 1, d: 2, e { f: s3cret } }\ng: [ x ]");
        let after = read("b { d: 3, c: 1, e { f: other } }\ng: [ y ]\nh: 1");
        assert_eq!(before.differing(&after), ["a", "b.d", "b.e.f", "g", "h"]);
        assert!(before.differing(&before).is_empty());
    }

    #[test]
    fn a_setting_is_found_by_its_line_and_by_its_name() {
        let tree = tree("a: 1\nb {\n c: 1\n x.y { d: 2 }\n}", Path::new("/a.conf")).unwrap();
        assert_eq!(
            [1, 2, 3, 9].map(|line| tree.at_line(line)),
            [Some("a".into()), Some("b".into()), Some("b.c".into()), None]
        );
        assert_eq!(tree.at("b.x.y.d").unwrap().origin.line, 4);
        assert!(tree.at("b.z").is_none());
    }
}
