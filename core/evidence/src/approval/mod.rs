//! A person's approval of a staged model: what is asked, who may answer, and what was answered.
//!
//! The audit log is the one record of it. [`requests`] reads the state out of the log, and nothing
//! else keeps state: a promotion that was interrupted is seen from what is recorded and what is
//! not. [`policy`] judges who may decide, from the rules that the request itself carries, so that
//! they cannot change afterwards. [`decision`] signs one person's decision (S5).
//!
//! It moves no folder and writes no event; `core/run` does. How a stranger checks all of this is in
//! [`crate::bundle::verify`].

pub mod decision;
pub mod policy;
pub mod requests;

/// What is approved, as events name it.
pub const GATE: &str = "final_model";
/// What stands between the name of a model's folder and the run's id while it is staged.
const STAGING: &str = ".staging";

/// Name of the folder in which a model waits: `<final>.staging.<run id>`.
#[must_use]
pub fn staging_name(final_name: &str, run_id: &str) -> String {
    format!("{final_name}{STAGING}.{run_id}")
}

/// The name that a staged folder gets when it is approved: cut at the last `.staging`. None if the
/// name has no such part.
#[must_use]
pub fn final_name(staging_name: &str) -> Option<&str> {
    let (name, _) = staging_name.rsplit_once(STAGING)?;
    (!name.is_empty() && !name.ends_with('/')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::{final_name, staging_name};

    #[test]
    fn names_are_cut_at_the_last_staging() {
        let name = staging_name("final_model", "fg-0123456789ab");
        assert_eq!(name, "final_model.staging.fg-0123456789ab");
        assert_eq!(final_name(&name), Some("final_model"));
        assert_eq!(final_name("a.staging.b.staging.fg-1"), Some("a.staging.b"));
        for bad in ["final_model", ".staging.fg-1", "sub/.staging.fg-1", ""] {
            assert_eq!(final_name(bad), None, "{bad}");
        }
    }
}
