//! The command line of `lab`.

use std::{io, net::SocketAddr, path::PathBuf};

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::{
    cluster::{self, Cluster},
    echo, images,
    kube_proxy::KubeProxyMode,
    kubectl::Kubectl,
    launch,
    lock::Lock,
    network::Network,
    progress::Progress,
    proxy, residue,
    site::{self, Site},
    walk::{self, Sightings},
    workloads,
};

/// The egressnat lab: a real three-node Kubernetes cluster in network namespaces.
#[derive(Debug, Parser)]
#[command(name = "lab", version)]
pub struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Options {
    /// Which cluster; several can be up at once.
    #[arg(long, global = true, default_value = site::LAB)]
    cluster: String,
    /// Not the lab's cluster, but the one of your own KUBECONFIG, with kubectl and helm of your PATH.
    #[arg(long, global = true)]
    external: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring the cluster up; where it is up already, check it.
    Up {
        /// How Services work on the nodes.
        #[arg(long, value_enum, default_value = "nftables")]
        kube_proxy: KubeProxyMode,
        /// Who makes the pods' network.
        #[arg(long, value_enum, default_value = "ptp")]
        network: Network,
    },
    /// Remove the cluster and all that belongs to it.
    Down {
        /// First wait for the end of standard input: whoever holds the pipe may die as it likes.
        #[arg(long)]
        at_end_of_input: bool,
    },
    /// List what is left of the cluster on this machine; fails when there is something.
    Residue,
    /// Run kube-proxy in this mode on every node, or not at all.
    KubeProxy {
        /// The mode.
        #[arg(long, value_enum)]
        mode: KubeProxyMode,
    },
    /// Start the external echo server and give it its names in the cluster.
    Echo,
    /// Build or load container images.
    #[command(subcommand)]
    Images(Images),
    /// Ask the echo server from every net-tshoot pod, and show the addresses that it saw.
    Show,
    /// Walk through: no policy, IPv4 policy, dual-stack policy, no policy; show and check each.
    Walk,
    /// Restart the pods of every Deployment, DaemonSet and StatefulSet.
    RestartAll,
    /// Print the path of the administrator's kubeconfig.
    Kubeconfig,
    /// Start a service in its place (used by the lab itself).
    #[command(hide = true)]
    Launch {
        /// A launch in JSON.
        spec: String,
    },
    /// Lead a loopback port to the API server (used by the lab itself).
    #[command(hide = true)]
    Proxy {
        /// The namespace to connect from.
        #[arg(long)]
        netns: String,
        /// Where connections lead.
        #[arg(long)]
        target: SocketAddr,
        /// Where the port's number is written.
        #[arg(long)]
        port_file: PathBuf,
    },
    /// Tell every client the address it comes from, by HTTP and UDP.
    EchoServer {
        /// TCP and UDP port.
        #[arg(long, default_value_t = site::ECHO_PORT)]
        port: u16,
    },
}

#[derive(Debug, Subcommand)]
enum Images {
    /// Write the project's images to target/images; the release programs must be built.
    Build,
    /// Import image archives into every node.
    Load {
        /// OCI archives; the project's own when none is named.
        archives: Vec<PathBuf>,
    },
}

impl Cli {
    /// Does what the command line asks for.
    ///
    /// # Errors
    /// When that fails.
    pub fn run(self) -> Result<()> {
        let site = Site::of_this_program(&self.options.cluster)?;
        let progress = Progress::new(false);
        match self.command {
            Command::Up { kube_proxy, network } => up(&site, kube_proxy, network, &progress),
            Command::Down { at_end_of_input } => {
                if at_end_of_input {
                    io::copy(&mut io::stdin(), &mut io::sink())?;
                }
                down(&site, &progress)
            }
            Command::Residue => residue(&site),
            Command::KubeProxy { mode } => kube_proxy(&site, mode, &progress),
            Command::Echo => Ok(Cluster::attach(&site)?.start_echo()?),
            Command::Images(command) => command.run(&site, &progress),
            Command::Show => {
                print!("{}", Sightings::take(&self.options.kubectl(&site)?)?);
                Ok(())
            }
            Command::Walk => {
                let show = |what: &str, sightings: &Sightings| println!("{what}:\n{sightings}");
                Ok(walk::run(&self.options.kubectl(&site)?, show)?)
            }
            Command::RestartAll => Ok(workloads::restart_all(&self.options.kubectl(&site)?, &progress)?),
            Command::Kubeconfig => {
                println!("{}", Cluster::attach(&site)?.kubeconfig().display());
                Ok(())
            }
            Command::Launch { spec } => Ok(launch::run(&spec)?),
            Command::Proxy {
                netns,
                target,
                port_file,
            } => Ok(proxy::run(&netns, target, &port_file)?),
            Command::EchoServer { port } => Ok(echo::run(port)?),
        }
    }
}

impl Options {
    fn kubectl(&self, site: &Site) -> Result<Kubectl> {
        Ok(if self.external {
            Kubectl::external()
        } else {
            Cluster::attach(site)?.kubectl().clone()
        })
    }
}

impl Images {
    fn run(self, site: &Site, progress: &Progress) -> Result<()> {
        match self {
            Self::Build => {
                for archive in images::build_project()? {
                    progress.step(&format!("image {}", archive.display()));
                }
                Ok(())
            }
            Self::Load { archives } => {
                let archives = if archives.is_empty() {
                    images::build_project()?
                } else {
                    archives
                };
                Cluster::attach(site)?.load_images(&archives)?;
                progress.step(&format!("{} images on every node", archives.len()));
                Ok(())
            }
        }
    }
}

fn up(site: &Site, mode: KubeProxyMode, network: Network, progress: &Progress) -> Result<()> {
    let _lock = Lock::take(site, progress)?;
    let cluster = Cluster::up(site, mode, network, progress)?;
    progress.step(&format!(
        "cluster {} is up: export KUBECONFIG={}",
        site.cluster(),
        cluster.kubeconfig().display()
    ));
    Ok(())
}

fn down(site: &Site, progress: &Progress) -> Result<()> {
    let _lock = Lock::take(site, progress)?;
    cluster::down(site)?;
    progress.step(&format!("cluster {} is down", site.cluster()));
    Ok(())
}

fn kube_proxy(site: &Site, mode: KubeProxyMode, progress: &Progress) -> Result<()> {
    let _lock = Lock::take(site, progress)?;
    Cluster::attach(site)?.set_kube_proxy(mode)?;
    progress.step(&format!("kube-proxy: {mode}"));
    Ok(())
}

fn residue(site: &Site) -> Result<()> {
    let left = residue::find(site);
    if left.is_empty() {
        return Ok(());
    }
    for item in &left {
        println!("{item}");
    }
    bail!("{} things of {} are still there", left.len(), site.cluster())
}
