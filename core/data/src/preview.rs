//! Rows as the model will see them.

use std::path::PathBuf;

use forgelm_config::{Data, TrainerType};
use forgelm_sdk::trainer::Role;
use forgelm_tokenize::{TemplateError, Tokenizer};

use crate::dataset::RowStream;
use crate::problem::{DataError, DataProblem};
use crate::record::Rules;
use crate::render::{Renderer, Sequence};

/// A row as its sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviewRow {
    /// The file.
    pub file: PathBuf,
    /// The line in it, from 1.
    pub line: u64,
    /// True if something was cut at `model.max_length`.
    pub is_truncated: bool,
    /// One, or a preference's two.
    pub sequences: Vec<PreviewSequence>,
}

/// A sequence in pieces of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviewSequence {
    /// Its part in the row.
    pub role: Role,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// How many of them are trained.
    pub n_trained: usize,
    /// Its text; neighbors differ in what they are.
    pub pieces: Vec<Piece>,
}

/// Tokens of one kind in a row, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The text, special tokens as they are written.
    pub text: String,
    /// Whether these tokens are trained.
    pub is_trained: bool,
    /// Whether these are special tokens, not text.
    pub is_special: bool,
}

/// The first `n` rows of some files; rows that cannot be used come as what is wrong with them.
///
/// # Errors
/// If the files cannot be read, or the columns fit no layout of the trainer.
pub fn preview(
    files: &[PathBuf],
    section: &Data,
    trainer: TrainerType,
    renderer: &Renderer<'_>,
    n: usize,
) -> Result<Vec<Result<PreviewRow, DataProblem>>, DataError> {
    let mut stream = RowStream::new(files, trainer, Rules::of(section));
    let mut rows = Vec::new();
    while rows.len() < n {
        let Some(batch) = stream.next_batch()? else { break };
        let reader = stream.records();
        for row in batch.rows.iter().take(n - rows.len()) {
            let record = match reader.record(&batch, row) {
                Ok(record) => record,
                Err(problem) => {
                    rows.push(Err(*problem));
                    continue;
                }
            };
            if renderer.lacks_template(&record.kind) {
                return Err(TemplateError::None.into());
            }
            rows.push(match renderer.render_record(&record, rows.len() as u64) {
                Err(problem) => Err(*problem),
                Ok(rendered) => Ok(PreviewRow {
                    file: record.file.to_path_buf(),
                    line: record.line,
                    is_truncated: rendered.is_truncated,
                    sequences: rendered
                        .sequences
                        .iter()
                        .map(|sequence| in_pieces(sequence, renderer.tokenizer()))
                        .collect::<Result<_, _>>()?,
                }),
            });
        }
    }
    Ok(rows)
}

/// The first token is never predicted, so it is shown as not trained.
fn in_pieces(sequence: &Sequence, tokenizer: &Tokenizer) -> Result<PreviewSequence, DataError> {
    let kind = |t: usize| (t > 0 && sequence.trained[t], tokenizer.is_special(sequence.tokens[t]));
    let mut pieces = Vec::new();
    let mut from = 0;
    for to in 1..=sequence.tokens.len() {
        if to < sequence.tokens.len() && kind(to) == kind(from) {
            continue;
        }
        let (is_trained, is_special) = kind(from);
        let text = tokenizer.decode(&sequence.tokens[from..to])?;
        pieces.push(Piece { text, is_trained, is_special });
        from = to;
    }
    Ok(PreviewSequence {
        role: sequence.role,
        tokens: sequence.tokens.clone(),
        n_trained: sequence.n_trained(),
        pieces,
    })
}
