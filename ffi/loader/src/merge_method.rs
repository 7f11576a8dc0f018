//! Merge methods of a library, as the trait that the host calls.

use crate::border::{Caller, Poison, Shape, call, extension, first_missing, size};
use crate::error::Problem;
use crate::factory::{self, Offer};
use crate::float_mode::KeepFloatMode;
use crate::host::Host;
use forgelm_abi::{
    MERGE_METHOD_ON_DEVICE, forgelm_merge_method, forgelm_merge_method_descriptor,
    forgelm_merge_method_factory, forgelm_merge_method_on_device, forgelm_merge_pass,
    forgelm_merge_piece, forgelm_merge_tensor, forgelm_str, forgelm_tensor, merge_scope,
};
use forgelm_kernels_api::DevicePart;
use forgelm_plugin::{Kind, MergeMethods, Origin, Plugin};
use forgelm_sdk::merge_method::{
    DevicePiece, MergeMethod, MergeOnDevice, Needs, Pass, Piece, Scope, Tensor,
};
use forgelm_sdk::{Failed, OptionValue, OptionsError};
use std::ffi::c_void;
use std::mem::offset_of;
use std::ptr::{from_ref, null};
use std::sync::Arc;

/// The merge methods behind a factory; none if it is null.
pub(crate) fn offers(
    factory: *const c_void,
    host: &'static Host,
    origin: &Arc<Origin>,
) -> Result<Vec<Plugin<MergeMethods>>, Problem> {
    let read = |found: &forgelm_merge_method_descriptor,
                entry: Offer<forgelm_merge_method_factory>| {
        let scope = match found.scope {
            merge_scope::ELEMENTS => Scope::Elements,
            merge_scope::TENSOR => Scope::Tensor,
            other => {
                let (what, expected) = (entry.field("scope"), "0 or 1".to_owned());
                return Err(Problem::Number { what, found: other.into(), expected });
            }
        };
        let (n_inputs_min, n_inputs_max) = (found.n_inputs_min, found.n_inputs_max);
        if n_inputs_min == 0 || n_inputs_min > n_inputs_max {
            let (what, found) = (entry.field("n_inputs_min"), n_inputs_min as u64);
            let expected = format!("1 to n_inputs_max, {n_inputs_max}");
            return Err(Problem::Number { what, found, expected });
        }
        let needs = Needs { scope, n_inputs_min, n_inputs_max };
        let build: Arc<<MergeMethods as Kind>::Build> =
            Arc::new(move |options: &[(&str, OptionValue)], weights: &[f64]| {
                let method = Foreign::create(&entry, (options, weights))?;
                Ok(Box::new(method) as Box<dyn MergeMethod>)
            });
        Ok((needs, build))
    };
    factory::offers(factory, host, origin, read)
}

/// An instance.
struct Foreign {
    instance: *const forgelm_merge_method,
    /// What it offers for tensors of a device.
    on_device: Option<*const forgelm_merge_method_on_device>,
    passes: Vec<Pass>,
    caller: Caller,
    poison: Poison,
}

// SAFETY: the header lets any thread call an instance, several at once.
unsafe impl Send for Foreign {}
// SAFETY: as above.
unsafe impl Sync for Foreign {}

// The passes of the trait are those of the header.
const _: () = {
    assert!(size_of::<Pass>() == size_of::<forgelm_merge_pass>());
    assert!(offset_of!(Pass, n_sums) == offset_of!(forgelm_merge_pass, n_sums));
    assert!(offset_of!(Pass, n_facts) == offset_of!(forgelm_merge_pass, n_facts));
};

