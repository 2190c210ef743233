//! Against Debian's Redis.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::limits::process::REDIS_PUBLISH_BYTES;
use crate::redis::address::{RedisAddress, RedisUrl, Target};
use crate::redis::broker::{Broker, Inbox};
use crate::redis::connection::Failure;
use crate::redis::redis_server::RedisServer;

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Message(Vec<u8>, Vec<u8>),
    Lost,
}

struct Events(Mutex<Sender<Event>>);

impl Inbox for Events {
    fn deliver(&self, channel: &[u8], body: Vec<u8>) {
        self.send(Event::Message(channel.to_vec(), body));
    }

    fn lost(&self) {
        self.send(Event::Lost);
    }
}

impl Events {
    fn send(&self, event: Event) {
        // A test may have ended.
        let _ = self.0.lock().expect("no panic").send(event);
    }
}

/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

fn start(redis: &RedisServer, inbox: Arc<dyn Inbox>) -> Result<Broker, String> {
    let address = RedisAddress {
        url: RedisUrl::Unix(redis.socket()),
        database: 0,
        credentials: None,
        ca: None,
    };
    let target = Target::new(&address).expect("no files");
    Broker::start(address.url.to_string(), target, inbox)
}

/// A broker, and what it delivers.
fn broker(redis: &RedisServer) -> (Broker, Receiver<Event>) {
    let (sender, events) = channel();
    let broker = start(redis, Arc::new(Events(Mutex::new(sender))));
    (broker.expect("it runs"), events)
}

fn next(events: &Receiver<Event>) -> Event {
    events.recv_timeout(PATIENCE).expect("something comes")
}

fn message(channel: &[u8], body: &[u8]) -> Event {
    Event::Message(channel.to_vec(), body.to_vec())
}

fn tell(redis: &RedisServer, command: &str) -> String {
    redis.command(&command.split(' ').collect::<Vec<_>>())
}

