//! Fuzzes answers of AWS and of instance metadata, through the real SDK and the product's own HTTP client. A server in
//! the same thread, on a loopback address, answers every call with the input.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_config::SdkConfig;
use aws_credential_types::provider::ProvideCredentials as _;
use nats_tls_agent::aws::AwsSettings;
use nats_tls_agent::config::{AddressLookup, CaArn};
use nats_tls_agent::credential::secret::{self, ClusterSecret};
use nats_tls_agent::error::RemoteError;
use nats_tls_agent::issue::acm_pca::AcmPca;
use nats_tls_agent::issue::{CertificateHandle, IssueRequest, Issuer as _};
use nats_tls_agent::node::Node;
use nats_tls_agent::peers::PeerSource as _;
use nats_tls_agent::peers::asg::Asg;
use nats_tls_agent::trust::TrustSource as _;
use nats_tls_agent::trust::sources::secrets_manager::{self, SecretsManager};
use nats_tls_agent::x509::san::Sans;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use zeroize::Zeroizing;

use crate::logged;

const CA: &str = "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/11111111-2222-3333-4444-555555555555";

/// The instance ids of this node and of the only known peer.
const IDS: [&str; 2] = ["i-0123456789abcdef0", "i-0123456789abcdef1"];
/// A group of these two instances. The agent asks EC2 about both instances.
const GROUP: &str = "<DescribeAutoScalingGroupsResponse><DescribeAutoScalingGroupsResult><AutoScalingGroups><member>\
    <AutoScalingGroupName>group</AutoScalingGroupName><Instances>\
    <member><InstanceId>i-0123456789abcdef0</InstanceId><LifecycleState>InService</LifecycleState></member>\
    <member><InstanceId>i-0123456789abcdef1</InstanceId><LifecycleState>InService</LifecycleState></member>\
    </Instances></member></AutoScalingGroups></DescribeAutoScalingGroupsResult></DescribeAutoScalingGroupsResponse>";
const CREDENTIALS: &str = "{\"Code\": \"Success\", \"Type\": \"AWS-HMAC\", \"AccessKeyId\": \"id\", \
    \"SecretAccessKey\": \"key\", \"Token\": \"token\", \"LastUpdated\": \"2026-01-01T00:00:00Z\", \
    \"Expiration\": \"2099-01-01T00:00:00Z\"}";
/// The path of every request to an AWS service.
const SERVICES: &str = "/";
/// The path of the role's name in instance metadata.
const ROLE: &str = "/latest/meta-data/iam/security-credentials/";
/// The path of the credentials of the role named `role`.
const ROLE_CREDENTIALS: &str = "/latest/meta-data/iam/security-credentials/role";

/// How an answer arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Delivery {
    /// The answer's length is announced, and the whole answer arrives.
    #[default]
    Whole,
    /// The answer's length is announced, and the connection ends one byte earlier.
    Short,
    /// The end of the connection ends the answer.
    Endless,
    /// The answer arrives in chunks, including the last chunk.
    Chunks,
    /// The answer arrives in chunks, without the last chunk.
    ChunksWithoutEnd,
    /// The input is the whole answer, including its head.
    Raw,
}

const DELIVERIES: [Delivery; 6] =
    [Delivery::Whole, Delivery::Short, Delivery::Endless, Delivery::Chunks, Delivery::ChunksWithoutEnd, Delivery::Raw];

/// The next answer.
#[derive(Debug, Default)]
struct Script {
    /// The path that the answer applies to. All AWS services share one path.
    path: &'static str,
    /// Whether Auto Scaling lists [`GROUP`] before it sends the scripted answer.
    knows_group: bool,
    status: u16,
    delivery: Delivery,
    body: Vec<u8>,
}

type Shared = Arc<Mutex<Script>>;

fn lock(script: &Shared) -> MutexGuard<'_, Script> {
    script.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Script {
    /// The bytes that answer a request, and whether another request may follow.
    fn answer(&self, request: &str) -> (Vec<u8>, bool) {
        let path = request.split(' ').nth(1).unwrap_or_default();
        let is_scripted = path.trim_end_matches('/') == self.path.trim_end_matches('/');
        let is_group = self.knows_group && request.contains("action=describeautoscalinggroups");
        let plain = |text: &str| (respond(200, Delivery::Whole, text.as_bytes()), true);
        match path {
            _ if is_group => plain(GROUP),
            _ if is_scripted => {
                let goes_on = matches!(self.delivery, Delivery::Whole | Delivery::Chunks);
                (respond(self.status, self.delivery, &self.body), goes_on)
            }
            "/latest/api/token" => plain("token"),
            ROLE => plain("role"),
            _ => plain(CREDENTIALS),
        }
    }
}

