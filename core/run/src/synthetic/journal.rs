//! Rows and what is known of each, kept so that a start goes on where the last one ended.
//!
//! Two files grow together: the rows, and beside them `<rows>.provenance.jsonl`, a line for each answer
//! with its prompt, teacher, time and tries, and a key: the digest of everything that decided it. A row
//! goes to the disk first, its provenance next. So after a kill at any moment there is at most one row
//! without provenance, the last; its prompt says which it is, and it is written down as recovered.
//!
//! **Invariant:** nothing here is overwritten; a line that is there and does not fit refuses the start.

use super::error::SyntheticError;
use super::row;
use crate::error::RunError;
use crate::event::{Event, Observer};
use forgelm_artifact::hash::sha256_bytes;
use forgelm_artifact::jsonl::Reader;
use forgelm_artifact::write::{self, AppendLog};
use forgelm_artifact::{Clock, Disk, json as canonical};
use forgelm_config::SyntheticFormat;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The files of one output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) rows: PathBuf,
    pub(super) provenance: PathBuf,
    pub(super) manifest: PathBuf,
}

impl Places {
    pub(super) fn of(rows: &Path) -> Self {
        let beside = |suffix: &str| {
            let mut name = rows.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        Self {
            rows: rows.to_owned(),
            provenance: beside(".provenance.jsonl"),
            manifest: beside(".manifest.json"),
        }
    }

    /// Of the file that is locked while rows are generated.
    pub(super) fn lock_name(&self) -> String {
        let name = self.rows.file_name().map(|name| name.to_string_lossy().into_owned());
        format!(".{}.lock", name.unwrap_or_default())
    }
}

/// What the rows are to be.
pub(super) struct Wanted<'a> {
    pub(super) prompts: &'a [String],
    /// One for each prompt.
    pub(super) keys: Vec<String>,
    pub(super) format: SyntheticFormat,
}

/// The key of each prompt: the digest of who is asked, how, which prompt as the how-manieth, and the
/// answer where it is known before.
pub(super) fn keys<'t>(
    identity: &Value,
    prompts: &[String],
    known: impl Fn(&str) -> Option<&'t str>,
) -> Vec<String> {
    let key = |(index, prompt): (usize, &String)| {
        let all = json!({
            "teacher": identity,
            "index": index,
            "prompt": prompt,
            "answer": known(prompt),
        });
        // Numbers of a config are within what canonical JSON takes.
        let text = canonical::canonical(&all).unwrap_or_else(|_| all.to_string());
        sha256_bytes(text.as_bytes()).to_string()
    };
    prompts.iter().enumerate().map(key).collect()
}

/// An answer that is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered<'a> {
    pub(super) text: &'a str,
    pub(super) is_cut: bool,
}

/// Who was asked, and how often.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tried<'a> {
    pub(super) by: &'a str,
    pub(super) n: u32,
}

/// What is known of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    /// 1-based line of its row; none where the answer was empty.
    row: Option<u64>,
    is_cut: bool,
}

/// The open files.
pub(super) struct Journal<'a> {
    places: Places,
    wanted: Wanted<'a>,
    clock: &'a dyn Clock,
    rows: AppendLog,
    provenance: AppendLog,
    n_rows: u64,
    known: BTreeMap<usize, Known>,
    /// The system message that rows have.
    system: Option<String>,
    /// Whether the rows were complete, as far as they went.
    was_finished: bool,
}

