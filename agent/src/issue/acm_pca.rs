//! AWS Private CA.
//!
//! IssueCertificate returns before the certificate exists. GetCertificate answers `RequestInProgressException` until
//! the certificate exists (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html>). A
//! certificate whose ARN is lost was paid for and can't be found again. So the caller journals what [`AcmPca::request`]
//! returns before it collects.

mod refusal;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_config::{Region, SdkConfig};
use aws_sdk_acmpca::Client;
use aws_sdk_acmpca::primitives::Blob;
use aws_sdk_acmpca::types::{
    CertificateAuthority, CertificateAuthorityUsageMode, SigningAlgorithm, Validity, ValidityPeriodType,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use time::OffsetDateTime;
use tokio::sync::OnceCell;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
};
use x509_parser::x509::SubjectPublicKeyInfo;

pub(crate) use self::refusal::INVALID_STATE;
use self::refusal::{ACTIVE, Keys, NODE, SERVICE, of_status, sorted, status_in};
use super::{CertificateHandle, Described, IssueRequest, IssuedChain, Issuer};
use crate::aws::calls::{IN_PROGRESS, counted};
use crate::aws::{nonsense, refused};
use crate::config::CaArn;
use crate::error::{RemoteError, RemoteErrorKind};
use crate::x509::chain::Chain;
use crate::x509::der;

const ISSUE: &str = "acm-pca:IssueCertificate";
const COLLECT: &str = "acm-pca:GetCertificate";
const CA_CERTIFICATE: &str = "acm-pca:GetCertificateAuthorityCertificate";
const DESCRIBE: &str = "acm-pca:DescribeCertificateAuthority";

/// The longest validity that a CA in short-lived certificate mode issues
/// (<https://docs.aws.amazon.com/privateca/latest/userguide/short-lived-certificates.html>).
pub(crate) const SHORT_LIVED_LIMIT: Duration = Duration::from_secs(7 * DAY);

const DAY: u64 = 24 * 3600;

/// The longest certificate, in bytes of PEM: the limit of ImportCertificateAuthorityCertificate.
const MAX_CERTIFICATE_BYTES: usize = 32_768;
/// The longest chain of CA certificates, in bytes of PEM.
const MAX_CHAIN_BYTES: usize = 1024 * 1024;

/// A private CA of AWS.
pub struct AcmPca {
    client: Client,
    ca_arn: CaArn,
    template_arn: String,
    keys: Keys,
    usage_mode: OnceCell<UsageMode>,
    /// What was last read of the CA's certificate.
    certificate: Mutex<Option<CaCertificate>>,
}

/// What the agent uses of the CA's certificate.
#[derive(Clone, Debug)]
struct CaCertificate {
    /// A signature algorithm for the CA's key. The key of a CA never changes.
    signing_algorithm: String,
    /// NotAfter. A new certificate for the CA has a later end.
    ends: OffsetDateTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UsageMode {
    ShortLived,
    /// The mode is general-purpose, or unknown because the role may not ask. In that case IssueCertificate itself
    /// refuses a validity that is too long.
    NoLimitKnown,
}

impl AcmPca {
    /// The CA is called in its own Region. The template defaults to `EndEntityCertificate/V1`: both extended key
    /// usages, and the names of the CSR
    /// (<https://docs.aws.amazon.com/privateca/latest/userguide/template-definitions.html>).
    #[must_use]
    pub fn new(aws: &SdkConfig, ca_arn: CaArn, template_arn: Option<String>) -> Self {
        let region = Region::new(ca_arn.region().to_owned());
        let config = aws_sdk_acmpca::config::Builder::from(aws).region(region).build();
        let template_arn = template_arn.unwrap_or_else(|| default_template(ca_arn.partition()));
        Self {
            client: Client::from_conf(config),
            ca_arn,
            template_arn,
            keys: NODE,
            usage_mode: OnceCell::new(),
            certificate: Mutex::default(),
        }
    }

    /// The same CA for a service: errors name the keys of client.toml in the place of the keys of agent.toml.
    #[must_use]
    pub(crate) fn for_a_service(self) -> Self {
        Self { keys: SERVICE, ..self }
    }

