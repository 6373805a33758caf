//! Writes a tree of settings as nats-server's language: the one form that every version of nats-server reads alike.
//!
//! Strings are in double quotes, as are names with other characters than letters, digits and `_`. Numbers end at the
//! line's end. Nothing refers to a variable or a file, so neither the environment nor another file changes what the
//! text means.

use std::fmt::Write;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::tree::{Entry, Map, Source, Value};

/// The order of the sections. Settings that are not listed follow in alphabetical order, blocks after all others.
const ORDER: [&str; 22] = [
    "server_name",
    "server_tags",
    "listen",
    "host",
    "port",
    "http",
    "http_port",
    "https",
    "https_port",
    "pid_file",
    "tls",
    "cluster",
    "gateway",
    "leafnodes",
    "websocket",
    "mqtt",
    "jetstream",
    "operator",
    "system_account",
    "accounts",
    "authorization",
    "no_auth_user",
];

/// The text shown in the place of a secret.
pub const HIDDEN: &str = "********";

/// Settings whose value is a secret itself, not a file name, by all their names (`server/opts.go`, up to 2.15.1).
const SECRETS: [&str; 13] = [
    "pass",
    "password",
    "token",
    "nkey",
    "seed",
    "key",
    "ek",
    "encryption_key",
    "prev_key",
    "prev_ek",
    "prev_encryption_key",
    "encryption_password",
    "srk_password",
];

/// The beginning of a comment that names the source of the next setting.
const NOTE: &str = "# ";

/// Whether the text has the secrets of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Secrets {
    Written,
    Hidden,
}

/// The settings as nats-server reads them, with every secret.
#[must_use]
pub fn text(tree: &Map) -> Zeroizing<String> {
    let mut writer = Writer { text: Zeroizing::new(String::new()), secrets: Secrets::Written };
    writer.top(tree);
    writer.text
}

/// The settings as a person may see them: without the values of secret settings, and without the passwords in URLs.
#[must_use]
pub fn shown(tree: &Map) -> String {
    let mut writer = Writer { text: Zeroizing::new(String::new()), secrets: Secrets::Hidden };
    writer.top(tree);
    writer.text.to_string()
}

/// Gives the settings of a written text the sources that its comments name.
pub(crate) fn restore_sources(tree: &mut Map, text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    for (_, entry) in tree.iter_mut() {
        restore_source(entry, &lines, None);
    }
}

fn restore_source(entry: &mut Entry, lines: &[&str], above: Option<&Arc<Source>>) {
    let before = entry.origin.line.checked_sub(2).and_then(|index| lines.get(index));
    let noted = before.and_then(|line| line.trim_start().strip_prefix(NOTE));
    let noted = noted.map(|noted| Arc::new(noted_source(noted)));
    if let Some(source) = noted.as_ref().or(above) {
        entry.origin.source = Arc::clone(source);
    }
    let source = noted.as_ref().or(above);
    match &mut entry.value {
        Value::Array(values) => values.iter_mut().for_each(|entry| restore_source(entry, lines, source)),
        Value::Map(map) => map.iter_mut().for_each(|(_, entry)| restore_source(entry, lines, source)),
        Value::Text(_) | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Date(_) => {}
    }
}

/// The source that a comment names. What the agent adds itself is known by its comment alone.
fn noted_source(noted: &str) -> Source {
    if noted == Source::Agent.to_string() { Source::Agent } else { Source::Noted(noted.to_owned()) }
}

/// Every secret of the settings, each in the form that the settings have. A message of nats-server may quote a secret.
#[must_use]
pub fn secrets(tree: &Map) -> Vec<Zeroizing<String>> {
    let mut found = Vec::new();
    for (name, entry) in tree.iter() {
        find_secrets(name, &entry.value, &mut found);
    }
    found
}

