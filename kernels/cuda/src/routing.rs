//! Which rows go to which experts, and the gradient of that choice, without the host: what
//! core/model's routing does.
//!
//! Whole numbers of 32 bits are no format of the interface: arrays of them are bytes here.

use forgelm_kernels_api::Format;

use crate::call::{Call, Grid, Numbers, args};
use crate::chunk::{blocks, int, warps};

/// Rows of a block of threads.
const BLOCK_ROWS: usize = 64;
/// More do not fit into the shared memory that every kernel has.
const CHOICES_MAX: usize = 128;
const EXPERTS_MAX: usize = 8192;

/// Sizes of a routing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// T.
    pub(crate) n_rows: usize,
    /// E.
    pub(crate) n_experts: usize,
    /// k.
    pub(crate) n_chosen: usize,
    /// Whether the weights of a row are divided by their sum.
    pub(crate) normalize: bool,
}

/// A routing on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Routing {
    /// Experts of each row by falling probability [T, k], whole numbers.
    pub(crate) chosen: Numbers,
    /// What the probabilities of a row are divided by [T], f32.
    pub(crate) divisors: Numbers,
    /// Rows by expert, and within an expert in order [T k], whole numbers.
    pub(crate) rows: Numbers,
    /// Factor on the expert's result [T k], by expert, f32.
    pub(crate) weights: Numbers,
    /// Place of each choice among `rows` [T, k], whole numbers.
    pub(crate) places: Numbers,
    /// Where the rows of each expert begin [E + 1], whole numbers.
    pub(crate) starts: Numbers,
}

/// Chooses the k most probable experts of each row, of equal ones the first, and orders the rows.
///
/// Shapes: `probs` [T, E] read, `to` written.
#[cfg_attr(not(test), expect(dead_code, reason = "the interface routes on the host so far"))]
pub(crate) fn choose(call: &Call<'_>, to: &Routing, probs: Numbers, shape: Shape) {
    let Shape { n_rows: t, n_experts: e, n_chosen: k, normalize } = shape;
    check(to, probs, shape);
    let n_blocks = t.div_ceil(BLOCK_ROWS);
    let counts = call.scratch(Format::U8, n_blocks * e * size_of::<u32>());
    let of_rows = Grid { shared_bytes: BLOCK_ROWS * k * size_of::<u32>(), ..blocks(n_blocks) };
    let mut arguments = args![
        to.chosen.address,
        to.divisors.address,
        counts.address,
        probs.address,
        int(t),
        int(e),
        int(k),
        i32::from(normalize)
    ];
    call.launch("routing_choose", of_rows, &mut arguments);
    let of_experts = Grid { shared_bytes: e * size_of::<u32>(), ..blocks(1) };
    let mut arguments = args![counts.address, to.starts.address, int(n_blocks), int(e)];
    call.launch("routing_starts", of_experts, &mut arguments);
    let mut arguments = args![
        to.rows.address,
        to.weights.address,
        to.places.address,
        counts.address,
        to.chosen.address,
        to.divisors.address,
        probs.address,
        int(t),
        int(e),
        int(k)
    ];
    call.launch("routing_place", of_rows, &mut arguments);
}

/// From the gradient of the weights to that of the router's scores.
///
/// Shapes: `dscores` [T, E] written, `probs` [T, E], `dweights` [T k] by expert and `balance` [E]
/// read: what the balance loss adds to the gradient of each probability.
#[cfg_attr(not(test), expect(dead_code, reason = "the interface routes on the host so far"))]
pub(crate) fn backward(
    call: &Call<'_>,
    dscores: Numbers,
    routing: &Routing,
    (probs, dweights): (Numbers, Numbers),
    balance: Option<Numbers>,
    shape: Shape,
) {
    let Shape { n_rows: t, n_experts: e, n_chosen: k, normalize } = shape;
    check(routing, probs, shape);
    assert_eq!(dscores.len, probs.len, "dscores is not [T, E]");
    assert_eq!(dweights.len, t * k, "dweights is not [T k]");
    assert!(balance.is_none_or(|balance| balance.len == e), "balance is not [E]");
    let mut arguments = args![
        dscores.address,
        probs.address,
        dweights.address,
        routing.weights.address,
        routing.chosen.address,
        routing.places.address,
        routing.divisors.address,
        balance.map_or(0, |balance| balance.address),
        int(t),
        int(e),
        int(k),
        i32::from(normalize)
    ];
    call.launch("routing_backward", warps(t), &mut arguments);
}

