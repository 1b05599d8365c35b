//! YAML with comments, which no serializer writes.

use std::collections::BTreeMap;

use egressnat_crds::GROUP;
use serde_json::{Value, json};

/// The fields of a spec in the order of the API. Comments on a field that is left out stand where it would.
const ORDER: [&str; 9] = [
    "priority",
    "selectors",
    "destinationCIDRs",
    "excludedCIDRs",
    "egressSourceIP",
    "egressSourceIPs",
    "egressGateway",
    "egressGateways",
    "noGateway",
];

/// The longest line of a comment.
const WIDTH: usize = 100;

/// A policy with the comments above its fields; those on `metadata` stand above the name.
pub(super) fn document(
    name: &str,
    from: &str,
    fields: &BTreeMap<&'static str, Value>,
    comments: &BTreeMap<&'static str, Vec<String>>,
) -> Result<String, serde_yaml_ng::Error> {
    let comments_on = |field: &str| comments.get(field).map_or(&[][..], Vec::as_slice);
    let mut text = comment("", &format!("From {from}."));
    text += &format!("apiVersion: {GROUP}/v1alpha1\nkind: EgressNATPolicy\nmetadata:\n");
    text.extend(comments_on("metadata").iter().map(|c| comment("  ", c)));
    text += &field("name", &json!(name))?;
    text += "spec:\n";
    for key in ORDER {
        text.extend(comments_on(key).iter().map(|c| comment("  ", c)));
        match fields.get(key) {
            Some(value) => text += &field(key, value)?,
            // A comment on nothing must not read as one on the next field.
            None if comments.contains_key(key) => text.push('\n'),
            None => {}
        }
    }
    Ok(text)
}

/// A field with its value, one level deep.
fn field(key: &str, value: &Value) -> Result<String, serde_yaml_ng::Error> {
    let text = serde_yaml_ng::to_string(&json!({ key: value }))?;
    Ok(text.lines().map(|line| format!("  {line}\n")).collect())
}

/// A comment of as many lines as it needs. Nothing in it can end it: all white space becomes one blank.
fn comment(indent: &str, text: &str) -> String {
    let mut lines = vec![format!("{indent}#")];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= WIDTH || line.ends_with('#') => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("{indent}# {word}")),
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_keeps_its_words_and_its_width() {
        let words = "word ".repeat(60) + &"x".repeat(150);
        let text = comment("  ", &words);
        assert!(text.lines().all(|l| l.starts_with("  # ")), "{text}");
        let (long, short): (Vec<&str>, Vec<&str>) = text.lines().partition(|l| l.len() > WIDTH);
        assert_eq!(long.len(), 1, "only the word that no line can hold: {text}");
        assert!(short.len() > 2, "{text}");
        assert_eq!(text.replace("  # ", "").replace('\n', " ").trim(), words);
    }

    #[test]
    fn a_comment_cannot_be_ended_by_what_it_quotes() {
        assert_eq!(comment("", "a\nb:\r\nc"), "# a b: c\n");
    }

    #[test]
    fn names_that_yaml_takes_for_something_else_are_quoted() {
        assert_eq!(field("name", &json!("true")).unwrap(), "  name: 'true'\n");
        assert_eq!(field("name", &json!("1.5")).unwrap(), "  name: '1.5'\n");
    }
}
