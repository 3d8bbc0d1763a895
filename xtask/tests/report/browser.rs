//! Chromium without a window. It loads nothing but the files given to it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// As Debian has it.
const CHROMIUM: &str = "/usr/bin/chromium";
/// Why nobody looks, and the remedy.
pub(crate) const MISSING: &str =
    "`/usr/bin/chromium` is not there: apt-get install --no-install-recommends chromium";
/// How much of a page a screenshot shows, in pixels.
const HEIGHT: u32 = 1600;

pub(crate) struct Browser {
    program: PathBuf,
}

impl Browser {
    /// `None` if there is none.
    pub(crate) fn find() -> Option<Self> {
        let program = PathBuf::from(CHROMIUM);
        program.exists().then_some(Self { program })
    }

    fn run(&self, dir: &TempDir, width: u32, page: &str, args: &[String]) -> String {
        let file = dir.path().join("page.html");
        fs::write(&file, page).unwrap();
        let output = Command::new(&self.program)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--hide-scrollbars",
            ])
            .arg(format!(
                "--user-data-dir={}",
                dir.path().join("profile").display()
            ))
            .arg(format!("--window-size={width},{HEIGHT}"))
            .args(args)
            .arg(format!("file://{}", file.display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the page needs in a window of this width: its width and height, in pixels. A window cannot be
    /// as narrow as a phone, a frame can.
    pub(crate) fn measure(&self, page: &str, width: u32) -> [u32; 2] {
        let escaped = page.replace('&', "&amp;").replace('"', "&quot;");
        let frame = format!(
            "<iframe width=\"{width}\" height=\"{HEIGHT}\" style=\"border:0\" srcdoc=\"{escaped}\"></iframe><p id=\"m\"></p>\
             <script>onload = () => {{ const e = frames[0].document.documentElement; \
             document.body.textContent = 'measured ' + e.scrollWidth + ' ' + e.scrollHeight + ' end'; }}</script>"
        );
        let dir = TempDir::new().unwrap();
        let dom = self.run(&dir, width.max(1000), &frame, &["--dump-dom".into()]);
        let (_, measured) = dom
            .split_once("measured ")
            .unwrap_or_else(|| panic!("{dom}"));
        let mut numbers = measured.split(' ').map_while(|number| number.parse().ok());
        std::array::from_fn(|_| numbers.next().unwrap())
    }

    /// How many bytes a picture of the page has: a blank one is compressed to nearly nothing.
    pub(crate) fn screenshot(&self, page: &str, width: u32) -> u64 {
        let dir = TempDir::new().unwrap();
        let png = dir.path().join("page.png");
        let argument = format!("--screenshot={}", png.display());
        self.run(&dir, width, page, &[argument]);
        fs::metadata(png).unwrap().len()
    }
}
