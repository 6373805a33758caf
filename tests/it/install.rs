//! The installation by hand of docs/install.md, run by the AWS command line against moto.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;

use harness::moto::{Moto, REGION};
use harness::tools::{self, workspace};
use serde_json::Value;
use tokio::process::Command;

/// The document's placeholders for its reader, and their values in this test.
const READERS: [(&str, &str); 2] = [
    (
        "nats_server_url=https://… nats_server_sha256=… agent_url=https://… agent_sha256=…",
        "nats_server_url=https://example.com/nats-server.tar.gz nats_server_sha256=00 agent_url=https://example.com/agent.deb agent_sha256=01",
    ),
    ("subnet-0123456789abcdef0,subnet-0123456789abcdef1,subnet-0123456789abcdef2", "$subnets"),
];

/// moto's own network takes the place of the reader's network.
const NETWORK: &str = "\
vpc_id=$(aws ec2 describe-vpcs --query 'Vpcs[0].VpcId' --output text)
subnets=$(aws ec2 describe-subnets --query 'Subnets[:3].SubnetId' --output text | tr '\\t' ,)
ami_id=$(aws ec2 describe-images --query 'Images[0].ImageId' --output text)
";

/// The shell's blocks under "By hand".
fn by_hand() -> String {
    let document = fs::read_to_string(workspace().join("docs/install.md")).unwrap();
    let (_, section) = document.split_once("\n## By hand\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let mut script: String = blocks.collect();
    for (readers, ours) in READERS {
        assert!(script.contains(readers), "docs/install.md no longer has {readers:?}");
        script = script.replace(readers, ours);
    }
    script
}

struct Account {
    moto: Moto,
    directory: tempfile::TempDir,
}

impl Account {
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let path = std::env::var("PATH").unwrap();
        let aws = tools::aws().unwrap();
        let mut command = Command::new(program);
        command
            .current_dir(self.directory.path())
            .env("PATH", format!("{}:{path}", aws.parent().unwrap().display()))
            .env("AWS_ENDPOINT_URL", self.moto.endpoint())
            .env("AWS_DEFAULT_REGION", REGION)
            .env("AWS_ACCESS_KEY_ID", "testing")
            .env("AWS_SECRET_ACCESS_KEY", "testing")
            .env("AWS_PAGER", "")
            // The script starts a large program twenty times, so its bytecode is kept.
            .env_remove("PYTHONDONTWRITEBYTECODE")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn aws(&self, arguments: &str) -> Value {
        let output = self.command("aws").args(arguments.split(' ')).output().await.unwrap();
        assert!(output.status.success(), "aws {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[tokio::test]
async fn the_installation_by_hand_makes_all_that_a_cluster_needs() {
    let account = Account { moto: Moto::start().await.unwrap(), directory: tempfile::tempdir().unwrap() };
    std::os::unix::fs::symlink(workspace().join("templates"), account.directory.path().join("templates")).unwrap();
    let script = format!("set -euo pipefail\n{NETWORK}{}", by_hand());
    // printf is a builtin of the shell, so the machine's process list shows no credential.
    let naming: Vec<&str> = script.lines().filter(|line| line.contains("$password")).collect();
    assert!(
        naming.len() == 1 && naming[0].contains("$(printf '") && naming[0].ends_with("\"$password\" |"),
        "{naming:?}"
    );
    let output = account.command("bash").args(["-c", &script]).output().await.unwrap();
    assert!(output.status.success(), "{}\n{script}", String::from_utf8_lossy(&output.stderr));

    let authorities = account.aws("acm-pca list-certificate-authorities").await;
    let authority = &authorities["CertificateAuthorities"][0];
    assert_eq!(authority["Status"], "ACTIVE");
    let authority = authority["Arn"].as_str().unwrap();

    let bundle = account.aws("secretsmanager get-secret-value --secret-id nats/trust-bundle").await;
    assert!(bundle["SecretString"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----"), "{bundle}");
    let credential = account.aws("secretsmanager get-secret-value --secret-id nats/cluster-credential").await;
    let credential: Value = serde_json::from_str(credential["SecretString"].as_str().unwrap()).unwrap();
    assert!(credential["password"].as_str().unwrap().len() > 32);

    // The role has the policy of templates/iam. Another test shows that this policy is sufficient and minimal.
    let policy = account.aws("iam get-role-policy --role-name nats-node --policy-name nats-tls-agent").await;
    let policy = policy["PolicyDocument"].to_string();
    assert!(policy.contains(authority) && !policy.contains("${"), "{policy}");
    let resource = account.aws("secretsmanager get-resource-policy --secret-id nats/cluster-credential").await;
    assert!(resource["ResourcePolicy"].as_str().unwrap().contains("role/nats-node"), "{resource}");

    let template = account.aws("ec2 describe-launch-template-versions --launch-template-name nats").await;
    let template = &template["LaunchTemplateVersions"][0]["LaunchTemplateData"];
    assert_eq!(template["MetadataOptions"]["HttpTokens"], "required");
    let user_data = fs::read_to_string(account.directory.path().join("user-data.yaml")).unwrap();
    let left: BTreeSet<_> = user_data.split("${").skip(1).filter_map(|rest| rest.split('}').next()).collect();
    assert!(left.is_empty() && user_data.contains(authority), "{left:?}");

    let groups = account.aws("autoscaling describe-auto-scaling-groups").await;
    assert_eq!(groups["AutoScalingGroups"][0]["Instances"].as_array().unwrap().len(), 3, "{groups}");
}
