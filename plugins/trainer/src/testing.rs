//! Batches of a few numbers, and the check that a gradient is the slope of its loss.

use forgelm_sdk::OptionValue;
use forgelm_sdk::trainer::{Descriptor, Loss, Role, Scored, Sequence, StepTotals, Trainer};

/// Answers by their log-probabilities.
pub struct Answers {
    sequences: Vec<Sequence>,
    trained: Vec<u8>,
    logp: Vec<f32>,
    reference: Option<Vec<f32>>,
    advantage: Option<Vec<f32>>,
    old: Option<Vec<f32>>,
}

impl Answers {
    pub fn new(answers: &[(Role, &[f32])]) -> Self {
        let (mut sequences, mut logp) = (Vec::new(), Vec::new());
        for (i, (role, values)) in answers.iter().enumerate() {
            let start = logp.len();
            // Two answers a record.
            let record = i as u64 / 2;
            sequences.push(Sequence { role: *role, record, start, len: values.len() });
            logp.extend_from_slice(values);
        }
        let trained = vec![1; logp.len()];
        Self { sequences, trained, logp, reference: None, advantage: None, old: None }
    }

    pub fn pair(chosen: &[f32], rejected: &[f32]) -> Self {
        Self::new(&[(Role::Chosen, chosen), (Role::Rejected, rejected)])
    }

    pub fn reference(mut self, logp: &[f32]) -> Self {
        assert_eq!(logp.len(), self.logp.len());
        self.reference = Some(logp.to_vec());
        self
    }

    pub fn rollout(mut self, advantage: &[f32], old: &[f32]) -> Self {
        assert_eq!(old.len(), self.logp.len());
        (self.advantage, self.old) = (Some(advantage.to_vec()), Some(old.to_vec()));
        self
    }

    pub fn untrained(mut self, rows: &[usize]) -> Self {
        for &row in rows {
            self.trained[row] = 0;
        }
        self
    }

    pub fn loss(&self, trainer: &dyn Trainer) -> Loss {
        self.loss_into(trainer, &mut vec![0.0; self.logp.len()])
    }

    pub fn loss_into(&self, trainer: &dyn Trainer, dlogp: &mut [f32]) -> Loss {
        let mut step = StepTotals::default();
        step.add(&self.sequences, &self.trained);
        let scored = Scored {
            sequences: &self.sequences,
            labels: &vec![0; self.logp.len()],
            trained: &self.trained,
            logp: &self.logp,
            ref_logp: self.reference.as_deref(),
            advantage: self.advantage.as_deref(),
            old_logp: self.old.as_deref(),
            step: &step,
        };
        trainer.loss(&scored, dlogp).expect("none of ours gives up")
    }
}

pub fn trainer(of: &Descriptor, options: &[(&str, OptionValue)]) -> Box<dyn Trainer> {
    (of.build)(options).expect("the options are good")
}

/// Central differences of the loss in every log-probability.
///
/// The values are powers of two apart, so that `logp +- h` is exact with h = 2^-10; the error is
/// h^2 / 6 times the third derivative, below 1e-6 for the losses here.
pub fn check_gradient(answers: &Answers, trainer: &dyn Trainer) {
    let h = 1.0 / 1024.0;
    let mut dlogp = vec![9.0; answers.logp.len()];
    answers.loss_into(trainer, &mut dlogp);
    let at = |row: usize, by: f32| {
        let mut moved = answers.logp.clone();
        moved[row] += by;
        Answers { logp: moved, ..answers.clone_without_logp() }.loss(trainer).loss_sum
    };
    for (row, &d) in dlogp.iter().enumerate() {
        let slope = (at(row, h) - at(row, -h)) / (2.0 * f64::from(h));
        assert!((slope - f64::from(d)).abs() < 2e-6, "row {row}: {d}, but the slope is {slope}");
    }
}

impl Answers {
    fn clone_without_logp(&self) -> Self {
        Self {
            sequences: self.sequences.clone(),
            trained: self.trained.clone(),
            logp: Vec::new(),
            reference: self.reference.clone(),
            advantage: self.advantage.clone(),
            old: self.old.clone(),
        }
    }
}
