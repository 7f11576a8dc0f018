//! Sizes and offsets of every struct, and the hash of those that a plugin is built on.

use crate::{
    forgelm_answer, forgelm_collective, forgelm_collective_descriptor, forgelm_collective_factory,
    forgelm_device, forgelm_device_kernels, forgelm_device_models, forgelm_drop_mask,
    forgelm_dtype, forgelm_entry, forgelm_evaluator, forgelm_evaluator_descriptor,
    forgelm_evaluator_factory, forgelm_field_layout, forgelm_gemm, forgelm_generate,
    forgelm_held_out, forgelm_host, forgelm_kernels, forgelm_layouts, forgelm_loss,
    forgelm_managed_tensor, forgelm_merge_method, forgelm_merge_method_descriptor,
    forgelm_merge_method_factory, forgelm_merge_method_on_device, forgelm_merge_pass,
    forgelm_merge_piece, forgelm_merge_tensor, forgelm_plugin_error, forgelm_quantizer,
    forgelm_quantizer_descriptor, forgelm_quantizer_factory, forgelm_quantizer_on_device,
    forgelm_reward, forgelm_reward_descriptor, forgelm_reward_factory, forgelm_rng,
    forgelm_role_totals, forgelm_score, forgelm_scored, forgelm_sequence, forgelm_str,
    forgelm_tensor, forgelm_text_pair, forgelm_trainer, forgelm_trainer_descriptor,
    forgelm_trainer_factory, forgelm_work, forgelm_writer,
};

/// One field.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name in the header.
    pub name: &'static str,
    /// Bytes before it.
    pub offset: usize,
    /// Bytes of it.
    pub size: usize,
}

/// One struct.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Its name in the header.
    pub name: &'static str,
    /// Bytes of it now.
    pub size: usize,
    /// Its alignment.
    pub align: usize,
    /// The fields of version 1.0, in order.
    pub fields: &'static [Field],
}

/// Bytes of what a pointer points to.
const fn pointee_size<T>(_: *const T) -> usize {
    size_of::<T>()
}

macro_rules! layouts {
    ($($type:ident { $($field:ident),* $(,)? })*) => {
        &[$(Layout {
            name: stringify!($type),
            size: size_of::<$type>(),
            align: align_of::<$type>(),
            fields: &[$(Field {
                name: stringify!($field),
                offset: std::mem::offset_of!($type, $field),
                size: {
                    let place = std::mem::MaybeUninit::<$type>::uninit();
                    let start = place.as_ptr();
                    // SAFETY: the place is real memory of this type, and nothing is read.
                    pointee_size(unsafe { &raw const (*start).$field })
                },
            }),*],
        }),*]
    };
}

/// What a plugin is built on: the border and the four kinds that were there from the beginning.
#[expect(unsafe_code, reason = "the size of a field is that of what a raw pointer to it points to")]
pub const LAYOUTS: &[Layout] = layouts! {
    forgelm_str { ptr, len }
    forgelm_plugin_error { struct_size, code, message_len, reserved, message }
    forgelm_host {
        struct_size, abi_major, abi_minor, reserved, host_data, get_extension, log, is_cancelled,
        progress,
    }
    forgelm_entry {
        magic, abi_major, abi_minor, struct_size, reserved, layout_hash, name, version, init,
        deinit, get_factory,
    }
    forgelm_device { device_type, device_id }
    forgelm_dtype { code, bits, lanes }
    forgelm_tensor { data, device, ndim, dtype, shape, strides, byte_offset }
    forgelm_sequence { role, reserved, record, start, len }
    forgelm_role_totals { n_sequences, n_scored, n_trained }
    forgelm_scored {
        struct_size, reserved, sequences, n_sequences, labels, trained, logp, ref_logp, advantage,
        old_logp, totals, n_roles,
    }
    forgelm_loss { struct_size, reserved, loss_sum, n_terms, dlogp, metric_ctx, metric }
    forgelm_trainer_descriptor {
        struct_size, records, needs, reserved, name, summary, source, features,
    }
    forgelm_trainer { struct_size, reserved, plugin_data, destroy, loss, get_extension }
    forgelm_trainer_factory { struct_size, reserved, count, descriptor, create }
    forgelm_merge_pass { n_sums, n_facts }
    forgelm_merge_tensor { struct_size, reserved, name, len, facts, n_facts }
    forgelm_merge_piece { struct_size, reserved, tensor, start, base, inputs, n_inputs }
    forgelm_merge_method_descriptor {
        struct_size, scope, n_inputs_min, n_inputs_max, name, summary, source, features,
    }
    forgelm_merge_method {
        struct_size, reads_base, plugin_data, destroy, passes, n_passes, measure, conclude, merge,
        get_extension,
    }
    forgelm_merge_method_factory { struct_size, reserved, count, descriptor, create }
    forgelm_quantizer_descriptor { struct_size, reserved, name, summary, source, features }
    forgelm_quantizer {
        struct_size, reserved, plugin_data, destroy, bytes_per_row, quantize, dequantize,
        get_extension,
    }
    forgelm_quantizer_factory { struct_size, reserved, count, descriptor, create }
    forgelm_evaluator_descriptor { struct_size, reserved, name, summary, source, features }
    forgelm_evaluator { struct_size, reserved, plugin_data, destroy, evaluate, get_extension }
    forgelm_evaluator_factory { struct_size, reserved, count, descriptor, create }
    forgelm_writer { ctx, write }
};

