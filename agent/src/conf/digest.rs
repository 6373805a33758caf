//! nats-server's digest of a configuration: the SHA-256 of the tree as Go's `encoding/json` writes it.
//!
//! nats-server computes the digest in `configDigest` of `conf/parse.go` (2.12.8). `nats-server -t` prints the digest
//! from 2.11.0 on, and `/varz` has it as `config_digest`.

use std::fmt::Write;

use zeroize::Zeroizing;

use super::tree::{Entry, Map, Value};
use crate::digest::sha256_hex;

/// What nats-server does with a setting that a variable refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsedVariables {
    /// The setting stays in the tree.
    Keep,
    /// The setting is taken out of the tree, at any depth of maps but not within arrays.
    Drop,
}

impl UsedVariables {
    /// What a version of nats-server does. `None` for a version without digests, before 2.11.
    #[must_use]
    pub fn of(version: (u64, u64, u64)) -> Option<Self> {
        match version {
            (0..=1, _, _) | (2, 0..=10, _) => None,
            // `cleanupUsedEnvVars` in `conf/parse.go` is gone in 2.12.6.
            (2, 11, _) | (2, 12, 0..=5) => Some(Self::Drop),
            _ => Some(Self::Keep),
        }
    }
}

/// The digest of a tree, `sha256:` and 64 hexadecimal digits, as nats-server prints it.
#[must_use]
pub fn digest(map: &Map, used: UsedVariables) -> String {
    let mut json = Zeroizing::new(String::new());
    write_map(&mut json, map, used == UsedVariables::Drop);
    json.push('\n');
    format!("sha256:{}", sha256_hex(json.as_bytes()))
}

fn write_map(json: &mut String, map: &Map, drops: bool) {
    json.push('{');
    let entries = map.iter().filter(|(_, entry)| !(drops && entry.is_used_variable));
    for (index, (name, entry)) in entries.enumerate() {
        if index > 0 {
            json.push(',');
        }
        write_text(json, name);
        json.push(':');
        write_value(json, &entry.value, drops);
    }
    json.push('}');
}

fn write_value(json: &mut String, value: &Value, drops: bool) {
    match value {
        Value::Text(text) => write_text(json, text),
        Value::Bool(on) => json.push_str(if *on { "true" } else { "false" }),
        Value::Integer(number) => write(json, format_args!("{number}")),
        Value::Float(number) => write_float(json, *number),
        Value::Date(date) => write_text(json, date),
        Value::Array(values) => write_array(json, values),
        Value::Map(map) => write_map(json, map, drops),
    }
}

fn write_array(json: &mut String, values: &[Entry]) {
    json.push('[');
    for (index, entry) in values.iter().enumerate() {
        if index > 0 {
            json.push(',');
        }
        write_value(json, &entry.value, false);
    }
    json.push(']');
}

/// Writes a string as Go does with its default of escaping for HTML.
fn write_text(json: &mut String, text: &str) {
    json.push('"');
    for character in text.chars() {
        match character {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\u{8}' => json.push_str("\\b"),
            '\u{c}' => json.push_str("\\f"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                write(json, format_args!("\\u{:04x}", u32::from(character)));
            }
            other => json.push(other),
        }
    }
    json.push('"');
}

/// Writes the shortest digits that give the number again. Go writes an exponent below 1e-6 and from 1e21 on.
fn write_float(json: &mut String, number: f64) {
    let size = number.abs();
    if size == 0.0 || (1e-6..1e21).contains(&size) {
        write(json, format_args!("{number}"));
        return;
    }
    let text = format!("{number:e}");
    match text.split_once('e') {
        Some((digits, exponent)) if !exponent.starts_with('-') => write(json, format_args!("{digits}e+{exponent}")),
        _ => json.push_str(&text),
    }
}

