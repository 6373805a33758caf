//! Mistakes that a trial hides, because its settings are rewritten. They concern ports in use, files that can't be
//! written, the log and a missing OCSP responder.

mod certificates;
mod files;
mod ports;
mod syslog;

use std::fmt;
use std::path::{Path, PathBuf};

use self::files::{FileFault, View};
use crate::conf::tree::{Entry, Map, Origin, Value};
use crate::conf::trial::{LOG_FILE, Listener, PID_FILE, STORE, block, find};

/// What a hidden fault does to nats-server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// The server ends when it reloads, and doesn't start.
    Kills,
    /// The server doesn't start.
    WontStart,
    /// The server logs an error, and goes on.
    Complains,
}

/// A mistake in the settings that a trial can't see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HiddenFault {
    /// The setting, such as `cluster.listen`.
    pub setting: String,
    /// The place of the setting. `None` for a default.
    pub origin: Option<Origin>,
    /// What is wrong with the setting.
    pub fault: Fault,
    /// What the mistake does to nats-server.
    pub consequence: Consequence,
}

impl fmt::Display for HiddenFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => write!(formatter, "{origin}: {}: {}", self.setting, self.fault),
            None => write!(formatter, "{} (by default): {}", self.setting, self.fault),
        }
    }
}

/// What is wrong with a setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Another process listens there.
    #[error("another process uses {host}:{port}; end it, or choose another port")]
    PortInUse {
        /// The host as written.
        host: String,
        /// The port.
        port: i64,
    },
    /// No such port.
    #[error("{port} is no port; choose a port from 1 to 65535, or -1 for any port")]
    NoPort {
        /// The number as written.
        port: i64,
    },
    /// This machine doesn't have the address.
    #[error("this machine doesn't have the address {host}; write an address of this machine, or 0.0.0.0")]
    AddressNotHere {
        /// The host as written.
        host: String,
    },
    /// The name has no address.
    #[error("no address is known for {host}; write an address, or correct the name")]
    HostUnknown {
        /// The host as written.
        host: String,
    },
    /// Two listeners have one port.
    #[error("{other} has port {port} too; give each listener a port of its own")]
    SharedPort {
        /// The port.
        port: i64,
        /// The other listener.
        other: Listener,
    },
    /// A file or directory can't be written.
    #[error("nats-server can't write {}: {fault}", .path.display())]
    Unwritable {
        /// The path of the setting.
        path: PathBuf,
        /// Why.
        fault: FileFault,
    },
    /// The machine has no syslog.
    #[error("no syslog answers at /dev/log, /var/run/syslog or /var/run/log; start a syslog, or remove the setting")]
    NoSyslog,
    /// The address of the remote syslog is of an unknown kind.
    #[error("a remote syslog has the scheme udp, tcp or unix, not {scheme:?}")]
    SyslogScheme {
        /// The scheme as written.
        scheme: String,
    },
    /// The remote syslog doesn't answer.
    #[error("no connection to the remote syslog {address} ({kind}); start the syslog, or remove the setting")]
    SyslogUnreachable {
        /// The address.
        address: String,
        /// What the system answered.
        kind: std::io::ErrorKind,
    },
    /// A certificate needs a stapled OCSP response, and no responder is known.
    #[error(
        "{} needs a stapled OCSP response, but names no responder; set ocsp.url, or use a certificate that names a \
         responder",
        .certificate.display()
    )]
    NoResponder {
        /// The file of the certificate.
        certificate: PathBuf,
    },
}

/// The mistakes in `new` that a trial hides.
///
/// `running` are the settings of the running server, if any. Its own ports are no fault, and a reload opens no log
/// whose settings stay the same. `nats_pid` is the process of that server, through which the agent sees what the server
/// may write. Without `nats_pid` the agent's own view counts. A directory that only the agent's sandbox hides is then
/// no fault. Relative paths belong to `cwd`.
///
/// Blocks while names are resolved and a remote syslog is dialled, for some seconds at most.
#[must_use]
pub fn hidden_faults(new: &Map, running: Option<&Map>, nats_pid: Option<i32>, cwd: Option<&Path>) -> Vec<HiddenFault> {
    let view = View::through(nats_pid, cwd);
    let mut faults = ports::faults(new, running);
    faults.extend(log_fault(new, running, &view));
    faults.extend(file_faults(new, &view));
    faults.extend(certificates::faults(new, cwd));
    faults
}

