//! The plans of cuDNN that were made so far, each of which was tried before its first use, and what
//! was told of those that are not used.
//!
//! A plan is made for sizes; for others cuDNN may choose another engine, or have none. So what a
//! plan computes says nothing of the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::backend::Refusal;
use super::plan::{Plan, Sizes, Target};
use super::{CuDnn, failed, trial};
use crate::device::{Device, lock};
use crate::error::must;

/// Plans that are kept: the powers of two of one model's batches are fewer.
const PLANS_MAX: usize = 64;

/// Why cuDNN does not compute attention of some sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttentionUnfit {
    /// It makes no plan for them: its words.
    NoPlan(String),
    /// Its plan computes something else than our own kernels: what differs.
    Different(String),
}

/// A plan that computes what our own kernels do, or why none is used.
type Tried = Result<Arc<Plan>, AttentionUnfit>;

/// Heads of a model: of queries, of keys and values, and their width.
type Heads = [usize; 3];

/// What was made so far.
#[derive(Debug, Default)]
pub(super) struct Plans {
    tried: BTreeMap<Sizes, Tried>,
    /// Heads of which it was told that there is no plan, and of which that one differs.
    told: [BTreeSet<Heads>; 2],
}

impl Plans {
    pub(super) fn clear(&mut self) {
        self.tried.clear();
    }

    /// Whether this is the first time that such a thing is known of these heads.
    fn is_news(&mut self, sizes: Sizes, why: &AttentionUnfit) -> bool {
        let told = match why {
            AttentionUnfit::NoPlan(_) => &mut self.told[0],
            AttentionUnfit::Different(_) => &mut self.told[1],
        };
        told.insert([sizes.n_heads, sizes.n_kv_heads, sizes.head_dim])
    }
}

impl CuDnn {
    /// Whether a plan for these heads computes what our own kernels do: one of those that runs may
    /// need.
    pub(crate) fn try_heads(
        &self,
        device: &Device,
        n_heads: usize,
        n_kv_heads: usize,
        head_dim: usize,
    ) -> Result<(), AttentionUnfit> {
        let sizes = trial::sizes(n_heads, n_kv_heads, head_dim);
        self.plan(&mut lock(&self.plans), device, sizes).map(drop)
    }

    /// The plan for some sizes, if it is used. The first time it is made and tried. Why one is not
    /// used is told once for the same heads: sizes are many.
    pub(super) fn plan(&self, plans: &mut Plans, device: &Device, sizes: Sizes) -> Tried {
        if let Some(tried) = plans.tried.get(&sizes) {
            return tried.clone();
        }
        device.refuse_in_capture("attention_trial", "a trial of cuDNN");
        if plans.tried.len() >= PLANS_MAX {
            // The code of a plan goes with it: nothing of it may still run.
            must(device.synchronize());
            plans.clear();
        }
        let tried = self.make_and_try(device, sizes);
        let tried = tried.unwrap_or_else(|refusal| failed(device, "attention_trial", &refusal));
        if let Err(why) = &tried
            && plans.is_news(sizes, why)
        {
            device.warn(&self.warning(device, sizes, why));
        }
        plans.tried.insert(sizes, tried.clone());
        tried
    }

    /// An error is one that may not come again: what follows from it would not be the same in a run
    /// that is resumed.
    fn make_and_try(&self, device: &Device, sizes: Sizes) -> Result<Tried, Refusal> {
        let plan = match Plan::new(self.backend, &sizes, &Target::Here(self.handle)) {
            Ok(plan) => Arc::new(plan),
            Err(refusal) if refusal.is_for_good() => {
                return Ok(Err(AttentionUnfit::NoPlan(refusal.to_string())));
            }
            Err(refusal) => return unfit(refusal),
        };
        match trial::difference(self, device, sizes, &plan) {
            Ok(None) => Ok(Ok(plan)),
            Ok(Some(why)) => Ok(Err(AttentionUnfit::Different(why))),
            Err(refusal) => unfit(refusal),
        }
    }

    fn warning(&self, device: &Device, sizes: Sizes, why: &AttentionUnfit) -> String {
        let Sizes { n_heads, n_kv_heads, head_dim, n_sequences, longest } = sizes;
        let (label, version) = (device.label(), self.version());
        let heads = format!("{n_heads} heads of {head_dim} over {n_kv_heads}");
        let at = format!("for {n_sequences} sequences of {longest} rows at most");
        let (what, why, hint) = match why {
            AttentionUnfit::NoPlan(why) => {
                ("has no plan", why, "nothing need be done; another version may have one")
            }
            AttentionUnfit::Different(why) => {
                ("differs from our own kernels", why, "install another version of cuDNN")
            }
        };
        format!(
            "{label}: attention of {heads} is not left to cuDNN {version}, which {what} {at}: {why}; \
             our own kernels compute it\n  hint: {hint}"
        )
    }
}

/// Memory that ran out may be there the next time.
fn unfit(refusal: Refusal) -> Result<Tried, Refusal> {
    match refusal.is_of_memory() {
        true => Err(refusal),
        false => Ok(Err(AttentionUnfit::Different(refusal.to_string()))),
    }
}
