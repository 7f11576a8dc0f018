//! What is said to a webhook: the events, and their payload in the form that the receiver reads.
//!
//! The schema is in `docs/formats/webhook.md`.

use crate::redact;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Version of the payload.
pub const SCHEMA_VERSION: u64 = 1;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// Training begins.
    Started,
    /// A run ended with a model.
    Succeeded {
        /// Final numbers.
        metrics: BTreeMap<String, f64>,
    },
    /// A run ended without one.
    Failed {
        /// Why.
        reason: String,
    },
    /// The gates took the model back.
    Reverted {
        /// Why.
        reason: String,
    },
    /// The model waits for a person.
    ApprovalRequired {
        /// Where it is.
        model_path: String,
    },
    /// A pipeline begins.
    PipelineStarted {
        /// How many stages it has.
        stage_count: usize,
    },
    /// A pipeline ended.
    PipelineEnded {
        /// Whether every stage has a model.
        is_completed: bool,
        /// The stage that stopped it.
        stopped_at: Option<String>,
    },
    /// The gates of a stage took its model back.
    StageReverted {
        /// The stage.
        stage_name: String,
        /// Why.
        reason: String,
    },
    /// Fresh rows are scored otherwise than the held-out ones were.
    Drifted {
        /// The numbers, in a sentence.
        reason: String,
        /// The numbers.
        metrics: BTreeMap<String, f64>,
    },
}

/// Which key of the config lets a notice through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `notify_on_start`.
    Start,
    /// `notify_on_success`.
    Success,
    /// `notify_on_failure`.
    Failure,
    /// `monitoring.alert_on_drift`.
    Drift,
}

/// The receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The payload itself.
    Generic,
    /// An incoming webhook of Slack.
    Slack,
    /// A workflow of Microsoft Teams that posts a card.
    Teams,
}

/// Of which run a notice is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender<'a> {
    /// The name for people.
    pub run_name: &'a str,
    /// The id, once there is one.
    pub run_id: Option<&'a str>,
    /// The time of sending.
    pub sent_at: &'a str,
}

