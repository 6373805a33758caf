//! The reader of nats-server's configuration language: a text becomes a tree of values.
//!
//! The reader follows nats-server's own lexer and parser (`conf/lex.go` and `conf/parse.go` of 2.10.26 to 2.15.1).
//! nats-server accepts some odd texts, such as a name without a value. Its versions read other texts differently. This
//! reader refuses all these texts. Where this reader gives a tree, every version of nats-server reads the same tree.
//!
//! Of two settings with one name in one block, the later replaces the earlier as a whole. The settings of an included
//! file stand in the place of its `include`. Every variable is replaced by the value that it has where it is used.

mod fault;
mod include;
mod number;
mod options;
mod text;
mod variable;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

pub use self::fault::{Closing, ConfError, Fault};
use super::cursor::{Cursor, is_line_end};
use super::environment::Environment;
use super::tree::{Entry, Map, Origin, Source, Value};

/// The largest configuration in bytes, with all includes and the values of all variables. Tens of thousands of accounts
/// fit.
pub const MAX_SIZE: usize = 16 * 1024 * 1024;
/// The largest number of values in a configuration, after variables are replaced.
pub const MAX_VALUES: usize = 2_000_000;
/// The deepest nesting of includes.
pub const MAX_INCLUDE_DEPTH: usize = 8;
/// The largest number of includes: several hundred tenants with a file each fit.
pub const MAX_INCLUDES: usize = 1000;
/// The deepest nesting of maps and arrays.
pub const MAX_DEPTH: usize = 32;
/// The longest chain of variables of the environment, each of which refers to the next.
pub const MAX_VARIABLE_DEPTH: usize = 8;

/// A configuration that was read.
#[derive(Debug, Default)]
pub struct Read {
    /// The settings.
    pub map: Map,
    /// The blocks that a block of an included file replaced.
    pub replaced: Vec<Replaced>,
    /// All files that were included, each once, in the order of their first include.
    pub files: Vec<PathBuf>,
    /// The variables of the environment that were used, with their values.
    pub environment: BTreeMap<String, Zeroizing<String>>,
}

/// A block that a block of an included file replaced as a whole, because both have the same name in the same block.
/// nats-server ignores the case of names, so names that differ in case count as the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The names of the blocks from the top to the replaced block. A place in an array is its index.
    pub path: Vec<String>,
    /// The place of the block that is replaced.
    pub before: Origin,
    /// The place of the block of the included file.
    pub after: Origin,
}

/// Reads `text`, which comes from `source`.
///
/// Includes are joined to `directory`, as nats-server joins them to the directory of the file that includes.
/// Variables that the text doesn't define come from `environment`. `names` gives the name that an included file has in
/// the origins of its values.
pub fn read(
    text: &str,
    source: Arc<Source>,
    directory: &Path,
    environment: &Environment,
    names: &dyn Fn(&Path) -> Source,
) -> Result<Read, ConfError> {
    read_with(text, source, directory, environment, names, &Contents::new())
}

/// Contents of included files, by their absolute paths.
pub type Contents = BTreeMap<PathBuf, Zeroizing<String>>;

/// As [`read`], with `contents` in the place of what is on the disk.
pub fn read_with(
    text: &str,
    source: Arc<Source>,
    directory: &Path,
    environment: &Environment,
    names: &dyn Fn(&Path) -> Source,
    contents: &Contents,
) -> Result<Read, ConfError> {
    let mut shared = Shared {
        environment,
        names,
        contents,
        size_left: MAX_SIZE,
        values_left: MAX_VALUES,
        includes: 0,
        open: Vec::new(),
        resolving: Vec::new(),
        read: Read::default(),
    };
    let place = Place { path: Vec::new(), depth: 0, arrays: 0 };
    let map = Parser::new(text, source, Some(directory), place, &mut shared)?.file()?;
    Ok(Read { map, ..shared.read })
}

/// An absolute path as nats-server resolves it: `.` and `..` in the text alone.
#[must_use]
pub(crate) fn resolved(path: &Path) -> PathBuf {
    include::join(Path::new("/"), &path.to_string_lossy())
}

/// The text of a file's bytes. The error names the line of the first byte that is not UTF-8.
pub fn utf8<'a>(bytes: &'a [u8], source: &Arc<Source>) -> Result<&'a str, ConfError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = valid.split(|byte| *byte == b'\n').count();
        Fault::NotUtf8.at(Origin { source: Arc::clone(source), line })
    })
}

