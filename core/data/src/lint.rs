//! What is doubtful in data that can be used, and everything that is wrong with data that cannot.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use forgelm_artifact::hash::Hasher;
use forgelm_config::TrainerType;
use forgelm_privacy::detect_secrets;
use forgelm_sdk::trainer::Role;
use forgelm_tokenize::{TemplateError, control_characters};

use crate::dataset::{Batch, Gathered, RecordReader, RowStream};
use crate::find::SourceFiles;
use crate::mix;
use crate::parallel;
use crate::prepare::PrepareRequest;
use crate::problem::{DataError, DataProblem};
use crate::record::{Content, RecordKind, Rules};
use crate::render::{RenderedRecord, Renderer};
use crate::source::RawRow;
use crate::split::split;

/// Findings of a code that are shown.
const SHOWN_MAX: usize = 20;

/// The kinds of finding, each with a name that stays. Rows that a run would refuse are found under the
/// `E-DATA-…` code of the refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LintCode {
    /// A sequence begins with the BOS token twice.
    DoubleBos,
    /// The trained text does not end with a token at which generation stops.
    NoEos,
    /// Nothing of a row is trained.
    AllMasked,
    /// A row is longer than `model.max_length`.
    Truncated,
    /// A row with the tokens of an earlier one.
    Duplicate,
    /// A row of the validation split that is also trained on, but for case, spaces and punctuation.
    Leak,
    /// Text that looks like a special token; it is kept as plain text.
    SpecialText,
    /// Characters that steer a terminal or the direction of writing.
    Controls,
    /// A key or token of a service, or a private key; which one is not said.
    Secret,
}

impl LintCode {
    /// Every code.
    pub const ALL: [LintCode; 9] = [
        LintCode::DoubleBos,
        LintCode::NoEos,
        LintCode::AllMasked,
        LintCode::Truncated,
        LintCode::Duplicate,
        LintCode::Leak,
        LintCode::SpecialText,
        LintCode::Controls,
        LintCode::Secret,
    ];

    /// The name used in messages and documents.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            LintCode::DoubleBos => "L-DATA-DOUBLE-BOS",
            LintCode::NoEos => "L-DATA-NO-EOS",
            LintCode::AllMasked => "L-DATA-ALL-MASKED",
            LintCode::Truncated => "L-DATA-TRUNCATED",
            LintCode::Duplicate => "L-DATA-DUPLICATE",
            LintCode::Leak => "L-DATA-LEAK",
            LintCode::SpecialText => "L-DATA-SPECIAL-TEXT",
            LintCode::Controls => "L-DATA-CONTROLS",
            LintCode::Secret => "L-DATA-SECRET",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(self) -> &'static str {
        match self {
            LintCode::DoubleBos => "remove the BOS token's text from the rows or from the template",
            LintCode::NoEos => {
                "set `data.add_eos: true`, or a template that ends the assistant's turn"
            }
            LintCode::AllMasked => {
                "raise `model.max_length`, or shorten what comes before the answer"
            }
            LintCode::Truncated => "raise `model.max_length`, or split the rows",
            LintCode::Duplicate => "remove the copies: they count as often as they occur",
            LintCode::Leak => "remove one of the two: the validation loss is too good otherwise",
            LintCode::SpecialText => "is it markup that was left in by mistake?",
            LintCode::Controls => "remove them, unless the model is to write them",
            LintCode::Secret => "remove and revoke it; `forgelm audit` searches the whole file",
        }
    }

    /// True if results of a run on such data mislead.
    #[must_use]
    pub fn is_error(self) -> bool {
        matches!(self, LintCode::DoubleBos | LintCode::AllMasked | LintCode::Leak)
    }
}

/// One thing found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// `L-DATA-…` or `E-DATA-…`.
    pub code: &'static str,
    /// True if it fails the check.
    pub is_error: bool,
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; `None` for the file as a whole.
    pub line: Option<u64>,
    /// What was found.
    pub message: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

/// Everything that was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LintReport {
    /// Rows read.
    pub n_rows: u64,
    /// The first ones of each code, by file and line.
    pub findings: Vec<Finding>,
    /// How often each code was found.
    pub counts: BTreeMap<&'static str, u64>,
    /// Findings that fail the check.
    pub n_errors: u64,
}

impl LintReport {
    fn push(&mut self, finding: Finding) {
        self.n_errors += u64::from(finding.is_error);
        let count = self.counts.entry(finding.code).or_default();
        *count += 1;
        if *count <= SHOWN_MAX as u64 {
            self.findings.push(finding);
        }
    }

    fn found(&mut self, code: LintCode, place: &RowPlace<'_>, message: String) {
        self.push(Finding {
            code: code.name(),
            is_error: code.is_error(),
            file: place.file.clone(),
            line: Some(place.line),
            message,
            hint: code.hint().to_owned(),
        });
    }

