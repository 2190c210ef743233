//! How many bytes Wasmtime keeps for one instance besides its memories and tables, which the guest
//! asks for while it runs.
//!
//! Wasmtime bounds them and tells nobody, but what they are for can be read in the file.

use std::collections::HashSet;

use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentOuterAliasKind, ComponentTypeRef, ElementItems,
    ElementKind, Encoding, ExternalKind, Parser, Payload, Result,
};

use crate::limits::guest::{GUEST_CORE_INSTANCES, GUEST_INSTANCE_BYTES};

/// What Wasmtime has for each core instance, whatever is in it.
const INSTANCE_BYTES: u64 = 1024;

/// For a function that is imported, or whose address is taken.
const FUNCTION_BYTES: u64 = 32;

const GLOBAL_BYTES: u64 = 16;

/// For a memory, a table, a segment of data.
const PART_BYTES: u64 = 64;

/// For a type of a component, which may be a resource.
const TYPE_BYTES: u64 = 40;

/// For an instance of a component, and for a function that is made for one.
const COMPONENT_BYTES: u64 = 64;

/// For as many instances of components as fit into [`GUEST_INSTANCE_BYTES`] (measured: 3 MiB).
const MOST_COMPONENT_BYTES: u64 = 4 << 20;

/// For each element of a segment that code can copy into a table.
const PASSIVE_ELEMENT_BYTES: u64 = 16;

/// No fewer than an instance of this component takes. (Of what is no component, whatever was read up
/// to there: it is refused anyway.)
pub(super) fn bytes(component: &[u8]) -> u64 {
    let mut size = Size::default();
    let mut path = Path::default();
    for payload in Parser::new(0).parse_all(component) {
        let Ok(()) = payload.and_then(|payload| {
            path.follow(&payload)?;
            size.add(payload)
        }) else {
            break;
        };
    }
    let times = if path.repeats {
        u64::from(GUEST_CORE_INSTANCES)
    } else {
        1
    };
    // More than that is refused.
    let most_bytes = GUEST_INSTANCE_BYTES as u64;
    let bytes = size.bytes.saturating_mul(times).min(most_bytes);
    let component_bytes = match path.repeats {
        false => size.component_bytes,
        true => size.component_bytes.saturating_add(MOST_COMPONENT_BYTES),
    };
    bytes
        .saturating_add(size.passive_bytes.saturating_mul(times))
        .saturating_add(component_bytes)
}

/// How many bytes the linear memories of a component begin with: its segments of data.
pub(super) fn image_bytes(component: &[u8]) -> u64 {
    let sections = Parser::new(0).parse_all(component);
    // What is no component has none, and is refused by others.
    let sections = sections.map_while(Result::ok).map(|section| match section {
        Payload::DataSection(segments) => segments.range().len() as u64,
        _ => 0,
    });
    sections.sum()
}

/// Of all core modules, once each.
#[derive(Default)]
struct Size {
    bytes: u64,
    passive_bytes: u64,
    component_bytes: u64,
}

impl Size {
    fn add(&mut self, payload: Payload<'_>) -> Result<()> {
        self.component_bytes += match &payload {
            Payload::ComponentTypeSection(types) => u64::from(types.count()) * TYPE_BYTES,
            Payload::ComponentInstanceSection(instances) => {
                u64::from(instances.count()) * COMPONENT_BYTES
            }
            Payload::ComponentCanonicalSection(functions) => {
                u64::from(functions.count()) * COMPONENT_BYTES
            }
            _ => 0,
        };
        self.bytes += match payload {
            Payload::Version {
                encoding: Encoding::Module,
                ..
            } => INSTANCE_BYTES,
            Payload::ImportSection(imports) => u64::from(imports.count()) * FUNCTION_BYTES,
            // A function can be what a global begins with.
            Payload::GlobalSection(globals) => {
                u64::from(globals.count()) * (GLOBAL_BYTES + FUNCTION_BYTES)
            }
            Payload::ExportSection(exports) => {
                let mut functions = 0;
                for export in exports {
                    functions += u64::from(export?.kind == ExternalKind::Func);
                }
                functions * FUNCTION_BYTES
            }
            Payload::ElementSection(segments) => {
                let mut functions = 0;
                for segment in segments {
                    let segment = segment?;
                    let count = u64::from(match segment.items {
                        ElementItems::Functions(items) => items.count(),
                        ElementItems::Expressions(_, items) => items.count(),
                    });
                    functions += count;
                    if matches!(segment.kind, ElementKind::Passive) {
                        self.passive_bytes += count * PASSIVE_ELEMENT_BYTES;
                    }
                }
                functions * FUNCTION_BYTES
            }
            Payload::MemorySection(memories) => u64::from(memories.count()) * PART_BYTES,
            Payload::TableSection(tables) => u64::from(tables.count()) * PART_BYTES,
            Payload::DataSection(segments) => u64::from(segments.count()) * PART_BYTES,
            _ => 0,
        };
        Ok(())
    }
}

