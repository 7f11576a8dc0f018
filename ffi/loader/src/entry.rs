//! The entry of a library: found, checked, and asked for what it offers.

use crate::border::{kept_text, size, told};
use crate::error::Problem;
use crate::float_mode::KeepFloatMode;
use crate::host::Host;
use crate::watch::Callers;
use crate::{collective, evaluator, merge_method, quantizer, reward, trainer, witness};
use forgelm_abi::{
    ABI_MAJOR, ABI_MINOR, COLLECTIVE_FACTORY, ENTRY_SYMBOL, EVALUATOR_FACTORY, LAYOUT_HASH, MAGIC,
    MERGE_METHOD_FACTORY, QUANTIZER_FACTORY, REWARD_FACTORY, TRAINER_FACTORY, forgelm_entry,
    forgelm_plugin_error, forgelm_str, status,
};
use forgelm_plugin::{Offers, Origin};
use libloading::os::unix::Library;
use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::sync::Arc;

type GetFactory = unsafe extern "C" fn(*const c_char) -> *const c_void;

/// An entry in which everything is as it should be.
pub(crate) struct Entry {
    table: &'static forgelm_entry,
    get_factory: GetFactory,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) abi: String,
}

impl Entry {
    /// Finds the entry and checks it, and calls nothing.
    pub(crate) fn of(library: &'static Library) -> Result<Self, Problem> {
        let symbol = ENTRY_SYMBOL.to_bytes_with_nul();
        // SAFETY: the address alone is taken; what is there is looked at field by field.
        let found = unsafe { library.get::<*const forgelm_entry>(symbol) };
        let found = found.map_err(|_| Problem::NoEntry)?.into_raw();
        let entry: *const forgelm_entry = found.cast_const().cast();
        if entry.is_null() {
            return Err(Problem::NoEntry);
        }
        // SAFETY: every entry has these fields, in every version; so below.
        let magic = unsafe { (&raw const (*entry).magic).read_unaligned() };
        if magic != MAGIC {
            return Err(Problem::Magic { found: magic, expected: MAGIC });
        }
        // SAFETY: as above.
        let (found_major, found_minor) = unsafe { ((*entry).abi_major, (*entry).abi_minor) };
        if found_major != ABI_MAJOR {
            let (major, minor) = (ABI_MAJOR, ABI_MINOR);
            return Err(Problem::Version { found_major, found_minor, major, minor });
        }
        // SAFETY: as above.
        let (found, expected) = (unsafe { (*entry).struct_size }, size::<forgelm_entry>());
        if found < expected {
            return Err(Problem::Size { table: "forgelm_entry", found, expected });
        }
        // SAFETY: as large as an entry of this version; a constant of a library that stays.
        let table = unsafe { &*entry };
        // A hash from a header says what it should be; the fields say what it is.
        let first = witness::difference(library).map(Box::new);
        if table.layout_hash != LAYOUT_HASH || first.is_some() {
            return Err(Problem::Layout { first, found: table.layout_hash, expected: LAYOUT_HASH });
        }
        let null = |what: &str| Problem::Null { what: format!("forgelm_entry.{what}") };
        // SAFETY: constants of the library.
        let name = unsafe { kept_text(table.name, || "forgelm_entry.name".to_owned()) }?;
        // SAFETY: likewise.
        let version = unsafe { kept_text(table.version, || "forgelm_entry.version".to_owned()) }?;
        Ok(Self {
            table,
            get_factory: table.get_factory.ok_or_else(|| null("get_factory"))?,
            name: name.to_owned(),
            version: version.to_owned(),
            abi: format!("{found_major}.{found_minor}"),
        })
    }

    /// Initializes the library and reads its descriptors.
    pub(crate) fn offers(
        &self,
        host: &'static Host,
        path: &Path,
        origin: &Arc<Origin>,
    ) -> Result<Offers, Problem> {
        let calls = host.watch(format!("library {origin}"));
        let _inside = calls.enter(Callers::One);
        self.init(host, path)?;
        let of = |id: &CStr| {
            let _mode = KeepFloatMode::new();
            // SAFETY: the plugin's own function, with an id that ends with NUL.
            unsafe { (self.get_factory)(id.as_ptr()) }
        };
        Ok(Offers {
            trainers: trainer::offers(of(TRAINER_FACTORY), host, origin)?,
            merge_methods: merge_method::offers(of(MERGE_METHOD_FACTORY), host, origin)?,
            quantizers: quantizer::offers(of(QUANTIZER_FACTORY), host, origin)?,
            evaluators: evaluator::offers(of(EVALUATOR_FACTORY), host, origin)?,
            rewards: reward::offers(of(REWARD_FACTORY), host, origin)?,
            collectives: collective::offers(of(COLLECTIVE_FACTORY), host, origin)?,
        })
    }

    fn init(&self, host: &'static Host, path: &Path) -> Result<(), Problem> {
        let Some(init) = self.table.init else { return Ok(()) };
        let folder = path.parent().unwrap_or(Path::new(".")).to_string_lossy();
        let mut err = forgelm_plugin_error::new();
        let _mode = KeepFloatMode::new();
        // SAFETY: the plugin's own function; the host's table lives as long as the process.
        let ended = unsafe { init(host.table(), forgelm_str::new(&folder), &raw mut err) };
        match ended {
            status::OK => Ok(()),
            _ => Err(Problem::Init(told(ended, &err))),
        }
    }
}
