//! Data sets to the sequences of a run: tokenized once, kept in a cache, mixed and split.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forgelm_artifact::hash::{Sha256Hex, sha256_bytes, sha256_file};
use forgelm_artifact::write;
use forgelm_config::{Data, TrainerType};
use forgelm_sdk::trainer::Role;
use serde_json::{Value, json};

use crate::cached::{TOKENS_DIR, TOKENS_SUFFIX};
use crate::dataset::{Batch, DataFile, Gathered, RecordReader, RowStream, fingerprint, share};
use crate::description::Description;
use crate::find::SourceFiles;
use crate::mix::{self, Mixed};
use crate::parallel;
use crate::problem::{Code, DataError, DataProblem, Problems};
use crate::record::Rules;
use crate::render::{ALL_MASKED_MAX, RenderedRecord, Renderer, TokenStatistics};
use crate::sequences::{Sequences, Stored};
use crate::source::RawRow;
use crate::split::split;
use crate::store::{Origin, StoreError, StoreWriter, TokenStore};

/// Part of the key of every cached file: another number when the same settings give other tokens.
const CACHE_VERSION: u32 = 1;

/// What to prepare.
#[derive(Debug, Clone, Copy)]
pub struct PrepareRequest<'a> {
    /// The `data:` section.
    pub section: &'a Data,
    /// `training.trainer_type`.
    pub trainer: TrainerType,
    /// The files of `dataset_name_or_path` and of each of `extra_datasets`, in this order.
    pub sources: &'a [SourceFiles],
    /// Where token files are kept; any of them may be removed at any time between runs.
    pub cache_dir: &'a Path,
}

/// The data of a run.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// To train on.
    pub train: Sequences,
    /// Held out; may be empty.
    pub validation: Sequences,
    /// Of each of the two. What depends on tokens that were cut away (`longest`, `truncated`,
    /// `special_texts`) is counted over whole data sets, and stands with the training data unless validation
    /// has files of its own.
    pub statistics: [TokenStatistics; 2],
    /// The files of each data set, in the order of the request; those of validation are with the first.
    pub files: Vec<Vec<DataFile>>,
    /// What each data set contributes.
    pub mixture: Vec<Mixed>,
    /// How rows became text: `chat template of the model`, `tags` or `plain text`.
    pub rendering: String,
    /// Which columns were read, of the first data set.
    pub layout: String,
    /// Rows that were left out.
    pub skipped: Problems,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Prepared {
    /// See [`fingerprint`]: of the files of all data sets.
    #[must_use]
    pub fn fingerprint(&self) -> Sha256Hex {
        fingerprint(&self.files.concat())
    }
}

/// Prepares the data of a run.
///
/// Each data set is tokenized into a file of the cache, whose name is a digest of the data's bytes, the
/// tokenizer, the template and every setting that decides a token; a later run with the same finds it, checks
/// its digest, and makes it anew if it is damaged. Memory is bounded: a batch of rows while tokenizing, and
/// about 20 bytes a row afterwards.
///
/// # Errors
/// All problems of the rows at once, up to a number that is shown; or that the disk failed.
pub fn prepare(
    request: &PrepareRequest<'_>,
    renderer: &Renderer<'_>,
) -> Result<Prepared, DataError> {
    let names: Vec<&str> = request.sources.iter().map(|source| source.name.as_str()).collect();
    let weights = request.section.mix_ratio.as_deref();
    if let Some(weights) = weights {
        mix::check_weights(&names, weights)?;
    }
    let mut notes = Vec::new();
    let mut sets = Vec::new();
    for source in request.sources {
        sets.push(TokenizedSet::open(&source.train, request, renderer, &mut notes)?);
    }
    let held_out = held_out_files(request, &mut notes);
    let n_train_sets = sets.len();
    if !held_out.is_empty() {
        sets.push(TokenizedSet::open(held_out, request, renderer, &mut notes)?);
    }
    let all = Sets::new(sets, n_train_sets)?;
    let lengths = all.lengths();
    let targets = mix::targets(&names, &lengths, weights)?;
    let mut rows = Vec::new();
    for (i, (&length, &n)) in lengths.iter().zip(&targets).enumerate() {
        let first = all.stored[i].first;
        rows.extend(mix::chosen(i as u64, length, n).into_iter().map(|row| first + row));
    }
    let (train, validation) = match all.held_out() {
        Some(rows_held_out) => (rows, rows_held_out),
        // Rewards are no loss to compare: nothing is held out.
        None if request.trainer == TrainerType::Grpo => (rows, Vec::new()),
        None => {
            let split = split(rows.len(), request.section.validation_split);
            let pick = |numbers: Vec<usize>| numbers.into_iter().map(|i| rows[i]).collect();
            (pick(split.train), pick(split.validation))
        }
    };
    let mixture = mixture(request, &lengths, &targets, &mut notes);
    notes.extend(all.check_classes(request)?);
    let (train, train_statistics) = all.select(train, request.trainer);
    let (validation, validation_statistics) = all.select(validation, request.trainer);
    let statistics = all.whole_statistics([train_statistics, validation_statistics]);
    let first = &all.sets[0].description;
    Ok(Prepared {
        train,
        validation,
        statistics,
        mixture,
        rendering: first.rendering.clone(),
        layout: first.layout.clone(),
        skipped: all.skipped(),
        files: all.files(),
        notes,
    })
}

