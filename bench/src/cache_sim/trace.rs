//! Traces: what is asked, in token ids, and when.
//!
//! ```text
//! shared-prefix    groups of prompts with one long beginning each, in random order
//! multi-turn       chats that begin alike; a turn repeats all before it and follows the answer after a pause
//! tree-of-thought  problems whose thoughts are continued several times each, as soon as they are written
//! zipf-rag         questions about two documents, some of which are wanted far more often than others
//! ```
//!
//! The first requests of what belongs together arrive as a Poisson process of `--request-rate`.

use std::fs;
use std::path::Path;

use clap::ValueEnum;
use serde_json::Value;

use crate::http::BenchError;
use crate::random::Random;
use crate::serve;

/// When a request arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Microseconds since the trace began.
    At(u64),
    /// So many microseconds after the end of an earlier request of the trace.
    After { request: usize, pause_us: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) arrival: Arrival,
    /// At least one token.
    pub(super) prompt: Vec<u32>,
    /// At least one token.
    pub(super) output: Vec<u32>,
}

impl Request {
    /// Every token whose keys and values are computed: the last one of the output never is.
    pub(super) fn computed(&self) -> Vec<u32> {
        [&self.prompt, &self.output[..self.output.len() - 1]].concat()
    }

    /// Tokens of a prompt that a cache may give; the last one is always computed.
    pub(super) fn max_cached(&self) -> usize {
        self.prompt.len() - 1
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    SharedPrefix,
    MultiTurn,
    TreeOfThought,
    ZipfRag,
}

/// Draws ids that no text before had, so that nothing is shared by chance.
struct Texts {
    next: u32,
}

impl Texts {
    fn draw(&mut self, n_tokens: u32) -> Vec<u32> {
        let first = self.next;
        self.next += n_tokens;
        (first..self.next).collect()
    }
}

/// Times of a Poisson process.
struct Arrivals<'a> {
    random: &'a mut Random,
    rate: f64,
    now: f64,
}

impl Arrivals<'_> {
    fn next(&mut self) -> Arrival {
        let at = self.now;
        if self.rate.is_finite() {
            self.now += exponential(1.0 / self.rate, self.random);
        }
        Arrival::At((1e6 * at) as u64)
    }
}

fn exponential(mean: f64, random: &mut Random) -> f64 {
    -(1.0 - random.unit()).ln() * mean
}

impl Kind {
    /// `rate` arrivals a second; infinite for all at once.
    pub(super) fn generate(self, rate: f64, random: &mut Random) -> Vec<Request> {
        let texts = Texts { next: 0 };
        match self {
            Self::SharedPrefix => shared_prefix(rate, texts, random),
            Self::MultiTurn => multi_turn(rate, texts, random),
            Self::TreeOfThought => tree_of_thought(rate, texts, random),
            Self::ZipfRag => zipf_rag(rate, texts, random),
        }
    }

    /// What the trace is made of.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::SharedPrefix => "64 groups of 16 prompts, 1,024 tokens in common and 64 more, 64 of output",
            Self::MultiTurn => {
                "96 chats of 8 turns, 512 tokens in common, questions of 64, answers of 128, pauses of 5 s \
                 on average"
            }
            Self::TreeOfThought => {
                "24 problems of 128 tokens after 512 in common, thoughts of 64 continued 3 times, 3 times over"
            }
            Self::ZipfRag => {
                "1,000 questions of 32 tokens about 2 of 256 documents of 800 tokens, wanted in proportion to \
                 1 / rank, 48 of output"
            }
        }
    }
}

fn shared_prefix(rate: f64, mut texts: Texts, random: &mut Random) -> Vec<Request> {
    let mut prompts = Vec::new();
    for _ in 0..64 {
        let system = texts.draw(1024);
        prompts.extend((0..16).map(|_| [system.clone(), texts.draw(64)].concat()));
    }
    random.shuffle(&mut prompts);
    let mut arrivals = Arrivals {
        random,
        rate,
        now: 0.0,
    };
    let request = |prompt| Request {
        arrival: arrivals.next(),
        prompt,
        output: texts.draw(64),
    };
    prompts.into_iter().map(request).collect()
}

