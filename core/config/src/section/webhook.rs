//! `webhook:` notices to a chat or a monitor.

use super::text_rule::NOT_BLANK;
use crate::declare::{choice, section};

section! {
    /// Notices to a chat or a monitor.
    Webhook {
        /// The address. It goes into the config hash, and into no file of the run.
        url: Option<String> = None;
        /// The environment variable that holds the address; where it is set, it comes before `url`.
        url_env: Option<String> = None, text(NOT_BLANK);
        /// Who reads it.
        format: WebhookFormat = WebhookFormat::Generic, ours();
        /// Signs each notice with the run's key, in a header.
        sign: bool = false, ours();
        /// Tries after one that failed, with growing pauses; training waits for none of them.
        retries: u64 = 2, ours(), min(0.0), max(10.0);
        /// A notice when training starts.
        notify_on_start: bool = true;
        /// A notice when a run succeeds or waits for approval.
        notify_on_success: bool = true;
        /// A notice when a run fails or is reverted.
        notify_on_failure: bool = true;
        /// Seconds that a try may take, from the look-up of the name to the answer; less than 1 means 1,
        /// more than 300 means 300.
        timeout: i64 = 10, max(86_400.0);
        /// Allows loopback, private and shared addresses; link-local ones stay refused.
        allow_private_destinations: bool = false;
        /// Refuses `http://`.
        require_https: bool = false, upstream();
        /// A PEM file of certificates to trust in place of the public authorities.
        tls_ca_bundle: Option<String> = None, text(NOT_BLANK);
    }
}

choice! {
    /// The receiver of notices.
    WebhookFormat {
        /// The payload as documented.
        Generic = "generic",
        /// An incoming webhook of Slack.
        Slack = "slack",
        /// A workflow of Microsoft Teams that posts a card.
        Teams = "teams",
    }
}
