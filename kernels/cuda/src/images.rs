//! Which machine code runs: made at build time, compiled here, or left to the driver.
//!
//! For each kernel there is a list of [`Form`]s, the best first; `device` takes the first that
//! loads. Code of an architecture is in `prebuilt/`, one archive each, made by `cargo xtask
//! kernels`; an archive is unpacked when its first kernel is asked for.
//!
//! An archive is one zstd frame of: `FORGELMK`; u32 version (1); u32 number n of images; n times
//! the length (u32) of a name, the name, the length (u64) of its image; then the images, each at a
//! multiple of 8 from the start. Numbers are little endian; a name is the stem of a source file.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::device::lock;
use crate::nvrtc::{Compiler, SOURCES};

/// Which kernels a device runs.
#[derive(Clone, Debug, Default)]
pub enum ImageSource {
    /// Those of this library.
    #[default]
    Embedded,
    /// One image that has all of them, as `nvcc` or a test makes it.
    Given(Arc<[u8]>),
}

/// Archives by what they are for.
const ARCHIVES: &[(&str, &[u8])] = &[
    ("compute_80", include_bytes!("../prebuilt/compute_80.zst")),
    ("sm_100f", include_bytes!("../prebuilt/sm_100f.zst")),
    ("sm_120", include_bytes!("../prebuilt/sm_120.zst")),
    ("sm_80", include_bytes!("../prebuilt/sm_80.zst")),
    ("sm_89", include_bytes!("../prebuilt/sm_89.zst")),
    ("sm_90a", include_bytes!("../prebuilt/sm_90a.zst")),
];
/// The archive that the driver of every device from 8.0 on can compile.
const PTX: &str = "compute_80";
/// First bytes of an archive.
const MAGIC: &[u8; 8] = b"FORGELMK";
const VERSION: u32 = 1;

/// One way to get the code of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    /// The image that the caller gave.
    Given,
    /// From an archive: its name, and the stem of the source.
    Prebuilt(&'static str, String),
    /// Compiled here, for an architecture, from a source by its stem.
    Compiled(String, String),
    /// Compiled by the driver, from a source by its stem.
    Ptx(String),
}

/// Where the machine code of a kernel came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CodeSource {
    /// The image that the caller gave.
    Given,
    /// Made before this release, for this architecture.
    Prebuilt(&'static str),
    /// Compiled on this machine by NVRTC, for this architecture.
    Compiled(String),
    /// Compiled on this machine by the driver, from PTX.
    Ptx,
}

impl std::fmt::Display for CodeSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Given => f.write_str("the given image"),
            Self::Prebuilt(archive) => write!(f, "the image built for {archive}"),
            Self::Compiled(architecture) => {
                write!(f, "compiled on this machine for {architecture} (NVRTC)")
            }
            Self::Ptx => f.write_str("compiled by the driver (PTX)"),
        }
    }
}

impl Form {
    /// Where it comes from, without the file.
    pub(crate) fn source(&self) -> CodeSource {
        match self {
            Self::Given => CodeSource::Given,
            Self::Prebuilt(archive, _) => CodeSource::Prebuilt(archive),
            Self::Compiled(architecture, _) => CodeSource::Compiled(architecture.clone()),
            Self::Ptx(_) => CodeSource::Ptx,
        }
    }
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Given => f.write_str("the given image"),
            Self::Prebuilt(archive, stem) => write!(f, "`{stem}` built for {archive}"),
            Self::Compiled(architecture, stem) => {
                write!(f, "`{stem}` compiled here for {architecture}")
            }
            Self::Ptx(stem) => write!(f, "`{stem}` compiled by the driver"),
        }
    }
}

/// The images of one device.
#[derive(Debug)]
pub(crate) struct Images {
    source: ImageSource,
    capability: (u32, u32),
    compiler: Option<Compiler>,
    archives: Mutex<BTreeMap<&'static str, Arc<Archive>>>,
}

impl Images {
    pub(crate) fn new(
        source: ImageSource,
        capability: (u32, u32),
        compiled: Option<PathBuf>,
        compiler_is_there: bool,
    ) -> Self {
        let compiler = compiler_is_there.then(|| Compiler::new(compiled));
        Self { source, capability, compiler, archives: Mutex::default() }
    }

    /// The architecture of the device, as compilers call it.
    pub(crate) fn architecture(&self) -> String {
        let (major, minor) = self.capability;
        format!("sm_{major}{minor}")
    }

    /// What NVRTC is told to compile for.
    fn compiled_architecture(&self) -> String {
        // Hopper's own instructions are compiled only for `sm_90a`.
        let suffix = if self.capability == (9, 0) { "a" } else { "" };
        format!("{}{suffix}", self.architecture())
    }

    /// Whether NVRTC compiles for this device: one source is tried. `None` without NVRTC.
    pub(crate) fn try_compiler(&self) -> Option<Result<(), String>> {
        self.compiler.as_ref()?;
        let form = Form::Compiled(self.compiled_architecture(), "add".to_owned());
        Some(self.image(&form).map(|_image| ()))
    }

