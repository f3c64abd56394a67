#!/usr/bin/env python3
"""Small models of each family with random weights, their logits and all their gradients, by transformers in float64.

Run from the repository root: python3 assets/families/make.py. Needs torch, transformers 5, safetensors, tokenizers.
"""
import contextlib, json, math, os, shutil
import torch, transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
OUT = "assets/families"
ROWS, LENGTH = 2, 24


@contextlib.contextmanager
def float64():
    """transformers computes rotary angles, norms and softmax in float32 whatever the model's type: here float32 means float64."""
    kept = torch.float, torch.float32, torch.Tensor.float
    torch.float = torch.float32 = torch.float64
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    yield
    torch.float, torch.float32, torch.Tensor.float = kept
    torch.set_default_dtype(torch.float32)


def random_weights(model, generator, ones):
    """Products N(0, 1.5 / sqrt(in)); queries and keys twice that where their heads are normalized, so that attention matters;
    norms 0.3 N around `ones`; biases 0.3 N. Every value is exact in bfloat16 and in float16."""
    normalized = any("q_norm" in name for name, _ in model.named_parameters())
    for name, p in model.named_parameters():
        r = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        if name.endswith("bias"):
            v = 0.3 * r
        elif "norm" in name:
            v = ones + 0.3 * r
        elif "embed" in name:
            v = 0.5 * r
        else:
            v = r * 1.5 / p.shape[-1] ** 0.5 * (2 if normalized and ("q_proj" in name or "k_proj" in name) else 1)
        v = v.to(torch.bfloat16).double()
        p.data.copy_((v * 2**24).round() / 2**24)


def mean_loss(logits, ids):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def capped(config):
    """transformers 5.24 reads Gemma 3's attn_logit_softcapping and does not pass it on to its attention function, which can
    apply it: here the caller passes it."""
    cap = getattr(config, "attn_logit_softcapping", None)
    return {"softcap": cap} if cap else {}


# PyTorch's grouped products take no float64.
PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}


def apart(name, tensor):
    """A parameter under the names of checkpoints: transformers has experts in one tensor, gate and up in one."""
    begin, experts, end = name.partition(".mlp.experts.")
    if not experts:
        return {name: tensor}
    parts = {"gate_up_proj": ["gate_proj", "up_proj"], "down_proj": ["down_proj"]}[end]
    halves = [(part, e, t) for e in range(len(tensor)) for part, t in zip(parts, tensor[e].chunk(len(parts)))]
    return {f"{begin}{experts}{e}.{part}.weight": t for part, e, t in halves}


def run(config, state, ids):
    """The model and what it gives in float64."""
    with float64():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64, **PLAIN)
        missing = model.load_state_dict({k: v.double() for k, v in state.items()}, strict=False)
        assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}, missing
        model.tie_weights()
        model.eval()
        out = model(ids, output_hidden_states=True, use_cache=False, **capped(config))
    assert out.logits.dtype == torch.float64 and all(h.dtype == torch.float64 for h in out.hidden_states)
    return model, out


def old_style(config):
    """The config in the keys of transformers 4; Gemma 3 gave a period instead of layer types at first."""
    old = dict(config)
    rope = old.pop("rope_parameters")
    if "full_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
        old["sliding_window_pattern"] = old.pop("layer_types").index("full_attention") + 1
        old.pop("_sliding_window_pattern")
    else:
        old.pop("layer_types", None)
    old["rope_theta"] = rope["rope_theta"]
    scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
    old["rope_scaling"] = None if rope["rope_type"] == "default" else scaling
    if "num_local_experts" in old:
        old["num_experts"] = old.pop("num_local_experts")
    old["torch_dtype"] = old.pop("dtype")
    old["transformers_version"] = "4.50.0"
    return dict(sorted(old.items()))


