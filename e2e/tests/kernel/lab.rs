//! The topology with an agent on every node, and what tests ask of it.

use std::{
    fmt::Debug,
    net::IpAddr,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use egressnat_agent::{agent::Report, owned::Drop as DropReason};
use egressnat_e2e::{
    topology::{self, Dual, Family, Node, Options, Packet, Pod, Topology},
    wait,
};

use crate::{
    agent::Agent,
    plan::{Policy, plan},
};

const DEADLINE: Duration = Duration::from_secs(5);

/// The topology with an agent on every node.
pub struct Lab {
    pub topology: Topology,
    /// The family of the addresses under the tunnel.
    pub underlay: Family,
    pub source: Agent,
    pub gateway: Agent,
    pub second: Agent,
}

impl Lab {
    /// With nothing programmed.
    #[track_caller]
    pub fn new(options: Options) -> Self {
        Self::over(Family::V4, options)
    }

    /// With nothing programmed, for a tunnel over addresses of this family.
    #[track_caller]
    pub fn over(underlay: Family, options: Options) -> Self {
        let topology = ok(Topology::new(options));
        Self {
            source: Agent::start(&topology.source, &[]),
            gateway: Agent::start(&topology.gateway, &[]),
            second: Agent::start(&topology.second, &[]),
            topology,
            underlay,
        }
    }

    /// Ends every agent; what they have programmed stays.
    pub fn stop_agents(&mut self) {
        for agent in [&mut self.source, &mut self.gateway, &mut self.second] {
            agent.stop();
        }
    }

    /// Starts every agent anew.
    pub fn start_agents(&mut self) {
        self.start_agents_with(&[]);
    }

    /// Starts every agent anew, with further arguments.
    pub fn start_agents_with(&mut self, arguments: &[&str]) {
        let [source, gateway, second] = self.topology.nodes().map(|node| Agent::start(node, arguments));
        (self.source, self.gateway, self.second) = (source, gateway, second);
    }

    /// The plan of a node under these policies.
    pub fn plan(&self, node: &Node, policies: &[Policy]) -> egressnat_crds::EgressPlanSpec {
        plan(&self.topology, self.underlay, node, policies)
    }

    /// Brings every node in step, gateways first. Returns what was done on the source node.
    #[track_caller]
    pub fn apply(&self, policies: &[Policy]) -> Report {
        let Topology {
            source,
            gateway,
            second,
            ..
        } = &self.topology;
        ok(self.second.sync(Some(&self.plan(second, policies))));
        ok(self.gateway.sync(Some(&self.plan(gateway, policies))));
        ok(self.source.sync(Some(&self.plan(source, policies))))
    }

    /// Removes everything from every node, gateways last.
    #[track_caller]
    pub fn remove(&self) {
        for agent in [&self.source, &self.gateway, &self.second] {
            ok(agent.sync(None));
        }
    }

    /// Whatever the pod sends to the server, the server sees `expected`, by TCP, UDP and ICMP, in each family that pods have.
    #[track_caller]
    pub fn assert_seen(&self, pod: &Pod, server: Dual, expected: Dual) {
        for family in &self.topology.families {
            assert_seen(&self.topology, pod, server.of(*family), expected.of(*family));
        }
    }
}

impl Drop for Lab {
    /// A failed test says what the nodes' kernels held.
    fn drop(&mut self) {
        const SHOW: &str = "ip -s -d link show egressnat0; ip rule; ip -6 rule; \
            ip route show table all; ip -6 route show table all; \
            ip neigh show dev egressnat0; bridge fdb show dev egressnat0; \
            conntrack -L; conntrack -L -f ipv6; nstat -as; nft list ruleset";
        if !std::thread::panicking() {
            return;
        }
        for node in self.topology.nodes() {
            let shown = node.netns.run(|| {
                Command::new("sh")
                    .args(["-xc", &format!("exec 2>&1; {SHOW}")])
                    .output()
            });
            if let Ok(Ok(output)) = shown {
                eprintln!("--- {}\n{}", node.name, String::from_utf8_lossy(&output.stdout));
            }
        }
    }
}

/// Whatever the pod sends to a server on the segment or beyond, it sees `expected`, by TCP, UDP and ICMP.
#[track_caller]
pub fn assert_seen(topology: &Topology, pod: &Pod, server: IpAddr, expected: IpAddr) {
    assert_answered(pod, server, expected);
    let mut tap = ok(topology.tap());
    ok(topology::ping(&pod.netns, server));
    let is_request = |packet: &Packet| packet.is_ping() && packet.destination == server;
    let request = ok(tap.wait_for("an echo request", is_request));
    assert_eq!(request.source, expected, "{} to {server} by ICMP", pod.name);
}

/// Any server, a pod, a node or a Service too, answers the pod and sees `expected`, by TCP and UDP.
#[track_caller]
pub fn assert_answered(pod: &Pod, server: IpAddr, expected: IpAddr) {
    let who = format!("{} to {server}", pod.name);
    assert_eq!(
        ok(topology::ask_tcp(&pod.netns, server)),
        expected,
        "{who} by TCP"
    );
    assert_eq!(
        ok(topology::ask_udp(&pod.netns, server)),
        expected,
        "{who} by UDP"
    );
}

/// Does `work` while another thread does `again` over and over, which ends with it, also when it panics.
pub fn meanwhile(again: impl Fn() + Send + Sync, work: impl FnOnce()) {
    struct End<'a>(&'a AtomicBool);
    impl std::ops::Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                again();
            }
        });
        let _end = End(&ended);
        work();
    });
}

/// Waits until an agent has dropped so many packets for a reason, and not one more.
#[track_caller]
pub fn assert_dropped(agent: &Agent, reason: DropReason, expected: u64) {
    ok(wait::until(
        &format!("{} = {expected}", reason.counter()),
        DEADLINE,
        || {
            let dropped = agent.dropped(reason);
            if dropped == expected {
                Ok(())
            } else {
                Err(format!("{dropped}"))
            }
        },
    ));
}

/// The value, or the end of the test with the error's words.
#[track_caller]
pub fn ok<T, E: std::error::Error + Debug>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => {
            let source = error
                .source()
                .map(|source| format!(": {source}"))
                .unwrap_or_default();
            panic!("{error}{source}")
        }
    }
}

/// Whether a packet on the wire was sent by this node in the tunnel, for this policy, with this inside.
pub fn is_tunnelled(packet: &Packet, node: &Node, id: u16, inner: impl Fn(&Packet) -> bool) -> bool {
    let tunnelled = packet
        .tunnelled
        .as_ref()
        .filter(|_| packet.interface == node.name);
    tunnelled.is_some_and(|t| t.id == id && inner(&t.packet))
}
