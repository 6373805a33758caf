//! Merges `[nats.settings]` over the settings of the template and its includes, block by block.

use std::collections::BTreeSet;
use std::path::Path;

use zeroize::Zeroizing;

use super::names::{Block, canonical};
use super::render::Values;
use super::tree::{Entry, Map, Origin, Value};
use crate::state::generation::TlsFiles;

/// Settings for which nats-server takes only an integer (`server/opts.go` of 2.15: `v.(int64)`). TOML needs a string
/// for a size such as `"8MB"`.
const SIZES: [&str; 12] = [
    "max_payload",
    "max_pay",
    "max_pending",
    "max_control_line",
    "max_traced_msg_len",
    "logfile_size_limit",
    "log_size_limit",
    "mem_max_stream_bytes",
    "memory_max_stream_bytes",
    "disk_max_stream_bytes",
    "store_max_stream_bytes",
    "max_bytes",
];

/// The key in a `tls` block that stands for the key, the certificate and the bundle of this generation.
const CERTIFICATE: &str = "certificate";
/// The only value of [`CERTIFICATE`].
const NODE: &str = "node";

/// Why settings can't be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A string of `[nats.settings]` can't be rendered. tera's message names the missing value.
    #[error("{origin}: {setting}: the string can't be rendered; correct the text between {{{{ and }}}}")]
    Render {
        /// The setting, with its blocks.
        setting: String,
        /// Its place.
        origin: Origin,
        /// tera's error.
        #[source]
        source: Box<tera::Error>,
    },
    /// `certificate` in a `tls` block has another value than `"node"`.
    #[error(
        "{origin}: `certificate` in a tls block takes only the value \"node\"; name other files by cert_file \
         and key_file"
    )]
    Certificate {
        /// The place of `certificate`.
        origin: Origin,
    },
    /// A `tls` block has `certificate` and a file.
    #[error("{origin}: a tls block names `certificate` and {name}; remove one of them")]
    TwoCertificates {
        /// The place of `certificate`.
        origin: Origin,
        /// The setting beside `certificate`.
        name: String,
    },
}

/// `[nats.settings]` with its strings rendered for this node: `{{ node.zone }}` becomes the zone. A size becomes an
/// integer where nats-server takes only an integer.
pub(crate) fn resolved(settings: &Map, values: &Values) -> Result<Map, MergeError> {
    let mut settings = settings.clone();
    // The strings can't see the cluster credential, so neither an error nor a setting can hold the credential.
    let context = tera::Context::from_serialize(&values.without_secrets()).unwrap_or_default();
    for (name, entry) in settings.iter_mut() {
        resolve(entry, &mut vec![name.to_owned()], &context)?;
    }
    Ok(settings)
}

fn resolve(entry: &mut Entry, path: &mut Vec<String>, context: &tera::Context) -> Result<(), MergeError> {
    match &mut entry.value {
        Value::Text(text) => {
            if text.contains("{{") {
                let rendered = tera::Tera::one_off(text, context, false).map_err(|source| MergeError::Render {
                    setting: path.join("."),
                    origin: entry.origin.clone(),
                    source: Box::new(source),
                })?;
                *text = Zeroizing::new(rendered);
            }
            let is_size = path.last().is_some_and(|name| SIZES.contains(&name.to_ascii_lowercase().as_str()));
            if let Some(size) = is_size.then(|| size(text)).flatten() {
                entry.value = Value::Integer(size);
            }
        }
        Value::Array(values) => {
            for entry in values {
                resolve(entry, path, context)?;
            }
        }
        Value::Map(map) => {
            for (name, entry) in map.iter_mut() {
                path.push(name.to_owned());
                resolve(entry, path, context)?;
                path.pop();
            }
        }
        Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Date(_) => {}
    }
    Ok(())
}

/// A size as nats-server's language has it: digits and a unit, in any case (`conf/lex.go`, `convertNum`). `None` for any
/// other text, and for a size above 2^63 - 1.
fn size(text: &str) -> Option<i64> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at(unit);
    let (power, base) = match unit.to_ascii_lowercase().as_str() {
        "k" => (1, 1000),
        "m" => (2, 1000),
        "g" => (3, 1000),
        "t" => (4, 1000),
        "kb" | "ki" | "kib" => (1, 1024),
        "mb" | "mi" | "mib" => (2, 1024),
        "gb" | "gi" | "gib" => (3, 1024),
        "tb" | "ti" | "tib" => (4, 1024),
        _ => return None,
    };
    digits.parse::<i64>().ok()?.checked_mul(i64::checked_pow(base, power)?)
}

/// What the settings and the template need to know of the place of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PlacementNeeds {
    /// `node.zone` is named.
    pub(crate) zone: bool,
    /// The KEYs of every `node.tags.KEY` and `node.tags["KEY"]`.
    pub(crate) tags: BTreeSet<String>,
}

