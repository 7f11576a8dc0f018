//! `compliance:`, `risk_assessment:` and `monitoring:` what the manifests say about the system.

use super::annex_iv::AnnexIv;
use super::text_rule::{LANGUAGE, NOT_BLANK};
use crate::declare::{choice, section};

section! {
    /// Who provides the system, and what it is for; goes into the manifests.
    Compliance {
        /// The provider's name.
        provider_name: String = String::new();
        /// How to reach the provider.
        provider_contact: String = String::new();
        /// The system's name.
        system_name: String = String::new();
        /// What it is for.
        intended_purpose: String = String::new();
        /// What it cannot do.
        known_limitations: String = String::new();
        /// Its version.
        system_version: String = String::new();
        /// Its tier under the AI Act. High-risk and unacceptable need the safety evaluation.
        risk_classification: RiskTier = RiskTier::MinimalRisk;
        /// Languages of the model, for its card: codes as `en`, `pt-BR`.
        language: Vec<String> = Vec::new(), ours(), text(LANGUAGE);
        /// `annex_iv_metadata.json` of the version before: what changed since goes into the new one.
        previous_manifest: Option<String> = None, ours(), text(NOT_BLANK);
        /// What only people know of the points of Annex IV.
        annex_iv: Option<AnnexIv> = None, ours();
    }
}

section! {
    /// The risks that were considered; goes into the manifests.
    RiskAssessment {
        /// What the system is used for.
        intended_use: String = String::new();
        /// How it could be misused.
        foreseeable_misuse: Vec<String> = Vec::new();
        /// Its tier. The stricter of this and `compliance.risk_classification` governs.
        risk_category: RiskTier = RiskTier::MinimalRisk;
        /// What is done against the risks.
        mitigation_measures: Vec<String> = Vec::new();
        /// Whether vulnerable groups were considered.
        vulnerable_groups_considered: bool = false;
    }
}

section! {
    /// Watching the system after it is deployed.
    Monitoring {
        /// Writes hooks for monitoring.
        enabled: bool = false, later("monitoring");
        /// Where metrics go.
        endpoint: String = String::new();
        /// The environment variable that holds the endpoint.
        endpoint_env: Option<String> = None, text(NOT_BLANK);
        /// The format of metrics.
        metrics_export: MetricsExport = MetricsExport::None;
        /// Alerts when answers drift.
        alert_on_drift: bool = true;
        /// Hours between checks.
        check_interval_hours: u64 = 24, min(1.0), max(1_000_000.0);
    }
}

choice! {
    /// A tier of risk under the AI Act.
    RiskTier {
        /// Not assessed.
        Unknown = "unknown",
        /// Minimal.
        MinimalRisk = "minimal-risk",
        /// Limited: transparency duties.
        LimitedRisk = "limited-risk",
        /// High: Annex III.
        HighRisk = "high-risk",
        /// Prohibited practices: Article 5.
        Unacceptable = "unacceptable",
    }
}

impl RiskTier {
    /// Whether the tier needs the safety evaluation.
    #[must_use]
    pub const fn is_strict(self) -> bool {
        match self {
            Self::HighRisk | Self::Unacceptable => true,
            Self::Unknown | Self::MinimalRisk | Self::LimitedRisk => false,
        }
    }
}

choice! {
    /// The format of metrics.
    MetricsExport {
        /// None.
        None = "none",
        /// Prometheus.
        Prometheus = "prometheus",
        /// Datadog.
        Datadog = "datadog",
        /// A webhook.
        CustomWebhook = "custom_webhook",
    }
}
