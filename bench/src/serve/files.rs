//! Workloads of files: conversations in ShareGPT's format, and traces of arrival times and lengths.
//!
//! ShareGPT's format is a JSON list of objects with `conversations` (or `conversation`), a list of turns with
//! the text in `value`. The first turn is the prompt, the second one's length that of the output.
//!
//! A trace has a line of JSON per request, as Mooncake publishes them:
//!
//! ```text
//! {"timestamp": 3052, "input_length": 1180, "output_length": 90, "hash_ids": [0, 28, 29]}
//! ```
//!
//! `timestamp` is the arrival in milliseconds, ascending. Each of `hash_ids` stands for `--trace-block-len`
//! tokens, the last one for the rest: two requests whose ids begin alike have prompts that begin alike.
//! Without them a prompt shares nothing.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::arguments::Arguments;
use super::workload::{Ask, Extent, Load, Prompts};
use crate::http::BenchError;
use crate::random::Random;

/// Below, neither a time per token nor a shared prefix can be told.
const MIN_LEN: usize = 2;
/// What vLLM's and SGLang's clients leave out of ShareGPT.
const MAX_PROMPT_LEN: usize = 1024;
const MAX_TOTAL_LEN: usize = 2048;

/// Separates the blocks' seeds, which are often small numbers, from the prompts'.
const BLOCK_SEED: u64 = 0x6d6f_6f6e_6361_6b65;

/// Conversations in random order, those too short or too long left out.
pub(super) fn sharegpt(
    arguments: &Arguments,
    prompts: &Prompts,
    random: &mut Random,
) -> Result<Vec<Ask>, BenchError> {
    let (path, text) = read(arguments)?;
    let failed = |what: String| BenchError::Check(format!("{}: {what}", path.display()));
    let list: Vec<Value> = serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
    let mut turns: Vec<(&str, &str)> = list.iter().filter_map(first_turns).collect();
    random.shuffle(&mut turns);
    let data = &arguments.data;
    let n_tokens = |text: &str| {
        prompts
            .n_tokens(text)
            .unwrap_or_else(|| text.split_whitespace().count())
    };
    let asks = turns.into_iter().filter_map(|(prompt, reply)| {
        let n_reply = data
            .sharegpt_output_len
            .map_or_else(|| n_tokens(reply), |n| n as usize);
        let (n_prompt, n_reply) = (n_tokens(prompt), n_reply);
        let fits = match data.sharegpt_context_len {
            Some(limit) => n_prompt + n_reply <= limit as usize,
            None => n_prompt <= MAX_PROMPT_LEN && n_prompt + n_reply <= MAX_TOTAL_LEN,
        };
        (fits && n_prompt >= MIN_LEN && n_reply >= MIN_LEN).then(|| {
            prompts.ask(
                prompt.to_owned(),
                u32::try_from(n_reply).expect("within the limits"),
            )
        })
    });
    let asks: Vec<Ask> = asks.take(arguments.num_prompts as usize).collect();
    if asks.is_empty() {
        let n = list.len();
        return Err(failed(format!(
            "none of {n} conversations has two turns of fit lengths"
        )));
    }
    Ok(asks)
}

fn first_turns(conversation: &Value) -> Option<(&str, &str)> {
    let turns = conversation["conversations"]
        .as_array()
        .or_else(|| conversation["conversation"].as_array())?;
    Some((
        turns.first()?["value"].as_str()?,
        turns.get(1)?["value"].as_str()?,
    ))
}

/// A request of a trace.
#[derive(Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) at: Duration,
    /// Tokens, at least one; so is the next.
    pub(crate) input_len: u32,
    pub(crate) output_len: u32,
    /// One for each block of the prompt, or none at all.
    pub(crate) hash_ids: Vec<u64>,
}

