//! What a field is, said once: the parser, the checks, `explain`, the JSON Schema and
//! reference.yaml all read these tables. The macros of `declare.rs` fill them.

use serde_json::Value as Json;

/// A section of the config.
#[derive(Debug)]
pub struct SectionSpec {
    /// Name of the Rust struct.
    pub name: &'static str,
    /// What the section is for.
    pub doc: &'static str,
    /// Its fields, in the order of the documentation.
    pub fields: &'static [Field],
}

/// A field.
#[derive(Debug)]
pub struct Field {
    /// The key in the YAML.
    pub key: &'static str,
    /// What it means.
    pub doc: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Its limits and status.
    pub rules: Rules,
    /// Its default as JSON; meaningless where `rules.required`.
    pub default: fn() -> Json,
}

/// The type of a field.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Integer,
    /// A finite number.
    Number,
    /// Text.
    Text,
    /// Text or a whole number (`batch_size: 8`).
    TextOrInteger,
    /// Text that is never printed.
    Secret,
    /// One word of a list.
    Choice(&'static [ChoiceSpec]),
    /// A list.
    List(&'static Kind),
    /// A section.
    Section(&'static SectionSpec),
    /// Null, or a value of the kind within.
    Optional(&'static Kind),
    /// A list of module names, or the word `all-linear`.
    TargetModules,
    /// The dictionary of `training.rope_scaling`.
    RopeScaling,
    /// A mapping from severity to a share.
    Thresholds,
}

/// One allowed word.
#[derive(Debug)]
pub struct ChoiceSpec {
    /// The word, as it is dumped.
    pub name: &'static str,
    /// Other spellings.
    pub aliases: &'static [&'static str],
    /// What it chooses.
    pub doc: &'static str,
    /// The feature, when this version does not have it.
    pub later: Option<&'static str>,
}

/// Where a key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The founding configuration guide.
    Seed,
    /// The public Python implementation, later than the seed.
    Upstream,
    /// This project.
    Ours,
}

/// A rule for a text: what it must be, and the test.
pub type TextRule = (&'static str, fn(&str) -> bool);

/// Limits and status of a field. Built by the const methods below, in the declarations.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The key must be written.
    pub required: bool,
    /// Where the key comes from.
    pub origin: Origin,
    /// Lower bound of numbers.
    pub min: Option<f64>,
    /// The bound itself is excluded.
    pub min_open: bool,
    /// Upper bound, included.
    pub max: Option<f64>,
    /// The upper bound itself is excluded.
    pub max_open: bool,
    /// A rule for texts, and for the texts of a list.
    pub text: Option<TextRule>,
    /// Another name under which the key is accepted for ever.
    pub alias: Option<&'static str>,
    /// The path of the key that replaces this one; this one is forwarded and never dumped.
    pub replaced_by: Option<&'static str>,
    /// The feature, when any value but the default needs one that this version does not have.
    pub later: Option<&'static str>,
    /// A value for reference.yaml, where there is no default.
    pub example: Option<&'static str>,
}

impl Rules {
    /// No limits; a key of the seed.
    pub const NONE: Self = Self {
        required: false,
        origin: Origin::Seed,
        min: None,
        min_open: false,
        max: None,
        max_open: false,
        text: None,
        alias: None,
        replaced_by: None,
        later: None,
        example: None,
    };
    /// The key must be written; the example is what reference.yaml shows.
    #[must_use]
    pub const fn required(mut self, example: &'static str) -> Self {
        self.required = true;
        self.example = Some(example);
        self
    }
    /// Only the later public implementation has the key.
    #[must_use]
    pub const fn upstream(mut self) -> Self {
        self.origin = Origin::Upstream;
        self
    }
    /// The key is ours.
    #[must_use]
    pub const fn ours(mut self) -> Self {
        self.origin = Origin::Ours;
        self
    }
    /// At least this.
    #[must_use]
    pub const fn min(mut self, bound: f64) -> Self {
        self.min = Some(bound);
        self
    }
    /// More than this.
    #[must_use]
    pub const fn above(mut self, bound: f64) -> Self {
        self.min = Some(bound);
        self.min_open = true;
        self
    }
    /// At most this.
    #[must_use]
    pub const fn max(mut self, bound: f64) -> Self {
        self.max = Some(bound);
        self
    }
    /// Less than this.
    #[must_use]
    pub const fn below(mut self, bound: f64) -> Self {
        self.max = Some(bound);
        self.max_open = true;
        self
    }
    /// A share: from 0 to 1.
    #[must_use]
    pub const fn share(self) -> Self {
        self.min(0.0).max(1.0)
    }
    /// The text must satisfy a rule.
    #[must_use]
    pub const fn text(mut self, rule: TextRule) -> Self {
        self.text = Some(rule);
        self
    }
    /// Another name, accepted for ever.
    #[must_use]
    pub const fn alias(mut self, name: &'static str) -> Self {
        self.alias = Some(name);
        self
    }
    /// Deprecated in favor of another key.
    #[must_use]
    pub const fn replaced_by(mut self, path: &'static str) -> Self {
        self.replaced_by = Some(path);
        self
    }
    /// Values other than the default need a feature that is not there yet.
    #[must_use]
    pub const fn later(mut self, feature: &'static str) -> Self {
        self.later = Some(feature);
        self
    }

    /// Whether a number is within the bounds.
    #[must_use]
    pub fn admits(&self, value: f64) -> bool {
        self.min.is_none_or(|min| if self.min_open { value > min } else { value >= min })
            && self.max.is_none_or(|max| if self.max_open { value < max } else { value <= max })
    }

    /// The bounds in words, after the word for the type: ` from 0 to 1`, ` of at least 1`.
    #[must_use]
    pub fn range(&self) -> String {
        let below = if self.max_open { "below " } else { "" };
        match (self.min, self.max) {
            (None, None) => String::new(),
            (Some(min), None) if self.min_open => format!(" above {}", plain(min)),
            (Some(min), None) => format!(" of at least {}", plain(min)),
            (None, Some(max)) if self.max_open => format!(" below {}", plain(max)),
            (None, Some(max)) => format!(" of at most {}", plain(max)),
            (Some(min), Some(max)) if self.min_open => {
                format!(" above {}, up to {below}{}", plain(min), plain(max))
            }
            (Some(min), Some(max)) => format!(" from {} to {below}{}", plain(min), plain(max)),
        }
    }
}

/// A bound as people write it: no exponent, no `.0`.
fn plain(value: f64) -> String {
    format!("{value}")
}

impl Kind {
    /// The kind in words, with its range: `a whole number from 1 to 65536`.
    #[must_use]
    pub fn expected(&self, rules: &Rules) -> String {
        let text_rule = || rules.text.map(|(rule, _)| format!(" ({rule})")).unwrap_or_default();
        match self {
            Self::Bool => "`true` or `false`".to_owned(),
            Self::Integer => format!("a whole number{}", rules.range()),
            Self::Number => format!("a number{}", rules.range()),
            Self::Text => format!("text{}", text_rule()),
            Self::TextOrInteger => format!("text or a whole number{}", text_rule()),
            Self::Secret => "a secret text".to_owned(),
            Self::Choice(words) => one_of(words.iter().map(|w| w.name)),
            Self::List(kind) => match kind {
                Self::Section(_) => "a list of mappings".to_owned(),
                Self::Text => format!("a list of texts{}", text_rule()),
                Self::Number => format!("a list of numbers{}", rules.range()),
                other => format!("a list, each item {}", other.expected(rules)),
            },
            Self::Section(_) => "a mapping".to_owned(),
            Self::Optional(kind) => format!("{} or null", kind.expected(rules)),
            Self::TargetModules => "a list of module names, or `all-linear`".to_owned(),
            Self::RopeScaling => "a mapping with `type` and the numbers of that type".to_owned(),
            Self::Thresholds => {
                "a mapping from `critical`, `high`, `medium`, `low` to numbers from 0 to 1"
                    .to_owned()
            }
        }
    }

    /// The kind within `Optional`.
    #[must_use]
    pub fn inner(&self) -> &Self {
        match self {
            Self::Optional(kind) => kind.inner(),
            other => other,
        }
    }
}

/// ``one of `a`, `b`, `c` ``.
pub(crate) fn one_of<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.map(|w| format!("`{w}`")).collect();
    format!("one of {}", words.join(", "))
}
