//! One client of one node: its way in, and its responder.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerError};
use futures_util::StreamExt;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use tokio::task::JoinHandle;

use super::Target;
use super::login::{Login, LoginError};
use crate::conf::listeners::First;
use crate::error::with_causes;
use crate::trust::TrustBundle;
use crate::x509::chain::StoredChain;

/// The longest attempt to connect, and the longest wait for a subscription.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// The longest text of a server that is shown, in characters.
const MAX_SAID: usize = 200;

/// How clients get in: TLS with the bundle in force and this node's leaf, and a user.
pub struct Access {
    tls: ClientConfig,
    first: First,
    login: Login,
}

/// Why no client can be made.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The user can't be used.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// The bundle or the key of this node can't be used for TLS.
    #[error("could not prepare TLS with this node's bundle and certificate")]
    Tls(#[source] Option<rustls::Error>),
}

impl Access {
    /// A server must show a leaf for its address that an anchor of `bundle` has issued. Clients present `ours`, which
    /// `client_auth = "mtls"` asks for.
    ///
    /// # Errors
    /// The user, the bundle or the key can't be used.
    pub fn new(bundle: &TrustBundle, ours: &StoredChain, first: First, login: Login) -> Result<Self, AccessError> {
        login.options()?;
        let mut roots = RootCertStore::empty();
        for anchor in &bundle.anchors {
            roots.add(CertificateDer::from(anchor.der.clone())).map_err(|error| AccessError::Tls(Some(error)))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let unusable = |error| AccessError::Tls(Some(error));
        let config = ClientConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().map_err(unusable)?.with_root_certificates(roots);
        let certificates = ours.chain().certificates().cloned().collect();
        let key = ours.key().to_der().ok_or(AccessError::Tls(None))?;
        let tls = config.with_client_auth_cert(certificates, key).map_err(unusable)?;
        Ok(Self { tls, first, login })
    }

    fn options(&self, prefix: &str) -> Result<ConnectOptions, LoginError> {
        let options = self.login.options()?.name("agent probe").require_tls(true).tls_client_config(self.tls.clone());
        let options = options.connection_timeout(CONNECT_WITHIN).request_timeout(None).ignore_discovered_servers();
        let options = options.custom_inbox_prefix(prefix);
        Ok(if self.first == First::Client { options.tls_first() } else { options })
    }

    /// Connects, and answers every request on `subject` with its own content. The error is for a person.
    pub(super) async fn connect(&self, target: &Target, subject: String, prefix: &str) -> Result<Connected, String> {
        let cannot = |why: &str| format!("no connection to {}: {why}", target.address);
        let said = Arc::new(Mutex::new(None));
        let noted = Arc::clone(&said);
        let options = self.options(prefix).map_err(|error| cannot(&with_causes(&error)))?;
        let options = options.event_callback(move |event| {
            if let Event::ServerError(error) = event {
                *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown(&error));
            }
            std::future::ready(())
        });
        let connecting = options.connect(format!("tls://{}", target.address));
        // The client's own limit holds for one address, and a name may have several.
        let client = match tokio::time::timeout(CONNECT_WITHIN * 2, connecting).await {
            Ok(connected) => connected.map_err(|error| cannot(&reason(&error)))?,
            Err(_elapsed) => return Err(cannot("no answer in time")),
        };
        let responder = responder(&client, subject.clone()).await.map_err(|why| cannot(&why))?;
        Ok(Connected { client, subject, said, responder })
    }
}

/// What went wrong, and what to do where a person can do something.
fn reason(error: &ConnectError) -> String {
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            "nats-server refuses this client; give a user with --creds, --nkey, --token-file, or --user and \
             --password-file"
                .into()
        }
        _ => with_causes(error),
    }
}

/// The error of a server, in one line of bounded length.
fn shown(error: &ServerError) -> String {
    one_line(error.to_string().trim_start_matches("nats: "))
}

/// The words of a server, in one line of bounded length.
fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).take(MAX_SAID).collect()
}

async fn responder(client: &Client, subject: String) -> Result<JoinHandle<()>, String> {
    let mut requests = client.subscribe(subject).await.map_err(|error| with_causes(&error))?;
    match tokio::time::timeout(CONNECT_WITHIN, client.flush()).await {
        Ok(flushed) => flushed.map_err(|error| with_causes(&error))?,
        Err(_elapsed) => return Err("no answer to a subscription in time".into()),
    }
    let client = client.clone();
    Ok(tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let Some(reply) = request.reply else { continue };
            // A reply that can't be sent is a lost reply, which the other end counts.
            let _counted = client.publish(reply, request.payload).await;
        }
    }))
}

/// A client that is logged in, and answers requests.
pub(super) struct Connected {
    pub(super) client: Client,
    /// Where the client answers.
    pub(super) subject: String,
    said: Arc<Mutex<Option<String>>>,
    responder: JoinHandle<()>,
}

impl Connected {
    /// The name of the server, as the server says it.
    pub(super) fn name(&self) -> String {
        one_line(&self.client.server_info().server_name)
    }

    /// The last error that nats-server told this client, such as a permission that the user lacks.
    pub(super) fn said(&self) -> Option<String> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.responder.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_server_are_one_line_of_bounded_length() {
        let told = shown(&ServerError::Other(format!("Permissions\n\u{1b}[31m{}", "x".repeat(10_000))));
        assert_eq!(told.chars().count(), MAX_SAID);
        assert!(!told.contains(['\n', '\u{1b}']) && told.starts_with("Permissions "), "{told}");
    }
}
