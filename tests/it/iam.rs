//! Compares `templates/iam` with the calls in the agent's source and with the requests that the agent sends.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use aws_double::Account;
use aws_double::http::AwsDouble;
use aws_double::pca::CaSettings;
use aws_double::secrets::Content;
use harness::gateway::{Call, Gateway};
use harness::imds::{ImdsStub, InstanceFacts};
use harness::loopback::free_ports;
use harness::moto::{Moto, REGION};
use harness::template::fill;
use harness::tools::workspace;
use nats_tls_agent::aws::AwsSettings;
use nats_tls_agent::config::{AddressLookup, CaArn};
use nats_tls_agent::connection::DocumentStore as _;
use nats_tls_agent::connection::secret::ConnectionSecret;
use nats_tls_agent::credential::secret::ClusterSecret;
use nats_tls_agent::included::{IncludedSecret, IncludedSource as _};
use nats_tls_agent::issue::acm_pca::AcmPca;
use nats_tls_agent::issue::{IssueRequest, Issuer};
use nats_tls_agent::node::Node;
use nats_tls_agent::peers::PeerSource;
use nats_tls_agent::peers::asg::Asg;
use nats_tls_agent::trust::sources::secrets_manager::SecretsManager;
use nats_tls_agent::x509::csr::{Csr, KeyAlgorithm};
use nats_tls_agent::x509::san::Sans;
use serde_json::{Value, json};
use time::OffsetDateTime;

const TEMPLATE: &str = "arn:aws:acm-pca:::template/EndEntityCertificate/V1";
const CLIENT_TEMPLATE: &str = "arn:aws:acm-pca:::template/EndEntityClientAuthCertificate/V1";
const KEY: &str = "arn:aws:kms:eu-west-1:123456789012:key/11111111-2222-3333-4444-555555555555";
const ROLE: &str = "arn:aws:iam::123456789012:role/nats-node";

/// IAM's service prefixes for the SDKs that the agent uses. The actions of these services have the names of their
/// operations
/// (<https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html>).
const PREFIXES: [(&str, &str); 4] = [
    ("aws-sdk-acmpca", "acm-pca"),
    ("aws-sdk-autoscaling", "autoscaling"),
    ("aws-sdk-ec2", "ec2"),
    ("aws-sdk-secretsmanager", "secretsmanager"),
];

/// Secrets Manager calls KMS on the caller's behalf for a secret that a customer managed key encrypts
/// (<https://docs.aws.amazon.com/secretsmanager/latest/userguide/security-encryption.html>).
const ON_OUR_BEHALF: &str = "kms:Decrypt";
/// PutSecretValue calls this operation of KMS too, from the same source.
const TO_WRITE_ON_OUR_BEHALF: &str = "kms:GenerateDataKey";

// === The calls in the source ===

/// The operations of each AWS SDK in the dependency graph, taken from the methods of its client.
fn operations() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &platform])
        .current_dir(workspace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let sdks = packages.iter().filter(|package| package["name"].as_str().unwrap().starts_with("aws-sdk-"));
    sdks.map(|package| {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        let methods = fs::read_dir(manifest.parent().unwrap().join("src/client")).unwrap();
        let methods = methods.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
        let names = methods.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
        (package["name"].as_str().unwrap().to_owned(), names.filter(|name| name != "customize").collect())
    })
    .collect()
}

/// The operations that a source file calls, in IAM's spelling.
fn called(source: &str, operations: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let code: String = source.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default().lines().fold(
        String::new(),
        |mut code, line| {
            code.extend(line.split("//").next().unwrap_or_default().chars().filter(|c| !c.is_whitespace()));
            code
        },
    );
    assert!(!code.contains(".wait_until_"), "a waiter hides the operation that it calls: call the operation directly");
    let mut found = BTreeSet::new();
    for call in code.split("()").filter_map(|before| before.rsplit('.').next()) {
        for (sdk, names) in operations {
            // Several SDKs have `describe_tags`, so only an SDK that the source imports counts.
            if names.contains(call) && code.contains(&sdk.replace('-', "_")) {
                let prefix = PREFIXES.iter().find(|(name, _)| name == sdk);
                let (_, prefix) = prefix.unwrap_or_else(|| panic!("PREFIXES has no entry for {sdk}"));
                found.insert(format!("{prefix}:{}", camel(call)));
            }
        }
    }
    found
}

