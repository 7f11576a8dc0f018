//! One run on several processes: how they find each other, and that they run the same.
//!
//! The process of rank 0 leads: it alone writes, but for the shards of checkpoints, and everything
//! that it decides reaches the others as a command. The others are in [`follow`] from beginning to end.

pub(crate) mod deepspeed;
mod follow;
mod launcher;
mod strategy;

pub use follow::follow;
pub use launcher::{is_first, refuse_many};

use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::exit::Exit;
use crate::plan::Plan;
use crate::plugins::{Plugins, Used};
use deepspeed::Settings;
use forgelm_collective::{self as collective, CollectiveError, Group, Members};
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_kernels_api::Ops;
use forgelm_model::{Decoder, Holders, Trainable};
use forgelm_train::optimizer::{Optimizer, OptimizerMemory};
use forgelm_train::session::{self, Linked, Team, dismiss, holders, link_devices};
use forgelm_train::state::Identity;
use launcher::launched;
pub(crate) use launcher::local_rank;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use strategy::Holding;
pub(crate) use strategy::{Strategy, checkpoint_bytes};

/// The processes of a run.
pub struct Processes {
    group: Group,
    strategy: Strategy,
    /// Those that hold the frozen weights together, where each has a part of them.
    holders: Option<Holders>,
    /// The processor's kernels, where the update is theirs and everything else a device's.
    updates_on: Option<Arc<dyn Ops>>,
    /// How the numbers of devices go from process to process.
    linked: Linked,
    /// What joined them; none where this process is alone.
    collective: Option<Used>,
}

/// What the leader tells the others before there is a session, which has commands of its own.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Said {
    /// What a run begins with.
    Start { template_now: i64, from: Option<PathBuf> },
    /// All that decides the bits of the run is there, to be compared.
    Compare,
    /// What all processes read is there.
    Ready,
    /// The leader runs passes alone: the command of a session's processes.
    Accompany,
    /// There is nothing to do: the command that lets a session's processes go.
    End { exit_code: i32 },
}

/// What must be the same on all processes, and where each is.
#[derive(Debug, Serialize, Deserialize)]
struct Member {
    host: String,
    program: String,
    config_hash: String,
    identity: Identity,
    /// Name and digest of each library that takes part.
    plugins: Vec<String>,
    /// Digest of DeepSpeed's file, where there is one.
    deepspeed_config: Option<String>,
}

/// How one process differs from the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Different {
    /// Its rank.
    pub rank: usize,
    /// Its host.
    pub host: String,
    /// In what.
    pub differences: Vec<String>,
}

impl std::fmt::Debug for Processes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Processes").field("team", &self.team()).finish_non_exhaustive()
    }
}

impl Processes {
    /// Joins the processes that a launcher started; without one, this process alone. `None` where the
    /// config asks for one process.
    ///
    /// # Errors
    /// If they do not find each other, or a launcher started several processes of a run of one.
    pub fn join(
        plan: &Plan,
        plugins: &mut Plugins,
        env: &Environment,
    ) -> Result<Option<Self>, RunError> {
        let Some(strategy) = Strategy::of(plan) else {
            refuse_many(env, "`distributed.strategy` is not set")?;
            return Ok(None);
        };
        let Some(distributed) = &plan.run.distributed else { return Ok(None) };
        if launched(env).is_none() {
            return Self::alone(plan, plugins);
        }
        let plugin = plugins.collective(&distributed.engine, plan, env)?;
        let (build, used) = (Arc::clone(&plugin.build), Used::of(plugin, &[]));
        let settings =
            collective::Settings::with_deadline(Duration::from_secs(distributed.timeout_seconds));
        let group = Group::open(move || build(&[]), settings)?;
        let mut holders = hold_together(&group, &strategy, env)?;
        let link = |members: &Members| link(members, &strategy, plugins, env, settings.deadline);
        let linked = link(&group.members())?;
        if let (Some(holders), Some(of_all)) = (&mut holders, linked.link())
            && strategy.holding.is_some_and(|holding| !holding.is_offloaded)
        {
            holders.link = match holders.members.n_ranks() == group.n_ranks() {
                true => Some(Arc::clone(of_all)),
                false => link(&holders.members)?.link().cloned(),
            };
        }
        if group.is_leader() {
            group.told();
        }
        let updates_on = updates_on(&strategy, plugins)?;
        let collective = Some(used);
        Ok(Some(Self { group, strategy, holders, updates_on, linked, collective }))
    }

