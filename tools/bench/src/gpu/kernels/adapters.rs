//! An adapter beside a frozen product, in two ways: as a second product that is added to the first,
//! as it is computed, and as one product whose sum is longer, which is not built. For that, what is
//! multiplied must lie beside the low-rank rows: a copy.

use forgelm_kernels_api::{Compute, LowRank, Ops as _, Write};
use serde_json::json;

use super::super::finding::Table;
use super::super::shapes::RANK;
use super::{Bench, EXACT, INNER};
use crate::shapes::Rows;

/// What a sum is longer by: the rank, rounded up to what a kernel adds in one step.
const LONGER: usize = 64;

/// Seconds of one product with its adapter.
struct Ways {
    second_product: f64,
    longer_sum: f64,
    copy: f64,
}

/// A linear layer: its name, rows and columns of its weight.
type Weight = (&'static str, usize, usize);

pub(super) fn table() -> Table {
    Table::new(&["weight", "pass", ">second product ms", ">longer sum ms", ">copy ms", ">gain %"])
}

/// Whether its result is added to the residual stream, in f32; so is what comes back.
fn is_residual(name: &str) -> bool {
    matches!(name, "o" | "down")
}

impl Bench<'_> {
    /// Every linear layer, forward and backward.
    pub(super) fn adapters(&mut self) -> Result<(), String> {
        for weight in self.shape.weights() {
            let forward = self.forward_ways(weight)?;
            self.compare(weight.0, "forward", &forward);
            let backward = self.backward_ways(weight)?;
            self.compare(weight.0, "backward", &backward);
        }
        Ok(())
    }

    fn compare(&mut self, name: &str, pass: &str, ways: &Ways) {
        let &Ways { second_product, longer_sum, copy } = ways;
        let ms = |seconds: f64| format!("{:.4}", seconds * 1e3);
        let gain = 100.0 * (1.0 - (longer_sum + copy) / second_product);
        let [two, one, copied] = [second_product, longer_sum, copy].map(ms);
        let cells = [name.to_owned(), pass.to_owned(), two, one, copied, format!("{gain:.1}")];
        self.by_ways.row(&cells);
        let seconds =
            json!({ "second_product": second_product, "longer_sum": longer_sum, "copy": copy });
        self.seconds.insert(format!("adapter of {name}, {pass}"), seconds);
    }

    /// `y = x W^T + u B^T`, and `y = [x | u] [W | B]^T`.
    fn forward_ways(&self, (name, n, k): Weight) -> Result<Ways, String> {
        let (t, ops, opened) = (self.t, self.ops(), self.opened);
        let (precision, write) = match is_residual(name) {
            true => (EXACT, Write::Add),
            false => (INNER, Write::Replace),
        };
        let (mut y, x) = (self.buffer(t * n, precision)?, self.buffer(t * k, INNER)?);
        let (u, b) = (self.buffer(t * RANK, INNER)?, self.buffer(n * RANK, EXACT)?);
        let w = ops.freeze(&Rows { n, k }, Compute::Bf16);
        let second_product = opened.time(&mut || {
            let beside = LowRank { u: u.all(), v: b.all(), scale: 2.0 };
            ops.linear_forward_low_rank(y.all_mut(), x.all(), &*w, beside, write);
        })?;
        let w = ops.freeze(&Rows { n, k: k + LONGER }, Compute::Bf16);
        let mut longer = self.buffer(t * (k + LONGER), INNER)?;
        let longer_sum = opened.time(&mut || {
            ops.linear_forward(y.all_mut(), longer.all(), &*w, write);
        })?;
        let copy = opened.time(&mut || ops.copy(longer.part_mut(0..t * k), x.all()))?;
        Ok(Ways { second_product, longer_sum, copy })
    }

    /// `dx = dy W + du A`, and `dx = [dy | du] [W; A]`. What comes from the residual stream is
    /// rounded into other memory in both, which is copy enough.
    fn backward_ways(&self, (name, n, k): Weight) -> Result<Ways, String> {
        let (t, ops, opened) = (self.t, self.ops(), self.opened);
        let precision = if is_residual(name) { EXACT } else { INNER };
        let (mut dx, dy) = (self.buffer(t * k, INNER)?, self.buffer(t * n, precision)?);
        let (du, a) = (self.buffer(t * RANK, INNER)?, self.buffer(k * RANK, EXACT)?);
        let w = ops.freeze(&Rows { n, k }, Compute::Bf16);
        let second_product = opened.time(&mut || {
            let beside = LowRank { u: du.all(), v: a.all(), scale: 1.0 };
            ops.linear_backward_low_rank(dx.all_mut(), dy.all(), &*w, beside, Write::Replace);
        })?;
        let w = ops.freeze(&Rows { n: n + LONGER, k }, Compute::Bf16);
        let mut longer = self.buffer(t * (n + LONGER), precision)?;
        let longer_sum = opened.time(&mut || {
            ops.linear_backward(dx.all_mut(), longer.all(), &*w, Write::Replace);
        })?;
        let copy = match is_residual(name) {
            true => 0.0,
            false => opened.time(&mut || ops.copy(longer.part_mut(0..t * n), dy.all()))?,
        };
        Ok(Ways { second_product, longer_sum, copy })
    }
}
