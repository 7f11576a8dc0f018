//! Loss, learning rate and gradient over the steps, as pictures and as a table.

use maud::{Markup, html};

use super::super::course::Course;
use super::super::evidence::Evidence;
use super::chart::{Chart, Series};
use super::gates::loss_limits;
use super::number::{count, real};
use super::page::table;

/// Rows of a table of steps, at most.
const ROWS_MAX: usize = 24;

/// The figures.
pub(super) fn part(evidence: &Evidence) -> Markup {
    let course = &evidence.technical.course;
    if course.steps.is_empty() && course.evaluations.is_empty() {
        return html! { p { "No step is recorded." } };
    }
    let loss = Chart {
        id: "loss",
        title: "Loss over the steps",
        unit: "loss",
        series: vec![
            of_steps(course, "training loss", |point| point.loss),
            Series {
                name: "validation loss",
                class: "two",
                is_marked: true,
                points: finite(course.evaluations.iter().map(|point| (point.step, point.loss))),
            },
        ],
        limits: loss_limits(evidence),
    };
    let rate = Chart {
        id: "rate",
        title: "Learning rate over the steps",
        unit: "learning rate",
        series: vec![of_steps(course, "learning rate", |point| point.learning_rate)],
        limits: Vec::new(),
    };
    let gradient = Chart {
        id: "gradient",
        title: "Norm of the gradient over the steps",
        unit: "gradient norm",
        series: vec![of_steps(course, "gradient norm, before clipping", |point| point.grad_norm)],
        limits: Vec::new(),
    };
    html! {
        (figure(&loss))
        (figure(&rate))
        (figure(&gradient))
        (as_tables(course))
    }
}

fn of_steps(
    course: &Course,
    name: &'static str,
    value: impl Fn(&super::super::course::StepPoint) -> f64,
) -> Series {
    let points = finite(course.steps.iter().map(|point| (point.step, value(point))));
    Series { name, class: "one", is_marked: false, points }
}

/// What is no number cannot be drawn; the tables have it.
fn finite(points: impl Iterator<Item = (u64, f64)>) -> Vec<(u64, f64)> {
    points.filter(|(_, value)| value.is_finite()).collect()
}

fn figure(chart: &Chart) -> Markup {
    html! {
        h3 { (chart.title) }
        @match chart.draw() {
            Some(picture) => figure { (picture) figcaption { (chart.words()) } },
            None => p { "No number of it is recorded." },
        }
    }
}

/// Some of `n` rows, evenly, the first and the last among them.
fn chosen(n: usize) -> Vec<usize> {
    if n <= ROWS_MAX {
        return (0..n).collect();
    }
    (0..ROWS_MAX).map(|i| i * (n - 1) / (ROWS_MAX - 1)).collect()
}

fn as_tables(course: &Course) -> Markup {
    let steps: Vec<Vec<String>> = chosen(course.steps.len())
        .into_iter()
        .map(|i| course.steps[i])
        .map(|p| vec![count(p.step), real(p.loss), real(p.learning_rate), real(p.grad_norm)])
        .collect();
    let evaluations: Vec<Vec<String>> = chosen(course.evaluations.len())
        .into_iter()
        .map(|i| course.evaluations[i])
        .map(|point| vec![count(point.step), real(point.loss)])
        .collect();
    html! {
        details {
            summary { "The same as tables" }
            (table(
                "Steps, evenly chosen where there are many; every one is in metrics.jsonl",
                &["step", "training loss", "learning rate", "gradient norm"],
                &[true; 4],
                &steps,
            ))
            @if !evaluations.is_empty() {
                (table(
                    "Evaluations of the held-out records; step 0 is the model before training",
                    &["step", "validation loss"],
                    &[true; 2],
                    &evaluations,
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::chosen;

    #[test]
    fn a_table_of_many_steps_keeps_both_ends() {
        assert_eq!(chosen(3), [0, 1, 2]);
        let rows = chosen(1000);
        assert_eq!((rows.len(), rows[0], rows[23]), (24, 0, 999));
        assert!(rows.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
