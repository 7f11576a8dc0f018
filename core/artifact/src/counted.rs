//! The bytes of a tensor, written by whoever has them, must be as many as its header says.

use std::io::{self, Write};

/// Lets `fill` write one tensor.
///
/// # Errors
/// If writing fails.
///
/// # Panics
/// If it writes another number of bytes: a bug in the caller.
pub(crate) fn write_counted(
    w: &mut dyn Write,
    (name, n_bytes): (&str, usize),
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut counted = Counted { w, n_bytes: 0 };
    fill(&mut counted)?;
    assert_eq!(counted.n_bytes, n_bytes, "{name}: bytes missing");
    Ok(())
}

/// Counts what passes through.
struct Counted<'a> {
    w: &'a mut dyn Write,
    n_bytes: usize,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.w.write(bytes)?;
        self.n_bytes += n;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.w.flush()
    }
}
