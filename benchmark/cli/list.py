"""``list``: names, one line each."""

from __future__ import annotations

import argparse

THINGS = ("backbones", "tasks", "suites", "datasets", "probes", "protocols", "executors", "table")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``list``."""
    parser.add_argument("what", choices=THINGS)
    parser.add_argument("filter", nargs="?", default="", help="only lines that contain this")


def main(options: argparse.Namespace) -> int:
    """Print name and one-line description."""
    from benchmark.execution.progress import console

    if options.what == "table":
        console.print("\n".join(families()), markup=False, soft_wrap=True)
        return 0
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
    if what == "executors":
        from benchmark.execution import EXECUTORS

        return list(EXECUTORS.described().items())
    import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
    from benchmark.suites.registry import SUITES
    from probes.registry import DATASETS, PROBES, tasks

    if what == "datasets":
        return [(spec.name, f"{spec.kind}: {spec.about}") for spec in DATASETS.read_entry_points().values()]
    if what == "probes":
        return [(p.name, f"for {p.kind}: {', '.join(p.metrics)}") for p in PROBES.read_entry_points().values()]
    if what == "protocols":
        return _protocols()
    suites = SUITES.read_entry_points().values()
    if what == "suites":
        return [(suite.name, f"{suite.about} [{len(suite.tasks)} tasks]") for suite in suites]
    inside = {task: [suite.name for suite in suites if task in suite.tasks] for task in tasks()}
    return [
        (task, f"{spec.kind}, {next(iter(probe.metrics))}" + f" [{', '.join(inside[task])}]" * bool(inside[task]))
        for task, (spec, probe) in tasks().items()
    ]


def families() -> list[str]:
    """Lines of README's table: with what each family of tasks is probed, on which datasets, under which published protocols."""
    import benchmark.catalog  # noqa: F401
    from probes.protocols.base import PROTOCOLS
    from probes.registry import DATASETS, PROBES

    lines = ["| family | probes | datasets | published protocols |", "| --- | --- | --- | --- |"]
    specs = [spec for spec in DATASETS.values() if not spec.name.startswith("mini-")]
    for kind in dict.fromkeys(probe.kind for probe in PROBES.values()):
        probes = [f"`{probe.name}`" for probe in PROBES.values() if probe.kind == kind]
        shards = [spec.name for spec in specs if spec.kind == kind and spec.module.endswith(".webdataset")]
        datasets = [f"`{spec.name}`" for spec in specs if spec.kind == kind and spec.name not in shards]
        datasets += [f"webdataset folders ({len(shards)})"] if shards else []
        named = [
            f"`{protocol.name}` ({', '.join(dict.fromkeys(preset.probe.partition('/')[2] for preset in mine))})"
            for protocol in PROTOCOLS.values()
            if (mine := [preset for preset in protocol.presets if preset.probe.partition("/")[0] == kind])
        ]
        lines.append(f"| {kind} | {', '.join(probes)} | {', '.join(datasets)} | {', '.join(named) or '–'} |")
    return lines


def _protocols() -> list[tuple[str, str]]:
    """Each protocol with its source, and under it what it fixes for each probe and what its source does otherwise."""
    from probes.protocols.base import PROTOCOLS

    rows = []
    for protocol in PROTOCOLS.read_entry_points().values():
        rows.append((protocol.name, protocol.source))
        for preset in protocol.presets:
            fixed = " ".join(f"{key}={_plain(value)}" for key, value in {**preset.settings, **preset.data}.items())
            where = f" ({', '.join(preset.datasets)})" if preset.datasets else ""
            rows.append((f"{protocol.name} {preset.probe}{where}", fixed))
        rows += [(f"{protocol.name}, not here", each) for each in protocol.differs]
    return rows


def _plain(value: object) -> str:
    """A setting as ``--set`` takes it."""
    if isinstance(value, tuple):
        return ",".join(_plain(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
