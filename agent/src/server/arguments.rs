//! The arguments that nats-server was started with beside `-c`: pure.
//!
//! An argument wins over the configuration at each start. A reload reads the configuration again and takes over only some
//! of the arguments. Where another argument differs from the configuration, nats-server refuses the whole reload.
//! docs/nats-server.md, section 4, has the table, and `tests/it/arguments.rs` measures it.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::conf::listeners::{Listeners, dialable};
use crate::conf::tree::{Map, Value};

/// What an argument does beside the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// The configuration keeps its meaning.
    Harmless,
    /// The argument stands in the place of a setting.
    Replaces,
    /// nats-server refuses a reload, unless the setting has the argument's value.
    RefusesUnlessSet(&'static [&'static str]),
    /// nats-server refuses each reload while the switch is on.
    Refuses,
}

/// Whether an argument has a value of its own. A switch has a value only after `=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Switch,
    Value,
}

/// Every argument that nats-server documents, by its names.
const ARGUMENTS: &[(&[&str], Form, Effect)] = &[
    (&["c", "config"], Form::Value, Effect::Harmless),
    (&["D", "debug"], Form::Switch, Effect::Harmless),
    (&["V", "trace"], Form::Switch, Effect::Harmless),
    (&["VV"], Form::Switch, Effect::Harmless),
    (&["DV"], Form::Switch, Effect::Harmless),
    (&["DVV"], Form::Switch, Effect::Harmless),
    (&["T", "logtime"], Form::Switch, Effect::Harmless),
    (&["logtime_utc"], Form::Switch, Effect::Harmless),
    (&["l", "log"], Form::Value, Effect::Harmless),
    (&["s", "syslog"], Form::Switch, Effect::Harmless),
    (&["r", "remote_syslog"], Form::Value, Effect::Harmless),
    (&["max_traced_msg_len"], Form::Value, Effect::Harmless),
    (&["ports_file_dir"], Form::Value, Effect::Harmless),
    (&["profile"], Form::Value, Effect::Harmless),
    (&["p", "port"], Form::Value, Effect::Replaces),
    (&["a", "addr", "net"], Form::Value, Effect::Replaces),
    (&["m", "http_port"], Form::Value, Effect::Replaces),
    (&["P", "pid"], Form::Value, Effect::Replaces),
    (&["client_advertise"], Form::Value, Effect::Replaces),
    (&["js", "jetstream"], Form::Switch, Effect::Replaces),
    (&["sd", "store_dir"], Form::Value, Effect::Replaces),
    (&["user"], Form::Value, Effect::Replaces),
    (&["pass"], Form::Value, Effect::Replaces),
    (&["auth"], Form::Value, Effect::Replaces),
    (&["routes"], Form::Value, Effect::Replaces),
    (&["cluster", "cluster_listen"], Form::Value, Effect::Replaces),
    (&["cluster_name"], Form::Value, Effect::Replaces),
    (&["cluster_advertise"], Form::Value, Effect::Replaces),
    (&["no_advertise"], Form::Switch, Effect::Replaces),
    (&["connect_retries"], Form::Value, Effect::Replaces),
    (&["n", "name", "server_name"], Form::Value, Effect::RefusesUnlessSet(&["server_name"])),
    (&["log_size_limit"], Form::Value, Effect::RefusesUnlessSet(&["logfile_size_limit", "log_size_limit"])),
    (&["ms", "https_port"], Form::Value, Effect::RefusesUnlessSet(&["https_port", "https"])),
    (&["tls"], Form::Switch, Effect::Refuses),
    (&["tlsverify"], Form::Switch, Effect::Refuses),
    (&["tlscert"], Form::Value, Effect::Refuses),
    (&["tlskey"], Form::Value, Effect::Refuses),
    (&["tlscacert"], Form::Value, Effect::Refuses),
];

/// The arguments whose values are secrets, or hold secrets.
const SECRETS: [&str; 4] = ["user", "pass", "auth", "routes"];

/// One argument. Its value may be a secret, so the value is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
struct Argument {
    /// The first of its names.
    name: &'static str,
    /// The argument as it was written, without its value.
    written: String,
    value: Option<String>,
    effect: Effect,
}

impl fmt::Debug for Argument {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.written)
    }
}

/// Arguments that a nats-server under an agent should not have, without their values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArgumentFault {
    /// nats-server refuses every reload for these.
    RefuseReloads(Vec<String>),
    /// These stand in the place of settings.
    ReplaceSettings(Vec<String>),
}

