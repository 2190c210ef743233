//! A compiled component, as a child hands it to the server and as the cache keeps it.

use wasmtime::Engine;
use wasmtime::component::Component;

/// A compiled component, and what the server has to know of it beforehand.
pub(super) struct Compiled {
    pub(super) images: bool,
    /// What an instance takes besides its memories and tables.
    pub(super) instance_bytes: u64,
    /// Wasmtime's serialized form.
    pub(super) code: Vec<u8>,
}

impl Compiled {
    /// Bytes of what stands before the code.
    const HEAD_BYTES: usize = 9;

    pub(super) fn write(&self) -> Vec<u8> {
        let images = [u8::from(self.images)];
        let instance_bytes = self.instance_bytes.to_le_bytes();
        [&images, instance_bytes.as_slice(), &self.code].concat()
    }

    /// `None` of what is not whole.
    pub(super) fn read(mut bytes: Vec<u8>) -> Option<Compiled> {
        let (images, rest) = bytes.split_first()?;
        let compiled = Compiled {
            images: *images != 0,
            instance_bytes: u64::from_le_bytes(*rest.first_chunk()?),
            code: Vec::new(),
        };
        bytes.drain(..Compiled::HEAD_BYTES);
        Some(Compiled {
            code: bytes,
            ..compiled
        })
    }

    #[expect(unsafe_code, reason = "compiled code is trusted by its origin alone")]
    pub(super) fn load(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // SAFETY: the bytes come from a child that runs Wasmtime's compiler, or from the cache that
        // only this user can write to. That the compiler makes code that stays in its sandbox is
        // Wasmtime's promise, here as in one process.
        unsafe { Component::deserialize(engine, &self.code) }
    }
}
