//! Statistics of what goes through a model's blocks, taken on a walk of the parent's own blocks and kept: a folder
//! ([`crate::walk::stored`]), or an imatrix.
//!
//! A block's sums are on the disk before the next one is walked: no more than one block's are in memory. A run that was stopped
//! goes on at the first block whose file is missing; the streams up to there are computed again, so that the bytes are those of
//! a run that was not.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::files::{HashedInput, hashed};
use super::work::{self, Fact, Work};
use super::{Event, Listener, Place, describe};
use crate::device::Device;
use crate::disk::{self, Target, sync};
use crate::error::{Error, Result};
use crate::formats::imatrix::Imatrix;
use crate::formats::sha256;
use crate::interrupt;
use crate::methods::calibration::Rows;
use crate::methods::prune::memory::Residency;
use crate::methods::prune::score::AT_ONCE;
use crate::methods::sequential::fill_unreached;
use crate::model::{
    Checkpoint, Compute, Model, Outline, Pass, WeightSource, Weights, block_counts, identity_of,
};
use crate::walk::stored::{
    About, FILE, Part, block_file, head_file, input_widths, module_of, write_about, write_block,
    write_head, write_imatrix,
};
use crate::walk::{Kind, Statistics, Through, Walk};

/// Where the statistics are made in the work folder.
const MADE: &str = "statistics.part";

/// What is calibrated.
#[derive(Clone, Copy)]
pub struct Calibrating<'a> {
    /// The model.
    pub model: &'a Checkpoint,
    /// The kinds of sums that are taken.
    pub kinds: &'a [Kind],
    /// The tokens.
    pub rows: &'a Rows,
    /// The text that they are of.
    pub text: &'a str,
    /// The first token of it that is used.
    pub offset: usize,
    /// Whether an imatrix file is made, which has squares alone, and not a folder.
    pub imatrix: bool,
}

/// What calibrating takes, from headers alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Tokens that go through a block at a time, about.
    pub tokens_at_once: usize,
    /// Bytes of all sums on the disk.
    pub disk_bytes: u64,
    /// Most bytes of sums in memory at once: those of one block.
    pub block_bytes: u64,
    /// Most bytes of device memory in use at once, about, with all weights there.
    pub resident: u64,
    /// The same with a block's weights at a time.
    pub streamed: u64,
    /// Operations of the second moments, a multiplication and an addition for each element on and above the diagonal.
    pub gram_flops: u64,
    /// Operations of the products with the blocks' weights.
    pub forward_flops: u64,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Calibrated {
    /// What the statistics are of.
    pub about: About,
    /// Blocks that an earlier run had written.
    pub taken_over: usize,
    /// Where weights were.
    pub residency: Residency,
    /// Seconds of reading, hashing and uploading weights before the walk.
    pub load_seconds: f64,
    /// Seconds of the walk: forward passes and sums, to the last number read back.
    pub walk_seconds: f64,
    /// Seconds of writing sums.
    pub write_seconds: f64,
}

