//! The keys of a file: the options of a server, each in the table where it belongs.

use std::any::TypeId;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command};

use crate::settings::door::{self, DoorSettings};
use crate::settings::process::{LogSettings, ProcessLimits, ProcessSettings};
use crate::settings::service::ServiceSettings;
use crate::settings::store::{self, StoreSettings};
use crate::settings::topics::{self, TopicsSettings};
use crate::settings::values::{Written, written};

/// Where a key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Before all tables.
    Top,
    /// `[log]`
    Log,
    /// `[limits]`, of the whole process.
    Limits,
    /// `[service.NAME]`
    Service,
    /// `[[service.NAME.door]]`: what is set there becomes a text for `listen`.
    Door,
    /// `[service.NAME.store.NAME]`: what is set there becomes a text for `store`.
    Store,
}

impl Table {
    /// All, in the order of a file.
    pub const ALL: [Table; 6] = [
        Table::Top,
        Table::Log,
        Table::Limits,
        Table::Service,
        Table::Door,
        Table::Store,
    ];

    /// As a file has it.
    pub fn header(self) -> &'static str {
        match self {
            Table::Top => "",
            Table::Log => "[log]",
            Table::Limits => "[limits]",
            Table::Service => "[service.NAME]",
            Table::Door => "[[service.NAME.door]]",
            Table::Store => "[service.NAME.store.NAME]",
        }
    }
}

/// A key, and the option that it is the same as.
#[derive(Debug)]
pub struct Key {
    /// Where it stands.
    pub table: Table,
    /// What it is called there.
    pub name: String,
    /// What is known about it.
    pub option: Arg,
}

/// Every key. Options that only change another one (`-v`) have none.
pub fn all() -> Vec<Key> {
    let mut keys: Vec<Key> = Vec::new();
    let tables = [
        (Table::Log, LogSettings::augment_args(Command::new(""))),
        (Table::Limits, ProcessLimits::augment_args(Command::new(""))),
        // With the two before.
        (Table::Top, ProcessSettings::augment_args(Command::new(""))),
        (
            Table::Service,
            ServiceSettings::augment_args(Command::new("")),
        ),
        (Table::Door, DoorSettings::augment_args(Command::new(""))),
        (Table::Store, StoreSettings::augment_args(Command::new(""))),
    ];
    for (table, options) in tables {
        for option in options.get_arguments() {
            let long = option.get_long().unwrap_or_default();
            let is_known = keys.iter().any(|key| key.option_name() == long);
            let has_own_names = matches!(table, Table::Door | Table::Store);
            if is_known && !has_own_names || matches!(option.get_action(), ArgAction::Count) {
                continue;
            }
            let name = match table {
                Table::Log => long.trim_start_matches("log-"),
                _ => long,
            };
            keys.push(Key {
                table,
                name: name.to_owned(),
                option: option.clone(),
            });
        }
    }
    keys
}

/// How the value of a key is written.
#[derive(Debug, PartialEq, Eq)]
pub enum Form {
    /// `true` or `false`.
    Flag,
    /// One of these words.
    Choice(Vec<String>),
    /// One value.
    One(Written),
    /// One, or a list.
    Many(Written),
    /// A table of texts.
    Variables,
    /// A table of stores: texts, or tables of their own.
    Stores(Written),
}

impl Key {
    /// The name of its option, without dashes.
    pub fn option_name(&self) -> &str {
        self.option.get_long().unwrap_or_default()
    }

    /// The option or the variable that gives its value, if one does.
    pub fn given_by(&self, options: &ArgMatches) -> Option<String> {
        match options.value_source(self.option.get_id().as_str())? {
            ValueSource::CommandLine => Some(format!("--{}", self.option_name())),
            ValueSource::EnvVariable => {
                let variable = self.option.get_env().unwrap_or_default();
                Some(variable.to_string_lossy().into_owned())
            }
            _ => None,
        }
    }

    /// How its value is written.
    pub fn form(&self) -> Form {
        let option = &self.option;
        let choices = option.get_possible_values();
        let kind = option.get_value_parser().type_id();
        match option.get_action() {
            ArgAction::SetTrue => Form::Flag,
            ArgAction::Set if kind == TypeId::of::<bool>() => Form::Flag,
            ArgAction::Append if option.get_id() == "env" => Form::Variables,
            ArgAction::Append if kind == TypeId::of::<DoorSettings>() => {
                Form::Many(door::written())
            }
            ArgAction::Append if kind == TypeId::of::<StoreSettings>() => {
                Form::Stores(store::written())
            }
            ArgAction::Set if kind == TypeId::of::<TopicsSettings>() => {
                Form::One(topics::written())
            }
            ArgAction::Append => Form::Many(written(option)),
            _ if choices.is_empty() => Form::One(written(option)),
            _ => Form::Choice(
                choices
                    .iter()
                    .map(|choice| choice.get_name().to_owned())
                    .collect(),
            ),
        }
    }

    /// Whether its value is the name of a file or folder, or a list of such, which a file's folder comes before.
    pub fn is_path(&self) -> bool {
        matches!(self.form(), Form::One(written) | Form::Many(written) if written.is_path)
    }

    /// What it is for.
    pub fn help(&self) -> String {
        let help = self.option.get_help().map(ToString::to_string);
        let help = help.unwrap_or_default();
        let end = help.find(" [").unwrap_or(help.len());
        help[..end].to_owned()
    }

    /// What it protects, if it is a limit.
    pub fn reason(&self) -> Option<String> {
        let help = self.option.get_long_help()?.to_string();
        let (_, reason) = help.split_once("\n\n")?;
        Some(reason.to_owned())
    }

    /// The value that it has otherwise, or what is done without one.
    pub fn default(&self) -> Option<String> {
        let values = self.option.get_default_values();
        if !values.is_empty() {
            let values: Vec<_> = values.iter().map(|value| value.to_string_lossy()).collect();
            return Some(values.join(", "));
        }
        let help = self.option.get_help()?.to_string();
        let (_, default) = help.split_once("[default: ")?;
        Some(default.trim_end_matches(']').to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_kind_of_value_and_help() {
        for key in all() {
            if let Form::One(written) | Form::Many(written) = key.form() {
                assert_ne!(written, Written::default(), "{}", key.name);
            }
            assert_ne!(key.help(), "", "{}", key.name);
        }
    }
}
