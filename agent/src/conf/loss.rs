//! What a configuration protects, and what a change of it would take away (invariant 12).
//!
//! nats-server reloads a configuration that drops `tls` or `jetstream`, or renames the cluster, without a warning (seen
//! on 2.9.10 and 2.15.1). The committing code therefore compares the facts here first.

use std::collections::BTreeSet;
use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::conf::language::{ConfError, Map, Value, parse};

/// The listeners, protections and capabilities that a configuration gives nats-server.
///
/// The file alone doesn't say what a variable will be. A variable as a switch or block therefore counts as absent. A
/// variable as a switch that takes protection away counts as on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent facts, not states")]
pub struct Facts {
    /// `server_name`.
    pub server_name: Option<String>,
    /// Client listener: `host:port`, or the port alone.
    pub listen: Option<String>,
    /// Route listener: `host:port`, or the port alone.
    pub cluster_listen: Option<String>,
    /// Monitoring listener: `host:port`, or the port alone.
    pub monitor_listen: Option<String>,
    /// The path of the pid file.
    pub pid_file: Option<String>,
    /// Clients must use TLS: a certificate is configured, and `allow_non_tls` is off.
    pub client_tls: bool,
    /// Clients must present a certificate.
    pub client_verify: bool,
    /// Routes use TLS, and the dialling end verifies the other end.
    pub cluster_tls: bool,
    /// The cluster's name.
    pub cluster_name: Option<String>,
    /// Routes must present a user name and a password.
    pub cluster_credential: bool,
    /// JetStream is on.
    pub jetstream: bool,
    /// The blocks that restrict who may do what: `authorization`, `accounts`, `operator`, `trusted_keys`.
    pub authorization: BTreeSet<&'static str>,
}

/// The blocks that restrict who may do what, each with all its names.
const AUTHORIZATION: [(&str, &[&str]); 4] = [
    ("accounts", &["accounts"]),
    ("authorization", &["authorization"]),
    ("operator", &["operator", "operators", "roots", "root", "root_operators", "root_operator"]),
    ("trusted_keys", &["trusted", "trusted_keys"]),
];

impl Facts {
    /// Reads the text of a configuration. The text stands, or will stand, in `file`; includes are relative to its
    /// directory.
    pub fn read(text: &str, file: &Path) -> Result<Self, ConfError> {
        Self::of(&parse(text, file)?)
    }

    fn of(top: &Map) -> Result<Self, ConfError> {
        let none = Map::default();
        let block = |map: &Map, name| Ok::<_, ConfError>(map.find(&[name])?.and_then(Value::as_map).cloned());
        let cluster = block(top, "cluster")?.unwrap_or_else(|| none.clone());
        let client_tls = block(top, "tls")?.unwrap_or_else(|| none.clone());
        let cluster_tls = block(&cluster, "tls")?.unwrap_or_else(|| none.clone());
        let credential = block(&cluster, "authorization")?.unwrap_or(none);
        Ok(Self {
            server_name: owned_text(top, "server_name")?,
            listen: listener(top)?,
            cluster_listen: listener(&cluster)?,
            monitor_listen: monitor_listener(top)?,
            pid_file: top.find(&["pidfile", "pid_file"])?.and_then(Value::as_text).map(str::to_owned),
            client_tls: has_certificate(&client_tls)? && !may_be_on(top, "allow_non_tls")?,
            client_verify: is_on(&client_tls, "verify")? || is_on(&client_tls, "verify_and_map")?,
            cluster_tls: has_certificate(&cluster_tls)? && !may_be_on(&cluster_tls, "insecure")?,
            cluster_name: owned_text(&cluster, "name")?,
            cluster_credential: is_given(credential.find(&["user", "username"])?)
                && is_given(credential.find(&["pass", "password"])?),
            jetstream: jetstream(top)?,
            authorization: authorization(top)?,
        })
    }
}

fn owned_text(map: &Map, name: &str) -> Result<Option<String>, ConfError> {
    Ok(map.find(&[name])?.and_then(Value::as_text).map(str::to_owned))
}

fn is_on(map: &Map, name: &str) -> Result<bool, ConfError> {
    Ok(map.find(&[name])? == Some(&Value::Bool(true)))
}

/// Whether a switch that takes protection away is on, or may be on.
fn may_be_on(map: &Map, name: &str) -> Result<bool, ConfError> {
    Ok(!matches!(map.find(&[name])?, None | Some(Value::Bool(false))))
}

/// Whether a value is a text that is not empty, or a variable.
fn is_given(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Text(text)) => !text.is_empty(),
        Some(Value::Variable(_)) => true,
        _ => false,
    }
}