fn respond(status: u16, delivery: Delivery, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let framing = match delivery {
        Delivery::Raw => return body.to_vec(),
        Delivery::Whole => format!("content-length: {length}"),
        Delivery::Short => format!("content-length: {}", length + 1),
        Delivery::Endless => "connection: close".into(),
        Delivery::Chunks | Delivery::ChunksWithoutEnd => "transfer-encoding: chunked".into(),
    };
    let head = format!("HTTP/1.1 {status} .\r\nx-aws-ec2-metadata-token-ttl-seconds: 21600\r\n{framing}\r\n\r\n");
    let mut answer = head.into_bytes();
    if matches!(delivery, Delivery::Chunks | Delivery::ChunksWithoutEnd) {
        for chunk in body.chunks(100) {
            answer.extend(format!("{:x}\r\n", chunk.len()).bytes().chain(chunk.iter().copied()).chain(*b"\r\n"));
        }
        if delivery == Delivery::Chunks {
            answer.extend(*b"0\r\n\r\n");
        }
    } else {
        answer.extend(body);
    }
    answer
}

/// Serves one request after the other, until one side closes the connection.
async fn connection(mut stream: TcpStream, script: Shared) -> std::io::Result<()> {
    let mut read = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        };
        let text = String::from_utf8_lossy(&read[..head]).to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        while read.len() < head + length.unwrap_or(0) {
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        }
        let request = String::from_utf8_lossy(&read).to_ascii_lowercase();
        let (answer, goes_on) = lock(&script).answer(&request);
        stream.write_all(&answer).await?;
        if !goes_on {
            return Ok(());
        }
        read.drain(..head + length.unwrap_or(0));
    }
}

struct Bench {
    runtime: tokio::runtime::Runtime,
    script: Shared,
    settings: AwsSettings,
    config: SdkConfig,
    asg: Asg,
    bundle: SecretsManager,
    named: SecretsManager,
    credential: ClusterSecret,
    pca: AcmPca,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let script = Shared::default();
        let served = Arc::clone(&script);
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a loopback address");
        let address: SocketAddr = listener.local_addr().expect("its address");
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream, Arc::clone(&served)));
            }
        });
        let endpoint = format!("http://{address}");
        let settings = AwsSettings {
            region: Some("eu-west-1".into()),
            endpoint: Some(endpoint.clone()),
            imds_endpoint: Some(endpoint),
        };
        let config = runtime.block_on(settings.load());
        Self {
            asg: Asg::new(&config, node(), Some("group".into()), AddressLookup::Dns, 6222),
            bundle: SecretsManager::new(&config, "nats/ca", None),
            named: SecretsManager::new(&config, "nats/ca", Some("bundle".into())),
            credential: ClusterSecret::new(&config, "nats/route"),
            pca: pca(&config),
            script,
            runtime,
            settings,
            config,
        }
    }
}

fn node() -> Node {
    Node {
        name: "n1".into(),
        instance_id: Some(IDS[0].into()),
        region: Some("eu-west-1".into()),
        address: IpAddr::V4(Ipv4Addr::new(10, 0, 1, 5)),
        sans: Sans::default(),
        further_addresses: [].into(),
        placement: nats_tls_agent::node::Placement::default(),
    }
}

fn pca(config: &SdkConfig) -> AcmPca {
    AcmPca::new(config, CaArn::try_from(CA.to_owned()).expect("an ARN"), None)
}

thread_local! {
    static BENCH: Bench = Bench::new();
}

/// Fuzzes one call. The first byte selects the call, the status and the delivery; the rest is the answer's body.
pub fn aws(input: &[u8]) {
    let Some((mode, body)) = input.split_first() else { return };
    BENCH.with(|bench| {
        let which = bench.arrange(*mode, body);
        bench.runtime.block_on(call(bench, which, body));
    });
}

impl Bench {
    /// Sets the next answer, and returns the number of the call that gets this answer.
    fn arrange(&self, mode: u8, body: &[u8]) -> u8 {
        let (which, how) = (mode % 12, usize::from(mode / 12));
        let path = match which {
            10 => ROLE,
            11 => ROLE_CREDENTIALS,
            _ => SERVICES,
        };
        // The metadata client retries after a fault that looks temporary. Its pauses would only cost time here.
        let (status, delivery) = match which {
            10 | 11 => ([200, 403, 404, 200][how % 4], Delivery::Whole),
            _ => ([200, 400, 403, 500][how % 4], DELIVERIES[how / 4]),
        };
        let knows_group = matches!(which, 8 | 9);
        *lock(&self.script) = Script { path, knows_group, status, delivery, body: body.to_vec() };
        which
    }
}

