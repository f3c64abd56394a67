//! A teacher's likeliest tokens of every row of training data, stored: written in one pass over the rows in their order, and read
//! in every epoch, so that the teacher need not be on the device beside the student (as Muralidharan et al. 2024, arXiv
//! 2407.14679, and others train from logits that were computed before).
//!
//! The folder has a record of what the file is of, and the file: of each row, of each of its tokens, `top` tokens (u32, little
//! endian), then as many log-probabilities (f16). A file that was not finished is continued behind its last whole row.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use half::f16;
use serde::{Deserialize, Serialize};

use super::teacher::TeacherModel;
use crate::data::training::Examples;
use crate::device::{Device, HostTensor};
use crate::disk::write_record;
use crate::error::{Error, Result};
use crate::graph::Pass;
use crate::interrupt;
use crate::model::Taught;
use crate::tensor::DType;

/// What a stored teacher is of. Another one is not read in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tie {
    /// The identity of the teacher's files.
    pub teacher: String,
    /// The digest of the rows and their order.
    pub data: String,
    /// The type that it computed in.
    pub compute: String,
    /// Tokens of each place.
    pub top: usize,
    /// Tokens of a row.
    pub length: usize,
    /// Rows.
    pub rows: usize,
}

const RECORD: &str = "teacher.json";
const TOKENS: &str = "teacher.bin";
/// Bytes of a token and its log-probability.
const EACH: usize = 6;

/// A teacher's likeliest tokens of every row.
#[derive(Debug)]
pub struct StoredTeacher {
    file: Mutex<File>,
    path: PathBuf,
    tie: Tie,
}

impl Tie {
    fn row_bytes(&self) -> usize {
        self.length * self.top * EACH
    }

    /// Bytes of all rows.
    pub fn bytes(&self) -> u64 {
        (self.rows * self.row_bytes()) as u64
    }
}

impl StoredTeacher {
    /// The rows that a folder has whole already. An empty or missing folder has none; what is of another teacher or other data is
    /// an error that says what differs.
    pub fn rows_done(folder: &Path, tie: &Tie) -> Result<usize> {
        let record = folder.join(RECORD);
        if !record.exists() {
            return Ok(0);
        }
        let text = std::fs::read(&record).map_err(Error::read(&record))?;
        let malformed = |found: String| Error::Malformed {
            path: record.clone(),
            what: "stored teacher".into(),
            offset: None,
            expected: format!("{tie:?}"),
            found,
        };
        let found: Tie =
            serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
        if found != *tie {
            return Err(malformed(format!("{found:?}; another folder, or remove this one")));
        }
        let path = folder.join(TOKENS);
        match path.exists() {
            false => Ok(0),
            true => {
                let bytes = std::fs::metadata(&path).map_err(Error::read(&path))?.len();
                Ok(((bytes / tie.row_bytes() as u64) as usize).min(tie.rows))
            }
        }
    }

    /// Opens what is whole.
    pub fn open(folder: &Path, tie: &Tie) -> Result<Self> {
        let path = folder.join(TOKENS);
        let done = Self::rows_done(folder, tie)?;
        if done < tie.rows {
            return Err(Error::Malformed {
                path,
                what: "stored teacher".into(),
                offset: None,
                expected: format!("{} rows", tie.rows),
                found: done.to_string(),
            });
        }
        let file = File::open(&path).map_err(Error::read(&path))?;
        Ok(Self { file: Mutex::new(file), path, tie: tie.clone() })
    }

    /// Writes the rows that a folder has not yet, `at_once` rows at a time, and opens it. `progress` is told of rows done, of all.
    pub fn write(
        folder: &Path,
        tie: &Tie,
        teacher: &TeacherModel,
        pass: &Pass<'_>,
        examples: &Examples,
        at_once: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::write(folder))?;
        let mut done = Self::rows_done(folder, tie)?;
        let record = serde_json::to_string(tie).expect("a tie is plain values");
        write_record(&folder.join(RECORD), &record)?;
        let path = folder.join(TOKENS);
        let mut open = OpenOptions::new();
        let open = open.create(true).truncate(false).write(true).open(&path);
        let mut file = open.map_err(Error::write(&path))?;
        let end = (done * tie.row_bytes()) as u64;
        // What was cut off in the middle of a row is written again.
        file.set_len(end)
            .and_then(|()| file.seek(SeekFrom::Start(end)))
            .map_err(Error::write(&path))?;
        while done < tie.rows {
            interrupt::check()?;
            progress(done, tie.rows);
            let batch = examples.rows(done..(done + at_once.max(1)).min(tie.rows));
            teacher.read(pass, &batch.ids, batch.sequences, &[])?;
            let tokens: Vec<u32> = (0..batch.ids.len() as u32).collect();
            // As many tokens at a time as logits fit.
            let step = teacher.rows_at_once(pass.device).max(1);
            let mut bytes = Vec::with_capacity(batch.sequences * tie.row_bytes());
            for tokens in tokens.chunks(step) {
                let Taught::Top(ids, logs) = teacher.says(pass, tokens)? else {
                    unreachable!("a teacher that is stored says its likeliest tokens");
                };
                let (ids, logs) = (pass.device.read(&ids)?, pass.device.read(&logs)?.to_f32());
                let places = ids.words.chunks(tie.top).zip(logs.chunks(tie.top));
                for (ids, logs) in places {
                    bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
                    bytes.extend(logs.iter().flat_map(|log| f16::from_f32(*log).to_le_bytes()));
                }
            }
            file.write_all(&bytes).map_err(Error::write(&path))?;
            done += batch.sequences;
        }
        file.sync_all().map_err(Error::write(&path))?;
        Self::open(folder, tie)
    }

    /// Tokens of each place.
    pub fn top(&self) -> usize {
        self.tie.top
    }

    /// What is stored of some tokens of a batch, which is these rows.
    pub fn says(&self, device: &Device, rows: &[usize], tokens: &[u32]) -> Result<Taught> {
        let (top, length) = (self.tie.top, self.tie.length);
        let (mut ids, mut logs) = (Vec::new(), Vec::new());
        let mut bytes = vec![0; self.tie.row_bytes()];
        let mut at = None;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        for token in tokens {
            let (row, place) = (rows[*token as usize / length], *token as usize % length);
            if at != Some(row) {
                let first = (row * self.tie.row_bytes()) as u64;
                let read =
                    file.seek(SeekFrom::Start(first)).and_then(|_| file.read_exact(&mut bytes));
                read.map_err(Error::read(&self.path))?;
                at = Some(row);
            }
            let (own_ids, own_logs) = bytes[place * top * EACH..][..top * EACH].split_at(4 * top);
            let id = |four: &[u8]| u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
            ids.extend(own_ids.chunks_exact(4).map(id));
            let log = |two: &[u8]| f16::from_le_bytes([two[0], two[1]]).to_f32();
            logs.extend(own_logs.chunks_exact(2).map(log));
        }
        let shape = [tokens.len(), top];
        let ids = device.upload(&HostTensor::from_u32(&shape, &ids), "a teacher's tokens")?;
        let logs = HostTensor::from_f32(DType::F32, &shape, &logs);
        Ok(Taught::Top(ids, device.upload(&logs, "a teacher's log-probabilities")?))
    }
}
