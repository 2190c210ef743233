//! What this process may take of the machine, and how long it takes for its own affairs.

use std::time::Duration;

use crate::limits::guest;

/// The bounds of the whole process, which its services share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Services at the start, each of which has a part of what follows to itself.
    pub services: usize,
    /// Guests that may be tried at the same time, beside all connections.
    pub trials: usize,
    /// Connections of all services together.
    pub connections: usize,
    /// Bytes of the linear memories of all instances together.
    pub total_guest_memory_bytes: u64,
    /// Bytes of the linear memories of one instance, of whichever service may have most: for each
    /// there are addresses.
    pub guest_memory_bytes: usize,
    /// Bytes of addresses of all processes that compile guests.
    pub total_compile_memory_bytes: u64,
    /// Memory mappings of all connections together, which the kernel bounds.
    pub mappings: u64,
    /// Whether each connection has a thread of its own, which takes mappings too.
    pub thread_each: bool,
    /// How long a drain waits for the messages in progress.
    pub drain_time: Duration,
}

impl Process {
    /// All of them as they are when nothing else is asked for, on a machine that has room for
    /// `connections` and may give guests `total_guest_memory_bytes`.
    pub const fn new(connections: usize, total_guest_memory_bytes: u64) -> Process {
        Process {
            services: 1,
            trials: 1,
            connections,
            total_guest_memory_bytes,
            guest_memory_bytes: guest::GUEST_MEMORY_BYTES,
            total_compile_memory_bytes: guest::COMPILE_MEMORY_BYTES,
            mappings: u64::MAX,
            thread_each: true,
            drain_time: DRAIN_TIME,
        }
    }
}

/// The part of all instances' memory that new ones leave to those that are open: an eighth.
pub const GUEST_RESERVE_SHARE: u64 = 8;

/// The part of all instances' memory that services have to themselves, each as much, where there are
/// several: a quarter. With 4 GiB for three services, each has room for 300 greeters or 26 Python
/// guests whatever the others take. Those that are added later have as much, as long as half of the
/// memory is left. Protects each service from the others.
pub const SERVICES_MEMORY_SHARE: u64 = 4;

/// Connections, and memory mappings for them, that no other service takes from one; of few connections,
/// all services have half to themselves. Enough for an operator and a few clients, little beside the
/// thousands that a process has room for. Protects each service from the others.
pub const SERVICE_CONNECTIONS: usize = 16;

/// Services for which a process whose settings come from a file keeps open files and room for trials,
/// so that they can be added while it serves. More take what connections leave.
pub const ADDED_SERVICES: usize = 16;

/// Addresses that the memories of all instances may reserve: a quarter of what a process has, since
/// there may be two pools of them.
pub const ADDRESS_SPACE_BYTES: u64 = 1 << 45;

/// How long a drain waits for the messages in progress.
pub const DRAIN_TIME: Duration = Duration::from_secs(10);

/// Bytes of a file of settings: thousands of services. Protects the server's memory from a file that
/// is something else.
pub const CONFIG_BYTES: u64 = 1024 * 1024;

/// Bytes of one recorded conversation; the rest of it is not recorded.
pub const RECORDING_BYTES: u64 = 1024 * 1024;

/// Bytes of all conversations of a service that one process records, each counted as 4 KiB at least.
/// Protects the disk.
pub const ALL_RECORDINGS_BYTES: u64 = 1024 * 1024 * 1024;

/// Bytes of recorded conversations of a service that wait for the disk: a second of a busy server. What
/// does not fit ends its recording. Protects clients, and the server's memory, from a slow disk.
pub const RECORDING_QUEUE_BYTES: u64 = 32 * 1024 * 1024;

/// How long the end of the server waits for the disk to take the rest of the recordings.
pub const RECORDING_END_TIME: Duration = Duration::from_secs(5);

/// How long each process of a takeover waits for the next word of the other, a byte, before it takes
/// it for stopped.
pub const TAKEOVER_TIME: Duration = Duration::from_secs(5);

/// Notices that the service manager has had no room for yet; of more, the oldest are dropped, since
/// what counts is the last.
pub const UNTOLD_NOTICES: usize = 16;

/// Stack of a connection's thread: the guest's, and as much again for the shim and Wasmtime's host
/// functions. Only the pages that are touched cost memory.
pub const THREAD_STACK_BYTES: usize = 2 * guest::GUEST_STACK_BYTES;

/// How long a thread waits for its next connection before it ends. Covers the gaps of a busy
/// server, and gives the memory of a burst back.
pub const THREAD_IDLE_TIME: Duration = Duration::from_secs(10);

/// How long what may recur all the time (refused connections, a lack of descriptors) is only
/// counted, before it is logged again.
pub const LOG_PAUSE: Duration = Duration::from_secs(1);