/// Whether the block names a key pair, or a list of key pairs (`certs`, since 2.10.8).
fn has_certificate(tls: &Map) -> Result<bool, ConfError> {
    Ok(is_filled(tls.find(&["certs", "certificates"])?)
        || is_given(tls.find(&["cert_file"])?) && is_given(tls.find(&["key_file"])?))
}

fn listener(map: &Map) -> Result<Option<String>, ConfError> {
    if let Some(listen) = owned_text(map, "listen")? {
        return Ok(Some(listen));
    }
    let host = map.find(&["host", "net"])?.and_then(Value::as_text);
    let port = map.find(&["port"])?.and_then(Value::as_text);
    Ok(match (host, port) {
        (Some(host), Some(port)) if host.contains(':') => Some(format!("[{host}]:{port}")),
        (Some(host), Some(port)) => Some(format!("{host}:{port}")),
        (_, port) => port.map(str::to_owned),
    })
}

fn monitor_listener(top: &Map) -> Result<Option<String>, ConfError> {
    let listener = top.find(&["http"])?.or(top.find(&["http_port", "monitor_port"])?);
    Ok(listener.and_then(Value::as_text).map(str::to_owned))
}

fn jetstream(top: &Map) -> Result<bool, ConfError> {
    Ok(match top.find(&["jetstream"])? {
        Some(Value::Bool(on)) => *on,
        Some(Value::Text(text)) => ["enabled", "enable"].contains(&text.to_lowercase().as_str()),
        // A block enables JetStream, unless `enabled` in it is false.
        Some(Value::Map(map)) => matches!(map.find(&["enabled", "enable"])?, None | Some(Value::Bool(true))),
        _ => false,
    })
}

fn authorization(top: &Map) -> Result<BTreeSet<&'static str>, ConfError> {
    let mut present = BTreeSet::new();
    for (block, names) in AUTHORIZATION {
        let protects = match top.find(names)? {
            None | Some(Value::Variable(_)) => false,
            Some(Value::Map(map)) if block == "authorization" => lets_in_only_some(map)?,
            Some(Value::Map(accounts)) if block == "accounts" => have_users(accounts)?,
            // Accounts in a list of names have no users.
            Some(Value::Array(values)) => block != "accounts" && !values.is_empty(),
            Some(_) => true,
        };
        if protects {
            present.insert(block);
        }
    }
    Ok(present)
}

/// Whether the block restricts who may connect. Without a user, a token or a callout, nats-server lets everyone in
/// (`configureAuthorization` in its auth.go).
fn lets_in_only_some(block: &Map) -> Result<bool, ConfError> {
    Ok(is_given(block.find(&["user", "username"])?)
        || is_given(block.find(&["token"])?)
        || is_filled(block.find(&["users"])?)
        || block.find(&["auth_callout", "auth_hook"])?.is_some())
}

fn have_users(accounts: &Map) -> Result<bool, ConfError> {
    for (_, account) in accounts.iter() {
        if let Value::Map(account) = account
            && is_filled(account.find(&["users"])?)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_filled(list: Option<&Value>) -> bool {
    matches!(list, Some(Value::Array(values)) if !values.is_empty())
}

/// What a configuration can take away. The names are those of `--allow-loss` and never change.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ValueEnum, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// TLS on the client port
    #[value(name = "tls")]
    #[serde(rename = "tls")]
    ClientTls,
    /// TLS on routes
    ClusterTls,
    /// The check of client certificates
    ClientVerify,
    /// JetStream
    #[value(name = "jetstream")]
    #[serde(rename = "jetstream")]
    JetStream,
    /// The cluster's name
    ClusterName,
    /// The credential that routes must present
    ClusterCredential,
    /// Accounts and users
    Authorization,
}

impl std::fmt::Display for Loss {
    /// The name of the loss.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| formatter.write_str(value.get_name()))
    }
}

/// A loss, and what would happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenAway {
    /// The loss.
    pub loss: Loss,
    /// What would happen, for a person.
    pub what: String,
}

