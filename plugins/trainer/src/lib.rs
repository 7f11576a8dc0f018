//! The trainers that ship with ForgeLM. One file a method; this list is the only place that names
//! them all. The program loads them from a shared library, as it does anyone's.
#![forbid(unsafe_code)]

pub mod dpo;
pub mod grpo;
pub mod kto;
mod logistic;
pub mod orpo;
mod rewards;
pub mod sft;
pub mod simpo;
#[cfg(test)]
mod testing;

use forgelm_sdk::trainer::Descriptor;

/// Every trainer of this library, by name.
pub const TRAINERS: &[Descriptor] =
    &[dpo::DPO, grpo::GRPO, kto::KTO, orpo::ORPO, sft::SFT, simpo::SIMPO];

forgelm_sdk::export_plugin!(trainers: TRAINERS);

#[cfg(test)]
mod tests {
    use super::TRAINERS;

    #[test]
    fn the_list_is_sorted_and_has_every_trainer_once() {
        assert_eq!(TRAINERS.len(), 6);
        assert!(TRAINERS.windows(2).all(|pair| pair[0].name < pair[1].name));
    }

    #[test]
    fn every_trainer_says_where_it_was_published() {
        for trainer in TRAINERS {
            assert!(!trainer.summary.is_empty(), "{} has no summary", trainer.name);
            assert!(trainer.source.contains(char::is_numeric), "{} has no source", trainer.name);
        }
    }
}
