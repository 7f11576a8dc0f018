use std::path::{Path, PathBuf};

use forgelm_config::{Data, TrainerType};
use forgelm_data::{
    Code, DataError, PrepareRequest, Prepared, RenderSettings, Renderer, find_files, prepare,
};
use forgelm_tokenize::Tokenizer;

use crate::golden;

const SETTINGS: RenderSettings = RenderSettings {
    max_length: 64,
    train_on_all: false,
    add_eos: true,
    template_now: None,
    bos_before_prompt: false,
    threads: 2,
};

pub struct Bench {
    dir: tempfile::TempDir,
    tokenizer: Tokenizer,
}

impl Bench {
    pub fn new() -> Self {
        let tokenizer = Tokenizer::from_folder(&golden().join("models/tokenizer")).unwrap();
        Bench { dir: tempfile::tempdir().unwrap(), tokenizer }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn prepare(&self, section: &Data, trainer: TrainerType) -> Result<Prepared, DataError> {
        self.prepare_with(section, trainer, SETTINGS)
    }

    fn prepare_with(
        &self,
        section: &Data,
        trainer: TrainerType,
        settings: RenderSettings,
    ) -> Result<Prepared, DataError> {
        let names = [section.dataset_name_or_path.clone()];
        let names = names.iter().chain(section.extra_datasets.iter().flatten());
        let sources: Vec<_> =
            names.map(|name| find_files(name, Path::new(name)).unwrap()).collect();
        let template = self.tokenizer.chat_template(None).unwrap();
        let renderer = Renderer::new(&self.tokenizer, Some(&template), settings);
        let cache_dir = &self.dir.path().join("cache");
        prepare(&PrepareRequest { section, trainer, sources: &sources, cache_dir }, &renderer)
    }

    fn cached(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.dir.path().join("cache/tokens")) else {
            return Vec::new();
        };
        let mut files: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
        files.sort();
        files
    }
}

pub fn section(path: &Path) -> Data {
    Data { dataset_name_or_path: path.to_str().unwrap().to_owned(), ..Data::default() }
}

fn rows(prefix: &str, n: usize) -> String {
    (0..n).map(|i| format!("{{\"text\": \"{prefix} {i} {}\"}}\n", "x".repeat(i % 7))).collect()
}

fn all_tokens(prepared: &Prepared) -> Vec<Vec<u32>> {
    let units: Vec<usize> = (0..prepared.train.len()).collect();
    prepared.train.read(&units).unwrap().into_iter().map(|s| s.tokens).collect()
}

#[test]
fn a_run_gets_what_rendering_in_memory_gives_on_any_number_of_threads() {
    let bench = Bench::new();
    let path = bench.write("rows.jsonl", &rows("text", 9000));
    let section = section(&path);
    let dataset = forgelm_data::open(&section, TrainerType::Sft).unwrap();
    let split = forgelm_data::split(9000, None);
    let in_memory = Renderer::new(&bench.tokenizer, None, SETTINGS);
    let expected = in_memory.render(&dataset.records, &split.train).unwrap();
    let held_out = in_memory.render(&dataset.records, &split.validation).unwrap();
    let mut files = Vec::new();
    for threads in [1, 2, 5] {
        for cached in bench.cached() {
            std::fs::remove_file(cached).unwrap();
        }
        let settings = RenderSettings { threads, ..SETTINGS };
        let prepared = bench.prepare_with(&section, TrainerType::Sft, settings).unwrap();
        let units: Vec<usize> = (0..prepared.train.len()).collect();
        assert_eq!(prepared.train.read(&units).unwrap(), expected.sequences);
        let units: Vec<usize> = (0..prepared.validation.len()).collect();
        assert_eq!(prepared.validation.read(&units).unwrap(), held_out.sequences);
        assert_eq!(prepared.statistics[0].tokens, expected.statistics.tokens);
        assert_eq!(prepared.statistics[0].trained_tokens, expected.statistics.trained_tokens);
        assert_eq!(prepared.fingerprint(), dataset.fingerprint());
        assert_eq!(prepared.train.n_tokens(5), expected.sequences[5].tokens.len());
        let record = prepared.train.record(5);
        assert_eq!(prepared.train.origin(record), Some((path.clone(), record + 1)));
        files.push(std::fs::read(&bench.cached()[0]).unwrap());
    }
    assert!(files.windows(2).all(|pair| pair[0] == pair[1]), "the cache has the same bytes");
}

