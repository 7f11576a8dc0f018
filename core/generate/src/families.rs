//! Log-probabilities of continuations whose contexts have much in common: what they share is computed
//! once.
//!
//! The choices of one question are a family: they share the question. Families of one task often share
//! a beginning too, as examples: that is the base, computed once for all of them.

use forgelm_model::{
    Activations, Adapter, CachedSequence, Decoder, Engine, Keep, KvCache, MemoryPlan, ModelConfig,
    OutOfMemory, PackedInput, Pass, Scored, Stem, StepSize,
};

use crate::scorer::ScoreError;

/// Rows that go through the model at once, unless one family has more.
const ROWS_TOGETHER: usize = 512;
/// Tokens that a base has at least: below that it saves nothing.
const BASE_MIN: usize = 16;
/// Rows of logits that are in memory at once.
const LOGIT_ROWS: usize = 32;

/// A text, and how much of it is only there to be continued.
#[derive(Clone, Copy, Debug)]
pub struct Continuation<'r> {
    /// Its tokens; at most one more than the model has positions.
    pub tokens: &'r [u32],
    /// Tokens of the context, at least one and fewer than all.
    pub n_context: usize,
}

/// What a model makes of a continuation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// Natural logarithm of its probability after its context.
    pub logp: f64,
    /// Whether each of its tokens is the likeliest. False where it was not asked for.
    pub is_greedy: bool,
}

/// How families are scored.
#[derive(Clone, Copy, Debug, Default)]
pub struct FamilyOptions {
    /// Whether [`Likelihood::is_greedy`] is asked for.
    pub needs_greedy: bool,
    /// Texts in one pass, at most; none: as many as pay.
    pub n_texts_max: Option<usize>,
}

/// A model, an adapter and the memory to score families with them.
///
/// **Invariant:** the numbers of a family do not depend on how many are scored together
/// (`a_family_does_not_depend_on_its_batch`). The base is chosen over all families of a call.
pub struct FamilyScorer<'a> {
    decoder: &'a Decoder,
    adapter: Option<&'a Adapter>,
    acts: Option<Activations>,
}

/// A family as the model sees it, without its base.
struct Tree<'r> {
    /// Which of the families.
    family: usize,
    /// Positions before the stem.
    n_base: usize,
    stem: &'r [u32],
    branches: Vec<&'r [u32]>,
}

impl Tree<'_> {
    fn n_rows(&self) -> usize {
        self.stem.len() + self.branches.iter().map(|branch| branch.len()).sum::<usize>()
    }
}

impl<'a> FamilyScorer<'a> {
    /// Without memory yet.
    #[must_use]
    pub fn new(decoder: &'a Decoder, adapter: Option<&'a Adapter>) -> Self {
        Self { decoder, adapter, acts: None }
    }

