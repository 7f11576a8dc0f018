//! `forgelm quantize`: a model in fewer bytes, with signed evidence of what that cost.
//!
//! Read [`quantize`] from top to bottom: it is the order in which things happen. A method is a
//! quantizer plugin; what it makes depends on its name. The block types of GGUF make one `.gguf` file,
//! `nf4` and `fp4` a folder in the layout of bitsandbytes, and any other method, for which there is no
//! layout that others read, a plain folder of the values that are left.

mod convert;
mod folder;
mod gguf;
mod on_device;
mod record;

use crate::derived;
use crate::derived::evidence::Making;
use crate::derived::found::{FoundModel, files_of, hash};
use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::model;
use crate::plugins::{self, Plugins, Used};
use convert::Ended;
use forgelm_artifact::write::{StagedDir, WriteError};
use forgelm_evidence::documents::quantization::QuantizedTensor;
use forgelm_hub::ModelFiles;
use forgelm_model::ADAPTER_CONFIG;
use forgelm_sdk::quantizer::Quantizer;
use forgelm_tensor::{Dtype, FourBit};
use on_device::QuantizedOnDevice;
use record::Quantizing;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

pub use convert::QuantizeError;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct QuantizeRequest {
    /// A folder, a `.gguf` file, a hub id or `pypi:NAME==VERSION`.
    pub model: String,
    /// Pins it.
    pub revision: Option<String>,
    /// No network.
    pub offline: bool,
    /// Name of a quantizer.
    pub method: String,
    /// Its options, each `key=value`.
    pub options: Vec<String>,
    /// The folder that is made.
    pub output: PathBuf,
    /// Worker threads; all cores when `None`.
    pub threads: Option<usize>,
    /// The private key that signs; found as a run finds it when `None`.
    pub signing_key: Option<PathBuf>,
}

/// A quantization that succeeded.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Of this run.
    pub run_id: String,
    /// The folder with the model and its evidence.
    pub output_dir: PathBuf,
    /// What to load: the folder, or the file in it.
    pub model: PathBuf,
    /// What each tensor became.
    pub tensors: Vec<QuantizedTensor>,
    /// Final numbers.
    pub metrics: BTreeMap<String, f64>,
}

/// What a method makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    /// One file, most tensors in this format.
    Gguf(Dtype),
    /// A folder in the layout of bitsandbytes.
    FourBit(FourBit),
    /// A folder of dense values.
    Dense,
}

impl Container {
    fn of(method: &str) -> Self {
        match method {
            "q4_0" => Self::Gguf(Dtype::Q4_0),
            "q4_1" => Self::Gguf(Dtype::Q4_1),
            "q8_0" => Self::Gguf(Dtype::Q8_0),
            "q4_k" => Self::Gguf(Dtype::Q4K),
            "q6_k" => Self::Gguf(Dtype::Q6K),
            "nf4" => Self::FourBit(FourBit::Nf4),
            "fp4" => Self::FourBit(FourBit::Fp4),
            _ => Self::Dense,
        }
    }
}

/// The method, and how it is run.
struct Work<'a> {
    method: &'a str,
    quantizer: &'a dyn Quantizer,
    n_threads: usize,
    is_stopped: &'a dyn Fn() -> bool,
}

/// What was written into the staged folder.
struct Written {
    /// The file to load, where it is not the folder.
    file: Option<String>,
    tensors: Vec<QuantizedTensor>,
}