/// What committing `after` would take from `before`, the configuration in force. Without a configuration in force, a
/// missing TLS for clients or routes is a loss too.
#[must_use]
pub fn losses(before: Option<&Facts>, after: &Facts) -> Vec<TakenAway> {
    let first = Facts { client_tls: true, cluster_tls: true, ..Facts::default() };
    let before = before.unwrap_or(&first);
    let mut losses = Vec::new();
    let mut lost = |loss, what: String| losses.push(TakenAway { loss, what });
    if before.client_tls && !after.client_tls {
        lost(Loss::ClientTls, "clients could connect without TLS".into());
    }
    if before.cluster_tls && !after.cluster_tls {
        lost(Loss::ClusterTls, "routes would run without TLS, or without checking it".into());
    }
    if before.client_verify && !after.client_verify {
        lost(Loss::ClientVerify, "clients would no longer need a certificate".into());
    }
    if before.jetstream && !after.jetstream {
        lost(Loss::JetStream, "JetStream would be switched off, and its streams with it".into());
    }
    match (&before.cluster_name, &after.cluster_name) {
        (Some(before), Some(after)) if before != after => lost(
            Loss::ClusterName,
            format!("the cluster {before:?} would be renamed to {after:?}, away from its peers"),
        ),
        (Some(before), None) => lost(Loss::ClusterName, format!("the cluster {before:?} would lose its name")),
        _ => {}
    }
    if before.cluster_credential && !after.cluster_credential {
        lost(Loss::ClusterCredential, "routes would no longer need the cluster credential".into());
    }
    for block in before.authorization.difference(&after.authorization) {
        lost(Loss::Authorization, format!("`{block}`, which says who may do what, would be gone"));
    }
    losses
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn facts(text: &str) -> Facts {
        Facts::read(text, Path::new("/nats-server.conf")).unwrap()
    }

    fn names(before: Option<&str>, after: &str) -> Vec<String> {
        losses(before.map(facts).as_ref(), &facts(after)).iter().map(|taken| taken.loss.to_string()).collect()
    }

    #[test]
    fn a_configuration_is_understood() {
        let expected = Facts {
            server_name: Some("n0".to_owned()),
            listen: Some("0.0.0.0:4222".to_owned()),
            cluster_listen: Some("10.0.0.1:6222".to_owned()),
            monitor_listen: None,
            pid_file: None,
            client_tls: true,
            client_verify: true,
            cluster_tls: true,
            cluster_name: Some("prod".to_owned()),
            cluster_credential: true,
            jetstream: true,
            authorization: BTreeSet::from(["accounts"]),
        };
        assert_eq!(facts(FULL), expected);
        assert_eq!(facts(""), Facts::default());
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
        assert_eq!(names(Some(FULL), FULL), Vec::<&str>::new());
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
            ("ca_file: /a }\n            auth", "insecure: true }\n            auth", &["cluster-tls"]),
            ("ca_file: /a }\n            auth", "insecure: $X }\n            auth", &["cluster-tls"]),
            ("jetstream { store_dir: /js }", "jetstream: disabled", &["jetstream"]),
            ("name: prod", "name: other", &["cluster-name"]),
            ("name: prod", "", &["cluster-name"]),
            ("authorization { user: u, password: $PASSWORD }", "", &["cluster-credential"]),
            ("user: u,", "user: \"\",", &["cluster-credential"]),
            ("accounts {", "unknown {", &["authorization"]),
            ("[ { user: a, password: b } ]", "[]", &["authorization"]),
            ("accounts { A { users: [ { user: a, password: b } ] } }", "accounts: [ A ]", &["authorization"]),
        ] {
            let after = FULL.replacen(from, to, 1);
            assert_ne!(after, FULL, "{from}");
            assert_eq!(names(Some(FULL), &after), expected, "{from} -> {to}");
        }
    }

    #[test]
    fn invariant_12_an_included_file_can_take_protection_away() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("extra.conf"), "cluster { name: prod }").unwrap();
        let file = directory.path().join("nats-server.conf");
        let after = Facts::read(&format!("{FULL}\ninclude extra.conf"), &file).unwrap();
        let names: Vec<_> = losses(Some(&facts(FULL)), &after).iter().map(|taken| taken.loss.to_string()).collect();
        assert_eq!(names, ["cluster-tls", "cluster-credential"]);
    }

    #[test]
    fn invariant_12_tls_is_missed_at_the_first_commit_too() {
        assert_eq!(names(None, ""), ["tls", "cluster-tls"]);
        // A loss that was allowed once is not reported again at each change of a peer, nor is a protection that never
        // existed.
        assert_eq!(names(Some("listen: 4222"), "listen: 4223"), Vec::<&str>::new());
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
            ("operator: /o.jwt", true),
        ] {
            assert_eq!(!facts(text).authorization.is_empty(), is_one, "{text}");
        }
    }

    #[test]
    fn two_spellings_of_a_block_are_refused() {
        let text = format!("{FULL}\nTLS {{}}");
        assert!(matches!(Facts::read(&text, Path::new("/a.conf")), Err(ConfError::Ambiguous { .. })));
    }
}
