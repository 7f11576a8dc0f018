//! Names the shared library after its ABI: hosts that were linked to it ask for this name.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libforgelm.so.1");
    println!("cargo:rerun-if-changed=build.rs");
}
