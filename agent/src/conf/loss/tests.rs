use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::conf::tree::{Entry, Map, Origin, Source, Value};

const FULL: &str = "
    server_name: n0
    listen: 0.0.0.0:4222
    tls { cert_file: /c, key_file: /k, ca_file: /a, verify: true }
    cluster {
        name: prod
        host: 10.0.0.1
        port: 6222
        tls { cert_file: /c, key_file: /k, ca_file: /a }
        authorization { user: u, password: $PASSWORD }
    }
    jetstream { store_dir: /js }
    accounts { A { users: [ { user: a, password: b } ] } }
    authorization { timeout: 1 }";

/// A `tls` block of a generation, and one of somebody else's.
const OWN: &str = "cert_file: /s/generations/000001/cert.pem, key_file: /s/generations/000001/key.pem, \
                   ca_file: /s/generations/000001/ca.pem";
const NEXT: &str = "cert_file: /s/generations/000002/cert.pem, key_file: /s/generations/000002/key.pem, \
                    ca_file: /s/generations/000002/ca.pem";
const FOREIGN: &str = "cert_file: /other/cert.pem, key_file: /other/key.pem, ca_file: /s/generations/000001/ca.pem";

fn facts(text: &str) -> Facts {
    let tree = crate::conf::read(text, Path::new("/nats-server.conf")).unwrap();
    Facts::of(&tree).unwrap()
}

fn names(before: Option<&str>, after: &str) -> Vec<String> {
    losses(before.map(facts).as_ref(), &facts(after)).iter().map(|taken| taken.loss.to_string()).collect()
}

/// Checks that the way from `before` to `after` is this loss and no other, and that the way back and staying are none.
#[track_caller]
fn assert_is(loss: &[&str], before: &str, after: &str) {
    assert_eq!(names(Some(before), after), loss, "{before}\n-> {after}");
    assert_none(after, before);
    assert_none(before, before);
    assert_none(after, after);
}

/// Writes a text around the settings of a `tls` block.
type Text = Box<dyn Fn(&str) -> String>;

#[track_caller]
fn assert_none(before: &str, after: &str) {
    assert_eq!(names(Some(before), after), Vec::<&str>::new(), "{before}\n-> {after}");
}

#[test]
fn a_configuration_is_understood() {
    let facts = facts(FULL);
    assert_eq!(facts.server_name.as_deref(), Some("n0"));
    assert_eq!(facts.listen.as_deref(), Some("0.0.0.0:4222"));
    assert_eq!(facts.cluster_listen.as_deref(), Some("10.0.0.1:6222"));
    assert_eq!((facts.monitor_listen.as_deref(), facts.pid_file.as_deref()), (None, None));
    assert!(facts.client_tls && facts.client_verify && facts.cluster_tls);
    assert_eq!(facts.cluster_name.as_deref(), Some("prod"));
    assert!(facts.cluster_credential && facts.jetstream);
}

#[test]
fn jetstream_is_on_in_each_of_its_forms() {
    for (text, on) in [
        ("jetstream {}", true),
        ("jetstream: enabled", true),
        ("jetstream: \"Enable\"", true),
        ("JetStream: true", true),
        ("jetstream { enabled: true }", true),
        ("jetstream { enabled: false }", false),
        ("jetstream: disabled", false),
        ("jetstream: off", false),
        ("jetstream: $JS", false),
        ("", false),
    ] {
        assert_eq!(facts(text).jetstream, on, "{text}");
    }
}

#[test]
fn invariant_12_nothing_is_lost_when_nothing_changes() {
    assert_none(FULL, FULL);
    assert_eq!(names(None, FULL), Vec::<&str>::new());
}

#[test]
fn invariant_12_each_loss_is_named() {
    for (from, to, expected) in [
        ("tls { cert_file: /c, key_file: /k, ca_file: /a, verify: true }", "", &["tls", "client-verify"][..]),
        ("listen:", "allow_non_tls: true\nlisten:", &["tls"]),
        ("listen:", "allow_non_tls: $X\nlisten:", &["tls"]),
        ("key_file: /k, ca_file: /a, verify: true", "key_file: /k, verify: false", &["client-verify"]),
        ("tls { cert_file: /c, key_file: /k, ca_file: /a }\n", "\n", &["cluster-tls"]),
        ("ca_file: /a }\n        auth", "ca_file: /a, insecure: true }\n        auth", &["cluster-tls"]),
        ("ca_file: /a }\n        auth", "ca_file: /a, insecure: $X }\n        auth", &["cluster-tls"]),
        ("jetstream { store_dir: /js }", "jetstream: disabled", &["jetstream"]),
        ("name: prod", "name: other", &["cluster-name"]),
        ("name: prod", "", &["cluster-name"]),
        ("authorization { user: u, password: $PASSWORD }", "", &["cluster-credential"]),
        ("user: u,", "user: \"\",", &["cluster-credential"]),
        ("accounts {", "unknown {", &["authorization", "account"]),
        ("[ { user: a, password: b } ]", "[]", &["authorization"]),
        ("[ { user: a, password: b } ]", "$USERS", &["authorization"]),
        ("accounts { A { users: [ { user: a, password: b } ] } }", "accounts: [ A ]", &["authorization"]),
    ] {
        let after = FULL.replacen(from, to, 1);
        assert_ne!(after, FULL, "{from}");
        assert_eq!(names(Some(FULL), &after), expected, "{from} -> {to}");
    }
}