    /// This process alone, where the config asks for several.
    pub(crate) fn alone(plan: &Plan, plugins: &Plugins) -> Result<Option<Self>, RunError> {
        let Some(strategy) = Strategy::of(plan) else { return Ok(None) };
        let (group, updates_on) = (Group::alone()?, updates_on(&strategy, plugins)?);
        let linked = Linked::Not;
        Ok(Some(Self { group, strategy, holders: None, updates_on, linked, collective: None }))
    }

    /// Whether this process leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.group.is_leader()
    }

    /// For a session.
    pub(crate) fn team(&self) -> Team<'_> {
        let sharing = self.strategy.sharing;
        let (updates_on, link) = (self.updates_on.as_ref(), self.linked.link());
        Team { group: &self.group, sharing, updates_on, link }
    }

    /// Leaves this process its part of what trains, where the weights are in parts and train.
    pub(crate) fn share_out(&self, adapter: &mut Trainable, optimizer: &Optimizer) {
        if self.holders.is_some() && self.strategy.numbers_are_in_parts {
            session::share_out(adapter, optimizer, &self.group);
        }
    }

    /// Whether every process writes its part of a checkpoint.
    pub(crate) fn saves_in_shards(&self) -> bool {
        self.strategy.saves_in_shards
    }

    /// What the optimizer takes of the memory in which a step is made.
    pub(crate) fn optimizer_memory(&self, whole: OptimizerMemory) -> OptimizerMemory {
        self.strategy.optimizer_memory(whole, self.n_ranks(), self.updates_on.is_some())
    }

    /// For a model of which each process has a part.
    pub(crate) fn holders(&self) -> Option<Holders> {
        self.holders.clone()
    }

    /// Whether parts of the model are in the memory of hosts, whatever computes.
    pub(crate) fn parts_are_on_hosts(&self) -> bool {
        self.holders.as_ref().is_some_and(|holders| holders.link.is_none())
    }

    /// How many they are.
    pub(crate) fn n_ranks(&self) -> usize {
        self.group.n_ranks()
    }

    /// How many hold the model together with this one, which is among them.
    pub(crate) fn n_holders(&self) -> usize {
        self.holders.as_ref().map_or(1, |holders| holders.members.n_ranks())
    }

    fn tell(&self, said: &Said) -> Result<(), CollectiveError> {
        self.group.tell_value(said)
    }

    /// Of the others: waits for this word, and meanwhile accompanies the leader's passes over the model;
    /// the exit code of the run where it ends instead.
    fn expect(&self, expected: &Said, decoder: &Decoder) -> Result<Option<Exit>, CollectiveError> {
        loop {
            match self.group.listen_for()? {
                Said::End { exit_code } => return Ok(Some(Exit::of_code(exit_code))),
                Said::Accompany => decoder.accompany()?,
                said if said == *expected => return Ok(None),
                other => return Err(self.nonsense(&other)),
            }
        }
    }

    fn nonsense(&self, said: &Said) -> CollectiveError {
        CollectiveError::Nonsense { rank: self.group.rank(), what: format!("{said:?}") }
    }

    /// Of the leader: a run begins.
    pub(crate) fn start(
        &self,
        template_now: i64,
        from: Option<PathBuf>,
        observer: &mut dyn Observer,
    ) -> Result<(), RunError> {
        let n_ranks = self.group.n_ranks();
        if n_ranks == 1 {
            let text = format!(
                "`distributed.strategy` is set and this is the only process: `{}` shares out nothing; \
                 start the run with `mpirun -np N` or the like",
                self.strategy.name
            );
            observer.observe(&Event::Warning(text));
        } else if !self.team().is_comparable() {
            let text = format!(
                "{n_ranks} processes add up in an order of their own: a run of 1, 2, 4 or 8 gives \
                 other bits"
            );
            observer.observe(&Event::Warning(text));
        }
        match &self.linked {
            Linked::Not => {}
            Linked::ThroughHosts(why) => observer.observe(&Event::Notice(format!(
                "the numbers of devices go through the memory of the hosts: {why}"
            ))),
            Linked::Devices { library, .. } => observer.observe(&Event::Notice(format!(
                "{library} carries numbers from device to device"
            ))),
        }
        Ok(self.tell(&Said::Start { template_now, from })?)
    }

    /// Of the leader: what the others read is there.
    pub(crate) fn ready(&self, decoder: &Decoder) -> Result<(), RunError> {
        decoder.let_go()?;
        self.tell(&Said::Ready)?;
        // Who cannot read what this process has made runs the model for it.
        decoder.accompany()?;
        self.group.told();
        Ok(())
    }

    /// Of the leader: compares everything that decides the bits of a run, and whether there is work for
    /// all; what the evidence says of the processes.
    pub(crate) fn compare(
        &self,
        identity: &Identity,
        used: &[Used],
        n_leaves: usize,
        env: &Environment,
    ) -> Result<Agreed, RunError> {
        self.tell(&Said::Compare)?;
        let agreed = self.agree(identity, used, env);
        self.group.told();
        self.team().check(n_leaves)?;
        agreed
    }

    fn agree(
        &self,
        identity: &Identity,
        used: &[Used],
        env: &Environment,
    ) -> Result<Agreed, RunError> {
        let plugins = used.iter().chain(&self.collective).map(Used::digest);
        let own = Member {
            host: env.host.clone(),
            program: crate::dossier::VERSION.to_owned(),
            config_hash: identity.config_hash.clone(),
            identity: Identity { kernels: of_any_ordinal(&identity.kernels), ..identity.clone() },
            plugins: plugins.collect(),
            deepspeed_config: self.strategy.deepspeed_file().map(|file| file.sha256.clone()),
        };
        let members = self.group.all_gather_values(&own)?;
        let different: Vec<Different> = members
            .iter()
            .enumerate()
            .map(|(rank, of)| Different {
                rank,
                host: of.host.clone(),
                differences: of.differences(&members[0]),
            })
            .filter(|of| !of.differences.is_empty())
            .collect();
        if !different.is_empty() {
            return Err(RunError::RanksDiffer(different));
        }
        Ok(Agreed {
            strategy: self.strategy.clone(),
            library: self.group.library().to_owned(),
            device_link: self.linked.library().map(str::to_owned),
            collective: self.collective.clone(),
            hosts: members.into_iter().map(|of| of.host).collect(),
            is_comparable: self.team().is_comparable(),
        })
    }

    /// Lets the other processes go with the exit code of this one, and leaves.
    ///
    /// # Errors
    /// If they do not come to their end.
    pub fn dismiss(self, exit: Exit) -> Result<(), RunError> {
        dismiss(&self.group, i32::from(exit.code()))?;
        Ok(self.group.end()?)
    }

    /// Leaves after the leader has let this process go.
    ///
    /// # Errors
    /// If the others do not come to their end.
    pub fn leave(self) -> Result<(), RunError> {
        Ok(self.group.end()?)
    }

    /// Ends every process at once, after something that leaves no way on.
    pub fn abort(&self, exit: Exit) {
        if self.group.n_ranks() > 1 {
            self.group.abort(i32::from(exit.code()));
        }
    }
}

