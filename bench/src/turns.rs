//! One server under load, or several in turn, A B A B, because machines differ and are shared: the
//! ratio is what counts.

use std::path::Path;

use airlock::serve::scheduling::Scheduling;
use airlock::settings::address::{Address, Scheme};

use crate::cores::Cores;
use crate::door::Door;
use crate::fault::Fault;
use crate::load::{self, Target};
use crate::measured::Measured;
use crate::open::make_room;
use crate::plan::{Mode, Plan};
use crate::progress::Progress;
use crate::servers::{self, Server, Subject};
use crate::twin::Twin;

/// Loads the server at `address`.
///
/// # Errors
/// The connections could not be opened. What goes wrong after that is counted in the result.
pub fn measure(plan: &Plan, address: Address, progress: &Progress) -> Result<Measured, Fault> {
    let target = Target {
        address,
        cores: &[],
        process: None,
    };
    make_room(plan.connections)?;
    load::run(plan, &target, progress)
}

/// Two servers under the same load, round for round.
#[derive(Debug)]
pub struct Comparison {
    /// What both speak.
    pub scheme: Scheme,
    /// What Airlock is compared with.
    pub twin: Twin,
    /// The greeter's logic compiled in, and threads as Airlock's: one per connection, or one.
    pub native: Vec<Measured>,
    /// Airlock's.
    pub threads: Scheduling,
    /// Airlock's too, beside the default limits.
    pub options: Vec<String>,
    /// Airlock, with the greeter in its sandbox.
    pub airlock: Vec<Measured>,
}

/// Starts `airlock` as a server with these threads and options and `airlock_bench` as this twin with its
/// options, at the same kind of door, and loads them [in turn](load_in_turn).
///
/// # Errors
/// A server did not start, or one of its answers was wrong.
pub fn compare(
    plan: &Plan,
    rounds: u32,
    (scheme, twin): (Scheme, Twin),
    (airlock, threads, options): (&Path, Scheduling, &[String]),
    (airlock_bench, twin_options): (&Path, &[String]),
    progress: &Progress,
) -> Result<Comparison, Fault> {
    let door = Door::new(scheme)?;
    let subjects = [
        servers::native(airlock_bench, twin, &door, twin_options),
        servers::airlock(airlock, &door, threads, options),
    ];
    let cores = Cores::split()?;
    let turns = load_in_turn(plan, rounds, &subjects, 2, cores.as_ref(), progress)?;
    let runs: Result<Vec<_>, _> = turns.into_iter().collect();
    // Two servers, two results.
    let [native, airlock] = runs?.try_into().unwrap_or_default();
    Ok(Comparison {
        scheme,
        twin,
        native,
        threads,
        options: options.to_vec(),
        airlock,
    })
}

/// What came of it for one server: of all rounds, or why it could not go on.
pub type Turns<T> = Result<Vec<T>, Fault>;

/// Gives every server its turn in every round, and returns what came of it in the order of the
/// servers. One that fails gets no more turns.
///
/// # Errors
/// One of the first `needed` servers has failed.
pub fn in_turn<T>(
    subjects: &[Subject],
    needed: usize,
    rounds: u32,
    mut turn: impl FnMut(usize, &Subject) -> Result<T, Fault>,
) -> Result<Vec<Turns<T>>, Fault> {
    let mut results: Vec<Turns<T>> = subjects.iter().map(|_| Ok(Vec::new())).collect();
    for _ in 0..rounds {
        for (number, subject) in subjects.iter().enumerate() {
            if let Ok(values) = &mut results[number] {
                match turn(number, subject) {
                    Ok(value) => values.push(value),
                    Err(fault) if number < needed => return Err(fault),
                    Err(fault) => results[number] = Err(fault),
                }
            }
        }
    }
    Ok(results)
}

/// Loads the servers [in turn](in_turn), each on its core and the load on the others.
///
/// # Errors
/// One of the first `needed` servers has failed, or this process may not open so many connections.
pub fn load_in_turn(
    plan: &Plan,
    rounds: u32,
    subjects: &[Subject],
    needed: usize,
    cores: Option<&Cores>,
    progress: &Progress,
) -> Result<Vec<Turns<Measured>>, Fault> {
    make_room(plan.connections)?;
    // What a server keeps of connections that have ended would be missing in the next measure of its
    // memory: then there is a new one for each turn.
    let keep = plan.mode != Mode::Hold;
    let before = plan.before();
    let start = |subject: &Subject| {
        let server = Server::start(subject, cores)?;
        if let Some(before) = &before {
            round(before, &server, progress)?;
        }
        Ok::<_, Fault>(server)
    };
    let mut running: Vec<_> = subjects
        .iter()
        .map(|subject| keep.then(|| start(subject)))
        .collect();
    in_turn(subjects, needed, rounds, |number, subject| {
        let server = running[number].take().unwrap_or_else(|| start(subject))?;
        let measured = round(plan, &server, progress)?;
        running[number] = keep.then_some(Ok(server));
        Ok(measured)
    })
}

/// Loads a server of ours once.
fn round(plan: &Plan, server: &Server, progress: &Progress) -> Result<Measured, Fault> {
    let name = server.name;
    let of = |fault| Fault::Of(name, Box::new(fault));
    progress.now(name);
    let mut measured = load::run(plan, &server.target(), progress).map_err(of)?;
    match measured.fault.take() {
        Some(fault) => Err(of(fault)),
        None => Ok(measured),
    }
}
