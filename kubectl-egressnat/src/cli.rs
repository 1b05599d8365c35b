//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::output::Format;

const EXIT_CODES: &str = "\
Exit codes:
  0  answered
  1  something wrong was found
  2  the question could not be answered: usage, no such object, no way to the cluster

Reads only. Needs list on egressnatpolicies, egressplans, pods, nodes, namespaces, services and servicecidrs,
and on endpointslices in namespace default.";

/// What egressnat does with a pod's packets, and why
#[derive(Clone, Debug, Parser)]
#[command(name = "kubectl-egressnat", bin_name = "kubectl egressnat", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// What to answer.
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster, as for kubectl.
#[derive(Clone, Debug, Default, Args)]
pub struct ClusterArgs {
    /// The kubeconfig file, in place of KUBECONFIG and ~/.kube/config
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The pod's namespace; the context's when left out
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// The user to ask as
    #[arg(long = "as", global = true, value_name = "USER")]
    pub as_user: Option<String>,
    /// A group to ask as; can be repeated
    #[arg(long, global = true, value_name = "GROUP")]
    pub as_group: Vec<String>,
}

/// What to answer.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Which policy a pod's packets meet, why, and what the outside sees
    #[command(after_help = "\
Examples:
  kubectl egressnat explain web-0                      every policy that selects the pod
  kubectl egressnat explain web-0 -n shop --to 203.0.113.7:443
  kubectl egressnat explain web-0 --to 10.96.0.10      not captured, because it is a Service address

A pod that no policy captures is an answer too: exit code 0.")]
    Explain {
        /// The pod, as NAME or pod/NAME
        pod: String,
        /// One destination; the port tells only whether a Service has it
        #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = destination)]
        to: Option<Destination>,
        /// How the answer is written
        #[arg(short, long, value_enum, default_value = "text")]
        output: Format,
    },
    /// Every policy and every node concerned, at a glance
    #[command(after_help = "\
Examples:
  kubectl egressnat status
  kubectl egressnat status --watch
  kubectl egressnat status -o json | jq -r '.policies[] | select(.health != \"Ready\") | .name'

Health is Ready, Pending (not yet), Degraded (in part) or Failed. Exit code 1 when anything is Degraded or
Failed. Colours are used on a terminal, unless NO_COLOR is set.")]
    Status {
        /// How the answer is written
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
        /// Show it again whenever it changes
        #[arg(short, long)]
        watch: bool,
    },
    /// A node's plan and what it compiles to, or what new policies would change
    #[command(after_help = "\
Examples:
  kubectl egressnat plan worker-1                      the EgressPlan, and its nft and ip syntax
  kubectl egressnat plan --diff policy.yaml            on which nodes, for which pods
  kubectl egressnat plan worker-1 --diff policy.yaml   on this node only

--diff applies nothing. Exit code 1 when a policy of FILE would not work.")]
    Plan {
        /// The node
        #[arg(required_unless_present = "diff")]
        node: Option<String>,
        /// What the policies of this file would change; - is standard input
        #[arg(long, value_name = "FILE")]
        diff: Vec<PathBuf>,
        /// How the answer is written
        #[arg(short, long, value_enum, default_value = "text")]
        output: Format,
    },
    /// Check policies without a cluster
    #[command(after_help = "\
Examples:
  kubectl egressnat lint policies/*.yaml
  helm template . | kubectl egressnat lint -

Checks what the API server and the operator would refuse: the CRD's schema, strictly, its CEL rules, and the
operator's own check. Does not know the cluster: whether a node holds an address, whether a label selects
anything, and what another policy claims is what plan --diff tells. Objects of other kinds are not looked at.
Exit code 1 when anything is wrong.")]
    Lint {
        /// Files of YAML or JSON; - is standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// How the answer is written
        #[arg(short, long, value_enum, default_value = "text")]
        output: Format,
    },
    /// Turn the policies of other egress gateways into EgressNATPolicies
    #[command(after_help = "\
Examples:
  kubectl egressnat migrate cilium-policies.yaml > policies.yaml
  kubectl egressnat migrate --cluster > policies.yaml
  kubectl egressnat plan --diff policies.yaml          what they would do, before they are applied

Reads CiliumEgressNATPolicy, CiliumEgressGatewayPolicy, Antrea's Egress, OVN-Kubernetes' EgressIP, and spidernet's
EgressPolicy and EgressClusterPolicy (with their EgressGateways). A comment stands above each field that means
something else here. What cannot be said here is refused, on standard error. Exit code 1 when anything is
refused, or nothing is found. --cluster needs list on those kinds.")]
    Migrate {
        /// Files of YAML or JSON; - is standard input
        #[arg(
            required_unless_present = "from_cluster",
            conflicts_with = "from_cluster",
            value_name = "FILE"
        )]
        files: Vec<PathBuf>,
        /// Read the cluster's
        #[arg(long = "cluster")]
        from_cluster: bool,
        /// How the answer is written
        #[arg(short, long, value_enum, default_value = "text")]
        output: Format,
    },
    /// Print the completion script of a shell
    #[command(after_help = "\
Examples:
  source <(kubectl-egressnat completion bash)
  kubectl-egressnat completion zsh > \"${fpath[1]}/_kubectl-egressnat\"

The script completes kubectl-egressnat, the plugin's own name.")]
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
}

/// Where packets go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The address.
    pub address: IpAddr,
    /// The port; any where it is not given.
    pub port: Option<u16>,
}

/// An address, with or without a port.
pub fn destination(text: &str) -> Result<Destination, String> {
    let bare = text
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .unwrap_or(text);
    let alone = bare.parse().map(|address| Destination { address, port: None });
    let with_port = |socket: SocketAddr| Destination {
        address: socket.ip(),
        port: Some(socket.port()),
    };
    alone.or_else(|_| text.parse().map(with_port)).map_err(|_| {
        "write an address such as 203.0.113.7, 203.0.113.7:443, 2001:db8::7 or [2001:db8::7]:443; \
         names are resolved by the pod, not here"
            .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_destination_is_an_address_with_or_without_a_port() {
        for (text, address, port) in [
            ("203.0.113.7", "203.0.113.7", None),
            ("203.0.113.7:443", "203.0.113.7", Some(443)),
            ("2001:db8::7", "2001:db8::7", None),
            ("[2001:db8::7]", "2001:db8::7", None),
            ("[2001:db8::7]:443", "2001:db8::7", Some(443)),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(destination(text), Ok(Destination { address, port }), "{text}");
        }
        for text in [
            "",
            "example.org",
            "203.0.113.0/24",
            "203.0.113.7:",
            "2001:db8::7/64",
        ] {
            assert!(destination(text).is_err(), "{text}");
        }
    }
}
