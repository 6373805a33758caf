//! Renders values to the text of nats-server.conf. It reads no file except a user's template and what the text
//! includes.
//!
//! # Names from outside
//!
//! Whatever a name from outside contains, it stays one value (invariant 14). Every `{{ value }}` is escaped for
//! nats-server's double-quoted strings. They know `\"`, `\\`, `\n`, `\r`, `\t` and `\xHH` (one byte), and expand no
//! variable (`conf/lex.go`, the same in 2.10.26, 2.12.8 and 2.15.1).
//!
//! Unquoted text knows the same escapes, so a value can't end early there either; but an unquoted `true` or `12` is not
//! text. A single-quoted string knows no escapes: an escaped value keeps its backslashes there, which is wrong but
//! harmless. A template therefore writes `"{{ value }}"`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use serde::Serialize;
use zeroize::Zeroizing;

use super::environment::Environment;
use super::reader::{self, ConfError};
use super::system::Obstacle;
use super::tree::{Map, Source};
use super::write::{self, HIDDEN};
use crate::config::{ClientAuth, JetStream, NatsConfig, needs_no_escape};
use crate::credential::ClusterCredential;
use crate::node::Node;
use crate::state::durable;
use crate::state::generation::TlsFiles;

/// The text of the built-in template.
pub const BUILT_IN: &str = include_str!("../../../templates/nats-server.conf.tera");

/// The largest template, and the largest rendered text, in bytes.
const MAX_SIZE: usize = 1024 * 1024;

/// The least number of directories that an include climbs.
const MIN_CLIMB: usize = 8;

/// The values that a template can use. Users' templates rely on the field names, so the names are an interface.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Values {
    /// nats-server's `server_name`.
    pub server_name: String,
    /// Client listener, `host:port`.
    pub listen: String,
    /// Monitoring listener, `host:port`.
    pub monitor_listen: String,
    /// nats-server's pid file.
    pub pid_file: PathBuf,
    /// Absolute paths of the generation's files.
    pub tls: TlsFiles,
    /// Whether clients must present a certificate.
    pub client_mtls: bool,
    /// The `cluster` block.
    pub cluster: ClusterValues,
    /// The `jetstream` block. `None`: JetStream is off.
    pub jetstream: Option<JetStreamValues>,
    /// This node.
    pub node: NodeValues,
    /// Files to include, in the form that nats-server needs. It joins every path, even an absolute one, to the
    /// directory of the including file (`conf/parse.go`). Each path here therefore climbs to the root first.
    pub include: Vec<PathBuf>,
    /// The public key of the agent's user of the system account. `None`: the agent has no such user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_key: Option<String>,
    /// What stands in the way of the agent's user where nobody needs a user.
    #[serde(skip)]
    pub(crate) system_barred: Option<Obstacle>,
}

/// What a template and `[nats.settings]` can say of this node.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct NodeValues {
    /// nats-server's `server_name`.
    pub name: String,
    /// The address that peers dial.
    pub address: String,
    /// The EC2 instance id, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// The AWS Region, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The Availability Zone, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Tags of the instance, where instance metadata has them.
    pub tags: BTreeMap<String, String>,
}

/// The `cluster` block.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct ClusterValues {
    /// The cluster's name.
    pub name: String,
    /// Route listener, `host:port`.
    pub listen: String,
    /// The routes, sorted by address, including this node's own route.
    pub routes: Vec<RouteUrl>,
    /// The credential that routes must present.
    pub credential: Option<ClusterCredential>,
}

/// The URL of a route: `nats-route://IP:port`, or `nats-route://user:password@IP:port` where routes must present a
/// credential.
///
/// A server presents the credential in a configured route's URL and no other (`sendRouteConnect`). Without it no route
/// comes up (tried on 2.10.26, 2.12.8 and 2.15.1).
#[derive(Clone, Serialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct RouteUrl(Zeroizing<String>);

impl RouteUrl {
    fn new(address: SocketAddr, credential: Option<&ClusterCredential>) -> Self {
        let Some(credential) = credential else { return Self(Zeroizing::new(route(address))) };
        let username = percent_encoded(&credential.username);
        let password = percent_encoded(&credential.password);
        Self(Zeroizing::new(format!("nats-route://{}:{}@{address}", *username, *password)))
    }

