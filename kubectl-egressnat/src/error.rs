//! Why a question could not be answered, and what to do about it.

use std::path::PathBuf;

use egressnat_operator::error::chain;

/// Why a question could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server takes no group without a user.
    #[error("--as-group needs --as: write the user to ask as")]
    GroupWithoutUser,
    /// No way to the API server is known.
    #[error("failed to read the kubeconfig: {}; set KUBECONFIG or --kubeconfig, and --context", chain(.0))]
    Kubeconfig(#[source] kube::config::KubeconfigError),
    /// There is neither a kubeconfig nor a service account.
    #[error("found no cluster: {}; set KUBECONFIG or --kubeconfig", chain(.0))]
    NoCluster(#[source] kube::config::InferConfigError),
    /// The kubeconfig's certificates or tokens cannot be used.
    #[error("failed to use the kubeconfig: {}", chain(.0))]
    Client(#[source] kube::Error),
    /// The API server does not know our kinds.
    #[error("the cluster has no {0}: install egressnat (its CRDs) first, or choose another --context")]
    NotInstalled(&'static str),
    /// The user may not read this kind.
    #[error(
        "you may not list {kind} ({message}); this needs list on egressnatpolicies, egressplans, pods, nodes, \
         namespaces, services, servicecidrs, and on endpointslices in namespace default"
    )]
    Forbidden {
        /// The kind.
        kind: &'static str,
        /// The API server's words.
        message: String,
    },
    /// The API server cannot be reached, or refuses.
    #[error("failed to list {kind}: {}; see that the cluster can be reached (kubectl get --raw /readyz)", chain(.source))]
    List {
        /// The kind.
        kind: &'static str,
        /// Why.
        source: kube::Error,
    },
    /// There is no such pod.
    #[error(
        "there is no pod {name} in namespace {namespace}: set its name and -n NAMESPACE (kubectl get pods -A)"
    )]
    NoPod {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
    },
    /// There is no such node.
    #[error("there is no node {0}: kubectl get nodes lists them")]
    NoNode(String),
    /// A manifest that is neither YAML nor JSON.
    #[error("failed to read {place}: {source}")]
    Yaml {
        /// The file and the document's number.
        place: String,
        /// Why.
        source: serde_yaml_ng::Error,
    },
    /// A policy that cannot be read.
    #[error("failed to read the policy of {place}: {source}; kubectl egressnat lint says more")]
    Policy {
        /// The file and the document's number.
        place: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A manifest without what was asked for.
    #[error("there is no EgressNATPolicy in {0}")]
    NoPolicy(String),
    /// A value could not be written in the format asked for.
    #[error("failed to write the answer: {0}")]
    Format(String),
    /// A file could not be read.
    #[error("failed to read {}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Standard output is gone.
    #[error("failed to write to standard output: {0}")]
    Stdout(#[from] std::io::Error),
}
