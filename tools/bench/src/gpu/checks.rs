//! Every op on the device against the plain reference, whose sums are f64: the cases and bounds of
//! kernels/check, and the same bits when they run again.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use forgelm_kernels_api::Failure;
use forgelm_kernels_api::Ops;
use forgelm_kernels_check::{
    Outcome, attention, columns, elementwise, embedding, float8, gemm, glu, linear, optimizers,
    packed, rms_norm, rope, routing, rows, token_logprobs,
};
use serde_json::json;

use super::Context;
use super::device::{Opened, Products, open};
use super::finding::{Finding, Table};

type Compare = fn(&dyn Ops) -> Vec<Outcome>;

/// Those that an emulated device does in a moment come first.
const OPS: [(&str, Compare); 15] = [
    ("rope", rope::compare),
    ("columns", columns::compare),
    ("embedding", embedding::compare),
    ("rms_norm", rms_norm::compare),
    ("glu", glu::compare),
    ("float8", float8::compare),
    ("rows", rows::compare),
    ("routing", routing::compare),
    ("elementwise", elementwise::compare),
    ("optimizers", optimizers::compare),
    ("token_logprobs", token_logprobs::compare),
    ("linear", linear::compare),
    ("gemm", gemm::compare),
    ("attention", attention::compare),
    ("packed", packed::compare),
];
/// How many of them are for tiny runs.
const N_TINY: usize = 4;
/// What forms products, and so has two ways to.
const PRODUCTS: [&str; 3] = ["token_logprobs", "linear", "gemm"];

pub(crate) fn run(context: &Context<'_>) -> Result<Finding, String> {
    let best = context.open()?;
    let own = open(context.arguments, Products::Own)?;
    let mut finding = Finding::default();
    let mut table = Table::new(&["op", "products", ">cases", "result"]);
    let mut n_cases = 0;
    let ops = if context.is_tiny() { &OPS[..N_TINY] } else { &OPS[..] };
    for &(op, compare) in ops {
        if !context.has_time_for(op, &mut finding.notes) {
            continue;
        }
        for (products, opened) in [("cuBLASLt", &best), ("own", &own)] {
            let forms = PRODUCTS.contains(&op);
            if !forms && products == "own" || forms && products == "cuBLASLt" && !has_blas(&best) {
                continue;
            }
            let (n, result) = match twice(opened, compare) {
                Ok(n) => (n, "within its bounds, the same bits twice".to_owned()),
                Err(problem) => {
                    finding.problems.push(format!("{op}: {problem}"));
                    (0, problem)
                }
            };
            n_cases += n;
            let products = if forms { products } else { "" };
            table.row(&[op.to_owned(), products.to_owned(), n.to_string(), result]);
        }
    }
    finding.tables.push(table);
    let n_failed = finding.problems.len();
    finding.numbers = json!({ "ops": ops.len(), "cases": n_cases, "failed": n_failed });
    Ok(finding)
}

fn has_blas(opened: &Opened) -> bool {
    opened.device.cublaslt_version().is_some()
}

/// The number of results, which are within their bounds and have the same bits in a second run.
fn twice(opened: &Opened, compare: Compare) -> Result<usize, String> {
    let run = || {
        catch_unwind(AssertUnwindSafe(|| compare(opened.cuda.as_ref())))
            .map_err(|panic| message_of(panic.as_ref()))
    };
    let (first, second) = (run()?, run()?);
    let differs = first.iter().zip(&second).find(|(first, second)| first != second);
    match differs {
        Some((outcome, _)) => Err(format!("{}: other bits in a second run", outcome.name)),
        None => Ok(first.len()),
    }
}

/// What a panic says.
pub(crate) fn message_of(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(failure) = panic.downcast_ref::<Failure>() {
        failure.to_string()
    } else {
        "a failure without a message".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::{OPS, message_of};

    #[test]
    fn every_file_of_cases_is_in_the_list() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels/check/src");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut files: Vec<String> = files
            .map(|name| name.to_string_lossy().trim_end_matches(".rs").to_owned())
            .filter(|name| name != "lib" && name != "counting")
            .collect();
        files.sort();
        let mut listed = OPS.map(|(op, _)| op);
        listed.sort_unstable();
        assert_eq!(files, listed);
    }

    #[test]
    fn a_panic_of_any_kind_has_a_message() {
        assert_eq!(message_of(&"text"), "text");
        assert_eq!(message_of(&"text".to_owned()), "text");
        assert_eq!(message_of(&7), "a failure without a message");
    }
}
