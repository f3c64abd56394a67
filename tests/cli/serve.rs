//! The server, by a client that knows no more than TCP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::chat::world;
use crate::program::{NANO, TINY, command, has_fields, lopper, read_json, succeeds};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("cli_serve":
        same_text, flags, conversations, refusals, tokens, other_names, side_by_side, queue_is_bounded, ports);
    if cfg!(unix) {
        trials.extend(suite!("cli_serve": stopped));
    }
    trials
}

/// A server, killed when it goes.
struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What came back.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Result<Value, Failed> {
        Ok(serde_json::from_str(&self.body).map_err(|error| format!("{error}: {self:?}"))?)
    }

    /// The events of a stream; the last one says that it is whole.
    fn events(&self) -> Result<Vec<Value>, Failed> {
        let events = self.body.split("\n\n").filter(|event| !event.is_empty());
        let mut events: Vec<&str> = events.filter_map(|e| e.strip_prefix("data: ")).collect();
        assert_eq!(events.pop(), Some("[DONE]"), "{self:?}");
        Ok(events.into_iter().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }
}

impl Server {
    fn start(folder: &Path, arguments: &str) -> Result<Self, Failed> {
        let mut command = command(folder, &format!("serve {arguments} --port 0 --device cpu"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("a pipe")?).read_line(&mut line)?;
        let port = line.trim().strip_prefix("listening on http://127.0.0.1:");
        let port = port.and_then(|port| port.parse().ok()).ok_or(format!("it said {line:?}"))?;
        Ok(Self { child, port })
    }

    /// Sends a request with a head of these lines and leaves the connection to be read.
    fn open(&self, line: &str, head: &str, body: &str) -> Result<TcpStream, Failed> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let host = if head.contains("Host: ") { "" } else { "Host: localhost\r\n" };
        let (length, end) = (body.len(), "Connection: close\r\n");
        write!(
            stream,
            "{line} HTTP/1.1\r\n{host}{head}{end}Content-Length: {length}\r\n\r\n{body}"
        )?;
        Ok(stream)
    }

    fn ask(&self, line: &str, head: &str, body: &str) -> Result<Reply, Failed> {
        read(self.open(line, head, body)?)
    }

    fn post(&self, path: &str, body: &Value) -> Result<Reply, Failed> {
        self.ask(&format!("POST {path}"), "", &body.to_string())
    }

    fn complete(&self, body: &Value) -> Result<Value, Failed> {
        let reply = self.post("/v1/completions", body)?;
        assert!(reply.status == 200, "{body}: {reply:?}");
        reply.json()
    }

    /// Begins a stream; back when its first text is there.
    fn begin(&self, body: &Value) -> Result<BufReader<TcpStream>, Failed> {
        let stream = self.open("POST /v1/completions", "", &body.to_string())?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while !line.starts_with("data: ") {
            line.clear();
            assert!(reader.read_line(&mut line)? > 0, "a stream begins");
        }
        Ok(reader)
    }

