//! By which links egress addresses leave, and what their tables need.

use egressnat_agent::diff::ObservedTable;
use egressnat_agent::facts::Exit;
use egressnat_agent::kernel::observe_facts::observe_facts;
use egressnat_agent::kernel::sysctl::Sysctls;
use egressnat_agent::model::{Data, DataType, ElementKey, KeyType, Set};
use egressnat_agent::owned::{Numbers, RP_FILTER};
use egressnat_crds::plan::{EgressPlanSpec, GatewayRole, PlanPolicy};

use crate::facts::with_underlay;
use crate::netns::{in_netns, index, ip, link, make_underlay, rtnl};

/// A plan for the node of [`make_underlay`] that sends with these addresses.
fn with_addresses(addresses: &[&str]) -> EgressPlanSpec {
    let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
    EgressPlanSpec {
        policies: vec![PlanPolicy {
            id: 7,
            name: "seven".into(),
            source: None,
            gateway: Some(GatewayRole {
                addresses,
                source_ports: None,
            }),
        }],
        ..with_underlay("192.0.2.1".parse().ok())
    }
}

async fn exits(addresses: &[&str]) -> Vec<Exit> {
    let observed = rtnl().observe().await.unwrap();
    let (plan, sysctls) = (with_addresses(addresses), Sysctls::default());
    let facts = observe_facts(&observed, None, &sysctls, &plan, &Numbers::default());
    facts.unwrap().exits
}

/// The exit as text: its link, its addresses, and its routes outside of link-local.
fn exit_text(exit: &Exit) -> String {
    let routes = exit
        .routes
        .iter()
        .filter(|(to, _)| !to.to_string().starts_with("fe80"));
    let routes = routes.map(|(to, via)| match via {
        Some(via) => format!("{to} via {via}"),
        None => to.to_string(),
    });
    let (addresses, routes) = (&exit.addresses, routes.collect::<Vec<_>>());
    format!("{} {addresses:?} {routes:?}", exit.link.name)
}

#[test]
fn an_address_on_another_link_than_the_default_routes_leaves_by_it() {
    in_netns(|| async {
        make_underlay();
        let commands = [
            "address add 198.51.100.1/24 dev up1",
            "-6 address add 2001:db8:9::1/64 dev up1 nodad",
            "address add 203.0.113.5/32 dev lo",
        ];
        commands.iter().for_each(|command| drop(ip(command)));
        // Without a default route the link under the tunnel stands for its link.
        let all = ["192.0.2.1", "198.51.100.1", "2001:db8:9::1", "203.0.113.5"];
        let text = async || exits(&all).await.iter().map(exit_text).collect::<Vec<_>>();
        assert_eq!(
            text().await,
            ["up1 {198.51.100.1, 2001:db8:9::1} [\"198.51.100.0/24\", \"2001:db8:9::/64\"]"]
        );
        assert_eq!(
            exits(&all[..1]).await,
            [],
            "no address of the other link is asked for"
        );
        // A route of each kind: by a next hop, another's, of a routing protocol, in a table that a rule leads to.
        let commands = [
            "route add default via 192.0.2.254",
            "route add 10.9.0.0/16 via 198.51.100.9",
            "route add 10.8.0.0/16 via 192.0.2.9",
            "route add 10.7.0.0/16 via 198.51.100.9 protocol bird",
            "route add 10.6.0.0/16 via 198.51.100.9 table 101",
            "route add default via 198.51.100.254 table 102",
            "route add default via 198.51.100.253 table 101",
            "-6 route add default via fe80::1 dev up0",
            "-6 route add default via fe80::2 dev up1 metric 2000",
        ];
        commands.iter().for_each(|command| drop(ip(command)));
        let by_next_hop = |via: &str| {
            let v4 =
                format!("\"0.0.0.0/0 via {via}\", \"10.9.0.0/16 via 198.51.100.9\", \"198.51.100.0/24\"");
            let v6 = "\"::/0 via fe80::2\", \"2001:db8:9::/64\"";
            [format!("up1 {{198.51.100.1, 2001:db8:9::1}} [{v4}, {v6}]")]
        };
        assert_eq!(text().await, by_next_hop("198.51.100.253"));
        // Of table main, of whatever metric, rather than of another.
        ip("route add default via 198.51.100.252 metric 500");
        assert_eq!(text().await, by_next_hop("198.51.100.252"));
        // The default route's link is another now: so are the addresses that need an exit.
        ip("-6 route del default via fe80::1 dev up0");
        ip("route del default via 192.0.2.254");
        assert_eq!(
            text().await,
            ["up0 {192.0.2.1} [\"10.8.0.0/16 via 192.0.2.9\", \"192.0.2.0/24\"]"]
        );
        // Of several at once, the kernel takes any: no address is safe with it.
        ip("route add default metric 10 nexthop via 192.0.2.254 nexthop via 198.51.100.254");
        let default = "0.0.0.0/0".parse().unwrap();
        let next_hop = |exit: &Exit| (exit.link.name.clone(), exit.routes[&default].unwrap().to_string());
        let mut next_hops: Vec<_> = exits(&all[..2]).await.iter().map(next_hop).collect();
        next_hops.sort();
        let wanted = [("up0", "192.0.2.254"), ("up1", "198.51.100.254")];
        assert_eq!(
            next_hops,
            wanted.map(|(link, via)| (link.to_string(), via.to_string()))
        );
    });
}

