//! `compliance:`, `risk_assessment:` and `monitoring:` what the manifests say about the system.

use super::annex_iv::AnnexIv;
use super::gpai::Gpai;
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
        /// What only people know of a general-purpose AI model: its documents are drafted when this is there.
        gpai: Option<Gpai> = None, ours();
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
        /// Exports metrics while the run works and when it ends, and records what `forgelm monitor`
        /// compares fresh rows with.
        enabled: bool = false;
        /// Where metrics go. For Prometheus: an address that takes pushed text, if any.
        endpoint: String = String::new();
        /// The environment variable that holds the endpoint; where it is set, it comes before `endpoint`.
        endpoint_env: Option<String> = None, text(NOT_BLANK);
        /// The format of metrics. Prometheus: also the file `metrics.prom` of the run.
        metrics_export: MetricsExport = MetricsExport::None;
        /// With Prometheus: `HOST:PORT` of a page, `/metrics`, that can be read while the run works.
        listen: Option<String> = None, ours(), text(NOT_BLANK);
        /// The environment variable that holds Datadog's API key.
        api_key_env: Option<String> = None, ours(), text(NOT_BLANK);
        /// Seconds that sending may take, from the look-up of the name to the answer.
        timeout: u64 = 10, ours(), min(1.0), max(300.0);
        /// Allows loopback, private and shared addresses; link-local ones stay refused.
        allow_private_destinations: bool = false, ours();
        /// A PEM file of certificates to trust in place of the public authorities.
        tls_ca_bundle: Option<String> = None, ours(), text(NOT_BLANK);
        /// `forgelm monitor` tells the webhook when fresh rows are scored otherwise than held-out ones.
        alert_on_drift: bool = true;
        /// The confidence of the interval that `forgelm monitor` shows and judges by.
        confidence: f64 = 0.99, ours(), min(0.5), max(0.999_999);
        /// Hours between the checks of `forgelm monitor`.
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
