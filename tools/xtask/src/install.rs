//! `cargo xtask install [--prefix DIR] [--archive FILE.tar.gz] [--dev]`: program, library, plugins,
//! headers, schemas, and what pkg-config and CMake need to find them. The tree may be moved afterwards.
//!
//! The archive has the same bytes whoever makes it, where and when: paths of the machine are not in
//! what is compiled, and members have one order, owner and time (that of the last commit, or
//! `SOURCE_DATE_EPOCH`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// Crates that are built, and what of them is installed below the prefix.
const FILES: [(&str, &str); 8] = [
    ("forgelm", "bin/forgelm"),
    ("libforgelm_ffi.so", "lib/libforgelm.so.1"),
    ("libforgelm_ffi.a", "lib/libforgelm.a"),
    ("libforgelm_plugin_evaluator.so", "lib/forgelm/libforgelm_plugin_evaluator.so"),
    ("libforgelm_plugin_merge_method.so", "lib/forgelm/libforgelm_plugin_merge_method.so"),
    ("libforgelm_plugin_quantizer.so", "lib/forgelm/libforgelm_plugin_quantizer.so"),
    ("libforgelm_plugin_reward.so", "lib/forgelm/libforgelm_plugin_reward.so"),
    ("libforgelm_plugin_trainer.so", "lib/forgelm/libforgelm_plugin_trainer.so"),
];

const CRATES: [&str; 7] = [
    "forgelm",
    "forgelm_capi",
    "forgelm_plugin_evaluator",
    "forgelm_plugin_merge_method",
    "forgelm_plugin_quantizer",
    "forgelm_plugin_reward",
    "forgelm_plugin_trainer",
];

const HEADERS: [&str; 3] = ["forgelm.h", "forgelm.hpp", "forgelm_plugin.h"];

/// Schemas of the JSON that the library hands out: every file of the folder.
const SCHEMAS: &str = "ffi/schemas";

const PKG_CONFIG: &str = "\
prefix=${pcfiledir}/../..

Name: forgelm
Description: Fine-tunes language models and leaves signed evidence
Version: @VERSION@
Cflags: -I${prefix}/include
Libs: -L${prefix}/lib -lforgelm
Libs.private: -lpthread -ldl -lm
";

