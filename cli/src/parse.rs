//! From words to [`Args`], by way of the configuration file if there is one.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches};

use crate::args::{Args, Verb};
use crate::config::{Config, ConfigError, Place};

const SERVE: &str = "serve";

/// Where the value of an option is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Default,
    File(Place),
    Environment,
    CommandLine,
}

/// An option of `serve`, as it came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) name: String,
    /// Empty if it has none.
    pub(crate) value: String,
    pub(crate) source: Source,
    /// Of the environment.
    pub(crate) variable: Option<String>,
}

/// Why there are no [`Args`].
#[derive(Debug)]
pub(crate) enum Problem {
    Usage(clap::Error),
    Config(ConfigError),
}

impl From<clap::Error> for Problem {
    fn from(error: clap::Error) -> Self {
        Self::Usage(error)
    }
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

/// The words that this process was started with.
pub(crate) fn command_line() -> Result<Args, Problem> {
    words(&std::env::args_os().collect::<Vec<_>>())
}

/// As if these were they; the first is the program's name.
pub(crate) fn words(words: &[OsString]) -> Result<Args, Problem> {
    let mut command = Args::command();
    let mut matches = command.try_get_matches_from_mut(words)?;
    let file = match file(&matches) {
        None => None,
        Some((SERVE, path)) => {
            let serve = command.find_subcommand(SERVE);
            let file = Config::read(&path, serve.unwrap_or(&command))?;
            matches = Args::command()
                .mut_subcommand(SERVE, |serve| file.defaults(serve))
                .try_get_matches_from(words)?;
            Some(file)
        }
        Some((verb, path)) => {
            let verb = verb.to_owned();
            if let Some(pidfile) = Config::pidfile(&path)? {
                let default = |arg: clap::Arg| arg.default_value(pidfile.into_os_string());
                matches = Args::command()
                    .mut_subcommand(verb, |verb| verb.mut_arg("pidfile", default))
                    .try_get_matches_from(words)?;
            }
            None
        }
    };
    let mut args = Args::from_arg_matches(&matches)?;
    if let (Verb::Serve(serve), Some((_, matches))) = (&mut args.verb, matches.subcommand()) {
        serve.options = chosen(&command, matches, file.as_ref());
        serve.file = file;
    }
    Ok(args)
}

/// The configuration file to read, and for which verb. Who names the pidfile, here or in the environment, and looks for nothing else, needs none: a
/// server can be stopped whatever is in its file by now.
fn file(matches: &ArgMatches) -> Option<(&str, PathBuf)> {
    let (verb, matches) = matches.subcommand()?;
    let path = matches.get_one::<PathBuf>("config")?;
    let is_named = matches.value_source("pidfile").is_some();
    (verb == SERVE || !is_named).then(|| (verb, path.clone()))
}

fn chosen(command: &clap::Command, matches: &ArgMatches, file: Option<&Config>) -> Vec<Chosen> {
    let serve = command.find_subcommand(SERVE);
    let options = serve.into_iter().flat_map(clap::Command::get_arguments);
    let options = options.filter_map(|arg| Some((arg.get_long()?, arg)));
    options
        .filter(|(name, _)| !["help", "check", "config"].contains(name))
        .map(|(name, arg)| {
            let id = arg.get_id().as_str();
            let source = match matches.value_source(id) {
                Some(ValueSource::CommandLine) => Source::CommandLine,
                Some(ValueSource::EnvVariable) => Source::Environment,
                _ => match file.and_then(|file| file.place_of(id)) {
                    Some(place) => Source::File(place),
                    None => Source::Default,
                },
            };
            let value = matches.get_raw(id).map(|values| {
                let values = values.map(|value| value.to_string_lossy().into_owned());
                values.collect::<Vec<_>>().join(",")
            });
            Chosen {
                name: name.to_owned(),
                value: value.unwrap_or_default(),
                source,
                variable: arg
                    .get_env()
                    .map(|name| name.to_string_lossy().into_owned()),
            }
        })
        .collect()
}
