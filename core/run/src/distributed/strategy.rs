//! What the words of DeepSpeed and of FSDP mean here.

use super::deepspeed::{File, Settings};
use crate::plan::Plan;
use forgelm_config::{
    Distributed, DistributedStrategy, FsdpBackwardPrefetch, FsdpStateDictType, FsdpStrategy,
};
use forgelm_model::Prefetch;
use forgelm_train::optimizer::OptimizerMemory;
use forgelm_train::session::{Sharing, share_of};

/// What the processes of a run share out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Strategy {
    /// In the words of the config, for messages and evidence.
    pub(crate) name: String,
    /// What each process has only a part of.
    pub(crate) sharing: Sharing,
    /// How they hold the frozen weights together, where each has only a part of those.
    pub(crate) holding: Option<Holding>,
    /// Whether what trains is in parts as they are: the weights themselves.
    pub(crate) numbers_are_in_parts: bool,
    /// Whether the optimizer and its state are the processor's, whatever computes.
    pub(crate) updates_on_host: bool,
    /// In the words of DeepSpeed, where the config asks for it.
    pub(crate) deepspeed: Option<Settings>,
    /// Whether every process writes its part of a checkpoint.
    pub(crate) saves_in_shards: bool,
}

/// What the files of a checkpoint of so many trained numbers take while they are written: the moments.
pub(crate) fn checkpoint_bytes(n_params: usize) -> usize {
    8 * n_params
}

/// How processes hold frozen weights together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    /// Those of one host have all of them.
    pub(crate) is_per_host: bool,
    /// When the parts of the next layer come.
    pub(crate) prefetch: Prefetch,
    /// Whether parts are in main memory, whatever computes.
    pub(crate) is_offloaded: bool,
}

impl Strategy {
    /// That of a config; `None` where it is a run of one process.
    pub(crate) fn of(plan: &Plan) -> Option<Self> {
        let distributed = plan.run.distributed.as_ref()?;
        let mut strategy = match distributed.strategy? {
            DistributedStrategy::Deepspeed => deepspeed(plan.deepspeed.clone()?),
            DistributedStrategy::Fsdp => fsdp(distributed),
        };
        // An adapter is small, and whole on every process.
        let trains_weights = plan.run.training.galore_enabled || !plan.run.lora.enabled;
        strategy.numbers_are_in_parts = strategy.holding.is_some() && trains_weights;
        Some(strategy)
    }

    /// What the optimizer takes of the memory in which a step is made, on each of so many processes;
    /// nothing where it `updates_elsewhere`.
    pub(crate) fn optimizer_memory(
        &self,
        whole: OptimizerMemory,
        n_ranks: usize,
        updates_elsewhere: bool,
    ) -> OptimizerMemory {
        let gradient_is_by_part = self.sharing == Sharing::Gradients;
        let (state_bytes, scratch_bytes) = match (updates_elsewhere, self.sharing) {
            (true, _) => (0, 0),
            (false, Sharing::Nothing) => (whole.state_bytes, whole.scratch_bytes),
            (false, Sharing::Gradients) => {
                (share_of(whole.state_bytes, n_ranks), whole.scratch_bytes)
            }
        };
        let n_owners = if self.numbers_are_in_parts { n_ranks } else { 0 };
        OptimizerMemory { state_bytes, scratch_bytes, gradient_is_by_part, n_owners, ..whole }
    }

    /// What a process takes besides, at most, while a checkpoint of so many trained numbers is written:
    /// the process that writes everything, or each for its part.
    pub(crate) fn checkpoint_bytes(&self, n_params: usize, n_ranks: usize) -> usize {
        let file = checkpoint_bytes(n_params);
        if self.sharing == Sharing::Nothing || n_ranks < 2 {
            return file;
        }
        if self.saves_in_shards {
            return share_of(file, n_ranks);
        }
        // The state comes in parts and is put together, and so are the numbers, before each is a file.
        let numbers = if self.numbers_are_in_parts { 4 * n_params } else { 0 };
        numbers + 3 * file
    }

    /// How many of so many processes of one host hold the frozen weights together.
    pub(crate) fn n_holders(&self, n_ranks: usize) -> usize {
        if self.holding.is_some() { n_ranks } else { 1 }
    }

    /// The file of DeepSpeed that says it.
    pub(super) fn deepspeed_file(&self) -> Option<&File> {
        self.deepspeed.as_ref()?.file.as_ref()
    }
}

fn deepspeed(settings: Settings) -> Strategy {
    let sharing = if settings.stage == 0 { Sharing::Nothing } else { Sharing::Gradients };
    let prefetch = match settings.overlap_comm && settings.prefetch {
        true => Prefetch::Before,
        false => Prefetch::Never,
    };
    let is_offloaded = settings.offload_param;
    let holding = Holding { is_per_host: false, prefetch, is_offloaded };
    let offload = if settings.offload_optimizer { "_offload" } else { "" };
    Strategy {
        name: format!("deepspeed zero{}{offload}", settings.stage),
        sharing,
        numbers_are_in_parts: false,
        holding: (settings.stage == 3).then_some(holding),
        updates_on_host: settings.offload_optimizer,
        deepspeed: Some(settings),
        saves_in_shards: false,
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
    let is_offloaded = distributed.fsdp_offload;
    let offload = if is_offloaded { " offload" } else { "" };
    Strategy {
        name: format!("fsdp {strategy}{offload}"),
        sharing,
        holding: is_per_host.map(|is_per_host| Holding { is_per_host, prefetch, is_offloaded }),
        numbers_are_in_parts: false,
        updates_on_host: is_offloaded,
        deepspeed: None,
        saves_in_shards: distributed.fsdp_state_dict_type == FsdpStateDictType::ShardedStateDict,
    }
}

#[cfg(test)]
mod tests {
    use super::{OptimizerMemory, Sharing, Strategy};

    #[test]
    fn what_is_shared_out_takes_a_share_and_what_is_elsewhere_nothing() {
        let strategy = |sharing| Strategy {
            name: String::new(),
            sharing,
            holding: None,
            numbers_are_in_parts: false,
            updates_on_host: false,
            deepspeed: None,
            saves_in_shards: false,
        };
        let whole =
            OptimizerMemory { state_bytes: 3200, scratch_bytes: 7, ..OptimizerMemory::default() };
        for (sharing, is_elsewhere, state_bytes, scratch_bytes) in [
            (Sharing::Nothing, false, 3200, 7),
            (Sharing::Gradients, false, 3200 / 4 + 3200 / 32, 7),
            (Sharing::Gradients, true, 0, 0),
        ] {
            let found = strategy(sharing).optimizer_memory(whole, 4, is_elsewhere);
            let gradient_is_by_part = sharing == Sharing::Gradients;
            let expected =
                OptimizerMemory { state_bytes, scratch_bytes, gradient_is_by_part, ..whole };
            assert_eq!(found, expected, "{sharing:?}");
        }
        // No more than there is.
        assert_eq!(
            strategy(Sharing::Gradients).optimizer_memory(whole, 1, false).state_bytes,
            3200
        );
    }
}
