//! A batch as the engine reads it: sequences end to end, no padding.

use forgelm_kernels_api::Segment;
use forgelm_sdk::trainer::Role;

use crate::render::Sequence;

/// Sequences laid end to end. T tokens, R scored rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PackedBatch {
    /// `[T]` the tokens.
    pub tokens: Vec<u32>,
    /// `[T]` the place of each token in its sequence, from 0.
    pub positions: Vec<u32>,
    /// One for each sequence; attention never crosses them.
    pub segments: Vec<Segment>,
    /// `[R]` rows whose next token is scored, ascending: those whose next token is trained, and with
    /// [`ScoredRows::Prompts`] those of prompts too.
    pub scored_rows: Vec<u32>,
    /// `[R]` the token that each of them predicts.
    pub labels: Vec<u32>,
    /// `[R]` 1 where that token is trained.
    pub trained: Vec<u8>,
    /// `[T]` a name for each row that does not depend on the batch it is in: number of the record in the upper
    /// half, the role in the next four bits, the position in the others. Dropout masks are made from it, so that a step has the same masks however
    /// it is cut into micro-batches or packed.
    pub row_keys: Vec<u64>,
    /// One for each sequence.
    pub sequences: Vec<PackedSequence>,
}

/// A sequence of a packed batch, in scored rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedSequence {
    /// Number of its record in the data set.
    pub record: u64,
    /// Its part in the record.
    pub role: Role,
    /// First scored row, as an index into [`PackedBatch::scored_rows`].
    pub start: usize,
    /// Number of scored rows.
    pub len: usize,
}

/// Which rows of a sequence are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoredRows {
    /// Those that predict a trained token.
    Trained,
    /// Of a sole sequence or a chosen answer every row, so that a record's prompt is scored once; of others as
    /// before.
    Prompts,
}

impl ScoredRows {
    /// Whether row t of a sequence is scored, where `trained` is the mark of its token t + 1.
    fn is_scored(self, role: Role, trained: bool) -> bool {
        trained || (self == ScoredRows::Prompts && matches!(role, Role::Sole | Role::Chosen))
    }

    /// The scored rows of a sequence.
    #[must_use]
    pub fn count(self, sequence: &Sequence) -> usize {
        let trained = sequence.trained.iter().skip(1);
        trained.filter(|&&trained| self.is_scored(sequence.role, trained)).count()
    }
}

/// Lays sequences end to end, as [`pack_scoring`] with [`ScoredRows::Trained`].
///
/// # Panics
/// As [`pack_scoring`].
#[must_use]
pub fn pack(sequences: &[&Sequence]) -> PackedBatch {
    pack_scoring(sequences, ScoredRows::Trained)
}

