//! `distributed:` training on several devices.

use super::text_rule::NOT_BLANK;
use crate::declare::{choice, section};

section! {
    /// Training on several devices.
    Distributed {
        /// How state is shared out. Null: one device.
        strategy: Option<DistributedStrategy> = None, later("distributed training");
        /// `zero2`, `zero3`, `zero3_offload`, or a JSON file. Null: `zero2`.
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
        /// Whole.
        FullStateDict = "FULL_STATE_DICT",
        /// In shards.
        ShardedStateDict = "SHARDED_STATE_DICT",
    }
}
