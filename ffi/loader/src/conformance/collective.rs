//! What one process can find out about a collective without a launcher: that it is well described.
//!
//! It is never joined here. A check runs in a process of its own, and joining is done in the process
//! that trains, once, with others that a launcher started.

use super::{Finding, Outcome, Tried};
use forgelm_plugin::{Collectives, Plugin};

pub(super) fn check(plugin: &Plugin<Collectives>, found: &mut Vec<Finding>) {
    let mut tried = Tried { plugin, found };
    tried.note("is well described", Outcome::Holds);
    let why = "it joins the processes that a launcher started, which a check is none of";
    tried.note("carries bytes", Outcome::Untried(why.to_owned()));
}
