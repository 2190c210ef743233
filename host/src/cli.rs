//! The command line, into what is to be done. The only place that reads arguments and environment.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::sandbox::compiler::child::Compile;
use crate::settings::Settings;
use crate::settings::effective::Sources;
use crate::settings::file::{Fault, File, Reading, Values};
use crate::settings::keys::{self, Table};
use crate::settings::process::ProcessSettings;
use crate::settings::schema::schema;
use crate::settings::service::{DEFAULT_NAME, GuestSettings, ServiceSettings};
use crate::settings::store::{StoreSettings, store};
use crate::settings::values::variable;
use crate::versions::guest_file::Fingerprint;

/// Has the guest's variables, one a line.
const ENVIRONMENT: &str = "AIRLOCK_ENV";

/// What is to be done.
#[derive(Debug)]
pub enum Task {
    /// Serve what these settings describe, which come from a file if there is one.
    Serve(Settings, Option<Box<Source>>),
    /// Say whether what is named would be served.
    Check(Box<Check>),
    /// Play conversations to a guest.
    Test(Test),
    /// Look into a store, or change it.
    Store(Box<Store>),
    /// Print this.
    Print(String),
    /// Compile a guest for a server.
    Compile(Compile),
}

/// What `airlock check` is given.
#[derive(Debug)]
pub struct Check {
    /// What is checked.
    pub what: Checked,
    /// Print one JSON object.
    pub json: bool,
}

/// What can be checked.
#[derive(Debug)]
pub enum Checked {
    /// A guest.
    Guest(PathBuf, GuestSettings),
    /// A file of settings, which has these faults, with its guests.
    File(Settings, Vec<Fault>),
}

/// What `airlock test` is given.
#[derive(Debug)]
pub struct Test {
    /// The component; without one it is the greeter.
    pub guest: Option<PathBuf>,
    /// What it may do and take.
    pub settings: GuestSettings,
    /// The conversations.
    pub scripts: Vec<PathBuf>,
    /// What stores have at the beginning of each, by their names: files with a line for each entry.
    pub contents: Vec<(String, PathBuf)>,
}

/// What `airlock store` is given.
#[derive(Debug)]
pub struct Store {
    /// The store, or a part of it.
    pub store: StoreSettings,
    /// What is done to it.
    pub action: StoreAction,
}

/// What can be done to a store.
#[derive(Debug)]
pub enum StoreAction {
    /// Print the value of this key.
    Get(String),
    /// Set a key to this value, or to what standard input has.
    Set(String, Option<String>),
    /// Print the keys.
    List,
    /// Print all entries.
    Export,
    /// Set those that standard input has.
    Import,
    /// Print what it holds.
    Stats,
}

/// Why nothing is done.
#[derive(Debug)]
pub enum Refusal {
    /// The command line or a variable is wrong, or help was asked for.
    Usage(clap::Error),
    /// All that is wrong with the file of settings.
    File(Vec<Fault>),
}

/// One line. The first fault of a file says what to do next.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The first paragraph of clap's report says it all; the rest is its advice to read the
            // help.
            Refusal::Usage(error) => {
                let report = error.to_string();
                let lines = report.lines().map(str::trim);
                let lines: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
                write!(f, "{}", lines.join(" ").trim_start_matches("error: "))
            }
            Refusal::File(faults) => {
                let (Some(first), count) = (faults.first(), faults.len()) else {
                    return Ok(());
                };
                write!(f, "{first}")?;
                match count {
                    ..=1 => Ok(()),
                    _ => {
                        let more = count - 1;
                        write!(f, " (and {more} more: airlock check --config has all)")
                    }
                }
            }
        }
    }
}

impl From<clap::Error> for Refusal {
    fn from(error: clap::Error) -> Refusal {
        Refusal::Usage(error)
    }
}

