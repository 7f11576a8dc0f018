//! Attention: forward, backward, cached.

use forgelm_kernels_api::{AttentionShape, Compute, Ops, Segment};
use forgelm_kernels_reference::Reference;

use crate::{Outcome, U, assert_within, bits_of, numbers};

/// One case: heads, head size, mask, and the lengths of the segments.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// (H, H_kv, D).
    pub heads: (usize, usize, usize),
    /// As in [`AttentionShape`].
    pub window: Option<usize>,
    /// As in [`AttentionShape`].
    pub soft_cap: Option<f32>,
    /// Lengths.
    pub segments: &'static [usize],
}

const fn case(
    heads: (usize, usize, usize),
    window: Option<usize>,
    soft_cap: Option<f32>,
    segments: &'static [usize],
) -> Case {
    Case { heads, window, soft_cap, segments }
}

/// Cases of the packed ops.
pub const CASES: [Case; 14] = [
    case((1, 1, 16), None, None, &[1]),
    case((2, 1, 16), None, None, &[1, 1, 1]),
    case((9, 3, 64), None, None, &[7, 64, 1, 50]),
    case((4, 4, 32), None, None, &[130]),
    case((4, 1, 20), None, None, &[65, 3]),
    case((3, 1, 8), None, None, &[97]),
    case((2, 2, 128), None, None, &[33, 48, 49]),
    case((2, 1, 256), None, None, &[70]),
    case((6, 2, 64), Some(1), None, &[40, 9]),
    case((6, 3, 64), Some(10), None, &[100, 2]),
    case((2, 1, 64), Some(70), None, &[300]),
    case((2, 1, 64), None, Some(2.0), &[60, 61]),
    case((3, 3, 32), Some(30), Some(5.0), &[110]),
    case((2, 1, 64), None, None, &[600, 150]),
];

/// (H, H_kv, D), window, soft cap, new positions, all positions.
pub const CACHED: [(Case, usize, usize); 10] = [
    (case((1, 1, 16), None, None, &[]), 1, 1),
    (case((9, 3, 64), None, None, &[]), 1, 100),
    (case((9, 3, 64), None, None, &[]), 7, 50),
    (case((9, 3, 64), None, None, &[]), 8, 8),
    (case((4, 2, 20), None, None, &[]), 20, 131),
    (case((4, 2, 32), Some(9), None, &[]), 3, 40),
    (case((4, 1, 32), Some(9), Some(3.0), &[]), 30, 90),
    (case((2, 1, 64), None, None, &[]), 70, 700),
    // A few queries whose head size is not whole vectors.
    (case((4, 2, 20), Some(5), Some(3.0), &[]), 2, 13),
    (case((2, 2, 88), None, None, &[]), 3, 11),
];

impl Case {
    /// With a scale of twice the usual; in bfloat16 the next lower power of two.
    #[must_use]
    pub fn shape(&self, compute: Compute) -> AttentionShape {
        let (n_heads, n_kv_heads, head_dim) = self.heads;
        let scale = 2.0 / (head_dim as f32).sqrt();
        let scale = match compute {
            Compute::F32 => scale,
            Compute::Bf16 => scale.log2().floor().exp2(),
        };
        AttentionShape {
            n_heads,
            n_kv_heads,
            head_dim,
            scale,
            window: self.window,
            soft_cap: self.soft_cap,
            compute,
        }
    }

    /// Laid end to end.
    #[must_use]
    pub fn segments(&self) -> Vec<Segment> {
        let mut start = 0;
        self.segments
            .iter()
            .map(|&len| {
                start += len;
                Segment { start: start - len, len }
            })
            .collect()
    }
}

/// How far a probability may be off, relative to itself. Inputs are below 1, so a score of D terms
/// is below `D scale` and off by `(D + 4) U` of that (the cap adds a few units of its size); both
/// the score and the log-sum carry it. The sum over n keys adds n roundings.
fn relative_error(shape: &AttentionShape, n_keys: usize) -> f64 {
    let d = shape.head_dim as f64;
    let score = (d + 4.0) * U * d * f64::from(shape.scale);
    let cap = shape.soft_cap.map_or(0.0, |cap| 8.0 * U * f64::from(cap));
    2.0 * (score + cap) + (n_keys as f64 + 16.0) * U
}

/// What rounding a probability or the gradient of a score costs, relative to it.
fn rounding(compute: Compute) -> f64 {
    match compute {
        Compute::F32 => 0.0,
        Compute::Bf16 => 1.0 / 256.0,
    }
}

/// Inputs that the format holds exactly (and so does the product with a scale that is a power of
/// two): what remains is the rounding of what is computed.
fn inputs(seed: u32, n: usize, compute: Compute) -> Vec<f32> {
    let mut x = numbers(seed, n);
    if compute == Compute::Bf16 {
        x.iter_mut().for_each(|v| *v = f32::from_bits(v.to_bits() & 0xffff_0000));
    }
    x
}

/// All cases of all three, in both formats.
#[must_use]
pub fn compare(library: &dyn Ops) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for compute in [Compute::F32, Compute::Bf16] {
        for (i, case) in CASES.iter().enumerate() {
            outcomes.push(packed(library, case, i as u32, compute));
        }
        for (i, (case, n, p)) in CACHED.iter().enumerate() {
            outcomes.push(cached(library, (case, *n, *p), i as u32, compute));
        }
    }
    outcomes
}

