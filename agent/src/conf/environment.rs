//! The variables that a configuration may use: those of the agent's process, and those of a file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::cursor::Cursor;
use crate::state::durable;

/// The largest file of variables in bytes.
pub const MAX_SIZE: u64 = 1024 * 1024;

/// Variables by name. Debug shows the names alone.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, Zeroizing<String>>);

impl fmt::Debug for Environment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

/// Why a file of variables can't be read.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// The file can't be read, or is larger than [`MAX_SIZE`].
    #[error("could not read {}, the file of nats.environment_file: {source}; correct the file or the path", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A line defines no variable.
    #[error("{}:{line}: {fault}", .file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        fault: LineFault,
    },
}

/// What is wrong with a line of a file of variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    /// The bytes are not UTF-8.
    #[error("the file is not UTF-8 at this line; save it as UTF-8")]
    NotUtf8,
    /// A NUL or a byte order mark. systemd refuses both.
    #[error("a NUL or a byte order mark; remove it")]
    Character,
    /// The line has no `=`. systemd ignores such a line.
    #[error("a line without =; write KEY=VALUE, or # before a comment")]
    NoAssignment,
    /// The text before the `=` is no name of a variable. systemd ignores such a line.
    #[error("no variable's name before the =; write letters, digits and _ alone, and no export")]
    Name,
    /// A comment ends with a backslash. Versions of systemd differ in whether the next line belongs to the comment.
    #[error("a comment that ends with a backslash; remove the backslash")]
    ContinuedComment,
    /// The file ends within quotes.
    #[error("the file ends before the closing quote of this line's value; add the quote")]
    Unclosed,
    /// Something follows a closing quote.
    #[error("text after a closing quote; put the whole value in one pair of quotes")]
    AfterQuote,
}

impl Environment {
    /// The variables of the process and of `file`. A variable of `file` wins.
    ///
    /// The file has the format of systemd's `EnvironmentFile=` (systemd.exec(5)). What systemd ignores there, such as a
    /// line without `=`, is an error here. Variables of the process whose name or value is not UTF-8 are left out.
    pub fn new(
        process: impl IntoIterator<Item = (OsString, OsString)>,
        file: Option<&Path>,
    ) -> Result<Self, EnvironmentError> {
        let mut environment = Self::of_variables(process);
        if let Some(file) = file {
            environment.0.extend(read_file(file)?);
        }
        Ok(environment)
    }

    fn of_variables(process: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let variables = process.into_iter().filter_map(|(name, value)| {
            let value = value.into_string().ok().map(Zeroizing::new);
            name.into_string().ok().zip(value)
        });
        Self(variables.collect())
    }

    /// The variables of this process.
    #[must_use]
    pub fn of_process() -> Self {
        Self::of_variables(std::env::vars_os())
    }

    /// These variables alone.
    #[must_use]
    pub fn of(variables: &BTreeMap<String, Zeroizing<String>>) -> Self {
        Self(variables.clone())
    }

    /// The value of a variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Zeroizing<String>> {
        self.0.get(name)
    }
}

type Variables = Vec<(String, Zeroizing<String>)>;

fn read_file(file: &Path) -> Result<Variables, EnvironmentError> {
    let failed = |source| EnvironmentError::Read { file: file.to_owned(), source };
    let bytes = durable::read_if_there(file, MAX_SIZE).map_err(|error| failed(error.source))?;
    let bytes = Zeroizing::new(bytes.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?);
    let wrong = |line, fault| EnvironmentError::Line { file: file.to_owned(), line, fault };
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
        wrong(valid.split(|byte| *byte == b'\n').count(), LineFault::NotUtf8)
    })?;
    parse(text).map_err(|(line, fault)| wrong(line, fault))
}