#[test]
fn invariant_12_tls_of_every_listener_is_a_loss_of_its_own() {
    let listener = |block: &str, tls: &str| format!("{block} {{ port: 8443\n{tls} }}");
    for (block, name) in [
        ("websocket", "websocket"),
        ("ws", "websocket"),
        ("mqtt", "mqtt"),
        ("leafnodes", "leafnode"),
        ("leaf", "leafnode"),
        ("gateway", "gateway"),
    ] {
        let with = listener(block, &format!("tls {{ {OWN} }}"));
        assert_is(&[&format!("{name}-tls")], &with, &listener(block, "no_tls: true"));
        assert_is(&[&format!("{name}-certificate")], &with, &listener(block, &format!("tls {{ {FOREIGN} }}")));
        assert_none(&with, &listener(block, &format!("tls {{ {NEXT} }}")));
        // A listener that is gone is no listener without TLS, and a loss of its own.
        let gone = if name == "leafnode" { "leafnodes" } else { name };
        assert_is(&[gone], &with, "");
        assert_is(&[gone], &with, &format!("{block} {{ port: 0 }}"));
    }
}

#[test]
fn invariant_12_a_foreign_certificate_in_the_place_of_the_agents_is_a_loss() {
    let client = |tls: &str| format!("tls {{ {tls} }}\ncluster {{ tls {{ {OWN} }} }}");
    let cluster = |tls: &str| format!("tls {{ {OWN} }}\ncluster {{ tls {{ {tls} }} }}");
    for (text, loss) in [(&client as &dyn Fn(&str) -> String, "client-certificate"), (&cluster, "cluster-certificate")]
    {
        assert_is(&[loss], &text(OWN), &text(FOREIGN));
        assert_none(&text(OWN), &text(NEXT));
        let pair = "{ cert_file: /s/generations/000001/cert.pem, key_file: /s/generations/000001/key.pem }";
        let another = "{ cert_file: /o/cert.pem, key_file: /o/key.pem }";
        let ca = "ca_file: /s/generations/000001/ca.pem";
        assert_is(
            &[loss],
            &text(&format!("certs: [ {another}, {pair} ], {ca}")),
            &text(&format!("certs: [ {another} ], {ca}")),
        );
    }
}

#[test]
fn invariant_12_verification_is_a_loss_of_each_listener() {
    let pin = "a".repeat(64);
    let pins = format!("pinned_certs: [ {pin} ]");
    let more = format!("pinned_certs: [ {pin}, {} ]", "b".repeat(64));
    let client = |tls: &str| format!("tls {{ {tls} }}");
    let block = |name: &'static str| move |tls: &str| format!("{name} {{ port: 1\ntls {{ {tls} }} }}");
    let places: [(&str, bool, Text); 6] = [
        ("client-verify", false, Box::new(client)),
        ("websocket-verify", false, Box::new(block("websocket"))),
        ("mqtt-verify", false, Box::new(block("mqtt"))),
        ("leafnode-verify", false, Box::new(block("leafnodes"))),
        ("cluster-verify", true, Box::new(block("cluster"))),
        ("gateway-verify", true, Box::new(block("gateway"))),
    ];
    for (loss, always, text) in places {
        let with = |more: &str| text(&format!("{OWN}\n{more}"));
        if !always {
            assert_is(&[loss], &with("verify: true"), &with(""));
            assert_is(&[loss], &with("verify_and_map: true"), &with("verify: true"));
        }
        assert_is(&[loss], &with("verify_cert_and_check_known_urls: true"), &with("verify: true"));
        assert_is(&[loss], &with(&pins), &with(""));
        assert_is(&[loss], &with(&pins), &with("pinned_certs: []"));
        assert_eq!(names(Some(&with(&pins)), &with(&more)), [loss]);
        let insecure = if loss == "cluster-verify" { "cluster-tls" } else { loss };
        assert_is(&[insecure], &with(""), &with("insecure: true"));
        let system = OWN.split(", ca_file").next().unwrap();
        assert_is(&[loss], &with("verify: true"), &text(&format!("{system}\nverify: true")));
        assert_is(&[loss], &with("verify: true"), &text(&format!("{system}, ca_file: /other.pem\nverify: true")));
    }
}

