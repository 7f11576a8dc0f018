//! Quantizers of a library, as the trait that the host calls.

use crate::border::{Caller, Poison, Shape, call, extension, first_missing};
use crate::error::Problem;
use crate::factory::{self, Offer};
use crate::float_mode::KeepFloatMode;
use crate::host::Host;
use forgelm_abi::{
    QUANTIZER_ON_DEVICE, forgelm_quantizer, forgelm_quantizer_descriptor,
    forgelm_quantizer_factory, forgelm_quantizer_on_device,
};
use forgelm_kernels_api::DevicePart;
use forgelm_plugin::{Kind, Origin, Plugin, Quantizers};
use forgelm_sdk::quantizer::{QuantizeOnDevice, Quantizer};
use forgelm_sdk::{Failed, OptionValue, OptionsError};
use std::ffi::c_void;
use std::sync::Arc;

/// The quantizers behind a factory; none if it is null.
pub(crate) fn offers(
    factory: *const c_void,
    host: &'static Host,
    origin: &Arc<Origin>,
) -> Result<Vec<Plugin<Quantizers>>, Problem> {
    let read = |_: &forgelm_quantizer_descriptor, entry: Offer<forgelm_quantizer_factory>| {
        let build: Arc<<Quantizers as Kind>::Build> =
            Arc::new(move |options: &[(&str, OptionValue)]| {
                let quantizer = Foreign::create(&entry, options)?;
                Ok(Box::new(quantizer) as Box<dyn Quantizer>)
            });
        Ok(((), build))
    };
    factory::offers(factory, host, origin, read)
}

/// An instance.
struct Foreign {
    instance: *const forgelm_quantizer,
    /// What it offers for tensors of a device.
    on_device: Option<*const forgelm_quantizer_on_device>,
    caller: Caller,
    poison: Poison,
}

// SAFETY: the header lets any thread call an instance, several at once.
unsafe impl Send for Foreign {}
// SAFETY: as above.
unsafe impl Sync for Foreign {}

impl Foreign {
    fn create(
        entry: &Offer<forgelm_quantizer_factory>,
        options: &[(&str, OptionValue)],
    ) -> Result<Self, OptionsError> {
        let missing = |found: &forgelm_quantizer| {
            first_missing(&[
                (found.bytes_per_row.is_none(), "bytes_per_row"),
                (found.quantize.is_none(), "quantize"),
                (found.dequantize.is_none(), "dequantize"),
                (found.destroy.is_none(), "destroy"),
            ])
        };
        let create = |options, out, err| {
            let create = entry.factory.create?;
            // SAFETY: the plugin's own function with its own table; the rest lives long enough.
            Some(unsafe {
                create(entry.factory, entry.host.table(), entry.index, options, out, err)
            })
        };
        let instance = entry.create(options, "forgelm_quantizer", missing, create)?;
        let (caller, poison) = (entry.caller.clone(), Poison::default());
        let mut made = Self { instance, on_device: None, caller, poison };
        made.on_device = made.find_on_device()?;
        Ok(made)
    }

    /// The table for tensors of a device, where it has one.
    fn find_on_device(&self) -> Result<Option<*const forgelm_quantizer_on_device>, OptionsError> {
        let refused =
            |what: &str| OptionsError::Refused { message: self.caller.failed(what).message };
        let get = self.table().get_extension;
        // SAFETY: the plugin's own function with its own instance; the table of this id.
        let found = unsafe { extension(get, self.instance, QUANTIZER_ON_DEVICE) };
        let found: Option<*const forgelm_quantizer_on_device> =
            found.map_err(|problem| refused(&problem.to_string()))?;
        let Some(table) = found else { return Ok(None) };
        // SAFETY: `extension` found it good, and it lives as long as the instance.
        let forgelm_quantizer_on_device { quantize, dequantize, .. } = unsafe { &*table };
        let missing = [(quantize.is_none(), "quantize"), (dequantize.is_none(), "dequantize")];
        match first_missing(&missing) {
            None => Ok(found),
            Some(field) => Err(refused(&format!("`forgelm_quantizer_on_device.{field}` is NULL"))),
        }
    }

    fn device_table(&self) -> Result<&forgelm_quantizer_on_device, Failed> {
        let table = self.on_device.ok_or_else(|| self.missing("forgelm_quantizer_on_device"))?;
        // SAFETY: `extension` found it good, and it lives as long as the instance.
        Ok(unsafe { &*table })
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
        check_row_bytes(&self.caller, n_cols, n_bytes)
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

    fn on_device(&self) -> Option<&dyn QuantizeOnDevice> {
        self.on_device.map(|_| self as &dyn QuantizeOnDevice)
    }
}

impl QuantizeOnDevice for Foreign {
    fn quantize(&self, rows: DevicePart, n_cols: usize, bytes: DevicePart) -> Result<(), Failed> {
        let quantize = self.device_table()?.quantize.ok_or_else(|| self.missing("quantize"))?;
        let (of_rows, of_bytes) = self.shapes(rows.len, n_cols)?;
        self.check_len(of_bytes, bytes.len)?;
        let (rows, bytes) = (of_rows.of_device(rows), of_bytes.of_device(bytes));
        call(&self.caller, &self.poison, |err| {
            // SAFETY: the plugin's own function; everything lives until it returns.
            unsafe { quantize(self.instance, &raw const rows, &raw const bytes, err) }
        })
    }

    fn dequantize(&self, bytes: DevicePart, n_cols: usize, rows: DevicePart) -> Result<(), Failed> {
        let dequantize = self.device_table()?.dequantize;
        let dequantize = dequantize.ok_or_else(|| self.missing("dequantize"))?;
        let (of_rows, of_bytes) = self.shapes(rows.len, n_cols)?;
        self.check_len(of_bytes, bytes.len)?;
        let (bytes, rows) = (of_bytes.of_device(bytes), of_rows.of_device(rows));
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

/// Refuses a size that no format has: room for it is made next.
pub(crate) fn check_row_bytes(
    caller: &Caller,
    n_cols: usize,
    n_bytes: usize,
) -> Result<usize, Failed> {
    let max = n_cols.saturating_mul(16).saturating_add(1 << 16);
    if n_bytes <= max {
        return Ok(n_bytes);
    }
    let what = format!("a row of {n_cols} numbers has {n_bytes} bytes; expected at most {max}");
    Err(caller.failed(&what))
}
