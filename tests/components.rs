//! Components made for a test: from WebAssembly's text format, or from the greeter.

/// A component of the world in `wit/`, around a core module in WebAssembly's text format. The text
/// has `greeting` and `handle`, and may use a table and a memory; what they return is the address of
/// a result.
pub(crate) fn component(functions: &str) -> Vec<u8> {
    component_of("line-server", 1, "", functions)
}

/// The same, with a memory of this many pages of 64 KiB.
pub(crate) fn component_with_memory(pages: u32, functions: &str) -> Vec<u8> {
    component_of("line-server", pages, "", functions)
}

/// The same, and the text has `many` too: for lines that have arrived together.
pub(crate) fn component_for_many_lines(functions: &str) -> Vec<u8> {
    let export = r#"(export "airlock:line/batch@0.1.0#handle-lines" (func $many))"#;
    component_of("batch-server", 1, "", &format!("{functions} {export}"))
}

/// A component that subscribes to a topic in its greeting, and publishes there for each line. The text has
/// `hear` for what it is told then.
pub(crate) fn component_that_hears(functions: &str) -> Vec<u8> {
    let imports = r#"
        (import "airlock:line/topics@0.1.0" "subscribe" (func $subscribe (param i32 i32 i32)))
        (import "airlock:line/topics@0.1.0" "publish" (func $publish (param i32 i32 i32 i32 i32)))"#;
    let functions = format!(
        r#"{functions}
        (data (i32.const 512) "topic")
        (func $greeting (result i32)
            (call $subscribe (i32.const 512) (i32.const 5) (i32.const 640))
            i32.const 0)
        (func $handle (param i32 i32) (result i32)
            (call $publish (i32.const 512) (i32.const 5) (i32.const 512) (i32.const 5) (i32.const 640))
            i32.const 0)
        (export "airlock:line/subscriber@0.1.0#on-messages" (func $hear))"#
    );
    component_of("topic-server", 1, imports, &functions)
}

/// The part of WASI that components made here import, and resources of their own.
const IMPORTING: &str = r#"
    package airlock:test;
    interface things { resource thing; }
    world importing {
        include airlock:line/line-server@0.1.0;
        import wasi:cli/stderr@0.2.0;
        import wasi:random/random@0.2.0;
        export things;
    }
    package wasi:io@0.2.0 {
        interface error { resource error; }
        interface streams {
            use error.{error};
            variant stream-error { last-operation-failed(error), closed }
            resource output-stream {
                write: func(contents: list<u8>) -> result<_, stream-error>;
            }
        }
    }
    package wasi:cli@0.2.0 {
        interface stderr {
            use wasi:io/streams@0.2.0.{output-stream};
            get-stderr: func() -> output-stream;
        }
    }
    package wasi:random@0.2.0 {
        interface random { get-random-bytes: func(len: u64) -> list<u8>; }
    }"#;

/// A component that calls the host directly: `$stderr` gives a stream, to which `$write` writes,
/// `$random` random bytes, and `$thing` a handle of a resource of the component's own.
pub(crate) fn component_that_imports(functions: &str) -> Vec<u8> {
    let imports = r#"
        (import "wasi:cli/stderr@0.2.0" "get-stderr" (func $stderr (result i32)))
        (import "wasi:io/streams@0.2.0" "[method]output-stream.write"
            (func $write (param i32 i32 i32 i32)))
        (import "wasi:random/random@0.2.0" "get-random-bytes" (func $random (param i64 i32)))
        (import "[export]airlock:test/things" "[resource-new]thing"
            (func $thing (param i32) (result i32)))"#;
    component_of("airlock:test/importing", 4, imports, functions)
}

fn component_of(world: &str, pages: u32, imports: &str, functions: &str) -> Vec<u8> {
    use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
    use wit_parser::Resolve;

    let mut module = wat::parse_str(format!(
        r#"(module
            {imports}
            (memory (export "memory") {pages})
            (table $table 1 funcref)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
            {functions}
            (export "airlock:line/handler@0.1.0#greeting" (func $greeting))
            (export "airlock:line/handler@0.1.0#handle-line" (func $handle)))"#
    ))
    .unwrap();
    let mut resolve = Resolve::default();
    let (package, _) = resolve
        .push_path(crate::support::root().join("wit"))
        .unwrap();
    resolve.push_str("importing.wit", IMPORTING).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    let mut encoder = ComponentEncoder::default();
    encoder.module(&module).unwrap();
    encoder.encode().unwrap()
}

/// `none`: memory is zero.
pub(crate) const NO_GREETING: &str = "(func $greeting (result i32) i32.const 0)";

/// Runs this code for each line, and replies with the text of length 0 at address 0.
pub(crate) fn doing(code: &str) -> String {
    format!(
        "{NO_GREETING}
        (func $handle (param i32 i32) (result i32) {code} i32.const 0)"
    )
}

/// Answers nothing, and runs this code for its greeting.
pub(crate) fn greeting_by(code: &str) -> String {
    format!(
        "(func $greeting (result i32) {code} i32.const 0)
        (func $handle (param i32 i32) (result i32) i32.const 0)"
    )
}

/// A greeter that answers `Howdy, NAME!`: the same component with another text in it.
pub(crate) fn howdy() -> Vec<u8> {
    const HELLO: &[u8] = b"Hello, ";
    const HOWDY: &[u8] = b"Howdy, ";
    let mut component = airlock::GREETER.to_vec();
    let places = component.windows(HELLO.len());
    let places: Vec<_> = places
        .enumerate()
        .filter(|(_, bytes)| *bytes == HELLO)
        .collect();
    let &[(place, _)] = places.as_slice() else {
        panic!("the greeter has `Hello, ` {} times", places.len());
    };
    component[place..place + HOWDY.len()].copy_from_slice(HOWDY);
    component
}

/// The same component with other bytes: a custom section, which means nothing, is appended.
pub(crate) fn stamped(component: &[u8], stamp: u32) -> Vec<u8> {
    const NAME: &[u8] = b"stamp";
    let stamp = stamp.to_le_bytes();
    let length = 1 + NAME.len() + stamp.len();
    let head = [0, length as u8, NAME.len() as u8];
    [component, &head, NAME, &stamp].concat()
}
