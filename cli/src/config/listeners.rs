//! `[listeners]`: by name, an address, or a table with one.

use handoff::listeners::Address;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::{LISTENERS, Place, Reader, in_order};
use crate::listen::is_name;

const ADDRESS: &str = "address";
const BACKLOG: &str = "backlog";
const MODE: &str = "mode";

/// All that the permissions of a socket can be.
const MAX_MODE: u32 = 0o777;

/// One listener.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) address: Address,
    pub(super) backlog: Option<u32>,
    pub(super) mode: Option<u32>,
    pub(super) place: Place,
}

/// Reads the table. What is wrong the reader has noted.
pub(super) fn read(reader: &mut Reader<'_>, value: &Spanned<DeValue<'_>>) -> Vec<Entry> {
    let DeValue::Table(table) = value.get_ref() else {
        let remedy = "write [listeners], and in it http = \"127.0.0.1:8321\"";
        reader.mistake(&value.span(), format!("`{LISTENERS}` is a table: {remedy}"));
        return Vec::new();
    };
    if table.is_empty() {
        let remedy =
            "write one, as in http = \"127.0.0.1:8321\", or leave the table out for the default";
        reader.mistake(&value.span(), format!("`{LISTENERS}` is empty: {remedy}"));
    }
    let entries = in_order(table).into_iter();
    entries
        .filter_map(|(name, value)| entry(reader, name, value))
        .collect()
}

fn entry(
    reader: &mut Reader<'_>,
    key: &Spanned<DeString<'_>>,
    value: &Spanned<DeValue<'_>>,
) -> Option<Entry> {
    let name: &str = key.get_ref();
    if !is_name(name) {
        let rule = "use a-z, 0-9, `_`, `.` (then in quotes) and `-`";
        reader.mistake(
            &key.span(),
            format!("`{name}` is not a name for a listener: {rule}"),
        );
        return None;
    }
    let place = reader.place(&key.span());
    match value.get_ref() {
        DeValue::String(text) => Some(Entry {
            name: name.to_owned(),
            address: address(reader, name, &value.span(), text)?,
            backlog: None,
            mode: None,
            place,
        }),
        DeValue::Table(table) => with_options(reader, name, key, table, place),
        _ => {
            let remedy = "write \"127.0.0.1:8321\", \"[::1]:8321\" or \"unix:/run/hello.sock\"";
            let problem = format!("listener `{name}` is an address in quotes: {remedy}");
            reader.mistake(&value.span(), problem);
            None
        }
    }
}

fn with_options(
    reader: &mut Reader<'_>,
    name: &str,
    key: &Spanned<DeString<'_>>,
    table: &DeTable<'_>,
    place: Place,
) -> Option<Entry> {
    let (mut found, mut backlog, mut mode) = (None, None, None);
    let before = reader.mistakes.len();
    for (option, value) in in_order(table) {
        let span = value.span();
        match (&**option.get_ref(), value.get_ref()) {
            (ADDRESS, DeValue::String(text)) => found = address(reader, name, &span, text),
            (ADDRESS, _) => {
                let problem = format!("the address of listener `{name}` is a text in quotes");
                reader.mistake(&span, problem);
            }
            (BACKLOG, value) => match number(value).filter(|n| (1..=i32::MAX as u32).contains(n)) {
                Some(number) => backlog = Some(number),
                None => {
                    let problem = format!(
                        "the backlog of listener `{name}` is a number from 1 to {}",
                        i32::MAX
                    );
                    reader.mistake(&span, problem);
                }
            },
            (MODE, value) => match permissions(value) {
                Some(permissions) => mode = Some(permissions),
                None => {
                    let problem = format!(
                        "the mode of listener `{name}` is octal: \"0660\", at most \"0777\""
                    );
                    reader.mistake(&span, problem);
                }
            },
            _ => reader.unknown(option, &[ADDRESS, BACKLOG, MODE], "an option of a listener"),
        }
    }
    if found.is_none() && reader.mistakes.len() == before {
        let remedy = "add address = \"127.0.0.1:8321\"";
        reader.mistake(
            &key.span(),
            format!("listener `{name}` has no address: {remedy}"),
        );
    }
    Some(Entry {
        name: name.to_owned(),
        address: found?,
        backlog,
        mode,
        place,
    })
}

fn address(
    reader: &mut Reader<'_>,
    name: &str,
    span: &std::ops::Range<usize>,
    text: &str,
) -> Option<Address> {
    match text.parse() {
        // Checked again where it has become longer.
        Ok(Address::Unix(path)) => Some(Address::Unix(reader.absolute(path))),
        Ok(address) => Some(address),
        Err(error) => {
            reader.mistake(span, format!("listener `{name}`: {error}"));
            None
        }
    }
}

fn number(value: &DeValue<'_>) -> Option<u32> {
    match value {
        DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    }
}

/// `"0660"`, or TOML's own `0o660`; a decimal `660` would be another mode than it seems to be.
fn permissions(value: &DeValue<'_>) -> Option<u32> {
    let mode = match value {
        DeValue::String(text) => u32::from_str_radix(text, 8).ok()?,
        DeValue::Integer(number) if number.radix() == 8 => {
            u32::from_str_radix(number.as_str(), 8).ok()?
        }
        _ => return None,
    };
    (mode <= MAX_MODE).then_some(mode)
}
