"""Methods of finetuning: by which names they go, and what the loss of each asks for.

The name comes from classes of a trainer and its settings, from its loss, from the
columns of its data or from the keys of its log. Where all of them are silent the method
is unknown, and nothing that holds for one method alone may be said of the run.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args


Family = Literal["sft", "preference", "unpaired", "online", "unknown"]
"""sft: answers of the data are raised and nothing else. preference: of two answers to
one prompt, chosen is raised over rejected. unpaired: each answer of the data is
desirable or not (KTO, BCO). online: the model's own samples, by their reward."""

FAMILIES: tuple[Family, ...] = get_args(Family)

_FAMILIES: dict[Family, tuple[str, ...]] = {
    "sft": ("sft", "extend-sft"),
    "preference": ("dpo", "ipo", "sppo", "cpo", "simpo", "orpo", "tpo"),
    "unpaired": ("kto", "bco"),
    "online": (
        *("grpo", "rloo", "ppo", "gspo", "dapo", "gmpo", "a2po", "papo", "reinforce"),
        *("remax", "online_dpo", "xpo", "nash_md"),
    ),
    # known by name, so that the base class of its trainer is not taken for its method
    "unknown": (
        *("reward", "prm", "gkd", "gold", "minillm", "distillation", "sdft", "sdpo"),
        "iw_opd",
    ),
}
_FAMILY_OF: dict[str, Family] = {
    name: family for family, names in _FAMILIES.items() for name in names
}
_ALIASES = {"pairwise": "reward"}  # LLaMA-Factory's trainer of reward models
_SPELLED = _ALIASES | {re.sub("[-_]", "", name): name for name in _FAMILY_OF}
_REFERENCE_FREE = ("cpo", "simpo", "orpo", "tpo")
_NUMBER = int | float
_OWN_LOSS = ("ipo", "simpo", "orpo")
"""Methods that are a loss of another one's trainer."""


@dataclass(frozen=True, slots=True)
class Method:
    """What is known of a method of finetuning."""

    name: str = ""
    """Such as "dpo", "simpo", "kto" or "extend-sft"; empty where not known."""
    family: Family = "unknown"
    has_reference: bool | None = None
    """Whether the loss compares the policy with a reference model."""

    @property
    def pushes_rejected(self) -> bool | None:
        """Whether the loss lowers the rejected answer of a pair; None if not known.

        KTO's undesirable answers have no pair, and an online method lowers samples of
        the model: false.
        """
        return None if self.family == "unknown" else self.family == "preference"

    @classmethod
    def named(
        cls, name: str, losses: Sequence[str] = (), beta: float | None = None
    ) -> "Method":
        """The method of a name as trainers spell it: "DPO", "axolotldpo", "nashmd".

        `losses` are the trainer's `loss_type`: SimPO is one of CPO's, IPO one of DPO's.
        `beta` 0 is GRPO without a reference. An unknown name is kept as it is.
        """
        known = _known(name)
        if not known:
            return cls(name)
        if known in ("dpo", "cpo") and len(losses) == 1:
            if losses[0] in _OWN_LOSS and (known, losses[0]) != ("cpo", "ipo"):
                known = losses[0]
            elif losses[0] == "sft":  # the term of TRL's DPO that raises chosen
                known = "sft"
        family = _FAMILY_OF[known]
        return cls(known, family, _has_reference(known, family, beta))

    @classmethod
    def of_classes(
        cls,
        names: Iterable[str],
        losses: Sequence[str] = (),
        beta: float | None = None,
    ) -> "Method":
        """The method of the first class that is named after one: "DPOTrainer",
        "CustomDPOTrainer", "AxolotlDPOConfig", "UnslothKTOConfig"."""
        for name in names:
            match = re.fullmatch("(.+?)(Config|Trainer|TrainingArguments)", name)
            if match and _known(match.group(1)):
                return cls.named(match.group(1), losses, beta)
        return cls()

    @classmethod
    def of_columns(cls, columns: Iterable[str]) -> "Method":
        """The method that trains on batches of these columns, in a trainer that is
        named after none."""
        names = set(columns)
        pairs = {"chosen_input_ids", "rejected_input_ids"}
        if pairs <= names or {"chosen_ids", "rejected_ids"} <= names:
            return cls(family="preference")
        if "kto_tags" in names or ("label" in names and _has_completion(names)):
            return cls.named("kto")
        # Labels of its tokens are all that a language model needs for its own loss.
        if {"input_ids", "labels"} <= names:
            return cls.named("sft")
        if {"chosen", "rejected"} <= names:
            return cls(family="preference")
        return cls()

    @classmethod
    def of_log(cls, rows: Sequence[Mapping[str, Any]]) -> "Method":
        """The method that logs these keys, under TRL's names for them."""
        keys = {key for row in rows for key in row}
        if "reward" in keys or "advantages" in keys or _any("objective/", keys):
            if {"reward_std", "frac_reward_zero_std"} <= keys:
                return cls("grpo", "online")
            return cls(family="online")
        if not keys & {"rewards/chosen", "rewards/rejected"}:
            # TRL's SFT logs it and its reward models do too, as "accuracy"
            return cls.named("sft") if "mean_token_accuracy" in keys else cls()
        if "kl" in keys or "delta" in keys:
            return cls.named("kto" if "kl" in keys else "bco")
        if "log_odds_ratio" in keys or "odds_ratio_loss" in keys:
            return cls.named("orpo")
        reference = _rewards_have_reference(rows)
        if reference is None:
            return cls(family="preference")
        if reference:
            return cls.named("dpo")
        return cls("cpo" if "nll_loss" in keys else "", "preference", False)