#[test]
fn invariant_12_leafnode_remotes_are_compared_one_by_one() {
    let remotes = |remotes: &str| format!("leafnodes {{ remotes: [ {remotes} ] }}");
    let with = format!("{{ url: \"tls://u:p@hub:7422\", account: A, tls {{ {OWN} }} }}");
    let without = "{ url: \"nats-leaf://hub:7422\", account: A }";
    let other = "{ urls: [ \"nats-leaf://other:7422\" ] }";
    assert_is(
        &["leafnode-remote-tls"],
        &remotes(&format!("{with}, {other}")),
        &remotes(&format!("{other}, {without}")),
    );
    let elsewhere = without.replace("hub", "hub2");
    assert_is(&["leafnode-remote-tls"], &remotes(&with), &remotes(&elsewhere));
    assert_is(&["leafnode-remote-tls"], &remotes("{ url: \"wss://hub:443\" }"), &remotes("{ url: \"ws://hub:443\" }"));
    assert_is(&["leafnode-remote-certificate"], &remotes(&with), &remotes(&with.replace(OWN, FOREIGN)));
    let insecure = with.replace(OWN, &format!("{OWN}, insecure: true"));
    assert_is(&["leafnode-remote-verify"], &remotes(&with), &remotes(&insecure));
    for after in ["", &remotes(other), &remotes(&without.replace("account", "disabled: true, account"))] {
        assert_is(&["leafnode-remote"], &remotes(&format!("{with}, {other}")), after);
    }
    // The hub has another address, and the account has as many remotes as before.
    assert_none(&remotes(other), &remotes(&other.replace("other", "another")));
    let closed = |more: &str| remotes(&format!("{{ url: \"nats-leaf://hub\"\n{more} }}"));
    for (before, after) in
        [("deny_imports: [ a, b ]", "deny_import: a"), ("deny_exports: \"a.>\"", "deny_exports: [ \"a.*\" ]")]
    {
        assert_is(&["leafnode-remote-permissions"], &closed(before), &closed(after));
        assert_is(&["leafnode-remote-permissions"], &closed(before), &closed(""));
    }
}

#[test]
fn invariant_12_a_remote_gateway_that_is_dialled_no_longer_is_a_loss_of_its_own() {
    let gateway = |remotes: &str| format!("gateway {{ name: g, port: 7222, gateways: [ {remotes} ] }}");
    let (h, i) = ("{ name: h, url: \"nats://h:1\" }", "{ name: i, urls: [ \"nats://i:1\" ] }");
    assert_is(&["gateway-remote"], &gateway(&format!("{h}, {i}")), &gateway(i));
    assert_none(&gateway(&format!("{h}, {i}")), &gateway(&format!("{i}, {}", h.replace("h:1", "k:1"))));
    assert_is(&["gateway"], &gateway(h), "");
}

#[test]
fn invariant_12_remote_gateways_without_a_block_of_their_own_use_the_gateways() {
    let gateway = |tls: &str, remote: &str| {
        format!(
            "gateway {{ name: g, port: 7222\n{tls}\ngateways: [ {{ name: h, url: \"nats://h:7222\"\n{remote} }} ] }}"
        )
    };
    let own = format!("tls {{ {OWN} }}");
    assert_is(&["gateway-tls"], &gateway(&own, ""), &gateway("", ""));
    assert_is(&["gateway-remote-tls"], &gateway("", &own), &gateway("", ""));
    assert_is(&["gateway-tls", "gateway-remote-tls"], &gateway(&own, &own), &gateway("", ""));
    assert_none(&gateway(&own, &own), &gateway(&own, ""));
    assert_is(&["gateway-remote-certificate"], &gateway(&own, &own), &gateway(&own, &format!("tls {{ {FOREIGN} }}")));
    let insecure = format!("tls {{ {OWN}, insecure: true }}");
    assert_is(&["gateway-remote-verify"], &gateway(&own, &own), &gateway(&own, &insecure));
    let name = gateway(&own, "");
    assert_eq!(names(Some(&name), &name.replacen("name: g", "name: i", 1)), ["gateway-name"]);
    let credential = name.replacen("name: g", "name: g, authorization { user: a, password: b }", 1);
    assert_is(&["gateway-credential"], &credential, &name);
}

#[test]
fn invariant_12_https_monitoring_does_not_become_http() {
    for (https, http) in [("https: 127.0.0.1:8443", "http: 127.0.0.1:8222"), ("https_port: 8443", "http_port: 8222")] {
        assert_is(&["monitoring-tls"], https, http);
        for monitored in [https, http] {
            assert_is(&["monitoring"], monitored, "");
            assert_is(&["monitoring"], monitored, "http_port: 0");
        }
    }
}

#[test]
fn invariant_12_who_may_connect_is_compared_by_what_lets_in() {
    let accounts = "accounts { A { users: [ { user: a, password: b } ] } }\n";
    for (block, loss) in [
        ("authorization { token: t }", "token"),
        ("authorization { auth_callout { issuer: A } }", "auth-callout"),
        ("operator: /o.jwt", "operator"),
        ("roots: [ \"/o.jwt\" ]", "operator"),
        ("trusted_keys: [ O ]", "trusted-keys"),
        ("resolver: MEMORY", "resolver"),
    ] {
        let with = format!("{accounts}{block}");
        assert_is(&[loss], &with, accounts);
        if loss != "resolver" {
            assert_eq!(names(Some(block), ""), ["authorization"], "{block}");
            assert_none("", block);
        }
    }
}

