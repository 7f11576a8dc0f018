//! Where more of a row is known to be, and what can be done about each place.
//!
//! What is found is found by digest: the token cache names the data files that it holds, evidence names
//! the data that a run read, and merges and quantizations name the weights that they were made from. A
//! data file that rows were purged from before had other digests then: the log knows them. What no
//! digest leads to (mail, notebooks, a colleague's disk) nobody here can know.

use crate::error::RunError;
use crate::traces::{Traces, models};
use forgelm_artifact::hash::{Hasher, Sha256Hex};
use forgelm_artifact::jsonl;
use forgelm_artifact::open::OpenError;
use forgelm_data::{CachedTokens, cached_tokens};
use forgelm_evidence::bundle::COMPLIANCE_DIR;
use forgelm_evidence::documents::REPORT;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What holds a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CopyKind {
    /// Tokens of the data.
    TokenCache,
    /// A token file that does not say whose rows it has.
    UnknownTokenCache,
    /// Another name of the data file.
    HardLink,
    /// What a program that was stopped left beside the data file.
    Leftover,
    /// A repository that the data file lies in.
    GitHistory,
    /// A record of a step that failed, with its rows.
    Replay,
    /// What an evaluation, or the report of the run, kept of prompts and answers.
    Samples,
    /// The state of a run.
    Checkpoint,
    /// A tuned model, also one that waits for approval.
    FinalModel,
    /// A model that others were merged into.
    MergedModel,
    /// A model in fewer bytes.
    Export,
}

impl CopyKind {
    /// The word in results.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TokenCache => "token_cache",
            Self::UnknownTokenCache => "token_cache_unknown",
            Self::HardLink => "hard_link",
            Self::Leftover => "leftover",
            Self::GitHistory => "git_history",
            Self::Replay => "replay",
            Self::Samples => "evaluation_samples",
            Self::Checkpoint => "checkpoint",
            Self::FinalModel => "final_model",
            Self::MergedModel => "merged_model",
            Self::Export => "export",
        }
    }

    /// Whether it holds weights, from which no row can be taken out.
    #[must_use]
    pub const fn is_weights(self) -> bool {
        match self {
            Self::Checkpoint | Self::FinalModel | Self::MergedModel | Self::Export => true,
            Self::TokenCache
            | Self::UnknownTokenCache
            | Self::HardLink
            | Self::Leftover
            | Self::GitHistory
            | Self::Replay
            | Self::Samples => false,
        }
    }

    /// What can be done about it.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::TokenCache => "remove the file, or purge with --erase-caches: it is made again",
            Self::UnknownTokenCache => "damaged: remove the file, it is made again",
            Self::HardLink => {
                "the old bytes keep this other name: find it (find -samefile) and remove it"
            }
            Self::GitHistory => "earlier versions stay in its history until that is rewritten",
            Self::Leftover | Self::Replay => "remove the file",
            Self::Samples => "may quote the row: look into it, and remove what does",
            Self::Checkpoint => {
                "cannot be erased: weights that trained on the row; remove the checkpoint"
            }
            Self::FinalModel | Self::MergedModel | Self::Export => {
                "cannot be erased: weights that trained on the row; train again without it, or remove the model"
            }
        }
    }
}

/// A place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// What it is.
    pub kind: CopyKind,
    /// Where.
    pub path: PathBuf,
    /// The run that it is of.
    pub run_id: Option<String>,
    /// `digest`, or `path` where evidence only names the data file.
    pub matched_by: &'static str,
}

impl Copy {
    /// As results list it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "kind": self.kind.as_str(),
            "path": self.path,
            "run_id": self.run_id,
            "matched_by": self.matched_by,
            "can_be_erased": !self.kind.is_weights(),
            "remedy": self.kind.remedy(),
        })
    }
}

impl fmt::Display for Copy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.kind.as_str(), self.path.display(), self.kind.remedy())
    }
}

/// Where copies are looked for.
#[derive(Clone, Debug)]
pub struct Places<'a> {
    /// The data file, links followed.
    pub corpus: &'a Path,
    /// Its digest before the row is taken out.
    pub sha256: &'a str,
    /// Folders in which runs may be.
    pub roots: &'a [PathBuf],
    /// The program's cache.
    pub cache_dir: &'a Path,
    /// The log that knows of earlier erasures.
    pub log: &'a Path,
}

/// What is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copies {
    /// Every place, sorted by kind and path.
    pub known: Vec<Copy>,
    /// Whether every folder was looked into: there may be too many.
    pub is_complete: bool,
}