/// Where the parser is, and whether something may be instantiated more than once. No compiler makes
/// such a component, so it is enough to see that nothing is.
#[derive(Default)]
struct Path {
    /// The components that it is in, each by its number.
    components: Vec<usize>,
    count: usize,
    modules_used: HashSet<(usize, u32)>,
    components_used: HashSet<(usize, u32)>,
    repeats: bool,
}

impl Path {
    fn follow(&mut self, payload: &Payload<'_>) -> Result<()> {
        let here = self.components.last().copied().unwrap_or_default();
        match payload {
            Payload::Version { .. } => {
                self.components.push(self.count);
                self.count += 1;
            }
            Payload::End(_) => {
                self.components.pop();
            }
            Payload::InstanceSection(instances) => {
                for instance in instances.clone() {
                    if let wasmparser::Instance::Instantiate { module_index, .. } = instance? {
                        self.repeats |= !self.modules_used.insert((here, module_index));
                    }
                }
            }
            Payload::ComponentInstanceSection(instances) => {
                for instance in instances.clone() {
                    if let wasmparser::ComponentInstance::Instantiate {
                        component_index, ..
                    } = instance?
                    {
                        self.repeats |= !self.components_used.insert((here, component_index));
                    }
                }
            }
            // Each of these gives what it names a further index.
            Payload::ComponentImportSection(imports) => {
                for import in imports.clone() {
                    self.repeats |= matches!(
                        import?.ty,
                        ComponentTypeRef::Module(_) | ComponentTypeRef::Component(_)
                    );
                }
            }
            Payload::ComponentExportSection(exports) => {
                for export in exports.clone() {
                    self.repeats |= is_code(export?.kind);
                }
            }
            Payload::ComponentAliasSection(aliases) => {
                for alias in aliases.clone() {
                    self.repeats |= match alias? {
                        ComponentAlias::InstanceExport { kind, .. } => is_code(kind),
                        ComponentAlias::CoreInstanceExport { .. } => false,
                        ComponentAlias::Outer { kind, .. } => matches!(
                            kind,
                            ComponentOuterAliasKind::CoreModule
                                | ComponentOuterAliasKind::Component
                        ),
                    };
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn is_code(kind: ComponentExternalKind) -> bool {
    matches!(
        kind,
        ComponentExternalKind::Module | ComponentExternalKind::Component
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(text: &str) -> u64 {
        bytes(&wat::parse_str(text).expect("a component"))
    }

    const MODULE: &str = "(core module $m (global i32 (i32.const 1)) (func $f)
        (elem func $f $f $f $f))";

    #[test]
    fn the_greeter_takes_a_few_kib() {
        let bytes = bytes(crate::GREETER);
        assert!((1024..64 * 1024).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_core_instance_counts_each_time() {
        let once = bytes_of(&format!(
            "(component {MODULE} (core instance (instantiate $m)))"
        ));
        let expected =
            INSTANCE_BYTES + GLOBAL_BYTES + 5 * FUNCTION_BYTES + 4 * PASSIVE_ELEMENT_BYTES;
        assert_eq!(once, expected);
        let many = once * u64::from(GUEST_CORE_INSTANCES) + MOST_COMPONENT_BYTES;
        for again in [
            "(core instance (instantiate $m)) (core instance (instantiate $m))",
            "(component $c) (instance (instantiate $c)) (instance (instantiate $c))",
            "(component (alias outer 1 0 (core module $n)) (core instance (instantiate $n)))",
            r#"(export $n "n" (core module $m)) (core instance (instantiate $n))"#,
        ] {
            let bytes = bytes_of(&format!("(component {MODULE} {again})"));
            let instances = bytes - many;
            assert!(instances <= 2 * COMPONENT_BYTES, "{again}: {instances}");
        }
    }

    #[test]
    fn types_instances_and_functions_of_components_count() {
        let resource = "(type (resource (rep i32)))";
        let bytes = bytes_of(&format!("(component {})", resource.repeat(1000)));
        assert_eq!(bytes, 1000 * TYPE_BYTES);
        let instance = "(instance)";
        let bytes = bytes_of(&format!("(component {})", instance.repeat(100)));
        assert_eq!(bytes, 100 * COMPONENT_BYTES);
    }

    #[test]
    fn what_is_no_component_has_a_size_too() {
        assert_eq!(bytes(b"\0asm"), 0);
        let mut cut = crate::GREETER.to_vec();
        cut.truncate(cut.len() / 2);
        bytes(&cut);
    }
}
