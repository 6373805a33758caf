//! Reader of nats-server's configuration language, as far as needed to see what a file protects.
//!
//! The reader follows nats-server's own lexer and parser (`conf/lex.go` and `conf/parse.go` of 2.10.26, 2.12.8 and HEAD
//! of August 2026). nats-server accepts some odd texts, such as a key without a value. This reader refuses those texts.
//! A text that is read here is therefore read alike by nats-server, or refused by nats-server.
//!
//! Of two settings with one name, the later replaces the earlier as a whole. An `include` means the included file's
//! settings in its place, and [`flatten`] writes them there. Variables are not resolved, because the file alone doesn't
//! say which environment nats-server will have.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use zeroize::Zeroizing;

use super::tree;
use crate::digest::sha256_hex;
use crate::state::durable;

/// The largest text in bytes, all includes together. Tens of thousands of accounts fit.
pub const MAX_SIZE: u64 = 16 * 1024 * 1024;
/// The deepest nesting of includes.
const MAX_INCLUDE_DEPTH: usize = 8;
/// The largest number of files that one configuration may include: several hundred tenants with a file each fit.
const MAX_INCLUDES: usize = 1000;
/// The deepest nesting of maps and arrays.
const MAX_DEPTH: usize = 32;

/// The value of a setting.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    /// A string, quoted or not, or a number as written.
    Text(Zeroizing<String>),
    /// An unquoted `true`, `yes`, `on`, `false`, `no` or `off`, in any case.
    Bool(bool),
    /// The name of a variable, without its `$`.
    Variable(String),
    /// `[ … ]`.
    Array(Vec<Value>),
    /// `{ … }`.
    Map(Map),
}

impl std::fmt::Debug for Value {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // The text may be a password.
            Self::Text(_) => formatter.write_str("Text(…)"),
            Self::Bool(on) => write!(formatter, "Bool({on})"),
            Self::Variable(name) => write!(formatter, "Variable({name})"),
            Self::Array(values) => formatter.debug_list().entries(values).finish(),
            Self::Map(map) => map.fmt(formatter),
        }
    }
}

impl Value {
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
}

/// Settings by name.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Map(BTreeMap<String, Value>);

impl std::fmt::Debug for Map {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

impl Map {
    /// The names as written, sorted, with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The setting under any of these names, which must be in lower case. nats-server ignores the case of names. Of two
    /// names for one setting, nats-server applies either one last, so two are an error.
    pub fn find(&self, names: &[&str]) -> Result<Option<&Value>, ConfError> {
        let mut found = self.0.iter().filter(|(name, _)| names.contains(&name.to_lowercase().as_str()));
        match (found.next(), found.next()) {
            (Some((one, _)), Some((other, _))) => Err(ConfError::Ambiguous { one: one.clone(), other: other.clone() }),
            (first, _) => Ok(first.map(|(_, value)| value)),
        }
    }
}

/// Why a configuration can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// A file can't be read.
    #[error("could not read {}, part of nats-server's configuration; correct it, or remove its include", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file, or all files together, exceeds [`MAX_SIZE`].
    #[error("{} is larger than {MAX_SIZE} bytes, so it is no configuration of nats-server", .file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
    },
    /// The text is not in nats-server's language.
    #[error("{}:{line}: {message}", .file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The fault.
        message: &'static str,
    },
    /// One setting appears under two names, and either may win.
    #[error("{one:?} and {other:?} are one setting to nats-server, and it applies either last; remove one")]
    Ambiguous {
        /// The first name.
        one: String,
        /// The second name.
        other: String,
    },
    /// Written in the place of its include, an included file's text would mean something else.
    #[error(
        "what {} includes can't be written in its place: it would be read in another way there; end each setting on a line \
         of its own", .file.display()
    )]
    Inseparable {
        /// The file with the includes.
        file: PathBuf,
    },
}

/// Parses `text`. `file` is named in errors, and includes are relative to its directory; the file need not exist.
pub fn parse(text: &str, file: &Path) -> Result<Map, ConfError> {
    read(text, file, 0, &mut 0).map(|(map, _)| map)
}

