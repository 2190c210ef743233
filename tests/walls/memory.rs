//! The memory that guests declare, and the images that it begins with.

use std::fs;

use crate::components::{component_with_memory, doing};
use crate::support::{Client, Server, eventually};

fn serve(component: &[u8], options: &[&str]) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("guest.wasm");
    fs::write(&file, component).unwrap();
    Server::start(&[&["--guest", file.to_str().unwrap()], options].concat())
}

/// As a Zig guest does, which declares 17 MB of stack and touches little of it.
#[test]
fn the_memory_that_guests_begin_with_bounds_the_connections_and_those_inside_may_grow() {
    let grows = "(if (i32.eq (memory.grow (i32.const 160)) (i32.const -1)) (then unreachable))";
    // 272 pages are 17 MiB; an eighth of the total is for growing.
    let server = serve(
        &component_with_memory(272, &doing(grows)),
        &["--total-guest-memory=256MiB"],
    );
    server.logged(&["room for 13 connections instead of", "--total-guest-memory"]);
    // The guest answers nothing until it is asked, so what a connection hears is a refusal.
    let mut inside: Vec<_> = (0..13).map(|_| server.connect()).collect();
    let refused = || server.connect().rest() == "error: too many connections\n";
    eventually("there is no room", refused);
    server.logged(&["refusing connections", "--total-guest-memory"]);
    assert_eq!(inside[0].ask("10 MiB"), "");
    assert_eq!(inside[1].ask("10 MiB"), "");
    for gone in [0, 0] {
        drop::<Client>(inside.remove(gone));
    }
    eventually("there is room again", || {
        server.connect().ask("10 MiB").is_empty()
    });
    for client in &mut inside {
        client.send("exit");
        client.finish();
    }
}

/// Data that is an image: large enough, and with a word that the guest changes.
fn with_an_image(code: &str) -> Vec<u8> {
    let data = "abcdefgh".repeat(512 * 1024);
    let functions = format!("{} (data (i32.const 65536) \"{data}\")", doing(code));
    component_with_memory(80, &functions)
}

#[test]
fn a_large_image_is_shared_by_all_connections() {
    let server = serve(&with_an_image(""), &[]);
    server.connect().ask("once");
    let before_kib = server.own_kib();
    let mut clients: Vec<_> = (0..50).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.ask("Ada"), "");
    }
    let each_kib = (server.own_kib() - before_kib) / 50;
    assert!(each_kib < 1024, "{each_kib} KiB for each, of 4 MiB");
}

#[test]
fn what_a_connection_writes_into_an_image_is_gone_with_it() {
    // "abcd" as a number; whoever finds another word there has another one's memory.
    let server = serve(
        &with_an_image(
            "(if (i32.ne (i32.load (i32.const 2097152)) (i32.const 0x64636261))
                (then unreachable))
            (i32.store (i32.const 2097152) (i32.const 0))",
        ),
        &["--max-connections=2"],
    );
    let mut beside = server.connect();
    for _ in 0..20 {
        eventually("there is room", || {
            let mut client = server.connect();
            client.send("Ada\n");
            let answer = client.hear();
            assert!(answer == "\n" || answer.contains("too many"), "{answer}");
            answer == "\n"
        });
    }
    assert_eq!(beside.ask("Ada"), "");
}

/// Of an instance its own memory is a part: there are globals and functions too.
#[test]
fn what_large_instances_took_is_given_back() {
    let globals = "(global i32 (i32.const 1))".repeat(40_000);
    let server = serve(
        &component_with_memory(1, &format!("{globals} {}", doing(""))),
        &[],
    );
    let hold = || -> Vec<_> {
        let mut clients: Vec<_> = (0..40).map(|_| server.connect()).collect();
        for client in &mut clients {
            assert_eq!(client.ask("Ada"), "");
        }
        clients
    };
    let before_kib = server.own_kib();
    let clients = hold();
    let held_kib = server.own_kib() - before_kib;
    assert!(held_kib > 40 * 512, "{held_kib} KiB for 40");
    drop(clients);
    // With their threads, which wait for a while.
    eventually("it is given back", || {
        server.own_kib().saturating_sub(before_kib) < 40 * 192
    });
}