impl<'a> Journal<'a> {
    /// Opens what is there and checks every line of it, or begins.
    ///
    /// # Errors
    /// If there are rows of which nothing is known, of other settings, or that were changed.
    pub(super) fn open(
        places: Places,
        wanted: Wanted<'a>,
        clock: &'a dyn Clock,
        observer: &mut dyn Observer,
    ) -> Result<Self, RunError> {
        // The provenance is there before the first row is: rows without it are of somebody else, and
        // not one byte of them is touched.
        let has_rows = places.rows.metadata().is_ok_and(|metadata| metadata.len() > 0);
        if has_rows && !places.provenance.is_file() {
            let problem = format!("there is no `{}`", places.provenance.display());
            return Err(SyntheticError::NotOurs { path: places.rows, problem }.into());
        }
        // Their names are on the disk before anything is paid for.
        for path in [&places.provenance, &places.rows] {
            if path.symlink_metadata().is_err() {
                write::atomic(path, b"")?;
            }
        }
        let disk = Disk::real();
        let (provenance, torn) = AppendLog::recover(&disk, &places.provenance)?;
        let (rows, torn_row) = AppendLog::recover(&disk, &places.rows)?;
        if !torn_row.is_empty() || !torn.is_empty() {
            let text = format!("{}: a line that a kill cut off is removed", places.rows.display());
            observer.observe(&Event::Warning(text));
        }
        let was_finished = places.manifest.is_file();
        let mut journal = Self {
            places,
            wanted,
            clock,
            rows,
            provenance,
            n_rows: 0,
            known: BTreeMap::new(),
            system: None,
            was_finished,
        };
        let expected = journal.read_provenance()?;
        journal.check_rows(&expected, observer)?;
        Ok(journal)
    }

    /// With a system message in each row, where the format has one.
    pub(super) fn with_system(mut self, system: Option<&str>) -> Self {
        self.system = system.map(str::to_owned);
        self
    }

    /// The digest of each row that the provenance names, in the order of rows.
    fn read_provenance(&mut self) -> Result<Vec<String>, RunError> {
        let path = self.places.provenance.clone();
        let mut reader = Reader::open(&path)?;
        let mut expected = Vec::new();
        while let Some(line) = reader.next_line() {
            let line = line?;
            let number = usize::try_from(line.number).unwrap_or(usize::MAX);
            let entry = line.json()?;
            let odd = |what: &str| SyntheticError::NotOurs {
                path: path.clone(),
                problem: format!("line {number} {what}"),
            };
            let index = entry["index"].as_u64().and_then(|index| usize::try_from(index).ok());
            let index = index.ok_or_else(|| odd("has no `index`"))?;
            let key = entry["key"].as_str().ok_or_else(|| odd("has no `key`"))?;
            if self.wanted.keys.get(index).is_none_or(|wanted| wanted != key) {
                return Err(SyntheticError::OtherSettings { path, line: number, index }.into());
            }
            let row = entry["row"].as_u64();
            if let Some(row) = row {
                let digest =
                    entry["row_sha256"].as_str().ok_or_else(|| odd("has no `row_sha256`"))?;
                expected.push(digest.to_owned());
                if row != expected.len() as u64 {
                    return Err(odd("is not of the next row").into());
                }
            }
            let is_cut = entry["is_cut"] == true;
            let known = self.known.entry(index).or_insert(Known { row, is_cut });
            if row.is_some() {
                *known = Known { row, is_cut };
            }
        }
        Ok(expected)
    }

    /// Every row is as its provenance says; one more is the last that was answered before a kill.
    fn check_rows(
        &mut self,
        expected: &[String],
        observer: &mut dyn Observer,
    ) -> Result<(), RunError> {
        let path = self.places.rows.clone();
        let changed = |problem: String| SyntheticError::Changed { path: path.clone(), problem };
        let mut reader = Reader::open(&path)?;
        let mut more = None;
        while let Some(line) = reader.next_line() {
            let text = line?.text.to_owned();
            self.n_rows += 1;
            let at = usize::try_from(self.n_rows).unwrap_or(usize::MAX) - 1;
            match expected.get(at) {
                Some(digest) if *digest == sha256_bytes(text.as_bytes()).as_str() => {}
                Some(_) => {
                    let problem = format!("row {} is not the one that was generated", self.n_rows);
                    return Err(changed(problem).into());
                }
                None if more.is_none() => more = Some(text),
                None => {
                    let problem = format!("row {} and those after it were added", self.n_rows - 1);
                    return Err(changed(problem).into());
                }
            }
        }
        if self.n_rows < expected.len() as u64 {
            let problem = format!(
                "{} of {} rows are missing",
                expected.len() as u64 - self.n_rows,
                expected.len()
            );
            return Err(changed(problem).into());
        }
        let Some(text) = more else { return Ok(()) };
        let prompt = row::prompt_of(self.wanted.format, &text);
        let is_asked = |&index: &usize| prompt.as_deref() == Some(&*self.wanted.prompts[index]);
        let index = self.pending().into_iter().find(is_asked);
        let index = index.ok_or_else(|| changed("its last row was added".to_owned()))?;
        self.write_provenance(index, Some((self.n_rows, &text, false)), None, true)?;
        let text = format!("row {} had been answered when the last start ended", self.n_rows);
        observer.observe(&Event::Notice(text));
        Ok(())
    }

