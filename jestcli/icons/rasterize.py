"""Draw icons: SVG bodies of a collection to uint8 rasters, in resumable units.

A unit is up to `UNIT` icons of one collection. Its files in the cache are
`<unit>.npy` (uint8 [n, S, S, 3]), `<unit>.signatures.npy` (uint8 [n, 768], see leakage.py) and
`<unit>.json` (names, raster digests, and what could not be drawn), the last written last.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jestcli.icons.leakage import raster_digest, signatures
from jestcli.utils.errors import explain_os_error
from jestcli.utils.io import save_array, save_text
from jestcli.utils.reading import parse_json

UNIT = 4_000
_MEMBER = re.compile(r"package/json/([a-z0-9]+(?:-[a-z0-9]+)*)\.json")


@dataclass(frozen=True)
class Unit:
    """A piece of work: icons [start, stop) of the collection in `source` (a JSON file)."""

    prefix: str
    start: int
    stop: int
    source: Path
    cache: Path
    size: int

    @property
    def name(self) -> str:
        return f"{self.prefix}-{self.start:06d}"

    @property
    def done(self) -> bool:
        return (self.cache / f"{self.name}.json").exists()


def resvg_version() -> str:
    """Version of the renderer: another one may draw other pixels."""
    return importlib.metadata.version("resvg_py")


def collection_of(member: str) -> str | None:
    """The collection prefix of a tarball member that is one, else None."""
    match = _MEMBER.fullmatch(member)
    return match.group(1) if match else None


def icon_svg(collection: dict[str, Any], icon: dict[str, Any]) -> str:
    """An icon's SVG text: black where it has no colour of its own."""
    defaults = {"left": 0, "top": 0, "width": 16, "height": 16}
    box = [icon.get(side, collection.get(side, value)) for side, value in defaults.items()]
    body = icon["body"].replace("currentColor", "#000")
    return (
        "<svg xmlns='http://www.w3.org/2000/svg' xmlns:xlink='http://www.w3.org/1999/xlink' "
        f"viewBox='{' '.join(str(value) for value in box)}'>{body}</svg>"
    )


def draw(svg: str, size: int) -> np.ndarray:
    """Render SVG text on white, centred: uint8 [size, size, 3]. Raises ValueError on a bad SVG."""
    import resvg_py

    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True
    )
    image = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    if image.size != (size, size):
        canvas = Image.new("RGB", (size, size), "white")
        canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        image = canvas
    return np.asarray(image)


def draw_unit(unit: Unit) -> str:
    """Draw one unit into its cache and return its name. Meant for a worker process."""
    collection = parse_json(unit.source.read_text())
    icons = list(collection["icons"].items())[unit.start : unit.stop]
    images = np.empty((len(icons), unit.size, unit.size, 3), np.uint8)
    names: list[str] = []
    failed: dict[str, str] = {}
    for name, icon in icons:
        try:
            raster = draw(icon_svg(collection, icon), unit.size)
        except Exception as error:  # the SVG is someone else's: any failure is that icon's alone
            failed[name] = str(error)[:200]
            continue
        if (raster == raster[0, 0]).all():
            failed[name] = "blank"
            continue
        images[len(names)] = raster
        names.append(name)
    images = images[: len(names)]
    index = {
        "prefix": unit.prefix,
        "names": names,
        "digests": [raster_digest(image) for image in images],
        "failed": failed,
    }
    try:
        unit.cache.mkdir(parents=True, exist_ok=True)
        save_array(unit.cache / f"{unit.name}.npy", images)
        save_array(unit.cache / f"{unit.name}.signatures.npy", signatures(images))
        save_text(unit.cache / f"{unit.name}.json", json.dumps(index))
    except OSError as error:
        raise explain_os_error(error, "writing drawn icons") from error
    return unit.name