#[test]
fn the_cache_is_used_again_for_the_same_bytes_and_settings_only() {
    let bench = Bench::new();
    let path = bench.write("rows.jsonl", &rows("text", 20));
    let first = bench.prepare(&section(&path), TrainerType::Sft).unwrap();
    let [file] = bench.cached().try_into().unwrap();
    let written = std::fs::metadata(&file).unwrap().modified().unwrap();
    // The same bytes under another name.
    let copy = bench.write("other/copy.jsonl", &rows("text", 20));
    let again = bench.prepare(&section(&copy), TrainerType::Sft).unwrap();
    assert_eq!(bench.cached(), std::slice::from_ref(&file));
    assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), written);
    assert_eq!(all_tokens(&again), all_tokens(&first));
    assert_eq!(again.files[0][0].path, copy);
    assert!(again.notes.is_empty(), "{:?}", again.notes);
    // Anything that decides a token is another file.
    let shorter = RenderSettings { max_length: 8, ..SETTINGS };
    bench.prepare_with(&section(&path), TrainerType::Sft, shorter).unwrap();
    let unended = RenderSettings { add_eos: false, ..SETTINGS };
    bench.prepare_with(&section(&path), TrainerType::Sft, unended).unwrap();
    bench.prepare(&Data { clean_text: false, ..section(&path) }, TrainerType::Sft).unwrap();
    bench.write("rows.jsonl", &rows("text", 21));
    bench.prepare(&section(&path), TrainerType::Sft).unwrap();
    assert_eq!(bench.cached().len(), 5);
    // The split does not.
    bench
        .prepare(&Data { validation_split: Some(0.5), ..section(&path) }, TrainerType::Sft)
        .unwrap();
    assert_eq!(bench.cached().len(), 5);
}

#[test]
fn a_damaged_cache_is_found_and_made_again() {
    let bench = Bench::new();
    let path = bench.write("rows.jsonl", &rows("text", 20));
    let first = all_tokens(&bench.prepare(&section(&path), TrainerType::Sft).unwrap());
    let file = bench.cached().remove(0);
    let good = std::fs::read(&file).unwrap();
    let flipped = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 1;
        bad
    };
    for bad in [flipped(30), flipped(good.len() - 100), good[..good.len() / 2].to_vec(), Vec::new()]
    {
        std::fs::write(&file, bad).unwrap();
        let again = bench.prepare(&section(&path), TrainerType::Sft).unwrap();
        assert_eq!(all_tokens(&again), first);
        assert!(again.notes[0].contains("damaged"), "{:?}", again.notes);
        assert_eq!(std::fs::read(&file).unwrap(), good);
    }
}

#[test]
fn two_at_once_leave_one_good_file_and_refused_data_leaves_none() {
    let bench = Bench::new();
    let path = bench.write("rows.jsonl", &rows("text", 3000));
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    all_tokens(&bench.prepare(&section(&path), TrainerType::Sft).unwrap())
                })
            })
            .collect();
        let tokens: Vec<_> = runs.into_iter().map(|run| run.join().unwrap()).collect();
        assert!(tokens.windows(2).all(|pair| pair[0] == pair[1]));
    });
    assert_eq!(bench.cached().len(), 1);
    bench.write("rows.jsonl", &format!("{}[]\n", rows("text", 10)));
    let error = bench.prepare(&section(&path), TrainerType::Sft).unwrap_err();
    let DataError::Problems(problems) = error else { panic!("{error}") };
    assert_eq!(
        (problems.total, problems.shown[0].code, problems.shown[0].line),
        (1, Code::Row, Some(11))
    );
    assert_eq!(bench.cached().len(), 1);
}

