//! A task with its rows: what a model is asked, and what its answers are worth.

use crate::definition::{OutputType, Task};
use crate::error::TaskError;
use crate::fewshot::Sampler;
use crate::metric::{Gold, Measured, Target};
use crate::preprocess::Preprocessing;
use crate::prompt::{Prompter, Said};
use crate::scores::TaskScores;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// The rows of a task, each an object.
#[derive(Clone, Debug, Default)]
pub struct Splits {
    /// Of [`Task::asked_split`].
    pub asked: Vec<Value>,
    /// Of [`Task::examples_split`]; empty where there are no examples, and where these are the asked
    /// rows.
    pub examples: Vec<Value>,
}

/// What a run decides of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Only the first rows.
    pub limit: Option<usize>,
    /// Examples in each prompt, unless the task is defined without any.
    pub num_fewshot: Option<usize>,
}

/// What a model is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// How likely it finds a text after another.
    LogLikelihood {
        /// What comes before.
        context: Arc<str>,
        /// What is scored.
        continuation: String,
    },
    /// How likely it finds a whole text.
    Rolling {
        /// The text.
        text: String,
    },
    /// What it says.
    Generate {
        /// What it continues.
        context: Arc<str>,
    },
}

/// The answer to a [`Request`] of the same kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// To [`Request::LogLikelihood`].
    LogLikelihood {
        /// Natural logarithm of the probability.
        logp: f64,
        /// Whether each token is the model's likeliest. Anything where [`Prepared::needs_greedy`]
        /// says no.
        is_greedy: bool,
    },
    /// To [`Request::Rolling`]: the natural logarithm of the probability.
    Rolling(f64),
    /// To [`Request::Generate`], cut at the first of [`Generation::until`](crate::Generation).
    Text(String),
}

/// What is asked of one row.
struct Document {
    requests: Range<usize>,
    target: Target,
}

/// A task whose rows are read.
pub struct Prepared {
    /// The task.
    pub task: Task,
    /// Everything that the model is asked, in the order of the rows.
    pub requests: Vec<Request>,
    /// Examples in each prompt.
    pub n_examples: usize,
    /// Rows of the split, asked or not.
    pub n_rows: usize,
    documents: Vec<Document>,
}

impl Prepared {
    /// Makes the prompts.
    ///
    /// # Errors
    /// At the first row that does not fit the task.
    pub fn new(task: Task, splits: Splits, settings: Settings) -> Result<Self, TaskError> {
        let split = task.asked_split()?.to_owned();
        let Splits { mut asked, examples } = splits;
        let n_rows = asked.len();
        let wrong = |place: String, problem: String, hint: Option<&str>| TaskError::Rows {
            task: task.name.clone(),
            place,
            problem,
            hint: hint.map(str::to_owned),
        };
        let n_examples = task.n_examples(settings.num_fewshot);
        let of_examples = match (&task.examples.rows, examples.is_empty()) {
            (Some(rows), _) if task.examples.split.is_none() => rows.clone(),
            (_, true) => asked.clone(),
            (_, false) => examples,
        };
        asked.truncate(settings.limit.unwrap_or(usize::MAX));
        if asked.is_empty() {
            return Err(wrong(format!("split `{split}`"), "no rows".to_owned(), None));
        }
        let at = |split: &str, row: usize| format!("split `{split}`, row {}", row + 1);
        preprocess(&mut asked, task.preprocessing)
            .map_err(|(row, problem)| wrong(at(&split, row), problem, None))?;
        let mut pool = of_examples;
        if n_examples > 0 {
            let of = task.examples_split()?.unwrap_or("fewshot_config.samples").to_owned();
            preprocess(&mut pool, task.examples.preprocessing)
                .map_err(|(row, problem)| wrong(at(&of, row), problem, None))?;
        }
        let columns: BTreeSet<String> =
            asked[0].as_object().into_iter().flat_map(Map::keys).cloned().collect();
        let prompter = Prompter::new(&task, &columns)
            .map_err(|problem| wrong(task.place.clone(), problem, None))?;
        let of_row = |row: usize| {
            let place = at(&split, row);
            move |problem: String| (place, problem)
        };
        let mut made = Made::new(&task, &prompter, &asked[0])
            .map_err(of_row(0))
            .map_err(|(place, problem)| wrong(place, problem, None))?;
        // Whether the asked row may stand among its own examples.
        let is_same_split = task.examples.split == task.test_split;
        let mut sampler = Sampler::new(pool, task.examples.is_first_n);
        for (i, row) in asked.iter().enumerate() {
            let others = is_same_split.then_some(row);
            let examples = match n_examples {
                0 => Vec::new(),
                n => sampler.sample(n, others).map_err(|needed| {
                    let problem = format!(
                        "the examples' split has fewer than {needed} rows, and {n_examples} \
                         examples stand in each prompt"
                    );
                    let hint = "a smaller `evaluation.benchmark.num_fewshot`";
                    wrong(at(&split, i), problem, Some(hint))
                })?,
            };
            made.add(row, &examples)
                .map_err(of_row(i))
                .map_err(|(place, problem)| wrong(place, problem, None))?;
        }
        let Made { requests, documents, .. } = made;
        Ok(Self { requests, documents, n_examples, n_rows, task })
    }