fn multi_turn(rate: f64, mut texts: Texts, random: &mut Random) -> Vec<Request> {
    let system = texts.draw(512);
    let mut requests: Vec<Request> = Vec::new();
    let mut begin = 0.0;
    for _ in 0..96 {
        let mut arrival = Arrival::At((1e6 * begin) as u64);
        let mut said = system.clone();
        for _ in 0..8 {
            let prompt = [said, texts.draw(64)].concat();
            let output = texts.draw(128);
            said = [prompt.as_slice(), &output].concat();
            requests.push(Request {
                arrival,
                prompt,
                output,
            });
            let pause_us = (1e6 * exponential(5.0, random)) as u64;
            arrival = Arrival::After {
                request: requests.len() - 1,
                pause_us,
            };
        }
        if rate.is_finite() {
            // `rate` counts requests, of which a chat brings eight.
            begin += exponential(8.0 / rate, random);
        }
    }
    requests
}

fn tree_of_thought(rate: f64, mut texts: Texts, random: &mut Random) -> Vec<Request> {
    let examples = texts.draw(512);
    let mut requests: Vec<Request> = Vec::new();
    let mut begin = 0.0;
    for _ in 0..24 {
        let root = Request {
            arrival: Arrival::At((1e6 * begin) as u64),
            prompt: [examples.clone(), texts.draw(128)].concat(),
            output: texts.draw(64),
        };
        let mut level = vec![requests.len()];
        requests.push(root);
        for _ in 0..3 {
            let mut deeper = Vec::new();
            for parent in level {
                let thought = [requests[parent].prompt.as_slice(), &requests[parent].output].concat();
                for _ in 0..3 {
                    deeper.push(requests.len());
                    requests.push(Request {
                        arrival: Arrival::After {
                            request: parent,
                            pause_us: 0,
                        },
                        prompt: [thought.clone(), texts.draw(8)].concat(),
                        output: texts.draw(64),
                    });
                }
            }
            level = deeper;
        }
        if rate.is_finite() {
            begin += exponential(40.0 / rate, random);
        }
    }
    requests
}

fn zipf_rag(rate: f64, mut texts: Texts, random: &mut Random) -> Vec<Request> {
    let documents: Vec<Vec<u32>> = (0..256).map(|_| texts.draw(800)).collect();
    let found: Vec<Vec<usize>> = (0..1000)
        .map(|_| serve::by_popularity(documents.len(), 2, 1.0, random))
        .collect();
    let mut arrivals = Arrivals {
        random,
        rate,
        now: 0.0,
    };
    let request = |found: Vec<usize>| Request {
        arrival: arrivals.next(),
        prompt: [
            documents[found[0]].as_slice(),
            &documents[found[1]],
            &texts.draw(32),
        ]
        .concat(),
        output: texts.draw(48),
    };
    found.into_iter().map(request).collect()
}

/// Lines of JSON, in the order of arrival, with `timestamp` in milliseconds and either the ids themselves,
/// `input_ids` and `output_ids`, or `input_length`, `output_length` and `hash_ids` as in a trace of `serve`.
pub(super) fn read(path: &Path, block_len: u32) -> Result<Vec<Request>, BenchError> {
    let failed = |error: std::io::Error| BenchError::Check(format!("{}: {error}", path.display()));
    let text = fs::read_to_string(path).map_err(failed)?;
    // Beyond the ids of blocks.
    let mut texts = Texts { next: 1 << 31 };
    let mut requests: Vec<Request> = Vec::new();
    for (i, text) in text
        .lines()
        .enumerate()
        .filter(|(_, text)| !text.trim().is_empty())
    {
        let request = parse(text, block_len, &mut texts).map_err(|what| {
            let n = i + 1;
            BenchError::Check(format!("{}:{n}: {what}", path.display()))
        })?;
        requests.push(request);
    }
    if requests.is_empty() {
        return Err(BenchError::Check(format!("{}: no request", path.display())));
    }
    Ok(requests)
}

