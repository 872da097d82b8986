//! Request parameters of other servers that this one does not implement. Each is accepted where its value
//! asks for nothing, and refused by name otherwise, so that nothing a client wants is dropped in silence.
//!
//! Not listed, and ignored: what only matters beside a parameter that is listed (`mirostat_tau`, `dry_base`,
//! `xtc_threshold`, `length_penalty`), and what changes neither output nor answer (`cache_prompt`, `id_slot`,
//! `session_id`, `stream_interval`, media settings without media).

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::Fields;

/// A parameter that is not implemented.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unsupported {
    name: &'static str,
    /// What asks for nothing, besides what does in every field.
    neutral: Neutral,
    /// The parameter of this server that does the same.
    instead: Option<&'static str>,
}

/// A value by which a parameter is switched off.
#[derive(Clone, Copy, Debug)]
enum Neutral {
    /// Only what asks for nothing in every field.
    Nothing,
    /// This number.
    Number(f64),
    /// This number and all below it.
    AtMost(f64),
    /// `true`.
    True,
    /// One of these words.
    Words(&'static [&'static str]),
    /// A list of this word alone.
    ListOf(&'static str),
}

impl Unsupported {
    const fn new(name: &'static str, neutral: Neutral) -> Self {
        Unsupported {
            name,
            neutral,
            instead: None,
        }
    }

    const fn instead(self, ours: &'static str) -> Self {
        Unsupported {
            instead: Some(ours),
            ..self
        }
    }

    fn is_neutral(&self, value: &Value) -> bool {
        asks_for_nothing(value)
            || match self.neutral {
                Neutral::Nothing => false,
                Neutral::Number(number) => value.as_f64() == Some(number),
                Neutral::AtMost(most) => value.as_f64().is_some_and(|x| x <= most),
                Neutral::True => value == &Value::Bool(true),
                Neutral::Words(words) => words.iter().any(|word| value == word),
                Neutral::ListOf(word) => value
                    .as_array()
                    .is_some_and(|list| list.iter().all(|x| x == word)),
            }
    }

    /// What the API's document says of it.
    fn described(&self) -> Value {
        let also = match self.neutral {
            Neutral::Nothing => None,
            Neutral::Number(number) => Some(json!({"const": number})),
            Neutral::AtMost(most) => Some(json!({"type": "number", "maximum": most})),
            Neutral::True => Some(json!({"const": true})),
            Neutral::Words(words) => Some(json!({"enum": words})),
            Neutral::ListOf(word) => Some(json!({"type": "array", "items": {"const": word}})),
        };
        let mut described = match also {
            None => json!({"$ref": "#/components/schemas/NotSupported"}),
            Some(also) => json!({"anyOf": [{"$ref": "#/components/schemas/NotSupported"}, also]}),
        };
        if let Some(ours) = self.instead {
            described["description"] = format!("Not supported; use '{ours}'.").into();
        }
        described
    }
}

/// Whether a value asks for nothing in whatever field it stands.
pub(super) fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(is_wanted) => !is_wanted,
        Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.iter().all(asks_for_nothing),
        Value::Object(members) => members.is_empty(),
    }
}

/// Reads the parameters of `lists` and refuses those whose value asks for something.
pub(super) fn refuse(f: &mut Fields, lists: &[&[Unsupported]]) -> Result<(), ApiError> {
    for parameter in lists.iter().copied().flatten() {
        let Some(value) = f.raw(parameter.name) else {
            continue;
        };
        if parameter.is_neutral(&value) {
            continue;
        }
        let path = f.path_of(parameter.name);
        let message = match parameter.instead {
            Some(ours) => format!("'{path}' is not supported by this server; use '{ours}'."),
            None => format!("'{path}' is not supported by this server."),
        };
        return Err(ApiError::invalid(path, message));
    }
    Ok(())
}

/// The parameters as schemas of an OpenAPI document, by the names under which it refers to them.
pub(crate) fn schemas() -> impl Iterator<Item = (&'static str, Value)> {
    LISTS.into_iter().map(|(name, list)| {
        let listed = list.iter().map(|one| (one.name.to_owned(), one.described()));
        let properties: Map<String, Value> = listed.collect();
        (name, json!({"type": "object", "properties": properties}))
    })
}