impl Foreign {
    fn create(
        entry: &Offer<forgelm_merge_method_factory>,
        (options, weights): (&[(&str, OptionValue)], &[f64]),
    ) -> Result<Self, OptionsError> {
        let missing = |found: &forgelm_merge_method| {
            first_missing(&[
                (found.merge.is_none(), "merge"),
                (found.destroy.is_none(), "destroy"),
                (found.n_passes > 0 && found.passes.is_null(), "passes"),
                (found.n_passes > 0 && found.measure.is_none(), "measure"),
                (found.n_passes > 0 && found.conclude.is_none(), "conclude"),
            ])
        };
        let create = |options, out, err| {
            let create = entry.factory.create?;
            // SAFETY: the plugin's own function with its own table; the rest lives long enough.
            Some(unsafe {
                create(
                    entry.factory,
                    entry.host.table(),
                    entry.index,
                    options,
                    weights.as_ptr(),
                    weights.len(),
                    out,
                    err,
                )
            })
        };
        let instance = entry.create(options, "forgelm_merge_method", missing, create)?;
        let mut passes: Vec<Pass> = Vec::new();
        // SAFETY: `created` found it good.
        let found = unsafe { &*instance };
        if found.n_passes > 0 {
            // SAFETY: as many passes as it says, constant, of the layout asserted above.
            let found = unsafe { std::slice::from_raw_parts(found.passes.cast(), found.n_passes) };
            passes.extend_from_slice(found);
        }
        let (caller, poison) = (entry.caller.clone(), Poison::default());
        let mut made = Self { instance, on_device: None, passes, caller, poison };
        made.on_device = made.find_on_device()?;
        Ok(made)
    }

    /// The table for tensors of a device, where it has one.
    fn find_on_device(
        &self,
    ) -> Result<Option<*const forgelm_merge_method_on_device>, OptionsError> {
        let refused =
            |what: &str| OptionsError::Refused { message: self.caller.failed(what).message };
        let get = self.table().get_extension;
        // SAFETY: the plugin's own function with its own instance; the table of this id.
        let found = unsafe { extension(get, self.instance, MERGE_METHOD_ON_DEVICE) };
        let found: Option<*const forgelm_merge_method_on_device> =
            found.map_err(|problem| refused(&problem.to_string()))?;
        // SAFETY: `extension` found it good, and it lives as long as the instance.
        if found.is_some_and(|table| unsafe { (*table).merge }.is_none()) {
            return Err(refused("`forgelm_merge_method_on_device.merge` is NULL"));
        }
        Ok(found)
    }

    fn device_table(&self) -> Result<&forgelm_merge_method_on_device, Failed> {
        let table = self.on_device.ok_or_else(|| self.missing("forgelm_merge_method_on_device"))?;
        // SAFETY: `extension` found it good, and it lives as long as the instance.
        Ok(unsafe { &*table })
    }

    fn table(&self) -> &forgelm_merge_method {
        // SAFETY: checked when it was created, and ours until it is dropped.
        unsafe { &*self.instance }
    }