#[test]
fn invariant_12_a_client_without_a_user_is_let_in_only_if_it_is_meant() {
    let users = "authorization { users: [ { user: a, password: b } ] }\n";
    let with = |more: &str| format!("{users}{more}");
    assert_eq!(names(Some(users), &with("no_auth_user: a")), ["no-auth-user"]);
    assert_none(&with("no_auth_user: a"), users);
    assert_none(&with("no_auth_user: a"), &with("no_auth_user: a\nmax_payload: 2MB"));
    assert_eq!(names(Some(&with("no_auth_user: a")), &with("no_auth_user: b")), ["no-auth-user"]);
    // Everybody could connect before.
    assert_none("", &with("no_auth_user: a"));
    for (block, loss) in [("websocket", "websocket-no-auth-user"), ("mqtt", "mqtt-no-auth-user")] {
        let before = with(&format!("{block} {{ port: 1 }}"));
        assert_eq!(names(Some(&before), &with(&format!("{block} {{ port: 1, no_auth_user: a }}"))), [loss]);
    }
}

#[test]
fn invariant_12_users_that_move_from_authorization_into_an_account_are_no_loss() {
    let users =
        "users: [ { user: a, password: b, permissions: { publish: x } }, { nkey: UA, permissions { sub: y } } ]";
    let authorization = format!("authorization {{ {users} }}");
    let accounts = format!("accounts {{ A {{ {users} }} }}");
    assert_none(&authorization, &accounts);
    assert_none("authorization { user: a, password: b }", "authorization { users: [ { user: a, password: c } ] }");
    // On the way back the account is gone, and its streams with it.
    assert_eq!(names(Some(&accounts), &authorization), ["account"]);
    let open = accounts.replace("permissions: { publish: x }", "clients: [ STANDARD ]");
    assert_eq!(names(Some(&authorization), &open), ["user-permissions"]);
}

#[test]
fn invariant_12_an_account_and_its_last_user_are_losses_of_their_own() {
    let account =
        |a: &str, b: &str| format!("accounts {{ A {{ {a} }}, B {{ {b} }}, $SYS {{ users: [ {{ user: s }} ] }} }}");
    let users = |name: &str| format!("users: [ {{ user: {name}, password: p }} ]");
    let both = account(&users("a"), &users("b"));
    assert_is(&["users"], &both, &account("users: []", &users("b")));
    assert_is(&["users"], &both, &account("users: $NONE", &users("b")));
    let without = both.replacen(&format!("A {{ {} }},", users("a")), "", 1);
    assert_is(&["account"], &both, &without);
    assert_none(&both, &account(&users("c"), &users("b")));
    // With users in the system account alone, everybody can connect, unless there is another account.
    assert_eq!(names(Some(&both), "accounts { $SYS { users: [ { user: s } ] } }"), ["authorization", "account"]);
    assert_eq!(names(Some(&both), &account("", "")), ["users"]);
    let authorization = "authorization { users: [ { user: x, password: p } ] }\n";
    assert_is(&["users"], &format!("{authorization}{both}"), &both);
}

#[test]
fn invariant_12_jetstream_of_an_account_is_a_loss_of_its_own() {
    let account =
        |more: &str| format!("jetstream {{}}\naccounts {{ A {{ users: [ {{ user: a, password: p }} ]\n{more} }} }}");
    for on in ["jetstream: enabled", "jetstream: true", "jetstream { max_mem: 1 }"] {
        for off in ["", "jetstream: disabled", "jetstream: false"] {
            assert_is(&["account-jetstream"], &account(on), &account(off));
        }
    }
}

