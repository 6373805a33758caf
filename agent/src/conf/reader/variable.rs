//! Variables: `$NAME` stands for a setting of that name before it, or for a variable of the environment.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::{ConfError, Fault, MAX_DEPTH, MAX_VARIABLE_DEPTH, Parser, Place, options};
use crate::conf::tree::{Entry, Map, Source, Value};

impl Parser<'_, '_> {
    /// The value of `$name`, for a value at `line`.
    ///
    /// nats-server looks into the maps that are being read in this file, the innermost first, then into the environment
    /// (`lookupVariable` in `conf/parse.go`, 2.12.8). An unquoted bcrypt hash `$2a$…` is a text.
    pub(super) fn variable(&mut self, name: &str, line: usize) -> Result<Entry, ConfError> {
        if name.starts_with("2a$") {
            return Ok(Entry::new(Value::text(format!("${name}")), self.origin(line)));
        }
        if let Some(index) = self.scopes.iter().rposition(|scope| scope.map.get(name).is_some()) {
            return self.look_up_setting(index, name, line);
        }
        // A text that is no name may be a password, so no error shows the text.
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        let environment = self.shared.environment;
        match environment.get(name) {
            Some(text) => self.read_environment(name, text).map_err(|fault| self.wrong_at(line, fault)),
            None if is_name => Err(self.wrong_at(line, Fault::Undefined(name.to_owned()))),
            None => Err(self.wrong_at(line, Fault::NotAVariable)),
        }
    }

    fn look_up_setting(&mut self, index: usize, name: &str, line: usize) -> Result<Entry, ConfError> {
        let is_of_environment = self.directory.is_none();
        let path_length = self.scopes.get(index).map_or(0, |scope| scope.path_length);
        let path = self.place.path.get(..path_length).unwrap_or_default();
        if !is_of_environment && options::is_setting(path, name) {
            return Err(self.wrong_at(line, Fault::SettingAsVariable(name.to_owned())));
        }
        let Some(found) = self.scopes.get_mut(index).and_then(|scope| scope.map.get_mut(name)) else {
            return Err(self.wrong_at(line, Fault::Undefined(name.to_owned())));
        };
        // nats-server marks no variable within a value of the environment.
        found.is_used_variable |= !is_of_environment;
        if self.place.arrays > 0 && found.value.as_map().is_some_and(has_used_variable) {
            return Err(self.wrong_at(line, Fault::BlockAsVariable(name.to_owned())));
        }
        let size = Size::of(&found.value);
        let value = found.value.clone();
        if self.place.depth + size.depth > MAX_DEPTH {
            return Err(self.wrong_at(line, Fault::TooDeep));
        }
        self.shared.charge(size.bytes, size.values).map_err(|fault| self.wrong_at(line, fault))?;
        Ok(Entry::new(value, self.origin(line)))
    }

    /// Reads a variable of the environment as nats-server does: as the text `pk=VALUE`.
    fn read_environment(&mut self, name: &str, text: &Zeroizing<String>) -> Result<Entry, Fault> {
        if self.shared.resolving.iter().any(|open| open == name) {
            return Err(Fault::VariableCycle(name.to_owned()));
        }
        if self.shared.resolving.len() >= MAX_VARIABLE_DEPTH {
            return Err(Fault::TooManyVariables(name.to_owned()));
        }
        let source = Arc::new(Source::Environment(name.to_owned()));
        let place = Place { path: Vec::new(), ..self.place.clone() };
        self.shared.resolving.push(name.to_owned());
        let entry = Parser::new(text, source, None, place, self.shared).and_then(Parser::single);
        self.shared.resolving.pop();
        self.shared.read.environment.insert(name.to_owned(), text.clone());
        entry.map_err(|error| match error.fault {
            // These faults name their own variable, or concern the whole configuration.
            fault @ (Fault::VariableCycle(_)
            | Fault::TooManyVariables(_)
            | Fault::Undefined(_)
            | Fault::Environment { .. }
            | Fault::TooLarge
            | Fault::TooDeep) => fault,
            fault => Fault::Environment { name: name.to_owned(), fault: Box::new(fault) },
        })
    }

    /// Reads a text that is a single value. An empty text is an empty string.
    fn single(mut self) -> Result<Entry, ConfError> {
        self.cursor.skip_blanks();
        if self.cursor.peek().is_none() {
            return Ok(Entry::new(Value::text(""), self.origin(0)));
        }
        let entry = self.value(0)?;
        self.cursor.take_while(|c| matches!(c, ' ' | '\t' | '\r' | '\n'));
        if self.cursor.peek().is_some() {
            return Err(self.wrong(Fault::AfterValue));
        }
        Ok(entry)
    }
}

/// Whether a block, or a block within it, has a setting that a variable refers to.
fn has_used_variable(map: &Map) -> bool {
    map.iter().any(|(_, entry)| entry.is_used_variable || entry.value.as_map().is_some_and(has_used_variable))
}

/// How large a value is.
#[derive(Default)]
struct Size {
    depth: usize,
    values: usize,
    bytes: usize,
}

impl Size {
    fn of(value: &Value) -> Self {
        let mut size = Self { depth: 0, values: 1, bytes: 0 };
        match value {
            Value::Text(text) => size.bytes = text.len(),
            Value::Array(values) => values.iter().for_each(|entry| size.add(0, &entry.value)),
            Value::Map(map) => map.iter().for_each(|(name, entry)| size.add(name.len(), &entry.value)),
            _ => {}
        }
        size.depth += usize::from(matches!(value, Value::Array(_) | Value::Map(_)));
        size
    }

    fn add(&mut self, name: usize, value: &Value) {
        let inner = Self::of(value);
        self.depth = self.depth.max(inner.depth);
        self.values += inner.values;
        self.bytes += inner.bytes + name;
    }
}
