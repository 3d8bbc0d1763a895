//! Whether the colours of `page.css` can be read and told apart.

use std::collections::BTreeMap;

use super::STYLE;

/// WCAG 2.2, 1.4.3 and 1.4.11: text, and what carries meaning in a picture.
const TEXT_CONTRAST: f64 = 4.5;
const PICTURE_CONTRAST: f64 = 3.0;
/// CIE76. Two neighbours with less could be taken for each other.
const LEAST_DIFFERENCE: f64 = 10.0;

const SERIES: [&str; 6] = ["one", "two", "three", "four", "five", "six"];

/// What the eye makes of linear RGB, by kind of eye (Machado, Oliveira, Fernandes 2009, severity 1).
const EYES: [(&str, [[f64; 3]; 3]); 3] = [
    ("usual", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
    (
        "protanopia",
        [
            [0.152_286, 1.052_583, -0.204_868],
            [0.114_503, 0.786_281, 0.099_216],
            [-0.003_882, -0.048_116, 1.051_998],
        ],
    ),
    (
        "deuteranopia",
        [
            [0.367_322, 0.860_646, -0.227_968],
            [0.280_085, 0.672_501, 0.047_413],
            [-0.011_820, 0.042_940, 0.968_881],
        ],
    ),
];

type Color = [f64; 3];

/// The themes: each `:root { … }` of the style, in order: light, dark, printed.
fn themes() -> Vec<BTreeMap<&'static str, Color>> {
    STYLE
        .split(":root {")
        .skip(1)
        .map(|block| {
            let block = block.split('}').next().unwrap();
            let variables = block
                .split(';')
                .filter_map(|line| line.trim().split_once(": "));
            variables
                .map(|(name, hex)| (name.trim_start_matches("--"), linear(hex)))
                .collect()
        })
        .collect()
}

/// Of `#rrggbb`.
fn linear(hex: &str) -> Color {
    std::array::from_fn(|channel| {
        let digits = &hex[1 + 2 * channel..3 + 2 * channel];
        let value = f64::from(u8::from_str_radix(digits, 16).unwrap()) / 255.0;
        if value <= 0.040_45 {
            value / 12.92
        } else {
            ((value + 0.055) / 1.055).powf(2.4)
        }
    })
}

fn contrast(a: Color, b: Color) -> f64 {
    let luminance = |[r, g, b]: Color| 0.2126 * r + 0.7152 * g + 0.0722 * b;
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

/// CIE L*a*b*, white point D65.
fn lab([r, g, b]: Color) -> Color {
    let curve = |t: f64| {
        if t > 0.008_856 {
            t.cbrt()
        } else {
            7.787 * t + 16.0 / 116.0
        }
    };
    let x = curve((0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.950_47);
    let y = curve(0.2126 * r + 0.7152 * g + 0.0722 * b);
    let z = curve((0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.088_83);
    [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
}

fn difference(a: Color, b: Color, eye: [[f64; 3]; 3]) -> f64 {
    let seen = |color: Color| {
        let channel = |row: [f64; 3]| row.iter().zip(color).map(|(a, b)| a * b).sum::<f64>();
        lab(eye.map(|row| channel(row).clamp(0.0, 1.0)))
    };
    let (a, b) = (seen(a), seen(b));
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).powi(2))
        .sum::<f64>()
        .sqrt()
}

#[test]
fn everything_stands_out_from_the_paper() {
    let themes = themes();
    assert_eq!(themes.len(), 3);
    for theme in themes {
        let needs = ["text", "faint", "loss", "good"].map(|name| (name, TEXT_CONTRAST));
        let pictures = SERIES.map(|name| (name, PICTURE_CONTRAST));
        for (name, need) in needs.into_iter().chain(pictures) {
            let found = contrast(theme[name], theme["paper"]);
            assert!(found >= need, "{name}: {found:.1}, not {need}");
        }
    }
}

#[test]
fn no_two_colors_look_alike_to_anyone() {
    let mut alike = Vec::new();
    for (number, theme) in themes().into_iter().enumerate() {
        let names: Vec<&str> = SERIES.into_iter().chain(["loss"]).collect();
        for (place, a) in names.iter().enumerate() {
            for b in &names[place + 1..] {
                for (eye, matrix) in EYES {
                    let found = difference(theme[a], theme[b], matrix);
                    if found < LEAST_DIFFERENCE {
                        alike.push(format!("theme {number}, {eye}: {a} and {b}, {found:.1}"));
                    }
                }
            }
        }
    }
    assert!(alike.is_empty(), "{alike:#?}");
}
