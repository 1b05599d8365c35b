//! What no policy captures, though it says 0.0.0.0/0 and ::/0.

use std::net::IpAddr;

use egressnat_e2e::topology::{
    API_SERVER, Dual, ELSEWHERE, FAMILIES, Node, Options, PORT, SERVER, Server, Topology,
};

use crate::{
    lab::{Lab, assert_answered, ok},
    plan::{EVERYWHERE, Policy},
};

const SERVICE: Dual = Dual::new([10, 96, 0, 10], [0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x10]);

/// A lab whose source node's first pod is selected for everything there is.
fn lab() -> Lab {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    let everything = Policy::new(7).to(&EVERYWHERE).via(gateway, gateway.egress);
    lab.apply(&[everything.select(&source.pods[0]).select(&gateway.pods[0])]);
    for node in [source, gateway] {
        for server in [SERVER, ELSEWHERE] {
            lab.assert_seen(&node.pods[0], server, gateway.egress);
        }
    }
    lab
}

/// What kube-proxy does to packets for a Service with one endpoint.
fn add_service(node: &Node, endpoint: Dual) {
    let rules = FAMILIES.map(|family| {
        let ip = if family == egressnat_e2e::topology::Family::V4 {
            "ip"
        } else {
            "ip6"
        };
        format!(
            "{ip} daddr {} dnat {ip} to {}\n",
            SERVICE.of(family),
            endpoint.of(family)
        )
    });
    let rules = rules.concat();
    ok(node.netns.nft(&format!(
        "table inet service {{ chain prerouting {{ type nat hook prerouting priority -100;\n{rules}}}\n}}"
    )));
}

fn serve(node: &Node, addresses: &[IpAddr]) -> Server {
    ok(Server::start(&node.netns, addresses, PORT))
}

#[test]
fn other_pods_see_the_pods_own_address() {
    let lab = lab();
    let Topology { source, gateway, .. } = &lab.topology;
    let pod = &source.pods[0];
    for other in [&source.pods[1], &gateway.pods[1]] {
        let _server = ok(Server::start(&other.netns, &other.address.both(), PORT));
        for family in FAMILIES {
            assert_answered(pod, other.address.of(family), pod.address.of(family));
        }
    }
}

#[test]
fn a_connection_from_another_pod_is_answered() {
    let lab = lab();
    let Topology { source, gateway, .. } = &lab.topology;
    let pod = &source.pods[0];
    let _server = ok(Server::start(&pod.netns, &pod.address.both(), PORT));
    for other in [&source.pods[1], &gateway.pods[0], &gateway.pods[1]] {
        for family in FAMILIES {
            assert_answered(other, pod.address.of(family), other.address.of(family));
        }
    }
}

#[test]
fn a_services_endpoint_in_the_cluster_sees_the_pods_own_address() {
    let lab = lab();
    let Topology { source, gateway, .. } = &lab.topology;
    let (pod, endpoint) = (&source.pods[0], &gateway.pods[1]);
    let _server = ok(Server::start(&endpoint.netns, &endpoint.address.both(), PORT));
    add_service(source, endpoint.address);
    for family in FAMILIES {
        assert_answered(pod, SERVICE.of(family), pod.address.of(family));
    }
}

#[test]
fn nodes_see_what_they_would_see_without_a_policy() {
    let lab = lab();
    let Topology {
        source,
        gateway,
        second,
        ..
    } = &lab.topology;
    let pod = &source.pods[0];
    for node in [source, gateway, second] {
        let _server = serve(node, &[node.address, node.secondary].map(Dual::both).concat());
        let expected = if node.name == source.name {
            pod.address
        } else {
            source.address
        };
        for address in [node.address, node.secondary] {
            for family in FAMILIES {
                assert_answered(pod, address.of(family), expected.of(family));
            }
        }
    }
}

#[test]
fn the_api_server_sees_the_nodes_address_directly_and_as_a_service() {
    let lab = lab();
    let Topology { source, gateway, .. } = &lab.topology;
    for node in [source, gateway] {
        add_service(node, API_SERVER);
        for address in [API_SERVER, SERVICE] {
            for family in FAMILIES {
                assert_answered(&node.pods[0], address.of(family), node.address.of(family));
            }
        }
    }
}

#[test]
fn node_local_dns_sees_the_pods_own_address() {
    let lab = lab();
    let Topology { source, .. } = &lab.topology;
    // On a link of its own, as node-local DNS has it; the second address is in no range that is special.
    let locals: [IpAddr; 3] =
        ["169.254.20.10", "192.0.2.53", "2001:db8:53::53"].map(|a| a.parse().expect("an address"));
    ok(source
        .netns
        .ip("link add nodelocaldns type bridge\nlink set nodelocaldns up"));
    for local in locals {
        ok(source
            .netns
            .ip(&format!("addr add {local} dev nodelocaldns nodad")));
    }
    let _server = serve(source, &locals);
    let pod = &source.pods[0];
    for local in locals {
        let [v4, v6] = pod.address.both();
        assert_answered(pod, local, if local.is_ipv4() { v4 } else { v6 });
    }
}

/// A Service's address is in no policy; the endpoint outside, to which it leads, is.
#[test]
fn a_service_with_an_endpoint_outside_is_judged_by_that_endpoint() {
    let lab = lab();
    let Topology { source, gateway, .. } = &lab.topology;
    for node in [source, gateway] {
        add_service(node, SERVER);
        for family in FAMILIES {
            assert_answered(&node.pods[0], SERVICE.of(family), gateway.egress.of(family));
        }
    }
    // And where that endpoint is none of the policy's destinations, it sees the node.
    let beyond = Policy::new(7)
        .to(&["198.51.100.0/24", "2001:db8:51::/48"])
        .via(gateway, gateway.egress);
    lab.apply(&[beyond.select(&source.pods[0])]);
    for family in FAMILIES {
        assert_answered(&source.pods[0], SERVICE.of(family), source.address.of(family));
    }
}
