//! What an engine is told: every setting with its name, its default and how its text is read.
//!
//! One table, [`SETTINGS`], is all there is: the fields of [`Config`], the flags of `tailwater serve`, the
//! environment variables and the keys of the configuration file are made from its rows. A setting
//! `arena_bytes` is the flag `--arena-bytes`, the variable `TAILWATER_ARENA_BYTES` and the key `arena_bytes`.
//!
//! [`Config::resolve`] takes each setting from the strongest source that names it: flag, then environment, then
//! file, then default. What it returns has passed [`Config::check`]. A variable or key that is no setting is an
//! error, because a misspelt limit that is silently ignored is found out in the worst hour; so is a bad value,
//! even where a stronger source overrides it.

mod resume;
mod retention;
mod rules;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tracing::level_filters::LevelFilter;

use crate::error::{Error, Kind, Result};

/// What direct reads and writes are aligned to, whatever the device.
const ALIGNMENT_BYTES: usize = 4096;
/// The smallest and the largest block that can be asked for.
const BLOCK_BYTES_RANGE: std::ops::RangeInclusive<usize> = 64 << 10..=1 << 20;
/// Fewer blocks than this in an arena, or in a segment, could not be received and written at the same time.
const BLOCKS_MIN: usize = 8;
/// The limits of the longest request head that can be asked for.
const HEAD_BYTES_RANGE: std::ops::RangeInclusive<usize> = 1 << 10..=1 << 20;
/// The longest time that can be asked for: a year, so that no deadline can overflow a clock.
const SECONDS_MAX: u64 = 365 * 24 * 60 * 60;

/// What the names of all our environment variables begin with.
const VARIABLE_PREFIX: &str = "TAILWATER_";
/// The variable that names the configuration file, where no flag does.
const FILE_VARIABLE: &str = "TAILWATER_CONFIG";

/// Makes [`Config`], its default and [`SETTINGS`] from one row a setting: what it is for, its name and type, its
/// default as a user would write it, what its value is called in the help, and what reads its text.
macro_rules! settings {
    ($($(#[doc = $help:literal])+ $name:ident: $type:ty = $default:literal, $value_name:literal, $read:path;)+) => {
        /// What an engine is told. Every field is described by its row in [`SETTINGS`].
        #[derive(Clone, Debug, PartialEq)]
        pub struct Config {
            $($(#[doc = $help])+ pub $name: $type,)+
        }

        impl Default for Config {
            fn default() -> Config {
                Config { $($name: $read($default).expect("the default of a setting is a value of it"),)+ }
            }
        }

        /// Every setting, in the order in which help and documentation show them.
        pub const SETTINGS: &[Setting] = &[
            $(Setting {
                name: stringify!($name),
                help: concat!($($help),+),
                value_name: $value_name,
                default: $default,
                assign: |config, text| {
                    config.$name = $read(text)?;
                    Ok(())
                },
            },)+
        ];
    };
}

settings! {
    /// The folder that holds everything stored
    data: PathBuf = "./tailwater-data", "DIR", read_path;
    /// Where objects are put and read, by HTTP
    listen: SocketAddr = "127.0.0.1:8420", "ADDRESS", read_address;
    /// Where /livez, /readyz and /metrics are answered
    admin: SocketAddr = "127.0.0.1:8421", "ADDRESS", read_address;
    /// Threads, each pinned to a CPU with a ring and a log of its own; "all" is one for each CPU allowed
    cores: usize = "all", "COUNT", read_cores;
    /// When an append is acknowledged: "stable" after its bytes are on stable storage, "none" before that
    durability: Durability = "stable", "stable|none", read_durability;
    /// Memory of each core for blocks: what followers at the live edge are served from
    arena_bytes: usize = "32MiB", "SIZE", read_size;
    /// The largest block, the unit of writing to the log
    block_bytes: usize = "512KiB", "SIZE", read_size;
    /// The size of a segment file; "auto" goes by the size of the disk
    segment_bytes: Option<u64> = "auto", "SIZE", read_segment_size;
    /// Segments that each core keeps prepared ahead of its writers
    spare_segments: usize = "2", "COUNT", read_count;
    /// What is deleted of sealed objects, oldest first, such as "cameras age=7d size=100GB; * age=30d"
    retention: Retention = "none", "RULES", read_retention;
    /// How long a writer that went away is awaited, such as "cameras plain=30s; * resumable=60s": its followers wait
    resume_window: ResumeWindows = "none", "RULES", read_resume_windows;
    /// How long an unfinished tus upload is kept after its last byte
    tus_expiry_seconds: u64 = "604800", "SECONDS", read_seconds;
    /// Connections open at a time; further ones are refused
    connections_max: usize = "10000", "COUNT", read_count;
    /// The longest request line with its headers
    head_bytes_max: usize = "32KiB", "SIZE", read_size;
    /// How long a connection is kept without a request
    idle_seconds: u64 = "60", "SECONDS", read_seconds;
    /// How long a client may take to send the head of a request
    head_seconds: u64 = "10", "SECONDS", read_seconds;
    /// How long a writer may send nothing before its object is interrupted
    writer_stall_seconds: u64 = "30", "SECONDS", read_seconds;
    /// What a body must bring at least in each such time; a writer that brings less counts as stalled
    body_floor_bytes: u64 = "0", "SIZE", read_bytes;
    /// How long a reader may take nothing before it is disconnected
    reader_stall_seconds: u64 = "60", "SECONDS", read_seconds;
    /// How long requests under way may go on after SIGTERM
    drain_seconds: u64 = "10", "SECONDS", read_seconds_or_none;
    /// How log lines on standard error are written
    log_format: LogFormat = "text", "text|json", read_log_format;
    /// The least important log lines to write: off, error, warn, info, debug or trace
    log_level: LevelFilter = "info", "LEVEL", read_log_level;
}

/// When an append is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// After its bytes are on stable storage.
    Stable,
    /// After its bytes were handed to the kernel: for benchmarks and scratch nodes only.
    None,
}

impl fmt::Display for Durability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Durability::Stable => "stable",
            Durability::None => "none",
        })
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// One setting: a row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name: the field of [`Config`] and the key in the configuration file.
    pub name: &'static str,
    help: &'static str,
    /// What its value is called in the help.
    pub value_name: &'static str,
    /// Its default, as a user would write it.
    pub default: &'static str,
    assign: fn(&mut Config, &str) -> std::result::Result<(), String>,
}