const LISTS: [(&str, &[Unsupported]); 20] = [
    ("UnsupportedAnywhere", &ANYWHERE),
    ("UnsupportedSampling", &SAMPLING),
    ("UnsupportedInPenalties", &PENALTIES),
    ("UnsupportedInChats", &CHAT),
    ("UnsupportedInConversations", &CONVERSATION),
    ("UnsupportedNames", &OTHER_NAMES),
    ("UnsupportedInTexts", &TEXT),
    ("UnsupportedInGenerate", &GENERATE),
    ("UnsupportedBesideSamplingParams", &BESIDE_SAMPLING_PARAMS),
    ("UnsupportedInStructuredOutputs", &STRUCTURED_OUTPUTS),
    ("UnsupportedInMessages", &MESSAGES),
    ("UnsupportedInAnthropicTools", &ANTHROPIC_TOOL),
    ("UnsupportedInOutputConfig", &OUTPUT_CONFIG),
    ("UnsupportedInResponses", &RESPONSES),
    ("UnsupportedInTgi", &TGI),
    ("UnsupportedInTgiParameters", &TGI_PARAMETERS),
    ("UnsupportedBesideInputs", &TGI_TOKENIZE),
    ("UnsupportedInOllama", &OLLAMA),
    ("UnsupportedInOllamaOptions", &OLLAMA_OPTIONS),
    ("UnsupportedInOllamaMessages", &OLLAMA_MESSAGE),
];

use Neutral::{AtMost, ListOf, Nothing, Number, True, Words};

/// Of every request that generates.
pub(super) const ANYWHERE: [Unsupported; 28] = [
    // vLLM's.
    Unsupported::new("return_tokens_as_token_ids", Nothing),
    Unsupported::new("return_token_offsets", Nothing),
    Unsupported::new("return_prompt_text", Nothing),
    Unsupported::new("return_weight_versions", Nothing),
    Unsupported::new("return_mm_kwargs", Nothing),
    Unsupported::new("kv_transfer_params", Nothing),
    Unsupported::new("ec_transfer_params", Nothing),
    Unsupported::new("vllm_xargs", Nothing),
    Unsupported::new("prompt_embeds", Nothing),
    // SGLang's, and those of both.
    Unsupported::new("return_token_ids", Nothing),
    Unsupported::new("return_prompt_token_ids", Nothing),
    Unsupported::new("return_hidden_states", Nothing),
    Unsupported::new("return_routed_experts", Nothing),
    Unsupported::new("return_indexer_topk", Nothing),
    Unsupported::new("return_sampling_mask", Nothing),
    Unsupported::new("return_entropy", Nothing),
    Unsupported::new("return_meta_info", Nothing),
    Unsupported::new("sampling_logprobs_mode", Nothing),
    Unsupported::new("custom_logit_processor", Nothing),
    Unsupported::new("custom_params", Nothing),
    Unsupported::new("session_params", Nothing),
    Unsupported::new("lora_path", Nothing),
    Unsupported::new("lora_id", Nothing),
    Unsupported::new("watermark", Nothing),
    Unsupported::new("bootstrap_host", Nothing),
    Unsupported::new("bootstrap_room", Nothing),
    // llama.cpp's.
    Unsupported::new("lora", Nothing),
    Unsupported::new("return_tokens", Nothing),
];

/// Of how tokens are drawn and when an output ends.
pub(super) const SAMPLING: [Unsupported; 36] = [
    // vLLM's.
    Unsupported::new("use_beam_search", Nothing),
    Unsupported::new("watermarking", Nothing),
    Unsupported::new("include_stop_str_in_output", Nothing),
    Unsupported::new("truncate_prompt_tokens", Nothing),
    Unsupported::new("logprob_token_ids", Nothing),
    Unsupported::new("allowed_token_ids", Nothing),
    Unsupported::new("bad_words", Nothing),
    Unsupported::new("logits_processors", Nothing),
    Unsupported::new("repetition_detection", Nothing),
    Unsupported::new("guided_whitespace_pattern", Nothing),
    // SGLang's.
    Unsupported::new("stop_regex", Nothing),
    Unsupported::new("no_stop_trim", Nothing),
    // llama.cpp's.
    Unsupported::new("n_predict", AtMost(-1.0)).instead("max_tokens"),
    Unsupported::new("n_cmpl", Number(1.0)).instead("n"),
    Unsupported::new("n_probs", Number(0.0)).instead("top_logprobs"),
    Unsupported::new("post_sampling_probs", Nothing),
    Unsupported::new("repeat_penalty", Number(1.0)).instead("repetition_penalty"),
    Unsupported::new("penalize_nl", Nothing),
    Unsupported::new("typical_p", Number(1.0)),
    Unsupported::new("typ_p", Number(1.0)),
    Unsupported::new("tfs_z", Number(1.0)),
    Unsupported::new("top_a", Number(0.0)),
    Unsupported::new("top_n_sigma", AtMost(0.0)),
    Unsupported::new("min_keep", Number(0.0)),
    Unsupported::new("mirostat", Number(0.0)),
    Unsupported::new("mirostat_mode", Number(0.0)),
    Unsupported::new("dynatemp_range", Number(0.0)),
    Unsupported::new("dry_multiplier", Number(0.0)),
    Unsupported::new("xtc_probability", Number(0.0)),
    Unsupported::new("samplers", Nothing),
    Unsupported::new("adaptive_target", AtMost(0.0)),
    Unsupported::new("n_indent", Number(0.0)),
    Unsupported::new("t_max_predict_ms", AtMost(0.0)),
    Unsupported::new("grammar_lazy", Nothing),
    Unsupported::new("grammar_triggers", Nothing),
    Unsupported::new("response_fields", Nothing),
];

