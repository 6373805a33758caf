use std::path::Path;

use proptest::prelude::*;

use super::*;

fn tree(text: &str) -> Map {
    crate::conf::read(text, Path::new("/etc/nats/limits.conf")).unwrap()
}

fn found(text: &str) -> Vec<(String, String)> {
    ambiguities(&tree(text)).into_iter().map(|found| (found.one, found.other)).collect()
}

#[track_caller]
fn assert_one(text: &str, one: &str, other: &str) {
    assert_eq!(found(text), [(one.to_owned(), other.to_owned())], "{text}");
}

/// A text in which the block stands, around the settings of the block.
fn around(block: Block, settings: &str) -> Option<String> {
    let nested = |before: &str, after: &str| Some(format!("{before} {settings} {after}"));
    match block {
        Block::Top => Some(settings.to_owned()),
        Block::Tls => nested("websocket { tls {", "} }"),
        Block::Ocsp => nested("ocsp {", "}"),
        Block::Cluster => nested("cluster {", "}"),
        Block::Compression => nested("leafnodes { remotes: [ { compression {", "} } ] }"),
        Block::Gateway => nested("gateway {", "}"),
        Block::GatewayRemote => nested("gateway { gateways: [ {}, {", "} ] }"),
        Block::LeafNodes => nested("leaf {", "}"),
        Block::LeafAuthorization => nested("leafnodes { authorization {", "} }"),
        Block::LeafUser => nested("leafnodes { authorization { users: [ {", "} ] } }"),
        Block::LeafRemote => nested("leafnodes { remotes: [ {", "} ] }"),
        Block::Websocket => nested("ws {", "}"),
        Block::Mqtt => nested("mqtt {", "}"),
        Block::SimpleAuthorization => nested("mqtt { authentication {", "} }"),
        Block::Authorization => nested("authorization {", "}"),
        Block::User => nested("accounts { Some: { users: [ {", "} ] } }"),
        Block::AuthCallout => nested("authorization { auth_hook {", "} }"),
        Block::Permissions => nested("authorization { users: [ { authorization {", "} } ] }"),
        Block::Responses => nested("accounts { A { default_permissions { allow_responses {", "} } } }"),
        Block::Account => nested("accounts { A {", "} }"),
        Block::AccountJetStream => nested("accounts { A { jetstream {", "} } }"),
        Block::AccountLimits => nested("accounts { A { limits {", "} } }"),
        Block::Export => nested("accounts { A { exports: [ {", "} ] } }"),
        Block::Mapping => nested("mappings { foo: [ {", "} ] }"),
        Block::JetStream => nested("jetstream {", "}"),
        Block::TrustedProxy => nested("proxies { trusted: [ {", "} ] }"),
        _ => None,
    }
}

/// Every block that has synonyms or overlaps.
const BLOCKS: [Block; 26] = [
    Block::Top,
    Block::Tls,
    Block::Ocsp,
    Block::Cluster,
    Block::Compression,
    Block::Gateway,
    Block::GatewayRemote,
    Block::LeafNodes,
    Block::LeafAuthorization,
    Block::LeafUser,
    Block::LeafRemote,
    Block::Websocket,
    Block::Mqtt,
    Block::SimpleAuthorization,
    Block::Authorization,
    Block::User,
    Block::AuthCallout,
    Block::Permissions,
    Block::Responses,
    Block::Account,
    Block::AccountJetStream,
    Block::AccountLimits,
    Block::Export,
    Block::Mapping,
    Block::JetStream,
    Block::TrustedProxy,
];

#[test]
fn two_names_of_one_setting_are_found_in_every_block() {
    for block in BLOCKS {
        let shape = block.shape();
        assert!(!shape.synonyms.is_empty() || !shape.overlaps.is_empty(), "{block:?}");
        for group in shape.synonyms {
            for (index, one) in group.iter().enumerate() {
                for other in &group[index + 1..] {
                    let text = around(block, &format!("{one}: 1, {}: 1", other.to_uppercase())).unwrap();
                    assert_eq!(found(&text).len(), 1, "{text}");
                }
                let text = around(block, &format!("{one}: 1")).unwrap();
                assert_eq!(found(&text), [], "{text}");
            }
        }
    }
}

