//! Conversations over a pipe.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use libtest_mimic::{Failed, Trial};
use lopper::device::Device;
use lopper::model::{Checkpoint, Sampling, generate};
use serde_json::Value;
use tempfile::TempDir;

use crate::models::{load, pass};
use crate::program::{NANO, Run, command, read_json, succeeds};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("cli_chat": two_turns, refusals);
    if cfg!(unix) {
        trials.extend(suite!("cli_chat": stopped));
    }
    trials
}

const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";

/// A folder with an embedded model, `m`, and a chat template.
pub fn world(name: &str) -> Result<TempDir, Failed> {
    let folder = TempDir::new()?;
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(name);
    std::fs::create_dir(folder.path().join("m"))?;
    for entry in std::fs::read_dir(assets)? {
        let from = entry?.path();
        std::fs::copy(&from, folder.path().join("m").join(from.file_name().unwrap_or_default()))?;
    }
    let config = folder.path().join("m/tokenizer_config.json");
    let mut fields = read_json(&config)?;
    fields["chat_template"] = TEMPLATE.into();
    std::fs::write(config, fields.to_string())?;
    Ok(folder)
}

fn piped(mut command: Command) -> Command {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The program with these lines on its standard input.
fn talk(folder: &TempDir, arguments: &str, lines: &str) -> Result<Run, Failed> {
    let mut child = piped(command(folder.path(), &format!("{arguments} --device cpu"))).spawn()?;
    child.stdin.take().ok_or("a pipe")?.write_all(lines.as_bytes())?;
    Ok(child.wait_with_output()?.into())
}

/// Two turns, a reset and the first again: answers are those of the whole conversation read anew, though most of it is in the cache.
fn two_turns() -> Result<(), Failed> {
    let folder = world("nano-llama")?;
    let chat = "chat m -n 8 --system Short. --json=out.json";
    let lines =
        "Good morning, my friends.\n\nAnd what of peace?\n/reset\nGood morning, my friends.\n";
    let run = talk(&folder, chat, lines)?;
    assert!(run.code == Some(0), "{run}");
    let report = read_json(folder.path().join("out.json"))?;
    let turns = report["turns"].as_array().ok_or("turns")?;
    assert_eq!(turns.len(), 3, "{report}");
    let text = |turn: usize, who: &str| turns[turn][who].as_str().unwrap_or_default().to_string();
    let printed: Vec<String> = (0..3).map(|turn| text(turn, "assistant") + "\n").collect();
    assert_eq!(run.out, printed.concat());
    assert_eq!((&turns[0]["tokens"], &turns[0]["user"]), (&turns[2]["tokens"], &turns[2]["user"]));

    let checkpoint = Checkpoint::open(&folder.path().join("m").to_string_lossy())?;
    let tokenizer = checkpoint.tokenizer()?;
    let model = load(&Device::Cpu, &checkpoint)?;
    let mut messages = vec![("system", "Short.".to_string())];
    for (turn, found) in turns.iter().take(2).enumerate() {
        messages.push(("user", text(turn, "user")));
        let prompt = tokenizer.encode(&tokenizer.render_chat(&messages, true)?, true)?;
        let pass = pass(&Device::Cpu);
        let ends = |id| tokenizer.is_eos(id);
        let fresh = generate(&model, &pass, &prompt, 8, Sampling::GREEDY, ends, |_| Ok(true))?;
        let tokens: Vec<Value> = fresh.tokens.iter().map(|token| (*token).into()).collect();
        assert_eq!(found["tokens"], Value::from(tokens), "turn {turn}");
        assert_eq!(found["prompt_tokens"], prompt.len());
        messages.push(("assistant", text(turn, "assistant")));
    }
    // The first prompt at least is in the cache when the second comes.
    let number = |turn: usize, field: &str| turns[turn][field].as_u64().unwrap_or(0);
    let (reused, first) = (number(1, "reused_tokens"), number(0, "prompt_tokens"));
    assert!(reused + 1 >= first && number(0, "reused_tokens") == 0, "{reused} of {first}");
    // `generate --chat` asks the same of one message.
    let alone = talk(&folder, "chat m -n 8 --json=alone.json", "Good morning,\n/exit\nnever\n")?;
    assert!(alone.code == Some(0), "{alone}");
    let turns = read_json(folder.path().join("alone.json"))?["turns"].clone();
    let mut once = command(folder.path(), "generate m -n 8 --chat --device cpu --json=-");
    let once = Run::from(once.args(["--prompt", "Good morning,"]).output()?).json()?;
    assert_eq!(
        (turns[0]["tokens"].clone(), turns.as_array().map(Vec::len)),
        (once["tokens"].clone(), Some(1))
    );
    Ok(())
}

/// A model without a template; a message without room.
fn refusals() -> Result<(), Failed> {
    let folder = world("nano-llama")?;
    talk(&folder, &format!("chat {NANO}"), "Hello\n")?.refused(2, "chat template");
    let long = "peace ".repeat(600);
    let run = talk(&folder, "chat m -n 4 --json=out.json", &format!("{long}\nHello\n"))?;
    assert!(run.code == Some(0) && run.err.contains("of 512 tokens"), "{run}");
    let turns = read_json(folder.path().join("out.json"))?["turns"].clone();
    assert_eq!(turns.as_array().map(Vec::len), Some(1), "{turns}");
    // Nothing is said of what a stranger's standard output cannot show.
    let quiet = succeeds(&folder, "chat m -n 4 -q")?;
    assert!(quiet.out.is_empty() && quiet.err.is_empty(), "{quiet}");
    Ok(())
}

/// Ctrl-C stops an answer and the conversation goes on; between answers it ends the program.
fn stopped() -> Result<(), Failed> {
    let folder = world("tiny-llama")?;
    let arguments = "chat m -n 2000 --device cpu --temperature 1.2 --json=out.json";
    let mut child = piped(command(folder.path(), arguments)).spawn()?;
    let id = child.id().to_string();
    let press = || Command::new("kill").args(["-INT", &id]).output().map(drop);
    let (mut input, mut output) =
        (child.stdin.take().ok_or("a pipe")?, child.stdout.take().ok_or("a pipe")?);
    input.write_all(b"Tell me of the American people.\n")?;
    output.read_exact(&mut [0; 8])?;
    press()?;
    input.write_all(b"/exit\n")?;
    let mut rest = Vec::new();
    output.read_to_end(&mut rest)?;
    let run = Run::from(child.wait_with_output()?);
    assert!(run.code == Some(0), "{run}");
    let turns = read_json(folder.path().join("out.json"))?["turns"].clone();
    assert_eq!(turns[0]["stop_reason"], "interrupted", "{turns}");
    Ok(())
}
