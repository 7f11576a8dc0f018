//! The plugin's side of the border: lists of descriptors become the tables that a host reads.
//!
//! [`export_plugin!`](crate::export_plugin) is all that a plugin's author sees of it. A body that
//! panics becomes a status, and its instance refuses all further calls. Start reading at [`Exports`].
#![expect(unsafe_code, reason = "the border itself: tables of C functions over safe traits")]

mod border;
mod collective;
mod device;
mod evaluator;
mod factory;
mod merge_method;
mod quantizer;
mod reward;
mod services;
mod trainer;

use crate::host;
use border::guard;
use forgelm_abi::{
    ABI_MAJOR, ABI_MINOR, COLLECTIVE_FACTORY, EVALUATOR_FACTORY, LAYOUT_HASH, MAGIC,
    MERGE_METHOD_FACTORY, QUANTIZER_FACTORY, REWARD_FACTORY, TRAINER_FACTORY, forgelm_entry,
    forgelm_host, forgelm_plugin_error, forgelm_status, forgelm_str,
};
pub use forgelm_abi::{WITNESS, forgelm_layouts};
use std::ffi::{CStr, c_char, c_void};
use std::ptr::null;
use std::sync::OnceLock;

/// Everything that a library offers.
#[derive(Debug)]
pub struct Exports {
    /// Its trainers.
    pub trainers: &'static [crate::trainer::Descriptor],
    /// Its merge methods.
    pub merge_methods: &'static [crate::merge_method::Descriptor],
    /// Its quantizers.
    pub quantizers: &'static [crate::quantizer::Descriptor],
    /// Its evaluators.
    pub evaluators: &'static [crate::evaluator::Descriptor],
    /// Its rewards.
    pub rewards: &'static [crate::reward::Descriptor],
    /// Its collectives.
    pub collectives: &'static [crate::collective::Descriptor],
    /// Services of the host without which none of them works, as `forgelm.kernels/1`: a program that
    /// does not offer one refuses the library.
    pub needs: &'static [&'static str],
}

impl Exports {
    /// Nothing.
    pub const NONE: Self = Self {
        trainers: &[],
        merge_methods: &[],
        quantizers: &[],
        evaluators: &[],
        rewards: &[],
        collectives: &[],
        needs: &[],
    };
}

/// The factories of a library, made when they are first asked for.
#[derive(Debug)]
pub struct Factories {
    exports: Exports,
    trainers: OnceLock<&'static trainer::Factory>,
    merge_methods: OnceLock<&'static merge_method::Factory>,
    quantizers: OnceLock<&'static quantizer::Factory>,
    evaluators: OnceLock<&'static evaluator::Factory>,
    rewards: OnceLock<&'static reward::Factory>,
    collectives: OnceLock<&'static collective::Factory>,
}

impl Factories {
    /// Of these lists.
    #[must_use]
    pub const fn new(exports: Exports) -> Self {
        Self {
            exports,
            trainers: OnceLock::new(),
            merge_methods: OnceLock::new(),
            quantizers: OnceLock::new(),
            evaluators: OnceLock::new(),
            rewards: OnceLock::new(),
            collectives: OnceLock::new(),
        }
    }

    /// The factory of this id; null if there is nothing of that kind.
    #[must_use]
    #[expect(clippy::not_unsafe_ptr_arg_deref, reason = "plugins call it without `unsafe`")]
    pub fn get(&'static self, id: *const c_char) -> *const c_void {
        if id.is_null() {
            return null();
        }
        // SAFETY: not null; the header promises a text that ends with NUL.
        let id = unsafe { CStr::from_ptr(id) };
        let exports = &self.exports;
        match () {
            () if id == TRAINER_FACTORY && !exports.trainers.is_empty() => {
                let made =
                    self.trainers.get_or_init(|| trainer::factory(exports.trainers, exports.needs));
                std::ptr::from_ref(*made).cast()
            }
            () if id == MERGE_METHOD_FACTORY && !exports.merge_methods.is_empty() => {
                let leak = || merge_method::factory(exports.merge_methods, exports.needs);
                std::ptr::from_ref(*self.merge_methods.get_or_init(leak)).cast()
            }
            () if id == QUANTIZER_FACTORY && !exports.quantizers.is_empty() => {
                let leak = || quantizer::factory(exports.quantizers, exports.needs);
                std::ptr::from_ref(*self.quantizers.get_or_init(leak)).cast()
            }
            () if id == EVALUATOR_FACTORY && !exports.evaluators.is_empty() => {
                let leak = || evaluator::factory(exports.evaluators, exports.needs);
                std::ptr::from_ref(*self.evaluators.get_or_init(leak)).cast()
            }
            () if id == REWARD_FACTORY && !exports.rewards.is_empty() => {
                let leak = || reward::factory(exports.rewards, exports.needs);
                std::ptr::from_ref(*self.rewards.get_or_init(leak)).cast()
            }
            () if id == COLLECTIVE_FACTORY && !exports.collectives.is_empty() => {
                let leak = || collective::factory(exports.collectives, exports.needs);
                std::ptr::from_ref(*self.collectives.get_or_init(leak)).cast()
            }
            () => null(),
        }
    }
}

