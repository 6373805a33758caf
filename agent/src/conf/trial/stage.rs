//! What a trial puts in the place of ports, hosts, directories and remote servers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::endpoints::Listener;
use crate::conf::tree::{Entry, Map, Origin, Source, Value};

/// What a trial has in the place of the outside.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The directory of the trial. Every file of the server under trial lies below it.
    pub directory: PathBuf,
    /// A port that refuses every connection on each address of 127.0.0.0/8.
    pub hole: u16,
    /// An HTTP server that stands for every account server.
    pub account_server: SocketAddr,
    /// Free ports. A changed listener gets a free port, and nats-server refuses the reload before it opens the port.
    pub free: Vec<u16>,
    /// The storage that nats-server finds on the disk of the real store, in bytes. `None` where the settings limit it.
    pub storage: Option<i64>,
    /// The contents of the files that `operator` names, by the names as written.
    pub operators: BTreeMap<String, String>,
}

/// The values of a trial, by the values that they stand for.
///
/// Both trees of a reload are rewritten with one stage, the running tree first. So equal values stay equal, and a
/// change stays a change.
#[derive(Debug)]
pub struct Stage {
    pub(super) around: Surroundings,
    reloads: bool,
    hosts: BTreeMap<Listener, Vec<String>>,
    ports: BTreeMap<Listener, Vec<Option<i64>>>,
    given: BTreeMap<(Listener, usize), u16>,
    places: Vec<String>,
    paths: BTreeMap<(&'static str, Option<String>), PathBuf>,
    resolvers: Vec<String>,
    tpms: Vec<Map>,
}

impl Stage {
    /// A stage for one tree, or for the two trees of one reload.
    #[must_use]
    pub fn new(around: Surroundings) -> Self {
        Self {
            around,
            reloads: false,
            hosts: BTreeMap::new(),
            ports: BTreeMap::new(),
            given: BTreeMap::new(),
            places: Vec::new(),
            paths: BTreeMap::new(),
            resolvers: Vec::new(),
            tpms: Vec::new(),
        }
    }

    /// The next tree is the one that the server reloads to.
    pub(super) fn reloads_next(&mut self) {
        self.reloads = true;
    }

    /// An entry of the trial's own. It has no comment in the text.
    pub(super) fn entry(value: Value) -> Entry {
        Entry::new(value, Origin { source: Arc::new(Source::Template(None)), line: 0 })
    }

    /// The loopback address in the place of a listener's host.
    pub(super) fn host(&mut self, listener: Listener, host: &str) -> String {
        loopback(index_of(self.hosts.entry(listener).or_default(), &host.to_owned()))
    }

    /// The port in the place of a listener's port.
    ///
    /// The first port becomes -1, so the system chooses the port. After a reload to -1 the server keeps its port. A
    /// listener that only the second tree has must not get -1. nats-server would take the old port, 0, and complain of
    /// the missing port (`server/reload.go`, up to 2.15.1).
    pub(super) fn port(&mut self, listener: Listener, port: i64) -> i64 {
        let known = self.ports.entry(listener).or_default();
        if self.reloads && known.is_empty() {
            known.push(None);
        }
        let index = index_of(known, &Some(port));
        if index == 0 {
            return -1;
        }
        let next = self.given.len();
        let free = self.around.free.get(next).copied().unwrap_or(u16::MAX);
        i64::from(*self.given.entry((listener, index)).or_insert(free))
    }

    /// The address in the place of a remote server. Each place has its own address, and each address refuses
    /// connections.
    pub(super) fn place(&mut self, place: &str) -> String {
        let index = index_of(&mut self.places, &place.to_owned());
        self.address(index)
    }

    /// The path in the place of a file or directory. `None` stands for nats-server's default.
    pub(super) fn path(&mut self, kind: &'static str, original: Option<&str>) -> Value {
        let number = self.paths.len();
        let path = self
            .paths
            .entry((kind, original.map(str::to_owned)))
            .or_insert_with(|| self.around.directory.join(format!("{kind}-{number}")));
        Value::text(path.to_string_lossy())
    }

    /// The URL in the place of an account server.
    pub(super) fn account_server(&mut self, original: &str) -> String {
        let index = index_of(&mut self.resolvers, &original.to_owned());
        format!("URL(http://{}/{index}/)", self.around.account_server)
    }

