use super::*;
use crate::documents;

fn of_spec(spec: &str) -> Vec<String> {
    of(&format!(
        "{{apiVersion: egressnat.io/v1alpha1, kind: EgressNATPolicy, metadata: {{name: p}}, spec: {spec}}}"
    ))
}

fn of(text: &str) -> Vec<String> {
    let report = lint(&documents::parse("f.yaml", text).unwrap());
    report.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_right_passes() {
    for spec in [
        "{selectors: [{podSelector: {}}], egressSourceIP: 192.0.2.1}",
        "{selectors: [{namespaceSelector: {matchLabels: {a: b}}}], egressSourceIPs: [192.0.2.1, '2001:db8::1'], sourcePorts: 20000-39999, \
          destinationCIDRs: [0.0.0.0/0, '2001:db8::/32'], excludedCIDRs: [10.0.0.0/8], priority: -7}",
        "{selectors: [{podSelector: {}}], egressSourceIPs: [192.0.2.1, 192.0.2.2, '2001:db8::1', '2001:db8::2']}",
        "{selectors: [{nodeSelector: {matchExpressions: [{key: a, operator: In, values: [b]}]}}], \
          egressGateway: {nodeSelector: {}, interface: eth1}, noGateway: NodeIP}",
    ] {
        assert_eq!(of_spec(spec), Vec::<String>::new(), "{spec}");
    }
}

#[test]
fn each_stage_refuses_what_it_is_there_for() {
    let all = "selectors: [{podSelector: {}}]";
    for (spec, says) in [
        // The schema.
        (
            "{egressSourceIP: 192.0.2.1}".to_owned(),
            "spec.selectors: is missing",
        ),
        (
            format!("{{{all}, egressSourceIp: 192.0.2.1}}"),
            "spec.egressSourceIp: is no field: write egressSourceIP",
        ),
        (
            format!("{{{all}, egressSourceIP: 192.0.2.1, destinationCIDR: []}}"),
            "write destinationCIDRs",
        ),
        (
            format!("{{{all}, egressSourceIP: 192.0.2.1, priority: high}}"),
            "spec.priority: \"high\" is not of type integer",
        ),
        (
            format!("{{{all}, egressSourceIP: 192.0.2.1, priority: 2000000}}"),
            "is above 1000000",
        ),
        (
            format!("{{{all}, egressSourceIP: 192.0.2.1, noGateway: Forward}}"),
            "is not one of \"Drop\", \"NodeIP\"",
        ),
        (
            format!("{{{all}, egressSourceIP: 192.0.2.1, destinationCIDRs: []}}"),
            "spec.destinationCIDRs: has 0 entries, fewer than 1",
        ),
        (
            format!("{{{all}, egressGateway: {{nodeSelector: {{}}, interface: 'eth 1'}}}}"),
            "spec.egressGateway.interface: \"eth 1\" does not match",
        ),
        (
            format!(
                "{{{all}, egressGateway: {{nodeSelector: {{}}, interface: {}}}}}",
                "a".repeat(128)
            ),
            "more than 127",
        ),
        // CEL.
        (
            format!("{{{all}, egressSourceIPs: ['2001:db8::1', '2001:0db8::1']}}"),
            "spec.egressSourceIPs: every address must be there once",
        ),
        (
            format!("{{{all}, egressSourceIPs: [192.0.2.1, 192.0.2.2, '2001:db8::1']}}"),
            "spec.egressSourceIPs: write as many IPv4 as IPv6 addresses",
        ),
        (
            format!("{{{all}, egressSourceIP: 192.0.2.1, sourcePorts: 1-70000}}"),
            "spec.sourcePorts: sourcePorts must be ports of 1 to 65535, such as 20000-39999",
        ),
        (
            format!("{{{all}, egressSourceIP: 192.0.2.1, sourcePorts: '20000:39999'}}"),
            "ports of 1 to 65535",
        ),
        (
            format!("{{{all}, egressSourceIP: 192.0.2.1, sourcePorts: '0'}}"),
            "ports of 1 to 65535",
        ),
        (
            format!("{{{all}, egressSourceIP: 192.0.2.1, sourcePorts: 39999-20000}}"),
            "write the lower port first, as in 20000-39999",
        ),
        (format!("{{{all}}}"), "set exactly one of egressSourceIP"),
        (
            format!("{{{all}, egressSourceIP: 192.0.2}}"),
            "spec.egressSourceIP: egressSourceIP must be an IPv4 or IPv6 address",
        ),
        (
            format!("{{{all}, egressSourceIP: 192.0.2.1, destinationCIDRs: [10.0.0.1/8]}}"),
            "must not have host bits set",
        ),
        (
            format!("{{{all}, egressSourceIP: 192.0.2.1, destinationCIDRs: ['2001:db8::/32']}}"),
            "no destinationCIDR is of the family",
        ),
        (
            "{selectors: [{}], egressSourceIP: 192.0.2.1}".to_owned(),
            "an entry needs at least one of",
        ),
        // The operator.
        (
            "{selectors: [{podSelector: {matchLabels: {a: b}, matchExpressions: [{key: a, operator: DoesNotExist}]}}], \
              egressSourceIP: 192.0.2.1}"
                .to_owned(),
            "selectors[0].podSelector can match nothing",
        ),
        (
            format!(
                "{{{all}, egressSourceIP: 192.0.2.1, destinationCIDRs: [10.0.0.0/9], excludedCIDRs: [10.0.0.0/8]}}"
            ),
            "leave nothing",
        ),
    ] {
        let problems = of_spec(&spec);
        assert_eq!(problems.len(), 1, "{spec}\n{problems:?}");
        assert!(problems[0].contains(says), "{spec}\n{problems:?}");
        assert!(
            problems[0].starts_with("f.yaml, document 1: policy p: "),
            "{problems:?}"
        );
    }
}

/// The same as the API server, of which other tests see it.
#[test]
fn addresses_that_cannot_be_are_refused_by_the_rules() {
    let all = "selectors: [{podSelector: {}}]";
    for address in [
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
        "169.254.0.1",
        "fe80::1",
        "255.255.255.255",
    ] {
        let says = "by which the outside can answer: none that is loopback";
        for gateway in [
            format!("egressSourceIP: '{address}'"),
            format!("egressSourceIPs: ['{address}']"),
            format!("egressGateway: {{nodeSelector: {{}}, egressIP: '{address}'}}"),
            format!("egressGateways: [{{nodeSelector: {{}}, egressIPs: ['{address}']}}]"),
        ] {
            let problems = of_spec(&format!("{{{all}, {gateway}}}"));
            assert_eq!(problems.len(), 1, "{gateway}: {problems:?}");
            assert!(problems[0].contains(says), "{gateway}: {problems:?}");
        }
    }
    let mapped = of_spec(&format!("{{{all}, egressSourceIP: '::ffff:192.0.2.1'}}"));
    assert!(
        mapped[0].contains("egressSourceIP must be an IPv4 or IPv6 address"),
        "{mapped:?}"
    );
}

/// The same as the API server, of which other tests see it.
#[test]
fn destinations_that_are_never_captured_are_refused_by_the_rules() {
    let problems = |cidr: &str| {
        of_spec(&format!(
            "{{selectors: [{{podSelector: {{}}}}], egressSourceIP: 192.0.2.1, destinationCIDRs: [10.0.0.0/8, '{cidr}']}}"
        ))
    };
    for never in [
        "127.0.0.1/32",
        "169.254.169.254/32",
        "224.0.0.0/4",
        "255.255.255.255/32",
        "::1/128",
        "fe80::/64",
        "ff00::/8",
    ] {
        let problems = problems(never);
        assert_eq!(problems.len(), 1, "{never}: {problems:?}");
        assert!(
            problems[0].contains("are never captured: leave such CIDRs out"),
            "{problems:?}"
        );
    }
    for more in ["126.0.0.0/7", "169.0.0.0/8", "fe00::/7", "0.0.0.0/0", "::/0"] {
        assert_eq!(problems(more), Vec::<String>::new(), "{more}");
    }
}

#[test]
fn every_rule_of_the_crd_can_be_evaluated_here() {
    let crd = Crd::new();
    let compiled = kube_cel::compile_schema(&crd.schema);
    assert!(crd.schema.to_string().matches("\"rule\"").count() > 10);
    assert!(compiled.compilation_errors().is_empty());
}

#[test]
fn what_is_no_policy_is_counted_and_names_are_unique() {
    let one = "{apiVersion: egressnat.io/v1alpha1, kind: EgressNATPolicy, metadata: {name: p}, \
                spec: {selectors: [{podSelector: {}}], egressSourceIP: 192.0.2.1}}";
    let text = format!("{one}\n---\n{{apiVersion: v1, kind: Pod}}\n---\n{one}\n");
    let report = lint(&documents::parse("f.yaml", &text).unwrap());
    assert_eq!((report.policies, report.others), (2, 1));
    assert_eq!(
        report.to_string(),
        "f.yaml, document 3: policy p: metadata.name: f.yaml, document 1 has the same name: the later one would \
         take its place\n2 policies, 1 problem, 1 of another kind not looked at\n"
    );
    let old = one.replace("v1alpha1", "v1");
    assert!(of(&old)[0].contains("apiVersion: is not known: write egressnat.io/v1alpha1"));
    assert!(of(&one.replace("name: p", "labels: {}"))[0].contains("metadata.name: is missing"));
}
