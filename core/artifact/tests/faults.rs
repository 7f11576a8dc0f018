//! Foreign bytes: rows of the fault table, each refused with its reason, in bounded memory.

#![expect(clippy::unwrap_used, reason = "a test")]

use forgelm_artifact::gguf::build::{Builder, put_string};
use forgelm_artifact::gguf::{self, GgufError, GgufFile, Value};
use forgelm_artifact::jsonl::{JsonlError, Reader};
use forgelm_artifact::map::MappedFile;
use forgelm_artifact::safetensors::{self, SafetensorsError, SafetensorsFile, TensorToWrite};
use forgelm_artifact::sharded::ShardedError;
use forgelm_artifact::{Class, Disk, ShardedModel, hash, open, write};
use forgelm_tensor::Dtype;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

fn put(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    write::atomic(&path, bytes).unwrap();
    path
}

/// A safetensors file with this header and `n_data` bytes of data.
fn with_header(header: &str, n_data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; n_data]].concat()
}

fn safetensors_fault(bytes: &[u8]) -> String {
    let fault = safetensors::Header::parse(bytes).expect_err("must be refused");
    fault.to_string()
}

fn assert_safetensors_refused(cases: &[(Vec<u8>, &str)]) {
    for (bytes, expected) in cases {
        let found = safetensors_fault(bytes);
        assert!(found.contains(expected), "{found}; expected {expected}");
    }
}

fn good_safetensors() -> Vec<u8> {
    let (shape_a, shape_b) = ([2, 3], [4]);
    let tensors = [
        TensorToWrite::f32("b.weight", &shape_b, &[1.0, 2.0, 3.0, 4.0]),
        TensorToWrite::f32("a.weight", &shape_a, &[0.5; 6]),
    ];
    safetensors::to_bytes(&tensors, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))
}

#[test]
fn what_is_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = put(dir.path(), "x.safetensors", &good_safetensors());
    let file = SafetensorsFile::open(&path).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["a.weight", "b.weight"]);
    let a = file.tensor("a.weight").unwrap();
    assert_eq!((a.dtype, a.shape, a.n_values()), (Dtype::F32, &[2, 3][..], 6));
    assert_eq!(a.row_bytes(1, 1), [0.5_f32; 3].map(f32::to_le_bytes).concat());
    let b = file.tensor("b.weight").unwrap();
    assert_eq!(b.to_f32().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(file.metadata()["format"], "pt");
    assert!(file.tensor("c").is_none() && file.unchanged());
    let empty = safetensors::Header::parse(&with_header("{}", 0)).unwrap();
    assert!(empty.tensors.is_empty());
}

