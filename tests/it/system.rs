//! The agent's user of the system account: where it may stand, measured with real nats-servers.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use harness::cluster::Node;
use harness::loopback::Block;
use harness::nats_server::{Launch, NatsServer, monitor};
use harness::nodes::{Nodes, set};
use harness::process::tail;
use harness::{eventually, tools};
use nats_tls_agent::conf::listeners::First;
use nats_tls_agent::conf::render::Rendered;
use nats_tls_agent::conf::system::{Obstacle, Others, Placement, add, disconnects, has_own};
use nats_tls_agent::conf::tree::Map;
use nats_tls_agent::conf::write;
use nats_tls_agent::config::Config;
use nats_tls_agent::server::system::{Answer, Fault, SystemConnection, SystemError};
use nats_tls_agent::state::generation::Generations;
use nix::sys::signal::Signal;
use nkeys::KeyPair;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::AGENT;
use crate::rotation::{assert_nothing_lost, status_with, traffic};

const SOON: Duration = Duration::from_secs(10);

/// A user's public key that nobody has the seed of.
const KEY: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";

/// A nats-server without TLS, and its configuration.
struct Bench {
    directory: tempfile::TempDir,
    block: Block,
    server: NatsServer,
}

impl Bench {
    async fn start(version: &str, settings: &str) -> Self {
        let (directory, block) = (tempfile::tempdir().unwrap(), Block::reserve().unwrap());
        let path = |name: &str| directory.path().join(name);
        let address = |index| SocketAddr::from(([127, 0, 0, 1], block.port(index)));
        let launch = Launch {
            binary: tools::nats_server(version).unwrap(),
            config: path("nats.conf"),
            pid_file: path("pid"),
            client: address(0),
            monitor: address(1),
            log: path("log"),
            arguments: Vec::new(),
        };
        let text = text(settings, directory.path(), &block);
        std::fs::write(&launch.config, text).unwrap();
        let server = NatsServer::start(launch).await.unwrap();
        Self { directory, block, server }
    }

    fn tree(&self, settings: &str) -> Map {
        let text = text(settings, self.directory.path(), &self.block);
        Rendered::from_text(text).tree(&self.server.launch().config).unwrap()
    }

    /// Loads settings by a signal, and returns what nats-server says.
    async fn load(&self, text: &str) -> String {
        let log = &self.server.launch().log;
        let before = std::fs::read_to_string(log).unwrap().len();
        std::fs::write(&self.server.launch().config, text).unwrap();
        self.server.reload().unwrap();
        let said = eventually("the reload", SOON, || async {
            let log = std::fs::read_to_string(log).unwrap();
            let mut lines = log[before..].lines();
            lines
                .find(|line| line.contains("Failed to reload") || line.contains("Reloaded server configuration"))
                .map(str::to_owned)
                .ok_or(log.clone())
        });
        said.await.unwrap()
    }

    async fn client(&self, kind: Client) -> Result<Raw, String> {
        Raw::connect(self.server.launch().client, kind).await
    }
}

/// The settings, with the listeners of the bench. `%` is the directory.
fn text(settings: &str, directory: &Path, block: &Block) -> String {
    let (port, monitor) = (block.port(0), block.port(1));
    let path = directory.display();
    let settings = settings.replace('%', &path.to_string()).replace("@2", &block.port(2).to_string());
    let named = format!("server_name: n1\nlisten: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:{monitor}\"\n");
    format!("{named}pid_file: \"{path}/pid\"\n{settings}\n")
}

/// What a client sends with CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Anonymous,
    User(&'static str),
}

/// A client without a library, so that nothing but nats-server decides.
#[derive(Debug)]
struct Raw(BufReader<TcpStream>);

impl Raw {
    async fn connect(address: SocketAddr, client: Client) -> Result<Self, String> {
        let mut raw = Self(BufReader::new(TcpStream::connect(address).await.unwrap()));
        assert!(raw.line().await?.starts_with("INFO "));
        let user = match client {
            Client::Anonymous => String::new(),
            Client::User(name) => format!(",\"user\":\"{name}\",\"pass\":\"{name}\""),
        };
        raw.send(&format!("CONNECT {{\"verbose\":false,\"lang\":\"raw\",\"version\":\"0\"{user}}}\r\nPING\r\n"))
            .await?;
        raw.answered().await?;
        Ok(raw)
    }