impl PlacementNeeds {
    /// What `[nats.settings]` and a user's template need.
    pub(crate) fn of(settings: &Map, template: Option<&str>) -> Self {
        let mut needs = Self::default();
        settings.iter().for_each(|(_, entry)| needs.add(&entry.value));
        if let Some(text) = template {
            needs.add_text(text);
        }
        needs
    }

    fn add(&mut self, value: &Value) {
        match value {
            Value::Text(text) => self.add_text(text),
            Value::Array(values) => values.iter().for_each(|entry| self.add(&entry.value)),
            Value::Map(map) => map.iter().for_each(|(_, entry)| self.add(&entry.value)),
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Date(_) => {}
        }
    }

    fn add_text(&mut self, text: &str) {
        self.zone |= text.contains("node.zone");
        for (at, tags) in text.match_indices("node.tags") {
            let rest = &text[at + tags.len()..];
            let quoted = || {
                let rest = rest.strip_prefix('[')?;
                let quote = rest.chars().next().filter(|quote| ['"', '\''].contains(quote))?;
                rest[1..].split_once(quote).map(|(key, _)| key)
            };
            let bare = || {
                let rest = rest.strip_prefix('.')?;
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                Some(&rest[..end])
            };
            let key = quoted().or_else(bare).filter(|key| is_tag_key(key));
            self.tags.extend(key.map(str::to_owned));
        }
    }
}

/// Whether instance metadata can have a tag of this key: letters, digits and `+ - = . , _ : @`
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/work-with-tags-in-IMDS.html>).
fn is_tag_key(key: &str) -> bool {
    (1..=128).contains(&key.len()) && key.chars().all(|c| c.is_alphanumeric() || "+-=.,_:@".contains(c))
}

/// Puts the settings into the tree, block by block. A block goes into the block of its name. Any other value replaces
/// the value of its name. Synonyms count as one name.
pub(crate) fn merge(tree: &mut Map, settings: Map) {
    if settings.iter().any(|(name, _)| ["https", "https_port"].contains(&&*canonical(Block::Top, name))) {
        // nats-server refuses to start with `http` beside `https`, and the template has `http`.
        tree.remove("http");
    }
    merge_block(Some(Block::Top), tree, settings);
}

fn merge_block(block: Option<Block>, tree: &mut Map, settings: Map) {
    let same = |one: &str, other: &str| match block {
        Some(block) => canonical(block, one) == canonical(block, other),
        None => one == other,
    };
    for (name, entry) in settings {
        let known = tree.iter().map(|(known, _)| known).find(|known| same(known, &name));
        let known = known.map_or_else(|| name.clone(), str::to_owned);
        match (tree.remove(&known), entry) {
            (Some(Entry { value: Value::Map(mut into), origin, .. }), Entry { value: Value::Map(map), .. }) => {
                merge_block(block.and_then(|block| block.inside(&name)), &mut into, map);
                tree.insert(known, Entry::new(Value::Map(into), origin));
            }
            (_, entry) => {
                tree.insert(name, entry);
            }
        }
    }
}

/// Replaces `certificate = "node"` in every `tls` block by the files of this generation.
pub(crate) fn name_certificate(tree: &mut Map, files: &TlsFiles) -> Result<(), MergeError> {
    for (name, entry) in tree.iter_mut() {
        let is_tls = name.eq_ignore_ascii_case("tls");
        name_in(&mut entry.value, is_tls, files, files.ca_file_of(name))?;
    }
    Ok(())
}

fn name_in(value: &mut Value, is_tls: bool, files: &TlsFiles, ca_file: &Path) -> Result<(), MergeError> {
    match value {
        Value::Map(map) => {
            if is_tls {
                name_in_tls(map, files, ca_file)?;
            }
            map.iter_mut().try_for_each(|(name, entry)| {
                name_in(&mut entry.value, name.eq_ignore_ascii_case("tls"), files, ca_file)
            })
        }
        Value::Array(values) => {
            values.iter_mut().try_for_each(|entry| name_in(&mut entry.value, is_tls, files, ca_file))
        }
        _ => Ok(()),
    }
}

