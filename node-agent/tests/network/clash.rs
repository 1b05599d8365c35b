//! What of other programs is in our way.

use std::time::{Duration, Instant};

use egressnat_agent::kernel::clash::{Clash, Readings, check};
use egressnat_agent::kernel::sysctl::Sysctls;
use egressnat_agent::owned::Numbers;
use egressnat_crds::plan::Family;

use crate::netns::{in_netns, ip, make_underlay, rtnl, run, tunnel};
use crate::sample::{UNDERLAYS, desired, reach};

const FAMILIES: [Family; 2] = [Family::IPv4, Family::IPv6];

async fn clashes() -> Vec<Clash> {
    let mut rtnl = rtnl();
    let observed = rtnl.observe().await.unwrap();
    let readings = Readings::read(&mut rtnl).await.unwrap();
    check(&observed, &readings, &Numbers::default(), &FAMILIES)
}

fn forward() {
    let sysctls = Sysctls::default();
    sysctls.write("ipv4/ip_forward", "1").unwrap();
    sysctls.write("ipv6/conf/all/forwarding", "1").unwrap();
}

#[test]
fn a_clean_node_has_none_before_and_after_we_have_written() {
    for local in UNDERLAYS {
        in_netns(move || async move {
            let underlay = make_underlay();
            forward();
            assert_eq!(clashes().await, []);
            reach(&mut rtnl(), &desired(tunnel(&underlay, local), 3)).await;
            assert_eq!(clashes().await, []);
        });
    }
}

#[test]
fn each_is_found_and_is_the_only_one() {
    let cases = [
        ("ClashLinkName", "ip link add egressnat0 type bridge"),
        (
            "ClashTunnelPort",
            "ip link add vx up type vxlan id 5 dstport 5770 dev up0",
        ),
        (
            "ClashTunnelPort",
            "ip link add vx type vxlan external dstport 5770",
        ),
        ("ClashRulePriority", "ip rule add priority 770 lookup 99"),
        (
            "ClashRulePriority",
            "ip -6 rule add priority 770 from fd00::/8 lookup 99",
        ),
        (
            "ClashRuleMark",
            "ip rule add priority 99 fwmark 0x26000001/0xff000000 lookup 99",
        ),
        (
            "ClashRuleMark",
            "ip -6 rule add priority 2000 fwmark 0x1000000 lookup 99",
        ),
        (
            "ClashRuleMark",
            "ip rule add not priority 99 fwmark 0xca6c lookup 99",
        ),
        (
            "ClashRuleReadsMark",
            "ip -6 rule add not priority 2000 fwmark 0xca6c lookup 99",
        ),
        (
            "ClashRuleTable",
            "ip rule add priority 99 to 10.9.0.0/16 lookup 7701",
        ),
        ("ClashRoute", "ip route add 10.9.0.0/16 dev up0 table 7701"),
        (
            "ClashRoute",
            "ip -6 route add default dev up0 table 7763 protocol static",
        ),
        ("NoForwarding", "sysctl -q -w net.ipv4.ip_forward=0"),
        ("NoForwarding", "sysctl -q -w net.ipv6.conf.all.forwarding=0"),
    ];
    for (category, command) in cases {
        in_netns(move || async move {
            make_underlay();
            forward();
            run(command);
            let found = clashes().await;
            let categories: Vec<_> = found.iter().map(Clash::category).collect();
            assert_eq!(categories, [category], "{command}: {found:?}");
        });
    }
}

#[test]
fn a_process_on_our_port_is_found_as_long_as_it_is_there() {
    for address in ["0.0.0.0:5770", "127.0.0.1:5770", "[::]:5770", "[::1]:5770"] {
        in_netns(move || async move {
            forward();
            let socket = std::net::UdpSocket::bind(address).unwrap();
            let wanted = Clash::Socket {
                address: address.parse().unwrap(),
            };
            assert_eq!(clashes().await, [wanted]);
            drop(socket);
            // Other tests' children hold it too, from their birth until they become another program.
            let end = Instant::now() + Duration::from_secs(10);
            while !clashes().await.is_empty() {
                assert!(Instant::now() < end, "found though it is gone");
            }
        });
    }
}

/// A tunnel of ours that could not come up since a process had the port: it is there, without the port.
#[test]
fn our_own_device_hides_no_process_while_it_is_down() {
    in_netns(|| async {
        let underlay = make_underlay();
        forward();
        reach(&mut rtnl(), &desired(tunnel(&underlay, "192.0.2.1"), 1)).await;
        ip("link set egressnat0 down");
        let _socket = std::net::UdpSocket::bind("0.0.0.0:5770").unwrap();
        let found = clashes().await;
        assert!(matches!(found.as_slice(), [Clash::Socket { .. }]), "{found:?}");
    });
}