/// Every place that is known.
///
/// # Errors
/// If the cache or the data file's folder cannot be read.
pub fn find(places: &Places<'_>) -> Result<Copies, RunError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RunError::Open(OpenError::Io { path, source })
    };
    let mut digests = earlier(places.log, places.sha256);
    let cached = cached_tokens(places.cache_dir).map_err(failed(places.cache_dir))?;
    let mut found = Vec::new();
    for cached in cached {
        let kind = match &cached.data {
            None => CopyKind::UnknownTokenCache,
            Some(_) if digests.iter().any(|sha256| cached.holds(sha256)) => CopyKind::TokenCache,
            Some(_) => continue,
        };
        // A data set of several files has a digest of its own, by which runs name it.
        digests.extend(joined(&cached));
        found.push(Copy { kind, path: cached.path, run_id: None, matched_by: "digest" });
    }
    let metadata = places.corpus.symlink_metadata().map_err(failed(places.corpus))?;
    let beside =
        |kind, path: &Path| Copy { kind, path: path.to_owned(), run_id: None, matched_by: "path" };
    if metadata.nlink() > 1 {
        found.push(beside(CopyKind::HardLink, places.corpus));
    }
    found.extend(leftovers(places.corpus).map(|path| beside(CopyKind::Leftover, &path)));
    let is_repository = |dir: &&Path| dir.join(".git").exists();
    found.extend(
        places
            .corpus
            .ancestors()
            .skip(1)
            .find(is_repository)
            .map(|dir| beside(CopyKind::GitHistory, &dir.join(".git"))),
    );
    let is_complete = of_runs(&digests, places, &mut found);
    found.sort_by(|a, b| (a.kind, &a.path).cmp(&(b.kind, &b.path)));
    found.dedup();
    Ok(Copies { known: found, is_complete })
}

/// Everything that runs left which trained on the data, and what was made from it.
fn of_runs(digests: &BTreeSet<String>, places: &Places<'_>, found: &mut Vec<Copy>) -> bool {
    let (all, is_complete) = Traces::below(places.roots);
    let mut weights: BTreeSet<&str> = BTreeSet::new();
    for run in &all {
        let matched_by = if digests.iter().any(|sha256| run.has_data(sha256)) {
            "digest"
        } else if run.data.values().flatten().any(|name| is_named(name, places.corpus)) {
            "path"
        } else {
            continue;
        };
        weights.extend(run.weights.iter().map(String::as_str));
        let mut add = |kind, path| {
            found.push(Copy { kind, path, run_id: run.run_id.clone(), matched_by });
        };
        for model in models(&run.dir) {
            add(CopyKind::FinalModel, model);
        }
        for (kind, path) in named(&run.dir) {
            add(kind, path);
        }
    }
    let mut is_known = vec![false; all.len()];
    // What was made from what was made from it, until nothing is added.
    while let Some(i) = (0..all.len()).find(|&i| {
        !is_known[i] && all[i].made_from.iter().any(|sha256| weights.contains(sha256.as_str()))
    }) {
        is_known[i] = true;
        let made = &all[i];
        weights.extend(made.weights.iter().map(String::as_str));
        let kind = if made.kind == "export" { CopyKind::Export } else { CopyKind::MergedModel };
        let (path, run_id) = (made.dir.clone(), made.run_id.clone());
        found.push(Copy { kind, path, run_id, matched_by: "digest" });
    }
    is_complete
}

/// What a run's folder holds by its names.
fn named(dir: &Path) -> Vec<(CopyKind, PathBuf)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let kind = |name: &str| {
        if ["safety", "judge", "benchmark"].contains(&name) {
            Some(CopyKind::Samples)
        } else if name.starts_with("checkpoint-") {
            Some(CopyKind::Checkpoint)
        } else if name.contains(".staging") {
            Some(CopyKind::FinalModel)
        } else {
            name.starts_with("replay-step-").then_some(CopyKind::Replay)
        }
    };
    let found =
        entries.filter_map(|entry| Some((kind(entry.file_name().to_str()?)?, entry.path())));
    // It quotes one question of the data.
    let report = dir.join(COMPLIANCE_DIR).join(REPORT);
    let report = report.is_file().then_some((CopyKind::Samples, report));
    found.chain(report).collect()
}

/// Copies under temporary names that were never given the file's own: this program holds its lock, so
/// that no other is at work on them.
fn leftovers(corpus: &Path) -> impl Iterator<Item = PathBuf> {
    let name = corpus.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}.tmp-");
    let entries = corpus.parent().and_then(|dir| std::fs::read_dir(dir).ok());
    let names = entries.into_iter().flatten().flatten();
    names
        .filter(move |entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
}

/// Whether a configured name is that of the data file, or of a folder that it is in.
fn is_named(name: &str, corpus: &Path) -> bool {
    Path::new(name).canonicalize().is_ok_and(|named| corpus.starts_with(named))
}

/// The digest of all files of a token file together; of one file its own.
fn joined(cached: &CachedTokens) -> Option<String> {
    let files = cached.data.as_ref()?;
    if let [file] = &files[..] {
        return Some(file.to_string());
    }
    let mut hasher = Hasher::new();
    for file in files {
        hasher.update(format!("{file}\n").as_bytes());
    }
    Some(hasher.finish().to_string())
}

