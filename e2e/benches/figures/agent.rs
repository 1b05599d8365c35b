//! The agent at [`LARGE`]: how soon a pod is in the kernel, and what the process takes.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, TcpStream},
    os::fd::AsRawFd,
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use egressnat_crds::{EgressPlan, EgressPlanSpec};
use egressnat_e2e::{
    api_server::ApiServer,
    command,
    site::Site,
    topology::{Node, Options, Topology},
    wait,
};
use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
        socket, sockopt,
    },
    time::{TimeVal, TimeValLike},
};

use crate::{
    plan::{self, LARGE},
    results::{Record, Target},
    variant::in_datapath,
};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Pods added, one at a time.
    pub pods: u32,
    /// Warm starts.
    pub starts: usize,
    /// How long the idle agent is watched. The agent compares the whole kernel with its plan each minute.
    pub idle: Duration,
}

/// Where the agent's probes are.
const HTTP: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 9740);
const DEADLINE: Duration = Duration::from_secs(30);

/// Every figure of the agent.
pub fn records(effort: Effort) -> Result<Vec<Record>> {
    let topology = Topology::new(Options::default())?;
    let node = &topology.source;
    let plan = plan::of_source(&topology, LARGE);
    let mut records = node.netns.run(|| pod_added(node, &plan, effort.pods))??;
    records.extend(node.netns.run(|| process(node, &plan, effort))??);
    for record in &mut records {
        *record = record
            .clone()
            .label("pods", LARGE.pods)
            .label("policies", LARGE.policies);
    }
    Ok(records)
}

/// One pod more, from the watch event's text and from the plan in memory, to the kernel's announcement that it has
/// another element; and to the end of all that the agent does for it.
fn pod_added(node: &Node, plan: &EgressPlanSpec, pods: u32) -> Result<Vec<Record>> {
    let (mut added, mut added_from_text, mut settled) = (Vec::new(), Vec::new(), Vec::new());
    in_datapath(node, async |datapath| {
        datapath.sync(Some(plan)).await?;
        let mut plan = EgressPlan::new(node.name, plan.clone());
        for number in 0..pods {
            let pod = plan::filler(LARGE.pods + number);
            let address = pod.ips[0];
            plan.spec.pods.push(pod);
            let text = serde_json::to_vec(&plan)?;
            ensure!(!is_in_kernel(address)?, "{address} is there too early");
            let announcement = Announcement::expect()?;
            let begin = Instant::now();
            let received: EgressPlan = serde_json::from_slice(&text)?;
            let parsed = Instant::now();
            datapath.sync(Some(&received.spec)).await?;
            let end = Instant::now();
            let committed = announcement.time()?;
            ensure!(is_in_kernel(address)?, "{address} is not there");
            added.push(milliseconds(committed - parsed));
            added_from_text.push(milliseconds(committed - begin));
            settled.push(milliseconds(end - parsed));
        }
        Ok(())
    })?;
    Ok(vec![
        Record::new("agent_pod_added", "ms", &added).target(Target::Below(5.0)),
        Record::new("agent_pod_added_with_parsing", "ms", &added_from_text),
        Record::new("agent_pod_settled", "ms", &settled),
    ])
}

/// When the kernel next says that a transaction of nftables is done, here.
struct Announcement(JoinHandle<Result<Instant>>);

impl Announcement {
    /// Listens from now on.
    fn expect() -> Result<Self> {
        // Bit 6 is group 7, NFNLGRP_NFTABLES.
        let group = NetlinkAddr::new(0, 1 << 6);
        let protocol = SockProtocol::NetlinkNetFilter;
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        bind(fd.as_raw_fd(), &group)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
        let listen = move || {
            recv(fd.as_raw_fd(), &mut [0; 1 << 16], MsgFlags::empty())
                .context("no transaction was announced")?;
            Ok(Instant::now())
        };
        Ok(Self(thread::spawn(listen)))
    }

    fn time(self) -> Result<Instant> {
        self.0.join().map_err(|_| anyhow!("the listener has panicked"))?
    }
}

fn is_in_kernel(address: IpAddr) -> Result<bool> {
    let element = format!("{{ {address} }}");
    let get = ["get", "element", "inet", "egressnat", "pods4", &element];
    Ok(Command::new("nft")
        .args(get)
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status()?
        .success())
}

