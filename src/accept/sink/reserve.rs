//! Descriptors that are kept for what must not fail while descriptors are short.

use std::os::fd::OwnedFd;

/// Up to `MOST` descriptors that nobody uses. Given up, they make room for others.
#[derive(Debug, Default)]
pub(super) struct Reserve<const MOST: usize>(Vec<OwnedFd>);

impl<const MOST: usize> Reserve<MOST> {
    /// Fills the reserve, as far as there is room.
    pub fn fill<E>(&mut self, one: impl Fn() -> Result<OwnedFd, E>) {
        while self.0.len() < MOST
            && let Ok(another) = one()
        {
            self.0.push(another);
        }
    }

    /// Makes room. False if the reserve is empty.
    pub fn give_up(&mut self) -> bool {
        let is_held = !self.0.is_empty();
        self.0.clear();
        is_held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::pipe;
    use std::os::fd::AsFd;

    #[test]
    fn what_is_given_up_is_filled_up() {
        let (any, _other) = pipe().unwrap();
        let mut reserve = Reserve::<2>::default();
        assert!(!reserve.give_up());
        for _ in 0..2 {
            reserve.fill(|| any.as_fd().try_clone_to_owned());
            assert_eq!(reserve.0.len(), 2);
            assert!(reserve.give_up());
        }
        reserve.fill(|| Err(()));
        assert!(!reserve.give_up());
    }
}
