//! nats-server's settings as a tree of values, each with the place that it comes from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use zeroize::Zeroizing;

/// What settings were read from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The rendered template. `None`: the built-in template.
    Template(Option<PathBuf>),
    /// A file of nats-server's language: an included file, or the committed configuration.
    File(PathBuf),
    /// A secret of Secrets Manager that is included, by its name or ARN.
    Secret(String),
    /// `[nats.settings]` of this agent.toml.
    Settings(PathBuf),
    /// A variable of the environment, by its name.
    Environment(String),
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Template(None) => formatter.write_str("the built-in template"),
            Self::Template(Some(file)) | Self::File(file) | Self::Settings(file) => {
                write!(formatter, "{}", file.display())
            }
            Self::Secret(id) => write!(formatter, "secret:{id}"),
            Self::Environment(name) => write!(formatter, "${name}"),
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
            // The lines of a rendered text are not those of its template.
            (source @ Source::Template(_), _) | (source, 0) => write!(formatter, "{source}"),
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

    /// The entry under any of these names, which must be in lower case. nats-server ignores the case of names. Of two
    /// names for one setting, nats-server applies either one last, so two are an error.
    pub fn find(&self, names: &[&str]) -> Result<Option<&Entry>, Ambiguous> {
        let mut found = self.0.iter().filter(|(name, _)| names.contains(&name.to_lowercase().as_str()));
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