    /// A key in the place of the key that a TPM keeps.
    pub(super) fn tpm_key(&mut self, tpm: &Map) -> Value {
        Value::text(format!("trial-{}", index_of(&mut self.tpms, tpm)))
    }

    /// The directories that nats-server expects to be there.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.paths.iter().filter(|((kind, _), _)| *kind == super::PORTS_FILES).map(|(_, path)| path.as_path())
    }

    /// A message of the server under trial, with the values of the settings in the place of the trial's values.
    /// `chosen` are the ports that the system chose, by [`Stage::chosen_port`].
    #[must_use]
    pub fn original(&self, said: &str, chosen: &BTreeMap<String, String>) -> String {
        let mut pairs: Vec<(String, String)> = chosen.iter().map(|(from, to)| (from.clone(), to.clone())).collect();
        pairs.extend(self.paths.iter().map(|((kind, original), path)| {
            let default = || format!("the default {kind}");
            (path.to_string_lossy().into_owned(), original.clone().unwrap_or_else(default))
        }));
        pairs.extend(self.places.iter().enumerate().map(|(index, place)| (self.address(index), place.clone())));
        for ((listener, index), free) in &self.given {
            if let Some(Some(port)) = self.ports.get(listener).and_then(|ports| ports.get(*index)) {
                pairs.push((free.to_string(), port.to_string()));
            }
        }
        if let Some(listener) = Listener::named_in(said) {
            let hosts = self.hosts.get(&listener).into_iter().flatten().enumerate();
            pairs.extend(hosts.map(|(index, host)| (loopback(index), host.clone())));
            if let Some(Some(Some(port))) = self.ports.get(&listener).map(|ports| ports.first()) {
                pairs.push(("old=-1".to_owned(), format!("old={port}")));
            }
        }
        replace_whole(said, &pairs)
    }

    /// The port that the system chose and the port of the settings, where a line of the server's log names one.
    #[must_use]
    pub fn chosen_port(&self, line: &str) -> Option<(String, String)> {
        let (_, listening) = line.split_once("Listening for ").or_else(|| line.split_once("Starting "))?;
        let (_, ports) = self.ports.iter().find(|(listener, _)| listening.starts_with(listener.logged_as()))?;
        let (_, chosen) = listening.rsplit_once(':')?;
        let original = (*ports.first()?)?;
        chosen.bytes().all(|byte| byte.is_ascii_digit()).then(|| (chosen.to_owned(), original.to_string()))
    }

    fn address(&self, index: usize) -> String {
        let [high, low] = u16::try_from(index).unwrap_or(u16::MAX).to_be_bytes();
        format!("127.1.{high}.{low}:{}", self.around.hole)
    }
}

/// The address in the place of a listener's host number `index`.
fn loopback(index: usize) -> String {
    format!("127.0.0.{}", u8::try_from(index).unwrap_or(u8::MAX - 1).saturating_add(1))
}

/// Replaces each `from` by its `to`, except within a longer word or number. A replacement is not replaced again.
fn replace_whole(said: &str, pairs: &[(String, String)]) -> String {
    let mut replaced = String::with_capacity(said.len());
    let mut rest = said;
    while let Some(next) = rest.chars().next() {
        let is_inside = replaced.ends_with(|before: char| before.is_ascii_alphanumeric());
        let found = pairs.iter().filter(|(from, _)| !is_inside && !from.is_empty()).find_map(|(from, to)| {
            let after = rest.strip_prefix(from.as_str())?;
            (!after.starts_with(|after: char| after.is_ascii_alphanumeric())).then_some((after, to))
        });
        if let Some((after, to)) = found {
            replaced.push_str(to);
            rest = after;
        } else {
            replaced.push(next);
            rest = rest.get(next.len_utf8()..).unwrap_or_default();
        }
    }
    replaced
}

/// The index of a value. A new value is added.
fn index_of<T: Clone + PartialEq>(known: &mut Vec<T>, value: &T) -> usize {
    known.iter().position(|known| known == value).unwrap_or_else(|| {
        known.push(value.clone());
        known.len() - 1
    })
}
