//! The names of nats-server's settings: which names mean one setting, and which settings are blocks.
//!
//! The source is server/opts.go of nats-server 2.10.26, 2.12.8, 2.14.5 and the main branch before 2.15.1. A later
//! version adds names and takes none away. Names that 2.10.26 lacks are marked, because `-t` of 2.10.26 refuses them.
//!
//! nats-server applies the settings of a block in the random order of Go's maps. Of two names that set one value,
//! either may win: ten starts gave both results.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::tree::{Ambiguous, Entry, Map, Value, lower};

/// The largest number of ambiguities that [`ambiguities`] returns. A person corrects them one after the other, so a few
/// suffice.
pub const MAX_AMBIGUITIES: usize = 20;

/// A kind of block: the settings that one function of server/opts.go reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of nats-server's blocks")]
pub enum Block {
    Top,
    Tls,
    Certificate,
    OcspPeer,
    Ocsp,
    OcspCache,
    Cluster,
    Compression,
    Gateway,
    GatewayRemote,
    LeafNodes,
    LeafAuthorization,
    LeafUser,
    LeafRemote,
    Proxy,
    Websocket,
    Mqtt,
    /// The `authorization` of `websocket` and `mqtt`.
    SimpleAuthorization,
    Authorization,
    User,
    AuthCallout,
    Permissions,
    SubjectPermission,
    Responses,
    /// Names of accounts, each of which is a block.
    Accounts,
    Account,
    AccountJetStream,
    AccountLimits,
    Trace,
    Export,
    Import,
    /// The account and the subject that an import names.
    ImportSource,
    /// Subjects, each of which is a mapping.
    Mappings,
    Mapping,
    JetStream,
    JetStreamLimits,
    Batch,
    Tpm,
    Proxies,
    TrustedProxy,
}

/// When two settings that write one value are ambiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// Always.
    Given,
    /// Where their values differ.
    Differ,
    /// Where the first setting is false and the other is true.
    OffBesideOn,
}

/// The names of a block.
#[derive(Clone, Copy, Default)]
struct Shape {
    /// Groups of names that are one setting. The first is the name that nats-server's documentation uses.
    synonyms: &'static [&'static [&'static str]],
    /// Groups of settings that write one value.
    overlaps: &'static [(When, &'static [&'static str])],
    /// Settings that are blocks, or lists of blocks.
    inside: &'static [(&'static str, Block)],
    /// The block under every name, where the names are free.
    any: Option<Block>,
}

/// `listen` sets a host and a port.
const LISTEN: &[(When, &[&str])] = &[(When::Given, &["listen", "host"]), (When::Given, &["listen", "port"])];
const HOST: &[&str] = &["host", "net"];
const USER: &[&str] = &["user", "username"];
const PASSWORD: &[&str] = &["password", "pass"];

const TOP: Shape = Shape {
    synonyms: &[
        HOST,
        &["mappings", "maps"],
        &["disable_sublist_cache", "no_sublist_cache"],
        &["http_port", "monitor_port"],
        &["leafnodes", "leaf"],
        &["store_dir", "storedir"],
        &["log_file", "logfile"],
        &["log_size_limit", "logfile_size_limit"],
        &["log_max_num", "logfile_max_num"],
        &["pid_file", "pidfile"],
        &["max_connections", "max_conn"],
        &["max_subscriptions", "max_subs"],
        &["max_sub_tokens", "max_subscription_tokens"],
        &["operator", "operators", "roots", "root", "root_operators", "root_operator"],
        &["resolver", "account_resolver", "accounts_resolver"],
        // nats-server prefers the first of these two names, and ignores both where they are not in lower case
        // (configureSystemAccount).
        &["system_account", "system"],
        &["no_system_account", "no_system", "no_sys_acc"],
        &["trusted_keys", "trusted"],
        &["websocket", "ws"],
    ],
    overlaps: &[
        (When::Given, &["listen", "host"]),
        (When::Given, &["listen", "port"]),
        // Both set the monitoring host. nats-server starts only with one of the two ports (startMonitoring).
        (When::Given, &["http", "https"]),
        (When::Given, &["http", "http_port"]),
        (When::Given, &["https", "https_port"]),
        // The other two set `trace` too. `trace_headers` is newer than 2.10.26.
        (When::Differ, &["trace", "trace_verbose", "trace_headers"]),
    ],
    inside: &[
        ("mappings", Block::Mappings),
        ("accounts", Block::Accounts),
        ("authorization", Block::Authorization),
        ("cluster", Block::Cluster),
        ("gateway", Block::Gateway),
        ("leafnodes", Block::LeafNodes),
        ("jetstream", Block::JetStream),
        ("tls", Block::Tls),
        ("resolver_tls", Block::Tls),
        ("ocsp", Block::Ocsp),
        ("ocsp_cache", Block::OcspCache),
        ("websocket", Block::Websocket),
        ("mqtt", Block::Mqtt),
        ("proxies", Block::Proxies),
    ],
    any: None,
};