#[test]
fn invariant_12_what_a_permission_closes_stays_closed() {
    let user = |permissions: &str| format!("authorization {{ users: [ {{ user: a, password: p\n{permissions} }} ] }}");
    for (before, after) in [
        ("permissions { publish: x }", ""),
        ("permission { pub: { allow: x } }", "permissions { pub: \">\" }"),
        ("authorization { sub: { deny: x } }", "permissions {}"),
        ("permissions { publish { allow: [ \">\" ], deny: x } }", "permissions { publish { allow: [ \">\" ] } }"),
        ("permissions { allow_responses: true }", "permissions { allow_responses: false }"),
        ("permissions { publish: x, subscribe: y }", "permissions { publish: x }"),
    ] {
        assert_is(&["user-permissions"], &user(before), &user(after));
    }
    for (before, after) in [
        ("permissions { publish: x }", "permissions { publish: [ x, y ] }"),
        ("permissions { sub { deny: [ x, y ] } }", "permission { subscribe { deny: y } }"),
        ("permissions { publish: x }", "authorization { publish: x, allow_responses: true }"),
    ] {
        assert_is(&["user-subjects"], &user(before), &user(after));
    }
    assert_is(&["user-permissions"], &user("permissions { publish: x }"), &user("permissions { publish: [] }"));
    assert_none(&user("permissions { publish: [ x, y ] }"), &user("permission { pub { allow: [ y, x, x ] } }"));
    assert_none(&user("permissions { publish { deny: x } }"), &user("permissions { publish: y }"));
    let default = "authorization { default_permissions { publish: x }, users: [ { user: a, password: p } ] }";
    assert_is(&["user-permissions"], default, &user(""));
    assert_none(default, &user("permissions { publish: x }"));
    let account = "accounts { A { default_permissions { publish: x }, users: [ { user: a, password: p } ] } }";
    assert_is(&["user-permissions"], account, &account.replace("default_permissions { publish: x },", ""));
    assert_is(&["user-subjects"], account, &account.replace("publish: x", "publish: [ x, \"y.>\" ]"));
}

#[test]
fn invariant_12_the_ways_of_a_user_to_connect_stay_closed() {
    let user = |more: &str| format!("authorization {{ users: [ {{ user: a, password: p\n{more} }} ] }}");
    for (before, after) in [
        ("clients: [ STANDARD ]", ""),
        ("allowed_connection_types: [ STANDARD ]", "connection_types: [ STANDARD, MQTT ]"),
        ("clients: [ STANDARD ]", "clients: []"),
        ("proxy_required: true", "proxy_required: false"),
    ] {
        assert_is(&["user-connections"], &user(before), &user(after));
    }
    assert_none(&user("clients: [ standard, MQTT ]"), &user("connection_types: [ mqtt, STANDARD ]"));
    let all = "authorization { proxy_required: true, users: [ { user: a, password: p } ] }";
    assert_is(&["user-connections"], all, &all.replace("proxy_required: true, ", ""));
}

#[test]
fn invariant_12_what_no_route_carries_stays_closed() {
    let cluster = |more: &str| format!("cluster {{ name: c\n{more} }}");
    for (before, after) in [
        ("permissions { import: a, export: b }", "permissions { import: a }"),
        ("permissions { import { deny: [ a, b ] } }", "permissions { import { deny: a } }"),
        ("authorization { permissions { import: a } }", ""),
    ] {
        assert_is(&["cluster-permissions"], &cluster(before), &cluster(after));
    }
    assert_none(
        &cluster("authorization { user: a, password: b, permissions { import: a } }"),
        &cluster("authorization { user: a, password: b }\npermissions { import: [ a ] }"),
    );
}

#[test]
fn invariant_12_a_lower_limit_is_a_loss_of_its_place() {
    let server = |limits: &str| format!("server_name: n\n{limits}");
    let jetstream = |limits: &str| format!("jetstream {{ store_dir: /a\n{limits} }}");
    let account = |limits: &str| format!("accounts {{ A {{ users: [ {{ user: a }} ]\n{limits} }} }}");
    let of = |limits: &str| account(&format!("limits {{ {limits} }}"));
    let of_jetstream = |limits: &str| account(&format!("jetstream {{ {limits} }}"));
    for (loss, before, after) in [
        ("server-limits", server("max_connections: 10"), server("max_conn: 9")),
        ("server-limits", server(""), server("max_connections: 100")),
        ("server-limits", server("max_connections: 0"), server("")),
        ("server-limits", server("max_payload: 8MB"), server("")),
        ("server-limits", server(""), server("max_subs: 5")),
        ("jetstream-limits", jetstream("max_file: 10G"), jetstream("max_file_store: \"9G\"")),
        ("jetstream-limits", jetstream("max_mem: \"2K\""), jetstream("max_mem: 1024")),
        ("account-limits", of("max_conn: 5"), of("max_connections: 4")),
        ("account-limits", of("max_payload: -1"), of("max_payload: 1024")),
        ("account-limits", account(""), of("max_leafs: 0")),
        ("account-jetstream-limits", of_jetstream(""), of_jetstream("max_streams: 1")),
        ("account-jetstream-limits", account("jetstream: enabled"), of_jetstream("max_mem: 0")),
        ("account-jetstream-limits", of_jetstream("disk: 2G"), of_jetstream("max_file: 1G")),
        ("account-jetstream-limits", of_jetstream("max_bytes: false"), of_jetstream("max_bytes_required: true")),
    ] {
        assert_is(&[loss], &before, &after);
    }
    for (one, other) in [
        (server("max_connections: 65536, max_payload: 1MB"), server("")),
        (server("max_connections: 0"), server("max_connections: -1")),
        // Nobody knows three quarters of what.
        (jetstream("max_file: 10G"), jetstream("")),
        (jetstream("max_mem: 1024"), jetstream("max_memory_store: \"1K\"")),
        (of_jetstream("max_streams: -1"), account("jetstream: true")),
        (of_jetstream("streams: 0"), of_jetstream("")),
    ] {
        assert_none(&one, &other);
        assert_none(&other, &one);
    }
}

