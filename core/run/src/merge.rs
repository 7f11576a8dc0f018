//! `--merge`: several adapters or models into one, with signed evidence of what went in.
//!
//! Read [`merge`] from top to bottom: it is the order in which things happen. Everything that can be
//! refused is refused before a file is written, and the result appears whole or not at all.

mod inputs;
mod record;
mod same;

use crate::derived::evidence::Making;
use crate::derived::folder;
use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::model;
use crate::outbound::{self, TimeStamps};
use crate::plan::Plan;
use crate::plugins::{Named, Plugins, Used};
use forgelm_artifact::sharded::SHARD_BYTES_MAX;
use forgelm_artifact::write::StagedDir;
use forgelm_config::{Merge, MergeMethod as Name};
use forgelm_evidence::documents::record::FileRecord;
use forgelm_evidence::timestamp::attach::Unstamped;
use forgelm_kernels_api::RowSource;
use forgelm_merge::{MergeError, MergedOnDevice, Settings, Source, write_merged};
use forgelm_model::WholeTensor;
use forgelm_plugin::{MergeMethods, Plugin};
use forgelm_sdk::OptionValue;
use forgelm_sdk::merge_method::MergeMethod;
use inputs::{Inputs, Kind};
use record::Merging;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A merge that succeeded.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// Of this run.
    pub run_id: String,
    /// SHA-256 of the resolved config.
    pub config_hash: String,
    /// Models that went in.
    pub n_models: usize,
    /// The merged model and its evidence.
    pub output_dir: PathBuf,
    /// Final numbers.
    pub metrics: BTreeMap<String, f64>,
    /// Signatures that got no time stamp.
    pub unstamped: Vec<Unstamped>,
}

/// Runs the `merge` section of a plan.
///
/// # Errors
/// Everything in [`RunError`]; `merge.output_dir` is then as it was.
pub fn merge(
    plan: &Plan,
    offline: bool,
    plugins: &mut Plugins,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Merged, RunError> {
    let (started_at, start) = (env.clock.utc(), env.clock.monotonic());
    for warning in &plan.warnings {
        observer.observe(&Event::Warning(warning.to_string()));
    }
    let section = plan.run.merge.as_ref().filter(|merge| merge.enabled);
    let section = section.ok_or(RunError::NothingToMerge)?;
    plugins.tell(observer);
    let plugins = &*plugins;
    let named = Named::merge_method(&plan.run);
    let name = named.name().unwrap_or(section.method.as_str());
    let plugin = plugins.registry().merge_method(name)?;
    let options = named.options_or(|| options(section))?;
    let weights = weights(plugin, section)?;
    let method = named.made(plugin, (plugin.build)(&options, &weights))?;
    let chosen = plugins.choose()?;
    let device = chosen.ops.on_device();
    let on_device = device.and_then(|device| MergedOnDevice::new(method.as_ref(), device));
    chosen.tell(&format!("`{name}`"), on_device.is_some(), observer);
    let operator = dossier::operator(env)?;
    let output_dir = PathBuf::from(&section.output_dir);
    folder::check_empty(&output_dir)?;
    let stamps = TimeStamps::open(&plan.run, offline, env, observer)?;
    let key = dossier::signing_key(plan, env, observer)?;

    let inputs = Inputs::find(plan, section, offline, env, observer)?;
    folder::check_outside(&output_dir, &inputs.paths())?;
    inputs.check(observer)?;
    let tensors = Tensors::of(&inputs)?;
    tensors.note_formats(&inputs, observer);
    folder::check_room(&output_dir, tensors.n_bytes())?;
    observer.observe(&Event::Notice(format!(
        "merging {} models by {name} into {}: {} tensors, {} parameters",
        section.models.len(),
        output_dir.display(),
        tensors.base.len(),
        inputs.base.open.config().n_parameters(),
    )));

    let mut dir = StagedDir::new(&output_dir)?;
    for (name, bytes) in inputs.companions()? {
        dir.write(&name, &bytes)?;
    }
    let settings = Settings {
        scope: plugin.needs.scope,
        n_threads: plan.run.training.threads.unwrap_or_else(model::all_cores),
        shard_bytes_max: SHARD_BYTES_MAX,
        is_stopped: &|| env.stop_requested(),
    };
    let method: &dyn MergeMethod = on_device.as_ref().map_or(method.as_ref(), |on| on);
    let written = tensors.write(&inputs, method, settings, &mut dir);
    plugins.tell_lines(observer);
    let files = written?;
    let seconds = (env.clock.monotonic() - start).as_secs_f64();
    let making = Making {
        env,
        key: key.as_ref(),
        stamps: stamps.as_ref(),
        operator,
        started_at,
        metrics: tensors.metrics(seconds),
        plugin: Used::of(plugin, &options),
    };
    let merging = Merging { plan, section, inputs: &inputs, files: &files, making };
    let merged = merging.write(dir.path(), &output_dir)?;
    folder::commit(dir)?;
    outbound::tell_unstamped(&merged.unstamped, observer);
    Ok(merged)
}

/// The options of the method of ours that a section asks for.
fn options(section: &Merge) -> Vec<(&'static str, OptionValue)> {
    let text = |word: &str| OptionValue::Text(word.to_owned());
    match section.method {
        Name::Linear => vec![],
        Name::Slerp => vec![("over", text(section.slerp_over.as_str()))],
        Name::Ties => vec![
            ("trim_fraction", OptionValue::Number(section.ties_trim_fraction)),
            ("variant", text(section.ties_variant.as_str())),
        ],
        #[expect(clippy::cast_precision_loss, reason = "the config keeps it below 2^53")]
        Name::Dare => vec![
            ("drop_rate", OptionValue::Number(section.dare_drop_rate)),
            ("seed", OptionValue::Number(section.dare_seed as f64)),
        ],
    }
}

/// The weights of the models, as many as the method takes.
fn weights(plugin: &Plugin<MergeMethods>, section: &Merge) -> Result<Vec<f64>, RunError> {
    let weights: Vec<f64> = section.models.iter().map(|model| model.weight).collect();
    let needs = plugin.needs;
    if !(needs.n_inputs_min..=needs.n_inputs_max).contains(&weights.len()) {
        return Err(RunError::NumberOfModels {
            method: plugin.name.to_owned(),
            found: weights.len(),
            min: needs.n_inputs_min,
            max: needs.n_inputs_max,
        });
    }
    Ok(weights)
}

/// The tensors of the base and of every input, in the same order.
struct Tensors<'a> {
    base: Vec<WholeTensor<'a>>,
    inputs: Vec<Vec<WholeTensor<'a>>>,
}