const TLS: Shape = Shape {
    synonyms: &[&["handshake_first", "first", "immediate"], &["certs", "certificates"]],
    overlaps: &[
        // The last two set `verify` where they are true.
        (When::OffBesideOn, &["verify", "verify_and_map"]),
        (When::OffBesideOn, &["verify", "verify_cert_and_check_known_urls"]),
    ],
    inside: &[("certs", Block::Certificate), ("ocsp_peer", Block::OcspPeer)],
    any: None,
};

const CLUSTER: Shape = Shape {
    synonyms: &[HOST, &["cluster_advertise", "advertise"]],
    overlaps: LISTEN,
    inside: &[
        ("authorization", Block::Authorization),
        ("tls", Block::Tls),
        ("permissions", Block::Permissions),
        ("compression", Block::Compression),
    ],
    any: None,
};

const GATEWAY: Shape = Shape {
    synonyms: &[HOST, &["reject_unknown_cluster", "reject_unknown"]],
    overlaps: LISTEN,
    inside: &[("authorization", Block::Authorization), ("tls", Block::Tls), ("gateways", Block::GatewayRemote)],
    any: None,
};

const LEAFNODES: Shape = Shape {
    synonyms: &[
        HOST,
        &["reconnect", "reconnect_delay", "reconnect_interval"],
        &["advertise", "leafnode_advertise"],
        &["min_version", "minimum_version"],
        // Newer than 2.10.26.
        &["isolate_leafnode_interest", "isolate"],
    ],
    overlaps: LISTEN,
    inside: &[
        ("authorization", Block::LeafAuthorization),
        ("remotes", Block::LeafRemote),
        ("tls", Block::Tls),
        ("compression", Block::Compression),
    ],
    any: None,
};

const LEAF_REMOTE: Shape = Shape {
    synonyms: &[
        &["no_randomize", "dont_randomize"],
        &["urls", "url"],
        &["account", "local"],
        &["credentials", "creds"],
        &["nkey", "seed"],
        &["deny_imports", "deny_import"],
        &["deny_exports", "deny_export"],
        &["ws_compression", "ws_compress", "websocket_compress", "websocket_compression"],
        &["ws_no_masking", "websocket_no_masking"],
        &["jetstream_cluster_migrate", "js_cluster_migrate"],
        // Newer than 2.10.26.
        &["isolate_leafnode_interest", "isolate"],
    ],
    overlaps: &[],
    // `proxy` is newer than 2.10.26.
    inside: &[("tls", Block::Tls), ("compression", Block::Compression), ("proxy", Block::Proxy)],
    any: None,
};

const WEBSOCKET: Shape = Shape {
    synonyms: &[
        HOST,
        &["allowed_origins", "allowed_origin", "allow_origins", "allow_origin", "origins", "origin"],
        &["compression", "compress"],
        &["authorization", "authentication"],
    ],
    overlaps: LISTEN,
    inside: &[("tls", Block::Tls), ("authorization", Block::SimpleAuthorization)],
    any: None,
};

const MQTT: Shape = Shape {
    synonyms: &[
        HOST,
        &["authorization", "authentication"],
        &["ack_wait", "ackwait"],
        // Newer than 2.10.26.
        &["js_api_timeout", "api_timeout"],
        &["max_ack_pending", "max_pending", "max_inflight"],
        &["consumer_inactive_threshold", "consumer_auto_cleanup"],
    ],
    overlaps: LISTEN,
    inside: &[("tls", Block::Tls), ("authorization", Block::SimpleAuthorization)],
    any: None,
};

const AUTHORIZATION: Shape = Shape {
    synonyms: &[
        USER,
        PASSWORD,
        &["default_permissions", "default_permission", "permissions"],
        &["auth_callout", "auth_hook"],
    ],
    overlaps: &[],
    inside: &[
        ("users", Block::User),
        ("default_permissions", Block::Permissions),
        ("auth_callout", Block::AuthCallout),
    ],
    any: None,
};

const USER_ENTRY: Shape = Shape {
    synonyms: &[
        USER,
        PASSWORD,
        &["permissions", "permission", "authorization"],
        &["allowed_connection_types", "connection_types", "clients"],
    ],
    overlaps: &[],
    inside: &[("permissions", Block::Permissions)],
    any: None,
};