fn name_in_tls(tls: &mut Map, files: &TlsFiles, ca_file: &Path) -> Result<(), MergeError> {
    let Some(name) = tls.iter().map(|(name, _)| name).find(|name| name.eq_ignore_ascii_case(CERTIFICATE)) else {
        return Ok(());
    };
    let name = name.to_owned();
    let Some(Entry { value, origin, .. }) = tls.remove(&name) else { return Ok(()) };
    if value.as_text() != Some(NODE) {
        return Err(MergeError::Certificate { origin });
    }
    let files = [("cert_file", &*files.cert_file), ("key_file", &*files.key_file), ("ca_file", ca_file)];
    for (name, file) in files {
        // The state directory is UTF-8: the configuration is checked for that.
        let file = Value::text(file.to_string_lossy());
        let is_other = |(other, entry): (&str, &Entry)| other.eq_ignore_ascii_case(name) && entry.value != file;
        if tls.iter().any(is_other) {
            return Err(MergeError::TwoCertificates { origin, name: name.to_owned() });
        }
        tls.insert(name, Entry::new(file, origin.clone()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::conf::read as tree;
    use crate::conf::render::NodeValues;

    fn read(text: &str) -> Map {
        tree(text, Path::new("/a.conf")).unwrap()
    }

    fn values() -> Values {
        let node = NodeValues {
            name: "n1".into(),
            address: "10.0.1.5".into(),
            zone: Some("eu-west-1a".into()),
            tags: [("team".into(), "o\"ps".into())].into(),
            ..NodeValues::default()
        };
        Values { node, ..Values::sample() }
    }

    #[test]
    fn a_block_goes_into_its_block_and_any_other_value_into_its_place() {
        let mut merged =
            read("max_connections: 1\ncluster { name: a, pool_size: 3, tls { timeout: 5 } }\ntags: [ x, y ]");
        merge(
            &mut merged,
            read("Max_Conn: 2\ncluster { pool_size: 5, tls { handshake_first: true } }\ntags: [ z ]\nnew { a: 1 }"),
        );
        let expected = "Max_Conn: 2\ncluster { name: a, pool_size: 5, tls { timeout: 5, handshake_first: true } }\n\
                        tags: [ z ]\nnew { a: 1 }";
        assert!(merged == read(expected), "{}", &*crate::conf::write::text(&merged));
    }

    #[test]
    fn strings_say_what_is_known_of_this_node() {
        let settings = read(
            "server_tags: [ \"az:{{ node.zone }}\", \"t:{{ node.tags.team }}\" ]\nx { y: \"{{ tls.cert_file }}\" }",
        );
        let resolved = resolved(&settings, &values()).unwrap();
        let cert_file = values().tls.cert_file.display().to_string();
        let expected = read(&format!("server_tags: [ \"az:eu-west-1a\", \"t:o\\\"ps\" ]\nx {{ y: \"{cert_file}\" }}"));
        assert!(resolved == expected, "{}", &*crate::conf::write::text(&resolved));
    }

    #[test]
    fn a_string_that_names_what_is_not_known_is_refused_with_its_setting() {
        for text in ["{{ node.region }}", "{{ node.tags.absent }}", "{{ cluster.credential.password }}", "{{ node.zone"]
        {
            let error = resolved(&read(&format!("a {{ b: \"{text}\" }}")), &values()).unwrap_err();
            assert!(matches!(&error, MergeError::Render { setting, .. } if setting == "a.b"), "{text}: {error}");
        }
    }

    #[test]
    fn a_size_becomes_an_integer_where_nats_server_takes_no_string() {
        let settings =
            read("max_payload: \"8MB\"\nmax_pending: \"64k\"\npassword: \"12k\"\nmax_control_line: \"4 KB\"");
        let resolved = resolved(&settings, &values()).unwrap();
        let expected = [("max_payload", Value::Integer(8 << 20)), ("max_pending", Value::Integer(64_000))];
        for (name, value) in expected {
            assert!(resolved.get(name).unwrap().value == value, "{name}");
        }
        for name in ["password", "max_control_line"] {
            assert!(resolved.get(name).unwrap().value.as_text().is_some(), "{name}");
        }
        assert_eq!((size("9223372036854775807k"), size("8"), size("k")), (None, None, None));
    }

    #[test]
    fn a_tls_block_anywhere_takes_this_nodes_certificate() {
        let files = values().tls;
        let mut named = read(
            "websocket { tls { certificate: node, timeout: 3 } }\nleafnodes { remotes: [ { TLS { certificate: node } } ] }\n\
             tls { cert_file: /other }",
        );
        name_certificate(&mut named, &files).unwrap();
        let written = crate::conf::write::text(&named);
        assert_eq!(written.matches(&*files.key_file.to_string_lossy()).count(), 2, "{}", &*written);
        assert!(!written.contains("certificate:") && written.contains("/other"));
    }

    #[test]
    fn a_tls_block_with_another_or_a_second_certificate_is_refused() {
        let named = |text| name_certificate(&mut read(text), &values().tls);
        assert!(matches!(named("tls { certificate: mine }"), Err(MergeError::Certificate { .. })));
        let two = named("mqtt { tls { certificate: node, key_file: /k } }");
        assert!(matches!(two, Err(MergeError::TwoCertificates { name, .. }) if name == "key_file"));
    }

    #[test]
    fn the_zone_and_the_tags_that_settings_name_are_known_beforehand() {
        let settings =
            read("a: [ \"{{ node.zone }}\" ]\nb { c: \"{{ node.tags.team }}{{ node.tags['cost-centre'] }}\" }");
        let needs = PlacementNeeds::of(&settings, Some("{{ node.tags[\"Name\"] }} {{ node.tags.a/b }}"));
        assert!(needs.zone);
        assert_eq!(needs.tags.into_iter().collect::<Vec<_>>(), ["Name", "a", "cost-centre", "team"]);
        assert_eq!(PlacementNeeds::of(&read("a: x"), None), PlacementNeeds::default());
    }
}
