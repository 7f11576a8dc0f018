//! Every weight trains on several processes, each of which has a part of them.

use crate::distributed::{Mpi, every_mpi, signal, workplace};
use crate::support::Workplace;

const FULL_SHARD: &str = "strategy: fsdp";
const ZERO3: &str = "strategy: deepspeed, deepspeed_config: zero3";

fn full(strategy: &str) -> Workplace {
    let workplace = workplace(strategy);
    workplace.edit_config("lora:\n", "lora:\n  enabled: false\n");
    workplace.edit_config("5e-3", "1e-3");
    workplace
}

fn model(workplace: &Workplace) -> Vec<u8> {
    std::fs::read(workplace.path("out/final_model/model.safetensors")).unwrap()
}

/// That of a run on so many processes.
fn of(mpi: &Mpi, n_ranks: usize, strategy: &str) -> Vec<u8> {
    let workplace = full(strategy);
    mpi.run(&workplace, n_ranks, &[]).expect_code(0);
    workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
    model(&workplace)
}

#[test]
fn a_model_whose_weights_are_in_parts_is_that_of_one_process() {
    let Some(mpi) = every_mpi().into_iter().next() else { return };
    let alone = full(ZERO3);
    alone.run();
    let expected = model(&alone);
    for (n_ranks, strategy) in [
        (2, ZERO3),
        (4, "strategy: fsdp, fsdp_offload: true, fsdp_backward_prefetch: backward_post"),
        (2, "strategy: fsdp, fsdp_strategy: hybrid_shard"),
        (2, "strategy: deepspeed"),
    ] {
        assert!(of(&mpi, n_ranks, strategy) == expected, "{n_ranks} ranks, {strategy}");
    }
}

#[test]
fn killed_it_goes_on_from_shards_with_any_number() {
    let Some(mpi) = every_mpi().into_iter().next() else { return };
    let expected = of(&mpi, 2, FULL_SHARD);
    let sharded = "strategy: fsdp, fsdp_state_dict_type: SHARDED_STATE_DICT";
    let workplace = full(sharded);
    let mut job = mpi.start(&workplace, 4, &["run.yaml"], &[]);
    crate::resume::wait_for(&workplace.path("out/checkpoint-4"), &mut job);
    signal(&workplace, 2, "-KILL");
    let ended = crate::distributed::ended(&workplace, job);
    assert_ne!(ended.code, 0, "{}", ended.stderr);
    mpi.run(&workplace, 2, &["--resume"]).expect_code(0).expect_stderr("continuing from");
    assert!(model(&workplace) == expected);
}

/// GaLore trains some of the weights, and the others are frozen.
#[test]
fn weights_that_galore_trains_are_in_parts() {
    let Some(mpi) = every_mpi().into_iter().next() else { return };
    let galore = |strategy: &str| {
        let workplace = workplace(strategy);
        let keys = "training:\n  galore_enabled: true\n  galore_rank: 8\n";
        workplace.edit_config("training:\n", keys);
        workplace
    };
    let trained = |workplace: Workplace, n_ranks: usize| {
        match n_ranks {
            1 => workplace.run(),
            _ => mpi.run(&workplace, n_ranks, &[]).expect_code(0),
        };
        model(&workplace)
    };
    let expected = trained(galore("strategy: deepspeed"), 1);
    for strategy in [ZERO3, "strategy: deepspeed"] {
        assert!(trained(galore(strategy), 2) == expected, "{strategy}");
    }
}
