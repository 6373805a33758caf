//! Why the node is not healthy, and what is worth knowing: each reason is a value with a stable code.
//!
//! Decisions look at the value or at its code. The text is made once, where a person or a program reads the reason.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::aws::secret::SecretError;
use crate::clock::rfc3339;
use crate::conf::system::Obstacle;
use crate::config::ConfigError;
use crate::error::{RemoteError, RemoteErrorKind, with_causes};
use crate::issue::ObtainError;
use crate::issue::acm_pca::INVALID_STATE;
use crate::issue::journal::JournalError;
use crate::node::IdentityError;
use crate::peers::Kept;
use crate::server::ServerError;
use crate::server::arguments::ArgumentFault;
use crate::server::jetstream::Trouble;
use crate::server::probe::{Port, Silence};
use crate::server::process::ProcessError;
use crate::server::standing::Mismatch;
use crate::server::system::Fault;
use crate::state::durable::FileError;
use crate::state::generation::GenerationError;
use crate::trust::rollover::Wait;
use crate::trust::{BundleError, Refusal, TrustError};

macro_rules! codes {
    ($($(#[$doc:meta])+ $name:ident = $code:literal,)+) => {
        /// The stable name of a reason. The runbook has a heading for each code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code { $($(#[$doc])+ $name,)+ }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The code as `status --json` and the log field `NATS_TLS_AGENT_CODE` have it. A code never changes.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }
        }
    };
}

codes! {
    /// No certificate was issued yet.
    NoCertificate = "no_certificate",
    /// NotAfter of the newest certificate has passed.
    CertificateExpired = "certificate_expired",
    /// NotBefore of the newest certificate is in the future.
    CertificateNotYetValid = "certificate_not_yet_valid",
    /// A port serves a certificate that clients and peers refuse.
    ServedCertificateRefused = "served_certificate_refused",
    /// This instance waits in the warm pool of its group.
    InWarmPool = "in_warm_pool",
    /// A renewal failed.
    NoNewCertificate = "no_new_certificate",
    /// The issuer's certificate is not what the CSR asked for, or chains to no anchor.
    CertificateRejected = "certificate_rejected",
    /// The issued certificate can't be verified before a trust bundle is read.
    CertificateWaitsForBundle = "certificate_waits_for_bundle",
    /// The issuer throttles.
    IssuerThrottled = "issuer_throttled",
    /// A quota of the issuer is used up.
    IssuerQuota = "issuer_quota",
    /// The issuer denies the call.
    IssuerDenied = "issuer_denied",
    /// The issuer can't be reached, or answers nonsense.
    IssuerUnavailable = "issuer_unavailable",
    /// The issuer refuses the request for good.
    IssuerRefused = "issuer_refused",
    /// The certificate doesn't exist yet.
    IssuerInProgress = "issuer_in_progress",
    /// The issuer doesn't know the certificate that it named.
    IssuerAbsent = "issuer_absent",
    /// The status of the CA doesn't allow it to issue.
    IssuerNotActive = "issuer_not_active",
    /// The CA's certificate has ended.
    IssuerEnded = "issuer_ended",
    /// The CA's certificate ends within two lifetimes of a leaf.
    IssuerEnds = "issuer_ends",
    /// The cap on issuances a day is reached.
    IssuanceCap = "issuance_cap",
    /// The cryptographic library made no key or no CSR.
    KeyNotMade = "key_not_made",
    /// The journal of issuances can't be read.
    JournalUnreadable = "journal_unreadable",
    /// Secrets Manager throttles the reading of the trust bundle.
    TrustThrottled = "trust_throttled",
    /// A quota stands in the way of the trust bundle.
    TrustQuota = "trust_quota",
    /// The trust bundle may not be read.
    TrustDenied = "trust_denied",
    /// The source of the trust bundle can't be reached.
    TrustUnavailable = "trust_unavailable",
    /// The source of the trust bundle refuses the request for good.
    TrustRefused = "trust_refused",
    /// The source gives something else than a trust bundle.
    TrustInvalid = "trust_invalid",
    /// Secrets Manager throttles the reading of the cluster credential.
    CredentialThrottled = "credential_throttled",
    /// A quota stands in the way of the cluster credential.
    CredentialQuota = "credential_quota",
    /// The cluster credential may not be read.
    CredentialDenied = "credential_denied",
    /// The source of the cluster credential can't be reached.
    CredentialUnavailable = "credential_unavailable",
    /// The source of the cluster credential refuses the request for good.
    CredentialRefused = "credential_refused",
    /// The secret holds no usable cluster credential.
    CredentialInvalid = "credential_invalid",
    /// Secrets Manager throttles the reading of an included secret.
    IncludedThrottled = "included_throttled",
    /// A quota stands in the way of an included secret.
    IncludedQuota = "included_quota",
    /// An included secret may not be read.
    IncludedDenied = "included_denied",
    /// The source of an included secret can't be reached.
    IncludedUnavailable = "included_unavailable",
    /// The source of an included secret refuses the request for good.
    IncludedRefused = "included_refused",
    /// An included secret holds no text.
    IncludedInvalid = "included_invalid",
    /// Secrets Manager throttles the calls for the connection document.
    ConnectionThrottled = "connection_throttled",
    /// A quota stands in the way of the connection document.
    ConnectionQuota = "connection_quota",
    /// The connection document may not be read or written.
    ConnectionDenied = "connection_denied",
    /// The secret of the connection document can't be reached.
    ConnectionUnavailable = "connection_unavailable",
    /// The secret of the connection document is missing, or refuses the request for good.
    ConnectionRefused = "connection_refused",
    /// The secret can't take the connection document, or holds none.
    ConnectionInvalid = "connection_invalid",
    /// The connection document is of a newer agent.
    ConnectionNewer = "connection_newer",
    /// Two nodes would have different connection documents.
    ConnectionDisputed = "connection_disputed",
    /// A client with the connection document verifies none of the servers that answer.
    ClientCaRefused = "client_ca_refused",
    /// The service was not told of new files.
    ClientOnChange = "client_on_change",
    /// There is no connection document.
    ClientWithoutDocument = "client_without_document",
    /// The cluster credential was not read yet.
    CredentialUnknown = "credential_unknown",
    /// Routes need no cluster credential.
    CredentialMissing = "credential_missing",
    /// A new cluster credential waits for its moment.
    CredentialTakesOver = "credential_takes_over",
    /// Auto Scaling or EC2 throttles.
    DiscoveryThrottled = "discovery_throttled",
    /// A quota stands in the way of discovery.
    DiscoveryQuota = "discovery_quota",
    /// Discovery is denied.
    DiscoveryDenied = "discovery_denied",
    /// Discovery can't reach what it asks.
    DiscoveryUnavailable = "discovery_unavailable",
    /// Discovery is refused for good.
    DiscoveryRefused = "discovery_refused",
    /// Discovery returned no peer.
    DiscoveryEmpty = "discovery_empty",
    /// Discovery returned more peers than a cluster can have.
    DiscoveryTooMany = "discovery_too_many",
    /// Discovery left this node out.
    DiscoveryWithoutThisNode = "discovery_without_this_node",
    /// No peer was ever discovered.
    PeersUnknown = "peers_unknown",
    /// A peer left the group and still answers.
    PeerLeft = "peer_left",
    /// A known peer has no address now.
    PeerAddressLost = "peer_address_lost",
    /// A peer of the group has no address yet.
    PeerUnresolved = "peer_unresolved",
    /// A static peer has this node's address and another port.
    PeerIsThisNode = "peer_is_this_node",
    /// No route to any peer is up.
    NoRoute = "no_route",
    /// An anchor of the bundle ends within a year.
    AnchorEnds = "anchor_ends",
    /// An anchor of the bundle has ended.
    AnchorEnded = "anchor_ended",
    /// Anchors that the source no longer has are kept.
    AnchorsKept = "anchors_kept",
    /// A leaf of a new CA waits until it is trusted.
    RolloverWaits = "rollover_waits",
    /// A leaf of a new CA went into force before everybody trusted the CA.
    RolloverOverruled = "rollover_overruled",
    /// Connections stay open that a distrusted CA may have let in.
    DistrustedStay = "distrusted_stay",
    /// Every CA of the bundle is distrusted.
    NothingTrusted = "nothing_trusted",
    /// nats-server doesn't run.
    ServerNotRunning = "server_not_running",
    /// Nobody has looked at nats-server yet.
    ServerNotLookedAt = "server_not_looked_at",
    /// No configuration is committed yet.
    NothingCommitted = "nothing_committed",
    /// nats-server doesn't serve the committed configuration.
    CommittedNotServed = "committed_not_served",
    /// nats-server was told to reload, and nothing shows yet what became of it.
    ReloadUnderWay = "reload_under_way",
    /// nats-server runs and takes no client yet.
    ServerStarting = "server_starting",
    /// nats-server drains: it takes no client any more.
    ServerDraining = "server_draining",
    /// nats-server starts again and again, and never serves.
    ServerCrashLoop = "server_crash_loop",
    /// A TLS listener beside the client and the route port shows no certificate.
    ListenerSilent = "listener_silent",
    /// A TLS listener serves an expired certificate that somebody else keeps.
    ListenerCertificateExpired = "listener_certificate_expired",
    /// A TLS listener serves a certificate that somebody else keeps, and that ends soon.
    ListenerCertificateEnds = "listener_certificate_ends",
    /// nats-server takes no further client.
    ServerFull = "server_full",
    /// The monitoring port of nats-server doesn't answer.
    MonitoringSilent = "monitoring_silent",
    /// The agent's user of the system account stands nowhere in the configuration.
    SystemUserNowhere = "system_user_nowhere",
    /// The credentials of the system account are missing or can't be used.
    SystemCredentials = "system_credentials",
    /// nats-server refuses the agent's user of the system account.
    SystemDenied = "system_denied",
    /// There is no connection to the system account.
    SystemUnreachable = "system_unreachable",
    /// nats-server takes some settings only at a start.
    SettingsWaitForRestart = "settings_wait_for_restart",
    /// `nats-server -t` refuses the configuration.
    ConfigurationRefused = "configuration_refused",
    /// The template can't be read or rendered, or a path can't stand in a configuration.
    TemplateUnusable = "template_unusable",
    /// The configuration or one of its includes is not in nats-server's language.
    ConfigurationUnreadable = "configuration_unreadable",
    /// The configuration would take protection or capability away.
    ConfigurationTakesAway = "configuration_takes_away",
    /// nats-server reads the configuration in another way than the agent.
    ConfigurationReadDifferently = "configuration_read_differently",
    /// nats-server would not start with the new settings.
    SettingsWontStart = "settings_wont_start",
    /// The running nats-server would end if it loaded the new settings.
    SettingsWouldKill = "settings_would_kill",
    /// The new settings could not be tried.
    SettingsNotTried = "settings_not_tried",
    /// A change of settings waits for a peer that lost its route.
    SettingsWaitForPeer = "settings_wait_for_peer",
    /// nats-server ended or refused a reload with these settings.
    SettingsQuarantined = "settings_quarantined",
    /// A setting, an included file or the template can't be part of the configuration.
    SettingsRefused = "settings_refused",
    /// The committed configuration names no generation that can be read.
    ConfigurationWithoutGeneration = "configuration_without_generation",
    /// nats-server ended at each start with the new settings, and the previous settings are back.
    SettingsPutBack = "settings_put_back",
    /// A reload did not end in time, and nothing is taken back.
    ReloadTimedOut = "reload_timed_out",
    /// A reload was not confirmed, and the previous configuration is back.
    ReloadRolledBack = "reload_rolled_back",
    /// A reload was not confirmed, and there is nothing to go back to.
    ReloadNotConfirmed = "reload_not_confirmed",
    /// A reload was not confirmed, and the way back failed.
    RollBackFailed = "roll_back_failed",
    /// nats-server ended or was replaced after a commit.
    ServerReplaced = "server_replaced",
    /// nats-server starts or drains, so no signal is sent.
    ServerNotListening = "server_not_listening",
    /// The pid file names another process, or can't be used.
    ServerForeign = "server_foreign",
    /// The system hides nats-server's process from the agent.
    ServerHidden = "server_hidden",
    /// nats-server refuses each reload for one of its arguments.
    ArgumentsRefuseReloads = "arguments_refuse_reloads",
    /// An argument of nats-server stands in the place of a setting.
    ArgumentsReplaceSettings = "arguments_replace_settings",
    /// JetStream has no meta leader.
    JetStreamWithoutLeader = "jetstream_without_leader",
    /// A node alone has no JetStream.
    JetStreamAlone = "jetstream_alone",
    /// This node's JetStream is not current with the meta leader.
    JetStreamRecovering = "jetstream_recovering",
    /// The majority of the meta group hangs on one more death.
    JetStreamMajorityAtRisk = "jetstream_majority_at_risk",
    /// A member of the meta group is no node of the group any more.
    JetStreamGhost = "jetstream_ghost",
    /// A stream has no leader.
    StreamWithoutLeader = "stream_without_leader",
    /// The nats-server binary can't be run.
    ServerBinaryMissing = "server_binary_missing",
    /// The nats-server binary doesn't end.
    ServerBinarySlow = "server_binary_slow",
    /// The nats-server binary is too old, or something else.
    ServerBinaryUnsuitable = "server_binary_unsuitable",
    /// Instance metadata throttles.
    MetadataThrottled = "metadata_throttled",
    /// Instance metadata denies the call.
    MetadataDenied = "metadata_denied",
    /// Instance metadata can't be reached.
    MetadataUnavailable = "metadata_unavailable",
    /// The node has no name.
    NodeWithoutName = "node_without_name",
    /// The node has no address.
    NodeWithoutAddress = "node_without_address",
    /// The certificate would lack the address that peers dial.
    AddressNotCertified = "address_not_certified",
    /// agent.toml was read again and is not in force.
    AgentConfigurationNotInForce = "agent_configuration_not_in_force",
    /// The daemon makes its first pass.
    FirstPassUnderWay = "first_pass_under_way",
    /// No daemon runs.
    AgentNotRunning = "agent_not_running",
    /// The agent is stopping.
    AgentStopping = "agent_stopping",
    /// A private key is open to everyone.
    KeyOpenToAll = "key_open_to_all",
    /// Everyone can write to the state directory.
    StateOpenToAll = "state_open_to_all",
    /// A generation can't be read.
    GenerationDamaged = "generation_damaged",
    /// A file can't be made, written, read or renamed.
    FileFailed = "file_failed",
}

/// The remote side that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Issuer,
    Trust,
    Credential,
    Included,
    Connection,
    Discovery,
    Metadata,
}

