//! The command line of Lopper: parse, run, exit code.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, except that memory which the system refuses ends the program with the exit code and the message that
/// the command contract has for it, where Rust's own answer is to abort.
struct Memory;

#[global_allocator]
static MEMORY: Memory = Memory;

#[expect(unsafe_code, reason = "an allocator is an unsafe trait")]
// SAFETY: every call goes to the system's allocator as it came, and its answer back, unless that is null.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller promised.
        given(unsafe { System.realloc(old, layout, size) }, size)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn given(memory: *mut u8, bytes: usize) -> *mut u8 {
    if memory.is_null() {
        lopper::cli::out_of_memory(bytes);
    }
    memory
}

fn main() -> std::process::ExitCode {
    let code = lopper::jinja::serve().unwrap_or_else(lopper::cli::main);
    std::process::ExitCode::from(code)
}
