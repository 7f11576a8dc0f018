//! f32 to the block formats `Q4_K` and `Q6_K`: scales of small groups that are quantized themselves.
//!
//! Source: the reference functions of ggml (`quantize_row_q4_K_ref`, `quantize_row_q6_K_ref`): the
//! same sums in the same order, so that the bytes are equal to its bytes. The groups of a block lie
//! side by side in lanes, which the compiler makes vectors of; within a group the order is ggml's.

use crate::dequantize::scale_and_min;
use half::f16;

/// One number for each group of a block.
type Lanes<const G: usize> = [f32; G];

/// Sizes below it count as zero: `GROUP_MAX_EPS` of ggml.
const ZERO: f32 = 1e-15;

/// To the nearest whole number, halves to even, for sizes below 2^22.
#[inline]
fn nearest(v: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    v + MAGIC - MAGIC
}

#[inline]
fn lanes<const G: usize>(f: impl FnMut(usize) -> f32) -> Lanes<G> {
    std::array::from_fn(f)
}

/// A whole number from 0 to 255 as a byte.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 255")]
fn byte(v: f32) -> u8 {
    v as u8
}

/// Number `i` of each group, for every `i`.
fn side_by_side<const G: usize, const N: usize>(block: &[f32; 256]) -> [Lanes<G>; N] {
    std::array::from_fn(|i| lanes(|g| block[g * N + i]))
}

/// What the search for `scale * q - min` of each group found.
struct Affine {
    scale: Lanes<8>,
    /// Not negative.
    min: Lanes<8>,
    q: [Lanes<8>; 32],
}