    /// The URL, including the credential.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for RouteUrl {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = self.0.rsplit(['@', '/']).next().unwrap_or_default();
        write!(formatter, "RouteUrl({address})")
    }
}

/// The `jetstream` block.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct JetStreamValues {
    /// The directory of the streams.
    pub store_dir: PathBuf,
    /// The memory limit in nats-server's notation. A template writes it without quotes.
    pub max_mem: Option<String>,
    /// The disk limit in nats-server's notation. A template writes it without quotes.
    pub max_file: Option<String>,
}

impl Values {
    /// Values from the checked configuration, this node, the route addresses of the peers in force and the generation's
    /// files. This node's own address is added where `peers` lacks it.
    pub fn new(
        nats: &NatsConfig,
        node: &Node,
        cluster_name: &str,
        peers: impl IntoIterator<Item = SocketAddr>,
        tls: TlsFiles,
        credential: Option<ClusterCredential>,
    ) -> Result<Self, RenderError> {
        if let Some(credential) = &credential {
            credential.check().map_err(RenderError::Credential)?;
        }
        let own = SocketAddr::new(node.address, nats.cluster_listen.port());
        let addresses: BTreeSet<SocketAddr> = peers.into_iter().chain([own]).collect();
        let values = Self {
            server_name: node.name.clone(),
            listen: nats.listen.to_string(),
            monitor_listen: nats.monitor_listen.to_string(),
            pid_file: nats.pid_file.clone(),
            tls,
            client_mtls: nats.client_auth == ClientAuth::Mtls,
            cluster: ClusterValues {
                name: cluster_name.to_owned(),
                listen: nats.cluster_listen.to_string(),
                routes: addresses.into_iter().map(|address| RouteUrl::new(address, credential.as_ref())).collect(),
                credential,
            },
            jetstream: match &nats.jetstream {
                JetStream::Off => None,
                JetStream::On(limits) => Some(JetStreamValues {
                    store_dir: limits.store_dir.clone(),
                    max_mem: limits.max_mem.as_ref().map(|size| size.as_str().to_owned()),
                    max_file: limits.max_file.as_ref().map(|size| size.as_str().to_owned()),
                }),
            },
            node: NodeValues {
                name: node.name.clone(),
                address: node.address.to_string(),
                instance_id: node.instance_id.clone(),
                region: node.region.clone(),
                zone: node.placement.zone.clone(),
                tags: node.placement.tags.clone(),
            },
            include: nats.include.iter().map(|file| include_path(&nats.config, file)).collect::<Result<_, _>>()?,
            system_key: None,
            system_barred: None,
        };
        if let Some(path) = values.paths().find(|path| path.to_str().is_none()) {
            return Err(RenderError::PathNotText(path.to_owned()));
        }
        Ok(values)
    }

    /// These values with a placeholder for the credential.
    fn without_credential(&self) -> Self {
        let password = Zeroizing::new("password".to_owned());
        let credential = Some(ClusterCredential { username: "username".to_owned(), password });
        let routes = vec![RouteUrl(Zeroizing::new("nats-route://…".to_owned())); self.cluster.routes.len()];
        Self { cluster: ClusterValues { routes, credential, ..self.cluster.clone() }, ..self.clone() }
    }

    /// The values of a node alone in its cluster.
    #[cfg(test)]
    pub(crate) fn sample() -> Self {
        let tls = crate::state::generation::Generations::of(Path::new("/state")).files(1);
        let node = Node {
            name: "n1".into(),
            instance_id: None,
            region: None,
            address: [10, 0, 1, 5].into(),
            sans: crate::x509::san::Sans::default(),
            further_addresses: [].into(),
            placement: crate::node::Placement::default(),
        };
        Self::new(&NatsConfig::default(), &node, "c", [], tls, None).unwrap()
    }

    /// These values without the credential and the routes that hold it.
    #[must_use]
    pub(crate) fn without_secrets(&self) -> Self {
        let cluster = ClusterValues { routes: Vec::new(), credential: None, ..self.cluster.clone() };
        Self { cluster, ..self.clone() }
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.pid_file, &self.tls.cert_file, &self.tls.key_file, &self.tls.ca_file, &self.tls.client_ca_file]
            .into_iter()
            .chain(self.jetstream.as_ref().map(|jetstream| &jetstream.store_dir))
            .map(PathBuf::as_path)
    }
}

