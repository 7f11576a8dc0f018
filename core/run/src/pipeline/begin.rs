//! With what a pipeline begins or goes on, and what is refused before anything is written.

use super::error::PipelineError;
use super::plan::{PipelinePlan, StagePlan};
use super::{Request, What};
use crate::dossier::VERSION;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::output::Start;
use crate::training::check_variables;
use forgelm_config::published_json;
use forgelm_evidence::pipeline::state::{
    FinalStatus, ForcedResume, PipelineState, StageRow, StageStatus, StateError,
};
use serde_json::Value;

/// The state to work on.
pub(super) struct Begun {
    /// As it is now.
    pub(super) state: PipelineState,
    /// Whether it is a new one.
    pub(super) is_new: bool,
    /// Stages before this one are kept if they have a model, whatever config they had.
    pub(super) from: usize,
    /// The only stage to run.
    pub(super) only: Option<usize>,
    /// A change of the config that is to be recorded.
    pub(super) forced: Option<ForcedResume>,
}

/// Everything that can be refused without a file being written.
pub(super) fn check(
    plan: &PipelinePlan,
    request: &Request,
    env: &Environment,
) -> Result<(), RunError> {
    for stage in &plan.stages {
        check_variables(&stage.plan(None)?, env)?;
    }
    match &request.what {
        What::Whole => {
            if !matches!(PipelineState::read(&plan.dir), Err(StateError::Missing)) {
                return Err(PipelineError::Occupied { dir: plan.dir.clone() }.into());
            }
            check_empty(plan)
        }
        What::From(name) => {
            plan.stage(name, RESUME_FROM)?;
            check_same(plan, request, &read(plan, RESUME_FROM)?)
        }
        What::Only { stage, .. } => {
            plan.stage(stage, STAGE)?;
            match PipelineState::read(&plan.dir) {
                Err(StateError::Missing) => Ok(()),
                _ => Ok(check_topology(plan, &read(plan, STAGE)?)?),
            }
        }
        What::Rest => match PipelineState::read(&plan.dir) {
            Err(StateError::Missing) => check_empty(plan),
            _ => check_same(plan, request, &read(plan, RESUME)?),
        },
    }
}

const RESUME: &str = "--resume";
const RESUME_FROM: &str = "--resume-from";
const STAGE: &str = "--stage";

/// The folders of the stages are free: that of the last one is looked at before the first one trains.
fn check_empty(plan: &PipelinePlan) -> Result<(), RunError> {
    plan.stages.iter().try_for_each(|stage| stage.plan(None)?.output.check(&[], Start::Fresh))
}

fn read(plan: &PipelinePlan, flag: &'static str) -> Result<PipelineState, PipelineError> {
    let state = PipelineState::read(&plan.dir);
    state.map_err(|source| PipelineError::State { dir: plan.dir.clone(), flag, source })
}

/// The state that a request means.
pub(super) fn begin(
    plan: &PipelinePlan,
    request: &Request,
    (env, operator): (&Environment, &str),
    observer: &mut dyn Observer,
) -> Result<Begun, RunError> {
    check(plan, request, env)?;
    match &request.what {
        What::Whole => Ok(Begun::fresh(plan, env)),
        What::Rest => match PipelineState::read(&plan.dir) {
            Err(StateError::Missing) => {
                let text = format!("no pipeline in `{}`: starting afresh", plan.dir.display());
                observer.observe(&Event::Warning(text));
                Ok(Begun::fresh(plan, env))
            }
            Ok(_) | Err(_) => resumed(plan, request, (env, operator), (RESUME, 0)),
        },
        What::From(name) => {
            let from = plan.stage(name, RESUME_FROM)?.index;
            resumed(plan, request, (env, operator), (RESUME_FROM, from))
        }
        What::Only { stage, .. } => only(plan, plan.stage(stage, STAGE)?, env),
    }
}

impl Begun {
    fn fresh(plan: &PipelinePlan, env: &Environment) -> Self {
        let row = |stage: &StagePlan| {
            StageRow::new(stage.index, &stage.name, &stage.run.training.trainer_type.to_string())
        };
        let now = env.clock.utc();
        let state = PipelineState {
            pipeline_run_id: format!(
                "pl_{}_{:06x}",
                now.to_text_date(),
                (env.random_bits >> 64) & 0xff_ffff
            ),
            pipeline_config_hash: plan.config_hash.clone(),
            forgelm_version: VERSION.to_owned(),
            started_at: now.to_text_seconds(),
            finished_at: None,
            final_status: FinalStatus::InProgress,
            stopped_at: None,
            stages: plan.stages.iter().map(row).collect(),
            forced_resumes: Vec::new(),
            config: published_json(&plan.root.run),
        };
        Self { state, is_new: true, from: 0, only: None, forced: None }
    }
}

