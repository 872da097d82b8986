//! What is asked, and when: the same seed and flags give the same prompts, lengths, order and arrivals.
//!
//! Draws are taken from one generator in this order:
//!
//! ```text
//! random, embeddings       all input lengths, all output lengths, the prompts
//! generated-shared-prefix  the system prompts, the questions group by group, the order of all requests
//! json-schema              the schemas, then as `random`
//! rag                      the documents, then for each request its documents and its question
//! multi-turn               the system prompt, the questions chat by chat
//! sharegpt                 the order of the conversations
//! trace                    prompts without hash_ids; a block's text is drawn from the seed and its id
//! all, then                the gaps between arrivals, unless the rate is infinite or the file tells them
//! ```

use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::arguments::{Arguments, Dataset};
use super::{datasets, files};
use crate::http::BenchError;
use crate::random::Random;

/// Most words a text is drawn from; real vocabularies have tens of thousands.
const MAX_WORDS: usize = 4096;
/// Fewer would make prompts begin alike by chance too often.
const MIN_WORDS: usize = 16;
/// Nearly every text has its length after two or three.
const MAX_ROUNDS: usize = 256;

/// One request to send.
#[derive(Clone, Debug, Default)]
pub(super) struct Ask {
    /// Of a later turn of a chat, what it adds to all that was said.
    pub(super) prompt: String,
    /// Tokens of the prompt, the special ones a tokenizer adds included; `None` without `--tokenizer`.
    pub(super) input_len: Option<usize>,
    pub(super) output_len: u32,
    /// Fields of the body besides the usual ones.
    pub(super) fields: Map<String, Value>,
}

/// All that is sent.
#[derive(Debug)]
pub(super) struct Load {
    /// Requests that follow each other, mostly a single one; in the order of their arrival.
    pub(super) chats: Vec<Vec<Ask>>,
    /// When each begins; `None` where the rate decides.
    pub(super) arrivals: Option<Vec<Duration>>,
}

/// Makes texts of given lengths.
#[derive(Debug)]
pub(super) struct Prompts(Option<Vocabulary>);

#[derive(Debug)]
struct Vocabulary {
    tokenizer: Tokenizer,
    /// Lower-case words that are one token inside a text.
    words: Vec<String>,
}

/// Whether a text stands alone or is put together with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Its length includes the special tokens that the tokenizer adds.
    Whole,
    Part,
}

impl Prompts {
    /// Texts of exact lengths by the `tokenizer.json` at `path`, or of about as many words.
    pub(super) fn load(path: Option<&Path>) -> Result<Self, BenchError> {
        let Some(path) = path else { return Ok(Self(None)) };
        let failed = |error: String| BenchError::Check(format!("{}: {error}", path.display()));
        let tokenizer = Tokenizer::from_file(path).map_err(|error| failed(error.to_string()))?;
        let vocabulary = Vocabulary::new(tokenizer).map_err(failed)?;
        Ok(Self(Some(vocabulary)))
    }

    /// Tokens of an output's `text`, or of a piece of it.
    pub(super) fn n_tokens(&self, text: &str) -> Option<usize> {
        let vocabulary = self.0.as_ref()?;
        Some(vocabulary.n_tokens(text, Extent::Part))
    }

    /// A text of `len` tokens, or of as many words.
    pub(super) fn draw(&self, len: u32, extent: Extent, random: &mut Random) -> Result<String, BenchError> {
        let len = len as usize;
        match &self.0 {
            None => Ok(random.text(len)),
            Some(vocabulary) => vocabulary.draw(len, extent, random),
        }
    }

    pub(super) fn ask(&self, prompt: String, output_len: u32) -> Ask {
        let count = |vocabulary: &Vocabulary| vocabulary.n_tokens(&prompt, Extent::Whole);
        let input_len = self.0.as_ref().map(count);
        Ask {
            prompt,
            input_len,
            output_len,
            fields: Map::new(),
        }
    }
}

