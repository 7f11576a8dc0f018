//! What a run knows of the items: lines of plain text, not escaped yet.

use serde_json::Value;

use super::calendar::CALENDAR;
use super::compute;
use crate::documents::annex_iv::Answers;
use crate::documents::evidence::Evidence;
use crate::documents::inventory::{base_version, data_sets, libraries, model_name, plain, results};

/// Something that a run knows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fact {
    Architecture,
    Modality,
    MaximumSize,
    Software,
    Training,
    Data,
    Resources,
    Energy,
    Results,
    Gates,
    Model,
    Base,
    SizeRange,
    DataSets,
}

impl Fact {
    /// Its lines; none where it is not known.
    pub(super) fn lines(self, evidence: &Evidence, given: &Answers) -> Vec<String> {
        match self {
            Self::Architecture => pairs(&evidence.technical.architecture),
            Self::Modality => vec!["text in, text out; UTF-8".to_owned()],
            Self::MaximumSize => maximum_size(evidence),
            Self::Software => software(evidence),
            Self::Training => training(evidence),
            Self::Data => data(evidence),
            Self::Resources => compute::resources(evidence, given),
            Self::Energy => compute::energy(evidence),
            Self::Results => {
                results(evidence).iter().map(|(name, value)| format!("{name}: {value}")).collect()
            }
            Self::Gates => gates(evidence),
            Self::Model if evidence.technical.is_standalone => vec![model_name(evidence)],
            Self::Model => {
                vec![format!("{}, of run {}", model_name(evidence), evidence.run_id)]
            }
            Self::Base => vec![base(evidence)],
            Self::SizeRange => compute::size_range(evidence),
            Self::DataSets => data_sets(evidence)
                .iter()
                .map(|set| format!("{}: {}", set.name, set.size_text()))
                .collect(),
        }
    }
}

fn pairs(members: &serde_json::Map<String, Value>) -> Vec<String> {
    members.iter().map(|(key, value)| format!("{key}: {}", plain(value))).collect()
}

fn base(evidence: &Evidence) -> String {
    let version = base_version(evidence).unwrap_or("not known");
    format!("made from {} ({version})", evidence.model_lineage.base_model)
}

fn maximum_size(evidence: &Evidence) -> Vec<String> {
    let of = |key: &str, what: &str| {
        let size = evidence.technical.input.get(key)?.as_u64()?;
        Some(format!("{what}: {size} tokens"))
    };
    [of("context_length", "context of the model"), of("max_length", "longest sequence in training")]
        .into_iter()
        .flatten()
        .collect()
}

fn software(evidence: &Evidence) -> Vec<String> {
    let program = format!("ForgeLM {} ({})", evidence.forgelm_version, evidence.builder.target);
    let libraries = libraries(evidence).into_iter().map(|library| {
        let sha256 = library.sha256.unwrap_or_else(|| "not recorded".to_owned());
        format!("{} {}, SHA-256 {sha256}", library.name, library.version)
    });
    std::iter::once(program).chain(libraries).collect()
}

fn training(evidence: &Evidence) -> Vec<String> {
    let p = &evidence.training_parameters;
    let mut lines = vec![
        format!(
            "{} of {}",
            evidence.model_lineage.adapter_method, evidence.model_lineage.base_model
        ),
        format!(
            "trainer {}; {} epochs; batches of {} x {}; learning rate {}; longest sequence {}; seed {}",
            p.trainer_type,
            p.epochs,
            p.batch_size,
            p.gradient_accumulation_steps,
            p.learning_rate,
            p.max_length,
            p.seed
        ),
    ];
    lines.extend(evidence.technical.objective.as_ref().map(|text| format!("objective: {text}")));
    lines
}

fn data(evidence: &Evidence) -> Vec<String> {
    let mut lines = Vec::new();
    for set in data_sets(evidence) {
        let sha256 = set.print.sha256.as_deref().unwrap_or("not recorded");
        lines.push(format!("{}: text; {}; SHA-256 {sha256}", set.name, set.size_text()));
    }
    lines.extend(pairs(&evidence.technical.data_filters));
    lines
}

fn gates(evidence: &Evidence) -> Vec<String> {
    let word = |passed| if passed { "passed" } else { "not passed" };
    evidence.gates.iter().map(|gate| format!("gate {}: {}", gate.gate, word(gate.passed))).collect()
}

/// The dates around these documents.
pub(super) fn calendar() -> Vec<String> {
    CALENDAR.iter().map(|row| format!("{}: {}", row.date, row.what)).collect()
}