    /// The likelihood of each continuation of each family, in their order. `goes_on` is asked before each
    /// pass.
    ///
    /// # Errors
    /// If there is no memory, the model gives no number, or `goes_on` says no.
    ///
    /// # Panics
    /// If a family has no continuation, one has no context or nothing after it, or a token is unknown:
    /// bugs in the caller.
    pub fn score(
        &mut self,
        families: &[Vec<Continuation<'_>>],
        options: FamilyOptions,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<Vec<Likelihood>>, ScoreError> {
        let shared = Shared::of(families);
        let mut found: Vec<Vec<Likelihood>> = vec![Vec::new(); families.len()];
        // Those without the base first: its keys and values are not needed for them.
        for has_base in [false, true] {
            let base = if has_base { shared.base } else { &[] };
            let trees: Vec<Tree<'_>> = (0..families.len())
                .filter(|&family| shared.has_base[family] == has_base)
                .map(|family| tree(families, family, base.len()))
                .collect();
            if trees.is_empty() {
                continue;
            }
            let longest = trees.iter().map(|tree| base.len() + tree.n_rows()).max().unwrap_or(0);
            let mut cache = KvCache::new(self.decoder, longest);
            self.run_base(base, &mut cache, goes_on)?;
            let mut left = trees.as_slice();
            while !left.is_empty() {
                if !goes_on() {
                    return Err(ScoreError::Stopped);
                }
                let (now, rest) = left.split_at(n_together(left, options.n_texts_max));
                left = rest;
                self.pass(now, families, &mut cache, options, &mut found)?;
            }
        }
        for (request, of_family) in found.iter().enumerate() {
            if let Some(at) = of_family.iter().position(|likelihood| !likelihood.logp.is_finite()) {
                let token = families[request][at].n_context as u32;
                return Err(ScoreError::NotFinite { request, token });
            }
        }
        Ok(found)
    }

    /// Keys and values of the base.
    fn run_base(
        &mut self,
        base: &[u32],
        cache: &mut KvCache,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), ScoreError> {
        let mut logits = vec![0.0; self.decoder.dims().v];
        for tokens in base.chunks(ROWS_TOGETHER) {
            if !goes_on() {
                return Err(ScoreError::Stopped);
            }
            let (decoder, adapter) = (self.decoder, self.adapter);
            let acts = self.activations(tokens.len())?;
            let mut sequences = [CachedSequence { tokens, cache: &mut *cache }];
            decoder.forward_cached(adapter, &mut sequences, acts, &mut logits);
        }
        Ok(())
    }

    /// One pass over the weights.
    fn pass(
        &mut self,
        trees: &[Tree<'_>],
        families: &[Vec<Continuation<'_>>],
        cache: &mut KvCache,
        options: FamilyOptions,
        found: &mut [Vec<Likelihood>],
    ) -> Result<(), ScoreError> {
        let (mut rows, mut labels, mut n_scored) = (Vec::new(), Vec::new(), Vec::new());
        let mut first_row = 0;
        for tree in trees {
            let mut branch_row = first_row + tree.stem.len();
            for (continuation, branch) in families[tree.family].iter().zip(&tree.branches) {
                let Continuation { tokens, n_context } = *continuation;
                let n_shared = tree.n_base + tree.stem.len();
                for t in n_context - 1..tokens.len() - 1 {
                    let row = match t < n_shared {
                        true => first_row + t - tree.n_base,
                        false => branch_row + t - n_shared,
                    };
                    rows.push(row as u32);
                    labels.push(tokens[t + 1]);
                }
                n_scored.push((tree.family, tokens.len() - n_context));
                branch_row += branch.len();
            }
            first_row = branch_row;
        }
        let stems: Vec<Stem<'_>> = trees
            .iter()
            .map(|tree| Stem { tokens: tree.stem, branches: tree.branches.clone() })
            .collect();
        let (decoder, adapter) = (self.decoder, self.adapter);
        let acts = self.activations(first_row)?;
        decoder.forward_stems(adapter, cache, &stems, acts);
        let scored = match options.needs_greedy {
            true => with_greedy(decoder, adapter, acts, &rows, &labels),
            false => log_probabilities(decoder, adapter, acts, &rows, &labels),
        };
        let mut scored = scored.into_iter();
        for (family, n) in n_scored {
            let start = Likelihood { logp: 0.0, is_greedy: options.needs_greedy };
            let sum = scored.by_ref().take(n).fold(start, |sum, (logp, is_best)| Likelihood {
                logp: sum.logp + logp,
                is_greedy: sum.is_greedy && is_best,
            });
            found[family].push(sum);
        }
        Ok(())
    }

    /// Every buffer of scoring families of up to so many rows after a base, by name and size.
    #[must_use]
    pub fn memory_plan(
        config: &ModelConfig,
        adapter: Option<&Adapter>,
        n_rows: usize,
        engine: Engine<'_>,
    ) -> MemoryPlan {
        let size = size_for(n_rows);
        let acts = Activations::memory_plan(config, adapter, size, Keep::Nothing, engine);
        let dims = config.dims();
        let mut plan = MemoryPlan::default();
        plan.add("activations of the likelihoods", acts.total_bytes());
        let cache = KvCache::planned_bytes(config, n_rows, engine);
        plan.add("keys and values of the likelihoods", cache);
        plan.add("logits of the likelihoods", LOGIT_ROWS * dims.v * size_of::<f32>());
        plan
    }

    /// Buffers that hold at least so many rows.
    fn activations(&mut self, n_rows: usize) -> Result<&mut Activations, OutOfMemory> {
        let made = self.acts.take().filter(|acts| acts.size().tokens_max >= n_rows);
        let acts = match made {
            Some(acts) => acts,
            None => {
                let size = size_for(n_rows);
                Activations::new(self.decoder, self.adapter, size, Keep::Nothing)?
            }
        };
        Ok(self.acts.insert(acts))
    }
}

fn size_for(n_rows: usize) -> StepSize {
    let n_rows = n_rows.max(ROWS_TOGETHER);
    StepSize { tokens_max: n_rows, scored_rows_max: n_rows }
}

/// Log-probabilities of labels, by the fused op.
fn log_probabilities(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    acts: &mut Activations,
    rows: &[u32],
    labels: &[u32],
) -> Vec<(f64, bool)> {
    let nothing = PackedInput { tokens: &[], positions: &[], segments: &[], row_keys: &[] };
    let pass = Pass { adapter, batch: nothing, dropout: None };
    let n_max = acts.size().scored_rows_max;
    let mut logps = vec![0.0; rows.len()];
    let chunks = rows.chunks(n_max).zip(labels.chunks(n_max)).zip(logps.chunks_mut(n_max));
    for ((rows, labels), logps) in chunks {
        decoder.logprobs(&pass, acts, Scored { rows, labels }, logps);
    }
    logps.into_iter().map(|logp| (f64::from(logp), false)).collect()
}

/// Log-probabilities of labels, and whether each is the likeliest token: by the logits themselves.
fn with_greedy(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    acts: &mut Activations,
    rows: &[u32],
    labels: &[u32],
) -> Vec<(f64, bool)> {
    let v = decoder.dims().v;
    let mut logits = vec![0.0; LOGIT_ROWS * v];
    let mut found = Vec::with_capacity(rows.len());
    for (rows, labels) in rows.chunks(LOGIT_ROWS).zip(labels.chunks(LOGIT_ROWS)) {
        let logits = &mut logits[..rows.len() * v];
        decoder.logits(adapter, acts, rows, &mut *logits);
        for (logits, &label) in logits.chunks_exact(v).zip(labels) {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
            let of_label = logits[label as usize];
            // Of equally likely tokens the first is the likeliest, as in other stacks.
            let best = logits.iter().position(|&logit| logit >= largest);
            let logp = f64::from(of_label) - f64::from(largest) - sum.ln();
            found.push((logp, best == Some(label as usize)));
        }
    }
    found
}

/// What families share.
struct Shared<'r> {
    base: &'r [u32],
    /// Which of them begin with it.
    has_base: Vec<bool>,
}

impl<'r> Shared<'r> {
    /// The beginning that most families share, up to the first row that is scored of any of them.
    fn of(families: &[Vec<Continuation<'r>>]) -> Self {
        // The last token of the context is scored from: it cannot be in the base.
        let beginning = |family: &Vec<Continuation<'r>>| -> &'r [u32] {
            let first = &family[0];
            let n = family.iter().fold(first.n_context - 1, |n, other| {
                let n = n.min(other.n_context - 1);
                n_common(&first.tokens[..n], other.tokens)
            });
            &first.tokens[..n]
        };
        let beginnings: Vec<&'r [u32]> = families.iter().map(beginning).collect();
        let base = shared_beginning(&beginnings);
        let has_base = |of: &&[u32]| !base.is_empty() && of.starts_with(base);
        let has_base = beginnings.iter().map(has_base).collect();
        Self { base, has_base }
    }
}

/// What more than half of some texts begin with, if it is worth a pass of its own; else nothing.
#[must_use]
pub fn shared_beginning<'r>(texts: &[&'r [u32]]) -> &'r [u32] {
    if texts.len() < 2 {
        return &[];
    }
    let mut sorted = texts.to_vec();
    sorted.sort_unstable();
    // If more than half begin alike, the one in the middle is among them.
    let middle = sorted[sorted.len() / 2];
    let common = sorted.iter().map(|of| n_common(of, middle)).filter(|&n| n >= BASE_MIN);
    let (n_texts, n) =
        common.fold((0, middle.len()), |(texts, least), n| (texts + 1, least.min(n)));
    if n_texts * 2 > texts.len() { &middle[..n] } else { &[] }
}

/// A family as stem and branches, after a base of so many tokens.
fn tree<'r>(families: &[Vec<Continuation<'r>>], family: usize, n_base: usize) -> Tree<'r> {
    let continuations = &families[family];
    // The last token is only a label.
    let input = |of: &Continuation<'r>| {
        assert!(0 < of.n_context && of.n_context < of.tokens.len(), "no context, or nothing after");
        &of.tokens[..of.tokens.len() - 1]
    };
    let first = input(&continuations[0]);
    let n_shared = continuations.iter().fold(first.len(), |n, of| n_common(&first[..n], input(of)));
    Tree {
        family,
        n_base,
        stem: &first[n_base..n_shared],
        branches: continuations.iter().map(|of| &input(of)[n_shared..]).collect(),
    }
}

/// Tokens that two texts begin with alike.
fn n_common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The first few families that fit into one pass; at least one.
fn n_together(trees: &[Tree<'_>], n_texts_max: Option<usize>) -> usize {
    let (mut n_rows, mut n_texts) = (0, 0);
    let fits = trees.iter().take_while(|tree| {
        n_rows += tree.n_rows();
        n_texts += tree.branches.len();
        n_rows <= ROWS_TOGETHER && n_texts_max.is_none_or(|max| n_texts <= max)
    });
    fits.count().max(1)
}
