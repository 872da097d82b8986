//! Drawing on the device against the reference: the same token for the same noise.

use crate::emulated::Emulated;
use arbora_kernels::reference::ReferenceBackend;
use arbora_kernels::{Adjustment, Allowed, Answers, Backend, LogprobRow, SampleRow, Scored};

use crate::support::{Random, answers};
use crate::tensor;

fn draw<B: Backend>(
    backend: &mut B,
    logits: &[f32],
    rows: &[SampleRow<'_>],
    wanted: &[LogprobRow],
) -> Answers {
    let logits = tensor(backend, logits.len() / rows.len(), logits);
    answers(backend, &logits, (rows, wanted))
}

/// Few distinct values, so that there are ties; some tokens are ruled out.
fn random_logits(n: usize, random: &mut Random) -> Vec<f32> {
    let logit = |_| match random.below(20) {
        0 => f32::NEG_INFINITY,
        1 => f32::NAN,
        _ => (random.normal() * 8.0).round() / 4.0,
    };
    (0..n).map(logit).collect()
}

#[test]
fn tokens_are_drawn_as_the_reference_draws_them() {
    for n_vocab in [1usize, 200] {
        let mut random = Random(n_vocab as u64);
        let every_third: Vec<u32> = (0..n_vocab as u32).step_by(3).collect();
        let some_bits: Vec<u64> = (0..n_vocab.div_ceil(64))
            .map(|_| random.bits() << 32 ^ random.bits())
            .collect();
        let adjustment = |token: u32| Adjustment {
            token,
            divisor: 1.25,
            shift: [0.5, -2.0, f32::NEG_INFINITY][token as usize % 3],
        };
        let adjustments: Vec<Adjustment> = (1..n_vocab as u32).step_by(4).map(adjustment).collect();
        let (mut rows, mut logits) = (Vec::new(), Vec::new());
        for temperature in [0.0, 0.8] {
            for (top_k, top_p, min_p) in [
                (0, 1.0, 0.0),
                (1, 1.0, 0.0),
                (5, 1.0, 0.0),
                (0, 0.7, 0.0),
                (0, 0.0, 0.0),
                (0, 1.0, 0.1),
                (40, 0.9, 0.05),
            ] {
                for allowed in [
                    Allowed::All,
                    Allowed::Ids(&every_third),
                    Allowed::Bits(&some_bits),
                ] {
                    let adjustments = if rows.len() % 2 == 1 {
                        &adjustments[..]
                    } else {
                        &[]
                    };
                    let noise = random.bits() << 16 | random.bits() & 0xffff;
                    rows.push(SampleRow {
                        allowed,
                        adjustments,
                        temperature,
                        top_k,
                        top_p,
                        min_p,
                        noise,
                    });
                    logits.extend(random_logits(n_vocab, &mut random));
                }
            }
        }
        logits[..n_vocab].fill(f32::NEG_INFINITY);
        let expected = draw(&mut ReferenceBackend::new(), &logits, &rows, &[]);
        let Some(device) = Emulated::new(3) else { return };
        let mut backend = device.backend().expect("the emulated device works");
        let actual = draw(&mut backend, &logits, &rows, &[]);
        assert!(!backend.is_lost(), "{}", device.diagnosis(&backend));
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(actual.tokens[i], expected.tokens[i], "{n_vocab} tokens, {row:?}");
        }
    }
}

#[test]
fn noise_at_both_ends_draws_the_first_and_the_last_token() {
    let logits = [1.0, 3.0, -2.0, f32::NAN, 3.0];
    let row = |noise| SampleRow {
        temperature: 1.0,
        noise,
        ..SampleRow::GREEDY
    };
    let Some(device) = Emulated::new(3) else { return };
    let mut backend = device.backend().expect("the emulated device works");
    let logits = [logits, logits].concat();
    let drawn = draw(&mut backend, &logits, &[row(0), row(u64::MAX)], &[]);
    assert_eq!(drawn.tokens, [Some(1), Some(2)]);
}

#[test]
fn log_probabilities_are_those_of_the_reference() {
    let n_vocab = 70;
    let mut random = Random(11);
    let mut logits = random_logits(6 * n_vocab, &mut random);
    logits[..n_vocab].fill(f32::NAN);
    let asked = |row| LogprobRow {
        row,
        token: if row % 2 == 0 {
            Scored::Drawn
        } else {
            Scored::Token(7)
        },
        n_top: 5,
        listed: vec![3, 60].into(),
    };
    let wanted: Vec<LogprobRow> = [0, 1, 4, 4, 5].map(asked).to_vec();
    let rows = [SampleRow::GREEDY; 6];
    let expected = draw(&mut ReferenceBackend::new(), &logits, &rows, &wanted);
    let Some(device) = Emulated::new(3) else { return };
    let actual = draw(
        &mut device.backend().expect("the emulated device works"),
        &logits,
        &rows,
        &wanted,
    );
    assert_eq!(actual, expected);
}
