//! Rewrites settings for a trial: the same settings, with everything that reaches outside taken out.
//!
//! The trial's server starts if and only if the real one starts, except for what the checks beside the trial cover. It
//! listens on loopback alone, dials nobody, and writes below the trial's directory alone. A reload of the trial's
//! server from one rewritten tree to another has the result of the real reload.
//!
//! The names are those of `server/opts.go` of nats-server 2.10.26, 2.12.8 and 2.15.1.

mod endpoints;
mod stage;

pub use self::endpoints::{Endpoint, Listener, endpoints};
pub use self::stage::{Stage, Surroundings};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::tree::{Entry, Map, Value};

/// Settings of the log and of profiling. Without them the log is short and goes to standard error.
const LOGGING: [&str; 9] = [
    "log_file",
    "logfile",
    "syslog",
    "remote_syslog",
    "debug",
    "trace",
    "trace_verbose",
    "trace_headers",
    "prof_block_rate",
];

/// Every name of the store directory, within `jetstream` and outside of it.
pub(crate) const STORE: [&str; 3] = ["store_dir", "storedir", "store"];
/// Every name of the pid file.
pub(crate) const PID_FILE: [&str; 2] = ["pid_file", "pidfile"];
/// Every name of the log file.
pub(crate) const LOG_FILE: [&str; 2] = ["log_file", "logfile"];
/// Every name of JetStream's limit for storage.
const MAX_FILE: [&str; 2] = ["max_file", "max_file_store"];
const RESOLVER: [&str; 3] = ["resolver", "account_resolver", "accounts_resolver"];
const OPERATOR: [&str; 6] = ["operator", "operators", "root", "roots", "root_operator", "root_operators"];

/// The kinds of files of a trial. The name of a file begins with its kind.
const STORES: &str = "store_dir";
const ACCOUNTS: &str = "resolver";
const PID_FILES: &str = "pid_file";
const PORTS_FILES: &str = "ports_file_dir";
const OCSP_CACHE: &str = "ocsp_cache";

/// The settings as a server under trial gets them. The server starts with the first tree of a stage, and reloads to the
/// second.
pub fn rewrite(tree: &Map, stage: &mut Stage) -> Map {
    let mut trial = tree.clone();
    for name in LOGGING {
        take(&mut trial, &[name]);
    }
    rewrite_listeners(&mut trial, tree, stage);
    rewrite_remotes(&mut trial, stage);
    rewrite_store(&mut trial, stage);
    rewrite_files(&mut trial, stage);
    rewrite_resolver(&mut trial, stage);
    rewrite_ocsp(&mut trial, stage);
    stage.reloads_next();
    trial
}

/// The texts of `operator`: names of files, or JWTs.
pub(crate) fn operators(tree: &Map) -> Vec<&str> {
    match find(tree, &OPERATOR).map(|entry| &entry.value) {
        Some(Value::Text(text)) => vec![text],
        Some(Value::Array(texts)) => texts.iter().filter_map(|text| text.value.as_text()).collect(),
        _ => Vec::new(),
    }
}

/// The store of JetStream where `max_file` is absent. nats-server then takes the limit from the free space on the
/// store's disk.
pub(crate) fn store_without_limit(tree: &Map) -> Option<&str> {
    let within = block(tree, &["jetstream"]);
    if find(tree, &["jetstream"]).is_none() || within.is_some_and(|within| find(within, &MAX_FILE).is_some()) {
        return None;
    }
    within.and_then(|within| find(within, &STORE)).or_else(|| find(tree, &STORE[..2]))?.value.as_text()
}

/// The entry under any of these names, in any case. Two such entries are refused before a trial.
pub(crate) fn find<'a>(map: &'a Map, names: &[&str]) -> Option<&'a Entry> {
    map.iter().find(|(name, _)| names.iter().any(|known| known.eq_ignore_ascii_case(name))).map(|(_, entry)| entry)
}

/// The block under any of these names, in any case.
pub(crate) fn block<'a>(map: &'a Map, names: &[&str]) -> Option<&'a Map> {
    find(map, names)?.value.as_map()
}

pub(crate) fn find_mut<'a>(map: &'a mut Map, names: &[&str]) -> Option<&'a mut Value> {
    let is_one = |name: &str| names.iter().any(|known| known.eq_ignore_ascii_case(name));
    map.iter_mut().find(|(name, _)| is_one(name)).map(|(_, entry)| &mut entry.value)
}

pub(crate) fn block_mut<'a>(map: &'a mut Map, names: &[&str]) -> Option<&'a mut Map> {
    if let Some(Value::Map(block)) = find_mut(map, names) { Some(block) } else { None }
}