fn cached(
    library: &dyn Ops,
    (case, n, p): (&Case, usize, usize),
    seed: u32,
    compute: Compute,
) -> Outcome {
    let name = format!("attention_cached n={n} P={p} {case:?} {compute:?}");
    let shape = case.shape(compute);
    let (h, h_kv, d) = case.heads;
    let q = inputs(seed, n * h * d, compute);
    let [k, v] = [50, 60].map(|i| inputs(seed + i, p * h_kv * d, compute));
    let (mut out, mut want) = (vec![0.0; q.len()], vec![0.0; q.len()]);
    library.attention_cached((&mut out).into(), (&q).into(), (&k).into(), (&v).into(), &shape);
    Reference.attention_cached((&mut want).into(), (&q).into(), (&k).into(), (&v).into(), &shape);
    let bound = 2.0 * relative_error(&shape, p) + 1.01 * rounding(compute);
    assert_within(&name, &out, &want, |_| bound);
    Outcome { name, bits: bits_of(&[&out]) }
}

fn packed(library: &dyn Ops, case: &Case, seed: u32, compute: Compute) -> Outcome {
    let name = format!("attention {case:?} {compute:?}");
    let (shape, segments) = (case.shape(compute), case.segments());
    let (h, h_kv, d) = case.heads;
    let t: usize = case.segments.iter().sum();
    let n_keys = *case.segments.iter().max().expect("a case without segments");
    let [q, dout] = [0, 1].map(|i| inputs(seed + i * 100, t * h * d, compute));
    let [k, v] = [2, 3].map(|i| inputs(seed + i * 100, t * h_kv * d, compute));
    let (mut out, mut lse) = (vec![0.0; t * h * d], vec![0.0; t * h]);
    let (mut want_out, mut want_lse) = (out.clone(), lse.clone());
    library.attention_forward(
        (&mut out).into(),
        (&mut lse).into(),
        (&q).into(),
        (&k).into(),
        (&v).into(),
        &shape,
        &segments,
    );
    Reference.attention_forward(
        (&mut want_out).into(),
        (&mut want_lse).into(),
        (&q).into(),
        (&k).into(),
        (&v).into(),
        &shape,
        &segments,
    );
    let (relative, rounding) = (relative_error(&shape, n_keys), rounding(compute));
    // A mean of values below 1 under weights that are off, their sum too.
    let bound = 2.0 * relative + 1.01 * rounding;
    assert_within(&format!("{name}: out"), &out, &want_out, |_| bound);
    let bound = |i: usize| relative + 2.0 * U * f64::from(want_lse[i].abs());
    assert_within(&format!("{name}: lse"), &lse, &want_lse, bound);

    let mut bits = bits_of(&[&out, &lse]);
    let (out, lse) = (want_out, want_lse);
    let run = |ops: &dyn Ops, dout: &[f32], out: &[f32]| {
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        ops.attention_backward(
            (&mut dq).into(),
            (&mut dk).into(),
            (&mut dv).into(),
            dout.into(),
            out.into(),
            (&lse).into(),
            (&q).into(),
            (&k).into(),
            (&v).into(),
            &shape,
            &segments,
        );
        [dq, dk, dv]
    };
    let got = run(library, &dout, &out);
    let want = run(&Reference, &dout, &out);
    // With dout = 1, dv is the sum of the probabilities that fall on a key: its mass.
    let [_, _, mass] = run(&Reference, &vec![1.0; dout.len()], &out);
    // delta is a mean of dp, so their difference is below twice the largest dp.
    let rounded = 1.01 * rounding * 2.0 * largest_dp(case, &dout, &v);
    let d = d as f64;
    let n_queries = (n_keys * (h / h_kv)) as f64;
    // dp and delta are sums of D terms below 1; their difference is below 2 D.
    let dscore = 2.0 * (d + 4.0) * U * d + (relative + 8.0 * U) * 2.0 * d + rounded;
    let scale = f64::from(shape.scale);
    let dq_bound = scale * (dscore + (n_keys as f64 + 8.0) * U * 2.0 * d);
    assert_within(&format!("{name}: dq"), &got[0], &want[0], |_| dq_bound);
    let dk_bound = scale * (dscore + (n_queries + 16.0) * U * 2.0 * d);
    assert_within(&format!("{name}: dk"), &got[1], &want[1], |i| dk_bound * f64::from(mass[i]));
    let dv_bound = relative + (n_queries + 16.0) * U + 1.01 * rounding;
    assert_within(&format!("{name}: dv"), &got[2], &want[2], |i| dv_bound * f64::from(mass[i]));
    bits.extend(bits_of(&[&got[0], &got[1], &got[2]]));
    Outcome { name, bits }
}

/// The largest `|dout[i] v[j]|` of a query and a key that it may see.
fn largest_dp(case: &Case, dout: &[f32], v: &[f32]) -> f64 {
    let (h, h_kv, d) = case.heads;
    let mut largest = 0.0_f64;
    for Segment { start, len } in case.segments() {
        for (i, head) in (start..start + len).flat_map(|i| (0..h).map(move |head| (i, head))) {
            let dout = &dout[(i * h + head) * d..][..d];
            for j in start..=i {
                let v = &v[(j * h_kv + head / (h / h_kv)) * d..][..d];
                let dp: f64 = dout.iter().zip(v).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                largest = largest.max(dp.abs());
            }
        }
    }
    largest
}
