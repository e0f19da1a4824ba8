//! Which sandbox a word means: a namespace's name or path, a process, or a container's id.

use std::path::Path;

use anyhow::{Context, bail};

use crate::container;
use crate::netns::{NAMED_DIR, Netns};

/// Containers that an error lists.
const NAMED_MAX: usize = 8;

/// A sandbox, as the API takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guest {
    /// A namespace by its name or path.
    Netns(String),
    /// That of a process.
    Pid(u32),
}

impl Guest {
    /// Finds what a word means.
    ///
    /// # Errors
    /// When it means nothing, or several containers.
    pub fn find(word: &str) -> anyhow::Result<Self> {
        if word.contains('/') {
            let path = std::path::absolute(word)?;
            return Ok(Self::Netns(path.display().to_string()));
        }
        if Path::new(NAMED_DIR).join(word).exists() {
            return Ok(Self::Netns(word.to_owned()));
        }
        if let Ok(pid) = word.parse()
            && Path::new("/proc").join(word).exists()
        {
            return Ok(Self::Pid(pid));
        }
        Ok(Self::Pid(process_of_container(word)?))
    }

    /// Opens it.
    ///
    /// # Errors
    /// When it is no namespace, or may not be entered.
    pub fn open(&self) -> anyhow::Result<Netns> {
        Ok(match self {
            Self::Netns(path) if path.contains('/') => Netns::from_path(path)?,
            Self::Netns(name) => Netns::from_name(name)?,
            Self::Pid(pid) => Netns::from_pid(*pid)?,
        })
    }
}

/// The first process of a container.
///
/// # Errors
/// When no container is meant, or several.
pub fn process_of_container(word: &str) -> anyhow::Result<u32> {
    let found = container::find(word).context("cannot read /proc")?;
    let mut all = found.iter();
    match (all.next(), all.next()) {
        (Some((_, pid)), None) => Ok(*pid),
        (Some(_), Some(_)) => {
            let ids: Vec<&str> = found.keys().map(String::as_str).take(NAMED_MAX).collect();
            bail!(
                "{} containers are '{word}': {}; give more of the id",
                found.len(),
                ids.join(", ")
            )
        }
        (None, _) => bail!(
            "there is no container, process or network namespace '{word}'; give a name of `ip netns`, a \
             path, a process id, or the id that `docker ps` or `podman ps` prints"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_nothing_is_named() {
        let error = Guest::find("cw-nobody").unwrap_err().to_string();
        assert!(
            error.contains("'cw-nobody'") && error.contains("docker ps"),
            "{error}"
        );
        let own = std::process::id();
        assert_eq!(Guest::find(&own.to_string()).unwrap(), Guest::Pid(own));
        let path = "/proc/self/ns/net";
        assert_eq!(Guest::find(path).unwrap(), Guest::Netns(path.to_owned()));
    }
}
