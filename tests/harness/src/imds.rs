//! Instance metadata, version 2.
//!
//! The EC2 user guide has the rules:
//!
//! - sessions and their headers: "Use the Instance Metadata Service to access instance metadata"
//!   (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>);
//! - paths: "Instance metadata categories"
//!   (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-metadata.html>);
//! - the document: "Instance identity documents"
//!   (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-identity-documents.html>);
//! - credentials: "Retrieve security credentials from instance metadata"
//!   (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html>);
//! - lifecycle state: "Retrieve the target lifecycle state through instance metadata"
//!   (<https://docs.aws.amazon.com/autoscaling/ec2/userguide/retrieving-target-lifecycle-state-through-imds.html>).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_double::wire::{self, Body, Reset};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName};
use hyper::{Method, Request, StatusCode};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::Failure;

const TOKEN_TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN: &str = "x-aws-ec2-metadata-token";
/// Six hours in seconds, the longest session that IMDS grants.
const LONGEST_TTL: u32 = 21_600;

const MAC: &str = "02:29:96:8f:6a:2d";
const AMI: &str = "ami-5fb8c835";
const INSTANCE_TYPE: &str = "t3.micro";

/// The facts that instance metadata serves.
#[derive(Clone, Debug)]
pub struct InstanceFacts {
    /// The instance id, `i-…`.
    pub instance_id: String,
    /// The Region.
    pub region: String,
    /// The addresses of the primary interface. The first IPv4 address is the primary address.
    pub addresses: Vec<IpAddr>,
    /// The private DNS host name.
    pub local_hostname: String,
    /// The role of the instance profile, if the instance has a profile.
    pub role: Option<String>,
    /// `autoscaling/target-lifecycle-state`, if the instance is in a group.
    pub lifecycle_state: Option<String>,
    /// The user data of the launch.
    pub user_data: Option<String>,
}

impl InstanceFacts {
    /// An instance in service, with an instance profile.
    #[must_use]
    pub fn new(instance_id: &str, region: &str, address: IpAddr) -> Self {
        let domain = if region == "us-east-1" { "ec2.internal".into() } else { format!("{region}.compute.internal") };
        Self {
            instance_id: instance_id.into(),
            region: region.into(),
            addresses: vec![address],
            local_hostname: format!("ip-{}.{domain}", address.to_string().replace('.', "-")),
            role: Some("nats".into()),
            lifecycle_state: Some("InService".into()),
            user_data: None,
        }
    }
}

/// The metadata service of one instance.
#[derive(Debug)]
pub struct Metadata {
    /// The facts of the instance.
    pub facts: InstanceFacts,
    tokens: Vec<String>,
    asked: Vec<String>,
    refused: Vec<String>,
}

/// A fault of instance metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `HttpEndpoint: disabled`: every request is answered with 403.
    Disabled,
    /// Every request with a token is answered with this status.
    Status(u16),
    /// Every request with a token is answered with 200 and this text.
    Answer(String),
    /// The service takes the request, and never answers.
    Hang,
    /// The connection is reset.
    Reset,
    /// The connection ends in the middle of the answer.
    Truncated,
    /// The answer is too long for any reader.
    Huge,
}

/// A kind of request to instance metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// A request for a session token.
    Token,
    /// A request for the instance's identity.
    Identity,
    /// A request for the credentials of the instance profile.
    Credentials,
}

impl Question {
    fn of(path: &str) -> Self {
        if path == "/latest/api/token" {
            Self::Token
        } else if path.contains("/iam/") {
            Self::Credentials
        } else {
            Self::Identity
        }
    }
}

const HUGE: usize = 9 * 1024 * 1024;

/// Instance metadata on a free loopback port, until this value is dropped.
#[derive(Debug)]
pub struct ImdsStub {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    metadata: Metadata,
    fault: Option<Fault>,
    only: Option<(Question, Fault)>,
}

