//! Reads a file of settings: what it sets, and all that is wrong with it, each with its place.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::{Args, Command, FromArgMatches};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::limits::process::CONFIG_BYTES;
use crate::settings::door::DoorSettings;
use crate::settings::keys::{self, Form, Key, Table};
use crate::settings::parameters::{self, Wrong};
use crate::settings::process::ProcessSettings;
use crate::settings::service::{Conflict, ServiceSettings, Settings, contradiction};
use crate::settings::spelling::nearest;
use crate::settings::store::{self, StoreSettings};
use crate::settings::values::{MOST_NAME_LENGTH, Name, Written, check};

/// What a file sets.
#[derive(Debug, Default)]
pub struct File {
    /// As it was named.
    pub path: PathBuf,
    /// What holds for the whole process.
    pub process: Values,
    /// What holds for each service, in the order of their names.
    pub services: BTreeMap<String, ServiceTable>,
}

/// What is set for a service.
#[derive(Debug)]
pub struct ServiceTable {
    /// Where its name stands.
    pub place: Place,
    /// What it says.
    pub values: Values,
    /// Whether all of it is understood.
    is_sound: bool,
}

/// What one table sets, by the names of the options. What is wrong is not among it.
pub type Values = BTreeMap<String, Given>;

/// What a key is given.
#[derive(Debug)]
pub struct Given {
    /// As options are given them.
    pub texts: Vec<OsString>,
    /// Where the key stands.
    pub place: Place,
}

/// A place in a file, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The character of the line.
    pub column: usize,
}

/// One thing that is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file, as it was named.
    pub path: PathBuf,
    /// Where in it.
    pub place: Option<Place>,
    /// What it is, and what is wanted.
    pub message: String,
}

impl Fault {
    fn line(&self) -> Option<usize> {
        self.place.map(|place| place.line)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.path.display())?;
        if let Some(Place { line, column }) = self.place {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.message)
    }
}

/// What a file has come to.
#[derive(Debug)]
pub struct Reading {
    /// What it sets.
    pub file: File,
    /// What holds if nothing else sets anything, with the services in which nothing is wrong.
    pub settings: Settings,
    /// All that is wrong with it, in its order.
    pub faults: Vec<Fault>,
}

impl Reading {
    /// Reads a file as far as it can be understood.
    ///
    /// # Errors
    /// None: what is in a file is checked before.
    pub fn new(path: &Path) -> Result<Reading, clap::Error> {
        match read(path) {
            Ok(text) => Reading::parse(path, &text),
            Err(message) => {
                let mut reading = Reading::parse(path, "")?;
                reading.faults = vec![Fault {
                    path: path.to_owned(),
                    place: None,
                    message,
                }];
                Ok(reading)
            }
        }
    }

    /// The same of a text that was read from there.
    fn parse(path: &Path, text: &str) -> Result<Reading, clap::Error> {
        let keys = keys::all();
        let mut reader = Reader {
            path,
            text,
            keys: &keys,
            faults: Vec::new(),
        };
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            reader.fault(error.span().unwrap_or_default(), error.message());
        }
        let mut faults = std::mem::take(&mut reader.faults);
        let file = reader.file(document.get_ref());
        // What is made of the rest of a broken line was not written so.
        let broken: Vec<_> = faults.iter().map(Fault::line).collect();
        let others = reader.faults.into_iter();
        faults.extend(others.filter(|fault| !broken.contains(&fault.line())));
        let (settings, conflicts) = file.settings()?;
        faults.extend(conflicts);
        faults.sort_by_key(|fault| fault.place.map(|place| (place.line, place.column)));
        Ok(Reading {
            file,
            settings,
            faults,
        })
    }
}

