//! Rules of pipelines: names, folders, and every stage as the training that it will be.

use std::collections::BTreeMap;

use super::{Findings, Scope, engine, gates};
use crate::diagnostic::Code;
use crate::run::Run;
use crate::section::Stage;

pub fn check(run: &Run, root: &Scope<'_>, findings: &mut Findings<'_>) {
    let Some(pipeline) = &run.pipeline else {
        return;
    };
    if pipeline.stages.is_empty() {
        let message = "`pipeline.stages` is empty; expected at least one stage".to_owned();
        let keys = ["pipeline.stages", "pipeline"];
        findings.error(Code::OutOfRange, &keys, message, "a stage needs a `name`");
    }
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    let mut folders: BTreeMap<String, String> = BTreeMap::new();
    for (i, stage) in pipeline.stages.iter().enumerate() {
        let path = format!("pipeline.stages[{i}]");
        let name = format!("{path}.name");
        if let Some(first) = names.insert(&stage.name, name.clone()) {
            let message = format!(
                "`{name}` is `{}`, which `{first}`{} is too",
                stage.name,
                findings.at(&first)
            );
            findings.error(
                Code::Conflict,
                &[&name, &first],
                message,
                "give each stage its own name",
            );
        }
        let trainer = format!("{path}.training.trainer_type");
        if stage.training.is_some() && !findings.written.contains(&trainer) {
            let message = format!("`{trainer}` is missing; a stage names its trainer");
            let training = format!("{path}.training");
            findings.error(
                Code::MissingKey,
                &[&trainer, &training],
                message,
                "write `trainer_type:` under the stage's `training`",
            );
        }
        let scope = stage_scope(root, stage, &path);
        let folder = normal(&scope.training.0.output_dir);
        let key = scope.in_training("output_dir");
        if let Some(first) = folders.insert(folder.clone(), stage.name.clone()) {
            let message =
                format!("the stages `{first}` and `{}` both write to `{folder}`", stage.name);
            findings.error(
                Code::Conflict,
                &[&key, &name],
                message,
                "give each stage its own `training.output_dir`",
            );
        }
        engine::check(&scope, run, findings);
        gates::check_scope(&scope, findings);
    }
}

/// The sections of a stage: its own, else the root's.
fn stage_scope<'a>(root: &Scope<'a>, stage: &'a Stage, path: &str) -> Scope<'a> {
    let at = |section: &str| format!("{path}.{section}");
    Scope {
        model: stage.model.as_ref().map_or_else(|| root.model.clone(), |m| (m, at("model"))),
        lora: stage.lora.as_ref().map_or_else(|| root.lora.clone(), |l| (l, at("lora"))),
        training: stage
            .training
            .as_ref()
            .map_or_else(|| root.training.clone(), |t| (t, at("training"))),
        data: stage.data.as_ref().map_or_else(|| root.data.clone(), |d| (d, at("data"))),
        evaluation: stage
            .evaluation
            .as_ref()
            .map_or_else(|| root.evaluation.clone(), |e| Some((e, at("evaluation")))),
    }
}

/// A path without `.`, and without `..` where a name stands before it. Links are the caller's
/// matter: this crate knows no files.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|p| !p.is_empty() && *p != ".") {
        if part == ".." && parts.last().is_some_and(|last| *last != "..") {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    let root = if path.starts_with('/') { "/" } else { "./" };
    format!("{root}{}", parts.join("/"))
}
