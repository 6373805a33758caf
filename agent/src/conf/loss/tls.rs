//! TLS of every listener, and of every connection that nats-server dials.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::permissions::{Change, Permissions};
use super::values::{block, is_given, text, texts};
use super::{Found, Loss};
use crate::conf::tree::{Ambiguous, Entry, Map, Value};
use crate::state::generation::BUNDLES;

pub(super) fn is_on(map: &Map, name: &str) -> Result<bool, Ambiguous> {
    Ok(map.find(&[name])?.map(|entry| &entry.value) == Some(&Value::Bool(true)))
}

/// Whether a `tls` block of a listener asks for certificates. Two names of one setting count as off.
pub(crate) fn verifies(tls: &Map) -> bool {
    ["verify", "verify_and_map", "verify_cert_and_check_known_urls"]
        .iter()
        .any(|name| is_on(tls, name).unwrap_or(false))
}

/// Whether a switch that takes protection away is on, or may be on.
pub(super) fn may_be_on(map: &Map, name: &str) -> Result<bool, Ambiguous> {
    Ok(!matches!(map.find(&[name])?.map(|entry| &entry.value), None | Some(Value::Bool(false))))
}

/// Whether the block names a key pair, or a list of key pairs (`certs`, since 2.10.8).
pub(super) fn has_certificate(tls: &Map) -> Result<bool, Ambiguous> {
    Ok(is_given(tls, &["certs", "certificates"])? || is_given(tls, &["cert_file"])? && is_given(tls, &["key_file"])?)
}

/// The CAs against which certificates are checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Anchors {
    /// The system's CAs.
    #[default]
    System,
    /// A file that is not the agent's.
    Foreign,
    /// A trust bundle of the agent.
    Own,
}

/// A `tls` block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent facts, not states")]
struct Tls {
    has_certificate: bool,
    /// The certificate belongs to a generation of the agent.
    is_own: bool,
    anchors: Anchors,
    verify: bool,
    map: bool,
    known_urls: bool,
    insecure: bool,
    pinned: BTreeSet<String>,
}

impl Tls {
    /// The `tls` block in `map`. `None`: there is none.
    fn of(map: &Map) -> Result<Option<Self>, Ambiguous> {
        let Some(tls) = map.find(&["tls"])?.and_then(|entry| entry.value.as_map()) else { return Ok(None) };
        let map = is_on(tls, "verify_and_map")?;
        let known_urls = is_on(tls, "verify_cert_and_check_known_urls")?;
        let pinned = tls.find(&["pinned_certs"])?.and_then(|entry| entry.value.as_array()).unwrap_or_default();
        Ok(Some(Self {
            has_certificate: has_certificate(tls)?,
            is_own: has_own_certificate(tls)?,
            anchors: match text(tls, &["ca_file"])? {
                None => Anchors::System,
                Some(file) if BUNDLES.iter().any(|own| is_of_a_generation(&file, own)) => Anchors::Own,
                Some(_) => Anchors::Foreign,
            },
            verify: is_on(tls, "verify")? || map || known_urls,
            map,
            known_urls,
            insecure: may_be_on(tls, "insecure")?,
            pinned: pinned.iter().filter_map(|pin| pin.value.as_text().map(str::to_lowercase)).collect(),
        }))
    }
}

/// Whose certificate a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// The certificate of a generation of the agent.
    Own,
    /// A certificate that somebody else keeps.
    Foreign,
}

/// Whose certificate a `tls` block names. `None`: the block names no certificate, or has two names of one setting.
pub(crate) fn certificate_of(tls: &Map) -> Option<Certificate> {
    let is_own = has_own_certificate(tls).ok()?;
    has_certificate(tls).ok()?.then_some(if is_own { Certificate::Own } else { Certificate::Foreign })
}

