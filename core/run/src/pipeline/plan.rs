//! What a pipeline will do, decided before anything is done: each stage as the run that it will be,
//! and every reason why the stages cannot be run together.

use super::error::PipelineError;
use crate::compliance;
use crate::error::RunError;
use crate::output::resolved;
use crate::plan::Plan;
use forgelm_artifact::hash::sha256_bytes;
use forgelm_config::{Run, Stage};
use forgelm_evidence::audit::LOG_FILE;
use forgelm_evidence::bundle::COMPLIANCE_DIR;
use forgelm_evidence::pipeline::PIPELINE_MANIFEST;
use forgelm_evidence::pipeline::state::{InputSource, STATE_FILE};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};

/// The folder of models that stages begin at, below the pipeline's.
pub(super) const START_MODELS: &str = "start_models";

/// A pipeline whose stages are checked.
#[derive(Clone, Debug)]
pub struct PipelinePlan {
    /// The root of the config.
    pub root: Plan,
    /// `pipeline.output_dir`.
    pub dir: PathBuf,
    /// `sha256:` and the digest of the bytes of the config.
    pub config_hash: String,
    /// The stages, in order.
    pub stages: Vec<StagePlan>,
}

/// A stage.
#[derive(Clone, Debug)]
pub struct StagePlan {
    /// Its name.
    pub name: String,
    /// Its place, from 0.
    pub index: usize,
    /// The run that it is, with the model as configured.
    pub run: Run,
    /// Its folder, below the pipeline's, with `/`.
    pub folder: String,
    /// Whether it has a `model` section of its own.
    pub has_own_model: bool,
}

impl StagePlan {
    /// The plan of its run, at `model` where that is not the one of the config. A pinned revision goes
    /// with the model that it pins.
    ///
    /// # Errors
    /// If the model is named in no known way.
    pub fn plan(&self, model: Option<&str>) -> Result<Plan, RunError> {
        let mut run = self.run.clone();
        if let Some(name) = model {
            name.clone_into(&mut run.model.name_or_path);
            run.model.revision = None;
        }
        Plan::of(run, Vec::new())
    }

    /// Its tuned model, below the pipeline's folder.
    #[must_use]
    pub fn final_model(&self) -> String {
        format!("{}/{}", self.folder, self.run.training.final_model_dir)
    }

    /// Where its model comes from, when nobody names another.
    #[must_use]
    pub fn source(&self) -> InputSource {
        match (self.has_own_model, self.index) {
            (true, _) => InputSource::StageExplicit,
            (false, 0) => InputSource::Root,
            (false, _) => InputSource::Chain,
        }
    }
}

impl PipelinePlan {
    /// From the root of a config, and its bytes. With `is_strict`, no point of the technical
    /// documentation may stay open in any stage.
    ///
    /// # Errors
    /// Every problem of every stage at once. Nothing is written.
    pub fn of(root: Plan, bytes: &[u8], is_strict: bool) -> Result<Self, RunError> {
        let Some(section) = root.run.pipeline.clone() else {
            let text = "the config has no `pipeline` section".to_owned();
            return Err(PipelineError::Flags(text).into());
        };
        let dir = PathBuf::from(&section.output_dir);
        let mut problems = Vec::new();
        let stages: Vec<StagePlan> = section
            .stages
            .iter()
            .enumerate()
            .map(|(index, stage)| StagePlan {
                name: stage.name.clone(),
                index,
                run: stage.run(&root.run),
                folder: folder(&dir, index, stage, &root.run, &mut problems),
                has_own_model: stage.model.is_some(),
            })
            .collect();
        collisions(&stages, &mut problems);
        for stage in &stages {
            let checked = stage.plan(None).and_then(|plan| compliance::check(&plan, is_strict));
            if let Err(error) = checked {
                problems.push(format!("stage `{}`: {}", stage.name, error.chain()));
            }
        }
        if !problems.is_empty() {
            return Err(PipelineError::Plan(problems).into());
        }
        let config_hash = format!("sha256:{}", sha256_bytes(bytes).as_str());
        Ok(Self { root, dir, config_hash, stages })
    }

    /// The stage of a name that was given with a flag.
    ///
    /// # Errors
    /// If there is none.
    pub fn stage(&self, name: &str, flag: &'static str) -> Result<&StagePlan, PipelineError> {
        self.stages.iter().find(|stage| stage.name == name).ok_or_else(|| {
            PipelineError::NoSuchStage { flag, name: name.to_owned(), names: self.names() }
        })
    }

    /// The names of the stages, for a message.
    #[must_use]
    pub fn names(&self) -> String {
        let names: Vec<String> = self.stages.iter().map(|s| format!("`{}`", s.name)).collect();
        names.join(", ")
    }

