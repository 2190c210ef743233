//! The examples whose connections hear each other: the chat, with its page, and the ticker.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use tungstenite::Message;

use crate::browser::{Browser, Host};
use crate::support::{Client, Program, Server, guest, installed, root};
use crate::tls_client::connect;

/// How many lines of a room are kept.
const HISTORY: usize = 20;

const TOPICS: &str = "--topics=memory:";

/// A client of the chat that has been welcomed.
struct Person {
    client: Client,
    name: String,
}

impl Person {
    fn enter(server: &Server) -> Person {
        Person::of(server.connect())
    }

    /// The history of the lobby comes next, if it has one.
    fn of(mut client: Client) -> Person {
        assert_eq!(client.hear(), "* Welcome! /help says what you can do.\n");
        let line = client.hear();
        let name = line.strip_prefix("* You are ");
        let name = name.and_then(|rest| rest.strip_suffix(" in lobby.\n"));
        let name = name.unwrap_or_else(|| panic!("{line:?}")).to_owned();
        Person { client, name }
    }

    fn says(&mut self, line: &str) {
        self.client.send(format!("{line}\n"));
    }

    /// The next line is this.
    #[track_caller]
    fn hears(&mut self, line: &str) {
        assert_eq!(self.client.hear(), format!("{line}\n"), "{}", self.name);
    }

    fn lines(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.client.hear()).collect()
    }
}

/// Gives each a name, which all who are there hear.
fn call(people: &mut [Person], names: &[&str]) {
    for (number, name) in names.iter().enumerate() {
        let news = format!("* {} is now {name}.", people[number].name);
        people[number].says(&format!("/nick {name}"));
        people[number].name = (*name).to_owned();
        for person in &mut *people {
            person.hears(&news);
        }
    }
}

#[test]
fn people_in_a_room_hear_each_other_and_nobody_else() {
    let server = Server::with_guest("chat", &[TOPICS]);
    let mut people = [(); 3].map(|()| Person::enter(&server));
    call(&mut people, &["Ada", "Grace", "Tracy"]);
    let [mut ada, mut grace, mut tracy] = people;
    tracy.says("/join Tea");
    // That it has left is late: it has.
    let news = tracy.client.hear();
    assert!(["* Tracy has left.\n", "* You are Tracy in tea.\n"].contains(&news.as_str()));
    if news.contains("left") {
        tracy.hears("* You are Tracy in tea.");
    }
    tracy.hears("* Tracy has come.");
    ada.says("hello");
    for person in [&mut ada, &mut grace] {
        person.hears("* Tracy has left.");
        person.hears("<Ada> hello");
    }
    tracy.says("how quiet it is here");
    tracy.hears("<Tracy> how quiet it is here");
    tracy.says("exit");
    assert!(tracy.client.rest().ends_with("* Goodbye!\n"));
    grace.says("still here");
    for person in [&mut ada, &mut grace] {
        person.hears("<Grace> still here");
    }
}

#[test]
fn who_is_here_is_asked_of_whoever_is_here() {
    let server = Server::with_guest("chat", &[TOPICS]);
    let mut people = [(); 3].map(|()| Person::enter(&server));
    call(&mut people, &["Ada", "Grace", "Tracy"]);
    people[0].says("/who");
    let mut here = people[0].lines(3);
    here.sort();
    assert_eq!(
        here,
        [
            "* Ada is here.\n",
            "* Grace is here.\n",
            "* Tracy is here.\n"
        ]
    );
    // Who is gone without a word is not here.
    let [ada, grace, tracy] = people;
    drop((ada, tracy));
    let mut grace = grace;
    server.logged(&["closed", "connection=1 "]);
    server.logged(&["closed", "connection=3 "]);
    grace.says("/who");
    grace.hears("* Grace is here.");
    grace.says("nobody else");
    grace.hears("<Grace> nobody else");
}

