//! What is written is read back, changed where it is, and removed without a trace.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use egressnat_agent::diff::{NetObject, NetStep};
use egressnat_agent::kernel::rtnl::NetError;
use egressnat_agent::model::{Fdb, MacAddr, Neighbour, Net, Route, RouteKind, Sysctl};

use crate::netns::{attempt, in_netns, ip, json, make_underlay, rtnl, tunnel};
use crate::oracle::{of_our_rules, of_our_tables};
use crate::sample::{UNDERLAYS, desired, next_hop, observe, peer, reach, route};

fn puts(objects: impl IntoIterator<Item = NetObject>) -> Vec<NetStep> {
    objects.into_iter().map(NetStep::Put).collect()
}

#[test]
fn all_is_put_read_back_put_again_and_removed() {
    for local in UNDERLAYS {
        in_netns(move || async move {
            let desired = desired(tunnel(&make_underlay(), local), 3);
            let mut rtnl = rtnl();
            assert_eq!(observe(&mut rtnl, &desired.sysctls).await.net, Net::default());

            let put = reach(&mut rtnl, &desired).await;
            assert_eq!(observe(&mut rtnl, &desired.sysctls).await.net, desired);
            let index = tunnel_index();
            rtnl.apply(&put).await.unwrap();
            let observed = observe(&mut rtnl, &desired.sysctls).await;
            assert_eq!((observed.net, observed.strays), (desired.clone(), vec![]));
            assert_eq!(tunnel_index(), index, "the device was made anew");
            assert!(reach(&mut rtnl, &desired).await.is_empty());

            let removed = reach(&mut rtnl, &Net::default()).await;
            assert_eq!(observe(&mut rtnl, &BTreeSet::new()).await.net, Net::default());
            rtnl.apply(&removed).await.unwrap();
            assert!(attempt("ip link show egressnat0").is_err());
            for family in ["-4", "-6"] {
                assert_eq!(of_our_tables(family).len(), 0);
                assert_eq!(of_our_rules(family).len(), 0);
            }
        });
    }
}

fn tunnel_index() -> u64 {
    json("ip -j link show egressnat0")[0]["ifindex"].as_u64().unwrap()
}

#[test]
fn a_tunnel_is_changed_where_that_can_be_and_made_anew_elsewhere() {
    for local in UNDERLAYS {
        in_netns(move || async move {
            let underlay = make_underlay();
            let mut rtnl = rtnl();
            let mut wanted = Net {
                tunnel: Some(tunnel(&underlay, local)),
                ..Net::default()
            };
            reach(&mut rtnl, &wanted).await;
            let first = tunnel_index();

            let changed = wanted.tunnel.as_mut().unwrap();
            (changed.mtu, changed.mac) = (1300, MacAddr([2, 1, 2, 3, 4, 5]));
            reach(&mut rtnl, &wanted).await;
            assert_eq!(rtnl.observe().await.unwrap().net, wanted);
            assert_eq!(tunnel_index(), first);

            let damages = [
                "link set egressnat0 down",
                "address del 169.254.77.0/32 dev egressnat0",
            ];
            for damage in damages {
                ip(damage);
                assert_ne!(rtnl.observe().await.unwrap().net, wanted, "{damage}: unnoticed");
                reach(&mut rtnl, &wanted).await;
                assert_eq!(rtnl.observe().await.unwrap().net, wanted);
                assert_eq!(tunnel_index(), first);
            }

            wanted.tunnel.as_mut().unwrap().vni += 1;
            reach(&mut rtnl, &wanted).await;
            assert_eq!(rtnl.observe().await.unwrap().net, wanted);
            assert_ne!(tunnel_index(), first);
        });
    }
}

#[test]
fn a_tunnel_made_anew_has_all_that_hangs_on_it_again() {
    for local in UNDERLAYS {
        in_netns(move || async move {
            let mut rtnl = rtnl();
            let mut net = desired(tunnel(&make_underlay(), local), 3);
            reach(&mut rtnl, &net).await;
            net.tunnel.as_mut().unwrap().vni += 1;
            reach(&mut rtnl, &net).await;
            assert_eq!(observe(&mut rtnl, &net.sysctls).await.net, net);
        });
    }
}

