//! What Annex IV asks, point by point, and which keys of the config answer it.
//!
//! The numbering is that of the Regulation's own text (Annex IV to Regulation (EU) 2024/1689). What
//! is asked is said in short words here; the text of the Official Journal is the one that counts.

/// A sub-point.
#[derive(Debug)]
pub struct Requirement {
    /// `1(a)` to `9`.
    pub point: &'static str,
    /// What is asked, in short.
    pub requirement: &'static str,
    /// What must be there before the point counts as answered.
    pub needs: &'static [Need],
    /// Keys that say more, and whose absence is no gap.
    pub more: &'static [&'static str],
}

/// Something that an answer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A key of the config.
    Key(&'static str),
    /// One of these keys.
    AnyOf(&'static [&'static str]),
    /// What only a finished training run has.
    Run,
    /// All items of Article 13(3).
    Instructions,
}

use Need::{AnyOf, Instructions, Key, Run};

const OVERSIGHT: &str = "compliance.annex_iv.human_oversight";
const MISUSE: &str = "risk_assessment.foreseeable_misuse";

/// Every sub-point, in order.
pub const REQUIREMENTS: [Requirement; 23] = [
    Requirement {
        point: "1(a)",
        requirement: "intended purpose, name of the provider, version and its relation to previous \
                      versions",
        needs: &[
            Key("compliance.provider_name"),
            Key("compliance.system_name"),
            Key("compliance.intended_purpose"),
            Key("compliance.system_version"),
            AnyOf(&[
                "compliance.previous_manifest",
                "compliance.annex_iv.relation_to_previous_versions",
            ]),
        ],
        more: &[],
    },
    Requirement {
        point: "1(b)",
        requirement: "how the system interacts with hardware, software and other AI systems that are \
                      not part of it",
        needs: &[Key("compliance.annex_iv.interactions")],
        more: &[],
    },
    Requirement {
        point: "1(c)",
        requirement: "versions of relevant software or firmware, and requirements of updates",
        needs: &[Run],
        more: &["compliance.annex_iv.update_requirements"],
    },
    Requirement {
        point: "1(d)",
        requirement: "the forms in which the system is placed on the market or put into service",
        needs: &[Run, Key("compliance.annex_iv.forms_of_supply")],
        more: &[],
    },
    Requirement {
        point: "1(e)",
        requirement: "the hardware on which the system is intended to run",
        needs: &[Key("compliance.annex_iv.intended_hardware")],
        more: &[],
    },
    Requirement {
        point: "1(f)",
        requirement: "where it is a component of products: their external features, marking and \
                      internal layout",
        needs: &[Key("compliance.annex_iv.product")],
        more: &[],
    },
    Requirement {
        point: "1(g)",
        requirement: "a basic description of the user interface for the deployer",
        needs: &[Key("compliance.annex_iv.user_interface")],
        more: &[],
    },
    Requirement {
        point: "1(h)",
        requirement: "instructions for use for the deployer (Article 13(3))",
        needs: &[Run, Instructions],
        more: &[],
    },
    Requirement {
        point: "2(a)",
        requirement: "methods and steps of the development, and the use of pre-trained systems or \
                      tools of third parties",
        needs: &[Run],
        more: &["compliance.annex_iv.base_model_documents"],
    },
    Requirement {
        point: "2(b)",
        requirement: "design specifications: general logic, key choices with rationale and \
                      assumptions, for whom, classification, what is optimized, expected output, \
                      trade-offs",
        needs: &[
            Key("compliance.annex_iv.design.general_logic"),
            Key("compliance.annex_iv.design.choices"),
            Key("compliance.annex_iv.design.intended_persons"),
            Key("compliance.annex_iv.design.classification_choices"),
            Key("compliance.annex_iv.design.optimized_for"),
            Key("compliance.annex_iv.design.expected_output"),
            Key("compliance.annex_iv.design.trade_offs"),
        ],
        more: &[],
    },
    Requirement {
        point: "2(c)",
        requirement: "the architecture, how components build on each other, and the computational \
                      resources used",
        needs: &[Run],
        more: &[],
    },
    Requirement {
        point: "2(d)",
        requirement: "data sheets: data sets, provenance, scope, characteristics, how data was \
                      obtained, selected, labelled and cleaned",
        needs: &[
            Run,
            Key("data.governance.collection_method"),
            Key("data.governance.annotation_process"),
            Key("compliance.annex_iv.data_sheet.characteristics"),
            Key("compliance.annex_iv.data_sheet.selection"),
            Key("compliance.annex_iv.data_sheet.cleaning"),
        ],
        more: &[
            "data.governance.known_biases",
            "compliance.annex_iv.data_sheet.original_purpose",
            "compliance.annex_iv.data_sheet.gaps",
        ],
    },
    Requirement {
        point: "2(e)",
        requirement: "assessment of the human oversight measures (Article 14), with technical measures \
                      for the interpretation of outputs (Article 13(3)(d))",
        needs: &[Key(OVERSIGHT), Key("compliance.annex_iv.interpretation_measures")],
        more: &[],
    },
    Requirement {
        point: "2(f)",
        requirement: "pre-determined changes, and what keeps the system compliant after them",
        needs: &[Key("compliance.annex_iv.predetermined_changes")],
        more: &[],
    },
    Requirement {
        point: "2(g)",
        requirement: "validation and testing: procedures, data, metrics of accuracy, robustness and \
                      discriminatory impact; logs and reports dated and signed by the responsible \
                      persons",
        needs: &[
            Run,
            Key("compliance.annex_iv.testing.procedures"),
            Key("compliance.annex_iv.testing.robustness"),
            Key("compliance.annex_iv.testing.discriminatory_impact"),
            Key("compliance.annex_iv.testing.responsible"),
        ],
        more: &[],
    },
    Requirement {
        point: "2(h)",
        requirement: "cybersecurity measures put in place",
        needs: &[Key("compliance.annex_iv.cybersecurity_measures")],
        more: &[],
    },
    Requirement {
        point: "3",
        requirement: "monitoring, functioning and control: capabilities and limits, accuracy for \
                      specific persons or groups, unintended outcomes and sources of risk, oversight, \
                      input data",
        needs: &[
            Key("compliance.known_limitations"),
            Key("compliance.annex_iv.group_performance"),
            Key("compliance.annex_iv.unintended_outcomes"),
            Key(MISUSE),
            Key(OVERSIGHT),
            Key("compliance.annex_iv.input_specification"),
        ],
        more: &[],
    },
    Requirement {
        point: "4",
        requirement: "the appropriateness of the performance metrics for this system",
        needs: &[Key("compliance.annex_iv.metrics_rationale")],
        more: &[],
    },
    Requirement {
        point: "5",
        requirement: "the risk management system (Article 9)",
        needs: &[
            Key("risk_assessment.intended_use"),
            Key(MISUSE),
            Key("risk_assessment.mitigation_measures"),
            Key("compliance.annex_iv.residual_risk"),
        ],
        more: &["risk_assessment.vulnerable_groups_considered"],
    },
    Requirement {
        point: "6",
        requirement: "relevant changes made by the provider through the life cycle",
        needs: &[AnyOf(&["compliance.previous_manifest", "compliance.annex_iv.changes"])],
        more: &["compliance.annex_iv.changes"],
    },
    Requirement {
        point: "7",
        requirement: "harmonized standards applied in full or in part; else the solutions that meet \
                      the requirements",
        needs: &[AnyOf(&["compliance.annex_iv.standards", "compliance.annex_iv.other_solutions"])],
        more: &["compliance.annex_iv.other_solutions"],
    },
    Requirement {
        point: "8",
        requirement: "a copy of the EU declaration of conformity (Article 47)",
        needs: &[AnyOf(&[
            "compliance.annex_iv.declaration_of_conformity_file",
            "compliance.annex_iv.declaration_of_conformity",
        ])],
        more: &[],
    },
    Requirement {
        point: "9",
        requirement: "the system to evaluate performance after it is on the market (Article 72), with \
                      the monitoring plan",
        needs: &[AnyOf(&[
            "compliance.annex_iv.post_market_plan_file",
            "compliance.annex_iv.post_market_monitoring",
        ])],
        more: &["compliance.annex_iv.post_market_monitoring"],
    },
];

