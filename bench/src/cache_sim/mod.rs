//! `cache-sim`: how many prompt tokens each scheduling policy finds in the cache, and how long requests wait,
//! without a model. Nothing here depends on the machine: the same flags print the same table everywhere.
//!
//! ```text
//! hits         prompt tokens that were cached when their request started / all prompt tokens
//! of the best  hits / the most that is known to be possible: the starts and ends of each policy, and of
//!              `prefix` without aging, with a cache that knows the future; the best of these
//! of the bound hits / what is saved if every distinct token is computed once, which no cache beats
//! wait         from arrival to start, simulated seconds
//! end          when the last request has ended, simulated seconds
//! ```
//!
//! The optimum lies between the two. `trace.rs` says what the traces are, `simulate.rs` what is simulated and
//! how it differs from the server.

mod optimum;
mod simulate;
mod trace;

use std::io::Write;
use std::path::PathBuf;

use arbora_radix::EvictionPolicy;
use clap::ValueEnum;

use self::optimum::Trie;
use self::simulate::{Policy, Settings, Simulated};
use self::trace::{Kind, Request};
use crate::http::BenchError;
use crate::random::Random;

/// A cached token that is worth longer than any trace lasts.
const NO_AGING_US: u64 = 1 << 40;

#[derive(Debug, clap::Args)]
#[command(rename_all = "kebab-case")]
pub(crate) struct Arguments {
    /// Traces that are made; all unless set.
    #[arg(long, value_enum, num_args = 1.., conflicts_with = "trace_path")]
    trace: Vec<Kind>,
    /// A file of arrival times and token ids, or in Mooncake's format, instead.
    #[arg(long)]
    trace_path: Option<PathBuf>,
    /// Tokens that one of a file's `hash_ids` stands for.
    #[arg(long, default_value_t = 512, value_parser = positive(u32::MAX))]
    trace_block_len: u32,
    /// All unless set.
    #[arg(long, value_enum, num_args = 1..)]
    policy: Vec<Policy>,
    /// Sizes of the cache, as shares of what would hold every distinct token. At least the largest request
    /// fits in any case.
    #[arg(long, num_args = 1.., default_values_t = [0.05, 0.1, 0.25, 1.0], value_parser = share)]
    cache_share: Vec<f64>,
    /// Sizes of the cache in pages, instead.
    #[arg(long, num_args = 1.., conflicts_with = "cache_share", value_parser = positive(1 << 24))]
    pages: Vec<u32>,
    /// What the tree gives up first.
    #[arg(long, value_enum, default_value = "lru")]
    eviction: Eviction,
    #[arg(long, default_value_t = 16, value_parser = positive(4096))]
    page_size: u32,
    /// Requests that run at once.
    #[arg(long, default_value_t = 16, value_parser = positive(4096))]
    max_running: u32,
    #[arg(long, default_value_t = 512, value_parser = positive(1 << 20))]
    max_batch_tokens: u32,
    /// Arrivals per second of the traces that are made; `inf` for all at once.
    #[arg(long, default_value_t = 8.0, value_parser = rate)]
    request_rate: f64,
    /// Simulated time of a step without rows, microseconds.
    #[arg(long, default_value_t = 5000, value_parser = positive(1 << 30))]
    step_us: u32,
    /// Simulated time of each row, microseconds.
    #[arg(long, default_value_t = 250, value_parser = positive(1 << 30))]
    token_us: u32,
    /// How much earlier a request counts as having arrived for each cached token, under `prefix`; the
    /// server's is 500. Less ages faster.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(..=1 << 30))]
    cached_token_worth_us: u32,
    /// Seed of the traces that are made.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// `arbora_radix::EvictionPolicy`; its `priority` needs priorities, which a trace has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Eviction {
    Lru,
    Lfu,
    Slru,
}

impl Arguments {
    fn settings(&self, policy: Policy, n_pages: usize) -> Settings {
        Settings {
            policy,
            eviction: match self.eviction {
                Eviction::Lru => EvictionPolicy::Lru,
                Eviction::Lfu => EvictionPolicy::Lfu,
                Eviction::Slru => EvictionPolicy::Slru,
            },
            page_size: self.page_size as usize,
            n_pages,
            max_running: self.max_running as usize,
            max_batch_tokens: self.max_batch_tokens as usize,
            step_us: self.step_us.into(),
            token_us: self.token_us.into(),
            cached_token_worth_us: self.cached_token_worth_us.into(),
        }
    }

