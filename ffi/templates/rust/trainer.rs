//! my_plugin: a trainer for ForgeLM.
//!
//! As it comes, it is the negative log-likelihood of the trained tokens, `L = -sum(logp)`. Yours
//! goes into `loss`; what records it learns from, and what the host prepares for it, into
//! `TRAINERS`.
#![forbid(unsafe_code)]

use forgelm_sdk::Failed;
use forgelm_sdk::options::Reader;
use forgelm_sdk::trainer::{Descriptor, Loss, Metric, Needs, Records, Scored, Trainer};

/// Options of the trainer, read in `TRAINERS`, are fields of it.
struct Method;

impl Trainer for Method {
    /// Loss and gradient of one micro-batch: R scored rows, of which some are trained.
    /// Sums only: the host divides once, by the terms of the whole step.
    fn loss(&self, scored: &Scored<'_>, dlogp: &mut [f32]) -> Result<Loss, Failed> {
        let mut loss_sum = 0.0;
        let mut n_terms = 0;
        for (row, logp) in scored.logp.iter().enumerate() {
            // dL/dlogp; 0 where not trained
            dlogp[row] = 0.0;
            if scored.trained[row] != 0 {
                dlogp[row] = -1.0;
                loss_sum -= f64::from(*logp);
                n_terms += 1;
            }
        }
        // A number of yours in metrics.jsonl: its sum and its terms.
        let metrics = vec![Metric { name: "my_plugin/nll", sum: loss_sum, n_terms }];
        Ok(Loss { loss_sum, n_terms, metrics })
    }
}

const TRAINERS: &[Descriptor] = &[Descriptor {
    name: "my_plugin",
    summary: "negative log-likelihood of the trained tokens",
    source: "Radford et al. 2018, eq. 1",
    needs: Needs {
        records: Records::Text,
        reference: false,
        rollouts: false,
        prompts: false,
        dropout: true,
    },
    build: |options| {
        // let mut options = Reader::new(..); let beta = options.number("beta", 0.1, 0.0..=1.0)?;
        Reader::new("my_plugin", options).finish()?;
        Ok(Box::new(Method))
    },
}];

forgelm_sdk::export_plugin!(trainers: TRAINERS);
