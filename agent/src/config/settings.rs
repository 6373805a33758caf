//! `[nats.settings]`: from TOML to a tree of nats-server's settings.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{ConfigError, line_of, position_of};
use crate::conf::tree::{Entry, Map, Origin, Source, Value};

/// `[nats.settings]`, each setting with its line.
pub(super) fn settings(text: &str, file: &Path) -> Result<Map, ConfigError> {
    let source = Arc::new(Source::Settings(file.to_owned()));
    let starts: Vec<usize> = text.match_indices('\n').map(|(index, _)| index).collect();
    let origin = |at: usize| Origin { source: source.clone(), line: starts.partition_point(|start| *start < at) + 1 };
    // serde has parsed the text before, so the text parses here.
    let Ok(document) = DeTable::parse(text) else { return Ok(Map::default()) };
    let table = document.get_ref().get("nats").and_then(|nats| nats.get_ref().get("settings"));
    let Some(DeValue::Table(table)) = table.map(Spanned::get_ref) else { return Ok(Map::default()) };
    from_toml(table, &origin).map_err(|(key, message)| {
        let key = format!("nats.settings.{key}");
        ConfigError::Invalid {
            file: file.to_owned(),
            line: position_of(text, &key).map(|start| line_of(text, start)),
            key: Some(key),
            message: message.to_owned(),
        }
    })
}

/// Takes a table without its lines. [`settings`] reads the table with its lines.
pub(super) fn left_to_parse<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Map, D::Error> {
    toml::Table::deserialize(deserializer).map(|_| Map::default())
}

/// `[nats.settings]` as TOML has it, with the line of each setting. The error has the dotted key of a value that
/// nats-server's language lacks, and the fault.
fn from_toml(table: &DeTable<'_>, origin: &dyn Fn(usize) -> Origin) -> Result<Map, (String, &'static str)> {
    let mut map = Map::default();
    for (name, value) in table {
        let text = name.get_ref();
        if text.contains(['"', '\'', '\0']) {
            return Err((text.to_string(), "a name with a quote or a NUL is no name of a setting"));
        }
        let below = |(key, what): (String, &'static str)| {
            (if key.is_empty() { text.to_string() } else { format!("{text}.{key}") }, what)
        };
        map.insert(text.to_string(), entry_from_toml(value, origin).map_err(below)?);
    }
    Ok(map)
}

fn entry_from_toml(
    value: &Spanned<DeValue<'_>>,
    origin: &dyn Fn(usize) -> Origin,
) -> Result<Entry, (String, &'static str)> {
    let wrong = |what| (String::new(), what);
    let converted = match value.get_ref() {
        DeValue::String(text) => Value::text(text.to_string()),
        DeValue::Integer(number) => {
            let digits = number.as_str().replace('_', "");
            let parsed = i64::from_str_radix(&digits, number.radix());
            Value::Integer(parsed.map_err(|_| wrong("the number doesn't fit into 64 bits"))?)
        }
        DeValue::Float(number) => match number.as_str().replace('_', "").parse::<f64>() {
            Ok(number) if number.is_finite() => Value::Float(number),
            _ => return Err(wrong("nats-server knows neither infinity nor NaN")),
        },
        DeValue::Boolean(on) => Value::Bool(*on),
        DeValue::Datetime(_) => return Err(wrong("no setting of nats-server is a date; write a string in quotes")),
        DeValue::Array(values) => {
            Value::Array(values.iter().map(|value| entry_from_toml(value, origin)).collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => Value::Map(from_toml(table, origin)?),
    };
    Ok(Entry::new(converted, origin(value.span().start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Map, ConfigError> {
        settings(text, Path::new("/etc/agent.toml"))
    }

    #[test]
    fn settings_keep_their_kinds_and_their_lines() {
        let text = "[nats.settings]\nmax_payload = \"8MB\"\nserver_tags = [\n  \"a\",\n  0x1F,\n]\n\n\
                    [nats.settings.cluster]\npool_size = 1_0\nratio = 1.50\nno_advertise = true\n";
        let map = read(text).unwrap();
        let tags = map.get("server_tags").and_then(|entry| entry.value.as_array()).unwrap();
        let cluster = map.get("cluster").and_then(|entry| entry.value.as_map()).unwrap();
        let entry = |name| cluster.get(name).unwrap();
        assert_eq!(map.get("max_payload").unwrap().value.as_text(), Some("8MB"));
        assert!(tags[1].value == Value::Integer(31) && entry("pool_size").value == Value::Integer(10));
        assert!(entry("ratio").value == Value::Float(1.5) && entry("no_advertise").value == Value::Bool(true));
        assert_eq!((tags[1].origin.line, entry("ratio").origin.line), (5, 10));
        assert_eq!(entry("ratio").origin.to_string(), "/etc/agent.toml:10");
    }

    #[test]
    fn what_nats_server_has_no_value_for_is_refused_with_its_key() {
        for (value, message) in [
            ("x = 2026-01-01", "nats.settings.a.x: no setting of nats-server is a date"),
            ("x = inf", "nats.settings.a.x: nats-server knows neither infinity nor NaN"),
            ("x = 99999999999999999999", "nats.settings.a.x: the number doesn't fit into 64 bits"),
            ("\"x\\\"y\" = 1", "a name with a quote"),
        ] {
            let error = read(&format!("[nats.settings.a]\n{value}\n")).unwrap_err().to_string();
            assert!(error.starts_with("/etc/agent.toml:2: nats.settings.a") && error.contains(message), "{error}");
        }
    }

    #[test]
    fn without_settings_there_is_an_empty_tree() {
        for text in ["", "[nats]\nserver = \"x\"\n", "[nats.settings]\n"] {
            assert!(read(text).unwrap().is_empty());
        }
    }
}