impl Code {
    /// Whether the code says that wanted settings of nats-server can't be committed.
    #[must_use]
    pub(crate) fn is_of_settings(self) -> bool {
        matches!(
            self,
            Self::ConfigurationRefused
                | Self::ConfigurationUnreadable
                | Self::ConfigurationTakesAway
                | Self::ConfigurationReadDifferently
                | Self::TemplateUnusable
                | Self::SettingsRefused
                | Self::SettingsWontStart
                | Self::SettingsWouldKill
                | Self::SettingsNotTried
                | Self::SettingsWaitForPeer
                | Self::SettingsQuarantined
        )
    }

    fn remote(asked: Asked, kind: RemoteErrorKind) -> Self {
        use RemoteErrorKind as Kind;
        match (asked, kind) {
            (Asked::Issuer, Kind::Throttled) => Self::IssuerThrottled,
            (Asked::Issuer, Kind::Quota) => Self::IssuerQuota,
            (Asked::Issuer, Kind::Denied) => Self::IssuerDenied,
            (Asked::Issuer, Kind::Unavailable) => Self::IssuerUnavailable,
            (Asked::Issuer, Kind::Permanent) => Self::IssuerRefused,
            (Asked::Issuer, Kind::Absent) => Self::IssuerAbsent,
            (Asked::Trust, Kind::Throttled) => Self::TrustThrottled,
            (Asked::Trust, Kind::Quota) => Self::TrustQuota,
            (Asked::Trust, Kind::Denied) => Self::TrustDenied,
            (Asked::Trust, Kind::Unavailable) => Self::TrustUnavailable,
            (Asked::Trust, Kind::Permanent | Kind::Absent) => Self::TrustRefused,
            (Asked::Credential, Kind::Throttled) => Self::CredentialThrottled,
            (Asked::Credential, Kind::Quota) => Self::CredentialQuota,
            (Asked::Credential, Kind::Denied) => Self::CredentialDenied,
            (Asked::Credential, Kind::Unavailable) => Self::CredentialUnavailable,
            (Asked::Credential, Kind::Permanent | Kind::Absent) => Self::CredentialRefused,
            (Asked::Included, Kind::Throttled) => Self::IncludedThrottled,
            (Asked::Included, Kind::Quota) => Self::IncludedQuota,
            (Asked::Included, Kind::Denied) => Self::IncludedDenied,
            (Asked::Included, Kind::Unavailable) => Self::IncludedUnavailable,
            (Asked::Included, Kind::Permanent | Kind::Absent) => Self::IncludedRefused,
            (Asked::Connection, Kind::Throttled) => Self::ConnectionThrottled,
            (Asked::Connection, Kind::Quota) => Self::ConnectionQuota,
            (Asked::Connection, Kind::Denied) => Self::ConnectionDenied,
            (Asked::Connection, Kind::Unavailable) => Self::ConnectionUnavailable,
            (Asked::Connection, Kind::Permanent | Kind::Absent) => Self::ConnectionRefused,
            (Asked::Discovery, Kind::Throttled) => Self::DiscoveryThrottled,
            (Asked::Discovery, Kind::Quota) => Self::DiscoveryQuota,
            (Asked::Discovery, Kind::Denied) => Self::DiscoveryDenied,
            (Asked::Discovery, Kind::Unavailable) => Self::DiscoveryUnavailable,
            (Asked::Discovery, Kind::Permanent | Kind::Absent) => Self::DiscoveryRefused,
            (Asked::Metadata, Kind::Throttled | Kind::Quota) => Self::MetadataThrottled,
            (Asked::Metadata, Kind::Denied) => Self::MetadataDenied,
            (Asked::Metadata, _) => Self::MetadataUnavailable,
        }
    }
}

