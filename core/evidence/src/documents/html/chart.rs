//! A line chart as inline SVG, with its words for who does not see it.

use maud::{Markup, html};

use super::number::{count, real};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 46.0;

/// A chart over steps.
pub(super) struct Chart {
    /// Part of ids: letters.
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    /// What the vertical axis counts.
    pub(super) unit: &'static str,
    pub(super) series: Vec<Series>,
    /// Values that may not be exceeded, with their names.
    pub(super) limits: Vec<(String, f64)>,
}

/// A line.
pub(super) struct Series {
    pub(super) name: &'static str,
    /// `one` or `two`: color.
    pub(super) class: &'static str,
    /// Told from the other also by dashes and rings.
    pub(super) is_marked: bool,
    /// (step, value), finite, in order.
    pub(super) points: Vec<(u64, f64)>,
}

impl Chart {
    /// The picture; none without a point.
    pub(super) fn draw(&self) -> Option<Markup> {
        let frame = Frame::around(self)?;
        let title_id = format!("{}-title", self.id);
        let text_id = format!("{}-text", self.id);
        let labels = format!("{title_id} {text_id}");
        Some(html! {
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-labelledby=(labels) {
                title id=(title_id) { (self.title) }
                desc id=(text_id) { (self.words()) }
                (frame.axes(self.unit))
                @for (name, value) in self.limits.iter().filter(|(_, value)| frame.holds(*value)) {
                    line.line.dots.limit x1=(LEFT) x2=(WIDTH - RIGHT) y1=(at(frame.y(*value)))
                        y2=(at(frame.y(*value))) {}
                    text x=(WIDTH - RIGHT - 4.0) y=(at(frame.y(*value) - 5.0)) text-anchor="end" { (name) }
                }
                @for series in &self.series { (frame.line(series)) }
                (self.legend())
            }
        })
    }

    /// The chart in a sentence for each line.
    pub(super) fn words(&self) -> String {
        let mut words = Vec::new();
        for series in &self.series {
            let (Some(first), Some(last)) = (series.points.first(), series.points.last()) else {
                continue;
            };
            let low = series.points.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(first);
            let high = series.points.iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(first);
            words.push(format!(
                "{}: {} at step {}, {} at step {}; lowest {} at step {}, highest {} at step {}.",
                series.name,
                real(first.1),
                count(first.0),
                real(last.1),
                count(last.0),
                real(low.1),
                count(low.0),
                real(high.1),
                count(high.0),
            ));
        }
        words.extend(self.limits.iter().map(|(name, value)| format!("{name}: {}.", real(*value))));
        words.join(" ")
    }

    fn legend(&self) -> Markup {
        let mut x = LEFT;
        let mut placed = Vec::new();
        for series in self.series.iter().filter(|series| !series.points.is_empty()) {
            placed.push((x, series));
            #[expect(clippy::cast_precision_loss, reason = "a short text")]
            let width = 56.0 + 7.2 * series.name.chars().count() as f64;
            x += width;
        }
        html! {
            @for (x, series) in placed {
                line class={ (series.stroke()) } x1=(at(x)) x2=(at(x + 26.0)) y1="18" y2="18" {}
                @if series.is_marked {
                    circle class={ "mark " (series.class) } cx=(at(x + 13.0)) cy="18" r="3.5" {}
                }
                text x=(at(x + 32.0)) y="22" { (series.name) }
            }
        }
    }
}

impl Series {
    fn stroke(&self) -> String {
        format!("{} {}", if self.is_marked { "line dash" } else { "line" }, self.class)
    }
}

/// From values to places.
struct Frame {
    steps: (f64, f64),
    values: (f64, f64),
}

#[expect(clippy::cast_precision_loss, reason = "steps stay far below 2^53")]
impl Frame {
    fn around(chart: &Chart) -> Option<Self> {
        let points = || chart.series.iter().flat_map(|series| &series.points);
        let first = points().map(|point| point.0).min()?;
        let last = points().map(|point| point.0).max()?;
        let mut low = points().map(|point| point.1).fold(f64::INFINITY, f64::min);
        let mut high = points().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
        // A limit is drawn where it does not press the lines flat.
        let span = (high - low).max(high.abs() * 0.05).max(1e-12);
        for (_, limit) in &chart.limits {
            if *limit > low - span && *limit < high + span {
                low = low.min(*limit);
                high = high.max(*limit);
            }
        }
        let room = ((high - low) * 0.06).max(high.abs() * 0.01).max(1e-12);
        let is_positive = low >= 0.0;
        let low = if is_positive { (low - room).max(0.0) } else { low - room };
        let last = if first == last { first + 1 } else { last };
        Some(Self { steps: (first as f64, last as f64), values: (low, high + room) })
    }

    fn holds(&self, value: f64) -> bool {
        value >= self.values.0 && value <= self.values.1
    }

    fn x(&self, step: u64) -> f64 {
        let (first, last) = self.steps;
        LEFT + (step as f64 - first) / (last - first) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let (low, high) = self.values;
        HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
    }

