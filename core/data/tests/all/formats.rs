use std::path::Path;

use forgelm_config::TrainerType;
use forgelm_data::{Code, RecordKind, find_files, open};

use crate::{assert_problem, open_bytes, open_bytes_for, problem, problems, section};

fn stored(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/formats").join(name)
}

fn texts(result: Result<forgelm_data::Dataset, forgelm_data::DataError>) -> Vec<(u64, String)> {
    let text = |kind: &RecordKind| match kind {
        RecordKind::Text(text) => text.clone(),
        other => panic!("{other:?}"),
    };
    result.unwrap().records.iter().map(|r| (r.line, text(&r.kind))).collect()
}

#[test]
fn csv_cells_may_hold_commas_quotes_and_line_ends() {
    let csv =
        "\u{feff}id,text\r\n1,plain é\r\n\r\n2,\"a, \"\"b\"\"\nc\"\n3,it's \"so\"\n4,\"\"\"\"";
    let expected = [(2, "plain é"), (4, "a, \"b\"\nc"), (6, "it's \"so\""), (7, "\"")];
    let expected: Vec<_> = expected.iter().map(|(line, t)| (*line, (*t).to_owned())).collect();
    assert_eq!(texts(open_bytes("rows.csv", csv.as_bytes())), expected);
    let turns = "System,User,Assistant\n,Q,A\nS,Q,A\n";
    let dataset = open_bytes("rows.csv", turns.as_bytes()).unwrap();
    let lengths: Vec<_> =
        dataset.records.iter().map(|r| r.kind.conversation().unwrap().len()).collect();
    assert_eq!(lengths, [2, 3]);
    let labels = "prompt,completion,label\nP, a,true\nP, b,0\n";
    let dataset = open_bytes_for(TrainerType::Kto, "rows.csv", labels.as_bytes()).unwrap();
    let wanted: Vec<bool> = dataset
        .records
        .iter()
        .map(|r| matches!(r.kind, RecordKind::Labelled { is_desirable: true, .. }))
        .collect();
    assert_eq!(wanted, [true, false]);
}

#[test]
fn wrong_csv_is_named_by_line() {
    for (csv, line, found) in [
        ("text\n\"a\" b\n", 2, "text after a closing quote"),
        ("text,b\nx\n", 2, "1 cells; expected 2"),
        ("text\n\"open\nx\n", 2, "a quote that never closes"),
        ("text,text\nx,y\n", 1, "two columns of the name `text`"),
    ] {
        let found_problem = problem(open_bytes("rows.csv", csv.as_bytes()));
        assert_problem(&found_problem, Code::Csv, line, "");
        assert!(found_problem.to_string().contains(found), "{found_problem}");
    }
    assert_problem(&problem(open_bytes("rows.csv", b"text\ncaf\xE9\n")), Code::Utf8, 2, "text");
    for empty in ["", "text\n", "\n\n"] {
        assert_eq!(
            problem(open_bytes("rows.csv", empty.as_bytes())).code,
            Code::NoRows,
            "{empty:?}"
        );
    }
    let other = problem(open_bytes("rows.csv", b"a,b\n1,2\n"));
    assert_problem(&other, Code::Columns, 2, "");
}

#[test]
fn parquet_of_the_python_stack_is_read_with_its_nested_columns() {
    let dataset = open(&section(&stored("chat-snappy.parquet")), TrainerType::Sft).unwrap();
    assert_eq!(dataset.records.len(), 5);
    for (i, record) in dataset.records.iter().enumerate() {
        let messages = record.kind.conversation().unwrap();
        assert_eq!(record.line, i as u64 + 1);
        assert_eq!(messages[0].content, format!("question {i}"));
        assert_eq!(
            (&*messages[1].role, &*messages[1].content),
            ("assistant", &*format!("answer é {i}"))
        );
    }
    let bytes = std::fs::read(stored("chat-snappy.parquet")).unwrap();
    assert_eq!(dataset.fingerprint(), forgelm_artifact::hash::sha256_bytes(&bytes));
    let labelled = open(&section(&stored("labelled-gzip.parquet")), TrainerType::Kto).unwrap();
    assert!(matches!(labelled.records[1].kind, RecordKind::Labelled { is_desirable: false, .. }));
}

#[test]
fn fault_029_damaged_and_unsupported_parquet_is_refused() {
    let zstd = problem(open(&section(&stored("labelled-zstd.parquet")), TrainerType::Kto));
    assert_eq!(zstd.code, Code::Parquet);
    assert!(zstd.to_string().contains("Snappy"), "{zstd}");
    let good = std::fs::read(stored("chat-snappy.parquet")).unwrap();
    for n in [0, 4, 12, good.len() / 2, good.len() - 1] {
        assert_eq!(problem(open_bytes("a.parquet", &good[..n])).code, Code::Parquet, "cut at {n}");
    }
    // Whatever byte is wrong, the answer is rows or a problem, never a crash.
    for at in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 0x5a;
        let result = open_bytes("a.parquet", &bad);
        assert!(result.is_ok() || problems(result).total > 0, "byte {at}");
    }
    let huge_footer = [b"PAR1", &[0xff; 4][..], b"PAR1"].concat();
    assert_eq!(problem(open_bytes("a.parquet", &huge_footer)).code, Code::Parquet);
}

#[test]
fn arrays_are_read_row_by_row_and_their_commas_are_checked() {
    let many = format!("[{}]", vec!["{\"text\": \"é\"}"; 30_000].join(",\n"));
    assert_eq!(open_bytes("rows.json", many.as_bytes()).unwrap().records.len(), 30_000);
    for (text, line) in [
        ("[{\"text\": \"a\"},\n,{\"text\": \"b\"}]", 2),
        ("[{\"text\": \"a\"},\n]", 2),
        ("[,]", 1),
        ("[[", 1),
    ] {
        let found = problem(open_bytes("rows.json", text.as_bytes()));
        assert_eq!((found.code, found.line), (Code::Json, Some(line)), "{text:?}: {found}");
    }
}

#[test]
fn a_folder_is_its_files_in_order_by_split() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("data/train-00001.jsonl", "{\"text\": \"c\"}\n");
    write("data/train-00000.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
    write("data/train.csv", "text\nd\n");
    write("dev.json", "[{\"text\": \"v\"}]");
    write("test/x.jsonl", "{\"text\": \"t\"}\n");
    write("other.jsonl", "{\"text\": \"o\"}\n");
    write("dataset_infos.json", "{}");
    write(".cache/train.jsonl", "x");
    write("README.md", "words");
    let files = find_files("set", dir.path()).unwrap();
    let names = |paths: &[std::path::PathBuf]| -> Vec<String> {
        let name =
            |p: &std::path::PathBuf| p.strip_prefix(dir.path()).unwrap().display().to_string();
        paths.iter().map(name).collect()
    };
    assert_eq!(
        names(&files.train),
        ["data/train-00000.jsonl", "data/train-00001.jsonl", "data/train.csv"]
    );
    assert_eq!(names(&files.validation), ["dev.json"]);
    assert_eq!(names(&files.test), ["test/x.jsonl"]);
    assert_eq!(names(&files.left_out), ["other.jsonl"]);
    let read = texts(open(&section(dir.path()), TrainerType::Sft));
    let expected = [(1, "a"), (2, "b"), (1, "c"), (2, "d")];
    assert_eq!(read, expected.map(|(line, text)| (line, text.to_owned())));
}
