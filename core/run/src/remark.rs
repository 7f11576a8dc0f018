//! What a person writes about a decision, before it goes into a log that nothing is ever purged from.

use crate::error::RunError;
use crate::retention::RetentionError;
use forgelm_privacy::{PII_MASK, SECRET_MASK, mask_pii, mask_secrets};

/// Longest remark, in characters.
pub const REMARK_CHARS_MAX: usize = 1000;

/// The remark as it is recorded: personal data and secrets in it are masked.
///
/// # Errors
/// If it is blank or longer than [`REMARK_CHARS_MAX`]; `flag` is named then.
pub fn recorded(flag: &'static str, text: &str) -> Result<String, RunError> {
    let refused = |problem| RunError::from(RetentionError::Remark { flag, problem });
    let text = text.trim();
    let n_chars = text.chars().count();
    if text.is_empty() {
        return Err(refused("blank; expected a sentence that says why".to_owned()));
    }
    if n_chars > REMARK_CHARS_MAX {
        let problem = format!("{n_chars} characters; expected at most {REMARK_CHARS_MAX}");
        return Err(refused(problem));
    }
    let masked = mask_secrets(text, SECRET_MASK).text;
    Ok(mask_pii(&masked, PII_MASK).text)
}

#[cfg(test)]
mod tests {
    use super::recorded;

    #[test]
    fn personal_data_in_a_remark_is_masked_and_what_is_too_long_is_refused() {
        let text = recorded("--hold", " asked for by eve@example.org ").expect("recorded");
        assert_eq!(text, "asked for by [REDACTED]");
        assert!(recorded("--hold", "  ").is_err());
        assert!(recorded("--hold", &"é".repeat(1000)).is_ok());
        let error = recorded("--hold", &"é".repeat(1001)).expect_err("too long").to_string();
        assert!(error.contains("`--hold`: 1001 characters"), "{error}");
    }
}