    async fn send(&mut self, text: &str) -> Result<(), String> {
        self.0.write_all(text.as_bytes()).await.map_err(|error| error.to_string())
    }

    async fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        let read = tokio::time::timeout(SOON, self.0.read_line(&mut line)).await.map_err(|late| late.to_string())?;
        match read {
            Ok(0) => Err("closed".to_owned()),
            Ok(_) => Ok(line),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Waits for the PONG, which says that the client is still accepted.
    async fn answered(&mut self) -> Result<(), String> {
        loop {
            let line = self.line().await?;
            match line.split_whitespace().next() {
                Some("PONG") => return Ok(()),
                Some("-ERR") => return Err(line),
                Some("PING") => self.send("PONG\r\n").await?,
                _ => {}
            }
        }
    }

    /// nats-server closes connections a moment after it says that it has reloaded.
    async fn is_kept(&mut self) -> Result<(), String> {
        for _ in 0..5 {
            self.send("PING\r\n").await?;
            self.answered().await?;
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        Ok(())
    }
}

const A: &str = "authorization { users: [ { user: a, password: a } ] }";
const B: &str = "accounts { A { users: [ { user: a, password: a } ] } }";

/// Settings to which the user is added, and a client that they let in.
const ADDED: &[(&str, Client, Others)] = &[
    ("", Client::Anonymous, Others::AnonymousAlone),
    ("jetstream { store_dir: \"%/js\", max_mem: 16MB, max_file: 16MB }", Client::Anonymous, Others::AnonymousAlone),
    ("accounts { }", Client::Anonymous, Others::AnonymousAlone),
    ("accounts { SYS { } }\nsystem_account: SYS", Client::Anonymous, Others::AnonymousAlone),
    (
        "leafnodes { listen: \"127.0.0.1:@2\", authorization { user: l, password: l } }",
        Client::Anonymous,
        Others::AnonymousAlone,
    ),
    ("websocket { listen: \"127.0.0.1:@2\", no_tls: true }", Client::Anonymous, Others::AnonymousAlone),
    ("accounts { \"$SYS\" { users: [ { user: s, password: s } ] } }", Client::Anonymous, Others::Unaffected),
    ("accounts { \"$SYS\" { users: [ { user: s, password: s } ] } }", Client::User("s"), Others::Unaffected),
    (A, Client::User("a"), Others::Unaffected),
    ("authorization { users: [ { user: a, password: a } ] }\nno_auth_user: a", Client::Anonymous, Others::Unaffected),
    (B, Client::User("a"), Others::Unaffected),
    (
        "accounts { A { users: [ { user: a, password: a } ] }, SYS { } }\nsystem_account: SYS",
        Client::User("a"),
        Others::Unaffected,
    ),
    ("accounts { A { users: [ { user: a, password: a } ] } }\nno_auth_user: a", Client::Anonymous, Others::Unaffected),
    (
        "authorization { timeout: 5 }\naccounts { A { users: [ { user: a, password: a } ] } }",
        Client::User("a"),
        Others::Unaffected,
    ),
];

#[tokio::test]
async fn the_user_is_added_by_a_reload_and_every_client_stays_on_every_version() {
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        for (settings, client, others) in ADDED {
            let bench = Bench::start(version, settings).await;
            let mut connected = bench.client(*client).await.unwrap();
            let (before, mut tree) = (bench.tree(settings), bench.tree(settings));
            let placement = add(&mut tree, KEY, None);
            assert!(matches!(placement, Placement::Account { others: found, .. } if found == *others), "{settings}");
            let said = bench.load(&write::text(&tree)).await;
            assert!(said.contains("Reloaded"), "{version}: {settings}: {said}");
            connected.is_kept().await.unwrap_or_else(|error| panic!("{version}: {settings}: {error}"));
            bench.client(*client).await.unwrap_or_else(|error| panic!("{version}: {settings}: {error}"));
            // The way back.
            bench.load(&write::text(&before)).await;
            let stays = connected.is_kept().await.is_ok();
            assert_eq!(stays, !disconnects(&tree, &before) || *client != Client::Anonymous, "{version}: {settings}");
            bench.client(*client).await.unwrap();
            bench.server.kill().await.unwrap();
        }
    });
    harness::join_all(runs).await;
}