/// Parses the text of a file. The error has the line, counted from 1.
fn parse(text: &str) -> Result<Variables, (usize, LineFault)> {
    let mut cursor = Cursor::new(text);
    if let Some(position) = text.find(['\0', '\u{feff}']) {
        cursor.advance(position);
        return Err((cursor.line(), LineFault::Character));
    }
    let mut variables = Vec::new();
    loop {
        cursor.take_while(char::is_whitespace);
        let line = cursor.line();
        match cursor.peek() {
            None => return Ok(variables),
            Some('#' | ';') => {
                if cursor.take_while(|c| c != '\n').trim_end_matches('\r').ends_with('\\') {
                    return Err((line, LineFault::ContinuedComment));
                }
            }
            Some(_) => {
                let name = cursor.take_while(|c| c != '=' && c != '\n').trim();
                if !cursor.take('=') {
                    return Err((line, LineFault::NoAssignment));
                }
                if !is_name(name) {
                    return Err((line, LineFault::Name));
                }
                variables.push((name.to_owned(), value(&mut cursor).map_err(|fault| (line, fault))?));
            }
        }
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn value(cursor: &mut Cursor<'_>) -> Result<Zeroizing<String>, LineFault> {
    cursor.take_while(is_blank);
    let text = match cursor.peek() {
        Some(quote @ ('"' | '\'')) => {
            cursor.next();
            quoted(cursor, quote).ok_or(LineFault::Unclosed)?
        }
        _ => return Ok(unquoted(cursor)),
    };
    cursor.take_while(is_blank);
    if cursor.peek().is_some_and(|c| c != '\n') { Err(LineFault::AfterQuote) } else { Ok(text) }
}

/// Reads up to the closing quote. A backslash has a meaning within double quotes alone, and only before some characters.
fn quoted(cursor: &mut Cursor<'_>, quote: char) -> Option<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    loop {
        match cursor.next()? {
            end if end == quote => return Some(text),
            '\\' if quote == '"' => match cursor.next()? {
                '\n' => {}
                escaped @ ('"' | '\\' | '`' | '$') => text.push(escaped),
                other => text.extend(['\\', other]),
            },
            other => text.push(other),
        }
    }
}

/// Reads up to the end of the line. A backslash keeps the next character. A line end after a backslash is left out.
fn unquoted(cursor: &mut Cursor<'_>) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    // Blanks at the end are left out, unless a backslash keeps them.
    let mut kept = 0;
    while let Some(character) = cursor.next().filter(|c| *c != '\n') {
        if character == '\\' {
            match cursor.next() {
                None => break,
                Some('\n') => continue,
                Some(escaped) => text.push(escaped),
            }
            kept = text.len();
        } else {
            text.push(character);
            kept = if is_blank(character) { kept } else { text.len() };
        }
    }
    text.truncate(kept);
    text
}

/// A blank of systemd's format within a line.
fn is_blank(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\r')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        let variables = parse(text).unwrap();
        variables.into_iter().map(|(name, value)| (name, value.to_string())).collect()
    }

    #[test]
    fn values_are_read_as_systemd_reads_them() {
        for (text, value) in [
            ("A=b", "b"),
            ("A=", ""),
            ("  A = b c  \r\n", "b c"),
            ("A=b\\\n  c", "b  c"),
            ("A=b\\\\c\\ ", "b\\c "),
            ("A=b\"c\" 'd'", "b\"c\" 'd'"),
            ("A=b # c", "b # c"),
            ("A='b\\n\n \"c' ", "b\\n\n \"c"),
            ("A=\"b\\\"\\\\\\$\\`\\n\\\nc\nd\"", "b\"\\$`\\nc\nd"),
            ("A=b=c", "b=c"),
        ] {
            assert_eq!(read(text), [("A".to_owned(), value.to_owned())], "{text}");
        }
        assert_eq!(read("# x\n; y=z\n\n \t\n"), []);
        assert_eq!(read("A=1\nB=2\nA=3\n").len(), 3);
    }

    #[test]
    fn what_systemd_ignores_or_refuses_is_named_by_its_line() {
        for (text, line, fault) in [
            ("A=b\nc", 2, LineFault::NoAssignment),
            ("\nexport A=b", 2, LineFault::Name),
            ("1=b", 1, LineFault::Name),
            ("=b", 1, LineFault::Name),
            ("# c\\\nA=b", 1, LineFault::ContinuedComment),
            ("A=1\nA='b\n\n", 2, LineFault::Unclosed),
            ("A='b'c", 1, LineFault::AfterQuote),
            ("A=b\n\0", 2, LineFault::Character),
            ("\u{feff}A=b", 1, LineFault::Character),
        ] {
            assert_eq!(parse(text).unwrap_err(), (line, fault), "{text:?}");
        }
    }

    #[test]
    fn the_file_wins_over_the_process_and_no_value_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("environment");
        std::fs::write(&file, "A=hunter2\n").unwrap();
        let process = || [("A", "1"), ("B", "2")].map(|(name, value)| (name.into(), value.into()));
        let environment = Environment::new(process(), Some(&file)).unwrap();
        assert_eq!(environment.get("A").map(|value| value.as_str()), Some("hunter2"));
        assert_eq!(environment.get("B").map(|value| value.as_str()), Some("2"));
        assert!(environment.get("C").is_none());
        assert_eq!(format!("{environment:?}"), "{\"A\", \"B\"}");
        std::fs::write(&file, b"A=b\nhunter2 \xe9").unwrap();
        let error = Environment::new(process(), Some(&file)).unwrap_err();
        assert!(matches!(error, EnvironmentError::Line { line: 2, fault: LineFault::NotUtf8, .. }));
        assert!(!format!("{error:?}{error}").contains("hunter2"));
        std::fs::write(&file, vec![b'#'; 1024 * 1024 + 1]).unwrap();
        assert!(matches!(Environment::new(process(), Some(&file)), Err(EnvironmentError::Read { .. })));
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(Environment::new(process(), Some(&file)), Err(EnvironmentError::Read { .. })));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(?s)([A-Z]=|['\"\\\\# \n]|.){0,60}") {
            drop(parse(&text));
        }

        #[test]
        fn a_value_in_single_quotes_stays_as_it_is(value in "[^'\0\u{feff}]*") {
            prop_assert_eq!(read(&format!("A='{value}'\nB=1")), [("A".to_owned(), value), ("B".to_owned(), "1".to_owned())]);
        }
    }
}