const CMAKE: &str = "\
get_filename_component(_forgelm_prefix \"${CMAKE_CURRENT_LIST_DIR}/../../..\" ABSOLUTE)
if(NOT TARGET forgelm::forgelm)
  add_library(forgelm::forgelm SHARED IMPORTED)
  set_target_properties(forgelm::forgelm PROPERTIES
    IMPORTED_LOCATION \"${_forgelm_prefix}/lib/libforgelm.so.1\"
    IMPORTED_SONAME libforgelm.so.1
    INTERFACE_INCLUDE_DIRECTORIES \"${_forgelm_prefix}/include\")
  add_library(forgelm::forgelm_static STATIC IMPORTED)
  set_target_properties(forgelm::forgelm_static PROPERTIES
    IMPORTED_LOCATION \"${_forgelm_prefix}/lib/libforgelm.a\"
    INTERFACE_INCLUDE_DIRECTORIES \"${_forgelm_prefix}/include\"
    INTERFACE_LINK_LIBRARIES \"pthread;dl;m\")
endif()
";

/// Before 1.0 only the same minor version is compatible.
const CMAKE_VERSION: &str = "\
set(PACKAGE_VERSION \"@VERSION@\")
if(PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
else()
  string(REGEX MATCH \"^[0-9]+\\\\.[0-9]+\" _forgelm_have \"${PACKAGE_VERSION}\")
  string(REGEX MATCH \"^[0-9]+\\\\.[0-9]+\" _forgelm_want \"${PACKAGE_FIND_VERSION}\")
  if(_forgelm_have STREQUAL _forgelm_want OR _forgelm_want STREQUAL \"\")
    set(PACKAGE_VERSION_COMPATIBLE TRUE)
  else()
    set(PACKAGE_VERSION_COMPATIBLE FALSE)
  endif()
  if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
    set(PACKAGE_VERSION_EXACT TRUE)
  endif()
endif()
";

/// Installs below the prefix, packs what would be there, or both.
pub fn run(arguments: &[String]) -> Result<(), String> {
    let (mut prefix, mut archive, mut is_dev) = (None, None, false);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--prefix" => prefix = Some(value_of(argument, rest.next())?),
            "--archive" => archive = Some(value_of(argument, rest.next())?),
            "--dev" => is_dev = true,
            other => return Err(format!("no argument `{other}`; {USAGE}")),
        }
    }
    if prefix.is_none() && archive.is_none() {
        return Err(format!("`--prefix` or `--archive` is missing; {USAGE}"));
    }
    let root = root()?;
    build(&root, is_dev)?;
    let target = target_dir(&root);
    let built = target.join(if is_dev { "debug" } else { "release" });
    if let Some(prefix) = prefix {
        install(&root, &built, &prefix)?;
        println!("installed below {}", prefix.display());
    }
    if let Some(archive) = archive {
        // Outside of what a build looks at, and gone afterwards.
        let stage = target.join("archive");
        let _ = fs::remove_dir_all(&stage);
        let packed = install(&root, &built, &stage.join(NAME))
            .and_then(|()| pack(&stage, &time(&root)?, &archive));
        let _ = fs::remove_dir_all(&stage);
        packed?;
        println!("packed as {}", archive.display());
    }
    Ok(())
}

const USAGE: &str = "usage: cargo xtask install [--prefix DIR] [--archive FILE.tar.gz] [--dev]";

/// The folder that an archive unpacks to.
const NAME: &str = concat!("forgelm-", env!("CARGO_PKG_VERSION"));

/// The folder of this repository.
pub(crate) fn root() -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().map_err(|error| format!("{}: {error}", root.display()))
}

fn value_of(name: &str, value: Option<&String>) -> Result<PathBuf, String> {
    value.map(PathBuf::from).ok_or_else(|| format!("`{name}` has no value; {USAGE}"))
}

fn install(root: &Path, built: &Path, prefix: &Path) -> Result<(), String> {
    for (from, to) in FILES {
        copy(&built.join(from), &prefix.join(to))?;
    }
    let link = prefix.join("lib/libforgelm.so");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink("libforgelm.so.1", &link)
        .map_err(|error| format!("{}: {error}", link.display()))?;
    for header in HEADERS {
        let from = root.join("ffi/include").join(header);
        copy(&from, &prefix.join("include").join(header))?;
    }
    let listed = fs::read_dir(root.join(SCHEMAS)).map_err(|error| format!("{SCHEMAS}: {error}"))?;
    for entry in listed {
        let entry = entry.map_err(|error| format!("{SCHEMAS}: {error}"))?;
        copy(&entry.path(), &prefix.join("share/forgelm/schemas").join(entry.file_name()))?;
    }
    copy(&root.join("LICENSE"), &prefix.join("share/doc/forgelm/LICENSE"))?;
    let written = [
        ("lib/pkgconfig/forgelm.pc", PKG_CONFIG),
        ("lib/cmake/forgelm/forgelmConfig.cmake", CMAKE),
        ("lib/cmake/forgelm/forgelmConfigVersion.cmake", CMAKE_VERSION),
    ];
    for (to, text) in written {
        let path = prefix.join(to);
        make_folder_of(&path)?;
        let text = text.replace("@VERSION@", env!("CARGO_PKG_VERSION"));
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// Seconds since 1970 that every member of an archive has.
fn time(root: &Path) -> Result<String, String> {
    std::env::var("SOURCE_DATE_EPOCH").or_else(|_| {
        output(Command::new("git").current_dir(root).args(["log", "-1", "--format=%ct"]))
    })
}

/// `tar` and `gzip` with everything that could differ said.
fn pack(stage: &Path, time: &str, archive: &Path) -> Result<(), String> {
    make_folder_of(archive)?;
    let unpacked = stage.join("packed.tar");
    let tar = Command::new("tar")
        .args(["--format=ustar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
        .args(["--mode=u+rw,go+r,go-w,a+X", &format!("--mtime=@{}", time.trim())])
        .arg("-cf")
        .arg(&unpacked)
        .arg("-C")
        .args([stage, Path::new(NAME)])
        .status();
    done("tar", tar)?;
    // -n: no name and no time
    done("gzip", Command::new("gzip").args(["-n", "-9"]).arg(&unpacked).status())?;
    copy(&stage.join("packed.tar.gz"), archive)
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
    }
}

fn done(name: &str, status: std::io::Result<ExitStatus>) -> Result<(), String> {
    let status = status.map_err(|error| format!("{name}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{name}: {status}")) }
}

pub(crate) fn build(root: &Path, is_dev: bool) -> Result<(), String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root).args(["build", "--locked"]);
    if is_dev {
        // What tests have built already.
        command.arg("--workspace");
    } else {
        command.arg("--release");
        for name in CRATES {
            command.args(["-p", name]);
        }
        without_paths(&mut command, root)?;
    }
    done("cargo build", command.status())
}

/// Where the sources lie is not in what is compiled, so that it is the same from everywhere.
fn without_paths(command: &mut Command, root: &Path) -> Result<(), String> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let home = home.ok_or("neither CARGO_HOME nor HOME is set")?;
    let (root, home) = (root.display(), home.display());
    let rust = [
        format!("--remap-path-prefix={root}=forgelm"),
        format!("--remap-path-prefix={home}=cargo"),
    ];
    let c = format!("-ffile-prefix-map={root}=forgelm -ffile-prefix-map={home}=cargo");
    command.env("CARGO_ENCODED_RUSTFLAGS", rust.join("\u{1f}")).env("CFLAGS", c);
    Ok(())
}

pub(crate) fn target_dir(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

fn make_folder_of(path: &Path) -> Result<(), String> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    make_folder_of(to)?;
    // A library that runs may not be written over.
    let _ = fs::remove_file(to);
    let copied = fs::copy(from, to);
    copied.map(|_| ()).map_err(|error| format!("{} to {}: {error}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::{NAME, pack};
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn what_is_packed_depends_on_names_and_contents_alone() {
        let place = std::env::temp_dir().join(format!("forgelm-pack-{}", std::process::id()));
        let mut archives = Vec::new();
        for (i, order) in [["a", "b", "c"], ["c", "a", "b"]].into_iter().enumerate() {
            let stage = place.join(i.to_string());
            fs::create_dir_all(stage.join(NAME)).unwrap();
            for name in order {
                let path = stage.join(NAME).join(name);
                fs::write(&path, name).unwrap();
                let mode = if name == "b" { 0o755 } else { [0o600, 0o664][i] };
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            }
            let archive = place.join(format!("{i}.tar.gz"));
            pack(&stage, "1700000000\n", &archive).unwrap();
            archives.push(fs::read(&archive).unwrap());
        }
        fs::remove_dir_all(&place).unwrap();
        assert!(archives[0].len() > 100 && archives[0] == archives[1]);
    }
}
