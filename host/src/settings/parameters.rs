//! Settings that are one text, an address with parameters (`unix:///run/airlock.sock?mode=0660`), or a
//! table of a file with the same as keys: doors, and stores.

use std::fmt;

use clap::builder::PossibleValue;
use clap::{Arg, ArgAction, Args, Command};
use form_urlencoded::Serializer;

use crate::settings::spelling::nearest;
use crate::settings::values::check;

/// What is wrong with one.
#[derive(Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The parameter that it is about, if it is one.
    pub parameter: Option<String>,
    /// What is wrong, and what is wanted.
    pub message: String,
}

impl Wrong {
    /// The address is.
    pub(super) fn address(message: String) -> Wrong {
        Wrong {
            parameter: None,
            message,
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.parameter {
            Some(parameter) => write!(f, "`{parameter}`: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// A Redis is spoken to through TLS, and nothing says what its certificate has to come from.
pub(super) fn no_ca() -> Wrong {
    let message = "rediss:// needs the certificates that the server's has to come from";
    Wrong {
        parameter: Some("ca".to_owned()),
        message: message.to_owned(),
    }
}

/// The settings `S` with these parameters, by their names. `known_as` is what the address is called
/// among them, and `fits` says which may stand beside it.
///
/// # Errors
/// Something is wrong with them.
pub(super) fn parse<S: Args>(
    known_as: &str,
    address: &str,
    parameters: &[(String, String)],
    fits: impl Fn(&str) -> Result<(), String>,
) -> Result<S, Wrong> {
    let command = S::augment_args(Command::new("").no_binary_name(true));
    for (number, (name, value)) in parameters.iter().enumerate() {
        let misfit = |message| Wrong {
            parameter: Some(name.clone()),
            message,
        };
        let option = option(&command, known_as, name).map_err(misfit)?;
        let is_list = matches!(option.get_action(), ArgAction::Append);
        if !is_list && parameters[..number].iter().any(|(other, _)| other == name) {
            return Err(misfit("is set twice".to_owned()));
        }
        fits(name).map_err(misfit)?;
        check(option, value)
            .map_err(|error| misfit(error.unwrap_or_else(|| no_choice(option, value))))?;
    }
    let options = parameters.iter();
    let options = options.map(|(name, value)| format!("--{name}={value}"));
    let options = options.chain([format!("--{known_as}={address}")]);
    let settings = command.try_get_matches_from(options);
    let settings = settings.and_then(|options| S::from_arg_matches(&options));
    settings.map_err(|error| Wrong::address(error.to_string()))
}

/// What to say of a value that is none of those that there are.
fn no_choice(option: &Arg, value: &str) -> String {
    let choices = option.get_possible_values();
    let choices: Vec<_> = choices.iter().map(PossibleValue::get_name).collect();
    match choices[..] {
        ["true", "false"] => format!("`{value}` is neither true nor false"),
        _ => format!("want one of {}, not `{value}`", choices.join(", ")),
    }
}

/// What is known of a parameter.
fn option<'a>(command: &'a Command, known_as: &str, name: &str) -> Result<&'a Arg, String> {
    let options = command.get_arguments();
    let known = options.filter_map(|option| Some((option.get_long()?, option)));
    let known: Vec<_> = known.filter(|(name, _)| *name != known_as).collect();
    if let Some((_, option)) = known.iter().find(|(known, _)| *known == name) {
        return Ok(option);
    }
    Err(match nearest(name, known.into_iter()) {
        Some((near, _)) => format!("unknown parameter: did you mean `{near}`?"),
        None => "unknown parameter".to_owned(),
    })
}

/// All of it as one text.
pub fn text(address: &str, parameters: &[(String, String)]) -> String {
    if parameters.is_empty() {
        return address.to_owned();
    }
    let mut query = Serializer::new(String::new());
    query.extend_pairs(parameters);
    format!("{address}?{}", query.finish())
}

/// The address of such a text, and its parameters.
pub(super) fn split(text: &str) -> (&str, Vec<(String, String)>) {
    let (address, query) = text.split_once('?').unwrap_or((text, ""));
    let parameters = form_urlencoded::parse(query.as_bytes());
    (address, parameters.into_owned().collect())
}