/// What all texts of one configuration have in common.
struct Shared<'e> {
    environment: &'e Environment,
    names: &'e dyn Fn(&Path) -> Source,
    contents: &'e Contents,
    size_left: usize,
    values_left: usize,
    includes: usize,
    /// The included files that are being read.
    open: Vec<PathBuf>,
    /// The variables of the environment that are being read.
    resolving: Vec<String>,
    read: Read,
}

impl Shared<'_> {
    fn charge(&mut self, bytes: usize, values: usize) -> Result<(), Fault> {
        match (self.size_left.checked_sub(bytes), self.values_left.checked_sub(values)) {
            (Some(size), Some(values)) => (self.size_left, self.values_left) = (size, values),
            _ => return Err(Fault::TooLarge),
        }
        Ok(())
    }
}

/// Where in the tree a text stands.
#[derive(Clone)]
struct Place {
    /// The names of the blocks around the position, from the top.
    path: Vec<String>,
    /// How many maps and arrays are open.
    depth: usize,
    /// How many arrays are open.
    arrays: usize,
}

/// A map that is being read.
struct Scope {
    map: Map,
    /// How many names of the path lead to the map.
    path_length: usize,
}

/// The rules for a setting, which differ between the top level and a map.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    Top,
    /// `{ … }` around a whole text.
    Braces,
    Map,
}

struct Parser<'a, 'e> {
    cursor: Cursor<'a>,
    source: Arc<Source>,
    /// `None` for a value of the environment, which can't include.
    directory: Option<&'a Path>,
    place: Place,
    /// The maps that are being read, the innermost last. Variables are looked up in them.
    scopes: Vec<Scope>,
    shared: &'a mut Shared<'e>,
}

impl<'a, 'e> Parser<'a, 'e> {
    fn new(
        text: &'a str,
        source: Arc<Source>,
        directory: Option<&'a Path>,
        place: Place,
        shared: &'a mut Shared<'e>,
    ) -> Result<Self, ConfError> {
        let mut cursor = Cursor::new(text);
        let fault = if let Some(position) = text.find('\0') {
            cursor.advance(position);
            Err(Fault::Nul)
        } else if text.starts_with('\u{feff}') && directory.is_some() {
            Err(Fault::ByteOrderMark)
        } else {
            shared.charge(text.len(), 0)
        };
        let scopes = vec![Scope { map: Map::default(), path_length: place.path.len() }];
        let parser = Self { cursor, source, directory, place, scopes, shared };
        match fault {
            Ok(()) => Ok(parser),
            Err(fault) => Err(parser.wrong(fault)),
        }
    }

    /// Reads a whole file.
    fn file(mut self) -> Result<Map, ConfError> {
        loop {
            self.skip_space_and_comments()?;
            let line = self.cursor.line();
            match self.cursor.peek() {
                None => return Ok(self.scopes.pop().map(|scope| scope.map).unwrap_or_default()),
                Some('{') => {
                    self.cursor.next();
                    self.settings(Rules::Braces, line)?;
                }
                Some('}') => return Err(self.wrong(Fault::UnopenedBrace)),
                Some(_) => {
                    self.setting(Rules::Top)?;
                    self.end_of_setting(Rules::Top)?;
                }
            }
        }
    }

    /// Reads settings into the innermost scope, up to the closing brace and past it. `opened` is the line of the opening
    /// brace.
    fn settings(&mut self, rules: Rules, opened: usize) -> Result<(), ConfError> {
        loop {
            self.skip_space_and_comments()?;
            match self.cursor.peek() {
                None => return Err(self.wrong_at(opened, Fault::Unclosed(Closing::Brace))),
                Some('}') => {
                    self.cursor.next();
                    return Ok(());
                }
                Some(_) => {
                    self.setting(rules)?;
                    self.end_of_setting(rules)?;
                }
            }
        }
    }

    fn setting(&mut self, rules: Rules) -> Result<(), ConfError> {
        let line = self.cursor.line();
        let Some(name) = self.name()? else { return self.include(line) };
        self.cursor.take_while(char::is_whitespace);
        if self.cursor.take('=') || self.cursor.take(':') {
            // The value may begin on the next line only in a map.
            if rules == Rules::Map {
                self.cursor.take_while(char::is_whitespace);
            } else {
                self.cursor.skip_blanks();
            }
        }
        if matches!(self.cursor.peek(), None | Some('}')) {
            return Err(self.wrong_at(line, Fault::NameWithoutValue));
        }
        self.place.path.push(name);
        let entry = self.value(line)?;
        let name = self.place.path.pop().unwrap_or_default();
        if let Some(scope) = self.scopes.last_mut() {
            scope.map.insert(name, entry);
        }
        Ok(())
    }