impl Setting {
    /// The setting of this name.
    pub fn named(name: &str) -> Option<&'static Setting> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }

    /// What it is for, in one sentence without a final stop.
    pub fn help(&self) -> &'static str {
        self.help.trim()
    }

    /// The flag that gives it, without the leading dashes.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The environment variable that gives it.
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name.to_ascii_uppercase())
    }

    /// Checks that `text` is a value of this setting.
    ///
    /// # Errors
    /// Why it is not, as the end of a sentence.
    pub fn check(&self, text: &str) -> std::result::Result<(), String> {
        (self.assign)(&mut Config::default(), text)
    }
}

/// Where settings may come from, besides their defaults.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The settings given as flags, by the setting's name.
    pub flags: Vec<(&'static str, String)>,
    /// The environment; only variables that begin with `TAILWATER_` are looked at.
    pub environment: Vec<(OsString, OsString)>,
    /// The configuration file, where a flag names one; else `TAILWATER_CONFIG` may.
    pub file: Option<PathBuf>,
}

/// Where the value of a setting came from.
#[derive(Clone, Debug)]
enum Origin {
    Default,
    Line { path: PathBuf, line: usize },
    Variable(String),
    Flag(String),
}

/// Two or more settings that do not go together, or one that is out of its limits.
struct Conflict {
    settings: &'static [&'static str],
    why: String,
}

/// The configuration in the making: the values so far, and where each came from.
struct Resolution {
    config: Config,
    origins: Vec<(&'static str, Origin)>,
}

impl Config {
    /// The configuration that these sources give: each setting from the strongest source that names it.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] with the source (flag, variable, or file and line) and what is wrong with it.
    pub fn resolve(sources: &Sources) -> Result<Config> {
        let variables = our_variables(&sources.environment)?;
        let named_by_variable =
            || variables.iter().find(|(name, _)| name == FILE_VARIABLE).map(|(_, path)| PathBuf::from(path));

        let mut resolution = Resolution { config: Config::default(), origins: Vec::new() };
        if let Some(path) = sources.file.clone().or_else(named_by_variable) {
            resolution.take_file(&path)?;
        }
        for (name, text) in variables.iter().filter(|(name, _)| name != FILE_VARIABLE) {
            resolution.take_variable(name, text)?;
        }
        for (name, text) in &sources.flags {
            let setting =
                Setting::named(name).ok_or_else(|| invalid(format!("there is no setting {name}")))?;
            resolution.take(setting, text, Origin::Flag(setting.flag()))?;
        }
        resolution.finish()
    }

