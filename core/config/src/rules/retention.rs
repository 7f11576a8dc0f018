//! Rules of what is kept, and for how long.

use super::Findings;
use crate::diagnostic::Code;
use crate::run::Run;

/// Ten years, with three leap days.
const TEN_YEARS_DAYS: u64 = 3653;

/// Article 18 keeps the documents of a high-risk system for ten years after it is put into service.
pub fn check_root(run: &Run, findings: &mut Findings<'_>) {
    let tier = run.risk_tier();
    let Some(retention) = run.retention.as_ref().filter(|_| tier.is_strict()) else {
        return;
    };
    let horizons = [
        ("retention.audit_log_retention_days", retention.audit_log_retention_days),
        (
            "retention.ephemeral_artefact_retention_days",
            retention.ephemeral_artefact_retention_days,
        ),
    ];
    for (key, days) in horizons {
        if (1..TEN_YEARS_DAYS).contains(&days) {
            let message = format!(
                "`{key}` is {days} and the tier is `{tier}`: Article 18 of Regulation (EU) 2024/1689 keeps \
                 such documents for ten years; 0 keeps them for ever"
            );
            findings.warn(Code::Doubtful, &[key, "retention"], message);
        }
    }
}
