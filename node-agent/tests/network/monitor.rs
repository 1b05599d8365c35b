//! What somebody changes is told, what does not concern us is not.

use std::io::Write;
use std::task::Poll;
use std::time::Duration;

use egressnat_agent::kernel::rtnl::Monitor;
use egressnat_agent::owned::Numbers;
use tokio::time::timeout;

use crate::netns::{Elsewhere, in_netns, index, ip, make_underlay, rtnl, run, tunnel};
use crate::sample::{desired, reach};

/// Long enough to hear of a change, which takes a fifth of a second at most.
const SOON: Duration = Duration::from_secs(5);

/// A change that is told is told well within it.
const SILENCE: Duration = Duration::from_millis(300);

async fn told(monitor: &mut Monitor) -> bool {
    timeout(SOON, monitor.changed())
        .await
        .is_ok_and(|changed| changed.is_ok())
}

/// Takes what is left of former changes.
async fn drain(monitor: &mut Monitor) {
    while timeout(SILENCE, monitor.changed()).await.is_ok() {}
}

#[test]
fn changes_that_concern_us_are_told() {
    in_netns(|| async {
        let net = desired(tunnel(&make_underlay(), "192.0.2.1"), 1);
        let mac = net.fdb.first().unwrap().mac;
        let changes = [
            "ip route del default table 7701".to_string(),
            "ip -6 route del default table 7701".into(),
            "ip route add 10.9.0.0/16 dev up0 table 7763".into(),
            "ip rule del priority 770".into(),
            "ip -6 rule del priority 770".into(),
            "ip rule add priority 99 lookup 99".into(),
            "ip address add 192.0.2.9/24 dev up0".into(),
            "ip address del 192.0.2.9/24 dev up0".into(),
            "ip -6 address add 2001:db8::9/64 dev up0 nodad".into(),
            "ip -6 address del 2001:db8::9/64 dev up0".into(),
            "ip route add default via 192.0.2.254".into(),
            "ip route add default via 192.0.2.9 table 99".into(),
            "ip route del default via 192.0.2.9 table 99".into(),
            "ip link property add dev up0 altname enp0s31f6".into(),
            "ip link set up0 mtu 1400".into(),
            "ip link set up1 name eth1".into(),
            format!("bridge fdb del {mac} dev egressnat0"),
            "ip neighbour del 198.18.0.1 dev egressnat0".into(),
            "ip address del 169.254.77.0/32 dev egressnat0".into(),
            "ip link set egressnat0 down".into(),
            "ip link del egressnat0".into(),
        ];
        reach(&mut rtnl(), &net).await;
        let mut monitor = Monitor::open(Numbers::default()).unwrap();
        for change in changes {
            drain(&mut monitor).await;
            run(&change);
            assert!(told(&mut monitor).await, "{change}");
        }
    });
}

#[test]
fn changes_of_others_are_not_told() {
    in_netns(|| async {
        reach(&mut rtnl(), &desired(tunnel(&make_underlay(), "192.0.2.1"), 1)).await;
        let mut monitor = Monitor::open(Numbers::default()).unwrap();
        drain(&mut monitor).await;
        let changes = [
            "link add pod1 mtu 1400 type veth peer name far1",
            "link set pod1 up",
            "link set far1 up",
            "link del pod1",
            "route add 10.9.0.0/16 dev up0",
            "route add 10.9.0.0/16 via 192.0.2.9 table 99",
            "neighbour add 192.0.2.9 lladdr 02:00:00:00:00:09 dev up0",
        ];
        for change in changes {
            ip(change);
        }
        let changed = timeout(SILENCE, monitor.changed()).await;
        assert!(changed.is_err(), "one of these was told");
        // It could have been.
        ip("route add 10.9.0.0/16 dev up0 table 7701");
        assert!(told(&mut monitor).await);
    });
}

