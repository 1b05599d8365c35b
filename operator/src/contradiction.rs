//! Selectors that no object can match.

use std::collections::{BTreeMap, BTreeSet};

use egressnat_crds::selector::{LabelSelector, Operator};

/// All that a selector says of one label.
#[derive(Default)]
struct Demands<'a> {
    /// It must be there.
    present: bool,
    /// It must not be there.
    absent: bool,
    /// The values it may have; any where nothing was said.
    allowed: Option<BTreeSet<&'a str>>,
    /// The values it must not have.
    forbidden: BTreeSet<&'a str>,
}

/// The first label of which `selector` demands what cannot be: such a selector matches nothing.
pub fn contradicted_label(selector: &LabelSelector) -> Option<String> {
    let mut demands: BTreeMap<&str, Demands> = BTreeMap::new();
    for (key, value) in &selector.match_labels {
        demands.entry(key).or_default().one_of([value.as_str()].into());
    }
    for requirement in &selector.match_expressions {
        let demand = demands.entry(&requirement.key).or_default();
        let values: BTreeSet<&str> = requirement.values.iter().map(String::as_str).collect();
        match requirement.operator {
            Operator::In => demand.one_of(values),
            Operator::NotIn => demand.forbidden.extend(values),
            Operator::Exists => demand.present = true,
            Operator::DoesNotExist => demand.absent = true,
        }
    }
    let contradicted = demands.into_iter().find(|(_, d)| d.contradict());
    contradicted.map(|(label, _)| label.to_owned())
}

impl<'a> Demands<'a> {
    fn one_of(&mut self, values: BTreeSet<&'a str>) {
        self.present = true;
        self.allowed = Some(match &self.allowed {
            None => values,
            Some(allowed) => allowed.intersection(&values).copied().collect(),
        });
    }

    fn contradict(&self) -> bool {
        let no_value_left = self
            .allowed
            .as_ref()
            .is_some_and(|allowed| allowed.is_subset(&self.forbidden));
        self.present && (self.absent || no_value_left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contradicted(yaml: &str) -> Option<String> {
        contradicted_label(&serde_yaml_ng::from_str(yaml).unwrap())
    }

    #[test]
    fn possible_selectors_pass() {
        for yaml in [
            "{}",
            "{matchLabels: {a: b}, matchExpressions: [{key: a, operator: NotIn, values: [c]}]}",
            "{matchExpressions: [{key: a, operator: NotIn, values: [c]}, {key: a, operator: DoesNotExist}]}",
            "{matchExpressions: [{key: a, operator: In, values: [b, c]}, {key: a, operator: NotIn, values: [c]}]}",
        ] {
            assert_eq!(contradicted(yaml), None, "{yaml}");
        }
    }

    #[test]
    fn impossible_selectors_are_found() {
        for yaml in [
            "{matchLabels: {a: b}, matchExpressions: [{key: a, operator: NotIn, values: [b]}]}",
            "{matchLabels: {a: b}, matchExpressions: [{key: a, operator: In, values: [c]}]}",
            "{matchExpressions: [{key: a, operator: Exists}, {key: a, operator: DoesNotExist}]}",
            "{matchExpressions: [{key: a, operator: In, values: [b]}, {key: a, operator: NotIn, values: [b, c]}]}",
        ] {
            assert_eq!(contradicted(yaml), Some("a".into()), "{yaml}");
        }
    }
}