    /// The forms of a kernel, the best first.
    pub(crate) fn forms(&self, kernel: &str) -> Vec<Form> {
        if let ImageSource::Given(_) = self.source {
            return vec![Form::Given];
        }
        let Some(stem) = stem_of(kernel, SOURCES.iter().map(|source| source.stem)) else {
            return Vec::new();
        };
        let mut forms = Vec::new();
        if let Some(archive) = prebuilt_for(self.capability) {
            forms.push(Form::Prebuilt(archive, stem.to_owned()));
        }
        forms.push(Form::Compiled(self.compiled_architecture(), stem.to_owned()));
        forms.push(Form::Ptx(stem.to_owned()));
        forms
    }

    /// The bytes of one form, or why there are none.
    pub(crate) fn image(&self, form: &Form) -> Result<Vec<u8>, String> {
        match form {
            Form::Given => match &self.source {
                ImageSource::Given(image) => Ok(image.to_vec()),
                ImageSource::Embedded => Err("no image was given".to_owned()),
            },
            Form::Prebuilt(archive, stem) => self.unpacked(archive, stem),
            Form::Ptx(stem) => {
                let mut text = self.unpacked(PTX, stem)?;
                text.push(0); // the driver takes text up to its zero
                Ok(text)
            }
            Form::Compiled(architecture, stem) => {
                let compiler = self.compiler.as_ref().ok_or("NVRTC is not installed")?;
                let source = SOURCES.iter().find(|source| source.stem == stem);
                compiler.compile(source.ok_or("its source is not here")?, architecture)
            }
        }
    }

    fn unpacked(&self, name: &'static str, stem: &str) -> Result<Vec<u8>, String> {
        let mut archives = lock(&self.archives);
        if !archives.contains_key(name) {
            let packed = ARCHIVES.iter().find(|(archive, _)| *archive == name);
            let (_, packed) = packed.ok_or_else(|| format!("this build has none for {name}"))?;
            archives.insert(name, Arc::new(Archive::unpack(packed)?));
        }
        let image = archives[name].image(stem);
        image.map(<[u8]>::to_vec).ok_or_else(|| format!("it is not in the archive of {name}"))
    }
}

/// The archive whose code runs on a device. Code of one minor version runs on the later ones of the
/// same major version, except where a name ends with a letter: `a` is for one device only, `f` for
/// a family.
fn prebuilt_for(capability: (u32, u32)) -> Option<&'static str> {
    match capability {
        (8, 9) => Some("sm_89"),
        (8, _) => Some("sm_80"),
        (9, 0) => Some("sm_90a"),
        (10, _) => Some("sm_100f"),
        (12, _) => Some("sm_120"),
        _ => None,
    }
}

/// The source that has a kernel: names of kernels begin with the stem of theirs, and of several
/// stems that fit (`rms_norm`, `rms_norm_fused`) the longest is meant.
fn stem_of<'a>(kernel: &str, stems: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let fits = |stem: &&str| {
        kernel.strip_prefix(stem).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    stems.filter(fits).max_by_key(|stem| stem.len())
}

/// An archive, unpacked.
#[derive(Debug)]
struct Archive {
    bytes: Vec<u8>,
    /// Name, where it begins, how long it is.
    images: Vec<(String, usize, usize)>,
}

impl Archive {
    fn unpack(packed: &[u8]) -> Result<Self, String> {
        let mut bytes = Vec::new();
        ruzstd::decoding::StreamingDecoder::new(packed)
            .map_err(|error| format!("the archive cannot be unpacked: {error}"))?
            .read_to_end(&mut bytes)
            .map_err(|error| format!("the archive cannot be unpacked: {error}"))?;
        Self::parse(bytes).ok_or_else(|| "the archive is damaged".to_owned())
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let (version, n_images) = (take_u32(&mut rest)?, take_u32(&mut rest)?);
        if version != VERSION {
            return None;
        }
        let mut named = Vec::new();
        for _ in 0..n_images {
            let n = take_u32(&mut rest)? as usize;
            let name = std::str::from_utf8(rest.split_off(..n)?).ok()?.to_owned();
            let len = u64::from_le_bytes(rest.split_off(..8)?.try_into().ok()?);
            named.push((name, usize::try_from(len).ok()?));
        }
        let mut at = bytes.len() - rest.len();
        let mut images = Vec::new();
        for (name, len) in named {
            let begin = at.next_multiple_of(8);
            at = begin.checked_add(len)?;
            images.push((name, begin, len));
        }
        (at <= bytes.len()).then_some(Self { bytes, images })
    }