    /// Checks what no setting can check alone: limits, and settings that must go together.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] with the first rule that does not hold.
    pub fn check(&self) -> Result<()> {
        self.find_conflict().map_err(|conflict| invalid(conflict.why))
    }

    fn find_conflict(&self) -> std::result::Result<(), Conflict> {
        let rule = |holds: bool, settings: &'static [&'static str], why: String| {
            if holds { Ok(()) } else { Err(Conflict { settings, why }) }
        };
        let aligned = |bytes: usize| bytes.is_multiple_of(ALIGNMENT_BYTES);
        let (block, arena) = (self.block_bytes, self.arena_bytes);

        rule(!self.data.as_os_str().is_empty(), &["data"], "data is empty: it names a folder".into())?;
        rule(
            (1..=64).contains(&self.cores),
            &["cores"],
            format!("cores is {}: there are between 1 and 64", self.cores),
        )?;
        rule(
            aligned(block) && BLOCK_BYTES_RANGE.contains(&block),
            &["block_bytes"],
            format!("block_bytes is {block}: it must be a multiple of 4096 between 64KiB and 1MiB"),
        )?;
        rule(
            aligned(arena) && arena / block >= BLOCKS_MIN,
            &["arena_bytes", "block_bytes"],
            format!(
                "arena_bytes is {arena}: it must be a multiple of 4096 and hold at least {BLOCKS_MIN} blocks \
                 of block_bytes ({block})"
            ),
        )?;
        let segment = self.segment_bytes.unwrap_or(u64::MAX);
        rule(
            self.segment_bytes.is_none_or(|bytes| bytes.is_multiple_of(ALIGNMENT_BYTES as u64))
                && segment / block as u64 >= BLOCKS_MIN as u64,
            &["segment_bytes", "block_bytes"],
            format!(
                "segment_bytes is {segment}: it must be a multiple of 4096 and hold at least {BLOCKS_MIN} blocks \
                 of block_bytes ({block})"
            ),
        )?;
        rule(self.spare_segments > 0, &["spare_segments"], "spare_segments is 0: one is needed".into())?;
        rule(
            self.connections_max > 0,
            &["connections_max"],
            "connections_max is 0: nobody could connect".into(),
        )?;
        rule(
            HEAD_BYTES_RANGE.contains(&self.head_bytes_max),
            &["head_bytes_max"],
            format!("head_bytes_max is {}: it must be between 1KiB and 1MiB", self.head_bytes_max),
        )?;
        rule(
            !same_listener(self.listen, self.admin),
            &["listen", "admin"],
            format!("listen and admin are the same address, {}", self.listen),
        )
    }
}

