//! `webhook:` notices to a chat or a monitor.

use super::text_rule::NOT_BLANK;
use crate::declare::section;

section! {
    /// Notices to a chat or a monitor.
    Webhook {
        /// The address. It goes into the config hash, and into no file of the run.
        url: Option<String> = None, later("webhooks");
        /// The environment variable that holds the address, read when `url` is empty.
        url_env: Option<String> = None, text(NOT_BLANK), later("webhooks");
        /// A notice when training starts.
        notify_on_start: bool = true;
        /// A notice when a run succeeds or waits for approval.
        notify_on_success: bool = true;
        /// A notice when a run fails or is reverted.
        notify_on_failure: bool = true;
        /// Seconds to wait for an answer; less than 1 means 1.
        timeout: i64 = 10, max(86_400.0);
        /// Allows addresses of private networks.
        allow_private_destinations: bool = false;
        /// Refuses `http://`.
        require_https: bool = false, upstream();
        /// A file of certificates to trust.
        tls_ca_bundle: Option<String> = None, text(NOT_BLANK);
    }
}
