//! The limit on open descriptors: raised for us, as it was for those that we start.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// The limit that this process was started with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FdLimit {
    soft: rlim_t,
    hard: rlim_t,
}

impl FdLimit {
    /// Raises the soft limit on open descriptors to the hard one. That always is allowed
    /// (getrlimit(2)), and where it fails all the same, the old limit is one to live with.
    pub fn raise() -> Self {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, 0));
        let limit = Self { soft, hard };
        limit.set(hard);
        limit
    }

    /// Does something, such as starting a process, under the limit that we were started with.
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