/// Where a penalty is asked for: here it looks at all tokens.
pub(super) const PENALTIES: [Unsupported; 1] = [Unsupported::new("repeat_last_n", AtMost(-1.0))];

/// Of chats.
pub(super) const CHAT: [Unsupported; 11] = [
    Unsupported::new("echo", Nothing),
    // What a chat begins with is its template's matter.
    Unsupported::new("add_special_tokens", Nothing),
    Unsupported::new("audio", Nothing),
    Unsupported::new("modalities", ListOf("text")),
    Unsupported::new("moderation", Nothing),
    Unsupported::new("verbosity", Words(&["medium"])),
    Unsupported::new("web_search_options", Nothing),
    Unsupported::new("input_ids", Nothing),
    Unsupported::new("stream_reasoning", True),
    Unsupported::new("reasoning_format", Words(&["auto", "deepseek"])).instead("separate_reasoning"),
    Unsupported::new("parse_tool_calls", True),
];

/// Of what a chat's prompt is made of.
pub(super) const CONVERSATION: [Unsupported; 6] = [
    Unsupported::new("chat_template", Nothing),
    Unsupported::new("documents", Nothing),
    Unsupported::new("functions", Nothing).instead("tools"),
    Unsupported::new("function_call", Words(&["none", "auto"])).instead("tool_choice"),
    // DeepSeek's.
    Unsupported::new("task", Nothing),
    Unsupported::new("thinking", Nothing).instead("chat_template_kwargs.enable_thinking"),
];

/// Of chat and text completions: what other APIs have under names of their own.
pub(super) const OTHER_NAMES: [Unsupported; 17] = [
    // SGLang's `/generate`, and Hugging Face's.
    Unsupported::new("max_new_tokens", Nothing).instead("max_tokens"),
    Unsupported::new("min_new_tokens", Number(0.0)).instead("min_tokens"),
    Unsupported::new("sampling_seed", Nothing).instead("seed"),
    Unsupported::new("sampling_params", Nothing),
    Unsupported::new("stop_sequences", Nothing).instead("stop"),
    Unsupported::new("num_beams", Number(1.0)),
    Unsupported::new("no_repeat_ngram_size", Number(0.0)),
    // OpenAI's for responses.
    Unsupported::new("max_output_tokens", Nothing).instead("max_completion_tokens"),
    Unsupported::new("reasoning", Nothing).instead("reasoning_effort"),
    // Ollama's.
    Unsupported::new("options", Nothing),
    Unsupported::new("format", Nothing).instead("response_format"),
    Unsupported::new("num_predict", AtMost(-1.0)).instead("max_tokens"),
    // Mistral's.
    Unsupported::new("random_seed", Nothing).instead("seed"),
    Unsupported::new("safe_prompt", Nothing),
    // Budgets of thoughts.
    Unsupported::new("thinking_budget", AtMost(-1.0)).instead("thinking_token_budget"),
    Unsupported::new("thinking_budget_tokens", AtMost(-1.0)).instead("thinking_token_budget"),
    Unsupported::new("reasoning_budget", AtMost(-1.0)).instead("thinking_token_budget"),
];

/// Of text completions.
pub(super) const TEXT: [Unsupported; 6] = [
    Unsupported::new("suffix", Nothing),
    Unsupported::new("input_prefix", Nothing),
    Unsupported::new("input_suffix", Nothing),
    Unsupported::new("input_extra", Nothing),
    Unsupported::new("chat_template", Nothing),
    Unsupported::new("thinking_token_budget", AtMost(-1.0)),
];

