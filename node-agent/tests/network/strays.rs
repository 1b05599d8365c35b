//! What is on our ground and not as ours are, and what is others'.

use egressnat_agent::model::Net;
use egressnat_crds::plan::Family;

use crate::netns::{in_netns, ip, make_underlay, rtnl, run, tunnel};
use crate::sample::{UNDERLAYS, desired, observe, reach};

#[test]
fn what_is_ours_by_its_place_but_not_as_ours_are_is_found_and_removed() {
    for local in UNDERLAYS {
        in_netns(move || async move {
            let mut rtnl = rtnl();
            let net = desired(tunnel(&make_underlay(), local), 2);
            reach(&mut rtnl, &net).await;
            let strays = make_strays(&net);
            let observed = observe(&mut rtnl, &net.sysctls).await;
            let found: Vec<_> = observed.strays.iter().map(ToString::to_string).collect();
            assert_eq!(found.len(), strays, "{found:#?}");
            rtnl.remove_strays(&observed.strays).await.unwrap();
            rtnl.remove_strays(&observed.strays).await.unwrap();
            assert_eq!(rtnl.observe().await.unwrap().strays, vec![]);
            reach(&mut rtnl, &net).await;
            let observed = observe(&mut rtnl, &net.sysctls).await;
            assert_eq!((observed.net, observed.strays), (net.clone(), vec![]));
        });
    }
}

/// Returns how many it makes.
fn make_strays(net: &Net) -> usize {
    let commands = [
        "ip route add 0.0.0.0/0 via 192.0.2.9 dev egressnat0 onlink metric 5 table 7701 protocol kernel",
        "ip route add prohibit 10.9.0.0/16 table 7702 protocol kernel",
        "ip route add 10.8.0.0/16 table 7702 protocol kernel nexthop dev up0 nexthop dev egressnat0",
        "ip -6 route add fd09::/48 dev up0 metric 5 table 7703 protocol kernel",
        "ip -6 route add fd08::/48 via fe80::9 dev egressnat0 onlink table 7703 protocol kernel mtu 1300",
        "ip -6 route add fd07::/48 table 7703 protocol kernel nexthop via fe80::9 dev up0 nexthop via fe80::8 dev up0",
        "ip rule add priority 770 from 10.0.0.0/8 fwmark 0x1000000/0x3f000000 lookup 7701 protocol kernel",
        "ip rule add priority 770 fwmark 0x3000000/0x3f000000 lookup 7703",
        "ip rule add not priority 770 fwmark 0x3000000/0x3f000000 lookup 7703 protocol kernel",
        "ip -6 rule add priority 770 fwmark 0x3000000/0x3f000000 unreachable protocol kernel",
        "ip -6 rule add priority 999 fwmark 0x3000000/0x3f000000 lookup 7703 protocol kernel",
        "bridge fdb add 02:09:09:09:09:09 dev egressnat0 dst 192.0.2.9 port 4789 self permanent",
        "bridge fdb add 02:09:09:09:09:08 dev egressnat0 dst 192.0.2.9 self static",
    ];
    let v6 = net.tunnel.as_ref().unwrap().local.is_ipv6();
    for command in commands {
        match v6 && command.starts_with("bridge") {
            true => run(&command.replace("192.0.2.9", "2001:db8::9")),
            false => run(command),
        };
    }
    // Beside one that is there: then neither is the one.
    let doubles = [
        "ip route append 10.244.0.0/16 via 192.0.2.9 dev egressnat0 onlink table 7701 protocol kernel",
        "ip -6 route append fd00:1::/48 via fe80::9 dev egressnat0 onlink table 7702 protocol kernel",
    ];
    doubles.iter().for_each(|command| drop(run(command)));
    commands.len() + 2 * doubles.len()
}

#[test]
fn others_are_told_apart() {
    in_netns(|| async {
        make_underlay();
        ip("route add 10.9.0.0/16 via 192.0.2.9 table 7701 protocol static");
        ip("-6 route add fd09::/48 dev up0 table 7763");
        ip("route add 10.9.0.0/16 via 192.0.2.9 table 7764");
        ip("rule add priority 770 lookup 99");
        ip("-6 rule add priority 99 fwmark 0x26000001/0xff000000 lookup 99");
        ip("rule add priority 1024 fwmark 0x80/0x80 lookup 99");
        let observed = rtnl().observe().await.unwrap();
        assert_eq!((observed.net, observed.strays), (Net::default(), vec![]));
        let routes = observed.foreign_routes.iter();
        let routes: Vec<_> = routes.map(|r| (r.table, r.to.to_string(), r.protocol)).collect();
        assert_eq!(
            routes,
            [
                (7701, "10.9.0.0/16".to_string(), 4),
                (7763, "fd09::/48".to_string(), 3)
            ]
        );
        let rules: Vec<_> = observed
            .foreign_rules
            .iter()
            .map(|r| (r.family, r.priority, r.mark, r.mask))
            .collect();
        let wanted = [
            (Family::IPv4, 770, 0, 0),
            (Family::IPv6, 99, 0x2600_0001, 0xff00_0000),
        ];
        assert_eq!(rules, wanted);
    });
}