const PERMISSIONS: Shape = Shape {
    synonyms: &[
        &["publish", "pub", "import"],
        &["subscribe", "sub", "export"],
        &["allow_responses", "publish_allow_responses"],
    ],
    overlaps: &[],
    inside: &[
        ("publish", Block::SubjectPermission),
        ("subscribe", Block::SubjectPermission),
        ("allow_responses", Block::Responses),
    ],
    any: None,
};

const ACCOUNT: Shape = Shape {
    synonyms: &[
        &["mappings", "maps"],
        // Newer than 2.10.26.
        &["msg_trace", "trace_dest"],
    ],
    overlaps: &[],
    inside: &[
        ("imports", Block::Import),
        ("exports", Block::Export),
        ("jetstream", Block::AccountJetStream),
        ("users", Block::User),
        ("default_permissions", Block::Permissions),
        ("mappings", Block::Mappings),
        ("limits", Block::AccountLimits),
        ("msg_trace", Block::Trace),
    ],
    any: None,
};

const ACCOUNT_JETSTREAM: Shape = Shape {
    synonyms: &[
        &["max_memory", "max_mem", "mem", "memory"],
        &["max_file", "max_store", "max_disk", "store", "disk"],
        &["max_streams", "streams"],
        &["max_consumers", "consumers"],
        &["max_bytes_required", "max_stream_bytes", "max_bytes"],
        &["memory_max_stream_bytes", "mem_max_stream_bytes"],
        &["store_max_stream_bytes", "disk_max_stream_bytes"],
    ],
    overlaps: &[],
    inside: &[],
    any: None,
};

const JETSTREAM: Shape = Shape {
    synonyms: &[
        &["store_dir", "storedir", "store"],
        &["sync_interval", "sync"],
        &["max_memory_store", "max_mem_store", "max_mem"],
        &["max_file_store", "max_file"],
        &["enabled", "enable"],
        &["key", "ek", "encryption_key"],
        &["prev_key", "prev_ek", "prev_encryption_key"],
    ],
    overlaps: &[],
    // `tpm` is newer than 2.10.26.
    inside: &[("limits", Block::JetStreamLimits), ("tpm", Block::Tpm)],
    any: None,
};

impl Block {
    fn shape(self) -> Shape {
        let synonyms = |synonyms| Shape { synonyms, ..Shape::default() };
        let free = |block| Shape { any: Some(block), ..Shape::default() };
        match self {
            Self::Top => TOP,
            Self::Tls => TLS,
            Self::Cluster => CLUSTER,
            Self::Gateway => GATEWAY,
            Self::LeafNodes => LEAFNODES,
            Self::LeafRemote => LEAF_REMOTE,
            Self::Websocket => WEBSOCKET,
            Self::Mqtt => MQTT,
            Self::Authorization => AUTHORIZATION,
            Self::User => USER_ENTRY,
            Self::Permissions => PERMISSIONS,
            Self::Account => ACCOUNT,
            Self::AccountJetStream => ACCOUNT_JETSTREAM,
            Self::JetStream => JETSTREAM,
            Self::Accounts => free(Self::Account),
            Self::Mappings => free(Self::Mapping),
            // `url` adds to the list, and `urls` replaces it.
            Self::GatewayRemote => {
                Shape { synonyms: &[&["urls", "url"]], inside: &[("tls", Self::Tls)], ..Shape::default() }
            }
            Self::LeafAuthorization => {
                Shape { synonyms: &[USER, PASSWORD], inside: &[("users", Self::LeafUser)], ..Shape::default() }
            }
            Self::LeafUser | Self::SimpleAuthorization => synonyms(&[USER, PASSWORD]),
            Self::Ocsp => synonyms(&[&["urls", "url"]]),
            Self::Compression => synonyms(&[&["rtt_thresholds", "thresholds", "rtts", "rtt"]]),
            Self::AuthCallout => synonyms(&[&["account", "acc"], &["auth_users", "users"], &["xkey", "key"]]),
            Self::Responses => {
                synonyms(&[&["max", "max_msgs", "max_messages", "max_responses"], &["expires", "expiration", "ttl"]])
            }
            Self::AccountLimits => synonyms(&[
                &["max_connections", "max_conn"],
                &["max_subscriptions", "max_subs"],
                &["max_payload", "max_pay"],
                &["max_leafnodes", "max_leafs"],
            ]),
            Self::Export => synonyms(&[
                &["response_type", "response"],
                &["response_threshold", "threshold", "response_max_time", "response_time"],
            ]),
            Self::Import => {
                Shape { inside: &[("stream", Self::ImportSource), ("service", Self::ImportSource)], ..Shape::default() }
            }
            Self::Mapping => synonyms(&[&["destination", "dest"]]),
            Self::JetStreamLimits => Shape { inside: &[("batch", Self::Batch)], ..Shape::default() },
            // `proxies` is newer than 2.10.26.
            Self::Proxies => Shape { inside: &[("trusted", Self::TrustedProxy)], ..Shape::default() },
            Self::TrustedProxy => synonyms(&[&["key", "public_key"]]),
            Self::Certificate
            | Self::OcspPeer
            | Self::OcspCache
            | Self::Proxy
            | Self::SubjectPermission
            | Self::Trace
            | Self::ImportSource
            | Self::Batch
            | Self::Tpm => Shape::default(),
        }
    }

