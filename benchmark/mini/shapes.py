"""The ten object classes: compositions of solids, told apart by shape and not by colour.

Each class has a function of a random generator that returns the parts of one of its variants. An
object stands on z = 0 and faces -y; slot 0 has the colour that captions name. Scenes stretch
objects, and make them smaller on counters.
"""

from __future__ import annotations

from itertools import product
from random import Random

from benchmark.mini.solids import BALL, Solid, ball, box, frustum, rod

SLOTS = 4
CORNERS = tuple(product((-1, 1), repeat=2))


def legs(x: float, y: float, height: float, radius: float, splay: float = 0.0) -> list[Solid]:
    """Four legs under corners (±x, ±y)."""
    return [
        rod((i * (x + splay), j * (y + splay), 0), (i * x, j * y, height), radius, slot=1)
        for i, j in CORNERS
    ]


def pedestal(foot: float, height: float, radius: float = 0.05) -> list[Solid]:
    """A column on a round foot."""
    return [
        frustum(radius, radius, height, (0, 0, 0), slot=1),
        frustum(foot, foot * 0.6, 0.05, (0, 0, 0), slot=1),
    ]


def bookshelf(rng: Random) -> list[Solid]:
    """A case with boards and blocks of books."""
    parts = [box((0.04, 0.3, 1.3), (x, 0, 0)) for x in (-0.42, 0.42)]
    parts.append(box((0.84, 0.03, 1.3), (0, 0.14, 0), slot=rng.randrange(2)))
    shelves = rng.randrange(3, 5)
    for level in range(shelves + 1):
        z, x = level * 1.27 / shelves, -0.39
        parts.append(box((0.84, 0.3, 0.03), (0, 0, z)))
        while level < shelves and x < 0.25:
            wide, tall = rng.uniform(0.13, 0.4), rng.uniform(0.6, 0.9) / shelves
            books = box((wide, 0.2, tall), (x + wide / 2, 0, z), slot=rng.randrange(1, SLOTS))
            x += wide + rng.choice((0.02, 0.1))
            parts += [books] if x < 0.5 else []
    return parts


def bottle(rng: Random) -> list[Solid]:
    """A body with a shoulder, a neck, a cap, and often a label."""
    body, neck = rng.uniform(0.4, 0.55), rng.uniform(0.04, 0.06)
    label = [frustum(0.134, 0.134, 0.2, (0, 0, 0.12), slot=1)] if rng.random() < 0.7 else []
    return [
        frustum(0.13, 0.13, body, (0, 0, 0)),
        frustum(0.13, neck, 0.15, (0, 0, body)),
        frustum(neck, neck, 0.7 - body, (0, 0, body + 0.15)),
        frustum(neck * 1.3, neck * 1.2, 0.07, (0, 0, 0.82), slot=2),
        *label,
    ]


def chair(rng: Random) -> list[Solid]:
    """A seat on legs or a pedestal, a solid or open back, sometimes arms."""
    lean = rng.uniform(0, 0.2)
    parts = [box((0.46, 0.46, 0.07), (0, 0, 0.42))]
    parts += rng.choice((legs(0.2, 0.2, 0.42, 0.025, rng.choice((0, 0.06))), pedestal(0.25, 0.42)))
    if rng.random() < 0.5:
        parts.append(box((0.44, 0.05, 0.5), (0, 0.2, 0.46), lean=lean))
    else:
        parts += [box((0.04, 0.04, 0.52), (x, 0.2, 0.45), 1, lean) for x in (-0.2, 0.2)]
        parts += [box((0.46, 0.03, 0.11), (0, 0.2 + lean * z, 0.46 + z)) for z in (0.2, 0.4)]
    if rng.random() < 0.3:
        parts += [box((0.05, 0.4, 0.03), (x, 0, 0.65), slot=1) for x in (-0.23, 0.23)]
        parts += [box((0.04, 0.04, 0.2), (x, -0.16, 0.45), slot=1) for x in (-0.23, 0.23)]
    return parts