/// The kernels of the processor, where they are asked to make the update for a device.
fn updates_on(strategy: &Strategy, plugins: &Plugins) -> Result<Option<Arc<dyn Ops>>, RunError> {
    if !strategy.updates_on_host || plugins.kernels()?.free_memory().is_none() {
        return Ok(None);
    }
    Ok(Some(plugins.host_kernels()))
}

/// Links the devices of these processes, where the update is theirs.
fn link(
    members: &Members,
    strategy: &Strategy,
    plugins: &Plugins,
    env: &Environment,
    deadline: Duration,
) -> Result<Linked, CollectiveError> {
    // Kernels that cannot be had are told where they are needed: the others must not wait here.
    let kernels = plugins.kernels().ok().filter(|_| !strategy.updates_on_host);
    link_devices(members, kernels.as_deref(), &env.host, deadline)
}

/// The name of kernels without the number that their device has on its host.
fn of_any_ordinal(kernels: &str) -> String {
    match kernels.strip_prefix("cuda:").and_then(|of| of.split_once('/')) {
        Some((_, device)) => format!("cuda/{device}"),
        None => kernels.to_owned(),
    }
}

/// The processes that hold the frozen weights together with this one.
fn hold_together(
    group: &Group,
    strategy: &Strategy,
    env: &Environment,
) -> Result<Option<Holders>, CollectiveError> {
    let Some(Holding { is_per_host, prefetch, .. }) = strategy.holding else { return Ok(None) };
    let hosts = group.all_gather_values(&env.host)?;
    let first = hosts.iter().position(|host| *host == env.host);
    let host = first.and_then(|rank| u32::try_from(rank).ok()).filter(|_| is_per_host);
    let holders = holders(group, host, prefetch)?;
    Ok(Some(holders).filter(|holders| holders.everyone.n_ranks() > 1))
}

