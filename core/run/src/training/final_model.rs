//! The tuned model's folder: an adapter, or a whole model with what it cost to fold the adapter
//! in.

use super::job::Job;
use crate::error::RunError;
use crate::event::Event;
use crate::overrides;
use forgelm_artifact::write::StagedDir;
use forgelm_data::{Sequence, pack};
use forgelm_model::{
    Activations, Decoder, Keep, ModelFiles, OpenModel, OutOfMemory, PackedInput, Pass, StepSize,
    Trainable,
};
use forgelm_train::session::Session;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Scored rows that a saved model is compared over, at most.
const ROWS_COMPARED: usize = 1024;
/// Rows whose logits are held together.
const ROWS_TOGETHER: usize = 64;

impl Job<'_> {
    /// Saves what was trained and returns how far a whole model is from what was trained, as
    /// metrics.
    ///
    /// A whole model that cannot be written leaves an adapter in its place, with a warning, where
    /// there is an adapter.
    pub(super) fn save_final_model(
        &mut self,
        session: &Session<'_>,
    ) -> Result<BTreeMap<String, f64>, RunError> {
        let run = &self.plan.run;
        let has_adapter = session.adapter().lora().is_some();
        if !run.training.merge_adapters && has_adapter {
            self.save_adapter(session)?;
            return Ok(BTreeMap::new());
        }
        match session.whole_adapter().map_err(RunError::from).and_then(|of| self.save_whole(&of)) {
            Ok(()) => self.compare_saved(session.adapter()),
            Err(error) if has_adapter => {
                let text =
                    format!("the adapter is saved unmerged: merging failed: {}", error.chain());
                self.observer.observe(&Event::Warning(text));
                self.save_adapter(session)?;
                Ok(BTreeMap::new())
            }
            Err(error) => Err(error),
        }
    }

    fn save_adapter(&self, session: &Session<'_>) -> Result<(), RunError> {
        let mut dir = StagedDir::new(&self.model_dir)?;
        let config = self.loaded.decoder.config();
        let adapter = session.adapter().on_original_weights(config)?;
        for (name, bytes) in adapter.to_files(&self.peft) {
            dir.write(name, &bytes)?;
        }
        self.finish_folder(dir)
    }

    fn save_whole(&self, trained: &Trainable) -> Result<(), RunError> {
        let mut dir = StagedDir::new(&self.model_dir)?;
        self.found.open.write_whole(&self.loaded.decoder, trained, &mut dir)?;
        self.finish_folder(dir)
    }

    fn finish_folder(&self, mut dir: StagedDir) -> Result<(), RunError> {
        for (name, text) in self.found.tokenizer.files()? {
            // `generation_config.json` of a whole model is already the base's own.
            if !dir.path().join(&name).exists() {
                dir.write(&name, text.as_bytes())?;
            }
        }
        let overrides = &self.found.overrides;
        if !overrides.is_empty() {
            dir.write(overrides::FILE, overrides.to_json().as_bytes())?;
        }
        dir.commit_replacing()?;
        Ok(())
    }

    /// Reads the folder again and compares its logits with those of what was trained, over the
    /// validation rows, or the first of the training rows when there are none.
    fn compare_saved(&mut self, trained: &Trainable) -> Result<BTreeMap<String, f64>, RunError> {
        let files = ModelFiles::Folder(self.model_dir.clone());
        let mut open = OpenModel::open(&files)?;
        self.found.overrides.apply(open.config_mut())?;
        let decoder = &self.loaded.decoder;
        let saved = open.load(decoder.ops().clone(), decoder.compute())?;
        let validation = &self.data.prepared.validation;
        let rows = if validation.is_empty() { &self.data.prepared.train } else { validation };
        let units: Vec<usize> = (0..rows.len().min(COMPARED_MAX)).collect();
        let rows = rows.read(&units)?;
        let difference = Difference::between((decoder, trained), &saved, &rows)?;
        self.observer.observe(&Event::Notice(difference.to_string()));
        Ok(difference.metrics())
    }
}

/// Records over which a saved model is compared with what was trained.
const COMPARED_MAX: usize = 4096;

