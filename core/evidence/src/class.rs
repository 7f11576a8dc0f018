//! The four ways a verifier can end, and their exit codes.
//!
//! The rule (exit-code table of the specification): 6 means *compared and different*, 1 means
//! *never compared*, 2 means that an input which is there could not be read. When several apply,
//! 6 goes before 2, and 2 before 1.

/// How a verification ended. The order of the variants is the precedence, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Everything that was asked for was compared and is equal.
    Accepted,
    /// Nothing could be compared: absent, malformed, incomplete, not trusted.
    NotCompared,
    /// An input is there but could not be read.
    Unreadable,
    /// Something was compared and differs.
    Different,
}

impl Class {
    /// The process exit code of this class.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Accepted => 0,
            Self::NotCompared => 1,
            Self::Unreadable => 2,
            Self::Different => 6,
        }
    }

    /// The class of two findings together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        self.max(other)
    }
}

#[cfg(test)]
mod tests {
    use super::Class;

    #[test]
    fn different_goes_before_unreadable_before_not_compared() {
        let all = [Class::Accepted, Class::NotCompared, Class::Unreadable, Class::Different];
        assert_eq!(all.map(Class::exit_code), [0, 1, 2, 6]);
        assert_eq!(Class::NotCompared.and(Class::Unreadable), Class::Unreadable);
        assert_eq!(Class::Different.and(Class::Unreadable), Class::Different);
        assert_eq!(Class::Accepted.and(Class::NotCompared), Class::NotCompared);
    }
}
