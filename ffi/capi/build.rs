//! Names the shared library: without a SONAME, a host that was linked by path records the path.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libforgelm.so");
    println!("cargo:rerun-if-changed=build.rs");
}
