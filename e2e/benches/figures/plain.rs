//! What ours is compared with: the tunnel that a person makes by hand for one pod, of VXLAN, a rule, SNAT.
//!
//! As lean as it can be: the same MTU and no UDP checksum, the nodes' only other rule is the CNI's masquerade,
//! which here excludes the tunnel by the rule's own interface, nothing is filtered, no SYN is clamped (path MTU
//! discovery does it), and replies go back by the tunnel by a route of the main table. Conntrack sees the tunnel's
//! own UDP as well, as it does wherever nobody thinks of it; [`untrack`] is the further step.

use anyhow::Result;
use egressnat_e2e::topology::{Node, PODS, SERVICES, Topology};

/// Makes it, for the first pod of `topology.source` by way of `topology.gateway`.
pub fn tunnel(topology: &Topology) -> Result<()> {
    let Topology { source, gateway, .. } = topology;
    let pod = source.pods[0].address.v4;
    let ends = [
        End {
            node: source,
            overlay: "169.254.78.1",
            mac: "02:00:00:00:78:01",
        },
        End {
            node: gateway,
            overlay: "169.254.78.2",
            mac: "02:00:00:00:78:02",
        },
    ];
    device(&ends[0], &ends[1])?;
    device(&ends[1], &ends[0])?;
    let overlays = ends.map(|end| end.overlay);
    source.netns.ip(&format!(
        "route add default via {} dev plain0 onlink table 100\n\
         rule add from {pod} lookup 100 priority 770",
        overlays[1]
    ))?;
    source.netns.nft(&format!(
        "flush chain inet cni postrouting\n\
         add rule inet cni postrouting oif eth0 ip saddr {} ip daddr != {{ {}, {} }} masquerade",
        PODS[0], PODS[0], SERVICES[0]
    ))?;
    gateway
        .netns
        .ip(&format!("route add {pod} via {} dev plain0 onlink", overlays[0]))?;
    gateway.netns.nft(&format!(
        "table inet plain {{ chain postrouting {{ type nat hook postrouting priority 50;\n\
         oif eth0 ip saddr {pod} snat ip to {}\n}}\n}}",
        gateway.egress.v4
    ))?;
    Ok(())
}

struct End<'a> {
    node: &'a Node,
    overlay: &'static str,
    mac: &'static str,
}

fn device(here: &End<'_>, there: &End<'_>) -> Result<()> {
    let netns = &here.node.netns;
    netns.ip(&format!(
        "link add plain0 address {} mtu 1450 type vxlan id 770771 dev eth0 local {} remote {} dstport 5770 nolearning\n\
         addr add {}/32 dev plain0\n\
         link set plain0 up\n\
         neigh add {} lladdr {} dev plain0 nud permanent",
        here.mac, here.node.address.v4, there.node.address.v4, here.overlay, there.overlay, there.mac
    ))?;
    netns.sysctl("net.ipv4.conf.plain0.rp_filter", "2")?;
    Ok(())
}

/// A rule as ours, for a mark that no packet has.
pub fn rule(node: &Node) -> Result<()> {
    Ok(node
        .netns
        .ip("rule add fwmark 0x01000000/0x3f000000 lookup 100 priority 770")?)
}

/// Keeps conntrack off the tunnel's own UDP.
pub fn untrack(topology: &Topology) -> Result<()> {
    for node in [&topology.source, &topology.gateway] {
        node.netns.nft(
            "table inet untracked {\n\
             chain prerouting { type filter hook prerouting priority -300; iif eth0 udp dport 5770 notrack; }\n\
             chain output { type filter hook output priority -300; udp dport 5770 notrack; }\n}",
        )?;
    }
    Ok(())
}
