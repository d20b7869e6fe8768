//! The allocator, and when it gives back what nobody uses.
//!
//! mimalloc keeps with each thread what is free in the thread's own pages, also what other threads have freed there,
//! until that thread looks: after ten thousand connections have ended, that may be never.

use libmimalloc_sys as mi;
use std::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};
use tavi_bots::{Metered, held};

/// Counts for each thread what it holds: so bots' scripts are bounded.
#[global_allocator]
static ALLOCATOR: Metered<Mimalloc> = Metered::over(Mimalloc);

/// mimalloc, asked for alignment only where it is not given anyway: what has to be aligned takes a slower way there.
struct Mimalloc;

/// mimalloc aligns each block of at least so many bytes to so many (MI_MAX_ALIGN_SIZE), a smaller one to its size.
const ALIGNED: usize = 16;

fn is_plain(layout: Layout, size: usize) -> bool {
    layout.align() <= ALIGNED && layout.align() <= size
}

// SAFETY: mimalloc keeps the promises of `malloc`, and its blocks are aligned as `is_plain` says; what needs more is asked
// for with its alignment. Any of its blocks may be freed and reallocated alike.
unsafe impl GlobalAlloc for Mimalloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = layout.size();
        // SAFETY: the caller's promises are passed on.
        unsafe {
            if is_plain(layout, size) { mi::mi_malloc(size) } else { mi::mi_malloc_aligned(size, layout.align()) }
                .cast()
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let size = layout.size();
        // SAFETY: the caller's promises are passed on.
        unsafe {
            if is_plain(layout, size) { mi::mi_zalloc(size) } else { mi::mi_zalloc_aligned(size, layout.align()) }
                .cast()
        }
    }

    unsafe fn dealloc(&self, at: *mut u8, _: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { mi::mi_free(at.cast()) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe {
            if is_plain(layout, size) {
                mi::mi_realloc(at.cast(), size)
            } else {
                mi::mi_realloc_aligned(at.cast(), size, layout.align())
            }
            .cast()
        }
    }
}

/// A thread has freed much when it is so much more than it has allocated, in bytes.
const MUCH: isize = 1 << 20;
const INTERVAL: Duration = Duration::from_secs(1);

/// Some thread has freed much.
static FREED: AtomicBool = AtomicBool::new(false);
/// How often all threads were asked to give back, and how many have done so since.
static ASKED: AtomicU64 = AtomicU64::new(0);
static GIVEN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The most that the thread has held since it freed much.
    static MOST: Cell<isize> = const { Cell::new(0) };
    /// The last time that it gave back.
    static HEARD: Cell<u64> = const { Cell::new(0) };
}

/// For a thread of the runtime that has nothing to do just now: notes whether it has freed much, and gives back what is
/// free if that was asked for.
pub fn rest() {
    let (now, most) = (held(), MOST.get());
    if most - now > MUCH {
        FREED.store(true, Ordering::Relaxed);
    }
    if now > most || most - now > MUCH {
        MOST.set(now);
    }
    let asked = ASKED.load(Ordering::Acquire);
    if HEARD.replace(asked) != asked {
        // SAFETY: mi_collect may be called at any time; it touches the heap of the calling thread.
        unsafe { mi::mi_collect(true) };
        GIVEN.fetch_add(1, Ordering::AcqRel);
    }
}

/// Lets all threads of the runtime give back what is free, after one of them has freed much. Never ends.
pub async fn tidy() {
    let threads = tokio::runtime::Handle::current().metrics().num_workers();
    let mut tick = tokio::time::interval(INTERVAL);
    GIVEN.store(threads, Ordering::Release);
    loop {
        tick.tick().await;
        if FREED.swap(false, Ordering::Relaxed) {
            GIVEN.store(0, Ordering::Release);
            ASKED.fetch_add(1, Ordering::AcqRel);
        }
        if GIVEN.load(Ordering::Acquire) < threads {
            // A thread that sleeps does not hear; these wake others, each second until all have heard.
            (0..2 * threads).for_each(|_| drop(tokio::spawn(async {})));
        }
    }
}
