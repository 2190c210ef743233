//! What guests may take: of time, of memory, of the log, and of whoever compiles them.

use std::time::Duration;

/// The bounds of one service's guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    /// Bytes of one reply, and of the greeting.
    pub reply_bytes: usize,
    /// How long one call into the guest may take, asleep or awake.
    pub call_time: Duration,
    /// Bytes of the linear memories of one guest instance.
    pub memory_bytes: usize,
    /// How long one operation of a store may take.
    pub store_time: Duration,
    /// How long compiling a guest may take.
    pub compile_time: Duration,
    /// Bytes of addresses of the process that compiles a guest, which bound its memory.
    pub compile_memory_bytes: u64,
}

impl Guest {
    /// All of them as they are when nothing else is asked for.
    pub const DEFAULT: Guest = Guest {
        reply_bytes: REPLY_BYTES,
        call_time: CALL_TIME,
        memory_bytes: GUEST_MEMORY_BYTES,
        store_time: STORE_TIME,
        compile_time: COMPILE_TIME,
        compile_memory_bytes: COMPILE_MEMORY_BYTES,
    };
}

/// Room for a page of text as one reply. Protects the server's memory from the guest.
pub const REPLY_BYTES: usize = 1024 * 1024;

/// Ample for a guest that works or waits on purpose; a person who waits gives up later. Protects the server's threads from the guest.
pub const CALL_TIME: Duration = Duration::from_secs(5);

/// Room for guests of languages with a garbage collector; a Rust guest starts with about 1 MiB.
/// Protects the machine's memory from the guest.
pub const GUEST_MEMORY_BYTES: usize = 64 * 1024 * 1024;

/// Bytes of each linear memory that stay with its slot when a connection ends. The greeter writes to
/// about as much; each slot that was ever used may hold it. (A Python guest keeps 139 KiB in all,
/// measured.)
pub const GUEST_RESIDENT_BYTES: usize = 64 * 1024;

/// Segments of data from which a guest's memories begin as copy-on-write images instead of copies.
/// Connections a second with 64 KiB, 128 KiB and 1 MiB: copied 7 600, 5 200 and 1 600; as an image
/// 6 400, 8 500 and 8 300 (measured). A Python guest has 10 MiB, and takes 0.7 MiB instead of 11.8.
pub const GUEST_IMAGE_BYTES: u64 = 128 * 1024;

/// Addresses between the memories of two instances: Wasmtime's 32 MiB and five pages. A processor
/// finds pages through a table (its TLB) with few places for pages whose numbers end in the same bits;
/// at a round distance, the hot pages of all connections would share them. Five pages are more than
/// an instance of the greeter touches.
pub const GUEST_GUARD_BYTES: u64 = (32 << 20) + 5 * 4096;

/// Linear memories of one guest instance. A Python or JavaScript guest has 3 (measured).
pub const GUEST_MEMORIES: u32 = 4;

/// Tables of one guest instance. A Rust guest has 2.
pub const GUEST_TABLES: u32 = 8;

/// Elements of one table: Wasmtime's own default, large enough for guests of 10 000 functions.
pub const GUEST_TABLE_ELEMENTS: usize = 20_000;

/// Core instances inside one guest instance: a Python guest has 38 (measured), a Rust guest 3.
pub const GUEST_CORE_INSTANCES: u32 = 64;

/// Host resources (pollables, streams, buckets, swaps) that a guest holds at once. A guest has its
/// standard streams and a timer or two.
pub const GUEST_RESOURCES: usize = 256;

/// Handles that the component holds at once, of its own resources and of the host's: 24 bytes each.
/// A guest that is made of several components has some for each that it passes between them.
pub const GUEST_HANDLES: usize = 1024;

/// Bytes that Wasmtime keeps for the core instances of one guest instance, most of them for globals
/// and for functions whose address is taken: Wasmtime's default. Counted in `--guest-memory`.
pub const GUEST_INSTANCE_BYTES: usize = 1024 * 1024;

/// Bytes that a guest may hand over in one call of the host however small `--max-reply` is, so that
/// it can still print, and store the largest value.
pub const LEAST_TRANSFER_BYTES: usize = 128 * 1024;

/// The same of a guest that has stores: twice the largest batch, so that one that is larger is told
/// `too large`.
pub const LEAST_STORE_TRANSFER_BYTES: usize = 2 * STORE_BATCH_BYTES;

