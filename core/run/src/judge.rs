//! The judge gate: another model scores what the tuned model answers.
//!
//! **Invariants:** a reply is a score or missing evidence, never half of each ([`verdict`]); what is
//! judged cannot speak to the judge ([`rubric`]); a judge that likes planted bad answers is not
//! believed ([`canary`]). Whatever keeps the judge from judging is no verdict on the model.
//!
//! Start reading at [`prepare`], then [`JudgeGate::examine`].

mod answers;
mod canary;
mod findings;
mod judges;
mod rubric;
mod verdict;

use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::gates::examination::{Examination, Examined, Place};
use crate::gates::interval;
use crate::outbound::api_contact;
use crate::plan::Plan;
use crate::prompt_rows::{OtherJson, PromptRows};
use crate::subject::{AnswerError, Subject};
use findings::{Findings, PlantedAnswer, Row};
use forgelm_artifact::write;
use forgelm_config::{LlmJudge, Run};
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::gate::{Bound, Check, Measurement, judge};
use forgelm_generate::ScoreError;
use forgelm_outbound::chat_api::DEFAULT_BASE;
use forgelm_tokenize::Message;
use judges::{Ended, Judge, Reply};
use rubric::{Order, question};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the gate in documents, and of its folder.
pub(crate) const GATE: &str = "judge";
/// Of its results, in the run's folder.
const RESULTS_FILE: &str = "judge/judge_results.json";
const AVERAGE: &str = "judge/average_score";
const DATASET: &str = "evaluation.llm_judge.eval_dataset";
/// Tokens of an answer of the tuned model.
const ANSWER_TOKENS: usize = 512;
/// With `order_swap`: scores of one answer that are further apart contradict each other.
const APART_MAX: f64 = 3.0;

/// The section of a run, where it is on.
fn section(run: &Run) -> Option<&LlmJudge> {
    run.evaluation.as_ref()?.llm_judge.as_ref().filter(|judge| judge.enabled)
}

/// The address of the judge's API; none where it is local.
fn base(judge: &LlmJudge) -> Option<&str> {
    match (&judge.judge_api_base, &judge.judge_api_key_env) {
        (Some(base), _) => Some(base),
        (None, Some(_)) => Some(DEFAULT_BASE),
        (None, None) => None,
    }
}

/// The lowest mean score that is accepted.
pub(crate) fn min_score(run: &Run) -> Option<f64> {
    section(run).map(|judge| judge.min_score)
}

/// What a plan says of the gate.
pub(crate) fn gate_line(run: &Run) -> Option<String> {
    let judge = section(run)?;
    Some(format!("no mean score of `{}` below {}", judge.judge_model, judge.min_score))
}

/// Whom a plan says is asked.
pub(crate) fn contact(run: &Run, offline: bool) -> Option<String> {
    let judge = section(run)?;
    let Some(base) = base(judge) else {
        let is_there = Path::new(&judge.judge_model).exists();
        return (!is_there && !offline).then(|| "the model hub, for the judge".to_owned());
    };
    let who = api_contact(base, offline, judge.allow_private_destinations)?;
    Some(format!("{who}, to judge answers"))
}

/// What a plan says is read.
pub(crate) fn reads(run: &Run) -> Vec<String> {
    let Some(judge) = section(run) else { return Vec::new() };
    let model = base(judge).is_none().then(|| judge.judge_model.clone());
    std::iter::once(judge.eval_dataset.clone()).chain(model).collect()
}

/// What a plan says is written.
pub(crate) fn writes(run: &Run) -> Option<&'static str> {
    section(run).map(|_| "judge/")
}

fn prompts(section: &LlmJudge, observer: &mut dyn Observer) -> Result<PromptRows, RunError> {
    PromptRows::read((DATASET, Path::new(&section.eval_dataset)), OtherJson::Skip, observer)
}

/// Reads the prompts and checks them, for a run that is only planned.
///
/// # Errors
/// If they cannot be used.
pub(crate) fn check_inputs(plan: &Plan, observer: &mut dyn Observer) -> Result<(), RunError> {
    match section(&plan.run) {
        Some(section) => prompts(section, observer).map(drop),
        None => Ok(()),
    }
}