/// The files of the split that validates, if the first data set has one.
fn held_out_files<'a>(request: &PrepareRequest<'a>, notes: &mut Vec<String>) -> &'a [PathBuf] {
    let Some(first) = request.sources.first() else { return &[] };
    for source in request.sources {
        if !source.left_out.is_empty() {
            let n = source.left_out.len();
            notes.push(format!(
                "{}: {n} files are named after no split and were left out",
                source.name
            ));
        }
    }
    for extra in &request.sources[1..] {
        if !extra.validation.is_empty() || !extra.test.is_empty() {
            notes.push(format!("{}: only its training split is mixed in", extra.name));
        }
    }
    if !first.validation.is_empty() {
        return &first.validation;
    }
    if first.test.is_empty() {
        return &[];
    }
    if request.sources.len() > 1 {
        notes.push(format!("{}: its test split is not used beside other data sets", first.name));
        return &[];
    }
    notes.push(format!("{}: its test split validates, for want of a validation split", first.name));
    &first.test
}

fn mixture(
    request: &PrepareRequest<'_>,
    lengths: &[usize],
    targets: &[usize],
    notes: &mut Vec<String>,
) -> Vec<Mixed> {
    let shares = mix::shares(targets);
    let asked = match &request.section.mix_ratio {
        Some(weights) => {
            let total: f64 = weights.iter().sum();
            weights.iter().map(|weight| weight / total).collect()
        }
        None => shares.clone(),
    };
    let mixture: Vec<Mixed> = (0..lengths.len())
        .map(|i| Mixed {
            name: request.sources[i].name.clone(),
            n_rows: lengths[i],
            n_taken: targets[i],
            share_asked: asked[i],
            share: shares[i],
        })
        .collect();
    for part in mixture.iter().filter(|part| (part.share - part.share_asked).abs() > 0.01) {
        notes.push(format!(
            "{}: {:.1} % of the mixture instead of the {:.1} % that `mix_ratio` asks for: a data set is too short",
            part.name,
            100.0 * part.share,
            100.0 * part.share_asked
        ));
    }
    mixture
}

/// Data sets one after the other: first those that train, then the one that validates.
struct Sets {
    sets: Vec<TokenizedSet>,
    stored: Vec<Stored>,
    n_train_sets: usize,
    per_unit: usize,
}

impl Sets {
    fn new(sets: Vec<TokenizedSet>, n_train_sets: usize) -> Result<Self, DataError> {
        let per_unit = sets.first().map_or(1, |set| set.description.per_unit);
        let mut stored = Vec::new();
        let mut first = 0_u32;
        for set in &sets {
            let files = set.files.iter().map(|file| file.path.clone()).collect();
            stored.push(Stored { first, store: Arc::clone(&set.store), files });
            let n = u32::try_from(set.store.len() / per_unit).ok();
            first = n.and_then(|n| first.checked_add(n)).ok_or_else(|| {
                let path = set.files.first().map_or(Path::new(""), |file| &file.path);
                DataProblem::file(Code::Format, path, "2^32 rows in all", "fewer rows")
            })?;
        }
        Ok(Sets { sets, stored, n_train_sets, per_unit })
    }