impl Vocabulary {
    fn new(mut tokenizer: Tokenizer) -> Result<Self, String> {
        tokenizer
            .with_truncation(None)
            .map_err(|error| error.to_string())?;
        tokenizer.with_padding(None);
        let mut tokens: Vec<(u32, String)> = tokenizer
            .get_vocab(false)
            .into_iter()
            .map(|(token, id)| (id, token))
            .collect();
        // A map's order differs from run to run.
        tokens.sort_unstable();
        let words = tokens.iter().filter_map(|(_, token)| {
            // How byte-level and SentencePiece vocabularies write a space.
            let word = token.strip_prefix('Ġ').or(token.strip_prefix('▁'))?;
            let plain = word.len() >= 3 && word.bytes().all(|byte| byte.is_ascii_lowercase());
            plain.then(|| word.to_owned())
        });
        let words: Vec<String> = words.take(MAX_WORDS).collect();
        if words.len() < MIN_WORDS {
            let n = words.len();
            return Err(format!(
                "only {n} words are single tokens, {MIN_WORDS} are needed"
            ));
        }
        Ok(Self { tokenizer, words })
    }

    fn n_tokens(&self, text: &str, extent: Extent) -> usize {
        let encoding = self.tokenizer.encode_fast(text, extent == Extent::Whole);
        encoding.expect("a loaded tokenizer encodes any text").len()
    }

    /// A text of `len` tokens, at least one of them not a special one. Most words are one token each, the
    /// first one and rare others are not: a text too long loses words, one too short gets more.
    fn draw(&self, len: usize, extent: Extent, random: &mut Random) -> Result<String, BenchError> {
        let len = len.max(self.n_tokens("", extent) + 1);
        let mut words: Vec<&str> = Vec::with_capacity(len);
        let mut n_missing = len;
        for _ in 0..MAX_ROUNDS {
            words.extend((0..n_missing).map(|_| self.words[random.below(self.words.len())].as_str()));
            let text = words.join(" ");
            let n = self.n_tokens(&text, extent);
            if n == len {
                return Ok(text);
            }
            words.truncate(words.len().saturating_sub(n.saturating_sub(len)));
            n_missing = len.saturating_sub(n).max(usize::from(words.is_empty()));
        }
        Err(BenchError::Check(format!(
            "no text of exactly {len} tokens found in {MAX_ROUNDS} tries"
        )))
    }
}

/// All requests.
pub(super) fn load(
    arguments: &Arguments,
    prompts: &Prompts,
    random: &mut Random,
) -> Result<Load, BenchError> {
    let asks = match arguments.dataset_name {
        Dataset::Random | Dataset::Embeddings => random_asks(arguments, prompts, random)?,
        Dataset::GeneratedSharedPrefix => shared_prefix_asks(arguments, prompts, random)?,
        Dataset::Rag => datasets::rag(arguments, prompts, random)?,
        Dataset::JsonSchema => datasets::json_schema(arguments, prompts, random)?,
        Dataset::Sharegpt => files::sharegpt(arguments, prompts, random)?,
        Dataset::MultiTurn => {
            let chats = datasets::multi_turn(arguments, prompts, random)?;
            return Ok(Load {
                chats,
                arrivals: None,
            });
        }
        Dataset::Trace => return files::trace(arguments, prompts, random),
    };
    let chats = asks.into_iter().map(|ask| vec![ask]).collect();
    Ok(Load {
        chats,
        arrivals: None,
    })
}

pub(super) fn random_asks(
    arguments: &Arguments,
    prompts: &Prompts,
    random: &mut Random,
) -> Result<Vec<Ask>, BenchError> {
    let n = arguments.num_prompts;
    let mut lens = |max: u32| -> Vec<u32> {
        let min = min_len(max, arguments.random_range_ratio);
        (0..n)
            .map(|_| min + random.below((max - min + 1) as usize) as u32)
            .collect()
    };
    let input_lens = lens(arguments.random_input_len);
    let output_lens = lens(arguments.random_output_len);
    let asks = input_lens.into_iter().zip(output_lens).map(|(input, output)| {
        let prompt = prompts.draw(input, Extent::Whole, random)?;
        Ok(prompts.ask(prompt, output))
    });
    asks.collect()
}

