"""Cases of the weighted prompt syntax, and their embeddings.

`encode` computes the same as diffusers' community pipeline `lpw_stable_diffusion` (max_embeddings_multiples=3,
no_boseos_middle=False), with the tokenizer and text encoder of a loaded pipeline.
"""

import math
import re

import torch

from text_cases import LONG

MAX_CHUNKS = 3
SYMBOLS = re.compile(r"\\[()\[\]\\]|\\|[()\[\]]|:[+-]?[.\d]+\)|[^\\()\[\]:]+|:")


def parse(prompt):
    """Splits a prompt into (text, weight) pairs; joins neighbors of equal weight."""
    texts = []
    opened = {"(": [], "[": []}  # indices into texts at which open brackets start
    spans = []  # (first, end, factor), in the order of the closing brackets
    for symbol in SYMBOLS.findall(prompt):
        if symbol in opened:
            opened[symbol].append(len(texts))
        elif symbol.endswith(")") and not symbol.startswith("\\") and opened["("]:
            factor = 1.1 if symbol == ")" else float(symbol[1:-1])
            spans.append((opened["("].pop(), len(texts), factor))
        elif symbol == "]" and opened["["]:
            spans.append((opened["["].pop(), len(texts), 1 / 1.1))
        else:
            texts.append(symbol[1:] if symbol.startswith("\\") else symbol)
    # A bracket without an end applies to the rest.
    spans += [(first, len(texts), 1.1) for first in opened["("]]
    spans += [(first, len(texts), 1 / 1.1) for first in opened["["]]
    found = []
    for index, text in enumerate(texts):
        weight = 1.0
        for first, end, factor in spans:
            if first <= index < end:
                weight *= factor
        if found and found[-1][1] == weight:
            text = found.pop()[0] + text
        found.append((text, weight))
    return found


def tokens(tokenizer, prompt):
    """Returns ids and weights without start, end and padding, and whether some were cut off."""
    ids, weights = [], []
    for text, weight in parse(prompt):
        text_ids = tokenizer(text).input_ids[1:-1]
        ids += text_ids
        weights += [weight] * len(text_ids)
    limit = MAX_CHUNKS * (tokenizer.model_max_length - 2)
    return ids[:limit], weights[:limit], len(ids) > limit


def embed(pipeline, ids, weights, chunks, clip_skip):
    """Encodes chunks of 75 tokens separately, applies the weights and restores the mean."""
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    limit = tokenizer.model_max_length - 2
    missing = chunks * limit - len(ids)
    ids, weights = ids + [tokenizer.pad_token_id] * missing, weights + [1.0] * missing
    states, scales = [], []
    for start in range(0, chunks * limit, limit):
        chunk = [tokenizer.bos_token_id, *ids[start : start + limit], tokenizer.eos_token_id]
        hidden = encoder(torch.tensor([chunk]), output_hidden_states=True).hidden_states[-1 - clip_skip]
        states.append(encoder.text_model.final_layer_norm(hidden))
        scales += [1.0, *weights[start : start + limit], 1.0]
    states = torch.cat(states, dim=1)
    weighted = states * torch.tensor(scales, dtype=states.dtype)[None, :, None]
    return weighted * (states.mean(dim=(1, 2), keepdim=True) / weighted.mean(dim=(1, 2), keepdim=True))


def encode(pipeline, prompt, negative_prompt=None, clip_skip=None):
    """Returns (prompt_embeds, negative_prompt_embeds or None, truncated)."""
    texts = [prompt] if negative_prompt is None else [prompt, negative_prompt]
    texts = pipeline.maybe_convert_prompt(texts, pipeline.tokenizer)
    encoded = [tokens(pipeline.tokenizer, text) for text in texts]
    longest = max(len(ids) for ids, _, _ in encoded)
    chunks = max(1, math.ceil(longest / (pipeline.tokenizer.model_max_length - 2)))
    embeds = [embed(pipeline, ids, weights, chunks, clip_skip or 0) for ids, weights, _ in encoded]
    truncated = any(cut for _, _, cut in encoded)
    return embeds[0], embeds[1] if len(embeds) > 1 else None, truncated


def case(name, prompt, negative_prompt=None, clip_skip=None):
    return {"name": name, "prompt": prompt, "negative_prompt": negative_prompt, "clip_skip": clip_skip}


TWO_CHUNKS = "a (detailed:1.4) painting of a [castle] above the clouds, dramatic light, " * 8
FOUR_CHUNKS = TWO_CHUNKS * 3

# sd1 pads with the end token, sd2_base with another one.
CASES = {
    "sd1": [
        case("words", "a (red:1.3) cat on a [blue] (chair), [[dark:1.3)]]", "(blurry:0.5) text!"),
        case("nested", "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky)))."),
        case("escapes", r"a \(red\) \[cat\] \\ with a ba\ckslash and (a \(bracket\):1.5)"),
        case("unbalanced", "a ((red [cat) sat] on) a) chair:1.3)"),
        case("overlapping", "a (red [cat) sat] (Caf\u00e9 \u4e00\u53ea:1.2)\u732b", clip_skip=1),
        case("empty", "", ""),
        case("zero-and-negative", "a (cat:0) and a (dog:-1) at 16:9"),
        case("longer-negative", "a cat", TWO_CHUNKS, clip_skip=2),
        case("exactly-one-chunk", "a " * 74 + "(cat)"),
        case("cut", FOUR_CHUNKS),
    ],
    "sd2_base": [
        case("words", "a (red:1.3) cat! (wow!:1.2) on a [blue] (chair)", "(blurry:0.5) text!"),
        case("unbalanced", "a ((red [cat) sat] on) a) chair:1.3)", clip_skip=1),
        case("empty", ""),
        case("plain-long", LONG),
        case("just-two-chunks", "a " * 75 + "(cat)"),
        case("three-chunks", "a " * 200 + "(cat:1.5)"),
    ],
}


def cases():
    """Returns every case as plain data."""
    return [
        {**case, "name": f"{checkpoint}/{case['name']}", "checkpoint": checkpoint}
        for checkpoint, cases in CASES.items()
        for case in cases
    ]
