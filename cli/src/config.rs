//! The configuration file: TOML, with the names that the options of `hello serve` have.
//!
//! Command line beats environment beats file beats default. There is one definition of an option, in `args`: a value of the
//! file is checked by the option's own parser, and then takes the place of its default. Only listeners are written
//! otherwise, as a table by name.
//!
//! All that is wrong is said at once, each with its line and column; nothing of a file with a mistake is used.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Result;
use handoff::listeners::{BindError, Spec};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

mod listeners;
mod settings;
#[cfg(test)]
mod tests;

/// The table of listeners.
const LISTENERS: &str = "listeners";

/// How alike an unknown key and a known one must be for the question whether that was meant (`strsim`'s scale of 0 to 1).
const ALIKE: f64 = 0.8;

/// A configuration file that was read, and is well.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    path: PathBuf,
    settings: Vec<settings::Setting>,
    listeners: Vec<listeners::Entry>,
}

/// Where in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl Place {
    /// Both from 1; a column is a character.
    fn of(text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// One thing that is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    place: Option<Place>,
    problem: String,
}

/// Why a file cannot be used.
#[derive(Debug)]
pub(crate) struct ConfigError {
    path: PathBuf,
    mistakes: Vec<Mistake>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Mistake { place, problem }) in self.mistakes.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            let path = self.path.display();
            match place {
                Some(Place { line, column }) => write!(f, "{path}:{line}:{column}: {problem}")?,
                None => write!(f, "{path}: {problem}")?,
            }
        }
        Ok(())
    }
}

/// The text being read, and what was found wrong with it so far.
struct Reader<'a> {
    text: &'a str,
    /// What relative paths in the file are relative to.
    directory: &'a Path,
    mistakes: Vec<Mistake>,
}

impl Reader<'_> {
    fn place(&self, span: &Range<usize>) -> Place {
        Place::of(self.text, span.start)
    }

    fn mistake(&mut self, span: &Range<usize>, problem: impl Into<String>) {
        let place = Some(self.place(span));
        let problem = problem.into();
        self.mistakes.push(Mistake { place, problem });
    }

    fn not_toml(&self, error: &toml::de::Error) -> Mistake {
        let span = error.span();
        let found = span.clone().and_then(|span| self.text.get(span));
        let problem = match (error.message(), found) {
            ("duplicate key", Some(key)) => {
                format!("`{key}` is there for the second time: remove or rename one")
            }
            (message, _) => format!("this is not TOML: {message}"),
        };
        let place = span.map(|span| self.place(&span));
        Mistake { place, problem }
    }

    fn unknown(&mut self, key: &Spanned<toml::de::DeString<'_>>, known: &[&str], what: &str) {
        let name = key.get_ref();
        let alike = |known: &&str| strsim::jaro_winkler(name, known);
        let nearest = known
            .iter()
            .copied()
            .max_by(|a, b| alike(a).total_cmp(&alike(b)));
        let remedy = match nearest.filter(|nearest| alike(nearest) >= ALIKE) {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => format!("there are {}", known.join(", ")),
        };
        self.mistake(&key.span(), format!("`{name}` is not {what}: {remedy}"));
    }

    /// As a path of the command line would be made absolute, but from the file's directory.
    fn absolute(&self, path: impl AsRef<Path>) -> PathBuf {
        self.directory.join(path).components().collect()
    }
}

impl Config {
    /// Reads the file for `serve`, whose options are the keys.
    ///
    /// # Errors
    /// [`ConfigError`], with all that is wrong.
    pub(crate) fn read(path: &Path, serve: &clap::Command) -> Result<Self, ConfigError> {
        let path = absolute(path);
        let text = text_of(&path)?;
        let mut config = Self {
            path,
            ..Self::default()
        };
        let mut reader = config.reader(&text);
        let document = match DeTable::parse(&text) {
            Ok(document) => document,
            Err(error) => {
                let mistake = reader.not_toml(&error);
                return Err(config.error(vec![mistake]));
            }
        };
        let (mut settings, mut entries) = (Vec::new(), Vec::new());
        for (key, value) in in_order(document.get_ref()) {
            if key.get_ref() == LISTENERS {
                entries = listeners::read(&mut reader, value);
            } else if let Some(setting) = settings::read(&mut reader, serve, key, value) {
                settings.push(setting);
            }
        }
        let mistakes = reader.mistakes;
        if !mistakes.is_empty() {
            return Err(config.error(mistakes));
        }
        config.settings = settings;
        config.listeners = entries;
        Ok(config)
    }

