use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use forgelm_data::{Code, DataError, Dataset, RecordKind};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use crate::{assert_problem, open_bytes, problem};

const ROWS: &str = "{\"text\": \"one\"}\n\n{\"text\": \"two\"}\n";

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn zstd(text: &[u8]) -> Vec<u8> {
    compress_to_vec(text, CompressionLevel::Fastest)
}

fn texts(result: Result<Dataset, DataError>) -> Vec<(u64, String)> {
    let text = |kind: &RecordKind| match kind {
        RecordKind::Text(text) => text.clone(),
        other => panic!("{other:?}"),
    };
    result.unwrap().records.iter().map(|record| (record.line, text(&record.kind))).collect()
}

#[test]
fn every_text_format_is_read_compressed() {
    let expected = [(1, "one".to_owned()), (3, "two".to_owned())];
    for (name, pack) in [
        ("rows.jsonl.gz", gzip as fn(&[u8]) -> Vec<u8>),
        ("rows.jsonl.zst", zstd),
        ("rows.json.gz", gzip),
        ("ROWS.JSONL.GZ", gzip),
    ] {
        assert_eq!(texts(open_bytes(name, &pack(ROWS.as_bytes()))), expected, "{name}");
    }
    let array = b"[{\"text\": \"one\"},\n{\"text\": \"two\"}]";
    let csv = b"text\none\ntwo\n";
    for (name, packed, lines) in [
        ("rows.json.zst", zstd(array), [1, 2]),
        ("rows.json.gz", gzip(array), [1, 2]),
        ("rows.csv.gz", gzip(csv), [2, 3]),
        ("rows.csv.zst", zstd(csv), [2, 3]),
    ] {
        let found = texts(open_bytes(name, &packed));
        assert_eq!(found, [(lines[0], "one".to_owned()), (lines[1], "two".to_owned())], "{name}");
    }
}

/// As `cat a.gz b.gz` makes them; Zstandard may have frames that hold nothing for us.
#[test]
fn files_that_were_joined_are_read_to_their_end() {
    let (a, b) = ROWS.split_at(17);
    let expected = texts(open_bytes("rows.jsonl", ROWS.as_bytes()));
    let joined = [gzip(a.as_bytes()), gzip(b.as_bytes())].concat();
    assert_eq!(texts(open_bytes("rows.jsonl.gz", &joined)), expected);
    let skippable = [&0x184D_2A50_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), b"xyz"].concat();
    let joined = [zstd(a.as_bytes()), skippable, zstd(b.as_bytes())].concat();
    assert_eq!(texts(open_bytes("rows.jsonl.zst", &joined)), expected);
}

#[test]
fn the_fingerprint_is_that_of_the_file_as_it_lies_there() {
    let packed = gzip(ROWS.as_bytes());
    let dataset = open_bytes("rows.jsonl.gz", &packed).unwrap();
    assert_eq!(dataset.files[0].n_bytes, packed.len() as u64);
    assert_eq!(dataset.fingerprint(), forgelm_artifact::hash::sha256_bytes(&packed));
}

#[test]
fn a_bad_row_has_the_line_of_the_text() {
    for (name, pack) in [("rows.jsonl.gz", gzip as fn(&[u8]) -> Vec<u8>), ("rows.jsonl.zst", zstd)]
    {
        let found = problem(open_bytes(name, &pack(b"{\"text\": \"a\"}\n\n{\"text\":}\n")));
        assert_problem(&found, Code::Json, 3, "");
    }
}

#[test]
fn fault_030_a_damaged_or_cut_file_is_refused() {
    let long: String = (0..3000).map(|i| format!("{{\"text\": \"row {}\"}}\n", i * i)).collect();
    let (gz, zst) = (gzip(long.as_bytes()), zstd(long.as_bytes()));
    let cut = |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec();
    let changed = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let at = bytes.len() - 2;
        bytes[at] ^= 0x40;
        bytes
    };
    for (name, bytes) in [
        ("cut.jsonl.gz", cut(&gz)),
        ("cut.jsonl.zst", cut(&zst)),
        // The end of both formats is a checksum.
        ("changed.jsonl.gz", changed(&gz)),
        ("changed.jsonl.zst", changed(&zst)),
        ("plain.jsonl.gz", long.clone().into_bytes()),
        ("plain.jsonl.zst", long.clone().into_bytes()),
        ("more.jsonl.zst", [zst, b"more".to_vec()].concat()),
    ] {
        let found = problem(open_bytes(name, &bytes));
        assert_eq!((found.code, found.line), (Code::Compressed, None), "{name}: {found}");
        assert!(found.to_string().contains("cannot be decompressed"), "{found}");
        assert!(found.to_string().contains("hint: was it copied or downloaded whole?"), "{found}");
    }
    let found = problem(open_bytes("cut.jsonl.gz", &cut(&gz)));
    assert!(found.to_string().contains("it ends in the middle"), "{found}");
}

/// A million bytes of blank lines for each thousand of the file.
#[test]
fn fault_030_a_bomb_is_refused_after_its_first_part() {
    let blank = vec![b'\n'; 100 << 20];
    for (name, bytes) in [("bomb.jsonl.gz", gzip(&blank)), ("bomb.jsonl.zst", zstd(&blank))] {
        assert!(bytes.len() < blank.len() / 500, "{name} is no bomb: {}", bytes.len());
        let found = problem(open_bytes(name, &bytes));
        assert_eq!(found.code, Code::Compressed, "{name}: {found}");
        assert!(found.to_string().contains("more than 200 times as much text"), "{found}");
    }
}

#[test]
fn other_compressed_files_are_not_data() {
    for name in ["rows.parquet.gz", "rows.gz", "rows.txt.gz", "rows.jsonl.bz2", "rows.jsonl.gz.gz"]
    {
        let found = problem(open_bytes(name, b"x"));
        assert_eq!(found.code, Code::Format, "{name}: {found}");
        assert!(found.expected.contains("`.gz` or `.zst`"), "{found}");
    }
}
