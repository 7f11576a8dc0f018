//! The merge methods that ship with ForgeLM. One file a method; this list is the only place that
//! names them all. The program loads them from a shared library, as it does anyone's.
#![forbid(unsafe_code)]

pub mod dare;
pub mod linear;
mod shares;
pub mod slerp;
#[cfg(test)]
mod testing;
pub mod ties;

use forgelm_sdk::merge_method::Descriptor;

/// Every merge method of this library, by name.
pub const MERGE_METHODS: &[Descriptor] = &[dare::DARE, linear::LINEAR, slerp::SLERP, ties::TIES];

forgelm_sdk::export_plugin!(merge_methods: MERGE_METHODS);

#[cfg(test)]
mod tests {
    use super::MERGE_METHODS;
    use crate::testing::Models;
    use forgelm_sdk::OptionValue;

    #[test]
    fn the_list_is_sorted_and_has_every_method_once() {
        assert_eq!(MERGE_METHODS.len(), 4);
        assert!(MERGE_METHODS.windows(2).all(|pair| pair[0].name < pair[1].name));
    }

    #[test]
    fn every_method_says_where_it_was_published() {
        for method in MERGE_METHODS {
            assert!(!method.summary.is_empty(), "{} has no summary", method.name);
            assert!(method.source.contains(char::is_numeric), "{} has no source", method.name);
        }
    }

    /// To the rounding of the change and of the sum. dare and ties drop nothing here: what they
    /// drop they cannot give back.
    #[test]
    fn merging_a_model_with_itself_returns_it() {
        let models = Models::random(1, 1000).twice();
        for method in MERGE_METHODS {
            let options: &[_] = match method.name {
                "dare" => &[("drop_rate", OptionValue::Number(0.0))],
                "ties" => &[("trim_fraction", OptionValue::Number(0.0))],
                _ => &[],
            };
            let merged = models.merge(method, options, &[0.3, 0.4]);
            for (i, (&found, &expected)) in merged.iter().zip(&models.inputs[0]).enumerate() {
                let bound = (expected.abs() + models.base[i].abs()) * f32::EPSILON;
                assert!((found - expected).abs() <= bound, "{} at {i}", method.name);
            }
        }
    }

    #[test]
    fn no_method_depends_on_how_a_tensor_is_cut() {
        let models = Models::random(2, 1003);
        for method in MERGE_METHODS {
            let whole = models.merge_in_pieces(method, &[], &[0.3, 0.4], 1003);
            for piece in [1, 7, 64, 500] {
                let cut = models.merge_in_pieces(method, &[], &[0.3, 0.4], piece);
                let same = cut.iter().zip(&whole).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs());
                assert!(same, "{} in pieces of {piece}", method.name);
            }
        }
    }

    #[test]
    fn weights_that_sum_to_nothing_are_refused() {
        for method in MERGE_METHODS {
            let refused = (method.build)(&[], &[0.5, -0.5]).err().expect("refused").to_string();
            assert_eq!(refused, "the weights [0.5, -0.5] sum to 0; expected another sum");
        }
    }
}
