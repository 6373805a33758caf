//! The effective configuration: template, then includes, then `[nats.settings]`, as one tree of settings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::digest::{UsedVariables, digest};
use super::environment::{Environment, EnvironmentError};
use super::merge::{MergeError, merge, name_certificate, resolved};
use super::owned::{self, Owned};
use super::reader::{self, ConfError, Contents};
use super::render::{RenderError, Rendered, Values, render};
use super::system::{self, Placement};
use super::tree::{Ambiguous, Entry, Map, Origin, Source, Value};
use super::{names, write};
use crate::config::NatsConfig;

/// Why there is no effective configuration.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The template doesn't render.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// The rendered template, or a file that it includes, is not in nats-server's language.
    #[error("could not read the new configuration as nats-server would, so it is not applied")]
    Unreadable(#[from] ConfError),
    /// The file of variables can't be read.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// `[nats.settings]` can't be merged.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// A block of an included file replaces a rendered block as a whole.
    #[error(
        "{after}: the block `{block}` would replace the whole block that is rendered, because nats-server keeps only \
         the later of two blocks; write the block's settings under [nats.settings.{block}] in agent.toml instead"
    )]
    BlockReplaced {
        /// The block, with the blocks around it.
        block: String,
        /// The place of the block that replaces.
        after: Origin,
    },
    /// One setting has two names in the tree.
    #[error(transparent)]
    Ambiguous(Box<Ambiguous>),
    /// A setting that the agent owns has another value.
    #[error("{0}")]
    Owned(owned::Replaced),
    /// A setting names a file of one generation.
    #[error(
        "{0} names a file below the agent's generations, and a later renewal removes the file; write \
         certificate = \"node\" in the tls block"
    )]
    NamesGeneration(Origin),
    /// A file of `nats.include` is not included.
    #[error(
        "nats.include names {}, and nats.template doesn't include the file; write an `include` of the file in \
         the template",
        .0.display()
    )]
    NotIncluded(PathBuf),
}

/// The sources of the effective configuration. nats-server's own reader can read them too, for a comparison.
pub struct Sources {
    /// The rendered template, with its includes as they are written.
    pub text: Rendered,
    /// The variables of the environment that the sources use.
    pub environment: BTreeMap<String, Zeroizing<String>>,
    /// The digest that `nats-server -t` gives the sources in [`Sources::wrapped`].
    pub digest: String,
}

/// The files that the effective configuration depends on, each with its state after the last reading.
type Stamps = Vec<(PathBuf, Option<Stamp>)>;

/// What changes when a file changes: device, inode, size, and the times of its content and its inode in nanoseconds.
type Stamp = (u64, u64, u64, i128, i128);

/// The effective configuration.
#[derive(Clone)]
pub struct Configuration {
    /// The settings.
    pub tree: Arc<Map>,
    /// The text that is committed.
    pub rendered: Rendered,
    /// What the settings were read from.
    pub sources: Arc<Sources>,
    /// Where the agent's user of the system account stands. `None`: there is no such user.
    pub system: Option<Placement>,
}

/// How often files are read whose includes change meanwhile. After that many readings the next pass reads again.
const READINGS: usize = 3;

/// Makes the effective configuration, and reads its inputs again only after a change.
#[derive(Default)]
pub struct Effective {
    last: Option<(Values, Stamps, Configuration)>,
}

impl Effective {
    /// The effective configuration of these values.
    pub fn of(&mut self, nats: &NatsConfig, values: &Values) -> Result<Configuration, SettingsError> {
        if let Some((known, stamps, last)) = &self.last
            && known == values
            && stamps.iter().all(|(file, stamp)| stamp_of(file) == *stamp)
        {
            return Ok(last.clone());
        }
        // A stamp is older than the content that was read, so an edit during the reading is seen in the next pass. The
        // names of the files are known only afterwards, so files that were not read before are read twice.
        let known = self.last.as_ref().map(|(_, stamps, _)| stamps.iter().map(|(file, _)| file.clone()).collect());
        let mut files: Vec<PathBuf> = known.unwrap_or_default();
        self.last = None;
        for _ in 0..READINGS {
            let stamps = files.iter().map(|file| (file.clone(), stamp_of(file))).collect();
            let (read, configuration) = read(nats, values, &Contents::new())?;
            if read.iter().all(|file| files.contains(file)) {
                self.last = Some((values.clone(), stamps, configuration.clone()));
                return Ok(configuration);
            }
            files = read;
        }
        read(nats, values, &Contents::new()).map(|(_, configuration)| configuration)
    }
}

