//! Merge methods as a table: `forgelm.merge_method/1`.

use super::border::{
    Refusal, borrowed, call, destroy, given, guard, hand_out, leak_features, leak_text,
    read_options, read_tensor, shape_of, size, values, values_mut, view, view_mut,
};
use super::device::extension_of_merge_method;
use crate::merge_method::{Descriptor, MergeMethod, Pass, Piece, Scope, Tensor};
use forgelm_abi::{
    forgelm_host, forgelm_merge_method, forgelm_merge_method_descriptor,
    forgelm_merge_method_factory, forgelm_merge_pass, forgelm_merge_piece, forgelm_merge_tensor,
    forgelm_plugin_error, forgelm_status, forgelm_str, forgelm_tensor, merge_scope,
};
use std::ffi::c_char;
use std::mem::offset_of;
use std::ptr::{null, null_mut};

pub(super) type Factory = super::factory::Factory<
    forgelm_merge_method_factory,
    forgelm_merge_method_descriptor,
    Descriptor,
>;

/// The factory of these.
pub(super) fn factory(list: &'static [Descriptor], needs: &[&str]) -> &'static Factory {
    let features = leak_features(needs);
    let table = forgelm_merge_method_factory {
        struct_size: size::<forgelm_merge_method_factory>(),
        reserved: 0,
        count: Some(Factory::count),
        descriptor: Some(Factory::descriptor),
        create: Some(create),
    };
    Factory::leak(table, list, |of| described(of, features))
}

fn described(of: &Descriptor, features: *const *const c_char) -> forgelm_merge_method_descriptor {
    forgelm_merge_method_descriptor {
        struct_size: size::<forgelm_merge_method_descriptor>(),
        scope: match of.needs.scope {
            Scope::Elements => merge_scope::ELEMENTS,
            Scope::Tensor => merge_scope::TENSOR,
        },
        n_inputs_min: of.needs.n_inputs_min,
        n_inputs_max: of.needs.n_inputs_max,
        name: leak_text(of.name),
        summary: leak_text(of.summary),
        source: leak_text(of.source),
        features,
    }
}

// The passes of the header are those of the trait: they are read in place.
const _: () = {
    assert!(size_of::<Pass>() == size_of::<forgelm_merge_pass>());
    assert!(align_of::<Pass>() == align_of::<forgelm_merge_pass>());
    assert!(offset_of!(Pass, n_sums) == offset_of!(forgelm_merge_pass, n_sums));
    assert!(offset_of!(Pass, n_facts) == offset_of!(forgelm_merge_pass, n_facts));
};

unsafe extern "C" fn create(
    table: *const forgelm_merge_method_factory,
    _host: *const forgelm_host,
    index: u32,
    options_json: forgelm_str,
    weights: *const f64,
    n_weights: usize,
    out: *mut *const forgelm_merge_method,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    guard(err, || {
        // SAFETY: the host hands back the table that it was given.
        let descriptor = unsafe { Factory::entry(table, index, "method") }?;
        // SAFETY: the text is borrowed for the call.
        let options = unsafe { read_options(options_json) }?;
        // SAFETY: so are the weights.
        let weights = unsafe { values(weights, n_weights, "weights") }?;
        let method = (descriptor.build)(&borrowed(&options), weights)?;
        // They stand in the box of the instance, which stays where it is.
        let passes = method.passes();
        let table = forgelm_merge_method {
            struct_size: size::<forgelm_merge_method>(),
            reads_base: u32::from(method.reads_base()),
            plugin_data: null_mut(),
            destroy: Some(destroy::<forgelm_merge_method, dyn MergeMethod>),
            passes: passes.as_ptr().cast(),
            n_passes: passes.len(),
            measure: Some(measure),
            conclude: Some(conclude),
            merge: Some(merge),
            get_extension: Some(extension_of_merge_method),
        };
        // SAFETY: `out` is the host's.
        unsafe { hand_out(out, table, method) }
    })
}

unsafe extern "C" fn measure(
    table: *const forgelm_merge_method,
    pass: usize,
    piece: *const forgelm_merge_piece,
    sums: *mut f64,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    let body = |method: &(dyn MergeMethod + 'static)| {
        let n_sums = pass_of(method, pass)?.n_sums;
        // SAFETY: everything is borrowed for the call.
        let read = unsafe { ReadPiece::new(piece) }?;
        // SAFETY: written by this call alone.
        let sums = unsafe { values_mut(sums, n_sums, "sums") }?;
        Ok(method.measure(pass, &read.piece(), sums)?)
    };
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_merge_method, dyn MergeMethod>(table, err, body) }
}

