//! Tells a thread that it is about to wait in the host: for a timer, say. Whoever has something that
//! others wait for gives it away first.

use std::cell::RefCell;

thread_local! {
    static HOOK: RefCell<Option<Box<dyn Fn()>>> = const { RefCell::new(None) };
}

/// Has `hook` called on this thread before each wait, in place of any before it.
pub(crate) fn before_each(hook: impl Fn() + 'static) {
    HOOK.set(Some(Box::new(hook)));
}

/// To be said before a wait that may be long.
pub(crate) fn begins() {
    HOOK.with_borrow(|hook| {
        if let Some(hook) = hook {
            hook();
        }
    });
}