async fn call(bench: &Bench, which: u8, body: &[u8]) {
    match which {
        0 => match bench.asg.members("group").await {
            Ok(members) => assert!(members.iter().all(|member| is_peer(&member.state) || member.id == IDS[0])),
            Err(error) => logged(&error),
        },
        1 => match bench.bundle.fetch().await {
            Ok(bundle) => assert!(!bundle.anchors.is_empty() && !bundle.version.is_empty()),
            Err(error) => logged(&error),
        },
        2 => drop(bench.named.fetch().await.inspect_err(|error| logged(error))),
        3 => match bench.credential.versions(time::OffsetDateTime::UNIX_EPOCH).await {
            Ok(versions) => assert!(versions.iter().all(|version| !version.credential.password.is_empty())),
            Err(error) => logged(&error),
        },
        4 => match bench.pca.collect(&CertificateHandle("arn".into())).await {
            Ok(chain) => assert!(chain.is_none_or(|chain| chain.leaf_pem.contains("BEGIN CERTIFICATE"))),
            Err(error) => logged(&error),
        },
        5 => drop(bench.pca.ca_pem().await.inspect_err(|error| logged(error))),
        // The issuer keeps what it learns about the CA, so each call has a new issuer.
        6 => match ask(&pca(&bench.config)).await {
            Ok(handle) => assert!(!handle.0.is_empty()),
            Err(error) => logged(&error),
        },
        8 => {
            let asg = Asg::new(&bench.config, node(), Some("group".into()), AddressLookup::Ec2, 6222);
            match asg.sight().await {
                // Every peer is an instance of the group, and this node keeps its own address.
                Ok(seen) => assert!(seen.peers.iter().all(|peer| {
                    IDS.contains(&peer.id.as_str()) && (peer.id != IDS[0] || peer.address.ip() == node().address)
                })),
                Err(error) => logged(&error),
            }
        }
        // The source keeps the group that it has found, so each call has a new source.
        9 => {
            let asg = Asg::new(&bench.config, node(), None, AddressLookup::Ec2, 6222);
            drop(asg.sight().await.inspect_err(|error| logged(error)));
        }
        10 | 11 => {
            let credentials = bench.settings.load().await.credentials_provider().expect("a provider of credentials");
            match credentials.provide_credentials().await {
                Ok(_) if which == 10 => assert!(is_role(body), "{}", body.escape_ascii()),
                Ok(_) => {}
                Err(error) => logged(&error),
            }
        }
        // The input is the content of a secret, without the surrounding JSON.
        _ => {
            for key in [None, Some("bundle")] {
                drop(secrets_manager::pem(Zeroizing::new(body.to_vec()), key));
            }
            if let Ok(credential) = secret::credential(body) {
                assert!(!credential.username.is_empty() && !credential.password.is_empty());
            }
        }
    }
}

/// The result of a request whose calls all get the same answer.
async fn ask(issuer: &AcmPca) -> Result<CertificateHandle, RemoteError> {
    let validity = std::time::Duration::from_hours(8 * 24);
    let prepared = issuer.prepare(validity).await;
    let request = IssueRequest {
        csr_pem: "-----BEGIN CERTIFICATE REQUEST-----\nMA==\n-----END CERTIFICATE REQUEST-----\n",
        validity,
        now: time::OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000),
        signing_algorithm: prepared.as_deref().unwrap_or("SHA256WITHECDSA"),
        idempotency_token: "token",
    };
    issuer.request(&request).await
}

fn is_peer(state: &str) -> bool {
    state == "InService" || state.starts_with("Pending")
}

fn is_role(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(name: &str) -> Vec<u8> {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/aws");
        std::fs::read(corpus.join(name)).unwrap()
    }

    /// The result of a call that gets a seed's answer.
    fn with<T>(name: &str, ask: impl AsyncFnOnce(&Bench) -> T) -> T {
        BENCH.with(|bench| {
            let input = seed(name);
            bench.arrange(input[0], &input[1..]);
            bench.runtime.block_on(ask(bench))
        })
    }

    #[test]
    fn the_products_own_client_reads_every_answer() {
        let members = |name| with(name, async |bench| bench.asg.members("group").await);
        for whole in ["asg", "asg-without-length", "asg-chunks", "asg-raw"] {
            assert!(!members(whole).unwrap().is_empty(), "{whole}");
        }
        for part in ["asg-broken-off", "asg-chunks-without-end", "asg-half-without-length"] {
            members(part).unwrap_err();
        }
        let error = members("asg-half-without-length").unwrap_err();
        assert!(nats_tls_agent::error::with_causes(&error).contains("breaks off"), "{error:?}");
        let credentials = async |bench: &Bench| {
            let provider = bench.settings.load().await.credentials_provider().unwrap();
            provider.provide_credentials().await.map_err(|error| format!("{error:?}"))
        };
        with("imds-role", credentials).unwrap();
        with("imds-credentials", credentials).unwrap();
        let error = with("imds-role-page", credentials).unwrap_err();
        assert!(error.contains("no name of a role"), "{error}");
    }

    #[cfg(feature = "ec2")]
    #[test]
    fn a_group_is_found_and_ec2_gives_its_addresses() {
        let asg = |bench: &Bench, name| Asg::new(&bench.config, node(), name, AddressLookup::Ec2, 6222);
        let seen = with("ec2-instances", async |bench| asg(bench, Some("group".into())).sight().await).unwrap();
        let addresses: Vec<_> = seen.peers.iter().map(|peer| peer.address.ip().to_string()).collect();
        assert_eq!((addresses, seen.unresolved), (vec!["10.0.1.5".to_owned(), "10.0.1.6".to_owned()], Vec::new()));
        // The agent then asks EC2, and the scripted answer doesn't fit this question.
        let error = with("asg-no-group", async |bench| asg(bench, None).sight().await).unwrap_err();
        assert!(error.attempt.contains("DescribeInstances"), "{error}");
    }
}
