//! Command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, ValueEnum};

use crate::cni::spec::OnTimeout;
use crate::owned::Numbers;

/// Renders this node's EgressPlan into the kernel.
#[derive(Clone, Debug, Parser)]
#[command(name = "egressnat-agent", version)]
pub struct Cli {
    /// Name of this node, which is the name of its plan.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, env = "HTTP_ADDRESS", default_value = "0.0.0.0:9740")]
    pub http_address: SocketAddr,
    /// How log lines are written.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// What is logged, as in RUST_LOG: `info`, or `info,egressnat_agent=debug`.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// UDP port of the tunnel, the same on every node.
    #[arg(long, env = "TUNNEL_PORT", default_value_t = Numbers::default().port)]
    pub tunnel_port: u16,
    /// VXLAN network identifier of the tunnel, the same on every node.
    #[arg(long, env = "TUNNEL_VNI", default_value_t = Numbers::default().vni, value_parser = clap::value_parser!(u32).range(1..0x0100_0000))]
    pub tunnel_vni: u32,
    /// The six neighbouring bits of the packet mark that nothing else on the node uses.
    #[arg(long, env = "ROUTING_MARK_MASK", default_value = "0x3f000000", value_parser = mark_mask)]
    pub routing_mark_mask: u32,
    /// Priority of our ip rules.
    #[arg(long, env = "RULE_PRIORITY", default_value_t = Numbers::default().rule_priority, value_parser = clap::value_parser!(u32).range(1..32766))]
    pub rule_priority: u32,
    /// Our route tables are this number plus 1 to 63.
    #[arg(long, env = "ROUTE_TABLE_BASE", default_value_t = Numbers::default().table_base, value_parser = clap::value_parser!(u32).range(256..0x7fff_ffff))]
    pub route_table_base: u32,
    /// Where the host's /proc/sys/net can be written: a container sees its own read-only.
    #[arg(long, env = "PROC_SYS_NET", default_value = "/proc/sys/net")]
    pub proc_sys_net: PathBuf,
    /// Keeps others from changing our nftables table, where the kernel can (6.9). Without, what they change is
    /// repaired.
    #[arg(long, env = "OWN_TABLE", default_value_t = true, action = ArgAction::Set)]
    pub own_table: bool,
    /// Drops what leaves with a pod's source by another link than the one that the node's routes lead to the pod by.
    #[arg(long, env = "CHECK_SOURCES", default_value_t = true, action = ArgAction::Set)]
    pub check_sources: bool,
    /// How long the last plan holds where the API server has none any more, in seconds: longer than pods live whose Node
    /// object was deleted.
    #[arg(long, env = "HOLD_WITHOUT_PLAN_SECONDS", default_value_t = 600)]
    pub hold_without_plan_seconds: u32,
    /// The start gate.
    #[command(flatten)]
    pub gate: GateFlags,
    /// For tests only: leave out a safeguard, to see that its absence shows; can be repeated.
    #[arg(
        long,
        env = "EGRESSNAT_UNSAFE_WITHOUT",
        value_enum,
        value_delimiter = ',',
        hide = true
    )]
    pub unsafe_without: Vec<Safeguard>,
}

/// The start gate. The folders are those of the node, and must be seen by the same names.
#[derive(Clone, Debug, Args)]
pub struct GateFlags {
    /// Manage the chained CNI plugin: put it into the node's network configuration while the plan asks for it, and
    /// take it out otherwise.
    #[arg(long = "gate", env = "GATE")]
    pub enabled: bool,
    /// Folder of the gate's socket, which a boot empties.
    #[arg(
        long = "gate-run-folder",
        env = "GATE_RUN_FOLDER",
        default_value = "/run/egressnat"
    )]
    pub run: PathBuf,
    /// Folder of what plugins read while no agent runs.
    #[arg(
        long = "gate-state-folder",
        env = "GATE_STATE_FOLDER",
        default_value = "/var/lib/egressnat"
    )]
    pub state: PathBuf,
    /// Folder of the node's CNI plugins.
    #[arg(
        long = "gate-cni-programs",
        env = "GATE_CNI_PROGRAMS",
        default_value = "/opt/cni/bin"
    )]
    pub programs: PathBuf,
    /// Folder of the node's network configurations.
    #[arg(
        long = "gate-cni-configurations",
        env = "GATE_CNI_CONFIGURATIONS",
        default_value = "/etc/cni/net.d"
    )]
    pub configurations: PathBuf,
    /// libcni's folder on the node, where the container runtime keeps what each pod was given. It is only read.
    #[arg(
        long = "gate-cni-cache",
        env = "GATE_CNI_CACHE",
        default_value = "/var/lib/cni"
    )]
    pub cni_cache: PathBuf,
    /// The plugin's program, from where it is copied.
    #[arg(long = "gate-plugin", env = "GATE_PLUGIN", default_value = "/egressnat-cni")]
    pub plugin: PathBuf,
    /// The kubelet's folder of pods, on the node.
    #[arg(
        long = "gate-kubelet-pods",
        env = "GATE_KUBELET_PODS",
        default_value = "/var/lib/kubelet/pods"
    )]
    pub kubelet_pods: PathBuf,
    /// How long a pod's start waits for its verdict, in seconds.
    #[arg(
        long = "gate-timeout-seconds",
        env = "GATE_TIMEOUT_SECONDS",
        default_value_t = 5,
        value_parser = clap::value_parser!(u16).range(1..=60)
    )]
    pub timeout_seconds: u16,
    /// What happens to a pod for which none comes in time.
    #[arg(long = "gate-on-timeout", env = "GATE_ON_TIMEOUT", default_value = "Retry")]
    pub on_timeout: OnTimeout,
    /// Namespaces whose pods start in any case; can be repeated, or a list with commas.
    #[arg(
        long = "gate-exempt-namespace",
        env = "GATE_EXEMPT_NAMESPACES",
        value_delimiter = ',',
        default_value = "kube-system"
    )]
    pub exempt_namespaces: Vec<String>,
}

/// Something without which packets may leave with a wrong address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Safeguard {
    /// Connections that the plan contradicts are deleted.
    Conntrack,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Cli {
    /// The numbers that an administrator may set.
    pub fn numbers(&self) -> Numbers {
        Numbers {
            mark_mask: self.routing_mark_mask,
            rule_priority: self.rule_priority,
            table_base: self.route_table_base,
            port: self.tunnel_port,
            vni: self.tunnel_vni,
        }
    }
}

/// Six neighbouring bits, clear of 0 to 15, in which a tunnel carries an id.
fn mark_mask(text: &str) -> Result<u32, String> {
    let digits = text
        .strip_prefix("0x")
        .ok_or("write the mask in hexadecimal, such as 0x3f000000")?;
    let mask = u32::from_str_radix(digits, 16).map_err(|e| e.to_string())?;
    if mask == 0 || mask >> mask.trailing_zeros() != 0x3f || mask & 0xffff != 0 {
        return Err("the mask must be six neighbouring bits above bit 15, such as 0x3f000000".into());
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_six_neighbouring_bits() {
        assert_eq!(mark_mask("0x3f000000"), Ok(0x3f00_0000));
        assert_eq!(mark_mask("0xfc000000"), Ok(0xfc00_0000));
        assert_eq!(mark_mask("0x003f0000"), Ok(0x003f_0000));
        for bad in [
            "0",
            "3f000000",
            "0x0",
            "0x1f000000",
            "0x7f000000",
            "0x3f",
            "0x00fc00",
            "0x2f000000",
            "0xffffffffff",
        ] {
            assert!(mark_mask(bad).is_err(), "{bad}");
        }
    }
}
