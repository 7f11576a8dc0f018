//! `compliance.annex_iv:` what only people know of the nine points of Annex IV to Regulation (EU)
//! 2024/1689. Each key says which point it answers. An answer may be `not applicable: <reason>`.

use super::text_rule::NOT_BLANK;
use crate::declare::section;

section! {
    /// Answers to Annex IV that a program cannot know. `not applicable: <reason>` is an answer.
    AnnexIv {
        /// 1(a): how this version relates to earlier ones; a first version says so.
        relation_to_previous_versions: String = String::new(), ours();
        /// 1(b): how the system works with hardware, software and other AI systems that are not part of
        /// it.
        interactions: String = String::new(), ours();
        /// 1(c): what updates of software or firmware the system needs.
        update_requirements: String = String::new(), ours();
        /// 1(d): the forms in which it is placed on the market: packages, downloads, APIs.
        forms_of_supply: Vec<String> = Vec::new(), ours();
        /// 1(e): the hardware on which it is meant to run.
        intended_hardware: String = String::new(), ours();
        /// 1(f): where it is a component of products: photographs, markings and layout, and where they
        /// are.
        product: String = String::new(), ours();
        /// 1(g): the user interface that the deployer gets.
        user_interface: String = String::new(), ours();
        /// 1(h), Article 13(3): what the deployer must know beside the rest.
        instructions: Instructions = Instructions::default(), ours();
        /// 2(a): the license of the base model, and where its provider's documents are.
        base_model_documents: String = String::new(), ours();
        /// 2(b): the design of the system, and why it is so.
        design: Design = Design::default(), ours();
        /// 2(d): the data, beside what `data.governance` says.
        data_sheet: DataSheet = DataSheet::default(), ours();
        /// 2(e), 3: the measures of human oversight under Article 14.
        human_oversight: String = String::new(), ours();
        /// 2(e): technical measures that help deployers to interpret outputs.
        interpretation_measures: String = String::new(), ours();
        /// 2(f): changes of the system that are determined beforehand, each with what keeps it compliant.
        predetermined_changes: Vec<PredeterminedChange> = Vec::new(), ours();
        /// 2(g): validation and testing.
        testing: Testing = Testing::default(), ours();
        /// 2(h): cybersecurity measures of the system, beside those of the training.
        cybersecurity_measures: Vec<String> = Vec::new(), ours();
        /// 3: accuracy for the persons or groups on which it is meant to be used.
        group_performance: String = String::new(), ours();
        /// 3: foreseeable unintended outcomes, and sources of risk to health, safety and rights.
        unintended_outcomes: Vec<String> = Vec::new(), ours();
        /// 3: what inputs must be like.
        input_specification: String = String::new(), ours();
        /// 4: why the metrics are appropriate for this system.
        metrics_rationale: Vec<MetricRationale> = Vec::new(), ours();
        /// 5: why the risk that remains is acceptable.
        residual_risk: String = String::new(), ours();
        /// 6: relevant changes through the life cycle; a first version says so.
        changes: Vec<String> = Vec::new(), ours();
        /// 7: harmonized standards that are applied, in full or in part.
        standards: Vec<AppliedStandard> = Vec::new(), ours();
        /// 7: where none is applied, how the requirements are met.
        other_solutions: String = String::new(), ours();
        /// 8: a copy of the EU declaration of conformity; the documents have its digest.
        declaration_of_conformity_file: Option<String> = None, ours(), text(NOT_BLANK);
        /// 8: where there is no file: where the declaration is, or why there is none.
        declaration_of_conformity: String = String::new(), ours();
        /// 9: the plan of post-market monitoring under Article 72; the documents have its digest.
        post_market_plan_file: Option<String> = None, ours(), text(NOT_BLANK);
        /// 9: the system that evaluates performance after it is on the market.
        post_market_monitoring: String = String::new(), ours();
    }
}

section! {
    /// 1(h), Article 13(3): what the instructions for use say that no other key has.
    Instructions {
        /// 13(3)(b)(ii): the level of accuracy, robustness and cybersecurity to expect, and what changes it.
        expected_accuracy: String = String::new(), ours();
        /// 13(3)(b)(iv): what the system can do to explain its output.
        explanations: String = String::new(), ours();
        /// 13(3)(b)(vii): how deployers interpret the output and use it appropriately.
        output_interpretation: String = String::new(), ours();
        /// 13(3)(e): expected lifetime, maintenance and care.
        lifetime_and_maintenance: String = String::new(), ours();
        /// 13(3)(f): how deployers collect, store and interpret logs under Article 12.
        log_collection: String = String::new(), ours();
    }
}

section! {
    /// 2(b): the design of the system, and why it is so.
    Design {
        /// The general logic of the system and its algorithms.
        general_logic: String = String::new(), ours();
        /// The key choices.
        choices: Vec<DesignChoice> = Vec::new(), ours();
        /// The persons or groups for whom it is meant.
        intended_persons: String = String::new(), ours();
        /// The main choices of classification.
        classification_choices: String = String::new(), ours();
        /// What it is designed to optimize for, and how parameters matter for it.
        optimized_for: String = String::new(), ours();
        /// The output that is expected, and its quality.
        expected_output: String = String::new(), ours();
        /// Decisions about trade-offs between technical solutions.
        trade_offs: String = String::new(), ours();
    }
}

section! {
    /// A key choice of the design.
    DesignChoice {
        /// What was chosen.
        choice: String = String::new(), ours(), required("a small base model"), text(NOT_BLANK);
        /// Why.
        rationale: String = String::new(), ours(), required("it runs on site"), text(NOT_BLANK);
        /// What was assumed.
        assumptions: String = String::new(), ours();
    }
}

section! {
    /// 2(d), Article 10: the data, beside what `data.governance` says.
    DataSheet {
        /// Scope and main characteristics.
        characteristics: String = String::new(), ours();
        /// How data was obtained and selected.
        selection: String = String::new(), ours();
        /// How it was cleaned before this run.
        cleaning: String = String::new(), ours();
        /// For personal data: the purpose for which it was collected.
        original_purpose: String = String::new(), ours();
        /// Gaps and shortcomings, and what is done about them.
        gaps: String = String::new(), ours();
    }
}

section! {
    /// A change that is determined beforehand.
    PredeterminedChange {
        /// What will change.
        change: String = String::new(), ours(), required("new answers each month"), text(NOT_BLANK);
        /// What keeps the system compliant after it.
        safeguard: String = String::new(), ours(), required("the same gates"), text(NOT_BLANK);
    }
}

section! {
    /// 2(g): validation and testing.
    Testing {
        /// The procedures, and on which data.
        procedures: String = String::new(), ours();
        /// How robustness was tested.
        robustness: String = String::new(), ours();
        /// How potentially discriminatory impact was tested.
        discriminatory_impact: String = String::new(), ours();
        /// Who is responsible for the tests: name and role.
        responsible: String = String::new(), ours();
    }
}

section! {
    /// Why a metric is appropriate.
    MetricRationale {
        /// The metric, as the report names it.
        metric: String = String::new(), ours(), required("eval_loss"), text(NOT_BLANK);
        /// Why it is appropriate.
        rationale: String = String::new(), ours(), required("it is what answers cost"), text(NOT_BLANK);
    }
}

section! {
    /// A standard that is applied.
    AppliedStandard {
        /// Its name and version.
        standard: String = String::new(), ours(), required("ISO/IEC 42001:2023"), text(NOT_BLANK);
        /// Which clauses; empty: all.
        clauses: String = String::new(), ours();
        /// What shows it.
        evidence: String = String::new(), ours();
    }
}
