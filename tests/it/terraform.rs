//! Checks `templates/terraform`, as far as possible without AWS. Most tests need neither Terraform nor its provider.

mod plans;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::template::fill;
use harness::tools::{self, workspace};
use serde_json::{Value, json};

fn module() -> PathBuf {
    workspace().join("templates/terraform")
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = paths.filter(|path| path.extension().is_some_and(|extension| extension == "tf")).collect();
    found.sort();
    found
}

/// The syntax trees of a directory's HCL files in JSON. checkov includes the parser.
fn parsed(directory: &Path) -> Vec<Value> {
    let script = "import hcl2, json, sys; print(json.dumps([hcl2.load(open(file)) for file in sys.argv[1:]]))";
    let python = tools::checkov().unwrap().with_file_name("python");
    let output = Command::new(python).args(["-c", script]).args(files(directory)).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// All blocks of a kind with two labels, by `TYPE.NAME`.
fn blocks(files: &[Value], kind: &str) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for block in files.iter().flat_map(|file| file[kind].as_array().into_iter().flatten()) {
        for (of, named) in block.as_object().unwrap() {
            for (name, body) in named.as_object().unwrap().iter().filter(|(name, _)| !name.starts_with("__")) {
                found.insert(format!("{of}.{name}"), body.clone());
            }
        }
    }
    found
}

/// A value below a block. The parser wraps each value in a list.
fn at(block: &Value, path: &[&str]) -> Value {
    let only = |value: &Value| match value {
        Value::Array(list) if list.len() == 1 => list[0].clone(),
        other => other.clone(),
    };
    path.iter().fold(only(block), |value, key| only(&value[key]))
}

/// The names that `templatefile` replaces with values.
fn placeholders(template: &str) -> BTreeSet<String> {
    template.split("${").skip(1).filter_map(|rest| rest.split('}').next()).map(ToOwned::to_owned).collect()
}

/// Each call of `templatefile` in a source: the file, and the names of its values.
fn template_files(source: &str) -> Vec<(String, BTreeSet<String>)> {
    let calls = source.split("templatefile(\"${path.module}/").skip(1);
    calls
        .map(|call| {
            let (file, rest) = call.split_once("\", {").unwrap();
            let names = rest.split("})").next().unwrap().lines().filter_map(|line| line.split_once('='));
            (file.to_owned(), names.map(|(name, _)| name.trim().to_owned()).collect())
        })
        .collect()
}

#[test]
fn every_template_is_given_exactly_what_it_has_a_place_for() {
    let mut seen = BTreeSet::new();
    for file in files(&module()) {
        for (template, names) in template_files(&fs::read_to_string(&file).unwrap()) {
            let text = fs::read_to_string(module().join(&template)).unwrap();
            assert_eq!(names, placeholders(&text), "{} gives {template}", file.display());
            seen.insert(template.rsplit('/').next().unwrap().to_owned());
        }
    }
    let expected = [
        "cluster-secret.json",
        "node-connection-key.json",
        "node-connection.json",
        "node-included-secrets.json",
        "node-own-key.json",
        "node.json",
        "user-data.yaml",
    ];
    assert_eq!(seen, expected.map(str::to_owned).into());
}

