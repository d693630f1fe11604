"""Pages: HTML files that need nothing else. Importing this imports no table."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from cliptex_common.images import fit_picture


def render(name: str, filters: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """A page of a template in this folder, where style and scripts are, too."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "ensure_ascii": False}
    environment.filters |= filters
    environment.globals["source"] = _source
    return environment.get_template(name).render(content)


@cache
def _source(name: str) -> str:
    return (files("reports.render") / name).read_text(encoding="utf-8")


def render_samples(title: str, about: str, splits: Mapping[str, Any]) -> str:
    """The page of ``data show``.

    Args:
        splits: name of a split → what ``probes.samples`` drew of it, or why nothing can be drawn.
    """
    content = {"title": title, "about": about, "splits": splits, "uri": picture_uri}
    return render("samples.html.j2", {}, content)


def picture_uri(picture: np.ndarray, side: int = 640) -> str:
    """A picture (H, W, 3) uint8 as a data URI: without loss where it has few colours, no side
    longer than ``side`` pixels."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    if max(image.size) > side:
        image = fit_picture(picture, side)
    kind = "png" if image.getcolors(256) else "webp"
    image.save(buffer, kind, quality=85)
    return data_uri(kind, buffer.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """A file of ``image/KIND`` as text."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
