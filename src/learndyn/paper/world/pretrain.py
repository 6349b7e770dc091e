"""Pretrain the small LM of the embedded world, from nothing but a seed.

    python -m learndyn.paper.world.pretrain --seed 0 --out DIR

writes a folder that transformers loads: the rounded weights, the tokenizer, and
`provenance.json`, which says what they were made from and what rounding cost.
"""

import argparse
import hashlib
import json
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from learndyn.errors import BadInput
from learndyn.world.world import pretraining_document


_EOS, _PAD = "<|endoftext|>", "<|pad|>"
_EOS_ID, _PAD_ID = 0, 1
"""Special tokens come first in the vocabulary."""
_BATCH = 32
"""Documents of an update, one to a row: finetuning never sees two in one row either."""
_BUCKET = 100
"""Batches read at once and sorted by length, so that little padding is computed."""
_HELD_OUT = 50 * _BATCH
"""Documents that are never trained on, for the held-out loss."""


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the weights depend on."""

    seed: int = 0
    documents: int = 160_000
    """Training documents; none is seen twice."""
    vocabulary: int = 1536
    """Every word of the world fits as one token."""
    width: int = 128
    layers: int = 4
    heads: int = 4
    initial_std: float = 0.06
    """Of the random weights. At 0.06 so narrow a model copies words of the question
    after 0.7 million tokens; at the usual 0.02 it had not begun to after 1.1."""
    lr: float = 2e-3
    warmup: int = 100
    """Updates of linear warm-up; a cosine to a twentieth of `lr` follows."""
    weight_decay: float = 0.05

    @property
    def updates(self) -> int:
        return max(1, self.documents // _BATCH)


def _documents(seed: int, split: str) -> Iterator[str]:
    """An endless stream of pretraining text."""
    rng = random.Random(f"pretraining {seed} {split}")
    while True:
        yield pretraining_document(rng)


def _train_tokenizer(seed: int, vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE fitted to 20,000 documents of their own."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    text = _documents(seed, "tokenizer")
    bpe.train_from_iterator(
        (next(text) for _ in range(20_000)),
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[_EOS, _PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=_EOS,
        pad_token=_PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def _batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, split: str
) -> Iterator[Tensor]:
    """Endless batches of documents, each closed by EOS; rows end in padding."""
    text, rng = _documents(seed, split), random.Random(seed)
    while True:
        some = [f"{next(text)}{_EOS}" for _ in range(_BATCH * _BUCKET)]
        rows = sorted(tokenizer(some)["input_ids"], key=len)
        bucket = [rows[i : i + _BATCH] for i in range(0, len(rows), _BATCH)]
        rng.shuffle(bucket)
        for part in bucket:
            yield pad_sequence(
                [torch.tensor(ids) for ids in part],
                batch_first=True,
                padding_value=_PAD_ID,
            )


def _new_model(
    settings: _Settings, tokenizer: PreTrainedTokenizerFast
) -> LlamaForCausalLM:
    """A Llama with random weights, embeddings tied."""
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=3 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=settings.initial_std,
        bos_token_id=None,
        eos_token_id=_EOS_ID,
        pad_token_id=_PAD_ID,
    )
    return LlamaForCausalLM(config)


def _token_loss(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Mean negative log-probability, in nats per token that is no padding."""
    # The matrix products in bfloat16 run half again as fast on CPUs that have them.
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=model.training):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return cross_entropy(
        logits.float().flatten(0, 1),
        ids[:, 1:].flatten(),
        ignore_index=_PAD_ID,
    )


def _count(ids: Tensor) -> int:
    """Tokens that the loss is a mean over: no padding, and no first token of a row."""
    return int((ids[:, 1:] != _PAD_ID).sum())


def _mean_per_token(losses: list[float], tokens: list[int]) -> float:
    """Mean of batch means. Batches differ in length, and short documents are harder."""
    return sum(x * n for x, n in zip(losses, tokens, strict=True)) / sum(tokens)


@torch.no_grad()
def _held_out_loss(model: LlamaForCausalLM, held_out: list[Tensor]) -> float:
    """Nats per token, computed in float32."""
    model.eval()
    losses = [_token_loss(model, ids).item() for ids in held_out]
    model.train()
    return _mean_per_token(losses, [_count(ids) for ids in held_out])


def _new_optimizer(
    model: LlamaForCausalLM, settings: _Settings
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW without weight decay on norms; linear warm-up, then a cosine."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=settings.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    warmup = min(settings.warmup, max(1, settings.updates // 10))
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(
                optimizer, 1 / warmup, total_iters=warmup
            ),
            torch.optim.lr_scheduler.CosineAnnealingLR(
                optimizer, max(1, settings.updates - warmup), settings.lr / 20
            ),
        ],
        [warmup],
    )
    return optimizer, schedule


def _train(
    model: LlamaForCausalLM, text: Iterator[Tensor], settings: _Settings
) -> tuple[float, int]:
    """Train in place; the loss per token over the last 500 updates, the tokens seen."""
    optimizer, schedule = _new_optimizer(model, settings)
    losses: list[float] = []
    tokens: list[int] = []
    model.train()
    with tqdm(total=settings.updates, unit="update", mininterval=5) as bar:
        for _ in range(settings.updates):
            ids = next(text)
            loss = _token_loss(model, ids)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.item())
            tokens.append(_count(ids))
            recent = _mean_per_token(losses[-500:], tokens[-500:])
            bar.set_postfix(loss=f"{recent:.3f}", refresh=False)
            bar.update()
    return _mean_per_token(losses[-500:], tokens[-500:]), sum(tokens)


def _pretrain(settings: _Settings, out: Path) -> dict[str, object]:
    """Train, round, write `out`, and return what `provenance.json` holds."""
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"{out} is not empty. Give a new folder.")
    start = time.monotonic()
    tokenizer = _train_tokenizer(settings.seed, settings.vocabulary)
    held_out = list(
        islice(_batches(tokenizer, settings.seed, "held out"), _HELD_OUT // _BATCH)
    )
    model = _new_model(settings, tokenizer)
    text = _batches(tokenizer, settings.seed, "train")
    train_loss, tokens = _train(model, text, settings)
    exact_loss = _held_out_loss(model, held_out)
    # float16 keeps 11 bits of these small weights where bfloat16 keeps 8.
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    rounded = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    weights = (out / "model.safetensors").read_bytes()
    provenance = {
        "command": (
            f"python -m learndyn.paper.world.pretrain --seed {settings.seed} "
            f"--documents {settings.documents} --lr {settings.lr} --out DIR"
        ),
        "settings": asdict(settings),
        "updates": settings.updates,
        "tokens": tokens,
        "vocabulary": len(tokenizer),
        "parameters": rounded.num_parameters(),
        "train_loss": train_loss,
        "held_out_loss": exact_loss,
        "held_out_loss_rounded": _held_out_loss(rounded, held_out),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "bytes": len(weights),
        "minutes": round((time.monotonic() - start) / 60, 1),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    (out / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
    return provenance


def main() -> None:
    """Read the command line and pretrain."""
    usual = _Settings()
    parser = argparse.ArgumentParser(description="Pretrain the embedded LM.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--documents", type=int, default=usual.documents)
    parser.add_argument("--lr", type=float, default=usual.lr)
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    settings = _Settings(seed=given.seed, documents=given.documents, lr=given.lr)
    print(json.dumps(_pretrain(settings, given.out), indent=2))


if __name__ == "__main__":
    main()