    /// Refuses a validity that a short-lived CA would refuse, before the request. A validity up to [`SHORT_LIVED_LIMIT`]
    /// fits every CA and needs no call.
    async fn check_validity(&self, validity: Duration) -> Result<(), RemoteError> {
        if validity > SHORT_LIVED_LIMIT
            && *self.usage_mode.get_or_try_init(|| self.ask_usage_mode()).await? == UsageMode::ShortLived
        {
            let reason = format!(
                "the CA is in short-lived certificate mode, which allows 7 days at most, and {} is {}",
                self.keys.validity(),
                humantime::format_duration(validity)
            );
            let remedy = "write validity = \"7d\" or less, or name a general-purpose CA";
            return Err(RemoteError::new(RemoteErrorKind::Permanent, self.attempt(ISSUE), reason, remedy));
        }
        Ok(())
    }

    async fn ask_usage_mode(&self) -> Result<UsageMode, RemoteError> {
        match self.ask_description().await {
            Ok(described) => {
                let mode = described.and_then(|described| described.usage_mode);
                let short = mode == Some(CertificateAuthorityUsageMode::ShortLivedCertificate);
                Ok(if short { UsageMode::ShortLived } else { UsageMode::NoLimitKnown })
            }
            Err(error) if error.kind == RemoteErrorKind::Denied && error.code.is_some() => {
                tracing::debug!(
                    "the CA's usage mode stays unknown; IssueCertificate refuses what is too long: {error}"
                );
                Ok(UsageMode::NoLimitKnown)
            }
            Err(error) => Err(error),
        }
    }

    async fn ask_description(&self) -> Result<Option<CertificateAuthority>, RemoteError> {
        let request = self.client.describe_certificate_authority().certificate_authority_arn(self.ca_arn.as_str());
        let answer = counted(DESCRIBE, request.send().await).map_err(|error| self.refused(DESCRIBE, error))?;
        Ok(answer.certificate_authority)
    }

    /// The error of a call. Where the CA's status doesn't allow the call, the CA is asked for its status: the answer may not
    /// name it. Without the permission to ask, the error has the answer's own words.
    async fn failed<E>(&self, call: &str, error: SdkError<E, HttpResponse>) -> RemoteError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let error = self.refused(call, error);
        if error.code.as_deref() != Some(INVALID_STATE) || status_in(&error.reason).is_some() {
            return error;
        }
        let described = self.ask_description().await.ok().flatten();
        match described.as_ref().and_then(|described| described.status()) {
            Some(status) => RemoteError {
                reason: format!("{}; the CA's status is {status}", error.reason),
                remedy: of_status(status.as_str(), self.keys),
                ..error
            },
            None => error,
        }
    }

    fn known_certificate(&self) -> Option<CaCertificate> {
        self.certificate.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn read_certificate(&self) -> Result<CaCertificate, RemoteError> {
        let (certificate, _) = self.ca_certificate().await?;
        let read = CaCertificate::read(&certificate).map_err(|reason| {
            let remedy = "use a CA whose key is RSA or ECDSA on P-256, P-384 or P-521";
            RemoteError::new(RemoteErrorKind::Permanent, self.attempt(CA_CERTIFICATE), reason, remedy)
        })?;
        *self.certificate.lock().unwrap_or_else(PoisonError::into_inner) = Some(read.clone());
        Ok(read)
    }

    /// The CA's certificate, and the chain above it. A root CA has no chain.
    async fn ca_certificate(&self) -> Result<(String, Option<String>), RemoteError> {
        let request =
            self.client.get_certificate_authority_certificate().certificate_authority_arn(self.ca_arn.as_str());
        let answer = match counted(CA_CERTIFICATE, request.send().await) {
            Ok(answer) => answer,
            Err(error) => return Err(self.failed(CA_CERTIFICATE, error).await),
        };
        let certificate = self.pem(CA_CERTIFICATE, answer.certificate, MAX_CERTIFICATE_BYTES)?;
        let chain = answer.certificate_chain.filter(|chain| !chain.trim().is_empty());
        let chain = chain.map(|chain| self.pem(CA_CERTIFICATE, Some(chain), MAX_CHAIN_BYTES)).transpose()?;
        Ok((certificate, chain))
    }

    /// The PEM of an answer. A truncated answer can look like success, so the text must hold a complete certificate.
    fn pem(&self, call: &'static str, text: Option<String>, limit: usize) -> Result<String, RemoteError> {
        let text = text.unwrap_or_default();
        let nonsense = |what: String| nonsense(&self.attempt(call), what);
        if text.len() > limit {
            return Err(nonsense(format!("the answer's certificate has {} bytes, more than {limit}", text.len())));
        }
        if !text.contains("-----BEGIN CERTIFICATE-----") || !text.contains("-----END CERTIFICATE-----") {
            return Err(nonsense("the answer holds no certificate".into()));
        }
        Ok(text)
    }

    fn attempt(&self, call: &str) -> String {
        format!("{call} on {}", self.ca_arn.as_str())
    }

    fn refused<E>(&self, call: &str, error: SdkError<E, HttpResponse>) -> RemoteError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        sorted(call, &self.ca_arn, self.keys, RemoteError { attempt: self.attempt(call), ..refused(call, error) })
    }
}

