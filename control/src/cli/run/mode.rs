//! Which network namespace a program is to have, as Docker's words for it say.

use anyhow::{Context, bail};

use super::RunArgs;
use crate::config::DEFAULT_NETWORK;

/// What precedes the name of a sandbox that is shared.
const SHARED_PREFIX: &str = "container:";

/// Which network namespace a program is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One of its own, with an endpoint on each of these networks.
    Networks(Vec<String>),
    /// One of its own, with nothing but lo.
    None,
    /// That of the caller.
    Host,
    /// That of somebody else.
    Shared(String),
}

impl Mode {
    /// Reads what `--network` says, and refuses what has no meaning without a network.
    ///
    /// # Errors
    /// When words contradict each other.
    pub fn of(args: &RunArgs) -> anyhow::Result<Self> {
        let mode = read(&args.network)?;
        if let Self::Networks(_) = mode {
            return Ok(mode);
        }
        let meaningless = [
            (!args.publish.is_empty(), "--publish"),
            (args.publish_all, "--publish-all"),
            (!args.link.is_empty(), "--link"),
            (!args.alias.is_empty(), "--alias"),
            (args.name.is_some(), "--name"),
            (args.ip.is_some(), "--ip"),
            (args.ip6.is_some(), "--ip6"),
            (args.mac.is_some(), "--mac"),
        ];
        match meaningless.iter().find(|(given, _)| *given) {
            Some((_, option)) => bail!(
                "{option} means nothing without a network of its own; add --network NAME, \
                 `causeway network ls` lists those that there are"
            ),
            None => Ok(mode),
        }
    }

    /// Whether a namespace is made for the program.
    pub const fn makes_sandbox(&self) -> bool {
        match self {
            Self::Networks(_) | Self::None => true,
            Self::Host | Self::Shared(_) => false,
        }
    }
}

fn read(words: &[String]) -> anyhow::Result<Mode> {
    let special = |word: &&String| {
        ["none", "host"].contains(&word.as_str()) || word.starts_with(SHARED_PREFIX)
    };
    let Some(word) = words.iter().find(special) else {
        return Ok(match words {
            [] => Mode::Networks(vec![DEFAULT_NETWORK.to_owned()]),
            names => Mode::Networks(names.to_vec()),
        });
    };
    if words.len() > 1 {
        bail!("--network {word} stands alone; leave the others out, or {word}");
    }
    Ok(match word.as_str() {
        "none" => Mode::None,
        "host" => Mode::Host,
        word => {
            let name = word.strip_prefix(SHARED_PREFIX).unwrap_or_default();
            let name = Some(name).filter(|name| !name.is_empty());
            Mode::Shared(
                name.context("--network container: lacks a name; add it")?
                    .to_owned(),
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(words: &[&str]) -> Result<Mode, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        read(&words).map_err(|error| error.to_string())
    }

    #[test]
    fn modes_are_read_as_docker_writes_them() {
        let usual = Mode::Networks(vec!["default".to_owned()]);
        assert_eq!(mode(&[]), Ok(usual));
        assert_eq!(mode(&["none"]), Ok(Mode::None));
        assert_eq!(mode(&["host"]), Ok(Mode::Host));
        let shared = Mode::Shared("web:1".to_owned());
        assert_eq!(mode(&["container:web:1"]), Ok(shared));
        let both = Mode::Networks(vec!["web".to_owned(), "db".to_owned()]);
        assert_eq!(mode(&["web", "db"]), Ok(both));
        for (wrong, part) in [
            (&["web", "host"][..], "--network host stands alone"),
            (&["none", "none"], "--network none stands alone"),
            (&["container:"], "lacks a name"),
        ] {
            assert!(mode(wrong).unwrap_err().contains(part), "{wrong:?}");
        }
    }
}
