"""The small LM that ships with the package.

It was pretrained on the embedded world's forum text by `learndyn.lab.pretrain`; the
`provenance.json` beside the weights says with which settings. It has not seen the chat
template, the skewed wordings or the pairs of things of any row of `make_rows`.
"""

from pathlib import Path

from learndyn.errors import BadInput


_WEIGHTS = Path(__file__).parent / "weights"


def embedded_model_path(seed: int = 0) -> Path:
    """The folder of the LM pretrained with `seed`, for `from_pretrained`.

    The weights are float16 on disk; load them with `dtype=torch.float32` to train.
    """
    path = _WEIGHTS / f"seed-{seed}"
    if not path.is_dir():
        shipped = sorted(
            int(p.name.removeprefix("seed-")) for p in _WEIGHTS.glob("seed-*")
        )
        raise BadInput(
            f"No LM of pretraining seed {seed} ships with the package, only of "
            f"{', '.join(map(str, shipped)) or 'none'}. Make one: "
            f"python -m learndyn.lab.pretrain --seed {seed} --out DIR"
        )
    return path
