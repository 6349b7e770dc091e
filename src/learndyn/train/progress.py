"""Progress on the screen: bars for scoring, and one bar for a training run."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from tqdm.auto import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)


_SHOWN = ("loss", "rewards/margins")


def progress_bar(
    what: str, args: TrainingArguments | None = None
) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """A tqdm bar that shows itself when the work takes longer than two seconds."""
    off = args is not None and (args.disable_tqdm or args.process_index != 0)
    return partial(tqdm, desc=what, delay=2, leave=False, disable=off)


class TrainingBar(TrainerCallback):
    """Counts updates and shows the last logged loss."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.bar: tqdm | None = None

    @classmethod
    def replace_in(cls, trainer: Trainer, what: str) -> None:
        """Put this bar where the trainer's own reporters to the terminal are."""
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        if not trainer.args.disable_tqdm:
            trainer.add_callback(cls(what))

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Show the bar, at the step that a resumed run continues from."""
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.what
            )

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """One update more."""
        if self.bar is not None:
            self.bar.update()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show loss and margin."""
        if self.bar is not None and logs:
            shown = {name: logs[name] for name in _SHOWN if name in logs}
            self.bar.set_postfix({k: f"{float(v):.4g}" for k, v in shown.items()})

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Leave the finished bar on the screen."""
        if self.bar is not None:
            self.bar.close()
