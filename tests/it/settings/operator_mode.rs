//! Operator mode: the operator, the resolver and the system account are in an included file or in `[nats.settings]`.

use std::path::Path;
use std::sync::atomic::Ordering;

use async_nats::{Client, ConnectOptions};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use harness::cluster::Node;
use harness::nodes::Nodes;
use harness::{StreamExt as _, eventually, tools};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{SOON, nodes};
use crate::protection::{assert_settings_stay, in_force, renew};
use crate::rotation::unhealthy;

/// The first byte of a public key, as in nats-io/nkeys (`strkey.go`).
const OPERATOR: u8 = 14 << 3;
const ACCOUNT: u8 = 0;
const USER: u8 = 20 << 3;

/// A key and its public name, as in nats-io/nkeys.
struct Key {
    pair: Ed25519KeyPair,
    name: String,
}

impl Key {
    fn new(kind: u8) -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let mut raw = vec![kind];
        raw.extend(pair.public_key().as_ref());
        raw.extend(crc16(&raw).to_le_bytes());
        Self { pair, name: base32(&raw) }
    }

    /// A JWT of version 2 as in nats-io/jwt, signed by this key.
    fn signs(&self, subject: &str, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = part(&json!({"typ": "JWT", "alg": "ed25519-nkey"}));
        let body =
            part(&json!({"jti": subject, "iat": 1, "iss": self.name, "name": subject, "sub": subject, "nats": claims}));
        let signed = format!("{header}.{body}");
        let signature = URL_SAFE_NO_PAD.encode(self.pair.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 })
    })
}

/// Base32 of RFC 4648. An nkey has 35 bytes, so nothing is padded.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let groups = bytes.chunks(5).map(|five| five.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte)));
    let letter = |bits: u64, place: u32| char::from(ALPHABET[usize::try_from(bits >> (5 * place) & 31).unwrap()]);
    groups.flat_map(|bits| (0..8).rev().map(move |place| letter(bits, place))).collect()
}

/// An operator with a system account and an account of an application.
struct Operator {
    jwt: String,
    system: (String, String),
    application: (String, String),
    /// A user of the application's account. A bearer needs no signature.
    user: String,
}

impl Operator {
    fn new() -> Self {
        let [operator, system, application, user] = [OPERATOR, ACCOUNT, ACCOUNT, USER].map(Key::new);
        let limits = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "conn": -1, "leaf": -1, "wildcards": true});
        let account = |key: &Key| {
            let claims = json!({"type": "account", "version": 2, "limits": limits});
            (key.name.clone(), operator.signs(&key.name, &claims))
        };
        let claims = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "bearer_token": true});
        Self {
            jwt: operator.signs(&operator.name, &json!({"type": "operator", "version": 2})),
            system: account(&system),
            application: account(&application),
            user: application.signs(&user.name, &claims),
        }
    }

    /// The file that `nsc generate config --mem-resolver` writes.
    fn memory(&self) -> String {
        let [(system, system_jwt), (application, application_jwt)] = [&self.system, &self.application];
        format!(
            "// Operator \"O\"\noperator: {}\n\nsystem_account: {system}\n\nresolver: MEMORY\n\nresolver_preload: {{\n  // \
             Account \"A\"\n  {application}: {application_jwt}\n\n  // Account \"SYS\"\n  {system}: {system_jwt}\n\n}}\n",
            self.jwt
        )
    }

    /// The settings of a resolver with a directory.
    fn full(&self, directory: &Path) -> String {
        let [(system, system_jwt), (application, application_jwt)] = [&self.system, &self.application];
        format!(
            "[nats.settings]\noperator = \"{}\"\nsystem_account = \"{system}\"\nresolver = {{ type = \"full\", dir = \"{}\", \
             allow_delete = false, interval = \"2m\", timeout = \"1.9s\" }}\n\n\
             [nats.settings.resolver_preload]\n{system} = \"{system_jwt}\"\n{application} = \"{application_jwt}\"\n",
            self.jwt,
            directory.display()
        )
    }

    async fn connect(&self, node: &Node) -> Client {
        let jwt = self.user.clone();
        let options = ConnectOptions::with_auth_callback(move |_nonce| {
            let mut auth = async_nats::Auth::new();
            auth.jwt = Some(jwt.clone());
            async { Ok(auth) }
        });
        let ca = node.newest_generation().unwrap().join("ca.pem");
        options.add_root_certificates(ca).connect(format!("tls://{}", node.client())).await.unwrap()
    }
}

/// Sends a message through the account of the application.
async fn echo(client: &Client) {
    let mut subscription = client.subscribe("operator.mode").await.unwrap();
    client.publish("operator.mode", "heard".into()).await.unwrap();
    let heard = tokio::time::timeout(SOON, subscription.next()).await.unwrap().unwrap();
    assert_eq!(heard.payload, "heard");
}

#[tokio::test]
async fn operator_mode_of_an_include_or_of_settings_starts_and_rotates_with_each_resolver_on_every_version() {
    let runs = tools::NATS_SERVER_VERSIONS.map(|version| async move {
        let (operator, mut cluster) = (Operator::new(), nodes(version, 1));
        let plain = std::fs::read_to_string(cluster.nodes[0].agent.config()).unwrap();
        let include = cluster.directory().join("resolver.conf");
        std::fs::write(&include, operator.memory()).unwrap();
        cluster.set("nats.include", &format!("[{:?}]", include.display().to_string())).unwrap();
        cluster.boot().await.unwrap();
        let accounts = cluster.directory().join("accounts");
        let Nodes { nodes, cluster, .. } = &mut cluster;
        let node = &mut nodes[0];
        let varz = node.server.as_ref().unwrap().varz().await.unwrap();
        assert_eq!(varz["system_account"], operator.system.0, "{version}: {varz}");
        let client = operator.connect(node).await;
        rotate(version, node, &client).await;

        // The settings move into agent.toml, with a resolver that needs no restart.
        let change = |settings: &str| {
            std::fs::write(node.agent.config(), format!("{plain}{settings}")).unwrap();
            node.agent.signal(Signal::SIGHUP).unwrap();
        };
        let full = operator.full(&accounts);
        change(&full);
        eventually("the accounts in the directory", SOON, async || {
            match std::fs::read_dir(&accounts).map(Iterator::count) {
                Ok(2) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await
        .unwrap();
        rotate(version, node, &client).await;

        let before = in_force(node).await;
        change("");
        unhealthy(node, "--allow-loss authorization").await;
        let without_resolver: Vec<_> = full.lines().filter(|line| !line.starts_with("resolver =")).collect();
        change(&without_resolver.join("\n"));
        unhealthy(node, "--allow-loss resolver").await;
        renew(node, &[]).await;
        assert_settings_stay(node, &before).await;
        echo(&client).await;
        change(&full);
        node.healthy(SOON).await.unwrap();

        // The committed settings start a server too.
        node.server.take().unwrap().kill().await.unwrap();
        cluster.start_server(node).await.unwrap();
        node.healthy(SOON).await.unwrap();
        echo(&operator.connect(node).await).await;
    });
    harness::join_all(runs).await;
}

/// A renewal that a client of the application doesn't notice.
async fn rotate(version: &str, node: &Node, client: &Client) {
    let renewed = node.agent.renew().await.unwrap();
    assert_eq!(renewed["result"], "confirmed", "{version}: {renewed}");
    node.healthy(SOON).await.unwrap();
    echo(client).await;
    assert_eq!(client.statistics().connects.load(Ordering::Relaxed), 1, "{version}: the client connected again");
}
