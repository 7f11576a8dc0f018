//! The floating-point mode of a thread: rounding, traps, and whether denormals are zero.
//!
//! A library that was built with `-ffast-math` sets it for the whole thread when it is opened, and
//! a run's bits would change. Flags that only say what happened are no part of the mode.

/// The mode as it was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FloatMode(u64);

/// Bits of the register that are flags of what happened: the low six of MXCSR.
#[cfg(target_arch = "x86_64")]
const FLAGS: u64 = 0x3f;
/// FPCR holds no flags.
#[cfg(not(target_arch = "x86_64"))]
const FLAGS: u64 = 0;

/// The mode in which a program starts: round to nearest, all traps masked, denormals kept.
#[cfg(target_arch = "x86_64")]
const DEFAULT: FloatMode = FloatMode(0x1f80);
/// All zeros elsewhere.
#[cfg(not(target_arch = "x86_64"))]
const DEFAULT: FloatMode = FloatMode(0);

impl FloatMode {
    /// As it is now.
    pub(crate) fn keep() -> Self {
        Self(read() & !FLAGS)
    }

    /// Puts it back, if it is another one now; whether it was.
    pub(crate) fn restore(self) -> bool {
        let now = read();
        let is_changed = now & !FLAGS != self.0;
        if is_changed {
            write(self.0 | (now & FLAGS));
        }
        is_changed
    }
}

/// Puts the mode back when it goes out of scope, whatever a call did.
pub(crate) struct KeepFloatMode(FloatMode);

impl KeepFloatMode {
    pub(crate) fn new() -> Self {
        Self(FloatMode::keep())
    }

    /// The default mode until then.
    pub(crate) fn default_meanwhile() -> Self {
        let kept = Self::new();
        DEFAULT.restore();
        kept
    }
}

impl Drop for KeepFloatMode {
    fn drop(&mut self) {
        self.0.restore();
    }
}

#[cfg(target_arch = "x86_64")]
fn read() -> u64 {
    let mut word = 0_u32;
    // SAFETY: stores the four bytes of MXCSR to `word`.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack)) };
    u64::from(word)
}

#[cfg(target_arch = "x86_64")]
fn write(word: u64) {
    #[expect(clippy::cast_possible_truncation, reason = "the register has 32 bits")]
    let word = word as u32;
    // SAFETY: loads a word that MXCSR had before, but for its flags.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack, readonly)) };
}

#[cfg(target_arch = "aarch64")]
fn read() -> u64 {
    let word: u64;
    // SAFETY: reads a register.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) word, options(nomem, nostack)) };
    word
}

#[cfg(target_arch = "aarch64")]
fn write(word: u64) {
    // SAFETY: writes a word that FPCR had before.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) word, options(nomem, nostack)) };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn read() -> u64 {
    0
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn write(_word: u64) {}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// Flush-to-zero is bit 15, denormals-are-zero bit 6.
    const FAST_MATH: u64 = 0x8040;

    /// What a kernel of the host computes does not depend on the mode of the plugin that calls it.
    #[test]
    fn the_default_mode_holds_meanwhile_and_then_the_other_one_again() {
        let _outer = KeepFloatMode::new();
        write(DEFAULT.0 | FAST_MATH);
        let half = || (std::hint::black_box(f32::MIN_POSITIVE) / 2.0).to_bits();
        assert_eq!(half(), 0);
        {
            let _mode = KeepFloatMode::default_meanwhile();
            assert_ne!(half(), 0);
        }
        assert_eq!(half(), 0);
    }

    #[test]
    fn a_mode_that_was_changed_is_put_back() {
        let before = FloatMode::keep();
        assert_eq!(before.0, DEFAULT.0, "the mode of a test");
        assert_eq!(before.0 & FAST_MATH, 0);
        let denormal = std::hint::black_box(f32::MIN_POSITIVE) / 2.0;
        assert!(denormal > 0.0);
        {
            let _mode = KeepFloatMode::new();
            write(before.0 | FAST_MATH);
            assert_eq!((std::hint::black_box(f32::MIN_POSITIVE) / 2.0).to_bits(), 0);
        }
        let again = std::hint::black_box(f32::MIN_POSITIVE) / 2.0;
        assert_eq!(again.to_bits(), denormal.to_bits());
        assert!(!before.restore(), "nothing is left to put back");
    }
}
