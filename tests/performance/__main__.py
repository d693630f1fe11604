"""``python -m tests.performance [NAME …]``: run benchmarks, write ``docs/benchmarks.{md,json}``."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from benchmark.progress import console

# as for `python -m benchmark`: measure what users get
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> int:
    """Run all benchmarks, or the named ones.

    Named ones are written only with ``--out``, where their rows replace older ones.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.performance", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    parser.add_argument(
        "--sources",
        type=Path,
        help="folder with checkouts of capi, dinov2, dinov3, hummingbird, probe3d and visbench",
    )
    parser.add_argument(
        "--out", type=Path, help="folder to write to (default: docs, when all are run)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("CLIPTEX_HOME", str(Path(scratch) / "home"))
        from tests.performance.beside import SOURCES
        from tests.performance.harness import BENCHES, Unavailable, import_all, merged, write

        if options.sources:
            os.environ[SOURCES] = str(options.sources.resolve())

        import_all()
        unknown = set(options.names) - set(BENCHES)
        if unknown:
            parser.error(f"no benchmark {', '.join(sorted(unknown))}; known: {', '.join(BENCHES)}")
        results, skipped = [], []
        for name in options.names or BENCHES:
            console.rule(name)
            try:
                rows = BENCHES[name]()
            except Unavailable as reason:
                console.print(f"skipped: {reason}")
                skipped.append(f"{name} ({reason})")
                continue
            for result in rows:
                mark = "[green]reached[/]" if result.reached else "[red]missed[/]"
                console.print(
                    f"{result.name}: {result.a:.4g} against {result.b:.4g} {result.unit}, ratio"
                    f" {result.ratio:.3f} (goal {result.goal}) {mark}"
                )
                results.append(result)
    out = options.out or (None if options.names else Path("docs"))
    if out:
        write(merged(results, out) if options.names else results, out, skipped)
        console.print(f"written: {out}/benchmarks.md and .json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