fn find_secrets(name: &str, value: &Value, found: &mut Vec<Zeroizing<String>>) {
    match value {
        Value::Text(text) if is_secret(name, text) => found.push(text.clone()),
        Value::Text(text) => {
            let mut rest = text.as_str();
            while let Some(authority) = Authority::first_in(rest) {
                if let Some(password) = authority.secret {
                    found.extend([Zeroizing::new(password.to_owned()), percent_decoded(password)]);
                }
                rest = authority.after;
            }
        }
        Value::Integer(number) if is_secret(name, "") => found.push(Zeroizing::new(number.to_string())),
        Value::Array(values) => values.iter().for_each(|entry| find_secrets(name, &entry.value, found)),
        Value::Map(map) => map.iter().for_each(|(inner, entry)| {
            // A header of websocket may be a credential, and its name is anybody's choice.
            let name = if name.eq_ignore_ascii_case("headers") { "token" } else { inner };
            find_secrets(name, &entry.value, found);
        }),
        Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Date(_) => {}
    }
}

/// Whether a setting is a secret. A user's `nkey` is public; the `nkey` of a leaf node is a seed, which begins with an S.
fn is_secret(name: &str, text: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRETS.contains(&name.as_str()) && (name != "nkey" || text.starts_with('S'))
}

struct Writer {
    text: Zeroizing<String>,
    secrets: Secrets,
}

impl Writer {
    fn push(&mut self, text: &str) {
        // A growing buffer leaves copies of secrets behind, so its size doubles before it is full.
        let needed = self.text.len() + text.len();
        if needed > self.text.capacity() {
            let mut larger = Zeroizing::new(String::with_capacity(needed.max(4096) * 2));
            larger.push_str(&self.text);
            self.text = larger;
        }
        self.text.push_str(text);
    }

    fn top(&mut self, tree: &Map) {
        self.push(
            "# Written by nats-tls-agent from its template, nats.include and [nats.settings] of agent.toml.\n\
             # An edit here is lost at the next change of a certificate, a peer or a setting.\n\n",
        );
        let rank = |name: &str| ORDER.iter().position(|known| *known == name).unwrap_or(ORDER.len());
        let mut entries: Vec<_> = tree.iter().collect();
        entries.sort_by_key(|(name, entry)| {
            let is_block = matches!(entry.value, Value::Map(_));
            (is_block, rank(&name.to_ascii_lowercase()))
        });
        for (name, entry) in entries {
            if matches!(entry.value, Value::Map(_)) {
                self.push("\n");
            }
            self.setting(name, entry, None, 0);
        }
    }

    /// Writes one setting. `above` is the source of the block around it.
    fn setting(&mut self, name: &str, entry: &Entry, above: Option<&Source>, depth: usize) {
        self.note_source(entry, above, depth);
        self.indent(depth);
        self.name(name);
        self.push(if matches!(entry.value, Value::Map(_)) { " " } else { ": " });
        self.value(name, entry, depth);
        self.push("\n");
    }

    fn note_source(&mut self, entry: &Entry, above: Option<&Source>, depth: usize) {
        let source = &*entry.origin.source;
        if !matches!(source, Source::Template(_) | Source::Committed(_)) && above != Some(source) {
            self.indent(depth);
            // A file's name may hold a line break, which would end the comment.
            let source = match source {
                Source::Noted(source) => source.clone(),
                source => source.to_string().escape_debug().to_string(),
            };
            self.push(&format!("{NOTE}{source}\n"));
        }
    }

    fn value(&mut self, name: &str, entry: &Entry, depth: usize) {
        let above = &*entry.origin.source;
        match &entry.value {
            Value::Text(text) => self.string(name, text),
            Value::Bool(on) => self.push(if *on { "true" } else { "false" }),
            Value::Integer(_) if self.secrets == Secrets::Hidden && is_secret(name, "") => self.quoted(HIDDEN),
            Value::Integer(number) => self.push(&number.to_string()),
            Value::Float(number) => {
                let digits = number.to_string();
                self.push(&digits);
                // A number without a point is an integer.
                if !digits.contains('.') {
                    self.push(".0");
                }
            }
            Value::Date(date) => self.push(date),
            Value::Array(values) => {
                self.push("[\n");
                for entry in values {
                    self.note_source(entry, Some(above), depth + 1);
                    self.indent(depth + 1);
                    self.value(name, entry, depth + 1);
                    self.push("\n");
                }
                self.indent(depth);
                self.push("]");
            }
            Value::Map(map) => {
                self.push("{\n");
                let hides_all = name.eq_ignore_ascii_case("headers") && self.secrets == Secrets::Hidden;
                for (inner, entry) in map.iter() {
                    match &entry.value {
                        Value::Text(_) if hides_all => {
                            let hidden = Entry::new(Value::text(HIDDEN), entry.origin.clone());
                            self.setting(inner, &hidden, Some(above), depth + 1);
                        }
                        _ => self.setting(inner, entry, Some(above), depth + 1),
                    }
                }
                self.indent(depth);
                self.push("}");
            }
        }
    }