/// A TCP server whose logic is a sandboxed WebAssembly component.
///
/// Every connection gets a thread and an instance of the guest of its own. Without options the
/// built-in greeter is served: `Welcome!`, `Hello, NAME!` for every line, and `exit` to leave.
#[derive(Debug, Parser)]
#[command(
    name = "airlock",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true
)]
#[command(after_help = "Sizes are written like 64KiB, times like 500ms or 5m.")]
struct Cli {
    /// What to do instead of serving.
    #[command(subcommand)]
    command: Option<Command>,
    /// What `airlock` does when no subcommand is named.
    #[command(flatten)]
    serve: Serve,
}

/// What `airlock` does besides serving.
#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether a guest would be served, what it needs, and how long it takes to start; or all
    /// that is wrong with a file of settings
    Check(CheckOptions),
    /// Play conversations to a guest, without a network, and compare what it answers
    Test(TestOptions),
    /// Serve, and record every conversation: the same as --record
    Record(Box<Record>),
    /// Print the settings that hold, as a file that would set them, with where each comes from
    Config(Box<Config>),
    /// Look into a store, change it, and bring its content elsewhere
    #[command(subcommand)]
    Store(StoreOptions),
    /// Compile a guest for a server, which starts this by itself
    #[command(hide = true)]
    Compile(Compile),
}

/// The options of `airlock check`.
#[derive(Debug, Args)]
#[command(after_help = "The exit status is 0 when all would be served.")]
struct CheckOptions {
    /// The component; or with --config the service, if not all
    #[arg(value_name = "FILE.wasm|SERVICE", required_unless_present = "config")]
    what: Option<PathBuf>,

    /// Check this file of settings, and the guests that it names
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// What the guest may do and take.
    #[command(flatten)]
    guest: GuestSettings,
}

/// The options of `airlock test`.
#[derive(Debug, Args)]
#[command(
    after_help = "In a conversation `> text` is sent to the guest, `< text` is expected from \
    it, `<close` expects its close, and `#` starts a comment. A text with control characters stands \
    as a JSON string right after the mark: >\"two\\nlines\". What --record writes are such files. \
    The exit status is 0 when the guest answers as expected."
)]
struct TestOptions {
    /// The component; or with --config the service
    #[arg(value_name = "FILE.wasm|SERVICE")]
    what: PathBuf,

    /// The conversations
    #[arg(value_name = "SCRIPT", required = true)]
    scripts: Vec<PathBuf>,

    /// Take the service's guest, and what it may do and take, from this file of settings
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,

    /// Begin each conversation with this in a store, as `airlock store export` has printed it; repeatable
    #[arg(long, value_name = "STORE=FILE", value_parser = content)]
    content: Vec<(String, PathBuf)>,

    /// What the guest may do and take.
    #[command(flatten)]
    guest: GuestSettings,
}

/// The name of a store, and a file with its content.
fn content(text: &str) -> Result<(String, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("want STORE=FILE")?;
    Ok((name.to_owned(), file.into()))
}

/// What `airlock store` does, each to a store like file:/var/lib/airlock/book.db or
/// redis://127.0.0.1:6379 (?prefix=NAME for a part of it).
#[derive(Debug, Subcommand)]
enum StoreOptions {
    /// Print the value of a key, as it is
    Get {
        /// The store
        #[arg(value_name = "URL", value_parser = store_at)]
        store: StoreSettings,
        /// The key
        key: String,
    },
    /// Set the value of a key
    Set {
        /// The store
        #[arg(value_name = "URL", value_parser = store_at)]
        store: StoreSettings,
        /// The key
        key: String,
        /// The value [default: what standard input has]
        value: Option<String>,
    },
    /// Print the keys, one a line
    List {
        /// The store
        #[arg(value_name = "URL", value_parser = store_at)]
        store: StoreSettings,
    },
    /// Print all entries, a line of JSON each
    Export {
        /// The store
        #[arg(value_name = "URL", value_parser = store_at)]
        store: StoreSettings,
    },
    /// Set the entries of standard input, as `export` prints them
    Import {
        /// The store
        #[arg(value_name = "URL", value_parser = store_at)]
        store: StoreSettings,
    },
    /// Print how many entries there are, and what they take
    Stats {
        /// The store
        #[arg(value_name = "URL", value_parser = store_at)]
        store: StoreSettings,
    },
}

