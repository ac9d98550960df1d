"""Which OpenMoji glyphs are variants of one another, and the split that keeps variants together.

A held-out figure means something only if no held-out picture is a recoloured training picture. Glyphs are therefore
split by *base glyph*, never one by one. The rule, applied to the code points of a glyph's file name in this order:

1. Variation selector 16 and the five skin tones are dropped.
2. Flags are each their own base glyph: sequences of regional indicators, and sequences that begin with the white or
   black flag.
3. A trailing facing direction (right arrow) and the gender signs are dropped; man, woman and person are one adult,
   boy, girl and child one child, old man, old woman and older person one elder.
4. Hair (red, curly, white, bald; blond; beard) is dropped from an adult.
5. Two or more people in one glyph are one base glyph each for bunny ears and wrestling, and one for all couples
   (holding hands, kiss, heart) and families together.
6. An adult joined with something else is keyed by that something: all health workers are one base glyph.
7. Any other joined sequence is keyed by its first code point: a black cat is a cat, a heart on fire a heart.
8. Glyphs in one row of `LOOKALIKES` are one base glyph: gendered pairs with code points of their own (prince and
   princess), one drawing in several colours (hearts, squares), clock faces, and flags that are drawn alike
   (France and Clipperton).
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

VARIATION_SELECTOR = "FE0F"
JOINER = "200D"
SKIN_TONES = frozenset({"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"})
_DROPPED_PARTS = frozenset({"2640", "2642", "27A1"})  # female sign, male sign, facing right
_HAIR = frozenset({"1F9B0", "1F9B1", "1F9B2", "1F9B3"})
_PEOPLE = {
    **dict.fromkeys(("1F468", "1F469", "1F9D1", "1F471", "1F9D4"), "adult"),
    **dict.fromkeys(("1F466", "1F467", "1F9D2"), "child"),
    **dict.fromkeys(("1F474", "1F475", "1F9D3"), "elder"),
}
_TOGETHER = {"1F430": "bunny-ears", "1FAEF": "wrestlers"}

# Each row is one drawing in several versions. Flags were paired by the mean squared difference of their renderings.
LOOKALIKES = tuple(
    frozenset(row.split())
    for row in (
        "bunny-ears 1F46F",
        "wrestlers 1F93C",
        "couple-or-family 1F46A 1F46B 1F46C 1F46D 1F48F 1F491",
        "adult+1F384 1F385 1F936",  # Santa, Mrs and Mx Claus
        "1F934 1F478 1FAC5",  # prince, princess, person with crown
        "1F57A 1F483",  # man and woman dancing
        "1F930 1FAC3 1FAC4",  # pregnant
        "adult+1F37C 1F931",  # feeding a baby
        "1F91D 1FAF1 1FAF2",  # handshake and its two hands
        "1F641 2639",  # frowning, twice
        "1F47F 1F608",  # horned face, twice
        "1F6B9 1F6BA 1F6BB",  # toilet signs
        "1F315 1F7E1 1F311 26AB 26AA 1F534 1F535 1F7E0 1F7E2 1F7E3 1F7E4",  # plain discs, full and new moon
        "2B1B 2B1C 1F7E5 1F7E6 1F7E7 1F7E8 1F7E9 1F7EA 1F7EB",  # plain squares
        "25FC 25FB 25FE 25FD 25AA 25AB",  # smaller squares
        "1F536 1F537 1F538 1F539",  # diamonds
        "2764 1F9E1 1F49B 1F49A 1F499 1FA75 1F49C 1F90E 1F5A4 1FA76 1F90D 1FA77",  # hearts
        "1F4D5 1F4D7 1F4D8 1F4D9",  # closed books
        "1F52F 2721",  # six-pointed stars
        "1F512 1F513",  # locks
        "1F508 1F509 1F50A",  # speaker volumes
        "1F550 1F551 1F552 1F553 1F554 1F555 1F556 1F557 1F558 1F559 1F55A 1F55B "
        "1F55C 1F55D 1F55E 1F55F 1F560 1F561 1F562 1F563 1F564 1F565 1F566 1F567",  # clock faces
        "1F1EB-1F1F7 1F1E8-1F1F5 1F1F2-1F1EB",  # France, Clipperton, Saint Martin
        "1F1F7-1F1F4 1F1F9-1F1E9 1F1F2-1F1E9 1F1E6-1F1E9",  # Romania, Chad, Moldova, Andorra
        "1F1EE-1F1E9 1F1F2-1F1E8 1F1F8-1F1EC",  # Indonesia, Monaco, Singapore
        "1F1EA-1F1F8 1F1EA-1F1E6",  # Spain, Ceuta and Melilla
        "1F1F3-1F1F4 1F1F8-1F1EF 1F1E7-1F1FB",  # Norway, Svalbard, Bouvet Island
        "1F1E6-1F1FA 1F1ED-1F1F2",  # Australia, Heard and McDonald Islands
        "1F1FA-1F1F8 1F1FA-1F1F2",  # United States, outlying islands
        "1F1ED-1F1FA 1F1F9-1F1EF",  # Hungary, Tajikistan
        "1F1ED-1F1F3 1F1F3-1F1EE 1F1E6-1F1F7",  # Honduras, Nicaragua, Argentina
        "1F1EF-1F1F4 1F1F5-1F1F8 1F1EA-1F1ED",  # Jordan, Palestine, Western Sahara
        "1F1F2-1F1F1 1F1F8-1F1F3",  # Mali, Senegal
        "1F1F3-1F1F1 1F1F5-1F1FE",  # Netherlands, Paraguay
        "1F1EA-1F1EC 1F1FE-1F1EA",  # Egypt, Yemen
        "1F1F0-1F1EC 1F1FB-1F1F3",  # Kyrgyzstan, Vietnam
        "1F1EE-1F1EA 1F1EE-1F1F9",  # Ireland, Italy
        "1F1F8-1F1ED 1F1F9-1F1E6",  # Saint Helena, Tristan da Cunha
    )
)
_CANONICAL = {key: min(row) for row in LOOKALIKES for key in row}


def code_points(name: str) -> tuple[str, ...]:
    """`"2764-FE0F-200D-1F525"` as `("2764", "200D", "1F525")`: upper-case hex without variation selectors."""
    return tuple(code for code in name.upper().split("-") if code != VARIATION_SELECTOR)


def base_glyph(name: str) -> str:
    """Key of the base glyph that the glyph `name` (`"1F468-1F3FB-200D-1F4BB"`) is a version of; see the module."""
    key = _base_glyph_before_lookalikes(name)
    return _CANONICAL.get(key, key)


def _base_glyph_before_lookalikes(name: str) -> str:
    codes = [code for code in code_points(name) if code not in SKIN_TONES] or list(code_points(name))
    if 0x1F1E6 <= int(codes[0], 16) <= 0x1F1FF or codes[0] in ("1F3F3", "1F3F4"):
        return "-".join(codes)
    if JOINER not in codes:
        # Keycaps ("0031-20E3") and single code points.
        return _PEOPLE.get(codes[0], "-".join(codes))
    parts = [code for code in codes if code != JOINER and code not in _DROPPED_PARTS]
    people = [part for part in parts if part in _PEOPLE]
    others = [part for part in parts if part not in _PEOPLE and part not in _HAIR]
    if len(people) > 1:
        return next((_TOGETHER[part] for part in others if part in _TOGETHER), "couple-or-family")
    if people:
        return "+".join([_PEOPLE[people[0]], *others])
    return parts[0]


def split_by_base_glyph(
    names: Sequence[str], labels: Sequence[int], heldout_fraction: float = 0.11
) -> tuple[list[int], list[int]]:
    """Split glyphs into train and held-out so that no base glyph is on both sides.

    Within each class, base glyphs are taken in the order of the sha256 of their key until the class has its share of
    held-out images; one that would overshoot the share is left to training. The result depends on the names only, not
    on their order or on a random generator. A base glyph whose versions carry several labels counts for the commonest.

    Args:
        names (`Sequence[str]`): Glyph names such as `"1F600"`.
        labels (`Sequence[int]`): A class for each.
        heldout_fraction (`float`, defaults to 0.11): Share of images, in (0, 1).

    Returns:
        `tuple[list[int], list[int]]`: Ascending positions of the training and of the held-out glyphs.
    """
    members = defaultdict(list)
    for position, name in enumerate(names):
        members[base_glyph(name)].append(position)
    keys_by_class = defaultdict(list)
    for key, positions in members.items():
        votes = Counter(labels[position] for position in positions)
        keys_by_class[min(votes, key=lambda label: (-votes[label], label))].append(key)

    heldout = []
    for keys in keys_by_class.values():
        share = round(heldout_fraction * sum(len(members[key]) for key in keys))
        taken = 0
        for key in sorted(keys, key=lambda key: hashlib.sha256(key.encode()).hexdigest()):
            if taken + len(members[key]) <= share:
                heldout.extend(members[key])
                taken += len(members[key])
    heldout_set = set(heldout)
    return [position for position in range(len(names)) if position not in heldout_set], sorted(heldout)
