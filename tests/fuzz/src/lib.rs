//! Fuzz targets for everything that reads external input, one function each.
//!
//! A target panics where the product would panic, and where an assertion about the input fails. libFuzzer drives the
//! targets from `libfuzzer/`, a separate workspace. The ordinary tests replay the corpus and some thousand mutations
//! of the corpus.

#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a panic is a finding"
)]

mod aws;
mod certificates;
mod reader;
mod rendering;

use std::path::Path;

use nats_tls_agent::conf::listeners::Listeners;
use nats_tls_agent::conf::loss::{Facts, losses};
use nats_tls_agent::conf::render::Rendered;
use nats_tls_agent::conf::write;
use nats_tls_agent::config::{Config, NatsConfig};
use nats_tls_agent::daemon::protocol;
use nats_tls_agent::error::with_causes;
use nats_tls_agent::issue::journal::Entries;
use nats_tls_agent::node::metadata::{IdentityDocument, addresses_in, host_name_in};
use nats_tls_agent::node::resource_host_name;
use nats_tls_agent::server::monitor::{Routez, Varz};

pub use crate::aws::aws;
pub use crate::certificates::{chain, trust_bundle};
pub use crate::rendering::rendering;

/// A function that reads one input.
pub type Target = fn(&[u8]);

/// All targets by name. The corpora and libFuzzer's binaries have the same names.
pub const TARGETS: [(&str, Target); 10] = [
    ("aws", aws),
    ("chain", chain),
    ("configuration", configuration),
    ("control", control),
    ("imds", imds),
    ("journal", journal),
    ("monitoring", monitoring),
    ("nats_conf", nats_conf),
    ("rendering", rendering),
    ("trust_bundle", trust_bundle),
];

/// Formats an error as the log does, and checks that the text is one line.
fn logged(error: &dyn std::error::Error) {
    let text = with_causes(error);
    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
}

/// Fuzzes `agent.toml`.
pub fn configuration(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match Config::parse(text, Path::new("/etc/nats-tls-agent/agent.toml")) {
        Ok(config) => assert!(config.nats.config.is_absolute() && !config.issuer.validity.is_zero()),
        Err(error) => logged(&error),
    }
}

/// Fuzzes a line to the control socket, and a line of its answer.
pub fn control(input: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<protocol::Request>(input) {
        let line = serde_json::to_vec(&request).unwrap();
        assert!(!line.contains(&b'\n'));
        assert_eq!(serde_json::from_slice::<protocol::Request>(&line).unwrap(), request);
    }
    if let Ok(answer) = serde_json::from_slice::<protocol::Answer>(input) {
        let line = serde_json::to_vec(&answer).unwrap();
        assert!(!line.contains(&b'\n'));
        assert!(serde_json::from_slice::<protocol::Answer>(&line).is_ok());
    }
}

/// Fuzzes answers of instance metadata. The parsed names can appear in a certificate.
pub fn imds(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match IdentityDocument::parse(text) {
        Ok(IdentityDocument { instance_id, region, .. }) => {
            assert!(resource_host_name(&instance_id, &region).is_some(), "{instance_id:?} {region:?}");
        }
        Err((_, expected)) => assert!(!expected.is_empty()),
    }
    match addresses_in(text) {
        Ok(addresses) => assert_eq!(addresses.len(), text.split_whitespace().count()),
        Err(line) => assert!(text.contains(line)),
    }
    if let Some(Ok(name)) = host_name_in(text) {
        assert!(name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"*.-".contains(&byte)), "{name:?}");
    }
}

/// Fuzzes the journal of issuances.
pub fn journal(input: &[u8]) {
    match Entries::parse(input) {
        Ok(mut entries) => {
            let now = time::OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000);
            let _anyhow = entries.pending.as_ref().map(|pending| pending.is_recent(std::time::Duration::MAX, now));
            let before = entries.issued_in_a_day(now);
            entries.note_issued(now);
            assert!(entries.issued_in_a_day(now) > before.min(19_999));
            let text = serde_json::to_vec(&entries).unwrap();
            assert_eq!(Entries::parse(&text).unwrap().issued_in_a_day(now), entries.issued_in_a_day(now));
        }
        Err(reason) => assert!(!reason.is_empty() && reason.len() < 100),
    }
}

/// Fuzzes the answers of nats-server's monitoring port.
pub fn monitoring(input: &[u8]) {
    if let Ok(varz) = serde_json::from_slice::<Varz>(input) {
        assert_eq!(varz, varz.clone());
        assert!(!nats_tls_agent::clock::rfc3339(varz.config_load_time).is_empty());
    }
    if let Ok(routez) = serde_json::from_slice::<Routez>(input) {
        let addresses: usize = routez.remotes().values().map(|(_, addresses)| addresses.len()).sum();
        assert!(addresses <= routez.routes.len());
    }
}

/// Fuzzes the agent's reader of foreign nats-server configurations. The target skips includes, because an include could
/// read any file of this machine. The unit tests cover includes.
pub fn nats_conf(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if text.to_ascii_lowercase().contains("include") {
        return;
    }
    reader::read_as_nats_server(text);
    let file = Path::new("/nowhere/nats-server.conf");
    let rendered = Rendered::from_text(text.to_owned());
    // Hiding the secrets of any text never panics.
    let _shown = rendered.shown(file, None);
    let tree = match rendered.tree(file) {
        Ok(tree) => tree,
        Err(error) => return logged(&error),
    };
    if let Ok(facts) = Facts::of(&tree) {
        assert!(losses(Some(&facts), &facts).is_empty());
    }
    let _somewhere = Listeners::of(Some(&tree), &NatsConfig::default());
    let written = Rendered::from_text(write::text(&tree));
    assert!(written.tree(file).unwrap() == tree, "{}", written.text());
}
