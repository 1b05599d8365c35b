//! What the compiler and the operator are told of the node.

use std::collections::BTreeMap;
use std::net::IpAddr;

use egressnat_agent::kernel::observe_facts::{interfaces, observe_facts};
use egressnat_agent::kernel::rtnl::Observed;
use egressnat_agent::kernel::sysctl::Sysctls;
use egressnat_agent::owned::Numbers;
use egressnat_crds::plan::{EgressPlanSpec, Family};

use crate::netns::{Elsewhere, in_netns, ip, make_underlay, rtnl, tunnel};
use crate::sample::{EXIT, UNDERLAYS, desired, peer, reach};

pub fn with_underlay(underlay: Option<IpAddr>) -> EgressPlanSpec {
    EgressPlanSpec {
        underlay,
        ..EgressPlanSpec::default()
    }
}

#[test]
fn gateways_keep_their_numbers() {
    for local in UNDERLAYS {
        in_netns(move || async move {
            let underlay = make_underlay();
            let mut rtnl = rtnl();
            let net = desired(tunnel(&underlay, local), 3);
            let local: IpAddr = local.parse().unwrap();
            let plan = with_underlay(Some(local));
            let (sysctls, numbers) = (Sysctls::default(), Numbers::default());

            let observed = rtnl.observe().await.unwrap();
            let before = observe_facts(&observed, None, &sysctls, &plan, &numbers).unwrap();
            assert_eq!((before.tunnel, before.gateway_numbers), (None, BTreeMap::new()));

            reach(&mut rtnl, &net).await;
            let observed = rtnl.observe().await.unwrap();
            let facts = observe_facts(&observed, None, &sysctls, &plan, &numbers).unwrap();
            let wanted = [1, 2, 3].map(|n| (peer(local, n), u8::try_from(n).unwrap()));
            assert_eq!(facts.gateway_numbers, wanted.into());
            assert_eq!(facts.exit_numbers, [(underlay.index, EXIT)].into());
            assert_eq!(facts.tunnel.unwrap().name, "egressnat0");
        });
    }
}

#[test]
fn the_underlay_is_the_link_that_holds_its_address() {
    in_netns(|| async {
        let underlay = make_underlay();
        ip("link set up0 mtu 1420");
        ip("address add 198.51.100.7/32 dev lo");
        let (sysctls, numbers) = (Sysctls::default(), Numbers::default());
        let observed = rtnl().observe().await.unwrap();
        for local in UNDERLAYS {
            let local = local.parse().ok();
            let facts = observe_facts(&observed, None, &sysctls, &with_underlay(local), &numbers).unwrap();
            let found = facts.underlay.unwrap();
            assert_eq!((found.link, found.mtu), (underlay.clone(), 1420));
            let held = ["127.0.0.1", "::1", "198.51.100.7", "192.0.2.1", "2001:db8::1"];
            for address in held {
                assert!(facts.addresses.contains(&address.parse().unwrap()), "{address}");
            }
            assert!(!facts.addresses.contains(&"192.0.2.2".parse().unwrap()));
            assert!(facts.ipv6);
        }
        let nobodys = "192.0.2.2".parse().ok();
        let facts = observe_facts(&observed, None, &sysctls, &with_underlay(nobodys), &numbers).unwrap();
        assert_eq!(facts.underlay, None);
        sysctls.write("ipv6/conf/all/disable_ipv6", "1").unwrap();
        let facts = observe_facts(&observed, None, &sysctls, &with_underlay(None), &numbers).unwrap();
        assert!(!facts.ipv6);
    });
}

