//! `tailwater serve`: the daemon, from its settings to its last request.
//!
//! Standard output gets the few lines that a person wants to see at start; the log goes to standard error. The
//! first SIGTERM or SIGINT lets requests under way come to their end, within `drain_seconds`; the second one ends
//! the process at once, which loses nothing that was acknowledged.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Arg, ArgMatches};
use rustix::process::{Resource, Rlimit};
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::config::{Config, Durability, LogFormat, SETTINGS, Sources};
use crate::serve::Server;
use crate::store::Engine;

use super::failure::{ExitStatus, Failure};
use super::logging;

const ABOUT: &str = "Start a server";

const LONG_ABOUT: &str = "\
Start a server

Every setting below can be given as a flag, as an environment variable (--arena-bytes is TAILWATER_ARENA_BYTES),
or in a TOML file (arena_bytes = \"64MiB\"), and is taken from the first of them that has it. Sizes are bytes, or
have a unit: 64MiB. SIGTERM and SIGINT let requests under way end first; a second one does not.";

/// The one flag that is no setting: what it asks for is done once.
const REBUILD_CATALOG: &str = "rebuild-catalog";

/// What `serve` is told on the command line: the flags that were given, one for each row of [`SETTINGS`].
#[derive(Debug)]
pub struct Arguments {
    file: Option<PathBuf>,
    flags: Vec<(&'static str, String)>,
    rebuild_catalog: bool,
}

/// Starts a server, and returns when it was told to end and has ended.
///
/// # Errors
/// With the exit code of the reason why it could not start.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let sources =
        Sources { flags: arguments.flags, environment: std::env::vars_os().collect(), file: arguments.file };
    let config = Config::resolve(&sources)?;
    logging::start(config.log_format, config.log_level);
    raise_open_files();
    // Before the server starts: a signal that comes while it does so must not be lost.
    let mut signals = take_signals()?;

    if arguments.rebuild_catalog {
        Engine::forget_catalog(&config)?;
    }
    let server = Server::start(config.clone())?;
    introduce(&config, &server);
    if let Some(signal) = signals.forever().next() {
        let seconds = config.drain_seconds;
        tracing::info!(signal, seconds, "told to end: requests under way may come to their end");
    }
    server.stop()?;
    tracing::info!("ended");
    Ok(())
}

/// Catches SIGTERM and SIGINT: the first one is for the caller, the second one has its default effect. SIGXFSZ has
/// none.
fn take_signals() -> Result<Signals, Failure> {
    let failed = |error| Failure::new(ExitStatus::Failed, format!("signals cannot be caught: {error}"));
    let told_before = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order: the first signal finds it false, and sets it for the second.
        signal_hook::flag::register_conditional_default(signal, told_before.clone()).map_err(failed)?;
        signal_hook::flag::register(signal, told_before.clone()).map_err(failed)?;
    }
    // It comes with EFBIG, which is an answer; left to its default it ends the process.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(failed)?;
    Signals::new([SIGTERM, SIGINT]).map_err(failed)
}

/// Asks for as many open files as this process may have at all. The limit below that is for programs that use
/// select(2), which we do not.
fn raise_open_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(errno) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%errno, limit = limit.current, "the limit of open files cannot be raised");
    }
}

fn introduce(config: &Config, server: &Server) {
    let text = introduction(config, server);
    // Nobody may be there to read it, and the server runs all the same.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    // In text both streams usually end on the same terminal; a collector of JSON reads only the log.
    if config.log_format == LogFormat::Json {
        let (listen, admin) = (server.data_address(), server.admin_address());
        let (data, cores, durability) = (absolute(&config.data), config.cores, config.durability);
        tracing::info!(%listen, %admin, data = %data.display(), cores, %durability, "started");
        for notice in server.notices() {
            tracing::warn!("{notice}");
        }
        if config.durability == Durability::None {
            tracing::warn!("{NOT_DURABLE}");
        }
    }
}

