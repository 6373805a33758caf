//! AWS Private CA, as its documentation describes it.

mod sign;
mod validity;

use std::collections::{BTreeMap, HashMap};

use rcgen::{CertificateSigningRequestParams, Issuer, KeyPair};
use time::{Duration, OffsetDateTime};

pub use self::sign::Defect;
pub use self::validity::Validity;
use crate::quota::TokenBucket;
use crate::{ACCOUNT_ID, ServiceError};

/// "Idempotency tokens for IssueCertificate time out after five minutes"
/// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html>).
pub const TOKEN_LIFETIME: Duration = Duration::minutes(5);
/// A CA in short-lived certificate mode issues for seven days at most
/// (<https://docs.aws.amazon.com/privateca/latest/userguide/short-lived-certificates.html>).
pub const SHORT_LIVED_LIMIT: Duration = Duration::days(7);
/// "By default, when issuing a certificate, AWS Private CA sets the "Not Before" date to the issuance time minus 60
/// minutes"
/// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html>).
pub const BACKDATED: Duration = Duration::hours(1);
/// "Number of private certificates per private CA (lifetime)": 1,000,000
/// (<https://docs.aws.amazon.com/general/latest/gr/pca.html>).
pub const CERTIFICATES_PER_CA: usize = 1_000_000;
/// The longest CSR in bytes
/// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html>).
pub const MAX_CSR: usize = 32_768;

/// The number of calls a second that an account may make (<https://docs.aws.amazon.com/general/latest/gr/pca.html>).
/// Further calls get `ThrottlingException` (<https://docs.aws.amazon.com/privateca/latest/userguide/PcaLimits.html>).
#[derive(Clone, Debug)]
pub struct Quotas {
    /// IssueCertificate: 25.
    pub issue_certificate: TokenBucket,
    /// GetCertificate: 75.
    pub get_certificate: TokenBucket,
    /// GetCertificateAuthorityCertificate: 20.
    pub get_certificate_authority_certificate: TokenBucket,
    /// DescribeCertificateAuthority: 20.
    pub describe_certificate_authority: TokenBucket,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            issue_certificate: TokenBucket::per_second(25),
            get_certificate: TokenBucket::per_second(75),
            get_certificate_authority_certificate: TokenBucket::per_second(20),
            describe_certificate_authority: TokenBucket::per_second(20),
        }
    }
}

/// The certificates that a CA may issue
/// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_CertificateAuthority.html>).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UsageMode {
    /// Certificates of any validity.
    #[default]
    GeneralPurpose,
    /// Certificates of seven days at most.
    ShortLivedCertificate,
}

impl UsageMode {
    /// The API's spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GeneralPurpose => "GENERAL_PURPOSE",
            Self::ShortLivedCertificate => "SHORT_LIVED_CERTIFICATE",
        }
    }
}

/// The status of a CA, which decides what the CA can do
/// (<https://docs.aws.amazon.com/privateca/latest/userguide/PcaUpdateStatus.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The CA has no certificate yet.
    PendingCertificate,
    /// The CA issues certificates.
    Active,
    /// An administrator has disabled the CA.
    Disabled,
    /// The CA's certificate has expired.
    Expired,
    /// The CA is deleted, and can be restored for some time.
    Deleted,
}

impl Status {
    /// The API's spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PendingCertificate => "PENDING_CERTIFICATE",
            Self::Active => "ACTIVE",
            Self::Disabled => "DISABLED",
            Self::Expired => "EXPIRED",
            Self::Deleted => "DELETED",
        }
    }
}

/// The algorithm of the CA's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CaKey {
    /// `RSA_2048`.
    Rsa2048,
    /// `EC_prime256v1`, with the cheapest signatures.
    #[default]
    EcPrime256v1,
    /// `EC_secp384r1`.
    EcSecp384r1,
}

impl CaKey {
    /// The API's spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rsa2048 => "RSA_2048",
            Self::EcPrime256v1 => "EC_prime256v1",
            Self::EcSecp384r1 => "EC_secp384r1",
        }
    }

    /// A signing algorithm for this key, in the API's spelling.
    #[must_use]
    pub fn signing_algorithm(self) -> &'static str {
        match self {
            Self::Rsa2048 => "SHA256WITHRSA",
            Self::EcPrime256v1 => "SHA256WITHECDSA",
            Self::EcSecp384r1 => "SHA384WITHECDSA",
        }
    }

    /// The suffix of every signing algorithm for this key.
    fn family(self) -> &'static str {
        match self {
            Self::Rsa2048 => "RSA",
            Self::EcPrime256v1 | Self::EcSecp384r1 => "ECDSA",
        }
    }
}

