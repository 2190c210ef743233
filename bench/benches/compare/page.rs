//! performance.md, which has the figures between marks.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What stands before the figures of each kind: with a core for each server, and with shared ones.
const BEGIN: [&str; 2] = [
    "<!-- made by bench/compare -->\n",
    "<!-- made by bench/compare --shared -->\n",
];
/// Behind them.
const END: &str = "<!-- to here -->\n";

/// The place of one kind of figures.
pub(crate) struct Place {
    page: PathBuf,
    begin: &'static str,
}

impl Place {
    /// Finds it before anything is measured.
    pub(crate) fn find(folder: &Path, shared: bool) -> Result<Place> {
        let place = Place {
            page: folder.join("performance.md"),
            begin: BEGIN[usize::from(shared)],
        };
        place.around()?;
        Ok(place)
    }

    /// Replaces the figures of an earlier run. The page is read again, because somebody may have edited
    /// it meanwhile.
    pub(crate) fn fill(&self, figures: String) -> Result<()> {
        let [before, after] = self.around()?;
        Ok(fs::write(&self.page, [before, figures, after].concat())?)
    }

    /// What stands before and behind the figures; in a new file there is nothing else.
    fn around(&self) -> Result<[String; 2]> {
        let text = match fs::read_to_string(&self.page) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                BEGIN.map(|begin| [begin, END].concat()).concat()
            }
            text => text.with_context(|| format!("cannot read {}", self.page.display()))?,
        };
        let parts = text.split_once(self.begin).and_then(|(before, rest)| {
            let (_, after) = rest.split_once(END)?;
            Some([format!("{before}{}", self.begin), format!("{END}{after}")])
        });
        parts.with_context(|| {
            format!(
                "{} has no lines `{}` and `{}`, between which the figures go",
                self.page.display(),
                self.begin.trim(),
                END.trim()
            )
        })
    }
}
