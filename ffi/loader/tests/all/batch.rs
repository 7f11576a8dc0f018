//! Batches of numbers that differ from row to row.

use forgelm_sdk::Failed;
use forgelm_sdk::trainer::{Loss, Role, Scored, Sequence, StepTotals, Trainer};

pub struct Batch {
    sequences: Vec<Sequence>,
    trained: Vec<u8>,
    logp: Vec<f32>,
    reference: Vec<f32>,
    advantage: Vec<f32>,
    step: StepTotals,
}

impl Batch {
    /// Sequences of these roles: two for a record, one to five rows each.
    pub fn new(roles: &[Role]) -> Self {
        let (mut sequences, mut n_rows) = (Vec::new(), 0);
        for (i, role) in roles.iter().enumerate() {
            let len = 1 + i * 3 % 5;
            sequences.push(Sequence { role: *role, record: i as u64 / 2, start: n_rows, len });
            n_rows += len;
        }
        // A plain linear congruence: numbers between -4 and 0 without a pattern.
        let mut state = 12_345_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            -4.0 * f32::from(u16::try_from(state >> 16).unwrap()) / 65_536.0
        };
        let trained: Vec<u8> = (0..n_rows).map(|row| u8::from(row % 7 != 3)).collect();
        let mut step = StepTotals::default();
        step.add(&sequences, &trained);
        Self {
            logp: (0..n_rows).map(|_| next()).collect(),
            reference: (0..n_rows).map(|_| next()).collect(),
            advantage: sequences.iter().map(|_| next() + 2.0).collect(),
            sequences,
            trained,
            step,
        }
    }

    pub fn pairs(n: usize) -> Self {
        Self::new(&[Role::Chosen, Role::Rejected].repeat(n))
    }

    pub fn texts(n: usize) -> Self {
        Self::new(&[Role::Sole].repeat(n))
    }

    /// The loss, or why there is none, and the gradient.
    pub fn try_loss(&self, trainer: &dyn Trainer) -> (Result<Loss, Failed>, Vec<f32>) {
        let labels: Vec<u32> = (0..).take(self.logp.len()).collect();
        let scored = Scored {
            sequences: &self.sequences,
            labels: &labels,
            trained: &self.trained,
            logp: &self.logp,
            ref_logp: Some(&self.reference),
            advantage: Some(&self.advantage),
            old_logp: Some(&self.reference),
            step: &self.step,
        };
        let mut dlogp = vec![9.0; self.logp.len()];
        let loss = trainer.loss(&scored, &mut dlogp);
        (loss, dlogp)
    }

    #[track_caller]
    pub fn loss(&self, trainer: &dyn Trainer) -> (Loss, Vec<f32>) {
        let (loss, dlogp) = self.try_loss(trainer);
        (loss.unwrap_or_else(|failed| panic!("{failed}")), dlogp)
    }

    #[track_caller]
    pub fn failure(&self, trainer: &dyn Trainer) -> String {
        self.try_loss(trainer).0.expect_err("it fails").to_string()
    }
}
