//! A collective carries bytes between the processes of one run.
//!
//! It knows bytes and ranks, no numbers: sums are made by the host in an order of its own, so that
//! no library decides a bit. Every process calls the same functions in the same order, all from one
//! thread, the one on which the collective was built. Start reading at [`Collective`].

use crate::Failed;
use crate::options::{OptionValue, OptionsError};
use std::time::Duration;

/// One process among the p of a run, counted from 0.
///
/// A function that waits for others longer than its deadline fails, and says in its message which
/// ranks gave no sign. After a failure the only call that is left is [`Collective::abort`], and
/// dropping it waits for nobody.
pub trait Collective {
    /// This process among them, below p.
    fn rank(&self) -> usize;

    /// p.
    fn size(&self) -> usize;

    /// The library that carries the bytes, with its version.
    fn library(&self) -> String;

    /// Each process gives each other one a part of its own.
    ///
    /// Shapes: `sent` read, for each rank in turn as many bytes as `sent_bytes` [p] says; `received`
    /// written, from each rank in turn as many as `received_bytes` [p] says, which is what that rank
    /// sends to this one.
    ///
    /// # Errors
    /// If a rank gives no sign before the deadline, or the library fails.
    fn all_to_all(
        &mut self,
        sent: &[u8],
        sent_bytes: &[usize],
        received: &mut [u8],
        received_bytes: &[usize],
        deadline: Duration,
    ) -> Result<(), Failed>;

    /// Every process gets what each one gives.
    ///
    /// Shapes: `own` read; `all` written, of each rank in turn as many bytes as `n_bytes` [p] says,
    /// the same on every rank.
    ///
    /// # Errors
    /// As [`Collective::all_to_all`].
    fn all_gather(
        &mut self,
        own: &[u8],
        all: &mut [u8],
        n_bytes: &[usize],
        deadline: Duration,
    ) -> Result<(), Failed>;

    /// Every process gets what one of them has.
    ///
    /// Shapes: `bytes` read on the rank `root`, written on the others, of one length.
    ///
    /// # Errors
    /// As [`Collective::all_to_all`].
    fn broadcast(
        &mut self,
        bytes: &mut [u8],
        root: usize,
        deadline: Duration,
    ) -> Result<(), Failed>;

    /// Waits until every process has come here.
    ///
    /// # Errors
    /// As [`Collective::all_to_all`].
    fn barrier(&mut self, deadline: Duration) -> Result<(), Failed>;

    /// The processes that give the same color, as a collective of their own, in the order of their
    /// ranks here.
    ///
    /// # Errors
    /// As [`Collective::all_to_all`].
    fn split(&mut self, color: u32, deadline: Duration) -> Result<Box<dyn Collective>, Failed>;

    /// Asks the library to end every process of the run with this exit code. It may return, where the
    /// library cannot: the caller ends its own process then.
    fn abort(&mut self, exit_code: i32);
}

/// The entry of one collective in its library's list.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Its name in a config.
    pub name: &'static str,
    /// One line for a person.
    pub summary: &'static str,
    /// Where it was published.
    pub source: &'static str,
    /// Joins the processes that a launcher started.
    pub build: Build,
}

/// Joins the processes that a launcher started: waits for all of them.
pub type Build = fn(options: &[(&str, OptionValue)]) -> Result<Box<dyn Collective>, OptionsError>;