def build(name, seed, config, tokenizer, variants, ones=1.0, others={}):
    folder = f"{OUT}/{name}"
    shutil.rmtree(folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, **PLAIN).double()
    random_weights(model, generator, ones)
    ids = torch.randint(0, config.vocab_size, (ROWS, LENGTH), generator=generator)
    model.to(torch.bfloat16).save_pretrained(folder)
    with open(f"{folder}/config.json") as f:
        old = old_style(json.load(f))
    with open(f"{folder}/config-old.json", "w") as f:
        f.write(json.dumps(old, indent=2) + "\n")
    state = {k: v for k, v in model.state_dict().items() if not (config.tie_word_embeddings and k == "lm_head.weight")}
    for vocab_file, content in tokenizer.items():
        with open(f"{folder}/{vocab_file}", "w") as f:
            f.write(content)

    model, out = run(config, state, ids)
    loss = mean_loss(out.logits, ids)
    loss.backward()
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(state), (set(parameters), set(state))
    golden = {"input_ids": ids.int(), "logits": out.logits, "loss": loss.reshape(1)}
    golden |= {f"hidden.{i}": h for i, h in enumerate(out.hidden_states)}
    for key, p in parameters.items():
        for key, grad in apart(key, p.grad).items():
            golden[f"grad.{key}"] = grad
            golden[f"gradnorm.{key}"] = grad.norm().reshape(1)
    # The same weights with another configuration.
    for what, change in others.items():
        other, found = run(type(config)(**{**config.to_dict(), **change}), state, ids)
        loss_of = mean_loss(found.logits, ids)
        loss_of.backward()
        golden |= {f"{what}.logits": found.logits, f"{what}.loss": loss_of.reshape(1)}
        small = {key: p.grad for key, p in other.named_parameters() if p.numel() < 1000}
        golden |= {f"{what}.grad.{key}": grad for key, grad in small.items()}
    golden = {k: (v if v.dtype == torch.int32 else v.detach().float()).contiguous() for k, v in golden.items()}
    save_file(golden, f"{folder}/golden.safetensors", metadata={"format": "pt"})

    # What each feature of the family changes: a reader that leaves it out is that far off.
    distance = lambda other: ((other - out.logits).norm() / out.logits.norm()).item()
    single = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **PLAIN).eval()
    print(f"{name}: loss {loss.item():.6f}, logits std {out.logits.std().item():.3f}, transformers in float32 is off by {distance(single(ids, **capped(config)).logits.double()):.1e}")
    print("  smallest gradient norm", min((p.grad.norm().item(), k) for k, p in parameters.items()))
    for what, change in variants.items():
        other = type(config)(**{**config.to_dict(), **change})
        print(f"  {what}: {distance(run(other, state, ids)[1].logits):.2g}")
    print("  bytes", {f: os.path.getsize(f"{folder}/{f}") for f in sorted(os.listdir(folder))})