    /// Records of each data set that trains.
    fn lengths(&self) -> Vec<usize> {
        let sets = &self.sets[..self.n_train_sets];
        sets.iter().map(|set| set.store.len() / self.per_unit).collect()
    }

    /// Records of the data set that validates.
    fn held_out(&self) -> Option<Vec<u32>> {
        let stored = self.stored.get(self.n_train_sets)?;
        let n = u32::try_from(stored.store.len() / self.per_unit).ok()?;
        Some((stored.first..stored.first + n).collect())
    }

    /// Those of the records that have something to train.
    fn select(&self, records: Vec<u32>, trainer: TrainerType) -> (Sequences, TokenStatistics) {
        let mut statistics =
            TokenStatistics { rows: records.len() as u64, ..TokenStatistics::default() };
        let all = Sequences::stored(self.per_unit, self.stored.clone(), records);
        let mut kept = Vec::with_capacity(all.len());
        for unit in 0..all.len() {
            let is_usable = match trainer {
                TrainerType::Grpo => all.n_tokens(unit) > 0,
                _ => all.is_each_trained(unit),
            };
            if is_usable {
                statistics.tokens += all.n_tokens(unit) as u64;
                statistics.trained_tokens += all.n_trained(unit) as u64;
                kept.push(u32::try_from(all.record(unit)).unwrap_or(u32::MAX));
            } else {
                statistics.dropped += 1;
            }
        }
        kept.shrink_to_fit();
        (Sequences::stored(self.per_unit, self.stored.clone(), kept), statistics)
    }

    fn whole_statistics(&self, mut statistics: [TokenStatistics; 2]) -> [TokenStatistics; 2] {
        for (i, set) in self.sets.iter().enumerate() {
            let of_set = &set.description.statistics;
            let statistics = &mut statistics[usize::from(i >= self.n_train_sets)];
            statistics.longest = statistics.longest.max(of_set.longest);
            statistics.truncated += of_set.truncated;
            statistics.special_texts += of_set.special_texts;
        }
        statistics
    }

    fn files(&self) -> Vec<Vec<DataFile>> {
        let (train, held_out) = self.sets.split_at(self.n_train_sets);
        let mut files: Vec<Vec<DataFile>> = train.iter().map(|set| set.files.clone()).collect();
        if let (Some(first), [held_out]) = (files.first_mut(), held_out) {
            first.extend_from_slice(&held_out.files);
        }
        files
    }

    fn skipped(&self) -> Problems {
        let mut all = Problems::default();
        for set in &self.sets {
            all.append(set.description.skipped.clone());
        }
        all
    }

    /// KTO learns from the difference between desirable and undesirable answers, and weighs each
    /// answer alike: what to say where there are many more of one kind.
    fn check_classes(&self, request: &PrepareRequest<'_>) -> Result<Option<String>, DataProblem> {
        if request.trainer != TrainerType::Kto {
            return Ok(None);
        }
        let sets = &self.sets[..self.n_train_sets];
        let n_desirable: u64 = sets.iter().map(|set| set.description.n_chosen).sum();
        let n_others: u64 = sets.iter().map(|set| set.description.n_rejected).sum();
        if n_desirable > 0 && n_others > 0 {
            // The paper's authors keep the ratio of the two classes within 1 and 4/3.
            let (few, many) = (n_desirable.min(n_others), n_desirable.max(n_others));
            let note = || {
                format!(
                    "{n_desirable} desirable answers and {n_others} others: each answer weighs the \
                     same, and most is learned from the larger kind"
                )
            };
            return Ok((3 * many > 4 * few).then(note));
        }
        let found = format!("{n_desirable} desirable answers and {n_others} others");
        let path = Path::new(&request.section.dataset_name_or_path);
        Err(DataProblem::file(Code::OneClass, path, found, "answers of both kinds"))
    }
}

