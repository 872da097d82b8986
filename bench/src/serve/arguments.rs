//! The flags, by the names SGLang's `bench_serving` gives them.

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::{Map, Value};

use crate::http::BenchError;

/// Every request in flight has a thread of its own.
const MAX_WORKERS: usize = 4096;

#[derive(Debug, clap::Args)]
#[command(rename_all = "kebab-case")]
pub(crate) struct Arguments {
    /// Which server, and by which of its routes.
    #[arg(long, value_enum, default_value = "arbora")]
    pub(super) backend: Backend,
    /// `http://host:port`, instead of `--host` and `--port`.
    #[arg(long, conflicts_with_all = ["host", "port"])]
    pub(super) base_url: Option<String>,
    #[arg(long, default_value = "127.0.0.1")]
    pub(super) host: String,
    /// The backend's usual port unless set.
    #[arg(long)]
    pub(super) port: Option<u16>,
    /// What the prompts are.
    #[arg(long, value_enum, default_value = "random")]
    pub(super) dataset_name: Dataset,
    /// The first of `/v1/models` unless set.
    #[arg(long)]
    pub(super) model: Option<String>,
    /// A `tokenizer.json`, for prompts of exact lengths. Without one a word stands for a token.
    #[arg(long)]
    pub(super) tokenizer: Option<PathBuf>,
    /// Requests; the most that are taken of a file. `generated-shared-prefix` sends groups times prompts per
    /// group, `multi-turn` chats times turns.
    #[arg(long, alias = "num-prompt", default_value_t = 1000, value_parser = positive())]
    pub(super) num_prompts: u32,
    #[arg(long, alias = "random-input", default_value_t = 1024, value_parser = positive())]
    pub(super) random_input_len: u32,
    #[arg(long, alias = "random-output", default_value_t = 1024, value_parser = positive())]
    pub(super) random_output_len: u32,
    /// Lengths are uniform from this share of the given length (at least 1) to the whole of it.
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub(super) random_range_ratio: f64,
    #[arg(long, default_value_t = 64, value_parser = positive())]
    pub(super) gsp_num_groups: u32,
    #[arg(long, default_value_t = 16, value_parser = positive())]
    pub(super) gsp_prompts_per_group: u32,
    #[arg(long, default_value_t = 2048, value_parser = positive())]
    pub(super) gsp_system_prompt_len: u32,
    #[arg(long, default_value_t = 128, value_parser = positive())]
    pub(super) gsp_question_len: u32,
    #[arg(long, default_value_t = 256, value_parser = positive())]
    pub(super) gsp_output_len: u32,
    #[command(flatten)]
    pub(super) data: DataArguments,
    /// Arrivals per second, a Poisson process; `inf` sends everything at once.
    #[arg(long, default_value = "inf", value_parser = rate)]
    pub(super) request_rate: f64,
    /// Most requests in flight. A request that finds no place waits, and its latency starts when it is sent.
    #[arg(long, value_parser = positive())]
    pub(super) max_concurrency: Option<u32>,
    /// Seed of lengths, prompts, order and arrivals.
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// Append the figures to this file as one line of JSON.
    #[arg(long)]
    pub(super) output_file: Option<PathBuf>,
    /// Add every request's lengths, times, text and error to that line.
    #[arg(long, requires = "output_file")]
    pub(super) output_details: bool,
    /// Ask for whole answers.
    #[arg(long)]
    pub(super) disable_stream: bool,
    /// Let answers end by themselves before their length.
    #[arg(long)]
    pub(super) disable_ignore_eos: bool,
    /// A JSON object; its fields replace those of every request's body.
    #[arg(long, value_parser = object, default_value = "{}", hide_default_value = true)]
    pub(super) extra_request_body: JsonObject,
    /// Empty the server's cache after the warm-up (`POST /flush_cache`).
    #[arg(long)]
    pub(super) flush_cache: bool,
    /// Tries of the first prompt before the load; one must succeed. 0 for none.
    #[arg(long, default_value_t = 1)]
    pub(super) warmup_requests: u32,
    /// Sent as a bearer token.
    #[arg(long)]
    pub(super) api_key: Option<String>,
    /// What a good answer keeps to, in milliseconds: `ttft:500 tpot:50 e2el:2000`, any of them.
    #[arg(long, num_args = 1.., value_parser = goal)]
    pub(super) goodput: Vec<Goal>,
}

