//! Log-probabilities of one row of logits.
//!
//! The sum is the sampler's: integers in units of 2^-40, so that neither order nor instruction set is visible
//! in it. What it loses of 100,000 tokens is below 1e-7.

use super::sample::{
    Candidate, ONE, SampleKernels, SampleSpace, Weigher, collect, keep_first, larger, top_k_bound,
};
use crate::{LogprobRow, RowLogprobs, TokenLogprob};

/// What `asked` asks of its row with `token` as the token it asks for, or `None` where no logit is finite.
pub(crate) fn logprobs_row(
    logits: &[f32],
    (asked, token): (&LogprobRow, u32),
    kernels: SampleKernels,
    space: &mut SampleSpace,
) -> Option<RowLogprobs> {
    // SAFETY: whoever chose the kernels checked that the machine has their ISA.
    unsafe { (kernels.largest_of_chunks)(logits, &mut space.maxima) };
    let largest = space.maxima.iter().copied().fold(f32::NEG_INFINITY, larger);
    if largest == f32::NEG_INFINITY {
        return None;
    }
    let weigher = Weigher {
        largest,
        temperature: 1.0,
    };
    // SAFETY: as above.
    let total = unsafe { (kernels.total_weight)(logits, weigher) };
    let ln_total = (total as f64 / ONE).ln();
    let logprob = |logit: f32| {
        if logit.is_finite() {
            (f64::from(logit) - f64::from(largest) - ln_total) as f32
        } else {
            f32::NEG_INFINITY
        }
    };
    let likeliest = likeliest(logits, asked.n_top, weigher, space);
    let n_larger = |logit: f32| logits.iter().filter(|l| l.is_finite() && **l > logit).count() as u32;
    let mut rank = 0;
    let top = likeliest.iter().enumerate().map(|(idx, candidate)| {
        let token = candidate.token();
        let logit = logits[token as usize];
        if idx == 0 || logit != logits[likeliest[idx - 1].token() as usize] {
            rank = idx as u32 + 1;
        }
        TokenLogprob {
            token,
            logprob: logprob(logit),
            rank,
        }
    });
    let top = top.collect();
    let logit = logits[token as usize];
    let from = if logit.is_finite() {
        logit
    } else {
        f32::NEG_INFINITY
    };
    let listed = asked.listed.iter();
    Some(RowLogprobs {
        token: TokenLogprob {
            token,
            logprob: logprob(logit),
            rank: n_larger(from) + 1,
        },
        top,
        listed: listed.map(|token| logprob(logits[*token as usize])).collect(),
    })
}

/// The first `n` tokens of the order.
fn likeliest(logits: &[f32], n: usize, weigher: Weigher, space: &mut SampleSpace) -> Vec<Candidate> {
    if n == 0 {
        return Vec::new();
    }
    let bound = top_k_bound(&space.maxima, n, &mut space.ordered_maxima);
    collect(logits, weigher, bound, space);
    keep_first(&mut space.candidates, n);
    let mut first = space.candidates.clone();
    first.sort_unstable_by_key(|candidate| candidate.key());
    first
}
