//! A trainer's gradient is the slope of its loss, and untrained rows have none.

use super::{Finding, Numbers, Tried, same};
use forgelm_plugin::{Plugin, Trainers};
use forgelm_sdk::trainer::{Loss, Records, Role, Scored, Sequence, StepTotals, Trainer};

/// Half the step of a central difference: exact in f32 for log-probabilities above -8.
const STEP: f32 = 1.0 / 1024.0;
/// What rounding of a loss that is summed in f32 may do to a difference over two steps.
const TOLERANCE: f64 = 5e-3;

/// Log-probabilities of answers, by their roles.
struct Batch {
    sequences: Vec<Sequence>,
    trained: Vec<u8>,
    logp: Vec<f32>,
    reference: Vec<f32>,
    old: Vec<f32>,
    advantage: Vec<f32>,
    step: StepTotals,
}

impl Batch {
    fn for_records(records: Records) -> Self {
        let roles: &[Role] = match records {
            Records::Text => &[Role::Sole; 4],
            Records::Preference => &[Role::Chosen, Role::Rejected, Role::Chosen, Role::Rejected],
            Records::Labelled => &[Role::Chosen, Role::Rejected, Role::Kl, Role::Kl],
            Records::Prompt => &[Role::Rollout; 4],
        };
        let (mut sequences, mut n_rows) = (Vec::new(), 0);
        for (i, role) in roles.iter().enumerate() {
            let len = 2 + i;
            sequences.push(Sequence { role: *role, record: i as u64 / 2, start: n_rows, len });
            n_rows += len;
        }
        let trained: Vec<u8> = (0..n_rows).map(|row| u8::from(row % 5 != 1)).collect();
        let mut step = StepTotals::default();
        step.add(&sequences, &trained);
        let mut numbers = Numbers(1);
        // Multiples of 2^-10 between -3 and -1: a step up or down is exact.
        let mut scores = || -> Vec<f32> {
            numbers.take(n_rows).iter().map(|x| (x * 1024.0).round() / 1024.0 - 2.0).collect()
        };
        let (logp, reference) = (scores(), scores());
        // As on policy: every ratio is 1, and no clip is near.
        let old = logp.clone();
        let advantage = numbers.take(sequences.len());
        Self { sequences, trained, logp, reference, old, advantage, step }
    }

    /// Loss and gradient, with one log-probability moved.
    fn loss(
        &self,
        trainer: &dyn Trainer,
        moved: Option<(usize, f32)>,
    ) -> Result<(Loss, Vec<f32>), String> {
        let mut logp = self.logp.clone();
        if let Some((row, by)) = moved {
            logp[row] += by;
        }
        let labels = vec![0; logp.len()];
        let scored = Scored {
            sequences: &self.sequences,
            labels: &labels,
            trained: &self.trained,
            logp: &logp,
            ref_logp: Some(&self.reference),
            advantage: Some(&self.advantage),
            old_logp: Some(&self.old),
            step: &self.step,
        };
        let mut dlogp = vec![0.0; logp.len()];
        let loss = trainer.loss(&scored, &mut dlogp).map_err(|failed| failed.message)?;
        Ok((loss, dlogp))
    }

    /// Whether a gradient goes through a row.
    fn is_differentiated(&self, row: usize) -> bool {
        let owner = self.sequences.iter().find(|sequence| sequence.rows().contains(&row));
        owner.is_some_and(|sequence| sequence.role != Role::Kl)
    }
}

pub(super) fn check(plugin: &Plugin<Trainers>, found: &mut Vec<Finding>) {
    let mut tried = Tried { plugin, found };
    let Some(trainer) = tried.built((plugin.build)(&[])) else { return };
    let batch = Batch::for_records(plugin.needs.records);
    let first = match batch.loss(&*trainer, None) {
        Ok(first) => first,
        Err(failed) => return tried.property("has a loss for a batch", Err(failed)),
    };
    tried.property("has a loss for a batch", sound(&first.0));
    tried.property("gives the same bits again", again(&batch, &*trainer, &first));
    let other = (plugin.build)(&[]).map_err(|refused| refused.to_string());
    let other = other.and_then(|other| again(&batch, &*other, &first));
    tried.property("gives the same bits in another instance", other);
    let untrained = |row: &usize| batch.trained[*row] == 0 && !plugin.needs.prompts;
    let rows = (0..batch.logp.len()).filter(untrained);
    let mut wrong = rows.filter(|&row| first.1[row].to_bits() << 1 != 0);
    let result = wrong.next().map_or(Ok(()), |row| Err(format!("row {row}: {}", first.1[row])));
    tried.property("has no gradient in untrained rows", result);
    let result = slopes(&batch, &*trainer, &first.1);
    tried.property("has the slope of its loss as gradient", result);
}

fn sound(loss: &Loss) -> Result<(), String> {
    if !loss.loss_sum.is_finite() {
        return Err(format!("the loss is {}; expected a finite number", loss.loss_sum));
    }
    match loss.n_terms {
        0 => Err("0 terms; expected at least 1".to_owned()),
        _ => Ok(()),
    }
}

fn again(batch: &Batch, trainer: &dyn Trainer, first: &(Loss, Vec<f32>)) -> Result<(), String> {
    let second = batch.loss(trainer, None)?;
    same(&second.0.loss_sum.to_bits(), &first.0.loss_sum.to_bits())?;
    same(&second, first)
}

fn slopes(batch: &Batch, trainer: &dyn Trainer, dlogp: &[f32]) -> Result<(), String> {
    let rows = (0..batch.logp.len()).filter(|&row| batch.is_differentiated(row));
    for row in rows {
        let up = batch.loss(trainer, Some((row, STEP)))?.0.loss_sum;
        let down = batch.loss(trainer, Some((row, -STEP)))?.0.loss_sum;
        let (slope, d) = ((up - down) / (2.0 * f64::from(STEP)), f64::from(dlogp[row]));
        let difference = (slope - d).abs();
        if difference.is_nan() || difference > TOLERANCE * slope.abs().max(1.0) {
            return Err(format!("row {row}: {d}; the slope is {slope}"));
        }
    }
    Ok(())
}