/// The flags of the datasets that SGLang's client does not have, or has by other names.
#[derive(Debug, clap::Args)]
#[command(rename_all = "kebab-case")]
pub(super) struct DataArguments {
    /// The file of `sharegpt` and of `trace`.
    #[arg(long)]
    pub(super) dataset_path: Option<PathBuf>,
    /// Output tokens of every `sharegpt` request, instead of those of the reply in the file.
    #[arg(long, value_parser = positive())]
    pub(super) sharegpt_output_len: Option<u32>,
    /// Most tokens of prompt and output of a `sharegpt` request. Unless set, prompts above 1024 tokens and
    /// requests above 2048 are left out.
    #[arg(long, value_parser = positive())]
    pub(super) sharegpt_context_len: Option<u32>,
    /// Arrivals of `trace` come so many times as fast.
    #[arg(long, default_value_t = 1.0, value_parser = rate)]
    pub(super) trace_speedup: f64,
    /// Tokens that one of `hash_ids` stands for.
    #[arg(long, default_value_t = 512, value_parser = positive())]
    pub(super) trace_block_len: u32,
    /// Documents that `rag` draws from.
    #[arg(long, default_value_t = 4, value_parser = positive())]
    pub(super) rag_documents: u32,
    #[arg(long, default_value_t = 1500, value_parser = positive())]
    pub(super) rag_document_len: u32,
    #[arg(long, default_value_t = 1, value_parser = positive())]
    pub(super) rag_documents_per_request: u32,
    #[arg(long, default_value_t = 32, value_parser = positive())]
    pub(super) rag_question_len: u32,
    #[arg(long, default_value_t = 64, value_parser = positive())]
    pub(super) rag_output_len: u32,
    /// The document of rank r is wanted in proportion to 1 / r^s; 0 wants all alike.
    #[arg(long, default_value_t = 0.0, value_parser = exponent)]
    pub(super) rag_zipf: f64,
    /// Chats of `multi-turn`; each has one request in flight.
    #[arg(long, default_value_t = 8, value_parser = positive())]
    pub(super) multi_turn_chats: u32,
    #[arg(long, default_value_t = 6, value_parser = positive())]
    pub(super) multi_turn_turns: u32,
    /// Tokens of the text with which every chat begins.
    #[arg(long, default_value_t = 256, value_parser = positive())]
    pub(super) multi_turn_system_len: u32,
    #[arg(long, default_value_t = 32, value_parser = positive())]
    pub(super) multi_turn_question_len: u32,
    #[arg(long, default_value_t = 64, value_parser = positive())]
    pub(super) multi_turn_output_len: u32,
    /// Different schemas of `json-schema`, taken in turn.
    #[arg(long, default_value_t = 8, value_parser = positive())]
    pub(super) json_schemas: u32,
}

/// A bound that a good answer keeps to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Goal {
    pub(super) of: Figure,
    pub(super) limit_ms: f64,
}

/// What a goal bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Figure {
    Ttft,
    Tpot,
    Latency,
}

/// A server, by the route the load takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Backend {
    Arbora,
    ArboraChat,
    LlamaServer,
    LlamaServerChat,
    Lmdeploy,
    LmdeployChat,
    #[value(alias = "sglang-native")]
    Sglang,
    SglangOai,
    SglangOaiChat,
    Vllm,
    VllmChat,
}

impl Backend {
    fn port(self) -> u16 {
        match self {
            Self::Arbora | Self::ArboraChat | Self::Vllm | Self::VllmChat => 8000,
            Self::LlamaServer | Self::LlamaServerChat => 8080,
            Self::Lmdeploy | Self::LmdeployChat => 23333,
            Self::Sglang | Self::SglangOai | Self::SglangOaiChat => 30000,
        }
    }