/// The scale and the min of each group with the smallest weighted squared error among 22 trials:
/// codes by a trial scale, then the least-squares line through them (`make_qkx2_quants`).
fn affine(x: &[Lanes<8>; 32]) -> Affine {
    const Q_MAX: f32 = 15.0;
    let mut sum_x2 = [0.0; 8];
    for x in x {
        sum_x2 = lanes(|g| sum_x2[g] + x[g] * x[g]);
    }
    let rms: Lanes<8> = lanes(|g| (sum_x2[g] / 32.0).sqrt());
    let mut w = *x;
    w.iter_mut().for_each(|w| *w = lanes(|g| rms[g] + w[g].abs()));
    let (mut low, mut high, mut sum_w) = (x[0], x[0], w[0]);
    let mut sum_x: Lanes<8> = lanes(|g| w[0][g] * x[0][g]);
    for (x, w) in x.iter().zip(&w).skip(1) {
        low = lanes(|g| if x[g] < low[g] { x[g] } else { low[g] });
        high = lanes(|g| if x[g] > high[g] { x[g] } else { high[g] });
        sum_w = lanes(|g| sum_w[g] + w[g]);
        sum_x = lanes(|g| sum_x[g] + w[g] * x[g]);
    }
    low = low.map(|v| if v > 0.0 { 0.0 } else { v });
    let codes = |inverse: &Lanes<8>, min: &Lanes<8>| -> [Lanes<8>; 32] {
        x.map(|x| lanes(|g| nearest(inverse[g] * (x[g] - min[g])).clamp(0.0, Q_MAX)))
    };
    let error = |q: &[Lanes<8>; 32], scale: &Lanes<8>, min: &Lanes<8>| {
        let mut sum = [0.0; 8];
        for ((x, w), q) in x.iter().zip(&w).zip(q) {
            let off: Lanes<8> = lanes(|g| scale[g] * q[g] + min[g] - x[g]);
            sum = lanes(|g| sum[g] + w[g] * (off[g] * off[g]));
        }
        sum
    };
    let inverse: Lanes<8> = lanes(|g| Q_MAX / (high[g] - low[g]));
    let q = codes(&inverse, &low);
    let mut best = Affine { scale: inverse.map(|v| 1.0 / v), min: low, q };
    let mut best_error = error(&best.q, &best.scale, &low);
    for step in 0..=20_u8 {
        let wanted = -1.0 + 0.1 * f32::from(step) + Q_MAX;
        // The range is that of the best min so far, as in ggml.
        let inverse = lanes(|g| wanted / (high[g] - best.min[g]));
        let q = codes(&inverse, &best.min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = ([0.0; 8], [0.0; 8], [0.0; 8]);
        for ((x, w), q) in x.iter().zip(&w).zip(&q) {
            let wq: Lanes<8> = lanes(|g| w[g] * q[g]);
            sum_l = lanes(|g| sum_l[g] + wq[g]);
            sum_l2 = lanes(|g| sum_l2[g] + wq[g] * q[g]);
            sum_xl = lanes(|g| sum_xl[g] + wq[g] * x[g]);
        }
        let d: Lanes<8> = lanes(|g| sum_w[g] * sum_l2[g] - sum_l[g] * sum_l[g]);
        let min: Lanes<8> = lanes(|g| (sum_l2[g] * sum_x[g] - sum_l[g] * sum_xl[g]) / d[g]);
        let scale: Lanes<8> = lanes(|g| {
            let both = (sum_w[g] * sum_xl[g] - sum_x[g] * sum_l[g]) / d[g];
            if min[g] > 0.0 { sum_xl[g] / sum_l2[g] } else { both }
        });
        let min = min.map(|min| if min > 0.0 { 0.0 } else { min });
        let now = error(&q, &scale, &min);
        let better: [bool; 8] = std::array::from_fn(|g| d[g] > 0.0 && now[g] < best_error[g]);
        best_error = lanes(|g| if better[g] { now[g] } else { best_error[g] });
        best.scale = lanes(|g| if better[g] { scale[g] } else { best.scale[g] });
        best.min = lanes(|g| if better[g] { min[g] } else { best.min[g] });
        for (best, q) in best.q.iter_mut().zip(&q) {
            *best = lanes(|g| if better[g] { q[g] } else { best[g] });
        }
    }
    // Groups of one number, which all trials divided by 0.
    let flat: [bool; 8] = std::array::from_fn(|g| high[g] <= low[g]);
    best.scale = lanes(|g| if flat[g] { 0.0 } else { best.scale[g] });
    best.min = lanes(|g| if flat[g] { -low[g] } else { -best.min[g] });
    for q in &mut best.q {
        *q = lanes(|g| if flat[g] { 0.0 } else { q[g] });
    }
    best
}

/// `d, dmin, scales[12], qs[128]`, see [`crate::dequantize()`].
pub(crate) fn q4_k(block: &[f32; 256], out: &mut [u8; 144]) {
    let found = affine(&side_by_side(block));
    let largest = |v: &Lanes<8>| v.iter().fold(0.0, |max, &v| if v > max { v } else { max });
    let (scale_max, min_max) = (largest(&found.scale), largest(&found.min));
    let six_bits = |v: f32, max: f32| {
        let inverse = if max > 0.0 { 63.0 / max } else { 0.0 };
        byte(nearest(inverse * v).clamp(0.0, 63.0))
    };
    let (d, dmin) = (f16::from_f32(scale_max / 63.0), f16::from_f32(min_max / 63.0));
    out.fill(0);
    out[..2].copy_from_slice(&d.to_le_bytes());
    out[2..4].copy_from_slice(&dmin.to_le_bytes());
    let scales = &mut out[4..16];
    for j in 0..8 {
        let (s, m) = (six_bits(found.scale[j], scale_max), six_bits(found.min[j], min_max));
        if j < 4 {
            scales[j] = s;
            scales[j + 4] = m;
        } else {
            scales[j + 4] = s & 15 | (m & 15) << 4;
            scales[j - 4] |= s >> 4 << 6;
            scales[j] |= m >> 4 << 6;
        }
    }
    for j in 0..8 {
        let (s, m) = scale_and_min(&out[4..16], j);
        let (scale, min) = (d.to_f32() * f32::from(s), dmin.to_f32() * f32::from(m));
        let (first, shift) = (16 + j / 2 * 32, j % 2 * 4);
        for l in 0..32 {
            let q = if scale == 0.0 {
                found.q[l][j]
            } else {
                nearest((block[j * 32 + l] + min) / scale).clamp(0.0, 15.0)
            };
            out[first + l] |= byte(q) << shift;
        }
    }
}

/// The scale of each group of 16 with the best fit among 19 trials, numbers weighted by their
/// squares (`make_qx_quants`), and the codes that belong to it, from -32.
fn symmetric(x: &[Lanes<16>; 16]) -> (Lanes<16>, [Lanes<16>; 16]) {
    let (mut size, mut peak) = ([0.0; 16], [0.0; 16]);
    for x in x {
        let larger: [bool; 16] = std::array::from_fn(|g| x[g].abs() > size[g]);
        size = lanes(|g| if larger[g] { x[g].abs() } else { size[g] });
        peak = lanes(|g| if larger[g] { x[g] } else { peak[g] });
    }
    let mut scale = [0.0; 16];
    let mut best = [0.0; 16];
    let mut codes = [[0.0; 16]; 16];
    // The first trial is the middle one.
    for step in std::iter::once(0).chain((-9_i8..=9).filter(|&step| step != 0)) {
        let inverse = peak.map(|peak| -(32.0 + 0.1 * f32::from(step)) / peak);
        let q: [Lanes<16>; 16] =
            x.map(|x| lanes(|g| nearest(inverse[g] * x[g]).clamp(-32.0, 31.0)));
        let (mut sum_lx, mut sum_l2) = ([0.0; 16], [0.0; 16]);
        for (x, q) in x.iter().zip(&q) {
            let w: Lanes<16> = lanes(|g| x[g] * x[g]);
            sum_lx = lanes(|g| sum_lx[g] + w[g] * x[g] * q[g]);
            sum_l2 = lanes(|g| sum_l2[g] + w[g] * q[g] * q[g]);
        }
        let better: [bool; 16] = std::array::from_fn(|g| {
            let fits = sum_lx[g] * sum_lx[g] > best[g] * sum_l2[g];
            step == 0 || sum_l2[g] > 0.0 && fits
        });
        let now: Lanes<16> = lanes(|g| if sum_l2[g] == 0.0 { 0.0 } else { sum_lx[g] / sum_l2[g] });
        scale = lanes(|g| if better[g] { now[g] } else { scale[g] });
        best = lanes(|g| if better[g] { now[g] * sum_lx[g] } else { best[g] });
        for (codes, q) in codes.iter_mut().zip(&q) {
            *codes = lanes(|g| if better[g] { q[g] } else { codes[g] });
        }
    }
    let is_zero: [bool; 16] = std::array::from_fn(|g| size[g] < ZERO);
    let keep = |v: Lanes<16>, zero| lanes(|g| if is_zero[g] { zero } else { v[g] });
    (keep(scale, 0.0), codes.map(|q| keep(q, -32.0)))
}

/// `ql[128], qh[64], scales[16], d`, see [`crate::dequantize()`].
pub(crate) fn q6_k(block: &[f32; 256], out: &mut [u8; 210]) {
    let (scales, mut codes) = symmetric(&side_by_side(block));
    let mut largest = 0.0_f32;
    for &scale in &scales {
        if scale.abs() > largest.abs() {
            largest = scale;
        }
    }
    out.fill(0);
    if largest.abs() < ZERO {
        return;
    }
    let inverse = -128.0 / largest;
    let d = f16::from_f32(1.0 / inverse);
    out[208..].copy_from_slice(&d.to_le_bytes());
    for (g, &scale) in scales.iter().enumerate() {
        #[expect(clippy::cast_possible_truncation, reason = "-128 to 127")]
        let eight_bits = nearest(inverse * scale).clamp(-128.0, 127.0) as i8;
        out[192 + g] = eight_bits.cast_unsigned();
        let scale = d.to_f32() * f32::from(eight_bits);
        if scale != 0.0 {
            for (l, codes) in codes.iter_mut().enumerate() {
                codes[g] = nearest(block[g * 16 + l] / scale).clamp(-32.0, 31.0);
            }
        }
    }
    for i in 0..256 {
        let q = byte(codes[i % 16][i / 16] + 32.0);
        let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
        out[half * 64 + quarter % 2 * 32 + l] |= (q & 15) << (quarter / 2 * 4);
        out[128 + half * 32 + l] |= q >> 4 << (quarter * 2);
    }
}