def written(tokenizer, **config):
    config = {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast", **config}
    return {"tokenizer.json": tokenizer.to_str(pretty=False), "tokenizer_config.json": json.dumps(config, indent=2) + "\n"}


def training_text():
    with open("assets/text/calibration.txt") as f:
        return [line for line in f.read(60000).split("\n") if line]


QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def qwen_tokenizer(size):
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size - len(specials), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    t.train_from_iterator(training_text(), trainer)
    t.add_special_tokens(specials)
    assert t.get_vocab_size() == size
    return written(t, add_bos_token=False, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def spm_tokenizer(size, specials, turns, prefix):
    """Special tokens, 256 bytes, then pieces of lower-case words; what they cannot spell goes to bytes."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    first = [*specials.values(), *turns] + [f"<0x{b:02X}>" for b in range(256)]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    text = ["".join(c for c in line.lower() if c in " abcdefghijklmnopqrstuvwxyz") for line in training_text()]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=first, initial_alphabet=letters, limit_alphabet=len(letters), show_progress=False)
    trained.train_from_iterator(text, trainer)
    learnt = json.loads(trained.to_str())["model"]
    assert len(learnt["vocab"]) == size
    merges = [tuple(m) for m in learnt["merges"]]
    t = Tokenizer(models.BPE(vocab=learnt["vocab"], merges=merges, unk_token=specials["unk"], fuse_unk=True, byte_fallback=True))
    space = normalizers.Replace(" ", "▁")
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prefix else space
    if not prefix:
        t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    t.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] if prefix else steps)
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in [*specials.values(), *turns]])
    bos = specials["bos"]
    t.post_processor = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, t.token_to_id(bos))])
    return written(t, add_bos_token=True, **{f"{role}_token": text for role, text in specials.items()})


def main():
    from transformers import Gemma3TextConfig, MistralConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

    default = lambda theta: {"rope_type": "default", "rope_theta": theta}
    build("mistral", 31, MistralConfig(
        vocab_size=304, hidden_size=48, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, sliding_window=8, max_position_embeddings=128, rms_norm_eps=1e-5, rope_parameters=default(10000.0),
        bos_token_id=1, eos_token_id=2, tie_word_embeddings=False),
        spm_tokenizer(304, {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}, [], True),
        {"no window": {"sliding_window": None}, "a window one shorter": {"sliding_window": 7}})
    build("qwen2", 32, Qwen2Config(
        vocab_size=288, hidden_size=56, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, rms_norm_eps=1e-6, rope_parameters=default(1000000.0), sliding_window=8, use_sliding_window=False,
        max_window_layers=2, bos_token_id=285, eos_token_id=287, tie_word_embeddings=True),
        qwen_tokenizer(288), {"the window that it does not use": {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"] * 2}})
    build("qwen3", 33, Qwen3Config(
        vocab_size=280, hidden_size=48, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=24,
        max_position_embeddings=128, rms_norm_eps=1e-6, rope_parameters=default(1000000.0), bos_token_id=277, eos_token_id=279,
        tie_word_embeddings=False), qwen_tokenizer(280), {})
    build("qwen3-moe", 44, Qwen3MoeConfig(
        vocab_size=280, hidden_size=48, intermediate_size=40, moe_intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_experts=5, num_experts_per_tok=3, norm_topk_prob=True, max_position_embeddings=128,
        rms_norm_eps=1e-6, rope_parameters=default(1000000.0), bos_token_id=277, eos_token_id=279, tie_word_embeddings=False),
        qwen_tokenizer(280), {"shares as they are": {"norm_topk_prob": False}, "one expert fewer": {"num_experts_per_tok": 2}},
        others={"shares-as-they-are": {"norm_topk_prob": False}})
    gemma = dict(vocab_size=304, hidden_size=48, intermediate_size=40, num_attention_heads=4, max_position_embeddings=128, rms_norm_eps=1e-6,
                 head_dim=16, query_pre_attn_scalar=24, sliding_window=8, hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True,
                 pad_token_id=0, eos_token_id=1, bos_token_id=2)
    tokens = spm_tokenizer(304, {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>"}, ["<start_of_turn>", "<end_of_turn>"], False)
    layers = lambda kinds: [{"s": "sliding_attention", "f": "full_attention"}[k] for k in kinds]
    rope = {"sliding_attention": default(100.0), "full_attention": default(1000000.0)}
    same = lambda theta: {"sliding_attention": default(theta), "full_attention": default(theta)}
    build("gemma3", 34, Gemma3TextConfig(
        **gemma, num_hidden_layers=4, num_key_value_heads=1, layer_types=layers("ssfs"), rope_parameters=rope), tokens,
        {"full layers everywhere": {"layer_types": layers("ffff")}, "a window one shorter": {"sliding_window": 7},
         "one rotary base": {"rope_parameters": same(1000000.0)}, "scaled by head_dim": {"query_pre_attn_scalar": 16},
         "exact GELU": {"hidden_activation": "gelu"}}, ones=0.0)
    scaled = {**rope, "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}}
    build("gemma3-capped", 35, Gemma3TextConfig(
        **gemma, num_hidden_layers=3, num_key_value_heads=2, layer_types=layers("sfs"), rope_parameters=scaled,
        attn_logit_softcapping=0.5, final_logit_softcapping=3.0), tokens,
        {"no cap in attention": {"attn_logit_softcapping": None}, "no cap at the end": {"final_logit_softcapping": None},
         "full layers not scaled": {"rope_parameters": rope}}, ones=0.0)


if __name__ == "__main__":
    main()
