//! kube-proxy: one process per node, in the mode that is asked for, or none at all.

use std::{
    fmt,
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    time::Duration,
};

use clap::ValueEnum;

use crate::{
    error::{Context, Error, Result},
    node::Node,
    pki,
    site::{POD_RANGES, Service, Site},
    wait,
};

const HEALTH: &str = "127.0.0.1:10256";
const HEALTH_DEADLINE: Duration = Duration::from_secs(30);

/// How Services work on the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KubeProxyMode {
    /// kube-proxy in nftables mode.
    Nftables,
    /// kube-proxy in iptables mode.
    Iptables,
    /// No kube-proxy and none of its rules.
    None,
}

impl fmt::Display for KubeProxyMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::None => "none",
        })
    }
}

/// Ends kube-proxy on a node, removes what another mode left, and starts it in `mode`.
///
/// # Errors
/// When it cannot be started, or its own clean-up fails.
pub fn set(site: &Site, node: &Node, mode: KubeProxyMode) -> Result<()> {
    let service = service(site, node);
    if service.log().exists() {
        service.kill()?;
        node.output(Command::new(Site::program("kube-proxy")).arg("--cleanup"))?;
    }
    if mode != KubeProxyMode::None {
        node.start_inside(&service, "kube-proxy", args(site, node, mode))?;
    }
    Ok(())
}

/// Waits until kube-proxy on a node has written its rules.
///
/// # Errors
/// After half a minute.
pub fn wait_healthy(site: &Site, node: &Node) -> Result<()> {
    let service = service(site, node);
    let what = format!(
        "kube-proxy on {} (see {})",
        node.spec().name,
        service.log().display()
    );
    let netns = node.netns()?;
    wait::until(&what, HEALTH_DEADLINE, || netns.run(health)?)
}

/// The service on a node.
#[must_use]
pub fn service(site: &Site, node: &Node) -> Service {
    site.node_service("kube-proxy", node.spec())
}

fn args(site: &Site, node: &Node, mode: KubeProxyMode) -> Vec<String> {
    let (pods_v4, pods_v6) = POD_RANGES;
    vec![
        format!(
            "--kubeconfig={}",
            pki::kubeconfig_path(site, "kube-proxy").display()
        ),
        format!("--proxy-mode={mode}"),
        format!("--hostname-override={}", node.spec().name),
        format!("--cluster-cidr={pods_v4},{pods_v6}"),
        format!("--healthz-bind-address={HEALTH}"),
        "--metrics-bind-address=127.0.0.1:10249".into(),
        // nf_conntrack_max belongs to the machine and cannot be written from a namespace.
        "--conntrack-max-per-core=0".into(),
    ]
}

/// Its health endpoint answers 200 once the rules have been written and are not older than wanted.
fn health() -> Result<()> {
    let ask = || format!("ask http://{HEALTH}/healthz");
    let mut stream = TcpStream::connect(HEALTH).context(ask)?;
    let mut answer = String::new();
    stream
        .write_all(b"GET /healthz HTTP/1.0\r\n\r\n")
        .and_then(|()| stream.read_to_string(&mut answer))
        .context(ask)?;
    match answer.lines().next() {
        Some(status) if status.contains(" 200 ") => Ok(()),
        status => Err(Error::State(format!("it answered {status:?}"))),
    }
}
