//! Whether a plan of cuDNN computes what our own kernels do: a small batch, both ways.
//!
//! The batch has what goes wrong most easily, as far as the plan has room for it: sequences of more
//! than a tile, of one row and of none, more sequences in the plan than there are, rows behind the
//! last one that are no number and must not be read, results behind the last row that must stay,
//! and a second time, which must have the same bits. It is small for a plan of long sequences too:
//! that is the code that runs, on fewer tiles.

use std::sync::Arc;

use forgelm_kernels_api::philox::philox4x32;
use forgelm_kernels_api::{AttentionShape, Compute, Format, Segment, Slice};

use super::backend::Refusal;
use super::plan::{Plan, Sizes};
use super::{CuDnn, Forward};
use crate::call::{Call, Numbers};
use crate::cast;
use crate::device::Device;

/// Lengths of the sequences, those first that a plan for fewer should see; two more are rounded up
/// to.
const LENS: [usize; 6] = [140, 1, 0, 67, 5, 43];
/// Rows behind the last one.
const ROWS_BEHIND: usize = 16;
/// What lies where results go; bfloat16 has it exactly.
const BEFORE: f32 = 96.0;

/// How far results may differ. A result is a mean of values up to 1, by probabilities that both
/// round to bfloat16, relatively by 2^-9; it is rounded itself by as much. So each is within 2^-8
/// of the exact one, and two are within 2^-7 of each other.
const OUT_BOUND: f32 = 1.0 / 128.0;
/// How far `lse` may differ: as an error of it is a relative one of every probability of backward,
/// half of what rounding those to bfloat16 makes.
const LSE_BOUND: f32 = 1.0 / 1024.0;

/// What one of the two computed.
struct Results {
    out: Vec<f32>,
    lse: Vec<f32>,
}

/// The most memory that a trial takes on the device.
pub(crate) fn bytes(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> usize {
    let rows = LENS.iter().sum::<usize>() + ROWS_BEHIND;
    let [of_queries, of_keys] = [n_heads, n_kv_heads].map(|heads| rows * heads * head_dim);
    // q, k, v and three times the results: as they are uploaded, rounded, and to be fetched
    let both_formats = Format::F32.n_bytes() + Format::Bf16.n_bytes();
    let lse = rows * n_heads * Format::F32.n_bytes();
    (4 * of_queries + 2 * of_keys) * both_formats + 3 * (of_queries * Format::F32.n_bytes() + lse)
}

/// A batch to try, of numbers that are the same everywhere.
struct Batch<'a> {
    device: &'a Device,
    shape: AttentionShape,
    segments: &'a [Segment],
    n_rows: usize,
}

