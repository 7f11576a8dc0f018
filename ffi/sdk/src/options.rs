//! Options of a plugin, and what can be wrong with them.

/// An option that cannot be used. Raised while the run is planned, before any work.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OptionsError {
    /// The plugin has no such option.
    #[error("`{key}` is not an option of `{plugin}`; expected one of: {expected}")]
    Unknown {
        /// Name of the plugin.
        plugin: String,
        /// The option as given.
        key: String,
        /// Names that the plugin knows, with commas.
        expected: String,
    },
    /// The value has the wrong type or is out of range.
    #[error("option `{key}` is `{found}`; expected {expected}")]
    Value {
        /// The option.
        key: String,
        /// The value as given.
        found: String,
        /// What would do.
        expected: String,
    },
}
