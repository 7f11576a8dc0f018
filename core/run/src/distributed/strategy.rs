//! What the words of DeepSpeed and of FSDP mean here.

use crate::plan::Plan;
use forgelm_config::{Distributed, DistributedStrategy, FsdpBackwardPrefetch, FsdpStrategy};
use forgelm_model::Prefetch;
use forgelm_train::session::Sharing;

/// What the processes of a run share out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Strategy {
    /// In the words of the config, for messages and evidence.
    pub(crate) name: String,
    /// What each process has only a part of.
    pub(crate) sharing: Sharing,
    /// How they hold the frozen weights together, where each has only a part of those.
    pub(crate) holding: Option<Holding>,
    /// Whether the optimizer and its state are the processor's, whatever computes.
    pub(crate) updates_on_host: bool,
}

/// How processes hold frozen weights together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    /// Those of one host have all of them.
    pub(crate) is_per_host: bool,
    /// When the parts of the next layer come.
    pub(crate) prefetch: Prefetch,
}

impl Strategy {
    /// That of a config; `None` where it is a run of one process.
    pub(crate) fn of(plan: &Plan) -> Option<Self> {
        let distributed = plan.run.distributed.as_ref()?;
        Some(match distributed.strategy? {
            DistributedStrategy::Deepspeed => deepspeed(distributed),
            DistributedStrategy::Fsdp => fsdp(distributed),
        })
    }
}

fn deepspeed(distributed: &Distributed) -> Strategy {
    let preset = distributed.deepspeed_config.as_deref().unwrap_or("zero2");
    let holding = Holding { is_per_host: false, prefetch: Prefetch::Before };
    Strategy {
        name: format!("deepspeed {preset}"),
        sharing: Sharing::Gradients,
        holding: (preset != "zero2").then_some(holding),
        updates_on_host: preset == "zero3_offload",
    }
}

fn fsdp(distributed: &Distributed) -> Strategy {
    let strategy = distributed.fsdp_strategy;
    let (sharing, is_per_host) = match strategy {
        FsdpStrategy::NoShard => (Sharing::Nothing, None),
        FsdpStrategy::ShardGradOp => (Sharing::Gradients, None),
        FsdpStrategy::FullShard => (Sharing::Gradients, Some(false)),
        FsdpStrategy::HybridShard => (Sharing::Gradients, Some(true)),
    };
    let prefetch = match distributed.fsdp_backward_prefetch {
        FsdpBackwardPrefetch::BackwardPre => Prefetch::Before,
        FsdpBackwardPrefetch::BackwardPost => Prefetch::AfterInBackward,
    };
    let offload = if distributed.fsdp_offload { " offload" } else { "" };
    Strategy {
        name: format!("fsdp {strategy}{offload}"),
        sharing,
        holding: is_per_host.map(|is_per_host| Holding { is_per_host, prefetch }),
        updates_on_host: distributed.fsdp_offload,
    }
}