/// Turns `issue_certificate` into IssueCertificate.
fn camel(name: &str) -> String {
    let upper = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split('_').map(upper).collect()
}

fn sources() -> Vec<String> {
    let (mut found, mut directories) = (Vec::new(), vec![workspace().join("agent/src")]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
                found.push(fs::read_to_string(path).unwrap());
            }
        }
    }
    found
}

fn called_by_the_agent() -> BTreeSet<String> {
    let operations = operations();
    sources().iter().flat_map(|source| called(source, &operations)).collect()
}

/// The names of calls in the error messages of the source.
fn named_by_the_agent() -> BTreeSet<String> {
    let sources = sources();
    let constants = sources.iter().flat_map(|source| source.lines()).filter_map(|line| {
        let (_, value) = line.trim().strip_prefix("const ")?.split_once(": &str = \"")?;
        value.strip_suffix("\";")
    });
    let is_action = |value: &&str| PREFIXES.iter().any(|(_, prefix)| value.starts_with(&format!("{prefix}:")));
    constants.filter(is_action).map(ToOwned::to_owned).collect()
}

// === The policies ===

/// The values of the placeholders.
#[derive(Clone)]
struct Resources {
    ca: String,
    trust: String,
    cluster: String,
    /// A secret of `nats.include`.
    included: String,
    /// The secret of the connection document.
    connection: String,
}

impl Resources {
    fn examples() -> Self {
        let secret = |name: &str| format!("arn:aws:secretsmanager:{REGION}:123456789012:secret:{name}-AbCdEf");
        let ca = format!("arn:aws:acm-pca:{REGION}:123456789012:certificate-authority/1");
        Self {
            ca,
            trust: secret("trust"),
            cluster: secret("cluster"),
            included: secret("accounts"),
            connection: secret("connection"),
        }
    }

    /// All policies that a role can have.
    fn policies(&self) -> Vec<Value> {
        let values = [
            ("ca_arn", self.ca.as_str()),
            ("template_arn", TEMPLATE),
            ("trust_secret_arn", self.trust.as_str()),
            ("cluster_secret_arn", self.cluster.as_str()),
        ];
        vec![
            policy("node.json", &values),
            policy("node-included-secrets.json", &[("included_secret_arns", &json!([self.included]).to_string())]),
            policy("node-connection.json", &[("connection_secret_arn", &self.connection)]),
            policy("node-connection-key.json", &[("kms_key_arn", KEY), ("region", REGION)]),
            policy("node-own-key.json", &[("kms_key_arn", KEY), ("region", REGION)]),
            policy("node-ec2-addresses.json", &[]),
        ]
    }
}

fn policy(file: &str, values: &[(&str, &str)]) -> Value {
    let path: PathBuf = workspace().join("templates/iam").join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&fill(&text, values).unwrap()).unwrap()
}

fn statements(policies: &[Value]) -> impl Iterator<Item = &Value> {
    policies.iter().flat_map(|policy| policy["Statement"].as_array().unwrap())
}

fn actions(policies: &[Value]) -> BTreeSet<String> {
    statements(policies).flat_map(|statement| texts(&statement["Action"])).map(ToOwned::to_owned).collect()
}

/// Removes an action from the policies. Drops a statement that has no other action.
fn without(policies: &[Value], action: &str) -> Vec<Value> {
    let mut policies = policies.to_vec();
    for policy in &mut policies {
        let statements = policy["Statement"].as_array_mut().unwrap();
        for statement in statements.iter_mut() {
            let left: Vec<&str> = texts(&statement["Action"]).into_iter().filter(|one| *one != action).collect();
            statement["Action"] = json!(left);
        }
        statements.retain(|statement| !statement["Action"].as_array().unwrap().is_empty());
    }
    policies
}