/// The same stages, in the same order: another pipeline is never continued, whatever is forced.
fn check_topology(plan: &PipelinePlan, state: &PipelineState) -> Result<(), PipelineError> {
    let names = |rows: &[StageRow]| {
        rows.iter().map(|row| format!("`{}`", row.name)).collect::<Vec<_>>().join(", ")
    };
    let (then, now) = (names(&state.stages), plan.names());
    if then == now {
        return Ok(());
    }
    Err(PipelineError::Topology { dir: plan.dir.clone(), then, now })
}

/// The same pipeline, and its config as it was or with leave.
fn check_same(
    plan: &PipelinePlan,
    request: &Request,
    state: &PipelineState,
) -> Result<(), RunError> {
    check_topology(plan, state)?;
    if state.pipeline_config_hash == plan.config_hash || request.force_resume {
        return Ok(());
    }
    let changes = changes(&state.config, &published_json(&plan.root.run));
    Err(PipelineError::ConfigChanged { changes }.into())
}

fn resumed(
    plan: &PipelinePlan,
    request: &Request,
    (env, operator): (&Environment, &str),
    (flag, from): (&'static str, usize),
) -> Result<Begun, RunError> {
    let mut state = read(plan, flag)?;
    check_same(plan, request, &state)?;
    let mut forced = None;
    if state.pipeline_config_hash != plan.config_hash {
        let forced_resume = ForcedResume {
            at: env.clock.utc().to_text_seconds(),
            operator: operator.to_owned(),
            old_config_hash: state.pipeline_config_hash.clone(),
            new_config_hash: plan.config_hash.clone(),
        };
        state.pipeline_config_hash.clone_from(&plan.config_hash);
        state.forced_resumes.push(forced_resume.clone());
        state.config = published_json(&plan.root.run);
        forced = Some(forced_resume);
    }
    for (row, stage) in state.stages.iter_mut().zip(&plan.stages) {
        row.trainer_type = stage.run.training.trainer_type.to_string();
        if matches!(row.status, StageStatus::SkippedDueToPriorRevert | StageStatus::SkippedByFilter)
        {
            *row = StageRow::new(row.index, &row.name, &row.trainer_type);
        }
    }
    VERSION.clone_into(&mut state.forgelm_version);
    Ok(Begun { state, is_new: false, from, only: None, forced })
}

/// The state for one stage: a new pipeline by its id, with what the one before knows of the others.
fn only(plan: &PipelinePlan, stage: &StagePlan, env: &Environment) -> Result<Begun, RunError> {
    let mut begun = Begun::fresh(plan, env);
    // Another state than these two was refused by the check.
    let known = PipelineState::read(&plan.dir).ok();
    for row in &mut begun.state.stages {
        if let Some(before) = known.as_ref().map(|state| &state.stages[row.index]) {
            row.clone_from(before);
        }
        if row.index != stage.index && row.status != StageStatus::Completed {
            row.status = StageStatus::SkippedByFilter;
            row.gate_decision = None;
        }
    }
    Ok(Begun { only: Some(stage.index), ..begun })
}

/// What differs between two configs, key by key, with both values.
fn changes(then: &Value, now: &Value) -> Vec<String> {
    let mut found = Vec::new();
    differences("", then, now, &mut found);
    if found.is_empty() {
        found.push("only comments, blanks, or an address".to_owned());
    }
    found
}

fn differences(path: &str, then: &Value, now: &Value, found: &mut Vec<String>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (then, now) {
        _ if then == now => {}
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            for key in keys {
                let of = |members: &serde_json::Map<String, Value>| {
                    members.get(key).cloned().unwrap_or_default()
                };
                differences(&below(key), &of(a), &of(b), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{i}]"), a, b, found);
            }
        }
        _ => {
            let shown = |value: &Value| {
                let text = value.to_string();
                match text.char_indices().nth(80) {
                    Some((end, _)) => format!("{}…", &text[..end]),
                    None => text,
                }
            };
            found.push(format!("`{path}`: was {}; is {}", shown(then), shown(now)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::changes;
    use serde_json::json;

    #[test]
    fn what_changed_is_said_key_by_key_with_both_values() {
        let then = json!({"a": {"b": 1, "c": [1, {"d": "x"}]}, "gone": true, "same": 0});
        let now = json!({"a": {"b": 2, "c": [1, {"d": "y"}]}, "new": null, "same": 0, "more": [1]});
        assert_eq!(
            changes(&then, &now),
            [
                "`a.b`: was 1; is 2",
                "`a.c[1].d`: was \"x\"; is \"y\"",
                "`gone`: was true; is null",
                "`more`: was null; is [1]",
            ]
        );
        assert_eq!(changes(&then, &then), ["only comments, blanks, or an address"]);
        let long = changes(&json!({"a": "é".repeat(200)}), &json!({"a": 1}));
        assert!(long[0].chars().count() < 120, "{long:?}");
    }
}