impl File {
    /// The options of a server, with what the file sets for a service as their defaults: so the
    /// command line and variables win over it.
    pub fn as_defaults(&self, service: &str, command: Command) -> Command {
        let service = self.services.get(service);
        command.mut_args(|option| {
            let name = option.get_long().unwrap_or_default();
            let of_service = service.and_then(|service| service.values.get(name));
            match of_service.or_else(|| self.process.get(name)) {
                Some(given) => option.default_values(given.texts.clone()),
                None => option,
            }
        })
    }

    /// What the file says when nothing else does, and what does not go together in it.
    fn settings(&self) -> Result<(Settings, Vec<Fault>), clap::Error> {
        let command = Command::new("").no_binary_name(true);
        let command = ProcessSettings::augment_args(ServiceSettings::augment_args(command));
        let command = command.mut_args(|option| option.env(Resettable::Reset));
        let parse = |service: &str| {
            let command = self.as_defaults(service, command.clone());
            command.try_get_matches_from([""; 0])
        };
        let process = ProcessSettings::from_arg_matches(&parse("")?)?;
        let mut services: Vec<ServiceSettings> = Vec::new();
        let mut faults = Vec::new();
        for (name, table) in self.services.iter().filter(|(_, table)| table.is_sound) {
            let mut service = ServiceSettings::from_arg_matches(&parse(name)?)?;
            service.name = name.clone();
            let mut conflicts = service.conflicts(&process, |option| format!("`{option}`"));
            conflicts.extend(services.iter().filter_map(|other| clash(&service, other)));
            for Conflict { option, message } in conflicts {
                let given = table
                    .values
                    .get(option)
                    .or_else(|| self.process.get(option));
                faults.push(Fault {
                    path: self.path.clone(),
                    place: Some(given.map_or(table.place, |given| given.place)),
                    message,
                });
            }
            services.push(service);
        }
        Ok((Settings { process, services }, faults))
    }
}

fn clash(service: &ServiceSettings, other: &ServiceSettings) -> Option<Conflict> {
    let mut own = service.listen.iter();
    let taken = |own: &&DoorSettings| {
        let mut others = other.listen.iter();
        others.any(|other| own.address.endpoint == other.address.endpoint)
    };
    if let Some(own) = own.find(|own| !own.address.is_any_port() && taken(own)) {
        let address = &own.address;
        return Some(Conflict {
            option: "listen",
            message: format!("`listen`: {address} is taken by [service.{}]", other.name),
        });
    }
    let mut stores = service.guest_settings.stores.iter();
    let contradicts = |own: &&StoreSettings| {
        let mut others = other.guest_settings.stores.iter();
        others.any(|other| own.contradicts(other))
    };
    let own = stores.find(contradicts)?;
    let theirs = format!("one of [service.{}]", other.name);
    Some(Conflict {
        option: "store",
        message: format!("`store`: {}", contradiction(own, &theirs)),
    })
}