impl Member {
    fn differences(&self, leader: &Self) -> Vec<String> {
        let mut differences = leader.identity.differences_as(&self.identity, ("on rank 0", "here"));
        let pairs = [
            ("program", &leader.program, &self.program),
            ("config", &leader.config_hash, &self.config_hash),
        ];
        let plugins = (leader.plugins.join(", "), self.plugins.join(", "));
        let file = |of: &Self| of.deepspeed_config.clone().unwrap_or_else(|| "none".to_owned());
        let files = (file(leader), file(self));
        let more =
            [("plugins", &plugins.0, &plugins.1), ("`deepspeed_config`", &files.0, &files.1)];
        let pairs = pairs.into_iter().chain(more);
        let told = |(what, there, here): (&str, &String, &String)| {
            (there != here).then(|| format!("{what}: {there} on rank 0, {here} here"))
        };
        differences.extend(pairs.filter_map(told));
        differences
    }
}

/// What the evidence says of the processes of a run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Agreed {
    strategy: Strategy,
    /// What carries the bytes, as it says itself.
    library: String,
    /// What carries numbers from device to device, with its version.
    device_link: Option<String>,
    /// The plugin through which it does; none where one process is alone.
    collective: Option<Used>,
    /// Of each rank.
    hosts: Vec<String>,
    is_comparable: bool,
}

impl Agreed {
    /// The host of a process.
    pub(crate) fn host(&self, rank: usize) -> &str {
        self.hosts.get(rank).map_or("", String::as_str)
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "strategy": self.strategy.name,
            "deepspeed_config": self.strategy.deepspeed.as_ref().map(Settings::file_json),
            "collective": self.library,
            "device_link": self.device_link,
            "library": self.collective.as_ref().map(Used::to_json),
            "ranks": self.hosts.len(),
            "hosts": self.hosts,
            "comparable": self.is_comparable,
        })
    }

    pub(crate) fn audit_event(&self) -> AuditEvent {
        AuditEvent::TrainingDistributed {
            strategy: self.strategy.name.clone(),
            collective: self.library.clone(),
            device_link: self.device_link.clone(),
            library: self.collective.as_ref().map(|used| used.origin().library.clone()),
            library_sha256: self.collective.as_ref().map(|used| used.origin().sha256.clone()),
            hosts: self.hosts.clone(),
            comparable: self.is_comparable,
        }
    }
}
