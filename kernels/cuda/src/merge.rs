//! Merge methods on the device: the elementwise forms, and the counts over a tensor that they need.
//! What a method makes of the counts is the method's own, in `plugins/merge_method`.

use forgelm_kernels_api::{DropMask, Election, Format, MagnitudeBits};

use crate::call::{Call, Grid, Numbers, args};
use crate::chunk::{int, long};

/// Elements of a block of `merge_ties_count`.
const COUNT_BLOCK: usize = 65_536;

/// A thread an element.
fn grid(n: usize) -> Grid {
    Grid { blocks: [n.div_ceil(256), 1, 1], threads: 256, shared_bytes: 0 }
}

/// The addresses of some arrays of one length, in an array.
fn inputs(call: &Call<'_>, inputs: &[Numbers], len: usize) -> u64 {
    for input in inputs {
        assert_eq!((input.len, input.format), (len, Format::F32), "models differ in a tensor");
    }
    let addresses: Vec<u64> = inputs.iter().map(|input| input.address).collect();
    call.array(&addresses)
}

/// `out = sum_i shares[i] models[i]`.
pub(crate) fn linear(call: &Call<'_>, out: Numbers, models: &[Numbers], shares: &[f64]) {
    assert_eq!(models.len(), shares.len(), "a share for each model");
    call.launch(
        "merge_linear",
        grid(out.len),
        &mut args![
            out.address,
            inputs(call, models, out.len),
            call.array(shares),
            int(models.len()),
            long(out.len)
        ],
    );
}

/// `out = a models[0] + b models[1]`, around the base if there is one.
pub(crate) fn slerp(
    call: &Call<'_>,
    out: Numbers,
    models: [Numbers; 2],
    base: Option<Numbers>,
    [a, b]: [f64; 2],
) {
    let base = base.map_or(0, |base| base.address);
    call.launch(
        "merge_slerp",
        grid(out.len),
        &mut args![out.address, models[0].address, models[1].address, base, a, b, long(out.len)],
    );
}

/// How many magnitudes of the changes of each model have each value of some bits, among those whose
/// upper bits are the model's prefix. Waits for the device. Shapes: [models, 2^bits].
pub(crate) fn ties_count(
    call: &Call<'_>,
    models: &[Numbers],
    base: Numbers,
    prefixes: Option<&[u32]>,
    MagnitudeBits { shift, bits }: MagnitudeBits,
) -> Vec<u64> {
    assert!(bits <= 11, "a block counts in 2,048 bins");
    let counts = call.scratch(Format::U8, (models.len() << bits) * size_of::<u64>());
    call.clear(counts);
    let blocks = [base.len.div_ceil(COUNT_BLOCK), models.len(), 1];
    call.launch(
        "merge_ties_count",
        Grid { blocks, threads: 256, shared_bytes: 0 },
        &mut args![
            counts.address,
            inputs(call, models, base.len),
            base.address,
            prefixes.map_or(0, |prefixes| call.indices(prefixes)),
            shift,
            bits,
            long(base.len)
        ],
    );
    call.fetch(counts)
}

/// Trims changes below their model's threshold, elects a sign for each element, and adds the mean of
/// the changes that have it to the base.
pub(crate) fn ties(
    call: &Call<'_>,
    out: Numbers,
    models: &[Numbers],
    base: Numbers,
    (thresholds, shares): (&[u32], &[f64]),
    election: Election,
) {
    assert_eq!(models.len(), thresholds.len(), "a threshold for each model");
    assert_eq!(models.len(), shares.len(), "a share for each model");
    call.launch(
        "merge_ties",
        grid(out.len),
        &mut args![
            out.address,
            inputs(call, models, out.len),
            base.address,
            call.indices(thresholds),
            call.array(shares),
            int(models.len()),
            i32::from(election == Election::Votes),
            long(out.len)
        ],
    );
}

/// Drops changes at random and adds the rest, each times its model's factor, to the base.
pub(crate) fn dare(
    call: &Call<'_>,
    out: Numbers,
    models: &[Numbers],
    base: Numbers,
    factors: &[f64],
    DropMask { key, kept_below, start }: DropMask,
) {
    assert_eq!(models.len(), factors.len(), "a factor for each model");
    // Four elements a thread; the first thread may have fewer.
    call.launch(
        "merge_dare",
        grid(out.len.div_ceil(4) + 1),
        &mut args![
            out.address,
            inputs(call, models, out.len),
            base.address,
            call.array(factors),
            int(models.len()),
            key[0],
            key[1],
            kept_below,
            long(start),
            long(out.len)
        ],
    );
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "values that are exact")]
mod tests {
    use super::*;
    use crate::call::Before;
    use crate::emulated;

