#!/usr/bin/env bash
# Weight-averaged reward models (WARM, Rame et al. 2024, arXiv 2401.12187) on headlines: one reward model, an ensemble of three and their
# average, trained on preferences of which a share is wrong, judged by preferences that are right and by best-of-N under a gold model.
#
#   benches/warm.sh LOPPER OUT [FLAGS...]      LOPPER: the program. OUT: a folder, made. FLAGS: of every command, --device gpu
#
# SEEDS="0 1 2 3 4", NOISES="0 0.1 0.25 0.4", JOBS=4 (side by side), STEPS=250, PROBE=100 (of the head alone), GOLD=600, PROMPTS=256 and
# BEST=16 (texts a prompt), TIME=10h (of the runs; then comes the table of what is whole) in the environment change it. What is there already
# is not made again. Needs bash and, for the table, python3.
set -euo pipefail
lopper=$(realpath "$1"); mkdir -p "$2"; out=$(realpath "$2"); shift 2
export lopper out flags="$*"
export STEPS=${STEPS:-250} PROBE=${PROBE:-100} GOLD=${GOLD:-600} PROMPTS=${PROMPTS:-256} BEST=${BEST:-16}
export RATE=${RATE:-0.0005} BATCH=${BATCH:-32} LENGTH=${LENGTH:-56}
cd "$out"

# tune MODEL OUT SEED STEPS RATE REST: a reward model of the headlines; each seed has its own order of them.
tune() {
    [ -e "$2/packed/config.json" ] && return
    rm -rf "$2" "$2.work"
    "$lopper" tune "$1" --method full --data embedded:headlines --length "$LENGTH" --batch "$BATCH" --held-out 0 \
        --no-eval --formats packed --quiet --out "$2" --seed "$3" --steps "$4" --rate "$5" "${@:6}" $flags > "$2.log" 2>&1 \
        || { cat "$2.log" >&2; exit 1; }
}

# judge NAME MODEL...: a reward model, or the mean of several, on the questions' right answers and on the texts to choose from.
judge() {
    [ -e "$1.json" ] && return
    local more=(); for model in "${@:3}"; do more+=(--ensemble "$model"); done
    "$lopper" eval "$2" "${more[@]}" --preferences headlines --candidates "$out/candidates.jsonl" --quiet --json="$1.json.part" $flags \
        > /dev/null && mv "$1.json.part" "$1.json"
}

# job NOISE SEED: the head alone first, then three from that one start, on the same wrong preferences, each in its own order.
job() {
    local noise=$1 seed=$2 place="noise-$1/seed-$2"
    mkdir -p "$place"; cd "$place"
    local wrong=(--label-noise "$noise" --noise-seed "$seed")
    tune embedded:tiny-llama probe "$seed" "$PROBE" 0.01 --score-head zero --include score "${wrong[@]}"
    for member in 1 2 3; do
        tune probe/packed "member-$member" "$((10 * seed + member))" "$STEPS" "$RATE" "${wrong[@]}"
        judge "member-$member" "member-$member/packed"
    done
    judge ensemble member-{1,2,3}/packed
    [ -e warm/packed/config.json ] || { rm -rf warm warm.work; "$lopper" merge member-1/packed --with member-2/packed \
        --with member-3/packed --method linear --no-eval --formats packed --quiet --out warm $flags > warm.log 2>&1; }
    judge warm warm/packed
    echo "noise $noise, seed $seed: done" >&2
}
export -f tune judge job

tune embedded:tiny-llama gold 1000 "$GOLD" "$RATE" --score-head zero
[ -e candidates.jsonl ] || "$lopper" generate embedded:tiny-llama --prompts headlines --limit "$PROMPTS" --best-of "$BEST" --temperature 2.5 \
    -n 2 --stop $'\n' --reward gold/packed --out candidates.jsonl --quiet --seed 0 $flags > /dev/null
judge gold gold/packed
# Seed by seed, so that what is whole when the time is up is of every share.
for seed in ${SEEDS:-0 1 2 3 4}; do for noise in ${NOISES:-0 0.1 0.25 0.4}; do echo "$noise $seed"; done; done \
    | timeout "${TIME:-10h}" xargs -P "${JOBS:-4}" -L 1 bash -euo pipefail -c 'job "$0" "$1"' || [ $? = 124 ]

python3 - <<'TABLE' | tee table.md
import glob, json, os, statistics as s
def figures(name):
    found = json.load(open(name + ".json"))
    return 100 * found["preferences"]["accuracy"], found["best_of"][0]["reward"], found["best_of"][-1]["reward"], found["best_of"][-1]["n"]
gold = figures("gold")
print(f"Gold: {gold[0]:.2f} % of the questions' preferences; a text is worth {gold[1]:.3f} by it, the best of {gold[3]} by itself {gold[2]:.3f}.\n")
print(f"| wrong preferences | who | right on clean preferences, % | best of {gold[3]}, worth by gold |\n| --- | --- | --- | --- |")
spread = lambda values, digits: f"{s.mean(values):.{digits}f} ± " + (f"{s.stdev(values):.{digits}f}" if len(values) > 1 else "n/a")
for noise in sorted((folder.split("-")[1] for folder in glob.glob("noise-*")), key=float):
    seeds = [seed for seed in sorted(glob.glob(f"noise-{noise}/seed-*")) if os.path.exists(f"{seed}/warm.json")]
    if not seeds: continue
    mean = lambda rows: [s.mean(column) for column in zip(*rows)]
    single = [mean([figures(f"{seed}/member-{m}")[:3] for m in (1, 2, 3)]) for seed in seeds]
    rows = [("one (mean of three)", single)] + [(who, [figures(f"{seed}/{who}")[:3] for seed in seeds]) for who in ("ensemble", "warm")]
    for who, found in rows:
        print(f"| {100 * float(noise):g} % | {who} | {spread([f[0] for f in found], 2)} | {spread([f[2] for f in found], 3)} |")
    # The same wrong preferences and members in each: differences by seed say more than the spread of each.
    for who in (1, 2):
        gains = [[a - b for a, b in zip(one, other)] for one, other in zip(rows[who][1], single)]
        print(f"| | {rows[who][0]} less one | {spread([g[0] for g in gains], 2)} | {spread([g[2] for g in gains], 3)} |")
print("\n± is the standard deviation over seeds.")
TABLE
