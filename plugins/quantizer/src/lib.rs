//! The quantizers that ship with ForgeLM. One file a format; this list is the only place that names
//! them all. The program loads them from a shared library, as it does anyone's.
//!
//! The formats themselves are the host's, who keeps its own weights in them: a quantizer here is a
//! description and a few calls of `forgelm.kernels/1`.
#![forbid(unsafe_code)]

pub mod fp4;
mod host;
pub mod int8;
pub mod nf4;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q6_k;
pub mod q8_0;

use forgelm_sdk::quantizer::Descriptor;

/// Every quantizer of this library, by name.
pub const QUANTIZERS: &[Descriptor] =
    &[fp4::FP4, int8::INT8, nf4::NF4, q4_0::Q4_0, q4_1::Q4_1, q4_k::Q4_K, q6_k::Q6_K, q8_0::Q8_0];

forgelm_sdk::export_plugin!(quantizers: QUANTIZERS, needs: &["forgelm.kernels/1"]);

#[cfg(test)]
mod tests {
    use super::QUANTIZERS;
    use forgelm_sdk::OptionValue;

    #[test]
    fn the_list_is_sorted_and_has_every_format_once() {
        assert_eq!(QUANTIZERS.len(), 8);
        assert!(QUANTIZERS.windows(2).all(|pair| pair[0].name < pair[1].name));
    }

    #[test]
    fn every_format_says_what_it_is_and_where_it_comes_from() {
        for quantizer in QUANTIZERS {
            assert!(!quantizer.summary.is_empty(), "{} has no summary", quantizer.name);
            assert!(!quantizer.source.is_empty(), "{} has no source", quantizer.name);
        }
    }

    #[test]
    fn options_are_refused_and_so_is_a_program_without_the_service() {
        for quantizer in QUANTIZERS {
            let option = [("bits", OptionValue::Number(3.0))];
            let refused = (quantizer.build)(&option).err().expect("refused").to_string();
            assert!(refused.contains("`bits` is not an option of"), "{refused}");
            let refused = (quantizer.build)(&[]).err().expect("refused").to_string();
            assert!(refused.contains("`forgelm.kernels/1`"), "{refused}");
        }
    }
}