/// The settings of `text` as a tree, until the reader of trees replaces this reader.
pub fn tree(text: &str, file: &Path) -> Result<tree::Map, ConfError> {
    let origin = tree::Origin { source: std::sync::Arc::new(tree::Source::File(file.to_owned())), line: 0 };
    Ok(parse(text, file)?.to_tree(&origin))
}

impl Map {
    fn to_tree(&self, origin: &tree::Origin) -> tree::Map {
        let mut map = tree::Map::default();
        for (name, value) in self.iter() {
            map.insert(name, value.to_tree(origin));
        }
        map
    }
}

impl Value {
    fn to_tree(&self, origin: &tree::Origin) -> tree::Entry {
        let value = match self {
            Self::Text(text) => text.parse().map_or_else(|_| tree::Value::Text(text.clone()), tree::Value::Integer),
            Self::Bool(on) => tree::Value::Bool(*on),
            Self::Variable(name) => tree::Value::text(format!("${name}")),
            Self::Array(values) => tree::Value::Array(values.iter().map(|value| value.to_tree(origin)).collect()),
            Self::Map(map) => tree::Value::Map(map.to_tree(origin)),
        };
        tree::Entry::new(value, origin.clone())
    }
}

/// The text of `file` with each `include` replaced by the included text, between two comments that name the included
/// file. The result means the same as `text` and depends on no other file.
pub fn flatten(text: &str, file: &Path) -> Result<Zeroizing<String>, ConfError> {
    let (map, flat) = read(text, file, 0, &mut 0)?;
    // Text on the same line as an include may be read in another way after the replacement.
    if *flat != text && parse(&flat, file).ok() != Some(map) {
        return Err(ConfError::Inseparable { file: file.to_owned() });
    }
    Ok(flat)
}

/// The beginnings of the comments before and after an included text.
const BEGIN: &str = "# >>> ";
const END: &str = "# <<< ";

/// A flattened text without the included texts, which may hold anybody's secrets. The comments around each included
/// text remain: they name the file, and the digest shows whether its content changed.
#[must_use]
pub fn without_included(flat: &str) -> String {
    let mut depth = 0_usize;
    let mut shown = String::new();
    for line in flat.split_inclusive('\n') {
        let (begins, ends) = (line.starts_with(BEGIN), line.starts_with(END));
        depth -= usize::from(ends && depth > 0);
        if depth == 0 {
            shown.push_str(line);
        }
        depth += usize::from(begins);
    }
    shown
}

/// The settings of a text, and the flattened text.
fn read(
    text: &str,
    file: &Path,
    include_depth: usize,
    includes: &mut usize,
) -> Result<(Map, Zeroizing<String>), ConfError> {
    let mut map = Map::default();
    let flat = Zeroizing::new(String::with_capacity(text.len()));
    let mut reader = Reader { text, position: 0, file, depth: 0, include_depth, includes, flat, copied: 0 };
    reader.check_size(text.len())?;
    reader.top(&mut map)?;
    let (rest, mut flat) = (&text[reader.copied..], reader.flat);
    flat.push_str(rest);
    Ok((map, flat))
}

fn read_file(file: &Path) -> Result<Zeroizing<String>, ConfError> {
    let failed = |source| ConfError::Read { file: file.to_owned(), source };
    let bytes = durable::read_if_there(file, MAX_SIZE).map_err(|error| failed(error.source))?.map(Zeroizing::new);
    let bytes = bytes.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
    let text = std::str::from_utf8(&bytes);
    let text = text.map_err(|error| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Go's `filepath.Join(directory, path)`. An absolute path goes below the directory like any other path, and `..` is
/// resolved in the text alone.
fn join(directory: &Path, path: &str) -> PathBuf {
    let mut joined = PathBuf::new();
    for component in directory.components().chain(Path::new(path).components()) {
        match component {
            Component::RootDir if !joined.as_os_str().is_empty() => {}
            Component::CurDir => {}
            // `..` at the root has no effect. In a relative path, `..` stays where no component is left to remove.
            Component::ParentDir if joined.file_name().is_some() => {
                joined.pop();
            }
            Component::ParentDir if joined.has_root() => {}
            other => joined.push(other),
        }
    }
    joined
}

/// Where a setting stands. The separators that are allowed differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Top,
    Block,
    Map,
}

struct Reader<'a> {
    text: &'a str,
    position: usize,
    file: &'a Path,
    depth: usize,
    include_depth: usize,
    includes: &'a mut usize,
    /// The flattened text so far. `text` is copied into it up to `copied`.
    flat: Zeroizing<String>,
    copied: usize,
}

