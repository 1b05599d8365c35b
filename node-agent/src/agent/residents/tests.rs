use super::*;
use crate::agent::fixtures::{self, ips};

const LINK: u32 = 40;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Of a node whose gate is open.
fn plan(selected: &[(&str, &[&str])], unselected: &[&str]) -> EgressPlanSpec {
    fixtures::plan(true, selected, unselected)
}

fn pods(plan: &EgressPlanSpec) -> Vec<(&str, &[IpAddr], u32)> {
    plan.pods
        .iter()
        .map(|p| (p.uid.as_str(), p.ips.as_slice(), p.profile))
        .collect()
}

/// Pod u1, which has left, and when that was.
fn left() -> (Residents, EgressPlanSpec, Instant) {
    let (mut residents, now) = (Residents::default(), Instant::now());
    residents.note(&plan(&[("u1", &["10.1.0.2", "2001:db8::2"])], &[]), now);
    let gone = plan(&[], &[]);
    residents.note(&gone, now);
    (residents, gone, now)
}

#[test]
fn a_plan_that_knows_all_is_left_as_it_is() {
    let mut residents = Residents::default();
    let plan = plan(&[("u1", &["10.1.0.2"])], &[]);
    residents.note(&plan, Instant::now());
    assert!(matches!(residents.complete(&plan), Cow::Borrowed(_)));
    assert_eq!(residents.unplaced(), [ip("10.1.0.2")]);
    assert!(residents.departed().is_empty());
}

#[test]
fn a_pod_that_is_gone_keeps_its_profile_until_no_link_leads_to_it() {
    let (mut residents, gone, now) = left();
    let both = ips(&["10.1.0.2", "2001:db8::2"]);
    assert_eq!(pods(&residents.complete(&gone)), [("u1", both.as_slice(), 7)]);
    assert_eq!(residents.departed(), BTreeSet::from(["shop/pod-u1".into()]));
    residents.found(both[0], Whereabouts::Link(LINK), now);
    assert_eq!(residents.to_find(), [(both[0], Some(LINK)), (both[1], None)]);
    residents.found(both[1], Whereabouts::Nowhere, now);
    assert_eq!(pods(&residents.complete(&gone)), [("u1", &both[..1], 7)]);
    residents.found(both[0], Whereabouts::Nowhere, now);
    assert!(matches!(residents.complete(&gone), Cow::Borrowed(_)));
}

#[test]
fn a_link_is_a_pods_own_as_long_as_it_leads_to_it_and_no_ports_of_a_bridge_are() {
    let (mut residents, now) = (Residents::default(), Instant::now());
    let known = plan(&[("u1", &["10.1.0.2"]), ("u2", &["10.1.0.3"])], &[]);
    residents.note(&known, now);
    residents.found(ip("10.1.0.2"), Whereabouts::Link(LINK), now);
    residents.found(ip("10.1.0.3"), Whereabouts::Port(LINK + 1), now);
    residents.note(&known, now);
    assert_eq!(residents.own_links(), BTreeSet::from([LINK]));
    assert!(residents.unplaced().is_empty());
    // Its sandbox has been made anew.
    residents.give("u1", &[ip("10.1.0.2")].into());
    assert_eq!(residents.unplaced(), [ip("10.1.0.2")]);
    residents.found(ip("10.1.0.2"), Whereabouts::Link(LINK + 2), now);
    assert_eq!(residents.own_links(), BTreeSet::from([LINK + 2]));
    residents.note(&plan(&[], &["u1"]), now);
    assert_eq!(residents.own_links(), BTreeSet::new());
}

#[test]
fn what_is_found_of_a_pod_that_the_plan_knows_ends_nothing() {
    let (mut residents, now) = (Residents::default(), Instant::now());
    let known = plan(&[("u1", &["10.1.0.2"])], &[]);
    residents.note(&known, now);
    residents.found(ip("10.1.0.2"), Whereabouts::Nowhere, now + UNCLEAR);
    let gone = plan(&[], &[]);
    residents.note(&gone, now + UNCLEAR);
    assert_eq!(residents.departed().len(), 1);
}

#[test]
fn silence_counts_once_the_kernel_has_asked() {
    let (mut residents, _, now) = left();
    residents.found(ip("10.1.0.2"), Whereabouts::Silent, now);
    assert_eq!(residents.to_find().len(), 2);
    residents.found(ip("10.1.0.2"), Whereabouts::Silent, now + ASKED);
    assert_eq!(residents.to_find(), [(ip("2001:db8::2"), None)]);
}

