//! The command line. Every flag is also an environment variable.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Parser, Subcommand};
use ipnet::IpNet;

use crate::election::LeaseConfig;
use crate::logging::LogFormat;
use crate::run::Config;
use crate::world::{ClusterConfig, MasqueradeConfig, Safeguard};

/// Makes one EgressPlan per node of all EgressNATPolicies.
#[derive(Clone, Debug, Parser)]
#[command(name = "egressnat-operator", version)]
pub struct Cli {
    /// What to do instead
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Address of /healthz, /readyz and /metrics
    #[arg(long, env = "EGRESSNAT_HTTP_ADDRESS", default_value = "0.0.0.0:8080")]
    pub http_address: SocketAddr,
    /// How logs are written
    #[arg(long, env = "EGRESSNAT_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Log level, or directives such as info,egressnat_operator=debug
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log_level: String,
    /// Namespace of the Lease; the kubeconfig's or the pod's own when left out
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: Option<String>,
    /// Name of this process in the Lease and in Events; must be unique
    #[arg(long, env = "POD_NAME")]
    pub identity: String,
    /// A range inside the cluster that no policy captures, besides those of nodes, Services and the API
    /// server; can be repeated
    #[arg(long, env = "EGRESSNAT_CLUSTER_CIDRS", value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNet>,
    /// A Service range; needed where the API server has no ServiceCIDR objects; can be repeated
    #[arg(long, env = "EGRESSNAT_SERVICE_CIDRS", value_delimiter = ',')]
    pub service_cidr: Vec<IpNet>,
    /// Have every node masquerade its pods' packets that no policy captures: for networks whose plugin does not
    #[arg(long, env = "EGRESSNAT_MASQUERADE")]
    pub masquerade: bool,
    /// Destinations of which the masquerade keeps off, besides those in the cluster; can be repeated
    #[arg(long, env = "EGRESSNAT_NON_MASQUERADE_CIDRS", value_delimiter = ',')]
    pub non_masquerade_cidr: Vec<IpNet>,
    /// Masquerade packets to link-local destinations, too
    #[arg(long, env = "EGRESSNAT_MASQUERADE_LINK_LOCAL")]
    pub masquerade_link_local: bool,
    /// Tell every node what its start gate needs
    #[arg(long, env = "EGRESSNAT_START_GATE")]
    pub start_gate: bool,
    /// How long the Lease lives unrenewed, in seconds
    #[arg(long, env = "EGRESSNAT_LEASE_DURATION", default_value = "15", value_parser = seconds)]
    pub lease_duration: Duration,
    /// How long the leader tries to renew the Lease before it gives up, in seconds
    #[arg(long, env = "EGRESSNAT_LEASE_RENEW_DEADLINE", default_value = "10", value_parser = seconds)]
    pub lease_renew_deadline: Duration,
    /// Pause between two attempts to take or renew the Lease, in seconds
    #[arg(long, env = "EGRESSNAT_LEASE_RETRY_PERIOD", default_value = "2", value_parser = seconds)]
    pub lease_retry_period: Duration,
    /// For tests only: leave out a safeguard, to see that its absence shows; can be repeated
    #[arg(
        long,
        env = "EGRESSNAT_UNSAFE_WITHOUT",
        value_enum,
        value_delimiter = ',',
        hide = true
    )]
    pub unsafe_without: Vec<Safeguard>,
}

/// What is done instead of making plans.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Stop the operator and take everything of ours off all nodes: before the release is uninstalled
    Teardown {
        /// The operator's Deployment
        #[arg(long)]
        deployment: String,
        /// How long nodes have for it, in seconds
        #[arg(long, default_value = "60", value_parser = seconds)]
        patience: Duration,
    },
}

impl Cli {
    /// The operator's configuration; `namespace` is the client's own.
    pub fn config(self, namespace: &str) -> Result<Config, String> {
        if self.lease_retry_period >= self.lease_renew_deadline
            || self.lease_renew_deadline >= self.lease_duration
        {
            return Err(
                "--lease-retry-period must be shorter than --lease-renew-deadline, \
                        and that shorter than --lease-duration"
                    .into(),
            );
        }
        Ok(Config {
            http_address: self.http_address,
            cluster: ClusterConfig {
                cluster_cidrs: self.cluster_cidr,
                service_cidrs: self.service_cidr,
                masquerade: self.masquerade.then_some(MasqueradeConfig {
                    except: self.non_masquerade_cidr,
                    link_local: self.masquerade_link_local,
                }),
                start_gate: self.start_gate,
                unsafe_without: self.unsafe_without.into_iter().collect(),
            },
            lease: LeaseConfig {
                namespace: self.namespace.unwrap_or_else(|| namespace.to_owned()),
                identity: self.identity,
                duration: self.lease_duration,
                renew_deadline: self.lease_renew_deadline,
                retry_period: self.lease_retry_period,
            },
        })
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(Duration::from_secs(n)),
        _ => Err("not a number of seconds above 0".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &[&str]) -> Result<Config, String> {
        let args = ["egressnat-operator", "--identity=me"].iter().chain(more);
        Cli::try_parse_from(args)
            .map_err(|e| e.to_string())?
            .config("somewhere")
    }

    #[test]
    fn ranges_can_be_repeated_or_listed() {
        let config = config(&[
            "--cluster-cidr=10.0.0.0/8",
            "--cluster-cidr=fd00::/8,192.168.0.0/16",
        ])
        .unwrap();
        assert_eq!(config.cluster.cluster_cidrs.len(), 3);
    }

    #[test]
    fn a_masquerade_is_asked_for() {
        assert_eq!(
            config(&["--non-masquerade-cidr=10.0.0.0/8"])
                .unwrap()
                .cluster
                .masquerade,
            None
        );
        let asked = [
            "--masquerade",
            "--non-masquerade-cidr=10.0.0.0/8,fd00::/8",
            "--masquerade-link-local",
        ];
        let config = config(&asked).unwrap().cluster.masquerade.unwrap();
        assert_eq!((config.except.len(), config.link_local), (2, true));
    }

    #[test]
    fn a_lease_that_cannot_be_kept_is_refused() {
        assert!(config(&["--lease-duration=5"]).is_err());
        assert!(config(&["--lease-retry-period=0"]).is_err());
        assert!(config(&["--lease-duration=30", "--lease-renew-deadline=20"]).is_ok());
    }
}
