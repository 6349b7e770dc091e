"""Watch, explain and diagnose the learning dynamics of LLM finetuning.

Every public name is here, and loads its module when it is first used: `import learndyn`
loads nothing, and what only reads a run never loads torch.

    import learndyn

    print(learndyn.diagnose("runs/dpo"))
"""

import importlib
import sys
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:  # the same names for type checkers and editors
    from learndyn.diagnose.changes import change_curves as change_curves
    from learndyn.diagnose.verdict import Diagnosis as Diagnosis, diagnose as diagnose
    from learndyn.errors import BadInput as BadInput
    from learndyn.forces.akg import akg_exact as akg_exact
    from learndyn.forces.batch import Batch as Batch
    from learndyn.forces.direction import placed as placed
    from learndyn.forces.foresight.ches import ches as ches
    from learndyn.forces.foresight.foresight import (
        Foreseen as Foreseen,
        foresee as foresee,
    )
    from learndyn.forces.foresight.tau import push_down as push_down
    from learndyn.forces.kernel.entk import entk as entk
    from learndyn.forces.kernel.norm import kernel_norm as kernel_norm
    from learndyn.forces.kernel.stability import (
        KernelWatch as KernelWatch,
        drift as drift,
    )
    from learndyn.forces.losses import (
        Responses as Responses,
        loss_named as loss_named,
    )
    from learndyn.forces.losses.negative import negative_gradient as negative_gradient
    from learndyn.forces.predict import (
        Predictor as Predictor,
        fit as fit,
        predict_change as predict_change,
    )
    from learndyn.forces.split import (
        decompose as decompose,
        group_directions as group_directions,
        influence as influence,
        path_attribution as path_attribution,
        sign_gradients as sign_gradients,
    )
    from learndyn.forces.step import capture_step as capture_step
    from learndyn.measure.checkpoint import score_checkpoint as score_checkpoint
    from learndyn.measure.load import (
        load_model as load_model,
        load_tokenizer as load_tokenizer,
    )
    from learndyn.measure.score import Scorer as Scorer, score as score
    from learndyn.probes.build import (
        build_probes as build_probes,
        load_probes as load_probes,
    )
    from learndyn.probes.check import check_probes as check_probes
    from learndyn.probes.data import read_data as read_data
    from learndyn.probes.kinds import PAPER_KINDS as PAPER_KINDS
    from learndyn.probes.probe import Probe as Probe, ProbeSet as ProbeSet
    from learndyn.probes.tokenize import (
        PairTokenizer as PairTokenizer,
        tokenize as tokenize,
    )
    from learndyn.record.observation import Observation as Observation
    from learndyn.record.run_directory import RunDirectory as RunDirectory
    from learndyn.record.trajectory import Trajectory as Trajectory
    from learndyn.show.compare import compare as compare
    from learndyn.show.explain.explain import explain_run as explain_run
    from learndyn.show.report.report import write_report as write_report
    from learndyn.train.callback import (
        LearningDynamicsCallback as LearningDynamicsCallback,
    )
    from learndyn.train.recorder import ForceSettings as ForceSettings
    from learndyn.world.stages import embedded_model_path as embedded_model_path

    __version__: str

_MODULE_OF = {
    # what is watched
    "PAPER_KINDS": "learndyn.probes.kinds",
    "PairTokenizer": "learndyn.probes.tokenize",
    "Probe": "learndyn.probes.probe",
    "ProbeSet": "learndyn.probes.probe",
    "build_probes": "learndyn.probes.build",
    "check_probes": "learndyn.probes.check",
    "load_probes": "learndyn.probes.build",
    "read_data": "learndyn.probes.data",
    "tokenize": "learndyn.probes.tokenize",
    # a run, read; what it means; its pages
    "BadInput": "learndyn.errors",
    "Diagnosis": "learndyn.diagnose.verdict",
    "Observation": "learndyn.record.observation",
    "RunDirectory": "learndyn.record.run_directory",
    "Trajectory": "learndyn.record.trajectory",
    "change_curves": "learndyn.diagnose.changes",
    "compare": "learndyn.show.compare",
    "diagnose": "learndyn.diagnose.verdict",
    "explain_run": "learndyn.show.explain.explain",
    "write_report": "learndyn.show.report.report",
    # measured while a run trains, or of a saved model: from here on torch is needed
    "ForceSettings": "learndyn.train.recorder",
    "LearningDynamicsCallback": "learndyn.train.callback",
    "Scorer": "learndyn.measure.score",
    "embedded_model_path": "learndyn.world.stages",
    "load_model": "learndyn.measure.load",
    "load_tokenizer": "learndyn.measure.load",
    "score": "learndyn.measure.score",
    "score_checkpoint": "learndyn.measure.checkpoint",
    # why: one update, d log pi = -lr A K G
    "Batch": "learndyn.forces.batch",
    "Predictor": "learndyn.forces.predict",
    "Responses": "learndyn.forces.losses",
    "akg_exact": "learndyn.forces.akg",
    "capture_step": "learndyn.forces.step",
    "decompose": "learndyn.forces.split",
    "fit": "learndyn.forces.predict",
    "group_directions": "learndyn.forces.split",
    "influence": "learndyn.forces.split",
    "loss_named": "learndyn.forces.losses",
    "negative_gradient": "learndyn.forces.losses.negative",
    "path_attribution": "learndyn.forces.split",
    "placed": "learndyn.forces.direction",
    "predict_change": "learndyn.forces.predict",
    "sign_gradients": "learndyn.forces.split",
    # the kernel K, and what can be told before training
    "Foreseen": "learndyn.forces.foresight.foresight",
    "KernelWatch": "learndyn.forces.kernel.stability",
    "ches": "learndyn.forces.foresight.ches",
    "drift": "learndyn.forces.kernel.stability",
    "entk": "learndyn.forces.kernel.entk",
    "foresee": "learndyn.forces.foresight.foresight",
    "kernel_norm": "learndyn.forces.kernel.norm",
    "push_down": "learndyn.forces.foresight.tau",
}
"""Every public name, and the module that it comes from."""

__all__ = [*_MODULE_OF, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("learndyn")
    elif name in _MODULE_OF:
        value = getattr(_load(_MODULE_OF[name]), name)
        room = sys.modules.get(f"{__name__}.{name}")
        if room is not None and isinstance(value, FunctionType):
            # `import learndyn.diagnose.intervals as intervals` looks for it here.
            value.__dict__ = room.__dict__
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # found without this function from now on
    return value


def _load(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = importlib.import_module("learndyn.errors").NotInstalled.of(error)
        if missing is None:
            raise
        raise missing from error


def __dir__() -> list[str]:
    return sorted(__all__)


class _Door(ModuleType):
    """The package, whose names stay what they are whichever module is imported.

    `learndyn.diagnose` is a function and a room. Importing the room would put its
    module in the function's place.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULE_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Door
