//! `POST /v1/rerank` in the shapes of Cohere and Jina, and `POST /v1/score`, vLLM's.

use std::sync::Arc;

use arbora_runtime::model::encoder::TooLong;
use serde::Serialize;
use serde_json::Value;

use super::embeddings::{TextUsage, at_least_one, check_count, encoding};
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use crate::encoders::Encoding;

/// Documents to be put in order.
#[derive(Clone, Debug, PartialEq)]
pub struct RerankRequest {
    /// The model as the client named it.
    pub model: Option<String>,
    /// What they are compared with.
    pub query: Arc<str>,
    /// At least one.
    pub documents: Vec<String>,
    /// Most results; all where absent.
    pub top_n: Option<usize>,
    /// Whether results repeat their documents.
    pub with_documents: bool,
    /// How long texts become tokens.
    pub encoding: Encoding,
}

impl RerankRequest {
    /// Reads a request body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        let model = f.optional("model")?;
        let query = f.required::<String>("query")?;
        let documents = match f.raw("documents") {
            None => {
                let message = "Missing required parameter: 'documents'.";
                return Err(ApiError::invalid("documents", message));
            }
            Some(Value::Array(list)) => list,
            Some(other) => return Err(wrong_type("documents", "an array", &other)),
        };
        if documents.is_empty() {
            return Err(ApiError::invalid(
                "documents",
                "'documents' must have an element.",
            ));
        }
        check_count("documents", documents.len())?;
        let documents = documents.into_iter().enumerate().map(document);
        let documents = documents.collect::<Result<_, _>>()?;
        let top_n = at_least_one(&mut f, "top_n")?;
        let with_documents = f.optional("return_documents")?.unwrap_or(false);
        let encoding = encoding(&mut f, TooLong::Truncate)?;
        f.finish();
        Ok(RerankRequest {
            model,
            query: query.into(),
            documents,
            top_n,
            with_documents,
            encoding,
        })
    }
}

/// A document: a text, or an object with one.
fn document((i, value): (usize, Value)) -> Result<String, ApiError> {
    let path = format!("documents[{i}]");
    match value {
        Value::String(text) => Ok(text),
        value @ Value::Object(_) => {
            let mut f = Fields::nested(value, path)?;
            let text = f.required("text")?;
            f.finish();
            Ok(text)
        }
        other => Err(wrong_type(&path, "a string or an object with 'text'", &other)),
    }
}

/// A document of an answer.
#[derive(Clone, Debug, Serialize)]
pub struct DocumentText {
    /// Its text.
    pub text: String,
}

/// One document's place.
#[derive(Clone, Debug, Serialize)]
pub struct RerankResult {
    /// Which document.
    pub index: usize,
    /// How relevant it is.
    pub relevance_score: f32,
    /// The document, where it is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<DocumentText>,
}

/// The answer to [`RerankRequest`].
#[derive(Clone, Debug, Serialize)]
pub struct RerankResponse {
    /// An id of its own.
    pub id: String,
    /// The model's own name.
    pub model: String,
    /// The most relevant first.
    pub results: Vec<RerankResult>,
    /// What it took.
    pub usage: TextUsage,
}

/// Pairs to be scored.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreRequest {
    /// The model as the client named it.
    pub model: Option<String>,
    /// Pairs, at least one.
    pub pairs: Vec<(Arc<str>, String)>,
    /// How long texts become tokens.
    pub encoding: Encoding,
}

impl ScoreRequest {
    /// Reads a request body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        let model = f.optional("model")?;
        let firsts = texts(&mut f, "text_1")?;
        let seconds = texts(&mut f, "text_2")?;
        let firsts: Vec<Arc<str>> = firsts.into_iter().map(Arc::from).collect();
        let pairs = match (firsts.len(), seconds.len()) {
            (1, _) => seconds
                .into_iter()
                .map(|second| (Arc::clone(&firsts[0]), second))
                .collect(),
            (n, m) if n == m => firsts.into_iter().zip(seconds).collect(),
            (n, m) => {
                let message =
                    format!("'text_1' has {n} texts and 'text_2' {m}: one, or as many, are possible.");
                return Err(ApiError::invalid("text_1", message));
            }
        };
        let encoding = encoding(&mut f, TooLong::Refuse)?;
        f.finish();
        Ok(ScoreRequest {
            model,
            pairs,
            encoding,
        })
    }
}