impl From<StoreOptions> for Store {
    fn from(options: StoreOptions) -> Store {
        let (store, action) = match options {
            StoreOptions::Get { store, key } => (store, StoreAction::Get(key)),
            StoreOptions::Set { store, key, value } => (store, StoreAction::Set(key, value)),
            StoreOptions::List { store } => (store, StoreAction::List),
            StoreOptions::Export { store } => (store, StoreAction::Export),
            StoreOptions::Import { store } => (store, StoreAction::Import),
            StoreOptions::Stats { store } => (store, StoreAction::Stats),
        };
        Store { store, action }
    }
}

/// A store that has no other name than its URL.
fn store_at(url: &str) -> Result<StoreSettings, String> {
    store(&format!("store={url}"))
}

/// The options of `airlock record`.
#[derive(Debug, Args)]
struct Record {
    /// The folder for the conversations, one file for each
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// Those of the server.
    #[command(flatten)]
    serve: Serve,
}

/// The options of `airlock config`.
#[derive(Debug, Args)]
struct Config {
    /// Print a JSON Schema of files of settings
    #[arg(long)]
    schema: bool,

    /// Those of the server.
    #[command(flatten)]
    serve: Serve,
}

/// The options of a server.
#[derive(Debug, Args)]
struct Serve {
    /// A file of settings, for several services; options and variables win over it
    #[arg(long, env = "AIRLOCK_CONFIG", value_name = "FILE.toml")]
    config: Option<PathBuf>,

    /// Those of what it serves.
    #[command(flatten)]
    service: ServiceSettings,

    /// Those of its process.
    #[command(flatten)]
    process: ProcessSettings,
}

/// Takes the process's arguments, and its variables: those that set options of a server only where
/// there is to be one, so that a wrong one does not stop `check` or `test`.
///
/// # Errors
/// What is wrong with them, or the help that was asked for.
pub fn from_process() -> Result<Task, Refusal> {
    let mut input = Input {
        arguments: env::args_os().collect(),
        command: Cli::command(),
        variables: Vec::new(),
    };
    input.read_environment()?;
    // No option of a server can stand before it.
    let subcommand = input.arguments.get(1);
    if subcommand.is_some_and(|name| input.command.find_subcommand(name).is_some()) {
        let command = input.command.clone();
        input.command = command.mut_args(|option| option.env(Resettable::Reset));
    }
    let matches = input.matches(None)?;
    let own = options(&matches);
    match Cli::from_arg_matches(&matches)?.command {
        None => input.serve(None),
        Some(Command::Record(record)) => input.serve(Some(record.folder)),
        Some(Command::Config(config)) if config.schema => {
            Ok(Task::Print(format!("{:#}\n", schema())))
        }
        Some(Command::Config(_)) => input.effective(own).map(Task::Print),
        Some(Command::Check(options)) => input.check(options, own),
        Some(Command::Test(options)) => input.test(options, own),
        Some(Command::Store(options)) => Ok(Task::Store(Box::new(options.into()))),
        Some(Command::Compile(options)) => Ok(Task::Compile(options)),
    }
}

/// Where the settings of a server come from besides its options and variables, which hold for as long
/// as it serves.
#[derive(Debug)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// What it was like before it was read.
    pub seen: Option<Fingerprint>,
    input: Input,
    record: Option<PathBuf>,
    /// What it set for the process at the start.
    process: Values,
}