/// Of many who speak at once: each hears each line once, and what one has said in its order.
#[test]
fn nobody_misses_a_line_and_the_last_ones_outlive_the_server() {
    const PEOPLE: usize = 6;
    const LINES: usize = 15;
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("chat.db");
    let store = format!(
        "--store=default=file:{}?durability=relaxed",
        store.display()
    );
    let options = [TOPICS, &store];
    let mut server = Server::with_guest("chat", &options);
    let people: Vec<_> = (0..PEOPLE).map(|_| Person::enter(&server)).collect();
    let speaking = people.into_iter().map(|mut person| {
        thread::spawn(move || {
            for number in 0..LINES {
                person.says(&format!("line {number}"));
            }
            person.lines(PEOPLE * LINES)
        })
    });
    let speaking: Vec<_> = speaking.collect();
    let heard: Vec<_> = speaking
        .into_iter()
        .map(|one| one.join().unwrap())
        .collect();
    for lines in &heard {
        assert_eq!(lines, &heard[0], "all hear one order");
    }
    let mut sorted = heard[0].clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), PEOPLE * LINES);
    let speakers: Vec<_> = sorted
        .iter()
        .filter(|line| line.ends_with("> line 0\n"))
        .collect();
    for first in speakers {
        let speaker = first.strip_suffix("line 0\n").unwrap();
        let lines = heard[0]
            .iter()
            .filter_map(|line| line.strip_prefix(speaker));
        let expected = (0..LINES).map(|number| format!("line {number}\n"));
        assert!(lines.eq(expected), "{speaker}");
    }

    let mut late = Person::enter(&server);
    let kept = late.lines(HISTORY);
    for line in &kept {
        assert!(heard[0].contains(line), "{line}");
    }
    server.signal("TERM");
    server.ended();
    let server = Server::with_guest("chat", &options);
    let mut next = Person::enter(&server);
    assert_eq!(next.lines(HISTORY), kept);
    next.says("hello");
    let hello = format!("<{}> hello", next.name);
    next.hears(&hello);
    let mut last = Person::enter(&server);
    let lines = last.lines(HISTORY);
    assert_eq!(lines[..HISTORY - 1], kept[1..]);
    assert_eq!(lines[HISTORY - 1], format!("{hello}\n"));
}

#[test]
fn nobody_can_speak_as_the_chat_or_as_two() {
    let server = Server::with_guest("chat", &[TOPICS]);
    let mut person = Person::enter(&server);
    let name = person.name.clone();
    for (line, shown) in [
        ("* Ada has left.", "* Ada has left."),
        ("<Ada> I owe you 10", "<Ada> I owe you 10"),
        ("a\u{1b}[2Jb\rc\u{7f}", "a [2Jb c "),
        ("\u{202e}dlrow", " dlrow"),
        ("<b>bold</b>", "<b>bold</b>"),
    ] {
        person.says(line);
        person.hears(&format!("<{name}> {shown}"));
    }
    let long = "x".repeat(21);
    for bad in ["", "two words", "Ada>", "*", "@1", "a:b", &long] {
        for command in ["/nick", "/join"] {
            person.says(&format!("{command} {bad}"));
            let answer = person.client.hear();
            assert!(answer.starts_with("* /nick NAME"), "{bad}: {answer}");
        }
    }
    person.says(&"x".repeat(1001));
    person.hears("* That is too long.");
    person.says("");
    person.says("/nick Zo\u{eb}");
    person.hears(&format!("* {name} is now Zo\u{eb}."));
}

#[test]
fn without_topics_the_chat_says_what_to_do() {
    let server = Server::with_guest("chat", &[]);
    let mut client = server.connect();
    client.hear();
    let hint = "* Nobody hears you: start me with --topics memory:";
    assert_eq!(client.hear(), format!("{hint}\n"));
    assert_eq!(client.ask("hello"), hint);
}

/// The chat at a door for lines and at one for WebSocket.
struct TwoDoors {
    server: Server,
    lines: std::net::SocketAddr,
    websocket: std::net::SocketAddr,
}

impl TwoDoors {
    fn start(folder: &Path, lines: &str, websocket: &str) -> TwoDoors {
        let file = folder.join("airlock.toml");
        let guest = guest("chat");
        let text = format!(
            "[service.chat]\nguest = \"{}\"\ntopics = \"memory:\"\n\
             listen = [\"{lines}\", \"ws://{websocket}\"]\n\
             store = {{ default = \"file:{}/chat.db\" }}\n",
            guest.display(),
            folder.display()
        );
        fs::write(&file, text).unwrap();
        // Of a port that was named it says nothing.
        let told = [lines, websocket].map(|door| usize::from(door.starts_with("127.0.0.1:0")));
        let (server, addresses) = Server::of_file(&file, told.iter().sum());
        TwoDoors {
            server,
            lines: addresses[0].1,
            websocket: addresses[addresses.len() - 1].1,
        }
    }
}

#[test]
fn a_message_of_several_lines_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let doors = TwoDoors::start(folder.path(), "127.0.0.1:0", "127.0.0.1:0");
    let mut person = Person::of(Client::connect(doors.lines));
    let url = format!("ws://{}/", doors.websocket);
    let (mut socket, _) = tungstenite::client(url, connect(doors.websocket)).unwrap();
    let welcome = socket.read().unwrap().into_text().unwrap();
    let name = welcome.split(' ').rev().nth(2).unwrap().to_owned();
    socket
        .send(Message::text("hello\n* Ada has left.\u{2028}x"))
        .unwrap();
    let shown = format!("<{name}> hello * Ada has left. x");
    person.hears(&shown);
    assert_eq!(socket.read().unwrap().into_text().unwrap(), shown.as_str());
}