    /// Prompts that are to be asked, in their order. Ones that were answered with nothing are asked
    /// again once a start has come to its end.
    pub(super) fn pending(&self) -> Vec<usize> {
        let is_done = |index: &usize| match self.known.get(index) {
            Some(known) => known.row.is_some() || !self.was_finished,
            None => false,
        };
        (0..self.wanted.prompts.len()).filter(|index| !is_done(index)).collect()
    }

    /// Prompts that have a row.
    pub(super) fn n_answered(&self) -> usize {
        self.known.values().filter(|known| known.row.is_some()).count()
    }

    /// Rows whose answer was too long.
    pub(super) fn n_cut(&self) -> usize {
        self.known.values().filter(|known| known.row.is_some() && known.is_cut).count()
    }

    /// Keeps an answer: on the disk when this returns.
    pub(super) fn keep(
        &mut self,
        index: usize,
        answered: Answered<'_>,
        tried: Tried<'_>,
    ) -> Result<(), RunError> {
        let prompt = &self.wanted.prompts[index];
        let system = self.system.as_deref();
        let text = row::written(self.wanted.format, system, prompt, answered.text).to_string();
        self.rows.append_line(&text)?;
        self.n_rows += 1;
        self.write_provenance(
            index,
            Some((self.n_rows, &text, answered.is_cut)),
            Some(tried),
            false,
        )
    }

    /// Keeps that a prompt was answered with nothing, which was paid for too.
    pub(super) fn keep_empty(&mut self, index: usize, tried: Tried<'_>) -> Result<(), RunError> {
        self.write_provenance(index, None, Some(tried), false)
    }

    fn write_provenance(
        &mut self,
        index: usize,
        row: Option<(u64, &str, bool)>,
        tried: Option<Tried<'_>>,
        is_recovered: bool,
    ) -> Result<(), RunError> {
        let is_cut = row.is_some_and(|(_, _, is_cut)| is_cut);
        let entry = json!({
            "schema_version": 1,
            "index": index,
            "key": self.wanted.keys[index],
            "prompt_sha256": sha256_bytes(self.wanted.prompts[index].as_bytes()).as_str(),
            "row": row.map(|(number, ..)| number),
            "row_sha256": row.map(|(_, text, _)| sha256_bytes(text.as_bytes()).to_string()),
            "teacher": tried.map(|tried| tried.by),
            "tries": tried.map(|tried| tried.n),
            "is_cut": is_cut,
            "is_recovered": is_recovered,
            "answered_at": (!is_recovered).then(|| self.clock.utc().to_string()),
        });
        self.provenance.append_line(&entry.to_string())?;
        self.known.insert(index, Known { row: row.map(|(number, ..)| number), is_cut });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Answered, Journal, Places, Tried, Wanted, keys};
    use crate::error::RunError;
    use crate::event::{Event, Observer};
    use crate::exit::Exit;
    use forgelm_artifact::write;
    use forgelm_artifact::{FixedClock, UtcTime};
    use forgelm_config::SyntheticFormat;
    use serde_json::json;
    use std::path::Path;
    use tempfile::TempDir;