fn check(routing: &Routing, probs: Numbers, shape: Shape) {
    let Shape { n_rows: t, n_experts: e, n_chosen: k, .. } = shape;
    assert!(k <= e && k <= CHOICES_MAX && e <= EXPERTS_MAX, "{k} of {e} experts");
    assert_eq!((probs.len, probs.format), (t * e, Format::F32), "probs is not [T, E]");
    for (name, numbers, n) in [
        ("chosen", routing.chosen, t * k),
        ("rows", routing.rows, t * k),
        ("places", routing.places, t * k),
        ("starts", routing.starts, e + 1),
    ] {
        assert_eq!(numbers.format, Format::U8, "{name} is of whole numbers");
        assert_eq!(numbers.len, n * size_of::<u32>(), "{name} has another length");
    }
    for (name, numbers, n) in
        [("divisors", routing.divisors, t), ("weights", routing.weights, t * k)]
    {
        assert_eq!((numbers.len, numbers.format), (n, Format::F32), "{name}");
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "values that are exact")]
mod tests {
    use super::*;
    use crate::trial::{in_all_orders, numbers, put};

    fn whole(call: &Call<'_>, n: usize) -> Numbers {
        call.scratch(Format::U8, n * size_of::<u32>())
    }

    fn route(call: &Call<'_>, probs: Numbers, shape: Shape) -> Routing {
        let (t, k) = (shape.n_rows, shape.n_chosen);
        let routing = Routing {
            chosen: whole(call, t * k),
            divisors: call.scratch(Format::F32, t),
            rows: whole(call, t * k),
            weights: call.scratch(Format::F32, t * k),
            places: whole(call, t * k),
            starts: whole(call, shape.n_experts + 1),
        };
        choose(call, &routing, probs, shape);
        routing
    }

    /// The choices of each row, by their definition.
    fn expected_choices(probs: &[f32], shape: Shape) -> Vec<u32> {
        let mut chosen = Vec::new();
        for row in probs.chunks_exact(shape.n_experts) {
            let mut order: Vec<u32> = (0..shape.n_experts as u32).collect();
            // Stable: of equal ones the first stays first.
            order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
            chosen.extend_from_slice(&order[..shape.n_chosen]);
        }
        chosen
    }

    #[test]
    fn rows_are_ordered_by_expert_and_within_an_expert_by_row() {
        for (n_rows, n_experts, n_chosen) in [(1, 1, 1), (3, 3, 2), (130, 60, 4), (70, 300, 7)] {
            for normalize in [false, true] {
                let shape = Shape { n_rows, n_experts, n_chosen, normalize };
                // 8 bits: among 60 there are equal ones.
                let probs = numbers(4, n_rows * n_experts);
                let probs: Vec<f32> = probs.iter().map(|p| p.abs() + 0.125).collect();
                let chosen = expected_choices(&probs, shape);
                let found = in_all_orders(|call| {
                    let routing = route(call, put(call, &probs, Format::F32, false), shape);
                    let whole = [routing.chosen, routing.rows, routing.places, routing.starts];
                    (whole.map(|n| call.fetch::<u32>(n)), call.fetch::<f32>(routing.weights))
                });
                let Some(([found_chosen, rows, places, starts], weights)) = found else { return };
                assert_eq!(found_chosen, chosen);
                let mut at = 0;
                for expert in 0..n_experts as u32 {
                    assert_eq!(starts[expert as usize], at);
                    for (i, _) in chosen.iter().enumerate().filter(|(_, e)| **e == expert) {
                        let (row, place) = (i / n_chosen, at as usize);
                        let p = |expert: u32| probs[row * n_experts + expert as usize];
                        let of_row = &chosen[row * n_chosen..][..n_chosen];
                        let sum: f32 = of_row.iter().map(|&expert| p(expert)).sum();
                        let divisor = if normalize { sum } else { 1.0 };
                        assert_eq!((rows[place], places[i]), (row as u32, at));
                        assert!(weights[place] == p(expert) / divisor, "the weight of {row}");
                        at += 1;
                    }
                }
                assert_eq!(starts[n_experts], at);
            }
        }
    }

