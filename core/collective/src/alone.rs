//! One process: everything that is sent comes back.

use forgelm_sdk::Failed;
use forgelm_sdk::collective::Collective;
use std::time::Duration;

/// The collective of a run of one process.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn library(&self) -> String {
        "none".to_owned()
    }

    fn all_to_all(
        &mut self,
        sent: &[u8],
        _: &[usize],
        received: &mut [u8],
        _: &[usize],
        _: Duration,
    ) -> Result<(), Failed> {
        received.copy_from_slice(sent);
        Ok(())
    }

    fn all_gather(
        &mut self,
        own: &[u8],
        all: &mut [u8],
        _: &[usize],
        _: Duration,
    ) -> Result<(), Failed> {
        all.copy_from_slice(own);
        Ok(())
    }

    fn broadcast(&mut self, _: &mut [u8], _: usize, _: Duration) -> Result<(), Failed> {
        Ok(())
    }

    fn barrier(&mut self, _: Duration) -> Result<(), Failed> {
        Ok(())
    }

    fn split(&mut self, _: u32, _: Duration) -> Result<Box<dyn Collective>, Failed> {
        Ok(Box::new(Self))
    }

    fn abort(&mut self, _: i32) {}
}
