//! What the agent owns in nats-server's configuration, and the settings that would replace it.
//!
//! The agent decides nats-server's listeners, name, routes, key and certificate. The agent confirms reloads with these
//! values, and peers rely on them. A different value from another source is refused before anything is written.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use super::names::{Block, dotted, each_block};
use super::render::{RouteUrl, Values};
use super::tree::{Entry, Map, Origin, Source, Value, lower};
use crate::credential::ClusterCredential;
use crate::state::generation::TlsFiles;

/// nats-server's `DEFAULT_HOST` and `DEFAULT_PORT` (server/const.go).
const DEFAULT_HOST: &str = "0.0.0.0";
const DEFAULT_PORT: i64 = 4222;

/// The values of the settings that the agent owns.
#[derive(Clone, Debug)]
pub struct Owned<'a> {
    server_name: &'a str,
    client: Endpoint<'a>,
    route: Endpoint<'a>,
    monitor: Endpoint<'a>,
    pid_file: &'a Path,
    cluster_name: &'a str,
    routes: &'a [RouteUrl],
    credential: Option<&'a ClusterCredential>,
    tls: &'a TlsFiles,
    store_dir: Option<&'a Path>,
}

impl<'a> Owned<'a> {
    /// What the agent owns when it renders these values.
    #[must_use]
    pub fn of(values: &'a Values) -> Self {
        Self {
            server_name: &values.server_name,
            client: Endpoint::of(&values.listen),
            route: Endpoint::of(&values.cluster.listen),
            monitor: Endpoint::of(&values.monitor_listen),
            pid_file: &values.pid_file,
            cluster_name: &values.cluster.name,
            routes: &values.cluster.routes,
            credential: values.cluster.credential.as_ref(),
            tls: &values.tls,
            store_dir: values.jetstream.as_ref().map(|jetstream| jetstream.store_dir.as_path()),
        }
    }
}

/// A setting that differs from what the agent owns. The value is left out, because it may be a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin} sets {setting}, which the agent owns; write {key} in agent.toml instead")]
pub struct Replaced {
    /// The setting, with the names of its blocks: `cluster.name`.
    pub setting: String,
    /// Where the value comes from.
    pub origin: Origin,
    /// The key of agent.toml for this setting.
    pub key: &'static str,
}

/// The settings of the effective tree whose values differ from what the agent owns, whatever their source. An absent
/// setting is left to the check of losses.
#[must_use]
pub fn replaced(tree: &Map, owned: &Owned<'_>) -> Vec<Replaced> {
    let mut found = Found(Vec::new());
    for (name, entry) in tree.iter() {
        match &*lower(name) {
            "server_name" => found.unless(is_text(entry, owned.server_name), name, entry, "node.name"),
            "pid_file" | "pidfile" => found.unless(is_path(entry, owned.pid_file), name, entry, "nats.pid_file"),
            "store_dir" | "storedir" => found.store_dir(name, entry, owned),
            "cluster" => found.cluster(name, entry, owned),
            "jetstream" => {
                for (inner, entry) in named(entry.value.as_map(), &["store_dir", "storedir", "store"]) {
                    found.store_dir(&dotted(name, inner), entry, owned);
                }
            }
            _ => {}
        }
    }
    found.client(tree, &owned.client);
    found.monitor(tree, owned);
    found.tls(tree, owned.tls);
    found.0
}

/// The settings that name a path below `generations/` or come from a file there, although they must not. A generation
/// is removed after a few renewals. A setting that names a removed generation would stop every later renewal.
///
/// The template may name any path there. `[nats.settings]` may name the files in `allowed`, which `certificate = "node"`
/// stands for. An included file or secret may name none.
#[must_use]
pub fn generations_named(tree: &Map, generations: &Path, allowed: &TlsFiles) -> Vec<Origin> {
    let mut found = Vec::new();
    for (_, entry) in tree.iter() {
        generations_in(entry, generations, allowed, &mut found);
    }
    found
}

fn generations_in(entry: &Entry, generations: &Path, allowed: &TlsFiles, found: &mut Vec<Origin>) {
    let is_refused = match &*entry.origin.source {
        Source::Template(_) | Source::Committed(_) | Source::Noted(_) | Source::Agent => false,
        Source::Settings(_) => {
            let allowed = [&allowed.cert_file, &allowed.key_file, &allowed.ca_file, &allowed.client_ca_file];
            names_a_path_in(entry, generations) && !allowed.iter().any(|file| is_path(entry, file))
        }
        Source::File(file) => names_a_path_in(entry, generations) || is_below(file, generations),
        Source::Secret(_) | Source::Environment(_) => names_a_path_in(entry, generations),
    };
    if is_refused && !found.contains(&entry.origin) {
        found.push(entry.origin.clone());
    }
    match &entry.value {
        Value::Map(map) => {
            for (_, entry) in map.iter() {
                generations_in(entry, generations, allowed, found);
            }
        }
        Value::Array(entries) => {
            for entry in entries {
                generations_in(entry, generations, allowed, found);
            }
        }
        _ => {}
    }
}