/// Of `/generate`, beside its sampling parameters.
pub(super) const GENERATE: [Unsupported; 11] = [
    Unsupported::new("image_data", Nothing),
    Unsupported::new("video_data", Nothing),
    Unsupported::new("audio_data", Nothing),
    Unsupported::new("input_embeds", Nothing),
    Unsupported::new("positional_embed_overrides", Nothing),
    Unsupported::new("multi_item_delimiter_indices", Nothing),
    Unsupported::new("token_indices_to_pool", Nothing),
    Unsupported::new("modalities", ListOf("text")),
    Unsupported::new("background", Nothing),
    Unsupported::new("require_reasoning", Nothing),
    Unsupported::new("max_thinking_tokens", AtMost(-1.0)),
];

/// Sampling parameters of `/generate` that would do nothing where other APIs have them.
pub(super) const BESIDE_SAMPLING_PARAMS: [Unsupported; 21] = [
    Unsupported::new("temperature", Nothing).instead("sampling_params.temperature"),
    Unsupported::new("top_p", Nothing).instead("sampling_params.top_p"),
    Unsupported::new("top_k", Nothing).instead("sampling_params.top_k"),
    Unsupported::new("min_p", Nothing).instead("sampling_params.min_p"),
    Unsupported::new("max_new_tokens", Nothing).instead("sampling_params.max_new_tokens"),
    Unsupported::new("min_new_tokens", Nothing).instead("sampling_params.min_new_tokens"),
    Unsupported::new("n", Nothing).instead("sampling_params.n"),
    Unsupported::new("stop", Nothing).instead("sampling_params.stop"),
    Unsupported::new("stop_token_ids", Nothing).instead("sampling_params.stop_token_ids"),
    Unsupported::new("ignore_eos", Nothing).instead("sampling_params.ignore_eos"),
    Unsupported::new("frequency_penalty", Nothing).instead("sampling_params.frequency_penalty"),
    Unsupported::new("presence_penalty", Nothing).instead("sampling_params.presence_penalty"),
    Unsupported::new("repetition_penalty", Nothing).instead("sampling_params.repetition_penalty"),
    Unsupported::new("logit_bias", Nothing).instead("sampling_params.logit_bias"),
    Unsupported::new("sampling_seed", Nothing).instead("sampling_params.sampling_seed"),
    Unsupported::new("skip_special_tokens", Nothing).instead("sampling_params.skip_special_tokens"),
    Unsupported::new("json_schema", Nothing).instead("sampling_params.json_schema"),
    Unsupported::new("regex", Nothing).instead("sampling_params.regex"),
    Unsupported::new("ebnf", Nothing).instead("sampling_params.ebnf"),
    Unsupported::new("structural_tag", Nothing).instead("sampling_params.structural_tag"),
    Unsupported::new("response_format", Nothing).instead("sampling_params.response_format"),
];

/// Of Anthropic's messages.
pub(super) const MESSAGES: [Unsupported; 9] = [
    Unsupported::new("container", Nothing),
    Unsupported::new("mcp_servers", Nothing),
    Unsupported::new("n", Number(1.0)),
    // What chat completions call otherwise.
    Unsupported::new("max_completion_tokens", Nothing).instead("max_tokens"),
    Unsupported::new("stop", Nothing).instead("stop_sequences"),
    Unsupported::new("response_format", Nothing).instead("output_config.format"),
    Unsupported::new("reasoning_effort", Nothing).instead("output_config.effort"),
    Unsupported::new("thinking_token_budget", AtMost(-1.0)).instead("thinking.budget_tokens"),
    Unsupported::new("parallel_tool_calls", True).instead("tool_choice.disable_parallel_tool_use"),
];

/// Of a tool of Anthropic's messages.
pub(super) const ANTHROPIC_TOOL: [Unsupported; 3] = [
    Unsupported::new("allowed_callers", ListOf("direct")),
    Unsupported::new("defer_loading", Nothing),
    Unsupported::new("input_examples", Nothing),
];

/// Of `output_config` in Anthropic's messages.
pub(super) const OUTPUT_CONFIG: [Unsupported; 1] = [Unsupported::new("task_budget", Nothing)];