/// Why there is no rendered text.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The template can't be read.
    #[error("could not read the template {}; correct nats.template, or remove it for the built-in template", .file.display())]
    Read {
        /// The template.
        file: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The template exceeds the limit of 1 MiB.
    #[error("the template {} is larger than {MAX_SIZE} bytes; correct nats.template", .file.display())]
    TemplateTooLarge {
        /// The template.
        file: PathBuf,
    },
    /// The template is not in the template language. The source names line and column.
    #[error("the template {} does not parse; correct it, or remove nats.template for the built-in template", name(.file.as_deref()))]
    Parse {
        /// The template. `None`: the built-in template.
        file: Option<PathBuf>,
        /// tera's error.
        #[source]
        source: Box<tera::Error>,
    },
    /// The template uses a value, filter or file that doesn't exist. The source names line and column.
    #[error("the template {} does not render; correct it, or remove nats.template for the built-in template", name(.file.as_deref()))]
    Render {
        /// The template. `None`: the built-in template.
        file: Option<PathBuf>,
        /// tera's error.
        #[source]
        source: Box<tera::Error>,
    },
    /// The rendered text would exceed the limit of 1 MiB.
    #[error("the template {} renders more than {MAX_SIZE} bytes; look for a loop in it", name(.file.as_deref()))]
    TooLarge {
        /// The template. `None`: the built-in template.
        file: Option<PathBuf>,
    },
    /// A path is not UTF-8.
    #[error("{} is not UTF-8, so nats-server.conf can't name it; choose another path", .0.display())]
    PathNotText(PathBuf),
    /// The path of an include would need an escape, and nats-server knows no escapes there.
    #[error(
        "nats.include: nats-server knows no escapes in an include, so {} can't be written; use a path without spaces, \
         quotes, backslashes and brackets", .0.display()
    )]
    Include(PathBuf),
    /// The cluster credential would let in nobody or everybody.
    #[error("the cluster credential can't be used: it {0}; correct the secret that nats.cluster_secret_id names")]
    Credential(&'static str),
}

fn name(file: Option<&Path>) -> String {
    file.map_or_else(|| "built into the agent".to_owned(), |file| file.display().to_string())
}

/// The text of a nats-server.conf. It may hold the cluster credential, so memory is wiped after use, and `Debug` shows
/// the length alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Rendered(Zeroizing<String>);

impl Rendered {
    /// Takes the text of an existing file.
    #[must_use]
    pub fn from_text(text: impl Into<Zeroizing<String>>) -> Self {
        Self(text.into())
    }

    /// The whole text, with every secret in it.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The settings of the text. `file` is the file of the text. Errors name `file`, and includes are relative to its
    /// directory.
    pub fn tree(&self, file: &Path) -> Result<Map, ConfError> {
        // An earlier version of the agent committed variables unresolved.
        let environment = Environment::of_process();
        let directory = file.parent().unwrap_or(Path::new("/"));
        let source = Arc::new(Source::Committed(file.to_owned()));
        let read = reader::read(self.text(), source, directory, &environment, &|file| Source::File(file.to_owned()))?;
        let mut tree = read.map;
        write::restore_sources(&mut tree, self.text());
        Ok(tree)
    }

    /// The text as shown to people, without secrets. The values of all secret settings and the passwords in URLs are
    /// hidden, whatever their owner and age. The credential's password is hidden in each form that a template can give
    /// it. A text that can't be read is not shown, because nobody knows the places of its secrets.
    #[must_use]
    pub fn shown(&self, file: &Path, credential: Option<&ClusterCredential>) -> String {
        let mut shown = match self.tree(file) {
            Ok(tree) => write::shown(&tree),
            Err(error) => return format!("# {} bytes that are no configuration: {error}\n", self.0.len()),
        };
        if let Some(password) = credential.map(|credential| credential.password.as_str()) {
            let mut escaped = Zeroizing::new(Vec::new());
            // Writing to memory can't fail.
            _ = escape(password, &mut *escaped);
            for form in [password, &percent_encoded(password), &String::from_utf8_lossy(&escaped)] {
                shown = shown.replace(form, HIDDEN);
            }
        }
        shown
    }
}

