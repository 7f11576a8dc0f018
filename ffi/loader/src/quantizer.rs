//! Quantizers of a library, as the trait that the host calls.

use crate::border::{
    Caller, Poison, Shape, call, check_features, created, first_missing, kept_text, table,
};
use crate::error::Problem;
use crate::float_mode::KeepFloatMode;
use crate::host::Host;
use forgelm_abi::{
    forgelm_plugin_error, forgelm_quantizer, forgelm_quantizer_descriptor,
    forgelm_quantizer_factory, forgelm_str,
};
use forgelm_plugin::{Kind, Origin, Plugin, Quantizers};
use forgelm_sdk::options::to_json;
use forgelm_sdk::quantizer::Quantizer;
use forgelm_sdk::{Failed, OptionValue, OptionsError};
use std::ffi::c_void;
use std::ptr::null;
use std::sync::Arc;

/// The quantizers behind a factory; none if it is null.
pub(crate) fn offers(
    factory: *const c_void,
    host: &'static Host,
    origin: &Arc<Origin>,
) -> Result<Vec<Plugin<Quantizers>>, Problem> {
    if factory.is_null() {
        return Ok(Vec::new());
    }
    let place = || "the quantizer factory".to_owned();
    // SAFETY: the table of this id, a constant of a library that stays.
    let factory: &'static forgelm_quantizer_factory =
        unsafe { table(factory.cast(), "forgelm_quantizer_factory", place) }?;
    let missing = |what: &str| Problem::Null { what: format!("forgelm_quantizer_factory.{what}") };
    let count = factory.count.ok_or_else(|| missing("count"))?;
    let descriptor = factory.descriptor.ok_or_else(|| missing("descriptor"))?;
    if factory.create.is_none() {
        return Err(missing("create"));
    }
    let _mode = KeepFloatMode::new();
    // SAFETY: the plugin's own functions with its own table.
    let n = unsafe { count(factory) };
    let plugin = |index| {
        // SAFETY: as above.
        let found = unsafe { descriptor(factory, index) };
        let place = || format!("descriptor {index} of the quantizer factory");
        // SAFETY: a constant of a library that stays.
        let found: &forgelm_quantizer_descriptor =
            unsafe { table(found, "forgelm_quantizer_descriptor", place) }?;
        let of = |field: &str| format!("quantizer {index}: {field}");
        // SAFETY: the texts of a descriptor are constants of the library; so below.
        let name = unsafe { kept_text(found.name, || of("name")) }?;
        // SAFETY: as above.
        let summary = unsafe { kept_text(found.summary, || of("summary")) }?;
        // SAFETY: as above.
        let source = unsafe { kept_text(found.source, || of("source")) }?;
        // SAFETY: as above.
        unsafe { check_features(found.features, host, || name.to_owned()) }?;
        let caller = Caller::new::<Quantizers>(name, origin);
        let build: Arc<<Quantizers as Kind>::Build> =
            Arc::new(move |options: &[(&str, OptionValue)]| {
                let quantizer = Foreign::create(factory, host, index, options, caller.clone())?;
                Ok(Box::new(quantizer) as Box<dyn Quantizer>)
            });
        let origin = Arc::clone(origin);
        Ok(Plugin { name, summary, source, needs: (), build, origin })
    };
    (0..n).map(plugin).collect()
}

/// An instance.
struct Foreign {
    instance: *const forgelm_quantizer,
    caller: Caller,
    poison: Poison,
}

// SAFETY: the header lets any thread call an instance, several at once.
unsafe impl Send for Foreign {}
// SAFETY: as above.
unsafe impl Sync for Foreign {}

