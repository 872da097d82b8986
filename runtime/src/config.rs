//! Limits and policies of one engine. Everything is decided before the engine starts; nothing grows
//! afterwards (contract C6).
//!
//! ```text
//! 1 <= max_running < max_batch_tokens        every decode row fits a step and one prefill row is left
//!      max_running + max(max_draft_rows, max_scored_rows) <= max_logit_rows
//!                                       every sequence of a step wants its logits; drafts and prompts
//!                                       share what is left
//!      context     <= pool tokens            an accepted request can always be finished alone
//!      n_tenants   <= max_waiting            no tenant is kept out by the others
//! ```

use std::time::Duration;

use arbora_radix::EvictionPolicy;

use crate::draft::Drafters;
use crate::model::decoder::ForwardLimits;

/// In which order waiting requests are admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SchedulePolicy {
    /// Longest cached prefix first: a cached token counts as much as having arrived
    /// [`EngineConfig::cached_token_worth`] earlier, so nobody is overtaken for ever.
    #[default]
    Prefix,
    /// First come, first served.
    Fcfs,
    /// Larger [`crate::request::Request::priority`] first, then first come.
    Priority,
}

impl SchedulePolicy {
    /// Every policy with the name users give it.
    pub const NAMES: [(&'static str, SchedulePolicy); 3] = [
        ("prefix", SchedulePolicy::Prefix),
        ("fcfs", SchedulePolicy::Fcfs),
        ("priority", SchedulePolicy::Priority),
    ];
}

/// Limits and policies of one engine.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// KV pages in the pool.
    pub n_pages: usize,
    /// Tokens per page.
    pub page_size: usize,
    /// Most tokens of prompt and output together; lowered to what the pool holds.
    pub context: usize,
    /// Most sequences that hold pages at a time.
    pub max_running: usize,
    /// Most rows in one step: decode rows first, prefill chunks fill the rest.
    pub max_batch_tokens: usize,
    /// Most rows of one step that drafts may take, of what the other rows leave of `max_batch_tokens`; 0
    /// turns drafts off.
    pub max_draft_rows: usize,
    /// Who proposes tokens of free text.
    pub drafters: Drafters,
    /// Most rows of one step whose logits are wanted for a prompt's log-probabilities.
    pub max_scored_rows: usize,
    /// Most requests waiting. Tenants share it as [`crate::fair_limit`] says.
    pub max_waiting: usize,
    /// Most prompt tokens waiting, shared likewise.
    pub max_waiting_tokens: usize,
    /// What would wait longer than this for its first step is refused, by the rate at which the queue drained
    /// lately; nothing is refused for it where absent, and while no rate was measured.
    pub max_queue_wait: Option<Duration>,
    /// Order of admission.
    pub schedule_policy: SchedulePolicy,
    /// Who shares the engine: each tenant that has requests waiting gets the same share of the work.
    pub n_tenants: usize,
    /// Which unused prefixes go first when pages run out.
    pub eviction_policy: EvictionPolicy,
    /// What one cached token is worth under [`SchedulePolicy::Prefix`], as time of arrival: about the time
    /// its prefill takes. A request that came `context * cached_token_worth` before another is always ahead
    /// of it.
    pub cached_token_worth: Duration,
    /// Share of `max_tokens` an output is expected to take as long as experience does not say otherwise, in
    /// [0, 1]. Admission keeps pages for it; less means more sequences side by side and more preemptions.
    pub expected_output: f64,
    /// Tokens that end an output unless the request says otherwise.
    pub model_stop_tokens: Vec<u32>,
    /// After this many panics within a minute the engine gives up instead of starting afresh.
    pub max_rebuilds_per_minute: usize,
}

impl EngineConfig {
    /// A pool of `n_pages` pages of 16 tokens and the defaults of a small CPU server.
    pub fn new(n_pages: usize, context: usize) -> Self {
        EngineConfig {
            n_pages,
            page_size: 16,
            context,
            max_running: 32,
            max_batch_tokens: 256,
            max_draft_rows: 64,
            drafters: Drafters {
                ngram: true,
                radix: true,
            },
            max_scored_rows: 64,
            max_waiting: 1024,
            max_waiting_tokens: 1 << 20,
            max_queue_wait: Some(Duration::from_secs(60)),
            schedule_policy: SchedulePolicy::default(),
            n_tenants: 1,
            eviction_policy: EvictionPolicy::Lru,
            cached_token_worth: Duration::from_micros(500),
            expected_output: 0.7,
            model_stop_tokens: Vec::new(),
            max_rebuilds_per_minute: 3,
        }
    }

    /// What the decoder's activations must be allocated for.
    pub fn forward_limits(&self) -> ForwardLimits {
        ForwardLimits {
            max_rows: self.max_batch_tokens,
            max_logit_rows: self.max_running + self.n_extra_logit_rows(),
        }
    }

    /// Logit rows of a step besides one for each sequence.
    pub(crate) fn n_extra_logit_rows(&self) -> usize {
        self.max_draft_rows.max(self.max_scored_rows)
    }

