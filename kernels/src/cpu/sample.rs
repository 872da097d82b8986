//! Sampling: temperature, top-k, top-p and min-p of one row of logits.
//!
//! Adjusted logits take the place of the model's, and tokens that are not allowed are taken out. The rest
//! are ordered by logit, largest first, then by id; tokens without a finite logit do not take part. A token
//! weighs `exp((logit - largest) / temperature)` as an integer in units of 2^-40, so that sums are exact
//! whatever their order and no selection algorithm can be seen in the result:
//!
//! ```text
//! top-k   the first k
//! top-p   the fewest first tokens with sum >= ceil(top_p * total), total over what top-k kept
//! min-p   those with logit >= largest + temperature * ln(min_p)
//! draw    the first token with running sum > floor(noise * sum / 2^64)
//! ```
//!
//! All four look at a few likely tokens only. Before anything is ordered, a bound on the logit drops the
//! rest:
//! * top-k: the k-th largest of the maxima of disjoint chunks; k chunks hold a logit as large.
//! * top-p and draw: tokens that weigh at most `(total - goal) / n_vocab` together weigh at most `total -
//!   goal`, so the goal is reached without them.
//!
//! The crossing of a running sum is then found by quickselect, halving as it goes: O(n) in the candidates.

use super::exponential::exp;
use crate::{Adjustment, Allowed, SampleRow};

/// Weight of the likeliest token.
pub(super) const ONE: f64 = (1u64 << 40) as f64;

/// 2^52: adding it leaves the rounded integer in the low bits of the sum.
const ROUNDER: f64 = (1u64 << 52) as f64;

/// Logits per maximum.
const CHUNK: usize = 64;

/// Loops over a whole row, compiled per ISA with the same bits.
#[derive(Clone, Copy)]
pub(crate) struct SampleKernels {
    /// Largest finite logit of each chunk, minus infinity where there is none.
    pub(super) largest_of_chunks: unsafe fn(&[f32], &mut Vec<f32>),
    /// Sum of the weights of all finite logits.
    pub(super) total_weight: unsafe fn(&[f32], Weigher) -> u64,
}

impl SampleKernels {
    /// The variant every machine can run.
    pub(crate) fn scalar() -> SampleKernels {
        SampleKernels {
            largest_of_chunks,
            total_weight,
        }
    }

    /// The variant for 256-bit registers.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn avx2() -> SampleKernels {
        #[target_feature(enable = "avx2")]
        fn wide_largest_of_chunks(logits: &[f32], out: &mut Vec<f32>) {
            largest_of_chunks(logits, out);
        }
        #[target_feature(enable = "avx2")]
        fn wide_total_weight(logits: &[f32], weigher: Weigher) -> u64 {
            total_weight(logits, weigher)
        }
        SampleKernels {
            largest_of_chunks: wide_largest_of_chunks,
            total_weight: wide_total_weight,
        }
    }
}

/// What one thread needs while it samples; grows to the vocabulary once.
#[derive(Default)]
pub(crate) struct SampleSpace {
    /// All logits, where some are adjusted.
    adjusted: Vec<f32>,
    /// The logits of allowed tokens, where not all are.
    allowed: Vec<f32>,
    pub(super) maxima: Vec<f32>,
    pub(super) ordered_maxima: Vec<f32>,
    pub(super) candidates: Vec<Candidate>,
}

impl SampleSpace {
    /// Makes room for rows of `n_vocab` logits.
    pub(crate) fn reserve(&mut self, n_vocab: usize) {
        let n_chunks = n_vocab.div_ceil(CHUNK);
        self.adjusted.clear();
        self.adjusted.reserve(n_vocab);
        self.allowed.clear();
        self.allowed.reserve(n_vocab);
        self.maxima.clear();
        self.maxima.reserve(n_chunks);
        self.ordered_maxima.clear();
        self.ordered_maxima.reserve(n_chunks);
        self.candidates.clear();
        self.candidates.reserve(n_vocab);
    }
}

/// A token that may be drawn. Smaller keys come first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    key: u64,
    weight: u64,
}

impl Candidate {
    fn new(logit: f32, token: usize, weigher: Weigher) -> Candidate {
        // Adding zero makes one of the two zeros, which are equal.
        let bits = (logit + 0.0).to_bits();
        let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        Candidate {
            key: u64::from(!ascending) << 32 | token as u64,
            weight: weigher.weigh(logit),
        }
    }

