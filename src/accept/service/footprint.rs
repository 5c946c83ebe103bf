//! Memory that only the start needs: allocations of argument parsing, and pages of the program. The
//! pages stay in the page cache, and the kernel maps a page again when it is touched.
#![allow(unsafe_code)] // madvise(2), malloc_trim(3)

use std::ptr::NonNull;

use nix::libc;
use nix::sys::mman::{MmapAdvise, madvise};

/// Memory to give back after the start.
#[derive(Debug)]
pub(crate) struct Footprint {
    /// Start and length of the program's mappings that nobody has written to.
    program: Vec<(usize, usize)>,
}

impl Footprint {
    /// To be called while files can still be opened. A failure costs only a megabyte of memory.
    pub fn of_start() -> Self {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let mappings: Vec<_> = maps.lines().filter_map(Mapping::parse).collect();
        let here = Self::of_start as fn() -> Self as usize;
        let is_here = |mapping: &&Mapping| (mapping.start..mapping.end).contains(&here);
        let ours = mappings.iter().find(is_here).map(|mapping| mapping.file);
        let parts = mappings.iter().filter(|mapping| Some(mapping.file) == ours);
        let unchanged = parts.filter(|mapping| mapping.is_unchanged());
        Self {
            program: unchanged
                .map(|part| (part.start, part.end - part.start))
                .collect(),
        }
    }

    /// Gives the memory back. Opens no file.
    pub fn reduce(self) {
        #[cfg(target_env = "gnu")]
        // SAFETY: this frees only memory that is not allocated.
        unsafe {
            libc::malloc_trim(0)
        };
        for (start, length) in self.program {
            if let Some(start) = NonNull::new(start as *mut _) {
                // SAFETY: nobody has written to this mapping of a file, so a page that is touched
                // again is read from the file unchanged. The mapping exists as long as the program.
                let _ = unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) };
            }
        }
    }
}

/// A line of proc_pid_maps(5).
#[derive(Debug, PartialEq, Eq)]
struct Mapping<'a> {
    start: usize,
    end: usize,
    permissions: &'a str,
    offset: &'a str,
    /// Device and inode.
    file: (&'a str, &'a str),
}

impl<'a> Mapping<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(' ');
        let (start, end) = fields.next()?.split_once('-')?;
        Some(Self {
            start: usize::from_str_radix(start, 16).ok()?,
            end: usize::from_str_radix(end, 16).ok()?,
            permissions: fields.next()?,
            offset: fields.next()?,
            file: (fields.next()?, fields.next()?),
        })
    }

    /// Whether not even the dynamic linker has written to this part of a program: the code, and the
    /// read-only part at the start of the file. Other read-only parts may have been relocated.
    fn is_unchanged(&self) -> bool {
        let is_first = self.offset.bytes().all(|digit| digit == b'0');
        self.permissions == "r-xp" || self.permissions == "r--p" && is_first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_written_is_told_from_other_memory() {
        let line = |permissions, offset| {
            format!("55e081e11000-55e081ef5000 {permissions} {offset} fe:00 123  /usr/bin/fdaccept")
        };
        let is_unchanged = |permissions, offset| {
            let line = line(permissions, offset);
            Mapping::parse(&line).unwrap().is_unchanged()
        };
        assert!(is_unchanged("r-xp", "0002a000"));
        assert!(is_unchanged("r--p", "00000000"));
        assert!(!is_unchanged("r--p", "0002a000"));
        assert!(!is_unchanged("rw-p", "00000000"));
        assert!(!is_unchanged("rwxp", "0002a000"));
        let line = line("r-xp", "0002a000");
        let mapping = Mapping::parse(&line).unwrap();
        assert_eq!(mapping.start, 0x55e0_81e1_1000);
        assert_eq!(mapping.end, 0x55e0_81ef_5000);
        assert_eq!(mapping.file, ("fe:00", "123"));
        for other in ["", "x", "1000 r-xp 0 0 0", "1000-2000 r-xp 0 0"] {
            assert_eq!(Mapping::parse(other), None);
        }
    }

    #[test]
    fn the_program_goes_on() {
        let footprint = Footprint::of_start();
        assert!(!footprint.program.is_empty());
        footprint.reduce();
        assert_eq!("a constant".len(), 10);
    }
}
