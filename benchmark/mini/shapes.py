"""The ten object classes: compositions of solids, told apart by shape and not by colour.

Each class has a function of a random generator that returns the parts of one object, which stands
on z = 0 and faces -y; slot 0 has the colour that captions name.
"""

from random import Random

from benchmark.mini.solids import BALL, Part, ball, box, rod, turned

SLOTS = 4  # materials of an object


def legs(x: float, y: float, height: float) -> list[Part]:
    corners = (x, y), (x, -y), (-x, y), (-x, -y)
    return [rod((1.1 * a, 1.1 * b, 0), (a, b, height), 0.032, slot=1) for a, b in corners]


def pedestal(foot: float, height: float) -> list[Part]:
    return turned((0, foot), (0.06, foot / 2), (0.06, 0.05), (height, 0.05), slot=1)


def bookshelf(rng: Random) -> list[Part]:
    shelves = rng.randrange(3, 5)
    gap = 1.3 / shelves
    parts = [box((0.04, 0.3, 1.33), (x, 0, 0)) for x in (-0.42, 0.42)]
    parts.append(box((0.84, 0.02, 1.34), (0, 0.145, 0), slot=rng.randrange(2)))
    parts += [box((0.84, 0.3, 0.03), (0, 0, level * gap)) for level in range(shelves + 1)]
    for books in range(2 * shelves):
        size = rng.uniform(0.2, 0.36), 0.2, gap * rng.uniform(0.55, 0.85)
        at = 0.4 * (books % 2) - 0.2, 0, books // 2 * gap + 0.03
        parts.append(box(size, at, slot=rng.randrange(1, SLOTS)))
    return parts


def bottle(rng: Random) -> list[Part]:
    body, neck = rng.uniform(0.4, 0.55), rng.uniform(0.04, 0.06)
    glass = turned((0, 0.13), (body, 0.13), (body + 0.15, neck), (0.84, neck))
    label = turned((0.1, 0.134), (0.3, 0.134), slot=rng.randrange(2))
    return [*glass, *label, *turned((0.82, neck * 1.3), (0.9, neck * 1.2), slot=2)]


def chair(rng: Random) -> list[Part]:
    seat, lean = box((0.46, 0.46, 0.07), (0, 0, 0.42)), rng.uniform(0, 0.12)
    support = rng.choice((legs(0.19, 0.19, 0.42), pedestal(0.25, 0.42)))
    if rng.random() < 0.5:
        return [seat, *support, box((0.44, 0.05, 0.52), (0, 0.2, 0.46), lean=lean)]
    posts = [box((0.04, 0.04, 0.52), (x, 0.2, 0.45), 1, lean) for x in (-0.2, 0.2)]
    slats = [box((0.46, 0.04, 0.12), (0, 0.2 + lean * (z - 0.45), z)) for z in (0.65, 0.86)]
    return [seat, *support, *posts, *slats]


def lamp(rng: Random) -> list[Part]:
    foot = rng.choice((turned((0, 0.18), (0.05, 0.13)), [ball((0.16, 0.16, 0.2), (0, 0, 0.2))]))
    shade = turned((1.0, 0.26), (1.36, rng.uniform(0.1, 0.22)))
    head = rng.choice((shade, shade, [ball((0.2, 0.2, 0.2), (0, 0, 1.2))]))
    return [*turned((0, 0.025), (1.15, 0.025), slot=1), *foot, *head]


def monitor(rng: Random) -> list[Part]:
    window = rng.uniform(0.2, 0.6), 0.02, rng.uniform(0.15, 0.3)
    frame, screen = (
        box((1.0, 0.06, 0.62), (0, 0, 0.18)),
        box((0.92, 0.02, 0.54), (0, -0.03, 0.22), 1),
    )
    content = box(window, (rng.uniform(-0.15, 0.15), -0.035, rng.uniform(0.25, 0.42)), slot=2)
    foot = rng.choice((turned((0, 0.22), (0.03, 0.2)), [box((0.45, 0.28, 0.03), (0, 0, 0))]))
    return [frame, screen, content, box((0.1, 0.06, 0.45), (0, 0.05, 0)), *foot]


def mug(rng: Random) -> list[Part]:
    side, out = rng.choice((-1, 1)), rng.uniform(0.29, 0.34)
    low, high = (side * out, -0.05, 0.08), (side * out, -0.05, 0.32)
    handle = [rod((side * 0.1, 0, z), (x, y, z), 0.025) for x, y, z in (low, high)]
    drink = turned((0.42, 0.175), (0.424, 0.175), slot=1)
    return [
        *turned((0, rng.uniform(0.14, 0.2)), (0.42, 0.2)),
        *drink,
        *handle,
        rod(low, high, 0.025),
    ]


