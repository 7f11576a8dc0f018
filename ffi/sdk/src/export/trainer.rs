//! Trainers as a table: `forgelm.trainer/1`.

use super::border::{
    Refusal, borrowed, call, destroy, given, guard, hand_out, leak_features, leak_text,
    read_options, size, values, view, view_mut,
};
use crate::trainer::{Descriptor, Loss, Records, Role, Scored, Sequence, StepTotals, Trainer};
use forgelm_abi::{
    forgelm_host, forgelm_loss, forgelm_plugin_error, forgelm_role_totals, forgelm_scored,
    forgelm_sequence, forgelm_status, forgelm_str, forgelm_tensor, forgelm_trainer,
    forgelm_trainer_descriptor, forgelm_trainer_factory, records, role, trainer_needs,
};
use std::ffi::c_char;
use std::mem::offset_of;
use std::ptr::null_mut;

pub(super) type Factory =
    super::factory::Factory<forgelm_trainer_factory, forgelm_trainer_descriptor, Descriptor>;

/// The factory of these.
pub(super) fn factory(list: &'static [Descriptor], needs: &[&str]) -> &'static Factory {
    let features = leak_features(needs);
    let table = forgelm_trainer_factory {
        struct_size: size::<forgelm_trainer_factory>(),
        reserved: 0,
        count: Some(Factory::count),
        descriptor: Some(Factory::descriptor),
        create: Some(create),
    };
    Factory::leak(table, list, |of| described(of, features))
}

fn described(of: &Descriptor, features: *const *const c_char) -> forgelm_trainer_descriptor {
    let needs = [
        (of.needs.reference, trainer_needs::REFERENCE),
        (of.needs.rollouts, trainer_needs::ROLLOUTS),
        (of.needs.prompts, trainer_needs::PROMPTS),
        (of.needs.dropout, trainer_needs::DROPOUT),
    ];
    forgelm_trainer_descriptor {
        struct_size: size::<forgelm_trainer_descriptor>(),
        records: match of.needs.records {
            Records::Text => records::TEXT,
            Records::Preference => records::PREFERENCE,
            Records::Labelled => records::LABELLED,
            Records::Prompt => records::PROMPT,
        },
        needs: needs.iter().filter(|(is_needed, _)| *is_needed).map(|(_, bit)| bit).sum(),
        reserved: 0,
        name: leak_text(of.name),
        summary: leak_text(of.summary),
        source: leak_text(of.source),
        features,
    }
}

unsafe extern "C" fn create(
    table: *const forgelm_trainer_factory,
    _host: *const forgelm_host,
    index: u32,
    options_json: forgelm_str,
    out: *mut *const forgelm_trainer,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    guard(err, || {
        // SAFETY: the host hands back the table that it was given.
        let descriptor = unsafe { Factory::entry(table, index, "trainer") }?;
        // SAFETY: the text is borrowed for the call.
        let options = unsafe { read_options(options_json) }?;
        let trainer = (descriptor.build)(&borrowed(&options))?;
        let table = forgelm_trainer {
            struct_size: size::<forgelm_trainer>(),
            reserved: 0,
            plugin_data: null_mut(),
            destroy: Some(destroy::<forgelm_trainer, dyn Trainer>),
            loss: Some(loss),
            get_extension: None,
        };
        // SAFETY: `out` is the host's.
        unsafe { hand_out(out, table, trainer) }
    })
}

unsafe extern "C" fn loss(
    table: *const forgelm_trainer,
    scored: *const forgelm_scored,
    out: *mut forgelm_loss,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    let body = |trainer: &(dyn Trainer + 'static)| {
        // SAFETY: everything that a batch points to is borrowed for the call.
        let scored = unsafe { read(scored) }?;
        // SAFETY: the host's, for the call.
        let place = unsafe { out.as_mut() }.ok_or_else(|| Refusal::argument("`out` is NULL"))?;
        // SAFETY: written by this call alone.
        let dlogp = unsafe { view_mut::<f32>(place.dlogp, "dlogp", &[scored.logp.len()]) }?;
        let loss = trainer.loss(&scored, dlogp)?;
        hand_back(&loss, place);
        Ok(())
    };
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_trainer, dyn Trainer>(table, err, body) }
}