impl Calibrating<'_> {
    /// What it takes on a device.
    pub fn estimate(&self, device: &Device, compute: Compute) -> Result<Estimate> {
        let outline = Outline::of(self.model)?;
        let config = self.model.config();
        let (hidden, tokens) = (config.hidden_size as u64, self.rows.ids.len() as u64);
        let mut estimate = Estimate {
            tokens_at_once: self.at_once(device),
            disk_bytes: 0,
            block_bytes: 0,
            resident: 0,
            streamed: 0,
            gram_flops: 0,
            forward_flops: 0,
        };
        let mut widths: Vec<Vec<usize>> =
            (0..config.layers()).map(|layer| input_widths(config, layer)).collect();
        widths.push(vec![config.hidden_size]); // the head's
        let grams = self.kinds.contains(&Kind::Gram);
        for block in &widths {
            let mut bytes = 0;
            for &width in block {
                let sums = self.kinds.iter().filter(|kind| **kind != Kind::Cosine);
                bytes += sums.map(|kind| 4 * values(*kind, width)).sum::<u64>();
                if grams {
                    estimate.gram_flops += (width as u64) * (width as u64 + 1) * tokens;
                }
            }
            estimate.disk_bytes += bytes;
            estimate.block_bytes = estimate.block_bytes.max(bytes);
        }
        let mut places = vec![0u64; config.layers()];
        let (mut ends, mut all) = (0u64, 0u64);
        for (spec, format) in outline.tensors() {
            let bytes = format.bytes(spec.rows, spec.columns);
            all += bytes;
            match spec.layer {
                Some(layer) => {
                    places[layer] += bytes;
                    if spec.rows > 1 {
                        estimate.forward_flops += 2 * (spec.rows * spec.columns) as u64 * tokens;
                    }
                }
                None => ends = ends.max(bytes),
            }
        }
        let at_once = (estimate.tokens_at_once.max(self.rows.length()) as u64).min(tokens);
        let columns = |layer| block_counts(config, &outline.specs, layer).columns;
        let widest = (0..config.layers()).map(columns).max().unwrap_or(0) as u64;
        let element = compute.activation.size() as u64;
        let streams = 4 * tokens * hidden;
        let work = at_once * (4 * (widest + 3 * hidden) + element * widest) + estimate.block_bytes;
        // A block's weights may still be in use when the next one's arrive.
        let block = 2 * places.iter().max().unwrap_or(&0);
        // All streams are embedded at once before they are parted.
        estimate.resident = all + (streams + work).max(2 * streams);
        estimate.streamed = (block + streams + work).max(ends + 2 * streams);
        Ok(estimate)
    }

    /// Tokens that go through a block at a time: as many as one binding has room for.
    fn at_once(&self, device: &Device) -> usize {
        let widest = self.model.config().widest();
        let widest = widest.intermediate_size.max(self.model.config().hidden_size);
        let fits = device.max_tensor_bytes() / (4 * widest as u64).max(1);
        AT_ONCE.min(fits as usize).max(self.rows.length())
    }

    /// Where weights go within a budget of device memory; an error if nothing does.
    pub fn residency(&self, estimate: &Estimate, budget: Option<u64>) -> Result<Residency> {
        match budget {
            Some(budget) if estimate.resident > budget => match estimate.streamed <= budget {
                true => Ok(Residency::Streamed),
                false => Err(Error::OutOfMemory {
                    what: format!(
                        "a walk with a block's weights at a time, {} tokens and {} bytes of a block's sums",
                        self.rows.ids.len(),
                        estimate.block_bytes
                    ),
                    bytes: estimate.streamed,
                    used: 0,
                    budget,
                }),
            },
            _ => Ok(Residency::Resident),
        }
    }

    /// Refuses, before any work, what [`calibrate`] would refuse.
    pub fn check(&self, place: &Place<'_>) -> Result<()> {
        let target = self.target(place);
        match place.resume {
            true => {}
            false => target.check()?,
        }
        let work = work::work_path(place.out)?;
        match !place.resume && work::is_there(&work) {
            true => Err(Error::Unfinished { path: work }),
            false => Ok(()),
        }
    }

    fn target<'a>(&'a self, place: &Place<'a>) -> Target<'a> {
        let (path, force) = (place.out, place.force);
        Target { path, force, folder: !self.imatrix, model: self.model.path() }
    }

    fn about(&self, identity: String, pass: &Pass<'_>) -> About {
        let ids = self.rows.ids.iter().flat_map(|id| id.to_le_bytes());
        let part = Part {
            text: self.text.into(),
            tokens_sha256: sha256(ids.collect::<Vec<u8>>()),
            offset: self.offset,
            samples: self.rows.samples,
            length: self.rows.length(),
        };
        let blocks = self.model.config().layers();
        let about = About::new((self.model.path(), identity), blocks, self.kinds, part);
        About { compute: pass.compute.name().into(), device: describe(pass.device), ..about }
    }
}

/// Numbers of a sum over an input of this width.
fn values(kind: Kind, width: usize) -> u64 {
    kind.shape(width).iter().map(|length| *length as u64).product()
}

/// Takes statistics and keeps them. An interruption, or a crash, leaves the work folder `OUT.work`, with which a call with
/// `resume` gives the same files as an uninterrupted one.
pub fn calibrate(
    what: &Calibrating<'_>,
    pass: &Pass<'_>,
    place: Place<'_>,
    budget: Option<u64>,
    listen: Listener<'_>,
) -> Result<Calibrated> {
    what.check(&place)?;
    let begin = Instant::now();
    let estimate = what.estimate(pass.device, pass.compute)?;
    let residency = what.residency(&estimate, budget)?;
    let path = work::work_path(place.out)?;
    let known = work::known_inputs(&path);
    let inputs: Vec<HashedInput> = what
        .model
        .sources()
        .into_iter()
        .map(|source| hashed(source.path().display().to_string(), source, &known))
        .collect::<Result<_>>()?;
    let hashes: Vec<&str> = inputs.iter().map(|input| input.file.sha256.as_str()).collect();
    let about = what.about(identity_of(what.model, &hashes)?, pass);
    let facts = facts(&about, estimate.tokens_at_once);
    let nothing = |about: &About| Calibrated {
        about: about.clone(),
        taken_over: about.blocks,
        residency,
        load_seconds: begin.elapsed().as_secs_f64(),
        walk_seconds: 0.0,
        write_seconds: 0.0,
    };
    if place.resume && finished(&place, what.imatrix, &about) {
        if path.is_dir() && !place.keep_work {
            Work::open(path, true, facts, inputs)?.remove()?;
        }
        return Ok(nothing(&about));
    }
    what.target(&place).check_standing()?;
    let work = Work::open(path, place.resume, facts, inputs)?;
    interrupt::resumable(Some(work.path().into()));
    let mut done = nothing(&about);
    let walked = what.walk(pass, &work, &estimate, &mut done, listen);
    let kept = walked.and_then(|folder| what.keep(&folder, &about, &place, &work));
    interrupt::resumable(None);
    match kept {
        Ok(()) if place.keep_work => Ok(done),
        Ok(()) => work.remove().map(|()| done),
        Err(Error::Interrupted) => Err(Error::Suspended { work: work.path().into() }),
        Err(error) => {
            work.leave(&error);
            Err(error)
        }
    }
}

