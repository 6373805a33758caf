//! Each rule of the rewriting.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::conf::write;

fn stage() -> Stage {
    Stage::new(Surroundings {
        directory: "/trial".into(),
        hole: 9,
        account_server: ([127, 0, 0, 1], 80).into(),
        free: vec![7001, 7002, 7003],
        storage: None,
        operators: BTreeMap::from([(
            "op.jwt".to_owned(),
            format!("-----BEGIN-----\n{}\n------END------\n", operator()),
        )]),
    })
}

/// A JWT with the claims of an operator. Nobody checks its signature here.
fn operator() -> String {
    let claims = r#"{"nats":{"account_server_url":"https://accounts.example.com/jwt/v1"}}"#;
    format!("eyJ0eXAiOiJKV1QifQ.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
}

fn tree(text: &str) -> Map {
    crate::conf::read(text, Path::new("test.conf")).unwrap()
}

/// The lines of a tree that stand for settings, without indentation.
fn lines(tree: &Map) -> Vec<String> {
    let text = write::text(tree);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// What a trial has in the place of a text.
fn rewritten(text: &str) -> Vec<String> {
    let lines = lines(&rewrite(&tree(text), &mut stage()));
    lines.into_iter().filter(|line| line != "ocsp: false" && line != "listen: \"127.0.0.1:-1\"").collect()
}

/// What a trial reloads to.
fn reloaded(from: &str, to: &str) -> Vec<String> {
    let mut stage = stage();
    rewrite(&tree(from), &mut stage);
    let lines = lines(&rewrite(&tree(to), &mut stage));
    lines.into_iter().filter(|line| line != "ocsp: false").collect()
}

#[test]
fn the_client_listener_is_on_loopback_even_where_none_is_set() {
    for text in ["", "port: 4222", "HOST: 10.0.0.1\nPort: 1", "net: h", "listen: 0.0.0.0:4222", "listen: 7"] {
        assert_eq!(lines(&rewrite(&tree(text), &mut stage())), ["listen: \"127.0.0.1:-1\"", "ocsp: false"]);
    }
}

#[test]
fn monitoring_keeps_its_form_and_an_absent_or_closed_port_stays_so() {
    assert_eq!(rewritten("http: 0.0.0.0:8222\nhttps_port: 8443"), ["http: \"127.0.0.1:-1\"", "https_port: -1"]);
    assert_eq!(rewritten("monitor_port: 8222\nprof_port: 6"), ["monitor_port: -1", "prof_port: -1"]);
    assert_eq!(rewritten("http_port: 0"), ["http_port: 0"]);
}

#[test]
fn a_block_listens_only_where_it_listened_before() {
    for block in ["cluster", "gateway", "leafnodes", "leaf", "websocket", "ws", "mqtt"] {
        let moved = tree(&format!("{block} {{ host: 10.0.0.1, port: 5000, name: n }}"));
        let trial = rewrite(&moved, &mut stage());
        let settings: Vec<_> = super::block(&trial, &[block]).unwrap().iter().map(|(name, _)| name).collect();
        assert_eq!(settings, ["listen", "name"], "{block}");
        let silent = tree(&format!("{block} {{ host: 10.0.0.1, name: n }}"));
        let trial = rewrite(&silent, &mut stage());
        assert_eq!(super::block(&trial, &[block]), super::block(&silent, &[block]), "{block}");
    }
}

#[test]
fn routes_keep_their_number_and_their_credentials_and_lead_nowhere() {
    let routes =
        "cluster { routes: [\"nats://u:p@10.0.0.1:6222\", \"nats://10.0.0.2:6222\", \"nats://10.0.0.1:6222\"] }";
    assert_eq!(
        rewritten(routes),
        [
            "cluster {",
            "routes: [",
            "\"nats://u:p@127.1.0.0:9\"",
            "\"nats://127.1.0.1:9\"",
            "\"nats://127.1.0.0:9\"",
            "]",
            "}",
        ]
    );
    assert_eq!(rewritten("cluster { routes: [] }"), ["cluster {", "routes: [", "]", "}"]);
}

#[test]
fn remotes_of_gateways_and_leaf_nodes_lead_nowhere() {
    let trial =
        rewritten("gateway { gateways: [ { name: B, url: \"nats://b:7222\" }, { name: C, urls: [\"nats://c:1\"] } ] }")
            .join(" ");
    assert!(trial.contains("name: \"B\"") && trial.contains("url: \"nats://127.1.0.0:9\""), "{trial}");
    assert!(trial.contains("\"nats://127.1.0.1:9\"") && !trial.contains("//b") && !trial.contains("//c"), "{trial}");
    let trial = rewritten(
        "leaf { remotes: [ { urls: [\"wss://t@hub:443/leaf?x\"], account: A, proxy: { url: \"http://p:1\" } } ] }",
    );
    let trial = trial.join(" ");
    assert!(trial.contains("\"wss://t@127.1.0.0:9/leaf?x\"") && trial.contains("account: \"A\""), "{trial}");
    assert!(!trial.contains("proxy"), "{trial}");
}

#[test]
fn the_store_of_jetstream_is_the_trials_in_every_form() {
    for text in ["jetstream: true", "jetstream: enabled", "jetstream {}", "jetstream { enabled: false }"] {
        let trial = rewritten(text).join(" ");
        assert!(trial.contains("store_dir: \"/trial/store_dir-0\""), "{text}: {trial}");
    }
    assert_eq!(rewritten("jetstream: disabled"), ["jetstream: \"disabled\""]);
    assert_eq!(
        rewritten("jetstream { store: \"/d\", max_mem: 1 }")[1..3],
        ["max_mem: 1", "store: \"/trial/store_dir-0\""]
    );
    let outside = rewritten("jetstream: true\nstore_dir: \"/d\"");
    assert_eq!(outside, ["store_dir: \"/trial/store_dir-0\"", "jetstream {", "}"]);
}

#[test]
fn the_storage_is_that_of_the_real_disk_unless_it_is_limited() {
    let mut stage = stage();
    stage.around.storage = Some(77);
    for (text, max_file) in [("jetstream: true", 77), ("jetstream {}", 77), ("jetstream { MAX_FILE: 5 }", 5)] {
        let trial = rewrite(&tree(text), &mut stage);
        let set = find(super::block(&trial, &["jetstream"]).unwrap(), &MAX_FILE).unwrap();
        assert_eq!(set.value, Value::Integer(max_file), "{text}");
    }
    for (text, store) in
        [("jetstream { store: \"/d\" }", Some("/d")), ("jetstream: true\nstoredir: \"/e\"", Some("/e"))]
    {
        assert_eq!(store_without_limit(&tree(text)), store);
    }
    for text in ["store_dir: \"/d\"", "jetstream: true", "jetstream { store_dir: \"/d\", max_file: 1 }"] {
        assert_eq!(store_without_limit(&tree(text)), None, "{text}");
    }
}

#[test]
fn a_tpm_is_not_touched_and_its_key_is_a_plain_one() {
    let trial = rewritten("jetstream { tpm { keys_file: k, encryption_password: p, cipher: aes } }").join(" ");
    assert!(trial.contains("key: \"trial-0\"") && trial.contains("cipher: \"aes\""), "{trial}");
    assert!(!trial.contains("tpm"), "{trial}");
}

#[test]
fn no_file_outside_of_the_trial_is_written() {
    let text = "log_file: \"/l\"\nsyslog: true\nremote_syslog: \"udp://h:1\"\ndebug: true\ntrace: true\nlogfile_size_limit: 9\n\
                PIDFILE: \"/run/p\"\nports_file_dir: \"/run\"";
    assert_eq!(
        rewritten(text),
        ["PIDFILE: \"/trial/pid_file-0\"", "logfile_size_limit: 9", "ports_file_dir: \"/trial/ports_file_dir-1\"",]
    );
}

#[test]
fn account_servers_have_a_stand_in() {
    assert_eq!(rewritten("resolver: MEMORY"), ["resolver: \"MEMORY\""]);
    let stands_in = "resolver: \"URL(http://127.0.0.1:80/0/)\"";
    assert!(rewritten("resolver: \"URL(https://a.example.com/jwt/v1/accounts/)\"").contains(&stands_in.to_owned()));
    for operator in [operator(), "op.jwt".to_owned()] {
        assert!(rewritten(&format!("operator: \"{operator}\"")).contains(&stands_in.to_owned()));
        assert!(!rewritten(&format!("operator: \"{operator}\"\nresolver: MEMORY")).contains(&stands_in.to_owned()));
    }
    let trial = rewritten("resolver { type: full, dir: \"/var/jwt\" }").join(" ");
    assert!(trial.contains("dir: \"/trial/resolver-0\""), "{trial}");
}

#[test]
fn no_ocsp_responder_is_asked_and_no_cache_is_in_the_working_directory() {
    let trial = lines(&rewrite(&tree("ocsp { mode: always }\ntls { ocsp_peer: true }"), &mut stage())).join(" ");
    assert!(trial.contains("ocsp: false") && !trial.contains("always"), "{trial}");
    assert!(trial.contains("local_store: \"/trial/ocsp_cache-0\""), "{trial}");
    assert_eq!(rewritten("ocsp_cache: false"), ["ocsp_cache: false"]);
}

#[test]
fn a_reload_keeps_what_is_equal_and_changes_what_changes() {
    let (same, changed) = ("port: 4222", "listen: 0.0.0.0:4223");
    assert_eq!(reloaded(same, "listen: 0.0.0.0:4222"), ["listen: \"127.0.0.1:-1\""]);
    assert_eq!(reloaded(same, changed), ["listen: \"127.0.0.1:7001\""]);
    assert_eq!(reloaded(same, "host: 10.0.0.1"), ["listen: \"127.0.0.2:-1\""]);
    // nats-server would replace -1 by the old port, 0.
    let added = reloaded("", "leafnodes { port: 7422 }\nhttp_port: 8222").join(" ");
    assert!(added.contains("listen: \"127.0.0.1:7002\"") && added.contains("http_port: 7001"), "{added}");
    let stores = ["jetstream { store_dir: \"/a\" }", "jetstream { store_dir: \"/b\" }", "jetstream {}"];
    for from in stores {
        for to in stores {
            let mut stage = stage();
            let pair = (rewrite(&tree(from), &mut stage), rewrite(&tree(to), &mut stage));
            assert_eq!(pair.0 == pair.1, from == to, "{from} -> {to}");
        }
    }
}

#[test]
fn a_message_names_the_values_of_the_settings() {
    let mut stage = stage();
    rewrite(&tree("port: 4222\npid_file: \"/run/p\"\ncluster { routes: [\"nats://a:1\"] }\nhttp: 9"), &mut stage);
    rewrite(&tree("port: 5222\nhost: 127.0.0.1\nhttp: 0"), &mut stage);
    let line = "[INF] Listening for client connections on 127.0.0.1:41001";
    let chosen = stage.chosen_port(line);
    assert_eq!(chosen, Some(("41001".to_owned(), "4222".to_owned())));
    let chosen = chosen.into_iter().collect();
    for (said, original) in [
        ("no /trial/pid_file-0, 127.1.0.0:9, 17001 or 7001", "no /run/p, a:1, 17001 or 5222"),
        (
            "config reload not supported for Port: old=41001, new=7001",
            "config reload not supported for Port: old=4222, new=5222",
        ),
        // 127.0.0.1 is both a stand-in and a value, so each address is replaced only once.
        (
            "config reload not supported for Host: old=127.0.0.1, new=127.0.0.2",
            "config reload not supported for Host: old=0.0.0.0, new=127.0.0.1",
        ),
        (
            "config reload not supported for HTTPPort: old=-1, new=0",
            "config reload not supported for HTTPPort: old=9, new=0",
        ),
    ] {
        assert_eq!(stage.original(said, &chosen), original);
    }
}

fn urls() -> impl Strategy<Value = String> {
    "(nats|tls|ws|nats-route)?:?//([a-z0-9:%]{0,8}@)?[a-z0-9.\\[\\]:-]{0,12}([/?#][a-z@:/]{0,8})?"
}

proptest! {
    /// Nothing outside is dialled, whatever a URL is made of.
    #[test]
    fn no_place_of_a_url_survives(url in urls()) {
        let mut value = Value::text(url.as_str());
        rewrite_url(&mut value, &mut stage());
        let text = value.as_text().unwrap();
        let (_, rest) = text.split_once("//").unwrap();
        let authority = rest.split(['/', '?', '#']).next().unwrap();
        let place = authority.rsplit('@').next().unwrap();
        prop_assert!(place.is_empty() || place == "127.1.0.0:9", "{url} -> {text}");
    }

    /// The real server keeps its ports.
    #[test]
    fn a_port_is_never_one_of_the_settings(port in 1_i64..65536, other in 1_i64..65536) {
        let text = format!("port: {port}\nhttp: {other}\ncluster {{ port: {port} }}");
        for endpoint in endpoints(&rewrite(&tree(&text), &mut stage())) {
            prop_assert_eq!((endpoint.host.as_str(), endpoint.port), ("127.0.0.1", -1));
        }
    }
}