    /// The kind of the block, or of the blocks in the list, under a name in this block. `None`: a plain value, a
    /// setting that nats-server doesn't know, or a map with free names and plain values.
    #[must_use]
    pub fn inside(self, name: &str) -> Option<Self> {
        let shape = self.shape();
        let canonical = canonical(self, name);
        shape.any.or_else(|| shape.inside.iter().find(|(block, _)| *block == canonical).map(|(_, block)| *block))
    }

    /// Whether the names in this block are chosen by the user, and are distinguished by their case.
    #[must_use]
    pub fn has_free_names(self) -> bool {
        self.shape().any.is_some()
    }
}

/// The one name of a setting in a block: lower case, and the first of its synonyms. Free names stay as they are.
#[must_use]
pub fn canonical(block: Block, name: &str) -> Cow<'_, str> {
    if block.has_free_names() {
        return Cow::Borrowed(name);
    }
    let name = lower(name);
    let group = block.shape().synonyms.iter().find(|group| group.contains(&&*name));
    group.and_then(|group| group.first()).map_or(name, |first| Cow::Borrowed(*first))
}

/// The places where one setting has two names, anywhere in the tree. At most [`MAX_AMBIGUITIES`] are returned. The
/// names are dotted, as in `cluster.listen` or `authorization.users[3].pass`.
#[must_use]
pub fn ambiguities(tree: &Map) -> Vec<Ambiguous> {
    let mut found = Vec::new();
    each_block(tree, &mut |block, path, map| {
        if found.len() < MAX_AMBIGUITIES {
            ambiguities_of(block, path, map, &mut found);
        }
    });
    found.truncate(MAX_AMBIGUITIES);
    found
}

/// Calls `visit` with each map of the tree that nats-server reads as a block: its kind, its dotted path, and its map.
pub fn each_block<'a>(tree: &'a Map, visit: &mut impl FnMut(Block, &str, &'a Map)) {
    walk(Block::Top, "", tree, visit);
}

/// No kind of block contains itself, so the depth is bounded.
fn walk<'a>(block: Block, path: &str, map: &'a Map, visit: &mut impl FnMut(Block, &str, &'a Map)) {
    visit(block, path, map);
    for (name, entry) in map.iter() {
        let Some(inside) = block.inside(name) else { continue };
        match &entry.value {
            Value::Map(map) => walk(inside, &dotted(path, name), map, visit),
            Value::Array(entries) => {
                let path = dotted(path, name);
                for (index, entry) in entries.iter().enumerate() {
                    if let Value::Map(map) = &entry.value {
                        walk(inside, &format!("{path}[{index}]"), map, visit);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The dotted path of a name in a block.
#[must_use]
pub fn dotted(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn ambiguities_of(block: Block, path: &str, map: &Map, found: &mut Vec<Ambiguous>) {
    let mut settings: BTreeMap<Cow<'_, str>, (&str, &Entry)> = BTreeMap::new();
    let mut ambiguous = |(one, first): (&str, &Entry), (other, second): (&str, &Entry)| {
        found.push(Ambiguous {
            one: dotted(path, one),
            one_origin: first.origin.clone(),
            other: dotted(path, other),
            other_origin: second.origin.clone(),
        });
    };
    for (name, entry) in map.iter() {
        if let Some(first) = settings.insert(canonical(block, name), (name, entry)) {
            ambiguous(first, (name, entry));
        }
    }
    for (when, names) in block.shape().overlaps {
        let mut given = names.iter().filter_map(|name| settings.get(*name));
        let Some(first) = given.next() else { continue };
        for other in given {
            let (one, two) = (&first.1.value, &other.1.value);
            let is_ambiguous = match when {
                When::Given => true,
                When::Differ => one != two,
                When::OffBesideOn => (one, two) == (&Value::Bool(false), &Value::Bool(true)),
            };
            if is_ambiguous {
                ambiguous(*first, *other);
            }
        }
    }
}

#[cfg(test)]
mod tests;