/// How long a guest may compute before the other connections of its thread get another one. Protects
/// them from it. (Half of it costs a hundredth of a core more.)
pub const SEAT_TICK: Duration = Duration::from_millis(2);

/// Clients that one thread lets in before it looks after those that it has: faster than clients who
/// all come at once can fill the kernel's queue, and no more than a tick of work.
pub const ACCEPTS_PER_ROUND: usize = 256;

/// Bytes of messages that wait in all mailboxes, each counted once however many it is in; beyond that
/// nothing is published. Protects the machine's memory from those that do not read.
pub const QUEUED_MESSAGE_BYTES: u64 = 64 * 1024 * 1024;

/// Portions of messages that one connection hears before others have their turn.
pub const PORTIONS_PER_TURN: u32 = 2;

/// Connections that a thread looks after before it asks again which there are.
pub const EVENTS_PER_ROUND: usize = 256;

/// Connections whose time is over, that have to end, or that come from elsewhere, which a thread looks
/// after before those that say something have their turns again: thousands may come at once.
pub const OTHERS_PER_ROUND: usize = 32;

/// Writes to one connection before others have their turn, each of 64 KiB at most as long as no reply
/// is larger.
pub const SENDS_PER_TURN: u32 = 2;

/// How long accepting rests when the process or the machine is out of descriptors or memory.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bytes of a file of certificates or of a key: a thousand certificates. Protects the server's memory from
/// a file that is something else.
pub const CERTIFICATE_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// How long files of certificates have to stay as they are before they are read: a certificate and its key
/// are written one after the other.
pub const CERTIFICATE_SETTLE_TIME: Duration = Duration::from_secs(1);

/// How often files of certificates are looked at where nothing announces a change, as on some network file
/// systems.
pub const CERTIFICATE_LOOK_TIME: Duration = Duration::from_secs(60);

/// How long before a certificate expires the log says so, once a day.
pub const CERTIFICATE_NOTICE_TIME: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Handshakes of TLS and of WebSocket at once; the others wait for their turn. Each takes up to 64 KiB for
/// what the client has sent of it. Protects the server's memory from clients that begin one and stop.
pub const HANDSHAKES: usize = 1024;

/// How long a handshake may take, of TLS and of WebSocket together, from when it is the client's turn: two
/// ways there and back, and some milliseconds, of a line that works. Protects the connection cap from clients
/// that begin one and stop.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// How long a client may keep a handshake waiting while others wait for their turn. Protects those from
/// clients that begin one and stop.
pub const CROWDED_HANDSHAKE_TIME: Duration = Duration::from_secs(1);

/// Bytes of the HTTP request that a WebSocket begins with: as much as HTTP servers usually take, for
/// browsers send cookies along. Protects the server's memory from clients without an end.
pub const UPGRADE_BYTES: usize = 8 * 1024;

/// Header lines of that request: browsers send some twenty. Protects the time of other handshakes.
pub const UPGRADE_HEADERS: usize = 64;

/// Connections to one Redis, of all who are granted a store there: each serves one operation at a time,
/// and a Redis, which has one thread, is busy with fewer. Protects it from the server.
pub const REDIS_CONNECTIONS: usize = 16;

/// How long a Redis that is in doubt may take to answer before it is down.
pub const REDIS_PROBE_TIME: Duration = Duration::from_secs(1);

/// How long after that it is tried again, at most; twice as long each time.
pub const REDIS_RETRY_TIME: Duration = Duration::from_millis(100);

/// The longest of these times. Protects a Redis that has just begun from all whom it had left.
pub const REDIS_RETRY_TIME_MAX: Duration = Duration::from_secs(5);

/// Bytes of an answer of a Redis: a page of the longest keys, or a batch ([`guest::STORE_BATCH_BYTES`]),
/// with what is around them. Protects the server's memory.
pub const REDIS_ANSWER_BYTES: usize = 2 * 1024 * 1024;

/// How long a Redis that delivers messages may say nothing before it is asked whether it is there.
pub const REDIS_PING_TIME: Duration = Duration::from_secs(1);

/// How long a Redis that delivers messages may owe an answer, and say nothing, before it is lost: then all
/// who have subscribed are told that they have missed some, so a pause of the machine is no reason yet.
pub const REDIS_SILENCE_TIME: Duration = Duration::from_secs(5);

/// Bytes of messages that wait until a Redis takes them; of more, whoever publishes is told `unavailable`.
/// Protects the server's memory from a slow one.
pub const REDIS_PUBLISH_BYTES: usize = 8 * 1024 * 1024;

/// Subscriptions that a Redis has not confirmed yet; of more, whoever subscribes is told `unavailable`.
/// Protects the server's memory from a slow one.
pub const REDIS_SUBSCRIBING: usize = 16 * 1024;

/// What is read from a Redis before messages are sent to it again, and the other way round.
pub const REDIS_ANSWERS_PER_TURN: usize = 256;
