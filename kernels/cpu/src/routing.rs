//! Which rows go to which experts, and the gradient of that choice: a few numbers a row, so plain
//! loops on one thread.
//!
//! Numerics: f32; sums over the k choices and over the E experts run from the first on.

use forgelm_kernels_api::{Choice, Routing, RoutingMut};

/// Shapes: `to` written, `probs` [T, E] read, `sums` [E] added to. Returns [E + 1].
pub(crate) fn route(
    to: RoutingMut<'_>,
    probs: &[f32],
    choice: Choice,
    sums: Option<&mut [f64]>,
) -> Vec<usize> {
    let Choice { n_experts: e, n_chosen: k, .. } = choice;
    to.as_routing().check(choice.n_rows(probs.len()), choice);
    let (chosen, places) = (to.chosen.on_host(), to.places.on_host());
    let (rows, weights) = (to.rows.on_host(), to.weights.on_host());
    for (probs, chosen) in probs.chunks_exact(e).zip(chosen.chunks_exact_mut(k)) {
        choose(chosen, probs);
    }
    let starts = starts(chosen, e);
    let mut next = starts.clone();
    let choices = chosen.chunks_exact(k).zip(places.chunks_exact_mut(k));
    for (row, (probs, (chosen, places))) in probs.chunks_exact(e).zip(choices).enumerate() {
        let divisor = divisor(probs, chosen, choice);
        for (&expert, place) in chosen.iter().zip(places) {
            let at = &mut next[expert as usize];
            rows[*at] = row as u32;
            weights[*at] = probs[expert as usize] / divisor;
            *place = *at as u32;
            *at += 1;
        }
    }
    if let Some(sums) = sums {
        assert_eq!(sums.len(), e, "sums is not [E]");
        for row in probs.chunks_exact(e) {
            sums.iter_mut().zip(row).for_each(|(sum, p)| *sum += f64::from(*p));
        }
    }
    starts
}

/// The most probable experts of a row.
fn choose(chosen: &mut [u32], probs: &[f32]) {
    for i in 0..chosen.len() {
        let (taken, rest) = chosen.split_at_mut(i);
        rest[0] = (0..probs.len() as u32)
            .filter(|expert| !taken.contains(expert))
            .reduce(|a, b| if is_less(probs[a as usize], probs[b as usize]) { b } else { a })
            .expect("k is at most E");
    }
}

/// What is not a number is less than what is.
fn is_less(a: f32, b: f32) -> bool {
    a < b || a.is_nan() && !b.is_nan()
}

/// Where the rows of each expert begin.
fn starts(chosen: &[u32], n_experts: usize) -> Vec<usize> {
    let mut starts = vec![0; n_experts + 1];
    for &expert in chosen {
        starts[expert as usize + 1] += 1;
    }
    for expert in 0..n_experts {
        starts[expert + 1] += starts[expert];
    }
    starts
}

/// What the chosen probabilities of a row are divided by.
fn divisor(probs: &[f32], chosen: &[u32], choice: Choice) -> f32 {
    match choice.is_normalized {
        true => chosen.iter().map(|&expert| probs[expert as usize]).sum(),
        false => 1.0,
    }
}

/// Shapes: `dscores` [T, E] written; `probs` [T, E], `dweights` [T k] and `balance` [E] read.
pub(crate) fn backward(
    dscores: &mut [f32],
    routing: Routing<'_>,
    (probs, dweights): (&[f32], &[f32]),
    balance: Option<&[f32]>,
    choice: Choice,
) {
    let Choice { n_experts: e, n_chosen: k, is_normalized } = choice;
    routing.check(choice.n_rows(probs.len()), choice);
    assert_eq!(dscores.len(), probs.len(), "dscores is not [T, E]");
    assert_eq!(dweights.len(), routing.weights.len(), "dweights is not [T k]");
    let (chosen, places) = (routing.chosen.on_host(), routing.places.on_host());
    let weights = routing.weights.on_host();
    let rows = probs.chunks_exact(e).zip(dscores.chunks_exact_mut(e));
    let choices = chosen.chunks_exact(k).zip(places.chunks_exact(k));
    for ((probs, dprobs), (chosen, places)) in rows.zip(choices) {
        match balance {
            Some(balance) => dprobs.copy_from_slice(balance),
            None => dprobs.fill(0.0),
        }
        let divisor = divisor(probs, chosen, choice);
        // Of `p / sum(p)` with respect to p: `(dw - sum(dw w)) / sum(p)`.
        let mean: f32 = match is_normalized {
            true => places.iter().map(|&at| dweights[at as usize] * weights[at as usize]).sum(),
            false => 0.0,
        };
        for (&expert, &at) in chosen.iter().zip(places) {
            dprobs[expert as usize] += (dweights[at as usize] - mean) / divisor;
        }
        let dot: f32 = dprobs.iter().zip(probs).map(|(d, p)| d * p).sum();
        for (d, p) in dprobs.iter_mut().zip(probs) {
            *d = p * (*d - dot);
        }
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "values that are exact")]
mod tests {
    use super::route;
    use forgelm_kernels_api::{Choice, RoutingMut};

    /// Row 0 goes to experts 2 and 0, row 1 to 0 and 1 (a tie: the first), row 2 to 1 and 2.
    #[test]
    fn rows_are_ordered_by_expert() {
        let probs = [0.25, 0.125, 0.625, 0.375, 0.3125, 0.3125, 0.0, 0.75, 0.25];
        for is_normalized in [false, true] {
            let choice = Choice { n_experts: 3, n_chosen: 2, is_normalized };
            let ([mut chosen, mut places, mut rows], mut weights) = ([[9; 6]; 3], [9.0; 6]);
            let to = RoutingMut {
                chosen: (&mut chosen).into(),
                places: (&mut places).into(),
                rows: (&mut rows).into(),
                weights: (&mut weights).into(),
            };
            let mut sums = [1.0, 0.0, 0.0];
            assert_eq!(route(to, &probs, choice, Some(&mut sums)), [0, 2, 4, 6]);
            assert_eq!(chosen, [2, 0, 0, 1, 1, 2]);
            assert_eq!(rows, [0, 1, 1, 2, 0, 2]);
            assert_eq!(places, [4, 0, 1, 2, 3, 5]);
            let of = |p: f32, other: f32| if is_normalized { p / (p + other) } else { p };
            let (first, last) = ([of(0.25, 0.625), of(0.375, 0.3125)], [of(0.625, 0.25), 0.25]);
            assert_eq!(weights[..2], first);
            assert_eq!(weights[4..], last);
            assert_eq!(sums, [1.625, 1.1875, 1.1875]);
        }
    }
}