/// Settings whose change makes nats-server open its log again (`server/reload.go`, `loggingOption`; seen on 2.10.26 and
/// 2.15.1).
const LOG_SETTINGS: [&[&str]; 9] = [
    &LOG_FILE,
    &["syslog"],
    &["remote_syslog"],
    &["debug"],
    &["trace"],
    &["trace_verbose"],
    &["trace_headers"],
    &["logtime"],
    &["logtime_utc"],
];

/// The log goes to the first of these that is set: the file, the remote syslog, the syslog (`server/log.go`).
fn log_fault(new: &Map, running: Option<&Map>, view: &View) -> Option<HiddenFault> {
    let text = |names: &[&str]| {
        let entry = find(new, names)?;
        entry.value.as_text().filter(|text| !text.is_empty()).map(|text| (entry, text.to_owned()))
    };
    let (setting, entry, fault) = if let Some((entry, path)) = text(&LOG_FILE) {
        ("log_file", entry, unwritable(view.file(&path), &path)?)
    } else if let Some((entry, url)) = text(&["remote_syslog"]) {
        ("remote_syslog", entry, syslog::remote_fault(&url)?)
    } else {
        let entry = find(new, &["syslog"]).filter(|entry| entry.value == Value::Bool(true))?;
        ("syslog", entry, syslog::local_fault()?)
    };
    let value = |tree: &Map, names: &[&str]| find(tree, names).map(|entry| entry.value.clone());
    let is_changed = |running: &Map| LOG_SETTINGS.iter().any(|names| value(new, names) != value(running, names));
    let kills = running.is_some_and(is_changed);
    Some(found(setting, entry, fault, if kills { Consequence::Kills } else { Consequence::WontStart }))
}

/// Files and directories other than the log. nats-server runs without its ports file, but needs each of the others.
fn file_faults(new: &Map, view: &View) -> Vec<HiddenFault> {
    let path = |entry: &Entry| entry.value.as_text().filter(|path| !path.is_empty()).map(str::to_owned);
    let mut faults = Vec::new();
    if let Some(entry) = find(new, &PID_FILE)
        && let Some(path) = path(entry)
        && let Some(fault) = unwritable(view.file(&path), &path)
    {
        faults.push(found("pid_file", entry, fault, Consequence::WontStart));
    }
    let jetstream = find(new, &["jetstream"]).map(|entry| &entry.value);
    let is_off = |value: &Value| match value {
        Value::Bool(on) => !on,
        Value::Text(word) => !word.to_lowercase().starts_with("enable"),
        Value::Map(map) => find(map, &["enabled", "enable"]).is_some_and(|entry| entry.value == Value::Bool(false)),
        _ => true,
    };
    let within = block(new, &["jetstream"]).and_then(|jetstream| find(jetstream, &STORE));
    if jetstream.is_some_and(|jetstream| !is_off(jetstream))
        && let Some(entry) = within.or_else(|| find(new, &["store_dir", "storedir"]))
        && let Some(path) = path(entry)
        && let Some(fault) = unwritable(view.directory(&path), &path)
    {
        faults.push(found("store_dir", entry, fault, Consequence::WontStart));
    }
    if let Some(entry) = find(new, &["ports_file_dir"])
        && let Some(path) = path(entry)
        && let Some(fault) = unwritable(view.existing_directory(&path), &path)
    {
        faults.push(found("ports_file_dir", entry, fault, Consequence::Complains));
    }
    faults
}

fn unwritable(seen: Result<(), FileFault>, path: &str) -> Option<Fault> {
    seen.err().map(|fault| Fault::Unwritable { path: path.into(), fault })
}

fn found(setting: &str, entry: &Entry, fault: Fault, consequence: Consequence) -> HiddenFault {
    HiddenFault { setting: setting.to_owned(), origin: Some(entry.origin.clone()), fault, consequence }
}

#[cfg(test)]
mod tests;
