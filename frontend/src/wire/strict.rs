//! OpenAI's rules for schemas with `strict: true`.
//!
//! Every object closes its members (`additionalProperties: false`) and requires all of them, and the schema
//! itself is an object. Source: OpenAI's guide to structured outputs, "Supported schemas". A schema that
//! breaks a rule there is refused here too, so that what works here works there.

use serde_json::Value;

use super::error::ApiError;

/// Checks the schema found in the field `param`.
pub fn check(schema: &Value, param: &str) -> Result<(), ApiError> {
    let refuse = |pointer: &str, what: &str| {
        let message = format!("'{param}' is not a strict schema: at '#{pointer}', {what}.");
        Err(ApiError::invalid(param, message))
    };
    if schema.get("type").is_none_or(|kind| kind != "object") {
        return refuse("", "'type' must be \"object\"");
    }
    let mut open = vec![(schema, String::new())];
    while let Some((schema, pointer)) = open.pop() {
        let Value::Object(members) = schema else { continue };
        let is_object = match members.get("type") {
            Some(Value::String(kind)) => kind == "object",
            Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "object"),
            _ => members.contains_key("properties"),
        };
        if is_object {
            if members.get("additionalProperties") != Some(&Value::Bool(false)) {
                return refuse(&pointer, "'additionalProperties' must be false");
            }
            let required = members.get("required").and_then(Value::as_array);
            let is_required = |name: &String| required.is_some_and(|list| list.iter().any(|r| r == name));
            let properties = members.get("properties").and_then(Value::as_object);
            if let Some(name) = properties
                .iter()
                .flat_map(|p| p.keys())
                .find(|name| !is_required(name))
            {
                return refuse(
                    &pointer,
                    &format!("'required' must hold every property, '{name}' is missing"),
                );
            }
        }
        open.extend(children(members, &pointer));
    }
    Ok(())
}

/// Schemas directly inside `members`, with their pointers.
fn children<'a>(
    members: &'a serde_json::Map<String, Value>,
    pointer: &str,
) -> impl Iterator<Item = (&'a Value, String)> {
    let of_object = move |keyword: &'static str, value: &'a Value| {
        let named = value.as_object().into_iter().flatten();
        let pointer = format!("{pointer}/{keyword}");
        named.map(move |(name, child)| (child, format!("{pointer}/{}", escaped(name))))
    };
    let of_list = move |keyword: &'static str, value: &'a Value| {
        let listed = value.as_array().into_iter().flatten().enumerate();
        let pointer = format!("{pointer}/{keyword}");
        listed.map(move |(i, child)| (child, format!("{pointer}/{i}")))
    };
    let named = ["properties", "$defs", "definitions"]
        .into_iter()
        .filter_map(|keyword| Some((keyword, members.get(keyword)?)))
        .flat_map(move |(keyword, value)| of_object(keyword, value));
    let listed = ["anyOf", "oneOf", "allOf", "prefixItems"]
        .into_iter()
        .filter_map(|keyword| Some((keyword, members.get(keyword)?)))
        .flat_map(move |(keyword, value)| of_list(keyword, value));
    let single = members
        .get("items")
        .map(|items| (items, format!("{pointer}/items")));
    let mut all: Vec<_> = named.chain(listed).chain(single).collect();
    // The caller takes the last first; complaints should be about the first.
    all.reverse();
    all.into_iter()
}

/// A name inside a JSON pointer.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_is_refused_with_its_place() {
        let cases = [
            (r#"{"type": "array"}"#, "'#', 'type' must be"),
            (
                r#"{"type": "object", "properties": {}}"#,
                "'#', 'additionalProperties' must be false",
            ),
            (
                r#"{"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a"],
                    "additionalProperties": false}"#,
                "'#', 'required' must hold every property, 'b' is missing",
            ),
            (
                r##"{"type": "object", "properties": {"x/y": {"type": "array", "items": {"type": ["object", "null"]}}},
                    "required": ["x/y"], "additionalProperties": false}"##,
                "'#/properties/x~1y/items', 'additionalProperties'",
            ),
            (
                r##"{"type": "object", "properties": {}, "additionalProperties": false,
                    "$defs": {"d": {"anyOf": [{}, {"type": "object"}]}}}"##,
                "'#/$defs/d/anyOf/1', 'additionalProperties'",
            ),
        ];
        for (schema, expected) in cases {
            let value = serde_json::from_str(schema).expect(schema);
            let error = check(&value, "f").expect_err(schema);
            assert!(error.to_string().contains(expected), "{schema}: {error}");
        }
        let good = r##"{"type": "object", "properties": {"a": {"$ref": "#/$defs/d"}}, "required": ["a"],
            "additionalProperties": false, "$defs": {"d": {"type": "string"}}}"##;
        check(&serde_json::from_str(good).expect(good), "f").expect("a strict schema");
    }
}
