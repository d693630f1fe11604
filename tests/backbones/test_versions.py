"""Versions of what can change a number."""

from importlib.metadata import version

import torch

from backbones.versions import PROBING, versions


def test_versions_are_those_of_the_distributions_that_bring_the_library():
    found = versions(*PROBING, "open_clip", "no_such_library")
    assert list(found) == [*PROBING, "open_clip", "no_such_library"]
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert found["PIL"] == version("pillow")
    assert found["open_clip"] == version("open_clip_torch")
    assert found["no_such_library"] == "absent"
    assert "absent" not in {found[name] for name in PROBING}
