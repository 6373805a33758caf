//! Whether nats-server serves what is committed: pure.
//!
//! nats-server before 2.11 reports no digest of its configuration. There the leaf that its ports serve decides.

use std::fmt;

use time::OffsetDateTime;

use super::probe::{Port, Silence};
use super::process::ProcessError;
use super::{Observed, Presence};
use crate::clock::rfc3339;
use crate::conf::loss::Certificate;
use crate::x509::leaf::Leaf;

/// What nats-server is expected to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    /// The configuration's digest, where this nats-server reports one.
    pub(crate) digest: Option<String>,
    /// SHA-256 of the leaf's DER, hexadecimal.
    pub(crate) leaf_sha256: String,
    /// The end of the leaf's validity.
    pub(crate) not_after: OffsetDateTime,
}

/// Where a committed configuration stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// nats-server was not looked at yet.
    Unseen,
    /// nats-server serves the committed configuration.
    Served(Evidence),
    /// nats-server doesn't run. It reads the configuration when it starts.
    NoServer {
        /// What shows that it doesn't run.
        why: String,
    },
    /// nats-server was told to reload, and nothing shows yet what became of it.
    Reloading {
        /// When nats-server was told.
        since: OffsetDateTime,
    },
    /// No configuration is committed yet.
    NothingCommitted,
    /// nats-server serves something else, or can't be seen to serve the committed configuration.
    NotServed(Mismatch),
}

/// What shows that nats-server serves the committed configuration. Both ports serve the expected leaf in each case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The monitoring port reports the digest of the committed configuration.
    Digest(String),
    /// nats-server reports no digest, and loaded a configuration at this time.
    LoadTime(OffsetDateTime),
    /// The monitoring port doesn't answer.
    LeafAlone,
}

/// Why nats-server is not seen to serve the committed configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// The pid file names another process, or can't be used.
    Foreign(String),
    /// The system hides the process from the agent.
    Hidden {
        /// The pid in the pid file.
        pid: i32,
    },
    /// A port shows no certificate.
    PortSilent {
        /// The port.
        port: Port,
        /// What the probe met.
        why: Silence,
    },
    /// A port serves another leaf.
    OtherLeaf {
        /// The port.
        port: Port,
    },
    /// nats-server has loaded another configuration.
    OtherConfiguration {
        /// The digest that nats-server reports.
        loaded: String,
        /// The digest of the committed configuration.
        committed: String,
    },
    /// nats-server has loaded no configuration since the agent told it to.
    NothingLoaded,
    /// nats-server refuses the configuration.
    Refused {
        /// Its own words, without values of settings.
        said: String,
    },
    /// nats-server ended when it was told to reload.
    Ended {
        /// The pid that was signalled.
        pid: i32,
        /// What shows that it ended.
        why: String,
    },
    /// The committed file can't be read or checked, so nobody knows what nats-server should serve.
    ExpectationUnknown,
}

impl fmt::Display for Evidence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leaf = "our leaf on the client and route ports";
        match self {
            Self::Digest(digest) => write!(formatter, "digest {digest} and {leaf}"),
            Self::LoadTime(at) => write!(formatter, "{leaf} and a configuration loaded at {}", rfc3339(*at)),
            Self::LeafAlone => write!(formatter, "{leaf} (monitoring doesn't answer)"),
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign(why) => formatter.write_str(why),
            Self::Hidden { pid } => ProcessError::Hidden { pid: *pid }.fmt(formatter),
            Self::PortSilent { port, why } => write!(formatter, "{port} port: {why}"),
            Self::OtherLeaf { port } => write!(formatter, "the {port} port serves another leaf than ours"),
            Self::OtherConfiguration { loaded, committed } => {
                write!(formatter, "the loaded configuration is {loaded}, not {committed}")
            }
            Self::NothingLoaded => formatter.write_str("nats-server has loaded nothing since the agent told it to"),
            Self::Refused { said } => write!(formatter, "nats-server refuses the reload: {said}"),
            Self::Ended { pid, why } => write!(
                formatter,
                "nats-server (pid {pid}) ended when it was told to reload, and none has taken its place: {why}"
            ),
            Self::ExpectationUnknown => formatter.write_str("what it should serve can't be worked out"),
        }
    }
}

impl Mismatch {
    /// Whether nats-server ended, or answers and serves something else. A silent port may belong to a reload that is under
    /// way.
    #[must_use]
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Refused { .. }
                | Self::Ended { .. }
                | Self::OtherLeaf { .. }
                | Self::OtherConfiguration { .. }
                | Self::NothingLoaded
        )
    }
}

impl Expected {
    /// The leaf and the digest that `nats-server -t` printed.
    #[must_use]
    pub(crate) fn of(digest: Option<String>, leaf: &Leaf) -> Self {
        Self { digest, leaf_sha256: leaf.sha256.clone(), not_after: leaf.not_after }
    }

