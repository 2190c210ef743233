//! The kinds of values that settings have: how they are written, and their bounds.

use std::any::TypeId;
use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::Resettable;
use clap::{Arg, Command};
use ipnet::IpNet;

use crate::serve::listener::MOST_BACKLOG;
use crate::serve::scheduling::{self, Scheduling};
use crate::settings::address::Address;
use crate::settings::store_url::StoreUrl;
use crate::versions::canary::Share;

/// A number of bytes, from `LEAST` to `MOST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size<const LEAST: u64, const MOST: u64>(u64);

/// The size of a line or a reply. What one connection holds stays far below the machine's memory.
pub type MessageSize = Size<1, { 1 << 30 }>;
/// The size of a linear memory: a page at least, and at most what 32 bits address.
pub type MemorySize = Size<{ 64 << 10 }, { 4 << 30 }>;
/// The memory of a compiler, which has 100 MiB of addresses before it has read a guest.
pub type CompileSize = Size<{ 256 << 20 }, { u64::MAX }>;
/// The size of a store: room for a few values at least.
pub type StoreSize = Size<{ 1 << 20 }, { 1 << 40 }>;
/// Any size.
pub type AnySize = Size<0, { u64::MAX }>;

impl<const LEAST: u64, const MOST: u64> Size<LEAST, MOST> {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// In bytes, at most as many as this machine can address.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl<const LEAST: u64, const MOST: u64> From<u64> for Size<LEAST, MOST> {
    /// For defaults, which are not checked.
    fn from(bytes: u64) -> Self {
        Size(bytes)
    }
}

impl<const LEAST: u64, const MOST: u64> From<usize> for Size<LEAST, MOST> {
    fn from(bytes: usize) -> Self {
        Size(bytes as u64)
    }
}

impl<const LEAST: u64, const MOST: u64> FromStr for Size<LEAST, MOST> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size: ByteSize = text
            .parse()
            .map_err(|_| "want a size like 64KiB or 65536".to_owned())?;
        match size.as_u64() {
            bytes if (LEAST..=MOST).contains(&bytes) => Ok(Size(bytes)),
            _ => Err(format!("want {}", between::<LEAST, MOST>())),
        }
    }
}

impl<const LEAST: u64, const MOST: u64> Size<LEAST, MOST> {
    fn written() -> Written {
        Written {
            numbers: Some(LEAST..=MOST),
            ..text(
                &format!("a size like \"64KiB\", {}", between::<LEAST, MOST>()),
                Some("^[0-9]+(\\.[0-9]+)? *([kKmMgGtTpPeE][iI]?)?[bB]?$"),
            )
        }
    }
}

fn between<const LEAST: u64, const MOST: u64>() -> String {
    let [least, most] = [AnySize::from(LEAST), AnySize::from(MOST)];
    match MOST {
        u64::MAX if LEAST == 0 => "any".to_owned(),
        u64::MAX => format!("at least {least}"),
        _ => format!("from {least} to {most}"),
    }
}

impl<const LEAST: u64, const MOST: u64> fmt::Display for Size<LEAST, MOST> {
    /// Exact, in the largest unit of which it is so many.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let fitting = units
            .into_iter()
            .find(|(_, shift)| self.0 > 0 && self.0.trailing_zeros() >= *shift);
        let (unit, shift) = fitting.unwrap_or(("B", 0));
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

/// How many: from 1 to `MOST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count<const MOST: u32 = { u32::MAX }>(u32);

impl<const MOST: u32> Count<MOST> {
    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl<const MOST: u32> FromStr for Count<MOST> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(count) if (1..=MOST).contains(&count) => Ok(Count(count)),
            _ => Err(format!("want a number from 1 to {MOST}")),
        }
    }
}

impl<const MOST: u32> Count<MOST> {
    fn written() -> Written {
        Written {
            what: format!("a number from 1 to {MOST}"),
            numbers: Some(1..=u64::from(MOST)),
            ..Written::default()
        }
    }
}

/// The mode of a file: who may read and write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode(u32);

impl Mode {
    /// Its nine bits.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match u32::from_str_radix(text, 8) {
            Ok(bits @ 0..=0o777) if text.len() >= 3 => Ok(Mode(bits)),
            _ => Err("want a mode like 0660".to_owned()),
        }
    }
}

/// A page whose scripts may connect, as browsers name it: `https://example.org`; or any, `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(String);