/// Everything that the sums depend on.
fn facts(about: &About, at_once: usize) -> Vec<Fact> {
    let part = &about.parts[0];
    let rows = format!(
        "{} x {} tokens of {} from token {} on, sha256 {}",
        part.samples, part.length, part.text, part.offset, part.tokens_sha256
    );
    let facts = [
        ("version of lopper", env!("CARGO_PKG_VERSION").to_string()),
        ("model", format!("sha256 {}", about.model_sha256)),
        ("device", about.device.clone()),
        ("compute", about.compute.clone()),
        ("calibration", rows),
        ("tokens at once", at_once.to_string()),
        ("kinds", about.kinds.join(", ")),
    ];
    facts.into_iter().map(|(what, value)| Fact { what: what.into(), value }).collect()
}

/// Whether the statistics stand at `out` already. A folder there is no input of the run: it may be replaced.
fn finished(place: &Place<'_>, imatrix: bool, about: &About) -> bool {
    if !imatrix {
        let text = std::fs::read(place.out.join(FILE)).unwrap_or_default();
        return serde_json::from_slice::<About>(&text).is_ok_and(|found| found == *about);
    }
    let found = if place.force { None } else { Imatrix::open(place.out).ok() };
    found.is_some_and(|found| {
        found.model_sha256.as_ref() == Some(&about.model_sha256)
            && found.tokens_sha256.as_ref() == Some(&about.parts[0].tokens_sha256)
    })
}

impl Calibrating<'_> {
    /// Walks through the model and writes every block's sums. Returns their folder.
    fn walk(
        &self,
        pass: &Pass<'_>,
        work: &Work,
        estimate: &Estimate,
        done: &mut Calibrated,
        listen: Listener<'_>,
    ) -> Result<PathBuf> {
        let begin = Instant::now();
        let config = self.model.config();
        let folder = work.path().join(MADE);
        std::fs::create_dir_all(&folder).map_err(Error::write(&folder))?;
        // What a killed run was writing.
        disk::sweep(&folder);
        let missing: Vec<bool> =
            (0..config.layers()).map(|layer| !block_file(&folder, layer).exists()).collect();
        let head_missing = !head_file(&folder).exists();
        done.taken_over = missing.iter().filter(|missing| !**missing).count();
        let last = missing.iter().rposition(|missing| *missing);
        if last.is_none() && !head_missing {
            return Ok(folder);
        }
        let model = match done.residency {
            Residency::Resident => Some(Model::load(pass.device, self.model, |done, total| {
                listen(Event::Progress { step: "loading", done, total });
                interrupt::check()
            })?),
            Residency::Streamed => None,
        };
        let source = match &model {
            Some(model) => WeightSource::Resident(model),
            None => WeightSource::Streamed(pass.device, self.model),
        };
        done.load_seconds += begin.elapsed().as_secs_f64();
        let begin = Instant::now();
        let (mut write_seconds, layers) = (0.0, config.layers());
        let rows = self.rows;
        let mut walk = Walk::new(source, *pass, &rows.ids, rows.samples, estimate.tokens_at_once)?;
        while let Some(step) = walk.next_block()? {
            let layer = step.layer();
            listen(Event::Progress { step: "calibrating", done: layer, total: layers });
            if !missing[layer] {
                step.advance(Through::Parent, None)?;
                continue;
            }
            let mut statistics = Statistics::new(pass.device, self.kinds, rows.length());
            step.advance(Through::Parent, Some(&mut statistics))?;
            let mut sums = statistics.read(|slot| module_of(config, layer, slot))?;
            let specs = self.model.specs().iter().filter(|spec| spec.layer == Some(layer));
            fill_unreached(specs, self.kinds, &mut sums);
            let start = Instant::now();
            write_block(&folder, config, layer, &sums)?;
            write_seconds += start.elapsed().as_secs_f64();
        }
        listen(Event::Progress { step: "calibrating", done: layers, total: layers });
        if head_missing {
            let mut statistics = Statistics::new(pass.device, self.kinds, rows.length());
            walk.observe_head(&mut statistics)?;
            let sums = statistics.read(|slot| module_of(config, layers, slot))?;
            let start = Instant::now();
            for input in sums.inputs.values() {
                write_head(&folder, config, input)?;
            }
            write_seconds += start.elapsed().as_secs_f64();
        }
        done.write_seconds = write_seconds;
        done.walk_seconds = begin.elapsed().as_secs_f64() - write_seconds;
        Ok(folder)
    }

    /// Gives the statistics their place.
    fn keep(&self, folder: &Path, about: &About, place: &Place<'_>, work: &Work) -> Result<()> {
        write_about(folder, about)?;
        self.model.unchanged()?;
        let target = self.target(place);
        if self.imatrix {
            let config = self.model.config();
            return target.write(|path| write_imatrix(folder, about, config, path));
        }
        disk::write_manifest(folder)?;
        sync(folder)?;
        interrupt::check()?;
        target.take(folder, &work.path().join("replaced"))
    }
}