#[test]
fn invariant_12_an_export_and_an_import_are_losses_of_their_own() {
    let accounts = |exports: &str, imports: &str| {
        format!("accounts {{ A {{ exports: [ {exports} ] }}, B {{ imports: [ {imports} ] }}, C {{}}, D {{}} }}")
    };
    let exports = |exports: &str| accounts(exports, "");
    for (before, after) in [
        ("{ stream: a }", ""),
        ("{ stream: a }", "{ service: a }"),
        ("{ service: \"a.>\" }", "{ service: \"a.*\" }"),
        ("{ stream: a, accounts: [ B, C ] }", "{ stream: a, accounts: [ B ] }"),
        ("{ stream: a }", "{ stream: a, accounts: [ B, C, D ] }"),
        ("{ service: \"a.*\", account_token_position: 2 }", "{ service: \"a.*\", accounts: [ B ] }"),
    ] {
        assert_eq!(names(Some(&exports(before)), &exports(after)), ["account-export"], "{before} -> {after}");
    }
    for (before, after) in [
        ("{ stream: a, accounts: [ B ] }", "{ stream: a }"),
        ("{ stream: a, accounts: [ B ] }", "{ stream: \">\", accounts: [] }"),
        ("{ service: \"a.*\", account_token_position: 2 }", "{ service: \"a.*\" }"),
    ] {
        assert_eq!(names(Some(&exports(before)), &exports(after)), ["private-export"], "{before} -> {after}");
    }
    for (before, after) in [
        ("{ stream: a }, { service: b }", "{ service: b }, { stream: a }"),
        ("{ stream: a.b }", "{ stream: \"a.>\" }"),
        ("{ stream: a, accounts: [ B ] }", "{ stream: a, accounts: [ C, B ] }"),
        (
            "{ stream: \"a.>\", accounts: [ B ] }, { stream: a.b }",
            "{ stream: a.b }, { stream: \"a.>\", accounts: [ B ] }",
        ),
        // The importer is gone, and an account that is gone is a loss of its own.
        ("{ stream: a, accounts: [ B, X ] }", "{ stream: a, accounts: [ B ] }"),
    ] {
        assert_none(&exports(before), &exports(after));
    }

    let imports = |imports: &str| accounts("{ stream: \">\" }", imports);
    let from = |subject: &str| format!("{{ stream {{ account: A, subject: \"{subject}\" }} }}");
    for (before, after) in [
        (from("a"), String::new()),
        (from("a.>"), from("a.*")),
        (from("a"), from("a").replace("} }", "}, to: b }")),
        (from("a"), from("a").replace("} }", "}, prefix: p }")),
        (from("a"), from("a").replace("stream", "service")),
        (from("a").replace("} }", "}, to: b }"), from("a").replace("} }", "}, to: c }")),
    ] {
        let (before, after) =
            (imports(&format!("{before}, {}", from("z"))), imports(&format!("{}, {after}", from("z"))));
        assert_eq!(names(Some(&before), &after), ["account-import"], "{before} -> {after}");
        assert_none(&after, &after);
    }
    assert_none(&imports(&from("a.b")), &imports(&from("a.*")));
    let (prefix, to) = (from("a").replace("} }", "}, prefix: p }"), from("a").replace("} }", "}, to: p.a }"));
    assert_none(&imports(&prefix), &imports(&to));
    assert_none(&imports(&to), &imports(&prefix.replace("prefix: p", "prefix: \"p.\"")));
    let gone = "accounts { B { imports: [] }, C {}, D {} }";
    assert_eq!(names(Some(&imports(&from("a"))), gone), ["account"]);
}

#[test]
fn invariant_12_a_user_keeps_the_need_for_a_password() {
    for (before, after) in [
        ("authorization { users: [ { user: a, password: p } ] }", "authorization { users: [ { user: a } ] }"),
        ("authorization { user: a, password: p }", "authorization { user: a, password: \"\" }"),
        (
            "accounts { A { users: [ { username: a, pass: p } ] } }",
            "accounts { A { users: [ { user: a, pass: \"\" } ] } }",
        ),
    ] {
        assert_is(&["user-password"], before, after);
    }
}

#[test]
fn invariant_12_users_of_a_listener_are_losses_of_their_own() {
    for (block, name, users) in [
        ("websocket", "websocket-authorization", "authorization { token: t }"),
        ("mqtt", "mqtt-authorization", "authentication { user: a, password: b }"),
        ("leafnodes", "leafnode-authorization", "authorization { users: [ { user: a, password: b } ] }"),
        ("leafnodes", "leafnode-authorization", "authorization { nkey: UA }"),
    ] {
        let with = format!("{block} {{ port: 1\n{users} }}");
        assert_is(&[name], &with, &format!("{block} {{ port: 1 }}"));
        assert_is(&[block], &with, "");
    }
}

