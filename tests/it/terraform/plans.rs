//! `terraform validate` and `terraform plan` with the schema of hashicorp/aws. The provider itself is a double, which reaches no AWS.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use harness::terraform::{AwsProvider, Plan};
use harness::tools;
use serde_json::{Value, json};

use super::{SECRET, decode, module};

const KEY: &str = "arn:aws:kms:eu-west-1:111122223333:key/1-2";
const CA: &str = "arn:aws:acm-pca:eu-west-1:111122223333:certificate-authority/1-2";
const TARGET_GROUP: &str = "arn:aws:elasticloadbalancing:eu-west-1:111122223333:targetgroup/nats/0123456789abcdef";

/// The double, or `None` where Terraform isn't installed.
async fn provider() -> Option<AwsProvider> {
    let Some(terraform) = tools::terraform() else {
        eprintln!("SKIPPED: Terraform isn't installed");
        return None;
    };
    Some(AwsProvider::start(terraform, &module()).await.unwrap())
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
    let Some(provider) = provider().await else { return };
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
    let Some(provider) = provider().await else { return };
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

/// The modules' plan with values, and what the plan makes.
fn made(plan: &Plan) -> BTreeSet<String> {
    plan.made().into_iter().map(ToOwned::to_owned).collect()
}

fn named(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// agent.toml as a node's user data has it, the part of the template and the part of the variables.
fn agent_toml(plan: &Plan) -> toml::Table {
    let template = plan.attributes("aws_launch_template.node");
    let user_data = decode(template["user_data"].as_str().unwrap());
    let (_, rest) = user_data.split_once("/agent.toml\n").unwrap();
    let (_, rest) = rest.split_once("content: |\n").unwrap();
    let lines = rest.lines().take_while(|line| !line.trim_start().starts_with("- path:") && !line.starts_with("  #"));
    let (_, extra) = user_data.split_once("/extra.toml\n").unwrap();
    let (_, extra) = extra.split_once("content: \"").unwrap();
    let (extra, _) = extra.split_once('"').unwrap();
    let text = lines.map(str::trim_start).chain([decode(extra).as_str()]).collect::<Vec<_>>().join("\n");
    text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[tokio::test]
async fn what_exists_is_not_made_again() {
    let Some(provider) = provider().await else { return };
    let configuration = provider.open(&module()).await.unwrap();
    let required = super::required_values();
    let plan = async |values: &[(&str, &str)]| {
        let values: Vec<_> =
            required.iter().map(|(name, value)| (*name, value.as_str())).chain(values.iter().copied()).collect();
        configuration.plan(&values).await
    };
    let secret = |name: &str, keys: &str| format!("{{arn = \"{}\", key_arns = [{keys}]}}", secret_of(name));
    let key = format!("\"{KEY}\"");
    let ca = format!("{{arn = \"{CA}\"}}");
    let balancer = format!(
        "{{target_group_arn = \"{TARGET_GROUP}\", dns_name = \"nats.elb.eu-west-1.amazonaws.com\", zone_id = \"Z2IFOLAFXWLO4F\", security_group_ids = [\"sg-2\"]}}"
    );
    let zone = "{id = \"Z0123456789ABCDEFGHIJ\"}";

    let document = ("connection_document", "true");
    let all = made(&plan(&[document]).await.unwrap());
    println!("nodes: {} to add", all.len());
    let (trust, cluster, connection) = (secret("trust", ""), secret("cluster", &key), secret("connection", &key));
    for (variable, value, gone, added) in [
        (
            "existing_ca",
            ca.as_str(),
            named(&[
                "aws_acmpca_certificate.root[0]",
                "aws_acmpca_certificate_authority.this[0]",
                "aws_acmpca_certificate_authority_certificate.this[0]",
            ]),
            named(&[]),
        ),
        (
            "existing_trust_secret",
            &trust,
            named(&["aws_secretsmanager_secret.trust[0]", "aws_secretsmanager_secret_version.trust[0]"]),
            named(&[]),
        ),
        (
            "existing_cluster_secret",
            &cluster,
            named(&[
                "aws_cloudformation_stack.cluster_credential[0]",
                "aws_secretsmanager_secret_policy.cluster_credential[0]",
            ]),
            named(&["aws_iam_role_policy.existing_keys[0]"]),
        ),
        (
            "existing_connection_secret",
            &connection,
            named(&["aws_secretsmanager_secret.connection[0]"]),
            named(&["aws_iam_role_policy.existing_keys[0]"]),
        ),
        (
            "existing_load_balancer",
            &balancer,
            named(&[
                "aws_lb.clients[0]",
                "aws_lb_listener.clients[0]",
                "aws_lb_target_group.clients[0]",
                "aws_security_group.clients[0]",
                "aws_vpc_security_group_egress_rule.to_nodes[0]",
            ]),
            named(&[]),
        ),
        ("existing_zone", zone, named(&["aws_route53_zone.clients[0]"]), named(&[])),
    ] {
        let found = made(&plan(&[document, (variable, value)]).await.unwrap());
        assert_eq!(all.difference(&found).cloned().collect::<BTreeSet<_>>(), gone, "{variable}");
        assert_eq!(found.difference(&all).cloned().collect::<BTreeSet<_>>(), added, "{variable}");
    }

    // The trust bundle has the root above an existing CA, and not the CA itself.
    let bundle = plan(&[("existing_ca", &ca)]).await.unwrap();
    let bundle = bundle.attributes("aws_secretsmanager_secret_version.trust[0]")["secret_string"].clone();
    assert_eq!(bundle, "-----BEGIN CERTIFICATE-----\nUk9PVA==\n-----END CERTIFICATE-----\n");

    // With everything at once, the plan knows all values, so what the nodes get is compared.
    let plan_of_all = plan(&[
        ("existing_ca", &ca),
        ("existing_trust_secret", &trust),
        ("existing_cluster_secret", &cluster),
        ("existing_connection_secret", &connection),
        ("existing_load_balancer", &balancer),
        ("existing_zone", zone),
        ("metrics_security_group_ids", "[\"sg-3\"]"),
    ])
    .await
    .unwrap();
    let found = made(&plan_of_all);
    assert!(found.iter().all(|name| !name.starts_with("aws_kms_key")), "a key without a secret: {found:?}");
    let toml = agent_toml(&plan_of_all);
    let text = |table: &str, key: &str| toml[table][key].as_str().map(ToOwned::to_owned);
    assert_eq!(text("issuer", "ca_arn").as_deref(), Some(CA));
    assert_eq!(text("trust", "secret_id"), Some(secret_of("trust")));
    assert_eq!(text("nats", "cluster_secret_id"), Some(secret_of("cluster")));
    assert_eq!(text("connection", "secret_id"), Some(secret_of("connection")));
    assert_eq!(text("metrics", "listen").as_deref(), Some("0.0.0.0:9464"));
    let rule = plan_of_all.attributes("aws_vpc_security_group_ingress_rule.metrics[0]");
    assert_eq!((&rule["referenced_security_group_id"], &rule["from_port"]), (&json!("sg-3"), &json!(9464)));
    let rule = plan_of_all.attributes("aws_vpc_security_group_ingress_rule.from_load_balancer[0]");
    assert_eq!(rule["referenced_security_group_id"], "sg-2");
    assert_eq!(plan_of_all.attributes("aws_autoscaling_group.node")["target_group_arns"], json!([TARGET_GROUP]));
    let policy = plan_of_all.attributes("aws_iam_role_policy.agent")["policy"].as_str().unwrap().to_owned();
    assert!([CA, &secret_of("trust"), &secret_of("cluster")].iter().all(|arn| policy.contains(arn)), "{policy}");
    for policy in ["connection_key[0]", "existing_keys[0]", "existing_keys[1]"] {
        let policy = plan_of_all.attributes(&format!("aws_iam_role_policy.{policy}"));
        let policy: Value = serde_json::from_str(policy["policy"].as_str().unwrap()).unwrap();
        assert_eq!(policy["Statement"][0]["Resource"], KEY);
    }
    let record = plan_of_all.attributes("aws_route53_record.clients");
    assert_eq!(
        (&record["zone_id"], &record["alias"][0]["zone_id"]),
        (&json!("Z0123456789ABCDEFGHIJ"), &json!("Z2IFOLAFXWLO4F"))
    );

    // What the CA and the zone say is compared with the variables.
    for (values, message) in [
        (
            [("existing_ca", ca.as_str()), ("short_lived_ca", "false")],
            "existing_ca has the mode SHORT_LIVED_CERTIFICATE",
        ),
        (
            [("existing_zone", zone), ("client_dns_name", "nats.example.com")],
            "existing_zone holds names below internal alone",
        ),
    ] {
        let said = plan(&values).await.unwrap_err().to_string();
        assert!(said.contains(message), "{said}");
    }
}

/// The ARN of a secret by its name.
fn secret_of(name: &str) -> String {
    SECRET.replace("accounts", name)
}

#[tokio::test]
async fn a_gateway_takes_a_certificate_that_exists_and_reads_each_key_of_the_document() {
    let Some(provider) = provider().await else { return };
    let directory = tempfile::tempdir().unwrap();
    let configuration = provider.open(&module().join("examples/gateway")).await.unwrap();
    let mut values = values_of("gateway", directory.path());
    let plan = configuration.plan(&borrowed(&values)).await.unwrap();
    let new = made(&plan);
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