    /// Rows that are asked.
    #[must_use]
    pub fn n_documents(&self) -> usize {
        self.documents.len()
    }

    /// The requests of each row.
    pub fn documents(&self) -> impl Iterator<Item = Range<usize>> {
        self.documents.iter().map(|document| document.requests.clone())
    }

    /// Whether a metric asks for whether tokens are the likeliest.
    #[must_use]
    pub fn needs_greedy(&self) -> bool {
        self.task.metrics.iter().any(|metric| metric.needs_greedy(self.task.output))
    }

    /// What the answers to [`Prepared::requests`] are worth.
    ///
    /// # Panics
    /// If there are not as many answers, or one is of another kind: a bug in the caller.
    #[must_use]
    pub fn scores(&self, answers: &[Answer]) -> TaskScores {
        assert_eq!(answers.len(), self.requests.len(), "an answer to each request");
        let mut measured = Measured::new(&self.task);
        for document in &self.documents {
            measured.add(&document.target, &answers[document.requests.clone()]);
        }
        measured.scores(self.n_examples, self.n_rows)
    }
}

/// Adds the columns of a preprocessing; gives the row that it fails at.
fn preprocess(rows: &mut [Value], how: Option<Preprocessing>) -> Result<(), (usize, String)> {
    for (i, row) in rows.iter_mut().enumerate() {
        let Value::Object(row) = row else {
            return Err((i, "is not an object".to_owned()));
        };
        if let Some(how) = how {
            how.apply(row).map_err(|problem| (i, problem))?;
        }
    }
    Ok(())
}

/// Requests in the making.
struct Made<'t> {
    task: &'t Task,
    prompter: &'t Prompter,
    /// The question of the first row is the number of a choice: each choice is a question then.
    is_multiple_input: bool,
    /// The target of the first row is a list: each of it is right.
    is_multiple_target: bool,
    requests: Vec<Request>,
    documents: Vec<Document>,
}

impl<'t> Made<'t> {
    fn new(task: &'t Task, prompter: &'t Prompter, first: &Value) -> Result<Self, String> {
        let is_rolling = task.output == OutputType::LogLikelihoodRolling;
        let question = match is_rolling {
            true => Said::Text(String::new()),
            false => prompter.question(&prompter.asked, first)?,
        };
        let target = prompter.target(&prompter.asked, first)?;
        Ok(Self {
            task,
            prompter,
            is_multiple_input: matches!(question, Said::Index(_)),
            is_multiple_target: matches!(target, Said::List(_)),
            requests: Vec::new(),
            documents: Vec::new(),
        })
    }

