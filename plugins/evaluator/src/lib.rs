//! The evaluators that ship with ForgeLM. One file an evaluator; this list is the only place that
//! names them all. The program loads them from a shared library, as it does anyone's.
#![forbid(unsafe_code)]

pub mod held_out_loss;

use forgelm_sdk::evaluator::Descriptor;

/// Every evaluator of this library, by name.
pub const EVALUATORS: &[Descriptor] = &[held_out_loss::HELD_OUT_LOSS];

forgelm_sdk::export_plugin!(evaluators: EVALUATORS);

#[cfg(test)]
mod tests {
    use super::EVALUATORS;

    #[test]
    fn the_list_is_sorted_and_every_evaluator_says_where_it_was_published() {
        assert_eq!(EVALUATORS.len(), 1);
        assert!(EVALUATORS.windows(2).all(|pair| pair[0].name < pair[1].name));
        for evaluator in EVALUATORS {
            assert!(!evaluator.summary.is_empty(), "{} has no summary", evaluator.name);
            let source = evaluator.source;
            assert!(source.contains(char::is_numeric), "{} has no source", evaluator.name);
        }
    }
}