impl Notice {
    /// The name of the event.
    #[must_use]
    pub const fn event(&self) -> &'static str {
        match self {
            Self::Started => "training.start",
            Self::Succeeded { .. } => "training.success",
            Self::Failed { .. } => "training.failure",
            Self::Reverted { .. } => "training.reverted",
            Self::ApprovalRequired { .. } => "approval.required",
            Self::PipelineStarted { .. } => "pipeline.started",
            Self::PipelineEnded { .. } => "pipeline.completed",
            Self::StageReverted { .. } => "pipeline.stage_reverted",
            Self::Drifted { .. } => "monitoring.drift",
        }
    }

    /// Which key lets it through.
    #[must_use]
    pub const fn gate(&self) -> Gate {
        match self {
            Self::Started | Self::PipelineStarted { .. } => Gate::Start,
            Self::Succeeded { .. }
            | Self::ApprovalRequired { .. }
            | Self::PipelineEnded { is_completed: true, .. } => Gate::Success,
            Self::Failed { .. }
            | Self::Reverted { .. }
            | Self::PipelineEnded { is_completed: false, .. }
            | Self::StageReverted { .. } => Gate::Failure,
            Self::Drifted { .. } => Gate::Drift,
        }
    }

    const fn status(&self) -> &'static str {
        match self {
            Self::Started | Self::PipelineStarted { .. } => "started",
            Self::Succeeded { .. } => "succeeded",
            Self::Failed { .. } => "failed",
            Self::Reverted { .. } | Self::StageReverted { .. } => "reverted",
            Self::PipelineEnded { is_completed: true, .. } => "completed",
            Self::PipelineEnded { is_completed: false, .. } => "stopped_at_stage",
            Self::ApprovalRequired { .. } => "awaiting_approval",
            Self::Drifted { .. } => "drifted",
        }
    }

    const fn color(&self) -> &'static str {
        match self {
            Self::Started | Self::PipelineStarted { .. } => "#0052cc",
            Self::Succeeded { .. } | Self::PipelineEnded { is_completed: true, .. } => "#36a64f",
            Self::Failed { .. } => "#ff0000",
            Self::PipelineEnded { is_completed: false, .. } => "#cc0000",
            Self::Reverted { .. } | Self::StageReverted { .. } | Self::Drifted { .. } => "#ff9900",
            Self::ApprovalRequired { .. } => "#f2c744",
        }
    }

    /// The same in the words of an adaptive card.
    const fn card_color(&self) -> &'static str {
        match self {
            Self::Started | Self::PipelineStarted { .. } => "accent",
            Self::Succeeded { .. } | Self::PipelineEnded { is_completed: true, .. } => "good",
            Self::Failed { .. } | Self::PipelineEnded { is_completed: false, .. } => "attention",
            Self::Reverted { .. }
            | Self::StageReverted { .. }
            | Self::ApprovalRequired { .. }
            | Self::Drifted { .. } => "warning",
        }
    }

    const fn headline(&self) -> &'static str {
        match self {
            Self::Started => "Training started",
            Self::Succeeded { .. } => "Training succeeded",
            Self::Failed { .. } => "Training failed",
            Self::Reverted { .. } => "Training reverted",
            Self::ApprovalRequired { .. } => "Approval required",
            Self::PipelineStarted { .. } => "Pipeline started",
            Self::PipelineEnded { is_completed: true, .. } => "Pipeline completed",
            Self::PipelineEnded { is_completed: false, .. } => "Pipeline stopped",
            Self::StageReverted { .. } => "Stage reverted",
            Self::Drifted { .. } => "Drift detected",
        }
    }

    fn reason(&self) -> Option<String> {
        match self {
            Self::Failed { reason }
            | Self::Reverted { reason }
            | Self::StageReverted { reason, .. }
            | Self::Drifted { reason, .. } => Some(redact::reason(reason)),
            Self::Started
            | Self::Succeeded { .. }
            | Self::ApprovalRequired { .. }
            | Self::PipelineStarted { .. }
            | Self::PipelineEnded { .. } => None,
        }
    }

    /// The numbers that JSON can say.
    fn metrics(&self) -> Map<String, Value> {
        let (Self::Succeeded { metrics } | Self::Drifted { metrics, .. }) = self else {
            return Map::new();
        };
        let finite = metrics.iter().filter(|(_, value)| value.is_finite());
        finite.map(|(name, value)| (name.clone(), json!(value))).collect()
    }

    /// What a person reads below the headline.
    fn text(&self) -> String {
        let metric = |metrics: &BTreeMap<String, f64>, name: &str| {
            metrics.get(name).map(|value| format!("{name} {value:.4}"))
        };
        match self {
            Self::Started => "The first step is next.".to_owned(),
            Self::Succeeded { metrics } => {
                let shown = ["baseline_eval_loss", "eval_loss", "train_steps"];
                let found: Vec<String> =
                    shown.iter().filter_map(|name| metric(metrics, name)).collect();
                if found.is_empty() { "A model is ready.".to_owned() } else { found.join(", ") }
            }
            Self::Failed { .. } | Self::Reverted { .. } | Self::Drifted { .. } => {
                self.reason().unwrap_or_default()
            }
            Self::ApprovalRequired { model_path } => {
                format!("The model in {model_path} waits for a decision.")
            }
            Self::PipelineStarted { stage_count } => format!("The first of {stage_count} stages."),
            Self::PipelineEnded { stopped_at: None, .. } => "Every stage has a model.".to_owned(),
            Self::PipelineEnded { stopped_at: Some(stage), .. } => format!("At {stage}."),
            Self::StageReverted { stage_name, .. } => {
                format!("{stage_name}: {}", self.reason().unwrap_or_default())
            }
        }
    }

    /// The payload, as the receiver reads it. Every text in it is masked.
    #[must_use]
    pub fn body(&self, sender: &Sender<'_>, form: Form) -> Vec<u8> {
        let title = format!("{}: {}", self.headline(), sender.run_name);
        let (title, text) = (redact::masked(&title), redact::masked(&self.text()));
        let body = match form {
            Form::Generic => self.generic(sender, &title, &text),
            Form::Slack => json!({
                "text": slack(&title),
                "attachments": [{
                    "color": self.color(),
                    "fallback": slack(&title),
                    "text": slack(&text),
                }],
            }),
            Form::Teams => self.teams(sender, &title, &text),
        };
        body.to_string().into_bytes()
    }

    fn generic(&self, sender: &Sender<'_>, title: &str, text: &str) -> Value {
        let model_path = match self {
            Self::ApprovalRequired { model_path } => Some(model_path),
            _ => None,
        };
        let mut body = json!({
            "event": self.event(),
            "run_name": sender.run_name,
            "status": self.status(),
            "metrics": self.metrics(),
            "reason": self.reason(),
            "model_path": model_path,
            "attachments": [{"title": title, "text": text, "color": self.color()}],
            "run_id": sender.run_id,
            "sent_at": sender.sent_at,
            "schema_version": SCHEMA_VERSION,
        });
        for (key, value) in self.extras() {
            body[key] = value;
        }
        redact::payload(&mut body);
        body
    }

    /// What only notices of a pipeline say.
    fn extras(&self) -> Vec<(&'static str, Value)> {
        match self {
            Self::PipelineStarted { stage_count } => vec![("stage_count", json!(stage_count))],
            Self::PipelineEnded { stopped_at, .. } => {
                vec![("final_status", json!(self.status())), ("stopped_at", json!(stopped_at))]
            }
            Self::StageReverted { stage_name, .. } => vec![("stage_name", json!(stage_name))],
            Self::Started
            | Self::Succeeded { .. }
            | Self::Failed { .. }
            | Self::Reverted { .. }
            | Self::ApprovalRequired { .. }
            | Self::Drifted { .. } => Vec::new(),
        }
    }

    fn teams(&self, sender: &Sender<'_>, title: &str, text: &str) -> Value {
        let facts: Vec<Value> = [
            ("Run", Some(redact::masked(sender.run_name))),
            ("Run id", sender.run_id.map(str::to_owned)),
            ("Status", Some(self.status().to_owned())),
        ]
        .into_iter()
        .filter_map(|(title, value)| value.map(|value| json!({"title": title, "value": value})))
        .collect();
        json!({
            "type": "message",
            "attachments": [{
                "contentType": "application/vnd.microsoft.card.adaptive",
                "contentUrl": null,
                "content": {
                    "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                    "type": "AdaptiveCard",
                    "version": "1.4",
                    "body": [
                        {
                            "type": "TextBlock",
                            "text": title,
                            "weight": "bolder",
                            "size": "medium",
                            "color": self.card_color(),
                            "wrap": true,
                        },
                        {"type": "TextBlock", "text": text, "wrap": true},
                        {"type": "FactSet", "facts": facts},
                    ],
                },
            }],
        })
    }
}

