//! Kinds of change of settings, and mistakes in settings. `@0` to `@9` are ports, `%` is a directory.

use self::Expected::{Kills, NeedsRestart, Reloadable, WontStart};

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Reloadable,
    NeedsRestart,
    Kills,
    WontStart,
}

/// The beginning of all settings.
pub(super) const BASE: &str = "max_connections: 1000\nserver_name: n0";

/// The settings with a client listener. A kind with its own listener has only that listener.
pub(super) fn with_one_listen(settings: &str) -> String {
    let has_own = settings.lines().any(|line| line.starts_with("listen:"));
    if has_own { settings.to_owned() } else { format!("listen: \"127.0.0.1:@0\"\n{settings}") }
}

/// A server with every block.
pub(super) const EVERYTHING: &str = "server_name: n0\nlisten: \"127.0.0.1:@0\"\nhttp: \"127.0.0.1:@1\"\nprof_port: @2\n\
    TLS:a\npid_file: \"%/pid\"\nports_file_dir: \"%\"\nserver_tags: [\"az:a\"]\n\
    cluster { name: c, listen: \"127.0.0.1:@3\", pool_size: 3, authorization { user: r, password: route-password }, TLS:a\n\
    routes: [\"nats://r:route-password@10.255.255.1:6222\", \"nats://r:route-password@10.255.255.2:6222\"] }\n\
    gateway { name: c, listen: \"127.0.0.1:@4\", gateways: [ { name: d, urls: [\"nats://10.255.255.3:7222\"] } ] }\n\
    leafnodes { listen: \"127.0.0.1:@5\", remotes: [ { url: \"nats://10.255.255.4:7422\", account: A } ] }\n\
    websocket { listen: \"127.0.0.1:@6\", TLS:a }\nmqtt { listen: \"127.0.0.1:@7\", TLS:a }\n\
    jetstream { store_dir: \"%/js\", max_mem: 17592186044416, max_file: 17592186044416, unique_tag: \"az:\" }\n\
    accounts { SYS { users: [ { user: s, password: p } ] }, A { jetstream: enabled, users: [ { user: a, password: p } ] } }\n\
    system_account: SYS\nlogfile_size_limit: 1000000";