    fn missing(&self, field: &str) -> Failed {
        self.caller.failed(&format!("`{field}` is NULL"))
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

fn foreign_tensor(tensor: &Tensor<'_>) -> forgelm_merge_tensor {
    forgelm_merge_tensor {
        struct_size: size::<forgelm_merge_tensor>(),
        reserved: 0,
        name: forgelm_str::new(tensor.name),
        len: tensor.len,
        facts: tensor.facts.as_ptr(),
        n_facts: tensor.facts.len(),
    }
}

/// Runs `body` with a piece as the header has it; its numbers stay where they are.
fn with_piece<R>(
    piece: &Piece<'_>,
    n: usize,
    body: impl FnOnce(*const forgelm_merge_piece) -> R,
) -> R {
    let shape = Shape::new([n]);
    let base = piece.base.map(|values| shape.of(values));
    let inputs: Vec<_> = piece.inputs.iter().map(|values| shape.of(values)).collect();
    with_tensors(&piece.tensor, piece.start, base.as_ref(), &inputs, body)
}

/// The same with a piece on a device.
fn with_device_piece<R>(
    piece: &DevicePiece<'_>,
    shape: &Shape<1>,
    body: impl FnOnce(*const forgelm_merge_piece) -> R,
) -> R {
    let base = piece.base.map(|part| shape.of_device(part));
    let inputs: Vec<_> = piece.inputs.iter().map(|&part| shape.of_device(part)).collect();
    with_tensors(&piece.tensor, piece.start, base.as_ref(), &inputs, body)
}

fn with_tensors<R>(
    tensor: &Tensor<'_>,
    start: usize,
    base: Option<&forgelm_tensor>,
    inputs: &[forgelm_tensor],
    body: impl FnOnce(*const forgelm_merge_piece) -> R,
) -> R {
    let tensor = foreign_tensor(tensor);
    let foreign = forgelm_merge_piece {
        struct_size: size::<forgelm_merge_piece>(),
        reserved: 0,
        tensor: &raw const tensor,
        start,
        base: base.map_or_else(null, from_ref),
        inputs: inputs.as_ptr(),
        n_inputs: inputs.len(),
    };
    body(&raw const foreign)
}

impl MergeMethod for Foreign {
    fn reads_base(&self) -> bool {
        self.table().reads_base != 0
    }

    fn passes(&self) -> &[Pass] {
        &self.passes
    }

    fn measure(&self, pass: usize, piece: &Piece<'_>, sums: &mut [f64]) -> Result<(), Failed> {
        let measure = self.table().measure.ok_or_else(|| self.missing("measure"))?;
        let n = piece.inputs.first().map_or(0, |input| input.len());
        with_piece(piece, n, |piece| {
            call(&self.caller, &self.poison, |err| {
                // SAFETY: the plugin's own function; everything lives until it returns.
                unsafe { measure(self.instance, pass, piece, sums.as_mut_ptr(), err) }
            })
        })
    }

    fn conclude(
        &self,
        pass: usize,
        tensor: &Tensor<'_>,
        sums: &[f64],
        facts: &mut [f64],
    ) -> Result<(), Failed> {
        let conclude = self.table().conclude.ok_or_else(|| self.missing("conclude"))?;
        let tensor = foreign_tensor(tensor);
        call(&self.caller, &self.poison, |err| {
            let (sums, facts) = (sums.as_ptr(), facts.as_mut_ptr());
            // SAFETY: the plugin's own function; everything lives until it returns.
            unsafe { conclude(self.instance, pass, &raw const tensor, sums, facts, err) }
        })
    }

    fn merge(&self, piece: &Piece<'_>, out: &mut [f32]) -> Result<(), Failed> {
        let merge = self.table().merge.ok_or_else(|| self.missing("merge"))?;
        let shape = Shape::new([out.len()]);
        let n = out.len();
        let out = shape.of_mut(out);
        with_piece(piece, n, |piece| {
            call(&self.caller, &self.poison, |err| {
                // SAFETY: the plugin's own function; everything lives until it returns.
                unsafe { merge(self.instance, piece, &raw const out, err) }
            })
        })
    }

    fn on_device(&self) -> Option<&dyn MergeOnDevice> {
        self.on_device.map(|_| self as &dyn MergeOnDevice)
    }
}

impl MergeOnDevice for Foreign {
    fn measures(&self) -> bool {
        self.device_table().is_ok_and(|table| table.measure.is_some())
    }

    fn measure(
        &self,
        pass: usize,
        piece: &DevicePiece<'_>,
        sums: &mut [f64],
    ) -> Result<(), Failed> {
        let measure = self.device_table()?.measure.ok_or_else(|| self.missing("measure"))?;
        let shape = Shape::new([piece.inputs.first().map_or(0, |input| input.len)]);
        with_device_piece(piece, &shape, |piece| {
            call(&self.caller, &self.poison, |err| {
                // SAFETY: the plugin's own function; everything lives until it returns.
                unsafe { measure(self.instance, pass, piece, sums.as_mut_ptr(), err) }
            })
        })
    }

    fn merge(&self, piece: &DevicePiece<'_>, out: DevicePart) -> Result<(), Failed> {
        let merge = self.device_table()?.merge.ok_or_else(|| self.missing("merge"))?;
        let shape = Shape::new([out.len]);
        let out = shape.of_device(out);
        with_device_piece(piece, &shape, |piece| {
            call(&self.caller, &self.poison, |err| {
                // SAFETY: the plugin's own function; everything lives until it returns.
                unsafe { merge(self.instance, piece, &raw const out, err) }
            })
        })
    }
}
