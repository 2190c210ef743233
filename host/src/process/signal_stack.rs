//! A stack for signal handlers that costs a connection's thread no memory of its own.
//!
//! Wasmtime needs 256 KiB for its handler, which turns faults of wasm code into traps. Where a
//! thread has less, Wasmtime maps a stack and a guard page for it, and the number of mappings is
//! what bounds the number of connections (`vm.max_map_count`, 65 530 by default). The far end of
//! the thread's own stack serves as well: it is made larger by as much, so only a thread that has
//! overflowed its stack, and is about to be aborted, would ever use both.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// What Wasmtime takes for enough (`MIN_STACK_SIZE` in its `sys/unix/signals.rs`).
pub(crate) const BYTES: usize = 256 * 1024;

/// The signal stack of the thread that made it, until the same thread drops it.
pub(crate) struct SignalStack {
    /// What Rust's runtime has set up for its own handler.
    previous: libc::stack_t,
}

impl SignalStack {
    /// Makes the last [`BYTES`] of this thread's stack its signal stack. Call it at the beginning
    /// of a thread with a stack much larger than that.
    ///
    /// # Errors
    /// The system does not tell where the stack is, or it is too small.
    #[expect(unsafe_code, reason = "there is no safe interface to sigaltstack")]
    pub(crate) fn install() -> io::Result<SignalStack> {
        let mut attributes = MaybeUninit::uninit();
        let (mut lowest, mut bytes) = (ptr::null_mut(), 0);
        // SAFETY: the attributes are initialised before they are read, and destroyed once.
        let failed = unsafe {
            let thread = libc::pthread_self();
            libc::pthread_getattr_np(thread, attributes.as_mut_ptr()) != 0 || {
                let attributes = attributes.assume_init_mut();
                let failed = libc::pthread_attr_getstack(attributes, &mut lowest, &mut bytes);
                libc::pthread_attr_destroy(attributes);
                failed != 0
            }
        };
        if failed || bytes < 2 * BYTES {
            return Err(io::Error::last_os_error());
        }
        let stack = libc::stack_t {
            ss_sp: lowest,
            ss_flags: 0,
            ss_size: BYTES,
        };
        let mut previous = stack;
        // SAFETY: the memory belongs to this thread, which has not come that far down yet, and it
        // stays until the thread has ended.
        if unsafe { libc::sigaltstack(&stack, &mut previous) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(SignalStack { previous })
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
