//! Who does not come back: a plugin in the program cannot be ended, but it can be named while it hangs.

use crate::host::HostServices;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// What to do about a plugin that gives no sign of life: no line, no progress, no end of a call.
pub struct Hung {
    /// For so long.
    pub after: Duration,
    /// Takes a text for the user, from a thread of its own: the one that called does not come back.
    pub tell: Box<dyn Fn(&str) + Send + Sync>,
}

impl fmt::Debug for Hung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hung").field("after", &self.after).finish_non_exhaustive()
    }
}

/// A call that ended, in [`Calls`]: in the upper half, which may overflow.
const ENDED: u64 = 1 << 32;

/// The calls of one plugin, or of one instance, in one number: those that run, and those that ended.
#[derive(Debug, Default)]
pub(crate) struct Calls(AtomicU64);

/// How many threads call at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callers {
    /// Any number.
    Several,
    /// One at a time: counting needs no locked instruction.
    One,
}

impl Calls {
    /// A call, until the guard goes out of scope.
    pub(crate) fn enter(&self, callers: Callers) -> Inside<'_> {
        self.add(1, callers);
        Inside(self, callers)
    }

    fn add(&self, n: u64, callers: Callers) {
        match callers {
            Callers::Several => {
                self.0.fetch_add(n, Ordering::Relaxed);
            }
            Callers::One => {
                let sum = self.0.load(Ordering::Relaxed).wrapping_add(n);
                self.0.store(sum, Ordering::Relaxed);
            }
        }
    }
}

/// A call that runs.
pub(crate) struct Inside<'a>(&'a Calls, Callers);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.add(ENDED - 1, self.1);
    }
}

/// The signs of life of one library, which come through the table that it was given: those of another
/// library hide nothing of it.
#[derive(Debug, Default)]
pub(crate) struct Life {
    n_signs: AtomicU64,
    /// Services that are at work for a plugin of it, which waits for them.
    n_serving: AtomicU64,
    /// Who else is told of them.
    services: Option<Arc<HostServices>>,
}

impl Life {
    /// Of a library of a host with these services.
    pub(crate) fn of(services: &Arc<HostServices>) -> Self {
        Self { services: Some(Arc::clone(services)), ..Self::default() }
    }

    /// A plugin said something.
    pub(crate) fn sign(&self) {
        self.n_signs.fetch_add(1, Ordering::Relaxed);
    }

    /// A service of ours that may take long works for a plugin, until the guard goes out of scope.
    pub(crate) fn serving(&self) -> Serving<'_> {
        self.n_serving.fetch_add(1, Ordering::Relaxed);
        self.tell(true);
        Serving(self)
    }

    /// Whether a service works for a plugin.
    pub(crate) fn is_served(&self) -> bool {
        self.n_serving.load(Ordering::Relaxed) > 0
    }

    fn tell(&self, begins: bool) {
        if let Some(tell) = self.services.as_ref().and_then(|services| services.serving.as_ref()) {
            tell(begins);
        }
    }
}

/// A service at work.
pub(crate) struct Serving<'a>(&'a Life);

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.sign();
        self.0.tell(false);
        self.0.n_serving.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The plugins of a host.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    watched: Mutex<Vec<Watched>>,
    is_started: AtomicBool,
}

#[derive(Debug)]
struct Watched {
    who: String,
    /// Gone with the plugin or the instance.
    calls: Weak<Calls>,
    /// Of its library.
    life: Arc<Life>,
    /// Calls and signs, when it was last looked at.
    seen: (u64, u64),
    silence: Duration,
}