fn has_own_certificate(tls: &Map) -> Result<bool, Ambiguous> {
    if text(tls, &["cert_file"])?.is_some_and(|file| is_of_a_generation(&file, "cert.pem")) {
        return Ok(true);
    }
    let pairs = tls.find(&["certs", "certificates"])?.and_then(|entry| entry.value.as_array()).unwrap_or_default();
    Ok(pairs
        .iter()
        .filter_map(|pair| pair.value.as_map()?.get("cert_file")?.value.as_text())
        .any(|file| is_of_a_generation(file, "cert.pem")))
}

/// Whether a path is `…/generations/NUMBER/NAME`, a file of some generation.
fn is_of_a_generation(path: &str, name: &str) -> bool {
    let path = Path::new(path);
    let number = path.parent().and_then(Path::file_name).and_then(|number| number.to_str());
    path.file_name().is_some_and(|file| file == name)
        && number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        && path.parent().and_then(Path::parent).and_then(Path::file_name).is_some_and(|file| file == "generations")
}

/// Everything that nats-server speaks TLS on. An absent listener protects nothing and exposes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listeners {
    client: Option<Tls>,
    cluster: Option<Tls>,
    websocket: Option<Listener>,
    mqtt: Option<Listener>,
    leafnodes: Option<Listener>,
    gateway: Option<Listener>,
    /// By account and by the hosts of its URLs.
    leaf_remotes: BTreeMap<String, Remote>,
    /// By the name of the gateway.
    gateway_remotes: BTreeMap<String, Remote>,
    monitor: Monitor,
}

/// A listener that is on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Listener {
    tls: Option<Tls>,
}

/// What is dialled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Remote {
    /// The account of a leafnode remote.
    account: String,
    /// The subjects that a leafnode remote keeps from crossing.
    permissions: Permissions,
    /// The remote's own block.
    tls: Option<Tls>,
    /// The URLs ask for TLS.
    has_secure_urls: bool,
    /// The gateway's block applies where the remote has none.
    inherits_tls: bool,
}

impl Remote {
    /// Whether the remote itself asks for TLS.
    fn asks_for_tls(&self) -> bool {
        self.tls.is_some() || self.has_secure_urls
    }

    fn is_encrypted(&self) -> bool {
        self.asks_for_tls() || self.inherits_tls
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Monitor {
    #[default]
    Off,
    Http,
    Https,
}

impl Listeners {
    pub(super) fn of(top: &Map) -> Result<Self, Ambiguous> {
        let leafnodes = block(top, &["leafnodes", "leaf"])?;
        let gateway = block(top, &["gateway"])?;
        Ok(Self {
            client: Tls::of(top)?,
            cluster: Tls::of(&*block(top, &["cluster"])?)?,
            websocket: Listener::of(&*block(top, &["websocket", "ws"])?)?,
            mqtt: Listener::of(&*block(top, &["mqtt"])?)?,
            leafnodes: Listener::of(&leafnodes)?,
            gateway: Listener::of(&gateway)?,
            leaf_remotes: leaf_remotes(&leafnodes)?,
            gateway_remotes: gateway_remotes(&gateway)?,
            monitor: monitor(top)?,
        })
    }

    pub(super) fn has_gateway(&self) -> bool {
        self.gateway.is_some()
    }
}

impl Listener {
    fn of(map: &Map) -> Result<Option<Self>, Ambiguous> {
        Ok(if listens(map)? { Some(Self { tls: Tls::of(map)? }) } else { None })
    }
}

/// Whether a block has a port, and nats-server listens there. 0 is no port, and -1 is any port.
pub(super) fn listens(map: &Map) -> Result<bool, Ambiguous> {
    Ok(is_a_port(map.find(&["listen"])?) || is_a_port(map.find(&["port"])?))
}

fn is_a_port(entry: Option<&Entry>) -> bool {
    match entry.map(|entry| &entry.value) {
        Some(Value::Integer(port)) => *port != 0,
        Some(Value::Text(text)) => text.rsplit(':').next().and_then(|port| port.parse().ok()) != Some(0_i64),
        _ => false,
    }
}

/// Whether monitoring is on, and only with TLS.
pub(super) fn is_monitored_with_tls(top: &Map) -> Result<bool, Ambiguous> {
    Ok(monitor(top)? == Monitor::Https)
}

fn monitor(top: &Map) -> Result<Monitor, Ambiguous> {
    Ok(if is_a_port(top.find(&["http"])?) || is_a_port(top.find(&["http_port", "monitor_port"])?) {
        Monitor::Http
    } else if is_a_port(top.find(&["https"])?) || is_a_port(top.find(&["https_port"])?) {
        Monitor::Https
    } else {
        Monitor::Off
    })
}

/// The maps of a list of blocks.
pub(super) fn maps<'a>(map: &'a Map, names: &[&str]) -> Result<impl Iterator<Item = &'a Map>, Ambiguous> {
    let entries = map.find(names)?.and_then(|entry| entry.value.as_array()).unwrap_or_default();
    Ok(entries.iter().filter_map(|entry| entry.value.as_map()))
}

