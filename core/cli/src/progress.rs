//! The lines that a person watches while a run works: one live line on a terminal, plain lines
//! everywhere else. Everything goes to standard error; results go to standard output.

use crate::args::LogLevel;
use forgelm_run::event::{Evaluation, Event, Observer, Reading, Sample, Started, Step, When};
use forgelm_run::memory::MemoryUse;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Steps over which speed and time left are averaged.
const WINDOW: usize = 20;

/// Prints a run's events.
#[derive(Debug)]
pub struct Progress {
    level: LogLevel,
    is_live: bool,
    /// The live line is on the screen and has no line end.
    is_line_open: bool,
    n_steps: u64,
    recent: Vec<(u64, f64)>,
    first_loss: Option<f64>,
}

/// A warning from a thread that knows nothing of the live line: below it.
pub fn alarm(text: &str) {
    let mut out = std::io::stderr().lock();
    let end_of_live_line = if out.is_terminal() { "\n" } else { "" };
    // Nothing sensible can be done when standard error is closed.
    let _ = writeln!(out, "{end_of_live_line}warning: {text}");
}

impl Progress {
    /// A printer for this level; live when standard error is a terminal.
    #[must_use]
    pub fn new(level: LogLevel) -> Self {
        Self {
            level,
            is_live: std::io::stderr().is_terminal(),
            is_line_open: false,
            n_steps: 0,
            recent: Vec::new(),
            first_loss: None,
        }
    }

    /// A line of this importance.
    pub fn line(&mut self, level: LogLevel, text: &str) {
        if level < self.level {
            return;
        }
        let end_of_live_line = if self.is_line_open { "\n" } else { "" };
        self.is_line_open = false;
        // Nothing sensible can be done when standard error is closed.
        let _ = writeln!(std::io::stderr().lock(), "{end_of_live_line}{text}");
    }

