//! Cilium's labels: a pod's carry their source as a prefix, and its namespace's stand among them.

use egressnat_crds::policy::PodSelection;
use egressnat_crds::selector::{LabelSelector, Operator, Requirement};

use super::draft::Draft;

/// The label by which every namespace has its name.
pub(super) const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
const CILIUMS_OWN: &str = "io.cilium.";

/// What a key of a pod selector is here.
enum Meaning<'a> {
    Pod(&'a str),
    Namespace(&'a str),
    Nothing,
}

fn meaning(key: &str) -> Meaning<'_> {
    let bare = ["k8s:", "any:"]
        .iter()
        .find_map(|source| key.strip_prefix(source));
    let bare = bare.unwrap_or(key);
    match bare.strip_prefix(NAMESPACE_LABELS) {
        Some(label) => Meaning::Namespace(label),
        None if bare == POD_NAMESPACE => Meaning::Namespace(NAMESPACE_NAME),
        None if bare.starts_with(CILIUMS_OWN) || bare.contains(':') => Meaning::Nothing,
        None => Meaning::Pod(bare),
    }
}

/// Takes Cilium's meanings out of an entry; `field` is where it stands.
pub(super) fn rewrite(field: &str, entry: PodSelection, draft: &mut Draft) -> PodSelection {
    check_plain(
        &format!("{field}.namespaceSelector"),
        entry.namespace_selector.as_ref(),
        draft,
    );
    check_plain(
        &format!("{field}.nodeSelector"),
        entry.node_selector.as_ref(),
        draft,
    );
    let Some(selector) = entry.pod_selector else {
        return entry;
    };
    let (mut pods, mut namespaces) = (LabelSelector::default(), entry.namespace_selector);
    for requirement in requirements(selector) {
        let theirs = requirement.key.as_str();
        let (target, key) = match meaning(theirs) {
            Meaning::Pod(key) => (&mut pods, key.to_owned()),
            Meaning::Namespace(key) => {
                comment_on_move(field, theirs, key, draft);
                (namespaces.get_or_insert_default(), key.to_owned())
            }
            Meaning::Nothing => {
                refuse_label(&format!("{field}.podSelector"), theirs, draft);
                continue;
            }
        };
        if is_without_source(theirs, &key) {
            draft.comment("selectors", format!("{field}: {theirs} is {key} here."));
        }
        add(target, Requirement { key, ..requirement });
    }
    PodSelection {
        pod_selector: Some(pods),
        namespace_selector: namespaces,
        node_selector: entry.node_selector,
    }
}

/// Refuses sources where Cilium knows none: such a label matches nothing there, and no label has a colon.
fn check_plain(field: &str, selector: Option<&LabelSelector>, draft: &mut Draft) {
    let keys = selector
        .cloned()
        .into_iter()
        .flat_map(requirements)
        .map(|r| r.key);
    for key in keys.filter(|k| k.contains(':')) {
        refuse_label(field, &key, draft);
    }
}

fn refuse_label(field: &str, label: &str, draft: &mut Draft) {
    draft.refuse(
        field,
        format!("label {label} is known to Cilium only"),
        "select by a label of the pod, its namespace or its node",
    );
}

/// Whether only the source was taken off.
fn is_without_source(theirs: &str, ours: &str) -> bool {
    theirs != ours && theirs.ends_with(&format!(":{ours}"))
}

fn comment_on_move(field: &str, theirs: &str, ours: &str, draft: &mut Draft) {
    draft.comment(
        "selectors",
        format!(
            "{field}: {theirs} is a label of Cilium's own and means the pod's namespace; it stands under \
             namespaceSelector here, as {ours}."
        ),
    );
}

/// Both halves of a selector, as requirements.
fn requirements(selector: LabelSelector) -> impl Iterator<Item = Requirement> {
    let labels = selector.match_labels.into_iter().map(|(key, value)| Requirement {
        key,
        operator: Operator::In,
        values: vec![value],
    });
    labels.chain(selector.match_expressions)
}

/// One value stands under `matchLabels`, as long as the label is free there.
fn add(selector: &mut LabelSelector, requirement: Requirement) {
    match (requirement.operator, requirement.values.as_slice()) {
        (Operator::In, [value]) if !selector.match_labels.contains_key(&requirement.key) => {
            selector.match_labels.insert(requirement.key, value.clone());
        }
        _ => selector.match_expressions.push(requirement),
    }
}