fn parse(text: &str, block_len: u32, texts: &mut Texts) -> Result<Request, String> {
    let fields: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if fields["input_ids"].is_null() {
        let line = serve::TraceLine::parse(text, block_len)?;
        let n_blocks = u64::from(u32::MAX >> 1) / u64::from(block_len);
        if let Some(id) = line.hash_ids.iter().find(|id| **id >= n_blocks) {
            return Err(format!("hash id {id} is not below {n_blocks}"));
        }
        let block = |id: u64| (0..block_len).map(move |i| id as u32 * block_len + i);
        let mut prompt: Vec<u32> = line.hash_ids.iter().copied().flat_map(block).collect();
        prompt.truncate(line.input_len as usize);
        let n_more = line.input_len - prompt.len() as u32;
        prompt.extend(texts.draw(n_more));
        let output = texts.draw(line.output_len);
        let arrival = Arrival::At(line.at.as_micros() as u64);
        return Ok(Request {
            arrival,
            prompt,
            output,
        });
    }
    let ids = |name: &str| -> Result<Vec<u32>, String> {
        let list = fields[name].as_array().filter(|list| !list.is_empty());
        let ids = list.and_then(|list| list.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect());
        ids.ok_or_else(|| format!("{name} is no list of token ids"))
    };
    let at = fields["timestamp"].as_f64().filter(|at| (0.0..1e15).contains(at));
    let at = at.ok_or_else(|| format!("timestamp is {}, not milliseconds", fields["timestamp"]))?;
    Ok(Request {
        arrival: Arrival::At((1e3 * at) as u64),
        prompt: ids("input_ids")?,
        output: ids("output_ids")?,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_seed_decides_a_trace() {
        for kind in Kind::value_variants() {
            let made = |seed| kind.generate(8.0, &mut Random(seed));
            assert_eq!(made(1), made(1));
            assert_ne!(made(1), made(2), "{kind:?}");
        }
    }

    #[test]
    fn what_follows_repeats_what_it_follows() {
        for kind in [Kind::MultiTurn, Kind::TreeOfThought] {
            let requests = kind.generate(8.0, &mut Random(1));
            let mut n_followers = 0;
            for request in &requests {
                if let Arrival::After { request: before, .. } = request.arrival {
                    let before = &requests[before];
                    let said = [before.prompt.as_slice(), &before.output].concat();
                    assert!(request.prompt.starts_with(&said) && request.prompt.len() > said.len());
                    n_followers += 1;
                }
            }
            assert!(
                n_followers > requests.len() / 2,
                "{n_followers} of {}",
                requests.len()
            );
        }
    }

    #[test]
    fn files_of_ids_and_of_blocks_are_read() {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        let text = "{\"timestamp\": 1.5, \"input_ids\": [7, 8, 9], \"output_ids\": [1]}\n\
                    {\"timestamp\": 2, \"input_length\": 5, \"output_length\": 2, \"hash_ids\": [0, 3]}\n\
                    {\"timestamp\": 3, \"input_length\": 2, \"output_length\": 1}\n";
        file.write_all(text.as_bytes()).expect("room for it");
        let requests = read(file.path(), 4).expect("valid");
        assert_eq!(requests[0].arrival, Arrival::At(1500));
        assert_eq!(
            (requests[0].prompt.as_slice(), requests[0].output.as_slice()),
            (&[7, 8, 9][..], &[1][..])
        );
        assert_eq!(requests[1].prompt, [0, 1, 2, 3, 12]);
        assert_eq!((requests[2].prompt.len(), requests[1].output.len()), (2, 2));
        assert!(requests[2].prompt[0] > requests[1].output[1]);
        file.write_all(b"{\"timestamp\": 3, \"input_ids\": [], \"output_ids\": [1]}\n")
            .expect("room for it");
        let error = read(file.path(), 4).expect_err("no ids").to_string();
        assert!(error.contains(":4: input_ids"), "{error}");
    }
}