/// The shortest length `ratio` allows below `max`.
fn min_len(max: u32, ratio: f64) -> u32 {
    ((f64::from(max) * ratio) as u32).max(1)
}

fn shared_prefix_asks(
    arguments: &Arguments,
    prompts: &Prompts,
    random: &mut Random,
) -> Result<Vec<Ask>, BenchError> {
    let mut draw = |n: u64, len: u32| -> Result<Vec<String>, BenchError> {
        (0..n).map(|_| prompts.draw(len, Extent::Part, random)).collect()
    };
    let n_requests = u64::from(arguments.gsp_num_groups) * u64::from(arguments.gsp_prompts_per_group);
    let systems = draw(arguments.gsp_num_groups.into(), arguments.gsp_system_prompt_len)?;
    let questions = draw(n_requests, arguments.gsp_question_len)?;
    let groups = questions.chunks(arguments.gsp_prompts_per_group as usize);
    let mut asks: Vec<Ask> = systems
        .iter()
        .zip(groups)
        .flat_map(|(system, questions)| questions.iter().map(move |question| (system, question)))
        .map(|(system, question)| prompts.ask(format!("{system}\n\n{question}"), arguments.gsp_output_len))
        .collect();
    random.shuffle(&mut asks);
    Ok(asks)
}

/// When each of `n` requests arrives: the first at once, then after exponential gaps of mean 1 / `rate`.
pub(super) fn arrivals(n: usize, rate: f64, random: &mut Random) -> Vec<Duration> {
    if rate.is_infinite() {
        return vec![Duration::ZERO; n];
    }
    let gap = |_| Some(-(1.0 - random.unit()).ln() / rate);
    let gaps = std::iter::once(0.0).chain((1..n).map_while(gap));
    let at = gaps.scan(0.0, |now, gap| {
        *now += gap;
        Some(Duration::from_secs_f64(*now))
    });
    at.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::{Value, json};

    use super::super::arguments::tests::parse;
    use super::*;
    use crate::random::WORDS;

    fn made(words: &str, prompts: &Prompts) -> Vec<Ask> {
        let words: Vec<&str> = words.split_whitespace().collect();
        let arguments = parse(&words).expect("valid");
        let load = load(&arguments, prompts, &mut Random(arguments.seed)).expect("possible");
        load.chats.into_iter().flatten().collect()
    }

    /// Every word of `random.rs` is one token inside a text, only every other one at its beginning; letters
    /// stand for the rest, and a special token comes first.
    fn vocabulary() -> Vocabulary {
        let letters = ('a'..='z').map(|letter| json!([letter.to_string(), -9.0]));
        let inside = WORDS.iter().map(|word| json!([format!("▁{word}"), -2.0]));
        let first = WORDS.iter().step_by(2).map(|word| json!([word, -2.0]));
        let special = [json!(["<unk>", 0.0]), json!(["<s>", 0.0])];
        let vocab: Vec<Value> = special
            .into_iter()
            .chain(letters)
            .chain(inside)
            .chain(first)
            .collect();
        let text = json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "decoder": null,
            "truncation": { "direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0 },
            "padding": null,
            "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "never" },
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    { "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }
                ],
                "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
                "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } },
            },
            "model": { "type": "Unigram", "unk_id": 0, "vocab": vocab },
        });
        let tokenizer = text.to_string().parse().expect("a valid tokenizer");
        Vocabulary::new(tokenizer).expect("enough words")
    }

    #[test]
    fn lengths_fill_the_range_from_the_ratio_to_the_whole() {
        let words = "--num-prompts 3000 --random-input-len 40 --random-output-len 9 --random-range-ratio 0.5";
        let asks = made(words, &Prompts(None));
        let n_words = |ask: &Ask| ask.prompt.split(' ').count();
        let range = |values: Vec<usize>| (values.iter().min().copied(), values.iter().max().copied());
        let inputs = range(asks.iter().map(n_words).collect());
        let outputs = range(asks.iter().map(|ask| ask.output_len as usize).collect());
        assert_eq!(inputs, (Some(20), Some(40)));
        assert_eq!(outputs, (Some(4), Some(9)));
        assert_eq!(
            (min_len(100, 0.0), min_len(100, 1.0), min_len(1, 0.5)),
            (1, 100, 1)
        );
    }

    #[test]
    fn the_seed_decides_everything() {
        let words = "--dataset-name generated-shared-prefix --gsp-num-groups 3 --gsp-prompts-per-group 4 \
                     --gsp-system-prompt-len 30 --gsp-question-len 5";
        let texts = |words: &str| -> Vec<String> {
            let asks = made(words, &Prompts(None));
            asks.into_iter().map(|ask| ask.prompt).collect()
        };
        assert_eq!(texts(words), texts(words));
        assert_ne!(texts(words), texts(&format!("{words} --seed 2")));
    }

    #[test]
    fn every_group_shares_its_system_prompt_and_nothing_else() {
        let asks = made(
            "--dataset-name generated-shared-prefix --gsp-num-groups 5 --gsp-prompts-per-group 7 \
             --gsp-system-prompt-len 30 --gsp-question-len 6 --gsp-output-len 11",
            &Prompts(None),
        );
        let mut groups: HashMap<&str, Vec<&str>> = HashMap::new();
        for ask in &asks {
            let (system, question) = ask.prompt.split_once("\n\n").expect("two parts");
            assert_eq!((system.split(' ').count(), question.split(' ').count()), (30, 6));
            assert_eq!(ask.output_len, 11);
            groups.entry(system).or_default().push(question);
        }
        assert_eq!(groups.len(), 5);
        assert!(groups.values().all(|questions| questions.len() == 7));
        let first = asks[0].prompt.split("\n\n").next();
        assert!(
            asks[..7]
                .iter()
                .any(|ask| ask.prompt.split("\n\n").next() != first)
        );
    }

    #[test]
    fn a_tokenizer_makes_prompts_of_exact_lengths() {
        let vocabulary = vocabulary();
        assert_eq!(vocabulary.n_tokens("house the", Extent::Part), 2);
        assert_eq!(vocabulary.n_tokens("river the", Extent::Whole), 7);
        let prompts = Prompts(Some(vocabulary));
        let mut random = Random(5);
        for len in [2, 3, 4, 5, 6, 17, 300] {
            let whole = prompts.draw(len, Extent::Whole, &mut random).expect("possible");
            assert_eq!(prompts.ask(whole, 1).input_len, Some(len as usize));
            let part = prompts.draw(len, Extent::Part, &mut random).expect("possible");
            assert_eq!(prompts.n_tokens(&part), Some(len as usize));
        }
        let shortest = prompts.draw(1, Extent::Whole, &mut random).expect("possible");
        assert_eq!(
            prompts.ask(shortest, 1).input_len,
            Some(2),
            "one besides the special one"
        );
    }

    #[test]
    fn arrivals_are_a_poisson_process_of_the_rate() {
        let n = 20_000;
        let at = arrivals(n, 50.0, &mut Random(9));
        assert_eq!((at.len(), at[0]), (n, Duration::ZERO));
        assert!(at.is_sorted());
        let gaps: Vec<f64> = at
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs_f64())
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // An exponential gap deviates by as much as its mean.
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "{mean}");
        assert!((variance.sqrt() * 50.0 - 1.0).abs() < 0.05, "{variance}");
        assert_eq!(at, arrivals(n, 50.0, &mut Random(9)));
        assert!(
            arrivals(5, f64::INFINITY, &mut Random(9))
                .iter()
                .all(Duration::is_zero)
        );
    }
}
