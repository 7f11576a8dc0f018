//! The machine code of images as text, by NVIDIA's disassembler: PTX says what was asked for, this
//! says what runs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::gates;

/// It reads what older assemblers made.
pub(super) const PACKAGE: &str = "nvidia-cuda-nvdisasm==13.5.37";
pub(super) const PROGRAM: &str = "nvidia/cu13/bin/nvdisasm";

/// One of each way to have tensor cores; others differ in what the gates do not look at, and to
/// disassemble all takes minutes.
pub(super) const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90a"];

/// What is wrong with any of these images, which have names of places.
pub(super) fn check(
    program: &Path,
    folder: &Path,
    images: &[(String, &[u8])],
) -> Result<Vec<String>, String> {
    make_executable(program)?;
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some((place, image)) = images.get(i) else { return };
                    let file = folder.join(format!("{}-{i}.cubin", std::process::id()));
                    let text = disassembled(program, &file, image);
                    let problems = text.map(|text| gates::check_machine_code(place, &text));
                    let mut found = found.lock().expect("no thread panics with the lock");
                    found.push((i, problems));
                }
            });
        }
    });
    let mut found = found.into_inner().expect("no thread panics with the lock");
    found.sort_by_key(|(i, _)| *i);
    let mut all = Vec::new();
    for (_, problems) in found {
        all.extend(problems?);
    }
    Ok(all)
}

fn disassembled(program: &Path, file: &Path, image: &[u8]) -> Result<String, String> {
    let io = |error: std::io::Error| format!("{}: {error}", file.display());
    fs::write(file, image).map_err(io)?;
    let output = Command::new(program).arg("-c").arg(file).output();
    fs::remove_file(file).map_err(io)?;
    let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: {}", program.display(), said.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Some versions of pip forget that a file was a program.
fn make_executable(program: &Path) -> Result<(), String> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let io = |error: std::io::Error| format!("{}: {error}", program.display());
        let mut permissions = fs::metadata(program).map_err(io)?.permissions();
        if permissions.mode() & 0o111 == 0 {
            permissions.set_mode(0o755);
            fs::set_permissions(program, permissions).map_err(io)?;
        }
    }
    Ok(())
}