    const CLOCK: FixedClock = FixedClock(UtcTime(0));
    const TRIED: Tried<'static> = Tried { by: "t", n: 1 };

    struct Silent;

    impl Observer for Silent {
        fn observe(&mut self, _event: &Event) {}
    }

    fn prompts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn opened<'a>(
        dir: &TempDir,
        prompts: &'a [String],
        settings: &str,
    ) -> Result<Journal<'a>, RunError> {
        let keys = keys(&json!(settings), prompts, |_| None);
        let wanted = Wanted { prompts, keys, format: SyntheticFormat::PromptResponse };
        let places = Places::of(&dir.path().join("rows.jsonl"));
        Journal::open(places, wanted, &CLOCK, &mut Silent)
    }

    fn keep(journal: &mut Journal<'_>, index: usize, text: &str) {
        journal.keep(index, Answered { text, is_cut: false }, TRIED).unwrap();
    }

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    /// Two of three prompts answered, and the files as they are then.
    fn begun(dir: &TempDir, asked: &[String]) -> (Places, String, String) {
        let mut journal = opened(dir, asked, "s").unwrap();
        assert_eq!(journal.pending(), [0, 1, 2]);
        keep(&mut journal, 0, "one");
        keep(&mut journal, 1, "two");
        let places = journal.places.clone();
        (places.clone(), read(&places.rows), read(&places.provenance))
    }

    /// Whatever of the last two writes is there, in whole or in part, nothing is asked twice that was
    /// answered, and what is written in the end is the same.
    #[test]
    fn after_a_kill_at_any_byte_no_answer_is_asked_for_again() {
        let asked = prompts(&["a", "b", "c"]);
        let dir = tempfile::tempdir().unwrap();
        let (places, rows, provenance) = begun(&dir, &asked);
        let (first_row, first_entry) =
            (rows.find('\n').unwrap() + 1, provenance.find('\n').unwrap() + 1);
        // The row is written first, then what is known of it.
        let mut moments: Vec<(usize, usize)> =
            (first_row..=rows.len()).map(|n| (n, first_entry)).collect();
        moments.extend((first_entry..=provenance.len()).map(|n| (rows.len(), n)));
        // As after the very first row.
        moments.push((first_row, 0));
        assert!(moments.len() > 100);
        for (n_rows, n_provenance) in moments {
            write::atomic(&places.rows, &rows.as_bytes()[..n_rows]).unwrap();
            write::atomic(&places.provenance, &provenance.as_bytes()[..n_provenance]).unwrap();
            let mut journal = opened(&dir, &asked, "s").unwrap();
            let n_whole = rows[..n_rows].matches('\n').count();
            let expected: Vec<usize> = (n_whole..3).collect();
            assert_eq!(journal.pending(), expected, "{n_rows} {n_provenance}");
            for index in expected {
                keep(&mut journal, index, ["one", "two", "three"][index]);
            }
            let lines: Vec<String> = read(&places.rows).lines().map(str::to_owned).collect();
            assert_eq!(lines.len(), 3);
            assert_eq!(lines[1], r#"{"prompt":"b","response":"two"}"#);
            drop(journal);
            assert_eq!(opened(&dir, &asked, "s").unwrap().pending(), [0; 0]);
        }
        // Rows of somebody else, with or without an end of the line.
        for foreign in ["{\"prompt\": \"a\", \"response\": \"x\"}\n", "no end of the line"] {
            write::remove_file(&places.provenance).unwrap();
            write::atomic(&places.rows, foreign.as_bytes()).unwrap();
            assert_eq!(opened(&dir, &asked, "s").err().unwrap().exit(), Exit::Config);
            assert_eq!(read(&places.rows), foreign);
            write::atomic(&places.provenance, b"").unwrap();
        }
    }

    #[test]
    fn other_settings_other_prompts_and_other_rows_are_refused_and_left_as_they_are() {
        let asked = prompts(&["a", "b", "c"]);
        let dir = tempfile::tempdir().unwrap();
        let (places, rows, provenance) = begun(&dir, &asked);
        let refused = |asked: &[String], settings: &str| {
            let error = opened(&dir, asked, settings).err().expect("refused");
            (error.exit(), error.to_string())
        };
        assert_eq!(refused(&asked, "other").0, Exit::Config);
        let (exit, text) = refused(&prompts(&["b", "a", "c"]), "s");
        assert!(exit == Exit::Config && text.contains("line 1 is of other settings"), "{text}");
        assert_eq!(refused(&prompts(&["a"]), "s").0, Exit::Config);
        let more = prompts(&["a", "b", "c", "d"]);
        assert_eq!(opened(&dir, &more, "s").unwrap().pending(), [2, 3], "added at the end");

        for (changed, what) in [
            (rows.replace("one", "ONE"), "row 1 is not the one"),
            (rows.lines().next().unwrap().to_owned() + "\n", "1 of 2 rows are missing"),
            (rows.clone() + "{}\n", "its last row was added"),
            (rows.clone() + "{\"prompt\": \"a\", \"response\": \"x\"}\n", "its last row was added"),
            (rows.clone() + "{}\n{}\n", "row 3 and those after it were added"),
        ] {
            write::atomic(&places.rows, changed.as_bytes()).unwrap();
            let (exit, text) = refused(&asked, "s");
            assert!(exit == Exit::Integrity && text.contains(what), "{text}");
            assert_eq!(read(&places.rows), changed);
        }
        write::atomic(&places.rows, rows.as_bytes()).unwrap();
        for odd in ["{}\n", "{\"index\": 0}\n"] {
            write::atomic(&places.provenance, odd.as_bytes()).unwrap();
            assert_eq!(refused(&asked, "s").0, Exit::Config, "{odd}");
        }
        write::remove_file(&places.provenance).unwrap();
        let (exit, text) = refused(&asked, "s");
        assert!(exit == Exit::Config && text.contains("were not generated here"), "{text}");
        write::atomic(&places.provenance, provenance.as_bytes()).unwrap();
        assert_eq!(opened(&dir, &asked, "s").unwrap().pending(), [2]);
    }

    #[test]
    fn an_empty_answer_was_paid_for_and_is_asked_again_only_after_the_end() {
        let asked = prompts(&["a", "b"]);
        let dir = tempfile::tempdir().unwrap();
        let mut journal = opened(&dir, &asked, "s").unwrap();
        journal.keep_empty(0, TRIED).unwrap();
        let places = journal.places.clone();
        drop(journal);
        let mut journal = opened(&dir, &asked, "s").unwrap();
        assert_eq!(journal.pending(), [1]);
        keep(&mut journal, 1, "two");
        drop(journal);
        write::atomic(&places.manifest, b"{}").unwrap();
        let mut journal = opened(&dir, &asked, "s").unwrap();
        assert_eq!((journal.pending(), journal.n_answered()), (vec![0], 1));
        keep(&mut journal, 0, "one");
        drop(journal);
        let journal = opened(&dir, &asked, "s").unwrap();
        assert_eq!((journal.pending(), journal.n_answered()), (vec![], 2));
    }

    #[test]
    fn the_same_prompt_twice_is_two_prompts() {
        let asked = prompts(&["a", "a"]);
        let dir = tempfile::tempdir().unwrap();
        let mut journal = opened(&dir, &asked, "s").unwrap();
        keep(&mut journal, 0, "one");
        keep(&mut journal, 1, "two");
        let provenance = journal.places.provenance.clone();
        drop(journal);
        let text = read(&provenance);
        let first = &text[..=text.find('\n').unwrap()];
        write::atomic(&provenance, first.as_bytes()).unwrap();
        assert_eq!(opened(&dir, &asked, "s").unwrap().pending(), [0; 0], "the second is recovered");
    }
}
