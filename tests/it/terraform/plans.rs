//! `terraform validate` and `terraform plan` with the schema of hashicorp/aws. The provider itself is a double, which never reaches AWS.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use harness::terraform::{Applied, AwsProvider, Plan};
use harness::tools::{self, workspace};
use nats_tls_agent::config::Config;
use serde_json::{Value, json};

use super::{SECRET, decode, module};

const SKIPPED: &str = "SKIPPED: Terraform isn't installed";
const KEY: &str = "arn:aws:kms:eu-west-1:111122223333:key/1-2";
const CA: &str = "arn:aws:acm-pca:eu-west-1:111122223333:certificate-authority/1-2";
const TARGET_GROUP: &str = "arn:aws:elasticloadbalancing:eu-west-1:111122223333:targetgroup/nats/0123456789abcdef";
const ZONE: &str = "Z0123456789ABCDEFGHIJ";
const ZONE_OF_BALANCER: &str = "Z2IFOLAFXWLO4F";

/// The double, or `None` where Terraform isn't installed.
async fn provider() -> Option<AwsProvider> {
    Some(AwsProvider::start(tools::terraform()?, &module()).await.unwrap())
}

/// An example's own values, with a file for each of the packages.
fn values_of(example: &str, directory: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(module().join("examples").join(example).join("terraform.tfvars.example")).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(" = "));
    let values = lines.map(|(name, value)| {
        let (name, value) = (name.trim(), value.trim());
        if !name.ends_with("_package") {
            return (name.to_owned(), value.trim_matches('"').to_owned());
        }
        let file = directory.join(Path::new(value.trim_matches('"')).file_name().unwrap());
        fs::write(&file, name).unwrap();
        (name.to_owned(), file.display().to_string())
    });
    values.collect()
}