    fn add(&mut self, row: &Value, examples: &[&Value]) -> Result<(), String> {
        let (task, prompter) = (self.task, self.prompter);
        let start = self.requests.len();
        let said = prompter.target(&prompter.asked, row)?;
        if task.output == OutputType::LogLikelihoodRolling {
            let Said::Text(text) = said else {
                return Err(format!("`doc_to_target` gives {said:?}; expected a text"));
            };
            let target = Target::Whole { n_words: words(&text), n_bytes: text.len() };
            self.requests.push(Request::Rolling { text });
            self.documents.push(Document { requests: start..self.requests.len(), target });
            return Ok(());
        }
        let choices = prompter.choices(&prompter.asked, row)?;
        let question = prompter.question(&prompter.asked, row)?;
        let before = prompter.before(row, examples, self.is_multiple_input)?;
        let context = |question: &str| -> Result<Arc<str>, String> {
            let text = prompter.question_text(row, question, self.is_multiple_input)?;
            Ok(format!("{before}{text}").into())
        };
        let text = |question: &Said| match question {
            Said::Text(text) => Ok(text.clone()),
            other => Err(format!("`doc_to_text` gives {other:?}; expected a text")),
        };
        let target = match task.output {
            OutputType::MultipleChoice if self.is_multiple_input => {
                let Said::Text(rest) = &said else {
                    return Err(format!("`doc_to_target` gives {said:?}; expected a text"));
                };
                for choice in &choices {
                    let continuation = format!("{}{rest}", task.target_delimiter);
                    let context = context(choice)?;
                    self.requests.push(Request::LogLikelihood { context, continuation });
                }
                self.choice(row, &choices, &question)?
            }
            OutputType::MultipleChoice => {
                let context = context(&text(&question)?)?;
                for choice in &choices {
                    let continuation = format!("{}{choice}", task.target_delimiter);
                    let context = Arc::clone(&context);
                    self.requests.push(Request::LogLikelihood { context, continuation });
                }
                self.choice(row, &choices, &said)?
            }
            OutputType::GenerateUntil => {
                self.requests.push(Request::Generate { context: context(&text(&question)?)? });
                Target::Answer(self.answers(&said, &choices)?)
            }
            OutputType::LogLikelihood | OutputType::LogLikelihoodRolling => {
                let Said::Text(continuation) = said else {
                    return Err(format!("`doc_to_target` gives {said:?}; expected a text"));
                };
                if continuation.is_empty() {
                    return Err("`doc_to_target` gives an empty text".to_owned());
                }
                let context = context(&text(&question)?)?;
                self.requests.push(Request::LogLikelihood { context, continuation });
                Target::Likelihood
            }
        };
        self.documents.push(Document { requests: start..self.requests.len(), target });
        Ok(())
    }

    /// Which of the choices are right, and how long each is.
    fn choice(&self, row: &Value, choices: &[String], said: &Said) -> Result<Target, String> {
        if choices.is_empty() {
            return Err("`doc_to_choice` gives no choice".to_owned());
        }
        if let Some(empty) = choices.iter().position(String::is_empty) {
            return Err(format!("choice {empty}, counted from 0, is empty"));
        }
        if let Some(processing) = self.task.processing {
            let labels = processing.labels(row)?;
            if labels.len() != choices.len() {
                let (found, expected) = (labels.len(), choices.len());
                return Err(format!("{found} labels for {expected} choices"));
            }
            return Ok(Target::Processed(processing, labels));
        }
        let index = |said: &Said| match said {
            Said::Index(index) => usize::try_from(*index).ok().filter(|&at| at < choices.len()),
            Said::Text(text) => choices.iter().position(|choice| choice == text),
            Said::List(_) | Said::Nothing => None,
        };
        let right: Vec<Option<usize>> = match said {
            Said::List(items) if self.is_multiple_target => items.iter().map(index).collect(),
            said => vec![index(said)],
        };
        // The harness scores such a row as wrong; a gate should not rest on it.
        let Some(right) = right.iter().copied().collect::<Option<Vec<usize>>>() else {
            return Err(format!(
                "the answer is {said:?}, which is none of the {} choices",
                choices.len()
            ));
        };
        Ok(Target::Choice(Gold {
            right,
            n_chars: choices.iter().map(|choice| choice.chars().count()).collect(),
            n_bytes: choices.iter().map(String::len).collect(),
        }))
    }

    /// The answers that are right.
    fn answers(&self, said: &Said, choices: &[String]) -> Result<Vec<String>, String> {
        let text = |said: &Said| match said {
            Said::Text(text) => Ok(text.clone()),
            Said::Index(index) if !choices.is_empty() => {
                crate::prompt::chosen(choices, *index).map(str::to_owned)
            }
            Said::Index(index) => Ok(index.to_string()),
            Said::Nothing | Said::List(_) => {
                Err(format!("`doc_to_target` gives {said:?}; expected a text"))
            }
        };
        match said {
            Said::List(items) if self.is_multiple_target => items.iter().map(text).collect(),
            said => Ok(vec![text(said)?]),
        }
    }
}

/// Pieces between white space, as Python's `re.split(r"\s+", text)` counts them.
fn words(text: &str) -> usize {
    let mut n = 1;
    let mut was_space = false;
    for c in text.chars() {
        let is_space = c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
        n += usize::from(is_space && !was_space);
        was_space = is_space;
    }
    n
}

#[cfg(test)]
mod tests;
