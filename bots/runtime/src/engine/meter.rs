//! How much memory a run holds: an allocator that counts, for each thread, what was allocated and not freed.
//!
//! A run stays on its thread, so the difference between two readings is what it holds, wherever it hides it: in
//! variables, in `this`, in callers' frames, in values that have no name yet. Rhai's own limits see none of the sum.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    hint::black_box,
};

thread_local! {
    // Without a destructor and without lazy initialisation, so that the allocator may use it at any time.
    static HELD: Cell<isize> = const { Cell::new(0) };
}

/// The allocator that a program with bots has to install: `#[global_allocator] static A: Metered = Metered::system();`
#[derive(Debug)]
pub struct Metered<A = System>(A);

impl Metered {
    /// The system's allocator, counted.
    pub const fn system() -> Metered {
        Metered(System)
    }
}

impl<A> Metered<A> {
    /// Another allocator, counted.
    pub const fn over(allocator: A) -> Metered<A> {
        Metered(allocator)
    }
}

// SAFETY: every call goes to the inner allocator as it is; counting touches a thread-local cell only.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Metered<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { self.0.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { self.0.realloc(at, layout, size) }
    }
}

fn count(bytes: isize) {
    // A thread that ends may free after its cells are gone; then nobody asks any more.
    let _ = HELD.try_with(|held| held.set(held.get().wrapping_add(bytes)));
}

/// What this thread has allocated and not freed, in bytes; only differences mean something.
pub fn held() -> isize {
    HELD.with(Cell::get)
}

/// Whether the program has installed [`Metered`].
pub fn is_installed() -> bool {
    let before = held();
    let some = black_box(vec![0_u8; 1024]);
    held() - before >= some.len() as isize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_counts_no_more() {
        assert!(is_installed());
        let before = held();
        let mut some = black_box(vec![1_u8; 1 << 20]);
        assert_eq!(held() - before, 1 << 20);
        some.truncate(10);
        some.shrink_to_fit();
        assert_eq!(held() - before, 10);
        drop(some);
        assert_eq!(held(), before);
    }
}
