//! `distributed:` one run on several processes and machines.

use super::text_rule::NOT_BLANK;
use crate::declare::{choice, section};

section! {
    /// One run on several processes and machines, which a launcher starts.
    Distributed {
        /// How state is shared out. Null: one process.
        strategy: Option<DistributedStrategy> = None;
        /// The collective that carries numbers between the processes.
        engine: String = "mpi".to_owned(), ours(), text(NOT_BLANK);
        /// Seconds that a process may give no sign before the others end the run.
        timeout_seconds: u64 = 600, ours(), min(1.0), max(1_000_000.0);
        /// `zero2`, `zero3`, `zero3_offload`, or a JSON file of DeepSpeed. Null: `zero2`.
        deepspeed_config: Option<String> = None, text(NOT_BLANK);
        /// What FSDP shards.
        fsdp_strategy: FsdpStrategy = FsdpStrategy::FullShard;
        /// Shards each layer as a unit.
        fsdp_auto_wrap: bool = true;
        /// Keeps shards in main memory.
        fsdp_offload: bool = false;
        /// When the next layer is gathered in the backward pass.
        fsdp_backward_prefetch: FsdpBackwardPrefetch = FsdpBackwardPrefetch::BackwardPre;
        /// How checkpoints are written.
        fsdp_state_dict_type: FsdpStateDictType = FsdpStateDictType::FullStateDict;
    }
}

choice! {
    /// How state is shared out.
    DistributedStrategy {
        /// The stages of ZeRO.
        Deepspeed = "deepspeed",
        /// Fully sharded data parallel.
        Fsdp = "fsdp",
    }
}

choice! {
    /// What FSDP shards.
    FsdpStrategy {
        /// Parameters, gradients and optimizer state.
        FullShard = "full_shard",
        /// Gradients and optimizer state.
        ShardGradOp = "shard_grad_op",
        /// Nothing.
        NoShard = "no_shard",
        /// Everything within a node, nothing between nodes.
        HybridShard = "hybrid_shard",
    }
}

choice! {
    /// When the next layer is gathered in the backward pass.
    FsdpBackwardPrefetch {
        /// Before this layer's gradients.
        BackwardPre = "backward_pre",
        /// After them.
        BackwardPost = "backward_post",
    }
}

choice! {
    /// How checkpoints are written.
    FsdpStateDictType {
        /// Whole, by one process.
        FullStateDict = "FULL_STATE_DICT",
        /// In shards, each by the process that has it.
        ShardedStateDict = "SHARDED_STATE_DICT",
    }
}
