//! The command line of Lopper: parse, run, exit code.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, except that memory which the system refuses ends the program with the exit code and the message that
/// the command contract has for it, where Rust's own answer is to abort; and that of much memory large pages are asked for.
struct Memory;

/// From so many bytes on, memory comes in large pages where Linux has them for the asking: rounding a matrix of 58 million weights
/// takes gigabytes that are new to the process, a page of 4 kB at a time. (GPTQ of a block on a virtual machine took 44 s for 64 with
/// the C library told to ask for them, and to keep what is freed besides; this alone was not timed there.)
#[cfg(target_os = "linux")]
const LARGE: usize = 16 << 20;

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
    #[cfg(target_os = "linux")]
    if bytes >= LARGE {
        ask_for_large_pages(memory, bytes);
    }
    memory
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "advice on memory is given by its address")]
fn ask_for_large_pages(memory: *mut u8, bytes: usize) {
    const PAGE: usize = 4096;
    let skipped = memory.align_offset(PAGE);
    if let Some(whole) = bytes.checked_sub(skipped).map(|rest| rest / PAGE * PAGE) {
        // SAFETY: the pages lie within memory that was just handed out, and this advice changes nothing that is in them. A system
        // that does not take it leaves all as it was.
        let _ = unsafe {
            rustix::mm::madvise(
                memory.add(skipped).cast(),
                whole,
                rustix::mm::Advice::LinuxHugepage,
            )
        };
    }
}

fn main() -> std::process::ExitCode {
    let code = lopper::jinja::serve().unwrap_or_else(lopper::cli::main);
    std::process::ExitCode::from(code)
}
