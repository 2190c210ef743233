//! The guest's settings, from its environment. The server's `--env NAME=VALUE` sets them.

use std::env;
use std::time::Duration;

use crate::greeting::WELCOME;

/// Everything that can be set without a rebuild.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    /// `GREETING`: the first line a client sees.
    pub greeting: String,
    /// `DELAY_MS`: how long the guest works on each line, in milliseconds.
    pub delay: Duration,
}

impl Settings {
    /// Reads the settings. A value that cannot be used is reported on standard error, which is the
    /// server's log, and the default is used in its place.
    pub fn from_env() -> Settings {
        Settings::from(|name| env::var(name).ok())
    }

    fn from(var: impl Fn(&str) -> Option<String>) -> Settings {
        let delay_ms = var("DELAY_MS").map_or(0, |value| {
            value.parse().unwrap_or_else(|_| {
                eprintln!("DELAY_MS is `{value}`: want a whole number of milliseconds; using 0");
                0
            })
        });
        Settings {
            greeting: var("GREETING").unwrap_or_else(|| WELCOME.to_owned()),
            delay: Duration::from_millis(delay_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_set_gives_the_defaults() {
        let settings = Settings::from(|_| None);
        assert_eq!(settings.greeting, "Welcome!");
        assert_eq!(settings.delay, Duration::ZERO);
    }

    #[test]
    fn both_can_be_set_and_a_bad_delay_is_none() {
        let settings = Settings::from(|name| {
            Some(match name {
                "GREETING" => "Hi".to_owned(),
                _ => "250".to_owned(),
            })
        });
        assert_eq!(settings.greeting, "Hi");
        assert_eq!(settings.delay, Duration::from_millis(250));
        assert_eq!(
            Settings::from(|_| Some("soon".to_owned())).delay,
            Duration::ZERO
        );
    }
}