/// A text or several.
fn texts(f: &mut Fields, name: &str) -> Result<Vec<String>, ApiError> {
    let list = match f.raw(name) {
        None => {
            let message = format!("Missing required parameter: '{name}'.");
            return Err(ApiError::invalid(name, message));
        }
        Some(Value::String(text)) => return Ok(vec![text]),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong_type(name, "a string or an array of strings", &other)),
    };
    if list.is_empty() {
        return Err(ApiError::invalid(name, format!("'{name}' must have an element.")));
    }
    check_count(name, list.len())?;
    let text = |(i, value)| match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(&format!("{name}[{i}]"), "a string", &other)),
    };
    list.into_iter().enumerate().map(text).collect()
}

/// One pair's score.
#[derive(Clone, Debug, Serialize)]
pub struct Score {
    /// Which pair.
    pub index: usize,
    /// `score`.
    pub object: &'static str,
    /// How alike its texts are.
    pub score: f32,
}

/// The answer to [`ScoreRequest`].
#[derive(Clone, Debug, Serialize)]
pub struct ScoreResponse {
    /// An id of its own.
    pub id: String,
    /// `list`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's own name.
    pub model: String,
    /// One for each pair, in their order.
    pub data: Vec<Score>,
    /// What it took.
    pub usage: TextUsage,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_texts_or_objects_with_a_text() {
        let body = json!({"query": "q", "documents": ["a", {"text": "b", "title": "c"}], "top_n": 1});
        let request = RerankRequest::parse(body.to_string().as_bytes()).expect("good");
        assert_eq!(request.documents, ["a", "b"]);
        assert_eq!(
            (request.top_n, request.encoding.long),
            (Some(1), TooLong::Truncate)
        );
    }

    #[test]
    fn what_is_wrong_is_refused_by_field_value_and_limit() {
        let cases = [
            (json!({"documents": ["a"]}), "Missing required parameter: 'query'"),
            (json!({"query": "q"}), "Missing required parameter: 'documents'"),
            (
                json!({"query": "q", "documents": []}),
                "'documents' must have an element",
            ),
            (
                json!({"query": "q", "documents": [1]}),
                "'documents[0]': expected a string or an object",
            ),
            (
                json!({"query": "q", "documents": ["a"], "top_n": 0}),
                "'top_n' must be at least 1, got 0",
            ),
            (
                json!({"query": "q", "documents": vec!["a"; 2049]}),
                "2049 elements, at most 2048",
            ),
        ];
        for (body, expected) in cases {
            let error = RerankRequest::parse(body.to_string().as_bytes()).expect_err(expected);
            let error = error.to_string();
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        }
    }

    #[test]
    fn one_text_is_paired_with_each_and_several_with_as_many() {
        let pairs = |first: Value, second: Value| {
            let body = json!({"text_1": first, "text_2": second}).to_string();
            ScoreRequest::parse(body.as_bytes()).map(|request| request.pairs.len())
        };
        assert_eq!(pairs(json!("a"), json!("b")), Ok(1));
        assert_eq!(pairs(json!("a"), json!(["b", "c"])), Ok(2));
        assert_eq!(pairs(json!(["a", "b"]), json!(["b", "c"])), Ok(2));
        let error = pairs(json!(["a", "b"]), json!(["b", "c", "d"]))
            .expect_err("2 and 3")
            .to_string();
        assert!(error.contains("'text_1' has 2 texts and 'text_2' 3"), "{error}");
    }
}