impl Origin {
    /// As browsers write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let host = text.split_once("://").map(|(_, host)| host);
        match host {
            Some(host) if !host.is_empty() && !host.contains('/') => {}
            _ if text == "*" => {}
            _ => return Err("want an origin like https://example.org, or *".to_owned()),
        }
        Ok(Origin(text.to_owned()))
    }
}

/// What something is called, in the log and elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

/// Names stand in every line of the log.
pub(super) const MOST_NAME_LENGTH: usize = 64;

impl Name {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_part = |char: char| char.is_ascii_alphanumeric() || "-_".contains(char);
        let is_name = (1..=MOST_NAME_LENGTH).contains(&text.len()) && text.chars().all(is_part);
        let wanted = || format!("want at most {MOST_NAME_LENGTH} letters, digits, `-` and `_`");
        is_name.then(|| Name(text.to_owned())).ok_or_else(wanted)
    }
}

impl Address {
    pub(super) fn written() -> Written {
        text(
            "an address like \"127.0.0.1:9999\", \"[::1]:9999\" or \"unix:///run/airlock.sock\"",
            Some("^(unix:[^?]*/[^?]+|((tcp|tls)://)?[^/?]+:[0-9]{1,5})$"),
        )
    }
}

impl StoreUrl {
    pub(super) fn written() -> Written {
        Written {
            what: format!(
                "\"memory:\", a file like \"{}\", or a Redis like \"redis://127.0.0.1:6379\"",
                StoreUrl::FILE
            ),
            pattern: Some("^(memory:|file:/[^?]+|redis(s|\\+unix)?://[^?]+)$"),
            ..Written::default()
        }
    }
}

/// Addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(pub IpNet);

impl FromStr for Network {
    type Err = String;

    /// One address alone is one too.
    fn from_str(text: &str) -> Result<Self, String> {
        let network = text.parse().ok();
        let network = network.or_else(|| text.parse().map(|ip: IpAddr| ip.into()).ok());
        let network = network.map(|network: IpNet| Network(network.trunc()));
        network.ok_or_else(|| "want a network like 10.0.0.0/8, or an address".to_owned())
    }
}

/// How a value is written in a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// For people.
    pub what: String,
    /// The texts that may be one, as a regular expression of JSON Schema.
    pub pattern: Option<&'static str>,
    /// The numbers that may be one.
    pub numbers: Option<RangeInclusive<u64>>,
    /// Whether it names a file or folder.
    pub is_path: bool,
}

/// How the values of an option are written; nothing where its kind is not known here.
pub fn written(option: &Arg) -> Written {
    let kinds: [(TypeId, fn() -> Written); 18] = [
        (TypeId::of::<MessageSize>(), MessageSize::written),
        (TypeId::of::<MemorySize>(), MemorySize::written),
        (TypeId::of::<CompileSize>(), CompileSize::written),
        (TypeId::of::<StoreSize>(), StoreSize::written),
        (TypeId::of::<StoreUrl>(), StoreUrl::written),
        (TypeId::of::<AnySize>(), AnySize::written),
        (TypeId::of::<Count>(), <Count>::written),
        (
            TypeId::of::<Count<MOST_BACKLOG>>(),
            Count::<MOST_BACKLOG>::written,
        ),
        (TypeId::of::<humantime::Duration>(), || {
            let what = "a time with its unit, like \"30s\" or \"5m\"";
            text(what, Some("^([0-9]+ *[a-zA-Zµ]+ *)+$"))
        }),
        (TypeId::of::<Address>(), Address::written),
        (TypeId::of::<Mode>(), || {
            text("a mode like \"0660\"", Some("^0?[0-7]{3}$"))
        }),
        (TypeId::of::<Origin>(), || {
            let what = "an origin like \"https://example.org\", or \"*\"";
            text(what, Some("^([a-z]+://[^/]+|\\*)$"))
        }),
        (TypeId::of::<Network>(), || {
            text(
                "a network like \"10.0.0.0/8\", or an address",
                Some("^[0-9a-fA-F.:]+(/[0-9]+)?$"),
            )
        }),
        (TypeId::of::<String>(), || text("a name", Some("."))),
        (TypeId::of::<Name>(), || {
            text("a name", Some("^[A-Za-z0-9_-]{1,64}$"))
        }),
        (TypeId::of::<Share>(), || {
            let what = "a share and a time, like \"10:5m\"";
            text(what, Some("^[1-9][0-9]?%*:.+$"))
        }),
        (TypeId::of::<Scheduling>(), || Written {
            numbers: Some(1..=scheduling::MOST as u64),
            ..text(
                "\"per-connection\", \"auto\" or a number",
                Some("^(per-connection|auto|[0-9]+)$"),
            )
        }),
        (TypeId::of::<PathBuf>(), || Written {
            is_path: true,
            ..text("a path, relative to this file", Some("."))
        }),
    ];
    let kind = option.get_value_parser().type_id();
    let known = kinds.iter().find(|(known, _)| kind == *known);
    known.map_or_else(Written::default, |(_, written)| written())
}

