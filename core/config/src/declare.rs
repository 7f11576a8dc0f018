//! The two macros with which sections and word lists are declared, once each.

/// Declares a section: its struct with public fields, its default, its table, its reader, its dump.
///
/// ```text
/// /// What the section is for.
/// Lora {
///     /// What the field means.
///     r: usize = 8, min(1.0), max(65536.0);
/// }
/// ```
macro_rules! section {
    (
        $(#[doc = $section_doc:literal])+
        $name:ident {
            $(
                $(#[doc = $doc:literal])+
                $key:ident: $type:ty = $default:expr $(, $rule:ident($($arg:expr),*))*;
            )*
        }
    ) => {
        $(#[doc = $section_doc])+
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $key: $type, )*
        }

        impl $name {
            /// The table of the section's fields.
            pub const SPEC: $crate::spec::SectionSpec = $crate::spec::SectionSpec {
                name: stringify!($name),
                doc: concat!($($section_doc, "\n"),+),
                fields: &[ $(
                    $crate::spec::Field {
                        key: stringify!($key),
                        doc: concat!($($doc, "\n"),+),
                        kind: <$type as $crate::read::Readable>::KIND,
                        rules: $crate::spec::Rules::NONE$(.$rule($($arg),*))*,
                        default: || <$type as $crate::read::Readable>::to_json(&$default),
                    },
                )* ],
            };
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $key: $default, )* }
            }
        }

        impl $crate::read::Readable for $name {
            const KIND: $crate::spec::Kind = $crate::spec::Kind::Section(&Self::SPEC);

            fn read(
                node: &$crate::yaml::Node,
                path: &str,
                _rules: &$crate::spec::Rules,
                reader: &mut $crate::read::Reader,
            ) -> Option<Self> {
                let mut section = reader.open(node, path, &Self::SPEC)?;
                Some(Self { $( $key: section.field(stringify!($key), || $default), )* })
            }

            fn to_json(&self) -> serde_json::Value {
                let mut map = serde_json::Map::new();
                for (field, value) in Self::SPEC.fields.iter().zip([
                    $( <$type as $crate::read::Readable>::to_json(&self.$key), )*
                ]) {
                    if field.rules.replaced_by.is_none() {
                        map.insert(field.key.to_owned(), value);
                    }
                }
                serde_json::Value::Object(map)
            }
        }
    };
}

/// Declares a list of words and the enum that they choose from. `later` names a missing feature.
macro_rules! choice {
    (
        $(#[doc = $enum_doc:literal])+
        $name:ident {
            $(
                $(#[doc = $doc:literal])+
                $variant:ident = $word:literal $(| $alias:literal)* $(later $feature:literal)?,
            )+
        }
    ) => {
        $(#[doc = $enum_doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $( $(#[doc = $doc])+ $variant, )+
        }

        impl $name {
            /// Every word, in the order of the documentation.
            pub const CHOICES: &'static [$crate::spec::ChoiceSpec] = &[ $(
                $crate::spec::ChoiceSpec {
                    name: $word,
                    aliases: &[$($alias),*],
                    doc: concat!($($doc, "\n"),+),
                    later: choice!(@later $($feature)?),
                },
            )+ ];

            /// The word of the config.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $( Self::$variant => $word, )+
                }
            }

            /// The variant of a word or of another spelling of it.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                match word {
                    $( $word $(| $alias)* => Some(Self::$variant), )+
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::read::Readable for $name {
            const KIND: $crate::spec::Kind = $crate::spec::Kind::Choice(Self::CHOICES);

            fn read(
                node: &$crate::yaml::Node,
                path: &str,
                rules: &$crate::spec::Rules,
                reader: &mut $crate::read::Reader,
            ) -> Option<Self> {
                reader.choice(node, path, rules, Self::CHOICES, Self::from_word)
            }

            fn to_json(&self) -> serde_json::Value {
                self.as_str().into()
            }
        }
    };
    (@later) => { None };
    (@later $feature:literal) => { Some($feature) };
}

pub(crate) use choice;
pub(crate) use section;