/// A data set in the cache.
struct TokenizedSet {
    store: Arc<TokenStore>,
    description: Description,
    files: Vec<DataFile>,
}

impl TokenizedSet {
    fn open(
        paths: &[PathBuf],
        request: &PrepareRequest<'_>,
        renderer: &Renderer<'_>,
        notes: &mut Vec<String>,
    ) -> Result<Self, DataError> {
        let mut digests = Vec::new();
        for path in paths {
            // Opened first, so that what is no file is named as such and never waited for.
            drop(crate::source::open_rows(path)?);
            digests.push(sha256_file(path)?);
        }
        let key = cache_key(&digests, request, renderer)?;
        let dir = request.cache_dir.join(TOKENS_DIR);
        let path = dir.join(format!("{key}{TOKENS_SUFFIX}"));
        match TokenStore::open(&path) {
            Ok(store) => {
                if let Some(set) = Self::of(store, &key, paths) {
                    return Ok(set);
                }
                notes.push(format!(
                    "{}: the token cache is of another version; it is made again",
                    path.display()
                ));
            }
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(StoreError::Damaged { what, .. }) => {
                let shown = path.display();
                notes
                    .push(format!("{shown}: {what}: the token cache is damaged; it is made again"));
            }
            Err(error) => return Err(error.into()),
        }
        write::create_dir_all_durable(&dir)?;
        let mut failure = None;
        let written = write::atomic_with(&path, |out| {
            let building = Building { paths, digests: &digests, key: &key, request, renderer };
            building.write(out).map_err(|error| match error {
                BuildError::Write(error) => error,
                BuildError::Data(error) => {
                    failure = Some(*error);
                    io::Error::other("the data cannot be used")
                }
            })
        });
        if let Some(error) = failure {
            return Err(error);
        }
        written?;
        let store = TokenStore::open(&path)?;
        Self::of(store, &key, paths).ok_or_else(|| {
            StoreError::Damaged { path, what: "it is not what was just written" }.into()
        })
    }

    fn of(store: TokenStore, key: &str, paths: &[PathBuf]) -> Option<Self> {
        let description = Description::read(store.description(), key, paths)?;
        let is_whole = description.per_unit > 0 && store.len().is_multiple_of(description.per_unit);
        let files = description.files.clone();
        is_whole.then(|| TokenizedSet { store: Arc::new(store), description, files })
    }
}

/// A digest of everything that decides a token.
fn cache_key(
    digests: &[Sha256Hex],
    request: &PrepareRequest<'_>,
    renderer: &Renderer<'_>,
) -> Result<String, DataError> {
    let settings = renderer.settings();
    let template = renderer.template().map(forgelm_tokenize::ChatTemplate::source);
    // The day decides tokens only where a template prints it.
    let now = template.filter(|source| source.contains("strftime_now")).and(settings.template_now);
    let tokenizer: String = renderer
        .tokenizer()
        .files()?
        .into_iter()
        .map(|(name, text)| format!("{name}\n{text}\n"))
        .collect();
    let section = request.section;
    let key = json!({
        "version": CACHE_VERSION,
        "data": digests.iter().map(Sha256Hex::as_str).collect::<Vec<_>>(),
        "tokenizer": sha256_bytes(tokenizer.as_bytes()).as_str(),
        "prefix": renderer.tokenizer().prefix_ids(),
        "suffix": renderer.tokenizer().suffix_ids(),
        "template": template.map(|source| sha256_bytes(source.as_bytes()).to_string()),
        "now": now,
        "max_length": settings.max_length,
        "train_on_all": settings.train_on_all,
        "add_eos": settings.add_eos,
        "bos_before_prompt": settings.bos_before_prompt,
        "clean_text": section.clean_text,
        "on_bad_row": section.on_bad_row.to_string(),
        "trainer": record_kind(request.trainer),
    });
    Ok(sha256_bytes(key.to_string().as_bytes()).to_string())
}

