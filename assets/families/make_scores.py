#!/usr/bin/env python3
"""Small models with random weights whose heads score labels, their scores, losses and all their gradients, by transformers in
float64.

Run from the repository root: python3 assets/families/make_scores.py. Needs torch, transformers 5, safetensors, tokenizers.
"""
import json, shutil
import torch, transformers
from safetensors.torch import save_file
from make import float64, random_weights

OUT = "assets/fixtures"
PAD = 0


def layer_norms(model, generator):
    """Weights of BERT's norms, around 1."""
    for key, p in model.named_parameters():
        if "LayerNorm.weight" in key:
            p.data.copy_((1 + 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)).to(torch.bfloat16).double())


def build(name, config, lengths, loss_of, seed):
    """Rows of these lengths, filled up at the end: a score is read at each row's last real token, of a BERT at its first."""
    folder = f"{OUT}/{name}"
    shutil.rmtree(folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(seed)
    stored = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").double()
    random_weights(stored, generator, 1.0)
    layer_norms(stored, generator)
    stored.to(torch.bfloat16).save_pretrained(folder)
    state = stored.state_dict()
    ids = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, config.vocab_size, (length,), generator=generator)
    with float64():
        model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager", dtype=torch.float64)
        model.load_state_dict({k: v.double() for k, v in state.items()})
        model.eval()
        scores = model(ids, attention_mask=(ids != PAD).long()).logits
    loss = loss_of(scores)
    loss.backward()
    golden = {"input_ids": ids.int(), "lengths": torch.tensor(lengths).int(), "scores": scores, "loss": loss.reshape(1)}
    golden |= {f"grad.{k}": p.grad for k, p in model.named_parameters()}
    golden = {k: (v if v.dtype == torch.int32 else v.detach().float()).contiguous() for k, v in golden.items()}
    save_file(golden, f"{folder}/golden.safetensors", metadata={"format": "pt"})
    print(f"{name}: loss {loss.item():.6f}, scores {[round(v, 3) for v in scores.flatten().tolist()]}")


def preferences(scores):
    """Rows in pairs, the first of each preferred (Bradley and Terry 1952)."""
    first, second = scores.reshape(-1, 2).unbind(1)
    return -torch.nn.functional.logsigmoid(first - second).mean()


def labels(scores):
    return torch.nn.functional.cross_entropy(scores, torch.tensor([2, 0, 1]))


def build_encoder(name, config, lengths, seed):
    """A BERT: what it makes of rows of these lengths and the mean of each, of length 1; and for rows without filling the gradients of
    each block alone (the first with its embeddings), given one at its output."""
    folder = f"{OUT}/{name}"
    shutil.rmtree(folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(seed)
    stored = transformers.BertModel(config, add_pooling_layer=False).double()
    random_weights(stored, generator, 1.0)
    layer_norms(stored, generator)
    stored.to(torch.bfloat16).save_pretrained(folder)
    ids = torch.zeros((len(lengths), max(lengths)), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, config.vocab_size, (length,), generator=generator)
    config._attn_implementation = "eager"
    with float64():
        model = transformers.BertModel(config, add_pooling_layer=False).double()
        model.load_state_dict({k: v.double() for k, v in stored.state_dict().items()})
        model.eval()
        mask = (ids != 0).long()
        hidden = model(ids, attention_mask=mask).last_hidden_state
        sums = (hidden * mask[..., None]).sum(1)
        full = torch.randint(1, config.vocab_size, (2, 7), generator=generator)
        states = model(full, attention_mask=torch.ones_like(full), output_hidden_states=True).hidden_states
    upstream = torch.randn(states[1].shape, generator=generator, dtype=torch.float64)
    golden = {"input_ids": ids.int(), "lengths": torch.tensor(lengths).int(), "hidden": hidden,
              "embeddings": torch.nn.functional.normalize(sums, dim=1), "full_ids": full.int(), "upstream": upstream}
    parameters = dict(model.named_parameters())
    for layer in range(config.num_hidden_layers):
        own = [k for k in parameters if k.startswith(f"encoder.layer.{layer}.") or (layer == 0 and k.startswith("embeddings.") and "word" not in k)]
        found = torch.autograd.grad((states[layer + 1] * upstream).sum(), [parameters[k] for k in own], retain_graph=True)
        golden |= {f"grad.{k}": g for k, g in zip(own, found)}
    golden["input.0"] = parameters["embeddings.word_embeddings.weight"][full]
    golden["input.1"] = states[1]
    golden = {k: (v if v.dtype == torch.int32 else v.detach().float()).contiguous() for k, v in golden.items()}
    save_file(golden, f"{folder}/golden.safetensors", metadata={"format": "pt"})
    print(f"{name}: embeddings {[round(v, 3) for v in golden['embeddings'][:, 0].tolist()]}")


if __name__ == "__main__":
    small = dict(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=64, pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
                 tie_word_embeddings=False)
    build("llama-reward", transformers.LlamaConfig(num_labels=1, **small), [12, 9, 7, 11], preferences, 1)
    names = {0: "against", 1: "neither", 2: "for"}
    classifier = transformers.Qwen2Config(id2label=names, label2id={v: k for k, v in names.items()}, **small)
    build("qwen2-labels", classifier, [10, 6, 8], labels, 2)
    bert = dict(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=32, type_vocab_size=2, pad_token_id=0)
    build_encoder("bert", transformers.BertConfig(**bert), [9, 14, 5], 3)
    names = {0: "positive", 1: "negative", 2: "neutral"}
    build("bert-labels", transformers.BertConfig(id2label=names, label2id={v: k for k, v in names.items()}, **bert), [10, 6, 8], labels, 4)
