//! Links the unwinder into the programs. Otherwise each start loads the whole libgcc_s.so, which
//! costs time and memory and serves only panics.

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
    // The linker looks for libgcc_s.so, finds this script, and reads the archive instead.
    let script = format!("INPUT({})\n", archive.display());
    if std::fs::write(directory.join("libgcc_s.so"), script).is_ok() {
        println!("cargo::rustc-link-arg-bins=-L{}", directory.display());
    }
}

/// The unwinder's archive, from the compiler that links; `None` if there is none.
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
    // The compiler prints the bare name if it does not have the archive.
    (path.is_absolute() && path.exists()).then(|| path.into())
}
