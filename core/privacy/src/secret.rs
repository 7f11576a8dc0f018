//! Secrets: keys and tokens of services, and private keys.

use std::ops::Range;
use std::sync::LazyLock;

use regex::bytes::Regex;

use crate::span::{Found, Masked, mask, matches, pattern};

/// What masking leaves in place of a secret.
pub const SECRET_MASK: &str = "[REDACTED-SECRET]";

/// Longest body of a private key in PEM, and of one of PGP.
const PEM_BYTES_MAX: usize = 8192;
const PGP_BYTES_MAX: usize = 65_536;

/// What kind of secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SecretKind {
    /// An access key of AWS.
    AwsAccessKey,
    /// A token of GitHub.
    GithubToken,
    /// A token of GitLab.
    GitlabToken,
    /// A token of Slack.
    SlackToken,
    /// A key of Anthropic.
    AnthropicApiKey,
    /// A key of OpenAI, or of a service that names its keys so.
    OpenaiApiKey,
    /// A key of Google.
    GoogleApiKey,
    /// A token of Hugging Face.
    HuggingfaceToken,
    /// A key of Stripe for real payments.
    StripeApiKey,
    /// A signed JSON web token.
    Jwt,
    /// A private key of OpenSSH, RSA, DSA or an elliptic curve, in PEM.
    OpensshPrivateKey,
    /// A private key in PKCS#8, encrypted or not: what ForgeLM signs with.
    Pkcs8PrivateKey,
    /// A private key of PGP.
    PgpPrivateKey,
    /// The connection string of an Azure storage account.
    AzureStorageKey,
}

impl SecretKind {
    /// Every kind.
    pub const ALL: [SecretKind; 14] = [
        SecretKind::AwsAccessKey,
        SecretKind::GithubToken,
        SecretKind::GitlabToken,
        SecretKind::SlackToken,
        SecretKind::AnthropicApiKey,
        SecretKind::OpenaiApiKey,
        SecretKind::GoogleApiKey,
        SecretKind::HuggingfaceToken,
        SecretKind::StripeApiKey,
        SecretKind::Jwt,
        SecretKind::OpensshPrivateKey,
        SecretKind::Pkcs8PrivateKey,
        SecretKind::PgpPrivateKey,
        SecretKind::AzureStorageKey,
    ];

    /// The word used in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            SecretKind::AwsAccessKey => "aws_access_key",
            SecretKind::GithubToken => "github_token",
            SecretKind::GitlabToken => "gitlab_token",
            SecretKind::SlackToken => "slack_token",
            SecretKind::AnthropicApiKey => "anthropic_api_key",
            SecretKind::OpenaiApiKey => "openai_api_key",
            SecretKind::GoogleApiKey => "google_api_key",
            SecretKind::HuggingfaceToken => "huggingface_token",
            SecretKind::StripeApiKey => "stripe_api_key",
            SecretKind::Jwt => "jwt",
            SecretKind::OpensshPrivateKey => "openssh_private_key",
            SecretKind::Pkcs8PrivateKey => "pkcs8_private_key",
            SecretKind::PgpPrivateKey => "pgp_private_key",
            SecretKind::AzureStorageKey => "azure_storage_key",
        }
    }

    fn find(self, text: &[u8]) -> Vec<Range<usize>> {
        let all = |pattern: &LazyLock<Regex>| matches(pattern, text, |_| true);
        match self {
            SecretKind::AwsAccessKey => all(&AWS),
            SecretKind::GithubToken => all(&GITHUB),
            SecretKind::GitlabToken => all(&GITLAB),
            SecretKind::SlackToken => all(&SLACK),
            SecretKind::AnthropicApiKey => all(&ANTHROPIC),
            // The keys of Anthropic begin so too.
            SecretKind::OpenaiApiKey => matches(&OPENAI, text, |key| !ANTHROPIC.is_match(key)),
            SecretKind::GoogleApiKey => all(&GOOGLE),
            SecretKind::HuggingfaceToken => all(&HUGGING_FACE),
            SecretKind::StripeApiKey => all(&STRIPE),
            SecretKind::Jwt => all(&JWT),
            SecretKind::OpensshPrivateKey => pem(text, &OPENSSH, PEM_BYTES_MAX),
            SecretKind::Pkcs8PrivateKey => pem(text, &PKCS8, PEM_BYTES_MAX),
            SecretKind::PgpPrivateKey => pem(text, &PGP, PGP_BYTES_MAX),
            SecretKind::AzureStorageKey => all(&AZURE),
        }
    }
}