    /// The digest that nats-server is expected to report.
    #[must_use]
    pub(crate) fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// Compares what was observed with what is expected.
    #[must_use]
    pub(crate) fn judge(&self, observed: &Observed) -> Standing {
        match &observed.presence {
            Presence::Unseen => return Standing::Unseen,
            Presence::Absent(why) => return Standing::NoServer { why: why.clone() },
            Presence::Foreign(why) => return Standing::NotServed(Mismatch::Foreign(why.clone())),
            Presence::Hidden(pid) => return Standing::NotServed(Mismatch::Hidden { pid: *pid }),
            Presence::Running(_) => {}
        }
        for (port, served) in [(Port::Route, &observed.route), (Port::Client, &observed.client)] {
            match served {
                // A full server serves the others. What it loaded shows on the route port, which has no such limit.
                Err(silence) if port == Port::Client && silence.is_harmless() => {
                    if self.is_told_on(port, observed) == Some(false) {
                        return Standing::NotServed(Mismatch::OtherLeaf { port });
                    }
                }
                // A server that is slow to greet has loaded what it says that it has loaded.
                Err(Silence::Hangs(_))
                    if port == Port::Client
                        && self.is_reported(observed)
                        && self.is_told_on(port, observed) == Some(true) => {}
                Err(why) => return Standing::NotServed(Mismatch::PortSilent { port, why: why.clone() }),
                Ok(served) if served.sha256 != self.leaf_sha256 => {
                    return Standing::NotServed(Mismatch::OtherLeaf { port });
                }
                Ok(_) => {}
            }
        }
        for (port, other) in observed.others.iter().filter(|(_, other)| other.certificate == Certificate::Own) {
            // A silent listener is a reason of its own.
            if other.served.as_ref().is_ok_and(|served| served.sha256 != self.leaf_sha256) {
                return Standing::NotServed(Mismatch::OtherLeaf { port: *port });
            }
        }
        let Some(varz) = &observed.varz else { return Standing::Served(Evidence::LeafAlone) };
        match (&varz.config_digest, &self.digest) {
            (Some(loaded), Some(ours)) if loaded == ours => Standing::Served(Evidence::Digest(ours.clone())),
            (Some(loaded), Some(ours)) => {
                Standing::NotServed(Mismatch::OtherConfiguration { loaded: loaded.clone(), committed: ours.clone() })
            }
            _ => Standing::Served(Evidence::LoadTime(varz.config_load_time)),
        }
    }

    /// Whether nats-server says that a listener has the expected leaf, by the end of its validity. `None`: this version
    /// doesn't say.
    fn is_told_on(&self, port: Port, observed: &Observed) -> Option<bool> {
        let told = observed.varz.as_ref()?.ends.at(port)?;
        Some(told.unix_timestamp() == self.not_after.unix_timestamp())
    }

    /// Whether nats-server itself reports the expected digest.
    #[must_use]
    pub(crate) fn is_reported(&self, observed: &Observed) -> bool {
        let reported = observed.varz.as_ref().and_then(|varz| varz.config_digest.as_ref());
        reported.is_some() && reported == self.digest.as_ref()
    }

    /// Whether nats-server came to serve what is expected between two observations: by the digest, where nats-server
    /// reports a digest; else by a load; and where monitoring doesn't answer, by a leaf that was not served before.
    #[must_use]
    pub(crate) fn came_to_be_served(&self, before: &Observed, after: &Observed) -> bool {
        match &after.varz {
            Some(varz) if varz.config_digest.is_some() => self.is_reported(after),
            Some(_) => has_loaded(before, after),
            None => before.route.as_ref().is_ok_and(|served| served.sha256 != self.leaf_sha256),
        }
    }
}

impl Standing {
    /// Whether nats-server serves the committed configuration.
    #[must_use]
    pub(crate) fn is_served(&self) -> bool {
        matches!(self, Self::Served(_))
    }

    /// Whether nats-server runs and is not seen to serve the committed configuration.
    #[must_use]
    pub(crate) fn is_not_served(&self) -> bool {
        matches!(self, Self::NotServed(_))
    }

    /// The same standing, if nats-server has loaded a configuration since the agent told it to. Else a served configuration
    /// counts as not loaded.
    #[must_use]
    pub(crate) fn only_if(self, has_loaded: bool) -> Self {
        match self {
            Self::Served(_) if !has_loaded => Self::NotServed(Mismatch::NothingLoaded),
            standing => standing,
        }
    }
}