def plant(rng: Random) -> list[Part]:
    parts = turned((0, rng.uniform(0.1, 0.16)), (0.3, 0.18), slot=1)
    if rng.random() < 0.4:  # a bush on a trunk
        parts += turned((0.3, 0.03), (0.7, 0.02), slot=2)
        crown = [[rng.uniform(low, low + 0.3) for low in (-0.15, -0.15, 0.6)] for _ in range(6)]
        return parts + [ball((rng.uniform(0.13, 0.2),) * 3, (x, y, z)) for x, y, z in crown]
    for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1)) * 2:  # long leaves
        tip = x * rng.uniform(0.05, 0.45), y * rng.uniform(0.05, 0.45), rng.uniform(0.6, 1.0)
        parts.append(rod((0, 0, 0.25), tip, rng.uniform(0.05, 0.07), kind=BALL))
    return parts


def sofa(rng: Random) -> list[Part]:
    seats, slot = rng.randrange(1, 4), rng.randrange(2)
    arm = seats * 0.275 + 0.08
    parts = [box((2 * arm, 0.8, 0.24), (0, 0, 0))]
    parts.append(box((2 * arm + 0.16, 0.2, 0.74), (0, 0.3, 0), lean=0.05))
    for x in (-arm, arm):
        parts.append(box((0.16, 0.8, 0.5), (x, 0, 0)))
        parts.append(rod((x, -0.41, 0.53), (x, 0.4, 0.53), 0.1))
    for x in [(i - (seats - 1) / 2) * 0.55 for i in range(seats)]:  # cushions
        parts.append(box((0.53, 0.6, 0.14), (x, -0.08, 0.28), slot))
        parts.append(box((0.5, 0.14, 0.34), (x, 0.14, 0.4), slot, lean=0.07))
    return parts


def table(rng: Random) -> list[Part]:
    disc, board = turned((0.67, 0.5), (0.72, 0.5)), [box((1.1, 0.75, 0.05), (0, 0, 0.67))]
    panels = [box((0.05, 0.65, 0.67), (x, 0, 0), slot=1) for x in (-0.45, 0.45)]
    round_table = disc + rng.choice((pedestal(0.3, 0.67), legs(0.3, 0.3, 0.67)))
    return rng.choice((round_table, board + rng.choice((panels, legs(0.46, 0.3, 0.67)))))


def teddy(rng: Random) -> list[Part]:
    sits, lift = rng.random() < 0.6, rng.uniform(-0.1, 0.15)
    waist = 0.24 if sits else 0.44
    top = waist + 0.42
    parts = [ball((0.24, 0.2, 0.28), (0, 0, waist)), ball((0.22, 0.2, 0.2), (0, 0, top))]
    parts.append(ball((0.17, 0.09, 0.2), (0, -0.15, waist), slot=1))
    parts.append(ball((0.1, 0.09, 0.08), (0, -0.18, top - 0.04), slot=1))  # muzzle
    for x in (-1, 1):  # ears, eyes, arms and legs
        parts.append(ball((0.09, 0.05, 0.09), (x * 0.16, 0, top + 0.16)))
        parts.append(ball((0.026, 0.026, 0.026), (x * 0.08, -0.18, top + 0.06), slot=2))
        shoulder, hand = (x * 0.16, 0, waist + 0.18), (x * 0.38, -0.14, waist + lift)
        parts.append(rod(shoulder, hand, 0.08, kind=BALL))
        toe = (x * 0.2, -0.36, 0.09) if sits else (x * 0.13, -0.04, 0)
        parts.append(rod((x * 0.12, 0, waist - 0.15), toe, 0.09, kind=BALL))
    return parts


def clutter(rng: Random) -> list[Part]:
    """A crate, a ball, a drum or a cone, which are of no class."""
    crate, sphere = [box((0.4, 0.35, 0.4), (0, 0, 0))], [ball((0.2, 0.2, 0.2), (0, 0, 0.2))]
    drum, cone = turned((0, 0.18), (0.45, 0.18)), turned((0, 0.2), (0.4, 0))
    return rng.choice((crate, sphere, drum, cone))


_BUILDERS = bookshelf, bottle, chair, lamp, monitor, mug, plant, sofa, table, teddy
BUILDERS = {build.__name__: build for build in _BUILDERS}
CLASSES = tuple(BUILDERS)
# where each class is found, and the scale of things there
SETTINGS = {
    "floor": (1.0, ("bookshelf", "chair", "lamp", "monitor", "plant", "sofa", "table", "teddy")),
    "counter": (0.45, ("bottle", "lamp", "monitor", "mug", "plant", "teddy")),
}
