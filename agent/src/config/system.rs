//! `nats.system`: how the agent asks nats-server through its system account.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{Error, MapAccess, Visitor};

/// The way to the system account of nats-server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum System {
    /// A user of the agent's own stands in the configuration, where nothing changes for clients.
    #[default]
    Auto,
    /// The agent does without.
    Off,
    /// A file of credentials: the JWT and the seed of a user of the system account.
    CredsFile(PathBuf),
    /// A secret of Secrets Manager with such credentials, by its name or ARN.
    Secret(String),
}

/// The table, before exactly one of its keys is known to be given.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Table {
    creds_file: Option<PathBuf>,
    secret_id: Option<String>,
}

const EXPECTED: &str = "\"auto\", \"off\", { creds_file = \"…\" } or { secret_id = \"…\" }";

impl<'de> Deserialize<'de> for System {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl<'de> Visitor<'de> for Words {
            type Value = System;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(EXPECTED)
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<System, E> {
                match word {
                    "auto" => Ok(System::Auto),
                    "off" => Ok(System::Off),
                    _ => Err(E::custom(format!("{word:?} is not a way to the system account; write {EXPECTED}"))),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<System, A::Error> {
                match Table::deserialize(serde::de::value::MapAccessDeserializer::new(map))? {
                    Table { creds_file: Some(file), secret_id: None } => Ok(System::CredsFile(file)),
                    Table { creds_file: None, secret_id: Some(id) } => Ok(System::Secret(id)),
                    Table { creds_file: None, secret_id: None } => {
                        Err(A::Error::custom(format!("names neither creds_file nor secret_id; write {EXPECTED}")))
                    }
                    Table { .. } => Err(A::Error::custom("names both creds_file and secret_id; remove one of them")),
                }
            }
        }
        deserializer.deserialize_any(Words)
    }
}