    /// The pidfile that the file names, for the verbs that only look for a server: whatever else is in it may be wrong.
    ///
    /// # Errors
    /// If it cannot be read, or is not TOML.
    pub(crate) fn pidfile(path: &Path) -> Result<Option<PathBuf>, ConfigError> {
        let config = Self {
            path: absolute(path),
            ..Self::default()
        };
        let text = text_of(&config.path)?;
        let reader = config.reader(&text);
        match DeTable::parse(&text) {
            Ok(document) => {
                let pidfile = document.get_ref().get("pidfile");
                let pidfile = pidfile.and_then(|value| match value.get_ref() {
                    DeValue::String(path) => Some(reader.absolute(&**path)),
                    _ => None,
                });
                Ok(pidfile)
            }
            Err(error) => {
                let mut mistake = reader.not_toml(&error);
                let remedy = " (--pidfile names the server without this file)";
                mistake.problem.push_str(remedy);
                Err(config.error(vec![mistake]))
            }
        }
    }

    fn reader<'a>(&'a self, text: &'a str) -> Reader<'a> {
        Reader {
            text,
            directory: self.path.parent().unwrap_or(Path::new("/")),
            mistakes: Vec::new(),
        }
    }

    fn error(&self, mistakes: Vec<Mistake>) -> ConfigError {
        ConfigError {
            path: self.path.clone(),
            mistakes,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The options of `serve`, with what the file says as their defaults.
    pub(crate) fn defaults(&self, mut serve: clap::Command) -> clap::Command {
        for setting in &self.settings {
            let value = setting.value.clone();
            serve = serve.mut_arg(&setting.id, |arg| arg.default_value(value));
        }
        serve
    }

    /// Where the file sets the option of this id, if it does.
    pub(crate) fn place_of(&self, id: &str) -> Option<Place> {
        let setting = self.settings.iter().find(|setting| setting.id == id)?;
        Some(setting.place)
    }

    /// The listeners, if the file has any; each with `backlog` unless it has its own.
    pub(crate) fn specs(&self, backlog: u32) -> Vec<Spec> {
        let spec = |entry: &listeners::Entry| {
            let mut spec = Spec::new(entry.name.clone(), entry.address.clone());
            spec.backlog = entry.backlog.unwrap_or(backlog);
            spec.mode = entry.mode;
            spec
        };
        self.listeners.iter().map(spec).collect()
    }

    /// Where the file has the listener of this name, if it does.
    pub(crate) fn place_of_listener(&self, name: &str) -> Option<Place> {
        let entry = self.listeners.iter().find(|entry| entry.name == name)?;
        Some(entry.place)
    }

    /// What is wrong with a listener, at its place.
    pub(crate) fn listener_error(&self, error: &BindError) -> ConfigError {
        let name = error.listener();
        self.error(vec![Mistake {
            place: name.and_then(|name| self.place_of_listener(name)),
            problem: error.to_string(),
        }])
    }
}

/// The entries of a table as they stand in the file.
fn in_order<'a, 'i>(
    table: &'a DeTable<'i>,
) -> Vec<(
    &'a Spanned<toml::de::DeString<'i>>,
    &'a Spanned<DeValue<'i>>,
)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// Against the working directory as the caller named it, symlinks unresolved: a reload starts there, and follows a
/// `current/hello.toml` anew.
fn absolute(path: &Path) -> PathBuf {
    let directory = handoff::process::Program::resolve().map(|program| program.cwd().to_owned());
    let path = directory.map_or_else(|_| path.to_owned(), |directory| directory.join(path));
    path.components().collect()
}

fn text_of(path: &Path) -> Result<String, ConfigError> {
    let text = std::fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            "cannot be read, it does not exist: write it, or name another by --config".to_owned()
        }
        std::io::ErrorKind::PermissionDenied => {
            "cannot be read, permission denied: make it, and its directories, readable for the server's user".to_owned()
        }
        std::io::ErrorKind::IsADirectory => {
            "cannot be read, it is a directory: name the file in it".to_owned()
        }
        _ => format!("cannot be read: {error}"),
    });
    let text = text.and_then(|bytes| {
        String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            format!("is not UTF-8, as TOML must be: see byte {at}")
        })
    });
    text.map_err(|problem| ConfigError {
        path: path.to_owned(),
        mistakes: vec![Mistake {
            place: None,
            problem,
        }],
    })
}
