//! `forgelm.reward/1`: judges of answers.

use crate::{forgelm_host, forgelm_plugin_error, forgelm_status, forgelm_str};
use std::ffi::{CStr, c_char, c_void};

/// Id of the factory of rewards.
pub const REWARD_FACTORY: &CStr = c"forgelm.reward/1";

/// An answer to be judged.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct forgelm_answer {
    /// The prompt as the model read it, its special tokens written out.
    pub prompt: forgelm_str,
    /// What the model answered, without special tokens.
    pub completion: forgelm_str,
    /// The columns of the record, the prompt as it was written too: one JSON object.
    pub record: forgelm_str,
}

/// One reward of a library.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_reward_descriptor {
    /// Bytes of this struct, as the plugin knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Its name in a config.
    pub name: *const c_char,
    /// One line for a person.
    pub summary: *const c_char,
    /// Where it comes from.
    pub source: *const c_char,
    /// Words `key:value`, ended by null; may be null itself.
    pub features: *const *const c_char,
}

/// An instance.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_reward {
    /// Bytes of this struct, as the plugin knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The plugin's own.
    pub plugin_data: *mut c_void,
    /// Ends the instance.
    pub destroy: Option<unsafe extern "C" fn(reward: *const forgelm_reward)>,
    /// One number for each of n answers.
    pub judge: Option<
        unsafe extern "C" fn(
            reward: *const forgelm_reward,
            answers: *const forgelm_answer,
            n: usize,
            rewards: *mut f64,
            is_silent: *mut u8,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// A table of functions by its id, or null.
    pub get_extension: Option<
        unsafe extern "C" fn(reward: *const forgelm_reward, id: *const c_char) -> *const c_void,
    >,
}

/// The rewards of a library.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_reward_factory {
    /// Bytes of this struct, as the plugin knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Number of rewards.
    pub count: Option<unsafe extern "C" fn(factory: *const forgelm_reward_factory) -> u32>,
    /// One of them.
    pub descriptor: Option<
        unsafe extern "C" fn(
            factory: *const forgelm_reward_factory,
            index: u32,
        ) -> *const forgelm_reward_descriptor,
    >,
    /// Makes an instance.
    pub create: Option<
        unsafe extern "C" fn(
            factory: *const forgelm_reward_factory,
            host: *const forgelm_host,
            index: u32,
            options_json: forgelm_str,
            out: *mut *const forgelm_reward,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
}