fn text(what: &str, pattern: Option<&'static str>) -> Written {
    Written {
        what: what.to_owned(),
        pattern,
        ..Written::default()
    }
}

/// What an option says about a value: what is wrong with it, if it has words for that.
pub(super) fn check(option: &Arg, text: &str) -> Result<(), Option<String>> {
    let option = option.clone().env(Resettable::Reset);
    let long = option.get_long().unwrap_or_default();
    let argument = format!("--{long}={text}");
    let command = Command::new("").no_binary_name(true).arg(option);
    match command.try_get_matches_from([argument]) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.source().map(ToString::to_string)),
    }
}

/// A variable for a guest, `NAME=VALUE`.
///
/// # Errors
/// It has no name, or nothing that is set.
pub fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("want NAME=VALUE".to_owned()),
    }
}

/// A time as options have it: with its unit, more than none, at most a year.
///
/// # Errors
/// What is wanted instead.
pub fn time(text: &str) -> Result<humantime::Duration, String> {
    const MOST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    let time: humantime::Duration = text
        .parse()
        .map_err(|_| "want a time with its unit, like 500ms, 30s or 5m".to_owned())?;
    match *time {
        Duration::ZERO => Err("want more than no time at all".to_owned()),
        time if time > MOST => Err("want at most a year".to_owned()),
        _ => Ok(time),
    }
}

/// A time that the kernel counts in seconds, and has two bytes for.
///
/// # Errors
/// What is wanted instead.
pub fn seconds(text: &str) -> Result<humantime::Duration, String> {
    let time = time(text)?;
    match time.as_secs() {
        1..=32_400 if time.subsec_nanos() == 0 => Ok(time),
        _ => Err("want whole seconds, from 1s to 9h".to_owned()),
    }
}

/// The share of a canary, `PERCENT:TIME`.
///
/// # Errors
/// What is wanted instead.
pub fn share(text: &str) -> Result<Share, String> {
    let parts = text.split_once(':').and_then(|(percent, duration)| {
        let percent = percent.trim_end_matches('%').parse().ok()?;
        Some((percent, duration))
    });
    let Some((percent, duration)) = parts else {
        return Err("want PERCENT:DURATION, like 10:5m".to_owned());
    };
    if !(1..=99).contains(&percent) {
        return Err(format!("{percent} is not a share: want 1 to 99 percent"));
    }
    Ok(Share {
        percent,
        time: *time(duration)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_have_units_and_bounds() {
        let size = |text: &str| text.parse().map(MessageSize::bytes);
        assert_eq!(size("64KiB"), Ok(65536));
        assert_eq!(size("10"), Ok(10));
        assert_eq!(size("2GiB"), Err("want from 1B to 1GiB".to_owned()));
        assert!(size("0").is_err() && size("many").is_err());
        let memory = |text: &str| text.parse::<MemorySize>();
        assert!(memory("1KiB").is_err() && memory("5GiB").is_err() && memory("4GiB").is_ok());
        assert_eq!(
            time("500ms").map(|time| *time),
            Ok(Duration::from_millis(500))
        );
        assert!(time("0s").is_err() && time("5").is_err() && time("9000y").is_err());
    }

    #[test]
    fn a_size_is_shown_as_it_may_be_written() {
        for text in ["0B", "1B", "1025B", "64KiB", "65MiB", "3GiB"] {
            let size: AnySize = text.parse().expect("a size");
            assert_eq!(size.to_string(), text);
        }
    }

    #[test]
    fn a_share_is_a_percentage_and_a_time() {
        let of = |percent, seconds| Share {
            percent,
            time: Duration::from_secs(seconds),
        };
        assert_eq!(share("10:5m"), Ok(of(10, 300)));
        assert_eq!(share("99%:1s"), Ok(of(99, 1)));
        for wrong in [
            "", "10", "10:", ":5m", "0:5m", "100:5m", "-1:5m", "10:0s", "10:5", "10:9000y",
        ] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