    fn end_of_setting(&mut self, rules: Rules) -> Result<(), ConfError> {
        self.cursor.skip_blanks();
        match self.cursor.peek() {
            Some('}') if rules == Rules::Top => Err(self.wrong(Fault::UnopenedBrace)),
            // The caller reads the closing brace, and reports its absence.
            None | Some('}') => Ok(()),
            Some(_) if self.cursor.is_at_comment() => Ok(()),
            Some('\n' | '\r' | ';' | ',') => {
                self.cursor.next();
                Ok(())
            }
            Some('/') => Err(self.wrong(Fault::Slash)),
            Some(_) => Err(self.wrong(Fault::AfterValue)),
        }
    }

    /// Reads a value. `line` is the line of its name, or the value's own line in an array.
    fn value(&mut self, line: usize) -> Result<Entry, ConfError> {
        self.shared.charge(0, 1).map_err(|fault| self.wrong(fault))?;
        let value = match self.cursor.peek() {
            Some('[') => self.array()?,
            Some('{') => self.map()?,
            Some('\'') => self.single_quoted()?,
            Some('"') => self.double_quoted()?,
            Some('(') => self.block()?,
            Some('-' | '0'..='9') => self.number()?,
            None => return Err(self.wrong(Fault::ValueExpected)),
            Some(c) if is_line_end(c) => return Err(self.wrong(Fault::ValueExpected)),
            Some(_) => return self.bare(line),
        };
        Ok(Entry::new(value, self.origin(line)))
    }

    fn map(&mut self) -> Result<Value, ConfError> {
        let opened = self.cursor.line();
        self.cursor.next();
        self.descend()?;
        self.scopes.push(Scope { map: Map::default(), path_length: self.place.path.len() });
        self.settings(Rules::Map, opened)?;
        self.place.depth -= 1;
        Ok(Value::Map(self.scopes.pop().map(|scope| scope.map).unwrap_or_default()))
    }

    fn array(&mut self) -> Result<Value, ConfError> {
        let opened = self.cursor.line();
        self.cursor.next();
        self.descend()?;
        self.place.arrays += 1;
        let mut values = Vec::new();
        loop {
            self.skip_space_and_comments()?;
            match self.cursor.peek() {
                None => return Err(self.wrong_at(opened, Fault::Unclosed(Closing::Bracket))),
                Some(',') => return Err(self.wrong(Fault::Comma)),
                Some(']') => break,
                Some(_) => {
                    self.place.path.push(values.len().to_string());
                    values.push(self.value(self.cursor.line())?);
                    self.place.path.pop();
                    self.end_of_array_value()?;
                }
            }
        }
        self.cursor.next();
        self.place.depth -= 1;
        self.place.arrays -= 1;
        Ok(Value::Array(values))
    }

    fn end_of_array_value(&mut self) -> Result<(), ConfError> {
        self.cursor.skip_blanks();
        match self.cursor.peek() {
            Some('\n' | '\r' | ',') => {
                self.cursor.next();
                Ok(())
            }
            None | Some(']') => Ok(()),
            Some(_) if self.cursor.is_at_comment() => Ok(()),
            Some('/') => Err(self.wrong(Fault::Slash)),
            Some(_) => Err(self.wrong(Fault::AfterArrayValue)),
        }
    }

    fn skip_space_and_comments(&mut self) -> Result<(), ConfError> {
        loop {
            self.cursor.take_while(char::is_whitespace);
            if self.cursor.is_at_comment() {
                self.cursor.take_while(|c| !is_line_end(c));
            } else if self.cursor.peek() == Some('/') {
                return Err(self.wrong(Fault::Slash));
            } else {
                return Ok(());
            }
        }
    }

    fn descend(&mut self) -> Result<(), ConfError> {
        if self.place.depth >= MAX_DEPTH {
            return Err(self.wrong(Fault::TooDeep));
        }
        self.place.depth += 1;
        Ok(())
    }

    fn origin(&self, line: usize) -> Origin {
        // A value of the environment has no lines.
        let line = if self.directory.is_some() { line } else { 0 };
        Origin { source: Arc::clone(&self.source), line }
    }

    /// A fault at the position.
    fn wrong(&self, fault: Fault) -> ConfError {
        self.wrong_at(self.cursor.line(), fault)
    }

    fn wrong_at(&self, line: usize, fault: Fault) -> ConfError {
        fault.at(self.origin(line))
    }
}

#[cfg(test)]
mod tests;