/// A client that sends a user where nobody asks for one. The stand-in of nats-server is for anonymous clients alone.
#[tokio::test]
async fn a_client_that_sends_a_user_which_nobody_asked_for_is_refused_once_the_agents_user_stands() {
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        let bench = Bench::start(version, "").await;
        let mut connected = bench.client(Client::User("nobody")).await.unwrap();
        let mut tree = bench.tree("");
        let placement = add(&mut tree, KEY, None);
        assert!(matches!(placement, Placement::Account { others: Others::AnonymousAlone, .. }));
        bench.load(&write::text(&tree)).await;
        assert!(connected.is_kept().await.is_err(), "{version}");
        assert!(bench.client(Client::User("nobody")).await.is_err(), "{version}");
        bench.server.kill().await.unwrap();
    });
    harness::join_all(runs).await;
}

const SYS: &str = "\"$SYS\" { users: [ { nkey: KEY } ] }";

/// Settings to which the user is not added, and the same settings with the user all the same.
const NOT_ADDED: &[(&str, &str, Obstacle)] = &[
    ("authorization { token: t }", "authorization { token: t }\naccounts { SYS }", Obstacle::Token),
    (
        "authorization { user: a, password: a }",
        "authorization { user: a, password: a }\naccounts { SYS }",
        Obstacle::SingleUser,
    ),
    (
        "authorization { timeout: 5 }",
        "authorization { timeout: 5 }\naccounts { SYS }",
        Obstacle::AuthorizationWithoutUsers,
    ),
    ("authorization { }", "authorization { }\naccounts { SYS }", Obstacle::AuthorizationWithoutUsers),
    (
        "authorization { users: [] }",
        "authorization { users: [] }\naccounts { SYS }",
        Obstacle::AuthorizationWithoutUsers,
    ),
    ("accounts { A { } }", "accounts { A { }, SYS }", Obstacle::AccountsWithoutUsers),
    (
        "accounts { A { exports: [ { service: x } ] }, B { imports: [ { service: { account: A, subject: x } } ] } }",
        "accounts { A { exports: [ { service: x } ] }, B { imports: [ { service: { account: A, subject: x } } ] }, SYS }",
        Obstacle::AccountsWithoutUsers,
    ),
    ("accounts: [ A, B ]", "accounts { A { }, B { }, SYS }", Obstacle::AccountsListed),
    (
        "websocket { listen: \"127.0.0.1:@2\", no_tls: true, authorization { username: w, password: w } }",
        "websocket { listen: \"127.0.0.1:@2\", no_tls: true, authorization { username: w, password: w } }\naccounts { SYS }",
        Obstacle::WebsocketAuthorization,
    ),
    (
        "jetstream { store_dir: \"%/js\", max_mem: 16MB, max_file: 16MB }\nmqtt { listen: \"127.0.0.1:@2\", authorization { user: m, password: m } }",
        "jetstream { store_dir: \"%/js\", max_mem: 16MB, max_file: 16MB }\nmqtt { listen: \"127.0.0.1:@2\", authorization { user: m, password: m } }\naccounts { SYS }",
        Obstacle::MqttAuthorization,
    ),
];

#[tokio::test]
async fn where_the_user_is_not_added_it_would_be_refused_or_lock_anonymous_clients_out_on_every_version() {
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        for (settings, with_user, obstacle) in NOT_ADDED {
            let bench = Bench::start(version, settings).await;
            let mut tree = bench.tree(settings);
            assert_eq!(add(&mut tree, KEY, None), Placement::Nowhere(*obstacle), "{settings}");
            assert!(!has_own(&tree), "{settings}");
            let anonymous = bench.client(Client::Anonymous).await;
            let with_user = with_user.replace("SYS", &SYS.replace("KEY", KEY));
            let said = bench.load(&text(&with_user, bench.directory.path(), &bench.block)).await;
            let locks_out = anonymous.is_ok() && bench.client(Client::Anonymous).await.is_err();
            assert!(said.contains("Failed to reload") || locks_out, "{version}: {with_user}: {said}");
            bench.server.kill().await.unwrap();
        }
    });
    harness::join_all(runs).await;
}

