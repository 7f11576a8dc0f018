//! The site's own compiler for MPI (`forgelm comm build`), started when its user asks for it.

use std::path::Path;
use std::process::{Command, Stdio};

/// Starts the compiler in a folder and waits for its end. Gives what it said, as warnings.
///
/// # Errors
/// If it cannot be started, or fails: with what it said.
pub fn run(compiler: &Path, arguments: &[&str], folder: &Path) -> Result<String, String> {
    let shown = compiler.display();
    let output = Command::new(compiler)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("`{shown}` cannot be started: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() {
        return Ok(said);
    }
    let said = if said.is_empty() { said } else { format!("\n{said}") };
    Err(format!("`{shown}` ended with {}{said}", output.status))
}

#[cfg(test)]
mod tests {
    use super::run;
    use std::path::Path;

    #[test]
    fn what_a_compiler_says_is_told_and_its_absence_too() {
        let sh = |script| run(Path::new("sh"), &["-c", script], Path::new("/"));
        assert_eq!(sh("pwd >&2").as_deref(), Ok("/"));
        let error = sh("echo no mpi.h >&2; exit 4").unwrap_err();
        assert_eq!(error, "`sh` ended with exit status: 4\nno mpi.h");
        let error = run(Path::new("/nowhere/mpicc"), &[], Path::new("/")).unwrap_err();
        assert!(error.starts_with("`/nowhere/mpicc` cannot be started: "), "{error}");
    }
}
