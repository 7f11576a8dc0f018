//! Choosing experts, ordering rows by them, and the gradient of the choice.

use forgelm_kernels_api::{Choice, Ops, Routing, RoutingMut};
use forgelm_kernels_reference::Reference;

use crate::{Outcome, U, assert_within, bits_of, indices, numbers};

/// (T, E, k): one expert, all experts, a part of a block of rows, more experts than threads.
pub const CASES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (3, 3, 3), (64, 8, 2), (130, 60, 4), (70, 128, 8), (5, 300, 7)];

/// All of them; weights as they are and divided by their sum. Last what is not a number.
#[must_use]
pub fn compare(library: &dyn Ops) -> Vec<Outcome> {
    let cases = CASES.iter().enumerate().flat_map(|(i, &(t, n_experts, n_chosen))| {
        [false, true].map(|is_normalized| {
            routed(library, i as u32, t, Choice { n_experts, n_chosen, is_normalized })
        })
    });
    cases.chain([not_numbers(library)]).collect()
}

/// What `Ops::route` writes and returns.
#[derive(PartialEq)]
struct Routed {
    chosen: Vec<u32>,
    places: Vec<u32>,
    rows: Vec<u32>,
    weights: Vec<f32>,
    starts: Vec<usize>,
}

impl Routed {
    fn new(ops: &dyn Ops, probs: &[f32], choice: Choice, sums: Option<&mut [f64]>) -> Self {
        let n = probs.len() / choice.n_experts * choice.n_chosen;
        // What was there before must not matter.
        let [mut chosen, mut places, mut rows] = [(); 3].map(|()| vec![u32::MAX; n]);
        let mut weights = vec![f32::NAN; n];
        let to = RoutingMut {
            chosen: (&mut chosen).into(),
            places: (&mut places).into(),
            rows: (&mut rows).into(),
            weights: (&mut weights).into(),
        };
        let starts = ops.route(to, probs.into(), choice, sums);
        Self { chosen, places, rows, weights, starts }
    }

    fn routing(&self) -> Routing<'_> {
        Routing {
            chosen: (&self.chosen).into(),
            places: (&self.places).into(),
            rows: (&self.rows).into(),
            weights: (&self.weights).into(),
        }
    }

    /// Everything that is exact.
    fn indices(&self) -> Vec<u32> {
        let starts = self.starts.iter().map(|&start| start as u32);
        let arrays = [&self.chosen, &self.places, &self.rows];
        arrays.into_iter().flatten().copied().chain(starts).collect()
    }
}

fn routed(library: &dyn Ops, seed: u32, t: usize, choice: Choice) -> Outcome {
    let Choice { n_experts: e, n_chosen: k, is_normalized } = choice;
    let name = format!("routing T={t} E={e} k={k} is_normalized={is_normalized}");
    // Whole numbers of 7 bits, so that some of a row are equal; their sum is about 1.
    let probs: Vec<f32> = indices(seed + 700, t * e, 128)
        .iter()
        .map(|&p| (p as f32 + 1.0) / (64.0 * e as f32))
        .collect();
    let (dweights, balance) = (numbers(seed + 800, t * k), numbers(seed + 900, e));
    let run = |ops: &dyn Ops| {
        let mut sums = vec![1.0; e];
        let routed = Routed::new(ops, &probs, choice, Some(&mut sums));
        assert!(
            routed == Routed::new(ops, &probs, choice, None),
            "{name}: another routing where sums are not asked for"
        );
        let gradient = |balance: Option<&[f32]>| {
            let mut dscores = vec![f32::NAN; t * e];
            let (balance, dweights) = (balance.map(Into::into), (&dweights).into());
            let (to, probs) = ((&mut dscores).into(), (&probs).into());
            ops.route_backward(to, routed.routing(), probs, dweights, balance, choice);
            dscores
        };
        let gradients = [gradient(None), gradient(Some(&balance))];
        (routed, sums, gradients)
    };
    let (got, want) = (run(library), run(&Reference));
    assert!(got.0.indices() == want.0.indices(), "{name}: the order of rows is exact");

    // A sum of k terms and a quotient.
    let of_weights = (k + 2) as f64 * U;
    assert_within(&format!("{name}: weights"), &got.0.weights, &want.0.weights, |i| {
        of_weights * f64::from(want.0.weights[i])
    });
    // In f64, in any order.
    for (expert, (got, want)) in got.1.iter().zip(&want.1).enumerate() {
        let bound = (t + 2) as f64 * f64::EPSILON * want;
        assert!((got - want).abs() <= bound, "{name}: the sum of expert {expert} is {got}");
    }
    for (i, balance) in [None, Some(&balance)].into_iter().enumerate() {
        let sizes = sizes_of_terms(&want.0, &probs, &dweights, balance, choice);
        // A sum over k within one over E, and a few products and quotients.
        let n_roundings = (e + 2 * k + 10) as f64;
        let what = format!("{name}: dscores, {}", ["plain", "with balance"][i]);
        assert_within(&what, &got.2[i], &want.2[i], |at| n_roundings * U * sizes[at]);
    }
    let mut bits = got.0.indices();
    bits.extend(bits_of(&[&got.0.weights, &got.2[0], &got.2[1]]));
    bits.extend(got.1.iter().flat_map(|sum| [sum.to_bits() as u32, (sum.to_bits() >> 32) as u32]));
    Outcome { name, bits }
}

/// What `dscores` would be if no term canceled another [T, E].
fn sizes_of_terms(
    routed: &Routed,
    probs: &[f32],
    dweights: &[f32],
    balance: Option<&Vec<f32>>,
    choice: Choice,
) -> Vec<f64> {
    let Choice { n_experts: e, n_chosen: k, is_normalized } = choice;
    let mut sizes = Vec::with_capacity(probs.len());
    for (row, probs) in probs.chunks_exact(e).enumerate() {
        let (chosen, places) = (&routed.chosen[row * k..][..k], &routed.places[row * k..][..k]);
        let p = |j: usize| f64::from(probs[chosen[j] as usize]);
        let dweight = |j: usize| f64::from(dweights[places[j] as usize].abs());
        let divisor = if is_normalized { (0..k).map(p).sum() } else { 1.0 };
        let weighted = (0..k).map(|j| dweight(j) * p(j) / divisor).sum();
        let mean: f64 = if is_normalized { weighted } else { 0.0 };
        let mut dprobs: Vec<f64> =
            (0..e).map(|expert| balance.map_or(0.0, |b| f64::from(b[expert].abs()))).collect();
        for j in 0..k {
            dprobs[chosen[j] as usize] += (dweight(j) + mean) / divisor;
        }
        let dot: f64 = dprobs.iter().zip(probs).map(|(d, &p)| d * f64::from(p)).sum();
        sizes.extend(dprobs.iter().zip(probs).map(|(d, &p)| f64::from(p) * (d + dot)));
    }
    sizes
}

/// Each row still goes to as many different experts: what is not a number comes last.
fn not_numbers(library: &dyn Ops) -> Outcome {
    let choice = Choice { n_experts: 4, n_chosen: 3, is_normalized: false };
    let nan = f32::NAN;
    let probs = [nan, nan, nan, nan, 0.1, nan, 0.3, 0.2, nan, 0.0, nan, nan];
    let routed = Routed::new(library, &probs, choice, None);
    assert_eq!(routed.chosen, [0, 1, 2, 2, 3, 0, 1, 0, 2]);
    assert!(routed.indices() == Routed::new(&Reference, &probs, choice, None).indices());
    Outcome { name: "routing of what is not a number".to_owned(), bits: routed.indices() }
}
