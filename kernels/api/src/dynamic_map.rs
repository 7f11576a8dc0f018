//! The 256 numbers that 8-bit moments can be.
//!
//! Paper: Dettmers 2015, arXiv:1511.04561 (dynamic tree), in the version of Dettmers et al. 2021,
//! arXiv:2110.02861: each power of ten from 1e-6 to 1 is cut into twice as many equal parts as the
//! one below, whose middles are the numbers; besides them 0 and 1. The values are those of
//! bitsandbytes' `create_dynamic_map`, bit for bit (core/train: `tests/optimizers.rs`).

/// From -0.996 to 1, ascending.
pub static SIGNED: [f32; 256] = signed();
/// From 0 to 1, ascending.
pub static UNSIGNED: [f32; 256] = unsigned();

const POWERS: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];

const fn signed() -> [f32; 256] {
    let mut map = [0.0; 256];
    let mut at = 0;
    let mut decade = 0;
    while decade < 7 {
        let n_parts = 1 << decade;
        let mut part = 0;
        while part < n_parts {
            let value = POWERS[decade] * middle(part, n_parts);
            map[128 + at] = value;
            map[126 - at] = -value;
            at += 1;
            part += 1;
        }
        decade += 1;
    }
    map[255] = 1.0;
    map
}

const fn unsigned() -> [f32; 256] {
    let mut map = [0.0; 256];
    let mut at = 1;
    let mut decade = 0;
    while decade < 7 {
        let n_parts = 2 << decade;
        let mut part = 0;
        while part < n_parts {
            map[at] = POWERS[decade] * middle(part, n_parts);
            at += 1;
            part += 1;
        }
        decade += 1;
    }
    map[255] = 1.0;
    map
}

/// Middle of a part of [0.1, 1] in f32 arithmetic.
const fn middle(part: usize, n_parts: usize) -> f32 {
    f32::midpoint(boundary(part, n_parts), boundary(part + 1, n_parts))
}

/// As `torch.linspace` computes it: from the nearer end, the product not rounded (in f64 it is
/// exact).
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "at most 128 parts; f32 is meant"
)]
const fn boundary(i: usize, n_parts: usize) -> f32 {
    let step = ((1.0 - 0.1_f32) / n_parts as f32) as f64;
    if i < n_parts.div_ceil(2) {
        (0.1_f32 as f64 + step * i as f64) as f32
    } else {
        (1.0 - step * (n_parts - i) as f64) as f32
    }
}

/// Place of the number of an ascending map that is nearest to `x`, the lower of two equally near.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the map has 256 places")]
pub fn nearest(map: &[f32; 256], x: f64) -> u8 {
    let above = map.partition_point(|&value| f64::from(value) < x);
    if above == 0 {
        return 0;
    }
    if above == 256 {
        return 255;
    }
    let (low, high) = (f64::from(map[above - 1]), f64::from(map[above]));
    let place = if high - x < x - low { above } else { above - 1 };
    place as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_ascend_and_hold_zero_and_one() {
        assert!(SIGNED.is_sorted_by(|a, b| a < b));
        assert!(UNSIGNED.is_sorted_by(|a, b| a < b));
        assert_eq!((SIGNED[127], SIGNED[255]), (0.0, 1.0));
        assert_eq!((UNSIGNED[0], UNSIGNED[255]), (0.0, 1.0));
        assert_eq!(
            SIGNED[128].to_bits(),
            5.5e-7_f32.to_bits(),
            "the middle of [0.1, 1] times 1e-6"
        );
    }

    #[test]
    fn nearest_takes_the_lower_of_two_equally_near() {
        for map in [&SIGNED, &UNSIGNED] {
            for (i, pair) in map.windows(2).enumerate() {
                let middle = f64::midpoint(f64::from(pair[0]), f64::from(pair[1]));
                assert_eq!(usize::from(nearest(map, f64::from(pair[0]))), i);
                assert_eq!(usize::from(nearest(map, middle)), i);
                assert_eq!(usize::from(nearest(map, middle + 1e-12)), i + 1);
            }
            assert_eq!(nearest(map, 2.0), 255);
            assert_eq!(nearest(map, -2.0), 0);
        }
    }
}