/// The effective configuration with these contents of included files, whatever is on the disk.
pub(crate) fn preview(nats: &NatsConfig, values: &Values, contents: &Contents) -> Result<Configuration, SettingsError> {
    read(nats, values, contents).map(|(_, configuration)| configuration)
}

fn stamp_of(file: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(file).ok()?;
    let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    Some((
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
        nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
    ))
}

/// Reads the sources, and returns the files that were read.
fn read(
    nats: &NatsConfig,
    values: &Values,
    contents: &Contents,
) -> Result<(Vec<PathBuf>, Configuration), SettingsError> {
    let text = render(nats.template.as_deref(), values)?;
    let environment = Environment::new(std::env::vars_os(), nats.environment_file.as_deref())?;
    let source = Arc::new(Source::Template(nats.template.clone()));
    let directory = nats.config.parent().unwrap_or(Path::new("/"));
    let name = |file: &Path| match nats.included_secrets.get(file) {
        Some(id) => Source::Secret(id.clone()),
        None => Source::File(file.to_owned()),
    };
    let read = reader::read_with(text.text(), source, directory, &environment, &name, contents)?;
    if let Some(replaced) = read.replaced.into_iter().next() {
        return Err(SettingsError::BlockReplaced { block: replaced.path.join("."), after: replaced.after });
    }
    let is_missing = |file: &&PathBuf| !read.files.contains(&reader::resolved(file));
    if let Some(file) = nats.include.iter().find(is_missing) {
        return Err(SettingsError::NotIncluded(file.clone()));
    }
    let digest = digest(&Sources::wrapped_tree(read.map.clone()), UsedVariables::Keep);
    let mut tree = without_variables(read.map);
    merge(&mut tree, resolved(&nats.settings, values)?);
    // The check comes first, because it refuses paths of generations, and the next step adds such paths.
    check(&tree, values)?;
    name_certificate(&mut tree, &values.tls)?;
    let system = values.system_key.as_deref().map(|key| system::add(&mut tree, key, values.system_barred));
    let mut files = read.files;
    files.extend(nats.environment_file.iter().chain(&nats.template).cloned());
    let rendered = Rendered::from_text(write::text(&tree));
    let sources = Arc::new(Sources { text, environment: read.environment, digest });
    Ok((files, Configuration { tree: Arc::new(tree), rendered, sources, system }))
}

fn check(tree: &Map, values: &Values) -> Result<(), SettingsError> {
    if let Some(ambiguous) = names::ambiguities(tree).into_iter().next() {
        return Err(SettingsError::Ambiguous(Box::new(ambiguous)));
    }
    if let Some(replaced) = owned::replaced(tree, &Owned::of(values)).into_iter().next() {
        return Err(SettingsError::Owned(replaced));
    }
    let generations = values.tls.cert_file.parent().and_then(Path::parent);
    let named = generations.map(|generations| owned::generations_named(tree, generations, &values.tls));
    match named.into_iter().flatten().next() {
        Some(origin) => Err(SettingsError::NamesGeneration(origin)),
        None => Ok(()),
    }
}

/// The tree without the settings that only define a variable. nats-server would refuse the names of these settings,
/// because nothing refers to them any more.
fn without_variables(tree: Map) -> Map {
    let mut kept = Map::default();
    for (name, mut entry) in tree {
        if entry.is_used_variable {
            continue;
        }
        entry.value = below(entry.value);
        kept.insert(name, entry);
    }
    kept
}

