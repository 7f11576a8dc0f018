//! The root of the config, and the way from text to it: text → `RawRun` → `Run`.

use crate::declare::section;
use crate::diagnostic::{Code, Diagnostic, Place, Severity};
use crate::read::{Readable, Reader, Written};
use crate::section::{
    Auth, Compliance, Data, Distributed, Evaluation, Lora, Merge, Model, Monitoring, Pipeline,
    Plugins, Retention, RiskAssessment, RiskTier, Signing, Synthetic, Training, Webhook,
};
use crate::spec::Rules;
use crate::yaml::{self, Node, Value};

section! {
    /// A whole run.
    Run {
        /// The base model.
        model: Model = Model::default(), required("");
        /// The adapter.
        lora: Lora = Lora::default();
        /// The training.
        training: Training = Training::default();
        /// The data.
        data: Data = Data::default(), required("");
        /// Tokens for model hubs.
        auth: Option<Auth> = None;
        /// The gates after training.
        evaluation: Option<Evaluation> = None;
        /// How long artifacts are kept.
        retention: Option<Retention> = None;
        /// Notices to a chat or a monitor.
        webhook: Option<Webhook> = None;
        /// Several devices.
        distributed: Option<Distributed> = None;
        /// Several models into one.
        merge: Option<Merge> = None;
        /// Who provides the system, and what it is for.
        compliance: Option<Compliance> = None;
        /// The risks that were considered.
        risk_assessment: Option<RiskAssessment> = None;
        /// Watching the system after it is deployed.
        monitoring: Option<Monitoring> = None;
        /// Data written by a teacher model.
        synthetic: Option<Synthetic> = None;
        /// Several trainings, one after another; its presence makes the run a pipeline.
        pipeline: Option<Pipeline> = None;
        /// The signatures over the evidence.
        signing: Option<Signing> = None, ours();
        /// Shared libraries with more methods.
        plugins: Option<Plugins> = None, ours();
    }
}

impl Run {
    /// The signing section, with its defaults where it is not written.
    #[must_use]
    pub fn signing(&self) -> Signing {
        self.signing.clone().unwrap_or_default()
    }

    /// The tier that governs: the stricter of the two fields, where they are given.
    #[must_use]
    pub fn risk_tier(&self) -> RiskTier {
        let classification = self.compliance.as_ref().map(|c| c.risk_classification);
        let category = self.risk_assessment.as_ref().map(|r| r.risk_category);
        classification.max(category).unwrap_or(RiskTier::MinimalRisk)
    }

    /// The name of the run: `training.run_name`, else the last part of the model's name with
    /// `_finetune`.
    #[must_use]
    pub fn name(&self) -> String {
        self.training.run_name.clone().unwrap_or_else(|| {
            let path = self.model.name_or_path.trim_end_matches('/');
            format!("{}_finetune", path.rsplit('/').next().unwrap_or(path))
        })
    }
}

/// A config that was read and checked.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The run, with every default filled in.
    pub run: Run,
    /// Which keys were written, and where.
    pub written: Written,
    /// Warnings and notes.
    pub warnings: Vec<Diagnostic>,
    /// The file's name as the caller gave it.
    pub file: String,
}

/// A config as it is written: a tree with places, not yet held against the tables.
/// It has no Debug, since it may hold secrets.
pub struct RawRun {
    root: Node,
    /// Duplicate keys and bad merges; they are reported with the rest.
    problems: Vec<Diagnostic>,
    file: String,
}

impl RawRun {
    /// Parses the text of a config. `file` is only repeated in messages.
    ///
    /// # Errors
    /// One problem, for text that is not one YAML mapping.
    pub fn parse(text: &str, file: &str) -> Result<Self, Vec<Diagnostic>> {
        let named = |problems| in_file(problems, file);
        let blank = text.trim_start_matches('\u{feff}').lines().all(|line| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#')
        });
        if blank && text.len() <= yaml::FILE_BYTES_MAX {
            let message =
                "the file is empty; expected a mapping with `model` and `data`".to_owned();
            return Err(named(vec![Diagnostic::error(Code::NotAMapping, "", message)]));
        }
        let (root, problems) = yaml::parse(text).map_err(named)?;
        match root.value {
            Value::Map(_) => Ok(Self { root, problems, file: file.to_owned() }),
            Value::Null | Value::Scalar { .. } | Value::List(_) => {
                let message = format!(
                    "the file is {}; expected a mapping with `model` and `data`",
                    root.describe()
                );
                Err(named(vec![Diagnostic::error(Code::NotAMapping, "", message).at(root.place)]))
            }
        }
    }

    /// Holds the tree against the tables and the cross-field rules, and fills in defaults.
    ///
    /// # Errors
    /// Every problem, in the order of the file, with the warnings among them.
    pub fn resolve(self) -> Result<Loaded, Vec<Diagnostic>> {
        let mut reader = Reader { problems: self.problems, ..Reader::default() };
        let mut run = Run::read(&self.root, "", &Rules::NONE, &mut reader).unwrap_or_default();
        let Reader { mut problems, written } = reader;
        problems.extend(crate::rules::check(&mut run, &written, &problems));
        let mut problems = in_file(problems, &self.file);
        problems.sort_by_key(|d| {
            d.place.map_or((u64::MAX, 0), |Place { line, column }| (line, column))
        });
        if problems.iter().any(|d| d.severity == Severity::Error) {
            problems.retain(|d| d.severity > Severity::Note);
            return Err(problems);
        }
        Ok(Loaded { run, written, warnings: problems, file: self.file })
    }
}

fn in_file(mut problems: Vec<Diagnostic>, file: &str) -> Vec<Diagnostic> {
    for problem in &mut problems {
        file.clone_into(&mut problem.file);
    }
    problems
}

/// Reads and checks a config. `file` is only repeated in messages.
///
/// # Errors
/// Every problem, each with its place.
pub fn load(text: &str, file: &str) -> Result<Loaded, Vec<Diagnostic>> {
    RawRun::parse(text, file)?.resolve()
}

/// Reads and checks a config from the bytes of a file: UTF-8, with or without a byte-order mark.
///
/// # Errors
/// UTF-16 and broken UTF-8 are named; else as [`load`].
pub fn load_bytes(bytes: &[u8], file: &str) -> Result<Loaded, Vec<Diagnostic>> {
    let fail = |message: String, place| {
        let problem = Diagnostic::error(Code::Encoding, "", message).at(place);
        Err(in_file(vec![problem.hint("save the file as UTF-8")], file))
    };
    let utf16 = bytes.starts_with(&[0xff, 0xfe])
        || bytes.starts_with(&[0xfe, 0xff])
        || bytes.len() >= 4
            && (bytes[0] == 0) != (bytes[1] == 0)
            && (bytes[2] == 0) != (bytes[3] == 0);
    if utf16 {
        return fail("the file is UTF-16; expected UTF-8".to_owned(), None);
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => load(text, file),
        Err(error) => {
            let before = &bytes[..error.valid_up_to()];
            let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
            let start = before.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
            let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
            let place = Place { line: line as u64, column: column as u64 };
            let message = format!("byte {} is not UTF-8", error.valid_up_to());
            fail(message, Some(place))
        }
    }
}
