//! The process's allocator, counting: for tests that assert that something allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    static OF_THREAD: Cell<u64> = const { Cell::new(0) };
}
static OF_PROCESS: AtomicU64 = AtomicU64::new(0);

/// Allocations of the calling thread.
#[allow(dead_code)]
pub fn of_this_thread() -> u64 {
    OF_THREAD.with(Cell::get)
}

/// Allocations of every thread.
#[allow(dead_code)]
pub fn of_the_process() -> u64 {
    OF_PROCESS.load(Ordering::Relaxed)
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged.
// JUSTIFICATION: the trait is unsafe to implement, and no safe hook counts allocations.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        OF_THREAD.with(|count| count.set(count.get() + 1));
        OF_PROCESS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