/// The exported constant. Its pointers are to constants.
#[repr(transparent)]
#[derive(Debug)]
pub struct Entry(forgelm_entry);

// SAFETY: the pointers of an entry are to constant texts and functions; nothing changes them.
unsafe impl Sync for Entry {}

impl Entry {
    /// The entry of a library of this name and version.
    #[must_use]
    pub const fn new(
        name: &'static CStr,
        version: &'static CStr,
        get_factory: unsafe extern "C" fn(*const c_char) -> *const c_void,
    ) -> Self {
        Self(forgelm_entry {
            magic: MAGIC,
            abi_major: ABI_MAJOR,
            abi_minor: ABI_MINOR,
            struct_size: border::size::<forgelm_entry>(),
            reserved: 0,
            layout_hash: LAYOUT_HASH,
            name: name.as_ptr(),
            version: version.as_ptr(),
            init: Some(init),
            deinit: None,
            get_factory: Some(get_factory),
        })
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &forgelm_entry {
        &self.0
    }
}

/// Keeps the host's table and sends panics to its log.
unsafe extern "C" fn init(
    host: *const forgelm_host,
    _plugin_dir: forgelm_str,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    guard(err, || {
        host::remember(host);
        std::panic::set_hook(Box::new(|info| {
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            let what = border::panic_text(info.payload());
            host::log(host::Level::Error, "panic", &format!("{what} (at {place})"));
        }));
        Ok(())
    })
}

/// A constant text with a NUL at its end, for the macro.
///
/// # Panics
/// While compiling, if there is another NUL in it.
#[must_use]
pub const fn c_text(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("a text of a plugin has a NUL in it"),
    }
}

/// Makes a plugin of a crate: exports lists of descriptors under the names of their kinds. Under
/// `needs` are the services of the host without which none of them works.
///
/// The crate's type is `cdylib`; nothing in it needs `unsafe`. Name and version of the library are
/// those of the package.
///
/// ```
/// use forgelm_sdk::trainer::{Descriptor, Loss, Needs, Records, Scored, Trainer};
///
/// struct Nothing;
///
/// impl Trainer for Nothing {
///     fn loss(
///         &self,
///         scored: &Scored<'_>,
///         dlogp: &mut [f32],
///     ) -> Result<Loss, forgelm_sdk::Failed> {
///         dlogp.fill(0.0);
///         Ok(Loss { loss_sum: 0.0, n_terms: scored.logp.len() as u64, metrics: Vec::new() })
///     }
/// }
///
/// const TRAINERS: &[Descriptor] = &[Descriptor {
///     name: "nothing",
///     summary: "teaches nothing",
///     source: "none",
///     needs: Needs {
///         records: Records::Text,
///         reference: false,
///         rollouts: false,
///         prompts: false,
///         dropout: false,
///     },
///     build: |_| Ok(Box::new(Nothing)),
/// }];
///
/// forgelm_sdk::export_plugin!(trainers: TRAINERS);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export_plugin {
    ($($kind:ident: $list:expr),+ $(,)?) => {
        #[cfg(panic = "abort")]
        compile_error!("a plugin must be built with `panic = \"unwind\"`: a panic would end the host");

        /// The tables as this plugin's compiler laid them out.
        #[unsafe(no_mangle)]
        #[expect(non_upper_case_globals, reason = "the name that hosts look for")]
        pub static forgelm_plugin_layouts: $crate::export::forgelm_layouts =
            $crate::export::WITNESS;

        /// The entry of this plugin.
        #[unsafe(no_mangle)]
        #[expect(non_upper_case_globals, reason = "the name that hosts look for")]
        pub static forgelm_plugin_entry: $crate::export::Entry = {
            static FACTORIES: $crate::export::Factories =
                $crate::export::Factories::new($crate::export::Exports {
                    $($kind: $list,)+
                    ..$crate::export::Exports::NONE
                });
            extern "C" fn get_factory(
                id: *const ::std::ffi::c_char,
            ) -> *const ::std::ffi::c_void {
                FACTORIES.get(id)
            }
            $crate::export::Entry::new(
                $crate::export::c_text(concat!(env!("CARGO_PKG_NAME"), "\0")),
                $crate::export::c_text(concat!(env!("CARGO_PKG_VERSION"), "\0")),
                get_factory,
            )
        };
    };
}