const NOT_DURABLE: &str = "durability is \"none\": what is acknowledged is LOST when the power fails or the \
                           kernel crashes; for benchmarks and scratch nodes only";

fn introduction(config: &Config, server: &Server) -> String {
    let data = absolute(&config.data);
    let mut lines = vec![
        format!("tailwater {}", env!("CARGO_PKG_VERSION")),
        format!("  objects  http://{}/", server.data_address()),
        format!("  admin    http://{}/ (livez, readyz, metrics)", server.admin_address()),
        format!("  data     {}", data.display()),
        format!("  cores    {}", config.cores),
    ];
    lines.extend(server.notices().iter().map(|notice| format!("  note     {notice}")));
    if config.durability == Durability::None {
        lines.push(format!("  WARNING  {NOT_DURABLE}"));
    }
    lines.join("\n") + "\n"
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The flags, made from the table of settings.
impl clap::Args for Arguments {
    fn augment_args(command: clap::Command) -> clap::Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("A TOML file with settings [env: TAILWATER_CONFIG]");
        let flags = SETTINGS.iter().map(|setting| {
            Arg::new(setting.name)
                .long(setting.flag())
                .value_name(setting.value_name)
                .value_parser(|text: &str| setting.check(text).map(|()| text.to_owned()))
                .help(format!("{} [default: {}]", setting.help(), setting.default))
        });
        let rebuild = Arg::new(REBUILD_CATALOG)
            .long(REBUILD_CATALOG)
            .action(clap::ArgAction::SetTrue)
            .help("Remove the catalog first and make it anew from the segments, which reads all of them");
        command.about(ABOUT).long_about(LONG_ABOUT).arg(file).args(flags).arg(rebuild)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Arguments::augment_args(command)
    }
}

impl clap::FromArgMatches for Arguments {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Arguments, clap::Error> {
        let given = |name| matches.get_one::<String>(name).map(|text| (name, text.clone()));
        let flags = SETTINGS.iter().filter_map(|setting| given(setting.name)).collect();
        let rebuild_catalog = matches.get_flag(REBUILD_CATALOG);
        Ok(Arguments { file: matches.get_one("config").cloned(), flags, rebuild_catalog })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Arguments::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, FromArgMatches};

    fn parse(line: &[&str]) -> Result<Arguments, clap::Error> {
        let command = Arguments::augment_args(clap::Command::new("serve").no_binary_name(true));
        command.try_get_matches_from(line).and_then(|matches| Arguments::from_arg_matches(&matches))
    }

    #[test]
    fn every_setting_is_a_flag() {
        for setting in SETTINGS {
            let flag = format!("--{}", setting.flag());
            let arguments = parse(&[&flag, setting.default]).unwrap();
            assert_eq!(arguments.flags, [(setting.name, setting.default.to_owned())]);
        }
    }

    #[test]
    fn the_catalog_is_made_anew_only_where_that_is_asked_for() {
        assert!(!parse(&[]).unwrap().rebuild_catalog);
        assert!(parse(&["--rebuild-catalog"]).unwrap().rebuild_catalog);
    }

    #[test]
    fn only_flags_that_were_given_are_taken() {
        let arguments = parse(&["--config", "/etc/tailwater.toml", "--cores", "3"]).unwrap();
        assert_eq!(arguments.file, Some(PathBuf::from("/etc/tailwater.toml")));
        assert_eq!(arguments.flags, [("cores", "3".to_owned())]);
    }

    #[test]
    fn a_bad_flag_is_refused_with_the_reason() {
        let error = parse(&["--arena-bytes", "much"]).unwrap_err().to_string();
        assert!(
            error.contains("'much' for '--arena-bytes <SIZE>'") && error.contains("such as 64MiB"),
            "{error}"
        );
        assert!(parse(&["--core", "3"]).unwrap_err().to_string().contains("'--cores'"));
    }
}