impl ArgumentFault {
    /// Whether no certificate comes into force for it. Anything else is a warning.
    #[must_use]
    pub(crate) fn is_failure(&self) -> bool {
        matches!(self, Self::RefuseReloads(_))
    }
}

impl fmt::Display for ArgumentFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RefuseReloads(names) => write!(
                formatter,
                "nats-server was started with {}, and refuses every reload for that, new certificates included; take it out \
                 of ExecStart of nats-server's unit, put it into [nats.settings] if it is wanted, and restart nats-server",
                names.join(", ")
            ),
            Self::ReplaceSettings(names) => write!(
                formatter,
                "nats-server was started with {}, which stands in the place of the agent's settings; take it out of \
                 ExecStart of nats-server's unit, and put it into [nats.settings] if it is wanted",
                names.join(", ")
            ),
        }
    }
}

/// The arguments of a nats-server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments(Vec<Argument>);

impl Arguments {
    /// Reads a command line as nats-server does: one dash or two, and a value in the same word or in the next.
    #[must_use]
    pub fn of(command_line: &[OsString]) -> Self {
        let mut found = Vec::new();
        let mut words = command_line.iter().skip(1).map(|word| word.to_string_lossy());
        while let Some(word) = words.next() {
            let Some(bare) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else { break };
            let (name, value) = match bare.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (bare, None),
            };
            let known = ARGUMENTS.iter().find(|(names, ..)| names.contains(&name));
            let Some((names, form, effect)) = known else { continue };
            let value = value.or_else(|| (*form == Form::Value).then(|| words.next().map(Into::into)).flatten());
            // `--tls=false` switches TLS off until the first reload, and no reload is refused.
            let is_off = *form == Form::Switch && value.as_deref().is_some_and(|value| !is_true(value));
            let effect = if *effect == Effect::Refuses && is_off { Effect::Replaces } else { *effect };
            let written = word.split('=').next().unwrap_or_default().to_owned();
            let name = names.first().copied().unwrap_or_default();
            // A secret is of no use here, so it isn't kept.
            let value = value.filter(|_| !SECRETS.contains(&name));
            found.push(Argument { name, written, value, effect });
        }
        Self(found)
    }

    /// The last value of an argument: nats-server takes the last, too.
    fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|argument| argument.name == name).and_then(|argument| argument.value.as_deref())
    }

    /// Whether the arguments name a user, a password or a token. nats-server takes no account beside these.
    #[must_use]
    pub(crate) fn name_a_user(&self) -> bool {
        self.0.iter().any(|argument| ["user", "pass", "auth"].contains(&argument.name))
    }

    /// What is wrong with the arguments. `committed` gives the committed configuration, and is asked only if it matters.
    #[must_use]
    pub fn faults(&self, committed: impl FnOnce() -> Map) -> Vec<ArgumentFault> {
        let may_refuse = |argument: &Argument| !matches!(argument.effect, Effect::Harmless | Effect::Replaces);
        let refusing = if self.0.iter().any(may_refuse) { self.refusing(&committed()) } else { Vec::new() };
        let replacing = written(self.0.iter().filter(|argument| argument.effect == Effect::Replaces));
        let refusing = (!refusing.is_empty()).then_some(ArgumentFault::RefuseReloads(refusing));
        let replacing = (!replacing.is_empty()).then_some(ArgumentFault::ReplaceSettings(replacing));
        refusing.into_iter().chain(replacing).collect()
    }

    /// The arguments for which nats-server refuses every reload of `committed`.
    fn refusing(&self, committed: &Map) -> Vec<String> {
        let refuses = |argument: &&Argument| match argument.effect {
            Effect::Harmless | Effect::Replaces => false,
            Effect::Refuses => true,
            Effect::RefusesUnlessSet(settings) => {
                let set = committed.find(settings).ok().flatten();
                !set.is_some_and(|entry| is_same(&entry.value, self.value(argument.name).unwrap_or_default()))
            }
        };
        written(self.0.iter().filter(refuses))
    }

    /// The pid file that the arguments name, as nats-server resolves the path from its working directory.
    #[must_use]
    pub(crate) fn pid_file(&self, working_directory: &Path) -> Option<PathBuf> {
        self.value("P").filter(|path| !path.is_empty()).map(|path| working_directory.join(path))
    }

    /// The listeners of a nats-server with these arguments, where the configuration alone gives `at`.
    #[must_use]
    pub(crate) fn over(&self, at: &Listeners) -> Listeners {
        let port = |name| self.value(name).and_then(|port| port.parse().ok()).filter(|port: &u16| *port > 0);
        let mut over = at.clone();
        if let Some(host) = self.value("a").and_then(|host| host.parse::<IpAddr>().ok()) {
            over.client = dialable(SocketAddr::new(host, over.client.port()));
        }
        if let Some(port) = port("p") {
            over.client.set_port(port);
        }
        if let Some(port) = port("m") {
            over.monitor.address.set_port(port);
        }
        if let Some(route) = self.value("cluster").and_then(address_of_url) {
            over.route = dialable(route);
        }
        over
    }
}