fn borrowed(values: &[(String, String)]) -> Vec<(&str, &str)> {
    values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[tokio::test]
async fn every_example_is_valid_and_has_a_plan() {
    let Some(provider) = provider().await else {
        eprintln!("{SKIPPED}");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let readme = fs::read_to_string(module().join("README.md")).unwrap();
    assert!(readme.contains(&format!("`hashicorp/aws` {},", provider.version())), "the README names another version");
    for (example, at_least) in [("complete", 50), ("gateway", 25)] {
        let configuration = provider.open(&module().join("examples").join(example)).await.unwrap();
        configuration.validate().await.unwrap();
        let plan = configuration.plan(&borrowed(&values_of(example, directory.path()))).await.unwrap();
        println!("{example}: {} to add", plan.made().len());
        assert!(plan.made().len() > at_least, "{example}: {:?}", plan.made());
    }
}

/// A configuration without a mistake. Each case of the test below makes one mistake.
const LISTENER: &str = r#"
resource "aws_lb_listener" "this" {
  load_balancer_arn = "arn:aws:elasticloadbalancing:eu-west-1:111122223333:loadbalancer/net/nats/0123456789abcdef"
  port              = 4222

  default_action {
    type = "forward"
  }
}

output "arn" {
  value = aws_lb_listener.this.arn
}
"#;

#[tokio::test]
async fn what_the_schema_of_the_provider_doesnt_have_is_refused() {
    let Some(provider) = provider().await else {
        eprintln!("{SKIPPED}");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("main.tf");
    fs::write(&file, LISTENER).unwrap();
    let configuration = provider.open(directory.path()).await.unwrap();
    configuration.validate().await.unwrap();
    for (right, wrong, message) in [
        ("port    ", "prot    ", "An argument named \"prot\" is not expected here"),
        ("4222", "\"nats\"", "Inappropriate value for attribute \"port\": a number is required"),
        ("load_balancer_arn =", "certificate_arn =", "The argument \"load_balancer_arn\" is required"),
        ("type = ", "order = ", "The argument \"type\" is required"),
        ("default_action {", "default_actions {", "Blocks of type \"default_actions\" are not expected here"),
        ("default_action {\n    type = \"forward\"\n  }", "", "At least 1 \"default_action\" blocks are required"),
        ("default_action {", "timeouts {}\n  timeouts {}\n  default_action {", "Duplicate timeouts block"),
        ("4222\n", "4222\n  arn = \"arn\"\n", "Can't configure a value for \"arn\""),
        ("this.arn", "this.arns", "This object has no argument, nested block, or exported attribute named \"arns\""),
        ("\"aws_lb_listener\"", "\"aws_lb_listeners\"", "does not support resource type \"aws_lb_listeners\""),
    ] {
        assert!(LISTENER.contains(right), "{right}");
        fs::write(&file, LISTENER.replacen(right, wrong, 1)).unwrap();
        let said = configuration.validate().await.err().map(|failure| failure.to_string()).unwrap_or_default();
        assert!(said.contains(message), "{message}: {said}");
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// agent.toml as a node's user data has it: the part of the template, and the part of the variables.
fn agent_toml(plan: &Plan) -> String {
    let template = plan.attributes("aws_launch_template.node");
    let user_data = decode(template["user_data"].as_str().unwrap());
    let (_, rest) = user_data.split_once("/agent.toml\n").unwrap();
    let (_, rest) = rest.split_once("content: |\n").unwrap();
    let lines = rest.lines().take_while(|line| line.is_empty() || line.starts_with("      ")).map(str::trim_start);
    let (_, extra) = user_data.split_once("/extra.toml\n").unwrap();
    let (_, extra) = extra.split_once("content: \"").unwrap();
    let (extra, _) = extra.split_once('"').unwrap();
    lines.chain([decode(extra).as_str()]).collect::<Vec<_>>().join("\n")
}

/// The ARN of a secret by its name.
fn secret_of(name: &str) -> String {
    SECRET.replace("accounts", name)
}

/// A value for each variable that names a thing that exists.
fn existing() -> [(&'static str, String); 6] {
    let secret = |name: &str, keys: &[&str]| format!("{{arn = \"{}\", key_arns = {}}}", secret_of(name), json!(keys));
    let balancer = format!(
        "{{target_group_arn = \"{TARGET_GROUP}\", dns_name = \"nats.elb.eu-west-1.amazonaws.com\", zone_id = \"{ZONE_OF_BALANCER}\", \
         security_group_ids = [\"sg-2\"]}}"
    );
    [
        ("existing_ca", format!("{{arn = \"{CA}\"}}")),
        ("existing_trust_secret", secret("trust", &[])),
        ("existing_cluster_secret", secret("cluster", &[KEY])),
        ("existing_connection_secret", secret("connection", &[KEY])),
        ("existing_load_balancer", balancer),
        ("existing_zone", format!("{{id = \"{ZONE}\"}}")),
    ]
}

/// The values of a plan of the nodes: the required values, and more.
fn nodes<'a>(required: &'a [(&str, String)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    required.iter().map(|(name, value)| (*name, value.as_str())).chain(more.iter().copied()).collect()
}

#[tokio::test]
async fn what_exists_is_not_made_again() {
    let Some(provider) = provider().await else {
        eprintln!("{SKIPPED}");
        return;
    };
    let configuration = provider.open(&module()).await.unwrap();
    let required = super::required_values();
    let document = ("connection_document", "true");
    let all = set(&configuration.plan(&nodes(&required, &[document])).await.unwrap().made());
    println!("nodes: {} to add", all.len());
    let key = "aws_iam_role_policy.existing_keys[0]";
    let (ca, balancer) = ("aws_acmpca_certificate", "aws_lb");
    let expected = [
        (
            vec![
                format!("{ca}.root[0]"),
                format!("{ca}_authority.this[0]"),
                format!("{ca}_authority_certificate.this[0]"),
            ],
            None,
        ),
        (vec!["aws_secretsmanager_secret.trust[0]".into(), "aws_secretsmanager_secret_version.trust[0]".into()], None),
        (
            vec![
                "aws_cloudformation_stack.cluster_credential[0]".into(),
                "aws_secretsmanager_secret_policy.cluster_credential[0]".into(),
            ],
            Some(key),
        ),
        (vec!["aws_secretsmanager_secret.connection[0]".into()], Some(key)),
        (
            vec![
                format!("{balancer}.clients[0]"),
                format!("{balancer}_listener.clients[0]"),
                format!("{balancer}_target_group.clients[0]"),
                "aws_security_group.clients[0]".into(),
                "aws_vpc_security_group_egress_rule.to_nodes[0]".into(),
            ],
            None,
        ),
        (vec!["aws_route53_zone.clients[0]".into()], None),
    ];
    for ((variable, value), (gone, added)) in existing().iter().zip(expected) {
        let plan = configuration.plan(&nodes(&required, &[document, (variable, value)])).await.unwrap();
        let found = set(&plan.made());
        assert_eq!(all.difference(&found).cloned().collect::<Vec<_>>(), gone, "{variable}");
        let added: Vec<_> = added.into_iter().collect();
        assert_eq!(found.difference(&all).collect::<Vec<_>>(), added, "{variable}");
        if *variable == "existing_ca" {
            // The trust bundle has the root above the CA, and not the CA itself.
            let bundle = plan.attributes("aws_secretsmanager_secret_version.trust[0]");
            assert_eq!(bundle["secret_string"], "-----BEGIN CERTIFICATE-----\nUk9PVA==\n-----END CERTIFICATE-----\n");
        }
    }
}

/// With everything that exists at once, a plan knows all values. So the test compares what the nodes get.
#[tokio::test]
async fn what_exists_is_what_the_nodes_get() {
    let Some(provider) = provider().await else {
        eprintln!("{SKIPPED}");
        return;
    };
    let configuration = provider.open(&module()).await.unwrap();
    let (required, existing) = (super::required_values(), existing());
    let of_clients = secret_of("clients");
    let more = [("metrics_security_group_ids", "[\"sg-3\"]"), ("client_trust_secret_arn", &*of_clients)];
    let mut values = nodes(&required, &more);
    values.extend(existing.iter().map(|(name, value)| (*name, value.as_str())));
    let plan = configuration.plan(&values).await.unwrap();
    assert!(
        plan.made().iter().all(|name| !name.starts_with("aws_kms_key")),
        "a key without a secret: {:?}",
        plan.made()
    );

    let text = agent_toml(&plan);
    Config::parse(&text, Path::new("agent.toml")).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let toml: toml::Table = text.parse().unwrap();
    for (table, key, value) in [
        ("issuer", "ca_arn", CA.to_owned()),
        ("trust", "secret_id", secret_of("trust")),
        ("nats", "cluster_secret_id", secret_of("cluster")),
        ("connection", "secret_id", secret_of("connection")),
        ("metrics", "listen", "0.0.0.0:9464".to_owned()),
    ] {
        assert_eq!(toml[table][key].as_str(), Some(value.as_str()), "{table}.{key}");
    }
    assert_eq!(toml["trust"]["clients"]["secret_id"].as_str(), Some(of_clients.as_str()));
    for (address, attribute, value) in [
        ("aws_vpc_security_group_ingress_rule.metrics[0]", "referenced_security_group_id", json!("sg-3")),
        ("aws_vpc_security_group_ingress_rule.metrics[0]", "from_port", json!(9464)),
        ("aws_vpc_security_group_ingress_rule.from_load_balancer[0]", "referenced_security_group_id", json!("sg-2")),
        ("aws_autoscaling_group.node", "target_group_arns", json!([TARGET_GROUP])),
        ("aws_route53_record.clients", "zone_id", json!(ZONE)),
    ] {
        assert_eq!(plan.attributes(address)[attribute], value, "{address}");
    }
    assert_eq!(plan.attributes("aws_route53_record.clients")["alias"][0]["zone_id"], ZONE_OF_BALANCER);
    let policy =
        |name: &str| plan.attributes(&format!("aws_iam_role_policy.{name}"))["policy"].as_str().unwrap().to_owned();
    assert!([CA, &secret_of("trust"), &secret_of("cluster")].iter().all(|arn| policy("agent").contains(arn)));
    assert!(policy("connection[0]").contains(&secret_of("connection")));
    assert!(policy("client_trust[0]").contains(&of_clients));
    for name in ["connection_key[0]", "existing_keys[0]", "existing_keys[1]"] {
        assert!(policy(name).contains(KEY), "{name}");
    }
}

/// A configuration that makes all existing things beside the module, so the plan knows no id and no ARN.
const SAME_RUN: &str = r#"
resource "aws_acmpca_certificate_authority" "this" {
  certificate_authority_configuration {
    key_algorithm     = "EC_prime256v1"
    signing_algorithm = "SHA256WITHECDSA"

    subject {
      common_name = "nats"
    }
  }
}

resource "aws_kms_key" "this" {}

resource "aws_secretsmanager_secret" "this" {}

resource "aws_lb" "this" {}

resource "aws_lb_target_group" "this" {}

resource "aws_security_group" "this" {}

resource "aws_route53_zone" "this" {
  name = "internal"
}

locals {
  secret = { arn = aws_secretsmanager_secret.this.arn, key_arns = [aws_kms_key.this.arn] }
}

module "nats" {
  source = "./templates/terraform"

  vpc_id                     = "vpc-1"
  subnet_ids                 = ["subnet-1"]
  ami_id                     = "ami-1"
  nats_server_url            = "https://example.com/nats-server.tar.gz"
  nats_server_sha256         = sha256("nats-server")
  agent_url                  = "https://example.com/nats-tls-agent.rpm"
  agent_sha256               = sha256("agent")
  metrics_security_group_ids = [aws_security_group.this.id]
  existing_ca                = { arn = aws_acmpca_certificate_authority.this.arn }
  existing_trust_secret      = local.secret
  existing_cluster_secret    = local.secret
  existing_connection_secret = local.secret
  existing_zone              = { id = aws_route53_zone.this.zone_id }

  existing_load_balancer = {
    target_group_arn   = aws_lb_target_group.this.arn
    dns_name           = aws_lb.this.dns_name
    zone_id            = aws_lb.this.zone_id
    security_group_ids = [aws_security_group.this.id]
  }
}
"#;

#[tokio::test]
async fn what_is_made_in_the_same_run_counts_as_existing() {
    let Some(provider) = provider().await else {
        eprintln!("{SKIPPED}");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("main.tf"), SAME_RUN).unwrap();
    // Terraform copies a module outside of the directory, without the module's neighbours.
    std::os::unix::fs::symlink(workspace().join("templates"), directory.path().join("templates")).unwrap();
    let configuration = provider.open(directory.path()).await.unwrap();
    let plan = configuration.plan(&[]).await.unwrap();
    for twice in ["aws_acmpca_", "aws_kms_", "aws_secretsmanager_", "aws_lb", "aws_route53_zone"] {
        let made = plan.made().into_iter().filter(|name| name.starts_with(&format!("module.nats.{twice}")));
        assert_eq!(made.collect::<Vec<_>>(), [""; 0]);
    }
}

#[tokio::test]
async fn no_plan_deletes_a_ca_that_was_applied() {
    let Some(provider) = provider().await else {
        eprintln!("{SKIPPED}");
        return;
    };
    let configuration = provider.open(&module()).await.unwrap();
    let (required, existing) = (super::required_values(), existing());
    let applied = |index: Option<usize>| Applied {
        type_name: "aws_acmpca_certificate_authority",
        name: "this",
        index,
        attributes: json!({ "arn": CA, "id": CA, "type": "ROOT" }),
    };
    // The CA had no number before `existing_ca` was there.
    for index in [None, Some(0)] {
        let plan = configuration.plan_from(&[applied(index)], &nodes(&required, &[])).await.unwrap();
        assert_eq!(plan.actions("aws_acmpca_certificate_authority.this[0]"), &json!(["update"]), "{index:?}");
    }
    let values = nodes(&required, &[("existing_ca", existing[0].1.as_str())]);
    let said = configuration.plan_from(&[applied(Some(0))], &values).await.unwrap_err().to_string();
    assert!(said.contains("Instance cannot be destroyed"), "{said}");
}

/// The plan asks for the CA and for the zone themselves.
#[tokio::test]
async fn what_exists_must_fit_the_other_variables() {
    let Some(provider) = provider().await else {
        eprintln!("{SKIPPED}");
        return;
    };
    let configuration = provider.open(&module()).await.unwrap();
    let (required, existing) = (super::required_values(), existing());
    let of_clients = secret_of("clients");
    let clients = [("client_trust_secret_arn", &*of_clients), ("extra_agent_toml", "[trust.clients]\n")];
    let (ca, zone) = (("existing_ca", existing[0].1.as_str()), ("existing_zone", existing[5].1.as_str()));
    for (values, message) in [
        ([ca, ("short_lived_ca", "false")], "existing_ca has the mode SHORT_LIVED_CERTIFICATE"),
        ([zone, ("client_dns_name", "nats.example.com")], "existing_zone holds names below internal alone"),
        (clients, "client_trust_secret_arn writes the table [trust.clients]"),
    ] {
        let said = configuration.plan(&nodes(&required, &values)).await.unwrap_err().to_string();
        assert!(said.contains(message), "{said}");
    }
}

#[tokio::test]
async fn a_gateway_takes_a_certificate_that_exists_and_reads_each_key_of_the_document() {
    let Some(provider) = provider().await else {
        eprintln!("{SKIPPED}");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let configuration = provider.open(&module().join("examples/gateway")).await.unwrap();
    let mut values = values_of("gateway", directory.path());
    let plan = configuration.plan(&borrowed(&values)).await.unwrap();
    let new = plan.made();
    assert!(new.iter().any(|name| name.starts_with("aws_acm_certificate.")), "{new:?}");
    let definition = plan.attributes("aws_ecs_task_definition.gateway")["container_definitions"].as_str().unwrap();
    let container = serde_json::from_str::<Value>(definition).unwrap()[0].clone();
    let secret = values.iter().find(|(name, _)| name == "connection_secret_arn").unwrap().1.clone();
    let expected = super::CONNECTION_KEYS.map(|key| json!({ "name": key, "valueFrom": format!("{secret}:{key}::") }));
    assert_eq!(container["secrets"], json!(expected));
    let check = &plan.attributes("aws_lb_target_group.gateway")["health_check"][0];
    assert_eq!(check["path"], "/health");
    let alarms: BTreeSet<&str> = plan
        .made()
        .into_iter()
        .filter(|name| name.starts_with("aws_cloudwatch_metric_alarm."))
        .map(|name| plan.attributes(name)["metric_name"].as_str().unwrap())
        .collect();
    assert_eq!(alarms, ["HTTPCode_ELB_5XX_Count", "HTTPCode_Target_5XX_Count", "UnHealthyHostCount"].into());

    values.retain(|(name, _)| name != "zone_name");
    let certificate = "arn:aws:acm:eu-west-1:111122223333:certificate/1-2";
    values.push(("certificate_arn".to_owned(), certificate.to_owned()));
    let plan = configuration.plan(&borrowed(&values)).await.unwrap();
    assert_eq!(plan.attributes("aws_lb_listener.https")["certificate_arn"], certificate);
    assert!(
        plan.made().iter().all(|name| !name.starts_with("aws_acm_") && !name.starts_with("aws_route53_")),
        "{plan:?}"
    );

    values.pop();
    let said = configuration.plan(&borrowed(&values)).await.unwrap_err().to_string();
    assert!(said.contains("A new certificate needs zone_name"), "{said}");
}
