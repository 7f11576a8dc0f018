//! `data:` what the model is trained on.

use super::text_rule::{DATE, NOT_BLANK};
use crate::declare::{choice, section};

section! {
    /// What the model is trained on.
    Data {
        /// A file (`.json`, `.jsonl`, `.csv`, `.parquet`), a folder, or a hub id.
        dataset_name_or_path: String = String::new(), required("data/train.jsonl"), text(NOT_BLANK);
        /// More data sets, mixed in.
        extra_datasets: Option<Vec<String>> = None, text(NOT_BLANK);
        /// Weights of the data sets, the first one first.
        mix_ratio: Option<Vec<f64>> = None, min(0.0), max(1e9);
        /// Shuffles the training rows.
        shuffle: bool = true;
        /// Removes control characters and surplus white space from texts.
        clean_text: bool = true;
        /// Ends each text with the end-of-sequence token.
        add_eos: bool = true;
        /// Share of the rows kept for validation. Null: a tenth, at most 2000 rows, at least a hundredth.
        validation_split: Option<f64> = None, ours(), min(0.0), below(1.0);
        /// Which tokens of chat rows are trained.
        train_on: TrainOn = TrainOn::Assistant, ours();
        /// What happens when a row cannot be used.
        on_bad_row: OnBadRow = OnBadRow::Error, ours();
        /// The date that chat templates see as today, so that a run can be repeated. Null: the day of the run.
        template_now: Option<String> = None, ours(), text(DATE);
        /// Where the data comes from, for the governance report.
        governance: Option<Governance> = None;
    }
}

section! {
    /// Where the data comes from, for the governance report.
    Governance {
        /// How it was collected.
        collection_method: String = String::new();
        /// How it was annotated.
        annotation_process: String = String::new();
        /// Biases that are known.
        known_biases: String = String::new();
        /// Whether it holds personal data.
        personal_data_included: bool = false;
        /// Whether a data protection impact assessment was made.
        dpia_completed: bool = false;
    }
}

choice! {
    /// Which tokens of chat rows are trained.
    TrainOn {
        /// The assistant's turns, with the token that ends them.
        Assistant = "assistant",
        /// Everything.
        All = "all",
    }
}

choice! {
    /// What happens when a row cannot be used.
    OnBadRow {
        /// The run does not start, and every bad row is listed.
        Error = "error",
        /// The row is left out, counted and listed.
        Skip = "skip",
    }
}