impl std::fmt::Debug for Rendered {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Rendered({} bytes)", self.0.len())
    }
}

/// The URL of the route to a peer, in the only form that is ever written, without a credential.
#[must_use]
pub fn route(address: SocketAddr) -> String {
    format!("nats-route://{address}")
}

/// Renders the user's template, or the built-in template. Equal values give equal bytes.
pub fn render(template: Option<&Path>, values: &Values) -> Result<Rendered, RenderError> {
    let source = template.map(template_text).transpose()?;
    render_source(template, source.as_deref().unwrap_or(BUILT_IN), values)
}

/// The text of a user's template, at most 1 MiB.
pub(crate) fn template_text(file: &Path) -> Result<String, RenderError> {
    let failed = |source| RenderError::Read { file: file.to_owned(), source };
    let text = durable::read_if_there(file, MAX_SIZE as u64).map_err(|error| match error.source.kind() {
        std::io::ErrorKind::FileTooLarge => RenderError::TemplateTooLarge { file: file.to_owned() },
        _ => failed(error.source),
    })?;
    let text = text.ok_or_else(|| failed(Errno::ENOENT.into()))?;
    String::from_utf8(text).map_err(|error| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))
}

fn render_source(template: Option<&Path>, source: &str, values: &Values) -> Result<Rendered, RenderError> {
    // The template's name in tera's messages.
    const NAME: &str = "nats-server.conf";
    let file = || template.map(Path::to_owned);

    let mut tera = tera::Tera::default();
    tera.set_escape_fn(escape);
    tera.autoescape_on([""]); // a suffix: the empty suffix matches every template
    tera.add_raw_template(NAME, source)
        .map_err(|source| RenderError::Parse { file: file(), source: Box::new(source) })?;
    let run = |values: &Values| {
        let context = tera::Context::from_serialize(values)?;
        // The buffer has its largest size from the start, because a growing buffer leaves copies of the credential
        // behind.
        let mut output = Bounded { bytes: Zeroizing::new(Vec::with_capacity(MAX_SIZE)), full: false };
        let result = tera.render_to(NAME, &context, &mut output);
        if output.full { Ok(None) } else { result.map(|()| Some(output.bytes)) }
    };
    let bytes = run(values).map_err(|error| {
        // tera's message may quote a value, so the message comes from a rendering without the secret.
        let error = match &values.cluster.credential {
            None => error,
            Some(_) => run(&values.without_credential())
                .err()
                .unwrap_or_else(|| tera::Error::message("it fails with this cluster credential, and not with others")),
        };
        RenderError::Render { file: file(), source: Box::new(error) }
    })?;
    let Some(bytes) = bytes else { return Err(RenderError::TooLarge { file: file() }) };
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| RenderError::Render { file: file(), source: Box::new(tera::Error::message(error)) })?;
    Ok(Rendered(Zeroizing::new(text.to_owned())))
}

struct Bounded {
    bytes: Zeroizing<Vec<u8>>,
    full: bool,
}

