//! Mixing data sets by weight.

use forgelm_tensor::random::{Purpose, Stream};

use crate::problem::{Code, DataProblem};
use crate::split::SPLIT_SEED;

/// What a data set contributes to a mixture.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixed {
    /// As the configuration names it.
    pub name: String,
    /// Records that it has.
    pub n_rows: usize,
    /// Records that were taken.
    pub n_taken: usize,
    /// Share of the mixture that was asked for; without `mix_ratio` what it came to.
    pub share_asked: f64,
    /// Share of the mixture that it came to.
    pub share: f64,
}

/// Numbers of records to take from data sets of these lengths.
///
/// Without weights all of each. With weights `w`: `min(floor(M w_i / sum(w)), len_i)` where `M` is the length of
/// the longest. No record is taken twice, so a data set that is too short for its weight leaves the mixture
/// with another share than was asked for: [`Mixed`] says which.
///
/// # Errors
/// If the numbers of weights and data sets differ, a weight is not a number of 0 or more, all are 0, or a data
/// set with a weight above 0 comes to no record.
pub(crate) fn targets(
    names: &[&str],
    lengths: &[usize],
    weights: Option<&[f64]>,
) -> Result<Vec<usize>, DataProblem> {
    let Some(weights) = weights else { return Ok(lengths.to_vec()) };
    check_weights(names, weights)?;
    let total: f64 = weights.iter().sum();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let mut targets = Vec::with_capacity(lengths.len());
    for ((&name, &length), &weight) in names.iter().zip(lengths).zip(weights) {
        let n = floor(longest, weight / total).min(length);
        if n == 0 && weight > 0.0 {
            let found = format!("a weight of {weight} of {total} comes to no row of it");
            let file = std::path::Path::new(name);
            return Err(DataProblem::file(Code::Mix, file, found, "at least one row")
                .hint("raise its weight in `data.mix_ratio`, or leave the data set out"));
        }
        targets.push(n);
    }
    Ok(targets)
}

/// Checks `data.mix_ratio` before anything is read.
///
/// # Errors
/// As [`targets`], but for what depends on lengths.
pub(crate) fn check_weights(names: &[&str], weights: &[f64]) -> Result<(), DataProblem> {
    let file = std::path::Path::new(names.first().copied().unwrap_or("data"));
    let wrong = |found: String, expected: &str| {
        Err(DataProblem::file(Code::Mix, file, format!("`data.mix_ratio` {found}"), expected))
    };
    if weights.len() != names.len() {
        let expected = format!("{}, one for each data set", names.len());
        return wrong(format!("has {} numbers", weights.len()), &expected);
    }
    if let Some(weight) = weights.iter().find(|w| !w.is_finite() || **w < 0.0) {
        return wrong(format!("has the weight {weight}"), "numbers of 0 or more");
    }
    if weights.iter().sum::<f64>() <= 0.0 {
        return wrong("has no weight above 0".to_owned(), "one at least");
    }
    Ok(())
}

/// `floor(n share)`, where a share such as 0.3 that is not exact does not lose a record.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a number of rows, which is far below 2^52"
)]
fn floor(n: usize, share: f64) -> usize {
    (n as f64 * share + 1e-9).floor() as usize
}

/// The records to take of a data set: the first `n` of
/// `Stream::new(SPLIT_SEED, Purpose::Mixture).permutation(number of the data set, length)`, ascending.
///
/// # Panics
/// If there are 2^32 records or more.
pub(crate) fn chosen(data_set: u64, length: usize, n: usize) -> Vec<u32> {
    let length = u32::try_from(length).expect("fewer than 2^32 rows");
    if n >= length as usize {
        return (0..length).collect();
    }
    let mut rows = Stream::new(SPLIT_SEED, Purpose::Mixture).permutation(data_set, length);
    rows.truncate(n);
    rows.sort_unstable();
    rows
}

#[expect(clippy::cast_precision_loss, reason = "shares to show")]
pub(crate) fn shares(n: &[usize]) -> Vec<f64> {
    let total = n.iter().sum::<usize>().max(1) as f64;
    n.iter().map(|&n| n as f64 / total).collect()
}

#[cfg(test)]
mod tests {
    use super::{chosen, shares, targets};

    #[test]
    fn numbers_follow_the_specifications_examples() {
        let names = ["a", "b"];
        assert_eq!(targets(&names, &[1000, 300], Some(&[0.7, 0.3])).expect("fits"), [700, 300]);
        let short = targets(&names, &[1000, 5000], Some(&[0.7, 0.3])).expect("fits");
        assert_eq!(short, [1000, 1500]);
        assert_eq!(shares(&short), [0.4, 0.6]);
        assert_eq!(targets(&names, &[10, 20], None).expect("all"), [10, 20]);
        assert_eq!(targets(&names, &[10, 20], Some(&[0.0, 2.0])).expect("one"), [0, 20]);
        assert_eq!(targets(&["a"; 3], &[10; 3], Some(&[1.0; 3])).expect("thirds"), [3; 3]);
        assert_eq!(targets(&["a"; 10], &[10; 10], Some(&[0.1; 10])).expect("tenths"), [1; 10]);
    }

    #[test]
    fn fault_016_weights_that_cannot_be_met_are_refused() {
        let names = ["a.jsonl", "b.jsonl"];
        for (weights, found) in [
            (&[1.0][..], "`data.mix_ratio` has 1 numbers; expected 2, one for each data set"),
            (&[0.0, 0.0], "no weight above 0"),
            (&[1.0, f64::NAN], "the weight NaN"),
            (&[1.0, -1.0], "the weight -1"),
            (&[1.0, 0.01], "b.jsonl: a weight of 0.01 of 1.01 comes to no row"),
        ] {
            let error = targets(&names, &[20, 20], Some(weights)).expect_err("refused").to_string();
            assert!(error.contains(found), "{error}");
        }
    }

    #[test]
    fn the_same_records_are_taken_each_time_and_no_two_data_sets_share_a_choice() {
        let first = chosen(0, 1000, 100);
        assert_eq!(first, chosen(0, 1000, 100));
        assert!(first.is_sorted() && first.len() == 100);
        assert_ne!(first, chosen(1, 1000, 100));
        assert_eq!(chosen(0, 5, 5), [0, 1, 2, 3, 4]);
        assert_eq!(chosen(0, 5, 0), Vec::<u32>::new());
        let n_low = first.iter().filter(|&&row| row < 500).count();
        assert!((30..=70).contains(&n_low), "{n_low}");
    }
}
