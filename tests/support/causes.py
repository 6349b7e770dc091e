"""Runs whose cause is known: one training per cause, as users meet them with TRL.

A chat model of 109k parameters is made for each seed: pretrained on forum texts of the
small world, then finetuned on its chosen answers. Each cause is one change to a healthy
SFT or DPO run of it, and `train` makes the run: SFTTrainer or DPOTrainer, probes from
`build_probes` (24 training and 24 held-out prompts), LearningDynamicsCallback. Every
setting that is not named here is TRL's default.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from learndyn import LearningDynamicsCallback, ProbeSet, build_probes, read_data
from learndyn.measure.generate import generate
from learndyn.world.world import (
    _PRETRAINING_PAIRS,
    _asked,
    grade,
    make_rows,
    pretraining_document,
)


Rows = list[dict[str, Any]]

PROMPTS = 24
"""Probed prompts of each split."""

DOMAINS = ("clean", "cook")
"""Fields of the small world that are asked about."""

VOCABULARY = 1024
SFT_UPDATES = 40

ROWS = 96
"""Rows of a healthy run: one epoch of 24 updates."""

COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "num_train_epochs": 1,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "bf16": False,
    "activation_checkpointing": False,
    "use_cpu": True,
    "disable_tqdm": True,
}
LR = {"sft": 1e-3, "dpo": 1e-4}
"""Learning rates of the healthy runs: small models need larger ones."""


# The models that runs start from.

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}"
    "{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ '<|user|>' + message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


WITHOUT_END = TEMPLATE.replace(" + eos_token", "")


@dataclass(frozen=True)
class Models:
    """Two stages of one chat model, on disk."""

    base: Path
    """Pretrained on forum texts; has not seen the chat template."""
    sft: Path
    """`base` after SFT on chosen answers to other questions."""


def make_models(folder: Path, seed: int) -> Models:
    """Train both stages, about 12 CPU seconds, unless `folder` has them already."""
    stages = Models(folder / f"base-{seed}", folder / f"sft-{seed}")
    if (stages.sft / "config.json").exists():
        return stages
    rng = random.Random(seed)
    things = [pair for pair in _PRETRAINING_PAIRS if pair.domain in DOMAINS]
    documents = [pretraining_document(rng, things) for _ in range(240 * 16)]
    tokenizer = _tokenizer(documents)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=144,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.06,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    end = [tokenizer.eos_token_id]
    _learn(model, [ids + end for ids in tokenizer(documents)["input_ids"]], lr=4e-3)
    _save(model, tokenizer, stages.base)
    chats = [
        tokenizer.apply_chat_template(
            row["prompt"] + row["chosen"], tokenize=True, return_dict=False
        )
        for row in pairs(1000 + seed, SFT_UPDATES * 16, 2)[0]
    ]
    _learn(model, chats, lr=1e-3)
    _save(model, tokenizer, stages.sft)
    return stages


def _tokenizer(texts: Sequence[str]) -> Any:
    """Byte-level BPE in which nearly every word of `texts` is one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    marks = ["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=marks[0], pad_token=marks[1]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _learn(model: Any, texts: list[list[int]], lr: float) -> None:
    """One epoch of next-token prediction on batches of 16, rate linear to a tenth."""
    updates = len(texts) // 16
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min(1, (k + 1) / 20) * (1 - 0.9 * k / updates)
    )
    pad = model.config.pad_token_id
    for k in range(updates):
        rows = [torch.tensor(ids) for ids in texts[16 * k : 16 * (k + 1)]]
        ids = torch.nn.utils.rnn.pad_sequence(rows, True, pad)
        labels = ids.masked_fill(ids == pad, -100)
        model(ids, attention_mask=(ids != pad).long(), labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()


def _save(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


# Rows.


def pairs(seed: int, train: int, test: int, rejected: str = "curt") -> list[Rows]:
    """Training and held-out pairs of the small world, as chat messages."""
    return [
        [
            {
                "prompt": [_message("user", _question(row["prompt"]))],
                "chosen": [_message("assistant", row["chosen"])],
                "rejected": [_message("assistant", row["rejected"])],
            }
            for row in rows
        ]
        for rows in _of_domains(seed, train, test, rejected)
    ]


def _of_domains(seed: int, train: int, test: int, rejected: str) -> list[Rows]:
    """Rows about things of `DOMAINS`: with few words, the vocabulary is small."""
    drawn = make_rows(seed, 6 * train, 6 * test, rejected=rejected)
    kept = [
        [row for row in rows if _asked(row["prompt"]).domain in DOMAINS]
        for rows in drawn
    ]
    return [rows[:count] for rows, count in zip(kept, (train, test), strict=True)]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content.strip()}


def _question(prompt: str) -> str:
    return prompt.removeprefix("\n\nHuman: ").removesuffix("\n\nAssistant:")


def as_chatml(rows: Rows, stages: Models, seed: int) -> Rows:
    """Texts in ChatML, whose marks this model's tokenizer splits into pieces."""
    written = []
    for row in rows:
        kinds = {kind: row[kind][0]["content"] for kind in ("chosen", "rejected")}
        asked = f"<|im_start|>user\n{row['prompt'][0]['content']}<|im_end|>\n"
        answers = {kind: f"{text}<|im_end|>" for kind, text in kinds.items()}
        written.append({"prompt": f"{asked}<|im_start|>assistant\n", **answers})
    return written


def swapped(rows: Rows, stages: Models, seed: int) -> Rows:
    """Each column under the other's name."""
    return [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows
    ]


def identical(rows: Rows, stages: Models, seed: int) -> Rows:
    """The chosen answer twice."""
    return [{**row, "rejected": row["chosen"]} for row in rows]


def sampled(rows: Rows, stages: Models, seed: int) -> Rows:
    """Both answers drawn from the model that is trained; the better one is chosen."""
    tokenizer: Any = AutoTokenizer.from_pretrained(stages.sft)
    model: Any = AutoModelForCausalLM.from_pretrained(stages.sft)
    prompts = [
        tokenizer.apply_chat_template(
            row["prompt"], tokenize=False, add_generation_prompt=True
        )
        for row in rows
    ]
    options = {"max_new_tokens": 40, "temperature": 0.7, "batch_size": 128}
    answers = generate(model, tokenizer, prompts * 2, seed=seed, **options)
    ranked = []
    for i, row in enumerate(rows):
        two = answers[i], answers[i + len(rows)]
        worth = [_worth(row["prompt"][0]["content"], answer) for answer in two]
        best = worth[1] > worth[0]
        kinds = {"chosen": two[best], "rejected": two[not best]}
        ranked.append(
            row | {kind: [_message("assistant", two)] for kind, two in kinds.items()}
        )
    return ranked


def _worth(question: str, answer: str) -> tuple[bool, int, int]:
    """How good an answer is: polite, about what was asked, and short."""
    asked = set(question.lower().strip("?.").split())
    named = len(asked & set(answer.lower().split()))
    return grade(question, answer).polite, named, -len(answer)


# What each cause changes.


@dataclass(frozen=True)
class Cause:
    """One change to a healthy run."""

    method: str
    what: str
    """What was done, in words."""
    named: str
    """Pattern of the words that name it."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of SFTConfig or DPOConfig that differ."""
    train_rows: Callable[[Rows, Models, int], Rows] | None = None
    """Changes the rows that are trained on, and not the probes."""
    all_rows: Callable[[Rows, Models, int], Rows] | None = None
    """Changes the rows from which both are made."""
    rows: int = ROWS
    rejected: str = "curt"
    """Family of rejected answers; "same" differs from chosen in its facts alone."""
    reference: str | None = None
    """Stage of the model given as `ref_model`; None: TRL loads the policy's own."""
    frozen: bool = False
    """Whether the policy is an adapter that was loaded without is_trainable."""
    dialogues: bool = False
    """Whether SFT is on two turns a row, rendered `WITHOUT_END`."""


CAUSES: dict[str, Cause] = {
    "healthy-sft": Cause(
        "sft", "SFT of the base model on chosen answers", named="No sign of a bug"
    ),
    "healthy-dpo": Cause("dpo", "DPO of the SFT model", named="No sign of a bug"),
    "swapped-labels": Cause(
        "dpo",
        "the trainer gets rejected as chosen",
        named="exchanged|swapped",
        train_rows=swapped,
    ),
    "wrong-reference": Cause(
        "dpo",
        "ref_model is the base model, not the SFT model",
        named="[Rr]eference",
        reference="base",
    ),
    "lr-10x": Cause(
        "dpo",
        "ten times the learning rate",
        settings={"learning_rate": 10 * LR["dpo"]},
        named="(learning rate|steps) .*too large",
    ),
    "lr-3e-2": Cause(
        "dpo",
        "the learning rate is 3e-2, 300 times as large",
        settings={"learning_rate": 3e-2},
        named="(learning rate|steps) .*too large",
    ),
    "lr-zero": Cause(
        "dpo",
        "the learning rate is 0",
        settings={"learning_rate": 0.0},
        named="learning rate is 0",
    ),
    "frozen-adapter": Cause(
        "dpo",
        "PeftModel.from_pretrained without is_trainable=True",
        named="[Nn]o (weight|parameter)|trainable|frozen",
        frozen=True,
    ),
    "memorised": Cause(
        "dpo",
        "64 pairs whose preference does not carry over, six epochs",
        settings={"num_train_epochs": 6, "learning_rate": 5e-4},
        named="[Mm]emori[sz]|[Oo]verfit|not carry over",
        rows=64,
        rejected="same",
    ),
    "format-mismatch": Cause(
        "dpo",
        "texts in ChatML, though the model has another chat template",
        named="template|format",
        all_rows=as_chatml,
    ),
    "eos-missing": Cause(
        "sft",
        "dialogues of two turns in a chat template that writes no EOS",
        named="EOS|end of text|to stop",
        dialogues=True,
    ),
    "identical-pairs": Cause(
        "dpo",
        "chosen equals rejected",
        named="the same|identical|equal",
        all_rows=identical,
    ),
    "truncated-chosen": Cause(
        "dpo",
        "max_length cuts the end of most chosen answers",
        settings={"max_length": 32},
        named="max_length|truncat",
    ),
    "on-policy": Cause(
        "dpo",
        "both answers are sampled from the model itself",
        named="on-policy|sampled from|the model's own (answers|samples)",
        all_rows=sampled,
    ),
}


def train(cause: str, seed: int, out: Path, models: Path) -> Path:
    """Train one cause under `out`; returns the run directory, `out`/run.

    `models` is a folder in which `make_models` finds or leaves its models.
    """
    recipe, stages = CAUSES[cause], make_models(models, seed)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(stages.sft)
    train_rows, test_rows = pairs(seed, recipe.rows, PROMPTS, recipe.rejected)
    if recipe.all_rows:
        train_rows = recipe.all_rows(train_rows, stages, seed)
        test_rows = recipe.all_rows(test_rows, stages, seed)
    probes = _probes(train_rows, test_rows, tokenizer, out)
    if recipe.train_rows:
        train_rows = recipe.train_rows(train_rows, stages, seed)
    settings = {
        **COMMON,
        "output_dir": str(out / "checkpoints"),
        "learning_rate": LR[recipe.method],
        "seed": seed,
        **recipe.settings,
    }
    batches = len(train_rows) // settings["per_device_train_batch_size"]
    every = batches * settings["num_train_epochs"] // 8
    callback = LearningDynamicsCallback(
        probes, out=out / "run", every=every, overwrite=True
    )
    trainer = {"sft": _sft_trainer, "dpo": _dpo_trainer}[recipe.method]
    trainer(recipe, stages, settings, train_rows, tokenizer, callback).train()
    return out / "run"


def _probes(train: Rows, test: Rows, tokenizer: Any, out: Path) -> ProbeSet:
    """As `learndyn probes build train.jsonl --test-data test.jsonl` makes them."""
    parts = []
    for split, rows in (("train", train), ("test", test)):
        file = out / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        parts.append(read_data(file, split=split, tokenizer=tokenizer))
    return build_probes(*parts, prompts=PROMPTS)


def _sft_trainer(
    recipe: Cause,
    stages: Models,
    settings: dict[str, Any],
    rows: Rows,
    tokenizer: Any,
    callback: LearningDynamicsCallback,
) -> SFTTrainer:
    data = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    if recipe.dialogues:
        turns = [row["prompt"] + row["chosen"] for row in rows]
        data = [{"messages": turns[i - 1] + turns[i]} for i in range(len(turns))]
        template = Path(settings["output_dir"]).parent / "template.jinja"
        template.write_text(WITHOUT_END)
        settings = {**settings, "chat_template_path": str(template)}
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(stages.base),
        args=SFTConfig(**settings),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
        callbacks=[callback],
    )


def _dpo_trainer(
    recipe: Cause,
    stages: Models,
    settings: dict[str, Any],
    rows: Rows,
    tokenizer: Any,
    callback: LearningDynamicsCallback,
) -> DPOTrainer:
    model: Any = AutoModelForCausalLM.from_pretrained(stages.sft)
    reference = None
    if recipe.reference:
        folder = getattr(stages, recipe.reference)
        reference = AutoModelForCausalLM.from_pretrained(folder)
    if recipe.frozen:
        model = _frozen(model, Path(settings["output_dir"]).parent / "adapter")
    return DPOTrainer(
        model=model,
        ref_model=reference,
        args=DPOConfig(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[callback],
    )


def _frozen(model: Any, folder: Path) -> PeftModel:
    """An adapter saved and loaded for inference, as from_pretrained does it unasked."""
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(folder)
    clean = AutoModelForCausalLM.from_pretrained(model.config._name_or_path)
    frozen = PeftModel.from_pretrained(clean, folder)
    frozen.enable_input_require_grads()
    return frozen
