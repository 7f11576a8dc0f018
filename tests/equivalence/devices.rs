//! Processes with a device each, which are linked by a stand-in for NCCL: the bits of one device, and
//! numbers that do not go through hosts.

#[path = "../../kernels/cuda/tests/support/opened.rs"]
pub mod opened;

use crate::ranks::Shared;
use crate::tiny::{Objective, Run, of_answers, optimizer, plan_settings, sft, tiny_decoder_on};
use forgelm_collective::{CollectiveError, Group, Settings, threads};
use forgelm_data::PlanSettings;
use forgelm_kernels_api::{DeviceLink, Ops};
use forgelm_kernels_cuda::{Cuda, Device};
use forgelm_kernels_emulator::{self as emulator, Nccl, NcclFault};
use forgelm_model::{Holders, Keep};
use forgelm_train::optimizer::{Kind, OptimizerSettings};
use forgelm_train::session::{Linked, StepError, Team, dismiss, link_devices};
use forgelm_train::state::{Identity, State};
use std::sync::Arc;
use std::time::Duration;

const N_STEPS: usize = 2;

#[derive(Clone)]
struct Job<'a> {
    objective: Objective<'a>,
    plan: PlanSettings,
    optimizer: OptimizerSettings,
    shared: Shared,
}

/// What a run leaves on a process.
struct Left {
    ended: Result<(), StepError>,
    params: Vec<f32>,
    /// Of the leader: of all that trains.
    optimizer: Vec<u8>,
    /// Of the leader: bytes to other processes.
    n_sent: u64,
}

/// Holders whose devices carry the parts between them, where these can be linked.
pub fn with_link(holders: Option<Holders>, ops: &dyn Ops, is_linked: bool) -> Option<Holders> {
    let mut holders = holders?;
    if is_linked {
        let deadline = Duration::from_secs(10);
        let linked = link_devices(&holders.members, Some(ops), "here", deadline);
        holders.link = linked.expect("they tell each other").link().cloned();
    }
    Some(holders)
}

/// A run of a process, on its device.
fn on_rank(job: &Job<'_>, thread: threads::Thread, device: &Arc<Device>, is_linked: bool) -> Left {
    let settings = Settings::with_deadline(Duration::from_secs(10));
    let group = Group::open(move || Ok(Box::new(thread)), settings).expect("it opens");
    let ops: Arc<dyn Ops> = Arc::new(Cuda::new(Arc::clone(device), 1));
    let linked = match is_linked {
        true => link_devices(&group.members(), Some(ops.as_ref()), "here", Duration::from_secs(10)),
        false => Ok(Linked::Not),
    };
    let linked = linked.expect("they tell each other");
    let link: Option<&Arc<dyn DeviceLink>> = linked.link();
    assert_eq!(link.is_some(), is_linked && group.n_ranks() > 1, "{linked:?}");
    let holders = with_link(job.shared.holders(&group), ops.as_ref(), is_linked);
    let decoder = tiny_decoder_on(ops, holders);
    let adapter = Run::new(&decoder, job.plan.clone(), 0.2).session.adapter().clone();
    let optimizer = optimizer(&adapter, job.optimizer.clone());
    let parts = (adapter, optimizer, State::new(30, Identity::default()));
    let team = Team { group: &group, sharing: job.shared.sharing(), updates_on: None, link };
    let more = (None, Keep::Everything);
    let mut run =
        Run::with_team(&decoder, job.plan.clone(), job.objective, parts, more, Some(team));
    let before = group.n_bytes_sent();
    let (mut optimizer, mut n_sent) = (Vec::new(), 0);
    let ended = if group.is_leader() {
        (0..N_STEPS).try_for_each(|_| run.session.step().map(drop)).inspect(|()| {
            n_sent = group.n_bytes_sent() - before;
            optimizer = run.session.optimizer().expect("collected").state_bytes();
            dismiss(&group, 0).expect("they listen");
        })
    } else {
        run.session.follow().map(drop)
    };
    let params = run.session.adapter().params().to_vec();
    drop(run);
    if ended.is_ok() {
        group.end().expect("together");
    }
    Left { ended, params, optimizer, n_sent }
}

/// A run of a process for each device, by rank.
fn on_ranks(job: &Job<'_>, devices: &[Arc<Device>], is_linked: bool) -> Vec<Left> {
    let ranks = threads::ranks(devices.len()).into_iter().zip(devices);
    std::thread::scope(|scope| {
        let start = |(thread, device)| scope.spawn(move || on_rank(job, thread, device, is_linked));
        let handles: Vec<_> = ranks.map(start).collect();
        handles.into_iter().map(|handle| handle.join().expect("no panic")).collect()
    })
}

