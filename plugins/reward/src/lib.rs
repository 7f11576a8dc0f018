//! The rewards that ship with ForgeLM. One file a method; this list is the only place that names
//! them all. The program loads them from a shared library, as it does anyone's.

#![forbid(unsafe_code)]

pub mod format_length;
pub mod math_answer;

use forgelm_sdk::reward::Descriptor;

/// Every reward of this library, by name.
pub const REWARDS: &[Descriptor] = &[format_length::FORMAT_LENGTH, math_answer::MATH_ANSWER];

forgelm_sdk::export_plugin!(rewards: REWARDS);

#[cfg(test)]
mod tests {
    use super::REWARDS;

    #[test]
    fn the_list_is_sorted_and_has_every_reward_once() {
        assert_eq!(REWARDS.len(), 2);
        assert!(REWARDS.windows(2).all(|pair| pair[0].name < pair[1].name));
        for reward in REWARDS {
            assert!(!reward.summary.is_empty() && !reward.source.is_empty(), "{}", reward.name);
            assert!((reward.build)(&[]).is_ok(), "{} needs no options", reward.name);
        }
    }
}
