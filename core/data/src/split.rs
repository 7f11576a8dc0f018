//! The rows held out for validation.

use forgelm_tensor::random::{Purpose, Stream};

/// Seed of the split. It is fixed, so that runs with other training seeds are judged by the same rows.
pub const SPLIT_SEED: u64 = 42;

/// Row numbers, each list ascending.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Split {
    /// To train on.
    pub train: Vec<usize>,
    /// To validate on; may be empty.
    pub validation: Vec<usize>,
}

/// Splits `n_rows` rows.
///
/// `share` is `data.validation_split`; without one it is a tenth, at most 2000 rows, at least a hundredth:
/// `f = max(min(0.1, 2000 / n), 0.01)`, and `ceil(n f)` rows are held out. One row at least stays to train on;
/// with less than 2 rows nothing is held out. Which rows: the first ones of
/// `Stream::new(SPLIT_SEED, Purpose::Split).permutation(0, n)`.
///
/// # Panics
/// If there are 2^32 rows or more.
#[must_use]
pub fn split(n_rows: usize, share: Option<f64>) -> Split {
    let n_held = n_validation(n_rows, share);
    let n = u32::try_from(n_rows).expect("fewer than 2^32 rows");
    let order = Stream::new(SPLIT_SEED, Purpose::Split).permutation(0, n);
    let mut is_held = vec![false; n_rows];
    for &row in &order[..n_held] {
        is_held[row as usize] = true;
    }
    let (validation, train) = (0..n_rows).partition(|&row| is_held[row]);
    Split { train, validation }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a number of rows, which is far below 2^52"
)]
fn n_validation(n_rows: usize, share: Option<f64>) -> usize {
    if n_rows < 2 {
        return 0;
    }
    let n = n_rows as f64;
    let share = share.unwrap_or_else(|| (2000.0 / n).clamp(0.01, 0.1));
    ((n * share).ceil() as usize).min(n_rows - 1)
}

#[cfg(test)]
mod tests {
    use super::{n_validation, split};

    #[test]
    fn the_number_of_rows_held_out_follows_the_table() {
        let table = [
            (2, 1),
            (10, 1),
            (1000, 100),
            (20_000, 2000),
            (100_000, 2000),
            (300_000, 3000),
            (0, 0),
            (1, 0),
        ];
        for (n, expected) in table {
            assert_eq!(n_validation(n, None), expected, "{n}");
        }
        assert_eq!(n_validation(10, Some(0.0)), 0);
        assert_eq!(n_validation(10, Some(0.25)), 3);
        assert_eq!(n_validation(10, Some(0.999)), 9);
    }

    #[test]
    fn every_row_is_in_one_part_and_the_split_is_the_same_each_time() {
        let first = split(1000, None);
        assert_eq!(first, split(1000, None));
        let mut all: Vec<usize> = first.train.iter().chain(&first.validation).copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..1000).collect::<Vec<_>>());
        assert!(first.train.is_sorted() && first.validation.is_sorted());
        // Held-out rows are spread: with 100 of 1000, each half has about 50.
        let n_low = first.validation.iter().filter(|&&row| row < 500).count();
        assert!((30..=70).contains(&n_low), "{n_low}");
    }
}
