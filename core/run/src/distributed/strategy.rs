//! What the words of DeepSpeed and of FSDP mean here.

use crate::plan::Plan;
use forgelm_config::{DistributedStrategy, FsdpStrategy};
use forgelm_train::session::Sharing;

/// What the processes of a run share out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Strategy {
    /// In the words of the config, for messages and evidence.
    pub(crate) name: String,
    /// What each process has only a part of.
    pub(crate) sharing: Sharing,
}

impl Strategy {
    /// That of a config; `None` where it is a run of one process.
    pub(crate) fn of(plan: &Plan) -> Option<Self> {
        let distributed = plan.run.distributed.as_ref()?;
        Some(match distributed.strategy? {
            DistributedStrategy::Deepspeed => {
                Self { name: "deepspeed zero2".to_owned(), sharing: Sharing::Gradients }
            }
            DistributedStrategy::Fsdp => {
                let sharing = match distributed.fsdp_strategy {
                    FsdpStrategy::NoShard => Sharing::Nothing,
                    // The others were refused with the config.
                    FsdpStrategy::ShardGradOp
                    | FsdpStrategy::FullShard
                    | FsdpStrategy::HybridShard => Sharing::Gradients,
                };
                Self { name: format!("fsdp {}", distributed.fsdp_strategy), sharing }
            }
        })
    }
}