/// Devices that bear our name and kind but lack what ours have.
#[test]
fn a_tunnel_made_by_hand_is_made_anew() {
    let devices = [
        "id 770770 local 192.0.2.1 dstport 5770 nolearning",
        "id 770770 local 192.0.2.1 dstport 5770 gbp learning",
        "id 770770 dstport 5770 nolearning gbp",
        "id 770770 local 192.0.2.1 remote 192.0.2.9 dstport 5770 nolearning gbp",
        "external dstport 5770 nolearning gbp",
    ];
    for device in devices {
        in_netns(move || async move {
            let underlay = make_underlay();
            let dev = if device.starts_with("external") {
                ""
            } else {
                "dev up0"
            };
            ip(&format!(
                "link add egressnat0 mtu 1400 up type vxlan {device} {dev}"
            ));
            let first = tunnel_index();
            let mut rtnl = rtnl();
            let wanted = Net {
                tunnel: Some(tunnel(&underlay, "192.0.2.1")),
                ..Net::default()
            };
            reach(&mut rtnl, &wanted).await;
            assert_ne!(tunnel_index(), first, "{device}");
            assert_eq!(rtnl.observe().await.unwrap().net, wanted);
            reach(&mut rtnl, &Net::default()).await;
            assert!(attempt("ip link show egressnat0").is_err());
        });
    }
}

#[test]
fn a_link_of_another_kind_is_not_touched() {
    in_netns(|| async {
        let underlay = make_underlay();
        ip("link add egressnat0 type bridge");
        let mut rtnl = rtnl();
        assert_eq!(rtnl.observe().await.unwrap().net, Net::default());
        let object = NetObject::Tunnel(tunnel(&underlay, "192.0.2.1"));
        let refused = rtnl.apply(&puts([object.clone()])).await.unwrap_err();
        assert!(
            matches!(&refused, NetError::NameTaken { kind } if kind == "bridge"),
            "{refused}"
        );
        assert_eq!(refused.category(), "NetNameTaken");
        rtnl.apply(&[NetStep::Remove(object)]).await.unwrap();
        let route = route(
            7701,
            "0.0.0.0/0",
            RouteKind::Tunnel {
                via: [192, 0, 2, 9].into(),
            },
        );
        let refused = rtnl.apply(&puts([NetObject::Route(route)])).await.unwrap_err();
        assert_eq!(refused.category(), "NetNoTunnel");
        assert_eq!(
            json("ip -j -d link show egressnat0")[0]["linkinfo"]["info_kind"],
            "bridge"
        );
    });
}

#[test]
fn a_port_in_use_is_named() {
    in_netns(|| async {
        let underlay = make_underlay();
        let _holder = std::net::UdpSocket::bind("0.0.0.0:5770").unwrap();
        let object = NetObject::Tunnel(tunnel(&underlay, "192.0.2.1"));
        let refused = rtnl().apply(&puts([object])).await.unwrap_err();
        assert_eq!(refused.category(), "NetPortInUse", "{refused}");
        assert!(
            refused.to_string().contains("ip link add egressnat0"),
            "{refused}"
        );
        assert!(attempt("ip link show egressnat0").is_err());
    });
}

#[test]
fn what_replaces_another_stays_when_the_other_is_removed() {
    for local in UNDERLAYS {
        in_netns(move || async move {
            let mut rtnl = rtnl();
            let local: IpAddr = local.parse().unwrap();
            let mut net = desired(tunnel(&make_underlay(), &local.to_string()), 2);
            net.rules.clear();
            reach(&mut rtnl, &net).await;
            let old = objects(&net);
            swap(&mut net, local);
            let new = objects(&net);
            let removals = old.into_iter().filter(|o| !new.contains(o)).map(NetStep::Remove);
            let steps: Vec<_> = puts(new.clone()).into_iter().chain(removals).collect();
            rtnl.apply(&steps).await.unwrap();
            let observed = observe(&mut rtnl, &net.sysctls).await;
            assert_eq!((observed.net, observed.strays), (net, vec![]));
        });
    }
}

fn objects(net: &Net) -> Vec<NetObject> {
    let fdb = net.fdb.iter().cloned().map(NetObject::Fdb);
    let neighbours = net.neighbours.iter().cloned().map(NetObject::Neighbour);
    let routes = net.routes.iter().cloned().map(NetObject::Route);
    fdb.chain(neighbours).chain(routes).collect()
}

