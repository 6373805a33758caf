//! Makes the parts of a reconciler from the checked configuration: the real implementation of each seam.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::aws::AwsSettings;
use crate::clock::Clock;
use crate::conf::loss::Loss;
use crate::conf::merge::PlacementNeeds;
use crate::conf::render::template_text;
use crate::config::{Config, ConnectionConfig, DiscoveryKind, IssuerKind, System, TrustConfig};
use crate::connection::secret::ConnectionSecret;
use crate::credential::CredentialSource;
use crate::credential::secret::ClusterSecret;
use crate::included::{IncludedSecret, IncludedSource, SystemSecret, credentials_of};
use crate::issue::acm_pca::AcmPca;
use crate::issue::journal::Journal;
use crate::issue::local::Local;
use crate::issue::{Issuance, Issuer};
use crate::node::lifecycle::{InGroup, Lifecycle};
use crate::node::{self, IdentityError, Needs, Node, as_certified, identify};
use crate::peers::PeerSource;
use crate::peers::asg::Asg;
use crate::peers::dial::Network;
use crate::peers::static_list::StaticList;
use crate::reconcile::commit_point::{CommitParts, CommitPoint};
use crate::reconcile::{Parts, Publication};
use crate::schedule::earliest;
use crate::server::NatsServer;
use crate::state::generation::Generations;
use crate::trust::TrustSource;
use crate::trust::sources::file::File;
use crate::trust::sources::issuer::FromIssuer;
use crate::trust::sources::secrets_manager::SecretsManager;

/// Finds the identity of this node, and makes the real parts. Instance metadata is the only AWS API that it calls.
pub(crate) async fn wire(config: &Config, allowed_losses: Vec<Loss>) -> Result<Parts, IdentityError> {
    // The SDK's set-up makes futures of many kilobytes. Without the box the future of every caller would contain them.
    let node = Box::pin(identify(&config.node, needs(config))).await?;
    Ok(wire_around(node, config, allowed_losses, Purpose::Run).await)
}

/// Whether instance metadata now describes another node than `known`.
pub(crate) async fn has_changed(config: &Config, known: &Node) -> bool {
    Box::pin(node::has_changed(&AwsSettings::from_environment(), &config.node, needs(config), known)).await
}

/// As [`wire`], for a command that changes nothing: a missing embedded CA stays missing.
pub(crate) async fn wire_to_look(config: &Config) -> Result<Parts, IdentityError> {
    let node = Box::pin(identify(&config.node, needs(config))).await?;
    Ok(wire_around(node, config, Vec::new(), Purpose::Look).await)
}

/// The parts for [`Reconciler::inspect`] while instance metadata doesn't answer. The newest certificate names the node.
///
/// [`Reconciler::inspect`]: crate::reconcile::Reconciler::inspect
pub(crate) async fn wire_to_inspect(config: &Config) -> Parts {
    // The inspection itself reports a generation that can't be read.
    let newest = Generations::of(&config.state_directory).newest().ok().and_then(|(newest, _)| newest);
    let certified = newest.map(|newest| newest.chain.leaf().sans.clone()).unwrap_or_default();
    wire_around(as_certified(&config.node, &certified), config, Vec::new(), Purpose::Look).await
}

/// Whether the parts may change anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Run,
    Look,
}

