//! The functions that a guest has to export, as a person would write them: Wasmtime would only say
//! that some type mismatches, and only when there is an instance.

use wasmtime::Engine;
use wasmtime::component::types::{Component, ComponentFunc, ComponentItem, Type};

/// What is asked of guests: interface, function, signature, as in wit/world.wit.
const WANTED: [(&str, &str, &str); 4] = [
    (
        "airlock:line/handler@0.1.0",
        "greeting",
        "func() -> option<string>",
    ),
    (
        "airlock:line/handler@0.1.0",
        "handle-line",
        "func(string) -> variant { reply(string), no-reply, close(option<string>) }",
    ),
    (
        "airlock:line/batch@0.1.0",
        "handle-lines",
        "func(string, u32) -> record { replies: string, handled: u32, close: bool }",
    ),
    (
        "airlock:line/subscriber@0.1.0",
        "on-messages",
        "func(list<record { topic: string, body: list<u8> }>, bool) -> record { lines: list<string>, \
         close: bool }",
    ),
];

/// Types are shown up to this length. They can be nested so that a few of them would fill a disk.
const SHOWN_BYTES: usize = 300;

/// A function that is not as it has to be.
#[derive(Debug, thiserror::Error)]
#[error("its function `{name}` is `{has}` and has to be `{wants}`")]
pub struct Mismatch {
    name: String,
    has: String,
    wants: &'static str,
}

/// Compares what a guest exports. Functions that it does not export are not looked for.
pub(super) fn check(engine: &Engine, component: &Component) -> Result<(), Mismatch> {
    for (interface, function, wants) in WANTED {
        let Some(ComponentItem::ComponentInstance(exported)) =
            component.get_export(engine, interface).map(|item| item.ty)
        else {
            continue;
        };
        let Some(item) = exported.get_export(engine, function) else {
            continue;
        };
        let mut has = match item.ty {
            ComponentItem::ComponentFunc(function) => show_function(&function),
            _ => "no function".to_owned(),
        };
        if has != wants {
            has.truncate(has.floor_char_boundary(2 * SHOWN_BYTES));
            let name = format!("{interface}#{function}");
            return Err(Mismatch { name, has, wants });
        }
    }
    Ok(())
}

fn show_function(function: &ComponentFunc) -> String {
    let mut text = String::from("func");
    list(&mut text, ["(", ")"], function.params(), |text, (_, ty)| {
        show(text, &ty);
    });
    for result in function.results() {
        text.push_str(" -> ");
        show(&mut text, &result);
    }
    text
}

/// Appends the type as WIT has it, with what it is made of in place of its name.
fn show(text: &mut String, ty: &Type) {
    match ty {
        Type::Bool => text.push_str("bool"),
        Type::S8 => text.push_str("s8"),
        Type::U8 => text.push_str("u8"),
        Type::S16 => text.push_str("s16"),
        Type::U16 => text.push_str("u16"),
        Type::S32 => text.push_str("s32"),
        Type::U32 => text.push_str("u32"),
        Type::S64 => text.push_str("s64"),
        Type::U64 => text.push_str("u64"),
        Type::Float32 => text.push_str("f32"),
        Type::Float64 => text.push_str("f64"),
        Type::Char => text.push_str("char"),
        Type::String => text.push_str("string"),
        Type::List(inner) => generic(text, "list", &[Some(inner.ty())]),
        Type::Option(inner) => generic(text, "option", &[Some(inner.ty())]),
        Type::Result(result) => generic(text, "result", &[result.ok(), result.err()]),
        Type::Tuple(tuple) => list(text, ["tuple<", ">"], tuple.types(), |text, ty| {
            show(text, &ty);
        }),
        Type::Record(record) => list(text, ["record { ", " }"], record.fields(), |text, field| {
            text.push_str(field.name);
            text.push_str(": ");
            show(text, &field.ty);
        }),
        Type::Variant(variant) => {
            list(text, ["variant { ", " }"], variant.cases(), |text, case| {
                text.push_str(case.name);
                if let Some(ty) = case.ty {
                    list(text, ["(", ")"], [ty], |text, ty| show(text, &ty));
                }
            });
        }
        Type::Enum(names) => list(text, ["enum { ", " }"], names.names(), String::push_str),
        Type::Flags(names) => list(text, ["flags { ", " }"], names.names(), String::push_str),
        Type::Own(_) | Type::Borrow(_) => text.push_str("resource"),
        _ => text.push_str("a type that is not in WASI 0.2"),
    }
}

/// `result<_, e>` and the like; nothing stands for what is left out at the end.
fn generic(text: &mut String, name: &str, types: &[Option<Type>]) {
    text.push_str(name);
    let shown = types
        .iter()
        .rposition(Option::is_some)
        .map_or(0, |last| last + 1);
    if shown > 0 {
        list(text, ["<", ">"], &types[..shown], |text, ty| match ty {
            Some(ty) => show(text, ty),
            None => text.push('_'),
        });
    }
}

/// Appends what there is, with commas between, until the text is long enough.
fn list<T>(
    text: &mut String,
    [open, close]: [&str; 2],
    items: impl IntoIterator<Item = T>,
    mut show: impl FnMut(&mut String, T),
) {
    text.push_str(open);
    for (number, item) in items.into_iter().enumerate() {
        if number > 0 {
            text.push_str(", ");
        }
        if text.len() > SHOWN_BYTES {
            text.push('…');
            break;
        }
        show(text, item);
    }
    text.push_str(close);
}
