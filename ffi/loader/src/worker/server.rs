//! The worker's side: one library, loaded as in the program, and answers about it.

use super::OpenDevice;
use super::memory::{Memory, Reader, Span};
use super::services::{Link, Mouth, RemoteRecords};
use super::wire::{
    self, Answer, Ask, Batch, Described, KindOf, Loaded, MergeNeeds, Offered, Say, TrainerNeeds,
};
use crate::Loader;
use crate::conformance::{self, on_device};
use crate::error::{LibraryError, Problem};
use crate::host::{HostServices, MakeDevice, MakeKernels};
use crate::sealed::LibraryFile;
use forgelm_kernels_api::Ops;
use forgelm_plugin::{Kind, Offers, Plugin};
use forgelm_sdk::evaluator::{Evaluator, Generate, HeldOut, Score, Services};
use forgelm_sdk::merge_method::{MergeMethod, Piece, Scope, Tensor};
use forgelm_sdk::options::from_json;
use forgelm_sdk::quantizer::Quantizer;
use forgelm_sdk::reward::{Answer as GivenAnswer, Reward};
use forgelm_sdk::trainer::{Role, RoleTotals, Scored, Sequence, StepTotals, Trainer};
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

/// Answers until the program closes its end. Plugins get these kernels, and this device where they
/// are tried on one: a worker has its own. Its input is the socket and its output the shared memory of
/// the program that started it; both are taken away before anything else may use them.
///
/// # Errors
/// If it was not started by a program that talks to workers.
pub fn serve(kernels: Option<Box<MakeKernels>>, device: Option<Arc<OpenDevice>>) -> io::Result<()> {
    // A worker does not outlive its program, and leaves no core file with what it saw.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    let socket = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?);
    let memory = File::from(rustix::io::fcntl_dupfd_cloexec(std::io::stdout(), 3)?);
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    rustix::stdio::dup2_stdout(std::io::stderr())?;
    let memory = Memory::of(memory)?;
    let stop = Memory::of(memory.file().try_clone()?)?;
    let serving = Memory::of(memory.file().try_clone()?)?;
    let mouth = Mouth::new(&socket)?;
    let (log, events, open) = (mouth.clone(), mouth.clone(), device.clone());
    let services = HostServices {
        log: Box::new(move |level, target, message| {
            let (target, message) = (target.to_owned(), message.to_owned());
            // A program that is gone ends the worker elsewhere.
            let _ = log.say(&Say::Log { level: level as u32, target, message });
        }),
        progress: Box::new(move |event| {
            // As above.
            let _ = events.say(&Say::Progress { event: event.to_owned() });
        }),
        stop: Box::new(move || stop.is_stopped()),
        kernels,
        // The program's has addresses that are not those of this process.
        device: open.map(|open| Box::new(move || open().ok()) as Box<MakeDevice>),
        serving: Some(Box::new(move |begins| serving.serving(begins))),
        // the program watches its worker
        hung: None,
    };
    let link = Link::new(mouth.clone(), &socket)?;
    let mut server = Server::new(memory, Loader::new(services), link, device);
    loop {
        let question = match wire::receive::<Ask>(&socket) {
            Ok(question) => question,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let answer = match server.answer(question) {
            Ok(answer) => Say::Answer(answer),
            Err(why) => Say::Failed(why),
        };
        if let Err(error) = mouth.say(&answer) {
            mouth.say(&Say::Failed(format!("its answer cannot be told: {error}")))?;
        }
    }
}

/// The library, and its instances by their numbers.
struct Server {
    memory: Memory,
    loader: Loader,
    offers: Offers,
    trainers: Vec<Option<Box<dyn Trainer>>>,
    merge_methods: Vec<Option<Box<dyn MergeMethod>>>,
    quantizers: Vec<Option<Box<dyn Quantizer>>>,
    rewards: Vec<Option<Box<dyn Reward>>>,
    evaluators: Vec<Option<Box<dyn Evaluator>>>,
    link: Link,
    device: Option<Arc<OpenDevice>>,
}

/// What is told when a question makes no sense: a bug of the program.
fn wrong(what: &str) -> String {
    format!("a worker was asked for {what}")
}

fn instance<T: ?Sized>(instances: &[Option<Box<T>>], number: usize) -> Result<&T, String> {
    let found = instances.get(number).and_then(Option::as_deref);
    found.ok_or_else(|| wrong(&format!("instance {number}, which it has not")))
}

/// Keeps an instance; its number.
fn keep<T: ?Sized>(instances: &mut Vec<Option<Box<T>>>, new: Box<T>) -> usize {
    instances.push(Some(new));
    instances.len() - 1
}

fn end<T: ?Sized>(instances: &mut [Option<Box<T>>], number: usize) {
    if let Some(instance) = instances.get_mut(number) {
        *instance = None;
    }
}

impl Server {
    fn new(memory: Memory, loader: Loader, link: Link, device: Option<Arc<OpenDevice>>) -> Self {
        Self {
            memory,
            loader,
            offers: Offers::default(),
            trainers: Vec::new(),
            merge_methods: Vec::new(),
            quantizers: Vec::new(),
            rewards: Vec::new(),
            evaluators: Vec::new(),
            link,
            device,
        }
    }

    fn answer(&mut self, question: Ask) -> Result<Answer, String> {
        match question {
            Ask::Load { path, sha256 } => self.load(Path::new(OsStr::from_bytes(&path)), &sha256),
            Ask::Create { kind, index, options, weights } => {
                self.create(kind, index, &options, &weights)
            }
            Ask::Destroy { kind, instance } => {
                match kind {
                    KindOf::Trainer => end(&mut self.trainers, instance),
                    KindOf::MergeMethod => end(&mut self.merge_methods, instance),
                    KindOf::Quantizer => end(&mut self.quantizers, instance),
                    KindOf::Reward => end(&mut self.rewards, instance),
                    KindOf::Evaluator => end(&mut self.evaluators, instance),
                }
                Ok(Answer::Done)
            }
            Ask::Loss { instance, batch } => self.loss(instance, &batch),
            Ask::Merge { instance, pass, piece, out } => self.merge(instance, pass, &piece, out),
            Ask::Conclude { instance: number, pass, tensor, sums, facts } => {
                let method = instance(&self.merge_methods, number)?;
                let (read, facts) = written::<f64>(&mut self.memory, facts)?;
                let tensor = tensor_of(read, &tensor);
                let concluded = method.conclude(pass, &tensor, read.slice(sums), facts);
                concluded.map(|()| Answer::Done).map_err(|failed| failed.message)
            }
            Ask::RowBytes { instance: number, n_cols } => {
                let bytes = instance(&self.quantizers, number)?.bytes_per_row(n_cols);
                bytes.map(Answer::Bytes).map_err(|failed| failed.message)
            }
            Ask::Quantize { instance: number, n_cols, rows, bytes } => {
                let quantizer = instance(&self.quantizers, number)?;
                let (read, bytes) = written::<u8>(&mut self.memory, bytes)?;
                let made = quantizer.quantize(read.slice(rows), n_cols, bytes);
                made.map(|()| Answer::Done).map_err(|failed| failed.message)
            }
            Ask::Dequantize { instance: number, n_cols, bytes, rows } => {
                let quantizer = instance(&self.quantizers, number)?;
                let (read, rows) = written::<f32>(&mut self.memory, rows)?;
                let made = quantizer.dequantize(read.slice(bytes), n_cols, rows);
                made.map(|()| Answer::Done).map_err(|failed| failed.message)
            }
            Ask::Judge { instance, answers } => self.judge(instance, &answers),
            Ask::Evaluate { instance, offered } => self.evaluate(instance, offered),
            Ask::OpenDevice => {
                Ok(Answer::Device(self.open_device().map(|ops| ops.name().to_owned())))
            }
            Ask::TryOnDevice { kind, index } => self.try_on_device(kind, index),
            Ask::TryCollective { index } => self.try_collective(index),
        }
    }

    fn open_device(&self) -> Result<Arc<dyn Ops>, String> {
        self.device.as_ref().map_or_else(|| Err(wrong("a device, which it has not")), |open| open())
    }

    fn try_on_device(&self, kind: KindOf, index: usize) -> Result<Answer, String> {
        let ops = self.open_device()?;
        let device = ops.on_device().ok_or_else(|| wrong("a device that is the processor"))?;
        let missing = || wrong("a plugin that its library has not");
        let Offers { merge_methods, quantizers, .. } = &self.offers;
        let tried = match kind {
            KindOf::MergeMethod => {
                on_device::merge_method(merge_methods.get(index).ok_or_else(missing)?, device)
            }
            KindOf::Quantizer => {
                on_device::quantizer(quantizers.get(index).ok_or_else(missing)?, device)
            }
            KindOf::Trainer | KindOf::Reward | KindOf::Evaluator => None,
        };
        Ok(Answer::TriedOnDevice(tried))
    }

    fn load(&mut self, path: &Path, expected: &str) -> Result<Answer, String> {
        let told = |error: LibraryError| error.problem.to_string();
        let file = LibraryFile::read(path).map_err(told)?;
        if file.sha256 != expected {
            let (found, expected) = (file.sha256, expected.to_owned());
            return Err(Problem::Replaced { found, expected }.to_string());
        }
        let library = self.loader.open(&file).map_err(told)?;
        let library = library.ok_or_else(|| wrong("a second library"))?;
        let origin = &library.origin;
        let offers = library.offers;
        let loaded = Loaded {
            library: origin.library.clone(),
            version: origin.version.clone(),
            abi: library.abi,
            notes: library.notes,
            trainers: offers
                .trainers
                .iter()
                .map(|plugin| {
                    let needs = TrainerNeeds {
                        records: plugin.needs.records as u32,
                        reference: plugin.needs.reference,
                        rollouts: plugin.needs.rollouts,
                        prompts: plugin.needs.prompts,
                        dropout: plugin.needs.dropout,
                    };
                    (described(plugin), needs)
                })
                .collect(),
            merge_methods: offers
                .merge_methods
                .iter()
                .map(|plugin| {
                    let needs = MergeNeeds {
                        is_whole_tensor: plugin.needs.scope == Scope::Tensor,
                        n_inputs_min: plugin.needs.n_inputs_min,
                        n_inputs_max: plugin.needs.n_inputs_max,
                    };
                    (described(plugin), needs)
                })
                .collect(),
            quantizers: offers.quantizers.iter().map(described).collect(),
            evaluators: offers.evaluators.iter().map(described).collect(),
            rewards: offers.rewards.iter().map(described).collect(),
            collectives: offers.collectives.iter().map(described).collect(),
        };
        self.offers = offers;
        Ok(Answer::Loaded(Box::new(loaded)))
    }

    fn create(
        &mut self,
        kind: KindOf,
        index: usize,
        options: &str,
        weights: &[u64],
    ) -> Result<Answer, String> {
        let options = from_json(options).map_err(|error| error.to_string())?;
        let options: Vec<_> = options.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
        let weights: Vec<f64> = weights.iter().map(|&bits| f64::from_bits(bits)).collect();
        let missing = || wrong("a plugin that its library has not");
        let (mut reads_base, mut passes) = (false, Vec::new());
        let instance = match kind {
            KindOf::Trainer => {
                let plugin = self.offers.trainers.get(index).ok_or_else(missing)?;
                (plugin.build)(&options).map(|new| keep(&mut self.trainers, new))
            }
            KindOf::MergeMethod => {
                let plugin = self.offers.merge_methods.get(index).ok_or_else(missing)?;
                (plugin.build)(&options, &weights).map(|new| {
                    reads_base = new.reads_base();
                    passes = new.passes().iter().map(|pass| (pass.n_sums, pass.n_facts)).collect();
                    keep(&mut self.merge_methods, new)
                })
            }
            KindOf::Quantizer => {
                let plugin = self.offers.quantizers.get(index).ok_or_else(missing)?;
                (plugin.build)(&options).map(|new| keep(&mut self.quantizers, new))
            }
            KindOf::Reward => {
                let plugin = self.offers.rewards.get(index).ok_or_else(missing)?;
                (plugin.build)(&options).map(|new| keep(&mut self.rewards, new))
            }
            KindOf::Evaluator => {
                let plugin = self.offers.evaluators.get(index).ok_or_else(missing)?;
                (plugin.build)(&options).map(|new| keep(&mut self.evaluators, new))
            }
        };
        let instance = instance.map_err(|error| error.to_string())?;
        Ok(Answer::Created { instance, reads_base, passes })
    }

    fn loss(&mut self, number: usize, batch: &Batch) -> Result<Answer, String> {
        let trainer = instance(&self.trainers, number)?;
        let (read, dlogp) = written::<f32>(&mut self.memory, batch.dlogp)?;
        let sequences = sequences(read.slice(batch.sequences))?;
        let mut step = StepTotals::default();
        for (role, of) in step.0.iter_mut().zip(read.slice::<u64>(batch.totals).chunks_exact(3)) {
            *role = RoleTotals { n_sequences: of[0], n_scored: of[1], n_trained: of[2] };
        }
        let scored = Scored {
            sequences: &sequences,
            labels: read.slice(batch.labels),
            trained: read.slice(batch.trained),
            logp: read.slice(batch.logp),
            ref_logp: batch.ref_logp.map(|span| read.slice(span)),
            advantage: batch.advantage.map(|span| read.slice(span)),
            old_logp: batch.old_logp.map(|span| read.slice(span)),
            step: &step,
        };
        let loss = trainer.loss(&scored, dlogp).map_err(|failed| failed.message)?;
        let metric = |metric: &forgelm_sdk::trainer::Metric| {
            (metric.name.to_owned(), metric.sum.to_bits(), metric.n_terms)
        };
        Ok(Answer::Loss {
            loss_sum: loss.loss_sum.to_bits(),
            n_terms: loss.n_terms,
            metrics: loss.metrics.iter().map(metric).collect(),
        })
    }

    fn judge(&mut self, number: usize, answers: &[[Span; 3]]) -> Result<Answer, String> {
        for span in answers.iter().flatten() {
            self.memory.follow(span, 1).map_err(|error| wrong(&error.to_string()))?;
        }
        let text = |span: Span| {
            let bytes = self.memory.slice::<u8>(span);
            std::str::from_utf8(bytes).map_err(|error| wrong(&error.to_string()))
        };
        let answers = answers.iter().map(|&[prompt, completion, record]| {
            let (prompt, completion) = (text(prompt)?, text(completion)?);
            Ok(GivenAnswer { prompt, completion, record: text(record)? })
        });
        let answers = answers.collect::<Result<Vec<_>, String>>()?;
        let given = instance(&self.rewards, number)?.judge(&answers);
        let bits = |value: Option<f64>| value.map(f64::to_bits);
        given
            .map(|given| Answer::Rewards(given.into_iter().map(bits).collect()))
            .map_err(|failed| failed.message)
    }

    fn evaluate(&self, number: usize, offered: Offered) -> Result<Answer, String> {
        let records =
            offered.held_out.map(|n_records| RemoteRecords { link: &self.link, n_records });
        let model = Services {
            score: offered.score.then_some(&self.link as &dyn Score),
            generate: offered.generate.then_some(&self.link as &dyn Generate),
            held_out: records.as_ref().map(|records| records as &dyn HeldOut),
        };
        let report = instance(&self.evaluators, number)?.evaluate(&model);
        report.map(Answer::Report).map_err(|failed| failed.message)
    }

    fn try_collective(&self, index: usize) -> Result<Answer, String> {
        let plugin = self.offers.collectives.get(index);
        let plugin = plugin.ok_or_else(|| wrong("a collective that its library has not"))?;
        let mut found = Vec::new();
        conformance::collective::alone(plugin, &mut found);
        let told = found.into_iter().map(|finding| (finding.property.to_owned(), finding.outcome));
        Ok(Answer::Tried(told.collect()))
    }

    fn merge(
        &mut self,
        number: usize,
        pass: Option<usize>,
        piece: &wire::Piece,
        out: Span,
    ) -> Result<Answer, String> {
        let method = instance(&self.merge_methods, number)?;
        let done = match pass {
            Some(pass) => {
                let (read, sums) = written::<f64>(&mut self.memory, out)?;
                with_piece(read, piece, |piece| method.measure(pass, piece, sums))
            }
            None => {
                let (read, out) = written::<f32>(&mut self.memory, out)?;
                with_piece(read, piece, |piece| method.merge(piece, out))
            }
        };
        done.map(|()| Answer::Done).map_err(|failed| failed.message)
    }
}

fn described<K: Kind>(plugin: &Plugin<K>) -> Described {
    Described {
        name: plugin.name.to_owned(),
        summary: plugin.summary.to_owned(),
        source: plugin.source.to_owned(),
    }
}

/// The array that a call writes, and what lies before it.
fn written<T: super::memory::Plain>(
    memory: &mut Memory,
    out: Span,
) -> Result<(Reader<'_>, &mut [T]), String> {
    memory.follow(&out, size_of::<T>()).map_err(|error| wrong(&error.to_string()))?;
    Ok(memory.split(out))
}

fn sequences(words: &[u64]) -> Result<Vec<Sequence>, String> {
    const ROLES: [Role; Role::COUNT] =
        [Role::Sole, Role::Chosen, Role::Rejected, Role::Kl, Role::Rollout];
    let size = |word: u64| usize::try_from(word).map_err(|_| wrong("more rows than there are"));
    words
        .chunks_exact(4)
        .map(|word| {
            let role = size(word[0])?;
            let role = *ROLES.get(role).ok_or_else(|| wrong("a role that it does not know"))?;
            Ok(Sequence { role, record: word[1], start: size(word[2])?, len: size(word[3])? })
        })
        .collect()
}

fn tensor_of<'a>(read: Reader<'a>, tensor: &'a wire::Tensor) -> Tensor<'a> {
    Tensor { name: &tensor.name, len: tensor.len, facts: read.slice(tensor.facts) }
}

fn with_piece<R>(read: Reader<'_>, piece: &wire::Piece, body: impl FnOnce(&Piece<'_>) -> R) -> R {
    let inputs: Vec<&[f32]> = piece.inputs.iter().map(|&span| read.slice(span)).collect();
    body(&Piece {
        tensor: tensor_of(read, &piece.tensor),
        start: piece.start,
        base: piece.base.map(|span| read.slice(span)),
        inputs: &inputs,
    })
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test prepares a file")]
mod tests {
    use super::*;

    /// Not even as far as to see that it is no library.
    #[test]
    fn a_library_that_was_replaced_since_it_was_checked_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.so");
        std::fs::write(&path, "another").unwrap();
        let loader = Loader::new(HostServices::silent());
        let (socket, _program) = UnixStream::pair().unwrap();
        let link = Link::new(Mouth::new(&socket).unwrap(), &socket).unwrap();
        let mut server = Server::new(Memory::create().unwrap(), loader, link, None);
        let refused = server.load(&path, &"0".repeat(64)).unwrap_err();
        assert!(
            refused.starts_with("was replaced while it was being loaded: SHA-256 "),
            "{refused}"
        );
        let file = LibraryFile::read(&path).unwrap();
        let refused = server.load(&path, file.sha256()).unwrap_err();
        assert!(refused.starts_with("is not a shared library"), "{refused}");
    }
}
