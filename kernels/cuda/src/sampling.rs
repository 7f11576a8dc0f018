//! Tokens from logits on the device.

use forgelm_kernels_api::Format;

use crate::call::{Call, Grid, Numbers, args};
use crate::chunk::int;

/// How tokens are drawn. 0 of `top_k`, 1 of `top_p` and 0 of `min_p` keep all; a temperature of 0
/// takes the largest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) temperature: f32,
    pub(crate) top_k: usize,
    pub(crate) top_p: f32,
    pub(crate) min_p: f32,
}

/// One row's token, or the first token whose logit is not a number.
pub(crate) type Drawn = Result<u32, u32>;

/// Draws a token for each row, from a number in [0, 1) for each. Waits for the device.
///
/// Shapes: `logits` [R, V] read, `uniforms` [R].
pub(crate) fn draw(
    call: &Call<'_>,
    logits: Numbers,
    uniforms: &[f32],
    settings: Settings,
) -> Vec<Drawn> {
    let n_rows = uniforms.len();
    if n_rows == 0 {
        return Vec::new();
    }
    assert!(logits.len.is_multiple_of(n_rows) && logits.len > 0, "logits is not [R, V]");
    assert_eq!(logits.format, Format::F32, "logits are f32");
    let Settings { temperature, top_k, top_p, min_p } = settings;
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
            call.array(uniforms),
            int(logits.len / n_rows),
            if temperature > 0.0 { 1.0 / temperature } else { 0.0 },
            int(top_k),
            top_p,
            min_p
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
pub(crate) fn penalize(call: &Call<'_>, logits: Numbers, seen: &[&[u32]], penalty: f32) {
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

    const ALL: Settings = Settings { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

    /// Tokens of one row of logits, one for each uniform number.
    fn drawn(row: &[f32], uniforms: &[f32], settings: Settings) -> Vec<Drawn> {
        let device = emulated::device(emulated::options());
        let logits = row.repeat(uniforms.len());
        let call = Call::open(&device, "draw");
        let tokens = draw(&call, call.read((&logits).into()), uniforms, settings);
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
        let top_k = Settings { top_k: 2, ..ALL };
        assert_eq!(drawn(&row, &[0.0, 0.428, 0.429, 0.99], top_k), [2, 2, 3, 3].map(Ok));
        // 0.4 is within 0.6, and 0.3 begins within it: 0.2 does not
        let top_p = Settings { top_p: 0.6, ..ALL };
        assert_eq!(drawn(&row, &[0.0, 0.428, 0.429, 0.99], top_p), [2, 2, 3, 3].map(Ok));
        // at least 0.6 of 0.4
        let min_p = Settings { min_p: 0.6, ..ALL };
        assert_eq!(drawn(&row, &[0.0, 0.428, 0.429, 0.99], min_p), [2, 2, 3, 3].map(Ok));
        // squares of the probabilities: 0.01, 0.04, 0.09, 0.16 of 0.3
        let cold = Settings { temperature: 0.5, ..ALL };
        assert_eq!(
            drawn(&row, &[0.03, 0.04, 0.16, 0.17, 0.46, 0.47], cold),
            [Ok(0), Ok(1), Ok(1), Ok(2), Ok(2), Ok(3)]
        );
        let greedy = Settings { temperature: 0.0, ..ALL };
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
