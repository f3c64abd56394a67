//! mergekit's configuration files (YAML) as merge stages. What a file says is what mergekit 0.1.5 makes of it: its defaults, its
//! rescaling of what DARE leaves, its counting along the depth. What this program does not do is an error that names the key.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::stages::RecipeStage;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    merge_method: String,
    base_model: Option<String>,
    models: Option<Vec<Source>>,
    slices: Option<Vec<Slice>>,
    #[serde(default)]
    parameters: Map<String, Value>,
    dtype: Option<String>,
    out_dtype: Option<String>,
    tokenizer_source: Option<String>,
    tokenizer: Option<Value>,
    chat_template: Option<Value>,
    modules: Option<Value>,
}

/// A model, or blocks of one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    model: String,
    layer_range: Option<(usize, usize)>,
    #[serde(default)]
    parameters: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Slice {
    sources: Vec<Source>,
    base_model: Option<String>,
    residual_weight: Option<f64>,
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// What mergekit knows of a method.
struct Known {
    name: &'static str,
    /// Numbers of each model, beside `weight` where it has that.
    own: &'static [&'static str],
    /// Parameters of all models together.
    shared: &'static [&'static str],
    /// Whether a base model must be there, whose own numbers do not count.
    has_base: bool,
    /// How what stays is scaled where the file does not say.
    rescale: Option<bool>,
}

const METHODS: &[Known] = &[
    Known {
        name: "linear",
        own: &["weight"],
        shared: &["normalize"],
        has_base: false,
        rescale: None,
    },
    Known { name: "slerp", own: &[], shared: &["t"], has_base: true, rescale: None },
    Known { name: "passthrough", own: &["scale"], shared: &[], has_base: false, rescale: None },
    Known {
        name: "model_stock",
        own: &[],
        shared: &["filter_wise"],
        has_base: true,
        rescale: None,
    },
    Known {
        name: "task_arithmetic",
        own: &["weight"],
        shared: &["normalize", "lambda"],
        has_base: true,
        rescale: None,
    },
    thinned("ties", &["weight", "density"], false),
    thinned("dare_linear", &["weight", "density"], true),
    thinned("dare_ties", &["weight", "density"], true),
    thinned("breadcrumbs", &["weight", "density", "gamma"], false),
    thinned("breadcrumbs_ties", &["weight", "density", "gamma"], false),
];

const fn thinned(name: &'static str, own: &'static [&'static str], rescale: bool) -> Known {
    let shared = &["normalize", "lambda", "rescale"];
    Known { name, own, shared, has_base: true, rescale: Some(rescale) }
}

/// Reads a file's text: the model that the stage runs on, and the stage. `path` is for messages.
pub fn read(path: &Path, text: &str) -> Result<(String, RecipeStage)> {
    let malformed = |found: String| Error::Malformed {
        path: path.into(),
        what: "merge configuration".into(),
        offset: None,
        expected: "what mergekit reads".into(),
        found: found.replace('\n', " "),
    };
    let value: Value =
        serde_saphyr::from_str(text).map_err(|error| malformed(error.to_string()))?;
    let document = Document::deserialize(value).map_err(|error| malformed(error.to_string()))?;
    let reading = Reading { path, document };
    let (model, keys) = reading.stage()?;
    let stage = toml::Table::try_from(keys).map_err(|error| malformed(error.to_string()))?;
    let stage = RecipeStage::deserialize(stage).map_err(|error| malformed(error.to_string()))?;
    Ok((model, stage))
}

/// A document that is being read.
struct Reading<'a> {
    path: &'a Path,
    document: Document,
}

