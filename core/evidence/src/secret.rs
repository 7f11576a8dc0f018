//! Text that must never be shown.

use zeroize::Zeroizing;

/// A secret value, such as that of `FORGELM_AUDIT_SECRET`. It has no Debug, Display or serde, and
/// its memory is overwritten when it is dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text; an empty one means "not set", so there is no secret then.
    #[must_use]
    pub fn new(text: String) -> Option<Self> {
        let text = Zeroizing::new(text);
        (!text.is_empty()).then_some(Self(text))
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it is shorter than 16 characters, which deserves a warning.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.0.chars().count() < 16
    }
}