/// The remotes that nats-server dials. Without a `tls` block, `wss://` alone makes the dialling end insist on TLS
/// (`newLeafNodeCfg` in server/leafnode.go).
fn leaf_remotes(leafnodes: &Map) -> Result<BTreeMap<String, Remote>, Ambiguous> {
    let mut remotes = BTreeMap::new();
    for remote in maps(leafnodes, &["remotes"])? {
        if is_on(remote, "disabled")? {
            continue;
        }
        let urls: Vec<&str> = texts(remote.find(&["url", "urls"])?).collect();
        let hosts: BTreeSet<&str> = urls.iter().map(|url| host_of(url)).collect();
        let account = text(remote, &["account", "local"])?.unwrap_or_else(|| "$G".to_owned());
        let name = format!("{} of account {account}", hosts.into_iter().collect::<Vec<_>>().join(", "));
        let has_secure_urls = !urls.is_empty() && urls.iter().all(|url| url.to_lowercase().starts_with("wss://"));
        // What a remote denies to its imports, the local account can't publish into, and the exports are the other way.
        let permissions = Permissions::closing(
            remote.find(&["deny_imports", "deny_import"])?,
            remote.find(&["deny_exports", "deny_export"])?,
        );
        let tls = Tls::of(remote)?;
        remotes.insert(name, Remote { account, permissions, tls, has_secure_urls, inherits_tls: false });
    }
    Ok(remotes)
}

/// Host and port of a URL. The scheme is left out, and so is the user, who may have a password beside the name.
fn host_of(url: &str) -> &str {
    let url = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = url.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default()
}

/// The remote gateways. A remote without a `tls` block uses the block of the gateway.
fn gateway_remotes(gateway: &Map) -> Result<BTreeMap<String, Remote>, Ambiguous> {
    let inherits_tls = Tls::of(gateway)?.is_some();
    let mut remotes = BTreeMap::new();
    for remote in maps(gateway, &["gateways"])? {
        let name = text(remote, &["name"])?.unwrap_or_default();
        remotes.insert(name, Remote { tls: Tls::of(remote)?, inherits_tls, ..Remote::default() });
    }
    Ok(remotes)
}

/// The losses of one place.
struct Place {
    name: &'static str,
    tls: Loss,
    certificate: Loss,
    verify: Loss,
    /// Certificates are checked even where `verify` is off.
    always_verifies: bool,
}