fn below(value: Value) -> Value {
    match value {
        Value::Map(map) => Value::Map(without_variables(map)),
        Value::Array(values) => {
            Value::Array(values.into_iter().map(|entry| Entry { value: below(entry.value), ..entry }).collect())
        }
        value => value,
    }
}

impl Sources {
    /// A configuration that includes `file` where nats-server looks at no setting. nats-server therefore accepts any
    /// settings of the file. `file` is the name of a file in the same directory.
    #[must_use]
    pub fn wrapped(file: &str) -> String {
        format!("authorization {{ users: [ {{ X {{ include \"{file}\" }}\nuser: $X\nuser: a\npassword: b }} ] }}\n")
    }

    /// The tree of [`Sources::wrapped`], where `tree` is the tree of the included file.
    #[must_use]
    pub fn wrapped_tree(tree: Map) -> Map {
        let origin = Origin { source: Arc::new(Source::Template(None)), line: 0 };
        let entry = |value| Entry::new(value, origin.clone());
        let block = |settings: Vec<(&str, Value)>| {
            let mut map = Map::default();
            for (name, value) in settings {
                map.insert(name, entry(value));
            }
            map
        };
        let user = vec![("X", Value::Map(tree)), ("user", Value::text("a")), ("password", Value::text("b"))];
        let users = vec![("users", Value::Array(vec![entry(Value::Map(block(user)))]))];
        block(vec![("authorization", Value::Map(block(users)))])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::render::NodeValues;
    use crate::state::generation::Generations;

    struct Bench {
        directory: tempfile::TempDir,
        nats: NatsConfig,
        effective: Effective,
    }

    impl Bench {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let nats = NatsConfig { config: directory.path().join("nats-server.conf"), ..NatsConfig::default() };
            Self { directory, nats, effective: Effective::default() }
        }

        fn include(&mut self, text: &str) -> PathBuf {
            let file = self.directory.path().join("extra.conf");
            std::fs::write(&file, text).unwrap();
            self.nats.include = vec![file.clone()];
            file
        }

        fn settings(&mut self, text: &str) {
            self.nats.settings = crate::conf::read(text, Path::new("/etc/agent.toml")).unwrap();
        }

        fn values(&self, generation: &str) -> Values {
            let tls = Generations::of(Path::new("/state")).files(generation.parse().unwrap());
            let climb = |include: &PathBuf| {
                PathBuf::from(format!("{}{}", "../".repeat(12), &include.display().to_string()[1..]))
            };
            let node = NodeValues { zone: Some("z1".into()), ..NodeValues::default() };
            Values { tls, node, include: self.nats.include.iter().map(climb).collect(), ..Values::sample() }
        }

        fn read(&mut self, generation: &str) -> Result<Configuration, SettingsError> {
            let values = self.values(generation);
            self.effective.of(&self.nats, &values)
        }
    }

    #[test]
    fn while_nothing_changes_nothing_is_read() {
        let mut bench = Bench::new();
        let file = bench.include("max_subscriptions: 1\n");
        let before = bench.read("000001").unwrap();
        assert!(Arc::ptr_eq(&before.tree, &bench.read("000001").unwrap().tree));
        std::fs::write(&file, "max_subscriptions: 22\n").unwrap();
        let after = bench.read("000001").unwrap();
        assert!(!Arc::ptr_eq(&before.tree, &after.tree) && after.rendered.text().contains("max_subscriptions: 22"));
    }

    /// A user's template need not name the generation.
    #[test]
    fn a_setting_follows_the_generation_where_the_template_stays_the_same() {
        let mut bench = Bench::new();
        let template = bench.directory.path().join("own.tera");
        std::fs::write(&template, "server_name: n1\n").unwrap();
        bench.nats.template = Some(template);
        bench.settings("tls { certificate: node }");
        for generation in ["000001", "000002"] {
            let text = bench.read(generation).unwrap().rendered;
            assert!(text.text().contains(&format!("/state/generations/{generation}/key.pem")), "{}", text.text());
        }
    }

