//! What only the program at a terminal asks the system for: color, and signals.

use forgelm_world::variable;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Whether results may be colored: standard output is a terminal, and `NO_COLOR` is not set.
#[must_use]
pub fn stdout_has_color() -> bool {
    std::io::stdout().is_terminal() && variable("NO_COLOR").is_none()
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
