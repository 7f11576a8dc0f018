//! What a plugin is written with, as files of a new folder: the sources of this very program.

use super::new::File;

/// A source of this repository, under the folder that the new one has for it.
macro_rules! sources {
    ($($folder:literal from $place:literal: $($name:literal)*;)*) => {
        &[$($((
            concat!("forgelm_sdk/", $folder, "/", $name),
            include_str!(concat!("../../../../../", $place, "/", $name)),
        ),)*)*]
    };
}

/// The SDK and what it is made of.
const SOURCES: &[(&str, &str)] = sources! {
    "src" from "ffi/sdk/src":
        "collective.rs" "device.rs" "evaluator.rs" "export.rs" "export/border.rs" "export/device.rs"
        "export/collective.rs" "export/evaluator.rs" "export/factory.rs" "export/merge_method.rs" "export/quantizer.rs" "export/reward.rs" "export/services.rs"
        "export/trainer.rs" "failed.rs" "host.rs" "kernels.rs" "lib.rs" "merge_method.rs" "options.rs"
        "quantizer.rs" "random.rs" "reward.rs" "trainer.rs";
    "abi/src" from "ffi/abi/src":
        "border.rs" "collective.rs" "device.rs" "evaluator.rs" "kernels.rs" "layout.rs" "lib.rs" "merge_method.rs" "quantizer.rs"
        "reward.rs" "rng.rs" "tensor.rs" "trainer.rs" "witness.rs";
    "kernels_api/src" from "kernels/api/src":
        "blocks.rs" "dynamic_map.rs" "dynamic_map/tables.rs" "failure.rs" "float8.rs" "frozen.rs"
        "lib.rs" "link.rs" "memory.rs" "on_device.rs" "ops.rs" "optimizer.rs" "philox.rs" "routing.rs";
};

const MANIFESTS: [(&str, &str); 3] = [
    ("forgelm_sdk/Cargo.toml", include_str!("../../../../../ffi/templates/rust/sdk.toml.in")),
    ("forgelm_sdk/abi/Cargo.toml", include_str!("../../../../../ffi/templates/rust/abi.toml.in")),
    (
        "forgelm_sdk/kernels_api/Cargo.toml",
        include_str!("../../../../../ffi/templates/rust/kernels_api.toml.in"),
    ),
];

/// Every file of `forgelm_sdk/`.
pub fn files() -> impl Iterator<Item = File> {
    let version = |text: &str| text.replace("FORGELM_VERSION", env!("CARGO_PKG_VERSION"));
    let manifests = MANIFESTS.iter().map(move |(name, text)| File::new(name, version(text)));
    let sources = SOURCES.iter().map(|(name, text)| File::new(name, (*text).to_owned()));
    manifests.chain(sources)
}

#[cfg(test)]
mod tests {
    use super::SOURCES;
    use std::collections::BTreeSet;
    use std::path::Path;

    fn names_below(dir: &Path, prefix: &str, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_str().expect("UTF-8");
            match path.is_dir() {
                true => names_below(&path, &format!("{prefix}{name}/"), found),
                false => assert!(found.insert(format!("{prefix}{name}"))),
            }
        }
    }

    #[test]
    fn no_source_of_the_sdk_is_missing() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut expected = BTreeSet::new();
        names_below(&root.join("ffi/sdk/src"), "forgelm_sdk/src/", &mut expected);
        names_below(&root.join("ffi/abi/src"), "forgelm_sdk/abi/src/", &mut expected);
        let kernels = root.join("kernels/api/src");
        names_below(&kernels, "forgelm_sdk/kernels_api/src/", &mut expected);
        let found: BTreeSet<String> = SOURCES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(found, expected);
    }
}
