//! The lab cleans up after itself, and gets over what others do to it.

use std::{
    io::{self, BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use egressnat_e2e::{
    cluster::{self, Cluster},
    command,
    error::Result,
    kube_proxy::KubeProxyMode,
    network::Network,
    progress::Progress,
    residue,
    site::{NODES, Site},
    temporary::Temporary,
};

const LAB: &str = env!("CARGO_BIN_EXE_lab");

fn site(name: &str) -> Site {
    Site::new(name, Path::new(LAB))
}

fn lab(site: &Site, args: &[&str]) -> Command {
    let mut command = Command::new(LAB);
    command.args(["--cluster", site.cluster()]).args(args);
    command
}

/// Starts `lab up` and kills it, and only it, once it has announced a step that contains `step`.
fn kill_up_at(site: &Site, step: &str) -> io::Result<()> {
    let mut up = lab(site, &["up"]).stderr(Stdio::piped()).spawn()?;
    let mut said = BufReader::new(up.stderr.take().expect("it is piped"))
        .lines()
        .map_while(io::Result::ok);
    assert!(
        said.any(|line| line.contains(step)),
        "`lab up` never came to: {step}"
    );
    up.kill()?;
    up.wait()?;
    Ok(())
}

#[test]
fn down_removes_what_a_killed_up_left() {
    let site = site("egressnat-killed");
    cluster::down(&site).unwrap();
    let early = ["network namespace ", "folder "].as_slice();
    let late = ["process ", "control group ", "network namespace ", "folder "].as_slice();
    for (step, kinds) in [("control plane", early), ("kubelets", late)] {
        kill_up_at(&site, step).unwrap();
        let left = residue::find(&site).join("\n");
        for kind in kinds {
            assert!(left.contains(kind), "killed at `{step}`, no {kind}left? {left}");
        }
        assert!(command::output(&mut lab(&site, &["residue"])).is_err());
        command::output(&mut lab(&site, &["down"])).unwrap();
        assert_eq!(residue::find(&site), Vec::<String>::new());
        command::output(&mut lab(&site, &["residue"])).unwrap();
    }
}

#[test]
fn up_replaces_a_cluster_with_a_dead_part_and_leaves_a_whole_one_alone() -> Result<()> {
    let site = site("egressnat-broken");
    let cluster = Temporary::up(&site, KubeProxyMode::Nftables, Network::Ptp, &Progress::new(true))?;
    let pids = || -> Vec<Option<i32>> { cluster.nodes().iter().map(|node| node.kubelet().pid()).collect() };
    let before = pids();
    assert!(before.iter().all(Option::is_some));

    Cluster::up(&site, KubeProxyMode::Nftables, Network::Ptp, &Progress::new(true))?;
    assert_eq!(pids(), before, "a cluster that is up is left alone");

    cluster.node(NODES[1].name)?.containerd().kill()?;
    assert!(Cluster::attach(&site).is_err());
    Cluster::up(&site, KubeProxyMode::Nftables, Network::Ptp, &Progress::new(true))?;
    Cluster::attach(&site)?;
    assert_ne!(pids(), before, "a broken cluster is replaced");
    cluster.down()?;
    assert_eq!(residue::find(&site), Vec::<String>::new());
    Ok(())
}