    /// What a stage begins at, when all goes well.
    fn input(&self, stage: &StagePlan) -> String {
        match stage.source() {
            InputSource::Chain => {
                self.dir.join(self.stages[stage.index - 1].final_model()).display().to_string()
            }
            InputSource::Root | InputSource::StageExplicit | InputSource::CliOverride => {
                stage.run.model.name_or_path.clone()
            }
        }
    }

    /// The plan as the JSON that `--dry-run` prints.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let row = |stage: &StagePlan| {
            json!({
                "name": stage.name,
                "trainer_type": stage.run.training.trainer_type.to_string(),
                "input_source": stage.source().as_str(),
                "input_model": self.input(stage),
                "dataset": stage.run.data.dataset_name_or_path,
                "output_dir": stage.run.training.output_dir,
                "output_model": self.dir.join(stage.final_model()),
            })
        };
        json!({
            "success": true,
            "status": "valid",
            "pipeline_config_hash": self.config_hash,
            "output_dir": self.dir,
            "stages": self.stages.iter().map(row).collect::<Vec<_>>(),
            "errors": [],
            "warnings": self.root.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    }

    /// The plan for a person: that of every stage, at the model that it will begin at.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let (n, dir) = (self.stages.len(), self.dir.display());
        // Writing to a string cannot fail.
        let _ = writeln!(text, "pipeline of {n} stages in {dir}");
        for (head, file) in [
            ("writes   ", STATE_FILE),
            ("         ", PIPELINE_MANIFEST),
            ("         ", LOG_FILE),
            ("         ", "start_models/, where a stage begins at an adapter"),
        ] {
            let _ = writeln!(text, "{head}{dir}/{file}");
        }
        for stage in &self.stages {
            let _ = writeln!(text, "\nstage {} of {n}: {}", stage.index + 1, stage.name);
            let input = self.input(stage);
            // Whether the name means anything was checked.
            let plan = stage.plan((stage.source() == InputSource::Chain).then_some(&input));
            let shown = plan.map(|plan| plan.to_text()).unwrap_or_default();
            let own = shown.lines().filter(|line| !line.starts_with("the config is valid"));
            own.for_each(|line| text.push_str(&format!("{line}\n")));
        }
        text.push_str("\nthe config is valid; nothing was read, contacted or written yet\n");
        text
    }
}

/// The folder of a stage below that of its pipeline; a problem where it is not below it, since what
/// lies elsewhere does not travel with the pipeline, and no verifier takes it for evidence of it.
fn folder(
    dir: &Path,
    index: usize,
    stage: &Stage,
    root: &Run,
    problems: &mut Vec<String>,
) -> String {
    let (key, given) = match &stage.training {
        Some(training) => {
            (format!("pipeline.stages[{index}].training.output_dir"), &training.output_dir)
        }
        None => ("training.output_dir".to_owned(), &root.training.output_dir),
    };
    let (place, whole) = (resolved(Path::new(given)), resolved(dir));
    let below = place.strip_prefix(&whole).ok().filter(|below| !below.as_os_str().is_empty());
    let shown = dir.display();
    let Some(below) = below else {
        problems.push(format!(
            "`{key}`: stage `{}` writes to `{given}`; expected a folder in `pipeline.output_dir`, \
             which is `{shown}`\n  hint: for example `{shown}/{}`",
            stage.name, stage.name
        ));
        return given.clone();
    };
    let first = below.components().next().map(Component::as_os_str).unwrap_or_default();
    if let Some(taken) = [COMPLIANCE_DIR, START_MODELS].into_iter().find(|taken| first == *taken) {
        problems.push(format!(
            "`{key}`: stage `{}` writes to `{given}`, and `{taken}` is the pipeline's own\n  hint: for \
             example `{shown}/{}`",
            stage.name, stage.name
        ));
    }
    match below.to_str() {
        Some(below) => below.to_owned(),
        None => {
            problems.push(format!("`{key}`: `{given}` is not UTF-8"));
            given.clone()
        }
    }
}

/// Two stages in one folder, or one in the other's.
fn collisions(stages: &[StagePlan], problems: &mut Vec<String>) {
    for (i, stage) in stages.iter().enumerate() {
        for before in &stages[..i] {
            let (a, b) = (Path::new(&before.folder), Path::new(&stage.folder));
            let (first, second) = (&before.name, &stage.name);
            let (at, other) = (&before.run.training.output_dir, &stage.run.training.output_dir);
            if a == b {
                problems.push(format!(
                    "the stages `{first}` (`{at}`) and `{second}` (`{other}`) write to one folder\n  \
                     hint: give each stage its own `training.output_dir`"
                ));
            } else if a.starts_with(b) || b.starts_with(a) {
                problems.push(format!(
                    "the folder of one of the stages `{first}` (`{at}`) and `{second}` (`{other}`) lies \
                     in that of the other\n  hint: put them beside each other"
                ));
            }
        }
    }
}
