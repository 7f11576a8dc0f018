//! How a run ends, as a number: the contract with whoever started it.

use forgelm_artifact::Class;

/// Exit codes. The numbers never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The run finished and kept a model; or a command did its work.
    Success = 0,
    /// The config, the command line or an input cannot be used.
    Config = 1,
    /// The world refused: disk, network, permissions.
    Runtime = 2,
    /// A gate rejected the model.
    Gate = 3,
    /// The model waits for a person's approval.
    AwaitingApproval = 4,
    /// The wizard ended without a config.
    WizardCancelled = 5,
    /// Something was compared and is different.
    Integrity = 6,
    /// Stopped on request, with a good checkpoint.
    Interrupted = 7,
    /// Refused before the start for lack of memory or disk.
    Resources = 8,
}

impl Exit {
    /// The number.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl Exit {
    /// What a number says; one that is none of ours is a failure of the world.
    #[must_use]
    pub fn of_code(code: i32) -> Self {
        let all = [
            Self::Success,
            Self::Config,
            Self::Runtime,
            Self::Gate,
            Self::AwaitingApproval,
            Self::WizardCancelled,
            Self::Integrity,
            Self::Interrupted,
            Self::Resources,
        ];
        all.into_iter().find(|exit| i32::from(exit.code()) == code).unwrap_or(Self::Runtime)
    }
}

impl From<Class> for Exit {
    fn from(class: Class) -> Self {
        match class {
            Class::Input => Self::Config,
            Class::Runtime => Self::Runtime,
            Class::Integrity => Self::Integrity,
            Class::Resources => Self::Resources,
        }
    }
}
