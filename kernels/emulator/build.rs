//! Compiles every kernel of kernels/cuda for the CPU and links them with the stand-in driver into
//! `libcuda.so.1`, and beside it a stand-in `libcublasLt.so.12`. Stand-ins `libcudnn.so.9` and
//! `libnccl.so.2` lie in folders of their own: only tests that name them have one.
//!
//! A source whose object was made from the same bytes, headers and options is not compiled again.

#![expect(clippy::disallowed_methods, reason = "a build script reads what cargo tells it")]

use std::env::var;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// The same results on every machine: no contraction to fused products, no instructions that only
/// some processors have.
const OPTIONS: [&str; 9] = [
    "-std=c++17",
    "-O2",
    "-g1",
    "-fPIC",
    "-pthread",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-unknown-pragmas",
];

struct Build {
    compiler: cc::Tool,
    folder: PathBuf,
    includes: Vec<PathBuf>,
    headers: u64,
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let arch = var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let os = var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    // overwritten where there is one
    println!("cargo:rustc-env=EMULATOR_COMPILER=");
    let why_not = if (arch.as_str(), os.as_str()) == ("x86_64", "linux") {
        build()
    } else {
        Err(format!("the emulator of CUDA devices runs on x86-64 Linux, not on {arch} {os}"))
    };
    println!("cargo:rustc-env=EMULATOR_UNAVAILABLE={}", why_not.err().unwrap_or_default());
    let out = var("OUT_DIR").expect("cargo sets OUT_DIR");
    println!("cargo:rustc-env=EMULATOR_LIBRARIES={out}/lib");
}