/// Of OpenAI's responses.
pub(super) const RESPONSES: [Unsupported; 14] = [
    Unsupported::new("conversation", Nothing).instead("previous_response_id"),
    Unsupported::new("truncation", Words(&["disabled"])),
    Unsupported::new("context_management", Nothing),
    Unsupported::new("prompt", Nothing).instead("input"),
    Unsupported::new("moderation", Nothing),
    Unsupported::new("top_logprobs", Number(0.0)),
    // What chat completions call otherwise.
    Unsupported::new("messages", Nothing).instead("input"),
    Unsupported::new("max_tokens", Nothing).instead("max_output_tokens"),
    Unsupported::new("max_completion_tokens", Nothing).instead("max_output_tokens"),
    Unsupported::new("response_format", Nothing).instead("text.format"),
    Unsupported::new("reasoning_effort", Nothing).instead("reasoning.effort"),
    Unsupported::new("thinking_token_budget", AtMost(-1.0)),
    Unsupported::new("stop", Nothing),
    Unsupported::new("n", Number(1.0)),
];

/// Of TGI's requests, beside their parameters.
pub(super) const TGI: [Unsupported; 9] = [
    // SGLang's, on the same route.
    Unsupported::new("text", Nothing).instead("inputs"),
    Unsupported::new("input_ids", Nothing).instead("inputs"),
    Unsupported::new("sampling_params", Nothing).instead("parameters"),
    // What would do nothing here.
    Unsupported::new("max_new_tokens", Nothing).instead("parameters.max_new_tokens"),
    Unsupported::new("max_tokens", Nothing).instead("parameters.max_new_tokens"),
    Unsupported::new("temperature", Nothing).instead("parameters.temperature"),
    Unsupported::new("top_p", Nothing).instead("parameters.top_p"),
    Unsupported::new("top_k", Nothing).instead("parameters.top_k"),
    Unsupported::new("stop", Nothing).instead("parameters.stop"),
];

/// Of TGI's requests for tokens: what others have for texts.
pub(super) const TGI_TOKENIZE: [Unsupported; 2] = [
    Unsupported::new("prompt", Nothing).instead("inputs"),
    Unsupported::new("messages", Nothing).instead("inputs"),
];

/// Of `parameters` in TGI's requests.
pub(super) const TGI_PARAMETERS: [Unsupported; 13] = [
    Unsupported::new("watermark", Nothing),
    Unsupported::new("adapter_id", Nothing),
    Unsupported::new("typical_p", Number(1.0)),
    // Those of pipelines in Hugging Face's library.
    Unsupported::new("max_length", Nothing).instead("parameters.max_new_tokens"),
    Unsupported::new("max_tokens", Nothing).instead("parameters.max_new_tokens"),
    Unsupported::new("min_length", Number(0.0)),
    Unsupported::new("min_new_tokens", Number(0.0)),
    Unsupported::new("stop_sequences", Nothing).instead("parameters.stop"),
    Unsupported::new("num_beams", Number(1.0)),
    Unsupported::new("num_return_sequences", Number(1.0)),
    Unsupported::new("no_repeat_ngram_size", Number(0.0)),
    Unsupported::new("return_tensors", Nothing),
    Unsupported::new("max_time", Nothing),
];

/// Of Ollama's requests that generate.
pub(super) const OLLAMA: [Unsupported; 21] = [
    Unsupported::new("suffix", Nothing),
    Unsupported::new("template", Nothing),
    Unsupported::new("images", Nothing),
    Unsupported::new("width", Number(0.0)),
    Unsupported::new("height", Number(0.0)),
    Unsupported::new("steps", Number(0.0)),
    // Prompts are never cut, and what was written is never forgotten.
    Unsupported::new("truncate", Nothing),
    Unsupported::new("shift", Nothing),
    Unsupported::new("_debug_render_only", Nothing),
    // What other APIs have beside the prompt.
    Unsupported::new("n", Number(1.0)),
    Unsupported::new("max_tokens", Nothing).instead("options.num_predict"),
    Unsupported::new("temperature", Nothing).instead("options.temperature"),
    Unsupported::new("top_k", Nothing).instead("options.top_k"),
    Unsupported::new("top_p", Nothing).instead("options.top_p"),
    Unsupported::new("min_p", Nothing).instead("options.min_p"),
    Unsupported::new("seed", Nothing).instead("options.seed"),
    Unsupported::new("stop", Nothing).instead("options.stop"),
    Unsupported::new("presence_penalty", Number(0.0)).instead("options.presence_penalty"),
    Unsupported::new("frequency_penalty", Number(0.0)).instead("options.frequency_penalty"),
    Unsupported::new("repeat_penalty", Number(1.0)).instead("options.repeat_penalty"),
    Unsupported::new("response_format", Nothing).instead("format"),
];