/// One reason or warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No certificate was issued yet.
    NoCertificate,
    /// NotAfter of the newest certificate has passed.
    CertificateExpired {
        /// NotAfter.
        at: OffsetDateTime,
    },
    /// NotBefore of the newest certificate is in the future.
    CertificateNotYetValid {
        /// NotBefore.
        begins: OffsetDateTime,
        /// The wall-clock time of this machine.
        now: OffsetDateTime,
    },
    /// A port serves a certificate that clients and peers refuse.
    ServedCertificateRefused {
        /// The port.
        port: Port,
        /// Why clients and peers refuse the certificate.
        why: Refusal,
    },
    /// A renewal failed.
    NoNewCertificate {
        /// Failures in a row.
        attempts: u32,
        /// The last failure.
        because: Box<Self>,
    },
    /// The CA of the newest leaf ends within two lifetimes of a leaf.
    IssuerEnds {
        /// Distinguished name.
        subject: String,
        /// NotAfter.
        at: OffsetDateTime,
    },
    /// The issued certificate can't be verified before a trust bundle is read.
    CertificateWaitsForBundle {
        /// Why there is no bundle, once the source was asked.
        because: Option<Box<Self>>,
    },
    /// No peer was ever discovered.
    PeersUnknown {
        /// Why, once discovery was asked.
        because: Option<Box<Self>>,
    },
    /// The cluster credential was not read yet.
    CredentialUnknown,
    /// Routes need no cluster credential, so any client certificate of the CA can join as a server (invariant 13).
    CredentialMissing,
    /// A new cluster credential waits for its moment.
    CredentialTakesOver {
        /// When every node takes the new credential over.
        at: OffsetDateTime,
    },
    /// The connection document is of a newer agent, which keeps it current.
    ConnectionNewer {
        /// The `version` of the document.
        version: u64,
    },
    /// Another node has replaced the connection document that this node wrote in its place.
    ConnectionDisputed,
    /// There is no connection document, and none of an earlier look.
    ClientWithoutDocument,
    /// The peers in force differ from what discovery returned.
    Kept(Kept),
    /// A static peer has this node's address and another port than `nats.cluster_listen`.
    PeerIsThisNode {
        /// The peer as configured.
        peer: String,
        /// Port of `nats.cluster_listen`.
        port: u16,
    },
    /// No route to any peer is up.
    NoRoute,
    /// An anchor ends within a year, or has ended.
    Anchor {
        /// Distinguished name.
        subject: String,
        /// NotAfter.
        not_after: OffsetDateTime,
        /// Whether NotAfter has passed.
        has_ended: bool,
    },
    /// Anchors that the source no longer has are kept.
    AnchorsKept {
        /// Distinguished names.
        subjects: Vec<String>,
    },
    /// A leaf of a new CA waits until it is trusted.
    RolloverWaits {
        /// The subject of the new anchor.
        issuer: String,
        /// Since when the leaf waits.
        since: OffsetDateTime,
        /// What the leaf waits for.
        waits: Vec<Wait>,
    },
    /// A leaf of a new CA went into force before everybody trusted the CA.
    RolloverOverruled {
        /// What the leaf waited for.
        waits: Vec<Wait>,
    },
    /// Connections stay open that a distrusted CA may have let in.
    DistrustedStay {
        /// The subjects of the distrusted CAs.
        subjects: Vec<String>,
        /// The names of the other servers whose routes are older than the distrust.
        routes: Vec<String>,
        /// The names of the clusters whose gateway connections are older than the distrust.
        gateways: Vec<String>,
        /// The leaf nodes that may be older than the distrust, and that no command closes.
        leaf_nodes: Vec<String>,
        /// How many clients stay, where clients stay. `None` in it: nobody tells.
        clients: Option<Option<u64>>,
    },
    /// nats-server doesn't run.
    ServerNotRunning {
        /// What shows it.
        why: String,
    },
    /// Nobody has looked at nats-server yet.
    ServerNotLookedAt,
    /// No configuration is committed yet.
    NothingCommitted,
    /// nats-server doesn't serve the committed configuration.
    CommittedNotServed(Mismatch),
    /// nats-server runs and takes no client yet.
    ServerStarting {
        /// Since when that is seen.
        since: OffsetDateTime,
    },
    /// nats-server drains: it takes no client any more.
    ServerDraining {
        /// Since when that is seen.
        since: OffsetDateTime,
    },
    /// nats-server starts again and again, and never serves.
    ServerCrashLoop,
    /// A TLS listener beside the client and the route port shows no certificate.
    ListenerSilent {
        /// The listener.
        port: Port,
        /// Where it was dialled.
        address: String,
        /// What the probe met.
        why: Silence,
    },
    /// A TLS listener serves an expired certificate that somebody else keeps.
    ListenerCertificateExpired {
        /// The listener.
        port: Port,
        /// Where it was dialled.
        address: String,
        /// The end of validity.
        at: OffsetDateTime,
    },
    /// A TLS listener serves a certificate that somebody else keeps, and that ends soon.
    ListenerCertificateEnds {
        /// The listener.
        port: Port,
        /// Where it was dialled.
        address: String,
        /// The end of validity.
        at: OffsetDateTime,
    },
    /// nats-server takes no further client.
    ServerFull {
        /// What the probe met.
        said: String,
    },
    /// nats-server was told to reload, and nothing shows yet what became of it.
    ReloadUnderWay {
        /// When nats-server was told.
        since: OffsetDateTime,
    },
    /// The monitoring port of nats-server doesn't answer.
    MonitoringSilent {
        /// nats-server's pid.
        pid: i32,
    },
    /// The agent's user of the system account stands nowhere in the configuration.
    SystemUserNowhere(Obstacle),
    /// The wanted connection to the system account is missing.
    SystemSilent {
        /// What kind of failure keeps the connection away.
        fault: Fault,
        /// The error, for a person.
        why: String,
    },
    /// nats-server takes some settings only at a start.
    SettingsWaitForRestart {
        /// The names of the settings.
        names: Vec<String>,
    },
    /// nats-server was started with arguments that it should not have.
    Arguments(ArgumentFault),
    /// JetStream needs attention.
    JetStream(Trouble),
    /// agent.toml was read again and is not in force.
    AgentConfigurationNotInForce {
        /// Why not.
        because: Box<Self>,
    },
    /// The daemon makes its first pass.
    FirstPassUnderWay,
    /// No daemon runs.
    AgentNotRunning {
        /// The control socket that nobody listens on.
        socket: PathBuf,
    },
    /// A private key is open to everyone.
    KeyOpenToAll {
        /// The key's file.
        path: PathBuf,
        /// Permission bits of the file.
        mode: u32,
    },
    /// Everyone can write to the state directory.
    StateOpenToAll {
        /// The state directory.
        path: PathBuf,
        /// Permission bits of the directory.
        mode: u32,
    },
    /// An error of one of the stages.
    Failed {
        /// The code of the error.
        code: Code,
        /// What failed: a call and the service's error code, a file, a setting. `None` where the code says everything.
        subject: Option<String>,
        /// The error with its causes.
        text: String,
    },
}