    pub(super) fn has_server_info(self) -> bool {
        let sglang = [Self::Sglang, Self::SglangOai, Self::SglangOaiChat];
        sglang.contains(&self) || [Self::Arbora, Self::ArboraChat].contains(&self)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Dataset {
    /// Prompts that share nothing.
    #[value(alias = "random-ids")]
    Random,
    /// Groups of prompts with one long beginning each.
    GeneratedSharedPrefix,
    /// Questions about documents that requests have in common.
    Rag,
    /// Chats whose next turn follows the answer and repeats all that was said.
    MultiTurn,
    /// Answers in the form of a JSON Schema (`response_format`); for the `-chat` backends. Lengths are those
    /// of `random`.
    JsonSchema,
    /// First question and first reply of each conversation of a file in ShareGPT's format.
    Sharegpt,
    /// Arrival times, lengths and shared blocks of a file: lines of JSON, as Mooncake publishes them.
    Trace,
    /// Texts to `/v1/embeddings`, of the lengths of `random`.
    Embeddings,
}

/// Fields of a JSON object.
#[derive(Clone, Debug, Default)]
pub(super) struct JsonObject(pub(super) Map<String, Value>);

impl Arguments {
    pub(super) fn url(&self) -> String {
        let port = self.port.unwrap_or(self.backend.port());
        let host = &self.host;
        self.base_url
            .clone()
            .unwrap_or_else(|| format!("http://{host}:{port}"))
    }

    /// How many of `n` requests or chats can be in flight at once.
    pub(super) fn n_workers(&self, n: usize) -> Result<usize, BenchError> {
        let n = n.min(self.max_concurrency.map_or(usize::MAX, |limit| limit as usize));
        if n > MAX_WORKERS {
            return Err(BenchError::Check(format!(
                "{n} requests at once, the limit is {MAX_WORKERS}: set --max-concurrency"
            )));
        }
        Ok(n)
    }
}

fn positive() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..)
}

fn share(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    (0.0..=1.0)
        .contains(&value)
        .then_some(value)
        .ok_or_else(|| "not from 0 to 1".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    (value > 0.0)
        .then_some(value)
        .ok_or_else(|| "not above 0".to_owned())
}

fn exponent(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    (0.0..=10.0)
        .contains(&value)
        .then_some(value)
        .ok_or_else(|| "not from 0 to 10".to_owned())
}

/// In the spelling of vLLM's client.
fn goal(text: &str) -> Result<Goal, String> {
    let (name, limit) = text
        .split_once(':')
        .ok_or("not NAME:MILLISECONDS, as in ttft:500")?;
    let of = match name {
        "ttft" => Figure::Ttft,
        "tpot" => Figure::Tpot,
        "e2el" => Figure::Latency,
        _ => return Err(format!("{name} is none of ttft, tpot, e2el")),
    };
    let limit_ms = rate(limit)?;
    Ok(Goal { of, limit_ms })
}

fn object(text: &str) -> Result<JsonObject, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(JsonObject(fields)),
        Ok(_) => Err("not a JSON object".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    pub(in super::super) fn parse(words: &[&str]) -> Result<Arguments, String> {
        let line = Line::try_parse_from([&["serve"], words].concat());
        line.map(|line| line.arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn published_command_lines_are_understood() {
        let line = "--backend sglang --dataset-name random --num-prompt 480 --random-input 512 \
                    --random-output 128 --random-range-ratio 1 --request-rate 8 --seed 7";
        let words: Vec<&str> = line.split_whitespace().collect();
        let arguments = parse(&words).expect("valid");
        assert_eq!(arguments.url(), "http://127.0.0.1:30000");
        assert_eq!(
            (arguments.random_input_len, arguments.random_output_len),
            (512, 128)
        );
        assert_eq!(arguments.n_workers(480).expect("below the limit"), 480);
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for words in [
            ["--random-range-ratio", "1.5"],
            ["--random-range-ratio", "NaN"],
            ["--request-rate", "0"],
            ["--request-rate", "NaN"],
            ["--extra-request-body", "[1]"],
            ["--num-prompts", "0"],
            ["--max-concurrency", "0"],
            ["--dataset-name", "sonnet"],
            ["--goodput", "ttft"],
            ["--goodput", "itl:5"],
            ["--goodput", "tpot:0"],
            ["--rag-zipf", "-1"],
            ["--trace-speedup", "0"],
        ] {
            assert!(parse(&words).is_err(), "{words:?}");
        }
        assert!(parse(&["--output-details"]).is_err());
        let many = parse(&["--num-prompts", "5000"]).expect("valid");
        let error = many.n_workers(5000).expect_err("above the limit").to_string();
        assert!(error.contains("5000") && error.contains("4096"), "{error}");
        let bounded = parse(&["--num-prompts", "5000", "--max-concurrency", "16"]).expect("valid");
        assert_eq!(bounded.n_workers(5000).expect("below the limit"), 16);
    }
}
