//! Fuzzes names. The rendered configuration has exactly the template's settings, with unchanged values.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use nats_tls_agent::conf::render::{Values, render};
use nats_tls_agent::conf::tree::{Entry, Map, Value};
use nats_tls_agent::config::NatsConfig;
use nats_tls_agent::credential::ClusterCredential;
use nats_tls_agent::node::Node;
use nats_tls_agent::state::generation::TlsFiles;
use nats_tls_agent::x509::san::Sans;
use zeroize::Zeroizing;

const FILE: &str = "/var/lib/nats-tls-agent/nats-server.conf";

static PLAIN: LazyLock<Vec<Vec<String>>> = LazyLock::new(|| {
    let plain = values(["name", "cluster", "/path", "/store", "user", "password"]).expect("sound values");
    names(&read(&plain))
});

fn values([name, cluster, path, store, username, password]: [&str; 6]) -> Option<Values> {
    let node = Node {
        name: name.to_owned(),
        instance_id: None,
        region: None,
        address: IpAddr::V4(Ipv4Addr::new(10, 0, 1, 5)),
        sans: Sans::default(),
        further_addresses: [].into(),
        placement: nats_tls_agent::node::Placement::default(),
    };
    let peers = [([10, 0, 1, 6], 6222).into()];
    let nats = NatsConfig { pid_file: PathBuf::from(path), ..NatsConfig::default() };
    let file = || PathBuf::from(path);
    let tls = TlsFiles { cert_file: file(), key_file: file(), ca_file: file(), client_ca_file: file() };
    let credential = ClusterCredential { username: username.to_owned(), password: Zeroizing::new(password.to_owned()) };
    let mut values = Values::new(&nats, &node, cluster, peers, tls, Some(credential)).ok()?;
    values.jetstream.as_mut()?.store_dir = PathBuf::from(store);
    Some(values)
}

fn read(values: &Values) -> Map {
    let rendered = render(None, values).expect("the built-in template renders");
    rendered.tree(Path::new(FILE)).expect("the rendered configuration can be parsed")
}

/// The names of settings at the top and in each block.
fn names(map: &Map) -> Vec<Vec<String>> {
    let mut all = vec![map.iter().map(|(name, _)| name.to_owned()).collect()];
    for (_, entry) in map.iter() {
        all.extend(entry.value.as_map().map(names).unwrap_or_default());
    }
    all
}

fn text<'a>(map: &'a Map, place: &[&str]) -> Option<&'a str> {
    let (last, blocks) = place.split_last()?;
    let block = blocks.iter().try_fold(map, |map, name| map.find(&[name]).ok()??.value.as_map())?;
    block.find(&[last]).ok()??.value.as_text()
}

/// Fuzzes the rendering of six names. The first six bytes are their lengths, and the rest belongs to the last name.
pub fn rendering(input: &[u8]) {
    let Some((lengths, mut rest)) = input.split_at_checked(6) else { return };
    let mut names_in = [const { String::new() }; 6];
    for (name, length) in names_in.iter_mut().zip(lengths) {
        let (taken, left) = rest.split_at(usize::from(*length).min(rest.len()));
        (*name, rest) = (String::from_utf8_lossy(taken).into_owned(), left);
    }
    names_in[5].push_str(&String::from_utf8_lossy(rest));
    let names_in = names_in.each_ref().map(String::as_str);
    // `Values::new` refuses a credential that lets in nobody or everybody.
    let Some(values) = values(names_in) else { return };
    // nats-server takes a NUL for the end of the text in some places, so the agent's reader refuses such a text.
    if names_in.iter().any(|name| name.contains('\0')) {
        return;
    }
    let map = read(&values);
    assert_eq!(names(&map), *PLAIN);
    let [name, cluster, path, store, username, password] = names_in;
    for (place, value) in [
        (&["server_name"][..], name),
        (&["cluster", "name"], cluster),
        (&["pid_file"], path),
        (&["tls", "cert_file"], path),
        (&["cluster", "tls", "key_file"], path),
        (&["jetstream", "store_dir"], store),
        (&["cluster", "authorization", "user"], username),
        (&["cluster", "authorization", "password"], password),
    ] {
        assert_eq!(text(&map, place), Some(value), "{place:?}");
    }
    let routes =
        map.find(&["cluster"]).ok().flatten().and_then(|entry| entry.value.as_map()).map(|map| map.find(&["routes"]));
    let Some(Ok(Some(Entry { value: Value::Array(routes), .. }))) = routes else { panic!("no routes") };
    assert_eq!(routes.len(), 2);
    assert!(routes.iter().all(|route| route.value.as_text().is_some_and(|url| url.ends_with(":6222"))));
}