#[async_trait]
impl Issuer for AcmPca {
    fn name(&self) -> String {
        self.ca_arn.as_str().into()
    }

    async fn prepare(&self, validity: Duration) -> Result<String, RemoteError> {
        self.check_validity(validity).await?;
        match self.known_certificate() {
            Some(known) => Ok(known.signing_algorithm),
            None => Ok(self.read_certificate().await?.signing_algorithm),
        }
    }

    /// Asks for the CA's certificate again where the certificate that is known ends soon: a new one may be installed.
    async fn issues_until(
        &self,
        validity: Duration,
        now: OffsetDateTime,
    ) -> Result<Option<OffsetDateTime>, RemoteError> {
        let known = self.known_certificate().filter(|known| known.ends - now > validity.saturating_mul(2));
        match known {
            Some(known) => Ok(Some(known.ends)),
            None => Ok(Some(self.read_certificate().await?.ends)),
        }
    }

    async fn describe(&self) -> Result<Option<Described>, RemoteError> {
        let described = self.ask_description().await?;
        let described = described.ok_or_else(|| nonsense(&self.attempt(DESCRIBE), "the answer describes no CA"))?;
        let status = described.status().filter(|status| status.as_str() != ACTIVE);
        let failure = described.failure_reason().map(|reason| format!(" ({reason})")).unwrap_or_default();
        let obstacle =
            status.map(|status| format!("the CA is {status}{failure}; {}", of_status(status.as_str(), self.keys)));
        let is_short = described.usage_mode == Some(CertificateAuthorityUsageMode::ShortLivedCertificate);
        Ok(Some(Described { obstacle, longest: is_short.then_some(SHORT_LIVED_LIMIT) }))
    }

    async fn request(&self, request: &IssueRequest<'_>) -> Result<CertificateHandle, RemoteError> {
        let call = self
            .client
            .issue_certificate()
            .certificate_authority_arn(self.ca_arn.as_str())
            .template_arn(&self.template_arn)
            .csr(Blob::new(request.csr_pem))
            .signing_algorithm(SigningAlgorithm::from(request.signing_algorithm))
            .validity(validity(request.validity, request.now))
            // The SDK adds no token of its own.
            .idempotency_token(request.idempotency_token);
        let answer = match counted(ISSUE, call.send().await) {
            Ok(answer) => answer,
            Err(error) => return Err(self.failed(ISSUE, error).await),
        };
        answer
            .certificate_arn
            .filter(|arn| arn.starts_with("arn:") && arn.len() <= 2048)
            .map(CertificateHandle)
            .ok_or_else(|| nonsense(&self.attempt(ISSUE), "the answer holds no certificate ARN"))
    }

    async fn collect(&self, handle: &CertificateHandle) -> Result<Option<IssuedChain>, RemoteError> {
        let call =
            self.client.get_certificate().certificate_authority_arn(self.ca_arn.as_str()).certificate_arn(&handle.0);
        let answer = match counted(COLLECT, call.send().await) {
            Ok(answer) => answer,
            Err(error) if error.code() == Some(IN_PROGRESS) => return Ok(None),
            Err(error) => return Err(self.failed(COLLECT, error).await),
        };
        Ok(Some(IssuedChain {
            leaf_pem: self.pem(COLLECT, answer.certificate, MAX_CERTIFICATE_BYTES)?,
            chain_pem: self.pem(COLLECT, answer.certificate_chain, MAX_CHAIN_BYTES)?,
        }))
    }

    async fn ca_pem(&self) -> Result<String, RemoteError> {
        let (certificate, chain) = self.ca_certificate().await?;
        let chain = chain.map(|chain| format!("{}\n", chain.trim_end())).unwrap_or_default();
        Ok(format!("{}\n{chain}", certificate.trim_end()))
    }

    fn spare_issuances_a_day(&self) -> u32 {
        12
    }
}

fn default_template(partition: &str) -> String {
    format!("arn:{partition}:acm-pca:::template/EndEntityCertificate/V1")
}

