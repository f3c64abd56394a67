//! What `--version` says.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

/// The version with the commit that the program was built from: as whoever built it says, in `LOPPER_COMMIT` or (GitHub's runners)
/// `GITHUB_SHA`; or else as the folder of its sources says, if that is still there.
pub(super) fn version() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    let told = option_env!("LOPPER_COMMIT").or(option_env!("GITHUB_SHA")).map(String::from);
    let commit = told.filter(|text| !text.is_empty()).or_else(checked_out);
    let commit = commit.map_or("unknown".into(), |text| text.chars().take(12).collect::<String>());
    TEXT.get_or_init(|| format!("{} (commit {commit})", env!("CARGO_PKG_VERSION")))
}

/// The commit that was checked out when this program was linked: git notes in `logs/HEAD` when which one was.
fn checked_out() -> Option<String> {
    let program = std::env::current_exe().and_then(std::fs::metadata).ok()?;
    let built = program.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let folder = git_folder(Path::new(env!("CARGO_MANIFEST_DIR")))?;
    let log = std::fs::read_to_string(folder.join("logs/HEAD")).ok()?;
    // OLD NEW NAME <MAIL> SECONDS ZONE, a tab and a message.
    let moved = |line: &str| {
        let (about, _) = line.split_once('\t').unwrap_or((line, ""));
        let new = about.split(' ').nth(1).filter(|new| new.len() >= 40)?.to_string();
        let seconds: u64 = about.rsplit(' ').nth(1)?.parse().ok()?;
        (seconds <= built).then_some(new)
    };
    log.lines().filter_map(moved).next_back()
}

/// A working tree's own folder of git's; of a further worktree a file names it.
fn git_folder(sources: &Path) -> Option<PathBuf> {
    let path = sources.join(".git");
    if path.is_dir() {
        return Some(path);
    }
    let text = std::fs::read_to_string(&path).ok()?;
    let folder = text.strip_prefix("gitdir:")?.trim();
    Some(sources.join(folder))
}