/// Whether nats-server has loaded a configuration between two observations. Where monitoring doesn't answer nobody can tell,
/// and the answer is yes.
#[must_use]
pub(crate) fn has_loaded(before: &Observed, after: &Observed) -> bool {
    let loads =
        |observed: &Observed| observed.varz.as_ref().map(|varz| (varz.server_id.clone(), varz.config_load_time));
    loads(after).is_none() || loads(before) != loads(after)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use time::macros::datetime;

    use super::*;
    use crate::server::Served;
    use crate::server::monitor::{CertificateEnds, Varz};
    use crate::x509::chain::Chain;

    fn leaf(sha256: &str) -> Served {
        Served { sha256: sha256.into(), not_after: None, chain: Chain::new(vec![b"leaf"[..].into()]).unwrap() }
    }

    const END: OffsetDateTime = datetime!(2026-03-02 12:00 UTC);

    fn expected() -> Expected {
        Expected { digest: Some("sha256:ours".into()), leaf_sha256: "leaf".into(), not_after: END }
    }

    fn seen(change: impl FnOnce(&mut Observed)) -> Observed {
        let varz = Varz {
            version: "2.15.1".into(),
            server_id: "id".into(),
            config_load_time: datetime!(2026-03-01 12:00 UTC),
            config_digest: Some("sha256:ours".into()),
            connections: 0,
            ends: Box::default(),
        };
        let leaf = || Ok(leaf("leaf"));
        let mut observed = Observed {
            presence: Presence::Running(1),
            started: None,
            start: None,
            varz: Some(varz),
            routez: None,
            client: leaf(),
            route: leaf(),
            others: BTreeMap::new(),
            asked: tokio::time::Instant::now(),
            system: crate::server::system::Link::Unwanted,
        };
        change(&mut observed);
        observed
    }

    #[test]
    fn a_reload_counts_only_with_our_digest_and_our_leaf_on_both_ports() {
        let expected = expected();
        let standing = |change: fn(&mut Observed)| expected.judge(&seen(change));
        let digest = |observed: &mut Observed, digest: Option<&str>| {
            observed.varz.as_mut().unwrap().config_digest = digest.map(ToOwned::to_owned);
        };
        assert_eq!(standing(|_| ()), Standing::Served(Evidence::Digest("sha256:ours".into())));
        let other = |port| Standing::NotServed(Mismatch::OtherLeaf { port });
        assert_eq!(standing(|observed| observed.client = Ok(leaf("other"))), other(Port::Client));
        assert_eq!(standing(|observed| observed.route = Ok(leaf("other"))), other(Port::Route));
        let silent =
            Standing::NotServed(Mismatch::PortSilent { port: Port::Route, why: Silence::Closed("refused".into()) });
        assert_eq!(standing(|observed| observed.route = Err(Silence::Closed("refused".into()))), silent);
        let silent =
            Standing::NotServed(Mismatch::PortSilent { port: Port::Client, why: Silence::Hangs("no answer".into()) });
        assert_eq!(standing(|observed| observed.client = Err(Silence::Hangs("no answer".into()))), silent);
        // A full server shows on its route port and by its digest what it loaded.
        assert!(standing(|observed| observed.client = Err(Silence::Full("no more".into()))).is_served());
        let told = |silence: Silence, at, digest: &str| {
            expected.judge(&seen(|observed| {
                let varz = observed.varz.as_mut().unwrap();
                (varz.ends, varz.config_digest) = (CertificateEnds::all(at).into(), Some(digest.into()));
                observed.client = Err(silence);
            }))
        };
        let (full, hangs) = (|| Silence::Full("no more".into()), || Silence::Hangs("no answer".into()));
        // What nats-server says of its certificate counts where its client port can't be seen.
        assert!(told(full(), END, "sha256:ours").is_served());
        assert_eq!(told(full(), END - time::Duration::HOUR, "sha256:ours"), other(Port::Client));
        assert!(told(hangs(), END, "sha256:ours").is_served());
        let silent = Standing::NotServed(Mismatch::PortSilent { port: Port::Client, why: hangs() });
        assert_eq!(told(hangs(), END - time::Duration::HOUR, "sha256:ours"), silent);
        assert_eq!(told(hangs(), END, "sha256:other"), silent);
        let foreign = Standing::NotServed(Mismatch::Foreign("sleep".into()));
        assert_eq!(standing(|observed| observed.presence = Presence::Foreign("sleep".into())), foreign);
        let hidden = Standing::NotServed(Mismatch::Hidden { pid: 7 });
        assert_eq!(standing(|observed| observed.presence = Presence::Hidden(7)), hidden);
        let gone = Standing::NoServer { why: "gone".into() };
        assert_eq!(standing(|observed| observed.presence = Presence::Absent("gone".into())), gone);
        assert_eq!(standing(|observed| observed.presence = Presence::Unseen), Standing::Unseen);
        assert!(expected.judge(&seen(|observed| digest(observed, Some("sha256:other")))).is_not_served());
        // nats-server before 2.11 reports no digest, and a template of one's own may have no monitoring.
        assert!(expected.judge(&seen(|observed| digest(observed, None))).is_served());
        assert!(standing(|observed| observed.varz = None).is_served());
    }
}