#[test]
fn fault_037_truncated_trailing_and_giant_headers() {
    let good = good_safetensors();
    for len in 0..good.len() {
        assert!(safetensors::Header::parse(&good[..len]).is_err(), "cut to {len}");
    }
    let with_length = |n: u64| [&n.to_le_bytes()[..], b"{}"].concat();
    assert_safetensors_refused(&[
        (b"".to_vec(), "0 bytes are too few"),
        ([good.clone(), vec![0]].concat(), "1 bytes after the last tensor"),
        (with_length(u64::MAX), "claims 18446744073709551615 bytes; at most 100000000"),
        (with_length(100_000_001), "at most 100000000"),
        (with_length(100_000_000), "but the file ends after 2; is it truncated?"),
        (with_header("[]", 0), "does not begin with `{`"),
        (with_header("{}x", 0), "not valid"),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let path = put(dir.path(), "cut.safetensors", &good[..good.len() - 1]);
    let error = SafetensorsFile::open(&path).unwrap_err();
    assert_eq!(error.class(), Class::Integrity);
    assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
}

#[test]
fn fault_038_offsets_shapes_and_dtypes() {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"x":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let two = |b: &str| {
        let a = r#""a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}"#;
        format!(r#"{{{a},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#)
    };
    let many = format!("[{}1]", "1,".repeat(16));
    assert_safetensors_refused(&[
        (with_header(&two("[4,8]"), 8), "tensor \"b\": offsets 4..8 overlap with \"a\""),
        (with_header(&two("[0,4]"), 8), "tensor \"a\": offsets 0..8 overlap with \"b\""),
        (with_header(&two("[10,14]"), 14), "tensor \"b\": 2 bytes before it belong to no tensor"),
        (with_header(&two("[8,12]"), 11), "reach past the 11 bytes of data"),
        (with_header(&one("F32", "[2]", "[0,9]"), 9), "F32 [2] needs 8 bytes; offsets 0..9 hold 9"),
        (with_header(&one("F32", "[2]", "[8,0]"), 8), "hold 0"),
        (with_header(&one("F32", "[4294967296,4294967296]", "[0,8]"), 8), "too many values"),
        (with_header(&one("F32", "[18446744073709551615,2]", "[0,8]"), 8), "too many values"),
        (with_header(&one("F32", "[-1]", "[0,4]"), 4), "invalid value: integer `-1`"),
        (with_header(&one("F32", "[1.5]", "[0,4]"), 4), "floating point `1.5`"),
        (with_header(&one("F32", &many, "[0,4]"), 4), "at most 16 sizes"),
        (with_header(&one("F33", "[1]", "[0,4]"), 4), "unknown dtype \"F33\""),
        (with_header(&one("Q8_0", "[32]", "[0,34]"), 34), "unknown dtype \"Q8_0\""),
        (with_header(r#"{"x":{"dtype":"U8","shape":[0]}}"#, 0), "missing field `data_offsets`"),
        (with_header(r#"{"x":{"dtype":"U8","y":1}}"#, 0), "unknown field `y`"),
        (with_header(r#"{"__metadata__":{"a":1}}"#, 0), "expected a string"),
    ]);
}

#[test]
fn fault_039_duplicate_names() {
    let entry = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    assert_safetensors_refused(&[
        (with_header(&format!(r#"{{"x":{entry},"x":{entry}}}"#), 1), "\"x\" is there twice"),
        (with_header(&format!(r#"{{"x":{entry},"\u0078":{entry}}}"#), 1), "\"x\" is there twice"),
        (with_header(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), "is there twice"),
        (with_header(r#"{"__metadata__":{"a":"","a":""}}"#, 0), "metadata \"a\" is there twice"),
        (with_header(r#"{"x":{"dtype":"U8","dtype":"U8"}}"#, 0), "duplicate field `dtype`"),
    ]);
}

#[test]
fn fault_040_names_that_could_become_paths_or_break_a_terminal() {
    let named = |name: &str| {
        let name = serde_json::to_string(name).unwrap();
        let entry = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
        with_header(&format!("{{{name}:{entry}}}"), 1)
    };
    assert_safetensors_refused(&[
        (named("../x"), "tensor \"../x\": a name may not lead out of its folder"),
        (named("a/../../x"), "may not lead out"),
        (named("..\\x"), "may not lead out"),
        (named("/x"), "may not lead out"),
        (named(""), "tensor \"\": a name may not be empty"),
        (named("a\0b"), "tensor \"a\\0b\": a name may not have control characters"),
        (named("\u{1b}[2J"), "tensor \"\\u{1b}[2J\""),
        (named(&"n".repeat(1 << 20)), "longer than 1024 bytes"),
    ]);
    let long = safetensors_fault(&named(&"n".repeat(1 << 20)));
    assert!(long.len() < 300, "the message is {} bytes long", long.len());
    assert!(safetensors::Header::parse(&named("model.layers.0..x")).is_ok());
}

/// Not-a-number survives reading bit for bit, so that the loader's scan finds it; zeros and
/// denormals are values like any other.
#[test]
fn fault_041_odd_values_reach_the_scan_unchanged() {
    let odd = [f32::NAN, f32::NEG_INFINITY, 0.0, -0.0, f32::from_bits(1), f32::MAX];
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let bytes = forgelm_tensor::quantize(dtype, &odd).unwrap();
        let mut found = [1.0; 6];
        forgelm_tensor::dequantize(dtype, &bytes, &mut found).unwrap();
        assert!(found[0].is_nan() && found[1] == f32::NEG_INFINITY, "{dtype}: {found:?}");
        assert_eq!(found[3].to_bits(), (-0.0_f32).to_bits());
    }
    let mut block = [0_u8; 18];
    block[..2].copy_from_slice(&[0x00, 0x7e]);
    let mut found = [0.0; 32];
    forgelm_tensor::dequantize(Dtype::Q4_0, &block, &mut found).unwrap();
    assert!(found.iter().all(|v| v.is_nan()), "a NaN scale makes every value NaN");
}

/// A folder of two shards with `index` as its index.
fn sharded(dir: &Path, index: &str) {
    let shape = [1];
    for (file, tensor) in [("s1.safetensors", "a"), ("s2.safetensors", "b")] {
        let tensors = [TensorToWrite::f32(tensor, &shape, &[1.0])];
        safetensors::write(&Disk::real(), &dir.join(file), &tensors, &BTreeMap::new()).unwrap();
    }
    put(dir, "model.safetensors.index.json", index.as_bytes());
}

fn weight_map(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs.iter().map(|(t, f)| format!("{t:?}: {f:?}")).collect();
    format!(r#"{{"metadata": {{}}, "weight_map": {{{}}}}}"#, pairs.join(", "))
}

#[test]
fn fault_042_indexes_that_do_not_fit_their_shards() {
    let good = weight_map(&[("a", "s1.safetensors"), ("b", "s2.safetensors")]);
    let dir = tempfile::tempdir().unwrap();
    sharded(dir.path(), &good);
    let model = ShardedModel::open(dir.path()).unwrap();
    assert_eq!(model.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((model.files().len(), model.tensor("b").unwrap().n_values()), (2, 1));
    let cases = [
        (
            weight_map(&[("a", "s3.safetensors")]),
            "shard \"s3.safetensors\" is missing",
            Class::Input,
        ),
        (weight_map(&[("a", "../s1.safetensors")]), "not a file of this folder", Class::Input),
        (weight_map(&[("a", "/etc/x.safetensors")]), "not a file of this folder", Class::Input),
        (weight_map(&[("a", "s1.bin")]), "not a file of this folder", Class::Input),
        (
            weight_map(&[("a", "s1.safetensors"), ("c", "s2.safetensors")]),
            "\"s2.safetensors\" has the tensor \"b\", which the index does not list",
            Class::Integrity,
        ),
        (
            weight_map(&[("a", "s1.safetensors"), ("c", "s1.safetensors")]),
            "tensor \"c\" is said to be in \"s1.safetensors\", which does not have it",
            Class::Integrity,
        ),
        (
            weight_map(&[("a", "s2.safetensors"), ("b", "s1.safetensors")]),
            "which the index places in",
            Class::Integrity,
        ),
        (weight_map(&[("a", "s1.safetensors"), ("a", "s2.safetensors")]), "twice", Class::Input),
        (weight_map(&[]), "`weight_map` is empty", Class::Input),
        (r#"{"weight_map": {"a": 1}}"#.to_owned(), "is not a text", Class::Input),
        ("[]".to_owned(), "no object `weight_map`", Class::Input),
    ];
    for (index, expected, class) in cases {
        sharded(dir.path(), &index);
        let error = ShardedModel::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}; expected {expected}");
        assert_eq!(error.class(), class, "{error}");
    }
}

#[test]
fn fault_042_a_tensor_in_two_shards_and_a_link_out_of_the_folder() {
    let good = weight_map(&[("a", "s1.safetensors"), ("b", "s2.safetensors")]);
    let dir = tempfile::tempdir().unwrap();
    sharded(dir.path(), &good);
    let shape = [1];
    let both = [TensorToWrite::f32("a", &shape, &[1.0]), TensorToWrite::f32("b", &shape, &[1.0])];
    put(dir.path(), "s2.safetensors", &safetensors::to_bytes(&both, &BTreeMap::new()));
    let error = ShardedModel::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("places in \"s1.safetensors\""), "{error}");

    let outside = tempfile::tempdir().unwrap();
    sharded(outside.path(), &good);
    sharded(dir.path(), &good);
    let shard = dir.path().join("s1.safetensors");
    std::fs::remove_file(&shard).unwrap();
    std::os::unix::fs::symlink(outside.path().join("s1.safetensors"), &shard).unwrap();
    let error = ShardedModel::open(dir.path()).unwrap_err();
    assert!(matches!(error, ShardedError::LinkOutside { .. }), "{error}");

    // The hub's cache is made of links from a snapshot to the blobs beside it.
    let snapshot = dir.path().join("models--o--n/snapshots/0123");
    let blobs = dir.path().join("models--o--n/blobs");
    write::create_dir_all_durable(&snapshot).unwrap();
    write::create_dir_all_durable(&blobs).unwrap();
    put(&blobs, "hash", &good_safetensors());
    std::os::unix::fs::symlink("../../blobs/hash", snapshot.join("model.safetensors")).unwrap();
    assert_eq!(ShardedModel::open(&snapshot).unwrap().names().count(), 2);
}

#[test]
fn fault_046_pickle_weights_are_never_opened() {
    for name in ["pytorch_model.bin", "consolidated.00.pth", "model.pt"] {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "config.json", b"{}");
        let none = ShardedModel::open(dir.path()).unwrap_err();
        assert!(matches!(none, ShardedError::NoWeights { .. }), "{none}");
        put(dir.path(), name, b"\x80\x02cos\nsystem\n");
        let error = ShardedModel::open(dir.path()).unwrap_err();
        assert!(matches!(error, ShardedError::PickleOnly { .. }), "{error}");
        assert!(error.to_string().contains("hint: convert them to safetensors"), "{error}");
        assert_eq!(error.class(), Class::Input);
    }
}

fn good_gguf() -> Builder {
    let rows = forgelm_tensor::quantize(Dtype::Q8_0, &[0.25; 64]).unwrap();
    Builder::new()
        .text("general.architecture", "llama")
        .metadata("llama.block_count", Value::U32(2))
        .metadata("llama.rope.freq_base", Value::F32(1e4))
        .metadata("tokenizer.ggml.add_bos_token", Value::Bool(true))
        .metadata("n", Value::I64(-3))
        .metadata("tokens", Value::Array(gguf::Array::String(vec!["a".into(), "é".into()])))
        .metadata("types", Value::Array(gguf::Array::I32(vec![1, -1])))
        .metadata("scores", Value::Array(gguf::Array::F32(vec![0.5])))
        .tensor("norm", Dtype::F32, &[3], [1.0_f32, 2.0, 3.0].map(f32::to_le_bytes).concat())
        .tensor("w", Dtype::Q8_0, &[2, 32], rows)
}

#[test]
fn a_built_gguf_is_read_back_and_types_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    good_gguf().write(&Disk::real(), &path).unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.require_str("general.architecture").unwrap(), "llama");
    assert_eq!(file.require_u32("llama.block_count").unwrap(), 2);
    assert_eq!(file.get_u64("llama.block_count").unwrap(), Some(2));
    assert_eq!(file.get_bool("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
    assert_eq!(file.require_strings("tokens").unwrap(), ["a", "é"]);
    assert_eq!(file.get_i32s("types").unwrap(), Some(&[1, -1][..]));
    assert_eq!(file.get_f32s("scores").unwrap(), Some(&[0.5][..]));
    assert_eq!(file.get_str("missing").unwrap(), None);
    assert_eq!((file.keys().count(), file.names().count()), (8, 2));
    let w = file.tensor("w").unwrap();
    assert_eq!((w.shape, w.bytes.len()), (&[2, 32][..], 68));
    assert!(w.to_f32().unwrap().iter().all(|v| (v - 0.25).abs() < 1e-3));
    let missing = file.require_f32("llama.missing").unwrap_err().to_string();
    assert!(missing.ends_with("has no `llama.missing`; expected f32"), "{missing}");
    let wrong = file.require_u32("general.architecture").unwrap_err().to_string();
    assert!(wrong.ends_with("is of type string; expected an integer that fits 32 bits"), "{wrong}");
    assert!(matches!(file.get_u64("n"), Err(GgufError::WrongType { .. })));
}

/// A GGUF of one key, whose value's bytes (with type) are given.
fn gguf_of_value(value: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend([0_u64, 1].map(u64::to_le_bytes).concat());
    put_string(&mut bytes, "k");
    bytes.extend(value);
    bytes
}

/// A GGUF of one tensor with these entries.
fn gguf_of_tensor(n_axes: u32, axes: &[u64], number: u32, offset: u64) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend([1_u64, 0].map(u64::to_le_bytes).concat());
    put_string(&mut bytes, "t");
    bytes.extend(n_axes.to_le_bytes());
    bytes.extend(axes.iter().flat_map(|axis| axis.to_le_bytes()));
    bytes.extend(number.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(32) + 64, 0);
    bytes
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn fault_047_hostile_gguf_files() {
    let good = good_gguf().to_bytes();
    assert!(gguf::Header::parse(&good).is_ok());
    let mut of_version_2 = good.clone();
    of_version_2[4] = 2;
    assert_eq!(gguf::Header::parse(&of_version_2), gguf::Header::parse(&good));
    // The last tensor is 68 bytes long and padded to 96: only cuts into the padding are harmless.
    for len in 0..good.len() - 28 {
        assert!(gguf::Header::parse(&good[..len]).is_err(), "cut to {len}");
    }
    let version = |v: u32| join(&[b"GGUF", &v.to_le_bytes(), &[0; 16]]);
    let counts = |tensors: u64, metadata: u64| {
        join(&[b"GGUF\x03\0\0\0", &tensors.to_le_bytes(), &metadata.to_le_bytes()])
    };
    let le = |v: u32| v.to_le_bytes();
    let (huge, vast) = ((1_u64 << 63).to_le_bytes(), (1_u64 << 62).to_le_bytes());
    let f32s = |n: usize| vec![0; 4 * n];
    let twice = |name: &'static str| good_gguf().tensor(name, Dtype::F32, &[1], f32s(1)).to_bytes();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"GGML\x03\0\0\0".to_vec(), "does not begin with `GGUF`"),
        (version(1), "GGUF version 1; expected 2 or 3"),
        (version(4), "GGUF version 4; expected 2 or 3"),
        (version(3_u32.swap_bytes()), "is big-endian"),
        (counts(1 << 62, 0), "the list of tensors needs"),
        (counts(0, u64::MAX), "the metadata needs"),
        (gguf_of_value(&join(&[&le(8), &huge])), "a text needs 9223372036854775808 bytes"),
        (gguf_of_value(&join(&[&le(9), &le(4), &vast])), "an array needs"),
        (gguf_of_value(&join(&[&le(9), &le(8), &vast])), "an array of texts needs"),
        (gguf_of_value(&join(&[&le(9), &le(9), &[1; 8]])), "arrays of arrays are not read"),
        (gguf_of_value(&join(&[&le(9), &le(13), &[0; 8]])), "unknown value type 13"),
        (gguf_of_value(&join(&[&le(u32::MAX), &[0; 8]])), "unknown value type 4294967295"),
        (gguf_of_value(&join(&[&le(999), &[0; 8]])), "unknown value type 999"),
        (gguf_of_value(&join(&[&le(7), &[2]])), "2 is not a bool"),
        (gguf_of_value(&join(&[&le(8), &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]])), "a text is not UTF-8"),
        (good_gguf().metadata("n", Value::U8(0)).to_bytes(), "key \"n\" is there twice"),
        (twice("w"), "tensor \"w\" is there twice"),
        (twice("../w"), "tensor \"../w\": a name may not lead out"),
        (Builder::new().alignment(0).to_bytes(), "`general.alignment` is 0"),
        (Builder::new().alignment(3).to_bytes(), "`general.alignment` is 3"),
        (
            Builder::new().metadata("general.alignment", Value::U64(32)).to_bytes(),
            "`general.alignment` is of type u64",
        ),
        (gguf_of_tensor(0, &[], 0, 0), "0 axes; expected 1 to 4"),
        (gguf_of_tensor(5, &[1; 5], 0, 0), "5 axes; expected 1 to 4"),
        (gguf_of_tensor(u32::MAX, &[], 0, 0), "4294967295 axes"),
        (gguf_of_tensor(1, &[16], u32::MAX, 0), "tensor type 4294967295 is not known here"),
        (gguf_of_tensor(1, &[16], 999, 0), "tensor type 999 is not known here"),
        (gguf_of_tensor(1, &[31], 8, 0), "is not whole blocks of Q8_0"),
        (gguf_of_tensor(2, &[1 << 40, 1 << 40], 0, 0), "or too large"),
        (gguf_of_tensor(1, &[16], 0, 32), "offset 32; expected 0"),
        (gguf_of_tensor(1, &[16], 0, 1), "offset 1; expected 0"),
        (gguf_of_tensor(1, &[17], 0, 0), "reach past the 64 bytes of data"),
        (gguf_of_tensor(1, &[1 << 60], 0, 0), "reach past the 64 bytes of data"),
        (gguf_of_tensor(1, &[8], 0, 0), "32 bytes after the last tensor"),
    ];
    for (bytes, expected) in cases {
        let found = gguf::Header::parse(&bytes).expect_err(expected).to_string();
        assert!(found.contains(expected), "{found}; expected {expected}");
    }
    // The second tensor's offset (8 bytes before the padded header ends) moved into the first.
    let at = good.windows(8).rposition(|w| w == 32_u64.to_le_bytes()).unwrap();
    let mut overlapping = good.clone();
    overlapping[at..at + 8].copy_from_slice(&0_u64.to_le_bytes());
    let found = gguf::Header::parse(&overlapping).unwrap_err().to_string();
    assert!(found.contains("offset 0; expected 32, right after tensor"), "{found}");
}

#[test]
fn fault_050_a_file_that_changes_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = put(dir.path(), "w", b"one");
    let map = MappedFile::open(&path).unwrap();
    let before = hash::sha256_bytes(&map);
    assert_eq!(before, hash::sha256_file(&path).unwrap());
    assert!(map.unchanged());
    put(dir.path(), "w", b"two");
    assert!(!map.unchanged(), "another file has the name now");
    assert_eq!(hash::sha256_bytes(&map), before, "and the mapped one is still the old");
    assert_ne!(hash::sha256_file(&path).unwrap(), before);
    assert!(MappedFile::open(&put(dir.path(), "empty", b"")).unwrap().is_empty());
}

#[test]
fn fault_051_git_lfs_pointers_are_named() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n";
    let dir = tempfile::tempdir().unwrap();
    let path = put(dir.path(), "model.safetensors", pointer);
    let error = ShardedModel::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("this is a Git LFS pointer"), "{error}");
    assert_eq!(error.class(), Class::Input);
    assert!(matches!(SafetensorsFile::open(&path), Err(SafetensorsError::Format { .. })));
    let error = GgufFile::open(&put(dir.path(), "model.gguf", pointer)).unwrap_err();
    assert!(error.to_string().contains("git lfs pull"), "{error}");
}

fn lines_of(bytes: &[u8], cap: usize) -> Vec<Result<(u64, u64, String), String>> {
    let mut reader = Reader::new(Path::new("d.jsonl"), bytes).with_line_bytes_max(cap);
    let mut all = Vec::new();
    while let Some(line) = reader.next_line() {
        let line = line.map(|l| (l.number, l.offset, l.text.to_owned())).map_err(|e| e.to_string());
        let is_last = line.as_ref().is_err_and(|e| e.contains("longer than"));
        all.push(line);
        if is_last {
            break;
        }
    }
    all
}

#[test]
fn fault_018_blank_lines_ends_and_empty_files() {
    let ok = |number, offset, text: &str| Ok((number, offset, text.to_owned()));
    assert_eq!(lines_of(b"", 9), []);
    assert_eq!(lines_of(b"\n \r\n\t\n", 9), []);
    assert_eq!(lines_of(b"a\n\nb", 9), [ok(1, 0, "a"), ok(3, 3, "b")]);
    assert_eq!(lines_of(b"\xef\xbb\xbfa\r\n  b \r\n", 9), [ok(1, 3, "a"), ok(2, 8, "b")]);
}

#[test]
fn fault_019_a_line_above_the_cap_is_refused_in_bounded_memory() {
    let ok = |number, offset, text: &str| Ok((number, offset, text.to_owned()));
    assert_eq!(lines_of(b"12345\n12345", 5), [ok(1, 0, "12345"), ok(2, 6, "12345")]);
    let found = lines_of(b"1\n123456\n", 5);
    assert_eq!(found[0], ok(1, 0, "1"));
    let error = found[1].as_ref().unwrap_err();
    assert!(error.starts_with("d.jsonl:2: the line (from byte 2) is longer than 5"), "{error}");
    // Two gigabytes without a line end: no more than the cap is ever read.
    struct Endless(u64);
    impl Read for Endless {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            self.0 += buf.len() as u64;
            assert!(self.0 < 1 << 20, "{} bytes were read", self.0);
            buf.fill(b'x');
            Ok(buf.len())
        }
    }
    let mut reader = Reader::new(Path::new("d"), Endless(0)).with_line_bytes_max(1 << 17);
    let error = reader.next_line().unwrap().unwrap_err();
    assert!(matches!(error, JsonlError::LineTooLong { line: 1, .. }), "{error}");
    assert_eq!(error.class(), Class::Input);
}

#[test]
fn fault_020_bad_text_is_named_by_its_byte() {
    let found = lines_of(b"{\"a\": \"\xc3\xa9\"}\n{\"a\": \"x\xc3\"}\nok\nz\0\n", 99);
    assert!(found[0].is_ok() && found[2].is_ok());
    let utf8 = found[1].as_ref().unwrap_err();
    assert!(utf8.starts_with("d.jsonl:2: invalid UTF-8 at byte 20 of the file (0xc3)"), "{utf8}");
    let nul = found[3].as_ref().unwrap_err();
    assert!(nul.starts_with("d.jsonl:4: NUL at byte 28 of the file"), "{nul}");
    for (text, expected) in [
        (&b"\n {\"a\": \"\\ud800\"}"[..], "d.jsonl:2: not JSON: "),
        (b"{\"a\": 1, \"a\": 2}", "the key \"a\" is there twice, at byte"),
        (b"{\"a\": 1", "EOF while parsing an object"),
    ] {
        let mut reader = Reader::new(Path::new("d.jsonl"), text);
        let error = reader.next_line().unwrap().unwrap().json().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}; expected {expected}");
    }
}

#[test]
fn fault_035_pipes_devices_sockets_and_folders_are_refused_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let cases = [
        (pipe, "is a named pipe; expected a regular file"),
        (socket, "is a socket; expected a regular file"),
        (PathBuf::from("/dev/zero"), "is a device; expected a regular file"),
        (dir.path().to_owned(), "is a folder; expected a regular file"),
        (dir.path().join("missing"), "cannot be read"),
    ];
    for (path, expected) in cases {
        let error = open::regular(&path).unwrap_err();
        assert!(error.to_string().ends_with(expected), "{error}");
        assert_eq!(error.class(), Class::Input, "{error}");
        assert!(Reader::open(&path).is_err() && MappedFile::open(&path).is_err());
        assert!(SafetensorsFile::open(&path).is_err() && GgufFile::open(&path).is_err());
        assert!(hash::sha256_file(&path).is_err());
    }
}
