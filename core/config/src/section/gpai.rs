//! `compliance.gpai:` what only people know of a general-purpose AI model, for Article 53 of Regulation
//! (EU) 2024/1689 with its Annexes XI and XII. An answer may be `not applicable: <reason>`.

use super::text_rule::{DATE, NOT_BLANK};
use crate::declare::section;

section! {
    /// Answers for the documents on a general-purpose AI model, which are drafted when this section is
    /// there. `not applicable: <reason>` is an answer.
    Gpai {
        /// XI 1.1(a), XII 1(a): the tasks that the model is intended to perform.
        tasks: Vec<String> = Vec::new(), ours();
        /// XI 1.1(a), XII 1(a): the type and nature of AI systems in which it can be integrated.
        intended_systems: String = String::new(), ours();
        /// XI 1.1(b), XII 1(b): the acceptable use policies.
        acceptable_use_policy: String = String::new(), ours();
        /// XI 1.1(c), XII 1(c): the date of release; in the summary the date of placement on the market.
        release_date: Option<String> = None, ours(), text(DATE);
        /// XI 1.1(c), XII 1(c): the methods of distribution.
        distribution_methods: Vec<String> = Vec::new(), ours();
        /// XI 1.1(f), XII 1(h): the license.
        license: String = String::new(), ours();
        /// XI 1.2(a), XII 2(a): the technical means to integrate it: instructions, infrastructure, tools.
        integration_means: String = String::new(), ours();
        /// XI 1.2(b): the key design choices of the training, with rationale and assumptions.
        design_choices: String = String::new(), ours();
        /// XI 1.2(c), XII 2(c): how the data was obtained and selected.
        data_selection: String = String::new(), ours();
        /// XI 1.2(c), XII 2(c): how it was curated: cleaning and filtering before this run.
        data_curation: String = String::new(), ours();
        /// XI 1.2(c): measures to detect that sources are unsuitable.
        unsuitability_measures: String = String::new(), ours();
        /// XI 1.2(c): methods to detect identifiable biases.
        bias_methods: String = String::new(), ours();
        /// XI 1.2(d): the compute that trained the base model, in floating-point operations, where its
        /// provider tells.
        base_training_flops: Option<f64> = None, ours(), min(1.0), max(1e30);
        /// Whether the base model is one with systemic risk (Article 51).
        is_base_systemic: bool = false, ours();
        /// XI 1.2(e): the energy of the training as estimated, where it is not measured, and how.
        energy_estimate: String = String::new(), ours();
        /// XI 2.1: evaluation strategies, for a model with systemic risk.
        evaluation_strategies: String = String::new(), ours();
        /// XI 2.2: adversarial testing and adaptations, for a model with systemic risk.
        adversarial_testing: String = String::new(), ours();
        /// XI 2.3: how components build on each other, for a model with systemic risk.
        system_architecture: String = String::new(), ours();
        /// XII 1(d): how the model interacts with hardware or software that is no part of it.
        interactions: String = String::new(), ours();
        /// 53(1)(c): the policy to comply with Union law on copyright.
        copyright_policy: String = String::new(), ours();
        /// Summary 1.1: the authorized representative, name and contact.
        authorized_representative: String = String::new(), ours();
        /// Summary 1.3: the types of content in the training data.
        content_types: Vec<String> = Vec::new(), ours();
        /// Summary 1.3: the latest date on which training data was acquired or collected.
        latest_acquisition: Option<String> = None, ours(), text(DATE);
        /// Summary 1.3: whether data is collected on, for training after this.
        continuous_collection: String = String::new(), ours();
        /// Summary 2: where the training data comes from.
        sources: GpaiSources = GpaiSources::default(), ours();
        /// Summary 3.1: measures to respect reservations of rights (opt-outs of text and data mining).
        reservation_measures: String = String::new(), ours();
        /// Summary 3.2: measures to avoid or remove illegal content.
        illegal_content_removal: String = String::new(), ours();
        /// Summary 3.3: more about the processing, if any.
        other_processing: String = String::new(), ours();
    }
}

section! {
    /// Summary 2: the sources of the training data; each kind that was not used says so.
    GpaiSources {
        /// 2.1: publicly available data sets.
        public_datasets: Vec<String> = Vec::new(), ours(), text(NOT_BLANK);
        /// 2.2.1: data licensed by holders of rights or their representatives.
        licensed_data: String = String::new(), ours();
        /// 2.2.2: other private data sets of third parties.
        private_data: String = String::new(), ours();
        /// 2.3: data crawled and scraped from online sources: crawlers, period, kinds of content.
        crawled_data: String = String::new(), ours();
        /// 2.3: the top domains that were crawled.
        crawled_domains: Vec<String> = Vec::new(), ours(), text(NOT_BLANK);
        /// 2.4: data of users: services, kinds of interaction.
        user_data: String = String::new(), ours();
        /// 2.5: synthetic data, and the models that made it.
        synthetic_data: String = String::new(), ours();
        /// 2.6: other sources.
        other_sources: String = String::new(), ours();
    }
}
