use std::sync::Arc;

use zeroize::Zeroizing;

use super::*;
use crate::conf::render::render;
use crate::config::{JetStream, NatsConfig};
use crate::node::Node;
use crate::state::generation::Generations;
use crate::x509::san::Sans;

const GENERATIONS: &str = "/var/lib/nats-tls-agent/generations";

fn tls() -> TlsFiles {
    Generations::of(Path::new("/var/lib/nats-tls-agent")).files(3)
}

fn values(nats: &NatsConfig, credential: Option<ClusterCredential>) -> Values {
    let node = Node {
        name: "n1".to_owned(),
        instance_id: None,
        region: None,
        address: [10, 0, 1, 5].into(),
        sans: Sans::default(),
        further_addresses: [].into(),
        placement: crate::node::Placement::default(),
    };
    Values::new(nats, &node, "prod", ["10.0.1.6:6222".parse().unwrap()], tls(), credential).unwrap()
}

fn credential() -> ClusterCredential {
    ClusterCredential { username: "route".to_owned(), password: Zeroizing::new("hunter2".to_owned()) }
}

fn tree(text: &str) -> Map {
    crate::conf::read(text, Path::new("/etc/nats/extra.conf")).unwrap()
}

/// The setting and the key of each replaced setting.
fn found(text: &str, values: &Values) -> Vec<(String, &'static str)> {
    replaced(&tree(text), &Owned::of(values)).into_iter().map(|replaced| (replaced.setting, replaced.key)).collect()
}

/// Every value below comes from this source.
fn from(map: &mut Map, source: &Arc<Source>) {
    for (_, entry) in map.iter_mut() {
        entry_from(entry, source);
    }
}

fn entry_from(entry: &mut Entry, source: &Arc<Source>) {
    entry.origin = Origin { source: Arc::clone(source), line: 7 };
    match &mut entry.value {
        Value::Map(map) => from(map, source),
        Value::Array(entries) => entries.iter_mut().for_each(|entry| entry_from(entry, source)),
        _ => {}
    }
}

fn sources() -> [Arc<Source>; 4] {
    [
        Source::Template(Some("/etc/my.tera".into())),
        Source::File("/etc/nats/extra.conf".into()),
        Source::Secret("nats/extra".to_owned()),
        Source::Settings("/etc/agent.toml".into()),
    ]
    .map(Arc::new)
}

#[test]
fn what_the_agent_renders_itself_replaces_nothing() {
    for nats in [NatsConfig::default(), NatsConfig { jetstream: JetStream::Off, ..NatsConfig::default() }] {
        for credential in [None, Some(credential())] {
            let values = values(&nats, credential);
            assert_eq!(found(render(None, &values).unwrap().text(), &values), []);
        }
    }
}

#[test]
fn each_owned_setting_is_refused_with_its_key_whatever_its_source_and_without_its_value() {
    for (text, setting, key) in [
        ("server_name: other", "server_name", "node.name"),
        ("Pidfile: other", "Pidfile", "nats.pid_file"),
        ("listen: \"0.0.0.0:4333\"", "listen", "nats.listen"),
        ("port: 4333", "port", "nats.listen"),
        ("net: 127.0.0.1", "net", "nats.listen"),
        ("cluster { listen: \"0.0.0.0:6333\" }", "cluster.listen", "nats.cluster_listen"),
        ("cluster { host: 127.0.0.1 }", "cluster.host", "nats.cluster_listen"),
        ("cluster { port: 0 }", "cluster.port", "nats.cluster_listen"),
        ("http: \"127.0.0.1:8333\"", "http", "nats.monitor_listen"),
        ("http: 8222", "http", "nats.monitor_listen"),
        ("monitor_port: 8333", "monitor_port", "nats.monitor_listen"),
        ("https: \"0.0.0.0:8222\"", "https", "nats.monitor_listen"),
        ("https_port: 0", "https_port", "nats.monitor_listen"),
        ("cluster { name: other }", "cluster.name", "nats.cluster_name"),
        ("cluster { routes: [ \"nats-route://10.0.1.5:6222\" ] }", "cluster.routes", "discovery.peers"),
        ("cluster { authorization { user: other } }", "cluster.authorization.user", "nats.cluster_secret_id"),
        ("cluster { authorization { pass: other } }", "cluster.authorization.pass", "nats.cluster_secret_id"),
        ("tls { cert_file: other }", "tls.cert_file", "issuer.kind"),
        ("tls { key_file: other }", "tls.key_file", "issuer.kind"),
        ("tls { ca_file: other }", "tls.ca_file", "trust.kind"),
        ("tls { certs: [ { cert_file: other, key_file: other } ] }", "tls.certs", "issuer.kind"),
        ("cluster { tls { cert_file: other } }", "cluster.tls.cert_file", "issuer.kind"),
        ("mqtt { tls { certificate: node, ca_file: other } }", "mqtt.tls.ca_file", "trust.kind"),
        (
            "leafnodes { remotes: [ { tls { certificate: node, key_file: other } } ] }",
            "leafnodes.remotes[0].tls.key_file",
            "issuer.kind",
        ),
        ("jetstream { store: other }", "jetstream.store", "nats.jetstream.store_dir"),
        ("store_dir: other", "store_dir", "nats.jetstream.store_dir"),
    ] {
        let values = values(&NatsConfig::default(), Some(credential()));
        for source in sources() {
            let mut tree = tree(text);
            from(&mut tree, &source);
            let found = replaced(&tree, &Owned::of(&values));
            let origin = Origin { source, line: 7 };
            assert_eq!(found, [Replaced { setting: setting.to_owned(), origin: origin.clone(), key }], "{text}");
            let message = found[0].to_string();
            assert_eq!(
                message,
                format!("{origin} sets {setting}, which the agent owns; write {key} in agent.toml instead")
            );
            assert!(!message.contains("other"), "{message}");
        }
    }
}

