//! Variables of the environment that this program reads.

use super::{Check, World};
use forgelm_outbound::destination::Destination;
use serde_json::{Map, Value, json};

/// Those whose value nobody may see.
const SECRETS: [&str; 11] = [
    "FORGELM_SIGNING_KEY",
    "FORGELM_SIGNING_KEY_PASSPHRASE",
    "FORGELM_AUDIT_SECRET",
    "FORGELM_RESUME_TOKEN",
    "HUGGINGFACE_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "WANDB_API_KEY",
    "COHERE_API_KEY",
];

/// Those that hold no secret.
const PLAIN: [&str; 23] = [
    "FORGELM_OPERATOR",
    "FORGELM_ALLOW_ANONYMOUS_OPERATOR",
    "FORGELM_ALLOW_AUDIT_REROOT",
    "FORGELM_SIGNING_KEY_FILE",
    "FORGELM_TRUSTED_KEYS",
    "FORGELM_PLUGIN_PATH",
    "FORGELM_CUDA_PATH",
    "FORGELM_OWN_ATTENTION",
    "FORGELM_NO_NCCL",
    "FORGELM_LAUNCH_STATUS",
    "FORGELM_LAUNCH_RESUME",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_VISIBLE_DEVICES",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
];

/// Switches that only `1` turns on.
const SWITCHES: [&str; 4] = [
    "FORGELM_ALLOW_ANONYMOUS_OPERATOR",
    "FORGELM_ALLOW_AUDIT_REROOT",
    "FORGELM_OWN_ATTENTION",
    "FORGELM_NO_NCCL",
];

/// Which of them are set. Of a secret only its length is shown.
pub(super) fn variables(world: &World<'_>) -> Vec<Check> {
    let value_of = |name: &str| (world.env.variable)(name);
    let mut set: Map<String, Value> = Map::new();
    for name in PLAIN {
        set.extend(value_of(name).map(|value| (name.to_owned(), json!(value))));
    }
    for name in SECRETS {
        let masked = value_of(name).map(|value| format!("<set, {} chars>", value.chars().count()));
        set.extend(masked.map(|masked| (name.to_owned(), json!(masked))));
    }
    // An address may have a password.
    let endpoint = value_of("HF_ENDPOINT").map(|text| match Destination::parse(&text) {
        Ok(destination) => destination.to_string(),
        Err(error) => format!("<{error}>"),
    });
    set.extend(endpoint.map(|shown| ("HF_ENDPOINT".to_owned(), json!(shown))));
    let no_switch = SWITCHES.iter().find(|name| value_of(name).is_some_and(|value| value != "1"));
    let name = "environment.variables";
    let names: Vec<&str> = set.keys().map(String::as_str).collect();
    let check = if let Some(switch) = no_switch {
        Check::warn(name, format!("`{switch}` is set and has no effect"))
            .hint("only `1` turns it on")
    } else if value_of("FORGELM_ALLOW_AUDIT_REROOT").is_some() {
        let detail = "`FORGELM_ALLOW_AUDIT_REROOT` is 1: an audit log that contradicts its first line \
                      is begun anew";
        Check::warn(name, detail).hint("unset it when the log it was meant for is begun")
    } else if names.is_empty() {
        Check::pass(name, "none that this program reads is set")
    } else {
        Check::pass(name, format!("set: {}", names.join(", ")))
    };
    vec![check.with("variables", set)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;
    use crate::environment::Environment;
    use crate::environment::tests::nobody;
    use std::path::Path;
    use std::sync::Arc;

    fn looked(set: &'static [(&'static str, &'static str)]) -> Check {
        let find = move |name: &str| {
            set.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
        };
        let env = Environment { variable: Arc::new(find), ..nobody(Path::new("nowhere")) };
        let mut checks = variables(&World { env: &env, is_offline: true });
        assert_eq!(checks.len(), 1);
        checks.remove(0)
    }

    #[test]
    fn of_a_secret_only_the_length_is_shown() {
        let check = looked(&[
            ("HF_TOKEN", "hf_abcdefgh"),
            ("FORGELM_OPERATOR", "ci"),
            ("HF_ENDPOINT", "https://user:pass-word@hub.example.org/x"),
        ]);
        assert_eq!(check.status, Status::Pass);
        assert_eq!(check.extras["variables"]["HF_TOKEN"], "<set, 11 chars>");
        assert_eq!(check.extras["variables"]["FORGELM_OPERATOR"], "ci");
        let shown = format!("{check:?}");
        assert!(!shown.contains("abcdefgh") && !shown.contains("pass-word"), "{shown}");
        assert!(shown.contains("hub.example.org"), "{shown}");
    }

    #[test]
    fn a_switch_that_is_not_one_is_told() {
        let check = looked(&[("FORGELM_ALLOW_ANONYMOUS_OPERATOR", "true")]);
        assert_eq!(check.status, Status::Warn);
        assert!(check.detail.contains("has no effect"), "{}", check.detail);
        assert_eq!(looked(&[("FORGELM_ALLOW_AUDIT_REROOT", "1")]).status, Status::Warn);
        assert_eq!(looked(&[]).status, Status::Pass);
    }
}
