//! The keys that are options of `hello serve`.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};
use handoff::listeners::Address;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use toml::Spanned;
use toml::de::{DeString, DeValue};

use super::{LISTENERS, Place, Reader};

/// Options that say how `serve` is called, and have no place in a file.
const NOT_IN_A_FILE: [&str; 3] = ["config", "check", "help"];

/// Written as a table: see `listeners`.
const LISTEN: &str = "listen";

/// One that names a file: relative to that of the configuration.
const PIDFILE: &str = "pidfile";

/// Another: of a Unix socket, perhaps.
const ADMIN: &str = "admin";

/// An option, as the file has it.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    /// clap's.
    pub(super) id: String,
    pub(super) value: OsString,
    pub(super) place: Place,
}

/// The options of `serve` that a file may set, by name.
pub(super) fn options(serve: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    serve.get_arguments().filter_map(|arg| {
        let name = arg.get_long()?;
        let settable = name != LISTEN && !NOT_IN_A_FILE.contains(&name);
        settable.then_some((name, arg))
    })
}

/// Reads one key; `None` if something is wrong with it, which the reader has noted.
pub(super) fn read(
    reader: &mut Reader<'_>,
    serve: &Command,
    key: &Spanned<DeString<'_>>,
    value: &Spanned<DeValue<'_>>,
) -> Option<Setting> {
    let name: &str = key.get_ref();
    let found = options(serve).find(|(known, _)| *known == name);
    let Some((_, arg)) = found else {
        unknown(reader, serve, key);
        return None;
    };
    let is_flag = matches!(arg.get_action(), ArgAction::SetTrue);
    let text = match text_of(reader, name, value.get_ref(), is_flag) {
        Ok(text) => text,
        Err(problem) => {
            reader.mistake(&value.span(), format!("`{name}` is {problem}"));
            return None;
        }
    };
    if !is_flag && let Err(problem) = check(arg, &text) {
        reader.mistake(&value.span(), format!("`{name}`: {problem}"));
        return None;
    }
    Some(Setting {
        id: arg.get_id().to_string(),
        value: text,
        place: reader.place(&key.span()),
    })
}

/// A value as it would stand on the command line; or what it should be.
fn text_of(
    reader: &Reader<'_>,
    name: &str,
    value: &DeValue<'_>,
    is_flag: bool,
) -> Result<OsString, String> {
    match (value, is_flag) {
        (DeValue::Boolean(value), true) => Ok(value.to_string().into()),
        (_, true) => Err("true or false, without quotes".to_owned()),
        (DeValue::String(text), false) if name == PIDFILE => {
            Ok(reader.absolute(&**text).into_os_string())
        }
        (DeValue::String(text), false) if name == ADMIN => match text.parse() {
            Ok(Address::Unix(path)) => Ok(Address::Unix(reader.absolute(path)).to_string().into()),
            // What is wrong with it is said by its parser.
            _ => Ok(OsString::from(&**text)),
        },
        (DeValue::String(text), false) => Ok(OsString::from(&**text)),
        (DeValue::Integer(number), false) => {
            let decimal = i64::from_str_radix(number.as_str(), number.radix());
            // One that is too large is shown as it stands there.
            Ok(decimal
                .map_or_else(|_| number.to_string(), |n| n.to_string())
                .into())
        }
        (other, false) => {
            let found = other.type_str();
            Err(format!(
                "a text in quotes or a number, not a value of type {found}"
            ))
        }
    }
}

fn unknown(reader: &mut Reader<'_>, serve: &Command, key: &Spanned<DeString<'_>>) {
    let name: &str = key.get_ref();
    if name == LISTEN {
        let remedy = "listeners are a table: [listeners], and in it http = \"127.0.0.1:8321\"";
        return reader.mistake(&key.span(), format!("`{LISTEN}` is not a key: {remedy}"));
    }
    if NOT_IN_A_FILE.contains(&name) {
        let remedy = "it belongs on the command line";
        return reader.mistake(&key.span(), format!("`{name}` is not a key: {remedy}"));
    }
    let mut known: Vec<&str> = options(serve).map(|(name, _)| name).collect();
    known.push(LISTENERS);
    reader.unknown(key, &known, "a key");
}

/// Lets the option's own parser judge, as if the value stood on the command line.
fn check(arg: &Arg, text: &OsStr) -> Result<(), String> {
    let mut word = OsString::from(format!("--{}=", arg.get_long().unwrap_or_default()));
    word.push(text);
    let text = text.display();
    let result = Command::new("file")
        .no_binary_name(true)
        .disable_help_flag(true)
        .arg(arg.clone())
        .try_get_matches_from([word]);
    let Err(error) = result else { return Ok(()) };
    if let Some(source) = error.source() {
        return Err(source.to_string());
    }
    match (error.kind(), error.get(ContextKind::ValidValue)) {
        (ErrorKind::InvalidValue, Some(ContextValue::Strings(known))) if !known.is_empty() => {
            Err(format!("`{text}` is none of {}", known.join(", ")))
        }
        _ => Err(format!("`{text}` is not a value for it")),
    }
}
