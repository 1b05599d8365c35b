//! The topology with an agent on every node, and what tests ask of it.

use std::{fmt::Debug, net::IpAddr, process::Command, time::Duration};

use egressnat_agent::{agent::Report, owned::Drop as DropReason};
use egressnat_e2e::{
    topology::{self, Dual, FAMILIES, Node, Options, Packet, Pod, Topology},
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
    pub source: Agent,
    pub gateway: Agent,
    pub second: Agent,
}

impl Lab {
    /// With nothing programmed.
    #[track_caller]
    pub fn new(options: Options) -> Self {
        let topology = ok(Topology::new(options));
        Self {
            source: Agent::start(&topology.source, &[]),
            gateway: Agent::start(&topology.gateway, &[]),
            second: Agent::start(&topology.second, &[]),
            topology,
        }
    }

    /// The plan of a node under these policies.
    pub fn plan(&self, node: &Node, policies: &[Policy]) -> egressnat_crds::EgressPlanSpec {
        plan(&self.topology, node, policies)
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

    /// Whatever the pod sends to the server, the server sees `expected`, by TCP, UDP and ICMP, in both families.
    #[track_caller]
    pub fn assert_seen(&self, pod: &Pod, server: Dual, expected: Dual) {
        for family in FAMILIES {
            assert_seen(&self.topology, pod, server.of(family), expected.of(family));
        }
    }
}

impl Drop for Lab {
    /// A failed test says what the nodes' kernels held.
    fn drop(&mut self) {
        const COMMANDS: [&str; 6] = [
            "ip -s -d link show egressnat0",
            "ip rule; ip -6 rule",
            "ip route show table all; ip -6 route show table all",
            "ip neigh show dev egressnat0; bridge fdb show dev egressnat0",
            "conntrack -L 2>/dev/null; conntrack -L -f ipv6 2>/dev/null; nstat -as | grep -E \"Filter|Drop|Err|Disc|NoR\"",
            "nft list ruleset",
        ];
        if !std::thread::panicking() {
            return;
        }
        for (node, agent) in
            self.topology
                .nodes()
                .into_iter()
                .zip([&self.source, &self.gateway, &self.second])
        {
            eprintln!("--- {}: {:?}", node.name, agent.counters());
            for command in COMMANDS {
                let output = node.netns.run(|| {
                    Command::new("sh")
                        .args(["-c", &format!("({command}) 2>&1")])
                        .output()
                });
                let text = output
                    .ok()
                    .and_then(Result::ok)
                    .map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
                eprintln!("--- {}: {command}\n{}", node.name, text.unwrap_or_default());
            }
        }
    }
}

/// Whatever the pod sends to the server, the server sees `expected`, by TCP, UDP and ICMP.
#[track_caller]
pub fn assert_seen(topology: &Topology, pod: &Pod, server: IpAddr, expected: IpAddr) {
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
    let mut tap = ok(topology.tap());
    ok(topology::ping(&pod.netns, server));
    let request = ok(tap.wait_for("an echo request", |packet| {
        packet.is_ping() && packet.destination == server
    }));
    assert_eq!(request.source, expected, "{who} by ICMP");
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

/// Whether a packet on the wire was sent by this node in the tunnel, for this policy.
pub fn is_tunnelled(packet: &Packet, node: &Node, id: u16) -> bool {
    packet.interface == node.name && packet.tunnelled.as_ref().is_some_and(|inner| inner.id == id)
}