/// The properties of a new CA.
#[derive(Clone, Debug)]
pub struct CaSettings {
    /// The common name of the CA's subject.
    pub common_name: String,
    /// The certificates that the CA may issue.
    pub usage_mode: UsageMode,
    /// The algorithm of the CA's key.
    pub key: CaKey,
    /// The lifetime of the CA's certificate.
    pub lifetime: Duration,
    /// The ARN of the parent CA. `None`: the CA is a root.
    pub parent: Option<String>,
}

impl CaSettings {
    /// A general-purpose root with a lifetime of ten years.
    #[must_use]
    pub fn root(common_name: &str) -> Self {
        Self {
            common_name: common_name.into(),
            usage_mode: UsageMode::default(),
            key: CaKey::default(),
            lifetime: Duration::days(3650),
            parent: None,
        }
    }
}

/// A CA with its certificate and everything it has issued.
#[derive(Debug)]
pub struct Authority {
    arn: String,
    settings: CaSettings,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    /// The CAs above this CA in PEM, up to the root. A root has none.
    above: String,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    status: Status,
    tokens: HashMap<String, (OffsetDateTime, String)>,
    issued: usize,
}

impl Authority {
    /// The status at `now`. It is EXPIRED once the CA's certificate has expired.
    #[must_use]
    pub fn status(&self, now: OffsetDateTime) -> Status {
        if self.not_after <= now && matches!(self.status, Status::Active | Status::Disabled) {
            Status::Expired
        } else {
            self.status
        }
    }

    /// The CA's certificate in PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The settings that the CA was created with.
    #[must_use]
    pub fn settings(&self) -> &CaSettings {
        &self.settings
    }

    /// NotAfter of the CA's certificate.
    #[must_use]
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// NotBefore of the CA's certificate.
    #[must_use]
    pub fn not_before(&self) -> OffsetDateTime {
        self.not_before
    }

    /// The CA's certificate and the certificates above it, in GetCertificate's order.
    fn chain(&self) -> String {
        format!("{}{}", self.pem, self.above)
    }
}

/// IssueCertificate's request
/// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html>).
#[derive(Clone, Copy, Debug)]
pub struct IssueCertificate<'a> {
    /// `CertificateAuthorityArn`.
    pub authority: &'a str,
    /// `Csr`: PKCS#10 in PEM.
    pub csr: &'a str,
    /// `SigningAlgorithm`.
    pub signing_algorithm: &'a str,
    /// `TemplateArn`. The default is EndEntityCertificate/V1. This model also knows EndEntityClientAuthCertificate/V1.
    pub template: Option<&'a str>,
    /// `Validity`: the end of the certificate.
    pub validity: Validity,
    /// `ValidityNotBefore`: the beginning of the certificate in Unix seconds. The API accepts only ABSOLUTE here.
    pub not_before: Option<i64>,
    /// `IdempotencyToken`.
    pub token: Option<&'a str>,
}

/// A certificate that an account has paid for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paid {
    /// The certificate's ARN.
    pub arn: String,
    /// The CA's ARN.
    pub authority: String,
    /// The time of the request.
    pub at: OffsetDateTime,
    /// SHA-256 of the public key in the CSR.
    pub key: [u8; 32],
    /// The idempotency token of the request.
    pub token: Option<String>,
}

/// GetCertificate's answer: the leaf, and the chain from its issuer to the root, in PEM
/// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_GetCertificate.html>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collected {
    /// `Certificate`.
    pub certificate: String,
    /// `CertificateChain`.
    pub chain: String,
}

#[derive(Debug)]
struct Certificate {
    authority: String,
    csr: Vec<u8>,
    pem: String,
    ready: OffsetDateTime,
}

