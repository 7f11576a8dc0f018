//! Which points of Annex IV a config leaves open, and whether a run may start with them.

use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::plan::Plan;
use forgelm_config::{RiskTier, resolved_json};
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::documents::annex_iv::{Answers, OpenPoint, open_points};

/// Why points may not stay open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// They may: documents say `not_provided`.
    Open,
    /// `--strict-compliance`.
    Asked,
    /// The tier of the system.
    Tier(RiskTier),
}

impl Strictness {
    /// Of a run; `is_asked` is the flag.
    #[must_use]
    pub fn of(plan: &Plan, is_asked: bool) -> Self {
        match plan.run.risk_tier() {
            _ if is_asked => Self::Asked,
            tier if tier.is_strict() => Self::Tier(tier),
            _ => Self::Open,
        }
    }

    /// Whether a failed export of documents fails the run, and points may not stay open.
    #[must_use]
    pub fn is_strict(self) -> bool {
        self != Self::Open
    }

    fn why(self) -> String {
        match self {
            Self::Open => String::new(),
            Self::Asked => "`--strict-compliance`".to_owned(),
            Self::Tier(tier) => format!("the tier `{tier}`"),
        }
    }
}

/// What the config answers.
#[must_use]
pub fn answers(plan: &Plan) -> Answers {
    let config = resolved_json(&plan.run);
    Answers::new(
        config["compliance"].as_object(),
        config["risk_assessment"].as_object(),
        config["data"]["governance"].as_object(),
    )
}

/// Refuses a run whose documents would leave a point of Annex IV open, where none may be. Nothing is
/// read or written.
///
/// # Errors
/// Every such point, each with the keys that answer it.
pub fn check(plan: &Plan, is_asked: bool) -> Result<Strictness, RunError> {
    let strictness = Strictness::of(plan, is_asked);
    if !strictness.is_strict() {
        return Ok(strictness);
    }
    let mut points = open_points(&answers(plan));
    let approves = plan.run.evaluation.as_ref().is_some_and(|e| e.require_human_approval);
    if is_asked && plan.run.risk_tier().is_strict() && !approves {
        points.push(OpenPoint {
            point: "Article 14",
            requirement: "a person approves the model before it is used",
            keys: vec!["evaluation.require_human_approval: true".to_owned()],
        });
    }
    if points.is_empty() {
        return Ok(strictness);
    }
    Err(RunError::OpenPoints { why: strictness.why(), points })
}

/// The entry in the audit log, and the banner, of a run that its own config calls prohibited.
pub(crate) fn acknowledged(plan: &Plan, observer: &mut dyn Observer) -> Option<AuditEvent> {
    let category = plan.run.risk_assessment.as_ref().map(|section| section.risk_category);
    let classification = plan.run.compliance.as_ref().map(|section| section.risk_classification);
    if plan.run.risk_tier() != RiskTier::Unacceptable {
        return None;
    }
    let banner = "\
================================================================================
  This run's own config calls the system UNACCEPTABLE: Article 5 of Regulation
  (EU) 2024/1689 prohibits such practices in the Union. The run goes on, and its
  audit log says that this was known.
================================================================================";
    observer.observe(&Event::Warning(banner.to_owned()));
    Some(AuditEvent::RiskUnacceptableAcknowledged {
        risk_category: category.map(|tier| tier.to_string()),
        risk_classification: classification.map(|tier| tier.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::{Strictness, acknowledged, check};
    use crate::error::RunError;
    use crate::event::{Event, Observer};
    use crate::plan::Plan;

    struct Heard(Vec<String>);

    impl Observer for Heard {
        fn observe(&mut self, event: &Event) {
            if let Event::Warning(text) = event {
                self.0.push(text.clone());
            }
        }
    }

    fn plan(more: &str) -> Plan {
        let text = format!(
            "model: {{name_or_path: m, load_in_4bit: false}}\ntraining: {{report_to: none}}\n\
             data: {{dataset_name_or_path: d}}\n{more}"
        );
        let loaded = forgelm_config::load(&text, "run.yaml").unwrap_or_else(|e| panic!("{}", e[0]));
        Plan::of(loaded.run, loaded.warnings).expect("a plan")
    }

    const SAFE: &str = "evaluation: {safety: {enabled: true}}\n";

    #[test]
    fn a_strict_run_names_every_open_point_with_its_keys() {
        let plain = plan("compliance: {provider_name: Acme}\n");
        assert_eq!(check(&plain, false).expect("open points may stay"), Strictness::Open);
        let error = check(&plain, true).expect_err("they may not");
        let RunError::OpenPoints { points, .. } = &error else { panic!("{error}") };
        assert_eq!(points.len(), 20);
        let text = error.to_string();
        assert!(text.contains("`--strict-compliance`") && text.contains("1(b)"), "{text}");
        assert!(text.contains("`compliance.annex_iv.interactions`"), "{text}");
        assert!(!text.contains("`compliance.provider_name`"), "{text}");
    }

    #[test]
    fn a_strict_tier_needs_no_flag_and_with_it_a_person_too() {
        let high = plan(&format!("compliance: {{risk_classification: high-risk}}\n{SAFE}"));
        let text = check(&high, false).expect_err("open points").to_string();
        assert!(
            text.contains("the tier `high-risk`") && !text.contains("require_human_approval"),
            "{text}"
        );
        let text = check(&high, true).expect_err("open points").to_string();
        assert!(text.contains("`evaluation.require_human_approval: true`"), "{text}");
    }

    #[test]
    fn an_unacceptable_system_is_told_and_recorded() {
        let mut heard = Heard(Vec::new());
        assert_eq!(acknowledged(&plan("compliance: {provider_name: A}\n"), &mut heard), None);
        assert!(heard.0.is_empty());
        let bad = plan(&format!("risk_assessment: {{risk_category: unacceptable}}\n{SAFE}"));
        let event = acknowledged(&bad, &mut heard).expect("recorded");
        assert_eq!(event.name(), "risk.unacceptable_acknowledged");
        let payload = event.payload();
        assert_eq!(payload[0], ("risk_category", "unacceptable".into()));
        assert_eq!(payload[1], ("risk_classification", serde_json::Value::Null));
        assert!(heard.0[0].contains("Article 5"));
    }
}
