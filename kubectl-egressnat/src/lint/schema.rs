//! An object against the schema of its CRD, as strictly as `kubectl apply` has it checked: a field that the
//! schema does not have is an error, not silently dropped.

use serde_json::{Map, Value};

use super::Finding;

/// What the schema of a CRD's version refuses of an object.
pub(super) fn check(schema: &Value, object: &Value) -> Vec<Finding> {
    let mut found = Vec::new();
    // These are every object's, and not in a CRD's schema.
    const OF_EVERY_KIND: [&str; 3] = ["apiVersion", "kind", "metadata"];
    let mut own = object.clone();
    if let Some(own) = own.as_object_mut() {
        own.retain(|key, _| !OF_EVERY_KIND.contains(&key.as_str()));
    }
    value(schema, &own, "", &mut found);
    found
}

fn value(schema: &Value, object: &Value, path: &str, found: &mut Vec<Finding>) {
    let mut wrong = |message: String| {
        found.push(Finding {
            field: path.to_owned(),
            message,
        });
    };
    let fits = match schema["type"].as_str() {
        Some("object") => object.is_object(),
        Some("array") => object.is_array(),
        Some("string") => object.is_string(),
        Some("boolean") => object.is_boolean(),
        Some("integer") => object.is_i64() || object.is_u64(),
        Some("number") => object.is_number(),
        _ => true,
    };
    if !fits {
        let wanted = schema["type"].as_str().unwrap_or_default();
        return wrong(format!("{object} is not of type {wanted}"));
    }
    if let Some(allowed) = schema["enum"]
        .as_array()
        .filter(|allowed| !allowed.contains(object))
    {
        let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        wrong(format!("{object} is not one of {}", allowed.join(", ")));
    }
    match object {
        Value::Object(fields) => self::fields(schema, fields, path, found),
        Value::Array(items) => {
            bounds(
                schema,
                items.len(),
                ["minItems", "maxItems"],
                "entries",
                &mut wrong,
            );
            for (index, item) in items.iter().enumerate() {
                value(&schema["items"], item, &format!("{path}[{index}]"), found);
            }
        }
        Value::String(text) => {
            let length = text.chars().count();
            bounds(
                schema,
                length,
                ["minLength", "maxLength"],
                "characters",
                &mut wrong,
            );
            if let Some(pattern) = schema["pattern"].as_str()
                && regex::Regex::new(pattern).is_ok_and(|p| !p.is_match(text))
            {
                wrong(format!("{text:?} does not match {pattern}"));
            }
        }
        Value::Number(number) => {
            let (value, bound) = (number.as_f64(), |name: &str| schema[name].as_f64());
            if let (Some(value), Some(least)) = (value, bound("minimum").filter(|b| value < Some(*b))) {
                wrong(format!("{value} is below {least}"));
            }
            if let (Some(value), Some(most)) = (value, bound("maximum").filter(|b| value > Some(*b))) {
                wrong(format!("{value} is above {most}"));
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

fn fields(schema: &Value, fields: &Map<String, Value>, path: &str, found: &mut Vec<Finding>) {
    let inside = |name: &str| match path.is_empty() {
        true => name.to_owned(),
        false => format!("{path}.{name}"),
    };
    let known = schema["properties"].as_object();
    let required = schema["required"].as_array().into_iter().flatten();
    for name in required
        .filter_map(Value::as_str)
        .filter(|n| !fields.contains_key(*n))
    {
        found.push(Finding {
            field: inside(name),
            message: "is missing".into(),
        });
    }
    for (name, field) in fields {
        let schema = known
            .and_then(|k| k.get(name))
            .or(schema.get("additionalProperties").filter(|a| a.is_object()));
        match schema {
            // The API server drops a null, or puts the default in its place.
            Some(_) if field.is_null() => {}
            Some(schema) => value(schema, field, &inside(name), found),
            None => found.push(Finding {
                field: inside(name),
                message: unknown(name, known),
            }),
        }
    }
    let wrong = &mut |message| {
        found.push(Finding {
            field: path.to_owned(),
            message,
        });
    };
    bounds(
        schema,
        fields.len(),
        ["minProperties", "maxProperties"],
        "entries",
        wrong,
    );
}

/// An unknown field, and the one that may have been meant.
fn unknown(name: &str, known: Option<&Map<String, Value>>) -> String {
    let plain = |name: &str| name.to_lowercase().trim_end_matches('s').to_owned();
    let meant = known.and_then(|k| k.keys().find(|k| plain(k) == plain(name)));
    match meant {
        Some(meant) => format!("is no field: write {meant}"),
        None => "is no field".into(),
    }
}

fn bounds(
    schema: &Value,
    count: usize,
    [least, most]: [&str; 2],
    what: &str,
    wrong: &mut impl FnMut(String),
) {
    let count = count as u64;
    if let Some(least) = schema[least].as_u64().filter(|least| count < *least) {
        wrong(format!("has {count} {what}, fewer than {least}"));
    }
    if let Some(most) = schema[most].as_u64().filter(|most| count > *most) {
        wrong(format!("has {count} {what}, more than {most}"));
    }
}
