//! Which rows go to which experts, and the gradient of that choice.

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
        let size = |expert: u32| match probs[expert as usize] {
            p if p.is_nan() => f32::NEG_INFINITY,
            p => p,
        };
        let mut order: Vec<u32> = (0..e as u32).collect();
        // Stable: of equal ones the first stays first.
        order.sort_by(|&a, &b| size(b).partial_cmp(&size(a)).expect("sizes are numbers"));
        chosen.copy_from_slice(&order[..k]);
    }
    let mut starts = vec![0];
    let mut at = 0;
    for expert in 0..e as u32 {
        for (i, _) in chosen.iter().enumerate().filter(|(_, chosen)| **chosen == expert) {
            let row = i / k;
            let of_row = &chosen[row * k..(row + 1) * k];
            let divisor = divisor(&probs[row * e..(row + 1) * e], of_row, choice);
            rows[at] = row as u32;
            weights[at] = (f64::from(probs[row * e + expert as usize]) / divisor) as f32;
            places[i] = at as u32;
            at += 1;
        }
        starts.push(at);
    }
    if let Some(sums) = sums {
        for (i, &p) in probs.iter().enumerate() {
            sums[i % e] += f64::from(p);
        }
    }
    starts
}

/// What the chosen probabilities of a row are divided by.
fn divisor(probs: &[f32], chosen: &[u32], choice: Choice) -> f64 {
    match choice.is_normalized {
        true => chosen.iter().map(|&expert| f64::from(probs[expert as usize])).sum(),
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
    let t = choice.n_rows(probs.len());
    routing.check(t, choice);
    let (chosen, places) = (routing.chosen.on_host(), routing.places.on_host());
    for row in 0..t {
        let (chosen, places) = (&chosen[row * k..][..k], &places[row * k..][..k]);
        let probs = &probs[row * e..(row + 1) * e];
        let divisor = divisor(probs, chosen, choice);
        let dweight = |j: usize| f64::from(dweights[places[j] as usize]);
        // Of `p / sum(p)` with respect to p: `(dw - sum(dw w)) / sum(p)`.
        let weighted = |j: usize| dweight(j) * f64::from(probs[chosen[j] as usize]) / divisor;
        let mean: f64 = if is_normalized { (0..k).map(weighted).sum() } else { 0.0 };
        let mut dprobs: Vec<f64> =
            (0..e).map(|expert| balance.map_or(0.0, |b| f64::from(b[expert]))).collect();
        for j in 0..k {
            dprobs[chosen[j] as usize] += (dweight(j) - mean) / divisor;
        }
        let dot: f64 = dprobs.iter().zip(probs).map(|(d, &p)| d * f64::from(p)).sum();
        for ((dscore, d), &p) in dscores[row * e..].iter_mut().zip(&dprobs).zip(probs) {
            *dscore = (f64::from(p) * (d - dot)) as f32;
        }
    }
}
