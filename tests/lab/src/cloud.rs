//! AWS for the lab: an account with a CA, a trust bundle, a cluster credential and an Auto Scaling group.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aws_double::Account;
use aws_double::http::AwsDouble;
use aws_double::pca::{CaSettings, UsageMode};
use aws_double::secrets::Content;
use harness::Failure;
use harness::template::fill;
use time::Duration;

use crate::downloads::Download;
use crate::network::HUB;

pub(crate) const REGION: &str = "eu-west-1";
/// The port on which instances reach AWS.
pub(crate) const ENDPOINT_PORT: u16 = 4566;

const GROUP: &str = "nats";
const TRUST: &str = "nats/trust-bundle";
/// The name of the secret that holds the connection document.
pub(crate) const DOCUMENT: &str = "nats/connection";
/// The table `[connection]` that names the secret, in base64 as the user data has it.
const CONNECTION: &str = "W2Nvbm5lY3Rpb25dCnNlY3JldF9pZCA9ICJuYXRzL2Nvbm5lY3Rpb24iCg==";
const CREDENTIAL: &str = "nats/cluster-credential";
/// The time between IssueCertificate and the certificate. AWS documents no figure. The SDK's waiter polls first after
/// about this time.
const ISSUANCE: Duration = Duration::seconds(1);

pub(crate) struct Cloud {
    double: AwsDouble,
    ca_arn: String,
    /// The CA's certificate for clients.
    pub(crate) ca_file: PathBuf,
}

impl Cloud {
    /// Sets up the account, and serves it on the hub.
    pub(crate) async fn start(directory: &Path) -> Result<Self, Failure> {
        let cannot = |what: &str| Failure::new(format!("could not {what} the account"));
        let mut account = Account::new(REGION);
        account.pca.issuance_takes = ISSUANCE;
        let double = AwsDouble::start((HUB, ENDPOINT_PORT).into(), account);
        let double = double.await.map_err(|error| cannot("serve").because(error))?;
        let (ca_arn, pem) = double
            .account(|account, now| {
                let settings =
                    CaSettings { usage_mode: UsageMode::ShortLivedCertificate, ..CaSettings::root("lab root") };
                let ca_arn = account.pca.create_authority(settings, now)?;
                let pem = account.pca.authority(&ca_arn)?.pem().to_owned();
                account.secrets.put(TRUST, Content::Text(pem.clone()), now)?;
                let credential = r#"{"username": "route", "password": "correct horse battery staple"}"#;
                account.secrets.put(CREDENTIAL, Content::Text(credential.into()), now)?;
                account.secrets.put(DOCUMENT, Content::Text("{}".into()), now)?;
                account.fleet.create_group(GROUP);
                Ok::<_, aws_double::ServiceError>((ca_arn, pem))
            })
            .map_err(|error| cannot("set up").because(error))?;
        let ca_file = directory.join("ca.pem");
        std::fs::write(&ca_file, pem).map_err(|error| cannot("write the CA's certificate of").because(error))?;
        Ok(Self { double, ca_arn, ca_file })
    }

    /// Adds an instance to the group.
    pub(crate) fn launch(&self, id: &str, address: IpAddr) {
        self.double.account(|account, now| account.fleet.launch(GROUP, id, address, "InService", now));
    }

    /// Moves an instance to another lifecycle state, as Auto Scaling does.
    pub(crate) fn set_state(&self, id: &str, state: &str) {
        self.double.account(|account, now| account.fleet.set_state(id, state, now));
    }

    /// Removes an instance from Auto Scaling's lists.
    pub(crate) fn terminate(&self, id: &str) {
        self.double.account(|account, now| account.fleet.terminate(id, now));
    }

    /// The number of paid certificates.
    pub(crate) fn certificates(&self) -> usize {
        self.double.certificates()
    }

    /// Fills in `templates/user-data` as Terraform does.
    pub(crate) fn user_data(&self, template: &str, server: &Download, agent: &Download) -> Result<String, Failure> {
        let values = [
            ("nats_server_url", server.url.as_str()),
            ("nats_server_sha256", &server.sha256),
            ("agent_url", &agent.url),
            ("agent_sha256", &agent.sha256),
            ("ca_arn", &self.ca_arn),
            ("validity", "7d"),
            ("trust_secret_id", TRUST),
            ("dns_names", r#"["nats.internal"]"#),
            ("addresses", "dns"),
            ("cluster_secret_id", CREDENTIAL),
            ("nats_include", r#"["/etc/nats/conf.d/extra.conf"]"#),
            ("extra_agent_toml", CONNECTION),
            ("extra_nats_config", ""),
        ];
        fill(template, &values)
    }
}
