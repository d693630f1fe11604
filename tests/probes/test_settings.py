"""What every probe's settings refuse before any work."""

import pytest

import probes.catalog  # noqa: F401
from common.errors import UserError
from common.settings import field_names, with_changes
from probes.registry import PROBES


@pytest.mark.parametrize("name", sorted(PROBES))
def test_an_implausible_size_is_refused_in_one_line(name):
    settings = PROBES[name].settings_type()
    for key in {"size", "long_side"} & field_names(type(settings)):
        with pytest.raises(UserError, match=f"^{key}=100000000: must be") as caught:
            with_changes(settings, {key: "100000000"})
        assert "8192" in str(caught.value) and "\n" not in str(caught.value)