    fn axes(&self, unit: &str) -> Markup {
        let bottom = HEIGHT - BOTTOM;
        let (first, last) = self.steps;
        let steps = ticks(first, last, 8, true);
        let values = ticks(self.values.0, self.values.1, 6, false);
        let at_step = |value: f64| LEFT + (value - first) / (last - first) * (WIDTH - LEFT - RIGHT);
        html! {
            @for value in &values {
                line.grid x1=(LEFT) x2=(WIDTH - RIGHT) y1=(at(self.y(*value))) y2=(at(self.y(*value))) {}
                text x=(LEFT - 8.0) y=(at(self.y(*value) + 4.5)) text-anchor="end" { (tick(*value)) }
            }
            @for value in &steps {
                line.axis x1=(at(at_step(*value))) x2=(at(at_step(*value))) y1=(bottom) y2=(bottom + 5.0) {}
                text x=(at(at_step(*value))) y=(bottom + 19.0) text-anchor="middle" { (real(*value)) }
            }
            line.axis x1=(LEFT) x2=(WIDTH - RIGHT) y1=(bottom) y2=(bottom) {}
            line.axis x1=(LEFT) x2=(LEFT) y1=(TOP) y2=(bottom) {}
            text x=((LEFT + WIDTH - RIGHT) / 2.0) y=(HEIGHT - 8.0) text-anchor="middle" { "step" }
            text x="16" y=((TOP + bottom) / 2.0) text-anchor="middle"
                transform={ "rotate(-90 16 " ((TOP + bottom) / 2.0) ")" } { (unit) }
        }
    }

    fn line(&self, series: &Series) -> Markup {
        let place =
            |&(step, value): &(u64, f64)| format!("{},{}", at(self.x(step)), at(self.y(value)));
        let points = series.points.iter().map(place).collect::<Vec<_>>().join(" ");
        let is_single = series.points.len() == 1;
        html! {
            polyline class=(series.stroke()) points=(points) {}
            @if series.is_marked || is_single {
                @for (step, value) in series.points.iter().take(MARKS_MAX) {
                    circle class={ "mark " (series.class) } cx=(at(self.x(*step)))
                        cy=(at(self.y(*value))) r="3.5" {}
                }
            }
        }
    }
}

/// Rings that are drawn on one line, at most.
const MARKS_MAX: usize = 200;

/// A coordinate.
fn at(value: f64) -> String {
    format!("{value:.1}")
}

/// The value at a tick.
fn tick(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".to_owned()
    } else if !(1e-4..1e5).contains(&size) {
        format!("{value:.1e}")
    } else {
        let text = format!("{value:.6}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

/// Round numbers between two values, about `n` of them.
fn ticks(low: f64, high: f64, n: u32, is_whole: bool) -> Vec<f64> {
    let rough = (high - low) / f64::from(n);
    let magnitude = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|of| of * magnitude).find(|s| *s >= rough);
    let step = step.unwrap_or(rough).max(if is_whole { 1.0 } else { 0.0 });
    let mut ticks = Vec::new();
    let mut value = (low / step).ceil() * step;
    while value <= high + step * 1e-9 && ticks.len() < 20 {
        // Zero, and not what rounding left of it.
        ticks.push(if value.abs() < step * 1e-9 { 0.0 } else { value });
        value += step;
    }
    ticks
}

#[cfg(test)]
mod tests {
    use super::{Chart, Series, tick, ticks};

    #[test]
    fn ticks_are_round_and_within() {
        let shown = |low, high, n, whole| {
            ticks(low, high, n, whole).into_iter().map(tick).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(shown(0.13, 1.07, 6, false), "0.2 0.4 0.6 0.8 1");
        assert_eq!(shown(1.0, 12.0, 8, true), "2 4 6 8 10 12");
        assert_eq!(shown(0.0, 1.0, 8, true), "0 1");
        assert_eq!(shown(-1.0, 1.0, 4, false), "-1 -0.5 0 0.5 1");
        assert_eq!(shown(0.0, 2e-5, 6, false), "0 5.0e-6 1.0e-5 1.5e-5 2.0e-5");
    }

    fn chart(points: Vec<(u64, f64)>, limits: Vec<(String, f64)>) -> Chart {
        let series = vec![Series { name: "loss", class: "one", is_marked: false, points }];
        Chart { id: "x", title: "Loss", unit: "loss", series, limits }
    }

    #[test]
    fn values_lie_in_the_frame_and_a_far_limit_does_not_press_them_flat() {
        let drawn = chart(
            vec![(1, 4.0), (2, 2.0), (3, 3.0)],
            vec![("near".to_owned(), 4.5), ("far".to_owned(), 100.0)],
        );
        let svg = drawn.draw().unwrap().into_string();
        let points = svg.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        let places: Vec<(f64, f64)> = points
            .split(' ')
            .map(|pair| pair.split_once(',').unwrap())
            .map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()))
            .collect();
        assert_eq!(places.iter().map(|p| p.0).collect::<Vec<_>>(), [76.0, 388.0, 700.0]);
        // Higher values lie higher: 34 is the top, 254 the bottom.
        assert!(places[0].1 < places[2].1 && places[2].1 < places[1].1, "{places:?}");
        assert!(places.iter().all(|p| p.1 >= 34.0 && p.1 <= 254.0), "{places:?}");
        assert_eq!(svg.matches("line dots limit").count(), 1);
        assert!(svg.contains(">near<"));
        assert!(!svg.contains(">far<"), "not drawn");
        assert!(drawn.words().ends_with("near: 4.5000. far: 100."), "{}", drawn.words());
    }

    #[test]
    fn one_point_and_a_flat_line_can_be_drawn_and_nothing_cannot() {
        assert!(chart(vec![], vec![]).draw().is_none());
        for points in [vec![(7, 0.0)], vec![(1, 2.0), (2, 2.0)], vec![(0, -3.0)]] {
            let svg = chart(points, vec![]).draw().unwrap().into_string();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