    fn image(&self, stem: &str) -> Option<&[u8]> {
        let (_, begin, len) = self.images.iter().find(|(name, ..)| name == stem)?;
        Some(&self.bytes[*begin..][..*len])
    }
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(rest.split_off(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use forgelm_kernels_emulator as emulator;

    use super::*;

    fn archive(images: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(u32::try_from(images.len()).unwrap().to_le_bytes());
        for (name, image) in images {
            bytes.extend(u32::try_from(name.len()).unwrap().to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend((image.len() as u64).to_le_bytes());
        }
        for (_, image) in images {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes.extend(*image);
        }
        bytes
    }

    #[test]
    fn an_archive_gives_back_its_images() {
        let bytes = archive(&[("add", b"one"), ("rms_norm", b"another"), ("empty", b"")]);
        let archive = Archive::parse(bytes).unwrap();
        assert_eq!(archive.image("add"), Some(&b"one"[..]));
        assert_eq!(archive.image("rms_norm"), Some(&b"another"[..]));
        assert_eq!(archive.image("empty"), Some(&b""[..]));
        assert_eq!(archive.image("rms"), None);
    }

    #[test]
    fn a_damaged_archive_is_refused_wherever_it_ends() {
        let whole = archive(&[("add", b"one"), ("rms_norm", b"another")]);
        for len in 0..whole.len() {
            assert!(Archive::parse(whole[..len].to_vec()).is_none(), "{len} bytes");
        }
        let mut newer = whole;
        newer[8] = 2;
        assert!(Archive::parse(newer).is_none());
        let mut endless = archive(&[("add", b"one")]);
        let at = endless.len() - 8 - 3 - 5;
        endless[at..at + 8].fill(0xFF);
        assert!(Archive::parse(endless).is_none());
        let error = Archive::unpack(b"no zstd frame").unwrap_err();
        assert!(error.starts_with("the archive cannot be unpacked"), "{error}");
    }

    #[test]
    fn a_kernel_is_in_the_source_with_the_longest_stem() {
        let stems = || ["rms", "rms_norm", "gemm", "adamw", "adamw_8bit"].into_iter();
        assert_eq!(stem_of("rms_norm_forward_f32", stems()), Some("rms_norm"));
        assert_eq!(stem_of("rms_normal", stems()), Some("rms"));
        assert_eq!(stem_of("gemm", stems()), Some("gemm"));
        assert_eq!(stem_of("adamw_8bit_step", stems()), Some("adamw_8bit"));
        assert_eq!(stem_of("adamw_step", stems()), Some("adamw"));
        assert_eq!(stem_of("gemmology", stems()), None);
    }

    /// What launches a kernel knows its name only as text. The emulated driver has every kernel that
    /// a source registers and no other, and the tests on it launch them all.
    #[test]
    fn every_kernel_is_in_every_archive() {
        if let Some(reason) = emulator::unavailable() {
            println!("skipped: {reason}");
            return;
        }
        let kernels = emulator::kernels();
        let kernels: Vec<_> = kernels.iter().filter(|name| !name.starts_with("probe_")).collect();
        assert!(kernels.len() > 200, "{} kernels", kernels.len());
        for (name, packed) in ARCHIVES {
            let archive = Archive::unpack(packed).unwrap();
            let has: BTreeMap<_, _> = SOURCES
                .iter()
                .map(|source| (source.stem, kernels_in(archive.image(source.stem).unwrap())))
                .collect();
            for kernel in &kernels {
                let stem = stem_of(kernel, SOURCES.iter().map(|source| source.stem)).unwrap();
                let is_there = has[stem].contains(kernel.as_bytes());
                assert!(is_there, "`{kernel}` is not in `{stem}` of {name}");
            }
        }
    }

    /// Names of sections in machine code, of entries in PTX.
    fn kernels_in(image: &[u8]) -> BTreeSet<&[u8]> {
        let is_of_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let name_at = |at: usize| {
            let rest = &image[at..];
            &rest[..rest.iter().position(|byte| !is_of_name(byte)).unwrap_or(rest.len())]
        };
        let begins = image.windows(7).enumerate().filter_map(|(at, bytes)| match bytes {
            [b'.', b't', b'e', b'x', b't', b'.', _] => Some(at + 6),
            b".entry " => Some(at + 7),
            _ => None,
        });
        begins.map(name_at).collect()
    }

    #[test]
    fn each_device_has_the_code_that_runs_on_it() {
        let expected = [
            ((8, 0), Some("sm_80")),
            ((8, 6), Some("sm_80")),
            ((8, 7), Some("sm_80")),
            ((8, 9), Some("sm_89")),
            ((9, 0), Some("sm_90a")),
            ((10, 0), Some("sm_100f")),
            ((10, 3), Some("sm_100f")),
            ((11, 0), None),
            ((12, 0), Some("sm_120")),
            ((12, 1), Some("sm_120")),
            ((13, 0), None),
        ];
        for (capability, archive) in expected {
            assert_eq!(prebuilt_for(capability), archive, "{capability:?}");
        }
    }
}