    /// Waits until a line of the metrics is there.
    fn waits_for(&self, line: &str) -> Result<(), Failed> {
        let start = Instant::now();
        loop {
            let metrics = self.ask("GET /metrics", "", "")?.body;
            if metrics.lines().any(|found| found == line) {
                return Ok(());
            }
            assert!(start.elapsed() < Duration::from_secs(30), "no {line:?} in {metrics}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// All of a reply, of chunks if it comes in such.
fn read(mut stream: TcpStream) -> Result<Reply, Failed> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes)?;
    let (head, rest) = text.split_once("\r\n\r\n").ok_or(format!("no head: {text:?}"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let head = head.to_lowercase();
    let mut body = String::new();
    if head.contains("transfer-encoding: chunked") {
        let mut rest = rest;
        while let Some((length, more)) = rest.split_once("\r\n") {
            let length = usize::from_str_radix(length, 16)?;
            body.push_str(&more[..length]);
            rest = &more[length + 2..];
        }
    } else {
        body.push_str(rest);
    }
    Ok(Reply { status: status.ok_or("a status")?, head, body })
}

/// The text of a stream's events.
fn text_of(events: &[Value], place: &str) -> String {
    let pieces = events.iter().filter_map(|event| event["choices"][0].pointer(place)?.as_str());
    pieces.collect()
}

fn generated(folder: &TempDir, arguments: &str) -> Result<Value, Failed> {
    succeeds(folder, &format!("generate {arguments} --json=-"))?.json()
}

/// Whole and in pieces, greedily and drawn, to a stop string and without: what `generate` says.
fn same_text() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let server = Server::start(folder.path(), NANO)?;
    let cases = [
        ("-n 24", json!({"max_tokens": 24})),
        (
            "-n 20 --temperature 0.9 --top-k 40 --top-p 0.9 --min-p 0.01 --repetition-penalty 1.2 --seed 5",
            json!({
                "max_tokens": 20, "temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01,
                "repetition_penalty": 1.2, "seed": 5,
            }),
        ),
        ("-n 24 --stop e", json!({"max_tokens": 24, "stop": "e"})),
    ];
    for (flags, mut body) in cases {
        let expected = generated(&folder, &format!("{NANO} --prompt Once {flags}"))?;
        body["prompt"] = "Once".into();
        let whole = server.complete(&body)?;
        has_fields(&whole, "id object created model choices usage");
        let choice = &whole["choices"][0];
        assert_eq!(choice["text"], expected["text"], "{flags}");
        let reason = match expected["stop_reason"].as_str() {
            Some("length") => "length",
            _ => "stop",
        };
        assert_eq!(choice["finish_reason"], reason, "{flags}: {expected}");
        let usage = &whole["usage"];
        let count = |value: &Value| value.as_array().map(Vec::len);
        assert_eq!(usage["prompt_tokens"], json!(count(&expected["prompt_tokens"])));
        assert_eq!(usage["completion_tokens"], json!(count(&expected["tokens"])));

        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let events = server.post("/v1/completions", &body)?.events()?;
        assert_eq!(text_of(&events, "/text"), expected["text"], "{flags}, streamed");
        let [.., last, with_usage] = &events[..] else { panic!("{events:?}") };
        assert_eq!(last["choices"][0]["finish_reason"], reason);
        assert_eq!(with_usage["choices"], json!([]));
        assert_eq!(with_usage["usage"]["completion_tokens"], usage["completion_tokens"]);
    }
    // The same text as tokens, and another one that is cut by the context.
    let expected = generated(&folder, &format!("{NANO} --prompt Once -n 8"))?;
    let body = json!({"prompt": expected["prompt_tokens"], "max_tokens": 8, "model": NANO});
    assert_eq!(server.complete(&body)?["choices"][0]["text"], expected["text"]);
    let models = server.ask("GET /v1/models", "", "")?.json()?;
    assert_eq!(models["data"][0]["id"], "nano-llama", "{models}");
    assert_eq!(server.ask("GET /v1/models/nano-llama", "", "")?.json()?, models["data"][0]);
    let page = server.ask("GET /", "", "")?;
    let alone = !page.body.contains("https://") && !page.body.contains("src=\"");
    assert!(page.status == 200 && page.head.contains("text/html") && alone, "{}", page.head);
    Ok(())
}

/// What a request does not say is as the server's flags have it; models that steer, and a smaller cache, are as in `generate`.
fn flags() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let steered =
        format!("{NANO} --expert {TINY} --anti-expert {NANO} --alpha 0.7 --cache-type q8_0");
    let drawn = "--temperature 0.8 --top-k 50 --seed 3 --stop ;";
    let server =
        Server::start(folder.path(), &format!("{steered} {drawn} --max-tokens 4 --json=s"))?;
    let expected = generated(&folder, &format!("{steered} {drawn} --prompt Once -n 4"))?;
    let ask = |more: Value| -> Result<Value, Failed> {
        let mut body = json!({"prompt": "Once", "max_tokens": 20});
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        Ok(server.complete(&body)?["choices"][0]["text"].clone())
    };
    assert_eq!(ask(json!({}))?, expected["text"], "the first request has the seed itself");
    assert_ne!(ask(json!({}))?, expected["text"], "the next one has another");
    assert_eq!(ask(json!({"seed": 3}))?, expected["text"]);
    let greedy = generated(&folder, &format!("{steered} --prompt Once -n 4"))?;
    assert_eq!(ask(json!({"temperature": 0}))?, greedy["text"]);
    let report = read_json(folder.path().join("s"))?;
    has_fields(&report, "url port models device cache_type ensemble parallel");
    assert_eq!((&report["port"], &report["ensemble"]["alpha"]), (&server.port.into(), &json!(0.7)));
    lopper(&folder, &format!("serve {NANO} --draft {NANO}"))?.refused(2, "'--draft'");
    lopper(&folder, "serve embedded:tiny-t5 --port 0")?.refused(2, "a model without an encoder");
    Ok(())
}

/// Chat completions, whole and streamed, are what `generate --chat` says; the whole conversation counts.
fn conversations() -> Result<(), Failed> {
    let folder = world("nano-llama")?;
    let server = Server::start(folder.path(), "m")?;
    let expected = generated(&folder, "m --chat --prompt Morning. -n 10")?;
    let message = json!({"role": "user", "content": "Morning."});
    let body = json!({"model": "m", "messages": [message], "max_completion_tokens": 10});
    let whole = server.post("/v1/chat/completions", &body)?.json()?;
    let found = &whole["choices"][0]["message"];
    assert_eq!((&found["content"], &found["role"]), (&expected["text"], &json!("assistant")));
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let events = server.post("/v1/chat/completions", &streamed)?.events()?;
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(text_of(&events, "/delta/content"), expected["text"]);

    let parts = json!([{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}]);
    let mut longer = body.clone();
    longer["messages"] = json!([message, found, {"role": "user", "content": parts}]);
    let longer = server.post("/v1/chat/completions", &longer)?.json()?;
    let tokens = |value: &Value| value["usage"]["prompt_tokens"].as_u64();
    assert!(tokens(&longer) > tokens(&whole), "{longer}");
    // Most of it was read before.
    let cached = longer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert!(cached.map(|cached| 2 * cached) > tokens(&whole), "{longer}");
    Ok(())
}

/// What is wrong with a request is said in OpenAI's form; the server goes on.
fn refusals() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let server = Server::start(folder.path(), &format!("{NANO} --ctx 32"))?;
    let long = "word ".repeat(100);
    let cases = [
        ("{\"prompt\": ", 400, "not JSON"),
        ("[]", 400, "expected a JSON object, found a list"),
        ("{}", 400, "prompt: expected"),
        (r#"{"prompt": 5}"#, 400, "found a number"),
        (r#"{"prompt": ["a", "b"]}"#, 400, "2 prompts"),
        (r#"{"prompt": [4000000000]}"#, 400, "tokens below"),
        (r#"{"prompt": "a", "model": "gpt"}"#, 404, "served: nano-llama"),
        (r#"{"prompt": "a", "n": 2}"#, 400, "n is not supported"),
        (r#"{"prompt": "a", "logprobs": 3}"#, 400, "logprobs is not supported"),
        (r#"{"prompt": "a", "tools": [{}]}"#, 400, "tools is not supported"),
        (r#"{"prompt": "a", "mirostat": 2}"#, 400, "mirostat is not supported"),
        (r#"{"prompt": "a", "temperature": -1}"#, 400, "temperature: expected 0 or"),
        (r#"{"prompt": "a", "temperature": "hot"}"#, 400, "temperature: expected a number"),
        (r#"{"prompt": "a", "top_p": 0}"#, 400, "top_p: expected"),
        (r#"{"prompt": "a", "max_tokens": 0}"#, 400, "max_tokens: expected 1 or more"),
        (r#"{"prompt": "a", "stop": ["a", ""]}"#, 400, "stop: expected"),
        (r#"{"prompt": "a", "stream_options": {}}"#, 400, "stream_options: expected"),
        (&format!("{{\"prompt\": \"{long}\"}}"), 400, "the context of 32 tokens has room for 31"),
    ];
    for (body, status, said) in cases {
        let reply = server.ask("POST /v1/completions", "", body)?;
        let error = &reply.json()?["error"];
        let message = error["message"].as_str().unwrap_or_default();
        assert!(reply.status == status && message.contains(said), "{body}: {reply:?}");
        has_fields(error, "type param code");
    }
    let chat = json!({"messages": [{"role": "user", "content": "Hello"}]});
    let reply = server.post("/v1/chat/completions", &chat)?;
    assert!(reply.status == 400 && reply.body.contains("no chat template"), "{reply:?}");
    let large = format!("{{\"prompt\": \"{}\"}}", "a".repeat(10 << 20));
    assert_eq!(server.ask("POST /v1/completions", "", &large)?.status, 413);
    assert_eq!(server.ask("GET /v1/completions", "", "")?.status, 405);
    assert_eq!(server.ask("GET /v2", "", "")?.status, 404);
    // It is asked for more than there is room for.
    let most = server.complete(&json!({"prompt": "Once", "max_tokens": 1000}))?;
    let usage = &most["usage"];
    assert!(usage["total_tokens"].as_u64() <= Some(32), "{most}");
    let neutral = json!({
        "prompt": "Once", "n": 1, "best_of": 1, "logprobs": null, "echo": false, "user": "me", "logit_bias": {},
        "presence_penalty": 0, "max_tokens": 2,
    });
    assert_eq!(server.complete(&neutral)?["usage"]["completion_tokens"], 2);
    let metrics = server.ask("GET /metrics", "", "")?.body;
    let line = "lopper_responses_total{path=\"/v1/completions\",status=\"413\"} 1";
    assert!(metrics.lines().any(|found| found == line), "{metrics}");
    Ok(())
}

/// Who does not have the token gets nothing; the page and the health are everybody's. Other machines are let in with one only.
fn tokens() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    lopper(&folder, &format!("serve {NANO} --host 0.0.0.0 --port 0"))?
        .refused(2, "--host: expected a token (--token or LOPPER_TOKEN)");
    let server = Server::start(folder.path(), &format!("{NANO} --token secret"))?;
    let asked = |token: &str| server.ask("GET /v1/models", token, "");
    for wrong in ["", "Authorization: Bearer secre\r\n", "Authorization: Basic secret\r\n"] {
        let reply = asked(wrong)?;
        let said = reply.head.contains("www-authenticate: bearer");
        assert!(reply.status == 401 && said, "{wrong:?}: {reply:?}");
    }
    assert_eq!(asked("Authorization: Bearer secret\r\n")?.status, 200);
    for open in ["GET /health", "GET /"] {
        assert_eq!(server.ask(open, "", "")?.status, 200);
    }
    Ok(())
}

/// A page of another machine in a browser here is not let in, by whatever name it calls this one.
fn other_names() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let server = Server::start(folder.path(), NANO)?;
    for (head, status) in [
        ("Host: evil.example\r\n", 403),
        ("Host: localhost:1\r\nOrigin: http://evil.example\r\n", 403),
        ("Host: 127.0.0.1:8080\r\nOrigin: null\r\n", 403),
        ("Host: [::1]:8080\r\nOrigin: http://localhost:8080\r\n", 200),
    ] {
        assert_eq!(server.ask("GET /v1/models", head, "")?.status, status, "{head:?}");
    }
    Ok(())
}

/// Clients at once, of two models, have each the text that it would have alone.
fn side_by_side() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let server = Server::start(folder.path(), &format!("{NANO} --compare {TINY} --parallel 3"))?;
    let asks = [
        ("nano-llama", "Once", 12),
        ("nano-llama", "The morning of the day", 5),
        ("tiny-llama", "Once", 6),
        ("nano-llama", "A", 9),
        ("nano-llama", "In the news today,", 7),
    ];
    let found: Vec<Result<Value, String>> = std::thread::scope(|scope| {
        let ask = |(model, prompt, count): (&'static str, &'static str, u32)| {
            let body = json!({"model": model, "prompt": prompt, "max_tokens": count});
            let server = &server;
            scope.spawn(move || server.complete(&body).map_err(|error| format!("{error:?}")))
        };
        let threads: Vec<_> = asks.into_iter().map(ask).collect();
        threads.into_iter().map(|thread| thread.join().expect("a client")).collect()
    });
    for ((model, prompt, count), found) in asks.into_iter().zip(found) {
        let body = json!({"model": model, "prompt": prompt, "max_tokens": count});
        let (alone, found) = (server.complete(&body)?, found?);
        assert_eq!(found["choices"], alone["choices"], "{model}: {prompt}");
        assert_eq!(found["model"], model);
    }
    let nameless = server.post("/v1/completions", &json!({"prompt": "Once"}))?;
    let said = nameless.body.contains("expected nano-llama, tiny-llama");
    assert!(nameless.status == 400 && said, "{nameless:?}");
    Ok(())
}

/// One runs, one waits, a third is told to come again; whoever goes away gives the place back at once.
fn queue_is_bounded() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let server = Server::start(folder.path(), &format!("{TINY} --parallel 1 --queue 1"))?;
    // All that the context has room for, by the slower model: it goes on for as long as this takes.
    let long = json!({"prompt": "Once", "max_tokens": 10_000, "stream": true, "temperature": 3, "seed": 1});
    let running = server.begin(&long)?;
    let waiting = server.open(
        "POST /v1/completions",
        "",
        &json!({"prompt": "A", "max_tokens": 2}).to_string(),
    )?;
    server.waits_for("lopper_waiting{model=\"tiny-llama\"} 1")?;
    let refused = server.post("/v1/completions", &json!({"prompt": "B"}))?;
    let said = refused.head.contains("retry-after: 1") && refused.body.contains("queue_full");
    assert!(refused.status == 429 && said, "{refused:?}");
    drop(running);
    let reply = read(waiting)?;
    assert!(reply.status == 200, "{reply:?}");
    server.waits_for("lopper_sequences_total{model=\"tiny-llama\",end=\"cancelled\"} 1")?;
    server.waits_for("lopper_running{model=\"tiny-llama\"} 0")?;
    // One that is whole goes away while it waits for no one.
    let whole = json!({"prompt": "Once", "max_tokens": 10_000, "temperature": 3, "seed": 2});
    let gone = server.open("POST /v1/completions", "", &whole.to_string())?;
    server.waits_for("lopper_running{model=\"tiny-llama\"} 1")?;
    drop(gone);
    server.waits_for("lopper_sequences_total{model=\"tiny-llama\",end=\"cancelled\"} 2")
}

/// A port that is in use is said in a line.
fn ports() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let other = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = other.local_addr()?.port();
    let run = lopper(&folder, &format!("serve {NANO} --port {port} --device cpu"))?;
    run.refused(2, &format!("--port: expected a port that is free, found {port}, which is in use"));
    assert_eq!(run.err.lines().count(), 1, "{run}");
    lopper(&folder, &format!("serve {NANO} --host 192.0.2.1 --token t"))?.refused(2, "--host: ");
    lopper(&folder, &format!("serve {NANO} --ctx 4000 --port 0 --device cpu"))?
        .refused(2, "--ctx: expected at most 512");
    Ok(())
}

/// Told to end, it ends what it is saying, and says how it ended itself.
fn stopped() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let mut server = Server::start(folder.path(), TINY)?;
        let long = json!({"prompt": "Once", "max_tokens": 10_000, "stream": true, "temperature": 3, "seed": 1});
        let mut running = server.begin(&long)?;
        let id = server.child.id().to_string();
        std::process::Command::new("kill").args([&format!("-{signal}"), &id]).status()?;
        let mut rest = String::new();
        running.read_to_string(&mut rest)?;
        assert!(rest.contains("the server is stopping") && !rest.contains("[DONE]"), "{rest}");
        assert_eq!(server.child.wait()?.code(), Some(code));
    }
    Ok(())
}