    fn problem(&mut self, problem: DataProblem) {
        let field =
            if problem.field.is_empty() { String::new() } else { format!("`{}`: ", problem.field) };
        let expected = if problem.expected.is_empty() {
            String::new()
        } else {
            format!("; expected {}", problem.expected)
        };
        self.push(Finding {
            code: problem.code.name(),
            is_error: !problem.code.is_minor(),
            message: format!("{field}{}{expected}", problem.found),
            file: problem.file,
            line: problem.line,
            hint: problem.hint,
        });
    }
}

struct RowPlace<'a> {
    file: &'a PathBuf,
    line: u64,
}

/// Reads all rows of the data of a run, and says what is doubtful. Nothing is written.
///
/// # Errors
/// If a file cannot be read, or its columns fit no layout of the trainer.
pub fn lint(
    request: &PrepareRequest<'_>,
    renderer: &Renderer<'_>,
) -> Result<LintReport, DataError> {
    let mut report = LintReport::default();
    let mut seen = BTreeMap::new();
    let mut sets = Vec::new();
    for source in request.sources {
        sets.push(read_set(&source.train, request, renderer, &mut seen, &mut report)?);
    }
    let held_out = match request.sources {
        [SourceFiles { validation, test, .. }] if validation.is_empty() => test,
        [first, ..] => &first.validation,
        [] => return Ok(report),
    };
    if held_out.is_empty() {
        if request.trainer != TrainerType::Grpo {
            leaks_of_the_split(request, &sets, &mut report)?;
        }
    } else {
        let rows = read_set(held_out, request, renderer, &mut BTreeMap::new(), &mut report)?;
        let trained: BTreeSet<u64> = sets.iter().flatten().map(|row| row.folded).collect();
        for row in rows.iter().filter(|row| trained.contains(&row.folded)) {
            report_leak(&mut report, held_out, row);
        }
    }
    let order = |finding: &Finding| (finding.file.clone(), finding.line, finding.code);
    report.findings.sort_by_key(order);
    Ok(report)
}

/// The rows that a run would hold out, against those that it would train on.
fn leaks_of_the_split(
    request: &PrepareRequest<'_>,
    sets: &[Vec<LintedRow>],
    report: &mut LintReport,
) -> Result<(), DataError> {
    let names: Vec<&str> = request.sources.iter().map(|source| source.name.as_str()).collect();
    let lengths: Vec<usize> = sets.iter().map(Vec::len).collect();
    let targets = mix::targets(&names, &lengths, request.section.mix_ratio.as_deref())?;
    let mut rows = Vec::new();
    for (i, (&length, &n)) in lengths.iter().zip(&targets).enumerate() {
        rows.extend(mix::chosen(i as u64, length, n).into_iter().map(|row| (i, row as usize)));
    }
    let split = split(rows.len(), request.section.validation_split);
    let row = |&number: &usize| {
        let (set, row) = rows[number];
        (set, &sets[set][row])
    };
    let trained: BTreeSet<u64> = split.train.iter().map(|number| row(number).1.folded).collect();
    for (set, row) in
        split.validation.iter().map(row).filter(|(_, row)| trained.contains(&row.folded))
    {
        report_leak(report, &request.sources[set].train, row);
    }
    Ok(())
}

fn report_leak(report: &mut LintReport, files: &[PathBuf], row: &LintedRow) {
    let place = RowPlace { file: &files[row.file as usize], line: row.line };
    let message = "held out for validation, and also among the training rows".to_owned();
    report.found(LintCode::Leak, &place, message);
}

/// What is kept of a row that can be used.
struct LintedRow {
    file: u32,
    line: u64,
    /// Of its text without case, spaces and punctuation.
    folded: u64,
}

/// A row looked at by itself.
struct Looked {
    line: u64,
    found: Vec<(LintCode, String)>,
    folded: u64,
    /// Of its tokens.
    exact: u64,
}

fn read_set(
    files: &[PathBuf],
    request: &PrepareRequest<'_>,
    renderer: &Renderer<'_>,
    seen: &mut BTreeMap<u64, (PathBuf, u64)>,
    report: &mut LintReport,
) -> Result<Vec<LintedRow>, DataError> {
    let mut stream = RowStream::new(files, request.trainer, Rules::of(request.section));
    let ends = end_tokens(renderer);
    let mut rows = Vec::new();
    while let Some(batch) = stream.next_batch()? {
        let reader = stream.records();
        let each = |row: &RawRow| look(reader, &batch, row, renderer, &ends);
        for looked in parallel::map(renderer.settings().threads, &batch.rows, each) {
            report.n_rows += 1;
            let looked = match looked {
                Ok(Some(looked)) => looked,
                Ok(None) => return Err(TemplateError::None.into()),
                Err(problem) => {
                    report.problem(*problem);
                    continue;
                }
            };
            let place = RowPlace { file: &batch.path, line: looked.line };
            for (code, message) in looked.found {
                report.found(code, &place, message);
            }
            match seen.get(&looked.exact) {
                Some((file, line)) => {
                    let message = format!("the same as {}:{line}", file.display());
                    report.found(LintCode::Duplicate, &place, message);
                }
                None => {
                    seen.insert(looked.exact, (batch.path.to_path_buf(), looked.line));
                }
            }
            let file = u32::try_from(batch.file).unwrap_or(u32::MAX);
            rows.push(LintedRow { file, line: looked.line, folded: looked.folded });
        }
    }
    if report.n_rows == 0 {
        stream.finish(&Gathered::default())?;
    }
    Ok(rows)
}

