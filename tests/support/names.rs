//! Directories and names for sockets.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Names that nothing else uses: a path in a directory that vanishes with this, and others in the
/// abstract namespace.
pub struct Names {
    pub directory: tempfile::TempDir,
}

impl Names {
    #[allow(clippy::new_without_default)] // nothing but a test makes one
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory }
    }

    pub fn path(&self) -> String {
        self.text("queue")
    }

    /// A file in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Its path as an argument.
    pub fn text(&self, name: &str) -> String {
        self.file(name).to_str().unwrap().to_owned()
    }

    pub fn is_empty(&self) -> bool {
        self.files().is_empty()
    }

    /// What is in the directory, in order.
    pub fn files(&self) -> Vec<String> {
        let entries = self.directory.path().read_dir().unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    pub fn abstract_name(&self) -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        format!("@fdtools-test-{}-{count}", std::process::id())
    }
}