#[test]
fn nc_chats() {
    if !installed("nc") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let doors = TwoDoors::start(folder.path(), "127.0.0.1:0", "127.0.0.1:0");
    let port = doors.lines.port().to_string();
    let mut nc = Program::start(Command::new("nc").args(["127.0.0.1", &port]));
    nc.shows("in lobby.");
    let mut person = Person::of(Client::connect(doors.lines));
    nc.type_in("/nick Nettie\nhello\n");
    person.client.hear();
    person.hears("<Nettie> hello");
    person.says("hello, Nettie");
    nc.shows("> hello, Nettie");
    nc.type_in("exit\n");
    nc.shows("* Goodbye!");
}

/// Behind the page: somebody who types, and says what the page shows.
const SOMEBODY: &str = r#"<script>
const shown = () => [...log.children].map((line) => line.textContent);
function type(text) {
    input.value = text;
    document.querySelector("form").requestSubmit();
}
const until = (text) => new Promise((found) => setInterval(() => shown().some((line) => line.includes(text)) && found(), 20));
(async () => {
    await until("in lobby.");
    type("/join tea");
    type("/nick Browser");
    await until("is now Browser.");
    await until("> <img src=x");
    type(`${document.images.length} images`);
    await until("connected again");
    await until("You are Browser in tea.");
    await until("> back?");
    type("I am back");
})();
</script>
"#;

#[test]
fn a_browser_chats_with_nc_and_comes_back_after_a_restart() {
    if !installed("chromium") {
        return;
    }
    let page = fs::read_to_string(root().join("examples/chat/index.html")).unwrap();
    let host = Host::start(&format!("{page}{SOMEBODY}"));
    let folder = tempfile::tempdir().unwrap();
    let websocket = format!("127.0.0.1:0?origins={}", host.origin());
    let TwoDoors {
        mut server,
        lines,
        websocket,
    } = TwoDoors::start(folder.path(), "127.0.0.1:0", &websocket);
    let enter = |lines| {
        let mut person = Person::of(Client::connect(lines));
        person.says("/join tea");
        while !person.client.hear().ends_with(" has come.\n") {}
        person
    };
    let mut person = enter(lines);
    let _browser = Browser::show(&format!("{}/page?{}", host.origin(), websocket.port()));
    while !person.client.hear().ends_with(" is now Browser.\n") {}
    person.says("<img src=x onerror=alert(1)>");
    person.client.hear();
    person.hears("<Browser> 0 images");

    server.signal("TERM");
    server.ended();
    let websocket = format!("{websocket}?origins={}", host.origin());
    let doors = TwoDoors::start(folder.path(), "127.0.0.1:0", &websocket);
    let mut person = enter(doors.lines);
    // It comes by itself.
    while !person.client.hear().ends_with("* Browser has come.\n") {}
    person.says("back?");
    while person.client.hear() != "<Browser> I am back\n" {}
    drop(doors.server);
}

#[test]
fn a_ticker_tells_the_price_of_what_is_watched() {
    let store = "--store=default=memory:";
    let server = Server::with_guest("ticker", &[TOPICS, store, "--env=FEED=yes"]);
    let help = "watch SYMBOL, unwatch SYMBOL, or exit\n";
    let [mut feed, mut early, mut late] = [(); 3].map(|()| {
        let mut client = server.connect();
        assert_eq!(client.hear(), help);
        client
    });
    assert_eq!(early.ask("watch EURUSD"), "EURUSD -");
    assert_eq!(feed.ask("EURUSD 1.0842"), "ok");
    assert_eq!(early.hear(), "EURUSD 1.0842\n");
    assert_eq!(feed.ask("GBPUSD 1.2710"), "ok");
    assert_eq!(late.ask("watch EURUSD"), "EURUSD 1.0842");
    assert_eq!(late.ask("watch GBPUSD"), "GBPUSD 1.2710");
    assert_eq!(early.ask("unwatch EURUSD"), "EURUSD is not watched");
    assert_eq!(feed.ask("EURUSD 1.0850"), "ok");
    assert_eq!(late.hear(), "EURUSD 1.0850\n");
    assert_eq!(early.ask("watch GBPUSD"), "GBPUSD 1.2710");
}

#[test]
fn prices_come_from_a_feed_alone() {
    let server = Server::with_guest("ticker", &[TOPICS]);
    let mut client = server.connect();
    let help = client.hear();
    assert_eq!(format!("{}\n", client.ask("EURUSD 1")), help);
}