/// Takes every entry under one of these names out, and returns the last.
fn take(map: &mut Map, names: &[&str]) -> Option<Entry> {
    let is_one = |name: &str| names.iter().any(|known| known.eq_ignore_ascii_case(name));
    let found: Vec<String> = map.iter().filter(|(name, _)| is_one(name)).map(|(name, _)| name.to_owned()).collect();
    found.iter().filter_map(|name| map.remove(name)).last()
}

/// Replaces a text, and keeps its place.
fn replace(map: &mut Map, names: &[&str], with: impl FnOnce(&str) -> Value) {
    if let Some(value) = find_mut(map, names)
        && let Some(text) = value.as_text()
    {
        *value = with(text);
    }
}

/// Every listener that is on gets a port of loopback. `http` and `https` keep their names, because nats-server refuses
/// both together.
fn rewrite_listeners(trial: &mut Map, tree: &Map, stage: &mut Stage) {
    for endpoint in endpoints(tree) {
        let listener = endpoint.listener;
        let (host, port) = (stage.host(listener, &endpoint.host), stage.port(listener, endpoint.port));
        let listen = Stage::entry(Value::text(format!("{host}:{port}")));
        let number = Value::Integer(port);
        match listener {
            Listener::Client => move_listener(trial, listen),
            Listener::Http => monitor(trial, "http", &["http_port", "monitor_port"], listen.value, number),
            Listener::Https => monitor(trial, "https", &["https_port"], listen.value, number),
            Listener::Profiling => monitor(trial, "", &["prof_port"], listen.value, number),
            block => {
                if let Some(settings) = block_mut(trial, block.block_names()) {
                    move_listener(settings, listen);
                }
            }
        }
    }
}

fn move_listener(settings: &mut Map, listen: Entry) {
    take(settings, &["listen", "host", "net", "port"]);
    settings.insert("listen", listen);
}

/// A monitoring port without a host follows the client's host, so a port stays a port and an address stays an address.
fn monitor(trial: &mut Map, listen: &str, port: &[&str], address: Value, number: Value) {
    if let Some(value) = find_mut(trial, &[listen]) {
        *value = address;
    } else if let Some(value) = find_mut(trial, port) {
        *value = number;
    }
}

/// Every remote server becomes an address that refuses connections. The names and the number of remotes stay, because
/// JetStream in a cluster without a route is fatal.
fn rewrite_remotes(trial: &mut Map, stage: &mut Stage) {
    if let Some(cluster) = block_mut(trial, Listener::Cluster.block_names()) {
        rewrite_urls(cluster, &["routes"], stage);
    }
    if let Some(gateway) = block_mut(trial, Listener::Gateway.block_names()) {
        for remote in remotes(gateway, "gateways") {
            rewrite_urls(remote, &["url"], stage);
            rewrite_urls(remote, &["urls"], stage);
        }
    }
    if let Some(leafnodes) = block_mut(trial, Listener::Leafnodes.block_names()) {
        for remote in remotes(leafnodes, "remotes") {
            take(remote, &["proxy"]);
            rewrite_urls(remote, &["url"], stage);
            rewrite_urls(remote, &["urls"], stage);
        }
    }
}

fn remotes<'a>(block: &'a mut Map, name: &str) -> Vec<&'a mut Map> {
    let Some(Value::Array(remotes)) = find_mut(block, &[name]) else { return Vec::new() };
    let maps = remotes.iter_mut().filter_map(|remote| match &mut remote.value {
        Value::Map(remote) => Some(remote),
        _ => None,
    });
    maps.collect()
}

fn rewrite_urls(map: &mut Map, names: &[&str], stage: &mut Stage) {
    match find_mut(map, names) {
        Some(Value::Array(urls)) => urls.iter_mut().for_each(|url| rewrite_url(&mut url.value, stage)),
        Some(url) => rewrite_url(url, stage),
        None => {}
    }
}

/// Replaces host and port of a URL. Scheme, user, password and path stay. Without `//` Go reads no host, so nothing is
/// dialled.
fn rewrite_url(value: &mut Value, stage: &mut Stage) {
    let Some((scheme, rest)) = value.as_text().and_then(|url| url.split_once("//")) else { return };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, place) = authority.rsplit_once('@').map_or((None, authority), |(user, place)| (Some(user), place));
    if place.trim().is_empty() {
        return;
    }
    let place = stage.place(place.trim());
    let user = user.map(|user| Zeroizing::new(format!("{user}@"))).unwrap_or_default();
    *value = Value::text(format!("{scheme}//{}{place}{path}", user.as_str()));
}

