//! The ways to AWS that a service needs: to the secret of the document, and to PCA.

use std::sync::Arc;

use super::certificate::Certificates;
use crate::aws::AwsSettings;
use crate::aws::secret::region_of;
use crate::clock::Clock;
use crate::config::client::{ClientConfig, DocumentSource};
use crate::connection::secret::ConnectionSecret;
use crate::issue::acm_pca::AcmPca;

/// What is set up of AWS.
#[derive(Default)]
pub(super) struct Sources {
    pub(super) secret: Option<ConnectionSecret>,
    pub(super) certificates: Option<Arc<Certificates>>,
    is_set_up: bool,
}

impl Sources {
    /// Sets AWS up where client.toml needs AWS. While no Region is known, each look tries again. The SDK asks instance metadata
    /// for the Region once, and a machine that boots may not reach it yet.
    pub(super) async fn set_up(&mut self, config: &ClientConfig, clock: Clock) {
        let ClientConfig { source, certificate, directory, .. } = config;
        if self.is_set_up || matches!(source, DocumentSource::File(_)) && certificate.is_none() {
            return;
        }
        let of_secret = match source {
            DocumentSource::Secret(id) => region_of(id),
            DocumentSource::File(_) => None,
        };
        // A known Region spares the SDK the request to instance metadata.
        let of_ca = certificate.as_ref().map(|certificate| certificate.ca_arn.region());
        let named = config.region.clone().or_else(|| AwsSettings::from_environment().region);
        let region = named.or_else(|| of_secret.or(of_ca).map(str::to_owned));
        let aws = Box::pin(AwsSettings { region, ..AwsSettings::default() }.load()).await;
        if aws.region().is_none() {
            return;
        }
        self.is_set_up = true;
        if let DocumentSource::Secret(id) = source {
            self.secret = Some(ConnectionSecret::new(&aws, id));
        }
        self.certificates = certificate.as_ref().map(|certificate| {
            let issuer =
                AcmPca::new(&aws, certificate.ca_arn.clone(), Some(certificate.template_arn.clone())).for_a_service();
            Arc::new(Certificates::new(certificate, Arc::new(issuer), directory, clock))
        });
    }
}
