"""Two finished runs on the same probes: at equal updates, margin and gap.

    python examples/compare_two_runs.py runs/dpo runs/extend/dpo runs/both

Reads run directories alone: no torch is needed.
"""

import sys

import learndyn


def main(baseline: str, run: str, out: str) -> None:
    """Print what differs, and write compare.html into the folder `out`."""
    compared = learndyn.compare(baseline, run, out=out, overwrite=True)
    print(compared)
    for name in (baseline, run):
        curves = learndyn.change_curves(name)  # nats since the run's own start
        for kind in ("chosen", "rejected"):
            curve = curves[kind]
            print(f"{name}: {kind} {curve.mean[-1]:+.2f} nats, se {curve.se[-1]:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
