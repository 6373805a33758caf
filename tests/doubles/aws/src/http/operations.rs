//! Translates a request's text into a call of the model, and its result into an answer's text.

use std::fmt::Write as _;
use std::net::IpAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::answer::{Answer, escaped};
use super::form::Form;
use crate::autoscaling::Member;
use crate::ec2::Described;
use crate::fault::{Fault, Operation, Protocol};
use crate::pca::{Collected, IssueCertificate, Pca, Validity};
use crate::secrets::Content;
use crate::{Account, ServiceError};

/// Performs a request.
pub(super) fn perform(
    account: &mut Account,
    operation: Operation,
    body: &str,
    fault: Option<&Fault>,
    now: OffsetDateTime,
) -> Result<Answer, ServiceError> {
    if operation.protocol() == Protocol::Json {
        let object: Value = serde_json::from_str(body)
            .map_err(|_| ServiceError::new("SerializationException", "the request is not JSON"))?;
        let request = Request(&object);
        let answer = match operation {
            Operation::IssueCertificate => issue(&mut account.pca, &request, now)?,
            Operation::GetCertificate => collect(&mut account.pca, &request, fault, now)?,
            Operation::GetCertificateAuthorityCertificate => {
                let (own, above) =
                    account.pca.get_certificate_authority_certificate(request.text("CertificateAuthorityArn")?, now)?;
                json!({"Certificate": own, "CertificateChain": above})
            }
            Operation::DescribeCertificateAuthority => describe(&mut account.pca, &request, now)?,
            Operation::PutSecretValue => put_secret(account, &request, now)?,
            _ => secret(account, &request, now)?,
        };
        return Ok(Answer::of(Protocol::Json, answer.to_string()));
    }
    let form = Form::parse(body);
    let (size, token) = (form.number("MaxRecords"), form.text("NextToken"));
    let fleet = &mut account.fleet;
    let text = match operation {
        Operation::DescribeAutoScalingInstances => {
            let ids = form.list("InstanceIds.member.");
            let (members, next) = fleet.describe_auto_scaling_instances(&ids, size, token.as_deref(), now)?;
            let members: String = members.iter().map(member).collect();
            autoscaling(operation, &format!("<AutoScalingInstances>{members}</AutoScalingInstances>"), next)
        }
        Operation::DescribeAutoScalingGroups => {
            let names = form.list("AutoScalingGroupNames.member.");
            let (groups, next) = fleet.describe_auto_scaling_groups(&names, size, token.as_deref(), now)?;
            let mut text = String::new();
            for group in groups {
                let members: String = group.instances.iter().map(member).collect();
                // Writing to a string can't fail.
                _ = write!(
                    text,
                    "<member><AutoScalingGroupName>{}</AutoScalingGroupName><MinSize>0</MinSize><MaxSize>99</MaxSize>\
                     <DesiredCapacity>{}</DesiredCapacity><DefaultCooldown>300</DefaultCooldown><AvailabilityZones/>\
                     <HealthCheckType>EC2</HealthCheckType><CreatedTime>2026-01-01T00:00:00Z</CreatedTime>\
                     <Instances>{members}</Instances></member>",
                    escaped(&group.name),
                    group.instances.len()
                );
            }
            autoscaling(operation, &format!("<AutoScalingGroups>{text}</AutoScalingGroups>"), next)
        }
        _ => {
            let filter = (1..).map_while(|n| Some((n, form.text(&format!("Filter.{n}.Name"))?)));
            let filter = filter.filter(|(_, name)| name == "instance-id").map(|(n, _)| n).next();
            let filter = filter.map(|n| form.list(&format!("Filter.{n}.Value.")));
            let ids = form.list("InstanceId.");
            let (found, next) =
                fleet.describe_instances(&ids, filter.as_deref(), form.number("MaxResults"), token.as_deref(), now)?;
            let items: String = found.iter().map(instance).collect();
            let next = next.map(|token| format!("<nextToken>{token}</nextToken>")).unwrap_or_default();
            format!(
                "<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>double</requestId>\
                 <reservationSet><item><reservationId>r-1</reservationId><instancesSet>{items}</instancesSet></item>\
                 </reservationSet>{next}</DescribeInstancesResponse>"
            )
        }
    };
    Ok(Answer::of(operation.protocol(), text))
}

/// A request in AWS JSON.
struct Request<'a>(&'a Value);

impl<'a> Request<'a> {
    fn text(&self, member: &str) -> Result<&'a str, ServiceError> {
        let missing = || ServiceError::new("ValidationException", format!("{member} must not be null"));
        self.maybe(member).ok_or_else(missing)
    }

    fn maybe(&self, member: &str) -> Option<&'a str> {
        self.0[member].as_str()
    }
}

fn issue(pca: &mut Pca, request: &Request<'_>, now: OffsetDateTime) -> Result<Value, ServiceError> {
    let no_csr = |_| ServiceError::new("MalformedCSRException", "the CSR is not base64");
    let csr = BASE64_STANDARD.decode(request.text("Csr")?).map_err(no_csr)?;
    let validity = &request.0["Validity"];
    let validity = validity["Type"]
        .as_str()
        .zip(validity["Value"].as_i64())
        .and_then(|(kind, value)| Validity::parse(kind, value))
        .ok_or_else(|| ServiceError::new("ValidationException", "Validity must not be null"))?;
    let arn = pca.issue_certificate(
        &IssueCertificate {
            authority: request.text("CertificateAuthorityArn")?,
            csr: &String::from_utf8_lossy(&csr),
            signing_algorithm: request.text("SigningAlgorithm")?,
            template: request.maybe("TemplateArn"),
            validity,
            not_before: request.0["ValidityNotBefore"]["Value"].as_i64(),
            token: request.maybe("IdempotencyToken"),
        },
        now,
    )?;
    Ok(json!({"CertificateArn": arn}))
}