def lamp(rng: Random) -> list[Solid]:
    """A shade or a globe on a pole with a flat, round or three-legged foot."""
    foot = rng.choice(
        (
            [frustum(0.17, 0.13, 0.04, (0, 0, 0), slot=1)],
            [ball((0.17, 0.17, 0.2), (0, 0, 0.2), slot=2)],
            [
                rod((x, y, 0), (0, 0, 0.5), 0.022, slot=1)
                for x, y in ((0.25, 0.1), (-0.22, 0.15), (0.02, -0.26))
            ],
        )
    )
    shade = frustum(0.26, rng.uniform(0.1, 0.24), 0.38, (0, 0, 1.0))
    globe = ball((0.2, 0.2, 0.2), (0, 0, 1.2))
    pole = frustum(0.025, 0.025, 1.15, (0, 0, 0), slot=1)
    return [pole, *foot, globe if rng.random() < 0.25 else shade]


def monitor(rng: Random) -> list[Solid]:
    """A flat screen, perhaps with windows on it, on a foot."""
    parts = [
        box((1.0, 0.06, 0.62), (0, 0, 0.18)),
        box((0.92, 0.02, 0.54), (0, -0.03, 0.22), slot=1),
        box((0.1, 0.06, 0.45), (0, 0.05, 0)),
        rng.choice((box((0.45, 0.28, 0.03), (0, 0, 0)), frustum(0.22, 0.2, 0.03, (0, 0, 0)))),
    ]
    for _ in range(rng.randrange(3)):
        wide, tall = rng.uniform(0.2, 0.45), rng.uniform(0.12, 0.25)
        at = (rng.uniform(-0.23, 0.23), -0.035, rng.uniform(0.24, 0.5))
        parts.append(box((wide, 0.02, tall), at, slot=rng.randrange(2, SLOTS)))
    return parts


def mug(rng: Random) -> list[Solid]:
    """A cup with a drink and a handle at either side, sometimes with a band."""
    foot, out, side = rng.uniform(0.14, 0.2), rng.uniform(0.28, 0.34), rng.choice((-1, 1))
    low, high = (side * out, -0.05, 0.1), (side * out, -0.05, 0.3)
    band = [frustum(0.207, 0.21, 0.07, (0, 0, 0.28), slot=2)] if rng.random() < 0.35 else []
    return [
        frustum(foot, 0.2, 0.42, (0, 0, 0)),
        frustum(0.175, 0.175, 0.004, (0, 0, 0.42), slot=1),
        *(rod((side * 0.1, 0, end[2]), end, 0.022) for end in (low, high)),
        rod((low[0], -0.05, 0.08), (high[0], -0.05, 0.32), 0.022),
        *band,
    ]


def plant(rng: Random) -> list[Solid]:
    """A pot with long leaves, a bush on a trunk, or a conifer."""
    pot = frustum(rng.uniform(0.1, 0.16), 0.17, 0.3, (0, 0, 0), slot=1)
    parts = [pot, frustum(0.15, 0.15, 0.004, (0, 0, 0.3), slot=2)]
    style = rng.randrange(3)
    if style == 0:
        for _ in range(rng.randrange(6, 10)):
            tip = rng.uniform(-0.45, 0.45), rng.uniform(-0.45, 0.45), rng.uniform(0.6, 1.0)
            parts.append(rod((0, 0, 0.27), tip, rng.uniform(0.04, 0.07), kind=BALL))
        return parts
    parts.append(frustum(0.03, 0.02, 0.4, (0, 0, 0.3), slot=2))
    if style == 1:
        for _ in range(rng.randrange(4, 7)):
            radius = rng.uniform(0.13, 0.2)
            centre = rng.uniform(-0.15, 0.15), rng.uniform(-0.15, 0.15), rng.uniform(0.6, 0.9)
            parts.append(ball((radius, radius, radius), centre))
        return parts
    return parts + [frustum(0.3 - 0.06 * i, 0, 0.32, (0, 0, 0.42 + 0.18 * i)) for i in range(3)]