/// What is asked for by id, each with a size and a revision of its own: not in the hash.
#[expect(unsafe_code, reason = "the size of a field is that of what a raw pointer to it points to")]
pub const EXTENSION_LAYOUTS: &[Layout] = layouts! {
    forgelm_text_pair { prompt, completion }
    forgelm_score { struct_size, reserved, service_data, score }
    forgelm_generate { struct_size, reserved, service_data, generate }
    forgelm_held_out { struct_size, reserved, service_data, count, score, text }
    forgelm_rng { struct_size, reserved, service_data, bits, uniform }
    forgelm_field_layout { structure, field, align, offset, size }
    forgelm_layouts { struct_size, reserved, fields, n_fields }
    forgelm_work { ctx, run }
    forgelm_gemm { struct_size, layout, m, n, k, alpha, write, a, b, c }
    forgelm_kernels {
        struct_size, reserved, service_data, parallel_for, gemm, axpy, dot, sum, sum_of_squares,
        max_abs, top_k_threshold, rms_norm, log_softmax_gather, bytes_per_row, quantize, dequantize,
    }
    forgelm_answer { prompt, completion, record }
    forgelm_reward_descriptor { struct_size, reserved, name, summary, source, features }
    forgelm_reward { struct_size, reserved, plugin_data, destroy, judge, get_extension }
    forgelm_reward_factory { struct_size, reserved, count, descriptor, create }
    forgelm_managed_tensor { tensor, manager_ctx, deleter }
    forgelm_device_models { inputs, n_inputs, base }
    forgelm_drop_mask { key_low, key_high, kept_below, start }
    forgelm_device_kernels {
        struct_size, reserved, service_data, device, stream, allocate, upload, download,
        synchronize, merge_linear, merge_slerp, ties_count, merge_ties, merge_dare, quantize,
        dequantize,
    }
    forgelm_merge_method_on_device { struct_size, reserved, measure, merge }
    forgelm_quantizer_on_device { struct_size, reserved, quantize, dequantize }
    forgelm_collective_descriptor { struct_size, reserved, name, summary, source, features }
    forgelm_collective {
        struct_size, reserved, plugin_data, destroy, rank, size, library, all_to_all, all_gather,
        broadcast, barrier, split, abort, get_extension,
    }
    forgelm_collective_factory { struct_size, reserved, count, descriptor, create }
};

/// FNV-1a over alignment and fields of [`LAYOUTS`] as they were in version 1.0: it does not change
/// when a field is appended, and does when one moves.
pub const LAYOUT_HASH: u64 = hash(LAYOUTS);

const fn hash(layouts: &[Layout]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut i = 0;
    while i < layouts.len() {
        let layout = &layouts[i];
        hash = mixed(hash, layout.align as u64);
        let mut j = 0;
        while j < layout.fields.len() {
            hash = mixed(hash, layout.fields[j].offset as u64);
            hash = mixed(hash, layout.fields[j].size as u64);
            j += 1;
        }
        i += 1;
    }
    hash
}

const fn mixed(mut hash: u64, value: u64) -> u64 {
    let mut shift = 0;
    while shift < 64 {
        hash = (hash ^ ((value >> shift) & 0xff)).wrapping_mul(0x0100_0000_01b3);
        shift += 8;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_moves_changes_the_hash_and_one_that_is_appended_does_not() {
        let fields = &[Field { name: "a", offset: 0, size: 4 }];
        let moved = &[Field { name: "a", offset: 8, size: 4 }];
        let of = |size, fields| hash(&[Layout { name: "t", size, align: 8, fields }]);
        assert_eq!(of(8, fields), of(16, fields));
        assert_ne!(of(8, fields), of(8, moved));
    }

    /// The fields of a struct lie end to end: no compiler can put padding of its own between them.
    #[test]
    fn no_struct_has_hidden_padding() {
        for layout in LAYOUTS.iter().chain(EXTENSION_LAYOUTS) {
            let mut end = 0;
            for field in layout.fields {
                assert_eq!(field.offset, end, "{}.{}", layout.name, field.name);
                end += field.size;
            }
            assert_eq!(layout.size, end, "{}", layout.name);
        }
    }
}