/// The real program, against a real API server; all of it in the node's namespace. The pods have IPv4 alone:
/// with both families so many would be above etcd's limit of 1.5 MiB an object.
fn process(node: &Node, plan: &EgressPlanSpec, effort: Effort) -> Result<Vec<Record>> {
    let mut plan = plan.clone();
    plan.pods.iter_mut().for_each(|pod| pod.ips.truncate(1));
    let server = ApiServer::start()?;
    let crds = Site::root().join("charts/egressnat/crds");
    command::output(server.kubectl().args(["apply", "--server-side", "-f"]).arg(crds))?;
    command::output(
        server
            .kubectl()
            .args(["wait", "--for=condition=Established", "crd", "--all"]),
    )?;
    let text = serde_json::to_string(&EgressPlan::new(node.name, plan))?;
    command::output_with_input(server.kubectl().args(["create", "-f", "-"]), &text)?;
    // The first start finds what `pod_added` left, and removes its last pods.
    drop(Agent::start(node, &server, &[])?);
    let mut starts = Vec::new();
    for _ in 1..effort.starts {
        starts.push(milliseconds(Agent::start(node, &server, &[])?.ready_after));
    }
    let agent = Agent::start(node, &server, &[])?;
    starts.push(milliseconds(agent.ready_after));
    let idle = agent.idle(effort.idle)?;
    Ok(vec![
        Record::new("agent_warm_start", "ms", &starts).target(Target::Below(300.0)),
        Record::new("agent_resident", "MB", &[agent.status("VmRSS:")?]).target(Target::Below(30.0)),
        Record::new("agent_resident_peak", "MB", &[agent.status("VmHWM:")?]),
        Record::new("agent_idle", "% of a core", &[idle])
            .label("seconds", effort.idle.as_secs())
            .target(Target::Below(0.2)),
    ])
}

/// The release build of `egressnat-agent`. Ended when dropped.
pub struct Agent {
    child: Child,
    /// From its start until it said that it had read the datapath back and found it as the plan says.
    ready_after: Duration,
}

impl Agent {
    /// In the calling thread's namespace, with these flags. Returns when it has a plan in the kernel.
    pub fn start(node: &Node, server: &ApiServer, flags: &[String]) -> Result<Self> {
        let program = Site::target().join("release/egressnat-agent");
        let begin = Instant::now();
        let child = Command::new(&program)
            .args(["--node-name", node.name, "--log-level", "warn"])
            .args(flags)
            .env("KUBECONFIG", server.kubeconfig())
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("failed to start {}", program.display()))?;
        let mut agent = Self {
            child,
            ready_after: DEADLINE,
        };
        while !is_ready() {
            ensure!(begin.elapsed() < DEADLINE, "the agent does not become ready");
            ensure!(agent.child.try_wait()?.is_none(), "the agent has ended");
            thread::sleep(Duration::from_millis(1));
        }
        agent.ready_after = begin.elapsed();
        Ok(agent)
    }

    /// How much of a core it takes while nothing happens, in percent.
    fn idle(&self, during: Duration) -> Result<f64> {
        let mut last = self.processor_time()?;
        wait::until("an idle agent", DEADLINE, || -> Result<(), String> {
            let now = self.processor_time().map_err(|error| error.to_string())?;
            let busy = now - std::mem::replace(&mut last, now);
            if busy.is_zero() {
                Ok(())
            } else {
                Err(format!("it used {busy:?}"))
            }
        })?;
        let begin = Instant::now();
        // The length of the measurement, not a wait for something.
        thread::sleep(during);
        let busy = self.processor_time()? - last;
        Ok(100.0 * busy.as_secs_f64() / begin.elapsed().as_secs_f64())
    }

    /// What all of its threads have used.
    fn processor_time(&self) -> Result<Duration> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()))?;
        let mut total = 0;
        for task in tasks {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            let used = text.split_whitespace().next().unwrap_or_default();
            total += used.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(total))
    }

    /// A line of its status, in megabytes (10^6 octets).
    fn status(&self, key: &str) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kibibytes: f64 = kibibytes.with_context(|| format!("no {key}"))?.parse()?;
        Ok(kibibytes * 1024.0 / 1e6)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_ready() -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(HTTP)?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.0 200"))
    };
    ask().unwrap_or(false)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