#[test]
fn a_listener_by_its_address_and_by_its_parts_is_ambiguous() {
    for block in [Block::Top, Block::Cluster, Block::Gateway, Block::LeafNodes, Block::Websocket, Block::Mqtt] {
        for other in ["host: h", "net: h", "port: 1"] {
            assert_eq!(found(&around(block, &format!("listen: 1, {other}")).unwrap()).len(), 1, "{block:?} {other}");
        }
        assert_eq!(found(&around(block, "host: h, port: 1").unwrap()), []);
    }
    assert_one("http: 1\nmonitor_port: 2", "http", "monitor_port");
    assert_one("https: 1\nhttps_port: 2", "https", "https_port");
    assert_one("http: 1\nhttps: 2", "http", "https");
    assert_eq!(found("http: 1\nhttps_port: 2\nlisten: 3"), []);
}

#[test]
fn switches_that_set_another_are_ambiguous_only_where_they_disagree() {
    assert_eq!(found("trace: true\ntrace_verbose: true"), []);
    assert_one("trace: false\ntrace_verbose: true", "trace", "trace_verbose");
    assert_eq!(found("tls { verify: true, verify_and_map: false }"), []);
    assert_one("tls { verify: false, verify_and_map: true }", "tls.verify", "tls.verify_and_map");
}

#[test]
fn names_are_told_apart_as_nats_server_does_and_the_users_own_by_their_case() {
    assert_one("listen: 1\nLISTEN: 2", "LISTEN", "listen");
    // Go's lower case of İ is i, and that of the Kelvin sign is k.
    assert_one("listen: 1\nl\u{130}sten: 2", "listen", "l\u{130}sten");
    assert_one("tls { key_file: a, \u{212a}ey_file: b }", "tls.key_file", "tls.\u{212a}ey_file");
    assert_eq!(found("accounts { a {}, A {} }\nmappings { foo: x, FOO: y }\nserver_metadata { a: 1, A: 2 }"), []);
}

#[test]
fn an_ambiguity_says_where_both_names_stand() {
    let text = "authorization { users: [ { user: a, pass: b }, { user: c, username: d } ] }";
    assert_one(text, "authorization.users[1].user", "authorization.users[1].username");
    let message = ambiguities(&tree(text))[0].to_string();
    assert!(message.contains("/etc/nats/limits.conf") && message.contains("users[1].username"), "{message}");
}

#[test]
fn only_the_first_ambiguities_are_returned() {
    let users = "{ user: a, username: b }, ".repeat(1000);
    assert_eq!(found(&format!("authorization {{ users: [ {users} ] }}")).len(), MAX_AMBIGUITIES);
}

#[test]
fn a_setting_has_one_canonical_name() {
    assert_eq!(canonical(Block::Top, "MAX_conn"), "max_connections");
    assert_eq!(canonical(Block::Top, "net"), "host");
    assert_eq!(canonical(Block::JetStream, "max_mem"), "max_memory_store");
    assert_eq!(canonical(Block::AccountJetStream, "max_mem"), "max_memory");
    assert_eq!(canonical(Block::Accounts, "MAX_conn"), "MAX_conn");
    assert_eq!(canonical(Block::Top, "Unknown"), "unknown");
    assert_eq!(Block::Top.inside("WS"), Some(Block::Websocket));
    assert_eq!(Block::Accounts.inside("any"), Some(Block::Account));
    assert_eq!(Block::Top.inside("listen"), None);
}

#[test]
fn the_table_names_each_setting_once_and_in_lower_case() {
    for block in BLOCKS {
        let shape = block.shape();
        let mut names: Vec<&str> = shape.synonyms.iter().flat_map(|group| group.iter().copied()).collect();
        assert!(names.iter().all(|name| lower(name) == *name), "{block:?}");
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "{block:?}");
        // Overlaps and blocks are looked up by canonical names.
        let looked_up =
            shape.overlaps.iter().flat_map(|(_, names)| names.iter()).chain(shape.inside.iter().map(|(name, _)| name));
        for name in looked_up {
            assert_eq!(canonical(block, name), *name, "{block:?}");
        }
    }
}

proptest! {
    #[test]
    fn any_tree_has_ambiguities_or_none(names in prop::collection::vec("[a-z_]{1,8}|listen|port|TLS|tls", 0..8)) {
        let text = names.join(" { user: a, User: b }\n") + " {}";
        prop_assert!(ambiguities(&tree(&text)).len() <= MAX_AMBIGUITIES);
    }
}
