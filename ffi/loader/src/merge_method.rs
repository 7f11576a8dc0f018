//! Merge methods of a library, as the trait that the host calls.

use crate::border::{Caller, Poison, Shape, call, first_missing, size};
use crate::error::Problem;
use crate::factory::{self, Offer};
use crate::float_mode::KeepFloatMode;
use crate::host::Host;
use forgelm_abi::{
    forgelm_merge_method, forgelm_merge_method_descriptor, forgelm_merge_method_factory,
    forgelm_merge_pass, forgelm_merge_piece, forgelm_merge_tensor, forgelm_str, merge_scope,
};
use forgelm_plugin::{Kind, MergeMethods, Origin, Plugin};
use forgelm_sdk::merge_method::{MergeMethod, Needs, Pass, Piece, Scope, Tensor};
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
        Ok(Self { instance, passes, caller: entry.caller.clone(), poison: Poison::default() })
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
    let tensor = foreign_tensor(&piece.tensor);
    let base = piece.base.map(|values| shape.of(values));
    let inputs: Vec<_> = piece.inputs.iter().map(|values| shape.of(values)).collect();
    let foreign = forgelm_merge_piece {
        struct_size: size::<forgelm_merge_piece>(),
        reserved: 0,
        tensor: &raw const tensor,
        start: piece.start,
        base: base.as_ref().map_or_else(null, from_ref),
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
}
