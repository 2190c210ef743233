//! The settings that hold, as a file that would set them, with where each comes from.

use std::fmt::Write;
use std::path;

use clap::{ArgMatches, FromArgMatches};
use toml::Value;

use crate::settings::file::{File, Values};
use crate::settings::keys::{self, Form, Key, Table};
use crate::settings::process::LogSettings;

/// Where settings come from.
#[derive(Debug)]
pub struct Sources<'a> {
    /// What each service, and the process, was given, with its name.
    pub services: &'a [(String, ArgMatches)],
    /// The file, whose values are the options' defaults.
    pub file: Option<&'a File>,
    /// The variable that sets those of guests, where it does.
    pub variables: Option<&'a str>,
}

impl Sources<'_> {
    /// A file that sets the same.
    pub fn toml(&self) -> String {
        let keys = keys::all();
        let mut text = String::new();
        for table in Table::ALL {
            let services = match table {
                Table::Service => self.services,
                // They are texts of `listen` and of `store`.
                Table::Door | Table::Store => &[],
                // They all have those of the process.
                _ => self.services.get(..1).unwrap_or_default(),
            };
            for (name, options) in services {
                let header = match table {
                    Table::Top => String::new(),
                    Table::Service => format!("\n[service.{name}]\n"),
                    table => format!("\n{}\n", table.header()),
                };
                text.push_str(&header);
                for key in keys.iter().filter(|key| key.table == table) {
                    let line = self.line(key, name, options);
                    let _ = writeln!(text, "{line}");
                }
            }
        }
        text
    }

    fn line(&self, key: &Key, service: &str, options: &ArgMatches) -> String {
        let name = &key.name;
        let origin = self.origin(key, service, options);
        match value(key, options) {
            Some(value) => format!("{name} = {value} # {origin}"),
            None => {
                let default = key.default();
                format!(
                    "# {name}: {} # {origin}",
                    default.as_deref().unwrap_or("none")
                )
            }
        }
    }

    fn origin(&self, key: &Key, service: &str, options: &ArgMatches) -> String {
        if is_shifted(key, options) {
            return "-v, -q".to_owned();
        }
        if let Some(name) = key.given_by(options) {
            return name;
        }
        if let (Form::Variables, Some(variable)) = (key.form(), self.variables) {
            return variable.to_owned();
        }
        let given = self.file.and_then(|file| {
            let given = values(file, key.table, service)?.get(key.option_name())?;
            Some(format!("{}:{}", file.path.display(), given.place.line))
        });
        given.unwrap_or_else(|| "default".to_owned())
    }
}

fn values<'a>(file: &'a File, table: Table, service: &str) -> Option<&'a Values> {
    match table {
        Table::Service => file.services.get(service).map(|service| &service.values),
        _ => Some(&file.process),
    }
}

/// Whether `-v` or `-q` have a part in it.
fn is_shifted(key: &Key, options: &ArgMatches) -> bool {
    key.option_name() == "log-level"
        && ["verbose", "quiet"]
            .iter()
            .any(|option| options.get_count(option) > 0)
}

fn value(key: &Key, options: &ArgMatches) -> Option<Value> {
    if is_shifted(key, options) {
        let log = LogSettings::from_arg_matches(options).ok()?;
        return Some(log.level().to_string().into());
    }
    let id = key.option.get_id().as_str();
    let raw = options.get_raw(id)?;
    let mut texts = raw.map(|text| text.to_string_lossy().into_owned());
    match key.form() {
        Form::Flag => Some(options.get_flag(id).into()),
        Form::Choice(_) => texts.next().map(Value::from),
        Form::One(written) if written.is_path => {
            let path = texts.next()?;
            // As it stands it would be relative to the file that this becomes.
            let path = path::absolute(&path).map_or(path, |path| path.to_string_lossy().into());
            Some(path.into())
        }
        Form::One(written) => {
            let text = texts.next()?;
            let number = text
                .parse::<i64>()
                .ok()
                .filter(|_| written.numbers.is_some());
            Some(number.map_or_else(|| text.into(), Value::from))
        }
        Form::Many(_) => Some(texts.map(Value::from).collect::<Vec<_>>().into()),
        Form::Variables | Form::Stores(_) => {
            let pairs = texts.filter_map(|text| {
                let (name, value) = text.split_once('=')?;
                Some((name.to_owned(), Value::from(value)))
            });
            Some(Value::Table(pairs.collect()))
        }
    }
}