const CLIENT: Place = Place {
    name: "the client port",
    tls: Loss::ClientTls,
    certificate: Loss::ClientCertificate,
    verify: Loss::ClientVerify,
    always_verifies: false,
};
const CLUSTER: Place = Place {
    name: "routes",
    tls: Loss::ClusterTls,
    certificate: Loss::ClusterCertificate,
    verify: Loss::ClusterVerify,
    always_verifies: true,
};
const WEBSOCKET: Place = Place {
    name: "the websocket listener",
    tls: Loss::WebsocketTls,
    certificate: Loss::WebsocketCertificate,
    verify: Loss::WebsocketVerify,
    always_verifies: false,
};
const MQTT: Place = Place {
    name: "the MQTT listener",
    tls: Loss::MqttTls,
    certificate: Loss::MqttCertificate,
    verify: Loss::MqttVerify,
    always_verifies: false,
};
const LEAFNODES: Place = Place {
    name: "the leafnode listener",
    tls: Loss::LeafnodeTls,
    certificate: Loss::LeafnodeCertificate,
    verify: Loss::LeafnodeVerify,
    always_verifies: false,
};
const LEAF_REMOTE: Place = Place {
    name: "the leafnode remote",
    tls: Loss::LeafnodeRemoteTls,
    certificate: Loss::LeafnodeRemoteCertificate,
    verify: Loss::LeafnodeRemoteVerify,
    always_verifies: true,
};
const GATEWAY: Place = Place {
    name: "the gateway listener",
    tls: Loss::GatewayTls,
    certificate: Loss::GatewayCertificate,
    verify: Loss::GatewayVerify,
    always_verifies: true,
};
const GATEWAY_REMOTE: Place = Place {
    name: "the remote gateway",
    tls: Loss::GatewayRemoteTls,
    certificate: Loss::GatewayRemoteCertificate,
    verify: Loss::GatewayRemoteVerify,
    always_verifies: true,
};

pub(super) fn compare(before: &Listeners, after: &Listeners, found: &mut Found) {
    for (place, before, after) in
        [(&CLIENT, &before.client, &after.client), (&CLUSTER, &before.cluster, &after.cluster)]
    {
        let none = Tls::default();
        place.compare(before.as_ref().unwrap_or(&none), after.as_ref().unwrap_or(&none), "", found);
    }
    for (place, gone, before, after) in [
        (&WEBSOCKET, Loss::Websocket, &before.websocket, &after.websocket),
        (&MQTT, Loss::Mqtt, &before.mqtt, &after.mqtt),
        (&LEAFNODES, Loss::Leafnodes, &before.leafnodes, &after.leafnodes),
        (&GATEWAY, Loss::Gateway, &before.gateway, &after.gateway),
    ] {
        match (before, after) {
            (Some(before), Some(after)) => place.compare_listeners(before, after, found),
            (Some(_), None) => found.add(gone, format!("{} would be gone", place.name)),
            (None, _) => {}
        }
    }
    LEAF_REMOTE.compare_remotes(&before.leaf_remotes, &after.leaf_remotes, found);
    GATEWAY_REMOTE.compare_remotes(&before.gateway_remotes, &after.gateway_remotes, found);
    compare_dialled(before, after, found);
    match (before.monitor, after.monitor) {
        (Monitor::Https, Monitor::Http) => found.add(Loss::MonitoringTls, "monitoring would be served without TLS"),
        (Monitor::Https | Monitor::Http, Monitor::Off) => found.add(Loss::Monitoring, "monitoring would be gone"),
        _ => {}
    }
}

/// What is no longer dialled. A leafnode remote at another address takes the place of the remote before, so remotes
/// count by their accounts. Without a gateway no other gateway is dialled.
fn compare_dialled(before: &Listeners, after: &Listeners, found: &mut Found) {
    let dialled = |listeners: &Listeners, account: &str| {
        listeners.leaf_remotes.values().filter(|remote| remote.account == account).count()
    };
    let accounts: BTreeSet<&str> = before.leaf_remotes.values().map(|remote| remote.account.as_str()).collect();
    for account in accounts {
        if dialled(after, account) < dialled(before, account) {
            found.add(Loss::LeafnodeRemote, format!("the account {account:?} would have fewer leafnode remotes"));
        }
    }
    for (name, remote) in &before.leaf_remotes {
        let now = after.leaf_remotes.get(name);
        if now.is_some_and(|now| now.permissions.change_from(&remote.permissions) > Change::Kept) {
            let what = format!("the leafnode remote {name} would let more subjects cross");
            found.add(Loss::LeafnodeRemotePermissions, what);
        }
    }
    if after.has_gateway() {
        for name in before.gateway_remotes.keys().filter(|name| !after.gateway_remotes.contains_key(*name)) {
            found.add(Loss::GatewayRemote, format!("the remote gateway {name:?} would no longer be dialled"));
        }
    }
}

