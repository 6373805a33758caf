//! A configuration with the paths of another generation.

use std::path::Path;

use super::reader::ConfError;
use super::render::Rendered;
use super::tree::{Entry, Map, Value};
use super::write;
use crate::state::generation::Generations;

/// The same text, naming the generation `number`. A text that names no generation stays as it is. Errors name `file`.
pub(crate) fn rebase(
    text: &Rendered,
    file: &Path,
    generations: &Generations,
    number: u64,
) -> Result<Rendered, ConfError> {
    if generations.named_in(text.text()).is_none_or(|named| named == number) {
        return Ok(text.clone());
    }
    let mut tree = text.tree(file)?;
    renumber(&mut tree, generations, number);
    Ok(Rendered::from_text(write::text(&tree)))
}

/// The settings that a person makes. The generation and the routes are left out, because they follow the renewals and
/// the peers.
pub(crate) fn settings_alone(tree: &Map, generations: &Generations) -> Map {
    let mut settings = tree.clone();
    renumber(&mut settings, generations, 0);
    for (name, entry) in settings.iter_mut() {
        if let (true, Value::Map(cluster)) = (name.eq_ignore_ascii_case("cluster"), &mut entry.value) {
            let routes = cluster.iter().map(|(name, _)| name).find(|name| name.eq_ignore_ascii_case("routes"));
            if let Some(routes) = routes.map(str::to_owned) {
                cluster.remove(&routes);
            }
        }
    }
    settings
}

fn renumber(tree: &mut Map, generations: &Generations, number: u64) {
    for (_, entry) in tree.iter_mut() {
        renumber_entry(entry, generations, number);
    }
}

fn renumber_entry(entry: &mut Entry, generations: &Generations, number: u64) {
    match &mut entry.value {
        Value::Text(text) => {
            if let Some(path) = generations.renumbered(text, number) {
                entry.value = Value::text(path);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|entry| renumber_entry(entry, generations, number)),
        Value::Map(map) => renumber(map, generations, number),
        Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Date(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Rendered {
        Rendered::from_text(text.to_owned())
    }

    fn generations() -> Generations {
        Generations::of(Path::new("/state"))
    }

    const FILE: &str = "/nats-server.conf";

    #[test]
    fn a_text_can_name_another_generation() {
        let named = |number: &str| {
            let path = format!("/state/generations/{number}");
            text(&format!(
                "tls {{ cert_file: \"{path}/cert.pem\" }}\nl: [ {{ key_file: \"{path}/key.pem\" }} ]\nn: {number}x"
            ))
        };
        let rebased = rebase(&named("000041"), Path::new(FILE), &generations(), 42).unwrap();
        let expected = "/state/generations/000042";
        assert_eq!(rebased.text().matches(expected).count(), 2, "{}", rebased.text());
        assert!(rebased.text().contains("000041x"));
        assert_eq!(rebase(&rebased, Path::new(FILE), &generations(), 42).unwrap(), rebased);
        let elsewhere = text("cert_file: /elsewhere/generations/000041/cert.pem");
        assert_eq!(rebase(&elsewhere, Path::new(FILE), &generations(), 42).unwrap(), elsewhere);
    }

    #[test]
    fn a_generation_and_a_peer_are_no_setting_and_anything_else_is() {
        let settings = |text: &str| settings_alone(&self::text(text).tree(Path::new(FILE)).unwrap(), &generations());
        let before = settings("a: /state/generations/000001/cert.pem\nCluster { name: c, Routes: [ x ] }");
        assert!(before == settings("a: /state/generations/000002/cert.pem\nCluster { name: c, Routes: [ x, y ] }"));
        assert!(before != settings("a: /state/generations/000001/cert.pem\nCluster { name: d }"));
        assert!(before != settings("a: /state/generations/000001/key.pem\nCluster { name: c }"));
    }
}