    /// Smaller is likelier, then smaller by id.
    pub(super) fn key(self) -> u64 {
        self.key
    }

    pub(super) fn token(self) -> u32 {
        self.key as u32
    }
}

/// From logits to weights.
#[derive(Clone, Copy)]
pub(super) struct Weigher {
    pub(super) largest: f32,
    pub(super) temperature: f32,
}

impl Weigher {
    #[inline(always)]
    fn weigh(self, logit: f32) -> u64 {
        let weight = exp((logit - self.largest) / self.temperature);
        (f64::from(weight) * ONE + ROUNDER).to_bits() - ROUNDER.to_bits()
    }

    /// A bound such that every smaller logit weighs at most `weight`.
    fn bound(self, weight: u64) -> f32 {
        if weight == 0 {
            return f32::NEG_INFINITY;
        }
        // The margin covers the error of `exp` (3e-7), the two steps down the rounding of the bound itself.
        let exponent = (weight as f64 / ONE).ln() - 1e-3;
        self.logit_at(exponent).next_down().next_down()
    }

    /// The logit that weighs `exp(exponent)`.
    fn logit_at(self, exponent: f64) -> f32 {
        (f64::from(self.largest) + f64::from(self.temperature) * exponent) as f32
    }
}

#[inline(always)]
fn largest_of_chunks(logits: &[f32], out: &mut Vec<f32>) {
    out.clear();
    let (chunks, rest) = logits.as_chunks::<CHUNK>();
    for chunk in chunks {
        let mut lanes = chunk.map(finite_or_nothing);
        let mut half = CHUNK / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] = larger(lanes[lane], lanes[lane + half]);
            }
            half /= 2;
        }
        out.push(lanes[0]);
    }
    if !rest.is_empty() {
        let finite = rest.iter().map(|logit| finite_or_nothing(*logit));
        out.push(finite.fold(f32::NEG_INFINITY, larger));
    }
}

#[inline(always)]
fn finite_or_nothing(logit: f32) -> f32 {
    if logit.abs() < f32::INFINITY {
        logit
    } else {
        f32::NEG_INFINITY
    }
}

#[inline(always)]
pub(super) fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn total_weight(logits: &[f32], weigher: Weigher) -> u64 {
    let mut total = 0u64;
    for logit in logits {
        let weight = weigher.weigh(*logit);
        total += if logit.abs() < f32::INFINITY { weight } else { 0 };
    }
    total
}

/// The row's token, or `None` where no allowed token has a finite logit.
pub(crate) fn sample_row(
    logits: &[f32],
    row: &SampleRow<'_>,
    kernels: SampleKernels,
    space: &mut SampleSpace,
) -> Option<u32> {
    if row.adjustments.is_empty() {
        return sample_allowed(logits, row, kernels, space);
    }
    let mut adjusted = std::mem::take(&mut space.adjusted);
    adjust(logits, row.adjustments, &mut adjusted);
    let token = sample_allowed(&adjusted, row, kernels, space);
    space.adjusted = adjusted;
    token
}

fn adjust(logits: &[f32], adjustments: &[Adjustment], out: &mut Vec<f32>) {
    out.clear();
    out.extend_from_slice(logits);
    for adjustment in adjustments {
        let logit = &mut out[adjustment.token as usize];
        *logit = adjustment.apply(*logit);
    }
}

fn sample_allowed(
    logits: &[f32],
    row: &SampleRow<'_>,
    kernels: SampleKernels,
    space: &mut SampleSpace,
) -> Option<u32> {
    let mut allowed = std::mem::take(&mut space.allowed);
    allowed.clear();
    let token = match row.allowed {
        Allowed::All => draw(logits, row, kernels, space),
        Allowed::Ids(ids) => {
            // A list in the order of ids keeps the order among equals.
            allowed.extend(ids.iter().map(|id| logits[*id as usize]));
            draw(&allowed, row, kernels, space).map(|idx| ids[idx as usize])
        }
        Allowed::Bits(words) => {
            keep_allowed(logits, words, &mut allowed);
            draw(&allowed, row, kernels, space)
        }
    };
    space.allowed = allowed;
    token
}

