//! nats-server.conf: its language, its text, and what it takes away.

pub mod changes;
pub mod cost;
mod cursor;
pub mod digest;
pub mod effective;
pub mod environment;
pub mod listeners;
pub mod loss;
pub(crate) mod merge;
pub mod names;
pub mod owned;
pub mod reader;
pub(crate) mod rebase;
pub mod render;
pub mod system;
pub mod tree;
pub mod trial;
pub mod write;

/// The settings of a text, for tests, with some variables in the environment.
#[cfg(test)]
pub(crate) fn read(text: &str, file: &std::path::Path) -> Result<tree::Map, reader::ConfError> {
    let variables = [("PASSWORD", "pw"), ("TOKEN", "t"), ("JS", "off"), ("X", "on"), ("USERS", "[]"), ("NONE", "[]")];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned().into()));
    let environment = environment::Environment::of(&variables.into());
    let source = |file: &std::path::Path| tree::Source::File(file.to_owned());
    let directory = file.parent().unwrap_or(file);
    reader::read(text, source(file).into(), directory, &environment, &source).map(|read| read.map)
}