fn names_a_path_in(entry: &Entry, directory: &Path) -> bool {
    entry.value.as_text().is_some_and(|text| is_below(Path::new(text), directory))
}

/// Whether a path lies below a directory. `.` and `..` are resolved in the text alone. nats-server resolves a relative
/// path from its working directory, which the text doesn't tell. A relative path counts as below the directory where it
/// begins with the end of the directory's path: `generations/000001/cert.pem`.
fn is_below(path: &Path, directory: &Path) -> bool {
    let (path, directory) = (resolved(path), resolved(directory));
    if path.is_absolute() {
        return path.starts_with(&directory);
    }
    let below_root = directory.components().filter(|component| matches!(component, Component::Normal(_)));
    let ends = (0..below_root.clone().count()).map(|skipped| below_root.clone().skip(skipped).collect::<PathBuf>());
    let relative: PathBuf = path.components().skip_while(|component| *component == Component::ParentDir).collect();
    ends.into_iter().any(|end| relative.starts_with(end))
}

fn resolved(path: &Path) -> PathBuf {
    let mut resolved = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if resolved.file_name().is_some() => {
                resolved.pop();
            }
            Component::ParentDir if resolved.has_root() => {}
            other => resolved.push(other),
        }
    }
    resolved
}

/// The address of a listener.
#[derive(Clone, Copy, Debug)]
struct Endpoint<'a> {
    host: &'a str,
    port: Option<i64>,
}

impl<'a> Endpoint<'a> {
    /// Reads `host:port` or `[host]:port`, as Go's `net.SplitHostPort` does.
    fn of(text: &'a str) -> Self {
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Self { host, port: port.parse().ok() }
    }

    /// Reads the value of `listen`, `http` or `https`, which may be a port alone.
    fn of_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::Integer(port) => Some(Self { host: "", port: Some(*port) }),
            Value::Text(text) => Some(Self::of(text)),
            _ => None,
        }
    }

    /// Whether the host is the same. An empty host is `default`.
    fn has_host(&self, host: &str, default: &str) -> bool {
        let host = if host.is_empty() { default } else { host };
        match (self.host.parse::<IpAddr>(), host.parse::<IpAddr>()) {
            (Ok(one), Ok(other)) => one == other,
            _ => self.host.eq_ignore_ascii_case(host),
        }
    }
}

/// The entries of a map under any of these names, which are in lower case.
fn named<'a>(map: Option<&'a Map>, names: &'static [&'static str]) -> impl Iterator<Item = (&'a str, &'a Entry)> {
    map.into_iter().flat_map(Map::iter).filter(|(name, _)| names.contains(&&*lower(name)))
}

fn is_text(entry: &Entry, text: &str) -> bool {
    entry.value.as_text() == Some(text)
}

fn is_path(entry: &Entry, path: &Path) -> bool {
    entry.value.as_text().is_some_and(|text| resolved(Path::new(text)) == resolved(path))
}

struct Found(Vec<Replaced>);

impl Found {
    fn unless(&mut self, is_own: bool, setting: &str, entry: &Entry, key: &'static str) {
        let replaced = Replaced { setting: setting.to_owned(), origin: entry.origin.clone(), key };
        if !is_own && !self.0.contains(&replaced) {
            self.0.push(replaced);
        }
    }

    /// The path of JetStream's store. Where agent.toml has JetStream off, the agent owns no path, so any path differs.
    fn store_dir(&mut self, setting: &str, entry: &Entry, owned: &Owned<'_>) {
        let is_own = owned.store_dir.is_some_and(|path| is_path(entry, path));
        self.unless(is_own, setting, entry, "nats.jetstream.store_dir");
    }

    /// `listen`, or `host` and `port`. `default` is the port that nats-server uses for a port that is 0 or absent.
    fn listener(&mut self, map: &Map, path: &str, own: &Endpoint<'_>, default: Option<i64>, key: &'static str) {
        let is_port =
            |port: Option<i64>| port.map(|port| if port == 0 { default.unwrap_or(0) } else { port }) == own.port;
        let (mut host_given, mut port_given) = (None, None);
        for (name, entry) in map.iter() {
            let setting = || dotted(path, name);
            match &*lower(name) {
                "listen" => {
                    let endpoint = Endpoint::of_value(&entry.value);
                    let is_own = endpoint.is_some_and(|it| own.has_host(it.host, DEFAULT_HOST) && is_port(it.port));
                    self.unless(is_own, &setting(), entry, key);
                    (host_given, port_given) = (Some((name, entry)), Some((name, entry)));
                }
                "host" | "net" => {
                    let is_own = entry.value.as_text().is_some_and(|host| own.has_host(host, DEFAULT_HOST));
                    self.unless(is_own, &setting(), entry, key);
                    host_given = Some((name, entry));
                }
                "port" => {
                    self.unless(is_port(integer(entry)), &setting(), entry, key);
                    port_given = Some((name, entry));
                }
                _ => {}
            }
        }
        match (host_given, port_given) {
            // nats-server uses its default for an absent host or port, and the default may differ from the agent's
            // value.
            (None, Some((name, entry))) => {
                self.unless(own.has_host("", DEFAULT_HOST), &dotted(path, name), entry, key);
            }
            (Some((name, entry)), None) if default.is_some() => {
                self.unless(is_port(default), &dotted(path, name), entry, key);
            }
            _ => {}
        }
    }