impl Place {
    fn compare_listeners(&self, before: &Listener, after: &Listener, found: &mut Found) {
        let none = Tls::default();
        let (before, after) = (before.tls.as_ref().unwrap_or(&none), after.tls.as_ref().unwrap_or(&none));
        if before.has_certificate && !after.has_certificate {
            found.add(self.tls, format!("{} would be without TLS", self.name));
        }
        self.compare(before, after, "", found);
    }

    /// A remote under another name may be the same remote at another address. Where remotes with TLS are gone and
    /// remotes without TLS are new, the change therefore counts as a loss.
    fn compare_remotes(&self, before: &BTreeMap<String, Remote>, after: &BTreeMap<String, Remote>, found: &mut Found) {
        let gone = before.iter().any(|(name, remote)| remote.asks_for_tls() && !after.contains_key(name));
        for (name, after) in after {
            match before.get(name) {
                Some(before) if before.asks_for_tls() && !after.is_encrypted() => {
                    found.add(self.tls, format!("{} {name} would be dialled without TLS", self.name));
                }
                Some(Remote { tls: Some(before), .. }) => {
                    if let Some(after) = &after.tls {
                        self.compare(before, after, name, found);
                    }
                }
                None if gone && !after.is_encrypted() => {
                    found.add(self.tls, format!("{} {name} would be dialled without TLS", self.name));
                }
                _ => {}
            }
        }
    }

    /// What a block loses besides TLS itself.
    fn compare(&self, before: &Tls, after: &Tls, which: &str, found: &mut Found) {
        let name = if which.is_empty() { self.name.to_owned() } else { format!("{} {which}", self.name) };
        if before.is_own && after.has_certificate && !after.is_own {
            let what = format!("the certificate of {name} would not be the agent's, and the agent renews only its own");
            found.add(self.certificate, what);
        }
        for what in self.unverified(before, after) {
            found.add(self.verify, format!("{name}: {what}"));
        }
    }

    fn unverified(&self, before: &Tls, after: &Tls) -> Vec<&'static str> {
        let mut lost = Vec::new();
        if before.verify && !after.verify && !self.always_verifies {
            lost.push("a certificate would no longer be needed");
        } else if (before.verify || self.always_verifies) && is_encrypted(after) {
            match (before.anchors, after.anchors) {
                (Anchors::Own | Anchors::Foreign, Anchors::System) => {
                    lost.push("certificates of every public CA would be accepted");
                }
                (Anchors::Own, Anchors::Foreign) => lost.push("certificates would be checked against another CA"),
                _ => {}
            }
        }
        if before.map && !after.map && after.verify {
            lost.push("certificates would no longer identify users");
        }
        if before.known_urls && !after.known_urls {
            lost.push("names would no longer be checked against the known URLs");
        }
        if !before.pinned.is_empty() && (after.pinned.is_empty() || !after.pinned.is_subset(&before.pinned)) {
            lost.push("pinned_certs would let in more certificates");
        }
        // `insecure` on routes already counts as the loss `cluster-tls`.
        if !before.insecure && after.insecure && self.tls != Loss::ClusterTls {
            lost.push("the other end's certificate would not be checked");
        }
        lost
    }
}

/// Whether the `tls` block is there. A block without a certificate can still dial.
fn is_encrypted(tls: &Tls) -> bool {
    *tls != Tls::default()
}