#[test]
fn invariant_12_streams_stay_in_reach() {
    for (before, after) in [
        ("store_dir: /a", "store_dir: /b"),
        ("store: /a", "unique_tag: az"),
        ("store_dir: /a, key: k", "store_dir: /a"),
        ("store_dir: /a, key: k", "store_dir: /a, ek: other"),
        ("store_dir: /a, key: k, cipher: aes", "store_dir: /a, key: k"),
        ("store_dir: /a, tpm { keys_file: /t }", "store_dir: /a"),
    ] {
        let text = |jetstream| format!("jetstream {{ {jetstream} }}");
        assert_eq!(names(Some(&text(before)), &text(after)), ["jetstream-store"], "{before} -> {after}");
        assert_none(&text(before), &text(before));
    }
    assert_none("store_dir: /a/\njetstream: enabled", "jetstream { store_dir: /a }");
    assert_none("jetstream { key: old }", "jetstream { key: new, prev_key: old }");
    assert_none("jetstream { store_dir: /a }", "jetstream { store_dir: /a, key: k, cipher: aes }");
    // Off is a loss by another name, and a store of nothing is none.
    assert_eq!(names(Some("jetstream { store_dir: /a }"), "jetstream: off"), ["jetstream"]);
    assert_none("jetstream { store_dir: /a, enabled: false }", "jetstream { store_dir: /b }");
}

#[test]
fn invariant_12_an_included_file_can_take_protection_away() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("extra.conf"), "cluster { name: prod }").unwrap();
    let file = directory.path().join("nats-server.conf");
    let after = Facts::of(&crate::conf::read(&format!("{FULL}\ninclude extra.conf"), &file).unwrap()).unwrap();
    let names: Vec<_> = losses(Some(&facts(FULL)), &after).iter().map(|taken| taken.loss.to_string()).collect();
    assert_eq!(names, ["cluster-tls", "cluster-credential"]);
}

#[test]
fn invariant_12_tls_is_missed_at_the_first_commit_too() {
    assert_eq!(names(None, ""), ["tls", "cluster-tls"]);
    // A loss that was allowed once is not reported again at each change of a peer, nor is a protection that never
    // existed.
    assert_none("listen: 4222", "listen: 4223");
}

#[test]
fn a_list_of_certificates_is_tls_by_both_its_names_and_a_switch_that_is_off_takes_none_away() {
    for name in ["certs", "certificates"] {
        let text = format!("allow_non_tls: off\ntls {{ {name}: [ {{ cert_file: /c, key_file: /k }} ] }}");
        assert!(facts(&text).client_tls, "{text}");
    }
    assert!(!facts("tls { certs: [] }").client_tls);
}

#[test]
fn only_what_keeps_somebody_out_says_who_may_do_what() {
    for (text, is_one) in [
        ("authorization { timeout: 1 }", false),
        ("authorization { users: [] }", false),
        ("authorization { users: [ { user: a, password: b } ] }", true),
        ("authorization { user: a, password: b }", true),
        ("authorization { Token: $TOKEN }", true),
        ("authorization { auth_callout { issuer: A } }", true),
        ("accounts { A {} }", false),
        ("accounts: [ A ]", false),
        ("accounts { A {}, B { users: [ { nkey: U } ] } }", true),
        ("accounts { $SYS { users: [ { user: s } ] } }", false),
        ("accounts { SYS { users: [ { user: s } ] } }\nsystem_account: SYS", false),
        ("accounts { SYS { users: [ { user: s } ] } }\nsystem_account: SYS\nauthorization { timeout: 1 }", true),
        ("operator: /o.jwt", true),
    ] {
        let names = names(Some(text), "");
        assert_eq!(names.contains(&"authorization".to_owned()), is_one, "{text}: {names:?}");
    }
}

#[test]
fn two_spellings_of_a_block_are_refused() {
    let text = format!("{FULL}\nTLS {{}}");
    assert!(Facts::of(&crate::conf::read(&text, Path::new("/a.conf")).unwrap()).is_err());
}

#[test]
fn each_loss_has_one_name_on_the_command_line_and_on_the_wire() {
    let mut names = std::collections::BTreeSet::new();
    for loss in Loss::value_variants() {
        let name = loss.to_string();
        assert_eq!(serde_json::to_value(loss).unwrap(), serde_json::Value::from(name.clone()));
        assert!(names.insert(name));
    }
}

