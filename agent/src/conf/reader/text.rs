//! Names, and values that are texts: quoted, unquoted and blocks.

use zeroize::Zeroizing;

use super::{Closing, ConfError, Fault, Parser};
use crate::conf::cursor::{is_blank, is_line_end};
use crate::conf::tree::{Entry, Value};

impl<'a> Parser<'a, '_> {
    /// Reads a name. `None` is the keyword `include`.
    pub(super) fn name(&mut self) -> Result<Option<String>, ConfError> {
        match self.cursor.peek() {
            Some(quote @ ('"' | '\'')) => {
                let name = self.until(quote)?;
                if name.is_empty() || name.contains(|c| is_line_end(c) || c == '\\') {
                    return Err(self.wrong(Fault::QuotedName));
                }
                return Ok(Some(name.to_owned()));
            }
            Some(c) if "=:{}[](),;#".contains(c) => return Err(self.wrong(Fault::NameExpected(c))),
            _ => {}
        }
        let name = self.cursor.take_while(|c| !c.is_whitespace() && c != ':' && c != '=');
        if let Some(odd) = name.chars().find(|c| "{}[](),;#\"'\\".contains(*c) || c.is_control()) {
            return Err(self.wrong(Fault::InName(odd)));
        }
        if name.contains("//") {
            return Err(self.wrong(Fault::InName('/')));
        }
        if !self.cursor.peek().is_some_and(char::is_whitespace) {
            return Ok(Some(name.to_owned()));
        }
        // Go's lower case of İ is a plain i.
        match name.eq_ignore_ascii_case("include") {
            true => Ok(None),
            false if name.replace('İ', "i").eq_ignore_ascii_case("include") => Err(self.wrong(Fault::IncludePath)),
            false => Ok(Some(name.to_owned())),
        }
    }

    pub(super) fn single_quoted(&mut self) -> Result<Value, ConfError> {
        self.until('\'').map(Value::text)
    }

    pub(super) fn double_quoted(&mut self) -> Result<Value, ConfError> {
        let opened = self.cursor.line();
        self.cursor.next();
        let (text, _) = self.escaped(|c| c == '"', |_| false)?;
        if !self.cursor.take('"') {
            return Err(self.wrong_at(opened, Fault::Unclosed(Closing::Quote('"'))));
        }
        Ok(Value::Text(text))
    }

    /// Reads a quoted text without escapes, both quotes included.
    pub(super) fn until(&mut self, quote: char) -> Result<&'a str, ConfError> {
        let opened = self.cursor.line();
        self.cursor.next();
        let text = self.cursor.take_while(|c| c != quote);
        if !self.cursor.take(quote) {
            return Err(self.wrong_at(opened, Fault::Unclosed(Closing::Quote(quote))));
        }
        Ok(text)
    }

    /// Reads `( … )`. The text keeps its line feeds, and ends before a `)` that is alone on its line.
    pub(super) fn block(&mut self) -> Result<Value, ConfError> {
        let opened = self.cursor.line();
        self.cursor.next();
        let rest = self.cursor.rest();
        let mut length = 0;
        for (index, line) in rest.split_inclusive('\n').enumerate() {
            let is_end = index > 0 && line.trim_end_matches('\n') == ")";
            if is_end && line.ends_with('\n') {
                self.cursor.advance(length + 1);
                return Ok(Value::text(rest.get(..length).unwrap_or_default()));
            }
            if line.trim() == ")" {
                self.cursor.advance(length);
                return Err(self.wrong(if is_end { Fault::BlockAtEnd } else { Fault::BlockEndNotAlone }));
            }
            length += line.len();
        }
        Err(self.wrong_at(opened, Fault::Unclosed(Closing::Block)))
    }

    /// Reads an unquoted value that doesn't begin like a number.
    pub(super) fn bare(&mut self, line: usize) -> Result<Entry, ConfError> {
        match self.cursor.peek() {
            Some(',') => return Err(self.wrong(Fault::Comma)),
            Some(';' | ']' | '}') => return Err(self.wrong(Fault::ValueExpected)),
            Some(c @ ('.' | '=')) => return Err(self.wrong(Fault::ValueBegins(c))),
            // A listener's address may have a port alone.
            Some(':') if !is_port(self.cursor.rest()) => return Err(self.wrong(Fault::ValueBegins(':'))),
            Some(c) if self.cursor.is_at_comment() => return Err(self.wrong(Fault::ValueBegins(c))),
            Some(c) if c.is_numeric() => return Err(self.wrong(Fault::ForeignDigit)),
            _ => {}
        }
        // nats-server takes a " within a value as it is, and `resolver: URL("…")` is common. nats-server ends a value
        // at a '.
        let quotes = if self.is_at_call() { "'" } else { "'\"" };
        let ends = |c| is_blank(c) || is_line_end(c) || ";,]}".contains(c) || quotes.contains(c);
        let (text, has_escapes) = self.escaped(ends, |c| c.is_whitespace() || c.is_control())?;
        if let Some(quote @ ('"' | '\'')) = self.cursor.peek() {
            return Err(self.wrong(Fault::InValue(quote)));
        }
        let value = match text.strip_prefix('$') {
            _ if has_escapes => Value::Text(text),
            Some(name) => return self.variable(name, line),
            None => match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => Value::Bool(true),
                "false" | "no" | "off" => Value::Bool(false),
                _ => Value::Text(text),
            },
        };
        Ok(Entry::new(value, self.origin(line)))
    }

    /// Whether letters and a parenthesis follow, as in `URL(…)`.
    fn is_at_call(&self) -> bool {
        let rest = self.cursor.rest();
        let after = rest.trim_start_matches(|c: char| c.is_ascii_alphabetic());
        after.len() < rest.len() && after.starts_with('(')
    }

    /// Reads text up to a character for which `ends` is true, and undoes escapes. Escapes stand for bytes, which
    /// together are UTF-8. A character for which `is_odd` is true is a fault. The flag says whether there were escapes.
    fn escaped(
        &mut self,
        ends: impl Fn(char) -> bool,
        is_odd: impl Fn(char) -> bool,
    ) -> Result<(Zeroizing<String>, bool), ConfError> {
        let mut bytes = Zeroizing::new(Vec::new());
        let mut has_escapes = false;
        while let Some(character) = self.cursor.peek().filter(|c| !ends(*c)) {
            if is_odd(character) {
                return Err(self.wrong(Fault::InValue(character)));
            }
            self.cursor.next();
            if character == '\\' {
                has_escapes = true;
                bytes.push(self.escape()?);
            } else {
                bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok((Zeroizing::new(text.to_owned()), has_escapes)),
            Err(_) => Err(self.wrong(Fault::EscapesNotUtf8)),
        }
    }

    fn escape(&mut self) -> Result<u8, ConfError> {
        match self.cursor.next() {
            Some('t') => Ok(b'\t'),
            Some('n') => Ok(b'\n'),
            Some('r') => Ok(b'\r'),
            Some('"') => Ok(b'"'),
            Some('\\') => Ok(b'\\'),
            Some('x') => {
                let digit = |c: Option<char>| c.and_then(|c| c.to_digit(16)).and_then(|digit| u8::try_from(digit).ok());
                match (digit(self.cursor.next()), digit(self.cursor.next())) {
                    (Some(0), Some(0)) => Err(self.wrong(Fault::Nul)),
                    (Some(high), Some(low)) => Ok(high << 4 | low),
                    _ => Err(self.wrong(Fault::Escape)),
                }
            }
            _ => Err(self.wrong(Fault::Escape)),
        }
    }
}

/// The beginning of a port without a host, `:4222` or `:-1`.
fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|port| port.starts_with(|c: char| c.is_ascii_digit() || c == '-'))
}