/// How far the logits of a saved model are from those of what was trained.
#[derive(Clone, Copy, Debug, Default)]
struct Difference {
    n_rows: usize,
    largest: f64,
    /// Sum over rows of the mean over the vocabulary.
    sum: f64,
    /// Sum over rows of the KL divergence of the saved from the trained distribution.
    kl_sum: f64,
}

impl Difference {
    fn between(
        (decoder, trained): (&Decoder, &Trainable),
        saved: &Decoder,
        sequences: &[Sequence],
    ) -> Result<Self, OutOfMemory> {
        let tokens_max = sequences.iter().map(|s| s.tokens.len()).max().unwrap_or(1);
        let size = StepSize { tokens_max, scored_rows_max: ROWS_TOGETHER };
        let mut acts = [
            Activations::new(decoder, Some(trained), size, Keep::Nothing)?,
            Activations::new(saved, None, size, Keep::Nothing)?,
        ];
        let v = decoder.dims().v;
        let mut logits = [vec![0.0; ROWS_TOGETHER * v], vec![0.0; ROWS_TOGETHER * v]];
        let mut difference = Self::default();
        for sequence in sequences {
            let batch = pack(&[sequence]);
            let input = PackedInput {
                tokens: &batch.tokens,
                positions: &batch.positions,
                segments: &batch.segments,
                row_keys: &batch.row_keys,
            };
            let [before, after] = &mut acts;
            decoder.forward(&Pass { adapter: Some(trained), batch: input, dropout: None }, before);
            saved.forward(&Pass { adapter: None, batch: input, dropout: None }, after);
            // A prompt alone has no trained tokens.
            let every = || (0..u32::try_from(sequence.tokens.len()).unwrap_or(0)).collect();
            let rows: Cow<'_, [u32]> = match batch.scored_rows.as_slice() {
                [] => Cow::Owned(every()),
                scored => Cow::Borrowed(scored),
            };
            for rows in rows.chunks(ROWS_TOGETHER) {
                let [x, y] = logits.each_mut().map(|l| &mut l[..rows.len() * v]);
                decoder.logits(Some(trained), before, rows, &mut *x);
                saved.logits(None, after, rows, &mut *y);
                x.chunks_exact(v).zip(y.chunks_exact(v)).for_each(|(x, y)| difference.row(x, y));
            }
            if difference.n_rows >= ROWS_COMPARED {
                break;
            }
        }
        Ok(difference)
    }

    /// One row of logits. Shapes: [V].
    #[expect(clippy::cast_precision_loss, reason = "sizes stay far below 2^53")]
    fn row(&mut self, trained: &[f32], saved: &[f32]) {
        let (p, q) = (log_sum(trained), log_sum(saved));
        let (mut sum, mut kl) = (0.0, 0.0);
        for (&x, &y) in trained.iter().zip(saved) {
            let (x, y) = (f64::from(x), f64::from(y));
            let distance = (x - y).abs();
            self.largest = self.largest.max(distance);
            sum += distance;
            kl += (x - p).exp() * ((x - p) - (y - q));
        }
        self.n_rows += 1;
        self.sum += sum / trained.len() as f64;
        self.kl_sum += kl.max(0.0);
    }

    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    fn means(&self) -> [f64; 2] {
        let n = self.n_rows.max(1) as f64;
        [self.sum / n, self.kl_sum / n]
    }

    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    fn metrics(&self) -> BTreeMap<String, f64> {
        let [mean, kl] = self.means();
        BTreeMap::from([
            ("merge_rows_compared".to_owned(), self.n_rows as f64),
            ("merge_logit_difference_max".to_owned(), self.largest),
            ("merge_logit_difference_mean".to_owned(), mean),
            ("merge_kl_mean".to_owned(), kl),
        ])
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [mean, kl] = self.means();
        write!(
            f,
            "the saved model was read again: over {} rows its logits differ from the trained ones \
             by at most {:.2e} and {mean:.2e} on average; KL divergence {kl:.2e}",
            self.n_rows, self.largest
        )
    }
}

/// Log of the sum of the exponentials.
fn log_sum(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln()
}
