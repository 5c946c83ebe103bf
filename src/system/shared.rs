//! Memory that a process shares with the children that it forks.
#![allow(unsafe_code)] // one mapping of atomics

use std::num::NonZeroUsize;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

/// New words, all 0, which stay mapped until the process ends. Children that are forked from now on
/// share them. Pages that nobody touches take no memory.
///
/// # Errors
/// The errno of mmap(2) (`ENOMEM`).
pub(crate) fn words(count: NonZeroUsize) -> Result<&'static [AtomicU64], Errno> {
    let bytes = count.saturating_mul(NonZeroUsize::new(size_of::<AtomicU64>()).unwrap());
    // SAFETY: a new mapping, at an address that the kernel chooses.
    let page = unsafe {
        mmap_anonymous(
            None,
            bytes,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE,
        )
    }?;
    // SAFETY: the mapping is as long as this slice, page-aligned, zeroed, never unmapped, and
    // accessed only through these atomics, for which every bit pattern is valid.
    Ok(unsafe { std::slice::from_raw_parts(page.as_ptr().cast(), count.get()) })
}
