//! The built-in tasks: published definitions, in the same YAML as anyone's.

use std::borrow::Cow;

/// Tasks and groups with a file of their own.
const FILES: [(&str, &str); 14] = [
    ("arc_challenge", include_str!("builtin/arc_challenge.yaml")),
    ("arc_easy", include_str!("builtin/arc_easy.yaml")),
    ("boolq", include_str!("builtin/boolq.yaml")),
    ("gsm8k", include_str!("builtin/gsm8k.yaml")),
    ("hellaswag", include_str!("builtin/hellaswag.yaml")),
    ("lambada_openai", include_str!("builtin/lambada_openai.yaml")),
    ("lambada_standard", include_str!("builtin/lambada_standard.yaml")),
    ("mmlu", include_str!("builtin/mmlu.yaml")),
    ("mmlu_subject", include_str!("builtin/mmlu_subject.yaml")),
    ("openbookqa", include_str!("builtin/openbookqa.yaml")),
    ("piqa", include_str!("builtin/piqa.yaml")),
    ("truthfulqa_mc1", include_str!("builtin/truthfulqa_mc1.yaml")),
    ("truthfulqa_mc2", include_str!("builtin/truthfulqa_mc2.yaml")),
    ("winogrande", include_str!("builtin/winogrande.yaml")),
];

/// Built-ins that are only included.
pub(crate) const PARTS: [&str; 1] = ["mmlu_subject"];

/// The groups of MMLU, what they are called in tables, and their subjects.
const MMLU: [(&str, &str, &[&str]); 4] = [
    (
        "mmlu_humanities",
        "humanities",
        &[
            "formal_logic",
            "high_school_european_history",
            "high_school_us_history",
            "high_school_world_history",
            "international_law",
            "jurisprudence",
            "logical_fallacies",
            "moral_disputes",
            "moral_scenarios",
            "philosophy",
            "prehistory",
            "professional_law",
            "world_religions",
        ],
    ),
    (
        "mmlu_other",
        "other",
        &[
            "business_ethics",
            "clinical_knowledge",
            "college_medicine",
            "global_facts",
            "human_aging",
            "management",
            "marketing",
            "medical_genetics",
            "miscellaneous",
            "nutrition",
            "professional_accounting",
            "professional_medicine",
            "virology",
        ],
    ),
    (
        "mmlu_social_sciences",
        "social sciences",
        &[
            "econometrics",
            "high_school_geography",
            "high_school_government_and_politics",
            "high_school_macroeconomics",
            "high_school_microeconomics",
            "high_school_psychology",
            "human_sexuality",
            "professional_psychology",
            "public_relations",
            "security_studies",
            "sociology",
            "us_foreign_policy",
        ],
    ),
    (
        "mmlu_stem",
        "stem",
        &[
            "abstract_algebra",
            "anatomy",
            "astronomy",
            "college_biology",
            "college_chemistry",
            "college_computer_science",
            "college_mathematics",
            "college_physics",
            "computer_security",
            "conceptual_physics",
            "electrical_engineering",
            "elementary_mathematics",
            "high_school_biology",
            "high_school_chemistry",
            "high_school_computer_science",
            "high_school_mathematics",
            "high_school_physics",
            "high_school_statistics",
            "machine_learning",
        ],
    ),
];

/// The definition of a built-in task or group.
pub(crate) fn text(name: &str) -> Option<Cow<'static, str>> {
    if let Some((_, text)) = FILES.iter().find(|(other, _)| *other == name) {
        return Some(Cow::Borrowed(text));
    }
    if let Some((group, alias, subjects)) = MMLU.iter().find(|(group, ..)| *group == name) {
        let tasks: String =
            subjects.iter().map(|subject| format!("  - mmlu_{subject}\n")).collect();
        return Some(Cow::Owned(format!(
            "group: {group}\ngroup_alias: {alias}\ntask:\n{tasks}aggregate_metric_list:\n  \
             - metric: acc\n    weight_by_size: true\nmetadata:\n  version: 2\n"
        )));
    }
    let subject = name.strip_prefix("mmlu_")?;
    let is_one = MMLU.iter().any(|(_, _, subjects)| subjects.contains(&subject));
    let words = subject.replace('_', " ");
    is_one.then(|| {
        Cow::Owned(format!(
            "include: mmlu_subject\ntask: mmlu_{subject}\ntask_alias: {words}\n\
             dataset_name: {subject}\ndescription: \"The following are multiple choice questions \
             (with answers) about {words}.\\n\\n\"\n"
        ))
    })
}

/// Every name that can be asked for.
pub(crate) fn names() -> Vec<String> {
    let files = FILES.iter().map(|(name, _)| *name).filter(|name| !PARTS.contains(name));
    let mut names: Vec<String> = files.map(str::to_owned).collect();
    for (group, _, subjects) in MMLU {
        names.push(group.to_owned());
        names.extend(subjects.iter().map(|subject| format!("mmlu_{subject}")));
    }
    names.sort();
    names
}
