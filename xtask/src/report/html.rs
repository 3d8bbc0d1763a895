//! Markup that is well-formed as XML too, so that a test can read it back.

use super::canvas::Ink;

/// Text that may stand anywhere, attributes included. Characters that XML cannot hold become `�`.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// `<name class="class">content</name>`; the content is markup.
pub(super) fn tag(name: &str, class: &str, content: &str) -> String {
    if class.is_empty() {
        format!("<{name}>{content}</{name}>\n")
    } else {
        format!("<{name} class=\"{class}\">{content}</{name}>\n")
    }
}

/// The colours of a drawing and their meaning.
pub(super) fn legend(entries: &[(Ink, &str)]) -> String {
    let items: String = entries
        .iter()
        .map(|(ink, label)| {
            format!(
                "<li><i style=\"background:var({})\"></i>{}</li>",
                ink.variable(),
                escape(label)
            )
        })
        .collect();
    tag("ul", "legend", &items)
}

/// A table that scrolls in itself where it is too wide. The first column holds words, the others numbers.
pub(super) fn table(class: &str, head: &[&str], rows: &[Vec<String>]) -> String {
    let head: String = head
        .iter()
        .map(|cell| format!("<th scope=\"col\">{}</th>", escape(cell)))
        .collect();
    let rows: String = rows
        .iter()
        .map(|row| {
            let cells: String = row
                .iter()
                .map(|cell| format!("<td>{}</td>", escape(cell)))
                .collect();
            tag("tr", "", &cells)
        })
        .collect();
    let table = format!(
        "<table class=\"{class}\"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    );
    tag("div", "scroll", &table)
}

/// What is there for those who look for it.
pub(super) fn details(summary: &str, content: &str) -> String {
    format!(
        "<details><summary>{}</summary>\n{content}</details>\n",
        escape(summary)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_not_markup() {
        assert_eq!(
            escape("<script>\"&\"\u{1}"),
            "&lt;script&gt;&quot;&amp;&quot;\u{fffd}"
        );
    }
}