/// Private CA in one account and Region.
#[derive(Debug)]
pub struct Pca {
    /// The time from a request to its certificate. Until then GetCertificate answers `RequestInProgressException`.
    pub issuance_takes: Duration,
    /// The request quotas.
    pub quotas: Quotas,
    /// The largest number of certificates that one CA issues.
    pub certificates_per_ca: usize,
    region: String,
    authorities: BTreeMap<String, Authority>,
    certificates: HashMap<String, Certificate>,
    paid: Vec<Paid>,
}

impl Pca {
    /// Private CA without CAs. Certificates exist at once unless [`Pca::issuance_takes`] is set.
    #[must_use]
    pub fn new(region: &str) -> Self {
        Self {
            issuance_takes: Duration::ZERO,
            quotas: Quotas::default(),
            certificates_per_ca: CERTIFICATES_PER_CA,
            region: region.into(),
            authorities: BTreeMap::new(),
            certificates: HashMap::new(),
            paid: Vec::new(),
        }
    }

    /// Makes an ACTIVE CA and returns its ARN. The CA's certificate is backdated like every certificate.
    ///
    /// # Errors
    /// The parent doesn't exist, or the crypto library fails.
    pub fn create_authority(&mut self, settings: CaSettings, now: OffsetDateTime) -> Result<String, ServiceError> {
        let number = self.authorities.len() + 1;
        let arn = format!(
            "arn:aws:acm-pca:{}:{ACCOUNT_ID}:certificate-authority/00000000-0000-4000-8000-{number:012x}",
            self.region
        );
        let parent = settings.parent.as_deref().map(|parent| self.authority(parent)).transpose()?;
        let (not_before, not_after) = (now - BACKDATED, now + settings.lifetime);
        let (issuer, pem) = sign::authority(&settings, parent, not_before, not_after)
            .map_err(|error| ServiceError::new("InternalFailure", error.to_string()))?;
        let authority = Authority {
            arn: arn.clone(),
            issuer,
            pem,
            above: parent.map(Authority::chain).unwrap_or_default(),
            not_before,
            not_after,
            status: Status::Active,
            tokens: HashMap::new(),
            issued: 0,
            settings,
        };
        self.authorities.insert(arn.clone(), authority);
        Ok(arn)
    }

    /// Changes a CA's status, as UpdateCertificateAuthority and DeleteCertificateAuthority do.
    ///
    /// # Errors
    /// The CA doesn't exist.
    pub fn set_status(&mut self, authority: &str, status: Status) -> Result<(), ServiceError> {
        self.authority_mut(authority)?.status = status;
        Ok(())
    }

    /// The CA with this ARN.
    ///
    /// # Errors
    /// The CA doesn't exist.
    pub fn authority(&self, arn: &str) -> Result<&Authority, ServiceError> {
        self.authorities.get(arn).ok_or_else(|| no_authority(arn))
    }

    fn authority_mut(&mut self, arn: &str) -> Result<&mut Authority, ServiceError> {
        self.authorities.get_mut(arn).ok_or_else(|| no_authority(arn))
    }

    /// Every paid certificate, in the order of payment. A repeated request within the token's lifetime adds no payment.
    #[must_use]
    pub fn paid(&self) -> &[Paid] {
        &self.paid
    }