def as_losses(value: Any) -> tuple[str, ...]:
    """A trainer's `loss_type`, a name or a list of names, as names."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(str(getattr(v, "value", v)) for v in values if v)


def _known(name: str) -> str:
    """The method whose name this one ends with; empty if it is another's, or text."""
    plain = re.sub("[-_.]", "", name).lower()
    if not re.fullmatch("[a-z0-9]+", plain):
        return ""
    # "onlinedpo" ends with "dpo" too: the longest
    ends = [spelled for spelled in _SPELLED if plain.endswith(spelled)]
    return _SPELLED[max(ends, key=len)] if ends else ""


def _has_reference(name: str, family: Family, beta: float | None) -> bool | None:
    if family == "unknown":
        return None
    if name in ("grpo", "rloo", "gspo", "dapo", "gmpo"):
        return None if beta is None else beta > 0
    if family == "online":
        return None if name in ("a2po", "papo", "reinforce", "remax") else True
    return family != "sft" and name not in _REFERENCE_FREE


def _has_completion(names: set[str]) -> bool:
    return any(name.startswith("completion") for name in names)


def _any(start: str, keys: set[str]) -> bool:
    return any(key.startswith(start) for key in keys)


def _rewards_have_reference(rows: Sequence[Mapping[str, Any]]) -> bool | None:
    """Without a reference a reward is beta log pi: the same multiple in every row."""
    pairs = [
        (row.get(f"rewards/{kind}"), row.get(f"logps/{kind}"))
        for row in rows
        for kind in ("chosen", "rejected")
    ]
    numbers = [
        (float(reward), float(logp))
        for reward, logp in pairs
        if isinstance(reward, _NUMBER) and isinstance(logp, _NUMBER) and logp
    ]
    if len(numbers) < 4:  # of two rows at least
        return None
    ratios = [reward / logp for reward, logp in numbers]
    if not all(map(math.isfinite, ratios)):
        return None
    low, high = min(ratios), max(ratios)
    # logged to a few digits; a reward of exactly 0 is that of a policy that equals its
    # reference
    return not (low > 0 and high - low < 0.01 * high)
