//! What Annexes XI and XII and the Commission's template ask for, item by item: the keys that answer it
//! and what a run knows of it.
//!
//! Short forms: the Regulation's and the template's own texts count.

use super::known::Fact;

/// An item of a document.
pub(super) struct Item {
    pub(super) number: &'static str,
    /// What is asked, in short.
    pub(super) asked: &'static str,
    /// Keys that are asked for; of each row one suffices.
    pub(super) keys: &'static [&'static [&'static str]],
    pub(super) facts: &'static [Fact],
}

const fn item(
    number: &'static str,
    asked: &'static str,
    keys: &'static [&'static [&'static str]],
    facts: &'static [Fact],
) -> Item {
    Item { number, asked, keys, facts }
}

const TASKS: &[&[&str]] = &[&["compliance.gpai.tasks"], &["compliance.gpai.intended_systems"]];
const POLICY: &[&[&str]] = &[&["compliance.gpai.acceptable_use_policy"]];
const RELEASE: &[&[&str]] =
    &[&["compliance.gpai.release_date"], &["compliance.gpai.distribution_methods"]];
const LICENSE: &[&[&str]] = &[&["compliance.gpai.license"]];
const MEANS: &[&[&str]] = &[&["compliance.gpai.integration_means"]];
const SELECTION: &[&str] =
    &["compliance.gpai.data_selection", "compliance.annex_iv.data_sheet.selection"];
const CURATION: &[&str] =
    &["compliance.gpai.data_curation", "compliance.annex_iv.data_sheet.cleaning"];

/// Annex XI, section 1 and, for models with systemic risk, section 2.
pub(super) const ANNEX_XI: [Item; 14] = [
    item("1.1(a)", "the tasks, and the AI systems in which it can be integrated", TASKS, &[]),
    item("1.1(b)", "the acceptable use policies", POLICY, &[]),
    item("1.1(c)", "the date of release and the methods of distribution", RELEASE, &[]),
    item("1.1(d)", "the architecture and the number of parameters", &[], &[Fact::Architecture]),
    item("1.1(e)", "the modality and format of inputs and outputs", &[], &[Fact::Modality]),
    item("1.1(f)", "the license", LICENSE, &[]),
    item("1.2(a)", "the technical means to integrate it", MEANS, &[]),
    item(
        "1.2(b)",
        "the design of the model and of its training: methods, key choices with rationale and \
         assumptions, what is optimized for",
        &[&["compliance.gpai.design_choices", "compliance.annex_iv.design.choices"]],
        &[Fact::Training],
    ),
    item(
        "1.2(c)",
        "the data for training, testing and validation: type, provenance, curation, number of points, \
         selection, unsuitable sources, biases",
        &[
            SELECTION,
            CURATION,
            &["compliance.gpai.unsuitability_measures"],
            &["compliance.gpai.bias_methods"],
        ],
        &[Fact::Data],
    ),
    item("1.2(d)", "the compute and the time of the training", &[], &[Fact::Resources]),
    item(
        "1.2(e)",
        "the energy of the training, known or estimated",
        &[&["compliance.gpai.energy_estimate"]],
        &[Fact::Energy],
    ),
    item(
        "2.1",
        "systemic risk only: evaluation strategies and results",
        &[&["compliance.gpai.evaluation_strategies"]],
        &[Fact::Results, Fact::Gates],
    ),
    item(
        "2.2",
        "systemic risk only: adversarial testing, adaptations, alignment and fine-tuning",
        &[&["compliance.gpai.adversarial_testing"]],
        &[],
    ),
    item(
        "2.3",
        "systemic risk only: how components build on each other",
        &[&["compliance.gpai.system_architecture"]],
        &[],
    ),
];

/// Annex XII: for those who build on the model.
pub(super) const ANNEX_XII: [Item; 11] = [
    item("1(a)", "the tasks, and the AI systems in which it can be integrated", TASKS, &[]),
    item("1(b)", "the acceptable use policies", POLICY, &[]),
    item("1(c)", "the date of release and the methods of distribution", RELEASE, &[]),
    item(
        "1(d)",
        "how it interacts with hardware or software that is no part of it",
        &[&["compliance.gpai.interactions", "compliance.annex_iv.interactions"]],
        &[],
    ),
    item("1(e)", "the versions of software for its use", &[], &[Fact::Software, Fact::Base]),
    item("1(f)", "the architecture and the number of parameters", &[], &[Fact::Architecture]),
    item("1(g)", "the modality and format of inputs and outputs", &[], &[Fact::Modality]),
    item("1(h)", "the license", LICENSE, &[]),
    item("2(a)", "the technical means to integrate it", MEANS, &[]),
    item(
        "2(b)",
        "the modality and format of inputs and outputs, and their maximum size",
        &[],
        &[Fact::Modality, Fact::MaximumSize],
    ),
    item(
        "2(c)",
        "the data for training, testing and validation: type, provenance, curation",
        &[SELECTION, CURATION],
        &[Fact::Data],
    ),
];

/// The three parts of the Commission's template.
pub(super) const SUMMARY: [Item; 16] = [
    item(
        "1.1",
        "the provider and the authorized representative",
        &[
            &["compliance.provider_name"],
            &["compliance.provider_contact"],
            &["compliance.gpai.authorized_representative"],
        ],
        &[],
    ),
    item(
        "1.2",
        "the model, what it depends on, when it was placed on the market",
        &[&["compliance.gpai.release_date"]],
        &[Fact::Model, Fact::Base],
    ),
    item(
        "1.3",
        "modalities, size in ranges, types of content",
        &[&["compliance.gpai.content_types"]],
        &[Fact::SizeRange],
    ),
    item(
        "1.3, dates",
        "the latest acquisition of data, and whether it goes on",
        &[&["compliance.gpai.latest_acquisition"], &["compliance.gpai.continuous_collection"]],
        &[],
    ),
    item("1.3, languages", "the languages", &[&["compliance.language"]], &[]),
    item("2", "all data sets of this run", &[], &[Fact::DataSets]),
    item(
        "2.1",
        "publicly available data sets",
        &[&["compliance.gpai.sources.public_datasets"]],
        &[],
    ),
    item(
        "2.2.1",
        "data licensed by holders of rights",
        &[&["compliance.gpai.sources.licensed_data"]],
        &[],
    ),
    item(
        "2.2.2",
        "other private data of third parties",
        &[&["compliance.gpai.sources.private_data"]],
        &[],
    ),
    item(
        "2.3",
        "data crawled and scraped, with the top domains",
        &[&["compliance.gpai.sources.crawled_data"], &["compliance.gpai.sources.crawled_domains"]],
        &[],
    ),
    item("2.4", "data of users", &[&["compliance.gpai.sources.user_data"]], &[]),
    item("2.5", "synthetic data", &[&["compliance.gpai.sources.synthetic_data"]], &[]),
    item("2.6", "other sources", &[&["compliance.gpai.sources.other_sources"]], &[]),
    item(
        "3.1",
        "reservations of rights that are respected, and the copyright policy",
        &[&["compliance.gpai.reservation_measures"], &["compliance.gpai.copyright_policy"]],
        &[],
    ),
    item("3.2", "removal of illegal content", &[&["compliance.gpai.illegal_content_removal"]], &[]),
    item("3.3", "other information", &[&["compliance.gpai.other_processing"]], &[]),
];