impl<'a> Reader<'a> {
    fn check_size(&self, size: usize) -> Result<(), ConfError> {
        if size as u64 > MAX_SIZE { Err(ConfError::TooLarge { file: self.file.to_owned() }) } else { Ok(()) }
    }

    fn top(&mut self, map: &mut Map) -> Result<(), ConfError> {
        // nats-server's lexer takes a NUL for the end of the text in some places.
        if let Some(position) = self.text.find('\0') {
            self.position = position;
            return Err(self.wrong("a NUL character"));
        }
        loop {
            self.skip_space_and_comments()?;
            match self.peek() {
                None => return Ok(()),
                Some('{') => {
                    self.next();
                    self.settings(map, Place::Block)?;
                }
                // The rest of a text that lost its opening brace. nats-server accepts it at the very end.
                Some('}') if self.rest()[1..].trim_start().is_empty() => return Ok(()),
                Some(_) => {
                    self.setting(map, Place::Top)?;
                    self.end_of_setting(Place::Top)?;
                }
            }
        }
    }

    /// Reads settings up to the closing brace, and past it.
    fn settings(&mut self, map: &mut Map, place: Place) -> Result<(), ConfError> {
        self.descend()?;
        loop {
            self.skip_space_and_comments()?;
            match self.peek() {
                None => return Err(self.wrong("the text ends before a closing '}'")),
                Some('}') => {
                    self.next();
                    self.depth -= 1;
                    return Ok(());
                }
                Some(_) => {
                    self.setting(map, place)?;
                    self.end_of_setting(place)?;
                }
            }
        }
    }

    fn setting(&mut self, map: &mut Map, place: Place) -> Result<(), ConfError> {
        let start = self.position;
        let Some(name) = self.key()? else { return self.include(map, start) };
        self.skip_while(char::is_whitespace);
        if self.take('=') || self.take(':') {
            // Only in a map may the value begin on the next line.
            self.skip_while(if place == Place::Map { char::is_whitespace } else { is_blank });
        }
        match self.peek() {
            None => return Err(self.wrong("the text ends where a value is expected")),
            Some(',' | '}') if place == Place::Map => return Err(self.wrong("a setting without a value")),
            _ => {}
        }
        let value = self.value()?;
        map.0.insert(name, value);
        Ok(())
    }

    /// Reads a name. `None` is the keyword `include`.
    fn key(&mut self) -> Result<Option<String>, ConfError> {
        match self.peek() {
            Some(quote @ ('"' | '\'')) => {
                self.next();
                let name = self.until(quote)?.to_owned();
                Ok(Some(name))
            }
            Some(':' | '=') | None => Err(self.wrong("a separator where a name is expected")),
            Some(']' | '{') => Err(self.wrong("a bracket where a name is expected")),
            Some(_) => {
                let start = self.position;
                self.skip_while(|c| !c.is_whitespace() && c != ':' && c != '=');
                let name = &self.text[start..self.position];
                let spaced = self.peek().is_some_and(char::is_whitespace);
                Ok(if spaced && name.eq_ignore_ascii_case("include") { None } else { Some(name.to_owned()) })
            }
        }
    }

    /// Reads the path of an include, which has no escapes, and the file. `start` is the position of the keyword.
    fn include(&mut self, map: &mut Map, start: usize) -> Result<(), ConfError> {
        self.skip_while(is_blank);
        let path = match self.peek() {
            Some(quote @ ('"' | '\'')) => {
                self.next();
                self.until(quote)?
            }
            Some(c) if "[{(-\\\r\n".contains(c) || c.is_numeric() => {
                return Err(self.wrong("an include without a path"));
            }
            _ => {
                let start = self.position;
                self.skip_while(|c| !is_blank(c) && !"\r\n;}'".contains(c));
                if self.peek() == Some('\'') {
                    return Err(self.wrong("a quote within an unquoted path"));
                }
                &self.text[start..self.position]
            }
        };
        let file = join(self.file.parent().unwrap_or(Path::new("")), path);
        *self.includes += 1;
        if self.include_depth == MAX_INCLUDE_DEPTH || *self.includes > MAX_INCLUDES {
            return Err(self.wrong("too many includes, or one that includes itself"));
        }
        let (settings, flat) = read(&read_file(&file)?, &file, self.include_depth + 1, self.includes)?;
        map.0.extend(settings.0);
        self.check_size(self.flat.len() + flat.len())?;
        let name: String = file.to_string_lossy().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let digest = sha256_hex(flat.as_bytes());
        let before = &self.text[self.copied..start];
        for part in [before, "\n", BEGIN, &name, ", sha256:", &digest, "\n", &flat, "\n", END, &name, "\n"] {
            self.flat.push_str(part);
        }
        self.skip_while(is_blank);
        // A line end now separates the include from the next setting, so a separator after it is dropped.
        self.copied = self.position + usize::from(matches!(self.peek(), Some(';' | ',')));
        Ok(())
    }