/// Some CNIs give the node's end of each pod's pair the address of the pod's gateway: no news with every pod.
#[test]
fn the_gateway_of_a_pod_is_told_only_where_it_is_on_a_link_that_is_watched() {
    in_netns(|| async {
        let elsewhere = Elsewhere::new();
        ip(&format!(
            "link add pod1 type veth peer name eth0 netns {}",
            elsewhere.thread
        ));
        let mut monitor = Monitor::open(Numbers::default()).unwrap();
        let changes = |word: &str| {
            [
                format!("address {word} 10.241.1.1/32 dev pod1"),
                format!("-6 address {word} fd00::1/128 dev pod1 nodad"),
            ]
        };
        drain(&mut monitor).await;
        for change in [changes("add"), changes("del")].concat() {
            ip(&change);
        }
        let changed = timeout(SILENCE, monitor.changed()).await;
        assert!(changed.is_err(), "one of these was told");
        // As in kind, whose nodes have such ends for interfaces.
        monitor.watch([index("pod1")].into(), [].into());
        let network = "address add 10.241.1.1/24 dev pod1".to_owned();
        for change in [changes("add").to_vec(), vec![network]].concat() {
            drain(&mut monitor).await;
            ip(&change);
            assert!(told(&mut monitor).await, "{change}");
        }
        monitor.watch([].into(), [].into());
        drain(&mut monitor).await;
        ip("address add 10.242.1.1/24 dev pod1");
        assert!(told(&mut monitor).await, "a network");
    });
}

/// Routes of links by which egress addresses leave, and the ups and downs of those and of the default route's: with
/// a link the kernel takes IPv4 routes away and says nothing of them.
#[test]
fn the_doings_of_watched_links_are_told() {
    in_netns(|| async {
        let up0 = make_underlay().index;
        ip("route add default via 192.0.2.254");
        let mut monitor = Monitor::open(Numbers::default()).unwrap();
        // Not by a link that nobody watches.
        let changes = [
            "route add 10.9.0.0/16 via 192.0.2.9",
            "route del 10.9.0.0/16 via 192.0.2.9",
            "-6 route add 2001:db8:9::/48 via 2001:db8::9",
            "-6 route del 2001:db8:9::/48 via 2001:db8::9",
        ];
        drain(&mut monitor).await;
        changes.iter().for_each(|change| drop(ip(change)));
        let changed = timeout(SILENCE, monitor.changed()).await;
        assert!(changed.is_err(), "one of these was told");
        monitor.watch([up0].into(), [up0].into());
        for change in changes {
            drain(&mut monitor).await;
            ip(change);
            assert!(told(&mut monitor).await, "{change}");
        }
        // Without addresses, whose going would be told as well.
        ip("link add up2 type veth peer name up3");
        let up2 = index("up2");
        drain(&mut monitor).await;
        ip("link set up2 up");
        ip("link set up2 down");
        let changed = timeout(SILENCE, monitor.changed()).await;
        assert!(changed.is_err(), "a link that nobody watches");
        monitor.watch([up2].into(), [].into());
        for change in ["link set up2 up", "link set up2 down"] {
            drain(&mut monitor).await;
            ip(change);
            assert!(told(&mut monitor).await, "{change}");
        }
    });
}

#[test]
fn a_burst_is_told_once_and_a_dropped_wait_loses_nothing() {
    in_netns(|| async {
        make_underlay();
        let mut monitor = Monitor::open(Numbers::default()).unwrap();
        drain(&mut monitor).await;
        let mut batch = tempfile::NamedTempFile::new().unwrap();
        for n in 0..20 {
            writeln!(batch, "route add 10.{n}.0.0/16 dev up0 table 7701").unwrap();
        }
        ip(&format!("-batch {}", batch.path().display()));
        // Takes the messages, and is dropped before it can have waited for the burst's end.
        let mut wait = Box::pin(monitor.changed());
        let mut early = false;
        for _ in 0..10 {
            early = early || std::future::poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx).is_ready())).await;
            tokio::task::yield_now().await;
        }
        drop(wait);
        assert!(early || told(&mut monitor).await);
        assert!(timeout(SILENCE, monitor.changed()).await.is_err(), "told twice");
    });
}

/// More than the socket can hold while nobody reads: what was lost may have been ours.
#[test]
fn lost_messages_count_as_a_change() {
    in_netns(|| async {
        make_underlay();
        let mut monitor = Monitor::open(Numbers::default()).unwrap();
        drain(&mut monitor).await;
        let mut batch = tempfile::NamedTempFile::new().unwrap();
        for n in 0..4000 {
            writeln!(
                batch,
                "route add 10.{}.{}.0/24 dev up0 table 99",
                n / 250,
                n % 250
            )
            .unwrap();
        }
        writeln!(batch, "link add late type veth peer name later").unwrap();
        ip(&format!("-batch {}", batch.path().display()));
        assert!(told(&mut monitor).await);
        drain(&mut monitor).await;
        // It hears on, and knows of the link whose making it has missed.
        ip("link set late mtu 1400");
        assert!(told(&mut monitor).await);
    });
}
