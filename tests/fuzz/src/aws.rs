//! What AWS answers, through the real SDK and as far as our code reads it. Nothing leaves the process: the HTTP client
//! answers every call with the input.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};

use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use nats_tls_agent::config::{AddressLookup, CaArn};
use nats_tls_agent::discover::asg::Asg;
use nats_tls_agent::identity::Node;
use nats_tls_agent::issue::acm_pca::AcmPca;
use nats_tls_agent::issue::{CertificateHandle, IssueRequest, Issuer as _};
use nats_tls_agent::san::Sans;
use nats_tls_agent::trust::TrustSource as _;
use nats_tls_agent::trust::secrets_manager::{self, ClusterSecret, SecretsManager};
use zeroize::Zeroizing;

use crate::logged;

const OWN: &str = "i-0123456789abcdef0";
const CA: &str = "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/11111111-2222-3333-4444-555555555555";

/// Answers with what it was given last.
#[derive(Clone, Debug, Default)]
struct Answering(Arc<Mutex<(u16, Vec<u8>)>>);

impl HttpConnector for Answering {
    fn call(&self, _request: HttpRequest) -> HttpConnectorFuture {
        let (status, body) = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let status = StatusCode::try_from(status).expect("one of ours");
        HttpConnectorFuture::ready(Ok(HttpResponse::new(status, SdkBody::from(body))))
    }
}

struct Bench {
    runtime: tokio::runtime::Runtime,
    answering: Answering,
    config: SdkConfig,
    asg: Asg,
    bundle: SecretsManager,
    named: SecretsManager,
    credential: ClusterSecret,
    pca: AcmPca,
}

impl Bench {
    fn new() -> Self {
        let answering = Answering::default();
        let connector = answering.clone();
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .credentials_provider(SharedCredentialsProvider::new(Credentials::new("id", "key", None, None, "fuzzing")))
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .http_client(http_client_fn(move |_, _| SharedHttpConnector::new(connector.clone())))
            .build();
        let node = Node {
            name: "n1".into(),
            instance_id: Some(OWN.into()),
            region: Some("eu-west-1".into()),
            address: IpAddr::V4(Ipv4Addr::new(10, 0, 1, 5)),
            sans: Sans::default(),
        };
        Self {
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"),
            asg: Asg::new(&config, node, Some("group".into()), AddressLookup::Dns, 6222),
            bundle: SecretsManager::new(&config, "nats/ca", None),
            named: SecretsManager::new(&config, "nats/ca", Some("bundle".into())),
            credential: ClusterSecret::new(&config, "nats/route"),
            pca: pca(&config),
            answering,
            config,
        }
    }
}

fn pca(config: &SdkConfig) -> AcmPca {
    AcmPca::new(config, CaArn::try_from(CA.to_owned()).expect("an ARN"), None)
}

thread_local! {
    static BENCH: Bench = Bench::new();
}

/// The first byte says which call is answered and with which status, the rest is the body.
pub fn aws(input: &[u8]) {
    let Some((mode, body)) = input.split_first() else { return };
    BENCH.with(|bench| {
        let status = [200, 200, 200, 400, 403, 500][usize::from(mode / 8) % 6];
        *bench.answering.0.lock().unwrap_or_else(PoisonError::into_inner) = (status, body.to_vec());
        bench.runtime.block_on(call(bench, mode % 8, body));
    });
}

async fn call(bench: &Bench, which: u8, body: &[u8]) {
    match which {
        0 => match bench.asg.members("group").await {
            Ok(members) => assert!(members.iter().all(|member| is_peer(&member.state) || member.id == OWN)),
            Err(error) => logged(&error),
        },
        1 => match bench.bundle.fetch().await {
            Ok(bundle) => assert!(!bundle.anchors.is_empty() && !bundle.version.is_empty()),
            Err(error) => logged(&error),
        },
        2 => drop(bench.named.fetch().await.inspect_err(|error| logged(error))),
        3 => match bench.credential.credential().await {
            Ok(credential) => assert!(!credential.username.is_empty() && !credential.password.is_empty()),
            Err(error) => logged(&error),
        },
        4 => match bench.pca.collect(&CertificateHandle("arn".into())).await {
            Ok(chain) => assert!(chain.leaf_pem.contains("BEGIN CERTIFICATE")),
            Err(error) => logged(&error),
        },
        5 => drop(bench.pca.ca_pem().await.inspect_err(|error| logged(error))),
        // What it learns of the CA it keeps, so each of these has a new one.
        6 => match pca(&bench.config).request(&request()).await {
            Ok(handle) => assert!(!handle.0.is_empty()),
            Err(error) => logged(&error),
        },
        // Secrets' contents without the JSON around them.
        _ => {
            for key in [None, Some("bundle")] {
                drop(secrets_manager::pem(Zeroizing::new(body.to_vec()), key));
            }
            if let Ok(credential) = secrets_manager::credential(body) {
                assert!(!credential.username.is_empty() && !credential.password.is_empty());
            }
        }
    }
}

fn request() -> IssueRequest<'static> {
    IssueRequest {
        csr_pem: "-----BEGIN CERTIFICATE REQUEST-----\nMA==\n-----END CERTIFICATE REQUEST-----\n",
        validity: std::time::Duration::from_hours(8 * 24),
        now: time::OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000),
        idempotency_token: "token",
    }
}

fn is_peer(state: &str) -> bool {
    state == "InService" || state.starts_with("Pending")
}