impl Line {
    pub(crate) fn parse(text: &str, block_len: u32) -> Result<Self, String> {
        let fields: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let len = |name: &str| -> Result<u32, String> {
            let value = fields[name].as_u64().and_then(|n| u32::try_from(n).ok());
            let value = value.filter(|n| *n > 0);
            value.ok_or_else(|| format!("{name} is {}, not a length above 0", fields[name]))
        };
        let at = fields["timestamp"].as_f64().filter(|at| (0.0..1e15).contains(at));
        let at = at.ok_or_else(|| format!("timestamp is {}, not milliseconds", fields["timestamp"]))?;
        let (input_len, output_len) = (len("input_length")?, len("output_length")?);
        let hash_ids = match &fields["hash_ids"] {
            Value::Null => Vec::new(),
            Value::Array(ids) => {
                let ids: Option<Vec<u64>> = ids.iter().map(Value::as_u64).collect();
                ids.ok_or("hash_ids are not all whole numbers")?
            }
            other => return Err(format!("hash_ids is {other}, not a list")),
        };
        let (n_ids, n_blocks) = (hash_ids.len(), input_len.div_ceil(block_len) as usize);
        if n_ids > 0 && n_ids != n_blocks {
            return Err(format!(
                "{n_ids} hash_ids, but {input_len} tokens are {n_blocks} blocks of {block_len}: \
                 set --trace-block-len"
            ));
        }
        let at = Duration::from_secs_f64(at / 1e3);
        Ok(Self {
            at,
            input_len,
            output_len,
            hash_ids,
        })
    }

    /// A block's text depends on the seed and its id alone; a shorter last one has words of its own.
    fn prompt(
        &self,
        arguments: &Arguments,
        prompts: &Prompts,
        random: &mut Random,
    ) -> Result<String, BenchError> {
        if self.hash_ids.is_empty() {
            return prompts.draw(self.input_len, Extent::Whole, random);
        }
        let block_len = arguments.data.trace_block_len;
        let mut n_left = self.input_len;
        let block = |id: &u64| {
            let len = n_left.min(block_len);
            n_left -= len;
            let mut random = Random(Random(arguments.seed ^ BLOCK_SEED).next_u64() ^ id);
            prompts.draw(len, Extent::Part, &mut random)
        };
        let blocks: Result<Vec<String>, BenchError> = self.hash_ids.iter().map(block).collect();
        Ok(blocks?.join(" "))
    }
}

/// Requests in the order of the file, at its times, counted from the first one's.
pub(super) fn trace(
    arguments: &Arguments,
    prompts: &Prompts,
    random: &mut Random,
) -> Result<Load, BenchError> {
    let (path, text) = read(arguments)?;
    let failed = |n: usize, what: &str| BenchError::Check(format!("{}:{n}: {what}", path.display()));
    let mut lines: Vec<Line> = Vec::new();
    let texts = text
        .lines()
        .enumerate()
        .filter(|(_, text)| !text.trim().is_empty());
    for (i, text) in texts.take(arguments.num_prompts as usize) {
        let line = Line::parse(text, arguments.data.trace_block_len).map_err(|what| failed(i + 1, &what))?;
        if lines.last().is_some_and(|last| last.at > line.at) {
            return Err(failed(i + 1, "its timestamp is before that of the line above"));
        }
        lines.push(line);
    }
    let Some(first) = lines.first().map(|line| line.at) else {
        return Err(failed(1, "no request"));
    };
    let speedup = arguments.data.trace_speedup;
    let arrivals = lines
        .iter()
        .map(|line| (line.at - first).div_f64(speedup))
        .collect();
    let chats: Result<Vec<Vec<Ask>>, BenchError> = lines
        .iter()
        .map(|line| {
            let prompt = line.prompt(arguments, prompts, random)?;
            Ok(vec![prompts.ask(prompt, line.output_len)])
        })
        .collect();
    Ok(Load {
        chats: chats?,
        arrivals: Some(arrivals),
    })
}

