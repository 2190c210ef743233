//! A stack for signal handlers that costs a connection's thread no memory mapping of its own.
//!
//! Wasmtime needs 256 KiB for its handler, which turns faults of wasm code into traps. Where a
//! thread has less, Wasmtime maps a stack and a guard page for it, and the number of mappings is
//! what bounds the number of connections (`vm.max_map_count`, 65 530 by default).

use std::mem::MaybeUninit;
use std::ptr;

/// What `wasmtime::runtime::vm::sys::unix::signals` takes for enough.
const BYTES: usize = 256 * 1024;

/// The signal stack of the thread that made it, until it is dropped by the same thread.
pub(crate) struct SignalStack {
    _memory: Box<[MaybeUninit<u8>]>,
    /// What Rust's runtime has set up for its own handler.
    previous: libc::stack_t,
}

impl SignalStack {
    /// Sets the signal stack of this thread. Its pages take no memory until a signal comes.
    #[expect(unsafe_code, reason = "there is no safe interface to sigaltstack")]
    pub(crate) fn install() -> SignalStack {
        let mut memory = Box::new_uninit_slice(BYTES);
        let stack = libc::stack_t {
            ss_sp: memory.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: BYTES,
        };
        let mut previous = stack;
        // SAFETY: `stack` describes memory that nothing else uses and that lives until `drop` has
        // taken it away from the kernel again. On failure the thread keeps the stack it had, and
        // Wasmtime maps one.
        if unsafe { libc::sigaltstack(&stack, &mut previous) } != 0 {
            previous = disabled();
        }
        SignalStack {
            _memory: memory,
            previous,
        }
    }
}

impl Drop for SignalStack {
    #[expect(unsafe_code, reason = "there is no safe interface to sigaltstack")]
    fn drop(&mut self) {
        // SAFETY: the previous stack belongs to Rust's runtime, which frees it after this, when the
        // thread ends.
        unsafe { libc::sigaltstack(&self.previous, ptr::null_mut()) };
    }
}

fn disabled() -> libc::stack_t {
    libc::stack_t {
        ss_sp: ptr::null_mut(),
        ss_flags: libc::SS_DISABLE,
        ss_size: BYTES,
    }
}