/// Random bytes that a guest gets in one call.
pub const RANDOM_BYTES: u64 = 64 * 1024;

/// How long one operation of a store may take, if as much is left of the call. A disk takes
/// milliseconds; a guest that is told of a timeout has time left to say so. Protects clients from
/// stores.
pub const STORE_TIME: Duration = Duration::from_secs(1);

/// Bytes of a key in a store: room for a path or a URL.
pub const STORE_KEY_BYTES: usize = 512;

/// Bytes of a value in a store, as of a line. Protects the store, and the server's memory, from the
/// guest.
pub const STORE_VALUE_BYTES: usize = 64 * 1024;

/// Keys of one page of a list, with the longest keys half a MiB.
pub const STORE_PAGE_KEYS: usize = 1000;

/// Keys of one batch.
pub const STORE_BATCH: usize = 256;

/// Bytes of the values of one batch. Protects the server's memory from the guest.
pub const STORE_BATCH_BYTES: usize = 1024 * 1024;

/// Operations of stores in one call; after them a guest is told `busy`. Protects other users of a
/// store from one line of one client.
pub const STORE_OPERATIONS: u32 = 256;

/// Writes that wait for one store; of more, whoever asks is told `busy`. Protects the server's memory
/// from a slow disk.
pub const STORE_WAITING: usize = 4096;

/// Bytes of those writes. The same.
pub const STORE_WAITING_BYTES: u64 = 64 * 1024 * 1024;

/// Bytes of writes that reach the disk in one commit, but for the last of them: a disk takes no second for
/// so much.
pub const STORE_COMMIT_BYTES: u64 = 4 * 1024 * 1024;

/// How long what a `relaxed` store has acknowledged may wait for the disk: as long as an operator may
/// expect to lose.
pub const STORE_SYNC_TIME: Duration = Duration::from_secs(1);

/// How long the end of a store waits for the disk to take what is left.
pub const STORE_END_TIME: Duration = Duration::from_secs(5);

/// Connections that read the file of a store, each for one thread at a time: a read takes microseconds.
/// Protects the server's memory and descriptors.
pub const STORE_READERS: usize = 8;

/// Bytes of the file of a store that are kept in memory, beside what the kernel keeps: in equal parts for
/// whoever writes and for each who reads.
pub const STORE_CACHE_BYTES: usize = 16 * 1024 * 1024;

/// Bytes of a store: its keys, its values, and something for each entry. Room for a million short
/// lines. Protects the disk, or the machine's memory, from guests.
pub const STORE_BYTES: u64 = 256 * 1024 * 1024;

/// What an entry of a store counts beside its key and its value: about what it takes. Protects the disk
/// from many small ones.
pub const STORE_ENTRY_BYTES: u64 = 64;

/// Bytes of the store of a trial, which is in memory and ends with it.
pub const STORE_SCRATCH_BYTES: u64 = 16 * 1024 * 1024;

/// Bytes of a topic's name: room for a path. Protects the server's memory from the guest.
pub const TOPIC_BYTES: usize = 255;

/// Bytes of the body of a message, as of a line. Protects the server's memory from the guest.
pub const BODY_BYTES: usize = 64 * 1024;

/// Topics that one connection hears: a person is in a few rooms, a program has some kinds of news.
/// Protects the server's memory from the guest.
pub const SUBSCRIPTIONS: usize = 64;

/// How long a subscription may take, if topics are kept elsewhere and as much is left of the call; as an
/// operation of a store. Protects clients from a Redis that is slow.
pub const SUBSCRIBE_TIME: Duration = Duration::from_secs(1);

/// Messages that one call publishes. Protects subscribers from one line of one client.
pub const CALL_PUBLISHES: u32 = 64;

/// Messages that one connection publishes at once, before it has to slow down.
pub const PUBLISH_BURST: f64 = 200.0;

/// Messages a second that it publishes after that: more than anybody writes. Protects the processors,
/// since each costs as much as there are subscribers.
pub const PUBLISHES_PER_SECOND: f64 = 100.0;

/// Messages that wait for one connection; of more, the oldest is lost. Protects the server's memory
/// from whoever does not read.
pub const MAILBOX_MESSAGES: usize = 256;

/// Bytes of those messages. The same.
pub const MAILBOX_BYTES: usize = 256 * 1024;

/// Messages that a guest gets in one call, and the lines of which leave in one write.
pub const HEARD_MESSAGES: usize = 64;

