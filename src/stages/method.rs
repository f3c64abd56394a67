//! Stage kinds that have several methods: each method is a struct of its own, whose fields are its recipe keys and its command's
//! flags, and a row of the kind's table. The command takes the flags of all methods; those that the chosen one lacks are refused
//! by name, and so are such keys in recipes.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use clap::builder::{
    OsStringValueParser, PossibleValue, PossibleValuesParser, Resettable, TypedValueParser,
};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use serde::de::{DeserializeOwned, Error as _};

use super::{STAGES, Stage, StageKind};

/// A method of a stage kind.
#[derive(Debug)]
pub struct Method {
    /// `method` in recipes and in the command.
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// Reads a stage from the keys of its table, `method` among them.
    pub parse: fn(toml::Table) -> Result<Arc<dyn Stage>, toml::de::Error>,
    /// The command that takes its flags, and nothing else.
    pub command: fn() -> Command,
    /// Reads a stage from what that command found.
    pub from_flags: fn(&ArgMatches) -> Result<Arc<dyn Stage>, clap::Error>,
}

/// A stage of one of several methods.
pub trait OfMethod: Stage + clap::Args + DeserializeOwned + 'static {
    /// The same stage, of the method of this name, with the defaults that are this method's.
    fn of_method(self, name: &'static str) -> Self;
}

/// A row of a kind's table: `method!(Struct, "name", "what it does")`.
macro_rules! method {
    ($stage:ty, $name:literal, $about:literal) => {
        $crate::stages::method::Method {
            name: $name,
            about: $about,
            parse: |table| {
                let stage: $stage = table.try_into()?;
                let stage = $crate::stages::method::OfMethod::of_method(stage, $name);
                Ok(std::sync::Arc::new(stage))
            },
            command: || <$stage as clap::Args>::augment_args(clap::Command::new("stage")),
            from_flags: |matches| {
                let stage = <$stage as clap::FromArgMatches>::from_arg_matches(matches)?;
                let stage = $crate::stages::method::OfMethod::of_method(stage, $name);
                Ok(std::sync::Arc::new(stage))
            },
        }
    };
}
pub(super) use method;

/// The stage of a recipe's table, by its key `method`; without one the first of the methods.
pub(super) fn parse(
    methods: &[Method],
    table: toml::Table,
) -> Result<Arc<dyn Stage>, toml::de::Error> {
    let named = match table.get("method") {
        None => methods.first(),
        Some(name) => methods.iter().find(|method| name.as_str() == Some(method.name)),
    };
    let Some(method) = named else {
        let found = table.get("method").map_or_else(String::new, ToString::to_string);
        let expected = names(methods).join(", ");
        let elsewhere = table.get("method").and_then(toml::Value::as_str).and_then(elsewhere);
        let elsewhere = elsewhere
            .map_or_else(String::new, |kind| format!("; it is one of {} stages", kind.name));
        return Err(toml::de::Error::custom(format!(
            "method {found}, which is none of {expected}{elsewhere}"
        )));
    };
    (method.parse)(table)
}

fn names(methods: &[Method]) -> Vec<&'static str> {
    methods.iter().map(|method| method.name).collect()
}

/// The kind that has a method of this name.
fn elsewhere(name: &str) -> Option<&'static StageKind> {
    STAGES.iter().find(|kind| kind.methods.iter().any(|method| method.name == name))
}

/// Names of methods, as a flag takes them: of one that another command has the error says so.
#[derive(Clone, Debug)]
struct Names(&'static [Method]);

impl TypedValueParser for Names {
    type Value = String;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        let known = PossibleValuesParser::new(names(self.0));
        known.parse_ref(command, arg, value).map_err(|error| {
            let name = value.to_string_lossy();
            let Some(kind) = elsewhere(&name) else { return error };
            let command = kind.command.replace("METHOD", &name);
            let text = format!("{name} is a method of another command: {command}\n");
            clap::Error::raw(ErrorKind::InvalidValue, text)
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().map(|method| PossibleValue::new(method.name))))
    }
}

