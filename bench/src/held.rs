//! Memory that large tables take, each in a process of its own: one that has had others before has room left
//! over from them, and a table that takes it seems to take none.

use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde::de::DeserializeOwned;

use crate::core_alone;

/// A table that is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Table {
    /// A million sessions of the NAT.
    Sessions,
    /// A million stations of the FDB.
    Stations,
}

/// The command of this program that fills a table.
const COMMAND: &str = "held";

/// Fills a table and prints what it took.
///
/// # Errors
/// When it cannot be printed.
pub fn print(table: Table) -> serde_json::Result<()> {
    let held = match table {
        Table::Sessions => serde_json::to_string(&core_alone::million_sessions()),
        Table::Stations => serde_json::to_string(&core_alone::million_stations()),
    };
    println!("{}", held?);
    Ok(())
}

/// Has a process of its own fill a table.
///
/// # Errors
/// When this program cannot be started again, or ends without an answer.
pub(crate) fn of<T: DeserializeOwned>(table: Table) -> anyhow::Result<T> {
    let word = table.to_possible_value().context("each table has a name")?;
    let program = std::env::current_exe().context("this program cannot be found")?;
    let mut command = Command::new(program);
    let output = command
        .args([COMMAND, word.get_name()])
        .stderr(Stdio::inherit())
        .output()
        .context("this program cannot be started again")?;
    ensure!(
        output.status.success(),
        "'{COMMAND} {}' ended: {}",
        word.get_name(),
        output.status
    );
    serde_json::from_slice(&output.stdout).context("what it printed is no figure")
}
