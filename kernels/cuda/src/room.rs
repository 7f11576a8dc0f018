//! Memory of a call that serves one piece of its work after the other.

use forgelm_kernels_api::Format;

use crate::call::{Call, Numbers};

/// What was asked for last; everything of a call runs in order, so that it may be overwritten.
#[derive(Debug, Default)]
pub(crate) struct Room(Option<Numbers>);

impl Room {
    /// Memory for numbers, until the next are asked for.
    pub(crate) fn take(&mut self, call: &Call<'_>, format: Format, len: usize) -> Numbers {
        let room = self.0.filter(|room| room.format == format && room.len >= len);
        let room = room.unwrap_or_else(|| call.scratch(format, len));
        self.0 = Some(room);
        room.part(0, len)
    }
}
