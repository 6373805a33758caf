//! What can go wrong with a call.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::pca::Defect;

/// The calls that are known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Private CA.
    IssueCertificate,
    /// Private CA.
    GetCertificate,
    /// Private CA.
    GetCertificateAuthorityCertificate,
    /// Private CA.
    DescribeCertificateAuthority,
    /// Secrets Manager.
    GetSecretValue,
    /// Auto Scaling.
    DescribeAutoScalingInstances,
    /// Auto Scaling.
    DescribeAutoScalingGroups,
    /// EC2.
    DescribeInstances,
}

/// How a service's requests, answers and errors look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// AWS JSON 1.1 (<https://smithy.io/2.0/aws/protocols/aws-json-1_1-protocol.html>).
    Json,
    /// AWS query (<https://smithy.io/2.0/aws/protocols/aws-query-protocol.html>).
    Query,
    /// EC2 query (<https://smithy.io/2.0/aws/protocols/aws-ec2-query-protocol.html>).
    Ec2,
}

impl Operation {
    const ALL: [Self; 8] = [
        Self::IssueCertificate,
        Self::GetCertificate,
        Self::GetCertificateAuthorityCertificate,
        Self::DescribeCertificateAuthority,
        Self::GetSecretValue,
        Self::DescribeAutoScalingInstances,
        Self::DescribeAutoScalingGroups,
        Self::DescribeInstances,
    ];

    /// Its name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IssueCertificate => "IssueCertificate",
            Self::GetCertificate => "GetCertificate",
            Self::GetCertificateAuthorityCertificate => "GetCertificateAuthorityCertificate",
            Self::DescribeCertificateAuthority => "DescribeCertificateAuthority",
            Self::GetSecretValue => "GetSecretValue",
            Self::DescribeAutoScalingInstances => "DescribeAutoScalingInstances",
            Self::DescribeAutoScalingGroups => "DescribeAutoScalingGroups",
            Self::DescribeInstances => "DescribeInstances",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.as_str() == name)
    }

    pub(crate) fn protocol(self) -> Protocol {
        match self {
            Self::DescribeAutoScalingInstances | Self::DescribeAutoScalingGroups => Protocol::Query,
            Self::DescribeInstances => Protocol::Ec2,
            _ => Protocol::Json,
        }
    }
}

/// What happens to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The service refuses with this code: status 400.
    Error(&'static str),
    /// Too many requests, by the service's own code. `ThrottlingException`
    /// (<https://docs.aws.amazon.com/privateca/latest/APIReference/CommonErrors.html>), `Throttling`
    /// (<https://docs.aws.amazon.com/autoscaling/ec2/APIReference/CommonErrors.html>) or `RequestLimitExceeded`
    /// (<https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-errors.html>).
    Throttled,
    /// The role may not: `AccessDeniedException`, `AccessDenied`, `UnauthorizedOperation` of the same pages.
    Denied,
    /// The caller's clock is wrong: `InvalidSignatureException` and, in the query protocol, `SignatureDoesNotMatch` with
    /// these words (<https://docs.aws.amazon.com/IAM/latest/UserGuide/signature-v4-troubleshooting.html>); `RequestExpired`
    /// (<https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-errors.html>).
    WrongClock,
    /// The service, or a load balancer before it, fails with this status and a page that names no code.
    Status(u16),
    /// The answer comes that much later.
    Delay(Duration),
    /// The request is taken, nothing is done, and no answer ever comes.
    Hang,
    /// What is asked for is done, and no answer ever comes.
    LoseAnswer,
    /// The connection is reset as soon as the request is there; nothing is done.
    Reset,
    /// What is asked for is done, and the connection ends in the middle of the answer.
    Truncated,
    /// What is asked for is done, and half of the answer comes as if it were whole.
    Half,
    /// What is asked for is done, and the answer is true, and larger than anybody should read.
    Huge,
    /// 200, and a page of some proxy.
    Html,
    /// What is asked for is done, and the answer is true, by a content type that is none of the service's.
    ContentType,
    /// 200, the right content type, and a body that is nothing.
    Empty,
    /// GetCertificate returns a certificate with a defect.
    Certificate(Defect),
    /// GetCertificate's answer has no chain.
    ChainMissing,
    /// The chain of GetCertificate's answer stands upside down, twice, with a stranger before it.
    ChainOutOfOrder,
}

/// Longer than any answer that is documented.
pub const HUGE: usize = 9 * 1024 * 1024;

/// What happens to the calls of each operation: first the faults that are there for one call each, then the standing one.
#[derive(Debug, Default)]
pub(crate) struct Script {
    once: BTreeMap<Operation, VecDeque<Option<Fault>>>,
    standing: BTreeMap<Operation, Fault>,
}

impl Script {
    pub(crate) fn set(&mut self, operation: Operation, fault: Option<Fault>) {
        self.once.remove(&operation);
        match fault {
            Some(fault) => self.standing.insert(operation, fault),
            None => self.standing.remove(&operation),
        };
    }

    pub(crate) fn queue(&mut self, operation: Operation, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.once.entry(operation).or_default().extend(faults);
    }

    pub(crate) fn next(&mut self, operation: Operation) -> Option<Fault> {
        let queued = self.once.get_mut(&operation).and_then(VecDeque::pop_front);
        queued.unwrap_or_else(|| self.standing.get(&operation).cloned())
    }
}