    fn end_of_setting(&mut self, place: Place) -> Result<(), ConfError> {
        self.skip_while(is_blank);
        match self.peek() {
            None if place == Place::Top => Ok(()),
            Some('}') if place == Place::Top => {
                self.next();
                Ok(())
            }
            // The caller reads the closing brace and comments.
            Some('}' | '#') => Ok(()),
            Some('/') if self.rest().starts_with("//") => Ok(()),
            Some('\n' | '\r' | ';' | ',') => {
                self.next();
                Ok(())
            }
            _ => Err(self.wrong("text after a value on its line")),
        }
    }

    fn value(&mut self) -> Result<Value, ConfError> {
        match self.peek() {
            Some('[') => {
                self.next();
                self.array()
            }
            Some('{') => {
                self.next();
                let mut map = Map::default();
                self.settings(&mut map, Place::Map)?;
                Ok(Value::Map(map))
            }
            Some('\'') => {
                self.next();
                Ok(Value::Text(Zeroizing::new(self.until('\'')?.to_owned())))
            }
            Some('"') => {
                self.next();
                let (text, _) = self.escaped(|c| c == '"')?;
                if !self.take('"') {
                    return Err(self.wrong("the text ends before a closing quote"));
                }
                Ok(Value::Text(text))
            }
            Some('(') => {
                self.next();
                self.block()
            }
            Some('\n' | '\r') => Err(self.wrong("the line ends where a value is expected")),
            _ => self.bare(),
        }
    }

    fn array(&mut self) -> Result<Value, ConfError> {
        self.descend()?;
        let mut values = Vec::new();
        loop {
            self.skip_space_and_comments()?;
            match self.peek() {
                None => return Err(self.wrong("the text ends before a closing ']'")),
                Some(',') => return Err(self.wrong("a comma where a value is expected")),
                Some(']') => {
                    self.next();
                    self.depth -= 1;
                    return Ok(Value::Array(values));
                }
                Some(_) => values.push(self.value()?),
            }
            self.skip_while(is_blank);
            match self.peek() {
                Some('\n' | '\r' | ',') => {
                    self.next();
                }
                Some(']' | '#') => {}
                Some('/') if self.rest().starts_with("//") => {}
                _ => return Err(self.wrong("neither ',' nor ']' after a value of an array")),
            }
        }
    }

    /// Reads a block: `(` … up to a `)` on a line of its own.
    fn block(&mut self) -> Result<Value, ConfError> {
        let rest = self.rest();
        let end = rest
            .match_indices("\n)")
            .map(|(index, _)| index + 1)
            .find(|end| matches!(rest.as_bytes().get(end + 1), None | Some(b'\n')));
        let Some(end) = end else { return Err(self.wrong("the text ends before a ')' on a line of its own")) };
        let text = Zeroizing::new(rest[..end].to_owned());
        self.position += end + 1;
        Ok(Value::Text(text))
    }