/// The auth callout would be asked for a user that is not among its `auth_users`, and these can't be reloaded.
#[tokio::test]
async fn a_user_beside_an_auth_callout_passes_only_as_one_of_its_auth_users() {
    const ISSUER: &str = "ABJHLOVMPA4CI6R5KLNGOB4GSLNIY7IOUPAJC4YFNDLQVIOBYQGUWVLA";
    let settings = |accounts: &str, users: &str| {
        format!(
            "accounts {{ AUTH {{ users: [ {{ user: a, password: a }} ] }}, {accounts} }}\n\
             authorization {{ timeout: 1, auth_callout {{ issuer: {ISSUER}, account: AUTH, auth_users: [ {users} ] }} }}"
        )
    };
    let (alone, user) = (settings("", "a"), "\"$SYS\" { users: [ { user: s, password: s } ] }");
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| {
        let (alone, outside, inside) = (&alone, settings(user, "a"), settings(user, "a, s"));
        async move {
            let bench = Bench::start(version, alone).await;
            let mut tree = bench.tree(alone);
            assert_eq!(add(&mut tree, KEY, None), Placement::Nowhere(Obstacle::AuthCallout));
            let load = |settings: &str| text(settings, bench.directory.path(), &bench.block);
            assert!(bench.load(&load(&outside)).await.contains("Reloaded"));
            assert!(bench.client(Client::User("s")).await.is_err(), "{version}");
            let said = bench.load(&load(&inside)).await;
            assert!(said.contains("not supported for AuthCallout"), "{version}: {said}");
            bench.server.kill().await.unwrap();
            let bench = Bench::start(version, &inside).await;
            bench.client(Client::User("s")).await.unwrap();
            bench.server.kill().await.unwrap();
        }
    });
    harness::join_all(runs).await;
}

/// The connections of the agent, each with its number.
async fn connections(node: &Node) -> Vec<u64> {
    let connz = monitor(node.monitor(), "/connz").await.unwrap();
    let all = connz["connections"].as_array().unwrap();
    all.iter().filter(|one| one["name"] == "nats-tls-agent").map(|one| one["cid"].as_u64().unwrap()).collect()
}

pub(crate) async fn connected(node: &Node) -> u64 {
    let one = eventually("the agent's connection", SOON, async || match connections(node).await[..] {
        [one] => Ok(one),
        ref others => Err(format!("{others:?}")),
    });
    one.await.unwrap()
}

#[tokio::test]
async fn every_reload_goes_through_one_connection_that_stays_open_on_every_version() {
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        let mut nodes = Nodes::start(AGENT, version, 1).await.unwrap();
        let node = &nodes.nodes[0];
        let first = connected(node).await;
        let boot = tail(&node.server_log(), usize::MAX).len();
        for _ in 0..3 {
            assert_eq!(node.agent.renew().await.unwrap()["result"], "confirmed", "{version}");
        }
        assert_eq!(connections(node).await, [first], "{version}");
        let log = &tail(&node.server_log(), usize::MAX)[boot..];
        assert!(!log.contains("hangup") && !log.contains("authentication error"), "{version}: {log}");
        assert_eq!(log.matches("Reloaded server configuration").count(), 3, "{version}: {log}");
        let key = std::fs::metadata(node.state_directory().join("system.nk")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);

        // A new process of nats-server serves the leaf of now.
        nodes.nodes[0].server.take().unwrap().stop().await.unwrap();
        nodes.cluster.start_server(&mut nodes.nodes[0]).await.unwrap();
        let node = &nodes.nodes[0];
        connected(node).await;
        let boot = tail(&node.server_log(), usize::MAX).len();
        assert_eq!(node.agent.renew().await.unwrap()["result"], "confirmed", "{version}");
        let log = &tail(&node.server_log(), usize::MAX)[boot..];
        assert!(!log.contains("hangup"), "{version}: {log}");
        let log = node.agent.log_tail(400);
        assert!(!log.contains("connected successfully") && !log.contains("event:"), "{log}");
    });
    harness::join_all(runs).await;
}

