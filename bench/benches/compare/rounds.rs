//! Rounds in which all servers take their turn, and the medians of what came of them.

use std::collections::BTreeSet;

use anyhow::{Chain, Result, anyhow};
use bench::cores::Cores;
use bench::measured::Measured;
use bench::plan::Plan;
use bench::progress::Progress;
use bench::servers::{Server, Subject};
use bench::turns::{self, Turns};
use bench::{options, report};
use clap::Parser;

use crate::Options;
use crate::measures::{Load, Row};

/// The medians of the servers, in their order, as far as they were able.
pub(crate) type Figures = Vec<Option<f64>>;

pub(crate) struct Rounds<'a> {
    options: &'a Options,
    /// Each server on one and the load on the others; without them, all on all.
    cores: Option<Cores>,
    /// What has been said.
    faults: BTreeSet<String>,
}

impl Rounds<'_> {
    pub(crate) fn new(options: &Options, cores: Option<Cores>) -> Rounds<'_> {
        Rounds {
            options,
            cores,
            faults: BTreeSet::new(),
        }
    }

    /// Loads every server in turn, and again in every round. The first `needed` of them have to be
    /// able.
    pub(crate) fn load(
        &mut self,
        arguments: &str,
        subjects: &[Subject],
        needed: usize,
    ) -> Result<Vec<Turns<Measured>>> {
        let plan = self.plan(arguments)?;
        let rounds = self.options.rounds;
        let progress = Progress::new(plan.duration * rounds * subjects.len() as u32);
        let cores = self.cores.as_ref();
        Ok(turns::load_in_turn(
            &plan, rounds, subjects, needed, cores, &progress,
        )?)
    }

    /// Does so for a load's rows.
    pub(crate) fn rows(
        &mut self,
        load: &'static Load,
        subjects: &[Subject],
        needed: usize,
    ) -> Result<Vec<(&'static Row, Figures)>> {
        let turns = self.load(load.arguments, subjects, needed)?;
        let rows = load.rows.iter();
        Ok(rows
            .map(|row| (row, self.medians(&turns, row.value)))
            .collect())
    }

    /// Starts every server in turn, which takes so many milliseconds.
    pub(crate) fn start_times(&mut self, subjects: &[Subject], needed: usize) -> Result<Figures> {
        let cores = self.cores.as_ref();
        let start = |_, subject: &Subject| Ok(Server::start(subject, cores)?.start_time);
        // The first start may compile something.
        let rounds = self.options.rounds + 1;
        let mut turns = turns::in_turn(subjects, needed, rounds, start)?;
        for times in turns.iter_mut().flatten() {
            times.remove(0);
        }
        Ok(self.medians(&turns, |time| time.as_secs_f64() * 1e3))
    }

    /// Says what went wrong with those that need not be able, once.
    pub(crate) fn medians<T>(&mut self, turns: &[Turns<T>], value: fn(&T) -> f64) -> Figures {
        let median = |turns: &Turns<T>| match turns {
            Ok(turns) => report::median(turns.iter().map(value).collect()),
            Err(fault) => {
                let causes: Vec<_> = Chain::new(fault).map(ToString::to_string).collect();
                let fault = causes.join(": ");
                if self.faults.insert(fault.clone()) {
                    eprintln!("{fault}");
                }
                None
            }
        };
        turns.iter().map(median).collect()
    }

    pub(crate) fn plan(&self, arguments: &str) -> Result<Plan> {
        let line = ["airlock-bench"].into_iter().chain(arguments.split(' '));
        let options = options::Options::try_parse_from(line)?;
        let plan = options.plan().map_err(|error| anyhow!(error))?;
        Ok(Plan {
            duration: self.options.duration.into(),
            ..plan
        })
    }
}
