//! Rewards as a table: `forgelm.reward/1`.

use super::border::{
    Refusal, borrowed, call, destroy, guard, hand_out, leak_features, leak_text, read_options,
    size, text, values, values_mut,
};
use crate::Failed;
use crate::reward::{Answer, Descriptor, Reward};
use forgelm_abi::{
    forgelm_answer, forgelm_host, forgelm_plugin_error, forgelm_reward, forgelm_reward_descriptor,
    forgelm_reward_factory, forgelm_status, forgelm_str,
};
use std::ffi::c_char;
use std::ptr::null_mut;

pub(super) type Factory =
    super::factory::Factory<forgelm_reward_factory, forgelm_reward_descriptor, Descriptor>;

/// The factory of these.
pub(super) fn factory(list: &'static [Descriptor], needs: &[&str]) -> &'static Factory {
    let features = leak_features(needs);
    let table = forgelm_reward_factory {
        struct_size: size::<forgelm_reward_factory>(),
        reserved: 0,
        count: Some(Factory::count),
        descriptor: Some(Factory::descriptor),
        create: Some(create),
    };
    Factory::leak(table, list, |of| described(of, features))
}

fn described(of: &Descriptor, features: *const *const c_char) -> forgelm_reward_descriptor {
    forgelm_reward_descriptor {
        struct_size: size::<forgelm_reward_descriptor>(),
        reserved: 0,
        name: leak_text(of.name),
        summary: leak_text(of.summary),
        source: leak_text(of.source),
        features,
    }
}

unsafe extern "C" fn create(
    table: *const forgelm_reward_factory,
    _host: *const forgelm_host,
    index: u32,
    options_json: forgelm_str,
    out: *mut *const forgelm_reward,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    guard(err, || {
        // SAFETY: the host hands back the table that it was given.
        let descriptor = unsafe { Factory::entry(table, index, "reward") }?;
        // SAFETY: the text is borrowed for the call.
        let options = unsafe { read_options(options_json) }?;
        let reward = (descriptor.build)(&borrowed(&options))?;
        let table = forgelm_reward {
            struct_size: size::<forgelm_reward>(),
            reserved: 0,
            plugin_data: null_mut(),
            destroy: Some(destroy::<forgelm_reward, dyn Reward>),
            judge: Some(judge),
            get_extension: None,
        };
        // SAFETY: `out` is the host's.
        unsafe { hand_out(out, table, reward) }
    })
}

unsafe extern "C" fn judge(
    table: *const forgelm_reward,
    answers: *const forgelm_answer,
    n: usize,
    rewards: *mut f64,
    is_silent: *mut u8,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    let body = |reward: &(dyn Reward + 'static)| {
        // SAFETY: as many answers as the host says, borrowed for the call; so are their texts.
        let answers = unsafe { values(answers, n, "answers") }?;
        let answers = answers.iter().map(|answer| {
            Ok(Answer {
                // SAFETY: as above.
                prompt: unsafe { text(answer.prompt, "prompt") }?,
                // SAFETY: as above.
                completion: unsafe { text(answer.completion, "completion") }?,
                // SAFETY: as above.
                record: unsafe { text(answer.record, "record") }?,
            })
        });
        let answers = answers.collect::<Result<Vec<_>, Refusal>>()?;
        // SAFETY: as many places as answers, written by this call alone.
        let rewards = unsafe { values_mut(rewards, n, "rewards") }?;
        // SAFETY: as above.
        let is_silent = unsafe { values_mut(is_silent, n, "is_silent") }?;
        let given = reward.judge(&answers)?;
        if given.len() != n {
            let found = given.len();
            return Err(
                Failed::new(format!("{found} rewards; expected {n}, one for each answer")).into()
            );
        }
        for (i, value) in given.iter().enumerate() {
            rewards[i] = value.unwrap_or_default();
            is_silent[i] = u8::from(value.is_none());
        }
        Ok(())
    };
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_reward, dyn Reward>(table, err, body) }
}
