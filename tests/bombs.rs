//! Files that are hostile before anything in them runs: small, and without end for a compiler.

/// A file, and what the server may say of it: which bound it meets first depends on the machine.
pub(crate) struct Bomb {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) causes: &'static [&'static str],
}

/// As those of the attack that found them; two are larger, so that no machine and no build of the
/// compiler is done with them in time.
pub(crate) fn bombs() -> Vec<Bomb> {
    let bomb = |name, bytes, causes| Bomb {
        name,
        bytes,
        causes,
    };
    vec![
        bomb("nested types", nested_types(5_000), &["nested too deeply"]),
        bomb(
            "doubling components",
            doubling_components(40),
            &["--compile-memory", "--compile-timeout"],
        ),
        bomb(
            "many components",
            many_components(20, 999),
            &["--compile-memory", "--compile-timeout"],
        ),
        bomb(
            "nested components",
            nested_components(5_000),
            &["nested too deeply", "--compile-memory"],
        ),
        bomb(
            "doubling exports",
            doubling_exports(18, 3),
            &["cannot be loaded", "--compile-memory", "--compile-timeout"],
        ),
        bomb(
            "nested loops",
            nested_loops(10_000, 20_000),
            &["--compile-memory", "--compile-timeout"],
        ),
        bomb(
            "table fills",
            table_fills(300_000),
            &["--compile-memory", "--compile-timeout"],
        ),
    ]
}

const COMPONENT: [u8; 8] = *b"\0asm\x0d\x00\x01\x00";
const MODULE: [u8; 8] = *b"\0asm\x01\x00\x00\x00";

/// LEB128, as all numbers in WebAssembly are written.
fn number(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id], number(content.len()).as_slice(), content].concat()
}

fn component(sections: &[Vec<u8>]) -> Vec<u8> {
    [COMPONENT.to_vec(), sections.concat()].concat()
}

fn core_module(sections: &[Vec<u8>]) -> Vec<u8> {
    section(1, &[MODULE.to_vec(), sections.concat()].concat())
}

/// A component type in a component type, and so on: 3 bytes a level.
fn nested_types(levels: usize) -> Vec<u8> {
    let mut content = vec![1];
    content.extend([0x41, 1, 1].repeat(levels));
    content.extend([0x41, 0]);
    component(&[section(7, &content)])
}

/// A component that has another one twice, which has another one twice, and so on.
fn doubling_components(levels: usize) -> Vec<u8> {
    let instance = section(2, &[1, 0, 0, 0]);
    let innermost = component(&[core_module(&[]), instance]);
    (0..levels).fold(innermost, |inner, _| {
        let instances = section(5, &[2, 0, 0, 0, 0, 0, 0]);
        component(&[section(4, &inner), instances])
    })
}

/// An instance that exports another one twice, which exports another one twice, and so on; and a
/// component that has all of it a few times. Small for the compiler, and large for whoever loads it.
fn doubling_exports(levels: usize, times: usize) -> Vec<u8> {
    let mut inner = COMPONENT.to_vec();
    inner.extend(section(5, &[1, 1, 0]));
    for level in 0..levels {
        let export = |name| [&[0, 1, name, 5], number(level).as_slice()].concat();
        let exports = [vec![1, 1, 2], export(b'a'), export(b'b')].concat();
        inner.extend(section(5, &exports));
    }
    let last = [&[1, 0, 1, b'z', 5], number(levels - 1).as_slice(), &[0]].concat();
    inner.extend(section(11, &last));
    let instances = [number(times), [0, 0, 0].repeat(times)].concat();
    component(&[section(4, &inner), section(5, &instances)])
}

/// Wasmtime takes a thousand in one place.
fn many_components(places: usize, in_each: usize) -> Vec<u8> {
    let place = component(&vec![section(4, &COMPONENT); in_each]);
    component(&vec![section(4, &place); places])
}

fn nested_components(levels: usize) -> Vec<u8> {
    let innermost = COMPONENT.to_vec();
    (0..levels).fold(innermost, |inner, _| component(&[section(4, &inner)]))
}

/// A function in a module of its own in a component. It takes and returns nothing.
fn function(locals: usize, code: &[u8]) -> Vec<u8> {
    let types = section(1, &[1, 0x60, 0, 0]);
    let functions = section(3, &[1, 0]);
    let tables = section(4, &[1, 0x70, 0, 10]);
    let locals = [&[1], number(locals).as_slice(), &[0x7f]].concat();
    let body = [locals.as_slice(), code, &[0x0b]].concat();
    let code = [&[1], number(body.len()).as_slice(), &body].concat();
    component(&[core_module(&[types, functions, tables, section(10, &code)])])
}

/// 3 bytes each.
fn nested_loops(count: usize, locals: usize) -> Vec<u8> {
    function(
        locals,
        &[[0x03, 0x40].repeat(count), [0x0b].repeat(count)].concat(),
    )
}

/// `(table.fill 0 (i32.const 0) (ref.null func) (i32.const 10))`, one after the other.
pub(crate) fn table_fills(count: usize) -> Vec<u8> {
    function(
        1,
        &[0x41, 0, 0xd0, 0x70, 0x41, 10, 0xfc, 0x11, 0].repeat(count),
    )
}
