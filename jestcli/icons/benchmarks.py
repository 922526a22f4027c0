"""The eight benchmarks, and a ninth that confirms: withheld drawings and their class names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jestcli.icons.captions import Emoji, Words
from jestcli.icons.draw import Collection, Drawn, Rastered
from jestcli.icons.leakage import Compared, near_duplicates
from jestcli.icons.spec import World
from jestcli.utils.spelling import singular

ZERO_SHOT, FEW_SHOT, RETRIEVAL = "zero-shot", "few-shot", "retrieval"
# Groups of emoji that show things rather than faces, people, signs and flags.
OBJECT_GROUPS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
RECALL_AT = 5  # recall at 1 of a small model counts a handful of the images
# name, what it mirrors, description, collections, groups of emoji; the last confirms.
_BOTH = ("fluent-emoji", "fluent-emoji-flat")
_SHADED = "things, places and creatures as shaded emoji of one vendor"
_OTHER = "things, places and creatures as emoji of another vendor; confirms the headline once"
_ANIMALS = "animals and plants, shaded and flat emoji"
_FOOD = "food and drink, shaded and flat emoji"
EMOJI: tuple[tuple[str, str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("emoji_3d", "ImageNet-V2, ObjectNet", _SHADED, ("fluent-emoji",), OBJECT_GROUPS),
    ("animals", "Pets (fine-grained)", _ANIMALS, _BOTH, ("animals-nature",)),
    ("food", "Food-101 (fine-grained)", _FOOD, _BOTH, ("food-drink",)),
    ("fxemoji", "ImageNet-V2", _OTHER, ("fxemoji",), OBJECT_GROUPS),
)
_PHOSPHOR_WEIGHTS = ("thin", "light", "bold", "fill", "duotone")


@dataclass(frozen=True)
class Item:
    """One benchmark image: a class number, or a caption for retrieval."""

    icon: Drawn
    label: int = -1
    caption: str = ""


@dataclass(frozen=True)
class Benchmark:
    """One folder in clip-benchmark's local wds layout."""

    name: str
    kind: str
    mirrors: str
    description: str
    test: tuple[Item, ...]
    train: tuple[Item, ...] = ()
    classes: tuple[str, ...] = ()
    confirmation: bool = False  # not one of the eight: looked at once, when all is decided

    @property
    def chance(self) -> float:
        """Top-1 (or recall at RECALL_AT) of guessing."""
        if self.kind == RETRIEVAL:
            return min(1.0, RECALL_AT / max(1, len(self.test)))
        return 1.0 / max(1, len(self.classes))


def make_benchmarks(
    world: World, drawn: Rastered, emoji: Emoji, phosphor: Mapping[str, Words]
) -> list[Benchmark]:
    """All benchmarks that the drawn icons allow, before near-duplicates of training data leave."""
    withheld = (icon for icon in drawn.icons if icon.collection.family in world.withheld)
    shown = [icon for icon in withheld if not icon.hidden]
    emojis = [_emoji(*row, drawn.collections, shown, emoji) for row in EMOJI]
    emojis[-1] = replace(emojis[-1], confirmation=True)
    made = [*_objects(world, shown), _tagged(shown, phosphor), *emojis]
    return [benchmark for benchmark in made if benchmark.test]


def without_leaks(
    benchmarks: list[Benchmark], drawn: Rastered, training: list[Drawn], tau: float
) -> tuple[list[Benchmark], dict[str, int], Compared]:
    """Drop benchmark images that training images resemble; also how many each benchmark lost, and
    what was compared with what."""
    icons = sorted(
        {item.icon for benchmark in benchmarks for item in (*benchmark.test, *benchmark.train)},
        key=lambda icon: icon.key,
    )
    exact = frozenset(icon.digest for icon in training)
    leaked = {icon.key for icon in icons if icon.digest in exact}
    pairs = near_duplicates(drawn.signatures(icons), drawn.signatures(training), tau)
    leaked |= {icons[i].key for i, _ in pairs}
    lost: dict[str, int] = {}
    kept = []
    for benchmark in benchmarks:
        whole = (benchmark.test, benchmark.train)
        test, train = (tuple(x for x in each if x.icon.key not in leaked) for each in whole)
        lost[benchmark.name] = sum(map(len, whole)) - len(test) - len(train)
        kept.append(_without_empty_classes(replace(benchmark, test=test, train=train)))
    unlike = frozenset(icon.digest for icon in icons if icon.key not in leaked)
    return kept, lost, Compared(unlike, exact)


def _without_empty_classes(benchmark: Benchmark) -> Benchmark:
    """Renumber so that every class has a test image (and a train image where there are any)."""
    if not benchmark.classes:
        return benchmark
    labels = {item.label for item in benchmark.test}
    if benchmark.train:
        labels &= {item.label for item in benchmark.train}
    number = {old: new for new, old in enumerate(sorted(labels))}

    test, train = (
        tuple(replace(x, label=number[x.label]) for x in items if x.label in number)
        for items in (benchmark.test, benchmark.train)
    )
    classes = tuple(benchmark.classes[old] for old in number)
    return replace(benchmark, test=test, train=train, classes=classes)


