//! The 256 numbers that 8-bit moments can be.
//!
//! Paper: Dettmers 2015, arXiv:1511.04561 (dynamic tree), in the version of Dettmers et al. 2021,
//! arXiv:2110.02861: each power of ten from 1e-6 to 1 is cut into twice as many equal parts as the
//! one below, whose middles are the numbers; besides them 0 and 1. The values are those of
//! bitsandbytes' `create_dynamic_map`, bit for bit (core/train: `tests/optimizers.rs`).

mod tables;

/// From -0.993 to 1, ascending.
pub static SIGNED: [f32; 256] = signed();
/// From 0 to 1, ascending.
pub static UNSIGNED: [f32; 256] = unsigned();

const fn signed() -> [f32; 256] {
    let mut map = [0.0; 256];
    let mut at = 0;
    while at < tables::SIGNED.len() {
        map[128 + at] = tables::SIGNED[at];
        map[126 - at] = -tables::SIGNED[at];
        at += 1;
    }
    map[255] = 1.0;
    map
}

const fn unsigned() -> [f32; 256] {
    let mut map = [0.0; 256];
    let mut at = 0;
    while at < tables::UNSIGNED.len() {
        map[1 + at] = tables::UNSIGNED[at];
        at += 1;
    }
    map[255] = 1.0;
    map
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
        // The middle of [0.1, 1] times 1e-6.
        assert!((SIGNED[128] - 5.5e-7).abs() < 1e-13);
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
