//! `--listen [NAME=]ADDRESS`.

use std::str::FromStr;

use anyhow::{Result, bail};
use handoff::listeners::{Address, Spec};

/// The name of listeners that are not given one; the second is `http-2`.
const DEFAULT_NAME: &str = "http";

/// One `--listen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listen {
    name: Option<String>,
    address: Address,
}

impl FromStr for Listen {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        // A `=` in a path is not the end of a name.
        let (name, address) = match text.split_once('=') {
            Some((name, address)) if !name.contains([':', '/']) => (Some(name), address),
            _ => (None, text),
        };
        if let Some(name) = name
            && !is_name(name)
        {
            bail!("`{name}` is not a name for a listener: use a-z, 0-9, `_`, `.` and `-`");
        }
        Ok(Self {
            name: name.map(str::to_owned),
            address: address.parse()?,
        })
    }
}

pub(crate) fn is_name(name: &str) -> bool {
    let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-');
    !name.is_empty() && name.bytes().all(allowed)
}

/// The listeners with their names. A listener is the same one in the next generation if it bears the
/// same name, so a name depends on the order of the nameless ones and on nothing else.
///
/// # Errors
///
/// If two have the same.
pub(crate) fn specs(listens: &[Listen], backlog: u32) -> Result<Vec<Spec>> {
    let mut specs: Vec<Spec> = Vec::new();
    let mut nameless = 0;
    for listen in listens {
        let name = listen.name.clone().unwrap_or_else(|| {
            nameless += 1;
            match nameless {
                1 => DEFAULT_NAME.to_owned(),
                n => format!("{DEFAULT_NAME}-{n}"),
            }
        });
        if specs.iter().any(|spec| spec.name == name) {
            bail!(
                "two listeners are named `{name}`; give each its own, as in --listen {name}-b={}",
                listen.address
            );
        }
        let mut spec = Spec::new(name, listen.address.clone());
        spec.backlog = backlog;
        specs.push(spec);
    }
    Ok(specs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listens(texts: &[&str]) -> Result<Vec<(String, String)>> {
        let listens = texts
            .iter()
            .map(|text| text.parse())
            .collect::<Result<Vec<Listen>>>()?;
        let specs = specs(&listens, 1024)?;
        assert!(specs.iter().all(|spec| spec.backlog == 1024));
        Ok(specs
            .into_iter()
            .map(|spec| (spec.name, spec.address.to_string()))
            .collect())
    }

    fn named(name: &str, address: &str) -> (String, String) {
        (name.to_owned(), address.to_owned())
    }

    #[test]
    fn names_are_given_or_counted() {
        let texts = [
            "127.0.0.1:8321",
            "admin=[::1]:0",
            "unix:/run/a=b.sock",
            "old=unix:/run/x.sock",
            "./here=there",
        ];
        assert_eq!(
            listens(&texts).unwrap(),
            [
                named("http", "127.0.0.1:8321"),
                named("admin", "[::1]:0"),
                named("http-2", "unix:/run/a=b.sock"),
                named("old", "unix:/run/x.sock"),
                named("http-3", "unix:./here=there"),
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_a_remedy() {
        for (texts, expected) in [
            (vec!["8321"], "127.0.0.1:8321"),
            (vec!["localhost:80"], "names are not resolved"),
            (vec!["Admin=127.0.0.1:80"], "`Admin` is not a name"),
            (vec!["=127.0.0.1:80"], "`` is not a name"),
            (
                vec!["127.0.0.1:80", "http=127.0.0.1:81"],
                "--listen http-b=127.0.0.1:81",
            ),
        ] {
            let error = listens(&texts).unwrap_err();
            assert!(error.to_string().contains(expected), "{texts:?}: {error}");
        }
    }
}
