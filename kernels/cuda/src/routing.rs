//! Which rows go to which experts, and the gradient of that choice.

use forgelm_kernels_api::{Choice, Format};

use crate::call::{Call, Grid, Numbers, args};
use crate::chunk::{blocks, int, warps};

/// Rows of a block of threads.
const BLOCK_ROWS: usize = 64;

/// A routing on the device: as `Routing` of the interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrays {
    /// [T, k]
    pub(crate) chosen: Numbers,
    /// [T, k]
    pub(crate) places: Numbers,
    /// [T k]
    pub(crate) rows: Numbers,
    /// [T k]
    pub(crate) weights: Numbers,
}

impl Arrays {
    /// T, where these and the probabilities are of as many rows.
    fn n_rows(&self, probs: Numbers, choice: Choice) -> usize {
        let t = choice.n_rows(probs.len);
        let n = t * choice.n_chosen;
        for (name, indices) in
            [("chosen", self.chosen), ("places", self.places), ("rows", self.rows)]
        {
            assert_eq!((indices.len, indices.format), (n, Format::U32), "{name}");
        }
        assert_eq!((self.weights.len, self.weights.format), (n, Format::F32), "weights");
        assert_eq!(probs.format, Format::F32, "probabilities are exact");
        t
    }
}

/// Chooses the k most probable experts of each row, of equal ones the first, and orders the rows.
/// Waits for the device: returns where the rows of each expert begin.
///
/// Shapes: `to` written, `probs` [T, E] read, `sums` [E] added to.
pub(crate) fn route(
    call: &Call<'_>,
    to: &Arrays,
    probs: Numbers,
    choice: Choice,
    sums: Option<&mut [f64]>,
) -> Vec<usize> {
    let Choice { n_experts: e, n_chosen: k, is_normalized } = choice;
    let t = to.n_rows(probs, choice);
    let n_blocks = t.div_ceil(BLOCK_ROWS);
    let doubles = |n: usize| call.scratch(Format::U8, n * size_of::<f64>());
    let (divisors, counts) =
        (call.scratch(Format::F32, t), call.scratch(Format::U32, n_blocks * e));
    let block_sums = sums.as_ref().map_or(0, |_| doubles(n_blocks * e).address);
    // Starts, and behind them the sums: the host wants both, and should wait once.
    let found = doubles(e + 1 + if sums.is_some() { e } else { 0 });
    let totals = sums.as_ref().map_or(0, |_| found.address + ((e + 1) * size_of::<u64>()) as u64);

    let of_rows = Grid { shared_bytes: BLOCK_ROWS * k * size_of::<u32>(), ..blocks(n_blocks) };
    let mut arguments = args![
        to.chosen.address,
        divisors.address,
        counts.address,
        block_sums,
        probs.address,
        int(t),
        int(e),
        int(k),
        i32::from(is_normalized)
    ];
    call.launch("routing_choose", of_rows, &mut arguments);
    let of_experts = Grid { shared_bytes: e * size_of::<u32>(), ..blocks(1) };
    let mut arguments =
        args![counts.address, found.address, totals, block_sums, int(n_blocks), int(e)];
    call.launch("routing_starts", of_experts, &mut arguments);
    let mut arguments = args![
        to.rows.address,
        to.weights.address,
        to.places.address,
        counts.address,
        to.chosen.address,
        divisors.address,
        probs.address,
        int(t),
        int(e),
        int(k)
    ];
    call.launch("routing_place", of_rows, &mut arguments);

    let found: Vec<u64> = call.fetch(found);
    let (starts, totals) = found.split_at(e + 1);
    if let Some(sums) = sums {
        assert_eq!(sums.len(), e, "sums is not [E]");
        sums.iter_mut().zip(totals).for_each(|(sum, total)| *sum += f64::from_bits(*total));
    }
    starts.iter().map(|&start| start as usize).collect()
}

/// What a call of [`route`] takes for its own time, of so many rows.
pub(crate) fn workspace_bytes(n_rows: usize, n_experts: usize) -> usize {
    let of_blocks = n_rows.div_ceil(BLOCK_ROWS) * n_experts * (size_of::<u32>() + size_of::<f64>());
    of_blocks + n_rows * Format::F32.n_bytes() + (2 * n_experts + 1) * size_of::<u64>()
}

/// From the gradient of the weights to that of the router's scores.
///
/// Shapes: `dscores` [T, E] written, `probs` [T, E], `dweights` [T k] by expert and `balance` [E]
/// read.
pub(crate) fn backward(
    call: &Call<'_>,
    dscores: Numbers,
    routing: &Arrays,
    (probs, dweights): (Numbers, Numbers),
    balance: Option<Numbers>,
    choice: Choice,
) {
    let Choice { n_experts: e, n_chosen: k, is_normalized } = choice;
    let t = routing.n_rows(probs, choice);
    let exact = |name: &str, numbers: Numbers, n: usize| {
        assert_eq!((numbers.len, numbers.format), (n, Format::F32), "{name}");
    };
    exact("dscores", dscores, t * e);
    exact("dweights", dweights, t * k);
    if let Some(balance) = balance {
        exact("balance", balance, e);
    }
    let mut arguments = args![
        dscores.address,
        probs.address,
        dweights.address,
        routing.weights.address,
        routing.chosen.address,
        routing.places.address,
        balance.map_or(0, |balance| balance.address),
        int(t),
        int(e),
        int(k),
        i32::from(is_normalized)
    ];
    call.launch("routing_backward", warps(t), &mut arguments);
}