    /// Reads an unquoted value.
    fn bare(&mut self) -> Result<Value, ConfError> {
        let start = self.position;
        let (text, has_escapes) = self.escaped(|c| is_blank(c) || "\r\n;,]}'".contains(c))?;
        let written = &self.text[start..self.position];
        if self.peek() == Some('\'') {
            return Err(self.wrong("a quote within an unquoted value"));
        }
        if !number_ends_as_text_does(written, self.peek()) {
            return Err(self.wrong("an unquoted value that begins like a number; write it in double quotes"));
        }
        Ok(if has_escapes {
            Value::Text(text)
        } else if let Some(name) = text.strip_prefix('$') {
            // nats-server too takes an unquoted bcrypt hash for text.
            if name.starts_with("2a$") { Value::Text(text) } else { Value::Variable(name.to_owned()) }
        } else {
            match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => Value::Bool(true),
                "false" | "no" | "off" => Value::Bool(false),
                _ => Value::Text(text),
            }
        })
    }

    /// Reads text up to a character for which `ends` is true, and resolves escapes. The flag says whether the text had
    /// any. Bytes that are not UTF-8 become U+FFFD.
    fn escaped(&mut self, ends: impl Fn(char) -> bool) -> Result<(Zeroizing<String>, bool), ConfError> {
        let mut bytes = Zeroizing::new(Vec::new());
        let mut has_escapes = false;
        while let Some(character) = self.peek().filter(|c| !ends(*c)) {
            self.next();
            if character == '\\' {
                has_escapes = true;
                bytes.push(self.escape()?);
            } else {
                bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        Ok((Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()), has_escapes))
    }

    fn escape(&mut self) -> Result<u8, ConfError> {
        match self.next() {
            Some('t') => Ok(b'\t'),
            Some('n') => Ok(b'\n'),
            Some('r') => Ok(b'\r'),
            Some('"') => Ok(b'"'),
            Some('\\') => Ok(b'\\'),
            Some('x') => {
                let digit = |c: Option<char>| c.and_then(|c| c.to_digit(16)).and_then(|digit| u8::try_from(digit).ok());
                match (digit(self.next()), digit(self.next())) {
                    (Some(high), Some(low)) => Ok(high << 4 | low),
                    _ => Err(self.wrong("\\x without two hexadecimal digits")),
                }
            }
            _ => Err(self.wrong("a backslash before none of x, t, n, r, \" and \\")),
        }
    }

    fn skip_space_and_comments(&mut self) -> Result<(), ConfError> {
        loop {
            self.skip_while(char::is_whitespace);
            match self.peek() {
                Some('#') => self.skip_while(|c| c != '\n' && c != '\r'),
                Some('/') if self.rest().starts_with("//") => self.skip_while(|c| c != '\n' && c != '\r'),
                Some('/') => return Err(self.wrong("a single '/' where a name is expected")),
                _ => return Ok(()),
            }
        }
    }

    /// Returns the text up to `quote`, without escapes, and moves past the quote.
    fn until(&mut self, quote: char) -> Result<&'a str, ConfError> {
        let start = self.position;
        let text: &'a str = self.text;
        let Some(length) = text[start..].find(quote) else {
            return Err(self.wrong("the text ends before a closing quote"));
        };
        self.position = start + length + quote.len_utf8();
        Ok(&text[start..start + length])
    }

    fn descend(&mut self) -> Result<(), ConfError> {
        if self.depth == MAX_DEPTH {
            return Err(self.wrong("maps and arrays nest too deep"));
        }
        self.depth += 1;
        Ok(())
    }

    fn rest(&self) -> &str {
        &self.text[self.position..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.position += character.len_utf8();
        Some(character)
    }

    fn take(&mut self, expected: char) -> bool {
        let taken = self.peek() == Some(expected);
        if taken {
            self.next();
        }
        taken
    }

    fn skip_while(&mut self, skip: impl Fn(char) -> bool) {
        while self.peek().is_some_and(&skip) {
            self.next();
        }
    }

    fn wrong(&self, message: &'static str) -> ConfError {
        let line = self.text[..self.position].bytes().filter(|byte| *byte == b'\n').count() + 1;
        ConfError::Syntax { file: self.file.to_owned(), line, message }
    }
}

fn is_blank(character: char) -> bool {
    character == ' ' || character == '\t'
}