#[test]
fn data_sets_are_mixed_by_weight_and_each_is_cached_once() {
    let bench = Bench::new();
    let a = bench.write("a.jsonl", &rows("first", 100));
    let b = bench.write(
        "b.csv",
        &("text\n".to_owned() + &(0..500).map(|i| format!("second {i}\n")).collect::<String>()),
    );
    let mixed = Data {
        extra_datasets: Some(vec![b.to_str().unwrap().to_owned()]),
        mix_ratio: Some(vec![0.7, 0.3]),
        validation_split: Some(0.0),
        ..section(&a)
    };
    let prepared = bench.prepare(&mixed, TrainerType::Sft).unwrap();
    // The specification's example at a tenth: 100 of 100 and 150 of 500, a mixture of 40 to 60.
    let taken: Vec<usize> = prepared.mixture.iter().map(|part| part.n_taken).collect();
    assert_eq!(taken, [100, 150]);
    assert_eq!(prepared.train.len(), 250);
    assert!(
        prepared.notes[0].contains("40.0 % of the mixture instead of the 70.0 %"),
        "{:?}",
        prepared.notes
    );
    let texts: Vec<String> =
        all_tokens(&prepared).iter().map(|ids| bench.tokenizer.decode(ids).unwrap()).collect();
    assert_eq!(texts.iter().filter(|text| text.starts_with("first")).count(), 100);
    assert_eq!(texts.iter().filter(|text| text.starts_with("second")).count(), 150);
    assert_eq!(texts.iter().collect::<std::collections::BTreeSet<_>>().len(), 250, "no row twice");
    assert_eq!(
        all_tokens(&bench.prepare(&mixed, TrainerType::Sft).unwrap()),
        all_tokens(&prepared)
    );
    let last = prepared.train.record(249);
    assert_eq!(prepared.train.origin(last).unwrap().0, b);
    assert_eq!(bench.cached().len(), 2);
    let whole =
        bench.prepare(&Data { mix_ratio: None, ..mixed.clone() }, TrainerType::Sft).unwrap();
    assert_eq!((whole.train.len(), bench.cached().len()), (600, 2));
    let three = Data { mix_ratio: Some(vec![1.0; 3]), ..mixed };
    let error = bench.prepare(&three, TrainerType::Sft).unwrap_err().to_string();
    assert!(error.contains("`data.mix_ratio` has 3 numbers; expected 2"), "{error}");
}

#[test]
fn splits_that_have_files_are_used_as_they_are() {
    let bench = Bench::new();
    bench.write("set/train.jsonl", &rows("t", 30));
    bench.write("set/test.jsonl", &rows("v", 4));
    let set = bench.dir.path().join("set");
    let prepared = bench.prepare(&section(&set), TrainerType::Sft).unwrap();
    assert_eq!((prepared.train.len(), prepared.validation.len()), (30, 4));
    assert!(prepared.notes[0].contains("test split validates"), "{:?}", prepared.notes);
    bench.write("set/validation.jsonl", &rows("v", 6));
    let prepared = bench.prepare(&section(&set), TrainerType::Sft).unwrap();
    assert_eq!((prepared.train.len(), prepared.validation.len()), (30, 6));
    let units: Vec<usize> = (0..6).collect();
    let first = prepared.validation.read(&units).unwrap().remove(0);
    assert_eq!(first.record, 30, "records of a run have numbers of their own");
}

#[test]
fn pairs_are_units_of_two_and_labels_need_both_kinds() {
    let bench = Bench::new();
    let row = |i: usize| {
        format!("{{\"prompt\": \"P{i}\", \"chosen\": \" a{i}\", \"rejected\": \" b\"}}\n")
    };
    let pairs = bench.write("pairs.jsonl", &(0..20).map(row).collect::<String>());
    let prepared = bench.prepare(&section(&pairs), TrainerType::Dpo).unwrap();
    assert_eq!((prepared.train.len(), prepared.validation.len()), (18, 2));
    let both = prepared.train.read(&[3]).unwrap();
    assert_eq!(both.len(), 2);
    assert_eq!(both[0].record, both[1].record);
    let roles: Vec<String> = both.iter().map(|s| format!("{:?}", s.role)).collect();
    assert_eq!(roles, ["Chosen", "Rejected"]);
    assert_eq!(prepared.train.n_tokens(3), both[0].tokens.len() + both[1].tokens.len());
    let label = |label: &str| {
        format!("{{\"prompt\": \"P\", \"completion\": \" a\", \"label\": {label}}}\n")
    };
    let one = bench.write("one.jsonl", &label("true").repeat(5));
    let error = bench.prepare(&section(&one), TrainerType::Kto).unwrap_err().to_string();
    assert!(error.contains("5 desirable answers and 0 others"), "{error}");
    let two = bench.write("two.jsonl", &(label("true").repeat(5) + &label("0")));
    let prepared = bench.prepare(&section(&two), TrainerType::Kto).unwrap();
    assert_eq!(prepared.train.len(), 5);
    assert!(prepared.notes[0].contains("5 desirable answers and 1 others"), "{:?}", prepared.notes);
    // Rewards are no loss to compare: nothing is held out.
    let prompts = bench.write("prompts.jsonl", &"{\"prompt\": \"P\"}\n".repeat(30));
    let prepared = bench.prepare(&section(&prompts), TrainerType::Grpo).unwrap();
    assert_eq!((prepared.train.len(), prepared.validation.len()), (30, 0));
}
