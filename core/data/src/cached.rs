//! Which token files there are and which data they hold, for whoever must find every copy of a text.
//!
//! Only the description at a file's end is read: what is damaged elsewhere still holds tokens.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use forgelm_artifact::UtcTime;
use forgelm_artifact::hash::{Hasher, Sha256Hex};
use serde_json::Value;

use crate::store::read_description;

/// Where token files are, below the cache folder.
pub(crate) const TOKENS_DIR: &str = "tokens";
/// What the name of a token file ends with.
pub(crate) const TOKENS_SUFFIX: &str = ".tokens";

/// A token file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedTokens {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub n_bytes: u64,
    /// When it was written.
    pub modified: UtcTime,
    /// SHA-256 of each data file whose rows are in it; `None` if the file does not say.
    pub data: Option<Vec<Sha256Hex>>,
}

impl CachedTokens {
    /// Whether it holds rows of the data with this digest: that of one file, or of all of its files as
    /// [`fingerprint`](crate::fingerprint) joins them.
    #[must_use]
    pub fn holds(&self, sha256: &str) -> bool {
        let Some(files) = &self.data else { return false };
        let mut joined = Hasher::new();
        for file in files {
            joined.update(file.as_str().as_bytes());
            joined.update(b"\n");
        }
        files.iter().any(|file| file.as_str() == sha256) || joined.finish().as_str() == sha256
    }
}

/// The token files in a cache folder, sorted; none where there is no such folder.
///
/// # Errors
/// If the folder is there and cannot be listed.
pub fn cached_tokens(cache_dir: &Path) -> io::Result<Vec<CachedTokens>> {
    let entries = match std::fs::read_dir(cache_dir.join(TOKENS_DIR)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let metadata = path.symlink_metadata()?;
        let is_tokens = path.to_str().is_some_and(|path| path.ends_with(TOKENS_SUFFIX));
        if is_tokens && metadata.is_file() {
            let micros = metadata.mtime_nsec() / 1000;
            found.push(CachedTokens {
                n_bytes: metadata.len(),
                modified: UtcTime(metadata.mtime().saturating_mul(1_000_000) + micros),
                data: read_description(&path).ok().as_ref().and_then(digests),
                path,
            });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn digests(description: &Value) -> Option<Vec<Sha256Hex>> {
    let files = description.get("files")?.as_array()?;
    files.iter().map(|file| Sha256Hex::parse(file.get("sha256")?.as_str()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::cached_tokens;
    use crate::store::StoreWriter;
    use forgelm_artifact::hash::{Hasher, sha256_bytes};
    use forgelm_artifact::write;
    use serde_json::json;

    #[test]
    fn a_token_file_says_whose_rows_it_holds_also_when_its_tokens_are_damaged() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(cached_tokens(dir.path()).expect("nothing there"), []);
        let tokens = dir.path().join("tokens");
        write::create_dir_all_durable(&tokens).expect("made");
        let shas = [sha256_bytes(b"a"), sha256_bytes(b"b")];
        let files: Vec<_> = shas.iter().map(|sha| json!({"sha256": sha.as_str()})).collect();
        let path = tokens.join("k.tokens");
        write::atomic_with(&path, |out| {
            StoreWriter::new(out)?.finish(&json!({"key": "k", "files": files}))
        })
        .expect("written");
        let mut bytes = std::fs::read(&path).expect("read");
        bytes[7] ^= 1;
        write::atomic(&path, &bytes).expect("written");
        write::atomic(&tokens.join("short.tokens"), b"x").expect("written");
        write::atomic(&tokens.join("other"), b"x").expect("written");
        let found = cached_tokens(dir.path()).expect("listed");
        assert_eq!(found.len(), 2);
        let mut joined = Hasher::new();
        joined.update(format!("{}\n{}\n", shas[0], shas[1]).as_bytes());
        for sha in [shas[0].as_str(), shas[1].as_str(), joined.finish().as_str()] {
            assert!(found[0].holds(sha));
        }
        assert!(!found[0].holds(sha256_bytes(b"c").as_str()));
        assert_eq!(found[1].data, None);
    }
}
