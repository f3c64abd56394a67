"""The Unigram vocabulary of spiece.model and the ids that sentencepiece gives for some texts (spiece.json).

sentencepiece 0.2, on a text of the repository; special tokens as T5 has them. The normalization is T5's (nmt_nfkc).
"""
import json, sys
import sentencepiece as spm

text, out = sys.argv[1], sys.argv[2]
lines = [line for line in open(text, encoding="utf-8").read()[:120_000].split("\n") if line.strip()]
open("train.txt", "w", encoding="utf-8").write("\n".join(lines))
spm.SentencePieceTrainer.train(
    input="train.txt", model_prefix="spiece", vocab_size=400, model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>", character_coverage=0.9995, minloglevel=2, num_threads=1,
)
model = spm.SentencePieceProcessor(model_file="spiece.model")
texts = [
    "My fellow citizens, the state of the union is strong.", "", " ", "  two  spaces,\tand a tab \n and lines\n\n", "a",
    "ﬁve ½ Å ｆｕｌｌ　width", "日本語 and emoji 🙂🙂 here", "zzzqqq xx", "The Congress, of the UNITED States!", "don't \"quote\" — (1999)",
    "▁underscored▁ text", "e\u0301 and \u00e9", "soft\u00adhyphen zero\u200bwidth", "x" * 70,
]
json.dump({"cases": [[t, model.encode(t)] for t in texts],
           "pieces": [[model.id_to_piece(i), model.get_score(i)] for i in range(model.get_piece_size())]},
          open(out + "/spiece.json", "w", encoding="utf-8"), ensure_ascii=False, indent=0)
open(out + "/spiece.model", "wb").write(open("spiece.model", "rb").read())
