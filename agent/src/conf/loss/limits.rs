//! Limits that a change would lower: of the server, of JetStream and of accounts.

use std::collections::BTreeMap;

use super::values::block;
use crate::conf::tree::{Ambiguous, Map, Value};

/// Limits by name. A limit that is absent here limits nothing, or nothing that the configuration tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits(BTreeMap<&'static str, i64>);

/// The names of a limit. The first is the name that nats-server's documentation uses.
type Names = &'static [&'static str];

const ACCOUNT: [Names; 4] = [
    &["max_connections", "max_conn"],
    &["max_subscriptions", "max_subs"],
    &["max_payload", "max_pay"],
    &["max_leafnodes", "max_leafs"],
];
/// Sizes, of which 0 allows nothing.
const ACCOUNT_STORES: [Names; 2] =
    [&["max_memory", "max_mem", "mem", "memory"], &["max_file", "max_store", "max_disk", "store", "disk"]];
/// Numbers, of which 0 is no limit.
const ACCOUNT_STREAMS: [Names; 5] = [
    &["max_streams", "streams"],
    &["max_consumers", "consumers"],
    &["memory_max_stream_bytes", "mem_max_stream_bytes"],
    &["store_max_stream_bytes", "disk_max_stream_bytes"],
    &["max_ack_pending"],
];
const MAX_BYTES_REQUIRED: Names = &["max_bytes_required", "max_stream_bytes", "max_bytes"];
const JETSTREAM: [Names; 2] = [&["max_memory_store", "max_mem_store", "max_mem"], &["max_file_store", "max_file"]];
/// The limits of the server, with nats-server's defaults (`DEFAULT_MAX_CONNECTIONS` and `MAX_PAYLOAD_SIZE`). 0 is no
/// limit, and no payload for `max_payload`.
const SERVER: [(Names, i64); 4] = [
    (&["max_connections", "max_conn"], 64 << 10),
    (&["max_payload"], 1 << 20),
    (&["max_subscriptions", "max_subs"], 0),
    (&["max_sub_tokens", "max_subscription_tokens"], 0),
];

impl Limits {
    /// `limits` of an account.
    pub(super) fn of_account(account: &Map) -> Result<Self, Ambiguous> {
        let limits = block(account, &["limits"])?;
        let mut found = Self::default();
        for names in ACCOUNT {
            found.note(names, number(&limits, names)?.filter(|limit| *limit != -1));
        }
        Ok(found)
    }

    /// `jetstream` of an account.
    pub(super) fn of_account_jetstream(account: &Map) -> Result<Self, Ambiguous> {
        let jetstream = block(account, &["jetstream"])?;
        let mut found = Self::default();
        for names in ACCOUNT_STORES {
            found.note(names, number(&jetstream, names)?.filter(|limit| *limit >= 0));
        }
        for names in ACCOUNT_STREAMS {
            found.note(names, number(&jetstream, names)?.filter(|limit| *limit > 0));
        }
        let is_required = jetstream.find(MAX_BYTES_REQUIRED)?.map(|entry| &entry.value) == Some(&Value::Bool(true));
        found.note(MAX_BYTES_REQUIRED, is_required.then_some(0));
        Ok(found)
    }

    /// `max_mem` and `max_file` of the server's JetStream. A limit that is not set is three quarters of the machine's,
    /// so nobody knows whether another limit is lower.
    pub(super) fn of_jetstream(top: &Map) -> Result<BTreeMap<&'static str, i64>, Ambiguous> {
        let jetstream = block(top, &["jetstream"])?;
        let mut found = BTreeMap::new();
        for names in JETSTREAM {
            found.extend(names.last().copied().zip(number(&jetstream, names)?.filter(|limit| *limit >= 0)));
        }
        Ok(found)
    }

    /// The limits of the server.
    pub(super) fn of_server(top: &Map) -> Result<Self, Ambiguous> {
        let mut found = Self::default();
        for (names, default) in SERVER {
            let limit = number(top, names)?.unwrap_or(default);
            let is_limit = limit > 0 || limit == 0 && names.contains(&"max_payload");
            found.note(names, Some(limit).filter(|_| is_limit));
        }
        Ok(found)
    }

    fn note(&mut self, names: Names, limit: Option<i64>) {
        self.0.extend(names.first().copied().zip(limit));
    }

    /// The names of the limits that are lower than before, or new.
    pub(super) fn lowered<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'static str> + 'a {
        let is_lower =
            |(name, limit): &(&&'static str, &i64)| before.0.get(**name).is_none_or(|before| *limit < before);
        self.0.iter().filter(is_lower).map(|(name, _)| *name)
    }
}

/// An integer, or a size in a string (`getStorageSize` in server/opts.go).
fn number(map: &Map, names: &[&str]) -> Result<Option<i64>, Ambiguous> {
    Ok(match map.find(names)?.map(|entry| &entry.value) {
        Some(Value::Integer(integer)) => Some(*integer),
        Some(Value::Text(text)) => size(text),
        _ => None,
    })
}

fn size(text: &str) -> Option<i64> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let factor = match unit {
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => return None,
    };
    digits.parse::<i64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_in_a_string_is_read_as_nats_server_reads_it() {
        for (text, expected) in [
            ("1K", Some(1024)),
            ("2T", Some(2 << 40)),
            ("1k", None),
            ("", None),
            ("9223372036854775807K", None),
            ("ä", None),
        ] {
            assert_eq!(size(text), expected, "{text}");
        }
    }
}
