//! `report.html`: one page for people, of one run or of one pipeline.
//!
//! The page is complete in itself: no script, no file of another place, and a policy that tells a
//! browser so. It is a pure function of the evidence, like every other document, and is signed like
//! them.
//!
//! **Invariants:** text of others stays text (every value goes through `maud`, which escapes it;
//! characters that hide or turn what follows are replaced once, for the whole page, in [`page`]);
//! what a curve shows is there as a table too; nothing is said by color alone.
//!
//! Start reading at [`run_report`].

mod chart;
mod curves;
mod gates;
mod number;
mod page;
mod pipeline;
mod proof;
mod run;
#[cfg(test)]
mod tests;

pub use pipeline::{PIPELINE_REPORT, pipeline_report};
pub(crate) use run::run_report;

/// File name below the folder of documents.
pub const REPORT: &str = "report.html";