/// The digest of a data file and those that it had before rows were purged from it.
fn earlier(log: &Path, sha256: &str) -> BTreeSet<String> {
    let mut steps = Vec::new();
    if let Ok(mut lines) = jsonl::Reader::open(log) {
        while let Some(Ok(line)) = lines.next_line() {
            if !line.text.contains("data.erasure_completed") {
                continue;
            }
            let Ok(event) = serde_json::from_str::<Value>(line.text) else { continue };
            let digest = |key: &str| Some(Sha256Hex::parse(event.get(key)?.as_str()?)?.to_string());
            steps.extend(digest("corpus_sha256_before").zip(digest("corpus_sha256_after")));
        }
    }
    let mut digests = BTreeSet::from([sha256.to_owned()]);
    for (before, after) in steps.into_iter().rev() {
        if digests.contains(&after) {
            digests.insert(before);
        }
    }
    digests
}

#[cfg(test)]
mod tests {
    use super::{Copies, CopyKind, Places, earlier, find};
    use forgelm_artifact::hash::sha256_bytes;
    use forgelm_artifact::write;
    use serde_json::json;
    use std::path::Path;

    fn put(path: &Path, text: &str) {
        write::create_dir_all_durable(path.parent().expect("a folder")).expect("made");
        write::atomic(path, text.as_bytes()).expect("written");
    }

    fn sha(text: &str) -> String {
        sha256_bytes(text.as_bytes()).to_string()
    }

    #[test]
    fn digests_lead_from_the_data_through_runs_to_what_was_made_from_their_weights() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path().canonicalize().expect("real");
        let corpus = root.join("data/rows.jsonl");
        put(&corpus, "now");
        let [old, weights, merged] = [sha("old"), sha("weights"), sha("merged")];
        // A run that stopped before it had documents, on the data as it was before an erasure.
        put(
            &root.join("a/step_ledger.jsonl"),
            &json!({"entry": "start", "data_sha256": old}).to_string(),
        );
        put(&root.join("a/checkpoint-4/x"), "");
        put(&root.join("a/tuned/model_integrity.json"), &json!({"artifacts": [
            {"file": "model.safetensors", "sha256": weights}, {"file": "tokenizer.json", "sha256": sha("t")}]}).to_string());
        put(
            &root.join("b/compliance/merge_manifest.json"),
            &json!({"run_id": "fg-b",
            "models": [{"files": [{"name": "model.safetensors", "sha256": weights}]}],
            "outputs": [{"name": "model.safetensors", "sha256": merged}]})
            .to_string(),
        );
        put(
            &root.join("b/c/compliance/quantize_manifest.json"),
            &json!({"run_id": "fg-c",
            "model": {"files": [{"name": "model.safetensors", "sha256": merged}]}, "outputs": []})
            .to_string(),
        );
        // Made from another model with the same tokenizer.
        put(
            &root.join("d/compliance/merge_manifest.json"),
            &json!({"run_id": "fg-d",
            "models": [{"files": [{"name": "tokenizer.json", "sha256": sha("t")}]}], "outputs": []})
            .to_string(),
        );
        put(
            &root.join("e/step_ledger.jsonl"),
            &json!({"entry": "start", "data_sha256": sha("other")}).to_string(),
        );
        let log = root.join("data/audit_log.jsonl");
        put(&log, &(json!({"event": "data.erasure_completed", "corpus_sha256_before": old, "corpus_sha256_after": sha("now")}).to_string() + "\n"));
        let places = Places {
            corpus: &corpus,
            sha256: &sha("now"),
            roots: &[root.clone(), root.join("a")],
            cache_dir: &root.join("cache"),
            log: &log,
        };
        let Copies { known: found, is_complete } = find(&places).expect("found");
        assert!(is_complete);
        let shown: Vec<_> = found
            .iter()
            .map(|copy| {
                (copy.kind, copy.path.strip_prefix(&root).expect("below").to_str().expect("text"))
            })
            .collect();
        let expected = [
            (CopyKind::Checkpoint, "a/checkpoint-4"),
            (CopyKind::FinalModel, "a/tuned"),
            (CopyKind::MergedModel, "b"),
            (CopyKind::Export, "b/c"),
        ];
        assert_eq!(shown, expected);
        assert_eq!(found[3].run_id.as_deref(), Some("fg-c"));
        assert!(found[0].to_string().contains("cannot be erased: weights that trained on"));
    }

    #[test]
    fn a_chain_of_erasures_is_followed_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = dir.path().join("audit_log.jsonl");
        assert_eq!(earlier(&log, &sha("c")).len(), 1);
        let line = |before: &str, after: &str| {
            json!({"event": "data.erasure_completed", "corpus_sha256_before": sha(before), "corpus_sha256_after": sha(after)}).to_string() + "\n"
        };
        put(&log, &(line("a", "b") + &line("x", "y") + &line("b", "c") + "{torn"));
        let found = earlier(&log, &sha("c"));
        assert_eq!(found, [sha("a"), sha("b"), sha("c")].into());
    }
}
