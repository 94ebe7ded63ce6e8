//! What happens in a run, as a text that can be kept: the seed and what of it is left.
//!
//! A seed alone means all that it makes up. A schedule that was shrunk names the faults that strike
//! one by one, leaves out clients and kinds of weather, and ends sooner:
//!
//! ```text
//! seed 588
//! salt 3
//! until 4200000
//! clients 0 4
//! calm late doubled
//! strike 1203344 Crash 9921837465
//! ```
//!
//! The salt stands for luck: a run with a message less has other delays, and what fails only with some
//! luck needs some tries. A strike is a time in microseconds, a fault, and the luck of choosing whom it hits.
//! Lines that begin with `#` are comments.

use crate::env::Micros;
use crate::faults::{CALMED, Fault};
use std::fmt;

/// One fault of a schedule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Strike {
    pub(crate) at: Micros,
    pub(crate) fault: Fault,
    pub(crate) luck: u64,
}

/// See the module's documentation.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Schedule {
    pub(crate) seed: u64,
    pub(crate) salt: u64,
    /// When the faults end; `None` as the seed says.
    pub(crate) until: Option<Micros>,
    /// Which clients send; `None` for all.
    pub(crate) clients: Option<Vec<usize>>,
    /// What of the weather is left out, by the names in [`CALMED`].
    pub(crate) calm: Vec<&'static str>,
    /// The faults; `None` for those that the seed makes up.
    pub(crate) strikes: Option<Vec<Strike>>,
}

impl Schedule {
    /// All that a seed makes up.
    pub(crate) fn of(seed: u64) -> Self {
        Schedule { seed, ..Schedule::default() }
    }

    /// Reads what [`Display`](fmt::Display) wrote.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut schedule = Schedule::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let bad = || format!("not a line of a schedule: {line}");
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).ok_or_else(bad);
            match words[0] {
                "seed" => schedule.seed = number(1)?,
                "salt" => schedule.salt = number(1)?,
                "until" => schedule.until = Some(number(1)?),
                "clients" => {
                    let clients: Result<Vec<_>, _> = (1..words.len()).map(number).collect();
                    schedule.clients = Some(clients?.into_iter().map(|client| client as usize).collect());
                }
                "calm" => {
                    for word in &words[1..] {
                        schedule.calm.push(CALMED.iter().find(|known| *known == word).ok_or_else(bad)?);
                    }
                }
                "strikes" => drop(schedule.strikes.get_or_insert_default()),
                "strike" => {
                    let fault = words.get(2).and_then(|name| Fault::named(name)).ok_or_else(bad)?;
                    let strike = Strike { at: number(1)?, fault, luck: number(3)? };
                    schedule.strikes.get_or_insert_default().push(strike);
                }
                _ => return Err(bad()),
            }
        }
        Ok(schedule)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        if self.salt != 0 {
            writeln!(f, "salt {}", self.salt)?;
        }
        if let Some(until) = self.until {
            writeln!(f, "until {until}")?;
        }
        if let Some(clients) = &self.clients {
            let clients: Vec<String> = clients.iter().map(usize::to_string).collect();
            writeln!(f, "clients {}", clients.join(" "))?;
        }
        if !self.calm.is_empty() {
            writeln!(f, "calm {}", self.calm.join(" "))?;
        }
        if let Some(strikes) = &self.strikes {
            writeln!(f, "# strikes: {}", strikes.len())?;
            writeln!(f, "strikes")?;
            for Strike { at, fault, luck } in strikes {
                writeln!(f, "strike {at} {fault:?} {luck}")?;
            }
        }
        Ok(())
    }
}

#[test]
fn a_schedule_reads_as_it_was_written() {
    let strike = Strike { at: 77, fault: Fault::Crash, luck: u64::MAX };
    let whole = Schedule {
        seed: 5,
        salt: 2,
        until: Some(9),
        clients: Some(vec![0, 3]),
        calm: vec!["late"],
        strikes: Some(vec![strike, Strike { at: 78, ..strike }]),
    };
    for schedule in [Schedule::of(4), Schedule { strikes: Some(Vec::new()), ..whole.clone() }, whole] {
        assert_eq!(Schedule::parse(&schedule.to_string()), Ok(schedule));
    }
    assert!(Schedule::parse("strike 1 Nonsense 2").is_err());
    assert!(Schedule::parse("seed many").is_err());
}
