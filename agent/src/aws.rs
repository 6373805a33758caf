//! AWS: the set-up of the SDK's clients, and the kinds of their errors.
//!
//! Clients follow the SDK's own conventions: the default credential chain, `AWS_ENDPOINT_URL`,
//! `AWS_EC2_METADATA_SERVICE_ENDPOINT`, `AWS_USE_FIPS_ENDPOINT`, proxies from the environment. Four rules are our own:
//!
//! * No answer is read beyond `MAX_ANSWER`.
//! * An answer that breaks off is an error.
//! * Instance metadata is never asked through a proxy.
//! * The SDK repeats no request: the reconciler owns retry and back-off.

pub(crate) mod calls;
mod complete_xml;
pub(crate) mod denial;
mod role;
pub mod secret;

use std::time::Duration;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig, imds};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::{Builder, ConnectorBuilder, tls};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use http_body_util::Limited;

use self::complete_xml::CompleteXml;
use crate::error::{RemoteError, RemoteErrorKind};

/// The largest answer that is read, in bytes. A page of 100 Auto Scaling groups or 200 EC2 instances stays well below.
pub(crate) const MAX_ANSWER: usize = 8 * 1024 * 1024;

/// How long a TCP connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long one attempt of a call may take, without the time for credentials.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call to AWS may take in all.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// How much of a service's message an error repeats, in characters.
const MAX_MESSAGE: usize = 1000;

/// Where AWS is. [`AwsSettings::default`] leaves everything to the SDK's conventions. Tests name their doubles.
#[derive(Clone, Debug, Default)]
pub struct AwsSettings {
    /// The Region of the calls.
    pub region: Option<String>,
    /// The endpoint of every service, in place of AWS's own and of `AWS_ENDPOINT_URL`.
    pub endpoint: Option<String>,
    /// The endpoint of instance metadata, in place of `AWS_EC2_METADATA_SERVICE_ENDPOINT`. Credentials then come from this
    /// endpoint alone, so that a developer's own credentials can't leak into a test.
    pub imds_endpoint: Option<String>,
}

impl AwsSettings {
    /// The Region that the environment names: `AWS_REGION`, else `AWS_DEFAULT_REGION`
    /// (<https://docs.aws.amazon.com/sdkref/latest/guide/feature-region.html>).
    #[must_use]
    pub fn from_environment() -> Self {
        let region = ["AWS_REGION", "AWS_DEFAULT_REGION"]
            .into_iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        Self { region, ..Self::default() }
    }

    /// The configuration of every service client. Loading it calls no service.
    pub async fn load(&self) -> SdkConfig {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(CALL_TIMEOUT)
            .build();
        let http_client = bounded_http_client(ProxyConfig::from_env());
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .http_client(http_client.clone())
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            .no_credentials();
        if let Some(region) = &self.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(endpoint) = &self.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        let config = loader.load().await;
        let credentials = self.credentials(http_client, &config).await;
        config.into_builder().credentials_provider(credentials).build()
    }

    /// The client of instance metadata. The SDK's client speaks version 2 only.
    #[must_use]
    pub(crate) fn imds(&self) -> imds::Client {
        let http_client = bounded_http_client(ProxyConfig::disabled());
        let mut builder = imds::Client::builder()
            .configure(&ProviderConfig::without_region().with_http_client(http_client))
            // The second attempt follows a server error or an expired token, never a time-out.
            .max_attempts(2)
            .connect_timeout(Duration::from_secs(1))
            .read_timeout(Duration::from_secs(2))
            .operation_attempt_timeout(Duration::from_secs(4))
            .operation_timeout(Duration::from_secs(9));
        if let Some(endpoint) = &self.imds_endpoint {
            match builder.clone().endpoint(endpoint) {
                Ok(named) => builder = named,
                Err(error) => tracing::warn!("{endpoint} is not a usable instance metadata endpoint: {error}"),
            }
        }
        builder.build()
    }

    /// The default credential chain, with our own client for instance metadata.
    async fn credentials(&self, http_client: SharedHttpClient, config: &SdkConfig) -> SharedCredentialsProvider {
        if self.imds_endpoint.is_some() {
            let imds = ImdsCredentialsProvider::builder().imds_client(self.imds()).build();
            return SharedCredentialsProvider::new(imds);
        }
        let chain = ProviderConfig::without_region()
            .with_region(config.region().cloned())
            .with_use_fips(config.use_fips())
            .with_use_dual_stack(config.use_dual_stack())
            .with_http_client(http_client);
        let mut builder = DefaultCredentialsChain::builder().configure(chain).imds_client(self.imds());
        builder.set_region(config.region().cloned());
        SharedCredentialsProvider::new(builder.build().await)
    }
}

/// The SDK's own HTTPS client, with a limit to every answer. The limit also holds for instance metadata and for the
/// endpoints of credentials, so it can't stand on the services' clients.
fn bounded_http_client(proxy: ProxyConfig) -> SharedHttpClient {
    let client = Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = ConnectorBuilder::default()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
            .proxy_config(proxy.clone());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        connector.build()
    });
    SharedHttpClient::new(BoundedClient(client))
}