/// Quantizes a model.
///
/// # Errors
/// Everything in [`RunError`]; the output folder is then as it was.
pub fn quantize(
    request: &QuantizeRequest,
    plugins: &mut Plugins,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Quantized, RunError> {
    let (started_at, start) = (env.clock.utc(), env.clock.monotonic());
    plugins.tell(observer);
    let plugins = &*plugins;
    let plugin = plugins.registry().quantizer(&request.method)?;
    let options = plugins::options("--option", &request.options)?;
    let quantizer = (plugin.build)(&options)?;
    let chosen = plugins.choose()?;
    let device = chosen.ops.on_device();
    let on_device = device.and_then(|device| QuantizedOnDevice::new(quantizer.as_ref(), device));
    chosen.tell(&format!("`{}`", request.method), on_device.is_some(), observer);
    let operator = dossier::operator(env)?;
    check_output(&request.output)?;
    let key = dossier::key_by_default(request.signing_key.clone(), env, observer)?;

    let container = Container::of(&request.method);
    let found = find(request, container, env, observer)?;
    let read = [found.resolved.files.path().to_owned()];
    derived::folder::check_outside(&request.output, &read)?;
    observer.observe(&Event::Notice(format!(
        "quantizing {} by {} into {}: {} parameters",
        request.model,
        request.method,
        request.output.display(),
        found.open.config().n_parameters(),
    )));

    let mut dir = StagedDir::new(&request.output)?;
    let work = Work {
        method: &request.method,
        quantizer: on_device.as_ref().map_or(quantizer.as_ref(), |on| on),
        n_threads: request.threads.unwrap_or_else(model::all_cores),
        is_stopped: &|| env.stop_requested(),
    };
    let written = match container {
        Container::Gguf(dtype) => {
            gguf::write(&found, &request.model, dtype, &work, &mut dir, observer)
        }
        Container::FourBit(kind) => folder::write_four_bit(&found, kind, &work, &mut dir),
        Container::Dense => folder::write_dense(&found, &work, &mut dir, observer),
    };
    plugins.tell_lines(observer);
    let written = written?;
    let files = files_of(&found.resolved.files)?.into_iter().map(|path| (0, path)).collect();
    let files = hash(files, work.n_threads)?;
    found.check_unchanged()?;
    let seconds = (env.clock.monotonic() - start).as_secs_f64();
    let making = Making {
        env,
        key: key.as_ref(),
        stamps: None,
        operator,
        started_at,
        metrics: metrics(&written.tensors, seconds),
        plugin: Used::of(plugin, &options),
    };
    let files = files.into_iter().map(|(_, file)| file).collect();
    let quantizing = Quantizing { request, found: &found, files, making };
    let quantized = quantizing.write(dir.path(), written)?;
    derived::folder::commit(dir)?;
    Ok(quantized)
}

/// Refuses an output that is taken, or named like a file.
fn check_output(output: &Path) -> Result<(), RunError> {
    if output.extension().is_some_and(|extension| extension == "gguf") {
        return Err(RunError::OutputDir {
            dir: output.to_owned(),
            problem: "is the name of a file; expected a folder".to_owned(),
            hint: "name a folder: the evidence lies beside the `.gguf` file",
        });
    }
    derived::folder::check_empty(output)
}

/// Finds and checks the model.
fn find(
    request: &QuantizeRequest,
    container: Container,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<FoundModel, RunError> {
    if Path::new(&request.model).join(ADAPTER_CONFIG).is_file() {
        return Err(RunError::QuantizeInput {
            path: request.model.clone(),
            problem: "is an adapter; expected a whole model".to_owned(),
            hint: "fold it into its base first: a merge of one adapter over its base, with `--merge`",
        });
    }
    let mut options = env.hub_options();
    options.offline = request.offline || env.offline;
    options.revision.clone_from(&request.revision);
    options.token.clone_from(&env.hub_token);
    let mut found = FoundModel::find(&request.model, &options, observer)?;
    found.open.check_tensors()?;
    if let Container::Gguf(_) = container {
        // Such a file has no place for them beside the model's own description.
        found.overrides.apply(found.open.config_mut())?;
    }
    if found.tokenizer.is_none() {
        let text = format!("`{}` has no tokenizer; nor will the result", request.model);
        observer.observe(&Event::Warning(text));
    }
    Ok(found)
}

/// Sums over all tensors.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn metrics(tensors: &[QuantizedTensor], seconds: f64) -> BTreeMap<String, f64> {
    let sum = |of: fn(&QuantizedTensor) -> f64| tensors.iter().map(of).sum::<f64>();
    let power = sum(|t| t.rms * t.rms * t.n_values as f64);
    let lost = sum(|t| t.rms_error * t.rms_error * t.n_values as f64);
    let max = tensors.iter().fold(0.0_f64, |max, t| max.max(t.max_error));
    BTreeMap::from([
        ("quantize_runtime".to_owned(), seconds),
        ("quantize_tensors".to_owned(), tensors.len() as f64),
        ("quantize_parameters".to_owned(), sum(|t| t.n_values as f64)),
        ("quantize_bytes_before".to_owned(), sum(|t| t.bytes_before as f64)),
        ("quantize_bytes_after".to_owned(), sum(|t| t.bytes_after as f64)),
        ("quantize_error_max".to_owned(), max),
        (
            "quantize_error_relative".to_owned(),
            if power > 0.0 { (lost / power).sqrt() } else { 0.0 },
        ),
    ])
}

/// Why a tensor was refused, behind the error that ended the writing of its file.
#[derive(Default)]
struct Refusal(Option<QuantizeError>);

impl Refusal {
    /// As the writer of the file takes it.
    fn keep(&mut self, ended: Ended) -> io::Error {
        match ended {
            Ended::Write(error) => error,
            Ended::Refused(error) => {
                let said = io::Error::other(error.to_string());
                self.0 = Some(error);
                said
            }
        }
    }

    /// The reason why there is no file says more than that there is none.
    fn or(self, written: Result<(), WriteError>) -> Result<(), RunError> {
        match self.0 {
            Some(reason) => Err(reason.into()),
            None => Ok(written?),
        }
    }
}

/// Whether the files of a model are a folder.
fn is_folder(found: &FoundModel) -> bool {
    matches!(found.resolved.files, ModelFiles::Folder(_))
}
