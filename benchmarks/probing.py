"""What probing costs: `score` beside the reference's way, TRL's way and the limit.

    python benchmarks/probing.py                        # anywhere, embedded world
    python benchmarks/probing.py --probes probes.jsonl  # the authors' HH probe file
    python benchmarks/probing.py --probes probes.jsonl --bf16 --training --json out.json
    python benchmarks/probing.py --probes probes.jsonl --device cuda \\
        --shapes pythia-410m pythia-1b qwen1.5-0.5b

Routes, all over the same token ids and the same model:

1. reference: one forward per response, the prompt encoded anew each time; float32
   logits, log-softmax, softmax and one-hot at every position, then the statistics of
   Ren & Sutherland's evaluation. Written from a description of their code.
2. trl: batches of 8 in the file's order, padded on the right; logits at every position,
   then the chosen logit minus logsumexp, one sequence at a time, as TRL's
   `selective_log_softmax` does. Log-probabilities of the labels and nothing else.
3. plain: `score(tier="padded")`, all statistics.
4. ours: `score`, all statistics.
5. bf16: `score(precision="bfloat16")`, all statistics, approximate (`--bf16`).

On a CPU the unit is process CPU seconds (user + system) of one thread: on a shared
machine wall time measures the neighbours. Routes are interleaved over `--repeats`
rounds in one process, after a warm-up. "best" is the fastest round; ratios and shares
are of best to best. "of it system" is the kernel's share, mostly page faults of large
temporaries, which cost more in a virtual machine. `score` lays out the probes and tests
itself once per run (`Scorer.attach`): that is timed apart. Extra memory is the peak of
resident memory in a fresh process per route, above what was resident once the model was
made (Linux). On CUDA the unit is synchronised wall time, and memory is what the
allocator held at most, above what it held before.

The limit is the time of the matrix products that no exact route avoids, at the rate of
large matrix products measured between the routes, by the faster of `torch.mm` and
oneDNN: each prompt token once and each response token once through all linear layers,
each response token once through the output embedding. Attention's own products (2-3 %
more) are left out.

Models are random, their final norm scaled so that logits have a standard deviation of
4. Texts are tokenized with a byte-level BPE of 8,000 tokens trained on them. On a CPU
few prompts are scored: those of 3,000 random draws whose mean prompt length, mean
response length, repetition and padding are closest to the whole file's. Errors are
against the same weights in float64. Exits with 1 if an exact route is not exact.
"""

import argparse
import copy
import json
import math
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from learndyn.measure.linear import onednn_is_faster, product
from learndyn.measure.score import Scorer
from learndyn.probes.build import load_probes
from learndyn.probes.kinds import AUTHORS_KINDS
from learndyn.probes.probe import ProbeSet
from learndyn.probes.tokenize import TokenizedPair, TokenizedProbes, tokenize
from learndyn.world.stages import make_world


VOCABULARY = 8000
LOGIT_STD = 4.0
"""Of a random model's logits; entropies are then near those of a pretrained model."""
TOLERANCE = 1e-3
"""Largest error of a summed log-probability of an exact route, in nats ..."""
TOKEN_TOLERANCE = 2e-5
"""... or this much per token, where that is more."""
EVERY = 25
"""Updates between two observations in the table of `--training`, as in the paper."""
PANELS = {"500 x 13": 6500, "100 x 13": 1300}


@dataclass(frozen=True)
class Shape:
    """A random model of a published shape."""

    architecture: str
    settings: dict[str, Any]
    prompts: int | None
    """How many to score on a CPU by default; None for all."""

    def make(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
        """The model of seed 0, with logits as spread as a pretrained model's."""
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.architecture, **self.settings)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        base = model.base_model
        norm = base.norm if hasattr(base, "norm") else base.final_layer_norm
        with torch.no_grad():
            logits = model(torch.randint(0, VOCABULARY, (1, 64))).logits
            norm.weight.mul_(LOGIT_STD / logits.std())
        return model.to(device, dtype)


def neox(d: int, layers: int, heads: int, prompts: int | None = None) -> Shape:
    settings = {
        "vocab_size": 50304,
        "hidden_size": d,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * d,
    }
    return Shape("gpt_neox", settings, prompts)