#[derive(Debug)]
struct BoundedClient(SharedHttpClient);

impl HttpClient for BoundedClient {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(BoundedConnector(self.0.http_connector(settings, components)))
    }
}

#[derive(Debug)]
struct BoundedConnector(SharedHttpConnector);

impl HttpConnector for BoundedConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let asks_for_role = role::is_asked_for(request.uri());
        let answer = self.0.call(request);
        HttpConnectorFuture::new(async move {
            let bounded = |body| SdkBody::from_body_1_x(CompleteXml::new(Limited::new(body, MAX_ANSWER)));
            let answer = answer.await?.map(bounded);
            if asks_for_role { role::checked(answer).await } else { Ok(answer) }
        })
    }
}

/// The error of `call`, written as IAM writes it, from what the SDK returned.
pub fn refused<E>(call: &str, error: SdkError<E, HttpResponse>) -> RemoteError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let status = error.raw_response().map(|answer| answer.status().as_u16());
    if let SdkError::ServiceError(answer) = &error {
        let meta = answer.err().meta();
        let request_id = meta.extra("aws_request_id");
        return answered(call, status, meta.code(), meta.message(), request_id);
    }
    if let Some(credentials) = credentials_error(&error) {
        let (kind, reason) = classify_credentials(credentials);
        let remedy = "give the instance a profile whose role allows the call, and let it reach instance metadata";
        return RemoteError { source: error.into_source().ok(), ..RemoteError::new(kind, call, reason, remedy) };
    }
    let (kind, reason, remedy) = match &error {
        SdkError::TimeoutError(_) => (
            RemoteErrorKind::Unavailable,
            "no answer in time",
            "check the way to the endpoint: route, security group, VPC endpoint, proxy",
        ),
        SdkError::DispatchFailure(failure) if failure.is_timeout() => (
            RemoteErrorKind::Unavailable,
            "could not connect in time",
            "check the way to the endpoint: route, security group, VPC endpoint, proxy",
        ),
        SdkError::DispatchFailure(failure) if failure.is_io() => (
            RemoteErrorKind::Unavailable,
            "could not reach the endpoint",
            "check the Region, the name resolution and the way to the endpoint: route, security group, VPC endpoint",
        ),
        SdkError::ResponseError(_) => (
            RemoteErrorKind::Unavailable,
            "the answer could not be read",
            "check what answers at the endpoint: a proxy, or AWS_ENDPOINT_URL",
        ),
        SdkError::ConstructionFailure(_) => (
            RemoteErrorKind::Permanent,
            "the request could not be made",
            "check node.region and what the AWS_ variables of the environment say",
        ),
        _ => (RemoteErrorKind::Unavailable, "the request was not sent", "see the cause; it is tried again"),
    };
    let reason = status.map_or_else(|| reason.to_owned(), |status| format!("HTTP {status}: {reason}"));
    RemoteError { source: error.into_source().ok(), ..RemoteError::new(kind, call, reason, remedy) }
}

/// The error of a call whose answer reports success but lacks what the API documents.
pub(crate) fn nonsense(call: &str, reason: impl Into<String>) -> RemoteError {
    let remedy = "check what answers at the endpoint; it is tried again";
    RemoteError::new(RemoteErrorKind::Unavailable, call, reason, remedy)
}

fn answered(
    call: &str,
    status: Option<u16>,
    code: Option<&str>,
    message: Option<&str>,
    request_id: Option<&str>,
) -> RemoteError {
    let status = status.unwrap_or_default();
    if code.is_none() && (200..300).contains(&status) {
        // The SDK counts an unreadable answer of success among the service's errors.
        return nonsense(call, format!("HTTP {status}, but the answer could not be read"));
    }
    let kind = classify(status, code.unwrap_or_default());
    let what = code.map_or_else(|| format!("HTTP {status} without an error code"), readable);
    let words = message.map(|message| format!(" ({})", readable(message))).unwrap_or_default();
    let request = request_id.map(|id| format!(", request {}", readable(id))).unwrap_or_default();
    let remedy = remedy(kind, code.unwrap_or_default(), call);
    let error = RemoteError::new(kind, call, format!("{what}{words}{request}"), remedy);
    RemoteError { code: code.map(|code| readable(code).into()), ..error }
}