impl Source {
    /// Reads the file again. Returns the settings that hold then, and the keys that can only be obeyed
    /// at a start.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn read(&self) -> Result<(Settings, Vec<String>), Refusal> {
        let (settings, file) = self.input.settings(self.record.as_deref())?;
        let now = file.map(|file| file.process).unwrap_or_default();
        let texts =
            |values: &Values, name: &String| values.get(name).map(|given| given.texts.clone());
        let names: BTreeSet<_> = self.process.keys().chain(now.keys()).collect();
        let changed = names
            .into_iter()
            .filter(|name| texts(&self.process, name) != texts(&now, name));
        Ok((settings, changed.cloned().collect()))
    }
}

/// What was said, and what may be said.
#[derive(Debug)]
struct Input {
    arguments: Vec<OsString>,
    command: clap::Command,
    /// The lines of `AIRLOCK_ENV`.
    variables: Vec<String>,
}

/// What is to be served, from all that says it: each service has its options, those of the file as
/// their defaults.
struct Merged {
    file: Option<File>,
    services: Vec<(String, ArgMatches)>,
}

impl Input {
    fn read_environment(&mut self) -> Result<(), clap::Error> {
        let text = env::var(ENVIRONMENT).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.is_empty());
        self.variables = lines.map(str::to_owned).collect();
        for line in &self.variables {
            if let Err(error) = variable(line) {
                let message = format!("{ENVIRONMENT}: `{line}`: {error}");
                return Err(self.error(ErrorKind::ValueValidation, message));
            }
        }
        Ok(())
    }

    fn error(&self, kind: ErrorKind, message: String) -> clap::Error {
        self.command.clone().error(kind, message)
    }

    /// The arguments and variables, over what a file has for a service.
    fn matches(&self, file: Option<(&File, &str)>) -> Result<ArgMatches, clap::Error> {
        let with_defaults = |mut command: clap::Command| {
            if let Some((file, service)) = file {
                command = file.as_defaults(service, command);
            }
            // clap has no options that a variable sets more than once.
            command.mut_args(|option| match option.get_id() == "env" {
                true if !self.variables.is_empty() => option.default_values(self.variables.clone()),
                _ => option,
            })
        };
        let command = with_defaults(self.command.clone()).mut_subcommands(with_defaults);
        command.try_get_matches_from(&self.arguments)
    }

    /// `own` are the options of the subcommand, if there is one.
    fn merged(&self, own: &ArgMatches) -> Result<Merged, Refusal> {
        let Some(path) = own.get_one::<PathBuf>("config") else {
            return Ok(Merged {
                file: None,
                services: vec![(DEFAULT_NAME.to_owned(), own.clone())],
            });
        };
        let Reading { file, faults, .. } = Reading::new(path)?;
        if !faults.is_empty() {
            return Err(Refusal::File(faults));
        }
        if file.services.len() > 1 {
            self.refuse_options_of_services(own, path)?;
        }
        let services = file.services.keys().map(|name| {
            let matches = self.matches(Some((&file, name)))?;
            Ok((name.clone(), options(&matches).clone()))
        });
        let services = services.collect::<Result<_, clap::Error>>()?;
        let file = Some(file);
        Ok(Merged { file, services })
    }

    /// Nobody could tell which service they are about.
    fn refuse_options_of_services(&self, own: &ArgMatches, file: &Path) -> Result<(), clap::Error> {
        for key in keys::all() {
            if key.table != Table::Service {
                continue;
            }
            let is_set = key.name == "env" && !self.variables.is_empty();
            let variable = is_set.then(|| ENVIRONMENT.to_owned());
            if let Some(name) = key.given_by(own).or(variable) {
                return Err(self.misplaced(&name, &key.name, file));
            }
        }
        Ok(())
    }

    fn misplaced(&self, name: &str, key: &str, file: &Path) -> clap::Error {
        let message = format!(
            "{name} belongs to one service, and `{}` has several: set `{key}` in the [service.NAME] \
             that is meant",
            file.display()
        );
        self.error(ErrorKind::ArgumentConflict, message)
    }

    fn serve(self, record: Option<PathBuf>) -> Result<Task, Refusal> {
        let matches = self.matches(None)?;
        let path = options(&matches).get_one::<PathBuf>("config").cloned();
        let seen = path.as_deref().and_then(Fingerprint::of);
        let (settings, file) = self.settings(record.as_deref())?;
        let source = file.map(|file| Source {
            path: file.path,
            seen,
            input: self,
            record,
            process: file.process,
        });
        Ok(Task::Serve(settings, source.map(Box::new)))
    }

    /// The settings that hold, and the file from which some come. `record` is where the conversations
    /// of the one service go, if that is asked for.
    fn settings(&self, record: Option<&Path>) -> Result<(Settings, Option<File>), Refusal> {
        let matches = self.matches(None)?;
        let own = options(&matches);
        let merged = self.merged(own)?;
        let mut settings = self.settings_of(&merged, own)?;
        if let Some(folder) = record {
            let [service] = &mut settings.services[..] else {
                let file = merged.file.map(|file| file.path).unwrap_or_default();
                return Err(self.misplaced("DIR", "record", &file).into());
            };
            service.record = Some(folder.to_owned());
        }
        Ok((settings, merged.file))
    }

    fn settings_of(&self, merged: &Merged, own: &ArgMatches) -> Result<Settings, Refusal> {
        // Each service has the same of the process.
        let options = merged.services.first().map_or(own, |(_, options)| options);
        let mut settings = Settings {
            process: ProcessSettings::from_arg_matches(options)?,
            services: Vec::new(),
        };
        for (name, options) in &merged.services {
            let mut service = ServiceSettings::from_arg_matches(options)?;
            service.name.clone_from(name);
            let conflicts = service.conflicts(&settings.process, |option| format!("--{option}"));
            if let Some(conflict) = conflicts.into_iter().next() {
                let kind = ErrorKind::ArgumentConflict;
                return Err(self.error(kind, conflict.message).into());
            }
            settings.services.push(service);
        }
        Ok(settings)
    }

    fn effective(&self, own: &ArgMatches) -> Result<String, Refusal> {
        let merged = self.merged(own)?;
        self.settings_of(&merged, own)?;
        let sources = Sources {
            services: &merged.services,
            file: merged.file.as_ref(),
            variables: (!self.variables.is_empty()).then_some(ENVIRONMENT),
        };
        Ok(sources.toml())
    }

    fn check(&self, options: CheckOptions, own: &ArgMatches) -> Result<Task, Refusal> {
        let json = options.json;
        let what = match (options.config, options.what) {
            (None, guest) => Checked::Guest(guest.unwrap_or_default(), options.guest),
            (Some(path), service) => {
                self.refuse_options_of_guests(own)?;
                let Reading {
                    file,
                    mut settings,
                    faults,
                } = Reading::new(&path)?;
                if let Some(name) = service {
                    let mut known = file.services.keys();
                    settings.services = match one_of(settings.services, &name) {
                        Ok(service) => vec![service],
                        // What is wrong with it is among the faults.
                        Err(_) if known.any(|known| Path::new(known) == name) => Vec::new(),
                        Err(error) => return Err(self.no_service(&path, error).into()),
                    };
                }
                Checked::File(settings, faults)
            }
        };
        Ok(Task::Check(Box::new(Check { what, json })))
    }

    fn test(&self, options: TestOptions, own: &ArgMatches) -> Result<Task, Refusal> {
        let (guest, settings) = match options.config {
            None => (Some(options.what), options.guest),
            Some(path) => {
                self.refuse_options_of_guests(own)?;
                let Reading {
                    settings, faults, ..
                } = Reading::new(&path)?;
                if !faults.is_empty() {
                    return Err(Refusal::File(faults));
                }
                let service = one_of(settings.services, &options.what);
                let service = service.map_err(|error| self.no_service(&path, error))?;
                (service.guest, service.guest_settings)
            }
        };
        let stores = || settings.stores.iter().map(|store| &*store.name);
        for (name, _) in &options.content {
            if !stores().any(|granted| granted == name) {
                let granted: Vec<_> = stores().collect();
                let message = match &granted[..] {
                    [] => "--content is for guests with stores: grant one with --store".to_owned(),
                    granted => format!(
                        "--content: the guest has no store `{name}`: it has {}",
                        granted.join(", ")
                    ),
                };
                return Err(self.error(ErrorKind::ArgumentConflict, message).into());
            }
        }
        Ok(Task::Test(Test {
            guest,
            settings,
            scripts: options.scripts,
            contents: options.content,
        }))
    }

    /// Beside a file of settings the commands that start no server take them from there alone.
    fn refuse_options_of_guests(&self, own: &ArgMatches) -> Result<(), clap::Error> {
        let options = GuestSettings::augment_args(clap::Command::new(""));
        let given = options.get_arguments().find(|option| {
            own.value_source(option.get_id().as_str()) == Some(ValueSource::CommandLine)
        });
        match given.and_then(clap::Arg::get_long) {
            None => Ok(()),
            Some(name) => {
                let message = format!("--{name} cannot be used with --config: the file has it");
                Err(self.error(ErrorKind::ArgumentConflict, message))
            }
        }
    }

    fn no_service(&self, file: &Path, error: String) -> clap::Error {
        let message = format!("`{}` {error}", file.display());
        self.error(ErrorKind::InvalidValue, message)
    }
}