#[test]
fn one_listener_has_many_notations() {
    let values = values(&NatsConfig::default(), Some(credential()));
    for text in [
        "port: 4222",
        "port: 0",
        "listen: 4222",
        "listen: \":4222\"",
        "host: 0.0.0.0, port: 4222",
        "host: \"\"",
        "cluster { port: 6222 }",
        "cluster { host: 0.0.0.0, port: 6222 }",
        "cluster { listen: 6222 }",
        "https: \"127.0.0.1:8222\"",
        "jetstream { store_dir: /var/lib/nats/./jetstream/ }",
        "cluster { routes: [ \"nats-route://route:hunter2@10.0.1.6:6222\", \"nats-route://route:hunter2@10.0.1.5:6222\" ] }",
    ] {
        assert_eq!(found(text, &values), [], "{text}");
    }
    let nats = NatsConfig {
        listen: "[2001:db8::1]:14222".parse().unwrap(),
        monitor_listen: "[2001:db8::1]:18222".parse().unwrap(),
        ..NatsConfig::default()
    };
    let values = self::values(&nats, None);
    for text in
        ["listen: \"[2001:DB8:0::1]:14222\"", "host: \"2001:db8::1\", port: 14222", "http: 18222", "http_port: 18222"]
    {
        assert_eq!(found(text, &values), [], "{text}");
    }
    // What is absent has a default.
    assert_eq!(found("port: 14222", &values), [("port".to_owned(), "nats.listen")]);
    assert_eq!(found("host: \"2001:db8::1\"", &values), [("host".to_owned(), "nats.listen")]);
}

#[test]
fn where_the_agent_has_no_credential_and_no_jetstream_any_value_differs() {
    let values = values(&NatsConfig { jetstream: JetStream::Off, ..NatsConfig::default() }, None);
    let text = "cluster { authorization { user: a, password: b, timeout: 1 } }\njetstream { store_dir: /var/lib/nats/jetstream }";
    assert_eq!(
        found(text, &values),
        [
            ("cluster.authorization.password".to_owned(), "nats.cluster_secret_id"),
            ("cluster.authorization.user".to_owned(), "nats.cluster_secret_id"),
            ("jetstream.store_dir".to_owned(), "nats.jetstream.store_dir"),
        ]
    );
}

#[test]
fn what_others_own_is_left_to_them() {
    let values = values(&NatsConfig::default(), Some(credential()));
    let pair = format!("{{ cert_file: {GENERATIONS}/000003/cert.pem, key_file: {GENERATIONS}/000003/key.pem }}");
    for text in [
        "",
        "max_payload: 2MB\nwebsocket { port: 443, tls { cert_file: /c, key_file: /k } }",
        "resolver_tls { cert_file: /c, key_file: /k }",
        "gateway { name: prod, gateways: [ { name: other, tls { ca_file: /a } } ] }",
        "accounts { server_name { users: [ { user: a, password: b } ] } }",
        &format!("tls {{ certs: [ {{ cert_file: /c, key_file: /k }}, {pair} ] }}"),
    ] {
        assert_eq!(found(text, &values), [], "{text}");
    }
}

#[test]
fn a_generation_is_named_by_the_template_and_by_certificate_node_alone() {
    let directory = Path::new(GENERATIONS);
    let named = |path: &str, source: &Arc<Source>| {
        let mut tree = tree(&format!("websocket {{ tls {{ cert_file: \"{path}\" }} }}\nlist: [ \"{path}\" ]"));
        from(&mut tree, source);
        generations_named(&tree, directory, &tls())
    };
    let [template, file, secret, settings] = sources();
    let current = format!("{GENERATIONS}/000003/cert.pem");
    let old = format!("{GENERATIONS}/000001/cert.pem");
    assert_eq!(named(&old, &template), []);
    assert_eq!(named(&current, &settings), []);
    for (path, source) in [
        (&*old, &settings),
        (&current, &file),
        (&old, &secret),
        ("/var/lib/nats-tls-agent/./x/../generations//000001/key.pem", &file),
        ("generations/000001/cert.pem", &file),
        ("../nats-tls-agent/generations/000001/cert.pem", &file),
    ] {
        assert_eq!(named(path, source), [Origin { source: Arc::clone(source), line: 7 }], "{path}");
    }
    for path in ["/etc/generations/cert.pem", "/var/lib/nats-tls-agent/ca/cert.pem", "cert.pem", ""] {
        assert_eq!(named(path, &file), [], "{path}");
    }
    let inside = Arc::new(Source::File(directory.join("000003/x.conf")));
    assert_eq!(named("/etc/cert.pem", &inside).len(), 1);
}