/// Does it until it works.
fn eventually<T>(mut act: impl FnMut() -> Result<T, Failure>) -> T {
    let end = soon();
    loop {
        match act() {
            Ok(done) => return done,
            Err(failure) => assert!(Instant::now() < end, "{failure}"),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Does it until there is no connection.
fn until_lost(mut act: impl FnMut() -> Result<(), Failure>) {
    let end = soon();
    while !matches!(act(), Err(Failure::Unavailable(_))) {
        assert!(Instant::now() < end);
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn messages_come_once_and_in_order_to_all_and_to_the_publisher() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let (one, ones) = broker(&redis);
    let (two, twos) = broker(&redis);
    for broker in [&one, &two] {
        broker.subscribe(b"room", soon()).expect("it is in force");
    }
    const EACH: usize = 5000;
    thread::scope(|scope| {
        for (name, broker) in [("one", &one), ("two", &two)] {
            scope.spawn(move || {
                for number in 0..EACH {
                    let body = format!("{name} {number}");
                    broker.publish(b"room", body.as_bytes()).expect("room");
                }
            });
        }
    });
    let heard = [&ones, &twos].map(|events| {
        let heard: Vec<_> = (0..2 * EACH).map(|_| next(events)).collect();
        for name in ["one", "two"] {
            let of_one = heard.iter().filter(|event| match event {
                Event::Message(_, body) => body.starts_with(name.as_bytes()),
                Event::Lost => panic!("nothing is lost"),
            });
            for (number, event) in of_one.enumerate() {
                let body = format!("{name} {number}");
                assert_eq!(event, &message(b"room", body.as_bytes()));
            }
        }
        heard
    });
    assert_eq!(heard[0], heard[1]);
    assert!(ones.try_recv().is_err() && twos.try_recv().is_err());
}

#[test]
fn channels_and_bodies_are_any_bytes_and_only_what_is_subscribed_comes() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let (broker, events) = broker(&redis);
    let every: Vec<u8> = (0..=255).collect();
    let large = vec![b'\n'; 64 * 1024];
    for channel in [&every[..], b"*", b"a?[b]\\", b"", b"\r\n$3\r\n"] {
        broker.subscribe(channel, soon()).expect("it is in force");
        for body in [&every[..], b"", &large] {
            broker.publish(b"other", body).expect("room");
            broker.publish(channel, body).expect("room");
            assert_eq!(next(&events), message(channel, body));
        }
        broker.unsubscribe(channel);
    }
}

#[test]
fn a_thousand_channels_are_left_one_by_one() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let (broker, events) = broker(&redis);
    let channels: Vec<_> = (0..1000).map(|number| number.to_string()).collect();
    thread::scope(|scope| {
        for part in channels.chunks(250) {
            let broker = &broker;
            scope.spawn(move || {
                for channel in part {
                    // Twice: the second does not ask again.
                    for _ in 0..2 {
                        let held = broker.subscribe(channel.as_bytes(), soon());
                        held.expect("it is in force");
                    }
                }
            });
        }
    });
    let publish_all = || {
        for channel in &channels {
            broker.publish(channel.as_bytes(), b"x").expect("room");
        }
    };
    for _ in 0..2 {
        publish_all();
        for channel in &channels {
            assert_eq!(next(&events), message(channel.as_bytes(), b"x"));
            broker.unsubscribe(channel.as_bytes());
        }
    }
    broker.subscribe(b"last", soon()).expect("it is in force");
    publish_all();
    broker.publish(b"last", b"y").expect("room");
    assert_eq!(next(&events), message(b"last", b"y"));
    assert_eq!(tell(&redis, "PUBSUB CHANNELS"), "*1");
}

#[test]
fn whoever_has_subscribed_misses_nothing_while_others_come_and_go() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let heard = Arc::new(Heard::default());
    let broker = start(&redis, Arc::clone(&heard) as Arc<dyn Inbox>).expect("it runs");
    thread::scope(|scope| {
        for number in 0..8 {
            let (broker, heard) = (&broker, &heard);
            scope.spawn(move || {
                let channel = if number % 2 == 0 { b"even" } else { b"odd." };
                for round in 0..300 {
                    broker.subscribe(channel, soon()).expect("it is in force");
                    let body = format!("{number} {round}").into_bytes();
                    broker.publish(channel, &body).expect("room");
                    heard.wait_for(&body);
                    broker.unsubscribe(channel);
                }
            });
        }
    });
}

#[derive(Default)]
struct Heard {
    bodies: Mutex<Vec<Vec<u8>>>,
    more: Condvar,
}

impl Inbox for Heard {
    fn deliver(&self, _: &[u8], body: Vec<u8>) {
        self.bodies.lock().expect("no panic").push(body);
        self.more.notify_all();
    }

    fn lost(&self) {
        panic!("nothing is lost");
    }
}

impl Heard {
    fn wait_for(&self, wanted: &[u8]) {
        let bodies = self.bodies.lock().expect("no panic");
        let waited = self.more.wait_timeout_while(bodies, PATIENCE, |bodies| {
            !bodies.iter().any(|body| body == wanted)
        });
        let is_late = waited.expect("no panic").1.timed_out();
        assert!(!is_late, "a message is missed");
    }
}

#[test]
fn a_redis_that_is_killed_is_said_at_once_and_all_works_again_when_it_is_back() {
    let Some(mut redis) = RedisServer::start(&[]) else {
        return;
    };
    let (broker, events) = broker(&redis);
    for channel in [b"a", b"b", b"c"] {
        broker.subscribe(channel, soon()).expect("it is in force");
    }
    redis.kill();
    until_lost(|| broker.publish(b"a", b"into nothing"));
    assert!(broker.subscribe(b"d", soon()).is_err());
    // It is remembered.
    broker.unsubscribe(b"b");
    redis.start_again();
    assert_eq!(next(&events), Event::Lost);
    for channel in [b"b", b"a", b"c"] {
        eventually(|| broker.publish(channel, b"again"));
    }
    assert_eq!(next(&events), message(b"a", b"again"));
    assert_eq!(next(&events), message(b"c", b"again"));
    broker.subscribe(b"d", soon()).expect("it is in force");
    assert_eq!(tell(&redis, "PUBSUB NUMSUB a b c d"), "*8");
    assert_eq!(tell(&redis, "CLIENT KILL TYPE pubsub"), ":1");
    assert_eq!(next(&events), Event::Lost);
    assert_eq!(tell(&redis, "CLIENT KILL TYPE normal"), ":1");
    assert_eq!(next(&events), Event::Lost);
    eventually(|| broker.publish(b"d", b"still"));
    assert_eq!(next(&events), message(b"d", b"still"));
}

#[test]
fn a_redis_that_is_stopped_holds_nobody_up_and_what_waits_for_it_is_bounded() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let (broker, events) = broker(&redis);
    broker.subscribe(b"a", soon()).expect("it is in force");
    redis.signal("STOP");
    let body = [0; 64 * 1024];
    let mut taken = 0;
    while broker.publish(b"a", &body).is_ok() {
        taken += 1;
    }
    let full = broker.publish(b"a", &body);
    assert!(matches!(full, Err(Failure::Busy)), "{full:?}");
    assert!(taken * body.len() > REDIS_PUBLISH_BYTES / 2);
    assert!(taken * body.len() < REDIS_PUBLISH_BYTES * 2);
    let late = broker.subscribe(b"b", Instant::now() + Duration::from_millis(50));
    assert!(matches!(late, Err(Failure::Timeout)), "{late:?}");
    // A short stop loses nothing.
    redis.signal("CONT");
    for _ in 0..taken {
        assert_eq!(next(&events), message(b"a", &body));
    }
    broker.subscribe(b"b", soon()).expect("it is in force");

    redis.signal("STOP");
    until_lost(|| broker.publish(b"a", b"nobody knows"));
    redis.signal("CONT");
    while next(&events) != Event::Lost {}
    for channel in [b"a", b"b"] {
        eventually(|| broker.publish(channel, b"again"));
        while next(&events) != message(channel, b"again") {}
    }
}

