"""The tokenizer, a part of CLIP's, and the text encoder, trained to classify the attributes of captions."""

import gzip
import itertools
import json
from importlib.metadata import files
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

import scenes
from training import Training, rng

# CLIP's merges are sorted by frequency; the first hundreds spell common English.
FIRST_MERGES = 600
WORDS = (
    "a an the of on in at and with picture photo image background gray grey middle left right top bottom above below "
    "front small large medium big tiny empty plain striped checkered dotted red green blue yellow orange purple white "
    "black circle square triangle star two no blurry low quality , ."
).split()
HIDDEN, LAYERS, HEADS, LENGTH = 128, 2, 4, 77
STEPS, BATCH = 300, 64
# The attributes of a caption, each with its values. The text encoder is trained to classify them.
NOTHING = "nothing"
ATTRIBUTES = {
    "background": list(scenes.BACKGROUNDS),
    "texture": list(scenes.TEXTURES),
    "relation": [NOTHING, *scenes.RELATIONS],
    "place": [NOTHING, *scenes.PLACES],
    **{
        f"{key} {n}": [NOTHING, *values]
        for n in (1, 2)
        for key, values in (
            ("shape", scenes.SHAPES),
            ("color", list(scenes.COLORS)),
            ("size", ["small", "medium", "large"]),
        )
    },
}


def clip_merges():
    """Returns the merges of CLIP's tokenizer, from the package open-clip-torch."""
    path = next(f for f in files("open-clip-torch") if f.name == "bpe_simple_vocab_16e6.txt.gz").locate()
    lines = gzip.decompress(Path(path).read_bytes()).decode("utf-8").split("\n")
    return [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]


def merges_of(word, ranks):
    """Returns the merges that spell a word, in the order in which byte pair encoding applies them."""
    parts, used = [*word[:-1], word[-1] + "</w>"], []
    while len(parts) > 1:
        pair = min(itertools.pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
        if pair not in ranks:
            break
        used.append(pair)
        at = next(n for n in range(len(parts) - 1) if (parts[n], parts[n + 1]) == pair)
        parts[at : at + 2] = ["".join(pair)]
    return used


def write_tokenizer(folder):
    """Writes a tokenizer with the merges of CLIP that captions need, and new ids, in the layout of SD2's folders."""
    merges = clip_merges()
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    kept = set(merges[:FIRST_MERGES]).union(*(merges_of(word, ranks) for word in WORDS))
    merges = sorted(kept, key=ranks.get)
    symbols = list(bytes_to_unicode().values())
    tokens = symbols + [symbol + "</w>" for symbol in symbols] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({t: n for n, t in enumerate(tokens)}, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2"] + [" ".join(pair) for pair in merges]) + "\n", encoding="utf-8"
    )
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="!", model_max_length=LENGTH)


def build(tokenizer):
    """Makes the text encoder with random weights."""
    torch.manual_seed(rng("text_encoder").integers(2**31))
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=4 * HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            hidden_act="gelu",
            max_position_embeddings=LENGTH,
            projection_dim=HIDDEN // 2,
            bos_token_id=len(tokenizer) - 2,
            eos_token_id=len(tokenizer) - 1,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizer, captions, length=LENGTH):
    """Returns the token ids of captions, padded to `length`."""
    return tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def attributes(scene):
    """Returns the index of the value of each attribute."""
    values = {"background": scene.background, "texture": scene.texture}
    values["relation"], values["place"] = scene.relation or NOTHING, scene.place or NOTHING
    for n, item in enumerate(reversed(scene.objects), 1):
        values |= {f"shape {n}": item.shape, f"color {n}": item.color, f"size {n}": item.size or "medium"}
    return [allowed.index(values.get(key, NOTHING)) for key, allowed in ATTRIBUTES.items()]


class Heads(torch.nn.Module):
    """Classifies each attribute: a query over the hidden states, then a linear layer. Only the training uses it."""

    def __init__(self):
        super().__init__()
        self.queries = torch.nn.Parameter(torch.randn(len(ATTRIBUTES), HIDDEN) * HIDDEN**-0.5)
        self.answers = torch.nn.ModuleList(torch.nn.Linear(HIDDEN, len(values)) for values in ATTRIBUTES.values())

    def forward(self, hidden):
        weights = torch.softmax(torch.einsum("ah,bth->bat", self.queries, hidden), -1)
        seen = torch.einsum("bat,bth->abh", weights, hidden)
        return [layer(state) for layer, state in zip(self.answers, seen, strict=True)]


def train(work, tokenizer):
    """Trains the text encoder: cross-entropy of the attributes that `Heads` reads from the hidden states."""
    encoder, heads = build(tokenizer), Heads()
    training = Training(
        work, "text_encoder", {"text_encoder": encoder, "heads": heads}, STEPS, 3e-3, average=0.99, muon=0.01
    )

    def batch(step):
        generator = rng("text_encoder", step)
        drawn = [scenes.sample(generator) for _ in range(BATCH)]
        return tokenize(tokenizer, [s.caption for s in drawn]), torch.tensor([attributes(s) for s in drawn])

    def loss(batch, _):
        ids, expected = batch
        logits = heads(encoder(ids).last_hidden_state)
        losses = [torch.nn.functional.cross_entropy(t, w) for t, w in zip(logits, expected.T, strict=True)]
        right = torch.stack([t.argmax(-1) == w for t, w in zip(logits, expected.T, strict=True)]).all(0).float().mean()
        return torch.stack(losses).mean(), {"captions correct": right.item()}

    training.run(batch, loss)
    return encoder