impl ImdsStub {
    /// Serves the facts of an instance.
    pub async fn start(facts: InstanceFacts) -> Result<Self, Failure> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .map_err(|error| Failure::new("no port for instance metadata").because(error))?;
        let address =
            listener.local_addr().map_err(|error| Failure::new("no address of instance metadata").because(error))?;
        let state = Arc::new(Mutex::new(State { metadata: Metadata::new(facts), fault: None, only: None }));
        let server = tokio::spawn(serve(listener, Arc::clone(&state)));
        Ok(Self { address, state, server })
    }

    /// The value for `AWS_EC2_METADATA_SERVICE_ENDPOINT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets the fault of later requests. `None` removes it.
    pub fn set_fault(&self, fault: Option<Fault>) {
        lock(&self.state).fault = fault;
    }

    /// Sets the fault of one kind of request, which may be the token's. `None` removes it.
    pub fn set_fault_of(&self, question: Question, fault: Option<Fault>) {
        lock(&self.state).only = fault.map(|fault| (question, fault));
    }

    /// Changes the served facts.
    pub fn change(&self, change: impl FnOnce(&mut InstanceFacts)) {
        change(&mut lock(&self.state).metadata.facts);
    }

    /// The paths requested with a valid token, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        lock(&self.state).metadata.asked.clone()
    }

    /// The paths requested without a valid token, as in version 1.
    #[must_use]
    pub fn refused(&self) -> Vec<String> {
        lock(&self.state).metadata.refused.clone()
    }
}

impl Drop for ImdsStub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    wire::serve(listener, move |request: Request<Incoming>, reset: Reset| {
        let state = Arc::clone(&state);
        async move {
            let question = Question::of(request.uri().path());
            let (answer, fault) = {
                let mut state = lock(&state);
                let answer = match state.fault {
                    Some(Fault::Disabled) => status(StatusCode::FORBIDDEN),
                    _ => state.metadata.answer(&request),
                };
                let only = state.only.clone().filter(|(of, _)| *of == question).map(|(_, fault)| fault);
                let holds = |fault: &Fault| question != Question::Token || *fault == Fault::Disabled;
                let fault = only.or(state.fault.clone().filter(holds));
                // A request without a session gets a 401, whatever the fault. Only `Disabled` takes precedence over the
                // 401.
                let is_refused = answer.0 == StatusCode::UNAUTHORIZED;
                (answer, fault.filter(|fault| !is_refused || *fault == Fault::Disabled))
            };
            let (status, headers, text) = answer;
            let (status, text) = match &fault {
                Some(Fault::Hang) => {
                    std::future::pending::<()>().await;
                    (status, text)
                }
                Some(Fault::Reset) => {
                    reset.connection().await;
                    (status, text)
                }
                Some(Fault::Disabled) => (StatusCode::FORBIDDEN, "Forbidden".into()),
                Some(Fault::Status(wrong)) => {
                    (StatusCode::from_u16(*wrong).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), String::new())
                }
                Some(Fault::Answer(nonsense)) => (StatusCode::OK, nonsense.clone()),
                Some(Fault::Huge) => (status, text.repeat(HUGE / text.len().max(1) + 1)),
                Some(Fault::Truncated) | None => (status, text),
            };
            let mut response = Body::respond(text, fault == Some(Fault::Truncated));
            *response.status_mut() = status;
            response.headers_mut().extend(headers);
            response
        }
    })
    .await;
}

/// Status, headers and body of an answer.
pub type Answer = (StatusCode, HeaderMap, String);

impl Metadata {
    /// The metadata of this instance, without a session.
    #[must_use]
    pub fn new(facts: InstanceFacts) -> Self {
        Self { facts, tokens: Vec::new(), asked: Vec::new(), refused: Vec::new() }
    }

    /// Answers as version 2 does, that is, only within a session.
    pub fn answer<B>(&mut self, request: &Request<B>) -> Answer {
        if request.uri().path() == "/latest/api/token" {
            return self.token(request);
        }
        let header = request.headers().get(TOKEN).and_then(|token| token.to_str().ok());
        if !header.is_some_and(|token| self.tokens.iter().any(|known| known == token)) {
            self.refused.push(request.uri().path().to_owned());
            return status(StatusCode::UNAUTHORIZED);
        }
        if request.method() != Method::GET {
            return status(StatusCode::METHOD_NOT_ALLOWED);
        }
        let path = request.uri().path().to_owned();
        let found = self.facts.find(&path);
        self.asked.push(path);
        found.map_or_else(|| status(StatusCode::NOT_FOUND), |text| (StatusCode::OK, HeaderMap::new(), text))
    }