#[test]
fn interfaces_have_the_addresses_that_a_policy_may_name() {
    in_netns(|| async {
        let underlay = make_underlay();
        let elsewhere = Elsewhere::new();
        let commands = [
            // In this order the kernel makes 192.0.2.7 a secondary, and prefers 203.0.113.9 to nothing.
            "address add 192.0.2.7/24 dev up0",
            "link property add dev up0 altname enp0s31f6",
            // Longer than a name may be.
            "link property add dev up0 altname uplink-to-partner-01",
            "address add 203.0.113.9/32 dev up0",
            "address add 192.0.3.8/24 scope link dev up0",
            "address add 169.254.20.10/32 dev up0",
            "-6 address add 2001:db8::7/64 dev up0 nodad preferred_lft 0",
            "-6 address add 2001:db8::6/64 dev up0 nodad preferred_lft 0 valid_lft 600",
            "-6 address add 2001:db8:0:1::5/64 dev up0 nodad",
            "address add 198.51.100.7/32 dev lo",
            "link add br0 type bridge",
            "address add 10.244.0.1/24 dev br0",
            "link add kube-ipvs0 type bridge",
            "address add 10.96.0.1/32 dev kube-ipvs0",
            "link add pod1 type veth peer name far1",
            "address add 10.244.1.1/32 dev pod1",
            "link add eth9 type veth peer name far9",
            "address add 172.18.0.2/16 dev eth9",
            "link set eth9 up",
            "link add eth8 type veth peer name far8",
            "address add 198.51.100.8/32 dev eth8",
            "link set eth8 up",
            "route add default dev eth8",
        ];
        commands.iter().for_each(|command| drop(ip(command)));
        for far in ["far1", "far8", "far9"] {
            ip(&format!("link set {far} netns {}", elsewhere.thread));
        }
        let mut rtnl = rtnl();
        reach(&mut rtnl, &desired(tunnel(&underlay, "192.0.2.1"), 1)).await;
        ip("address add 10.1.1.1/24 dev egressnat0");
        let text = interfaces(&rtnl.observe().await.unwrap())
            .into_iter()
            .map(|i| format!("{} {:?} {:?}", i.name, i.addresses, i.default_route));
        assert_eq!(
            text.collect::<Vec<_>>(),
            [
                "br0 [10.244.0.1] []",
                "enp0s31f6 [192.0.2.1, 203.0.113.9, 192.0.2.7, 2001:db8::1, 2001:db8:0:1::5, 2001:db8::7] []",
                "eth8 [198.51.100.8] [IPv4]",
                "eth9 [172.18.0.2] []",
                "lo [198.51.100.7] []",
                "up0 [192.0.2.1, 203.0.113.9, 192.0.2.7, 2001:db8::1, 2001:db8:0:1::5, 2001:db8::7] []",
                "uplink-to-partner-01 [192.0.2.1, 203.0.113.9, 192.0.2.7, 2001:db8::1, 2001:db8:0:1::5, 2001:db8::7] []",
            ]
        );
    });
}

#[test]
fn the_default_route_is_that_of_the_lowest_metric_in_table_main() {
    in_netns(|| async {
        make_underlay();
        ip("link set up1 up");
        ip("address add 198.51.100.1/24 dev up1");
        ip("-6 address add 2001:db8:9::1/64 dev up1 nodad");
        let mut rtnl = rtnl();
        let (v4, v6) = (Family::IPv4, Family::IPv6);
        let found = |observed: &Observed| {
            let all = interfaces(observed).into_iter();
            all.map(|i| (i.name, i.default_route)).collect::<BTreeMap<_, _>>()
        };
        let observed = rtnl.observe().await.unwrap();
        assert_eq!(
            found(&observed),
            [("up0".into(), vec![]), ("up1".into(), vec![])].into()
        );
        let routes = [
            "route add default via 192.0.2.254 metric 100",
            "route add default via 198.51.100.254 metric 50",
            "-6 route add default via fe80::1 dev up0",
            "-6 route add default via fe80::1 dev up1 metric 2000",
            "route add default via 198.51.100.254 table 99",
        ];
        routes.iter().for_each(|route| drop(ip(route)));
        let observed = rtnl.observe().await.unwrap();
        assert_eq!(
            found(&observed),
            [("up0".into(), vec![v6]), ("up1".into(), vec![v4])].into()
        );
        ip("route del default metric 50");
        let observed = rtnl.observe().await.unwrap();
        assert_eq!(
            found(&observed),
            [("up0".into(), vec![v4, v6]), ("up1".into(), vec![])].into()
        );
        ip("route add default metric 10 nexthop via 192.0.2.254 nexthop via 198.51.100.254");
        let observed = rtnl.observe().await.unwrap();
        assert_eq!(
            found(&observed),
            [("up0".into(), vec![v4, v6]), ("up1".into(), vec![v4])].into()
        );
    });
}