/// The gate of a plan, with everything that it reads read and checked; nothing is asked.
///
/// # Errors
/// If the prompts, the key, the address or a local judge cannot be used.
pub(crate) fn prepare(
    plan: &Plan,
    offline: bool,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Option<Box<dyn Examination>>, RunError> {
    let Some(section) = section(&plan.run) else { return Ok(None) };
    let prompts = prompts(section, observer)?;
    let judge = Judge::find((plan, section), offline, env, observer)?;
    let n_each = if section.order_swap { 2 } else { 1 };
    let text = format!(
        "the judge, {}, will be asked {} questions after the training: {} about planted answers",
        judge.shown(),
        prompts.prompts.len() * n_each + section.canaries,
        section.canaries
    );
    observer.observe(&Event::Notice(text));
    Ok(Some(Box::new(JudgeGate { section: section.clone(), prompts, judge })))
}

/// The gate, ready to be asked.
struct JudgeGate {
    section: LlmJudge,
    prompts: PromptRows,
    judge: Judge,
}

impl Examination for JudgeGate {
    fn examine(
        &mut self,
        subject: &Subject<'_>,
        place: &mut Place<'_>,
    ) -> Result<Examined, RunError> {
        let n = self.prompts.prompts.len();
        let text = format!("answering {n} prompts for the judge, {}", self.judge.shown());
        place.observer.observe(&Event::Notice(text));
        let mut findings = Findings::new(&self.prompts.prompts);
        if let Err(ended) = self.look(subject, place, &mut findings) {
            match ended {
                Ended::Stopped => return Err(ScoreError::Stopped.into()),
                Ended::Because(reason) => findings.failure = Some(reason),
            }
        }
        if findings.failure.is_none() {
            findings.failure = self.missing_evidence(&findings);
        }
        self.report(&findings, place)
    }
}

impl JudgeGate {
    /// Everything that is asked: the tuned model, then the judge about planted answers and about its.
    fn look(
        &mut self,
        subject: &Subject<'_>,
        place: &mut Place<'_>,
        findings: &mut Findings,
    ) -> Result<(), Ended> {
        let tokens = self.prompts.prompts.iter().map(|prompt| match subject.language.template {
            Some(_) => subject.conversation(&[Message::new("user", prompt.as_str())]),
            None => subject.text(prompt),
        });
        let options = answers::greedy(ANSWER_TOKENS, subject.language.stop_ids);
        let answered =
            answers::of(subject, tokens.collect(), &options, self.section.batch_size.max(1));
        let answered = answered.map_err(|error| match error {
            AnswerError::Stopped => Ended::Stopped,
            error => Ended::Because(format!("the tuned model did not answer: {error}")),
        })?;
        for (row, answer) in findings.rows.iter_mut().zip(answered) {
            match answer {
                Ok(answer) => row.answer = Some(answer),
                Err(why) => row.failure = Some(format!("no answer: {why}")),
            }
        }
        self.judge.load()?;
        let drawn = place.env.run_id();
        self.plant(&drawn, subject, findings)?;
        self.score(&drawn, (subject, place), findings)
    }

    /// Asks about the planted answers, spread over the prompts.
    fn plant(
        &mut self,
        drawn: &str,
        subject: &Subject<'_>,
        findings: &mut Findings,
    ) -> Result<(), Ended> {
        let prompts = &self.prompts.prompts;
        let n = self.section.canaries;
        let questions: Vec<String> = (0..n)
            .map(|i| {
                let place = rubric::Place { drawn, kind: "canary", row: i, order: Order::Written };
                let prompt = &prompts[i * prompts.len() / n.max(1)];
                question(place, prompt, canary::planted(i).answer).text
            })
            .collect();
        let replies = self.judge.replies(&questions, subject)?;
        for (i, reply) in replies.into_iter().enumerate() {
            let verdict = read(reply);
            findings.planted.push(PlantedAnswer {
                kind: canary::planted(i).kind,
                score: verdict.as_ref().ok().map(|scored| scored.score),
                failure: verdict.err(),
            });
        }
        let liked_from = canary::liked_from(self.section.min_score);
        let liked: Vec<String> = findings
            .planted
            .iter()
            .filter_map(|planted| {
                planted
                    .score
                    .filter(|score| *score >= liked_from)
                    .map(|score| (planted.kind, score))
            })
            .map(|(kind, score)| format!("{kind} ({score})"))
            .collect();
        if !liked.is_empty() {
            let text = format!(
                "the judge likes planted bad answers, so that its scores say nothing: {}; expected \
                 scores below {liked_from}",
                liked.join(", ")
            );
            return Err(Ended::Because(text));
        }
        let is_scored = |planted: &PlantedAnswer| planted.score.is_some();
        if n > 0 && !findings.planted.iter().any(is_scored) {
            let why = findings.planted.first().and_then(|planted| planted.failure.clone());
            let why = why.unwrap_or_default();
            let text = format!("the judge scored none of the {n} planted bad answers: {why}");
            return Err(Ended::Because(text));
        }
        Ok(())
    }

    /// Asks about the answers of the tuned model.
    fn score(
        &mut self,
        drawn: &str,
        (subject, at): (&Subject<'_>, &mut Place<'_>),
        findings: &mut Findings,
    ) -> Result<(), Ended> {
        let orders: &[Order] = match self.section.order_swap {
            true => &[Order::Written, Order::Turned],
            false => &[Order::Written],
        };
        let (mut asked, mut n_cut) = (Vec::new(), 0);
        for (row, of) in findings.rows.iter().enumerate() {
            let Some(answer) = &of.answer else { continue };
            for &order in orders {
                let place = rubric::Place { drawn, kind: "answer", row, order };
                let question = question(place, &of.prompt, answer);
                n_cut += usize::from(question.is_cut && order == Order::Written);
                asked.push((row, question.text));
            }
        }
        if n_cut > 0 {
            let text =
                format!("{n_cut} prompts or answers are longer than what the judge is shown");
            at.observer.observe(&Event::Warning(text));
        }
        let (rows, questions): (Vec<usize>, Vec<String>) = asked.into_iter().unzip();
        let replies = self.judge.replies(&questions, subject)?;
        for (row, reply) in rows.into_iter().zip(replies) {
            findings.rows[row].take(read(reply));
        }
        findings.rows.iter_mut().for_each(|row| row.settle(APART_MAX));
        Ok(())
    }

    /// Why the scores are too few to say anything.
    fn missing_evidence(&self, findings: &Findings) -> Option<String> {
        let (n_scored, n) = (findings.scores().len(), findings.rows.len());
        #[expect(clippy::cast_precision_loss, reason = "rows stay far below 2^53")]
        let is_enough = n_scored > 0 && n_scored as f64 >= self.section.min_valid_share * n as f64;
        if is_enough {
            return None;
        }
        let why = findings.rows.iter().find_map(|row| row.failure.as_deref()).unwrap_or_default();
        Some(format!(
            "no evidence: {n_scored} of {n} answers were scored, and \
             `evaluation.llm_judge.min_valid_share` is {}; the first that was not: {why}",
            self.section.min_valid_share
        ))
    }

    fn report(&self, findings: &Findings, place: &mut Place<'_>) -> Result<Examined, RunError> {
        let scores = findings.scores();
        let (average, std_error) = interval::mean_of(&scores);
        let measurement = match &findings.failure {
            Some(reason) => Measurement::not_evaluated(GATE, reason.clone()),
            None => Measurement {
                gate: GATE.to_owned(),
                checks: vec![self.check((average, std_error), scores.len() as u64, place)],
                not_evaluated: None,
            },
        };
        let average = measurement.not_evaluated.is_none().then_some(average);
        let passed = judge(&measurement, place.policy).is_passed();
        let results = findings.to_json(&findings::About {
            section: &self.section,
            judge: self.judge.to_json(),
            dataset_sha256: &self.prompts.sha256,
            marks_from: &place.env.run_id(),
            average,
            passed,
        });
        let path = place.root.join(RESULTS_FILE);
        if let Some(dir) = path.parent() {
            write::create_dir_all_durable(dir)?;
        }
        write::atomic(&path, format!("{results:#}\n").as_bytes())?;
        let event = AuditEvent::JudgeEvaluationCompleted { passed, average_score: average };
        (place.record)(&event)?;
        let n = json!({"num_prompts": findings.rows.len(), "num_scored": scores.len()});
        let mut document = json!({"average_score": average, "min_score": self.section.min_score});
        if let (Some(members), Some(n)) = (document.as_object_mut(), n.as_object()) {
            members.extend(n.clone());
        }
        Ok(Examined {
            measurement,
            metrics: average
                .map(|score| (AVERAGE.to_owned(), score))
                .into_iter()
                .collect::<BTreeMap<_, _>>(),
            document: Some(("llm_judge".to_owned(), document)),
            files: vec![RESULTS_FILE.to_owned()],
            components: self.judge.component().into_iter().collect(),
        })
    }

    fn check(
        &self,
        (average, std_error): (f64, Option<f64>),
        n_scored: u64,
        place: &Place<'_>,
    ) -> Check {
        let bounds = std_error
            .and_then(|error| interval::mean(average, error, n_scored, place.policy.level()));
        Check {
            measure: AVERAGE.to_owned(),
            value: average,
            bound: Bound::AtLeast,
            limit: self.section.min_score,
            limit_name: "`evaluation.llm_judge.min_score`".to_owned(),
            n_samples: Some(n_scored),
            interval: bounds,
        }
    }
}

/// A reply as a score, or why it is none.
fn read(reply: Reply) -> Result<verdict::Scored, String> {
    verdict::read(&reply?).map_err(str::to_owned)
}

impl Row {
    fn take(&mut self, verdict: Result<verdict::Scored, String>) {
        match verdict {
            Ok(scored) => {
                self.scores.push(scored.score);
                self.reason.get_or_insert(scored.reason);
            }
            Err(why) => {
                self.failure.get_or_insert(why);
            }
        }
    }
}
