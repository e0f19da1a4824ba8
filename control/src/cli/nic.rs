//! NICs of networks, on the command line.

use std::path::PathBuf;

use clap::Args;

use crate::api::types::{NetworkView, NicBody};

/// `--nic` of `network create` and `network set`.
#[derive(Debug, Args)]
pub struct NicArgs {
    /// A network card of the host that is a port of the network; 'none' takes it back
    #[arg(long, value_name = "IF|none")]
    pub nic: Option<String>,
    /// Move the host's addresses and routes from the card to a port of its own (cw-NAME)
    #[arg(long, requires = "nic")]
    pub take_address: bool,
    /// Undo the move unless `network confirm NAME` comes within so many seconds [default: 60]
    #[arg(long, value_name = "SECONDS", requires = "take_address")]
    pub confirm_within: Option<u32>,
    /// Keep the move without asking, for scripts
    #[arg(
        long,
        visible_alias = "yes",
        requires = "take_address",
        conflicts_with = "confirm_within"
    )]
    pub no_confirm: bool,
    /// All that leaves by the card carries its MAC, for a switch that admits one; wireless cards always
    /// have it so
    #[arg(long, requires = "nic")]
    pub mac_nat: bool,
    /// How the card is read: packet or xdp [default: packet]
    #[arg(long, value_name = "WORD", requires = "nic")]
    pub nic_backend: Option<String>,
}

impl NicArgs {
    /// As the API takes it.
    pub fn body(self) -> Option<NicBody> {
        Some(NicBody {
            name: self.nic?,
            take_address: self.take_address,
            confirm_within_seconds: self.confirm_within,
            no_confirm: self.no_confirm,
            mac_nat: self.mac_nat,
            backend: self.nic_backend,
        })
    }
}

/// `lifeline`
#[derive(Debug, Args)]
pub struct LifelineArgs {
    /// Where state is kept
    #[arg(long)]
    pub state_dir: PathBuf,
    /// Seconds to wait for a daemon
    #[arg(long)]
    pub within: u32,
}

/// What has to be done about a network that was made just now.
pub fn to_confirm(network: &NetworkView) -> Option<String> {
    let seconds = network.nic.as_ref()?.confirm_within_seconds?;
    Some(format!(
        "the host's addresses were moved, and go back in {seconds} s unless you run: causeway network \
         confirm {}",
        network.name
    ))
}