def qwen2(
    d: int, layers: int, heads: int, kv: int, inner: int, prompts: int | None = None
) -> Shape:
    settings = {
        "vocab_size": 151936,
        "hidden_size": d,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": inner,
        "tie_word_embeddings": True,
    }
    return Shape("qwen2", settings, prompts)


SHAPES = {
    "neox-70m": neox(512, 6, 8, prompts=4),
    "qwen2-0.1b": qwen2(512, 10, 8, 2, 1536, prompts=2),
    "pythia-410m": neox(1024, 24, 16),
    "pythia-1b": neox(2048, 16, 8),
    "qwen1.5-0.5b": qwen2(1024, 24, 16, 16, 2816),
}
TRAINED = "neox-70m"


# --- what is scored ---


def load(file: str | None) -> TokenizedProbes:
    """All probes of a file, or the embedded world's, as token ids."""
    if file is None:
        probes = make_world().probes
    else:
        probes = load_probes(file, aliases=AUTHORS_KINDS, empty="keep")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = dict.fromkeys(text for p in probes for text in (p.prompt, p.response))
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
    return tokenize(probes, tokenizer, max_length=512, max_prompt_length=256)


def part(probes: TokenizedProbes, indices: Sequence[int]) -> TokenizedProbes:
    texts = ProbeSet(tuple(probes.probes[i] for i in indices))
    pairs = tuple(probes.pairs[i] for i in indices)
    return TokenizedProbes(texts, pairs, probes.tokenizer_hash)


def by_prompt(probes: TokenizedProbes) -> list[list[int]]:
    """Positions of the responses to each prompt."""
    groups: dict[str, list[int]] = {}
    for i, probe in enumerate(probes.probes):
        groups.setdefault(probe.prompt_id, []).append(i)
    return list(groups.values())


def batches(pairs: Sequence[Any], size: int = 8) -> Iterator[Sequence[Any]]:
    for i in range(0, len(pairs), size):
        yield pairs[i : i + size]


def lengths(pairs: Sequence[TokenizedPair]) -> dict[str, float]:
    """Means over responses, and what repetition and padding cost in tokens."""
    prompt = [len(p.prompt_ids) for p in pairs]
    response = [len(p.response_ids) for p in pairs]
    whole = np.add(prompt, response)
    padded = sum(len(batch) * max(batch) for batch in batches(whole))
    return {
        "responses": len(pairs),
        "prompt tokens": float(np.mean(prompt)),
        "response tokens": float(np.mean(response)),
        "tokens / unique tokens": float(whole.sum() / unique_tokens(pairs)),
        "padding in batches of 8": float(padded / whole.sum()),
    }


def unique_tokens(pairs: Sequence[TokenizedPair]) -> int:
    """Tokens if each prompt is encoded once."""
    prompts = {pair.prompt_ids for pair in pairs}
    return sum(map(len, prompts)) + sum(len(pair.response_ids) for pair in pairs)


def typical(probes: TokenizedProbes, prompts: int | None, tries: int = 3000) -> Any:
    """`prompts` prompts that together are most like the whole set, by `lengths`."""
    groups = by_prompt(probes)
    if prompts is None or prompts >= len(groups):
        return probes
    wanted = np.array(list(lengths(probes.pairs).values()))[1:]
    chance = np.random.default_rng(0)
    best, least = [], np.inf
    for _ in range(tries):
        drawn = sorted(chance.choice(len(groups), prompts, replace=False))
        indices = [i for group in drawn for i in groups[group]]
        found = list(lengths([probes.pairs[i] for i in indices]).values())[1:]
        off = np.abs(np.array(found) / wanted - 1).max()
        if off < least:
            best, least = indices, off
    return part(probes, best)


# --- the routes ---


@dataclass(frozen=True)
class Scores:
    """What a route found; flat over response tokens, in the probes' order."""

    logp: np.ndarray
    """Summed, one per response."""
    token_logp: np.ndarray
    argmax_id: np.ndarray | None
    """None where the route has none."""


def summed(token_logp: Tensor, pairs: Sequence[TokenizedPair]) -> np.ndarray:
    """Sums per response, in float64."""
    spans = token_logp.split([len(pair.response_ids) for pair in pairs])
    return np.array([float(span.double().sum()) for span in spans])