impl Resolution {
    fn take_file(&mut self, path: &Path) -> Result<()> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| invalid(format!("the configuration file {shown} cannot be read: {error}")))?;
        let line_of = |position: usize| 1 + text[..position].matches('\n').count();
        let at_line = |line: usize, why: String| invalid(format!("{shown}, line {line}: {why}"));

        let table = toml::de::DeTable::parse(&text).map_err(|error| {
            let line = line_of(error.span().map_or(0, |span| span.start));
            at_line(line, error.message().replace('\n', ", "))
        })?;
        let mut entries: Vec<_> = table.get_ref().iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let line = line_of(key.span().start);
            let key = key.get_ref().as_ref();
            let setting = Setting::named(key).ok_or_else(|| {
                let nearest = nearest(key, SETTINGS.iter().map(|setting| setting.name.to_owned()));
                at_line(line, format!("there is no setting {key}{nearest}"))
            })?;
            let text = match value.get_ref() {
                toml::de::DeValue::String(text) => text.to_string(),
                toml::de::DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
                other => {
                    return Err(at_line(
                        line,
                        format!("{key} is a text or a decimal number (found: {})", other.type_str()),
                    ));
                }
            };
            self.take(setting, &text, Origin::Line { path: path.to_owned(), line })?;
        }
        Ok(())
    }

    fn take_variable(&mut self, name: &str, text: &str) -> Result<()> {
        let setting = SETTINGS.iter().find(|setting| setting.variable() == name).ok_or_else(|| {
            let known = SETTINGS.iter().map(Setting::variable).chain([FILE_VARIABLE.to_owned()]);
            invalid(format!("{name} in the environment is no setting{}", nearest(name, known)))
        })?;
        self.take(setting, text, Origin::Variable(name.to_owned()))
    }

    fn take(&mut self, setting: &'static Setting, text: &str, origin: Origin) -> Result<()> {
        (setting.assign)(&mut self.config, text)
            .map_err(|why| invalid(format!("{origin}: {} cannot be {text:?}: {why}", setting.name)))?;
        self.origins.push((setting.name, origin));
        Ok(())
    }

    fn finish(self) -> Result<Config> {
        match self.config.find_conflict() {
            Ok(()) => Ok(self.config),
            Err(Conflict { settings, why }) => {
                let origins: Vec<String> =
                    settings.iter().map(|name| format!("{name} from {}", self.origin_of(name))).collect();
                Err(invalid(format!("{why} ({})", origins.join(", "))))
            }
        }
    }

    fn origin_of(&self, name: &str) -> Origin {
        let strongest = self.origins.iter().rev().find(|(taken, _)| *taken == name);
        strongest.map_or(Origin::Default, |(_, origin)| origin.clone())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => formatter.write_str("the default"),
            Origin::Line { path, line } => write!(formatter, "{}, line {line}", path.display()),
            Origin::Variable(name) => write!(formatter, "{name} in the environment"),
            Origin::Flag(flag) => write!(formatter, "--{flag}"),
        }
    }
}

/// The variables of an environment that are addressed to us.
fn our_variables(environment: &[(OsString, OsString)]) -> Result<Vec<(String, String)>> {
    let mut variables = Vec::new();
    for (name, value) in environment {
        if !name.as_encoded_bytes().starts_with(VARIABLE_PREFIX.as_bytes()) {
            continue;
        }
        let name = name.to_string_lossy().into_owned();
        match value.to_str() {
            Some(value) => variables.push((name, value.to_owned())),
            None => return Err(invalid(format!("{name} in the environment is not UTF-8"))),
        }
    }
    Ok(variables)
}

/// "; did you mean ...?" with the known name most like `unknown`, or nothing where none is like it.
fn nearest(unknown: &str, known: impl Iterator<Item = String>) -> String {
    let scored = known.map(|name| (strsim::jaro_winkler(unknown, &name), name));
    match scored.max_by(|(one, _), (other, _)| one.total_cmp(other)) {
        Some((likeness, name)) if likeness > 0.8 => format!("; did you mean {name}?"),
        _ => String::new(),
    }
}

/// Whether both addresses cannot be listened on at the same time. Port 0 is a different one each time.
fn same_listener(one: SocketAddr, other: SocketAddr) -> bool {
    let overlap = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && overlap
}

fn invalid(why: String) -> Error {
    Error::new(Kind::InvalidArgument, why)
}

use resume::read_resume_windows;
pub use resume::{ResumeRule, ResumeWindows};
use retention::read_retention;
pub use retention::{Retention, RetentionRule};

type Read<T> = std::result::Result<T, String>;

fn read_path(text: &str) -> Read<PathBuf> {
    Ok(PathBuf::from(text))
}

fn read_address(text: &str) -> Read<SocketAddr> {
    text.parse().map_err(|_| "an address is an IP and a port, such as 127.0.0.1:8420 or [::]:8420".into())
}

fn read_count(text: &str) -> Read<usize> {
    let count = text.parse().map_err(|_| "a count is a whole number".to_owned())?;
    if count == 0 { Err("at least one is needed".into()) } else { Ok(count) }
}

fn read_cores(text: &str) -> Read<usize> {
    match text {
        // Where the system does not tell, one core is right for any machine.
        "all" => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        _ => read_count(text).map_err(|why| format!("{why}, or \"all\"")),
    }
}