/// Tokens at which an answer may end.
fn end_tokens(renderer: &Renderer<'_>) -> BTreeSet<u32> {
    let tokenizer = renderer.tokenizer();
    let mut ends: BTreeSet<u32> = tokenizer.eos_ids().into_iter().collect();
    let of_template = renderer.template().and_then(forgelm_tokenize::ChatTemplate::end_of_turn);
    ends.extend(of_template.and_then(|text| tokenizer.token_id(&text)));
    ends
}

/// `None` if the row needs a chat template that is not there.
fn look(
    reader: RecordReader<'_>,
    batch: &Batch,
    row: &RawRow,
    renderer: &Renderer<'_>,
    ends: &BTreeSet<u32>,
) -> Result<Option<Looked>, Box<DataProblem>> {
    let record = reader.record(batch, row)?;
    if renderer.lacks_template(&record.kind) {
        return Ok(None);
    }
    let rendered = renderer.render_record(&record, 0)?;
    let mut found = doubts(&rendered, renderer, ends);
    let texts = texts(&record.kind);
    let n_controls: usize = texts.iter().map(|text| control_characters(text)).sum();
    if n_controls > 0 {
        found.push((LintCode::Controls, format!("{n_controls} control or direction characters")));
    }
    let secrets = texts.iter().flat_map(|text| detect_secrets(text));
    let kinds: BTreeSet<&str> = secrets.map(|secret| secret.kind.name()).collect();
    for kind in kinds {
        found.push((LintCode::Secret, format!("looks like a secret: {kind}")));
    }
    let mut exact = Hasher::new();
    for sequence in &rendered.sequences {
        exact.update(&[u8::try_from(sequence.role as u32).unwrap_or(u8::MAX)]);
        for token in &sequence.tokens {
            exact.update(&token.to_le_bytes());
        }
    }
    let mut folded = Hasher::new();
    for text in texts {
        let kept: String =
            text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
        folded.update(kept.as_bytes());
        folded.update(b"\n");
    }
    let line = record.line;
    Ok(Some(Looked { line, found, folded: short(folded), exact: short(exact) }))
}

fn short(hasher: Hasher) -> u64 {
    let digest = hasher.finish_raw();
    u64::from_le_bytes(digest[..8].try_into().expect("8 bytes"))
}

fn doubts(
    rendered: &RenderedRecord,
    renderer: &Renderer<'_>,
    ends: &BTreeSet<u32>,
) -> Vec<(LintCode, String)> {
    let max_length = renderer.settings().max_length;
    let mut found = Vec::new();
    if !rendered.is_usable() {
        let message = format!("nothing is left to train within {max_length} tokens");
        found.push((LintCode::AllMasked, message));
    }
    if rendered.is_truncated {
        found.push((
            LintCode::Truncated,
            format!("{} tokens; the run keeps {max_length}", rendered.longest),
        ));
    }
    if rendered.special_texts > 0 {
        let message = format!("{} texts that look like special tokens", rendered.special_texts);
        found.push((LintCode::SpecialText, message));
    }
    let bos = renderer.tokenizer().bos_id();
    let is_double = |tokens: &[u32]| matches!(tokens, [a, b, ..] if Some(*a) == bos && a == b);
    if rendered.sequences.iter().any(|sequence| is_double(&sequence.tokens)) {
        found.push((LintCode::DoubleBos, "begins with the BOS token twice".to_owned()));
    }
    let lacks_end = |sequence: &crate::render::Sequence| {
        let last = sequence.trained.iter().rposition(|&trained| trained);
        sequence.role != Role::Rollout && last.is_some_and(|t| !ends.contains(&sequence.tokens[t]))
    };
    if !rendered.is_truncated && rendered.sequences.iter().any(lacks_end) {
        found.push((LintCode::NoEos, "the trained text does not end with an end token".to_owned()));
    }
    found
}

/// The texts of a record.
fn texts(kind: &RecordKind) -> Vec<&str> {
    match kind {
        RecordKind::Text(text) => vec![text],
        RecordKind::Messages(messages) | RecordKind::Turns(messages) => {
            messages.iter().map(|message| message.content.as_str()).collect()
        }
        RecordKind::PromptCompletion { prompt, completion } => vec![prompt, completion],
        RecordKind::Preference { prompt, chosen, rejected } => {
            [content(prompt), content(chosen), content(rejected)].concat()
        }
        RecordKind::Labelled { prompt, completion, .. } => {
            [content(prompt), content(completion)].concat()
        }
        RecordKind::Prompt { prompt, .. } => content(prompt),
    }
}

fn content(content: &Content) -> Vec<&str> {
    match content {
        Content::Text(text) => vec![text],
        Content::Messages(messages) => messages.iter().map(|m| m.content.as_str()).collect(),
    }
}