/// An item of Article 13(3) in the instructions for use.
#[derive(Debug)]
pub struct InstructionItem {
    /// `13(3)(a)` to `13(3)(f)`.
    pub item: &'static str,
    /// What is asked, in short.
    pub requirement: &'static str,
    /// The keys that answer it.
    pub keys: &'static [&'static str],
}

/// The items of Article 13(3), with the seven of (b), in order.
pub const INSTRUCTIONS: [InstructionItem; 12] = [
    InstructionItem {
        item: "13(3)(a)",
        requirement: "identity and contact of the provider",
        keys: &["compliance.provider_name", "compliance.provider_contact"],
    },
    InstructionItem {
        item: "13(3)(b)(i)",
        requirement: "intended purpose",
        keys: &["compliance.intended_purpose"],
    },
    InstructionItem {
        item: "13(3)(b)(ii)",
        requirement: "level of accuracy, robustness and cybersecurity, and what may change it",
        keys: &["compliance.annex_iv.instructions.expected_accuracy"],
    },
    InstructionItem {
        item: "13(3)(b)(iii)",
        requirement: "foreseeable circumstances that may lead to risks",
        keys: &["risk_assessment.foreseeable_misuse", "compliance.known_limitations"],
    },
    InstructionItem {
        item: "13(3)(b)(iv)",
        requirement: "capabilities to explain the output",
        keys: &["compliance.annex_iv.instructions.explanations"],
    },
    InstructionItem {
        item: "13(3)(b)(v)",
        requirement: "performance for specific persons or groups",
        keys: &["compliance.annex_iv.group_performance"],
    },
    InstructionItem {
        item: "13(3)(b)(vi)",
        requirement: "specifications of the input data, and of the training, validation and test data",
        keys: &["compliance.annex_iv.input_specification"],
    },
    InstructionItem {
        item: "13(3)(b)(vii)",
        requirement: "how to interpret the output and use it appropriately",
        keys: &["compliance.annex_iv.instructions.output_interpretation"],
    },
    InstructionItem {
        item: "13(3)(c)",
        requirement: "pre-determined changes of the system and its performance",
        keys: &["compliance.annex_iv.predetermined_changes"],
    },
    InstructionItem {
        item: "13(3)(d)",
        requirement: "human oversight measures, and technical measures to interpret outputs",
        keys: &[OVERSIGHT, "compliance.annex_iv.interpretation_measures"],
    },
    InstructionItem {
        item: "13(3)(e)",
        requirement: "computational and hardware resources, lifetime, maintenance and care",
        keys: &[
            "compliance.annex_iv.intended_hardware",
            "compliance.annex_iv.instructions.lifetime_and_maintenance",
        ],
    },
    InstructionItem {
        item: "13(3)(f)",
        requirement: "how deployers collect, store and interpret logs (Article 12)",
        keys: &["compliance.annex_iv.instructions.log_collection"],
    },
];

#[cfg(test)]
mod tests {
    use super::{INSTRUCTIONS, REQUIREMENTS};

    /// Eight sub-points of 1, eight of 2, and 3 to 9.
    #[test]
    fn the_points_are_those_of_the_regulation() {
        let points: Vec<&str> = REQUIREMENTS.iter().map(|r| r.point).collect();
        let mut expected: Vec<String> = Vec::new();
        for point in ["1", "2"] {
            expected.extend(('a'..='h').map(|letter| format!("{point}({letter})")));
        }
        expected.extend((3..=9).map(|point| point.to_string()));
        assert_eq!(points, expected);
        assert_eq!(INSTRUCTIONS.len(), 12, "six of Article 13(3), of which (b) has seven");
    }
}
