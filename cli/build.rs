//! Compiles the greeting in: two builds with different ones are the old and the new version of the
//! README's walk-through.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=HELLO_GREETING");
    let greeting = std::env::var("HELLO_GREETING").unwrap_or_else(|_| "eee".to_owned());
    assert!(
        !greeting.is_empty() && !greeting.contains(char::is_control),
        "HELLO_GREETING is {greeting:?}; set it to a word on one line, or unset it"
    );
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    println!("cargo::rustc-env=HELLO_GREETING={greeting}");
    println!("cargo::rustc-env=HELLO_VERSION={version} ({greeting})");
}