/// What every secret has in it; a text without any of these is passed over quickly.
static HINTS: LazyLock<Regex> = LazyLock::new(|| {
    pattern(concat!(
        "AKIA|ASIA|ghp_|gho_|ghu_|ghs_|ghr_|github_pat_|glpat-|xoxb-|xoxa-|xoxp-|xoxr-|xoxs-|sk-|AIza|",
        "hf_|sk_live_|rk_live_|eyJ|-----BEGIN |AccountKey="
    ))
});
static AWS: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"));
static GITHUB: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"\b(?:gh[pousr]_|github_pat_)[A-Za-z0-9_]{20,}"));
static GITLAB: LazyLock<Regex> = LazyLock::new(|| pattern(r"\bglpat-[A-Za-z0-9_-]{20,}"));
static SLACK: LazyLock<Regex> = LazyLock::new(|| pattern(r"\bxox[baprs]-[A-Za-z0-9-]{10,}"));
static ANTHROPIC: LazyLock<Regex> = LazyLock::new(|| pattern(r"\bsk-ant-[A-Za-z0-9_-]{20,}"));
static OPENAI: LazyLock<Regex> = LazyLock::new(|| pattern(r"\bsk-(?:proj-)?[A-Za-z0-9_-]{20,}"));
static GOOGLE: LazyLock<Regex> = LazyLock::new(|| pattern(r"\bAIza[A-Za-z0-9_-]{35}"));
static HUGGING_FACE: LazyLock<Regex> = LazyLock::new(|| pattern(r"\bhf_[A-Za-z0-9]{30,}"));
static STRIPE: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b[rs]k_live_[A-Za-z0-9]{20,}"));
static JWT: LazyLock<Regex> = LazyLock::new(|| {
    pattern(concat!(
        r"\beyJ(?:hbGc|0eXA|raWQ|jdHk|lbmM|hcGk)[A-Za-z0-9_-]{10,}",
        r"\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{15,}"
    ))
});
static AZURE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"DefaultEndpointsProtocol=https?;AccountName=[^;\s]{1,64};AccountKey=[A-Za-z0-9+/=]{20,}",
    )
});
static OPENSSH: LazyLock<Regex> = LazyLock::new(|| {
    pattern("-----(?:BEGIN|(?P<end>END)) (?P<label>(?:OPENSSH|RSA|DSA|EC) PRIVATE KEY)-----")
});
static PKCS8: LazyLock<Regex> = LazyLock::new(|| {
    pattern("-----(?:BEGIN|(?P<end>END)) (?P<label>(?:ENCRYPTED )?PRIVATE KEY)-----")
});
static PGP: LazyLock<Regex> =
    LazyLock::new(|| pattern("-----(?:BEGIN|(?P<end>END)) (?P<label>PGP PRIVATE KEY BLOCK)-----"));

/// From each last beginning to the end of the same label that follows, if it is near enough.
fn pem(text: &[u8], markers: &Regex, n_bytes_max: usize) -> Vec<Range<usize>> {
    let mut open: Option<(Range<usize>, &[u8])> = None;
    let mut found = Vec::new();
    for marker in markers.captures_iter(text) {
        let (Some(whole), Some(label)) = (marker.get(0), marker.name("label")) else { continue };
        if marker.name("end").is_none() {
            open = Some((whole.range(), label.as_bytes()));
        } else if let Some((begin, open_label)) = open.take()
            && open_label == label.as_bytes()
            && whole.start() - begin.end <= n_bytes_max
        {
            found.push(begin.start..whole.end());
        }
    }
    found
}

/// Everything that looks like a secret, kind by kind.
#[must_use]
pub fn detect_secrets(text: &str) -> Vec<Found<SecretKind>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    if !HINTS.is_match(bytes) {
        return found;
    }
    for kind in SecretKind::ALL {
        let places = kind.find(bytes).into_iter();
        found.extend(places.map(|place| Found { kind, start: place.start, end: place.end }));
    }
    found
}

/// A text without its secrets; [`SECRET_MASK`] is the usual replacement.
#[must_use]
pub fn mask_secrets(text: &str, replacement: &str) -> Masked<SecretKind> {
    mask(text, replacement, detect_secrets)
}