fn collect(
    pca: &mut Pca,
    request: &Request<'_>,
    fault: Option<&Fault>,
    now: OffsetDateTime,
) -> Result<Value, ServiceError> {
    let arn = request.text("CertificateArn")?;
    let Collected { mut certificate, chain } =
        pca.get_certificate(request.text("CertificateAuthorityArn")?, arn, now)?;
    let mut chain = Some(chain);
    match fault {
        Some(Fault::Certificate(defect)) => certificate = pca.defective(arn, *defect, now)?,
        Some(Fault::ChainMissing) => chain = None,
        Some(Fault::ChainOutOfOrder) => {
            let stranger = pca.defective(arn, crate::pca::Defect::OtherAuthority, now)?;
            chain = chain.map(|chain| format!("{stranger}{}{chain}", upside_down(&chain)));
        }
        _ => {}
    }
    Ok(json!({"Certificate": certificate, "CertificateChain": chain}))
}

/// The certificates of a chain in reverse order.
fn upside_down(chain: &str) -> String {
    const END: &str = "-----END CERTIFICATE-----";
    let parts: Vec<&str> = chain.split_inclusive(END).filter(|part| part.contains(END)).map(str::trim).collect();
    parts.iter().rev().fold(String::new(), |text, part| text + part + "\n")
}

fn describe(pca: &mut Pca, request: &Request<'_>, now: OffsetDateTime) -> Result<Value, ServiceError> {
    let arn = request.text("CertificateAuthorityArn")?;
    let authority = pca.describe_certificate_authority(arn, now)?;
    let settings = authority.settings();
    Ok(json!({"CertificateAuthority": {
        "Arn": arn,
        "Type": if settings.parent.is_some() { "SUBORDINATE" } else { "ROOT" },
        "Status": authority.status(now).as_str(),
        "UsageMode": settings.usage_mode.as_str(),
        "NotBefore": authority.not_before().unix_timestamp(),
        "NotAfter": authority.not_after().unix_timestamp(),
        "CertificateAuthorityConfiguration": {
            "KeyAlgorithm": settings.key.as_str(),
            "SigningAlgorithm": settings.key.signing_algorithm(),
            "Subject": {"CommonName": settings.common_name},
        },
    }}))
}

fn secret(account: &Account, request: &Request<'_>, now: OffsetDateTime) -> Result<Value, ServiceError> {
    let (version, stage) = (request.maybe("VersionId"), request.maybe("VersionStage"));
    let value = account.secrets.get_secret_value(request.text("SecretId")?, version, stage, now)?;
    let (member, content) = match value.content {
        Content::Text(text) => ("SecretString", text),
        Content::Binary(bytes) => ("SecretBinary", BASE64_STANDARD.encode(bytes)),
    };
    let mut answer = json!({
        "ARN": value.arn,
        "Name": value.name,
        "VersionId": value.version,
        "VersionStages": value.stages,
        "CreatedDate": value.created.unix_timestamp(),
    });
    answer[member] = content.into();
    Ok(answer)
}

fn put_secret(account: &mut Account, request: &Request<'_>, now: OffsetDateTime) -> Result<Value, ServiceError> {
    let content = Content::Text(request.text("SecretString")?.to_owned());
    let (secret, token) = (request.text("SecretId")?, request.text("ClientRequestToken")?);
    account.secrets.put_secret_value(secret, content, token, now)?;
    Ok(json!({ "VersionId": token, "VersionStages": ["AWSCURRENT"] }))
}

fn autoscaling(operation: Operation, result: &str, next: Option<String>) -> String {
    let name = operation.as_str();
    let next = next.map(|token| format!("<NextToken>{token}</NextToken>")).unwrap_or_default();
    format!(
        "<{name}Response xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\"><{name}Result>{result}{next}\
         </{name}Result><ResponseMetadata><RequestId>double</RequestId></ResponseMetadata></{name}Response>"
    )
}

fn member(member: &Member) -> String {
    format!(
        "<member><InstanceId>{}</InstanceId><AutoScalingGroupName>{}</AutoScalingGroupName>\
         <AvailabilityZone>{}</AvailabilityZone><LifecycleState>{}</LifecycleState><HealthStatus>Healthy</HealthStatus>\
         <ProtectedFromScaleIn>false</ProtectedFromScaleIn></member>",
        escaped(&member.id),
        escaped(&member.group),
        escaped(&member.zone),
        escaped(&member.state)
    )
}

fn instance(instance: &Described) -> String {
    let address = match instance.address {
        Some(IpAddr::V4(ip)) => format!("<privateIpAddress>{ip}</privateIpAddress>"),
        Some(IpAddr::V6(ip)) => format!("<ipv6Address>{ip}</ipv6Address>"),
        None => String::new(),
    };
    let code = if instance.state == "running" { 16 } else { 48 };
    format!(
        "<item><instanceId>{}</instanceId><instanceState><code>{code}</code><name>{}</name></instanceState>{address}</item>",
        escaped(&instance.id),
        instance.state
    )
}
