//! What the device can do at most, as what everything else is held against: copies, products by
//! cuBLASLt, and how soon one launch follows another.

use forgelm_kernels_api::{Compute, Ops as _, Precision, Write};
use serde_json::{Map, Value, json};

use super::Context;
use super::device::Opened;
use super::finding::{Finding, Table};
use super::shapes::{QWEN3_8B, Shape, TINY};
use crate::shapes::Rows;

/// Tokens of a micro-batch.
const TOKENS: [usize; 3] = [4096, 8192, 16_384];
const PRODUCT_COLUMNS: [&str; 6] =
    ["weight", ">N", ">K", ">T", ">forward TFLOP/s", ">backward TFLOP/s"];
/// Launches that follow each other at once.
const LAUNCHES: usize = 1000;

pub(crate) fn run(context: &Context<'_>) -> Result<Finding, String> {
    let opened = context.open()?;
    let copy = copies(context, &opened)?;
    let (shape, tokens) = match context.is_tiny() {
        true => (TINY, &[32][..]),
        false => (QWEN3_8B, &TOKENS[..]),
    };
    let launch = launches(context, &opened)?;
    let mut notes = Vec::new();
    let mut table_of_products = Table::new(&PRODUCT_COLUMNS);
    let mut rates = Map::new();
    for &t in tokens {
        if context.has_time_for(&format!("products of {t} tokens"), &mut notes) {
            let rate = products(&opened, &shape, t, &mut table_of_products)?;
            rates.insert(t.to_string(), json!(rate));
        }
    }
    let mut table = Table::new(&["ceiling", ">is"]);
    let mut row = |what: &str, is: String| table.row(&[what.to_owned(), is]);
    row("copy on the device, read and written", format!("{:.1} GB/s", copy.on_device / 1e9));
    row("copy to the device", format!("{:.2} GB/s", copy.to_device / 1e9));
    row("copy to the host", format!("{:.2} GB/s", copy.to_host / 1e9));
    row("launch after launch", format!("{:.2} us", launch * 1e6));
    notes.push(format!(
        "Products are those of a layer of {}, forward and backward, with weights and rows in \
         bfloat16; a rate is 2 M N K a product over the time.",
        shape.name
    ));
    if opened.device.cublaslt_version().is_none() {
        notes.push("cuBLASLt was not found: products are by our own kernels.".to_owned());
    }
    Ok(Finding {
        tables: vec![table, table_of_products],
        notes,
        numbers: json!({
            "copy_bytes_per_second": copy.on_device,
            "to_device_bytes_per_second": copy.to_device,
            "to_host_bytes_per_second": copy.to_host,
            "launch_seconds": launch,
            "products_flops_per_second": Value::Object(rates),
        }),
        ..Finding::default()
    })
}

/// Bytes a second.
struct Copies {
    on_device: f64,
    to_device: f64,
    to_host: f64,
}

fn copies(context: &Context<'_>, opened: &Opened) -> Result<Copies, String> {
    let ops = &opened.cuda;
    let n = if context.is_tiny() { 1 << 16 } else { 1 << 28 };
    let allocate = || ops.allocate(n, Precision::Exact).map_err(|refused| refused.to_string());
    let (mut y, mut x) = (allocate()?, allocate()?);
    let seconds = opened.time(&mut || ops.copy(y.all_mut(), x.all()))?;
    let on_device = 8.0 * n as f64 / seconds;
    let n_host = n / 4;
    let host = vec![1.0; n_host];
    let seconds = opened.time(&mut || x.part_mut(0..n_host).copy_from_host(&host))?;
    let to_device = 4.0 * n_host as f64 / seconds;
    let seconds = opened.time(&mut || drop(x.part(0..n_host).to_host()))?;
    Ok(Copies { on_device, to_device, to_host: 4.0 * n_host as f64 / seconds })
}

/// Seconds from one launch to the next, of a kernel that does nearly nothing.
fn launches(context: &Context<'_>, opened: &Opened) -> Result<f64, String> {
    let n = if context.is_tiny() { 10 } else { LAUNCHES };
    let ops = &opened.cuda;
    let mut one = ops.allocate(1, Precision::Exact).map_err(|refused| refused.to_string())?;
    let seconds = opened.time(&mut || (0..n).for_each(|_| ops.scale(one.all_mut(), 1.0)))?;
    Ok(seconds / n as f64)
}

/// All products of a layer for so many tokens: rows of the table, and the rate of all together.
fn products(opened: &Opened, shape: &Shape, t: usize, table: &mut Table) -> Result<f64, String> {
    let ops = &opened.cuda;
    let rows = |width: usize| {
        let buffer = ops.allocate(t * width, Precision::Like(Compute::Bf16));
        let mut buffer = buffer.map_err(|refused| refused.to_string())?;
        buffer.all_mut().copy_from_host(&crate::shapes::numbers(t * width));
        Ok::<_, String>(buffer)
    };
    let (mut all_operations, mut all_seconds) = (0.0, 0.0);
    for (name, n, k) in shape.weights() {
        let w = ops.freeze(&Rows { n, k }, Compute::Bf16);
        let (mut x, mut y) = (rows(k)?, rows(n)?);
        let forward = opened.time(&mut || {
            ops.linear_forward(y.all_mut(), x.all(), &*w, Write::Replace);
        })?;
        let backward = opened.time(&mut || {
            ops.linear_backward(x.all_mut(), y.all(), &*w, Write::Replace);
        })?;
        let operations = 2.0 * (t * n) as f64 * k as f64;
        let rate = |seconds: f64| format!("{:.1}", operations / seconds / 1e12);
        let [n, k, t] = [n, k, t].map(|size| size.to_string());
        table.row(&[name.to_owned(), n, k, t, rate(forward), rate(backward)]);
        all_operations += 2.0 * operations;
        all_seconds += forward + backward;
    }
    Ok(all_operations / all_seconds)
}
