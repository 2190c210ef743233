//! The same tests over every door, in both modes.
//!
//! ```text
//! cargo test -p host --test airlock --test walls -- --ignored every_door --nocapture
//! AIRLOCK_DOOR=tls AIRLOCK_THREADS=1 cargo test -p host --test airlock lifecycle::
//! ```

use std::process::Command;
use std::time::Instant;

use airlock::settings::address::Scheme::{self, Tls, Unix, Ws, Wss};

use crate::support::place::door_name;

/// Parts of names: conversations, limits, drain, hot swap, takeover, recordings, topics, and the attacks of
/// clients.
const SUITES: [&str; 11] = [
    "chat::",
    "conversation::",
    "limits::",
    "lifecycle::",
    "reload::",
    "takeover::",
    "commands::record",
    "recording",
    "recorded",
    "clients::",
    "topics::",
];

/// Those of TCP are what these tests are when nothing is said: they run with all the others.
const DOORS: [Scheme; 4] = [Unix, Tls, Ws, Wss];

const MODES: [&str; 2] = ["per-connection", "1"];

/// What is left out at which doors, and why.
const LEFT_OUT: [(&[Scheme], &str, &[&str]); 6] = [
    (
        &[Unix, Tls, Ws, Wss],
        "it has a door of its own, or speaks TCP and nothing else",
        &[
            "chat::a_browser_chats_with_nc_and_comes_back_after_a_restart",
            "chat::a_message_of_several_lines_is_one_line",
            "conversation::nc_is_greeted_answered_and_let_go",
            "conversation::telnet_is_greeted_answered_and_let_go",
            "conversation::every_address_form_can_be_listened_on",
            "lifecycle::what_was_logged_before_a_second_signal_is_written",
            "takeover::what_cannot_be_taken_over_is_said_in_one_line",
            "clients::thousands_without_a_header_take_neither_threads_nor_sandboxes",
        ],
    ),
    (
        &[Ws, Wss],
        "messages have no endings, no framing but their own, and nothing that is no text",
        &[
            "commands::recorded_conversations_can_be_played_against_the_next_guest",
            "conversation::a_reply_of_several_lines_has_the_ending_of_the_line_it_answers",
            "conversation::chunks_need_no_newline_and_lines_need_one",
            "conversation::crlf_is_answered_with_crlf",
            "conversation::the_tutorials_client_works_against_the_default_server",
            "limits::a_chunk_client_is_refused_in_its_own_framing",
            "limits::a_line_that_is_not_utf8_is_refused_and_the_next_one_served",
            "clients::every_byte_is_taken_for_what_it_is",
        ],
    ),
    (
        &[Unix],
        "a Unix socket has no ports and no addresses, no room for last words behind many others, and \
         says what a client has taken in steps of tens of KiB",
        &[
            "limits::a_client_that_reads_slowly_and_steadily_is_not_let_go",
            "clients::one_address_has_no_more_than_its_share",
            "lifecycle::a_client_that_goes_on_sending_hears_the_goodbye_and_the_end",
            "takeover::processes_that_share_a_port_all_serve",
        ],
    ),
    (
        &[Tls, Wss],
        "certificates are something to reload",
        &["reload::the_built_in_greeter_survives_the_order_to_reload"],
    ),
    (
        &[Tls, Wss],
        "of so many handshakes at once those that take longer than a second are let go",
        &["clients::as_many_clients_as_the_kernel_allows_come_back_at_once"],
    ),
    (
        &[Ws, Wss],
        "a message has a call of its own: for so many a debug server takes a minute",
        &["clients::a_million_newlines_in_one_write_are_a_million_lines"],
    ),
];

#[test]
#[ignore = "takes minutes; CI runs it"]
fn every_suite_holds_at_every_door() {
    let this = std::env::current_exe().unwrap();
    let tests = Command::new(&this).arg("--list").output().unwrap();
    let tests = String::from_utf8(tests.stdout).unwrap();
    let (this, all) = (
        &this,
        tests.lines().filter_map(|line| line.strip_suffix(": test")),
    );
    for test in LEFT_OUT.iter().flat_map(|(.., tests)| *tests) {
        let module = &test[..=test.rfind(':').unwrap()];
        let mut beside = all
            .clone()
            .filter(|other| other.starts_with(module))
            .peekable();
        assert!(
            beside.peek().is_none() || beside.any(|other| other == *test),
            "there is no `{test}`"
        );
    }
    let mut failed = Vec::new();
    for door in DOORS {
        let left_out = LEFT_OUT.iter().filter(|(doors, ..)| doors.contains(&door));
        let left_out = left_out.flat_map(|(.., tests)| *tests);
        for mode in MODES {
            let row = format!("{} {mode}", door_name(door));
            let mut run = Command::new(this);
            // Most of them wait most of the time.
            run.arg("--test-threads=8").args(SUITES);
            run.env("AIRLOCK_DOOR", door_name(door))
                .env("AIRLOCK_THREADS", mode);
            for test in left_out.clone() {
                run.args(["--skip", test]);
            }
            let began = Instant::now();
            let status = run.status().unwrap();
            eprintln!("{row}: {status} after {:.0?}", began.elapsed());
            failed.extend((!status.success()).then_some(row));
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}