    const BASE: [f32; 5] = [0.5, -0.25, 1.0, 0.0, 2.0];
    const MODELS: [[f32; 5]; 2] = [[0.75, -0.5, 1.0, 0.125, 1.5], [1.0, 0.25, 1.5, -0.5, 2.125]];

    /// What `merge` makes of the two models and the base.
    fn merged(merge: impl Fn(&Call<'_>, Numbers, [Numbers; 2], Numbers)) -> Vec<f32> {
        let device = emulated::device(emulated::options());
        let mut out = vec![0.0; 5];
        let call = Call::open(&device, "merge");
        let models = MODELS.each_ref().map(|model| call.read(model.into()));
        let base = call.read((&BASE).into());
        merge(&call, call.write((&mut out).into(), Before::Unused), models, base);
        call.close();
        out
    }

    #[test]
    fn models_are_added_by_their_shares() {
        let Some(_alone) = emulated::alone() else { return };
        let out = merged(|call, out, models, _| linear(call, out, &models, &[0.25, 0.75]));
        let want: Vec<f32> = (0..5).map(|i| 0.25 * MODELS[0][i] + 0.75 * MODELS[1][i]).collect();
        assert_eq!(out, want);
    }

    #[test]
    fn an_arc_is_gone_along_around_the_base() {
        let Some(_alone) = emulated::alone() else { return };
        let out = merged(|call, out, models, base| {
            slerp(call, out, models, Some(base), [0.5, 2.0]);
        });
        let change = |model: usize, i: usize| MODELS[model][i] - BASE[i];
        let want: Vec<f32> =
            (0..5).map(|i| BASE[i] + 0.5 * change(0, i) + 2.0 * change(1, i)).collect();
        assert_eq!(out, want);
    }

    #[test]
    fn small_changes_are_trimmed_and_the_sign_is_elected() {
        let Some(_alone) = emulated::alone() else { return };
        let threshold = 0.25_f32.to_bits();
        let out = merged(|call, out, models, base| {
            let level = MagnitudeBits { shift: 20, bits: 11 };
            let counts = ties_count(call, &models, base, None, level);
            assert_eq!(counts.iter().sum::<u64>(), 10);
            let bin = (0.5_f32.to_bits() >> 20) as usize;
            assert_eq!((counts[bin], counts[2048 + bin]), (1, 4), "changes of 0.5");
            let prefix = 0.5_f32.to_bits() >> 20;
            let below = MagnitudeBits { shift: 10, bits: 10 };
            let counts = ties_count(call, &models, base, Some(&[prefix, prefix]), below);
            assert_eq!((counts[0], counts[1024]), (1, 4));
            assert_eq!(counts.iter().sum::<u64>(), 5);
            let trimming = (&[threshold, threshold][..], &[0.25, 0.75][..]);
            ties(call, out, &models, base, trimming, Election::Votes);
        });
        // 0: both up; 1: a draw is up; 2: only the second; 3: only the second; 4: only the first
        assert_eq!(out, [0.5 + 0.4375, -0.25 + 0.5, 1.0 + 0.5, -0.5, 1.5]);
        let out = merged(|call, out, models, base| {
            let trimming = (&[threshold, threshold][..], &[0.75, 0.25][..]);
            ties(call, out, &models, base, trimming, Election::Sum);
        });
        // 1: -0.1875 outweighs 0.125
        assert_eq!(out[1], -0.25 - 0.25);
    }

    #[test]
    fn what_is_dropped_follows_from_the_place_alone() {
        let Some(_alone) = emulated::alone() else { return };
        let mask = DropMask { key: [1, 2], kept_below: 1 << 31, start: 0 };
        let with = |mask: DropMask| {
            merged(|call, out, models, base| dare(call, out, &models, base, &[2.0, 1.0], mask))
        };
        let want: Vec<f32> = (0..5)
            .map(|i| {
                let kept = |model: u32| {
                    let counter = [(i / 4) as u32, 0, model, 0];
                    let word = forgelm_kernels_api::philox::philox4x32(counter, [1, 2])[i % 4];
                    f32::from(u8::from(word < 1 << 31))
                };
                let change = |model: usize| MODELS[model][i] - BASE[i];
                BASE[i] + 2.0 * change(0) * kept(0) + change(1) * kept(1)
            })
            .collect();
        assert_eq!(with(mask), want);
        assert_eq!(with(DropMask { kept_below: 0, ..mask }), BASE);
        let all = with(DropMask { kept_below: 1 << 32, start: 7, ..mask });
        let want: Vec<f32> =
            (0..5).map(|i| BASE[i] * -2.0 + 2.0 * MODELS[0][i] + MODELS[1][i]).collect();
        assert_eq!(all, want);
    }
}