/// The flags of all methods, each with the names of those that have it.
fn union(methods: &[Method]) -> Vec<(Arg, Vec<&'static str>)> {
    let mut known: Vec<(Arg, Vec<&'static str>)> = Vec::new();
    for method in methods {
        for arg in (method.command)().get_arguments() {
            match known.iter_mut().find(|(other, _)| other.get_id() == arg.get_id()) {
                Some((_, of)) => of.push(method.name),
                None => known.push((arg.clone(), vec![method.name])),
            }
        }
    }
    known
}

/// Adds the flags of all methods to a command, as texts that [`stage`] reads again with what the method says of them. `about`: what
/// a method decides.
pub(super) fn flags(methods: &'static [Method], about: &str, command: Command) -> Command {
    let width = methods.iter().map(|method| method.name.len()).max().unwrap_or(0).max(12);
    let line = |method: &Method| format!("\n  {:<width$} {}", method.name, method.about);
    let lines = methods.iter().map(line);
    let choice = Arg::new("method")
        .long("method")
        .value_name("METHOD")
        .default_value(methods[0].name)
        .value_parser(Names(methods))
        .hide_possible_values(true)
        .help(format!("{about}{}", lines.collect::<String>()));
    let mut command = command.arg(choice);
    let mut known = union(methods);
    known.sort_by_key(|(_, of)| std::cmp::Reverse(of.len()));
    for (arg, of) in known {
        command = command.arg(as_text(&arg, &of, methods.len()));
    }
    command
}

/// A flag that any text goes through.
fn as_text(arg: &Arg, of: &[&str], methods: usize) -> Arg {
    let takes_values = arg.get_action().takes_values();
    let mut help = vec![arg.get_help().map(ToString::to_string).unwrap_or_default()];
    if takes_values {
        let choices = arg.get_possible_values();
        let choices: Vec<_> = choices.iter().map(|value| value.get_name()).collect();
        if !choices.is_empty() {
            help.push(format!("[{}]", choices.join(", ")));
        }
        let default = arg.get_default_values().iter().map(|value| value.to_string_lossy());
        let default: Vec<_> = default.collect();
        if !default.is_empty() {
            help.push(format!("[default: {}]", default.join(", ")));
        }
    }
    let mut flag = arg.clone().required(false);
    if of.len() < methods {
        help.push(format!("({})", of.join(", ")));
        flag = flag.help_heading("Of some methods");
    }
    flag = flag.help(help.join(" "));
    match takes_values {
        // What may stand there is in the help; the method's own command judges it.
        true => flag.default_value(Resettable::Reset).value_parser(OsStringValueParser::new()),
        false => flag,
    }
}

/// The stage that the flags of the command `kind` ask for.
pub(super) fn stage(
    kind: &str,
    methods: &'static [Method],
    matches: &ArgMatches,
) -> Result<Arc<dyn Stage>, clap::Error> {
    let name = matches.get_one::<String>("method").map_or(methods[0].name, String::as_str);
    let method = methods.iter().find(|method| method.name == name).unwrap_or(&methods[0]);
    let usage = format!("lopper {kind} MODEL --method {name} [OPTIONS]");
    let own = (method.command)().no_binary_name(true).override_usage(usage);
    let mut given: Vec<OsString> = Vec::new();
    for (arg, of) in union(methods) {
        let id = arg.get_id().as_str();
        if matches.value_source(id) != Some(ValueSource::CommandLine) {
            continue;
        }
        let long = arg.get_long().unwrap_or(id);
        if !of.contains(&name) {
            let text = format!("--{long} is a flag of --method {}, not of {name}\n", of.join(", "));
            return Err(clap::Error::raw(ErrorKind::ArgumentConflict, text));
        }
        if !arg.get_action().takes_values() {
            given.push(format!("--{long}").into());
            continue;
        }
        for value in matches.get_many::<OsString>(id).into_iter().flatten() {
            // With `=`, so that a value may begin with a hyphen.
            let mut flag = OsString::from(format!("--{long}="));
            flag.push(value);
            given.push(flag);
        }
    }
    (method.from_flags)(&own.try_get_matches_from(given)?)
}