/// The boolean values of nats-server's arguments.
fn is_true(value: &str) -> bool {
    matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

/// Whether a setting has the value of an argument. The listener of `https` counts by its port.
fn is_same(set: &Value, argument: &str) -> bool {
    match set {
        Value::Integer(number) => argument.parse() == Ok(*number),
        Value::Text(text) => {
            text.as_str() == argument || text.rsplit_once(':').is_some_and(|(_, port)| port == argument)
        }
        _ => false,
    }
}

/// The address of `nats://user:password@host:port`.
fn address_of_url(url: &str) -> Option<SocketAddr> {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    authority.rsplit('@').next()?.trim_end_matches('/').parse().ok()
}

fn written<'a>(arguments: impl Iterator<Item = &'a Argument>) -> Vec<String> {
    let mut written: Vec<String> = arguments.map(|argument| argument.written.clone()).collect();
    written.sort_unstable();
    written.dedup();
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NatsConfig;

    fn arguments(line: &str) -> Arguments {
        let words: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
        Arguments::of(&words)
    }

    fn refusing(line: &str, committed: &str) -> Vec<String> {
        let committed = crate::conf::read(committed, Path::new("/etc/nats.conf")).unwrap();
        arguments(line).refusing(&committed)
    }

    #[test]
    fn an_argument_that_differs_from_the_configuration_refuses_reloads() {
        let committed = "server_name: n1\nhttps: \"127.0.0.1:8443\"\nlogfile_size_limit: 1000000";
        for line in ["--name over", "-n over", "--server_name=over", "-name n1 -n over"] {
            assert_eq!(
                refusing(&format!("nats-server -c a {line}"), committed).len(),
                line.matches("-n").count().max(1)
            );
        }
        assert_eq!(refusing("nats-server --name n1 -ms 8443 --log_size_limit 1000000 -c a", committed), [""; 0]);
        let all =
            refusing("nats-server -c a --name=x -ms 1 --log_size_limit 1 --tls --tlscert=/c --tlskey /k", committed);
        assert_eq!(all, ["--log_size_limit", "--name", "--tls", "--tlscert", "--tlskey", "-ms"]);
        assert_eq!(refusing("nats-server -c a --tls=false -DV -js -p 1 -m 2 -l /log -D", committed), [""; 0]);
        assert_eq!(refusing("nats-server --name over", "port: 4222"), ["--name"]);
    }

    #[test]
    fn no_value_of_an_argument_is_shown() {
        let given =
            arguments("nats-server -c a --user u --pass hunter2 --auth=hunter2 --cluster nats://u:hunter2@1.2.3.4:5");
        let replacing = ["--auth", "--cluster", "--pass", "--user"].map(str::to_owned).to_vec();
        assert_eq!(given.faults(Map::default), [ArgumentFault::ReplaceSettings(replacing)]);
        assert!(!format!("{given:?}").contains("hunter2"), "{given:?}");
    }

    #[test]
    fn what_the_arguments_set_counts_as_set() {
        let at = Listeners::of(None, &NatsConfig::default());
        let over = |line: &str| arguments(line).over(&at);
        assert_eq!(over("nats-server -c a -D"), at);
        let moved = over("nats-server -a 10.0.0.1 -p 14222 --http_port 18222 --cluster nats://u:p@0.0.0.0:16222 -c a");
        assert_eq!(moved.client, ([10, 0, 0, 1], 14222).into());
        assert_eq!(moved.monitor.address, SocketAddr::new(at.monitor.address.ip(), 18222));
        assert_eq!(moved.route, ([127, 0, 0, 1], 16222).into());
        // A port that nats-server chooses by itself, or a host name, says nothing.
        assert_eq!(over("nats-server -p -1 -a localhost -m 0 -c a"), at);
        let pid_file = |line: &str| arguments(line).pid_file(Path::new("/run/nats"));
        assert_eq!(pid_file("nats-server -P /run/a.pid -c a"), Some("/run/a.pid".into()));
        assert_eq!(pid_file("nats-server --pid=b.pid"), Some("/run/nats/b.pid".into()));
        assert_eq!(pid_file("nats-server -c -P"), None);
    }
}