fn read_seconds(text: &str) -> Read<u64> {
    match read_seconds_or_none(text)? {
        0 => Err("at least one second is needed".into()),
        seconds => Ok(seconds),
    }
}

fn read_seconds_or_none(text: &str) -> Read<u64> {
    match text.parse() {
        Ok(seconds) if seconds <= SECONDS_MAX => Ok(seconds),
        Ok(_) => Err("more than a year".into()),
        Err(_) => Err("a whole number of seconds is needed".into()),
    }
}

fn read_size(text: &str) -> Read<usize> {
    read_bytes(text).and_then(|bytes| usize::try_from(bytes).map_err(|_| "too large".into()))
}

fn read_segment_size(text: &str) -> Read<Option<u64>> {
    match text {
        "auto" => Ok(None),
        _ => read_bytes(text).map(Some).map_err(|why| format!("{why}, or \"auto\"")),
    }
}

/// Reads `64MiB`, `64 MB` or plain bytes.
fn read_bytes(text: &str) -> Read<u64> {
    const UNITS: [(&str, u64); 10] = [
        ("", 1),
        ("b", 1),
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
        ("tib", 1 << 40),
        ("kb", 1_000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("tb", 1_000_000_000_000),
    ];
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start_matches(' ').to_ascii_lowercase();
    let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    match (number.is_empty(), factor) {
        (false, Some(factor)) => number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(factor))
            .ok_or_else(|| "too large".into()),
        _ => Err("a size is a whole number of bytes, or one with a unit, such as 64MiB".into()),
    }
}

fn read_durability(text: &str) -> Read<Durability> {
    match text {
        "stable" => Ok(Durability::Stable),
        "none" => Ok(Durability::None),
        _ => Err("it is \"stable\" or \"none\"".into()),
    }
}

fn read_log_format(text: &str) -> Read<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("it is \"text\" or \"json\"".into()),
    }
}