    /// Tokens the pool holds, or `usize::MAX` where that overflows.
    pub fn pool_tokens(&self) -> usize {
        self.n_pages.saturating_mul(self.page_size)
    }

    /// Checks the inequalities of this module against what the decoder was built for.
    pub(crate) fn validate(&self, limits: ForwardLimits) -> Result<(), ConfigError> {
        let at_least_one = |option, value: usize| {
            if value == 0 {
                Err(ConfigError::Zero { option })
            } else {
                Ok(())
            }
        };
        at_least_one("n_pages", self.n_pages)?;
        at_least_one("page_size", self.page_size)?;
        at_least_one("max_running", self.max_running)?;
        at_least_one("max_scored_rows", self.max_scored_rows)?;
        at_least_one("max_waiting", self.max_waiting)?;
        at_least_one("n_tenants", self.n_tenants)?;
        at_least_one("max_waiting_tokens", self.max_waiting_tokens)?;
        if self.max_waiting < self.n_tenants {
            return Err(ConfigError::TooFewPlaces {
                max_waiting: self.max_waiting,
                n_tenants: self.n_tenants,
            });
        }
        if !(0.0..=1.0).contains(&self.expected_output) {
            return Err(ConfigError::NoShare {
                expected_output: self.expected_output,
            });
        }
        if self.context < 2 {
            return Err(ConfigError::ContextTooSmall {
                context: self.context,
            });
        }
        if self.max_running >= self.max_batch_tokens {
            return Err(ConfigError::TooManyRunning {
                max_running: self.max_running,
                limit: "max_batch_tokens - 1",
                allowed: self.max_batch_tokens.saturating_sub(1),
            });
        }
        if self.max_running + self.n_extra_logit_rows() > limits.max_logit_rows {
            return Err(ConfigError::TooManyRunning {
                max_running: self.max_running,
                limit: "the decoder's logit rows less those of drafts and prompts",
                allowed: limits.max_logit_rows.saturating_sub(self.n_extra_logit_rows()),
            });
        }
        if self.max_batch_tokens > limits.max_rows {
            return Err(ConfigError::BatchTooLarge {
                max_batch_tokens: self.max_batch_tokens,
                max_rows: limits.max_rows,
            });
        }
        Ok(())
    }
}

/// A configuration no engine can run with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// An option that must not be 0.
    #[error("{option} must be at least 1")]
    Zero {
        /// Its name.
        option: &'static str,
    },
    /// Some tenants could never be served while others wait.
    #[error("max_waiting {max_waiting} has no place for each of {n_tenants} tenants (API keys)")]
    TooFewPlaces {
        /// As configured.
        max_waiting: usize,
        /// As configured.
        n_tenants: usize,
    },
    /// Not a share.
    #[error("expected_output {expected_output} is not in [0, 1]")]
    NoShare {
        /// As configured.
        expected_output: f64,
    },
    /// No room for a prompt token and an output token.
    #[error("context must be at least 2 tokens, got {context}")]
    ContextTooSmall {
        /// The context.
        context: usize,
    },
    /// More sequences than a step can serve.
    #[error("max_running {max_running} exceeds {limit} = {allowed}")]
    TooManyRunning {
        /// As configured.
        max_running: usize,
        /// What limits it.
        limit: &'static str,
        /// The limit's value.
        allowed: usize,
    },
    /// More rows than the decoder's activations hold.
    #[error("max_batch_tokens {max_batch_tokens} exceeds the decoder's {max_rows} rows")]
    BatchTooLarge {
        /// As configured.
        max_batch_tokens: usize,
        /// The decoder's limit.
        max_rows: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bound_of_the_configuration_is_refused_by_name() {
        let good = EngineConfig::new(64, 512);
        let limits = good.forward_limits();
        good.validate(limits).expect("the defaults are valid");
        let refused = |change: &dyn Fn(&mut EngineConfig)| {
            let mut config = good.clone();
            change(&mut config);
            config.validate(limits).expect_err("out of bounds").to_string()
        };
        assert!(refused(&|c| c.n_pages = 0).contains("n_pages"));
        assert!(refused(&|c| c.page_size = 0).contains("page_size"));
        assert!(refused(&|c| c.max_waiting = 0).contains("max_waiting"));
        assert!(refused(&|c| c.n_tenants = 0).contains("n_tenants"));
        assert!(refused(&|c| c.n_tenants = 1025).contains("max_waiting 1024 has no place for each of 1025"));
        assert!(refused(&|c| c.max_waiting_tokens = 0).contains("max_waiting_tokens"));
        assert!(refused(&|c| c.expected_output = f64::NAN).contains("expected_output"));
        assert!(refused(&|c| c.context = 1).contains("context"));
        assert!(refused(&|c| c.max_running = 256).contains("255"));
        assert!(refused(&|c| c.max_running = 33).contains("logit rows"));
        assert!(refused(&|c| c.max_batch_tokens = 257).contains("256 rows"));
    }
}