type Kind = (&'static str, &'static str, &'static str, Option<Expected>);

const ROUTE: &str = "cluster { name: c, listen: \"127.0.0.1:@1\", routes: [\"nats://127.0.0.1:@9\"] }\njetstream { store_dir: \"%/js\" }";
const TLS: &str = "TLS:a";

/// Name, settings before, settings after, and the outcome on every version. Without an outcome the versions differ, and
/// the trial must only agree with the real server.
pub(super) const KINDS: &[Kind] = &[
    ("client port", "", "listen: \"127.0.0.1:@1\"", Some(NeedsRestart)),
    ("client host", "", "listen: \"127.0.0.2:@0\"", Some(NeedsRestart)),
    ("http added", "", "http: \"127.0.0.1:@1\"", Some(NeedsRestart)),
    ("http removed", "http: \"127.0.0.1:@1\"", "", Some(NeedsRestart)),
    ("http port", "http: \"127.0.0.1:@1\"", "http: \"127.0.0.1:@2\"", Some(NeedsRestart)),
    ("http by another name", "http: \"127.0.0.1:@1\"", "http_port: @1", Some(Reloadable)),
    ("prof_port", "", "prof_port: @1", Some(NeedsRestart)),
    ("leafnodes added", "", "leafnodes { listen: \"127.0.0.1:@1\" }", Some(NeedsRestart)),
    ("leafnodes removed", "leafnodes { listen: \"127.0.0.1:@1\" }", "", Some(NeedsRestart)),
    ("leafnodes port", "leafnodes { port: @1 }", "leafnodes { port: @2 }", Some(NeedsRestart)),
    (
        "leafnodes authorization",
        "leafnodes { port: @1 }",
        "leafnodes { port: @1, authorization { user: u, password: p } }",
        Some(NeedsRestart),
    ),
    ("leaf remote added", "leafnodes {}", "leafnodes { remotes: [ { url: \"nats://127.0.0.1:@9\" } ] }", None),
    (
        "leaf remote changed",
        "leafnodes { remotes: [ { url: \"nats://127.0.0.1:@9\" } ] }",
        "leafnodes { remotes: [ { url: \"nats://127.0.0.1:@8\" } ] }",
        None,
    ),
    ("gateway added", "", "gateway { name: A, port: @1 }", Some(NeedsRestart)),
    (
        "gateway remote",
        "gateway { name: A, port: @1 }",
        "gateway { name: A, port: @1, gateways: [ { name: B, url: \"nats://127.0.0.1:@9\" } ] }",
        Some(NeedsRestart),
    ),
    ("websocket added", "", "websocket { port: @1, no_tls: true }", Some(NeedsRestart)),
    ("websocket removed", "websocket { port: @1, no_tls: true }", "", Some(NeedsRestart)),
    (
        "websocket port",
        "websocket { port: @1, no_tls: true }",
        "websocket { port: @2, no_tls: true }",
        Some(NeedsRestart),
    ),
    ("cluster added", "", "cluster { name: c, port: @1 }", Some(NeedsRestart)),
    ("cluster removed", "cluster { name: c, port: @1 }", "", Some(NeedsRestart)),
    ("cluster port", "cluster { name: c, port: @1 }", "cluster { name: c, port: @2 }", Some(NeedsRestart)),
    (
        "cluster host",
        "cluster { name: c, listen: \"127.0.0.1:@1\" }",
        "cluster { name: c, listen: \"127.0.0.2:@1\" }",
        Some(NeedsRestart),
    ),
    ("cluster name", "cluster { name: c, port: @1 }", "cluster { name: d, port: @1 }", Some(Reloadable)),
    ("cluster pool", "cluster { name: c, port: @1 }", "cluster { name: c, port: @1, pool_size: 5 }", Some(Reloadable)),
    (
        "cluster authorization",
        "cluster { name: c, port: @1 }",
        "cluster { name: c, port: @1, authorization { user: u, password: p } }",
        Some(Reloadable),
    ),
    ("cluster tls", "cluster { name: c, port: @1, TLS:a }", "cluster { name: c, port: @1, TLS:b }", Some(Reloadable)),
    (
        "cluster advertise",
        "cluster { name: c, port: @1 }",
        "cluster { name: c, port: @1, no_advertise: true }",
        Some(Reloadable),
    ),
    (
        "routes added",
        "cluster { name: c, port: @1 }",
        "cluster { name: c, port: @1, routes: [\"nats://127.0.0.1:@9\"] }",
        Some(Reloadable),
    ),
    (
        "routes changed",
        "cluster { name: c, port: @1, routes: [\"nats://127.0.0.1:@9\"] }",
        "cluster { name: c, port: @1, routes: [\"nats://127.0.0.1:@8\"] }",
        Some(Reloadable),
    ),
    (
        "mqtt added",
        "jetstream { store_dir: \"%/js\" }",
        "jetstream { store_dir: \"%/js\" }\nmqtt { port: @1 }",
        Some(NeedsRestart),
    ),
    (
        "mqtt removed",
        "jetstream { store_dir: \"%/js\" }\nmqtt { port: @1 }",
        "jetstream { store_dir: \"%/js\" }",
        Some(NeedsRestart),
    ),
    ("jetstream added", "", "jetstream { store_dir: \"%/js\" }", Some(Reloadable)),
    ("jetstream removed", "jetstream { store_dir: \"%/js\" }", "", Some(Reloadable)),
    ("store_dir", "jetstream { store_dir: \"%/js\" }", "jetstream { store_dir: \"%/js2\" }", Some(NeedsRestart)),
    ("store_dir unset", "jetstream { store_dir: \"%/js\" }", "jetstream: true", Some(NeedsRestart)),
    (
        "max_mem down",
        "jetstream { store_dir: \"%/js\", max_mem: 2000000, max_file: 2000000 }",
        "jetstream { store_dir: \"%/js\", max_mem: 1000000, max_file: 2000000 }",
        Some(NeedsRestart),
    ),
    (
        "max_file up",
        "jetstream { store_dir: \"%/js\", max_mem: 1000000, max_file: 1000000 }",
        "jetstream { store_dir: \"%/js\", max_mem: 1000000, max_file: 2000000 }",
        None,
    ),
    (
        "js domain",
        "jetstream { store_dir: \"%/js\" }",
        "jetstream { store_dir: \"%/js\", domain: d }",
        Some(NeedsRestart),
    ),
    (
        "js key",
        "jetstream { store_dir: \"%/js\" }",
        "jetstream { store_dir: \"%/js\", key: abcdefgh }",
        Some(NeedsRestart),
    ),
    (
        "js sync_interval",
        "jetstream { store_dir: \"%/js\" }",
        "jetstream { store_dir: \"%/js\", sync_interval: 10s }",
        Some(NeedsRestart),
    ),
    (
        "js unique_tag",
        "jetstream { store_dir: \"%/js\" }",
        "jetstream { store_dir: \"%/js\", unique_tag: az }",
        Some(NeedsRestart),
    ),
    (
        "max_file set",
        "jetstream { store_dir: \"%/js\" }",
        "jetstream { store_dir: \"%/js\", max_file: 9000000000000000 }",
        Some(NeedsRestart),
    ),
    (
        "account's limit beside none of the server",
        "jetstream { store_dir: \"%/js\" }",
        "jetstream { store_dir: \"%/js\" }\naccounts { A { jetstream { max_mem: 1000000000, max_file: 1000 } } }",
        Some(Reloadable),
    ),
    (
        "js limits",
        "jetstream { store_dir: \"%/js\" }",
        "jetstream { store_dir: \"%/js\", limits { max_ack_pending: 10 } }",
        None,
    ),
    (
        "routes emptied with jetstream",
        ROUTE,
        "cluster { name: c, listen: \"127.0.0.1:@1\", routes: [] }\njetstream { store_dir: \"%/js\" }",
        Some(WontStart),
    ),
    (
        "jetstream in a cluster without routes",
        "cluster { name: c, port: @1 }",
        "cluster { name: c, port: @1 }\njetstream { store_dir: \"%/js\" }",
        Some(WontStart),
    ),
    (
        "account's limit over the server's",
        "jetstream { store_dir: \"%/js\", max_mem: 1000000, max_file: 1000000 }",
        "jetstream { store_dir: \"%/js\", max_mem: 1000000, max_file: 1000000 }\naccounts { A { jetstream { max_mem: 9000000, max_file: 1000000 } } }",
        Some(WontStart),
    ),
    ("max_payload above max_pending", "", "max_payload: 60000000\nmax_pending: 50000000", Some(WontStart)),
    ("undefined system account", "", "system_account: NONE", Some(WontStart)),
    ("lame_duck_duration", "", "lame_duck_duration: 60s", Some(NeedsRestart)),
    ("max_pending", "", "max_pending: 50000000", Some(NeedsRestart)),
    ("max_subscriptions", "", "max_subscriptions: 10", Some(NeedsRestart)),
    ("max_closed_clients", "", "max_closed_clients: 10", Some(NeedsRestart)),
    ("no_header_support", "", "no_header_support: true", Some(NeedsRestart)),
    (
        "system_account",
        "accounts { S { users: [ { user: s, password: p } ] } }",
        "accounts { S { users: [ { user: s, password: p } ] } }\nsystem_account: S",
        Some(NeedsRestart),
    ),
    (
        "no_auth_user",
        "authorization { users: [ { user: u, password: p } ] }",
        "authorization { users: [ { user: u, password: p } ] }\nno_auth_user: u",
        Some(NeedsRestart),
    ),
    ("logfile_size_limit", "", "logfile_size_limit: 1000000", Some(NeedsRestart)),
    ("allow_non_tls", TLS, "TLS:a\nallow_non_tls: true", Some(NeedsRestart)),
    ("tls added", "", "TLS:a", Some(Reloadable)),
    ("tls changed", "TLS:a", "TLS:b", Some(Reloadable)),
    ("tls removed", "TLS:a", "", Some(Reloadable)),
    ("users added", "", "authorization { users: [ { user: u, password: p } ] }", Some(Reloadable)),
    ("users removed", "authorization { users: [ { user: u, password: p } ] }", "", Some(Reloadable)),
    ("accounts added", "", "accounts { A { users: [ { user: u, password: p } ] } }", Some(Reloadable)),
    ("pid_file", "", "pid_file: \"%/pid\"", Some(Reloadable)),
    ("max_payload", "", "max_payload: 1000", Some(Reloadable)),
    ("max_control_line", "", "max_control_line: 2000", Some(Reloadable)),
    ("ping_interval", "", "ping_interval: 10s", Some(Reloadable)),
    ("write_deadline", "", "write_deadline: 5s", Some(Reloadable)),
    ("mappings", "", "mappings { a: b }", Some(Reloadable)),
    ("server_tags", "", "server_tags: [\"az:a\"]", Some(Reloadable)),
    ("client_advertise", "", "client_advertise: \"example.com:4222\"", Some(Reloadable)),
    ("debug", "", "debug: true", Some(Reloadable)),
    ("logtime", "", "logtime: false", Some(Reloadable)),
    ("server_metadata", "", "server_metadata { a: b }", None),
    ("proxy_protocol", "", "proxy_protocol: true", None),
    ("log_file without its directory", "", "log_file: \"%/none/log\"", Some(Kills)),
    ("log_file is a directory", "", "log_file: \"%\"", Some(Kills)),
    ("remote syslog that is dead", "", "remote_syslog: \"tcp://127.0.0.1:@9\"", Some(Kills)),
    ("remote syslog of no kind", "", "remote_syslog: \"xx://127.0.0.1:@9\"", Some(Kills)),
    // The machine of a test has a syslog or has none.
    ("syslog", "", "syslog: true", None),
    ("pid_file without its directory", "", "pid_file: \"%/none/pid\"", Some(WontStart)),
    ("unknown setting", "", "max_payloads: 1", Some(WontStart)),
];

/// Mistakes that `nats-server -t` accepts, and words of each message.
pub(super) const START_MISTAKES: &[(&str, &str, &str)] = &[
    (
        "leafnodes and gateway without a system account",
        "no_system_account: true\nleafnodes { port: @2 }\ngateway { name: A, port: @3 }",
        "system account",
    ),
    (
        "gateway of another name than the cluster",
        "cluster { name: c, port: @2 }\ngateway { name: A, port: @3 }",
        "cluster",
    ),
    ("https beside http", "TLS:a\nhttp_port: @2\nhttps_port: @3", "can't specify both HTTP"),
    ("undefined system account", "system_account: NONE", "system account"),
    (
        "max_payload above max_pending",
        "max_payload: 60000000\nmax_pending: 50000000",
        "max_payload (60000000) cannot be higher",
    ),
    ("lame duck grace above its duration", "lame_duck_duration: 30s\nlame_duck_grace_period: 31s", "lame duck"),
    ("websocket without tls", "websocket { port: @2 }", "websocket requires TLS configuration"),
    ("port in use", "listen: \"127.0.0.1:@1\"", "another process uses 127.0.0.1:"),
    ("route port in use", "cluster { name: c, listen: \"127.0.0.1:@1\" }", "another process uses 127.0.0.1:"),
];
