//! Links the unwinder into the programs. Otherwise each of them loads the whole libgcc_s.so whenever it
//! starts, which costs time and memory for what a panic alone would need.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    let Some(directory) = env::var_os("OUT_DIR").map(PathBuf::from) else {
        return;
    };
    let Some(archive) = unwinder() else {
        return;
    };
    // What the linker looks for by the name of the library says where to find it as an archive.
    let script = format!("INPUT({})\n", archive.display());
    if std::fs::write(directory.join("libgcc_s.so"), script).is_ok() {
        println!("cargo::rustc-link-arg-bins=-L{}", directory.display());
    }
}

/// The archive of the compiler that links, if it is one that has it.
fn unwinder() -> Option<PathBuf> {
    let is_native = env::var_os("HOST") == env::var_os("TARGET");
    let linker = match env::var_os("RUSTC_LINKER") {
        Some(linker) => linker,
        None if is_native => OsString::from("cc"),
        None => return None,
    };
    if env::var_os("CARGO_CFG_TARGET_ENV")? != "gnu" {
        return None;
    }
    let output = Command::new(linker)
        .arg("-print-file-name=libgcc_eh.a")
        .output()
        .ok()?;
    let name = String::from_utf8(output.stdout).ok()?;
    let path = Path::new(name.trim_end());
    // One that is not there is printed as it was asked for.
    (path.is_absolute() && path.exists()).then(|| path.into())
}