unsafe extern "C" fn conclude(
    table: *const forgelm_merge_method,
    pass: usize,
    tensor: *const forgelm_merge_tensor,
    sums: *const f64,
    facts: *mut f64,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    let body = |method: &(dyn MergeMethod + 'static)| {
        let Pass { n_sums, n_facts } = pass_of(method, pass)?;
        // SAFETY: everything is borrowed for the call.
        let tensor = unsafe { read_tensor(tensor) }?;
        // SAFETY: likewise.
        let sums = unsafe { values(sums, n_sums, "sums") }?;
        // SAFETY: written by this call alone.
        let facts = unsafe { values_mut(facts, n_facts, "facts") }?;
        Ok(method.conclude(pass, &tensor, sums, facts)?)
    };
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_merge_method, dyn MergeMethod>(table, err, body) }
}

unsafe extern "C" fn merge(
    table: *const forgelm_merge_method,
    piece: *const forgelm_merge_piece,
    out: *const forgelm_tensor,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    let body = |method: &(dyn MergeMethod + 'static)| {
        // SAFETY: everything is borrowed for the call.
        let read = unsafe { ReadPiece::new(piece) }?;
        // SAFETY: written by this call alone.
        let out = unsafe { view_mut::<f32>(out, "out", &[read.len]) }?;
        Ok(method.merge(&read.piece(), out)?)
    };
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_merge_method, dyn MergeMethod>(table, err, body) }
}

fn pass_of(method: &dyn MergeMethod, pass: usize) -> Result<Pass, Refusal> {
    method.passes().get(pass).copied().ok_or_else(|| Refusal::argument("no pass of that number"))
}

/// A piece with its list of inputs.
struct ReadPiece<'a> {
    tensor: Tensor<'a>,
    start: usize,
    len: usize,
    base: Option<&'a [f32]>,
    inputs: Vec<&'a [f32]>,
}

impl<'a> ReadPiece<'a> {
    /// # Safety
    /// Everything that it points to is borrowed for the call.
    unsafe fn new(piece: *const forgelm_merge_piece) -> Result<Self, Refusal> {
        // SAFETY: the caller's promise; so below.
        let piece = unsafe { given(piece, "piece") }?;
        // SAFETY: as above.
        let tensor = unsafe { read_tensor(piece.tensor) }?;
        // SAFETY: as above.
        let inputs = unsafe { values(piece.inputs, piece.n_inputs, "inputs") }?;
        let first = inputs.first().map_or_else(null, std::ptr::from_ref);
        // SAFETY: as above.
        let shape = unsafe { shape_of(first, "inputs") }?;
        let len = shape.iter().product();
        // SAFETY: as above.
        let of = |tensor: *const _, name| unsafe { view::<f32>(tensor, name, &[len]) };
        Ok(Self {
            tensor,
            start: piece.start,
            len,
            base: if piece.base.is_null() { None } else { Some(of(piece.base, "base")?) },
            inputs: inputs.iter().map(|input| of(input, "inputs")).collect::<Result<_, _>>()?,
        })
    }

    fn piece(&self) -> Piece<'_> {
        let Self { tensor, start, base, inputs, .. } = self;
        Piece { tensor: *tensor, start: *start, base: *base, inputs }
    }
}