impl Write for &mut Bounded {
    fn write(&mut self, more: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + more.len() > MAX_SIZE {
            self.full = true;
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Escapes a value so that nats-server reads the same value from between double quotes. Characters that would end an
/// unquoted value, or that a terminal would act on, are escaped too.
fn escape(value: &str, output: &mut dyn Write) -> std::io::Result<()> {
    for character in value.chars() {
        match character {
            '"' => output.write_all(br#"\""#)?,
            '\\' => output.write_all(br"\\")?,
            '\n' => output.write_all(br"\n")?,
            '\r' => output.write_all(br"\r")?,
            '\t' => output.write_all(br"\t")?,
            _ if needs_no_escape(character) => write!(output, "{character}")?,
            _ => {
                for byte in character.encode_utf8(&mut [0; 4]).bytes() {
                    write!(output, "\\x{byte:02x}")?;
                }
            }
        }
    }
    Ok(())
}

/// The path by which the configuration includes a file, whatever directory it is itself read from: up to the root (more
/// steps than there are do no harm) and down again.
fn include_path(config: &Path, file: &Path) -> Result<PathBuf, RenderError> {
    let refused = || RenderError::Include(file.to_owned());
    let text = file.to_str().ok_or_else(|| RenderError::PathNotText(file.to_owned()))?;
    if !text.chars().all(needs_no_escape) || !file.is_absolute() {
        return Err(refused());
    }
    let climb = config.components().count().max(MIN_CLIMB);
    let down = file.components().filter(|component| *component != Component::RootDir);
    Ok(std::iter::repeat_n(Component::ParentDir, climb).chain(down).collect())
}

/// Percent-encodes a URL's user information: all except the unreserved characters of RFC 3986, section 2.3.
fn percent_encoded(text: &str) -> Zeroizing<String> {
    let mut encoded = Zeroizing::new(String::with_capacity(3 * text.len()));
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            for digit in [byte >> 4, byte & 15] {
                encoded.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
            }
        }
    }
    encoded
}

/// The cluster's name for the name of an Auto Scaling group. nats-server refuses white space in a cluster's name. Every node of
/// the group has the same name.
#[must_use]
pub fn cluster_name_of(group: &str) -> String {
    let is_gap = |character: char| character.is_whitespace() || character.is_control();
    let words: Vec<&str> = group.split(is_gap).filter(|word| !word.is_empty()).collect();
    if words.is_empty() { "nats".into() } else { words.join("-") }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use proptest::prelude::*;

    use super::*;
    use crate::conf::tree::Value;
    use crate::config::{JetStreamLimits, Size};
    use crate::state::generation::Generations;
    use crate::x509::san::Sans;

    #[test]
    fn a_group_whose_name_has_blanks_gives_a_cluster_its_name() {
        for (group, name) in [("nats", "nats"), ("my nats  fleet", "my-nats-fleet"), (" a\tb ", "a-b"), (" ", "nats")] {
            assert_eq!(cluster_name_of(group), name);
        }
    }

    #[test]
    fn invariant_01_what_is_shown_holds_no_password_in_any_form_whatever_its_age() {
        let password = "s3cr3t/\"of\"@routes";
        let credential =
            ClusterCredential { username: "route".to_owned(), password: Zeroizing::new(password.to_owned()) };
        let text = "a { password: \"s3cr3t/\\\"of\\\"@routes\" }\nroutes: [ \"nats-route://route:s3cr3t%2F%22of%22%40routes@10.0.0.1:6222\"\n\
                    \"nats-route://10.0.0.2:6222\", \"nats://u:old@h:1\" ]\nusers: [ { user: u, pass = old, x: 1y } ]\n\
                    PASSWORD old\nname: \"s3cr3t%2F%22of%22%40routes\"\npassport: 7 # a password: none";
        let rendered = Rendered::from_text(Zeroizing::new(text.to_owned()));
        let shown = rendered.shown(Path::new("/nats-server.conf"), Some(&credential));
        for secret in ["s3cr3t", "old"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        for open in ["10.0.0.1:6222", "nats-route://10.0.0.2:6222", "nats://u:********@h:1", "passport: 7", "x: \"1y\""]
        {
            assert!(shown.contains(open), "{open}: {shown}");
        }
    }

    #[test]
    fn invariant_01_a_text_that_can_not_be_read_is_not_shown() {
        let rendered = Rendered::from_text(Zeroizing::new("password: \"hunter2\nx".to_owned()));
        let shown = rendered.shown(Path::new("/nats-server.conf"), None);
        assert!(!shown.contains("hunter2") && shown.contains("20 bytes"), "{shown}");
    }

    fn node(address: &str) -> Node {
        Node {
            name: "i-0123456789abcdef0".to_owned(),
            instance_id: None,
            region: None,
            address: address.parse().unwrap(),
            sans: Sans::default(),
            further_addresses: [].into(),
            placement: crate::node::Placement::default(),
        }
    }

    fn peers(addresses: &[&str]) -> Vec<SocketAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    fn tls() -> TlsFiles {
        Generations::of(Path::new("/var/lib/nats-tls-agent")).files(42)
    }

    fn credential(username: &str, password: &str) -> ClusterCredential {
        ClusterCredential { username: username.to_owned(), password: Zeroizing::new(password.to_owned()) }
    }

    const THREE: [&str; 3] = ["10.0.1.7:6222", "10.0.1.5:6222", "10.0.0.9:6222"];

    fn three_nodes(nats: &NatsConfig, credential: Option<ClusterCredential>) -> Result<Values, RenderError> {
        Values::new(nats, &node("10.0.1.5"), "prod", peers(&THREE), tls(), credential)
    }

    fn shape(nats: &NatsConfig, credential: Option<ClusterCredential>) -> String {
        render(None, &three_nodes(nats, credential).unwrap()).unwrap().text().to_owned()
    }

    fn without_jetstream() -> NatsConfig {
        NatsConfig { jetstream: JetStream::Off, ..NatsConfig::default() }
    }

    #[test]
    fn golden_tls() {
        insta::assert_snapshot!(shape(&NatsConfig::default(), None));
    }

    #[test]
    fn golden_mtls() {
        insta::assert_snapshot!(shape(&NatsConfig { client_auth: ClientAuth::Mtls, ..NatsConfig::default() }, None));
    }

    #[test]
    fn golden_cluster_credential() {
        insta::assert_snapshot!(shape(&NatsConfig::default(), Some(credential("route", "s3:cr/e@t \"%$"))));
    }

    #[test]
    fn golden_without_jetstream() {
        insta::assert_snapshot!(shape(&without_jetstream(), None));
    }

    #[test]
    fn golden_jetstream_limits() {
        let size = |text: &str| Some(Size::try_from(text.to_owned()).unwrap());
        let limits = JetStreamLimits { store_dir: "/data/js".into(), max_mem: size("512MiB"), max_file: size("100GB") };
        insta::assert_snapshot!(shape(&NatsConfig { jetstream: JetStream::On(limits), ..NatsConfig::default() }, None));
    }

    #[test]
    fn golden_includes() {
        let include = vec!["/etc/nats/conf.d/auth.conf".into(), "/etc/nats/conf.d/limits.conf".into()];
        insta::assert_snapshot!(shape(&NatsConfig { include, ..NatsConfig::default() }, None));
    }

    #[test]
    fn golden_ipv6() {
        let nats = NatsConfig {
            listen: "[::]:4222".parse().unwrap(),
            cluster_listen: "[::]:6222".parse().unwrap(),
            monitor_listen: "[::1]:8222".parse().unwrap(),
            ..NatsConfig::default()
        };
        let peers = peers(&["[2001:db8::7]:6222", "[2001:db8::5]:6222"]);
        let values = Values::new(&nats, &node("2001:db8::5"), "prod", peers, tls(), None).unwrap();
        insta::assert_snapshot!(render(None, &values).unwrap().text());
    }

    #[test]
    fn golden_single_node() {
        let values = Values::new(&NatsConfig::default(), &node("10.0.1.5"), "prod", [], tls(), None).unwrap();
        insta::assert_snapshot!(render(None, &values).unwrap().text());
    }

    #[test]
    fn this_nodes_own_route_is_there_once_and_routes_are_sorted() {
        let expected =
            ["10.0.0.9:6222", "10.0.1.5:6222", "10.0.1.7:6222"].map(|address| format!("nats-route://{address}"));
        for known in [&THREE[..], &["10.0.1.7:6222", "10.0.0.9:6222"]] {
            let values =
                Values::new(&NatsConfig::default(), &node("10.0.1.5"), "prod", peers(known), tls(), None).unwrap();
            assert_eq!(values.cluster.routes.iter().map(RouteUrl::url).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn the_same_values_give_the_same_bytes() {
        let values = three_nodes(&NatsConfig::default(), Some(credential("a", "b"))).unwrap();
        assert_eq!(render(None, &values).unwrap(), render(None, &values.clone()).unwrap());
    }

    #[test]
    fn an_include_climbs_to_the_root_from_wherever_the_configuration_is() {
        let path = |config: &str, file: &str| include_path(Path::new(config), Path::new(file));
        assert_eq!(path("/a.conf", "/etc/x.conf").unwrap(), Path::new("../../../../../../../../etc/x.conf"));
        let deep = "/1/2/3/4/5/6/7/8/9/10/a.conf";
        assert_eq!(path(deep, "/x").unwrap(), Path::new(&format!("{}x", "../".repeat(12))));
        for file in ["/a b", "/a\"b", "/a\\b", "/a\nb", "/a;b", "relative"] {
            assert!(matches!(path("/a.conf", file), Err(RenderError::Include(_))), "{file}");
        }
    }

    #[test]
    fn a_credential_that_lets_in_nobody_or_everybody_is_refused() {
        for (username, password) in [("", "b"), ("a", ""), ("a", "$2a$11$abc")] {
            let result = three_nodes(&NatsConfig::default(), Some(credential(username, password)));
            assert!(matches!(result, Err(RenderError::Credential(_))));
        }
    }

    #[test]
    fn a_path_that_is_no_text_is_refused() {
        let pid_file = PathBuf::from(std::ffi::OsString::from_vec(b"/run/\xff".to_vec()));
        let result = three_nodes(&NatsConfig { pid_file, ..NatsConfig::default() }, None);
        assert!(matches!(result, Err(RenderError::PathNotText(_))));
    }

    #[test]
    fn the_password_is_not_shown_by_debug() {
        let values = three_nodes(&NatsConfig::default(), Some(credential("route", "hunter2"))).unwrap();
        let shown = format!("{values:?} {:?}", render(None, &values).unwrap());
        assert!(!shown.contains("hunter2") && shown.contains("10.0.1.7:6222"), "{shown}");
    }

    /// The messages of the error and of its causes.
    fn whole(error: &dyn std::error::Error) -> String {
        std::iter::successors(Some(error), |error| error.source())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn a_users_template_that_is_wrong_says_where() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("my.tera");
        let values = three_nodes(&NatsConfig::default(), None).unwrap();
        for (text, expected) in [
            ("\n{% if %}", "2:"),
            ("\n\nname: {{ cluster.nmae }}", "3:"),
            ("{{ nosuch }}", "nosuch"),
            ("{{ listen | nosuch }}", "nosuch"),
            ("{% include \"/etc/passwd\" %}", "/etc/passwd"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = render(Some(&file), &values).unwrap_err();
            let message = whole(&error);
            assert!(message.contains("my.tera") && message.contains(expected), "{text}: {message}");
        }
        std::fs::write(&file, "{% for a in range(end=100000) %}{{ cluster.name }} and more{% endfor %}").unwrap();
        assert!(matches!(render(Some(&file), &values), Err(RenderError::TooLarge { .. })));
        std::fs::write(&file, " ".repeat(MAX_SIZE + 1)).unwrap();
        assert!(matches!(render(Some(&file), &values), Err(RenderError::TemplateTooLarge { .. })));
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(render(Some(&file), &values), Err(RenderError::Read { .. })));
    }

    #[test]
    fn a_users_template_that_is_wrong_does_not_bring_the_password_into_the_error() {
        let values = three_nodes(&NatsConfig::default(), Some(credential("route", "hunter2"))).unwrap();
        for (source, expected) in [
            ("{{ cluster.credential.password | int }}", "cannot be converted"),
            ("{{ cluster.routes | join(sep='') | upper | float }}", "cannot be converted"),
            (
                "{% if cluster.credential.password == 'hunter2' %}{{ nosuch }}{% endif %}",
                "with this cluster credential",
            ),
        ] {
            let message = whole(&render_source(None, source, &values).unwrap_err());
            // The error may quote the template, and this template contains the word itself.
            let message = message.replace("== 'hunter2'", "");
            assert!(!message.to_lowercase().contains("hunter2") && message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_users_template_is_escaped_as_the_built_in_one_is() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("my.html.or.txt");
        std::fs::write(&file, "server_name: \"{{ server_name }}\"").unwrap();
        let mut values = three_nodes(&NatsConfig::default(), None).unwrap();
        values.server_name = "a\"\ndebug: true #<&'".to_owned();
        let expected = r#"server_name: "a\"\ndebug:\x20true\x20\x23\x3c\x26\x27""#.replace("\\x26", "&");
        assert_eq!(render(Some(&file), &values).unwrap().text(), expected);
    }

    fn names(map: &Map) -> Vec<&str> {
        map.iter().map(|(name, _)| name).collect()
    }

    fn inner<'a>(map: &'a Map, path: &[&str]) -> &'a Value {
        let (last, blocks) = path.split_last().unwrap();
        let in_map = |map: &'a Map, name| &map.find(&[name]).unwrap().unwrap().value;
        in_map(blocks.iter().fold(map, |map, name| in_map(map, name).as_map().unwrap()), last)
    }

    /// Hostile and ordinary text for names from outside.
    fn nasty() -> impl Strategy<Value = String> {
        prop_oneof![
            "(?s).{0,40}",
            prop::collection::vec(
                prop::sample::select(vec![
                    "\"",
                    "\\",
                    "'",
                    "\n",
                    "\r",
                    "\t",
                    "\0",
                    "$HOME",
                    "{",
                    "}",
                    "[",
                    "]",
                    "(",
                    ")",
                    "#",
                    "//",
                    ";",
                    ",",
                    ":",
                    "=",
                    " ",
                    "include ",
                    "jetstream",
                    "\\x22",
                    "\u{85}",
                    "\u{2028}",
                    "é",
                    "{{",
                    "}}",
                    "{%",
                    "%}",
                    "<",
                    "&",
                ]),
                0..20
            )
            .prop_map(|pieces| pieces.concat()),
        ]
    }

    proptest! {
        #[test]
        fn invariant_14_any_name_stays_one_value(
            name in nasty(), cluster in nasty(), path in nasty(), username in nasty(), password in nasty(),
        ) {
            let plain = three_nodes(&NatsConfig::default(), Some(credential("a", "b"))).unwrap();
            let mut values = plain.clone();
            values.server_name.clone_from(&name);
            values.cluster.name.clone_from(&cluster);
            values.pid_file = PathBuf::from(&path);
            values.tls.cert_file = PathBuf::from(&path);
            values.jetstream.as_mut().unwrap().store_dir = PathBuf::from(&path);
            values.cluster.credential = Some(credential(&username, &password));
            let address = "10.0.1.5:6222".parse().unwrap();
            values.cluster.routes = vec![RouteUrl::new(address, values.cluster.credential.as_ref())];

            let file = Path::new("/var/lib/nats-tls-agent/nats-server.conf");
            let expected = render(None, &plain).unwrap().tree(file).unwrap();
            let rendered = render(None, &values).unwrap();
            // nats-server takes a NUL for the end of the text in some places, so such a text is refused.
            let Ok(read) = rendered.tree(file) else {
                let given = [&name, &cluster, &path, &username, &password];
                prop_assert!(given.iter().any(|given| given.contains('\0')), "{}", rendered.text());
                return Ok(());
            };

            prop_assert_eq!(names(&read), names(&expected));
            for block in ["tls", "cluster", "jetstream"] {
                let names_of = |map| names(inner(map, &[block]).as_map().unwrap());
                prop_assert_eq!(names_of(&read), names_of(&expected));
            }
            for (place, value) in [
                (&["server_name"][..], &name),
                (&["cluster", "name"], &cluster),
                (&["pid_file"], &path),
                (&["tls", "cert_file"], &path),
                (&["jetstream", "store_dir"], &path),
                (&["cluster", "authorization", "user"], &username),
                (&["cluster", "authorization", "password"], &password),
            ] {
                prop_assert_eq!(inner(&read, place).as_text(), Some(value.as_str()));
            }
            let Value::Array(routes) = inner(&read, &["cluster", "routes"]) else { panic!("routes") };
            prop_assert_eq!(routes.len(), 1);
            prop_assert_eq!(routes[0].value.as_text(), Some(values.cluster.routes[0].url()));
        }

        #[test]
        fn invariant_14_an_unquoted_value_cannot_add_a_setting(name in nasty()) {
            let mut values = three_nodes(&NatsConfig::default(), None).unwrap();
            values.server_name.clone_from(&name);
            let source = "server_name: {{ server_name }} # {{ server_name }}\ncluster {\n name: {{ server_name }}\n}\n";
            let rendered = render_source(None, source, &values).unwrap();
            // nats-server refuses a text that can't be read here.
            if let Ok(read) = rendered.tree(Path::new("/a.conf")) {
                prop_assert_eq!(names(&read), ["cluster", "server_name"]);
            }
        }

        #[test]
        fn invariant_14_an_include_is_refused_or_written_as_it_is(file in nasty()) {
            let include = vec![PathBuf::from(format!("/{file}"))];
            let Ok(values) = three_nodes(&NatsConfig { include, ..NatsConfig::default() }, None) else { return Ok(()) };
            let written = format!("\ninclude \"{}\"\n", values.include[0].display());
            prop_assert!(render(None, &values).unwrap().text().ends_with(&written));
            prop_assert!(!values.include[0].display().to_string().contains(['"', '\\', '\n']));
        }
    }
}
