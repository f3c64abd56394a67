//! `prune` of whole experts of a mixture.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::KIND;
use crate::device::Device;
use crate::error::Result;
use crate::graph::Slot;
use crate::methods::BadField;
use crate::methods::calibration::Calibration;
use crate::methods::prune::experts::{ExpertScore, ExpertUse, FewerExperts, kept, outline, uses};
use crate::methods::prune::memory::forward_estimate;
use crate::model::{Compute, Config, Outline, WeightSource, Weights};
use crate::stages::method::OfMethod;
use crate::stages::{Context, Needs, Planned, Report, Stage, StageKind, keys, save, saved};

/// Expert pruning: in each layer so many experts stay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// How what goes is found
    #[arg(skip)]
    #[serde(default)]
    method: String,
    /// Experts that are left in each layer
    #[arg(long, value_name = "N")]
    experts: usize,
    /// What says how much an expert matters: the tokens that go to it, the sum over them of its share times the length of its
    /// result, their mean of it (REAP), or luck
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    score: ExpertScore,
    /// The text whose tokens go to experts
    #[command(flatten)]
    #[serde(default)]
    calibration: Calibration,
}

/// In the stage's folder, and in the artifact: what the text made of each expert, and which ones stayed.
const EXPERTS: &str = "experts.json";
/// In the stage's folder: what is known of the first blocks' experts.
const USES: &str = "uses.json";

/// What is told of a block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct BlockReport {
    layer: usize,
    /// By their numbers in the model before.
    kept: Vec<usize>,
    /// Of each expert of the model before; none where luck decided.
    uses: Vec<ExpertUse>,
}

impl Experts {
    /// An error if this model has no experts, or not enough.
    fn check(&self, config: &Config) -> Result<(), BadField> {
        let Some(experts) = config.experts else {
            let expected = "a method for models without experts";
            let found = format!("experts, of a model of the family {}", config.family.name);
            return Err(BadField::new("method", expected, found));
        };
        match (1..experts.count).contains(&self.experts) {
            true => Ok(()),
            false => {
                let expected =
                    format!("1 to {}: the model has {} a layer", experts.count - 1, experts.count);
                Err(BadField::new("experts", expected, self.experts))
            }
        }
    }
}

impl OfMethod for Experts {
    fn of_method(mut self, name: &'static str) -> Self {
        self.method = name.into();
        self.calibration.fill(64, 256);
        self
    }
}

impl Stage for Experts {
    fn kind(&self) -> &'static StageKind {
        &KIND
    }

    fn keys(&self) -> Map<String, Value> {
        keys(self)
    }

    fn needs(&self) -> Needs<'_> {
        let calibration = self.score.needs_text().then_some(&self.calibration);
        Needs { calibration, ..Needs::default() }
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        self.check(&model.config).map_err(BadField::in_recipe)?;
        let (before, left) = (model.config.experts, outline(model, self.experts));
        let mut warnings = Vec::new();
        if let (Some(before), Some(after)) = (before, left.config.experts)
            && after.used < before.used
        {
            warnings.push(format!(
                "a token went to {} experts and goes to the {} that are left now",
                before.used, after.used
            ));
        }
        let mut changes = HashMap::new();
        for spec in left.specs.iter().filter(|spec| spec.slot == Slot::Router) {
            let all = before.map_or(0, |experts| experts.count);
            changes.insert(spec.name.clone(), format!("cut from {:?}", [all, spec.columns]));
        }
        let (samples, length) = (self.calibration.samples(), self.calibration.length());
        let memory = forward_estimate(model, samples.max(1), length.max(2), Compute::F32);
        Ok(Planned {
            outline: left,
            changes,
            peak_device_bytes: if self.score.needs_text() { memory.streamed } else { 0 },
            peak_host_bytes: 3 * 4 * model.largest(),
            warnings,
        })
    }

    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        let config = model.config();
        self.check(config).map_err(BadField::in_recipe)?;
        let reports: Vec<BlockReport> = match context.saved(EXPERTS)? {
            Some(reports) => reports,
            None => {
                let found = self.found(model, context)?;
                let stay = kept(config, &found, (self.score, self.experts), context.seed);
                let report = |(layer, kept): (usize, Vec<usize>)| {
                    let uses = found.get(layer).cloned().unwrap_or_default();
                    BlockReport { layer, kept, uses }
                };
                let reports = stay.into_iter().enumerate().map(report).collect();
                save(context.folder, EXPERTS, &reports)?;
                reports
            }
        };
        let kept = reports.into_iter().map(|block| block.kept).collect();
        context.write("cutting", &FewerExperts::new(model, kept))
    }

    fn unrounded<'a>(
        &self,
        model: &'a dyn Weights,
        _: &'a Device,
        folder: &Path,
    ) -> Result<Option<Box<dyn Weights + 'a>>> {
        let blocks: Option<Vec<BlockReport>> = saved(folder, EXPERTS)?;
        let kept = |blocks: Vec<BlockReport>| blocks.into_iter().map(|block| block.kept).collect();
        let fewer = blocks.map(|blocks| FewerExperts::new(model, kept(blocks)));
        Ok(fewer.map(|fewer| Box::new(fewer) as Box<dyn Weights + 'a>))
    }

    fn report(&self, folder: &Path) -> Result<Option<Report>> {
        let Some(blocks) = saved::<Vec<BlockReport>>(folder, EXPERTS)? else { return Ok(None) };
        let unreached = |one: &ExpertUse| one.tokens == 0;
        let missed =
            blocks.iter().flat_map(|block| &block.uses).filter(|one| unreached(one)).count();
        let warnings = (missed > 0).then(|| {
            format!("no token of the calibration reached {missed} of the experts: they matter least here, whatever others would make of them")
        });
        let value = json!({"schema": 1, "score": self.score, "blocks": blocks});
        Ok(Some(Report { warnings: warnings.into_iter().collect(), ..Report::new(EXPERTS, value) }))
    }
}

impl Experts {
    /// What the text makes of every expert; nothing where luck decides.
    fn found(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Vec<Vec<ExpertUse>>> {
        let Some(rows) = context.rows.filter(|_| self.score.needs_text()) else {
            return Ok(Vec::new());
        };
        let known = context.saved(USES)?.unwrap_or_default();
        let (pass, layers) = (context.pass, model.config().layers());
        let Context { folder, progress, .. } = context;
        let source = WeightSource::Streamed(pass.device, model);
        uses(source, &pass, rows, known, &mut |found| {
            progress("experts", found.len(), layers);
            save(folder, USES, &found)
        })
    }
}
