//! Tokens from logits on the device.

use forgelm_kernels_api::{Draw, DrawRule, Drawn, Format};

use crate::call::{Call, Grid, Numbers, args};
use crate::chunk::int;

/// Draws a token for each row. Waits for the device.
///
/// Shapes: `logits` [R, V] changed by the penalty, `draws` [R].
pub(crate) fn draw(
    call: &Call<'_>,
    logits: Numbers,
    draws: &[Draw<'_>],
    rule: DrawRule,
) -> Vec<Drawn> {
    let n_rows = draws.len();
    if n_rows == 0 {
        return Vec::new();
    }
    assert!(logits.len.is_multiple_of(n_rows) && logits.len > 0, "logits is not [R, V]");
    assert_eq!(logits.format, Format::F32, "logits are f32");
    let DrawRule { repetition_penalty, temperature, top_k, top_p } = rule;
    if (repetition_penalty - 1.0).abs() >= f32::EPSILON {
        let seen: Vec<&[u32]> = draws.iter().map(|draw| draw.seen).collect();
        penalize(call, logits, &seen, repetition_penalty);
    }
    let uniforms: Vec<f32> = draws.iter().map(|draw| draw.uniform).collect();
    // Tokens, then the tokens that are not numbers: one array comes back.
    let results = call.scratch(Format::U8, 2 * n_rows * size_of::<u32>());
    let nans = results.address + (n_rows * size_of::<u32>()) as u64;
    let grid = Grid { blocks: [n_rows, 1, 1], threads: 256, shared_bytes: 0 };
    call.launch(
        "sampling_draw",
        grid,
        &mut args![
            results.address,
            nans,
            logits.address,
            call.array(&uniforms),
            int(logits.len / n_rows),
            if temperature > 0.0 { 1.0 / temperature } else { 0.0 },
            int(top_k),
            top_p
        ],
    );
    let results: Vec<u32> = call.fetch(results);
    let (tokens, nans) = results.split_at(n_rows);
    let pairs = tokens.iter().zip(nans);
    pairs.map(|(&token, &nan)| if nan == u32::MAX { Ok(token) } else { Err(nan) }).collect()
}

/// Divides logits of tokens that were seen by a penalty when they are positive, and multiplies them
/// by it when not.
///
/// Shapes: `logits` [R, V] changed; `seen` [R], the distinct tokens of each row, below V.
fn penalize(call: &Call<'_>, logits: Numbers, seen: &[&[u32]], penalty: f32) {
    if seen.is_empty() {
        return;
    }
    assert!(logits.len.is_multiple_of(seen.len()), "logits is not [R, V]");
    let v = logits.len / seen.len();
    assert!(seen.iter().all(|row| row.iter().all(|&t| (t as usize) < v)), "no such token");
    let tokens: Vec<u32> = seen.concat();
    let mut starts = vec![0];
    starts.extend(seen.iter().scan(0, |end, row| {
        *end += row.len() as u32;
        Some(*end)
    }));
    let grid = Grid { blocks: [seen.len(), 1, 1], threads: 256, shared_bytes: 0 };
    call.launch(
        "sampling_penalize",
        grid,
        &mut args![logits.address, call.indices(&tokens), call.indices(&starts), int(v), penalty],
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Before;
    use crate::emulated;

    const ALL: DrawRule =
        DrawRule { repetition_penalty: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0 };

    /// Tokens of one row of logits, one for each uniform number.
    fn drawn(row: &[f32], uniforms: &[f32], rule: DrawRule) -> Vec<Drawn> {
        let device = emulated::device(emulated::options());
        let logits = row.repeat(uniforms.len());
        let draws: Vec<Draw<'_>> =
            uniforms.iter().map(|&uniform| Draw { uniform, seen: &[] }).collect();
        let call = Call::open(&device, "draw");
        let tokens = draw(&call, call.read((&logits).into()), &draws, rule);
        call.close();
        tokens
    }

    fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn a_number_falls_on_a_token_by_its_probability() {
        let Some(_alone) = emulated::alone() else { return };
        let row = logits(&[0.1, 0.2, 0.3, 0.4]);
        let uniforms = [0.0, 0.09, 0.11, 0.29, 0.31, 0.59, 0.61, 0.999_999];
        let want = [0, 0, 1, 1, 2, 2, 3, 3].map(Ok);
        assert_eq!(drawn(&row, &uniforms, ALL), want);
        // of the two largest, 0.3 and 0.4: the border is at 3/7
        let top_k = DrawRule { top_k: 2, ..ALL };
        assert_eq!(drawn(&row, &[0.0, 0.428, 0.429, 0.99], top_k), [2, 2, 3, 3].map(Ok));
        // 0.4 is within 0.6, and 0.3 begins within it: 0.2 does not
        let top_p = DrawRule { top_p: 0.6, ..ALL };
        assert_eq!(drawn(&row, &[0.0, 0.428, 0.429, 0.99], top_p), [2, 2, 3, 3].map(Ok));
        // squares of the probabilities: 0.01, 0.04, 0.09, 0.16 of 0.3
        let cold = DrawRule { temperature: 0.5, ..ALL };
        assert_eq!(
            drawn(&row, &[0.03, 0.04, 0.16, 0.17, 0.46, 0.47], cold),
            [Ok(0), Ok(1), Ok(1), Ok(2), Ok(2), Ok(3)]
        );
        let greedy = DrawRule { temperature: 0.0, ..ALL };
        assert_eq!(drawn(&[1.0, 3.0, 3.0, 2.0], &[0.9], greedy), [Ok(1)]);
    }

    #[test]
    fn a_logit_that_is_not_a_number_is_told() {
        let Some(_alone) = emulated::alone() else { return };
        assert_eq!(drawn(&[1.0, 2.0, f32::NAN, f32::NAN], &[0.5], ALL), [Err(2)]);
    }

    #[test]
    fn tokens_that_were_seen_become_less_likely() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let mut logits = vec![1.0, -2.0, 3.0, 4.0, -1.0, 0.0];
        let call = Call::open(&device, "penalize");
        let numbers = call.write((&mut logits).into(), Before::Needed);
        penalize(&call, numbers, &[&[0, 1], &[]], 2.0);
        call.close();
        assert_eq!(logits, [0.5, -4.0, 3.0, 4.0, -1.0, 0.0]);
    }
}