    /// IssueCertificate. Returns the certificate's ARN.
    ///
    /// Only an ACTIVE CA issues (<https://docs.aws.amazon.com/privateca/latest/userguide/PcaUpdateStatus.html>).
    ///
    /// The same token within five minutes gives the same certificate. The documentation is silent about the same token
    /// with another CSR. This model returns the same certificate in that case too, because that reading is the harmful
    /// one.
    ///
    /// # Errors
    /// The errors on the operation's page, and `ThrottlingException`.
    pub fn issue_certificate(
        &mut self,
        request: &IssueCertificate<'_>,
        now: OffsetDateTime,
    ) -> Result<String, ServiceError> {
        throttle(&mut self.quotas.issue_certificate, now)?;
        let (limit, serial) = (self.certificates_per_ca, self.paid.len() as u64 + 1);
        let ready = now + self.issuance_takes;
        let authority = self.authority_mut(request.authority)?;
        check_token(request.token)?;
        let status = authority.status(now);
        if status != Status::Active {
            return Err(invalid_state(&authority.arn, status));
        }
        authority.tokens.retain(|_, (at, _)| now - *at < TOKEN_LIFETIME);
        if let Some((_, known)) = request.token.and_then(|token| authority.tokens.get(token)) {
            return Ok(known.clone());
        }
        if authority.issued >= limit {
            return Err(ServiceError::new("LimitExceededException", format!("the CA has issued {limit} certificates")));
        }
        let csr = check_request(request, authority)?;
        let not_after = validity::end(request.validity, now)?;
        check_end(authority, now, not_after)?;
        let begin = |seconds| validity::end(Validity::Absolute(seconds), OffsetDateTime::UNIX_EPOCH);
        let not_before = request.not_before.map_or(Ok(now - BACKDATED), begin)?;
        if not_before >= not_after {
            return Err(validation("the certificate would begin after its end"));
        }
        let pem = sign::leaf(authority, &csr, serial, (not_before, not_after), request.template, None)
            .map_err(|error| ServiceError::new("InternalFailure", error.to_string()))?;
        let arn = format!("{}/certificate/{serial:032x}", authority.arn);
        authority.issued += 1;
        if let Some(token) = request.token {
            authority.tokens.insert(token.to_owned(), (now, arn.clone()));
        }
        let paid = Paid {
            arn: arn.clone(),
            authority: authority.arn.clone(),
            at: now,
            key: sign::key_digest(&csr),
            token: request.token.map(ToOwned::to_owned),
        };
        self.paid.push(paid);
        let csr = request.csr.as_bytes().to_vec();
        self.certificates.insert(arn.clone(), Certificate { authority: request.authority.into(), csr, pem, ready });
        Ok(arn)
    }

    /// GetCertificate. The error is `RequestInProgressException` until the certificate exists
    /// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_GetCertificate.html>).
    ///
    /// An issued certificate can be fetched while the CA is DISABLED or EXPIRED. The table of
    /// <https://docs.aws.amazon.com/privateca/latest/userguide/PcaUpdateStatus.html> only excludes issuing.
    ///
    /// # Errors
    /// The errors on the operation's page, and `ThrottlingException`.
    pub fn get_certificate(
        &mut self,
        authority: &str,
        certificate: &str,
        now: OffsetDateTime,
    ) -> Result<Collected, ServiceError> {
        throttle(&mut self.quotas.get_certificate, now)?;
        let authority = self.authority(authority)?;
        if let status @ (Status::PendingCertificate | Status::Deleted) = authority.status(now) {
            return Err(invalid_state(&authority.arn, status));
        }
        let found = self.certificate(&authority.arn, certificate)?;
        if now < found.ready {
            return Err(ServiceError::new(
                "RequestInProgressException",
                format!("The request to issue certificate {certificate} is still in progress"),
            ));
        }
        Ok(Collected { certificate: found.pem.clone(), chain: authority.chain() })
    }

    /// Signs another certificate for the CSR of an issued certificate, with `defect`.
    ///
    /// # Errors
    /// The certificate doesn't exist, or the crypto library fails.
    pub fn defective(&self, certificate: &str, defect: Defect, now: OffsetDateTime) -> Result<String, ServiceError> {
        let found = self.certificates.get(certificate).ok_or_else(|| no_certificate(certificate))?;
        let authority = self.authority(&found.authority)?;
        let text = String::from_utf8_lossy(&found.csr);
        let csr = sign::parse(&text).map_err(|error| ServiceError::new("MalformedCSRException", error.to_string()))?;
        let span = (now - BACKDATED, now + Duration::days(1));
        sign::leaf(authority, &csr, u64::MAX, span, None, Some(defect))
            .map_err(|error| ServiceError::new("InternalFailure", error.to_string()))
    }

    /// GetCertificateAuthorityCertificate. Returns the CA's certificate and the chain above it. That chain "does not
    /// include your private CA certificate. If this is a root CA, the value will be null"
    /// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_GetCertificateAuthorityCertificate.html>).
    ///
    /// # Errors
    /// The errors on the operation's page, and `ThrottlingException`.
    pub fn get_certificate_authority_certificate(
        &mut self,
        authority: &str,
        now: OffsetDateTime,
    ) -> Result<(String, Option<String>), ServiceError> {
        throttle(&mut self.quotas.get_certificate_authority_certificate, now)?;
        let authority = self.authority(authority)?;
        if let status @ (Status::PendingCertificate | Status::Deleted) = authority.status(now) {
            return Err(invalid_state(&authority.arn, status));
        }
        Ok((authority.pem.clone(), Some(authority.above.clone()).filter(|above| !above.is_empty())))
    }

