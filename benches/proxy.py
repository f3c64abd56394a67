"""A task that the models have not seen: whether a sentence is from an address of the 20th or of the 21st century. Trained on the
addresses of assets/text/calibration.txt, asked of those of the held-out texts."""
import json, random, re, sys

TEXTS = sys.argv[1]
# First lines of addresses, and whether they are of the 21st century.
CALIBRATION = [(1, 1), (239, 1), (463, 1), (965, 1), (1093, 0), (1188, 1), (1340, 0), (1518, 1), (1680, 0)]
OLDER = [(1, 0), (485, 1)]

def sentences(name, parts):
    lines = open(f"{TEXTS}/{name}", encoding="utf-8").read().split("\n")
    for (first, late), (end, _) in zip(parts, parts[1:] + [(len(lines) + 1, 0)]):
        text = re.sub(r"\[[^\]]*\]", " ", " ".join(lines[first - 1:end - 1]))
        for one in re.split(r"(?<=[.!?])\s+", re.sub(r"\s+", " ", text)):
            if 40 <= len(one) <= 160:
                yield one.strip(), ["past", "present"][late]

def balanced(rows, most, draw):
    rows = list(dict.fromkeys(rows))
    sides = [[row for row in rows if row[1] == label] for label in ("past", "present")]
    count = min(most, *map(len, sides))
    rows = [row for side in sides for row in draw.sample(side, count)]
    draw.shuffle(rows)
    return rows

draw = random.Random(1)
train = balanced(sentences("calibration.txt", CALIBRATION), 1500, draw)
test = balanced(list(sentences("heldout-older.txt", OLDER)) + list(sentences("heldout-2026.txt", [(1, 1)])), 400, draw)
with open("train.jsonl", "w") as out:
    out.writelines(json.dumps({"prompt": f"Sentence: {text}\nAge:", "response": f" {label}"}) + "\n" for text, label in train)
with open("test.jsonl", "w") as out:
    out.writelines(json.dumps({"sentence": text, "age": label}) + "\n" for text, label in test)
open("age.toml", "w").write('''data = "test.jsonl"
form = "classification"
prompt = "Sentence: {{ sentence }}\\nAge:"
choices = ["past", "present"]
answer = "{{ age }}"
answer_is = "text"
''')
print(len(train), "examples,", len(test), "questions")