/// Bytes of those messages, if there are several: what a guest makes of them has to pass
/// [`LEAST_TRANSFER_BYTES`], however small `--max-reply` is.
pub const HEARD_BYTES: usize = 64 * 1024;

/// Bytes of a guest's log line; a longer one is cut.
pub const LOG_LINE_BYTES: usize = 1024;

/// Lines of one output stream of one guest that are logged at once before it has to slow down.
pub const LOG_BURST_LINES: f64 = 100.0;

/// Lines a second that are logged after that; the rest is dropped and counted. Protects the log.
pub const LOG_LINES_PER_SECOND: f64 = 10.0;

/// Lines that the guests of one version log at once, whatever connections they belong to, before
/// they have to slow down: whoever reconnects is a new guest each time.
pub const VERSION_LOG_BURST_LINES: f64 = 1000.0;

/// Lines a second that they log after that.
pub const VERSION_LOG_LINES_PER_SECOND: f64 = 100.0;

/// Lines that the guests of all versions of a service log at once.
pub const ALL_LOG_BURST_LINES: f64 = 2000.0;

/// Lines a second that they log after that: with the longest lines, 200 KiB a second.
pub const ALL_LOG_LINES_PER_SECOND: f64 = 200.0;

/// Bytes of the last lines on its standard error that are logged with a guest's failure: the end of
/// a stack of calls.
pub const LAST_WORDS_BYTES: usize = 1024;

/// Bytes of a component file. Python guests have about 40 MiB.
pub const COMPONENT_BYTES: u64 = 128 * 1024 * 1024;

/// How long compiling a guest may take. A Python guest of 18 MiB takes 13 s on two cores, and far
/// longer where others use them, since it has the lowest priority. Protects the processors from
/// files, and the start from never ending.
pub const COMPILE_TIME: Duration = Duration::from_secs(5 * 60);

/// Bytes of addresses for the process that compiles a guest. A Python guest of 18 MiB takes 600 MiB.
/// Protects the machine's memory from files.
pub const COMPILE_MEMORY_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// Bytes of a compiled guest: twice the largest component, as a Python guest has. Protects the
/// server's memory from files.
pub const COMPILED_BYTES: usize = 256 * 1024 * 1024;

/// Bytes of addresses for the process that tries to load what was compiled, beside four times its
/// size: itself, and 64 MiB for what is in it. A few hundred bytes can ask for gigabytes there too.
/// Protects the server's memory from files.
pub const LOAD_MEMORY_BYTES: u64 = 192 * 1024 * 1024;

/// Bytes of a compiled guest that the cache keeps; a larger one is compiled at each start. Protects
/// the disk.
pub const CACHED_BYTES: usize = 64 * 1024 * 1024;

/// Threads that compile one guest. More would take more memory, and the processors from guests that
/// serve.
pub const COMPILE_THREADS: u32 = 4;

/// Stack of the thread that compiles a guest: what is nested too deeply for it is refused. The thread
/// that tries the result has twice as much.
pub const COMPILE_STACK_BYTES: usize = 4 * 1024 * 1024;

/// How long a guest's file has to stay as it is before it is read: longer than the pauses of
/// whoever writes it, shorter than anybody waits for.
pub const GUEST_SETTLE_TIME: Duration = Duration::from_millis(50);

/// How long events in the folder of a guest's file are left alone after the file was looked at.
/// Protects a processor from whoever makes noise there.
pub const GUEST_EVENT_TIME: Duration = Duration::from_millis(20);

/// How often a guest's file is looked at where nothing announces a change, as on some network file
/// systems.
pub const GUEST_LOOK_TIME: Duration = Duration::from_secs(2);

/// How long it takes until a guest is tried again that could not be read, or for which there was no
/// memory. Everything else stays wrong until the file changes.
pub const GUEST_RETRY_TIME: Duration = Duration::from_secs(5);

/// Failed sessions of a canary that are enough to roll it back before its time, if they are twice as
/// frequent as the current version's. Fewer can be chance.
pub const CANARY_FAILURES: u64 = 10;

/// Bytes of a conversation that `airlock test` plays, and of what the guest says to it.
pub const SCRIPT_BYTES: u64 = 64 * 1024 * 1024;

/// Stack for wasm code: Wasmtime's default. A guest that recurses deeper traps.
pub const GUEST_STACK_BYTES: usize = 512 * 1024;

/// How precise the time limits of calls are: the period of the tick that checks them.
pub const TICK: Duration = Duration::from_millis(10);
