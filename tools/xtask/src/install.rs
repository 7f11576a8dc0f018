//! `cargo xtask install --prefix DIR [--dev]`: program, library, plugins, headers, and what pkg-config
//! and CMake need to find them. The tree may be moved afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// Installs below the prefix.
pub fn run(arguments: &[String]) -> Result<(), String> {
    let (mut prefix, mut is_dev) = (None, false);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--prefix" => prefix = rest.next().map(PathBuf::from),
            "--dev" => is_dev = true,
            other => return Err(format!("no argument `{other}`; {USAGE}")),
        }
    }
    let prefix = prefix.ok_or_else(|| format!("`--prefix` is missing; {USAGE}"))?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    build(&root, is_dev)?;
    let built = target_dir(&root).join(if is_dev { "debug" } else { "release" });
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
    println!("installed below {}", prefix.display());
    Ok(())
}

const USAGE: &str = "usage: cargo xtask install --prefix DIR [--dev]";

fn build(root: &Path, is_dev: bool) -> Result<(), String> {
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
    }
    let status = command.status().map_err(|error| format!("cargo: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("cargo build: {status}")) }
}

fn target_dir(root: &Path) -> PathBuf {
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