/// Sizes of a plan that has room for the whole batch.
pub(super) fn sizes(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> Sizes {
    let (n_sequences, longest) = (LENS.len(), LENS[0]);
    Sizes { n_heads, n_kv_heads, head_dim, n_sequences, longest }.rounded_up()
}

/// What differs, if something does, in what a plan for these sizes computes.
pub(super) fn difference(
    cudnn: &CuDnn,
    device: &Device,
    sizes: Sizes,
    plan: &Arc<Plan>,
) -> Result<Option<String>, Refusal> {
    let Sizes { n_heads, n_kv_heads, head_dim, .. } = sizes;
    let shape = AttentionShape {
        n_heads,
        n_kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        window: None,
        soft_cap: None,
        compute: Compute::Bf16,
    };
    let mut n_rows = 0;
    let segments: Vec<Segment> = lens(sizes)
        .map(|len| {
            n_rows += len;
            Segment { start: n_rows - len, len }
        })
        .collect();
    let batch = Batch { device, shape, segments: &segments, n_rows };
    batch.judge(|call, given| cudnn.run(call, given, sizes, plan))
}

/// As many and as long as a plan has room for.
fn lens(sizes: Sizes) -> impl Iterator<Item = usize> {
    LENS.into_iter().take(sizes.n_sequences).map(move |len| len.min(sizes.longest))
}

impl Batch<'_> {
    /// What differs from our own kernels, if something does.
    fn judge(
        &self,
        theirs: impl Fn(&Call<'_>, &Forward<'_>) -> Result<(), Refusal>,
    ) -> Result<Option<String>, Refusal> {
        let expected = self.results(|call, given| {
            given.by_our_own(call);
            Ok(())
        })?;
        let (found, again) = (self.results(&theirs)?, self.results(&theirs)?);
        let bits = |results: &Results| {
            let numbers = results.out.iter().chain(&results.lse);
            numbers.map(|number| number.to_bits()).collect::<Vec<_>>()
        };
        let is_the_same_again = bits(&again) == bits(&found);
        let twice = || (!is_the_same_again).then(|| "two results for one batch".to_owned());
        Ok(self.difference(&expected, &found).or_else(twice))
    }

    fn results(
        &self,
        compute: impl FnOnce(&Call<'_>, &Forward<'_>) -> Result<(), Refusal>,
    ) -> Result<Results, Refusal> {
        let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = self.shape;
        let call = Call::open(self.device, "attention_trial");
        let put = |values: &[f32], format| {
            let exact = call.read(Slice::Host(values));
            cast::read_as(&call, format, exact)
        };
        let all_rows = self.n_rows + ROWS_BEHIND;
        let before = |row: usize, format| put(&vec![BEFORE; all_rows * row], format);
        let [of_queries, of_keys] = [n_heads, n_kv_heads].map(|heads| heads * head_dim);
        let (out, lse) = (before(of_queries, Format::Bf16), before(n_heads, Format::F32));
        let here = |all: Numbers, row: usize| all.part(0, self.n_rows * row);
        // Large enough that some keys matter more than others.
        let input =
            |seed, row, largest| here(put(&self.numbers(seed, row, largest), Format::Bf16), row);
        let given = Forward {
            out: here(out, of_queries),
            lse: here(lse, n_heads),
            q: input(1, of_queries, 4.0),
            k: input(2, of_keys, 1.0),
            v: input(3, of_keys, 1.0),
            shape: &self.shape,
            segments: self.segments,
        };
        compute(&call, &given)?;
        let fetched = |numbers| call.fetch(cast::read_as(&call, Format::F32, numbers));
        let results = Results { out: fetched(out), lse: fetched(lse) };
        call.close();
        Ok(results)
    }

    /// Numbers of at most 8 bits, which bfloat16 has exactly, below a power of two; behind the last
    /// row, none.
    fn numbers(&self, seed: u32, row: usize, largest: f32) -> Vec<f32> {
        let n = self.n_rows * row;
        let byte = |i: usize| philox4x32([i as u32, seed, 0, 0], [0, 0])[0] >> 24;
        let mut numbers: Vec<f32> =
            (0..n).map(|i| (byte(i) as f32 - 128.0) / 128.0 * largest).collect();
        numbers.resize(n + ROWS_BEHIND * row, f32::NAN);
        numbers
    }

    /// The first number that is not near enough; behind the last row they must be equal.
    fn difference(&self, expected: &Results, found: &Results) -> Option<String> {
        let n_heads = self.shape.n_heads;
        let first = |expected: &[f32], found: &[f32], row: usize, bound: f32, name: &str| {
            let bound_at = |i| if i < self.n_rows * row { bound } else { 0.0 };
            let is_near = |i: usize| (expected[i] - found[i]).abs() <= bound_at(i);
            let i = (0..expected.len()).find(|&i| !is_near(i))?;
            let (at, ours, theirs) = (i / row, expected[i], found[i]);
            let column = i % row;
            Some(format!(
                "row {at}, column {column} of `{name}` is {theirs}, expected {ours} within {bound}"
            ))
        };
        let row = n_heads * self.shape.head_dim;
        first(&expected.out, &found.out, row, OUT_BOUND, "out")
            .or_else(|| first(&expected.lse, &found.lse, n_heads, LSE_BOUND, "lse"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_fits_the_plan_that_it_tries() {
        let whole = sizes(4, 2, 64);
        assert_eq!((whole.n_sequences, whole.longest), (8, 256));
        let of = |n_sequences, longest| lens(Sizes { n_sequences, longest, ..whole });
        assert_eq!(of(8, 256).collect::<Vec<_>>(), LENS);
        assert_eq!(of(1, 32_768).collect::<Vec<_>>(), [140]);
        assert_eq!(of(4, 64).collect::<Vec<_>>(), [64, 1, 0, 64]);
        // also one of the largest takes no more than was planned for
        assert_eq!(of(64, 4096).sum::<usize>(), LENS.iter().sum::<usize>());
    }
}