/// What tells two reasons apart. The text can't: the text may name a time, a pid or the id of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReasonIdentity {
    code: Code,
    /// What the reason is about, where two reasons may have the same code.
    subject: Option<String>,
}

impl fmt::Display for ReasonIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.code.as_str(), self.subject.as_deref().unwrap_or_default())
    }
}

impl Reason {
    /// An error of one of the stages, with its causes.
    pub(crate) fn failed(code: Code, subject: Option<String>, error: &dyn std::error::Error) -> Self {
        Self::Failed { code, subject, text: with_causes(error) }
    }

    /// Why the cluster credential can't be read.
    #[must_use]
    pub(crate) fn credential(error: &SecretError) -> Self {
        let (code, subject) = of_secret(Asked::Credential, error);
        Self::failed(code, subject, error)
    }

    /// Why an included secret can't be read.
    #[must_use]
    pub(crate) fn included(error: &SecretError) -> Self {
        let (code, subject) = of_secret(Asked::Included, error);
        Self::failed(code, subject, error)
    }

    /// Why the connection document can't be kept current.
    #[must_use]
    pub(crate) fn connection(error: &SecretError) -> Self {
        let (code, subject) = of_secret(Asked::Connection, error);
        Self::failed(code, subject, error)
    }

    /// Why discovery failed.
    #[must_use]
    pub(crate) fn discovery(error: &RemoteError) -> Self {
        Self::failed(Code::remote(Asked::Discovery, error.kind), Some(call(error)), error)
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NoCertificate => Code::NoCertificate,
            Self::CertificateExpired { .. } => Code::CertificateExpired,
            Self::CertificateNotYetValid { .. } => Code::CertificateNotYetValid,
            Self::ServedCertificateRefused { .. } => Code::ServedCertificateRefused,
            Self::NoNewCertificate { .. } => Code::NoNewCertificate,
            Self::IssuerEnds { .. } => Code::IssuerEnds,
            Self::CertificateWaitsForBundle { .. } => Code::CertificateWaitsForBundle,
            Self::PeersUnknown { .. } => Code::PeersUnknown,
            Self::CredentialUnknown => Code::CredentialUnknown,
            Self::CredentialMissing => Code::CredentialMissing,
            Self::CredentialTakesOver { .. } => Code::CredentialTakesOver,
            Self::ConnectionNewer { .. } => Code::ConnectionNewer,
            Self::ConnectionDisputed => Code::ConnectionDisputed,
            Self::ClientWithoutDocument => Code::ClientWithoutDocument,
            Self::Kept(kept) => match kept {
                Kept::NoPeers => Code::DiscoveryEmpty,
                Kept::TooMany { .. } => Code::DiscoveryTooMany,
                Kept::WithoutThisNode => Code::DiscoveryWithoutThisNode,
                Kept::AddressLost { .. } => Code::PeerAddressLost,
                Kept::StillAnswers { .. } => Code::PeerLeft,
                Kept::Unresolved { .. } => Code::PeerUnresolved,
            },
            Self::PeerIsThisNode { .. } => Code::PeerIsThisNode,
            Self::NoRoute => Code::NoRoute,
            Self::Anchor { has_ended: true, .. } => Code::AnchorEnded,
            Self::Anchor { has_ended: false, .. } => Code::AnchorEnds,
            Self::AnchorsKept { .. } => Code::AnchorsKept,
            Self::RolloverWaits { .. } => Code::RolloverWaits,
            Self::RolloverOverruled { .. } => Code::RolloverOverruled,
            Self::DistrustedStay { .. } => Code::DistrustedStay,
            Self::ServerNotRunning { .. } => Code::ServerNotRunning,
            Self::ServerNotLookedAt => Code::ServerNotLookedAt,
            Self::NothingCommitted => Code::NothingCommitted,
            Self::CommittedNotServed(Mismatch::Hidden { .. }) => Code::ServerHidden,
            Self::CommittedNotServed(_) => Code::CommittedNotServed,
            Self::ReloadUnderWay { .. } => Code::ReloadUnderWay,
            Self::ServerStarting { .. } => Code::ServerStarting,
            Self::ServerDraining { .. } => Code::ServerDraining,
            Self::ServerCrashLoop => Code::ServerCrashLoop,
            Self::ListenerSilent { .. } => Code::ListenerSilent,
            Self::ListenerCertificateExpired { .. } => Code::ListenerCertificateExpired,
            Self::ListenerCertificateEnds { .. } => Code::ListenerCertificateEnds,
            Self::ServerFull { .. } => Code::ServerFull,
            Self::Arguments(ArgumentFault::RefuseReloads(_)) => Code::ArgumentsRefuseReloads,
            Self::Arguments(ArgumentFault::ReplaceSettings(_)) => Code::ArgumentsReplaceSettings,
            Self::JetStream(trouble) => match trouble {
                Trouble::WithoutLeader { .. } => Code::JetStreamWithoutLeader,
                Trouble::Alone => Code::JetStreamAlone,
                Trouble::Recovering => Code::JetStreamRecovering,
                Trouble::MajorityAtRisk { .. } => Code::JetStreamMajorityAtRisk,
                Trouble::Ghosts(_) => Code::JetStreamGhost,
                Trouble::StreamsWithoutLeader(_) => Code::StreamWithoutLeader,
            },
            Self::MonitoringSilent { .. } => Code::MonitoringSilent,
            Self::SystemUserNowhere(_) => Code::SystemUserNowhere,
            Self::SystemSilent { fault: Fault::Credentials, .. } => Code::SystemCredentials,
            Self::SystemSilent { fault: Fault::Denied, .. } => Code::SystemDenied,
            Self::SystemSilent { fault: Fault::Unreachable | Fault::NotYet, .. } => Code::SystemUnreachable,
            Self::SettingsWaitForRestart { .. } => Code::SettingsWaitForRestart,
            Self::AgentConfigurationNotInForce { .. } => Code::AgentConfigurationNotInForce,
            Self::FirstPassUnderWay => Code::FirstPassUnderWay,
            Self::AgentNotRunning { .. } => Code::AgentNotRunning,
            Self::KeyOpenToAll { .. } => Code::KeyOpenToAll,
            Self::StateOpenToAll { .. } => Code::StateOpenToAll,
            Self::Failed { code, .. } => *code,
        }
    }

    /// What tells this reason from another reason.
    #[must_use]
    pub(crate) fn identity(&self) -> ReasonIdentity {
        let subject = match self {
            Self::ServedCertificateRefused { port, .. }
            | Self::ListenerSilent { port, .. }
            | Self::ListenerCertificateExpired { port, .. }
            | Self::ListenerCertificateEnds { port, .. } => Some(port.to_string()),
            // Each failed attempt is news.
            Self::NoNewCertificate { attempts, because } => Some(format!("{attempts} {}", because.identity())),
            Self::AgentConfigurationNotInForce { because } => Some(because.identity().to_string()),
            Self::CertificateWaitsForBundle { because } | Self::PeersUnknown { because } => {
                because.as_ref().map(|because| because.identity().to_string())
            }
            Self::CredentialTakesOver { at } => Some(rfc3339(*at)),
            Self::Kept(Kept::AddressLost { id, .. } | Kept::StillAnswers { id, .. } | Kept::Unresolved { id }) => {
                Some(id.clone())
            }
            Self::PeerIsThisNode { peer, .. } => Some(peer.clone()),
            Self::Anchor { subject, .. } | Self::IssuerEnds { subject, .. } => Some(subject.clone()),
            Self::AnchorsKept { subjects } | Self::DistrustedStay { subjects, .. } => Some(subjects.join(", ")),
            Self::RolloverWaits { issuer, .. } => Some(issuer.clone()),
            Self::CommittedNotServed(Mismatch::PortSilent { port, .. } | Mismatch::OtherLeaf { port }) => {
                Some(port.to_string())
            }
            Self::SettingsWaitForRestart { names } => Some(names.join(", ")),
            Self::SystemUserNowhere(obstacle) => Some(obstacle.code().to_owned()),
            Self::Arguments(ArgumentFault::RefuseReloads(names) | ArgumentFault::ReplaceSettings(names)) => {
                Some(names.join(", "))
            }
            Self::JetStream(trouble) => trouble.subject(),
            Self::KeyOpenToAll { path, .. } | Self::StateOpenToAll { path, .. } => Some(path.display().to_string()),
            Self::Failed { subject, .. } => subject.clone(),
            _ => None,
        };
        ReasonIdentity { code: self.code(), subject }
    }

    /// The reason below this reason, whose text is part of this reason's text.
    #[must_use]
    pub(crate) fn because(&self) -> Option<&Self> {
        match self {
            Self::NoNewCertificate { because, .. } | Self::AgentConfigurationNotInForce { because } => Some(because),
            Self::CertificateWaitsForBundle { because } | Self::PeersUnknown { because } => because.as_deref(),
            _ => None,
        }
    }

    /// Whether the text of this reason contains what `other` says.
    #[must_use]
    pub(crate) fn tells(&self, other: &Self) -> bool {
        let told = other.identity();
        let mut causes = std::iter::successors(self.because(), |reason| reason.because());
        let is_cause = causes.any(|cause| cause.identity() == told);
        // A deployment fails with the error that the observation shows too.
        let is_same_process = matches!(
            (self, other),
            (Self::CommittedNotServed(Mismatch::Foreign(_)), Self::Failed { code: Code::ServerForeign, .. })
                | (Self::CommittedNotServed(Mismatch::Hidden { .. }), Self::Failed { code: Code::ServerHidden, .. })
        );
        is_cause || is_same_process
    }
}

