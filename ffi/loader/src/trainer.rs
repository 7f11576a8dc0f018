//! Trainers of a library, as the trait that the engine calls.

use crate::border::{Caller, Poison, Shape, call, first_missing, lossy, size};
use crate::error::Problem;
use crate::factory::{self, Offer};
use crate::float_mode::KeepFloatMode;
use crate::host::Host;
use forgelm_abi::{
    forgelm_loss, forgelm_role_totals, forgelm_scored, forgelm_sequence, forgelm_str,
    forgelm_trainer, forgelm_trainer_descriptor, forgelm_trainer_factory, records, trainer_needs,
};
use forgelm_plugin::{Kind, Origin, Plugin, Trainers};
use forgelm_sdk::trainer::{Loss, Needs, Records, Role, Scored, Sequence, StepTotals, Trainer};
use forgelm_sdk::{Failed, OptionValue, OptionsError};
use std::collections::BTreeSet;
use std::ffi::c_void;
use std::mem::offset_of;
use std::ptr::{from_ref, null};
use std::sync::{Arc, Mutex, PoisonError};

/// Names of metrics that an instance may invent.
const METRIC_NAMES_MAX: usize = 256;

/// The trainers behind a factory; none if it is null.
pub(crate) fn offers(
    factory: *const c_void,
    host: &'static Host,
    origin: &Arc<Origin>,
) -> Result<Vec<Plugin<Trainers>>, Problem> {
    let read = |found: &forgelm_trainer_descriptor, entry: Offer<forgelm_trainer_factory>| {
        let needs = |bit: u32| found.needs & bit != 0;
        let known = trainer_needs::REFERENCE
            | trainer_needs::ROLLOUTS
            | trainer_needs::PROMPTS
            | trainer_needs::DROPOUT;
        if found.needs & !known != 0 {
            let expected = format!("bits of {known}");
            return Err(Problem::Number {
                what: entry.field("needs"),
                found: found.needs.into(),
                expected,
            });
        }
        let needs = Needs {
            records: records_of(found.records).ok_or_else(|| {
                let (what, expected) = (entry.field("records"), "0 to 3".to_owned());
                Problem::Number { what, found: found.records.into(), expected }
            })?,
            reference: needs(trainer_needs::REFERENCE),
            rollouts: needs(trainer_needs::ROLLOUTS),
            prompts: needs(trainer_needs::PROMPTS),
            dropout: needs(trainer_needs::DROPOUT),
        };
        let build: Arc<<Trainers as Kind>::Build> =
            Arc::new(move |options: &[(&str, OptionValue)]| {
                let trainer = Foreign::create(&entry, options)?;
                Ok(Box::new(trainer) as Box<dyn Trainer>)
            });
        Ok((needs, build))
    };
    factory::offers(factory, host, origin, read)
}

/// A number of the header as what it stands for.
pub(crate) fn records_of(number: u32) -> Option<Records> {
    match number {
        records::TEXT => Some(Records::Text),
        records::PREFERENCE => Some(Records::Preference),
        records::LABELLED => Some(Records::Labelled),
        records::PROMPT => Some(Records::Prompt),
        _ => None,
    }
}

/// An instance.
struct Foreign {
    instance: *const forgelm_trainer,
    caller: Caller,
    poison: Poison,
    /// The names of its metrics so far. The lock is held during a call: one at a time.
    calls: Mutex<BTreeSet<&'static str>>,
}

// SAFETY: the header lets any thread call an instance, one call at a time, which the lock holds.
unsafe impl Send for Foreign {}
// SAFETY: as above.
unsafe impl Sync for Foreign {}

impl Foreign {
    fn create(
        entry: &Offer<forgelm_trainer_factory>,
        options: &[(&str, OptionValue)],
    ) -> Result<Self, OptionsError> {
        let missing = |found: &forgelm_trainer| {
            first_missing(&[(found.loss.is_none(), "loss"), (found.destroy.is_none(), "destroy")])
        };
        let create = |options, out, err| {
            let create = entry.factory.create?;
            // SAFETY: the plugin's own function with its own table; the rest lives long enough.
            Some(unsafe {
                create(entry.factory, entry.host.table(), entry.index, options, out, err)
            })
        };
        let instance = entry.create(options, "forgelm_trainer", missing, create)?;
        let (poison, calls) = (Poison::default(), Mutex::default());
        let caller = entry.caller.of_one_caller(entry.host);
        Ok(Self { instance, caller, poison, calls })
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _mode = KeepFloatMode::new();
        // SAFETY: checked when it was created, and not destroyed before.
        if let Some(destroy) = unsafe { (*self.instance).destroy } {
            // SAFETY: the plugin's own function with its own instance; no call is running.
            unsafe { destroy(self.instance) };
        }
    }
}

