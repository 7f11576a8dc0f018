//! `merge:` several models into one.

use super::text_rule::NOT_BLANK;
use crate::declare::{choice, section};

section! {
    /// Several models into one.
    Merge {
        /// Allows `--merge`.
        enabled: bool = false;
        /// How; `plugins.merge_method` names a method of a library in its place.
        method: MergeMethod = MergeMethod::Ties;
        /// What is merged; at least two.
        models: Vec<MergeModel> = Vec::new();
        /// Where the result goes.
        output_dir: String = "./merged_model".to_owned(), text(NOT_BLANK);
        /// Share of the smallest changes that ties drops.
        ties_trim_fraction: f64 = 0.2, upstream(), share();
        /// How ties trims and elects.
        ties_variant: TiesVariant = TiesVariant::Votes, ours();
        /// What slerp interpolates.
        slerp_over: SlerpOver = SlerpOver::Weights, ours();
        /// Share of the changes that dare drops.
        dare_drop_rate: f64 = 0.3, upstream(), share();
        /// Seed of what dare drops.
        dare_seed: i64 = 42, upstream(), min(0.0), max(9_007_199_254_740_991.0);
    }
}

section! {
    /// One model of a merge.
    MergeModel {
        /// An adapter folder, or a model: folder, `.gguf` file, hub id or `pypi:NAME==VERSION`.
        path: String = String::new(), required("models/first"), text(NOT_BLANK);
        /// Its weight.
        weight: f64 = 1.0, min(-1e9), max(1e9);
    }
}

choice! {
    /// How models are merged.
    MergeMethod {
        /// Trim, elect signs, merge.
        Ties = "ties",
        /// Drop and rescale.
        Dare = "dare",
        /// Along the sphere; two models.
        Slerp = "slerp",
        /// Weighted mean.
        Linear = "linear",
    }
}

choice! {
    /// How ties trims and elects.
    TiesVariant {
        /// Each model has one vote for a sign; the change at the threshold stays.
        Votes = "votes",
        /// As the paper and mergekit: the sign of the weighted sum; the largest changes stay.
        Paper = "paper",
    }
}

choice! {
    /// What slerp interpolates.
    SlerpOver {
        /// The weights themselves, as mergekit.
        Weights = "weights",
        /// What each model changes of the base.
        Deltas = "deltas",
    }
}