/// JetStream keeps its limits, because they reserve nothing. The store moves into the trial even where JetStream is
/// off, because a reload compares the directories all the same. A plain key stands for a TPM, because a TPM would seal
/// a real key.
fn rewrite_store(trial: &mut Map, stage: &mut Stage) {
    let outside = find(trial, &STORE[..2]).is_some();
    replace(trial, &STORE[..2], |original| stage.path(STORES, Some(original)));
    let Some(jetstream) = find_mut(trial, &["jetstream"]) else { return };
    let is_on = match jetstream {
        Value::Bool(on) => *on,
        Value::Text(word) => word.eq_ignore_ascii_case("enabled") || word.eq_ignore_ascii_case("enable"),
        _ => false,
    };
    if is_on {
        *jetstream = Value::Map(Map::default());
    }
    let Value::Map(settings) = jetstream else { return };
    if find(settings, &STORE).is_some() {
        replace(settings, &STORE, |original| stage.path(STORES, Some(original)));
    } else if !outside {
        settings.insert("store_dir", Stage::entry(stage.path(STORES, None)));
    }
    if let Some(storage) = stage.around.storage
        && find(settings, &MAX_FILE).is_none()
    {
        settings.insert("max_file", Stage::entry(Value::Integer(storage)));
    }
    if let Some(Entry { value: Value::Map(tpm), .. }) = take(settings, &["tpm"])
        && find(settings, &["key", "ek", "encryption_key"]).is_none()
    {
        settings.insert("key", Stage::entry(stage.tpm_key(&tpm)));
        if let Some(cipher) = find(&tpm, &["cipher"])
            && find(settings, &["cipher"]).is_none()
        {
            settings.insert("cipher", cipher.clone());
        }
    }
}

/// The real pid file must stay unchanged, because the agent signals the process that the file names.
fn rewrite_files(trial: &mut Map, stage: &mut Stage) {
    replace(trial, &PID_FILE, |original| stage.path(PID_FILES, Some(original)));
    replace(trial, &["ports_file_dir"], |original| stage.path(PORTS_FILES, Some(original)));
}

/// Accounts come from an empty directory, or from a stand-in for the account server, because nats-server asks that
/// server at the start.
fn rewrite_resolver(trial: &mut Map, stage: &mut Stage) {
    let stands_in = match find_mut(trial, &RESOLVER) {
        Some(Value::Map(resolver)) => {
            replace(resolver, &["dir"], |original| stage.path(ACCOUNTS, Some(original)));
            None
        }
        Some(Value::Text(resolver)) => {
            let is_url = resolver.get(..3).is_some_and(|kind| kind.eq_ignore_ascii_case("url"));
            is_url.then(|| resolver.to_string())
        }
        Some(_) => None,
        None => account_server(trial, stage),
    };
    if let Some(original) = stands_in {
        take(trial, &RESOLVER);
        trial.insert("resolver", Stage::entry(Value::text(stage.account_server(&original))));
    }
}

/// The account server that a single operator names. nats-server uses that server where no resolver is set.
fn account_server(tree: &Map, stage: &Stage) -> Option<String> {
    let [operator] = operators(tree)[..] else { return None };
    let text = stage.around.operators.get(operator).map_or(operator, String::as_str);
    let jwt = text.split_whitespace().find(|word| word.starts_with("eyJ"))?;
    let claims = URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    let server = claims.get("nats")?.get("account_server_url")?.as_str()?;
    (!server.is_empty()).then(|| server.to_owned())
}

/// Stapling is off, because nats-server would ask the responder of a must-staple certificate at the start. The cache of
/// peers' answers moves, because by default it is in the working directory.
fn rewrite_ocsp(trial: &mut Map, stage: &mut Stage) {
    take(trial, &["ocsp"]);
    trial.insert("ocsp", Stage::entry(Value::Bool(false)));
    let asks_peers = trial.iter().any(|(_, entry)| has_ocsp_peer(&entry.value));
    match find_mut(trial, &["ocsp_cache"]) {
        Some(Value::Map(cache)) => {
            let original = find(cache, &["local_store"]).and_then(|store| store.value.as_text().map(str::to_owned));
            take(cache, &["local_store"]);
            cache.insert("local_store", Stage::entry(stage.path(OCSP_CACHE, original.as_deref())));
        }
        Some(Value::Bool(false)) => {}
        None if !asks_peers => {}
        _ => {
            let mut cache = Map::default();
            cache.insert("type", Stage::entry(Value::text("local")));
            cache.insert("local_store", Stage::entry(stage.path(OCSP_CACHE, None)));
            take(trial, &["ocsp_cache"]);
            trial.insert("ocsp_cache", Stage::entry(Value::Map(cache)));
        }
    }
}

fn has_ocsp_peer(value: &Value) -> bool {
    match value {
        Value::Map(map) => {
            find(map, &["ocsp_peer"]).is_some() || map.iter().any(|(_, entry)| has_ocsp_peer(&entry.value))
        }
        Value::Array(values) => values.iter().any(|entry| has_ocsp_peer(&entry.value)),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