/// The logits, minus infinity in place of those whose bit is not set.
fn keep_allowed(logits: &[f32], words: &[u64], out: &mut Vec<f32>) {
    assert!(words.len() * 64 >= logits.len(), "a bit for every token");
    for (chunk, word) in logits.chunks(64).zip(words) {
        match *word {
            0 => out.resize(out.len() + chunk.len(), f32::NEG_INFINITY),
            u64::MAX => out.extend_from_slice(chunk),
            word => out.extend(chunk.iter().enumerate().map(|(bit, logit)| {
                let is_allowed = word >> bit & 1 == 1;
                if is_allowed { *logit } else { f32::NEG_INFINITY }
            })),
        }
    }
}

/// The token of a row of which every token is allowed.
fn draw(logits: &[f32], row: &SampleRow<'_>, kernels: SampleKernels, space: &mut SampleSpace) -> Option<u32> {
    // SAFETY: whoever chose the kernels checked that the machine has their ISA.
    unsafe { (kernels.largest_of_chunks)(logits, &mut space.maxima) };
    let largest = space.maxima.iter().copied().fold(f32::NEG_INFINITY, larger);
    if largest == f32::NEG_INFINITY {
        return None;
    }
    let greedy = row.temperature.is_nan() || row.temperature <= 0.0;
    if greedy {
        return Some(first_equal(logits, &space.maxima, largest));
    }
    let weigher = Weigher {
        largest,
        temperature: row.temperature,
    };
    let n_vocab = logits.len() as u64;
    // SAFETY: as above.
    let total_of_all = || unsafe { (kernels.total_weight)(logits, weigher) };
    let min_p_bound = if row.min_p > 0.0 {
        weigher.logit_at(f64::from(row.min_p).ln()).min(largest)
    } else {
        f32::NEG_INFINITY
    };
    let top_k = row.top_k as usize;
    let mut goal = None;
    let mut drawn_from = None;
    if top_k > 0 && top_k < logits.len() {
        let bound = top_k_bound(&space.maxima, top_k, &mut space.ordered_maxima);
        collect(logits, weigher, bound, space);
        keep_first(&mut space.candidates, top_k);
        goal = (row.top_p < 1.0).then(|| top_p_goal(row.top_p, sum(&space.candidates)));
    } else if row.top_p < 1.0 {
        let total = total_of_all();
        let reached = top_p_goal(row.top_p, total);
        let bound = weigher.bound((total - reached) / n_vocab);
        collect(logits, weigher, bound.max(min_p_bound), space);
        goal = Some(reached);
    } else if row.min_p > 0.0 {
        collect(logits, weigher, min_p_bound, space);
    } else {
        let total = total_of_all();
        let rest = total - drawn(row.noise, total) - 1;
        collect(logits, weigher, weigher.bound(rest / n_vocab), space);
        drawn_from = Some(total);
    }
    let candidates = &mut space.candidates;
    if let Some(goal) = goal {
        let n_kept = crossing(candidates, goal);
        candidates.truncate(n_kept);
    }
    if row.min_p > 0.0 {
        candidates.retain(|candidate| logits[candidate.token() as usize] >= min_p_bound);
    }
    let total = drawn_from.unwrap_or_else(|| sum(candidates));
    let n_passed = crossing(candidates, drawn(row.noise, total) + 1);
    Some(candidates[n_passed - 1].token())
}

/// `floor(noise * total / 2^64)`, below `total`.
fn drawn(noise: u64, total: u64) -> u64 {
    ((u128::from(noise) * u128::from(total)) >> 64) as u64
}

/// The sum that top-p has to reach: at least 1, at most `total`.
fn top_p_goal(top_p: f32, total: u64) -> u64 {
    let goal = (f64::from(top_p) * total as f64).ceil() as u64;
    goal.clamp(1, total)
}

fn sum(candidates: &[Candidate]) -> u64 {
    candidates.iter().map(|candidate| candidate.weight).sum()
}

/// Token of the first logit that equals `largest`.
fn first_equal(logits: &[f32], maxima: &[f32], largest: f32) -> u32 {
    let chunk = maxima.iter().position(|maximum| *maximum == largest);
    let first = chunk.expect("the largest logit is the maximum of some chunk") * CHUNK;
    let inside = logits[first..].iter().position(|logit| *logit == largest);
    (first + inside.expect("the chunk holds its maximum")) as u32
}

/// A bound that at least `top_k` logits reach.
pub(super) fn top_k_bound(maxima: &[f32], top_k: usize, ordered: &mut Vec<f32>) -> f32 {
    if top_k > maxima.len() {
        return f32::NEG_INFINITY;
    }
    ordered.clear();
    ordered.extend_from_slice(maxima);
    let (_, bound, _) = ordered.select_nth_unstable_by(top_k - 1, |a, b| b.total_cmp(a));
    *bound
}