/// Slack's three special characters: a text could name a channel or forge a link with them.
fn slack(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::{Form, Notice, Sender};
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    const SENDER: Sender<'static> = Sender {
        run_name: "tiny_finetune",
        run_id: Some("fg-0123456789ab"),
        sent_at: "2026-01-01T00:00:00.000000+00:00",
    };

    fn body(notice: &Notice, form: Form) -> Value {
        serde_json::from_slice(&notice.body(&SENDER, form)).unwrap()
    }

    fn all() -> Vec<Notice> {
        let metrics =
            BTreeMap::from([("eval_loss".to_owned(), 0.42), ("perplexity".to_owned(), f64::NAN)]);
        vec![
            Notice::Started,
            Notice::Succeeded { metrics: metrics.clone() },
            Notice::Failed { reason: "step 3: loss is NaN".to_owned() },
            Notice::Reverted { reason: "eval_loss rose".to_owned() },
            Notice::ApprovalRequired { model_path: "out/final_model".to_owned() },
            Notice::Drifted { reason: "mean loss rose".to_owned(), metrics },
            Notice::PipelineStarted { stage_count: 3 },
            Notice::PipelineEnded { is_completed: true, stopped_at: None },
            Notice::PipelineEnded { is_completed: false, stopped_at: Some("dpo".to_owned()) },
            Notice::StageReverted { stage_name: "dpo".to_owned(), reason: "worse".to_owned() },
        ]
    }

    #[test]
    fn every_payload_has_the_seven_keys_and_ours() {
        let rows = [
            ("training.start", "started", "#0052cc"),
            ("training.success", "succeeded", "#36a64f"),
            ("training.failure", "failed", "#ff0000"),
            ("training.reverted", "reverted", "#ff9900"),
            ("approval.required", "awaiting_approval", "#f2c744"),
            ("monitoring.drift", "drifted", "#ff9900"),
            ("pipeline.started", "started", "#0052cc"),
            ("pipeline.completed", "completed", "#36a64f"),
            ("pipeline.completed", "stopped_at_stage", "#cc0000"),
            ("pipeline.stage_reverted", "reverted", "#ff9900"),
        ];
        assert_eq!(all().len(), rows.len());
        for (notice, (event, status, color)) in all().iter().zip(rows) {
            let body = body(notice, Form::Generic);
            let keys: Vec<&String> = body.as_object().unwrap().keys().collect();
            assert_eq!(
                keys[..10],
                [
                    "event",
                    "run_name",
                    "status",
                    "metrics",
                    "reason",
                    "model_path",
                    "attachments",
                    "run_id",
                    "sent_at",
                    "schema_version"
                ]
            );
            assert_eq!(body["event"], event);
            assert_eq!(body["status"], status);
            assert_eq!(body["attachments"][0]["color"], color);
            assert_eq!(body["attachments"].as_array().unwrap().len(), 1);
            assert_eq!(body["run_name"], "tiny_finetune");
            assert_eq!(body["run_id"], "fg-0123456789ab");
        }
    }

    #[test]
    fn members_hold_what_their_event_has_and_null_otherwise() {
        let bodies: Vec<Value> = all().iter().map(|notice| body(notice, Form::Generic)).collect();
        assert_eq!(bodies[0]["metrics"], json!({}));
        // a number that JSON cannot say is left out
        assert_eq!(bodies[1]["metrics"], json!({"eval_loss": 0.42}));
        assert_eq!(bodies[1]["reason"], Value::Null);
        assert_eq!(bodies[1]["attachments"][0]["text"], "eval_loss 0.4200");
        assert_eq!(bodies[2]["reason"], "step 3: loss is NaN");
        assert_eq!(bodies[2]["metrics"], json!({}));
        assert_eq!(bodies[4]["model_path"], "out/final_model");
        assert_eq!(bodies[4]["reason"], Value::Null);
        // Those of a pipeline say more, and no other notice does.
        let more = |body: &Value| {
            body.as_object()
                .unwrap()
                .iter()
                .skip(10)
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect::<Value>()
        };
        assert!(bodies[..6].iter().all(|body| more(body) == json!({})));
        let expected = [
            json!({"stage_count": 3}),
            json!({"final_status": "completed", "stopped_at": null}),
            json!({"final_status": "stopped_at_stage", "stopped_at": "dpo"}),
            json!({"stage_name": "dpo"}),
        ];
        assert_eq!(bodies[6..].iter().map(more).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn slack_and_teams_get_their_forms_without_secrets() {
        let token = format!("hf_{}", "aB3d".repeat(9));
        let notice = Notice::Failed { reason: format!("<!channel> & {token}") };
        let slack = body(&notice, Form::Slack);
        assert_eq!(slack["text"], "Training failed: tiny_finetune");
        assert_eq!(slack["attachments"][0]["text"], "&lt;!channel&gt; &amp; [REDACTED-SECRET]");
        let teams = body(&notice, Form::Teams);
        assert_eq!(teams["type"], "message");
        let card = &teams["attachments"][0];
        assert_eq!(card["contentType"], "application/vnd.microsoft.card.adaptive");
        assert_eq!(card["content"]["type"], "AdaptiveCard");
        assert_eq!(card["content"]["body"][0]["color"], "attention");
        assert_eq!(card["content"]["body"][1]["text"], "<!channel> & [REDACTED-SECRET]");
        for form in [Form::Generic, Form::Slack, Form::Teams] {
            let text = String::from_utf8(notice.body(&SENDER, form)).unwrap();
            assert!(!text.contains(&token), "{text}");
        }
    }
}
