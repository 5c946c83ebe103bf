//! The limit on open descriptors: raised for this process, and original for its children.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// The limit at the start of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FdLimit {
    soft: rlim_t,
    hard: rlim_t,
}

impl FdLimit {
    /// Raises the soft limit on open descriptors to the hard one, which is always allowed
    /// (getrlimit(2)). If the call fails all the same, the old limit will do.
    pub fn raise() -> Self {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, 0));
        let limit = Self { soft, hard };
        limit.set(hard);
        limit
    }

    /// Runs `action`, such as starting a process, under the original limit.
    pub fn with_original<T>(&self, action: impl FnOnce() -> T) -> T {
        self.set(self.soft);
        let result = action();
        self.set(self.hard);
        result
    }

    fn set(&self, soft: rlim_t) {
        if self.soft != self.hard {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, self.hard);
        }
    }
}