impl Watch {
    /// Watches a plugin from now on, if there is somebody to tell. `who` begins the text.
    pub(crate) fn add(
        self: &Arc<Self>,
        who: String,
        life: &Arc<Life>,
        hung: Option<&Arc<Hung>>,
    ) -> Arc<Calls> {
        let calls = Arc::new(Calls::default());
        let Some(hung) = hung else { return calls };
        let watched = Watched::new(who, &calls, life);
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).push(watched);
        if !self.is_started.swap(true, Ordering::AcqRel) {
            let (watch, hung) = (Arc::clone(self), Arc::clone(hung));
            let thread = std::thread::Builder::new().name("forgelm-plugins".to_owned());
            // Without the thread a hang is not told, and everything else works.
            let _ = thread.spawn(move || watch.look_for_ever(&hung));
        }
        calls
    }

    /// Counts in naps, so that no clock is needed.
    fn look_for_ever(&self, hung: &Hung) {
        let nap = (hung.after / 4).clamp(Duration::from_millis(10), Duration::from_secs(10));
        loop {
            std::thread::sleep(nap);
            let mut all = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|one| one.calls.strong_count() > 0);
            let texts = all.iter_mut().filter_map(|one| one.hangs(nap, hung.after));
            texts.for_each(|text| (hung.tell)(&text));
        }
    }
}

impl Watched {
    fn new(who: String, calls: &Arc<Calls>, life: &Arc<Life>) -> Self {
        let (calls, life) = (Arc::downgrade(calls), Arc::clone(life));
        Self { who, calls, life, seen: (0, 0), silence: Duration::ZERO }
    }

    /// What to tell, once a call that hangs.
    fn hangs(&mut self, nap: Duration, after: Duration) -> Option<String> {
        let calls = self.calls.upgrade()?.0.load(Ordering::Relaxed);
        let is_inside = calls & (ENDED - 1) != 0;
        let is_served = self.life.is_served();
        let now = (calls, self.life.n_signs.load(Ordering::Relaxed));
        let is_same = std::mem::replace(&mut self.seen, now) == now;
        if !(is_inside && is_same) || is_served {
            self.silence = Duration::ZERO;
            return None;
        }
        let was = self.silence;
        self.silence += nap;
        (was < after && self.silence >= after).then(|| {
            let who = &self.who;
            format!(
                "{who}: no sign of life for {after:?}, and the program cannot end it\n  hint: with \
                 `plugins.isolation: process` it runs in a process that is killed then"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    const NAP: Duration = Duration::from_secs(1);
    const AFTER: Duration = Duration::from_secs(3);

    #[test]
    fn a_call_that_hangs_is_told_once_and_one_that_goes_on_is_not() {
        let (calls, life) = (Arc::new(Calls::default()), Arc::default());
        let mut watched = Watched::new("x".to_owned(), &calls, &life);
        let mut told = || watched.hangs(NAP, AFTER).is_some();
        assert!((0..9).all(|_| !told()), "nothing runs");
        for _ in 0..9 {
            drop(calls.enter(Callers::One));
            let _inside = calls.enter(Callers::Several);
            assert!(!told(), "calls end");
        }
        let first = calls.enter(Callers::One);
        let looks: Vec<bool> = (0..9).map(|_| told()).collect();
        assert_eq!(looks.iter().position(|&told| told), Some(3));
        assert_eq!(looks.iter().filter(|&&told| told).count(), 1);
        for _ in 0..9 {
            life.sign();
            assert!(!told(), "it said something");
        }
        let looks: Vec<bool> = (0..9).map(|_| told()).collect();
        assert_eq!(looks.iter().filter(|&&told| told).count(), 1, "and hangs again");
        let serving = life.serving();
        assert!((0..9).all(|_| !told()), "it waits for the program");
        drop(serving);
        let looks: Vec<bool> = (0..9).map(|_| told()).collect();
        assert_eq!(looks.iter().position(|&told| told), Some(3), "and hangs after that");
        drop(first);
        assert!((0..9).all(|_| !told()), "it came back");
    }

    #[test]
    fn the_thread_tells_by_name() {
        let (sender, receiver) = channel();
        let tell = move |text: &str| drop(sender.send(text.to_owned()));
        let hung = Arc::new(Hung { after: Duration::from_millis(40), tell: Box::new(tell) });
        let (watch, life) = (Arc::new(Watch::default()), Arc::default());
        let [well, ill] = ["well", "ill"].map(|who| watch.add(who.to_owned(), &life, Some(&hung)));
        drop(well.enter(Callers::Several));
        let _inside = ill.enter(Callers::One);
        let told = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(told.starts_with("ill: no sign of life for 40ms"), "{told}");
        assert!(told.contains("isolation: process"), "{told}");
    }
}
