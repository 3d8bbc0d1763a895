//! Drawing with plotters, in the page's colours.
//!
//! A page has a light and a dark theme, and plotters knows neither: it is given stand-ins, one colour for
//! each role, which become CSS variables in the finished SVG. Text has the page's font.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

/// A colour by its role; `page.css` says what it looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    Text,
    Faint,
    Grid,
    Paper,
    Loss,
    One,
    Two,
    Three,
    Four,
    Five,
    Six,
}

impl Ink {
    const ALL: [Self; 11] = [
        Self::Text,
        Self::Faint,
        Self::Grid,
        Self::Paper,
        Self::Loss,
        Self::One,
        Self::Two,
        Self::Three,
        Self::Four,
        Self::Five,
        Self::Six,
    ];
    /// For what is told apart by colour: neighbours differ most.
    pub(super) const SERIES: [Self; 6] = [
        Self::One,
        Self::Two,
        Self::Three,
        Self::Four,
        Self::Five,
        Self::Six,
    ];

    /// The CSS variable.
    pub(super) fn variable(self) -> &'static str {
        match self {
            Self::Text => "--text",
            Self::Faint => "--faint",
            Self::Grid => "--grid",
            Self::Paper => "--paper",
            Self::Loss => "--loss",
            Self::One => "--one",
            Self::Two => "--two",
            Self::Three => "--three",
            Self::Four => "--four",
            Self::Five => "--five",
            Self::Six => "--six",
        }
    }

    /// The stand-in.
    pub(super) fn color(self) -> RGBColor {
        RGBColor(0xfe, 0xed, self as u8)
    }
}

/// How large a drawing is. Each is drawn for both, and the page shows the one that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// Beside others on a desk.
    Wide,
    /// On a phone.
    Narrow,
}

impl Width {
    pub(super) const BOTH: [Self; 2] = [Self::Wide, Self::Narrow];

    /// Pixels, at the size at which text is read.
    pub(super) fn pixels(self) -> u32 {
        match self {
            Self::Wide => 620,
            Self::Narrow => 340,
        }
    }

    /// The CSS class.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Wide => "wide",
            Self::Narrow => "narrow",
        }
    }

    /// How many columns a reader can tell apart.
    pub(super) fn columns(self) -> usize {
        self.pixels() as usize / 4
    }

    /// How many labels an axis of this width has room for.
    pub(super) fn labels(self) -> usize {
        match self {
            Self::Wide => 8,
            Self::Narrow => 5,
        }
    }
}

/// Height of the usual drawing, in pixels.
pub(super) const HEIGHT: u32 = 260;
/// Of text in drawings: 12 pixels. plotters counts the height of a line, of which letters have 1/1.24.
const FONT: u32 = 15;

/// What one draws on.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Text of a drawing.
pub(super) fn text(ink: Ink) -> TextStyle<'static> {
    let font = ("sans-serif", FONT).into_font();
    font.color(&ink.color())
}

/// An SVG of this size, described for those who do not see it.
pub(super) fn draw(
    width: Width,
    height: u32,
    described: &str,
    with: impl FnOnce(&Area<'_>) -> Result<()>,
) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width.pixels(), height)).into_drawing_area();
        with(&area)?;
        area.present().map_err(|err| anyhow!("{err}"))?;
    }
    Ok(finish(&svg, width, described))
}

/// Puts the variables in the place of the stand-ins, and lets the page say how large it is.
fn finish(svg: &str, width: Width, described: &str) -> String {
    let mut svg = svg.replace('\n', "");
    for ink in Ink::ALL {
        let RGBColor(r, g, b) = ink.color();
        let stand_in = format!("\"#{r:02X}{g:02X}{b:02X}\"");
        svg = svg.replace(&stand_in, &format!("\"var({})\"", ink.variable()));
    }
    // What never changes is the default of the page's style, and need not be said of each element.
    for default in [
        " opacity=\"1\"",
        " stroke=\"none\"",
        " font-family=\"sans-serif\"",
    ] {
        svg = svg.replace(default, "");
    }
    let tag = format!(
        "<svg class=\"{}\" role=\"img\" aria-label=\"{}\" ",
        width.class(),
        super::html::escape(described)
    );
    svg.replacen("<svg ", &tag, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_color_is_left_that_the_theme_does_not_know() {
        let svg = draw(Width::Wide, 100, "a & b", |area| {
            for (place, ink) in (0..).zip(Ink::ALL) {
                let line = PathElement::new([(place, 0), (place, 9)], ink.color());
                area.draw(&line).map_err(|err| anyhow!("{err}"))?;
            }
            Ok(())
        })
        .unwrap();
        assert!(!svg.contains("\"#"), "{svg}");
        for ink in Ink::ALL {
            assert!(svg.contains(ink.variable()), "{ink:?}: {svg}");
        }
        assert!(svg.contains("aria-label=\"a &amp; b\""));
    }
}