impl fmt::Display for Reason {
    #[expect(clippy::too_many_lines, reason = "a flat table of texts")]
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCertificate => formatter.write_str("there is no certificate yet"),
            Self::CertificateExpired { at } => write!(formatter, "the certificate expired at {}", rfc3339(*at)),
            Self::CertificateNotYetValid { begins, now } => write!(
                formatter,
                "the certificate is valid from {}, and it is {} here: set this machine's clock, or renew if the clock was \
                 wrong then",
                rfc3339(*begins),
                rfc3339(*now)
            ),
            Self::ServedCertificateRefused { port, why } => {
                write!(formatter, "the {port} port serves a certificate that clients and peers refuse: {why}")
            }
            Self::NoNewCertificate { attempts, because } => {
                write!(formatter, "no new certificate after {attempts} attempts: {because}")
            }
            Self::IssuerEnds { subject, at } => write!(
                formatter,
                "the issuer's CA {subject} ends at {}, within two lifetimes of a certificate, and every certificate ends with \
                 it; install a new certificate for the CA, or change to another CA",
                rfc3339(*at)
            ),
            Self::CertificateWaitsForBundle { because: Some(because) } => {
                write!(formatter, "the certificate waits for a trust bundle: {because}")
            }
            Self::CertificateWaitsForBundle { because: None } => {
                formatter.write_str("the certificate waits for a trust bundle")
            }
            Self::PeersUnknown { because: Some(because) } => {
                write!(formatter, "the peers are not known yet: {because}")
            }
            Self::PeersUnknown { because: None } => {
                formatter.write_str("the peers are not known yet: discovery was not asked yet")
            }
            Self::CredentialUnknown => formatter.write_str("the cluster credential was not asked for yet"),
            Self::CredentialMissing => formatter.write_str(
                "routes need no cluster credential: anyone with a client certificate of this CA can join as a server and \
                 read every account; set nats.cluster_secret_id",
            ),
            Self::CredentialTakesOver { at } => write!(
                formatter,
                "a new cluster credential takes over at {}, on every node at once; until then the previous credential is \
                 in force",
                rfc3339(*at)
            ),
            Self::ConnectionNewer { version } => write!(
                formatter,
                "the connection document is of version {version}, which a newer agent keeps current; this agent leaves the \
                 document as it is: install the same version on every node"
            ),
            Self::ConnectionDisputed => formatter.write_str(
                "another node has replaced the connection document of this node: the nodes differ in trust bundle, cluster \
                 name, URLs or client_auth; compare `agent status` and agent.toml on every node",
            ),
            Self::ClientWithoutDocument => formatter.write_str("there is no connection document yet; run `agent client fetch`"),
            Self::Kept(kept) => write!(formatter, "{kept}"),
            Self::PeerIsThisNode { peer, port } => write!(
                formatter,
                "the static peer {peer} has this node's address and another port than nats.cluster_listen ({port}); \
                 correct discovery.peers"
            ),
            Self::NoRoute => formatter.write_str(
                "no route to any other server of the cluster is up: messages reach the clients of this node alone. Check \
                 that the others run, and that the nodes reach each other's route port",
            ),
            Self::Anchor { subject, not_after, has_ended } => {
                let verb = if *has_ended { "ended" } else { "ends" };
                write!(formatter, "the anchor {subject} {verb} at {}", rfc3339(*not_after))
            }
            Self::AnchorsKept { subjects } => write!(
                formatter,
                "the trust bundle no longer holds {}, which a certificate still served in the cluster chains to, so it is \
                 kept until none does",
                subjects.join(", ")
            ),
            Self::RolloverWaits { issuer, since, waits } => write!(
                formatter,
                "a certificate of {issuer} is issued since {} and waits for {}",
                rfc3339(*since),
                listed(waits)
            ),
            Self::RolloverOverruled { waits } => write!(
                formatter,
                "the certificate of a new CA went into force, because its time to wait was over; connections may break with {}",
                listed(waits)
            ),
            Self::DistrustedStay { subjects, routes, gateways, leaf_nodes, clients } => {
                write!(formatter, "connections stay open that were made while {} was trusted:", subjects.join(", "))?;
                match clients {
                    Some(Some(count)) => write!(formatter, " clients ({count}), because the system account doesn't close them;")?,
                    Some(None) => formatter.write_str(" clients, because nats-server doesn't tell which it has;")?,
                    None => {}
                }
                for (what, names) in [("routes of", routes), ("gateways of", gateways), ("leaf nodes", leaf_nodes)] {
                    if !names.is_empty() {
                        write!(formatter, " {what} {};", few(names))?;
                    }
                }
                formatter.write_str(" restart nats-server of this node to close them: systemctl restart nats-server")
            }
            Self::ServerNotRunning { why } => write!(formatter, "nats-server isn't running: {why}"),
            Self::ServerNotLookedAt => formatter.write_str("nats-server was not looked at yet"),
            Self::NothingCommitted => formatter.write_str("no configuration is committed yet"),
            Self::ServerStarting { since } => write!(
                formatter,
                "nats-server starts since {} and takes no client yet; JetStream may recover its streams first",
                rfc3339(*since)
            ),
            Self::ServerDraining { since } => write!(
                formatter,
                "nats-server takes no client since {}: it drains, and its next start reads the committed configuration",
                rfc3339(*since)
            ),
            Self::ServerCrashLoop => formatter.write_str(
                "nats-server starts again and again, and ends before it serves; its log says why",
            ),
            Self::ListenerSilent { port, address, why } => {
                write!(formatter, "the {port} port, {address}, shows no certificate: {why}")
            }
            Self::ListenerCertificateExpired { port, address, at } => write!(
                formatter,
                "the {port} listener {address} serves a certificate that expired at {}; replace it, or write certificate = \
                 \"node\" in its tls block",
                rfc3339(*at)
            ),
            Self::ListenerCertificateEnds { port, address, at } => write!(
                formatter,
                "the {port} listener {address} serves a certificate that ends at {}, and the agent doesn't renew that \
                 certificate; replace it, or write certificate = \"node\" in its tls block",
                rfc3339(*at)
            ),
            Self::ServerFull { said } => write!(
                formatter,
                "nats-server takes no further client ({said}); the clients that it has go on, and it reloads as ever"
            ),
            Self::ReloadUnderWay { since } => write!(
                formatter,
                "nats-server reloads since {}, and new connections wait until the reload has ended; nothing else is signalled, \
                 committed or taken back before", rfc3339(*since)
            ),
            Self::CommittedNotServed(mismatch) => {
                write!(formatter, "nats-server doesn't serve what is committed: {mismatch}")
            }
            Self::MonitoringSilent { pid } => write!(
                formatter,
                "nats-server (pid {pid}) doesn't answer on its monitoring port: which configuration it has loaded and \
                 which routes are up can't be seen, only what its client and route ports serve"
            ),
            Self::SystemUserNowhere(it) => write!(formatter, "the agent has no user in nats-server's system account: {it}"),
            Self::SystemSilent { why, .. } => write!(formatter, "{why}; a signal reloads nats-server meanwhile"),
            Self::SettingsWaitForRestart { names } => write!(
                formatter,
                "nats-server takes {} only at a start: the change is committed and waits for its restart",
                names.join(", ")
            ),
            Self::Arguments(fault) => write!(formatter, "{fault}"),
            Self::JetStream(trouble) => write!(formatter, "{trouble}"),
            Self::AgentConfigurationNotInForce { because } => write!(
                formatter,
                "the configuration in force stays, as the one that was read last can't be used yet ({because}); if it is \
                 to be corrected, reload the agent thereafter"
            ),
            Self::FirstPassUnderWay => formatter.write_str("the first pass isn't done yet; ask again in a moment"),
            Self::AgentNotRunning { socket } => {
                write!(formatter, "the agent isn't running: nothing listens on {}; start it", socket.display())
            }
            Self::KeyOpenToAll { path, mode } => write!(
                formatter,
                "{} is open to everyone (mode {mode:o}): take that away, then run `agent renew` for another key",
                path.display()
            ),
            Self::StateOpenToAll { path, mode } => write!(
                formatter,
                "everyone can write to {} (mode {mode:o}), and so to nats-server's keys: chmod o-w",
                path.display()
            ),
            Self::Failed { text, .. } => formatter.write_str(text),
        }
    }
}