def concept(name: str, style_words: tuple[str, ...]) -> str:
    """What an icon shows: its name without style words, the last word singular; may be empty."""
    words = [word for word in name.split("-") if word not in style_words]
    if not words:
        return ""
    return " ".join([*words[:-1], singular(words[-1])])


def _objects(world: World, shown: list[Drawn]) -> list[Benchmark]:
    """Concepts that several withheld families draw: as lines, as filled shapes, few-shot."""
    family_of = {prefix: f for f, prefixes in world.concept_sets.items() for prefix in prefixes}
    drawings: dict[str, dict[str, list[Drawn]]] = {}  # concept -> family -> icons
    for icon in shown:
        family = family_of.get(icon.prefix)
        if family is None:
            continue
        if word := concept(icon.name, world.style_words):
            drawings.setdefault(word, {}).setdefault(family, []).append(icon)
    classes = tuple(sorted(c for c, by in drawings.items() if len(by) >= world.concept_families))
    lines: list[Item] = []
    shapes: list[Item] = []
    few: list[Item] = []
    shots: list[Item] = []
    for number, word in enumerate(classes):
        for family, icon in ((f, icon) for f, icons in drawings[word].items() for icon in icons):
            item, unseen = Item(icon, number), family == "phosphor"
            style = icon.name.split("-")[-1]
            if unseen and style not in _PHOSPHOR_WEIGHTS:
                style = ""  # regular
            if not unseen or style in world.concept_weights:
                (shapes if style in world.filled_styles else lines).append(item)
            (shots if unseen else few).append(item)
    what = "things that several unseen icon families draw, as lines"
    filled = "the same things as filled shapes"
    few_shot = "the same things; a few shots from one unseen family, test on the others"
    rows: tuple[tuple[str, str, str, str, list[Item], list[Item]], ...] = (
        ("objects", ZERO_SHOT, "ImageNet zero-shot", what, lines, []),
        ("objects_filled", ZERO_SHOT, "ImageNet-Sketch and -R", filled, shapes, []),
        ("objects_fewshot", FEW_SHOT, "ImageNet few-shot", few_shot, few, shots),
    )
    return [Benchmark(*row[:4], tuple(row[4]), tuple(row[5]), classes) for row in rows]


def _tagged(shown: list[Drawn], phosphor: Mapping[str, Words]) -> Benchmark:
    items = []
    for icon in shown:
        if icon.prefix == "ph" and (words := phosphor.get(icon.name)) is not None:
            items.append(Item(icon, caption=", ".join((words.label, *words.tags))))
    what = "icons of an unseen family with name and tags as the caption"
    return Benchmark("tagged", RETRIEVAL, "COCO / Flickr retrieval", what, tuple(items))


def _emoji(
    name: str,
    mirrors: str,
    description: str,
    prefixes: tuple[str, ...],
    groups: tuple[str, ...],
    collections: Mapping[str, Collection],
    shown: list[Drawn],
    emoji: Emoji,
) -> Benchmark:
    """Emoji of one vendor, one class per emoji of these groups."""
    present = [collections[prefix] for prefix in prefixes if prefix in collections]
    family = {each.family for each in present}
    characters = {
        icon: code
        for each in collections.values()
        if each.family in family
        for icon, code in each.characters.items()
    }
    code_of: dict[tuple[str, str], str] = {}
    for each in present:
        found = emoji.find(replace(each, characters=characters))
        code_of |= {(each.prefix, icon): code for icon, code in found.items()}
    known = [icon for icon in shown if (icon.prefix, icon.name) in code_of]
    words = {icon: emoji.words[code_of[icon.prefix, icon.name]] for icon in known}
    labels = {icon: about.label for icon, about in words.items() if about.group in groups}
    classes = tuple(sorted(set(labels.values())))
    number = {label: at for at, label in enumerate(classes)}
    items = tuple(Item(icon, number[label]) for icon, label in labels.items())
    return Benchmark(name, ZERO_SHOT, mirrors, description, items, (), classes)


def entries(benchmark: Benchmark, lost: int) -> list[dict[str, Any]]:
    """What benchmarks.json says of a folder: one entry, or two for retrieval (one a direction)."""
    families = sorted({item.icon.collection.family for item in benchmark.test})
    base = {
        "name": benchmark.name,
        "folder": f"wds_{benchmark.name}",
        "kind": benchmark.kind,
        "mirrors": benchmark.mirrors,
        "metric": "acc1",
        "n": len(benchmark.test),
        "n_train": len(benchmark.train),
        "n_classes": len(benchmark.classes),
        "chance": benchmark.chance,
        "confirmation": benchmark.confirmation,
        "description": benchmark.description,
        "families": families,
        "dropped_as_near_duplicates": lost,
    }
    if benchmark.kind != RETRIEVAL:
        return [base]
    found = []
    ways = ("i2t", "caption of an image", "text"), ("t2i", "image of a caption", "image")
    for short, what, by in ways:
        metric = f"{by}_retrieval_recall@{RECALL_AT}"
        words = f"{benchmark.description}: find the {what}"
        name = f"{benchmark.name}_{short}"
        found.append(base | {"name": name, "metric": metric, "description": words})
    return found
