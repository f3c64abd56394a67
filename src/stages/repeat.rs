//! Stages that are repeated (`kind = "repeat"`): a little is pruned, the model learns, a little more is pruned, as Minitron does it
//! (Muralidharan et al. 2024, arXiv 2407.14679). A repetition is unfolded when a recipe is read, so that everything behind that
//! knows stages alone; each of them says which round it is of.
//!
//! ```toml
//! [[stage]]
//! kind = "repeat"
//! times = 4
//!
//! [[stage.stage]]
//! kind = "prune"
//! by_round = { ratio = { total = 0.5 } }     # or a value for each round: ratio = [0.2, 0.2, 0.1, 0.1]
//!
//! [[stage.stage]]
//! kind = "distil"
//! by_round = { tokens = [100_000, 100_000, 200_000, 400_000] }
//! ```

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

use super::RecipeStage;

/// `kind` of a repetition.
const KIND: &str = "repeat";
/// The key of a repeated stage under which stand the keys that differ by round.
const BY_ROUND: &str = "by_round";
/// The key of a table that stands for a value each round.
const TOTAL: &str = "total";
/// The key that says of a ratio that it is one of the recipe's model.
const OF_FIRST: &str = "of_first";
/// More rounds than anybody means.
const MOST: usize = 1000;

/// What stands in a recipe's list of stages.
struct Listed(Vec<RecipeStage>);

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        unfold(Table::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

/// A recipe's list of stages, repetitions unfolded.
pub(crate) fn listed<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<RecipeStage>, D::Error> {
    let listed = Vec::<Listed>::deserialize(deserializer)?;
    Ok(listed.into_iter().flat_map(|Listed(stages)| stages).collect())
}

/// The stages that a table of a recipe's list stands for: one, or those of all rounds in their order. An error says what is
/// wrong, with the round and the key.
pub(crate) fn unfold(table: Table) -> Result<Vec<RecipeStage>, String> {
    if !repeats(&table) {
        return RecipeStage::read(table).map(|stage| vec![stage]);
    }
    let wrong = |text: String| format!("in a {KIND} stage: {text}");
    let (times, tables) = read(table).map_err(wrong)?;
    let mut stages = Vec::new();
    for round in 0..times {
        for table in &tables {
            let stage = of_round(table, round, times).and_then(RecipeStage::read);
            let stage = stage.map_err(|text| wrong(format!("round {}: {text}", round + 1)))?;
            stages.push(stage.in_round(round + 1));
        }
    }
    Ok(stages)
}

fn repeats(table: &Table) -> bool {
    table.get("kind").and_then(Value::as_str) == Some(KIND)
}

/// How often a repetition's stages are run, and their tables.
fn read(table: Table) -> Result<(usize, Vec<Table>), String> {
    let (mut times, mut tables) = (None, Vec::new());
    for (key, value) in table {
        match (key.as_str(), value) {
            ("kind", _) => {}
            ("times", value) => {
                let given = value.as_integer().and_then(|times| usize::try_from(times).ok());
                let given = given.filter(|times| (1..=MOST).contains(times));
                times = Some(
                    given.ok_or_else(|| format!("times {value}, which is not from 1 to {MOST}"))?,
                );
            }
            ("stage", Value::Array(list)) => {
                for stage in list {
                    match stage {
                        Value::Table(table) if repeats(&table) => {
                            return Err(format!("a {KIND} stage within it; it has plain stages"));
                        }
                        Value::Table(table) => tables.push(table),
                        other => return Err(format!("stage {other}, which is no table")),
                    }
                }
            }
            (key, _) => {
                return Err(format!("unknown field `{key}`, expected `times` or `stage`"));
            }
        }
    }
    let times = times.ok_or("no times: how many rounds there are")?;
    match tables.is_empty() {
        true => Err("no [[stage.stage]]: what is done in each round".into()),
        false => Ok((times, tables)),
    }
}

/// A stage's table as it is in a round, from 0, of so many.
fn of_round(table: &Table, round: usize, times: usize) -> Result<Table, String> {
    let mut table = table.clone();
    let by_round = match table.remove(BY_ROUND) {
        None => return Ok(table),
        Some(Value::Table(by_round)) => by_round,
        Some(other) => return Err(format!("{BY_ROUND} {other}, which is no table of keys")),
    };
    for (key, values) in by_round {
        if table.contains_key(&key) {
            return Err(format!("`{key}` stands in {BY_ROUND} and beside it"));
        }
        let value = match values {
            Value::Array(list) if list.len() == times => list[round].clone(),
            Value::Array(list) => {
                return Err(format!(
                    "{BY_ROUND}.{key} has {} values, and there are {times} rounds",
                    list.len()
                ));
            }
            Value::Table(schedule) => {
                put_total(&mut table, &key, &schedule, (round, times))?;
                continue;
            }
            other => {
                return Err(format!(
                    "{BY_ROUND}.{key} {other}, which is neither a list nor {{ {TOTAL} = … }}"
                ));
            }
        };
        table.insert(key, value);
    }
    Ok(table)
}

/// Puts into a stage's table the ratio of a round, from 0, of so many that come to a total.
///
/// Each round takes as much of the first model, s = total / times. Stages that know how to are told the ratio of that after the
/// round, (i + 1) s (`of_first`): whole units then fall as in one cut, and the last round leaves what one cut would. So are those
/// that make zeros, which stay where they are. For others, what a round finds is 1 - i s of the first model, and its ratio
/// s / (1 - i s): the product of what rounds leave is 1 - total.
fn put_total(
    table: &mut Table,
    key: &str,
    schedule: &Table,
    (round, times): (usize, usize),
) -> Result<(), String> {
    let name = format!("{BY_ROUND}.{key}");
    if key != "ratio" {
        return Err(format!("{name}: only a ratio has a {TOTAL}; give a list of {times} values"));
    }
    let number = |value: &Value| value.as_float().or(value.as_integer().map(|whole| whole as f64));
    let total = match schedule.get(TOTAL).filter(|_| schedule.len() == 1) {
        None => return Err(format!("{name} {}, which is not {{ {TOTAL} = … }}", inline(schedule))),
        Some(value) => {
            number(value).filter(|total| *total > 0.0 && *total < 1.0).ok_or_else(|| {
                format!("{name}.{TOTAL} {value}, which is not more than 0 and less than 1")
            })?
        }
    };
    let mut whole = table.clone();
    whole.insert(key.into(), Value::Float(total));
    let zeros = RecipeStage::read(whole.clone())?.leaves_zeros();
    whole.insert(OF_FIRST.into(), Value::Boolean(true));
    let of_first = RecipeStage::read(whole).is_ok();
    let (share, before) = (total / times as f64, round as f64);
    let ratio = match zeros || of_first {
        true => share * (before + 1.0),
        false => share / (1.0 - share * before),
    };
    table.insert(key.into(), Value::Float(ratio));
    if of_first {
        table.insert(OF_FIRST.into(), Value::Boolean(true));
    }
    Ok(())
}

fn inline(table: &Table) -> String {
    Value::Table(table.clone()).to_string()
}