    #[test]
    fn an_included_file_may_ask_for_this_nodes_certificate() {
        let mut bench = Bench::new();
        bench.include("websocket { listen: \"0.0.0.0:443\", tls { certificate: node } }\n");
        let text = bench.read("000003").unwrap().rendered;
        assert_eq!(text.text().matches("/state/generations/000003/key.pem").count(), 3, "{}", text.text());
    }

    #[test]
    fn sources_are_merged_and_the_committed_text_means_the_merged_tree() {
        let mut bench = Bench::new();
        bench.include("max_subscriptions: 1\nLIMIT: 7\nmax_traced_msg_len: $LIMIT\n");
        bench.settings("max_payload: \"8MB\"\nserver_tags: [ \"az:{{ node.zone }}\" ]\ncluster { pool_size: 5 }");
        let Configuration { tree, rendered, .. } = bench.read("000001").unwrap();
        for expected in
            ["max_payload: 8388608\n", "\"az:z1\"", "pool_size: 5\n", "max_traced_msg_len: 7\n", "# /etc/agent.toml\n"]
        {
            assert!(rendered.text().contains(expected), "{expected}: {}", rendered.text());
        }
        assert!(!rendered.text().contains("LIMIT"), "{}", rendered.text());
        let read = rendered.tree(&bench.nats.config).unwrap();
        assert_eq!(digest(&read, UsedVariables::Keep), digest(&tree, UsedVariables::Keep));
    }

    #[test]
    fn the_agents_user_is_part_of_the_text_and_no_source_can_replace_the_user() {
        let mut bench = Bench::new();
        bench.include("accounts { A { users: [ { user: a, password: a } ] } }");
        bench.settings(
            "accounts { SYS { users: [ { user: s, password: \"{{ system_key }}\" } ] } }\nsystem_account: SYS",
        );
        let values = Values { system_key: Some("UKEY".into()), ..bench.values("000001") };
        let Configuration { rendered, system, .. } = bench.effective.of(&bench.nats, &values).unwrap();
        assert!(matches!(system, Some(Placement::Account { name, .. }) if name == "SYS"));
        assert!(rendered.text().contains("nkey: \"UKEY\""), "{}", rendered.text());
        assert!(rendered.text().contains("password: \"UKEY\""), "{}", rendered.text());
        let without = Values { system_key: None, ..values };
        bench.settings("");
        let Configuration { rendered, system, .. } = bench.effective.of(&bench.nats, &without).unwrap();
        assert!(system.is_none() && !rendered.text().contains("UKEY"));
    }

    #[test]
    fn what_can_not_be_part_of_the_configuration_is_refused() {
        let refused = |include: &str, settings: &str| {
            let mut bench = Bench::new();
            bench.include(include);
            bench.settings(settings);
            bench.read("000001").map(|configuration| configuration.rendered).unwrap_err()
        };
        assert!(
            matches!(refused("cluster { x: 1 }", ""), SettingsError::BlockReplaced { block, .. } if block == "cluster")
        );
        assert!(matches!(refused("max_conn: 1\nmax_connections: 2", ""), SettingsError::Ambiguous(_)));
        assert!(matches!(refused("server_name: other", ""), SettingsError::Owned(_)));
        assert!(matches!(refused("a: 1", "cluster { name: other }"), SettingsError::Owned(_)));
        let named = "websocket { tls { cert_file: /state/generations/000001/cert.pem } }";
        assert!(matches!(refused(named, ""), SettingsError::NamesGeneration(_)));
        assert!(matches!(refused("a: 1", "mqtt { tls { certificate: mine } }"), SettingsError::Merge(_)));
        assert!(matches!(refused("a: $NOWHERE_AT_ALL", ""), SettingsError::Unreadable(_)));
        let mut bench = Bench::new();
        bench.include("a: 1");
        let values = Values { include: Vec::new(), ..bench.values("000001") };
        assert!(matches!(bench.effective.of(&bench.nats, &values), Err(SettingsError::NotIncluded(_))));
    }
}
