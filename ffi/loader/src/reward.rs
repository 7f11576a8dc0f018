//! Rewards of a library, as the trait that the host calls.

use crate::border::{Caller, Poison, call, first_missing};
use crate::error::Problem;
use crate::factory::{self, Offer};
use crate::float_mode::KeepFloatMode;
use crate::host::Host;
use forgelm_abi::{
    forgelm_answer, forgelm_reward, forgelm_reward_descriptor, forgelm_reward_factory, forgelm_str,
};
use forgelm_plugin::{Kind, Origin, Plugin, Rewards};
use forgelm_sdk::reward::{Answer, Reward};
use forgelm_sdk::{Failed, OptionValue, OptionsError};
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

/// The rewards behind a factory; none if it is null.
pub(crate) fn offers(
    factory: *const c_void,
    host: &'static Host,
    origin: &Arc<Origin>,
) -> Result<Vec<Plugin<Rewards>>, Problem> {
    let read = |_: &forgelm_reward_descriptor, entry: Offer<forgelm_reward_factory>| {
        let build: Arc<<Rewards as Kind>::Build> =
            Arc::new(move |options: &[(&str, OptionValue)]| {
                let reward = Foreign::create(&entry, options)?;
                Ok(Box::new(reward) as Box<dyn Reward>)
            });
        Ok(((), build))
    };
    factory::offers(factory, host, origin, read)
}

/// An instance.
struct Foreign {
    instance: *const forgelm_reward,
    caller: Caller,
    poison: Poison,
    one_call_at_a_time: Mutex<()>,
}

// SAFETY: the header lets any thread call an instance, one call at a time, which the lock holds.
unsafe impl Send for Foreign {}
// SAFETY: as above.
unsafe impl Sync for Foreign {}

impl Foreign {
    fn create(
        entry: &Offer<forgelm_reward_factory>,
        options: &[(&str, OptionValue)],
    ) -> Result<Self, OptionsError> {
        let missing = |found: &forgelm_reward| {
            first_missing(&[(found.judge.is_none(), "judge"), (found.destroy.is_none(), "destroy")])
        };
        let create = |options, out, err| {
            let create = entry.factory.create?;
            // SAFETY: the plugin's own function with its own table; the rest lives long enough.
            Some(unsafe {
                create(entry.factory, entry.host.table(), entry.index, options, out, err)
            })
        };
        let instance = entry.create(options, "forgelm_reward", missing, create)?;
        let (poison, one_call_at_a_time) = (Poison::default(), Mutex::new(()));
        Ok(Self { instance, caller: entry.caller.clone(), poison, one_call_at_a_time })
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _mode = KeepFloatMode::new();
        // SAFETY: checked when it was created, and not destroyed before.
        if let Some(destroy) = unsafe { (*self.instance).destroy } {
            // SAFETY: the plugin's own function with its own instance; no call is running.
            unsafe { destroy(self.instance) };
        }
    }
}

impl Reward for Foreign {
    fn judge(&self, answers: &[Answer<'_>]) -> Result<Vec<Option<f64>>, Failed> {
        let one_at_a_time = self.one_call_at_a_time.lock();
        let _one_at_a_time = one_at_a_time.unwrap_or_else(PoisonError::into_inner);
        let foreign = |answer: &Answer<'_>| forgelm_answer {
            prompt: forgelm_str::new(answer.prompt),
            completion: forgelm_str::new(answer.completion),
            record: forgelm_str::new(answer.record),
        };
        let foreign: Vec<_> = answers.iter().map(foreign).collect();
        // A place that is not written is no number, and told as such.
        let (mut rewards, mut is_silent) = (vec![f64::NAN; foreign.len()], vec![0; foreign.len()]);
        // SAFETY: checked when it was created.
        let judge = unsafe { (*self.instance).judge };
        let Some(judge) = judge else { return Err(self.caller.failed("`judge` is NULL")) };
        call(&self.caller, &self.poison, |err| {
            // SAFETY: the plugin's own function; everything lives until it returns, and there are as
            // many places as answers.
            unsafe {
                judge(
                    self.instance,
                    foreign.as_ptr(),
                    foreign.len(),
                    rewards.as_mut_ptr(),
                    is_silent.as_mut_ptr(),
                    err,
                )
            }
        })?;
        let both = rewards.into_iter().zip(is_silent);
        Ok(both.map(|(reward, is_silent)| (is_silent == 0).then_some(reward)).collect())
    }
}