#[tokio::test]
async fn nats_server_answers_with_a_refusal_in_its_own_words_and_with_what_the_monitoring_port_says() {
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        let mut nodes = Nodes::start(AGENT, version, 1).await.unwrap();
        connected(&nodes.nodes[0]).await;
        let node = &mut nodes.nodes[0];
        node.agent.kill().await.unwrap();
        let config = Config::load(node.agent.config()).unwrap();
        let newest = Generations::of(&config.state_directory).newest().unwrap().0.unwrap();
        let system = SystemConnection::of(&config.nats, &config.state_directory).unwrap();
        assert!(matches!(system.varz().await, Err(SystemError::Lost { .. })));
        system.keep(&newest.chain, node.client(), First::Server).await.unwrap();

        let varz = system.varz().await.unwrap();
        let theirs = node.server.as_ref().unwrap().varz().await.unwrap();
        assert_eq!(varz.server_id, theirs["server_id"], "{version}");
        assert_eq!(varz.config_digest.as_deref(), theirs["config_digest"].as_str(), "{version}");
        assert!(system.routez().await.unwrap().routes.is_empty());

        assert_eq!(system.reload().await.unwrap(), Answer::Loaded, "{version}");
        let committed = std::fs::read_to_string(node.nats_config()).unwrap();
        std::fs::write(node.nats_config(), format!("{committed}\nnonsense_zzz: 1\n")).unwrap();
        let refused = system.reload().await.unwrap();
        assert!(matches!(&refused, Answer::Refused(why) if why.contains("nonsense_zzz")), "{version}: {refused:?}");
        std::fs::write(node.nats_config(), &committed).unwrap();

        // A full server answers on the open connection, which its own reload keeps.
        let full = format!("{committed}\nmax_connections: 1\n");
        std::fs::write(node.nats_config(), &full).unwrap();
        assert_eq!(system.reload().await.unwrap(), Answer::Loaded, "{version}");
        let other = SystemConnection::of(&config.nats, &config.state_directory).unwrap();
        let late = other.keep(&newest.chain, node.client(), First::Server).await.unwrap_err();
        assert_eq!(late.fault(), Fault::Unreachable, "{version}: {late}");
        // A failed attempt is not repeated at once.
        assert!(!other.would_dial(node.client()).await, "{version}");
        for _ in 0..3 {
            assert_eq!(system.reload().await.unwrap(), Answer::Loaded, "{version}");
        }
        system.varz().await.unwrap();

        std::fs::write(node.nats_config(), &committed).unwrap();
        assert_eq!(system.reload().await.unwrap(), Answer::Loaded, "{version}");
        eventually("the next attempt", SOON, async || {
            other.keep(&newest.chain, node.client(), First::Server).await.map_err(|error| error.to_string())
        })
        .await
        .unwrap();

        // The end of nats-server ends the wait for an answer.
        let server = node.server.take().unwrap();
        server.signal(Signal::SIGSTOP).unwrap();
        let stat = format!("/proc/{}/stat", server.pid().unwrap());
        eventually("the stop", SOON, async || {
            let stat = std::fs::read_to_string(&stat).unwrap();
            if stat.contains(") T ") { Ok(()) } else { Err(stat) }
        })
        .await
        .unwrap();
        let (lost, ()) = tokio::join!(system.reload(), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            server.kill().await.unwrap();
        });
        assert!(matches!(lost, Err(SystemError::Lost { .. })), "{version}: {lost:?}");
    });
    harness::join_all(runs).await;
}

/// Another process at the client port of nats-server, with a certificate of the same CA.
#[tokio::test]
async fn invariant_10_a_server_with_another_leaf_than_ours_is_not_asked() {
    let nodes = Nodes::start(AGENT, tools::NATS_SERVER, 2).await.unwrap();
    let [ours, other] = &nodes.nodes[..] else { panic!() };
    let config = Config::load(ours.agent.config()).unwrap();
    let newest = Generations::of(&config.state_directory).newest().unwrap().0.unwrap();
    let system = SystemConnection::of(&config.nats, &config.state_directory).unwrap();
    let refused = system.keep(&newest.chain, other.client(), First::Server).await.unwrap_err();
    assert_eq!(refused.fault(), Fault::Unreachable, "{refused}");
    assert!(!system.is_up_at(other.client()).await);
}