// The sequences and totals of the trait are those of the header: a plugin reads them in place.
const _: () = {
    assert!(size_of::<Sequence>() == size_of::<forgelm_sequence>());
    assert!(offset_of!(Sequence, role) == offset_of!(forgelm_sequence, role));
    assert!(offset_of!(Sequence, record) == offset_of!(forgelm_sequence, record));
    assert!(offset_of!(Sequence, start) == offset_of!(forgelm_sequence, start));
    assert!(offset_of!(Sequence, len) == offset_of!(forgelm_sequence, len));
    assert!(size_of::<StepTotals>() == Role::COUNT * size_of::<forgelm_role_totals>());
};

impl Trainer for Foreign {
    fn loss(&self, scored: &Scored<'_>, dlogp: &mut [f32]) -> Result<Loss, Failed> {
        let mut names = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        // What a plugin forgets to write is no gradient.
        dlogp.fill(0.0);
        let (rows, sequences) =
            (Shape::new([scored.logp.len()]), Shape::new([scored.sequences.len()]));
        let labels = rows.of(scored.labels);
        let trained = rows.of(scored.trained);
        let logp = rows.of(scored.logp);
        let ref_logp = scored.ref_logp.map(|values| rows.of(values));
        let advantage = scored.advantage.map(|values| sequences.of(values));
        let old_logp = scored.old_logp.map(|values| rows.of(values));
        let dlogp = rows.of_mut(dlogp);
        let foreign = forgelm_scored {
            struct_size: size::<forgelm_scored>(),
            reserved: 0,
            sequences: scored.sequences.as_ptr().cast(),
            n_sequences: scored.sequences.len(),
            labels: &raw const labels,
            trained: &raw const trained,
            logp: &raw const logp,
            ref_logp: ref_logp.as_ref().map_or_else(null, from_ref),
            advantage: advantage.as_ref().map_or_else(null, from_ref),
            old_logp: old_logp.as_ref().map_or_else(null, from_ref),
            totals: from_ref(scored.step).cast(),
            n_roles: Role::COUNT,
        };
        let mut metrics =
            Metrics { names: &mut names, measured: Loss::default(), is_too_many: false };
        let mut out = forgelm_loss {
            struct_size: size::<forgelm_loss>(),
            reserved: 0,
            loss_sum: f64::NAN,
            n_terms: 0,
            dlogp: &raw const dlogp,
            metric_ctx: (&raw mut metrics).cast(),
            metric: Some(metric),
        };
        // SAFETY: checked when it was created.
        let loss = unsafe { (*self.instance).loss };
        let Some(loss) = loss else { return Err(self.caller.failed("`loss` is NULL")) };
        call(&self.caller, &self.poison, |err| {
            // SAFETY: the plugin's own function; everything lives until it returns.
            unsafe { loss(self.instance, &raw const foreign, &raw mut out, err) }
        })?;
        if metrics.is_too_many {
            let text = format!("more than {METRIC_NAMES_MAX} names of metrics");
            return Err(self.caller.failed(&text));
        }
        let mut measured = metrics.measured;
        (measured.loss_sum, measured.n_terms) = (out.loss_sum, out.n_terms);
        Ok(measured)
    }
}

/// What a call measures.
struct Metrics<'a> {
    names: &'a mut BTreeSet<&'static str>,
    measured: Loss,
    is_too_many: bool,
}

/// The host's end of `metric`.
unsafe extern "C" fn metric(ctx: *mut c_void, name: forgelm_str, sum: f64, n_terms: u64) {
    // SAFETY: the context of the call in progress.
    let Some(metrics) = (unsafe { ctx.cast::<Metrics<'_>>().as_mut() }) else { return };
    // SAFETY: readable during the call.
    let name = unsafe { lossy(name) };
    let known = metrics.names.get(&*name).copied();
    if known.is_none() && metrics.names.len() == METRIC_NAMES_MAX {
        metrics.is_too_many = true;
        return;
    }
    let name = known.unwrap_or_else(|| kept_name(&name));
    metrics.names.insert(name);
    metrics.measured.measure_sum(name, sum, n_terms);
}

/// A name that lives for ever; the same for the same text.
pub(crate) fn kept_name(name: &str) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(name) {
        return known;
    }
    let kept: &'static str = Box::leak(name.to_owned().into_boxed_str());
    names.insert(kept);
    kept
}
