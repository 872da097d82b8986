//! `GET /openapi.json`: the document of the API, for generators of clients and for fuzzers. It is written by
//! hand but for the parameters that are refused, which come from their tables; the tests here keep it to what
//! the server reads and refuses.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::wire::unsupported;

const DOCUMENT: &str = include_str!("openapi.json");

/// Answers with the document.
pub async fn document() -> Response {
    let body = written().to_string();
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The document.
fn written() -> Value {
    let mut document: Value = serde_json::from_str(DOCUMENT).expect("the document is JSON");
    for (name, schema) in unsupported::schemas() {
        document["components"]["schemas"][name] = schema;
    }
    document
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Debug;
    use std::sync::{Arc, Mutex};

    use jsonschema::Validator;
    use serde_json::{Map, json};
    use tracing::field::{Field, Visit};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::*;
    use crate::wire::anthropic::request::{CountRequest, MessagesRequest};
    use crate::wire::chat::ChatRequest;
    use crate::wire::completion::CompletionRequest;
    use crate::wire::embeddings::EmbeddingsRequest;
    use crate::wire::error::ApiError;
    use crate::wire::generate::{GenerateRequest, RENAMED};
    use crate::wire::ollama::request::{OllamaEmbed, OllamaModel, OllamaRequest};
    use crate::wire::rerank::{RerankRequest, ScoreRequest};
    use crate::wire::responses::request::ResponsesRequest;
    use crate::wire::tgi::request::{TgiRequest, TgiTokenize};
    use crate::wire::tokens::{DetokenizeRequest, TokenizeRequest};

    #[test]
    fn it_lists_the_routes_and_the_version_that_there_are() {
        let document = written();
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let mut listed = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().expect("paths") {
            for (method, operation) in methods.as_object().expect("methods") {
                listed.insert((path.clone(), method.clone()));
                let answers = operation["responses"].as_object().expect("responses");
                for status in ["200", "401", "403"] {
                    assert!(answers.contains_key(status), "{path} {status}");
                }
                let has_body = operation.get("requestBody").is_some();
                assert!(!has_body || answers.contains_key("415"), "{path}");
            }
        }
        // The page's own, which is in no table.
        let mut served = BTreeSet::from([("/".to_owned(), "get".to_owned())]);
        let (table, _) = include_str!("route.rs").split_once("\n];\n").expect("a table");
        for rest in table.split("Route::new(\"").skip(1) {
            let (path, handlers) = rest.split_once('"').expect("a path in quotes");
            let path = path.replace("{*", "{");
            for method in ["get", "post", "delete"] {
                if handlers.contains(&format!(" {method}(")) || handlers.contains(&format!(".{method}(")) {
                    served.insert((path.clone(), method.to_owned()));
                }
            }
        }
        assert!(served.len() > 20, "{served:?}");
        assert_eq!(listed, served);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = written();
        let mut open = vec![&document];
        let mut n_found = 0;
        while let Some(value) = open.pop() {
            match value {
                Value::Object(members) => {
                    if let Some(Value::String(target)) = members.get("$ref") {
                        let pointer = target.strip_prefix('#').expect("within the document");
                        assert!(document.pointer(pointer).is_some(), "{target}");
                        n_found += 1;
                    }
                    open.extend(members.values());
                }
                Value::Array(elements) => open.extend(elements),
                _ => {}
            }
        }
        assert!(n_found > 200, "{n_found} references");
    }

    /// A kind of request: its schema in the document, how it is read, and bodies that are valid.
    #[derive(Clone)]
    struct Kind {
        schema: &'static str,
        read: fn(&[u8]) -> Result<(), ApiError>,
        bodies: Vec<Value>,
    }

    fn kinds() -> Vec<Kind> {
        let with = |base: &Value, more: &Value| {
            let mut body = base.clone();
            let members = body.as_object_mut().expect("an object");
            members.extend(more.as_object().expect("an object").clone());
            body
        };
        let options = json!({
            "model": "m", "max_tokens": 9, "max_completion_tokens": 9, "min_tokens": 1, "n": 2, "seed": -1,
            "temperature": 0.5, "top_k": 5, "top_p": 0.5, "min_p": 0.5, "repetition_penalty": 1.5,
            "presence_penalty": 1, "frequency_penalty": -1, "logit_bias": {"7": -100}, "stop": ["a", "b"],
            "stop_token_ids": [1, 2], "ignore_eos": true, "stream": true, "priority": 1,
            "stream_options": {"include_usage": true, "continuous_usage_stats": true}, "cache_salt": "x",
            "extra_key": "x", "skip_special_tokens": false, "best_of": 2, "repeat_last_n": -1,
            "disable_any_whitespace": true, "user": "x", "prompt_cache_key": "x",
            "safety_identifier": "x", "service_tier": "x", "guided_decoding_backend": "x", "regex": "a+"
        });
        let constraints = [
            json!({"response_format": {"type": "text"}}),
            json!({"response_format": {}}),
            json!({"response_format": {"type": "json_object", "schema": {}, "disable_any_whitespace": true}}),
            json!({"response_format": {"type": "json", "value": {}}}),
            json!({"response_format": {"type": "json_object", "json_schema": {"schema": {}}}}),
            json!({"response_format": {"type": "json_schema", "schema": {}}}),
            json!({"response_format": {"type": "regex", "value": "x"}}),
            json!({"response_format": {"type": "json_schema", "value": {
                "name": "x", "description": "x", "strict": false, "schema": {}}}}),
            json!({"response_format": {"type": "json_schema", "json_schema": {
                "name": "x", "description": "x", "strict": false, "schema": {}}}}),
            json!({"response_format": {"type": "structural_tag", "format": {}}}),
            json!({"structured_outputs": {"json": {}, "disable_any_whitespace": true}}),
            json!({"structured_outputs": {"json_object": true}}),
            json!({"structured_outputs": {"choice": ["a", "b"]}}),
            json!({"json_schema": {}, "choice": null, "stop": "x"}),
            json!({"guided_choice": ["a"], "grammar": null}),
        ];
        let tool = json!({"type": "function", "function": {
            "name": "f", "description": "x", "strict": false, "parameters": {}}});
        let conversation = json!({
            "messages": [
                {"role": "user", "content": "x", "name": "x", "reasoning_content": "x"},
                {"role": "assistant", "reasoning": "x", "refusal": "x", "content": [{"type": "refusal", "refusal": "x"}],
                    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}],
                    "function_call": {"name": "f", "arguments": "x"}},
                {"role": "tool", "content": [{"type": "text", "text": "x"}], "tool_call_id": "x"}
            ],
            "tools": [&tool], "tool_choice": {"type": "function", "function": {"name": "f"}},
            "parallel_tool_calls": true,
            "add_generation_prompt": true, "continue_final_message": false, "reasoning_effort": "high",
            "chat_template_kwargs": {"enable_thinking": true, "thinking": "x", "reasoning_effort": "x"}
        });
        let asked = json!({"messages": [{"role": "user", "content": "x"}]});
        let prompt = json!({"prompt": "x"});
        let more = json!({"logprobs": true, "top_logprobs": 2, "modalities": ["text"], "documents": [],
            "add_special_tokens": false, "separate_reasoning": true, "include_reasoning": false,
            "thinking_token_budget": 1});
        let mut chats = vec![with(&with(&conversation, &options), &more)];
        chats.push(with(&asked, &json!({"prompt_logprobs": 3})));
        let allowed = json!({"type": "allowed_tools", "allowed_tools": {
            "mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}, {"name": "f"}]}});
        let called = [json!({"name": "f"}), allowed];
        let called = called.map(|choice| with(&asked, &json!({"tools": [&tool], "tool_choice": choice})));
        chats.extend(called.clone());
        chats.extend(constraints.iter().map(|form| with(&asked, form)));
        let more = json!({"prompt": ["x", [1, 2]], "logprobs": 2, "echo": true,
            "add_special_tokens": false});
        let mut texts = vec![
            with(&options, &more),
            json!({"prompt": [1, 2], "prompt_logprobs": 3}),
        ];
        texts.extend(constraints.iter().map(|form| with(&prompt, form)));
        let params = json!({
            "max_new_tokens": 9, "min_new_tokens": 1, "sampling_seed": 1, "temperature": 0, "n": 2, "stop": "x",
            "presence_penalty": 1,
            "skip_special_tokens": true, "no_stop_trim": false, "spaces_between_special_tokens": true
        });
        let mut generations = vec![
            json!({"text": ["x"], "sampling_params": params, "stream": true, "rid": "x", "return_logprob": true,
                "top_logprobs_num": 2, "logprob_start_len": -1, "return_text_in_logprobs": true}),
            json!({"text": ["x", "y"], "sampling_params": [{"n": 1}, null], "rid": ["x", null], "priority": [1, 2],
                "return_logprob": [true, false], "top_logprobs_num": [1, 2], "logprob_start_len": [0, -1],
                "token_ids_logprob": [[1], null], "cache_salt": ["x", null], "extra_key": "x"}),
            json!({"text": "x", "token_ids_logprob": [1, 2], "custom_params": {}, "temperature": null}),
            json!({"input_ids": [1, 2], "text": null}),
            json!({"input_ids": [[1], [2]]}),
        ];
        let form = |form| json!({"text": "x", "sampling_params": form});
        generations.extend(constraints.iter().map(form));
        let read_chat: fn(&[u8]) -> _ = |body| ChatRequest::parse(body).map(drop);
        let read_text: fn(&[u8]) -> _ = |body| CompletionRequest::parse(body).map(drop);
        let kind = |schema, read, bodies| Kind { schema, read, bodies };
        let mut kinds = anthropic_kinds().to_vec();
        kinds.push(responses_kind());
        kinds.extend(ollama_kinds());
        kinds.extend(tgi_kinds());
        kinds.extend([
            kind("ChatRequest", read_chat, chats),
            kind("CompletionRequest", read_text, texts),
            kind(
                "GenerateRequest",
                |body| GenerateRequest::parse(body).map(drop),
                generations,
            ),
            kind(
                "TokenizeRequest",
                |body| TokenizeRequest::parse(body).map(drop),
                vec![
                    json!({"model": "m", "prompt": "x", "add_special_tokens": true, "return_token_strs": true}),
                    with(&conversation, &json!({"model": "m", "return_token_strs": true})),
                    called[0].clone(),
                    called[1].clone(),
                ],
            ),
            kind(
                "DetokenizeRequest",
                |body| DetokenizeRequest::parse(body).map(drop),
                vec![json!({"model": "m", "tokens": [1, 2]})],
            ),
            kind(
                "EmbeddingsRequest",
                |body| EmbeddingsRequest::parse(body).map(drop),
                vec![
                    json!({"model": "m", "input": ["x", [1, 2]], "encoding_format": "base64", "dimensions": 3,
                        "prompt_name": "x", "input_type": "x", "truncate_prompt_tokens": -1, "user": "x"}),
                    json!({"input": "x", "encoding_format": "float", "truncate_prompt_tokens": 9}),
                    json!({"input": [1, 2]}),
                ],
            ),
            kind(
                "RerankRequest",
                |body| RerankRequest::parse(body).map(drop),
                vec![
                    json!({"model": "m", "query": "x", "documents": ["x", {"text": "x"}], "top_n": 1,
                    "return_documents": true, "truncate_prompt_tokens": 9}),
                ],
            ),
            kind(
                "ScoreRequest",
                |body| ScoreRequest::parse(body).map(drop),
                vec![
                    json!({"model": "m", "text_1": "x", "text_2": ["x", "y"], "truncate_prompt_tokens": 9}),
                    json!({"text_1": ["x", "z"], "text_2": ["x", "y"]}),
                ],
            ),
        ]);
        kinds
    }

    fn tgi_kinds() -> [Kind; 2] {
        let parameters = json!({"max_new_tokens": 9, "do_sample": true, "temperature": 0.5, "top_k": 5, "top_p": 0.5,
            "min_p": 0.5, "repetition_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": -1,
            "repeat_last_n": -1, "seed": -1, "stop": ["x"], "best_of": 2, "truncate": 5, "return_full_text": true,
            "details": true, "decoder_input_details": true, "top_n_tokens": 2, "typical_p": 1,
            "grammar": {"type": "json", "value": {}}});
        let grammar = |grammar| json!({"inputs": "x", "parameters": {"grammar": grammar}});
        let bodies = vec![
            json!({"inputs": "x", "parameters": parameters, "stream": false, "model": "m", "cache_salt": "x",
                "extra_key": "x", "priority": 1, "text": null}),
            grammar(json!({"type": "regex", "value": "x"})),
            grammar(json!({"type": "json_schema", "value": {
                "name": "x", "description": "x", "strict": false, "schema": {}}})),
            grammar(json!({"type": "json_schema", "json_schema": {
                "name": "x", "description": "x", "strict": false, "schema": {}}})),
            grammar(json!({"type": "json_object", "schema": {}, "disable_any_whitespace": true})),
            grammar(json!({"type": "structural_tag", "format": {}})),
            json!({"inputs": "x", "stream": true}),
        ];
        [
            Kind {
                schema: "TgiRequest",
                read: |body| TgiRequest::parse(body).map(drop),
                bodies,
            },
            Kind {
                schema: "TgiTokenize",
                read: |body| TgiTokenize::parse(body).map(drop),
                bodies: vec![json!({"inputs": "x", "model": "m"})],
            },
        ]
    }

    fn ollama_kinds() -> [Kind; 5] {
        let options = json!({"num_predict": 9, "num_ctx": 9, "temperature": 0.5, "top_k": 5, "top_p": 0.5,
            "min_p": 0.5, "repeat_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": -1,
            "repeat_last_n": -1, "seed": -1, "stop": ["x"], "num_gpu": 1, "numa": true, "penalize_newline": true});
        let tool = json!({"type": "function", "function": {
            "name": "f", "description": "x", "strict": false, "parameters": {}}});
        let chat = json!({
            "model": "m", "stream": false, "format": {}, "think": "low", "keep_alive": "5m", "logprobs": true,
            "top_logprobs": 2, "options": &options, "cache_salt": "x", "extra_key": "x", "priority": 1,
            "tools": [&tool], "tool_choice": {"type": "function", "function": {"name": "f"}},
            "parallel_tool_calls": true,
            "messages": [
                {"role": "user", "content": "x", "images": []},
                {"role": "assistant", "thinking": "x",
                    "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
                {"role": "tool", "content": [{"type": "text", "text": "x"}], "tool_name": "f", "tool_call_id": "x"},
                {"role": "assistant", "refusal": "x", "reasoning": "x", "function_call": {"name": "f"},
                    "content": [{"type": "refusal", "refusal": "x"}]}
            ]
        });
        let kind = |schema, read, bodies| Kind { schema, read, bodies };
        let named = json!({"tools": [&tool], "tool_choice": {"name": "f"}});
        let allowed = json!({"tools": [&tool], "tool_choice": {"type": "allowed_tools", "allowed_tools": {
            "mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}, {"name": "f"}]}}});
        [
            kind(
                "OllamaChat",
                |body| OllamaRequest::parse_chat(body).map(drop),
                vec![
                    chat,
                    named,
                    allowed,
                    json!({"format": "json", "keep_alive": 5, "options": {"stop": "x"}}),
                ],
            ),
            kind(
                "OllamaGenerate",
                |body| OllamaRequest::parse_generate(body).map(drop),
                vec![
                    json!({"model": "m", "prompt": "x", "raw": true, "format": "", "think": true}),
                    json!({"prompt": "x", "system": "x", "context": [1, 2], "stream": true}),
                ],
            ),
            kind(
                "OllamaEmbed",
                |body| OllamaEmbed::parse(body).map(drop),
                vec![
                    json!({"model": "m", "input": ["x", "y"], "truncate": false, "dimensions": 3,
                        "options": &options, "keep_alive": "5m"}),
                    json!({"input": "x"}),
                ],
            ),
            kind(
                "OllamaEmbeddings",
                |body| OllamaEmbed::parse_older(body).map(drop),
                vec![json!({"model": "m", "prompt": "x", "options": &options, "keep_alive": 1})],
            ),
            kind(
                "OllamaModel",
                |body| OllamaModel::parse(body).map(drop),
                vec![
                    json!({"model": "m", "stream": true, "verbose": true, "insecure": true}),
                    json!({"name": "m"}),
                ],
            ),
        ]
    }

    fn responses_kind() -> Kind {
        let tool =
            json!({"type": "function", "name": "f", "description": "x", "parameters": {}, "strict": false});
        let space = json!({"type": "namespace", "name": "s", "description": "x", "tools": [
            {"type": "function", "name": "g", "description": "x", "parameters": {}, "strict": false}]});
        let named = json!({"type": "function", "name": "f"});
        let items = json!([
            {"type": "message", "id": "x", "status": "x", "role": "user", "content": [
                {"type": "input_text", "text": "x"}, {"type": "refusal", "refusal": "x"}]},
            {"type": "reasoning", "id": "x", "status": "x", "summary": [{"type": "summary_text", "text": "x"}],
                "content": [{"type": "reasoning_text", "text": "x"}]},
            {"type": "function_call", "call_id": "x", "name": "f", "namespace": "s", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "x", "output": [
                {"type": "text", "text": "x"}, {"type": "refusal", "refusal": "x"}]},
            {"role": "assistant", "content": "x"},
            {"type": "item_reference", "id": "x"}
        ]);
        let schema =
            json!({"type": "json_schema", "name": "x", "description": "x", "strict": false, "schema": {}});
        let whole = json!({
            "model": "m", "input": items, "instructions": "x", "previous_response_id": "x",
            "tools": [&tool, space], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [
                named, {"function": {"name": "f"}}]},
            "parallel_tool_calls": true, "text": {"verbosity": "low", "format": schema},
            "reasoning": {"effort": "high", "summary": "auto", "generate_summary": "x"}, "max_output_tokens": 9,
            "max_tool_calls": 1, "store": true, "background": false, "stream": true, "metadata": {"a": "x"},
            "stream_options": {"include_obfuscation": false}, "include": ["reasoning.encrypted_content"],
            "temperature": 0.5, "top_k": 5, "top_p": 0.5, "min_p": 0.5, "repetition_penalty": 1.5,
            "presence_penalty": 1, "frequency_penalty": -1, "repeat_last_n": -1, "seed": 1, "cache_salt": "x",
            "extra_key": "x", "priority": 1, "prompt_cache_key": "x", "prompt_cache_retention": "24h",
            "safety_identifier": "x", "user": "x", "service_tier": "auto"
        });
        let bodies = vec![
            whole,
            json!({"input": "x", "tools": [&tool], "tool_choice": {"type": "function", "function": {"name": "f"}},
                "text": {"format": {"type": "json_object"}}, "truncation": "disabled"}),
            json!({"input": "x", "tools": [&tool], "tool_choice": &named, "text": {"format": {"type": "text"}}}),
        ];
        let read: fn(&[u8]) -> _ = |body| {
            let known = |_: &str| Some(json!({"role": "user", "content": "x"}));
            ResponsesRequest::parse(body)?
                .complete(Vec::new(), known)
                .map(drop)
        };
        Kind {
            schema: "ResponsesRequest",
            read,
            bodies,
        }
    }

    fn anthropic_kinds() -> [Kind; 2] {
        let mark = json!({"type": "ephemeral", "ttl": "5m"});
        let text = json!({"type": "text", "text": "x", "cache_control": &mark});
        let schema = json!({"type": "json_schema", "schema": {}});
        let prompt = json!({
            "model": "m", "system": [&text], "cache_control": &mark,
            "messages": [
                {"role": "user", "content": [&text]},
                {"role": "assistant", "content": [&text,
                    {"type": "thinking", "thinking": "x", "signature": "x"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "tool_use", "id": "x", "name": "f", "input": {}, "cache_control": &mark}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "x", "content": [&text], "is_error": true,
                        "cache_control": &mark}, &text]},
                {"role": "system", "content": [&text]}
            ],
            "tools": [{"type": "custom", "name": "f", "description": "x", "input_schema": {}, "strict": false,
                "cache_control": &mark, "allowed_callers": ["direct"]}],
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": true},
            "thinking": {"type": "enabled", "budget_tokens": 1, "display": "summarized"},
            "output_config": {"effort": "high", "format": &schema}, "output_format": &schema,
            "context_management": {"edits": [{"type": "clear_thinking_20251015"}]}
        });
        let plain = json!({"system": "x", "messages": [{"role": "user", "content": "x"}],
            "thinking": {"type": "disabled"}, "tool_choice": {"type": "auto"}});
        let with = |prompt: &Value, more: Value| {
            let mut body = prompt.clone();
            let members = body.as_object_mut().expect("an object");
            members.extend(more.as_object().expect("an object").clone());
            body
        };
        let more = json!({"max_tokens": 9, "stop_sequences": ["x"], "stream": true, "temperature": 0.5,
            "top_k": 5, "top_p": 0.5, "min_p": 0.5, "repetition_penalty": 1.5, "presence_penalty": 1,
            "frequency_penalty": -1, "repeat_last_n": -1, "seed": 1, "cache_salt": "x", "extra_key": "x",
            "priority": 1, "metadata": {"user_id": "x"}, "service_tier": "auto", "speed": "standard",
            "inference_geo": "x"});
        let bodies = vec![with(&prompt, more), with(&plain, json!({"max_tokens": 1}))];
        [
            Kind {
                schema: "MessagesRequest",
                read: |body| MessagesRequest::parse(body).map(drop),
                bodies,
            },
            Kind {
                schema: "MessagesPrompt",
                read: |body| CountRequest::parse(body).map(drop),
                bodies: vec![prompt, plain],
            },
        ]
    }

    /// Hears which fields are looked for.
    #[derive(Clone, Default)]
    struct Listener(Arc<Mutex<BTreeSet<String>>>);

    impl<S: tracing::Subscriber> Layer<S> for Listener {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            event.record(&mut self.clone());
        }
    }

    impl Visit for Listener {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            if field.name() == "field" {
                let path = anywhere(&format!("{value:?}"));
                self.0.lock().expect("one thread").insert(path);
            }
        }
    }

    /// Paths of the fields that are looked for in `bodies`.
    fn read(kind: &Kind) -> BTreeSet<String> {
        let listener = Listener::default();
        let subscriber = tracing_subscriber::registry().with(listener.clone());
        tracing::subscriber::with_default(subscriber, || {
            for body in &kind.bodies {
                (kind.read)(body.to_string().as_bytes()).expect("valid");
            }
        });
        std::mem::take(&mut *listener.0.lock().expect("one thread"))
    }

    /// Paths of the properties that `schema` speaks of, elements of lists as `[]`.
    fn properties(document: &Value, schema: &Value, path: &str, found: &mut BTreeSet<String>) {
        if let Some(Value::String(target)) = schema.get("$ref") {
            // It refers to itself and has no properties.
            if target.ends_with("/NotSupported") {
                return;
            }
            let target = document.pointer(&target[1..]).expect("a reference");
            properties(document, target, path, found);
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            properties(document, property, &path, found);
            found.insert(path);
        }
        for keyword in ["allOf", "anyOf", "oneOf"] {
            for part in schema[keyword].as_array().into_iter().flatten() {
                properties(document, part, path, found);
            }
        }
        if schema.get("items").is_some() {
            properties(document, &schema["items"], &format!("{path}[]"), found);
        }
    }

    /// Without the places in lists.
    fn anywhere(path: &str) -> String {
        let parts = path.split('[').map(|part| match part.split_once(']') {
            Some((_, rest)) => format!("[]{rest}"),
            None => part.to_owned(),
        });
        parts.collect()
    }

    #[test]
    fn its_properties_are_the_fields_that_are_read() {
        let document = written();
        for kind in kinds() {
            let read = read(&kind);
            let mut listed = BTreeSet::new();
            let schema = &document["components"]["schemas"][kind.schema];
            properties(&document, schema, "", &mut listed);
            let is_read = |path: &String| {
                let inner = path.replacen("sampling_params[].", "sampling_params.", 1);
                let inner = inner.strip_prefix("sampling_params.").unwrap_or(&inner);
                let ours = RENAMED.iter().find(|(theirs, _)| *theirs == inner);
                read.contains(ours.map_or(inner, |(_, ours)| ours))
            };
            // Read by other means than field by field.
            let is_map = |path: &String| {
                path.contains("chat_template_kwargs.") || path.contains("tool_calls[].function")
            };
            for path in listed.iter().filter(|path| !is_map(path)) {
                assert!(is_read(path), "{}: '{path}' is not read", kind.schema);
            }
            // SGLang's parameters are read with everything that others know besides.
            if kind.schema != "GenerateRequest" {
                for path in &read {
                    assert!(listed.contains(path), "{}: '{path}' is not listed", kind.schema);
                }
            }
        }
    }

    /// Rules between fields, which the document only puts into words.
    const BETWEEN_FIELDS: [&str; 20] = [
        "needs 'store'",
        "it must be 1 where",
        "is only allowed when",
        "is not available",
        "cannot both be true",
        "constrain the output differently",
        "must hold at most one of",
        "are different schemas",
        ", there are ",
        "must be the same for all prompts",
        "is not a strict schema",
        "needs a last message with text",
        "asks for a call, but",
        "which is not among 'tools'",
        "has the name",
        "is only supported where it equals 'n'",
        "prompts times n is",
        "output tokens allowed",
        "cannot both be false",
        "one, or as many, are possible",
    ];

    /// Values that tell one schema from another: the document's own bounds and what lies beyond them.
    fn candidates(document: &Value) -> Vec<Value> {
        let mut found = vec![
            json!(null),
            json!(true),
            json!(false),
            json!(0.5),
            json!(1e300),
            json!({}),
        ];
        let words = [
            "", "x", "text", "auto", "none", "required", "user", "function", "a b", "{}",
        ];
        found.extend(words.map(Value::from));
        found.extend(["x".repeat(1024), "x".repeat(1025)].map(Value::from));
        let lists = [
            json!([]),
            json!([1]),
            json!(["x"]),
            json!([[1]]),
            json!([null]),
            json!([{}]),
        ];
        found.extend(lists);
        found.extend([4, 5, 32, 33, 64, 65].map(|n| json!(vec!["x"; n])));
        found.extend([64, 65, 256, 257].map(|n| json!(vec![1; n])));
        let biases = |n: usize| (0..n).map(|i| (i.to_string(), json!(1))).collect::<Map<_, _>>();
        found.extend([biases(1), biases(1024), biases(1025)].map(Value::Object));
        found.extend([
            json!({"x": 1}),
            json!({"1": 101}),
            json!({"1": "x"}),
            json!({"type": "x"}),
        ]);
        let mut open = vec![&document["components"]["schemas"]];
        let mut bounds = BTreeSet::new();
        while let Some(value) = open.pop() {
            let Value::Object(members) = value else {
                continue;
            };
            for keyword in ["minimum", "maximum", "exclusiveMinimum"] {
                bounds.extend(members.get(keyword).and_then(Value::as_i64));
            }
            open.extend(members.values().flat_map(|value| match value {
                Value::Array(elements) => elements.iter().collect(),
                other => vec![other],
            }));
        }
        assert!(bounds.len() > 10, "{bounds:?}");
        for bound in bounds {
            for near in [bound.saturating_sub(1), bound, bound.saturating_add(1)] {
                found.push(near.into());
            }
        }
        found
    }

    /// Pointers to everything in `body` but the document itself.
    fn pointers(body: &Value) -> Vec<String> {
        let mut found = Vec::new();
        let mut open = vec![(String::new(), body)];
        while let Some((pointer, value)) = open.pop() {
            let members = value.as_object().into_iter().flatten();
            let members = members.map(|(name, child)| (format!("{pointer}/{name}"), child));
            let elements = value.as_array().into_iter().flatten().enumerate();
            let elements = elements.map(|(i, child)| (format!("{pointer}/{i}"), child));
            let children: Vec<_> = members.chain(elements).collect();
            found.extend(children.iter().map(|(pointer, _)| pointer.clone()));
            open.extend(children);
        }
        found
    }

    /// Whether `body` is refused, by the document and by the server; else how they differ.
    fn is_refused(kind: &Kind, validator: &Validator, body: &Value) -> Result<bool, String> {
        let shown: String = body.to_string().chars().take(1000).collect();
        let is_valid = validator.is_valid(body);
        match (kind.read)(body.to_string().as_bytes()) {
            Ok(()) if is_valid => Ok(false),
            Ok(()) => Err(format!("{}: accepted against the document: {shown}", kind.schema)),
            Err(error) => {
                let message = error.to_string();
                let is_excused = BETWEEN_FIELDS.iter().any(|rule| message.contains(rule));
                if is_valid && !is_excused {
                    return Err(format!("{}: {message} {shown}", kind.schema));
                }
                Ok(true)
            }
        }
    }

    /// `body` with each of its values replaced by each of `candidates`, and without each of its members.
    fn changed(body: &Value, candidates: &[Value]) -> Vec<Value> {
        let mut found = Vec::new();
        for pointer in pointers(body) {
            for candidate in candidates {
                let mut changed = body.clone();
                *changed.pointer_mut(&pointer).expect("a pointer") = candidate.clone();
                found.push(changed);
            }
            let mut changed = body.clone();
            let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
            if let Some(Value::Object(members)) = changed.pointer_mut(parent) {
                members.shift_remove(name);
                found.push(changed);
            }
        }
        found
    }

    #[test]
    fn what_it_allows_is_what_is_accepted() {
        let document = written();
        let candidates = candidates(&document);
        for kind in kinds() {
            let schema = json!({
                "$ref": format!("#/components/schemas/{}", kind.schema), "components": document["components"]
            });
            let validator = jsonschema::draft202012::new(&schema).expect("a schema");
            let (mut n_refused, mut differences) = (0, Vec::new());
            for body in &kind.bodies {
                assert_eq!(is_refused(&kind, &validator, body), Ok(false), "{body}");
                for changed in changed(body, &candidates) {
                    match is_refused(&kind, &validator, &changed) {
                        Ok(is_refused) => n_refused += usize::from(is_refused),
                        Err(difference) => differences.push(difference),
                    }
                }
            }
            let first = differences
                .iter()
                .take(10)
                .fold(String::new(), |all, one| all + "\n" + one);
            assert!(
                differences.is_empty(),
                "{} differences:{first}",
                differences.len()
            );
            assert!(n_refused > 100, "{}: {n_refused} were refused", kind.schema);
        }
    }
}
