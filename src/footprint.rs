//! Memory that starting took and the loop does not: pages of our own code, which are unmapped again.
//!
//! They stay in the page cache, and what is needed of them comes back by itself.
#![allow(unsafe_code)] // madvise(2)

use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// Unmaps this program's code. To be called when it has started, as long as it still may open files.
/// Where that cannot be done, nothing is lost but a megabyte.
pub fn unmap_code() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    let here = unmap_code as fn() as usize;
    let ours = maps
        .lines()
        .filter_map(code)
        .find(|(start, end)| (*start..*end).contains(&here));
    if let Some((start, end)) = ours
        && let Some(start_of_it) = NonNull::new(start as *mut _)
    {
        // SAFETY: this is a mapping of a file that is executed and never written (r-xp), so a page
        // of it that is touched again is read from the file as it was.
        let _ = unsafe { madvise(start_of_it, end - start, MmapAdvise::MADV_DONTNEED) };
    }
}

/// The range of a line of proc_pid_maps(5) that is code, and nobody has written to.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split(' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let range = (
        usize::from_str_radix(start, 16).ok()?,
        usize::from_str_radix(end, 16).ok()?,
    );
    (fields.next()? == "r-xp").then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_told_from_other_memory() {
        let line = "55e081e11000-55e081ef5000 r-xp 0002a000 fe:00 123 /usr/bin/fdaccept";
        assert_eq!(code(line), Some((0x55e0_81e1_1000, 0x55e0_81ef_5000)));
        for other in [
            "",
            "x",
            "1000-2000 r--p 0 0 0",
            "1000-2000 rwxp 0 0 0",
            "1000 r-xp",
        ] {
            assert_eq!(code(other), None);
        }
    }

    #[test]
    fn code_goes_on() {
        unmap_code();
        assert_eq!(code("1000-2000 r-xp 0"), Some((0x1000, 0x2000)));
    }
}
