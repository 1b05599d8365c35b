//! Label selectors, from the Kubernetes documentation.

use std::collections::BTreeSet;

use egressnat_crds::selector::{LabelSelector, Labels, Operator, Requirement};

/// Whether the labels meet all of `matchLabels` and all of `matchExpressions`.
pub fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    for (key, value) in &selector.match_labels {
        if labels.get(key) != Some(value) {
            return false;
        }
    }
    for requirement in &selector.match_expressions {
        if !meets(requirement, labels) {
            return false;
        }
    }
    true
}

fn meets(requirement: &Requirement, labels: &Labels) -> bool {
    match (requirement.operator, labels.get(&requirement.key)) {
        (Operator::Exists, value) => value.is_some(),
        (Operator::DoesNotExist, value) => value.is_none(),
        (Operator::In, None) => false,
        (Operator::In, Some(value)) => requirement.values.contains(value),
        // Labels without the key are selected, too.
        (Operator::NotIn, None) => true,
        (Operator::NotIn, Some(value)) => !requirement.values.contains(value),
    }
}

/// Whether any labels at all can match: tries, for every key that is mentioned, its absence, every value that is
/// mentioned and one that is not.
pub fn is_satisfiable(selector: &LabelSelector) -> bool {
    let of_labels = selector.match_labels.keys();
    let of_expressions = selector.match_expressions.iter().map(|r| &r.key);
    let keys: BTreeSet<&String> = of_labels.chain(of_expressions).collect();
    let in_labels = selector.match_labels.values();
    let in_expressions = selector.match_expressions.iter().flat_map(|r| &r.values);
    let mut values: BTreeSet<String> = in_labels.chain(in_expressions).cloned().collect();
    values.insert("mentioned nowhere".into());
    let mut all = vec![Labels::new()];
    for key in keys {
        let without = all.clone();
        for value in &values {
            all.extend(without.iter().cloned().map(|mut labels| {
                labels.insert(key.clone(), value.clone());
                labels
            }));
        }
    }
    all.iter().any(|labels| matches(selector, labels))
}