    fn string(&mut self, name: &str, text: &str) {
        match self.secrets {
            Secrets::Written => self.quoted(text),
            Secrets::Hidden if is_secret(name, text) => self.quoted(HIDDEN),
            Secrets::Hidden => {
                let shown = without_passwords(text);
                self.quoted(&shown);
            }
        }
    }

    /// Writes a name. nats-server knows no escapes in a name, and ends a quoted name at the next quote of its kind
    /// (`conf/lex.go`, `lexQuotedKey`, `lexDubQuotedKey`). A name with both quotes was read without quotes.
    fn name(&mut self, name: &str) {
        let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let quote = match name {
            "" => "\"",
            _ if is_plain && !name.eq_ignore_ascii_case("include") => "",
            _ => ["\"", "'"].into_iter().find(|quote| !name.contains(quote)).unwrap_or_default(),
        };
        for part in [quote, name, quote] {
            self.push(part);
        }
    }

    /// Writes a string between double quotes. nats-server knows the escapes `\t \n \r \" \\ \xHH` and no others
    /// (`conf/lex.go`).
    fn quoted(&mut self, text: &str) {
        self.push("\"");
        let mut buffer = [0; 4];
        for character in text.chars() {
            match character {
                '"' => self.push("\\\""),
                '\\' => self.push("\\\\"),
                '\n' => self.push("\\n"),
                '\r' => self.push("\\r"),
                '\t' => self.push("\\t"),
                _ if character.is_control() => {
                    for byte in character.encode_utf8(&mut buffer).bytes() {
                        let mut escape = String::with_capacity(4);
                        let _infallible = write!(escape, "\\x{byte:02x}");
                        self.push(&escape);
                    }
                }
                _ => self.push(character.encode_utf8(&mut buffer)),
            }
        }
        self.push("\"");
    }

    fn indent(&mut self, depth: usize) {
        for _ in 0..depth {
            self.push("  ");
        }
    }
}

/// The authority of the first URL in a text (RFC 3986, section 3.2), with the texts around it.
struct Authority<'a> {
    /// The text up to the secret, or up to the host.
    before: &'a str,
    /// The password, or a user information without a password, which nats-server takes for a token.
    secret: Option<&'a str>,
    /// The text after the secret.
    after: &'a str,
}

impl<'a> Authority<'a> {
    fn first_in(text: &'a str) -> Option<Self> {
        let start = text.find("://")? + 3;
        let length = text[start..].find(|c: char| c.is_whitespace() || "/\"',]".contains(c));
        let end = length.map_or(text.len(), |length| start + length);
        let Some(at) = text[start..end].rfind('@').map(|at| start + at) else {
            return Some(Self { before: &text[..end], secret: None, after: &text[end..] });
        };
        let secret = text[start..at].find(':').map_or(start, |colon| start + colon + 1);
        Some(Self { before: &text[..secret], secret: Some(&text[secret..at]), after: &text[at..] })
    }
}

/// The text with the password of each URL hidden.
fn without_passwords(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(Authority { before, secret, after }) = Authority::first_in(rest) {
        shown.push_str(before);
        if secret.is_some() {
            shown.push_str(HIDDEN);
        }
        rest = after;
    }
    shown + rest
}

