//! A few worlds in the kernel: the bare topology with an agent on every node, and what the outside sees.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use egressnat_agent::owned::Drop as Reason;
use egressnat_crds::ports::PortRange;
use egressnat_e2e::netns::Netns;
use egressnat_e2e::topology::{
    API_SERVER, Conversation, ELSEWHERE, FAMILIES, Family, Flow, Node, Options, PORT, SERVER, Topology,
    ask_udp, knock_udp,
};
use egressnat_e2e::wait;
use egressnat_operator::plan::plan;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::agent::Agent;
use crate::expected::{Capture, NotCaptured, Verdict, expected, owner, say};
use crate::generate::topology_worlds;
use crate::world::World;

/// How many worlds: always the same ones.
const WORLDS: u8 = 12;

const DEADLINE: Duration = Duration::from_secs(5);

/// One lab for all: the way from each world to the next is a random change of everything.
#[test]
fn the_outside_sees_what_the_model_says() {
    let mut lab = Lab::new();
    let mut met = BTreeSet::new();
    for seed in 1..=WORLDS {
        let world = world(seed);
        lab.program(&world);
        lab.compare(&world, &mut met);
    }
    assert_eq!(met.len(), 5, "the worlds are all alike: only {met:?}");
}

fn world(seed: u8) -> World {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    topology_worlds().new_tree(&mut runner).unwrap().current()
}

/// Whom the server sees, by UDP and by TCP.
#[derive(Debug)]
struct Seen {
    address: IpAddr,
    ports: [u16; 2],
}

/// Whom it must see.
#[derive(Clone, Copy)]
struct Wanted {
    address: IpAddr,
    ports: Option<PortRange>,
}

impl Wanted {
    fn fits(&self, seen: &Seen) -> bool {
        let fits = |port: &u16| self.ports.is_none_or(|ports| ports.contains(*port));
        self.address == seen.address && seen.ports.iter().all(fits)
    }
}

struct Lab {
    topology: Topology,
    agents: [Agent; 3],
    /// The last pod that policies have selected with an address, by uid. When it is gone, the address keeps its verdict,
    /// as the network is still up, and nobody tells the agent of an heir that is not selected: that is for the tests of
    /// pods that are gone.
    selected: BTreeMap<IpAddr, String>,
}

impl Lab {
    fn new() -> Self {
        let topology = Topology::new(Options::default()).unwrap();
        let agents = topology.nodes().map(|node| Agent::start(node, &[]));
        Self {
            topology,
            agents,
            selected: BTreeMap::new(),
        }
    }

    /// Makes the nodes' kernels what the planner says.
    fn program(&mut self, world: &World) {
        let outcome = plan(&world.known());
        let pods = outcome.plans.values().flat_map(|plan| &plan.pods);
        let addresses = pods.flat_map(|pod| pod.ips.iter().map(|ip| (*ip, pod.uid.clone())));
        self.selected.extend(addresses);
        for (node, agent) in self.topology.nodes().iter().zip(&self.agents) {
            let report = agent.sync(Some(&outcome.plans[node.name]));
            report.unwrap_or_else(|error| panic!("{}: {error}\n{world}", node.name));
        }
    }

    /// Sends from every pod of the topology, be it one of the world's or not, and from every node.
    fn compare(&self, world: &World, met: &mut BTreeSet<&'static str>) {
        for (node, agent) in self.topology.nodes().into_iter().zip(&self.agents) {
            for family in FAMILIES {
                for server in [SERVER, ELSEWHERE, API_SERVER].map(|s| s.of(family)) {
                    for pod in &node.pods {
                        let address = pod.address.of(family);
                        let uid = owner(world, address).map(|pod| &pod.metadata.uid);
                        if self
                            .selected
                            .get(&address)
                            .is_some_and(|before| Some(before) != uid)
                        {
                            continue;
                        }
                        let verdict = verdict(world, address, server);
                        let seen = self.seen(&pod.netns, agent, server, &verdict);
                        let who = format!("{} to {server}: {}", pod.name, say(&verdict));
                        let wanted = wanted(&verdict, node, family, met);
                        let fits = wanted.iter().any(|wanted| match (wanted, &seen) {
                            (None, None) => true,
                            (Some(wanted), Some(seen)) => wanted.fits(seen),
                            _ => false,
                        });
                        assert!(fits, "{who}, seen is {seen:?}\n{world}");
                    }
                    let seen = ask_udp(&node.netns, server).ok();
                    assert_eq!(
                        seen,
                        Some(node.address.of(family)),
                        "{} to {server}\n{world}",
                        node.name
                    );
                }
            }
        }
    }

    /// Whom the server sees, by UDP and TCP alike. None where the packet is dropped, as the verdict says.
    fn seen(&self, netns: &Netns, agent: &Agent, server: IpAddr, verdict: &Verdict) -> Option<Seen> {
        if let Ok([Capture::Dropped { .. }]) = verdict.as_deref() {
            let before = agent.dropped(Reason::NoGateway);
            knock_udp(netns, server).unwrap();
            let dropped = || match agent.dropped(Reason::NoGateway) {
                now if now == before + 1 => Ok(()),
                now => Err(format!("{before}, then {now}")),
            };
            // Where nothing is dropped, the server's answer says more than the counter.
            return match wait::until("a drop", DEADLINE, dropped) {
                Ok(()) => None,
                Err(error) => Some(ask(netns, server).unwrap_or_else(|_| panic!("{error}"))),
            };
        }
        ask(netns, server).ok()
    }
}

/// Asks by UDP and TCP.
fn ask(netns: &Netns, server: IpAddr) -> egressnat_e2e::error::Result<Seen> {
    let server = SocketAddr::new(server, PORT);
    let udp = Flow::open(netns, server)?.peer()?;
    let tcp = Conversation::open(netns, server)?.peer()?;
    assert_eq!(udp.ip(), tcp.ip(), "the sources by UDP and TCP");
    Ok(Seen {
        address: udp.ip(),
        ports: [udp.port(), tcp.port()],
    })
}

/// The verdict on what is sent with an address: that on its owner, if it has one.
fn verdict(world: &World, address: IpAddr, server: IpAddr) -> Verdict {
    let owner = owner(world, address).ok_or(NotCaptured::NoPolicy)?;
    expected(world, owner, server)
}

/// Whom the server must see, if anybody: any of these.
fn wanted(
    verdict: &Verdict,
    node: &Node,
    family: Family,
    met: &mut BTreeSet<&'static str>,
) -> Vec<Option<Wanted>> {
    let nodes = Wanted {
        address: node.address.of(family),
        ports: None,
    };
    let Ok(captures) = verdict else {
        met.insert("not captured");
        return vec![Some(nodes)];
    };
    let wanted = captures.iter().map(|capture| {
        let (kind, address) = match capture {
            Capture::Egress { address, ports, .. } => {
                let kind = if ports.is_some() {
                    "egress with ports"
                } else {
                    "egress"
                };
                let (address, ports) = (*address, *ports);
                (kind, Some(Wanted { address, ports }))
            }
            Capture::NodeAddress { .. } => ("node address", Some(nodes)),
            Capture::Dropped { .. } => ("dropped", None),
        };
        met.insert(kind);
        address
    });
    wanted.collect()
}
