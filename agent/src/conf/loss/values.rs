//! The values that the facts of a configuration are made of.

use std::borrow::Cow;

use crate::conf::tree::{Ambiguous, Entry, Map, Value};

/// The block under any of these names. An absent block, or a value that is no block, is an empty block.
pub(super) fn block<'a>(map: &'a Map, names: &[&str]) -> Result<Cow<'a, Map>, Ambiguous> {
    let block = map.find(names)?.and_then(|entry| entry.value.as_map());
    Ok(block.map_or_else(|| Cow::Owned(Map::default()), Cow::Borrowed))
}

/// The text of a string or an integer.
pub(super) fn text(map: &Map, names: &[&str]) -> Result<Option<String>, Ambiguous> {
    Ok(map.find(names)?.and_then(|entry| match &entry.value {
        Value::Text(text) => Some(text.to_string()),
        Value::Integer(integer) => Some(integer.to_string()),
        _ => None,
    }))
}

/// Whether a setting is given and not empty.
pub(super) fn is_given(map: &Map, names: &[&str]) -> Result<bool, Ambiguous> {
    Ok(map.find(names)?.is_some_and(|entry| match &entry.value {
        Value::Text(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Map(map) => !map.is_empty(),
        _ => true,
    }))
}

/// The texts of a list, or a single text.
pub(super) fn texts(entry: Option<&Entry>) -> impl Iterator<Item = &str> {
    let list = entry.and_then(|entry| entry.value.as_array()).unwrap_or_default();
    let single = entry.and_then(|entry| entry.value.as_text());
    list.iter().filter_map(|entry| entry.value.as_text()).chain(single)
}