/// The test needs Terraform. `cargo xtask setup` reports a missing Terraform.
#[test]
fn terraform_finds_the_format_its_own() {
    let Some(terraform) = tools::terraform() else {
        eprintln!("SKIPPED: Terraform isn't installed");
        return;
    };
    let output = command(terraform).args(["fmt", "-check", "-diff", "-recursive"]).arg(module()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Other tests fill the templates themselves. This test shows that a node gets the same text from Terraform.
#[test]
fn terraforms_templatefile_makes_of_the_templates_what_the_tests_make_of_them() {
    let Some(terraform) = tools::terraform() else {
        eprintln!("SKIPPED: Terraform isn't installed");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    for template in [
        "iam/node.json",
        "iam/node-own-key.json",
        "iam/node-included-secrets.json",
        "iam/node-connection.json",
        "iam/node-connection-key.json",
        "iam/cluster-secret.json",
        "user-data/user-data.yaml",
    ] {
        let path = workspace().join("templates").join(template);
        let text = fs::read_to_string(&path).unwrap();
        let values: BTreeMap<String, String> =
            placeholders(&text).into_iter().map(|name| (name.clone(), format!("<{name}>\"é"))).collect();
        let expression = format!(
            "base64encode(templatefile({}, {}))\n",
            json!(path.to_str().unwrap()),
            serde_json::to_string(&values).unwrap()
        );
        let mut console = command(terraform.clone());
        let mut child = console
            .arg("console")
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(expression.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{template}");
        let said = String::from_utf8(output.stdout).unwrap();
        let encoded = said.lines().last().unwrap().trim_matches('"');
        let pairs: Vec<(&str, &str)> = values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(decode(encoded), fill(&text, &pairs).unwrap(), "{template}");
    }
}

/// A Terraform command without this machine's configuration.
fn command(terraform: PathBuf) -> Command {
    let mut command = Command::new(terraform);
    command.env("TF_CLI_CONFIG_FILE", "/dev/null").env("CHECKPOINT_DISABLE", "1");
    command
}

fn decode(base64: &str) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    for group in base64.trim_end_matches('=').as_bytes().chunks(4) {
        let value = |digit: &u8| u32::try_from(digits.iter().position(|known| known == digit).unwrap()).unwrap();
        let bits = group.iter().enumerate().fold(0, |bits, (at, digit)| bits | (value(digit) << (18 - 6 * at)));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn checkov_finds_nothing_that_is_not_explained() {
    let mut checkov = Command::new(tools::checkov().unwrap());
    checkov.args(["--framework", "terraform", "--quiet", "--compact", "--skip-download", "--output", "json"]);
    let output = checkov.arg("--directory").arg(module()).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&report["summary"]["failed"], &report["summary"]["parsing_errors"]), (&json!(0), &json!(0)));
    assert!(report["summary"]["passed"].as_u64().unwrap() > 50, "{}", report["summary"]);
    for directory in ["", "examples/complete", "examples/gateway", "modules/client"].map(|part| module().join(part)) {
        for file in files(&directory) {
            for line in fs::read_to_string(&file).unwrap().lines() {
                if let Some((_, skip)) = line.split_once("#checkov:skip=") {
                    let reason = skip.split_once(':').map_or("", |(_, reason)| reason);
                    assert!(reason.len() > 30 && reason.ends_with('.'), "{}: {line}", file.display());
                }
            }
        }
    }
}

#[test]
fn routes_come_from_the_group_alone_and_nothing_is_open_to_everyone() {
    let resources = blocks(&parsed(&module()), "resource");
    let rules = |direction: &str| {
        let prefix = format!("aws_vpc_security_group_{direction}_rule.");
        resources
            .iter()
            .filter(move |(name, _)| name.starts_with(&prefix))
            .map(|(_, rule)| rule.clone())
            .collect::<Vec<_>>()
    };
    let (node, balancer) = (json!("${aws_security_group.node.id}"), json!("${aws_security_group.clients[0].id}"));
    // The characters that EC2 allows in a description
    // (<https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_SecurityGroupRuleDescription.html>).
    let is_fit = |c: char| c.is_ascii_alphanumeric() || " ._-:/()#,@[]+=&;{}!$*".contains(c);
    let mut ports = BTreeSet::new();
    for rule in rules("ingress").into_iter().chain(rules("egress")) {
        let (from, to) = (at(&rule, &["from_port"]), at(&rule, &["to_port"]));
        assert_eq!((&from, at(&rule, &["ip_protocol"])), (&to, json!("tcp")));
        ports.insert(from.as_u64().unwrap());
        let description = at(&rule, &["description"]);
        assert!(description.as_str().unwrap().chars().all(is_fit), "{description}");
        if from == json!(6222) {
            assert_eq!(at(&rule, &["security_group_id"]), node);
            assert_eq!(at(&rule, &["referenced_security_group_id"]), node);
        }
    }
    assert_eq!(ports, [443, 4222, 6222, 9464].into());
    assert!(rules("ingress").iter().all(|rule| at(rule, &["from_port"]) != json!(443)));
    let of_balancer: Vec<_> =
        rules("egress").into_iter().filter(|rule| at(rule, &["security_group_id"]) == balancer).collect();
    assert_eq!(of_balancer.len(), 1, "{of_balancer:?}");
    assert_eq!(at(&of_balancer[0], &["referenced_security_group_id"]), node);
    for name in ["node", "clients"] {
        let group = &resources[&format!("aws_security_group.{name}")];
        assert!(group["ingress"].is_null() && group["egress"].is_null(), "{name} has inline rules");
    }
    for variable in ["client_cidr_blocks", "client_security_group_ids", "metrics_security_group_ids"] {
        assert_eq!(variables()[variable]["default"], json!([[]]), "{variable}: the default lets somebody connect");
    }
}

fn variables() -> BTreeMap<String, Value> {
    variables_of(&module())
}

fn variables_of(directory: &Path) -> BTreeMap<String, Value> {
    let files = parsed(directory);
    let blocks = files.iter().flat_map(|file| file["variable"].as_array().into_iter().flatten());
    blocks.flat_map(|block| block.as_object().unwrap().clone()).collect()
}

/// The ARN of a secret.
const SECRET: &str = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:nats/accounts-AbCdEf";

/// The secrets that the nodes include are the secrets that they may read. Terraform may be absent, so the expressions
/// themselves are compared.
#[test]
fn the_secrets_that_user_data_includes_are_those_that_the_role_may_read() {
    let resources = blocks(&parsed(&module()), "resource");
    let policy = &resources["aws_iam_role_policy.included_secrets"];
    assert_eq!(at(policy, &["count"]), json!("${length(var.included_secret_arns) > 0 ? 1 : 0}"));
    let text = at(policy, &["policy"]).to_string();
    assert!(
        text.contains("node-included-secrets.json") && text.contains("jsonencode(var.included_secret_arns)"),
        "{text}"
    );
    let nodes = fs::read_to_string(module().join("nodes.tf")).unwrap();
    let include = nodes.lines().find_map(|line| line.trim().strip_prefix("nats_include")).unwrap();
    assert!(include.contains("formatlist(\"secret:%s\", var.included_secret_arns)"), "{include}");

    let keys = &resources["aws_iam_role_policy.included_secret_keys"];
    assert_eq!(at(keys, &["count"]), json!("${length(var.included_secret_key_arns)}"));
    let text = at(keys, &["policy"]).to_string();
    assert!(text.contains("node-own-key.json") && text.contains("var.included_secret_key_arns[count.index]"), "{text}");
    for variable in ["included_secret_arns", "included_secret_key_arns"] {
        assert_eq!(variables()[variable]["default"], json!([[]]));
    }
}

/// The agent's credentials of the system account are a secret that the role may read, and a key of `[nats]`.
#[test]
fn the_secret_of_the_system_account_is_read_by_the_role_and_named_by_agent_toml() {
    let resources = blocks(&parsed(&module()), "resource");
    let policy = &resources["aws_iam_role_policy.system_secret"];
    assert_eq!(at(policy, &["count"]), json!("${var.system_secret_arn == \"\" ? 0 : 1}"));
    let text = at(policy, &["policy"]).to_string();
    assert!(text.contains("node-included-secrets.json") && text.contains("var.system_secret_arn"), "{text}");
    assert_eq!(variables()["system_secret_arn"]["default"], json!([""]));

    let nodes = fs::read_to_string(module().join("nodes.tf")).unwrap();
    let (_, key) = nodes.split_once("system_key = var.system_secret_arn == \"\" ? \"\" : \"").unwrap();
    let (key, _) = key.split_once("\"\n").unwrap();
    let key = key.replace("\\\"", "\"").replace("\\n", "\n").replace("${var.system_secret_arn}", SECRET);
    let read: toml::Table = toml::from_str(&format!("[nats]\n{key}client_auth = \"none\"\n")).unwrap();
    assert_eq!(read["nats"]["system"]["secret_id"].as_str(), Some(SECRET));
    assert!(
        nodes.contains(
            "base64encode(\"${local.system_key}${var.extra_agent_toml}${local.clients_table}${local.connection_table}${local.metrics_table}\")"
        ),
        "{nodes}"
    );
}

/// The secret of the connection document is written by the role, and is a table of its own after the keys of `[nats]`.
#[test]
fn the_secret_of_the_connection_document_is_kept_by_the_role_and_named_by_agent_toml() {
    let resources = blocks(&parsed(&module()), "resource");
    for (resource, count, file) in [
        ("connection", "${local.keeps_connection ? 1 : 0}", "node-connection.json"),
        ("connection_key", "${length(local.connection_key_arns)}", "node-connection-key.json"),
    ] {
        let policy = &resources[&format!("aws_iam_role_policy.{resource}")];
        assert_eq!(at(policy, &["count"]), json!(count));
        assert!(at(policy, &["policy"]).to_string().contains(file), "{policy}");
    }
    assert_eq!(variables()["connection_document"]["default"], json!([false]));
    assert!(resources.keys().all(|name| name != "aws_secretsmanager_secret_version.connection"), "the nodes write it");

    let nodes = fs::read_to_string(module().join("nodes.tf")).unwrap();
    let (_, table) = nodes.split_once("connection_table = local.keeps_connection ? \"").unwrap();
    let (table, _) = table.split_once("\" : \"\"\n").unwrap();
    let table = table.replace("\\\"", "\"").replace("\\n", "\n");
    let table = table.replace("${local.connection_secret_arn}", SECRET);
    let read: toml::Table = toml::from_str(&format!("[nats]\nclient_auth = \"tls\"{table}")).unwrap();
    assert_eq!(read["connection"]["secret_id"].as_str(), Some(SECRET));
}

/// The pattern of the variable's validation is tried here, as Terraform may be absent.
#[test]
fn an_included_secret_is_named_by_its_whole_arn() {
    let text = fs::read_to_string(module().join("variables.tf")).unwrap();
    let (_, pattern) = text.split_once("secret_arn = \"").unwrap();
    let (pattern, _) = pattern.split_once('"').unwrap();
    let (_, variable) = text.split_once("variable \"included_secret_arns\"").unwrap();
    assert!(variable.split("variable \"").next().unwrap().contains("can(regex(local.secret_arn, arn))"), "{variable}");
    let script = "import re, sys; sys.exit(0 if re.search(sys.argv[1], sys.argv[2]) else 1)";
    let fits = |arn: &str| {
        let python = tools::checkov().unwrap().with_file_name("python");
        Command::new(python).args(["-c", script, pattern, arn]).status().unwrap().success()
    };
    assert!(fits(SECRET) && fits(&SECRET.replace("arn:aws:", "arn:aws-us-gov:")));
    for wrong in ["nats/accounts", &SECRET.replace("-AbCdEf", ""), &SECRET.replace("secretsmanager", "ssm")] {
        assert!(!fits(wrong), "{wrong}");
    }
    assert!(!fits(&format!("{SECRET}\"")) && !fits(&SECRET.replace("accounts", "*")));
}

/// A value for each variable without a default.
fn required_values() -> Vec<(&'static str, String)> {
    let digest = "a".repeat(64);
    let values = [
        ("vpc_id", "vpc-1"),
        ("subnet_ids", r#"["subnet-1"]"#),
        ("ami_id", "ami-1"),
        ("nats_server_url", "https://example.com/nats-server-v2.12.8-linux-amd64.tar.gz"),
        ("nats_server_sha256", &digest),
        ("agent_url", "https://example.com/nats-tls-agent.rpm?versionId=1"),
        ("agent_sha256", &digest),
    ];
    values.map(|(name, value)| (name, value.to_owned())).into()
}

/// The variables need no provider, so Terraform can plan them without the provider.
#[test]
fn what_could_not_work_is_refused_by_its_variable() {
    let Some(terraform) = tools::terraform() else {
        eprintln!("SKIPPED: Terraform isn't installed");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    fs::copy(module().join("variables.tf"), directory.path().join("variables.tf")).unwrap();
    let plan = |values: &[(&str, &str)]| {
        let required = required_values();
        let required = required.iter().map(|(name, value)| (*name, value.as_str()));
        let mut plan = command(terraform.clone());
        plan.args(["plan", "-no-color", "-input=false"]).current_dir(directory.path());
        plan.args(required.chain(values.iter().copied()).map(|(name, value)| format!("-var={name}={value}")));
        let output = plan.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        // Terraform draws a frame around messages and wraps their lines.
        let words = String::from_utf8(said).unwrap().replace('│', " ");
        (output.status.success(), words.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    for fine in [
        &[][..],
        &[("certificate_validity", "168h"), ("size", "5")],
        &[("certificate_validity", "30d"), ("short_lived_ca", "false"), ("client_cidr_blocks", r#"["10.0.0.0/8"]"#)],
        &[
            ("included_secret_arns", &format!("[\"{SECRET}\"]")),
            ("included_secret_key_arns", r#"["arn:aws:kms:eu-west-1:111122223333:key/1-2"]"#),
            ("system_secret_arn", SECRET),
            ("client_trust_secret_arn", SECRET),
        ],
        &[("metrics_security_group_ids", r#"["sg-1"]"#), ("existing_ca", "null")],
    ] {
        let (passed, said) = plan(fine);
        assert!(passed, "{fine:?}: {said}");
    }
    for (name, value, message) in [
        ("certificate_validity", "8d", "short-lived mode issues certificates of 7 days at most"),
        ("certificate_validity", "169h", "short-lived mode issues certificates of 7 days at most"),
        ("certificate_validity", "a week", "for instance \"12h\" or \"7d\""),
        ("client_cidr_blocks", r#"["0.0.0.0/0"]"#, "not the whole internet"),
        ("size", "2.5", "a whole number from 1 to 50"),
        ("name", "Nats", "begins with a letter"),
        ("client_dns_name", "nats", "a host name of two labels or more"),
        ("agent_url", "https://example.com/agent.tar.gz", "the HTTPS URL of a .deb or .rpm"),
        ("agent_url", "https://example.com/a'b.deb", "the HTTPS URL of a .deb or .rpm"),
        ("agent_url", "http://example.com/agent.deb", "nodes connect to no other"),
        ("nats_server_url", "http://example.com/nats-server.tar.gz", "nodes connect to no other"),
        ("nats_server_url", "https://example.com:8443/nats-server.tar.gz", "nodes connect to no other"),
        ("agent_sha256", "abc", "64 hexadecimal digits"),
        ("addresses", "auto", "\"dns\" or \"ec2\""),
        ("subnet_ids", r#"["a", "a"]"#, "none twice"),
        ("included_secret_arns", r#"["nats/accounts"]"#, "whole ARNs of secrets"),
        ("included_secret_arns", &format!("[\"{SECRET}\", \"{SECRET}\"]"), "no secret twice"),
        ("included_secret_key_arns", r#"["alias/nats"]"#, "and not of aliases"),
        ("system_secret_arn", "nats/system", "the whole ARN of a secret"),
        ("client_trust_secret_arn", "nats/clients", "the whole ARN of a secret"),
        ("metrics_security_group_ids", r#"["10.0.0.0/8"]"#, "ids of security groups"),
        ("existing_ca", r#"{arn = "nats"}"#, "the ARN of a private CA"),
        ("existing_trust_secret", r#"{arn = "nats/trust"}"#, "the whole ARN of a secret"),
        (
            "existing_cluster_secret",
            &format!("{{arn = \"{SECRET}\", key_arns = [\"alias/nats\"]}}"),
            "and not of aliases",
        ),
        ("existing_connection_secret", r#"{arn = "nats/connection"}"#, "the whole ARN of a secret"),
        ("existing_zone", r#"{id = "nats.internal"}"#, "the id of a hosted zone"),
        (
            "existing_load_balancer",
            r#"{target_group_arn = "nats", dns_name = "nats", zone_id = "Z1"}"#,
            "the ARN of a target group",
        ),
    ] {
        let (passed, said) = plan(&[(name, value)]);
        assert!(!passed && said.contains(message), "{name} = {value}: {said}");
    }
}

#[test]
fn a_node_has_imdsv2_resource_names_and_an_encrypted_disk() {
    let resources = blocks(&parsed(&module()), "resource");
    let template = &resources["aws_launch_template.node"];
    let metadata = at(template, &["metadata_options"]);
    assert_eq!(at(&metadata, &["http_tokens"]), json!("required"));
    assert_eq!(at(&metadata, &["http_put_response_hop_limit"]), json!(1));
    let names = at(template, &["private_dns_name_options"]);
    assert_eq!(at(&names, &["enable_resource_name_dns_a_record"]), json!(true));
    assert_eq!(at(template, &["block_device_mappings", "ebs", "encrypted"]), json!(true));
}

/// Without the setting, each plan fails once the image is deprecated.
#[test]
fn an_image_that_aws_deprecates_is_found_all_the_same() {
    let images = blocks(&parsed(&module()), "data");
    assert_eq!(at(&images["aws_ami.node"], &["include_deprecated"]), json!(true));
}

#[test]
fn nodes_are_replaced_one_at_a_time_and_nothing_waits_for_a_hook() {
    let resources = blocks(&parsed(&module()), "resource");
    let group = &resources["aws_autoscaling_group.node"];
    let preferences = at(group, &["instance_refresh", "preferences"]);
    assert_eq!(at(&preferences, &["min_healthy_percentage"]), json!(100));
    assert_eq!(at(&preferences, &["auto_rollback"]), json!(true));
    assert!(group["initial_lifecycle_hook"].is_null());
    assert!(resources.keys().all(|name| !name.starts_with("aws_autoscaling_lifecycle_hook")));
}

/// The group terminates a node that the load balancer finds unhealthy. A draining or rebooting server keeps its port
/// closed for some time.
#[test]
fn a_node_that_restarts_or_reboots_is_not_taken_for_dead() {
    let drop_in = workspace().join("systemd/nats-server.service.d/50-nats-tls-agent.conf");
    let drop_in = fs::read_to_string(drop_in).unwrap();
    let drain = drop_in.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
    let drain: u64 = drain.parse().unwrap();
    let boot = 120;
    let resources = blocks(&parsed(&module()), "resource");
    let check = at(&resources["aws_lb_target_group.clients"], &["health_check"]);
    let number = |key: &str| at(&check, &[key]).as_u64().unwrap();
    assert!(number("interval") * number("unhealthy_threshold") > drain + boot, "{check}");
    assert!(number("unhealthy_threshold") <= 10, "a load balancer accepts 10 at most");
}

/// A node that starts before its permissions exist reports a fault. A node must keep its permissions until its end.
#[test]
fn no_node_is_there_without_its_permissions_and_its_rules() {
    let resources = blocks(&parsed(&module()), "resource");
    let waited_for = at(&resources["aws_autoscaling_group.node"], &["depends_on"]).to_string();
    let node = json!("${aws_security_group.node.id}");
    for (name, resource) in &resources {
        let is_rule_of_nodes =
            name.starts_with("aws_vpc_security_group_") && at(resource, &["security_group_id"]) == node;
        if is_rule_of_nodes || name.starts_with("aws_iam_role_policy") {
            assert!(waited_for.contains(&format!("{name}}}")), "{name} isn't in {waited_for}");
        }
    }
}

#[test]
fn no_plan_deletes_the_ca_that_the_nodes_have_their_certificates_of() {
    let resources = blocks(&parsed(&module()), "resource");
    let lifecycle = at(&resources["aws_acmpca_certificate_authority.this"], &["lifecycle"]);
    assert_eq!(at(&lifecycle, &["prevent_destroy"]), json!(true));
}

#[test]
fn clients_reach_a_balancer_inside_that_passes_tls_through() {
    let resources = blocks(&parsed(&module()), "resource");
    let balancer = &resources["aws_lb.clients"];
    assert_eq!(at(balancer, &["internal"]), json!(true));
    assert_eq!(at(balancer, &["load_balancer_type"]), json!("network"));
    for (name, key) in [("aws_lb_listener.clients", "port"), ("aws_lb_target_group.clients", "port")] {
        assert_eq!((at(&resources[name], &["protocol"]), at(&resources[name], &[key])), (json!("TCP"), json!(4222)));
    }
    assert_eq!(variables()["deletion_protection"]["default"], json!([true]));
    assert_eq!(variables()["short_lived_ca"]["default"], json!([true]));
}

/// A node holds its streams, so nothing but a person, a broken machine or a refresh removes a node.
#[test]
fn no_shrinking_and_no_closed_port_removes_a_node_and_its_streams() {
    let variables = variables();
    assert_eq!(variables["health_check_type"]["default"], json!(["EC2"]));
    assert_eq!(variables["scale_in_protection"]["default"], json!([true]));
    let resources = blocks(&parsed(&module()), "resource");
    let group = &resources["aws_autoscaling_group.node"];
    assert_eq!(at(group, &["health_check_type"]), json!("${var.health_check_type}"));
    assert_eq!(at(group, &["protect_from_scale_in"]), json!("${var.scale_in_protection}"));
    // A refresh would pass protected nodes over.
    let preferences = at(group, &["instance_refresh", "preferences"]);
    assert_eq!(at(&preferences, &["scale_in_protected_instances"]), json!("Refresh"));
}

/// The keys of the connection document that a container gets, with the names of its variables.
const CONNECTION_KEYS: [&str; 4] = ["NATS_URL", "NATS_CA", "NATS_TLS_REQUIRED", "NATS_CLIENT_CERT"];

/// Expressions of the service's module that need no provider, evaluated by Terraform: the policies and the container.
fn client_expressions(terraform: &Path, key: &str) -> Vec<Value> {
    let directory = tempfile::tempdir().unwrap();
    let main = fs::read_to_string(module().join("modules/client/main.tf")).unwrap();
    let (locals, _) = main.split_once("resource \"").unwrap();
    let locals = locals.replace("data.aws_region.current.region", "\"eu-west-1\"");
    fs::write(directory.path().join("main.tf"), locals).unwrap();
    fs::copy(module().join("modules/client/variables.tf"), directory.path().join("variables.tf")).unwrap();
    let outputs = fs::read_to_string(module().join("modules/client/outputs.tf")).unwrap();
    let expression = |text: &str, before: &str, after: &str| {
        let (_, rest) = text.split_once(before).unwrap();
        let (expression, _) = rest.split_once(after).unwrap();
        expression.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let statements = expression(&main, "    Statement = ", "\n  })");
    let secrets = expression(&outputs, "    secrets = ", "\n  }");
    [statements, secrets]
        .map(|expression| {
            let mut console = command(terraform.to_owned());
            console.arg("console").current_dir(directory.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
            let values = [
                ("role_name", "orders"),
                ("connection_secret_arn", SECRET),
                ("connection_secret_key_arn", key),
                ("client_security_group_id", "sg-1"),
                ("server_security_group_ids", r#"["sg-2"]"#),
            ];
            console.args(values.map(|(name, value)| format!("-var={name}={value}")));
            let mut child = console.spawn().unwrap();
            child
                .stdin
                .take()
                .unwrap()
                .write_all(format!("base64encode(jsonencode({expression}))\n").as_bytes())
                .unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{expression}");
            let said = String::from_utf8(output.stdout).unwrap();
            let encoded = said.lines().last().unwrap().trim_matches('"');
            serde_json::from_str(&decode(encoded)).unwrap()
        })
        .to_vec()
}

#[test]
fn a_service_reads_the_connection_document_and_nothing_else_and_its_container_gets_each_key() {
    let Some(terraform) = tools::terraform() else {
        eprintln!("SKIPPED: Terraform isn't installed");
        return;
    };
    let key = "arn:aws:kms:eu-west-1:111122223333:key/1-2";
    let read = json!({
        "Sid": "ReadConnectionDocument", "Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": SECRET
    });
    let decrypt = json!({
        "Sid": "DecryptConnectionDocument", "Effect": "Allow", "Action": "kms:Decrypt", "Resource": key,
        "Condition": { "StringEquals": { "kms:ViaService": "secretsmanager.eu-west-1.amazonaws.com" } }
    });
    let container = CONNECTION_KEYS.map(|key| json!({ "name": key, "valueFrom": format!("{SECRET}:{key}::") }));
    assert_eq!(client_expressions(&terraform, key), [json!([read.clone(), decrypt]), json!(container.clone())]);
    // The key aws/secretsmanager needs no permission.
    assert_eq!(client_expressions(&terraform, ""), [json!([read]), json!(container)]);
}

/// Terraform may be absent, so the expressions themselves are compared.
#[test]
fn a_service_reaches_the_nodes_and_the_balancer_on_the_client_port_alone() {
    let files = parsed(&module().join("modules/client"));
    let resources = blocks(&files, "resource");
    let servers = json!("${var.server_security_group_ids[count.index]}");
    let service = json!("${var.client_security_group_id}");
    for (name, of, to) in [("ingress", &servers, &service), ("egress", &service, &servers)] {
        let rule = &resources[&format!("aws_vpc_security_group_{name}_rule.client")];
        assert_eq!(
            (&at(rule, &["security_group_id"]), &at(rule, &["referenced_security_group_id"])),
            (of, to),
            "{name}"
        );
        for port in ["from_port", "to_port"] {
            assert_eq!(at(rule, &[port]), json!("${var.port}"), "{name}");
        }
    }
    assert_eq!(resources.len(), 3, "{:?}", resources.keys());
    let policy = at(&resources["aws_iam_role_policy.connection"], &["policy"]).to_string();
    assert!(["local.read_document", "local.decrypt_document"].iter().all(|part| policy.contains(part)), "{policy}");
    let keys = files.iter().find_map(|file| file["locals"].as_array()).unwrap();
    assert_eq!(at(&keys[0], &["keys"]), json!(CONNECTION_KEYS));
    let variables = variables_of(&module().join("modules/client"));
    assert_eq!(variables["port"]["default"], json!([4222]));
    assert_eq!(variables["connection_secret_key_arn"]["default"], json!([""]));
}