#[test]
fn what_cannot_be_told_ends_with_time_and_a_link_does_not() {
    let (mut residents, gone, now) = left();
    let [v4, v6] = ["10.1.0.2", "2001:db8::2"].map(ip);
    for (after, left) in [(UNCLEAR - Duration::from_secs(1), 2), (UNCLEAR, 1)] {
        residents.note(&gone, now + after);
        residents.found(v4, Whereabouts::Unclear, now + after);
        residents.found(v6, Whereabouts::Link(LINK), now + after);
        assert_eq!(residents.to_find().len(), left);
    }
}

#[test]
fn where_its_profile_is_gone_it_sends_nothing_even_if_the_number_comes_back() {
    let (mut residents, gone, now) = left();
    let mut without = gone.clone();
    without.profiles.clear();
    residents.note(&without, now);
    for plan in [without, gone] {
        residents.note(&plan, now);
        let complete = residents.complete(&plan);
        let profile = complete.profiles.iter().find(|p| p.id != 7).unwrap();
        assert_eq!(pods(&complete)[0].2, profile.id);
        assert_eq!(profile.destinations.len(), 2);
        let policy = &complete.policies[0];
        assert_eq!(profile.destinations[0].policy, policy.id);
        let source = policy.source.as_ref().unwrap();
        assert_eq!(
            (source.gateway.as_ref(), source.no_gateway),
            (None, NoGateway::Drop)
        );
    }
}

#[test]
fn a_living_pod_that_no_policy_selects_any_more_is_released_at_once() {
    let known = plan(&[("u1", &["10.1.0.2"])], &[]);
    let mut free = plan(&[], &[]);
    let gate = free.gate.as_mut().unwrap();
    (gate.namespaces, gate.free) = (Vec::new(), vec!["shop".into()]);
    let silent = EgressPlanSpec {
        gate: None,
        ..plan(&[], &[])
    };
    for unselected in [plan(&[], &["u1"]), free, silent] {
        let mut residents = Residents::default();
        residents.note(&known, Instant::now());
        residents.note(&unselected, Instant::now());
        assert!(matches!(residents.complete(&unselected), Cow::Borrowed(_)));
        assert_eq!(residents, Residents::default());
    }
}

#[test]
fn an_address_that_is_another_pods_now_is_left_to_it() {
    let (mut residents, _, now) = left();
    let reused = plan(&[("u2", &["10.1.0.2"])], &[]);
    residents.note(&reused, now);
    let [v4, v6] = [ips(&["10.1.0.2"]), ips(&["2001:db8::2"])];
    let complete = residents.complete(&reused);
    assert_eq!(
        pods(&complete),
        [("u1", v6.as_slice(), 7), ("u2", v4.as_slice(), 7)]
    );
    residents.give("u3", &v6.into_iter().collect());
    assert!(matches!(residents.complete(&reused), Cow::Borrowed(_)));
}

#[test]
fn another_pods_link_is_not_the_former_ones() {
    let (mut residents, now) = (Residents::default(), Instant::now());
    residents.note(&plan(&[("u1", &["10.1.0.2"])], &[]), now);
    residents.found(ip("10.1.0.2"), Whereabouts::Link(LINK), now);
    residents.note(&plan(&[("u2", &["10.1.0.2"])], &[]), now);
    assert_eq!(residents.unplaced(), [ip("10.1.0.2")]);
}

#[test]
fn an_address_that_a_known_pod_has_lost_keeps_its_verdict_as_well() {
    let (mut residents, now) = (Residents::default(), Instant::now());
    residents.note(&plan(&[("u1", &["10.1.0.2"])], &[]), now);
    let without = plan(&[("u1", &[])], &[]);
    residents.note(&without, now);
    let v4 = ips(&["10.1.0.2"]);
    assert_eq!(pods(&residents.complete(&without)), [("u1", v4.as_slice(), 7)]);
}

#[test]
fn a_process_that_begins_goes_on_with_what_was_written() {
    let (mut residents, gone, now) = left();
    residents.found(ip("10.1.0.2"), Whereabouts::Link(LINK), now);
    let text = serde_json::to_string(&residents).unwrap();
    let mut read: Residents = serde_json::from_str(&text).unwrap();
    read.note(&gone, now);
    assert_eq!(read, residents);
}
