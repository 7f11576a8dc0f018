//! The tables of docs/performance/distributed.md.

use super::Assumed;
use super::checkpoint::{between_failures, interval};
use super::machine::Cluster;
use super::measured;
use super::models::{Base, MODELS, memory, n_trained, step};
use super::step::{NUMBER, Strategy, simulate};
use crate::gpu::shapes::Shape;
use std::fmt::Write as _;

/// Seconds in which a checkpoint is agreed on, synced and renamed, and bytes a second at which the
/// leader writes it.
const SAVING: (f64, f64) = (2.0, 1e9);

/// Every table, in the order of the page.
pub(super) fn all(assumed: &Assumed) -> String {
    let mut tables = vec![measured::table()];
    tables.extend(MODELS.iter().map(|shape| steps(shape, assumed)));
    tables.push(checkpoints(assumed));
    tables.join("\n")
}

fn on(assumed: &Assumed, n_ranks: usize) -> Cluster {
    Cluster { n_ranks, ..assumed.cluster }
}

fn gb(bytes: f64) -> String {
    let gb = bytes / 1e9;
    if gb < 9.995 { format!("{gb:.2}") } else { format!("{gb:.1}") }
}

fn steps(shape: &Shape, assumed: &Assumed) -> String {
    let mut text = format!(
        "| {} | GPUs | strategy | base | gathered | adapters | gradients | optimizer | sum, GB | sent, \
         GB | of the least | step, s | exposed | of the least |\n\
         |---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        shape.name
    );
    for base in Base::ALL {
        for &n_ranks in &assumed.n_gpus {
            for strategy in Strategy::ALL {
                text += &step_row(shape, base, strategy, assumed, n_ranks);
            }
        }
    }
    text
}

fn step_row(
    shape: &Shape,
    base: Base,
    strategy: Strategy,
    assumed: &Assumed,
    n_ranks: usize,
) -> String {
    let cluster = on(assumed, n_ranks);
    let holds = memory(shape, base, strategy, &assumed.work, &cluster);
    let takes = simulate(&step(shape, base, strategy, &assumed.work), &cluster);
    let bytes = [holds.base, holds.gathered, holds.adapters, holds.gradient, holds.optimizer];
    let bytes = bytes.map(gb).join(" | ");
    let ratio = |of: f64, least: f64| if least > 0.0 { of / least } else { 1.0 };
    format!(
        "| {} | {n_ranks} | `{}` | {bytes} | {} | {} | {:.2} | {:.2} | {:.0} % | {:.2} |\n",
        base.name(),
        strategy.name(),
        gb(holds.sum()),
        gb(takes.sent),
        ratio(takes.sent, takes.sent_least),
        takes.seconds,
        100.0 * takes.exposed / takes.seconds,
        ratio(takes.seconds, takes.seconds_least),
    )
}

fn checkpoints(assumed: &Assumed) -> String {
    let mut text = String::from(
        "| model | checkpoint, GB | written in, s | GPUs | hours between failures | interval, min |\n\
         |---|--:|--:|--:|--:|--:|\n",
    );
    for shape in &MODELS {
        // The numbers and both of their moments; the base is on disk already.
        let bytes = 3.0 * NUMBER * n_trained(shape);
        let (fixed, rate) = SAVING;
        let seconds = fixed + bytes / rate;
        for &n_gpus in &assumed.n_gpus {
            let hours = between_failures(n_gpus) / 3600.0;
            let minutes = interval(seconds, n_gpus) / 60.0;
            let _ = writeln!(
                text,
                "| {} | {} | {seconds:.1} | {n_gpus} | {hours:.0} | {minutes:.0} |",
                shape.name,
                gb(bytes),
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::Assumed;
    use super::all;
    use std::path::Path;

    #[test]
    fn the_page_has_these_tables() {
        let page =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/performance/distributed.md");
        let page = std::fs::read_to_string(page).unwrap();
        for line in all(&Assumed::default()).lines() {
            assert!(
                page.contains(line),
                "the page has no line\n{line}\nof `forgelm-bench cluster`"
            );
        }
    }
}