/// Throw routes go by the tunnel, those by the tunnel throw or go to the other peer; MAC addresses move to
/// other remotes and next hops to other MAC addresses.
fn swap(net: &mut Net, local: IpAddr) {
    let [one, two] = [1, 2].map(|n| MacAddr::of_underlay(peer(local, n)));
    let other = |mac: MacAddr| if mac == one { two } else { one };
    let fdb = std::mem::take(&mut net.fdb).into_iter();
    net.fdb = fdb
        .map(|e| Fdb {
            mac: other(e.mac),
            ..e
        })
        .collect();
    let neighbours = std::mem::take(&mut net.neighbours).into_iter();
    net.neighbours = neighbours
        .map(|n| Neighbour {
            mac: other(n.mac),
            ..n
        })
        .collect();
    let routes = std::mem::take(&mut net.routes).into_iter();
    let turned = |route: Route| {
        let via = |n| RouteKind::Tunnel {
            via: next_hop(peer(local, n), route.to.addr().into()),
        };
        let kind = match (&route.kind, route.to.prefix_len()) {
            (RouteKind::Throw, _) => via(1),
            (RouteKind::Tunnel { .. }, 0) => RouteKind::Throw,
            (kind, _) if *kind == via(1) => via(2),
            _ => via(1),
        };
        Route { kind, ..route }
    };
    net.routes = routes.map(turned).collect();
}

#[test]
fn one_refusal_keeps_off_nothing_else() {
    in_netns(|| async {
        let mut rtnl = rtnl();
        let net = desired(tunnel(&make_underlay(), "192.0.2.1"), 2);
        let bad = Sysctl {
            path: "ipv4/conf/nosuch/rp_filter".into(),
            value: "1".into(),
        };
        let mut steps = puts([
            NetObject::Tunnel(net.tunnel.clone().unwrap()),
            NetObject::Sysctl(bad),
        ]);
        steps.extend(puts(net.sysctls.iter().cloned().map(NetObject::Sysctl)));
        steps.extend(puts(objects(&net)));
        steps.extend(puts(net.rules.iter().cloned().map(NetObject::IpRule)));
        let refused = rtnl.apply(&steps).await.unwrap_err();
        assert_eq!(refused.category(), "NetSysctl");
        assert!(
            refused.to_string().contains("ipv4/conf/nosuch/rp_filter"),
            "{refused}"
        );
        assert_eq!(observe(&mut rtnl, &net.sysctls).await.net, net);
    });
}

/// A future dropped between question and answer leaves no answer to the next question behind.
#[test]
fn an_abandoned_look_does_no_harm() {
    in_netns(|| async {
        let mut rtnl = rtnl();
        let net = desired(tunnel(&make_underlay(), "192.0.2.1"), 20);
        reach(&mut rtnl, &net).await;
        for polls in 1..8 {
            let mut look = std::pin::pin!(rtnl.observe());
            for _ in 0..polls {
                let pending =
                    std::future::poll_fn(|cx| std::task::Poll::Ready(look.as_mut().poll(cx).is_pending()));
                if !pending.await {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(observe(&mut rtnl, &net.sysctls).await.net, net);
    });
}

/// Neither what is dropped nor a look that is abandoned leaves a socket behind.
#[test]
fn a_socket_goes_with_its_owner() {
    in_netns(|| async {
        let sockets = || {
            let list = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
            list.lines().count()
        };
        let none = sockets();
        let mut rtnl = rtnl();
        for _ in 0..3 {
            let mut look = std::pin::pin!(rtnl.observe());
            let pending =
                std::future::poll_fn(|cx| std::task::Poll::Ready(look.as_mut().poll(cx).is_pending()));
            assert!(pending.await, "it cannot be abandoned midway");
        }
        rtnl.observe().await.unwrap();
        // The task of an abandoned look ends when the runtime comes to it.
        yield_until(|| sockets() == none + 1).await;
        drop(rtnl);
        yield_until(|| sockets() == none).await;
    });
}

async fn yield_until(mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "never");
        tokio::task::yield_now().await;
    }
}

/// Not a bound, a figure: `cargo test --test rtnl -- --nocapture figures`.
#[test]
fn figures_for_fifty_peers() {
    in_netns(|| async {
        let mut rtnl = rtnl();
        let net = desired(tunnel(&make_underlay(), "192.0.2.1"), 50);
        let start = Instant::now();
        let steps = reach(&mut rtnl, &net).await;
        let applied = start.elapsed();
        let start = Instant::now();
        let observed = observe(&mut rtnl, &net.sysctls).await;
        println!(
            "{} steps in {applied:?}, a look in {:?}",
            steps.len(),
            start.elapsed()
        );
        assert_eq!(observed.net, net);
    });
}

#[test]
fn a_kernel_with_vxlan_is_known_by_a_device_that_is_never_made() {
    in_netns(|| async {
        let links = json("ip -j link show");
        assert!(rtnl().has_vxlan().await.unwrap());
        assert_eq!(json("ip -j link show"), links);
    });
}