#[test]
fn what_a_redis_refuses_is_refused_and_costs_no_other_channel() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let limited = "ACL SETUSER default resetchannels &good*";
    assert_eq!(tell(&redis, limited), "+OK");
    let (broker, events) = broker(&redis);
    broker.subscribe(b"good", soon()).expect("it is in force");
    for _ in 0..2 {
        let refused = broker.subscribe(b"bad", soon());
        let Err(Failure::Refused(words)) = refused else {
            panic!("{refused:?}");
        };
        assert!(words.starts_with("NOPERM"), "{words}");
    }
    broker.publish(b"bad", b"x").expect("room");
    broker.publish(b"good", b"x").expect("room");
    assert_eq!(next(&events), message(b"good", b"x"));
    assert_eq!(tell(&redis, "ACL SETUSER default allchannels"), "+OK");
    broker.subscribe(b"bad", soon()).expect("it is in force");
    // A subscription that was in force and is refused now: not all works.
    assert_eq!(tell(&redis, limited), "+OK");
    until_lost(|| broker.publish(b"good", b"x"));
    assert_eq!(tell(&redis, "ACL SETUSER default allchannels"), "+OK");
    while next(&events) != Event::Lost {}
    eventually(|| broker.publish(b"bad", b"y"));
    assert_eq!(next(&events), message(b"bad", b"y"));
}

#[test]
fn whoever_reads_too_slowly_is_dropped_by_the_redis_and_told_what_it_means() {
    let options = ["--client-output-buffer-limit", "pubsub 256kb 0 0"];
    let Some(redis) = RedisServer::start(&options) else {
        return;
    };
    let slow = Arc::new(Slow::default());
    let broker = start(&redis, Arc::clone(&slow) as Arc<dyn Inbox>).expect("it runs");
    broker.subscribe(b"flood", soon()).expect("it is in force");
    let (other, _) = self::broker(&redis);
    let held = slow.gate.lock().expect("no panic");
    let body = [0; 64 * 1024];
    eventually(|| {
        other.publish(b"flood", &body)?;
        let count = "return #redis.call('PUBSUB', 'CHANNELS')";
        match redis.command(&["EVAL", count, "0"]).as_str() {
            ":0" => Ok(()),
            _ => Err(Failure::Busy),
        }
    });
    drop(held);
    slow.wait_lost();
    eventually(|| broker.publish(b"flood", b"end"));
}

/// Takes nothing while its gate is held.
#[derive(Default)]
struct Slow {
    gate: Mutex<()>,
    is_lost: Mutex<bool>,
    lost: Condvar,
}

impl Inbox for Slow {
    fn deliver(&self, _: &[u8], _: Vec<u8>) {
        drop(self.gate.lock().expect("no panic"));
    }

    fn lost(&self) {
        *self.is_lost.lock().expect("no panic") = true;
        self.lost.notify_all();
    }
}

impl Slow {
    fn wait_lost(&self) {
        let is_lost = self.is_lost.lock().expect("no panic");
        let waited = self
            .lost
            .wait_timeout_while(is_lost, PATIENCE, |is_lost| !*is_lost);
        assert!(!waited.expect("no panic").1.timed_out());
    }
}

#[test]
fn a_redis_that_drops_idle_clients_drops_no_broker() {
    let Some(redis) = RedisServer::start(&["--timeout", "2"]) else {
        return;
    };
    let (broker, events) = broker(&redis);
    broker.subscribe(b"a", soon()).expect("it is in force");
    let nothing = events.recv_timeout(Duration::from_secs(4));
    assert_eq!(nothing, Err(RecvTimeoutError::Timeout));
    broker.publish(b"a", b"x").expect("room");
    assert_eq!(next(&events), message(b"a", b"x"));
}

#[test]
fn what_was_published_before_the_end_is_sent() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let (one, ones) = broker(&redis);
    one.subscribe(b"a", soon()).expect("it is in force");
    let (two, _) = broker(&redis);
    for _ in 0..1000 {
        two.publish(b"a", &[7; 1000]).expect("room");
    }
    drop(two);
    for _ in 0..1000 {
        assert_eq!(next(&ones), message(b"a", &[7; 1000]));
    }
}

#[test]
fn a_broker_ends_while_its_redis_is_stopped_or_gone() {
    let Some(mut redis) = RedisServer::start(&[]) else {
        return;
    };
    let (stopped, _) = broker(&redis);
    let (gone, _) = broker(&redis);
    redis.signal("STOP");
    stopped.publish(b"a", b"x").expect("room");
    drop(stopped);
    redis.kill();
    until_lost(|| gone.publish(b"a", b"x"));
    drop(gone);
    let inbox = Arc::new(Slow::default());
    let refused = start(&redis, inbox).err().expect("it is gone");
    assert_eq!(refused.lines().count(), 1, "{refused}");
}
