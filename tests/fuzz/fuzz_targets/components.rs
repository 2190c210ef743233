//! `airlock check` on components that `wasm-smith` makes, whole, broken, nested, and beside a guest
//! that would be served: it says what it makes of each, within its bounds.
//!
//! The program under test is a process (`target/debug/airlock`, or what `AIRLOCK` names), so what
//! this fuzzer covers is the generator; and each input runs all that a start or a swap runs: the
//! compiler's process, loading, linking, an instance and its greeting.

#![no_main]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use wasm_encoder::{Component, InstanceSection, ModuleArg, RawSection};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

const COMPILE_TIME: Duration = Duration::from_secs(5);
const CALL_TIME: Duration = Duration::from_millis(200);
const COMPILE_MEMORY_KIB: i64 = 512 * 1024;

/// For starting two processes on a busy machine.
const SLACK: Duration = Duration::from_secs(5);

/// A guest that greets nobody and answers nothing.
static GUEST: LazyLock<Vec<u8>> = LazyLock::new(guest);

#[derive(Debug, Arbitrary)]
enum Shape {
    Whole,
    Broken,
    Nested(u8),
    BesideAGuest,
    Bytes,
}

fn component(data: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
    let shape = data.arbitrary()?;
    if matches!(shape, Shape::Bytes) {
        let head = b"\0asm\x0d\x00\x01\x00";
        return Ok([head, data.bytes(data.len())?].concat());
    }
    if matches!(shape, Shape::BesideAGuest) {
        return beside_a_guest(data);
    }
    let mut bytes = wasm_smith::Component::new(config(), data)?.to_bytes();
    match shape {
        Shape::Broken => {
            for _ in 0..data.int_in_range(1..=8)? {
                let place = data.choose_index(bytes.len())?;
                bytes[place] = data.arbitrary()?;
            }
        }
        Shape::Nested(levels) => {
            for _ in 0..levels {
                let mut outer = Component::new();
                outer.section(&RawSection {
                    id: 4,
                    data: &bytes,
                });
                bytes = outer.finish();
            }
        }
        _ => {}
    }
    Ok(bytes)
}

fn config() -> wasm_smith::Config {
    wasm_smith::Config {
        max_modules: 8,
        max_components: 8,
        max_memories: 2,
        max_memory32_bytes: 1 << 30,
        gc_enabled: false,
        exceptions_enabled: false,
        ..wasm_smith::Config::default()
    }
}

/// A module that is instantiated with the guest: its memories, tables, segments and start function
/// are what the trial meets.
fn beside_a_guest(data: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
    let config = wasm_smith::Config {
        max_imports: 0,
        allow_start_export: true,
        ..config()
    };
    let module = wasm_smith::Module::new(config, data)?.to_bytes();
    let mut sections = Component::new();
    sections.section(&RawSection {
        id: 1,
        data: &module,
    });
    let mut instances = InstanceSection::new();
    // The guest's own module is the first.
    instances.instantiate(1, std::iter::empty::<(&str, ModuleArg)>());
    sections.section(&instances);
    let added = sections.finish();
    Ok([GUEST.as_slice(), &added[8..]].concat())
}

fn guest() -> Vec<u8> {
    let mut module = wat::parse_str(
        r#"(module
            (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
            (func (export "airlock:line/handler@0.1.0#greeting") (result i32) i32.const 0)
            (func (export "airlock:line/handler@0.1.0#handle-line") (param i32 i32) (result i32)
                i32.const 0))"#,
    )
    .expect("a module");
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(root().join("wit")).expect("the contract");
    let world = resolve
        .select_world(&[package], Some("line-server"))
        .expect("the world of guests");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
        .expect("a module of this world");
    let mut encoder = ComponentEncoder::default();
    encoder.module(&module).expect("a module of a component");
    encoder.encode().expect("a component")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fuzz_target!(|data: &[u8]| {
    let Ok(component) = component(&mut Unstructured::new(data)) else {
        return;
    };
    let program = std::env::var_os("AIRLOCK");
    let program = program.map_or_else(|| root().join("target/debug/airlock"), PathBuf::from);
    let started = Instant::now();
    let mut check = Command::new(program)
        .args(["check", "--json", "/dev/stdin"])
        .arg(format!("--compile-timeout={COMPILE_TIME:?}"))
        .arg(format!("--compile-memory={COMPILE_MEMORY_KIB}KiB"))
        .arg(format!("--call-timeout={CALL_TIME:?}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("airlock is built");
    let mut input = check.stdin.take().expect("it is piped");
    input.write_all(&component).expect("it reads all");
    drop(input);
    let (status, usage) = wait(&check);
    let time = started.elapsed();
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) <= 1,
        "ended with {status:#x}"
    );
    assert!(time < COMPILE_TIME + 2 * CALL_TIME + SLACK, "took {time:?}");
    // Of the largest of the processes; the first begins as a copy of this one, which counts.
    let most = COMPILE_MEMORY_KIB.max(own_peak_kib());
    assert!(usage.ru_maxrss <= most, "took {} KiB", usage.ru_maxrss);
});

fn own_peak_kib() -> i64 {
    let mut usage = std::mem::MaybeUninit::uninit();
    // SAFETY: it is written when this returns 0, which it does for these arguments.
    unsafe {
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()), 0);
        usage.assume_init().ru_maxrss
    }
}

/// With what it has taken, which the standard library does not tell.
fn wait(child: &std::process::Child) -> (i32, libc::rusage) {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::uninit();
    let pid = child.id() as libc::pid_t;
    loop {
        // SAFETY: the child is ours and has not been waited for; both are written when it returns it.
        unsafe {
            if libc::wait4(pid, &mut status, 0, usage.as_mut_ptr()) == pid {
                return (status, usage.assume_init());
            }
        }
        // The fuzzer has a timer.
        let error = std::io::Error::last_os_error();
        assert_eq!(error.kind(), std::io::ErrorKind::Interrupted, "{error}");
    }
}
