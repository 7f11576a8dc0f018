//! `signing:`, `auth:` and `plugins:` keys, tokens and foreign code.

use super::text_rule::NOT_BLANK;
use crate::declare::{choice, section};
use crate::secret::Secret;

section! {
    /// Tokens for model hubs.
    Auth {
        /// The hub's token. Better: the environment variable `HUGGINGFACE_TOKEN`.
        hf_token: Option<Secret> = None;
    }
}

section! {
    /// The Ed25519 signatures over the evidence of a run. Key material never stands here.
    Signing {
        /// Signs every manifest. High-risk systems may not switch it off.
        enabled: bool = true, ours();
        /// The private key, PKCS#8 PEM, mode 0600. Null: the environment, else a key made on first use.
        key_file: Option<String> = None, ours(), text(NOT_BLANK);
        /// The environment variable that holds the private key.
        key_env: Option<String> = None, ours(), text(NOT_BLANK);
        /// A P-256 private key (PKCS#8 PEM, mode 0600) that signs the model's folder in the place of the
        /// Ed25519 key, for verifiers of OpenSSF Model Signing that read no Ed25519.
        model_key_file: Option<String> = None, ours(), text(NOT_BLANK);
        /// Whether a key made on first use is refused; `auto`: for high-risk systems.
        require_provisioned: RequireProvisioned = RequireProvisioned::Auto, ours();
        /// The file of keys that verifiers trust.
        trusted_keys: Option<String> = None, ours(), text(NOT_BLANK);
        /// Entries of the audit log between signed heads within it (`audit.checkpoint`); 0: none but the
        /// checkpoint at the end.
        checkpoint_every: u64 = 0, ours(), min(0.0), max(1e9);
        /// The address of a time stamp authority (RFC 3161), which is asked for a token over each of the
        /// signatures of the attestation, the checkpoint and the model; never offline.
        timestamp_url: Option<String> = None, ours(), text(NOT_BLANK);
        /// Fails a run (exit 2) that gets no time stamp; else that is a warning.
        require_timestamp: bool = false, ours();
        /// A PEM file of certificates to trust for `https://`, in place of the public authorities.
        timestamp_ca_bundle: Option<String> = None, ours(), text(NOT_BLANK);
        /// Allows loopback, private and shared addresses; link-local ones stay refused.
        timestamp_allow_private_destinations: bool = false, ours();
        /// A program that signs with a key that is elsewhere, and its arguments: the bytes to sign come on
        /// its input, and the 64 raw bytes of the Ed25519 signature are its output.
        command: Option<Vec<String>> = None, ours(), text(NOT_BLANK);
        /// The public key (PEM) of what `command` signs; every signature is verified with it.
        public_key: Option<String> = None, ours(), text(NOT_BLANK);
    }
}

choice! {
    /// Whether a signing key made on first use is refused.
    RequireProvisioned {
        /// Refused for high-risk systems.
        Auto = "auto",
        /// Refused.
        Always = "true" | "yes" | "on",
        /// Accepted.
        Never = "false" | "no" | "off",
    }
}

section! {
    /// Shared libraries with trainers, quantizers, evaluators, merge methods and rewards.
    Plugins {
        /// Libraries, or folders of them.
        paths: Vec<String> = Vec::new(), ours(), text(NOT_BLANK);
        /// A trainer of a library, in place of the one that `training.trainer_type` names; that key then
        /// only says what the records look like.
        trainer: Option<String> = None, ours(), text(NOT_BLANK);
        /// Its options, each `key=value`.
        trainer_options: Vec<String> = Vec::new(), ours(), text(NOT_BLANK);
        /// A merge method of a library, in place of the one that `merge.method` names.
        merge_method: Option<String> = None, ours(), text(NOT_BLANK);
        /// Its options, each `key=value`.
        merge_method_options: Vec<String> = Vec::new(), ours(), text(NOT_BLANK);
        /// Rewards of libraries for `grpo`, beside those that ship with ForgeLM: their sum counts.
        rewards: Vec<NamedPlugin> = Vec::new(), ours();
        /// Evaluators that judge the tuned model after training.
        evaluators: Vec<NamedPlugin> = Vec::new(), ours();
        /// Where foreign code runs.
        isolation: PluginIsolation = PluginIsolation::Auto, ours();
        /// Seconds that a call in a process of its own may give no sign of life (a line, progress) before
        /// the process is killed and the run ends.
        deadline_seconds: u64 = 300, ours(), min(1.0), max(1_000_000.0);
        /// Refuses libraries without a trusted signature; those that ship with the program need none.
        require_signed: bool = false, ours();
    }
}

section! {
    /// One plugin of a run.
    NamedPlugin {
        /// Its name in its library.
        name: String = String::new(), ours(), required("my_plugin"), text(NOT_BLANK);
        /// Its options, each `key=value`.
        options: Vec<String> = Vec::new(), ours(), text(NOT_BLANK);
    }
}

choice! {
    /// Where foreign code runs.
    PluginIsolation {
        /// In the program what ships with it or has a trusted signature, all others in a process of
        /// their own.
        Auto = "auto",
        /// Each in a process of its own.
        Process = "process",
        /// All in the program: a fault of one ends it.
        InProcess = "in_process",
    }
}