/// Every finite logit that is not below `bound`.
pub(super) fn collect(logits: &[f32], weigher: Weigher, bound: f32, space: &mut SampleSpace) {
    space.candidates.clear();
    for (chunk, maximum) in space.maxima.iter().enumerate() {
        if *maximum < bound {
            continue;
        }
        let first = chunk * CHUNK;
        let last = (first + CHUNK).min(logits.len());
        for (token, logit) in logits[first..last].iter().enumerate() {
            if *logit >= bound && logit.is_finite() {
                space
                    .candidates
                    .push(Candidate::new(*logit, first + token, weigher));
            }
        }
    }
}

/// Drops all but the first `n` candidates of the order.
pub(super) fn keep_first(candidates: &mut Vec<Candidate>, n: usize) {
    if n < candidates.len() {
        candidates.select_nth_unstable_by_key(n - 1, |candidate| candidate.key);
        candidates.truncate(n);
    }
}

/// How many first candidates it takes to weigh `goal`, or all of them where that is not enough. They are
/// moved to the front, the last of them at the end of that.
fn crossing(candidates: &mut [Candidate], goal: u64) -> usize {
    let (mut low, mut high) = (0, candidates.len());
    let mut missing = goal;
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        candidates[low..high].select_nth_unstable_by_key(middle - low, |candidate| candidate.key);
        let left = sum(&candidates[low..middle]);
        if left >= missing {
            high = middle;
        } else {
            missing -= left;
            low = middle;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::random::Random;

    const GREEDY: SampleRow<'static> = SampleRow::GREEDY;

    fn variants() -> Vec<SampleKernels> {
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx2") {
            return vec![SampleKernels::scalar(), SampleKernels::avx2()];
        }
        vec![SampleKernels::scalar()]
    }

    fn sample(logits: &[f32], row: &SampleRow<'_>) -> Option<u32> {
        let mut tokens = variants()
            .into_iter()
            .map(|kernels| sample_row(logits, row, kernels, &mut SampleSpace::default()));
        let first = tokens.next().expect("there is a scalar variant");
        assert!(tokens.all(|token| token == first), "the variants differ");
        first
    }

    /// Tokens in order with the weights that the rules of the module's head keep: everything sorted, nothing
    /// skipped. `weigh` gives the weight of a logit.
    fn kept<W: Copy + PartialOrd + std::iter::Sum<W>>(
        logits: &[f32],
        row: &SampleRow<'_>,
        weigh: impl Fn(f32) -> W,
        goal: impl Fn(W) -> W,
    ) -> Vec<(u32, W)> {
        let mut order: Vec<usize> = (0..logits.len()).filter(|i| logits[*i].is_finite()).collect();
        order.sort_by(|a, b| {
            let by_logit = logits[*b]
                .partial_cmp(&logits[*a])
                .expect("finite logits compare");
            by_logit.then(a.cmp(b))
        });
        let largest = f64::from(logits[order[0]]);
        if row.top_k > 0 {
            order.truncate(row.top_k as usize);
        }
        let weights: Vec<W> = order.iter().map(|i| weigh(logits[*i])).collect();
        if row.top_p < 1.0 {
            let goal = goal(weights.iter().copied().sum());
            let n = (1..order.len()).find(|n| weights[..*n].iter().copied().sum::<W>() >= goal);
            order.truncate(n.unwrap_or(order.len()));
        }
        if row.min_p > 0.0 {
            let bound = (largest + f64::from(row.temperature) * f64::from(row.min_p).ln()) as f32;
            order.retain(|i| logits[*i] >= bound);
        }
        order.into_iter().map(|i| (i as u32, weigh(logits[i]))).collect()
    }

    fn random_case(random: &mut Random) -> (Vec<f32>, SampleRow<'static>) {
        let n_vocab = random.one_of(&[1, 2, 3, 63, 64, 65, 300, 1000]);
        let spread = random.one_of(&[0.0, 0.1, 1.0, 3.0, 20.0]);
        let mut logits: Vec<f32> = (0..n_vocab).map(|_| random.normal() * spread).collect();
        if random.next().is_multiple_of(2) {
            // Many equal logits, zeros of both signs among them.
            logits
                .iter_mut()
                .for_each(|logit| *logit = (*logit * 2.0).round() / 2.0);
        }
        if random.next().is_multiple_of(3) {
            for _ in 0..n_vocab / 2 {
                let token = (random.next() % n_vocab as u64) as usize;
                logits[token] = random.one_of(&[f32::NAN, f32::NEG_INFINITY, f32::INFINITY]);
            }
        }
        let row = SampleRow {
            allowed: Allowed::All,
            adjustments: &[],
            temperature: random.one_of(&[0.01, 0.3, 0.7, 1.0, 2.0, 1e6]),
            top_k: random.one_of(&[0, 0, 1, 2, 40, 64, 65, 5000]),
            top_p: random.one_of(&[1.0, 1.0, 0.95, 0.5, 0.01, 0.0]),
            min_p: random.one_of(&[0.0, 0.0, 0.05, 0.9, 1.0]),
            noise: random.one_of(&[0, u64::MAX, random.0, random.0 / 3]),
        };
        (logits, row)
    }

    #[test]
    fn a_token_is_the_one_that_sorting_everything_gives() {
        let seed = 11;
        let mut random = Random(seed);
        for case in 0..20_000 {
            let (logits, row) = random_case(&mut random);
            let finite = logits.iter().copied().filter(|logit| logit.is_finite());
            let Some(largest) = finite.reduce(f32::max) else {
                assert_eq!(sample(&logits, &row), None, "seed {seed} case {case}");
                continue;
            };
            let weigher = Weigher {
                largest,
                temperature: row.temperature,
            };
            let list = kept(
                &logits,
                &row,
                |logit| weigher.weigh(logit),
                |total| top_p_goal(row.top_p, total),
            );
            let total: u64 = list.iter().map(|(_, weight)| *weight).sum();
            let target = drawn(row.noise, total);
            let mut running = 0;
            let expected = list.iter().find(|(_, weight)| {
                running += *weight;
                running > target
            });
            let expected = expected.map(|(token, _)| *token);
            assert_eq!(sample(&logits, &row), expected, "seed {seed} case {case} {row:?}");
        }
    }

    #[test]
    fn a_token_is_where_the_exact_distribution_has_it() {
        let seed = 12;
        let mut random = Random(seed);
        let mut n_compared = 0;
        for case in 0..20_000 {
            let (logits, row) = random_case(&mut random);
            let Some(token) = sample(&logits, &row) else {
                continue;
            };
            let finite = logits.iter().copied().filter(|logit| logit.is_finite());
            let largest = f64::from(finite.reduce(f32::max).expect("a token was drawn"));
            let temperature = f64::from(row.temperature);
            let weigh = |logit: f32| ((f64::from(logit) - largest) / temperature).exp();
            // Where a nucleus ends within rounding of its goal, either end is right.
            let near = [1.0 - 1e-5, 1.0 + 1e-5].map(|factor| {
                let goal = |total: f64| f64::from(row.top_p) * total * factor;
                kept(&logits, &row, weigh, goal)
            });
            if near[0].len() != near[1].len() {
                continue;
            }
            n_compared += 1;
            let total: f64 = near[0].iter().map(|(_, weight)| weight).sum();
            let at = row.noise as f64 / 2f64.powi(64);
            let mut before = 0.0;
            let mut found = false;
            for (other, weight) in &near[0] {
                let after = before + weight / total;
                found |= *other == token && before - 1e-5 <= at && at <= after + 1e-5;
                before = after;
            }
            assert!(found, "seed {seed} case {case} {row:?} token {token}");
        }
        assert!(n_compared > 15_000, "{n_compared} cases were compared");
    }

    #[test]
    fn greedy_takes_the_smallest_id_among_equals() {
        let mut logits = vec![-1.0; 300];
        logits[17] = f32::NAN;
        logits[3] = f32::NEG_INFINITY;
        assert_eq!(sample(&logits, &GREEDY), Some(0));
        logits[255] = 2.0;
        logits[100] = 2.0;
        assert_eq!(sample(&logits, &GREEDY), Some(100));
        logits[299] = 2.5;
        assert_eq!(sample(&logits, &GREEDY), Some(299));
        assert_eq!(sample(&[-0.0, 0.0], &GREEDY), Some(0));
    }

    #[test]
    fn a_restricted_row_samples_like_one_whose_other_logits_are_not_finite() {
        let seed = 14;
        let mut random = Random(seed);
        for case in 0..20_000 {
            let (logits, row) = random_case(&mut random);
            let one_in = random.one_of(&[1, 2, 5, 100, u64::MAX]);
            let ids: Vec<u32> = (0..logits.len() as u32)
                .filter(|_| random.next().is_multiple_of(one_in))
                .collect();
            // Bits beyond the vocabulary must not matter.
            let mut words = vec![0; logits.len().div_ceil(64)];
            if let Some(last) = words.last_mut().filter(|_| !logits.len().is_multiple_of(64)) {
                *last = u64::MAX << (logits.len() % 64);
            }
            let mut masked = vec![f32::NEG_INFINITY; logits.len()];
            for id in &ids {
                masked[*id as usize] = logits[*id as usize];
                words[*id as usize / 64] |= 1 << (id % 64);
            }
            let expected = sample(&masked, &row);
            let allowed = Allowed::Ids(&ids);
            let by_ids = sample(&logits, &SampleRow { allowed, ..row });
            assert_eq!(by_ids, expected, "seed {seed} case {case} {row:?} ids {ids:?}");
            let allowed = Allowed::Bits(&words);
            let by_bits = sample(&logits, &SampleRow { allowed, ..row });
            assert_eq!(by_bits, expected, "seed {seed} case {case} {row:?} ids {ids:?}");
        }
    }

    #[test]
    fn an_adjusted_row_samples_like_one_with_those_logits() {
        let seed = 15;
        let mut random = Random(seed);
        for case in 0..20_000 {
            let (logits, row) = random_case(&mut random);
            let mut adjustments = Vec::new();
            let mut adjusted = logits.clone();
            for token in 0..logits.len() as u32 {
                if !random.next().is_multiple_of(3) {
                    continue;
                }
                let divisor = random.one_of(&[1.0, 1.0, 1.3, 0.5]);
                let shift = random.one_of(&[0.0, -1.5, 100.0, f32::NEG_INFINITY]);
                adjustments.push(Adjustment {
                    token,
                    divisor,
                    shift,
                });
                let logit = &mut adjusted[token as usize];
                *logit = if *logit > 0.0 {
                    *logit / divisor
                } else {
                    *logit * divisor
                } + shift;
            }
            let adjustments = adjustments.as_slice();
            let ids: Vec<u32> = (0..logits.len() as u32).filter(|id| id % 5 != 1).collect();
            for allowed in [Allowed::All, Allowed::Ids(&ids)] {
                let expected = sample(&adjusted, &SampleRow { allowed, ..row });
                let changed = SampleRow {
                    allowed,
                    adjustments,
                    ..row
                };
                assert_eq!(
                    sample(&logits, &changed),
                    expected,
                    "seed {seed} case {case} {row:?}"
                );
            }
        }
    }

    #[test]
    fn a_row_without_a_finite_logit_has_no_token() {
        for temperature in [0.0, 1.0] {
            let row = SampleRow {
                temperature,
                ..GREEDY
            };
            for logit in [f32::NAN, f32::NEG_INFINITY, f32::INFINITY] {
                assert_eq!(sample(&[logit; 130], &row), None);
            }
            assert_eq!(sample(&[], &row), None);
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        let seed = 13;
        let mut random = Random(seed);
        let logits: Vec<f32> = (0..40).map(|_| random.normal()).collect();
        let n_draws = 40_000;
        for (top_k, top_p) in [(0, 1.0), (12, 1.0), (0, 0.8)] {
            let mut row = SampleRow {
                temperature: 0.8,
                top_k,
                top_p,
                ..GREEDY
            };
            let weigh = |logit: f32| (f64::from(logit) / 0.8).exp();
            let list = kept(&logits, &row, weigh, |total| f64::from(top_p) * total);
            let total: f64 = list.iter().map(|(_, weight)| weight).sum();
            let mut counts = vec![0; logits.len()];
            for _ in 0..n_draws {
                row.noise = random.next();
                counts[sample(&logits, &row).expect("all are finite") as usize] += 1;
            }
            let drawn: usize = list.iter().map(|(token, _)| counts[*token as usize]).sum();
            assert_eq!(drawn, n_draws, "nothing outside the kept set is drawn");
            let square: f64 = list
                .iter()
                .map(|(token, weight)| {
                    let expected = weight / total * n_draws as f64;
                    (counts[*token as usize] as f64 - expected).powi(2) / expected
                })
                .sum();
            let freedom = (list.len() - 1) as f64;
            let limit = freedom + 4.0 * (2.0 * freedom).sqrt();
            assert!(
                square < limit,
                "seed {seed}: chi-square {square:.1} of at most {limit:.1}"
            );
        }
    }
}