#[test]
fn a_password_is_in_no_debug_and_in_no_loss() {
    let text = "authorization { users: [ { user: a, password: hunter2 }, { nkey: hunter2 } ] }
        jetstream { key: hunter2, prev_key: hunter2 }
        leafnodes { port: 1, remotes: [ { url: \"nats://u:hunter2@hub\" } ], authorization { user: a, password: hunter2 } }
        cluster { name: c, authorization { user: a, password: hunter2 } }";
    let before = facts(text);
    let after = facts("accounts { B { users: [ { user: a } ] } }\njetstream {}\nleafnodes { port: 1 }");
    let losses = losses(Some(&before), &after);
    assert!(losses.len() > 3, "{losses:?}");
    assert!(!format!("{before:?}{losses:?}").contains("hunter2"));
}

#[test]
fn ten_thousand_users_are_compared_and_only_some_are_named() {
    let users = |permissions: &str| {
        let mut text = String::from("accounts { A { users: [\n");
        for number in 0..10_000 {
            text.extend(["{ user: user", &number.to_string(), ", password: p", permissions, " }\n"]);
        }
        text + "] } }"
    };
    let (before, after) = (facts(&users(", permissions: { publish: x }")), facts(&users("")));
    let losses = losses(Some(&before), &after);
    assert_eq!(losses.len(), 1);
    assert!(losses[0].what.len() < 500 && losses[0].what.ends_with("more of this kind"), "{}", losses[0].what);
}

/// Any tree of the names that losses look at.
fn tree() -> impl Strategy<Value = Map> {
    let origin = || Origin { source: Arc::new(Source::Template(None)), line: 0 };
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::Bool),
        (-1_i64..9000).prop_map(Value::Integer),
        prop::sample::select(vec!["", "a", ">", "enabled", "/s/generations/1/cert.pem", "wss://h", "0.0.0.0:1"])
            .prop_map(Value::text),
    ];
    let names = prop::sample::select(vec![
        "tls",
        "cluster",
        "gateway",
        "leafnodes",
        "remotes",
        "gateways",
        "websocket",
        "mqtt",
        "port",
        "listen",
        "http",
        "https",
        "cert_file",
        "key_file",
        "ca_file",
        "verify",
        "verify_and_map",
        "insecure",
        "pinned_certs",
        "certs",
        "authorization",
        "accounts",
        "users",
        "user",
        "password",
        "nkey",
        "token",
        "permissions",
        "publish",
        "deny",
        "allow",
        "no_auth_user",
        "jetstream",
        "store_dir",
        "key",
        "cipher",
        "name",
        "url",
        "operator",
        "system_account",
        "exports",
        "imports",
        "stream",
        "service",
        "account",
        "subject",
        "limits",
        "max_connections",
        "clients",
        "deny_imports",
    ]);
    let value = leaf.prop_recursive(5, 60, 6, move |inner| {
        let entry = inner.prop_map(move |value| Entry::new(value, origin()));
        prop_oneof![
            prop::collection::vec(entry.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec((names.clone(), entry), 0..6).prop_map(|entries| {
                let mut map = Map::default();
                for (name, entry) in entries {
                    map.insert(name, entry);
                }
                Value::Map(map)
            }),
        ]
    });
    value.prop_map(|value| value.as_map().cloned().unwrap_or_default())
}

proptest! {
    #[test]
    fn invariant_12_a_tree_loses_nothing_to_itself(tree in tree()) {
        if let Ok(facts) = Facts::of(&tree) {
            prop_assert_eq!(losses(Some(&facts), &facts), []);
        }
    }

    #[test]
    fn invariant_12_any_two_trees_can_be_compared(before in tree(), after in tree()) {
        if let (Ok(before), Ok(after)) = (Facts::of(&before), Facts::of(&after)) {
            let losses = losses(Some(&before), &after);
            prop_assert!(losses.len() <= Loss::value_variants().len());
        }
    }
}

/// The agent's user comes with an upgrade and goes with `system = "off"`. Neither is anybody's loss.
#[test]
fn the_agents_own_user_is_neither_a_protection_nor_a_capability() {
    for text in [
        "",
        "authorization { users: [ { user: a, password: b } ] }",
        "accounts { A { users: [ { user: a, password: b } ] } }",
        "accounts { \"$SYS\" { users: [ { user: s, password: s } ] } }",
        "accounts { A { users: [ { user: a } ] }, SYS { } }\nsystem_account: SYS",
    ] {
        let mut tree = crate::conf::read(text, Path::new("/nats-server.conf")).unwrap();
        let without = Facts::of(&tree).unwrap();
        crate::conf::system::add(&mut tree, "UKEY", None);
        let written = crate::conf::render::Rendered::from_text(crate::conf::write::text(&tree));
        let committed = written.tree(Path::new("/nats-server.conf")).unwrap();
        for with in [Facts::of(&tree).unwrap(), Facts::of(&committed).unwrap()] {
            assert_eq!(with, without, "{text}");
        }
    }
    // The agent's user doesn't stand for the users that are gone.
    let mut open = Map::default();
    crate::conf::system::add(&mut open, "UKEY", None);
    let found =
        losses(Some(&facts("authorization { users: [ { user: a, password: b } ] }")), &Facts::of(&open).unwrap());
    assert_eq!(found.iter().map(|taken| taken.loss).collect::<Vec<_>>(), [Loss::Authorization]);
}