fn write(json: &mut String, text: std::fmt::Arguments<'_>) {
    let _infallible = json.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tree::{Origin, Source};
    use super::*;

    fn entry(value: Value) -> Entry {
        Entry::new(value, Origin { source: Arc::new(Source::Template(None)), line: 1 })
    }

    fn used(value: Value) -> Entry {
        Entry { is_used_variable: true, ..entry(value) }
    }

    fn map<const N: usize>(entries: [(&str, Entry); N]) -> Map {
        let mut map = Map::default();
        for (name, entry) in entries {
            map.insert(name, entry);
        }
        map
    }

    fn json(map: &Map, drops: bool) -> String {
        let mut json = String::new();
        write_map(&mut json, map, drops);
        json
    }

    #[test]
    fn a_tree_is_written_as_go_writes_it() {
        let tree = map([
            ("z", entry(Value::Bool(true))),
            ("Z", entry(Value::Integer(-7))),
            ("é", entry(Value::Date("2016-05-04T18:53:41Z".to_owned()))),
            ("a<", entry(Value::Array(vec![entry(Value::text("")), entry(Value::Map(Map::default()))]))),
        ]);
        assert_eq!(json(&tree, false), r#"{"Z":-7,"a\u003c":["",{}],"z":true,"é":"2016-05-04T18:53:41Z"}"#);
        assert_eq!(
            digest(&Map::default(), UsedVariables::Keep),
            "sha256:ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"
        );
    }

    #[test]
    fn texts_are_escaped_as_go_escapes_them() {
        let mut written = String::new();
        write_text(&mut written, "\"\\/\u{8}\u{c}\n\r\t\u{1}\u{1f}\u{7f}<>&\u{2028}\u{2029}é\u{fffd}𝄞");
        let expected = "\"\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001f\u{7f}\\u003c\\u003e\\u0026\\u2028\\u2029é\u{fffd}𝄞\"";
        assert_eq!(written, expected);
    }

    #[test]
    fn floats_are_written_as_go_writes_them() {
        for (number, expected) in [
            (1.0, "1"),
            (-0.0, "-0"),
            (1.5, "1.5"),
            (0.000_001, "0.000001"),
            (0.000_000_1, "1e-7"),
            (-0.000_000_000_012, "-1.2e-11"),
            (1e20, "100000000000000000000"),
            (1e21, "1e+21"),
            (123_456_789_012_345_678_901_234_567_890.0, "1.2345678901234568e+29"),
            (f64::MAX, "1.7976931348623157e+308"),
        ] {
            let mut written = String::new();
            write_float(&mut written, number);
            assert_eq!(written, expected);
        }
    }

    #[test]
    fn used_variables_are_dropped_in_maps_and_kept_in_arrays() {
        let inner = || map([("v", used(Value::Integer(1))), ("w", entry(Value::Integer(1)))]);
        let tree = map([
            ("array", entry(Value::Array(vec![entry(Value::Map(inner()))]))),
            ("map", entry(Value::Map(inner()))),
            ("v", used(Value::Integer(2))),
        ]);
        assert_eq!(json(&tree, false), r#"{"array":[{"v":1,"w":1}],"map":{"v":1,"w":1},"v":2}"#);
        assert_eq!(json(&tree, true), r#"{"array":[{"v":1,"w":1}],"map":{"w":1}}"#);
        assert_ne!(digest(&tree, UsedVariables::Keep), digest(&tree, UsedVariables::Drop));
    }

    #[test]
    fn the_version_decides_on_used_variables() {
        for (version, expected) in [
            ((2, 10, 29), None),
            ((1, 4, 0), None),
            ((2, 11, 0), Some(UsedVariables::Drop)),
            ((2, 11, 17), Some(UsedVariables::Drop)),
            ((2, 12, 5), Some(UsedVariables::Drop)),
            ((2, 12, 6), Some(UsedVariables::Keep)),
            ((2, 14, 0), Some(UsedVariables::Keep)),
            ((3, 0, 0), Some(UsedVariables::Keep)),
        ] {
            assert_eq!(UsedVariables::of(version), expected);
        }
    }
}