/// A tensor of a model's files, for the engine.
struct FileRows<'a>(&'a WholeTensor<'a>);

impl RowSource for FileRows<'_> {
    fn n_rows(&self) -> usize {
        self.0.n_rows()
    }

    fn n_cols(&self) -> usize {
        self.0.n_cols()
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        self.0.read_rows(first_row, out);
    }
}

impl Source for FileRows<'_> {
    fn release(&self) {
        self.0.release();
    }
}

impl<'a> Tensors<'a> {
    fn of(inputs: &'a Inputs) -> Result<Self, RunError> {
        let whole = |input: &'a inputs::Input| match &input.kind {
            Kind::Model(model) => model.open.whole_tensors(None),
            Kind::Adapter(loaded) => inputs.base.open.whole_tensors(Some(&loaded.adapter)),
        };
        let load = forgelm_model::LoadError::from;
        Ok(Self {
            base: inputs.base.open.whole_tensors(None).map_err(load)?,
            inputs: inputs.list.iter().map(whole).collect::<Result<_, _>>().map_err(load)?,
        })
    }

    fn n_bytes(&self) -> u64 {
        let bytes = |t: &WholeTensor<'_>| t.n_rows() * t.n_cols() * t.dtype().block_bytes();
        self.base.iter().map(|t| bytes(t) as u64).sum()
    }

    /// The result has the base's number formats: who stores others should know.
    fn note_formats(&self, inputs: &Inputs, observer: &mut dyn Observer) {
        for (input, tensors) in inputs.list.iter().zip(&self.inputs) {
            let mut pairs = self.base.iter().zip(tensors);
            if let Some((base, other)) = pairs.find(|(base, other)| base.dtype() != other.dtype()) {
                let text = format!(
                    "`{}` stores `{}` as {}, the base as {}; the result is stored as the base is",
                    input.path,
                    other.name(),
                    other.dtype(),
                    base.dtype()
                );
                observer.observe(&Event::Warning(text));
            }
        }
    }

    /// Merges and writes all, and meanwhile hashes what is read.
    fn write(
        &self,
        inputs: &Inputs,
        method: &dyn MergeMethod,
        settings: Settings<'_>,
        dir: &mut StagedDir,
    ) -> Result<Vec<Vec<FileRecord>>, RunError> {
        let base: Vec<FileRows<'_>> = self.base.iter().map(FileRows).collect();
        let others: Vec<Vec<FileRows<'_>>> =
            self.inputs.iter().map(|tensors| tensors.iter().map(FileRows).collect()).collect();
        let is_adapter = |i: usize| matches!(inputs.list[i].kind, Kind::Adapter(_));
        let tensor = |t: usize| forgelm_merge::Tensor {
            name: self.base[t].name(),
            dtype: self.base[t].dtype(),
            shape: self.base[t].shape(),
            base: &base[t],
            inputs: (0..others.len())
                .map(|i| {
                    let is_base = is_adapter(i) && !self.inputs[i][t].is_changed();
                    (!is_base).then_some(&others[i][t] as &dyn Source)
                })
                .collect(),
        };
        let tensors = (0..base.len()).map(tensor).collect();
        let (merged, files) = std::thread::scope(|scope| {
            let hashing = scope.spawn(|| inputs.hash(settings.n_threads));
            let merged = write_merged(dir, tensors, method, settings);
            let files = hashing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (merged, files)
        });
        if !matches!(merged, Err(MergeError::Stopped | MergeError::Write(_))) {
            // An input that is no number says more than a result that is none.
            let all = std::iter::once(&self.base).chain(&self.inputs).flatten();
            for tensor in all {
                tensor.check_finite().map_err(forgelm_model::LoadError::from)?;
            }
        }
        merged?;
        inputs.check_unchanged()?;
        files
    }

    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    fn metrics(&self, seconds: f64) -> BTreeMap<String, f64> {
        let n_parameters: usize = self.base.iter().map(|t| t.n_rows() * t.n_cols()).sum();
        BTreeMap::from([
            ("merge_runtime".to_owned(), seconds),
            ("merge_tensors".to_owned(), self.base.len() as f64),
            ("merge_parameters".to_owned(), n_parameters as f64),
            ("merge_bytes".to_owned(), self.n_bytes() as f64),
        ])
    }
}