fn percent_decoded(text: &str) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        let byte = after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.unwrap_or(b'%'));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    bytes.extend_from_slice(rest.as_bytes());
    Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::read as tree;
    use crate::conf::render::Rendered;
    use crate::conf::tree::Origin;
    use std::path::{Path, PathBuf};

    fn read(text: &str) -> Map {
        tree(text, Path::new("/a.conf")).unwrap()
    }

    fn mark(entry: &mut Entry, source: &Arc<Source>) {
        entry.origin = Origin { source: source.clone(), line: 3 };
        match &mut entry.value {
            Value::Array(values) => values.iter_mut().for_each(|entry| mark(entry, source)),
            Value::Map(map) => map.iter_mut().for_each(|(_, entry)| mark(entry, source)),
            _ => {}
        }
    }

    fn from(source: Source, mut map: Map) -> Map {
        let source = Arc::new(source);
        map.iter_mut().for_each(|(_, entry)| mark(entry, &source));
        map
    }

    #[test]
    fn sections_are_in_a_fixed_order_and_what_is_not_of_the_template_says_its_source() {
        let mut map = from(
            Source::Template(None),
            read(
                "zeta { b: 1 }\ncluster { name: c }\nmax_payload: 8\nlisten: a:1\ntls { verify: true }\nserver_name: n",
            ),
        );
        let settings = from(Source::Settings("/etc/agent.toml".into()), read("no_advertise: true"));
        if let Some(Entry { value: Value::Map(cluster), .. }) = map.get_mut("cluster") {
            cluster.insert("no_advertise", settings.get("no_advertise").unwrap().clone());
        }
        let file = Source::File(PathBuf::from("/etc/x\ny.conf"));
        let included = from(file, read("accounts { A { users: [ { user: u, password: p } ] } }"));
        map.insert("accounts", included.get("accounts").unwrap().clone());
        insta::assert_snapshot!(text(&map).as_str());
    }

    #[test]
    fn a_text_that_is_read_back_is_written_with_the_same_sources() {
        let mut map = from(Source::Template(None), read("a: 1\nb { c: 2, d: 3 }\ne: [ x ]"));
        let other = from(Source::File("/x.conf".into()), read("d { f: [ 1 ] }\ng { h: 1 }"));
        if let Some(Entry { value: Value::Map(block), .. }) = map.get_mut("b") {
            block.insert("d", other.get("d").unwrap().clone());
        }
        map.insert("g", other.get("g").unwrap().clone());
        let written = Rendered::from_text(text(&map));
        let again = text(&written.tree(Path::new("/nats-server.conf")).unwrap());
        assert_eq!(again.as_str(), written.text());
        assert_eq!(again.matches("# /x.conf").count(), 2, "{}", &*again);
    }

    #[test]
    fn what_is_written_is_read_back() {
        for written in [
            "a: \"x\\ty\\\"\\\\\\x01é\"\n\"k e.y\": [ 1 ,-5 , {b: c}, [], {}, true ]\nc: 'it\"s'\nd: 1.5\ne: 2.0\n",
            "a {\n b {\n c: \"$X\"\n}\n}\n",
            "",
        ] {
            let map = read(written);
            assert!(read(&text(&map)) == map, "{written}: {}", &*text(&map));
        }
    }

    #[test]
    fn invariant_01_every_secret_is_hidden_and_nothing_else() {
        let map = read(
            "users: [ {user: a, password: \"x y\"}, {user: b, pass: 12345} ]\ntoken: t0k3n\n\
             routes: [ \"nats-route://u:p%20w@h:1\", nats-route://h:2, \"nats://tok@h:3\" ]\n\
             leaf { nkey: SUAMK2 }\nn { nkey: UDXU4R, key_file: /k }\nwebsocket { headers { X-Auth: h34d } }",
        );
        let shown = shown(&map);
        for secret in ["x y", "12345", "t0k3n", "p%20w", "tok@", "SUAMK2", "h34d"] {
            assert!(!shown.contains(secret), "{secret}: {shown}");
        }
        for open in ["\"a\"", "nats-route://u:********@h:1", "nats-route://h:2", "UDXU4R", "/k"] {
            assert!(shown.contains(open), "{open}: {shown}");
        }
        let found = secrets(&map);
        for secret in ["x y", "12345", "t0k3n", "p%20w", "p w", "tok", "SUAMK2", "h34d"] {
            assert!(found.iter().any(|found| found.as_str() == secret), "{secret}");
        }
    }
}