#[tokio::test]
async fn without_the_system_account_a_signal_reloads_and_turning_it_off_keeps_anonymous_clients() {
    let mut nodes = Nodes::start(AGENT, tools::NATS_SERVER, 1).await.unwrap();
    let node = &nodes.nodes[0];
    connected(node).await;
    let traffic = traffic(&nodes, 200).await;
    set(node.agent.config(), "nats.system", "\"off\"").unwrap();
    node.agent.signal(Signal::SIGHUP).unwrap();
    let waits = |status: &serde_json::Value| status["warnings"].to_string().contains("settings_wait_for_restart");
    status_with(node, waits).await;
    let committed = std::fs::read_to_string(node.nats_config()).unwrap();
    assert!(!committed.contains("nkey"), "{committed}");
    for _ in 0..2 {
        assert_eq!(node.agent.renew().await.unwrap()["result"], "confirmed");
    }
    let log = std::fs::read_to_string(node.server_log()).unwrap();
    assert!(log.contains("hangup"), "{log}");
    assert_nothing_lost(traffic).await;

    nodes.nodes[0].server.take().unwrap().stop().await.unwrap();
    nodes.cluster.start_server(&mut nodes.nodes[0]).await.unwrap();
    let node = &nodes.nodes[0];
    status_with(node, |status| status["warnings"].as_array().is_some_and(|all| all.len() == 1)).await;
    assert!(connections(node).await.is_empty());
}

/// A JWT as `nsc` makes it, signed by `issuer`.
fn jwt(issuer: &KeyPair, subject: &str, kind: &str, nats: serde_json::Value) -> String {
    let mut nats = nats;
    nats["type"] = kind.into();
    nats["version"] = 2.into();
    let claims = serde_json::json!({
        "jti": subject, "iat": 1_700_000_000, "iss": issuer.public_key(), "name": kind, "sub": subject, "nats": nats,
    });
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&serde_json::json!({ "typ": "JWT", "alg": "ed25519-nkey" })), part(&claims));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