    fn client(&mut self, tree: &Map, own: &Endpoint<'_>) {
        self.listener(tree, "", own, Some(DEFAULT_PORT), "nats.listen");
    }

    /// By default nats-server listens for monitoring at the client listener's host.
    fn monitor(&mut self, tree: &Map, owned: &Owned<'_>) {
        let own = &owned.monitor;
        for (name, entry) in named(Some(tree), &["http", "https", "http_port", "monitor_port", "https_port"]) {
            let endpoint = Endpoint::of_value(&entry.value);
            let is_own = endpoint.is_some_and(|it| own.has_host(it.host, owned.client.host) && it.port == own.port);
            self.unless(is_own, name, entry, "nats.monitor_listen");
        }
    }

    fn cluster(&mut self, path: &str, entry: &Entry, owned: &Owned<'_>) {
        let Some(cluster) = entry.value.as_map() else { return };
        self.listener(cluster, path, &owned.route, None, "nats.cluster_listen");
        for (name, entry) in cluster.iter() {
            let setting = dotted(path, name);
            match &*lower(name) {
                "name" => self.unless(is_text(entry, owned.cluster_name), &setting, entry, "nats.cluster_name"),
                "routes" => self.unless(are_routes(entry, owned.routes), &setting, entry, "discovery.peers"),
                "authorization" => self.credential(&setting, entry, owned.credential),
                _ => {}
            }
        }
    }

    fn credential(&mut self, path: &str, entry: &Entry, own: Option<&ClusterCredential>) {
        for (name, entry) in entry.value.as_map().into_iter().flat_map(Map::iter) {
            let own = match &*lower(name) {
                "user" | "username" => own.map_or("", |own| &own.username),
                "pass" | "password" => own.map_or("", |own| &own.password),
                _ => continue,
            };
            self.unless(is_text(entry, own), &dotted(path, name), entry, "nats.cluster_secret_id");
        }
    }

    /// The blocks of clients and routes, and each block with `certificate = "node"`.
    fn tls(&mut self, tree: &Map, own: &TlsFiles) {
        each_block(tree, &mut |block, path, map| {
            let is_own = ["tls", "cluster.tls"].contains(&&*lower(path));
            let is_nodes = || named(Some(map), &["certificate"]).any(|(_, entry)| is_text(entry, "node"));
            if block == Block::Tls && (is_own || is_nodes()) {
                self.material(path, map, own);
            }
        });
    }

    fn material(&mut self, path: &str, tls: &Map, own: &TlsFiles) {
        let ca_file = own.ca_file_of(path.split('.').next().unwrap_or_default());
        let key = if *ca_file == own.ca_file { "trust.kind" } else { "trust.clients.kind" };
        for (name, entry) in tls.iter() {
            let setting = dotted(path, name);
            match &*lower(name) {
                "cert_file" => self.unless(is_path(entry, &own.cert_file), &setting, entry, "issuer.kind"),
                "key_file" => self.unless(is_path(entry, &own.key_file), &setting, entry, "issuer.kind"),
                "ca_file" => self.unless(is_path(entry, ca_file), &setting, entry, key),
                "certs" | "certificates" => self.unless(have_own_pair(entry, own), &setting, entry, "issuer.kind"),
                _ => {}
            }
        }
    }
}

fn integer(entry: &Entry) -> Option<i64> {
    if let Value::Integer(integer) = entry.value { Some(integer) } else { None }
}

/// Whether one of several key pairs is the agent's. A template may add a pair of its own, for another name or algorithm.
fn have_own_pair(entry: &Entry, own: &TlsFiles) -> bool {
    let pairs = entry.value.as_array().unwrap_or_default();
    pairs.iter().filter_map(|pair| pair.value.as_map()).any(|pair| {
        let is = |name, path| pair.get(name).is_some_and(|entry| is_path(entry, path));
        is("cert_file", &own.cert_file) && is("key_file", &own.key_file)
    })
}

/// Whether these are the agent's routes, in any order.
fn are_routes(entry: &Entry, own: &[RouteUrl]) -> bool {
    let Some(routes) = entry.value.as_array() else { return false };
    let given: Option<BTreeSet<&str>> = routes.iter().map(|route| route.value.as_text()).collect();
    given.is_some_and(|given| given == own.iter().map(RouteUrl::url).collect())
}

#[cfg(test)]
mod tests;