async fn wire_around(node: Node, config: &Config, allowed_losses: Vec<Loss>, purpose: Purpose) -> Parts {
    let clock = Clock::System;
    // The SDK is set up only where AWS is used, and with a Region: else the SDK asks instance metadata for the Region.
    let region = match &config.issuer.kind {
        IssuerKind::AcmPca { ca_arn, .. } => node.region.clone().or_else(|| Some(ca_arn.region().to_owned())),
        IssuerKind::Local { .. } => node.region.clone(),
    };
    let settings = AwsSettings { region, ..AwsSettings::default() };
    let shared = OnceCell::new();
    let aws = || shared.get_or_init(|| Box::pin(settings.load()));
    let issuer: Arc<dyn Issuer> = match &config.issuer.kind {
        IssuerKind::AcmPca { ca_arn, template_arn } => {
            Arc::new(AcmPca::new(aws().await, ca_arn.clone(), template_arn.clone()))
        }
        IssuerKind::Local { directory } => {
            let ca = Local::new(directory.clone(), clock);
            Arc::new(if purpose == Purpose::Run { ca } else { ca.read_only() })
        }
    };
    let trust_source = async |from: &TrustConfig| {
        let source: Arc<dyn TrustSource> = match from {
            TrustConfig::SecretsManager { secret_id, json_key } => {
                Arc::new(SecretsManager::new(aws().await, secret_id, json_key.clone()))
            }
            TrustConfig::Issuer => Arc::new(FromIssuer::new(Arc::clone(&issuer))),
            TrustConfig::File(file) => Arc::new(File::new(file.clone())),
        };
        source
    };
    let trust = trust_source(&config.trust).await;
    let client_trust = match &config.client_trust {
        Some(from) => Some(trust_source(from).await),
        None => None,
    };
    let credential: Option<Arc<dyn CredentialSource>> = match &config.nats.cluster_secret_id {
        Some(id) => Some(Arc::new(ClusterSecret::new(aws().await, id))),
        None => None,
    };
    let mut included: Vec<(PathBuf, Arc<dyn IncludedSource>)> = Vec::new();
    for (file, id) in &config.nats.included_secrets {
        included.push((file.clone(), Arc::new(IncludedSecret::new(aws().await, id))));
    }
    if let System::Secret(id) = &config.nats.system {
        let file = credentials_of(&config.state_directory, id);
        included.push((file, Arc::new(SystemSecret::new(aws().await, id))));
    }
    let mut lifecycle: Option<Arc<dyn Lifecycle>> = None;
    if matches!(config.discovery.kind, DiscoveryKind::Asg { .. }) {
        lifecycle = Some(Arc::new(InGroup::new(&settings, aws().await, node.instance_id.clone())));
    }
    let publication = match &config.connection {
        Some(ConnectionConfig { secret_id, urls }) => Some(Publication {
            store: Arc::new(ConnectionSecret::new(aws().await, secret_id)),
            urls: urls.clone(),
            names: config.node.dns_names.iter().map(|name| name.as_str().to_owned()).collect(),
        }),
        None => None,
    };
    let peers: Arc<dyn PeerSource> = match &config.discovery.kind {
        DiscoveryKind::Asg { asg_names, addresses } => Arc::new(Asg::new(
            aws().await,
            node.clone(),
            asg_names.clone(),
            *addresses,
            config.nats.cluster_listen.port(),
        )),
        DiscoveryKind::Static { peers } => {
            Arc::new(StaticList { peers: peers.clone(), node: node.clone(), port: config.nats.cluster_listen.port() })
        }
    };
    Parts {
        node,
        issuance: Issuance {
            issuer,
            journal: Journal::of(&config.state_directory),
            clock,
            validity: config.issuer.validity,
            renewed_after: earliest(config.issuer.validity, config.renewal.at),
            algorithm: config.issuer.key_algorithm,
        },
        lifecycle,
        trust,
        client_trust,
        peers,
        dial: Arc::new(Network),
        credential,
        included,
        publication,
        commit_point: commit_point(config, clock),
        clock,
        renewal: config.renewal,
        rollover: config.rollover,
        interval: config.discovery.interval,
        allowed_losses,
    }
}

/// nats-server and the commit point: the part that doesn't depend on the identity of the node.
#[must_use]
pub(crate) fn commit_point(config: &Config, clock: Clock) -> CommitPoint {
    CommitPoint::new(CommitParts {
        server: Arc::new(NatsServer::new(&config.nats, &config.state_directory)),
        nats: config.nats.clone(),
        clock,
        generations: Generations::of(&config.state_directory),
        state: config.state_directory.clone(),
    })
}

fn needs(config: &Config) -> Needs {
    let asg = matches!(config.discovery.kind, DiscoveryKind::Asg { .. });
    let bundles = [Some(&config.trust), config.client_trust.as_ref()];
    let secrets = bundles.into_iter().flatten().any(|from| matches!(from, TrustConfig::SecretsManager { .. }))
        || config.nats.cluster_secret_id.is_some()
        || config.connection.is_some()
        || !config.nats.included_secrets.is_empty()
        || matches!(config.nats.system, System::Secret(_));
    // A template that can't be read is an error of the first pass.
    let template = config.nats.template.as_deref().and_then(|file| template_text(file).ok());
    let PlacementNeeds { zone, tags } = PlacementNeeds::of(&config.nats.settings, template.as_deref());
    Needs { instance_id: asg, region: asg || secrets, zone, tags }
}
