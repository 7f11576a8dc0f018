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
    /// `[R]` rows whose next token is trained, ascending.
    pub scored_rows: Vec<u32>,
    /// `[R]` the token that each of them predicts.
    pub labels: Vec<u32>,
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

/// Lays sequences end to end. Row t of a sequence predicts its token t + 1, and is scored where that token is
/// trained; the first token of a sequence is never predicted.
///
/// # Panics
/// If a batch has 2^32 tokens, a sequence 2^28, or a record's number is 2^32 or more: bugs in the caller.
#[must_use]
pub fn pack(sequences: &[&Sequence]) -> PackedBatch {
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
        for (t, &label) in
            sequence.tokens.iter().enumerate().skip(1).filter(|&(t, _)| sequence.trained[t])
        {
            batch.scored_rows.push(u32::try_from(start + t - 1).expect("fewer than 2^32 tokens"));
            batch.labels.push(label);
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
    use super::pack;
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