/// Steps of four micro-batches, and of three: there are rounds in which some processes have none.
fn jobs() -> Vec<Job<'static>> {
    let (_, dpo) = of_answers().remove(0);
    let job = |objective, accumulation, optimizer, shared| Job {
        objective,
        plan: plan_settings(2, accumulation),
        optimizer,
        shared,
    };
    let adamw = || OptimizerSettings::adamw(0.01);
    vec![
        job(sft(), 4, adamw(), Shared::Nothing),
        job(sft(), 4, adamw(), Shared::Gradients),
        job(dpo, 3, adamw(), Shared::Gradients),
        job(sft(), 3, OptimizerSettings::new(Kind::Adafactor, 0.01), Shared::Nothing),
        job(sft(), 4, OptimizerSettings::new(Kind::Adafactor, 0.01), Shared::Parameters),
        job(sft(), 4, adamw(), Shared::ParametersOfPairs),
    ]
}

#[test]
fn linked_devices_give_the_bits_of_one_and_send_what_hosts_would() {
    let Some((_alone, devices)) = opened::emulated_devices::<4>() else { return };
    emulator::set_nccl(&Nccl::default());
    for (i, job) in jobs().into_iter().enumerate() {
        let alone = on_ranks(&job, &devices[..1], false).remove(0);
        for n_ranks in if matches!(i, 1 | 5) { vec![2, 4] } else { vec![2] } {
            let case = format!("job {i} on {n_ranks} ranks");
            emulator::reset_counters();
            let hosts = on_ranks(&job, &devices[..n_ranks], false);
            let through_hosts = emulator::counters();
            emulator::reset_counters();
            let linked = on_ranks(&job, &devices[..n_ranks], true);
            let counters = emulator::counters();
            for left in hosts.iter().chain(&linked) {
                assert!(left.ended.is_ok(), "{case}: {:?}", left.ended);
                assert!(left.params == alone.params, "{case}");
            }
            for leader in [&hosts[0], &linked[0]] {
                assert!(leader.optimizer == alone.optimizer, "{case}");
            }
            assert_eq!(linked[0].n_sent, hosts[0].n_sent, "{case}");
            assert_eq!(through_hosts.nccl_bytes, 0, "{case}");
            // Most of what there is to send, and none of it through a host.
            assert!(counters.nccl_bytes > 4 * alone.params.len() as u64, "{case}");
            let to_host = through_hosts.bytes_to_host - counters.bytes_to_host;
            // Parts of the weights would lie on hosts, and go to the devices only.
            let less = match job.shared {
                Shared::Nothing | Shared::Gradients => to_host,
                Shared::Parameters | Shared::ParametersOfPairs => {
                    to_host + through_hosts.bytes_to_device - counters.bytes_to_device
                }
            };
            assert!(less >= counters.nccl_bytes / n_ranks as u64, "{case}: {less}");
        }
    }
}

#[test]
fn an_exchange_of_devices_that_fails_ends_the_step_on_every_rank() {
    let Some((_alone, devices)) = opened::emulated_devices::<2>() else { return };
    let job = jobs().remove(1);
    emulator::set_nccl(&Nccl { fault: NcclFault::OperationFails, ..Nccl::default() });
    let left = on_ranks(&job, &devices, true);
    emulator::set_nccl(&Nccl::default());
    for (rank, left) in left.into_iter().enumerate() {
        let Err(StepError::Collective(CollectiveError::Failed { source, .. })) = left.ended else {
            panic!("{:?}", left.ended);
        };
        let expected = format!("`all_to_all` of devices on rank {rank} of 2 failed: ");
        assert!(source.message.starts_with(&expected), "{}", source.message);
    }
}

/// The test of the bits can fail.
#[test]
fn a_bit_that_is_another_on_its_way_is_seen() {
    let Some((_alone, devices)) = opened::emulated_devices::<2>() else { return };
    let job = jobs().remove(1);
    let of_leader = |fault| {
        emulator::set_nccl(&Nccl { fault, ..Nccl::default() });
        on_ranks(&job, &devices, true).remove(0).params
    };
    assert!(of_leader(NcclFault::WrongByte) != of_leader(NcclFault::None));
}