/// A reason as people and programs read it.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Told {
    /// The identity of the reason. Another process has none.
    #[serde(skip)]
    pub(crate) identity: Option<Box<ReasonIdentity>>,
    /// A code of [`Code`]. A newer daemon may know more codes than this program.
    pub code: String,
    /// The text for a person.
    pub text: String,
}

impl From<&Reason> for Told {
    fn from(reason: &Reason) -> Self {
        Self {
            identity: Some(Box::new(reason.identity())),
            code: reason.code().as_str().to_owned(),
            text: reason.to_string(),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// The first names of a list, and the number of the others. A hub has thousands of leaf nodes.
fn few(names: &[String]) -> String {
    let (first, others) = names.split_at(names.len().min(8));
    let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
    format!("{}{more}", first.join(", "))
}

fn listed(waits: &[Wait]) -> String {
    waits.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The call that failed, with the service's error code.
fn call(error: &RemoteError) -> String {
    format!("{} {}", error.attempt, error.code.as_deref().unwrap_or_default())
}

fn file(path: &Path) -> String {
    path.display().to_string()
}

/// A mistake that a person corrects step by step: the next mistake is another reason. Such an error names no time, no pid
/// and no request.
pub(crate) fn mistake(error: &impl fmt::Debug) -> String {
    format!("{error:?}")
}

fn of_secret(asked: Asked, error: &SecretError) -> (Code, Option<String>) {
    match error {
        SecretError::Fetch(remote) => (Code::remote(asked, remote.kind), Some(call(remote))),
        SecretError::Content { secret, what, .. } => {
            let code = match asked {
                Asked::Credential => Code::CredentialInvalid,
                Asked::Included => Code::IncludedInvalid,
                Asked::Connection => Code::ConnectionInvalid,
                _ => Code::TrustInvalid,
            };
            (code, Some(format!("{secret} {what}")))
        }
    }
}

impl From<&TrustError> for Reason {
    fn from(error: &TrustError) -> Self {
        let (code, subject) = match error {
            TrustError::File { path, .. } => (Code::TrustInvalid, Some(file(path))),
            TrustError::Bundle { source: BundleError::NothingTrusted { subjects, .. }, .. } => {
                (Code::NothingTrusted, Some(subjects.clone()))
            }
            TrustError::Bundle { source, .. } => (Code::TrustInvalid, Some(mistake(source))),
            TrustError::TooLarge { .. } => (Code::TrustInvalid, Some(mistake(error))),
            TrustError::Issuer { source } => (Code::remote(Asked::Trust, source.kind), Some(call(source))),
            TrustError::Secret(error) => of_secret(Asked::Trust, error),
            TrustError::Timeout { .. } => (Code::TrustUnavailable, None),
        };
        Self::failed(code, subject, error)
    }
}

impl From<&IdentityError> for Reason {
    fn from(error: &IdentityError) -> Self {
        let (code, subject) = match error {
            IdentityError::Metadata(remote) => (Code::remote(Asked::Metadata, remote.kind), Some(call(remote))),
            IdentityError::NoName => (Code::NodeWithoutName, None),
            IdentityError::NoAddress { .. } => (Code::NodeWithoutAddress, None),
            IdentityError::AddressNotCertified { .. } => (Code::AddressNotCertified, None),
        };
        Self::failed(code, subject, error)
    }
}

impl From<&ConfigError> for Reason {
    fn from(error: &ConfigError) -> Self {
        Self::failed(Code::AgentConfigurationNotInForce, Some(mistake(error)), error)
    }
}

impl From<&JournalError> for Reason {
    fn from(error: &JournalError) -> Self {
        match error {
            JournalError::File(error) => error.into(),
            JournalError::Unreadable { .. } => Self::failed(Code::JournalUnreadable, None, error),
        }
    }
}

impl From<&FileError> for Reason {
    fn from(error: &FileError) -> Self {
        Self::failed(Code::FileFailed, Some(file(&error.path)), error)
    }
}

impl From<&GenerationError> for Reason {
    fn from(error: &GenerationError) -> Self {
        let (GenerationError::File(FileError { path, .. }) | GenerationError::Damaged { path, .. }) = error;
        Self::failed(Code::GenerationDamaged, Some(file(path)), error)
    }
}

impl From<&ObtainError> for Reason {
    fn from(error: &ObtainError) -> Self {
        let (code, subject) = match error {
            ObtainError::Csr(_) | ObtainError::BrokenOff(_) => (Code::KeyNotMade, None),
            ObtainError::Journal(error) => return error.into(),
            ObtainError::Issuer(error) if error.code.as_deref() == Some(INVALID_STATE) => {
                (Code::IssuerNotActive, Some(call(error)))
            }
            ObtainError::Issuer(error) => (Code::remote(Asked::Issuer, error.kind), Some(call(error))),
            ObtainError::InWarmPool { state } => (Code::InWarmPool, Some(state.clone())),
            ObtainError::IssuerEnded { .. } => (Code::IssuerEnded, None),
            ObtainError::EndsWithIssuer { .. } => (Code::IssuerEnds, None),
            ObtainError::InProgress { .. } => (Code::IssuerInProgress, None),
            ObtainError::Capped { .. } => (Code::IssuanceCap, None),
        };
        Self::failed(code, subject, error)
    }
}

impl From<&ServerError> for Reason {
    fn from(error: &ServerError) -> Self {
        let (code, subject) = match error {
            ServerError::Spawn { .. } => (Code::ServerBinaryMissing, None),
            ServerError::Slow { .. } => (Code::ServerBinarySlow, None),
            ServerError::Version { found, .. } => (Code::ServerBinaryUnsuitable, Some(found.clone())),
            ServerError::Refused { message } => (Code::ConfigurationRefused, Some(message.clone())),
            ServerError::Process(ProcessError::Absent(_)) => (Code::ServerNotRunning, None),
            ServerError::Process(ProcessError::Hidden { .. }) => (Code::ServerHidden, None),
            ServerError::Process(_) => (Code::ServerForeign, None),
            ServerError::NotListening { .. } => (Code::ServerNotListening, None),
        };
        Self::failed(code, subject, error)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_is_its_own_and_in_snake_case() {
        let codes: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(codes.len(), Code::ALL.len());
        let is_snake = |code: &&str| code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        assert!(codes.iter().all(is_snake), "{codes:?}");
    }

    #[test]
    fn the_same_failure_is_the_same_reason_whatever_its_request_or_time() {
        let denied = |request: &str, code: &str| {
            let reason = format!("{code}, request {request}");
            let error = RemoteError::new(RemoteErrorKind::Denied, "acm-pca:IssueCertificate", reason, "allow the call");
            Reason::from(&ObtainError::Issuer(RemoteError { code: Some(code.into()), ..error })).identity()
        };
        assert_eq!(denied("1", "AccessDeniedException"), denied("2", "AccessDeniedException"));
        assert_ne!(denied("1", "AccessDeniedException"), denied("1", "ExpiredTokenException"));

        let damaged = |path: &str, reason: &str| {
            Reason::from(&GenerationError::Damaged { path: path.into(), reason: reason.into() }).identity()
        };
        assert_eq!(damaged("/state/1", "no key"), damaged("/state/1", "no leaf"));
        assert_ne!(damaged("/state/1", "no key"), damaged("/state/2", "no key"));

        let refused = |message: &str| Reason::from(&ServerError::Refused { message: message.into() }).identity();
        assert_ne!(refused("unknown field \"x\""), refused("unknown field \"y\""));

        let attempt = |attempts| Reason::NoNewCertificate { attempts, because: Box::new(Reason::NoRoute) }.identity();
        assert_ne!(attempt(1), attempt(2));
    }

    #[test]
    fn a_reason_tells_its_causes_and_no_other_reason() {
        let denied = Reason::Failed { code: Code::TrustDenied, subject: None, text: "the secret is denied".into() };
        let waits = Reason::CertificateWaitsForBundle { because: Some(Box::new(denied.clone())) };
        let failed = Reason::NoNewCertificate { attempts: 2, because: Box::new(waits.clone()) };
        assert!(failed.tells(&waits) && failed.tells(&denied) && waits.tells(&denied));
        assert!(!denied.tells(&denied) && !failed.tells(&Reason::NoRoute));
        let text =
            "no new certificate after 2 attempts: the certificate waits for a trust bundle: the secret is denied";
        let told = Told::from(&failed);
        assert_eq!((told.code.as_str(), told.text.as_str()), ("no_new_certificate", text));
    }
}
