//! Memory that starting took and the loop does not: what the arguments were parsed with, and pages of our
//! own program. These stay in the page cache, and what is needed of them comes back by itself.
#![allow(unsafe_code)] // madvise(2), malloc_trim(3)

use std::ptr::NonNull;

use nix::libc;
use nix::sys::mman::{MmapAdvise, madvise};

/// What starting took, to be given back when it is over.
#[derive(Debug)]
pub(crate) struct Footprint {
    /// Start and length of the mappings of this program that nobody has written to.
    program: Vec<(usize, usize)>,
}

impl Footprint {
    /// Finds it. To be called as long as files may still be opened; where that cannot be done, nothing
    /// is lost but a megabyte.
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

    /// Gives it back. Opens nothing.
    pub fn reduce(self) {
        #[cfg(target_env = "gnu")]
        // SAFETY: it concerns only what nobody has allocated.
        unsafe {
            libc::malloc_trim(0)
        };
        for (start, length) in self.program {
            if let Some(start) = NonNull::new(start as *mut _) {
                // SAFETY: nobody has written to this mapping of a file, so a page of it that is
                // touched again is read from the file as it was; a program is not unmapped.
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
    /// Its device and inode.
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

    /// Whether this is a part of a program that not even the dynamic linker wrote to: its code, and what
    /// comes before that, from the start of the file. What else is read-only may have been relocated.
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