/// Those of the subcommand, if there is one.
fn options(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, own)| own)
}

/// The service of this name; or else which there are.
fn one_of(services: Vec<ServiceSettings>, name: &Path) -> Result<ServiceSettings, String> {
    let names: Vec<_> = services
        .iter()
        .map(|service| service.name.clone())
        .collect();
    let service = services
        .into_iter()
        .find(|service| Path::new(&service.name) == name);
    service.ok_or_else(|| {
        let name = name.display();
        format!(
            "has no service `{name}` that could be served: it has {}",
            names.join(", ")
        )
    })
}

/// The variables that set options of a server.
pub fn variables() -> Vec<OsString> {
    let command = Cli::command();
    let options = command
        .get_arguments()
        .filter_map(|option| option.get_env());
    let environment = OsString::from(ENVIRONMENT);
    options.map(OsString::from).chain([environment]).collect()
}

/// Where the service manager listens (systemd's `NOTIFY_SOCKET`), if there is one.
pub fn service_manager() -> Option<PathBuf> {
    env::var_os("NOTIFY_SOCKET").map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::limits::process::Process;
    use crate::process::capacity::Capacity;

    #[test]
    fn the_command_line_is_well_formed_and_every_option_has_a_variable() {
        let command = Cli::command();
        command.clone().debug_assert();
        for option in command
            .get_arguments()
            .filter(|arg| arg.get_long().is_some())
        {
            let long = option.get_long().unwrap_or_default();
            if matches!(long, "help" | "version" | "env") {
                continue;
            }
            let expected = format!("AIRLOCK_{}", long.to_uppercase().replace('-', "_"));
            let variable = option.get_env().and_then(|name| name.to_str());
            assert_eq!(variable, Some(expected.as_str()));
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_limits() {
        let capacity = Capacity {
            connections: 1000,
            bound: "nothing",
            guest_memory_bytes: 4 << 30,
            mappings: u64::MAX,
            addresses: u64::MAX,
        };
        let Serve {
            service, process, ..
        } = Cli::parse_from(["airlock"]).serve;
        let settings = Settings {
            process,
            services: vec![service],
        };
        let process = Process {
            total_compile_memory_bytes: 4 << 30,
            ..Process::new(1000, 4 << 30)
        };
        let bounds = settings.bounds(capacity, false);
        assert_eq!(bounds, Ok((process, vec![Limits::new(1000)])));
    }
}
