//! What a name that is not known was probably meant to be.

/// How alike a name has to be to be meant, as clap has it for options.
const NEAR: f64 = 0.7;

/// The known name that is most like this one, with what is known of it.
pub(super) fn nearest<'a, T>(
    name: &str,
    known: impl Iterator<Item = (&'a str, T)>,
) -> Option<(&'a str, T)> {
    let near = known
        .map(|known| (strsim::jaro(name, known.0), known))
        .filter(|(likeness, _)| *likeness > NEAR);
    let nearest = near.max_by(|(one, _), (other, _)| one.total_cmp(other));
    nearest.map(|(_, known)| known)
}