/// Says why there is no emulator on this machine: it has no C++ compiler. Source that does not
/// compile ends the build.
fn build() -> Result<(), String> {
    let here = PathBuf::from(var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let kernels = here.join("../cuda");
    let out = PathBuf::from(var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let compiler =
        cc::Build::new().opt_level(2).debug(false).cpp(true).try_get_compiler().map_err(
            |error| format!("no C++ compiler for the emulator of CUDA devices: {error}"),
        )?;
    println!("cargo:rustc-env=EMULATOR_COMPILER={}", compiler.path().display());
    let includes = vec![here.join("include"), kernels.join("include"), here.join("src/driver")];
    let mut headers = DefaultHasher::new();
    OPTIONS.hash(&mut headers);
    compiler.path().hash(&mut headers);
    for folder in &includes {
        println!("cargo:rerun-if-changed={}", folder.display());
        for header in files_of(folder, &["cuh", "hpp"]) {
            fs::read(header).expect("a header can be read").hash(&mut headers);
        }
    }
    let build = Build { compiler, folder: out, includes, headers: headers.finish() };

    let mut sources = files_of(&here.join("src/driver"), &["cpp"]);
    sources.push(here.join("src/probe.cu"));
    sources.push(here.join("src/cublaslt.cpp"));
    sources.push(here.join("src/cudnn.cpp"));
    sources.push(here.join("src/nccl.cpp"));
    sources.extend(files_of(&kernels.join("src"), &["cu"]));
    println!("cargo:rerun-if-changed={}", here.join("src").display());
    println!("cargo:rerun-if-changed={}", kernels.join("src").display());
    let objects = build.compile(&sources);
    let of = |stem: &str| -> Vec<_> {
        let is_of = |object: &&PathBuf| object.to_string_lossy().contains(stem);
        objects.iter().filter(is_of).cloned().collect()
    };
    let (cublaslt, cudnn, nccl) = (of("/cublaslt-"), of("/cudnn-"), of("/nccl-"));
    let libraries: Vec<_> = cublaslt.iter().chain(&cudnn).chain(&nccl).collect();
    let driver: Vec<_> = objects.iter().filter(|o| !libraries.contains(o)).cloned().collect();
    build.link("lib", "libcuda.so", "libcuda.so.1", &driver, None);
    build.link("lib", "libcublasLt.so", "libcublasLt.so.12", &cublaslt, Some("libcuda.so.1"));
    build.link("lib/cudnn", "libcudnn.so", "libcudnn.so.9", &cudnn, Some("../libcuda.so.1"));
    build.link("lib/nccl", "libnccl.so", "libnccl.so.2", &nccl, Some("../libcuda.so.1"));
    Ok(())
}

/// The files of a folder with one of the endings, in the order of their names.
fn files_of(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let has_ending = |path: &PathBuf| {
        path.extension().is_some_and(|ending| endings.iter().any(|wanted| ending == *wanted))
    };
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(has_ending).collect();
    found.sort();
    found
}

impl Build {
    /// Compiles as many sources at a time as cargo allows.
    fn compile(&self, sources: &[PathBuf]) -> Vec<PathBuf> {
        let n_jobs = var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
        let todo = Mutex::new(sources.iter().enumerate());
        let done = Mutex::new(vec![PathBuf::new(); sources.len()]);
        std::thread::scope(|scope| {
            for _ in 0..n_jobs {
                scope.spawn(|| {
                    loop {
                        let next = todo.lock().expect("no job panics with the lock").next();
                        let Some((i, source)) = next else { return };
                        let object = self.object(source);
                        done.lock().expect("no job panics with the lock")[i] = object;
                    }
                });
            }
        });
        done.into_inner().expect("no job panics with the lock")
    }

    /// The object of a source, whose name has the hash of all that it is made from.
    fn object(&self, source: &Path) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        self.headers.hash(&mut hasher);
        fs::read(source).expect("a source can be read").hash(&mut hasher);
        let stem = source.file_stem().expect("a source has a name").to_string_lossy();
        let object = self.folder.join(format!("{stem}-{:016x}.o", hasher.finish()));
        if object.exists() {
            return object;
        }
        for old in files_of(&self.folder, &["o"]) {
            let name = old.file_name().expect("a file has a name").to_string_lossy().into_owned();
            if name.strip_prefix(&*stem).is_some_and(|rest| rest.len() == "-.o".len() + 16) {
                let _gone = fs::remove_file(old);
            }
        }
        let unfinished = object.with_extension("unfinished");
        let mut command = self.compiler.to_command();
        command.args(OPTIONS);
        for folder in &self.includes {
            command.arg("-I").arg(folder);
        }
        command.args(["-x", "c++", "-c"]).arg(source).arg("-o").arg(&unfinished);
        run(command);
        fs::rename(&unfinished, &object).expect("an object can be renamed");
        object
    }

    /// `FOLDER/FILE` from objects, and `FOLDER/NAME` that points to it. It is found by NAME once
    /// it is loaded, so that a caller who looks for that finds it before a real library of the
    /// machine.
    fn link(&self, folder: &str, name: &str, file: &str, objects: &[PathBuf], needs: Option<&str>) {
        let folder = self.folder.join(folder);
        fs::create_dir_all(&folder).expect("OUT_DIR can be written");
        let unfinished = folder.join(format!("{file}.unfinished"));
        let mut command = self.compiler.to_command();
        command.args(["-shared", "-pthread", "-Wl,-z,nodelete", "-Wl,-z,defs"]);
        command.arg(format!("-Wl,-soname,{name}")).args(objects);
        if let Some(needs) = needs {
            command.args(["-Wl,-rpath,$ORIGIN", "-Wl,-rpath,$ORIGIN/.."]).arg(folder.join(needs));
        }
        command.arg("-o").arg(&unfinished).arg("-ldl");
        run(command);
        fs::rename(&unfinished, folder.join(file)).expect("a library can be renamed");
        let link = folder.join(name);
        let _gone = fs::remove_file(&link);
        #[cfg(unix)]
        std::os::unix::fs::symlink(file, link).expect("a link can be made");
    }
}

fn run(mut command: Command) {
    let status = command.status();
    assert!(status.is_ok_and(|status| status.success()), "{command:?} failed");
}
