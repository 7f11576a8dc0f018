//! What only the program at a terminal asks the system for: color, and signals.

use forgelm_world::variable;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

/// Whether results may be colored: standard output is a terminal, and `NO_COLOR` is not set.
#[must_use]
pub fn stdout_has_color() -> bool {
    std::io::stdout().is_terminal() && variable("NO_COLOR").is_none()
}

/// The number of the last signal that asked this program to end, 0 once it was seen to.
///
/// # Errors
/// If the operating system refuses a handler.
pub fn last_signal() -> std::io::Result<Arc<AtomicUsize>> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let last = Arc::new(AtomicUsize::new(0));
    for (signal, number) in [(SIGINT, 2), (SIGTERM, 15), (SIGHUP, 1)] {
        signal_hook::flag::register_usize(signal, Arc::clone(&last), number)?;
    }
    Ok(last)
}

/// Turns the first SIGINT, SIGTERM or SIGHUP into a request to stop after the step; the second
/// ends the program at once (checkpoints on disk stay valid).
///
/// # Errors
/// If the operating system refuses a handler.
pub fn stop_on_signals(stop: &Arc<AtomicBool>) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the first signal finds the flag down and raises it.
        signal_hook::flag::register_conditional_shutdown(signal, 2, Arc::clone(stop))?;
        signal_hook::flag::register(signal, Arc::clone(stop))?;
    }
    Ok(())
}