#[test]
fn two_links_of_one_network_have_one_next_hop() {
    in_netns(|| async {
        make_underlay();
        let commands = [
            "address add 192.0.2.2/24 dev up1",
            "-6 address add 2001:db8::2/64 dev up1 nodad",
            "route add default via 192.0.2.254 dev up0",
            "-6 route add default via fe80::1 dev up0",
        ];
        commands.iter().for_each(|command| drop(ip(command)));
        let addresses = ["192.0.2.2", "2001:db8::2"];
        let text = async || exits(&addresses).await.iter().map(exit_text).collect::<Vec<_>>();
        let [v4, v6] = [
            "\"0.0.0.0/0 via 192.0.2.254\", \"192.0.2.0/24\"",
            "\"2001:db8::/64\"",
        ];
        // A link-local next hop is one on its own link alone.
        assert_eq!(
            text().await,
            [format!("up1 {{192.0.2.2, 2001:db8::2}} [{v4}, {v6}]")]
        );
        ip("-6 route add default via 2001:db8::fe dev up0 metric 5");
        let v6 = "\"::/0 via 2001:db8::fe\", \"2001:db8::/64\"";
        assert_eq!(
            text().await,
            [format!("up1 {{192.0.2.2, 2001:db8::2}} [{v4}, {v6}]")]
        );
    });
}

#[test]
fn a_reverse_path_filter_is_strict_by_the_links_value_or_that_of_all() {
    in_netns(|| async {
        make_underlay();
        ip("route add default via 192.0.2.254");
        ip("address add 198.51.100.1/24 dev up1");
        ip("-6 address add 2001:db8:9::1/64 dev up1 nodad");
        let sysctls = Sysctls::default();
        for (all, own, found) in [
            ("0", "0", None),
            ("0", "1", Some(1)),
            ("1", "0", Some(0)),
            ("1", "1", Some(1)),
            ("1", "2", None),
            ("2", "1", None),
        ] {
            sysctls.write("ipv4/conf/all/rp_filter", all).unwrap();
            sysctls.write("ipv4/conf/up1/rp_filter", own).unwrap();
            assert_eq!(exits(&["198.51.100.1"]).await[0].strict, found, "{all} {own}");
            assert_eq!(exits(&["2001:db8:9::1"]).await[0].strict, None, "{all} {own}");
        }
        // Made loose by us: what it was is what the table says.
        let mut remembered = Set::new(KeyType::Mark, DataType::Mark, false);
        let up1 = index("up1");
        remembered.elements = [(ElementKey::Mark(up1), Data::Mark(1))].into();
        let mut table = ObservedTable::default();
        table.sets.insert(RP_FILTER.into(), remembered);
        let observed = rtnl().observe().await.unwrap();
        let plan = with_addresses(&["198.51.100.1"]);
        let facts = observe_facts(&observed, Some(&table), &sysctls, &plan, &Numbers::default()).unwrap();
        assert_eq!(
            (&facts.exits[0].link, facts.exits[0].strict),
            (&link("up1"), Some(1))
        );
    });
}