def sofa(rng: Random) -> list[Solid]:
    """A base, a back, two arms and cushions, for one to three people."""
    seats, arm, cushion = rng.randrange(1, 4), rng.uniform(0.13, 0.2), rng.randrange(2)
    width, round_arms = seats * 0.55 + 2 * arm, rng.random() < 0.5
    parts = [
        box((width, 0.8, 0.2), (0, 0, 0.07)),
        box((width, 0.2, 0.72), (0, 0.3, 0.07), lean=0.05),
        box((width * 0.9, 0.7, 0.07), (0, 0, 0), slot=2),
    ]
    for x in (arm / 2 - width / 2, width / 2 - arm / 2):
        parts.append(box((arm, 0.8, 0.48), (x, 0, 0.07)))
        parts += [rod((x, -0.41, 0.53), (x, 0.4, 0.53), arm * 0.6)] if round_arms else []
    for i in range(seats):
        x = (i - (seats - 1) / 2) * 0.55
        parts.append(box((0.53, 0.6, 0.14), (x, -0.08, 0.26), cushion))
        parts.append(box((0.5, 0.14, 0.34), (x, 0.16, 0.38), cushion, lean=0.2))
    if rng.random() < 0.4:
        x = rng.uniform(0.2 - width / 4, width / 4 - 0.2)
        parts.append(box((0.34, 0.1, 0.3), (x, 0.02, 0.38), slot=3, lean=0.35))
    return parts


def table(rng: Random) -> list[Solid]:
    """A round or square top on legs, a pedestal or two panels."""
    flat = box((1.1, 0.75, 0.05), (0, 0, 0.67))
    disc = frustum(0.5, 0.5, 0.05, (0, 0, 0.67))
    shelf = box((0.9, 0.55, 0.03), (0, 0, 0.2), slot=1)
    panels = [box((0.05, 0.65, 0.67), (x, 0, 0), slot=1) for x in (-0.45, 0.45)]
    return rng.choice(
        (
            [disc, *pedestal(0.3, 0.67)],
            [disc, *legs(0.3, 0.3, 0.67, 0.035, 0.05)],
            [flat, *panels],
            [flat, *legs(0.48, 0.3, 0.67, 0.035)],
            [flat, *legs(0.48, 0.3, 0.67, 0.03), shelf],
        )
    )


def teddy(rng: Random) -> list[Solid]:
    """A toy bear, sitting or standing: round body, head, ears, muzzle, eyes, arms and legs."""
    sits, lift = rng.random() < 0.6, rng.uniform(-0.1, 0.15)
    waist = 0.24 if sits else 0.44
    top = waist + 0.42
    parts = [
        ball((0.24, 0.2, 0.28), (0, 0, waist)),
        ball((0.17, 0.09, 0.2), (0, -0.15, waist), slot=1),
        ball((0.22, 0.2, 0.2), (0, -0.01, top)),
        ball((0.1, 0.09, 0.08), (0, -0.19, top - 0.04), slot=1),
    ]
    for side in (-1, 1):
        toe = (side * 0.2, -0.36, 0.09) if sits else (side * 0.13, -0.04, 0)
        hand = (side * 0.38, -0.14, waist + lift)
        parts += [
            ball((0.09, 0.05, 0.09), (side * 0.16, 0, top + 0.16)),
            ball((0.026, 0.026, 0.026), (side * 0.08, -0.18, top + 0.05), slot=2),
            rod((side * 0.16, 0, waist + 0.18), hand, 0.08, kind=BALL),
            rod((side * 0.12, 0, waist - 0.15), toe, 0.09, kind=BALL),
        ]
    return parts


def clutter(rng: Random) -> list[Solid]:
    """A thing of no class: a crate, a drum, a cone, a ball or a rug."""
    return [
        rng.choice(
            (
                box((0.4, 0.35, 0.4), (0, 0, 0)),
                frustum(0.18, 0.18, 0.45, (0, 0, 0)),
                frustum(0.2, 0, 0.4, (0, 0, 0)),
                ball((0.2, 0.2, 0.2), (0, 0, 0.2)),
                box((1.2, 1.6, 0.01), (0, 0, 0)),
            )
        )
    ]


BUILDERS = {
    "bookshelf": bookshelf,
    "bottle": bottle,
    "chair": chair,
    "lamp": lamp,
    "monitor": monitor,
    "mug": mug,
    "plant": plant,
    "sofa": sofa,
    "table": table,
    "teddy": teddy,
}
CLASSES = tuple(BUILDERS)
# where each class is found; some are in rooms and, smaller, on counters
FLOOR = ("bookshelf", "chair", "lamp", "monitor", "plant", "sofa", "table", "teddy")
COUNTER = ("bottle", "lamp", "monitor", "mug", "plant", "teddy")