/// Lays sequences end to end. Row t of a sequence predicts its token t + 1, and is scored as
/// `rows` says; the first token of a sequence is never predicted.
///
/// # Panics
/// If a batch has 2^32 tokens, a sequence 2^28, or a record's number is 2^32 or more: bugs in the caller.
#[must_use]
pub fn pack_scoring(sequences: &[&Sequence], rows: ScoredRows) -> PackedBatch {
    let n_tokens = sequences.iter().map(|sequence| sequence.tokens.len()).sum();
    let mut batch = PackedBatch {
        tokens: Vec::with_capacity(n_tokens),
        positions: Vec::with_capacity(n_tokens),
        row_keys: Vec::with_capacity(n_tokens),
        ..PackedBatch::default()
    };
    for sequence in sequences {
        let start = batch.tokens.len();
        let first_scored = batch.scored_rows.len();
        assert!(
            sequence.record < 1 << 32,
            "record number {} does not fit its key",
            sequence.record
        );
        assert_eq!(sequence.tokens.len(), sequence.trained.len(), "one mark for each token");
        assert!(sequence.tokens.len() < 1 << 28, "a sequence of 2^28 tokens");
        let key = sequence.record << 32 | u64::from(sequence.role as u32) << 28;
        batch.tokens.extend_from_slice(&sequence.tokens);
        for position in 0..sequence.tokens.len() {
            let position = u32::try_from(position).expect("fewer than 2^32 tokens");
            batch.positions.push(position);
            batch.row_keys.push(key | u64::from(position));
        }
        for (t, &label) in sequence.tokens.iter().enumerate().skip(1) {
            let trained = sequence.trained[t];
            if rows.is_scored(sequence.role, trained) {
                let row = u32::try_from(start + t - 1).expect("fewer than 2^32 tokens");
                batch.scored_rows.push(row);
                batch.labels.push(label);
                batch.trained.push(u8::from(trained));
            }
        }
        batch.segments.push(Segment { start, len: sequence.tokens.len() });
        batch.sequences.push(PackedSequence {
            record: sequence.record,
            role: sequence.role,
            start: first_scored,
            len: batch.scored_rows.len() - first_scored,
        });
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::{ScoredRows, pack, pack_scoring};
    use crate::render::Sequence;
    use forgelm_kernels_api::Segment;
    use forgelm_sdk::trainer::Role;

    fn sequence(record: u64, tokens: &[u32], trained: &[u8]) -> Sequence {
        Sequence {
            record,
            role: Role::Sole,
            tokens: tokens.to_vec(),
            trained: trained.iter().map(|&t| t == 1).collect(),
        }
    }

    #[test]
    fn sequences_lie_end_to_end_and_rows_predict_the_next_trained_token() {
        let a = sequence(3, &[10, 11, 12], &[1, 0, 1]);
        let b = sequence(9, &[20, 21], &[0, 1]);
        let batch = pack(&[&a, &b]);
        assert_eq!(batch.tokens, [10, 11, 12, 20, 21]);
        assert_eq!(batch.positions, [0, 1, 2, 0, 1]);
        assert_eq!(batch.segments, [Segment { start: 0, len: 3 }, Segment { start: 3, len: 2 }]);
        // Token 10 is trained but first: nothing predicts it. Row 1 predicts 12, row 3 predicts 21.
        assert_eq!(batch.scored_rows, [1, 3]);
        assert_eq!(batch.labels, [12, 21]);
        assert_eq!(batch.row_keys, [3 << 32, (3 << 32) + 1, (3 << 32) + 2, 9 << 32, (9 << 32) + 1]);
        let parts: Vec<_> = batch.sequences.iter().map(|s| (s.record, s.start, s.len)).collect();
        assert_eq!(parts, [(3, 0, 1), (9, 1, 1)]);
    }

    /// Of the pair's first answer the prompt is scored and not trained; of the second it is not scored again.
    #[test]
    fn a_prompt_is_scored_once_where_it_is_asked_for() {
        let chosen = Sequence { role: Role::Chosen, ..sequence(1, &[5, 6, 7, 8], &[0, 0, 1, 1]) };
        let rejected = Sequence { role: Role::Rejected, ..sequence(1, &[5, 6, 9], &[0, 0, 1]) };
        let batch = pack_scoring(&[&chosen, &rejected], ScoredRows::Prompts);
        assert_eq!(batch.scored_rows, [0, 1, 2, 5]);
        assert_eq!(batch.labels, [6, 7, 8, 9]);
        assert_eq!(batch.trained, [0, 1, 1, 1]);
        assert_eq!(ScoredRows::Prompts.count(&chosen), 3);
        assert_eq!(ScoredRows::Prompts.count(&rejected), 1);
        assert_eq!(pack(&[&chosen, &rejected]).trained, [1, 1, 1]);
    }

    #[test]
    fn row_keys_do_not_depend_on_the_cut() {
        let all: Vec<Sequence> =
            (0..6).map(|i| sequence(i, &[1, 2, 3, 4], &[0, 1, 1, 1])).collect();
        let refs: Vec<&Sequence> = all.iter().collect();
        let whole = pack(&refs);
        for size in [1, 2, 3] {
            let keys: Vec<u64> = refs.chunks(size).flat_map(|chunk| pack(chunk).row_keys).collect();
            assert_eq!(keys, whole.row_keys);
        }
    }
}