/// Inlined, as [`read`] is: handed over in memory, what was written as single words is read back as pairs
/// of them, which stalls. The two cost 9 of 49 ns of a call.
#[inline(always)]
fn hand_back(loss: &Loss, out: &mut forgelm_loss) {
    out.loss_sum = loss.loss_sum;
    out.n_terms = loss.n_terms;
    let Some(metric) = out.metric else { return };
    for measured in &loss.metrics {
        let name = forgelm_str::new(measured.name);
        // SAFETY: the host's own function and context; the name is borrowed for the call.
        unsafe { metric(out.metric_ctx, name, measured.sum, measured.n_terms) };
    }
}

// The sequences and totals of the header are those of the trait: they are read in place.
const _: () = {
    assert!(size_of::<Sequence>() == size_of::<forgelm_sequence>());
    assert!(align_of::<Sequence>() == align_of::<forgelm_sequence>());
    assert!(offset_of!(Sequence, role) == offset_of!(forgelm_sequence, role));
    assert!(offset_of!(Sequence, record) == offset_of!(forgelm_sequence, record));
    assert!(offset_of!(Sequence, start) == offset_of!(forgelm_sequence, start));
    assert!(offset_of!(Sequence, len) == offset_of!(forgelm_sequence, len));
    assert!(size_of::<StepTotals>() == Role::COUNT * size_of::<forgelm_role_totals>());
    assert!(Role::Sole as u32 == role::SOLE && Role::Chosen as u32 == role::CHOSEN);
    assert!(Role::Rejected as u32 == role::REJECTED && Role::Kl as u32 == role::KL);
    assert!(Role::Rollout as u32 == role::ROLLOUT);
};

/// A batch as the trait sees it, nothing copied: inlined, so that the view is not either.
///
/// # Safety
/// Everything that it points to is borrowed for the call.
#[inline(always)]
unsafe fn read<'a>(scored: *const forgelm_scored) -> Result<Scored<'a>, Refusal> {
    // SAFETY: the caller's promise.
    let scored = unsafe { given(scored, "scored") }?;
    // SAFETY: likewise.
    let sequences = unsafe { values(scored.sequences, scored.n_sequences, "sequences") }?;
    let is_known = |sequence: &forgelm_sequence| (sequence.role as usize) < Role::COUNT;
    let n_rows: usize = sequences.iter().map(|sequence| sequence.len).sum();
    if !sequences.iter().all(is_known) {
        return Err(Refusal::argument("a sequence has a role that this plugin does not know"));
    }
    if scored.n_roles < Role::COUNT {
        return Err(Refusal::argument("`totals` has too few roles"));
    }
    // SAFETY: the same layout, as asserted above, and every role is one that the enum has.
    let sequences = unsafe { values(sequences.as_ptr().cast::<Sequence>(), sequences.len(), "") }?;
    // SAFETY: at least as many totals as there are roles.
    let step = unsafe { given(scored.totals.cast::<StepTotals>(), "totals") }?;
    let rows = [n_rows];
    let optional = |tensor: *const forgelm_tensor, name: &str, n: usize| {
        if tensor.is_null() {
            return Ok(None);
        }
        // SAFETY: a view that is borrowed for the call; so below.
        unsafe { view::<f32>(tensor, name, &[n]) }.map(Some)
    };
    Ok(Scored {
        sequences,
        // SAFETY: as above.
        labels: unsafe { view(scored.labels, "labels", &rows) }?,
        // SAFETY: as above.
        trained: unsafe { view(scored.trained, "trained", &rows) }?,
        // SAFETY: as above.
        logp: unsafe { view(scored.logp, "logp", &rows) }?,
        ref_logp: optional(scored.ref_logp, "ref_logp", n_rows)?,
        advantage: optional(scored.advantage, "advantage", sequences.len())?,
        old_logp: optional(scored.old_logp, "old_logp", n_rows)?,
        step,
    })
}