fn read(path: &Path) -> Result<String, String> {
    let cannot = |error| format!("cannot read it: {error}");
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(cannot)?;
    let mut file = file.take(CONFIG_BYTES + 1);
    file.read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > CONFIG_BYTES {
        return Err(format!("it has more than {CONFIG_BYTES} bytes"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        format!("it is not UTF-8, from byte {at} on")
    })
}

/// Reads one file.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    keys: &'a [Key],
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn file(&mut self, document: &DeTable<'_>) -> File {
        let mut file = File {
            path: self.path.to_owned(),
            ..File::default()
        };
        for (name, value) in document {
            match (name.get_ref().as_ref(), value.get_ref()) {
                ("log", DeValue::Table(log)) => self.table(Table::Log, log, &mut file.process),
                ("limits", DeValue::Table(limits)) => {
                    self.table(Table::Limits, limits, &mut file.process);
                }
                ("service", DeValue::Table(services)) => {
                    for (name, value) in services {
                        self.service(name, value, &mut file.services);
                    }
                }
                ("log" | "limits" | "service", other) => {
                    let name = name.get_ref();
                    let message = format!("`{name}`: want a table, not {}", kind(other));
                    self.fault(value.span(), &message);
                }
                _ => self.key(Table::Top, name, value, &mut file.process),
            }
        }
        if file.services.is_empty() && self.faults.is_empty() {
            self.fault(0..0, "it has no service: want a table [service.NAME]");
        }
        file
    }

    fn service(
        &mut self,
        name: &Spanned<impl AsRef<str>>,
        value: &Spanned<DeValue<'_>>,
        services: &mut BTreeMap<String, ServiceTable>,
    ) {
        let text = name.get_ref().as_ref();
        if text.parse::<Name>().is_err() {
            let message = format!(
                "`{text}` is not a service's name: want at most {MOST_NAME_LENGTH} letters, digits, \
                 `-` and `_`"
            );
            return self.fault(name.span(), &message);
        }
        let DeValue::Table(table) = value.get_ref() else {
            let message = format!(
                "want a table [service.{text}], not {}",
                kind(value.get_ref())
            );
            return self.fault(name.span(), &message);
        };
        let mut values = Values::new();
        let before = self.faults.len();
        for (name, value) in table {
            match (name.get_ref().as_ref(), value.get_ref()) {
                ("door", DeValue::Array(doors)) => self.doors(text, doors, &mut values),
                ("door", other) => {
                    let message =
                        format!("want tables [[service.{text}.door]], not {}", kind(other));
                    self.fault(value.span(), &message);
                }
                ("store", DeValue::Table(stores)) => {
                    self.stores(text, stores, self.place(name.span()), &mut values);
                }
                _ => self.key(Table::Service, name, value, &mut values),
            }
        }
        let place = self.place(name.span());
        let table = ServiceTable {
            place,
            values,
            is_sound: self.faults.len() == before,
        };
        services.insert(text.to_owned(), table);
    }

    /// Each door becomes one more text of `listen`.
    fn doors(&mut self, service: &str, doors: &[Spanned<DeValue<'_>>], values: &mut Values) {
        for door in doors {
            let DeValue::Table(table) = door.get_ref() else {
                let what = kind(door.get_ref());
                let message = format!("want tables [[service.{service}.door]], not {what}");
                self.fault(door.span(), &message);
                continue;
            };
            let before = self.faults.len();
            let mut own = Values::new();
            self.table(Table::Door, table, &mut own);
            let place = self.place(door.span());
            if self.faults.len() > before {
                continue;
            }
            let made = parameters_of("door", "address", &own).and_then(|(address, parameters)| {
                DoorSettings::new(&address, &parameters)?;
                Ok(parameters::text(&address, &parameters))
            });
            self.add(made, &own, place, "listen", place, values);
        }
    }

    /// Each store becomes one more text of `store`.
    fn stores(&mut self, service: &str, stores: &DeTable<'_>, key: Place, values: &mut Values) {
        for (name, value) in stores {
            let text = name.get_ref();
            if let Err(message) = store::check_name(text) {
                self.fault(name.span(), &message);
                continue;
            }
            let (mut own, before) = (Values::new(), self.faults.len());
            let place = match value.get_ref() {
                DeValue::Table(table) => {
                    self.table(Table::Store, table, &mut own);
                    self.place(name.span())
                }
                DeValue::String(_) => self.place(value.span()),
                other => {
                    let message = format!(
                        "want a text, or a table [service.{service}.store.{text}], not {}",
                        kind(other)
                    );
                    self.fault(value.span(), &message);
                    continue;
                }
            };
            if self.faults.len() > before {
                continue;
            }
            let given = match value.get_ref().as_str() {
                Some(url) => {
                    let (url, parameters) = parameters::split(url);
                    Ok((url.to_owned(), parameters))
                }
                None => parameters_of("store", "url", &own),
            };
            let made = given.and_then(|(url, parameters)| {
                StoreSettings::new(text, &url, &parameters)?;
                Ok(format!("{text}={}", parameters::text(&url, &parameters)))
            });
            self.add(made, &own, place, "store", key, values);
        }
    }

    /// Adds what a table of its own comes to to the texts of an option, or says what is wrong with it.
    fn add(
        &mut self,
        made: Result<String, Wrong>,
        own: &Values,
        place: Place,
        option: &str,
        key: Place,
        values: &mut Values,
    ) {
        match made {
            Ok(text) => {
                let given = values.entry(option.to_owned());
                let given = given.or_insert_with(|| Given {
                    texts: Vec::new(),
                    place: key,
                });
                given.texts.push(text.into());
            }
            Err(wrong) => {
                let given = wrong.parameter.as_ref().and_then(|name| own.get(name));
                self.faults.push(Fault {
                    path: self.path.to_owned(),
                    place: Some(given.map_or(place, |given| given.place)),
                    message: wrong.to_string(),
                });
            }
        }
    }

    fn table(&mut self, table: Table, content: &DeTable<'_>, values: &mut Values) {
        for (name, value) in content {
            self.key(table, name, value, values);
        }
    }

    fn key(
        &mut self,
        table: Table,
        name: &Spanned<impl AsRef<str>>,
        value: &Spanned<DeValue<'_>>,
        values: &mut Values,
    ) {
        let text = name.get_ref().as_ref();
        let keys = self.keys;
        let known = keys
            .iter()
            .find(|key| key.table == table && key.name == text);
        let Some(key) = known else {
            let message = self.unknown(table, text);
            return self.fault(name.span(), &message);
        };
        match texts(key, value) {
            Ok(texts) => {
                let option = key.option_name().to_owned();
                let folder = self.path.parent().filter(|_| key.is_path());
                let texts = texts.into_iter().map(|text| match folder {
                    Some(folder) => folder.join(text).into_os_string(),
                    None => text.into(),
                });
                let given = Given {
                    texts: texts.collect(),
                    place: self.place(name.span()),
                };
                match values.entry(option) {
                    Entry::Vacant(entry) => {
                        entry.insert(given);
                    }
                    // The doors of tables.
                    Entry::Occupied(mut entry) => entry.get_mut().texts.extend(given.texts),
                }
            }
            Err((span, error)) => self.fault(span, &format!("`{text}`: {error}")),
        }
    }

    /// What is said about a key that is not known there.
    fn unknown(&self, table: Table, name: &str) -> String {
        let is_here = |key: &&Key| key.table == table;
        let elsewhere = self
            .keys
            .iter()
            .find(|key| !is_here(key) && (key.name == name || key.option_name() == name));
        if let Some(key) = elsewhere {
            let place = stands(key.table);
            return format!("`{name}` does not stand here: want `{}` {place}", key.name);
        }
        let here = self.keys.iter().filter(is_here);
        let here = here.map(|key| (key.name.as_str(), table));
        let tables = ["log", "limits", "service"].map(|name| (name, Table::Top));
        let tables = tables.into_iter().filter(|_| table == Table::Top);
        let elsewhere = self.keys.iter().map(|key| (key.name.as_str(), key.table));
        let near = nearest(name, here.chain(tables)).or_else(|| nearest(name, elsewhere));
        match near {
            Some((near, place)) if place == table => {
                format!("unknown key `{name}`: did you mean `{near}`?")
            }
            Some((near, place)) => {
                format!(
                    "unknown key `{name}`: did you mean `{near}` {}?",
                    stands(place)
                )
            }
            None => format!("unknown key `{name}`"),
        }
    }

    fn fault(&mut self, span: Range<usize>, message: &str) {
        self.faults.push(Fault {
            path: self.path.to_owned(),
            place: Some(self.place(span)),
            message: message.to_owned(),
        });
    }

    fn place(&self, span: Range<usize>) -> Place {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        Place {
            line: before.matches('\n').count() + 1,
            column: line.chars().count() + 1,
        }
    }
}

/// What a door or a store is as one text: its address, which the key `known_as` has, and the rest.
fn parameters_of(
    what: &str,
    known_as: &str,
    values: &Values,
) -> Result<(String, Vec<(String, String)>), Wrong> {
    let texts = |given: &Given| {
        let texts = given.texts.iter();
        texts
            .map(|text| text.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
    };
    let address = values.get(known_as).map(texts).unwrap_or_default();
    let [address] = &address[..] else {
        let message = format!("the {what} has no `{known_as}`");
        return Err(Wrong {
            parameter: None,
            message,
        });
    };
    let parameters = values.iter().filter(|(name, _)| *name != known_as);
    let parameters = parameters.flat_map(|(name, given)| {
        let texts = texts(given).into_iter();
        texts.map(|text| (name.clone(), text))
    });
    Ok((address.clone(), parameters.collect()))
}

fn stands(table: Table) -> String {
    match table {
        Table::Top => "before all tables".to_owned(),
        table => format!("in {}", table.header()),
    }
}

type Misfit = (Range<usize>, String);

/// A value, as its option would be given it.
fn texts(key: &Key, value: &Spanned<DeValue<'_>>) -> Result<Vec<String>, Misfit> {
    let wanted = |what: &str, value: &Spanned<DeValue<'_>>| {
        let message = format!("want {what}, not {}", kind(value.get_ref()));
        (value.span(), message)
    };
    let one = |written: &Written, value: &Spanned<DeValue<'_>>| {
        let text = match value.get_ref() {
            DeValue::String(text) if written.pattern.is_some() => text.to_string(),
            DeValue::Integer(number) if written.numbers.is_some() => {
                match i64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) => number.to_string(),
                    Err(_) => return Err(wanted(&written.what, value)),
                }
            }
            _ => return Err(wanted(&written.what, value)),
        };
        match check(&key.option, &text) {
            Ok(()) => Ok(text),
            Err(error) => {
                let error = error.unwrap_or_else(|| format!("want {}", written.what));
                let error = match error.starts_with("want") {
                    true => format!("{error}, not `{text}`"),
                    false => error,
                };
                Err((value.span(), error))
            }
        }
    };
    match (key.form(), value.get_ref()) {
        (Form::Flag, DeValue::Boolean(on)) => Ok(vec![on.to_string()]),
        (Form::Flag, _) => Err(wanted("true or false", value)),
        (Form::Choice(choices), given) => match given.as_str() {
            Some(text) if choices.iter().any(|choice| choice == text) => Ok(vec![text.to_owned()]),
            Some(text) => {
                let message = format!("want one of {}, not `{text}`", choices.join(", "));
                Err((value.span(), message))
            }
            None => Err(wanted(&format!("one of {}", choices.join(", ")), value)),
        },
        (Form::One(written), _) => Ok(vec![one(&written, value)?]),
        (Form::Many(written), DeValue::Array(values)) if !values.is_empty() => {
            values.iter().map(|value| one(&written, value)).collect()
        }
        (Form::Many(written), DeValue::Array(_)) => {
            Err((value.span(), format!("want at least one: {}", written.what)))
        }
        (Form::Many(written), _) => Ok(vec![one(&written, value)?]),
        (Form::Variables, DeValue::Table(variables)) => variables
            .iter()
            .map(|(name, value)| match value.get_ref() {
                _ if name.get_ref().is_empty() || name.get_ref().contains('=') => {
                    Err((name.span(), format!("`{}` is not a name", name.get_ref())))
                }
                DeValue::String(text) => Ok(format!("{}={text}", name.get_ref())),
                _ => Err(wanted(&format!("a text for `{}`", name.get_ref()), value)),
            })
            .collect(),
        (Form::Stores(_), _) => Err(wanted("a table { NAME = \"URL\" }", value)),
        (Form::Variables, _) => Err(wanted("a table { NAME = \"VALUE\" }", value)),
    }
}

/// What a value is, for people.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(true) => "true",
        DeValue::Boolean(false) => "false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