/// Of a message of Ollama's chats.
pub(super) const OLLAMA_MESSAGE: [Unsupported; 1] = [Unsupported::new("images", Nothing)];

/// Of `options` in Ollama's requests.
pub(super) const OLLAMA_OPTIONS: [Unsupported; 9] = [
    Unsupported::new("typical_p", Number(1.0)),
    Unsupported::new("tfs_z", Number(1.0)),
    Unsupported::new("mirostat", Number(0.0)),
    Unsupported::new("penalize_newline", True),
    Unsupported::new("logits_all", Nothing),
    Unsupported::new("vocab_only", Nothing),
    Unsupported::new("embedding_only", Nothing),
    Unsupported::new("max_tokens", Nothing).instead("options.num_predict"),
    Unsupported::new("repetition_penalty", Number(1.0)).instead("options.repeat_penalty"),
];

/// Of `structured_outputs`.
pub(super) const STRUCTURED_OUTPUTS: [Unsupported; 2] = [
    Unsupported::new("whitespace_pattern", Nothing),
    // Objects are closed where a schema does not say otherwise.
    Unsupported::new("disable_additional_properties", True),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(list: &[Unsupported], name: &str, value: &Value) -> Option<String> {
        let mut members = Map::new();
        members.insert(name.to_owned(), value.clone());
        let mut fields = Fields::nested(Value::Object(members), String::new()).expect("an object");
        refuse(&mut fields, &[list]).err().map(|error| error.to_string())
    }

    #[test]
    fn a_value_that_asks_for_nothing_is_accepted_in_every_field_and_one_that_asks_is_refused_by_name() {
        let nothing = [
            json!(null),
            json!(false),
            json!(""),
            json!([]),
            json!({}),
            json!([null, []]),
        ];
        let wishes = [
            json!(0.7),
            json!("x"),
            json!(["x"]),
            json!([1]),
            json!({"a": null}),
            json!(99),
        ];
        for parameter in LISTS.into_iter().flat_map(|(_, list)| list) {
            let list = std::slice::from_ref(parameter);
            for value in &nothing {
                assert_eq!(
                    refused(list, parameter.name, value),
                    None,
                    "{parameter:?} {value}"
                );
            }
            for value in &wishes {
                let message = refused(list, parameter.name, value).expect("it asks for something");
                assert!(message.contains(&format!("'{}'", parameter.name)), "{message}");
                assert_eq!(
                    message.contains("use '"),
                    parameter.instead.is_some(),
                    "{message}"
                );
            }
        }
    }

    #[test]
    fn the_defaults_of_other_servers_ask_for_nothing() {
        let defaults = json!({"n_predict": -1, "repeat_penalty": 1.0, "typical_p": 1.0, "top_n_sigma": -1.0,
            "mirostat": 0, "dry_multiplier": 0.0, "xtc_probability": 0.0, "dynatemp_range": 0.0, "min_keep": 0,
            "n_probs": 0, "t_max_predict_ms": -1});
        for (name, value) in defaults.as_object().expect("an object") {
            assert_eq!(refused(&SAMPLING, name, value), None, "{name}");
        }
        let chat = json!({"modalities": ["text"], "verbosity": "medium", "reasoning_format": "auto",
            "stream_reasoning": true, "parse_tool_calls": true});
        for (name, value) in chat.as_object().expect("an object") {
            assert_eq!(refused(&CHAT, name, value), None, "{name}");
        }
    }

    #[test]
    fn no_parameter_is_listed_twice() {
        for lists in [
            [&ANYWHERE[..], &SAMPLING, &OTHER_NAMES, &CHAT, &CONVERSATION],
            [&ANYWHERE, &SAMPLING, &OTHER_NAMES, &TEXT, &[]],
            [&MESSAGES, &ANTHROPIC_TOOL, &OUTPUT_CONFIG, &[], &[]],
            [&RESPONSES, &[], &[], &[], &[]],
            [&TGI, &[], &[], &[], &[]],
            [&TGI_PARAMETERS, &PENALTIES, &[], &[], &[]],
            [&OLLAMA, &[], &[], &[], &[]],
            [&OLLAMA_OPTIONS, &PENALTIES, &[], &[], &[]],
        ] {
            let mut names: Vec<_> = lists.concat().iter().map(|one| one.name).collect();
            names.sort_unstable();
            let n_listed = names.len();
            names.dedup();
            assert_eq!(names.len(), n_listed);
        }
    }
}