    #[test]
    fn what_is_not_a_number_is_chosen_last_and_once() {
        let shape = Shape { n_rows: 3, n_experts: 4, n_chosen: 3, normalize: false };
        let nan = f32::NAN;
        let probs = [nan, nan, nan, nan, 0.1, nan, 0.3, 0.2, nan, 0.0, nan, nan];
        let found = in_all_orders(|call| {
            let routing = route(call, put(call, &probs, Format::F32, false), shape);
            call.fetch::<u32>(routing.chosen)
        });
        assert!(found.is_none_or(|found| found == [0, 1, 2, 2, 3, 0, 1, 0, 2]));
    }

    /// Of `sum(c w(softmax(s)))` with respect to s, in f64.
    fn expected_gradient(probs: &[f32], chosen: &[u32], c: &[f64], normalize: bool) -> Vec<f64> {
        let p: Vec<f64> = probs.iter().map(|&p| f64::from(p)).collect();
        let sum: f64 = chosen.iter().map(|&e| p[e as usize]).sum();
        let mean: f64 = chosen.iter().zip(c).map(|(&e, c)| c * p[e as usize] / sum).sum();
        let mut dp = vec![0.0; p.len()];
        for (&expert, c) in chosen.iter().zip(c) {
            dp[expert as usize] = if normalize { (c - mean) / sum } else { *c };
        }
        let dot: f64 = dp.iter().zip(&p).map(|(d, p)| d * p).sum();
        dp.iter().zip(&p).map(|(d, p)| p * (d - dot)).collect()
    }

    #[test]
    fn the_gradient_goes_through_choice_sum_and_softmax() {
        let (n_rows, n_experts, n_chosen) = (70, 40, 4);
        let probs = numbers(5, n_rows * n_experts);
        let probs: Vec<f32> = probs.iter().map(|p| (p.abs() + 0.1) / 40.0).collect();
        let dweights = numbers(6, n_rows * n_chosen);
        for normalize in [false, true] {
            let shape = Shape { n_rows, n_experts, n_chosen, normalize };
            let found = in_all_orders(|call| {
                let on_device = put(call, &probs, Format::F32, false);
                let routing = route(call, on_device, shape);
                let dscores = call.scratch(Format::F32, probs.len());
                let given = (on_device, put(call, &dweights, Format::F32, false));
                backward(call, dscores, &routing, given, None, shape);
                (call.fetch::<f32>(dscores), call.fetch::<u32>(routing.places))
            });
            let Some((dscores, places)) = found else { return };
            let chosen = expected_choices(&probs, shape);
            for row in 0..n_rows {
                let of_row = row * n_chosen..(row + 1) * n_chosen;
                let c: Vec<f64> = places[of_row.clone()]
                    .iter()
                    .map(|&place| f64::from(dweights[place as usize]))
                    .collect();
                let cells = row * n_experts..(row + 1) * n_experts;
                let probs = &probs[cells.clone()];
                let expected = expected_gradient(probs, &chosen[of_row], &c, normalize);
                // Terms are below 1 / sum < 1000, and there are at most E + k roundings of each.
                let bound = 1000.0 * 44.0 / 16_777_216.0;
                for ((found, expected), p) in dscores[cells].iter().zip(expected).zip(probs) {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error <= bound * f64::from(*p), "row {row}: {found} {expected}");
                }
            }
        }
    }
}
