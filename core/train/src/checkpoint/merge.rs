//! A whole checkpoint out of one in shards.

use super::manifest::Manifest;
use super::{CheckpointError, MANIFEST, OPTIMIZER, damaged, json, open_pieces};
use forgelm_artifact::hash::HashingWriter;
use forgelm_artifact::write::{StagedDir, WriteError};
use std::collections::BTreeMap;
use std::path::Path;

/// Why shards did not become a whole checkpoint. They are untouched.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The checkpoint is not what its manifest says.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The whole one could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Writes the checkpoint in `folder` whole: into `output`, which must not exist, or in its own place.
/// The bytes are those that it has where it was never cut. Every byte is verified first, and nothing
/// but the files' pages is held in memory. How many shards there were.
///
/// # Errors
/// If it is whole already, a shard is missing, changed or of another checkpoint, or the disk refuses.
pub fn merge(folder: &Path, output: Option<&Path>) -> Result<usize, MergeError> {
    let manifest = Manifest::read(folder)?;
    let Some(shards) = &manifest.shards else {
        return Err(CheckpointError::Whole { path: folder.to_owned() }.into());
    };
    manifest.verify(folder)?;
    let mut dir = StagedDir::new(output.unwrap_or(folder))?;
    let mut files = BTreeMap::new();
    for file in shards.numbers_file().into_iter().chain([OPTIMIZER]) {
        let pieces = open_pieces(&manifest.paths(folder, file))?;
        let mut sha256 = None;
        dir.write_with(file, |w| {
            let mut hashing = HashingWriter::new(w);
            pieces.write_whole(&mut hashing)?;
            sha256 = Some(hashing.finish().0);
            Ok(())
        })?;
        files.extend(sha256.map(|sha256| (file.to_owned(), sha256.to_string())));
    }
    for (name, sha256) in &manifest.files {
        let path = folder.join(name);
        let bytes =
            std::fs::read(&path).map_err(|error| damaged(path.clone(), &error.to_string()))?;
        dir.write(name, &bytes)?;
        files.insert(name.clone(), sha256.clone());
    }
    dir.write(MANIFEST, &json(&Manifest::of_whole(files)))?;
    match output {
        Some(_) => dir.commit()?,
        None => dir.commit_replacing()?,
    }
    Ok(shards.n)
}
