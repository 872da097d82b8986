//! Reads a JSON object field by field, so that every complaint can name the field.

use serde_json::{Map, Value};

use super::error::ApiError;
use super::unsupported::asks_for_nothing;

/// The fields of one JSON object that have not been read yet.
pub struct Fields {
    map: Map<String, Value>,
    path: String,
}

/// A value that can be read from JSON, or refused with what was expected instead.
pub trait FromJson: Sized {
    /// What it must look like, in words: "a string".
    const EXPECTED: &'static str;

    /// The value; absent where the JSON is of another kind or out of range.
    fn from_json(value: Value) -> Option<Self>;
}

impl Fields {
    /// Parses a request body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Fields {
                map,
                path: String::new(),
            }),
            Ok(_) => Err(ApiError::Invalid {
                param: None,
                message: "The request body must be a JSON object.".to_owned(),
            }),
            Err(error) => Err(ApiError::Invalid {
                param: None,
                message: format!("The request body is not valid JSON: {error}."),
            }),
        }
    }

    /// The object found at `path`, a field or list element of another object.
    pub fn nested(value: Value, path: String) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Fields { map, path }),
            other => Err(wrong_type(&path, "an object", &other)),
        }
    }

    /// The full path of a field of this object.
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// A field that may be missing; `null` counts as missing.
    pub fn optional<T: FromJson>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        match self.raw(name) {
            None => Ok(None),
            Some(value) => {
                let shown = describe(&value);
                let wrong = || refused(&self.path_of(name), T::EXPECTED, &shown);
                T::from_json(value).map(Some).ok_or_else(wrong)
            }
        }
    }

    /// A field that must be there.
    pub fn required<T: FromJson>(&mut self, name: &str) -> Result<T, ApiError> {
        let missing = || {
            let path = self.path_of(name);
            ApiError::invalid(&path, format!("Missing required parameter: '{path}'."))
        };
        let error = missing();
        self.optional(name)?.ok_or(error)
    }

    /// A field as it is; `null` counts as missing.
    pub fn raw(&mut self, name: &str) -> Option<Value> {
        // A test listens, to compare the fields that are read with those that the API's document lists.
        tracing::trace!(field = %self.path_of(name), "looked for");
        // The members that stay keep their order.
        self.map.shift_remove(name).filter(|v| !v.is_null())
    }

    /// Whether a field is there and not `null`. It is still to be read.
    pub(super) fn has(&self, name: &str) -> bool {
        self.peek(name).is_some()
    }

    /// A field that is still to be read; `null` counts as missing.
    pub(super) fn peek(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Sets a field that has not been read.
    pub(super) fn put(&mut self, name: &str, value: Option<Value>) {
        if let Some(value) = value {
            self.map.insert(name.to_owned(), value);
        }
    }

    /// The object in a field.
    pub fn object(&mut self, name: &str) -> Result<Option<Fields>, ApiError> {
        let path = self.path_of(name);
        self.raw(name)
            .map(|value| Fields::nested(value, path))
            .transpose()
    }

    /// The list in a field, of at most `limit` elements, each with its path.
    pub fn list(&mut self, name: &str, limit: usize) -> Result<Option<Vec<(String, Value)>>, ApiError> {
        let path = self.path_of(name);
        let elements = match self.raw(name) {
            None => return Ok(None),
            Some(Value::Array(elements)) => elements,
            Some(other) => return Err(wrong_type(&path, "an array", &other)),
        };
        if elements.len() > limit {
            let n = elements.len();
            let message = format!("'{path}' has {n} elements, at most {limit} are allowed.");
            return Err(ApiError::invalid(path, message));
        }
        let with_path = |(i, element)| (format!("{path}[{i}]"), element);
        Ok(Some(elements.into_iter().enumerate().map(with_path).collect()))
    }

    /// Whether no field is left.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Ends the reading; what is left goes on as it is, its `type` with it.
    pub fn into_value(mut self, kind: &str) -> Value {
        self.map.insert("type".to_owned(), kind.into());
        Value::Object(self.map)
    }

    /// Ends the reading of an object in which every member matters; what is left is unknown and refused,
    /// unless it asks for nothing.
    pub fn finish_strictly(self) -> Result<(), ApiError> {
        match self.map.iter().find(|(_, value)| !asks_for_nothing(value)) {
            None => Ok(()),
            Some((name, _)) => {
                let shown: String = name.chars().take(100).collect();
                let path = self.path_of(&shown);
                let message = format!("'{path}' is not known to this server.");
                Err(ApiError::invalid(path, message))
            }
        }
    }

    /// Ends the reading; what is left is unknown and ignored.
    pub fn finish(self) {
        for name in self.map.keys() {
            tracing::debug!(field = %self.path_of(name), "unknown field ignored");
        }
    }
}

/// A 400 because the value at `path` is not `expected`.
pub fn wrong_type(path: &str, expected: &str, value: &Value) -> ApiError {
    refused(path, expected, &describe(value))
}