/// Sorts the codes of the services' "Common Errors" pages and API references. `LimitExceededException` is a quota: the SDK
/// takes it for throttling and would repeat the request.
fn classify(status: u16, code: &str) -> RemoteErrorKind {
    match code {
        "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "RequestLimitExceeded"
        | "TooManyRequestsException"
        | "SlowDown"
        | "EC2ThrottledException" => RemoteErrorKind::Throttled,
        "LimitExceeded" | "LimitExceededException" | "ServiceQuotaExceededException" => RemoteErrorKind::Quota,
        "AccessDenied"
        | "AccessDeniedException"
        | "AuthFailure"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "IncompleteSignature"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "NotAuthorized"
        | "OptInRequired"
        | "RequestExpired"
        | "SignatureDoesNotMatch"
        | "UnauthorizedOperation"
        | "UnrecognizedClientException"
        // Secrets Manager: the policy of the KMS key doesn't allow this role to decrypt.
        | "DecryptionFailure" => RemoteErrorKind::Denied,
        "InternalError" | "InternalFailure" | "InternalServiceError" | "ServiceUnavailable" | "Unavailable"
        | "ResourceContention" | "RequestTimeout" => RemoteErrorKind::Unavailable,
        _ if status == 429 => RemoteErrorKind::Throttled,
        _ if status >= 500 || status == 0 => RemoteErrorKind::Unavailable,
        _ if status == 401 || status == 403 => RemoteErrorKind::Denied,
        // A 4xx without an error code comes from a proxy or a wrong endpoint, not from the service.
        "" => RemoteErrorKind::Unavailable,
        _ => RemoteErrorKind::Permanent,
    }
}

fn remedy(kind: RemoteErrorKind, code: &str, call: &str) -> String {
    match (kind, code) {
        (_, "RequestExpired" | "SignatureDoesNotMatch" | "InvalidSignatureException") => {
            "check this machine's clock and its credentials".into()
        }
        (_, "ExpiredToken" | "ExpiredTokenException" | "UnrecognizedClientException" | "InvalidClientTokenId") => {
            "check the credentials: the instance's profile, or the environment".into()
        }
        (RemoteErrorKind::Denied, _) => format!("allow {call} in the policy of the instance's role"),
        (RemoteErrorKind::Throttled, _) => {
            "it is tried again more slowly; ask AWS for a higher rate if this stays".into()
        }
        (RemoteErrorKind::Quota, _) => "ask for a higher quota in Service Quotas, or free some of it".into(),
        (RemoteErrorKind::Unavailable, _) => "it is tried again".into(),
        (RemoteErrorKind::Absent | RemoteErrorKind::Permanent, _) => {
            "check the configuration against what the service says".into()
        }
    }
}

/// A service's text on one line and of bounded length, so that it can't forge a log line or fill a disk.
fn readable(text: &str) -> String {
    text.chars().take(MAX_MESSAGE).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn credentials_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a CredentialsError> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| error.downcast_ref())
}

fn classify_credentials(error: &CredentialsError) -> (RemoteErrorKind, &'static str) {
    match error {
        CredentialsError::CredentialsNotLoaded(_) => (RemoteErrorKind::Denied, "there are no credentials"),
        CredentialsError::InvalidConfiguration(_) => {
            (RemoteErrorKind::Denied, "the credentials' configuration is wrong")
        }
        CredentialsError::ProviderTimedOut(_) => (RemoteErrorKind::Unavailable, "the credentials did not come in time"),
        _ => (RemoteErrorKind::Unavailable, "the credentials could not be fetched"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, code: &str, message: &str) -> RemoteError {
        super::answered("acm-pca:IssueCertificate", Some(status), Some(code), Some(message), Some("req-1"))
    }

    #[test]
    fn a_quota_is_not_throttling() {
        assert_eq!(answered(400, "LimitExceededException", "").kind, RemoteErrorKind::Quota);
        assert_eq!(answered(400, "ThrottlingException", "").kind, RemoteErrorKind::Throttled);
        assert_eq!(answered(503, "RequestLimitExceeded", "").kind, RemoteErrorKind::Throttled);
        assert_eq!(answered(429, "", "").kind, RemoteErrorKind::Throttled);
    }

    #[test]
    fn a_refusal_is_sorted_by_its_code_then_by_its_status() {
        assert_eq!(answered(400, "AccessDeniedException", "").kind, RemoteErrorKind::Denied);
        assert_eq!(answered(403, "SomethingNew", "").kind, RemoteErrorKind::Denied);
        assert_eq!(answered(500, "InternalFailure", "").kind, RemoteErrorKind::Unavailable);
        assert_eq!(answered(502, "", "").kind, RemoteErrorKind::Unavailable);
        assert_eq!(answered(404, "", "").kind, RemoteErrorKind::Unavailable);
        assert_eq!(answered(400, "ResourceNotFoundException", "").kind, RemoteErrorKind::Permanent);
    }

    #[test]
    fn an_error_names_call_code_message_request_and_remedy() {
        let text = answered(400, "AccessDeniedException", "User: x is not authorized").to_string();
        assert_eq!(
            text,
            "acm-pca:IssueCertificate: AccessDeniedException (User: x is not authorized), request req-1; \
             allow acm-pca:IssueCertificate in the policy of the instance's role"
        );
    }

    #[test]
    fn a_services_words_stay_on_one_line_and_bounded() {
        let failure = answered(400, "X", &format!("a\nb\u{1b}[31m{}", "c".repeat(5000)));
        assert!(!failure.reason.contains(['\n', '\u{1b}']));
        assert!(failure.reason.len() < 1200);
    }
}