impl Reading<'_> {
    fn wrong(&self, key: &str, expected: &str, found: impl ToString) -> Error {
        let found = found.to_string();
        Error::Key { path: self.path.into(), key: key.into(), expected: expected.into(), found }
    }

    /// The stage's model and keys.
    fn stage(&self) -> Result<(String, Map<String, Value>)> {
        let document = &self.document;
        let method = METHODS.iter().find(|known| known.name == document.merge_method);
        let method = method.ok_or_else(|| {
            let names: Vec<&str> = METHODS.iter().map(|known| known.name).collect();
            self.wrong("merge_method", &names.join(", "), &document.merge_method)
        })?;
        for (key, value) in [
            ("tokenizer", &document.tokenizer),
            ("chat_template", &document.chat_template),
            ("modules", &document.modules),
        ] {
            if let Some(value) = value.as_ref().filter(|value| !value.is_null()) {
                return Err(self.wrong(key, "none: this version does nothing with it", value));
            }
        }
        let mut keys = Map::new();
        keys.insert("kind".into(), "merge".into());
        keys.insert("method".into(), method.name.into());
        let (model, inputs) = match (&document.models, &document.slices) {
            (Some(models), None) => (self.models(method, models, None, &mut keys)?, true),
            (None, Some(slices)) if method.name == "passthrough" => {
                (self.passthrough(method, slices, &mut keys)?, false)
            }
            (None, Some(slices)) => (self.whole(method, slices, &mut keys)?, true),
            _ => return Err(self.wrong("models", "either models or slices", "both or neither")),
        };
        let dtype = document.out_dtype.as_ref().or(document.dtype.as_ref());
        if let Some(dtype) = dtype.filter(|_| inputs) {
            let known = [("float16", "f16"), ("bfloat16", "bf16"), ("float32", "f32")];
            let plain = known.iter().find(|(name, _)| name == dtype);
            let (_, plain) =
                plain.ok_or_else(|| self.wrong("dtype", "float16, bfloat16 or float32", dtype))?;
            keys.insert("dtype".into(), (*plain).into());
        }
        if let Some(source) = &document.tokenizer_source {
            let rule = match source.as_str() {
                "base" | "union" => source.as_str(),
                other if *other == model => "base",
                other => {
                    let expected = "base, union or the model that the stage runs on";
                    return Err(self.wrong("tokenizer_source", expected, other));
                }
            };
            if inputs {
                keys.insert("vocabulary".into(), rule.into());
            }
        }
        Ok((model, keys))
    }

    /// A slice of all blocks of all models is a merge of whole models.
    fn whole(
        &self,
        method: &Known,
        slices: &[Slice],
        keys: &mut Map<String, Value>,
    ) -> Result<String> {
        let expected = "one slice with all blocks of every model, but for passthrough";
        let [slice] = slices else {
            return Err(self.wrong("slices", expected, format!("{} slices", slices.len())));
        };
        self.check_slice(slice)?;
        let range = slice.sources.first().and_then(|source| source.layer_range);
        let Some((0, layers)) = range else {
            return Err(self.wrong("layer_range", expected, format!("{range:?}")));
        };
        if let Some(other) = slice.sources.iter().find(|source| source.layer_range != range) {
            return Err(self.wrong("layer_range", expected, format!("{:?}", other.layer_range)));
        }
        keys.insert("layers".into(), layers.into());
        self.models(method, &slice.sources, Some(slice), keys)
    }

    fn check_slice(&self, slice: &Slice) -> Result<()> {
        let base =
            slice.base_model.as_ref().filter(|own| Some(*own) != self.document.base_model.as_ref());
        match (base, slice.residual_weight) {
            (None, None) => Ok(()),
            (Some(base), _) => Err(self.wrong("base_model", "that of all slices", base)),
            (_, Some(weight)) => Err(self.wrong("residual_weight", "none", weight)),
        }
    }

    /// Whole models. Returns the one that the stage runs on.
    fn models(
        &self,
        method: &Known,
        models: &[Source],
        slice: Option<&Slice>,
        keys: &mut Map<String, Value>,
    ) -> Result<String> {
        if method.name == "passthrough" {
            return Err(self.wrong("models", "slices, of passthrough", "whole models"));
        }
        let base = self.document.base_model.as_ref();
        if method.has_base && base.is_none() {
            let expected = format!("the model that the others began with, for {}", method.name);
            return Err(self.wrong("base_model", &expected, "none"));
        }
        let first = base.or(models.first().map(|source| &source.model));
        let first = first.ok_or_else(|| self.wrong("models", "models", "none"))?.clone();
        let of_all = self.scopes(None, slice);
        self.check_names(method, models, slice)?;
        // The first model's own numbers are the stage's.
        let own = models.iter().find(|source| source.model == first);
        if !method.has_base {
            let scopes = self.scopes(own, slice);
            let weight = self.required(&scopes, "weight", &first)?;
            keys.insert("weight".into(), weight);
        }
        if method.own.contains(&"density") {
            keys.insert("density".into(), json!(1.0));
        }
        for name in method.shared {
            match (*name, self.setting(&of_all, name)?) {
                (_, None) if *name == "t" => return Err(self.wrong("t", "a number", "none")),
                (_, None) => {}
                ("t" | "lambda", Some(found)) => _ = keys.insert((*name).into(), found),
                (_, Some(Value::Bool(found))) if *name == "rescale" => {
                    let rescale = if found { "l1" } else { "none" };
                    keys.insert("rescale".into(), rescale.into());
                }
                (_, Some(Value::Bool(found))) => _ = keys.insert((*name).into(), found.into()),
                (_, Some(other)) => return Err(self.wrong(name, "true or false", other)),
            }
        }
        if method.rescale == Some(true) && !keys.contains_key("rescale") {
            keys.insert("rescale".into(), "l1".into());
        }
        let mut further = Vec::new();
        for source in models.iter().filter(|source| source.model != first) {
            let scopes = self.scopes(Some(source), slice);
            let mut input = Map::new();
            input.insert("model".into(), source.model.as_str().into());
            for name in method.own {
                let found = match *name {
                    "weight" => Some(self.required(&scopes, name, &source.model)?),
                    _ => self.setting(&scopes, name)?,
                };
                input.extend(found.map(|found| ((*name).to_string(), found)));
            }
            further.push(Value::Object(input));
        }
        keys.insert("with".into(), further.into());
        Ok(first)
    }

    /// Slices of single models, stacked.
    fn passthrough(
        &self,
        method: &Known,
        slices: &[Slice],
        keys: &mut Map<String, Value>,
    ) -> Result<String> {
        let source = |slice: &Slice| -> Result<()> {
            self.check_slice(slice)?;
            self.check_names(method, &slice.sources, Some(slice))?;
            match slice.sources.len() {
                1 => Ok(()),
                count => Err(self.wrong("sources", "one, of passthrough", count)),
            }
        };
        slices.iter().try_for_each(source)?;
        let first = slices.first().and_then(|slice| slice.sources.first());
        let first = self.document.base_model.as_ref().or(first.map(|source| &source.model));
        let first = first.ok_or_else(|| self.wrong("slices", "slices", "none"))?.clone();
        let mut stacked = Vec::new();
        for slice in slices {
            let source = &slice.sources[0];
            let Some((begin, end)) = source.layer_range else {
                return Err(self.wrong("layer_range", "the blocks of each slice", "none"));
            };
            let mut entry = Map::new();
            if source.model != first {
                entry.insert("model".into(), source.model.as_str().into());
            }
            entry.insert("layers".into(), json!([begin, end]));
            let scale = self.setting(&self.scopes(Some(source), Some(slice)), "scale")?;
            entry.extend(scale.map(|scale| ("scale".to_string(), scale)));
            stacked.push(Value::Object(entry));
        }
        keys.insert("slice".into(), stacked.into());
        Ok(first)
    }

    /// Where a parameter is looked for, what counts most first.
    fn scopes<'s>(
        &'s self,
        source: Option<&'s Source>,
        slice: Option<&'s Slice>,
    ) -> Vec<&'s Map<String, Value>> {
        let own = source.map(|source| &source.parameters);
        let of_slice = slice.map(|slice| &slice.parameters);
        own.into_iter().chain(of_slice).chain([&self.document.parameters]).collect()
    }

    /// An error if a parameter is none of the method's.
    fn check_names(&self, method: &Known, sources: &[Source], slice: Option<&Slice>) -> Result<()> {
        let own = sources.iter().map(|source| &source.parameters);
        let maps =
            own.chain(slice.map(|slice| &slice.parameters)).chain([&self.document.parameters]);
        let known = |name: &&String| {
            let names = || method.own.iter().chain(method.shared);
            // How masks are held in memory is no matter of results.
            names().any(|known| known == name) || *name == "int8_mask"
        };
        match maps.flat_map(Map::keys).find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => {
                let names = [method.own, method.shared].concat().join(", ");
                Err(self.wrong("parameters", &format!("{names} of {}", method.name), name))
            }
        }
    }

    /// A number of every tensor.
    fn required(&self, scopes: &[&Map<String, Value>], name: &str, model: &str) -> Result<Value> {
        let expected = "a number of every model for every tensor";
        let found = self.setting(scopes, name)?;
        let found = found.ok_or_else(|| self.wrong(name, expected, format!("none of {model}")))?;
        let filters = |list: &Vec<Value>| list.iter().all(Value::is_object);
        let open = found.as_array().filter(|list| filters(list)).is_some_and(|list| {
            list.iter().all(|entry| entry.get("filter").is_some_and(|filter| filter != "*"))
        });
        match open {
            false => Ok(found),
            true => Err(self.wrong(name, expected, format!("filters of {model} without a rest"))),
        }
    }

    /// A parameter by what the scopes say, as a recipe has it: where one has filters, the next counts for what they leave open.
    fn setting(&self, scopes: &[&Map<String, Value>], name: &str) -> Result<Option<Value>> {
        let mut filters: Vec<Value> = Vec::new();
        for found in scopes.iter().filter_map(|scope| scope.get(name)) {
            match self.entries(name, found)? {
                Entries::All(value) if filters.is_empty() => return Ok(Some(value)),
                Entries::All(value) => {
                    filters.push(json!({ "value": value }));
                    break;
                }
                Entries::Filters(list) => filters.extend(list),
            }
        }
        Ok((!filters.is_empty()).then(|| filters.into()))
    }

    fn entries(&self, name: &str, found: &Value) -> Result<Entries> {
        // Python's YAML takes 1e-3 for a text.
        let number = |value: &Value| match value {
            Value::String(text) => {
                text.parse::<f64>().ok().filter(|n| n.is_finite()).map(Value::from)
            }
            Value::Number(_) => Some(value.clone()),
            _ => None,
        };
        let wrong =
            || self.wrong(name, "a number, a list of numbers, or values with filters", found);
        let list = |list: &Vec<Value>| -> Option<Value> {
            list.iter().map(number).collect::<Option<Vec<Value>>>().map(Value::from)
        };
        let values = |value: &Value| match value {
            Value::Array(several) => list(several).filter(|_| !several.is_empty()),
            value => number(value),
        };
        let filtered = |entry: &Value| -> Option<Value> {
            let value = values(entry.get("value")?)?;
            match entry.get("filter").filter(|filter| !filter.is_null()) {
                None => Some(json!({ "value": value })),
                Some(filter) => Some(json!({ "filter": filter.as_str()?, "value": value })),
            }
        };
        match found {
            Value::Bool(_) => Ok(Entries::All(found.clone())),
            Value::Object(_) => {
                filtered(found).map(|entry| Entries::Filters(vec![entry])).ok_or_else(wrong)
            }
            Value::Array(several) if several.iter().any(Value::is_object) => {
                let entries: Option<Vec<Value>> = several.iter().map(filtered).collect();
                entries.map(Entries::Filters).ok_or_else(wrong)
            }
            other => values(other).map(Entries::All).ok_or_else(wrong),
        }
    }
}

/// What a parameter is set to.
enum Entries {
    All(Value),
    Filters(Vec<Value>),
}