    /// DescribeCertificateAuthority
    /// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_DescribeCertificateAuthority.html>).
    ///
    /// # Errors
    /// `ResourceNotFoundException`, `ThrottlingException`.
    pub fn describe_certificate_authority(
        &mut self,
        authority: &str,
        now: OffsetDateTime,
    ) -> Result<&Authority, ServiceError> {
        throttle(&mut self.quotas.describe_certificate_authority, now)?;
        self.authority(authority)
    }

    fn certificate(&self, authority: &str, certificate: &str) -> Result<&Certificate, ServiceError> {
        let found = self.certificates.get(certificate).filter(|found| found.authority == authority);
        found.ok_or_else(|| no_certificate(certificate))
    }
}

fn throttle(quota: &mut TokenBucket, now: OffsetDateTime) -> Result<(), ServiceError> {
    if quota.take(now) { Ok(()) } else { Err(ServiceError::new("ThrottlingException", "Rate exceeded")) }
}

fn no_authority(arn: &str) -> ServiceError {
    ServiceError::new("ResourceNotFoundException", format!("Could not find certificate authority {arn}"))
}

fn no_certificate(arn: &str) -> ServiceError {
    ServiceError::new("ResourceNotFoundException", format!("Could not find certificate {arn}"))
}

fn invalid_state(arn: &str, status: Status) -> ServiceError {
    ServiceError::new(
        "InvalidStateException",
        format!("The certificate authority {arn} is not in the correct state: {}", status.as_str()),
    )
}

fn validation(what: &str) -> ServiceError {
    ServiceError::new("ValidationException", what)
}

/// Checks the token's length, which is 1 to 36 characters. The model accepts every character, and the API accepts only
/// `[\u0009\u000A\u000D\u0020-\u00FF]`
/// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html>).
fn check_token(token: Option<&str>) -> Result<(), ServiceError> {
    match token {
        Some(token) if token.is_empty() || token.chars().count() > 36 => {
            Err(validation("idempotencyToken must have a length between 1 and 36"))
        }
        _ => Ok(()),
    }
}

/// Checks the CSR's length and signature, the signing algorithm and the template. The CSR must have a subject or a SAN,
/// and the algorithm must fit the CA's key.
fn check_request(
    request: &IssueCertificate<'_>,
    authority: &Authority,
) -> Result<CertificateSigningRequestParams, ServiceError> {
    let malformed = |what: String| ServiceError::new("MalformedCSRException", what);
    if request.csr.len() > MAX_CSR {
        return Err(malformed(format!("the CSR is longer than {MAX_CSR} bytes")));
    }
    let csr = sign::parse(request.csr).map_err(|error| malformed(error.to_string()))?;
    if csr.params.subject_alt_names.is_empty() && csr.params.distinguished_name.iter().next().is_none() {
        return Err(malformed("the CSR has neither a subject nor a subject alternative name".into()));
    }
    let family = authority.settings.key.family();
    if request.signing_algorithm.rsplit("WITH").next() != Some(family) {
        let what = format!("{} can't be used with the CA's key, which is {family}", request.signing_algorithm);
        return Err(ServiceError::new("InvalidArgsException", what));
    }
    if let Some(template) = request.template
        && ![":acm-pca:::template/EndEntityCertificate/V1", sign::OF_CLIENTS]
            .iter()
            .any(|known| template.ends_with(known))
    {
        return Err(ServiceError::new("InvalidArnException", format!("the model doesn't know template {template}")));
    }
    Ok(csr)
}

/// "The end of the validity period configured on a certificate must not exceed the limit set on its parents in the CA
/// hierarchy" (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html>).
fn check_end(authority: &Authority, now: OffsetDateTime, not_after: OffsetDateTime) -> Result<(), ServiceError> {
    if not_after > authority.not_after {
        return Err(validation("The certificate validity specified exceeds the certificate authority validity"));
    }
    if authority.settings.usage_mode == UsageMode::ShortLivedCertificate && not_after - now > SHORT_LIVED_LIMIT {
        return Err(validation(
            "The certificate validity specified exceeds the limit of 7 days of a CA in SHORT_LIVED_CERTIFICATE mode",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