    fn token<B>(&mut self, request: &Request<B>) -> Answer {
        if request.method() != Method::PUT {
            return status(StatusCode::METHOD_NOT_ALLOWED);
        }
        let ttl = request.headers().get(TOKEN_TTL).and_then(|ttl| ttl.to_str().ok()?.parse::<u32>().ok());
        let Some(ttl) = ttl.filter(|ttl| (1..=LONGEST_TTL).contains(ttl)) else {
            return status(StatusCode::BAD_REQUEST);
        };
        let token = format!("AQAEAF{:08x}==", self.tokens.len());
        self.tokens.push(token.clone());
        let headers = HeaderMap::from_iter([(HeaderName::from_static(TOKEN_TTL), ttl.into())]);
        (StatusCode::OK, headers, token)
    }
}

impl InstanceFacts {
    /// The value of a category, or the names below it. Each name has a line, and a directory's name ends with a slash.
    /// The version in the path is `latest` or a date.
    fn find(&self, path: &str) -> Option<String> {
        let (version, path) = path.strip_prefix('/')?.split_once('/')?;
        let is_date = version.len() == 10 && version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        if version != "latest" && !is_date {
            return None;
        }
        let path = path.trim_end_matches('/');
        let categories = self.categories();
        if let Some((_, value)) = categories.iter().find(|(category, _)| category == path) {
            return Some(value.clone());
        }
        let below = categories.iter().filter_map(|(category, _)| category.strip_prefix(path)?.strip_prefix('/'));
        let names: BTreeSet<&str> = below.map(|rest| rest.split_inclusive('/').next().unwrap_or(rest)).collect();
        (!names.is_empty()).then(|| names.into_iter().collect::<Vec<_>>().join("\n"))
    }

    /// All known categories, by their path below the version.
    fn categories(&self) -> Vec<(String, String)> {
        let lines = |v4: bool| {
            let some: Vec<String> =
                self.addresses.iter().filter(|ip| ip.is_ipv4() == v4).map(ToString::to_string).collect();
            (!some.is_empty()).then(|| some.join("\n"))
        };
        let primary = self.addresses.iter().find(|ip| ip.is_ipv4()).map(ToString::to_string);
        let document = self.document(primary.as_deref());
        let metadata = [
            ("ami-id", Some(AMI.to_owned())),
            ("instance-id", Some(self.instance_id.clone())),
            ("instance-type", Some(INSTANCE_TYPE.to_owned())),
            ("local-ipv4", primary),
            ("local-hostname", Some(self.local_hostname.clone())),
            ("hostname", Some(self.local_hostname.clone())),
            ("mac", Some(MAC.to_owned())),
            (&format!("network/interfaces/macs/{MAC}/local-ipv4s"), lines(true)),
            (&format!("network/interfaces/macs/{MAC}/ipv6s"), lines(false)),
            ("placement/region", Some(self.region.clone())),
            ("placement/availability-zone", Some(format!("{}a", self.region))),
            ("autoscaling/target-lifecycle-state", self.lifecycle_state.clone()),
        ];
        let metadata = metadata.into_iter().filter_map(|(name, value)| Some((format!("meta-data/{name}"), value?)));
        let role = self.role.as_ref().map(|role| (format!("meta-data/iam/security-credentials/{role}"), credentials()));
        let user_data = self.user_data.clone().map(|text| ("user-data".to_owned(), text));
        let document = ("dynamic/instance-identity/document".to_owned(), document);
        metadata.chain(role).chain(user_data).chain([document]).collect()
    }