/// Whether an unquoted value ends where text would end. nats-server reads a value that begins with a digit or a minus
/// by other rules, and these can end the value elsewhere.
fn number_ends_as_text_does(written: &str, next: Option<char>) -> bool {
    let Some(first) = written.chars().next() else { return true };
    if !first.is_ascii_digit() && first != '-' {
        return first != '.' && !first.is_numeric();
    }
    match written.trim_start_matches(|c: char| c.is_ascii_digit()).chars().next() {
        // After digits alone, nats-server reads past a ']'.
        None => next != Some(']'),
        Some('\\') => false,
        // A negative number, a fraction, an address or a date.
        Some('.' | '-') => written.chars().all(|c| c.is_ascii_alphanumeric() || ".:-".contains(c)),
        Some(other) => !other.is_numeric(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Map {
        parse(text, Path::new("/etc/nats/nats-server.conf")).unwrap()
    }

    fn refused(text: &str) -> String {
        parse(text, Path::new("/a.conf")).unwrap_err().to_string()
    }

    fn text(value: &str) -> Value {
        Value::Text(Zeroizing::new(value.to_owned()))
    }

    fn map<const N: usize>(settings: [(&str, Value); N]) -> Map {
        Map(settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    #[test]
    fn settings_are_separated_as_nats_server_allows() {
        let expected = map([("a", text("1")), ("b", text("x")), ("c", Value::Bool(true))]);
        for written in [
            "a: 1\nb: x\nc: true",
            "a = 1; b = \"x\"; c = yes",
            "a 1 # comment\nb 'x' // comment\n\n# comment\nc on",
            "{ \"a\": 1, \"b\": \"x\", \"c\": true }",
            "{ a: 1, b: x\nc: true\n}\n",
            "a\n1\r\nb:x,c: TRUE}",
        ] {
            assert_eq!(read(written), expected, "{written}");
        }
    }

    #[test]
    fn maps_arrays_blocks_and_variables_are_read() {
        let read = read(
            "tls {\n cert_file: \"/a b\"\n verify: true }\nroutes [\n nats-route://1.2.3.4:6222 # one\n \"x\", 'y'\n]\n\
             password: $2a$11$abc\nname: $HOST\njwt (\nline { one\n)\nlisten: 10.0.0.1:4222",
        );
        let expected = map([
            ("tls", Value::Map(map([("cert_file", text("/a b")), ("verify", Value::Bool(true))]))),
            ("routes", Value::Array(vec![text("nats-route://1.2.3.4:6222"), text("x"), text("y")])),
            ("password", text("$2a$11$abc")),
            ("name", Value::Variable("HOST".to_owned())),
            ("jwt", text("\nline { one\n")),
            ("listen", text("10.0.0.1:4222")),
        ]);
        assert!(read == expected, "{read:?}");
    }

    #[test]
    fn escapes_are_undone_in_double_quotes_and_without_but_not_in_single_ones() {
        let read = read(r#"a: "\"\\\n\x27\xc3\xa9", b: x\x20y, c: '\x41', d: "$HOME", e: \x24HOME"#);
        let expected = [("a", "\"\\\n'é"), ("b", "x y"), ("c", r"\x41"), ("d", "$HOME"), ("e", "$HOME")];
        assert!(read == map(expected.map(|(name, value)| (name, text(value)))));
    }

    #[test]
    fn the_later_of_two_settings_wins_whole() {
        assert!(read("tls { a: 1 }\ntls { b: 2 }") == map([("tls", Value::Map(map([("b", text("2"))])))]));
    }

    #[test]
    fn names_are_found_whatever_their_case_and_two_spellings_are_refused() {
        let read = read("TLS: 1\nHost: a\nnet: b");
        assert_eq!(read.find(&["tls"]).unwrap().and_then(Value::as_text), Some("1"));
        assert_eq!(read.find(&["jetstream"]).unwrap(), None);
        assert!(matches!(read.find(&["host", "net"]), Err(ConfError::Ambiguous { .. })));
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_line() {
        for (written, line, message) in [
            ("a: 1\nb: \"x", 2, "closing quote"),
            ("a {\n b: 1\n", 3, "closing '}'"),
            ("a: [1, 2", 1, "neither"),
            ("a: [1]\nb: 2", 1, "begins like a number"),
            ("a:\nb", 1, "the line ends"),
            ("a: { b: }", 1, "without a value"),
            ("a: \"x\" y", 1, "after a value"),
            ("a: \"\\q\"", 1, "a backslash"),
            ("a: \"\\xg0\"", 1, "hexadecimal"),
            ("a: 1\0", 1, "NUL"),
            (": 1", 1, "a separator"),
            ("a: 1.5#}", 1, "begins like a number"),
        ] {
            let error = refused(written);
            assert!(error.starts_with(&format!("/a.conf:{line}: ")) && error.contains(message), "{written}: {error}");
        }
        assert!(refused(&format!("a {}", "[".repeat(1000))).contains("too deep"));
        assert!(refused(&" ".repeat(17 * 1024 * 1024)).contains("larger"));
    }

    #[test]
    fn includes_are_read_relative_to_their_file_and_in_their_place() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        std::fs::create_dir(directory.path().join("conf.d")).unwrap();
        write("conf.d/one.conf", "cluster { name: b }\ninclude \"two.conf\"");
        write("conf.d/two.conf", "user: me");
        let file = directory.path().join("nats-server.conf");
        let root = directory.path().display();
        let up = "../".repeat(40);
        for path in ["conf.d/one.conf", "./conf.d/../conf.d/one.conf", &format!("{up}{root}/conf.d/one.conf")] {
            let read = parse(&format!("cluster {{ name: a }}\nInclude \"{path}\""), &file).unwrap();
            assert!(read == map([("cluster", Value::Map(map([("name", text("b"))]))), ("user", text("me"))]));
        }
        let read = parse("authorization { include 'conf.d/two.conf' }\ninclude: x", &file).unwrap();
        assert!(read == map([("authorization", Value::Map(map([("user", text("me"))]))), ("include", text("x"))]));
        // An absolute path goes below the directory too, as in nats-server.
        assert!(matches!(parse(&format!("include {root}/conf.d/two.conf"), &file), Err(ConfError::Read { .. })));
        write("nats-server.conf", "include nats-server.conf");
        assert!(matches!(parse("include nats-server.conf", &file), Err(ConfError::Syntax { .. })));
    }

    #[test]
    fn a_flattened_text_means_the_same_and_depends_on_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        let file = directory.path().join("nats-server.conf");
        let text = "a: 1\ninclude one.conf; b { include 'two.conf' } # why\ninclude two.conf";
        write("one.conf", "include two.conf\n# what\na: 2");
        write("two.conf", "password: hunter2 # a }");
        let meant = parse(text, &file).unwrap();
        let flat = flatten(text, &file).unwrap();
        assert_eq!(flat.matches("hunter2").count(), 3);
        let shown = without_included(&flat);
        assert!(!shown.contains("hunter2") && shown.contains("one.conf, sha256:") && shown.contains("b { "), "{shown}");
        for name in ["one.conf", "two.conf"] {
            std::fs::remove_file(directory.path().join(name)).unwrap();
        }
        assert!(parse(&flat, &file).unwrap() == meant);
        assert_eq!(flatten(&flat, &file).unwrap(), flat);
        // Another content gives another text, even where only the digest is shown.
        write("one.conf", "a: 3");
        write("two.conf", "");
        assert_ne!(without_included(&flatten(text, &file).unwrap()), shown);
    }

    #[test]
    fn what_means_something_else_in_the_place_of_its_include_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        // At the end of a file nats-server accepts a closing brace without an opening brace. Elsewhere the brace closes
        // a block.
        std::fs::write(directory.path().join("a.conf"), "a: 1\n}").unwrap();
        let text = "b { include a.conf\nc: 2 }";
        let flat = flatten(text, &directory.path().join("nats-server.conf"));
        assert!(matches!(flat, Err(ConfError::Inseparable { .. })), "{flat:?}");
    }

    #[test]
    fn a_value_is_not_shown_by_debug() {
        assert!(!format!("{:?}", read("password: hunter2")).contains("hunter2"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(?s).{0,200}") {
            drop(parse(&text, Path::new("/nowhere/a.conf")));
        }

        #[test]
        fn any_pieces_of_the_language_are_read_or_refused(
            pieces in prop::collection::vec(prop::sample::select(vec![
                "a", "tls", "include", " ", "\n", "\r", "\t", "{", "}", "[", "]", "(", ")", "\n)\n", ":", "=", ",", ";", "\"",
                "'", "\\", "\\x4", "#", "//", "/", "$", "$V", "1", "1k", "1.", "-", ".", "true", "é", "\u{85}", "\0", "٣",
            ]), 0..60),
        ) {
            drop(parse(&pieces.concat(), Path::new("/nowhere/a.conf")));
        }
    }
}