/// The texts of a policy element, which is one text or a list of texts.
fn texts(value: &Value) -> Vec<&str> {
    value.as_str().map_or_else(
        || value.as_array().map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default(),
        |one| vec![one],
    )
}

/// Checks that exactly the called actions are allowed. The error names the difference.
fn check(allowed: &BTreeSet<String>, called: &BTreeSet<String>) -> Result<(), String> {
    let missing: Vec<_> = called.difference(allowed).collect();
    let too_much: Vec<_> = allowed.difference(called).collect();
    if missing.is_empty() && too_much.is_empty() {
        return Ok(());
    }
    Err(format!("called and not allowed: {missing:?}; allowed and not called: {too_much:?}"))
}

// === IAM ===

/// A request as IAM evaluates it.
#[derive(Clone, Debug)]
struct Request {
    action: String,
    resource: String,
    context: BTreeMap<&'static str, String>,
}

impl Request {
    fn new(action: &str, resource: &str, context: &[(&'static str, &str)]) -> Self {
        let context = context.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        Self { action: action.to_owned(), resource: resource.to_owned(), context }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allowed,
    /// No statement allows the request.
    NotAllowed,
    Denied,
}

/// Evaluates the part of IAM's logic that the policies use. An explicit deny wins. Without a deny, an allow is needed
/// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html>).
fn evaluate(policies: &[Value], request: &Request) -> Verdict {
    let matching: Vec<&str> = statements(policies)
        .filter(|statement| applies(statement, request))
        .map(|statement| statement["Effect"].as_str().unwrap())
        .collect();
    if matching.contains(&"Deny") {
        Verdict::Denied
    } else if matching.contains(&"Allow") {
        Verdict::Allowed
    } else {
        Verdict::NotAllowed
    }
}

fn applies(statement: &Value, request: &Request) -> bool {
    for key in statement.as_object().unwrap().keys() {
        let known = ["Sid", "Effect", "Principal", "Action", "Resource", "Condition"];
        assert!(known.contains(&key.as_str()), "`applies` doesn't support {key}");
    }
    let action = texts(&statement["Action"]).iter().any(|pattern| is_like(pattern, &request.action));
    let resource = texts(&statement["Resource"]).iter().any(|pattern| is_like(pattern, &request.resource));
    let none = serde_json::Map::new();
    let mut conditions = statement["Condition"].as_object().unwrap_or(&none).iter();
    action && resource && conditions.all(|(operator, keys)| holds(operator, keys, request))
}

/// Whether a condition holds. All keys of an operator must match, each with one of its values. A key that the request
/// lacks fulfils only a negated operator. ArnEquals and ArnLike behave alike
/// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html>).
fn holds(operator: &str, keys: &Value, request: &Request) -> bool {
    let (matches, negated): (fn(&str, &str) -> bool, bool) = match operator {
        "StringEquals" => (|pattern, value| pattern == value, false),
        "ArnEquals" | "ArnLike" => (is_arn_like, false),
        "ArnNotEquals" | "ArnNotLike" => (is_arn_like, true),
        _ => panic!("`holds` doesn't support {operator}"),
    };
    keys.as_object().unwrap().iter().all(|(key, patterns)| {
        let value = request.context.get(key.as_str());
        value.is_some_and(|value| texts(patterns).iter().any(|pattern| matches(pattern, value))) != negated
    })
}

/// Matches each of the six parts separately, because a star doesn't match a colon between the parts.
fn is_arn_like(pattern: &str, arn: &str) -> bool {
    let (patterns, parts): (Vec<_>, Vec<_>) = (pattern.splitn(6, ':').collect(), arn.splitn(6, ':').collect());
    patterns.len() == 6 && parts.len() == 6 && patterns.iter().zip(&parts).all(|(pattern, part)| is_like(pattern, part))
}

/// Matches a pattern: `*` is any text, `?` is one character.
fn is_like(pattern: &str, text: &str) -> bool {
    let mut characters = text.chars();
    match pattern.chars().next() {
        None => text.is_empty(),
        Some('*') => {
            text.char_indices().map(|(at, _)| &text[at..]).chain([""]).any(|rest| is_like(&pattern[1..], rest))
        }
        Some(wanted) => {
            characters.next().is_some_and(|found| wanted == '?' || wanted == found)
                && is_like(&pattern[wanted.len_utf8()..], characters.as_str())
        }
    }
}

/// The requests that IAM evaluates for a recorded call.
fn requests(call: &Call) -> Vec<Request> {
    let asked = |member: &str| call.asked(member).unwrap_or_else(|| panic!("{call:?} has no {member}"));
    match call.operation.as_str() {
        "IssueCertificate" => {
            let context = [("acm-pca:TemplateArn", asked("TemplateArn"))].map(|(key, value)| (key, value));
            let context: Vec<(&'static str, &str)> =
                context.iter().map(|(key, value)| (*key, value.as_str())).collect();
            vec![Request::new("acm-pca:IssueCertificate", &asked("CertificateAuthorityArn"), &context)]
        }
        "GetCertificate" | "GetCertificateAuthorityCertificate" | "DescribeCertificateAuthority" => {
            vec![Request::new(&format!("acm-pca:{}", call.operation), &asked("CertificateAuthorityArn"), &[])]
        }
        "GetSecretValue" => {
            let service = format!("secretsmanager.{REGION}.amazonaws.com");
            vec![
                Request::new("secretsmanager:GetSecretValue", &call.answered("ARN").unwrap(), &[]),
                Request::new(ON_OUR_BEHALF, KEY, &[("kms:ViaService", &service)]),
            ]
        }
        "PutSecretValue" => {
            let service = format!("secretsmanager.{REGION}.amazonaws.com");
            vec![
                Request::new("secretsmanager:PutSecretValue", &call.answered("ARN").unwrap(), &[]),
                Request::new(TO_WRITE_ON_OUR_BEHALF, KEY, &[("kms:ViaService", &service)]),
            ]
        }
        // These actions accept no resource.
        "DescribeAutoScalingInstances" | "DescribeAutoScalingGroups" => {
            vec![Request::new(&format!("autoscaling:{}", call.operation), "*", &[])]
        }
        "DescribeInstances" => vec![Request::new("ec2:DescribeInstances", "*", &[])],
        other => panic!("`requests` doesn't know IAM's view of {other}"),
    }
}

// === The tests ===

#[test]
fn the_policies_allow_the_calls_that_the_agents_source_makes_and_no_other() {
    let mut called = called_by_the_agent();
    assert_eq!(called, named_by_the_agent(), "the error messages name other calls than the source makes");
    called.extend([ON_OUR_BEHALF, TO_WRITE_ON_OUR_BEHALF].map(Into::into));
    check(&actions(&Resources::examples().policies()), &called).unwrap();
}

#[test]
fn a_permission_taken_out_or_a_call_without_one_fails_the_check() {
    let policies = Resources::examples().policies();
    let on_our_behalf = [ON_OUR_BEHALF, TO_WRITE_ON_OUR_BEHALF].map(Into::into);
    let called: BTreeSet<String> = called_by_the_agent().into_iter().chain(on_our_behalf).collect();
    assert_eq!(called.len(), 11, "{called:?}");
    for action in &called {
        let error = check(&actions(&without(&policies, action)), &called).unwrap_err();
        assert!(error.starts_with(&format!("called and not allowed: [{action:?}];")), "{error}");
        let fewer: BTreeSet<String> = called.iter().filter(|one| *one != action).cloned().collect();
        let error = check(&actions(&policies), &fewer).unwrap_err();
        assert!(error.ends_with(&format!("allowed and not called: [{action:?}]")), "{error}");
    }
    let source = "use aws_sdk_acmpca::Client;\nself.client\n    .revoke_certificate()\n    .send()";
    assert_eq!(self::called(source, &operations()), BTreeSet::from(["acm-pca:RevokeCertificate".into()]));
}

#[tokio::test]
async fn every_request_that_the_agent_sends_is_allowed_and_none_for_another_ca_template_secret_or_key() {
    let sent = Sent::record().await;
    assert_needed_and_sufficient(&sent.resources.policies(), &sent.requests);
}

/// The requests of a service's agent with a certificate, against the policies of the service's role.
#[tokio::test]
async fn every_request_of_a_service_is_allowed_and_none_for_another_ca_template_secret_or_key() {
    let (policies, requests) = sent_by_a_service().await;
    assert_needed_and_sufficient(&policies, &requests);
    let issues = requests.iter().find(|request| request.action == "acm-pca:IssueCertificate").unwrap();
    let context = BTreeMap::from([("acm-pca:TemplateArn", TEMPLATE.to_owned())]);
    let of_a_server = Request { context, ..issues.clone() };
    assert_eq!(evaluate(&policies, &of_a_server), Verdict::NotAllowed, "a service can't have a server's certificate");
}

/// The policies allow each request, need each of their permissions and resources for a request, and allow none of the requests
/// elsewhere.
fn assert_needed_and_sufficient(policies: &[Value], requests: &[Request]) {
    for request in requests {
        assert_eq!(evaluate(policies, request), Verdict::Allowed, "{request:?}");
    }
    // The requests need every permission of the policies.
    let used: BTreeSet<String> = requests.iter().map(|request| request.action.clone()).collect();
    assert_eq!(used, actions(policies));
    for action in &used {
        let fewer = without(policies, action);
        let refused: BTreeSet<&str> = requests
            .iter()
            .filter(|request| evaluate(&fewer, request) != Verdict::Allowed)
            .map(|request| request.action.as_str())
            .collect();
        assert_eq!(refused, BTreeSet::from([action.as_str()]));
    }
    // The requests need every resource that the policies name.
    let needed: BTreeSet<&str> = requests.iter().map(|request| request.resource.as_str()).collect();
    let named: BTreeSet<&str> = statements(policies).flat_map(|statement| texts(&statement["Resource"])).collect();
    assert_eq!(needed, named);
    // The policies allow none of these requests for another resource or in another context.
    for request in requests {
        for wrong in elsewhere(request) {
            assert_eq!(evaluate(policies, &wrong), Verdict::NotAllowed, "{wrong:?}");
        }
    }
}

#[tokio::test]
async fn an_included_secret_is_read_by_the_permission_of_its_own_policy() {
    let sent = Sent::record().await;
    let mut policies = sent.resources.policies();
    policies.retain(|policy| policy["Statement"][0]["Sid"] != "ReadIncludedSecrets");
    let refused = sent.requests.iter().filter(|request| evaluate(&policies, request) != Verdict::Allowed);
    let refused: BTreeSet<_> = refused.map(|request| (request.action.as_str(), request.resource.as_str())).collect();
    let included = sent.resources.included.as_str();
    assert_eq!(refused, BTreeSet::from([("secretsmanager:GetSecretValue", included)]));
}

/// Variants of a request with another resource or another context. A request without both has no variants.
fn elsewhere(request: &Request) -> Vec<Request> {
    let mut wrong = Vec::new();
    if request.resource != "*" {
        let resource = format!("{}0", request.resource);
        wrong.push(Request { resource, ..request.clone() });
        let mut parts: Vec<&str> = request.resource.split(':').collect();
        parts[4] = "999999999999";
        wrong.push(Request { resource: parts.join(":"), ..request.clone() });
    }
    for key in request.context.keys() {
        let mut context = request.context.clone();
        context
            .insert(key, request.context[key].replace("EndEntity", "SubordinateCA").replace("secretsmanager", "ssm"));
        wrong.push(Request { context, ..request.clone() });
        wrong.push(Request { context: BTreeMap::new(), ..request.clone() });
    }
    wrong
}

#[test]
fn nobody_but_the_nodes_reads_the_cluster_credential_whatever_else_allows_it() {
    let everything = json!({"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]});
    let policies = [everything, policy("cluster-secret.json", &[("node_role_arn", ROLE)])];
    let secret = Resources::examples().cluster;
    let reads = |context: &[(&'static str, &str)]| {
        evaluate(&policies, &Request::new("secretsmanager:GetSecretValue", &secret, context))
    };
    assert_eq!(reads(&[("aws:PrincipalArn", ROLE)]), Verdict::Allowed);
    for other in [
        "arn:aws:iam::123456789012:root",
        "arn:aws:iam::123456789012:role/nats-node-2",
        "arn:aws:iam::9:role/nats-node",
    ] {
        assert_eq!(reads(&[("aws:PrincipalArn", other)]), Verdict::Denied, "{other}");
    }
    assert_eq!(reads(&[]), Verdict::Denied, "a request without a principal");
    let admin = [("aws:PrincipalArn", "arn:aws:iam::123456789012:role/admin")];
    let delete = Request::new("secretsmanager:DeleteSecret", &secret, &admin);
    assert_eq!(evaluate(&policies, &delete), Verdict::Allowed, "an administrator can still delete the secret");
}

#[test]
fn patterns_are_read_as_iam_reads_them() {
    for (pattern, text, expected) in [
        ("*", "", true),
        ("a*c", "abbc", true),
        ("a*c", "abb", false),
        ("a?c", "abc", true),
        ("a?c", "ac", false),
        ("secret:trust-??????", "secret:trust-AbCdEf", true),
        ("secret:trust-??????", "secret:trust-2-AbCdEf", false),
    ] {
        assert_eq!(is_like(pattern, text), expected, "{pattern} {text}");
    }
    assert!(is_arn_like("arn:aws:acm-pca:*:*:template/EndEntityCertificate/V*", TEMPLATE));
    assert!(!is_arn_like("arn:*:template/EndEntityCertificate/V1", TEMPLATE), "a star stays in its part");
    assert!(!is_arn_like("arn:aws:acm-pca:::template/EndEntityCertificate/V1", "EndEntityCertificate/V1"));
}

/// The requests of an agent that uses every configurable feature.
struct Sent {
    resources: Resources,
    requests: Vec<Request>,
}

impl Sent {
    async fn record() -> Self {
        const PEM: &str = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";
        let moto = Moto::start().await.unwrap();
        let ports = free_ports(1).unwrap();
        let gateway = Gateway::start(([127, 0, 0, 1], ports.numbers()[0]).into(), moto.endpoint()).await.unwrap();
        let ca = moto.create_ca("nats", "GENERAL_PURPOSE").await.unwrap();
        let trust = moto.put_secret("trust-bundle", PEM).await.unwrap();
        // The agent also reads the previous version, because the current version is only moments old.
        moto.put_secret("cluster", r#"{"username": "route", "password": "o"}"#).await.unwrap();
        let cluster = moto.put_secret("cluster", r#"{"username": "route", "password": "p"}"#).await.unwrap();
        let included = moto.put_secret("nats/accounts", "accounts { A { } }").await.unwrap();
        let connection = moto.put_secret("nats/connection", "{}").await.unwrap();
        let members = moto.launch("nats", 2).await.unwrap();

        let facts = InstanceFacts::new(&members[0].id, REGION, members[0].address);
        let imds = ImdsStub::start(facts).await.unwrap();
        let settings = AwsSettings {
            region: Some(REGION.into()),
            endpoint: Some(gateway.endpoint()),
            imds_endpoint: Some(imds.endpoint()),
        };
        let aws = settings.load().await;
        let node = node(&members[0].id, members[0].address);
        let csr = Csr::generate(&node.name, &node.sans, KeyAlgorithm::EcdsaP256).unwrap();
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let issuer = AcmPca::new(&aws, CaArn::try_from(ca.arn.clone()).unwrap(), None);
        // The validity is longer than a short-lived CA allows, so the agent asks for the CA's mode. moto reports every
        // CA as short-lived.
        issuer.prepare(Duration::from_hours(30 * 24)).await.unwrap_err();
        let validity = Duration::from_hours(7 * 24);
        let signing_algorithm = &issuer.prepare(validity).await.unwrap();
        let request =
            IssueRequest { csr_pem: &csr.pem, validity, now, signing_algorithm, idempotency_token: "token-1" };
        let handle = issuer.request(&request).await.unwrap();
        issuer.collect(&handle).await.unwrap().unwrap();
        SecretsManager::new(&aws, "trust-bundle", None).stored().await.unwrap();
        IncludedSecret::new(&aws, "nats/accounts").fetch().await.unwrap();
        let document = ConnectionSecret::new(&aws, "nats/connection");
        document.read().await.unwrap().unwrap();
        document.write("{}", "nats-tls-agent-0123456789abcdef0123456789abcdef").await.unwrap();
        ClusterSecret::new(&aws, &cluster.arn).versions(OffsetDateTime::UNIX_EPOCH).await.unwrap();
        Asg::new(&aws, node, None, AddressLookup::Ec2, 6222).sight().await.unwrap();

        let calls = gateway.every_call();
        let requests = calls.iter().flat_map(requests).collect();
        let (ca, trust, cluster, included) = (ca.arn, trust.arn, cluster.arn, included.arn);
        let resources = Resources { ca, trust, cluster, included, connection: connection.arn };
        Self { resources, requests }
    }
}

fn node(id: &str, address: IpAddr) -> Node {
    Node {
        name: id.into(),
        instance_id: Some(id.into()),
        region: Some(REGION.into()),
        address,
        sans: Sans { ips: [address].into(), ..Sans::default() },
        further_addresses: [].into(),
        placement: nats_tls_agent::node::Placement::default(),
    }
}

/// Has the built agent fetch a document and a certificate for a service. Returns the filled policies and the requests.
async fn sent_by_a_service() -> (Vec<Value>, Vec<Request>) {
    let double = AwsDouble::start(([127, 0, 0, 1], 0).into(), Account::new(REGION)).await.unwrap();
    let (ca, secret) = double.account(|aws, now| {
        let ca = aws.pca.create_authority(CaSettings::root("clients"), now).unwrap();
        // Nobody listens at the URL, so nothing speaks against the CA.
        let document = json!({
            "NATS_URL": "tls://127.0.0.1:1", "NATS_CA": aws.pca.authority(&ca).unwrap().pem(), "NATS_TLS_REQUIRED": "true",
            "NATS_CLIENT_CERT": "required", "version": 1, "cluster": "c", "changed_at": "2026-03-01T12:00:00Z",
        });
        aws.secrets.put("nats/connection", Content::Text(document.to_string()), now).unwrap();
        (ca, aws.secrets.get_secret_value("nats/connection", None, None, now).unwrap().arn)
    });
    let ports = free_ports(1).unwrap();
    let gateway = Gateway::start(([127, 0, 0, 1], ports.numbers()[0]).into(), &double.endpoint()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("client.toml");
    let files = directory.path().join("files");
    let text = format!(
        "connection = {{ secret_id = \"{secret}\", region = \"{REGION}\" }}\nclient.directory = \"{}\"\n\
         [client.certificate]\nca_arn = \"{ca}\"\nname = \"app\"\n",
        files.display()
    );
    fs::write(&config, text).unwrap();
    let mut agent = tokio::process::Command::new(crate::AGENT);
    agent.args(["client", "fetch", "--config"]).arg(&config).env("AWS_ENDPOINT_URL", gateway.endpoint());
    agent.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").kill_on_drop(true);
    let output = agent.output().await.unwrap();
    assert!(output.status.success() && files.join("current/key.pem").exists(), "{output:?}");
    let issuing = [("ca_arn", ca.as_str()), ("template_arn", CLIENT_TEMPLATE)];
    let policies = vec![
        policy("client.json", &[("connection_secret_arn", &secret)]),
        policy("client-key.json", &[("kms_key_arn", KEY), ("region", REGION)]),
        policy("client-certificate.json", &issuing),
    ];
    (policies, gateway.every_call().iter().flat_map(requests).collect())
}