/// Trainers whose records are alike share their cache.
fn record_kind(trainer: TrainerType) -> &'static str {
    match trainer {
        TrainerType::Sft => "text",
        TrainerType::Dpo | TrainerType::Simpo | TrainerType::Orpo => "preference",
        TrainerType::Kto => "labelled",
        TrainerType::Grpo => "prompt",
    }
}

/// A token file being made.
struct Building<'a> {
    paths: &'a [PathBuf],
    digests: &'a [Sha256Hex],
    key: &'a str,
    request: &'a PrepareRequest<'a>,
    renderer: &'a Renderer<'a>,
}

enum BuildError {
    Write(io::Error),
    Data(Box<DataError>),
}

impl From<io::Error> for BuildError {
    fn from(error: io::Error) -> Self {
        BuildError::Write(error)
    }
}

impl<E: Into<DataError>> From<E> for BuildError {
    fn from(error: E) -> Self {
        BuildError::Data(Box::new(error.into()))
    }
}

/// A row rendered, or found to need a template that is not there.
enum Rendering {
    Done { line: u64, rendered: RenderedRecord },
    NoTemplate,
}

impl Building<'_> {
    fn write(&self, out: &mut dyn Write) -> Result<(), BuildError> {
        let section = self.request.section;
        let mut stream = RowStream::new(self.paths, self.request.trainer, Rules::of(section));
        let mut writer = StoreWriter::new(out)?;
        let mut gathered = Gathered::default();
        let mut masked = Problems::default();
        let mut description = Description::default();
        while let Some(batch) = stream.next_batch()? {
            let reader = stream.records();
            let each = |row: &RawRow| self.render(reader, &batch, row);
            let results = parallel::map(self.renderer.settings().threads, &batch.rows, each);
            let file = u32::try_from(batch.file).unwrap_or(u32::MAX);
            for result in results {
                let Some(rendering) = gathered.take(result) else { continue };
                let Rendering::Done { line, rendered } = rendering else {
                    return Err(forgelm_tokenize::TemplateError::None.into());
                };
                description.statistics.add(&rendered);
                if !rendered.is_usable() {
                    let place = crate::problem::Place { file: &batch.path, line };
                    masked.push(self.renderer.nothing_left(&place));
                }
                for sequence in &rendered.sequences {
                    description.n_chosen += u64::from(sequence.role == Role::Chosen);
                    description.n_rejected += u64::from(sequence.role == Role::Rejected);
                    writer.push(sequence, Origin { file, line })?;
                }
            }
        }
        let (files, layout) = stream.finish(&gathered)?;
        self.check_unchanged(&files)?;
        description.skipped = gathered.judge(&files, section.on_bad_row)?;
        if share(masked.total, description.statistics.rows) > ALL_MASKED_MAX {
            return Err(masked.into());
        }
        description.per_unit = layout.n_sequences();
        description.layout = layout.name().to_owned();
        description.rendering = self.renderer.rendering(&layout).to_owned();
        description.files = files;
        let description: Value = description.to_json(self.key);
        writer.finish(&description)?;
        Ok(())
    }

    fn render(
        &self,
        reader: RecordReader<'_>,
        batch: &Batch,
        row: &RawRow,
    ) -> Result<Rendering, Box<DataProblem>> {
        let record = reader.record(batch, row)?;
        if self.renderer.lacks_template(&record.kind) {
            return Ok(Rendering::NoTemplate);
        }
        // The number is given by whoever reads it.
        let rendered = self.renderer.render_record(&record, 0)?;
        Ok(Rendering::Done { line: record.line, rendered })
    }

    /// The key is of the bytes that were hashed; they must be those that were read.
    fn check_unchanged(&self, files: &[DataFile]) -> Result<(), DataProblem> {
        let changed = files.iter().zip(self.digests).find(|(file, digest)| file.sha256 != **digest);
        match changed {
            None => Ok(()),
            Some((file, _)) => {
                let found = "changed while it was read";
                Err(DataProblem::file(
                    Code::Changed,
                    &file.path,
                    found,
                    "a file that stays as it is",
                ))
            }
        }
    }
}