    /// Sizes of the cache in pages, ascending.
    fn sizes(&self, requests: &[Request], trie: &Trie) -> Vec<usize> {
        if !self.pages.is_empty() {
            return self.pages.iter().map(|n| *n as usize).collect();
        }
        let page_size = self.page_size as usize;
        let len = |request: &Request| request.prompt.len() + request.output.len();
        let largest = requests.iter().map(len).max().unwrap_or_default();
        let n_all = trie.n_distinct() as usize;
        // A branch of the tree begins a page of its own, and so does each request's last token.
        let n_spare = 2 * requests.len();
        let size = |share: &f64| {
            let n_pages = (share * n_all as f64 / page_size as f64).ceil() as usize;
            let n_pages = if *share >= 1.0 { n_pages + n_spare } else { n_pages };
            n_pages.max(largest.div_ceil(page_size))
        };
        let mut sizes: Vec<usize> = self.cache_share.iter().map(size).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    fn policies(&self) -> &[Policy] {
        match self.policy.is_empty() {
            true => Policy::value_variants(),
            false => &self.policy,
        }
    }
}

fn positive(max: u32) -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(max))
}

fn share(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    (value > 0.0 && value <= 1.0)
        .then_some(value)
        .ok_or_else(|| "not above 0 and at most 1".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    (value > 0.0)
        .then_some(value)
        .ok_or_else(|| "not above 0".to_owned())
}

/// A policy's shares of the best and of the bound, one for each trace and size.
#[derive(Debug, Default)]
struct Shares {
    of_best: Vec<f64>,
    of_bound: Vec<f64>,
}

/// Prints a table in Markdown to `out`.
pub(crate) fn run(arguments: &Arguments, out: &mut impl Write) -> Result<(), BenchError> {
    writeln!(
        out,
        "Pages of {} tokens, {} requests at once, {} rows a step; a step takes {} us and {} us a row. A cached \
         token is worth {} us. Eviction: {:?}. {} arrivals a second, seed {}.\n",
        arguments.page_size,
        arguments.max_running,
        arguments.max_batch_tokens,
        arguments.step_us,
        arguments.token_us,
        arguments.cached_token_worth_us,
        arguments.eviction,
        arguments.request_rate,
        arguments.seed,
    )?;
    let traces = traces(arguments)?;
    for (name, what, requests) in &traces {
        let n: usize = requests.iter().map(|request| request.prompt.len()).sum();
        writeln!(
            out,
            "* {name}: {what}; {} requests, {n} prompt tokens.",
            requests.len()
        )?;
    }
    writeln!(
        out,
        "\n| trace | pages | policy | hits % | of the best % | of the bound % | wait mean s | p99 s | max s | end s |\n\
         |---|---|---|---|---|---|---|---|---|---|"
    )?;
    let mut shares: Vec<Shares> = arguments.policies().iter().map(|_| Shares::default()).collect();
    for (name, _, requests) in &traces {
        let trie = Trie::new(requests);
        for n_pages in arguments.sizes(requests, &trie) {
            rows(
                arguments,
                (name.as_str(), requests),
                (&trie, n_pages),
                (&mut shares, out),
            )?;
        }
    }
    writeln!(out)?;
    for (policy, shares) in arguments.policies().iter().zip(&shares) {
        let mean = |values: &[f64]| 100.0 * values.iter().sum::<f64>() / values.len() as f64;
        let least = shares.of_best.iter().copied().fold(f64::INFINITY, f64::min);
        writeln!(
            out,
            "`{}` reaches {:.1} % of the best known on average, at least {:.1} %, and {:.1} % of the bound.",
            name(policy),
            mean(&shares.of_best),
            100.0 * least,
            mean(&shares.of_bound)
        )?;
    }
    Ok(())
}

/// Name, description and requests of each.
fn traces(arguments: &Arguments) -> Result<Vec<(String, String, Vec<Request>)>, BenchError> {
    if let Some(path) = &arguments.trace_path {
        let requests = trace::read(path, arguments.trace_block_len)?;
        return Ok(vec![("file".to_owned(), path.display().to_string(), requests)]);
    }
    let kinds = match arguments.trace.is_empty() {
        true => Kind::value_variants(),
        false => &arguments.trace,
    };
    let made = kinds.iter().map(|kind| {
        let requests = kind.generate(arguments.request_rate, &mut Random(arguments.seed));
        (name(kind), kind.describe().to_owned(), requests)
    });
    Ok(made.collect())
}

/// One size of the cache, a row per policy.
fn rows(
    arguments: &Arguments,
    (trace, requests): (&str, &[Request]),
    (trie, n_pages): (&Trie, usize),
    (shares, out): (&mut [Shares], &mut impl Write),
) -> Result<(), BenchError> {
    let simulate = |policy: &Policy| simulate::run(requests, arguments.settings(*policy, n_pages));
    let simulated: Result<Vec<Simulated>, BenchError> = arguments.policies().iter().map(simulate).collect();
    let simulated = simulated?;
    let best = best_known(arguments, requests, trie, n_pages)?;
    let bound = trie.bound();
    let n_prompt: u64 = requests.iter().map(|request| request.prompt.len() as u64).sum();
    let policies = arguments.policies().iter().zip(&simulated);
    for ((policy, run), shares) in policies.zip(shares.iter_mut()) {
        let of_best = share_of(run.n_hits, best);
        let of_bound = share_of(run.n_hits, bound);
        shares.of_best.push(of_best);
        shares.of_bound.push(of_bound);
        let waits = Waits::of(&run.waits_us);
        writeln!(
            out,
            "| {trace} | {n_pages} | {} | {:.1} | {:.1} | {:.1} | {:.2} | {:.2} | {:.2} | {:.1} |",
            name(policy),
            100.0 * share_of(run.n_hits, n_prompt),
            100.0 * of_best,
            100.0 * of_bound,
            waits.mean,
            waits.p99,
            waits.max,
            run.duration_us as f64 / 1e6,
        )?;
    }
    let best_hits = 100.0 * share_of(best, n_prompt);
    let best_of_bound = 100.0 * share_of(best, bound);
    writeln!(
        out,
        "| {trace} | {n_pages} | *best known* | {best_hits:.1} | 100.0 | {best_of_bound:.1} | | | | |"
    )?;
    Ok(())
}

/// Most hit tokens of any order with a cache that knows the future.
fn best_known(
    arguments: &Arguments,
    requests: &[Request],
    trie: &Trie,
    n_pages: usize,
) -> Result<u64, BenchError> {
    let capacity = n_pages as u64 * u64::from(arguments.page_size);
    let aging = Policy::value_variants()
        .iter()
        .map(|policy| arguments.settings(*policy, n_pages));
    let ageless = Settings {
        cached_token_worth_us: NO_AGING_US,
        ..arguments.settings(Policy::Prefix, n_pages)
    };
    let known: Result<Vec<u64>, BenchError> = aging
        .chain([ageless])
        .map(|settings| Ok(trie.clairvoyant(&simulate::run(requests, settings)?.events, capacity)))
        .collect();
    Ok(known?.into_iter().max().expect("there are policies"))
}

/// 1 where there is nothing to reach.
fn share_of(part: u64, whole: u64) -> f64 {
    match whole {
        0 => 1.0,
        _ => part as f64 / whole as f64,
    }
}

/// Seconds.
struct Waits {
    mean: f64,
    /// Of the sorted waits, the one that 99 of 100 do not exceed.
    p99: f64,
    max: f64,
}

impl Waits {
    fn of(waits_us: &[u64]) -> Self {
        let mut sorted = waits_us.to_vec();
        sorted.sort_unstable();
        let seconds = |us: Option<&u64>| us.map_or(0.0, |us| *us as f64 / 1e6);
        let sum: u64 = sorted.iter().sum();
        Self {
            mean: sum as f64 / 1e6 / sorted.len().max(1) as f64,
            p99: seconds(sorted.get((sorted.len() * 99).div_ceil(100).saturating_sub(1))),
            max: seconds(sorted.last()),
        }
    }
}

/// The word of the command line.
fn name(value: &impl ValueEnum) -> String {
    let value = value.to_possible_value().expect("no value is hidden");
    value.get_name().to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn table(words: &str) -> String {
        let words: Vec<&str> = ["cache-sim"]
            .into_iter()
            .chain(words.split_whitespace())
            .collect();
        let line = Line::try_parse_from(words).expect("valid");
        let mut out = Vec::new();
        run(&line.arguments, &mut out).expect("it fits");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_table_has_a_row_for_each_size_and_policy_and_is_the_same_each_time() {
        let words = "--trace tree-of-thought --pages 200 400";
        let table_once = table(words);
        let rows = table_once
            .lines()
            .filter(|line| line.starts_with("| tree-of-thought |"));
        assert_eq!(rows.count(), 2 * 4);
        for policy in ["fcfs", "prefix", "dfs"] {
            assert!(
                table_once.contains(&format!("`{policy}` reaches ")),
                "{table_once}"
            );
        }
        assert_eq!(table_once, table(words));
    }

    #[test]
    fn a_cache_for_everything_is_best() {
        let table = table("--trace shared-prefix --cache-share 1 --policy prefix");
        assert!(table.contains("at least 100.0 %"), "{table}");
    }

    #[test]
    fn waits_by_hand() {
        let waits = Waits::of(&[4_000_000, 1_000_000]);
        assert!((waits.mean - 2.5).abs() < 1e-9 && (waits.max - 4.0).abs() < 1e-9);
        assert!((waits.p99 - 4.0).abs() < 1e-9);
        let many: Vec<u64> = (1..=200).map(|n| n * 1_000_000).collect();
        assert!((Waits::of(&many).p99 - 198.0).abs() < 1e-9);
    }
}