impl Foreign {
    fn create(
        factory: &'static forgelm_quantizer_factory,
        host: &'static Host,
        index: u32,
        options: &[(&str, OptionValue)],
        caller: Caller,
    ) -> Result<Self, OptionsError> {
        let options = to_json(options)?;
        let Some(create) = factory.create else {
            return Err(OptionsError::Refused { message: "`create` is NULL".to_owned() });
        };
        let (mut instance, mut err) = (null(), forgelm_plugin_error::new());
        let ended = {
            let _mode = KeepFloatMode::new();
            let options = forgelm_str::new(&options);
            // SAFETY: the plugin's own function with its own table; the rest lives long enough.
            unsafe {
                create(factory, host.table(), index, options, &raw mut instance, &raw mut err)
            }
        };
        let missing = |found: &forgelm_quantizer| {
            first_missing(&[
                (found.bytes_per_row.is_none(), "bytes_per_row"),
                (found.quantize.is_none(), "quantize"),
                (found.dequantize.is_none(), "dequantize"),
                (found.destroy.is_none(), "destroy"),
            ])
        };
        // SAFETY: null or an instance, which is ours until `destroy`.
        let instance =
            unsafe { created(&caller, (ended, &err), instance, "forgelm_quantizer", missing) }?;
        Ok(Self { instance, caller, poison: Poison::default() })
    }

    fn table(&self) -> &forgelm_quantizer {
        // SAFETY: checked when it was created, and ours until it is dropped.
        unsafe { &*self.instance }
    }

    fn missing(&self, field: &str) -> Failed {
        self.caller.failed(&format!("`{field}` is NULL"))
    }

    /// Shapes of so many numbers in rows, and of their bytes.
    fn shapes(&self, n: usize, n_cols: usize) -> Result<(Shape<2>, Shape<2>), Failed> {
        let n_rows = n.checked_div(n_cols).unwrap_or(0);
        let n_bytes = self.bytes_per_row(n_cols)?;
        Ok((Shape::new([n_rows, n_cols]), Shape::new([n_rows, n_bytes])))
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _mode = KeepFloatMode::new();
        if let Some(destroy) = self.table().destroy {
            // SAFETY: the plugin's own function with its own instance; no call is running.
            unsafe { destroy(self.instance) };
        }
    }
}

impl Quantizer for Foreign {
    fn bytes_per_row(&self, n_cols: usize) -> Result<usize, Failed> {
        let of = self.table().bytes_per_row.ok_or_else(|| self.missing("bytes_per_row"))?;
        let mut n_bytes = 0;
        call(&self.caller, &self.poison, |err| {
            // SAFETY: the plugin's own function; everything lives until it returns.
            unsafe { of(self.instance, n_cols, &raw mut n_bytes, err) }
        })?;
        Ok(n_bytes)
    }

    fn quantize(&self, rows: &[f32], n_cols: usize, bytes: &mut [u8]) -> Result<(), Failed> {
        let quantize = self.table().quantize.ok_or_else(|| self.missing("quantize"))?;
        let (of_rows, of_bytes) = self.shapes(rows.len(), n_cols)?;
        self.check_len(of_bytes, bytes.len())?;
        let (rows, bytes) = (of_rows.of(rows), of_bytes.of_mut(bytes));
        call(&self.caller, &self.poison, |err| {
            // SAFETY: the plugin's own function; everything lives until it returns.
            unsafe { quantize(self.instance, &raw const rows, &raw const bytes, err) }
        })
    }

    fn dequantize(&self, bytes: &[u8], n_cols: usize, rows: &mut [f32]) -> Result<(), Failed> {
        let dequantize = self.table().dequantize.ok_or_else(|| self.missing("dequantize"))?;
        let (of_rows, of_bytes) = self.shapes(rows.len(), n_cols)?;
        self.check_len(of_bytes, bytes.len())?;
        let (bytes, rows) = (of_bytes.of(bytes), of_rows.of_mut(rows));
        call(&self.caller, &self.poison, |err| {
            // SAFETY: the plugin's own function; everything lives until it returns.
            unsafe { dequantize(self.instance, &raw const bytes, &raw const rows, err) }
        })
    }
}

impl Foreign {
    /// A plugin never gets a view that reaches past the bytes there are.
    fn check_len(&self, shape: Shape<2>, found: usize) -> Result<(), Failed> {
        let expected = shape.n_elements();
        if found == expected {
            return Ok(());
        }
        Err(self.caller.failed(&format!("{found} bytes for rows that have {expected}")))
    }
}