    fn document(&self, primary: Option<&str>) -> String {
        json!({
            "accountId": "123456789012",
            "architecture": "x86_64",
            "availabilityZone": format!("{}a", self.region),
            "billingProducts": null,
            "devpayProductCodes": null,
            "marketplaceProductCodes": null,
            "imageId": AMI,
            "instanceId": self.instance_id,
            "instanceType": INSTANCE_TYPE,
            "kernelId": null,
            "pendingTime": "2026-01-19T16:32:11Z",
            "privateIp": primary,
            "ramdiskId": null,
            "region": self.region,
            "version": "2017-09-30",
        })
        .to_string()
    }
}

/// The access key id comes from AWS's own documentation. The credentials don't expire during a test.
fn credentials() -> String {
    json!({
        "Code": "Success",
        "LastUpdated": "2026-01-01T00:00:00Z",
        "Type": "AWS-HMAC",
        "AccessKeyId": "ASIAIOSFODNN7EXAMPLE",
        "SecretAccessKey": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "Token": "token",
        "Expiration": "2099-01-01T00:00:00Z",
    })
    .to_string()
}

fn status(code: StatusCode) -> Answer {
    (code, HeaderMap::new(), code.canonical_reason().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(imds: &ImdsStub, request: &str, header: &str) -> String {
        let mut stream = TcpStream::connect(imds.address).await.unwrap();
        let text = format!("{request} HTTP/1.1\r\nHost: imds\r\nConnection: close\r\n{header}\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn nothing_is_said_without_a_session() {
        let facts = InstanceFacts::new("i-0123456789abcdef0", "eu-west-1", IpAddr::from([10, 0, 1, 5]));
        let imds = ImdsStub::start(facts).await.unwrap();
        let id = "GET /latest/meta-data/instance-id";
        assert!(ask(&imds, id, "").await.starts_with("HTTP/1.1 401"));
        assert!(ask(&imds, id, "x-aws-ec2-metadata-token: guessed\r\n").await.starts_with("HTTP/1.1 401"));
        assert!(ask(&imds, "PUT /latest/api/token", "").await.starts_with("HTTP/1.1 400"));
        assert!(imds.asked().is_empty());
        assert_eq!(imds.refused(), ["/latest/meta-data/instance-id"; 2]);

        let session = ask(&imds, "PUT /latest/api/token", &format!("{TOKEN_TTL}: 60\r\n")).await;
        assert!(session.contains(&format!("{TOKEN_TTL}: 60")), "{session}");
        let token = session.rsplit_once("\r\n").unwrap().1;
        let header = format!("{TOKEN}: {token}\r\n");
        assert!(ask(&imds, id, &header).await.ends_with("\r\n\r\ni-0123456789abcdef0"));
        let state = ask(&imds, "GET /latest/meta-data/autoscaling/target-lifecycle-state", &header).await;
        assert!(state.ends_with("InService"), "{state}");
        assert!(ask(&imds, "GET /latest/meta-data/iam/security-credentials/nats", &header).await.contains("2099"));
        assert!(ask(&imds, "GET /latest/user-data", &header).await.starts_with("HTTP/1.1 404"));
    }

    #[test]
    fn a_directory_lists_what_is_below_it_in_every_version() {
        let mut facts = InstanceFacts::new("i-0123456789abcdef0", "eu-west-1", IpAddr::from([10, 0, 1, 5]));
        facts.user_data = Some("#cloud-config".into());
        let find = |path: &str| facts.find(path);
        assert_eq!(find("/latest/meta-data/placement/").unwrap(), "availability-zone\nregion");
        assert_eq!(find("/2021-03-23/meta-data/placement/region").unwrap(), "eu-west-1");
        assert_eq!(find("/latest/meta-data/network/interfaces/macs/").unwrap(), format!("{MAC}/"));
        assert_eq!(find("/latest/meta-data/iam/security-credentials").unwrap(), "nats");
        assert_eq!(find("/2009-04-04/user-data").unwrap(), "#cloud-config");
        assert!(find("/latest/meta-data/").unwrap().contains("iam/\ninstance-id\n"));
        for nothing in
            ["/", "/meta-data/", "/v1/meta-data/", "/latest/meta-data/place", "/latest/meta-data/public-keys/"]
        {
            assert_eq!(find(nothing), None, "{nothing}");
        }
    }
}
