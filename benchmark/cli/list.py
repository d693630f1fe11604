"""``list``: names, one line each."""

from __future__ import annotations

import argparse

THINGS = ("backbones", "tasks", "suites", "datasets", "probes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``list``."""
    parser.add_argument("what", choices=THINGS)
    parser.add_argument("filter", nargs="?", default="", help="only lines that contain this")


def main(options: argparse.Namespace) -> int:
    """Print name and one-line description."""
    from benchmark.execution.progress import console

    rows = [(name, about) for name, about in _rows(options.what) if options.filter.lower() in f"{name} {about}".lower()]
    width = max((len(name) for name, _ in rows), default=0)
    for name, about in rows:
        console.print(f"{name:<{width}}  {about}", markup=False)
    return 0


def _rows(what: str) -> list[tuple[str, str]]:
    if what == "backbones":
        import backbones
        from backbones.registry import FAMILIES

        named = [(name, f"{e.about} [{e.licence}]") for name in backbones.names() for e in [backbones.find(name)]]
        return (
            named
            + [(family.pattern, family.about) for family in FAMILIES.values()]
            + [("random/NAME", "any of these, randomly initialised from the seed")]
        )
    import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
    from benchmark import suites
    from probes.registry import DATASETS, PROBES

    if what == "suites":
        return [(suite.name, f"{suite.about} [{len(suite.tasks)} tasks]") for suite in suites.SUITES.values()]
    if what == "datasets":
        return [(spec.name, f"{spec.kind}: {spec.about}") for spec in DATASETS.values()]
    if what == "probes":
        return [(name, f"for {kind}: {', '.join(probe.metrics)}") for (kind, name), probe in PROBES.items()]
    rows = []
    for spec in DATASETS.values():
        for (kind, name), probe in PROBES.items():
            if kind == spec.kind:
                task = f"{spec.name}/{name}"
                inside = [s.name for s in suites.SUITES.values() if task in s.tasks]
                rows.append(
                    (task, f"{spec.kind}, {next(iter(probe.metrics))}" + (f" [{', '.join(inside)}]" if inside else ""))
                )
    return rows
