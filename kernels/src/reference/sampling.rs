//! What drawing a token and its log-probabilities mean, in plain loops over f64.

use crate::{Allowed, LogprobRow, RowLogprobs, SampleRow, TokenLogprob};

/// The token of one row of logits.
pub(super) fn sampled(logits: &[f32], row: &SampleRow<'_>) -> Option<u32> {
    let is_allowed = |id: u32| match row.allowed {
        Allowed::All => true,
        Allowed::Ids(ids) => ids.contains(&id),
        Allowed::Bits(words) => words[id as usize / 64] >> (id % 64) & 1 == 1,
    };
    let adjusted = |id: u32, logit: f32| {
        let adjustment = row.adjustments.iter().find(|adjustment| adjustment.token == id);
        adjustment.map_or(logit, |adjustment| adjustment.apply(logit))
    };
    let mut tokens: Vec<(f64, u32)> = (0..)
        .zip(logits)
        .map(|(id, &logit)| (id, adjusted(id, logit)))
        .filter(|(id, logit)| logit.is_finite() && is_allowed(*id))
        .map(|(id, logit)| (f64::from(logit), id))
        .collect();
    // Not the total order, in which the two zeros differ.
    let likelier = |a: f64, b: f64| b.partial_cmp(&a).expect("finite logits compare");
    tokens.sort_by(|a, b| likelier(a.0, b.0).then(a.1.cmp(&b.1)));
    let &(largest, likeliest) = tokens.first()?;
    if row.temperature == 0.0 {
        return Some(likeliest);
    }
    let weight = |logit: f64| ((logit - largest) / f64::from(row.temperature)).exp();
    if row.top_k > 0 {
        tokens.truncate(row.top_k as usize);
    }
    let total: f64 = tokens.iter().map(|token| weight(token.0)).sum();
    let mut before = 0.0;
    // A token stays while those before it have not reached top_p; the likeliest always does.
    let n_kept = tokens.iter().position(|token| {
        let reached = before > 0.0 && before >= f64::from(row.top_p) * total;
        before += weight(token.0);
        reached
    });
    tokens.truncate(n_kept.unwrap_or(tokens.len()));
    tokens.retain(|token| token.1 == likeliest || weight(token.0) >= f64::from(row.min_p));
    let total: f64 = tokens.iter().map(|token| weight(token.0)).sum();
    let goal = row.noise as f64 / 2f64.powi(64) * total;
    let mut sum = 0.0;
    let drawn = tokens.iter().find(|token| {
        sum += weight(token.0);
        sum > goal
    });
    // Rounding can leave the sum at the goal; the last token is then the one meant.
    drawn.or(tokens.last()).map(|token| token.1)
}

/// The log-probabilities that one row is asked for, of `token` before all.
pub(crate) fn logprobs(logits: &[f32], asked: &LogprobRow, token: u32) -> Option<RowLogprobs> {
    let finite: Vec<(u32, f64)> = (0..)
        .zip(logits)
        .filter(|(_, logit)| logit.is_finite())
        .map(|(id, &logit)| (id, f64::from(logit)))
        .collect();
    let largest = finite.iter().map(|(_, logit)| *logit).reduce(f64::max)?;
    let total: f64 = finite.iter().map(|(_, logit)| (logit - largest).exp()).sum();
    let of = |token: u32| {
        let logit = f64::from(logits[token as usize]);
        let logit = if logit.is_finite() {
            logit
        } else {
            f64::NEG_INFINITY
        };
        TokenLogprob {
            token,
            logprob: (logit - largest - total.ln()) as f32,
            rank: finite.iter().filter(|(_, other)| *other > logit).count() as u32 + 1,
        }
    };
    let token = of(token);
    let listed = asked.listed.iter().map(|token| of(*token).logprob).collect();
    let mut order: Vec<(u32, f64)> = finite.clone();
    order.sort_by(|a, b| {
        b.1.partial_cmp(&a.1)
            .expect("finite logits compare")
            .then(a.0.cmp(&b.0))
    });
    order.truncate(asked.n_top);
    let top = order.into_iter().map(|(token, _)| of(token)).collect();
    Some(RowLogprobs { token, top, listed })
}
