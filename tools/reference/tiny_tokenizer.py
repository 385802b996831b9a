"""A tokenizer in CLIP's layout, learned from a page of captions: 814 tokens instead of 49,408."""

import itertools
import json
from collections import Counter

from transformers.models.clip.tokenization_clip import bytes_to_unicode

MERGES = 300

# Plain captions. They only determine the merges.
CAPTIONS = """
a photo of a cat sitting on a red chair in front of a window
an oil painting of a stormy sea at night with a small boat, highly detailed
a photograph of an astronaut riding a horse on the moon
a watercolor painting of a quiet village in the mountains with snow on the roofs
portrait of an old man with a long white beard and a green hat, studio lighting
a bowl of fresh fruit on a wooden table, soft morning light, high quality
the city skyline at sunset reflected in the water, wide angle photograph
a black and white drawing of a tall tree beside a stone bridge over the river
a robot cooking dinner in a small kitchen, digital art, trending, sharp focus
two dogs playing with a yellow ball in the park on a sunny day
infinity pool on top of a high rise overlooking a central park, architecture render
a close up photo of a purple flower with drops of rain on the leaves
a fantasy castle floating above the clouds, epic, cinematic, dramatic lighting
a vintage blue car parked in front of an orange house with palm trees
a cup of hot coffee and an open book on the bed, cozy winter morning
children running through a field of golden wheat under a bright blue sky
low quality, blurry, bad anatomy, extra fingers, text, watermark, cropped, worst quality, deformed
a modern living room with a grey sofa, large plants and a view of the garden
a bird standing on a branch in the forest with fog between the trees
an illustration of a dragon breathing fire over the ancient stone walls of a city
"""


def learn_merges(text, count):
    """Returns `count` merges of byte pair encoding: the most frequent pair first, ties in the order of the pairs."""
    words = Counter((*w[:-1], w[-1] + "</w>") for w in text.lower().replace(",", " ,").split())
    merges = []
    while len(merges) < count:
        pairs = Counter()
        for word, times in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += times
        if not pairs:
            raise ValueError(f"the captions give only {len(merges)} merges")
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = Counter({merge_pair(word, best): times for word, times in words.items()})
    return merges


def merge_pair(word, pair):
    merged, i = [], 0
    while i < len(word):
        if word[i : i + 2] == pair:
            merged.append(word[i] + word[i + 1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return tuple(merged)


def added_token(content):
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tokenizer(folder, pad_token):
    """Writes the four files of the public repositories; returns the number of tokens.

    tokenizer_config.json always has <|endoftext|> for padding; the `pad_token` in special_tokens_map.json overrides it.
    """
    folder.mkdir(parents=True)
    symbols = list(bytes_to_unicode().values())
    merges = learn_merges(CAPTIONS, MERGES)
    tokens = symbols + [symbol + "</w>" for symbol in symbols] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    if len(set(tokens)) != len(tokens):
        raise ValueError("two merges give the same token")
    vocab = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2"] + [" ".join(pair) for pair in merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    start, end = added_token("<|startoftext|>"), added_token("<|endoftext|>")
    write_json(
        folder / "special_tokens_map.json",
        {"bos_token": start, "eos_token": end, "pad_token": pad_token, "unk_token": end},
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": {"__type": "AddedToken", **start},
            "do_lower_case": True,
            "eos_token": {"__type": "AddedToken", **end},
            "errors": "replace",
            "model_max_length": 77,
            "pad_token": "<|endoftext|>",
            "special_tokens_map_file": "./special_tokens_map.json",
            "tokenizer_class": "CLIPTokenizer",
            "unk_token": {"__type": "AddedToken", **end},
        },
    )
    return len(tokens)
