//! Gives the library the soname of the driver: whoever asks for `libcuda.so` after this file was opened by
//! its path gets this one.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
}
