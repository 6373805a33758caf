//! Includes: the settings of a file stand in the place of `include FILE`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::{ConfError, Fault, MAX_INCLUDE_DEPTH, MAX_INCLUDES, MAX_SIZE, Parser, Replaced, utf8};
use crate::conf::cursor::{is_blank, is_line_end};
use crate::conf::tree::Map;
use crate::state::durable;

impl<'a> Parser<'a, '_> {
    /// Reads the path of an include and the file. `line` is the line of the keyword.
    pub(super) fn include(&mut self, line: usize) -> Result<(), ConfError> {
        let path = self.include_path()?;
        let file = match self.directory {
            Some(directory) => join(directory, path),
            None => return Err(self.wrong_at(line, Fault::IncludeInEnvironment)),
        };
        let bytes = self.open(&file).map_err(|fault| self.wrong_at(line, fault))?;
        let source = Arc::new((self.shared.names)(&file));
        let text = utf8(&bytes, &source)?;
        let directory = file.parent().unwrap_or(Path::new("")).to_owned();
        self.shared.open.push(file);
        let map = Parser::new(text, source, Some(&directory), self.place.clone(), self.shared)?.file()?;
        self.shared.open.pop();
        self.merge(map);
        Ok(())
    }

    /// Reads the path, which has no escapes and no variables.
    fn include_path(&mut self) -> Result<&'a str, ConfError> {
        self.cursor.skip_blanks();
        let path = match self.cursor.peek() {
            Some(quote @ ('"' | '\'')) => self.until(quote)?,
            Some(c) if "[{(-\\$".contains(c) || c.is_numeric() => return Err(self.wrong(Fault::IncludePath)),
            _ => {
                let path = self.cursor.take_while(|c| !is_blank(c) && !is_line_end(c) && !";}'".contains(c));
                // nats-server takes a comma for a part of the path, and ends the path at a quote.
                if path.contains([',', '"', '#']) || self.cursor.peek() == Some('\'') {
                    return Err(self.wrong(Fault::IncludePath));
                }
                path
            }
        };
        if path.is_empty() || path.contains(|c: char| c.is_control() || (c.is_whitespace() && c != ' ')) {
            return Err(self.wrong(Fault::IncludePath));
        }
        if path.contains(['*', '?', '[']) {
            return Err(self.wrong(Fault::Glob));
        }
        Ok(path)
    }

    fn open(&mut self, file: &Path) -> Result<Zeroizing<Vec<u8>>, Fault> {
        if self.shared.open.iter().any(|open| open == file) {
            return Err(Fault::IncludeCycle(file.to_owned()));
        }
        self.shared.includes += 1;
        if self.shared.open.len() >= MAX_INCLUDE_DEPTH || self.shared.includes > MAX_INCLUDES {
            return Err(Fault::TooManyIncludes);
        }
        let bytes = match self.shared.contents.get(file) {
            Some(content) => Zeroizing::new(content.as_bytes().to_vec()),
            None => on_disk(file)?,
        };
        if !self.shared.read.files.iter().any(|read| read == file) {
            self.shared.read.files.push(file.to_owned());
        }
        Ok(bytes)
    }

    /// Puts the settings of an included file into the innermost scope. The included settings win.
    fn merge(&mut self, included: Map) {
        let Some(scope) = self.scopes.last_mut() else { return };
        let mut blocks = BTreeMap::<String, Vec<_>>::new();
        for (name, entry) in scope.map.iter().filter(|(_, entry)| entry.value.as_map().is_some()) {
            blocks.entry(name.to_lowercase()).or_default().push(entry.origin.clone());
        }
        for (name, entry) in included.iter().filter(|(_, entry)| entry.value.as_map().is_some()) {
            for before in blocks.remove(&name.to_lowercase()).unwrap_or_default() {
                let mut path = self.place.path.clone();
                path.push(name.to_owned());
                self.shared.read.replaced.push(Replaced { path, before, after: entry.origin.clone() });
            }
        }
        for (name, entry) in included {
            scope.map.insert(name, entry);
        }
    }
}

fn on_disk(file: &Path) -> Result<Zeroizing<Vec<u8>>, Fault> {
    match durable::read_if_there(file, MAX_SIZE as u64) {
        Ok(Some(bytes)) => Ok(Zeroizing::new(bytes)),
        Ok(None) => Err(Fault::Missing(file.to_owned())),
        Err(error) if error.source.kind() == io::ErrorKind::FileTooLarge => Err(Fault::TooLarge),
        Err(error) => Err(Fault::Unreadable { file: file.to_owned(), source: error.source }),
    }
}

/// Go's `filepath.Join(directory, path)`. An absolute path goes below the directory like any other path, and `..` is
/// resolved in the text alone.
pub(super) fn join(directory: &Path, path: &str) -> PathBuf {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_as_go_joins_them() {
        for (directory, path, joined) in [
            ("/etc/nats", "a.conf", "/etc/nats/a.conf"),
            ("/etc/nats", "/a/b.conf", "/etc/nats/a/b.conf"),
            ("/etc/nats", "./x/../../b.conf", "/etc/b.conf"),
            ("/etc", "../../../b.conf", "/b.conf"),
            ("conf", "../../b.conf", "../b.conf"),
            ("", "b.conf", "b.conf"),
        ] {
            assert_eq!(join(Path::new(directory), path), Path::new(joined));
        }
    }
}