def reference(model: Any, probes: TokenizedProbes) -> Scores:
    """Route 1: everything at every position, one response at a time."""
    logps, ids = [], []
    for pair in probes.pairs:
        sequence = torch.tensor([[*pair.prompt_ids, *pair.response_ids]])
        sequence = sequence.to(model.device)
        attention = torch.ones_like(sequence)
        logits = model(sequence, attention_mask=attention, use_cache=False).logits
        found = reference_statistics(logits[:, :-1].float(), sequence[:, 1:])
        rows = slice(len(pair.prompt_ids) - 1, None)
        means = {name: value[0, rows].mean() for name, value in found.items()}
        assert all(mean.isfinite() for mean in means.values())
        logps.append(found["logp"][0, rows].cpu())
        ids.append(found["argmax_id"][0, rows].cpu())
    flat = torch.cat(logps)
    argmax_id = torch.cat(ids).long().numpy()
    return Scores(summed(flat, probes.pairs), flat.numpy(), argmax_id)


def reference_statistics(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Every statistic at every position, from (1, time, vocab) tensors.

    One departure, in the reference's favour: its one-hot is of int64, this of float32.
    """
    logp = logits.log_softmax(-1)
    top = logp.max(-1)
    pi = logits.softmax(-1)
    onehot = torch.zeros_like(pi).scatter_(-1, labels[..., None], 1.0)
    label_logp = logp.gather(-1, labels[..., None]).squeeze(-1)
    return {
        "logp": label_logp,
        "argmax_logp": top.values,
        "argmax_id": top.indices.float(),
        "rest_logp": (1 - pi.amax(-1)).log(),
        "pi_norm": pi.norm(dim=-1),
        "gap": (pi - onehot).norm(dim=-1),
        "energy": 1 - label_logp.exp(),
    }


def trl(model: Any, probes: TokenizedProbes) -> Scores:
    """Route 2: padded batches of 8 as they come, labels' log-probabilities only."""
    logps = []
    for pairs in batches(probes.pairs):
        token_logp, is_response = trl_logps(model, pairs)
        logps.append(token_logp[is_response].cpu())
    flat = torch.cat(logps).float()
    return Scores(summed(flat, probes.pairs), flat.numpy(), None)


def trl_logps(model: Any, pairs: Sequence[TokenizedPair]) -> tuple[Tensor, Tensor]:
    """Log-probability of each next token, and where that is a response token."""
    time_ = max(len(p.prompt_ids) + len(p.response_ids) for p in pairs)
    ids = torch.zeros(len(pairs), time_, dtype=torch.long)
    attention, is_response = torch.zeros_like(ids), torch.zeros_like(ids).bool()
    for row, pair in enumerate(pairs):
        sequence = [*pair.prompt_ids, *pair.response_ids]
        ids[row, : len(sequence)] = torch.tensor(sequence)
        attention[row, : len(sequence)] = 1
        is_response[row, len(pair.prompt_ids) : len(sequence)] = True
    ids, attention = ids.to(model.device), attention.to(model.device)
    logits = model(ids, attention_mask=attention, use_cache=False).logits
    return selected(logits[:, :-1], ids[:, 1:]), is_response[:, 1:].to(model.device)


def selected(logits: Tensor, labels: Tensor) -> Tensor:
    """log softmax at the labels, with TRL's order of operations."""
    labels = labels[..., None]
    if logits.dtype in (torch.float32, torch.float64):
        total = torch.stack([row.logsumexp(-1) for row in logits])
        return logits.gather(-1, labels).squeeze(-1) - total
    rows = zip(logits, labels, strict=True)
    return torch.stack([z.log_softmax(-1).gather(-1, y) for z, y in rows]).squeeze(-1)


Work = Callable[[], Scores]


def at_once(
    route: Callable[[Any, TokenizedProbes], Scores],
) -> Callable[[Any, TokenizedProbes], Work]:
    """A route that needs no preparation."""
    return partial(partial, route)


def attached(**settings: Any) -> Callable[[Any, TokenizedProbes], Work]:
    """`score` with these settings, laid out and tested before the first observation."""

    def attach(model: Any, probes: TokenizedProbes) -> Work:
        scorer = Scorer.attach(model, probes.pairs, **settings)

        def observe() -> Scores:
            found = scorer.observe()
            return Scores(found.logp, found.token_logp, found.token_argmax_id)

        return observe

    return attach


ROUTES: dict[str, Callable[[Any, TokenizedProbes], Work]] = {
    "reference": at_once(reference),
    "trl": at_once(trl),
    "plain": attached(tier="padded"),
    "ours": attached(),
    "bf16": attached(precision="bfloat16"),
}
"""Each makes itself ready for a model and probes, then scores them again and again."""

TITLES = {
    "reference": "1 reference: one forward per response, all statistics",
    "trl": "2 TRL: batches of 8, logp only",
    "plain": '3 `score(tier="padded")`',
    "ours": "4 `score`",
    "bf16": '5 `score(precision="bfloat16")`, approximate',
}


def exact(model: Any, probes: TokenizedProbes) -> Scores:
    """The same model in float64: what errors are measured against."""
    wide = copy.deepcopy(model).double()
    logps, ids = [], []
    for pair in probes.pairs:
        sequence = torch.tensor([[*pair.prompt_ids, *pair.response_ids]])
        labels = torch.tensor(pair.response_ids, device=model.device)
        kept = len(labels) + 1  # the last row predicts what follows the response
        found = wide(sequence.to(model.device), logits_to_keep=kept, use_cache=False)
        logp = found.logits[0, :-1].log_softmax(-1)
        logps.append(logp.gather(-1, labels[:, None]).squeeze(-1).cpu())
        ids.append(logp.argmax(-1).cpu())
    flat = torch.cat(logps)
    return Scores(summed(flat, probes.pairs), flat.numpy(), torch.cat(ids).numpy())


# --- time, memory, limit ---


@dataclass(frozen=True)
class Result:
    """One route over one model."""

    route: str
    seconds: list[float]
    """Of each round: CPU seconds of the process, or wall seconds on CUDA."""
    system: list[float]
    """CPU seconds of them in the kernel: page faults of large temporaries."""
    ready: float
    """What is needed once before them, in the same unit."""
    extra_mb: float
    limit: float
    """Seconds that the matrix products alone take in the dtype of this route, by the
    fastest library."""
    mm_limit: float
    """The same by `torch.mm`."""
    error: float
    """Largest |summed log-probability - the same in float64| of a response, in nats."""
    token_error: float
    excess: float
    """Largest error of a response beyond what an exact route may have, in nats."""
    argmax_differ: int | None
    """Tokens whose argmax id is not that of float64."""

    @property
    def best(self) -> float:
        return min(self.seconds)


@dataclass(frozen=True)
class Study:
    """All routes over one model."""

    shape: str
    dtype: str
    """Of the weights."""
    probes: dict[str, float]
    scored_by: str
    flops: float
    """Of the matrix products that scoring these probes needs."""
    rates: dict[str, list[float]]
    """dtype -> flop/s of large matrix products, measured before each timed route."""
    results: list[Result]

    def best(self, route: str) -> float:
        """Seconds of a route per response; NaN if it was not run."""
        found = [r.best for r in self.results if r.route == route]
        return found[0] / self.probes["responses"] if found else math.nan


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def timed(device: str, work: Callable[[], Any]) -> tuple[float, Any]:
    began = clock(device)
    found = work()
    return clock(device) - began, found


Product = Callable[[Tensor, Tensor], Tensor]


def by_onednn(a: Tensor, b: Tensor) -> Tensor:
    """a @ b by the library that `score` uses where it is the faster one."""
    return product(a, b.T, None)


def gemm_rate(device: str, dtype: torch.dtype, multiply: Product) -> float:
    """Flop/s of the best of several large matrix products."""
    scale = 1 if device == "cpu" else 4
    best = 0.0
    for inner in (512, 2048):
        n, k = 2048 * scale, inner * scale
        a = torch.randn(n, k, device=device).to(dtype)
        b = torch.randn(n, k, device=device).to(dtype).T
        for _ in range(3):
            took, _ = timed(device, partial(multiply, a, b))
            best = max(best, 2 * n * n * k / took)
    return best


def needed_flops(model: Any, pairs: Sequence[TokenizedPair]) -> float:
    """See the module: each token once through all layers, response rows to the head."""
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    body = sum(m.weight.numel() for m in linear)
    rows = sum(len(pair.response_ids) for pair in pairs)
    return 2.0 * (body * unique_tokens(pairs) + head.weight.numel() * rows)


def resident(what: str) -> float:
    """Resident memory of this process in MB: now (VmRSS) or at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return float(status.split(f"{what}:")[1].split()[0]) / 1024


@torch.no_grad()
def cpu_memory(shape: str, route: str, probes: TokenizedProbes) -> float:
    """Peak of a process that does nothing else, above the model."""
    torch.set_num_threads(1)
    model = SHAPES[shape].make()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    ROUTES[route](model, probes)()
    return resident("VmHWM") - before


def cuda_memory(model: Any, route: str, probes: TokenizedProbes) -> float:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ROUTES[route](model, probes)()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def memory(shape: str, model: Any, route: str, probes: TokenizedProbes) -> float:
    """Extra peak memory of one route, preparation included, in MB."""
    if model.device.type == "cuda":
        return cuda_memory(model, route, probes)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(cpu_memory, shape, route, probes).result()


@contextmanager
def said(what: str) -> Iterator[None]:
    """Progress on standard error."""
    began = time.perf_counter()
    print(f"{what} ...", end=" ", file=sys.stderr, flush=True)
    yield
    print(f"{time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def libraries(device: str, dtype: torch.dtype) -> dict[str, Product]:
    """Ways to multiply matrices of a dtype, by name; `torch.mm` comes first."""
    found: dict[str, Product] = {f"{name_of(dtype)} by torch.mm": torch.mm}
    if device == "cpu" and dtype == torch.float32 and onednn_is_faster():
        found[f"{name_of(dtype)} by oneDNN"] = by_onednn
    return found


def computes_in(route: str, dtype: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if route == "bf16" else dtype


@torch.no_grad()
def measure(
    shape: str, dtype: torch.dtype, probes: TokenizedProbes, args: argparse.Namespace
) -> Study:
    """Time all routes over one model, interleaved, then compare with float64."""
    device = args.device
    model = SHAPES[shape].make(device, dtype)
    works: dict[str, Work] = {}
    ready: dict[str, float] = {}
    for route in args.routes:
        with said(f"{shape}: {route}, warm-up"):
            ROUTES[route](model, part(probes, range(3)))()
            ready[route], works[route] = timed(
                device, partial(ROUTES[route], model, probes)
            )
    seconds: dict[str, list[float]] = {route: [] for route in args.routes}
    system: dict[str, list[float]] = {route: [] for route in args.routes}
    scores: dict[str, Scores] = {}
    rates: dict[str, list[float]] = {}
    for number in range(args.repeats):
        for route, work in works.items():
            computed = computes_in(route, dtype)
            for name, multiply in libraries(device, computed).items():
                rate = gemm_rate(device, computed, multiply)
                rates.setdefault(name, []).append(rate)
            with said(f"{shape}: {route}, round {number + 1}"):
                began = resource.getrusage(resource.RUSAGE_SELF).ru_stime
                took, scores[route] = timed(device, work)
                ended = resource.getrusage(resource.RUSAGE_SELF).ru_stime
            seconds[route].append(took)
            system[route].append(ended - began)
    with said(f"{shape}: float64"):
        truth = exact(model, probes)
    flops = needed_flops(model, probes.pairs)
    results = []
    for route in args.routes:
        usual, *others = libraries(device, computes_in(route, dtype))
        limit = flops / max(rate for name in (usual, *others) for rate in rates[name])
        mm_limit = flops / max(rates[usual])
        with said(f"{shape}: {route}, memory"):
            extra = memory(shape, model, route, probes)
        errors = compared(scores[route], truth, probes.n_tokens)
        spent = (seconds[route], system[route], ready[route], extra, limit, mm_limit)
        results.append(Result(route, *spent, *errors))
    found = Scorer.attach(model, probes.pairs).route
    scored_by = f"{found.name}, head {found.head}, error {found.error:.1e} nats/token"
    about = lengths(probes.pairs)
    return Study(shape, name_of(dtype), about, scored_by, flops, rates, results)


def compared(
    scores: Scores, truth: Scores, n_tokens: list[int]
) -> tuple[float, float, float, int | None]:
    """The four last fields of a `Result`."""
    errors = np.abs(scores.logp - truth.logp)
    allowed = np.maximum(TOLERANCE, TOKEN_TOLERANCE * np.array(n_tokens))
    differ = None
    if scores.argmax_id is not None:
        differ = int((scores.argmax_id != truth.argmax_id).sum())
    token_error = float(np.abs(scores.token_logp - truth.token_logp).max())
    return float(errors.max()), token_error, float((errors - allowed).max()), differ


# --- training ---


Update = Callable[[Sequence[tuple[TokenizedPair, TokenizedPair]]], None]


def make_update(kind: str) -> Update:
    """One update of a plain loop on (chosen, rejected) pairs: AdamW, all logits.

    SFT reads chosen; DPO reads both with the policy and with a frozen reference.
    """
    model = SHAPES[TRAINED].make().train()
    frozen = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-7)

    def logp(of: Any, pairs: Sequence[TokenizedPair]) -> Tensor:
        token_logp, is_response = trl_logps(of, pairs)
        return (token_logp * is_response).sum(-1)

    def update(rows: Sequence[tuple[TokenizedPair, TokenizedPair]]) -> None:
        pairs = [chosen for chosen, _ in rows]
        if kind == "SFT":
            loss = -logp(model, pairs).sum()
        else:
            pairs = [*pairs, *(rejected for _, rejected in rows)]
            with torch.no_grad():
                base = logp(frozen, pairs)
            chosen, rejected = (logp(model, pairs) - base).chunk(2)
            loss = -nn.functional.logsigmoid(0.1 * (chosen - rejected)).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return update


def training_seconds(probes: TokenizedProbes, repeats: int) -> dict[str, float]:
    """CPU seconds of one update of batch 4: mean over two batches, best of rounds.

    The batches are 8 prompts with chosen and rejected of the mean lengths.
    """
    kinds = ("chosen", "rejected")
    two = part(probes, [i for i, p in enumerate(probes.probes) if p.kind in kinds])
    both = [group for group in by_prompt(two) if len(group) == 2]
    two = typical(part(two, [i for group in both for i in group]), 8)
    rows = [(two.pairs[i], two.pairs[j]) for i, j in by_prompt(two)]
    found = {}
    for kind in ("SFT", "DPO"):
        update = make_update(kind)
        update(rows[:4])  # the optimizer makes its state
        rounds = []
        for number in range(repeats):
            with said(f"{TRAINED}: {kind}, round {number + 1}"):
                took = [timed("cpu", partial(update, b))[0] for b in batches(rows, 4)]
            rounds.append(took)
        found[kind] = float(np.min(rounds, axis=0).mean())
    return found


# --- tables ---


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float, spec: str) -> str:
    return "" if math.isnan(value) else format(value, spec)


def costs(study: Study, unit: str) -> str:
    """The table of one model."""
    responses = study.probes["responses"]
    rows = []
    for r in study.results:
        per = 1000 / responses
        differ = "" if r.argmax_differ is None else str(r.argmax_differ)
        rows.append(
            [
                TITLES[r.route],
                f"{per * r.best:.3g}",
                f"{per * statistics.median(r.seconds):.3g}",
                f"{sum(r.system) / sum(r.seconds):.0%}",
                number(study.best("reference") * responses / r.best, ".2f"),
                number(study.best("trl") * responses / r.best, ".2f"),
                f"{r.limit / r.best:.0%}",
                f"{r.mm_limit / r.best:.0%}",
                f"{r.extra_mb:.0f}",
                f"{r.error:.1e}",
                f"{r.token_error:.1e}",
                differ,
            ]
        )
    head = [f"{study.shape}, {study.dtype}", f"{unit} / 1000 responses: best", "median"]
    head += ["of it system"]
    head += ["times as fast as 1", "as 2", "of limit", "of `torch.mm`'s limit"]
    head += ["extra MB", "error of a sum"]
    return table([*head, "of a token", "argmax ids that differ"], rows)


def notes(study: Study) -> str:
    """What the table of one model rests on."""
    p = study.probes
    lines = [
        f"{p['responses']:.0f} responses; {described(p)}.",
        f"`score` took the route: {study.scored_by}.",
    ]
    for dtype, rates in study.rates.items():
        limit = study.flops / max(rates) * 1000 / p["responses"]
        lines.append(
            f"Limit in {dtype}: {limit:.3g} s / 1000 responses, at "
            f"{max(rates) / 1e9:.0f} Gflop/s, the best of {len(rates)} measurements "
            f"(median {statistics.median(rates) / 1e9:.0f}, "
            f"least {min(rates) / 1e9:.0f})."
        )
    ready = [f"{r.route} {r.ready:.2f} s" for r in study.results if r.ready > 0.01]
    if ready:
        lines.append(f"Once before the first observation: {', '.join(ready)}.")
    return "\n".join(f"- {line}" for line in lines)


def described(about: dict[str, float]) -> str:
    rest = [f"{name} {value:.2f}" for name, value in about.items()]
    return ", ".join(rest[1:])


def shares(study: Study, training: dict[str, float]) -> str:
    """What probing adds to 25 updates of training."""
    head = [f"CPU s per {EVERY} updates", "training", "probing by"]
    for panel in PANELS:
        head += [f"{panel}: probing", "share"]
    rows = []
    for kind, update in training.items():
        trained = EVERY * update
        for r in study.results:
            row = [kind, f"{trained:.0f}", TITLES[r.route]]
            for count in PANELS.values():
                probed = study.best(r.route) * count
                row += [f"{probed:.0f}", f"{probed / (probed + trained):.0%}"]
            rows.append(row)
    return table(head, rows) + (
        f"\n\nMeasured: updates of batch 4 on two batches, and the scoring of "
        f"{study.probes['responses']:.0f} responses. All times in this table are "
        f"extrapolated from these, to {EVERY} updates and to "
        f"{' and '.join(map(str, PANELS.values()))} responses."
    )


# --- the command ---


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--probes", help="probe file (default: the embedded world's)")
    parser.add_argument("--prompts", type=int, help="how many prompts to score")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES)
    exact_routes = [route for route in ROUTES if route != "bf16"]
    parser.add_argument(
        "--routes", nargs="+", choices=exact_routes, default=exact_routes
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="add the approximate route")
    parser.add_argument("--training", action="store_true", help="what probing adds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    args = parser.parse_args()
    on_cpu = args.device == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        parser.error("--device cuda: this torch sees no CUDA device. Leave it out.")
    defaults = ["neox-70m", "qwen2-0.1b"] if on_cpu else list(SHAPES)[2:]
    args.shapes = args.shapes or defaults
    if args.training and not (on_cpu and TRAINED in args.shapes):
        parser.error(f"--training needs --device cpu and {TRAINED} among --shapes.")
    args.routes = [*args.routes, "bf16"] if args.bf16 else args.routes
    return args


def about(args: argparse.Namespace, whole: TokenizedProbes) -> dict[str, Any]:
    on_cpu = args.device == "cpu"
    return {
        "command": sys.argv,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": processor() if on_cpu else torch.cuda.get_device_name(),
        "probes": lengths(whole.pairs),
    }


def processor() -> str:
    """The processor's name (Linux)."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    whole = load(args.probes)
    known = about(args, whole)
    print(f"{known['device']}, torch {known['torch']}, one thread.", end=" ")
    print(f"All probes: {len(whole)} responses, {described(known['probes'])}.")
    unit = "CPU s" if args.device == "cpu" else "s"
    dtypes = (
        [torch.float32] if args.device == "cpu" else [torch.float32, torch.bfloat16]
    )
    studies = []
    for shape in args.shapes:
        prompts = args.prompts or (
            SHAPES[shape].prompts if args.device == "cpu" else None
        )
        probes = typical(whole, prompts)
        for dtype in dtypes:
            study = measure(shape, dtype, probes, args)
            studies.append(study)
            print(f"\n{costs(study, unit)}\n\n{notes(study)}", flush=True)
    training = {}
    if args.training:
        training = training_seconds(whole, args.repeats)
        study = next(s for s in studies if s.shape == TRAINED)
        print(f"\n{shares(study, training)}")
    if args.json:
        known |= {"studies": [asdict(s) for s in studies], "update seconds": training}
        args.json.write_text(json.dumps(known, indent=1) + "\n")
    sys.exit(1 if wrong(studies) else 0)


def wrong(studies: list[Study]) -> bool:
    """Name each exact route that is not exact."""
    found = False
    for study in studies:
        for r in study.results:
            if study.dtype == "float32" and r.route != "bf16" and r.excess > 0:
                found = True
                print(
                    f"error: {study.shape}: {r.route} misses float64 by up to "
                    f"{r.error:.1e} nats of a summed log-probability; allowed are "
                    f"{TOLERANCE}, or {TOKEN_TOLERANCE} a token where that is more.",
                    file=sys.stderr,
                )
    return found


if __name__ == "__main__":
    main()