/// A length of whole days becomes `DAYS`, so that PCA counts from its own clock. Any other length becomes the end in
/// Unix seconds, because a relative validity is a day at least
/// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_Validity.html>).
fn validity(length: Duration, now: OffsetDateTime) -> Validity {
    let seconds = i64::try_from(length.as_secs()).unwrap_or(i64::MAX);
    let day = DAY.cast_signed();
    let whole_days = seconds >= day && seconds % day == 0 && length.subsec_nanos() == 0;
    let (kind, value) = if whole_days {
        (ValidityPeriodType::Days, seconds / day)
    } else {
        (ValidityPeriodType::Absolute, now.unix_timestamp().saturating_add(seconds))
    };
    #[expect(clippy::unwrap_used, reason = "both required fields are set")]
    Validity::builder().r#type(kind).value(value).build().unwrap()
}

impl CaCertificate {
    fn read(pem: &str) -> Result<Self, String> {
        let ca =
            Chain::from_pem(pem.as_bytes()).map_err(|error| format!("the CA's certificate is not PEM: {error}"))?;
        let ca = der::read(ca.leaf()).map_err(|_| "the CA's certificate can't be read: it is not X.509 in DER")?;
        let signing_algorithm = for_key(ca.public_key())?.as_str().to_owned();
        Ok(Self { signing_algorithm, ends: ca.validity().not_after.to_datetime() })
    }
}

/// The signature algorithm for the CA's key: of the key's family, with a hash of the curve's strength.
fn for_key(key: &SubjectPublicKeyInfo<'_>) -> Result<SigningAlgorithm, String> {
    let algorithm = &key.algorithm.algorithm;
    if *algorithm == OID_PKCS1_RSAENCRYPTION {
        return Ok(SigningAlgorithm::Sha256Withrsa);
    }
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    match curve {
        Some(curve) if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == OID_EC_P256 => {
            Ok(SigningAlgorithm::Sha256Withecdsa)
        }
        Some(curve) if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == OID_NIST_EC_P384 => {
            Ok(SigningAlgorithm::Sha384Withecdsa)
        }
        Some(curve) if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == OID_NIST_EC_P521 => {
            Ok(SigningAlgorithm::Sha512Withecdsa)
        }
        _ => Err(format!("the CA's key is of a kind that TLS can't use here ({algorithm})")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(timestamp: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(timestamp).unwrap()
    }

    #[test]
    fn whole_days_are_asked_as_days_and_the_rest_as_an_end() {
        let week = validity(Duration::from_secs(7 * DAY), at(1_800_000_000));
        assert_eq!((week.r#type, week.value), (ValidityPeriodType::Days, 7));
        let minute = validity(Duration::from_mins(1), at(1_800_000_000));
        assert_eq!((minute.r#type, minute.value), (ValidityPeriodType::Absolute, 1_800_000_060));
        let day_and_hour = validity(Duration::from_secs(DAY + 3600), at(0));
        assert_eq!((day_and_hour.r#type, day_and_hour.value), (ValidityPeriodType::Absolute, 90_000));
    }

    proptest! {
        #[test]
        fn validity_means_the_length_asked_for(seconds in 30_u64..400_000_000, now in 0_i64..4_000_000_000) {
            let asked = validity(Duration::from_secs(seconds), at(now));
            let length = match asked.r#type {
                ValidityPeriodType::Days => asked.value * 86_400,
                _ => asked.value - now,
            };
            prop_assert_eq!(length, i64::try_from(seconds).unwrap());
        }
    }

    #[test]
    fn the_signing_algorithm_fits_the_cas_key() {
        for (algorithm, expected) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, SigningAlgorithm::Sha256Withecdsa),
            (&rcgen::PKCS_ECDSA_P384_SHA384, SigningAlgorithm::Sha384Withecdsa),
            (&rcgen::PKCS_ECDSA_P521_SHA512, SigningAlgorithm::Sha512Withecdsa),
            (&rcgen::PKCS_RSA_SHA256, SigningAlgorithm::Sha256Withrsa),
        ] {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let ca = rcgen::CertificateParams::default().self_signed(&key).unwrap();
            assert_eq!(CaCertificate::read(&ca.pem()).unwrap().signing_algorithm, expected.as_str());
        }
    }

    #[test]
    fn a_ca_with_another_key_is_refused_by_name() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let ca = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        assert!(CaCertificate::read(&ca.pem()).unwrap_err().contains("1.3.101.112"));
        assert!(CaCertificate::read("nothing").is_err());
    }

    #[test]
    fn the_template_is_of_the_cas_partition() {
        assert_eq!(default_template("aws-cn"), "arn:aws-cn:acm-pca:::template/EndEntityCertificate/V1");
    }
}