/// `--dataset-path` and what stands there.
fn read(arguments: &Arguments) -> Result<(&Path, String), BenchError> {
    let missing = || BenchError::Check("this dataset is read from a file: set --dataset-path".to_owned());
    let path = arguments.data.dataset_path.as_deref().ok_or_else(missing)?;
    let text = fs::read_to_string(path);
    let text = text.map_err(|error| BenchError::Check(format!("{}: {error}", path.display())))?;
    Ok((path, text))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::arguments::tests::parse;
    use super::super::workload;
    use super::*;

    fn load(text: &str, words: &str) -> Result<Load, BenchError> {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(text.as_bytes()).expect("room for it");
        let path = file.path().to_str().expect("plain");
        let words: Vec<&str> = words.split_whitespace().chain(["--dataset-path", path]).collect();
        let arguments = parse(&words).expect("valid");
        let prompts = Prompts::load(None).expect("nothing is read");
        workload::load(&arguments, &prompts, &mut Random(arguments.seed))
    }

    fn asks(load: &Load) -> Vec<&Ask> {
        load.chats.iter().flatten().collect()
    }

    #[test]
    fn conversations_of_fit_lengths_are_asked() {
        let turn = |from: &str, n: usize| serde_json::json!({ "from": from, "value": "word ".repeat(n) });
        let long = serde_json::json!({ "conversations": [turn("human", 1500), turn("gpt", 9)] });
        let fit = serde_json::json!({ "id": "a", "conversations": [turn("human", 7), turn("gpt", 4), turn("human", 1)] });
        let single = serde_json::json!({ "conversations": [turn("human", 7)] });
        let short = serde_json::json!({ "conversations": [turn("human", 7), turn("gpt", 1)] });
        let text = serde_json::json!([long, fit, single, short]).to_string();
        let taken = |words: &str| -> Vec<(usize, u32)> {
            let load = load(&text, &format!("--dataset-name sharegpt {words}")).expect("possible");
            let asks = asks(&load);
            let mut lens: Vec<(usize, u32)> = asks
                .iter()
                .map(|ask| (ask.prompt.split_whitespace().count(), ask.output_len))
                .collect();
            lens.sort_unstable();
            lens
        };
        assert_eq!(taken(""), [(7, 4)]);
        assert_eq!(taken("--sharegpt-context-len 4000"), [(7, 4), (1500, 9)]);
        assert_eq!(taken("--sharegpt-output-len 20"), [(7, 20), (7, 20)]);
        assert_eq!(taken("--sharegpt-output-len 20 --num-prompts 1"), [(7, 20)]);
        let none = load("[]", "--dataset-name sharegpt")
            .expect_err("empty")
            .to_string();
        assert!(none.contains("none of 0"), "{none}");
        assert!(load("{", "--dataset-name sharegpt").is_err());
    }

    #[test]
    fn prompts_of_a_trace_share_the_blocks_with_equal_ids() {
        let text = "{\"timestamp\": 1000, \"input_length\": 25, \"output_length\": 3, \"hash_ids\": [0, 1, 2]}\n\
                    {\"timestamp\": 1500, \"input_length\": 30, \"output_length\": 4, \"hash_ids\": [0, 1, 3]}\n\n\
                    {\"timestamp\": 3000.5, \"input_length\": 12, \"output_length\": 5}\n";
        let load = load(
            text,
            "--dataset-name trace --trace-block-len 10 --trace-speedup 2",
        )
        .expect("valid");
        let arrivals = load.arrivals.as_ref().expect("the file tells");
        assert_eq!(arrivals[..2], [Duration::ZERO, Duration::from_millis(250)]);
        assert_eq!(arrivals[2], Duration::from_micros(1_000_250));
        let asks = asks(&load);
        let words = |i: usize| -> Vec<&str> { asks[i].prompt.split(' ').collect() };
        assert_eq!((words(0).len(), words(1).len(), words(2).len()), (25, 30, 12));
        assert_eq!(words(0)[..20], words(1)[..20]);
        assert_ne!(words(0)[20..25], words(1)[20..25]);
        assert_eq!((asks[0].output_len, asks[2].output_len), (3, 5));
    }

    #[test]
    fn a_line_that_is_wrong_is_named() {
        for (text, expected) in [
            (
                "{\"timestamp\": 0, \"input_length\": 9, \"output_length\": 0}",
                ":1: output_length is 0",
            ),
            ("{\"input_length\": 9, \"output_length\": 1}", "timestamp is null"),
            (
                "{\"timestamp\": 0, \"input_length\": 9, \"output_length\": 1, \"hash_ids\": [1, 2]}",
                "2 hash_ids",
            ),
            (
                "{\"timestamp\": 0, \"input_length\": 9, \"output_length\": 1, \"hash_ids\": [-1]}",
                "whole numbers",
            ),
            (
                "{\"timestamp\": 5, \"input_length\": 9, \"output_length\": 1}\n\
                 {\"timestamp\": 4, \"input_length\": 9, \"output_length\": 1}",
                ":2: its timestamp is before",
            ),
            ("", "no request"),
        ] {
            let error = load(text, "--dataset-name trace").expect_err(text).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_dataset_of_a_file_needs_one() {
        let arguments = parse(&["--dataset-name", "trace"]).expect("valid");
        let prompts = Prompts::load(None).expect("nothing is read");
        let error = workload::load(&arguments, &prompts, &mut Random(1)).expect_err("no file");
        assert!(error.to_string().contains("--dataset-path"), "{error}");
    }
}