/// Settings of operator mode, and credentials of a user of the system account.
fn operator_mode() -> (String, String) {
    let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
    let named = jwt(
        &operator,
        &operator.public_key(),
        "operator",
        serde_json::json!({ "system_account": account.public_key() }),
    );
    let system = jwt(
        &operator,
        &account.public_key(),
        "account",
        serde_json::json!({ "limits": { "conn": -1, "leaf": -1, "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true } }),
    );
    let login = jwt(&account, &user.public_key(), "user", serde_json::json!({ "subs": -1, "data": -1, "payload": -1 }));
    let settings = format!(
        "operator: {named}\nsystem_account: {id}\nresolver: MEMORY\nresolver_preload {{ {id}: \"{system}\" }}\n",
        id = account.public_key()
    );
    let credentials = format!(
        "-----BEGIN NATS USER JWT-----\n{login}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        user.seed().unwrap()
    );
    (settings, credentials)
}

#[tokio::test]
async fn in_operator_mode_credentials_open_the_system_account_and_a_missing_file_is_a_warning_on_every_version() {
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        let mut nodes = Nodes::new(AGENT, version, 1).unwrap();
        nodes.configure().unwrap();
        let (settings, credentials) = operator_mode();
        let (include, file) = (nodes.directory().join("operator.conf"), nodes.directory().join("system.creds"));
        std::fs::write(&include, settings).unwrap();
        nodes.set("nats.include", &format!("[{:?}]", include.display().to_string())).unwrap();
        nodes.set("nats.jetstream", "false").unwrap();
        nodes.boot().await.unwrap();
        let node = &nodes.nodes[0];
        let warns =
            |code: &'static str| move |status: &serde_json::Value| status["warnings"].to_string().contains(code);
        let status = status_with(node, warns("system_user_nowhere")).await;
        assert!(status["warnings"].to_string().contains("creds_file"), "{status}");
        let doctor = node.agent.run(&["doctor"], SOON).await.unwrap();
        assert!(doctor.stdout.contains("warning  system account"), "{}", doctor.stdout);

        set(node.agent.config(), "nats.system", &format!("{{ creds_file = {:?} }}", file.display().to_string()))
            .unwrap();
        node.agent.signal(Signal::SIGHUP).unwrap();
        status_with(node, warns("system_credentials")).await;
        std::fs::write(&file, credentials).unwrap();
        let first = connected(node).await;
        status_with(node, |status| !status["warnings"].to_string().contains("system_")).await;
        let before = std::fs::read_to_string(node.server_log()).unwrap().len();
        assert_eq!(node.agent.renew().await.unwrap()["result"], "confirmed", "{version}");
        assert_eq!(connections(node).await, [first], "{version}");
        let doctor = node.agent.run(&["doctor"], SOON).await.unwrap();
        assert!(doctor.stdout.contains("ok       system account"), "{}", doctor.stdout);
        let log = std::fs::read_to_string(node.server_log()).unwrap();
        assert!(!log[before..].contains("hangup"), "{version}: {log}");
    });
    harness::join_all(runs).await;
}

#[tokio::test]
async fn credentials_of_another_account_are_told_from_a_server_that_is_away() {
    let nodes = Nodes::start(AGENT, tools::NATS_SERVER, 1).await.unwrap();
    let node = &nodes.nodes[0];
    connected(node).await;
    let file = nodes.directory().join("system.creds");
    std::fs::write(&file, operator_mode().1).unwrap();
    set(node.agent.config(), "nats.system", &format!("{{ creds_file = {:?} }}", file.display().to_string())).unwrap();
    node.agent.signal(Signal::SIGHUP).unwrap();
    let status = status_with(node, |status| status["warnings"].to_string().contains("system_denied")).await;
    assert_eq!(status["state"], "healthy", "{status}");
    assert_eq!(node.agent.renew().await.unwrap()["result"], "confirmed");
}

/// An agent without the user is upgraded to an agent with the user.
#[tokio::test]
async fn an_upgrade_adds_the_user_and_waits_while_a_client_sends_a_user_that_nobody_asks_for() {
    let mut nodes = Nodes::new(AGENT, tools::NATS_SERVER, 1).unwrap();
    nodes.configure().unwrap();
    nodes.set("nats.system", "\"off\"").unwrap();
    nodes.boot().await.unwrap();
    let node = &nodes.nodes[0];
    let committed = || std::fs::read_to_string(node.nats_config()).unwrap();
    assert!(!committed().contains("nkey"));
    let ca = node.newest_generation().unwrap().join("ca.pem");
    let options = async_nats::ConnectOptions::with_user_and_password("nobody".into(), "asks".into());
    let client = options.add_root_certificates(ca).connect(format!("tls://{}", node.client())).await.unwrap();
    let traffic = traffic(&nodes, 200).await;
    set(node.agent.config(), "nats.system", "\"auto\"").unwrap();
    node.agent.signal(Signal::SIGHUP).unwrap();
    status_with(node, |status| status["warnings"].to_string().contains("no user and no token in the clients")).await;
    assert!(!committed().contains("nkey"));
    client.flush().await.unwrap();
    drop(client);
    eventually("the client's end", SOON, async || {
        let connz = monitor(node.monitor(), "/connz?auth=true").await.unwrap();
        if connz.to_string().contains("nobody") { Err(connz.to_string()) } else { Ok(()) }
    })
    .await
    .unwrap();
    // The next process looks again at once, the same process after ten minutes.
    nodes.nodes[0].agent.stop().await.unwrap();
    nodes.nodes[0].agent.start().unwrap();
    connected(&nodes.nodes[0]).await;
    assert_nothing_lost(traffic).await;
    let log = std::fs::read_to_string(nodes.nodes[0].server_log()).unwrap();
    assert!(!log.contains("authentication error"), "{log}");
}

/// A reload in lame duck mode hangs 2.15.1, however nats-server is told.
#[tokio::test]
async fn invariant_10_a_server_that_drains_or_is_frozen_is_not_told_through_its_system_account_either() {
    for signal in [Signal::SIGUSR2, Signal::SIGSTOP] {
        let mut nodes = Nodes::start(AGENT, tools::NATS_SERVER, 1).await.unwrap();
        connected(&nodes.nodes[0]).await;
        let server = nodes.nodes[0].server.take().unwrap();
        let node = &nodes.nodes[0];
        // A start on a slow machine may need a reload.
        let boot = tail(&node.server_log(), usize::MAX).len();
        server.signal(signal).unwrap();
        if signal == Signal::SIGUSR2 {
            eventually("the closed port", SOON, async || match TcpStream::connect(node.client()).await {
                Ok(_) => Err("it is open".to_owned()),
                Err(_) => Ok(()),
            })
            .await
            .unwrap();
        }
        let refused = node.agent.run(&["renew"], Duration::from_mins(1)).await.unwrap();
        // A server that drains without clients soon ends, and is not reloaded either.
        let has_ended = refused.stdout.contains("nats-server isn't running");
        let waits = refused.code == Some(1) && refused.stderr.contains("so it is starting or draining");
        assert!(waits || signal == Signal::SIGUSR2 && has_ended, "{signal}: {refused:?}");
        let log = &tail(&node.server_log(), usize::MAX)[boot..];
        assert!(!log.contains("Reloaded") && !log.contains("hangup"), "{signal}: {log}");
        server.kill().await.unwrap();
    }
}