fn read_log_level(text: &str) -> Read<LevelFilter> {
    match text {
        "off" => Ok(LevelFilter::OFF),
        "error" => Ok(LevelFilter::ERROR),
        "warn" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err("it is off, error, warn, info, debug or trace".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn resolve(
        flags: &[(&'static str, &str)],
        environment: &[(&str, &str)],
        toml: Option<&str>,
    ) -> std::result::Result<Config, String> {
        let toml = toml.map(file);
        let sources = Sources {
            flags: flags.iter().map(|(name, text)| (*name, (*text).to_owned())).collect(),
            environment: environment.iter().map(|(name, text)| (name.into(), text.into())).collect(),
            file: toml.as_ref().map(|file| file.path().to_owned()),
        };
        Config::resolve(&sources).map_err(|error| error.to_string())
    }

    #[test]
    fn the_strongest_source_wins() {
        // (flag, environment, file) -> the value; the default is 2.
        let table = [
            (None, None, None, 2),
            (None, None, Some("3"), 3),
            (None, Some("4"), None, 4),
            (None, Some("4"), Some("3"), 4),
            (Some("5"), None, None, 5),
            (Some("5"), None, Some("3"), 5),
            (Some("5"), Some("4"), None, 5),
            (Some("5"), Some("4"), Some("3"), 5),
        ];
        for (flag, variable, key, expected) in table {
            let flags: Vec<_> = flag.map(|text| ("spare_segments", text)).into_iter().collect();
            let environment: Vec<_> =
                variable.map(|text| ("TAILWATER_SPARE_SEGMENTS", text)).into_iter().collect();
            let toml = key.map(|text| format!("spare_segments = {text}\n"));
            let config = resolve(&flags, &environment, toml.as_deref()).unwrap();
            assert_eq!(config.spare_segments, expected, "{flag:?} {variable:?} {key:?}");
        }
    }

    #[test]
    fn settings_that_no_source_names_keep_their_default() {
        let config = resolve(&[("idle_seconds", "5")], &[("HOME", "/")], Some("head_seconds = 6")).unwrap();
        assert_eq!(config, Config { idle_seconds: 5, head_seconds: 6, ..Config::default() });
    }

    #[test]
    fn defaults_are_what_is_promised() {
        let config = Config::default();
        assert_eq!(config.data, Path::new("./tailwater-data"));
        assert_eq!(config.listen.to_string(), "127.0.0.1:8420");
        assert_eq!(config.admin.to_string(), "127.0.0.1:8421");
        assert_eq!(config.cores, std::thread::available_parallelism().unwrap().get());
        assert_eq!(config.durability, Durability::Stable);
        assert_eq!((config.arena_bytes, config.block_bytes), (32 << 20, 512 << 10));
        assert_eq!((config.segment_bytes, config.spare_segments), (None, 2));
        assert_eq!((config.log_format, config.log_level), (LogFormat::Text, LevelFilter::INFO));
        config.check().unwrap();
    }

    #[test]
    fn every_setting_can_be_given_by_every_source() {
        for setting in SETTINGS {
            resolve(&[(setting.name, setting.default)], &[], None).unwrap();
            resolve(&[], &[(&setting.variable(), setting.default)], None).unwrap();
            resolve(&[], &[], Some(&format!("{} = {:?}", setting.name, setting.default))).unwrap();
        }
    }

    #[test]
    fn the_readme_has_a_row_for_every_setting() {
        let readme = include_str!("../README.md");
        for setting in SETTINGS {
            let row = format!("| `{}` | `{}` | {} |", setting.name, setting.default, setting.help());
            assert!(readme.lines().any(|line| line == row), "README.md does not have this row:\n{row}");
        }
    }

    #[test]
    fn the_environment_can_name_the_file_and_a_flag_overrides_it() {
        let (one, other) = (file("cores = 1"), file("cores = 2"));
        let mut sources = Sources {
            environment: vec![("TAILWATER_CONFIG".into(), one.path().into())],
            ..Sources::default()
        };
        assert_eq!(Config::resolve(&sources).unwrap().cores, 1);
        sources.file = Some(other.path().to_owned());
        assert_eq!(Config::resolve(&sources).unwrap().cores, 2);
    }

    #[test]
    fn what_is_no_setting_is_an_error_that_names_it_and_the_nearest() {
        let error = resolve(&[], &[], Some("\n# sizes\narena_byte = 1")).unwrap_err();
        assert!(
            error.ends_with(", line 3: there is no setting arena_byte; did you mean arena_bytes?"),
            "{error}"
        );

        let error = resolve(&[], &[], Some("[limits]\nconnections_max = 1")).unwrap_err();
        assert!(error.ends_with(", line 1: there is no setting limits"), "{error}");

        let error = resolve(&[], &[("TAILWATER_DURABLITY", "none")], None).unwrap_err();
        let expected =
            "TAILWATER_DURABLITY in the environment is no setting; did you mean TAILWATER_DURABILITY?";
        assert_eq!(error, expected);

        let error = resolve(&[], &[("TAILWATER_CONFIGURATION", "/etc/x")], None).unwrap_err();
        assert!(error.ends_with("did you mean TAILWATER_CONFIG?"), "{error}");

        assert!(resolve(&[], &[("TAILWATERS", "1"), ("tailwater_cores", "x")], None).is_ok());
    }

    #[test]
    fn a_bad_value_names_its_source() {
        let error = resolve(&[("cores", "two")], &[], None).unwrap_err();
        assert_eq!(error, "--cores: cores cannot be \"two\": a count is a whole number, or \"all\"");

        let error = resolve(&[], &[("TAILWATER_LISTEN", "8420")], None).unwrap_err();
        assert!(
            error.starts_with("TAILWATER_LISTEN in the environment: listen cannot be \"8420\": "),
            "{error}"
        );

        let error = resolve(&[], &[], Some("cores = 1\nidle_seconds = \"soon\"")).unwrap_err();
        assert!(
            error.ends_with(", line 2: idle_seconds cannot be \"soon\": a whole number of seconds is needed")
        );

        let error = resolve(&[("idle_seconds", "5")], &[], Some("idle_seconds = 0")).unwrap_err();
        assert!(error.contains("line 1"), "a bad value must not hide behind a stronger source: {error}");
    }

    #[test]
    fn a_file_that_is_not_toml_or_not_there_is_an_error_with_its_place() {
        let error = resolve(&[], &[], Some("cores = 1\ncores 2\n")).unwrap_err();
        assert!(error.contains(", line 2: "), "{error}");
        let error = resolve(&[], &[], Some("cores = 1\ncores = 2\n")).unwrap_err();
        assert!(error.contains(", line 2: "), "{error}");
        let error = resolve(&[], &[], Some("cores = [1]")).unwrap_err();
        assert!(error.ends_with("line 1: cores is a text or a decimal number (found: array)"), "{error}");

        let sources = Sources { file: Some("/nowhere/tailwater.toml".into()), ..Sources::default() };
        let error = Config::resolve(&sources).unwrap_err().to_string();
        assert!(
            error.starts_with("the configuration file /nowhere/tailwater.toml cannot be read: "),
            "{error}"
        );
    }

    #[test]
    fn a_number_in_the_file_is_read_as_toml_reads_it() {
        assert_eq!(resolve(&[], &[], Some("connections_max = 1_000")).unwrap().connections_max, 1000);
        assert_eq!(resolve(&[], &[], Some("arena_bytes = 67_108_864")).unwrap().arena_bytes, 64 << 20);
        assert!(resolve(&[], &[], Some("spare_segments = 0x10")).is_err());
        assert!(resolve(&[], &[], Some("spare_segments = -1")).is_err());
    }

    #[test]
    fn sizes_are_plain_bytes_or_have_a_unit() {
        let table = [
            ("0", 0),
            ("4096", 4096),
            ("7B", 7),
            ("64KiB", 64 << 10),
            ("64 MiB", 64 << 20),
            ("2gib", 2 << 30),
            ("3TiB", 3 << 40),
            ("5kB", 5_000),
            ("6MB", 6_000_000),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in table {
            assert_eq!(read_bytes(text), Ok(bytes), "{text:?}");
        }
        for text in ["", "MiB", "-1", "+1", "1.5GiB", "64M", "64MiBs", "0x10", " 1", "16777216TiB"] {
            assert!(read_bytes(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn settings_that_do_not_go_together_are_refused_with_their_sources() {
        let refused: [&[(&'static str, &str)]; 12] = [
            &[("block_bytes", "100000")],
            &[("block_bytes", "32KiB")],
            &[("block_bytes", "2MiB"), ("arena_bytes", "1GiB")],
            &[("block_bytes", "0")],
            &[("arena_bytes", "4095KiB")],
            &[("arena_bytes", "67108865")],
            &[("segment_bytes", "1MiB")],
            &[("segment_bytes", "67108865")],
            &[("head_bytes_max", "1000")],
            &[("head_bytes_max", "2MiB")],
            &[("listen", "127.0.0.1:9"), ("admin", "127.0.0.1:9")],
            &[("listen", "0.0.0.0:9"), ("admin", "127.0.0.1:9")],
        ];
        for flags in refused {
            let error = resolve(flags, &[], None).unwrap_err();
            assert!(
                error.contains(&format!("from --{}", flags[0].0.replace('_', "-"))),
                "{flags:?}: {error}"
            );
        }
        let taken: [&[(&'static str, &str)]; 5] = [
            &[("block_bytes", "64KiB"), ("arena_bytes", "512KiB")],
            &[("block_bytes", "1MiB"), ("arena_bytes", "8MiB")],
            &[("segment_bytes", "4MiB")],
            &[("listen", "127.0.0.1:0"), ("admin", "127.0.0.1:0")],
            &[("listen", "127.0.0.1:9"), ("admin", "127.0.0.2:9")],
        ];
        for flags in taken {
            assert!(resolve(flags, &[], None).is_ok(), "{flags:?} was refused");
        }

        let error =
            resolve(&[("arena_bytes", "1MiB")], &[("TAILWATER_BLOCK_BYTES", "1MiB")], None).unwrap_err();
        let origins =
            "(arena_bytes from --arena-bytes, block_bytes from TAILWATER_BLOCK_BYTES in the environment)";
        assert!(error.ends_with(origins), "{error}");
    }

    #[test]
    fn limits_hold_for_a_configuration_made_by_hand_too() {
        for config in [
            Config { cores: 0, ..Config::default() },
            Config { spare_segments: 0, ..Config::default() },
            Config { connections_max: 0, ..Config::default() },
            Config { data: PathBuf::new(), ..Config::default() },
        ] {
            assert!(config.check().is_err(), "{config:?}");
        }
    }
}