fn refused(path: &str, expected: &str, found: &str) -> ApiError {
    ApiError::invalid(
        path,
        format!("Invalid value for '{path}': expected {expected}, got {found}."),
    )
}

/// A value in few words: scalars as they are, the rest by kind. Bounded, since it ends up in an error.
fn describe(value: &Value) -> String {
    match value {
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) if text.len() > 40 => "a string".to_owned(),
        scalar => Some(scalar.to_string())
            .filter(|shown| shown.len() <= 60)
            .unwrap_or_else(|| "a long number".to_owned()),
    }
}

impl FromJson for String {
    const EXPECTED: &'static str = "a string";

    fn from_json(value: Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }
}

impl FromJson for bool {
    const EXPECTED: &'static str = "a boolean";

    fn from_json(value: Value) -> Option<Self> {
        value.as_bool()
    }
}

impl FromJson for f32 {
    const EXPECTED: &'static str = "a finite number";

    fn from_json(value: Value) -> Option<Self> {
        value.as_f64().map(|x| x as f32).filter(|x| x.is_finite())
    }
}

/// JSON has one kind of number: `5.0` is as whole as `5`.
impl FromJson for i64 {
    const EXPECTED: &'static str = "an integer";

    fn from_json(value: Value) -> Option<Self> {
        const EXACT: f64 = (1_u64 << 53) as f64;
        let whole = |x: &f64| x.fract() == 0.0 && x.abs() <= EXACT;
        value
            .as_i64()
            .or_else(|| value.as_f64().filter(whole).map(|x| x as i64))
    }
}

impl FromJson for i32 {
    const EXPECTED: &'static str = "a 32-bit integer";

    fn from_json(value: Value) -> Option<Self> {
        i64::from_json(value)?.try_into().ok()
    }
}

impl FromJson for u32 {
    const EXPECTED: &'static str = "a non-negative 32-bit integer";

    fn from_json(value: Value) -> Option<Self> {
        i64::from_json(value)?.try_into().ok()
    }
}

impl FromJson for usize {
    const EXPECTED: &'static str = "a non-negative integer";

    fn from_json(value: Value) -> Option<Self> {
        i64::from_json(value)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        Fields::parse(json.as_bytes()).expect("an object")
    }

    fn param(error: &ApiError) -> &str {
        match error {
            ApiError::Invalid {
                param: Some(param), ..
            } => param,
            other => panic!("{other:?} names no field"),
        }
    }

    #[test]
    fn null_is_missing_and_whole_floats_are_integers() {
        let mut f = fields(r#"{"a": null, "b": 5.0, "c": -3, "d": 9007199254740993, "e": true}"#);
        assert_eq!(f.optional::<String>("a"), Ok(None));
        assert_eq!(f.optional::<usize>("b"), Ok(Some(5)));
        assert_eq!(f.optional::<i64>("c"), Ok(Some(-3)));
        assert_eq!(f.optional::<i64>("d"), Ok(Some(9_007_199_254_740_993)));
        assert_eq!(f.required::<bool>("e"), Ok(true));
        assert_eq!(
            param(&f.required::<bool>("missing").expect_err("missing")),
            "missing"
        );
    }

    #[test]
    fn wrong_kinds_and_ranges_name_the_field() {
        for json in [
            r#"{"x": "5"}"#,
            r#"{"x": 5.5}"#,
            r#"{"x": -1}"#,
            r#"{"x": [5]}"#,
            r#"{"x": 1e300}"#,
            r#"{"x": 1e999}"#,
            r#"{"x": 123456789012345678901234567890}"#,
        ] {
            assert_eq!(
                param(&fields(json).optional::<usize>("x").expect_err(json)),
                "x",
                "{json}"
            );
        }
        let mut outer = fields(r#"{"outer": {"x": 1e300}}"#);
        let mut inner = outer.object("outer").expect("an object").expect("is there");
        assert_eq!(
            param(&inner.optional::<f32>("x").expect_err("infinite as f32")),
            "outer.x"
        );
    }

    #[test]
    fn bodies_that_are_no_object_are_refused_without_a_field() {
        let deep = "[".repeat(100_000);
        for body in ["", "[]", "3", "{", "{\"a\": NaN}", "\u{feff}{}", deep.as_str()] {
            let error = Fields::parse(body.as_bytes()).err().expect(body);
            assert!(
                matches!(error, ApiError::Invalid { param: None, .. }),
                "{error:?}"
            );
        }
        assert!(Fields::parse(b"{\"a\": \"\xff\"}").is_err());
    }

    #[test]
    fn lists_are_bounded() {
        let error = fields(r#"{"stop": [1, 2, 3]}"#)
            .list("stop", 2)
            .expect_err("too long");
        assert!(error.to_string().contains("at most 2"), "{error}");
    }
}