    /// A line that the next one writes over; nothing where lines are kept.
    fn live(&mut self, text: &str) {
        if self.is_live && self.level <= LogLevel::Info {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[2K{text}");
            self.is_line_open = true;
        }
    }

    fn reference(&mut self, reading: Reading) {
        let Reading { n_done, n_total } = reading;
        self.live(&format!("reference model: {n_done} of {n_total} records"));
    }

    fn fetched(&mut self, file: &str, n_bytes_done: u64, n_bytes_total: u64) {
        let total = match n_bytes_total {
            0 => String::new(),
            total => format!(" of {}", bytes(total)),
        };
        self.live(&format!("{file}: {}{total}", bytes(n_bytes_done)));
    }

    fn step(&mut self, step: &Step) {
        if self.level > LogLevel::Info {
            return;
        }
        self.note(step);
        let text = self.step_text(step);
        if self.is_live {
            self.live(&text);
        } else if step.log || step.step == self.n_steps {
            self.line(LogLevel::Info, &text);
        }
    }

    fn note(&mut self, step: &Step) {
        self.recent.push((step.n_tokens, step.seconds));
        if self.recent.len() > WINDOW {
            self.recent.remove(0);
        }
    }

    /// The usual time of a step: one in which the machine slept does not count.
    fn seconds_per_step(&self) -> f64 {
        let mut seconds: Vec<f64> = self.recent.iter().map(|(_, seconds)| *seconds).collect();
        seconds.sort_by(f64::total_cmp);
        seconds.get(seconds.len() / 2).copied().unwrap_or(0.0)
    }

    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    fn step_text(&self, step: &Step) -> String {
        let seconds: f64 = self.recent.iter().map(|(_, seconds)| seconds).sum();
        let tokens: u64 = self.recent.iter().map(|(tokens, _)| tokens).sum();
        let per_step = self.seconds_per_step();
        let n_left = self.n_steps.saturating_sub(step.step);
        let left = if self.recent.len() < 3 && n_left > 0 {
            "--".to_owned()
        } else {
            duration(Duration::from_secs_f64(per_step * n_left as f64))
        };
        let memory = MemoryUse::now().resident.map_or_else(|| "--".to_owned(), bytes);
        format!(
            "step {}/{}  loss {:.4}{}  {:.0} tokens/s  lr {:.2e}  grad {:.3}  epoch {:.2}  memory \
             {memory}  ETA {left}",
            step.step,
            self.n_steps,
            step.loss,
            highlights(&step.metrics),
            tokens as f64 / seconds.max(1e-9),
            step.learning_rate,
            step.grad_norm,
            step.epoch,
        )
    }

    fn evaluation(&mut self, evaluation: &Evaluation) {
        let change = match self.first_loss {
            Some(first) => format!(" ({:+.4} since the start)", evaluation.loss - first),
            None => String::new(),
        };
        self.first_loss.get_or_insert(evaluation.loss);
        let text = format!(
            "validation loss {:.4}{} at step {}{change}",
            evaluation.loss,
            highlights(&evaluation.metrics),
            evaluation.step
        );
        self.line(LogLevel::Info, &text);
    }

    fn started(&mut self, started: &Started) {
        self.n_steps = started.n_steps;
        // Of the run before, in a pipeline.
        self.first_loss = None;
        self.recent.clear();
        let from = match started.n_steps_done {
            0 => String::new(),
            done => format!(", {done} of them done"),
        };
        let text = format!(
            "run {}: {} steps{from}, output in `{}`, memory planned {}",
            started.run_id,
            started.n_steps,
            started.output_dir.display(),
            bytes(started.memory_bytes_planned),
        );
        self.line(LogLevel::Info, &text);
    }

    fn sample(&mut self, sample: &Sample) {
        let text = match sample.when {
            When::Before => format!(
                "sample question: {}\n  the data set answers: {}\n  before training: {}",
                sample.question, sample.expected, sample.answer
            ),
            When::After => format!("  after training:  {}", sample.answer),
        };
        self.line(LogLevel::Info, &text);
    }
}

impl Observer for Progress {
    fn observe(&mut self, event: &Event) {
        match event {
            Event::Detail(text) => self.line(LogLevel::Debug, text),
            Event::Fetched { file, n_bytes_done, n_bytes_total } => {
                self.fetched(file, *n_bytes_done, *n_bytes_total);
            }
            Event::Notice(text) => self.line(LogLevel::Info, text),
            Event::Warning(text) => self.line(LogLevel::Warning, &format!("warning: {text}")),
            Event::ModelLoaded(model) => {
                let text = format!(
                    "model `{}`: {} parameters, {} trained, {} on {} threads, {}, loaded in {:.1} s",
                    model.name,
                    count(model.n_params),
                    count(model.n_trainable),
                    model.compute_dtype,
                    model.n_threads,
                    model.kernels,
                    model.seconds,
                );
                self.line(LogLevel::Info, &text);
            }
            Event::DataReady(data) => {
                let text = format!(
                    "data: {} records to train on, {} held out; {} tokens, {} of them trained, \
                     longest {}",
                    data.n_train,
                    data.n_validation,
                    count(data.n_tokens),
                    count(data.n_trained_tokens),
                    data.longest,
                );
                self.line(LogLevel::Info, &text);
            }
            Event::Sample(sample) => self.sample(sample),
            Event::Reference(reading) => self.reference(*reading),
            Event::Started(started) => self.started(started),
            Event::Step(step) => self.step(step),
            Event::Evaluation(evaluation) => self.evaluation(evaluation),
            Event::Checkpoint(checkpoint) => {
                let text = format!("checkpoint `{}`", checkpoint.path.display());
                self.line(LogLevel::Debug, &text);
            }
        }
    }
}

/// What an objective measures that a person watches; everything is in `metrics.jsonl`.
fn highlights(metrics: &BTreeMap<String, f64>) -> String {
    let names: [(&str, &str); 3] =
        [("rewards/accuracies", "accuracy"), ("rewards/margins", "margin"), ("reward", "reward")];
    let shown = |(name, shown): (&str, &str)| {
        metrics.get(name).map_or(String::new(), |value| format!("  {shown} {value:.3}"))
    };
    let text: String = names.into_iter().map(shown).collect();
    // KTO has no pairs: each kind of answer by itself.
    let kinds = [("rewards/chosen", "desirable"), ("rewards/rejected", "other")];
    if text.is_empty() { kinds.into_iter().map(shown).collect() } else { text }
}

/// A number with thousands separators.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in MiB or GiB.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "shown with two decimals")]
pub fn bytes(n_bytes: u64) -> String {
    const MIB: f64 = 1024.0 * 1024.0;
    let mib = n_bytes as f64 / MIB;
    if mib < 1024.0 { format!("{mib:.0} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

/// Seconds to hours.
#[must_use]
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64().round();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative")]
    let seconds = seconds as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(number: u64, seconds: f64) -> Step {
        Step {
            step: number,
            epoch: 0.5,
            loss: 1.0,
            learning_rate: 1e-4,
            grad_norm: 1.0,
            n_tokens: 1000,
            n_trained_tokens: 1000,
            n_trained_tokens_total: 1000 * number,
            seconds,
            log: true,
            metrics: BTreeMap::default(),
        }
    }

    /// What is said after steps that took these times, of 1000.
    fn said(seconds: &[f64]) -> String {
        let mut progress = Progress { n_steps: 1000, ..Progress::new(LogLevel::Info) };
        let steps: Vec<Step> = (1..).zip(seconds).map(|(n, &s)| step(n, s)).collect();
        steps.iter().for_each(|step| progress.note(step));
        progress.step_text(&steps[steps.len() - 1])
    }

    #[test]
    fn fault_073_hours_of_sleep_in_one_step_do_not_change_the_time_that_is_left() {
        let usual = said(&[2.0; 10]);
        assert!(usual.ends_with("ETA 33 min 00 s"), "990 steps of 2 s: {usual}");
        let mut slept = [2.0; 11];
        slept[10] = 3.0 * 3600.0;
        assert!(said(&slept).ends_with("ETA 32 min 58 s"), "{}", said(&slept));
        let after = [&slept[..], &[2.0; 20]].concat();
        let text = said(&after);
        assert!(text.contains(" 500 tokens/s ") && text.ends_with("ETA 32 min 18 s"), "{text}");
    }

    #[test]
    fn fault_074_a_machine_that_slows_down_is_shown_by_its_rate() {
        let text = said(&[&[2.0; 5][..], &[8.0; 20]].concat());
        assert!(text.contains(" 125 tokens/s "), "{text}");
        assert!(text.ends_with("ETA 2 h 10 min"), "975 steps of 8 s: {text}");
    }

    #[test]
    fn a_person_sees_what_the_objective_is_about() {
        let of = |metrics: &[(&str, f64)]| {
            highlights(&metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect())
        };
        assert_eq!(of(&[]), "");
        let pair =
            [("rewards/accuracies", 0.75), ("rewards/chosen", 1.0), ("rewards/margins", 0.5)];
        assert_eq!(of(&pair), "  accuracy 0.750  margin 0.500");
        assert_eq!(of(&[("kl", 0.1), ("rewards/chosen", 1.0)]), "  desirable 1.000");
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(count(0), "0");
        assert_eq!(count(1234), "1,234");
        assert_eq!(count(134_515_008), "134,515,008");
        assert_eq!(bytes(512 * 1024 * 1024), "512 MiB");
        assert_eq!(bytes(1536 * 1024 * 1024), "1.50 GiB");
        assert_eq!(duration(Duration::from_secs(59)), "59 s");
        assert_eq!(duration(Duration::from_secs(61)), "1 min 01 s");
        assert_eq!(duration(Duration::from_secs(7322)), "2 h 02 min");
    }
}
