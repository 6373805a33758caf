//! Faults of calls, and the script that assigns them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::pca::Defect;

/// The calls that this model knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// A call of Private CA.
    IssueCertificate,
    /// A call of Private CA.
    GetCertificate,
    /// A call of Private CA.
    GetCertificateAuthorityCertificate,
    /// A call of Private CA.
    DescribeCertificateAuthority,
    /// A call of Secrets Manager.
    GetSecretValue,
    /// A call of Secrets Manager.
    PutSecretValue,
    /// A call of Auto Scaling.
    DescribeAutoScalingInstances,
    /// A call of Auto Scaling.
    DescribeAutoScalingGroups,
    /// A call of EC2.
    DescribeInstances,
}

/// The wire protocol of a service's requests, answers and errors.
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
    const ALL: [Self; 9] = [
        Self::IssueCertificate,
        Self::GetCertificate,
        Self::GetCertificateAuthorityCertificate,
        Self::DescribeCertificateAuthority,
        Self::GetSecretValue,
        Self::PutSecretValue,
        Self::DescribeAutoScalingInstances,
        Self::DescribeAutoScalingGroups,
        Self::DescribeInstances,
    ];

    /// The operation's name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IssueCertificate => "IssueCertificate",
            Self::GetCertificate => "GetCertificate",
            Self::GetCertificateAuthorityCertificate => "GetCertificateAuthorityCertificate",
            Self::DescribeCertificateAuthority => "DescribeCertificateAuthority",
            Self::GetSecretValue => "GetSecretValue",
            Self::PutSecretValue => "PutSecretValue",
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

/// The fault of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The service answers with this error code, and with the status that belongs to the code.
    Error(&'static str),
    /// The service throttles the call. The code is `ThrottlingException`
    /// (<https://docs.aws.amazon.com/privateca/latest/APIReference/CommonErrors.html>), `Throttling`
    /// (<https://docs.aws.amazon.com/autoscaling/ec2/APIReference/CommonErrors.html>) or `RequestLimitExceeded`
    /// (<https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-errors.html>).
    Throttled,
    /// The role lacks the permission: `AccessDeniedException`, `AccessDenied` or `UnauthorizedOperation` of the same
    /// pages.
    Denied,
    /// The caller's clock is wrong. The codes are `InvalidSignatureException` and, in the query protocol,
    /// `SignatureDoesNotMatch` with this message
    /// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/signature-v4-troubleshooting.html>). EC2 answers
    /// `RequestExpired` (<https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-errors.html>).
    WrongClock,
    /// The service, or a load balancer in front of it, answers with this status and a page without an error code.
    Status(u16),
    /// The answer is delayed by this time.
    Delay(Duration),
    /// The service takes the request, does nothing, and never answers.
    Hang,
    /// The service performs the request, and never answers.
    LoseAnswer,
    /// The connection is reset as soon as the request arrives, and nothing is done.
    Reset,
    /// The service performs the request, and the connection ends in the middle of the answer.
    Truncated,
    /// The service performs the request, and half of the answer arrives as if the answer were complete.
    Half,
    /// The service performs the request. The answer is correct, but too large for any reader.
    Huge,
    /// A proxy answers with status 200 and an HTML page.
    Html,
    /// The service performs the request. The answer is correct, but has a foreign content type.
    ContentType,
    /// The answer has status 200, the right content type, and an empty body.
    Empty,
    /// GetCertificate returns a certificate with this defect.
    Certificate(Defect),
    /// GetCertificate returns no chain.
    ChainMissing,
    /// GetCertificate returns an unrelated certificate, then the chain in reverse order, then the chain in its correct
    /// order.
    ChainOutOfOrder,
}

/// The size of a huge answer in bytes, larger than every documented answer.
pub const HUGE: usize = 9 * 1024 * 1024;

/// The faults of each operation's calls. Queued faults come first, for one call each. The standing fault comes after
/// the queued faults.
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
